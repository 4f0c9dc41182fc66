"""A provider whose machines cost money, and of which some never come: for what is asked of every provider."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cloudburst.burst.provider import PENDING, Machine, Notice, Plan, Spec
from cloudburst.burst.thismachine import ThisMachine

PRICE = 36.0
"""Of a machine, in an hour: a cent a second."""


class Elsewhere(ThisMachine):
    """`elsewhere:N`: at most N machines come, which are nodes of this one; the others stay pending."""

    def __init__(self, where: str, base: Path, notice: Notice) -> None:
        super().__init__("", base, notice)
        self._come = int(where or 100)
        self._late: list[Machine] = []

    def plan(self, spec: Spec, count: int) -> Plan:
        return Plan(("elsewhere",) * count, self.price(spec) * count)

    def price(self, spec: Spec) -> float:
        return PRICE

    def create(self, spec: Spec, count: int) -> Sequence[Machine]:
        come = max(0, min(count, self._come - len(super().list())))
        names = (f"late-{number}" for number in range(count - come))
        late = [Machine(name, "elsewhere", spec.run).after(PENDING, time.time()) for name in names]
        self._late += late
        return [*super().create(spec, come), *late]

    def list(self) -> Sequence[Machine]:
        return [*super().list(), *self._late]

    def wait(self, machines: Sequence[Machine], within_s: float) -> Sequence[Machine]:
        return [*super().wait(machines, within_s), *self._late]

    def destroy(self, machines: Sequence[Machine], *, leaving: bool) -> Sequence[str]:
        gone = {machine.name for machine in machines}
        self._late = [one for one in self._late if one.name not in gone]
        return super().destroy(machines, leaving=leaving)

    def console(self, machine: Machine) -> str:
        return "no room in zone 1" if machine.name.startswith("late") else ""
