"""The scheduler: leases, replacement, blame, and one answer to every request."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloudburst import config
from cloudburst.autoscaling import Scaler
from cloudburst.errors import NotSupported, Overloaded, RequestError
from cloudburst.messages import (
    AnnounceFunctions,
    ClientJoined,
    ClientLeft,
    ExecutorAsks,
    ExecutorEnded,
    ExecutorForked,
    Fork,
    Instruction,
    NeighboursChanged,
    Reply,
    Request,
    Retire,
    Stopping,
    Stored,
    StoreJob,
    Surveyed,
)
from cloudburst.scheduler import Scheduler

SECOND = 1_000_000
LEASE_US = int(config.LEASE_S * 1e6)


def started(own: int = 2, most: int = 4) -> Scheduler:
    """A scheduler whose own executors run, and which has one client, number 1."""
    scheduler = Scheduler(own, most)
    for one in scheduler.start(0):
        assert isinstance(one, Fork)
        scheduler.handle(ExecutorForked(one.slot, one.incarnation, 100 + one.slot), 0)
    scheduler.handle(ClientJoined(1, 4711), 0)
    return scheduler


def ask(scheduler: Scheduler, verb: str, now_us: int = 0, client: int = 1, **body: Any) -> list[Instruction]:
    return scheduler.handle(Request(client, b"r", verb, body), now_us)


def ended(
    scheduler: Scheduler, slot: int, code: int = -9, function: str = "f", running: tuple[int, int] | None = (1, 1)
) -> ExecutorEnded:
    incarnation = scheduler.executors[slot].incarnation
    return ExecutorEnded(slot, incarnation, 100 + slot, code, function, running, [(1, 1)], "last words")


def test_start_forks_the_nodes_own_executors() -> None:
    assert Scheduler(3).start(0) == [Fork(0, 1), Fork(1, 2), Fork(2, 3)]


def test_lease_grants_every_executor_until_it_expires() -> None:
    scheduler = started()
    assert ask(scheduler, "lease") == [Reply(1, b"r", {"leases": [(0, 1), (1, 2)], "lease_us": LEASE_US})]
    scheduler.handle(ClientJoined(2, 4712), LEASE_US - 1)
    scheduler.grant(2, 1, LEASE_US - 1)
    assert [scheduler.leases_on(slot) for slot in (0, 1)] == [2, 1]
    scheduler.grant(2, 1, LEASE_US)
    assert [scheduler.leases_on(slot) for slot in (0, 1)] == [1, 0]
    scheduler.check()


def test_stopping_node_retires_its_executors_and_replaces_none() -> None:
    scheduler = started()
    assert scheduler.handle(Stopping(), 0) == [Retire(0, 1), Retire(1, 2)]
    assert ask(scheduler, "lease") == [Reply(1, b"r", {"leases": [], "lease_us": LEASE_US})], "nobody waits here"
    assert scheduler.handle(ended(scheduler, 0, code=0, running=None), 0) == []
    assert not scheduler.drained
    assert scheduler.handle(ended(scheduler, 1, code=0, running=None), 0) == []
    assert scheduler.drained
    assert scheduler.tick(60 * SECOND) == []
    scheduler.check()


def test_stopping_node_answers_those_who_wait_for_a_lease() -> None:
    scheduler = Scheduler(1)
    scheduler.start(0)
    scheduler.handle(ClientJoined(1, 4711), 0)
    assert ask(scheduler, "lease") == []
    assert scheduler.handle(Stopping(), 0) == [Reply(1, b"r", {"leases": [], "lease_us": LEASE_US}), Retire(0, 1)]


def test_stopping_node_lets_nested_calls_run_unless_other_nodes_can() -> None:
    scheduler = started()
    scheduler.handle(Stopping(), 0)
    assert scheduler.handle(ExecutorAsks(0, 0), 0) == [Fork(2, 3)]
    scheduler.handle(ExecutorForked(2, 3, 103), 0)
    assert scheduler.handle(ended(scheduler, 0, code=0, running=None), 0) == []
    assert scheduler.handle(ended(scheduler, 1, code=0, running=None), 0) == [Retire(2, 3)], "it stands in for nobody"
    beside = started()
    beside.handle(NeighboursChanged({130: 1}), 0)
    beside.handle(Stopping(), 0)
    assert beside.handle(ExecutorAsks(0, 0), 0) == []
    assert ask(beside, "lease") == [Reply(1, b"r", {"leases": [(130, 1)], "lease_us": LEASE_US})]


def test_homes_of_a_function_stay_where_they_are_and_are_spread() -> None:
    scheduler = started(3, 8)
    homes = {name: ask(scheduler, "homes", name=name, replicas=1) for name in ("a", "b", "c")}
    assert homes == {name: [Reply(1, b"r", [slot])] for slot, name in enumerate("abc")}
    scheduler.handle(ended(scheduler, 0), 0)
    assert ask(scheduler, "homes", name="a", replicas=1) == [Reply(1, b"r", [0])], "its successor is there already"
    assert ask(scheduler, "homes", name="a", replicas=2) == [Reply(1, b"r", [0, 1])]
    assert ask(scheduler, "homes", name="d", replicas=9) == [Reply(1, b"r", [0, 2, 1])], "no stand-in is a home"
    job = StoreJob(1, b"r", "delete", {"name": "a"})
    scheduler.handle(Stored(job, None, True), 0)
    assert "a" not in scheduler.homes
    scheduler.check()


def test_lease_on_few_executors_goes_to_those_with_the_fewest() -> None:
    scheduler = started()
    scheduler.handle(ClientJoined(2, 4712), 0)
    assert scheduler.grant(1, 1, 0) == [(0, 1)]
    assert scheduler.grant(2, 1, 0) == [(1, 2)]
    assert scheduler.grant(1, 1, 5) == [(0, 1)], "a client keeps the executor that it knows"


def test_client_that_leaves_gives_its_leases_back() -> None:
    scheduler = started()
    scheduler.grant(1, 9, 0)
    assert scheduler.handle(ClientLeft(1), 1) == []
    assert scheduler.leases_on(0) == 0
    scheduler.check()


def test_request_of_a_stranger_is_refused() -> None:
    [reply] = ask(started(), "lease", client=99)
    assert isinstance(reply, Reply)
    assert isinstance(reply.answer, RequestError)


def test_unknown_request_is_answered_and_not_ignored() -> None:
    [reply] = ask(started(), "frobnicate")
    assert isinstance(reply, Reply)
    assert isinstance(reply.answer, NotSupported)


def test_malformed_request_is_answered_and_harms_nothing() -> None:
    scheduler = started()
    [reply] = ask(scheduler, "fate", slot="x", incarnation=1)
    assert isinstance(reply, Reply)
    assert isinstance(reply.answer, RequestError)
    scheduler.check()


def test_lease_waits_for_an_executor_and_is_answered_when_one_comes() -> None:
    scheduler = Scheduler(1, 2)
    scheduler.start(0)
    scheduler.handle(ClientJoined(1, 4711), 0)
    assert ask(scheduler, "lease") == []
    granted = {"leases": [(0, 1)], "lease_us": LEASE_US}
    assert scheduler.handle(ExecutorForked(0, 1, 100), 5) == [Reply(1, b"r", granted)]


def test_lease_that_waits_in_vain_ends_with_overloaded() -> None:
    scheduler = Scheduler(1, 2)
    scheduler.start(0)
    scheduler.handle(ClientJoined(1, 4711), 0)
    ask(scheduler, "lease")
    wake_us = scheduler.next_wake_us
    assert wake_us == int(config.CONTROL_TIMEOUT_S * 1e6)
    [reply] = scheduler.tick(wake_us)
    assert isinstance(reply, Reply)
    assert isinstance(reply.answer, Overloaded)


def test_executor_that_ends_is_replaced_at_once_with_a_new_incarnation() -> None:
    scheduler = started()
    scheduler.grant(1, 9, 0)
    assert scheduler.handle(ended(scheduler, 0), 2 * SECOND) == [Fork(0, 3)]
    assert scheduler.grant(1, 9, 2 * SECOND) == [(1, 2)], "not before it is there"
    scheduler.check()


def test_news_of_an_earlier_incarnation_is_ignored() -> None:
    scheduler = started()
    first = ended(scheduler, 0)
    scheduler.handle(first, SECOND)
    assert scheduler.handle(first, SECOND) == []
    assert scheduler.handle(ExecutorForked(0, 1, 55), SECOND) == []
    assert scheduler.executors[0].pid == 0


def test_executors_that_die_before_they_run_anything_are_forked_ever_more_slowly() -> None:
    scheduler = started(own=1)
    pauses = []
    now_us = 0
    for _ in range(12):
        done = scheduler.handle(ended(scheduler, 0, running=None, function=""), now_us)
        if not done:
            wake_us = scheduler.next_wake_us
            assert wake_us is not None
            pauses.append(wake_us - now_us)
            now_us = wake_us
            done = scheduler.tick(now_us)
        [fork] = done
        assert isinstance(fork, Fork)
    assert pauses == sorted(pauses)
    assert pauses[-1] == 5 * SECOND


def test_fate_of_an_executor_is_told_also_to_those_who_asked_too_early() -> None:
    scheduler = started()
    assert ask(scheduler, "fate", slot=0, incarnation=1) == []
    early, fork = sorted(scheduler.handle(ended(scheduler, 0, code=7), SECOND), key=lambda one: isinstance(one, Fork))
    assert isinstance(early, Reply)
    assert (early.answer["code"], early.answer["unsettled"], early.answer["tail"]) == (7, [(1, 1)], "last words")
    assert isinstance(fork, Fork)
    assert ask(scheduler, "fate", slot=0, incarnation=1) == [early]


def test_fate_of_an_executor_that_lives_is_unknown_after_a_while() -> None:
    scheduler = started()
    ask(scheduler, "fate", slot=0, incarnation=1)
    wake_us = scheduler.next_wake_us
    assert wake_us is not None
    assert scheduler.tick(wake_us) == [Reply(1, b"r", None)]


@pytest.mark.parametrize("code", [0, 7, -signal.SIGSEGV, -signal.SIGABRT])
def test_function_that_ends_its_executor_three_times_is_poisoned(code: int) -> None:
    scheduler = started()
    for invocation in range(2):
        assert scheduler.handle(ended(scheduler, 0, code, "crash", (1, invocation)), SECOND) == [
            Fork(0, 3 + invocation)
        ]
    poison, fork = scheduler.handle(ended(scheduler, 0, code, "crash", (1, 9)), SECOND)
    assert isinstance(poison, StoreJob)
    assert (poison.verb, poison.body["name"]) == ("poison", "crash")
    assert "3 times" in poison.body["reason"]
    assert isinstance(fork, Fork)


def test_who_hears_that_a_function_is_poisoned_calls_it_in_vain() -> None:
    """The end of the executor is told when the poison is stored: the caller's next call had been begun once more."""
    scheduler = started()
    for invocation in range(2):
        scheduler.handle(ended(scheduler, 0, 7, "crash", (1, invocation)), SECOND)
    assert ask(scheduler, "fate", now_us=SECOND, slot=0, incarnation=4) == []
    poison, _ = scheduler.handle(ended(scheduler, 0, 7, "crash", (1, 9)), SECOND)
    assert isinstance(poison, StoreJob)
    assert ask(scheduler, "fate", now_us=SECOND, slot=0, incarnation=4) == []
    announce, *told = scheduler.handle(Stored(poison, None, True), SECOND)
    assert announce == AnnounceFunctions()
    assert [one.answer["poisoned"] for one in told if isinstance(one, Reply)] == [True, True]


def test_a_store_that_does_not_answer_keeps_nobody_from_hearing_of_an_end() -> None:
    scheduler = started()
    for invocation in range(3):
        scheduler.handle(ended(scheduler, 0, 7, "crash", (1, invocation)), SECOND)
    assert ask(scheduler, "fate", now_us=SECOND, slot=0, incarnation=4) == []
    wake_us = scheduler.next_wake_us
    assert wake_us is not None
    [told] = scheduler.tick(wake_us)
    assert isinstance(told, Reply)
    assert told.answer["code"] == 7


def scaled(least: int = 0, most: int = 4, own: int = 0) -> Scheduler:
    """A scheduler of a node that scales, with one client, number 1."""
    scheduler = Scheduler(own, 6, scaler=Scaler(least, most))
    for one in scheduler.start(0):
        assert isinstance(one, Fork)
        scheduler.handle(ExecutorForked(one.slot, one.incarnation, 100 + one.slot), 0)
    scheduler.handle(ClientJoined(1, 4711), 0)
    return scheduler


def test_who_asks_a_node_without_executors_waits_for_the_one_that_is_forked_for_it() -> None:
    scheduler = scaled()
    [fork] = ask(scheduler, "lease")
    assert fork == Fork(0, 1)
    assert ask(scheduler, "lease", now_us=1) == [], "one is enough for both"
    answers = scheduler.handle(ExecutorForked(0, 1, 100), 2)
    assert [one.answer["leases"] for one in answers if isinstance(one, Reply)] == [[(0, 1)], [(0, 1)]]


def test_waiting_calls_bring_executors_and_idleness_sends_them_away_when_they_have_finished() -> None:
    scheduler = scaled(least=1, own=1)
    now_us = 0
    for running, waiting in ((1, 9), (1, 9), (1, 9)):
        now_us += SECOND
        for one in scheduler.handle(Surveyed({0: (False, 1)}, running, waiting), now_us):
            assert isinstance(one, Fork)
            scheduler.handle(ExecutorForked(one.slot, one.incarnation, 100 + one.slot), now_us)
    assert sorted(scheduler.executors) == [0, 1, 2, 3]
    retired = []
    for _ in range(12):
        now_us += SECOND
        retired += [one.slot for one in scheduler.handle(Surveyed({0: (True, 1)}), now_us) if isinstance(one, Retire)]
    assert retired == [2, 3, 1], "half of them, then half of the rest"
    assert [slot for slot, one in scheduler.executors.items() if not one.leaving] == [0]
    for slot in retired:
        assert scheduler.handle(ended(scheduler, slot, code=0, function="", running=None), now_us) == []


def test_a_call_that_comes_while_the_last_executor_leaves_has_the_next_one() -> None:
    scheduler = scaled(own=1)
    now_us = 0
    retired: list[Instruction] = []
    while not retired:
        now_us += SECOND
        retired = scheduler.handle(Surveyed({0: (True, 0)}), now_us)
    assert retired == [Retire(0, 1)]
    assert ask(scheduler, "lease", now_us=now_us) == []
    assert scheduler.handle(ended(scheduler, 0, code=0, function="", running=None), now_us) == [Fork(0, 2)]
    [answer] = scheduler.handle(ExecutorForked(0, 2, 200), now_us)
    assert isinstance(answer, Reply)
    assert answer.answer["leases"] == [(0, 2)]


def test_executors_killed_from_outside_are_not_held_against_the_function() -> None:
    scheduler = started()
    for invocation in range(20):
        [fork] = scheduler.handle(ended(scheduler, 0, -signal.SIGKILL, "good", (1, invocation)), SECOND)
        assert isinstance(fork, Fork)


def test_one_invocation_that_loses_three_executors_poisons_its_function() -> None:
    scheduler = started()
    verbs = []
    for _ in range(3):
        done = scheduler.handle(ended(scheduler, 0, -signal.SIGKILL, "eats", (1, 1)), SECOND)
        verbs += [one.verb for one in done if isinstance(one, StoreJob)]
    assert verbs == ["poison"]


def test_registration_is_a_job_for_the_store_and_forgives_old_crashes() -> None:
    scheduler = started()
    for n in range(2):
        scheduler.handle(ended(scheduler, 0, 7, "crash", (1, n)), SECOND)
    [job] = ask(scheduler, "register", name="crash")
    assert job == StoreJob(1, b"r", "register", {"name": "crash"})
    assert scheduler.handle(Stored(job, {"version": 2}, True), SECOND) == [
        AnnounceFunctions(),
        Reply(1, b"r", {"version": 2}),
    ]
    assert [type(one) for one in scheduler.handle(ended(scheduler, 0, 7, "crash", (1, 5)), SECOND)] == [Fork]


def test_job_that_changed_nothing_announces_nothing() -> None:
    scheduler = started()
    [job] = ask(scheduler, "functions")
    assert isinstance(job, StoreJob)
    assert scheduler.handle(Stored(job, [], False), 1) == [Reply(1, b"r", [])]


def test_blocked_executor_gets_a_stand_in_and_no_more_than_one() -> None:
    scheduler = started()
    assert scheduler.handle(ExecutorAsks(0, unblocked=1), SECOND) == [Fork(2, 3)]
    assert scheduler.handle(ExecutorAsks(0, unblocked=1), SECOND) == [], "one is starting"
    assert scheduler.handle(ExecutorAsks(0, unblocked=2), SECOND) == [], "enough can run"


def test_stand_ins_end_with_the_slots() -> None:
    scheduler = started(own=2, most=3)
    [fork] = scheduler.handle(ExecutorAsks(0, unblocked=0), SECOND)
    assert isinstance(fork, Fork)
    scheduler.handle(ExecutorForked(fork.slot, fork.incarnation, 102), SECOND)
    assert scheduler.handle(ExecutorAsks(0, unblocked=0), SECOND) == []


def test_idle_stand_in_is_retired_and_the_nodes_own_are_not() -> None:
    scheduler = started()
    scheduler.handle(ExecutorAsks(0, unblocked=1), 0)
    scheduler.handle(ExecutorForked(2, 3, 102), 0)
    survey_us = scheduler.next_survey_us
    assert survey_us == 5 * SECOND
    busy = {0: (True, 5), 1: (True, 5), 2: (True, 9)}
    assert scheduler.handle(Surveyed(busy), survey_us) == [], "it has run something since it was last looked at"
    survey_us = scheduler.next_survey_us
    assert survey_us is not None
    assert scheduler.handle(Surveyed(busy), survey_us) == [Retire(2, 3)]
    assert scheduler.next_survey_us is None
    assert scheduler.grant(1, 9, survey_us) == [(0, 1), (1, 2)]
    assert scheduler.handle(ended(scheduler, 2, code=0, running=None), survey_us) == []
    scheduler.check()


class AnySchedule(RuleBasedStateMachine):
    """Whatever happens, in whatever order: invariants hold, and no request is answered twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(2, 5, lease_us=50)
        self.now = 0
        self.requests = 0
        self.open: dict[bytes, int] = {}
        self.forks: list[Fork] = []
        self.obey(self.scheduler.start(0))

    def obey(self, done: list[Instruction]) -> None:
        for one in done:
            if isinstance(one, Fork):
                self.forks.append(one)
            if isinstance(one, Reply) and one.request:
                assert self.open.pop(one.request) == one.client

    @rule(client=st.integers(1, 3))
    def join(self, client: int) -> None:
        if client not in self.scheduler.clients:
            self.obey(self.scheduler.handle(ClientJoined(client, client), self.now))

    @rule(client=st.integers(1, 3))
    def leave(self, client: int) -> None:
        self.obey(self.scheduler.handle(ClientLeft(client), self.now))
        self.open = {request: who for request, who in self.open.items() if who != client}

    @rule(
        client=st.integers(1, 4),
        verb=st.sampled_from(["lease", "release", "fate", "functions", "nonsense"]),
        slot=st.integers(0, 5),
    )
    def request(self, client: int, verb: str, slot: int) -> None:
        self.requests += 1
        number = b"%d" % self.requests
        self.open[number] = client
        body = {"want": 1 + slot, "slot": slot, "incarnation": 1 + slot}
        done = self.scheduler.handle(Request(client, number, verb, body), self.now)
        jobs = [one for one in done if isinstance(one, StoreJob)]
        self.obey(done)
        for job in jobs:
            self.obey(self.scheduler.handle(Stored(job, [], True), self.now))

    @rule()
    def forked(self) -> None:
        if self.forks:
            fork = self.forks.pop(0)
            self.obey(self.scheduler.handle(ExecutorForked(fork.slot, fork.incarnation, 1000 + fork.slot), self.now))

    @rule(slot=st.integers(0, 4), code=st.sampled_from([-9, -11, 0, 3]), busy=st.booleans())
    def dies(self, slot: int, code: int, busy: bool) -> None:
        executor = self.scheduler.executors.get(slot)
        if executor is not None and executor.pid:
            event = ExecutorEnded(
                slot, executor.incarnation, executor.pid, code, "f" if busy else "", (1, slot) if busy else None, [], ""
            )
            self.obey(self.scheduler.handle(event, self.now))

    @rule(slot=st.integers(0, 4), unblocked=st.integers(0, 3))
    def asks(self, slot: int, unblocked: int) -> None:
        self.obey(self.scheduler.handle(ExecutorAsks(slot, unblocked), self.now))

    @rule(idle=st.booleans(), begun=st.integers(0, 2))
    def survey(self, idle: bool, begun: int) -> None:
        found = dict.fromkeys(self.scheduler.executors, (idle, begun))
        self.obey(self.scheduler.handle(Surveyed(found), self.now))

    @rule(step=st.sampled_from([1, 40, SECOND, 20 * SECOND]))
    def wait(self, step: int) -> None:
        self.now += step
        self.obey(self.scheduler.tick(self.now))

    @invariant()
    def holds(self) -> None:
        self.scheduler.check()

    def teardown(self) -> None:
        """Every request is answered in the end."""
        for _ in range(3):
            self.now += 60 * SECOND
            self.obey(self.scheduler.tick(self.now))
        assert self.open == {}


class AnyScaledSchedule(AnySchedule):
    """The same, for a node that has from none to four executors, as its calls keep busy."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(0, 5, lease_us=50, scaler=Scaler(0, 4))
        self.forks = []
        self.obey(self.scheduler.start(0))

    @rule(running=st.integers(0, 5), waiting=st.integers(0, 20), begun=st.integers(0, 30))
    def look(self, running: int, waiting: int, begun: int) -> None:
        found = dict.fromkeys(self.scheduler.executors, (not running, begun))
        self.obey(self.scheduler.handle(Surveyed(found, running, waiting), self.now))
        assert self.scheduler.own <= 4


TestAnyScaledSchedule = AnyScaledSchedule.TestCase
TestAnyScaledSchedule.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnySchedule = AnySchedule.TestCase
TestAnySchedule.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
