"""Lithops on localhost: functions as files, run by a process for each."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

from bench import work
from bench.driver import Work, equal, serve

NAME = "Lithops"
LOOK_S: Final = 0.01
"""How often results are looked for; its own default is longer."""


def missing() -> str | None:
    """Return how to get it."""
    return None if importlib.util.find_spec("lithops") else "pip install lithops"


def version() -> str:
    """Return its version."""
    return f"Lithops {version_of('lithops')}"


def environment(directory: Path) -> dict[str, str]:
    """Return what keeps its files in a directory of their own."""
    home = directory / "lithops"
    home.mkdir(parents=True, exist_ok=True)
    return {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}


class Local:
    """Its localhost backend, with this interpreter."""

    def start(self) -> None:
        """Make the executor; it starts a process for each call."""
        chosen = {
            "lithops": {"backend": "localhost", "storage": "localhost", "telemetry": False},
            "localhost": {"runtime": sys.executable, "version": 1},
        }
        lithops: Any = importlib.import_module("lithops")
        self.executor: Any = lithops.FunctionExecutor(config=chosen, log_level="ERROR")

    def run(self, function: Any, *arguments: Any) -> Any:
        """Call and wait."""
        future = self.executor.call_async(function, arguments)
        return self.executor.get_result(future, wait_dur_sec=LOOK_S, show_progressbar=False)

    def nothing(self) -> Work:
        """Call and wait."""
        return Work(lambda: self.run(work.nothing))

    def composition(self) -> Work:
        """Two calls, the second with what the first returned."""
        return Work(lambda: self.run(work.square, self.run(work.increment, 5)), equal(36))

    def stop(self) -> None:
        """Remove what it has written."""
        self.executor.clean(clean_cloudobjects=False)


RUNTIME = Local

if __name__ == "__main__":
    serve(Local())
