"""What encryption costs those who call functions on another host: the same node and client, plain and under keys.

The one rule: node and client are told by CLOUDBURST_HOST that they share no files, so all goes by TCP as between two
machines, of which this is both; each row's two are measured in turns.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from anna.keys import Keys

START_S: Final = 30.0
LARGE_BYTES: Final = 16 * 1024 * 1024
HOST: Final = "CLOUDBURST_HOST"


@contextmanager
def node(directory: Path, keys: Path | None) -> Iterator[tuple[str, str]]:
    """Run a node that others can reach; give its address, and the token that it takes where there are no keys."""
    command = [sys.executable, "-m", "cloudburst", "node", "--dir", str(directory), "--executors", "1"]
    command += ["--workers", "1", "--listen", "tcp://127.0.0.1:0", *(() if keys is None else ("--keys", str(keys)))]
    environment = {name: value for name, value in os.environ.items() if name != "ANNA_KEYS"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment | {HOST: directory.name}, text=True)
    try:
        address = _address_said_by(process)
        yield address, "" if keys is not None else (directory / "secret").read_text().strip()
    finally:
        process.terminate()
        process.communicate(timeout=START_S)


def _address_said_by(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said, end = "", time.monotonic() + START_S
    while (found := re.search(r"--join (tcp://[\d.:]+) --", said)) is None:
        if not select.select([process.stderr], [], [], max(0.0, end - time.monotonic()))[0]:
            raise RuntimeError(f"the node did not start: {said}")
        data = os.read(process.stderr.fileno(), 4096).decode()
        if not data:
            raise RuntimeError(f"the node has ended: {said}")
        said += data
    return found.group(1)


@contextmanager
def client(directory: Path, keys: Path | None) -> Iterator[Any]:
    """A client of a node of its own, on another host."""
    from cloudburst.client import Client
    from cloudburst.gateways import enter
    from cloudburst.membership import Membership

    with node(directory, keys) as (address, token):
        shown = None if keys is None else Keys(keys)
        with Client(lambda: Membership(enter(address, token, 0, shown))) as made:
            made.register(_same, name="same")
            made.register(_size, name="size")
            for _ in range(100):
                made.call("same", 1)
            yield made


def _same(given: Any) -> Any:
    return given


def _size(given: Any) -> int:
    return int(given[::4096].sum()) + int(given.size)


def calls(asked: Any) -> dict[str, Callable[[], object]]:
    """Return what is measured, by name, of one client."""
    large = np.zeros(LARGE_BYTES, np.uint8)
    return {
        "call from another host": partial(asked.call, "same", 1),
        "call from another host, 16 MiB": partial(asked.call, "size", large),
    }
