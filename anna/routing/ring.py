"""Consistent hashing: which workers own a key, in an order that hardly changes when workers come and go.

The one rule: placement is a function of the key, of the set of node ids, tiers and seats, and of the key's
replication vector, and of nothing else: not of worker ids, addresses, or the order of arrival. So a worker that
replaces a dead one owns what it owned, and every program that holds the same view agrees.

A `Circle` has 2**64 positions. Each member stands at `virtual_nodes` points; a position belongs to the
first point at or after it, clockwise. There is one circle of nodes, and on each node one circle of seats.
The second is entered at the key's position with its halves swapped, because a node's keys all lie on its
arcs of the first and would land unevenly on the second. Each tier has its ring: a key's owners are as many of the
memory nodes as its vector says, then as many of the disk nodes. Source: Karger et al. 1997; DESIGN §5;
docs/decisions/0002 and 0015.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import chain, islice, zip_longest
from typing import Final

from sortedcontainers import SortedList

from anna.config import VIRTUAL_NODES
from anna.errors import NoWorkers
from anna.messages import TIERS, NodeInfo, View, WorkerInfo, tier_workers
from anna.routing.hash import key_hash
from anna.vectors import Vector

_POINT: Final = struct.Struct("<4sQI")


def swapped(position: int) -> int:
    """Return a position with its 32-bit halves exchanged: where a key enters its node's circle of seats."""
    return (position << 32 | position >> 32) & (2**64 - 1)


class Circle:
    """Members, numbered below 2**64, at `virtual_nodes` points each. Circles of two labels are unrelated."""

    def __init__(self, label: bytes, virtual_nodes: int = VIRTUAL_NODES) -> None:
        self._label = label
        self._virtual_nodes = virtual_nodes
        self._members: set[int] = set()
        self._points: SortedList[tuple[int, int]] = SortedList()

    def __contains__(self, member: int) -> bool:
        return member in self._members

    def __len__(self) -> int:
        return len(self._members)

    @property
    def points(self) -> list[tuple[int, int]]:
        """All (position, member) in clockwise order; members at one position by number."""
        return list(self._points)

    def add(self, member: int) -> None:
        """Place a member; O(virtual_nodes · log). Nothing changes when it is on the circle already."""
        if member not in self._members:
            self._members.add(member)
            self._points.update(self._points_of(member))

    def remove(self, member: int) -> None:
        """Take a member off; O(virtual_nodes · log). Raises KeyError when it is not on the circle."""
        self._members.remove(member)
        for point in self._points_of(member):
            self._points.remove(point)

    def clockwise(self, position: int) -> Iterator[int]:
        """Yield every member once, the owner of `position` first, then by the distance to their points."""
        start = self._points.bisect_left((position, 0))
        seen: set[int] = set()
        for _, member in chain(self._points.islice(start), self._points.islice(0, start)):
            if member not in seen:
                seen.add(member)
                yield member
                if len(seen) == len(self._members):
                    return

    def _points_of(self, member: int) -> list[tuple[int, int]]:
        numbers = range(self._virtual_nodes)
        return [(key_hash(_POINT.pack(self._label, member, number)), member) for number in numbers]


class Ring:
    """Nodes, and on each of them its workers: those of one tier, or all of a view.

    >>> ring = Ring.of(View(1, (NodeInfo(1, (WorkerInfo(7, ("unix:/run/w0",)),)),)))
    >>> [worker.worker_id for worker in ring.owners(b"greeting", count=3)]
    [7]
    """

    def __init__(self, virtual_nodes: int = VIRTUAL_NODES) -> None:
        self._virtual_nodes = virtual_nodes
        self._nodes: dict[int, NodeInfo] = {}
        self._circle = Circle(b"node", virtual_nodes)
        self._seat_circles: dict[tuple[int, ...], Circle] = {}

    @classmethod
    def of(cls, view: View, virtual_nodes: int = VIRTUAL_NODES) -> Ring:
        """Return the ring of the nodes that answer for keys, of whatever tier: those of `view.serving`."""
        return cls.of_nodes(view.serving, virtual_nodes)

    @classmethod
    def of_nodes(cls, nodes: Iterable[NodeInfo], virtual_nodes: int = VIRTUAL_NODES) -> Ring:
        """Return the ring of these nodes."""
        ring = cls(virtual_nodes)
        for node in nodes:
            ring.add(node)
        return ring

    @property
    def circle(self) -> Circle:
        """The circle of nodes. To be read only."""
        return self._circle

    def add(self, node: NodeInfo) -> None:
        """Place a node, or replace the node of the same id. Takes O(virtual_nodes · log) for a new node."""
        self._nodes[node.node_id] = node
        self._circle.add(node.node_id)

    def remove(self, node_id: int) -> None:
        """Take a node off. Raises KeyError when it is not on the ring."""
        del self._nodes[node_id]
        self._circle.remove(node_id)

    def owners(self, key: bytes, count: int) -> tuple[WorkerInfo, ...]:
        """Return the `count` distinct workers that store `key`, primary first.

        They are on different nodes as long as there are any, then on different seats, so that the fewest
        share a machine; asking for one more adds one at the end. Fewer when the ring has fewer workers.
        O(log(virtual nodes) + count) on average. Raises NoWorkers on an empty ring.
        """
        if not self._nodes:
            raise NoWorkers("the view has no nodes")
        position = key_hash(key)
        nodes = islice(self._circle.clockwise(position), count)
        walks = [self._workers_clockwise(self._nodes[node], swapped(position)) for node in nodes]
        spread = (worker for rank in zip_longest(*walks) for worker in rank if worker is not None)
        return tuple(islice(spread, count))

    def seat_circle(self, node: NodeInfo) -> Circle:
        """Return the circle of a node's seats. Nodes with the same seats share it; to be read only."""
        seats = tuple(worker.seat for worker in node.workers)
        circle = self._seat_circles.get(seats)
        if circle is None:
            circle = self._seat_circles[seats] = Circle(b"seat", self._virtual_nodes)
            for seat in seats:
                circle.add(seat)
        return circle

    def check(self) -> None:
        """Assert the invariants: every node is on the circle, and only nodes are, at their own points."""
        assert len(self._circle) == len(self._nodes)
        assert all(node_id in self._circle and n.node_id == node_id for node_id, n in self._nodes.items())
        rebuilt = Circle(b"node", self._virtual_nodes)
        for node_id in self._nodes:
            rebuilt.add(node_id)
        assert rebuilt.points == self._circle.points

    def _workers_clockwise(self, node: NodeInfo, position: int) -> Iterator[WorkerInfo]:
        by_seat = {worker.seat: worker for worker in node.workers}
        return (by_seat[seat] for seat in self.seat_circle(node).clockwise(position))


class Rings:
    """A ring for each tier, and how many owners a key has on each: who answers for keys, or who will ("target")."""

    def __init__(self, view: View, which: str = "serving", virtual_nodes: int = VIRTUAL_NODES) -> None:
        nodes = view.serving if which == "serving" else view.target
        self._default = view.default
        self._own = view.vectors.serving if which == "serving" else view.vectors.target
        self._workers = [tier_workers(nodes, tier) for tier in TIERS]
        self._rings = [Ring.of_nodes((n for n in nodes if n.tier == tier), virtual_nodes) for tier in TIERS]

    def vector(self, key: bytes) -> Vector:
        """Return how many owners a key has on each ring, clamped to the workers that there are."""
        return self._own.get(key_hash(key), self._default).clamped(*self._workers)

    def owners(self, key: bytes) -> tuple[WorkerInfo, ...]:
        """Return the workers that store `key`, those of memory nodes first, on each ring the primary first.

        Raises NoWorkers when there is no node.
        """
        if not any(self._workers):
            raise NoWorkers("the view has no nodes")
        vector = self.vector(key)
        found = zip(self._rings, (vector.memory, vector.disk))
        return tuple(worker for ring, count in found if count for worker in ring.owners(key, count))
