"""The nouns that workers, clients and supervisors tell each other.

The one rule: a message is a frozen value that is valid by construction. `from_wire` takes whatever a peer
sent and either returns such a value or raises ProtocolError; `to_wire` gives plain data that msgpack carries
unchanged.

A view is a lattice, like every value here: whoever learns something joins it to what he knows, so nobody
needs to be asked and no order of arrival matters. A node's record is the product of two maxima:
(LEFT or not, generation, refutation, status), which the node and those who miss it write, and (generation,
revision, workers, tier), which its supervisor writes. `View.version` is no part of the lattice. It is a hint that
tells which of two views to look at, see `View.join`.

Source: DESIGN §2 (vocabulary), §5 (placement, membership); docs/decisions/0002 for seats. Refutation is that
of SWIM (Das, Gupta, Motivala 2002).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final

import msgpack

from anna.address import parse_address
from anna.checked import U64_MAX, ascending, bounded, built, fields, typed
from anna.config import CLUSTER_NAME_BYTES_MAX, LEFT_NODES_MAX, OWNERS_MAX, RIDER_BYTES_MAX
from anna.errors import ProtocolError
from anna.vectors import NO_VECTORS, Vector, Vectors

VIEW_NODES_MAX: Final = 4096
"""Most nodes in one view."""

NODE_WORKERS_MAX: Final = 1024
"""Most workers on one node; seats are numbered below it."""

WORKER_ADDRESSES_MAX: Final = 8
"""Most addresses at which one worker listens."""

TIERS: Final = ("memory", "disk")
"""Where a node keeps its keys."""


class NodeStatus(IntEnum):
    """Where a node is in its life. The greater wins in a join, unless the node itself refutes it."""

    JOINING = 0
    """It takes over keys, and does not answer for them yet."""
    ALIVE = 1
    LEAVING = 2
    """It hands over its keys, and answers for them still."""
    DEAD = 3
    """Nobody hears it. It may come back."""
    LEFT = 4
    """Its keys are elsewhere. Final: whoever starts there again does so under another node id, with nothing."""


JOINING: Final = NodeStatus.JOINING
ALIVE: Final = NodeStatus.ALIVE
LEAVING: Final = NodeStatus.LEAVING
DEAD: Final = NodeStatus.DEAD
LEFT: Final = NodeStatus.LEFT


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
        bounded("worker id", self.worker_id, 1, U64_MAX)
        bounded("seat", self.seat, 0, NODE_WORKERS_MAX - 1)
        bounded("number of addresses of a worker", len(self.addresses), 1, WORKER_ADDRESSES_MAX)
        for address in self.addresses:
            parse_address(address)

    def to_wire(self) -> list[Any]:
        """Return plain data for msgpack."""
        return [self.worker_id, list(self.addresses), self.seat]

    @classmethod
    def from_wire(cls, data: object) -> WorkerInfo:
        """Return the worker that `to_wire` wrote. Raises ProtocolError."""
        worker_id, addresses, seat = fields("worker", data, 3)
        texts = tuple(typed("address", a, str) for a in typed("addresses", addresses, list))
        return built(cls, typed("worker id", worker_id, int), texts, typed("seat", seat, int))


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """The workers of one machine, by ascending seat. `node_id` is its place on the ring of nodes.

    `generation` counts the starts of a supervisor with this node id, `revision` the worker replacements
    within one, `refutation` the times that the node was called dead and was not. A node that has LEFT refutes nothing
    any more: its `refutation` is the version of the view in which it left, or greater.
    """

    node_id: int
    workers: tuple[WorkerInfo, ...]
    generation: int = 0
    refutation: int = 0
    status: NodeStatus = NodeStatus.ALIVE
    revision: int = 0
    tier: str = "memory"

    def __post_init__(self) -> None:
        bounded("node id", self.node_id, 1, U64_MAX)
        bounded("number of workers of a node", len(self.workers), 1, NODE_WORKERS_MAX)
        ascending(f"seats of node {self.node_id:#x}", [w.seat for w in self.workers])
        bounded("generation", self.generation, 0, U64_MAX)
        bounded("refutation", self.refutation, 0, U64_MAX)
        bounded("status of a node", self.status, 0, len(NodeStatus) - 1)
        bounded("revision", self.revision, 0, U64_MAX)
        if self.tier not in TIERS:
            raise ValueError(f"tier is {self.tier!r}; it must be one of {', '.join(TIERS)}")

    @property
    def reachable(self) -> bool:
        """Whether its workers can be talked to: not DEAD and not LEFT."""
        return self.status < NodeStatus.DEAD

    @property
    def returns(self) -> bool:
        """Whether it was there before, and may have on its disks what it took then."""
        return self.generation > 1

    def left(self, version: int) -> NodeInfo:
        """Return the record of a node that leaves by the next view after `version`."""
        return replace(self, status=NodeStatus.LEFT, refutation=max(self.refutation, min(U64_MAX, version + 1)))

    def join(self, other: NodeInfo) -> NodeInfo:
        """Return the least record that is at least both. Raises ValueError for records of two nodes."""
        if self.node_id != other.node_id:
            raise ValueError(f"records of two nodes, {self.node_id:#x} and {other.node_id:#x}, have no join")
        if self == other:
            return self
        life = max(self, other, key=_life)
        seats = max(self, other, key=_seats)
        return replace(seats, refutation=life.refutation, status=life.status)

    def to_wire(self) -> list[Any]:
        """Return plain data for msgpack."""
        workers = [w.to_wire() for w in self.workers]
        life = [self.generation, self.refutation, int(self.status)]
        return [self.node_id, workers, *life, self.revision, self.tier]

    @classmethod
    def from_wire(cls, data: object) -> NodeInfo:
        """Return the node that `to_wire` wrote. Raises ProtocolError."""
        node_id, workers, *counts, revision, tier = fields("node", data, 7)
        infos = tuple(WorkerInfo.from_wire(w) for w in typed("workers", workers, list))
        names = ("generation", "refutation", "status")
        generation, refutation, status = (typed(name, n, int) for name, n in zip(names, counts, strict=True))
        known = built(NodeStatus, status)
        return built(
            cls,
            typed("node id", node_id, int),
            infos,
            generation,
            refutation,
            known,
            typed("revision", revision, int),
            typed("tier", tier, str),
        )


@dataclass(frozen=True)
class View:
    """Who is in the cluster, by ascending node id, and how many copies keys have.

    `factor` is how many a key has in memory, `vectors` how many on disk, and which keys have a vector of their own.

    Of the nodes that have LEFT, the LEFT_NODES_MAX that left last keep their record, so that who was away learns of it;
    else a cluster whose nodes come and go would grow a view without end.

    A greater `version` means: look at it. Every view that a worker moves on to has a greater version than the
    one before, and version 0 comes before any; but two views of one version may differ, for as long as
    neither author has heard of the other.
    """

    version: int
    nodes: tuple[NodeInfo, ...]
    factor: int = 1
    factor_stamp: int = 0
    vectors: Vectors = NO_VECTORS

    def __post_init__(self) -> None:
        bounded("view version", self.version, 0, U64_MAX)
        bounded("number of nodes of a view", len(self.nodes), 0, VIEW_NODES_MAX)
        ascending("node ids of a view", [n.node_id for n in self.nodes])
        bounded("replication factor", self.factor, 1, OWNERS_MAX)
        bounded("stamp of the replication factor", self.factor_stamp, 0, U64_MAX)
        ids = [w.worker_id for node in self.nodes for w in node.workers]
        if len(set(ids)) != len(ids):
            raise ValueError(f"worker ids of a view repeat: {len(ids)} workers, {len(set(ids))} ids")

    @cached_property
    def workers(self) -> tuple[WorkerInfo, ...]:
        """All workers that can be talked to, by node and then by seat: what `Placement` gives indexes into.

        The nodes that are DEAD or LEFT keep their record in `nodes`, and have no workers here.
        """
        return tuple(worker for node in self.nodes if node.reachable for worker in node.workers)

    @cached_property
    def serving(self) -> tuple[NodeInfo, ...]:
        """The nodes that answer for keys: ALIVE or LEAVING."""
        return tuple(n for n in self.nodes if n.status in (NodeStatus.ALIVE, NodeStatus.LEAVING))

    @cached_property
    def target(self) -> tuple[NodeInfo, ...]:
        """The nodes that will hold the keys once all moves are over: JOINING or ALIVE."""
        return tuple(n for n in self.nodes if n.status in (NodeStatus.JOINING, NodeStatus.ALIVE))

    @property
    def default(self) -> Vector:
        """The vector of a key that has none of its own."""
        return Vector(self.factor, self.vectors.disk_factor)

    @cached_property
    def in_motion(self) -> bool:
        """Whether some keys have other holders to come than those that answer for them."""
        return self.serving != self.target or self.vectors.moving

    @cached_property
    def copies_least(self) -> int:
        """How many copies each key has at least, of the workers that serve; 0 where none does."""
        return min(vector.memory + vector.disk for vector in self._clamped)

    @cached_property
    def copies_most(self) -> int:
        """How many copies a key has at most, of the workers that serve; 0 where none does."""
        return max(vector.memory + vector.disk for vector in self._clamped)

    @cached_property
    def _clamped(self) -> set[Vector]:
        workers = [tier_workers(self.serving, tier) for tier in TIERS]
        return {vector.clamped(*workers) for vector in (self.default, *self.vectors.serving.values())}

    @property
    def copies_asked(self) -> int:
        """How many copies each key is to have at least, whether or not there are workers for them."""
        return min(vector.memory + vector.disk for vector in (self.default, *self.vectors.serving.values()))

    @cached_property
    def copies_apart(self) -> bool:
        """Whether no two copies of any key are on one node."""
        nodes = [sum(node.tier == tier for node in self.serving) for tier in TIERS]
        return all(vector.memory <= nodes[0] and vector.disk <= nodes[1] for vector in self._clamped)

    def vector_at(self, position: int) -> Vector:
        """Return by which vector the key at `position` is answered for, as it was given, not clamped."""
        return self.vectors.serving.get(position, self.default)

    @cached_property
    def digest(self) -> int:
        """64 bits that differ when anything but the version differs: for peers to compare what they know."""
        content = msgpack.packb(self.to_wire()[1:])
        return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")

    @property
    def mark(self) -> int:
        """1 to 127: what answers tell of their worker's view. Of 127 other views, one has the same mark by chance."""
        return 1 + self.digest % 127

    @cached_property
    def _places(self) -> dict[int, int]:
        return {worker.worker_id: place for place, worker in enumerate(self.workers)}

    @cached_property
    def _nodes_by_id(self) -> dict[int, NodeInfo]:
        return {node.node_id: node for node in self.nodes}

    @cached_property
    def _nodes_by_worker(self) -> dict[int, NodeInfo]:
        return {worker.worker_id: node for node in self.nodes for worker in node.workers}

    def index_of(self, worker_id: int) -> int:
        """Return the worker's index in `workers`. Raises KeyError when it is not there."""
        place = self._places.get(worker_id)
        if place is None:
            raise KeyError(f"view {self.version} names no worker {worker_id:#x}")
        return place

    def node(self, node_id: int) -> NodeInfo:
        """Return the record of a node, whatever its status. Raises KeyError for an unknown node."""
        node = self._nodes_by_id.get(node_id)
        if node is None:
            raise KeyError(f"view {self.version} names no node {node_id:#x}")
        return node

    def node_of(self, worker_id: int) -> NodeInfo:
        """Return the node of a worker, whatever its status. Raises KeyError for an unknown worker."""
        node = self._nodes_by_worker.get(worker_id)
        if node is None:
            raise KeyError(f"view {self.version} names no worker {worker_id:#x}")
        return node

    def join(self, other: View) -> View:
        """Return what both know together.

        Commutative, associative and idempotent in all but `version`. That is greater than the version of
        either side that has learnt something, so that whoever holds that side will look at the result, and
        otherwise the greater of the two. Once all have joined everything, joins only take the greater
        version: then all versions are equal too. Raises ValueError when one worker id would name two workers.
        """
        nodes = {node.node_id: node for node in self.nodes}
        for node in other.nodes:
            mine = nodes.get(node.node_id)
            nodes[node.node_id] = node if mine is None else mine.join(node)
        stamp, factor = max((self.factor_stamp, self.factor), (other.factor_stamp, other.factor))
        vectors = self.vectors.join(other.vectors)
        joined = View(0, _remembered(nodes.values()), factor, stamp, vectors)
        versions = (side.version + (joined.digest != side.digest) for side in (self, other))
        return replace(joined, version=min(U64_MAX, max(versions)))

    def with_node(self, node: NodeInfo) -> View:
        """Return the next view, in which `node` has joined or replaced the node of the same id."""
        others = (n for n in self.nodes if n.node_id != node.node_id)
        return replace(self, version=min(U64_MAX, self.version + 1), nodes=_remembered((*others, node)))

    def with_worker(self, node_id: int, worker: WorkerInfo) -> View:
        """Return the next view, in which `worker` has its seat, by the node's next revision.

        Raises KeyError for an unknown node.
        """
        node = self.node(node_id)
        others = (w for w in node.workers if w.seat != worker.seat)
        seated = tuple(sorted((*others, worker), key=lambda w: w.seat))
        return self.with_node(replace(node, workers=seated, revision=node.revision + 1))

    def with_vectors(self, vectors: Vectors) -> View:
        """Return the next view, with other vectors."""
        return replace(self, version=min(U64_MAX, self.version + 1), vectors=vectors)

    def to_wire(self) -> list[Any]:
        """Return plain data for msgpack. What was never said of vectors is left out."""
        nodes = [n.to_wire() for n in self.nodes]
        return [self.version, nodes, self.factor, self.factor_stamp, *self.vectors.to_wire()]

    @classmethod
    def from_wire(cls, data: object) -> View:
        """Return the view that `to_wire` wrote. Raises ProtocolError."""
        version, nodes, factor, stamp, *vectors = fields("view", data, 4, 8)
        infos = tuple(NodeInfo.from_wire(n) for n in typed("nodes", nodes, list))
        numbers = typed("replication factor", factor, int), typed("stamp of the replication factor", stamp, int)
        return built(cls, typed("view version", version, int), infos, *numbers, Vectors.from_wire(vectors))


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A worker's word that it lives, and what it knows of the others. It may be lost, repeated and late.

    `sequence` numbers what this sender sends, and `echo` is the last number that it had from this receiver.
    `address` is where to answer. `version` and `digest` name the sender's view; `view` is the view itself,
    for a receiver that has another. `complete_for` is the version for which the sender holds all that it
    should. `beats` are (node id, generation, beat): a node's beat rises as long as one of its workers lives,
    and is passed on, so that a node is heard by way of others too. `rider` is the sender's, unread here.
    """

    cluster: str
    sender: int
    node_id: int
    address: str
    sequence: int
    echo: int
    version: int
    digest: int
    complete_for: int
    beats: tuple[tuple[int, int, int], ...]
    view: View | None = None
    rider: bytes = b""

    def __post_init__(self) -> None:
        bounded("number of bytes of a cluster's name", len(self.cluster.encode()), 0, CLUSTER_NAME_BYTES_MAX)
        parse_address(self.address)
        bounded("sender of a heartbeat", self.sender, 1, U64_MAX)
        bounded("node of a heartbeat", self.node_id, 1, U64_MAX)
        for number in (self.sequence, self.echo, self.version, self.digest, self.complete_for):
            bounded("number in a heartbeat", number, 0, U64_MAX)
        bounded("number of beats", len(self.beats), 0, VIEW_NODES_MAX)
        for beat in self.beats:
            for number in beat:
                bounded("number in a beat", number, 0, U64_MAX)
        bounded("number of bytes of a rider", len(self.rider), 0, RIDER_BYTES_MAX)

    def encode(self) -> bytes:
        """Return the heartbeat's bytes."""
        numbers = self.sequence, self.echo, self.version, self.digest, self.complete_for
        view = None if self.view is None else self.view.to_wire()
        whose = self.cluster, self.sender, self.node_id, self.address
        return bytes(msgpack.packb((*whose, *numbers, self.beats, view, self.rider)))

    @classmethod
    def decode(cls, data: bytes, known: int | None = None) -> Heartbeat:
        """Return the heartbeat that `encode` wrote, without its view if `known` is the digest of that.

        Raises ProtocolError.
        """
        try:
            parts = fields("heartbeat", msgpack.unpackb(data), 12)
        except (ValueError, TypeError) as error:
            raise ProtocolError(f"a heartbeat is no msgpack: {error}") from None
        cluster, sender, node_id, address, *numbers, beats, view, rider = parts
        told = []
        for beat in typed("beats", beats, list):
            node, generation, count = (typed("number in a beat", n, int) for n in fields("beat", beat, 3))
            told.append((node, generation, count))
        return built(
            cls,
            typed("cluster", cluster, str),
            typed("sender of a heartbeat", sender, int),
            typed("node of a heartbeat", node_id, int),
            typed("address", address, str),
            *(typed("number in a heartbeat", n, int) for n in numbers),
            tuple(told),
            None if view is None or numbers[3] == known else View.from_wire(view),
            typed("rider", rider, bytes),
        )


def tier_workers(nodes: tuple[NodeInfo, ...], tier: str) -> int:
    """Return how many workers there are on those of the nodes that are of a tier."""
    return sum(len(node.workers) for node in nodes if node.tier == tier)


def _remembered(nodes: Iterable[NodeInfo]) -> tuple[NodeInfo, ...]:
    """Return the nodes by ascending id, without those that left before the last LEFT_NODES_MAX that did."""
    records = sorted(nodes, key=lambda node: node.node_id)
    left = [node for node in records if node.status == NodeStatus.LEFT]
    if len(left) <= LEFT_NODES_MAX:
        return tuple(records)
    left.sort(key=lambda node: (node.refutation, node.node_id))
    forgotten = {node.node_id for node in left[:-LEFT_NODES_MAX]}
    return tuple(node for node in records if node.node_id not in forgotten)


def _life(node: NodeInfo) -> tuple[bool, int, int, int]:
    """What decides a node's status. LEFT is final for a node id: deletes were forgotten since; its disks lack them."""
    return node.status == NodeStatus.LEFT, node.generation, node.refutation, node.status


def _seats(node: NodeInfo) -> tuple[int, int, list[Any], str]:
    """What decides a node's workers. Their wire form makes the order total, whatever a peer sends."""
    return node.generation, node.revision, [w.to_wire() for w in node.workers], node.tier
