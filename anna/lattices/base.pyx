"""The algebra that every value obeys: a join-semilattice with a least element.

The one rule: the only way to change a state is to join another one into it. `join` is associative, commutative and
idempotent, so updates may be reordered, duplicated and batched. Each subclass is one file and one C-level type; the
laws that all of them keep are in `anna.lattices.laws`. Source: DESIGN §3; Conway et al. 2012 (Bloom^L); Almeida et
al. 2018 (delta-state CRDTs).
"""

from anna.errors import LatticeTypeMismatch

REGISTRY: dict[int, type] = {}
"""Wire number -> lattice type: those of this package, and those of users from USER_NUMBER_MIN."""

USER_NUMBER_MIN = 128
USER_NUMBER_MAX = 255


cdef class Lattice:
    """A state of some join-semilattice.

    Subclasses set `NUMBER` (wire number, 1 to 255) and implement `read`, `copy`, `merge`, `precedes`, `encode`,
    `decode` and `size_bytes`; the operators follow. States that users hold are treated as immutable: `join` returns a new state,
    and a mutator (`add`, `increment`, …) returns its *delta*, a small state whose join into this one is the mutation.
    Only the store, which owns its states, calls `merge`.
    """

    NUMBER = 0

    @classmethod
    def bottom(cls):
        """Return the least state: `bottom ⊔ a == a` for every `a`."""
        return cls()

    @property
    def value(self):
        """What a reader sees: plain Python data."""
        return self.read(True)

    cpdef object read(self, bint allow_pickle):
        """Return `value`; with `allow_pickle` false, raise NeedsPickle instead of loading a pickle inside it."""
        raise NotImplementedError(f"{type(self).__name__} lacks read")

    @property
    def size_bytes(self):
        """The length of `encode()`, in O(1): an account for capacity, not `sys.getsizeof`."""
        raise NotImplementedError(f"{type(self).__name__} lacks size_bytes")

    cpdef Lattice copy(self):
        """Return an independent state equal to this one."""
        raise NotImplementedError(f"{type(self).__name__} lacks copy")

    cpdef Lattice join(self, Lattice other):
        """Return the least upper bound of both, as a new state; neither operand changes."""
        cdef Lattice result = self.copy()
        result.merge(other)
        return result

    cpdef bint merge(self, Lattice other) except -1:
        """Join `other` into this state in place; True when this state grew. Raises LatticeTypeMismatch."""
        raise NotImplementedError(f"{type(self).__name__} lacks merge")

    cpdef bint precedes(self, Lattice other) except -1:
        """Whether `self ⊔ other == other` (written `self <= other`)."""
        raise NotImplementedError(f"{type(self).__name__} lacks precedes")

    cpdef bint equals(self, Lattice other) except -1:
        """Whether `other`, of the same type, is the same state (written `self == other`)."""
        return self.encode() == other.encode()

    cpdef Lattice assign(self, Lattice current, uint64_t stamp, uint64_t writer):
        """Return the delta that this written state means at the worker that accepts the write.

        A client may write a request that only the owner can place in history: a register without a stamp, an
        increment without a writer, a removal of whatever dots the owner has seen. The owner, which holds `current`
        (None when the key is absent), assigns `stamp` and `writer` to it, and joins the delta into `current` before it
        assigns the next: a second request that was assigned against the same `current` would take the same place. A
        state that needs nothing assigned is returned as it is. Neither operand changes, in any way that can be read.
        """
        return self

    def as_prepared(self, Lattice current, uint64_t writer):
        """Return what this written state means in the transaction of `writer`, which nobody else is, before its stamp is known.

        Registers stay open until it is. All else is placed by `writer` alone, so that the same transaction, prepared again by any owner,
        comes to the same events; `current`, what the owner holds (or None), says no more than what is removed. Neither changes.
        """
        return self.assign(None, 1, writer)

    def as_request(self, uint64_t first):
        """Return the request that means what writers from `first` on have done here: the inverse of `assign`.

        A session shows its own writes assigned to a writer of its own, which no worker has; what it commits is requests again, for the
        workers that accept them to place in history. A type that needs nothing assigned is its own request.
        """
        return self

    cpdef bytes encode(self):
        """Return the canonical encoding: equal states have equal bytes, under any hash seed and insertion order."""
        raise NotImplementedError(f"{type(self).__name__} lacks encode")

    @classmethod
    def decode(cls, data):
        """Return the state that `encode` wrote. Raises ProtocolError on bytes that no state encodes to."""
        raise NotImplementedError(f"{cls.__name__} lacks decode")

    def __le__(self, other):
        if not isinstance(other, Lattice):
            return NotImplemented
        return self.precedes(other)

    def __ge__(self, other):
        if not isinstance(other, Lattice):
            return NotImplemented
        return other <= self

    def __lt__(self, other):
        if not isinstance(other, Lattice):
            return NotImplemented
        return self <= other and not other <= self

    def __gt__(self, other):
        if not isinstance(other, Lattice):
            return NotImplemented
        return other < self

    def __eq__(self, other):
        if type(self) is not type(other):
            return NotImplemented
        return self.equals(other)

    def __hash__(self):
        return hash((self.NUMBER, self.encode()))

    def __or__(self, other):
        if not isinstance(other, Lattice):
            return NotImplemented
        return self.join(other)

    def __repr__(self):
        return f"{type(self).__name__}({self.value!r})"

    def __reduce__(self):
        return _decode, (type(self), self.encode())


def register(cls):
    """Let states of a user's lattice type be stored, by its `NUMBER` of 128 to 255; a class decorator.

    Every process that reads or stores them has to register the type. Check it first with `anna.lattices.laws`.
    Raises ValueError when the number is out of range or taken by another type.
    """
    if not (isinstance(cls, type) and issubclass(cls, Lattice)):
        raise TypeError(f"{cls!r} is not a subclass of anna.lattices.Lattice")
    number = cls.NUMBER
    if not USER_NUMBER_MIN <= number <= USER_NUMBER_MAX:
        raise ValueError(f"{cls.__name__}.NUMBER is {number}; users' types have {USER_NUMBER_MIN} to {USER_NUMBER_MAX}")
    taken = REGISTRY.get(number)
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"lattice number {number} is taken by {taken.__module__}.{taken.__qualname__}")
    REGISTRY[number] = cls
    return cls


def _decode(cls, data):
    return cls.decode(data)


cdef int expect(Lattice state, Lattice other) except -1:
    """Raise LatticeTypeMismatch, naming both, unless `other` has the type of `state`."""
    if type(state) is not type(other):
        raise LatticeTypeMismatch.between(type(state).__name__, type(other).__name__)
    return 0
