"""Which of the machines that have come are those that were asked for: the pure part of the provider `ec2`.

The one rule: the listing is the truth, whatever was answered to whoever asked. What is wanted are places by name; more
instances may be listed than there are places, because some were asked for as stand-ins, or because a request was done
twice. A place takes the instance that comes first; once every place is ready, the instances without one are given back.
Nothing here has a clock, and nothing asks anybody. Source: burst-systems §5.5; docs/decisions/0042.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cloudburst.burst.provider import ASKED, BOOT, FETCH, FIRST_TASK, PENDING, READY, Machine

ALIVE: Final = ("pending", "running")


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance as it is listed. `why` is what is said of its end."""

    id: str
    state: str
    address: str = ""
    place: str = ""
    why: str = ""

    @property
    def alive(self) -> bool:
        """Whether it runs, or will."""
        return self.state in ALIVE


@dataclass(slots=True)
class Steps:
    """What is to be done now: letters that begin nodes (instance, name, whom to join), instances to give back."""

    letters: list[tuple[str, str, str]] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)


Said = Mapping[str, Any]
"""What a host has said of itself, all together. `at` is when it was last heard, in seconds since 1970 by this side's
clock; `boot`, `fetch`, `active` are how many seconds before that it came so far, or was at work; `node` is what is
known of its node, `met` how many executors of others that knows, `left` how many processes remain after its end."""


class Allotment:
    """The places of one run, and what is in them."""

    def __init__(self, run: str, silent_s: float) -> None:
        self._run = run
        self._silent_s = silent_s
        self._machines: dict[str, Machine] = {}
        self._places: dict[str, str] = {}
        self._instances: dict[str, Instance] = {}
        self._said: dict[str, Said] = {}
        self._ordered: set[str] = set()
        self._ending: dict[str, str] = {}

    # -- what is wanted

    def ask(self, names: Sequence[str], place: str, now: float) -> Sequence[Machine]:
        """Want so many more."""
        for name in names:
            self._machines[name] = Machine(name, place, self._run).after(ASKED, now)
        return [self._machines[name] for name in names]

    def end(self, names: Sequence[str], how: str) -> None:
        """Want some to end."""
        self._ending |= {self._places[name]: how for name in names if name in self._places}

    def forget(self, names: Sequence[str]) -> None:
        """Want some no more."""
        for name in names:
            self._machines.pop(name, None)
            self._places.pop(name, None)

    # -- what there is

    @property
    def machines(self) -> Sequence[Machine]:
        """What was asked for and is not forgotten, oldest first."""
        return list(self._machines.values())

    @property
    def settled(self) -> bool:
        """Whether nothing is awaited: every place is ready or will never be."""
        return all(one.fault or self.knows_all(one) for one in self._machines.values())

    @property
    def awaits_machines(self) -> bool:
        """Whether some place waits for a machine to come, or for one to go: what only the listing tells."""
        waiting = any(not one.fault and not self._has_come(self.instance_of(one.name)) for one in self.machines)
        return waiting or any(one.alive for id in self._ending if (one := self._instances.get(id)) is not None)

    @property
    def entries(self) -> Mapping[str, str]:
        """Every instance that lives, and how it is to end, "" when it is not to."""
        return {one.id: self._ending.get(one.id, "") for one in self._instances.values() if one.alive}

    def instance_of(self, name: str) -> str:
        """Return the instance in a place, "" for none."""
        return self._places.get(name, "")

    def knows_all(self, machine: Machine) -> bool:
        """Return whether a node is ready and can use the executors of all others."""
        return machine.ready and self._has_met_all(machine)

    def _has_met_all(self, machine: Machine) -> bool:
        others = sum(one.executors for one in self._nodes() if one.name != machine.name)
        return int(self._said[self._places[machine.name]].get("met", -1)) >= others

    def has_ended(self, name: str) -> bool:
        """Return whether the node in a place has, or its machine, or whether there never was one."""
        id = self._places.get(name, "")
        instance = self._instances.get(id)
        if instance is None or not instance.alive or id not in self._ordered:
            return True
        said = self._said.get(id, {})
        return bool(said.get("ended") or said.get("fault"))

    def left(self, name: str) -> int:
        """Return how many processes an ended node has left, as far as that is known."""
        return int(self._said.get(self._places.get(name, ""), {}).get("left", 0))

    def _nodes(self) -> list[Machine]:
        return [one for one in self._machines.values() if one.address and not one.fault]

    # -- what happens

    def take(self, listed: Sequence[Instance], said: Mapping[str, Said], now: float) -> Steps:
        """Take in what is listed, and what hosts have said; return what is to be done.

        An instance that is not listed is as it was: those that have ended are, for an hour.
        """
        self._instances |= {one.id: one for one in listed}
        self._said |= said
        for name, machine in self._machines.items():
            if not machine.fault:
                self._machines[name] = self._advanced(machine, now)
        for name, machine in self._machines.items():
            if machine.address and not machine.fault and self._has_met_all(machine):
                begun = self._said[self._places[name]].get("begun")
                self._machines[name] = machine.after(FIRST_TASK if begun else READY, now)
        return Steps(self._letters(), self._surplus())

    def _advanced(self, machine: Machine, now: float) -> Machine:
        """Return a machine as it is now: the instance in its place, how far that is, and whether it has failed."""
        before = self._places.get(machine.name, "")
        id = self._chosen(machine, now)
        if not id:
            return machine
        if id != before:
            self._places[machine.name] = id
            machine = replace(machine, address="", pid=0, executors=0, reached={ASKED: machine.reached[ASKED]})
        return replace(self._seen(machine, id, now), fault=self._fault(id, now))

    def _chosen(self, machine: Machine, now: float) -> str:
        """Return the instance for a place: the one in it unless that is of no use, or another has come before it."""
        id = self._places.get(machine.name, "")
        useful = bool(id) and not self._fault(id, now)
        if READY in machine.reached or (useful and self._has_come(id)):
            return id
        free = [one for one in self._free(now) if self._has_come(one) or not useful]
        return next(iter(free), id)

    def _has_come(self, id: str) -> bool:
        return BOOT in self._said.get(id, {})

    def _free(self, now: float) -> list[str]:
        """Return the living instances that have no place, those first that have come."""
        used = {*self._places.values(), *self._ending}
        free = [one.id for one in self._instances.values() if one.id not in used and not self._fault(one.id, now)]
        return sorted(free, key=lambda id: not self._has_come(id))

    def _fault(self, id: str, now: float) -> str:
        """Return why an instance is of no use, "" when it is."""
        instance, said = self._instances[id], self._said.get(id, {})
        if id in self._ending:
            return ""
        if said.get("fault"):
            return str(said["fault"])
        if not instance.alive:
            return f"{id} is {instance.state}" + (f": {instance.why}" if instance.why else "")
        if said and now - float(said["at"]) > self._silent_s:
            return f"{id} has said nothing for {self._silent_s:g} s"
        return ""

    def _seen(self, machine: Machine, id: str, now: float) -> Machine:
        """Return what is known of a machine by its instance."""
        instance, said = self._instances[id], self._said.get(id, {})
        machine = replace(machine, place=f"{id} {instance.place}").after(PENDING, now)
        for phase in (BOOT, FETCH):
            if phase in said and phase not in machine.reached:
                machine = machine.after(phase, float(said["at"]) - float(said[phase]))
        if said.get("node") and not machine.address:
            machine = replace(machine, **said["node"], active=now)
        if said.get("active"):
            machine = replace(machine, active=max(machine.active, float(said["at"]) - float(said["active"])))
        return machine

    def _letters(self) -> list[tuple[str, str, str]]:
        """Return the letters that are to be sent now: one that begins the cluster, or all that join it."""
        waiting = [
            one for one in self._machines.values()
            if FETCH in one.reached and not one.fault and self._places[one.name] not in {*self._ordered, *self._ending}
        ]  # fmt: skip
        seeds = [one.address for one in self._nodes()]
        begun = any(not one.fault and self.instance_of(one.name) in self._ordered for one in self._machines.values())
        if not waiting or (begun and not seeds):
            return []  # whoever begins it has not said where it is
        chosen = waiting if seeds else waiting[:1]
        self._ordered |= {self._places[one.name] for one in chosen}
        return [(self._places[one.name], one.name, seeds[0] if seeds else "") for one in chosen]

    def _surplus(self) -> list[str]:
        """Return the living instances that nobody needs, once every place is ready or never will be."""
        if not self._machines or not all(READY in one.reached or one.fault for one in self._machines.values()):
            return []
        used = {*self._places.values(), *self._ending}
        return [one.id for one in self._instances.values() if one.alive and one.id not in used]

    def check(self) -> None:
        """Assert what always holds."""
        assert set(self._places) <= set(self._machines)
        assert len(set(self._places.values())) == len(self._places), "an instance has two places"
