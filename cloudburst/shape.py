"""What a node is to be: what its starter asks for, in one value that fits on a command line.

Source: anna/plan.py, whose twin this is.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Final

from cloudburst import config
from cloudburst.errors import RequestError

LINGER_S: Final = 0.3
"""How long a node without leases waits for its next user."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A node with `executors` of its own, and `slots` in all for those that stand in while calls are nested.

    `linger_s` None keeps it when it has no leases. With `join`, the address of a node, it is one more beside that one,
    and its store one more node of that one's store, with `workers`. `own_store` gives it a store in its own directory
    that others can join, which keeps `factor` copies of each key.
    """

    executors: int
    slots: int = config.EXECUTORS_MAX
    linger_s: float | None = LINGER_S
    workers: int | None = None
    join: str = ""
    own_store: bool = False
    factor: int | None = None

    @classmethod
    def of(cls, executors: int | None, *, join: str | None = None, **others: object) -> Shape:
        """Return a shape with one executor for each core where none are asked for. Raises RequestError."""
        count = len(os.sched_getaffinity(0)) if executors is None else executors
        return cls(count, join=join or "", **others)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if not 1 <= self.executors <= self.slots <= config.EXECUTORS_MAX:
            limit = f"a node has 1 to {config.EXECUTORS_MAX}"
            raise RequestError(f"{self.executors} executors in {self.slots} slots; {limit}")
        if self.workers is not None and self.workers < 1:
            raise RequestError(f"{self.workers} workers; a node's store has at least 1")

    def pack(self) -> str:
        """Return it as one word for a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def unpack(cls, text: str) -> Shape:
        """Return what `pack` wrote."""
        return cls(**json.loads(text))


def host_identity() -> str:
    """Return what is the same for all processes that can open each other's files and sockets by their paths."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return f"{boot}/{os.stat('/proc/self/ns/mnt').st_ino}"
