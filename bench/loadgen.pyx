"""A load generator without Python objects in its loop: what a server can do, not what a client can.

It keeps `connections × depth` requests in flight from one thread: on each connection a flight of `depth` requests is
sent in one piece, and the next flight leaves when the last reply of this one has arrived (redis-benchmark's own
pattern, so that the two can be compared). The one rule: both protocols take the same path. A request is a template of
bytes in which eight decimal digits, the key's number, are overwritten for each request; only the parsing of
replies knows RESP from Anna's frames. A reply that is an error or a miss is counted, never ignored.
"""

from libc.errno cimport EAGAIN, EINTR, EPIPE, ECONNRESET, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcpy
from posix.time cimport CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec
from posix.unistd cimport close

from dataclasses import dataclass

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    enum: EPOLLIN, EPOLLOUT, EPOLL_CTL_ADD, EPOLL_CTL_MOD
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event* event)
    int epoll_wait(int epoll, epoll_event* events, int most, int timeout_ms)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT, MSG_NOSIGNAL
    ssize_t send(int fd, const void* data, size_t size, int flags)
    ssize_t recv(int fd, void* data, size_t size, int flags)

cdef enum:
    EVENTS_MAX = 256
    DIGITS = 8
    KEYS_MAX = 100000000
    SILENCE_MAX_MS = 5000
    FRAME_HEADER_BYTES = 24     # of a reply, its length field included
    STATUS_OK = 0               # of anna/wire.pxd
    STATUS_MISSING = 1
    BUCKETS_PER_OCTAVE = 32
    BUCKETS = 60 * BUCKETS_PER_OCTAVE

cdef enum Protocol:
    RESP_PROTOCOL = 0
    ANNA_PROTOCOL = 1

cdef enum Trouble:
    NO_TROUBLE = 0
    CLOSED = 1
    SILENT = 2
    MALFORMED = 3
    SYSTEM = 4

cdef enum Parsed:
    HIT = 0
    INCOMPLETE = 1
    MISS = 2
    ERROR = 3
    BROKEN = 4

RESP = RESP_PROTOCOL
ANNA = ANNA_PROTOCOL

cdef struct Connection:
    int fd
    bint wants_to_send
    char* request       # `depth` requests, one after the other
    size_t sent
    char* carried       # the beginning of a reply whose end has not arrived
    size_t carried_size
    uint32_t awaited    # replies still to come in this flight
    uint64_t started_ns
    uint64_t stamp      # greatest that this connection has seen
    const uint32_t* pool    # the numbers to draw from; NULL: any below `keys`
    uint64_t pool_size

cdef struct Load:
    Protocol protocol
    int epoll
    uint32_t depth
    size_t stride       # bytes of one request
    size_t digits_at
    int64_t stamp_at    # -1: requests carry none
    uint64_t keys
    bint sequential
    uint64_t sequence   # next number when sequential
    uint64_t random
    uint64_t deadline_ns
    char* inbox
    size_t inbox_size
    uint64_t flying     # connections with a flight in the air
    uint64_t ops
    uint64_t hits
    uint64_t misses
    uint64_t errors
    uint64_t* latencies # histogram of flights, BUCKETS long


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run saw: `ops` replies in `seconds`, latencies of flights in microseconds, the generator's own CPU share."""

    ops: int
    seconds: float
    misses: int
    errors: int
    p50_us: float
    p99_us: float
    generator_cpu: float

    @property
    def rate(self) -> float:
        """Replies per second."""
        return self.ops / self.seconds


cdef uint64_t nanoseconds(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef inline uint32_t bucket_of(uint64_t value) noexcept nogil:
    cdef uint32_t shift = 0
    while (value >> shift) >= 2 * BUCKETS_PER_OCTAVE:
        shift += 1
    return shift * BUCKETS_PER_OCTAVE + <uint32_t>(value >> shift)


def bucket_floor(index: int) -> int:
    """Return the least number of nanoseconds that falls into bucket `index`; buckets are 3 % wide."""
    if index < 2 * BUCKETS_PER_OCTAVE:
        return index
    shift = index // BUCKETS_PER_OCTAVE - 1
    return (index - shift * BUCKETS_PER_OCTAVE) << shift


cdef inline uint64_t next_number(Load* load) noexcept nogil:
    """Return the next key's number: in order, or from xorshift64* scaled to `keys`."""
    cdef uint64_t x
    if load.sequential:
        x = load.sequence % load.keys
        load.sequence += 1
        return x
    x = load.random
    x ^= x >> 12
    x ^= x << 25
    x ^= x >> 27
    load.random = x
    return (((x * <uint64_t>0x2545F4914F6CDD1D) >> 32) * load.keys) >> 32


cdef inline uint64_t number_for(Load* load, Connection* peer) noexcept nogil:
    """Return the next key's number on one connection."""
    cdef uint64_t x
    if peer.pool == NULL:
        return next_number(load)
    x = load.random
    x ^= x >> 12
    x ^= x << 25
    x ^= x >> 27
    load.random = x
    return peer.pool[(((x * <uint64_t>0x2545F4914F6CDD1D) >> 32) * peer.pool_size) >> 32]


cdef inline void write_digits(char* target, uint64_t number) noexcept nogil:
    cdef uint32_t rest = <uint32_t>number
    cdef int at
    for at in range(DIGITS - 1, -1, -1):
        target[at] = c'0' + <char>(rest % 10)
        rest //= 10


cdef Trouble push(Load* load, Connection* peer, uint32_t index) noexcept nogil:
    """Send what is left of the flight; ask epoll for room when the socket is full."""
    cdef size_t size = load.stride * load.depth
    cdef ssize_t done
    cdef epoll_event event
    while peer.sent < size:
        done = send(peer.fd, peer.request + peer.sent, size - peer.sent, MSG_DONTWAIT | MSG_NOSIGNAL)
        if done >= 0:
            peer.sent += <size_t>done
        elif errno == EAGAIN:
            break
        elif errno != EINTR:
            return CLOSED if errno == EPIPE or errno == ECONNRESET else SYSTEM
    if peer.wants_to_send != (peer.sent < size):
        peer.wants_to_send = peer.sent < size
        event.events = EPOLLIN | (EPOLLOUT if peer.wants_to_send else 0)
        event.data.u32 = index
        if epoll_ctl(load.epoll, EPOLL_CTL_MOD, peer.fd, &event):
            return SYSTEM
    return NO_TROUBLE


cdef Trouble take_off(Load* load, Connection* peer, uint32_t index, uint64_t now) noexcept nogil:
    """Write fresh keys (and the stamp seen last) into the flight and send it."""
    cdef char* request = peer.request
    cdef uint32_t _
    for _ in range(load.depth):
        write_digits(request + load.digits_at, number_for(load, peer))
        if load.stamp_at >= 0:
            memcpy(request + load.stamp_at, &peer.stamp, sizeof(uint64_t))
        request += load.stride
    peer.sent = 0
    peer.awaited = load.depth
    peer.started_ns = now
    load.flying += 1
    return push(load, peer, index)


cdef Parsed parse_resp(const char* data, size_t size, size_t* used) noexcept nogil:
    cdef const char* end
    cdef const char* at = data + 1
    cdef int64_t length = 0
    end = <const char*>memchr(data, 10, size)
    if end == NULL:
        return INCOMPLETE
    used[0] = <size_t>(end - data) + 1
    if data[0] == c'+' or data[0] == c':':
        return HIT
    if data[0] == c'-':
        return ERROR
    if data[0] != c'$':
        return BROKEN
    if at[0] == c'-':
        return MISS
    while at < end and c'0' <= at[0] <= c'9':
        length = length * 10 + (at[0] - c'0')
        at += 1
    used[0] += <size_t>length + 2
    return HIT if used[0] <= size else INCOMPLETE


cdef inline Parsed parse_frame(Load* load, Connection* peer, const char* data, size_t size, size_t* used) noexcept nogil:
    cdef uint32_t length
    cdef uint64_t stamp
    if size < FRAME_HEADER_BYTES:
        return INCOMPLETE
    memcpy(&length, data, sizeof(uint32_t))
    if length < FRAME_HEADER_BYTES - sizeof(uint32_t) or data[4] != 1:
        return BROKEN
    used[0] = length + sizeof(uint32_t)
    if size < used[0]:
        return INCOMPLETE
    memcpy(&stamp, data + 16, sizeof(uint64_t))
    if stamp > peer.stamp:
        peer.stamp = stamp
    if <uint8_t>data[5] == STATUS_OK:
        return HIT
    return MISS if <uint8_t>data[5] == STATUS_MISSING else ERROR


cdef Trouble digest(Load* load, Connection* peer, size_t size) noexcept nogil:
    """Count the whole replies in the inbox; carry the rest over to the next read."""
    cdef size_t at = 0
    cdef size_t used = 0
    cdef Parsed parsed
    while at < size:
        if load.protocol == ANNA_PROTOCOL:
            parsed = parse_frame(load, peer, load.inbox + at, size - at, &used)
        else:
            parsed = parse_resp(load.inbox + at, size - at, &used)
        if parsed == INCOMPLETE:
            break
        if parsed == BROKEN or peer.awaited == 0:
            return MALFORMED
        at += used
        peer.awaited -= 1
        load.ops += 1
        load.hits += parsed == HIT
        load.misses += parsed == MISS
        load.errors += parsed == ERROR
    peer.carried_size = size - at
    if peer.carried_size == load.inbox_size:
        return MALFORMED
    memcpy(peer.carried, load.inbox + at, peer.carried_size)
    return NO_TROUBLE


cdef Trouble receive(Load* load, Connection* peer, uint32_t index) noexcept nogil:
    """Read once; when the flight has landed, record its latency and send the next unless time is up."""
    cdef ssize_t size
    cdef uint64_t now
    cdef Trouble trouble
    memcpy(load.inbox, peer.carried, peer.carried_size)
    size = recv(peer.fd, load.inbox + peer.carried_size, load.inbox_size - peer.carried_size, MSG_DONTWAIT)
    if size == 0:
        return CLOSED
    if size < 0:
        return NO_TROUBLE if errno == EAGAIN or errno == EINTR else CLOSED
    trouble = digest(load, peer, peer.carried_size + <size_t>size)
    if trouble != NO_TROUBLE or peer.awaited:
        return trouble
    now = nanoseconds(CLOCK_MONOTONIC)
    load.latencies[bucket_of(now - peer.started_ns)] += 1
    load.flying -= 1
    if load.sequence >= load.keys if load.sequential else now >= load.deadline_ns:
        return NO_TROUBLE
    return take_off(load, peer, index, now)


cdef Trouble fly(Load* load, Connection* peers, uint32_t count) noexcept nogil:
    """Start every connection, then serve events until all flights of the run have landed."""
    cdef epoll_event[EVENTS_MAX] events
    cdef epoll_event event
    cdef uint32_t index
    cdef int ready, at
    cdef Trouble trouble
    for index in range(count):
        event.events = EPOLLIN
        event.data.u32 = index
        if epoll_ctl(load.epoll, EPOLL_CTL_ADD, peers[index].fd, &event):
            return SYSTEM
        trouble = take_off(load, &peers[index], index, nanoseconds(CLOCK_MONOTONIC))
        if trouble != NO_TROUBLE:
            return trouble
    while load.flying:
        ready = epoll_wait(load.epoll, events, EVENTS_MAX, SILENCE_MAX_MS)
        if ready == 0:
            return SILENT
        if ready < 0 and errno != EINTR:
            return SYSTEM
        for at in range(ready):
            index = events[at].data.u32
            trouble = NO_TROUBLE
            if events[at].events & EPOLLOUT:
                trouble = push(load, &peers[index], index)
            if trouble == NO_TROUBLE and events[at].events & ~<uint32_t>EPOLLOUT:
                trouble = receive(load, &peers[index], index)
            if trouble != NO_TROUBLE:
                return trouble
    return NO_TROUBLE


def percentile_us(counts: list[int], share: float) -> float:
    """Return the latency in microseconds that `share` of the flights stayed below, within 3 %."""
    rank, seen = share * sum(counts), 0
    for index, count in enumerate(counts):
        seen += count
        if count and seen >= rank:
            return bucket_floor(index) / 1000
    return 0.0


def run(
    list fds not None,
    bytes template not None,
    size_t digits_at,
    int protocol,
    uint32_t depth,
    uint64_t keys,
    double seconds,
    *,
    int64_t stamp_at=-1,
    uint64_t seed=1,
    bint sequential=False,
    list pools=None,
    size_t reply_bytes_max=1 << 18,
) -> Outcome:
    """Load the server behind the connected sockets `fds` for `seconds`, or write each key once when `sequential`.

    `template` is one request; its bytes `digits_at … digits_at + 8` become the key's number. `stamp_at` is where the
    greatest stamp seen goes (Anna's frames). With `pools`, one for each socket, a connection draws its numbers from its own,
    which is u32 after u32; a number that stands there twice is drawn twice as often. Raises ConnectionError when the server closes, is silent for 5 s, or
    sends what is not a reply.
    """
    cdef Load load
    cdef Trouble trouble
    cdef uint32_t count = len(fds)
    cdef uint64_t begun, ended, cpu
    cdef uint32_t index, request
    cdef int number
    cdef size_t stride = len(template)
    if not count or not depth or not keys or digits_at + DIGITS > stride or keys > KEYS_MAX:
        raise ValueError(f"{count} connections, depth {depth}, {keys:,} keys, digits at {digits_at} of {stride} bytes")
    if pools is not None and (len(pools) != count or sequential or any(not pool or len(pool) % 4 for pool in pools)):
        raise ValueError(f"{len(pools)} pools for {count} connections; each has 4 bytes a number, and none is in order")
    cdef bytes pool
    cdef Connection* peers = <Connection*>calloc(count, sizeof(Connection))
    load.protocol, load.depth, load.stride, load.digits_at = <Protocol>protocol, depth, stride, digits_at
    load.stamp_at = stamp_at
    load.keys, load.sequential, load.sequence, load.random = keys, sequential, 0, seed | 1
    load.flying = load.ops = load.hits = load.misses = load.errors = 0
    load.inbox_size = reply_bytes_max
    load.inbox = <char*>malloc(reply_bytes_max)
    load.latencies = <uint64_t*>calloc(BUCKETS, sizeof(uint64_t))
    load.epoll = epoll_create1(0)
    try:
        if peers == NULL or load.inbox == NULL or load.latencies == NULL:
            raise MemoryError
        for index in range(count):
            peers[index].fd = fds[index]
            if pools is not None:
                pool = pools[index]
                peers[index].pool = <const uint32_t*><const char*>pool
                peers[index].pool_size = len(pool) // 4
            peers[index].carried = <char*>malloc(reply_bytes_max)
            peers[index].request = <char*>malloc(stride * depth)
            if peers[index].carried == NULL or peers[index].request == NULL:
                raise MemoryError
            for request in range(depth):
                memcpy(peers[index].request + request * stride, <const char*>template, stride)
        with nogil:
            begun = nanoseconds(CLOCK_MONOTONIC)
            cpu = nanoseconds(CLOCK_THREAD_CPUTIME_ID)
            load.deadline_ns = begun + <uint64_t>(seconds * 1e9)
            trouble = fly(&load, peers, count)
            ended = nanoseconds(CLOCK_MONOTONIC)
            cpu = nanoseconds(CLOCK_THREAD_CPUTIME_ID) - cpu
            number = errno
        if trouble != NO_TROUBLE:
            reason = {
                CLOSED: "the server closed a connection",
                SILENT: f"no reply for {SILENCE_MAX_MS} ms",
                MALFORMED: "the server sent what is not a reply",
                SYSTEM: f"a system call failed with errno {number}",
            }[trouble]
            raise ConnectionError(f"after {load.ops:,} replies {reason}")
        counts = [load.latencies[index] for index in range(BUCKETS)]
    finally:
        close(load.epoll)
        for index in range(count if peers != NULL else <uint32_t>0):
            free(peers[index].carried)
            free(peers[index].request)
        free(peers)
        free(load.inbox)
        free(load.latencies)
    return Outcome(
        ops=load.ops,
        seconds=(ended - begun) / 1e9,
        misses=load.misses,
        errors=load.errors,
        p50_us=percentile_us(counts, 0.50),
        p99_us=percentile_us(counts, 0.99),
        generator_cpu=<double>cpu / <double>(ended - begun),
    )
