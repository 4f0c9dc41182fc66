"""Coordinators of transactions over the worker cores of a test, and what their tests look at."""

from __future__ import annotations

from collections.abc import Iterable

from anna.commits import Commit, Message, Verdict, Write
from anna.config import EPOCH_US, TRANSACTION_SILENT_US
from anna.kvs.worker import Connection
from anna.routing.placement import Placement
from tests.anna.frames import MISSING, Reply, replies, request
from tests.anna.kvs.workers import Workers

PREPARE, COMMIT, FINISH = 19, 20, 21
SILENT_EPOCHS = TRANSACTION_SILENT_US // EPOCH_US + 5
ID = b"a transaction's "


def lww(value: bytes) -> bytes:
    return bytes(16) + b"\x06" + value


class Coordinator:
    """Drives a `Commit` over the workers of a test: each of its steps is one message that arrives, or does not."""

    def __init__(
        self, workers: Workers, writes: Iterable[Write], transaction: bytes = ID, nonce: int = 1, guarded: bool = False
    ) -> None:
        self.workers = workers
        self.commit = Commit(transaction, writes, nonce, guarded)
        self.connections: dict[int, Connection] = {}
        self.letters: dict[Connection, list[tuple[int, Reply]]] = {}

    def owner(self, key: bytes) -> int:
        view = next(iter(self.workers.workers.values())).view
        return int(view.workers[Placement(view).index_of(key)].worker_id)

    def guard(self, place: int) -> int:
        view = next(iter(self.workers.workers.values())).view
        return int(view.workers[Placement(view).first_at(place)].worker_id)

    def send(self, messages: list[Message], ack: int = 0) -> None:
        """Send messages, and take what is answered before anything else happens, or once copies have confirmed."""
        for message in messages:
            connection = self.connections.setdefault(message.worker_id, Connection())
            if message.worker_id not in self.workers.workers:
                self.commit.missed(message.worker_id, False)
                continue
            frame = request(message.op, b"", message.payload, ack=ack)
            for answer in self.workers.ask(message.worker_id, frame, connection=connection):
                self.commit.answered(message.worker_id, answer.status, answer.payload)
        self.workers.deliver()
        self.collect()

    def collect(self) -> None:
        """Take the answers that were held back and are given now; those of other coordinators wait for them."""
        for ids, worker in self.workers.workers.items():
            for connection, data in worker.take_released():
                self.letters.setdefault(connection, []).extend((ids, answer) for answer in replies(data))
        for connection in self.connections.values():
            for ids, answer in self.letters.pop(connection, ()):
                self.commit.answered(ids, answer.status, answer.payload)

    def prepare(self, ack: int = 0) -> list[Message]:
        messages = self.commit.begin(self.owner, self.guard)
        self.send(messages, ack)
        return messages

    def run(self, ack: int = 0) -> Verdict:
        self.prepare(ack)
        self.send(self.commit.ending())
        return self.commit.verdict


def value(workers: Workers, key: bytes) -> bytes | None:
    answer = workers.read(key)
    return None if answer.status == MISSING else answer.payload[17:]


def prepared(workers: Workers) -> list[int]:
    return [worker.status()["prepared"] for worker in workers.workers.values()]


def spread_keys(workers: Workers) -> tuple[bytes, bytes]:
    """Return two keys with different first owners."""
    owner = Coordinator(workers, [Write(b"k", 1, lww(b""))]).owner
    first = b"0"
    return first, next(key for key in (b"%d" % n for n in range(1, 99)) if owner(key) != owner(first))


def two(workers: Workers, text: bytes = b"v") -> list[Write]:
    return [Write(key, 1, lww(text)) for key in spread_keys(workers)]


def two_keys() -> list[Write]:
    return [Write(key, 1, lww(b"v")) for key in (b"a", b"b")]
