"""Our own function runtime: the embedded local cluster that `cloudburst` starts by itself."""

from __future__ import annotations

import importlib
from pathlib import Path
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


def environment(directory: Path) -> dict[str, str]:
    """Return what makes the embedded clusters private to `directory`."""
    return {"ANNA_DIR": str(directory / "anna"), "CLOUDBURST_DIR": str(directory / "cloudburst")}


class Embedded:
    """The cluster of the directories that the environment names."""

    def start(self) -> None:
        """Start it and register the no-op."""
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
