"""A transaction as its coordinator sees it: writes of many keys that take effect together, at one stamp, or not at all.

The one rule: it is committed once all owners that were asked to prepare it have done so, at the greatest stamp that
they proposed, and then nothing undoes it; it is refused only where it is known that one of them never will. Otherwise
nobody knows yet, and any owner that has prepared it finds out (docs/decisions/0028). No socket and no clock: whoever
drives a `Commit` sends what it says and tells it what came back.

    commit = Commit(transaction, writes, nonce)          # 16 bytes, [Write], a number that no other coordinator draws
    messages = commit.begin(owner, guard)                # owner(key) -> worker id; a PREPARE for each owner
    # send each: op and payload are the message's, the ack is the caller's. For each:
    commit.answered(worker_id, status, payload)          # what it answered, or
    commit.missed(worker_id, sent)                       # that nothing came; `sent`: it may have arrived
    # once `commit.waiting` is empty:
    commit.verdict                                       # what came of it
    commit.ending()                                      # to be sent before the caller is told; with request 0 nobody answers

    COMMITTED   at `commit.stamp`.
    REFUSED     never will be; `commit.refusal` is (status, message) of who refused.
    AGAIN       not this time: take up the view `commit.view` if it is there (msgpack), pause a few milliseconds, then
                send `ending()` and `begin` again. The same id: of all attempts together one has effect.
    UNKNOWN     ask who knows: `ask(owner)` gives messages whose answers go the same way. After about
                TRANSACTION_SILENT_US one of them will; the caller may be told before that nobody knows.

What others may try, too, is `guarded`: of an id that only this coordinator knows it need not be. Each attempt then has a
part at one more worker, the first owner of the place `guard_of` on the rings, which holds one attempt at a time
(docs/decisions/0031); `guard(place)` gives its id. It is not to be another one because that one is slow or suspected.

A `Write` with the flag DELETES deletes the key first, and with type 0 and no payload does nothing else; with the flag
EXPIRES its payload begins with 8 bytes: for how many microseconds from the commit on it lives.

Source: DESIGN §4; Gray & Lamport 2006 (a commit that any participant can finish).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

cimport cython

from anna.routing.hash cimport hash64
from anna.wire cimport *

import struct
from collections import namedtuple
from collections.abc import Mapping
from enum import Enum, auto

from anna import config
from anna.errors import ProtocolError, ValueTooLarge

cdef Py_ssize_t KEYS_MAX = config.TRANSACTION_KEYS_MAX

TRANSACTION_BYTES = 16
STRANGE, PREPARED, COMMITTED_STATE, REFUSED_STATE = 0, 1, 2, 3
DELETES, EXPIRES = 1, FLAG_EXPIRES

HEAD = struct.Struct("<16sQ")
STATE = struct.Struct("<BQQ")
_LIVES = struct.Struct("<Q")

Write = namedtuple("Write", ("key", "type", "payload", "flags"), defaults=(0,))
Message = namedtuple("Message", ("worker_id", "op", "payload"))


def write_of(bytes key not None, state, bint deletes=False, uint64_t lives_us=0):
    """Return the write of a state, a lattice as `as_request` gives it; None: of nothing, to delete a key. `deletes`: what the key held before goes first.

    >>> write_of(b"key", None, deletes=True)
    Write(key=b'key', type=0, payload=b'', flags=1)
    """
    if state is None:
        return Write(key, 0, b"", DELETES)
    payload = state.encode()
    if lives_us:
        payload = _LIVES.pack(lives_us) + payload
    return Write(key, state.NUMBER, payload, (DELETES if deletes else 0) | (EXPIRES if lives_us else 0))


class Verdict(Enum):
    """What is known of a transaction."""

    OPEN = auto()
    COMMITTED = auto()
    REFUSED = auto()
    AGAIN = auto()
    UNKNOWN = auto()


_OPEN, _COMMITTED, _REFUSED, _AGAIN, _UNKNOWN = Verdict


@cython.final
cdef class Commit:
    """One transaction. `nonce` numbers its first attempt, from a range that no other coordinator of it uses; `guarded`: there may be others.

    Raises ValueError for an id that is not of TRANSACTION_BYTES, ValueTooLarge for too many keys.
    """

    cdef readonly bytes transaction
    cdef readonly tuple writes
    cdef readonly uint64_t attempt
    cdef readonly object verdict
    cdef readonly uint64_t stamp
    # (status, message) of who refused.
    cdef readonly tuple refusal
    # The view, as msgpack, of who is no owner of a key.
    cdef readonly object view
    cdef readonly set waiting
    cdef readonly bint guarded
    # Of this attempt: the indexes of the writes that each worker is asked to prepare, all places as they are sent, who proposed what, and whose answer was lost.
    cdef dict parts
    cdef bytes places
    cdef dict proposals
    cdef set lost
    cdef bint refused
    cdef uint64_t committed_as

    def __init__(self, bytes transaction not None, writes, uint64_t nonce, bint guarded=False):
        if len(transaction) != TRANSACTION_BYTES:
            raise ValueError(f"a transaction's id has {TRANSACTION_BYTES} bytes, got {len(transaction)}")
        self.transaction = transaction
        self.writes = tuple(writes)
        if len({write[0] for write in self.writes}) != len(self.writes):
            raise ValueError("a transaction writes each of its keys once; join what is written to one key first")
        if not 1 <= len(self.writes) <= KEYS_MAX:
            raise ValueTooLarge(f"a transaction has {len(self.writes):,} writes; it may have 1 to {KEYS_MAX:,}, transaction_keys_max")
        self.attempt = self.committed_as = nonce
        self.guarded = guarded
        self.verdict = _OPEN
        self.waiting = set()
        self.parts = {}
        self.proposals = {}
        self.lost = set()

    @property
    def head(self):
        """The id and the attempt."""
        return self.named()

    cdef bytes named(self):
        return self.transaction + PyBytes_FromStringAndSize(<char*>&self.attempt, 8)

    # -- an attempt

    def begin(self, owner, guard=None):
        """Begin an attempt, the first or the next; return what each owner is asked. `owner` gives a key's worker id, `guard` that of the first at a place."""
        cdef uint64_t place[2]
        cdef uint32_t count = <uint32_t>len(self.writes) + self.guarded
        cdef bytes key, head
        cdef Py_ssize_t index
        cdef char* at
        if self.verdict is not _OPEN:
            self.attempt += 1
        owners = [owner(write[0]) for write in self.writes]
        if self.guarded:
            place[0] = guard_of(self.transaction)
            place[1] = guard(place[0])
        self.verdict, self.refusal, self.view, self.refused = _OPEN, None, None, False
        self.parts, self.proposals, self.lost = {}, {}, set()
        self.places = PyBytes_FromStringAndSize(NULL, 4 + 16 * count)
        at = PyBytes_AS_STRING(self.places)
        memcpy(at, &count, 4)
        if self.guarded:
            self.parts[place[1]] = []
            memcpy(at + 4 + 16 * len(self.writes), place, 16)
        for index in range(len(self.writes)):
            key = self.writes[index][0]
            worker = owners[index]
            self.parts.setdefault(worker, []).append(index)
            place[0], place[1] = hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), worker
            memcpy(at + 4 + 16 * index, place, 16)
        self.waiting = set(self.parts)
        head = self.named()
        return [Message(worker, OP_PREPARE, head + self.addressed(worker) + self.part(some)) for worker, some in self.parts.items()]

    cdef bytes addressed(self, uint64_t worker):
        """Return the places as they are sent to a worker: who has its address by now is not to answer for it."""
        return PyBytes_FromStringAndSize(<char*>&worker, 8) + self.places

    cdef bytes part(self, list indexes):
        """Return the writes of one worker, as they are sent."""
        cdef uint32_t count = <uint32_t>len(indexes)
        cdef PutItem item
        cdef bytes key, payload
        cdef list pieces = [PyBytes_FromStringAndSize(<char*>&count, 4)]
        for index in indexes:
            key, type, payload, flags = self.writes[index]
            item = PutItem(<unsigned short>PyBytes_GET_SIZE(key), type, flags, <uint32_t>PyBytes_GET_SIZE(payload))
            pieces.append(PyBytes_FromStringAndSize(<char*>&item, ITEM_HEADER_BYTES))
            pieces.append(key)
            pieces.append(payload)
        return b"".join(pieces)

    def ask(self, owner, guard=None):
        """Return what to ask while nobody knows: of those that prepared, and of the owners that the keys have now."""
        workers = dict.fromkeys([*self.parts, *[owner(write[0]) for write in self.writes]])
        if self.guarded:
            workers[guard(guard_of(self.transaction))] = None
        self.waiting = set(workers)
        return [Message(worker, OP_FINISH, self.named() + self.addressed(worker)) for worker in workers]

    # -- what came back

    def answered(self, worker, int status, bytes payload not None):
        """Take the answer of a worker that was waited for. Raises ProtocolError for one that cannot be."""
        self.waiting.discard(worker)
        if self.verdict is _COMMITTED or self.verdict is _REFUSED:
            return
        if status == STATUS_OK:
            self.take_state(worker, payload)
        elif status == STATUS_WRONG_WORKER or status == STATUS_STALE:
            self.view = payload if status == STATUS_WRONG_WORKER else self.view
            self.refused = True
        elif status == STATUS_LOST:
            # Its copies are not to be had any more; what it has prepared may be committed nevertheless.
            self.refusal = self.refusal or (status, payload.decode("utf-8", "replace"))
            self.lost.add(worker)
        else:
            self.refusal = self.refusal or (status, payload.decode("utf-8", "replace"))
            self.refused = True
        self.judge()

    def missed(self, worker, bint sent):
        """Nothing came from a worker that was waited for. `sent`: the request may have arrived."""
        self.waiting.discard(worker)
        if sent:
            if worker not in self.proposals:
                self.lost.add(worker)
        elif worker in self.parts and worker not in self.lost and worker not in self.proposals:
            self.refused = True  # it has not prepared this attempt, and nobody will ask it to
        self.judge()

    cdef int take_state(self, worker, bytes payload) except -1:
        cdef uint64_t told[2]
        cdef int state
        if PyBytes_GET_SIZE(payload) != STATE.size:
            raise ProtocolError(f"an owner says in {STATE.size} bytes what a transaction came to, got {len(payload)}")
        state = PyBytes_AS_STRING(payload)[0]
        memcpy(told, PyBytes_AS_STRING(payload) + 1, 16)
        if state == 2:
            self.stamp, self.committed_as, self.verdict = told[0], told[1], _COMMITTED
        elif state == 1 and worker in self.parts:
            self.proposals[worker] = told[0]
            self.lost.discard(worker)
        elif state == 3:
            self.refused = True
        return 0

    cdef int judge(self) except -1:
        """See what is known; nothing is said while an answer may still come, but that it is committed."""
        if self.verdict is _COMMITTED or self.verdict is _REFUSED or self.waiting:
            return 0
        if len(self.proposals) == len(self.parts):
            self.stamp, self.verdict = max(self.proposals.values()), _COMMITTED
            self.committed_as = self.attempt
        elif self.refused:
            self.verdict = _AGAIN if self.refusal is None else _REFUSED
        else:
            self.verdict = _UNKNOWN
        return 0

    def ending(self):
        """Return what tells the owners what came of this attempt; nothing while nobody knows."""
        cdef bint committed = self.verdict is _COMMITTED
        # If it was an earlier attempt that was committed, this one is to be dropped, and cannot be committed any more.
        cdef uint64_t stamp = self.stamp if committed and self.committed_as == self.attempt else 0
        cdef bytes payload
        if not committed and self.verdict is not _REFUSED and self.verdict is not _AGAIN:
            return []
        payload = self.named() + PyBytes_FromStringAndSize(<char*>&stamp, 8)
        return [Message(worker, OP_COMMIT, payload) for worker in (self.parts if committed else self.proposals)]


cpdef uint64_t guard_of(bytes transaction) except? 0:
    """Return where on the rings the worker stands that decides between the attempts at a transaction, by its id alone (the first bytes of a name)."""
    return hash64(PyBytes_AS_STRING(transaction), TRANSACTION_BYTES)


def transaction_of(encoder, writes, transaction, entropy):
    """Return the transaction of a client's writes, under a random id unless there is one. `encoder` makes states of values: a requester.

    Raises BadKey, NotSerializable or ValueTooLarge, and ValueError for an id that is none.
    """
    cdef bytes random = entropy(8 + (TRANSACTION_BYTES if transaction is None else 0))
    cdef uint64_t nonce
    items = writes.items() if isinstance(writes, Mapping) else writes
    made = [item if isinstance(item, Write) else (*encoder.write_of(*item), 0) for item in items]
    memcpy(&nonce, PyBytes_AS_STRING(random), 8)
    return Commit(random[8:] if transaction is None else transaction, made, nonce, transaction is not None)
