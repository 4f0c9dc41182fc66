"""All rings of one worker: who is served when, and when the worker sleeps.

The one rule: sockets and timers have their turn. Rings are looked at for some tens of microseconds, then the loop goes round once. When nothing has
come for a moment (`patience`), every ring is told that its bell must be rung, each is looked at once more, and the worker sleeps in its loop.
"""

from libc.stdint cimport int64_t

from anna.kvs.worker cimport Worker
from anna.protocol cimport Protocol
from anna.shared.patience cimport Patience
from anna.shared.segment cimport Segment, processor
from anna.shared.transport cimport RingTransport
from anna.stream cimport now_ns

import asyncio
import logging
import os
import socket

from anna.config import RING_BYTES, RING_STAY_NS, RING_TURN_NS

cdef int64_t TURN_NS = RING_TURN_NS
cdef int64_t STAY_NS = RING_STAY_NS

log = logging.getLogger("anna.server")


cdef class Poller:
    """The rings of `server`, at most `most`; 0: no client gets any."""

    def __init__(self, server, int most):
        self.server = server
        self.most = most
        self.awake = []
        self.patience = Patience(RING_STAY_NS)

    # -- their life

    def grant(self):
        """Return new memory for one more connection; None when it must do without."""
        if self.count >= self.most:
            return None
        try:
            return Segment.make(RING_BYTES)
        except OSError as error:
            log.warning("no memory could be shared with a client: %s", error)
            return None

    def open(self, Protocol protocol, Segment segment, bytes answer):
        """Send `answer` with the memory and the bell, and return the transport from now on; None when the socket did not take it."""
        plain = protocol.transport
        try:
            with socket.socket(fileno=os.dup(plain.get_extra_info("socket").fileno())) as peer:
                socket.send_fds(peer, [answer], [segment.memory_fd, segment.bell_fd])
        except OSError:
            return None
        segment.forget_memory_fd()
        transport = RingTransport(protocol, self, segment, plain)
        self.count += 1
        asyncio.get_running_loop().add_reader(segment.bell_fd, self.hear, transport)
        self.wake(transport)
        return transport

    def forget(self, RingTransport transport):
        """A connection has ended."""
        asyncio.get_running_loop().remove_reader(transport.segment.bell_fd)
        self.count -= 1
        if transport.awake:
            transport.awake = False
            self.awake.remove(transport)

    # -- their turns

    def hear(self, RingTransport transport):
        """A bell was rung."""
        if transport.segment is None:
            return
        transport.segment.silence_bell()
        self.rouse(transport)
        if not self.scheduled:
            self.turn()

    def wake(self, RingTransport transport):
        """There is something to do for a connection, though its bell was not rung."""
        self.rouse(transport)
        self.go_on()

    cdef int rouse(self, RingTransport transport) except -1:
        if not transport.awake and transport.rings is not None:
            transport.rings.wake()
            transport.awake = True
            self.awake.append(transport)
            self.quiet_since = now_ns()
        return 0

    def go_on(self):
        """Look at the rings after the loop has gone round."""
        if not self.scheduled:
            self.scheduled = True
            asyncio.get_running_loop().call_soon(self.turn)

    def turn(self):
        """Serve the rings that are awake, for as long as the loop can wait."""
        cdef int64_t begin = now_ns()
        cdef int64_t now = begin
        cdef RingTransport latest
        self.scheduled = True
        while self.awake:
            if self.serve_all():
                now = now_ns()
                if self.staying:
                    self.patience.count(now, now - self.quiet_since, True)
                    self.staying = False
                self.quiet_since = now
                if (<Worker>self.server.worker).urgent:
                    begin = 0
            elif not self.goes_on(now) and self.all_asleep():
                break
            if now - begin > TURN_NS:
                self.scheduled = False
                self.go_on()
                return
            latest = <RingTransport>self.awake[len(self.awake) - 1]
            if latest.rings is not None:
                with nogil:
                    self.patience.stay(latest.rings, now - self.quiet_since)
            now = now_ns()
        self.scheduled = False

    cdef bint goes_on(self, int64_t now) noexcept:
        """Whether to stay awake though nothing has come."""
        if not self.staying:
            self.staying = self.patience.pays(now)
        elif now - self.quiet_since > STAY_NS:
            self.patience.count(now, now - self.quiet_since, False)
            self.staying = False
        return self.staying

    cdef bint serve_all(self) except -1:
        """Serve each once; whether there was anything to do."""
        cdef RingTransport transport
        cdef bint busy = False
        cdef int cpu = processor()
        cdef Py_ssize_t index = len(self.awake)
        while index > 0:
            index -= 1
            if index >= len(self.awake):
                continue  # some have ended meanwhile
            transport = <RingTransport>self.awake[index]
            if transport.rings is None:
                continue
            transport.rings.stand_on(cpu)
            try:
                busy = transport.serve() or busy
            except Exception:  # logged, and it ends this connection alone: the others must be served
                log.exception("a connection through shared memory was ended")
                transport.abort()
        return busy

    cdef bint all_asleep(self) except -1:
        """Let each wait for its bell; whether none had anything to do."""
        cdef RingTransport transport
        self.awake = [transport for transport in self.awake if not transport.falls_asleep()]
        return not self.awake
