"""What each answer means to a caller, and how often a call is begun (P19)."""

from __future__ import annotations

from typing import Any

import pytest

from cloudburst import config, faults, frames
from cloudburst.attempts import Task
from cloudburst.errors import (
    Cancelled,
    CloudburstError,
    EnvironmentMismatch,
    ExecutorLost,
    FunctionError,
    FunctionTimeout,
    OutOfMemory,
    Overloaded,
    UnavailableError,
)
from cloudburst.outcomes import Outcome
from cloudburst.pickling import dumps

NOW, DEADLINE = 1_000, 1_000_000


def task(retries: int | None = None) -> Task:
    return Task(1, 7, "f", b"f", b"args", 0, b"", DEADLINE, retries)


def fate(unsettled: list[list[int]] | None, **more: Any) -> dict[str, Any]:
    return {"pid": 5, "code": -9, "unsettled": unsettled, "tail": "", "function": "f", "poisoned": False, **more}


def raised(error: Exception) -> bytes:
    return frames.reply(frames.RAISED, 7, faults.pack(error, None))


def fault_of(outcome: Outcome | None) -> BaseException:
    assert outcome is not None
    return outcome.error()


def test_value_ends_the_call_after_one_attempt() -> None:
    one = task()
    outcome = one.answered(frames.reply(frames.OK, 7, dumps([1, 2]), output=b"hello"), 0)
    assert outcome is not None
    assert not outcome.failed
    assert (outcome.value(), one.attempts, one.output) == ([1, 2], 1, b"hello")


def test_each_reading_of_a_result_gives_an_object_of_its_own() -> None:
    outcome = task().answered(frames.reply(frames.OK, 7, dumps([])), 0)
    assert outcome is not None
    assert outcome.value() is not outcome.value()


def test_users_exception_is_not_tried_again_unless_asked() -> None:
    one = task()
    error = fault_of(one.answered(raised(ValueError("x")), 0))
    assert isinstance(error, ValueError)
    assert isinstance(error, FunctionError)
    assert error.attempts == 1


def test_retries_repeat_the_users_exception_so_often_and_no_more() -> None:
    one = task(retries=2)
    assert one.answered(raised(ValueError("x")), 0) is None
    assert one.answered(raised(ValueError("x")), 0) is None
    error = fault_of(one.answered(raised(ValueError("x")), 0))
    assert isinstance(error, FunctionError)
    assert error.attempts == 3


def test_lost_executor_is_tried_three_times_by_default() -> None:
    one = task()
    assert one.lost(0, fate([[1, 7]]), NOW) is None
    assert one.lost(0, fate([[1, 7]]), NOW) is None
    error = fault_of(one.lost(1, fate([[1, 7]], code=-11, tail="a\nb"), NOW))
    assert isinstance(error, ExecutorLost)
    assert not error.definite
    assert error.attempts == config.ATTEMPTS_MAX == 3
    assert "executor 1 (pid 5) ended by signal 11 (SIGSEGV) while it ran 'f', in attempt 3 of 3" in str(error)
    assert str(error).endswith("it last said:\n    a\n    b")


def test_no_retries_means_one_attempt() -> None:
    error = fault_of(task(retries=0).lost(0, fate([[1, 7]]), NOW))
    assert isinstance(error, ExecutorLost)
    assert error.attempts == 1


def test_call_that_was_not_begun_when_its_executor_died_uses_up_no_attempt() -> None:
    one = task(retries=0)
    for _ in range(10):
        assert one.lost(0, fate([[1, 8], [2, 7]]), NOW) is None
    assert one.attempts == 0


def test_unknown_fate_counts_as_an_attempt() -> None:
    assert isinstance(fault_of(task(retries=0).lost(0, None, NOW)), ExecutorLost)
    assert isinstance(fault_of(task(retries=0).lost(0, fate(None), NOW)), ExecutorLost)


def test_poisoned_function_is_not_tried_again() -> None:
    error = fault_of(task().lost(0, fate([[1, 7]], poisoned=True), NOW))
    assert isinstance(error, ExecutorLost)
    assert "refused until it is registered anew" in str(error)


def test_a_refusal_after_an_attempt_that_had_begun_is_not_definite() -> None:
    """The first attempt may have had an effect: it died with its executor, and the second was refused as poisoned."""
    one = task()
    assert one.lost(0, fate([[1, 7]]), NOW) is None
    error = fault_of(one.answered(frames.error(7, ExecutorLost("poisoned", definite=True)), 0))
    assert isinstance(error, ExecutorLost)
    assert (error.definite, error.attempts) == (False, 1)


def test_executor_killed_for_the_deadline_is_a_timeout() -> None:
    assert isinstance(fault_of(task().lost(0, fate([[1, 7]]), DEADLINE)), FunctionTimeout)


def test_bounced_call_goes_elsewhere_but_not_for_ever() -> None:
    one = task()
    bounce = frames.reply(frames.BOUNCED, 7, frames.WHY_BLOCKED)
    for _ in range(config.BOUNCES_MAX):
        assert one.answered(bounce, 0) is None
    error = fault_of(one.answered(bounce, 0))
    assert isinstance(error, Overloaded)
    assert error.definite
    assert one.attempts == 0


def test_full_queue_is_tried_three_times_and_nothing_was_begun() -> None:
    one = task()
    refusal = frames.error(7, Overloaded("1,024 calls wait"))
    assert one.answered(refusal, 0) is None
    assert one.answered(refusal, 1) is None
    error = fault_of(one.answered(refusal, 0))
    assert isinstance(error, Overloaded)
    assert (error.definite, one.attempts) == (True, 0)


@pytest.mark.parametrize(
    "fault", [FunctionTimeout("late"), Cancelled("stopped"), EnvironmentMismatch("other"), OutOfMemory("big")]
)
def test_other_errors_end_the_call(fault: CloudburstError) -> None:
    error = fault_of(task().answered(frames.error(7, fault), 0))
    assert type(error) is type(fault)
    assert str(error) == str(fault)


def test_memory_is_tried_again_only_when_asked() -> None:
    assert task(retries=1).answered(frames.error(7, OutOfMemory("big")), 0) is None


def test_expired_call_is_definite_only_if_it_was_not_sent() -> None:
    waiting, sent = fault_of(task().expired(begun=False)), fault_of(task().expired(begun=True))
    assert isinstance(waiting, FunctionTimeout)
    assert isinstance(sent, FunctionTimeout)
    assert (waiting.definite, sent.definite) == (True, False)
    assert isinstance(waiting, TimeoutError)


def test_frame_says_how_much_time_is_left() -> None:
    frame = task().frame(DEADLINE - 250)
    assert frames.CALL_HEADER.unpack_from(frame)[7] == 250
    assert frames.CALL_HEADER.unpack_from(task().frame(DEADLINE + 5))[7] == 1


def test_call_whose_function_could_not_be_fetched_is_sent_again_a_few_times() -> None:
    """A store that has just lost a node answers again seconds later; the call had not begun."""
    one = Task(1, 1, "f", b"f", b"", frames.EMPTY, b"", 10**12, None)
    gone = frames.error(1, UnavailableError("cannot be fetched"))
    found = [one.answered(gone, 0) for _ in range(config.ATTEMPTS_MAX)]
    assert found[:-1] == [None] * (config.ATTEMPTS_MAX - 1)
    assert found[-1] is not None
    assert isinstance(found[-1].error(), UnavailableError)
    assert one.attempts == 0, "it never began"
