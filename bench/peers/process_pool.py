"""concurrent.futures.ProcessPoolExecutor: what Python itself offers."""

from __future__ import annotations

import os
import platform
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bench.driver import nothing, serve

NAME = "ProcessPoolExecutor"


def missing() -> str | None:
    """Return None: it is always there."""
    return None


def version() -> str:
    """Return the version of Python."""
    return f"Python {platform.python_version()}"


def environment(directory: Path) -> dict[str, str]:
    """Return nothing: there is nothing to keep apart."""
    return {}


class Pool:
    """One worker a processor."""

    def start(self) -> None:
        """Start the pool; its workers start with the first calls."""
        self.pool = ProcessPoolExecutor(len(os.sched_getaffinity(0)))

    def call(self) -> object:
        """Submit and wait."""
        return self.pool.submit(nothing).result()

    def spawn(self, count: int) -> None:
        """Submit all, then wait for all."""
        for future in [self.pool.submit(nothing) for _ in range(count)]:
            future.result()

    def stop(self) -> None:
        """End the workers."""
        self.pool.shutdown()


if __name__ == "__main__":
    serve(Pool())
