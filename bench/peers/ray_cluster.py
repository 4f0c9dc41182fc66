"""Ray on one machine, without its dashboard."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from bench import work
from bench.driver import Work, equal, serve

NAME = "Ray"
OBJECT_STORE_BYTES = 1024 * 1024 * 1024


def missing() -> str | None:
    """Return how to get Ray."""
    return None if importlib.util.find_spec("ray") else "pip install ray"


def version() -> str:
    """Return the version of Ray."""
    return f"Ray {version_of('ray')}"


def environment(directory: Path) -> dict[str, str]:
    """Return nothing: there is nothing to keep apart."""
    return {}


class Cluster:
    """One node with one worker a processor."""

    def start(self) -> None:
        """Start a private cluster, in a directory of its own."""
        import ray

        self.ray: Any = ray
        self.directory = tempfile.TemporaryDirectory(prefix="bench-ray-")
        self.ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=False,
            logging_level="error",
            log_to_driver=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=self.directory.name,
        )

    def nothing(self) -> Work:
        """Submit and wait."""
        get, remote = self.ray.get, self.ray.remote(work.nothing).remote
        return Work(lambda: get(remote()))

    def method(self) -> Work:
        """Call a method of an actor, which needs no processor of its own."""
        actor = self.ray.remote(work.Counter).options(num_cpus=0).remote()
        get = self.ray.get
        return Work(lambda: get(actor.touch.remote()), lambda found: found > 0)

    def burst(self, calls: int, microseconds: int) -> Work:
        """Submit all, then wait for all."""
        get = self.ray.get
        if not microseconds:
            remote = self.ray.remote(work.nothing).remote
            return Work(lambda: get([remote() for _ in range(calls)]))
        remote = self.ray.remote(work.spin).remote
        return Work(lambda: get([remote(microseconds) for _ in range(calls)]))

    def composition(self) -> Work:
        """One task with the reference to the other's result."""
        get = self.ray.get
        increment, square = self.ray.remote(work.increment).remote, self.ray.remote(work.square).remote
        return Work(lambda: get(square(increment(5))), equal(36))

    def chain(self, length: int) -> Work:
        """So many tasks, each with the reference to the last one's result."""
        get, increment = self.ray.get, self.ray.remote(work.increment).remote

        def run() -> Any:
            found: Any = 0
            for _ in range(length):
                found = increment(found)
            return get(found)

        return Work(run, equal(length))

    def fan(self, width: int) -> Work:
        """One task, `width` beside each other, and one that adds."""
        get, remote = self.ray.get, self.ray.remote
        increment, square, add = (remote(one).remote for one in (work.increment, work.square, work.add))

        def run() -> Any:
            first = increment(1)
            return get(add(*[square(first) for _ in range(width)]))

        return Work(run, equal(4 * width))

    def load(self) -> None:
        """Have every worker load numpy."""
        remote = self.ray.remote(work.load_numpy).remote
        self.ray.get([remote(work.LOAD_S) for _ in os.sched_getaffinity(0)])

    def hot(self, all_bytes: int) -> Work:
        """Sum ten arrays in the object store that have been read before."""
        get, total = self.ray.get, self.ray.remote(work.total).remote
        self.load()
        refs = [self.ray.put(array) for array in work.arrays(all_bytes)]
        return Work(lambda: get(total(*refs)), equal(work.total_of(all_bytes)))

    def cold(self, all_bytes: int) -> Work:
        """Sum ten arrays in the object store that nobody has read."""
        get, total = self.ray.get, self.ray.remote(work.total).remote
        self.load()
        arrays = work.arrays(all_bytes)
        refs: list[Any] = []

        def prepare() -> None:
            refs.clear()
            refs.extend(self.ray.put(array) for array in arrays)

        return Work(lambda: get(total(*refs)), equal(work.total_of(all_bytes)), prepare)

    def gather(self, actors: int) -> Work:
        """Have tasks return what they measured, and one read it all."""
        get, same, mean = self.ray.get, self.ray.remote(work.same).remote, self.ray.remote(work.mean).remote
        values = [100.0 + number for number in range(actors)]
        expected = sum(values) / actors
        return Work(lambda: get(mean(*[same(one) for one in values])), lambda found: abs(found - expected) < 1e-6)

    def stop(self) -> None:
        """Stop the cluster."""
        self.ray.shutdown()
        self.directory.cleanup()


RUNTIME = Cluster

if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    serve(Cluster())
