"""A hybrid logical clock: stamps that follow causality, whatever the machines' clocks say.

A stamp has 63 bits: microseconds since 2020 and a 10-bit counter. The one rule: `tick` is greater than everything that this
clock gave or observed before. Time is the machine's monotonic clock plus an offset, which is wall time at the start; a stamp
from ahead raises the offset, so a clock that was pulled ahead runs on from there instead of standing still, and a jump of
the wall clock changes nothing. Source: DESIGN §4; Kulkarni et al. 2014.
"""

from libc.stdint cimport int64_t, uint64_t

cimport cython

from anna import config

cdef int64_t AHEAD_MAX_US = config.STAMP_AHEAD_MAX_US
cdef int64_t WORKER_AHEAD_US = config.WORKER_AHEAD_MAX_US
cdef int64_t EPOCH = config.EPOCH_US

EPOCH_2020_S = 1_577_836_800
"""Unix time of 2020-01-01 UTC, where stamps begin."""


@cython.final
cdef class Clock:
    """One worker's clock. `wall_us` is microseconds since 2020, `monotonic_us` the machine's monotonic clock, at the same moment."""

    def __init__(self, int64_t wall_us, int64_t monotonic_us):
        self.offset_us = wall_us - monotonic_us
        self.physical_us = wall_us
        self.last = 0

    cdef void advance(self, int64_t monotonic_us) noexcept:
        """Learn what time it is; a time before the last one is ignored."""
        cdef int64_t physical = monotonic_us + self.offset_us
        if physical > self.physical_us:
            self.physical_us = physical

    cdef bint observe(self, uint64_t stamp) noexcept:
        """Move past a stamp that was seen elsewhere; False, and no move, when it is more than STAMP_AHEAD_MAX_US ahead."""
        cdef int64_t ahead
        if stamp <= self.last:
            return True
        ahead = <int64_t>(stamp >> COUNTER_BITS) - self.physical_us
        if ahead > AHEAD_MAX_US:
            return False
        if ahead > 0:
            self.offset_us += ahead
            self.physical_us += ahead
        self.last = stamp
        return True

    cdef bint disbelieves(self, uint64_t stamp) noexcept:
        """Whether a stamp is so far ahead that it must be of another life of the cluster."""
        return <int64_t>(stamp >> COUNTER_BITS) - self.physical_us > AHEAD_MAX_US

    cdef void follow(self, uint64_t stamp) noexcept:
        """Move past the stamp of a write that was taken elsewhere, as far as `pull` goes."""
        self.pull(stamp)
        if self.last < stamp <= self.reading() | COUNTER_MASK:
            self.last = stamp

    cdef void pull(self, uint64_t stamp) noexcept:
        """Keep up with the clock of another worker, which shows `stamp`: workers go by the fastest clock among them.

        Nothing has happened at that time, so stamps that were given stay as they are. A clock that is more than
        WORKER_AHEAD_MAX_US ahead is none, and moves nothing.
        """
        cdef int64_t ahead = <int64_t>(stamp >> COUNTER_BITS) - self.physical_us
        if 0 < ahead <= WORKER_AHEAD_US:
            self.offset_us += ahead
            self.physical_us += ahead

    cdef uint64_t epoch(self) noexcept:
        """Return the epoch that the next stamp will be of, as far as is known now."""
        return max(<uint64_t>self.physical_us, self.last >> COUNTER_BITS) // <uint64_t>EPOCH

    cdef uint64_t reading(self) noexcept:
        """Return the greatest stamp that could have been given by now, without giving one: what other clocks should follow."""
        return max(self.last, <uint64_t>self.physical_us << COUNTER_BITS)

    cdef uint64_t tick(self) noexcept:
        """Return the next stamp."""
        cdef uint64_t physical = <uint64_t>self.physical_us << COUNTER_BITS
        self.last = physical if physical > self.last else self.last + 1
        return self.last

    def now(self, int64_t monotonic_us):
        """Return a new stamp at that time."""
        self.advance(monotonic_us)
        return self.tick()

    @property
    def monotonic_ns(self):
        """The machine's monotonic clock, as of the last time that this one was told."""
        return (self.physical_us - self.offset_us) * 1000

    def see(self, uint64_t stamp):
        """Move past `stamp`; False when it is too far ahead to be believed."""
        return self.observe(stamp)


cdef uint64_t epoch_of(uint64_t stamp) noexcept:
    """Return the epoch of a stamp."""
    return (stamp >> COUNTER_BITS) // <uint64_t>EPOCH


cdef uint64_t epoch_begin(uint64_t epoch) noexcept:
    """Return the least stamp of an epoch."""
    return epoch * <uint64_t>EPOCH << COUNTER_BITS
