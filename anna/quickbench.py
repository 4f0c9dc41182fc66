"""`anna bench`: how many operations a running cluster answers, from this machine, in a few seconds.

The one rule: it is a closed loop of real clients (forked processes, one each), and it says what it measured. It names
no peer; `bench/` does, with both sides in one run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from anna.client import Client
from anna.errors import UnavailableError

KEYS: Final = 10_000
SAMPLES_MAX: Final = 200_000
"""Most latencies that one client keeps of one operation; beyond it they are overwritten from the first."""

PREFIX: Final = "anna-bench:"


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be done: `depth` operations in one flight, on values of `value_bytes`, for `seconds` each kind."""

    seconds: float = 1.0
    clients: int = 1
    value_bytes: int = 256
    depth: int = 1


def measure(load: Load, connect: Callable[[], Client]) -> list[dict[str, Any]]:
    """Put, then get, and return a row for each: operation, ops_s, p50_us, p99_us. The keys are deleted afterwards.

    `connect` is called in each client's process. With a depth above 1 the latency is a whole flight's.
    """
    rows = []
    try:
        for operation in ("put", "get"):
            rows.append(_row(operation, _run_clients(operation, load, connect)))
    finally:
        with contextlib.suppress(UnavailableError), connect() as client:
            _delete_keys(client)
    return rows


def _row(operation: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    latencies = sorted(ns for result in results for ns in result["latencies_ns"])
    return {
        "operation": operation,
        "ops_s": round(sum(result["operations"] / result["seconds"] for result in results)),
        "p50_us": latencies[len(latencies) // 2] / 1000,
        "p99_us": latencies[len(latencies) * 99 // 100] / 1000,
    }


def _run_clients(operation: str, load: Load, connect: Callable[[], Client]) -> list[dict[str, Any]]:
    """Run every client in a process of its own; return what each measured. Raises UnavailableError when one fails."""
    children = []
    for number in range(load.clients):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _run_child(operation, load, connect, number, write)
        os.close(write)
        children.append((pid, read))
    said = []
    for pid, read in children:
        with open(read, "rb") as pipe:
            said.append(pipe.read())
        os.waitpid(pid, 0)
    results: list[dict[str, Any]] = [json.loads(text) if text else {"error": "it ended early"} for text in said]
    for result in results:
        if "error" in result:
            raise UnavailableError(f"a client of the benchmark failed: {result['error']}")
    return results


def _run_child(operation: str, load: Load, connect: Callable[[], Client], number: int, write: int) -> None:
    try:
        with connect() as client:
            result = _closed_loop(client, operation, load, random.Random(number))
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as error:  # the parent reports it
        result = {"error": f"{type(error).__name__}: {error}"}
    try:
        with open(write, "wb") as pipe:
            pipe.write(json.dumps(result).encode())
    finally:
        os._exit(0)


def _closed_loop(client: Client, operation: str, load: Load, choose: random.Random) -> dict[str, Any]:
    keys = [f"{PREFIX}{choose.randrange(KEYS)}" for _ in range(KEYS)]
    flight = _flight(client, operation, b"x" * load.value_bytes, load.depth)
    latencies = array("Q")
    now = time.perf_counter_ns
    started = now()
    deadline = started + int(load.seconds * 1e9)
    before, count = started, 0
    while before < deadline:
        flight(keys, count)
        after = now()
        if count < SAMPLES_MAX:
            latencies.append(after - before)
        else:
            latencies[count % SAMPLES_MAX] = after - before
        before = after
        count += 1
    seconds = (before - started) / 1e9
    return {"operations": count * load.depth, "seconds": seconds, "latencies_ns": latencies.tolist()}


def _flight(client: Client, operation: str, value: bytes, depth: int) -> Callable[[list[str], int], None]:
    """Return what is timed: one operation, or `depth` of them in a pipeline."""

    def put(keys: list[str], turn: int) -> None:
        client.put(keys[turn % KEYS], value)

    def get(keys: list[str], turn: int) -> None:
        client.get(keys[turn % KEYS], None)

    def pipelined(keys: list[str], turn: int) -> None:
        with client.pipeline() as flight:
            for index in range(turn * depth, (turn + 1) * depth):
                if operation == "put":
                    flight.put(keys[index % KEYS], value)
                else:
                    flight.get(keys[index % KEYS], None)

    if depth > 1:
        return pipelined
    return put if operation == "put" else get


def _delete_keys(client: Client) -> None:
    with client.pipeline() as flight:
        for number in range(KEYS):
            flight.delete(f"{PREFIX}{number}")
