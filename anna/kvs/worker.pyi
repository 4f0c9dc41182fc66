from typing import Any

from anna.kvs.clock import Clock
from anna.kvs.store import Store
from anna.messages import View

class Connection:
    failure: str | None
    subscriptions: set[bytes]

class Worker:
    clock: Clock
    store: Store
    worker_id: int
    view: View
    gets: int
    puts: int
    deletes: int
    frames: int
    refused: int
    malformed: int
    pushes_due: bool
    def __init__(self, view: View, place: int, clock: Clock) -> None: ...
    def adopt(self, view: View) -> None: ...
    def receive(self, connection: Connection, data: bytes, monotonic_ns: int) -> bytes | list[bytes]: ...
    def tick(self, monotonic_ns: int) -> list[tuple[Connection, bytes | list[bytes]]]: ...
    def leave(self, connection: Connection) -> None: ...
    def status(self) -> dict[str, Any]: ...
    def check(self) -> None: ...
