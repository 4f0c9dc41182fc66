"""Hosts that are there already, each reached by a connection: what is the same whatever carries that.

The one rule: a connection is all that a host knows of whoever uses it, and its end is the end of what runs there. All
hosts are prepared at the same time; the first that is begins the cluster, and the others join that one. Nothing has to
be on a host but Python: what is run there comes over the connection, once for each digest. The secret of the cluster
goes the same way, to the agent's standard input. Source: burst-systems §5.5; docs/decisions/0036.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from cloudburst import config
from cloudburst.burst import bootstrap, shipping
from cloudburst.burst.connecting import Refused, Unfit
from cloudburst.burst.provider import (
    ASKED,
    BOOT,
    FETCH,
    FIRST_TASK,
    PENDING,
    READY,
    Machine,
    Notice,
    Spec,
)
from cloudburst.burst.remote import Remote

T = TypeVar("T")

END_S: Final = 90.0


class RemoteHosts(ABC):
    """The hosts of one run, and a thread that has the connections to them."""

    def __init__(self, base: Path, notice: Notice) -> None:
        self._base = base
        self._notice = notice
        self._machines: dict[str, Machine] = {}
        self._remotes: dict[str, Remote] = {}
        self._changed = threading.Condition()
        self._made = 0
        self._loop = asyncio.new_event_loop()
        self._seed = asyncio.Lock()
        threading.Thread(target=self._loop.run_forever, name="remote-hosts", daemon=True).start()

    @abstractmethod
    def _connected(self, name: str) -> AbstractAsyncContextManager[Any]:
        """Give a connection to the host of a machine, on which a process can be created. Raises Refused, OSError."""

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the thread of the connections, and wait for it."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def price(self, spec: Spec) -> float:
        """Return 0: they are the user's own."""
        return 0.0

    def _ask_for(self, machine: Machine, remote: Remote) -> Machine:
        """Take in that a machine is asked for."""
        self._remotes[machine.name] = remote
        return self._see(machine.after(ASKED, time.time()))

    def _next_name(self) -> str:
        self._made += 1
        return f"host-{self._made - 1}"

    # -- the thread of the connections

    async def _begin(self, spec: Spec, names: list[str]) -> None:
        packed = asyncio.ensure_future(asyncio.to_thread(shipping.archive))
        for name in names:
            self._remotes[name].task = asyncio.ensure_future(self._prepare(spec, name, packed))

    def _see(self, machine: Machine) -> Machine:
        """Keep a machine as it is now, and tell of it when it has come further."""
        with self._changed:
            before = self._machines.get(machine.name)
            self._machines[machine.name] = machine
            self._changed.notify_all()
        if before is None or (before.phase, before.fault) != (machine.phase, machine.fault):
            self._notice(machine)
        return machine

    def _reach(self, name: str, phase: str, **known: Any) -> None:
        self._see(replace(self._machines[name], **known).after(phase, time.time()))

    async def _prepare(self, spec: Spec, name: str, packed: asyncio.Future[shipping.Archive]) -> None:
        """Bring one host up, and stay with it until it ends."""
        remote = self._remotes[name]
        try:
            self._reach(name, PENDING)
            async with self._connected(name) as connection:
                await remote.start(connection, Path(bootstrap.__file__).read_bytes())
                archive = await packed
                have = await remote.greet(archive.digest)
                self._reach(name, BOOT)
                await remote.bring(archive, have)
                self._reach(name, FETCH)
                await self._order(spec, name, remote)
                await self._stay(name, remote)
        except (Refused, OSError, ValueError) as fault:
            self._fail(name, str(fault), isinstance(fault, Unfit))
        except Exception as fault:  # whatever it is: nobody is to wait for a machine that nobody brings up any more
            self._fail(name, f"{type(fault).__name__}: {fault}", False)
        finally:
            remote.part()

    async def _order(self, spec: Spec, name: str, remote: Remote) -> None:
        """Have the node begin: the first begins the cluster, which the others join once it is there."""
        async with self._seed:
            there = self._addresses()
            if not there:
                await remote.order(spec, name, "")
                self._see(replace(self._machines[name], **remote.node))
        if there:
            await remote.order(spec, name, there[0])
            self._see(replace(self._machines[name], **remote.node))

    def _addresses(self) -> Sequence[str]:
        return [one.address for one in self._machines.values() if one.address and not one.fault]

    async def _stay(self, name: str, remote: Remote) -> None:
        """Hear what the agent says, until it has ended."""
        while (said := await remote.hear()) is not None:
            if said.get("active") or said.get("begun"):
                self._see(replace(self._machines[name], active=time.time()))
            remote.begun = remote.begun or bool(said.get("begun"))
            if "met" in said:
                self._count_met()
            if "ended" in said:
                remote.left = int(said["left"])
                return
        raise Refused("the connection has ended")

    def _count_met(self) -> None:
        """Take in which nodes can use the executors of all others; there may be more, as stand-ins."""
        for name, remote in self._remotes.items():
            if remote.node and not self._machines[name].fault and self._knows_all(self._machines[name]):
                self._reach(name, FIRST_TASK if remote.begun else READY)

    def _knows_all(self, machine: Machine) -> bool:
        others = sum(one.executors for one in self._machines.values() if not one.fault and one.name != machine.name)
        return self._remotes[machine.name].met >= others

    def _fail(self, name: str, fault: str, unfit: bool) -> None:
        if name in self._machines and not self._remotes[name].ending:
            self._see(replace(self._machines[name], fault=fault, unfit=unfit))

    # -- what there is

    def list(self) -> Sequence[Machine]:
        """Return what was asked for and has not been given back."""
        with self._changed:
            return list(self._machines.values())

    def wait(self, machines: Sequence[Machine], within_s: float) -> Sequence[Machine]:
        """Wait until each is ready, or has failed."""
        names = [machine.name for machine in machines]
        end = time.monotonic() + within_s
        with self._changed:
            while True:
                found = [self._machines[name] for name in names]
                left_s = end - time.monotonic()
                if left_s <= 0 or all(one.fault or (one.ready and self._knows_all(one)) for one in found):
                    return found
                self._changed.wait(left_s)

    def destroy(self, machines: Sequence[Machine], *, leaving: bool) -> Sequence[str]:
        """End nodes; those that leave do so one after the other, so that each hands its keys to those that stay."""
        groups = [[one] for one in machines] if leaving else [list(machines)]
        left: tuple[str, ...] = ()
        for group in groups:
            names = [one.name for one in group if one.name in self._remotes]
            try:
                left += tuple(self._do(self._end_all(names, "leave" if leaving else "drain")))
            except BaseException:
                self._do(self._end_all([one.name for one in machines if one.name in self._remotes], "now"))
                raise
        return left

    async def _end_all(self, names: Sequence[str], how: str) -> Sequence[str]:
        """End the nodes of hosts; return those of which processes are left, as far as that is known."""
        await asyncio.gather(*(self._remotes[name].end(how, END_S) for name in names))
        left = [name for name in names if self._remotes[name].left]
        for name in names:
            with self._changed:
                self._machines.pop(name, None)
            del self._remotes[name]
        return left

    def console(self, machine: Machine) -> str:
        """Return what came from a host beside what was expected."""
        remote = self._remotes.get(machine.name)
        return "" if remote is None else remote.console[-config.CONSOLE_BYTES :]
