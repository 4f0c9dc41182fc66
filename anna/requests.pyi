from collections.abc import Iterable
from typing import Any

from anna.lattices import Lattice

class Requests:
    seen: int
    allow_pickle: bool
    system: bool
    def __init__(self, allow_pickle: bool = True, system: bool = False, ack: str | int | None = None) -> None: ...
    def request(
        self,
        op: int,
        key: str | bytes = b"",
        payload: bytes = b"",
        type: int = 0,
        strict: int = 0,
        ack: str | int | None = None,
    ) -> tuple[int, bytes]: ...
    def scan_request(self, begin: bytes, cursor: bytes, limit: int) -> tuple[int, bytes]: ...
    def replicate_request(
        self, keys: Iterable[str | bytes], memory: int, disk: int, default: bool
    ) -> tuple[int, bytes]: ...
    def put_request(
        self,
        key: str | bytes,
        value: Any,
        ack: str | int | None = None,
        ttl: float | None = None,
        if_stamp: int | None = None,
    ) -> tuple[int, bytes]: ...
    def multi_get_request(self, keys: list[Any], strict: int = 0) -> tuple[int, bytes]: ...
    def multi_put_request(
        self, keys: list[Any], values: list[Any], ack: str | int | None = None
    ) -> tuple[int, bytes]: ...
    def decode(self, type: int, payload: bytes) -> Any: ...
    def decode_lattice(self, type: int, payload: bytes) -> Lattice: ...
    def decode_multi_get(self, payload: bytes, keys: list[Any], default: Any) -> tuple[list[Any], list[int]]: ...
    def failure(self, status: int, payload: bytes) -> Exception: ...

class Replies:
    stable: int
    def __init__(self) -> None: ...
    def feed(self, data: bytes) -> list[tuple[int, int, int, int, int, bytes]]: ...
