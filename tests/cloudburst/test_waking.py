"""What futures' waiters sleep on: it behaves as `threading.Condition` does, as far as anybody uses it."""

from __future__ import annotations

import concurrent.futures
import threading

import pytest

from cloudburst.waking import Waking

PATIENCE_S = 20.0


def asleep(waking: Waking, count: int, outcomes: list[bool]) -> list[threading.Thread]:
    """Return threads that sleep on it."""
    ready = threading.Semaphore(0)

    def sleep() -> None:
        with waking:
            ready.release()
            outcomes.append(waking.wait(PATIENCE_S))

    threads = [threading.Thread(target=sleep) for _ in range(count)]
    for thread in threads:
        thread.start()
        assert ready.acquire(timeout=PATIENCE_S)
    return threads


def test_all_that_sleep_are_woken_and_later_ones_sleep_on() -> None:
    waking, outcomes = Waking(), list[bool]()
    threads = asleep(waking, 3, outcomes)
    with waking:  # the last of them has let go of the lock, so all three sleep
        waking.notify_all()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert outcomes == [True, True, True]
    with waking:
        assert not waking.wait(0.0)


def test_a_sleep_that_ends_by_itself_says_so_and_holds_the_lock_as_often_as_before() -> None:
    waking = Waking()
    with waking, waking:
        assert not waking.wait(0.001)
        others = concurrent.futures.ThreadPoolExecutor(1)
        with others:
            assert not others.submit(waking._lock.acquire, False).result(PATIENCE_S)
        waking.notify_all()  # nobody sleeps: the one whose time was over is forgotten
    with pytest.raises(RuntimeError):
        waking.release()


def test_the_lock_is_free_while_somebody_sleeps() -> None:
    waking, outcomes = Waking(), list[bool]()
    (thread,) = asleep(waking, 1, outcomes)
    assert waking.acquire()
    assert outcomes == []
    waking.notify_all()
    waking.release()
    thread.join(PATIENCE_S)
    assert outcomes == [True]
