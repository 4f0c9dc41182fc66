"""What waits for results: complete exactly once, in the order of positions, whatever comes early, twice or late."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudburst.errors import Cancelled, FunctionTimeout, Overloaded
from cloudburst.executor.joins import Input, Joins
from cloudburst.executor.queue import Call


def stage(low: int = 1, lane: int = 1, deadline_us: int = 1000, payload: bytes = b"") -> Call:
    return Call(lane, low, b"f", 1, 9, low, deadline_us, 0, b"", payload)


def result(text: str) -> Input:
    return Input(text.encode())


@given(st.permutations([None, 0, 0, 1, 1, 2]))
def test_a_stage_is_complete_once_with_its_inputs_in_the_order_of_positions(order: list[int | None]) -> None:
    joins = Joins()
    complete = []
    for one in order:
        if one is None:
            found = joins.announce(stage(), 3, 3, 0)
            assert found is None or isinstance(found, Call)
            complete += [found] if isinstance(found, Call) else []
        else:
            arrived = joins.arrive((9, 1), one, result(f"r{one}"), 1000, 0)
            complete += [arrived[0]] if arrived is not None else []
        joins.check()
    assert [call.inputs for call in complete] == [(result("r0"), result("r1"), result("r2"))]
    assert len(joins) == 0


def test_the_first_result_is_enough_for_a_stage_that_takes_any() -> None:
    joins = Joins()
    assert joins.announce(stage(), 3, 1, 0) is None
    arrived = joins.arrive((9, 1), 2, result("third"), 1000, 0)
    assert arrived is not None
    assert arrived[0].inputs == (result("third"),)
    assert joins.arrive((9, 1), 0, result("late"), 1000, 0) is None
    joins.check()


def test_a_position_that_the_stage_does_not_have_is_dropped() -> None:
    joins = Joins()
    assert joins.arrive((9, 1), 5, result("early"), 1000, 0) is None
    assert joins.announce(stage(), 2, 2, 0) is None
    assert joins.arrive((9, 1), 7, result("x"), 1000, 0) is None
    joins.check()
    assert joins.arrive((9, 1), 0, result("a"), 1000, 0) is None
    assert joins.arrive((9, 1), 1, result("b"), 1000, 0) is not None


def test_what_came_for_a_stage_that_nobody_announced_is_forgotten_at_its_deadline() -> None:
    joins = Joins(bytes_max=10)
    assert joins.arrive((9, 1), 0, result("12345678"), 100, 0) is None
    assert joins.arrive((9, 2), 0, result("1234"), 200, 150) is None
    joins.check()
    assert joins.expire(250) == []
    assert joins.next_deadline_us is None


def test_a_stage_that_waits_too_long_says_how_much_had_come() -> None:
    joins = Joins()
    joins.announce(stage(deadline_us=100), 3, 3, 0)
    joins.arrive((9, 1), 1, result("x"), 100, 0)
    assert joins.expire(99) == []
    [(call, fault)] = joins.expire(100)
    assert call.low == 1
    assert isinstance(fault, FunctionTimeout)
    assert fault.definite
    assert "had 1 of the 3 results" in str(fault)
    joins.check()


def test_a_cancelled_stage_is_not_begun_by_results_that_come_later() -> None:
    joins = Joins()
    joins.announce(stage(), 1, 1, 0)
    cancelled = joins.cancel(1, 1)
    assert cancelled is not None
    assert isinstance(cancelled[1], Cancelled)
    assert joins.arrive((9, 1), 0, result("x"), 1000, 0) is None
    assert joins.cancel(1, 1) is None
    joins.check()


def test_who_leaves_takes_along_all_that_waits_for_it() -> None:
    joins = Joins()
    joins.announce(stage(1, lane=1), 1, 1, 0)
    joins.announce(stage(2, lane=2), 1, 1, 0)
    joins.leave(1)
    joins.check()
    assert len(joins) == 1
    assert joins.arrive((9, 2), 0, result("x"), 1000, 0) is not None
    assert joins.arrive((9, 1), 0, result("x"), 1000, 0) is None


def test_a_full_table_refuses_more_and_says_how_much_there_is() -> None:
    joins = Joins(calls_max=1, bytes_max=10)
    assert joins.announce(stage(1), 2, 2, 0) is None
    refused = joins.announce(stage(2), 2, 2, 0)
    assert isinstance(refused, Overloaded)
    assert refused.definite
    assert "join_calls_max is 1" in str(refused)
    assert joins.arrive((9, 1), 0, result("12345678"), 1000, 0) is None
    arrived = joins.arrive((9, 1), 1, result("12345678"), 1000, 0)
    assert arrived is not None
    assert isinstance(arrived[1], Overloaded)
    joins.check()
    assert len(joins) == 0


def test_a_stage_whose_result_found_no_room_is_refused_when_it_is_announced() -> None:
    joins = Joins(bytes_max=4)
    assert joins.arrive((9, 1), 0, result("12345678"), 1000, 0) is None
    assert isinstance(joins.announce(stage(), 1, 1, 0), Overloaded)
    joins.check()


@pytest.mark.parametrize("payload", [None, b""])
def test_none_is_a_result(payload: bytes | None) -> None:
    joins = Joins()
    joins.announce(stage(), 1, 1, 0)
    arrived = joins.arrive((9, 1), 0, Input(payload), 1000, 0)
    assert arrived is not None
    assert arrived[0].inputs == (Input(payload),)
