"""The host of a node's cache: the core as its driver drives it, and the executors of the node.

The one rule: as in `cloudburst.cache.server`, whose pauses are taken over: one stream to each owner, opened again when
it has ended; a request that an owner did not take is kept back for a moment; a newer view is looked for when a stream
ends, and now and then. An executor's request is answered in order on its connection, or lost with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgpack

from anna.errors import ProtocolError
from anna.kvs.clock import Clock
from anna.kvs.worker import Connection
from anna.messages import NodeInfo, View, WorkerInfo
from anna.wire import COMMIT, PREPARE, VIEW
from cloudburst.cache.cache import Cache
from cloudburst.cache.server import RECONNECT_S, RETRY_S, VIEW_LOOK_S
from tests.anna.frames import Reply, joined, replies, request
from tests.sim.clocks import HostClock
from tests.sim.network import Stream
from tests.sim.schedule import MS, SECOND, US
from tests.sim.sessions.tasks import Promise

if TYPE_CHECKING:
    from tests.sim.sessions.cluster import SessionCluster

RESTART_NS = 20 * MS
"""How long a node needs to start its cache again."""

LOCAL_NS = 10 * US
"""How long an executor's bytes take to its node's cache, and back."""

OP_AT = 5
"""Where a request's frame has its operation."""

VIEW_WAIT_NS = SECOND
"""How long an owner is waited for that was asked for its view."""

OWN = View(1, (NodeInfo(1, (WorkerInfo(1, ("unix:/cache.sock",)),)),))


class Lost(Exception):
    """The node's cache has died, or is not up: nobody knows what became of the request."""


class Refused(Exception):
    """The store has refused what was asked, with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Line:
    """An executor's connection to its node's cache."""

    def __init__(self, host: CacheHost) -> None:
        self.host = host
        self.connection = Connection()
        self.waiting: deque[Promise[Reply]] = deque()

    def ask(self, frame: bytes) -> Promise[Reply]:
        """Send one request; its answer, or `Lost`, will be there."""
        promise: Promise[Reply] = Promise(self.host.cluster.schedule)
        if self.host.lines.get(self.connection) is not self:
            promise.fail(Lost("the node's cache is gone"))
        else:
            self.waiting.append(promise)
            self.host.cluster.schedule.after(LOCAL_NS, self.host.receive, self, frame)
        return promise

    def close(self) -> None:
        """Be gone."""
        if self.host.lines.pop(self.connection, None) is not None and self.host.core is not None:
            self.host.core.leave(self.connection)


class CacheHost:
    """One node's cache. `core` is None while it is down. `dies_after`: the frame of a commit at which it dies, or 0."""

    def __init__(self, cluster: SessionCluster, number: int, host: int, skew_us: int) -> None:
        self.cluster = cluster
        self.number = number
        self.host = host
        self.draw = cluster.schedule.stream(f"cache {number}")
        self.clock = HostClock(cluster.schedule, cluster.schedule.stream(f"cache clock {number}"), skew_us)
        self.core: Cache | None = None
        self.lines: dict[Connection, Line] = {}
        self.owners: dict[int, Owner] = {}
        self.incarnation = 0
        self.dies_after = 0
        self._retrying = False
        self._version = -1
        self.start()

    # -- its life

    def start(self) -> None:
        """Start the core, with what some worker says who the owners are."""
        if self.core is not None:
            return
        self.cluster.schedule.note(f"start cache {self.number}")
        self.incarnation += 1
        self._retrying, self._version, self.dies_after = False, -1, 0
        clock = Clock(self.clock.wall_us(), self.clock.monotonic() // 1000)
        self.core = Cache(OWN, self.cluster.view_now(), clock, self.cluster.plan["cache_bytes"])
        self.connect_owners()
        self.cluster.schedule.after(int(VIEW_LOOK_S * 1e9), self.follow_view, self.incarnation)

    def crash(self) -> None:
        """Die, with all connections."""
        if self.core is None:
            return
        self.cluster.schedule.note(f"crash cache {self.number}")
        self.core = None
        self.incarnation += 1
        for owner in self.owners.values():
            owner.stream.hang_up()
        self.owners = {}
        lines, self.lines = self.lines, {}
        for line in lines.values():
            for promise in line.waiting:
                promise.fail(Lost("the node's cache died"))

    def restart(self) -> None:
        """Die, and be started again."""
        self.crash()
        self.cluster.schedule.after(RESTART_NS, self.start)

    def dies_here(self) -> bool:
        """Die before this frame of a commit is sent, if it is to be."""
        if not self.dies_after:
            return False
        self.dies_after -= 1
        if not self.dies_after:
            self.restart()
        return self.core is None

    def break_owner(self, place: int) -> None:
        """Lose the connection with one owner."""
        owners = sorted(self.owners)
        if owners:
            self.owners[owners[place % len(owners)]].stream.reset()

    # -- executors

    def open(self) -> Line:
        """Return a connection of an executor's. Raises Lost."""
        if self.core is None:
            raise Lost("the node's cache is down")
        line = Line(self)
        self.lines[line.connection] = line
        return line

    def receive(self, line: Line, frame: bytes) -> None:
        """Take a request of an executor's."""
        if self.core is not None and self.lines.get(line.connection) is line:
            data = self.core.receive(line.connection, frame, self.clock.monotonic())
            self.answer([(line.connection, [joined(data)])])

    def answer(self, answers: Any) -> None:
        """Hand out what became answerable, and carry on what the core has given besides."""
        for connection, parts in answers:
            line = self.lines.get(connection)
            for reply in replies(joined(parts)) if line is not None else ():
                assert line is not None
                self.cluster.schedule.after(LOCAL_NS, line.waiting.popleft().set, reply)
        if self.core is None:
            return
        if self.core.owner_view.version != self._version:
            self.connect_owners()
        if self.core.holds and not self._retrying:
            self._retrying = True
            self.cluster.schedule.after(int(RETRY_S * 1e9), self.retry, self.incarnation)
        self.flush()

    def retry(self, incarnation: int) -> None:
        """Ask again what was kept back."""
        if incarnation == self.incarnation and self.core is not None:
            self._retrying = False
            self.answer(self.core.retry(self.clock.monotonic()))

    # -- owners

    def flush(self) -> None:
        """Send what the core has for its owners."""
        assert self.core is not None
        for owner, frames in self.core.outgoing():
            for frame in frames:
                if frame[OP_AT] in (PREPARE, COMMIT) and self.dies_here():
                    return
                self.owners[owner].stream.to_far(self.cluster.spoil(frame))

    def connect_owners(self) -> None:
        """Keep a stream to each owner of the present view, and to nobody else."""
        assert self.core is not None
        view = self.core.owner_view
        self._version = view.version
        addresses = {worker.worker_id: worker.addresses[0] for worker in view.workers}
        for owner in [owner for owner in self.owners if owner not in addresses]:
            gone = self.owners.pop(owner)
            gone.stream.hang_up()
            if gone.up:
                self.answer(self.core.owner_down(owner))
        for owner, address in addresses.items():
            if owner not in self.owners:
                self.owners[owner] = Owner(self, owner, address)
                self.owners[owner].open()

    def look_for_view(self, then: Callable[[], None]) -> None:
        """Ask the owners one after the other for their view until one answers; take it up, then go on."""
        assert self.core is not None
        known = [worker.addresses[0] for worker in self.core.owner_view.workers]
        self.draw.shuffle(known)
        ViewReader(self, [*known, *self.cluster.addresses], self.incarnation, then)

    def follow_view(self, incarnation: int) -> None:
        """Look for a newer view now and then."""
        if incarnation == self.incarnation:
            again = partial(self.cluster.schedule.after, int(VIEW_LOOK_S * 1e9), self.follow_view, incarnation)
            self.look_for_view(again)


class Owner:
    """The stream to one owner, opened again whenever it has ended."""

    def __init__(self, host: CacheHost, owner: int, address: str) -> None:
        self.host = host
        self.owner = owner
        self.address = address
        self.up = False
        self.incarnation = host.incarnation
        self.stream: Stream

    @property
    def wanted(self) -> bool:
        """Whether the cache still lives, and wants this stream."""
        return self.incarnation == self.host.incarnation and self.host.owners.get(self.owner) is self

    def open(self) -> None:
        """Try to connect."""
        if self.wanted:
            self.stream = self.host.cluster.open_stream(self.host.host, self.address, self.hear)
            self.stream.dial()

    def hear(self, data: bytes | None) -> None:
        """Take what comes: nothing when it has been accepted, None when it has ended."""
        core = self.host.core
        if not self.wanted or core is None:
            return
        if data is None:
            was_up, self.up = self.up, False
            if was_up:
                self.host.answer(core.owner_down(self.owner))
            self.host.cluster.schedule.after(int(RECONNECT_S * 1e9), self._again)
            return
        if not self.up:
            self.up = True
            core.owner_up(self.owner)
            self.host.answer(())
        if data:
            try:
                answers = core.hear(self.owner, data, self.host.clock.monotonic())
            except ProtocolError:
                self.stream.reset()
                raise
            self.host.answer(answers)

    def _again(self) -> None:
        if self.wanted and self.host.core is not None:
            self.host.look_for_view(self.open)


class ViewReader:
    """Asks for the view at one address after the other."""

    def __init__(self, host: CacheHost, addresses: list[str], incarnation: int, then: Callable[[], None]) -> None:
        self.host = host
        self.addresses = list(dict.fromkeys(addresses))
        self.incarnation = incarnation
        self.then = then
        self.asked = False
        self.number = 0
        self.next()

    def next(self, number: int = 0) -> None:
        """Ask at the next address, unless the one that was asked as `number` has been given up already."""
        if number != self.number or self.incarnation != self.host.incarnation:
            return
        self.number += 1
        if not self.addresses:
            self.then()
            return
        self.asked = False
        hear = partial(self.hear, self.number)
        self.stream = self.host.cluster.open_stream(self.host.host, self.addresses.pop(0), hear)
        self.stream.dial()
        self.host.cluster.schedule.after(VIEW_WAIT_NS, self.next, self.number)

    def hear(self, number: int, data: bytes | None) -> None:
        core = self.host.core
        if number != self.number or self.incarnation != self.host.incarnation or core is None:
            return
        if data is None:
            self.next(number)
        elif not self.asked:
            self.asked = True
            self.stream.to_far(request(VIEW))
        elif data:
            (reply,) = replies(data)
            self.stream.hang_up()
            self.number = -1
            core.adopt_owners(View.from_wire(msgpack.unpackb(reply.payload)))
            self.host.answer(())
            self.then()
