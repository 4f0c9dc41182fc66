"""cloudburst: functions that run next to their data, on a node that starts by itself.

>>> import cloudburst as cb
>>> client = cb.connect()
>>> _ = cb.register(lambda x: x * x, name="square")
>>> cb.call("square", 12)
144
>>> list(cb.map("square", range(4)))
[0, 1, 4, 9]
>>> client.close()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloudburst import aio
    from cloudburst.client import Client
    from cloudburst.cluster import Cluster, Host
    from cloudburst.context import Context, ctx
    from cloudburst.continuing import Continue
    from cloudburst.entry import (
        alias,
        call,
        connect,
        dag,
        default,
        delete,
        function,
        functions,
        get,
        map,
        mget,
        mput,
        options,
        put,
        register,
        session,
        spawn,
        status,
        up,
        versions,
        watch,
    )
    from cloudburst.errors import (
        Cancelled,
        CloudburstError,
        CostLimit,
        EnvironmentMismatch,
        ExecutorLost,
        FunctionError,
        FunctionNotFound,
        FunctionTimeout,
        InvalidDag,
        InvocationGone,
        MachinesNotObtained,
        MissingDependency,
        NodeLost,
        NoRoom,
        NotSerializable,
        NotSigned,
        NotSupported,
        OutOfMemory,
        Overloaded,
        ProtocolError,
        RequestError,
        ResultNotSerializable,
        SnapshotExpired,
        UnavailableError,
        ValueTooLarge,
    )
    from cloudburst.futures import Future
    from cloudburst.graph import AnyOf, Graph, any_of
    from cloudburst.optioned import Calls
    from cloudburst.pool import Executor
    from cloudburst.references import Ref
    from cloudburst.sessions import Session
    from cloudburst.tracing import trace
    from cloudburst.waiting import as_completed, gather, wait

_HOMES = {
    "entry": (
        "alias", "call", "connect", "dag", "default", "delete", "function", "functions", "get", "map", "mget", "mput",
        "options", "put", "register", "session", "spawn", "status", "up", "versions", "watch",
    ),
    "client": ("Client",),
    "cluster": ("Cluster", "Host"),
    "context": ("Context", "ctx"),
    "continuing": ("Continue",),
    "graph": ("AnyOf", "Graph", "any_of"),
    "errors": (
        "Cancelled", "CloudburstError", "CostLimit", "EnvironmentMismatch", "ExecutorLost", "FunctionError",
        "FunctionNotFound", "FunctionTimeout", "InvalidDag", "InvocationGone", "MachinesNotObtained",
        "MissingDependency", "NoRoom", "NodeLost", "NotSerializable", "NotSigned", "NotSupported", "OutOfMemory",
        "Overloaded", "ProtocolError", "RequestError", "ResultNotSerializable", "SnapshotExpired", "UnavailableError",
        "ValueTooLarge",
    ),
    "futures": ("Future",),
    "optioned": ("Calls",),
    "pool": ("Executor",),
    "references": ("Ref",),
    "sessions": ("Session",),
    "tracing": ("trace",),
    "waiting": ("as_completed", "gather", "wait"),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AnyOf", "Calls", "Cancelled", "Client", "CloudburstError", "Cluster", "Context", "Continue", "CostLimit",
    "EnvironmentMismatch", "Executor", "ExecutorLost", "FunctionError", "FunctionNotFound", "FunctionTimeout",
    "Future", "Graph", "Host", "InvalidDag", "InvocationGone", "MachinesNotObtained", "MissingDependency", "NoRoom",
    "NodeLost", "NotSerializable", "NotSigned", "NotSupported", "OutOfMemory", "Overloaded", "ProtocolError", "Ref",
    "RequestError", "ResultNotSerializable", "Session", "SnapshotExpired", "UnavailableError", "ValueTooLarge",
    "aio", "alias", "any_of", "as_completed", "call", "connect", "ctx", "dag", "default", "delete", "function",
    "functions", "gather", "get", "map", "mget", "mput", "options", "put", "register", "session", "spawn", "status",
    "trace", "up", "versions", "wait", "watch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that `import cloudburst` itself costs next to nothing."""
    if name == "aio":
        return importlib.import_module("cloudburst.aio")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'cloudburst' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"cloudburst.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
