"""Clients as programs: a workload that runs in a process of its own, on any host, until it is told to stop.

The one rule: a program prints one line when its load has begun, goes on until the end of its standard input, and then
prints one JSON object, which is all that its test gets.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parent.parent.parent
"""Where the programs' modules are found."""

READY_S: Final = 20.0
"""How long a program may take until its load has begun."""

STOP_S: Final = 100.0
"""How long a program may take from the end of its input to its own."""

Start = Callable[..., subprocess.Popen[str]]
"""What starts a program from its words: a host's `start`, or `start_here`."""


def start_here(*command: str, **options: Any) -> subprocess.Popen[str]:
    """Start a program on no host but this machine."""
    return subprocess.Popen(command, text=True, **options)


class Program:
    """A running workload."""

    def __init__(
        self, start: Start, module: str, ready: str, addresses: Sequence[str], options: dict[str, Any]
    ) -> None:
        """Return when the program has said `ready`. `options` are its own, by name."""
        words = [word for address in addresses for word in ("--at", address)]
        words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", module, *words]
        self._process = start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        assert self._process.stdout is not None
        begun, _, _ = select.select([self._process.stdout], [], [], READY_S)
        said = self._process.stdout.readline() if begun else "nothing"
        if said != f"{ready}\n":
            self._process.kill()
            with self._process:
                pytest.fail(f"{module} did not say {ready!r} within {READY_S} s, but {said!r}")

    def stop(self) -> dict[str, Any]:
        """End the load and return what the program has to say of it."""
        with self._process:
            out, _ = self._process.communicate(timeout=STOP_S)
        assert self._process.returncode == 0
        found: dict[str, Any] = json.loads(out)
        return found

    def close(self) -> None:
        """Kill the program if it runs, and let go of it."""
        with self._process:
            self._process.kill()


def ack_of(text: str) -> str | int:
    """Return the acknowledgement that an option names: `memory`, `disk`, or a number of copies."""
    return int(text) if text.isdigit() else text
