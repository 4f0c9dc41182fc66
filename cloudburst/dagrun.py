"""One call of a DAG as its caller sees it: which calls it is made of, and what each answer means for the whole.

A pure core. Each stage is a task of its own, and the caller hears of each one's end, so nothing is lost in silence; but
results go from executor to executor, and only the last one's comes here. A stage that has all that it needs can be
sent again, like any call. One that died with results of others in it cannot, so the DAG is begun anew, as often as a
call may be begun (P19). Steps that turn out not to be needed, because a step that takes any result has one, are
cancelled. Source: DESIGN §6; D44 (the caller of a DAG that failed waited for ever), D45; decision record 0019.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from cloudburst import config, frames
from cloudburst.attempts import Home, Joined, Task
from cloudburst.context import invocation_id
from cloudburst.errors import CloudburstError, ExecutorLost, InvalidDag, SnapshotExpired
from cloudburst.graph import Arity, Graph
from cloudburst.outcomes import Outcome
from cloudburst.stages import Stage, place_stages, stages_of


@dataclass(frozen=True, slots=True)
class Plan:
    """A graph made ready for calls: its stages, and which version of which function is at each step."""

    graph: Graph
    stages: tuple[Stage, ...]
    versions: tuple[int, ...]
    arities: tuple[Arity | None, ...]

    @property
    def certain(self) -> frozenset[int]:
        """The stages that have run when the last one has: all, but for what only a step needs that takes any result."""
        found = {len(self.stages) - 1}
        for number in range(len(self.stages) - 1, -1, -1):
            if number in found and not self.stages[number].takes_any:
                found.update(self.stages[number].inputs)
        return frozenset(found)

    @classmethod
    def of(cls, graph: Graph, versions: tuple[int, ...], arities: tuple[Arity | None, ...]) -> Plan:
        """Return the plan of a graph."""
        return cls(graph, stages_of(graph), versions, arities)

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int, tuple[Any, ...]]:
        """Return what a caller gives to which step beside its predecessors' results. Raises InvalidDag."""
        name = self.graph.name
        if kwargs or len(args) > 1 or (args and not isinstance(args[0], Mapping)):
            raise InvalidDag(f"dag {name!r} is called with one dictionary, of the arguments of each step by its name")
        found: dict[int, tuple[Any, ...]] = {}
        for step, own in (args[0] if args else {}).items():
            place = self.graph.place(step)
            if not isinstance(own, tuple):
                kind = type(own).__name__
                raise InvalidDag(f"the arguments of step {step!r} are a tuple, such as (x,); got a {kind}")
            found[place] = own
        for place, one in enumerate(self.graph.steps):
            arity, given = self.arities[place], len(found.get(place, ()))
            if arity is not None and arity.refuses(one.inputs + given):
                raise InvalidDag(
                    f"step {one.name!r} of dag {name!r} would get {one.inputs} results and {given} arguments;"
                    f" {one.function!r} takes {arity}"
                )
        return found


@dataclass(frozen=True, slots=True)
class Own:
    """The arguments that one step gets from the caller, pickled; the keys that are Refs in them, and the futures."""

    payload: bytes = b""
    refs: list[str | bytes] = field(default_factory=list)
    needs: tuple[Any, ...] = ()
    flags: int = 0
    held: object = None
    """The segment of the arguments, which `payload` describes when `flags` have SHARED."""


NOTHING: Final = Own()


class StageTask(Task):
    """One stage on its way. `restart`: it ended so that only the whole DAG can be tried again."""

    __slots__ = ("placed", "restart", "run", "stage", "where")

    def __init__(self, run: DagRun, stage: int, low: int, name: str, flags: int) -> None:
        retries = run.retries if not flags & frames.AWAITS else None
        super().__init__(run.high, low, name, name.encode(), b"", flags, b"", run.deadline_us, retries, 0)
        self.user_attempts_max = 1
        self.run = run
        self.stage = stage
        self.where: dict[str, Any] = {}
        self.placed = False
        self.restart = False

    def keep(self, thing: object) -> bool:
        """Keep `thing` until the DAG is over: its stages share what one of them has made."""
        if not self.run.done:
            self.run.kept.append(thing)
        return not self.run.done

    @property
    def follows(self) -> bool:
        """Whether it is sent when another task's turn has come, and not by itself."""
        return self.stage != 0

    @property
    def awaits(self) -> bool:
        """Whether results of others go to where it was sent, so that it cannot be sent elsewhere."""
        return bool(self.flags & frames.AWAITS)

    def answered(self, frame: bytes, slot: int) -> Outcome | None:
        """Take in a reply, as `Task.answered`."""
        if self.awaits and frame[4] == frames.BOUNCED:
            start = frames.REPLY_HEADER_BYTES + frames.REPLY_HEADER.unpack_from(frame)[6]
            if frame[start : start + 1] == frames.WHY_LOST:
                return self._bereft(frame[start + 1 :].decode(errors="replace"))
            if len(frame) == start + 1:
                return self._given_up(ExecutorLost(f"executor {slot} is leaving and takes no stage", definite=True))
            self._carry(frame[start + 1 :])
        return super().answered(frame, slot)

    def _bereft(self, how: str) -> Outcome:
        return self._given_up(ExecutorLost(f"what {self.name!r} was to be called with is lost: {how}"))

    def _carry(self, inputs: bytes) -> None:
        """Take over the results that came for it where it could not run: it is complete now, and can go anywhere."""
        self.flags &= ~frames.AWAITS
        self.where |= {"inputs": len(inputs)}
        self.extras = msgpack.packb(self.where)
        self.payload = inputs + self.payload

    def lost(self, slot: int, fate: dict[str, Any] | None, now_us: int) -> Outcome | None:
        """Take in that the executor ended, as `Task.lost`."""
        if not self.awaits:
            return super().lost(slot, fate, now_us)
        self.attempts += 1
        poisoned = fate is not None and fate["poisoned"]
        fault = ExecutorLost(self._describe_loss(slot, fate, poisoned))
        return self.failed(fault) if poisoned else self._given_up(fault)

    @property
    def tries(self) -> int:
        """How often the whole has been begun and has ended before."""
        return self.run.attempts - 1

    def _expired_under(self, fault: SnapshotExpired) -> Outcome:
        self.run.expired = fault.epoch, fault.view
        return self._given_up(fault)

    def _refused(self, fault: CloudburstError) -> Outcome | None:
        if isinstance(fault, SnapshotExpired):
            return self._expired_under(fault)
        return self.failed(fault) if self.awaits else super()._refused(fault)

    def _given_up(self, fault: CloudburstError) -> Outcome:
        self.restart = True
        return self.failed(fault)

    def _where(self, slot: int) -> str:
        return f"in executor {slot}, as a step of dag {self.run.name!r}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means: how the DAG ended, if it did, which tasks to cancel, and what to submit to begin anew."""

    outcome: Outcome | None = None
    cancelled: tuple[StageTask, ...] = ()
    again: StageTask | None = None


NO_CHANGE: Final = Verdict()


class DagRun:
    """One call of a DAG. `numbers` gives the lower halves of its invocations' ids; `owns` are the steps' arguments."""

    def __init__(
        self, plan: Plan, high: int, numbers: Iterator[int], owns: Mapping[int, Own], deadline_us: int,
        retries: int | None = None, key: str | bytes | None = None,
    ) -> None:  # fmt: skip
        self.nears: dict[int, int] = {}
        """The node whose cache holds most of what a stage's arguments refer to, for stages that have such a node."""
        self.plan = plan
        self.name = plan.graph.name
        self.high = high
        self.low = next(numbers)
        self.deadline_us = deadline_us
        self.retries = retries
        self.attempts = 0
        self.done = False
        self.needs = tuple(future for own in owns.values() for future in own.needs)
        self.tasks: list[StageTask] = []
        self.kept: list[object] = []
        """The segments that its stages hand on: they stay until it is over."""
        self._numbers = numbers
        self._owns = owns
        self._key = key
        self._attempts_max = config.ATTEMPTS_MAX if retries is None else retries + 1
        self._user_attempts_max = 1 if retries is None else retries + 1
        self._ended: list[bool] = []
        self._failed: dict[int, Outcome] = {}
        self._ran: frozenset[int] = frozenset()
        self._printed = b""
        self._recorded: tuple[bytes, ...] = ()
        self.session: Joined | None = None
        self.expired: tuple[int, int] | None = None
        """Set when the epoch of its session was lost: at which the next attempt must be; epoch 0 for any."""
        self._context = b""
        self.trace = ""
        """The span under which its functions are recorded; "" when nobody traces it."""

    @property
    def id(self) -> str:
        """The id of this call, the same for all of its attempts."""
        return invocation_id(self.high, self.low)

    @property
    def output(self) -> bytes:
        """What its functions have printed, in the order of the steps, as far as their replies have brought it."""
        return self._printed + b"".join(task.output for task in self.tasks)

    @property
    def spans(self) -> tuple[bytes, ...]:
        """What was recorded of its functions, as far as their replies have brought it."""
        return self._recorded + tuple(one for task in self.tasks for one in task.spans)

    # -- sending

    def begin(self) -> StageTask:
        """Begin an attempt; return the task to submit, with which all others go."""
        self.attempts += 1
        if self.session is not None and not self._context:
            self._context = self.session.context()
        self._printed = self.output
        self._recorded = self.spans
        stages, steps = self.plan.stages, self.plan.graph.steps
        self.tasks = [
            StageTask(
                self, number, next(self._numbers), steps[stage.steps[0]].function,
                frames.STAGE | (frames.AWAITS if stage.inputs else 0),
            )
            for number, stage in enumerate(stages)
        ]  # fmt: skip
        self._ended = [False] * len(stages)
        self._failed = {}
        self.tasks[0].group = self
        for task in self.tasks:
            task.session = self.session
        return self.tasks[0]

    def place(self, slot: int, loads: Mapping[int, int], homes: Mapping[int, Home]) -> list[tuple[int, Task]]:
        """Choose an executor for each stage, `slot` for the first; return what to send where, those that wait first."""
        if self.done:
            return []
        wanted = {
            number: frozenset(one for one in loads if homes[one].node == node) for number, node in self.nears.items()
        }
        slots = place_stages(self.plan.stages, slot, loads, wanted)
        for number, task in enumerate(self.tasks):
            self._fill(number, task, slots, homes)
            task.placed = True
        order = sorted(range(len(slots)), key=lambda number: not self.tasks[number].awaits)
        return [(slots[number], self.tasks[number]) for number in order]

    def _fill(self, number: int, task: StageTask, slots: list[int], homes: Mapping[int, Home]) -> None:
        stage = self.plan.stages[number]
        task.where = self._extras(number) | {
            "to": [
                [*homes[slots[one]], self.tasks[one].low, position]
                for one, position in stage.successors
            ]
        }
        task.extras = msgpack.packb(task.where)
        task.payload = self._payload(number)
        task.flags |= self._shared(number)

    def _extras(self, number: int) -> dict[str, Any]:
        stage, graph = self.plan.stages[number], self.plan.graph
        steps = []
        for place in stage.steps:
            own = self._owns.get(place, NOTHING)
            version, size = self.plan.versions[place], len(own.payload)
            steps.append([graph.steps[place].function, version, size, own.refs, own.flags])
        extras: dict[str, Any] = {"dag": self.name, "run": self.low, "steps": steps}
        if stage.inputs:
            extras |= {"positions": len(stage.inputs), "awaits": stage.awaits}
        if number == len(self.plan.stages) - 1 and self._key is not None:
            extras["key"] = self._key
        if self.trace:
            extras["trace"] = self.trace
        if self._context and not stage.inputs:
            extras["session"] = self._context
        return extras

    def _shared(self, number: int) -> int:
        return frames.SHARED if any(self._owns.get(one, NOTHING).flags for one in self.plan.stages[number].steps) else 0

    def _payload(self, number: int) -> bytes:
        return b"".join(self._owns.get(place, NOTHING).payload for place in self.plan.stages[number].steps)

    def alone(self) -> Task:
        """Return the whole DAG as one ordinary task, when it is one chain."""
        assert len(self.plan.stages) == 1
        self._context = b"" if self.session is None else self.session.context()
        task = Task(
            self.high, self.low, self.name, self.name.encode(), self._payload(0), frames.STAGE | self._shared(0),
            msgpack.packb(self._extras(0)), self.deadline_us, self.retries,
        )  # fmt: skip
        task.needs = self.needs
        task.near = self.nears.get(0, 0)
        task.kept = self._owns
        task.session = self.session
        return task

    # -- hearing

    def heard(self, task: StageTask, outcome: Outcome) -> Verdict:
        """Take in how a stage ended."""
        number = task.stage
        if outcome.descriptor is not None:
            task.keep(outcome)  # also of one that lost a race: what it handed on may have been there first
        if self.tasks[number] is not task or self._ended[number]:
            return NO_CHANGE
        self._ended[number] = True
        if self.done:
            return NO_CHANGE
        if outcome.failed:
            return self._failure(task, outcome)
        if number == len(self.tasks) - 1:
            return self._over(outcome)
        if any(self.plan.stages[one].takes_any for one, _ in self.plan.stages[number].successors):
            return Verdict(cancelled=self._not_needed())
        return NO_CHANGE

    def _failure(self, task: StageTask, outcome: Outcome) -> Verdict:
        self._failed[task.stage] = outcome
        if not self._doomed():
            return Verdict(cancelled=self._not_needed())
        raised = outcome.raised_by_user
        most = self._user_attempts_max if raised else self._attempts_max if task.restart else 0
        if self.attempts < most and self._may_begin_again():
            cancelled = self._live()
            return Verdict(cancelled=cancelled, again=self.begin())
        return self._over(outcome)

    def _may_begin_again(self) -> bool:
        """Whether its session can go on: at another epoch, if the one that it read at has expired."""
        if self.expired is not None and self.session is not None:
            at, self.expired = self.expired, None
            self._context = self.session.renewed(at) or b""
            return bool(self._context)
        return True

    def _over(self, outcome: Outcome) -> Verdict:
        """End it. What has run, though its caller has not heard so yet, is not cancelled: it tells what was printed."""
        self.done = True
        self._let_go()
        outcome.attempts = max(self.attempts, outcome.attempts)
        if not outcome.failed:
            self._ran = self.plan.certain
        return Verdict(outcome, tuple(task for task in self._live() if task.stage not in self._ran))

    @property
    def all_told(self) -> bool:
        """Whether it is over, and every function that has run has said what it had printed."""
        return self.done and all(self._ended[number] for number in self._ran)

    def stop(self) -> tuple[StageTask, ...]:
        """End it at its caller's wish; return the tasks to cancel."""
        self.done = True
        self._let_go()
        return self._live()

    def _let_go(self) -> None:
        """Part with what was to be sent, and with what stages have handed on: nothing will be any more."""
        self._owns = {}
        self.needs = ()
        self.kept.clear()

    def _live(self) -> tuple[StageTask, ...]:
        return tuple(task for task in self.tasks if not self._ended[task.stage] and (task.placed or not task.stage))

    def _doomed(self) -> bool:
        """Whether the last stage cannot get what it needs any more."""
        lost: set[int] = set()
        for number, stage in enumerate(self.plan.stages):
            missing = [one in lost for one in stage.inputs]
            if number in self._failed or (missing and (all(missing) if stage.takes_any else any(missing))):
                lost.add(number)
        return len(self.plan.stages) - 1 in lost

    def _not_needed(self) -> tuple[StageTask, ...]:
        """Mark as ended, and return, the stages whose results nobody needs any more."""
        stages = self.plan.stages
        succeeded = [ended and number not in self._failed for number, ended in enumerate(self._ended)]
        needed = [False] * len(stages)
        needed[-1] = True
        for number in range(len(stages) - 1, -1, -1):
            stage = stages[number]
            served = succeeded[number] or (stage.takes_any and any(succeeded[one] for one in stage.inputs))
            if needed[number] and not served and number not in self._failed:
                for one in stage.inputs:
                    needed[one] = True
        idle = tuple(task for task in self._live() if not needed[task.stage])
        for task in idle:
            self._ended[task.stage] = True
        return idle
