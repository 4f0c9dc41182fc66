"""What a cache knows of keys at epochs: for each a few versions, each an interval of epochs in which the key held one state, or was absent.

The one rule: a version is what an owner has said, for the epochs of which it has said it. The last one is *open*: it goes on to the owner's mark as long as nothing else is
pushed. Between two versions there may be a gap, in which the key changed more than once; of that nothing is known, and nothing is guessed. All versions of a key
are of one view: the epochs of another are others.

When an owner's stream ends, or what it told of, its mark stays where it was, and with it what is known; only later epochs are asked of another. A version that is over is kept
as long as a session may read it: while one of the epochs that were given to sessions, or pinned by them, lies in it. Source: DESIGN §4 (caches); docs/decisions/0029.
"""

from libc.stdint cimport uint64_t

cimport cython

from anna.kvs.clock cimport Clock
from anna.lattices.base cimport Lattice
from cloudburst.cache.kept cimport Kept

from bisect import bisect_left

from anna import config
from anna.kvs.faults import PLANTED

cdef Py_ssize_t VERSIONS_MAX = config.CACHE_VERSIONS_MAX

cdef enum:
    # What a version, and a key with versions, take beside their bytes, about.
    VERSION_COST = 120
    DATED_COST = 300


@cython.final
cdef class Mark:
    """How far an owner has told what the keys hold that this cache asked for, since it began to; another beginning is another mark."""

    def __init__(self, uint64_t owner):
        self.owner = owner


@cython.final
cdef class Version:
    """What a key held from the epoch `first` to `last`."""

    def __init__(self, uint64_t first, uint64_t last, bint open, Lattice state):
        self.first = first
        self.last = last
        self.open = open
        self.state = state
        self.bytes = VERSION_COST + (0 if state is None else <Py_ssize_t>state.size_bytes)


@cython.final
cdef class Dated:
    """A key and its versions, oldest first, as the owner of `mark` has told them."""

    def __init__(self, bytes name, Mark mark):
        self.name = name
        self.mark = mark
        self.versions = []

    cdef Version find(self, uint64_t epoch, uint64_t view):
        """Return the version at an epoch of a view, None where it is not known."""
        cdef Version version
        cdef Py_ssize_t index = len(self.versions) - 1
        if self.mark.view != view:
            return None
        while index >= 0:
            version = <Version>self.versions[index]
            if epoch >= version.first:
                if epoch <= version.last or (version.open and (epoch <= self.mark.epoch or "above-mark" in PLANTED)):
                    return version
                return None
            index -= 1
        return None

    cdef int close(self, uint64_t epoch) except -1:
        """Nothing is known of the key after `epoch` but what the owner has said in so many words."""
        cdef Version version
        if self.versions:
            version = <Version>self.versions[len(self.versions) - 1]
            if version.open:
                version.open = False
                version.last = max(version.last, epoch)
        return 0


cdef class Versions(Kept):
    """The keys that sessions have read, with their versions, and which epochs sessions may read."""

    def __init__(self, view, owners, Clock clock, Py_ssize_t bytes_max, keeper, Py_ssize_t shared_bytes_max):
        self.dated = {}
        self.given = []
        self.pinned = {}
        self.layered = set()
        super().__init__(view, owners, clock, bytes_max, keeper, shared_bytes_max)

    # -- which epochs are read

    cdef int give(self, uint64_t epoch) except -1:
        """A session reads at `epoch`."""
        cdef Py_ssize_t index
        if epoch == self.newest_given:
            return 0
        self.newest_given = epoch
        index = bisect_left(self.given, epoch)
        if index == len(self.given) or self.given[index] != epoch:
            self.given.insert(index, epoch)
        return 0

    cdef bint is_given(self, uint64_t first, uint64_t last) except -1:
        """Whether a session may read an epoch from `first` to `last`."""
        cdef Py_ssize_t index = bisect_left(self.given, first)
        return index < len(self.given) and <uint64_t>self.given[index] <= last

    cdef int let_go(self, uint64_t floor) except -1:
        """Epochs before `floor` are read by nobody who has not pinned them: let go of the versions that were kept for them."""
        cdef Dated dated
        for epoch in [epoch for epoch, until in self.pinned.items() if until < self.now]:
            del self.pinned[epoch]
        self.given = [epoch for epoch in self.given if epoch >= floor or epoch in self.pinned]
        self.newest_given = 0
        for dated in list(self.layered):
            self.settle_versions(dated)
        return 0

    # -- what owners say

    cdef int keep_version(self, bytes name, Mark mark, uint64_t first, uint64_t last, bint open, Lattice state) except -1:
        """An owner has answered what a key held from `first` to `last`, and, if it is open, will say when that ends."""
        cdef Dated dated = self.dated.get(name)
        cdef Version version
        if dated is None:
            dated = self.dated[name] = Dated(name, mark)
            self.bytes_at += DATED_COST + len(name)
        self.count_versions(dated, -1)
        if dated.mark is not mark:
            self.listen_no_more(dated)
            dated.close(dated.mark.epoch)
            if dated.mark.view != mark.view:
                dated.versions = []
            dated.mark = mark
        dated.touched = True
        # What is known of a later epoch goes on from there; this is then one of the past.
        open = open and not any([version.open or version.last > last for version in dated.versions])
        versions = []
        for version in dated.versions:
            if version.first >= first and not version.open and version.last <= last:
                continue  # the same, of fewer epochs
            if version.first < first and (version.open or first <= version.last):
                first = last + 1 if version.open else version.last + 1
                version.open = version.open or (open and version.last == last)
            elif version.first >= first and version.first <= last:
                last = version.first - 1
            versions.append(version)
        if first <= last:
            versions.append(Version(first, last, open, state))
        dated.versions = sorted(versions, key=first_of)
        self.count_versions(dated, 1)
        return self.settle_versions(dated)

    cdef int push_version(self, Dated dated, uint64_t first, uint64_t last, Lattice state, uint64_t marked) except -1:
        """An owner says, after its mark `marked`, what a key holds from `first` to `last`, and on."""
        cdef Version newest = <Version>dated.versions[len(dated.versions) - 1] if dated.versions else None
        if newest is not None and (last <= newest.last or (newest.open and first <= max(newest.last, marked))):
            # Nothing has changed since then, or not since what another owner has said.
            newest.open = newest.open or newest.first <= last
            newest.last = max(newest.last, last)
            return 0
        self.count_versions(dated, -1)
        dated.close(marked)
        if newest is not None:
            first = max(first, newest.last + 1)
        dated.versions.append(Version(first, last, True, state))
        self.count_versions(dated, 1)
        return self.settle_versions(dated)

    cdef int settle_versions(self, Dated dated) except -1:
        """Keep those versions of a key that may be read still: the open one, and those of epochs that were given."""
        cdef Version version
        self.count_versions(dated, -1)
        kept = [version for version in dated.versions if version.open or self.is_given(version.first, version.last)]
        dated.versions = kept[max(0, len(kept) - VERSIONS_MAX):]
        self.count_versions(dated, 1)
        if not dated.versions:
            return self.forget_dated(dated)
        if len(dated.versions) > 1 or not (<Version>dated.versions[0]).open:
            self.layered.add(dated)
        else:
            self.layered.discard(dated)
        return 0

    cdef int count_versions(self, Dated dated, int sign) except -1:
        cdef Version version
        for version in dated.versions:
            self.bytes_at += sign * version.bytes
        return 0

    # -- what is forgotten

    cdef int listen_no_more(self, Dated dated) except -1:
        """Tell the owner that this key is not to be told of any more."""
        raise NotImplementedError

    cdef int forget_dated(self, Dated dated) except -1:
        """Know nothing of a key at epochs any more."""
        self.listen_no_more(dated)
        self.count_versions(dated, -1)
        self.bytes_at -= DATED_COST + len(dated.name)
        self.layered.discard(dated)
        dated.versions = []
        del self.dated[dated.name]
        return 0

    cdef int forget_mark(self, Mark mark) except -1:
        """Know nothing any more of what was told up to this mark."""
        cdef Dated dated
        for dated in [dated for dated in self.dated.values() if dated.mark is mark]:
            self.forget_dated(dated)
        return 0

    cdef int evict(self) except -1:
        """Give up keys until the cache fits its bytes: of what takes more, the newest states or those at epochs."""
        while self.store.size_bytes + self.bytes_at > self.bytes_max and (self.dated or self.subscribed):
            if self.bytes_at > self.store.size_bytes or not self.subscribed:
                self.drop_oldest_dated()
            else:
                self.drop_oldest()
        return Kept.evict(self)

    cdef int drop_oldest_dated(self) except -1:
        """Give up the oldest key at epochs, or keep it for another round if it was read since the last one."""
        cdef Dated dated = next(iter(self.dated.values()))
        if dated.touched:
            dated.touched = False
            self.dated[dated.name] = self.dated.pop(dated.name)
            return 0
        self.evicted += 1
        return self.forget_dated(dated)

    def check(self):
        """Assert the invariants of versions (S4 in docs/sessions.md): intervals that ascend and do not meet, the last one alone open."""
        cdef Dated dated
        cdef Version version
        super().check()
        size = 0
        for name, dated in self.dated.items():
            assert dated.name == name and dated.versions, name
            size += DATED_COST + len(name) + sum([version.bytes for version in dated.versions])
            assert all([version.first <= version.last for version in dated.versions]), name
            assert not any([version.open for version in dated.versions[:len(dated.versions) - 1]]), name
            assert all([(<Version>a).last < (<Version>b).first for a, b in zip(dated.versions, dated.versions[1:])]), name
            assert (dated in self.layered) == (len(dated.versions) > 1 or not (<Version>dated.versions[0]).open), name
        assert size == self.bytes_at, "bytes of versions are miscounted"
        assert self.given == sorted(set(self.given))


def first_of(Version version):
    return version.first
