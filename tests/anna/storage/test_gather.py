"""Which commits wait for those whom the last one answered."""

from __future__ import annotations

from anna.config import GATHER_REST_COMMITS_MAX
from anna.storage.gather import Gather


def test_a_commit_waits_for_those_who_write_again_and_for_nine_of_ten() -> None:
    gather = Gather()
    for _ in range(3):
        assert gather.begin(waited=50, answered=25)
        assert [gather.is_enough(waiting) for waiting in (25, 44, 45, 50)] == [False, False, True, True]
        gather.end(in_vain=False)


def test_of_few_all_are_awaited() -> None:
    gather = Gather()
    for few in (1, 2, 9):
        assert gather.begin(waited=few, answered=few)
        assert not gather.is_enough(few - 1)
        assert gather.is_enough(few)
        gather.end(in_vain=False)


def test_a_commit_that_answered_nobody_waits_for_nobody() -> None:
    assert not Gather().begin(waited=7, answered=0)


def test_who_does_not_write_again_is_waited_for_ever_less() -> None:
    """Clients that come and go: of a thousand commits few may wait in vain."""
    gather = Gather()
    waits = []
    for commit in range(1000):
        if gather.begin(waited=3, answered=3):
            waits.append(commit)
            gather.end(in_vain=True)
    assert waits == [0, 2, 5, 10, 19, 36, 69, 134, 263, 392, 521, 650, 779, 908]
    assert waits[-1] - waits[-2] == GATHER_REST_COMMITS_MAX + 1


def test_one_wait_that_paid_makes_up_for_those_in_vain() -> None:
    gather = Gather()
    while gather.rest < 8:
        gather.begin(waited=2, answered=1)
        if not gather.rest:
            gather.end(in_vain=True)
    while not gather.begin(waited=2, answered=1):
        pass
    gather.end(in_vain=False)
    assert [gather.begin(waited=2, answered=1), gather.begin(waited=2, answered=1)] == [True, True]
