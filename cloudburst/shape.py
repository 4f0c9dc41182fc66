"""What a node is to be: what its starter asks for, in one value that fits on a command line.

Source: anna/plan.py, whose twin this is.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from anna.address import TcpAddress, parse_address
from cloudburst import config
from cloudburst.errors import RequestError

if TYPE_CHECKING:
    from cloudburst.autoscaling import Scaler

LINGER_S: Final = 0.3
"""How long a node without leases waits for its next user."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A node with `executors` of its own, and `slots` in all for those that stand in while calls are nested.

    `linger_s` None keeps it when it has no leases. With `join`, the address of a node, it is one more beside that one,
    and its store one more node of that one's store, with `workers`. `own_store` gives it a store in its own directory
    that others can join, which keeps `factor` copies of each key. `listen`, tcp://HOST:PORT, lets nodes on other hosts
    join and use it; that takes a secret in its directory. With `least` and
    `most` it has as many executors as its calls keep busy (`cloudburst.autoscaling`), and begins with `executors`; the
    last goes after `idle_s` without a call. A `gateway` to the cluster of `join` has no executors and no store of its
    own: it is what a process on another host needs to be a client there.
    """

    executors: int
    slots: int = config.EXECUTORS_MAX
    linger_s: float | None = LINGER_S
    workers: int | None = None
    join: str = ""
    own_store: bool = False
    factor: int | None = None
    listen: str = ""
    least: int | None = None
    most: int | None = None
    idle_s: float = config.SCALE_IDLE_S
    gateway: bool = False

    @classmethod
    def of(
        cls, executors: int | None, *, join: str | None = None, least: int | None = None, most: int | None = None,
        **others: object,
    ) -> Shape:  # fmt: skip
        """Return a shape with one executor for each core where none are asked for. Raises RequestError.

        Of `least` and `most` one is enough: at least 1, at most one for each core.
        """
        count = len(os.sched_getaffinity(0)) if executors is None else executors
        if least is not None or most is not None:
            least = min(1, most or 1) if least is None else least
            most = max(count, least) if most is None else most
            count = min(max(count, least), most) if executors is not None else least
        return cls(count, join=join or "", least=least, most=most, **others)  # type: ignore[arg-type]

    def scaler(self) -> Scaler | None:
        """Return what decides how many executors there are; None when that is fixed."""
        if self.least is None or self.most is None:
            return None
        from cloudburst.autoscaling import Policy, Scaler

        return Scaler(self.least, self.most, Policy().for_idleness(self.idle_s))

    @classmethod
    def of_gateway(cls, address: str) -> Shape:
        """Return the shape of a gateway to the cluster of the node at an address."""
        return cls(0, join=address, gateway=True)

    @property
    def apart(self) -> bool:
        """Whether its store's workers are this node's own."""
        return not self.gateway and bool(self.join or self.own_store or self.listen)

    @property
    def meets_hosts(self) -> bool:
        """Whether it has to do with nodes on other hosts."""
        return bool(self.listen) or self.join.startswith("tcp:")

    @property
    def place(self) -> TcpAddress | None:
        """Where other hosts reach it."""
        return _tcp(self.listen) if self.listen else None

    def __post_init__(self) -> None:
        if self.gateway:
            return
        if self.least is not None and self.most is not None:
            if not 0 <= self.least <= self.executors <= self.most <= self.slots or not self.most:
                raise RequestError(
                    f"{self.least} to {self.most} executors, {self.executors} at first; there may be 0 or more, and at"
                    f" most {self.slots}"
                )
        elif not 1 <= self.executors <= self.slots <= config.EXECUTORS_MAX:
            limit = f"a node has 1 to {config.EXECUTORS_MAX}"
            raise RequestError(f"{self.executors} executors in {self.slots} slots; {limit}")
        if self.listen:
            _tcp(self.listen)
        if self.workers is not None and self.workers < 1:
            raise RequestError(f"{self.workers} workers; a node's store has at least 1")

    def pack(self) -> str:
        """Return it as one word for a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def unpack(cls, text: str) -> Shape:
        """Return what `pack` wrote."""
        return cls(**json.loads(text))


def _tcp(text: str) -> TcpAddress:
    try:
        place = parse_address(text)
    except ValueError as fault:
        raise RequestError(f"{text!r} is no address to listen at: {fault}") from None
    if not isinstance(place, TcpAddress) or place.host in ("0.0.0.0", "::"):
        raise RequestError(f"{text!r} is no address that others can connect to: tcp://HOST:PORT, port 0 for any")
    return place


def host_identity() -> str:
    """Return what is the same for all processes that can open each other's files and sockets by their paths.

    `$CLOUDBURST_HOST` says it where this cannot be seen, as in containers that share a kernel and nothing else.
    """
    if named := os.environ.get("CLOUDBURST_HOST"):
        return named
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return f"{boot}/{os.stat('/proc/self/ns/mnt').st_ino}"
