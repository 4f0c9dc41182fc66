"""Simulated clients: the asyncio client as it is, on a loop in virtual time, and what it told its caller.

The one rule: a history holds what a user of the client could have written down: values, acknowledgements, and errors,
which are definite or are not. What users are not told and the checkers need besides (which incarnation answered, the
stamp of a delete) is read off the wire, and never decides what became of a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from anna import LWW, Counter, ORSet, Set, wire
from anna.errors import AnnaError, KeyNotFound
from anna.requests import Replies
from tests.sim.epochs import AT, read_at_epoch
from tests.sim.history import (
    COUNTER,
    DELETE,
    FAIL,
    GET,
    OK,
    ORSET,
    PUT,
    REGISTER,
    REMOVE,
    REPLICATE,
    SET,
    UNKNOWN,
    WATCHED,
    WATCHERS,
    Entry,
    Scan,
)
from tests.sim.loop import Transport, VirtualLoop
from tests.sim.schedule import MS
from tests.sim.transactions import COMMIT, Coordinator, Stopped, write_together

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

REQUEST = struct.Struct("<IBBBBIHHQ")
CLIENT_TIMEOUT_S = 1.0
CONNECT_PAUSE_S = 0.05
"""How long a client waits before it tries to connect again."""

COUNTER_BASE = 4
COUNTER_SLOTS = 31
"""Increment `slot` of a counter adds COUNTER_BASE ** slot: the sum tells how often each was counted."""

TYPES = {"r": REGISTER, "s": SET, "c": COUNTER, "o": ORSET}
"""The first letter of a key names its type."""

ABSENT = object()


def written(entry: Entry) -> Any:
    """Return what a put of this entry gives to the client."""
    if entry.kind == REMOVE:
        return ORSet(remove=[entry.value])
    if entry.type == COUNTER:
        return Counter(COUNTER_BASE**entry.value)
    if entry.type == SET:
        return Set([entry.value])
    return ORSet([entry.value]) if entry.type == ORSET else entry.value


def note_value(entry: Entry, value: Any) -> None:
    """Write down what a read found."""
    if entry.type == COUNTER:
        times = {}
        for slot in range(COUNTER_SLOTS + 1):
            value, times[slot] = divmod(value, COUNTER_BASE) if slot < COUNTER_SLOTS else (0, value)
        entry.seen = frozenset(slot for slot, count in times.items() if count)
        entry.repeats = tuple(slot for slot, count in times.items() if count > 1)
    else:
        entry.seen = frozenset([value] if entry.type == REGISTER else value)


class Call:
    """One operation under way: its entries by key."""

    def __init__(self, client: Client, operation: dict[str, Any]) -> None:
        self.operation = operation
        self.client = client
        self.store = client.store
        kind = {"mget": GET, "mput": PUT, "compare": PUT, COMMIT: PUT}.get(operation["kind"], operation["kind"])
        number, now, deadline = operation["id"], client.schedule.now, operation["deadline"]
        self.begun = now
        values = operation["values"] or [0] * len(operation["keys"])
        self.entries = {
            key: Entry(number, client.number, kind, key, TYPES[key[0]], value, deadline, now)
            for key, value in zip(operation["keys"], values)
        }
        for entry in self.entries.values():
            entry.ttl = operation.get("ttl", 0)
        self.steps: int | None = operation.get("stops")
        self.prepared: set[str] = set()

    def note_prepare(self, keys: list[str], stamp: int) -> None:
        """A transaction is later than what its first coordinator had seen when it asked first."""
        for key in keys:
            if key not in self.prepared and not self.entries[key].again:
                self.entries[key].low = stamp
            self.prepared.add(key)

    def step(self, count: int) -> None:
        """So many messages of a transaction were to be sent: end if its coordinator stops before the last of them."""
        if self.steps is not None:
            self.steps -= count
            if self.steps < 0:
                raise Stopped

    @property
    def entry(self) -> Entry:
        """The entry of a call with one key."""
        (entry,) = self.entries.values()
        return entry

    @property
    def ack(self) -> int | str | None:
        """The acknowledgement that a write asks for."""
        ack: int = self.operation["ack"]
        return "disk" if ack == wire.DISK else ack or None

    @property
    def timeout(self) -> float:
        """How many seconds are left until the deadline."""
        left = self.begun + self.operation["deadline"] - self.client.schedule.now
        return float(max(left, MS) / 1e9)


CALL: ContextVar[Call] = ContextVar("call")
"""The operation on whose behalf something is sent."""


class Client:
    """One session: operations one after another, each at its planned time or when the one before has ended.

    It begins with the addresses `contacts` and nothing else.
    """

    def __init__(
        self, cluster: Cluster, number: int, host: int, contacts: tuple[str, ...], operations: list[dict[str, Any]]
    ) -> None:
        self.cluster = cluster
        self.schedule = cluster.schedule
        self.number = number
        self.operations = deque(operations)
        self.wiretap = Wiretap()
        self.loop = VirtualLoop(cluster, host, self.wiretap.sent, self.wiretap.heard)
        self.store = Coordinator(
            contacts,
            timeout=CLIENT_TIMEOUT_S,
            allow_pickle=True,
            system=False,
            ack=None,
            lease=None,
            now=lambda: cluster.schedule.now,
            entropy=cluster.schedule.stream(f"client {number}").randbytes,
        )
        self.connected = False
        self.watched = [key for client, key in cluster.plan["watched"] if client == number]
        self.watchers: list[asyncio.Task[None]] = []
        self.task = self.loop.start(self.live())

    def add(self, operation: dict[str, Any]) -> None:
        """Append an operation to the plan."""
        self.operations.append(operation)
        if self.task.done():
            self.task = self.loop.start(self.live())

    def type_of(self, key: str) -> str:
        """Return what a key is to hold, by its name."""
        return TYPES[key[0]]

    def note(self, entry: Entry, value: Any) -> None:
        """Write down what a read found."""
        note_value(entry, value)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or planned."""
        return self.task.done()

    def stop(self) -> None:
        """End what is under way."""
        for task in (self.task, *self.watchers):
            task.cancel()

    async def live(self) -> None:
        """Connect, then do what is planned."""
        while not self.connected:
            try:
                await self.store.reach()
                self.connected = True
            except AnnaError as error:
                self.schedule.note(f"client {self.number} does not connect: {type(error).__name__}")
                await asyncio.sleep(CONNECT_PAUSE_S)
        for key in self.watched:
            self.cluster.history.watched.append((self.number, key))
            self.watchers.append(self.loop.start(self.watch(key)))
        self.watched = []
        while self.operations:
            operation = self.operations.popleft()
            await asyncio.sleep(max(0, operation["at"] - self.schedule.now) / 1e9)
            if operation["kind"] == "scan":
                await self.scan(operation)
            elif operation["kind"] == AT:
                await read_at_epoch(self, operation)
            elif operation["kind"] == COMMIT:
                await write_together(self, operation)
            else:
                await self.perform(Call(self, operation))

    async def watch(self, key: str) -> None:
        """Write down what a watcher of a key is shown, until the end."""
        async with contextlib.aclosing(self.store.watch(key)) as values:
            async for value in values:
                now = self.schedule.now
                entry = Entry(WATCHED, WATCHERS + self.number, GET, key, TYPES[key[0]], 0, 0, now, now, OK)
                note_value(entry, value)
                if entry.type == REGISTER:
                    entry.stamp = self.wiretap.stamps[key, value]
                self.cluster.history.entries.append(entry)
                self.schedule.note(f"shown {entry}")

    async def scan(self, operation: dict[str, Any]) -> None:
        """List the keys with a prefix."""
        now, deadline = self.schedule.now, operation["deadline"]
        scan = Scan(operation["id"], self.number, operation["prefix"], deadline, now)
        self.cluster.history.scans.append(scan)
        try:
            async for key in self.store.scan(scan.prefix, timeout=deadline / 1e9):
                scan.keys.append(str(key))
            scan.outcome = OK
        except AnnaError as error:
            scan.outcome, scan.why = FAIL, f"{type(error).__name__}: {error}"
        scan.ended = self.schedule.now
        self.schedule.note(f"end {scan}")

    async def perform(self, call: Call) -> None:
        """Do one operation and write down what came of it."""
        CALL.set(call)
        self.cluster.history.entries.extend(call.entries.values())
        outcome, why = OK, ""
        try:
            await DEEDS[call.operation["kind"]](call)
        except AnnaError as error:
            # What is left of a batch's refusal is not told, so nobody knows which keys it was.
            reads, batch = call.operation["kind"] in (GET, "mget"), call.operation["kind"] == "mput"
            outcome = FAIL if reads or (error.definite and not batch) else UNKNOWN
            why = f"{type(error).__name__}: {error}"
        for entry in call.entries.values():
            entry.outcome, entry.why, entry.ended = outcome, why, self.schedule.now
            self.schedule.note(f"end {entry}")


async def get(call: Call) -> None:
    """Read one key."""
    entry = call.entry
    try:
        state = await call.store.get_lattice(entry.key, timeout=call.timeout)
    except KeyNotFound:
        return
    entry.stamp = state.stamp if isinstance(state, LWW) else 0
    note_value(entry, state.read(True))


async def put(call: Call) -> None:
    """Write one key, for a time if the operation says so."""
    entry, ttl = call.entry, call.entry.ttl / 1e9 or None
    ack = await call.store.put(
        entry.key, written(entry), ack=call.ack, ttl=ttl, if_stamp=entry.compared, timeout=call.timeout
    )
    entry.high, entry.exact = ack.stamp, True
    entry.copies, entry.durable = ack.replicas, ack.durable


async def compare(call: Call) -> None:
    """Look at a register, and write it if nobody has meanwhile."""
    present = await call.store.get_lattice(call.entry.key, None, timeout=call.timeout)
    call.entry.compared = present.stamp if isinstance(present, LWW) else 0
    await put(call)


async def delete(call: Call) -> None:
    """Delete one key. At which stamp, the wire tells alone."""
    await call.store.delete(call.entry.key, ack=call.ack, timeout=call.timeout)


async def get_many(call: Call) -> None:
    """Read some keys."""
    values = await call.store.mget(list(call.entries), ABSENT, timeout=call.timeout)
    for entry, value in zip(call.entries.values(), values):
        if value is not ABSENT:
            note_value(entry, value)
            entry.stamp = call.client.wiretap.stamps[entry.key, value] if entry.type == REGISTER else 0


async def put_many(call: Call) -> None:
    """Write some keys."""
    items = {key: written(entry) for key, entry in call.entries.items()}
    ack = await call.store.mput(items, ack=call.ack, timeout=call.timeout)
    for entry in call.entries.values():
        entry.high, entry.copies, entry.durable = ack.stamp, ack.replicas, ack.durable


async def replicate(call: Call) -> None:
    """Give a key another number of copies."""
    await call.store.replicate(call.entry.key, memory=call.entry.value, timeout=call.timeout)


DEEDS: dict[str, Callable[[Call], Awaitable[None]]] = {
    GET: get,
    PUT: put,
    "compare": compare,
    REMOVE: put,
    DELETE: delete,
    "mget": get_many,
    "mput": put_many,
    REPLICATE: replicate,
}


class Wiretap:
    """What passes between one client and the workers, as far as the checkers need it and users are not told.

    `stamps` are those of the registers' states that came by, by key and value.
    """

    def __init__(self) -> None:
        self.asked: dict[int, tuple[Call | None, int, list[str]]] = {}
        self.replies: dict[Transport, Replies] = {}
        self.stamps: dict[tuple[str, int], int] = {}

    def sent(self, data: bytes, transport: Transport) -> None:
        """Note for which keys a frame asks, and that what it writes is later than all that the client has seen."""
        _, _, op, _, _, request, key_bytes, _, stamp = REQUEST.unpack_from(data)
        if op == wire.PREPARE:
            self.asked[request] = CALL.get(), op, [name.decode() for name in prepared_keys(data[REQUEST.size :])]
            CALL.get().note_prepare(self.asked[request][2], stamp)
        if op not in (wire.GET, wire.PUT, wire.DELETE, wire.MGET, wire.MPUT, wire.SUBSCRIBE):
            return
        call = None if op == wire.SUBSCRIBE else CALL.get()
        body = data[REQUEST.size + key_bytes :]
        names = [data[REQUEST.size : REQUEST.size + key_bytes]] if key_bytes else keys_of(op, body)
        keys = [name.decode() for name in names]
        self.asked[request] = call, op, keys
        if call is not None and op not in (wire.GET, wire.MGET):
            for key in keys:
                call.entries[key].low = stamp

    def heard(self, data: bytes, transport: Transport) -> None:
        """Note who answered a call that is under way still, and when in history."""
        for request, status, kind, flags, stamp, payload in self.replies.setdefault(transport, Replies()).feed(data):
            if status not in (wire.OK, wire.MISSING):
                continue
            call, op, keys = self.asked.pop(request, (None, 0, []))
            if request == 0 and flags == wire.PUSH:
                size = 2 + int.from_bytes(payload[:2], "little")
                op, keys, payload = wire.SUBSCRIBE, [payload[2:size].decode()], payload[size:]
            if op in (wire.MGET, wire.SUBSCRIBE) and status == wire.OK:
                states = states_of(payload) if op == wire.MGET else [(kind, payload)]
                self.note_stamps(keys, states)
            for entry in [call.entries[key] for key in keys] if call is not None else ():
                if op == wire.PREPARE:
                    entry.copies, entry.durable = kind + 1, flags & 1
                elif entry.ended < 0:
                    entry.worker = transport.stream.far_id
                    if op == wire.DELETE:
                        entry.high, entry.exact = stamp, status == wire.OK

    def note_stamps(self, keys: list[str], states: Iterable[tuple[int, bytes]]) -> None:
        """Note the stamps of the registers among these states."""
        for key, (type, state) in zip(keys, states):
            if type == LWW.NUMBER:
                register = LWW.decode(state)
                self.stamps[key, register.read(True)] = register.stamp


def keys_of(op: int, body: bytes) -> Iterator[bytes]:
    """Yield the keys of a batch, in their order."""
    place = 4
    while place < len(body):
        size = int.from_bytes(body[place : place + 2], "little")
        skip = 2 if op == wire.MGET else 8
        yield body[place + skip : place + skip + size]
        place += skip + size + (0 if op == wire.MGET else int.from_bytes(body[place + 4 : place + 8], "little"))


def prepared_keys(body: bytes) -> Iterator[bytes]:
    """Yield the keys of a prepare's writes."""
    place = 40 + 16 * int.from_bytes(body[32:36], "little")
    while place < len(body):
        size, _, _, state = struct.unpack_from("<HBBI", body, place)
        yield body[place + 8 : place + 8 + size]
        place += 8 + size + state


def states_of(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, state) of each key of a multi-get's answer; type 0 where there is none."""
    place = 4
    while place < len(payload):
        status, type, _, size = struct.unpack_from("<BBHI", payload, place)
        yield (type if status == wire.OK else 0), payload[place + 8 : place + 8 + size]
        place += 8 + size
