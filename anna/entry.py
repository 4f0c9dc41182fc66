"""How a program reaches a store: `anna.connect`, and a default client for scripts and notebooks.

The one rule: where no address is given, the embedded cluster of this user is started or joined, and it stops with its
last user.
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import Any

from anna.client import Client
from anna.config import TIMEOUT_S


def connect(
    address: str | None = None,
    *,
    timeout: float = TIMEOUT_S,
    allow_pickle: bool = True,
    ack: str | int | None = None,
    system: bool = False,
    keys: str | os.PathLike[str] | None = None,
) -> Client:
    """Return a client of the cluster at `address`, or of the embedded one.

    `address` is `unix:PATH` or `tcp://HOST:PORT` of any worker. `timeout` is the deadline of each call, in seconds,
    unless the call names its own. `allow_pickle=False` refuses to load pickles (NeedsPickle). `ack` is how safe a write
    must be before it is acknowledged: "memory" (one copy), a number of copies, "disk"; None: as the cluster does.
    `keys` is the directory of the keys to show on TCP (None: `$ANNA_KEYS`); made by `anna keys`.
    Raises NoWorkers when nothing answers, NotAdmitted when these keys are refused, BadKeys.
    """
    address = address or os.environ.get("ANNA_ADDRESS")
    if address is not None:
        return Client((address,), timeout=timeout, allow_pickle=allow_pickle, system=system, ack=ack, keys=keys)
    from anna import local

    lease = local.ensure()
    try:
        return Client(lease.addresses, timeout=timeout, allow_pickle=allow_pickle, system=system, ack=ack, lease=lease)
    except BaseException:
        lease.close()
        raise


_default: Client | None = None
_default_pid = 0
_lock = threading.Lock()


def default() -> Client:
    """Return this process's default client, connecting it at first use."""
    global _default, _default_pid
    if _default is not None and not _default.closed and _default_pid == os.getpid():
        return _default
    with _lock:
        if _default is None or _default.closed or _default_pid != os.getpid():
            _default, _default_pid = connect(), os.getpid()
            atexit.register(_default.close)
        return _default


def get(key: str | bytes, *default_value: Any) -> Any:
    """`Client.get` of the default client."""
    return default().get(key, *default_value)


def put(key: str | bytes, value: Any, **options: Any) -> Any:
    """`Client.put` of the default client."""
    return default().put(key, value, **options)


def delete(key: str | bytes) -> bool:
    """`Client.delete` of the default client."""
    return default().delete(key)
