"""The queue of `cb map`, without a clock or a store: from seeds, and one rule at a time."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from cloudburst.burst.tasks.desk import Desk
from cloudburst.burst.tasks.facts import (
    Announced,
    Begun,
    Closed,
    Ended,
    Fact,
    Joined,
    Leased,
    Lost,
    Result,
    Settled,
    Taken,
    Yielded,
    fact_of,
    plain,
)  # fmt: skip
from cloudburst.burst.tasks.queue import Begin, Entry, Ledger, Publish, Rules, Stop, Worker, rank, rest_us
from cloudburst.burst.tasks.told import Told
from cloudburst.errors import ProtocolError
from tests.cloudburst.burst.tasks.simulated_queue import Conditions, Run

KEY = b"\1" * 8
GOOD = Result(0, b"good", 4, "", 1_000)
BAD = Result(1, b"", 0, "no", 1_000)
RULES = Rules()


def every_task_has_one_result(run: Run) -> None:
    assert Counter(outcome.key for outcome in run.outcomes) == Counter(run.keys)


def as_all_would_see_it(run: Run) -> None:
    """Whoever has heard all that was written, in whichever order, has come to the same."""
    seen = []
    for seed in range(3):
        facts = list(run.written)
        random.Random(seed).shuffle(facts)
        ledger = Ledger(run.conditions.rules)
        for writer, fact in facts:
            ledger.absorb(writer, fact, 0)
        seen.append({key: (entry.settled, entry.chosen(), entry.failures) for key, entry in ledger.entries.items()})
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("seed", range(60))
def test_every_task_has_exactly_one_result_while_workers_die_freeze_and_are_slow(seed: int) -> None:
    run = Run(seed, Conditions()).run()
    every_task_has_one_result(run)
    as_all_would_see_it(run)
    assert all(outcome.ok for outcome in run.outcomes)
    assert max(run.begun.values()) <= run.conditions.rules.begun_max


@pytest.mark.parametrize("seed", range(30))
def test_messages_that_come_after_tasks_have_begun_cost_a_second_run_at_most_and_no_result(seed: int) -> None:
    run = Run(seed, Conditions(delay_us=400_000)).run()
    every_task_has_one_result(run)
    as_all_would_see_it(run)
    assert max(run.begun.values()) <= 2 * run.conditions.rules.begun_max


@pytest.mark.parametrize("seed", range(30))
def test_a_task_that_fails_is_tried_again_and_then_named(seed: int) -> None:
    run = Run(seed, Conditions(failing=0.3)).run()
    every_task_has_one_result(run)
    failed = [outcome for outcome in run.outcomes if not outcome.ok]
    assert all(outcome.result is None or outcome.result.code == 1 for outcome in failed)
    assert max(run.begun.values()) <= run.conditions.rules.begun_max


@pytest.mark.parametrize("seed", range(10))
def test_a_task_under_which_every_worker_dies_is_given_up_and_named_and_the_others_are_done(seed: int) -> None:
    run = Run(seed, Conditions(deaths=0, freezes=0, deadly=2)).run()
    every_task_has_one_result(run)
    failed = {outcome.key: outcome for outcome in run.outcomes if not outcome.ok}
    assert failed.keys() <= run.deadly
    assert failed
    assert all("workers were lost under it" in outcome.why for outcome in failed.values())
    assert all(run.begun[key] <= run.conditions.rules.begun_max for key in run.deadly)


@pytest.mark.parametrize("seed", range(20))
def test_a_worker_that_is_the_only_one_may_die_and_freeze_too(seed: int) -> None:
    run = Run(seed, Conditions(workers=1, deaths=2, freezes=2)).run()
    every_task_has_one_result(run)
    as_all_would_see_it(run)
    assert all(outcome.ok for outcome in run.outcomes)
    assert max(run.begun.values()) <= run.conditions.rules.begun_max


@pytest.mark.parametrize("seed", range(5))
def test_a_task_under_which_the_only_worker_always_dies_is_given_up_and_named(seed: int) -> None:
    run = Run(seed, Conditions(workers=1, deaths=0, freezes=0, deadly=2)).run()
    every_task_has_one_result(run)
    failed = {outcome.key for outcome in run.outcomes if not outcome.ok}
    assert failed
    assert failed <= run.deadly
    assert all(run.begun[key] <= run.conditions.rules.begun_max for key in run.deadly)


def test_no_more_tasks_are_announced_than_the_window_holds() -> None:
    class Watched(Run):
        most = 0

        def _on_owner(self) -> None:
            super()._on_owner()
            self.most = max(self.most, len(self.desk.ledger.unsettled))

    run = Watched(1, Conditions(tasks=60, window=7))
    run.run()
    assert run.most == 7


# -- planted faults, which the runs above must notice


def test_leases_that_never_expire_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    hasty = Conditions(rules=Rules(slow_us=1 << 50))
    Run(1, hasty).run()
    monkeypatch.setattr(Ledger, "alive", lambda self, worker, now_us: worker not in self.lost)
    with pytest.raises(AssertionError, match="never settled"):
        Run(1, hasty).run()


def test_an_owner_that_waits_for_its_only_worker_for_ever_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = Conditions(workers=1, freezes=1, deaths=0, frozen_us=1 << 50)
    assert Run(1, frozen).run().given_up
    monkeypatch.setattr(Desk, "all_silent", lambda self, workers, now_us: False)
    with pytest.raises(AssertionError, match="never settled"):
        Run(1, frozen).run()


def test_a_result_that_replaces_another_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def last(self: Entry) -> tuple[int, str, Result] | None:
        found = [(*place, end) for place, end in self.ends.items() if end is not None and end.ok]
        return found[-1] if found else None

    monkeypatch.setattr(Entry, "chosen", last)
    noticed = 0
    for seed in range(20):
        run = Run(seed, Conditions(delay_us=400_000)).run()
        try:
            as_all_would_see_it(run)
        except AssertionError:
            noticed += 1
    assert noticed


def test_an_owner_that_settles_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "check", lambda self: None)
    monkeypatch.setattr(Desk, "check", lambda self: None)
    settle = Desk._settle

    def again(self: Desk, key: bytes, now_us: int) -> object:
        self.ledger.unsettled[key] = None
        return settle(self, key, now_us)

    monkeypatch.setattr(Desk, "_settle", again)
    noticed = 0
    for seed in range(20):
        run = Run(seed, Conditions(delay_us=400_000)).run()
        noticed += Counter(outcome.key for outcome in run.outcomes) != Counter(run.keys)
    assert noticed


# -- one rule at a time


def worker_with(*facts: Fact, name: str = "me", slots: int = 1, peers: int = 2) -> Worker:
    worker = Worker(name, slots, RULES, peers)
    worker.join(0)
    worker.absorb("owner", facts, 0)
    return worker


def leases(instructions: list[object]) -> list[Fact]:
    return [one.fact for one in instructions if isinstance(one, Publish)]


def test_a_task_begins_when_its_lease_has_been_known_for_a_while() -> None:
    worker = worker_with(Announced(KEY, b"body"))
    assert worker.tick(0) == [Publish(Leased(KEY, 1))]
    assert worker.tick(RULES.confirm_us - 1) == []
    assert worker.tick(RULES.confirm_us) == [Publish(Begun(KEY, 1)), Begin(KEY, 1, b"body")]


def test_a_task_of_the_only_worker_begins_when_its_lease_has_been_told() -> None:
    worker = worker_with(Announced(KEY, b"body"), peers=1)
    assert worker.tick(7) == [Publish(Leased(KEY, 1))]
    worker.told(6)
    assert worker.tick(8) == []
    assert worker.waits_to_tell
    worker.told(8)
    assert worker.tick(9) == [Publish(Begun(KEY, 1)), Begin(KEY, 1, b"body")]
    assert not worker.waits_to_tell


def test_a_worker_is_the_only_one_while_none_is_expected_or_heard_of_and_it_has_looked() -> None:
    worker = worker_with(peers=1)
    worker.tick(RULES.lease_us)
    assert worker.alone
    worker.tick(2 * RULES.lease_us, looked_us=RULES.lease_us)
    assert not worker.alone
    worker.absorb("other", (Joined(),), 2 * RULES.lease_us)
    worker.tick(2 * RULES.lease_us)
    assert not worker.alone
    worker.absorb("owner", (Lost("other"),), 2 * RULES.lease_us)
    worker.tick(2 * RULES.lease_us)
    assert worker.alone
    two = worker_with()
    two.tick(0)
    assert not two.alone


def test_the_only_worker_leases_ahead_for_two_rounds_and_again_when_half_of_that_is_left() -> None:
    worker = worker_with(*(Announced(number.to_bytes(8, "big"), b"body") for number in range(20)), slots=2, peers=1)
    assert len(leases(worker.tick(0))) == 6
    worker.told(0)
    worker.tick(1)
    assert (len(worker.running), worker.fed) == (2, True)
    counts = []
    for _ in range(3):
        worker.ended(next(iter(worker.running)), GOOD, 2)
        counts.append(sum(isinstance(fact, Leased) for fact in leases(worker.tick(2))))
    assert counts == [0, 0, 3]


def test_a_worker_that_its_owner_has_given_up_stops_what_runs_and_leases_nothing() -> None:
    worker = worker_with(Announced(KEY, b"body"), Announced(b"\2" * 8, b"body"), peers=1)
    worker.tick(0)
    worker.told(0)
    worker.tick(0)
    worker.absorb("owner", (Lost("me"),), 1)
    assert Stop(KEY) in worker.tick(1)
    assert worker.stopped(KEY, 2) == Publish(Yielded(KEY, 1))
    assert leases(worker.tick(2)) in ([], [Yielded(b"\2" * 8, 1)])
    assert worker.over
    assert not worker.running


def test_what_was_stopped_is_open_to_another_attempt_and_has_not_failed() -> None:
    worker = worker_with(Announced(KEY, b"body"))
    worker.absorb("other", (Joined(), Leased(KEY, 1), Begun(KEY, 1), Yielded(KEY, 1)), 0)
    assert leases(worker.tick(0)) == [Leased(KEY, 2)]
    assert worker.ledger.entries[KEY].failures == 0


def test_of_two_that_lease_the_same_attempt_one_yields_and_both_know_which() -> None:
    first, second = (worker_with(Announced(KEY, b"body"), name=name) for name in ("one", "two"))
    for worker in (first, second):
        worker.tick(0)
    first.absorb("two", (Joined(), Leased(KEY, 1)), 1)
    second.absorb("one", (Joined(), Leased(KEY, 1)), 1)
    winner, loser = sorted((first, second), key=lambda worker: rank(KEY, worker.name))
    for worker in (first, second):
        for name in ("one", "two"):
            worker.ledger.hear(name, RULES.confirm_us)
    assert loser.tick(RULES.confirm_us) == [Publish(Yielded(KEY, 1))]
    assert winner.tick(RULES.confirm_us) == [Publish(Begun(KEY, 1)), Begin(KEY, 1, b"body")]


def test_a_lease_lives_while_its_workers_beat_grows_and_no_longer() -> None:
    worker = worker_with(Announced(KEY, b"body"))
    worker.absorb("other", (Joined(), Leased(KEY, 1)), 0)
    worker.ledger.hear("other", 1_000_000)
    assert leases(worker.tick(1_000_000 + RULES.lease_us - 1)) == []
    assert leases(worker.tick(1_000_000 + RULES.lease_us)) == [Leased(KEY, 2)]


def test_what_the_owner_says_is_lost_is_stolen_at_once() -> None:
    worker = worker_with(Announced(KEY, b"body"))
    worker.absorb("other", (Joined(), Leased(KEY, 1)), 0)
    worker.absorb("owner", (Lost("other"),), 1)
    assert leases(worker.tick(1)) == [Leased(KEY, 2)]


def test_a_slow_task_is_begun_a_second_time_by_who_has_nothing_else_to_do() -> None:
    worker = worker_with(Announced(KEY, b"body"))
    worker.absorb("other", (Joined(), Leased(KEY, 1)), 0)
    slow_us = 4 * RULES.slow_us
    worker.ledger.hear("other", slow_us - 1)
    assert leases(worker.tick(slow_us - 1)) == []
    assert leases(worker.tick(slow_us - 1 + 250_000)) == [Leased(KEY, 2)]


def test_what_waits_for_a_slot_is_given_back_when_another_worker_has_nothing_to_do() -> None:
    worker = worker_with(*(Announced(bytes([at]) * 8, b"body") for at in range(4)))
    leased = [fact.key for fact in leases(worker.tick(0)) if isinstance(fact, Leased)]
    assert len(leased) == 2
    others = [Announced(bytes([at]) * 8, b"body") for at in range(4) if bytes([at]) * 8 not in leased]
    worker.tick(RULES.confirm_us)
    worker.absorb("owner", [Settled(fact.key, 1, "other") for fact in others], RULES.confirm_us)
    worker.absorb("other", (Joined(),), RULES.confirm_us)
    assert leases(worker.tick(2 * RULES.confirm_us)) == [Yielded(leased[1], 1)]


def test_what_runs_is_stopped_when_anothers_result_counts() -> None:
    worker = worker_with(Announced(KEY, b"body"))
    worker.tick(0)
    worker.tick(RULES.confirm_us)
    worker.absorb("owner", (Settled(KEY, 1, "other"),), RULES.confirm_us)
    assert worker.tick(RULES.confirm_us) == [Stop(KEY)]


def test_an_owner_that_closes_has_everything_stopped_and_nothing_begun() -> None:
    worker = worker_with(Announced(KEY, b"body"), Announced(b"\2" * 8, b"body"))
    worker.tick(0)
    worker.tick(RULES.confirm_us)
    worker.absorb("owner", (Closed(130, "cancelled"),), RULES.confirm_us)
    (key,) = worker.running
    assert Stop(key) in worker.tick(RULES.confirm_us)
    assert not any(isinstance(one, Begin) for one in worker.tick(10 * RULES.confirm_us))


def test_what_may_begin_is_decided_by_how_long_was_looked_and_not_by_how_long_was_waited() -> None:
    worker = worker_with(Announced(KEY, b"body"))
    worker.tick(0)
    late = 10 * RULES.confirm_us
    assert not any(isinstance(one, Begin) for one in worker.tick(late, looked_us=RULES.confirm_us - 1))
    assert any(isinstance(one, Begin) for one in worker.tick(late, looked_us=RULES.confirm_us))


def test_a_worker_is_fed_when_all_its_slots_run_and_one_more_may_begin_at_once() -> None:
    worker = Worker("one", 1, RULES, 2)
    worker.absorb("owner", [Announced(bytes([number]) * 8, b"body") for number in range(4)], 0)
    worker.tick(0)
    assert not worker.fed
    worker.tick(RULES.confirm_us)
    assert (len(worker.running), worker.fed) == (1, True)
    (key,) = worker.running
    worker.ended(key, GOOD, RULES.confirm_us)
    assert not worker.fed


def test_rest_grows_with_what_was_done_and_is_bounded() -> None:
    assert [rest_us(age_us) for age_us in (0, 200_000, 2_000_000, 60_000_000)] == [0, 10_000, 100_000, 100_000]


def test_of_results_told_by_several_workers_the_settled_one_is_given_out_once() -> None:
    ledger = Ledger(RULES)
    told = Told(ledger)
    for writer, data in (("one", b"first"), ("two", b"second")):
        told.absorb(writer, [Ended(KEY, 1, GOOD, data)])
    ledger.absorb("owner", Settled(KEY, 1, "two"), 0)
    assert (told.take(Settled(KEY, 1, "two")), told.take(Settled(KEY, 1, "two"))) == (b"second", b"")
    told.absorb("one", [Ended(KEY, 1, GOOD, b"late")])
    assert told.take(Settled(KEY, 1, "one")) == b""


def test_one_success_settles_a_task_and_a_second_one_changes_nothing() -> None:
    desk = Desk("owner", RULES)
    desk.offer(KEY, b"body", 0)
    (outcome,) = desk.absorb("one", (Leased(KEY, 1), Ended(KEY, 1, GOOD)), 1)
    assert (outcome.ok, outcome.settled) == (True, Settled(KEY, 1, "one"))
    assert desk.absorb("two", (Leased(KEY, 1), Ended(KEY, 1, Result(0, b"else", 4, "", 9))), 2) == []


def test_a_failure_settles_a_task_when_no_attempt_is_left_and_none_is_under_way() -> None:
    desk = Desk("owner", Rules(failures_max=2))
    desk.offer(KEY, b"body", 0)
    assert desk.absorb("one", (Leased(KEY, 1), Ended(KEY, 1, BAD)), 1) == []
    (outcome,) = desk.absorb("one", (Leased(KEY, 2), Ended(KEY, 2, BAD)), 2)
    assert (outcome.ok, outcome.result, outcome.attempts) == (False, BAD, 2)


@pytest.mark.parametrize(
    "fact",
    [
        Announced(KEY, b"body"), Joined(), Leased(KEY, 3), Begun(KEY, 3), Yielded(KEY, 3), Ended(KEY, 3, BAD),
        Ended(KEY, 3, GOOD, b"data"), Settled(KEY, 3, "one"), Lost("one"), Closed(1, "why"), Taken(7),
    ],
)  # fmt: skip
def test_facts_travel_as_plain_values(fact: Fact) -> None:
    assert fact_of(plain(fact)) == fact


@pytest.mark.parametrize("values", [[], [99], [0, KEY], ["x", 1], [5, KEY, 1, None]])
def test_what_is_no_fact_is_refused(values: list[object]) -> None:
    with pytest.raises(ProtocolError):
        fact_of(values)
