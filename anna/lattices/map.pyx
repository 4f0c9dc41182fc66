"""Map: keys to lattices, which may be maps.

The one rule: join is pointwise, and a key that is absent is below every state that it might have. What an entry grows
by, the map grows by; nothing is ever removed from it (an `ORSet` of keys beside it can say which are meant).

A key holds one type. A write of another is refused by the worker that holds the key (LatticeTypeMismatch), but two
workers may each accept a first write, of different types, at once. Joining these must not fail, or the replicas would
never agree; so an entry is found by key and type, both are kept, and the lower wire number is what is read.

Encoding: entries ascending by key, then type: the key after its length, the type's number, the state after its
length. Source: DESIGN §3; Conway et al. 2012 (lmap).
"""

from libc.stdint cimport uint64_t

cimport cython

from anna.codec cimport decode_value, encode_element
from anna.lattices.base cimport Lattice, expect
from anna.lattices.elements cimport element_of, take_element
from anna.layout cimport Reader, reader_of, sized, sized_bytes, take, take_sized, varint_bytes

from anna.config import MAP_DEPTH_MAX
from anna.errors import LatticeTypeMismatch, ProtocolError, ValueTooLarge
from anna.lattices.base import REGISTRY

cdef int DEPTH_MAX = MAP_DEPTH_MAX


@cython.final
cdef class Map(Lattice):
    """A map whose values are lattices.

    >>> profile = Map({"visits": Counter(+1, writer=1), "tags": Set({"a"})})
    >>> profile.join(Map({"tags": Set({"b"}), "best": Max(3)})).value == {"visits": 1, "tags": {"a", "b"}, "best": 3}
    True
    >>> profile.join(profile.update({"tags": profile["tags"].add("c")}))["tags"] == Set({"a", "c"})
    True
    """

    NUMBER = 9

    cdef dict entries  # key -> state; of several types, that of the lowest number
    cdef dict others  # (key, number) -> state of the other types; nearly always empty
    cdef Py_ssize_t bytes_held
    cdef int depth

    def __cinit__(self):
        self.entries = {}
        self.others = {}
        self.depth = 1

    def __init__(self, states=()):
        for key, state in dict(states).items():
            if not isinstance(state, Lattice) or REGISTRY.get(state.NUMBER) is not type(state):
                raise TypeError(f"{key!r} of a Map needs a registered lattice, got a {type(state).__name__}")
            self.put(element_of(key), (<Lattice>state).copy())
        if self.depth > DEPTH_MAX:
            raise ValueTooLarge(f"a Map nests {self.depth} deep; map_depth_max is {DEPTH_MAX}")

    @classmethod
    def decode(cls, data):
        return _decode(bytes(data), 1)

    cpdef bytes encode(self):
        cdef list parts = []
        cdef bytes key
        cdef int number
        for key, number in sorted([(key, state.NUMBER) for key, state in self.all()]):
            parts.append(sized(key))
            parts.append(bytes([number]))
            parts.append(sized(self.at(key, number).encode()))
        return b"".join(parts)  # not into `bytes_held` bytes: a user's type may be wrong about its size

    cpdef object read(self, bint allow_pickle):
        cdef dict values = {}
        for key, state in self.entries.items():
            values[decode_value(key, allow_pickle)] = (<Lattice>state).read(allow_pickle)
        return values

    @property
    def size_bytes(self):
        return self.bytes_held

    cpdef Lattice copy(self):
        cdef Map result = Map.__new__(Map)
        result.entries = {key: (<Lattice>state).copy() for key, state in self.entries.items()}
        result.others = {place: (<Lattice>state).copy() for place, state in self.others.items()}
        result.bytes_held = self.bytes_held
        result.depth = self.depth
        return result

    cpdef bint merge(self, Lattice other) except -1:
        expect(self, other)
        cdef Map that = <Map>other
        cdef bint grew = False
        cdef Lattice mine
        if that is self:
            return False
        for key, state in that.all():
            mine = self.at(key, state.NUMBER)
            if mine is None:
                self.put(key, (<Lattice>state).copy())
                grew = True
            else:
                self.bytes_held -= _state_bytes(mine)
                if mine.merge(<Lattice>state):
                    grew = True
                self.bytes_held += _state_bytes(mine)
        self.depth = max(self.depth, that.depth)
        return grew

    cpdef bint precedes(self, Lattice other) except -1:
        expect(self, other)
        cdef Lattice theirs
        for key, state in self.all():
            theirs = (<Map>other).at(key, state.NUMBER)
            if theirs is None or not (<Lattice>state).precedes(theirs):
                return False
        return True

    cpdef Lattice assign(self, Lattice current, uint64_t stamp, uint64_t writer):
        """Assign every entry. Raises LatticeTypeMismatch when `current` has only another type under one of the keys."""
        cdef Map delta = Map.__new__(Map)
        for key, state in self.all():
            delta.put(key, (<Lattice>state).assign(self.held_in(current, key, state), stamp, writer))
        return delta

    def as_prepared(self, Lattice current, uint64_t writer):
        cdef Map delta = Map.__new__(Map)
        for key, state in self.all():
            delta.put(key, (<Lattice>state).as_prepared(self.held_in(current, key, state), writer))
        return delta

    def held_in(self, Lattice current, bytes key, Lattice state):
        """Return what `current` has under the key of an entry, None for nothing. Raises LatticeTypeMismatch when that is only another type."""
        cdef Map present
        if current is None:
            return None
        expect(self, current)
        present = <Map>current
        held = present.at(key, state.NUMBER)
        if held is None and key in present.entries:
            raise LatticeTypeMismatch.between(type(present.entries[key]).__name__, type(state).__name__, decode_value(key, False))
        return held

    def as_request(self, uint64_t first):
        cdef Map request = Map.__new__(Map)
        for key, state in self.all():
            request.put(key, state.as_request(first))
        return request

    def update(self, states):
        """Return the delta that joins each of `states` into the entry of its key."""
        return Map(states)

    def __getitem__(self, key):
        """A copy of the state under `key`. Raises KeyError."""
        state = self.entries.get(encode_element(key))
        if state is None:
            raise KeyError(key)
        return (<Lattice>state).copy()

    def get(self, key, default=None):
        """A copy of the state under `key`, or `default`."""
        return self[key] if key in self else default

    def __contains__(self, key):
        return encode_element(key) in self.entries

    def __len__(self):
        return len(self.entries)

    def __iter__(self):
        return iter([decode_value(key, True) for key in self.entries])

    def __repr__(self):
        states = {decode_value(key, True): state for key, state in self.entries.items()}
        return f"Map({states!r})"

    cdef list all(self):
        """Every (key, state)."""
        cdef list states = list(self.entries.items())
        if self.others:
            states.extend([(key, state) for (key, _), state in self.others.items()])
        return states

    cdef Lattice at(self, bytes key, int number):
        """The state of that type under `key`, or None."""
        state = self.entries.get(key)
        if state is None or state.NUMBER == number:
            return state
        return self.others.get((key, number))

    cdef int put(self, bytes key, Lattice state) except -1:
        """Add an entry whose key has none of its type yet."""
        cdef Lattice lowest = self.entries.get(key)
        if lowest is None or state.NUMBER < lowest.NUMBER:
            if lowest is not None:
                self.others[(key, lowest.NUMBER)] = lowest
            self.entries[key] = state
        else:
            self.others[(key, state.NUMBER)] = state
        self.bytes_held += sized_bytes(key) + 1 + _state_bytes(state)
        if type(state) is Map:
            self.depth = max(self.depth, 1 + (<Map>state).depth)
        return 0


cdef Py_ssize_t _state_bytes(Lattice state) except -1:
    cdef Py_ssize_t size = state.size_bytes
    return varint_bytes(size) + size


cdef Map _decode(bytes raw, int depth):
    cdef Reader reader = reader_of(raw)
    cdef Map result = Map.__new__(Map)
    cdef tuple place, last = None
    cdef bytes key
    cdef int number
    if depth > DEPTH_MAX:
        raise ProtocolError(f"a Map nests more than {DEPTH_MAX} deep")
    while reader.next < reader.end:
        key = take_element(&reader)
        number = <unsigned char>take(&reader, 1)[0]
        place = (key, number)
        if last is not None and place <= last:
            raise ProtocolError("the entries of a Map are not strictly ascending")
        result.put(key, _decode_state(number, take_sized(&reader), depth))
        last = place
    return result


cdef Lattice _decode_state(int number, bytes raw, int depth):
    if number == Map.NUMBER:
        return _decode(raw, depth + 1)
    kind = REGISTRY.get(number)
    if kind is None:
        raise ProtocolError(f"{number} is the number of no lattice that is registered here")
    return kind.decode(raw)
