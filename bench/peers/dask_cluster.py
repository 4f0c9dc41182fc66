"""Dask's distributed scheduler on one machine, without its dashboard, one process a worker."""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from bench import work
from bench.driver import Work, equal, serve

NAME = "Dask"


def missing() -> str | None:
    """Return how to get it."""
    return None if importlib.util.find_spec("distributed") else "pip install distributed"


def version() -> str:
    """Return the version of the scheduler."""
    return f"Dask distributed {version_of('distributed')}"


def environment(directory: Path) -> dict[str, str]:
    """Return nothing: there is nothing to keep apart."""
    return {}


class Cluster:
    """One worker a processor, each with one thread."""

    def start(self) -> None:
        """Start a private cluster, in a directory of its own."""
        distributed: Any = importlib.import_module("distributed")
        self.directory = tempfile.TemporaryDirectory(prefix="bench-dask-")
        self.cluster: Any = distributed.LocalCluster(
            n_workers=len(os.sched_getaffinity(0)),
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=50,
            local_directory=self.directory.name,
        )
        self.client: Any = distributed.Client(self.cluster)

    def submit(self, function: Any, *arguments: Any) -> Any:
        """Start a call, which is made even if the same one was made before."""
        return self.client.submit(function, *arguments, pure=False)

    def nothing(self) -> Work:
        """Submit and wait."""
        return Work(lambda: self.submit(work.nothing).result())

    def method(self) -> Work:
        """Call a method of an actor."""
        actor = self.client.submit(work.Counter, actor=True).result()
        return Work(lambda: actor.touch().result(), lambda found: found > 0)

    def burst(self, calls: int, microseconds: int) -> Work:
        """Submit all, then wait for all."""
        function, arguments = (work.spin, (microseconds,)) if microseconds else (work.nothing, ())
        return Work(lambda: self.client.gather([self.submit(function, *arguments) for _ in range(calls)]))

    def composition(self) -> Work:
        """One task with the future of the other's result."""
        return Work(lambda: self.submit(work.square, self.submit(work.increment, 5)).result(), equal(36))

    def chain(self, length: int) -> Work:
        """So many tasks, each with the future of the last one's result."""

        def run() -> Any:
            found: Any = 0
            for _ in range(length):
                found = self.submit(work.increment, found)
            return found.result()

        return Work(run, equal(length))

    def fan(self, width: int) -> Work:
        """One task, `width` beside each other, and one that adds."""

        def run() -> Any:
            first = self.submit(work.increment, 1)
            return self.submit(work.add, *[self.submit(work.square, first) for _ in range(width)]).result()

        return Work(run, equal(4 * width))

    def load(self) -> None:
        """Have every worker load numpy."""
        self.client.gather([self.submit(work.load_numpy, work.LOAD_S) for _ in os.sched_getaffinity(0)])

    def hot(self, all_bytes: int) -> Work:
        """Sum ten arrays that the workers have, and have read before."""
        self.load()
        futures = self.client.scatter(work.arrays(all_bytes), hash=False)
        return Work(lambda: self.submit(work.total, *futures).result(), equal(work.total_of(all_bytes)))

    def cold(self, all_bytes: int) -> Work:
        """Sum ten arrays that the workers have been given, some to one, some to the other."""
        self.load()
        arrays = work.arrays(all_bytes)
        futures: list[Any] = []

        def prepare() -> None:
            futures.clear()
            futures.extend(self.client.scatter(arrays, hash=False))

        return Work(lambda: self.submit(work.total, *futures).result(), equal(work.total_of(all_bytes)), prepare)

    def gather(self, actors: int) -> Work:
        """Have tasks return what they measured, and one read it all."""
        values = [100.0 + number for number in range(actors)]
        expected = sum(values) / actors
        return Work(
            lambda: self.submit(work.mean, *[self.submit(work.same, one) for one in values]).result(),
            lambda found: abs(found - expected) < 1e-6,
        )

    def stop(self) -> None:
        """Stop the cluster."""
        self.client.close()
        self.cluster.close()
        self.directory.cleanup()


RUNTIME = Cluster

if __name__ == "__main__":
    serve(Cluster())
