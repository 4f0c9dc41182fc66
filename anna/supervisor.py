"""Keeps the workers of one machine running: forks them, replaces those that die, and stops them all.

The one rule: the supervisor owns everything that must not outlive the cluster (sockets, files, processes),
and ends when its last lease does. A lease is an open connection to `lease.sock`, so the kernel gives it
back however its holder ends. A replaced worker has a new worker id and the old seat and addresses: it owns
the keys that its predecessor owned.

When the supervisor itself is killed: each worker holds a link to it, whose end stops the worker, and each
worker that stops so sweeps the directory (under its lock, and only while no supervisor answers there).
Source: docs/decisions/0002.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

import msgpack

from anna.backoff import Backoff
from anna.companion import Companion
from anna.errors import ProtocolError
from anna.listening import SeatSockets
from anna.logs import Event, speak_as
from anna.messages import View, WorkerInfo
from anna.plan import NodePlan
from anna.rundir import LEASE_PROTOCOL, LEASE_SOCKET, RunDirectory

log = logging.getLogger("anna.supervisor")

LINGER_S: Final = 0.3
"""How long a cluster without leases waits for the next user."""

FIRST_LEASE_S: Final = 10.0
"""How long a new cluster waits for its first user."""

STOP_GRACE_S: Final = 2.0
"""How long workers may take to stop before they are killed, and to sweep after a dead supervisor."""

LOCK_RETRY_S: Final = 0.02

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

EXIT_SUPERSEDED: Final = 17
"""How a worker ends whose node was forgotten by its cluster: starting it again would not help."""

EXIT_STORAGE: Final = 18
"""How a worker ends that cannot trust its disk: another one could not either."""

LEAVE: Final = "leave"
"""What a supervisor tells its workers when the node is to hand over its keys and be gone."""

FINAL: Final = {
    EXIT_SUPERSEDED: "the cluster has forgotten this node",
    EXIT_STORAGE: "its disk cannot be trusted, or lacks data that was there (see above)",
}
"""Exit codes of workers that it would not help to start again, and what they mean."""

Serve = Callable[[View, int, list[socket.socket], socket.socket], int]
"""What a worker runs: `anna.server.serve_worker`, with its options bound."""


@dataclass(slots=True)
class Seat:
    """One worker's place: what stays (sockets, restarts) and what changes with each incarnation."""

    number: int
    listeners: SeatSockets
    backoff: Backoff = field(default_factory=Backoff)
    restart_at: float | None = None
    pid: int = 0
    pidfd: int = -1
    link: socket.socket | None = None
    unsent: bytes = b""
    heard: msgpack.Unpacker = field(default_factory=msgpack.Unpacker)


class Supervisor:
    """The workers of one directory, whose lock the caller holds until they are started.

    `linger_s` None keeps the cluster when it has no leases (`anna serve`). `plan` says how the node takes part in
    a cluster of several; without one it is a cluster of its own.
    """

    def __init__(
        self,
        directory: RunDirectory,
        seats: list[SeatSockets],
        serve: Serve,
        linger_s: float | None = LINGER_S,
        plan: NodePlan | None = None,
    ) -> None:
        self.directory = directory
        self.linger_s = linger_s
        self.seats = [Seat(number, listeners) for number, listeners in enumerate(seats)]
        self._serve = serve
        self.plan = plan or NodePlan()
        self.node_id = self.plan.node_id or fresh_id()
        self.view = self.plan.view(self.node_id, tuple(map(_incarnation, self.seats)))
        self._selector = selectors.DefaultSelector()
        self._leases: set[socket.socket] = set()
        self._lease_sockets = SeatSockets()
        self._companion: Companion | None = None
        self._stop_at: float | None = None
        self.failed = False
        self._forgotten = False
        self._stopping = False
        self._signals, self._wakeup = socket.socketpair()

    def keep(self, companion: Companion) -> None:
        """Start `companion`, which runs already, again whenever it ends. Its end is its owner's to bring about."""
        self._companion = companion
        companion.watch(self._selector)

    def start(self) -> None:
        """Listen for leases and fork every worker, or leave nothing behind.

        The workers share the memory of all that was imported before.
        """
        self._watch_signals()
        try:
            self._start()
        except BaseException:
            self.end()
            raise

    def _start(self) -> None:
        self._lease_sockets.listen_for_leases(self.directory.file(LEASE_SOCKET))
        self._selector.register(self._lease_sockets.sockets[0], selectors.EVENT_READ, self._accept_lease)
        if self.linger_s is not None:
            self._stop_at = time.monotonic() + FIRST_LEASE_S
        gc.collect()
        gc.freeze()
        for seat in self.seats:
            self._fork(seat)
        told = Event.of("start", workers=len(self.seats), directory=str(self.directory.path))
        log.info("%d workers serve in %s", len(self.seats), self.directory.path, extra=told)

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT, SIGHUP, or the end of the last lease; then leave nothing behind."""
        try:
            while not self._is_over():
                for key, events in self._selector.select(self._wait_s()):
                    key.data(key.fileobj, events)
                self._restart_due()
        finally:
            self.end()

    def end(self) -> None:
        """Stop every worker and remove every socket and file."""
        locked = self.directory.try_lock()
        self._lease_sockets.unlink()
        self._lease_sockets.close()
        self._stop_workers()
        if self._forgotten and self.plan.set_aside is not None:
            where = self.plan.set_aside()
            log.error("its keys are set aside in %s; start it again, and it joins without them", where)
        for seat in self.seats:
            seat.listeners.unlink()
            seat.listeners.close()
        if locked:
            self.directory.sweep()
        for lease in self._leases:
            lease.close()
        self._selector.close()
        signal.set_wakeup_fd(-1)
        self._signals.close()
        self._wakeup.close()
        self.directory.close()

    # -- what is due

    def _wait_s(self) -> float | None:
        """How long nothing is due; None for ever."""
        beside = None if self._companion is None else self._companion.restart_at
        due = [at for at in (self._stop_at, beside, *(seat.restart_at for seat in self.seats)) if at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _is_over(self) -> bool:
        """Whether it is time to stop and nobody is just joining. The lock is then held to the end."""
        if self._stop_at is None or time.monotonic() < self._stop_at:
            return False
        if self.directory.try_lock():
            return True
        self._stop_at = time.monotonic() + LOCK_RETRY_S
        return False

    def _watch_signals(self) -> None:
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would take away the exit codes
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._signals, selectors.EVENT_READ, self._signalled)

    def _signalled(self, readable: socket.socket, _: int) -> None:
        numbers = readable.recv(64)
        names = [signal.Signals(number).name for number in numbers]
        log.info("stopping: %s", ", ".join(names), extra=Event.of("stop", signals=names))
        self._stopping = True
        self._stop_at = time.monotonic()
        for seat in self.seats:
            seat.restart_at = None

    # -- leases

    def _accept_lease(self, listener: socket.socket, _: int) -> None:
        try:
            lease, _address = listener.accept()
        except OSError as error:
            log.warning("could not accept a lease: %s", error)
            return
        lease.setblocking(False)
        greeting = {"protocol": LEASE_PROTOCOL, "pid": os.getpid(), "view": self.view.to_wire()}
        try:
            _check_same_user(lease)
            lease.send(msgpack.packb(greeting))
        except OSError as error:
            log.warning("refused a lease: %s", error)
            lease.close()
            return
        self._leases.add(lease)
        self._selector.register(lease, selectors.EVENT_READ, self._lease_spoke)
        if self.linger_s is not None and not self._stopping:
            self._stop_at = None

    def _lease_spoke(self, lease: socket.socket, _: int) -> None:
        """A holder has nothing to say but its end; what a newer one may say is not understood here."""
        with contextlib.suppress(ConnectionError):
            if lease.recv(4096):
                return
        self._selector.unregister(lease)
        self._leases.discard(lease)
        lease.close()
        if not self._leases and self.linger_s is not None and not self._stopping:
            self._stop_at = time.monotonic() + self.linger_s

    # -- workers

    def _fork(self, seat: Seat) -> None:
        """Start the seat's worker. Signals wait, so that the child never handles one as its parent would."""
        ours, theirs = socket.socketpair()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._become_worker(seat, theirs)
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            theirs.close()
        ours.setblocking(False)
        seat.pid, seat.link, seat.unsent, seat.restart_at = pid, ours, b"", None
        seat.heard = msgpack.Unpacker()
        seat.pidfd = os.pidfd_open(pid)
        self._selector.register(ours, selectors.EVENT_READ, lambda _, events: self._link_ready(seat, events))
        self._selector.register(seat.pidfd, selectors.EVENT_READ, lambda *_: self._worker_ended(seat))
        seat.backoff.started(time.monotonic())

    def _become_worker(self, seat: Seat, link: socket.socket) -> NoReturn:
        """In the child: keep nothing of the supervisor's but the seat, serve, and exit without unwinding."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            os.dup2(2, 1)  # a starter waits for the end of the supervisor's standard output
            os.setpgid(0, 0)  # a Ctrl-C at the supervisor's terminal is the supervisor's to handle
            self._close_in_worker(seat)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            name_process(f"anna-worker-{seat.number}")
            speak_as(self.node_id, seat.number)
            worker_id = self.view.node(self.node_id).workers[seat.number].worker_id
            code = self._serve(self.view, self.view.index_of(worker_id), seat.listeners.sockets, link) or 0
            if _has_ended(link):
                log.warning("the supervisor died; worker %d stopped", seat.number)
                seat.listeners.unlink()
                self.directory.sweep_if_abandoned(time.monotonic() + STOP_GRACE_S)
        except BaseException:  # a child must not return into the supervisor's code
            log.exception("worker %d failed", seat.number)
        finally:
            logging.shutdown()
            os._exit(code)

    def _close_in_worker(self, seat: Seat) -> None:
        """Close the child's copies: a worker must not keep leases, links or listeners of others open."""
        self._selector.close()
        self._lease_sockets.close()
        for lease in self._leases:
            lease.close()
        self._signals.close()
        self._wakeup.close()
        if self._companion is not None:
            self._companion.forget_in_worker()
        for other in self.seats:
            if other.link is not None:
                other.link.close()
            if other.pidfd >= 0:
                os.close(other.pidfd)
            if other is not seat:
                other.listeners.close()
        self.directory.reopen()

    def _worker_ended(self, seat: Seat) -> None:
        """Reap a worker and plan its successor; clients wait for it in the backlog of the seat's sockets."""
        _, status = os.waitpid(seat.pid, 0)
        pid = seat.pid
        self._forget(seat)
        code = os.waitstatus_to_exitcode(status)
        if self._stopping:
            return
        if code in FINAL:
            log.error("worker %d: %s; the node stops", seat.number, FINAL[code])
            self.failed = True
            self._forgotten = self._forgotten or code == EXIT_SUPERSEDED
            self._stopping = True
            self._stop_at = time.monotonic()
            return
        pause = seat.backoff.crashed(time.monotonic())
        seat.restart_at = time.monotonic() + pause
        why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        told = Event.of("worker-ended", seat=seat.number, pid=pid, code=code)
        log.warning("worker %d (pid %d) %s with its keys; restart in %.1f s", seat.number, pid, why, pause, extra=told)

    def _forget(self, seat: Seat) -> None:
        self._selector.unregister(seat.pidfd)
        os.close(seat.pidfd)
        if seat.link is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(seat.link)
            seat.link.close()
        seat.pid, seat.pidfd, seat.link = 0, -1, None

    def _restart_due(self) -> None:
        now = time.monotonic()
        for seat in self.seats:
            if seat.restart_at is None or seat.restart_at > now:
                continue
            self.view = self.view.with_worker(self.node_id, _incarnation(seat))
            try:
                self._fork(seat)
            except OSError as error:
                seat.restart_at = now + seat.backoff.crashed(now)
                log.error("cannot start worker %d: %s", seat.number, error)
                continue
            told = Event.of("worker-started", seat=seat.number, pid=seat.pid, view=self.view.version)
            log.info("worker %d is pid %d, view %d", seat.number, seat.pid, self.view.version, extra=told)
            self._tell_view(seat)
        if self._companion is not None and not self._stopping:
            self._companion.restart_if_due(now)

    def _tell_view(self, newcomer: Seat) -> None:
        """Send the view to every other worker; the newcomer was born with it."""
        message = msgpack.packb(self.view.to_wire())
        for seat in self.seats:
            if seat is not newcomer and seat.link is not None:
                seat.unsent += message
                self._flush(seat)

    def _link_ready(self, seat: Seat, events: int) -> None:
        """A worker tells what view it has, or its link takes more of what it is told."""
        if events & selectors.EVENT_WRITE:
            self._flush(seat)
        if not events & selectors.EVENT_READ or seat.link is None:
            return
        try:
            data = seat.link.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(seat.link)  # the worker is ending; its pidfd tells
            return
        seat.heard.feed(data)
        for message in seat.heard:
            try:
                self._learn(View.from_wire(message))
            except (ProtocolError, ValueError):
                log.exception("ignored what worker %d said", seat.number)

    def _learn(self, view: View) -> None:
        """Remember the cluster, for the workers that are started later, and for the next start of this node."""
        before = self.view
        self.view = before.join(view)
        if self.view.digest != before.digest and self.plan.remember is not None:
            self.plan.remember(self.view)

    def _flush(self, seat: Seat) -> None:
        """Send what the link takes now; the rest when it takes more."""
        assert seat.link is not None
        try:
            seat.unsent = seat.unsent[seat.link.send(seat.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            return  # the worker is ending; its pidfd tells
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if seat.unsent else 0)
        with contextlib.suppress(KeyError):
            self._selector.modify(seat.link, events, lambda _, events: self._link_ready(seat, events))

    def _stop_workers(self) -> None:
        """End every worker: by SIGTERM, then by SIGKILL for those that take more than STOP_GRACE_S.

        A node that is told to stop, and has a cluster, first waits until its keys are elsewhere; a second signal cuts
        that short. When its last user went, nobody wants them any more.
        """
        told, self._stopping = self._stopping, True
        running = [seat for seat in self.seats if seat.pid]
        if self.plan.leave_s and told and running:
            self._leave(running)
            running = [seat for seat in self.seats if seat.pid]
        for seat in running:
            signal.pidfd_send_signal(seat.pidfd, signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_S
        for seat in running:
            if not _ends_by(seat.pidfd, deadline):
                log.warning("worker %d (pid %d) did not stop in %.0f s", seat.number, seat.pid, STOP_GRACE_S)
                signal.pidfd_send_signal(seat.pidfd, signal.SIGKILL)
            os.waitpid(seat.pid, 0)
            self._forget(seat)

    def _leave(self, running: list[Seat]) -> None:
        """Tell the workers to hand over their keys, and wait until they have ended."""
        log.info("handing over this node's keys (at most %.0f s; a second signal stops at once)", self.plan.leave_s)
        for seat in running:
            seat.unsent += msgpack.packb(LEAVE)
            self._flush(seat)
        deadline = time.monotonic() + self.plan.leave_s
        self._stopping = True
        signalled = self._signals
        while any(seat.pid for seat in running) and time.monotonic() < deadline:
            for key, events in self._selector.select(max(0.0, deadline - time.monotonic())):
                if key.fileobj is signalled:
                    numbers = self._signals.recv(64)
                    if any(number != signal.SIGCHLD for number in numbers):
                        log.warning("stopped before all keys were handed over")
                        return
                    continue
                key.data(key.fileobj, events)
        if any(seat.pid for seat in running):
            log.warning("not all keys were handed over within %.0f s", self.plan.leave_s)


def name_process(name: str) -> None:
    """Set the name that `ps` and `top` show, of which Linux keeps 15 bytes."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(name[:15])


def fresh_id() -> int:
    """Return a number that names one process or node for ever: 63 random bits, not zero."""
    return int.from_bytes(os.urandom(8), "little") >> 1 or 1


def _incarnation(seat: Seat) -> WorkerInfo:
    return WorkerInfo(fresh_id(), tuple(seat.listeners.addresses), seat.number)


def _check_same_user(peer: socket.socket) -> None:
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (os.getuid(), 0):
        raise PermissionError(f"the peer is user {uid}, this is user {os.getuid()}")


def _has_ended(link: socket.socket) -> bool:
    """Whether the other end of a link is closed. What is still unread is dropped."""
    link.setblocking(False)
    try:
        while link.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _ends_by(pidfd: int, deadline: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(pidfd, selectors.EVENT_READ)
        return bool(selector.select(max(0.0, deadline - time.monotonic())))
