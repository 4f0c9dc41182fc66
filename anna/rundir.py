"""The private directory of a local cluster: its sockets, its log, and the lock for starting and stopping.

The one rule: whoever starts, joins or stops the cluster of a directory holds the directory's lock (`flock`
on the directory itself, so there is no lock file to leave behind). Hence nobody joins a cluster that is
about to stop, and two that find none start one. Names are resolved in the directory that was locked, not by
its path, so a cluster whose directory was removed under it never touches its successor's files. Source:
docs/decisions/0002.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

from anna.address import UNIX_PATH_BYTES_MAX
from anna.errors import UnavailableError

LEASE_SOCKET: Final = "lease.sock"
LOG: Final = "log"

LEASE_PROTOCOL: Final = 1
"""Version of a supervisor's greeting to a lease: msgpack of {protocol, pid, view}."""

DIRECTORY_BYTES_MAX: Final = UNIX_PATH_BYTES_MAX - len("/lease.sock")
"""Longest path of a cluster's directory: the path of a socket in it must fit the address of a Unix socket."""

LOCK_RETRY_S: Final = 0.002

MAKE_ATTEMPTS_MAX: Final = 100

GREETING_BYTES_MAX: Final = 1 << 20
"""Longest first message of a supervisor to a lease: its view."""


class BadDirectory(UnavailableError, OSError):
    """The directory cannot hold a private cluster: another user could reach it, or its path is too long."""


def default_directory() -> Path:
    """Return `$ANNA_DIR`, or `anna` in this user's own `$XDG_RUNTIME_DIR`, or `/tmp/anna-UID`."""
    if named := os.environ.get("ANNA_DIR"):
        return Path(named).absolute()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and len(os.fsencode(runtime)) + len("/anna") <= DIRECTORY_BYTES_MAX:
        try:
            if os.stat(runtime).st_uid == os.getuid():
                return Path(runtime, "anna")
        except OSError:
            pass
    return Path(f"/tmp/anna-{os.getuid()}")


def worker_socket(seat: int) -> str:
    """Return the name of a worker's socket in the directory."""
    return f"w{seat}.sock"


class RunDirectory:
    """An open, verified directory.

    One that `make` created carries the sticky bit, which means nothing else here: such a directory is
    removed with its cluster, whichever process comes to do it; a directory of the user's own is left empty. The last
    of several in one that was made for them in the same way removes that, too.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`. Raises BadDirectory unless it is a directory that this user alone can reach."""
        self.path = path
        _check_length(path)
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except NotADirectoryError:
            raise BadDirectory(f"{path} is not a directory (a symbolic link is not followed)") from None
        except PermissionError:
            raise BadDirectory(f"{path} cannot be opened by user {os.getuid()}: set ANNA_DIR") from None
        try:
            _check_private(path, os.fstat(self.fd))
        except BaseException:
            os.close(self.fd)
            raise

    @classmethod
    def make(cls, path: Path) -> RunDirectory:
        """Create `path` with mode 0700 if it is not there; return it open. Its parent must exist."""
        _check_length(path)
        for _ in range(MAKE_ATTEMPTS_MAX):
            try:
                os.mkdir(path, 0o700 | stat.S_ISVTX)
            except FileExistsError:
                pass
            except OSError as error:
                raise BadDirectory(f"cannot make the cluster's directory {path}: {error.strerror}") from None
            try:
                return cls(path)
            except FileNotFoundError:
                continue  # a cluster that stopped just now removed it
        raise BadDirectory(f"the cluster's directory {path} keeps being removed")

    def close(self) -> None:
        """Close the directory, which also gives up the lock. Closing twice is harmless."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def reopen(self) -> None:
        """In a forked child: part with the parent's open directory, whose lock is the parent's too."""
        own = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        self.close()
        self.fd = own

    def unlock(self) -> None:
        """Give up the lock."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def try_lock(self) -> bool:
        """Take the lock unless another process or thread holds it; say whether it was taken."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock(self, deadline: float) -> None:
        """Take the lock by `deadline` (of `time.monotonic`). Raises UnavailableError."""
        while not self.try_lock():
            if time.monotonic() >= deadline:
                raise UnavailableError(f"another process has been starting or stopping the cluster in {self.path}")
            time.sleep(LOCK_RETRY_S)

    def is_current(self) -> bool:
        """Whether the path still leads to this directory, which may have been removed meanwhile."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        here = os.fstat(self.fd)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def file(self, name: str) -> str:
        """Return the path of a file in the directory."""
        return str(self.path / name)

    def connect_lease(self, deadline: float) -> tuple[socket.socket, bytes] | None:
        """Return a lease (a connection to the running supervisor) and its greeting; None when none runs.

        Needs the lock. Raises UnavailableError when the supervisor does not answer by `deadline`.
        """
        while True:
            lease = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                lease.settimeout(max(0.001, deadline - time.monotonic()))
                lease.connect(self.file(LEASE_SOCKET))
                if greeting := lease.recv(GREETING_BYTES_MAX):
                    lease.settimeout(None)
                    return lease, greeting
            except (FileNotFoundError, ConnectionRefusedError):
                lease.close()
                return None
            except ConnectionError:
                pass  # it died between the connection and the greeting
            except TimeoutError:
                lease.close()
                raise UnavailableError(f"the supervisor in {self.path} runs but does not answer") from None
            except BaseException:
                lease.close()
                raise
            lease.close()

    def sweep_sockets(self) -> None:
        """Remove the sockets and the log that a killed supervisor left. Needs the lock, and no supervisor."""
        for name in os.listdir(self.fd):
            if name == LOG or (name.endswith(".sock") and self._is_socket(name)):
                _unlink(name, self.fd)

    def sweep(self, also: Collection[str] = ()) -> None:
        """Do `sweep_sockets`, remove what is `also` the cluster's, and the directory if `make` made it.

        Of `also`, a name that ends with a slash is that of a directory, which is empty by then.
        """
        self.sweep_sockets()
        for name in also:
            _remove(name, self.fd) if name.endswith("/") else _unlink(name, self.fd)
        if os.fstat(self.fd).st_mode & stat.S_ISVTX and self.is_current():
            try:
                os.rmdir(self.path)
                _remove_if_made(self.path.parent)
            except OSError:
                pass  # somebody keeps files of his own here

    def sweep_if_abandoned(self, deadline: float, also: Collection[str] = ()) -> bool:
        """Sweep after a supervisor that died without doing so; say whether it had."""
        self.lock(deadline)
        found = self.connect_lease(deadline)
        if found is not None:
            found[0].close()
            return False
        self.sweep(also)
        return True

    def log_tail(self, size: int) -> str:
        """Return the end of the log, on lines of its own; nothing when there is none."""
        try:
            with open(self.file(LOG), "rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - size))
                return "\n" + log.read().decode(errors="replace")
        except OSError:
            return ""

    def _is_socket(self, name: str) -> bool:
        try:
            return stat.S_ISSOCK(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False


def _remove(name: str, directory: int) -> None:
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError:
        pass  # there is none, or somebody keeps files of his own in it


def _unlink(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass


def _remove_if_made(path: Path) -> None:
    """Remove a directory that was made for directories of clusters, private and sticky like theirs, if it is empty."""
    found = os.lstat(path)
    if found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == 0o700 | stat.S_ISVTX:
        os.rmdir(path)


def _check_length(path: Path) -> None:
    size = len(os.fsencode(path))
    if size > DIRECTORY_BYTES_MAX:
        limit = f"directory_bytes_max is {DIRECTORY_BYTES_MAX}, because the path of a Unix socket is short"
        raise BadDirectory(f"the cluster's directory {path} has a path of {size} bytes; {limit}: set ANNA_DIR")


def _check_private(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.getuid():
        raise BadDirectory(f"{path} belongs to user {found.st_uid}, this is user {os.getuid()}: set ANNA_DIR")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise BadDirectory(f"{path} has mode {mode:04o}, others could reach it; it must be 0700: chmod 700 {path}")
