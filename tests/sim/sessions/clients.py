"""Clients and their transactions: what a plan says of each, how it runs on the nodes, and the lines of a history.

The one rule: a line says what the client was told, and no more. A transaction whose end it does not know is `unknown`;
one that surely has had no effect is `failed`; what it read is in its line in any case.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from anna import wire
from anna.lattices import LWW, Causal, Lattice, ORSet, Set
from cloudburst.consistency.levels import EVENTUAL, LEVELS, Level
from cloudburst.consistency.session import NOWHERE, Past, Session, Snapshot, joined_branches, writer_in_store, writer_of
from cloudburst.consistency.token import Token, token_of
from cloudburst.consistency.travel import pack, unpack
from cloudburst.judge.history import ADD, FAILED, OK, READ, REMOVE, UNKNOWN, WRITE
from tests.sim.schedule import MS
from tests.sim.sessions.caches import Lost, Refused
from tests.sim.sessions.runtime import Expired, Function, Unknown
from tests.sim.sessions.tasks import Task, pause

if TYPE_CHECKING:
    from tests.sim.sessions.cluster import SessionCluster

Step = dict[str, Any]
Line = dict[str, Any]

EDGES: dict[str, tuple[tuple[int, ...], ...]] = {
    "single": ((),),
    "chain": ((), (0,)),
    "long": ((), (0,), (1,)),
    "fork": ((), (0,), (0,), (1, 2)),
}
"""The shapes of a transaction: for each function, the functions that it comes after."""

BEGINS_MAX = 200
"""How often a session begins again; then something is wrong with the store."""

BETWEEN_NS = 2 * MS
"""Pause before a function or a session is tried again."""

DELETE = "delete"
"""A kind of operation of plans; a history has it as a write of nothing."""

BY_NAME: dict[str, Level] = {level.name: level for level in LEVELS}


@dataclass(slots=True)
class Done:
    """What came of one function: its session as it goes on, and what it read and wrote."""

    context: bytes
    operations: list[tuple[str, str, Any]] = field(default_factory=list)
    note: str = ""


class Client:
    """One client: its transactions one after another, each at its moment or when the one before has ended."""

    def __init__(self, cluster: SessionCluster, number: int, level: str, steps: list[Step]) -> None:
        self.cluster = cluster
        self.name = f"{level[0]}{number}"
        self.level = BY_NAME[level]
        self.past = Past()
        self.ended: list[tuple[str, str]] = []
        """(invocation, token) of each transaction that was ok."""
        self.unheard: list[str] = []
        """The invocation that was committed though the client was not told, until it is a line's past."""
        self.began = 0
        self.began_again = 0
        self.task = self.go_on(steps)

    def go_on(self, steps: list[Step]) -> Task[None]:
        """Begin with these transactions; all before them have ended."""
        self.task = Task(self.cluster.schedule, self.run(steps))
        return self.task

    async def run(self, steps: list[Step]) -> None:
        """Run all that is planned."""
        schedule = self.cluster.schedule
        for step in steps:
            if step["at"] > schedule.now:
                await pause(schedule, step["at"] - schedule.now)
            self.began += 1
            await Transaction(self, f"{self.name}.{self.began}", step).run()

    def told_by(self, step: Step) -> tuple[list[str], Past]:
        """Return whose token the next session begins with, and what it comes after."""
        past = Past()
        past.learn(self.past.next(self.level, writer_of(0, 0)))
        if self.cluster.planted("epoch-forgotten"):
            past.snapshot = NOWHERE
        if self.cluster.planted("writes-forgotten"):
            past.carried = []
        if not self.level.carried or step["told"] is None:
            return [], past
        others = self.cluster.actors
        teller = others[step["told"] % len(others)]
        if teller is self or teller.level is not self.level or not teller.ended:
            return [], past
        invocation, text = teller.ended[-1]
        past.join(token_of(text).past())
        return [invocation], past


class Transaction:
    """One transaction of a client, through all its attempts."""

    def __init__(self, client: Client, name: str, step: Step) -> None:
        self.client = client
        self.cluster = client.cluster
        self.name = name
        self.step = step
        self.edges = EDGES[step["shape"]]
        self.id = blake2b(f"{self.cluster.plan['seed']}/{name}".encode(), digest_size=16).digest()
        self.done: dict[int, Done] = {}
        self.alone = False
        """Whether its write was a plain put."""
        self.read_at = 0
        self.least = NOWHERE
        """The epoch that it may begin at when an earlier one is not known any more."""

    async def run(self) -> None:
        """Run it until it has ended, whatever that takes; write its lines."""
        client = self.client
        told, past = client.told_by(self.step)
        told += client.unheard
        client.unheard = []
        outcome, stamp, session = await self.ended(past)
        if outcome == OK and stamp and self.step["unheard"] and client.level.atomic and not self.alone:
            # The client did not hear of it: the same invocation runs again, and finds that it is committed.
            self.record(self.name, f"{client.name}/{self.name}", told, outcome, stamp)
            own = self.written()
            if self.cluster.planted("ids-forgotten"):
                self.id = self.id[::-1]
            outcome, second, session = await self.ended(past)
            client.unheard = [self.name] if second else []
            own |= self.written()  # what it has seen this time may be other keys to write to, which it did not
            for done in self.done.values():
                done.operations = [one for one in done.operations if one[1] not in own]
            self.record(f"{self.name}+", client.name, told, outcome, 0)
            if session is not None and second:
                session.carried = [one for one in session.carried if one[0] != second]
                client.past.wrote(second)
        else:
            self.record(self.name, client.name, told, outcome, stamp)
        if session is not None and client.level is not EVENTUAL:
            client.past.learn(unpack(pack(session), self.writer(0)))
        if outcome == OK and client.level.carried:
            client.ended.append((self.name, Token(client.past.snapshot, client.past.last).text()))

    def written(self) -> set[str]:
        """Return the keys that its functions have written."""
        return {key for done in self.done.values() for kind, key, _ in done.operations if kind != READ}

    async def ended(self, past: Past) -> tuple[str, int, Session | None]:
        """Run it until it has ended; return what came of it, the stamp of its commit, and what its client learns."""
        client, schedule = self.client, self.cluster.schedule
        for _ in range(BEGINS_MAX):
            self.done = {}
            try:
                return await self.attempt(past)
            except (Expired, Lost) as why:
                if isinstance(why, Expired):
                    self.least = Snapshot(self.read_at + 1)
                schedule.note(f"again {self.name}: {why}")
                client.began_again += 1
                await pause(schedule, BETWEEN_NS)
            except Refused as why:
                schedule.note(f"refused {self.name}: {why}")
                if why.status != wire.UNAVAILABLE:  # fewer copies than were asked for can be had just now
                    self.cluster.fail("refused", f"{self.name}: {why}")
                return FAILED, 0, None
        self.cluster.fail("begins-for-ever", self.name)
        return FAILED, 0, None

    async def attempt(self, past: Past) -> tuple[str, int, Session | None]:
        """Run all functions, and commit. Raises Expired, Lost, Refused."""
        session = past.next(self.client.level, self.writer(0))
        session.wait_for(self.least)
        contexts = {-1: pack(session)}
        for wave in waves(self.edges):
            tasks = [Task(self.cluster.schedule, self.function(number, contexts)) for number in wave]
            failed: Exception | None = None
            for number, task in zip(wave, tasks):
                try:
                    self.done[number] = await task
                    contexts[number] = self.done[number].context
                except (Expired, Lost, Refused, Unknown) as error:
                    failed = error
            if isinstance(failed, Unknown) or (failed is not None and self.client.level is EVENTUAL):
                return UNKNOWN, 0, None  # what was written by then is written
            if failed is not None:
                raise failed
        return await self.commit(contexts[len(self.edges) - 1])

    async def function(self, number: int, contexts: dict[int, bytes]) -> Done:
        """Run one function, until its node's cache has not died meanwhile."""
        schedule = self.cluster.schedule
        await pause(schedule, self.cluster.hop())
        before = self.edges[number] or (-1,)
        for attempt in range(BEGINS_MAX):
            session = joined_branches(unpack(contexts[one], self.writer(number)) for one in before)
            try:
                function = Function(self.cluster, self.cluster.cache(self.step["nodes"][number] + attempt))
                try:
                    return await self.body(function, session, number)
                finally:
                    function.close()
            except Lost:
                if self.client.level is EVENTUAL:
                    raise
                await pause(schedule, BETWEEN_NS)
        raise Lost(f"no cache for function {number}")

    async def body(self, function: Function, session: Session, number: int) -> Done:
        """What a function does."""
        done = Done(b"")
        if self.client.level is EVENTUAL:
            self.done[number] = done
            await self.eventually(function, number, done)
        else:
            if not session.begun:
                await function.begin(session)
                self.read_at = max(self.read_at, session.snapshot.epoch)
            for place, (kind, keys) in enumerate(self.step["functions"][number]):
                await self.operation(function, session, kind, keys, f"{self.name}/{number}.{place}", done)
        session.check()
        done.context = pack(session)
        done.note = f"at {session.snapshot.epoch} of {session.snapshot.view:x}"
        return done

    async def operation(
        self, function: Function, session: Session, kind: str, keys: list[str], value: str, done: Done
    ) -> None:
        """One read of some keys, or one write of one."""
        if kind == READ and len(keys) > 1:
            found = await function.read_all(session, [key.encode() for key in keys])
            done.operations += [(READ, key, seen(state)) for key, state in zip(keys, found)]
            return
        (key,) = keys
        name = key.encode()
        if kind == READ:
            done.operations.append((READ, key, seen(await function.read(session, name))))
        elif kind == DELETE:
            session.delete(name)
            done.operations.append((WRITE, key, None))
        elif kind == REMOVE:
            state = await function.state(session, name)
            there = seen(session.value(name, state)) or []
            done.operations.append((READ, key, there))
            if there:
                session.put(name, ORSet(remove=[there[0]]), state)
                done.operations.append((REMOVE, key, there[0]))
        else:
            state = await function.state(session, name) if key[0] in "oc" else None
            if key[0] == "c" and session.level.number == self.cluster.strongest:
                there = session.value(name, state)
                done.operations.append((READ, key, seen(there)))
                session.put(name, Causal(value) if there is None else there.set(value), state)
            else:
                session.put(name, written(key, value), state)
            done.operations.append((ADD if key[0] in "so" else WRITE, key, value))

    async def eventually(self, function: Function, number: int, done: Done) -> None:
        """The same without a session: what is newest, and each write by itself."""
        for place, (kind, keys) in enumerate(self.step["functions"][number]):
            for key in keys:
                value = f"{self.name}/{number}.{place}"
                if kind == DELETE:
                    done.operations.append((WRITE, key, None))
                    stamp = await function.delete(key.encode(), self.client.past.last)
                    self.client.past.last = max(self.client.past.last, stamp)
                    continue
                if kind != WRITE or key[0] == "o":
                    done.operations.append((READ, key, seen(await function.get(key.encode()))))
                    continue
                done.operations.append((ADD if key[0] == "s" else WRITE, key, value))
                stamp = await function.put(key.encode(), written(key, value), self.client.past.last)
                self.client.past.last = max(self.client.past.last, stamp)

    async def commit(self, context: bytes) -> tuple[str, int, Session | None]:
        """Commit what the last function leaves, on its node or, if that has died, on the next."""
        session = unpack(context, self.writer(len(self.edges) - 1))
        stamp, outcome = 0, OK
        if session.buffered:
            try:
                plain = not session.level.atomic or self.plain(session)
                self.alone = plain
                stamp = await self.committed(session)
                session.committed(stamp, 0 if plain else writer_in_store(self.id))
            except (Lost, Unknown) as why:
                self.cluster.schedule.note(f"unknown {self.name}: {why}")
                session.buffered, outcome = {}, UNKNOWN
        await pause(self.cluster.schedule, self.cluster.hop())
        if self.client.level is not EVENTUAL:
            session.check()
        return outcome, stamp, session

    async def committed(self, session: Session) -> int:
        """Commit; of one that takes long, also on another node meanwhile. Raises Lost, Unknown, Refused."""
        schedule, node = self.cluster.schedule, self.step["nodes"][-1]
        first = Task(schedule, self.tried(session, node))
        if not session.level.atomic or self.plain(session) or not self.step["patience"]:
            return await first
        await pause(schedule, self.step["patience"])
        if first.done:
            return await first
        stamps: list[int] = []
        failed: Exception | None = None
        for task in (first, Task(schedule, self.tried(session, node + 1))):
            try:
                stamps.append(await task)
            except (Lost, Unknown, Refused) as error:
                failed = error
        if not stamps:
            assert failed is not None
            raise Unknown(str(failed))
        return stamps[0]

    async def tried(self, session: Session, node: int) -> int:
        """Commit, as often as the level lets that be done; return the stamp. Raises Lost, Unknown, Refused."""
        often = BEGINS_MAX if session.level.atomic and not self.step["gives_up"] else 1
        for attempt in range(often):
            try:
                function = Function(self.cluster, self.cluster.cache(node + attempt))
                try:
                    return await function.commit(session, self.id)
                finally:
                    function.close()
            except Lost:
                if attempt == often - 1 or self.plain(session):
                    raise
                await pause(self.cluster.schedule, BETWEEN_NS)
        raise AssertionError

    def plain(self, session: Session) -> bool:
        """Whether its writes are committed by a plain put, which is not to be sent twice."""
        return len(session.buffered) == 1 and bool(self.cluster.plan["plain_singles"])

    def writer(self, number: int) -> int:
        """Return under whose name a function's writes show in its session."""
        return writer_of(int.from_bytes(self.id[:8], "little"), int.from_bytes(self.id[8:], "little") + number)

    def record(self, name: str, session: str, told: list[str], outcome: str, stamp: int) -> None:
        """Write the lines: of each function, in the order in which they stand."""
        client = self.client
        for number, after in enumerate(self.edges):
            done = self.done.get(number, Done(b""))
            line: Line = {
                "session": session, "invocation": name, "function": number, "after": list(after),
                "operations": done.operations, "outcome": outcome,
            }  # fmt: skip
            line |= {"told": told} if told and not number else {}
            line |= {"commit": stamp} if stamp else {}
            line |= {"note": done.note} if done.note else {}
            self.cluster.lines.append((client.level, line))
            self.cluster.schedule.note(f"{line}")


def waves(edges: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    """Return the functions in groups: those of one run beside each other."""
    found: list[list[int]] = []
    depth: list[int] = []
    for number, before in enumerate(edges):
        depth.append(max((depth[one] + 1 for one in before), default=0))
        if depth[number] == len(found):
            found.append([])
        found[depth[number]].append(number)
    return found


def written(key: str, value: str) -> Lattice:
    """Return what a write of a value to a key is. Of siblings, by who replaces none.

    Sessions below the strongest level of a plan do that: their reads are not judged, so what they replace would not be
    known (`judging.projected`).
    """
    if key[0] == "c":
        return Causal(value)
    if key[0] in "rd":
        return LWW(value)
    return Set([value]) if key[0] == "s" else ORSet([value])


def seen(state: Lattice | None) -> Any:
    """Return what a history says of a state that was read."""
    if state is None:
        return None
    value = state.value
    return value if isinstance(value, str) else sorted(value)
