"""A queue that nobody runs: what its participants know, and what each worker makes of it.

The state is a set of facts (`facts`), and its join is the union, so replicas, late messages and messages that come
twice need no care. The one rule: a task is open to the next attempt when no live worker holds a lease on it, and
whoever sees that may lease it. A lease lives as long as its worker's beat is seen to grow, by the observer's own clock;
of two leases that cross, both sides know by the same hash which one yields, before either begins. Work is so stolen
from dead workers by anybody, and from slow ones by those with nothing else to do. A task under which workers were lost
is at last run alone: if that one is lost too, the task is at fault, and not its neighbours. Which result counts is said
once, by the task's owner (`desk`). Nothing is moved, copied or deleted to hand a task over. Where there is one worker,
no lease can cross another: a task begins as soon as its lease has been told. No clock, no socket: facts and `now` in,
instructions out. Source: decision records 0038, 0047; what it replaces: one work stealer that moves objects between
prefixes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from cloudburst import config
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
)

SLOW_LOOK_US: Final = 250_000
RUNS_KNOWN_MIN: Final = 20
"""So many runs have to be known before what nearly all of them took is."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a queue's participants have agreed on."""

    failures_max: int = 1
    losses_max: int = config.QUEUE_LOSSES_MAX
    lease_us: int = config.QUEUE_LEASE_US
    confirm_us: int = config.QUEUE_CONFIRM_US
    slow_us: int = config.QUEUE_SLOW_US
    slow_factor: int = config.QUEUE_SLOW_FACTOR

    @property
    def begun_max(self) -> int:
        """How often a task is begun at most."""
        return self.failures_max + self.losses_max - 1

    @property
    def attempts_max(self) -> int:
        """The number of the last attempt; most that their workers are lost under were never begun."""
        return 4 * self.begun_max


@dataclass(slots=True)
class Entry:
    """What is known of one task. All is by (attempt, worker); a lease is known since the given time."""

    body: bytes | None = None
    leases: dict[tuple[int, str], int] = field(default_factory=dict)
    begun: set[tuple[int, str]] = field(default_factory=set)
    ends: dict[tuple[int, str], Result | None] = field(default_factory=dict)
    settled: Settled | None = None

    @property
    def attempts(self) -> int:
        """The highest number of an attempt that is known."""
        return max((attempt for attempt, _ in self.leases), default=0)

    @property
    def failures(self) -> int:
        """How many attempts have ended with a failure of the program."""
        return sum(result is not None and not result.ok for result in self.ends.values())

    def chosen(self) -> tuple[int, str, Result] | None:
        """Return the success that everybody who has these facts would take: the least by (output, attempt, worker)."""
        found = [
            (result.output, attempt, worker, result)
            for (attempt, worker), result in self.ends.items()
            if result is not None and result.ok
        ]
        if not found:
            return None
        _, attempt, worker, result = min(found, key=lambda one: one[:3])
        return attempt, worker, result


class Ledger:
    """The join of all facts that have come, and which workers are heard of. Each participant has one."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.entries: dict[bytes, Entry] = {}
        self.unsettled: dict[bytes, None] = {}
        """The keys of tasks that are announced and not settled, in the order in which they came."""
        self.held: dict[str, set[bytes]] = {}
        """By worker, the keys of tasks of which it has leased an attempt that has not ended."""
        self.lost: set[str] = set()
        self.closed: Closed | None = None
        self.runs_us: list[int] = []
        self._heard: dict[str, int] = {}

    def hear(self, worker: str, now_us: int) -> None:
        """Take in that a worker's beat has grown."""
        self._heard[worker] = now_us

    def alive(self, worker: str, now_us: int) -> bool:
        """Whether a worker's leases live: it has been heard of, and nobody has said that it is lost."""
        return worker not in self.lost and self.alive_within(worker, self.rules.lease_us, now_us)

    def alive_within(self, writer: str, silence_us: int, now_us: int) -> bool:
        """Whether a participant has been heard of in the last so many microseconds."""
        heard = self._heard.get(writer)
        return heard is not None and now_us - heard < silence_us

    def was_heard(self, writer: str) -> bool:
        """Whether a participant has ever been heard of."""
        return writer in self._heard

    def workers(self, now_us: int) -> list[str]:
        """Return those that have joined and are alive, sorted."""
        return sorted(worker for worker in self.held if self.alive(worker, now_us))

    def absorb(self, writer: str, fact: Fact, now_us: int) -> None:
        """Join one fact in; the same one again changes nothing."""
        self._heard.setdefault(writer, now_us)
        if isinstance(fact, Lost):
            self.lost.add(fact.worker)
        elif isinstance(fact, Joined):
            self.held.setdefault(writer, set())
        elif isinstance(fact, Closed):
            if self.closed is None or (fact.code, fact.why) > (self.closed.code, self.closed.why):
                self.closed = fact
        elif not isinstance(fact, Taken):
            self._absorb_of_task(writer, fact, now_us)

    def _absorb_of_task(
        self, writer: str, fact: Announced | Leased | Begun | Yielded | Ended | Settled, now_us: int
    ) -> None:
        entry = self.entries.setdefault(fact.key, Entry())
        if isinstance(fact, Announced):
            if entry.body is None and entry.settled is None:
                self.unsettled[fact.key] = None
            entry.body = fact.body
        elif isinstance(fact, Settled):
            before = entry.settled
            if before is None or (fact.attempt, fact.worker) < (before.attempt, before.worker):
                entry.settled = fact
            self.unsettled.pop(fact.key, None)
        else:
            place = (fact.attempt, writer)
            entry.leases.setdefault(place, now_us)
            if isinstance(fact, (Begun, Ended)):
                entry.begun.add(place)
            if isinstance(fact, (Leased, Begun)):
                if place not in entry.ends:
                    self.held.setdefault(writer, set()).add(fact.key)
                return
            if isinstance(fact, Ended):
                if place not in entry.ends and fact.result.ok:
                    self.runs_us.append(fact.result.run_us)
                entry.ends[place] = fact.result
            else:
                entry.ends.setdefault(place, None)
            if all(other in entry.ends for other in entry.leases if other[1] == writer):
                self.held.setdefault(writer, set()).discard(fact.key)

    def live(self, key: bytes, now_us: int) -> list[tuple[int, str]]:
        """Return the attempts, with their workers, that may still end with a result."""
        entry = self.entries[key]
        return [place for place in entry.leases if place not in entry.ends and self.alive(place[1], now_us)]

    def holder(self, key: bytes, attempt: int, now_us: int) -> str | None:
        """Return which of the live workers that have leased an attempt shall run it."""
        workers = [worker for number, worker in self.live(key, now_us) if number == attempt]
        return min(workers, key=lambda worker: rank(key, worker), default=None)

    def is_open(self, key: bytes, now_us: int) -> bool:
        """Whether anybody may lease the task's next attempt now."""
        entry = self.entries[key]
        if entry.body is None or entry.settled is not None or entry.chosen() is not None:
            return False
        return not self.spent(entry) and not self.live(key, now_us)

    def spent(self, entry: Entry) -> bool:
        """Whether no further attempt at a task may be made, by which of its bounds ever."""
        rules = self.rules
        begun = len(entry.begun) >= rules.begun_max
        return begun or entry.failures >= rules.failures_max or entry.attempts >= rules.attempts_max

    def suspect(self, key: bytes, now_us: int) -> bool:
        """Whether so many workers were lost under a task that its last attempt has to be made with none beside it."""
        entry = self.entries[key]
        if len(entry.leases) < self.rules.losses_max - 1:
            return False
        lost = [place for place in entry.leases if place not in entry.ends and not self.alive(place[1], now_us)]
        begun = sum(place in entry.begun for place in lost)
        return begun >= self.rules.losses_max - 1 or len(lost) > self.rules.losses_max

    def slow_us(self) -> int:
        """Return from when on a run is slow: a multiple of what 95 % of all took, as far as that is known."""
        rules = self.rules
        if len(self.runs_us) < RUNS_KNOWN_MIN:
            return 4 * rules.slow_us
        taken = sorted(self.runs_us[-512:])
        return max(rules.slow_us, rules.slow_factor * taken[len(taken) * 95 // 100])

    def check(self) -> None:
        """Assert the invariants: no attempt beyond the last, and what ended had been leased."""
        for key, entry in self.entries.items():
            assert entry.attempts <= self.rules.attempts_max, (key, entry)
            assert entry.ends.keys() <= entry.leases.keys()
            assert (key in self.unsettled) == (entry.body is not None and entry.settled is None)


@dataclass(frozen=True, slots=True)
class Begin:
    """Run the task's attempt now; before `alone` ones, see to it that all that was published has arrived."""

    key: bytes
    attempt: int
    body: bytes
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """End what runs for a task: another's result counts."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Publish:
    """Tell everybody."""

    fact: Fact


Instruction = Begin | Stop | Publish


class Worker:
    """One worker's part: which tasks it leases, begins and stops.

    It runs `slots` of them at a time, and `peers` is how many workers there will soon be, itself included.
    """

    def __init__(self, name: str, slots: int, rules: Rules, peers: int = 1) -> None:
        self.name = name
        self.slots = slots
        self._peers = peers
        self.ledger = Ledger(rules)
        self.running: dict[bytes, int] = {}
        """What runs here: {key: attempt}."""
        self._claims: dict[bytes, tuple[int, int]] = {}
        self._open: dict[bytes, None] = {}
        self._seen_alive: dict[str, bool] = {}
        self._look_us = self._looked_us = 0
        self._told_us = -1
        self.alone = False
        """Whether, at the last tick, no other worker was expected, nor heard of."""

    def absorb(self, writer: str, facts: Iterable[Fact], now_us: int) -> None:
        """Take in what somebody has written."""
        ledger = self.ledger
        for fact in facts:
            ledger.absorb(writer, fact, now_us)
            if isinstance(fact, (Joined, Lost, Closed, Taken)):
                continue
            if ledger.is_open(fact.key, now_us):
                self._open[fact.key] = None
            else:
                self._open.pop(fact.key, None)

    def join(self, now_us: int) -> Publish:
        """Say that this worker is there."""
        return self._publish(Joined(), now_us)

    def tick(self, now_us: int, looked_us: int | None = None) -> list[Instruction]:
        """Return what is to be done now. Call it after `absorb`, after `ended`, and at `next_us`.

        `looked_us` is when news was looked for (None: now): a lease counts as known to all for as long as was looked.
        """
        self._looked_us = now_us if looked_us is None else looked_us
        self.ledger.hear(self.name, now_us)
        self._reopen(now_us)
        looks = now_us - self._looked_us < self.ledger.rules.lease_us // 2  # else it may be replaced, and not know
        self.alone = self._peers == 1 and looks and self.ledger.workers(now_us) == [self.name]
        instructions = [*self._stops(), *self._begins(now_us)]
        if not self.over:
            for key, attempt in self._picks(now_us):
                self._claims[key] = (attempt, now_us)
                self._open.pop(key, None)
                instructions.append(self._publish(Leased(key, attempt), now_us))
        return instructions

    def next_us(self, now_us: int) -> int:
        """Return when `tick` has something to do, if nothing comes before."""
        sooner = min((since for _, since in self._claims.values()), default=now_us) + self.ledger.rules.confirm_us
        waits = len(self.running) < self.slots and bool(self._claims)
        return max(now_us + 1_000, sooner) if waits else now_us + SLOW_LOOK_US

    def ended(self, key: bytes, result: Result, now_us: int, data: bytes = b"") -> Publish:
        """Take in how the attempt that runs here has ended; `data` is told along."""
        return self._publish(Ended(key, self.running.pop(key), result, data), now_us)

    def stopped(self, key: bytes, now_us: int) -> Publish:
        """Take in that the attempt that runs here was stopped: it has no result, and has not failed."""
        return self._publish(Yielded(key, self.running.pop(key)), now_us)

    def told(self, now_us: int) -> None:
        """Take in that all that was published up to then has been written."""
        self._told_us = now_us

    @property
    def over(self) -> bool:
        """Whether nothing more is to be done here: the queue is closed, or its owner has given this worker up."""
        return self.ledger.closed is not None or self.name in self.ledger.lost

    @property
    def waits_to_tell(self) -> bool:
        """Whether a slot is empty only because a lease has not been told yet."""
        return self.alone and bool(self._claims) and len(self.running) < self.slots

    @property
    def fed(self) -> bool:
        """Whether all slots are taken, and there is something that may begin at once when one gets free."""
        return len(self.running) >= self.slots and any(self._known(since_us) for _, since_us in self._claims.values())

    def _known(self, since_us: int) -> bool:
        if self.alone:
            return since_us <= self._told_us
        return self._looked_us - since_us >= self.ledger.rules.confirm_us

    def _publish(self, fact: Fact, now_us: int) -> Publish:
        self.absorb(self.name, (fact,), now_us)
        return Publish(fact)

    def _reopen(self, now_us: int) -> None:
        """Look again at the tasks of workers that have died, or have come back to life."""
        for worker, held in self.ledger.held.items():
            alive = self.ledger.alive(worker, now_us)
            if self._seen_alive.get(worker, True) == alive:
                continue
            self._seen_alive[worker] = alive
            for key in held:
                if self.ledger.is_open(key, now_us):
                    self._open[key] = None
                else:
                    self._open.pop(key, None)

    def _stops(self) -> Iterator[Instruction]:
        over = self.over
        for key in self.running:
            if over or self.ledger.entries[key].settled is not None:
                yield Stop(key)

    def _begins(self, now_us: int) -> Iterator[Instruction]:
        """Begin what has been leased for long enough, and yield what another has leased as well and shall run."""
        for key, (attempt, since_us) in list(self._claims.items()):
            if self.alone and len(self.running) >= self.slots:
                return  # nobody else wants the rest
            entry = self.ledger.entries[key]
            over = entry.settled is not None or self.over
            beaten = self.ledger.holder(key, attempt, now_us) != self.name or entry.attempts > attempt
            if over or beaten or self._gives_back(since_us, now_us):
                del self._claims[key]
                yield self._publish(Yielded(key, attempt), now_us)
            elif self._known(since_us) and self._room_for(key, now_us):
                del self._claims[key]
                self.running[key] = attempt
                assert entry.body is not None
                alone = self.ledger.suspect(key, now_us)
                yield self._publish(Begun(key, attempt), now_us)
                yield Begin(key, attempt, entry.body, alone)

    def _gives_back(self, since_us: int, now_us: int) -> bool:
        """Whether what has been leased here waits for a slot while another worker has nothing to do."""
        ledger = self.ledger
        if len(self.running) < self.slots or self._open or now_us - since_us < 2 * ledger.rules.confirm_us:
            return False
        return any(not ledger.held[worker] for worker in ledger.workers(now_us))

    def _room_for(self, key: bytes, now_us: int) -> bool:
        """Whether a task may begin beside those that run: a suspect runs alone, so that no other is blamed for it."""
        if any(self.ledger.suspect(one, now_us) for one in (key, *self.running)):
            return not self.running
        waiting = any(self.ledger.suspect(one, now_us) for one in self._claims)
        return len(self.running) < self.slots and not waiting

    def _picks(self, now_us: int) -> list[tuple[bytes, int]]:
        """Return what to lease: as much as there will soon be room for, and what hash says is this worker's first."""
        workers = self.ledger.workers(now_us)
        count = max(1, len(workers), self._peers)
        most = 2 * self.slots if self.alone else self.slots
        ahead = min(most, len(self._open) if self.alone else len(self._open) // (2 * count))
        room = self.slots + ahead - len(self.running) - len(self._claims)
        if room <= 0 or (self.fed and room <= most // 2):
            return []  # a few at a time, which are told together
        place = workers.index(self.name) if self.name in workers else 0
        mine: list[bytes] = []
        others: list[bytes] = []
        for key in self._open:
            (mine if key[0] % count == place else others).append(key)
            if len(mine) >= room or len(mine) + len(others) >= 4 * count * room:
                break
        idle = max(0, self.slots - len(self.running) - len(self._claims) - len(mine))
        picked = [*mine[:room], *others[: min(idle, room)]]
        if not picked:
            picked = self._slow(idle, now_us)
        return [(key, self.ledger.entries[key].attempts + 1) for key in picked]

    def _slow(self, idle: int, now_us: int) -> list[bytes]:
        """Return tasks that one other worker has had for too long, when there is nothing else to do."""
        if now_us < self._look_us or not idle:
            return []
        self._look_us = now_us + SLOW_LOOK_US
        ledger, slow_us, found = self.ledger, self.ledger.slow_us(), []
        for key in ledger.unsettled:
            entry = ledger.entries[key]
            live = ledger.live(key, now_us)
            if len(live) != 1 or live[0][1] == self.name or ledger.spent(entry):
                continue
            if now_us - entry.leases[live[0]] >= slow_us and entry.chosen() is None:
                found.append(key)
        return found[:idle]

    def check(self) -> None:
        """Assert the invariants: what runs or is leased here is in one place, and there is a slot for all that runs."""
        self.ledger.check()
        assert not self.running.keys() & self._claims.keys()
        assert not self.slots or len(self.running) <= self.slots
        for key, (attempt, _) in self._claims.items():
            assert (attempt, self.name) in self.ledger.entries[key].leases


def rest_us(age_us: int) -> int:
    """Return how long somebody may rest who has enough to do, and has been at it for `age_us`."""
    return min(config.QUEUE_REST_US, age_us // config.QUEUE_REST_SHARE)


def rank(key: bytes, worker: str) -> bytes:
    """Return what decides between two workers that have leased the same attempt; the least shall run it."""
    return hashlib.blake2b(key + worker.encode(), digest_size=8).digest()
