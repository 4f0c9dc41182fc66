"""Where the code of a stage is: a function of an application that was built, on this machine or on any other.

The one rule: no host has to have it. On the machine of whoever asked it runs from where it was unpacked, by the Python
there; another host gets all that the built file brings from the store, once for each digest, and keeps it beside what
providers have shipped. So stages of one pipeline can be of different files. Source: decision record 0046.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cloudburst.burst import bootstrap
from cloudburst.burst.tasks.board import Board
from cloudburst.burst.tasks.items import Identity, identity_of
from cloudburst.errors import NodeLost

BRINGING: Final = ".bringing"


@dataclass(frozen=True, slots=True)
class Code:
    """A function of a file of an application. `inside` is that file's path in what the built file brings.

    `python`, `main` and `identity` are of the machine of whoever asks; `place`, `digest` and `size` of what is in the
    store, "" and 0 as long as nobody elsewhere needs it.
    """

    python: str
    main: str
    inside: str
    identity: Identity | None
    function: str
    settings: Mapping[str, str]
    place: str = ""
    digest: str = ""
    size: int = 0

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Code:
        """Return what `dataclasses.asdict` has taken apart, and a message has carried."""
        identity = said["identity"]
        return cls(**{**said, "identity": None if identity is None else tuple(identity)})

    def kept(self, board: Board) -> Code:
        """Return it with its archive in the store, for hosts that do not see it. Raises AnnaError."""
        from cloudburst.burst import shipping

        archive = shipping.archive()
        place = board.keep(bytes.fromhex(archive.digest), archive.path.read_bytes())
        return replace(self, place=place, digest=archive.digest, size=archive.size)

    def started(self, board: Board) -> tuple[list[str], dict[str, str], int | None]:
        """Return the words and the variables that a Python with it is started with, and a lock on it, if it needs one.

        Raises OSError, ValueError, NodeLost when it cannot be had here.
        """
        if self.identity == identity_of(self.main) and os.access(self.python, os.X_OK):
            return [self.python, "-I", "-m", PROGRAM, self.main], {}, None
        place = bootstrap.home() / self.digest
        with _one_at_a_time():
            lock = bootstrap.taken(place)
            if lock is None:
                data = board.content(self.place, self.size) if self.place else None
                if data is None:
                    raise NodeLost(f"{self.inside} is neither on this host nor in the store: its command has ended")
                lock = bootstrap.put(data, self.digest)
        variables = {"PYTHONPATH": str(place), "PYTHONNOUSERSITE": "1"}
        return [sys.executable, "-P", "-m", PROGRAM, str(place / self.inside)], variables, lock


PROGRAM: Final = "cloudburst.burst.tasks.hand"


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keep the other workers of this host waiting, so that what they need, too, is brought once."""
    home = bootstrap.home()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(Path(home, BRINGING), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
