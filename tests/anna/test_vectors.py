"""Replication vectors: what is left of one where there are few workers, and which keys have one of their own."""

from __future__ import annotations

import re
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anna import config
from anna.errors import ProtocolError, ValueTooLarge
from anna.messages import View
from anna.vectors import DEFAULT, OwnVector, Vector, Vectors

COPIES = st.integers(0, 3)
VECTORS = st.builds(Vector, COPIES, COPIES)
LONG_US = config.OWN_VECTORS_FORGET_US


@st.composite
def records(draw: st.DrawFn) -> Vectors:
    """Draw what somebody knows of a few keys' vectors."""
    floor = draw(st.integers(0, 2))
    positions = sorted(draw(st.sets(st.integers(0, 3))))
    stamps = st.integers(floor + 1, 5)
    own = (OwnVector(p, draw(stamps), draw(VECTORS), draw(st.none() | VECTORS)) for p in positions)
    return Vectors(draw(COPIES), draw(st.integers(0, 3)), floor, tuple(own))


# -- what is left of a vector


@given(VECTORS, st.integers(0, 5), st.integers(0, 5))
def test_a_vector_is_clamped_to_the_workers_of_each_tier(vector: Vector, memory: int, disk: int) -> None:
    """D14: a factor above the number of nodes is clamped to what exists. D32: also where a tier does not exist."""
    left = vector.clamped(memory, disk)
    assert left.memory <= memory
    assert left.disk <= disk
    assert left.clamped(memory, disk) == left
    if min(vector.memory, memory) + min(vector.disk, disk) > 0:
        assert left == Vector(min(vector.memory, memory), min(vector.disk, disk))


@given(VECTORS, st.integers(0, 5), st.integers(0, 5))
def test_a_key_has_an_owner_while_there_is_any_worker(vector: Vector, memory: int, disk: int) -> None:
    left = vector.clamped(memory, disk)
    assert (left.memory + left.disk > 0) == (memory + disk > 0 and vector != DEFAULT)


@given(VECTORS, st.integers(0, 5), st.integers(0, 5))
def test_where_one_tier_is_missing_the_other_takes_over_its_count(vector: Vector, memory: int, disk: int) -> None:
    if vector.memory and not vector.disk and not memory:
        assert vector.clamped(memory, disk) == Vector(0, min(vector.memory, disk))
    if vector.disk and not vector.memory and not disk:
        assert vector.clamped(memory, disk) == Vector(min(vector.disk, memory), 0)


@pytest.mark.parametrize("copies", [(17, 0), (0, 17), (-1, 0), (0, -1)])
def test_a_vector_is_bounded(copies: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"number of copies .* it must be 0 to 16"):
        Vector(*copies)


# -- the lattice


@given(records(), records())
def test_join_is_commutative(one: Vectors, other: Vectors) -> None:
    assert one.join(other) == other.join(one)


@given(records(), records(), records())
def test_join_is_associative(one: Vectors, two: Vectors, three: Vectors) -> None:
    assert one.join(two).join(three) == one.join(two.join(three))


@given(records())
def test_join_is_idempotent(known: Vectors) -> None:
    assert known.join(known) == known
    assert known.join(Vectors()) == known


@given(records())
def test_records_survive_the_wire(known: Vectors) -> None:
    sent = msgpack.unpackb(msgpack.packb(known.to_wire()))
    assert Vectors.from_wire(sent) == known
    assert (sent == []) == (known == Vectors())


@given(records(), st.sets(st.integers(0, 3)), VECTORS)
def test_what_is_changed_wins_over_all_that_was_known(known: Vectors, positions: set[int], vector: Vector) -> None:
    after = known.changed(positions, vector, 1)
    assert after.join(known) == known.join(after) == after
    assert all(after.target.get(position, DEFAULT) == vector for position in positions)


@given(records())
def test_that_copies_have_moved_wins_over_that_they_move(known: Vectors) -> None:
    assert known.join(known.settled()) == known.settled()
    assert not known.settled().moving
    assert known.settled().serving == known.settled().target == known.target


def test_the_later_default_on_disk_wins() -> None:
    assert Vectors(2, 5).join(Vectors(1, 6)) == Vectors(1, 6)


# -- changes


def test_who_has_a_key_answers_for_it_until_its_copies_have_moved() -> None:
    known = Vectors().changed([7], Vector(3), 9)
    assert (known.serving, known.target, known.moving) == ({}, {7: Vector(3)}, True)
    known = known.settled()
    assert (known.serving, known.target, known.moving) == ({7: Vector(3)}, {7: Vector(3)}, False)
    known = known.changed([7], Vector(0, 1), 10)
    assert (known.serving, known.target) == ({7: Vector(3)}, {7: Vector(0, 1)})


def test_a_key_that_is_changed_again_meanwhile_is_answered_for_as_before() -> None:
    known = Vectors().changed([7], Vector(3), 9).settled().changed([7], Vector(0, 1), 10).changed([7], Vector(5), 11)
    assert (known.serving, known.target) == ({7: Vector(3)}, {7: Vector(5)})


def test_a_change_that_is_taken_back_in_time_moves_nothing() -> None:
    known = Vectors().changed([7], Vector(3), 9).changed([7], DEFAULT, 10)
    assert not known.moving
    assert known.serving == known.target == {}


def test_what_a_key_has_already_is_no_change() -> None:
    known = Vectors().changed([7], Vector(3), 9)
    assert known.changed([7], Vector(3), 12) == known
    assert Vectors().changed([7], DEFAULT, 12) == Vectors()


def test_more_keys_than_may_be_are_refused_with_the_numbers() -> None:
    full = Vectors().changed(range(config.OWN_VECTORS_MAX), Vector(2), 5)
    assert full.changed([3], Vector(1), 6).target[3] == Vector(1)
    with pytest.raises(ValueTooLarge, match=r"^4,097 keys would have .*; own_vectors_max is 4,096$"):
        full.changed([10**6], Vector(2), 6)


def test_keys_that_have_the_default_again_make_room_after_a_while() -> None:
    """A record that says so is needed for as long as an older one may be on its way."""
    full = Vectors().changed(range(config.OWN_VECTORS_MAX), Vector(2), 5).settled()
    back = full.changed(range(10), DEFAULT, 6).settled()
    with pytest.raises(ValueTooLarge):
        back.changed([10**6], Vector(2), 7)
    after = back.changed([10**6], Vector(2), 6 + (LONG_US << 10))
    assert len(after.own) == config.OWN_VECTORS_MAX - 10 + 1
    assert after.target == {**{p: Vector(2) for p in range(10, config.OWN_VECTORS_MAX)}, 10**6: Vector(2)}
    assert after.join(back) == after.join(full) == after, "what was forgotten does not come back"


# -- in a view


def test_a_view_knows_how_many_copies_keys_have_of_what_serves() -> None:
    view = View(1, (), 2)
    assert (view.copies_least, view.copies_most) == (0, 0)
    assert view.vector_at(7) == view.default == Vector(2, 0)
    assert replace(view, vectors=Vectors(disk_factor=1)).default == Vector(2, 1)


WIRE = [1, [], 1, 0]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ([*WIRE, 0, 0, 0], "a view has 4 or 8 fields, got 7"),
        ([*WIRE, 17, 0, 0, []], "default number of copies on disk is 17; it must be 0 to 16"),
        ([*WIRE, 0, -1, 0, []], "stamp of the default on disk is -1"),
        ([*WIRE, 0, 0, "0", []], "floor of the vectors must be int, got str"),
        ([*WIRE, 0, 0, 0, {}], "vectors must be list, got dict"),
        ([*WIRE, 0, 0, 0, [[1, 2, 3]]], "a vector has 4 or 6 fields, got 3"),
        ([*WIRE, 0, 0, 0, [[1, 2, 3, 17]]], "number of copies on disk is 17"),
        ([*WIRE, 0, 0, 0, [[1, 2, 3, 1, 99, 0]]], "number of copies in memory is 99"),
        ([*WIRE, 0, 0, 0, [[1, 0, 3, 1]]], "stamp of a vector is 0"),
        ([*WIRE, 0, 0, 0, [[-1, 1, 3, 1]]], "position of a key is -1"),
        ([*WIRE, 0, 0, 0, [[1, 1, 3, True]]], "number in a vector must be int, got bool"),
        ([*WIRE, 0, 0, 0, [[2, 1, 3, 1], [1, 1, 3, 1]]], "positions of keys must ascend"),
        ([*WIRE, 0, 0, 5, [[1, 5, 3, 1]]], "a vector's stamp is not above the floor of the vectors, 5"),
    ],
)
def test_vectors_that_are_none_are_refused_with_the_reason(data: object, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=re.escape(complaint)):
        View.from_wire(data)
