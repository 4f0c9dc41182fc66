"""The node's side of the processes that its zygote forks: the executors, and its aides.

It makes the sockets that they are born with, keeps the last of what they print, reads that at a bounded pace, and puts
together what is known when one has ended. Source: DESIGN §6; reliability C (output floods).
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from anna.rundir import RunDirectory
from cloudburst import config
from cloudburst.aides import Aides, listen
from cloudburst.executor import limits, zygote
from cloudburst.logbook import NOBODY, Author, LogBook, Printed, Unpacker
from cloudburst.loop import Loop
from cloudburst.messages import ClientJoined, ClientLeft, ExecutorEnded, ExecutorForked, Surveyed
from cloudburst.neighbours import ExecutorRow
from cloudburst.page import BLOCKED, IDLE, READY, Page, executor_socket, monotonic_us

log = logging.getLogger("cloudburst.nursery")

PIPE_READ_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class Ward:
    """One executor: this process's ends of its sockets, what it has printed, and who it is as a client of the node."""

    incarnation: int
    client: int
    link: socket.socket
    output: int
    pid: int = 0
    port: int = 0
    """At which other hosts connect, or reach the relay; 0 when they may not."""
    unpacker: Unpacker = field(default_factory=Unpacker)
    tail: bytearray = field(default_factory=bytearray)
    resume_us: int = 0


class Nursery:
    """The zygote, and everything that it forks. `tell` is called with ExecutorForked and ExecutorEnded events."""

    def __init__(self, page: Page, directory: RunDirectory) -> None:
        self.page = page
        self.directory = directory
        self.wards: dict[int, Ward] = {}
        self.book = LogBook()
        self.reach = ""
        """The name of this host for others whose nodes may use its executors."""
        self.killed: Callable[[int], tuple[int, int] | None] = lambda _: None
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._become_zygote(theirs)
        theirs.close()
        self._link.setblocking(False)
        self._forks = self._link
        self.aides = Aides(directory, self._link)
        """Cache, porter and relay."""

    def _become_zygote(self, link: socket.socket) -> None:
        try:
            os.setsid()
            os.dup2(2, 1)  # standard output is the starter's, and it waits for its end
            limits.close_all_but((link.fileno(),))
            zygote.Zygote(link, self.page, str(self.directory.path)).serve()
        except BaseException:  # a child must not return into the node's code
            log.exception("the zygote failed")
        finally:
            os._exit(0)

    def attach(self, loop: Loop, tell: Callable[[Any], None], heard: Callable[[int, bytes], None]) -> None:
        """Begin to listen, once there is a loop. `heard` gets the letters that executors send."""
        self._loop, self._tell, self._heard = loop, tell, heard
        loop.watch(self._link.fileno(), lambda: self._hear_zygote(self._link))
        self.zygote_lost = False

    def confine(self, command: list[str], page: int) -> None:
        """Have executors forked inside a sandbox, which `command` starts; `page` is the descriptor of the page."""
        self._forks, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._forks.setblocking(False)
        order = msgpack.packb({"slot": zygote.SANDBOX, "incarnation": 0, "command": command})
        socket.send_fds(self._link, [order], [theirs.fileno(), page])
        theirs.close()
        self._loop.watch(self._forks.fileno(), lambda: self._hear_zygote(self._forks))

    def stop(self) -> None:
        """Kill everything and wait until it is gone."""
        for link in {self._forks, self._link}:
            with contextlib.suppress(OSError):
                link.setblocking(True)
                link.send(msgpack.packb({"stop": True}))
        os.waitpid(self._pid, 0)

    # -- time

    @property
    def next_due_us(self) -> int | None:
        """When `do_due` next has something to do."""
        times = [ward.resume_us for ward in self.wards.values() if ward.resume_us]
        return min((*times, *self.aides.due_us), default=None)

    def do_due(self, now_us: int) -> None:
        """Read on from those that were printing too fast, and replace an aide that has ended."""
        for slot, ward in self.wards.items():
            if ward.resume_us and ward.resume_us <= now_us:
                ward.resume_us = 0
                self._watch_output(slot, ward)
        self.aides.do_due(now_us)

    # -- executors

    def fork(self, slot: int, incarnation: int) -> None:
        """Have an executor forked, listening already when this returns."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.directory.file(executor_socket(slot, incarnation)))
        listener.listen(1024)
        link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        output, written = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(output, False)
        link.setblocking(False)
        self.page.occupy(slot, incarnation)
        client = random.SystemRandom().getrandbits(63) | 1
        order = msgpack.packb({"slot": slot, "incarnation": incarnation, "client": client})
        far = listen(self.reach) if self.reach and not self.aides.relay_port else None
        fds = [listener.fileno(), theirs.fileno(), written]
        socket.send_fds(self._forks, [order], fds if far is None else [*fds, far.fileno()])
        port = self.aides.relay_port if far is None else far.getsockname()[1]
        for end in (listener, theirs, far):
            if end is not None:
                end.close()
        os.close(written)
        ward = self.wards[slot] = Ward(incarnation, client, link, output, port=port)
        self._tell(ClientJoined(client, 0))
        self._loop.watch(link.fileno(), lambda: self._hear(slot, ward))
        self._watch_output(slot, ward)

    def retire(self, slot: int) -> None:
        """Have an executor end when it has finished what it runs."""
        self.page.leave(slot)
        with contextlib.suppress(OSError):
            self.wards[slot].link.send(b"D")

    def signal(self, slot: int, number: int) -> None:
        """Send a signal to an executor, if it is there."""
        ward = self.wards.get(slot)
        if ward is not None and ward.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(ward.pid, number)

    def unblocked(self, but: int) -> int:
        """Return how many executors other than `but` could run something, now or soon."""
        return sum(
            slot != but and ward.pid != 0 and self.page.state(slot)[0] == READY
            and self.page.activity(slot)[0] != BLOCKED
            for slot, ward in self.wards.items()
        )  # fmt: skip

    def idle(self) -> bool:
        """Whether no executor runs anything, or has anything waiting."""
        return all(self.page.activity(slot)[:2] == (IDLE, 0) for slot in self.wards)

    def survey(self) -> Surveyed:
        """Return what each executor is doing."""
        found, running, queued = {}, 0, 0
        for slot in self.wards:
            activity, waiting = self.page.activity(slot)[:2]
            found[slot] = (activity == IDLE and waiting == 0, self.page.describe(slot)[3])
            running += activity not in (IDLE, BLOCKED)
            queued += waiting
        return Surveyed(found, running, queued)

    def read_all(self) -> None:
        """Take in all that has been printed up to now, except by those who print too fast."""
        for slot, ward in self.wards.items():
            while not ward.resume_us and self._read_some(slot, ward):
                pass

    def rows(self) -> list[ExecutorRow]:
        """Return what each executor is doing, for other nodes."""
        rows = []
        for slot, ward in sorted(self.wards.items()):
            if not ward.pid:
                continue
            state, incarnation, _ = self.page.state(slot)
            activity, waiting, high, low, _, _ = self.page.activity(slot)
            name = executor_socket(slot, incarnation)
            rows.append(ExecutorRow(slot, incarnation, ward.pid, state, activity, waiting, high, low, ward.port, name))
        return rows

    def tails(self) -> dict[int, bytes]:
        """Return the last that each executor has printed, up to now."""
        self.read_all()
        return {slot: bytes(ward.tail) for slot, ward in self.wards.items()}

    # -- news

    def _hear_zygote(self, link: socket.socket) -> None:
        while True:
            fds: list[int] = []
            try:
                data, fds, _, _ = socket.recv_fds(link, zygote.MESSAGE_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.zygote_lost = True
                self._loop.forget(link.fileno())
                return
            news = msgpack.unpackb(data)
            for fd in fds:
                news["pid"] = pid_of(fd)
                os.close(fd)
            self._take_in(news)

    def _take_in(self, news: dict[str, Any]) -> None:
        if self.aides.take_in(news):
            return
        if news["slot"] == zygote.SANDBOX:
            if "code" in news:
                log.error("the sandbox ended with %d", news["code"])
        elif "code" in news:
            self._ended(news)
        else:
            slot, pid = news["slot"], news["pid"]
            self.wards[slot].pid = pid
            self._tell(ExecutorForked(slot, news["incarnation"], pid))
            self.page.set_pid(slot, pid)

    def _ended(self, news: dict[str, Any]) -> None:
        slot, incarnation, code = news["slot"], news["incarnation"], news["code"]
        ward = self.wards.pop(slot)
        pid = ward.pid
        with contextlib.suppress(OSError):
            while self._read(slot, ward):
                pass
        self._keep(slot, ward, ward.unpacker.finish())
        activity, _, high, low, _, _ = self.page.activity(slot)
        running = (high, low) if activity != IDLE else None
        last = "" if running is None else self.book.said_by(high, low, config.TAIL_BYTES_MAX).decode(errors="replace")
        if running is not None and self.killed(slot) == running:
            running = None
        function = self.page.describe(slot)[0]
        event = ExecutorEnded(
            slot, incarnation, pid, code, function, running, self.page.unsettled(slot), last,
            starved=bool(news.get("starved")),
        )  # fmt: skip
        log.info("executor %d (pid %d) ended with %d", slot, pid, code)
        self.page.vacate(slot)
        self._tell(ClientLeft(ward.client))
        self._loop.forget(ward.link.fileno())
        self._loop.forget(ward.output)
        ward.link.close()
        os.close(ward.output)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.directory.file(executor_socket(slot, incarnation)))
        self._tell(event)

    def _hear(self, slot: int, ward: Ward) -> None:
        """Pass on what an executor says, one letter at a time."""
        while True:
            try:
                said = ward.link.recv(16)
            except BlockingIOError:
                return
            except OSError:
                said = b""
            if not said:
                self._loop.forget(ward.link.fileno())
                return
            self._heard(slot, said)

    def _watch_output(self, slot: int, ward: Ward) -> None:
        def read() -> None:
            self._read_some(slot, ward)

        self._loop.watch(ward.output, read)

    def _read_some(self, slot: int, ward: Ward) -> int:
        """Read output, and return how much; whoever prints a lot waits until its pace is within bounds again."""
        try:
            size = self._read(slot, ward)
        except BlockingIOError:
            return 0
        if size == 0:
            self._loop.forget(ward.output)
        elif size >= PIPE_READ_BYTES // 4:
            self._loop.forget(ward.output)
            ward.resume_us = monotonic_us() + size * 1_000_000 // config.OUTPUT_BYTES_PER_S
        return size

    def _read(self, slot: int, ward: Ward) -> int:
        data = os.read(ward.output, PIPE_READ_BYTES)
        self._keep(slot, ward, ward.unpacker.feed(data))
        return len(data)

    def _keep(self, slot: int, ward: Ward, pieces: list[Printed]) -> None:
        """Keep what an executor has printed; what was written past its records is the running call's."""
        for piece in pieces:
            author, time_s = piece.author, piece.time_s
            if author is None:
                activity, _, high, low, _, _ = self.page.activity(slot)
                author = NOBODY if activity == IDLE else Author(high, low, self.page.describe(slot)[0].encode())
                time_s = time.time()
            self.book.add(slot, author, time_s, piece.text, monotonic_us())
            ward.tail += piece.text
        del ward.tail[: -config.TAIL_BYTES_MAX]


def pid_of(pidfd: int) -> int:
    """Return the number that the process of a pidfd has here; 0 when it has none, or has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}") as info:
        return max(0, next((int(line.split()[1]) for line in info if line.startswith("Pid:")), 0))
