from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from anna.buffer cimport Buffer
from anna.kvs.clock cimport Clock
from anna.kvs.replication cimport Replication
from anna.kvs.snapshot cimport Snapshot
from anna.kvs.store cimport Store
from anna.lattices.base cimport Lattice
from anna.routing.placement cimport Placement
from anna.wire cimport RequestHeader


cdef class Connection:
    cdef Buffer pending
    cdef bytes bulk
    cdef Py_ssize_t bulk_bytes
    cdef readonly str failure
    cdef readonly set subscriptions
    cdef Buffer held
    cdef object holds


cdef class Hold:
    cdef uint32_t round
    cdef tuple peers
    cdef int need
    cdef bint usual
    cdef uint32_t log_round
    cdef uint64_t epoch
    cdef Py_ssize_t begin

    cdef bint same(self, Hold other)


cdef class Worker:
    cdef readonly Clock clock
    cdef readonly Store store
    cdef readonly uint64_t worker_id
    cdef readonly object view
    cdef Placement placement
    cdef int place
    cdef bytes view_payload
    cdef Buffer out
    cdef list chunks
    cdef dict subscribers
    cdef set changed
    cdef readonly uint64_t gets
    cdef readonly uint64_t puts
    cdef readonly uint64_t deletes
    cdef readonly uint64_t frames
    cdef readonly uint64_t refused
    cdef readonly uint64_t malformed
    cdef readonly uint64_t started_us
    cdef readonly uint64_t stale
    cdef readonly uint64_t scans
    cdef readonly uint64_t peer_frames
    cdef readonly Replication replication
    cdef readonly object membership
    # The state at the end of one epoch, while a backup reads it; else None.
    cdef readonly Snapshot snapshot
    cdef tuple seeds
    # While it settles, a worker answers reads only of the keys that it owned when it was complete last: by `settled`.
    cdef bint settling
    cdef Placement settled
    cdef int settled_factor
    cdef int settled_place
    cdef bint swept
    cdef bint gone
    cdef bint closing
    cdef int factor
    cdef int copies_usual
    # Whether each worker has a copy of each key.
    cdef bint owns_all
    cdef int64_t now
    cdef uint64_t epoch_end
    cdef list deferred
    cdef dict holding
    cdef readonly list released
    cdef bint logging
    cdef bint disk_full
    # Something is to be sent, or made durable, before this epoch ends: the driver calls `outgoing`, `take_released` and `log_out`.
    cdef bint urgent

    cpdef object receive(self, Connection connection, bytes data, int64_t monotonic_ns)
    cdef int absorb(self, Connection connection, bytes data, int64_t monotonic_ns) except -1
    cdef int announce(self, const char* place, Py_ssize_t left) noexcept
    cdef const char* complete(self, Connection connection, const char* data, Py_ssize_t* size) except? NULL
    cdef int begin_bulk(self, Connection connection, const char* frame, Py_ssize_t size, Py_ssize_t total) except -1
    cdef const char* fill_bulk(self, Connection connection, const char* data, Py_ssize_t* size) except NULL
    cdef int write_register(self, const char* key, Py_ssize_t key_bytes, uint64_t stamp, uint64_t writer, bytes payload) except -1
    cdef int put_bulk(self, RequestHeader* head, const char* key, uint64_t* place, bytes bulk) except -1
    cdef int handle(self, Connection connection, const char* frame, Py_ssize_t size) except -1
    cdef int dispatch(self, Connection connection, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1
    cdef object take(self)
    cdef char* reply(self, RequestHeader* head, int status, int type, Py_ssize_t payload_bytes) except NULL
    cdef int reply_text(self, RequestHeader* head, int status, bytes payload) except -1
    cdef int reply_state(self, RequestHeader* head, Lattice state) except -1
    cdef int fail(self, Connection connection, str why) except -1
    cdef bint owns(self, const char* key, Py_ssize_t size) noexcept
    cdef int check_key(self, const char* key, Py_ssize_t size, int flags) except -1
    cdef int get(self, RequestHeader* head, const char* key) except -1
    cdef int compare(self, const char* key, Py_ssize_t key_bytes, const char* payload, Py_ssize_t size) except -1
    cdef bint has_expired(self, const char* key, Py_ssize_t key_bytes) except -1
    cdef int check_copies(self, const char* key, Py_ssize_t key_bytes, int ack) except -1
    cdef int replicas(self, const char* key, Py_ssize_t key_bytes, int* owners) except -1
    cdef int acknowledge(self, RequestHeader* head, const char* key) except -1
    cdef Hold hold_for(self, bytes key, int copies, bint durable, bint usual)
    cdef bint is_hopeless(self, Hold hold) except -1
    cdef int give_up(self, Connection connection, str why) except -1
    cdef int reply_held(self, RequestHeader* head, int status, int copies, int durable, bytes payload, Hold hold) except -1
    cdef int hold_back(self, Connection connection) except -1
    cdef bint holds_no_more(self, Hold hold) except -1
    cdef int hear_peer(self, Connection connection, RequestHeader* head, const char* payload, Py_ssize_t size) except -1
    cdef int keep_time(self) except -1
    cdef uint64_t stamp_write(self) except 0
    cdef bint has_handed_over(self) except -1
    cdef bint has(self, const char* key, Py_ssize_t size) noexcept
    cdef bint is_current(self, uint64_t stamp) except -1
    cdef int put(self, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1
    cdef int write(self, const char* key, Py_ssize_t key_bytes, int type, const char* payload, Py_ssize_t size) except -1
    cdef int delete(self, RequestHeader* head, const char* key) except -1
    cdef int scan(self, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1
    cdef int backup(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1
    cdef int preserve(self, const char* key, Py_ssize_t key_bytes) except -1
    cdef int multi_get(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1
    cdef int multi_put(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1
    cdef int multi_get_item(self, const char* key, Py_ssize_t key_bytes, int flags) except -1
    cdef int change_subscription(self, Connection connection, RequestHeader* head, const char* key) except -1
    cdef bint due(self) except -1
    cdef int note(self, const char* key, Py_ssize_t key_bytes) except -1


cdef bint reads_only(int op) noexcept
cdef uint32_t batch_count(const char* payload, Py_ssize_t size) except? 0xFFFFFFFF
cdef int check_put_items(const char* place, const char* end, uint32_t count) except -1
