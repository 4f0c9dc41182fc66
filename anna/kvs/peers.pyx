"""The other workers as one worker knows them: who they are, the links to them, and the messages that wait to be sent.

The one rule: what is for another worker is put down here, and whoever drives the worker sends it; it may be lost. A peer's message is a request
frame with the operation PEER, its kind as the type, and a payload that begins with the sender's and the receiver's worker ids. Kinds: 1 a link's
frame; 2 a heartbeat; 3 a closing (`anna.kvs.closings`).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t

from anna.kvs.clock cimport Clock
from anna.kvs.store cimport Store
from anna.routing.hash cimport hash64
from anna.routing.placement cimport SPAN_ROOM
from anna.wire cimport FLAG_SYSTEM, HEADER_BYTES, LENGTH_BYTES, OP_PEER, PROTOCOL_VERSION, RequestHeader

import struct

cdef enum:
    # Fragments up to this size are copied behind their header; larger ones are handed to the driver as they are.
    COPIED_BYTES_MAX = 4096

_PEERS = struct.Struct("<QQ")


cdef class Peers:
    """The peers of the worker `mine`: `ids` of all workers of the view, and one link to each but itself."""

    def __init__(self, uint64_t mine, Store store, Clock clock):
        self.mine = mine
        self.store = store
        self.clock = clock
        self.ids = ()
        self.links = {}
        self.sessions = {}
        self.outbox = []
        self.epoch = clock.epoch()

    def peers_of(self, bytes key):
        """Return the ids of the other workers that a write to `key` goes to."""
        cdef int owners[SPAN_ROOM]
        cdef int count = self.placement.span_at(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), owners)
        return tuple([self.ids[owners[index]] for index in range(count) if owners[index] != self.place])

    cdef tuple apart(self, tuple peers, int count):
        """Return those of `peers` that are on other nodes, if they are at least `count`; else all. A node dies as a whole."""
        if not self.siblings:
            return peers
        cdef tuple others = tuple([peer for peer in peers if peer not in self.siblings])
        return others if len(others) >= count else peers

    def knows(self, bytes payload):
        """Whether a message is from a worker of the view, and for this one."""
        sender, receiver = _PEERS.unpack_from(payload)
        return receiver == self.mine and sender in self.links

    def post(self, int kind, target, bytes rest):
        """Put one message to a worker, or to whoever listens at an address, where `outgoing` finds it."""
        self.put_down(kind, target, _PEERS.pack(self.mine, 0 if isinstance(target, str) else target) + rest, b"")

    cdef int put_down(self, int kind, target, bytes payload, bytes fragment) except -1:
        """Put one message where `outgoing` finds it. A large fragment is handed on as the object that it is."""
        cdef RequestHeader head
        cdef bytes begin
        head.length = <uint32_t>(HEADER_BYTES - LENGTH_BYTES + PyBytes_GET_SIZE(payload) + PyBytes_GET_SIZE(fragment))
        head.version = PROTOCOL_VERSION
        head.op = OP_PEER
        head.type = kind
        head.flags = FLAG_SYSTEM
        head.request = 0
        head.key_bytes = 0
        head.ack = 0
        head.stamp = self.clock.reading()
        begin = PyBytes_FromStringAndSize(<char*>&head, HEADER_BYTES) + payload
        self.outbox.append((target, begin + fragment if PyBytes_GET_SIZE(fragment) <= COPIED_BYTES_MAX else [begin, fragment]))
        return 0

    def outgoing(self, int64_t now):
        """Return [(worker id, frame)] to be sent now; a frame is bytes, or a list of bytes to be sent one after the other."""
        for peer, link in self.links.items():
            for head, fragment in link.poll(now):
                self.put_down(KIND_LINK, peer, head, fragment)
        outbox = self.outbox
        self.outbox = []
        return outbox

    def link_due(self):
        """Return when (monotonic ns) a link has something to send again; None when none has."""
        return min([due for link in self.links.values() if (due := link.due()) is not None], default=None)
