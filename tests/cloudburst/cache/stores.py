"""A node's cache before workers that talk to each other: the bytes between them arrive when the test lets them."""

from __future__ import annotations

import struct
from collections import deque

from anna.config import EPOCH_LEASE_US_MAX
from anna.kvs.clock import Clock
from anna.kvs.worker import Connection
from anna.messages import NodeInfo, View, WorkerInfo
from cloudburst.cache.cache import Cache
from tests.anna.frames import Reply, joined, replies, request
from tests.anna.kvs.workers import WALL_US, Workers

GET_AT, MGET_AT, PIN, SUBSCRIBE_AT = 15, 16, 18, 23
EXPIRED, LOST = 28, 24
MB = 1 << 20


class Store(Workers):
    """The workers of one view, a cache that is connected with all of them, and clients of the cache."""

    def __init__(self, view: View, skew_us: int = 0, bytes_max: int = MB) -> None:
        self.cache: Cache | None = None
        super().__init__(view, skew_us)
        self.bytes_max = bytes_max
        self.streams: dict[int, Connection] = {}
        self.to_worker: dict[int, deque[bytes]] = {}
        self.to_cache: dict[int, deque[bytes]] = {}
        self.begin_cache()

    def begin_cache(self) -> None:
        """Start the node's cache; one that was there before has ended, and left its streams."""
        for ids in list(self.streams):
            self.workers[ids].leave(self.streams.pop(ids))
        own = View(1, (NodeInfo(1, (WorkerInfo(1, ("unix:/run/cache.sock",)),)),))
        view = next(iter(self.workers.values())).view
        self.cache = Cache(own, view, Clock(WALL_US, self.now // 1000), self.bytes_max)
        self.client, self.answers = Connection(), deque[Reply]()
        self.other, self.answers_to_other = Connection(), deque[Reply]()
        for ids in self.workers:
            self.connect(ids)

    def connect(self, ids: int) -> None:
        """Open the cache's stream to a worker."""
        assert self.cache is not None
        self.streams[ids] = Connection()
        self.to_worker[ids], self.to_cache[ids] = deque(), deque()
        self.cache.owner_up(ids)
        self.flush()

    def cut(self, ids: int) -> None:
        """End the cache's stream to a worker; what was under way is lost."""
        assert self.cache is not None
        stream = self.streams.pop(ids)
        if ids in self.workers:
            self.workers[ids].leave(stream)
        self.to_worker[ids], self.to_cache[ids] = deque(), deque()
        self.take(self.cache.owner_down(ids))

    def take(self, answers: list[tuple[Connection, list[bytes]]]) -> None:
        for connection, parts in answers:
            heard = self.answers if connection is self.client else self.answers_to_other
            heard += replies(parts)
        self.flush()

    def flush(self) -> None:
        """Put what the cache has for workers on the way, and what they have to say unasked."""
        assert self.cache is not None
        for ids, frames in self.cache.outgoing():
            self.to_worker[ids].append(b"".join(frames))
        pushed, self.pushed = self.pushed, []
        for ids, connection, data in pushed:
            if connection is self.streams.get(ids):
                self.to_cache[ids].append(data)
        for ids, stream in self.streams.items():
            if ids not in self.workers:
                continue
            for connection, data in self.workers[ids].take_released():
                if connection is stream:
                    self.to_cache[ids].append(joined(data))

    def reach_worker(self, ids: int) -> None:
        """Let the oldest bytes of the cache arrive at a worker."""
        if self.to_worker[ids] and ids in self.workers:
            data = self.workers[ids].receive(self.streams[ids], self.to_worker[ids].popleft(), self.now)
            if data:
                self.to_cache[ids].append(joined(data))
            self.flush()

    def reach_cache(self, ids: int) -> None:
        """Let the oldest bytes of a worker arrive at the cache."""
        assert self.cache is not None
        if self.to_cache[ids]:
            self.take(self.cache.hear(ids, self.to_cache[ids].popleft(), self.now))

    def settle(self) -> None:
        """Let all arrive that is under way."""
        self.flush()
        while any(self.to_worker[ids] or self.to_cache[ids] for ids in self.streams):
            for ids in self.streams:
                self.reach_worker(ids)
                self.reach_cache(ids)

    def send(self, frame: bytes, by_other: bool = False) -> None:
        """Let the client ask the cache, or the other one, whose answers are in `answers_to_other`."""
        assert self.cache is not None
        client = self.other if by_other else self.client
        self.take([(client, [joined(self.cache.receive(client, frame, self.now))])])

    def answer(self, frame: bytes, epochs: int = 20) -> Reply:
        """Ask the cache, and let time pass until it answers."""
        assert self.cache is not None
        assert not self.answers
        self.send(frame)
        for _ in range(epochs):
            self.settle()
            if self.answers:
                return self.answers.popleft()
            self.pass_epochs()
            self.take(self.cache.retry(self.now))
        raise AssertionError("the cache does not answer")

    def pin(self, epoch: int = 0, least: int | None = None, lease_us: int = EPOCH_LEASE_US_MAX) -> Reply:
        """Ask the cache for an epoch."""
        more = b"" if least is None else struct.pack("<Q", least)
        return self.answer(request(PIN, b"", struct.pack("<QQ", epoch, lease_us) + more))

    def begin(self) -> tuple[int, int]:
        """Begin a session at the cache: return (epoch, view)."""
        for _ in range(20):
            answer = self.pin()
            assert answer.status == 0, answer
            epoch, view = struct.unpack_from("<QQ", answer.payload)
            if view:
                return epoch, view
            self.pass_epochs()
        raise AssertionError("no session can begin")

    def get_at(self, key: bytes, at: tuple[int, int]) -> Reply:
        """Read a key at an epoch through the cache."""
        return self.answer(request(GET_AT, key, struct.pack("<QQ", *at)))

    def multi_get_at(self, keys: list[bytes], at: tuple[int, int]) -> Reply:
        names = b"".join(struct.pack("<H", len(key)) + key for key in keys)
        return self.answer(request(MGET_AT, b"", struct.pack("<QQI", *at, len(keys)) + names))

    def check(self) -> None:
        super().check()
        assert self.cache is not None
        self.cache.check()
