"""A node's cache: the store's protocol towards the node's executors, answered from the node's memory.

The one rule: a cached key is one that its owner pushes. The first read of a key subscribes to it at its owner and is answered with what
the subscription answers; from then on reads are local, and the owner pushes each change within an epoch. Absence is cached the same
way. Writes go to the owner and are acknowledged by it; what they mean is joined in here at once where that needs nothing but the
write itself, so that a node reads its own writes. A large value that this node writes is kept, too: the subscription says what the cache
has, and is answered without the value when that is what the owner has. Executors that watch a key are pushed what has come of it as soon as it has: the owner tells each node once, however many
watch there. All that one owner says arrives in order on one stream, so the newest word is the
owner's state. Source: DESIGN §4 (caches), §6; level `eventual`; for the others, `epochs`.

When the view changes, all that is kept is forgotten, for it may have moved.

Like a worker, it is a core without sockets, and built in layers: `order` (of answers), `flights` (what is asked of owners), `kept` (what is kept), `versions` and `epochs` (what is
read at an epoch), `pins` (at which), `commits` (of writes together), and this, what executors ask of it. Executors' bytes go to `receive`, owners' bytes to `hear`; `outgoing` is what is to be sent to the owners.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

cimport cython

from anna.kvs.answers cimport Connection
from anna.kvs.batches cimport batch_count, check_put_items
from anna.kvs.clock cimport Clock
from anna.kvs.worker cimport Worker
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.wire cimport *
from cloudburst.cache.commits cimport CacheCommits
from cloudburst.cache.flights cimport Flight
from cloudburst.cache.order cimport Slot, read_keys

import msgpack

from anna.errors import NotSupported
from anna.lattices import REGISTRY
from anna.messages import View

cdef enum:
    PUT_FLAG_BYTES = 8  # what each of a put's flags puts before the state


cdef class Cache(CacheCommits):
    """The cache of one node. `view` is what executors are told (the cache alone), `owners` the store's own.

    At most `bytes_max` bytes of keys and states are kept, and `shared_bytes_max` by the keeper; beyond them the keys that were not read lately are given
    up, oldest first. `keeper.keep(value, former)` returns where it has put an encoded value of `keeper.bytes_min` or more, in place of one that was at `former`
    (or None), or None when it has no room; `keeper.drop(where)` is told when it is needed no more.
    """

    cdef dict waiting
    cdef dict writing
    cdef readonly uint64_t hits
    cdef readonly uint64_t misses
    cdef readonly uint64_t offered
    cdef readonly uint64_t passed_on
    cdef readonly uint64_t passed_on_bytes

    def __init__(self, view, owners, Clock clock, Py_ssize_t bytes_max, keeper=None, Py_ssize_t shared_bytes_max=0):
        self.waiting = {}
        self.writing = {}
        super().__init__(view, owners, clock, bytes_max, keeper, shared_bytes_max)

    def take_part(self, tuple seeds, str cluster):
        """A cache owns nothing: it has no replicas and closes no epochs."""

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
        self.write_to_owner(OP_PUT, head.type, head.flags, PyBytes_FromStringAndSize(key, head.key_bytes), payload[:size], slot, 0)
        return 0

    cdef int put_bulk(self, RequestHeader* head, const char* key, uint64_t* place, bytes bulk) except -1:
        cdef Slot slot = self.park(head)
        cdef bytes stamped = PyBytes_FromStringAndSize(<char*>place, LWW_HEADER_BYTES)
        slot.missing = 1
        self.puts += 1
        self.write_to_owner(OP_PUT, LWW_NUMBER, head.flags, PyBytes_FromStringAndSize(key, head.key_bytes), stamped + bulk, slot, 0)
        return 0

    cdef int delete(self, RequestHeader* head, const char* key) except -1:
        cdef Slot slot = self.park(head)
        slot.missing = 1
        self.deletes += 1
        self.write_to_owner(OP_DELETE, 0, head.flags, PyBytes_FromStringAndSize(key, head.key_bytes), b"", slot, 0)
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
            self.write_to_owner(OP_PUT, item.type, head.flags, PyBytes_FromStringAndSize(place, item.key_bytes),
                      (place + item.key_bytes)[:item.payload_bytes], slot, index)
            place += item.key_bytes + item.payload_bytes
        return 0

    cdef Flight write_to_owner(self, int op, int type, int flags, bytes key, bytes payload, Slot slot, Py_ssize_t index):
        """Queue one write to the owner of `key`. A read that comes after it on the owner's stream sees it; one that is under way already may not."""
        cdef Flight flight
        self.waiting.pop(key, None)
        self.writing[key] = self.writing.get(key, 0) + 1
        slot.copies, slot.durable = -1, True
        flight = self.send(op, type, flags, key, payload, slot.head.ack)
        flight.slot = slot
        flight.index = index
        return flight

    cdef int change_subscription(self, Connection connection, RequestHeader* head, const char* key, const char* payload,
                                 Py_ssize_t size) except -1:
        """Answer as a get does, and push to the connection what becomes of the key from then on, or end that.

        The key is kept as long as somebody watches it: when it has to be forgotten, it is asked for again.
        """
        cdef bytes name
        self.check_key(key, head.key_bytes, head.flags)
        name = PyBytes_FromStringAndSize(key, head.key_bytes)
        self.subscribe(connection, name, head.op == OP_SUBSCRIBE)
        if head.op == OP_SUBSCRIBE:
            return self.get(head, key)
        self.reply(head, STATUS_OK, 0, 0)
        return 0

    cdef bint push(self, bytes key) except -1:
        cdef Py_ssize_t before = self.out.size
        cdef bint fits = CacheCommits.push(self, key)
        self.passed_on += 1
        self.passed_on_bytes += self.out.size - before
        return fits

    @property
    def has_news(self):
        """Whether `take_pushes` has something for those who watch."""
        return len(self.changed) > 0

    def leave(self, Connection connection):
        super().leave(connection)
        for key in sorted(connection.subscriptions):
            self.subscribe(connection, key, False)

    cdef int forget(self, bytes name) except -1:
        CacheCommits.forget(self, name)
        return self.request_key(name) if name in self.subscribers else 0

    def forget_all(self):
        super().forget_all()
        for name in sorted(self.subscribers):
            self.request_key(name)

    cdef int request_key(self, bytes name) except -1:
        """Subscribe to a key that somebody waits for or watches, unless that is under way since the last write to it."""
        cdef Flight flight
        if name not in self.waiting:
            flight = self.waiting[name] = self.send(OP_SUBSCRIBE, 0, FLAG_SYSTEM, name, b"")
            flight.waiters = []
        return 0

    cdef bint current(self, bytes name) except -1:
        """Whether `name` can be answered from here: its owner pushes it, and no write or read of this node to it is under way.

        A read under way will be answered with the owner's word of a later moment; one that comes after it may not be answered with an earlier.
        """
        return name in self.subscribed and name not in self.writing and name not in self.waiting

    cdef int want(self, bytes name, Slot slot, Py_ssize_t index) except -1:
        """Let `slot` wait for `name`, and subscribe to it unless that is under way since the last write to it."""
        cdef Flight flight
        self.request_key(name)
        flight = self.waiting[name]
        flight.waiters.append((slot, index))
        return 0

    cdef int land(self, Flight flight, uint64_t owner, int status, int kind, int flags, uint64_t stamp, bytes payload, list finished) except -1:
        if flight.op == OP_SUBSCRIBE_AT:
            return self.arrive_at(flight, owner, status, kind, payload, finished)
        if flight.op == OP_PIN:
            return self.arrive_pin(flight, status, payload, finished)
        if flight.op == OP_SUBSCRIBE:
            return self.arrive(flight, owner, status, kind, payload, finished)
        if flight.running is not None:
            return self.land_commit(flight, owner, status, payload, finished)
        if flight.op == OP_VIEW:
            if status == STATUS_OK:
                self.adopt_owners(View.from_wire(msgpack.unpackb(payload)))
            return 0
        if flight.slot is None:
            return 0
        if status == STATUS_OK and flight.op == OP_PUT:
            self.join_own(flight, stamp)
        elif flight.op == OP_DELETE and status <= STATUS_MISSING and flight.key in self.subscribed:
            self.delayed.pop(flight.key, None)
            self.store.remove(flight.key)
            self.unshare(flight.key)
            self.absent.add(flight.key)
            self.note(PyBytes_AS_STRING(flight.key), PyBytes_GET_SIZE(flight.key))
        return self.settle(flight, status, kind, flags & REPLY_DURABLE, payload, finished)

    cdef int lose(self, Flight flight, list finished) except -1:
        if flight.waiters is not None:
            return self.route(flight)
        if flight.running is not None:
            return self.land_commit(flight, flight.owner, STATUS_LOST, b"", finished)
        if flight.op == OP_PIN:
            return self.arrive_pin(flight, STATUS_STALE, b"the connection to an owner ended before it answered", finished)
        if flight.slot is not None:
            return self.settle(flight, STATUS_LOST, 0, False, b"the connection to the key's owner ended before it answered", finished)
        return 0

    cdef int arrive(self, Flight flight, uint64_t owner, int status, int kind, bytes payload, list finished) except -1:
        """A subscription's answer: keep what it says and give it to all who wait."""
        cdef Slot slot
        cdef bytes name = flight.key
        if self.waiting.get(name) is flight:
            del self.waiting[name]
        if status <= STATUS_MISSING:
            self.subscribed[name] = owner
            self.delayed.pop(name, None)
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

    cdef int settle(self, Flight flight, int status, int copies, bint durable, bytes payload, list finished) except -1:
        """A write's answer: relay it, or add it to its batch's."""
        cdef Slot slot = flight.slot
        self.writing[flight.key] -= 1
        if not self.writing[flight.key]:
            del self.writing[flight.key]
        if status <= STATUS_MISSING:
            slot.copies = copies if slot.copies < 0 else min(slot.copies, copies)
            slot.durable = slot.durable and durable
        if slot.failures is None:
            slot.answer = self.relay_write(slot, status, payload)
        elif status != STATUS_OK:
            slot.failures.append([flight.index, status, payload.decode("utf-8", "replace")])
        return self.count_down(slot, finished)

    cdef object answer_get(self, Slot slot):
        Worker.get(self, &slot.head, PyBytes_AS_STRING(slot.key))
        return self.take()

    cdef bytes item(self, bytes name):
        """Return one key's part of a multi-get's answer, as the key is now."""
        cdef Py_ssize_t begin = self.out.size
        cdef bytes result
        self.multi_get_item(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), FLAG_SYSTEM)
        result = PyBytes_FromStringAndSize(self.out.data + begin, self.out.size - begin)
        self.out.size = begin
        return result

    cdef int join_own(self, Flight flight, uint64_t stamp) except -1:
        """Join an acknowledged write into the cached key, or forget the key where only its owner knows what the write became."""
        cdef Lattice written, current, delta
        cdef uint64_t writer
        if flight.key not in self.subscribed:
            return self.keep_own(flight, stamp)
        if self.subscribed[flight.key] != flight.owner:
            return self.forget(flight.key)  # who pushes it may not have this write yet
        self.catch_up(flight.key)
        written = self.written(flight)
        current = self.store.read(flight.key)
        writer = flight.owner
        delta = written.assign(current, stamp, writer)
        if current is not None and type(current) is not type(delta):
            return self.unsubscribe(flight.key)
        # A register's stamp is the answer's; an owner's other assignments (dots, counts) cannot be known here.
        if delta is not written and type(written) is not LWW:
            return self.unsubscribe(flight.key)
        grows = current is None or (flight.key in self.subscribers and not delta <= current)
        self.absent.discard(flight.key)
        self.store.write(flight.key, delta)
        if self.keeper is not None:
            self.share_own(flight.key)
        return self.note(PyBytes_AS_STRING(flight.key), PyBytes_GET_SIZE(flight.key)) if grows else 0

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
        subscription = self.send(OP_SUBSCRIBE, 0, FLAG_SYSTEM, flight.key, PyBytes_FromStringAndSize(<char*>known, LWW_HEADER_BYTES))
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

    @property
    def keys_version(self):
        """Differs when other keys are kept than before."""
        return self.misses + self.offered + self.evicted

    def status(self):
        """Return the cache's figures, as plain data."""
        figures = super().status()
        figures.update(hits=self.hits, misses=self.misses, pushed=self.pushed, evicted=self.evicted, offered=self.offered, absent=len(self.absent),
                       watched=len(self.subscribers), passed_on=self.passed_on, passed_on_bytes=self.passed_on_bytes,
                       shared=len(self.shared), shared_bytes=self.shared_bytes,
                       **self.status_at(), **self.status_of_sessions(), transactions=self.transactions)
        return figures

    def check(self):
        """Assert the cache's invariants."""
        super().check()
        under_way = {*self.flights.values(), *self.held}
        assert all(flight in under_way for flight in self.waiting.values()), "reads wait for what nobody was asked for"
        writes = [(<Flight>flight).key for flight in under_way if (<Flight>flight).op in (OP_PUT, OP_DELETE)]
        assert self.writing == {key: writes.count(key) for key in writes}, "writes under way are miscounted"
