"""What can be read at epochs, as workers tell it, and how all of them are asked.

The one rule: an epoch is named with the digest of the view under which it became stable, for two sides of a partition
count the same epochs and hold different things (docs/decisions/0027). What all workers can read is the least of what
each can, and nothing where they name different views.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from anna.config import EPOCH_LEASE_US_MAX
from anna.errors import NoWorkers, ProtocolError, RequestTimeout, StaleReplica

if TYPE_CHECKING:
    from anna.client import Client

LEASE_S: Final = EPOCH_LEASE_US_MAX / 1e6
PAUSE_S: Final = 0.002

_ASKED: Final = struct.Struct("<QQ")
_ASKED_LEAST: Final = struct.Struct("<QQQ")
_TOLD: Final = struct.Struct("<QQQQ")


class Pinned(NamedTuple):
    """What can be read: `epoch` and its `view`; view 0: nothing yet. `oldest` is the first that can, `running` runs."""

    epoch: int
    view: int
    oldest: int
    running: int

    @property
    def snapshot(self) -> tuple[int, int]:
        """The newest stable epoch and the digest of its view: what reads at it name."""
        return self.epoch, self.view

    @classmethod
    def from_wire(cls, payload: bytes) -> Pinned:
        """Return what a worker has answered. Raises ProtocolError."""
        if len(payload) != _TOLD.size:
            raise ProtocolError(f"a pin is answered in {_TOLD.size} bytes, got {len(payload)}")
        return cls(*_TOLD.unpack(payload))

    @classmethod
    def of_all(cls, told: Iterable[Pinned]) -> Pinned:
        """Return what all of these can read."""
        several = list(told)
        epoch, oldest = min(one.epoch for one in several), max(one.oldest for one in several)
        views = {one.view for one in several}
        view = views.pop() if len(views) == 1 and epoch >= oldest else 0
        return cls(epoch, view, oldest, max(one.running for one in several))


def pin(client: Client, epoch: int, lease: float, least: int, timeout: float | None) -> Pinned:
    """Ask each worker, of the view that the client has, to keep epochs readable: `Client.pin`."""
    end = time.monotonic() + (client.timeout if timeout is None else timeout)
    lease_us = round(lease * 1e6)
    payload = _ASKED_LEAST.pack(epoch, lease_us, least) if least else _ASKED.pack(epoch, lease_us)
    while True:
        view = client.view
        if not view.workers:
            raise NoWorkers("the view names no worker")
        try:
            told = [Pinned.from_wire(client.pin_at(place, payload, timeout)) for place in range(len(view.workers))]
            if client.view is view:
                return Pinned.of_all(told)
        except StaleReplica:
            if time.monotonic() >= end:
                raise RequestTimeout(f"epoch {least} has not become stable before the deadline") from None
            time.sleep(PAUSE_S)
