"""A disk for one store, in this process: what a checkpoint wrote of each key, and what damage does to that."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from anna.kvs.store import Store

CELL = struct.Struct("<HBBIQQ")
EXPIRES = 2


def cell(key: bytes, number: int, payload: bytes, reset: int = 0, last: int = 0, expires: int = 0) -> bytes:
    """Return one cell, by the layout in `anna.kvs.cells`."""
    flags, expiry = (EXPIRES, struct.pack("<Q", expires)) if expires else (0, b"")
    return CELL.pack(len(key), number, flags, len(expiry) + len(payload), reset, last) + key + expiry + payload


def cell_in(store: Store, key: bytes) -> bytes:
    """Return the cell of `key` as it is now."""
    state, expiry = store.look(key), store.expiries.get(key, (0, 0))[0]
    number, payload = (0, b"") if state is None else (state.NUMBER, state.encode())
    return cell(key, number, payload, store.reset_of(key), 0, expiry)


class Shelf:
    """The checkpoint of `store`, which holds `limit_bytes` in memory. `reads` counts what was asked for."""

    def __init__(self, store: Store, limit_bytes: int) -> None:
        self.store = store
        self.cells: dict[bytes, bytes] = {}
        self.under_way: dict[bytes, bytes] = {}
        self.reads = 0
        store.forgotten = []
        store.hold_in(limit_bytes, self.fetch)
        assert store.memory is not None
        self.memory = store.memory

    def fetch(self, key: bytes) -> bytes | None:
        self.reads += 1
        return self.cells.get(key)

    def gather(self) -> None:
        """Begin a checkpoint: drop what the store has forgotten, and take what the last one lacks."""
        for key in self.store.forgotten or ():
            self.cells.pop(key, None)
        self.store.forgotten = []
        for key in self.memory.take_unkept():
            if key in self.store.states or self.store.reset_of(key):
                self.under_way[key] = cell_in(self.store, key)
                self.memory.gather(key)

    def end(self) -> None:
        """End it: what was gathered is durable."""
        self.cells.update(self.under_way)
        self.memory.keep(self.under_way)
        self.under_way = {}

    def checkpoint(self) -> None:
        self.gather()
        self.end()

    def damage(self, keys: Iterable[bytes]) -> None:
        """Flip a bit in the cells of `keys`."""
        for key in keys:
            self.cells[key] = self.cells[key][:-1] + bytes([self.cells[key][-1] ^ 1])
