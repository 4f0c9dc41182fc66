"""Many operations in one flight.

The one rule: operations are written into their owners' lanes as they are queued, sent a window at a time, and answered in the order in
which they were queued. At most two windows are under way on a lane, so that neither side ever waits for the other to read.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

cimport cython

from anna.ack cimport Ack
from anna.buffer cimport Buffer
from anna.client cimport Client
from anna.requester cimport key_view
from anna.stream cimport Stream
from anna.wire cimport *

from anna.errors import AnnaError, NoWorkers

cdef enum:
    WINDOW_BYTES_MAX = 65536
    FIRST_WINDOW_BYTES_MAX = 1536
    ATTEMPTS_MAX = 64


@cython.final
cdef class Lane:
    """One worker's part of a pipeline: request frames end to end, and where each result goes."""

    cdef Buffer frames
    cdef Buffer indexes
    cdef Stream stream
    cdef Py_ssize_t sent
    cdef Py_ssize_t answered
    cdef Py_ssize_t next

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
    cdef dict lanes
    cdef Lane latest
    cdef int latest_place
    cdef list defaults
    cdef object refusal
    cdef readonly list results

    def __init__(self, Client client, timeout=None):
        self.client = client
        self.timeout = timeout
        self.results = []
        self.clear()

    def clear(self):
        """Forget what is queued."""
        self.lanes = {}
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

    def put(self, key, value):
        """Queue a put. Raises BadKey, NotSerializable or ValueTooLarge at once."""
        cdef Py_ssize_t size
        cdef const char* data = key_view(key, &size, self.client.requester.system)
        cdef Lane lane = self.lane(self.client.requester.placement.owner(data, size))
        self.client.requester.write_put(lane.frames, data, size, value)
        lane.place_result(len(self.defaults))
        self.defaults.append(None)
        return self

    def delete(self, key):
        """Queue a delete."""
        cdef Py_ssize_t size
        cdef const char* data = key_view(key, &size, self.client.requester.system)
        cdef Lane lane = self.lane(self.client.requester.placement.owner(data, size))
        self.client.requester.write_request(lane.frames, OP_DELETE, 0, data, size, b"", 0)
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
        cdef list misplaced
        cdef Py_ssize_t attempt
        self.clear()
        self.refusal = None
        for attempt in range(ATTEMPTS_MAX):
            misplaced = []
            self.fly(lanes, defaults, results, misplaced, deadline)
            if not misplaced:
                break
            self.client.refresh(deadline)
            lanes = self.reroute(misplaced)
        else:
            raise NoWorkers(f"no worker owned {len(misplaced)} of {len(defaults)} keys in {ATTEMPTS_MAX} attempts")
        self.results = results
        if self.refusal is not None:
            raise next(result for result in results if isinstance(result, AnnaError))
        return results

    cdef Lane lane(self, int place):
        if self.latest is None or place != self.latest_place:
            found = self.lanes.get(place)
            if found is None:
                found = self.lanes[place] = Lane.__new__(Lane)
            self.latest = <Lane>found
            self.latest_place = place
        return self.latest

    cdef int fly(self, dict lanes, list defaults, list results, list misplaced, int64_t deadline) except -1:
        """Send every lane's windows and read their answers, two windows deep."""
        cdef Lane lane
        cdef Py_ssize_t before
        cdef list under_way = list(lanes.values())
        try:
            for place, lane in lanes.items():
                lane.stream = self.client.take(place, deadline)
                self.send_window(lane, deadline)
            while under_way:
                for lane in list(under_way):
                    before = lane.sent
                    if lane.sent < lane.frames.size and lane.window() - lane.sent <= WINDOW_BYTES_MAX:
                        self.send_window(lane, deadline)
                    self.read_window(lane, before, defaults, results, misplaced, deadline)
                    if lane.answered == lane.frames.size:
                        self.client.give_back(lane.stream)
                        under_way.remove(lane)
                    elif lane.answered == lane.sent:
                        self.send_window(lane, deadline)
        except BaseException:
            for lane in under_way:
                if lane.stream is not None:
                    lane.stream.close()
            raise
        return 0

    cdef int send_window(self, Lane lane, int64_t deadline) except -1:
        cdef Py_ssize_t end = lane.window()
        lane.stream.out.append(lane.frames.data + lane.sent, end - lane.sent)
        lane.sent = end
        lane.stream.send(deadline)
        return 0

    cdef int read_window(self, Lane lane, Py_ssize_t end, list defaults, list results, list misplaced, int64_t deadline) except -1:
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
            self.client.requester.learn(stream.reply.stamp)
            index = (<Py_ssize_t*>lane.indexes.data)[lane.next]
            if stream.reply.status == STATUS_WRONG_WORKER:
                misplaced.append((index, PyBytes_FromStringAndSize(<char*>head, total)))
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
                return Ack.make(1, 0, stream.reply.stamp)
            if status <= STATUS_MISSING:
                return default if op == OP_GET else status == STATUS_OK
            self.refusal = self.client.requester.error(status, stream.payload, stream.payload_bytes)
        except AnnaError as error:
            self.refusal = error
        return self.refusal

    cdef dict reroute(self, list misplaced):
        """Return lanes that hold the frames which went to the wrong worker."""
        cdef dict lanes = {}
        cdef bytes frame
        cdef RequestHeader* head
        cdef Lane lane
        cdef int place
        for index, frame in misplaced:
            head = <RequestHeader*>PyBytes_AS_STRING(frame)
            place = self.client.requester.placement.owner(<char*>head + HEADER_BYTES, head.key_bytes)
            lane = lanes.get(place)
            if lane is None:
                lane = lanes[place] = Lane.__new__(Lane)
            lane.frames.append(<char*>head, PyBytes_GET_SIZE(frame))
            lane.place_result(index)
        return lanes
