"""The watchdog: interrupts at the deadline plus a grace, kills if that does not help, and never the wrong call."""

from __future__ import annotations

from cloudburst.messages import Interrupt, Kill, Watch
from cloudburst.watchdog import Watchdog

GRACE, KILL, LOOK = 500, 200, 10_000
A, B = (1, 1), (1, 2)


def watchdog() -> Watchdog:
    return Watchdog(GRACE, KILL, LOOK)


def test_call_is_looked_at_again_when_its_time_is_up() -> None:
    dog = watchdog()
    assert dog.see(0, True, A, 1_000, 100) == [Watch(0, 1_500)]
    assert dog.next_look_us == 1_500
    assert dog.due(1_499) == []
    assert dog.due(1_500) == [0]


def test_call_with_a_late_deadline_is_looked_at_now_and_then() -> None:
    dog = watchdog()
    assert dog.see(0, True, A, 1_000_000, 100) == [Watch(0, 100 + LOOK)]


def test_call_past_its_deadline_is_interrupted_and_then_killed() -> None:
    dog = watchdog()
    dog.see(0, True, A, 1_000, 100)
    assert dog.see(0, True, A, 1_000, 1_500) == [Watch(0, 1_700), Interrupt(0, A)]
    dog.check()
    assert dog.see(0, True, A, 1_000, 1_700) == [Watch(0, 0), Kill(0)]
    assert dog.killed[0] == A
    assert dog.next_look_us is None


def test_call_that_obeys_the_interrupt_is_not_killed() -> None:
    dog = watchdog()
    dog.see(0, True, A, 1_000, 1_500)
    assert dog.see(0, False, A, 1_000, 1_700) == [Watch(0, 0)]
    assert dog.next_look_us is None


def test_next_call_does_not_pay_for_the_one_before() -> None:
    dog = watchdog()
    dog.see(0, True, A, 1_000, 1_500)
    assert dog.see(0, True, B, 9_000, 1_700) == [Watch(0, 9_500)]


def test_cancelled_call_that_goes_on_is_interrupted_long_before_its_deadline() -> None:
    dog = watchdog()
    assert dog.stop(0, A, 100) == [Watch(0, 300)]
    assert dog.see(0, True, A, 1_000_000, 300) == [Watch(0, 500), Interrupt(0, A)]
    assert dog.see(0, True, A, 1_000_000, 500) == [Watch(0, 0), Kill(0)]


def test_cancel_of_a_call_that_is_over_does_nothing_to_its_successor() -> None:
    dog = watchdog()
    dog.stop(0, A, 100)
    assert dog.see(0, True, B, 1_000_000, 300) == [Watch(0, 300 + LOOK)]


def test_second_cancel_does_not_put_off_the_end() -> None:
    dog = watchdog()
    dog.stop(0, A, 100)
    dog.stop(0, A, 250)
    assert dog.next_look_us == 300
    dog.see(0, True, A, 1_000_000, 300)
    dog.stop(0, A, 400)
    assert dog.next_look_us == 500


def test_executor_that_ended_is_forgotten() -> None:
    dog = watchdog()
    dog.see(0, True, A, 1_000, 100)
    assert dog.forget(0) == [Watch(0, 0)]
    assert dog.forget(0) == []
    assert dog.next_look_us is None
