"""Several nodes that are started together: `up()`, and what it returns.

The one rule: whoever started them has them, so they end with it, however it ends. Each node has executors, a cache and
a store of its own, in a directory of its own; the stores are one cluster, in which each key has copies on two of them.
Where the machines come from is a provider's business. Source: SURFACE (cb.up); DESIGN §6; docs/decisions/0036.
"""

from __future__ import annotations

import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudburst import config, local
from cloudburst.burst.provider import Machine, Notice, Provider, Spec
from cloudburst.burst.providers import provider_of
from cloudburst.burst.reaping import PREFIX
from cloudburst.burst.sizing import DEFAULT, Bounds, Load, Sizes, Sizing
from cloudburst.burst.terms import Meter, Terms
from cloudburst.client import Client
from cloudburst.errors import CloudburstError, EnvironmentMismatch, MachinesNotObtained, NodeLost
from cloudburst.keyring import renew
from cloudburst.membership import Membership
from cloudburst.page import READY, RUNNING, Page
from cloudburst.running import Word, runtime_directory

GATEWAY: Final = "gateway"
"""The directory of the node on this machine that leads to those on others (decision 0025)."""


@dataclass(frozen=True, slots=True)
class Host:
    """One node of a cluster: `address` is what `connect` and `cb node --join` take."""

    name: str
    address: str
    pid: int
    executors: int


class Cluster:
    """Nodes that run until `down`, the end of the `with` block, or the end of this process; or as their terms say.

    Made by `up`. `client` is connected to the first of them. A `command` is one that others find by `running`. `hosts`
    is a number, or two, as in `2..10`: then there are more while calls wait, and fewer when machines are idle.
    """

    def __init__(
        self, hosts: int | str | Bounds, executors: int | None, workers: int, least: int | None = None,
        most: int | None = None, *, on: str = "local", terms: Terms | None = None, insecure: bool = False,
        command: bool = False, notice: Notice = lambda _: None, sizes: Sizes = DEFAULT,
    ) -> None:  # fmt: skip
        self.bounds = Bounds.of(hosts)
        self._terms = Terms() if terms is None else terms
        self._base = Path(tempfile.mkdtemp(prefix=PREFIX, dir=runtime_directory()))
        self._base.chmod(0o700 | stat.S_ISVTX)  # it goes with the last node, though this process be killed
        self.run = self._base.name.removeprefix(PREFIX)
        self._word: Word | None = Word(self._base, self.run, command)
        self._spec = Spec(self.run, executors, least, most, workers, self._terms.ttl_s, insecure, self._terms.price)
        self._client: Client | None = None
        self._lock = threading.RLock()
        self.warnings: tuple[str, ...] = ()
        """What whoever uses these machines is to know."""
        self.sized = ""
        """Why it has last got more machines by itself, or fewer, or has not."""
        self.over = threading.Event()
        """Set once it is down."""
        self._ending = threading.Event()
        self._sizes = sizes
        self._page: Page | None = None
        self._sizing: threading.Thread | None = None
        self.reason = ""
        """Which of its terms has ended it."""
        self.ended: Callable[[], None] = lambda: None
        """Called when it begins to end."""
        try:
            self.provider: Provider = provider_of(on, self._base, notice)
            self._meter = Meter(self._terms, time.time())
            if not self.bounds.fixed:
                self.provider.plan(self._spec, self.bounds.most)
            self._scale_to(self.bounds.least)
            self._begin_sizing()
            if self._terms.any or command or on != "local":
                threading.Thread(target=self._keep_terms, name="cluster-terms", daemon=True).start()
        except BaseException:
            self.down()
            raise

    @property
    def machines(self) -> Sequence[Machine]:
        """What its nodes run on, oldest first."""
        return self.provider.list()

    @property
    def hosts(self) -> list[Host]:
        """The nodes, oldest first."""
        return [Host(one.name, one.address, one.pid, one.executors) for one in self.machines if one.ready]

    @property
    def client(self) -> Client:
        """A client of the first node, and of the next one when that has ended."""
        if self._client is None:
            self._client = Client(self._join)
        return self._client

    @property
    def directory(self) -> Path:
        """Where what this machine has of it is."""
        return self._base

    @property
    def entrance(self) -> Path:
        """The directory of a node on this machine through which programs of this user reach the cluster."""
        self.client.status()
        first = self.hosts[0].address
        return Path(first.removeprefix("unix:")) if first.startswith("unix:") else self._base / GATEWAY

    @property
    def spent(self) -> float:
        """What it has cost so far, in US dollars."""
        return self._meter.spent

    def _join(self) -> Membership:
        for host in self.hosts:
            if not host.address.startswith("unix:"):
                return self._seen(self._join_from_afar(host.address))
            if (joined := local.join(host.address.removeprefix("unix:"))) is not None:
                return self._seen(joined)
        raise NodeLost("every node of this cluster has ended")

    def _seen(self, lease: local.Lease) -> Membership:
        """Return a share in a node, in whose page the executors of all are seen."""
        self._page = lease.page
        return Membership(lease)

    def _join_from_afar(self, address: str) -> local.Lease:
        from cloudburst.gateways import through

        return through(address, self._spec.secret, self._base / GATEWAY, keys=self._spec.keys.client(GATEWAY))

    def _renew_keys(self) -> None:
        """Give the gateway on this machine new keys in time."""
        if self._spec.keys.due(GATEWAY) and (self._base / GATEWAY).is_dir():
            renew(self._base / GATEWAY, self._spec.keys.client(GATEWAY))

    def scale(self, hosts: int | str) -> None:
        """Start or stop nodes until there are so many, newest first; return when all know each other.

        With bounds, as in `2..10`, there are that many from now on as calls need. A node that is stopped takes no more
        calls, lets those end that run there (`drain_s`), and hands over its keys. Raises MachinesNotObtained or
        EnvironmentMismatch, and then there are as many as before; CostLimit.
        """
        bounds = Bounds.of(hosts)
        with self._lock:
            self._scale_to(min(max(len(self.machines), bounds.least), bounds.most))
            self.bounds = bounds
        self._begin_sizing()

    def _scale_to(self, hosts: int) -> None:
        with self._lock:
            if self._ending.is_set():
                return
            self.provider.destroy([one for one in self.machines if one.fault], leaving=False)
            there = self.machines
            if len(there) > hosts:
                self.provider.destroy(there[: hosts - 1 : -1], leaving=True)
            elif len(there) < hosts:
                plan = self.provider.plan(self._spec, hosts).at(self._terms.price)
                self._terms.check(plan, self._meter.spent)
                self.warnings = plan.warnings
                self.provider.create(self._spec, hosts - len(there))
            self._wait(hosts)

    def _wait(self, hosts: int) -> None:
        """Wait until all are ready; give back those that are not."""
        until = time.monotonic() + self._terms.ready_in_s
        answered = False
        while not answered:
            begun = time.monotonic()
            slice_s = max(0.0, min(until - begun, config.SIZE_PATIENCE_S))
            found = self.provider.wait(self.machines, slice_s)
            now = time.monotonic()
            answered = now - begun < slice_s or now >= until or self._ending.is_set()
        missing = [one for one in found if not one.ready]
        if not missing:
            return
        why = [f"{one.name} ({one.place}) {_why(one, self._terms.ready_in_s)}" for one in missing]
        said = "".join(f"\n{one.name} has said:\n{text}" for one in missing if (text := self.provider.console(one)))
        self.provider.destroy(missing, leaving=False)
        kind = EnvironmentMismatch if any(one.unfit for one in missing) else MachinesNotObtained
        raise kind(
            f"{hosts - len(missing)} of {hosts} machines became ready: {'; '.join(why)}; what was asked for is given"
            f" back: mend that, allow more time (--ready-in), or ask for fewer (--hosts){said}"
        )

    def _begin_sizing(self) -> None:
        with self._lock:
            if self._sizing is None and not self.bounds.fixed:
                self._sizing = threading.Thread(target=self._keep_size, name="cluster-size", daemon=True)
                self._sizing.start()

    def _keep_size(self) -> None:
        """Look again and again whether there are too few machines, or too many."""
        sizing = Sizing(self._sizes)
        while not self._ending.wait(config.SIZE_LOOK_S):
            with self._lock:
                bounds, hosts = self.bounds, len(self.machines)
                if bounds.fixed or self._page is None or self._ending.is_set():
                    continue
                wanted, why = sizing.see(bounds, hosts, load_of(self._page), time.monotonic())
                if wanted == hosts:
                    continue
                try:
                    self._scale_to(wanted)
                    self.sized = f"{wanted} hosts, because {why}"
                except CloudburstError as fault:
                    sizing.rest(time.monotonic())
                    self.sized = f"{hosts} hosts, and not {wanted}, because {fault}"

    def _keep_terms(self) -> None:
        """Look again and again whether it is over."""
        price = self.provider.price(self._spec) if self._terms.price is None else self._terms.price
        while not self.over.wait(config.TERMS_LOOK_S):
            self._renew_keys()
            machines = self.machines
            active = max((one.active for one in machines), default=0.0)
            self.reason = self._meter.count(time.time(), price * len(machines), active)
            if self.reason:
                self.down()
                return

    def down(self) -> None:
        """Stop every node, whoever uses it: calls that others run there have `drain_s` to end.

        Interrupted, it ends them at once. Stopping twice is harmless.
        """
        self.ended()
        self._ending.set()
        with self._lock:
            client, self._client = self._client, None
            if client is not None:
                client.close()
            try:
                if hasattr(self, "provider"):
                    self.provider.destroy(self.machines, leaving=False)
            finally:
                self.over.set()
                if self._word is not None:
                    self._word.take_back()
                    self._word = None
            shutil.rmtree(self._base, ignore_errors=True)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()


def load_of(page: Page) -> Load:
    """Return what the executors of all nodes do, as the page of one shows it; those that are blocked do nothing."""
    slots = [slot for slot in range(page.slots) if page.state(slot)[0] == READY]
    seen = [page.activity(slot) for slot in slots]
    return Load(len(seen), sum(one[0] == RUNNING for one in seen), sum(one[1] for one in seen))


def _why(machine: Machine, within_s: float) -> str:
    return machine.fault or f"got as far as {machine.phase!r} within {within_s:g} s"
