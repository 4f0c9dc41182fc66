"""Nodes of a store, one on each host of a lab: started, stopped, and started again with what their disks kept.

The one rule: a node is reached and known by its host's address alone, at one port, so that it has the same address in
every life. What it said on standard error is shown when it does not start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import anna
from anna.messages import NodeInfo, View
from anna.operating import status_of
from tests.lab.hosts import Host
from tests.lab.programs import ROOT

PORT: Final = 6450
"""Of the first worker; the others count up. Every host has its own network, so nobody else can have it."""

STOP_S: Final = 60.0
"""How long a node may take to stop when it is asked to, handing over its keys."""


class Node:
    """One `anna serve` on a host, with the same options in every life."""

    def __init__(
        self, host: Host, log: Path, *options: str, workers: int = 1, environment: Mapping[str, str] | None = None
    ) -> None:
        """`log` is the file for what the node says on standard error."""
        self.host = host
        self.address = f"tcp://{host.address}:{PORT}"
        self.addresses = tuple(f"tcp://{host.address}:{PORT + seat}" for seat in range(workers))
        self.process: subprocess.Popen[str] | None = None
        self._log = log
        self._environment = dict(environment or {})
        self._command = (
            sys.executable,
            "-m",
            "anna.cli",
            "serve",
            "--json",
            "--insecure",
            "--dir",
            str(host.directory / host.name),
        )
        self._command += ("--workers", str(workers), "--listen", self.address, *options)

    def start(self) -> dict[str, Any]:
        """Start the node and return what it says when it serves."""
        with self._log.open("ab") as log:
            self.process = self.host.start(
                *self._command,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | self._environment,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the node on {self.host.name} did not start:\n{self.log()}"
        started: dict[str, Any] = json.loads(line)
        return started

    def stop(self) -> None:
        """Ask the node to stop, as an operator would, and wait until it has."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(STOP_S) == 0, self.log()

    def log(self) -> str:
        """Return what the node has said on standard error in all its lives."""
        return self._log.read_text()

    @contextlib.contextmanager
    def client(self, *, at: Host | None = None, **options: Any) -> Iterator[anna.Client]:
        """Give a client of this node that is at another host, or at this one. The calling thread is there meanwhile."""
        with (at or self.host).entered(), anna.connect(self.address, **options) as kvs:
            yield kvs

    @contextlib.contextmanager
    def replica(self, *, at: Host, **options: Any) -> Iterator[anna.Client]:
        """Give a client that asks this node alone, whoever else owns the key; it stays so while it is not corrected."""
        with self.client(at=at, **options) as kvs:
            mine = [node for node in kvs.view.nodes if self.address in _addresses_of(node)]
            assert len(mine) == 1, f"{self.address} is in {len(mine)} nodes of {kvs.view}"
            kvs.forget_view(View(1, tuple(mine)), stays=True)
            yield kvs


def _addresses_of(node: NodeInfo) -> set[str]:
    return {address for worker in node.workers for address in worker.addresses}


def status(host: Host, address: str, timeout: float = 2.0) -> list[dict[str, Any]]:
    """Return what every worker that the node at `address` knows of says of itself. Raises AnnaError."""
    with host.entered(), anna.connect(address, timeout=timeout) as kvs:
        return kvs.status()


def are_whole(made: Sequence[Node], host: Host) -> bool:
    """Whether these nodes and no others serve, know it, and have all keys that they should have; asked from `host`."""
    digests: set[int] = set()
    for node in made:
        try:
            with node.client(at=host, timeout=2.0) as kvs:
                known = status_of(kvs, 2.0)
        except anna.AnnaError:
            return False
        serving = [other for other in known["nodes"] if other["status"] not in ("dead", "left")]
        if len(serving) != len(made) or not all(other["status"] == "alive" and other["complete"] for other in serving):
            return False
        digests |= {worker["view_digest"] for worker in known["workers"] if "error" not in worker}
    return len(digests) == 1


@contextlib.contextmanager
def nodes(
    hosts: Sequence[Host],
    *options: str,
    workers: int = 1,
    join: str | None = None,
    of_host: Mapping[str, Sequence[str]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[list[Node]]:
    """Start a node on each host, joining the cluster at `join`, else the first of them; all end with their hosts.

    `options` are for each of them, `of_host` for those of one host.
    """
    with tempfile.TemporaryDirectory(prefix="anna-logs-") as path, contextlib.ExitStack() as stack:
        made: list[Node] = []
        for host in hosts:
            seed = join or (made[0].address if made else None)
            words = [*options, *(of_host or {}).get(host.name, ()), *(("--join", seed) if seed else ())]
            made.append(Node(host, Path(path) / host.name, *words, workers=workers, environment=environment))
            stack.callback(host.crash)
            made[-1].start()
        yield made
