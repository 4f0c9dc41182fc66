"""The driver of one node: users, requests and the clock around the scheduler and the watchdog.

The one rule: it moves messages. Decisions are made in `cloudburst.scheduler` and `cloudburst.watchdog`, which never
see a socket; what happened is made into an event, and instructions are carried out. It never unpickles anything. The
zygote is forked first, while this process has neither threads nor sockets. A lease is a connection to `lease.sock`,
so the kernel gives it back however its holder ends, and the node ends with its last lease.
Source: DESIGN §6; anna/supervisor.py (leases, the directory's lock).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import mmap
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgpack

from anna.listening import check_local
from anna.rundir import LEASE_SOCKET, RunDirectory
from cloudburst import config, sandbox
from cloudburst.errors import CloudburstError, EnvironmentMismatch, NodeLost, RequestError
from cloudburst.executor import zygote
from cloudburst.messages import (
    AnnounceFunctions,
    ClientJoined,
    ClientLeft,
    Event,
    ExecutorAsks,
    ExecutorEnded,
    Fork,
    Instruction,
    Interrupt,
    Kill,
    Reply,
    Request,
    Retire,
    StoreJob,
    Watch,
)
from cloudburst.page import IDLE, Page, monotonic_us, page_bytes
from cloudburst.sandbox import Sandbox
from cloudburst.scheduler import Scheduler
from cloudburst.secret import SECRET_FILE, Secret
from cloudburst.segments.shelf import Shelf
from cloudburst.shape import Shape, host_identity
from cloudburst.watchdog import Watchdog

log = logging.getLogger("cloudburst.node")

LEASE_PROTOCOL: Final = 1
FIRST_LEASE_S: Final = 10.0
LOCK_RETRY_S: Final = 0.02
FATE_S: Final = 2.5
"""How long another node may take to say what became of an executor."""
NODE_VERBS: Final = frozenset(("record", "meet", "changed", "part"))
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Node:
    """The node of a directory, whose lock the caller holds until `start` has returned.

    It is as `shape` says.
    """

    def __init__(self, directory: RunDirectory, shape: Shape) -> None:
        self.directory = directory
        self.shape = shape
        self.linger_s = shape.linger_s
        self.scheduler = Scheduler(shape.executors, shape.slots, scaler=shape.scaler())
        self.watchdog = Watchdog()
        self._sandbox_text = os.environ.get(sandbox.VARIABLE) or "none"
        self.sandbox = sandbox.parse(self._sandbox_text)
        self._leases: dict[int, tuple[socket.socket, int]] = {}
        self._stop_at: float | None = None
        self._stopping = False

    # -- start

    def start(self) -> None:
        """Fork the zygote and the executors, and listen for users. The store starts meanwhile, in a thread."""
        zygote.preload()
        self._make_page()
        from cloudburst.nursery import Nursery

        self.nursery = Nursery(self.page, self.directory)
        from cloudburst.clerk import Clerk
        from cloudburst.pickling import code_tag

        self.clerk = Clerk(code_tag(), self.directory, self.shape)
        from cloudburst.loop import Loop

        self.loop = Loop()
        self._started_at = time.time()
        self._cache_address = self.nursery.open_cache()
        self._listen()
        self.nursery.killed = lambda slot: self.watchdog.killed.pop(slot, None)
        self.nursery.attach(self.loop, self._tell, self._hear_executor)
        self._open_neighbourhood()
        self.loop.watch(self.clerk.ready, self._hear_clerk)
        self._watch_signals()
        if self.sandbox is not None:
            self._confine(self.sandbox)
        os.close(self._page_fd)
        if self.linger_s is not None:
            self._stop_at = time.monotonic() + FIRST_LEASE_S
        self._obey(self.scheduler.start(monotonic_us()))
        while not all(executor.pid for executor in self.scheduler.executors.values()) and not self.nursery.zygote_lost:
            self.loop.turn(None)

    def _open_neighbourhood(self) -> None:
        from cloudburst.neighbourhood import Neighbourhood
        from cloudburst.neighbours import NodeRecord

        control = (self._endpoint,) if self._far is None else (self._endpoint, self._far_endpoint)
        self._record = NodeRecord(
            self.page.incarnation, host_identity(), str(self.directory.path), control, reach=self.nursery.reach,
            pid=os.getpid(),
        )  # fmt: skip
        self.neighbourhood = Neighbourhood(self.page, self._record, self._send, self.nursery.rows, self._tell)
        self.neighbourhood.attach(self.loop, self._context, Secret.of(self.directory.path))

    def _make_page(self) -> None:
        slots = self.scheduler.most + config.FOREIGN_EXECUTORS_MAX
        size = page_bytes(slots)
        fd = os.memfd_create("cloudburst-page", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        self._page_readonly = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        mapped = mmap.mmap(fd, size)
        self._page_fd = fd
        version = sys.version_info[0] << 8 | sys.version_info[1]
        life = random.SystemRandom().getrandbits(63)
        Page.format(mapped, slots, life, version, config.FOREIGN_EXECUTORS_MAX)
        self.page = Page(mapped)
        self.shelf = Shelf.make(self.directory.path, self.page.incarnation)

    def _confine(self, confined: Sandbox) -> None:
        """Start the sandbox, once it is known where the store is: its sockets must be seen inside."""
        sandbox.require(confined)
        end = time.monotonic() + config.START_TIMEOUT_S
        while not self.clerk.addresses:
            self.loop.turn(100)
            if time.monotonic() > end:
                raise NodeLost("the store has not started, and without it no sandbox does")
        if not confined.network and not all(address.startswith("unix:") for address in self.clerk.addresses):
            raise EnvironmentMismatch(
                f"the store is at {', '.join(self.clerk.addresses)}, which user code in a sandbox without a network"
                " cannot reach: sandbox='bwrap,net'"
            )
        sockets = [os.path.dirname(address.removeprefix("unix:")) for address in self.clerk.addresses]
        seen = [path for path in sockets if os.path.isdir(path)]
        command = sandbox.command(confined, str(self.directory.path), seen, self.shelf.places)
        self.nursery.confine(command, self._page_fd)

    def _listen(self) -> None:
        import zmq

        from cloudburst.control import CONTROL_SOCKET

        self._zmq = zmq
        self._context = zmq.Context()
        self._control = self._context.socket(zmq.ROUTER)
        self._control.setsockopt(zmq.LINGER, 100)
        self._control.setsockopt(zmq.MAXMSGSIZE, 2 * config.FUNCTION_BYTES_MAX)
        self._endpoint = f"ipc://{self.directory.file(CONTROL_SOCKET)}"
        self._control.bind(self._endpoint)
        self.loop.watch(self._control, lambda: self._hear_control(self._control))
        self._listen_far()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.directory.file(LEASE_SOCKET))
        self._listener.listen(128)
        self._listener.setblocking(False)
        self.loop.watch(self._listener.fileno(), self._accept_lease)

    def _listen_far(self) -> None:
        """Listen for nodes on other hosts, if they may come: with a secret, which is made if none was given."""
        self._far: Any = None
        self._far_peers: set[bytes] = set()
        place = self.shape.place
        if place is None:
            return
        secret = Secret.of(self.directory.path)
        if secret is None:
            secret = Secret.fresh()
            secret.keep(self.directory.path)
        self._far = self._context.socket(self._zmq.ROUTER)
        self._far.setsockopt(self._zmq.LINGER, 100)
        self._far.setsockopt(self._zmq.MAXMSGSIZE, 2 * config.FUNCTION_BYTES_MAX)
        self._far.curve_server = True
        self._far.curve_secretkey = secret.control_keys()[1]
        self._far.bind(str(place))
        self._far_endpoint = self._far.getsockopt_string(self._zmq.LAST_ENDPOINT)
        self.nursery.reach = place.host
        self.loop.watch(self._far, lambda: self._hear_control(self._far))

    def _watch_signals(self) -> None:
        self._signals, self._wakeup = socket.socketpair()
        for end in (self._signals, self._wakeup):
            end.setblocking(False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        self.loop.watch(self._signals.fileno(), self._signalled)

    # -- run

    def run(self) -> None:
        """Serve until a signal, or the end of the last lease; then leave nothing behind."""
        try:
            while not self._is_over():
                self.loop.turn(self._wait_ms())
                self._do_what_is_due()
        finally:
            self.end()

    def end(self) -> None:
        """Stop every executor and remove every socket and file."""
        locked = self.directory.try_lock()
        self._listener.close()
        self.neighbourhood.part()
        self.nursery.stop()
        self._context.destroy(linger=100)
        for connection, _ in self._leases.values():
            connection.close()
        hidden = self._record if self.neighbourhood.active and self._stopping else None
        self.clerk.close(hidden)  # when its last user has gone, the store may be ending, too
        self.shelf.remove_all()
        if locked:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.directory.file(SECRET_FILE))
            self.directory.sweep()
        self.directory.close()

    def _is_over(self) -> bool:
        if self.nursery.zygote_lost and not self._stopping:
            log.error("the zygote is gone, and every executor with it; this node ends")
            self._stopping, self._stop_at = True, time.monotonic()
        if self._stop_at is None or time.monotonic() < self._stop_at:
            return False
        if self.directory.try_lock():
            return True
        self._stop_at = time.monotonic() + LOCK_RETRY_S
        return False

    def _wait_ms(self) -> int | None:
        times = [self.scheduler.next_wake_us, self.scheduler.next_survey_us, self.watchdog.next_look_us]
        times += [self.nursery.next_due_us, self.nursery.book.next_due_us, self.neighbourhood.next_due_us]
        if self._stop_at is not None:
            times.append(int(self._stop_at * 1e6))
        next_us = min((at_us for at_us in times if at_us is not None), default=None)
        return None if next_us is None else max(0, (next_us - monotonic_us()) // 1000 + 1)

    def _do_what_is_due(self) -> None:
        now_us = monotonic_us()
        wake_us, survey_us = self.scheduler.next_wake_us, self.scheduler.next_survey_us
        if wake_us is not None and wake_us <= now_us:
            self._obey(self.scheduler.tick(now_us))
        if survey_us is not None and survey_us <= now_us:
            self._tell(self.nursery.survey())
        for slot in self.watchdog.due(now_us):
            self._look(slot)
        self.nursery.do_due(now_us)
        for request, answer in self.nursery.book.due(now_us):
            self._reply(request, answer)
        if self.neighbourhood.do_due(now_us) and self.clerk.addresses:
            self.clerk.do(StoreJob(0, b"", "nodes", {"record": self.neighbourhood.record.pack()}))

    def _signalled(self) -> None:
        numbers = self._signals.recv(64)
        log.info("stopping: %s", ", ".join(signal.Signals(number).name for number in numbers))
        self._stopping = True
        self._stop_at = time.monotonic()

    # -- users

    def _accept_lease(self) -> None:
        try:
            lease, _ = self._listener.accept()
        except OSError as fault:
            log.warning("could not accept a lease: %s", fault)
            return
        lease.setblocking(False)
        with contextlib.suppress(OSError):
            lease.send(msgpack.packb({"protocol": LEASE_PROTOCOL, "pid": os.getpid()}))
        self._leases[lease.fileno()] = (lease, 0)
        self.loop.watch(lease.fileno(), lambda: self._hear_lease(lease))
        if not self._stopping:
            self._stop_at = None

    def _hear_lease(self, lease: socket.socket) -> None:
        """Welcome a client that says who it is; part with one that is gone."""
        try:
            said = lease.recv(4096)
            if said:
                self._welcome(lease, said)
                return
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError, TypeError) as fault:
            log.warning("a lease ended: %s", fault)
        fd = lease.fileno()
        self.loop.forget(fd)
        _, client = self._leases.pop(fd)
        lease.close()
        if client:
            self._tell(ClientLeft(client))
        if not self._leases and self.linger_s is not None and not self._stopping:
            self._stop_at = time.monotonic() + self.linger_s

    def _welcome(self, lease: socket.socket, said: bytes) -> None:
        """Tell a new client where everything is, and give it its first leases on executors."""
        hello = msgpack.unpackb(said)
        client, pid = int(hello["client"]), int(hello["pid"])
        if client in self.scheduler.clients:
            raise ValueError(f"client {client:016x} is here already")
        self._leases[lease.fileno()] = (lease, client)
        self._tell(ClientJoined(client, pid))
        granted = self.scheduler.grant(client, self.page.slots, monotonic_us())
        welcome = {
            "control": self._endpoint, "leases": granted, "lease_us": self.scheduler.lease_us,
            "sandbox": self._sandbox_text, "pid": os.getpid(),
        }  # fmt: skip
        socket.send_fds(lease, [msgpack.packb(welcome)], [self._page_readonly])

    def _hear_control(self, control: Any) -> None:
        from cloudburst.control import client_of, node_of, pack_answer, unpack_request

        while True:
            try:
                parts = control.recv_multipart(self._zmq.NOBLOCK)
            except self._zmq.Again:
                return
            if len(parts) != 3:
                continue
            routing_id, number, data = parts
            if control is self._far:
                self._far_peers.add(routing_id)
            try:
                verb, body = unpack_request(data)
                who = client_of(routing_id) or node_of(routing_id)
                self._answer_or_ask(who, routing_id + number, verb, body)
            except CloudburstError as fault:
                self._send(routing_id, number, pack_answer(fault))
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as fault:
                words = f"a request that is not understood: {type(fault).__name__}: {fault}"
                self._send(routing_id, number, pack_answer(RequestError(words)))

    def _answer_or_ask(self, client: int, request: bytes, verb: str, body: dict[str, Any]) -> None:
        """Answer what only this process can see; leave the rest to the scheduler, or to another node."""
        answer = self.neighbourhood.hear(request[:13], verb, body) if verb in NODE_VERBS else NotImplemented
        if answer is not NotImplemented:
            self._reply(request, answer)
        elif verb in ("fate", "cancel") and int(body.get("slot", -1)) >= self.page.own:
            self._forward(client, request, verb, body)
        elif verb == "status":
            self._reply(request, self._status())
        elif verb == "output":
            self._reply(request, self.nursery.tails())
        elif verb == "logs":
            self.nursery.read_all()
            answer = self.nursery.book.ask(request, body, monotonic_us())
            if answer is not None:
                self._reply(request, answer)
        elif verb == "cancel":
            self._reply(request, self._cancel(client, body))
        else:
            self._tell(Request(client, request, verb, body))

    def _forward(self, client: int, request: bytes, verb: str, body: dict[str, Any]) -> None:
        """Ask the node of an executor that is another's."""
        slot = int(body["slot"])
        if slot >= self.page.slots or (verb == "cancel" and int(body.get("high", 0)) != client):
            self._reply(request, _not_yours())
            return
        self.neighbourhood.ask(slot, verb, body, lambda answer: self._reply(request, answer), FATE_S)

    def _cancel(self, client: int, body: dict[str, Any]) -> CloudburstError | None:
        slot, invocation = int(body.get("slot", -1)), (int(body.get("high", 0)), int(body.get("low", 0)))
        of_neighbour = client in self.neighbourhood.core.nodes
        if (invocation[0] != client and not of_neighbour) or not 0 <= slot < self.page.own:
            return _not_yours()
        activity, _, high, low, _, _ = self.page.activity(slot)
        if activity != IDLE and (high, low) == invocation:
            self._obey(self.watchdog.stop(slot, invocation, monotonic_us()))
        return None

    def _status(self) -> dict[str, Any]:
        now_us = monotonic_us()
        executors = []
        for slot, ward in sorted(self.nursery.wards.items()):
            activity, waiting, high, low, started_us, deadline_us = self.page.activity(slot)
            function, done, total, begun, _ = self.page.describe(slot)
            row: dict[str, Any] = {
                "slot": slot, "pid": ward.pid, "incarnation": ward.incarnation, "calls": begun, "waiting": waiting,
                "state": ("idle", "running", "blocked")[activity], "leases": self.scheduler.leases_on(slot),
            }  # fmt: skip
            if activity != IDLE:
                row |= {
                    "function": function, "invocation": f"{high:016x}{low:016x}", "progress": [done, total],
                    "running_s": (now_us - started_us) / 1e6, "remaining_s": (deadline_us - now_us) / 1e6,
                }  # fmt: skip
            executors.append(row)
        return {
            "directory": str(self.directory.path), "pid": os.getpid(), "up_s": time.time() - self._started_at,
            "store": self.clerk.addresses, "cache": self._cache_address, "cache_pid": self.nursery.cache_pid,
            "sandbox": self._sandbox_text,
            "executors": executors,
            "clients": [client.pid for client in self.scheduler.clients.values() if client.pid],
            "functions_version": self.page.functions_version, "node": f"{self.page.incarnation:016x}",
            "nodes": self.neighbourhood.describe(), "control": self.neighbourhood.record.control,
        }  # fmt: skip

    # -- events and instructions

    def _tell(self, event: Event) -> None:
        match event:
            case ExecutorEnded():
                self._obey(self.watchdog.forget(event.slot))
            case ClientJoined():
                self.shelf.admit(event.client)
            case ClientLeft():
                self.shelf.dismiss(event.client)
        self._obey(self.scheduler.handle(event, monotonic_us()))

    def _hear_executor(self, slot: int, letter: bytes) -> None:
        """L: a call runs long. N: calls wait for calls, and another executor is needed."""
        if letter == b"L":
            self._look(slot)
        elif letter == b"N":
            self._tell(ExecutorAsks(slot, self.nursery.unblocked(slot)))

    def _hear_clerk(self) -> None:
        for done in self.clerk.finished():
            if done.job.verb == "nodes":
                self._hear_nodes(done.answer)
            else:
                self._tell(done)
        if self.clerk.addresses and not self.page.store:
            self.nursery.start_cache(self._cache_address, self.clerk.addresses)
            self.page.set_store(self._cache_address, self.clerk.addresses[0])
            self.neighbourhood.know_store(self.clerk.addresses)
            if self.clerk.beside is not None:
                self.neighbourhood.found([self.clerk.beside])
                self.neighbourhood.show()

    def _hear_nodes(self, answer: Any) -> None:
        """Take in which nodes have shown themselves in the store."""
        from cloudburst.neighbours import NodeRecord

        if isinstance(answer, CloudburstError):
            log.warning("other nodes cannot be looked up: %s", answer)
            return
        self.neighbourhood.found(NodeRecord.unpack(one) for one in answer)

    def _look(self, slot: int) -> None:
        activity, _, high, low, _, deadline_us = self.page.activity(slot)
        self._obey(self.watchdog.see(slot, activity != IDLE, (high, low), deadline_us, monotonic_us()))

    def _obey(self, instructions: list[Instruction]) -> None:
        for place, one in enumerate(instructions):
            match one:
                case AnnounceFunctions() if self.neighbourhood.core:
                    self.page.bump()
                    rest = instructions[place + 1 :]
                    self.neighbourhood.announce_functions(lambda rest=rest: self._obey(rest))  # type: ignore[misc]
                    return
                case Reply(_, request, answer):
                    self._reply(request, answer)
                case Fork(slot, incarnation):
                    self.nursery.fork(slot, incarnation)
                case Retire(slot, _):
                    self.nursery.retire(slot)
                case StoreJob():
                    self.clerk.do(one)
                case AnnounceFunctions():
                    self.page.bump()
                case Interrupt(slot, invocation):
                    self.page.doom(slot, *invocation)
                    self.nursery.signal(slot, signal.SIGTERM)
                case Kill(slot):
                    self.nursery.signal(slot, signal.SIGKILL)
                case Watch(slot, until_us):
                    self.page.watch(slot, until_us)

    def _reply(self, request: bytes, answer: Any) -> None:
        from cloudburst.control import pack_answer

        self._send(request[:13], request[13:], pack_answer(answer))

    def _send(self, routing_id: bytes, number: bytes, data: bytes) -> None:
        socket = self._far if routing_id in self._far_peers else self._control
        socket.send_multipart([routing_id, number, data])


def _not_yours() -> RequestError:
    return RequestError("a client may cancel only what it called")


def main(arguments: list[str] | None = None) -> int:
    """Run a node in the foreground: `python -m cloudburst.node --dir D`."""
    from cloudburst.local import default_directory

    what = "Run a node until it is interrupted."
    parser = argparse.ArgumentParser(prog="python -m cloudburst.node", description=what)
    parser.add_argument("--dir", type=Path, help="the node's private directory (default: this user's own)")
    parser.add_argument("--executors", type=int, help="how many executors (default: one per core)")
    parser.add_argument("--min-executors", type=int, help="how few, when there is nothing to do; 0 for none")
    parser.add_argument("--max-executors", type=int, help="how many, when there is much to do")
    parser.add_argument("--workers", type=int, help="how many workers of the store (default: one per core)")
    parser.add_argument("--join", metavar="ADDRESS", help="be one more node beside this: unix:DIR or tcp://HOST:PORT")
    parser.add_argument("--listen", metavar="ADDRESS", help="let nodes on other hosts join: tcp://HOST:PORT (0: any)")
    parser.add_argument("--secret", metavar="FILE", help="what the nodes share (default: a new one, in the directory)")
    parser.add_argument("--factor", type=int, metavar="K", help="copies of each key, of the whole cluster")
    parser.add_argument("--insecure", action="store_true", help="allow addresses that other machines can reach")
    parser.add_argument("--sandbox", help="where user code runs: none, or bwrap (default: $CLOUDBURST_SANDBOX)")
    options = parser.parse_args(arguments)
    if options.sandbox is not None:
        os.environ[sandbox.VARIABLE] = options.sandbox
    confined = sandbox.parse(os.environ.get(sandbox.VARIABLE))
    if confined is not None:
        sandbox.require(confined)
    shape = Shape.of(
        options.executors, workers=options.workers, join=options.join, linger_s=None, listen=options.listen or "",
        factor=options.factor, least=options.min_executors, most=options.max_executors,
    )  # fmt: skip
    for warning in check_local([] if shape.place is None else [shape.place], options.insecure):
        sys.stderr.write(f"cb node: warning: {warning}\n")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    directory = RunDirectory.make(options.dir.absolute() if options.dir else default_directory())
    directory.lock(time.monotonic() + config.START_TIMEOUT_S)
    if directory.connect_lease(time.monotonic() + config.START_TIMEOUT_S) is not None:
        parser.error(f"a node already runs in {directory.path}")
    directory.sweep_sockets()
    if options.secret is not None:
        Secret.read(options.secret).keep(directory.path)
    if shape.join:
        _check_join(shape.join, directory)
    node = Node(directory, shape)
    node.start()
    directory.unlock()
    _announce(node)
    node.run()
    return 0


def _check_join(address: str, directory: RunDirectory) -> None:
    """Ask the node that is to be joined who it is, before anything is started. Raises NodeLost, UnavailableError."""
    from cloudburst.clerk import node_at

    try:
        node_at(address, Secret.of(directory.path))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(directory.file(SECRET_FILE))
        directory.sweep()
        raise


def _announce(node: Node) -> None:
    """Say where the node can be reached, and how others join it."""
    where = node.directory.path
    sys.stderr.write(f"a node with {node.shape.executors} executors runs in {where} (Ctrl-C ends it)\n")
    sys.stderr.write(f"  use it:   CLOUDBURST_DIR={where} cb call …, or cb.connect('unix:{where}')\n")
    sys.stderr.write(f"  join it:  cb node --dir ANOTHER --join unix:{where}\n")
    if node.shape.place is not None:
        far, secret = node.neighbourhood.record.control[-1], node.directory.file(SECRET_FILE)
        sys.stderr.write(f"  join it from another host, with a copy of {secret}:\n")
        sys.stderr.write(f"            cb node --join {far} --secret FILE --listen tcp://HOST:0\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
