"""A router tells newcomers who is in the cluster. It holds no keys, and no request passes through it.

The one rule: it answers every frame at once, from the view that it has. While it has none it says so
(STATUS_UNAVAILABLE, try again), and never shows an empty cluster. It learns the view by asking the workers for
it, as any client may: first the seeds in turn, then one worker after the other each HEARTBEAT_US, and the seeds
again when no worker answers. What it is told it joins to what it knows, so it may ask anybody, and routers need
not know of each other. A cluster works without routers; they are an address that stays when nodes come and go.

What a client asks a router for by mistake, a key, is answered like by a worker that does not own it: with the
view. Of a request only the head is kept, since no answer depends on what follows: a connection costs little,
whatever is sent to it. Pure: bytes in, bytes out, and `now` in ns. Source: DESIGN §5 (placement).
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import msgpack

from anna import config
from anna.errors import ProtocolError
from anna.membership import HEARTBEAT_NS
from anna.messages import View
from anna.requester import Requester
from anna.requests import Replies
from anna.seeds import NEVER, Seeds
from anna.wire import (
    DELETE,
    GET,
    MALFORMED,
    MGET,
    MPUT,
    NOT_SUPPORTED,
    OK,
    PARTIAL,
    PEER,
    PUT,
    REPLICATE,
    SCAN,
    STATUS,
    SUBSCRIBE,
    UNAVAILABLE,
    UNSUBSCRIBE,
    VERSION,
    VIEW,
    WRONG_WORKER,
)

_REQUEST: Final = struct.Struct("<IBBBBIHHQ")
_REPLY: Final = struct.Struct("<IBBBBIIQ")
_LENGTH_BYTES: Final = 4
_COUNT: Final = struct.Struct("<I")
_ITEM: Final = struct.Struct("<BBHI")


@dataclass(slots=True)
class Counts:
    """What a router did: questions it `asked`, answers it `learnt` from or found `malformed`, views it `served`,
    requests for keys that it `redirected`, and frames that it `refused`."""

    asked: int = 0
    learnt: int = 0
    malformed: int = 0
    served: int = 0
    redirected: int = 0
    refused: int = 0


@dataclass(slots=True)
class Connection:
    """What a router keeps of one client: the head of an unfinished frame, and why it must end (`failure`)."""

    head: bytearray = field(default_factory=bytearray)
    skipped: int = 0
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a client's frame. `count` is that of a batch's keys, 0 for any other request."""

    op: int
    request: int
    count: int


class Router:
    """Poll it when `due` says so; send what `poll` returns, and give what comes back to `hear`."""

    def __init__(self, seeds: tuple[str, ...], now: int) -> None:
        self.view = View(0, ())
        self.counts = Counts()
        self._payload = b""
        self._seeds = Seeds(seeds, now if seeds else NEVER)
        self._ask_due = NEVER
        self._round = 0
        self._questions = Requester(View(0, ()))
        self._answers: dict[str, Replies] = {}

    # -- learning

    def due(self) -> int:
        """Return when `poll` has something to ask."""
        return min(self._ask_due, self._seeds.due)

    def poll(self, now: int) -> list[tuple[str, bytes]]:
        """Return (address, request) of each question that is due. An answer that never comes costs nothing."""
        asked: list[str] = []
        if now >= self._ask_due:
            workers = self.view.workers
            asked.append(workers[self._round % len(workers)].addresses[-1])
            self._round += 1
            self._ask_due = now + HEARTBEAT_NS
        if now >= self._seeds.due:
            asked.append(self._seeds.next(now))
        self.counts.asked += len(asked)
        return [(address, self._questions.request(VIEW)[1]) for address in asked]

    def hear(self, address: str, data: bytes, now: int) -> None:
        """Take bytes that came from an address. Raises ProtocolError: close that connection, and say `lost`."""
        try:
            for _, status, _, _, _, payload in self._answers.setdefault(address, Replies()).feed(data):
                if status == OK:
                    self._learn(View.from_wire(_unpacked(payload)), now)
        except ProtocolError:
            self.counts.malformed += 1
            raise

    def lost(self, address: str) -> None:
        """Forget what came unfinished from an address: its connection ended."""
        self._answers.pop(address, None)

    def _learn(self, view: View, now: int) -> None:
        try:
            joined = self.view.join(view)
        except ValueError as error:
            raise ProtocolError(str(error)) from None
        self.counts.learnt += 1
        self._seeds.heard(now)
        if joined != self.view:
            self.view = joined
            self._payload = msgpack.packb(joined.to_wire())
        self._ask_due = min(self._ask_due, now + HEARTBEAT_NS) if joined.workers else NEVER

    # -- telling

    def receive(self, connection: Connection, data: bytes) -> bytes:
        """Take bytes from a client and return the answers to the frames whose heads they complete.

        When `connection.failure` is set, send the answers and close the connection.
        """
        answers = []
        while data and connection.failure is None:
            if connection.skipped:
                skipped = min(connection.skipped, len(data))
                connection.skipped -= skipped
                data = data[skipped:]
                continue
            missing = self._head_bytes(connection) - len(connection.head)
            connection.head += data[:missing]
            data = data[missing:]
            if len(connection.head) == self._head_bytes(connection):
                answers.append(self._handle(connection))
        return b"".join(answers)

    def status(self) -> dict[str, Any]:
        """Return what `anna status` shows of a router."""
        known = {"view": self.view.version, "nodes": len(self.view.nodes), "workers": len(self.view.workers)}
        return {"role": "router", **known, **asdict(self.counts)}

    def check(self) -> None:
        """Assert the invariants."""
        assert (self.view.version == 0) == (self._payload == b"")
        assert self._ask_due == NEVER or self.view.workers

    def _head_bytes(self, connection: Connection) -> int:
        """Return how much of the present frame is to be kept: its header, and of a batch the number of keys."""
        head = connection.head
        if len(head) < _REQUEST.size:
            return _REQUEST.size
        length, version, op, _, _, _, key_bytes, _, _ = _REQUEST.unpack_from(head)
        whole = _REQUEST.size + int(key_bytes) + _COUNT.size
        is_batch = version == VERSION and op in (MGET, MPUT) and whole <= _LENGTH_BYTES + length
        return whole if is_batch else _REQUEST.size

    def _handle(self, connection: Connection) -> bytes:
        """Answer the frame whose head is here, and skip the rest of it."""
        head = bytes(connection.head)
        connection.head.clear()
        length, version, op, _, _, request, key_bytes, _, _ = _REQUEST.unpack_from(head)
        total = _LENGTH_BYTES + length
        if not _REQUEST.size <= total <= config.FRAME_BYTES_MAX + _LENGTH_BYTES:
            return self._fail(connection, f"a frame says that {length:,} bytes follow")
        if version != VERSION:
            return self._fail(connection, f"a frame has protocol version {version}; routers speak {VERSION}")
        if total < _REQUEST.size + key_bytes:
            return self._fail(connection, f"a frame says that its key has {key_bytes} bytes, more than the frame")
        connection.skipped = total - len(head)
        count = _COUNT.unpack(head[-_COUNT.size :])[0] if len(head) > _REQUEST.size else 0
        if count > config.BATCH_KEYS_MAX:
            return self._fail(connection, f"a batch has {count:,} keys; batch_keys_max is {config.BATCH_KEYS_MAX:,}")
        return self._answer(Request(op, request, count))

    def _answer(self, asked: Request) -> bytes:
        """Return the answer to one request; none to a peer's message, which no router expects."""
        if asked.op == STATUS:
            return _reply(asked.request, OK, msgpack.packb(self.status()))
        if asked.op == PEER:
            self.counts.refused += 1
            return b""
        if asked.op not in (VIEW, GET, PUT, DELETE, MGET, MPUT, SCAN, SUBSCRIBE, UNSUBSCRIBE, REPLICATE):
            self.counts.refused += 1
            return _reply(asked.request, NOT_SUPPORTED, b"operation %d is not known to this router" % asked.op)
        if not self._payload:
            self.counts.refused += 1
            return _reply(asked.request, UNAVAILABLE, b"this router has not learnt the view yet")
        if asked.op == VIEW:
            self.counts.served += 1
            return _reply(asked.request, OK, self._payload)
        self.counts.redirected += 1
        if asked.op == MGET:
            items = _ITEM.pack(WRONG_WORKER, 0, 0, 0) * asked.count
            return _reply(asked.request, OK, _COUNT.pack(asked.count) + items)
        if asked.op == MPUT:
            failures = [[index, WRONG_WORKER, ""] for index in range(asked.count)]
            return _reply(asked.request, PARTIAL, msgpack.packb(failures))
        return _reply(asked.request, WRONG_WORKER, self._payload)

    def _fail(self, connection: Connection, why: str) -> bytes:
        """Give up on a connection whose bytes are not of the protocol."""
        self.counts.refused += 1
        connection.failure = why
        return _reply(0, MALFORMED, why.encode())


def _reply(request: int, status: int, payload: bytes) -> bytes:
    length = _REPLY.size - _LENGTH_BYTES + len(payload)
    return _REPLY.pack(length, VERSION, status, 0, 0, request, 0, 0) + payload


def _unpacked(payload: bytes) -> Any:
    try:
        return msgpack.unpackb(payload)
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"a view is no msgpack: {error}") from None
