"""Simulated clients: they run their part of the plan on the compiled requester, and write down what they were told.

The one rule: a client does what the real ones promise and no more. It routes by its view, tries another owner when
one does not answer or is stale, repeats a read until its deadline, and repeats a write only after a definite refusal;
a write whose answer was lost is `unknown`. A read that might be answered by somebody who knows less than the client
has seen is asked for strictly. Every operation ends at its deadline at the latest.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgpack

from anna import Counter, ORSet, Set, wire
from anna.errors import AnnaError
from anna.messages import View
from anna.requester import Replies, Requester
from tests.sim.history import (
    COUNTER,
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
from tests.sim.network import Stream
from tests.sim.schedule import MS

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

STATUS_OVERLOADED, STATUS_UNAVAILABLE = 22, 23
TRY_AGAIN = (wire.WRONG_WORKER, STATUS_OVERLOADED, STATUS_UNAVAILABLE, wire.STALE)
FLAGS_AT, ACK_AT = 7, 14

PAUSE_NS = 5 * MS
READ_PATIENCE_NS = 250 * MS
"""How long a read waits for one owner before it asks another."""

COUNTER_BASE = 4
COUNTER_SLOTS = 31
"""Increment `slot` of a counter adds COUNTER_BASE ** slot: the sum tells how often each was counted."""

TYPES = {"r": REGISTER, "s": SET, "c": COUNTER, "o": ORSET}
"""The first letter of a key names its type."""


def written(kind: str, entry: Entry) -> Any:
    """Return what a put of this entry gives to the requester."""
    if kind == REMOVE:
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


class Client:
    """One session: operations one after another, each at its planned time or when the one before has ended.

    `touched` are the streams on which the client was told anything of a key. Only when the one to be asked on is the
    only one does its worker surely know as much as the client; else a read is strict. That an owner took a write does
    not show that it has the client's earlier write to another owner; that it answered a strict read does. And at the
    other end of a new stream to the same address there may be another incarnation.
    """

    def __init__(self, cluster: Cluster, number: int, host: int, view: View, operations: list[dict[str, Any]]) -> None:
        self.cluster = cluster
        self.schedule = cluster.schedule
        self.number = number
        self.host = host
        self.requester = Requester(view)
        self.streams: dict[str, Lane] = {}
        self.touched: dict[str, set[Lane]] = {}
        self.waiting = operations
        self.call: Call | None = None
        self.asked = 0
        self.plan_next()

    def plan_next(self) -> None:
        """Begin the next operation at its time."""
        if self.waiting:
            self.schedule.at(self.waiting[0]["at"], self.begin)

    def begin(self) -> None:
        """Begin the next operation, unless one is under way."""
        if self.call is None and self.waiting and self.waiting[0]["at"] <= self.schedule.now:
            self.call = Call(self, self.waiting.pop(0))
            self.call.attempt()

    def add(self, operation: dict[str, Any]) -> None:
        """Append an operation to the plan."""
        self.waiting.append(operation)
        if self.call is None:
            self.plan_next()

    def ended(self, call: Call) -> None:
        """Take note that the operation under way has ended."""
        self.call = None
        self.plan_next()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or planned."""
        return self.call is None and not self.waiting

    def candidates(self, key: str) -> list[int]:
        """Return the indexes in `view.workers` of those to ask for `key`, the best first."""
        view = self.requester.view
        return list(self.cluster.placement(view).owners_of(key.encode(), view.factor)) if view.serving else []

    def lane(self, address: str) -> Lane:
        """Return the open stream to `address`."""
        lane = self.streams.get(address)
        if lane is None or lane.lost:
            lane = self.streams[address] = Lane(self, address)
        return lane

    def adopt(self, payload: bytes) -> None:
        """Take up a view that a worker answered with."""
        self.requester.adopt(View.from_wire(msgpack.unpackb(payload)))

    def seek_view(self) -> None:
        """Ask somebody for the view, each time another; the answer is taken up whenever it comes."""
        addresses = self.cluster.addresses
        self.asked += 1
        address = addresses[(self.number + self.asked) % len(addresses)]
        request, frame = self.requester.request(wire.VIEW)
        self.lane(address).send(request, frame, None)

    def break_streams(self) -> None:
        """Lose every connection, as a fault."""
        for lane in self.streams.values():
            lane.stream.reset()


class Lane:
    """One stream of a client, and the parts of its call that wait for answers there."""

    def __init__(self, client: Client, address: str) -> None:
        self.client = client
        self.stream: Stream = client.cluster.open_stream(client.host, address, self.hear)
        self.replies = Replies()
        self.parts: dict[int, Part | None] = {}
        self.lost = False

    def send(self, request: int, frame: bytes, part: Part | None) -> None:
        """Send a request; the part that waits for its answer, None for a view that nobody waits for."""
        self.parts[request] = part
        self.stream.to_far(frame)

    def hang_up(self) -> None:
        """Give the stream up; whoever waits for an answer on it gets none."""
        self.lost = True
        self.stream.hang_up()

    def hear(self, data: bytes | None) -> None:
        """Take what came back, or None when the stream has ended."""
        if data is None:
            self.lost = True
            parts, self.parts = self.parts, {}
            for part in parts.values():
                if part is not None:
                    part.failed(refused=not self.stream.taken)
            return
        for request, status, kind, flags, stamp, payload in self.replies.feed(data):
            self.client.requester.note(stamp)
            part = self.parts.pop(request, None)
            if part is not None:
                part.answered(status, kind, flags, stamp, payload)
            elif status == wire.OK:
                self.client.adopt(payload)


class Part:
    """The keys of one call that one worker was asked for in one frame."""

    def __init__(self, call: Call, entries: list[Entry], strict: bool, lane: Lane) -> None:
        self.call = call
        self.strict = strict
        self.entries = entries
        self.lane = lane
        self.settled = False

    def failed(self, refused: bool) -> None:
        """Take note that no answer will come; `refused` when the worker has never had the request."""
        if self.settled:
            return
        self.settled = True
        for entry in self.entries:
            if entry.kind == GET or refused:
                self.call.again(entry, "lost", view=True)
            else:
                self.call.settle(entry, UNKNOWN, "connection lost")

    def impatient(self) -> None:
        """A read has waited long enough for this worker: hang up and try another."""
        if not self.settled and not self.call.ended:
            self.lane.hang_up()
            self.failed(refused=False)

    def answered(self, status: int, kind: int, flags: int, stamp: int, payload: bytes) -> None:
        """Take the answer and settle or repeat each key."""
        if self.settled:
            return
        self.settled = True
        if status == wire.WRONG_WORKER:
            self.call.client.adopt(payload)
        if self.call.batch and status in (wire.OK, wire.PARTIAL):
            for entry, (its_status, its_kind, its_payload) in zip(self.entries, self.items(status, payload)):
                self.settle(entry, its_status, its_kind, flags, stamp, its_payload)
        else:
            for entry in self.entries:
                self.settle(entry, status, kind, flags, stamp, payload)

    def items(self, status: int, payload: bytes) -> list[tuple[int, int, bytes]]:
        """Return (status, type, payload) of each key of a batch's answer."""
        if self.entries[0].kind != GET:
            failures = {i: (s, 0, m.encode()) for i, s, m in msgpack.unpackb(payload)} if status == wire.PARTIAL else {}
            return [failures.get(index, (wire.OK, 0, b"")) for index in range(len(self.entries))]
        place, found = 4, []
        for _ in self.entries:
            its_status, its_kind, _, size = struct.unpack_from("<BBHI", payload, place)
            found.append((its_status, its_kind, payload[place + 8 : place + 8 + size]))
            place += 8 + size
        return found

    def settle(self, entry: Entry, status: int, kind: int, flags: int, stamp: int, payload: bytes) -> None:
        """Settle one key by its answer."""
        client = self.call.client
        if entry.outcome != "open":
            return
        if status in TRY_AGAIN:
            self.call.again(entry, f"status {status}", view=status == wire.WRONG_WORKER and self.call.batch)
        elif status > wire.MISSING:
            error = client.requester.failure(status, payload)
            definite = isinstance(error, AnnaError) and error.definite
            self.call.settle(entry, FAIL if definite else UNKNOWN, f"{type(error).__name__}: {error}")
        else:
            entry.worker = self.lane.stream.far_id
            if entry.kind == GET and self.strict:
                client.touched[entry.key] = {self.lane}
            else:
                client.touched.setdefault(entry.key, set()).add(self.lane)
            entry.high = stamp
            if entry.kind == GET:
                if status == wire.OK:
                    entry.stamp = int.from_bytes(payload[:8], "little") if entry.type == REGISTER else 0
                    note_value(entry, client.requester.decode(kind, payload))
            else:
                entry.exact = not self.call.batch and status == wire.OK
                entry.copies, entry.durable = kind + 1, flags
            self.call.settle(entry, OK)


class Call:
    """One operation under way: its entries, those still open, and its deadline."""

    def __init__(self, client: Client, operation: dict[str, Any]) -> None:
        self.client = client
        self.operation = operation
        self.batch = operation["kind"] in ("mget", "mput")
        self.deadline = client.schedule.now + operation["deadline"]
        self.tries = operation["rank"]
        self.ended = False
        self.due_again = False
        self.parts: list[Part] = []
        kind = {"mget": GET, "mput": PUT}.get(operation["kind"], operation["kind"])
        values = operation["values"] or [0] * len(operation["keys"])
        self.entries = [
            Entry(
                operation["id"],
                client.number,
                kind,
                key,
                TYPES[key[0]],
                value,
                operation["deadline"],
                client.schedule.now,
            )
            for key, value in zip(operation["keys"], values)
        ]
        self.idle = list(self.entries)
        self.open = len(self.entries)
        client.cluster.history.entries.extend(self.entries)
        client.schedule.at(self.deadline, self.expire)

    def attempt(self) -> None:
        """Ask the owners for every key that nobody is being asked for."""
        self.due_again = False
        if self.ended:
            return
        idle, self.idle = self.idle, []
        groups: dict[int, list[Entry]] = {}
        for entry in idle:
            places = self.client.candidates(entry.key)
            if places:
                groups.setdefault(places[self.tries % len(places)], []).append(entry)
            else:
                self.again(entry, "no workers", view=True)
        for place, entries in groups.items():
            self.ask(place, entries)

    def ask(self, place: int, entries: list[Entry]) -> None:
        """Send one part."""
        client = self.client
        info = client.requester.view.workers[place]
        request, frame = self.frame(entries)
        lane = client.lane(info.addresses[0])
        strict = any(not client.touched.get(e.key, set()) <= {lane} for e in entries)
        marked = bytearray(frame)
        if entries[0].kind == GET:
            marked[FLAGS_AT] |= wire.STRICT if strict else 0
        else:
            marked[ACK_AT] = self.operation["ack"]
        for entry in entries:
            entry.low = client.requester.seen
        part = Part(self, entries, strict, lane)
        self.parts.append(part)
        lane.send(request, bytes(marked), part)
        if entries[0].kind == GET:
            client.schedule.after(READ_PATIENCE_NS, part.impatient)

    def frame(self, entries: list[Entry]) -> tuple[int, bytes]:
        """Return (request id, frame) for these keys."""
        requester, first = self.client.requester, entries[0]
        if self.batch and first.kind == GET:
            return requester.multi_get_request([e.key for e in entries])
        if self.batch:
            return requester.multi_put_request([e.key for e in entries], [written(e.kind, e) for e in entries])
        if first.kind in (PUT, REMOVE):
            return requester.put_request(first.key, written(first.kind, first))
        return requester.request(wire.GET if first.kind == GET else wire.DELETE, first.key)

    def again(self, entry: Entry, why: str, view: bool) -> None:
        """Try this key again after a pause, at the next owner."""
        if self.ended:
            return
        entry.why = why
        self.idle.append(entry)
        if view:
            self.client.seek_view()
        if not self.due_again:
            self.due_again = True
            self.tries += 1
            self.client.schedule.after(PAUSE_NS, self.attempt)

    def settle(self, entry: Entry, outcome: str, why: str = "") -> None:
        """End one key; with the last, the call."""
        entry.outcome, entry.why, entry.ended = outcome, why, self.client.schedule.now
        self.client.schedule.note(f"end {entry}")
        self.open -= 1
        if not self.open:
            self.ended = True
            self.client.ended(self)

    def expire(self) -> None:
        """End what is open at the deadline: refused if no request is under way, else nobody knows."""
        if self.ended:
            return
        for entry in self.entries:
            if entry.outcome == "open":
                known = entry.kind == GET or entry in self.idle
                self.settle(entry, FAIL if known else UNKNOWN, f"deadline; {entry.why}")
        for part in self.parts:
            if not part.settled:
                part.settled = True
                part.lane.hang_up()
