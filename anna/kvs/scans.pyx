"""All keys of a worker, page by page: a scan of their names, and a backup of what they hold.

The one rule: a page is bounded, and whoever wants more says where to go on; nothing is kept here for a scan. A backup keeps the state at the
end of one epoch (`anna.kvs.snapshot`) until it ends or is forgotten. Source: decision 0013.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from anna.kvs.batches cimport Batches
from anna.kvs.snapshot cimport Snapshot
from anna.wire cimport *

import msgpack

from anna import config
from anna.errors import BadKey, NotSupported, ProtocolError, SnapshotExpired, StaleReplica, UnavailableError

cdef uint32_t SCAN_KEYS_MAX = config.SCAN_KEYS_MAX


cdef class Scans(Batches):
    """The operations on all keys."""

    cdef int scan(self, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1:
        """Answer with the next keys here that begin with the request's key: msgpack [keys, whether there are more].

        The payload is u32 limit and the key after which to go on. Keys of which this worker is any owner count too, not those
        that were left here by a move: of their end nobody tells it.
        """
        cdef uint32_t limit, looked_at
        if size < 4:
            raise ProtocolError(f"a scan begins with a limit of 4 bytes, got {size}")
        memcpy(&limit, payload, 4)
        limit = max(1, min(limit, SCAN_KEYS_MAX))
        begin = PyBytes_FromStringAndSize(key, head.key_bytes)
        cursor = PyBytes_FromStringAndSize(payload + 4, size - 4)
        if not head.flags & FLAG_SYSTEM:
            cursor = max(cursor, b"\x00" + b"\xff" * KEY_MAX) if not begin else cursor
            if begin[:1] == b"\x00":
                raise BadKey("keys that begin with a zero byte are reserved for the system")
        for looked_at in range(0, SCAN_KEYS_MAX, limit):
            page = self.store.states.after(begin, cursor, limit)
            more = len(page) == limit
            keys = self.shown(page)
            if keys or not more:
                break
            cursor = page[len(page) - 1]
        self.scans += 1
        return self.reply_text(head, STATUS_OK, msgpack.packb([keys, more]))

    def shown(self, list names):
        """Return those of some keys that a scan tells of."""
        if self.store.expiries:
            names = [name for name in names if not self.store.expired(name, self.clock.physical_us)]
        if self.replication is not None and len(self.view.workers) > 1:
            names = [name for name in names if self.replication.keeps(name)]
        return names

    cdef int backup(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """One step of reading this worker's keys as they are at the end of an epoch that has not ended yet.

        The payload is u64 epoch, u64 place; the answer's u64 digest of the view, u64 place to go on at (0: that was all), cells. BEGIN
        and END are without cells. SnapshotExpired: begin again with a later epoch; StaleReplica: ask again soon.
        """
        cdef uint64_t epoch, place
        cdef uint64_t rest = 0
        cells = b""
        if self.replication is None or head.type not in (BACKUP_BEGIN, BACKUP_PAGE, BACKUP_END):
            raise NotSupported(f"step {head.type} of a backup is not known to this worker")
        if size != 16:
            raise ProtocolError(f"a step of a backup has 16 bytes, got {size}")
        memcpy(&epoch, payload, 8)
        memcpy(&place, payload + 8, 8)
        if head.type == BACKUP_BEGIN:
            self.begin_snapshot(epoch)
        elif self.snapshot is None or self.snapshot.epoch != epoch or self.snapshot.spoiled:
            raise SnapshotExpired(f"epoch {epoch} is not kept here, or the cluster changed while it was")
        elif head.type == BACKUP_END:
            self.end_snapshot()
        elif self.replication.stable < epoch:
            self.replication.hurry()
            raise StaleReplica(f"epoch {epoch} is not stable yet, {self.replication.stable} is")
        else:
            cells, rest = self.snapshot.page(place, self.is_first_owner, self.now)
        digest = self.view.digest
        return self.reply_text(head, STATUS_OK, digest.to_bytes(8, "little") + int(rest).to_bytes(8, "little") + cells)

    def begin_snapshot(self, uint64_t epoch):
        """Keep the state at the end of `epoch` from now on. Raises SnapshotExpired when it is too late, Unavailable while another is kept."""
        self.keep_time()
        if epoch < self.replication.epoch:
            raise SnapshotExpired(f"epoch {epoch} has ended here, {self.replication.epoch} runs")
        if self.snapshot is not None and not self.snapshot.spoiled and self.snapshot.epoch != epoch:
            raise UnavailableError(f"another backup is under way, of epoch {self.snapshot.epoch}")
        self.snapshot = Snapshot(self.store, epoch, self.now)
        self.replication.snapshot = self.snapshot
        self.look_whether_preserving()
        self.replication.hurry()

    def end_snapshot(self):
        """Let go of the state that was kept."""
        self.snapshot = None
        self.replication.snapshot = None
        self.look_whether_preserving()
