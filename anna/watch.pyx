"""Watching a key: the blocking client's side of a subscription.

The one rule: a watch goes on until it is closed, or nothing has changed for as long as its caller would wait. It has a stream of its
own, to one owner of the key (inside a function: to its node's cache). When nothing has come for the client's timeout, it asks that owner again, which shows both that it is there and
that it still owns the key; when that fails, the next owner is asked.

A watch is read in two ways: iterating waits for what comes next; `value` and `lattice` are what has come, and do not wait, so a loop that
computes can look as often as it likes.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t

cimport cython

from anna.client cimport Client
from anna.connections cimport Connections
from anna.requester cimport Requester
from anna.requests cimport key_bytes, mark
from anna.stream cimport Stream, now_ns
from anna.wire cimport *

import time

import msgpack

from anna.errors import ConnectionLost, NoWorkers, RequestTimeout, StaleReplica, UnavailableError
from anna.messages import View
from anna.watching import Watched, pushed

cdef int64_t FOREVER_NS = 1 << 60

cdef enum:
    PAUSE_NS = 5_000_000
    # How long a look at `value` may take to open another stream, when its own has ended.
    REOPEN_NS = 20_000_000


@cython.final
cdef class Watch:
    """An iterator of the values of one key as they change, and the newest of them; made by `Client.watch`. `close` may be called by another thread."""

    cdef Client client
    cdef bytes key
    cdef object patience
    cdef object watched
    cdef Stream stream
    cdef uint32_t asked
    cdef bint waiting
    cdef bint closed
    cdef bint told  # whether an owner has ever said what the key holds
    cdef int64_t heard_ns
    cdef int64_t reopen_ns

    def __init__(self, Client client, key, timeout):
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout is {timeout} s; it must be positive")
        self.client = client
        self.key = key_bytes(key, client.requester.system)
        self.patience = timeout
        self.watched = Watched()

    def __iter__(self):
        return self

    def __next__(self):
        """Return the next value."""
        cdef int64_t end = FOREVER_NS if self.patience is None else now_ns() + <int64_t>(<double>self.patience * 1e9)
        while not self.closed:
            self.waiting = True
            try:
                if self.stream is None:
                    self.subscribe(end)
                state = self.receive(end)
            except UnavailableError as error:
                self.drop(not isinstance(error, StaleReplica))
                if self.client.closed:
                    raise
                state = None
                if now_ns() < end:
                    time.sleep(PAUSE_NS / 1e9)
            finally:
                self.waiting = False
            if state is not None:
                return (<object>state).read(self.client.requester.allow_pickle)
            if now_ns() >= end:
                break
        if self.closed:
            self.drop(False)
        raise StopIteration

    @property
    def value(self):
        """The newest value that has come; None while there is none. Does not wait, except at the first look, for the key's present value.

        That costs a microsecond when nothing has come. It never goes back, as what is iterated over does not. When no owner can be reached, it stays what it
        was; the first look then raises UnavailableError by the client's timeout.
        """
        state = self.lattice
        return None if state is None else state.read(self.client.requester.allow_pickle)

    @property
    def lattice(self):
        """The same as a lattice, the same object while nothing has come that is more; not to be changed."""
        if not self.closed:
            if self.told:
                self.take_in()
            else:
                self.wait_until_told()
        return self.watched.state

    cdef int wait_until_told(self) except -1:
        """Wait until an owner has said what the key holds. Raises UnavailableError."""
        cdef int64_t end = now_ns() + self.client.timeout_ns
        while not self.told:
            try:
                if self.stream is None:
                    self.subscribe(end)
                self.receive(end)
            except UnavailableError as error:
                self.drop(not isinstance(error, StaleReplica))
                if self.client.closed or now_ns() >= end:
                    raise
                time.sleep(PAUSE_NS / 1e9)
        return 0

    cdef int take_in(self) except -1:
        """Take in all that has come. A stream that has ended, or is silent though it was asked, is replaced by another."""
        cdef int64_t now = now_ns()
        try:
            if self.stream is None:
                if now < self.reopen_ns or self.client.closed:
                    return 0
                self.reopen_ns = now + REOPEN_NS
                self.subscribe(now + REOPEN_NS)
                self.heard_ns = now
            while self.stream is not None and self.stream.has_come():
                self.receive(now + REOPEN_NS)
            if self.stream is not None and now - self.heard_ns > self.client.timeout_ns:
                if self.asked:
                    self.drop(True)
                else:
                    self.heard_ns = now
                    self.ask(self.client.strict_stamp_of(self.stream, self.key), now + REOPEN_NS)
        except UnavailableError as error:
            self.drop(not isinstance(error, StaleReplica))
        return 0

    def close(self):
        """End the iteration, also one that waits in another thread. Closing twice is harmless."""
        self.closed = True
        stream = self.stream
        if stream is not None and self.waiting:
            (<Stream>stream).interrupt()
        elif stream is not None:
            self.drop(False)

    def __del__(self):
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    cdef int drop(self, bint failed) except -1:
        """Give up the stream; with `failed`, others are asked before that worker for a while."""
        if self.stream is not None:
            if failed and not self.closed:
                self.client.suspect(self.stream)
            self.stream.close()
            self.stream = None
        return 0

    cdef int subscribe(self, int64_t end) except -1:
        """Open a stream to an owner, and ask it for the key and all that changes."""
        cdef int64_t deadline = min(end, now_ns() + self.client.timeout_ns)
        cdef object route = self.client.requester.route(self.key, True, now_ns(), deadline)
        error = None
        while True:
            place, limit, strict = self.client.advance(route, deadline, error)
            try:
                self.stream = self.client.connect(place, min(<int64_t>limit, self.client.reach(deadline)))
                self.ask(strict, limit)
                return 0
            except (NoWorkers, ConnectionLost, RequestTimeout) as problem:
                error = problem
                if self.client.closed or self.closed:
                    raise
                self.drop(True)

    cdef int ask(self, uint64_t strict, int64_t limit) except -1:
        """Send a subscription; one that exists already is answered with the present state too."""
        cdef Requester requester = self.client.requester
        self.asked = requester.write_request(self.stream.out, OP_SUBSCRIBE, 0, PyBytes_AS_STRING(self.key), len(self.key), b"", 0)
        mark(<RequestHeader*>self.stream.out.data, strict, 0)
        self.stream.send(limit)
        return 0

    cdef object receive(self, int64_t end):
        """Return the next state that is to be shown; None when there was something else, or nothing. Raises UnavailableError."""
        cdef Stream stream = self.stream
        cdef int64_t limit = now_ns() + self.client.timeout_ns
        try:
            stream.receive(min(limit, end))
        except RequestTimeout:
            if self.asked or stream.has_begun():
                raise
            if now_ns() < end:
                self.ask(self.client.strict_stamp_of(stream, self.key), limit)
            return None
        self.heard_ns = now_ns()
        self.client.credit(stream)
        self.client.requester.settle(stream.reply.stable)
        if stream.reply.flags == OP_PUSH and stream.reply.request == 0:
            self.client.answered(stream, self.key)
            return self.show(pushed(PyBytes_FromStringAndSize(stream.payload, stream.payload_bytes)))
        if stream.reply.request != self.asked:
            raise ConnectionLost(str(self.client.out_of_step(stream, self.asked)))
        self.asked = 0
        if stream.reply.status == STATUS_WRONG_WORKER:
            self.client.adopt(View.from_wire(msgpack.unpackb(PyBytes_FromStringAndSize(stream.payload, stream.payload_bytes))))
            stream.close()
            self.stream = None
            return None
        if stream.reply.status == STATUS_STALE:
            raise self.client.requester.error(STATUS_STALE, stream.payload, stream.payload_bytes)
        if stream.reply.status > STATUS_MISSING:
            error = self.client.requester.error(stream.reply.status, stream.payload, stream.payload_bytes)
            self.close()
            raise error
        self.client.answered(stream, self.key)
        return self.show(PyBytes_FromStringAndSize(stream.payload, stream.payload_bytes))

    cdef object show(self, bytes state):
        """Return what is to be shown of a state that has arrived, None for nothing."""
        self.told = True
        if self.stream.reply.status != STATUS_OK:
            return self.watched.show(None)
        return self.watched.show(self.client.requester.decode_lattice(self.stream.reply.type, state))
