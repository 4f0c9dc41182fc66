"""Results that outlive their call: kept in the store for a while, so that somebody else can have them.

Two uses. A future that is passed on, as an argument or inside a value, has its outcome published under its invocation's
id; whoever got it waits for that key. A call with an id of the caller's choice (`options(id=…)`) is run once: who comes
later, or again, gets what the first one returned. While it runs its key holds a claim, which ends with the deadline, so
that nobody waits for a claimant that is gone. Nothing is unpickled here. Source: P21; D54 (futures polled a key without
pause, and results were never collected).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from anna.errors import Changed
from cloudburst import config
from cloudburst.errors import ProtocolError
from cloudburst.records import PREFIX, body_hash

RESULTS: Final = PREFIX + b"result/"
ONCE: Final = PREFIX + b"once/"
CLAIMED: Final = -1
PAUSES_S: Final = (0.001, 0.05)


def result_key(invocation: str) -> bytes:
    """Return where the outcome of an invocation is published."""
    return RESULTS + invocation.encode()


def once_key(function: str, id: str) -> bytes:
    """Return where the result of the calls of a function with an id of the caller's is kept."""
    return ONCE + body_hash(msgpack.packb([function, id])).encode()


@dataclass(frozen=True, slots=True)
class Kept:
    """How a call ended: `status`, `flags` and `payload` as a reply has them, or CLAIMED, and `payload` is by whom."""

    status: int
    flags: int
    payload: bytes
    function: str = ""

    def pack(self) -> bytes:
        """Return it as bytes."""
        return bytes(msgpack.packb([self.status, self.flags, self.payload, self.function]))

    @classmethod
    def unpack(cls, data: bytes) -> Kept:
        """Return what `pack` wrote. Raises ProtocolError."""
        try:
            status, flags, payload, function = msgpack.unpackb(data)
            return cls(int(status), int(flags), bytes(payload), str(function))
        except (TypeError, ValueError) as fault:
            raise ProtocolError(f"{len(data)} bytes are not a kept result: {fault}") from None


class Results:
    """Kept results, over a client of the store that may use reserved keys. Blocking; raises `anna`'s errors."""

    def __init__(self, kvs: Any) -> None:
        self._kvs = kvs

    def keep(self, key: bytes, kept: Kept) -> None:
        """Keep a result for `result_keep_s`."""
        self._kvs.put(key, kept.pack(), ttl=config.RESULT_KEEP_S)

    def find(self, key: bytes) -> Kept | None:
        """Return what is kept under `key`."""
        data = self._kvs.get(key, None)
        return None if data is None else Kept.unpack(bytes(data))

    def await_(self, key: bytes, timeout_s: float) -> Kept:
        """Return the result under `key` when it is there. Raises TimeoutError."""
        end = time.monotonic() + timeout_s
        while (left_s := end - time.monotonic()) > 0:
            kept = self.find(key)
            if kept is not None and kept.status != CLAIMED:
                return kept
            for data in self._kvs.watch(key, timeout=left_s):
                kept = Kept.unpack(bytes(data))
                if kept.status != CLAIMED:
                    return kept
        raise TimeoutError(f"no result was there within {timeout_s:.3g} s")

    def claim(self, key: bytes, who: bytes, end_s: Callable[[], float]) -> Kept | None:
        """Return None when the call is the claimant's to run, else what the first one returned, once that is there.

        `who` may claim again what it has claimed before: its last attempt died. `end_s` is how much time is left.
        Raises TimeoutError when somebody else is still at it then.
        """
        pause_s = PAUSES_S[0]
        claim = Kept(CLAIMED, 0, who).pack()
        while (left_s := end_s()) > 0:
            try:
                self._kvs.put(key, claim, ttl=left_s + config.KILL_GRACE_US / 1e6, if_stamp=0)
                return None
            except Changed:
                kept = self.find(key)
            if kept is not None and kept.status != CLAIMED:
                return kept
            if kept is not None and kept.payload == who:
                return None
            time.sleep(min(pause_s, max(left_s, 0)))
            pause_s = min(2 * pause_s, PAUSES_S[1])
        raise TimeoutError("another call with this id is still running")

    def release(self, key: bytes) -> None:
        """Give up a claim: the call had no result that could be kept."""
        self._kvs.delete(key)
