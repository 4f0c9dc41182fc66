import os
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from anna.ack import Ack
from anna.commits import Writes
from anna.connections import Connections
from anna.keys import Keys
from anna.lattices import Lattice
from anna.messages import View
from anna.pipeline import Pipeline
from anna.snapshots import Pinned
from anna.watch import Watch

Key = str | bytes

class Client(Connections):
    def __init__(
        self,
        seeds: Iterable[str],
        *,
        timeout: float = ...,
        allow_pickle: bool = True,
        system: bool = False,
        ack: str | int | None = None,
        lease: Any = None,
        keys: Keys | str | os.PathLike[str] | None = None,
    ) -> None: ...
    def get(self, key: Key, default: Any = ..., *, timeout: float | None = None) -> Any: ...
    def get_lattice(self, key: Key, default: Any = ..., *, timeout: float | None = None) -> Lattice: ...
    def put(
        self,
        key: Key,
        value: Any,
        *,
        ack: str | int | None = None,
        ttl: float | None = None,
        if_stamp: int | None = None,
        timeout: float | None = None,
    ) -> Ack: ...
    def delete(self, key: Key, *, ack: str | int | None = None, timeout: float | None = None) -> bool: ...
    def mget(self, keys: Iterable[Key], default: Any = None, *, timeout: float | None = None) -> list[Any]: ...
    def mput(
        self,
        items: Mapping[Key, Any] | Mapping[str, Any] | Mapping[bytes, Any] | Iterable[tuple[Key, Any]],
        *,
        ack: str | int | None = None,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> Ack: ...
    def commit(
        self,
        writes: Writes,
        *,
        id: bytes | None = None,
        after: int = 0,
        ack: str | int | None = None,
        timeout: float | None = None,
    ) -> int: ...
    def pipeline(self, *, ack: str | int | None = None, timeout: float | None = None) -> Pipeline: ...
    def scan(
        self, prefix: Key = "", limit: int | None = None, *, timeout: float | None = None
    ) -> Iterator[str | bytes]: ...
    def watch(self, key: Key, *, timeout: float | None = None) -> Watch: ...
    def pin(
        self, epoch: int = 0, *, lease: float = ..., least: int = 0, timeout: float | None = None
    ) -> Pinned: ...
    def pin_at(self, place: int, payload: bytes, timeout: float | None) -> bytes: ...
    def get_at(
        self,
        key: Key,
        snapshot: tuple[int, int],
        default: Any = ...,
        *,
        lattice: bool = False,
        timeout: float | None = None,
    ) -> Any: ...
    def mget_at(
        self,
        keys: Iterable[Key],
        snapshot: tuple[int, int],
        default: Any = None,
        *,
        lattice: bool = False,
        timeout: float | None = None,
    ) -> list[Any]: ...
    def replicate(
        self, *keys: Key, memory: int = 0, disk: int = 0, default: bool = False, timeout: float | None = None
    ) -> None: ...
    @property
    def view(self) -> View: ...
    @property
    def stamp(self) -> int: ...
    def where(self, key: Key) -> dict[str, Any]: ...
    def copies(self, key: Key, *, timeout: float | None = None) -> list[dict[str, Any]]: ...
    def status(self, *, timeout: float | None = None) -> list[dict[str, Any]]: ...
    def forget_view(self, view: View, stays: bool = False) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

def check_ack(ack: str | int) -> None: ...
