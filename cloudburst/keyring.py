"""Which keys a process shows to other hosts: those of its node, or else those of `$ANNA_KEYS`.

The one rule: a node that was given keys of its own has those of right `admin` in memory alone (`anna.keymemory`), where
users' functions cannot read them; the lesser ones are in its directory, go with it, and whoever joins that node on this
host uses them. A gateway, where no functions run, has what it was given there. Source: docs/decisions/0041, 0049.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anna.keyplaces import INHERITED, MEMORY
from cloudburst.secret import SECRET_FILE

if TYPE_CHECKING:
    from anna.keymemory import Held
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


def give(directory: str | os.PathLike[str], keys: Held | Mapping[str, str], environment: dict[str, str]) -> None:
    """Put keys, files by name, into the directory of a node; of those in memory, the lesser ones.

    Its environment to be says where they are; those in memory have to be at the descriptor that it names.
    """
    if isinstance(keys, Mapping):
        renew(directory, keys)
        environment[VARIABLE] = os.fspath(directory)
    else:
        _keep(directory, keys.lesser)
        environment[VARIABLE] = f"{MEMORY}{INHERITED}"


def renew(directory: str | os.PathLike[str], files: Mapping[str, str], held: Held | None = None) -> None:
    """Put newer keys there, or of those `held` in memory the lesser ones: processes take them up within a second."""
    if held is not None:
        held.renew(files)
    _keep(directory, files if held is None else held.lesser)


def _keep(directory: str | os.PathLike[str], files: Mapping[str, str]) -> None:
    from anna.keys import keep

    keep(Path(directory), files)


def use(directory: str | os.PathLike[str], keys: str | os.PathLike[str]) -> None:
    """Have this process show keys that it was given, as a client of the node in `directory`, which shows them, too."""
    _given[os.fspath(directory)] = os.fspath(keys)


def keys_in(directory: str | os.PathLike[str]) -> str | None:
    """Return where the keys are that processes of the node in `directory` show; None when there are none."""
    if Path(directory, KEY_FILES[1]).exists():
        return os.fspath(directory)
    environment, lesser = os.environ.get(VARIABLE) or "", Path(directory, LESSER)
    if not environment.startswith(MEMORY) and Path(lesser, KEY_FILES[1]).exists():
        return os.fspath(lesser)  # the node's own are in its memory, and this process is none of it
    return _given.get(os.fspath(directory)) or environment or None


def lesser_keys_in(directory: str | os.PathLike[str]) -> str | None:
    """Return where those keys are that what runs users' functions shows: they may not be a node."""
    found = keys_in(directory)
    for place in (os.fspath(directory), found):
        if place and os.path.isdir(lesser := os.path.join(place, LESSER)):
            return lesser
    return None if found and found.startswith(MEMORY) else found


def operators_keys(directory: str | os.PathLike[str]) -> str | None:
    """Return the directory of a node's keys that is not its own, but somebody's who runs it; None when it has none."""
    found, own = keys_in(directory), os.fspath(directory)
    return None if found is None or found == own or found.startswith((f"{own}/", MEMORY)) else found


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
