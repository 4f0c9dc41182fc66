"""Whether it pays to stay awake for a moment, because what is awaited will be there before a sleep and a wake-up would be over.

The one rule: who stays awake never keeps others from their work, and stops to try where it is in vain. One whose peer ran on the same processor
gives way at once: the peer goes on where this one stops, without a wake-up. One whose peer ran elsewhere spins for a few
microseconds, then gives way between its looks, too, so with more processes than processors those that have something to do run. A moment that was longer than
it may be, or brought nothing, has not paid: then this side sleeps at once for 32 times as long as that moment was, and for twice as
long after each further one, at most a tenth of a second or 32 times the moment.
"""

from libc.stdint cimport int64_t

from anna.shared.rings cimport Rings
from anna.shared.segment cimport give_way, pause

cdef enum:
    # How long one spins before it gives way between its looks.
    ALONE_NS = 10_000
    PAUSES = 8
    REST_FACTOR = 32
    REST_NS_MAX = 100_000_000


cdef class Patience:
    """One side's experience; `most_ns` is the longest that a moment may be."""

    def __init__(self, int64_t most_ns):
        self.most_ns = most_ns

    cdef bint pays(self, int64_t now) noexcept nogil:
        """Whether one should stay awake now."""
        return self.most_ns > 0 and now >= self.rest_until

    cdef void count(self, int64_t now, int64_t cost, bint paid) noexcept nogil:
        """Learn from a moment that ends `now` and took `cost`."""
        cdef int64_t least = cost * REST_FACTOR
        if paid and cost <= self.most_ns:
            self.rest_ns = 0
            return
        self.rest_ns = max(least, min(2 * self.rest_ns, <int64_t>REST_NS_MAX))
        self.rest_until = now + self.rest_ns

    cdef bint stay(self, Rings rings, int64_t waited) noexcept nogil:
        """Let a small part of a moment pass, of which `waited` has passed; whether the processor was offered to others."""
        cdef int index
        if rings.beside() or waited > ALONE_NS:
            give_way()
            return True
        for index in range(PAUSES):
            pause()
        return False

    # -- for tests

    def learn(self, int64_t now, int64_t cost, bint paid):
        """`count` from Python."""
        self.count(now, cost, paid)

    def is_worth_it(self, int64_t now):
        """`pays` from Python."""
        return bool(self.pays(now))
