"""The caller's side of a DAG against executors made of the real cores: whatever dies, is late, or is handed back.

The executors here are `Joins` and a list; what they run is symbolic, so the result says which values met where.
"""

from __future__ import annotations

import itertools
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudburst import config, faults, frames
from cloudburst.attempts import Home, Task
from cloudburst.dagrun import DagRun, Own, Plan, StageTask
from cloudburst.dispatch import Dispatcher
from cloudburst.errors import ExecutorLost, FunctionError
from cloudburst.executor.joins import Input, Joins
from cloudburst.executor.queue import Call
from cloudburst.executor.stagework import StageWork, announced
from cloudburst.graph import Graph, any_of, graph_of
from cloudburst.outcomes import Outcome
from cloudburst.pickling import dumps, loads
from tests.cloudburst.test_graph import graphs

DEADLINE = 10**12
FORK = {"start": [], "left": ["start"], "right": ["start"], "end": ["left", "right"]}


def plan_of(graph: Graph) -> Plan:
    return Plan.of(graph, (1,) * len(graph.steps), (None,) * len(graph.steps))


class Executors:
    """A few executors, one client with one DAG under way, and an adversary who decides what happens next."""

    def __init__(
        self, graph: Graph, count: int, failing: frozenset[str] = frozenset(), retries: int | None = None
    ) -> None:
        owns = {place: Own(dumps(((step.name.upper(),), {}))) for place, step in enumerate(graph.steps)}
        self.run = DagRun(plan_of(graph), 7, itertools.count(1), owns, DEADLINE, retries)
        self.dispatcher = Dispatcher()
        self.lives = dict.fromkeys(range(count), 1)
        self.joins = {slot: Joins() for slot in range(count)}
        self.queues: dict[int, list[Call]] = {slot: [] for slot in range(count)}
        self.sent: dict[tuple[int, int], StageTask] = {}
        self.begun: dict[str, int] = {}
        self.failing = failing
        self.outcome: Outcome | None = None
        for slot in range(count):
            self.dispatcher.open(slot, Home(9, slot, 1))
        self.submit(self.run.begin())

    def submit(self, task: Task) -> None:
        self.dispatcher.submit(task)
        self.send()

    def send(self) -> None:
        for slot, task in self.dispatcher.next_sends({slot: len(queue) for slot, queue in self.queues.items()}):
            assert isinstance(task, StageTask)
            self.hear_call(slot, task)

    def hear_call(self, slot: int, task: StageTask) -> None:
        frame = task.frame(0)
        _, _, flags, name, request, extras, version, _, high, low = frames.CALL_HEADER.unpack_from(frame)
        middle = frames.CALL_HEADER_BYTES + name
        call = Call(1, request, frame[frames.CALL_HEADER_BYTES : middle], version, high, low, DEADLINE, flags,
                    frame[middle : middle + extras], frame[middle + extras :])  # fmt: skip
        self.sent[slot, call.request] = task
        if not flags & frames.AWAITS:
            self.queues[slot].append(call)
            return
        found = self.joins[slot].announce(call, *announced(call), 0)
        if isinstance(found, Call):
            self.queues[slot].append(found)

    def act(self, slot: int) -> None:
        """Run the oldest complete stage of an executor."""
        call = self.queues[slot].pop(0)
        work = StageWork.of(call)
        values = [None if one.payload is None else loads(one.payload) for one in work.inputs]
        for step in work.steps:
            name = step.function.decode()
            self.begun[name] = self.begun.get(name, 0) + 1
            if name in self.failing:
                raised = faults.pack(ValueError(name), None, name)
                self.reply(slot, call, frames.reply(frames.RAISED, call.request, raised))
                return
            values = [(name, *values, *loads(step.own)[0])]
        for target in work.targets:
            if self.lives[target.slot] == target.incarnation:
                key = (call.high, target.low)
                found = self.joins[target.slot].arrive(key, target.position, Input(dumps(values[0])), DEADLINE, 0)
                if found is not None:
                    self.queues[target.slot].append(found[0])
        self.reply(slot, call, frames.reply(frames.OK, call.request, b"" if work.targets else dumps(values[0]),
                                            flags=frames.EMPTY if work.targets else 0))  # fmt: skip

    def hand_back(self, slot: int) -> None:
        """Bounce the oldest complete stage, as an executor does that waits for a nested call."""
        call = self.queues[slot].pop(0)
        inputs = frames.pack_inputs(call.inputs) if call.inputs else b""
        self.reply(slot, call, frames.reply(frames.BOUNCED, call.request, frames.WHY_BLOCKED + inputs))

    def kill(self, slot: int) -> None:
        """End an executor; a new one takes its place."""
        lost = self.dispatcher.lose(slot)
        self.lives[slot] += 1
        self.joins[slot], self.queues[slot] = Joins(), []
        fate = {"pid": 1, "code": -9, "unsettled": None, "tail": "", "function": "", "poisoned": False}
        self.dispatcher.open(slot, Home(9, slot, self.lives[slot]))
        for task in reversed(lost):
            if not task.done:
                self.settle(task, task.lost(slot, fate, 0))
        self.send()

    def reply(self, slot: int, call: Call, frame: bytes) -> None:
        task = self.dispatcher.answered(slot, call.request, -1)
        assert task is self.sent[slot, call.request]
        if not task.done:
            self.settle(task, task.answered(frame, slot))
        self.send()

    def settle(self, task: Task, outcome: Outcome | None) -> None:
        assert isinstance(task, StageTask)
        if outcome is None:
            self.dispatcher.again(task)
            return
        self.dispatcher.finished(task)
        verdict = self.run.heard(task, outcome)
        if verdict.outcome is not None:
            assert self.outcome is None
            self.outcome = verdict.outcome
        for one in verdict.cancelled:
            if one.done:
                continue
            slot = one.slot
            self.dispatcher.finished(one)
            if slot >= 0:
                self.joins[slot].cancel(1, one.low)
                self.queues[slot] = [call for call in self.queues[slot] if call.low != one.low]
        if verdict.again is not None:
            self.submit(verdict.again)

    def busy(self) -> list[int]:
        return [slot for slot, queue in self.queues.items() if queue]

    def finish(self) -> Outcome:
        """Let everything that can still happen happen, in turns."""
        while busy := self.busy():
            self.act(busy[0])
            self.dispatcher.check()
        assert self.outcome is not None, "nothing is left to do, and the caller waits"
        return self.outcome


def possible(graph: Graph, place: int, found: Any) -> bool:
    """Whether `found` is what a step could return: its name, its inputs in their order, its own argument."""
    step = graph.steps[place]
    if found[0] != step.function or found[-1] != step.name.upper():
        return False
    inputs = found[1:-1]
    if step.takes_any:
        return len(inputs) == 1 and any(possible(graph, before, inputs[0]) for before in step.predecessors)
    return len(inputs) == len(step.predecessors) and all(
        possible(graph, before, one) for before, one in zip(step.predecessors, inputs, strict=True)
    )


@settings(max_examples=300)
@given(graphs(), st.integers(1, 3), st.lists(st.tuples(st.sampled_from("aaabk"), st.integers(0, 2)), max_size=30))
def test_whatever_happens_the_caller_gets_the_value_or_is_told_why_not(
    graph: Graph, count: int, events: list[tuple[str, int]]
) -> None:
    cluster = Executors(graph, count)
    for kind, slot in events:
        busy = cluster.busy()
        if kind == "k":
            cluster.kill(slot % count)
        elif busy and kind == "b":
            cluster.hand_back(busy[slot % len(busy)])
        elif busy:
            cluster.act(busy[slot % len(busy)])
        cluster.dispatcher.check()
        for joins in cluster.joins.values():
            joins.check()
    outcome = cluster.finish()
    assert max(cluster.begun.values(), default=0) <= config.ATTEMPTS_MAX * len(graph.steps)
    if outcome.failed:
        assert isinstance(outcome.error(), ExecutorLost)
        assert sum(kind == "k" for kind, _ in events) >= config.ATTEMPTS_MAX
    else:
        assert possible(graph, len(graph.steps) - 1, outcome.value())
    assert len(cluster.dispatcher) == 0
    assert all(not len(joins) for joins in cluster.joins.values())


@given(graphs(), st.data())
def test_a_step_that_raises_ends_the_dag_unless_another_result_will_do(graph: Graph, data: st.DataObject) -> None:
    broken = data.draw(st.sampled_from([step.name for step in graph.steps]))
    cluster = Executors(graph, 2, frozenset({broken}))
    outcome = cluster.finish()
    spared = {place for place, step in enumerate(graph.steps) if step.name == broken}
    for place, step in enumerate(graph.steps):
        lost = [before in spared for before in step.predecessors]
        if lost and (all(lost) if step.takes_any else any(lost)):
            spared.add(place)
    if len(graph.steps) - 1 in spared:
        fault = outcome.error()
        assert isinstance(fault, ValueError)
        assert isinstance(fault, FunctionError)
        assert (fault.function, fault.attempts, cluster.begun[broken]) == (broken, 1, 1)
    else:
        assert possible(graph, len(graph.steps) - 1, outcome.value())


def test_what_was_asked_for_is_how_often_a_raising_dag_is_begun() -> None:
    cluster = Executors(graph_of("f", FORK), 2, frozenset({"left"}), retries=2)
    fault = cluster.finish().error()
    assert isinstance(fault, FunctionError)
    assert (fault.attempts, cluster.begun["left"], cluster.begun["start"]) == (3, 3, 3)


def test_a_loser_of_a_race_is_cancelled_as_soon_as_there_is_a_winner() -> None:
    graph = graph_of("race", {"slow": [], "then": ["slow"], "quick": [], "take": any_of("then", "quick")})
    cluster = Executors(graph, 2)
    [quick] = [task for task in cluster.run.tasks if task.name == "quick"]
    cluster.act(quick.slot)
    [slow] = [task for task in cluster.run.tasks if task.name == "slow"]
    assert slow.done
    assert cluster.finish().value() == ("take", ("quick", "QUICK"), "TAKE")
    assert "slow" not in cluster.begun


def test_what_has_run_is_not_cancelled_when_the_last_result_overtakes_its_reply() -> None:
    """Its reply still says what it has printed; it had been dropped, and `logs` were incomplete."""
    run = DagRun(plan_of(graph_of("g", FORK)), 7, itertools.count(1), {}, DEADLINE)
    run.begin()
    start, left, right, end = run.tasks
    for task in (start, left, right, end):
        task.placed = True

    def heard(task: StageTask) -> tuple[bool, tuple[StageTask, ...]]:
        outcome = task.answered(frames.reply(frames.OK, 0, b"", flags=frames.EMPTY, output=b"x"), 0)
        assert outcome is not None
        verdict = run.heard(task, outcome)
        return verdict.outcome is not None, verdict.cancelled

    assert heard(start) == (False, ())
    assert heard(left) == (False, ())
    assert heard(end) == (True, ())
    assert not run.all_told
    assert heard(right) == (False, ())
    assert run.all_told
    assert run.output == b"xxxx"


def test_a_stage_that_is_handed_back_takes_its_results_along() -> None:
    cluster = Executors(graph_of("f", FORK), 2)
    [end] = [task for task in cluster.run.tasks if task.name == "end"]
    while [call.low for call in cluster.queues[end.slot]] != [end.low]:
        cluster.act(cluster.busy()[0])
    cluster.hand_back(end.slot)
    assert not end.awaits
    assert msgpack.unpackb(end.extras)["inputs"] > 0
    assert cluster.finish().value()[0] == "end"
    assert set(cluster.begun.values()) == {1}
