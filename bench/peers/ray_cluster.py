"""Ray on one machine, without its dashboard."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from bench.driver import nothing, serve

NAME = "Ray"
OBJECT_STORE_BYTES = 200 * 1024 * 1024


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
        self.function = self.ray.remote(nothing)

    def call(self) -> object:
        """Submit and wait."""
        return self.ray.get(self.function.remote())

    def spawn(self, count: int) -> None:
        """Submit all, then wait for all."""
        self.ray.get([self.function.remote() for _ in range(count)])

    def stop(self) -> None:
        """Stop the cluster."""
        self.ray.shutdown()
        self.directory.cleanup()


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    serve(Cluster())
