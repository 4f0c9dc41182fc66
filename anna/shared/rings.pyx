"""Two rings of bytes in memory that a client and a worker share: requests one way, replies the other.

The one rule: each index has one writer, and neither side believes the other. A ring's *tail* counts the bytes that were ever put into it, its
*head* those that were ever taken out, both modulo 2**32; the bytes between them are the producer's message. The producer writes bytes and then
(release) the tail, the consumer reads the tail (acquire), then bytes, then (release) writes the head, after which the producer may write there again.
A side keeps its own two indexes in memory of its own and only publishes them. Of the other side's it asks each time that they make sense: never more than a
ring between head and tail. Where they do not, the answer is LIE, and the connection ends. Bytes are copied out before anybody looks at what they
say, for the other side may change them at any time.

**No wake-up is lost.** Who finds nothing to do stores what it waits for in its sleep flag, then fences, then looks once more, and only then sleeps. Who moves an
index then fences, then looks at the flag. Both fences are sequentially consistent, so one of the two sees what the other stored: either the
sleeper sees the index and does not sleep, or the mover sees the flag, clears it, and wakes. A wake-up that comes between the last look and
the sleep is not lost either: the worker's bell is an eventfd, which remembers; the client's is a futex on the flag itself, and the
kernel does not let it sleep when the flag is not any more what it was. That each bell clears the flag spares all further ones
until the next sleep. `tests/anna/shared/test_wake_ups.py` looks at every order of these steps.

There are no system calls here: `segment` has the memory and the bells. Source: Lamport 1977 (one producer, one consumer); decision record 0018.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

LIE = -1

HEADER_BYTES = PAGE_BYTES


def memory_bytes(ring_bytes):
    """Return how much memory two rings of `ring_bytes` take, a power of two from 64 to 2**30."""
    if not 64 <= ring_bytes <= 1 << 30 or ring_bytes & (ring_bytes - 1):
        raise ValueError(f"a ring has {ring_bytes} bytes; it must be a power of two from 64 to 1,073,741,824")
    return PAGE_BYTES + 2 * ring_bytes


cdef class Rings:
    """One side's view of both rings in `memory`, a writable buffer of `memory_bytes(ring_bytes)` zeros at first.

    `begin` is where all indexes are: 0, but in tests.
    """

    def __init__(self, memory, ring_bytes, *, worker, uint32_t begin=0):
        cdef Py_buffer view
        if len(memory) != memory_bytes(ring_bytes):
            raise ValueError(f"two rings of {ring_bytes} bytes take {memory_bytes(ring_bytes)}, not {len(memory)}")
        PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE)
        self.look(<char*>view.buf, ring_bytes, worker)
        PyBuffer_Release(&view)
        self.memory = memory
        self.tail = self.head = begin
        store(self.own_tail, begin)
        store(self.own_head, begin)

    cdef int look(self, char* base, uint32_t ring_bytes, bint worker) except -1:
        """Take up the rings at `base`, as who answers or as who asks; `memory_bytes` were checked."""
        cdef char* requests = base + PAGE_BYTES
        cdef char* replies = requests + ring_bytes
        self.base = base
        self.ring_bytes = ring_bytes
        self.tail = self.head = 0
        self.cpu = 0
        self.outgoing, self.incoming = (replies, requests) if worker else (requests, replies)
        self.own_tail = base + (AT_REPLIES_TAIL if worker else AT_REQUESTS_TAIL)
        self.their_head = base + (AT_REPLIES_HEAD if worker else AT_REQUESTS_HEAD)
        self.their_tail = base + (AT_REQUESTS_TAIL if worker else AT_REPLIES_TAIL)
        self.own_head = base + (AT_REQUESTS_HEAD if worker else AT_REPLIES_HEAD)
        self.own_sleep = base + (AT_WORKER_SLEEPS if worker else AT_CLIENT_SLEEPS)
        self.their_sleep = base + (AT_CLIENT_SLEEPS if worker else AT_WORKER_SLEEPS)
        self.own_cpu = base + (AT_WORKER_CPU if worker else AT_CLIENT_CPU)
        self.their_cpu = base + (AT_CLIENT_CPU if worker else AT_WORKER_CPU)
        return 0

    # -- bytes

    cdef Py_ssize_t readable(self) noexcept nogil:
        """Return how many bytes have come and were not taken, LIE when that cannot be."""
        cdef uint32_t count = load(self.their_tail) - self.head
        return <Py_ssize_t>count if count <= self.ring_bytes else -1

    cdef Py_ssize_t room(self) noexcept nogil:
        """Return how many bytes may be put, LIE when the other side says that it has taken what never was."""
        cdef uint32_t used = self.tail - load(self.their_head)
        return <Py_ssize_t>(self.ring_bytes - used) if used <= self.ring_bytes else -1

    cdef Py_ssize_t put(self, const char* data, Py_ssize_t size) noexcept nogil:
        """Put as many of `size` bytes as there is room for; return how many, or LIE."""
        cdef Py_ssize_t count = self.room()
        cdef uint32_t at = self.tail & (self.ring_bytes - 1)
        cdef Py_ssize_t first
        if count <= 0:
            return count
        count = min(count, size)
        first = min(count, <Py_ssize_t>(self.ring_bytes - at))
        memcpy(self.outgoing + at, data, first)
        memcpy(self.outgoing, data + first, count - first)
        self.tail += <uint32_t>count
        store(self.own_tail, self.tail)
        return count

    cdef Py_ssize_t take(self, char* place, Py_ssize_t room) noexcept nogil:
        """Copy at most `room` bytes to `place`; return how many, or LIE."""
        cdef Py_ssize_t count = self.readable()
        cdef uint32_t at = self.head & (self.ring_bytes - 1)
        cdef Py_ssize_t first
        if count <= 0:
            return count
        count = min(count, room)
        first = min(count, <Py_ssize_t>(self.ring_bytes - at))
        memcpy(place, self.incoming + at, first)
        memcpy(place + first, self.incoming, count - first)
        self.skip(count)
        return count

    cdef const char* front(self, Py_ssize_t* size) noexcept nogil:
        """Return where the next bytes are, `size` of them in one piece (or LIE). Only for who copies them without a look: they may change."""
        cdef uint32_t at = self.head & (self.ring_bytes - 1)
        size[0] = min(self.readable(), <Py_ssize_t>(self.ring_bytes - at))
        return self.incoming + at

    cdef void skip(self, Py_ssize_t size) noexcept nogil:
        """Give up the first `size` readable bytes."""
        self.head += <uint32_t>size
        store(self.own_head, self.head)

    # -- sleeping and waking

    cdef bint sleep(self, uint32_t wanted) noexcept nogil:
        """Say that this side waits for DATA, ROOM or both; False, and nothing is said, when it is there."""
        store(self.own_sleep, wanted)
        fence()
        if (wanted & DATA and self.readable() != 0) or (wanted & ROOM and self.room() != 0):
            store(self.own_sleep, 0)
            return False
        return True

    cdef void wake(self) noexcept nogil:
        """Say that this side does not sleep."""
        if load(self.own_sleep):
            store(self.own_sleep, 0)

    cdef bint must_wake(self, uint32_t moved) noexcept nogil:
        """Whether the other side sleeps and waits for what this one has just moved: DATA (the tail), ROOM (the head). It is then taken for awake."""
        fence()
        if not load(self.their_sleep) & moved:
            return False
        return swap(self.their_sleep, 0) != 0

    # -- where the two run

    cdef void stand_on(self, int cpu) noexcept nogil:
        """Tell the other side on which processor this one runs."""
        if <uint32_t>(cpu + 1) != self.cpu:
            self.cpu = <uint32_t>(cpu + 1)
            store(self.own_cpu, self.cpu)

    cdef bint beside(self) noexcept nogil:
        """Whether the other side ran on this one's processor when it last said so: then it cannot run while this one spins."""
        return load(self.their_cpu) == self.cpu

    # -- for tests: the same from Python

    def write(self, bytes data):
        """`put` from Python."""
        return self.put(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    def read(self, Py_ssize_t most):
        """Return at most `most` bytes. Raises ValueError on a lie."""
        cdef bytes data = PyBytes_FromStringAndSize(NULL, most)
        cdef Py_ssize_t count = self.take(PyBytes_AS_STRING(data), most)
        if count < 0:
            raise ValueError("the other side's index is out of its ring")
        return data[:count]

    def counts(self):
        """Return (readable, room), each LIE when it cannot be."""
        return self.readable(), self.room()

    def fall_asleep(self, uint32_t wanted):
        """`sleep` from Python: 1 DATA, 2 ROOM."""
        return bool(self.sleep(wanted))

    def has_to_wake(self, uint32_t moved):
        """`must_wake` from Python."""
        return bool(self.must_wake(moved))

    def check(self):
        """Assert what holds between two honest sides."""
        assert 0 <= self.readable() <= self.ring_bytes, "more is readable than a ring holds"
        assert 0 <= self.room() <= self.ring_bytes, "there is more room than a ring has"
        assert load(self.own_tail) == self.tail and load(self.own_head) == self.head, "an index was published by somebody else"
