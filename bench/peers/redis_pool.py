"""ProcessPoolExecutor with Redis as its store: what is put together when functions need shared data.

Values are pickled; workers read them with one mget over a Unix socket and keep nothing.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

from bench import work
from bench.driver import Work, equal, serve
from bench.peers.redis_server import Redis, RedisServer

NAME = "Redis"


def missing() -> str | None:
    """Return how to get Redis and its client."""
    return Redis().missing()


def version() -> str:
    """Return the versions of server, client and parser."""
    return Redis().version()


def environment(directory: Path) -> dict[str, str]:
    """Return nothing: there is nothing to keep apart."""
    return {}


_clients: dict[str, Any] = {}


def client_of(path: str) -> Any:
    """Return this process's client of the server at `path`."""
    if path not in _clients:
        import redis

        _clients[path] = redis.Redis(unix_socket_path=path)
    return _clients[path]


def connected(path: str, seconds: float) -> bool:
    """Have this process connect, load numpy, and be busy for so long."""
    client_of(path).ping()
    return work.load_numpy(seconds) > 0


def total_of_stored(path: str, keys: list[str]) -> float:
    """Return the total of the arrays under these keys."""
    return work.total(*map(pickle.loads, client_of(path).mget(keys)))


def measure(path: str, key: str, value: float) -> None:
    """Write one measurement."""
    client_of(path).set(key, pickle.dumps(value))


def mean_of_stored(path: str, keys: list[str]) -> float:
    """Return the mean of the measurements under these keys."""
    return work.mean(*map(pickle.loads, client_of(path).mget(keys)))


class Pool:
    """One worker a processor, and a private server on the same processors."""

    def start(self) -> None:
        """Start both."""
        self.directory = tempfile.TemporaryDirectory(prefix="bench-redis-")
        cpus = os.sched_getaffinity(0)
        self.server = RedisServer(Path(self.directory.name), cpus)
        self.pool = ProcessPoolExecutor(len(cpus))
        self.numbers = count()

    def nothing(self) -> Work:
        """Submit and wait."""
        return Work(lambda: self.pool.submit(work.nothing).result())

    def load(self) -> None:
        """Have every worker load numpy, and connect."""
        path = self.server.path
        for one in [self.pool.submit(connected, path, work.LOAD_S) for _ in os.sched_getaffinity(0)]:
            one.result()

    def hot(self, all_bytes: int) -> Work:
        """Sum ten arrays in the server; here every read is the same."""
        path, submit = self.server.path, self.pool.submit
        self.load()
        keys = [f"{all_bytes}/{number}" for number in range(work.ARRAYS)]
        for key, array in zip(keys, work.arrays(all_bytes)):
            client_of(path).set(key, pickle.dumps(array, protocol=5))
        return Work(lambda: submit(total_of_stored, path, keys).result(), equal(work.total_of(all_bytes)))

    def gather(self, actors: int) -> Work:
        """Have actors write what they measured into the server, and one function read it all."""
        path, submit = self.server.path, self.pool.submit
        self.load()
        values = [100.0 + number for number in range(actors)]
        expected = sum(values) / actors

        def run() -> float:
            turn = next(self.numbers)
            keys = [f"gather/{turn}/{number}" for number in range(actors)]
            for done in [submit(measure, path, key, value) for key, value in zip(keys, values)]:
                done.result()
            return submit(mean_of_stored, path, keys).result()

        return Work(run, lambda found: abs(found - expected) < 1e-6)

    def stop(self) -> None:
        """End the workers and the server."""
        self.pool.shutdown()
        self.server.stop()
        self.directory.cleanup()


RUNTIME = Pool

if __name__ == "__main__":
    serve(Pool())
