"""A host and its supervisor: clocks and disks that stay, processes that come and go.

The one rule: a supervisor knows what its disks kept and what its processes have told it, and no more. A node whose
disks survive comes back under its id, as its next generation; one that has lost them is a stranger with a new id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from anna.errors import NoWorkers
from anna.messages import ALIVE, JOINING, LEFT, NodeInfo, View, WorkerInfo
from tests.sim.clocks import HostClock
from tests.sim.disk import Disk
from tests.sim.process import Process
from tests.sim.schedule import MS, US

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

RESTART_NS = 100 * MS
"""How long a supervisor needs to replace a process."""


class Node:
    """A host. `wanted` tells whether it should be up when all is well; `view` is what its supervisor knows."""

    def __init__(self, cluster: Cluster, host: int, seats: int, skew_us: int) -> None:
        self.cluster = cluster
        self.host = host
        self.clock = HostClock(cluster.schedule, cluster.schedule.stream(f"clock {host}"), skew_us)
        self.disks = [Disk(cluster.schedule, cluster.schedule.stream(f"disk {host} {s}")) for s in range(seats)]
        self.node_id = self.new_id()
        self.generation = 1
        self.wanted = False
        self.wall_at_zero_us = 0
        self.view = View(0, ())
        self.remembered = View(0, ())
        """What its directory says of the cluster; nothing without disks."""
        self.seeds: tuple[str, ...] = ()
        self.draw = cluster.schedule.stream(f"seeds {host}")
        self.processes: list[Process] = []

    @property
    def up(self) -> bool:
        """Whether its supervisor runs."""
        return bool(self.processes)

    @property
    def running(self) -> bool:
        """Whether all its processes run."""
        return self.up and all(process.alive and not process.paused for process in self.processes)

    def choose_seeds(self) -> None:
        """Choose the addresses at which it asks for the cluster: those of some other nodes that are meant to be up.

        The first one is always among them, so that nodes which all start anew are one cluster.
        """
        others: Sequence[Node] = [node for node in self.cluster.nodes if node.wanted and node is not self]
        few = self.cluster.plan["seeds"]
        if few and others:
            others = [others[0], *self.draw.sample(others[1:], min(few - 1, len(others) - 1))]
            others = self.draw.sample(others, len(others))
        self.seeds = tuple(node.address(seat) for node in others for seat in range(len(node.disks)))

    def wall_us(self) -> int:
        """Return the time by the supervisor's one reading of the wall clock, at its start."""
        return self.wall_at_zero_us + self.cluster.schedule.now // US

    def new_id(self) -> int:
        """Return an id that nobody has had."""
        return self.cluster.ids.getrandbits(63) | 1

    def new_info(self) -> NodeInfo:
        """Return the record of a start, with new workers."""
        self.choose_seeds()
        seats = tuple(WorkerInfo(self.new_id(), (self.address(seat),), seat) for seat in range(len(self.disks)))
        return NodeInfo(self.node_id, seats, self.generation, status=JOINING if self.seeds else ALIVE)

    def address(self, seat: int) -> str:
        """Return the address of a seat, whoever sits there."""
        return f"unix:/n{self.host}/w{seat}.sock"

    def start(self, view: View) -> None:
        """Start the supervisor and its processes, which begin with `view`."""
        self.cluster.schedule.note(f"start node {self.host}")
        self.wanted = True
        self.cluster.network.switch(self.host, True)
        self.wall_at_zero_us = self.clock.wall_us() - self.cluster.schedule.now // US
        self.view = view
        workers = view.node(self.node_id).workers
        self.processes = [Process(self, worker.seat, worker.worker_id) for worker in workers]
        for process in self.processes:
            process.run(_nothing)

    def restart(self) -> None:
        """Start again, after a crash or for the first time, by what the disks hold."""
        if not self.up:
            self.start(self.cluster.view_of_start(self.new_info(), self.remembered))

    def crash(self, wipe: bool) -> None:
        """Lose power, and with `wipe` the disks too."""
        self.attend()
        if not self.up:
            return  # it had left already
        self.cluster.schedule.note(f"crash node {self.host} wipe {wipe}")
        self.cluster.lose(self.node_id, wipe)
        self.cluster.network.switch(self.host, False)
        self.end(without_power=True)
        self.cluster.history.forgot_time |= not self.cluster.by_id
        self.clock.reboot()
        for disk in self.disks:
            if wipe:
                disk.wipe()
            else:
                disk.crash()
        self.forget_who(wipe or not self.cluster.plan["disks"])

    def end(self, without_power: bool = False) -> None:
        """End all processes."""
        for process in self.processes:
            if process.alive:
                process.die(without_power)
        self.processes = []

    def forget_who(self, stranger: bool) -> None:
        """Be the next generation at the next start; a stranger, if the disks do not tell who this was."""
        self.generation += 1
        if stranger:
            self.node_id, self.generation = self.new_id(), 1
            self.remembered = View(0, ())

    def kill(self, seat: int) -> None:
        """Kill one process; the supervisor replaces it."""
        if self.up and self.processes[seat].alive:
            self.cluster.schedule.note(f"kill node {self.host} seat {seat}")
            self.cluster.lose(self.node_id, False)
            self.view = self.view.join(self.processes[seat].worker.view)
            self.processes[seat].die()
            self.cluster.history.forgot_time |= not self.cluster.by_id
            self.disks[seat].kill()
            self.cluster.schedule.after(RESTART_NS, self.replace, seat, self.generation)

    def replace(self, seat: int, generation: int) -> None:
        """Start a process in the place of one that has died, and tell the others of this node."""
        if not self.up or generation != self.generation or self.processes[seat].alive:
            return
        for process in self.processes:
            self.view = self.view.join(process.worker.view)
        worker = WorkerInfo(self.new_id(), (self.address(seat),), seat)
        self.view = self.view.with_worker(self.node_id, worker)
        if not self.view.node(self.node_id).reachable:
            known = self.view.node(self.node_id)
            self.view = self.view.with_node(replace(known, status=ALIVE, refutation=known.refutation + 1))
        for process in self.processes:
            process.run(process.worker.adopt, self.view)
        self.processes[seat] = Process(self, seat, worker.worker_id)
        self.processes[seat].run(_nothing)

    def remember(self) -> None:
        """Keep the newest view, to find the others by after a restart."""
        if self.cluster.plan["disks"]:
            for process in self.processes:
                if process.alive:
                    self.remembered = self.remembered.join(process.worker.view)

    def leave(self) -> None:
        """Begin to hand over all keys."""
        if self.running:
            try:
                for process in self.processes:
                    process.run(process.worker.depart)
            except NoWorkers:
                self.cluster.schedule.note(f"node {self.host} cannot leave")

    def attend(self) -> None:
        """Do what a supervisor does when its workers say that they are to stop."""
        if self.up:
            self.remember()
            alive = [process.worker for process in self.processes if process.alive]
            if alive and (all(worker.has_left for worker in alive) or self.is_done_without()):
                self.cluster.schedule.note(f"node {self.host} has left")
                self.wanted = False
                self.end()
                left = sum(node.wanted for node in self.cluster.nodes)
                self.cluster.history.losses.nodes.append((self.cluster.schedule.now, left))
                self.set_aside()
            elif any(worker.superseded for worker in alive):
                self.cluster.schedule.note(f"node {self.host} is superseded")
                self.end()
                self.set_aside()
                self.cluster.schedule.after(RESTART_NS, self.restart)

    def is_done_without(self) -> bool:
        """Whether the others know that it has left, before it knows that they do: one that crashes then is no loss."""
        views = (process.worker.view for process in self.cluster.processes())
        nodes = (node for view in views for node in view.nodes)
        return any(node.node_id == self.node_id and node.status == LEFT for node in nodes)

    def set_aside(self) -> None:
        """Be another node at the next start, with nothing: what the disks hold is not to come back."""
        for disk in self.disks:
            disk.wipe()
        self.forget_who(True)


def _nothing() -> None:
    """What happens to a process when it starts."""
