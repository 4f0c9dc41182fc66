from typing import Any, Protocol

from anna.kvs.clock import Clock
from anna.kvs.worker import Connection, Worker
from anna.messages import View

class Keeper(Protocol):
    bytes_min: int
    def keep(self, value: bytes, former: bytes | None) -> bytes | None: ...
    def drop(self, where: bytes) -> None: ...

class Cache(Worker):
    delays: bool
    hits: int
    misses: int
    hits_at: int
    misses_at: int
    pushed: int
    passed_on: int
    passed_on_bytes: int
    has_news: bool
    evicted: int
    bytes_max: int
    owner_view: View
    holds: bool
    keys_version: int
    shared_bytes: int
    shared_bytes_max: int
    def __init__(
        self, view: View, owners: View, clock: Clock, bytes_max: int, keeper: Keeper | None = None,
        shared_bytes_max: int = 0,
    ) -> None: ...  # fmt: skip
    def outgoing(self) -> list[tuple[int, list[bytes]]]: ...  # type: ignore[override]
    def owner_up(self, owner: int) -> None: ...
    def owner_down(self, owner: int) -> list[tuple[Connection, list[bytes]]]: ...
    def adopt_owners(self, view: View) -> None: ...
    def hear(self, owner: int, data: bytes, monotonic_ns: int) -> list[tuple[Connection, list[bytes]]]: ...
    def refresh(self) -> None: ...
    def retry(self, monotonic_ns: int) -> list[tuple[Connection, list[bytes]]]: ...
    def newest_keys(self, most: int) -> list[bytes]: ...
    def forget_all(self) -> None: ...
    def status(self) -> dict[str, Any]: ...
