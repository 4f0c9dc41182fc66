"""What can go wrong with hosts, links, clocks and disks: each fault has a beginning, and most have an end.

The one rule: a fault is data in the plan, `{"kind", "at", "for", …}`, so that the minimiser can drop it and a file
can keep it. What is still under way when the cluster is healed is ended then. The protocol's own planted faults are
elsewhere: those are switches in the cores and in `cluster`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from tests.sim.cluster import Cluster
from tests.sim.schedule import MS

Fault = dict[str, Any]
Steps = Mapping[str, Callable[[Any, Fault], None]]
RETRY_NS = 200 * MS
"""How long a crash that waits for redundancy waits before it looks again."""


class Nemesis:
    """Begins and ends the plan's faults."""

    def __init__(self, cluster: Cluster, begins: Steps | None = None, ends: Steps | None = None) -> None:
        self.cluster = cluster
        self.begins = BEGIN if begins is None else begins
        self.ends = END if ends is None else ends
        self.active: dict[int, Fault] = {}
        self.healed = False
        for number, fault in enumerate(cluster.plan["faults"]):
            cluster.schedule.at(fault["at"], self.begin, number, fault)

    def begin(self, number: int, fault: Fault) -> None:
        """Begin one fault; one that needs redundancy to be whole waits until it is."""
        if self.healed:
            return
        if fault.get("careful") and not self.cluster.redundant:
            self.cluster.schedule.after(RETRY_NS, self.begin, number, fault)
            return
        self.cluster.schedule.note(f"fault {fault['kind']}")
        self.active[number] = fault
        self.begins[fault["kind"]](self.cluster, fault)
        self.cluster.schedule.after(fault["for"], self.end, number)

    def end(self, number: int) -> None:
        """End one fault, unless the healing has ended it."""
        fault = self.active.pop(number, None)
        if fault is not None:
            self.cluster.schedule.note(f"end of {fault['kind']}")
            self.ends.get(fault["kind"], _nothing)(self.cluster, fault)

    def heal(self) -> None:
        """End all that is under way, and begin no more; start every node."""
        self.healed = True
        for number in list(self.active):
            self.end(number)
        self.cluster.network.quality = replace(
            self.cluster.network.quality, loss=0.0, repeat=0.0, straggler=0.0, straggler_delay=0
        )
        for node in self.cluster.nodes:
            if node.wanted:
                node.restart()


def links_between(some: Iterable[int], others: Iterable[int]) -> list[tuple[int, int]]:
    """Return both directions of every pair."""
    others = list(others)
    return [link for a in some for b in others if a != b for link in ((a, b), (b, a))]


def links_of(cluster: Cluster, fault: Fault) -> list[tuple[int, int]]:
    """Return the links that a fault of the network cuts."""
    nodes = len(cluster.nodes)
    hosts = range(nodes + len(cluster.clients) + len(cluster.routers))
    if fault["kind"] == "one-way":
        return [(fault["source"], fault["target"])]
    if fault["kind"] == "ring":
        pairs = ((a, b) for a in range(nodes) for b in range(nodes))
        return [(a, b) for a, b in pairs if (a - b) % nodes not in (0, 1, nodes - 1)]
    side = set(fault["side"])
    return links_between(sorted(side), [host for host in hosts if host not in side])


def cut(cluster: Cluster, fault: Fault) -> None:
    """Cut links."""
    cluster.network.cut(links_of(cluster, fault))


def mend(cluster: Cluster, fault: Fault) -> None:
    """Make them whole."""
    cluster.network.heal(links_of(cluster, fault))


def crash(cluster: Cluster, fault: Fault) -> None:
    """A host loses power, and perhaps its disks."""
    if cluster.nodes[fault["node"]].up:
        cluster.nodes[fault["node"]].crash(fault["kind"] == "wipe")


def restart(cluster: Cluster, fault: Fault) -> None:
    """It comes back."""
    if cluster.nodes[fault["node"]].wanted:
        cluster.nodes[fault["node"]].restart()


def kill(cluster: Cluster, fault: Fault) -> None:
    """One process dies."""
    cluster.nodes[fault["node"]].kill(fault["seat"])


def join(cluster: Cluster, fault: Fault) -> None:
    """A host that was not there, or has left, joins."""
    cluster.nodes[fault["node"]].restart()


def leave(cluster: Cluster, fault: Fault) -> None:
    """A host hands over its keys, to be gone then."""
    cluster.nodes[fault["node"]].leave()


def pause(cluster: Cluster, fault: Fault) -> None:
    """A host's processes stop without noticing."""
    for process in cluster.nodes[fault["node"]].processes:
        process.pause()


def resume(cluster: Cluster, fault: Fault) -> None:
    """They go on."""
    for process in cluster.nodes[fault["node"]].processes:
        if process.paused:
            process.resume()


def jump(cluster: Cluster, fault: Fault) -> None:
    """A host's wall clock jumps; it is seen by whoever starts there."""
    cluster.nodes[fault["node"]].clock.jump(fault["seconds"])


def break_streams(cluster: Cluster, fault: Fault) -> None:
    """A client's connections are reset."""
    cluster.clients[fault["client"] % len(cluster.clients)].loop.break_streams()


def stop_router(cluster: Cluster, fault: Fault) -> None:
    """A router is killed."""
    for router in cluster.routers[fault["router"] : fault["router"] + 1]:
        router.stop()


def start_router(cluster: Cluster, fault: Fault) -> None:
    """It is started again, and knows nothing."""
    for router in cluster.routers[fault["router"] : fault["router"] + 1]:
        router.start()


def set_disks(**settings: Any) -> Callable[[Cluster, Fault], None]:
    """Return a step that changes the disks of a fault's node."""

    def step(cluster: Cluster, fault: Fault) -> None:
        for disk in cluster.nodes[fault["node"]].disks:
            for name, value in settings.items():
                setattr(disk, name, value)

    return step


def _nothing(cluster: Cluster, fault: Fault) -> None:
    """A fault that needs no end."""


BEGIN: dict[str, Callable[[Cluster, Fault], None]] = {
    "crash": crash,
    "wipe": crash,
    "kill": kill,
    "join": join,
    "leave": leave,
    "pause": pause,
    "partition": cut,
    "one-way": cut,
    "ring": cut,
    "jump": jump,
    "router": stop_router,
    "break": break_streams,
    "slow-disk": set_disks(slow_factor=50),
    "full-disk": set_disks(full=True),
    "fsync-error": set_disks(failing=True),
    "lying-fsync": set_disks(lying=True),
}
END: dict[str, Callable[[Cluster, Fault], None]] = {
    "crash": restart,
    "wipe": restart,
    "pause": resume,
    "partition": mend,
    "one-way": mend,
    "ring": mend,
    "router": start_router,
    "slow-disk": set_disks(slow_factor=1),
    "full-disk": set_disks(full=False),
    "fsync-error": set_disks(failing=False),
    "lying-fsync": set_disks(lying=False),
}
