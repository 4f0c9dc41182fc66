"""The blocking client: a call writes a frame, sends it, and waits for its answer in the calling thread.

The one rule: every call ends by its deadline, with a value or a typed error that says whether it may have had an effect. There is no
event loop and no thread: each call takes a connected stream from a pool, so threads never wait for each other, and a forked child
opens its own. Requests are routed here, by the view; a worker that does not own a key answers with the newer view, which is followed.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t

cimport cython

from anna.ack cimport Ack
from anna.lattices.base cimport Lattice
from anna.requester cimport Requester, key_view
from anna.stream cimport Stream, fork_generation, now_ns
from anna.wire cimport *

import time

import msgpack

from anna.config import TIMEOUT_S
from anna.errors import AnnaError, ConnectionLost, KeyNotFound, NotSupported, NoWorkers, ProtocolError, RequestTimeout
from anna.messages import View

cdef object _RAISE = object()

cdef enum:
    ATTEMPTS_MAX = 64
    POOL_STREAMS_MAX = 64
    TAIL_BYTES_MIN = 16384
    USUAL_NS = 20_000_000

_RETRY_PAUSE_S = 0.005


cdef class Client:
    """A connection to an anna cluster, for any number of threads. Made by `anna.connect`.

    `seeds` are addresses of workers, tried in turn until one answers with the view. `timeout` (seconds) is the deadline of
    each call that names none. `lease`, when given, is closed with the client.
    """

    def __init__(self, seeds, *, double timeout=TIMEOUT_S, bint allow_pickle=True, bint system=False, lease=None):
        if timeout <= 0:
            raise ValueError(f"timeout is {timeout} s; it must be positive")
        self.seeds = tuple(seeds)
        self.timeout = timeout
        self.timeout_ns = <int64_t>(timeout * 1e9)
        self.lease = lease
        self.pools = []
        self.workers = ()
        self.generation = fork_generation()
        self.requester = Requester(View(0, ()), allow_pickle, system)
        self.refresh(now_ns() + self.timeout_ns)

    # -- values

    def get(self, key, default=_RAISE, *, timeout=None):
        """Return the value under `key`: what its lattice shows. Raises KeyNotFound unless a `default` is given."""
        cdef Stream stream = self.ask(OP_GET, key, None, True, timeout)
        cdef int status = stream.reply.status
        if stream.bulk is not None:
            value, stream.bulk = stream.bulk, None
            self.give_back(stream)
            return value
        if status == STATUS_OK:
            try:
                return self.requester.value_of(stream.reply.type, stream.payload, stream.payload_bytes)
            finally:
                self.give_back(stream)
        return self.absent(stream, status, key, default)

    def get_lattice(self, key, default=_RAISE, *, timeout=None):
        """Return the lattice under `key`, a copy that is the caller's. Raises KeyNotFound unless a `default` is given."""
        cdef Stream stream = self.ask(OP_GET, key, None, False, timeout)
        cdef int status = stream.reply.status
        if status == STATUS_OK:
            try:
                return self.requester.lattice_of(stream.reply.type, stream.payload, stream.payload_bytes)
            finally:
                self.give_back(stream)
        return self.absent(stream, status, key, default)

    def put(self, key, value, *, ack=None, timeout=None):
        """Join `value` into `key` and return an Ack: a lattice as it is, anything else as the last write of a register.

        Raises LatticeTypeMismatch when the key holds another type, ValueTooLarge, NotSerializable, BadKey; RequestTimeout or
        ConnectionLost (both indefinite: the write may have happened).
        """
        if ack is not None:
            check_ack(ack)
        cdef Stream stream = self.ask(OP_PUT, key, value, False, timeout)
        cdef int status = stream.reply.status
        cdef uint64_t stamp = stream.reply.stamp
        if status == STATUS_OK:
            self.give_back(stream)
            return Ack.make(1, 0, stamp)
        raise self.failure(stream, status)

    def delete(self, key, *, timeout=None):
        """Forget `key`; return whether it was there."""
        cdef Stream stream = self.ask(OP_DELETE, key, None, False, timeout)
        cdef int status = stream.reply.status
        if status <= STATUS_MISSING:
            self.give_back(stream)
            return status == STATUS_OK
        raise self.failure(stream, status)

    def mget(self, keys, default=None, *, timeout=None):
        """Return the values of `keys`, in their order, `default` for each that is missing. One flight to each worker."""
        cdef int64_t deadline = self.deadline(timeout)
        cdef list names = list(keys)
        cdef list values = [default] * len(names)
        cdef list wanted = None
        cdef list misplaced = []
        cdef Flight flight
        cdef Py_ssize_t attempt
        for attempt in range(ATTEMPTS_MAX):
            misplaced = []
            try:
                flights = self.launch(OP_MGET, names, None, wanted, deadline)
                values = self.collect(flights, values, default, misplaced, deadline)
            except ConnectionLost:
                self.pause(deadline)
                wanted = None
                continue
            if not misplaced:
                return values
            wanted = misplaced
            self.refresh(deadline)
        raise NoWorkers(f"no worker owned {len(misplaced)} of {len(names)} keys in {ATTEMPTS_MAX} attempts")

    def mput(self, items, *, ack=None, timeout=None):
        """Join each value of a mapping (or of key-value pairs) into its key; return the Ack of the latest. Not atomic.

        When a key is refused, the first such error is raised after the others were written.
        """
        cdef int64_t deadline = self.deadline(timeout)
        cdef list wanted = None
        cdef list keys, values, misplaced, refusals = []
        cdef Flight flight
        cdef Py_ssize_t attempt
        if ack is not None:
            check_ack(ack)
        if isinstance(items, dict):
            keys, values = list(items), list(items.values())
        else:
            pairs = list(items)
            keys, values = [key for key, _ in pairs], [value for _, value in pairs]
        for attempt in range(ATTEMPTS_MAX):
            misplaced = []
            flights = self.launch(OP_MPUT, keys, values, wanted, deadline)
            for flight in flights:
                self.land(flight, flights, deadline)
                self.sort_failures(flight, misplaced, refusals)
            for flight in flights:
                self.give_back(flight.stream)
            if not misplaced:
                if refusals:
                    raise refusals[0]
                return Ack.make(1, 0, self.requester.seen)
            wanted = misplaced
            self.refresh(deadline)
        raise NoWorkers(f"no worker owned {len(misplaced)} of {len(keys)} keys in {ATTEMPTS_MAX} attempts")

    def pipeline(self, *, timeout=None):
        """Return an `anna.pipeline.Pipeline`: many operations, one flight."""
        from anna.pipeline import Pipeline

        return Pipeline(self, timeout)

    # -- the cluster

    @property
    def view(self):
        """The workers as this client knows them."""
        return self.requester.view

    @property
    def stamp(self):
        """The greatest stamp that this client has seen."""
        return self.requester.seen

    def where(self, key):
        """Return where `key` lives: {key, place, worker_id, addresses}."""
        place = self.requester.owner(key)
        if place < 0:
            raise NoWorkers("the view names no worker")
        info = self.requester.view.workers[place]
        return {"key": key, "place": place, "worker_id": info.worker_id, "addresses": list(info.addresses)}

    def status(self, *, timeout=None):
        """Return each worker's figures, in the view's order; {"place", "error"} for one that does not answer."""
        cdef int64_t deadline = self.deadline(timeout)
        figures = []
        for place in range(len(self.workers)):
            try:
                figures.append(self.ask_worker(place, OP_STATUS, deadline))
            except AnnaError as error:
                figures.append({"place": place, "error": str(error)})
        return figures

    def close(self):
        """Close every stream, and the lease of an embedded cluster. Closing twice is harmless."""
        self.closed = True
        for pool in self.pools:
            while pool:
                pool.pop().close()
        if self.lease is not None and self.generation == fork_generation():
            self.lease.close()
        self.lease = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return f"Client({self.seeds[0] if self.seeds else ''!r}, {len(self.workers)} workers{', closed' if self.closed else ''})"

    # -- one request

    cdef int64_t deadline(self, object timeout) except -1:
        if timeout is None:
            return now_ns() + self.timeout_ns
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout} s; it must be positive")
        return now_ns() + <int64_t>(<double>timeout * 1e9)

    cdef Stream ask(self, int op, object key, object value, bint plain, object timeout):
        """Send one single-key request to the key's owner; return the stream that holds its answer. The caller gives it back.

        With `plain`, a large value comes as `stream.bulk`.
        """
        cdef int64_t deadline = self.deadline(timeout)
        cdef Py_ssize_t size, attempt
        cdef const char* data = key_view(key, &size, self.requester.system)
        cdef Stream stream
        cdef uint32_t request
        for attempt in range(ATTEMPTS_MAX):
            stream = self.take(self.requester.placement.owner(data, size), deadline)
            try:
                stream.bulk_wanted = plain
                if op == OP_PUT and type(value) is bytes and PyBytes_GET_SIZE(value) >= TAIL_BYTES_MIN:
                    request = self.requester.write_put_head(stream.out, data, size, value)
                    stream.tail = value
                elif op == OP_PUT:
                    request = self.requester.write_put(stream.out, data, size, value)
                else:
                    request = self.requester.write_request(stream.out, op, 0, data, size, b"", 0)
                stream.send(deadline)
                stream.receive(deadline)
            except ConnectionLost:
                stream.close()
                if op != OP_GET:
                    raise
                self.pause(deadline)
                continue
            except BaseException:
                stream.close()
                raise
            if stream.reply.request != request:
                raise self.out_of_step(stream, request)
            self.requester.learn(stream.reply.stamp)
            if stream.reply.status != STATUS_WRONG_WORKER:
                return stream
            self.follow(stream)
        raise NoWorkers(f"no worker owned the key {key!r} in {ATTEMPTS_MAX} attempts")

    cdef int follow(self, Stream stream) except -1:
        """Take up the view that a worker answered with, because the key is not its own."""
        cdef object before = self.requester.view.version
        view = View.from_wire(msgpack.unpackb(PyBytes_FromStringAndSize(stream.payload, stream.payload_bytes)))
        self.give_back(stream)
        self.adopt(view)
        if self.requester.view.version == before:
            # This client's view is the newer one: the worker will have it in a moment.
            time.sleep(_RETRY_PAUSE_S)
        return 0

    def out_of_step(self, Stream stream, uint32_t request):
        """Drop a stream whose answer is not to the request that was sent; return the error."""
        stream.close()
        if stream.reply.request == 0 and stream.reply.status >= STATUS_TYPE_MISMATCH:
            return self.requester.error(stream.reply.status, stream.payload, stream.payload_bytes)
        return ProtocolError(f"{stream.address} answered request {stream.reply.request}, not {request}")

    cdef object absent(self, Stream stream, int status, object key, object default):
        """Return the default for a missing key, or raise what a failed get means."""
        if status != STATUS_MISSING:
            raise self.failure(stream, status)
        self.give_back(stream)
        if default is _RAISE:
            raise KeyNotFound(f"no value is stored under {key!r}")
        return default

    cdef object failure(self, Stream stream, int status):
        """Give the stream back and return the error that its answer is."""
        error = self.requester.error(status, stream.payload, stream.payload_bytes)
        self.give_back(stream)
        return error

    # -- many requests

    cdef list launch(self, int op, list keys, list values, list wanted, int64_t deadline):
        """Send one batch to each owner of `keys` (of those at the indexes `wanted`); return the flights to land."""
        cdef list flights = []
        cdef Flight flight
        cdef dict groups
        try:
            if wanted is None and len(self.workers) == 1:
                flights.append(self.depart(op, 0, keys, values, None, deadline))
                return flights
            groups = self.group(keys, wanted)
            for place, indexes in groups.items():
                some = None if values is None else [values[i] for i in indexes]
                flights.append(self.depart(op, place, [keys[i] for i in indexes], some, indexes, deadline))
        except BaseException:
            drop(flights)
            raise
        return flights

    cdef dict group(self, list keys, list wanted):
        """Return {place of the owner: indexes of its keys}."""
        cdef dict groups = {}
        cdef Py_ssize_t size
        cdef const char* data
        for index in (range(len(keys)) if wanted is None else wanted):
            data = key_view(keys[index], &size, self.requester.system)
            place = self.requester.placement.owner(data, size)
            found = groups.get(place)
            if found is None:
                groups[place] = [index]
            else:
                (<list>found).append(index)
        return groups

    cdef Flight depart(self, int op, int place, list keys, list values, list indexes, int64_t deadline):
        """Send one batch to the worker at `place`."""
        cdef Flight flight = Flight.__new__(Flight)
        cdef Stream stream = self.take(place, deadline)
        flight.keys = keys
        flight.indexes = indexes
        flight.stream = stream
        try:
            if op == OP_MGET:
                flight.request = self.requester.write_multi_get(stream.out, keys)
            else:
                flight.request = self.requester.write_multi_put(stream.out, keys, values)
            stream.send(deadline)
        except BaseException:
            stream.close()
            raise
        return flight

    cdef int land(self, Flight flight, list flights, int64_t deadline) except -1:
        """Wait for a batch's answer. When it fails, every stream of `flights` is dropped."""
        cdef Stream stream = flight.stream
        try:
            stream.receive(deadline)
            if stream.reply.request != flight.request:
                raise self.out_of_step(stream, flight.request)
            self.requester.learn(stream.reply.stamp)
            if stream.reply.status >= STATUS_TYPE_MISMATCH:
                raise self.requester.error(stream.reply.status, stream.payload, stream.payload_bytes)
        except BaseException:
            drop(flights)
            raise
        return 0

    cdef list collect(self, list flights, list values, object default, list misplaced, int64_t deadline):
        """Land every flight of a multi-get; return the values."""
        cdef Flight flight
        try:
            for flight in flights:
                self.land(flight, flights, deadline)
                values = self.scatter(flight, values, default, misplaced)
        except BaseException:
            drop(flights)
            raise
        for flight in flights:
            self.give_back(flight.stream)
        return values

    cdef list scatter(self, Flight flight, list values, object default, list misplaced):
        """Put a multi-get's answer in its places; return the list of values, which may be a new one."""
        cdef list missed = []
        cdef Stream stream = flight.stream
        cdef list found = self.requester.read_multi_get(stream.payload, stream.payload_bytes, flight.keys, default, missed)
        cdef Py_ssize_t index
        if flight.indexes is None:
            misplaced += missed
            return found
        for index in range(len(found)):
            values[flight.indexes[index]] = found[index]
        for index in missed:
            misplaced.append(flight.indexes[index])
        return values

    cdef int sort_failures(self, Flight flight, list misplaced, list refusals) except -1:
        """Tell a multi-put's failures apart: keys of another worker, and writes that were refused."""
        cdef Stream stream = flight.stream
        if stream.reply.status != STATUS_PARTIAL:
            return 0
        for index, status, message in msgpack.unpackb(PyBytes_FromStringAndSize(stream.payload, stream.payload_bytes)):
            if status == STATUS_WRONG_WORKER:
                misplaced.append(index if flight.indexes is None else flight.indexes[index])
            else:
                refusals.append(error_of(status, message))
        return 0

    # -- streams and views

    cdef Stream take(self, int place, int64_t deadline):
        """Return a connected stream to the worker at `place`. Raises NoWorkers or RequestTimeout."""
        cdef Stream stream = None
        cdef list pool
        cdef int64_t now = now_ns()
        if self.closed:
            raise NoWorkers("this client is closed")
        if 0 <= place < len(self.pools):
            pool = <list>self.pools[place]
            while pool and stream is None:
                stream = <Stream>pool.pop()
                if stream.stale(now):
                    stream.close()
                    stream = None
        if stream is None:
            stream = self.connect(place, deadline)
        stream.used_ns = now
        stream.place = place
        stream.views_taken = self.views_taken
        # A wait that is about the usual one is armed as the usual one: most calls then need no system call for it.
        cdef int64_t left = deadline - now
        stream.arm(self.timeout_ns if self.timeout_ns - USUAL_NS < left <= self.timeout_ns else max(left, 1000))
        return stream

    cdef Stream connect(self, int place, int64_t deadline):
        """Open a stream to the worker at `place`, trying its addresses in turn until the deadline."""
        if self.generation != fork_generation():
            self.settle_in_child()
        reason = "the view names no worker"
        while 0 <= place < len(self.workers):
            for address in self.workers[place].addresses:
                try:
                    return Stream(address, deadline)
                except OSError as error:
                    reason = f"{address}: {error.strerror or error}"
            if now_ns() >= deadline:
                break
            time.sleep(_RETRY_PAUSE_S)
        raise NoWorkers(f"worker {place} could not be reached ({reason})")

    def settle_in_child(self):
        """After a fork, take a lease of this process's own: the parent's may end while this process goes on."""
        self.generation = fork_generation()
        if self.lease is not None:
            self.lease = self.lease.again()

    cdef int give_back(self, Stream stream) except -1:
        """Return a stream whose answer was read to its pool."""
        cdef list pool
        stream.bulk_wanted = False
        if stream.views_taken == self.views_taken and not self.closed:
            pool = <list>self.pools[stream.place]
            if len(pool) < POOL_STREAMS_MAX:
                pool.append(stream)
                return 0
        # The view has changed meanwhile, so the place may be another worker's by now; or nobody needs so many streams.
        stream.close()
        return 0

    cdef int pause(self, int64_t deadline) except -1:
        """Wait a little before a request is tried again, and look for a newer view. Raises RequestTimeout."""
        if now_ns() + <int64_t>(_RETRY_PAUSE_S * 1e9) >= deadline:
            raise RequestTimeout(f"no worker answered within {self.timeout} s, though it was tried again")
        time.sleep(_RETRY_PAUSE_S)
        self.refresh(deadline)
        return 0

    def refresh(self, int64_t deadline):
        """Ask the workers that are known, then the seeds, for the view. Raises NoWorkers when none answers."""
        cdef Stream stream
        reasons = []
        known = [address for worker in self.workers for address in worker.addresses]
        for address in dict.fromkeys([*self.seeds, *known]):
            try:
                stream = Stream(address, deadline)
            except (OSError, RequestTimeout) as error:
                reasons.append(f"{address}: {getattr(error, 'strerror', None) or error}")
                continue
            try:
                self.requester.write_request(stream.out, OP_VIEW, 0, b"", 0, b"", 0)
                stream.send(deadline)
                stream.receive(deadline)
                self.adopt(View.from_wire(msgpack.unpackb(PyBytes_FromStringAndSize(stream.payload, stream.payload_bytes))))
                return
            except (AnnaError, ValueError) as error:
                reasons.append(f"{address}: {error}")
            finally:
                stream.close()
        raise NoWorkers(f"no worker answered at {'; '.join(reasons) or 'any address: none was given'}")

    def adopt(self, view):
        """Take up a newer view, and keep the streams to the addresses that are still in it."""
        cdef dict streams = {}
        cdef Stream stream
        if self.workers and view.version <= self.requester.view.version:
            return
        for pool in self.pools:
            for stream in pool:
                streams.setdefault(stream.address, []).append(stream)
        workers = view.workers
        pools = [[stream for address in worker.addresses for stream in streams.pop(address, ())] for worker in workers]
        self.requester.adopt(view)
        self.pools, self.workers = pools, workers
        self.views_taken += 1
        for rest in streams.values():
            for stream in rest:
                stream.close()

    def forget_view(self, view):
        """Take up `view` though it is not newer: what a client knows that slept through changes. For tests."""
        self.requester = Requester(view, self.requester.allow_pickle, self.requester.system)
        self.workers, self.pools = view.workers, [[] for _ in view.workers]
        self.views_taken += 1

    def ask_worker(self, int place, int op, int64_t deadline):
        """Return what the worker at `place` answers to a request without a key, unpacked."""
        cdef Stream stream = self.take(place, deadline)
        try:
            self.requester.write_request(stream.out, op, 0, b"", 0, b"", 0)
            stream.send(deadline)
            stream.receive(deadline)
        except BaseException:
            stream.close()
            raise
        if stream.reply.status != STATUS_OK:
            raise self.failure(stream, stream.reply.status)
        answer = msgpack.unpackb(PyBytes_FromStringAndSize(stream.payload, stream.payload_bytes))
        self.give_back(stream)
        return answer


@cython.final
cdef class Flight:
    """One batch under way to one worker: its keys, and their places in the caller's list (None: the same)."""


cdef int drop(list flights) except -1:
    """Close the streams of flights that will not land."""
    cdef Flight flight
    for flight in flights:
        flight.stream.close()
    return 0


def check_ack(ack):
    """Raise unless one node's memory is as safe as `ack` asks for."""
    if ack == "memory" or (ack == 1 and not isinstance(ack, bool)):
        return
    if ack == "disk" or (isinstance(ack, int) and not isinstance(ack, bool) and ack > 1):
        raise NotSupported(f"ack={ack!r} is more than this cluster gives: it keeps one copy, in memory (ack='memory')")
    raise ValueError(f"ack is 'memory', 'disk' or a number of replicas, not {ack!r}")
