"""The functions that runtimes are given to run, and what they must answer.

The one rule: every runtime runs these same functions, imported from here, so a ratio compares the runtimes and
not what they run.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final

LOAD_S: Final = 0.1
"""How long loading keeps a process from taking a second piece of it."""
TASK_US: Final = 1_000
"""Processor time of one task that is not a no-op."""


def nothing() -> None:
    """Do nothing: what is measured is getting here and back."""


def increment(x: int) -> int:
    """Return the next number."""
    return x + 1


def square(x: int) -> int:
    """Return the product of a number with itself."""
    return x * x


def add(*numbers: int) -> int:
    """Return the sum."""
    return sum(numbers)


def spin(microseconds: int, answer: int = 0) -> int:
    """Use so much processor time of the calling thread, then return `answer`.

    Processor time, not time that passes: a task is as much work on a busy machine as on an idle one.
    """
    end = time.thread_time_ns() + 1000 * microseconds
    while time.thread_time_ns() < end:
        pass
    return answer


def total(*arrays: Any) -> float:
    """Return the sum of the items of all arrays: every byte of them is read."""
    return float(sum(float(array.sum()) for array in arrays))


def load_numpy(seconds: float) -> int:
    """Have this process load what `total` needs, and be busy for so long; return its id."""
    import numpy

    assert numpy
    time.sleep(seconds)
    return os.getpid()


def mean(*numbers: float) -> float:
    """Return the mean."""
    return sum(numbers) / len(numbers)


def same(value: float) -> float:
    """Return what an actor has measured."""
    return value


class Counter:
    """State that stays where it was made."""

    def __init__(self) -> None:
        self.count = 0

    def touch(self) -> int:
        """Count this call, and return how many there were."""
        self.count += 1
        return self.count


ARRAYS: Final = 10


def arrays(all_bytes: int, start: float = 0.0) -> list[Any]:
    """Return ten arrays of floats with `all_bytes` in all; `start` makes them different from others."""
    import numpy

    items = all_bytes // ARRAYS // 8
    return [numpy.full(items, start + number) for number in range(ARRAYS)]


def total_of(all_bytes: int, start: float = 0.0) -> float:
    """Return what `total` of `arrays` must be."""
    items = all_bytes // ARRAYS // 8
    return float(items * sum(start + number for number in range(ARRAYS)))
