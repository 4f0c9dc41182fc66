"""The least replicated store that keeps the promises, in Python: what the simulator and its checkers are proven on.

The one rule: a key is the set of all writes ever made to it, each named by (stamp, worker), and the greatest stamp of
a deletion; what is read is made of the writes after that. Such sets only grow, so replicas join by union, whatever
comes twice, late or out of order. There is no epoch, no digest and no bound on memory; every rule of the protocol that
a planted fault breaks is one line here. It has the interface of the compiled worker and speaks its frames.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import msgpack

from anna import LWW, Counter, ORSet, Set, wire
from anna.kvs.clock import Clock
from anna.lattices import REGISTRY, Lattice
from anna.messages import View
from anna.routing.placement import Placement
from tests.anna import frames
from tests.anna.frames import HEADER, REPLY

RESEND_NS = 40_000_000
BEAT_NS = 10_000_000

Name = tuple[int, int]
"""(stamp, worker): which write."""


class Write(NamedTuple):
    """One write as it is stored, sent and logged. `kind` 0 is a deletion."""

    key: bytes
    stamp: int
    worker: int
    kind: int
    payload: bytes


class Cell:
    """All writes of a key, and its last deletion."""

    def __init__(self) -> None:
        self.writes: dict[Name, Write] = {}
        self.reset = 0

    def live(self) -> list[Write]:
        """Return what no deletion covers, by stamp."""
        return [self.writes[name] for name in sorted(self.writes) if name[0] > self.reset]

    def state(self, by_arrival: bool = False) -> Lattice | None:
        """Return the lattice that a client sees, or None."""
        live = self.live()
        if not live:
            return None
        if live[0].kind == LWW.NUMBER:
            arrived = [write for write in self.writes.values() if write.stamp > self.reset]
            last = arrived[-1] if by_arrival else live[-1]
            return LWW(REGISTRY[LWW.NUMBER].decode(last.payload).value, last.stamp, last.worker)
        joined = REGISTRY[live[0].kind].bottom()
        if live[0].kind == Counter.NUMBER:
            return Counter(sum(Counter.decode(w.payload).value for w in live)).assign(None, 1, 1)
        for write in live:
            joined = joined | REGISTRY[write.kind].decode(write.payload)
        return joined


class Waiting(NamedTuple):
    """An answer that is held back until the write is as safe as was asked."""

    connection: Any
    head: tuple[Any, ...]
    names: frozenset[Name]
    numbers: int
    level: int


class ModelWorker:
    """One worker. `planted` are the rules that it breaks."""

    def __init__(self, view: View, worker_id: int, clock: Clock, planted: frozenset[str]) -> None:
        self.worker_id = worker_id
        self.clock = clock
        self.planted = planted
        self.durable = False
        self.now = 0
        self.pushes_due = True
        self.cells: dict[bytes, Cell] = {}
        self.unacked: dict[int, dict[Name, tuple[Write, int]]] = {}
        self.holders: dict[Name, int] = {}
        self.marks: dict[int, int] = {}
        self.synced: set[int] = set()
        self.waiting: list[Waiting] = []
        self.log: list[Write] = []
        self.logs = self.logged_to = 0
        self.frames_out: list[tuple[int, bytes]] = []
        self.answers: list[tuple[Any, bytes]] = []
        self.beat_at = 0
        self.view = View(0, ())
        self.adopt(view)

    # -- the cluster

    def adopt(self, view: View) -> None:
        """Take up a view, unless it is an old one. All are owed everything again: the dead may have told only some."""
        if view.version < self.view.version:
            return
        self.view = view
        self.placement = Placement(view)
        self.ids = [worker.worker_id for worker in view.workers]
        self.peers = [peer for peer in self.ids if peer != self.worker_id]
        for peer in self.peers:
            self.unacked.setdefault(peer, {})
        self.offer_everything()
        for peer in [peer for peer in self.unacked if peer not in self.peers]:
            del self.unacked[peer]
        self.beat_at = 0

    def owners(self, key: bytes) -> list[int]:
        """Return the ids of a key's owners."""
        return [self.ids[place] for place in self.placement.owners_of(key, self.view.factor)]

    @property
    def complete(self) -> bool:
        """Whether every peer has told all that it had when this worker began."""
        return "repair-off" in self.planted or all(peer in self.synced for peer in self.peers)

    def everything(self, key: bytes, cell: Cell) -> list[Write]:
        """Return all writes of a cell, its deletion included."""
        reset = [Write(key, cell.reset, 0, 0, b"")] if cell.reset else []
        return [*cell.writes.values(), *reset]

    # -- writes

    def take(self, write: Write, now: int) -> None:
        """Join a write, log it, and offer it to the key's other owners."""
        self.join(write)
        for peer in self.owners(write.key):
            if peer != self.worker_id:
                self.offer(write, peer)
        if self.durable:
            self.log.append(write)

    def join(self, write: Write) -> None:
        """Join a write into its cell."""
        cell = self.cells.setdefault(write.key, Cell())
        if write.kind == 0:
            cell.reset = max(cell.reset, write.stamp)
            if "tombstone-early" in self.planted:
                cell.writes = {name: w for name, w in cell.writes.items() if name[0] > cell.reset}
                cell.reset = 0
            return
        name = (write.stamp, write.worker)
        if "duplicate-applied" in self.planted:
            while name in cell.writes:
                name = (name[0], name[1] + 1)
        cell.writes.setdefault(name, write)

    def offer(self, write: Write, peer: int) -> None:
        """Owe a write to a peer until it confirms."""
        if self.worker_id in self.owners(write.key) and peer in self.owners(write.key) and peer in self.unacked:
            self.unacked[peer].setdefault((write.stamp, write.worker), (write, 0))

    def offer_everything(self) -> None:
        """Owe every peer all that it should hold."""
        if "repair-off" in self.planted:
            return
        for key, cell in self.cells.items():
            for write in self.everything(key, cell):
                for peer in self.peers:
                    self.offer(write, peer)

    # -- peers

    def tell(self, peer: int, now: int) -> None:
        """Send a peer what it is owed, and up to which stamp it then knows everything."""
        owed = self.unacked.get(peer, {})
        due = [(w, at) for w, at in owed.values() if at <= now]
        for write, _ in due:
            owed[(write.stamp, write.worker)] = (write, now + RESEND_NS)
        mark = min((stamp for stamp, _ in owed), default=self.clock.now(now // 1000) + 1) - 1
        self.send(peer, ["tell", mark, not owed, [list(write) for write, _ in due]])
        if "fire-and-forget" in self.planted:
            owed.clear()

    def send(self, peer: int, body: list[Any]) -> None:
        """Give one frame to the driver."""
        payload = msgpack.packb([self.worker_id, *body])
        head = HEADER.pack(HEADER.size - 4 + len(payload), 1, wire.PEER, 0, 1, 0, 0, 0, self.clock.now(0))
        self.frames_out.append((peer, head + payload))

    def hear(self, payload: bytes, now: int) -> None:
        """Take a frame of a peer."""
        sender, what, *rest = msgpack.unpackb(payload)
        if sender not in self.peers:
            return
        if what == "got":
            for stamp, worker in rest[0]:
                self.unacked.get(sender, {}).pop((stamp, worker), None)
                if (stamp, worker) in self.holders:
                    self.holders[(stamp, worker)] += 1
            if not self.unacked.get(sender) and rest[0]:
                self.tell(sender, now)
            return
        mark, done, writes = rest
        self.marks[sender] = max(mark, self.marks.get(sender, 0))
        for fields in writes:
            write = Write(*fields)
            self.join(write)
            if self.durable:
                self.log.append(write)
        if writes:
            self.send(sender, ["got", [[w[1], w[2]] for w in writes]])
        elif done:
            self.synced.add(sender)

    # -- clients

    def receive(self, connection: Any, data: bytes, now: int) -> bytes:
        """Take whole frames."""
        self.clock.now(now // 1000)
        self.now = now
        while data:
            head = HEADER.unpack_from(data)
            size = 4 + head[0]
            key, payload = data[24 : 24 + head[6]], data[24 + head[6] : size]
            self.clock.see(head[8])
            if head[2] == wire.PEER:
                self.hear(payload, now)
            else:
                self.handle(connection, head, key, payload, now)
            data = data[size:]
        return self.release(connection)

    def handle(self, connection: Any, head: tuple[Any, ...], key: bytes, payload: bytes, now: int) -> None:
        """Answer one request."""
        op, kind = head[2], head[3]
        if op == frames.VIEW:
            self.answer(connection, head, frames.OK, 0, 0, msgpack.packb(self.view.to_wire()))
        elif op == frames.MGET:
            keys = split_keys(payload)
            found = [self.look(head, name) for name in keys]
            body = b"".join(struct.pack("<BBHI", status, type, 0, len(data)) + data for status, type, data in found)
            self.answer(connection, head, frames.OK, 0, 0, struct.pack("<I", len(keys)) + body)
        elif op == frames.GET:
            status, type, data = self.look(head, key)
            self.answer(connection, head, status, type, 0, data)
        elif op == frames.MPUT:
            self.put_many(connection, head, split_items(payload), now)
        elif self.worker_id not in self.owners(key):
            self.answer(connection, head, frames.WRONG_WORKER, 0, 0, msgpack.packb(self.view.to_wire()))
        elif op == frames.DELETE:
            existed = key in self.cells and self.cells[key].state() is not None
            write = Write(key, self.clock.now(now // 1000), 0, 0, b"")
            self.take(write, now)
            self.answer(connection, head, frames.OK if existed else frames.MISSING, 0, 0, b"", write.stamp)
        else:
            self.hold(connection, head, [self.put(key, kind, payload, now)])

    def look(self, head: tuple[Any, ...], key: bytes) -> tuple[int, int, bytes]:
        """Return (status, type, state) of a key, as a read may see it."""
        if self.worker_id not in self.owners(key):
            return frames.WRONG_WORKER, 0, b""
        if "stale-owner" not in self.planted:
            others = [peer for peer in self.owners(key) if peer != self.worker_id]
            behind = head[4] & wire.STRICT and any(self.marks.get(peer, 0) < head[8] for peer in others)
            if behind or not all(peer in self.synced or "repair-off" in self.planted for peer in others):
                return wire.STALE, 0, b""
        cell = self.cells.get(key)
        state = None if cell is None else cell.state("tie-by-arrival" in self.planted)
        return (frames.MISSING, 0, b"") if state is None else (frames.OK, state.NUMBER, state.encode())

    def put(self, key: bytes, kind: int, payload: bytes, now: int) -> Write:
        """Join one put; return the write that it became."""
        stamp = self.clock.now(now // 1000)
        if kind in (ORSet.NUMBER, Set.NUMBER):
            cell = self.cells.get(key)
            current = None if cell is None else cell.state()
            payload = REGISTRY[kind].decode(payload).assign(current, stamp, self.worker_id).encode()
        elif kind == LWW.NUMBER:
            payload = struct.pack("<QQ", stamp, self.worker_id) + payload[16:]
        write = Write(key, stamp, self.worker_id, kind, payload)
        self.holders[(stamp, self.worker_id)] = 1
        self.take(write, now)
        return write

    def put_many(self, connection: Any, head: tuple[Any, ...], items: list[tuple[bytes, int, bytes]], now: int) -> None:
        """Answer a multi-put; a worker that does not own all its keys writes none."""
        if all(self.worker_id in self.owners(key) for key, _, _ in items):
            self.hold(connection, head, [self.put(*item, now) for item in items])
        else:
            self.answer(connection, head, frames.WRONG_WORKER, 0, 0, msgpack.packb(self.view.to_wire()))

    def hold(self, connection: Any, head: tuple[Any, ...], writes: list[Write]) -> None:
        """Answer when the writes are as safe as was asked."""
        names = frozenset((w.stamp, w.worker) for w in writes)
        level = 0 if "early-ack" in self.planted else head[7]
        self.waiting.append(Waiting(connection, head, names, self.logs + 1, level))

    def release(self, connection: Any = None) -> bytes:
        """Give the answers that need to wait no more; those of `connection` are returned."""
        still = []
        for held in self.waiting:
            copies = min(self.holders[name] for name in held.names)
            durable = int(self.durable and held.numbers <= self.logged_to)
            if (held.level == wire.DISK and not durable) or (held.level != wire.DISK and copies < held.level):
                still.append(held)
                continue
            said = max(copies, held.head[7]) if "early-ack" in self.planted and held.head[7] != wire.DISK else copies
            stamp = max(name[0] for name in held.names)
            self.answer(held.connection, held.head, frames.OK, said - 1, durable, b"", stamp)
        self.waiting = still
        mine = b"".join(data for its, data in self.answers if its is connection)
        self.answers = [(its, data) for its, data in self.answers if its is not connection]
        return mine

    def answer(
        self, connection: Any, head: Any, status: int, type: int, flags: int, payload: bytes, stamp: int = 0
    ) -> None:
        """Write one reply."""
        data = REPLY.pack(REPLY.size - 4 + len(payload), 1, status, type, flags, head[5], 0, stamp or self.clock.now(0))
        self.answers.append((connection, data + payload))

    # -- the driver

    def tick(self, now: int) -> list[tuple[Any, bytes]]:
        """Tell the peers what they are owed."""
        self.now = now
        if now >= self.beat_at:
            self.beat_at = now + BEAT_NS
            for peer in self.peers:
                self.tell(peer, now)
        return []

    def take_released(self) -> list[tuple[Any, bytes]]:
        """Return the answers that need to wait no more."""
        self.release()
        answers, self.answers = self.answers, []
        return answers

    @property
    def epoch_left_us(self) -> int:
        """Microseconds until the next tick is due."""
        return max(0, self.beat_at - self.now) // 1000

    def next_due(self) -> None:
        """Nothing is due but at the end of an epoch."""

    def outgoing(self) -> list[tuple[int, bytes]]:
        """Return the frames for peers."""
        out, self.frames_out = self.frames_out, []
        return out

    def log_out(self) -> list[tuple[int, bytes]]:
        """Return the batch to be logged, if there is any."""
        if not self.log:
            return []
        self.logs += 1
        batch, self.log = [list(write) for write in self.log], []
        return [(self.logs, msgpack.packb(batch))]

    def logged(self, number: int, now: int) -> None:
        """Take note that batches up to `number` are durable."""
        self.logged_to = max(self.logged_to, number)
        self.release()

    def log_is_full(self, full: bool) -> None:
        """Take note that nothing can be made durable; what waits for the disk waits on."""
        self.full = full

    def open_log(self, number: int) -> None:
        """Log from now on, in batches numbered from `number`."""
        self.durable = True
        self.logs = self.logged_to = number - 1

    def recover(self, cells: bytes) -> None:
        """Join what the disk had."""
        for fields in msgpack.unpackb(cells):
            self.join(Write(*fields))
        self.offer_everything()

    def leave(self, connection: Any) -> None:
        """Forget a connection."""

    def check(self) -> None:
        """Assert the worker's invariants."""
        assert all(peer in self.ids for peer in self.unacked)

    def status(self) -> dict[str, Any]:
        """Return what the simulator looks at."""
        owed = sum(len(writes) for writes in self.unacked.values())
        stable = min([self.clock.now(0), *(self.marks.get(peer, 0) for peer in self.peers)])
        return {"complete": self.complete and not owed, "closed": (stable >> 10) // 10_000, "view": self.view.version}

    def held(self) -> dict[bytes, bytes]:
        """Return what each key holds, for a comparison of replicas."""
        arrival = "tie-by-arrival" in self.planted
        states = {key: cell.state(arrival) for key, cell in self.cells.items()}
        return {key: state.encode() for key, state in states.items() if state is not None}


def split_keys(payload: bytes) -> list[bytes]:
    """Return the keys of a multi-get."""
    place, keys = 4, []
    while place < len(payload):
        (size,) = struct.unpack_from("<H", payload, place)
        keys.append(payload[place + 2 : place + 2 + size])
        place += 2 + size
    return keys


def split_items(payload: bytes) -> list[tuple[bytes, int, bytes]]:
    """Return the (key, type, state) of a multi-put."""
    place, items = 4, []
    while place < len(payload):
        key_bytes, kind, _, size = struct.unpack_from("<HBBI", payload, place)
        place += 8
        items.append((payload[place : place + key_bytes], kind, payload[place + key_bytes : place + key_bytes + size]))
        place += key_bytes + size
    return items
