"""A cluster in one process: hosts, the processes on them, and between them the network; driven as the real driver
does.

The one rule: a process is a compiled core and nothing else. Bytes go in by `receive`, time by `tick`, and whatever
the core gives (answers, frames for peers, batches for the log) is carried on at once. A crash forgets the core; what
is not on its disk is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from anna.config import EPOCH_US
from anna.kvs.clock import Clock
from anna.kvs.worker import Connection, Worker
from anna.messages import NodeInfo, View, WorkerInfo
from anna.routing.placement import Placement
from tests.sim.client import Client
from tests.sim.clocks import HostClock
from tests.sim.disk import Disk
from tests.sim.history import History, Losses
from tests.sim.model import ModelWorker
from tests.sim.network import Network, Quality, Stream
from tests.sim.schedule import MS, US, Schedule

TICK_PAUSE_NS = MS
"""A process is not ticked more often than this, whatever its core says is due."""

RESTART_NS = 100 * MS
"""How long a supervisor needs to replace a process."""

FULL_PAUSE_NS = 50 * MS
"""How long a process waits before it tries a full disk again."""

VIEW_DELAY_NS = 20 * MS
"""How long a new view may take to reach a worker that learns it from the supervisor."""

MODEL = "model"
"""The core that `model` has; any other is the compiled one."""

Plan = dict[str, Any]


class Process:
    """One incarnation of a worker: its core, its streams, its peers' connections, and the commits under way."""

    def __init__(self, node: Node, seat: int, worker_id: int) -> None:
        self.node = node
        self.cluster = node.cluster
        self.seat = seat
        self.worker_id = worker_id
        self.alive = True
        self.paused = False
        self.disk = node.disks[seat]
        self.streams: dict[Stream, Any] = {}
        self.stream_of: dict[Any, Stream] = {}
        self.peers: dict[int, Any] = {}
        self.worker = self.cluster.make_worker(self)
        self.committing = False
        self.appended: int | None = None
        self.retrying = False
        self.unwritten: list[tuple[int, bytes]] = []
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._armed: int | None = None
        self._ticked = 0
        self.cluster.by_id[worker_id] = self
        self.cluster.by_address[node.address(seat)] = self

    def run(self, action: Callable[..., None], *arguments: Any) -> None:
        """Let something happen to the process: later if it is paused, never if it is dead."""
        if self.paused:
            self._backlog.append((action, arguments))
        elif self.alive:
            action(*arguments)
            if self.alive:
                self.pump()

    def accept(self, stream: Stream) -> Callable[[bytes | None], None]:
        """Take a client's stream."""
        connection = self.streams[stream] = Connection()
        self.stream_of[connection] = stream
        return lambda data: self.run(self._from_client, stream, connection, data)

    def from_peer(self, sender: int, frame: bytes) -> None:
        """Take a frame of another worker."""
        self.run(self._from_peer, sender, frame)

    def pause(self) -> None:
        """Stop the process without its noticing."""
        self.paused = True

    def resume(self) -> None:
        """Let it run again: first, all that has come meanwhile."""
        self.paused = False
        backlog, self._backlog = self._backlog, []
        for action, arguments in backlog:
            self.run(action, *arguments)
        if self.alive:
            self.tick(self._armed)

    def held(self) -> dict[bytes, bytes]:
        """Return the encoded state of each key."""
        if isinstance(self.worker, ModelWorker):
            return self.worker.held()
        return {key: state.encode() for key, state in self.worker.store.states.items()}

    def die(self) -> None:
        """End, with all streams."""
        self.alive = False
        del self.cluster.by_id[self.worker_id]
        del self.cluster.by_address[self.node.address(self.seat)]
        self._backlog.clear()
        for stream in list(self.streams):
            stream.reset()

    def pump(self) -> None:
        """Carry on what the core has given, and plan its next tick."""
        worker = self.worker
        self._log(worker.log_out())
        for target, frame in worker.outgoing():
            self.cluster.send_peer(self, target, frame)
        self._answer(worker.take_released())
        due = worker.next_due()
        if worker.pushes_due:
            at_epochs_end = self.node.clock.monotonic() + worker.epoch_left_us * US
            due = at_epochs_end if due is None else min(due, at_epochs_end)
        if due is not None:
            when = max(self.node.clock.moment_of(due), self._ticked + TICK_PAUSE_NS, self.cluster.schedule.now)
            if self._armed is None or when < self._armed:
                self._armed = when
                self.cluster.schedule.at(when, self.tick, when)

    def tick(self, armed: int | None) -> None:
        """Give the core its time, unless it was armed anew since."""
        if armed is not None and armed == self._armed and self.alive and not self.paused:
            self._armed = None
            self._ticked = self.cluster.schedule.now
            self._answer(self.worker.tick(self.node.clock.monotonic()))
            self.pump()

    def _from_client(self, stream: Stream, connection: Any, data: bytes | None) -> None:
        if data is None:
            self.worker.leave(connection)
            self.streams.pop(stream, None)
            self.stream_of.pop(connection, None)
            return
        self._answer([(connection, self.worker.receive(connection, data, self.node.clock.monotonic()))])
        if connection.failure is not None:
            stream.reset()

    def _from_peer(self, sender: int, frame: bytes) -> None:
        connection = self.peers.get(sender)
        if connection is None or connection.failure is not None:
            connection = self.peers[sender] = Connection()
        answer = self.worker.receive(connection, frame, self.node.clock.monotonic())
        assert not answer, "a peer's message is not answered on its connection"

    def _answer(self, answers: Any) -> None:
        """Send what the core answers: [(connection, bytes or list of bytes), …]."""
        for connection, data in answers or ():
            data = data if isinstance(data, bytes) else b"".join(data)
            stream = self.stream_of.get(connection)
            if data and stream is not None:
                stream.to_near(data)

    def _log(self, batches: list[tuple[int, bytes]]) -> None:
        """Append batches; what the disk has no room for is tried again, and meanwhile nothing more is accepted."""
        self.unwritten += batches
        while self.unwritten:
            number, cells = self.unwritten[0]
            try:
                self.disk.append(number, cells)
            except OSError:
                self.worker.log_is_full(True)
                if not self.retrying:
                    self.retrying = True
                    self.cluster.schedule.after(FULL_PAUSE_NS, self.run, self._retry)
                break
            self.worker.log_is_full(False)
            self.unwritten.pop(0)
            self.appended = number
            if self.cluster.planted("unsynced-log"):
                self.worker.logged(number, self.node.clock.monotonic())
        if self.appended is not None and not self.committing:
            self._commit()

    def _retry(self) -> None:
        self.retrying = False

    def _commit(self) -> None:
        number, self.appended = self.appended, None
        self.committing = True
        self.disk.commit(lambda error: self.run(self._committed, number, error))

    def _committed(self, number: int, error: OSError | None) -> None:
        self.committing = False
        if error is not None:
            self.node.kill(self.seat)
            return
        self.worker.logged(number, self.node.clock.monotonic())
        if self.appended is not None:
            self._commit()


class Node:
    """A host: its clocks, its disks, and the processes of one supervisor."""

    def __init__(self, cluster: Cluster, host: int, seats: int, skew_us: int) -> None:
        self.cluster = cluster
        self.host = host
        self.clock = HostClock(cluster.schedule, cluster.schedule.stream(f"clock {host}"), skew_us)
        self.disks = [Disk(cluster.schedule, cluster.schedule.stream(f"disk {host} {s}")) for s in range(seats)]
        self.node_id = cluster.ids.getrandbits(63) | 1
        self.generation = 0
        self.processes: list[Process] = []

    @property
    def up(self) -> bool:
        """Whether its supervisor runs."""
        return bool(self.processes)

    def seats(self, ids: list[int]) -> tuple[WorkerInfo, ...]:
        """Return the workers that its supervisor publishes, by seat."""
        return tuple(WorkerInfo(worker_id, (self.address(seat),), seat) for seat, worker_id in enumerate(ids))

    def address(self, seat: int) -> str:
        """Return the address of a seat, whoever sits there."""
        return f"unix:/n{self.host}/w{seat}.sock"

    def start(self, ids: list[int] | None = None) -> None:
        """Start the supervisor and its processes, from what the disks hold; `ids` when the view has them already."""
        self.generation += 1
        self.cluster.schedule.note(f"start node {self.host}")
        if ids is None:
            ids = self.cluster.new_ids(self)
            self.cluster.rejoin(self, ids)
        self.processes = [Process(self, seat, worker_id) for seat, worker_id in enumerate(ids)]
        for process in self.processes:
            process.run(_nothing)

    def crash(self, wipe: bool) -> None:
        """Lose power, and with `wipe` the disks too."""
        self.cluster.schedule.note(f"crash node {self.host} wipe {wipe}")
        self.cluster.lose(wipe)
        for process in self.processes:
            if process.alive:
                process.die()
        self.processes = []
        self.clock.reboot()
        for disk in self.disks:
            if wipe:
                disk.wipe()
            else:
                disk.crash()

    def kill(self, seat: int) -> None:
        """Kill one process; the supervisor replaces it."""
        if self.up and self.processes[seat].alive:
            self.cluster.schedule.note(f"kill node {self.host} seat {seat}")
            self.cluster.lose(False)
            self.processes[seat].die()
            self.disks[seat].kill()
            self.cluster.schedule.after(RESTART_NS, self.replace, seat, self.generation)

    def replace(self, seat: int, generation: int) -> None:
        """Start a process in the place of one that has died."""
        if self.up and generation == self.generation and not self.processes[seat].alive:
            worker_id = self.cluster.ids.getrandbits(63) | 1
            self.cluster.reseat(self, seat, worker_id)
            process = self.processes[seat] = Process(self, seat, worker_id)
            process.run(_nothing)


class Cluster:
    """All nodes, clients and what is between them, from one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.schedule = Schedule(plan["seed"])
        self.ids: Random = self.schedule.stream("ids")
        self.views: Random = self.schedule.stream("views")
        self.goal = 0
        self.network = Network(self.schedule, Quality(**plan["network"]))
        self.factor: int = plan["factor"]
        self.history = History(Losses(self.factor), EPOCH_US << 10)
        self.view = View(0, (), factor=self.factor)
        self.by_id: dict[int, Process] = {}
        self.by_address: dict[str, Process] = {}
        self._placements: dict[int, Placement] = {}
        self.nodes = [Node(self, host, plan["workers"], skew) for host, skew in enumerate(plan["skews"])]
        self.addresses = [node.address(seat) for node in self.nodes for seat in range(plan["workers"])]
        first = {node: self.new_ids(node) for node in self.nodes}
        infos = [NodeInfo(node.node_id, node.seats(ids), generation=1) for node, ids in first.items()]
        self.view = View(1, tuple(sorted(infos, key=lambda info: info.node_id)), factor=self.factor)
        for node, ids in first.items():
            node.start(ids)
        operations: dict[int, list[dict[str, Any]]] = {}
        for operation in plan["operations"]:
            operations.setdefault(operation["client"], []).append(operation)
        self.clients = [
            Client(self, number, len(self.nodes) + number, self.view, operations.get(number, []))
            for number in range(plan["clients"])
        ]

    # -- what nodes ask of the cluster

    def make_worker(self, process: Process) -> Any:
        """Return the core of a process, as it starts."""
        host = process.node.clock
        clock = Clock(host.wall_us(), host.monotonic() // 1000)
        if self.plan["core"] == MODEL:
            worker: Any = ModelWorker(self.view, process.worker_id, clock, frozenset(self.plan["planted"]))
        else:
            worker = Worker(self.view, self.view.index_of(process.worker_id), clock)
        if self.plan["disks"]:
            batches = process.disk.recover()
            for _, cells in batches:
                worker.recover(cells)
            worker.open_log(1 + max((number for number, _ in batches), default=0))
        return worker

    def new_ids(self, node: Node) -> list[int]:
        """Return ids for a start of all processes of a node."""
        return [self.ids.getrandbits(63) | 1 for _ in node.disks]

    def rejoin(self, node: Node, ids: list[int]) -> None:
        """Take a node that starts again into the view."""
        self._publish(self.view.with_node(NodeInfo(node.node_id, node.seats(ids), generation=node.generation)))

    def reseat(self, node: Node, seat: int, worker_id: int) -> None:
        """Take a replaced process into the view."""
        self._publish(self.view.with_worker(node.node_id, WorkerInfo(worker_id, (node.address(seat),), seat)))

    def _publish(self, view: View) -> None:
        self.view = view
        for process in self.processes():
            self.schedule.after(self.views.randrange(VIEW_DELAY_NS), process.run, process.worker.adopt, view)

    def lose(self, wipe: bool) -> None:
        """Write down that memory, and perhaps a disk, is lost."""
        self.history.losses.crashes.append(self.schedule.now)
        self.aim()
        if wipe:
            self.history.losses.wipes.append(self.schedule.now)

    def planted(self, fault: str) -> bool:
        """Whether the plan plants this fault."""
        return fault in self.plan["planted"]

    # -- what goes between them

    def processes(self) -> Iterator[Process]:
        """All live processes, by node and seat."""
        return (process for node in self.nodes for process in node.processes if process.alive)

    def placement(self, view: View) -> Placement:
        """Return a view's placement, compiled once."""
        found = self._placements.get(view.digest)
        if found is None:
            found = self._placements[view.digest] = Placement(view)
        return found

    def open_stream(self, near: int, address: str, on_near: Callable[[bytes | None], None]) -> Stream:
        """Return a client's stream to whoever will listen at `address` when its first bytes arrive."""

        def accept(stream: Stream) -> Callable[[bytes | None], None] | None:
            process = self.by_address.get(address)
            return None if process is None else process.accept(stream)

        host = int(address[7 : address.index("/", 7)])
        return self.network.connect(near, host, accept, on_near)

    def send_peer(self, source: Process, target: int | str, frame: bytes) -> None:
        """Send one worker's frame to another, who is known by id or by address."""
        found = self.by_id.get(target) if isinstance(target, int) else self.by_address.get(target)
        if found is None:
            return
        sender = source.worker_id
        self.network.send(source.node.host, found.node.host, frame, lambda data: found.from_peer(sender, data))

    # -- what the run asks

    @property
    def redundant(self) -> bool:
        """Whether every key has all its copies again since the last crash."""
        losses = self.history.losses
        return not losses.crashes or (bool(losses.restored) and losses.restored[-1] > losses.crashes[-1])

    def watch(self) -> None:
        """Note when redundancy is whole again."""
        if not self.redundant and self.whole():
            self.history.losses.restored.append(self.schedule.now)

    def aim(self) -> None:
        """From now on, being whole means that everything up to the newest epoch of now is on all its replicas."""
        self.goal = max((p.worker.clock.last // self.history.epoch_stamps for p in self.processes()), default=0)

    def whole(self) -> bool:
        """Whether every process runs, and all workers hold what they should up to the epoch that was aimed at."""
        processes = [process for node in self.nodes for process in node.processes]
        if len(processes) < len(self.addresses) or any(not p.alive or p.paused for p in processes):
            return False
        figures = [process.worker.status() for process in processes]
        if "complete" not in figures[0]:
            return all(p.worker.next_due() is None and not p.worker.pushes_due for p in processes)
        agreed = len({status["view_digest"] for status in figures}) == 1
        return agreed and all(s["complete"] and s["closed"] >= self.goal for s in figures)

    def report(self) -> str:
        """Return what keeps the cluster from being whole."""
        return "; ".join(str(process.worker.status()) for process in self.processes())

    def replicas(self) -> dict[str, dict[int, bytes]]:
        """Return the cell of each key at each worker that should hold it."""
        found: dict[str, dict[int, bytes]] = {}
        held = {process.worker_id: process.held() for process in self.processes()}
        ids = [worker.worker_id for worker in self.view.workers]
        for key in sorted({key for cells in held.values() for key in cells}):
            owners = [ids[place] for place in self.placement(self.view).owners_of(key, self.factor)]
            found[key.decode()] = {owner: held[owner].get(key, b"") for owner in owners if owner in held}
        return found

    def check(self) -> None:
        """Assert the invariants of every core and disk."""
        for process in self.processes():
            process.worker.check()
        for node in self.nodes:
            for disk in node.disks:
                disk.check()


def _nothing() -> None:
    """What happens to a process when it starts."""
