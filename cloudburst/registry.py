"""Where nodes find each other: each keeps a record of itself in the store, which ends when it is not renewed.

So nobody has to be told of a node that is gone, and whoever reaches the store finds all others. Source: DESIGN §6.
"""

from __future__ import annotations

from typing import Any, Final

from cloudburst import config
from cloudburst.neighbours import NodeRecord
from cloudburst.records import PREFIX

NODES: Final = PREFIX + b"node/"


class Registry:
    """Records of nodes, over a client of the store that may use reserved keys. Blocking; raises `anna`'s errors."""

    def __init__(self, kvs: Any) -> None:
        self._kvs = kvs

    def show(self, record: NodeRecord) -> None:
        """Keep a record for `node_record_s`."""
        self._kvs.put(_key(record), record.pack(), ttl=config.NODE_RECORD_S)

    def hide(self, record: NodeRecord) -> None:
        """Forget a record."""
        self._kvs.delete(_key(record))

    def all(self) -> list[NodeRecord]:
        """Return the record of every node that shows itself."""
        keys = list(self._kvs.scan(NODES))
        found = self._kvs.mget(keys, default=None) if keys else []
        return [NodeRecord.unpack(bytes(data)) for data in found if data is not None]


def _key(record: NodeRecord) -> bytes:
    return NODES + f"{record.id:016x}".encode()
