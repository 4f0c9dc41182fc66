"""Our own function runtime: the embedded local cluster that `cloudburst` starts by itself."""

from __future__ import annotations

import importlib
import os
import tempfile
from typing import Any

from bench.driver import serve

NAME = "ours"


def missing() -> str | None:
    """Return how to build it."""
    try:
        runtime = importlib.import_module("cloudburst")
    except ImportError as error:
        return f"cloudburst is not built ({error}): make build"
    return None if hasattr(runtime, "call") else "cloudburst has no `call`: make build"


def version() -> str:
    """Return the version of the distribution."""
    return "cloudburst of this tree"


class Embedded:
    """A private cluster in a directory of its own."""

    def start(self) -> None:
        """Start it and register the no-op."""
        self.directory = tempfile.TemporaryDirectory(prefix="bench-")
        os.environ["ANNA_DIR"] = self.directory.name
        self.runtime: Any = importlib.import_module("cloudburst")
        self.runtime.connect()
        self.runtime.register(lambda: None, name="nothing")

    def call(self) -> object:
        """Call and wait."""
        return self.runtime.call("nothing")

    def spawn(self, count: int) -> None:
        """Spawn all, then wait for all."""
        spawn = self.runtime.spawn
        for future in [spawn("nothing") for _ in range(count)]:
            future.result()

    def stop(self) -> None:
        """Leave the cluster; with its last user it stops."""


if __name__ == "__main__":
    serve(Embedded())
