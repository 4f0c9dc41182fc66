"""The embedded node: `ensure()` joins the node of a private directory, or starts it.

The one rule: a node lives as long as somebody holds a lease on it, a connection that ends with the process that holds
it; a forked child does not hold its parent's. Starting and joining happen under the directory's lock
(`anna.rundir`), so two that start at once get one node. Source: anna/local.py, whose twin this is.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import socket
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack

from anna.errors import AnnaError
from anna.keyplaces import INHERITED
from anna.rundir import LOG, RunDirectory
from cloudburst import config
from cloudburst.errors import EnvironmentMismatch, NodeLost
from cloudburst.keyring import OWN_FILES, VARIABLE, give
from cloudburst.page import Page
from cloudburst.secret import Secret
from cloudburst.shape import Shape
from cloudburst.version import RELEASE, layout

if TYPE_CHECKING:
    from anna.keymemory import Held
    from anna.keys import Keys

LEASE_PROTOCOL: Final = 1
READY: Final = b"ready"
LOG_TAIL_BYTES: Final = 2000
"""Where a node finds keys that are in memory alone (`anna.keymemory`)."""
STALE_S: Final = 2.0
"""How long who would start a node waits for the end of one of another version, which may have lost its last user."""
STALE_LOOK_S: Final = 0.5
"""How often it looks: no more often, for a look is a use, and a node lingers after each."""

# Found as this process found it, and without the working directory on the path, where a file of the user's could have
# the name of a module of the library.
_PROGRAM: Final = """
import sys
sys.path.insert(0, sys.argv[1])
import cloudburst.daemon
sys.path.append(sys.path.pop(0))
cloudburst.daemon.main(sys.argv[2], sys.argv[3])
"""

_leases: weakref.WeakSet[Lease] = weakref.WeakSet()


def default_directory() -> Path:
    """Return `$CLOUDBURST_DIR`, or one beside the store's default, whose name says the layout of this copy's nodes.

    So one that runs there can be joined, or is about to end.
    """
    if named := os.environ.get("CLOUDBURST_DIR"):
        return Path(named).absolute()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    fits = os.path.isabs(runtime) and len(os.fsencode(runtime)) < 64 and os.access(runtime, os.W_OK)
    if fits and os.stat(runtime).st_uid == os.getuid():
        return Path(runtime, f"cloudburst-{layout()}")
    return Path(f"/tmp/cloudburst-{os.getuid()}-{layout()}")


class Lease:
    """A share in a running node: its page, its control endpoint, and the executor leases that came with it."""

    def __init__(
        self, connection: socket.socket, directory: Path, client: int, welcome: dict[str, Any], page: Page
    ) -> None:
        self._connection: socket.socket | None = connection
        self.directory = directory
        self.client = client
        self.page = page
        self.control: str = welcome["control"]
        self.executors: dict[int, int] = dict(welcome["leases"])
        self.lease_us: int = welcome["lease_us"]
        self.sandbox: str = welcome["sandbox"]
        self.pid: int = welcome["pid"]
        self.stays: bool = welcome["stays"]
        """Whether the node goes on without leases: somebody keeps it in the foreground."""
        _leases.add(self)

    @property
    def held(self) -> bool:
        """Whether this lease keeps the node: not after `close`, nor in a forked child."""
        return self._connection is not None

    def lost(self) -> bool:
        """Whether the node has ended under this lease."""
        if self._connection is None:
            return True
        try:
            return not self._connection.recv(64, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def stop(self) -> None:
        """Have the node end whoever uses it, once what runs there has ended, or had its time; twice: at once."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(msgpack.packb({"stop": True}))

    def close(self) -> None:
        """Give the lease back; the node stops shortly after its last one. Closing twice is harmless."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        self.close()


def _close_in_child() -> None:
    """Close the child's copies, which end nothing: the connections are open in the parent."""
    for lease in list(_leases):
        lease.close()


os.register_at_fork(after_in_child=_close_in_child)


def ensure(
    directory: str | os.PathLike[str] | None = None,
    executors: int | None = None,
    *,
    timeout_s: float = config.START_TIMEOUT_S,
    client: int = 0,
    sandbox: str | None = None,
    **asked: Any,
) -> Lease:
    """Join the node of `directory` (None: `default_directory`), or start it; return a lease on it.

    `executors` (None: one for each core that this process may use), `sandbox` (None: `$CLOUDBURST_SANDBOX`) and what
    else of a `Shape` is `asked` matter only to the one who starts it. Safe from threads. Raises NodeLost when the node
    does not start in time, and says what its log says; EnvironmentMismatch.
    """
    path = default_directory() if directory is None else Path(directory).absolute()
    return ensure_shape(path, Shape.of(executors, **asked), timeout_s=timeout_s, client=client, sandbox=sandbox)


def ensure_shape(
    path: Path, shape: Shape, *, timeout_s: float = config.START_TIMEOUT_S, client: int = 0,
    sandbox: str | None = None, secret: Secret | None = None, keys: Keys | Held | Mapping[str, str] | None = None,
) -> Lease:  # fmt: skip
    """Do the same for a node of a shape, which shares a `secret` with nodes on other hosts.

    `keys` are those that it shows to them; given as files by name, they are in its directory while it lives; held in
    memory, they are in its memory, and the lesser ones in its directory.
    """
    deadline = time.monotonic() + timeout_s
    stale_until = time.monotonic() + STALE_S
    try:
        while True:
            opened = RunDirectory.make(path)
            try:
                opened.lock(deadline)
                if not opened.is_current():
                    continue  # a node that just stopped took the directory with it
                lease = _join(opened, deadline, client)
                return lease if lease is not None else _start(opened, shape, sandbox, deadline, client, secret, keys)
            except EnvironmentMismatch:
                if time.monotonic() >= stale_until:
                    raise
            finally:
                opened.close()
            time.sleep(STALE_LOOK_S)  # it ends soon if nobody uses it any more
    except AnnaError as fault:
        raise NodeLost(f"the local node: {fault}") from fault


def join(
    directory: str | os.PathLike[str] | None = None, *, timeout_s: float = config.START_TIMEOUT_S, client: int = 0
) -> Lease | None:
    """Return a lease on the node that runs in `directory`; None when there is none. Nothing is started.

    `client` is who the caller has been on another node.
    """
    path = default_directory() if directory is None else Path(directory).absolute()
    deadline = time.monotonic() + timeout_s
    try:
        opened = RunDirectory(path)
    except FileNotFoundError:
        return None
    except AnnaError as fault:
        raise NodeLost(f"the local node: {fault}") from fault
    try:
        opened.lock(deadline)
        return _join(opened, deadline, client) if opened.is_current() else None
    finally:
        opened.close()


def _join(directory: RunDirectory, deadline: float, client: int = 0) -> Lease | None:
    """Take a lease from a running node. Needs the lock."""
    found = directory.connect_lease(deadline)
    if found is None:
        return None
    connection, greeting = found
    client = client or random.SystemRandom().getrandbits(63) | 1
    try:
        said = msgpack.unpackb(greeting)
        if (said.get("protocol"), said.get("layout")) != (LEASE_PROTOCOL, layout()):
            raise _of_another_version(directory, said)
        connection.send(msgpack.packb({"client": client, "pid": os.getpid()}))
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        data, fds, _, _ = socket.recv_fds(connection, 1 << 16, 1, socket.MSG_CMSG_CLOEXEC)
        connection.settimeout(None)
        if not fds:
            raise NodeLost(f"the node in {directory.path} ended while it was being joined")
        page = _map(fds[0])
        return Lease(connection, directory.path, client, msgpack.unpackb(data, strict_map_key=False), page)
    except BaseException:
        connection.close()
        raise


def _of_another_version(directory: RunDirectory, said: dict[str, Any]) -> EnvironmentMismatch:
    theirs = f"version {said['release']}" if said.get("release") else "another version"
    return EnvironmentMismatch(
        f"the node in {directory.path} (pid {said.get('pid')}) runs {theirs} of cloudburst, whose memory is laid out"
        f" otherwise than in this one ({RELEASE}): end it (kill {said.get('pid')}), or choose another directory"
        " (CLOUDBURST_DIR)"
    )


def _map(fd: int) -> Page:
    try:
        return Page(mmap.mmap(fd, 0, prot=mmap.PROT_READ))
    finally:
        os.close(fd)


def _start(
    directory: RunDirectory, shape: Shape, sandbox: str | None, deadline: float, client: int, secret: Secret | None,
    keys: Keys | Held | Mapping[str, str] | None,
) -> Lease:  # fmt: skip
    """Start a node, wait until it is ready, and take the first lease. Needs the lock."""
    directory.sweep_sockets()
    try:
        environment = _environment(sandbox)
        if secret is not None:
            secret.keep(directory.path)
        held = -1
        if isinstance(keys, Mapping):
            give(directory.path, keys, environment)
        elif keys is not None:
            held = _show(keys, directory, environment)
        answer = _spawn(directory, shape, environment, deadline, held)
    except BaseException:
        directory.sweep(OWN_FILES)
        raise
    if answer == READY:
        lease = _join(directory, deadline, client)
        if lease is not None:
            return lease
    reason = answer.decode(errors="replace") or "it ended without a word" + directory.log_tail(LOG_TAIL_BYTES)
    directory.sweep(OWN_FILES)
    raise NodeLost(f"the local node in {directory.path} did not start: {reason}")


def _show(keys: Keys | Held, directory: RunDirectory, environment: dict[str, str]) -> int:
    """Have a node show keys; return the descriptor at which it is to be given them, -1 for those in a directory."""
    from anna.keymemory import Held

    if isinstance(keys, Held):
        give(directory.path, keys, environment)
        return keys.fd
    environment[VARIABLE] = keys.directory
    return -1


def _environment(sandbox: str | None) -> dict[str, str]:
    """Return the environment of a node to be. Raises EnvironmentMismatch when its sandbox cannot be had here."""
    from cloudburst.executor.limits import clean_environment
    from cloudburst.sandbox import VARIABLE, parse, require

    environment = clean_environment(os.environ)
    if sandbox is not None:
        environment[VARIABLE] = sandbox
    confined = parse(environment.get(VARIABLE))
    if confined is not None:
        require(confined)
    return environment


def _spawn(
    directory: RunDirectory, shape: Shape, environment: dict[str, str], deadline: float, held: int
) -> bytes:
    """Start the program, in a session of its own; return what it said, at most until `deadline`.

    `held` is the descriptor of keys in memory that it is given, -1 for none.
    """
    if not sys.executable:
        raise NodeLost("cannot start a local node: this Python does not know its executable")
    root = str(Path(__file__).resolve().parent.parent)
    arguments = [sys.executable, "-P", "-c", _PROGRAM, root, str(directory.path), shape.pack()]
    answer, said = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.posix_spawn(
            sys.executable,
            arguments,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, said, 1),
                (os.POSIX_SPAWN_OPEN, 2, directory.file(LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                *([(os.POSIX_SPAWN_DUP2, held, INHERITED)] if held >= 0 else []),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP},
        )
        os.close(said)
        said = -1
        _reap(pid)
        return _read_by(answer, deadline)
    finally:
        os.close(answer)
        if said >= 0:
            os.close(said)


def _reap(pid: int) -> None:
    """Wait for the intermediate process, which ends as soon as it has forked the daemon."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # this process ignores SIGCHLD, so the kernel reaps


def _read_by(fd: int, deadline: float) -> bytes:
    """Return what arrives until the end of the pipe or the deadline."""
    import select

    said = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while poll.poll(max(0, int((deadline - time.monotonic()) * 1000))):
        data = os.read(fd, 4096)
        if not data:
            return said
        said += data
    return said or b"it was not ready in time"
