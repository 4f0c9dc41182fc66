"""How many copies a key has, and on which tier: replication vectors, and the keys that have one of their own.

The one rule: copies are made before others are dropped. A key that is given another vector keeps the one that it
had, `before`, until every worker has all that it should have: those who hold it by that one answer for it, and writes
go to the holders by both, as they do while nodes come and go. Then the new vector alone holds.

Like all of a view these records are a lattice: the greater stamp wins, and of one stamp what says that the copies
have moved. A key is named by its position, the 64-bit hash that places it, because a view travels with every answer
of "not my key" and has to stay small, whatever the keys are. A key that is to have the default again keeps a record
that says so, or an older one would come back; `floor` is the stamp up to which all records are forgotten.

Source: DESIGN §5 (placement, tiers); Anna (Wu, Sreekanti, Hellerstein 2019, section 4, replication vectors);
docs/decisions/0015.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import msgpack

from anna.checked import U64_MAX, ascending, bounded, built, fields, typed
from anna.config import OWN_VECTORS_BOUND, OWN_VECTORS_FORGET_US, OWN_VECTORS_MAX, OWNERS_MAX
from anna.errors import ProtocolError, ValueTooLarge

COUNTER_BITS: Final = 10
"""What stands below the microseconds in a stamp."""


@dataclass(frozen=True, slots=True, order=True)
class Vector:
    """How many workers of memory nodes hold a key, and how many of disk nodes.

    >>> Vector(3, 1).clamped(2, 5), Vector(2, 0).clamped(0, 5), Vector(0, 2).clamped(1, 0)
    (Vector(memory=2, disk=1), Vector(memory=0, disk=2), Vector(memory=1, disk=0))
    """

    memory: int
    disk: int = 0

    def __post_init__(self) -> None:
        bounded("number of copies in memory", self.memory, 0, OWNERS_MAX)
        bounded("number of copies on disk", self.disk, 0, OWNERS_MAX)

    def clamped(self, memory_workers: int, disk_workers: int) -> Vector:
        """Return what is left of it where there are so many workers of each tier.

        Where nothing would be, the tier that exists takes over the other's count: while there is any worker, a key
        has an owner.
        """
        memory, disk = min(self.memory, memory_workers), min(self.disk, disk_workers)
        if memory + disk == 0:
            memory, disk = min(self.disk, memory_workers), min(self.memory, disk_workers)
        return Vector(memory, disk)


DEFAULT: Final = Vector(0, 0)
"""Stands for the cluster's default, whatever that is."""


@dataclass(frozen=True, slots=True)
class OwnVector:
    """What the key at `position` is to have since `stamp`.

    `before` is the vector that it had until then, while its copies move, else None.
    """

    position: int
    stamp: int
    vector: Vector
    before: Vector | None = None

    def __post_init__(self) -> None:
        bounded("position of a key", self.position, 0, U64_MAX)
        bounded("stamp of a vector", self.stamp, 1, U64_MAX)

    @property
    def rank(self) -> tuple[int, bool, Vector, Vector]:
        """What decides between two records of one key."""
        return self.stamp, self.before is None, self.vector, self.before or DEFAULT

    @property
    def is_idle(self) -> bool:
        """Whether it only says that the key has the default."""
        return self.vector == DEFAULT and self.before is None

    def to_wire(self) -> list[int]:
        """Return plain data for msgpack."""
        before = [] if self.before is None else [self.before.memory, self.before.disk]
        return [self.position, self.stamp, self.vector.memory, self.vector.disk, *before]

    @classmethod
    def from_wire(cls, data: object) -> OwnVector:
        """Return the record that `to_wire` wrote. Raises ProtocolError."""
        numbers = [typed("number in a vector", n, int) for n in fields("vector", data, 4, 6)]
        position, stamp, memory, disk, *before = numbers
        former = built(Vector, *before) if before else None
        return built(cls, position, stamp, built(Vector, memory, disk), former)


@dataclass(frozen=True)
class Vectors:
    """How many copies keys have on disk by default, and the keys with a vector of their own, by ascending position."""

    disk_factor: int = 0
    disk_stamp: int = 0
    floor: int = 0
    own: tuple[OwnVector, ...] = ()

    def __post_init__(self) -> None:
        bounded("default number of copies on disk", self.disk_factor, 0, OWNERS_MAX)
        bounded("stamp of the default on disk", self.disk_stamp, 0, U64_MAX)
        bounded("floor of the vectors", self.floor, 0, U64_MAX)
        bounded("number of keys with a vector of their own", len(self.own), 0, OWN_VECTORS_BOUND)
        ascending("positions of keys", [o.position for o in self.own])
        if any(o.stamp <= self.floor for o in self.own):
            raise ValueError(f"a vector's stamp is not above the floor of the vectors, {self.floor:,}")

    @cached_property
    def moving(self) -> bool:
        """Whether copies of any key are on the move."""
        return any(o.before is not None for o in self.own)

    @cached_property
    def serving(self) -> dict[int, Vector]:
        """{position: vector} by which keys that have not the default are answered for."""
        found = {o.position: o.vector if o.before is None else o.before for o in self.own}
        return {position: vector for position, vector in found.items() if vector != DEFAULT}

    @cached_property
    def target(self) -> dict[int, Vector]:
        """{position: vector} by which keys that have not the default will be held when all moves are over."""
        return {o.position: o.vector for o in self.own if o.vector != DEFAULT}

    def join(self, other: Vectors) -> Vectors:
        """Return what both know together. Commutative, associative, idempotent."""
        if self == other:
            return self
        floor = max(self.floor, other.floor)
        stamp, disk = max((self.disk_stamp, self.disk_factor), (other.disk_stamp, other.disk_factor))
        own = {o.position: o for o in self.own}
        for theirs in other.own:
            mine = own.get(theirs.position)
            own[theirs.position] = theirs if mine is None else max(mine, theirs, key=lambda o: o.rank)
        return Vectors(disk, stamp, floor, _sorted(o for o in own.values() if o.stamp > floor))

    def changed(self, positions: Iterable[int], vector: Vector, stamp: int) -> Vectors:
        """Return the records after these keys were given a vector at `stamp` (DEFAULT: none of their own any more).

        Raises ValueTooLarge, with the numbers, when too many keys would have one.
        """
        own = {o.position: o for o in self.own}
        stamp = max(stamp, self.floor + 1, *(o.stamp + 1 for o in self.own))
        for position in positions:
            known = own.get(position, OwnVector(position, 1, DEFAULT))
            former = known.vector if known.before is None else known.before
            if vector != known.vector:
                own[position] = OwnVector(position, stamp, vector, None if former == vector else former)
        if len(own) <= OWN_VECTORS_MAX:
            return replace(self, own=_sorted(own.values()))
        floor, kept = _without_idle(own.values(), stamp)
        if len(kept) > OWN_VECTORS_MAX:
            what = f"{len(kept):,} keys would have a vector of their own, or had one lately"
            raise ValueTooLarge(f"{what}; own_vectors_max is {OWN_VECTORS_MAX:,}")
        return replace(self, floor=max(self.floor, floor), own=_sorted(kept))

    def settled(self) -> Vectors:
        """Return the records when all copies are where they are to be."""
        return replace(self, own=tuple(replace(o, before=None) for o in self.own))

    def to_wire(self) -> list[Any]:
        """Return plain data for msgpack, nothing where nothing was ever said."""
        said = [self.disk_factor, self.disk_stamp, self.floor, [o.to_wire() for o in self.own]]
        return said if any(said) else []

    @classmethod
    def from_wire(cls, data: list[Any]) -> Vectors:
        """Return the records that `to_wire` wrote. Raises ProtocolError."""
        if not data:
            return NO_VECTORS
        *numbers, own = data
        names = "default number of copies on disk", "stamp of the default on disk", "floor of the vectors"
        counts = (typed(name, number, int) for name, number in zip(names, numbers, strict=True))
        return built(cls, *counts, tuple(OwnVector.from_wire(o) for o in typed("vectors", own, list)))


def change_to_wire(keys: list[bytes], vector: Vector) -> bytes:
    """Return the payload of a request to give keys a vector."""
    return bytes(msgpack.packb([vector.memory, vector.disk, keys]))


def change_from_wire(payload: bytes) -> tuple[list[bytes], Vector]:
    """Return the keys and the vector that they are to be given. Raises ProtocolError."""
    try:
        memory, disk, keys = fields("change of vectors", msgpack.unpackb(payload), 3)
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"a change of vectors is no msgpack: {error}") from None
    names = [typed("key", key, bytes) for key in typed("keys", keys, list)]
    counts = (typed("number of copies", number, int) for number in (memory, disk))
    return names, built(Vector, *counts)


NO_VECTORS: Final = Vectors()
"""What is known where nobody has spoken of vectors."""


def _sorted(own: Iterable[OwnVector]) -> tuple[OwnVector, ...]:
    return tuple(sorted(own, key=lambda o: o.position))


def _without_idle(own: Iterable[OwnVector], stamp: int) -> tuple[int, list[OwnVector]]:
    """Return (floor, records) without what says nothing and has said so for long; what is below the floor is said anew.

    A record of the same age that nobody here has heard of by now is forgotten with it.
    """
    own = list(own)
    horizon = stamp - (OWN_VECTORS_FORGET_US << COUNTER_BITS)
    gone = [o for o in own if o.is_idle and o.stamp <= horizon]
    floor = max((o.stamp for o in gone), default=0)
    kept = (o for o in own if not (o.is_idle and o.stamp <= horizon))
    return floor, [replace(o, stamp=stamp) if o.stamp <= floor else o for o in kept]
