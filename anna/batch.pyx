"""Many keys at once: one frame to each owner, all under way together.

The one rule: what came back counts, whatever became of the rest. The keys of a read that was not answered are asked of their next
owners; a write is sent to another owner only if it surely was not sent, and a lost one ends the batch with an indefinite error.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t

cimport cython

from anna.connections cimport Connections
from anna.requests cimport key_view, mark
from anna.stream cimport Stream, now_ns
from anna.wire cimport *

import time

import msgpack

from anna.config import OWNER_SHARE_MIN_NS
from anna.errors import ConnectionLost, NoWorkers, RequestTimeout

cdef int64_t SHARE_MIN_NS = OWNER_SHARE_MIN_NS

cdef enum:
    PAUSE_NS = 5_000_000


@cython.final
cdef class Flight:
    """One frame under way to a worker: its keys, their places in the batch (None: the same), and until when it may be answered."""


@cython.final
cdef class Batch:
    """One multi-get, now or at an epoch, or multi-put. `results` of a get; `refusals`, `replicas` and `durable` (the least of all answers) of a put."""

    cdef int begin(self, Connections connections, int op, list keys, list values, int64_t deadline) except -1:
        self.connections = connections
        self.op = op
        self.keys = keys
        self.values = values
        self.deadline = deadline
        self.results = None
        self.refusals = []
        self.replicas = self.durable = -1
        return 0

    cdef int run(self) except -1:
        """Ask until every key is answered. Raises at the deadline what kept it from that."""
        cdef list wanted = None
        cdef list flights, again
        cdef Flight flight
        if self.op != OP_MPUT:
            self.results = []
            if len(self.connections.workers) != 1 or self.connections.requester.troubled:
                self.results = [self.default] * len(self.keys)
        while True:
            flights, again, self.workers = [], [], self.connections.workers
            try:
                self.launch(wanted, flights, again)
                for flight in flights:
                    self.land(flight, again)
            except BaseException:
                for flight in flights:
                    if flight.stream is not None:
                        flight.stream.close()
                raise
            if self.connections.requester.behind:
                self.connections.look_again()
            if not again:
                return 0
            if len(self.results or ()) != len(self.keys) and self.op != OP_MPUT:
                self.results = [self.default] * len(self.keys)
            wanted = sorted(again)
            self.turn(wanted)

    cdef int64_t limit(self) except -1:
        """Return until when an answer to what is sent now is awaited in this round."""
        cdef int64_t now = now_ns()
        cdef int left = max(self.connections.requester.copies - self.rounds, 1)
        return self.deadline if self.op == OP_MPUT else min(self.deadline, now + max((self.deadline - now) // left, SHARE_MIN_NS))

    cdef int turn(self, list again) except -1:
        """Get ready for one more round: at once when there are owners that were not asked, else after a pause and a look at the view."""
        cdef Connections connections = self.connections
        what = f"{len(again):,} of {len(self.keys):,} keys"
        self.rounds += 1
        if self.error is not None and self.rounds < connections.requester.copies and now_ns() < self.deadline:
            return 0
        if connections.closed or now_ns() + PAUSE_NS >= self.deadline:
            raise connections.given_up(what, self.stale, self.error)
        time.sleep(PAUSE_NS / 1e9)
        try:
            connections.refresh(connections.refresh_limit(self.deadline))
        except NoWorkers as nobody:
            self.error = self.error or nobody
        return 0

    cdef int launch(self, list wanted, list flights, list again) except -1:
        """Send one frame to each owner; the keys of those that cannot be reached go to `again`."""
        cdef Connections connections = self.connections
        if wanted is None and len(connections.workers) == 1 and not connections.requester.troubled:
            groups = {(0, 0): None}
        elif connections.requester.troubled:
            groups = self.group_by_trust(wanted)
        else:
            groups = self.group(wanted)
        for (place, strict), indexes in groups.items():
            if self.workers is not self.connections.workers:
                # Another thread has taken up a newer view: the places are of the old one.
                again += range(len(self.keys)) if indexes is None else indexes
                continue
            try:
                flights.append(self.depart(place, indexes, strict))
            except NoWorkers as error:
                if connections.closed:
                    raise
                self.missed(indexes, error, again)
            except (ConnectionLost, RequestTimeout) as error:
                if self.op == OP_MPUT:
                    raise
                self.missed(indexes, error, again)
        return 0

    def missed(self, indexes, error, list again):
        """A worker was not reached, or did not answer: its keys go elsewhere."""
        self.error = error
        again += range(len(self.keys)) if indexes is None else indexes

    cdef dict group(self, list wanted):
        """Return {(place of the home, 0): indexes of its keys}."""
        cdef Connections connections = self.connections
        cdef dict groups = {}
        cdef Py_ssize_t size
        cdef const char* data
        for index in (range(len(self.keys)) if wanted is None else wanted):
            data = key_view(self.keys[index], &size, connections.requester.system)
            place = connections.requester.placement.owner(data, size)
            found = groups.get(place)
            if found is None:
                groups[place] = [index]
            else:
                (<list>found).append(index)
        return {(place, 0): found for place, found in groups.items()}

    cdef dict group_by_trust(self, list wanted):
        """Return {(place of the owner to ask, stamp up to which it must be current or 0): indexes of its keys}."""
        cdef object requester = self.connections.requester
        cdef dict groups = {}
        cdef dict stamps = {}
        now = now_ns()
        for index in (range(len(self.keys)) if wanted is None else wanted):
            key = self.keys[index]
            place = requester.trusted_owner(key, now)
            stamp = requester.strict_stamp(key, place) if self.op == OP_MGET and place >= 0 else 0
            stamps[place] = max(stamp, stamps.get(place, 0))
            groups.setdefault((place, stamp > 0), []).append(index)
        return {(place, stamps[place] if strict else 0): found for (place, strict), found in groups.items()}

    cdef Flight depart(self, int place, list indexes, uint64_t strict):
        """Send one frame to the worker at `place`. Raises NoWorkers when it cannot be reached in its share of the time."""
        cdef Flight flight = Flight.__new__(Flight)
        cdef Stream stream
        cdef list some
        flight.limit = self.limit()
        stream = self.connections.take(place, self.connections.reach(self.deadline), flight.limit)
        flight.keys = self.keys if indexes is None else [self.keys[i] for i in indexes]
        flight.indexes = indexes
        flight.stream = stream
        try:
            if self.op != OP_MPUT:
                flight.request = self.connections.requester.write_multi_get(stream.out, flight.keys, self.snapshot)
            else:
                some = self.values if indexes is None else [self.values[i] for i in indexes]
                flight.request = self.connections.requester.write_multi_put(stream.out, flight.keys, some)
            mark(<RequestHeader*>stream.out.data, strict, self.ack)
            stream.send(flight.limit)
        except BaseException as error:
            stream.close()
            if isinstance(error, (ConnectionLost, RequestTimeout)):
                self.connections.suspect(stream)
            raise
        return flight

    cdef int land(self, Flight flight, list again) except -1:
        """Wait for one answer and take it; the keys that must be asked for again go to `again`."""
        cdef Stream stream = flight.stream
        try:
            stream.receive(flight.limit)
        except (ConnectionLost, RequestTimeout) as error:
            if self.op == OP_MPUT:
                raise
            stream.close()
            self.connections.suspect(stream)
            self.missed(flight.indexes, error, again)
            return 0
        if stream.reply.request != flight.request:
            raise self.connections.out_of_step(stream, flight.request)
        if self.connections.credit(stream):
            for key in flight.keys:
                self.connections.answered(stream, key)
        self.take_answer(flight, again)
        flight.stream = None
        self.connections.give_back(stream)
        return 0

    cdef int take_answer(self, Flight flight, list again) except -1:
        """Take what an answer says."""
        cdef Stream stream = flight.stream
        cdef int durable
        if stream.reply.status == STATUS_STALE:
            self.stale = True
            again += range(len(self.keys)) if flight.indexes is None else flight.indexes
        elif stream.reply.status >= STATUS_TYPE_MISMATCH:
            raise self.connections.requester.error(stream.reply.status, stream.payload, stream.payload_bytes)
        elif self.op != OP_MPUT:
            self.take_values(flight, again)
        else:
            self.replicas = stream.reply.type + 1 if self.replicas < 0 else min(self.replicas, stream.reply.type + 1)
            durable = stream.reply.flags & REPLY_DURABLE
            self.durable = durable if self.durable < 0 else min(self.durable, durable)
            self.take_failures(flight, again)
        return 0

    cdef int take_values(self, Flight flight, list again) except -1:
        """Put a multi-get's values in their places."""
        cdef list missed = []
        cdef Stream stream = flight.stream
        cdef list found = self.connections.requester.read_multi_get(stream.payload, stream.payload_bytes, flight.keys, self.default, missed, self.lattices)
        cdef Py_ssize_t index
        if flight.indexes is None:
            self.results = found
            again += missed
            return 0
        for index in range(len(found)):
            self.results[flight.indexes[index]] = found[index]
        for index in missed:
            again.append(flight.indexes[index])
        return 0

    cdef int take_failures(self, Flight flight, list again) except -1:
        """Tell a multi-put's failures apart: keys of another worker, and writes that were refused."""
        cdef Stream stream = flight.stream
        if stream.reply.status != STATUS_PARTIAL:
            return 0
        for index, status, message in msgpack.unpackb(PyBytes_FromStringAndSize(stream.payload, stream.payload_bytes)):
            if status == STATUS_WRONG_WORKER:
                again.append(index if flight.indexes is None else flight.indexes[index])
            else:
                self.refusals.append(error_of(status, message))
        return 0
