"""The keys of one host or user: whom it believes (authorities), who it is (a certificate), and its private key.

The one rule: who holds keys speaks TLS 1.3 on every TCP stream, shows its certificate and looks at the other's, and
never falls back to plain bytes. A certificate names its cluster and one right: `data` (read and write), `code` (also
what runs: the reserved keys), `admin` (also be a node); each includes those before it. Only an `admin` one may listen.

A directory of keys has three files that nobody else can read: `authorities.pem`, `certificate.pem`, `key.pem`. They are
read again when they have changed, so keys are renewed under a running node. `anna.authority` makes them. A node whose
keys were made for it has them in no directory, but in memory (`anna.keymemory`); what is said of a directory here is
true of that place, too. Source: decision records 0037, 0049; reliability.md D.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final, NamedTuple, Protocol

from anna.errors import RequestError
from anna.gate import Right
from anna.keyplaces import descriptor_of

AUTHORITIES: Final = "authorities.pem"
CERTIFICATE: Final = "certificate.pem"
PRIVATE: Final = "key.pem"
FILES: Final = (AUTHORITIES, CERTIFICATE, PRIVATE)

CODE: Final = "code"
"""The directory, in one of right `admin`, of the keys that users' functions have there, whose right is `code`."""

ENVIRONMENT: Final = "ANNA_KEYS"
"""The variable that names the directory of keys where none is given."""

LOOK_S: Final = 1.0
"""Pause between two looks whether the files have changed."""

REPLACED_S: Final = 0.5
"""How long files that do not belong together are looked at again: somebody may be replacing them."""


class BadKeys(RequestError, ValueError):
    """A directory holds no keys, keys that others can read, or keys that do not belong together."""


class Identity(NamedTuple):
    """Who a certificate says its holder is."""

    cluster: str
    name: str
    right: Right


class Place(Protocol):
    """Where keys are."""

    def state(self, *names: str) -> tuple[tuple[int, int], ...]:
        """Return what tells one state of some files (none: all) from another.

        Raises BadKeys, also for what others can read.
        """

    def read(self, name: str) -> bytes:
        """Return one of the files. Raises BadKeys."""

    def paths(self) -> AbstractContextManager[list[str]]:
        """Give what OpenSSL can open the three files at, in the order of FILES. Raises BadKeys."""


class InDirectory:
    """The place of keys in three files."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def state(self, *names: str) -> tuple[tuple[int, int], ...]:
        """Return what tells one state of the files from another, if only their owner can read them."""
        found = []
        for name in names or FILES:
            path = self._path / name
            try:
                state = path.stat()
            except OSError as error:
                told = f"{self._path} holds no keys: {name}: {error.strerror}"
                raise BadKeys(f"{told} (`anna keys new DIR` makes keys)") from None
            check_private(path, state)
            found.append((state.st_mtime_ns, state.st_ino))
        return tuple(found)

    def read(self, name: str) -> bytes:
        """Return one of the files. Raises BadKeys."""
        path = self._path / name
        try:
            check_private(path, path.stat())
            return path.read_bytes()
        except OSError as error:
            raise BadKeys(f"{self._path} holds no keys: {name}: {error.strerror}") from None

    @contextmanager
    def paths(self) -> Iterator[list[str]]:
        """Give where the files are."""
        yield [str(self._path / name) for name in FILES]


def place_of(directory: str | os.PathLike[str]) -> Place:
    """Return the place of keys that a directory is, or what stands for memory."""
    fd = descriptor_of(os.fspath(directory))
    if fd is not None:
        from anna.keymemory import InMemory

        return InMemory(fd)
    return InDirectory(Path(directory).absolute())


class Keys:
    """The keys in one directory, as TLS contexts for either side. Raises BadKeys.

    The contexts are `server` and `client`; each is new when the files are.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._place = place_of(directory)
        in_memory = descriptor_of(os.fspath(directory)) is not None
        self.directory = os.fspath(directory) if in_memory else str(self._place)
        """Where they are, as `Keys` takes it."""
        self._looked_at = monotonic()
        while True:
            self._seen = self._place.state()
            try:
                self._load()
                return
            except BadKeys:  # they may just be replaced, one after the other
                if monotonic() > self._looked_at + REPLACED_S:
                    raise
                sleep(REPLACED_S / 50)

    def _load(self) -> None:
        try:
            with self._place.paths() as paths:
                self._server = _context(ssl.PROTOCOL_TLS_SERVER, paths)
                self._client = _context(ssl.PROTOCOL_TLS_CLIENT, paths)
        except (ssl.SSLError, OSError) as error:
            raise BadKeys(f"the keys in {self._place} cannot be used: {error}") from None
        self._server.num_tickets = 0  # a session is never resumed, and nothing comes that was not asked for
        names = {_names(authority).get("organizationName", "") for authority in self._client.get_ca_certs()}
        if len(names) != 1 or not all(names):
            raise BadKeys(f"{AUTHORITIES} in {self._place} names {len(names)} clusters; it must be one")
        (self.cluster,) = names

    def _renew(self) -> None:
        """Read the files again if they have changed; what cannot be used is not taken up."""
        now = monotonic()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        try:
            seen = self._place.state()
            if seen != self._seen:
                self._load()
                self._seen = seen
        except BadKeys:
            return  # half written, or spoilt: the former keys go on until there are better ones

    @property
    def server(self) -> ssl.SSLContext:
        """What who accepts a connection speaks TLS with."""
        self._renew()
        return self._server

    @property
    def client(self) -> ssl.SSLContext:
        """What who dials speaks TLS with."""
        self._renew()
        return self._client

    @cached_property
    def holder(self) -> Identity:
        """Whose keys they are, as others will see it. Raises BadKeys."""
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE  # he shows himself to himself
        with self._place.paths() as (_, certificate, private):
            client.load_cert_chain(certificate, private, password=_no_password)
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        shown, seen = client.wrap_bio(back, there), self.server.wrap_bio(there, back, server_side=True)
        try:
            for side in (shown, seen, shown, seen):
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
            found = identity_of(seen.getpeercert() or {})
        except (ssl.SSLError, ValueError) as error:
            raise BadKeys(f"the keys in {self._place} are not believed by themselves: {error}") from None
        if found is None:
            raise BadKeys(f"{CERTIFICATE} in {self._place} names no cluster, holder and right")
        return found

    def __repr__(self) -> str:
        return f"Keys({str(self.directory)!r}, cluster {self.cluster})"


def keys_from(given: Keys | str | os.PathLike[str] | None) -> Keys | None:
    """Return keys, given themselves or as their directory; None: those in `$ANNA_KEYS`, if any. Raises BadKeys."""
    if isinstance(given, Keys):
        return given
    directory = given or os.environ.get(ENVIRONMENT)
    return Keys(directory) if directory else None


def check_private(path: Path, state: os.stat_result) -> None:
    """Raise BadKeys for a file that others than this user (or root) can read or have."""
    if state.st_mode & 0o077:
        mode = f"mode {state.st_mode & 0o777:o}"
        raise BadKeys(f"{path} belongs to keys and can be read by others ({mode}): chmod 600 {path}")
    if state.st_uid not in (os.geteuid(), 0):
        raise BadKeys(f"{path} belongs to user {state.st_uid}, and not to this one ({os.geteuid()})")


def write_private(path: Path, data: bytes) -> None:
    """Put a file in the place of what is there, readable by its owner alone from its first byte on."""
    _write_beside(path, data)
    os.replace(_beside(path), path)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _write_beside(path: Path, data: bytes) -> None:
    new = _beside(path)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(data)
        os.fsync(descriptor)


def check_names(files: Mapping[str, str]) -> None:
    """Raise BadKeys for files, by name, that are none of keys."""
    wrong = set(files) - {*FILES, *(f"{CODE}/{name}" for name in FILES)}
    if wrong:
        raise BadKeys(f"keys have the files {', '.join(FILES)}; these have {', '.join(sorted(wrong))}")


def keep(directory: Path, files: Mapping[str, str]) -> None:
    """Put the files of keys, by name, into a directory; its processes take them up within a second."""
    check_names(files)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in sorted(files):
        (directory / name).parent.mkdir(mode=0o700, exist_ok=True)
        _write_beside(directory / name, files[name].encode())
    for name in sorted(files):  # all at once, as far as that can be: who finds two that do not fit looks again
        os.replace(_beside(directory / name), directory / name)


def identity_of(certificate: Mapping[str, Any]) -> Identity | None:
    """Return who a certificate, as `ssl` decodes a verified one, says its holder is; None when it does not say."""
    names = _names(certificate)
    try:
        right = Right[names["organizationalUnitName"].upper()]
        return Identity(names["organizationName"], names["commonName"], right)
    except KeyError:
        return None


def _context(protocol: int, paths: list[str]) -> ssl.SSLContext:
    authorities, certificate, private = paths
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the cluster's authority vouches for a server, whatever its address is
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authorities)
    context.load_cert_chain(certificate, private, password=_no_password)
    return context


def _no_password() -> str:
    """Never ask at a terminal: a key that needs a password is refused."""
    return ""


def _names(certificate: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for part in certificate.get("subject", ()) for name, value in part}
