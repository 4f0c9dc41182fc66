"""What a client says and how it understands the answers: frames to bytes and back, without a socket.

The one rule: no frame is written or read anywhere else at the client's side, whichever client it is. Every request carries on the
greatest stamp that was seen.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cimport cython

from anna.buffer cimport Buffer
from anna.codec cimport TAG_BYTES, TAG_ELSEWHERE, decode_buffer, encode_value, whole_value
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.wire cimport *

from anna.ack import ack_number
from anna.config import TTL_S_MAX
from anna.errors import BadKey, NotSupported, ProtocolError, ValueTooLarge
from anna.lattices import REGISTRY
from anna.vectors import DEFAULT, Vector, change_to_wire

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


cdef const char* key_view(object key, Py_ssize_t* size, bint system) except NULL:
    """Return the bytes of a key, text or bytes, without copying them. Raises BadKey."""
    cdef const char* data
    if type(key) is str or isinstance(key, str):
        try:
            data = PyUnicode_AsUTF8AndSize(key, size)
        except UnicodeEncodeError as error:
            raise BadKey(f"the key {key!r} cannot be written as UTF-8: {error.reason}") from None
    elif type(key) is bytes:
        data = PyBytes_AS_STRING(key)
        size[0] = PyBytes_GET_SIZE(key)
    else:
        raise BadKey(f"a key is text or bytes, not {type(key).__name__}")
    if not 1 <= size[0] <= <Py_ssize_t>KEY_MAX:
        raise BadKey(f"a key has 1 to {KEY_MAX:,} bytes, got {size[0]:,}")
    if data[0] == 0 and not system:
        raise BadKey("keys that begin with a zero byte are reserved for the system")
    return data


cdef bytes key_bytes(object key, bint system):
    """Return a key as bytes. Raises BadKey."""
    cdef Py_ssize_t size
    cdef const char* data = key_view(key, &size, system)
    return key if type(key) is bytes else PyBytes_FromStringAndSize(data, size)

cdef class Requests:
    """The requests of one client, and what the answers mean. `system` admits keys that begin with a zero byte; `ack` is the acknowledgement that writes ask for."""

    def __init__(self, bint allow_pickle=True, bint system=False, ack=None):
        self.allow_pickle = allow_pickle
        self.system = system
        self.ack = 0 if ack is None else ack_number(ack)
        self.seen = 0
        self.last_request = 0

    # -- what is sent

    cdef uint32_t write_request(self, Buffer out, int op, int type, const char* key, Py_ssize_t key_bytes, const char* payload, Py_ssize_t payload_bytes) except 0:
        """Append a request; return its id. With `payload` NULL, `payload_bytes` are counted in and the caller appends them."""
        cdef Py_ssize_t room = key_bytes + (payload_bytes if payload is not NULL else 0)
        cdef char* place = out.reserve(HEADER_BYTES + room)
        cdef RequestHeader* head = <RequestHeader*>place
        self.last_request += 1
        if self.last_request == 0:  # which is the id of what was not asked for
            self.last_request = 1
        head.length = <uint32_t>(HEADER_BYTES - LENGTH_BYTES + key_bytes + payload_bytes)
        head.version = PROTOCOL_VERSION
        head.op = op
        head.type = type
        head.flags = FLAG_SYSTEM if self.system else 0
        head.request = self.last_request
        head.key_bytes = <uint16_t>key_bytes
        head.ack = self.ack if op == OP_PUT or op == OP_DELETE or op == OP_MPUT else 0
        head.stamp = self.seen
        memcpy(place + HEADER_BYTES, key, key_bytes)
        if payload is not NULL:
            memcpy(place + HEADER_BYTES + key_bytes, payload, payload_bytes)
        return self.last_request

    cdef uint32_t write_put(self, Buffer out, const char* key, Py_ssize_t key_bytes, object value) except 0:
        """Append a put of a lattice, or of a plain value as an unstamped register."""
        cdef bytes payload
        cdef Py_ssize_t size
        cdef uint32_t request
        cdef char* place
        if isinstance(value, Lattice):
            payload = (<Lattice>value).encode()
            check_size(PyBytes_GET_SIZE(payload), key, key_bytes)
            return self.write_request(out, OP_PUT, value.NUMBER, key, key_bytes, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        payload = encode_value(value)
        size = PyBytes_GET_SIZE(payload)
        check_size(LWW_HEADER_BYTES + size, key, key_bytes)
        request = self.write_request(out, OP_PUT, LWW_NUMBER, key, key_bytes, NULL, LWW_HEADER_BYTES + size)
        place = out.reserve(LWW_HEADER_BYTES + size)
        memset(place, 0, LWW_HEADER_BYTES)
        memcpy(place + LWW_HEADER_BYTES, PyBytes_AS_STRING(payload), size)
        return request

    cdef uint32_t write_conditional_put(self, Buffer out, const char* key, Py_ssize_t key_bytes, object value, object ttl, object if_stamp) except 0:
        """Append a put that expires after `ttl` seconds, or that takes place only while the register has the stamp `if_stamp`; None: not so."""
        cdef uint64_t conditions[2]
        cdef Py_ssize_t size = 0
        cdef int flags = 0
        cdef RequestHeader* head
        cdef bytes state
        if if_stamp is not None:
            if isinstance(value, Lattice) and not isinstance(value, LWW):
                raise TypeError(f"if_stamp compares the stamps of registers; a {type(value).__name__} has none")
            flags |= FLAG_COMPARE
            conditions[0] = if_stamp
            size = 1
        if ttl is not None:
            if not 0 < ttl <= TTL_S_MAX:
                raise ValueError(f"ttl is {ttl} s; it must be more than 0 and at most {TTL_S_MAX:,.0f}")
            flags |= FLAG_EXPIRES
            conditions[size] = max(1, round(ttl * 1e6))
            size += 1
        state = (<Lattice>value).encode() if isinstance(value, Lattice) else bytes(LWW_HEADER_BYTES) + encode_value(value)
        check_size(PyBytes_GET_SIZE(state), key, key_bytes)
        cdef bytes payload = PyBytes_FromStringAndSize(<char*>conditions, 8 * size) + state
        cdef Py_ssize_t begin = out.size
        cdef uint32_t request = self.write_request(out, OP_PUT, value.NUMBER if isinstance(value, Lattice) else LWW_NUMBER, key, key_bytes,
                                                   PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        head = <RequestHeader*>(out.data + begin)
        head.flags |= flags
        return request

    cdef uint32_t write_put_head(self, Buffer out, const char* key, Py_ssize_t key_bytes, bytes value) except 0:
        """Append all of a put of large bytes but the bytes themselves, which the caller sends after it."""
        cdef Py_ssize_t size = LWW_HEADER_BYTES + 1 + PyBytes_GET_SIZE(value)
        check_size(size, key, key_bytes)
        cdef uint32_t request = self.write_request(out, OP_PUT, LWW_NUMBER, key, key_bytes, NULL, size)
        cdef char* place = out.reserve(LWW_HEADER_BYTES + 1)
        memset(place, 0, LWW_HEADER_BYTES)
        place[LWW_HEADER_BYTES] = TAG_BYTES
        return request

    cdef uint32_t write_multi_get(self, Buffer out, list keys, bytes snapshot=None) except 0:
        """Append one multi-get, at an epoch if one is named. Raises BadKey or ValueTooLarge, and appends nothing."""
        cdef Py_ssize_t begin = out.size
        cdef Py_ssize_t size = 0
        cdef const char* data
        cdef uint16_t prefix
        cdef char* place
        check_count(len(keys))
        cdef uint32_t request = self.write_request(out, OP_MGET if snapshot is None else OP_MGET_AT, 0, b"", 0, NULL, 0)
        cdef uint32_t count = <uint32_t>len(keys)
        if snapshot is not None:
            out.append(PyBytes_AS_STRING(snapshot), PyBytes_GET_SIZE(snapshot))
        out.append(<char*>&count, 4)
        try:
            for key in keys:
                data = key_view(key, &size, self.system)
                prefix = <uint16_t>size
                place = out.reserve(2 + size)
                memcpy(place, &prefix, 2)
                memcpy(place + 2, data, size)
        except BaseException:
            out.size = begin
            raise
        (<RequestHeader*>(out.data + begin)).length = <uint32_t>(out.size - begin - LENGTH_BYTES)
        return request

    cdef uint32_t write_multi_put(self, Buffer out, list keys, list values) except 0:
        """Append one multi-put. Raises BadKey, NotSerializable or ValueTooLarge, and appends nothing."""
        cdef Py_ssize_t begin = out.size
        check_count(len(keys))
        cdef uint32_t request = self.write_request(out, OP_MPUT, 0, b"", 0, NULL, 0)
        cdef uint32_t count = <uint32_t>len(keys)
        cdef Py_ssize_t index
        out.append(<char*>&count, 4)
        try:
            for index in range(len(keys)):
                self.write_put_item(out, keys[index], values[index])
            if out.size - begin > <Py_ssize_t>FRAME_MAX:
                raise ValueTooLarge(f"a multi-put of {count:,} keys has {out.size - begin:,} bytes; frame_bytes_max is {FRAME_MAX:,}")
        except BaseException:
            out.size = begin
            raise
        (<RequestHeader*>(out.data + begin)).length = <uint32_t>(out.size - begin - LENGTH_BYTES)
        return request

    def write_put_item(self, Buffer out, key, value):
        """Append one key's part of a multi-put."""
        cdef Py_ssize_t key_size, size
        cdef const char* data = key_view(key, &key_size, self.system)
        cdef bint plain = not isinstance(value, Lattice)
        cdef bytes payload = encode_value(value) if plain else (<Lattice>value).encode()
        cdef char* place
        size = PyBytes_GET_SIZE(payload) + (LWW_HEADER_BYTES if plain else 0)
        check_size(size, data, key_size)
        place = out.reserve(ITEM_HEADER_BYTES + key_size + size)
        (<PutItem*>place)[0] = PutItem(<uint16_t>key_size, LWW_NUMBER if plain else value.NUMBER, 0, <uint32_t>size)
        place += ITEM_HEADER_BYTES
        memcpy(place, data, key_size)
        place += key_size
        if plain:
            memset(place, 0, LWW_HEADER_BYTES)
            place += LWW_HEADER_BYTES
        memcpy(place, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))

    cdef object value_of(self, int type, const char* payload, Py_ssize_t size):
        """Return the plain value of a state. Raises NeedsPickle or ProtocolError."""
        if type == LWW_NUMBER:
            if size < LWW_HEADER_BYTES:
                raise ProtocolError(f"a register's state has {size} bytes, fewer than {LWW_HEADER_BYTES}")
            if size == LWW_HEADER_BYTES:
                return None
            return decode_buffer(payload + LWW_HEADER_BYTES, size - LWW_HEADER_BYTES, self.allow_pickle)
        return (<Lattice>self.lattice_of(type, payload, size)).read(self.allow_pickle)

    cdef object lattice_of(self, int type, const char* payload, Py_ssize_t size):
        """Return the state itself. Raises NotSupported or ProtocolError."""
        kind = REGISTRY.get(type)
        if kind is None:
            raise NotSupported(f"lattice type {type} is not known to this client")
        if type == LWW_NUMBER and size > LWW_HEADER_BYTES and payload[LWW_HEADER_BYTES] == TAG_ELSEWHERE:
            return kind.decode(payload[:LWW_HEADER_BYTES] + whole_value(payload + LWW_HEADER_BYTES, size - LWW_HEADER_BYTES))
        return kind.decode(PyBytes_FromStringAndSize(payload, size))

    cdef object error(self, int status, const char* payload, Py_ssize_t size):
        """Return the exception that an answer stands for."""
        return error_of(status, PyUnicode_DecodeUTF8(payload, size, "replace"))

    cdef list read_multi_get(self, const char* payload, Py_ssize_t size, list keys, object default, list misplaced, bint lattices=False):
        """Return the values of a multi-get's answer, or its states, `default` for the missing; the indexes of those that another worker must be asked for go to `misplaced`."""
        cdef const char* end = payload + size
        cdef ReplyItem item
        cdef Py_ssize_t index
        cdef list values = []
        cdef uint32_t count
        if size < 4:
            raise ProtocolError("a multi-get's answer has no count")
        memcpy(&count, payload, 4)
        payload += 4
        if count != len(keys):
            raise ProtocolError(f"{len(keys)} keys were asked for, {count} answered")
        for index in range(count):
            if end - payload < ITEM_HEADER_BYTES:
                raise ProtocolError(f"a multi-get's answer ends within key {index}")
            memcpy(&item, payload, ITEM_HEADER_BYTES)
            payload += ITEM_HEADER_BYTES
            if end - payload < <Py_ssize_t>item.payload_bytes:
                raise ProtocolError(f"a multi-get's answer ends within key {index}")
            if item.status == STATUS_OK:
                values.append(self.lattice_of(item.type, payload, item.payload_bytes) if lattices else
                              self.value_of(item.type, payload, item.payload_bytes))
            else:
                values.append(default)
                if item.status == STATUS_WRONG_WORKER or item.status == STATUS_STALE:
                    misplaced.append(index)
                elif item.status != STATUS_MISSING:
                    raise self.error(item.status, payload, item.payload_bytes)
            payload += item.payload_bytes
        return values

    # What the asyncio client and the tests use: whole frames as bytes, answers as tuples.

    def request(self, int op, key=b"", bytes payload=b"", int type=0, strict=0, ack=None):
        """Return (id, frame) of one request; `strict`: only from a worker that is current up to this stamp."""
        cdef Buffer out = Buffer()
        cdef bytes name = b"" if op >= OP_MGET and not key else key_bytes(key, self.system)
        cdef uint32_t request = self.write_request(out, op, type, PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        return request, finished(out, strict, ack)

    def scan_request(self, bytes begin, bytes cursor, uint32_t limit):
        """Return (id, frame) of a page of a scan: at most `limit` keys with the beginning `begin`, after the key `cursor`."""
        cdef Buffer out = Buffer()
        cdef bytes payload = PyBytes_FromStringAndSize(<char*>&limit, 4) + cursor
        if PyBytes_GET_SIZE(begin) > <Py_ssize_t>KEY_MAX:
            raise BadKey(f"a key has at most {KEY_MAX:,} bytes; its beginning has {len(begin):,}")
        cdef uint32_t request = self.write_request(out, OP_SCAN, 0, PyBytes_AS_STRING(begin), PyBytes_GET_SIZE(begin), PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        return request, finished(out, 0, None)

    def replicate_request(self, keys, int memory, int disk, bint default):
        """Return (id, frame) of a request to give keys a replication vector, or the default again. Raises BadKey, ValueError."""
        names = [key_bytes(key, self.system) for key in keys]
        if not names:
            raise ValueError("no key was named")
        vector = Vector(memory, disk)
        if default == (vector != DEFAULT):
            raise ValueError("a key has at least one copy, in memory or on disk, or as many as the default says")
        return self.request(OP_REPLICATE, b"", change_to_wire(names, vector))

    def put_request(self, key, value, ack=None, ttl=None, if_stamp=None):
        """Return (id, frame) of a put."""
        cdef Buffer out = Buffer()
        cdef Py_ssize_t size
        cdef const char* data = key_view(key, &size, self.system)
        cdef uint32_t request
        if ttl is None and if_stamp is None:
            request = self.write_put(out, data, size, value)
        else:
            request = self.write_conditional_put(out, data, size, value, ttl, if_stamp)
        return request, finished(out, 0, ack)

    def write_of(self, key, value):
        """Return what a transaction writes to `key`: (key, type, encoded state). Raises BadKey, NotSerializable or ValueTooLarge."""
        cdef bytes name = key_bytes(key, self.system)
        cdef bint plain = not isinstance(value, Lattice)
        cdef bytes state = bytes(LWW_HEADER_BYTES) + encode_value(value) if plain else (<Lattice>value).encode()
        check_size(PyBytes_GET_SIZE(state), PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        return name, LWW_NUMBER if plain else value.NUMBER, state

    def transaction_request(self, int op, bytes payload, ack=None):
        """Return (id, frame) of what a transaction's owner is asked; like a write, it asks for this client's acknowledgement or another."""
        cdef Buffer out = Buffer()
        cdef uint32_t request = self.write_request(out, op, 0, b"", 0, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        (<RequestHeader*>out.data).ack = <uint16_t>(self.ack if ack is None else <int>ack_number(ack))
        return request, PyBytes_FromStringAndSize(out.data, out.size)

    def announcement(self, int op, bytes payload):
        """Return the frame of what is told to an owner that does not answer it."""
        cdef Buffer out = Buffer()
        self.write_request(out, op, 0, b"", 0, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        (<RequestHeader*>out.data).request = 0
        return PyBytes_FromStringAndSize(out.data, out.size)

    def multi_get_request(self, list keys, strict=0):
        """Return (id, frame) of a multi-get."""
        cdef Buffer out = Buffer()
        cdef uint32_t request = self.write_multi_get(out, keys)
        return request, finished(out, strict, None)

    def multi_put_request(self, list keys, list values, ack=None):
        """Return (id, frame) of a multi-put."""
        cdef Buffer out = Buffer()
        cdef uint32_t request = self.write_multi_put(out, keys, values)
        return request, finished(out, 0, ack)

    def decode(self, int type, bytes payload):
        """Return the plain value of a state."""
        return self.value_of(type, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))

    def decode_lattice(self, int type, bytes payload):
        """Return a state."""
        return self.lattice_of(type, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))

    def decode_multi_get(self, bytes payload, list keys, default):
        """Return (values, indexes of the keys that another worker must be asked for)."""
        cdef list misplaced = []
        values = self.read_multi_get(PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), keys, default, misplaced)
        return values, misplaced

    def failure(self, int status, bytes payload):
        """Return the exception that an answer with `status` stands for."""
        return self.error(status, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))


@cython.final
cdef class Replies:
    """Splits a stream of bytes into answers. `stable`: the low 32 bits of the latest stable epoch that they told, or 0."""

    def __init__(self):
        self.pending = Buffer()
        self.stable = 0

    def feed(self, bytes data):
        """Return [(id, status, type, flags, stamp, payload), …] that are complete now. Raises ProtocolError."""
        cdef list answers = []
        cdef Py_ssize_t begin = 0
        cdef Py_ssize_t total
        cdef ReplyHeader head
        self.pending.append(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        while self.pending.size - begin >= HEADER_BYTES:
            memcpy(&head, self.pending.data + begin, HEADER_BYTES)
            total = check_reply(&head)
            if self.pending.size - begin < total:
                break
            if head.stable:
                self.stable = head.stable
            answers.append((head.request, head.status, head.type, head.flags, head.stamp,
                            PyBytes_FromStringAndSize(self.pending.data + begin + HEADER_BYTES, total - HEADER_BYTES)))
            begin += total
        if begin:
            rest = PyBytes_FromStringAndSize(self.pending.data + begin, self.pending.size - begin)
            self.pending.shrink()
            self.pending.append(PyBytes_AS_STRING(rest), PyBytes_GET_SIZE(rest))
        return answers


cdef bytes finished(Buffer out, strict, ack):
    """Return the frame in `out`, with what only some requests say."""
    mark(<RequestHeader*>out.data, strict, 0 if ack is None else ack_number(ack))
    return PyBytes_FromStringAndSize(out.data, out.size)


cdef int mark(RequestHeader* head, uint64_t strict, int ack) except -1:
    """Let a read be strict up to the stamp `strict`, or a write ask for `ack`; 0: as it is."""
    if strict:
        head.flags |= FLAG_STRICT
        head.stamp = strict
    if ack:
        head.ack = <uint16_t>ack
    return 0


cdef Py_ssize_t check_reply(ReplyHeader* head) except -1:
    """Return a reply's whole length. Raises ProtocolError."""
    cdef Py_ssize_t total = LENGTH_BYTES + <Py_ssize_t>head.length
    if head.version != PROTOCOL_VERSION:
        raise ProtocolError(f"an answer has protocol version {head.version}; this client speaks {PROTOCOL_VERSION}")
    if total < HEADER_BYTES:
        raise ProtocolError(f"an answer says that it has {total} bytes; a header alone has {HEADER_BYTES}")
    return total


cdef int check_size(Py_ssize_t size, const char* key, Py_ssize_t key_size) except -1:
    if size > <Py_ssize_t>VALUE_MAX:
        name = PyUnicode_DecodeUTF8(key, key_size, "backslashreplace")
        raise ValueTooLarge(f"value of {name!r} has {size:,} bytes; value_bytes_max is {VALUE_MAX:,}")
    return 0


cdef int check_count(Py_ssize_t count) except -1:
    if count > <Py_ssize_t>BATCH_MAX:
        raise ValueTooLarge(f"a batch has {count:,} keys; batch_keys_max is {BATCH_MAX:,}")
    return 0
