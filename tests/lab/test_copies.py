"""The copies of a key on real hosts: how soon they are there, what they survive, and how they come back.

Each test names its promise, and counts: what was acknowledged, and what of it is lost. Durations are real seconds.
Source: reliability.md B (P1, P3, P4, P16).
"""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import anna
from anna.config import DEAD_AFTER_US
from tests.anna.local.processes import eventually
from tests.lab.hosts import Host, Lab
from tests.lab.nodes import Node, are_whole, nodes
from tests.lab.setfull import Clients, judge, read_all

SEED = 16
"""Of what is crashed, wiped and damaged."""

PAGE_BYTES = 4096


def go_on(seconds: float) -> None:
    """Let the load go on for a while. Real processes have only the real clock."""
    time.sleep(seconds)


def data_of(hosts: Sequence[Host], place: Path) -> dict[str, tuple[str, str]]:
    """Return for each host the option that lets its node keep data below `place`."""
    return {host.name: ("--data", str(place / f"data-{host.name}")) for host in hosts}


# -- how soon


def test_a_write_is_soon_at_the_other_owner_on_another_host(three_hosts: Lab) -> None:
    """P4: two epochs, 20 ms, on machines that have the time; here the half of all within five times as long."""
    h1, h2, clients = three_hosts["h1"], three_hosts["h2"], three_hosts["clients"]
    taken = []
    with nodes([h1, h2], "--factor", "2") as made:
        eventually(lambda: are_whole(made, clients), "both serve")
        with made[0].replica(at=clients) as writer, made[1].replica(at=clients) as reader:
            for number in range(200):
                writer.put("k", number, ack="memory")
                begun = time.monotonic()
                while reader.get("k", -1) != number:
                    assert time.monotonic() - begun < 5, f"write {number} is not at the other owner"
                taken.append(time.monotonic() - begun)
            assert (len(writer.view.nodes), len(reader.view.nodes)) == (1, 1), "one was sent on to the other"
    print(f"seen elsewhere: half within {statistics.median(taken):.4f} s, all within {max(taken):.4f} s")
    assert statistics.median(taken) < 0.1


# -- what is survived


def test_twenty_crashes_two_at_a_time_lose_nothing_that_three_hosts_acknowledged(five_hosts: Lab, place: Path) -> None:
    """P1, D12: any two of the three may go, with their memory, and every third time one with its disk, too.

    The next two are crashed when the cluster says that it is whole again. Prints its seed.
    """
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    *hosts, clients = five_hosts.hosts.values()
    with nodes(hosts, "--factor", "3", of_host=data_of(hosts, place)) as made:
        eventually(lambda: are_whole(made, clients), "all five serve")
        addresses = [node.address for node in made]
        load = Clients(clients.start, addresses, keys=8, ack=3, timeout=2.0, rate=200, reads=0)
        for turn in range(10):
            doomed = chance.sample(made, 2)
            for node in doomed:
                node.host.freeze()
            for node in doomed:
                node.host.crash()
            wiped = [node for node in doomed if node is not made[0]][:1] if turn % 3 == 2 else []
            for node in wiped:
                shutil.rmtree(place / f"data-{node.host.name}")
            for node in doomed:
                node.start()
            eventually(lambda: are_whole(made, clients), f"whole after crash {2 * turn + 2}")
            go_on(0.2)
        history = load.stop()
        with clients.entered():
            verdict = judge(history, read_all(addresses, 8))
    print(f"{verdict.attempted} tried, {verdict.acknowledged} acknowledged, {len(verdict.lost)} lost")
    assert (verdict.lost, verdict.made_up) == ((), ())
    assert verdict.acknowledged > 200


# -- how they come back


def test_the_copies_of_a_dead_host_are_made_up_for_in_time_and_then_the_next_may_die(three_hosts: Lab) -> None:
    """P3, D15: within 10 s, and 1 s for each 20 MB, after a host is called dead; 50,000 keys of 100 bytes."""
    h1, h2, h3, clients = three_hosts.hosts.values()
    values = {f"k{number}": f"{number:0100}" for number in range(50_000)}
    keys = list(values)
    with nodes([h1, h2, h3], "--factor", "2") as made:
        with made[0].client(at=clients, timeout=30) as kvs:
            eventually(lambda: are_whole(made, clients), "all three serve")
            for begin in range(0, len(keys), 5000):
                kvs.mput({key: values[key] for key in keys[begin : begin + 5000]}, ack=2)
        h3.crash()
        begun = time.monotonic()
        eventually(lambda: are_whole(made[:2], clients), "the two that are left are whole")
        seconds = time.monotonic() - begun
        size = sum(map(len, keys)) + sum(map(len, values.values()))
        print(f"{size / 1e6:.1f} MB have two copies again after {seconds:.2f} s")
        assert seconds < DEAD_AFTER_US / 1e6 + 10 + size / 20e6
        for node in made[:2]:
            with node.replica(at=clients) as kvs:
                assert [worker["keys"] for worker in kvs.status()] == [len(keys)]
        h2.crash()
        with made[0].client(at=clients, timeout=30) as kvs:
            assert [kvs.mget(keys[begin : begin + 5000]) for begin in range(0, len(keys), 5000)] == [
                [values[key] for key in keys[begin : begin + 5000]] for begin in range(0, len(keys), 5000)
            ]


def flip_bits(data: Path, share: float, chance: random.Random) -> int:
    """Flip one bit in this share of the pages that a node has written below `data`; return in how many."""
    flipped = 0
    for path in sorted(file for file in data.glob("seat-*/**/*") if file.is_file() and "ballast" not in file.name):
        content = bytearray(path.read_bytes())
        written = [at for at in range(0, len(content), PAGE_BYTES) if any(content[at : at + PAGE_BYTES])]
        for page in written:
            if chance.random() < share:
                content[chance.randrange(page, min(page + PAGE_BYTES, len(content)))] ^= 1 << chance.randrange(8)
                flipped += 1
        path.write_bytes(content)
    return flipped


@pytest.mark.parametrize("share", [0.1, 1.0], ids=["a tenth of the pages", "every page"])
def test_a_node_whose_disk_is_damaged_is_filled_up_by_the_others_and_never_serves_it(
    three_hosts: Lab, place: Path, share: float
) -> None:
    """P16, D16: the start says what is damaged; each read there is refused, sent on, or right. Prints its seed."""
    print(f"seed {SEED}")
    hosts, clients = [three_hosts["h1"], three_hosts["h2"]], three_hosts["clients"]
    values = {f"k{number}": f"{number:0200}" for number in range(3000)}
    with nodes(hosts, "--factor", "2", of_host=data_of(hosts, place)) as made:
        eventually(lambda: are_whole(made, clients), "both serve")
        with made[1].replica(at=clients, timeout=10) as kvs:
            for key in range(20):
                kvs.mput({f"k{n}": values[f"k{n}"] for n in range(key * 150, key * 150 + 150)}, ack="disk")
        eventually(lambda: held_by(made[0], clients) == 3000, "both have all keys")
        hosts[1].crash()
        assert flip_bits(place / "data-h2", share, random.Random(SEED)) > 10
        made[1].start()
        wrong, answered = [], 0
        while not are_whole(made, clients):
            answered += read_some(made[1], clients, values, wrong)
        answered += read_some(made[1], clients, values, wrong, count=3000)
        assert wrong == []
        assert answered >= 3000
        assert "damage" in made[1].log() or "put aside" in made[1].log()
        hosts[0].crash()
        with made[1].client(at=clients, timeout=20) as kvs:
            assert kvs.mget(list(values)) == list(values.values()), "it had only passed on what the other has"


def held_by(node: Node, clients: Host) -> int:
    """Return how many keys this node has."""
    with node.replica(at=clients) as kvs:
        return sum(worker["keys"] for worker in kvs.status())


def read_some(node: Node, clients: Host, values: dict[str, str], wrong: list[str], count: int = 300) -> int:
    """Ask one node alone for some keys; note each that is not right or missing, and return how many were answered."""
    keys = list(values)[:count] if count == len(values) else random.Random(SEED).sample(list(values), count)
    try:
        with node.replica(at=clients, timeout=2.0) as kvs:
            found = kvs.mget(keys)
    except anna.UnavailableError:
        return 0
    wrong += [key for key, value in zip(keys, found, strict=True) if value != values[key]]
    return len(found)
