"""Causal: a register that keeps concurrent writes side by side until somebody who read them writes again.

The one rule: each version (sibling) has a clock of its own, the exact set of events that it stands for: its own dot
and those of all that its author had read. One version supersedes another when its clock is a strict superset. A state
is the maximal elements of all versions ever joined; since strict inclusion is a partial order whatever the clocks
are, taking maximal elements of a union is associative, commutative and idempotent. The published rule, one merged
clock for all siblings, is not: X@{a}, Y@{b}, Z@{a, b} end as {Z} or as {X, Y} by the order of arrival.

A client asks for a write by a version without a dot, whose clock is what the client had read (`after`). These are
joined by union, until the worker that accepts the write adds its dot (`assign`). A version also carries its
dependencies: for other keys, the clocks that its author had read.

Encoding: versions ascending by their bytes: 0, or 1 for a request; the clock (`anna.lattices.dots`); the number of
dependencies, then each ascending: key after its length, clock; the encoded value after its length. Source: DESIGN §3;
Preguiça et al. 2010 (dotted version vectors).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

cimport cython

from anna.codec cimport decode_buffer, encode_value
from anna.lattices.base cimport Lattice, expect
from anna.lattices.dots cimport Dots, Tenure, begin, dots_of, next_number, take_dots
from anna.layout cimport (
    Reader,
    reader_of,
    sized,
    take,
    take_sized,
    take_varint,
    varint,
)

from anna.config import CLOCK_ENTRIES_MAX, KEY_BYTES_MAX, SIBLINGS_MAX
from anna.errors import ProtocolError, ValueTooLarge

cdef Py_ssize_t INTERVALS_MAX = CLOCK_ENTRIES_MAX
cdef Py_ssize_t ACCEPTED_MAX = SIBLINGS_MAX
cdef Py_ssize_t VERSIONS_MAX = 2 * SIBLINGS_MAX  # several owners may each have accepted the last one
cdef object NOTHING = object()


@cython.final
@cython.no_gc
cdef class Version:
    """One sibling."""

    cdef readonly Dots clock
    cdef bytes tail  # dependencies and value, encoded
    cdef Py_ssize_t value_at
    cdef bint pending

    @property
    def value(self):
        return self.read(True)

    @property
    def dependencies(self):
        """Key -> the clock that the author had read of it."""
        cdef Reader reader = reader_of(self.tail)
        return _take_dependencies(&reader)

    cdef object read(self, bint allow_pickle):
        return decode_buffer(
            PyBytes_AS_STRING(self.tail) + self.value_at, PyBytes_GET_SIZE(self.tail) - self.value_at, allow_pickle
        )

    cdef bint same(self, Version other) noexcept:
        return self.pending == other.pending and self.clock.same(other.clock) and self.tail == other.tail

    cdef bint superseded_by(self, Version other) noexcept:
        """Whether the clock of `other` is a strict superset. Requests neither supersede nor are superseded."""
        return (
            not self.pending
            and not other.pending
            and self.clock.within(other.clock)
            and not other.clock.within(self.clock)
        )

    cdef Py_ssize_t size(self) noexcept:
        return 1 + self.clock.size() + PyBytes_GET_SIZE(self.tail)

    cdef bytes encode(self):
        cdef bytes result = PyBytes_FromStringAndSize(NULL, self.size())
        cdef char* target = PyBytes_AS_STRING(result)
        target[0] = <char>self.pending
        target = self.clock.write(target + 1)
        memcpy(target, PyBytes_AS_STRING(self.tail), PyBytes_GET_SIZE(self.tail))
        return result

    def __repr__(self):
        return f"Version({self.value!r}, clock={self.clock!r})"


@cython.final
cdef class Causal(Lattice):
    """A register with siblings. `value` is a tuple: one value, unless writes were concurrent.

    >>> base = Causal("draft").assign(None, stamp=1, writer=1)
    >>> left = Causal("left", after=base).assign(base, stamp=2, writer=1)
    >>> right = Causal("right", after=base).assign(base, stamp=2, writer=2)
    >>> left.join(right).value, base.join(left).value
    (('left', 'right'), ('left',))
    >>> both = left.join(right)
    >>> both.join(both.set("merged").assign(both, stamp=3, writer=2)).value
    ('merged',)
    """

    NUMBER = 12

    cdef list versions
    cdef Py_ssize_t bytes_held
    cdef Tenure tenure

    def __cinit__(self):
        self.versions = []

    def __init__(self, value=NOTHING, after=None, dependencies=None):
        if value is not NOTHING:
            payload = encode_value(value)
            tail = _dependencies_bytes(dependencies) + sized(payload)
            self.put(_version(True, dots_of(after), tail, len(tail) - len(payload)))
        elif after is not None or dependencies is not None:
            raise TypeError("a Causal without a value is the bottom, which is after nothing and depends on nothing")

    cpdef object read(self, bint allow_pickle):
        return tuple([(<Version>version).read(allow_pickle) for version in self.siblings])

    @property
    def siblings(self):
        """The versions, in the order of their encodings; each has `value`, `clock` and `dependencies`."""
        return tuple(sorted(self.versions, key=_encoded))

    @property
    def clock(self):
        """All events that this state stands for: what a write `after` it supersedes."""
        cdef Dots clock = Dots.__new__(Dots)
        cdef Version version
        for version in self.versions:
            clock.unite(version.clock)
        return clock

    def set(self, value, dependencies=None):
        """Return the delta that asks for `value` to supersede what is in this state."""
        return Causal(value, self.clock, dependencies)

    cpdef Lattice assign(self, Lattice current, uint64_t stamp, uint64_t writer):
        """Give every request a dot of `writer`. Raises ValueTooLarge when it would be one sibling too many."""
        cdef Causal delta = Causal.__new__(Causal)
        cdef Version version
        cdef Dots mine, clock
        cdef uint64_t number
        cdef uint64_t since = stamp
        if not any([(<Version>version).pending for version in self.versions]):
            return self
        mine = _clock_of(current, self)
        if current is not None:
            since = begin(&(<Causal>current).tenure, stamp, writer)
        for version in self.siblings:
            if version.pending:
                number = next_number(mine, version.clock, since, stamp, writer, 1)
                clock = version.clock.copy()
                clock.insert(writer, number, number)
                mine.insert(writer, number, number)
                version = _version(False, clock, version.tail, version.value_at)
            delta.add_version(version)
        _expect_room(current, delta)
        return delta

    def as_request(self, uint64_t first):
        cdef Causal request = Causal.__new__(Causal)
        cdef Version version
        cdef Dots placed
        cdef bint pending
        for version in self.versions:
            placed = Dots.__new__(Dots)
            pending = version.pending
            for writer, begin_, end in version.clock.intervals:
                if writer < first:
                    placed.insert(writer, begin_, end)
                else:
                    pending = True
            request.add_version(_version(pending, placed, version.tail, version.value_at))
        return request

    cpdef bint merge(self, Lattice other) except -1:
        expect(self, other)
        cdef bint grew = False
        cdef Version version
        if other is self:
            return False
        for version in (<Causal>other).versions:
            if self.add_version(version):
                grew = True
        return grew

    cpdef bint precedes(self, Lattice other) except -1:
        expect(self, other)
        cdef Version version
        for version in self.versions:
            if not (<Causal>other).covers(version):
                return False
        return True

    cpdef Lattice copy(self):
        cdef Causal result = Causal.__new__(Causal)
        result.versions = self.versions.copy()
        result.bytes_held = self.bytes_held
        return result

    @property
    def size_bytes(self):
        return self.bytes_held

    cpdef bytes encode(self):
        return b"".join(sorted([(<Version>version).encode() for version in self.versions]))

    @classmethod
    def decode(cls, data):
        cdef bytes raw = bytes(data)
        cdef Reader reader = reader_of(raw)
        cdef Causal result = Causal.__new__(Causal)
        cdef const char* start
        cdef bytes encoded, last = None
        while reader.next < reader.end:
            start = reader.next
            if not result.add_version(_take_version(&reader)):
                raise ProtocolError("a version of a Causal is superseded or repeated by one before")
            encoded = start[:reader.next - start]
            if last is not None and encoded <= last:
                raise ProtocolError("the versions of a Causal are not strictly ascending")
            if len(result.versions) > VERSIONS_MAX:
                raise ProtocolError(f"a Causal has more than {VERSIONS_MAX:,} versions")
            last = encoded
        if result.bytes_held != len(raw):
            raise ProtocolError("a version of a Causal supersedes one before")
        return result

    def __len__(self):
        return len(self.versions)

    def __bool__(self):
        return len(self.versions) > 0

    # Versions, one at a time.

    cdef bint covers(self, Version version) noexcept:
        """Whether `version` is here, or superseded by one that is."""
        cdef Version mine
        for mine in self.versions:
            if version.same(mine) or version.superseded_by(mine):
                return True
        return False

    cdef bint add_version(self, Version version) except -1:
        """Join one version; True when it was not covered."""
        cdef Version mine
        if self.covers(version):
            return False
        for mine in self.versions:
            if mine.superseded_by(version):
                self.drop_superseded_by(version)
                break
        self.put(version)
        return True

    cdef int drop_superseded_by(self, Version version) except -1:
        cdef Version mine
        cdef list kept = []
        for mine in self.versions:
            if mine.superseded_by(version):
                self.bytes_held -= mine.size()
            else:
                kept.append(mine)
        self.versions = kept
        return 0

    cdef int put(self, Version version) except -1:
        self.versions.append(version)
        self.bytes_held += version.size()
        return 0


def _encoded(Version version):
    return version.encode()


cdef Version _version(bint pending, Dots clock, bytes tail, Py_ssize_t value_at):
    cdef Version version = Version.__new__(Version)
    version.pending = pending
    version.clock = clock
    version.tail = tail
    version.value_at = value_at
    return version


cdef bytes _dependencies_bytes(object dependencies):
    cdef list parts = []
    for key, clock in dict(dependencies or {}).items():
        key = key.encode() if isinstance(key, str) else bytes(key)
        if not 1 <= len(key) <= KEY_BYTES_MAX:
            raise ValueError(f"a dependency's key has {len(key):,} bytes; it may have 1 to {KEY_BYTES_MAX:,}")
        parts.append((key, dots_of(clock).encode()))
    parts.sort()
    return varint(len(parts)) + b"".join([sized(key) + clock for key, clock in parts])


cdef Version _take_version(Reader* reader):
    cdef unsigned char flag = <unsigned char>take(reader, 1)[0]
    cdef Dots clock = take_dots(reader, INTERVALS_MAX)
    cdef const char* start = reader.next
    cdef uint64_t value_bytes
    if flag > 1:
        raise ProtocolError(f"a version of a Causal begins with 0 or 1, got {flag}")
    if not flag and clock.count == 0:
        raise ProtocolError("a version of a Causal that is no request has no dot")
    _take_dependencies(reader)
    value_bytes = take_varint(reader)
    if value_bytes == 0:
        raise ProtocolError("a version of a Causal has no value; None is one byte")
    take(reader, value_bytes)
    return _version(flag, clock, start[:reader.next - start], reader.next - start - value_bytes)


cdef dict _take_dependencies(Reader* reader):
    cdef uint64_t count = take_varint(reader)
    cdef dict dependencies = {}
    cdef bytes key, last = None
    while count:
        key = take_sized(reader)
        if not 1 <= PyBytes_GET_SIZE(key) <= KEY_BYTES_MAX or last is not None and key <= last:
            raise ProtocolError("the dependencies of a Causal are not strictly ascending keys")
        dependencies[key] = take_dots(reader, INTERVALS_MAX)
        last = key
        count -= 1
    return dependencies


cdef Dots _clock_of(Lattice current, Causal written):
    """All events known to the worker that accepts `written`: those it holds, and those already placed in the write."""
    cdef Dots clock
    cdef Version version
    if current is None:
        clock = Dots.__new__(Dots)
    else:
        expect(written, current)
        clock = (<Causal>current).clock
    for version in written.versions:
        if not version.pending:
            clock.unite(version.clock)
    return clock


cdef int _expect_room(Lattice current, Causal delta) except -1:
    cdef Py_ssize_t siblings
    if current is None:
        siblings = len(delta.versions)
    elif len((<Causal>current).versions) + len(delta.versions) <= ACCEPTED_MAX:
        return 0
    else:
        siblings = len((<Causal>current.join(delta)).versions)
    if siblings > ACCEPTED_MAX:
        raise ValueTooLarge(
            f"a Causal would have {siblings:,} concurrent versions; siblings_max is {ACCEPTED_MAX:,}: "
            "write after what you read, and they are one again"
        )
    return 0
