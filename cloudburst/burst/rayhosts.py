"""The provider `ray` and `ray://HOST:PORT`: nodes in a Ray cluster that is there already.

The one rule: what runs in it is an actor that this run's Ray job owns, with as many CPUs as its node has executors, so
Ray counts it, places it, and ends it with the job. The actor starts the agent of all remote hosts, which ends the node
when its input ends or nobody is heard; so the same things end a node as elsewhere. A Ray cluster that grows by itself
grows for it; in another one an actor waits until there is room, at most for as long as machines may take.
Source: burst-systems §5.5; docs/decisions/0043.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cloudburst.burst import reaping
from cloudburst.burst.connecting import Refused
from cloudburst.burst.hostfile import HostEntry
from cloudburst.burst.provider import Machine, Notice, Plan, Spec
from cloudburst.burst.rayplaces import Bridge, RayPlace, require
from cloudburst.burst.remote import Remote
from cloudburst.burst.remotehosts import RemoteHosts
from cloudburst.burst.ssh import left_there
from cloudburst.errors import MachinesNotObtained, RequestError


class RayRemote(Remote):
    """An agent in a place of a Ray cluster."""

    async def _send(self, path: Path) -> None:
        place: RayPlace = self._process
        place.ship(path)


UNENCRYPTED: Final = (
    "what begins nodes there goes through Ray, the keys of the run too, and is encrypted only where Ray is set up so:"
    " whoever can read that can read and change all that moves between them"
)


class RayHosts(RemoteHosts):
    """Places in one Ray cluster."""

    def __init__(self, where: str, base: Path, notice: Notice) -> None:
        require()
        super().__init__(base, notice)
        self._address = address_of(where)
        self._bridge: Bridge | None = None
        self._each = 0
        self._room = ""

    # -- what is asked for

    def plan(self, spec: Spec, count: int) -> Plan:
        """Return so many places. Raises MachinesNotObtained when Ray cannot be reached, RequestError.

        Without a number of executors each has as many as fit so often, found out once.
        """
        nodes = self._ask(nodes=True)
        cpus = [one["cpus"] for one in nodes]
        self._each = self._each or spec.executors or spec.most or share(cpus, count)
        room = sum(one // self._each for one in cpus)
        self._room = f"Ray's {len(nodes)} nodes have {sum(cpus)} CPUs, {room} times the {self._each} of a place"
        open_ones = sorted({one["ip"] for one in nodes if not HostEntry(one["ip"]).loopback})
        if open_ones and not spec.insecure:
            raise RequestError(f"{', '.join(open_ones)}: {UNENCRYPTED} (--insecure to allow)")
        warnings = [f"{UNENCRYPTED}: --insecure"] if open_ones else []
        if room < count:
            warnings.append(f"{self._room}: it has to grow")
        return Plan((f"Ray at {self._address}",) * count, 0.0, tuple(warnings))

    def create(self, spec: Spec, count: int) -> Sequence[Machine]:
        """Ask Ray for so many places, all at once."""
        self._each = self._each or 1
        given = spec.executors is not None or spec.least is not None or spec.most is not None
        whole = spec if given else replace(spec, executors=self._each)
        made = [self._ask_for_place(spec) for _ in range(count)]
        self._do(self._begin(whole, [one.name for one in made]))
        return made

    def _ask_for_place(self, spec: Spec) -> Machine:
        where = f"Ray at {self._address}"
        return self._ask_for(Machine(self._next_name(), where, spec.run), RayRemote(HostEntry(where)))

    @asynccontextmanager
    async def _connected(self, name: str) -> AsyncIterator[RayPlace]:
        bridge = await self._there()
        place, machine = bridge.place(name), self._machines[name]
        try:
            at = await place.had(self._each, f"{reaping.PREFIX}{machine.run}-{name}")
            self._remotes[name].entry = HostEntry(at["ip"], python=at["python"], address=at["ip"])
            self._see(replace(self._machines[name], place=f"Ray on {at['ip']}"))
            yield place
        finally:
            bridge.forget(name)

    # -- the bridge

    async def _there(self) -> Bridge:
        if self._bridge is None:
            self._bridge = await Bridge.opened(self._address)
        return self._bridge

    def _ask(self, **order: Any) -> Any:
        async def asked() -> Any:
            return await (await self._there()).ask(**order)

        try:
            return self._do(asked())
        except Refused as fault:
            raise MachinesNotObtained(str(fault)) from None

    async def _part(self) -> None:
        bridge, self._bridge = self._bridge, None
        if bridge is not None:
            await bridge.close()

    # -- what there is

    def destroy(self, machines: Sequence[Machine], *, leaving: bool) -> Sequence[str]:
        """End nodes and give their places back; with the last one the connection to Ray ends."""
        try:
            return super().destroy(machines, leaving=leaving)
        finally:
            if not self._machines:
                self._do(self._part())

    def console(self, machine: Machine) -> str:
        """Return what a place has said; for the first that has not come, how much room there is."""
        waiting = [one.name for one in self.list() if not one.fault and not one.pid]
        return super().console(machine) or (self._room if machine.name in waiting[:1] else "")

    def reap(self, older_s: float | None, *, dry: bool) -> Sequence[Machine]:
        """Do it on each node of the Ray cluster; one on which nothing can be run is told of."""
        words = ["reap", json.dumps({"older_s": older_s, "dry": dry})]
        done = self._ask(reap={"program": Path(reaping.__file__).read_text(), "words": words})
        self._do(self._part())
        found: list[Machine] = []
        for one in done:
            place = f"Ray on {one['ip']}"
            if "fault" in one:
                found.append(Machine("not looked at", place, "?", fault=one["fault"]))
            else:
                found += [left_there(left, place) for left in json.loads(one["said"])]
        return found


def address_of(where: str) -> str:
    """Return what Ray calls what stands behind `ray:`: "" is the cluster that this machine is in."""
    return f"ray:{where}" if where.startswith("//") else where or "auto"


def share(cpus: Sequence[int], count: int) -> int:
    """Return the greatest number of CPUs that nodes have so often, at least 1."""
    fits = [each for each in range(1, max(cpus, default=1) + 1) if sum(one // each for one in cpus) >= count]
    return max(fits, default=1)
