from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from anna.buffer cimport Buffer

cdef enum:
    PROTOCOL_VERSION = 1
    HEADER_BYTES = 24
    LENGTH_BYTES = 4
    LWW_NUMBER = 1
    LWW_HEADER_BYTES = 16
    ITEM_HEADER_BYTES = 8
    FLAG_SYSTEM = 1
    # On a read: answer only if everything up to the request's stamp is here.
    FLAG_STRICT = 2
    # On a put of a register: only if the stamp of the one that is there is the 8 bytes before the state.
    FLAG_COMPARE = 4
    # On a put: 8 bytes before the state (and after those of FLAG_COMPARE) say for how many microseconds the write lives.
    FLAG_EXPIRES = 8
    # On the answer to a write: it is on disk. Above it are seven bits, the mark of the worker's view (`View.mark`); 0: it tells none.
    REPLY_DURABLE = 1
    REPLY_MARK_SHIFT = 1
    # What a request's `reserved` asks of a write's acknowledgement: 0 the cluster's default, a number of copies, or:
    ACK_DISK = 255

cdef enum Operation:
    OP_GET = 1
    OP_PUT = 2
    OP_DELETE = 3
    OP_MGET = 4
    OP_MPUT = 5
    OP_VIEW = 6
    OP_STATUS = 7
    OP_SUBSCRIBE = 8
    OP_UNSUBSCRIBE = 9
    OP_PUSH = 10
    OP_SCAN = 11
    OP_BACKUP = 12
    OP_REPLICATE = 13
    # Go on through shared memory: for the driver alone, the core refuses it.
    OP_RINGS = 14
    OP_GET_AT = 15
    OP_MGET_AT = 16
    OP_PEER = 17
    OP_PIN = 18
    OP_PREPARE = 19
    OP_COMMIT = 20
    # What has become of a transaction: an owner that holds it prepared finishes it now, whoever coordinates it.
    OP_FINISH = 21
    OP_SUBSCRIBE_AT = 23
    OP_MARK = 24

cdef enum Status:
    STATUS_OK = 0
    STATUS_MISSING = 1
    STATUS_WRONG_WORKER = 2
    STATUS_PARTIAL = 3
    STATUS_TYPE_MISMATCH = 16
    STATUS_BAD_KEY = 17
    STATUS_TOO_LARGE = 18
    STATUS_NOT_SUPPORTED = 19
    STATUS_STAMP_AHEAD = 20
    STATUS_MALFORMED = 21
    STATUS_OVERLOADED = 22
    STATUS_UNAVAILABLE = 23
    STATUS_LOST = 24
    STATUS_STALE = 25
    STATUS_CHANGED = 26
    STATUS_DISK_FULL = 27
    STATUS_EXPIRED = 28
    STATUS_DAMAGED = 29

# The steps of a backup, as a request's type.
cdef enum BackupStep:
    BACKUP_BEGIN = 1
    BACKUP_PAGE = 2
    BACKUP_END = 3

# Both headers are naturally aligned, so their memory is the wire form on a little-endian machine.
cdef struct RequestHeader:
    uint32_t length
    uint8_t version
    uint8_t op
    uint8_t type
    uint8_t flags
    uint32_t request
    uint16_t key_bytes
    uint16_t ack
    uint64_t stamp

cdef struct ReplyHeader:
    uint32_t length
    uint8_t version
    uint8_t status
    uint8_t type
    uint8_t flags
    uint32_t request
    uint32_t stable
    uint64_t stamp

# One key's part of a multi-get reply.
cdef struct ReplyItem:
    uint8_t status
    uint8_t type
    uint16_t reserved
    uint32_t payload_bytes

# One key's part of a multi-put request; the key and the payload follow it.
cdef struct PutItem:
    uint16_t key_bytes
    uint8_t type
    uint8_t flags
    uint32_t payload_bytes

cdef uint32_t KEY_MAX
cdef uint32_t VALUE_MAX
cdef uint32_t FRAME_MAX
cdef uint32_t BATCH_MAX

cdef object error_of(int status, str message)
cdef int status_of(BaseException error)
