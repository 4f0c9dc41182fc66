"""Hybrid logical clocks: greater than all before, close to wall time, never pulled far by a client."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from anna.config import STAMP_AHEAD_MAX_US
from anna.kvs.clock import Clock

events = st.lists(
    st.one_of(
        st.tuples(st.just("now"), st.integers(-1_000_000, 1_000_000)),
        st.tuples(st.just("see"), st.integers(-(10**9), 10**9)),
    ),
    max_size=50,
)


@given(events)
def test_stamps_rise_and_pass_what_was_seen(history: list[tuple[str, int]]) -> None:
    """Source: Kulkarni et al. 2014, theorem 1; D03 (stamps whose scale hung on the writer's number)."""
    clock, monotonic, greatest = Clock(10**12, 0), 0, 0
    for event, number in history:
        if event == "now":
            monotonic += number  # A clock that goes back is a reader's mistake; stamps rise all the same.
            stamp = clock.now(monotonic)
            assert stamp > greatest
            greatest = stamp
        elif clock.see(seen := max((10**12 + number) << 10, 0)):
            greatest = max(greatest, seen)
    assert clock.now(monotonic) > greatest


def test_stamp_is_wall_time_since_2020_and_a_counter() -> None:
    clock = Clock(5_000_000, 100)
    assert clock.now(100) == 5_000_000 << 10
    assert clock.now(100) == (5_000_000 << 10) + 1
    assert clock.now(350) == 5_000_250 << 10


def test_counter_carries_into_the_microseconds() -> None:
    clock = Clock(7, 0)
    stamps = [clock.now(0) for _ in range(1025)]
    assert stamps[-1] == 8 << 10


def test_limit_of_belief_is_exact() -> None:
    assert Clock(1000, 0).see((1000 + STAMP_AHEAD_MAX_US) << 10)
    assert not Clock(1000, 0).see((1000 + STAMP_AHEAD_MAX_US + 1) << 10)


def test_a_refused_stamp_moves_nothing() -> None:
    clock = Clock(1000, 0)
    clock.see(2**63 - 1)
    assert clock.now(0) == 1000 << 10
