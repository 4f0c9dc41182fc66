"""What a run may take, decided from times alone."""

from __future__ import annotations

import pytest

from cloudburst.burst.provider import BOOT, PHASES, Machine, Plan
from cloudburst.burst.terms import Meter, Terms, seconds
from cloudburst.errors import CostLimit, RequestError


def test_run_without_terms_is_never_over() -> None:
    meter = Meter(Terms(), 0.0)
    assert meter.count(1e9, 100.0, 0.0) == ""


def test_run_is_over_after_its_time_and_not_before() -> None:
    meter = Meter(Terms(ttl_s=60), 1000.0)
    assert meter.count(1059.9, 0.0, 1059.9) == ""
    assert meter.count(1060.0, 0.0, 1060.0) == "its time is over (ttl 60 s)"


def test_run_is_over_when_nothing_has_run_for_as_long_as_it_may_idle() -> None:
    meter = Meter(Terms(idle_stop_s=10), 0.0)
    assert meter.count(9.0, 0.0, 0.0) == ""
    assert meter.count(15.0, 0.0, 8.0) == ""
    assert "idle_stop 10 s" in meter.count(18.0, 0.0, 8.0)


def test_run_pays_for_what_it_had_at_each_time_and_is_over_when_the_money_is_spent() -> None:
    meter = Meter(Terms(max_cost=3.0), 0.0)
    assert meter.count(1800.0, 2.0, 0.0) == ""
    assert meter.spent == pytest.approx(1.0)
    assert meter.count(3600.0, 2.0, 0.0) == ""
    assert "$3.00 of max_cost $3.00" in meter.count(4500.0, 4.0, 0.0)


def test_what_would_end_at_once_for_want_of_money_is_not_asked_for() -> None:
    terms = Terms(max_cost=1.0)
    terms.check(Plan(("a", "b"), 6.0))
    terms.check(Plan(("a",), 0.0))
    with pytest.raises(CostLimit, match=r"2 machines cost \$120\.00 an hour: the \$1\.00 .* last for 30 s"):
        terms.check(Plan(("a", "b"), 120.0))
    with pytest.raises(CostLimit, match=r"\$0\.95 are spent, last for 30 s"):
        terms.check(Plan(("a", "b"), 6.0), spent=0.95)


def test_bounds_are_above_nothing() -> None:
    with pytest.raises(RequestError, match="ttl_s is -1; it must be above 0"):
        Terms(ttl_s=-1)


def test_durations_are_read_with_their_units() -> None:
    assert [seconds(text) for text in ("90", "90s", "1.5m", "2h", "1d")] == [90, 90, 90, 7200, 86400]
    for wrong in ("", "h", "0", "-1s", "soon", "inf", "nan"):
        with pytest.raises(ValueError):
            seconds(wrong)


def test_machine_that_has_come_far_has_passed_what_lies_before() -> None:
    machine = Machine("host-0", "here", "run").after("asked", 1.0).after(BOOT, 3.0)
    assert dict(machine.reached) == {"asked": 1.0, "pending": 3.0, "boot": 3.0}
    assert machine.after("asked", 9.0).reached["asked"] == 1.0
    assert (machine.phase, machine.ready) == ("boot", False)
    assert machine.after("agent", 4.0).ready
    assert machine.after(PHASES[-1], 4.0).phase == "first-task"
