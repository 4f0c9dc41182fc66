"""The dispatcher of spawned calls: bounded windows, order, and every call in exactly one place."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloudburst import config
from cloudburst.attempts import Home, Task
from cloudburst.dispatch import SMALLEST, Dispatcher
from cloudburst.errors import Overloaded

ALL = dict.fromkeys(range(9), 0)
"""Loads of executors that are all idle."""


def task(number: int) -> Task:
    return Task(1, number, "f", b"f", b"", 1, b"", 10**9, None)


def submitted(dispatcher: Dispatcher, *numbers: int) -> list[Task]:
    tasks = [task(number) for number in numbers]
    for one in tasks:
        assert dispatcher.refusal() is None
        dispatcher.submit(one)
    return tasks


def test_nothing_is_sent_while_there_is_no_executor() -> None:
    dispatcher = Dispatcher()
    submitted(dispatcher, 1)
    assert dispatcher.next_sends(ALL) == []
    dispatcher.open(0, Home(9, 0, 1))
    assert [(slot, one.low) for slot, one in dispatcher.next_sends(ALL)] == [(0, 1)]


def test_calls_are_spread_over_executors_and_stop_at_their_windows() -> None:
    dispatcher = Dispatcher()
    dispatcher.open(0, Home(9, 0, 1))
    dispatcher.open(1, Home(9, 1, 2))
    submitted(dispatcher, *range(100))
    sent = dispatcher.next_sends(ALL)
    assert sorted(one.low for _, one in sent) == list(range(2 * config.WINDOW_CALLS_MIN))
    assert [slot for slot, _ in sent].count(0) == config.WINDOW_CALLS_MIN
    assert dispatcher.next_sends(ALL) == []


def test_window_grows_with_short_calls_and_shrinks_with_long_ones() -> None:
    dispatcher = Dispatcher()
    dispatcher.open(0, Home(9, 0, 1))
    submitted(dispatcher, *range(20_000))
    for _ in range(20):
        for _, one in dispatcher.next_sends(ALL):
            dispatcher.answered(0, one.low, 5)
    assert dispatcher.windows[0].size == config.WINDOW_CALLS_MAX
    for _, one in dispatcher.next_sends(ALL):
        dispatcher.answered(0, one.low, 1_000_000)
    assert dispatcher.windows[0].size == SMALLEST


def test_answer_is_matched_by_request_and_only_once() -> None:
    dispatcher = Dispatcher()
    dispatcher.open(0, Home(9, 0, 1))
    [one] = submitted(dispatcher, 5)
    dispatcher.next_sends(ALL)
    assert dispatcher.answered(0, 6, -1) is None
    assert dispatcher.answered(1, 5, -1) is None
    assert dispatcher.answered(0, 5, -1) is one
    assert dispatcher.answered(0, 5, -1) is None


def test_executors_that_have_other_slots_from_now_on_keep_their_calls() -> None:
    dispatcher = Dispatcher()
    dispatcher.open(0, Home(9, 0, 1))
    dispatcher.open(1, Home(8, 0, 1))
    submitted(dispatcher, 5, 6)
    sent = {one.low: slot for slot, one in dispatcher.next_sends(ALL)}
    dispatcher.rename({0: 1, 1: 130})
    dispatcher.check()
    assert dispatcher.windows[130].home == Home(8, 0, 1)
    for low, slot in sent.items():
        assert dispatcher.answered({0: 1, 1: 130}[slot], low, -1) is not None


def test_call_that_comes_back_goes_before_those_that_have_not_been_sent() -> None:
    dispatcher = Dispatcher()
    dispatcher.open(0, Home(9, 0, 1))
    first, *_ = submitted(dispatcher, *range(50))
    dispatcher.next_sends(ALL)
    dispatcher.answered(0, first.low, -1)
    dispatcher.again(first)
    assert [one.low for _, one in dispatcher.next_sends(ALL)] == [first.low]


def test_executor_that_takes_no_calls_now_is_sent_none() -> None:
    dispatcher = Dispatcher()
    dispatcher.open(0, Home(9, 0, 1))
    dispatcher.open(1, Home(9, 1, 2))
    submitted(dispatcher, *range(6))
    assert {slot for slot, _ in dispatcher.next_sends({1: 0})} == {1}


def test_call_goes_to_the_idle_executor_whatever_the_windows_sizes() -> None:
    dispatcher = Dispatcher()
    dispatcher.open(0, Home(9, 0, 1))
    dispatcher.open(1, Home(9, 1, 2))
    dispatcher.windows[0].size = config.WINDOW_CALLS_MAX
    submitted(dispatcher, 1)
    assert [slot for slot, _ in dispatcher.next_sends({0: 1, 1: 0})] == [1]
    submitted(dispatcher, 2)
    assert [slot for slot, _ in dispatcher.next_sends({0: 0, 1: 0})] == [0]


def test_lost_executor_gives_its_calls_back_in_order() -> None:
    dispatcher = Dispatcher()
    dispatcher.open(0, Home(9, 0, 1))
    submitted(dispatcher, 1, 2, 3)
    dispatcher.next_sends(ALL)
    assert [one.low for one in dispatcher.lose(0)] == [1, 2, 3]
    assert dispatcher.lose(0) == []


def test_cancelled_call_is_never_sent() -> None:
    dispatcher = Dispatcher()
    first, second = submitted(dispatcher, 1, 2)
    dispatcher.finished(first)
    dispatcher.open(0, Home(9, 0, 1))
    assert dispatcher.next_sends(ALL) == [(0, second)]


def test_calls_without_a_result_are_bounded() -> None:
    dispatcher = Dispatcher(pending_max=2)
    first, _ = submitted(dispatcher, 1, 2)
    fault = dispatcher.refusal()
    assert isinstance(fault, Overloaded)
    assert "2 spawned calls" in str(fault)
    dispatcher.finished(first)
    assert dispatcher.refusal() is None
    assert dispatcher.refusal(coming=1) is not None


def test_executor_without_calls_is_hungry() -> None:
    dispatcher = Dispatcher()
    assert dispatcher.hungry
    dispatcher.open(0, Home(9, 0, 1))
    assert dispatcher.hungry
    submitted(dispatcher, 1, 2)
    dispatcher.next_sends(ALL)
    assert not dispatcher.hungry
    dispatcher.open(1, Home(9, 1, 2))
    assert dispatcher.hungry


def test_call_goes_where_its_arguments_are_unless_much_more_waits_there() -> None:
    dispatcher = Dispatcher()
    dispatcher.open(0, Home(9, 0, 1))
    dispatcher.open(1, Home(7, 0, 2))
    tasks = [task(number) for number in range(6)]
    for one in tasks:
        one.near = 7
        dispatcher.submit(one)
    sent = dispatcher.next_sends({0: 0, 1: 0})
    assert [slot for slot, _ in sent] == [1, 1, 0, 1, 0, 1], "what would wait long runs elsewhere"
    dispatcher.check()


class NoCallIsLost(RuleBasedStateMachine):
    """Calls are submitted, answered, bounced, cancelled, and executors come and go: each call ends exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatcher = Dispatcher(pending_max=1000)
        self.under_way: dict[int, tuple[int, Task]] = {}
        self.live: dict[int, Task] = {}
        self.number = 0
        self.incarnations = 0

    def send(self) -> None:
        for slot, one in self.dispatcher.next_sends(ALL):
            assert not one.done
            assert one.low not in self.under_way
            self.under_way[one.low] = (slot, one)

    @rule(count=st.integers(1, 30))
    def submit(self, count: int) -> None:
        for _ in range(count):
            self.number += 1
            self.live[self.number] = task(self.number)
            assert self.dispatcher.refusal() is None
            self.dispatcher.submit(self.live[self.number])
        self.send()

    @rule(slot=st.integers(0, 3))
    def executor_comes(self, slot: int) -> None:
        if slot not in self.dispatcher.windows:
            self.incarnations += 1
            self.dispatcher.open(slot, Home(9, slot, self.incarnations))
            self.send()

    @rule(slot=st.integers(0, 3))
    def executor_goes(self, slot: int) -> None:
        for one in reversed(self.dispatcher.lose(slot)):
            del self.under_way[one.low]
            if not one.done:
                self.dispatcher.again(one)
        self.send()

    @rule(data=st.data(), run_us=st.integers(-1, 100_000), bounced=st.booleans())
    def answer(self, data: st.DataObject, run_us: int, bounced: bool) -> None:
        if not self.under_way:
            return
        low = data.draw(st.sampled_from(sorted(self.under_way)))
        slot, one = self.under_way.pop(low)
        assert self.dispatcher.answered(slot, low, run_us) is one
        if not one.done:
            if bounced:
                self.dispatcher.again(one)
            else:
                self.dispatcher.finished(one)
                del self.live[low]
        self.send()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.live:
            low = data.draw(st.sampled_from(sorted(self.live)))
            self.dispatcher.finished(self.live.pop(low))

    @invariant()
    def holds(self) -> None:
        self.dispatcher.check()
        assert len(self.dispatcher) == len(self.live)

    def teardown(self) -> None:
        """With an executor that answers, everything ends."""
        self.executor_comes(0)
        for _ in range(1000):
            self.send()
            for low, (slot, one) in list(self.under_way.items()):
                del self.under_way[low]
                self.dispatcher.answered(slot, low, 1)
                if not one.done:
                    self.dispatcher.finished(one)
                    del self.live[low]
        assert self.live == {}


TestNoCallIsLost = NoCallIsLost.TestCase
TestNoCallIsLost.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
