"""The wire: what a frame looks like, which operations and statuses there are, and which error each status is.

Little-endian, length-prefixed, one version byte, 24-byte headers at both sides:

    request  u32 length | u8 version | u8 operation | u8 type | u8 flags | u32 id | u16 key bytes | u16 ack | u64 stamp | key | payload
    reply    u32 length | u8 version | u8 status    | u8 type | u8 flags | u32 id | u32 stable epoch      | u64 stamp | payload

`length` counts what follows it. `stamp` is the greatest that the sender has seen: requests and replies both carry one, which
is how causally later writes come to have greater stamps (DESIGN §4). `type` is a lattice's wire number. A get's reply and a put's
request hold a state in its canonical encoding. A multi-get's payload is u32 count and (u16 bytes, key) each; its reply u32 count and
(u8 status, u8 type, u16 0, u32 bytes, state) each. A multi-put's is u32 count and (u16 key bytes, u8 type, u8 flags, u32 bytes,
key, state) each; its reply is empty when every write was taken, else STATUS_PARTIAL with msgpack [[index, status, message], …].
Everything that is not hot is msgpack in the payload. An error's payload is its message as UTF-8.
"""

import sys

from anna import config, errors

if sys.byteorder != "little":
    raise ImportError("anna's wire code needs a little-endian machine")

assert sizeof(RequestHeader) == HEADER_BYTES
assert sizeof(ReplyHeader) == HEADER_BYTES

KEY_MAX = config.KEY_BYTES_MAX
VALUE_MAX = config.VALUE_BYTES_MAX
FRAME_MAX = config.FRAME_BYTES_MAX
BATCH_MAX = config.BATCH_KEYS_MAX

_ERRORS = {
    STATUS_TYPE_MISMATCH: errors.LatticeTypeMismatch,
    STATUS_BAD_KEY: errors.BadKey,
    STATUS_TOO_LARGE: errors.ValueTooLarge,
    STATUS_NOT_SUPPORTED: errors.NotSupported,
    STATUS_STAMP_AHEAD: errors.StampAhead,
    STATUS_MALFORMED: errors.ProtocolError,
    STATUS_OVERLOADED: errors.Overloaded,
    STATUS_UNAVAILABLE: errors.UnavailableError,
    STATUS_LOST: errors.ConnectionLost,
    STATUS_STALE: errors.StaleReplica,
    STATUS_CHANGED: errors.Changed,
    STATUS_DISK_FULL: errors.DiskFull,
    STATUS_EXPIRED: errors.SnapshotExpired,
    STATUS_DAMAGED: errors.Damaged,
    30: errors.NotAdmitted,
}
_STATUSES = {error: status for status, error in _ERRORS.items()} | {errors.NoWorkers: STATUS_UNAVAILABLE}


cdef object error_of(int status, str message):
    """Return the exception that a reply's status stands for."""
    kind = _ERRORS.get(status)
    if kind is None:
        return errors.ProtocolError(f"a reply has the unknown status {status}: {message}")
    return kind(message)


cdef int status_of(BaseException error):
    """Return the status that tells a client of `error`."""
    return _STATUSES.get(type(error), STATUS_MALFORMED)

# The names under which Python code knows the operations and statuses.
GET, PUT, DELETE, MGET, MPUT, VIEW, STATUS = OP_GET, OP_PUT, OP_DELETE, OP_MGET, OP_MPUT, OP_VIEW, OP_STATUS
SUBSCRIBE, UNSUBSCRIBE, PUSH, SCAN, BACKUP, PEER = OP_SUBSCRIBE, OP_UNSUBSCRIBE, OP_PUSH, OP_SCAN, OP_BACKUP, OP_PEER
REPLICATE, RINGS, GET_AT, MGET_AT, PIN = OP_REPLICATE, OP_RINGS, OP_GET_AT, OP_MGET_AT, OP_PIN
PREPARE, COMMIT, FINISH, SUBSCRIBE_AT, MARK = OP_PREPARE, OP_COMMIT, OP_FINISH, OP_SUBSCRIBE_AT, OP_MARK
OK, MISSING, WRONG_WORKER, PARTIAL, MALFORMED = STATUS_OK, STATUS_MISSING, STATUS_WRONG_WORKER, STATUS_PARTIAL, STATUS_MALFORMED
STALE, LOST, NOT_SUPPORTED, UNAVAILABLE = STATUS_STALE, STATUS_LOST, STATUS_NOT_SUPPORTED, STATUS_UNAVAILABLE
EXPIRED = STATUS_EXPIRED
NOT_ADMITTED = 30  # said by the gate before a worker, never by a worker
BEGIN, PAGE, END = BACKUP_BEGIN, BACKUP_PAGE, BACKUP_END
SYSTEM, STRICT, COMPARE, EXPIRES = FLAG_SYSTEM, FLAG_STRICT, FLAG_COMPARE, FLAG_EXPIRES
DURABLE = REPLY_DURABLE
DISK = ACK_DISK
VERSION = PROTOCOL_VERSION
