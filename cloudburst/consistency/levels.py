"""What each session level demands: one table, and nothing else decides by a level's name.

The one rule: a level has all that the levels before it have. Source: DESIGN §4 (the table of levels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloudburst.errors import ProtocolError, RequestError


@dataclass(frozen=True, slots=True)
class Level:
    """One level.

    `at_epoch`: all that a session reads is as it was at the end of one stable epoch, and its writes wait until it ends.
    `atomic`: its writes commit together. `carried`: the next session of the same client sees all that this one saw and
    wrote.
    """

    name: str
    number: int
    at_epoch: bool
    atomic: bool
    carried: bool


EVENTUAL: Final = Level("eventual", 0, at_epoch=False, atomic=False, carried=False)
REPEATABLE: Final = Level("repeatable", 1, at_epoch=True, atomic=False, carried=False)
READ_ATOMIC: Final = Level("read-atomic", 2, at_epoch=True, atomic=True, carried=False)
CAUSAL: Final = Level("causal", 3, at_epoch=True, atomic=True, carried=True)

LEVELS: Final = (EVENTUAL, REPEATABLE, READ_ATOMIC, CAUSAL)
_BY_NAME: Final = {level.name: level for level in LEVELS}


def level_of(name: str) -> Level:
    """Return the level with this name. Raises RequestError."""
    level = _BY_NAME.get(name) if isinstance(name, str) else None
    if level is None:
        raise RequestError(f"session is {name!r}; the levels are {', '.join(map(repr, _BY_NAME))}")
    return level


def level_numbered(number: int) -> Level:
    """Return the level that another process has named. Raises ProtocolError."""
    if not 0 <= number < len(LEVELS):
        raise ProtocolError(f"there is no session level {number}")
    return LEVELS[number]
