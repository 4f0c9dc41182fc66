"""A node's cache with its owners, which are real workers' cores, and the bytes under way between them."""

from __future__ import annotations

import struct
from collections import deque

from anna.kvs.clock import Clock
from anna.kvs.worker import Connection, Worker
from anna.lattices import LWW
from anna.messages import NodeInfo, View, WorkerInfo
from anna.routing.placement import Placement
from cloudburst.cache.cache import Cache
from tests.anna import frames
from tests.anna.frames import Reply, replies

MB = 1 << 20


def view_of(count: int, version: int = 1, first_id: int = 100) -> View:
    workers = tuple(WorkerInfo(first_id + n, (f"unix:/run/{n}.sock",), n) for n in range(count))
    return View(version, (NodeInfo(1, workers),))


class Shelf:
    """Where a cache puts large values: in a dictionary, as long as there is room."""

    def __init__(self, bytes_min: int = 2, bytes_max: int = MB) -> None:
        self.bytes_min = bytes_min
        self.bytes_max = bytes_max
        self.kept: dict[bytes, bytes] = {}
        self.formers: list[bytes | None] = []
        self._made = 0

    def keep(self, value: bytes, former: bytes | None) -> bytes | None:
        assert len(value) >= self.bytes_min
        assert former is None or former in self.kept
        if sum(map(len, self.kept.values())) + len(value) > self.bytes_max:
            return None
        self._made += 1
        where = b"place %d" % self._made
        self.kept[where] = value
        self.formers.append(former)
        return where

    def drop(self, where: bytes) -> None:
        del self.kept[where]

    def whole(self, state: bytes) -> bytes:
        """Return a register's state with its value in its place."""
        return state[:16] + self.kept[state[17:]] if state[16:17] == b"\x0a" else state


class Node:
    """A cache, its owners, and the bytes under way between them."""

    def __init__(
        self, owners: int = 2, bytes_max: int = MB, shelf: Shelf | None = None, shared_bytes_max: int = MB
    ) -> None:
        self.now = 10**12
        self.shelf = shelf
        self.view = view_of(owners)
        self.workers = [self.new_worker(place) for place in range(owners)]
        own = View(1, (NodeInfo(1, (WorkerInfo(1, ("unix:/run/cache.sock",)),)),))
        self.cache = Cache(own, self.view, Clock(10**9, self.now // 1000), bytes_max, shelf, shared_bytes_max)
        self.streams = [Connection() for _ in range(owners)]
        self.to_owner: list[deque[bytes]] = [deque() for _ in range(owners)]
        self.to_cache: list[deque[bytes]] = [deque() for _ in range(owners)]
        self.answers: dict[Connection, list[Reply]] = {}
        self.stamps: dict[bytes, int] = {}
        for place in range(owners):
            self.cache.owner_up(self.id(place))

    def id(self, place: int) -> int:
        """The worker id of the owner at a place."""
        return self.view.workers[place].worker_id

    def new_worker(self, place: int) -> Worker:
        return Worker(self.view, place, Clock(10**9 + place * 1000, self.now // 1000))

    def client(self) -> Connection:
        connection = Connection()
        self.answers[connection] = []
        return connection

    def ask(self, connection: Connection, frame: bytes) -> None:
        self.take(connection, self.cache.receive(connection, frame, self.now))
        self.flush()

    def take(self, connection: Connection, data: bytes | list[bytes]) -> None:
        self.answers[connection] += replies(data)

    def flush(self) -> None:
        for owner, parts in self.cache.outgoing():
            self.to_owner[self.view.index_of(owner)] += parts
        if self.cache.has_news:
            for connection, data in self.cache.take_pushes():
                self.take(connection, data)

    def deliver_to_owner(self, place: int) -> None:
        if self.to_owner[place]:
            data = self.workers[place].receive(self.streams[place], self.to_owner[place].popleft(), self.now)
            self.to_cache[place].append(data if isinstance(data, bytes) else b"".join(data))
            self.note_stamps()

    def note_stamps(self) -> None:
        """Write down which stamp the owner gave to which value; called after each single write."""
        for worker in self.workers:
            for state in worker.store.states.values():
                if not isinstance(state, LWW):
                    continue
                stamp, _ = struct.unpack_from("<QQ", encoded := state.encode())
                self.stamps[encoded[17:]] = stamp

    def deliver_to_cache(self, place: int) -> None:
        if self.to_cache[place]:
            for connection, data in self.cache.hear(self.id(place), self.to_cache[place].popleft(), self.now):
                self.take(connection, data)
            self.flush()

    def tick(self, place: int) -> None:
        self.now += 1_000_000
        for _, data in self.workers[place].tick(self.now):
            self.to_cache[place].append(data if isinstance(data, bytes) else b"".join(data))

    def crash(self, place: int) -> None:
        """The owner dies with its memory, and another takes its place."""
        self.workers[place] = self.new_worker(place)
        self.streams[place] = Connection()
        self.to_owner[place].clear()
        self.to_cache[place].clear()
        for connection, data in self.cache.owner_down(self.id(place)):
            self.take(connection, data)
        self.cache.owner_up(self.id(place))
        self.flush()

    def settle(self) -> None:
        """Deliver all that is under way."""
        for _ in range(10_000):
            busy = False
            for place in range(len(self.workers)):
                busy = busy or bool(self.to_owner[place] or self.to_cache[place])
                self.deliver_to_owner(place)
                self.deliver_to_cache(place)
                self.tick(place)
                busy = busy or bool(self.to_cache[place])
            if not busy:
                return
        raise AssertionError("the messages do not come to an end")

    def answer(self, connection: Connection, frame: bytes) -> Reply:
        self.ask(connection, frame)
        self.settle()
        return self.answers[connection][-1]

    def cache_owner(self, key: bytes) -> int:
        """The worker id of the key's first owner."""
        return Placement(self.view).owner_of(key).worker_id

    def check_cache(self) -> None:
        self.cache.check()

    def check(self) -> None:
        self.cache.check()
        for worker in self.workers:
            worker.check()


def value(reply: Reply) -> bytes:
    assert reply.status == frames.OK
    return reply.payload[17:]
