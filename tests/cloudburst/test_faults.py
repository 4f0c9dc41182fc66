"""A user's exception reaches the caller as itself and as a FunctionError (decision record 0003)."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import traceback
from collections.abc import Callable

import pytest

from cloudburst import faults
from cloudburst.errors import CloudburstError, ExecutorLost, FunctionError, FunctionTimeout
from tests.cloudburst import samples


def travelled(error: BaseException) -> FunctionError:
    packed = faults.pack(error, error.__traceback__)
    return faults.unpack(packed, function="f", invocation="1f", attempts=2, where="in executor 0")


def caught(raises: Callable[[], object]) -> BaseException:
    try:
        raises()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    "raises",
    [
        lambda: int("x"),
        lambda: os.stat("/nowhere/at/all"),
        lambda: json.loads("{"),
        lambda: "é".encode("ascii"),
        lambda: {}["key"],
        lambda: exec("raise ExceptionGroup('several', [ValueError(1), OSError(2)])"),
        lambda: exec("import nowhere_at_all"),
        lambda: exec("undefined_name"),
    ],
    ids=["ValueError", "OSError", "JSONDecodeError", "Unicode", "KeyError", "Group", "Import", "NameError"],
)
def test_exception_is_caught_as_what_it_was_and_as_a_function_error(raises: Callable[[], object]) -> None:
    original = caught(raises)
    error = travelled(original)
    assert isinstance(error, type(original))
    assert isinstance(error, FunctionError)
    assert type(error.__cause__) is type(original)
    assert (str(error), repr(error.args)) == (str(original), repr(original.args))
    assert error.exception_type == type(original).__qualname__
    assert "Traceback (most recent call last)" in error.remote_traceback
    assert (error.function, error.invocation, error.attempts, error.definite) == ("f", "1f", 2, False)


def test_fields_of_an_exception_travel_too() -> None:
    error = travelled(caught(lambda: os.stat("/nowhere/at/all")))
    assert isinstance(error, OSError)
    assert (error.errno, error.filename, error.filename2) == (2, "/nowhere/at/all", None)
    mark = ValueError("x")
    mark.extra = [1, 2]  # type: ignore[attr-defined]
    assert travelled(mark).extra == [1, 2]  # type: ignore[attr-defined]


def test_printed_traceback_shows_where_it_was_raised_there_and_here() -> None:
    error = travelled(caught(lambda: samples.fail("ValueError")))
    shown = "".join(traceback.format_exception(error))
    assert "in fail" in shown
    assert "Raised by function 'f' in executor 0" in shown
    assert shown.rstrip().endswith("ValueError: ('bad', 7)")


def test_cause_of_the_users_exception_is_in_the_remote_traceback() -> None:
    error = travelled(caught(samples.fail_from_cause))
    assert isinstance(error, RuntimeError)
    assert "invalid literal for int()" in error.remote_traceback
    assert "direct cause" in error.remote_traceback


def test_exception_that_does_not_survive_pickling_becomes_a_function_error_that_names_it() -> None:
    error = travelled(caught(samples.fail_untransportably))
    assert type(error) is FunctionError
    assert str(error) == "TwoArguments: 1 and 2"
    assert (error.exception_type, error.__cause__) == ("TwoArguments", None)
    assert "fail_untransportably" in error.remote_traceback


@pytest.mark.parametrize("original", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), StopIteration(5)])
def test_exception_that_would_end_or_confuse_the_caller_is_only_a_cause(original: BaseException) -> None:
    error = travelled(original)
    assert type(error) is FunctionError
    assert type(error.__cause__) is type(original)


@pytest.mark.parametrize("original", [FunctionTimeout("inner"), ExecutorLost("inner")])
def test_nested_calls_failure_is_not_taken_for_the_outer_calls_own(original: CloudburstError) -> None:
    error = travelled(original)
    assert not isinstance(error, type(original))
    assert isinstance(error.__cause__, type(original))


def test_exception_keeps_its_type_through_two_calls() -> None:
    inner = travelled(caught(lambda: samples.fail("ValueError")))
    outer = travelled(caught(lambda: _raise(inner)))
    assert isinstance(outer, ValueError)
    assert type(outer.__cause__) is ValueError
    assert "in fail" in outer.remote_traceback


def _raise(error: BaseException) -> None:
    raise error


def test_error_survives_pickling_on_the_callers_side() -> None:
    error = travelled(caught(lambda: int("x")))
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ValueError)
    assert isinstance(again, FunctionError)
    assert (str(again), again.remote_traceback, again.attempts) == (str(error), error.remote_traceback, 2)


def test_hostile_message_is_bounded() -> None:
    class Loud(Exception):
        def __str__(self) -> str:
            return "x" * 10_000_000

    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    assert len(faults.pack(Loud(), None)) < 1_000_000
    assert b"str() of it raised ValueError" in faults.pack(Broken(), None)


def test_runtime_errors_survive_pickling_with_their_attributes() -> None:
    error = ExecutorLost("gone", definite=True, attempts=3)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.definite, again.attempts) == (ExecutorLost, "gone", True, 3)
