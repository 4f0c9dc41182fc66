"""Hosts by SSH, as network namespaces with daemons: brought up, used, refused, and left with nothing on them."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, suppress
from functools import cache
from pathlib import Path

import pytest

from cloudburst.burst.provider import PHASES, Spec
from cloudburst.burst.remote import VERSION
from cloudburst.burst.ssh import SshHosts
from tests.anna.local.processes import eventually
from tests.cloudburst.burst.sshd import PYTHON, SshLab, ssh_lab, why_not
from tests.pythons import others

WAIT_S = 40.0


@cache
def why_no_hosts() -> str | None:
    return why_not()


@pytest.fixture(scope="module")
def three() -> Iterator[SshLab]:
    """Three hosts, and one for the client."""
    if (reason := why_no_hosts()) is not None:
        pytest.skip(f"NO SSH HOSTS HERE: {reason}")
    with ssh_lab(3) as made:
        yield made


@pytest.fixture
def lab(three: SshLab) -> Iterator[SshLab]:
    """The same, with nothing on them before, and nothing left after."""
    assert three.left() == {}
    yield three
    for pid in three.client.pids():
        with suppress(ProcessLookupError):  # it was just ending
            os.kill(pid, signal.SIGKILL)
    three.lab.heal()
    three.write_file()
    gone_from(three)


def gone_from(lab: SshLab) -> None:
    """Wait until nothing runs on any host but its daemon, and nothing is in its /tmp."""
    end = time.monotonic() + WAIT_S
    while (left := lab.left()) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == {}


def said_until(command: subprocess.Popen[str], stream: str, pattern: str, within_s: float = WAIT_S) -> str:
    """Return what a command has said on one of its streams once that has a match."""
    source = getattr(command, stream).fileno()
    said = ""
    while not re.search(pattern, said):
        assert select.select([source], [], [], within_s)[0], said
        data = os.read(source, 1 << 16).decode()
        assert data, (said, command.communicate())
        said += data
    return said


PROGRAM = """
import cloudburst as cb, json, os, sys
with cb.up(3, on="ssh:{file}", executors=1) as cluster:
    def where(number):
        import os, time
        time.sleep(0.1)
        return os.environ["CLOUDBURST_DIR"].split("-")[-1]
    cb.register(where, name="where")
    places = sorted(set(cb.map("where", range(30))))
    cb.put("k", list(range(100000)))
    cb.register(lambda: sum(cb.get("k")), name="total")
    total = cb.call("total")
    cluster.scale(2)
    fewer = sorted(set(cb.map("where", range(30))))
    print(json.dumps([places, total, fewer, cb.get("k")[-1], [sorted(one.reached) for one in cluster.machines]]))
"""


def test_program_uses_three_hosts_and_leaves_none(lab: SshLab) -> None:
    program = lab.program(PROGRAM.format(file=lab.file))
    out, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    places, total, fewer, last, reached = json.loads(out)
    assert places == ["0/node", "1/node", "2/node"]
    assert (total, fewer, last) == (sum(range(100000)), places[:2], 99999)
    assert reached == [sorted(PHASES)] * 2
    gone_from(lab)
    assert os.listdir(lab.runtime) == []


SNIFFER = """
import signal, socket, sys
words = {word: 0 for word in sys.argv[1:]}
heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
heard.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE: nothing is to be missed
heard.bind(("eth0", 0))
total = 0
print("listens", flush=True)
while not words["THE-END-OF-IT"]:
    data = heard.recv(1 << 16)
    total += len(data)
    for word in words:
        words[word] += word.encode() in data
print(total, *words.values())
"""

KEYS = """
import anna, cloudburst as cb, json, os, socket, time
from cloudburst import config
config.RUN_KEYS_S = 5.0

def shown():
    import os
    from pathlib import Path
    from anna.authority import show
    keys = show(Path(os.environ["ANNA_KEYS"]))
    return keys.identity.name, keys.identity.right.name, keys.until.timestamp()

def refusal(**keys):
    try:
        anna.connect(address, timeout=5.0, **keys).get("k")
    except anna.AnnaError as fault:
        return type(fault).__name__

with cb.up(2, on="ssh:{file}", executors=1) as cluster:
    cb.register(shown, name="shown")
    cb.put("k", 1)
    cb.register(lambda x: x, name="echo")
    marked = "MARK-OF-A-VALUE" * 3
    cb.put("marked", marked)
    echoed = cb.call("echo", marked) == cb.get("marked") == marked
    larger = marked * 800  # but not so large that it goes by shared memory, which these hosts have in common
    large = all(cb.call("echo", larger) == larger for _ in range(20))
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"THE-END-OF-IT", ("{address}", 9))
    own, right, until = cb.call("shown")
    from pathlib import Path
    from anna import authority
    authority.found(Path("{place}/others"))
    [address, *_] = cluster.client.status()["store"]
    refused = [refusal(), refusal(keys="{place}/others")]
    client = authority.show(cluster.entrance)
    while not (time.time() > until and time.time() > client.until.timestamp()):
        cb.call("shown")
        time.sleep(0.1)
    later = cb.call("shown")[2] > until
    seen = anna.connect(address, keys=str(cluster.entrance)).get("k")
    cluster.scale(3)  # a node that joins them then
    rights = [own[:5], right, client.identity.right.name]
    print(json.dumps([*rights, refused, later, seen, len(cluster.hosts), echoed, large]))
"""


def test_run_has_keys_of_its_own_which_are_renewed_while_it_goes_on(lab: SshLab) -> None:
    pipe = subprocess.PIPE
    sniffer = lab.client.start(sys.executable, "-c", SNIFFER, "MARK-OF-A-VALUE", "THE-END-OF-IT", stdout=pipe)
    said_until(sniffer, "stdout", "listens")
    program = lab.program(KEYS.format(file=lab.file, place=lab.place, address=lab.hosts[0].address))
    out, err = program.communicate(timeout=150)
    assert program.returncode == 0, err
    total, marks, ends = map(int, sniffer.communicate(timeout=60)[0].split())
    assert (total > 1_000_000, marks, ends) == (True, 0, 1), f"{total:,} bytes went over the wire"
    assert json.loads(out) == ["host-", "CODE", "CODE", ["NotAdmitted", "NotBelieved"], True, 1, 3, True, True]
    gone_from(lab)
    assert os.listdir(lab.runtime) == []


def test_up_and_down_from_a_shell(lab: SshLab) -> None:
    up = lab.up()
    use = re.search(r"use it: CLOUDBURST_DIR=(\S+)", said_until(up, "stdout", "end it"))
    assert use is not None
    entrance = lab.runtime / use.group(1)
    no_words_hold(lab, (entrance / "secret").read_text().strip())
    no_words_hold(lab, own_lines(entrance / "key.pem"))
    for host in lab.hosts:
        [keys] = lab.root(host).glob("tmp/cloudburst-run-*/**/key.pem")
        assert (keys.parent.name, keys.stat().st_mode & 0o777) == ("code", 0o600), "the node's own are in no file"
        no_words_hold(lab, own_lines(keys))
    hosts, shell, reap = (
        lab.cb("hosts", "--dir", use.group(1), "--json"),
        lab.cb("ssh", "host-1", "ip", "-4", "-o", "address", "show", "eth0"),
        lab.cb("reap", "--on", f"ssh:{lab.file}"),
    )
    assert sorted(row["executors"] for row in json.loads(hosts.communicate(timeout=60)[0])) == [0, 1, 1, 1]
    assert f"inet {lab.hosts[1].address}/" in shell.communicate(timeout=60)[0]
    assert reap.communicate(timeout=60)[0] == "nothing is left of runs that are over\n", "somebody has it"
    down = lab.cb("down")
    assert down.communicate(timeout=60)[0].endswith("has ended\n")
    assert up.wait(WAIT_S) == 0
    assert "warning" not in up.communicate()[1]
    gone_from(lab)


def own_lines(key: Path) -> str:
    """Return a line of a private key that is in no other."""
    return key.read_text().splitlines()[2]


def no_words_hold(lab: SshLab, secret: str) -> None:
    """Fail when the secret is among the words or in the environment of any process."""
    assert len(secret) == 64
    for host in [*lab.hosts, lab.client]:
        for pid in host.pids():
            for name in ("cmdline", "environ"):
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    assert secret.encode() not in file.read()


def test_client_that_is_interrupted_on_the_way_leaves_nothing(lab: SshLab) -> None:
    up = lab.up()
    said_until(up, "stderr", r"host-\d +fetch ")
    up.send_signal(signal.SIGINT)
    assert up.wait(WAIT_S) == 130
    gone_from(lab)
    assert os.listdir(lab.runtime) == []


@pytest.mark.parametrize("phase", PHASES[1:5])
def test_client_that_is_killed_in_any_phase_leaves_nothing(lab: SshLab, phase: str) -> None:
    up = lab.up()
    said_until(up, "stderr", rf"host-\d +{phase} ")
    up.kill()
    gone_from(lab)
    lab.cb("reap").communicate(timeout=60)
    eventually(lambda: os.listdir(lab.runtime) == [], "nor has the client's own host anything")


def test_nothing_is_left_on_any_host_once_down_has_returned(lab: SshLab) -> None:
    """Neither is a guard that would be slow to see that it has no more to do."""
    up = lab.up()
    said_until(up, "stdout", "end it")
    for pid in (pid for host in lab.hosts for pid in host.pids() if b"reaping.py\0guard" in words_of(pid)):
        os.kill(pid, signal.SIGSTOP)
    said = lab.cb("down").communicate(timeout=60)
    assert lab.left() == {}, said
    assert up.wait(WAIT_S) == 0


def agents(lab: SshLab) -> list[int]:
    """Return the agents, by host."""
    return [pid for host in lab.hosts for pid in host.pids() if b"burst.agent" in words_of(pid)]


def words_of(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def test_hosts_end_by_themselves_without_client_or_agent(lab: SshLab) -> None:
    """One hears nothing of the client any more; one has lost its agent; of one the agent is frozen, but its time is
    over in the end."""
    up = lab.up("--ttl", "14s")
    said_until(up, "stdout", "end it")
    _, killed, frozen = agents(lab)
    os.kill(frozen, signal.SIGSTOP)
    os.kill(killed, signal.SIGKILL)
    os.kill(up.pid, signal.SIGSTOP)
    lab.lab.unplug(lab.client)
    eventually(lambda: "h2" not in lab.left(), "the guard has ended it")
    gone_from(lab)


def test_host_with_another_key_is_refused_with_its_fingerprint_and_the_line_to_write(lab: SshLab) -> None:
    right = " ".join((lab.place / "h2" / "host.pub").read_text().split()[:2])
    lab.write_file(h2=(lab.place / "user.pub").read_text().strip(), h3="")
    up = lab.up()
    said = up.communicate(timeout=60)[1]
    assert up.returncode == 4, said
    assert "1 of 3 machines became ready" in said
    assert 'and not the one of host_key: it is another machine, or was installed anew; if you know why, write' in said
    assert f'host_key = "{right}"' in said
    assert "its key is not known: if SHA256:" in said
    gone_from(lab)


def test_host_that_cannot_be_reached_is_named_and_the_others_are_given_back(lab: SshLab) -> None:
    lab.lab.unplug(lab.hosts[2])
    up = lab.up("--ready-in", "5s")
    said = up.communicate(timeout=60)[1]
    assert up.returncode == 4, said
    assert f"host-2 (root@{lab.hosts[2].address}) got as far as 'pending' within 5 s" in said
    gone_from(lab)


def test_wrong_python_is_said_before_anything_is_sent(lab: SshLab) -> None:
    lab.file.write_text(lab.file.read_text().replace(PYTHON, "/no/python"))
    up = lab.up()
    said = up.communicate(timeout=60)[1]
    assert up.returncode == 3, said
    assert "/no/python ended there" in said
    assert "No such file" in said or "not found" in said
    assert f"Python {VERSION} is needed: install it there" in said


OTHER = """#!{python}
import sys
if sys.argv[-1:] != ["-c"] and "-c" in sys.argv:
    import sysconfig
    sysconfig.get_config_vars()["SOABI"] = "cpython-399-plan9"
    sys.version = "3.99.0 (main)"
    exec(sys.argv[sys.argv.index("-c") + 1])
"""


def test_python_of_another_version_is_named_with_the_one_that_is_needed(lab: SshLab) -> None:
    other = lab.place / "other"
    other.write_text(OTHER.format(python=PYTHON))
    other.chmod(0o755)
    lab.file.write_text(lab.file.read_text().replace(PYTHON, str(other)))
    up = lab.up()
    said = up.communicate(timeout=60)[1]
    assert up.returncode == 3, said
    assert f"{other} is Python 3.99.0 (cpython-399-plan9) there, and {VERSION} (cpython-" in said
    assert 'python = "…" in the file of hosts' in said
    gone_from(lab)


def test_real_pythons_of_other_versions_are_named_each_with_what_it_is(lab: SshLab) -> None:
    """Newer, too old to be asked, and so old that it does not know the words of the command."""
    found = {one.minor: one for one in others()}
    newest = list(found.values())[-1:]
    chosen = [*newest, *(found[minor] for minor in ("3.8", "2.7") if minor in found)]
    if not chosen:
        pytest.skip("NO OTHER PYTHON IS HERE: none in PATH, none of pyenv's")
    text = lab.file.read_text()
    for host, one in zip(lab.hosts, chosen, strict=False):
        text = text.replace(f'host = "{host.address}"', f'host = "{host.address}"\npython = "{one.path}"')
    lab.file.write_text(text)
    up = lab.up()
    said = up.communicate(timeout=60)[1]
    assert up.returncode == 3, said
    [one] = newest
    assert f"{one.path} is Python {one.version} ({one.soabi}) there, and {VERSION} (cpython-" in said
    for one in chosen[1:]:
        assert f"{one.path} ended there: " in said
    assert ("Python 3.8 is too old" in said) == ("3.8" in found)
    assert "Traceback" not in said
    gone_from(lab)


class Unforeseen(SshHosts):
    """Hosts whose connections end with what nobody has thought of."""

    def _connected(self, name: str) -> AbstractAsyncContextManager[object]:
        raise KeyError(name)


def test_machine_that_is_not_brought_up_for_whatever_reason_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "hosts.toml").write_text('[[host]]\nhost = "127.0.0.1"\n')
    hosts = Unforeseen(str(tmp_path / "hosts.toml"), tmp_path, lambda machine: None)
    [machine] = hosts.wait(hosts.create(Spec("a-run", 1), 1), WAIT_S)
    assert machine.fault == "KeyError: 'host-0'"
    hosts.destroy([machine], leaving=False)


def test_more_hosts_than_the_file_lists_are_refused(lab: SshLab) -> None:
    too_many = lab.cb("up", "--hosts", "4", "--on", f"ssh:{lab.file}")
    said = too_many.communicate(timeout=60)[1]
    assert (too_many.returncode, "4 hosts are asked for, and the file lists 3" in said) == (4, True)
