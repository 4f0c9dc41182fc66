"""The driver of one node: users, requests and the clock around the scheduler and the watchdog.

The one rule: it moves messages. Decisions are made in `cloudburst.scheduler` and `cloudburst.watchdog`, which never
see a socket; what happened is made into an event, and instructions are carried out. It never unpickles anything. The
zygote is forked first, while this process has neither threads nor sockets. A lease is a connection to `lease.sock`,
so the kernel gives it back however its holder ends, and the node ends with its last lease.
Source: DESIGN §6; anna/supervisor.py (leases, the directory's lock).
"""

from __future__ import annotations

import logging
import mmap
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from anna.address import TcpAddress
from anna.rundir import RunDirectory
from cloudburst import config, sandbox
from cloudburst.errors import CloudburstError, EnvironmentMismatch, NodeLost, RequestError
from cloudburst.executor import zygote
from cloudburst.keyring import HIDDEN, OWN_FILES, keys_in, lesser_keys_in, operators_keys
from cloudburst.lifetime import Lifetime
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
    Stopping,
    StoreJob,
    Watch,
)
from cloudburst.page import IDLE, Page, monotonic_us, page_bytes
from cloudburst.running import cluster_in
from cloudburst.sandbox import Sandbox
from cloudburst.scheduler import Scheduler
from cloudburst.secret import Secret
from cloudburst.segments.shelf import Shelf
from cloudburst.selfreport import status_of
from cloudburst.shape import Shape, host_identity
from cloudburst.users import Users
from cloudburst.version import RELEASE
from cloudburst.watchdog import Watchdog

log = logging.getLogger("cloudburst.node")

FATE_S: Final = 2.5
"""How long another node may take to say what became of an executor."""
NODE_VERBS: Final = frozenset(("record", "meet", "changed", "stay", "part"))
GATEWAY_VERBS: Final = frozenset(("homes", "lease"))
"""What a gateway asks of a node, because it has no executors of its own."""
LODGING_VERBS: Final = frozenset(("drop", "left"))
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Node:
    """The node of a directory, whose lock the caller holds until `start` has returned.

    It is as `shape` says.
    """

    def __init__(self, directory: RunDirectory, shape: Shape) -> None:
        self.directory = directory
        self.shape = shape
        self.scheduler = Scheduler(shape.executors, shape.slots, scaler=shape.scaler())
        self.watchdog = Watchdog()
        self.refused = 0
        self.sandbox_text = "none" if shape.gateway else os.environ.get(sandbox.VARIABLE) or "none"
        self.sandbox = sandbox.parse(self.sandbox_text)
        self.keys = (keys_in(directory.path) or "") if shape.meets_hosts else ""
        """The place of what all between hosts is under; it is read after the zygote is forked, so not there."""
        self.prepare: Callable[[], None] = lambda: None
        """Called when the zygote is forked: of what is read from then on, nothing is in the memory of functions."""

    # -- start

    def start(self) -> None:
        """Fork the zygote and the executors, and listen for users. The store starts meanwhile, in a thread."""
        zygote.preload()
        self._make_page()
        from cloudburst.nursery import Nursery

        self.nursery = Nursery(self.page, self.directory)
        self.prepare()
        from cloudburst.clerk import Clerk
        from cloudburst.pickling import code_tag

        self.clerk = Clerk(code_tag(), self.directory, self.shape)
        from cloudburst.loop import Loop

        self.loop = Loop()
        self.started_at = time.time()
        linger_s = self.shape.linger_s
        self.lifetime = Lifetime(None if linger_s is None else int(linger_s * 1e6), monotonic_us())
        self.cache_address = self.nursery.aides.open_cache()
        self._listen()
        self.nursery.killed = lambda slot: self.watchdog.killed.pop(slot, None)
        self.nursery.attach(self.loop, self._tell, self._hear_executor)
        if self.shape.meets_hosts:
            self.nursery.aides.start_porter(self.shelf, self.nursery.reach)
        self._open_neighbourhood()
        self.loop.watch(self.clerk.ready, self._hear_clerk)
        self._watch_signals()
        if self.sandbox is not None:
            self._confine(self.sandbox)
        os.close(self._page_fd)
        self._obey(self.scheduler.start(monotonic_us()))
        while not all(executor.pid for executor in self.scheduler.executors.values()) and not self.nursery.zygote_lost:
            self.loop.turn(None)

    def _listen(self) -> None:
        from cloudburst.switchboard import Switchboard

        place, sealed = self.shape.place, ""
        if place is not None:
            self.nursery.reach = place.host
        if self.keys:
            sealed = self._start_relay(self.keys)
        self.switchboard = Switchboard(self.directory, self.shape, self.loop, self._hear_request, sealed)
        self.users = Users(
            self._tell, lambda: self.lifetime.leased(), lambda: self.lifetime.left(monotonic_us()), self._stop,
            self._welcome, self._page_readonly,
        )  # fmt: skip
        self.users.listen(self.directory, self.loop)

    def _start_relay(self, keys: str) -> str:
        """Have all that goes to other hosts, and comes from them, go through the relay; return its address there."""
        place, aides = self.shape.place, self.nursery.aides
        aides.start_relay(keys, "" if place is None else place.host, 0 if place is None else place.port)
        return "" if place is None else str(TcpAddress(place.host, aides.relay_port))

    def _welcome(self, client: int) -> dict[str, Any]:
        """Return what a new client is told: where everything is, and its first leases on executors."""
        return {
            "control": self.switchboard.endpoints[0], "lease_us": self.scheduler.lease_us,
            "leases": self.scheduler.grant(client, self.page.slots, monotonic_us()),
            "sandbox": self.sandbox_text, "pid": os.getpid(), "stays": self.shape.linger_s is None,
        }  # fmt: skip

    def _open_neighbourhood(self) -> None:
        from cloudburst.lodging import Lodging
        from cloudburst.neighbourhood import Neighbourhood
        from cloudburst.neighbours import NodeRecord
        from cloudburst.pickling import python_tag

        self._record = NodeRecord(
            self.page.incarnation, host_identity(), str(self.directory.path),
            () if self.shape.gateway else self.switchboard.endpoints, reach=self.nursery.reach, pid=os.getpid(),
            release=RELEASE, python=python_tag(),
        )  # fmt: skip
        send, context, sealed = self.switchboard.send, self.switchboard.context, bool(self.keys)
        self.neighbourhood = Neighbourhood(self.page, self._record, send, self.nursery.rows, self._tell, sealed)
        self.neighbourhood.attach(self.loop, context, Secret.of(self.directory.path))
        self.lodging = Lodging(self.shelf, self.neighbourhood)

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
        keys = lesser_keys_in(self.directory.path)
        command = sandbox.command(
            confined, str(self.directory.path), [*seen, *([keys] if keys else [])], self.shelf.places,
            [self.directory.file(name) for name in HIDDEN], [*filter(None, (operators_keys(self.directory.path),))],
        )  # fmt: skip
        self.nursery.confine(command, self._page_fd)

    def _watch_signals(self) -> None:
        self._orphaned = False
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
        self.users.shut()
        self.neighbourhood.part()
        self.nursery.stop()
        self.switchboard.close()
        self.users.close()
        followed = bool(self.neighbourhood.core) and not self.shape.gateway
        hidden = self._record if followed and self.lifetime.leaves else None
        self.clerk.close(hidden, self._signals)  # the last one has nobody to hand over to
        self.shelf.remove_all()
        if locked:
            self.directory.sweep(OWN_FILES)
            cluster_in(self.directory.path.parent)  # which forgets a command that was killed
        self.directory.close()

    def _is_over(self) -> bool:
        """Whether the time has come; this holds the directory's lock then, so nobody is just joining."""
        now_us = monotonic_us()
        if self.nursery.zygote_lost and not self._orphaned:
            log.error("the zygote is gone, and every executor with it; this node ends")
            self._orphaned = True
            self._stop(leaves=True)
            self.lifetime.stop(now_us)
        if self.lifetime.unused(now_us) and self.directory.try_lock():
            if not self.neighbourhood.core and self.nursery.idle():
                return True
            self.directory.unlock()
            self._stop()
        unwanted = self.lifetime.stopping and all(self.page.doomed(slot) for slot in self.nursery.wards)
        return self.lifetime.over(now_us, self.scheduler.drained, unwanted) and self.directory.try_lock()

    def _stop(self, leaves: bool = False) -> None:
        """Take no more calls, and let those end that run; the second time, end at once."""
        if self.lifetime.stop(monotonic_us(), leaves):
            self._tell(Stopping())

    def _wait_ms(self) -> int | None:
        now_us = monotonic_us()
        times = [self.scheduler.next_wake_us, self.scheduler.next_survey_us, self.watchdog.next_look_us]
        times += [self.nursery.next_due_us, self.nursery.book.next_due_us, self.neighbourhood.next_due_us]
        times.append(self.lifetime.next_look_us(now_us))
        next_us = min((at_us for at_us in times if at_us is not None), default=None)
        return None if next_us is None else max(0, (next_us - now_us) // 1000 + 1)

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
        for _ in numbers:
            self._stop(leaves=True)

    # -- requests

    def _hear_request(self, routing_id: bytes, number: bytes, data: bytes) -> None:
        from cloudburst.control import client_of, node_of, pack_answer, unpack_request

        try:
            verb, body = unpack_request(data)
            who = client_of(routing_id) or node_of(routing_id)
            self._answer_or_ask(who, routing_id + number, verb, body)
        except CloudburstError as fault:
            self.switchboard.send(routing_id, number, pack_answer(fault))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as fault:
            words = f"a request that is not understood: {type(fault).__name__}: {fault}"
            self.switchboard.send(routing_id, number, pack_answer(RequestError(words)))

    def _answer_or_ask(self, client: int, request: bytes, verb: str, body: dict[str, Any]) -> None:
        """Answer what only this process can see; leave the rest to the scheduler, or to another node."""
        answer = self.neighbourhood.hear(request[:13], verb, body) if verb in NODE_VERBS else NotImplemented
        if answer is not NotImplemented:
            self._reply(request, answer)
        elif verb in ("fate", "cancel") and int(body.get("slot", -1)) >= self.page.own:
            self._forward(client, request, verb, body)
        elif verb in LODGING_VERBS:
            self._reply(request, self.lodging.hear(client, verb, body))
        elif verb == "status":
            self._reply(request, status_of(self))
        elif verb == "output":
            self._reply(request, self.nursery.tails())
        elif verb == "logs" and body.get("node", self.name) != self.name:
            self._ask_elsewhere(request, verb, body)
        elif verb == "logs":
            self.nursery.read_all()
            answer = self.nursery.book.ask(request, body, monotonic_us())
            if answer is not None:
                self._reply(request, answer)
        elif verb == "cancel":
            self._reply(request, self._cancel(client, body))
        elif self.shape.gateway and verb in GATEWAY_VERBS:
            self._pass_on(client, request, verb, body)
        else:
            self._tell(Request(client, request, verb, body))

    def _ask_elsewhere(self, request: bytes, verb: str, body: dict[str, Any]) -> None:
        """Ask the node that a request is for."""
        node = body.pop("node")

        def answered(found: Any) -> None:
            self._reply(request, NodeLost(f"node {node} is not heard of") if found is None else found)

        timeout_s = float(body.get("wait_s", 0.0)) + config.NODE_SILENCE_S
        self.neighbourhood.ask_node(int(node, 16), verb, body, answered, timeout_s)

    def _pass_on(self, client: int, request: bytes, verb: str, body: dict[str, Any]) -> None:
        """Have a node of the cluster do what takes executors of its own: always the same, as long as it is there."""
        nodes = self.neighbourhood.core.nodes
        node = min(nodes, default=0)

        def answered(found: Any) -> None:
            if isinstance(found, list):
                self._reply(request, self.neighbourhood.core.slots_of(node, found))
            else:
                self._reply(request, found or NodeLost(f"no node of the cluster at {self.shape.join} answers"))

        if verb == "homes":
            self.neighbourhood.ask_node(node, verb, body, answered, FATE_S)
            return
        if not self.neighbourhood.core.executors:  # they may all be gone for want of calls: have one started
            self.neighbourhood.ask_node(node, verb, {"want": 1}, lambda _: None, config.CONTROL_TIMEOUT_S)
        self._tell(Request(client, request, verb, body))

    def _forward(self, client: int, request: bytes, verb: str, body: dict[str, Any]) -> None:
        """Ask the node of an executor that is another's."""
        slot = int(body["slot"])
        if slot >= self.page.slots or (verb == "cancel" and int(body.get("high", 0)) != client):
            self._reply(request, _not_yours())
            return
        self.neighbourhood.ask(slot, verb, body, lambda answer: self._reply(request, answer), FATE_S)

    @property
    def name(self) -> str:
        """What it is called where nodes are told apart: its life, in hexadecimal digits."""
        return f"{self.page.incarnation:016x}"

    def _cancel(self, client: int, body: dict[str, Any]) -> CloudburstError | None:
        slot, invocation = int(body.get("slot", -1)), (int(body.get("high", 0)), int(body.get("low", 0)))
        of_neighbour = client in self.neighbourhood.core.nodes
        if (invocation[0] != client and not of_neighbour) or not 0 <= slot < self.page.own:
            return _not_yours()
        activity, _, high, low, _, _ = self.page.activity(slot)
        if activity != IDLE and (high, low) == invocation:
            self._obey(self.watchdog.stop(slot, invocation, monotonic_us()))
        return None

    # -- events and instructions

    def _tell(self, event: Event) -> None:
        match event:
            case ExecutorEnded():
                self._obey(self.watchdog.forget(event.slot))
            case ClientJoined():
                self.shelf.admit(event.client)
            case ClientLeft():
                self.shelf.dismiss(event.client)
                self.lodging.part(event.client)
        self._obey(self.scheduler.handle(event, monotonic_us()))

    def _hear_executor(self, slot: int, letter: bytes) -> None:
        """L: a call runs long. N: calls wait for calls, and another executor is needed. R: a record was refused."""
        if letter == b"L":
            self._look(slot)
        elif letter == b"N":
            self._tell(ExecutorAsks(slot, self.nursery.unblocked(slot)))
        elif letter == b"R":
            self.refused += 1
            log.warning("executor %d has refused the record of a function that nobody who may has signed", slot)

    def _hear_clerk(self) -> None:
        for done in self.clerk.finished():
            if done.job.verb == "nodes":
                self._hear_nodes(done.answer)
            else:
                self._tell(done)
        if self.clerk.addresses and not self.page.store:
            self.nursery.aides.start_cache(self.cache_address, self.clerk.addresses)
            self.page.set_store(self.cache_address, self.clerk.addresses[0])
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

        self.switchboard.send(request[:13], request[13:], pack_answer(answer))


def _not_yours() -> RequestError:
    return RequestError("a client may cancel only what it called")
