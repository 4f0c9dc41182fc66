"""The other nodes as one node knows them: who is there, what their executors do, and where those stand in its page.

A pure core. Nodes find each other in the store, where each keeps a record of itself, or by being met; from then on
each tells its neighbours what its executors are doing, all of it each time, so a message that is lost costs nothing. A
node that is not heard of for `node_silence_s` is lost: calls that its executors have are begun elsewhere, and its
places in the page are given to others a while later, when every client has seen that. Source: DESIGN §6; P14 (no two
hosts' clocks are compared: times here are when something was heard); D61.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from cloudburst import config
from cloudburst.errors import ProtocolError
from cloudburst.messages import Lose, Meet, Mirror, NeighbourInstruction, Part, Reflect, Vacate
from cloudburst.openings import address
from cloudburst.version import PROTOCOL

SILENCE_US: Final = int(config.NODE_SILENCE_S * 1e6)
LOST_KEEP_US: Final = 2_000_000
"""How long the places of a lost node's executors show that they are lost."""
EMPTY, READY, LEAVING = 0, 1, 2


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One node, as others need to know it.

    `id` is of this life of it; `host` is the same for two nodes whose files and sockets each can open; `control` are
    ZeroMQ endpoints, none for a gateway, which nobody need ask for anything; `store` the addresses of its store's
    workers; `reach` is the name under which other hosts reach its executors, "" when they cannot. `protocol`, `release`
    and `python` say what it runs.
    """

    id: int
    host: str
    directory: str
    control: tuple[str, ...]
    store: tuple[str, ...] = ()
    reach: str = ""
    pid: int = 0
    protocol: int = PROTOCOL
    release: str = ""
    python: str = ""

    def pack(self) -> bytes:
        """Return it as bytes."""
        where = [self.id, self.host, self.directory, self.control, self.store, self.reach, self.pid]
        return bytes(msgpack.packb([*where, self.protocol, self.release, self.python]))

    @classmethod
    def unpack(cls, data: bytes) -> NodeRecord:
        """Return what `pack` wrote. Raises ProtocolError."""
        try:
            id, host, directory, control, store, reach, pid, *kind = msgpack.unpackb(data)
            protocol, release, python = kind[:3] if kind else (1, "", "")
            return cls(
                int(id), str(host), str(directory), tuple(map(str, control)), tuple(map(str, store)), str(reach),
                int(pid), int(protocol), str(release), str(python),
            )  # fmt: skip
        except (TypeError, ValueError) as fault:
            raise ProtocolError(f"{len(data)} bytes are not a node's record: {fault}") from None

    def endpoint(self, host: str) -> str:
        """Return where a node on `host` asks this one; "" when it cannot."""
        scheme = "ipc:" if host == self.host else "tcp:"
        return next((one for one in self.control if one.startswith(scheme)), "")

    def name(self, host: str) -> str:
        """Return what it is called on a `host`: its directory's last name, after its own host's where that differs."""
        own = self.directory.rpartition("/")[2]
        return own if host == self.host or not self.reach else f"{self.reach}/{own}"

    def store_from(self, host: str) -> tuple[str, ...]:
        """Return where its store's workers are reached from a `host`."""
        return tuple(one for one in self.store if host == self.host or not one.startswith("unix:"))


@dataclass(frozen=True, slots=True)
class ExecutorRow:
    """What one executor is doing: as in the page, but for `port` and `socket`.

    `port` is where other hosts reach it, or the relay that leads to its `socket`; 0 when they do not.
    """

    slot: int
    incarnation: int
    pid: int
    state: int
    activity: int
    waiting: int
    high: int
    low: int
    port: int
    socket: str

    def plain(self) -> list[Any]:
        """Return it as plain values."""
        return [
            self.slot, self.incarnation, self.pid, self.state, self.activity, self.waiting, self.high, self.low,
            self.port, self.socket,
        ]  # fmt: skip

    @classmethod
    def of(cls, plain: Any) -> ExecutorRow:
        """Return what `plain` gave. Raises ProtocolError."""
        try:
            slot, life, pid, state, activity, waiting, high, low, port = map(int, plain[:9])
            return cls(slot, life, pid, state, activity, waiting, high, low, port, str(plain[9]))
        except (TypeError, ValueError, IndexError) as fault:
            raise ProtocolError(f"not what an executor does: {fault}") from None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an executor stands here, and what it is called; `life` is its incarnation there."""

    life: int
    slot: int
    incarnation: int


@dataclass(slots=True)
class _Neighbour:
    record: NodeRecord
    heard_us: int
    places: dict[int, _Place] = field(default_factory=dict)
    """By the slot there."""


class Neighbours:
    """What the node with `id` on `host` knows of others; slots from `first` to before `last` are for theirs.

    `sealed`: those on other hosts are reached through relays.
    """

    def __init__(self, id: int, host: str, first: int, last: int, sealed: bool = False) -> None:
        self.id = id
        self.host = host
        self._sealed = sealed
        self.nodes: dict[int, _Neighbour] = {}
        self._free = list(range(last - 1, first - 1, -1))
        self._span = (first, last)
        self._named = 0
        self._lost: list[tuple[int, int]] = []
        self._gone: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self.nodes)

    @property
    def executors(self) -> dict[int, int]:
        """The neighbours' executors: {slot here: incarnation here}."""
        return {place.slot: place.incarnation for node in self.nodes.values() for place in node.places.values()}

    def slots_of(self, id: int, there: Iterable[int]) -> list[int]:
        """Return where a neighbour's executors stand here, of those of its slots that do."""
        node = self.nodes.get(id)
        return [] if node is None else [node.places[slot].slot for slot in there if slot in node.places]

    def found(self, records: Iterable[NodeRecord], now_us: int) -> list[NeighbourInstruction]:
        """Take in that nodes are said to be there; return whom to meet."""
        done: list[NeighbourInstruction] = []
        for record in records:
            unknown = record.id != self.id and record.id not in self.nodes and record.id not in self._gone
            if unknown and record.protocol == PROTOCOL and record.endpoint(self.host):
                self.nodes[record.id] = _Neighbour(record, now_us)
                done.append(Meet(record.id, record.endpoint(self.host)))
        return done

    def told(self, id: int, rows: Iterable[ExecutorRow], now_us: int) -> list[NeighbourInstruction]:
        """Take in what all of a neighbour's executors are doing."""
        node = self.nodes.get(id)
        if node is None:
            return []
        node.heard_us = now_us
        done: list[NeighbourInstruction] = []
        rows = [row for row in rows if row.state != EMPTY and self._address(node.record, row)]
        current = {row.slot: row.incarnation for row in rows}
        for slot, place in list(node.places.items()):
            if current.get(slot) != place.life:
                del node.places[slot]
                self._free.append(place.slot)
                done.append(Vacate(place.slot))
        for row in rows:
            if row.slot not in node.places:
                if not self._free:
                    continue
                done.append(self._show(node, row))
            here = node.places[row.slot].slot
            done.append(Reflect(here, row.state, row.activity, row.waiting, row.high, row.low))
        return done

    def _show(self, node: _Neighbour, row: ExecutorRow) -> Mirror:
        self._named += 1
        place = node.places[row.slot] = _Place(row.incarnation, self._free.pop(), self._named)
        address = self._address(node.record, row)
        return Mirror(place.slot, place.incarnation, row.pid, node.record.id, row.slot, row.incarnation, address)

    def _address(self, record: NodeRecord, row: ExecutorRow) -> str:
        if record.host == self.host:
            return f"unix:{record.directory}/{row.socket}"
        if not record.reach or not row.port:
            return ""
        if self._sealed:
            return address(record.reach, row.port, row.socket)
        return f"tcp:{record.reach}:{row.port}"

    def parted(self, id: int, now_us: int) -> list[NeighbourInstruction]:
        """Take in that a node has ended, as it said itself."""
        self._gone[id] = now_us + SILENCE_US
        return self._lose(id, now_us)

    def tick(self, now_us: int) -> list[NeighbourInstruction]:
        """Lose those that have been silent for too long, and give the places of those lost before to others."""
        done: list[NeighbourInstruction] = []
        for id in [id for id, node in self.nodes.items() if node.heard_us + SILENCE_US <= now_us]:
            done += self._lose(id, now_us)
        for until_us, here in [one for one in self._lost if one[0] <= now_us]:
            self._lost.remove((until_us, here))
            self._free.append(here)
            done.append(Vacate(here))
        for id in [id for id, until_us in self._gone.items() if until_us <= now_us]:
            del self._gone[id]
        return done

    @property
    def next_tick_us(self) -> int | None:
        """When `tick` next has something to do."""
        times = [node.heard_us + SILENCE_US for node in self.nodes.values()]
        return min((*times, *(until_us for until_us, _ in self._lost), *self._gone.values()), default=None)

    def _lose(self, id: int, now_us: int) -> list[NeighbourInstruction]:
        node = self.nodes.pop(id, None)
        if node is None:
            return []
        places = [place.slot for place in node.places.values()]
        done: list[NeighbourInstruction] = [Lose(here) for here in places]
        self._lost += [(now_us + LOST_KEEP_US, here) for here in places]
        return [*done, Part(id)]

    def check(self) -> None:
        """Assert the invariants: every place is free, lost or one executor's, and no node is its own neighbour."""
        first, last = self._span
        places = [*self._free, *(here for _, here in self._lost), *self.executors]
        assert sorted(places) == list(range(first, last))
        assert self.id not in self.nodes
