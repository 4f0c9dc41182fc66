"""What a source of machines is: eight verbs, and the values that they take and give.

The one rule: a machine is a place where a node of one run's cluster runs, and it ends with that run. Who asks for
machines (`cloudburst.cluster`) knows nothing of where they come from; who has them (`cloudburst.burst.thismachine`)
knows nothing of what they are for. Each machine goes through the same phases, and says when. Nothing here does
anything.
Source: burst-systems §5.5; docs/decisions/0036.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from cloudburst.burst.runkeys import RunKeys
from cloudburst.secret import Secret

ASKED, PENDING, BOOT, FETCH, AGENT, FIRST_TASK = "asked", "pending", "boot", "fetch", "agent", "first-task"
PHASES: Final = (ASKED, PENDING, BOOT, FETCH, AGENT, FIRST_TASK)
"""What a machine goes through: it was asked for; somebody takes care of it; it answers; what is run there is there; its
node runs and knows the others (now it is ready); it has run its first call. The time of each is when it was reached."""

READY: Final = AGENT


@dataclass(frozen=True, slots=True)
class Spec:
    """What the machines of one run are to be, the same for each.

    `executors` None, without `least` and `most`: as the provider sees fit. After `ttl_s` a machine ends, whatever
    happens to the run. `insecure` allows them to be prepared over what is not encrypted. `keys` makes those of the run.
    `price` is what whoever asks says that one costs in an hour, None: the provider knows.
    """

    run: str
    executors: int | None = None
    least: int | None = None
    most: int | None = None
    workers: int | None = 1
    ttl_s: float | None = None
    insecure: bool = False
    price: float | None = None
    secret: Secret = field(default_factory=Secret.fresh, repr=False)
    keys: RunKeys = field(default_factory=RunKeys, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be asked for: a place for each machine, and what all of them cost in an hour, in US dollars.

    `priced` says by what that is known, and `warnings` are what whoever asks is to know beside that.
    """

    places: tuple[str, ...]
    price: float
    warnings: tuple[str, ...] = ()
    priced: str = ""

    def at(self, price: float | None) -> Plan:
        """Return the same with what whoever asks says that a machine costs in an hour; as it is for None."""
        return self if price is None else replace(self, price=price * len(self.places), priced="as --price says")


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine as it was last seen.

    `address` is that of its node, "" before it is ready. `reached` has the time of each phase, in seconds since 1970.
    `fault` says why it will never be ready, or is not there any more; `unfit`, that its Python is why. `shell` is the
    command that opens a shell there, `active` when it was last seen at work.
    """

    name: str
    place: str
    run: str
    address: str = ""
    pid: int = 0
    executors: int = 0
    fault: str = ""
    reached: Mapping[str, float] = field(default_factory=dict)
    shell: tuple[str, ...] = ()
    active: float = 0.0
    unfit: bool = False

    @property
    def ready(self) -> bool:
        """Whether its node runs."""
        return READY in self.reached and not self.fault

    @property
    def phase(self) -> str:
        """The last phase that it has reached."""
        return max(self.reached, key=PHASES.index, default="")

    def after(self, phase: str, now: float) -> Machine:
        """Return it as it is once it has reached a phase, and with that those before; what was reached stays so."""
        missing = [one for one in PHASES[: PHASES.index(phase) + 1] if one not in self.reached]
        return replace(self, reached={**self.reached, **dict.fromkeys(missing, now)})


Notice = Callable[[Machine], None]
"""Told of a machine whenever it has reached a phase, or failed; from any thread."""


class Provider(Protocol):
    """A source of machines, for one run. All verbs are blocking; `list` and `price` ask nobody else."""

    def plan(self, spec: Spec, count: int) -> Plan:
        """Return what `create` would ask for. Raises MachinesNotObtained when there cannot be so many."""

    def create(self, spec: Spec, count: int) -> Sequence[Machine]:
        """Ask for so many more machines, whose nodes join those that are there; return them in phase `asked`.

        With none there, the first of them begins the cluster.
        """

    def list(self) -> Sequence[Machine]:
        """Return the machines of this run that are there or on the way, oldest first; and those that failed."""

    def wait(self, machines: Sequence[Machine], within_s: float) -> Sequence[Machine]:
        """Wait until each of them is ready or has failed, or the time is over; return all as they are then."""

    def destroy(self, machines: Sequence[Machine], *, leaving: bool) -> Sequence[str]:
        """End machines once their calls have, and return what could not be ended.

        With `leaving`, others go on, and their nodes hand over their keys first. Interrupted, it ends them at once.
        """

    def reap(self, older_s: float | None, *, dry: bool) -> Sequence[Machine]:
        """End what runs that are over have left, and, with `older_s`, runs that are older, whoever has them.

        Returns what it ended; with `dry`, what it would have.
        """

    def console(self, machine: Machine) -> str:
        """Return the last that a machine has said, to tell why it did not become ready."""

    def price(self, spec: Spec) -> float:
        """Return what a machine costs in an hour, in US dollars."""
