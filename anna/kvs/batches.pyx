"""Many keys in one frame: multi-get and multi-put.

The one rule: the frame is one, its keys are each for themselves. A batch that is not of the protocol has no effect; a key that is refused, or
is another worker's, is answered so, and the others are served. Source: DESIGN §2.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from anna.kvs.held cimport Hold
from anna.kvs.memory cimport Cold
from anna.kvs.operations cimport Operations
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.wire cimport *

import msgpack

from anna.errors import AnnaError, NotSupported, ProtocolError, ValueTooLarge


cdef class Batches(Operations):
    """The operations on many keys that are named."""

    cdef int multi_get(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        cdef uint32_t count = batch_count(payload, size)
        cdef const char* end = payload + size
        cdef const char* place = payload + 4
        cdef Py_ssize_t begin = self.out.size
        cdef uint32_t index
        cdef uint16_t key_bytes
        if head.flags & FLAG_STRICT and not self.is_current(head.stamp):
            self.stale += 1
            return self.reply_text(head, STATUS_STALE, b"this replica may lack what the client has seen; it will soon have it")
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
        cdef Lattice state
        cdef LWW register
        cdef bytes payload
        cdef Py_ssize_t size
        self.check_key(key, key_bytes, flags)
        self.gets += 1
        if not self.owns(key, key_bytes):
            item = <ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES)
            item[0] = ReplyItem(STATUS_WRONG_WORKER, 0, 0, 0)
            return 0
        if self.settling and not self.has(key, key_bytes):
            self.stale += 1
            item = <ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES)
            item[0] = ReplyItem(STATUS_STALE, 0, 0, 0)
            return 0
        found = self.store.states.find(key, key_bytes)
        if found is NULL or (self.store.expiries and self.has_expired(key, key_bytes)):
            return self.absent_item(key, key_bytes)
        state = <Lattice>found
        if type(state) is Cold:
            state = self.store.warm(PyBytes_FromStringAndSize(key, key_bytes))
            if state is None:
                return self.absent_item(key, key_bytes)
        if type(state) is LWW:
            register = <LWW>state
            size = PyBytes_GET_SIZE(register.payload)
            item = <ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES + LWW_HEADER_BYTES + size)
            item[0] = ReplyItem(STATUS_OK, LWW_NUMBER, 0, <uint32_t>(LWW_HEADER_BYTES + size))
            place = <uint64_t*>(<char*>item + ITEM_HEADER_BYTES)
            memcpy(place, &register.stamp, 8)
            memcpy(place + 1, &register.writer, 8)
            memcpy(place + 2, PyBytes_AS_STRING(register.payload), size)
            return 0
        payload = state.encode()
        size = PyBytes_GET_SIZE(payload)
        item = <ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES + size)
        item[0] = ReplyItem(STATUS_OK, state.NUMBER, 0, <uint32_t>size)
        memcpy(<char*>item + ITEM_HEADER_BYTES, PyBytes_AS_STRING(payload), size)
        return 0

    cdef int absent_item(self, const char* key, Py_ssize_t key_bytes) except -1:
        """Answer for a key of which no state is here."""
        (<ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES))[0] = ReplyItem(self.absence_of(key, key_bytes), 0, 0, 0)
        return 0

    cdef int multi_put(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        cdef uint32_t count = batch_count(payload, size)
        cdef const char* end = payload + size
        cdef const char* place = payload + 4
        cdef PutItem item
        cdef uint32_t index
        cdef list failures = None
        cdef list holds = []
        cdef Hold hold
        cdef int copies, least = 0
        cdef bint waits = self.replication is not None and head.ack != 1 and (head.ack > 0 or self.copies_usual > 1)
        check_put_items(place, end, count, head.flags)
        for index in range(count):
            memcpy(&item, place, ITEM_HEADER_BYTES)
            place += ITEM_HEADER_BYTES
            try:
                self.check_key(place, item.key_bytes, head.flags)
                if self.owns(place, item.key_bytes) and not self.closing:
                    if waits:
                        self.check_copies(place, item.key_bytes, head.ack)
                    self.write(place, item.key_bytes, item.type, place + item.key_bytes, item.payload_bytes)
                    if self.store.expiries:
                        self.expire_after(PyBytes_FromStringAndSize(place, item.key_bytes), 0)
                    if waits:
                        copies = self.usual_copies(place, item.key_bytes) if head.ack == 0 else 1 if head.ack == ACK_DISK else head.ack
                        hold = self.hold_for(place, item.key_bytes, copies, head.ack == ACK_DISK, head.ack == 0)
                        copies = min(copies, self.lasting_copies(place, item.key_bytes))
                        least = min(least, copies) if least else copies
                        if hold is not None and not (holds and hold.same(holds[len(holds) - 1])):
                            holds.append(hold)
                else:
                    failures = failures or []
                    failures.append([index, STATUS_WRONG_WORKER, ""])
            except AnnaError as error:
                self.refused += 1
                failures = failures or []
                failures.append([index, status_of(error), str(error)])
            place += item.key_bytes + item.payload_bytes
        if self.is_crowded():
            holds.append(Hold.for_room())
        payload_out = b"" if failures is None else msgpack.packb(failures)
        self.reply_held(head, STATUS_OK if failures is None else STATUS_PARTIAL, max(least, 1), head.ack == ACK_DISK, payload_out, holds[0] if holds else None)
        for hold in holds[1:]:
            hold.begin = (<Hold>holds[0]).begin
            self.deferred.append(hold)
        return 0


cdef uint32_t batch_count(const char* payload, Py_ssize_t size) except? 0xFFFFFFFF:
    """Return how many keys a batch says it has. Raises ProtocolError or ValueTooLarge."""
    cdef uint32_t count
    if size < 4:
        raise ProtocolError(f"a batch begins with a count of 4 bytes, got {size}")
    memcpy(&count, payload, 4)
    if count > BATCH_MAX:
        raise ValueTooLarge(f"a batch has {count:,} keys; batch_keys_max is {BATCH_MAX:,}")
    return count


cdef int check_put_items(const char* place, const char* end, uint32_t count, int flags) except -1:
    """Walk a multi-put's items before any is written, so that a batch that is malformed or asks for too much has no effect.

    Raises ProtocolError or NotSupported.
    """
    cdef PutItem item
    cdef uint32_t index
    if flags & (FLAG_COMPARE | FLAG_EXPIRES):
        raise NotSupported("a multi-put neither compares nor expires; put the keys one by one")
    for index in range(count):
        if end - place < ITEM_HEADER_BYTES:
            raise ProtocolError(f"a multi-put of {count} keys ends within key {index}")
        memcpy(&item, place, ITEM_HEADER_BYTES)
        place += ITEM_HEADER_BYTES
        if end - place < <Py_ssize_t>item.key_bytes + <Py_ssize_t>item.payload_bytes:
            raise ProtocolError(f"a multi-put of {count} keys ends within key {index}")
        if item.flags:
            raise NotSupported(f"key {index} of a multi-put has the flags {item.flags}; a key has none of its own")
        place += item.key_bytes + item.payload_bytes
    if place != end:
        raise ProtocolError(f"a multi-put of {count} keys has {end - place} bytes too many")
    return 0
