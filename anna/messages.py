"""The nouns that workers, clients and supervisors tell each other.

The one rule: a message is a frozen value that is valid by construction. `from_wire` takes whatever a peer
sent and either returns such a value or raises ProtocolError; `to_wire` gives plain data that msgpack carries
unchanged. Source: DESIGN §2 (vocabulary), §5 (placement, membership); docs/decisions/0002 for seats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, TypeVar

from anna.address import parse_address
from anna.errors import ProtocolError

VIEW_NODES_MAX: Final = 4096
"""Most nodes in one view."""

NODE_WORKERS_MAX: Final = 1024
"""Most workers on one node; seats are numbered below it."""

WORKER_ADDRESSES_MAX: Final = 8
"""Most addresses at which one worker listens."""

U64_MAX: Final = 2**64 - 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker: who it is, where it listens, and its seat.

    `worker_id` names one incarnation: a process. It is never used again, so what a dead incarnation wrote
    (dots, counts) is never mistaken for its successor's. `seat` names its place on the node's ring, 0 and up:
    the process that replaces a dead one takes over the seat, hence the keys. `addresses` are `unix:PATH` or
    `tcp://HOST:PORT`, the fastest first.
    """

    worker_id: int
    addresses: tuple[str, ...]
    seat: int = 0

    def __post_init__(self) -> None:
        _bounded("worker id", self.worker_id, 1, U64_MAX)
        _bounded("seat", self.seat, 0, NODE_WORKERS_MAX - 1)
        _bounded("number of addresses of a worker", len(self.addresses), 1, WORKER_ADDRESSES_MAX)
        for address in self.addresses:
            parse_address(address)

    def to_wire(self) -> list[Any]:
        """Return plain data for msgpack."""
        return [self.worker_id, list(self.addresses), self.seat]

    @classmethod
    def from_wire(cls, data: object) -> WorkerInfo:
        """Return the worker that `to_wire` wrote. Raises ProtocolError."""
        worker_id, addresses, seat = _fields("worker", data, 3)
        texts = tuple(_typed("address", a, str) for a in _typed("addresses", addresses, list))
        return _build(cls, _typed("worker id", worker_id, int), texts, _typed("seat", seat, int))


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """The workers of one machine, by ascending seat. `node_id` is its place on the ring of nodes."""

    node_id: int
    workers: tuple[WorkerInfo, ...]

    def __post_init__(self) -> None:
        _bounded("node id", self.node_id, 1, U64_MAX)
        _bounded("number of workers of a node", len(self.workers), 1, NODE_WORKERS_MAX)
        _ascending(f"seats of node {self.node_id:#x}", [w.seat for w in self.workers])

    def to_wire(self) -> list[Any]:
        """Return plain data for msgpack."""
        return [self.node_id, [w.to_wire() for w in self.workers]]

    @classmethod
    def from_wire(cls, data: object) -> NodeInfo:
        """Return the node that `to_wire` wrote. Raises ProtocolError."""
        node_id, workers = _fields("node", data, 2)
        infos = tuple(WorkerInfo.from_wire(w) for w in _typed("workers", workers, list))
        return _build(cls, _typed("node id", node_id, int), infos)


@dataclass(frozen=True)
class View:
    """Who is in the cluster, by ascending node id. The greater `version` is the newer; 0 comes before any.

    Two views with equal versions are equal: a view is made by one author, and passed on unchanged.
    """

    version: int
    nodes: tuple[NodeInfo, ...]

    def __post_init__(self) -> None:
        _bounded("view version", self.version, 0, U64_MAX)
        _bounded("number of nodes of a view", len(self.nodes), 0, VIEW_NODES_MAX)
        _ascending("node ids of a view", [n.node_id for n in self.nodes])
        ids = [w.worker_id for w in self.workers]
        if len(set(ids)) != len(ids):
            raise ValueError(f"worker ids of a view repeat: {len(ids)} workers, {len(set(ids))} ids")

    @cached_property
    def workers(self) -> tuple[WorkerInfo, ...]:
        """All workers, by node and then by seat: the list that `Placement` gives indexes into."""
        return tuple(worker for node in self.nodes for worker in node.workers)

    def index_of(self, worker_id: int) -> int:
        """Return the worker's index in `workers`. Raises KeyError when this view does not name it."""
        for index, worker in enumerate(self.workers):
            if worker.worker_id == worker_id:
                return index
        raise KeyError(f"view {self.version} names no worker {worker_id:#x}")

    def with_node(self, node: NodeInfo) -> View:
        """Return the next view, in which `node` has joined or replaced the node of the same id."""
        others = (n for n in self.nodes if n.node_id != node.node_id)
        return View(self.version + 1, tuple(sorted((*others, node), key=lambda n: n.node_id)))

    def with_worker(self, node_id: int, worker: WorkerInfo) -> View:
        """Return the next view, in which `worker` has its seat. Raises KeyError for an unknown node."""
        for node in self.nodes:
            if node.node_id == node_id:
                others = (w for w in node.workers if w.seat != worker.seat)
                seated = tuple(sorted((*others, worker), key=lambda w: w.seat))
                return self.with_node(replace(node, workers=seated))
        raise KeyError(f"view {self.version} names no node {node_id:#x}")

    def to_wire(self) -> list[Any]:
        """Return plain data for msgpack."""
        return [self.version, [n.to_wire() for n in self.nodes]]

    @classmethod
    def from_wire(cls, data: object) -> View:
        """Return the view that `to_wire` wrote. Raises ProtocolError."""
        version, nodes = _fields("view", data, 2)
        infos = tuple(NodeInfo.from_wire(n) for n in _typed("nodes", nodes, list))
        return _build(cls, _typed("view version", version, int), infos)


def _bounded(what: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise ValueError(f"{what} is {number:,}; it must be {least:,} to {most:,}")


def _ascending(what: str, numbers: list[int]) -> None:
    if any(b <= a for a, b in pairwise(numbers)):
        raise ValueError(f"{what} must ascend without repeats, got {numbers[:8]}")


def _fields(what: str, data: object, count: int) -> list[Any]:
    fields = _typed(what, data, list)
    if len(fields) != count:
        raise ProtocolError(f"a {what} has {count} fields, got {len(fields)}")
    return fields


def _typed(what: str, value: object, kind: type[T]) -> T:
    if type(value) is not kind:
        raise ProtocolError(f"{what} must be {kind.__name__}, got {type(value).__name__}")
    return value


def _build(make: Callable[..., T], *fields: object) -> T:
    try:
        return make(*fields)
    except ValueError as error:
        raise ProtocolError(str(error)) from None
