"""One owner and several workers of a queue, from one seed, in virtual time: workers die, freeze and are slow, what they
write is seen late, in another order and more than once. What must hold is asserted at the end of each run."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import count

from cloudburst.burst.tasks.desk import Desk, Outcome
from cloudburst.burst.tasks.facts import Fact, Result
from cloudburst.burst.tasks.queue import Begin, Instruction, Publish, Rules, Stop, Worker

END_US = 120_000_000
OWNER = "owner"


@dataclass
class Conditions:
    """What a run goes through."""

    tasks: int = 40
    workers: int = 4
    slots: int = 3
    delay_us: int = 15_000
    deaths: int = 2
    freezes: int = 1
    frozen_us: int = 8_000_000
    """For how long at most."""
    failing: float = 0.0
    deadly: int = 0
    """Tasks under which each worker dies."""
    window: int = 16
    rules: Rules = field(default_factory=lambda: Rules(failures_max=2))


class Run:
    """One run."""

    def __init__(self, seed: int, conditions: Conditions) -> None:
        self.conditions = conditions
        self.random = random.Random(seed)
        self.now_us = 0
        self.desk = Desk(OWNER, conditions.rules, conditions.window)
        self.workers: dict[str, Worker] = {}
        self.frozen: dict[str, int] = {}
        self.begun: Counter[bytes] = Counter()
        self.outcomes: list[Outcome] = []
        self.written: list[tuple[str, Fact]] = []
        self.waiting = [self.random.randbytes(8) for _ in range(conditions.tasks)]
        self.keys = list(self.waiting)
        self.deadly = set(self.keys[: conditions.deadly])
        self.given_up: set[str] = set()
        self._stopped: set[tuple[str, bytes, int]] = set()
        self._events: list[tuple[int, int, str, tuple[object, ...]]] = []
        self._numbers = count()
        self._names = count(1)

    def run(self) -> Run:
        """Go on until all is settled; return this. Fails when it takes too long."""
        for _ in range(self.conditions.workers):
            self._start()
        chaos = ["die"] * self.conditions.deaths + ["freeze"] * self.conditions.freezes
        for what in chaos:
            self._at(self.random.randrange(3_000_000), what)
        self._at(0, "owner")
        while not self.over:
            self.now_us, _, what, given = heapq.heappop(self._events)
            assert self.now_us < END_US, f"{len(self.desk.ledger.unsettled)} of {len(self.keys)} tasks never settled"
            getattr(self, f"_on_{what}")(*given)
        return self

    @property
    def over(self) -> bool:
        """Whether each task has been announced and settled."""
        return not self.waiting and self.desk.empty

    def _at(self, after_us: int, what: str, *given: object) -> None:
        heapq.heappush(self._events, (self.now_us + after_us, next(self._numbers), what, given))

    def _start(self) -> None:
        conditions = self.conditions
        worker = Worker(f"worker {next(self._names)}", conditions.slots, conditions.rules, conditions.workers)
        self.workers[worker.name] = worker
        for writer, fact in self.written:
            worker.absorb(writer, (fact,), self.now_us)
        self._obey(worker.name, [worker.join(self.now_us)])
        worker.told(self.now_us)
        self._at(0, "beat", worker.name)

    def _tell(self, writer: str, fact: Fact) -> None:
        self.written.append((writer, fact))
        for name in (OWNER, *self.workers):
            if name != writer:
                for _ in range(1 + (self.random.random() < 0.05)):
                    self._at(self.random.randrange(1, self.conditions.delay_us), "hears", name, writer, fact)

    def _on_hears(self, name: str, writer: str, fact: Fact | None) -> None:
        if name == OWNER:
            if fact is None:
                self.desk.ledger.hear(writer, self.now_us)
            else:
                self._settle(self.desk.absorb(writer, (fact,), self.now_us))
            return
        worker = self.workers.get(name)
        if worker is None:
            return
        if self.now_us < self.frozen.get(name, 0):
            self._at(self.frozen[name] - self.now_us + 1, "hears", name, writer, fact)
        elif fact is None:
            worker.ledger.hear(writer, self.now_us)
        else:
            worker.absorb(writer, (fact,), self.now_us)

    def _on_beat(self, name: str) -> None:
        worker = self.workers.get(name)
        if worker is None:
            return
        if self.now_us < self.frozen.get(name, 0):
            self._at(self.frozen[name] - self.now_us + 1, "beat", name)
            return
        self._obey(name, worker.tick(self.now_us))
        worker.told(self.now_us)
        worker.check()
        if name in worker.ledger.lost and not worker.running:
            del self.workers[name]
            return
        for other in (OWNER, *self.workers):
            self._at(self.random.randrange(1, self.conditions.delay_us), "hears", other, name, None)
        self._at(min(20_000, max(1, worker.next_us(self.now_us) - self.now_us)), "beat", name)

    def _obey(self, name: str, instructions: list[Instruction]) -> None:
        for one in instructions:
            if isinstance(one, Publish):
                self._tell(name, one.fact)
            elif isinstance(one, Begin):
                self.begun[one.key] += 1
                if one.key in self.deadly:
                    self._at(self.random.randrange(100_000), "die", name)
                    continue
                slow = 100 if self.random.random() < 0.01 else 1
                self._at(slow * self.random.randrange(20_000, 200_000), "end", name, one.key, one.attempt)
            else:
                assert isinstance(one, Stop)
                self._stopped.add((name, one.key, self.workers[name].running[one.key]))
                self._at(0, "end", name, one.key, self.workers[name].running[one.key])

    def _on_end(self, name: str, key: bytes, attempt: int) -> None:
        worker = self.workers.get(name)
        if worker is None or worker.running.get(key) != attempt:
            return
        if self.now_us < self.frozen.get(name, 0):
            self._at(self.frozen[name] - self.now_us + 1, "end", name, key, attempt)
            return
        if (name, key, attempt) in self._stopped:
            self._obey(name, [worker.stopped(key, self.now_us)])
            return
        code = int(self.random.random() < self.conditions.failing)
        output = bytes([self.random.randrange(4)])
        result = Result(code, b"" if code else output, 1, "", 100_000)
        self._obey(name, [worker.ended(key, result, self.now_us)])

    def _on_die(self, name: str | None = None) -> None:
        alive = list(self.workers)
        if not alive or (name is not None and name not in self.workers):
            return
        del self.workers[name or self.random.choice(alive)]
        self._start()

    def _on_freeze(self) -> None:
        lasts_us = self.random.randrange(self.conditions.frozen_us)
        self.frozen[self.random.choice(list(self.workers))] = self.now_us + lasts_us

    def _on_owner(self) -> None:
        while self.waiting and self.desk.room:
            self._tell(OWNER, self.desk.offer(self.waiting.pop(0), b"a task", self.now_us))
        self._settle(self.desk.look(self.now_us))
        self.desk.check()
        employed = self.workers.keys() - self.given_up
        if self.desk.all_silent(employed, self.now_us):
            for name in sorted(employed):
                self.given_up.add(name)
                self._tell(OWNER, self.desk.lose(name, self.now_us))
                self._start()
        self._at(100_000, "owner")

    def _settle(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            self.outcomes.append(outcome)
            self._tell(OWNER, outcome.settled)
