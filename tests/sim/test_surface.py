"""The checkers of times to live, comparing puts, scans and watchers find what is wrong, and not what is right."""

from __future__ import annotations

from dataclasses import replace

from tests.sim.history import FAIL, OK, REGISTER, SET, WATCHED, WATCHERS, Entry, History, Losses, Scan
from tests.sim.surface import judge_surface, lingering
from tests.sim.test_checkers import EPOCH, final, read, write

LIFE = 1_000_000
LATE = 10_000_000_000
"""A moment at which everything that was to end has."""


def found(
    *entries: Entry, scans: list[Scan] | None = None, watched: list[tuple[int, str]] | None = None, steady: bool = True
) -> list[str]:
    history = History(
        Losses(factor=1), EPOCH, list(entries), scans=scans or [], watched=watched or [], steady=steady
    )
    return sorted({violation.checker for violation in judge_surface(history)})


def last(type: str, seen: set[int] | None, stamp: int = 0) -> Entry:
    return replace(final(type, seen, stamp=stamp), invoked=LATE, ended=LATE + 1)


def scan(*keys: str, at: int = 20, operation: int = 0) -> Scan:
    return Scan(operation, 9, "", 1000, at, at + 1, OK, list(keys))


def test_what_has_outlived_its_time_is_found_and_what_was_written_later_may_stay() -> None:
    short = replace(write(REGISTER, 1, 10), ttl=LIFE)
    assert found(short, last(REGISTER, None)) == []
    assert found(short, last(REGISTER, {1}, stamp=10)) == ["outlived-its-time"]
    assert found(short, write(REGISTER, 2, 30), last(REGISTER, {2}, stamp=30)) == []


def test_a_set_ends_with_its_last_write() -> None:
    before, short = write(SET, 1, 10), replace(write(SET, 2, 300), ttl=LIFE)
    assert found(before, short, last(SET, None)) == []
    assert found(before, short, last(SET, {1})) == ["outlived-its-time"]
    assert found(before, short, write(SET, 3, 500), last(SET, {1, 2, 3})) == []


def test_what_nobody_was_told_to_be_over_may_still_be_there() -> None:
    short = replace(write(REGISTER, 1, 10), ttl=2 * LATE)
    assert found(short, last(REGISTER, {1}, stamp=10)) == []
    assert found(replace(short, ttl=LIFE, outcome="unknown"), last(REGISTER, {1}, stamp=10)) == []


def test_two_that_replaced_the_same_are_found_where_one_owner_decides() -> None:
    first = replace(write(REGISTER, 1, 10), key="rk0", compared=5)
    second = replace(write(REGISTER, 2, 12, client=1), key="rk0", compared=5)
    assert found(first, second) == ["compared-twice"]
    assert found(first, replace(second, outcome=FAIL)) == []
    assert found(first, replace(second, compared=10)) == []
    assert found(first, second, steady=False) == []


def test_a_put_that_compared_is_later_than_what_it_replaced() -> None:
    assert found(replace(write(REGISTER, 1, 10), key="rk0", compared=10)) == ["compared-with-later"]


def test_a_scan_gives_what_was_written_once_and_in_order() -> None:
    one, two = replace(write(SET, 1, 10), key="sa"), replace(write(SET, 1, 12), key="sb")
    assert found(one, two, scans=[scan("sa", "sb")]) == []
    assert found(one, two, scans=[scan("sb", "sa")]) == ["scan-out-of-order"]
    assert found(one, two, scans=[scan("sa", "sa")]) == ["scan-out-of-order"]
    assert found(one, scans=[scan("sa", "sc")]) == ["scan-made-up"]


def test_a_scan_after_healing_gives_just_what_is_there() -> None:
    entries = write(SET, 1, 10), final(SET, {1})
    assert found(*entries, scans=[scan("s", at=20_000, operation=-1)]) == []
    assert found(*entries, scans=[scan(at=20_000, operation=-1)]) == ["scan-differs"]
    assert found(write(SET, 1, 10), final(SET, None), scans=[scan("s", at=20_000, operation=-1)]) == ["scan-differs"]
    failed = replace(scan(at=20_000, operation=-1), outcome=FAIL)
    assert found(*entries, scans=[failed]) == ["unavailable-after-healing"]


def test_a_watcher_is_shown_in_the_end_what_its_client_reads() -> None:
    shown = replace(read(SET, {1}, 20, client=WATCHERS + 9), operation=WATCHED)
    entries = write(SET, 1, 10), write(SET, 2, 30), final(SET, {1, 2})
    assert found(*entries, shown, watched=[(9, "s")]) == ["watcher-behind"]
    assert found(*entries, watched=[(9, "s")]) == ["watcher-behind"]
    later = replace(shown, seen=frozenset({1, 2}), ended=40)
    assert found(*entries, shown, later, watched=[(9, "s")]) == []


def test_what_nobody_finds_is_held_by_nobody() -> None:
    history = History(Losses(factor=1), EPOCH, [write(SET, 1, 10), final(SET, None)])
    assert [violation.checker for violation in lingering(history, {"s": {7: b"state", 8: b""}})] == ["held-on"]
    assert list(lingering(history, {"s": {7: b"", 8: b""}})) == []
    there = History(Losses(factor=1), EPOCH, [write(SET, 1, 10), final(SET, {1})])
    assert list(lingering(there, {"s": {7: b"state", 8: b"state"}})) == []
