"""The provider `ssh:hosts.toml`: hosts that are there already, reached by one connection each.

The one rule: a connection is all that a host knows of whoever uses it, and its end is the end of what runs there. All
hosts are prepared at the same time; the first that is begins the cluster, and the others join that one. Nothing has to
be on a host but Python: what is run there comes over the connection, once for each digest. The secret of the cluster
goes the same way, to the agent's standard input. A host whose key is not known is refused.
Source: burst-systems §5.5; docs/decisions/0036.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from cloudburst import config
from cloudburst.burst import bootstrap, hostfile, reaping, shipping
from cloudburst.burst.connecting import Refused, connected, require, shell_of
from cloudburst.burst.hostfile import HostEntry
from cloudburst.burst.provider import (
    ASKED,
    BOOT,
    FETCH,
    FIRST_TASK,
    PENDING,
    READY,
    Machine,
    Notice,
    Plan,
    Spec,
)
from cloudburst.burst.remote import Remote
from cloudburst.errors import MachinesNotObtained, RequestError

T = TypeVar("T")

UNENCRYPTED: Final = (
    "what moves between hosts (arguments, results, values) is not encrypted yet, and the store has no credentials:"
    " whoever can reach these hosts can read and change it"
)
END_S: Final = 90.0


class SshHosts:
    """The hosts of a file."""

    def __init__(self, where: str, base: Path, notice: Notice) -> None:
        require()
        self._hosts = hostfile.read(where)
        self._base = base
        self._notice = notice
        self._machines: dict[str, Machine] = {}
        self._remotes: dict[str, Remote] = {}
        self._changed = threading.Condition()
        self._made = 0
        self._loop = asyncio.new_event_loop()
        self._seed = asyncio.Lock()
        threading.Thread(target=self._loop.run_forever, name="ssh-hosts", daemon=True).start()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the thread of the connections, and wait for it."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    # -- what is asked for

    def plan(self, spec: Spec, count: int) -> Plan:
        """Return the first so many hosts of the file. Raises MachinesNotObtained, RequestError."""
        if count > len(self._hosts):
            raise MachinesNotObtained(
                f"{count} hosts are asked for, and the file lists {len(self._hosts)}: add a [[host]], or ask for fewer"
                " (--hosts)"
            )
        chosen = self._hosts[:count]
        open_ones = [one.place for one in chosen if not one.loopback]
        if open_ones and not spec.insecure:
            raise RequestError(f"{', '.join(open_ones)}: {UNENCRYPTED} (--insecure to allow)")
        warnings = (f"{UNENCRYPTED}: --insecure",) if open_ones else ()
        return Plan(tuple(one.place for one in chosen), 0.0, warnings)

    def price(self, spec: Spec) -> float:
        """Return 0: they are the user's own."""
        return 0.0

    def create(self, spec: Spec, count: int) -> Sequence[Machine]:
        """Begin to prepare so many of the hosts that are free, all at once."""
        used = {remote.entry for remote in self._remotes.values()}
        free = [one for one in self._hosts if one not in used][:count]
        made = [self._ask_for(spec, entry) for entry in free]
        self._do(self._begin(spec, [one.name for one in made]))
        return made

    def _ask_for(self, spec: Spec, entry: HostEntry) -> Machine:
        name = f"host-{self._made}"
        self._made += 1
        self._remotes[name] = Remote(entry)
        machine = Machine(name, entry.place, spec.run, shell=shell_of(entry, self._base / reaping.KNOWN))
        return self._see(machine.after(ASKED, time.time()))

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

    # -- the thread of the connections

    async def _prepare(self, spec: Spec, name: str, packed: asyncio.Future[shipping.Archive]) -> None:
        """Bring one host up, and stay with it until it ends."""
        remote = self._remotes[name]
        try:
            self._reach(name, PENDING)
            async with connected(remote.entry) as connection:
                known = connection.get_server_host_key()
                self._write_known(remote.entry, known.export_public_key().decode() if known else "")
                await remote.start(connection, Path(bootstrap.__file__).read_bytes())
                archive = await packed
                have = await remote.greet(archive.digest)
                self._reach(name, BOOT)
                await remote.bring(archive, have)
                self._reach(name, FETCH)
                await self._order(spec, name, remote)
                await self._stay(name, remote)
        except (Refused, OSError, ValueError) as fault:
            self._fail(name, str(fault))
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

    def _fail(self, name: str, fault: str) -> None:
        if name in self._machines and not self._remotes[name].ending:
            self._see(replace(self._machines[name], fault=fault))

    def _write_known(self, entry: HostEntry, key: str) -> None:
        """Leave the key of a host where `ssh` finds it, for `cb ssh`."""
        host = entry.host if entry.port == 22 else f"[{entry.host}]:{entry.port}"
        with suppress(OSError), open(self._base / reaping.KNOWN, "a") as file:
            file.write(f"{host} {key}")

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

    # -- what is left

    def reap(self, older_s: float | None, *, dry: bool) -> Sequence[Machine]:
        """Do it on each host of the file; one that cannot be reached is told of."""
        found = self._do(self._reap_all(json.dumps({"older_s": older_s, "dry": dry})))
        return [one for several in found for one in several]

    async def _reap_all(self, asked: str) -> Sequence[Sequence[Machine]]:
        return await asyncio.gather(*(self._reap(entry, asked) for entry in self._hosts))

    async def _reap(self, entry: HostEntry, asked: str) -> Sequence[Machine]:
        program = Path(reaping.__file__).read_text()
        command = f"exec {shlex.quote(entry.python)} -I - reap {shlex.quote(asked)}"
        try:
            async with connected(entry) as connection:
                done = await asyncio.wait_for(connection.run(command, input=program), END_S)
            found = json.loads(done.stdout or "")
        except (Refused, OSError, ValueError) as fault:
            return [Machine("not looked at", entry.place, "?", fault=str(fault))]
        return [_left(one, entry.place) for one in found]


def _left(one: dict[str, Any], place: str) -> Machine:
    what = f"{len(one['processes'])} processes and {one['directory']}"
    return Machine(what, place, one["run"], pid=one["holder"], reached={ASKED: time.time() - one["age_s"]})
