"""What those who share a queue tell each other: small facts, each true for good once its writer has said it.

The one rule: a fact is never taken back or changed, so a set of facts is a lattice (its join is the union), and whoever
has the same facts has come to the same conclusions, in whatever order they came. Source: decision record 0038.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

from cloudburst.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Result:
    """How one attempt at a task ended.

    `code` is the program's exit code, negative for a signal; `output` the digest of what it wrote, of `size` bytes;
    `said` the end of its standard error; `why` is "" unless the program was stopped or never begun.
    """

    code: int
    output: bytes
    size: int
    said: str
    run_us: int
    why: str = ""

    @property
    def ok(self) -> bool:
        """Whether the task is done with it."""
        return self.code == 0 and not self.why


@dataclass(frozen=True, slots=True)
class Announced:
    """The owner has a task. `body` is for whoever runs it; the queue does not look inside."""

    key: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Joined:
    """The writer is a worker."""


@dataclass(frozen=True, slots=True)
class Leased:
    """The writer wants to run a task, as the attempt with this number (from 1)."""

    key: bytes
    attempt: int


@dataclass(frozen=True, slots=True)
class Begun:
    """The writer has begun an attempt that it has leased."""

    key: bytes
    attempt: int


@dataclass(frozen=True, slots=True)
class Yielded:
    """The writer will not begin an attempt that it has leased, or has stopped it."""

    key: bytes
    attempt: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The writer's attempt has ended. `data` is what it wrote, when that is short; else it is in the store."""

    key: bytes
    attempt: int
    result: Result
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Settled:
    """The owner has taken this attempt of this worker as the task's one result; attempt 0: it has failed for good."""

    key: bytes
    attempt: int
    worker: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The owner knows that a worker has ended."""

    worker: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The owner wants nothing more. `code` is what its command ends with, `why` is "" when all tasks are settled."""

    code: int
    why: str


@dataclass(frozen=True, slots=True)
class Taken:
    """The writer, which is the next stage, has taken so many results, and room for others with them."""

    count: int


Fact = Announced | Joined | Leased | Begun | Yielded | Ended | Settled | Lost | Closed | Taken

KINDS: Final[tuple[type[Any], ...]] = (
    Announced, Joined, Leased, Begun, Yielded, Ended, Settled, Lost, Closed, Taken,
)  # fmt: skip
NUMBERS: Final = {kind: number for number, kind in enumerate(KINDS)}
NAMES: Final = {kind: tuple(field.name for field in fields(kind)) for kind in (*KINDS, Result)}


def plain(fact: Fact) -> list[Any]:
    """Return a fact as a list of plain values: the number of its kind, then its fields."""
    values = [getattr(fact, name) for name in NAMES[type(fact)]]
    if isinstance(fact, Ended):
        values[2] = [getattr(fact.result, name) for name in NAMES[Result]]
    return [NUMBERS[type(fact)], *values]


def fact_of(values: list[Any]) -> Fact:
    """Return what `plain` gave. Raises ProtocolError."""
    try:
        kind = KINDS[values[0]]
        if kind is Ended:
            return Ended(bytes(values[1]), int(values[2]), Result(*values[3]), bytes(values[4]))
        made: Fact = kind(*values[1:])
        return made
    except (IndexError, TypeError, ValueError) as fault:
        raise ProtocolError(f"{values!r} is no fact of a queue: {fault}") from None
