"""Many operations in one flight.

The one rule: operations are written into their owners' lanes as they are queued, sent a window at a time, and answered in the order in
which they were queued. At most two windows are under way on a lane, so that neither side ever waits for the other to read. A lane
whose worker cannot be reached is taken to other owners; one that is lost is so only if all that was under way on it are reads.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

cimport cython

from anna.ack cimport Ack
from anna.buffer cimport Buffer
from anna.client cimport Client
from anna.requests cimport key_view, mark
from anna.stream cimport Stream, now_ns
from anna.wire cimport *

import time

from anna.ack import ack_number
from anna.config import OWNER_SHARE_MIN_NS
from anna.errors import AnnaError, ConnectionLost, NoWorkers, RequestTimeout

cdef int64_t SHARE_MIN_NS = OWNER_SHARE_MIN_NS

cdef enum:
    WINDOW_BYTES_MAX = 65536
    FIRST_WINDOW_BYTES_MAX = 1536
    PAUSE_NS = 5_000_000


@cython.final
cdef class Lane:
    """One worker's part of a pipeline: request frames end to end, and where each result goes."""

    cdef Buffer frames
    cdef Buffer indexes
    cdef Stream stream
    cdef Py_ssize_t sent
    cdef Py_ssize_t answered
    cdef Py_ssize_t next
    cdef int place
    cdef int64_t limit
    cdef bint writes

    def __cinit__(self):
        self.frames = Buffer()
        self.indexes = Buffer()

    cdef int place_result(self, Py_ssize_t index) except -1:
        """Say that the result of the frame that was written last goes to `index`."""
        (<Py_ssize_t*>self.indexes.reserve(sizeof(Py_ssize_t)))[0] = index
        return 0

    cdef Py_ssize_t window(self) noexcept:
        """Return where the next window ends: whole frames, at most WINDOW_BYTES_MAX of them unless one alone is longer.

        The first window is short, so that the worker begins while the rest is still being sent.
        """
        cdef Py_ssize_t end = self.sent
        cdef Py_ssize_t next
        cdef Py_ssize_t limit = WINDOW_BYTES_MAX if self.sent else FIRST_WINDOW_BYTES_MAX
        while end < self.frames.size:
            next = end + LENGTH_BYTES + (<RequestHeader*>(self.frames.data + end)).length
            if next - self.sent > limit and end > self.sent:
                break
            end = next
        return end


@cython.final
cdef class Pipeline:
    """Operations that are sent together and answered together. Made by `Client.pipeline`; for one thread.

    `get`, `put` and `delete` queue; `execute`, or leaving the `with` block without an error, sends. `results` then has one entry for
    each operation, in order: a value (`default` where nothing is stored), an Ack, or whether a key was deleted.
    """

    cdef Client client
    cdef object timeout
    cdef int ack
    cdef dict lanes
    # Those of the view by which the lanes were laid.
    cdef tuple workers
    cdef Lane latest
    cdef int latest_place
    cdef list defaults
    cdef object refusal
    cdef object error
    cdef bint stale
    cdef readonly list results

    def __init__(self, Client client, timeout=None, ack=None):
        self.client = client
        self.timeout = timeout
        self.ack = 0 if ack is None else ack_number(ack)
        self.results = []
        self.clear()

    def clear(self):
        """Forget what is queued."""
        self.lanes = {}
        self.workers = None
        self.latest = None
        self.defaults = []

    def get(self, key, default=None):
        """Queue a get."""
        cdef Py_ssize_t size
        cdef const char* data = key_view(key, &size, self.client.requester.system)
        cdef Lane lane = self.lane(self.client.requester.placement.owner(data, size))
        self.client.requester.write_request(lane.frames, OP_GET, 0, data, size, b"", 0)
        lane.place_result(len(self.defaults))
        self.defaults.append(default)
        return self

    def put(self, key, value, *, ttl=None, if_stamp=None):
        """Queue a put, with the conditions of `Client.put`. Raises BadKey, NotSerializable or ValueTooLarge at once."""
        cdef Py_ssize_t size
        cdef const char* data = key_view(key, &size, self.client.requester.system)
        cdef Lane lane = self.lane(self.client.requester.placement.owner(data, size))
        cdef Py_ssize_t begin = lane.frames.size
        if ttl is None and if_stamp is None:
            self.client.requester.write_put(lane.frames, data, size, value)
        else:
            self.client.requester.write_conditional_put(lane.frames, data, size, value, ttl, if_stamp)
        lane.writes = True
        if self.ack:
            mark(<RequestHeader*>(lane.frames.data + begin), 0, self.ack)
        lane.place_result(len(self.defaults))
        self.defaults.append(None)
        return self

    def delete(self, key):
        """Queue a delete."""
        cdef Py_ssize_t size
        cdef const char* data = key_view(key, &size, self.client.requester.system)
        cdef Lane lane = self.lane(self.client.requester.placement.owner(data, size))
        cdef Py_ssize_t begin = lane.frames.size
        lane.writes = True
        self.client.requester.write_request(lane.frames, OP_DELETE, 0, data, size, b"", 0)
        if self.ack:
            mark(<RequestHeader*>(lane.frames.data + begin), 0, self.ack)
        lane.place_result(len(self.defaults))
        self.defaults.append(None)
        return self

    def __len__(self):
        return len(self.defaults)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.execute()
        self.clear()

    def execute(self):
        """Send what is queued and return `results`. The first refused operation's error is raised after all were answered.

        Raises RequestTimeout or ConnectionLost (indefinite) when answers do not come.
        """
        cdef int64_t deadline = self.client.deadline(self.timeout)
        cdef dict lanes = self.lanes
        cdef list defaults = self.defaults
        cdef list results = [None] * len(defaults)
        cdef list again = []
        cdef Py_ssize_t rounds = 0
        cdef tuple workers = self.workers
        self.clear()
        self.refusal = self.error = None
        if self.client.requester.troubled or workers is not self.client.workers:
            for lane in lanes.values():
                self.give_up(lane, again)
            lanes = self.reroute(again)
        else:
            self.workers = workers
        while True:
            again = []
            self.fly(lanes, defaults, results, again, deadline)
            if self.client.requester.behind:
                self.client.look_again()
            if not again:
                break
            rounds += 1
            self.turn(rounds, len(again), deadline)
            lanes = self.reroute(again)
        self.results = results
        if self.refusal is not None:
            raise next(result for result in results if isinstance(result, AnnaError))
        return results

    cdef int turn(self, Py_ssize_t rounds, Py_ssize_t count, int64_t deadline) except -1:
        """Get ready to send again what went to the wrong worker or was not taken. Raises when it is too late for that."""
        if self.error is not None and rounds < self.client.requester.copies and now_ns() < deadline:
            return 0
        if self.client.closed or now_ns() + PAUSE_NS >= deadline:
            raise self.client.given_up(f"{count:,} keys of a pipeline", self.stale, self.error)
        time.sleep(PAUSE_NS / 1e9)
        try:
            self.client.refresh(self.client.refresh_limit(deadline))
        except NoWorkers as nobody:
            self.error = self.error or nobody
        return 0

    cdef Lane lane(self, int place):
        if self.workers is None:
            self.workers = self.client.workers
        if self.latest is None or place != self.latest_place:
            found = self.lanes.get(place)
            if found is None:
                found = self.lanes[place] = Lane.__new__(Lane)
            self.latest = <Lane>found
            self.latest_place = place
        return self.latest

    cdef int fly(self, dict lanes, list defaults, list results, list again, int64_t deadline) except -1:
        """Send every lane's windows and read their answers; what must be sent again goes to `again`."""
        cdef Lane lane
        cdef list under_way = list(lanes.values())
        try:
            for place, lane in lanes.items():
                lane.place = place
                if not self.depart(lane, again, deadline):
                    under_way.remove(lane)
            while under_way:
                for lane in list(under_way):
                    if not self.exchange(lane, defaults, results, again, lane.limit):
                        under_way.remove(lane)
        except BaseException:
            for lane in under_way:
                if lane.stream is not None:
                    lane.stream.close()
            raise
        return 0

    cdef bint depart(self, Lane lane, list again, int64_t deadline) except -1:
        """Send a lane's first window; False when its worker cannot be reached in its share of the time, and others are to be asked."""
        lane.limit = deadline if lane.writes else self.client.share(deadline)
        if self.workers is not self.client.workers:
            # Another thread has taken up a newer view: the lane's place is one of the old one.
            self.give_up(lane, again)
            return False
        try:
            lane.stream = self.client.take(lane.place, self.client.reach(deadline), lane.limit)
            self.send_window(lane, lane.limit)
        except (NoWorkers, ConnectionLost, RequestTimeout) as error:
            if self.client.closed or (lane.stream is not None and lane.writes):
                raise
            self.lose(lane, error, again)
            return False
        return True

    cdef bint exchange(self, Lane lane, list defaults, list results, list again, int64_t deadline) except -1:
        """Send a lane's next window and read the answers to the one before; False when nothing more is to come."""
        cdef Py_ssize_t before = lane.sent
        try:
            if lane.sent < lane.frames.size and lane.window() - lane.sent <= WINDOW_BYTES_MAX:
                self.send_window(lane, deadline)
            self.read_window(lane, before, defaults, results, again, deadline)
            if lane.answered == lane.frames.size:
                self.client.give_back(lane.stream)
                return False
            if lane.answered == lane.sent:
                self.send_window(lane, deadline)
        except (ConnectionLost, RequestTimeout) as error:
            if lane.writes:
                raise
            self.lose(lane, error, again)
            return False
        return True

    def lose(self, Lane lane, error, list again):
        """A lane's worker was not reached or did not answer, and nothing that it may have taken is a write: ask others."""
        self.error = error
        if lane.stream is not None:
            self.client.suspect(lane.stream)
            lane.stream.close()
        self.give_up(lane, again)

    def give_up(self, Lane lane, list again):
        """Take back the frames of a lane that were not answered."""
        cdef Py_ssize_t total
        while lane.answered < lane.frames.size:
            total = LENGTH_BYTES + <Py_ssize_t>(<RequestHeader*>(lane.frames.data + lane.answered)).length
            again.append(((<Py_ssize_t*>lane.indexes.data)[lane.next], PyBytes_FromStringAndSize(lane.frames.data + lane.answered, total)))
            lane.answered += total
            lane.next += 1

    cdef int send_window(self, Lane lane, int64_t deadline) except -1:
        cdef Py_ssize_t end = lane.window()
        lane.stream.out.append(lane.frames.data + lane.sent, end - lane.sent)
        lane.sent = end
        lane.stream.send(deadline)
        return 0

    cdef int read_window(self, Lane lane, Py_ssize_t end, list defaults, list results, list again, int64_t deadline) except -1:
        """Read the answers to the frames before `end`."""
        cdef Stream stream = lane.stream
        cdef RequestHeader* head
        cdef Py_ssize_t index, total
        while lane.answered < end:
            head = <RequestHeader*>(lane.frames.data + lane.answered)
            total = LENGTH_BYTES + <Py_ssize_t>head.length
            stream.receive(deadline)
            if stream.reply.request != head.request:
                raise self.client.out_of_step(stream, head.request)
            if self.client.credit(stream):
                self.client.answered(stream, (<char*>head)[HEADER_BYTES:HEADER_BYTES + head.key_bytes])
            index = (<Py_ssize_t*>lane.indexes.data)[lane.next]
            if stream.reply.status == STATUS_WRONG_WORKER or stream.reply.status == STATUS_STALE:
                self.stale = self.stale or stream.reply.status == STATUS_STALE
                again.append((index, PyBytes_FromStringAndSize(<char*>head, total)))
            else:
                results[index] = self.result(stream, head.op, defaults[index])
            lane.answered += total
            lane.next += 1
        return 0

    cdef object result(self, Stream stream, int op, object default):
        """Return what one answer means; an error is returned, not raised, for the others have answers too."""
        cdef int status = stream.reply.status
        try:
            if status == STATUS_OK and op == OP_GET:
                return self.client.requester.value_of(stream.reply.type, stream.payload, stream.payload_bytes)
            if status == STATUS_OK and op == OP_PUT:
                return Ack.make(stream.reply.type + 1, stream.reply.flags & REPLY_DURABLE, stream.reply.stamp)
            if status <= STATUS_MISSING:
                return default if op == OP_GET else status == STATUS_OK
            self.refusal = self.client.requester.error(status, stream.payload, stream.payload_bytes)
        except AnnaError as error:
            self.refusal = error
        return self.refusal

    cdef dict reroute(self, list again):
        """Return lanes that hold the frames which are to be sent again, or for the first time while workers are suspected."""
        cdef dict lanes = {}
        cdef bytes frame
        cdef RequestHeader* head
        cdef Lane lane
        cdef Py_ssize_t begin
        self.workers = self.client.workers
        for index, frame in again:
            head = <RequestHeader*>PyBytes_AS_STRING(frame)
            key = PyBytes_FromStringAndSize(<char*>head + HEADER_BYTES, head.key_bytes)
            place = self.client.requester.trusted_owner(key, now_ns())
            lane = lanes.get(place)
            if lane is None:
                lane = lanes[place] = Lane.__new__(Lane)
            begin = lane.frames.size
            lane.frames.append(<char*>head, PyBytes_GET_SIZE(frame))
            lane.place_result(index)
            if head.op != OP_GET:
                lane.writes = True
                continue
            head = <RequestHeader*>(lane.frames.data + begin)
            head.flags &= ~FLAG_STRICT
            head.stamp = self.client.requester.seen
            if place >= 0:
                mark(head, self.client.requester.strict_stamp(key, place), 0)
        return lanes
