"""anna: a key-value store whose values are lattices, so that replicas merge instead of agreeing.

>>> import anna
>>> with anna.connect() as kvs:
...     _ = kvs.put("tags", anna.Set({"a"}))
...     _ = kvs.put("tags", anna.Set({"b"}))
...     sorted(kvs.get("tags"))
['a', 'b']
"""

from anna.ack import Ack
from anna.client import Client
from anna.entry import connect, default, delete, get, put
from anna.errors import (
    AnnaError,
    BadKey,
    Changed,
    ConnectionLost,
    DiskFull,
    KeyNotFound,
    LatticeTypeMismatch,
    NeedsPickle,
    NotAdmitted,
    NotSerializable,
    NotSupported,
    NoWorkers,
    Overloaded,
    ProtocolError,
    RequestError,
    RequestTimeout,
    SnapshotExpired,
    StaleReplica,
    StampAhead,
    UnavailableError,
    ValueTooLarge,
)
from anna.lattices import (
    LWW,
    Bool,
    Causal,
    Counter,
    Lattice,
    Map,
    Max,
    Min,
    OrderedSet,
    ORSet,
    Priority,
    Set,
    VectorClock,
)

__all__ = [
    "LWW",
    "Ack",
    "AnnaError",
    "BadKey",
    "Bool",
    "Causal",
    "Changed",
    "Client",
    "ConnectionLost",
    "Counter",
    "DiskFull",
    "KeyNotFound",
    "Lattice",
    "LatticeTypeMismatch",
    "Map",
    "Max",
    "Min",
    "NeedsPickle",
    "NoWorkers",
    "NotAdmitted",
    "NotSerializable",
    "NotSupported",
    "ORSet",
    "OrderedSet",
    "Overloaded",
    "Priority",
    "ProtocolError",
    "RequestError",
    "RequestTimeout",
    "Set",
    "SnapshotExpired",
    "StaleReplica",
    "StampAhead",
    "UnavailableError",
    "ValueTooLarge",
    "VectorClock",
    "connect",
    "default",
    "delete",
    "get",
    "put",
]
