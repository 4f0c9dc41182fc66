"""Memberships in one process, on a network that delays, loses and repeats, from one seed and without a clock.

Every node has a monotonic clock of its own, up to a day apart from the others'. Times in tests are in seconds
of the network.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from anna.membership import Membership
from anna.messages import ALIVE, JOINING, LEFT, NodeInfo, NodeStatus, View, WorkerInfo

SECOND = 1_000_000_000
REPAIR_S = 0.2
"""How long a worker takes to be complete for a new view."""


@dataclass(slots=True)
class Process:
    """One worker: what it knows, what waits for it while it is stopped, and which of its polls is the next."""

    membership: Membership
    node: int
    offset: int
    inbox: list[tuple[int, bytes]] = field(default_factory=list)
    stopped: bool = False
    poll: int = 0
    views: list[View] = field(default_factory=list)
    has_stopped_itself: bool = False


class Network:
    """The processes by worker id. `stuck` are the nodes whose workers never become complete."""

    def __init__(self, seed: int = 1, *, delay_s: tuple[float, float] = (0.001, 0.02), loss: float = 0.0) -> None:
        self.now = 0
        self.chance = random.Random(seed)
        self.delay_s = delay_s
        self.loss = loss
        self.repeats = 0.0
        self.processes: dict[int, Process] = {}
        self.listening: dict[str, int] = {}
        self.cuts: set[tuple[int, int]] = set()
        self.stuck: set[int] = set()
        self.tombstone_s = 86_400.0
        self.started_as: dict[int, NodeStatus] = {}
        self.frames = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    # -- what tests do

    def start(
        self,
        node: int,
        *,
        workers: int = 1,
        seeds: tuple[str, ...] = (),
        generation: int = 0,
        cluster: str = "anna",
        host: int | None = None,
    ) -> None:
        """Start a node's processes, at the addresses of `host` (of a machine of its own by default)."""
        places = [address(node if host is None else host, seat) for seat in range(workers)]
        infos = tuple(WorkerInfo(worker_id(node, s, generation), (at,), s) for s, at in enumerate(places))
        self.started_as[node] = JOINING if seeds else ALIVE
        view = View(1, (NodeInfo(node, infos, generation, status=self.started_as[node]),))
        for info in infos:
            self.start_worker(info, view, seeds, cluster)

    def start_worker(self, info: WorkerInfo, view: View, seeds: tuple[str, ...] = (), cluster: str = "anna") -> None:
        """Start one process, which has `view` from its supervisor."""
        node = view.node_of(info.worker_id).node_id
        offset = random.Random(node).randrange(86_400 * SECOND)
        now, tombstone_us = self.now + offset, int(self.tombstone_s * 1e6)
        membership = Membership(info.worker_id, node, view, seeds, now, cluster, tombstone_us)
        process = self.processes[info.worker_id] = Process(membership, node, offset)
        self.listening[info.addresses[-1]] = info.worker_id
        self._take_up(process, view)
        self._schedule_poll(process)

    def cluster(self, *nodes: int, workers: int = 1) -> None:
        """Start nodes that know each other, as after a while."""
        for node in nodes:
            self.start(node, workers=workers, seeds=() if node == nodes[0] else (address(nodes[0]),))
            self.run(2)
        self.run(5)
        assert self.statuses() == dict.fromkeys(nodes, ALIVE)

    def has_left(self, node: int) -> bool:
        """Whether anybody knows that a node has left: it cannot be started again under its id."""
        return any(n.node_id == node and n.status == LEFT for view in self.views() for n in view.nodes)

    def crash(self, *nodes: int) -> None:
        """End all processes of these nodes."""
        for process in self.of(*nodes):
            del self.processes[process.membership.mine]

    def replace_worker(self, node: int, seeds: tuple[str, ...] = ()) -> View:
        """Kill the worker at a node's seat 0 and start its successor; return the view that the supervisor has then.

        The supervisor knows its own node only, and with the status that it started with.
        """
        view = next(iter(self.of(node))).membership.view
        old = view.node(node).workers[0]
        own = replace(view, version=1, nodes=(replace(view.node(node), status=self.started_as[node]),))
        successor = WorkerInfo(old.worker_id + 10, old.addresses, 0)
        after = own.with_worker(node, successor)
        self.processes.pop(old.worker_id, None)
        for sibling in self.of(node):
            sibling.membership.learn(after, self.clock_of(sibling))
        self.start_worker(successor, after, seeds)
        return after

    def stop(self, *nodes: int) -> None:
        """SIGSTOP: the processes do nothing, and what is sent to them waits."""
        for process in self.of(*nodes):
            process.stopped = True

    def go_on(self, *nodes: int) -> None:
        """SIGCONT."""
        for process in self.of(*nodes):
            process.stopped = False
            inbox, process.inbox = process.inbox, []
            for sender, data in inbox:
                self._receive(process, sender, data)
            self._schedule_poll(process)

    def cut(self, ones: set[int], others: set[int], *, one_way: bool = False) -> None:
        """Drop what goes from `ones` to `others`, and back unless one-way."""
        self.cuts |= set(itertools.product(ones, others))
        if not one_way:
            self.cuts |= set(itertools.product(others, ones))

    def heal(self) -> None:
        """End all cuts and all loss."""
        self.cuts.clear()
        self.loss = self.repeats = 0.0

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + int(seconds * SECOND)
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    def run_until(self, condition: Callable[[], bool], within_s: float) -> float:
        """Let time pass until the condition holds; return how long that took. It must not take more than `within_s`."""
        start = self.now
        while not condition():
            assert self.now < start + within_s * SECOND, f"not within {within_s} s: {self.views()}"
            self.run(0.01)
        return (self.now - start) / SECOND

    # -- what tests look at

    def of(self, *nodes: int) -> list[Process]:
        """Return the processes of these nodes; of all without any."""
        return [p for p in self.processes.values() if not nodes or p.node in nodes]

    def views(self) -> list[View]:
        """Return the view of each process that is not stopped."""
        return [p.membership.view for p in self.processes.values() if not p.stopped]

    def agreed(self) -> bool:
        """Whether all have the same view, its version included."""
        views = self.views()
        return all(view == views[0] for view in views)

    def statuses(self, *nodes: int) -> dict[int, NodeStatus]:
        """Return the status of every node in the views of these nodes (all by default), which must agree on it."""
        found = [{n.node_id: n.status for n in p.membership.view.nodes} for p in self.of(*nodes) if not p.stopped]
        assert all(statuses == found[0] for statuses in found), found
        return found[0]

    def sees(self, status: NodeStatus, node: int, *observers: int) -> bool:
        """Whether all processes (of the observers) give a node this status."""
        return all(
            any(n.node_id == node and n.status == status for n in process.membership.view.nodes)
            for process in self.of(*observers)
            if process.node != node
        )

    # -- the drivers

    def clock_of(self, process: Process) -> int:
        """Return the process's monotonic time."""
        return self.now + process.offset

    def _at(self, time: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), action))

    def _schedule_poll(self, process: Process) -> None:
        process.poll += 1
        number, at = process.poll, max(self.now, process.membership.due() - process.offset)

        def poll() -> None:
            if number == process.poll and self._runs(process):
                self._poll(process)

        self._at(at, poll)

    def _runs(self, process: Process) -> bool:
        return self.processes.get(process.membership.mine) is process and not process.stopped

    def _poll(self, process: Process) -> None:
        membership = process.membership
        frames = membership.poll(self.clock_of(process))
        for target, data in frames:
            self._send(process, target, data)
        self._after(process)

    def _after(self, process: Process) -> None:
        membership = process.membership
        membership.check()
        change = membership.take_change()
        if change is not None:
            assert change.version > process.views[-1].version, "a view that is taken up has a greater version"
            self._take_up(process, change)
        if membership.superseded or membership.has_left:
            process.has_stopped_itself = True
            del self.processes[membership.mine]
        else:
            self._schedule_poll(process)

    def _take_up(self, process: Process, view: View) -> None:
        """Become complete for a view after a while, as the worker's repair would."""
        process.views.append(view)

        def complete() -> None:
            if self._runs(process) and process.node not in self.stuck:
                process.membership.completed(view.version)

        self._at(self.now + int(REPAIR_S * SECOND), complete)

    def _send(self, process: Process, target: int | str, data: bytes) -> None:
        worker = self.listening.get(target, 0) if isinstance(target, str) else target
        self.frames += 1
        for _ in range(1 + (self.chance.random() < self.repeats)):
            delay = int(self.chance.uniform(*self.delay_s) * SECOND)
            if self.chance.random() >= self.loss:
                self._at(self.now + delay, lambda: self._arrive(process, worker, data))

    def _arrive(self, sender: Process, worker: int, data: bytes) -> None:
        receiver = self.processes.get(worker)
        if receiver is None or (sender.node, receiver.node) in self.cuts:
            return
        if receiver.stopped:
            receiver.inbox.append((sender.membership.mine, data))
        else:
            self._receive(receiver, sender.membership.mine, data)

    def _receive(self, process: Process, sender: int, data: bytes) -> None:
        if self._runs(process):
            process.membership.hear(sender, data, self.clock_of(process))
            self._after(process)


def worker_id(node: int, seat: int = 0, generation: int = 0) -> int:
    """Return the id of the first worker at a seat, in a generation of its node."""
    return (node * 100 + generation) * 100 + seat + 1


def address(node: int, seat: int = 0) -> str:
    """Return where a worker listens."""
    return f"tcp://10.0.0.{node}:{6450 + seat}"


def statuses_of(*alive: int) -> dict[int, int]:
    return dict.fromkeys(alive, ALIVE)


def id_of(node: NodeInfo) -> int:
    return node.node_id


def come_and_go(net: Network, node: int) -> None:
    """Let a node join through node 1, and leave."""
    net.start(node, seeds=(address(1),))
    net.run_until(lambda: net.statuses(1).get(node) == ALIVE, 10)
    (process,) = net.of(node)
    process.membership.leave(net.clock_of(process))
    net.run_until(lambda: net.statuses(1).get(node, LEFT) == LEFT and process.has_stopped_itself, 10)
