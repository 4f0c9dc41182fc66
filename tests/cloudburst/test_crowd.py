"""Calls that run beside each other: limits hold, the rest waits, and what cannot go on is said."""

from __future__ import annotations

from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloudburst.executor.crowd import Crowd
from cloudburst.executor.queue import Call


def call(request: int, name: bytes = b"f", deadline_us: int = 1000, lane: int = 1) -> Call:
    return Call(lane, request, name, 1, 9, request, deadline_us, 0, b"", b"")


def test_first_call_of_an_unknown_function_begins_alone() -> None:
    crowd = Crowd()
    for n in range(3):
        crowd.offer(call(n))
    assert [crowd.begin(), crowd.begin()] == [call(0), None]
    crowd.learn((b"f", 1), 2)
    assert [crowd.begin(), crowd.begin()] == [call(1), None]


def test_function_at_its_limit_lets_others_pass() -> None:
    crowd = Crowd()
    crowd.learn((b"f", 1), 1)
    crowd.learn((b"g", 1), 1)
    for n, name in enumerate((b"f", b"f", b"g")):
        crowd.offer(call(n, name))
    assert [crowd.begin(), crowd.begin(), crowd.begin()] == [call(0), call(2, b"g"), None]
    crowd.end(call(0))
    assert crowd.begin() == call(1)


def test_all_together_have_a_limit() -> None:
    crowd = Crowd(most=2)
    for n, name in enumerate((b"f", b"g", b"h")):
        crowd.offer(call(n, name))
    assert [crowd.begin() for _ in range(3)] == [call(0), call(1, b"g"), None]


def test_full_function_whose_calls_all_wait_for_others_is_stuck() -> None:
    crowd = Crowd()
    crowd.learn((b"f", 1), 2)
    for n in range(3):
        crowd.offer(call(n))
    crowd.begin()
    crowd.await_(call(0), 1)
    assert not crowd.stuck, "another call of it can begin"
    crowd.begin()
    assert not crowd.stuck, "one of the two goes on"
    crowd.await_(call(1), 1)
    assert crowd.stuck
    crowd.await_(call(0), -1)
    assert not crowd.stuck


def test_call_that_must_end_first_is_known() -> None:
    crowd = Crowd()
    crowd.learn((b"f", 1), 9)
    assert crowd.first is None
    for n, deadline_us in enumerate((300, 100, 200)):
        crowd.offer(call(n, deadline_us=deadline_us))
        crowd.begin()
    assert crowd.first == call(1, deadline_us=100)
    crowd.hasten(call(2), 50)
    assert crowd.first == call(2, deadline_us=50)
    crowd.end(call(2))
    assert crowd.first == call(1, deadline_us=100)


class CrowdAgainstLists(RuleBasedStateMachine):
    """Any sequence of operations keeps the limits, and no call that may begin waits once `begin` returns None."""

    LIMITS: ClassVar = {b"f": 1, b"g": 3, b"h": 5}

    def __init__(self) -> None:
        super().__init__()
        self.crowd = Crowd(most=6)
        for name, limit in self.LIMITS.items():
            self.crowd.learn((name, 1), limit)
        self.number = 0

    @rule(name=st.sampled_from(sorted(LIMITS)))
    def offer(self, name: bytes) -> None:
        self.number += 1
        assert self.crowd.offer(call(self.number, name)) is None

    @rule()
    def begin_all(self) -> None:
        while self.crowd.begin() is not None:
            pass
        full = len(self.crowd.running) == 6
        for one in self.crowd.waiting.shed(100):
            assert full or self.running(one.name) == self.LIMITS[one.name]

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.crowd.running:
            self.crowd.end(data.draw(st.sampled_from(list(self.crowd.running.values()))))

    def running(self, name: bytes) -> int:
        return sum(one.name == name for one in self.crowd.running.values())

    @invariant()
    def holds(self) -> None:
        self.crowd.check()
        assert all(self.running(name) <= limit for name, limit in self.LIMITS.items())


TestCrowdAgainstLists = CrowdAgainstLists.TestCase
TestCrowdAgainstLists.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
