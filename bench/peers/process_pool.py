"""concurrent.futures.ProcessPoolExecutor: what Python itself offers, with four ways to give it arrays.

Its `hot` sends them as arguments. `mapped` maps shared memory by hand, and workers keep the maps; `single` needs no
other process; both are what a runtime's own reading of stored arrays is held against.
"""

from __future__ import annotations

import mmap
import os
import platform
import tempfile
import time
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, Final

from bench import work
from bench.driver import Work, equal, serve

NAME = "ProcessPoolExecutor"
SHARED_MEMORY: Final = "/dev/shm"


def missing() -> str | None:
    """Return None: it is always there."""
    return None


def version() -> str:
    """Return the version of Python."""
    return f"Python {platform.python_version()}"


def environment(directory: Path) -> dict[str, str]:
    """Return nothing: there is nothing to keep apart."""
    return {}


_mapped: dict[str, Any] = {}


def mapped(path: str) -> Any:
    """Return the array that this file is, read in place."""
    import numpy

    with open(path, "rb") as file:
        return numpy.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def total_of_mapped(paths: list[str], seconds: float = 0.0) -> float:
    """Return the total of the arrays in these pieces of shared memory, and leave them mapped for the next time.

    `seconds` is how long this process then takes no other call, which so goes to another one.
    """
    for path in paths:
        if path not in _mapped:
            _mapped[path] = mapped(path)
    found = work.total(*[_mapped[path] for path in paths])
    if seconds:
        time.sleep(seconds)
    return found


def total_of_mapped_anew(paths: list[str]) -> float:
    """Return the total of the arrays in these pieces of shared memory."""
    return work.total(*map(mapped, paths))


def wait(futures: list[Future[Any]]) -> list[Any]:
    """Return the results of all."""
    return [future.result() for future in futures]


class Pool:
    """One worker a processor."""

    def start(self) -> None:
        """Start the pool; its workers start with the first calls."""
        self.pool = ProcessPoolExecutor(len(os.sched_getaffinity(0)))
        self.directory = tempfile.TemporaryDirectory(prefix="bench-", dir=SHARED_MEMORY)
        self.numbers = count()

    def nothing(self) -> Work:
        """Submit and wait."""
        submit = self.pool.submit
        return Work(lambda: submit(work.nothing).result())

    def burst(self, calls: int, microseconds: int) -> Work:
        """Submit all, then wait for all."""
        submit = self.pool.submit
        if not microseconds:
            return Work(lambda: wait([submit(work.nothing) for _ in range(calls)]))
        return Work(lambda: wait([submit(work.spin, microseconds) for _ in range(calls)]))

    def composition(self) -> Work:
        """Two calls, the second with what the first returned."""
        submit = self.pool.submit
        return Work(lambda: submit(work.square, submit(work.increment, 5).result()).result(), equal(36))

    def chain(self, length: int) -> Work:
        """So many calls, each with what the last one returned."""
        submit = self.pool.submit

        def run() -> int:
            found = 0
            for _ in range(length):
                found = submit(work.increment, found).result()
            return found

        return Work(run, equal(length))

    def fan(self, width: int) -> Work:
        """One call, `width` beside each other, and one that adds."""
        submit = self.pool.submit

        def run() -> int:
            first = submit(work.increment, 1).result()
            return submit(work.add, *wait([submit(work.square, first) for _ in range(width)])).result()

        return Work(run, equal(4 * width))

    def load(self) -> None:
        """Have every worker load numpy."""
        wait([self.pool.submit(work.load_numpy, work.LOAD_S) for _ in os.sched_getaffinity(0)])

    def hot(self, all_bytes: int) -> Work:
        """Sum ten arrays that are sent as arguments."""
        self.load()
        arrays, submit = work.arrays(all_bytes), self.pool.submit
        return Work(lambda: submit(work.total, *arrays).result(), equal(work.total_of(all_bytes)))

    def mapped(self, all_bytes: int) -> Work:
        """Sum ten arrays in shared memory that the workers keep mapped."""
        paths, submit = self.share(all_bytes), self.pool.submit
        wait([submit(total_of_mapped, paths, work.LOAD_S) for _ in os.sched_getaffinity(0)])
        return Work(lambda: submit(total_of_mapped, paths).result(), equal(work.total_of(all_bytes)))

    def mapped_anew(self, all_bytes: int) -> Work:
        """Sum ten arrays in shared memory that is mapped for each call."""
        paths, submit = self.share(all_bytes), self.pool.submit
        return Work(lambda: submit(total_of_mapped_anew, paths).result(), equal(work.total_of(all_bytes)))

    def single(self, all_bytes: int) -> Work:
        """Sum ten arrays in this process."""
        arrays = work.arrays(all_bytes)
        return Work(lambda: work.total(*arrays), equal(work.total_of(all_bytes)))

    def share(self, all_bytes: int) -> list[str]:
        """Put ten arrays into shared memory, a file each; return their paths."""
        self.load()
        paths = []
        for array in work.arrays(all_bytes):
            path = Path(self.directory.name, str(next(self.numbers)))
            path.write_bytes(array.data)
            paths.append(str(path))
        return paths

    def stop(self) -> None:
        """End the workers."""
        self.pool.shutdown()
        self.directory.cleanup()


RUNTIME = Pool

if __name__ == "__main__":
    serve(Pool())
