"""What a registered function is, and the one place where functions are kept: the store.

A function's body is a pickle under the hash of its bytes, written once; its record, under its name, says which body,
for which Python, with which options, and is msgpack, so that it can be read and refused before anything is unpickled.
The names are one OR-set, so concurrent registrations both appear. All three live under reserved keys, which ordinary
clients cannot write; where there are keys, records are signed, and others refused (`cloudburst.signing`), and in the
store the one that is signed as later wins, so that an older one cannot be put back (`cloudburst.newest`).
Source: DESIGN §6, §7; reliability A2-12, A2-13 and §0 (a body of another Python segfaults).
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final

import msgpack

from cloudburst.config import CONCURRENT_CALLS_MAX, NAME_BYTES_MAX
from cloudburst.consistency.levels import level_of
from cloudburst.errors import EnvironmentMismatch, FunctionNotFound, NotSigned, ProtocolError, RequestError
from cloudburst.newest import Order

if TYPE_CHECKING:
    from cloudburst.signing import Signatures

PREFIX: Final = b"\x00cb/"
NAMES: Final = PREFIX + b"names"
SIGNED: Final = b"\x94"
"""What a signed record begins with: a list of four, where a record is a map."""


@dataclass(frozen=True, slots=True)
class FunctionOptions:
    """What a function's registration says about all of its calls; None leaves it to the call or the default."""

    timeout_s: float | None = None
    retries: int | None = None
    memory_bytes: int | None = None
    concurrency: int | None = None
    batch: int | None = None
    replicas: int | None = None
    session: str | None = None

    def __post_init__(self) -> None:
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise RequestError(f"timeout is {self.timeout_s} s; it must be positive")
        if self.retries is not None and self.retries < 0:
            raise RequestError(f"retries is {self.retries}; it must be 0 or more")
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            raise RequestError(f"memory is {self.memory_bytes} bytes; it must be positive")
        if self.concurrency is not None and not 1 <= self.concurrency <= CONCURRENT_CALLS_MAX:
            raise RequestError(
                f"concurrency is {self.concurrency}; it must be 1 to {CONCURRENT_CALLS_MAX} (concurrent_calls_max)"
            )
        if (self.concurrency or 1) > 1 and self.memory_bytes is not None:
            raise RequestError(
                f"concurrency is {self.concurrency} and memory {self.memory_bytes:,} bytes: calls that run beside each"
                " other in one process have no memory of their own that could be limited"
            )
        if self.batch is not None and not 2 <= self.batch <= CONCURRENT_CALLS_MAX:
            raise RequestError(f"batch is {self.batch}; it must be 2 to {CONCURRENT_CALLS_MAX} (concurrent_calls_max)")
        if self.batch is not None and (self.concurrency or 1) > 1:
            raise RequestError(f"batch is {self.batch}, concurrency {self.concurrency}; a function has one of the two")
        if self.replicas is not None and self.replicas < 1:
            raise RequestError(f"replicas is {self.replicas}; it must be 1 or more")
        if self.session is not None and level_of(self.session).at_epoch and self.batch is not None:
            raise RequestError(f"batch is {self.batch}, session {self.session!r}; a batch runs in no session")

    def require(self, name: str, coroutines: list[str]) -> None:
        """Raise RequestError unless a function with these coroutine functions in it can have these options."""
        if (self.concurrency or 1) > 1 and not coroutines:
            raise RequestError(
                f"concurrency is {self.concurrency}, and {name!r} is no coroutine function: a plain function that runs"
                " in a thread beside others cannot be stopped at its deadline; write it as `async def`"
            )

    def pack(self) -> list[Any]:
        """Return the options as plain data: what `FunctionOptions(*packed)` takes."""
        return [getattr(self, one.name) for one in fields(self)]


@dataclass(frozen=True, slots=True)
class FunctionRecord:
    """One version of one name: a function, a class, or a DAG, whose `graph` is a packed `graph.Graph`.

    `arities` are (least, most) positional arguments, of the function itself under "", of a class's methods by name;
    `paths` are directories that its imports may need; `poison`, if any, says why it is refused; `coroutines` are, named
    like arities, those that are coroutine functions; `modules` is the hash of the local modules that it needs. An alias
    has no more than the name and version that it stands for. `revision` counts the amendments of a version.
    """

    name: str
    version: int
    body: str
    code_tag: str
    created_us: int
    is_class: bool = False
    doc: str = ""
    signature: str = ""
    paths: tuple[str, ...] = ()
    options: FunctionOptions = field(default_factory=FunctionOptions)
    poison: str = ""
    arities: dict[str, tuple[int, int]] = field(default_factory=dict)
    graph: bytes = b""
    coroutines: tuple[str, ...] = ()
    modules: str = ""
    alias: str = ""
    alias_version: int = 0
    revision: int = 0

    @property
    def order(self) -> Order:
        """Where it stands among all records of its name, and of its version: what comes later is greater."""
        return self.version, self.revision

    def amended(self, **changes: Any) -> FunctionRecord:
        """Return the same version with changes, after this one."""
        return replace(self, revision=self.revision + 1, **changes)

    def concurrency(self) -> int:
        """Return how many of its calls may run beside each other on an executor's loop; 0: it does not run there.

        A class with coroutine methods runs there as a whole, so that only one thread touches its state. What has a
        memory limit, or takes batches, runs alone.
        """
        if not self.coroutines or self.options.memory_bytes is not None or self.options.batch is not None:
            return 0
        return self.options.concurrency or CONCURRENT_CALLS_MAX

    def pack(self) -> bytes:
        """Return the record as bytes."""
        plain = {
            "name": self.name, "version": self.version, "body": self.body, "code_tag": self.code_tag,
            "created_us": self.created_us, "is_class": self.is_class, "doc": self.doc, "signature": self.signature,
            "paths": self.paths, "poison": self.poison, "arities": self.arities, "graph": self.graph,
            "options": self.options.pack(), "coroutines": self.coroutines,
            "modules": self.modules, "alias": self.alias, "alias_version": self.alias_version,
            "revision": self.revision,
        }  # fmt: skip
        return bytes(msgpack.packb(plain))

    @classmethod
    def unpack(cls, data: bytes) -> FunctionRecord:
        """Return the record that `pack` wrote. Raises ProtocolError."""
        try:
            plain: dict[str, Any] = msgpack.unpackb(data)
            options = FunctionOptions(*plain.pop("options"))
            arities = {method: (least, most) for method, (least, most) in plain.pop("arities").items()}
            paths, coroutines = tuple(plain.pop("paths")), tuple(plain.pop("coroutines", ()))
            return cls(options=options, paths=paths, arities=arities, coroutines=coroutines, **plain)
        except (AttributeError, ValueError, TypeError, KeyError, RequestError) as fault:
            raise ProtocolError(f"{len(data)} bytes are not a function record: {fault}") from None

    def require(self, here: str) -> None:
        """Raise EnvironmentMismatch unless code made for `code_tag` can be loaded by the Python `here`."""
        if self.code_tag != here:
            raise EnvironmentMismatch(
                f"function {self.name!r} was made on {self.code_tag}; this executor runs {here}: nothing was loaded"
            )


def check_name(name: str) -> str:
    """Return `name`. Raises RequestError unless it is 1 to `name_bytes_max` bytes of printable text without '@'."""
    size = len(name.encode())
    if not 0 < size <= NAME_BYTES_MAX or not name.isprintable() or "@" in name:
        raise RequestError(
            f"{name!r} cannot name a function: printable text without '@', 1 to {NAME_BYTES_MAX} bytes; it has {size}"
        )
    return name


def body_hash(body: bytes) -> str:
    """Return the address of a body."""
    return hashlib.sha256(body).hexdigest()


class FunctionStore:
    """Records and bodies in the store, over a client that may use reserved keys. Blocking; raises `anna`'s errors.

    With `signatures`, records are written signed, and those that nobody has signed who may are refused (NotSigned);
    `refused` is told of each.
    """

    def __init__(
        self, kvs: Any, signatures: Signatures | None = None, refused: Callable[[NotSigned], None] = lambda _: None
    ) -> None:
        self._kvs = kvs
        self._signatures = signatures
        self._refused = refused

    @property
    def kvs(self) -> Any:
        """The store's client."""
        return self._kvs

    def find(self, name: str, version: int = 0) -> FunctionRecord | None:
        """Return the newest record of `name`, or the one of `version`; None when there is none."""
        record = self._read(f"record/{name}@{version}") if version else self._newest(name)
        return record if record is not None and record.body else None

    def _newest(self, name: str) -> FunctionRecord | None:
        """Return the newest record of `name`, also of a removed one.

        Where records are signed, that is the later one of what stands there and under its versions: their writer has
        ended in between, or somebody has put an older one back.
        """
        record = self._read(f"record/{name}")
        while record is not None and self._signatures is not None:
            try:
                later = self._read(f"record/{name}@{record.version + 1}")
            except NotSigned:
                break
            if later is None:
                break
            record = later
        return record

    def resolve(self, name: str, version: int = 0) -> tuple[FunctionRecord, str]:
        """Return the record that a call of `name` means and, when `name` is `Class.method`, the method.

        An alias means what it stands for. Raises FunctionNotFound, and says which names are close.
        """
        record = self._follow(self.find(name, version))
        if record is not None:
            return record, ""
        owner, _, method = name.rpartition(".")
        record = self._follow(self.find(owner, version)) if owner else None
        if record is not None and record.is_class and method[:1] != "_":
            return record, method
        at = f" in version {version}" if version else ""
        close = difflib.get_close_matches(name, self.names(), 3)
        hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
        raise FunctionNotFound(f"no function is registered as {name!r}{at}{hint}")

    def _follow(self, record: FunctionRecord | None) -> FunctionRecord | None:
        return self.find(record.alias, record.alias_version) if record is not None and record.alias else record

    def versions(self, name: str) -> list[FunctionRecord]:
        """Return every version of a name, oldest first. Raises FunctionNotFound."""
        newest = self.find(name)
        if newest is None:
            raise FunctionNotFound(f"no function is registered as {name!r}")
        found = (self.find(name, version) for version in range(1, newest.version + 1))
        return [record for record in found if record is not None]

    def _read(self, key: str) -> FunctionRecord | None:
        data = self._kvs.get(PREFIX + key.encode(), None)
        return None if data is None else self._believed(key, bytes(data))

    def _believed(self, key: str, data: bytes) -> FunctionRecord:
        """Return the record in what the store holds under a key. Raises NotSigned, ProtocolError."""
        if data[:1] != SIGNED and self._signatures is None:
            return FunctionRecord.unpack(data)
        from cloudburst.signing import unwrap

        try:
            packed, signature, certificates = unwrap(data)
            if self._signatures is not None:
                self._signatures.check(packed, signature, certificates)
            record = FunctionRecord.unpack(packed)
            if key not in (f"record/{record.name}", f"record/{record.name}@{record.version}"):
                raise NotSigned(f"it is that of {record.name!r}, version {record.version}")
            if self._signatures is not None:
                self._signatures.see(key, record.order)
            return record
        except NotSigned as fault:
            told = f"what the store holds as {key.removeprefix('record/')!r} is refused: {fault}; register it again"
            refusal = NotSigned(told)
            self._refused(refusal)
            raise refusal from None

    def _write(self, key: str, record: FunctionRecord) -> None:
        data, stored = record.pack(), PREFIX + key.encode()
        if self._signatures is None:
            self._kvs.put(stored, data)
            return
        import anna

        later = tuple(-part for part in record.order)  # the least wins
        state = anna.Priority(later, self._signatures.sign(data))  # type: ignore[attr-defined,unused-ignore]
        try:
            self._kvs.put(stored, state)
            if self._stands(key, record.order):
                return
        except anna.LatticeTypeMismatch:  # written without keys, or by somebody who should not
            pass
        self._kvs.delete(stored)
        self._kvs.put(stored, state)

    def _stands(self, key: str, order: Order) -> bool:
        """Whether what is believed stands under a key, and nothing older."""
        data = self._kvs.get(PREFIX + key.encode(), None)
        try:
            return data is not None and self._believed(key, bytes(data)).order >= order
        except (NotSigned, ProtocolError):
            return False

    def body(self, address: str) -> bytes | None:
        """Return the body with this hash. Raises ProtocolError when the bytes are not what the hash says."""
        data = self._kvs.get(PREFIX + b"body/" + address.encode(), None)
        if data is not None and body_hash(data) != address:
            raise ProtocolError(f"the stored function body has the hash {body_hash(data)}; its address is {address}")
        return data if data is None else bytes(data)

    def put_body(self, body: bytes) -> str:
        """Store a body and return its hash. The same body is the same key, so this may be repeated."""
        address = body_hash(body)
        self._kvs.put(PREFIX + b"body/" + address.encode(), body)
        return address

    def put(self, record: FunctionRecord) -> None:
        """Make `record` the newest of its name."""
        import anna

        self.amend(record)
        self._write(f"record/{record.name}", record)
        self._kvs.put(NAMES, anna.ORSet(add={record.name}))  # type: ignore[attr-defined,unused-ignore]

    def amend(self, record: FunctionRecord) -> None:
        """Replace one version of a name, whichever is the newest."""
        self._write(f"record/{record.name}@{record.version}", record)

    def remove(self, record: FunctionRecord) -> None:
        """Forget a name. Its versions stay, for calls that have begun with them; their numbers are not used again."""
        import anna

        self._kvs.put(NAMES, anna.ORSet(remove={record.name}))  # type: ignore[attr-defined,unused-ignore]
        self._write(f"record/{record.name}", record.amended(body=""))

    def names(self) -> list[str]:
        """Return every registered name, in order."""
        return sorted(self._kvs.get(NAMES, set()))

    def all(self) -> list[FunctionRecord]:
        """Return the newest record of every name, by name, but those that are refused."""
        found = (self.standing(name) for name in self.names())
        return [record for record in found if record is not None]

    def standing(self, name: str) -> FunctionRecord | None:
        """Return the newest record of `name`; None also for one that is refused, in whose place another may come."""
        try:
            return self.find(name)
        except NotSigned:
            return None

    def newer(self, record: FunctionRecord) -> FunctionRecord:
        """Return `record` as the next version of its name, or the newest one when that is the same and not poisoned."""
        try:
            before = self._newest(record.name)
        except NotSigned:
            return replace(record, version=self._unused(record.name))
        if before is None:
            return replace(record, version=1 if self._signatures is None else self._unused(record.name))
        same = replace(record, version=before.version, created_us=before.created_us, revision=before.revision)
        return before if same == before else replace(record, version=before.version + 1)

    def _unused(self, name: str) -> int:
        """Return a version that nobody who may has given to a record of a name whose newest is refused."""
        version = 1
        if self._signatures is not None:
            version += self._signatures.seen(f"record/{name}")[0]
        while self._kvs.get(PREFIX + f"record/{name}@{version}".encode(), None) is not None:
            version += 1
        return version
