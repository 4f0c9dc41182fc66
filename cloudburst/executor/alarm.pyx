"""The alarm that rings when a call runs long, even when it never lets go of the GIL.

A short call costs two system calls to arm and disarm it. A long one wakes the attendant thread, and that thread,
before it even asks for the GIL, tells the node that this executor is busy, unless the node will look soon enough
anyway. So a deadline is enforced upon a C loop that holds the GIL, and a short call costs nobody's attention.
Source: reliability C (infinite loop in C holding the GIL).
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint64_t
from posix.unistd cimport close, read

from cloudburst.page cimport Page, Slot, clock_us

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int fd, const void* data, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

cdef extern from "<sys/timerfd.h>" nogil:
    cdef struct timespec_t "timespec":
        long tv_sec
        long tv_nsec
    cdef struct itimerspec:
        timespec_t it_interval
        timespec_t it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* value, itimerspec* old)
    int CLOCK_MONOTONIC
    int TFD_CLOEXEC


cdef class Alarm:
    """One executor's alarm: rings `after_us` after `begin`, unless `end` comes first.

    `report` is the socket to the node; b"L" is sent there when the running call outlasts what the node watches.
    """

    cdef Page page
    cdef int number, timer, report
    cdef uint64_t after_us, grace_us
    cdef bint armed

    def __cinit__(self, Page page, int number, int report, uint64_t after_us, uint64_t grace_us):
        page.mine(number)
        self.page, self.number, self.report = page, number, report
        self.after_us, self.grace_us = after_us, grace_us
        self.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)
        if self.timer < 0:
            raise OSError(errno, "timerfd_create")

    def __dealloc__(self):
        if self.timer >= 0:
            close(self.timer)

    cdef void set(self, uint64_t us) noexcept:
        cdef itimerspec when
        when.it_interval.tv_sec = when.it_interval.tv_nsec = 0
        when.it_value.tv_sec, when.it_value.tv_nsec = us // 1000000, (us % 1000000) * 1000
        self.armed = us != 0
        timerfd_settime(self.timer, 0, &when, NULL)

    def begin(self, uint64_t high, uint64_t low, uint64_t deadline_us, bytes name, uint64_t written):
        """Publish that an invocation has begun, and arm."""
        self.page.begin(self.number, high, low, deadline_us, name, written)
        self.set(self.after_us)

    def arm(self):
        """Arm it, unless it is, for what the page shows without `begin`."""
        if not self.armed:
            self.set(self.after_us)

    def end(self):
        """Disarm, publish that the invocation has ended, and return how long it ran in microseconds."""
        self.set(0)
        return self.page.end(self.number)

    def wait(self):
        """Block until the alarm rings, without the GIL; the node has been told when it must watch."""
        cdef uint64_t rings
        cdef ssize_t got
        cdef Slot* slot = self.page.slot + self.number
        with nogil:
            while True:
                got = read(self.timer, &rings, sizeof(rings))
                if got >= 0 or errno not in (EINTR, EAGAIN):
                    break
            self.armed = False
            if got > 0 and slot.activity != 0 and (
                slot.watch_us < clock_us() or slot.deadline_us + self.grace_us < slot.watch_us
            ):
                send(self.report, b"L", 1, MSG_DONTWAIT | MSG_NOSIGNAL)
        if got < 0:
            raise OSError(errno, "reading the timer")
