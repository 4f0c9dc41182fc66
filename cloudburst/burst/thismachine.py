"""The provider `local`: every machine is a node of its own on this one, in a directory of its own.

The one rule: whoever started the nodes holds their leases, so they end with it, however it ends: the kernel gives the
leases back. So there is nothing to reap but what a machine that lost its power has left. It costs nothing.
Source: SURFACE (cb.up); DESIGN §6.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cloudburst import config, local
from cloudburst.burst import reaping
from cloudburst.burst.provider import AGENT, ASKED, FETCH, FIRST_TASK, PENDING, READY, Machine, Notice, Plan, Spec
from cloudburst.burst.work import Work
from cloudburst.processes import stop, wait_for_end
from cloudburst.shape import Shape

COPIES: Final = 2
"""Of each key, once there are two nodes."""
LOOK_PAUSE_S: Final = 0.005


class ThisMachine:
    """Nodes on this machine, in directories below `base`."""

    def __init__(self, where: str, base: Path, notice: Notice) -> None:
        self._base = base
        self._notice = notice
        self._machines: dict[str, Machine] = {}
        self._works: dict[str, Work] = {}
        self._made = 0
        self.leases: dict[str, local.Lease] = {}

    def plan(self, spec: Spec, count: int) -> Plan:
        """Return that they are all here, and free."""
        return Plan(("this machine",) * count, 0.0)

    def price(self, spec: Spec) -> float:
        """Return 0: it is the user's own."""
        return 0.0

    def create(self, spec: Spec, count: int) -> Sequence[Machine]:
        """Start so many more nodes, one after the other. Raises NodeLost."""
        shape = self._shape(spec, len(self.list()) + count)
        return [self._start(spec, shape) for _ in range(count)]

    def _shape(self, spec: Spec, count: int) -> Shape:
        """Return what a node is, by default with its share of the cores."""
        share = max(1, len(os.sched_getaffinity(0)) // max(1, count))
        given = spec.executors is not None or spec.least is not None or spec.most is not None
        return Shape.of(spec.executors if given else share, least=spec.least, most=spec.most)

    def _start(self, spec: Spec, shape: Shape) -> Machine:
        name = f"host-{self._made}"
        self._made += 1
        shell = ("env", f"CLOUDBURST_DIR={self._base / name}", os.environ.get("SHELL") or "/bin/sh")
        machine = Machine(name, "this machine", spec.run, shell=shell).after(PENDING, time.time())
        asked: dict[str, Any] = {"workers": spec.workers, "least": shape.least, "most": shape.most}
        if self.leases:
            asked["join"] = f"unix:{next(iter(self.leases.values())).directory}"
        else:
            asked |= {"own_store": True, "factor": COPIES}
        lease = self.leases[name] = local.ensure(self._base / name, shape.executors, **asked)
        self._works[name] = Work(lease.page)
        at = f"unix:{lease.directory}"
        machine = replace(machine, address=at, pid=lease.pid, executors=shape.executors, active=time.time())
        return self._seen(machine.after(FETCH, time.time()))

    def _seen(self, machine: Machine) -> Machine:
        """Keep a machine as it is now, and tell of it when it has come further."""
        before = self._machines.get(machine.name)
        self._machines[machine.name] = machine
        if before is None or before.phase != machine.phase:
            self._notice(machine)
        return machine

    def list(self) -> Sequence[Machine]:
        """Return those that have not ended."""
        now = time.time()
        for name, lease in list(self.leases.items()):
            machine = self._machines.get(name)
            if lease.lost():
                lease.close()
                del self.leases[name]
                self._machines.pop(name, None)
            elif machine is not None and self._works[name].look():
                machine = replace(machine, active=now)
                self._seen(machine.after(FIRST_TASK, now) if machine.ready else machine)
        return list(self._machines.values())

    def wait(self, machines: Sequence[Machine], within_s: float) -> Sequence[Machine]:
        """Wait until each node can use the executors of all others: at least so many, as there may be stand-ins."""
        end = time.monotonic() + within_s
        others = sum(self._machines[name].executors for name in self.leases)
        while True:
            known = {name: lease.page.foreign() for name, lease in self.leases.items()}
            met = all(known[name] >= others - self._machines[name].executors for name in known)
            if met or time.monotonic() > end:
                break
            time.sleep(LOOK_PAUSE_S)
        for name in list(self._machines):
            if met:
                self._seen(self._machines[name].after(AGENT, time.time()))
        wanted = {machine.name for machine in machines}
        return [self._met(machine, known) for machine in list(self._machines.values()) if machine.name in wanted]

    def _met(self, machine: Machine, known: dict[str, int]) -> Machine:
        if READY in machine.reached:
            return machine
        return replace(machine, fault=f"it knows of {known.get(machine.name, 0)} executors of the others")

    def destroy(self, machines: Sequence[Machine], *, leaving: bool) -> Sequence[str]:
        """Stop nodes, whoever uses them; calls that others run there have `drain_s` to end."""
        leases = {one.name: self.leases.pop(one.name) for one in machines if one.name in self.leases}
        for name in leases:
            self._machines.pop(name, None)
        if leaving:
            return [name for name, lease in leases.items() if not self._ended(name, lease)]
        for lease in leases.values():
            lease.stop()
        try:
            return [name for name, lease in leases.items() if not wait_for_end(lease.pid, name)]
        except BaseException:
            for lease in leases.values():
                lease.stop()
            raise
        finally:
            for lease in leases.values():
                lease.close()

    def _ended(self, name: str, lease: local.Lease) -> bool:
        try:
            return stop(lease.pid, name)
        finally:
            lease.close()

    def reap(self, older_s: float | None, *, dry: bool) -> Sequence[Machine]:
        """End what is left in run directories of this machine."""
        return [machine_of(found, "this machine") for found in reaping.reap(older_s, dry)]

    def console(self, machine: Machine) -> str:
        """Return the end of a node's log."""
        try:
            return (self._base / machine.name / "log").read_text()[-config.CONSOLE_BYTES :]
        except OSError:
            return ""


def machine_of(found: reaping.Left, place: str) -> Machine:
    """Return what was left of a run, as what `reap` returns."""
    what = f"{len(found.processes)} processes and {found.directory}"
    return Machine(what, place, found.run, pid=found.holder, reached={ASKED: time.time() - found.age_s})
