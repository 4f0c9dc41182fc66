"""How a node takes part in a cluster: what `anna serve` was told, in one value.

The one rule: a node that is given seeds joins their cluster, and answers for no key before it has its share; a node
without seeds begins a cluster. A node with data keeps its id over restarts, and counts them (`generation`), so that
what an earlier start of it said is never taken for this one's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from anna.messages import ALIVE, JOINING, NodeInfo, View, WorkerInfo
from anna.vectors import NO_VECTORS, Vectors

CLUSTER: Final = "anna"
"""Name of a cluster that was given none; nodes of different names refuse each other."""

LEAVE_S: Final = 60.0
"""How long a node that stops may take to hand over its keys."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What a node is to be. `factor` None leaves the cluster's replication factor as it is, `disk_factor` likewise.

    Its keys and values take no more than about `memory_bytes` of memory, None for no limit: a node of the disk tier,
    which has `data`, lets values leave for it then, and one of the memory tier refuses writes.
    `keys` is the directory of the keys for its TCP streams, None for plain ones.
    `known` is the cluster as an earlier start of this node last saw it; `remember` is called with each newer view;
    `set_aside` when the cluster has forgotten this node: its data is not to be started from again.
    """

    node_id: int = 0
    generation: int = 0
    seeds: tuple[str, ...] = ()
    cluster: str = CLUSTER
    factor: int | None = None
    disk_factor: int | None = None
    factor_stamp: int = 1
    data: str | None = None
    tier: str = "memory"
    memory_bytes: int | None = None
    keys: str | None = None
    leave_s: float = 0.0
    known: View | None = None
    remember: Callable[[View], None] | None = None
    set_aside: Callable[[], Path] | None = None

    def view(self, node_id: int, workers: tuple[WorkerInfo, ...]) -> View:
        """Return what the node knows of the cluster at its start: itself, and what it remembers."""
        status = JOINING if self.seeds else ALIVE
        node = NodeInfo(node_id, workers, self.generation, status=status, tier=self.tier)
        stamp = 0 if self.factor is None else self.factor_stamp
        vectors = NO_VECTORS if self.disk_factor is None else Vectors(self.disk_factor, self.factor_stamp)
        own = View(1, (node,), self.factor or 1, stamp, vectors)
        return own if self.known is None else self.known.join(own)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the starter of an embedded node asks for: how many workers, for how long, in which cluster."""

    workers: int
    linger_s: float
    seeds: tuple[str, ...] = ()
    factor: int | None = None
    listen: tuple[str, ...] = ()
    keys: str | None = None

    def pack(self) -> str:
        """Return it as one word for a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def unpack(cls, text: str) -> Wanted:
        """Return what `pack` wrote."""
        said = json.loads(text)
        seeds, listen = tuple(said.pop("seeds")), tuple(said.pop("listen"))
        return cls(**said, seeds=seeds, listen=listen)

    def plan(self, stamp: int) -> NodePlan:
        """Return how the node takes part in its cluster; `stamp` dates its word on the number of copies."""
        alone = not self.seeds and self.factor is None
        leave_s = 0.0 if alone else LEAVE_S
        return NodePlan(seeds=self.seeds, factor=self.factor, factor_stamp=stamp, leave_s=leave_s, keys=self.keys)
