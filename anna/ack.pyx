"""What a write's acknowledgement says: how safe it is, and when in history it happened."""

from libc.stdint cimport uint64_t

cimport cython

from anna.wire cimport ACK_DISK


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Ack:
    """`replicas` copies hold the write in memory, `durable` of them on disk; `stamp` is not less than the write's own.

    >>> Ack(replicas=1, durable=0, stamp=7)
    Ack(replicas=1, durable=0, stamp=7)
    """

    def __init__(self, int replicas, int durable, uint64_t stamp):
        self.replicas = replicas
        self.durable = durable
        self.stamp = stamp

    @staticmethod
    cdef Ack make(int replicas, int durable, uint64_t stamp):
        cdef Ack ack = Ack.__new__(Ack)
        ack.replicas = replicas
        ack.durable = durable
        ack.stamp = stamp
        return ack

    def __repr__(self):
        return f"Ack(replicas={self.replicas}, durable={self.durable}, stamp={self.stamp})"

    def __eq__(self, other):
        if not isinstance(other, Ack):
            return NotImplemented
        return (self.replicas, self.durable, self.stamp) == (other.replicas, other.durable, other.stamp)

    def __hash__(self):
        return hash((self.replicas, self.durable, self.stamp))

    def __reduce__(self):
        return Ack, (self.replicas, self.durable, self.stamp)


def ack_number(ack):
    """Return how the wire names an acknowledgement: "memory" 1, k copies k, "disk" 255. Raises ValueError."""
    if ack == "memory":
        return 1
    if ack == "disk":
        return ACK_DISK
    if isinstance(ack, int) and not isinstance(ack, bool) and 1 <= ack < ACK_DISK:
        return int(ack)
    raise ValueError(f"ack is 'memory', 'disk' or a number of copies from 1 to {ACK_DISK - 1}, not {ack!r}")
