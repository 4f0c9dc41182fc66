"""The executor's queue: bounded, first in first out, and definite about everything that it gives up."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloudburst.errors import Cancelled, FunctionTimeout, Overloaded
from cloudburst.executor.queue import Call, Queue


def call(request: int, lane: int = 1, deadline_us: int = 1000, size: int = 0) -> Call:
    return Call(lane, request, b"f", 0, 9, request, deadline_us, 0, b"", bytes(size))


def test_calls_leave_in_the_order_they_came() -> None:
    queue = Queue()
    assert [queue.offer(call(n)) for n in range(3)] == [None] * 3
    assert [queue.take() for _ in range(4)] == [call(0), call(1), call(2), None]


def test_call_beyond_the_limit_is_refused_definitely_and_by_number() -> None:
    queue = Queue(calls_max=2)
    assert [queue.offer(call(n)) for n in range(2)] == [None] * 2
    fault = queue.offer(call(2))
    assert isinstance(fault, Overloaded)
    assert fault.definite
    assert "2 calls wait" in str(fault)
    assert len(queue) == 2


def test_bytes_are_bounded_but_one_large_call_is_always_taken() -> None:
    queue = Queue(bytes_max=100)
    assert queue.offer(call(1, size=500)) is None
    assert isinstance(queue.offer(call(2, size=1)), Overloaded)
    assert queue.take() == call(1, size=500)
    assert queue.offer(call(2, size=100)) is None


def test_cancelled_call_is_not_taken_and_had_no_effect() -> None:
    queue = Queue()
    queue.offer(call(1))
    queue.offer(call(2))
    given_up = queue.cancel(1, 1)
    assert given_up is not None
    assert isinstance(given_up[1], Cancelled)
    assert given_up[1].definite
    assert queue.cancel(1, 1) is None
    assert queue.take() == call(2)


def test_deadline_counts_the_time_in_the_queue() -> None:
    queue = Queue()
    queue.offer(call(1, deadline_us=50))
    queue.offer(call(2, deadline_us=80))
    assert queue.next_deadline_us == 50
    assert queue.expire(49) == []
    [(late, fault)] = queue.expire(50)
    assert late.request == 1
    assert isinstance(fault, FunctionTimeout)
    assert fault.definite
    assert queue.next_deadline_us == 80


def test_calls_of_a_client_that_left_are_dropped() -> None:
    queue = Queue()
    for lane in (1, 2, 1):
        queue.offer(call(len(queue), lane))
    assert [dropped.request for dropped in queue.leave(1)] == [0, 2]
    assert [queue.take(), queue.take()] == [call(1, 2), None]


def test_shedding_hands_back_those_that_waited_longest() -> None:
    queue = Queue()
    for n in range(4):
        queue.offer(call(n))
    assert [given.request for given in queue.shed(2)] == [0, 1]
    assert [given.request for given in queue.shed(9)] == [2, 3]
    assert queue.shed(1) == []


def test_request_number_in_use_is_refused() -> None:
    queue = Queue()
    queue.offer(call(1))
    assert "already waiting" in str(queue.offer(call(1)))
    assert queue.offer(call(1, lane=2)) is None


class QueueAgainstList(RuleBasedStateMachine):
    """Any sequence of operations gives what a plain list of calls would give."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue(calls_max=5, bytes_max=60)
        self.model: list[Call] = []
        self.now = 0
        self.number = 0

    @rule(lane=st.integers(1, 3), size=st.integers(0, 40), wait=st.integers(1, 30))
    def offer(self, lane: int, size: int, wait: int) -> None:
        self.number += 1
        offered = call(self.number, lane, self.now + wait, size)
        fits = len(self.model) < 5 and (not self.model or sum(c.size_bytes for c in self.model) + size <= 60)
        assert (self.queue.offer(offered) is None) == fits
        if fits:
            self.model.append(offered)

    @rule()
    def take(self) -> None:
        assert self.queue.take() == (self.model.pop(0) if self.model else None)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.model:
            chosen = data.draw(st.sampled_from(self.model))
            assert self.queue.cancel(chosen.lane, chosen.request) is not None
            self.model.remove(chosen)

    @rule(step=st.integers(1, 40))
    def expire(self, step: int) -> None:
        self.now += step
        late = [one for one in self.model if one.deadline_us <= self.now]
        assert [one for one, _ in self.queue.expire(self.now)] == late
        self.model = [one for one in self.model if one not in late]

    @rule(lane=st.integers(1, 3))
    def leave(self, lane: int) -> None:
        assert self.queue.leave(lane) == [one for one in self.model if one.lane == lane]
        self.model = [one for one in self.model if one.lane != lane]

    @rule(count=st.integers(0, 4))
    def shed(self, count: int) -> None:
        assert self.queue.shed(count) == self.model[:count]
        del self.model[:count]

    @invariant()
    def holds(self) -> None:
        self.queue.check()
        assert len(self.queue) == len(self.model)
        assert self.queue.next_deadline_us == min((one.deadline_us for one in self.model), default=None)


TestQueueAgainstList = QueueAgainstList.TestCase
TestQueueAgainstList.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
