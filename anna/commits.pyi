import struct
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple, Protocol

TRANSACTION_BYTES: int
STRANGE: int
PREPARED: int
COMMITTED_STATE: int
REFUSED_STATE: int
DELETES: int
EXPIRES: int
HEAD: struct.Struct
STATE: struct.Struct

Writes = Mapping[Any, Any] | Iterable[Any]

class Encoder(Protocol):
    def write_of(self, key: str | bytes, value: Any) -> tuple[bytes, int, bytes]: ...

class Write(NamedTuple):
    key: bytes
    type: int
    payload: bytes
    flags: int = 0

def write_of(key: bytes, state: Any, deletes: bool = False, lives_us: int = 0) -> Write: ...

class Message(NamedTuple):
    worker_id: int
    op: int
    payload: bytes

class Verdict(Enum):
    OPEN = ...
    COMMITTED = ...
    REFUSED = ...
    AGAIN = ...
    UNKNOWN = ...

class Commit:
    transaction: bytes
    writes: tuple[Write, ...]
    attempt: int
    verdict: Verdict
    stamp: int
    refusal: tuple[int, str] | None
    view: bytes | None
    waiting: set[int]
    head: bytes
    guarded: bool
    def __init__(self, transaction: bytes, writes: Iterable[Write], nonce: int, guarded: bool = False) -> None: ...
    def begin(self, owner: Callable[[bytes], int], guard: Callable[[int], int] | None = None) -> list[Message]: ...
    def ask(self, owner: Callable[[bytes], int], guard: Callable[[int], int] | None = None) -> list[Message]: ...
    def answered(self, worker: int, status: int, payload: bytes) -> None: ...
    def missed(self, worker: int, sent: bool) -> None: ...
    def ending(self) -> list[Message]: ...

def guard_of(transaction: bytes) -> int: ...
def transaction_of(
    encoder: Encoder, writes: Writes, transaction: bytes | None, entropy: Callable[[int], bytes]
) -> Commit: ...
