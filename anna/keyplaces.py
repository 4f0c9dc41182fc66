"""How the place of keys is spelled, to programs and in `$ANNA_KEYS`: a directory, or `memory:FD` (`anna.keymemory`).

It imports nothing: whoever starts a program has to know it, and few of them have keys.
"""

from __future__ import annotations

from typing import Final

MEMORY: Final = "memory:"
"""How the place of keys begins that are in no directory, but at a descriptor, whose number follows."""
INHERITED: Final = 3
"""The descriptor at which a program that is started with such keys finds them."""


def descriptor_of(place: str) -> int | None:
    """Return the descriptor at which keys in memory are; None for a directory, or no place."""
    return int(place.removeprefix(MEMORY)) if place.startswith(MEMORY) else None
