"""`cb down`: what was started in one shell is stopped from another, and not before its calls have ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudburst import local
from cloudburst.client import Client
from cloudburst.membership import Membership
from cloudburst.processes import wait_for_end
from tests.anna.local.processes import eventually
from tests.cloudburst import samples
from tests.cloudburst.conftest import WAIT_S, Post, release

Begin = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def environment(directory: Path) -> dict[str, str]:
    """Nobody else's clusters and nodes are seen there."""
    return {
        **os.environ, "XDG_RUNTIME_DIR": str(directory), "CLOUDBURST_DIR": str(directory / "node"),
        "ANNA_DIR": str(directory / "store"), "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip


@pytest.fixture
def begin(environment: dict[str, str]) -> Iterator[Begin]:
    """Starts `cb` in the background."""
    made: list[subprocess.Popen[str]] = []

    def started(*words: str) -> subprocess.Popen[str]:
        made.append(
            subprocess.Popen(
                [sys.executable, "-m", "cloudburst", *words], env=environment, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )
        )
        return made[-1]

    yield started
    for one in made:
        one.kill()
        one.communicate()


def cb(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloudburst", *words], env=environment, capture_output=True, text=True, timeout=60
    )


def up(begin: Begin) -> tuple[subprocess.Popen[str], list[Path]]:
    """Start two nodes; return the command and their directories."""
    command = begin("up", "--hosts", "2", "--executors", "1")
    assert command.stdout is not None
    found = [Path(command.stdout.readline().split("unix:")[1].strip()) for _ in range(2)]
    while "cb down" not in command.stdout.readline():
        pass
    return command, found


def client_at(directory: Path) -> Client:
    return Client(lambda: Membership(local.ensure(directory)))


def test_cluster_is_stopped_from_another_shell(begin: Begin, environment: dict[str, str], directory: Path) -> None:
    command, nodes = up(begin)
    status = cb(environment, "status")
    assert status.returncode == 1
    assert f"no node runs in {directory}/node; `cb up` runs others: --dir {nodes[0]}" in status.stderr
    down = cb(environment, "down")
    assert (down.stdout, down.returncode) == (f"{nodes[0].parent} (pid {command.pid}) has ended\n", 0)
    assert command.wait(WAIT_S) == 0
    assert list(directory.iterdir()) == []
    again = cb(environment, "down")
    assert (again.stdout, again.returncode) == (f"nothing runs in {directory}/node, and no `cb up`\n", 0)


def test_cluster_that_others_use_is_stopped_once_their_calls_have_ended(
    begin: Begin, environment: dict[str, str], directory: Path, post: Post
) -> None:
    """A program that was connected to one of its nodes had kept that."""
    command, nodes = up(begin)
    with client_at(nodes[1]) as client:
        client.register(samples.hold_until_told)
        future = client.spawn("hold_until_told", post.address, own := str(directory / "own"))
        post.wait()
        down = begin("down", "--json")
        eventually(lambda: not client._joined().page.ready(), "they take no more calls")
        assert down.poll() is None
        assert command.poll() is None
        release(own, "go on")
        assert future.exception(timeout=WAIT_S) is None
        said, _ = down.communicate(timeout=WAIT_S)
        assert json.loads(said) == [{"pid": command.pid, "directory": str(nodes[0].parent), "ended": True}]


def test_second_interrupt_ends_a_cluster_at_once(begin: Begin, directory: Path, post: Post) -> None:
    command, nodes = up(begin)
    with client_at(nodes[0]) as client:
        client.register(samples.hold)
        future = client.options(retries=0).spawn("hold", post.address)
        post.wait()
        pids = [client.status()["pid"], *(node["pid"] for node in client.status()["nodes"])]
        command.send_signal(signal.SIGINT)
        eventually(lambda: not client._joined().page.ready(), "they take no more calls")
        assert not future.done()
        command.send_signal(signal.SIGINT)
        assert command.wait(WAIT_S) == 130
        for pid in pids:
            assert wait_for_end(pid, "a node", WAIT_S)
        assert future.exception(timeout=WAIT_S) is not None


def test_node_in_the_foreground_is_stopped_and_a_programs_is_left_alone(
    begin: Begin, environment: dict[str, str], directory: Path
) -> None:
    node = begin("node", "--executors", "1", "--workers", "1")
    eventually(lambda: (directory / "node" / "lease.sock").exists(), "it runs")
    down = cb(environment, "down")
    assert (down.stdout, down.stderr) == (f"{directory}/node (pid {node.pid}) has ended\n", "")
    assert node.wait(WAIT_S) == 0
    with client_at(directory / "node") as client:
        refused = cb(environment, "down")
        assert refused.returncode == 2
        assert f"(pid {client.status()['pid']}) is of a program, and ends with its last user" in refused.stderr


def test_which_of_several_is_asked_for(begin: Begin, environment: dict[str, str]) -> None:
    (one, nodes), (other, others) = up(begin), up(begin)
    several = cb(environment, "down")
    assert several.returncode == 2
    assert "several run here, choose one: --dir" in several.stderr
    assert cb(environment, "down", "--dir", str(nodes[0].parent)).returncode == 0
    assert one.wait(WAIT_S) == 0
    assert other.poll() is None
    assert cb(environment, "down").stdout == f"{others[0].parent} (pid {other.pid}) has ended\n"


def test_what_a_killed_command_has_left_counts_for_nothing(
    begin: Begin, environment: dict[str, str], directory: Path
) -> None:
    """Its directory had stayed, empty."""
    command, nodes = up(begin)
    with client_at(nodes[0]) as client:
        pids = [client.status()["pid"], *(node["pid"] for node in client.status()["nodes"])]
    command.kill()
    for pid in pids:
        assert wait_for_end(pid, "a node", WAIT_S)
    eventually(lambda: list(directory.iterdir()) == [], "its directory is gone")
    assert cb(environment, "down").stdout.startswith("nothing runs in")
