"""Simulated clients: the asyncio client as it is, on a loop in virtual time, and what it told its caller.

The one rule: a history holds what a user of the client could have written down: values, acknowledgements, and errors,
which are definite or are not. What users are not told and the checkers need besides (which incarnation answered, the
stamp of a delete) is read off the wire, and never decides what became of a call.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from anna import LWW, Counter, ORSet, Set, wire
from anna.aio import AsyncClient
from anna.errors import AnnaError, KeyNotFound
from anna.requester import Replies
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
    SET,
    UNKNOWN,
    Entry,
)
from tests.sim.loop import Transport, VirtualLoop

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
    """One operation under way: its entries by key, and the stamps of the registers' states that came back for it."""

    def __init__(self, client: Client, operation: dict[str, Any]) -> None:
        self.operation = operation
        self.stamps: dict[tuple[str, int], int] = {}
        kind = {"mget": GET, "mput": PUT}.get(operation["kind"], operation["kind"])
        number, now, deadline = operation["id"], client.schedule.now, operation["deadline"]
        values = operation["values"] or [0] * len(operation["keys"])
        self.entries = {
            key: Entry(number, client.number, kind, key, TYPES[key[0]], value, deadline, now)
            for key, value in zip(operation["keys"], values)
        }

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
        """The deadline in seconds."""
        return float(self.operation["deadline"] / 1e9)


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
        self.store = AsyncClient(
            contacts,
            timeout=CLIENT_TIMEOUT_S,
            allow_pickle=True,
            system=False,
            ack=None,
            lease=None,
            now=lambda: cluster.schedule.now,
        )
        self.connected = False
        self.task = self.loop.start(self.live())

    def add(self, operation: dict[str, Any]) -> None:
        """Append an operation to the plan."""
        self.operations.append(operation)
        if self.task.done():
            self.task = self.loop.start(self.live())

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or planned."""
        return self.task.done()

    async def live(self) -> None:
        """Connect, then do what is planned."""
        while not self.connected:
            try:
                await self.store.reach()
                self.connected = True
            except AnnaError as error:
                self.schedule.note(f"client {self.number} does not connect: {type(error).__name__}")
                await asyncio.sleep(CONNECT_PAUSE_S)
        while self.operations:
            operation = self.operations.popleft()
            await asyncio.sleep(max(0, operation["at"] - self.schedule.now) / 1e9)
            await self.perform(Call(self, operation))

    async def perform(self, call: Call) -> None:
        """Do one operation and write down what came of it."""
        CALL.set(call)
        self.cluster.history.entries.extend(call.entries.values())
        outcome, why = OK, ""
        try:
            await DEEDS[call.operation["kind"]](self.store, call)
        except AnnaError as error:
            # What is left of a batch's refusal is not told, so nobody knows which keys it was.
            reads, batch = call.operation["kind"] in (GET, "mget"), call.operation["kind"] == "mput"
            outcome = FAIL if reads or (error.definite and not batch) else UNKNOWN
            why = f"{type(error).__name__}: {error}"
        for entry in call.entries.values():
            entry.outcome, entry.why, entry.ended = outcome, why, self.schedule.now
            self.schedule.note(f"end {entry}")


async def get(store: AsyncClient, call: Call) -> None:
    """Read one key."""
    entry = call.entry
    try:
        state = await store.get_lattice(entry.key, timeout=call.timeout)
    except KeyNotFound:
        return
    entry.stamp = state.stamp if isinstance(state, LWW) else 0
    note_value(entry, state.read(True))


async def put(store: AsyncClient, call: Call) -> None:
    """Write one key."""
    ack = await store.put(call.entry.key, written(call.entry), ack=call.ack, timeout=call.timeout)
    call.entry.high, call.entry.exact = ack.stamp, True
    call.entry.copies, call.entry.durable = ack.replicas, ack.durable


async def delete(store: AsyncClient, call: Call) -> None:
    """Delete one key. At which stamp, the wire tells alone."""
    await store.delete(call.entry.key, ack=call.ack, timeout=call.timeout)


async def get_many(store: AsyncClient, call: Call) -> None:
    """Read some keys."""
    values = await store.mget(list(call.entries), ABSENT, timeout=call.timeout)
    for entry, value in zip(call.entries.values(), values):
        if value is not ABSENT:
            note_value(entry, value)
            entry.stamp = call.stamps[entry.key, value] if entry.type == REGISTER else 0


async def put_many(store: AsyncClient, call: Call) -> None:
    """Write some keys."""
    items = {key: written(entry) for key, entry in call.entries.items()}
    ack = await store.mput(items, ack=call.ack, timeout=call.timeout)
    for entry in call.entries.values():
        entry.high, entry.copies, entry.durable = ack.stamp, ack.replicas, ack.durable


DEEDS: dict[str, Callable[[AsyncClient, Call], Awaitable[None]]] = {
    GET: get,
    PUT: put,
    REMOVE: put,
    DELETE: delete,
    "mget": get_many,
    "mput": put_many,
}


class Wiretap:
    """What passes between one client and the workers, as far as the checkers need it and users are not told."""

    def __init__(self) -> None:
        self.asked: dict[int, tuple[Call, int, list[str]]] = {}
        self.replies: dict[Transport, Replies] = {}

    def sent(self, data: bytes, transport: Transport) -> None:
        """Note for which keys a frame asks, and that what it writes is later than all that the client has seen."""
        _, _, op, _, _, request, key_bytes, _, stamp = REQUEST.unpack_from(data)
        call = CALL.get(None)
        if call is None or op not in (wire.GET, wire.PUT, wire.DELETE, wire.MGET, wire.MPUT):
            return
        body = data[REQUEST.size + key_bytes :]
        keys = [data[REQUEST.size : REQUEST.size + key_bytes]] if key_bytes else list(keys_of(op, body))
        self.asked[request] = call, op, [key.decode() for key in keys]
        if op not in (wire.GET, wire.MGET):
            for key in self.asked[request][2]:
                call.entries[key].low = stamp

    def heard(self, data: bytes, transport: Transport) -> None:
        """Note who answered a call that is under way still, and when in history."""
        for request, status, _, _, stamp, payload in self.replies.setdefault(transport, Replies()).feed(data):
            call, op, keys = self.asked.pop(request, (None, 0, []))
            if call is None or status not in (wire.OK, wire.MISSING):
                continue
            for key in keys:
                entry = call.entries[key]
                if entry.ended < 0:
                    entry.worker = transport.stream.far_id
                    if op == wire.DELETE:
                        entry.high, entry.exact = stamp, status == wire.OK
            if op == wire.MGET:
                for key, (type, state) in zip(keys, states_of(payload)):
                    if type == LWW.NUMBER:
                        register = LWW.decode(state)
                        call.stamps[key, register.read(True)] = register.stamp


def keys_of(op: int, body: bytes) -> Iterator[bytes]:
    """Yield the keys of a batch, in their order."""
    place = 4
    while place < len(body):
        size = int.from_bytes(body[place : place + 2], "little")
        skip = 2 if op == wire.MGET else 8
        yield body[place + skip : place + skip + size]
        place += skip + size + (0 if op == wire.MGET else int.from_bytes(body[place + 4 : place + 8], "little"))


def states_of(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, state) of each key of a multi-get's answer; type 0 where there is none."""
    place = 4
    while place < len(payload):
        status, type, _, size = struct.unpack_from("<BBHI", payload, place)
        yield (type if status == wire.OK else 0), payload[place + 8 : place + 8 + size]
        place += 8 + size
