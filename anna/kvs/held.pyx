"""How safe a write is, and the answers that wait until it is that safe.

The one rule: an answer never says more than is true, and counts no copy that is about to be dropped. One that has to wait holds back all
behind it on its connection, so that answers keep their order; nothing else waits. What can never come true any more ends its connection, and with it what nobody knows the outcome of.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memmove

cimport cython

from anna.buffer cimport Buffer
from anna.kvs.answers cimport Connection
from anna.kvs.clock cimport Clock
from anna.kvs.member cimport Member
from anna.routing.hash cimport hash64
from anna.routing.placement cimport Copies, Placement
from anna.wire cimport *

from collections import deque

from anna import config
from anna.errors import DiskFull, NotSupported, Overloaded, UnavailableError
from anna.kvs.faults import PLANTED

cdef Py_ssize_t HELD_BYTES = config.HELD_BYTES_MAX


@cython.final
cdef class Hold:
    """An answer that waits, with all behind it on its connection, until its write is as safe as its client asked.

    It begins at byte `begin` of what the connection holds back. `round` must be confirmed by `need` of the workers `peers`, and
    the log's round `log_round` be on disk; 0 for what nobody waits for. With `room` it waits until memory has room again: that is how
    who writes faster than the disk takes it is slowed down.
    """

    def __init__(self, uint64_t position, uint32_t round, tuple peers, int need, uint32_t log_round, uint64_t epoch, bint usual):
        self.position = position
        self.usual = usual
        self.round = round
        self.peers = peers
        self.need = need
        self.log_round = log_round
        self.epoch = epoch

    @staticmethod
    cdef Hold for_room():
        """Return one that waits for nothing but room."""
        cdef Hold hold = Hold(0, 0, (), 0, 0, 0, True)
        hold.room = True
        return hold

    cdef bint same(self, Hold other):
        """Whether both wait for the same."""
        return (self.round == other.round and self.need == other.need and self.log_round == other.log_round
                and self.usual == other.usual and self.room == other.room and self.peers == other.peers)


cdef class Held(Member):
    """The answers of one worker that wait: the holds of each connection, and what was `released` since the driver took it last."""

    def __init__(self, view, int place, Clock clock, tuple seeds):
        super().__init__(view, place, clock, seeds)
        self.holding = {}
        self.released = []

    def take_view(self, view):
        Member.take_view(self, view)
        if self.replication is not None:
            self.release_held()

    cdef int check_copies(self, const char* key, Py_ssize_t key_bytes, int ack) except -1:
        """Raise, before anything is written, when a write cannot become as safe as `ack` asks."""
        cdef int count
        if ack == 0 or ack == 1:
            return 0
        if ack == ACK_DISK:
            if not self.logging:
                raise NotSupported("ack='disk' asks for a log; this worker keeps none (anna serve --data DIR)")
            if self.disk_full:
                raise DiskFull("the disk is full; nothing was written")
            return 0
        count = self.lasting_copies(key, key_bytes)
        if count < ack:
            raise UnavailableError(f"ack={ack} asks for {ack} copies; the key has {count} owner{'s' if count != 1 else ''} now")
        return 0

    cdef int lasting_copies(self, const char* key, Py_ssize_t key_bytes) noexcept:
        """Return how many copies a key has when all moves are over, at least one: who is about to drop a copy makes no write safer."""
        cdef Placement placement = self.placement
        cdef Copies copies
        if self.replication is None:
            return 1
        if placement.target is not None:
            placement = placement.target
        copies = placement.copies_at(hash64(key, key_bytes))
        return max(1, copies.memory + copies.disk)

    cdef int acknowledge(self, RequestHeader* head, const char* key, int status) except -1:
        """Answer a write: at once, or when it is as safe as the client asked."""
        cdef int copies = head.ack
        cdef int durable = 0
        cdef Hold hold = None
        if self.replication is not None and head.ack != 1:
            if copies == ACK_DISK:
                durable = 1
                copies = 1
            elif copies == 0:
                copies = self.usual_copies(key, head.key_bytes)
            if copies > 1 or not durable or not self.waits_already():
                hold = self.hold_for(key, head.key_bytes, copies, durable, head.ack == 0)
            if copies > 1:
                copies = min(copies, self.lasting_copies(key, head.key_bytes))
        if self.is_crowded():
            hold = hold or Hold.for_room()
            hold.room = True
        self.reply_held(head, status, max(copies, 1), durable, b"", hold)
        return 0

    cdef bint waits_already(self) except -1:
        """Whether the answer before this one waits for the log alone, and for no less of it than one to what is written now would."""
        cdef Hold last
        if not self.deferred:
            return False
        last = <Hold>self.deferred[len(self.deferred) - 1]
        return last.need == 0 and last.log_round == self.replication.log.round_wanted()

    cdef int check_room(self) except -1:
        """Raise, before anything is written, when there is no memory for more until states have left it, or keys were deleted."""
        if self.store.taken() <= self.store.limit_bytes:
            return 0
        if self.disk_full and self.store.memory is not None:
            raise DiskFull("the disk is full, and memory with what is not on it yet; nothing was written")
        taken, most = self.store.taken(), self.store.limit_bytes
        raise Overloaded(f"keys and values take {taken:,} bytes of memory; this worker may take {most:,}")

    cdef bint is_crowded(self) except -1:
        """Whether memory has little room, and will have more when the disk has what is unkept."""
        return self.store.memory is not None and self.store.memory.is_crowded and not self.disk_full

    cdef Hold hold_for(self, const char* key, Py_ssize_t key_bytes, int copies, bint durable, bint usual):
        """Return what a write to `key` has to wait for, None for nothing; `usual` takes fewer copies when there are fewer owners."""
        cdef tuple peers = ()
        if copies > 1:
            peers = self.replication.peers_of(PyBytes_FromStringAndSize(key, key_bytes))
            copies = min(copies, len(peers) + 1)
            peers = self.replication.apart(peers, copies - 1)
        if PLANTED:
            durable = durable and "unsynced-log" not in PLANTED
            copies = 1 if "early-ack" in PLANTED else copies
            durable = durable and "early-ack" not in PLANTED
        if copies <= 1 and not durable:
            return None
        cdef uint32_t log_round = self.replication.log.round_wanted() if durable else 0
        return Hold(hash64(key, key_bytes), self.replication.changes.round, peers, copies - 1, log_round, self.replication.epoch, usual)

    cdef int reply_held(self, RequestHeader* head, int status, int copies, int durable, bytes payload, Hold hold) except -1:
        """Write an answer that says how safe the write is; with `hold`, it is kept back until that is true."""
        cdef ReplyHeader* answer
        cdef Py_ssize_t begin = self.out.size
        cdef char* place
        for chunk in self.chunks:
            begin += len(chunk)
        place = self.reply(head, status, copies - 1, PyBytes_GET_SIZE(payload))
        memcpy(place, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        answer = <ReplyHeader*>(place - HEADER_BYTES)
        answer.flags |= REPLY_DURABLE if durable else 0
        if hold is not None:
            hold.begin = begin
            self.deferred.append(hold)
        return 0

    cdef int hold_back(self, Connection connection) except -1:
        """Keep back what was answered on `connection` from its first answer that has to wait on."""
        cdef Hold hold, last
        cdef bytes answers
        cdef Py_ssize_t base, first
        chunks = self.take()
        answers = chunks if isinstance(chunks, bytes) else b"".join(chunks)
        if not connection.holds:
            connection.holds = deque()
            connection.held = Buffer()
            first = (<Hold>self.deferred[0]).begin
            self.out.append(PyBytes_AS_STRING(answers), first)
            base = -first
            connection.held.append(PyBytes_AS_STRING(answers) + first, PyBytes_GET_SIZE(answers) - first)
        else:
            base = connection.held.size
            connection.held.append(PyBytes_AS_STRING(answers), PyBytes_GET_SIZE(answers))
        copies = False
        self.urgent = True
        for hold in self.deferred:
            hold.begin += base
            copies = copies or hold.need
            last = <Hold>connection.holds[len(connection.holds) - 1] if connection.holds else None
            if last is None or not hold.same(last):
                connection.holds.append(hold)
            elif hold.need and hold.usual:
                last.alike = last.alike or []
                last.alike.append(hold.begin - last.begin)
        self.deferred = []
        self.holding[connection] = None
        if connection.held.size > HELD_BYTES:
            return self.give_up(connection, f"{connection.held.size:,} bytes of answers wait behind a write; held_bytes_max is {HELD_BYTES:,}")
        if copies:
            self.replication.wait_for_copies()
        return 0

    def release_held(self):
        """Move what need not wait any more to `released`: [(connection, bytes)], to be sent in that order."""
        cdef Connection connection
        cdef Hold hold
        cdef Py_ssize_t ready
        cdef int left
        for connection in list(self.holding):
            ready = 0
            if self.is_hopeless(connection.holds[0]):
                left = self.placement.count_at((<Hold>connection.holds[0]).position)
                self.give_up(connection, f"{left} owner{'s' if left != 1 else ''} of the key are left, fewer than the copies that were asked for")
                continue
            while connection.holds and self.holds_no_more(connection.holds[0]):
                hold = <Hold>connection.holds.popleft()
                if hold.need and hold.usual:
                    self.tell_fewer(connection, hold)
                ready = (<Hold>connection.holds[0]).begin if connection.holds else connection.held.size
            if not ready:
                continue
            self.released.append((connection, PyBytes_FromStringAndSize(connection.held.data, ready)))
            self.urgent = True
            if not connection.holds:
                connection.held = None
                del self.holding[connection]
                continue
            memmove(connection.held.data, connection.held.data + ready, connection.held.size - ready)
            connection.held.size -= ready
            for hold in connection.holds:
                hold.begin -= ready

    cdef bint holds_no_more(self, Hold hold) except -1:
        if hold.room and self.is_crowded():
            return False
        if hold.log_round and self.replication.log.round < hold.log_round:
            return False
        if not hold.need:
            return True
        if self.replication.copies_of(hold.round, hold.peers) >= hold.need:
            return True
        # Its peers may have left the view; what is closed is wherever the view of now wants it.
        return self.replication.closed >= hold.epoch and (hold.usual or self.placement.count_at(hold.position) > hold.need)

    cdef int tell_fewer(self, Connection connection, Hold hold) except -1:
        """Let answers say how many owners their keys have, where fewer are left than copies were waited for."""
        cdef int left = self.placement.count_at(hold.position)
        cdef ReplyHeader* answer
        if left > hold.need or self.replication.copies_of(hold.round, hold.peers) >= hold.need:
            return 0
        for behind in (0, *(hold.alike or ())):
            answer = <ReplyHeader*>(connection.held.data + hold.begin + <Py_ssize_t>behind)
            answer.type = min(<int>answer.type, max(left, 1) - 1)
        return 0

    cdef bint is_hopeless(self, Hold hold) except -1:
        """Whether there are not as many owners any more as a write's copies were to be."""
        if not hold.need or hold.usual or self.replication.closed < hold.epoch:
            return False
        return self.placement.count_at(hold.position) <= hold.need

    cdef int give_up(self, Connection connection, str why) except -1:
        """End a connection whose answers cannot be given: nobody knows what becomes of the writes that wait on it."""
        cdef RequestHeader head
        head.request = 0
        self.reply_text(&head, STATUS_LOST, why.encode())
        self.released.append((connection, self.take()))
        connection.failure = why
        connection.held = None
        connection.holds = None
        self.holding.pop(connection, None)
        self.urgent = True
        return 0

    def take_released(self):
        """Return [(connection, bytes), …] that waited and may be sent now."""
        released, self.released = self.released, []
        return released

    @property
    def waiting(self):
        """How many connections wait until a write is as safe as they asked."""
        return len(self.holding)
