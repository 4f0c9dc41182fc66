"""The lab does what it says: hosts reach each other, a cut is a cut, and nothing is left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.anna.local.processes import Watched, eventually
from tests.lab.hosts import NAMESPACES, Host, Lab, lab

ECHO = """
import os, socket, sys
listener = socket.create_server((sys.argv[1], 7))
print("ready", flush=True)
os.fork()
while True:
    peer, _ = listener.accept()
    with peer:
        while data := peer.recv(100):
            peer.sendall(data)
"""


def start_echo(host: Host) -> None:
    process = host.start(sys.executable, "-c", ECHO, host.address, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def call(client: Host, server: Host) -> socket.socket:
    with client.entered():
        return socket.create_connection((server.address, 7), timeout=5)


def comes_back(peer: socket.socket, data: bytes, within: float = 0.2) -> bool:
    peer.settimeout(within)
    peer.sendall(data)
    try:
        return peer.recv(100) == data
    except TimeoutError:
        return False


@pytest.fixture
def echoing(three_hosts: Lab) -> Lab:
    for name in ("h1", "h2"):
        start_echo(three_hosts[name])
    return three_hosts


def test_hosts_reach_each_other_and_share_no_device_with_the_machine(echoing: Lab) -> None:
    with call(echoing["h3"], echoing["h1"]) as peer:
        assert comes_back(peer, b"hello")
    outside = {name for _, name in socket.if_nameindex()}
    with echoing["h3"].entered():
        assert {name for _, name in socket.if_nameindex()} == {"lo", "eth0"}
    assert {name for _, name in socket.if_nameindex()} == outside
    assert not outside & {host.port for host in echoing.hosts.values()}


def test_a_cut_link_loses_everything_until_it_is_healed_and_others_go_on(echoing: Lab) -> None:
    h1, h2, h3 = (echoing[name] for name in ("h1", "h2", "h3"))
    with call(h3, h1) as cut, call(h3, h2) as whole:
        echoing.cut(h1, h3)
        assert not comes_back(cut, b"lost?")
        assert comes_back(whole, b"goes on")
        echoing.heal()
        cut.settimeout(10)
        assert cut.recv(100) == b"lost?"  # TCP sends it again


def test_a_link_that_is_cut_one_way_still_delivers_the_other_way(echoing: Lab) -> None:
    h1, h3 = echoing["h1"], echoing["h3"]
    with h1.entered():
        h1_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with h3.entered():
        h3_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with h1_socket, h3_socket:
        for host, bound in ((h1, h1_socket), (h3, h3_socket)):
            bound.bind((host.address, 9))
            bound.settimeout(0.2)
        for here, there in ((h1_socket, h3), (h3_socket, h1)):
            here.sendto(b"so that each knows the other's hardware address", (there.address, 9))
        assert h1_socket.recv(100) == h3_socket.recv(100)
        echoing.cut_one_way([(h1, h3)])
        h1_socket.sendto(b"dropped", (h3.address, 9))
        h3_socket.sendto(b"delivered", (h1.address, 9))
        assert h1_socket.recv(100) == b"delivered"
        with pytest.raises(TimeoutError):
            h3_socket.recv(100)


def test_a_lossy_link_loses_about_the_share_that_was_asked_for(three_hosts: Lab) -> None:
    h1, h2 = three_hosts["h1"], three_hosts["h2"]
    with h1.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with h2.entered():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender, receiver:
        receiver.bind((h2.address, 9))
        receiver.settimeout(1)
        sender.sendto(b"first", (h2.address, 9))
        assert receiver.recv(100) == b"first"
        three_hosts.lose(0.3, [(h1, h2)])
        arrived = 0
        for _ in range(20):  # in portions that the receiver's buffer holds
            for _ in range(50):
                sender.sendto(b"datagram", (h2.address, 9))
            receiver.setblocking(False)
            try:
                while receiver.recv(100):
                    arrived += 1
            except BlockingIOError:
                pass
    assert 600 <= arrived <= 800  # of 1,000: six standard deviations around 700


@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="NO DELAYS HERE: there is no /dev/net/tun")
def test_a_delayed_link_is_late_both_ways_keeps_the_order_and_can_be_cut(echoing: Lab) -> None:
    far = echoing.add("far", delay_s=0.05)
    with call(far, echoing["h1"]) as peer:
        begun = time.monotonic()
        assert comes_back(peer, b"there and back", within=2)
        assert 0.1 <= time.monotonic() - begun < 0.5
        data = b"".join(b"%06d" % n for n in range(20_000))
        sending = threading.Thread(target=peer.sendall, args=(data,))
        sending.start()
        back = b""
        while len(back) < len(data):
            back += peer.recv(65536)
        sending.join()
        assert back == data
        echoing.cut(far, echoing["h1"])
        assert not comes_back(peer, b"lost", within=0.3)


def test_sides_that_are_parted_hear_nothing_of_each_other(echoing: Lab) -> None:
    h1, h2, h3, clients = (echoing[name] for name in ("h1", "h2", "h3", "clients"))
    with call(h3, h1) as across, call(clients, h2) as inside:
        echoing.part([h1], [h2, h3, clients])
        assert not comes_back(across, b"over there")
        assert comes_back(inside, b"in here")


def test_a_frozen_host_is_silent_and_a_thawed_one_answers(echoing: Lab) -> None:
    with call(echoing["h3"], echoing["h1"]) as peer:
        echoing["h1"].freeze()
        assert not comes_back(peer, b"anyone?")
        echoing["h1"].thaw()
        peer.settimeout(5)
        assert peer.recv(100) == b"anyone?"


def test_a_crashed_host_has_no_processes_and_the_others_keep_theirs(echoing: Lab) -> None:
    eventually(lambda: len(echoing["h1"].pids()) == len(echoing["h2"].pids()) == 2, "all of their processes run")
    victims = [Watched(pid) for pid in echoing["h1"].pids()]
    echoing["h1"].crash()
    assert all(process.has_ended() for process in victims)
    assert echoing["h1"].pids() == []
    assert len(echoing["h2"].pids()) == 2
    start_echo(echoing["h1"])
    with call(echoing["h2"], echoing["h1"]) as peer:
        assert comes_back(peer, b"again")


@pytest.mark.usefixtures("three_hosts")
@pytest.mark.parametrize("ending", [KeyboardInterrupt, AssertionError])
def test_nothing_is_left_however_the_lab_ends(ending: type[BaseException]) -> None:
    links = sorted(os.listdir("/sys/class/net"))
    left: list[Path] = []
    watched: list[Watched] = []
    with pytest.raises(ending), lab("a", "b") as made:  # noqa: PT012 (the lab is what must end)
        start_echo(made["a"])
        eventually(lambda: len(made["a"].pids()) == 2, "both of its processes run")
        watched = [Watched(pid) for pid in made["a"].pids()]
        left = [NAMESPACES / name for name in (made.switch, made["a"].namespace, made["b"].namespace)]
        assert all(path.exists() for path in left)
        raise ending
    assert [path for path in left if path.exists()] == []
    assert len(watched) == 2
    eventually(lambda: all(process.has_ended() for process in watched), "the host's processes end")
    assert sorted(os.listdir("/sys/class/net")) == links
