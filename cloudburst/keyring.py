"""Which keys a process shows to other hosts: those in the directory of its node, or else those of `$ANNA_KEYS`.

The one rule: a node that was given keys of its own has them in its directory, beside its secret, readable by its owner
alone; they go with it, and whoever joins that node on this host uses them. Source: docs/decisions/0041.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloudburst.secret import SECRET_FILE

if TYPE_CHECKING:
    from anna.keys import Keys
    from cloudburst.signing import Signatures

KEY_FILES: Final = ("authorities.pem", "certificate.pem", "key.pem")
LESSER: Final = "code"
VARIABLE: Final = "ANNA_KEYS"
OWN_FILES: Final = (SECRET_FILE, *KEY_FILES, *(f"{LESSER}/{name}" for name in KEY_FILES), f"{LESSER}/")
"""What a node's directory holds beside sockets and its log, and is removed with them."""


HIDDEN: Final = KEY_FILES[2:]
"""What of it no sandbox shows to users' functions."""


_given: dict[str, str] = {}
"""Keys that this process was given for a node, by its directory."""


def give(directory: str | os.PathLike[str], files: Mapping[str, str], environment: dict[str, str]) -> None:
    """Put keys, files by name, into the directory of a node, and say so in its environment to be."""
    renew(directory, files)
    environment[VARIABLE] = os.fspath(directory)


def renew(directory: str | os.PathLike[str], files: Mapping[str, str]) -> None:
    """Put newer keys there: its processes take them up within a second."""
    from anna.keys import keep

    keep(Path(directory), files)


def use(directory: str | os.PathLike[str], keys: str | os.PathLike[str]) -> None:
    """Have this process show keys that it was given, as a client of the node in `directory`, which shows them, too."""
    _given[os.fspath(directory)] = os.fspath(keys)


def keys_in(directory: str | os.PathLike[str]) -> str | None:
    """Return where the keys are that processes of the node in `directory` show; None when there are none."""
    if Path(directory, KEY_FILES[1]).exists():
        return os.fspath(directory)
    return _given.get(os.fspath(directory)) or os.environ.get(VARIABLE) or None


def lesser_keys_in(directory: str | os.PathLike[str]) -> str | None:
    """Return where those keys are that what runs users' functions shows: they may not be a node."""
    found = keys_in(directory)
    lesser = found and os.path.join(found, LESSER)
    return lesser if lesser and os.path.isdir(lesser) else found


@functools.lru_cache(maxsize=16)
def signatures_with(keys: str | None) -> Signatures | None:
    """Return whose signatures of records count with the keys in a directory; None where there are none."""
    if keys is None:
        return None
    from cloudburst.signing import Signatures

    return Signatures(keys)


def keys_of(directory: str | os.PathLike[str]) -> Keys | None:
    """Return those keys. Raises BadKeys."""
    found = keys_in(directory)
    if found is None:
        return None
    from anna.keys import Keys

    return Keys(found)
