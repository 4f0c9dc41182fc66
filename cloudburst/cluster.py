"""Several nodes that are started together: `up()`, and what it returns.

The one rule: whoever started them holds their leases, so they end with it, however it ends. Each node has executors, a
cache and a store of its own, in a directory of its own; the stores are one cluster, in which each key has copies on
two of them. Source: SURFACE (cb.up); DESIGN §6.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloudburst import config, local
from cloudburst.client import Client
from cloudburst.errors import NodeLost, NotSupported, RequestError
from cloudburst.membership import Membership
from cloudburst.processes import stop, wait_for_end
from cloudburst.running import PREFIX, runtime_directory
from cloudburst.shape import Shape

COPIES: Final = 2
"""Of each key, once there are two nodes."""
LOOK_PAUSE_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class Host:
    """One node of a cluster: `address` is what `connect` and `cb node --join` take."""

    name: str
    address: str
    pid: int
    executors: int


class Cluster:
    """Nodes that run until `down`, the end of the `with` block, or the end of this process.

    Made by `up`. `client` is connected to the first of them.
    """

    def __init__(
        self, hosts: int, executors: int | None, workers: int, least: int | None = None, most: int | None = None
    ) -> None:
        share = max(1, len(os.sched_getaffinity(0)) // max(1, hosts))
        asked = executors if executors is not None or least is not None or most is not None else share
        self._shape = Shape.of(asked, least=least, most=most)
        self._executors = self._shape.executors
        self._workers = workers
        self._base = Path(tempfile.mkdtemp(prefix=PREFIX, dir=runtime_directory()))
        self._base.chmod(0o700 | stat.S_ISVTX)  # it goes with the last node, though this process be killed
        self._leases: dict[str, local.Lease] = {}
        self._made = 0
        self._client: Client | None = None
        self.ended: Callable[[], None] = lambda: None
        """Called when it begins to end."""
        try:
            self.scale(hosts)
        except BaseException:
            self.down()
            raise

    @property
    def hosts(self) -> list[Host]:
        """The nodes, oldest first."""
        return [
            Host(name, f"unix:{lease.directory}", lease.pid, self._executors) for name, lease in self._leases.items()
        ]

    @property
    def client(self) -> Client:
        """A client of the first node, and of the next one when that has ended."""
        if self._client is None:
            self._client = Client(self._join)
        return self._client

    @property
    def directory(self) -> Path:
        """Where the directories of its nodes are."""
        return self._base

    def _join(self) -> Membership:
        for lease in self._leases.values():
            if not lease.lost() and (joined := local.join(lease.directory)) is not None:
                return Membership(joined)
        raise NodeLost("every node of this cluster has ended")

    def scale(self, hosts: int) -> None:
        """Start or stop nodes until there are so many, newest first; return when all know each other.

        A node that is stopped takes no more calls, lets those end that run there (`drain_s`), and hands over its keys.
        """
        if hosts < 1:
            raise RequestError(f"{hosts} hosts; a cluster has at least 1")
        self._forget_ended()
        while len(self._leases) > hosts:
            name, lease = self._leases.popitem()
            stop(lease.pid, name)
            lease.close()
        while len(self._leases) < hosts:
            self._start()
        self._wait_until_met()

    def _forget_ended(self) -> None:
        for name, lease in list(self._leases.items()):
            if lease.lost():
                lease.close()
                del self._leases[name]

    def _start(self) -> None:
        name = f"host-{self._made}"
        self._made += 1
        asked: dict[str, Any] = {"workers": self._workers, "least": self._shape.least, "most": self._shape.most}
        if self._leases:
            asked["join"] = f"unix:{next(iter(self._leases.values())).directory}"
        else:
            asked |= {"own_store": True, "factor": COPIES}
        self._leases[name] = local.ensure(self._base / name, self._executors, **asked)

    def _wait_until_met(self) -> None:
        """Wait until each node can use the executors of all others."""
        end = time.monotonic() + config.START_TIMEOUT_S
        others = (len(self._leases) - 1) * self._executors
        while any(lease.page.foreign() < others for lease in self._leases.values()):  # there may be more: stand-ins
            if time.monotonic() > end:
                known = {name: lease.page.foreign() for name, lease in self._leases.items()}
                raise NodeLost(f"the nodes did not find each other within {config.START_TIMEOUT_S} s: {known}")
            time.sleep(LOOK_PAUSE_S)

    def down(self) -> None:
        """Stop every node, whoever uses it: calls that others run there have `drain_s` to end.

        Interrupted, it ends them at once. Stopping twice is harmless.
        """
        self.ended()
        client, self._client = self._client, None
        if client is not None:
            client.close()
        for lease in self._leases.values():
            lease.stop()
        try:
            for name, lease in self._leases.items():
                wait_for_end(lease.pid, name)
        except BaseException:
            for lease in self._leases.values():
                lease.stop()
            raise
        finally:
            for lease in self._leases.values():
                lease.close()
            self._leases.clear()
        shutil.rmtree(self._base, ignore_errors=True)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()


def start(
    hosts: int, on: str, executors: int | None, workers: int, least: int | None = None, most: int | None = None
) -> Cluster:
    """Return a cluster of so many nodes. Raises NotSupported, NodeLost."""
    if on != "local":
        raise NotSupported(f"nodes cannot be started on {on!r} yet; on='local' starts them on this machine")
    return Cluster(hosts, executors, workers, least, most)
