"""Requests under way to the store's workers, and which of them is asked.

The one rule: owners are named by their worker ids, which are never used again. A key is asked of the first of its owners that is connected, for every
owner takes reads and writes. What has not been sent to one that is gone goes to the next; what was sent is lost, and whoever sent it says (`lose`) whether
it may be asked again. An answer of WRONG_WORKER is nobody's: it is a newer view, or a pause.

All that one owner says arrives on one stream: the answers in the order of the requests, and between them what it says unasked.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

cimport cython

from anna.kvs.clock cimport Clock
from anna.requests cimport Replies
from anna.routing.placement cimport Placement
from anna.wire cimport *
from cloudburst.cache.order cimport Order, Slot

import msgpack

from anna.messages import View


@cython.final
cdef class Flight:
    """One request under way to an owner, and what its answer is for."""


cdef class Flights(Order):
    """A core that asks owners. `hear` takes what they say; `outgoing` is what is to be sent to them."""

    def __init__(self, view, owners, Clock clock):
        super().__init__(view, 0, clock)
        self.flights = {}
        self.outboxes = {}
        self.last_flight = 0
        self.owners = owners
        self.owner_placement = Placement(owners)
        self.hearing = {}
        self.held = []

    # -- towards owners

    cdef Flight send(self, int op, int type, int flags, bytes key, bytes payload, int ack=0):
        """Queue one request to the owner of `key`."""
        cdef Flight flight = Flight.__new__(Flight)
        flight.op = op
        flight.key = key
        flight.type = type
        flight.flags = flags
        flight.written = payload
        flight.frame = request_frame(op, type, flags, key, payload, ack)
        self.route(flight)
        return flight

    cdef Flight send_to(self, uint64_t owner, int op, bytes key, bytes payload, int ack=0):
        """Queue one request to this owner and no other."""
        cdef Flight flight = Flight.__new__(Flight)
        flight.owner, flight.bound = owner, True
        flight.op = op
        flight.key = key
        flight.written = payload
        flight.frame = request_frame(op, 0, FLAG_SYSTEM, key, payload, ack)
        self.route(flight)
        return flight

    cdef uint64_t owner_of(self, bytes key) except? 0:
        """Return the first owner of `key` that is connected, or the first of all when none is."""
        cdef int first = self.owner_placement.owner(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        workers = self.owners.workers
        cdef uint64_t owner
        if first < 0:
            return 0
        owner = workers[first].worker_id
        if owner in self.hearing:
            return owner
        for place in self.owner_placement.owners_of(key):
            if workers[place].worker_id in self.hearing:
                return workers[place].worker_id
        return owner

    cdef uint64_t choose(self, Flight flight) except? 0:
        """Return the owner that is asked."""
        return self.owner_of(flight.key)

    cdef int route(self, Flight flight) except -1:
        """Give a flight a new id and put its frame where its owner's stream is fed from."""
        cdef RequestHeader* head = <RequestHeader*>PyBytes_AS_STRING(flight.frame)
        if not flight.bound:
            flight.owner = self.choose(flight)
        self.last_flight = (self.last_flight % 0xFFFFFFF0) + 1
        head.request = self.last_flight
        head.stamp = self.clock.last
        self.flights[self.last_flight] = flight
        self.outboxes.setdefault(flight.owner, []).append(self.last_flight)
        return 0

    cdef bint due(self) except -1:
        """Whether `outgoing` has something for an owner that is connected."""
        for owner in self.outboxes:
            if owner in self.hearing:
                return True
        return False

    def outgoing(self):
        """Return [(worker id of an owner, [frames])] to be sent now; what is for an owner that is not connected stays."""
        ready = []
        for owner in sorted(self.outboxes):
            if owner in self.hearing:
                ready.append((owner, [(<Flight>self.flights[request]).frame for request in self.outboxes.pop(owner)]))
        return ready

    @property
    def owner_view(self):
        """The owners as this cache knows them."""
        return self.owners

    def owner_up(self, uint64_t owner):
        """The stream to this owner is open."""
        self.hearing[owner] = Replies()
        for other in [other for other in self.outboxes if other not in self.hearing]:
            self.reroute(other)

    def owner_down(self, uint64_t owner):
        """The stream to this owner has ended: nothing that it pushed is known to be current. Returns answers as `hear` does.

        Reads that wait are asked of another owner, or again when one is back; writes that were sent may have happened, and are answered so.
        """
        cdef Flight flight
        self.hearing.pop(owner, None)
        self.forget_owner(owner)
        self.reroute(owner)
        unsent = set(self.outboxes.get(owner, ()))
        finished = []
        for request in [request for request, flight in self.flights.items() if flight.owner == owner]:
            if request not in unsent:
                self.lose(self.flights.pop(request), finished)
        return self.release(finished)

    cdef int reroute(self, uint64_t owner) except -1:
        """Give what has not been sent to an owner to those who are its keys' owners now."""
        cdef Flight flight
        for request in self.outboxes.pop(owner, ()):
            flight = <Flight>self.flights[request]
            if flight.bound and owner not in self.hearing:
                continue  # sent or not, it is lost
            del self.flights[request]
            self.route(flight)
        return 0

    def adopt_owners(self, view):
        """Take up a newer view of the owners: all that is cached is forgotten, for it may have moved."""
        if view.version <= self.owners.version:
            return
        self.owners = view
        self.owner_placement = Placement(view)
        self.forget_all()
        for owner in list(self.outboxes):
            self.reroute(owner)

    @property
    def holds(self):
        """Whether requests are kept back that an owner did not take, for `retry`."""
        return bool(self.held)

    def retry(self, int64_t monotonic_ns):
        """Ask again what an owner could not answer: it does not know yet what others do, or has heard of a change that this cache has not. Returns answers as `hear` does."""
        cdef Flight flight
        finished = []
        self.now = monotonic_ns
        held, self.held = self.held, []
        for flight in held:
            if flight.bound and flight.owner not in self.hearing:
                self.lose(flight, finished)
            else:
                self.route(flight)
        return self.release(finished)

    # -- from owners

    def hear(self, uint64_t owner, bytes data, int64_t monotonic_ns):
        """Take bytes from an owner; return [(connection, bytes or list of bytes), …] to be sent. Raises ProtocolError."""
        cdef list finished = []
        self.clock.advance(monotonic_ns // 1000)
        self.now = monotonic_ns
        for request, status, kind, flags, stamp, payload in self.hearing[owner].feed(data):
            self.clock.observe(stamp)
            if request:
                self.answered(owner, request, status, kind, flags, stamp, payload, finished)
            elif flags == OP_PUSH and status == STATUS_WRONG_WORKER:
                self.forget_owner(owner)
                self.adopt_owners(View.from_wire(msgpack.unpackb(payload)))
            else:
                self.hear_push(owner, flags, status, kind, payload, finished)
        return self.release(finished)

    cdef int answered(self, uint64_t owner, object request, int status, int kind, int flags, uint64_t stamp, bytes payload,
                      list finished) except -1:
        cdef Flight flight = self.flights.pop(request, None)
        if flight is None:
            return 0
        if status == STATUS_WRONG_WORKER and not flight.bound:
            self.adopt_owners(View.from_wire(msgpack.unpackb(payload)))
            if self.owner_of(flight.key) == owner:
                self.held.append(flight)
                return 0
            return self.route(flight)
        return self.land(flight, owner, status, kind, flags, stamp, payload, finished)

    cdef int land(self, Flight flight, uint64_t owner, int status, int kind, int flags, uint64_t stamp, bytes payload, list finished) except -1:
        """An owner has answered a request."""
        raise NotImplementedError

    cdef int lose(self, Flight flight, list finished) except -1:
        """The stream to the owner has ended before it answered a request."""
        raise NotImplementedError

    cdef int hear_push(self, uint64_t owner, int flags, int status, int kind, bytes payload, list finished) except -1:
        """An owner says something unasked; `flags` are the operation."""
        raise NotImplementedError

    cdef int forget_owner(self, uint64_t owner) except -1:
        """Forget what this owner pushed."""
        raise NotImplementedError

    def forget_all(self):
        """Forget what all owners pushed."""
        raise NotImplementedError

    def check(self):
        """Assert the invariants of what is under way."""
        super().check()
        for owner, requests in self.outboxes.items():
            assert all((<Flight>self.flights[request]).owner == owner for request in requests), "a request waits for another owner"


cdef bytes request_frame(int op, int type, int flags, bytes key, bytes payload, int ack):
    """Return a request frame whose id and stamp are still to be filled in."""
    cdef RequestHeader head
    head.length = <uint32_t>(HEADER_BYTES - LENGTH_BYTES + PyBytes_GET_SIZE(key) + PyBytes_GET_SIZE(payload))
    head.version = PROTOCOL_VERSION
    head.op = op
    head.type = type
    head.flags = flags
    head.request = 0
    head.key_bytes = <uint16_t>PyBytes_GET_SIZE(key)
    head.ack = <uint16_t>ack
    head.stamp = 0
    return PyBytes_FromStringAndSize(<char*>&head, HEADER_BYTES) + key + payload
