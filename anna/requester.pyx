"""Whom a client asks, and what it knows from the answers: the view, and how much it has seen of whom. Without a socket.

The one rule: both clients, the blocking and the asyncio one, are thin over this. A requester knows the view, so it can say which worker a key
belongs to; the greatest stamp that it has seen, which every request carries on; and the latest of each worker, so that nothing older
than what was seen is ever taken (`anna.freshness`). What is said is `anna.requests`.

Where threads share a requester, its `guard` is a lock. Whatever runs Python code, in which another thread may have its turn, holds it; the little that
each request and each answer changes does not, and needs none under the interpreter's lock. A view is taken up in one such step.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from anna.requests cimport Requests, key_bytes, key_view
from anna.routing.placement cimport Placement
from anna.wire cimport *

from contextlib import nullcontext
from operator import itemgetter

from anna.errors import NoWorkers
from anna.freshness import Freshness, homes_of
from anna.routes import Route, Suspects, addresses_of

cdef enum:
    # How often in a row an older view is heard before it counts as that of a cluster which was started anew.
    INSISTED_MIN = 30

cdef class Requester(Requests):
    """One client's side of the protocol. Threads may share one whose `guard` is a lock that one of them may take several times."""

    def __init__(self, view, bint allow_pickle=True, bint system=False, ack=None, guard=None):
        super().__init__(allow_pickle, system, ack)
        self.guard = nullcontext() if guard is None else guard
        self.view = None
        self.workers = ()
        self.seed = None
        self.freshness = Freshness()
        self.suspects = Suspects()
        self.troubled = False
        self.adopt(view)

    # -- the view, and whom to ask

    def adopt(self, view):
        """Take up a view, unless it is older than the present one; return whether anything is new.

        Of two views of one version neither is older: they are joined. One that shares no node with the present one is of a cluster
        that was started anew; so is one that is older and yet all that is heard for long: its nodes came back one by one, without memory.
        """
        with self.guard:
            return self.adopt_alone(view)

    cdef bint adopt_alone(self, view) except -1:
        """`adopt` by who holds the guard."""
        cdef Placement placement
        cdef bint moved = False
        known = self.view
        if known is not None:
            strange = known.nodes and view.nodes and not {n.node_id for n in known.nodes} & {n.node_id for n in view.nodes}
            strange = strange or self.is_insisted_on(view)
            if strange:
                self.freshness = Freshness()
                self.suspects = Suspects()
            elif view.version < known.version or view.digest == known.digest:
                return False
            elif view.version == known.version:
                view = known.join(view)
            if known.nodes and not strange and homes_of(known) != homes_of(view):
                self.freshness.moved(self.placement, self.seen, view)
                moved = True
        placement = Placement(view)
        workers, mark, ids = view.workers, view.mark, [worker.worker_id for worker in view.workers]
        self.mark_trouble()
        # From here on no Python code runs: other threads see all of this or nothing, and nothing is answered by the old placement meanwhile.
        if moved:
            self.freshness.floor = self.seen
        self.move_stamps(ids)
        self.view, self.workers, self.ids, self.placement = view, workers, ids, placement
        self.view_mark = mark
        self.copies = placement.copies_most
        self.behind = False
        return True

    cdef bint is_insisted_on(self, view) except -1:
        """Whether a view that is older than the present one was heard so often that it must be the cluster's."""
        if view.digest == self.view.digest or view.version > self.view.version:
            self.insisted = 0
            return False
        if view.digest != self.insisted_digest:
            self.insisted_digest = view.digest
            self.insisted = 0
        self.insisted += 1
        if self.insisted < INSISTED_MIN:
            return False
        self.insisted = 0
        return True

    cdef int move_stamps(self, list ids) except -1:
        """Let each worker of the next view keep the greatest stamp that it answered with."""
        cdef int place = 0
        cdef int places = <int>len(ids)
        cdef uint64_t* moved = <uint64_t*>calloc(max(places, 1), sizeof(uint64_t))
        if moved is NULL:
            raise MemoryError("no memory for the stamps of a view's workers")
        known = {}
        for place in range(self.places):
            known[self.ids[place]] = self.seen_at[place]
        for place in range(places):
            moved[place] = known.get(ids[place], 0)
        free(self.seen_at)
        self.seen_at = moved
        self.places = places
        return 0

    def __dealloc__(self):
        free(self.seen_at)

    cdef int mark_trouble(self) except -1:
        """Remember in one flag whether the next request has to think about whom it asks."""
        self.troubled = bool(self.suspects) or self.freshness.unsettled
        return 0

    def owner(self, key):
        """Return the index in `view.workers` of the worker that `key` belongs to."""
        cdef Py_ssize_t size
        cdef const char* data = key_view(key, &size, self.system)
        return self.placement.owner(data, size)

    def first_at(self, uint64_t position):
        """Return the id of the worker that keys with this hash belong to, suspected or not. Raises NoWorkers."""
        cdef int place = self.placement.owner_at(position)
        if not 0 <= place < self.places:
            raise NoWorkers("the view names no worker")
        return self.ids[place]

    def owners(self, key):
        """Return the indexes in `view.workers` of all owners of `key`, its home first; empty when nobody serves."""
        if self.placement.workers == 0:
            return ()
        return self.placement.owners_of(key_bytes(key, self.system))

    def owners_by_trust(self, bytes key, now):
        """Return [(place, suspected), …]: the owners of `key` in their order, those that are suspected last."""
        with self.guard:
            self.suspects.expire(now)
            self.mark_trouble()
            owners = [(place, self.ids[place] in self.suspects) for place in self.owners(key)]
            return sorted(owners, key=itemgetter(1))

    def trusted_owner(self, key, now):
        """Return the place of the first owner of `key` that is not suspected, or of the first when all are; -1 when nobody serves."""
        owners = self.owners_by_trust(key_bytes(key, self.system), now)
        return owners[0][0] if owners else -1

    def route(self, key, bint reads, now, deadline, tried=()):
        """Return the way of a request through the owners of `key` but `tried`; `reads`: the request changes nothing."""
        return Route(self, key_bytes(key, self.system), reads, now, deadline, tried)

    def suspect(self, int place, now):
        """The worker at `place` could not be reached, or did not answer in time: ask others first for a while."""
        if 0 <= place < self.places:
            self.suspect_worker(self.ids[place], now)

    def suspect_worker(self, worker_id, now):
        """`suspect`, of a worker that may have another place by now."""
        with self.guard:
            self.suspects.add(worker_id, now)
            self.troubled = True

    def strict_stamp(self, key, int place):
        """Return up to which stamp the worker at `place` must be current to be asked for `key`; 0: it may just answer."""
        return self.strict_stamp_at(key, self.ids[place]) if 0 <= place < self.places else 0

    def strict_stamp_at(self, key, worker_id):
        """`strict_stamp`, of a worker that may have another place by now, or none."""
        cdef bytes name = key_bytes(key, self.system)
        cdef int home
        with self.guard:
            if self.placement.workers == 0:
                return 0
            home = self.placement.index_of(name)
            stamp = self.freshness.needed(name, self.ids[home], worker_id, self.seen_at[home])
            self.mark_trouble()
            return stamp

    def answered(self, key, int place, stamp, stable=0):
        """Take note, while `troubled`, that the worker at `place` answered about `key`: its clock, and the stable epoch it knows."""
        if 0 <= place < self.places:
            self.answered_by(key, self.ids[place], stamp, stable)

    def answered_by(self, key, by, stamp, stable=0):
        """Take note that the worker `by` answered about `key`, also when the view names it no more."""
        cdef bytes name = key_bytes(key, self.system)
        cdef int home
        with self.guard:
            if self.placement.workers == 0:
                return
            home = self.placement.index_of(name)
            self.suspects.discard(by)
            self.freshness.answered(self.ids[home], by, stamp, self.seen_at[home])
            self.settle(stable)

    def settle(self, stable):
        """Take note of the stable epoch that an answer told (its low 32 bits; 0: none)."""
        with self.guard:
            self.freshness.learn_stable(stable)
            self.mark_trouble()

    def reached(self, str address):
        """Remember the first address at which the cluster was reached: it tells which addresses of workers are near."""
        if self.seed is None:
            self.seed = address

    def addresses(self, int place):
        """Return the addresses to try for the worker at `place`, the best first; none when the view of now has no such place."""
        view, workers = self.view, self.workers
        # Another thread may have taken up a view with fewer workers since the caller found the place.
        return addresses_of(view, workers[place], self.seed) if 0 <= place < len(workers) else ()
    # -- what was answered

    cdef int learn(self, int place, uint64_t stamp, int flags) noexcept:
        """Remember the greatest stamp seen, and of the worker at `place`, and whether `flags` tell of another view."""
        if flags >> REPLY_MARK_SHIFT != self.view_mark and flags >> REPLY_MARK_SHIFT:
            self.behind = True
        if stamp > self.seen:
            self.seen = stamp
        if 0 <= place < self.places and stamp > self.seen_at[place]:
            self.seen_at[place] = stamp
        return 0

    def note(self, uint64_t stamp, int place=-1, int flags=0):
        """Remember the greatest stamp seen, which later requests carry, that the worker at `place` answered with it, and what its flags tell."""
        self.learn(place, stamp, flags)

    cdef int place_of(self, worker_id) except -2:
        """Return the place of a worker in the view of now, -1 when it has none."""
        return <int>(<list>self.ids).index(worker_id) if worker_id in self.ids else -1
