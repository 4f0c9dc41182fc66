"""The restart rule, without a clock."""

from __future__ import annotations

from anna.backoff import PAUSE_MAX_S, RAN_WELL_S, Backoff


def test_first_crash_is_restarted_at_once() -> None:
    seat = Backoff()
    seat.started(100.0)
    assert seat.crashed(100.01) == 0.0


def test_a_crash_loop_waits_twice_as_long_each_time_up_to_the_bound() -> None:
    seat, now, pauses = Backoff(), 0.0, []
    for _ in range(10):
        seat.started(now)
        pauses.append(seat.crashed(now + 0.01))
        now += 0.01 + pauses[-1]
    assert pauses == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


def test_a_worker_that_ran_well_has_its_crashes_forgotten() -> None:
    seat = Backoff()
    for now in (0.0, 1.0, 2.0):
        seat.started(now)
        seat.crashed(now + 0.1)
    seat.started(3.0)
    assert seat.crashed(3.0 + RAN_WELL_S) == 0.0
    assert seat.crashes == 1


def test_a_hundred_thousand_crashes_do_not_overflow() -> None:
    seat = Backoff()
    assert {seat.crashed(0.0) for _ in range(100_000)} <= {0.0, PAUSE_MAX_S} | {0.1 * 2.0**n for n in range(6)}
