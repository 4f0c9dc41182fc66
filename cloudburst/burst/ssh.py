"""The provider `ssh:hosts.toml`: hosts that are there already, reached by one SSH connection each.

The one rule: a host is known by its key, and refused without. What is done there, and what ends it, is `RemoteHosts`.
Source: burst-systems §5.5; docs/decisions/0036.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from cloudburst.burst import hostfile, reaping
from cloudburst.burst.connecting import Refused, connected, require, shell_of
from cloudburst.burst.hostfile import HostEntry
from cloudburst.burst.provider import ASKED, Machine, Notice, Plan, Spec
from cloudburst.burst.remote import Remote
from cloudburst.burst.remotehosts import END_S, RemoteHosts
from cloudburst.errors import MachinesNotObtained


class SshHosts(RemoteHosts):
    """The hosts of a file."""

    def __init__(self, where: str, base: Path, notice: Notice) -> None:
        require()
        self._hosts = hostfile.read(where)
        super().__init__(base, notice)

    # -- what is asked for

    def plan(self, spec: Spec, count: int) -> Plan:
        """Return the first so many hosts of the file. Raises MachinesNotObtained, RequestError."""
        if count > len(self._hosts):
            raise MachinesNotObtained(
                f"{count} hosts are asked for, and the file lists {len(self._hosts)}: add a [[host]], or ask for fewer"
                " (--hosts)"
            )
        chosen = self._hosts[:count]
        return Plan(tuple(one.place for one in chosen), 0.0)

    def create(self, spec: Spec, count: int) -> Sequence[Machine]:
        """Begin to prepare so many of the hosts that are free, all at once."""
        used = {remote.entry for remote in self._remotes.values()}
        free = [one for one in self._hosts if one not in used][:count]
        made = [self._ask_for_host(spec, entry) for entry in free]
        self._do(self._begin(spec, [one.name for one in made]))
        return made

    def _ask_for_host(self, spec: Spec, entry: HostEntry) -> Machine:
        shell = shell_of(entry, self._base / reaping.KNOWN)
        return self._ask_for(Machine(self._next_name(), entry.place, spec.run, shell=shell), Remote(entry))

    @asynccontextmanager
    async def _connected(self, name: str) -> AsyncIterator[Any]:
        entry = self._remotes[name].entry
        async with connected(entry) as connection:
            known = connection.get_server_host_key()
            self._write_known(entry, known.export_public_key().decode() if known else "")
            yield connection

    def _write_known(self, entry: HostEntry, key: str) -> None:
        """Leave the key of a host where `ssh` finds it, for `cb ssh`."""
        host = entry.host if entry.port == 22 else f"[{entry.host}]:{entry.port}"
        with suppress(OSError), open(self._base / reaping.KNOWN, "a") as file:
            file.write(f"{host} {key}")

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
        return [left_there(one, entry.place) for one in found]


def left_there(one: dict[str, Any], place: str) -> Machine:
    """Return what was left of a run on a host, as what `reap` returns."""
    what = f"{len(one['processes'])} processes and {one['directory']}"
    return Machine(what, place, one["run"], pid=one["holder"], reached={ASKED: time.time() - one["age_s"]})
