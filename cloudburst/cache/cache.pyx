"""A node's cache: the store's protocol towards the node's executors, answered from the node's memory.

The one rule: a cached key is one that its owner pushes. The first read of a key subscribes to it at its owner and is answered with what
the subscription answers; from then on reads are local, and the owner pushes each change within an epoch. Absence is cached the same
way. Writes go to the owner and are acknowledged by it; what they mean is joined in here at once where that needs nothing but the
write itself, so that a node reads its own writes. A large value that this node writes is kept, too: the subscription says what the cache
has, and is answered without the value when that is what the owner has. All that one owner says arrives in order on one stream, so the newest word is the
owner's state. Source: DESIGN §4 (caches), §6; level `eventual`.

Owners come and go. They are named by their worker ids, which are never used again; a key is asked of the first of its owners that is
connected, for every owner takes reads and writes. What was asked of one that is gone is asked of the next, but for writes, which may have
happened. When the view changes, all that is kept is forgotten, for it may have moved.

Like a worker, it is a core without sockets. Executors' bytes go to `receive`, owners' bytes to `hear`; `outgoing` is what is to be
sent to the owners. Answers keep the order of their requests on each connection, so a request that waits for an owner holds back those behind it.

A large value is not kept here but in memory that executors can map: a `keeper` puts its bytes there, and what is kept, and answered with, is a register of
the same stamp that says where they are. They never change: another state of the key is other bytes.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cimport cython

from anna.buffer cimport Buffer
from anna.kvs.clock cimport Clock
from anna.kvs.answers cimport Connection
from anna.kvs.batches cimport batch_count, check_put_items
from anna.kvs.worker cimport Worker
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.requests cimport Replies
from anna.routing.placement cimport Placement
from anna.wire cimport *

from collections import deque
from itertools import islice

import msgpack

from anna.errors import AnnaError, NotSupported, ProtocolError
from anna.lattices import REGISTRY
from anna.messages import View


@cython.final
cdef class Slot:
    """The place of one answer in its connection's order: whole when nothing is missing."""

    cdef Connection connection
    cdef RequestHeader head
    cdef bytes key
    cdef list items
    cdef list failures
    cdef Py_ssize_t missing
    cdef object answer


@cython.final
cdef class Flight:
    """One request under way to an owner, and what its answer is for."""

    cdef uint64_t owner
    cdef int op
    cdef bytes key
    cdef bytes frame
    cdef Slot slot
    cdef Py_ssize_t index
    cdef int type
    cdef int flags
    cdef bytes written
    cdef LWW known
    cdef list waiters


cdef enum:
    TAG_ELSEWHERE = 10
    PUT_FLAG_BYTES = 8  # what each of a put's flags puts before the state


cdef class Cache(Worker):
    """The cache of one node. `view` is what executors are told (the cache alone), `owners` the store's own.

    At most `bytes_max` bytes of keys and states are kept, and `shared_bytes_max` by the keeper; beyond them the keys that were not read lately are given
    up, oldest first. `keeper.keep(value, former)` returns where it has put an encoded value of `keeper.bytes_min` or more, in place of one that was at `former`
    (or None), or None when it has no room; `keeper.drop(where)` is told when it is needed no more.
    """

    cdef object owners
    cdef Placement owner_placement
    cdef dict queues
    cdef dict subscribed
    cdef set absent
    cdef set touched
    cdef dict waiting
    cdef dict writing
    cdef dict flights
    cdef dict outboxes
    cdef dict hearing
    cdef list held
    cdef Slot parked
    cdef uint32_t last_flight
    cdef readonly Py_ssize_t bytes_max
    cdef readonly uint64_t hits
    cdef readonly uint64_t misses
    cdef readonly uint64_t pushed
    cdef readonly uint64_t evicted
    cdef readonly uint64_t offered
    cdef object keeper
    cdef dict shared
    cdef Py_ssize_t shared_bytes_min
    cdef readonly Py_ssize_t shared_bytes
    cdef readonly Py_ssize_t shared_bytes_max

    def __init__(self, view, owners, Clock clock, Py_ssize_t bytes_max, keeper=None, Py_ssize_t shared_bytes_max=0):
        super().__init__(view, 0, clock)
        self.bytes_max = bytes_max
        self.keeper = keeper
        self.shared_bytes_min = 0 if keeper is None else keeper.bytes_min
        self.shared = {}
        self.shared_bytes = 0
        self.shared_bytes_max = shared_bytes_max
        self.queues = {}
        self.waiting = {}
        self.writing = {}
        self.flights = {}
        self.outboxes = {}
        self.last_flight = 0
        self.forget_all()
        self.owners = owners
        self.owner_placement = Placement(owners)
        self.hearing = {}
        self.held = []

    def take_part(self, tuple seeds, str cluster):
        """A cache owns nothing: it has no replicas and closes no epochs."""

    # -- towards executors

    cdef int handle(self, Connection connection, const char* frame, Py_ssize_t size) except -1:
        cdef Buffer out = self.out
        cdef list chunks = self.chunks
        cdef Slot slot
        queue = self.queues.get(connection)
        if queue is None:
            queue = self.queues[connection] = deque()
        self.parked = None
        if not queue:
            Worker.handle(self, connection, frame, size)
            if self.parked is not None:
                self.parked.connection = connection
                queue.append(self.parked)
            return 0
        # Something ahead on this connection still waits: this answer is kept behind it.
        self.out, self.chunks = Buffer(), []
        try:
            Worker.handle(self, connection, frame, size)
            slot = self.parked
            if slot is None:
                slot = Slot.__new__(Slot)
                slot.answer = self.take()
            slot.connection = connection
            queue.append(slot)
        finally:
            self.out, self.chunks = out, chunks
        return 0

    cdef Slot park(self, RequestHeader* head):
        """Begin an answer that has to wait."""
        cdef Slot slot = Slot.__new__(Slot)
        slot.head = head[0]
        slot.answer = None
        self.parked = slot
        return slot

    cdef int get(self, RequestHeader* head, const char* key) except -1:
        cdef bytes name = PyBytes_FromStringAndSize(key, head.key_bytes)
        cdef Slot slot
        if self.current(name):
            self.hits += 1
            self.touched.add(name)
            return Worker.get(self, head, key)
        self.misses += 1
        slot = self.park(head)
        slot.key = name
        slot.missing = 1
        self.want(name, slot, 0)
        return 0

    cdef int multi_get(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        cdef list names = read_keys(payload, size)
        cdef bytes name
        cdef Slot slot
        cdef Py_ssize_t index
        for name in names:
            self.check_key(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), head.flags)
        wanting = [name for name in names if not self.current(name)]
        self.hits += len(names) - len(wanting)
        self.misses += len(wanting)
        self.touched.update(names)
        if not wanting:
            return Worker.multi_get(self, head, payload, size)
        slot = self.park(head)
        slot.items = [None] * len(names)
        slot.missing = len(wanting)
        for index, name in enumerate(names):
            if not self.current(name):
                self.want(name, slot, index)
            else:
                slot.items[index] = self.item(name)
        return 0

    cdef int put(self, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1:
        cdef Slot slot = self.park(head)
        slot.missing = 1
        self.puts += 1
        self.send(OP_PUT, head.type, head.flags, PyBytes_FromStringAndSize(key, head.key_bytes), payload[:size], slot, 0)
        return 0

    cdef int put_bulk(self, RequestHeader* head, const char* key, uint64_t* place, bytes bulk) except -1:
        cdef Slot slot = self.park(head)
        cdef bytes stamped = PyBytes_FromStringAndSize(<char*>place, LWW_HEADER_BYTES)
        slot.missing = 1
        self.puts += 1
        self.send(OP_PUT, LWW_NUMBER, head.flags, PyBytes_FromStringAndSize(key, head.key_bytes), stamped + bulk, slot, 0)
        return 0

    cdef const char* fill_bulk(self, Connection connection, const char* data, Py_ssize_t* size) except NULL:
        """A large put is forwarded as any other; its answer has its place in the order too."""
        cdef const char* rest
        cdef Slot slot
        queue = self.queues.setdefault(connection, deque())
        cdef Buffer out = self.out
        cdef list chunks = self.chunks
        self.parked = None
        self.out, self.chunks = Buffer(), []
        try:
            rest = Worker.fill_bulk(self, connection, data, size)
            slot = self.parked
            answered = self.take()
        finally:
            self.out, self.chunks = out, chunks
        if slot is None and answered:
            slot = Slot.__new__(Slot)
            slot.answer = answered
        if slot is not None:
            slot.connection = connection
            queue.append(slot)
        return rest

    cdef int delete(self, RequestHeader* head, const char* key) except -1:
        cdef Slot slot = self.park(head)
        slot.missing = 1
        self.deletes += 1
        self.send(OP_DELETE, 0, head.flags, PyBytes_FromStringAndSize(key, head.key_bytes), b"", slot, 0)
        return 0

    cdef int multi_put(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        cdef uint32_t count = batch_count(payload, size)
        cdef const char* end = payload + size
        cdef const char* place = payload + 4
        cdef PutItem item
        cdef uint32_t index
        cdef Slot slot
        check_put_items(place, end, count, head.flags)
        if not count:
            self.reply(head, STATUS_OK, 0, 0)
            return 0
        slot = self.park(head)
        slot.missing = count
        slot.failures = []
        for index in range(count):
            memcpy(&item, place, ITEM_HEADER_BYTES)
            place += ITEM_HEADER_BYTES
            self.puts += 1
            self.send(OP_PUT, item.type, head.flags, PyBytes_FromStringAndSize(place, item.key_bytes),
                      (place + item.key_bytes)[:item.payload_bytes], slot, index)
            place += item.key_bytes + item.payload_bytes
        return 0

    cdef int change_subscription(self, Connection connection, RequestHeader* head, const char* key, const char* payload,
                                 Py_ssize_t size) except -1:
        raise NotSupported("a node's cache takes no subscriptions; subscribe at the owner")

    def leave(self, Connection connection):
        self.queues.pop(connection, None)

    # -- towards owners

    cdef bint current(self, bytes name) except -1:
        """Whether `name` can be answered from here: its owner pushes it, and no write or read of this node to it is under way.

        A read under way will be answered with the owner's word of a later moment; one that comes after it may not be answered with an earlier.
        """
        return name in self.subscribed and name not in self.writing and name not in self.waiting

    cdef int want(self, bytes name, Slot slot, Py_ssize_t index) except -1:
        """Let `slot` wait for `name`, and subscribe to it unless that is under way since the last write to it."""
        cdef Flight flight = self.waiting.get(name)
        if flight is None:
            flight = self.waiting[name] = self.send(OP_SUBSCRIBE, 0, FLAG_SYSTEM, name, b"", None, 0)
            flight.waiters = []
        flight.waiters.append((slot, index))
        return 0

    cdef Flight send(self, int op, int type, int flags, bytes key, bytes payload, Slot slot, Py_ssize_t index):
        """Queue one request to the owner of `key`."""
        cdef Flight flight = Flight.__new__(Flight)
        flight.op = op
        flight.key = key
        flight.slot = slot
        flight.index = index
        flight.type = type
        flight.flags = flags
        flight.written = payload
        flight.frame = request_frame(op, type, flags, key, payload)
        if slot is not None:
            # A read that comes after this write on the owner's stream sees it; one that is under way already may not.
            self.waiting.pop(key, None)
            self.writing[key] = self.writing.get(key, 0) + 1
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

    cdef int route(self, Flight flight) except -1:
        """Give a flight a new id and put its frame where its owner's stream is fed from."""
        cdef RequestHeader* head = <RequestHeader*>PyBytes_AS_STRING(flight.frame)
        flight.owner = self.owner_of(flight.key)
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
            if request in unsent:
                continue
            flight = self.flights.pop(request)
            if flight.op == OP_SUBSCRIBE:
                self.route(flight)
            elif flight.slot is not None:
                self.settle(flight, STATUS_LOST, b"the connection to the key's owner ended before it answered", 0, finished)
        return self.release(finished)

    cdef int reroute(self, uint64_t owner) except -1:
        """Give what has not been sent to an owner to those who are its keys' owners now."""
        for request in self.outboxes.pop(owner, ()):
            self.route(self.flights.pop(request))
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

    def retry(self):
        """Ask again what an owner did not take that this cache takes for one: one of the two has heard of a change that the other has not."""
        held, self.held = self.held, []
        for flight in held:
            self.route(flight)

    def hear(self, uint64_t owner, bytes data, int64_t monotonic_ns):
        """Take bytes from an owner; return [(connection, bytes or list of bytes), …] to be sent. Raises ProtocolError."""
        cdef list finished = []
        self.clock.advance(monotonic_ns // 1000)
        for request, status, kind, flags, stamp, payload in self.hearing[owner].feed(data):
            self.clock.observe(stamp)
            if request:
                self.answered(owner, request, status, kind, stamp, payload, finished)
            elif flags == OP_PUSH and status == STATUS_WRONG_WORKER:
                self.forget_owner(owner)
                self.adopt_owners(View.from_wire(msgpack.unpackb(payload)))
            elif flags == OP_PUSH:
                self.take_push(owner, status, kind, payload)
        return self.release(finished)

    cdef int answered(self, uint64_t owner, object request, int status, int kind, uint64_t stamp, bytes payload,
                      list finished) except -1:
        cdef Flight flight = self.flights.pop(request, None)
        if flight is None:
            return 0
        if status == STATUS_WRONG_WORKER:
            self.adopt_owners(View.from_wire(msgpack.unpackb(payload)))
            if self.owner_of(flight.key) == owner:
                self.held.append(flight)
                return 0
            return self.route(flight)
        if flight.op == OP_SUBSCRIBE:
            return self.arrive(flight, owner, status, kind, payload, finished)
        if flight.slot is None:
            return 0
        if status == STATUS_OK and flight.op == OP_PUT:
            self.join_own(flight, stamp)
        elif flight.op == OP_DELETE and status <= STATUS_MISSING and flight.key in self.subscribed:
            self.store.remove(flight.key)
            self.unshare(flight.key)
            self.absent.add(flight.key)
        return self.settle(flight, status, payload, stamp, finished)

    cdef int arrive(self, Flight flight, uint64_t owner, int status, int kind, bytes payload, list finished) except -1:
        """A subscription's answer: keep what it says and give it to all who wait."""
        cdef Slot slot
        cdef bytes name = flight.key
        if self.waiting.get(name) is flight:
            del self.waiting[name]
        if status <= STATUS_MISSING:
            self.subscribed[name] = owner
            self.touched.add(name)
            if status == STATUS_OK and kind == 0 and flight.known is not None:
                self.absent.discard(name)
                self.store.remove(name)
                self.store.write(name, self.share(name, flight.known))
            else:
                self.replace(name, status, kind, payload)
        for slot, index in flight.waiters:
            if slot.items is None:
                slot.answer = self.answer_get(slot) if status <= STATUS_MISSING else self.relay(slot, status, payload)
            elif status <= STATUS_MISSING:
                slot.items[index] = self.item(name)
            else:
                slot.failures = [[index, status, payload.decode("utf-8", "replace")]]
            self.count_down(slot, finished)
        self.evict()
        return 0

    cdef int settle(self, Flight flight, int status, bytes payload, uint64_t stamp, list finished) except -1:
        """A write's answer: relay it, or add it to its batch's."""
        cdef Slot slot = flight.slot
        self.writing[flight.key] -= 1
        if not self.writing[flight.key]:
            del self.writing[flight.key]
        if slot.failures is None:
            slot.answer = self.relay(slot, status, payload)
        elif status != STATUS_OK:
            slot.failures.append([flight.index, status, payload.decode("utf-8", "replace")])
        return self.count_down(slot, finished)

    cdef int count_down(self, Slot slot, list finished) except -1:
        slot.missing -= 1
        if slot.missing:
            return 0
        if slot.answer is None and slot.items is not None:
            slot.answer = self.answer_items(slot)
        elif slot.answer is None and slot.failures:
            slot.failures.sort()
            slot.answer = self.relay(slot, STATUS_PARTIAL, msgpack.packb(slot.failures))
        elif slot.answer is None:
            slot.answer = self.relay(slot, STATUS_OK, b"")
        finished.append(slot.connection)
        return 0

    cdef list release(self, list finished):
        """Return what can be sent now, in order, to the connections of `finished`."""
        cdef Slot slot
        ready = []
        for connection in dict.fromkeys(finished):
            queue = self.queues.get(connection)
            parts = []
            while queue:
                slot = queue[0]
                if slot.answer is None:
                    break
                queue.popleft()
                parts += [slot.answer] if isinstance(slot.answer, bytes) else slot.answer
            if parts:
                ready.append((connection, parts))
        return ready

    # -- answers

    cdef object answer_get(self, Slot slot):
        Worker.get(self, &slot.head, PyBytes_AS_STRING(slot.key))
        return self.take()

    cdef object answer_items(self, Slot slot):
        """Return a multi-get's answer from its items; the first failure stands for all."""
        cdef bytes body
        if slot.failures:
            return self.relay(slot, slot.failures[0][1], slot.failures[0][2].encode())
        body = b"".join(slot.items)
        cdef char* place = self.reply(&slot.head, STATUS_OK, 0, 4 + PyBytes_GET_SIZE(body))
        cdef uint32_t count = <uint32_t>len(slot.items)
        memcpy(place, &count, 4)
        memcpy(place + 4, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
        return self.take()

    cdef bytes relay(self, Slot slot, int status, bytes payload):
        self.reply_text(&slot.head, status, payload)
        return self.take()

    cdef bytes item(self, bytes name):
        """Return one key's part of a multi-get's answer, as the key is now."""
        cdef Py_ssize_t begin = self.out.size
        cdef bytes result
        self.multi_get_item(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), FLAG_SYSTEM)
        result = PyBytes_FromStringAndSize(self.out.data + begin, self.out.size - begin)
        self.out.size = begin
        return result

    # -- what is kept

    cdef int replace(self, bytes name, int status, int kind, bytes payload) except -1:
        """Keep an owner's newest word on a key."""
        self.store.remove(name)
        if status == STATUS_MISSING:
            self.unshare(name)
            self.absent.add(name)
            return 0
        self.absent.discard(name)
        self.store.write(name, self.share(name, REGISTRY[kind].decode(payload)))
        return 0

    cdef Lattice share(self, bytes name, Lattice state):
        """Return what is kept of the state of a key: itself, or, when it is a large value, where that is."""
        cdef LWW register
        former = self.shared.get(name)
        where = None
        if self.keeper is not None and type(state) is LWW and len((<LWW>state).payload) >= self.shared_bytes_min:
            register = <LWW>state
            where = self.keeper.keep(register.payload, None if former is None else former[0])
        self.unshare(name)
        if where is None:
            return state
        self.shared[name] = (where, len(register.payload))
        self.shared_bytes += len(register.payload)
        return LWW.make(register.stamp, register.writer, bytes((TAG_ELSEWHERE,)) + where)

    cdef int unshare(self, bytes name) except -1:
        """Let go of the large value of a key, if it has one."""
        found = self.shared.pop(name, None)
        if found is not None:
            self.shared_bytes -= found[1]
            self.keeper.drop(found[0])
        return 0

    cdef int take_push(self, uint64_t owner, int status, int kind, bytes payload) except -1:
        cdef uint16_t key_bytes
        cdef bytes name
        if PyBytes_GET_SIZE(payload) < 2:
            raise ProtocolError("a push has no key")
        memcpy(&key_bytes, PyBytes_AS_STRING(payload), 2)
        name = payload[2:2 + key_bytes]
        self.pushed += 1
        if self.subscribed.get(name) == owner:
            self.replace(name, status, kind, payload[2 + key_bytes:])
            self.evict()
        return 0

    cdef int join_own(self, Flight flight, uint64_t stamp) except -1:
        """Join an acknowledged write into the cached key, or forget the key where only its owner knows what the write became."""
        cdef Lattice written, current, delta
        cdef uint64_t writer
        if flight.key not in self.subscribed:
            return self.keep_own(flight, stamp)
        if self.subscribed[flight.key] != flight.owner:
            return self.forget(flight.key)  # who pushes it may not have this write yet
        written = self.written(flight)
        current = self.store.read(flight.key)
        writer = flight.owner
        delta = written.assign(current, stamp, writer)
        if current is not None and type(current) is not type(delta):
            return self.unsubscribe(flight.key)
        # A register's stamp is the answer's; an owner's other assignments (dots, counts) cannot be known here.
        if delta is not written and type(written) is not LWW:
            return self.unsubscribe(flight.key)
        self.absent.discard(flight.key)
        self.store.write(flight.key, delta)
        if self.keeper is not None:
            self.share_own(flight.key)
        return 0

    cdef Lattice written(self, Flight flight):
        """Return the state that a write has sent."""
        cdef Py_ssize_t begin = PUT_FLAG_BYTES * (bool(flight.flags & FLAG_COMPARE) + bool(flight.flags & FLAG_EXPIRES))
        return REGISTRY[flight.type].decode(flight.written[begin:] if begin else flight.written)

    cdef int keep_own(self, Flight flight, uint64_t stamp) except -1:
        """Subscribe to a key of which this node has written a large value, with the offer to keep what was written.

        Not while another request to the key is under way, whose answer will say more.
        """
        cdef Lattice written
        cdef Flight subscription
        cdef uint64_t[2] known
        if (self.keeper is None or flight.type != LWW_NUMBER or flight.key in self.waiting or self.writing[flight.key] > 1
                or PyBytes_GET_SIZE(flight.written) < self.shared_bytes_min + LWW_HEADER_BYTES):
            return 0
        written = self.written(flight).assign(None, stamp, flight.owner)
        known[0], known[1] = (<LWW>written).stamp, (<LWW>written).writer
        subscription = self.send(OP_SUBSCRIBE, 0, FLAG_SYSTEM, flight.key, PyBytes_FromStringAndSize(<char*>known, LWW_HEADER_BYTES), None, 0)
        subscription.known = <LWW>written
        subscription.waiters = []
        self.waiting[flight.key] = subscription
        self.offered += 1
        return 0

    cdef int share_own(self, bytes name) except -1:
        """After a write of this node's to a key: keep a large value where it belongs, and no older one."""
        cdef Lattice state = self.store.read(name)
        former = self.shared.get(name)
        if type(state) is not LWW or (former is not None and (<LWW>state).payload[1:] == former[0]):
            return 0
        if former is None and len((<LWW>state).payload) < self.shared_bytes_min:
            return 0
        state = state.copy()
        self.store.remove(name)
        self.store.write(name, self.share(name, state))
        return self.evict()

    cdef int evict(self) except -1:
        """Give up keys until the cache fits its bytes: the oldest that was not read since the last look."""
        while (self.store.size_bytes > self.bytes_max or self.shared_bytes > self.shared_bytes_max) and self.subscribed:
            name = next(iter(self.subscribed))
            if name in self.touched:
                self.touched.discard(name)
                self.subscribed[name] = self.subscribed.pop(name)
                continue
            self.evicted += 1
            self.unsubscribe(name)
        return 0

    cdef int unsubscribe(self, bytes name) except -1:
        self.forget(name)
        self.send(OP_UNSUBSCRIBE, 0, FLAG_SYSTEM, name, b"", None, 0)
        return 0

    cdef int forget_owner(self, uint64_t owner) except -1:
        """Forget what this owner pushed."""
        for name in [name for name, pushing in self.subscribed.items() if pushing == owner]:
            self.forget(name)
        return 0

    cdef int forget(self, bytes name) except -1:
        self.store.remove(name)
        self.unshare(name)
        self.absent.discard(name)
        self.touched.discard(name)
        self.subscribed.pop(name, None)
        return 0

    def forget_all(self):
        """Forget every key."""
        for name in list(self.store.states):
            self.store.remove(name)
            self.unshare(name)
        self.subscribed = {}
        self.absent = set()
        self.touched = set()

    @property
    def keys_version(self):
        """Differs when other keys are kept than before."""
        return self.misses + self.offered + self.evicted

    def newest_keys(self, Py_ssize_t most):
        """Return up to `most` keys that have a value here, those that were first read last."""
        return [name for name in islice(reversed(self.subscribed), most) if name not in self.absent]

    def status(self):
        """Return the cache's figures, as plain data."""
        figures = super().status()
        figures.update(hits=self.hits, misses=self.misses, pushed=self.pushed, evicted=self.evicted, offered=self.offered, absent=len(self.absent),
                       shared=len(self.shared), shared_bytes=self.shared_bytes)
        return figures

    def check(self):
        """Assert the cache's invariants."""
        self.store.check()
        assert self.out.size == 0 and not self.chunks, "an answer was left behind"
        assert self.store.states.keys() | self.absent == self.subscribed.keys(), "what is kept is not what is subscribed to"
        assert self.shared.keys() <= self.store.states.keys(), "a value is shared of a key that is not kept"
        assert self.shared_bytes == sum(size for _, size in self.shared.values()), "bytes of shared values are miscounted"
        assert not self.store.states.keys() & self.absent, "a key is both present and absent"
        under_way = {*self.flights.values(), *self.held}
        for owner, requests in self.outboxes.items():
            assert all((<Flight>self.flights[request]).owner == owner for request in requests), "a request waits for another owner"
        assert all(flight in under_way for flight in self.waiting.values()), "reads wait for what nobody was asked for"
        writes = [(<Flight>flight).key for flight in under_way if (<Flight>flight).slot is not None]
        assert self.writing == {key: writes.count(key) for key in writes}, "writes under way are miscounted"
        for queue in self.queues.values():
            assert not queue or (<Slot>queue[0]).answer is None, "a whole answer waits at the head of its queue"


cdef list read_keys(const char* payload, Py_ssize_t size):
    """Return the keys of a multi-get. Raises ProtocolError."""
    cdef uint32_t count = batch_count(payload, size)
    cdef const char* end = payload + size
    cdef const char* place = payload + 4
    cdef uint16_t key_bytes
    cdef list names = []
    cdef uint32_t index
    for index in range(count):
        if end - place < 2:
            raise ProtocolError(f"a multi-get of {count} keys ends within key {index}")
        memcpy(&key_bytes, place, 2)
        place += 2
        if end - place < key_bytes:
            raise ProtocolError(f"a multi-get of {count} keys ends within key {index}")
        names.append(PyBytes_FromStringAndSize(place, key_bytes))
        place += key_bytes
    return names


cdef bytes request_frame(int op, int type, int flags, bytes key, bytes payload):
    """Return a request frame whose id and stamp are still to be filled in."""
    cdef RequestHeader head
    head.length = <uint32_t>(HEADER_BYTES - LENGTH_BYTES + PyBytes_GET_SIZE(key) + PyBytes_GET_SIZE(payload))
    head.version = PROTOCOL_VERSION
    head.op = op
    head.type = type
    head.flags = flags
    head.request = 0
    head.key_bytes = <uint16_t>PyBytes_GET_SIZE(key)
    head.ack = 0
    head.stamp = 0
    return PyBytes_FromStringAndSize(<char*>&head, HEADER_BYTES) + key + payload
