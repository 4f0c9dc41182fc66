"""From the bytes of a connection to whole frames: where they begin and end, and what of one waits for its rest.

The one rule: a frame is handled where it lies in what arrived, and is copied only when it came in pieces. One that is too long, or too short
for its header, ends its connection. A few bytes can ask for many: when enough was answered, the rest of what has arrived waits. The value of a large put is received straight into the bytes that will be stored. Below
`handle` nothing knows what a frame means.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from anna.buffer cimport Buffer
from anna.kvs.answers cimport Answers, Connection
from anna.kvs.clock cimport Clock
from anna.kvs.peers cimport KIND_LINK, LINK_HEADER_BYTES
from anna.kvs.store cimport Store
from anna.routing.hash cimport hash64
from anna.wire cimport *

from anna import config
from anna.errors import AnnaError

cdef Py_ssize_t ANSWERED_BYTES = config.ANSWERED_BYTES_MAX
cdef Py_ssize_t ANSWERED_VALUES = config.ANSWERED_VALUES_MAX

cdef enum:
    BULK_BYTES_MIN = 32768
    # How many frames' keys are fetched from memory at once.
    ANNOUNCED_MAX = 16


cdef class Frames(Answers):
    """The receiving side of a worker. Whoever handles frames overrides `handle`, `put_bulk`, and `hold_back` if answers may have to wait."""

    def __init__(self, Clock clock):
        super().__init__(clock)
        self.store = Store()
        self.now = clock.monotonic_ns
        self.deferred = []

    cpdef object receive(self, Connection connection, bytes data, int64_t monotonic_ns):
        """Take bytes from `connection` and return the answers to the frames that they complete."""
        self.absorb(connection, data, monotonic_ns)
        while connection.backlog is not None and connection.failure is None:
            data, connection.backlog = connection.backlog, None
            self.absorb(connection, data, monotonic_ns)
        return self.take()

    cdef int absorb(self, Connection connection, bytes data, int64_t monotonic_ns) except -1:
        """`receive`, but the answers stay in `out` and `chunks`: a driver at C level sends them from there.

        When many bytes were answered, the rest of `data` is the connection's `backlog`: the driver gives it back before it gives more.
        """
        return self.absorb_at(connection, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), monotonic_ns)

    cdef int absorb_at(self, Connection connection, const char* place, Py_ssize_t left, int64_t monotonic_ns) except -1:
        """`absorb` of `left` bytes at `place`, of which nothing is kept there."""
        cdef Py_ssize_t total
        cdef int announced = 0
        self.clock.advance(monotonic_ns // 1000)
        self.now = monotonic_ns
        if connection.failure is not None:
            return 0
        if connection.bulk is not None:
            place = self.fill_bulk(connection, place, &left)
        elif connection.pending.size:
            place = self.complete(connection, place, &left)
        while left >= LENGTH_BYTES and connection.failure is None:
            total = LENGTH_BYTES + <Py_ssize_t>(<uint32_t*>place)[0]
            if not HEADER_BYTES <= total <= <Py_ssize_t>FRAME_MAX + LENGTH_BYTES:
                self.fail(connection, f"a frame says that {total - LENGTH_BYTES:,} bytes follow; "
                                      f"{HEADER_BYTES - LENGTH_BYTES} to {FRAME_MAX:,} may")
                break
            if not announced:
                announced = self.announce(place, left)
            announced -= 1
            if left < total:
                if total > BULK_BYTES_MIN and self.begin_bulk(connection, place, left, total):
                    left = 0
                break
            self.handle(connection, place, total)
            place += total
            left -= total
            if left and (self.out.size >= ANSWERED_BYTES or len(self.chunks) >= ANSWERED_VALUES) and connection.failure is None:
                connection.backlog = PyBytes_FromStringAndSize(place, left)
                left = 0
        if left and connection.failure is None:
            connection.pending.append(place, left)
            if connection.pending.size > LENGTH_BYTES and <unsigned char>connection.pending.data[LENGTH_BYTES] != PROTOCOL_VERSION:
                self.fail(connection, "what has begun is no frame of this protocol's version; TLS, where there are no keys?")
        if self.deferred or connection.holds:
            self.hold_back(connection)
        return 0

    cdef int announce(self, const char* place, Py_ssize_t left) noexcept:
        """Begin to fetch from memory what the next frames will ask for; return how many frames were looked at, at least one."""
        cdef uint64_t[ANNOUNCED_MAX] hashes
        cdef RequestHeader* head
        cdef int count = 0
        cdef int index
        cdef Py_ssize_t total
        while count < ANNOUNCED_MAX and left >= HEADER_BYTES:
            head = <RequestHeader*>place
            total = LENGTH_BYTES + <Py_ssize_t>head.length
            if total > left or total < HEADER_BYTES + <Py_ssize_t>head.key_bytes:
                break
            hashes[count] = hash64(place + HEADER_BYTES, head.key_bytes)
            if count or total < left:
                self.store.states.prefetch_slot(hashes[count])
            count += 1
            place += total
            left -= total
        if count > 1:
            for index in range(count):
                self.store.states.prefetch_entry(hashes[index])
            for index in range(count):
                self.store.states.prefetch_payload(hashes[index])
        return max(count, 1)

    cdef const char* complete(self, Connection connection, const char* data, Py_ssize_t* size) except? NULL:
        """Move bytes to the unfinished frame; handle it when it is whole. Returns where the next frame begins."""
        cdef Buffer pending = connection.pending
        cdef Py_ssize_t wanted, total
        while size[0] and connection.failure is None:
            total = LENGTH_BYTES
            if pending.size >= LENGTH_BYTES:
                total += (<uint32_t*>pending.data)[0]
                if not HEADER_BYTES <= total <= <Py_ssize_t>FRAME_MAX + LENGTH_BYTES:
                    self.fail(connection, f"a frame says that {total - LENGTH_BYTES:,} bytes follow; "
                                          f"{HEADER_BYTES - LENGTH_BYTES} to {FRAME_MAX:,} may")
                    break
            wanted = min(total - pending.size, size[0])
            pending.append(data, wanted)
            data += wanted
            size[0] -= wanted
            if pending.size == total and total > LENGTH_BYTES:
                self.handle(connection, pending.data, total)
                pending.shrink()
                break
        return data

    cdef int begin_bulk(self, Connection connection, const char* frame, Py_ssize_t size, Py_ssize_t total) except -1:
        """Begin to receive a large register, or what a link carries, straight into the bytes that are kept; False when the frame is neither."""
        cdef RequestHeader* head = <RequestHeader*>frame
        cdef Py_ssize_t prefix = self.bulk_prefix(head) if size >= HEADER_BYTES and head.version == PROTOCOL_VERSION else 0
        if prefix == 0 or size < prefix:
            return False
        connection.pending.append(frame, prefix)
        connection.bulk = PyBytes_FromStringAndSize(NULL, total - prefix)
        connection.bulk_bytes = size - prefix
        memcpy(PyBytes_AS_STRING(connection.bulk), frame + prefix, size - prefix)
        return True

    cdef Py_ssize_t bulk_prefix(self, RequestHeader* head) noexcept:
        """Return where in a frame its bulk begins, 0 when it has none."""
        if head.op == OP_PUT and head.type == LWW_NUMBER and not head.flags & (FLAG_COMPARE | FLAG_EXPIRES):
            return HEADER_BYTES + head.key_bytes + LWW_HEADER_BYTES
        if head.op == OP_PEER and head.type == KIND_LINK and head.flags & FLAG_SYSTEM and self.replication is not None and head.key_bytes == 0:
            return HEADER_BYTES + LINK_HEADER_BYTES
        return 0

    cdef const char* fill_bulk(self, Connection connection, const char* data, Py_ssize_t* size) except NULL:
        """Move bytes to the bulk under way; take it when it is whole. Returns where the next frame begins."""
        cdef Py_ssize_t wanted = min(PyBytes_GET_SIZE(connection.bulk) - connection.bulk_bytes, size[0])
        cdef RequestHeader* head = <RequestHeader*>connection.pending.data
        cdef uint64_t* place
        memcpy(PyBytes_AS_STRING(connection.bulk) + connection.bulk_bytes, data, wanted)
        connection.bulk_bytes += wanted
        size[0] -= wanted
        if connection.bulk_bytes < PyBytes_GET_SIZE(connection.bulk):
            return data + wanted
        bulk, connection.bulk = connection.bulk, None
        self.frames += 1
        key = connection.pending.data + HEADER_BYTES
        if head.op == OP_PEER:
            self.hear_peer(connection, head, PyBytes_FromStringAndSize(key, LINK_HEADER_BYTES), bulk)
            connection.pending.shrink()
            return data + wanted
        place = <uint64_t*>(key + head.key_bytes)
        try:
            self.put_bulk(head, key, place, bulk)
        except AnnaError as error:
            self.refused += 1
            self.reply_text(head, status_of(error), str(error).encode())
        connection.pending.shrink()
        return data + wanted

    cdef int handle(self, Connection connection, const char* frame, Py_ssize_t size) except -1:
        """Answer one whole frame."""
        raise NotImplementedError

    cdef int put_bulk(self, RequestHeader* head, const char* key, uint64_t* place, bytes bulk) except -1:
        """Answer a put of a large register whose bytes are an object already; `place` holds its stamp and writer."""
        raise NotImplementedError

    cdef int hear_peer(self, Connection connection, RequestHeader* head, bytes payload, bytes fragment) except -1:
        """Take a message of another worker; of a link's frame, `payload` is the header."""
        raise NotImplementedError

    cdef int hold_back(self, Connection connection) except -1:
        """Keep back what was answered on `connection` from its first answer that has to wait on."""
        raise NotImplementedError
