"""How a process on a host without a node of a cluster is a client there: through a gateway, which it starts or joins.

A gateway is a node with neither executors nor a store: it has the page that clients read, in which the cluster's
executors stand, a cache, and a control socket that asks on. So a client of it is a client like any other. All processes
of a user that connect to the same address with the same secret, or keys, share one, and it ends with the last of them.
Source: docs/decisions/0025.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloudburst import config, local
from cloudburst.control import Control
from cloudburst.errors import EnvironmentMismatch, NodeLost, RequestError
from cloudburst.introduction import control_endpoint, node_at
from cloudburst.keyring import use
from cloudburst.pickling import python_tag
from cloudburst.secret import Secret
from cloudburst.shape import Shape

if TYPE_CHECKING:
    from anna.keys import Keys

LOOK_PAUSE_S: Final = 0.005


def enter(address: str, token: str | None, client: int = 0, keys: Keys | None = None) -> local.Lease:
    """Return a lease on the gateway to the cluster of the node at `address`, whose secret `token` is, or with `keys`.

    Raises what `introduction.node_at` raises, and EnvironmentMismatch when the node runs another Python.
    """
    control_endpoint(address)
    if keys is not None:
        return through(address, None, _directory(address, f"{keys.cluster} {keys.directory}".encode()), client, keys)
    if token is None:
        raise RequestError(
            f"{address} is on another host: connect(…, token=…) takes the secret that its node keeps in a file of that"
            " name in its directory; where it has keys, connect(…, keys=…) or $ANNA_KEYS take some of its cluster"
        )
    secret = Secret(token)
    return through(address, secret, _directory(address, secret.lane_key), client)


def through(
    address: str, secret: Secret | None, directory: Path, client: int = 0,
    keys: Keys | Mapping[str, str] | None = None,
) -> local.Lease:  # fmt: skip
    """Do the same with a gateway in a directory that the caller chooses, and with `keys`, or their files by name."""
    shown = _shown(keys)
    record = node_at(address, secret, shown)
    if record.python != python_tag():
        raise EnvironmentMismatch(
            f"the node at {address} runs {record.python}, this process runs {python_tag()}: nothing can be sent there"
        )
    lease = local.ensure_shape(directory, Shape.of_gateway(address), client=client, secret=secret, keys=keys)
    if keys is not None and not isinstance(keys, Mapping):
        use(directory, keys.directory)
    try:
        _wait_until_met(lease, address)
        return lease
    except BaseException:
        lease.close()
        raise


def _shown(keys: Keys | Mapping[str, str] | None) -> Keys | None:
    """Return keys, given themselves or as files, which are nowhere yet."""
    if not isinstance(keys, Mapping):
        return keys
    from anna.keys import Keys, keep

    with tempfile.TemporaryDirectory() as place:
        keep(Path(place), keys)
        return Keys(place)


def _directory(address: str, who: bytes) -> Path:
    """Return where the gateway lives: another for each address, and each secret or keys."""
    own = local.default_directory()
    mark = hashlib.blake2b(who + address.encode(), digest_size=4).hexdigest()
    return own.with_name(f"{own.name}-{mark}")


def _wait_until_met(lease: local.Lease, address: str) -> None:
    """Wait until a node has said what its executors do."""
    control = Control(lease.control, random.SystemRandom().getrandbits(63) | 1)  # the client's own names are its own
    end = time.monotonic() + config.START_TIMEOUT_S
    try:
        while not any(node["met"] for node in control.ask("status", {}, config.CONTROL_TIMEOUT_S, lease.lost)["nodes"]):
            if time.monotonic() > end:
                raise NodeLost(f"no node of the cluster at {address} could be met in {config.START_TIMEOUT_S} s")
            time.sleep(LOOK_PAUSE_S)
    finally:
        control.close()
