"""How a process ended, in words, and whether it was its own doing.

An ending is an exit code, or minus the number of the signal, as `os.waitstatus_to_exitcode` gives it.
"""

from __future__ import annotations

import signal
from typing import Final

SELF_INFLICTED: Final = frozenset((signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE))
"""Signals by which code ends its own process; the others may have come from anywhere."""

LINES_MAX: Final = 6


def describe_exit(code: int) -> str:
    """Return an ending in words."""
    if code >= 0:
        return f"exit({code})"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"


def is_self_inflicted(code: int) -> bool:
    """Whether the process ended by its own doing: it exited, or crashed."""
    return code >= 0 or -code in SELF_INFLICTED


def last_words(output: str) -> list[str]:
    """Return the lines of a dead process's output that say most: where it crashed, or else what it printed last."""
    _, crashed, after = output.rpartition("Fatal Python error:")
    lines = [line for line in (crashed + after if crashed else output).splitlines() if line.strip()]
    return lines[:LINES_MAX] if crashed else lines[-LINES_MAX:]
