"""The checkers find what is planted in a history, and nothing in a history that is right."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim.checkers import judge, unequal
from tests.sim.history import (
    COUNTER,
    DELETE,
    FAIL,
    FINAL,
    GET,
    OK,
    OPEN,
    ORSET,
    PUT,
    REGISTER,
    REMOVE,
    REPLICATE,
    SET,
    UNKNOWN,
    Entry,
    History,
    Losses,
)

EPOCH = 100
PREFIX = {REGISTER: "r", SET: "s", COUNTER: "c", ORSET: "o"}


def history(*entries: Entry, losses: Losses | None = None) -> History:
    return History(losses or Losses(factor=2), EPOCH, list(entries))


def write(
    type: str, value: int, at: int, *, stamp: int = 0, client: int = 0, outcome: str = OK, worker: int = 0
) -> Entry:
    stamp = stamp or at
    entry = Entry(at, client, PUT, PREFIX[type], type, value, 1000, at, at + 1, outcome, low=stamp - 1, high=stamp)
    return replace(entry, exact=outcome == OK, copies=1, worker=worker)


def read(type: str, seen: set[int] | None, at: int, *, client: int = 0, stamp: int = 0, operation: int = 0) -> Entry:
    found = None if seen is None else frozenset(seen)
    return Entry(operation, client, GET, PREFIX[type], type, 0, 1000, at, at + 1, OK, seen=found, stamp=stamp)


def final(type: str, seen: set[int] | None, *, stamp: int = 0) -> Entry:
    return read(type, seen, 10_000, client=9, stamp=stamp, operation=FINAL)


def found(*entries: Entry, losses: Losses | None = None) -> list[str]:
    return sorted({violation.checker for violation in judge(history(*entries, losses=losses))})


@pytest.mark.parametrize("type", [SET, COUNTER, ORSET])
def test_a_right_history_passes(type: str) -> None:
    entries = [write(type, 1, 10), read(type, {1}, 20), write(type, 2, 30, client=1), final(type, {1, 2})]
    assert found(*entries) == []


def test_a_later_register_may_hide_an_earlier_one() -> None:
    assert found(write(REGISTER, 1, 10), write(REGISTER, 2, 30), final(REGISTER, {2}, stamp=30)) == []


def test_an_acknowledged_write_that_is_gone_is_lost() -> None:
    assert found(write(SET, 1, 10), final(SET, set())) == ["lost-write"]
    assert found(write(SET, 1, 10), final(SET, None)) == ["lost-write"]
    later = write(REGISTER, 2, 30)
    assert found(write(REGISTER, 1, 10), later, final(REGISTER, {1}, stamp=10)) == ["lost-write"]


def test_a_write_of_unknown_outcome_may_be_there_or_not() -> None:
    unknown = write(SET, 1, 10, outcome=UNKNOWN)
    assert found(unknown, final(SET, {1})) == []
    assert found(unknown, final(SET, None)) == []


def test_a_crash_excuses_as_many_copies_as_it_took() -> None:
    one, two = write(SET, 1, 10), replace(write(SET, 2, 10), copies=2)
    crashed = Losses(factor=2, crashes=[50])
    assert found(one, two, final(SET, {2}), losses=crashed) == []
    assert found(one, two, final(SET, set()), losses=crashed) == ["lost-write"]
    assert found(one, two, final(SET, set()), losses=Losses(2, crashes=[50, 60])) == []


def test_crashes_apart_by_a_restored_redundancy_do_not_add_up() -> None:
    two = replace(write(SET, 2, 10), copies=2)
    assert found(two, final(SET, set()), losses=Losses(2, [50, 70], restored=[(50, 60)])) == ["lost-write"]


def test_what_was_written_while_copies_were_made_up_for_need_not_have_all_of_its_own() -> None:
    one = write(SET, 1, 55)
    losses = Losses(2, [50, 70], restored=[(50, 60)])
    assert found(one, final(SET, set()), losses=losses) == []
    assert found(one, final(SET, set()), losses=replace(losses, restored=[(56, 60)])) == ["lost-write"]


def test_a_crash_before_the_write_excuses_nothing() -> None:
    assert found(write(SET, 1, 10), final(SET, set()), losses=Losses(2, crashes=[5])) == ["lost-write"]


def test_the_copies_of_a_node_that_was_left_alone_die_together() -> None:
    two = replace(write(SET, 2, 10), copies=2)
    alone = Losses(2, crashes=[50], seats=2, at_hand=[(0, 2), (8, 1), (15, 1), (30, 2)])
    assert found(two, final(SET, set()), losses=alone) == []
    assert found(two, final(SET, set()), losses=replace(alone, restored=[(30, 40)])) == ["lost-write"]
    assert found(two, final(SET, set()), losses=replace(alone, seats=1)) == ["lost-write"]
    assert found(two, final(SET, set()), losses=replace(alone, at_hand=[(0, 2), (15, 2), (30, 1)])) == ["lost-write"]
    three = replace(two, copies=3)
    assert found(three, final(SET, set()), losses=alone) == ["lost-write"]


def test_who_gives_a_key_fewer_copies_gives_up_what_the_others_held() -> None:
    losses = Losses(factor=3, crashes=[500])
    kept = replace(write(SET, 1, 10), copies=3)
    fewer = replace(write(SET, 1, 300), kind=REPLICATE)
    assert found(kept, final(SET, None), losses=losses) == ["lost-write"]
    assert found(kept, fewer, final(SET, None), losses=losses) == []
    assert found(kept, replace(fewer, outcome=FAIL), final(SET, None), losses=losses) == ["lost-write"]
    assert found(kept, replace(fewer, value=2), final(SET, None), losses=losses) == ["lost-write"]


def test_who_has_heard_that_a_key_is_to_have_fewer_copies_counts_no_more() -> None:
    losses = Losses(factor=3, crashes=[500])
    fewer = replace(write(SET, 1, 100), kind=REPLICATE)
    later = replace(write(SET, 1, 300), copies=3)
    assert found(fewer, later, final(SET, None), losses=losses) == []
    assert found(fewer, later, final(SET, None), losses=replace(losses, vectors_known=[99, 302])) == []
    assert found(fewer, later, final(SET, None), losses=replace(losses, vectors_known=[200])) == ["lost-write"]


def test_only_a_wiped_disk_excuses_a_durable_write() -> None:
    durable = replace(write(SET, 1, 10), durable=1)
    assert found(durable, final(SET, set()), losses=Losses(2, [50, 60])) == ["lost-write"]
    assert found(durable, final(SET, set()), losses=Losses(2, [50], wipes=[50])) == []


def test_what_only_a_node_that_is_called_dead_has_is_missed_until_it_is_back() -> None:
    """Its copies are not lost, so the last reads have to find them."""
    away = Losses(factor=2, away={7: [[15, 40]]})
    one, two = write(SET, 1, 10), replace(write(SET, 2, 10), copies=2)
    assert found(one, read(SET, set(), 20), final(SET, {1}), losses=away) == []
    assert found(one, read(SET, {1}, 20), final(SET, set()), losses=away) == ["lost-write"]
    assert found(two, read(SET, set(), 20), final(SET, {2}), losses=away) == ["own-write-unseen"]
    assert found(write(SET, 1, 50), read(SET, set(), 60), final(SET, {1}), losses=away) == ["own-write-unseen"]


def test_what_nobody_wrote_and_what_was_refused_must_not_be_read() -> None:
    assert found(read(SET, {7}, 20)) == ["made-up"]
    assert found(write(SET, 1, 50), read(SET, {1}, 20, client=1)) == ["made-up"]
    assert found(write(SET, 1, 10, outcome=FAIL), read(SET, {1}, 20)) == ["refused-write-seen"]


def test_an_increment_counts_once() -> None:
    twice = replace(read(COUNTER, {1}, 20), repeats=(1,))
    assert found(write(COUNTER, 1, 10), twice) == ["counted-twice"]


def test_a_client_reads_its_own_writes_and_not_at_once_those_of_others() -> None:
    assert found(write(SET, 1, 10), read(SET, set(), 20)) == ["own-write-unseen"]
    assert found(write(SET, 1, 10), read(SET, set(), 20, client=1)) == []


def test_a_client_never_reads_less_than_before() -> None:
    theirs = write(SET, 1, 10, client=1)
    assert found(theirs, read(SET, {1}, 20), read(SET, set(), 30)) == ["read-went-back"]
    older = [write(REGISTER, 1, 10, client=1), write(REGISTER, 2, 12, client=1)]
    back = [read(REGISTER, {2}, 20, stamp=12), read(REGISTER, {1}, 30, stamp=10)]
    assert found(*older, *back) == ["read-went-back"]


def test_what_was_deleted_stays_deleted() -> None:
    delete = replace(write(SET, 0, 500), kind=DELETE)
    assert found(write(SET, 1, 10), delete, final(SET, set())) == []
    assert found(write(SET, 1, 10), delete, final(SET, {1})) == ["delete-undone"]
    later = write(SET, 2, 700)
    assert found(write(SET, 1, 10), delete, later, final(SET, {2})) == []
    assert found(write(SET, 1, 10), delete, later, final(SET, set())) == ["lost-write"]


def test_a_deletion_of_unknown_outcome_excuses_a_missing_write() -> None:
    delete = replace(write(SET, 0, 500, outcome=UNKNOWN), kind=DELETE)
    assert found(write(SET, 1, 10), delete, final(SET, None)) == []


def test_an_element_removed_where_it_was_added_stays_removed() -> None:
    add, remove = write(ORSET, 1, 10, worker=5), replace(write(ORSET, 1, 30, worker=5), kind=REMOVE)
    unaware = replace(remove, worker=6)
    assert found(add, final(ORSET, {1})) == []
    assert found(add, unaware, final(ORSET, {1})) == []
    assert found(add, remove, final(ORSET, {1})) == ["remove-undone"]
    assert found(add, remove, final(ORSET, set())) == []


def test_every_call_ends_in_time() -> None:
    late = replace(read(SET, None, 20), ended=20 + 1000 + 600_000_000)
    assert found(late) == ["too-late"]
    assert found(replace(late, outcome=OPEN)) == ["no-end"]
    assert found(replace(final(SET, None), outcome=FAIL)) == ["unavailable-after-healing"]


def test_replicas_that_differ_are_named() -> None:
    assert [v.checker for v in unequal({"a": {1: b"x", 2: b"x"}, "b": {1: b"x", 2: b"y"}})] == ["replicas-differ"]
