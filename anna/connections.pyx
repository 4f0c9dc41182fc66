"""The blocking client's streams to the workers, and the view by which they are found.

The one rule: whoever takes a stream gives it back after its answer was read, or closes it: no stream that failed in any way is used
again. Streams wait in one pool for each worker of the view; a newer view keeps those whose addresses it still has. A forked child
opens its own.

Threads share all this, and a place means one worker only as long as the view does. So who has found a place by the view of now takes its stream before any
Python code runs, in which another thread might take up a newer view; and an answer counts for the worker that its stream was taken of,
wherever that has its place by then.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t

from anna.requester cimport Requester
from anna.stream cimport Stream, fork_generation, now_ns
from anna.wire cimport *

import os
import time
from threading import RLock
from weakref import WeakSet

import msgpack

from anna.config import OWNER_SHARE_MIN_NS, VIEW_LOOK_MIN_NS
from anna.errors import AnnaError, ConnectionLost, NoWorkers, NotAdmitted, ProtocolError, RequestTimeout, StaleReplica
from anna.messages import View

cdef int64_t SHARE_MIN_NS = OWNER_SHARE_MIN_NS
cdef int64_t REFRESH_NS = VIEW_LOOK_MIN_NS

cdef enum:
    POOL_STREAMS_MAX = 64
    USUAL_NS = 20_000_000
    PAUSE_NS = 5_000_000

_all = WeakSet()


def _begin_in_child():
    """Of the threads that may have held a guard as this process was forked, none is here."""
    for connections in list(_all):
        (<Connections>connections).requester.guard = RLock()


os.register_at_fork(after_in_child=_begin_in_child)


cdef class Connections:
    """What `Client` and what belongs to it share: a requester, pools of streams, and how the next owner is found."""

    def __init__(self, seeds, double timeout, Requester requester, lease, keys=None):
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout} s; it must be positive")
        self.seeds = tuple(seeds)
        self.timeout = timeout
        self.timeout_ns = <int64_t>(timeout * 1e9)
        self.share_ns = self.timeout_ns
        self.lease = lease
        self.keys = _shown(keys)
        self.pools = []
        self.workers = ()
        self.generation = fork_generation()
        self.requester = requester
        requester.guard = RLock()
        _all.add(self)
        self.refresh(now_ns() + self.timeout_ns)

    cdef int64_t deadline(self, object timeout) except -1:
        if timeout is None:
            return now_ns() + self.timeout_ns
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout} s; it must be positive")
        return now_ns() + <int64_t>(<double>timeout * 1e9)

    cdef int64_t share(self, int64_t deadline) noexcept:
        """Return until when the first of a key's owners may take to answer a read."""
        cdef int64_t now
        if self.requester.copies <= 1:
            return deadline
        now = now_ns()
        return min(deadline, now + max((deadline - now) // self.requester.copies, SHARE_MIN_NS))

    cdef int64_t reach(self, int64_t deadline) except? -1:
        """Return until when the first of a key's owners may take to be reached: time is left to look for a newer view, and for another."""
        return share_of(deadline, max(self.requester.copies, 2))

    cdef int64_t refresh_limit(self, int64_t deadline) except? -1:
        """Return until when a newer view may be looked for: time is left to ask whom it names."""
        return share_of(deadline, 2)

    # -- streams

    cdef Stream take(self, int place, int64_t reach, int64_t limit):
        """Return a stream to the worker at `place` of the view of now whose answer is awaited until `limit`.

        Raises NoWorkers when the worker cannot be reached by `reach`: nothing was sent then, and others are asked first for a while.
        """
        cdef Stream stream = None
        cdef list pool
        cdef tuple workers = self.workers
        cdef int64_t now = now_ns()
        cdef int64_t left = limit - now
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
            stream = self.connect(place, min(reach, limit))
        elif stream.requests_left >= 0:
            stream = self.improve(stream, place, reach, limit)
        stream.used_ns = now
        stream.place = place
        stream.workers = workers
        # A wait that is about a usual one is armed as that: most calls then need no system call for it.
        if self.timeout_ns - USUAL_NS < left <= self.timeout_ns:
            left = self.timeout_ns
        elif self.share_ns - USUAL_NS < left <= self.share_ns:
            left = self.share_ns
        stream.arm(max(left, 1000))
        return stream

    cdef Stream improve(self, Stream stream, int place, int64_t reach, int64_t limit):
        """Return a stream that has served enough requests with memory that it shares with its worker, if it can have some. Raises NoWorkers."""
        cdef tuple workers = self.workers
        if stream.requests_left:
            stream.requests_left -= 1
            return stream
        try:
            stream.arm(max(limit - now_ns(), 1000))
            stream.use_memory(limit)
            return stream
        except (AnnaError, OSError) as error:
            stream.close()
            if self.workers is workers and not isinstance(error, RequestTimeout):
                return self.connect(place, min(reach, limit))
            self.requester.suspect_worker(workers[place].worker_id, now_ns())
            raise NoWorkers(f"worker {place} could not be reached: {error}")
        except BaseException:
            stream.close()
            raise

    cdef Stream connect(self, int place, int64_t deadline):
        """Open a stream to the worker at `place`, trying its addresses in turn, once. Raises NoWorkers, NotAdmitted."""
        if self.generation != fork_generation():
            self.settle_in_child()
        if not 0 <= place < len(self.workers):
            raise NoWorkers("the view names no worker")
        cdef tuple workers = self.workers
        cdef Stream stream
        reasons = []
        refusals = []
        addresses = self.requester.addresses(place)
        for index, address in enumerate(addresses):
            limit = share_of(deadline, len(addresses) - index)
            try:
                stream = dial(address, limit, self.keys)
            except OSError as error:
                reasons.append(f"{address}: {error.strerror or error}")
                if isinstance(error, NotAdmitted):
                    refusals.append(error)
                continue
            stream.place = place
            stream.workers = workers
            return stream
        if not self.closed:
            self.requester.suspect_worker(workers[place].worker_id, now_ns())
        if refusals and len(refusals) == len(reasons):
            raise refusals[0]
        raise NoWorkers(f"worker {place} could not be reached ({'; '.join(reasons)})")

    def settle_in_child(self):
        """After a fork, take a lease of this process's own: the parent's may end while this process goes on."""
        self.generation = fork_generation()
        if self.lease is not None:
            self.lease = self.lease.again()

    cdef int give_back(self, Stream stream) except -1:
        """Return a stream whose answer was read to its pool."""
        cdef list pool
        stream.bulk_wanted = False
        if stream.workers is self.workers and not self.closed:
            pool = <list>self.pools[stream.place]
            if len(pool) < POOL_STREAMS_MAX:
                pool.append(stream)
                return 0
        # The view has changed meanwhile, so the place may be another worker's by now; or nobody needs so many streams.
        stream.close()
        return 0

    # -- whose answer it was

    cdef bint credit(self, Stream stream) except -1:
        """Take note of the stamp of an answer; return whether `answered` has to be told of each key that it is about."""
        if stream.workers is self.workers:
            self.requester.learn(stream.place, stream.reply.stamp, stream.reply.flags if stream.reply.request else 0)
            return self.requester.troubled
        # Another thread has taken up a newer view meanwhile: who answered may be no owner any more.
        self.requester.learn(self.requester.place_of(stream.workers[stream.place].worker_id), stream.reply.stamp, 0)
        return True

    cdef int answered(self, Stream stream, key) except -1:
        """Take note that an answer was about `key`."""
        self.requester.answered_by(key, stream.workers[stream.place].worker_id, stream.reply.stamp, stream.reply.stable)
        return 0

    def strict_stamp_of(self, Stream stream, key):
        """Return up to which stamp the worker at the other end of a stream must be current to be asked for `key` once more."""
        return self.requester.strict_stamp_at(key, stream.workers[stream.place].worker_id)

    cdef int suspect(self, Stream stream) except -1:
        """A stream broke, or brought no answer in time: ask others before its worker for a while."""
        self.requester.suspect_worker(stream.workers[stream.place].worker_id, now_ns())
        return 0

    def close(self):
        """Close every stream, and the lease of an embedded cluster. Closing twice is harmless."""
        self.closed = True
        for pool in self.pools:
            while pool:
                pool.pop().close()
        if self.lease is not None and self.generation == fork_generation():
            self.lease.close()
        self.lease = None

    # -- answers that are no results

    def out_of_step(self, Stream stream, uint32_t request):
        """Drop a stream whose answer is not to the request that was sent; return the error."""
        stream.close()
        if stream.reply.request == 0 and stream.reply.status >= STATUS_TYPE_MISMATCH:
            return self.requester.error(stream.reply.status, stream.payload, stream.payload_bytes)
        return ProtocolError(f"{stream.address} answered request {stream.reply.request}, not {request}")

    cdef object failure(self, Stream stream, int status):
        """Give the stream back and return the error that its answer is."""
        error = self.requester.error(status, stream.payload, stream.payload_bytes)
        self.give_back(stream)
        return error

    cdef int follow(self, Stream stream) except -1:
        """Take up the view that a worker answered with, because the key is not its own."""
        view = View.from_wire(msgpack.unpackb(PyBytes_FromStringAndSize(stream.payload, stream.payload_bytes)))
        self.give_back(stream)
        if not self.adopt(view):
            # This client's view is the newer one: the worker will have it in a moment.
            time.sleep(PAUSE_NS / 1e9)
        return 0

    cdef object advance(self, object route, int64_t deadline, object error):
        """Return the next step of a route, whose place is one of the view of now; after a round, pause and look for a newer view. At the deadline, raise what `error` came to."""
        cdef int64_t now = now_ns()
        while now < deadline and not self.closed:
            workers = self.workers
            step = route.step(now)
            if workers is not self.workers:
                continue
            if step is not None:
                return step
            if now + PAUSE_NS >= deadline:
                break
            time.sleep(PAUSE_NS / 1e9)
            if not route.stale or now_ns() - self.refreshed_ns > REFRESH_NS:
                try:
                    self.refresh(self.refresh_limit(deadline))
                except NoWorkers as nobody:
                    error = error or nobody
            now = now_ns()
            route.restart(now)
        raise self.given_up(repr(route.key), route.stale, error)

    def given_up(self, str what, bint stale, error):
        """Return the error of a request that went round until its deadline; `error` is the last that it met."""
        if self.closed and (error is None or error.definite):
            return NoWorkers("this client is closed")
        if stale:
            return StaleReplica(f"no owner of {what} had all that this client has seen before the deadline")
        if error is None:
            return NoWorkers(f"no worker took {what} for its own before the deadline")
        if isinstance(error, ConnectionLost):
            return RequestTimeout(f"no owner of {what} answered before the deadline, though each was tried again; the last: {error}")
        return error

    # -- the view

    def refresh(self, int64_t deadline):
        """Ask the workers that are known, then the seeds, for the view. Raises NoWorkers when none answers, NotAdmitted when all refuse these keys.

        Each gets its share of the time, and those that did not answer lately come last.
        """
        cdef Stream stream
        reasons = []
        refusals = []
        addresses = self.known_addresses()
        for index, address in enumerate(addresses):
            limit = share_of(deadline, len(addresses) - index)
            try:
                stream = dial(address, limit, self.keys)
            except OSError as error:
                reasons.append(f"{address}: {error.strerror or error}")
                if isinstance(error, NotAdmitted):
                    refusals.append(error)
                continue
            try:
                self.requester.write_request(stream.out, OP_VIEW, 0, b"", 0, b"", 0)
                stream.send(limit)
                stream.receive(limit)
                self.requester.settle(stream.reply.stable)
                if stream.reply.status != STATUS_OK:
                    raise self.requester.error(stream.reply.status, stream.payload, stream.payload_bytes)
                self.adopt(View.from_wire(msgpack.unpackb(PyBytes_FromStringAndSize(stream.payload, stream.payload_bytes))))
                self.requester.reached(address)
                self.refreshed_ns = now_ns()
                return
            except (AnnaError, ValueError) as error:
                reasons.append(f"{address}: {error}")
                if isinstance(error, NotAdmitted):
                    refusals.append(error)
            finally:
                stream.close()
        if refusals and len(refusals) == len(reasons):
            raise refusals[0]
        raise NoWorkers(f"no worker answered at {'; '.join(reasons) or 'any address: none was given'}")

    cdef int look_again(self) except -1:
        """After an answer that came by a detour, or told of another view, see whether there is a newer one; not too often."""
        cdef int64_t now = now_ns()
        if (self.requester.suspects or self.requester.behind) and now - self.refreshed_ns > REFRESH_NS:
            self.refreshed_ns = now
            self.requester.behind = False
            try:
                self.refresh(now + SHARE_MIN_NS)
            except NoWorkers:
                pass  # the owner that has just answered is asked again next time
        return 0

    def known_addresses(self):
        """Return every address at which somebody may know the view, the best first."""
        likely, unlikely = [], []
        for place, worker in enumerate(self.workers):
            (unlikely if worker.worker_id in self.requester.suspects else likely).extend(self.requester.addresses(place))
        return list(dict.fromkeys([*(a for a in self.seeds if a not in unlikely), *likely, *unlikely, *self.seeds]))

    def adopt(self, view):
        """Take up a newer view, and keep the streams to the addresses that are still in it; return whether it was newer."""
        cdef dict streams = {}
        cdef Stream stream
        if not self.requester.adopt(view) and self.workers:
            return False
        # No Python code runs from where the requester has the view to where the pools are its own.
        workers = self.requester.workers
        for pool in self.pools:
            while pool:
                stream = <Stream>(<list>pool).pop()
                streams.setdefault(stream.address, []).append(stream)
        pools = [[stream for address in worker.addresses for stream in streams.pop(address, ())] for worker in workers]
        self.pools, self.workers = pools, workers
        self.share_ns = self.timeout_ns // max(self.requester.copies, 1)
        for rest in streams.values():
            for stream in rest:
                stream.close()
        return True

    def ask_worker(self, int place, int op, int64_t deadline):
        """Return what the worker at `place` answers to a request without a key, unpacked."""
        return self.ask_frame(place, self.requester.request(op), deadline)

    def ask_frame(self, int place, asked, int64_t deadline):
        """Return what the worker at `place` answers to (id, frame), unpacked."""
        cdef Stream stream = self.take(place, deadline, deadline)
        cdef bytes frame
        cdef uint32_t request
        request, frame = asked
        try:
            stream.out.append(<char*>frame, len(frame))
            stream.send(deadline)
            stream.receive(deadline)
            if stream.reply.request != request:
                raise self.out_of_step(stream, request)
        except BaseException:
            stream.close()
            raise
        if stream.reply.status != STATUS_OK:
            raise self.failure(stream, stream.reply.status)
        answer = msgpack.unpackb(PyBytes_FromStringAndSize(stream.payload, stream.payload_bytes))
        self.give_back(stream)
        return answer


def _shown(keys):
    """Return the keys to show: those given, or those of the environment. Who has none does not load TLS."""
    if keys is None and not os.environ.get("ANNA_KEYS"):
        return None
    from anna.keys import keys_from

    return keys_from(keys)


cdef Stream dial(str address, int64_t deadline, keys):
    """Return a new stream. A Unix socket whose worker has not accepted the last ones yet is tried again until the deadline."""
    while True:
        try:
            return Stream(address, deadline, keys)
        except BlockingIOError:
            if now_ns() + PAUSE_NS >= deadline:
                raise
            time.sleep(PAUSE_NS / 1e9)


cdef int64_t share_of(int64_t deadline, Py_ssize_t count) except? -1:
    """Return until when the first of `count` may take, so that each has its share of the time, and not too little."""
    cdef int64_t now = now_ns()
    return min(deadline, now + max((deadline - now) // count, SHARE_MIN_NS))
