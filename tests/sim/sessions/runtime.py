"""What executors do with a session: begin it, read in it, commit it, at the cache of the node that a function runs on.

The one rule: all that a session knows is in its core, and goes from node to node as bytes; what is here only asks. An
answer that is no answer yet is asked for again; `Expired` begins the session again, `Lost` the function.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from anna import wire
from anna.commits import Commit, Verdict
from anna.config import EPOCH_LEASE_US_MAX
from anna.lattices import REGISTRY, Lattice
from anna.snapshots import Pinned
from cloudburst.consistency.own import Own
from cloudburst.consistency.session import Session, Snapshot
from tests.anna.frames import Reply, items, request
from tests.sim.schedule import MS
from tests.sim.sessions.caches import CacheHost, Line, Refused
from tests.sim.sessions.coordinators import Coordinator
from tests.sim.sessions.tasks import pause

if TYPE_CHECKING:
    from tests.sim.sessions.cluster import SessionCluster

AGAIN_NS = 4 * MS
"""How long an executor waits before it asks again what could not be answered."""

EARLY_EPOCHS = 2
"""How far ahead of what is stable is read when that is the fault."""

THE_CACHE = 1
"""The worker id of a node's cache: the only one that executors know."""

TRIES_MAX = 40
"""How often a commit is tried at a cache."""

LATER = (wire.STALE, wire.UNAVAILABLE, wire.WRONG_WORKER)

PIN, PIN_LEAST, AT = struct.Struct("<QQ"), struct.Struct("<QQQ"), struct.Struct("<QQ")


class Expired(Exception):
    """The session's epoch cannot be read any more."""


class Unknown(Exception):
    """Nobody knows whether a write has happened."""


class Function:
    """One function that runs on a node: its connection to the node's cache."""

    def __init__(self, cluster: SessionCluster, host: CacheHost) -> None:
        self.cluster = cluster
        self.line: Line = host.open()
        self.own: Snapshot | None = None

    def close(self) -> None:
        """End."""
        self.line.close()

    async def ask(self, frame: bytes) -> Reply:
        """Ask until there is an answer that says something. Raises Lost, Expired, Refused, Unknown."""
        while True:
            reply = await self.line.ask(frame)
            if reply.status in (wire.OK, wire.MISSING, wire.PARTIAL):
                return reply
            if reply.status == wire.EXPIRED:
                raise Expired(reply.payload.decode())
            if reply.status == wire.LOST:
                raise Unknown(reply.payload.decode())
            if reply.status not in LATER:
                raise Refused(reply.status, reply.payload.decode(errors="replace"))
            await pause(self.cluster.schedule, AGAIN_NS)

    # -- at an epoch

    async def begin(self, session: Session) -> None:
        """Choose the session's epoch: the newest that can be read here, and none below what it comes after."""
        session.begin(await self.pinned(session.snapshot.epoch))

    async def pinned(self, least: int) -> Snapshot:
        """Return an epoch that can be read here, not below `least`."""
        words = PIN_LEAST.pack(0, EPOCH_LEASE_US_MAX, least) if least else PIN.pack(0, EPOCH_LEASE_US_MAX)
        while True:
            told = Pinned.from_wire((await self.ask(request(wire.PIN, b"", words))).payload)
            if told.view:
                assert told.epoch >= least, f"a session that comes after epoch {least} was given {told.epoch}"
                return Snapshot(told.epoch, told.view)
            await pause(self.cluster.schedule, AGAIN_NS)

    async def read(self, session: Session, key: bytes) -> Lattice | None:
        """Return what a key holds in the session."""
        return session.value(key, await self.state(session, key))

    async def state(self, session: Session, key: bytes) -> Lattice | None:
        """Return what a key held at the session's epoch, unless the session hides that."""
        if session.hides(key):
            return None
        reply = await self.ask(request(wire.GET_AT, key, AT.pack(*await self.snapshot(session))))
        state = decoded(reply.status, reply.type, reply.payload)
        if state is None and self.cluster.planted("absence-forgotten"):
            return await self.get(key)
        return state

    async def read_all(self, session: Session, keys: list[bytes]) -> list[Lattice | None]:
        """Return what several keys hold in the session, asked for with one request."""
        names = b"".join(struct.pack("<H", len(key)) + key for key in keys)
        words = AT.pack(*await self.snapshot(session)) + struct.pack("<I", len(keys)) + names
        found = items((await self.ask(request(wire.MGET_AT, b"", words))).payload)
        return [session.value(key, decoded(*item)) for key, item in zip(keys, found)]

    async def snapshot(self, session: Session) -> Snapshot:
        """Return where a read of this function reads: at the session's epoch, unless a fault is planted."""
        if self.cluster.planted("own-epochs"):
            self.own = self.own or await self.pinned(0)
            return self.own
        if self.cluster.planted("epoch-too-early"):
            return Snapshot(session.snapshot.epoch + EARLY_EPOCHS, session.snapshot.view)
        return session.snapshot

    # -- commits

    async def commit(self, session: Session, transaction: bytes) -> int:
        """Let what the session has written take effect; return the commit stamp, 0 for no writes."""
        writes = session.buffered
        if not writes:
            return 0
        if session.level.atomic and (len(writes) > 1 or not self.cluster.plan["plain_singles"]):
            return await self.transact(session, transaction)
        stamp = 0
        for key, own in writes.items():
            stamp = max(stamp, await self.put_own(session, key, own))
        return stamp

    async def transact(self, session: Session, transaction: bytes) -> int:
        """Let all writes take effect together; return their stamp."""
        writes = [own.write(key) for key, own in session.buffered.items()]
        if self.cluster.plan["caches_commit"]:
            stamp = await self.transact_here(Commit(transaction, writes, self.cluster.new_nonce(), True), session.after)
        else:
            stamp = await Coordinator(self.cluster, self.line.host).commit(transaction, writes, session.after)
        self.cluster.note_commit(transaction, stamp, session.after)
        return stamp

    async def transact_here(self, commit: Commit, after: int) -> int:
        """Let the node's cache commit, which stands for all owners. Raises Lost, Refused, Unknown."""
        messages = commit.begin(lambda key: THE_CACHE, lambda place: THE_CACHE)
        for _ in range(TRIES_MAX):
            for _, op, payload in messages:
                reply = await self.line.ask(request(op, b"", payload, stamp=after, ack=self.cluster.ack))
                commit.answered(THE_CACHE, reply.status, reply.payload)
            if commit.verdict is Verdict.COMMITTED:
                return int(commit.stamp)
            if commit.verdict is Verdict.REFUSED:
                raise Refused(*commit.refusal)
            await pause(self.cluster.schedule, AGAIN_NS)
            again = commit.verdict is Verdict.AGAIN
            messages = (commit.begin if again else commit.ask)(lambda key: THE_CACHE, lambda place: THE_CACHE)
        raise Unknown("nobody says what became of a transaction")

    async def delete(self, key: bytes, after: int = 0) -> int:
        """Delete a key; return the stamp of that."""
        return (await self.ask(request(wire.DELETE, key, stamp=after, ack=self.cluster.ack))).stamp

    async def put_own(self, session: Session, key: bytes, own: Own) -> int:
        """Write one key by itself; return its stamp."""
        gone, state = own.requests()
        stamp = session.after
        if gone:
            stamp = await self.delete(key, stamp)
        return stamp if state is None else await self.put(key, state, stamp)

    async def put(self, key: bytes, state: Lattice, after: int = 0) -> int:
        """Write a key; return the stamp of the write."""
        frame = request(
            wire.PUT, key, state.encode(), type=state.NUMBER, stamp=after, ack=self.cluster.ack
        )  # fmt: skip
        return (await self.ask(frame)).stamp

    async def get(self, key: bytes) -> Lattice | None:
        """Return the newest that the cache has of a key."""
        reply = await self.ask(request(wire.GET, key))
        return decoded(reply.status, reply.type, reply.payload)


def decoded(status: int, kind: int, payload: bytes) -> Lattice | None:
    """Return the state in an answer. Raises Expired for an item that its owner cannot read."""
    if status == wire.OK:
        return REGISTRY[kind].decode(payload)
    if status != wire.MISSING:
        raise Expired(f"an item came with status {status}")
    return None


