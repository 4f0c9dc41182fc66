"""A history of 100,000 transactions is judged whole: one wrong read in it is found, and without it all is well."""

from __future__ import annotations

import pytest

from cloudburst.judge.reading import read_lines
from cloudburst.judge.verdict import judge
from tests.cloudburst.judge.database import encoded, lines

pytestmark = pytest.mark.timeout(600)  # a minute of work, on a machine that may be busy

TRANSACTIONS, KEYS, SESSIONS = 100_000, 1_000, 50


def test_a_valid_history_of_a_hundred_thousand_transactions_holds() -> None:
    verdict = judge(read_lines(encoded(lines(TRANSACTIONS, KEYS, SESSIONS))))
    assert len(verdict.facts.transactions) == TRANSACTIONS
    assert all(verdict.held(level) for level in verdict.found)


def test_one_stale_read_among_a_hundred_thousand_transactions_is_found() -> None:
    place = TRANSACTIONS * 3 // 4
    whole = list(lines(TRANSACTIONS, KEYS, SESSIONS, stale=place))
    (planted,) = [number for number, (_, stale) in enumerate(whole) if stale]
    verdict = judge(read_lines(encoded(iter(whole))))
    assert verdict.held("read-atomic")
    assert {one.transaction for one in verdict.found["causal"]} == {planted}
    (violation,) = verdict.found["causal"]
    assert f"line {planted + 2:,}" in verdict.explain(violation)[0]


def test_the_histories_of_the_same_database_hold_whatever_the_seed() -> None:
    for seed in range(20):
        verdict = judge(read_lines(encoded(lines(1_000, 20, 5, seed=seed))))
        assert all(verdict.held(level) for level in verdict.found)


def test_a_stale_read_is_found_in_each_of_many_small_histories() -> None:
    for seed in range(20):
        whole = list(lines(1_000, 20, 5, stale=800, seed=seed))
        (planted,) = [number for number, (_, stale) in enumerate(whole) if stale]
        found = judge(read_lines(encoded(iter(whole)))).violations("causal")
        assert planted in {one.transaction for one in found}
