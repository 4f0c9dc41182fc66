"""A node's life: it starts with its first user, ends with its last, and leaves nothing behind, whoever is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import cloudburst as cb
from cloudburst import local
from cloudburst.client import Client
from cloudburst.membership import Membership
from tests.anna.local.processes import eventually
from tests.cloudburst import samples
from tests.cloudburst.conftest import Post, release, wait_until_gone


@pytest.fixture
def own(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Directories for a node and a store that nobody else uses."""
    monkeypatch.setenv("CLOUDBURST_DIR", str(directory / "node"))
    monkeypatch.setenv("ANNA_DIR", str(directory / "store"))
    yield directory
    for _ in processes(directory):
        pytest.fail(f"left behind: {processes(directory)}")


def joined(executors: int = 2, slots: int = 16) -> Client:
    return Client(lambda: Membership(local.ensure(executors=executors, slots=slots)))


def processes(directory: Path) -> list[int]:
    """Every process that was started for a node or a store in this directory: its command line says so."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(directory).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def all_gone(directory: Path, but: tuple[int, ...] = ()) -> None:
    """Wait until no process of this directory is left, those included that start meanwhile."""
    while left := [pid for pid in processes(directory) if pid not in but]:
        for pid in left:
            wait_until_gone(pid)


def test_node_ends_with_its_last_user_and_leaves_nothing(own: Path) -> None:
    first, second = joined(), joined()
    first.register(samples.square)
    assert second.call("square", 3) == 9
    assert len(processes(own)) >= 6, "node, zygote, two executors, cache, store"
    first.close()
    assert second.call("square", 4) == 16
    second.close()
    all_gone(own)
    assert list(own.iterdir()) == []


def test_what_a_closed_client_was_about_to_say_opens_nothing(own: Path) -> None:
    """A thread of it that told the node what it had let go opened a socket anew, and nobody closed that."""
    membership, other = (Membership(local.ensure(executors=1)) for _ in range(2))
    membership.close()
    tell = partial(membership._tell_node, "drop", {"node": 1, "name": "nothing"})
    for ask in (tell, partial(membership.ask, "status", {}), membership.spawner, membership.store):
        with pytest.raises(cb.NodeLost, match="this client is closed"):
            ask()
    assert other.ask("status", {})["pid"]
    other.close()
    all_gone(own)


def test_clients_that_start_at_once_share_one_node(own: Path) -> None:
    code = (
        "import sys, cloudburst as cb; print(cb.connect().status()['pid'], flush=True); sys.stdin.read()"
    )
    programs = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)
    ]
    said = []
    for program in programs:
        assert program.stdout is not None
        said.append(int(program.stdout.readline()))
    assert len(set(said)) == 1
    for program in programs:
        program.communicate()
    all_gone(own)
    assert list(own.iterdir()) == []


def test_killed_client_takes_its_calls_and_the_node_with_it(own: Path, post: Post) -> None:
    code = (
        "import sys, cloudburst as cb; from tests.cloudburst import samples\n"
        "cb.register(samples.hold); cb.spawn('hold', sys.argv[1]).result()"
    )
    program = subprocess.Popen([sys.executable, "-c", code, post.address])
    post.wait()
    program.kill()
    program.wait()
    assert post.wait() == ["stopped", "Interrupted"]
    all_gone(own)
    assert list(own.iterdir()) == [own / "post.sock"]


def test_killed_client_frees_its_executors_for_others(own: Path, post: Post) -> None:
    client = joined(1)
    client.register(samples.hold)
    client.register(samples.square)
    code = "import sys, cloudburst as cb; cb.spawn('hold', sys.argv[1]).result()"
    program = subprocess.Popen([sys.executable, "-c", code, post.address])
    post.wait()
    waiting = client.spawn("square", 3)
    program.kill()
    program.wait()
    assert waiting.result(timeout=20) == 9
    eventually(lambda: client.status()["clients"] == [os.getpid()], "the killed client is gone")
    client.close()
    all_gone(own)


def test_killed_node_takes_everything_with_it_and_callers_are_told(own: Path, post: Post) -> None:
    client = joined()
    client.register(samples.hold)
    client.register(samples.square)
    future = client.spawn("hold", post.address)
    post.wait()
    os.kill(client.status()["pid"], signal.SIGKILL)
    error = future.exception(timeout=20)
    assert isinstance(error, (cb.NodeLost, cb.ExecutorLost))
    assert not error.definite
    all_gone(own)
    with pytest.raises(cb.NodeLost, match="has ended"):
        client.call("square", 3)
    with pytest.raises(cb.NodeLost, match="has ended"):
        client.status()
    client.close()
    assert list(own.iterdir()) == [own / "post.sock"]
    with joined() as again:
        again.register(samples.square)
        assert again.call("square", 3) == 9
    all_gone(own)


def test_node_told_to_stop_lets_the_call_end_that_runs_there(own: Path, post: Post) -> None:
    """It was killed with the node, and its caller told that the node is lost."""
    client = joined(1)
    client.register(samples.hold_until_told)
    own_address = str(own / "own")
    future, waiting = [client.spawn("hold_until_told", post.address, f"{own_address}{n}") for n in range(2)]
    post.wait()
    node = client.status()["pid"]
    os.kill(node, signal.SIGTERM)
    eventually(lambda: not client._joined().page.ready(), "it takes no more calls")
    assert not future.done()
    release(f"{own_address}0", "go on")
    assert future.exception(timeout=20) is None
    assert isinstance(waiting.exception(timeout=20), cb.NodeLost), "there is no other node"
    assert waiting.attempts == 0, "it was handed back unbegun"
    client.close()
    all_gone(own)


def test_node_told_to_stop_leaves_nothing(own: Path) -> None:
    client = joined()
    client.register(samples.square)
    assert client.call("square", 3) == 9
    os.kill(client.status()["pid"], signal.SIGTERM)
    all_gone(own)
    client.close()
    assert list(own.iterdir()) == []


def test_killed_zygote_ends_the_node(own: Path) -> None:
    client = joined()
    node = client.status()["pid"]
    [zygote] = Path(f"/proc/{node}/task/{node}/children").read_text().split()
    os.kill(int(zygote), signal.SIGKILL)
    all_gone(own)
    client.close()
    assert list(own.iterdir()) == []


def test_killed_cache_comes_back_and_nobody_is_refused(own: Path) -> None:
    client = joined()
    client.register(samples.increment_key)
    client.put("n", 1)
    assert client.call("increment_key", "n") == 2
    executors = {row["pid"] for row in client.status()["executors"]}
    node = client.status()["pid"]
    [zygote] = Path(f"/proc/{node}/task/{node}/children").read_text().split()
    forked = {int(pid) for pid in Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()}
    [cache] = forked - executors
    os.kill(cache, signal.SIGKILL)
    wait_until_gone(cache)
    assert client.get("n") == 2
    assert client.call("increment_key", "n") == 3
    client.close()
    all_gone(own)


def test_sessions_that_begin_while_a_cache_comes_back_wait_for_it(own: Path) -> None:
    """The first answer of the new cache, which had no owner yet, was raised as it was."""
    client = joined()
    for turn in range(4):
        with client.session("causal") as session:
            session.put("turn", turn)
        eventually(lambda: client.status()["cache_pid"], "a cache runs")
        cache = client.status()["cache_pid"]
        os.kill(cache, signal.SIGKILL)
        with client.session("causal") as session:
            assert session.get("turn") == turn
    client.close()
    all_gone(own)


def test_address_of_a_directory_joins_and_never_starts(own: Path) -> None:
    with pytest.raises(cb.NodeLost, match="no node runs in"):
        cb.connect(f"unix:{own}/node")
    with pytest.raises(cb.RequestError, match="is no address of a node"):
        cb.connect("http://somewhere:1")
    first = joined()
    second = Client(lambda: Membership(local.join(own / "node")))
    assert second.status()["pid"] == first.status()["pid"]
    first.close()
    second.close()
    all_gone(own)


def test_directory_that_others_can_reach_is_refused(own: Path) -> None:
    (own / "node").mkdir(mode=0o755)
    with pytest.raises(cb.NodeLost, match="0755, others could reach it"):
        joined()


def test_node_that_cannot_start_says_why(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_PROGRAM", "raise SystemExit('no such luck')")
    with pytest.raises(cb.NodeLost, match="did not start: it ended without a word\nno such luck"):
        joined()
    assert list(own.iterdir()) == []


def test_calls_nested_deeper_than_there_are_slots_end_with_an_error(own: Path) -> None:
    """Where every executor waits for another there is no more to wait for: not a deadlock but `Overloaded`."""
    client = joined(executors=1, slots=4)
    client.register(samples.descend)
    assert client.call("descend", 3) == 3
    with pytest.raises(cb.FunctionError, match="4 wait for nested calls; executors_max is 4") as caught:
        client.options(timeout=20).call("descend", 4)
    assert "Overloaded" in caught.value.remote_traceback
    assert client.call("descend", 3) == 3
    client.close()
    all_gone(own)


def test_idle_node_sleeps(own: Path) -> None:
    """Between two readings with nothing to do, no process of the node is run: its context switches stand still."""
    client = joined()
    client.register(samples.square)
    assert client.call("square", 3) == 9
    node = client.status()["pid"]
    pids = [node, *[int(pid) for pid in Path(f"/proc/{node}/task/{node}/children").read_text().split()]]
    pids += [row["pid"] for row in client.status()["executors"]]
    client.status()

    def switches() -> list[int]:
        counts = []
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                lines = (task / "status").read_text().splitlines()
                counts.append(sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line))
        return counts

    before = switches()
    quiet = socket.socketpair()
    quiet[0].settimeout(1.0)
    with pytest.raises(TimeoutError):
        quiet[0].recv(1)
    assert sum(switches()) - sum(before) < 20
    for end in quiet:
        end.close()
    client.close()
    all_gone(own)


def test_executors_are_confined_and_begin_with_next_to_nothing_open(own: Path) -> None:
    with joined() as client:
        client.register(samples.limits)
        found = client.call("limits")
    all_gone(own)
    assert found["core"] == (0, 0)
    assert found["files"] <= 4096
    assert found["session"]
    assert len(found["open"]) < 20
