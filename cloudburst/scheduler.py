"""Who may send calls to which executor of a node, and how many executors there are.

A pure core: events in, instructions out, `now` is an argument. Clients hold leases on executors and send their calls
straight there; the scheduler is asked when a client comes, when its leases run out and when an executor is lost, not
when a call is made. Leases expire, are revoked with their executor and end with their client. Every request gets
exactly one answer. A node keeps its own number of executors; when calls wait for nested calls, others stand in, so
that a chain of nested calls ends for want of slots with an error, and never in silence.
Source: DESIGN §6; D45, D48, D53, D55; P19, P22.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from cloudburst import config
from cloudburst.autoscaling import Load, Scaler
from cloudburst.endings import describe_exit, is_self_inflicted
from cloudburst.errors import CloudburstError, NotSupported, Overloaded, RequestError
from cloudburst.messages import (
    AnnounceFunctions,
    ClientJoined,
    ClientLeft,
    Event,
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

FATES_MAX: Final = 256
"""Ended executors whose end the node remembers."""
LEASES_MAX: Final = config.EXECUTORS_MAX + config.FOREIGN_EXECUTORS_MAX
REFORK_PAUSE_MAX_US: Final = 5_000_000
SURPLUS_IDLE_US: Final = int(config.SURPLUS_IDLE_S * 1e6)
STORE_VERBS: Final = frozenset(("register", "dag", "alias", "delete", "functions", "versions"))


@dataclass(slots=True)
class _Executor:
    incarnation: int
    pid: int = 0
    forked_us: int = 0
    leases: dict[int, int] = field(default_factory=dict)
    leaving: bool = False
    idle_since_us: int = 0
    begun: int = 0


@dataclass(slots=True)
class _Client:
    pid: int
    leases: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: Request
    until_us: int


class Scheduler:
    """The scheduler of one node with `own` executors, and up to `most` while calls are nested; 0 are a gateway's."""

    def __init__(
        self, own: int, most: int = config.EXECUTORS_MAX, lease_us: int = int(config.LEASE_S * 1e6),
        scaler: Scaler | None = None,
    ) -> None:  # fmt: skip
        if not 0 <= own <= most:
            raise ValueError(f"{own} executors; a node has 0 to {most}")
        self.own = own
        self.scaler = scaler
        self.most = most
        self.lease_us = lease_us
        self.executors: dict[int, _Executor] = {}
        self.clients: dict[int, _Client] = {}
        self.foreign: dict[int, int] = {}
        self._incarnations = 0
        self._lease_queue: deque[_Waiting] = deque()
        self._fate_queue: list[_Waiting] = []
        self._fates: dict[tuple[int, int], dict[str, Any]] = {}
        self._refork: dict[int, int] = {}
        self._quick_deaths = 0
        self._crashes: dict[str, int] = {}
        self._losses: dict[tuple[int, int], int] = {}
        self.homes: dict[str, list[int]] = {}
        """The executors of functions that not all may run, by slot."""
        self._poisoning: set[str] = set()
        self._survey_us: int | None = None if scaler is None else 0
        self._stopping = False
        self._verbs: dict[str, Callable[[Request, int], list[Instruction]]] = {
            "lease": self._lease,
            "release": self._release,
            "fate": self._fate,
            "homes": self._homes,
        }
        self._handlers: dict[type, Callable[[Any, int], list[Instruction]]] = {
            ClientJoined: self._joined,
            ClientLeft: self._left,
            Request: self._asked,
            ExecutorForked: self._forked,
            ExecutorEnded: self._ended,
            ExecutorAsks: self._wants_another,
            Surveyed: self._surveyed,
            Stored: self._stored,
            NeighboursChanged: self._neighbours,
            Stopping: self._stop,
        }

    # -- driving

    def start(self, now_us: int) -> list[Instruction]:
        """Return what it takes to begin: the node's own executors."""
        return [self._fork(slot, now_us) for slot in range(self.own)]

    def handle(self, event: Event, now_us: int) -> list[Instruction]:
        """Take in one event."""
        return self._handlers[type(event)](event, now_us)

    @property
    def next_wake_us(self) -> int | None:
        """When `tick` next has something to do."""
        times = [waiting.until_us for waiting in (*self._lease_queue, *self._fate_queue)]
        times += self._refork.values()
        return min(times, default=None)

    @property
    def next_survey_us(self) -> int | None:
        """When the driver should say Surveyed; None while there is nothing to retire."""
        return self._survey_us

    def tick(self, now_us: int) -> list[Instruction]:
        """Do what time has brought: give up waiting requests, and fork executors whose pause is over."""
        done: list[Instruction] = []
        for waiting in [waiting for waiting in self._lease_queue if waiting.until_us <= now_us]:
            self._lease_queue.remove(waiting)
            done.append(_error(waiting.request, Overloaded("no executor of this node could take a lease in time")))
        for waiting in [waiting for waiting in self._fate_queue if waiting.until_us <= now_us]:
            self._fate_queue.remove(waiting)
            done.append(_reply(waiting.request, self._fates.get(_who(waiting.request))))
        for slot in [slot for slot, at_us in self._refork.items() if at_us <= now_us]:
            del self._refork[slot]
            if slot not in self.executors:
                done.append(self._fork(slot, now_us))
        return done

    # -- clients and their requests

    def _joined(self, event: ClientJoined, _now: int) -> list[Instruction]:
        self.clients[event.client] = _Client(event.pid)
        return []

    def _left(self, event: ClientLeft, _now: int) -> list[Instruction]:
        client = self.clients.pop(event.client, None)
        if client is not None:
            for slot in client.leases:
                self.executors[slot].leases.pop(event.client, None)
        self._lease_queue = deque(one for one in self._lease_queue if one.request.client != event.client)
        self._fate_queue = [one for one in self._fate_queue if one.request.client != event.client]
        return []

    def _asked(self, request: Request, now_us: int) -> list[Instruction]:
        if request.client not in self.clients:
            return [_error(request, RequestError("this client holds no lease on the node"))]
        if request.verb in STORE_VERBS:
            return [StoreJob(request.client, request.request, request.verb, request.body)]
        verb = self._verbs.get(request.verb)
        if verb is None:
            return [_error(request, NotSupported(f"this node does not know the request {request.verb!r}"))]
        try:
            return verb(request, now_us)
        except (KeyError, TypeError, ValueError) as fault:
            return [_error(request, RequestError(f"request {request.verb!r}: {type(fault).__name__}: {fault}"))]

    def _lease(self, request: Request, now_us: int) -> list[Instruction]:
        """Grant leases on up to `want` executors; wait if there is none."""
        granted = self.grant(request.client, int(request.body.get("want", LEASES_MAX)), now_us)
        if granted or self._stopping:  # who gets none from a node that stops asks the next one
            return [_reply(request, {"leases": granted, "lease_us": self.lease_us})]
        until_us = now_us + int(config.CONTROL_TIMEOUT_S * 1e6)
        self._lease_queue.append(_Waiting(request, until_us))
        if all(executor.leaving for executor in self.executors.values()):
            return self._scale(Load(0, 0, 0, len(self._lease_queue), 0), now_us)
        return []

    def grant(self, client: int, want: int, now_us: int) -> list[tuple[int, int]]:
        """Give a client leases on up to `want` executors: those it has, then those with the fewest leases.

        Returns (slot, incarnation) of each: none while no executor can be leased. Those of other nodes, which have let
        this one use them, come after its own, and are not given to other nodes.
        """
        self._expire(now_us)
        open_slots = [slot for slot, executor in self.executors.items() if executor.pid and not executor.leaving]
        open_slots.sort(key=lambda slot: (client not in self.executors[slot].leases, self.leases_on(slot), slot))
        granted = open_slots[: max(1, want)]
        for slot in granted:
            self.executors[slot].leases[client] = now_us + self.lease_us
            self.clients[client].leases.add(slot)
        found = [(slot, self.executors[slot].incarnation) for slot in granted]
        return (found + sorted(self.foreign.items()))[: max(1, want)]

    def leases_on(self, slot: int) -> int:
        """Return how many clients hold a lease on the executor of a slot."""
        return len(self.executors[slot].leases) if slot in self.executors else 0

    def _release(self, request: Request, _now: int) -> list[Instruction]:
        client = self.clients[request.client]
        for slot in client.leases:
            self.executors[slot].leases.pop(request.client, None)
        client.leases.clear()
        return [_reply(request, None)]

    def _fate(self, request: Request, now_us: int) -> list[Instruction]:
        """Say how an executor ended; wait a while if it is only about to, or if its function is just being poisoned."""
        who = (int(request.body["slot"]), int(request.body["incarnation"]))
        fate = self._fates.get(who)
        if fate is not None and fate["function"] not in self._poisoning:
            return [_reply(request, fate)]
        self._fate_queue.append(_Waiting(request, now_us + 2_000_000))
        return []

    def _homes(self, request: Request, _now: int) -> list[Instruction]:
        """Say which executors may run a function that at most `replicas` may: those that have, as long as they are."""
        name, replicas = str(request.body["name"]), int(request.body["replicas"])
        lasting = [slot for slot in self.executors if slot < self.own and not self.executors[slot].leaving]
        if self._stopping:
            lasting = list(range(self.own))  # what is sent there waits for the node that takes this one's place
        homes = [slot for slot in self.homes.get(name, []) if slot in lasting][:replicas]
        taken = [slot for others in self.homes.values() for slot in others]
        rest = sorted((slot for slot in lasting if slot not in homes), key=lambda slot: (taken.count(slot), slot))
        self.homes[name] = homes = homes + rest[: replicas - len(homes)]
        return [_reply(request, homes)]

    def _expire(self, now_us: int) -> None:
        for slot, executor in self.executors.items():
            for client in [client for client, until_us in executor.leases.items() if until_us <= now_us]:
                del executor.leases[client]
                self.clients[client].leases.discard(slot)

    def _neighbours(self, event: NeighboursChanged, now_us: int) -> list[Instruction]:
        self.foreign = dict(event.executors)
        return self._serve_waiting(now_us)

    def _serve_waiting(self, now_us: int) -> list[Instruction]:
        """Try anew to serve those who wait for a lease."""
        waiting, self._lease_queue = self._lease_queue, deque()
        return [done for one in waiting for done in self._lease(one.request, now_us)]

    # -- functions

    def _stored(self, event: Stored, _now: int) -> list[Instruction]:
        done: list[Instruction] = []
        if event.job.verb == "poison":
            self._poisoning.discard(event.job.body["name"])
        if event.changed:
            self._crashes.pop(event.job.body.get("name", ""), None)
            if event.job.verb == "delete":
                self.homes.pop(event.job.body.get("name", ""), None)
            done.append(AnnounceFunctions())
        if event.job.client:
            done.append(Reply(event.job.client, event.job.request, event.answer))
        return done + self._tell_fates()

    def _tell_fates(self) -> list[Instruction]:
        """Answer those who wait to hear of an executor, if it has ended and its function has been poisoned."""
        done: list[Instruction] = []
        for waiting in list(self._fate_queue):
            fate = self._fates.get(_who(waiting.request))
            if fate is not None and fate["function"] not in self._poisoning:
                self._fate_queue.remove(waiting)
                done.append(_reply(waiting.request, fate))
        return done

    # -- executors

    def _fork(self, slot: int, now_us: int) -> Fork:
        self._incarnations += 1
        self.executors[slot] = _Executor(self._incarnations, forked_us=now_us, idle_since_us=now_us)
        return Fork(slot, self._incarnations)

    def _forked(self, event: ExecutorForked, now_us: int) -> list[Instruction]:
        executor = self.executors.get(event.slot)
        if executor is None or executor.incarnation != event.incarnation:
            return []
        executor.pid = event.pid
        return self._serve_waiting(now_us)

    def _ended(self, event: ExecutorEnded, now_us: int) -> list[Instruction]:
        executor = self.executors.get(event.slot)
        if executor is None or executor.incarnation != event.incarnation:
            return []
        del self.executors[event.slot]
        for client in executor.leases:
            self.clients[client].leases.discard(event.slot)
        done = [] if executor.leaving or not event.running else self._blame(event)
        poisoned = any(isinstance(one, StoreJob) for one in done)
        fate = {
            "pid": event.pid, "code": event.code, "unsettled": event.unsettled, "tail": event.tail,
            "function": event.function, "poisoned": poisoned, "starved": event.starved,
            "running": event.running,
        }  # fmt: skip
        self._remember(event, fate)
        done += self._tell_fates()
        if self._stopping:
            return done + self._retire_last()
        if event.slot < self.own:
            done += self._replace(event, executor, now_us)
        return done

    def _stop(self, _event: Stopping, now_us: int) -> list[Instruction]:
        """Have every executor finish what it runs, and none take its place."""
        self._stopping, self.scaler, self._survey_us = True, None, None
        self._refork.clear()
        return self._serve_waiting(now_us) + self._retire_all()

    def _retire_all(self) -> list[Instruction]:
        staying = [(slot, executor) for slot, executor in sorted(self.executors.items()) if not executor.leaving]
        for _, executor in staying:
            executor.leaving = True
        return [Retire(slot, executor.incarnation) for slot, executor in staying]

    def _retire_last(self) -> list[Instruction]:
        """Retire those that have stood in, once what they stood in for has ended."""
        return [] if any(executor.leaving for executor in self.executors.values()) else self._retire_all()

    @property
    def drained(self) -> bool:
        """Whether the node has stopped, and nothing runs there any more."""
        return self._stopping and not self.executors

    def _replace(self, event: ExecutorEnded, executor: _Executor, now_us: int) -> list[Instruction]:
        """Fork a successor at once, or after a pause when executors keep dying before they have run anything."""
        if event.running or event.function or now_us - executor.forked_us > 1_000_000:
            self._quick_deaths = 0
            return [self._fork(event.slot, now_us)]
        self._quick_deaths += 1
        if self._quick_deaths <= self.own:
            return [self._fork(event.slot, now_us)]
        self._refork[event.slot] = now_us + min(REFORK_PAUSE_MAX_US, 50_000 << min(self._quick_deaths, 10))
        return []

    def _blame(self, event: ExecutorEnded) -> list[Instruction]:
        """Count what a function did to its executor, and poison it at the third time."""
        assert event.running is not None
        if is_self_inflicted(event.code):
            count = self._crashes[event.function] = self._crashes.get(event.function, 0) + 1
        else:
            count = self._losses[event.running] = self._losses.pop(event.running, 0) + 1
            while len(self._losses) > FATES_MAX:
                del self._losses[next(iter(self._losses))]
        if count < config.CRASHES_MAX:
            return []
        reason = (
            f"{event.function!r} ended its executor {count} times, the last time by {describe_exit(event.code)};"
            " it is refused until it is registered anew"
        )
        self._poisoning.add(event.function)
        return [StoreJob(0, b"", "poison", {"name": event.function, "reason": reason})]

    def _remember(self, event: ExecutorEnded, fate: dict[str, Any]) -> None:
        self._fates[event.slot, event.incarnation] = fate
        while len(self._fates) > FATES_MAX:
            del self._fates[next(iter(self._fates))]

    def _wants_another(self, event: ExecutorAsks, now_us: int) -> list[Instruction]:
        """Fork a stand-in when fewer than the node's own number can run anything, and there is a slot."""
        starting = sum(not executor.pid for executor in self.executors.values())
        if event.unblocked + starting >= max(1, self.own) or (self._stopping and self.foreign):
            return []
        free = next((slot for slot in range(self.most) if slot not in self.executors), None)
        if free is None:
            return []
        self._survey_us = None if self._stopping else now_us + SURPLUS_IDLE_US
        return [self._fork(free, now_us)]

    def _surveyed(self, event: Surveyed, now_us: int) -> list[Instruction]:
        """Retire stand-ins that have been idle for long enough, the last slots first; ask how many there should be."""
        if self._stopping:
            return []
        calls = sum(max(0, begun - self._begun(slot)) for slot, (_, begun) in event.executors.items())
        done = self._retire_surplus(event, now_us)
        if self.scaler is None:
            return done
        have = sum(not one.leaving for slot, one in self.executors.items() if slot < self.own)
        starting = sum(not one.pid for one in self.executors.values())
        waiting = event.waiting + len(self._lease_queue)
        return done + self._scale(Load(have, starting, event.running, waiting, calls), now_us)

    def _begun(self, slot: int) -> int:
        return self.executors[slot].begun if slot in self.executors else 0

    def _scale(self, load: Load, now_us: int) -> list[Instruction]:
        """Have as many executors of its own as the scaler says: those that go finish what they run first."""
        if self.scaler is None:
            return []
        before, self.own = self.own, min(self.scaler.see(load, now_us), self.most)
        look_us = self.scaler.look_us(now_us)
        if self._survey_us is None or (look_us is not None and look_us < self._survey_us):
            self._survey_us = look_us
        done: list[Instruction] = [
            self._fork(slot, now_us)
            for slot in range(before, self.own)
            if slot not in self.executors and slot not in self._refork
        ]
        for slot, executor in sorted(self.executors.items()):
            if slot >= self.own and slot < before and not executor.leaving:
                executor.leaving = True
                done.append(Retire(slot, executor.incarnation))
        for slot in [slot for slot in self._refork if slot >= self.own]:
            del self._refork[slot]
        return done

    def _retire_surplus(self, event: Surveyed, now_us: int) -> list[Instruction]:
        done: list[Instruction] = []
        for slot in sorted(self.executors, reverse=True):
            executor = self.executors[slot]
            idle, begun = event.executors.get(slot, (False, 0))
            if not idle or begun != executor.begun:
                executor.begun, executor.idle_since_us = begun, now_us
            elif slot >= self.own and not executor.leaving and now_us - executor.idle_since_us >= SURPLUS_IDLE_US:
                executor.leaving = True
                done.append(Retire(slot, executor.incarnation))
        surplus = any(slot >= self.own and not one.leaving for slot, one in self.executors.items())
        self._survey_us = now_us + SURPLUS_IDLE_US if surplus else None
        return done

    def check(self) -> None:
        """Assert the invariants: leases are known on both sides, end with either, and slots stay within bounds."""
        assert all(0 <= slot < self.most for slot in self.executors)
        assert all(len(set(homes)) == len(homes) and max(homes, default=0) < self.own for homes in self.homes.values())
        for slot, executor in self.executors.items():
            assert all(slot in self.clients[client].leases for client in executor.leases)
            assert 0 < executor.incarnation <= self._incarnations
        for number, client in self.clients.items():
            assert all(number in self.executors[slot].leases for slot in client.leases)
        assert all(one.request.client in self.clients for one in (*self._lease_queue, *self._fate_queue))
        served = all(slot in self.executors or slot in self._refork for slot in range(self.own))
        assert served or self._stopping or not self._incarnations
        assert not self._stopping or not self._lease_queue
        assert len(self._fates) <= FATES_MAX


def _who(request: Request) -> tuple[int, int]:
    return int(request.body["slot"]), int(request.body["incarnation"])


def _reply(request: Request, answer: Any) -> Reply:
    return Reply(request.client, request.request, answer)


def _error(request: Request, fault: CloudburstError) -> Reply:
    return Reply(request.client, request.request, fault)
