"""What of a connection's requests its certificate allows: looked at before the worker sees them.

The one rule: a request that is not allowed never reaches the worker; it is answered with what right it needs. Only
headers are read here, and a node's connection (`admin`) has no gate at all.
Source: decision record 0037.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from anna.errors import NotAdmitted
from anna.wire import (
    BACKUP,
    COMMIT,
    DELETE,
    FINISH,
    GET,
    GET_AT,
    MGET,
    MGET_AT,
    MPUT,
    NOT_ADMITTED,
    PEER,
    PIN,
    PREPARE,
    PUT,
    REPLICATE,
    SCAN,
    STATUS,
    SUBSCRIBE,
    SUBSCRIBE_AT,
    SYSTEM,
    UNSUBSCRIBE,
    VERSION,
    VIEW,
)

LENGTH_BYTES: Final = 4
HEADER: Final = struct.Struct("<IBBBBIHHQ")

WANTS_KEYS: Final = b"\x15\x03\x03\x00\x02\x02\x74"
"""What who listens with keys says to plain bytes: the alert `certificate_required`. No frame begins so."""


class Right(IntEnum):
    """What a certificate allows; each right includes the lesser ones."""

    DATA = 1
    CODE = 2
    ADMIN = 3


NEEDED: Final = {
    **dict.fromkeys((GET, PUT, DELETE, MGET, MPUT, VIEW, STATUS, SUBSCRIBE, UNSUBSCRIBE, SCAN), Right.DATA),
    **dict.fromkeys((GET_AT, MGET_AT, PIN, PREPARE, COMMIT, FINISH, SUBSCRIBE_AT), Right.DATA),
    BACKUP: Right.ADMIN,
}
"""The right that an operation needs; one that is not here needs `admin`."""


NAMES: Final = {BACKUP: "a backup", PEER: "a node's message", REPLICATE: "a number of copies"}
"""What the operations that need more than `data` are called in refusals."""


class Gate:
    """Looks at the frames of one connection, whose right is `right`, as their bytes come."""

    def __init__(self, right: Right, name: str) -> None:
        self.right = right
        self.name = name
        self._head = b""
        self._left = 0
        self._passes = True

    def look(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what of these bytes may pass, and the answers to the requests that may not.

        A header waits here until it is whole.
        """
        passing, answers = [], []
        place = 0
        while place < len(data):
            if self._left:
                part = data[place : place + self._left]
                self._left -= len(part)
            else:
                part = data[place : place + HEADER.size - len(self._head)]
                self._head += part
                place += len(part)
                if len(self._head) < HEADER.size:
                    break
                head, self._head = self._head, b""
                self._left = max(int.from_bytes(head[:LENGTH_BYTES], "little") + LENGTH_BYTES - HEADER.size, 0)
                refused = self._refuse(head)
                self._passes = not refused
                answers.append(refused)
                part, place = head, place - len(head)
            place += len(part)
            if self._passes:
                passing.append(part)
        return b"".join(passing), b"".join(answers)

    def _refuse(self, head: bytes) -> bytes:
        """Return the answer to a request that is not allowed, b"" for one that is."""
        _, _, operation, _, flags, request, _, _, stamp = HEADER.unpack(head)
        needed = NEEDED.get(operation, Right.ADMIN)
        what = NAMES.get(operation, f"operation {operation}")
        if flags & SYSTEM and needed < Right.CODE:
            needed, what = Right.CODE, "the reserved keys"
        if needed <= self.right:
            return b""
        told = f"the keys of {self.name} have the right {self.right.name.lower()}; {what} needs {needed.name.lower()}"
        message = told.encode()
        length = HEADER.size - LENGTH_BYTES + len(message)
        return HEADER.pack(length, VERSION, NOT_ADMITTED, 0, 0, request, 0, 0, stamp) + message


def wants_keys(address: str) -> NotAdmitted:
    """Return the error of who has no keys and has heard `WANTS_KEYS`."""
    told = "give keys=DIR (or --keys DIR, or $ANNA_KEYS), which its owner makes with `anna keys issue`"
    return NotAdmitted(f"who listens at {address} takes only who shows keys: {told}")
