"""The judge finds what trying every order of commits finds, at every level."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings

from cloudburst.judge import order
from cloudburst.judge.history import History
from cloudburst.judge.verdict import judge
from tests.cloudburst.judge.brute import brute
from tests.cloudburst.judge.lines import small

LEVELS = ("repeatable", "read-atomic", "causal", "read-your-writes", "monotonic-reads")


def compare(history: History, tried: Counter[tuple[str, bool]]) -> None:
    expected = brute(history)
    verdict = judge(history)
    clean = expected.pop("clean")
    for level, holds in expected.items():
        if clean or level in LEVELS[:3]:
            tried[level, holds] += 1
            assert verdict.held(level) == holds, level
    for level in verdict.found:
        for violation in verdict.violations(level):
            assert verdict.explain(violation)[0]
            heads = [head for _, head, _ in violation.cycle]
            assert [tail for tail, _, _ in violation.cycle] == heads[-1:] + heads[:-1], "each comes before the next"


def test_the_judge_agrees_with_a_search_over_all_orders_of_commits() -> None:
    """On thousands of histories, many of which hold and many of which do not, at each level."""
    tried: Counter[tuple[str, bool]] = Counter()

    @settings(max_examples=2000)
    @given(small())
    def agrees(history: History) -> None:
        compare(history, tried)

    agrees()
    assert {(level, holds) for level in LEVELS for holds in (True, False) if tried[level, holds] < 30} == set()


@settings(max_examples=500)
@given(small())
def test_it_agrees_when_clocks_are_loaded_one_chain_at_a_time(history: History) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "CELLS_MAX", 1)
        compare(history, Counter())
