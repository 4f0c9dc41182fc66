from collections.abc import Callable, Iterable

from anna.kvs.table import Table
from anna.lattices import Lattice

class Cold(Lattice):
    number: int
    size: int
    stamp: int
    writer: int
    content_hash: int

class Memory:
    limit_bytes: int
    full_bytes: int
    staying_bytes: int
    warm_bytes: int
    kept_bytes: int
    cold_count: int
    loads: int
    evictions: int
    unkept: dict[bytes, None]
    resident_bytes: int
    unkept_bytes: int
    is_crowded: bool
    is_full: bool
    def __init__(self, states: Table, limit_bytes: int, fetch: Callable[[bytes], bytes | None]) -> None: ...
    def cool(self, steps: int, wanted: int = 0) -> int: ...
    def note(self, key: bytes) -> int: ...
    def note_again(self, keys: Iterable[bytes]) -> None: ...
    def restored_as_it_is(self, key: bytes) -> None: ...
    def take_unkept(self) -> dict[bytes, None]: ...
    def gather(self, key: bytes) -> None: ...
    def keep(self, keys: Iterable[bytes]) -> None: ...
    def check(self) -> None: ...
