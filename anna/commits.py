"""A transaction as its coordinator sees it: writes of many keys that take effect together, at one stamp, or not at all.

The one rule: it is committed once all owners that were asked to prepare it have done so, at the greatest stamp that
they proposed, and then nothing undoes it; it is refused only where it is known that one of them never will. Otherwise
nobody knows yet, and any owner that has prepared it finds out (docs/decisions/0028). No socket and no clock: whoever
drives a `Commit` sends what it says and tells it what came back.

    commit = Commit(transaction, writes, nonce)          # 16 bytes, [Write], a number that no other coordinator draws
    messages = commit.begin(owner)                       # owner(key) -> worker id; a PREPARE for each owner
    # send each: op and payload are the message's, the ack is the caller's. For each:
    commit.answered(worker_id, status, payload)          # what it answered, or
    commit.missed(worker_id, sent)                       # that nothing came; `sent`: it may have arrived
    # once `commit.waiting` is empty:
    commit.verdict                                       # what came of it
    commit.ending()                                      # to be sent before the caller is told; the answers say nothing

    COMMITTED   at `commit.stamp`.
    REFUSED     never will be; `commit.refusal` is (status, message) of who refused.
    AGAIN       not this time: take up the view `commit.view` if it is there (msgpack), pause a few milliseconds, then
                send `ending()` and `begin` again. The same id: of all attempts together one has effect.
    UNKNOWN     ask who knows: `ask(owner)` gives messages whose answers go the same way. After about
                TRANSACTION_SILENT_US one of them will; the caller may be told before that nobody knows.

Source: DESIGN §4; Gray & Lamport 2006 (a commit that any participant can finish).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Final, NamedTuple

from xxhash import xxh64_intdigest as hash64

from anna.config import TRANSACTION_KEYS_MAX
from anna.errors import ProtocolError, ValueTooLarge
from anna.wire import COMMIT, FINISH, OK, PREPARE, STALE, WRONG_WORKER

TRANSACTION_BYTES: Final = 16
"""How long the id of a transaction is."""

ATTEMPT_MAX: Final = (1 << 64) - 1

PREPARED, COMMITTED_STATE, REFUSED_STATE, STRANGE = 1, 2, 3, 0
"""What an owner says of an attempt: prepared, committed, refused, or that it knows nothing of it."""

HEAD: Final = struct.Struct("<16sQ")
"""The id of a transaction, and which attempt at it."""

PLACE: Final = struct.Struct("<QQ")
"""A key's hash, and the worker that is to prepare it."""

ITEM: Final = struct.Struct("<HBBI")
"""A write: key bytes, lattice type, flags, state bytes; the key and the state follow."""

STATE: Final = struct.Struct("<BQQ")
"""An owner's answer: a state as above, a stamp, and of what is committed the attempt that was."""

COUNT: Final = struct.Struct("<I")


class Write(NamedTuple):
    """One write of a transaction: a state in its canonical encoding, with its lattice's number."""

    key: bytes
    type: int
    payload: bytes
    flags: int = 0


class Message(NamedTuple):
    """What is to be sent to a worker: the operation and the payload of a request without a key."""

    worker_id: int
    op: int
    payload: bytes


class Verdict(Enum):
    """What is known of a transaction."""

    OPEN = auto()
    COMMITTED = auto()
    REFUSED = auto()
    AGAIN = auto()
    UNKNOWN = auto()


class Commit:
    """One transaction. `nonce` numbers its first attempt, from a range that no other coordinator of it uses.

    Raises ValueError for an id that is not of TRANSACTION_BYTES, ValueTooLarge for too many keys.
    """

    def __init__(self, transaction: bytes, writes: Iterable[Write], nonce: int) -> None:
        if len(transaction) != TRANSACTION_BYTES:
            raise ValueError(f"a transaction's id has {TRANSACTION_BYTES} bytes, got {len(transaction)}")
        self.transaction = transaction
        self.writes = tuple(writes)
        if len({write.key for write in self.writes}) != len(self.writes):
            raise ValueError("a transaction writes each of its keys once; join what is written to one key first")
        if not 1 <= len(self.writes) <= TRANSACTION_KEYS_MAX:
            asked, most = len(self.writes), TRANSACTION_KEYS_MAX
            raise ValueTooLarge(f"a transaction has {asked:,} writes; it may have 1 to {most:,}, transaction_keys_max")
        self.attempt = nonce & ATTEMPT_MAX
        self.verdict = Verdict.OPEN
        self.stamp = 0
        self.refusal: tuple[int, str] | None = None
        self.view: bytes | None = None
        self.waiting: set[int] = set()
        self._hashes = [hash64(write.key) for write in self.writes]
        self._parts: dict[int, list[int]] = {}
        self._places = b""
        self._proposals: dict[int, int] = {}
        self._lost: set[int] = set()
        self._refused = False
        self._committed_as = self.attempt

    @property
    def head(self) -> bytes:
        """The id and the attempt."""
        return HEAD.pack(self.transaction, self.attempt)

    # -- an attempt

    def begin(self, owner: Callable[[bytes], int]) -> list[Message]:
        """Begin an attempt, the first or the next; return what each owner is asked. `owner` gives a key's worker id."""
        if self.verdict is not Verdict.OPEN:
            self.attempt = (self.attempt + 1) & ATTEMPT_MAX
        self.verdict, self.refusal, self.view, self._refused = Verdict.OPEN, None, None, False
        self._parts, self._proposals, self._lost = {}, {}, set()
        owners = [owner(write.key) for write in self.writes]
        for index, worker in enumerate(owners):
            self._parts.setdefault(worker, []).append(index)
        places = b"".join([PLACE.pack(*place) for place in zip(self._hashes, owners)])
        self._places = COUNT.pack(len(owners)) + places
        self.waiting = set(self._parts)
        head = self.head + self._places
        return [Message(worker, PREPARE, head + self._part(some)) for worker, some in self._parts.items()]

    def _part(self, indexes: list[int]) -> bytes:
        pieces = [COUNT.pack(len(indexes))]
        for index in indexes:
            key, type, payload, flags = self.writes[index]
            pieces += (ITEM.pack(len(key), type, flags, len(payload)), key, payload)
        return b"".join(pieces)

    def ask(self, owner: Callable[[bytes], int]) -> list[Message]:
        """Return what to ask while nobody knows: of those that prepared, and of the owners that the keys have now."""
        workers = dict.fromkeys([*self._parts, *(owner(write.key) for write in self.writes)])
        self.waiting = set(workers)
        return [Message(worker, FINISH, self.head + self._places) for worker in workers]

    # -- what came back

    def answered(self, worker: int, status: int, payload: bytes) -> None:
        """Take the answer of a worker that was waited for. Raises ProtocolError for one that cannot be."""
        self.waiting.discard(worker)
        if self.verdict in (Verdict.COMMITTED, Verdict.REFUSED):
            return
        if status == OK:
            self._take_state(worker, payload)
        elif status in (WRONG_WORKER, STALE):
            self.view = payload if status == WRONG_WORKER else self.view
            self._refused = True
        else:
            self.refusal = self.refusal or (status, payload.decode("utf-8", "replace"))
            self._refused = True
        self._judge()

    def missed(self, worker: int, sent: bool) -> None:
        """Nothing came from a worker that was waited for. `sent`: the request may have arrived."""
        self.waiting.discard(worker)
        if sent:
            self._lost.add(worker)
        elif worker in self._parts and worker not in self._lost and worker not in self._proposals:
            self._refused = True  # it has not prepared this attempt, and nobody will ask it to
        self._judge()

    def _take_state(self, worker: int, payload: bytes) -> None:
        if len(payload) != STATE.size:
            raise ProtocolError(f"an owner says in {STATE.size} bytes what a transaction came to, got {len(payload)}")
        state, stamp, attempt = STATE.unpack(payload)
        if state == COMMITTED_STATE:
            self.stamp, self.verdict, self._committed_as = stamp, Verdict.COMMITTED, attempt
        elif state == PREPARED and worker in self._parts:
            self._proposals[worker] = stamp
            self._lost.discard(worker)
        elif state == REFUSED_STATE:
            self._refused = True

    def _judge(self) -> None:
        """See what is known; nothing is said while an answer may still come, but that it is committed."""
        if self.verdict in (Verdict.COMMITTED, Verdict.REFUSED) or self.waiting:
            return
        if len(self._proposals) == len(self._parts):
            self.stamp, self.verdict = max(self._proposals.values()), Verdict.COMMITTED
            self._committed_as = self.attempt
        elif self._refused:
            self.verdict = Verdict.AGAIN if self.refusal is None else Verdict.REFUSED
        else:
            self.verdict = Verdict.UNKNOWN

    def ending(self) -> list[Message]:
        """Return what tells the owners what came of this attempt; nothing while nobody knows."""
        if self.verdict not in (Verdict.COMMITTED, Verdict.REFUSED, Verdict.AGAIN):
            return []
        committed = self.verdict is Verdict.COMMITTED
        # If it was an earlier attempt that was committed, this one is to be dropped, and cannot be committed any more.
        stamp = self.stamp if committed and self._committed_as == self.attempt else 0
        payload = self.head + struct.pack("<Q", stamp)
        return [Message(worker, COMMIT, payload) for worker in (self._parts if committed else self._proposals)]
