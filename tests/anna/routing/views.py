"""Views to place keys on: made from a shape, or drawn by Hypothesis."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st

from anna.messages import NodeInfo, View, WorkerInfo


def view_of(shape: dict[int, Iterable[int]]) -> View:
    """Return the view with these seats on each node id."""
    return View(1, tuple(node_of(node_id, shape[node_id]) for node_id in sorted(shape)))


def node_of(node_id: int, seats: Iterable[int]) -> NodeInfo:
    """Return a node whose worker ids and addresses tell node and seat."""
    workers = (WorkerInfo(node_id * 1024 + s + 1, (f"unix:/{node_id}-{s}",), s) for s in sorted(seats))
    return NodeInfo(node_id, tuple(workers))


NODE_IDS = st.integers(1, 2**54 - 1)
SEATS = st.sets(st.integers(0, 20), min_size=1, max_size=5)
KEYS = st.binary(min_size=1, max_size=64)


def shapes(nodes_min: int = 1, nodes_max: int = 5) -> st.SearchStrategy[dict[int, set[int]]]:
    """Draw the seats of each node."""
    return st.dictionaries(NODE_IDS, SEATS, min_size=nodes_min, max_size=nodes_max)
