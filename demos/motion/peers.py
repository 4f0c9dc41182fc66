"""The same planners with their best path shared otherwise: what the lattice is measured against, in real time.

    one process     planners take turns in one process, and hand paths to each other
    pool            `ProcessPoolExecutor`; the path is in `multiprocessing` shared memory, under its lock
    Redis           a private `redis-server`; a Lua script compares and sets, planners ask for the cost in each look
    coordinator     a process of ours that receives each path and sends it to all the others, as published systems had

The one rule: all run `functions.search`, so what differs is `Sharing` alone. Each returns the planners' traces and how
many messages it took, counted where they are sent. Each process has a session of its own, as executors have: the kernel
shares cores out between sessions before processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import selectors
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from demos.motion.functions import SLICE_CHECKS, Trace, now_us, search

PATH_NUMBERS_MAX = 4096
"""Most numbers in a path that the pool's shared memory holds."""
HEAD = struct.Struct("<dII")
"""Before a path between processes: its cost, rows, columns."""
START_S = 0.5
"""Processes are started, and begin together after so long."""

LUA = """
local known = redis.call('HGET', KEYS[1], 'cost')
if known and tonumber(known) <= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'cost', ARGV[1], 'path', ARGV[2])
return 1
"""


def pack(cost: float, path: Any) -> bytes:
    """Return a path as bytes behind its head."""
    rows = np.ascontiguousarray(path, dtype=np.float64)
    return HEAD.pack(cost, *rows.shape) + rows.tobytes()


def unpack(data: bytes) -> tuple[float, Any]:
    """Return the (cost, path) that `pack` made these bytes of."""
    cost, rows, columns = HEAD.unpack_from(data)
    return cost, np.frombuffer(data, dtype=np.float64, offset=HEAD.size).reshape(rows, columns).copy()


class Quiet:
    """What all of these do alike: nobody is stopped before the deadline, and reports are not shown.

    By itself it is not sharing at all.
    """

    def __init__(self) -> None:
        self.known = math.inf
        self.messages = 0

    def stopped(self) -> bool:
        """Never: the deadline ends the run."""
        return False

    def newest(self) -> tuple[float, Any] | None:
        """Nothing ever comes."""
        return None

    def offer(self, cost: float, path: Any) -> None:
        """Keep it to oneself."""

    def report(self, trace: Trace) -> None:
        """Drop it."""


class Memory(Quiet):
    """Sharing by shared memory: a cost and a path under one lock."""

    def __init__(self, cost: Any, path: Any) -> None:
        super().__init__()
        self._cost, self._path = cost, path

    def newest(self) -> tuple[float, Any] | None:
        if self._cost.value >= self.known:  # an aligned double, read without the lock
            return None
        with self._cost.get_lock():
            self.known = self._cost.value
            rows, columns = int(self._path[0]), int(self._path[1])
            path = np.array(self._path[2 : 2 + rows * columns]).reshape(rows, columns)
        return self.known, path

    def offer(self, cost: float, path: Any) -> None:
        with self._cost.get_lock():
            if cost < self._cost.value:
                numbers = [float(len(path)), float(path.shape[1]), *path.ravel().tolist()]
                self._path[: len(numbers)] = numbers
                self._cost.value = cost
        self.known = min(self.known, cost)
        self.messages += 1


class RedisHash(Quiet):
    """Sharing by Redis: compare-and-set in Lua, and a question in each look."""

    def __init__(self, path: str) -> None:
        super().__init__()
        import redis

        self._client = redis.Redis(unix_socket_path=path)
        self._set = self._client.register_script(LUA)

    def newest(self) -> tuple[float, Any] | None:
        self.messages += 2
        cost: Any = self._client.hget("best", "cost")
        if cost is None or float(cost) >= self.known:
            return None
        self.messages += 2
        found: Any = self._client.hget("best", "path")
        self.known, path = unpack(found)
        return self.known, path

    def offer(self, cost: float, path: Any) -> None:
        self.messages += 2
        self._set(keys=["best"], args=[repr(cost), pack(cost, path)])
        self.known = min(self.known, cost)


class Coordinated(Quiet):
    """Sharing by a coordinator: each path goes to it, and comes from it to all the others."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(path)

    def newest(self) -> tuple[float, Any] | None:
        best = None
        while True:
            try:
                data = self._socket.recv(1 << 17, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return best
            if not data:
                return best
            found = unpack(data)
            if found[0] < self.known:
                best, self.known = found, found[0]

    def offer(self, cost: float, path: Any) -> None:
        self.messages += 1
        self._socket.sendall(pack(cost, path))
        self.known = min(self.known, cost)

    def close(self) -> None:
        """Leave the coordinator."""
        self._socket.close()


def coordinate(listener: socket.socket, sent: Any) -> None:
    """Send each path that comes to all planners but its own, until the last of them has gone.

    `sent` counts the messages and their bytes.
    """
    planners: list[socket.socket] = []
    chooser = selectors.DefaultSelector()
    chooser.register(listener, selectors.EVENT_READ)
    came = False
    while planners or not came:
        for key, _ in chooser.select(1.0):
            source: Any = key.fileobj
            if source is listener:
                planner, _ = listener.accept()
                planners.append(planner)
                chooser.register(planner, selectors.EVENT_READ)
                came = True
                continue
            try:
                data = source.recv(1 << 17)
            except ConnectionError:  # it left with something unread
                data = b""
            if not data:
                planners.remove(source)
                chooser.unregister(source)
                continue
            for other in planners:
                if other is not source:
                    with contextlib.suppress(OSError):
                        other.send(data)
                        sent[0] += 1
                        sent[1] += len(data)


def _planner(problem: bytes, seed: int) -> Any:
    from demos.motion.kernel import Planner
    from demos.motion.problems import Problem

    return Planner(Problem.decode(problem), seed)


def one(problem: bytes, seed: int, begin: float, seconds: float, sharing: Callable[[], Quiet]) -> tuple[Trace, int]:
    """Run one planner in this process from the moment `begin`; return its trace and the messages that it took."""
    planner, shared = _planner(problem, seed), sharing()
    time.sleep(max(0.0, begin - time.monotonic()))
    return search(planner, shared, seed, begin + seconds), shared.messages


def one_process(problem: bytes, functions: int, seconds: float, seed: int = 0) -> tuple[list[Trace], int]:
    """Let planners take turns in this process; a path goes to the others before the next turn."""
    planners = [_planner(problem, seed + number) for number in range(functions)]
    traces = [Trace(seed + number, now_us()) for number in range(functions)]
    best, until = math.inf, time.monotonic() + seconds
    while time.monotonic() < until:
        for planner, trace in zip(planners, traces, strict=True):
            planner.run(SLICE_CHECKS)
            if planner.cost < best:
                best = planner.cost
                trace.found.append((now_us(), best))
                for other, theirs in zip(planners, traces, strict=True):
                    if other is not planner:
                        other.adopt(planner.path)
                        theirs.pruned.append((now_us(), best))
    for planner, trace in zip(planners, traces, strict=True):
        trace.cost, trace.checks, trace.nodes = planner.cost, planner.checks, planner.nodes
    return traces, 0


_memory: Memory | None = None


def _install(cost: Any, path: Any) -> None:
    global _memory
    os.setsid()
    _memory = Memory(cost, path)


def _installed() -> Memory:
    assert _memory is not None, "a process of another pool"
    return _memory


def pool(problem: bytes, functions: int, seconds: float, seed: int = 0) -> tuple[list[Trace], int]:
    """Run planners in a `ProcessPoolExecutor` whose processes share a cost and a path."""
    method = multiprocessing.get_context("fork")
    cost, path = method.Value(ctypes.c_double, math.inf), method.Array(ctypes.c_double, PATH_NUMBERS_MAX, lock=False)
    with ProcessPoolExecutor(functions, mp_context=method, initializer=_install, initargs=(cost, path)) as executor:
        return gathered(executor, problem, functions, seconds, seed, _installed)


def gathered(
    executor: ProcessPoolExecutor, problem: bytes, functions: int, seconds: float, seed: int,
    sharing: Callable[[], Quiet],
) -> tuple[list[Trace], int]:  # fmt: skip
    """Run planners in an executor's processes, and return their traces and messages."""
    begin = time.monotonic() + START_S
    calls = [executor.submit(one, problem, seed + n, begin, seconds, sharing) for n in range(functions)]
    done = [call.result() for call in calls]
    return [trace for trace, _ in done], sum(messages for _, messages in done)


class _At:
    """Opens a kind of sharing at an address, in whichever process."""

    def __init__(self, kind: Callable[[str], Quiet], path: str) -> None:
        self.kind, self.path = kind, path

    def __call__(self) -> Quiet:
        return self.kind(self.path)


def coordinator(problem: bytes, functions: int, seconds: float, seed: int = 0) -> tuple[list[Trace], int]:
    """Run planners in processes of their own around a coordinator."""
    traces, offered, sent, _ = coordinated(problem, functions, seconds, seed)
    return traces, offered + sent


def coordinated(problem: bytes, functions: int, seconds: float, seed: int = 0) -> tuple[list[Trace], int, int, int]:
    """Run planners around a coordinator; return traces, messages to it, messages from it, and bytes from it."""
    method = multiprocessing.get_context("fork")
    sent = method.Array(ctypes.c_long, 2, lock=False)
    with tempfile.TemporaryDirectory(prefix="motion-") as home:
        path = os.path.join(home, "coordinator")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen(functions)
            middle = method.Process(target=coordinate, args=(listener, sent))
            middle.start()
            try:
                with ProcessPoolExecutor(functions, mp_context=method, initializer=os.setsid) as executor:
                    traces, offered = gathered(executor, problem, functions, seconds, seed, _At(Coordinated, path))
                middle.join(5)
            finally:
                middle.kill()
                middle.join()
    return traces, offered, sent[0], sent[1]


def redis(problem: bytes, functions: int, seconds: float, seed: int = 0) -> tuple[list[Trace], int]:
    """Run planners in processes of their own with a private Redis between them. Raises RuntimeError without one."""
    from demos.retwis import on_redis

    if why := on_redis.missing():
        raise RuntimeError(why)
    with (
        on_redis.RedisStore() as store,
        ProcessPoolExecutor(functions, multiprocessing.get_context("fork"), os.setsid) as executor,
    ):
        return gathered(executor, problem, functions, seconds, seed, _At(RedisHash, store.path))


PEERS: dict[str, Callable[..., tuple[list[Trace], int]]] = {
    "one process": one_process, "pool, shared memory": pool, "Redis, Lua": redis, "coordinator": coordinator,
}  # fmt: skip


def apart(name: str, problem: bytes, functions: int, seconds: float, seed: int = 0) -> tuple[list[Trace], int]:
    """Run a peer in a process with a session of its own, as a node is.

    Raises what the peer raises.
    """
    traces, messages = in_a_session(PEERS[name], problem, functions, seconds, seed)
    return traces, messages


def in_a_session(race: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process with a session of its own."""
    method = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=method, initializer=os.setsid) as executor:
        return executor.submit(race, *arguments).result()
