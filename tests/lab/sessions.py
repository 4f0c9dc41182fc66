"""Sessions on a node of functions, as a program: the node, and clients that do causal transactions on it.

The one rule: what is judged is what these clients write down (`cb --record`'s file, one for each host), and the judge
sees all files together. A transaction is one call, a graph whose branches run on any node, or a `with` block. At the
end each client reads everything once more. `python -m tests.lab.sessions`; the test puts it on hosts and cuts them off.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import anna
import cloudburst as cb
from cloudburst import local
from cloudburst.client import Client
from cloudburst.membership import Membership
from tests.cloudburst.causal_load import read_all, register, transact
from tests.lab.programs import ROOT, Program, Start

READY: Final = "transactions go on"
PORT: Final = 6480
"""Where each host's node listens for the others; every host has its own network."""
CLIENTS: Final = 2
TIMEOUT_S: Final = 8.0
LAST_TRIES: Final = 3
FAILED: Final = (cb.CloudburstError, anna.AnnaError)
NODE_S: Final = 20.0
"""How long a node may take to run, and to end."""


class Load:
    """Clients of one node, each with transactions one after the other, until `over`."""

    def __init__(self, directory: Path, host: str, history: str) -> None:
        def join() -> Membership:
            lease = local.join(directory)
            assert lease is not None, f"no node runs in {directory}"
            return Membership(lease)

        self.over = threading.Event()
        self.took: list[tuple[float, float, str]] = []
        """Of each transaction: when it began (on this machine's monotonic clock), its seconds, "" or what it raised."""
        self.faults: list[str] = []
        self.clients = [Client(join, f"{history}.{number}") for number in range(CLIENTS)]
        self.threads = [
            threading.Thread(target=self._run, args=(f"{host}-{number}", client), daemon=True)
            for number, client in enumerate(self.clients)
        ]

    def _run(self, name: str, client: Client) -> None:
        try:
            count = 0
            while not self.over.is_set():
                count += 1
                begun, fault = time.monotonic(), ""
                try:
                    transact(client, f"{name}-{count}", count + len(name), TIMEOUT_S)
                except FAILED as error:  # it says that it has failed, or that nobody knows
                    fault = f"{type(error).__name__}: {error}"
                self.took.append((begun, time.monotonic() - begun, fault))
            for tries in range(LAST_TRIES):  # what was cut off may be on its way back still
                try:
                    read_all(client, TIMEOUT_S)
                    break
                except FAILED:
                    if tries == LAST_TRIES - 1:
                        raise
        except BaseException as error:
            self.faults.append(f"{name}: {type(error).__name__}: {error}")

    def begin(self) -> None:
        """Let the transactions begin."""
        for thread in self.threads:
            thread.start()

    def stop(self) -> dict[str, Any]:
        """End them; return what became of each."""
        self.over.set()
        for thread in self.threads:
            thread.join(6 * TIMEOUT_S)
        hung = sum(thread.is_alive() for thread in self.threads)
        for client in self.clients:
            client.close()
        return {"took": self.took, "faults": self.faults, "hung": hung}


class Node:
    """`cb node` in the foreground, in this program's host."""

    def __init__(self, directory: Path, host: str, own: str, join: str | None, secret: str) -> None:
        words = ["--dir", str(directory), "--executors", "1", "--workers", "1", "--factor", "2", "--secret", secret]
        words += ["--listen", own, "--insecure", *(("--join", join) if join else ())]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cloudburst", "node", *words], stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "CLOUDBURST_HOST": host, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.said = ""
        self._runs = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        if not self._runs.wait(NODE_S) or self.process.poll() is not None:
            self.process.kill()
            raise RuntimeError(f"the node on {host} did not start: {self.said}")

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if re.search("runs in", line):
                self._runs.set()
        self._runs.set()

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(NODE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Hosted(Program):
    """The program on a host; a test's side."""

    def __init__(self, start: Start, host: str, address: str, join: str | None, **options: Any) -> None:
        own = f"tcp://{address}:{PORT}"
        others = [] if join is None else [f"tcp://{join}:{PORT}"]
        super().__init__(start, "tests.lab.sessions", READY, [own, *others], {"host": host, **options})


def main() -> None:
    """Run the node and its clients until the end of standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at", action="append", required=True, help="where the node listens; then, whom it joins")
    for name in ("host", "dir", "secret", "history"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    directory = Path(options.dir) / options.host  # /dev/shm is one for all hosts of a lab, and named by this
    own, *others = options.at
    node = Node(directory, options.host, own, others[0] if others else None, options.secret)
    try:
        load = Load(directory, options.host, options.history)
        if not others:
            register(load.clients[0])
        load.begin()
        print(READY, flush=True)
        sys.stdin.read()
        print(json.dumps({**load.stop(), "said": node.said}))
    finally:
        node.stop()


if __name__ == "__main__":
    main()
