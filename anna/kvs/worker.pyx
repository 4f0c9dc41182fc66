"""One worker: the protocol between its clients and its keys, from bytes to bytes.

The one rule: what goes in is (connection, bytes, now), what comes out is bytes; there is no socket, clock or randomness here, so a
cluster of workers runs in one test. A frame is answered in the order of its arrival on its connection. A client's mistake becomes a
reply with a status; bytes that are not of the protocol end their own connection and nothing else. Source: DESIGN §2, §5; the
sans-I/O form is h11's.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cimport cython

from anna.buffer cimport Buffer
from anna.kvs.clock cimport Clock
from anna.kvs.store cimport Store
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.hash cimport hash64
from anna.routing.placement cimport Placement
from anna.wire cimport *

import msgpack

from anna.errors import AnnaError, BadKey, NotSupported, ProtocolError, StampAhead, ValueTooLarge
from anna.lattices import REGISTRY
from anna.messages import View

cdef enum:
    # Payloads up to this size are copied into the reply buffer; larger ones are handed to the driver as they are.
    COPIED_BYTES_MAX = 16384
    BULK_BYTES_MIN = 32768
    # How many frames' keys are fetched from memory at once.
    ANNOUNCED_MAX = 16


@cython.final
cdef class Connection:
    """What a worker keeps of one connection: an unfinished frame, its subscriptions, and why it must end (`failure`)."""

    def __init__(self):
        self.pending = Buffer()
        self.bulk = None
        self.bulk_bytes = 0
        self.failure = None
        self.subscriptions = set()


cdef class Worker:
    """A worker's core. `place` is its index in `view.workers`; `clock` is its own.

    Call `receive` for bytes that arrived and send what it returns: `bytes`, or a list of `bytes` to be sent one after the other.
    When `connection.failure` is set, send that too and close the connection. Call `tick` when `pushes_due` says so.
    """

    def __init__(self, view, int place, Clock clock):
        self.clock = clock
        self.store = Store()
        self.out = Buffer()
        self.chunks = []
        self.subscribers = {}
        self.changed = set()
        self.started_us = clock.physical_us
        self.place = place
        self.adopt(view)

    def adopt(self, view):
        """Take up a newer view of the cluster. Raises ValueError when it has no worker at this place."""
        workers = view.workers
        if not 0 <= self.place < len(workers):
            raise ValueError(f"the view has {len(workers)} workers, none at place {self.place}")
        self.view = view
        self.worker_id = workers[self.place].worker_id
        self.placement = Placement(view)
        self.view_payload = msgpack.packb(view.to_wire())

    cpdef object receive(self, Connection connection, bytes data, int64_t monotonic_ns):
        """Take bytes from `connection` and return the answers to the frames that they complete."""
        self.absorb(connection, data, monotonic_ns)
        return self.take()

    cdef int absorb(self, Connection connection, bytes data, int64_t monotonic_ns) except -1:
        """`receive`, but the answers stay in `out` and `chunks`: a driver at C level sends them from there."""
        cdef const char* place = PyBytes_AS_STRING(data)
        cdef Py_ssize_t left = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t total
        cdef int announced = 0
        self.clock.advance(monotonic_ns // 1000)
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
        if left and connection.failure is None:
            connection.pending.append(place, left)
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
        """Begin to receive a large register straight into the bytes that will be stored; False when the frame is no such put."""
        cdef RequestHeader* head = <RequestHeader*>frame
        cdef Py_ssize_t prefix = HEADER_BYTES + LWW_HEADER_BYTES
        if size < HEADER_BYTES or head.op != OP_PUT or head.type != LWW_NUMBER or head.version != PROTOCOL_VERSION:
            return False
        prefix += head.key_bytes
        if size < prefix:
            return False
        connection.pending.append(frame, prefix)
        connection.bulk = PyBytes_FromStringAndSize(NULL, total - prefix)
        connection.bulk_bytes = size - prefix
        memcpy(PyBytes_AS_STRING(connection.bulk), frame + prefix, size - prefix)
        return True

    cdef const char* fill_bulk(self, Connection connection, const char* data, Py_ssize_t* size) except NULL:
        """Move bytes to the large register under way; store and answer it when it is whole. Returns where the next frame begins."""
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
        place = <uint64_t*>(key + head.key_bytes)
        try:
            self.put_bulk(head, key, place, bulk)
        except AnnaError as error:
            self.refused += 1
            self.reply_text(head, status_of(error), str(error).encode())
        connection.pending.shrink()
        return data + wanted

    cdef int put_bulk(self, RequestHeader* head, const char* key, uint64_t* place, bytes bulk) except -1:
        """`put` of a large register whose bytes are an object already; `place` holds its stamp and writer."""
        if not self.clock.observe(head.stamp):
            raise StampAhead("the request's stamp is more than a minute ahead of this worker's clock")
        self.check_key(key, head.key_bytes, head.flags)
        if not self.owns(key, head.key_bytes):
            return self.reply_text(head, STATUS_WRONG_WORKER, self.view_payload)
        if PyBytes_GET_SIZE(bulk) + LWW_HEADER_BYTES > <Py_ssize_t>VALUE_MAX:
            raise ValueTooLarge(f"a value has {len(bulk) + LWW_HEADER_BYTES:,} bytes; value_bytes_max is {VALUE_MAX:,}")
        self.puts += 1
        self.write_register(key, head.key_bytes, place[0], place[1], bulk)
        self.reply(head, STATUS_OK, 0, 0)
        return 0

    cdef int handle(self, Connection connection, const char* frame, Py_ssize_t size) except -1:
        """Answer one whole frame."""
        cdef RequestHeader head
        cdef const char* key = frame + HEADER_BYTES
        memcpy(&head, frame, HEADER_BYTES)
        self.frames += 1
        if head.version != PROTOCOL_VERSION:
            return self.fail(connection, f"a frame has protocol version {head.version}; this worker speaks {PROTOCOL_VERSION}")
        size -= HEADER_BYTES + head.key_bytes
        if size < 0:
            return self.fail(connection, f"a frame says that its key has {head.key_bytes} bytes, {-size} more than the frame")
        if not self.clock.observe(head.stamp):
            self.refused += 1
            return self.reply_text(&head, STATUS_STAMP_AHEAD, b"the request's stamp is more than a minute ahead of this worker's clock")
        if head.op == OP_GET and 1 <= head.key_bytes <= KEY_MAX and key[0] and self.owns(key, head.key_bytes):
            return self.get(&head, key)
        try:
            return self.dispatch(connection, &head, key, key + head.key_bytes, size)
        except AnnaError as error:
            self.refused += 1
            return self.reply_text(&head, status_of(error), str(error).encode())

    cdef int dispatch(self, Connection connection, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1:
        if head.op <= OP_DELETE:
            self.check_key(key, head.key_bytes, head.flags)
            if not self.owns(key, head.key_bytes):
                return self.reply_text(head, STATUS_WRONG_WORKER, self.view_payload)
            if head.op == OP_PUT:
                return self.put(head, key, payload, size)
            if head.op == OP_DELETE:
                return self.delete(head, key)
            return self.get(head, key)
        if head.op == OP_MGET:
            return self.multi_get(head, payload, size)
        if head.op == OP_MPUT:
            return self.multi_put(head, payload, size)
        if head.op == OP_VIEW:
            return self.reply_text(head, STATUS_OK, self.view_payload)
        if head.op == OP_STATUS:
            return self.reply_text(head, STATUS_OK, msgpack.packb(self.status()))
        if head.op == OP_SUBSCRIBE or head.op == OP_UNSUBSCRIBE:
            return self.change_subscription(connection, head, key)
        raise NotSupported(f"operation {head.op} is not known to this worker")

    cdef object take(self):
        """Return what was answered since the last call."""
        cdef bytes result
        if not self.chunks:
            result = PyBytes_FromStringAndSize(self.out.data, self.out.size)
            self.out.shrink()
            return result
        if self.out.size:
            self.chunks.append(PyBytes_FromStringAndSize(self.out.data, self.out.size))
            self.out.shrink()
        chunks = self.chunks
        self.chunks = []
        return chunks

    cdef char* reply(self, RequestHeader* head, int status, int type, Py_ssize_t payload_bytes) except NULL:
        """Begin a reply and return where its payload goes."""
        cdef char* place = self.out.reserve(HEADER_BYTES + payload_bytes)
        cdef ReplyHeader* answer = <ReplyHeader*>place
        answer.length = <uint32_t>(HEADER_BYTES - LENGTH_BYTES + payload_bytes)
        answer.version = PROTOCOL_VERSION
        answer.status = status
        answer.type = type
        answer.flags = 0
        answer.request = head.request
        answer.reserved = 0
        answer.stamp = self.clock.last
        return place + HEADER_BYTES

    cdef int reply_text(self, RequestHeader* head, int status, bytes payload) except -1:
        memcpy(self.reply(head, status, 0, PyBytes_GET_SIZE(payload)), PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        return 0

    cdef int reply_state(self, RequestHeader* head, Lattice state) except -1:
        cdef uint64_t* place
        cdef LWW register
        cdef bytes payload
        cdef Py_ssize_t size
        if type(state) is LWW:
            register = <LWW>state
            size = PyBytes_GET_SIZE(register.payload)
            if size <= COPIED_BYTES_MAX:
                place = <uint64_t*>self.reply(head, STATUS_OK, LWW_NUMBER, LWW_HEADER_BYTES + size)
                memcpy(<char*>place + LWW_HEADER_BYTES, PyBytes_AS_STRING(register.payload), size)
            else:
                place = <uint64_t*>self.reply(head, STATUS_OK, LWW_NUMBER, LWW_HEADER_BYTES)
                (<ReplyHeader*>(<char*>place - HEADER_BYTES)).length += <uint32_t>size
            place[0] = register.stamp
            place[1] = register.writer
            if size > COPIED_BYTES_MAX:
                self.chunks.append(PyBytes_FromStringAndSize(self.out.data, self.out.size))
                self.out.size = 0
                self.chunks.append(register.payload)
            return 0
        payload = state.encode()
        size = PyBytes_GET_SIZE(payload)
        if size > <Py_ssize_t>VALUE_MAX:
            return self.reply_text(head, STATUS_TOO_LARGE,
                                   f"the state has {size:,} bytes; a frame carries {VALUE_MAX:,}".encode())
        memcpy(self.reply(head, STATUS_OK, state.NUMBER, size), PyBytes_AS_STRING(payload), size)
        return 0

    cdef int fail(self, Connection connection, str why) except -1:
        """Give up on a connection whose bytes are not of the protocol."""
        self.malformed += 1
        connection.failure = why
        cdef RequestHeader head
        head.request = 0
        return self.reply_text(&head, STATUS_MALFORMED, why.encode())

    cdef bint owns(self, const char* key, Py_ssize_t size) noexcept:
        return self.placement.owner(key, size) == self.place

    cdef int check_key(self, const char* key, Py_ssize_t size, int flags) except -1:
        if not 1 <= size <= <Py_ssize_t>KEY_MAX:
            raise BadKey(f"a key has 1 to {KEY_MAX:,} bytes, got {size:,}")
        if key[0] == 0 and not flags & FLAG_SYSTEM:
            raise BadKey("keys that begin with a zero byte are reserved for the system")
        return 0

    cdef int get(self, RequestHeader* head, const char* key) except -1:
        cdef PyObject* found = self.store.states.find(key, head.key_bytes)
        self.gets += 1
        if found is NULL:
            self.reply(head, STATUS_MISSING, 0, 0)
            return 0
        return self.reply_state(head, <Lattice>found)

    cdef int put(self, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1:
        self.write(key, head.key_bytes, head.type, payload, size)
        self.reply(head, STATUS_OK, 0, 0)
        return 0

    cdef int write(self, const char* key, Py_ssize_t key_bytes, int type, const char* payload, Py_ssize_t size) except -1:
        """Join one written state into its key. Raises an AnnaError, and changes nothing, when it cannot be."""
        cdef uint64_t stamp, writer
        if size > <Py_ssize_t>VALUE_MAX:
            raise ValueTooLarge(f"a value has {size:,} bytes; value_bytes_max is {VALUE_MAX:,}")
        self.puts += 1
        if type == LWW_NUMBER:
            if size < LWW_HEADER_BYTES:
                raise ProtocolError(f"an LWW has at least {LWW_HEADER_BYTES} bytes, got {size}")
            memcpy(&stamp, payload, 8)
            memcpy(&writer, payload + 8, 8)
            return self.write_register(
                key, key_bytes, stamp, writer, PyBytes_FromStringAndSize(payload + LWW_HEADER_BYTES, size - LWW_HEADER_BYTES))
        self.write_state(PyBytes_FromStringAndSize(key, key_bytes), type, payload[:size])
        self.note(key, key_bytes)
        return 0

    cdef int write_register(self, const char* key, Py_ssize_t key_bytes, uint64_t stamp, uint64_t writer, bytes payload) except -1:
        """Join a register into its key, stamped here unless it has a stamp."""
        if stamp == 0 and writer == 0:
            stamp = self.clock.tick()
            writer = self.worker_id
        elif not self.clock.observe(stamp):
            raise StampAhead("the register's stamp is more than a minute ahead of this worker's clock")
        self.store.write_register(key, key_bytes, stamp, writer, payload)
        self.note(key, key_bytes)
        return 0

    def write_state(self, bytes key, int number, bytes payload):
        """Join a state of any type into `key`, after the owner's part was assigned to it."""
        kind = REGISTRY.get(number)
        if kind is None:
            raise NotSupported(f"lattice type {number} is not known to this worker")
        cdef Lattice written = kind.decode(payload)
        cdef Lattice current = self.store.read(key)
        if current is not None and type(current) is not kind:
            raise self.store.mismatch(key, current, kind)
        self.store.write(key, written.assign(current, self.clock.tick(), self.worker_id))

    cdef int delete(self, RequestHeader* head, const char* key) except -1:
        cdef bytes name = PyBytes_FromStringAndSize(key, head.key_bytes)
        self.deletes += 1
        self.clock.tick()
        cdef bint existed = self.store.remove(name)
        if existed:
            self.note(key, head.key_bytes)
        self.reply(head, STATUS_OK if existed else STATUS_MISSING, 0, 0)
        return 0

    cdef int multi_get(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        cdef uint32_t count = batch_count(payload, size)
        cdef const char* end = payload + size
        cdef const char* place = payload + 4
        cdef Py_ssize_t begin = self.out.size
        cdef uint32_t index
        cdef uint16_t key_bytes
        (<uint32_t*>self.reply(head, STATUS_OK, 0, 4))[0] = count
        try:
            for index in range(count):
                if end - place < 2:
                    raise ProtocolError(f"a multi-get of {count} keys ends within key {index}")
                memcpy(&key_bytes, place, 2)
                place += 2
                if end - place < key_bytes:
                    raise ProtocolError(f"a multi-get of {count} keys ends within key {index}")
                self.multi_get_item(place, key_bytes, head.flags)
                place += key_bytes
            if place != end:
                raise ProtocolError(f"a multi-get of {count} keys has {end - place} bytes too many")
        except BaseException:
            self.out.size = begin
            raise
        # The length is known only now: a reply of many keys may be longer than one frame may be.
        size = self.out.size - begin - LENGTH_BYTES
        if size > <Py_ssize_t>FRAME_MAX:
            self.out.size = begin
            raise ValueTooLarge(f"the {count} values have {size:,} bytes together; a frame may have {FRAME_MAX:,}: ask for fewer at once")
        (<ReplyHeader*>(self.out.data + begin)).length = <uint32_t>size
        return 0

    cdef int multi_get_item(self, const char* key, Py_ssize_t key_bytes, int flags) except -1:
        cdef ReplyItem* item
        cdef uint64_t* place
        cdef PyObject* found
        cdef LWW register
        cdef bytes payload
        cdef Py_ssize_t size
        self.check_key(key, key_bytes, flags)
        self.gets += 1
        if not self.owns(key, key_bytes):
            item = <ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES)
            item[0] = ReplyItem(STATUS_WRONG_WORKER, 0, 0, 0)
            return 0
        found = self.store.states.find(key, key_bytes)
        if found is NULL:
            item = <ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES)
            item[0] = ReplyItem(STATUS_MISSING, 0, 0, 0)
            return 0
        if type(<object>found) is LWW:
            register = <LWW>found
            size = PyBytes_GET_SIZE(register.payload)
            item = <ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES + LWW_HEADER_BYTES + size)
            item[0] = ReplyItem(STATUS_OK, LWW_NUMBER, 0, <uint32_t>(LWW_HEADER_BYTES + size))
            place = <uint64_t*>(<char*>item + ITEM_HEADER_BYTES)
            memcpy(place, &register.stamp, 8)
            memcpy(place + 1, &register.writer, 8)
            memcpy(place + 2, PyBytes_AS_STRING(register.payload), size)
            return 0
        payload = (<Lattice>found).encode()
        size = PyBytes_GET_SIZE(payload)
        item = <ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES + size)
        item[0] = ReplyItem(STATUS_OK, (<Lattice>found).NUMBER, 0, <uint32_t>size)
        memcpy(<char*>item + ITEM_HEADER_BYTES, PyBytes_AS_STRING(payload), size)
        return 0

    cdef int multi_put(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        cdef uint32_t count = batch_count(payload, size)
        cdef const char* end = payload + size
        cdef const char* place = payload + 4
        cdef PutItem item
        cdef uint32_t index
        cdef list failures = None
        check_put_items(place, end, count)
        for index in range(count):
            memcpy(&item, place, ITEM_HEADER_BYTES)
            place += ITEM_HEADER_BYTES
            try:
                self.check_key(place, item.key_bytes, head.flags)
                if self.owns(place, item.key_bytes):
                    self.write(place, item.key_bytes, item.type, place + item.key_bytes, item.payload_bytes)
                else:
                    failures = failures or []
                    failures.append([index, STATUS_WRONG_WORKER, ""])
            except AnnaError as error:
                self.refused += 1
                failures = failures or []
                failures.append([index, status_of(error), str(error)])
            place += item.key_bytes + item.payload_bytes
        if failures is None:
            self.reply(head, STATUS_OK, 0, 0)
            return 0
        return self.reply_text(head, STATUS_PARTIAL, msgpack.packb(failures))

    cdef int change_subscription(self, Connection connection, RequestHeader* head, const char* key) except -1:
        """Begin to push what changes under a key, and answer as a get does, in one step; or end it."""
        self.check_key(key, head.key_bytes, head.flags)
        if not self.owns(key, head.key_bytes):
            return self.reply_text(head, STATUS_WRONG_WORKER, self.view_payload)
        self.subscribe(connection, PyBytes_FromStringAndSize(key, head.key_bytes), head.op == OP_SUBSCRIBE)
        if head.op == OP_SUBSCRIBE:
            return self.get(head, key)
        self.reply(head, STATUS_OK, 0, 0)
        return 0

    def subscribe(self, Connection connection, bytes key, bint wanted):
        """Begin or end to push what changes under `key` to `connection`."""
        cdef set listeners
        if wanted:
            connection.subscriptions.add(key)
            self.subscribers.setdefault(key, set()).add(connection)
            return
        connection.subscriptions.discard(key)
        listeners = self.subscribers.get(key)
        if listeners is not None:
            listeners.discard(connection)
            if not listeners:
                del self.subscribers[key]

    cdef int note(self, const char* key, Py_ssize_t key_bytes) except -1:
        """Remember that a key changed, if anybody subscribed to it."""
        cdef bytes name
        if self.subscribers:
            name = PyBytes_FromStringAndSize(key, key_bytes)
            if name in self.subscribers:
                self.changed.add(name)
        return 0

    @property
    def pushes_due(self):
        """Whether `tick` has something to push."""
        return self.due()

    cdef bint due(self) except -1:
        return len(self.changed) > 0

    def tick(self, int64_t monotonic_ns):
        """Return [(connection, bytes), …]: every subscribed key that changed since the last tick, in the order of the keys.

        A push is a reply frame with id 0 and the operation in `flags`: u16 key bytes, key, state; a deleted key is STATUS_MISSING.
        """
        self.clock.advance(monotonic_ns // 1000)
        cdef dict outboxes = {}
        cdef RequestHeader head
        cdef bytes key
        head.request = 0
        for key in sorted(self.changed):
            for connection in self.subscribers.get(key, ()):
                outboxes.setdefault(connection, []).append(key)
        self.changed.clear()
        pushes = []
        for connection, keys in outboxes.items():
            for key in keys:
                self.push(key)
            pushes.append((connection, self.take()))
        return pushes

    def push(self, bytes key):
        """Write one push frame: the whole state of `key` as it is now."""
        cdef RequestHeader head
        cdef Lattice state = self.store.read(key)
        cdef bytes payload = b"" if state is None else state.encode()
        cdef Py_ssize_t key_bytes = PyBytes_GET_SIZE(key)
        cdef uint16_t prefix = <uint16_t>key_bytes
        head.request = 0
        cdef int status = STATUS_MISSING if state is None else STATUS_OK
        cdef char* place = self.reply(&head, status, 0 if state is None else state.NUMBER, 2 + key_bytes + PyBytes_GET_SIZE(payload))
        (<ReplyHeader*>(place - HEADER_BYTES)).flags = OP_PUSH
        memcpy(place, &prefix, 2)
        memcpy(place + 2, PyBytes_AS_STRING(key), key_bytes)
        memcpy(place + 2 + key_bytes, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))

    def leave(self, Connection connection):
        """Forget a connection that has ended."""
        for key in sorted(connection.subscriptions):
            self.subscribe(connection, key, False)

    def status(self):
        """Return this worker's figures, as plain data."""
        return {
            "worker_id": self.worker_id,
            "place": self.place,
            "view": self.view.version,
            "keys": len(self.store),
            "bytes": self.store.size_bytes,
            "gets": self.gets,
            "puts": self.puts,
            "deletes": self.deletes,
            "frames": self.frames,
            "refused": self.refused,
            "malformed": self.malformed,
            "uptime_us": self.clock.physical_us - self.started_us,
            "stamp": self.clock.last,
        }

    def check(self):
        """Assert the worker's invariants."""
        self.store.check()
        assert self.out.size == 0 and not self.chunks, "an answer was left behind"
        for key, listeners in self.subscribers.items():
            assert listeners and all(key in connection.subscriptions for connection in listeners), key
        assert self.changed <= self.subscribers.keys() | self.store.states.keys() | self.changed


cdef uint32_t batch_count(const char* payload, Py_ssize_t size) except? 0xFFFFFFFF:
    """Return how many keys a batch says it has. Raises ProtocolError or ValueTooLarge."""
    cdef uint32_t count
    if size < 4:
        raise ProtocolError(f"a batch begins with a count of 4 bytes, got {size}")
    memcpy(&count, payload, 4)
    if count > BATCH_MAX:
        raise ValueTooLarge(f"a batch has {count:,} keys; batch_keys_max is {BATCH_MAX:,}")
    return count


cdef int check_put_items(const char* place, const char* end, uint32_t count) except -1:
    """Walk a multi-put's items before any is written, so that a malformed batch has no effect. Raises ProtocolError."""
    cdef PutItem item
    cdef uint32_t index
    for index in range(count):
        if end - place < ITEM_HEADER_BYTES:
            raise ProtocolError(f"a multi-put of {count} keys ends within key {index}")
        memcpy(&item, place, ITEM_HEADER_BYTES)
        place += ITEM_HEADER_BYTES
        if end - place < <Py_ssize_t>item.key_bytes + <Py_ssize_t>item.payload_bytes:
            raise ProtocolError(f"a multi-put of {count} keys ends within key {index}")
        place += item.key_bytes + item.payload_bytes
    if place != end:
        raise ProtocolError(f"a multi-put of {count} keys has {end - place} bytes too many")
    return 0
