"""The embedded cluster: `ensure()` joins the cluster of a private directory, or starts it.

The one rule: a cluster lives as long as somebody holds a lease on it. A lease is a connection to the
supervisor, so it ends with the process that holds it, whichever way that ends; a forked child does not hold
its parent's. Starting and joining happen under the directory's lock (`anna.rundir`), so two that start at
once get one cluster.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgpack

from anna.errors import ProtocolError, UnavailableError
from anna.keyplaces import INHERITED, MEMORY, descriptor_of
from anna.messages import NODE_WORKERS_MAX, View
from anna.plan import Wanted
from anna.rundir import LEASE_PROTOCOL, LOG, RunDirectory, default_directory

START_TIMEOUT_S: Final = 15.0
"""How long a start may take before it is given up."""
LOG_TAIL_BYTES: Final = 2000
"""How much of the log of a failed start goes into the error."""

# The package is found where this process found it, and the working directory is not on the path: a file of
# the user's there could have the name of a module of the library.
_PROGRAM: Final = """
import sys
sys.path.insert(0, sys.argv[1])
import anna.daemon
sys.path.append(sys.path.pop(0))
anna.daemon.main(sys.argv[2], sys.argv[3])
"""

_leases: weakref.WeakSet[Lease] = weakref.WeakSet()


class Lease:
    """A share in a running cluster. `view` is as it was at the beginning; `started`: this lease began it."""

    def __init__(self, fd: int, directory: Path, supervisor_pid: int, view: View, started: bool) -> None:
        self._fd = fd
        self.directory = directory
        self.supervisor_pid = supervisor_pid
        self.view = view
        self.started = started
        _leases.add(self)

    @property
    def address(self) -> str:
        """The address of one worker, from which the view can be had."""
        return self.addresses[0]

    @property
    def addresses(self) -> tuple[str, ...]:
        """The nearest address of each worker."""
        return tuple(worker.addresses[0] for worker in self.view.workers)

    @property
    def held(self) -> bool:
        """Whether this lease keeps the cluster: not after `close`, nor in a forked child."""
        return self._fd >= 0

    def close(self) -> None:
        """Give the lease back; the cluster stops shortly after its last one. Closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def again(self) -> Lease:
        """Return a new lease of the same cluster: what a forked child needs to keep it. Starts it if it has stopped."""
        return ensure(self.directory)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self.held else ", closed"
        return f"Lease({str(self.directory)!r}, {len(self.view.workers)} workers{state})"


def _close_in_child() -> None:
    """Close the child's copies, which end nothing: the connections are open in the parent."""
    for lease in list(_leases):
        lease.close()


os.register_at_fork(after_in_child=_close_in_child)


def ensure(
    directory: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    *,
    linger_s: float = 0.3,
    timeout: float = START_TIMEOUT_S,
    seeds: Sequence[str] = (),
    factor: int | None = None,
    listen: Sequence[str] = (),
    keys: str | None = None,
) -> Lease:
    """Join the cluster of `directory` (None: `rundir.default_directory`), or start it; return a lease on it.

    `workers` (None: one for each core that this process may use) and `linger_s`, how long the cluster
    outlives its last lease, matter only to the one who starts it. So do `seeds`: with them it is one node of the
    cluster whose workers are there; `factor`, how many copies that cluster keeps of a key; and `listen`, addresses at
    which others can reach it, and `keys`, the place of the keys that these are shown. Takes about 1 ms to join,
    150 ms to start. Safe from threads. Raises BadDirectory, and UnavailableError when the cluster does not start
    within `timeout` seconds.
    """
    path = default_directory() if directory is None else Path(directory).absolute()
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    if not 1 <= count <= NODE_WORKERS_MAX:
        raise ValueError(f"workers is {count}; it must be 1 to {NODE_WORKERS_MAX:,}")
    deadline = time.monotonic() + timeout
    while True:
        opened = RunDirectory.make(path)
        try:
            opened.lock(deadline)
            if not opened.is_current():
                continue  # a cluster that just stopped took the directory with it
            lease = _join(opened, deadline)
            if lease is not None:
                return lease
            wanted = Wanted(count, linger_s, tuple(seeds), factor, tuple(listen), keys)
            return _start(opened, wanted, deadline)
        finally:
            opened.close()


def join(directory: str | os.PathLike[str] | None = None, *, timeout: float = START_TIMEOUT_S) -> Lease | None:
    """Return a lease on the cluster that runs in `directory`; None when there is none. Nothing is started."""
    path = default_directory() if directory is None else Path(directory).absolute()
    deadline = time.monotonic() + timeout
    try:
        opened = RunDirectory(path)
    except FileNotFoundError:
        return None
    try:
        opened.lock(deadline)
        return _join(opened, deadline) if opened.is_current() else None
    finally:
        opened.close()


def _join(directory: RunDirectory, deadline: float, started: bool = False) -> Lease | None:
    """Take a lease from a running supervisor. Needs the lock."""
    found = directory.connect_lease(deadline)
    if found is None:
        return None
    connection, packed = found
    try:
        pid, view = _read_greeting(packed)
    except BaseException:
        connection.close()
        raise
    return Lease(connection.detach(), directory.path, pid, view, started)


def _read_greeting(packed: bytes) -> tuple[int, View]:
    try:
        greeting = msgpack.unpackb(packed)
        protocol, pid, view = greeting["protocol"], greeting["pid"], greeting["view"]
    except (ValueError, KeyError, TypeError):
        raise ProtocolError("what listens on the lease socket is not a supervisor of anna") from None
    if protocol != LEASE_PROTOCOL:
        raise ProtocolError(f"the running cluster speaks lease protocol {protocol}, this is {LEASE_PROTOCOL}")
    return int(pid), View.from_wire(view)


def _start(directory: RunDirectory, wanted: Wanted, deadline: float) -> Lease:
    """Start a supervisor, wait until it is ready, and take the first lease. Needs the lock."""
    directory.sweep_sockets()
    answer = _spawn(directory, wanted, deadline)
    if answer == b"ready":
        lease = _join(directory, deadline, started=True)
        if lease is not None:
            return lease
    reason = answer.decode(errors="replace") or "it ended without a word" + directory.log_tail(LOG_TAIL_BYTES)
    directory.sweep()
    raise UnavailableError(f"the local cluster in {directory.path} did not start: {reason}")


def _spawn(directory: RunDirectory, wanted: Wanted, deadline: float) -> bytes:
    """Start the program in a session of its own; return what it said, at most until `deadline`."""
    if not sys.executable:
        raise UnavailableError("cannot start a local cluster: this Python does not know its executable")
    root = str(Path(__file__).resolve().parent.parent)
    held, environment = descriptor_of(wanted.keys or ""), dict(os.environ)
    if held is not None:
        wanted = replace(wanted, keys=f"{MEMORY}{INHERITED}")
        environment["ANNA_KEYS"] = f"{MEMORY}{INHERITED}"
    arguments = [sys.executable, "-P", "-c", _PROGRAM, root, str(directory.path), wanted.pack()]
    log = os.environ.get("ANNA_LOG") or directory.file(LOG)
    answer, said = os.pipe()
    try:
        pid = os.posix_spawn(
            sys.executable,
            arguments,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, said, 1),
                (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                *([(os.POSIX_SPAWN_DUP2, held, INHERITED)] if held is not None else []),
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
