"""What a recorded session says of a value: a name that is the same wherever the value is read or written.

The one rule: whole numbers and short text are their own names; anything else is '#' and a hash of its encoding. A
history says who wrote a value by the value alone, so a program that is recorded writes each value to a key only once;
what it writes twice is one write to the judge, who then cannot tell which of the two was read. Types whose values are
neither one value, nor siblings, nor a set of elements (counters, extremes, maps) are left out: a sum does not say whose
increments are in it. Source: docs/histories.md; decision record 0026.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from anna.lattices import LWW, Causal, Lattice, OrderedSet, ORSet, Set

TEXT_MAX: Final = 64
NUMBER_MAX: Final = 1 << 53

Operation = tuple[str, str, Any]
Name = str | int


def name_of(value: Any) -> Name:
    """Return the name of a value."""
    if type(value) is int and abs(value) < NUMBER_MAX:
        return value
    if type(value) is str and len(value) <= TEXT_MAX and value[:1] != "#":
        return value
    return "#" + hashlib.blake2b(LWW.of(value).payload, digest_size=12).hexdigest()


def key_of(key: str | bytes) -> str:
    """Return the name of a key."""
    return key if isinstance(key, str) else key.decode(errors="backslashreplace")


def read(key: str | bytes, state: Lattice | None) -> list[Operation]:
    """Return what a read of a key that held `state` is in a history; nothing for types that it cannot judge."""
    if state is None:
        return [("read", key_of(key), None)]
    if isinstance(state, LWW):
        return [("read", key_of(key), name_of(state.value))]
    if isinstance(state, (Causal, Set, ORSet, OrderedSet)):
        return [("read", key_of(key), sorted({name_of(one) for one in state.value}, key=repr))]
    return []


def written(key: str | bytes, value: Lattice, seen: Lattice | None) -> list[Operation]:
    """Return what a write of `value` is in a history, by who saw `seen` of the key."""
    if isinstance(value, LWW):
        return [("write", key_of(key), name_of(value.value))]
    if isinstance(value, Causal):
        return [("write", key_of(key), name_of(one)) for one in value.value]
    if not isinstance(value, (Set, ORSet, OrderedSet)):
        return []
    found = [("add", key_of(key), name_of(one)) for one in value.value]
    if isinstance(value, ORSet) and isinstance(seen, ORSet):
        left = seen.join(value.assign(seen, 1, 1)).value
        found += [("remove", key_of(key), name_of(one)) for one in seen.value - left]
    return sorted(found, key=repr)
