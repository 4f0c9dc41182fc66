"""What the nouns of the protocol are checked with, whoever made them.

The one rule: a value that cannot be is never built. In a constructor that is a ValueError, our own mistake or a
caller's; in what a peer sent it is a ProtocolError, and both say the number and its bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, TypeVar

from anna.errors import ProtocolError

U64_MAX: Final = 2**64 - 1

T = TypeVar("T")


def bounded(what: str, number: int, least: int, most: int) -> None:
    """Raise ValueError unless a number lies within its bounds."""
    if not least <= number <= most:
        raise ValueError(f"{what} is {number:,}; it must be {least:,} to {most:,}")


def ascending(what: str, numbers: list[int]) -> None:
    """Raise ValueError unless each number is greater than the one before."""
    if any(b <= a for a, b in pairwise(numbers)):
        raise ValueError(f"{what} must ascend without repeats, got {numbers[:8]}")


def fields(what: str, data: object, *counts: int) -> list[Any]:
    """Return the fields of a list that has one of these lengths. Raises ProtocolError."""
    found = typed(what, data, list)
    if len(found) not in counts:
        raise ProtocolError(f"a {what} has {' or '.join(map(str, counts))} fields, got {len(found)}")
    return found


def typed(what: str, value: object, kind: type[T]) -> T:
    """Return a value of exactly this type. Raises ProtocolError."""
    if type(value) is not kind:
        raise ProtocolError(f"{what} must be {kind.__name__}, got {type(value).__name__}")
    return value


def built(make: Callable[..., T], *parts: object) -> T:
    """Return what a constructor makes of a peer's parts. Raises ProtocolError where that raises ValueError."""
    try:
        return make(*parts)
    except ValueError as error:
        raise ProtocolError(str(error)) from None
