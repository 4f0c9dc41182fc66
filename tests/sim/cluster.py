"""A cluster in one process: nodes, clients, and the network between them, all from one plan.

The one rule: what the cluster knows of a core is what its driver would know, except for judging: whether all is whole
again is asked of the cores themselves, because the checkers must not wait longer or shorter than it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from random import Random
from typing import Any

from anna.config import EPOCH_US
from anna.kvs.clock import Clock
from anna.kvs.worker import Worker
from anna.messages import ALIVE, DEAD, NodeInfo, View
from anna.routing.placement import Placement
from tests.sim.client import Client
from tests.sim.history import REPLICATE, History, Losses
from tests.sim.network import Network, Quality, Stream
from tests.sim.node import Node
from tests.sim.process import Process
from tests.sim.router import RouterHost
from tests.sim.schedule import SECOND, Schedule

FACTOR_STAMP = 1

Plan = dict[str, Any]
PLAIN: Plan = {"spares": 0, "seeds": 0, "routers": 0, "contacts": [], "watched": [], "checkpoint_bytes": 1 << 60}
"""What a plan says that does not say it."""


STEADY_NS = 3 * SECOND
"""In so short a time nobody is called dead."""

MOVING = ("crash", "wipe", "kill", "fsync-error", "join", "leave")


def moving(plan: Plan) -> bool:
    """Whether keys may come to another owner, or their owner may lose them."""
    changed = any(operation["kind"] == REPLICATE for operation in plan["operations"])
    return changed or any(fault["kind"] in MOVING for fault in plan["faults"])


class Cluster:
    """All nodes, clients and what is between them, from one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan = {**PLAIN, **plan}
        self.schedule = Schedule(plan["seed"])
        self.ids: Random = self.schedule.stream("ids")
        self.goal = 0
        self.aimed_at = 0
        self.watched_at = 0
        self.were_all_at_hand = True
        self.network = Network(self.schedule, Quality(**plan["network"]))
        self.factor: int = plan["factor"]
        self.history = History(Losses(self.factor, seats=plan["workers"]), EPOCH_US << 10)
        self.history.steady = self.factor == 1 and plan.get("safety", 0) <= STEADY_NS and not moving(plan)
        self.view = View(0, (), factor=self.factor)
        self.by_id: dict[int, Process] = {}
        self.by_address: dict[str, Process | RouterHost] = {}
        self._placements: dict[int, Placement] = {}
        self.nodes = [Node(self, host, plan["workers"], skew) for host, skew in enumerate(plan["skews"])]
        self.addresses = [node.address(seat) for node in self.nodes for seat in range(plan["workers"])]
        first = self.nodes[: len(self.nodes) - plan["spares"]]
        infos = sorted((replace(node.new_info(), status=ALIVE) for node in first), key=lambda info: info.node_id)
        self.view = View(1, tuple(infos), self.factor, FACTOR_STAMP)
        for node in first:
            node.wanted = True
        for node in first:
            node.choose_seeds()
            node.start(self.view)
        hosts = len(self.nodes) + plan["clients"]
        self.routers = [RouterHost(self, hosts + number, tuple(self.addresses)) for number in range(plan["routers"])]
        operations: dict[int, list[dict[str, Any]]] = {}
        for operation in plan["operations"]:
            operations.setdefault(operation["client"], []).append(operation)
        self.clients = [
            Client(self, number, len(self.nodes) + number, self.contacts(number), operations.get(number, []))
            for number in range(plan["clients"])
        ]

    def contacts(self, client: int) -> tuple[str, ...]:
        """Return the addresses that a client begins with: those of the workers, or of one router."""
        routers = self.plan["contacts"][client : client + 1]
        return (self.routers[routers[0]].address,) if routers and routers[0] >= 0 else tuple(self.addresses)

    # -- what nodes ask of the cluster

    def make_worker(self, process: Process) -> Worker:
        """Return the core of a process, as it starts."""
        host = process.node.clock
        clock = Clock(process.node.wall_us(), host.monotonic() // 1000)
        view = process.node.view
        worker = Worker(view, view.index_of(process.worker_id), clock, process.node.seeds)
        if self.plan["disks"]:
            process.durability.recover(worker)
        return worker

    def view_of_start(self, info: NodeInfo, remembered: View) -> View:
        """Return the view with which a node starts: itself, and what it remembers."""
        own = View(1, (info,), self.factor, FACTOR_STAMP)
        return remembered.join(own) if remembered.nodes else own

    def lose(self, node_id: int, wipe: bool) -> None:
        """Write down that memory of a node, and perhaps its disk, is lost."""
        self.history.losses.crashes.append(self.schedule.now)
        self.history.losses.fallen.append((self.schedule.now, node_id))
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
            if process is None:
                return None
            stream.far_id = process.worker_id
            return process.accept(stream)

        host = int(address[7 : address.index("/", 7)])
        return self.network.connect(near, host, accept, on_near)

    def send_peer(self, source: Process, target: int | str, frame: bytes) -> None:
        """Send one worker's frame to an address, or to where its view has a worker: to whoever sits there by now."""
        if isinstance(target, int):
            seats = (worker for worker in source.worker.view_of_peers.workers if worker.worker_id == target)
            target = next((worker.addresses[-1] for worker in seats), "")
        found = self.by_address.get(target)
        if not isinstance(found, Process):
            return
        sender = source.worker_id
        self.network.send(source.node.host, found.node.host, frame, lambda data: found.from_peer(sender, data))

    # -- what the run asks

    @property
    def redundant(self) -> bool:
        """Whether every key has all its copies again since the last crash."""
        losses = self.history.losses
        return not losses.crashes or (bool(losses.restored) and losses.restored[-1][1] > losses.crashes[-1])

    def watch(self) -> None:
        """Let supervisors do their work; note who is called dead, who knows of vectors, when all is redundant again."""
        views = [process.worker.view for process in self.processes()]
        dead = {info.node_id for view in views for info in view.nodes if info.status == DEAD}
        if len({view.vectors for view in views}) == 1:
            self.history.losses.vectors_known.append(self.schedule.now)
        self.history.losses.note_away(sorted(dead), self.watched_at, self.schedule.now)
        self.note_at_hand(dead)
        self.watched_at = self.schedule.now
        for node in self.nodes:
            node.attend()
        if not (self.redundant and self.were_all_at_hand) and self.settled():
            self.history.losses.restored.append((self.aimed_at, self.schedule.now))
            self.were_all_at_hand = True

    def note_at_hand(self, dead: Collection[int]) -> None:
        """Note how many nodes there are that nobody calls dead; copies are whole again only after the last absence."""
        wanted = [node for node in self.nodes if node.wanted]
        at_hand = sum(node.node_id not in dead for node in wanted)
        all_were = not self.history.losses.at_hand or self.history.losses.at_hand[-1][1] == len(wanted)
        self.history.losses.at_hand.append((self.schedule.now, at_hand))
        if at_hand < len(wanted) or not all_were:
            self.were_all_at_hand = False
            self.aim()

    def aim(self) -> None:
        """From now on, to be settled means that all up to the newest epoch of now is on all its replicas."""
        self.aimed_at = self.schedule.now
        self.goal = max((p.worker.clock.last // self.history.epoch_stamps for p in self.processes()), default=0)

    def whole(self) -> bool:
        """Whether every node that should be is up, and the cluster is settled."""
        return all(node.up == node.wanted for node in self.nodes) and self.settled()

    def settled(self) -> bool:
        """Whether all that run agree on who serves, and each has all that it should up to the epoch aimed at."""
        up = [node for node in self.nodes if node.up]
        workers = [process.worker for process in self.processes()]
        if not workers or not all(node.running for node in up):
            return False
        figures = [worker.status() for worker in workers]
        view = workers[0].view
        agreed = not view.vectors.moving and all(worker.view.digest == view.digest for worker in workers)
        serving = {info.node_id for info in view.serving} == {node.node_id for node in up}
        decided = not any(s["prepared"] for s in figures)
        whole = all(s["complete"] and s.get("stable", s["closed"]) >= self.goal for s in figures)
        return agreed and serving and decided and whole

    def report(self) -> str:
        """Return what keeps the cluster from being whole."""
        return "; ".join(str(process.worker.status()) for process in self.processes())

    def replicas(self) -> dict[str, dict[int, bytes]]:
        """Return the cell of each key at each worker that should hold it."""
        found: dict[str, dict[int, bytes]] = {}
        held = {process.worker_id: process.held() for process in self.processes()}
        view = next((process.worker.view for process in self.processes()), self.view)
        ids = [worker.worker_id for worker in view.workers]
        for key in sorted({key for cells in held.values() for key in cells} if view.serving else ()):
            owners = [ids[place] for place in self.placement(view).owners_of(key)]
            found[key.decode()] = {owner: held[owner].get(key, b"") for owner in owners if owner in held}
        return found

    def close(self) -> None:
        """Let nothing more happen at the clients."""
        for client in self.clients:
            client.stop()
        self.schedule.run(self.schedule.now)
        for client in self.clients:
            client.loop.close()

    def check(self) -> None:
        """Assert the invariants of every core and disk."""
        for process in self.processes():
            process.worker.check()
        for node in self.nodes:
            for disk in node.disks:
                disk.check()
