"""The blocking client: a call writes a frame, sends it, and waits for its answer in the calling thread.

The one rule: every call ends by its deadline, with a value or a typed error that says whether it may have had an effect. There is no
event loop and no thread: each call takes a connected stream from a pool (`anna.connections`), so threads never wait for each other.
Requests are routed here, by the view. Reads go on to a key's next owner when one does not answer, and never give what is older than
what this client has seen (`anna.freshness`); writes are sent once.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t

from anna.ack cimport Ack
from anna.batch cimport Batch
from anna.connections cimport Connections
from anna.requester cimport Requester
from anna.requests cimport key_view, mark
from anna.stream cimport Stream, now_ns
from anna.wire cimport *

import struct
import os
import time

from anna.ack import ack_number
from anna.config import TIMEOUT_S
from anna.errors import AnnaError, ConnectionLost, KeyNotFound, NoWorkers, RequestTimeout, UnavailableError
from anna.messages import View
from anna.routes import may_ask_again
from anna.snapshots import LEASE_S, pin

cdef object _RAISE = object()

cdef int64_t NEVER_NS = 0x3FFFFFFFFFFFFFFF
EMPTY_PAGE_PAUSE_S = 0.01
_SNAPSHOT = struct.Struct("<QQ")

cdef enum:
    TAIL_BYTES_MIN = 16384


cdef class Client(Connections):
    """A connection to an anna cluster, for any number of threads. Made by `anna.connect`.

    `seeds` are addresses of workers, tried in turn until one answers with the view. `timeout` (seconds) is the deadline of
    each call that names none. `ack` is how safe a write must be before it is acknowledged, unless the write says so itself: "memory"
    (one copy), a number of copies, "disk"; None leaves it to the cluster. `lease`, when given, is closed with the client. `keys` (`anna.keys`, or their
    directory; None: `$ANNA_KEYS`) are shown on every TCP stream, which is encrypted then.
    """

    def __init__(self, seeds, *, double timeout=TIMEOUT_S, bint allow_pickle=True, bint system=False, ack=None, lease=None, keys=None):
        super().__init__(seeds, timeout, Requester(View(0, ()), allow_pickle, system, ack), lease, keys)

    # -- values

    def get(self, key, default=_RAISE, *, timeout=None):
        """Return the value under `key`: what its lattice shows. Raises KeyNotFound unless a `default` is given."""
        cdef Stream stream = self.ask(OP_GET, key, None, True, timeout, 0)
        cdef int status = stream.reply.status
        if stream.bulk is not None:
            value, stream.bulk = stream.bulk, None
            self.give_back(stream)
            return value
        if status == STATUS_OK:
            try:
                return self.requester.value_of(stream.reply.type, stream.payload, stream.payload_bytes)
            finally:
                self.give_back(stream)
        return self.absent(stream, status, key, default)

    def get_lattice(self, key, default=_RAISE, *, timeout=None):
        """Return the lattice under `key`, a copy that is the caller's. Raises KeyNotFound unless a `default` is given."""
        cdef Stream stream = self.ask(OP_GET, key, None, False, timeout, 0)
        cdef int status = stream.reply.status
        if status == STATUS_OK:
            try:
                return self.requester.lattice_of(stream.reply.type, stream.payload, stream.payload_bytes)
            finally:
                self.give_back(stream)
        return self.absent(stream, status, key, default)

    def put(self, key, value, *, ack=None, ttl=None, if_stamp=None, timeout=None):
        """Join `value` into `key` and return an Ack: a lattice as it is, anything else as the last write of a register.

        `ttl`: the write lives for so many seconds. `if_stamp`: write only if the register still has this stamp, which
        `get_lattice(key).stamp` gave (0: only if there is nothing), else raise Changed. The owner that is asked compares, with what it
        has at that moment: two that write at two owners at once may both succeed, and then the greater stamp wins.

        Raises LatticeTypeMismatch when the key holds another type, ValueTooLarge, NotSerializable, BadKey; NotSupported,
        UnavailableError or DiskFull when the acknowledgement cannot be had (nothing was written); RequestTimeout or ConnectionLost
        (both indefinite: the write may have happened).
        """
        cdef Stream stream
        if ttl is None and if_stamp is None:
            stream = self.ask(OP_PUT, key, value, False, timeout, 0 if ack is None else ack_number(ack))
        else:
            stream = self.ask(OP_PUT, key, (value, ttl, if_stamp), True, timeout, 0 if ack is None else ack_number(ack))
        cdef int status = stream.reply.status
        cdef uint64_t stamp = stream.reply.stamp
        if status == STATUS_OK:
            self.give_back(stream)
            return Ack.make(stream.reply.type + 1, stream.reply.flags & REPLY_DURABLE, stamp)
        raise self.failure(stream, status)

    def delete(self, key, *, ack=None, timeout=None):
        """Forget `key`; return whether it was there."""
        cdef Stream stream = self.ask(OP_DELETE, key, None, False, timeout, 0 if ack is None else ack_number(ack))
        cdef int status = stream.reply.status
        if status <= STATUS_MISSING:
            self.give_back(stream)
            return status == STATUS_OK
        raise self.failure(stream, status)

    def mget(self, keys, default=None, *, timeout=None):
        """Return the values of `keys`, in their order, `default` for each that is missing. One flight to each worker."""
        cdef Batch batch = Batch.__new__(Batch)
        batch.begin(self, OP_MGET, list(keys), None, self.deadline(timeout))
        batch.default = default
        batch.run()
        return batch.results

    def mput(self, items, *, ack=None, ttl=None, timeout=None):
        """Join each value of a mapping (or of key-value pairs) into its key; return the least Ack of all. Not atomic.

        `ttl`: each write lives for so many seconds. When a key is refused, the first such error is raised after the others were written.
        """
        cdef Batch batch = Batch.__new__(Batch)
        cdef int64_t deadline = self.deadline(timeout)
        if isinstance(items, dict):
            keys, values = list(items), list(items.values())
        else:
            pairs = list(items)
            keys, values = [key for key, _ in pairs], [value for _, value in pairs]
        if ttl is not None:
            return self.put_each(keys, values, ack, ttl, timeout)
        batch.begin(self, OP_MPUT, keys, values, deadline)
        batch.ack = 0 if ack is None else ack_number(ack)
        batch.run()
        if batch.refusals:
            raise batch.refusals[0]
        return Ack.make(max(batch.replicas, 1), max(batch.durable, 0), self.requester.seen)

    def put_each(self, keys, values, ack, ttl, timeout):
        """Put with a time to live, in a frame for each key: those of a multi-put have no room for it."""
        pipeline = self.pipeline(ack=ack, timeout=timeout)
        for key, value in zip(keys, values, strict=True):
            pipeline.put(key, value, ttl=ttl)
        acks = pipeline.execute()
        replicas, durable = min((ack.replicas for ack in acks), default=1), min((ack.durable for ack in acks), default=0)
        return Ack.make(replicas, durable, self.requester.seen)

    def commit(self, writes, *, id=None, after=0, ack=None, timeout=None):
        """Write many keys together: all take effect at one stamp, which is returned, or none does. Any owner finishes what this client leaves undone.

        `writes` is a mapping of keys to values or lattices, pairs of those, or `anna.commits.Write`s (`write_of` makes those that delete a key, or write
        what lives for a while, from the commit on); 1 to TRANSACTION_KEYS_MAX, each key once.
        Who reads at an epoch sees all of them or none; plain reads may see some a moment before the others. Again with the same `id` (16 bytes;
        one at random if None) it has no second effect, for a minute at least. It is later than all that this client has seen, and than the stamp `after`. Each
        write is as safe as `ack` says before the caller is told.

        Raises what an owner refuses it with (nothing was written then); RequestTimeout (indefinite) when nobody knew by the deadline.
        """
        from anna.commits import transaction_of
        from anna.committing import run

        commit = transaction_of(self.requester, writes, id, os.urandom)
        self.requester.note(after)
        return run(self, commit, ack, self.deadline(timeout))

    def pipeline(self, *, ack=None, timeout=None):
        """Return an `anna.pipeline.Pipeline`: many operations, one flight."""
        from anna.pipeline import Pipeline

        return Pipeline(self, timeout, ack)

    def scan(self, prefix="", limit=None, *, timeout=None):
        """Return an iterator of the keys that begin with `prefix`, in the order of their bytes, at most `limit`.

        Keys are text when they are valid UTF-8, else bytes. Pages are asked for as they are needed, each with a deadline of its own,
        so a key that is written or deleted meanwhile may be given or not; no key is given twice.
        """
        from anna.scan import Scan

        self.refresh(self.deadline(timeout))
        return self.scan_pages(Scan(self.view, prefix, limit), timeout)

    def scan_pages(self, scan, timeout):
        """Drive an `anna.scan.Scan`."""
        while pages := scan.wanted():
            for place, cursor in pages:
                if not self.has_page(scan, place, cursor, self.deadline(timeout)):
                    break
            yield from scan.ready()
        yield from scan.ready()

    def has_page(self, scan, int place, bytes cursor, int64_t deadline):
        """Get one worker's next page, or do without it; False when the view has changed, and the scan begins anew."""
        while True:
            if self.view is not scan.view:
                scan.restart(self.view)
                return False
            self.requester.behind = False
            try:
                served = self.scan_page(scan, place, cursor, deadline)
                if served and not self.requester.behind:
                    return True
            except UnavailableError:
                served = scan.can_spare(place)
                if not served and now_ns() >= deadline:
                    raise
            try:
                self.refresh(self.refresh_limit(deadline))
            except NoWorkers:
                pass  # whoever answers next may know more
            if self.view is not scan.view:
                scan.restart(self.view)
                return False
            if served:
                return True
            time.sleep(EMPTY_PAGE_PAUSE_S)

    def scan_page(self, scan, int place, bytes cursor, int64_t deadline):
        """Get one worker's next page for a scan; False when the view is another one by now, and with it the place."""
        while self.view is scan.view:
            keys, more = self.ask_frame(place, self.requester.scan_request(scan.prefix, cursor, scan.page_keys), deadline)
            if scan.take(place, keys, more):
                return True
            # All keys of the page have expired, and will be deleted in a moment.
            if now_ns() >= deadline:
                raise RequestTimeout(f"worker {place} named only keys that have expired, until the deadline")
            time.sleep(EMPTY_PAGE_PAUSE_S)
        return False

    def watch(self, key, *, timeout=None):
        """Return an iterator of the values of `key` as they change, the present one first if there is one.

        Its `value` is the newest that has come, without waiting: for who looks between two steps of a computation. The iteration ends with its `close()`, or when nothing has changed for `timeout` seconds (None: never). States that follow each other
        fast are joined: the latest is given, not each. A deleted key gives nothing until it is written again. While no owner can be
        reached, the next one is awaited.
        """
        from anna.watch import Watch

        return Watch(self, key, timeout)

    # -- reads at an epoch: what sessions use

    def pin(self, epoch=0, *, lease=LEASE_S, least=0, timeout=None):
        """Have epochs kept readable for `lease` seconds, the recent ones or also the one that is named; return what can be read.

        That is an `anna.snapshots.Pinned`: the newest stable `epoch` that all workers can read, and the digest of its `view`, which is 0 while
        there is none yet: ask again in some milliseconds. With `least`, no epoch before that: it is awaited. Raises SnapshotExpired when
        `epoch` cannot be read any more, RequestTimeout when `least` has not come before the deadline.
        """
        return pin(self, epoch, lease, least, timeout)

    def pin_at(self, int place, bytes payload, timeout):
        """Return what the worker at `place` answers to a pin."""
        cdef int64_t deadline = self.deadline(timeout)
        cdef Stream stream = self.take(place, deadline, deadline)
        try:
            self.requester.write_request(stream.out, OP_PIN, 0, b"", 0, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
            stream.send(deadline)
            stream.receive(deadline)
        except BaseException:
            stream.close()
            raise
        if stream.reply.status != STATUS_OK:
            raise self.failure(stream, stream.reply.status)
        answer = PyBytes_FromStringAndSize(stream.payload, stream.payload_bytes)
        self.give_back(stream)
        return answer

    def get_at(self, key, snapshot, default=_RAISE, *, bint lattice=False, timeout=None):
        """Return what `key` held at the end of an epoch: its value, or with `lattice` the state. Raises KeyNotFound unless a `default` is given.

        `snapshot` is (epoch, digest of the view under which it became stable). Every owner gives the same, every time. Raises
        SnapshotExpired when that is not known any more.
        """
        cdef Stream stream = self.ask(OP_GET_AT, key, _SNAPSHOT.pack(*snapshot), False, timeout, 0)
        cdef int status = stream.reply.status
        if status == STATUS_OK:
            try:
                if lattice:
                    return self.requester.lattice_of(stream.reply.type, stream.payload, stream.payload_bytes)
                return self.requester.value_of(stream.reply.type, stream.payload, stream.payload_bytes)
            finally:
                self.give_back(stream)
        return self.absent(stream, status, key, default)

    def mget_at(self, keys, snapshot, default=None, *, bint lattice=False, timeout=None):
        """Return what `keys` held at the end of an epoch, in their order, `default` for each that was absent; as `get_at`."""
        cdef Batch batch = Batch.__new__(Batch)
        batch.begin(self, OP_MGET_AT, list(keys), None, self.deadline(timeout))
        batch.default = default
        batch.snapshot = _SNAPSHOT.pack(*snapshot)
        batch.lattices = lattice
        batch.run()
        return batch.results

    # -- the cluster

    def replicate(self, *keys, int memory=0, int disk=0, bint default=False, timeout=None):
        """Give keys so many copies on nodes with memory and on nodes with disks, or with `default` as many as all others have.

        A worker has taken it when this returns, and tells all others; the copies move then, a second or two, while those who have
        the keys answer for them. What there are no workers for is left out, but each key has one copy. Asked for twice, it is as if once.

        Raises ValueTooLarge when too many keys would have numbers of their own, ValueError for numbers that cannot be; RequestTimeout
        or ConnectionLost (both indefinite) when an owner was asked and did not answer, whatever came of asking others after it.
        """
        asked = self.requester.replicate_request(keys, memory, disk, default)
        cdef int64_t deadline = self.deadline(timeout)
        route = self.requester.route(keys[0], True, now_ns(), deadline)
        told = None
        while True:
            place, limit, _ = self.advance(route, deadline, told)
            try:
                self.adopt(View.from_wire(self.ask_frame(place, asked, limit)))
                return
            except AnnaError as error:
                if told is None or not error.definite:
                    told = error  # no later one says that nothing was done: what was sent may still arrive
                if not isinstance(error, UnavailableError):
                    raise told

    @property
    def view(self):
        """The workers as this client knows them."""
        return self.requester.view

    @property
    def stamp(self):
        """The greatest stamp that this client has seen."""
        return self.requester.seen

    def where(self, key):
        """Return where `key` lives: {key, place, worker_id, addresses} of its home, and `owners`: the places of all owners, home first."""
        owners = self.requester.owners(key)
        if not owners:
            raise NoWorkers("the view names no worker")
        info = self.requester.view.workers[owners[0]]
        return {"key": key, "place": owners[0], "worker_id": info.worker_id, "addresses": list(info.addresses), "owners": list(owners)}

    def copies(self, key, *, timeout=None):
        """Return what each owner of `key` holds now, home first: {place, held, type, stamp}, or {place, error}.

        `stamp` is that of a register, None for other types.
        """
        cdef int64_t deadline = self.deadline(timeout)
        found = []
        for place in self.requester.owners(key):
            try:
                state = self.state_at(place, key, deadline)
            except AnnaError as error:
                found.append({"place": place, "error": str(error)})
                continue
            kind = None if state is None else type(state).__name__.lower()
            found.append({"place": place, "held": state is not None, "type": kind, "stamp": getattr(state, "stamp", None)})
        return found

    def state_at(self, int place, key, int64_t deadline):
        """Return the lattice that the worker at `place` holds under `key` now, None for none."""
        cdef Stream stream = self.take(place, deadline, deadline)
        cdef Py_ssize_t size
        cdef const char* data = key_view(key, &size, self.requester.system)
        cdef int status
        try:
            self.requester.write_request(stream.out, OP_GET, 0, data, size, b"", 0)
            stream.send(deadline)
            stream.receive(deadline)
        except BaseException:
            stream.close()
            raise
        status = stream.reply.status
        if status > STATUS_MISSING:
            raise self.failure(stream, status)
        try:
            return self.requester.lattice_of(stream.reply.type, stream.payload, stream.payload_bytes) if status == STATUS_OK else None
        finally:
            self.give_back(stream)

    def status(self, *, timeout=None):
        """Return each worker's figures, in the view's order; {"place", "error"} for one that does not answer."""
        cdef int64_t deadline = self.deadline(timeout)
        figures = []
        for place in range(len(self.workers)):
            try:
                figures.append(self.ask_worker(place, OP_STATUS, deadline))
            except AnnaError as error:
                figures.append({"place": place, "error": str(error)})
        return figures

    def forget_view(self, view, bint stays=False):
        """Take up `view` though it is not newer: what a client knows that slept through changes. For tests.

        With `stays`, answers that tell of another view do not make it look for that; who sends it on does.
        """
        self.requester = Requester(view, self.requester.allow_pickle, self.requester.system, guard=self.requester.guard)
        self.workers, self.pools = self.requester.workers, [[] for _ in view.workers]
        self.refreshed_ns = NEVER_NS if stays else 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return f"Client({self.seeds[0] if self.seeds else ''!r}, {len(self.workers)} workers{', closed' if self.closed else ''})"

    # -- one request

    cdef Stream ask(self, int op, object key, object value, bint plain, object timeout, int ack):
        """Send one single-key request to the key's home, or where the route leads; return the stream that holds the answer, to be given back.

        With `plain`, a large value of a get comes as `stream.bulk`; the `value` of a put is (value, ttl, if_stamp).
        """
        cdef int64_t deadline = self.deadline(timeout)
        cdef int64_t limit = deadline
        cdef Py_ssize_t size
        cdef const char* data = key_view(key, &size, self.requester.system)
        cdef Stream stream
        cdef uint32_t request
        cdef uint64_t strict = 0
        cdef object route = None
        cdef int place = self.requester.placement.owner(data, size)
        cdef int status
        cdef bint reads = op == OP_GET or op == OP_GET_AT
        if reads:
            limit = self.share(deadline)
        if self.requester.troubled:
            route = self.requester.route(key, reads, now_ns(), deadline)
            place, limit, strict = self.advance(route, deadline, None)
        while True:
            stream = None
            request = 0
            try:
                stream = self.take(place, self.reach(deadline), limit)
                request = self.write(stream, op, data, size, value, plain, strict, ack)
                stream.send(limit)
                stream.receive(limit)
            except (ConnectionLost, RequestTimeout, NoWorkers) as error:
                if stream is not None:
                    stream.close()
                if self.closed or not may_ask_again(reads, request != 0):
                    raise
                if stream is not None:
                    self.suspect(stream)
                if route is None:
                    route = self.requester.route(key, reads, now_ns(), deadline, (place,))
                place, limit, strict = self.advance(route, deadline, error)
                continue
            except BaseException:
                if stream is not None:
                    stream.close()
                raise
            if stream.reply.request != request:
                raise self.out_of_step(stream, request)
            if self.credit(stream):
                self.answered(stream, key)
            status = stream.reply.status
            if status != STATUS_WRONG_WORKER and status != STATUS_STALE:
                if route is not None or self.requester.behind:
                    self.look_again()
                return stream
            route = self.turn_away(stream, route, key, reads, place, deadline)
            place, limit, strict = self.advance(route, deadline, None)

    cdef uint32_t write(self, Stream stream, int op, const char* data, Py_ssize_t size, object value, bint plain, uint64_t strict, int ack) except 0:
        """Write one single-key request into a stream; return its id."""
        cdef uint32_t request
        if op == OP_PUT:
            if plain:
                request = self.requester.write_conditional_put(stream.out, data, size, value[0], value[1], value[2])
            elif type(value) is bytes and PyBytes_GET_SIZE(value) >= TAIL_BYTES_MIN:
                request = self.requester.write_put_head(stream.out, data, size, value)
                stream.tail = value
            else:
                request = self.requester.write_put(stream.out, data, size, value)
        elif op == OP_GET_AT:
            request = self.requester.write_request(stream.out, op, 0, data, size, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        else:
            stream.bulk_wanted = plain
            request = self.requester.write_request(stream.out, op, 0, data, size, b"", 0)
        if strict or ack:
            mark(<RequestHeader*>stream.out.data, strict, ack)
        return request

    cdef object turn_away(self, Stream stream, object route, object key, bint reads, int place, int64_t deadline):
        """Take an answer that only says to ask again, elsewhere or later; return the route on which to go on."""
        cdef bint stale = stream.reply.status == STATUS_STALE
        if stale:
            self.give_back(stream)
        else:
            self.follow(stream)
        if route is None:
            route = self.requester.route(key, reads, now_ns(), deadline, (place,) if stale else ())
        elif not stale:
            route.restart(now_ns())
        route.stale = route.stale or stale
        return route

    cdef object absent(self, Stream stream, int status, object key, object default):
        """Return the default for a missing key, or raise what a failed get means."""
        if status != STATUS_MISSING:
            raise self.failure(stream, status)
        self.give_back(stream)
        if default is _RAISE:
            raise KeyNotFound(f"no value is stored under {key!r}")
        return default


check_ack = ack_number
