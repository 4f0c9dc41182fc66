"""Two versions of the package on one machine: they run beside each other, or it is said what runs and what to do."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import pytest

import cloudburst as cb
from anna.rundir import LEASE_SOCKET, RunDirectory
from cloudburst import local
from cloudburst.version import RELEASE, layout
from tests.cloudburst.conftest import wait_until_gone

OTHER = "import cloudburst.version; cloudburst.version.layout = lambda: '00000000'"
PROGRAM = """
import sys, cloudburst as cb
client = cb.connect(executors=1)
print(client.status()["pid"], client.status()["directory"], flush=True)
sys.stdin.read()
"""


@contextmanager
def node_with_another_page(directory: Path, greeting: dict[str, object]) -> Iterator[None]:
    """What a node does to its clients whose page is laid out otherwise, as long as this block lasts."""
    opened = RunDirectory.make(directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(opened.file(LEASE_SOCKET))
        listener.listen()

        def welcome() -> None:
            while True:
                try:
                    lease, _ = listener.accept()
                except OSError:
                    return
                with lease:
                    lease.send(msgpack.packb(greeting))
                    if lease.recv(4096):
                        page = os.memfd_create("page")
                        os.ftruncate(page, 162_304)
                        socket.send_fds(lease, [msgpack.packb({})], [page])
                        os.close(page)

        served = threading.Thread(target=welcome)
        served.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            served.join()
    opened.sweep()
    opened.close()


@pytest.mark.parametrize(
    ("greeting", "what"),
    [({}, "another version"), ({"layout": "00000000", "release": "0.0.7"}, "version 0.0.7")],
)
def test_node_with_another_page_is_named_with_what_to_do(
    directory: Path, monkeypatch: pytest.MonkeyPatch, greeting: dict[str, object], what: str
) -> None:
    """It was `ValueError: 162304 bytes that are no node page`."""
    monkeypatch.setattr(local, "STALE_S", 0.0)
    place = directory / "node"
    with node_with_another_page(place, {"protocol": local.LEASE_PROTOCOL, "pid": 4711, **greeting}):
        words = rf"the node in {place} \(pid 4711\) runs {what} of cloudburst.*\(kill 4711\).*CLOUDBURST_DIR"
        with pytest.raises(cb.EnvironmentMismatch, match=words):
            cb.connect(f"unix:{place}")
        with pytest.raises(cb.EnvironmentMismatch, match=words):
            local.ensure(place)


def test_release_is_the_one_of_the_distribution() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == RELEASE


def test_name_of_the_embedded_nodes_directory_says_its_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUDBURST_DIR", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert local.default_directory() == Path(f"/tmp/cloudburst-{os.getuid()}-{layout()}")
    assert re.fullmatch("[0-9a-f]{8}", layout())


def test_two_versions_run_beside_each_other(directory: Path) -> None:
    """The second had been given the first one's node, and failed at its page."""
    root, runtime, other = Path(__file__).parents[2], directory / "run", directory / "other"
    for made in (runtime, other):
        made.mkdir(mode=0o700)
    (other / "sitecustomize.py").write_text(OTHER)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    environment.pop("CLOUDBURST_DIR", None)
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env={**environment, "PYTHONPATH": path}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )
        for path in (f"{other}:{root}", str(root))
    ]  # fmt: skip
    said = []
    for program in programs:
        assert program.stdout is not None
        said.append(program.stdout.readline().split())
    assert [Path(place).name for _, place in said] == ["cloudburst-00000000", f"cloudburst-{layout()}"]
    for program in programs:
        program.communicate()
    for pid, _ in said:
        wait_until_gone(int(pid))
