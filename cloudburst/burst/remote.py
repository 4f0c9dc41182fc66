"""One host over its connection: the program that runs there is told what to do, step by step.

Lines of JSON each way; before the agent is there every step waits for its answer, because the first program hands its
input over to the agent. Whatever is no such line is kept as what the host has said. Source: docs/decisions/0036.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import sysconfig
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cloudburst import config
from cloudburst.burst.connecting import Refused, Unfit
from cloudburst.burst.hostfile import HostEntry
from cloudburst.burst.provider import Spec
from cloudburst.burst.runkeys import RunKeys
from cloudburst.burst.shipping import Archive

READER: Final = """
import sys
if sys.version_info < (3, 9):
    sys.exit("Python %d.%d is too old" % sys.version_info[:2])
i = sys.stdin.buffer
exec(compile(i.read(int(i.readline())), "bootstrap", "exec"))
"""
SOABI: Final = sysconfig.get_config_var("SOABI")
VERSION: Final = f"{sys.version_info[0]}.{sys.version_info[1]}"
MEND: Final = (
    f'install it there (Debian: apt install python{VERSION}), or name one that is there: python = "…" in the file of'
    " hosts; it must have the same minor version and platform, as what is sent is compiled"
)


class Remote:
    """What runs on one host. `met` is how many executors of others its node knows, `left` how many processes remain."""

    def __init__(self, entry: HostEntry) -> None:
        self.entry = entry
        self.node: dict[str, Any] = {}
        self.console = ""
        self.met = -1
        self.begun = False
        self.ending = False
        self.left = 0
        self.gone = asyncio.Event()
        """Set when nothing more will come from there."""
        self.task: asyncio.Task[None] | None = None
        """What brings the host up and stays with it."""
        self._process: Any = None
        self._beating: asyncio.Task[None] | None = None
        self._beaten: Callable[[], None] = lambda: None

    def part(self) -> None:
        """Take in that nothing more will come from there."""
        if self._beating is not None:
            self._beating.cancel()
        self.gone.set()

    async def start(self, connection: Any, program: bytes) -> None:
        """Start the first program, whose text goes over its input."""
        command = f"exec {shlex.quote(self.entry.python)} -I -u -c {shlex.quote(READER)}"
        self._process = await connection.create_process(command, encoding=None)
        self._write(b"%d\n" % len(program) + program)

    async def greet(self, digest: str) -> bool:
        """Return whether what is shipped is there. Raises Unfit when its Python is another, or there is none."""
        self._write(json.dumps({"digest": digest}).encode() + b"\n")
        said = await self._answer("soabi")
        if said["soabi"] != SOABI:
            raise Unfit(
                f"{self.entry.python} is Python {said['version']} ({said['soabi']}) there, and {VERSION} ({SOABI}) is"
                f" needed: {MEND}"
            )
        return bool(said["have"])

    async def bring(self, archive: Archive, have: bool) -> None:
        """Send what is missing; return when the agent has taken over."""
        if have:
            self._write(b"0\n")
        else:
            self._write(b"%d\n" % archive.size)
            await self._send(archive.path)
        await self._answer("agent")
        self._beating = asyncio.ensure_future(self._beat())

    async def _send(self, path: Path) -> None:
        data = await asyncio.to_thread(path.read_bytes)
        for start in range(0, len(data), 1 << 18):
            self._write(data[start : start + (1 << 18)])
            with suppress(OSError):
                await self._process.stdin.drain()

    async def order(self, spec: Spec, name: str, join: str) -> None:
        """Have the agent begin a node, and take in where it is."""
        order = {
            "run": spec.run, "name": name, "join": join, "address": self.entry.address, "executors": spec.executors,
            "least": spec.least, "most": spec.most, "workers": spec.workers, "secret": spec.secret.text,
            "keys": dict(spec.keys.host(name)),
            "until": 0 if spec.ttl_s is None else time.time() + spec.ttl_s,
        }  # fmt: skip
        self._beaten = lambda: self._renew(spec.keys, name)
        self.tell(**order)
        said = await self._answer("address")
        self.node = {name: said[name] for name in ("address", "pid", "executors")}

    async def _beat(self) -> None:
        """Say again and again that this client is there."""
        while True:
            self.tell(beat=1)
            self._beaten()
            await asyncio.sleep(config.AGENT_BEAT_S)

    def _renew(self, keys: RunKeys, name: str) -> None:
        """Give the host new keys in time."""
        if keys.due(name):
            self.tell(keys=dict(keys.host(name)))

    def tell(self, **order: Any) -> None:
        """Tell the agent one thing."""
        self._write(json.dumps(order).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        with suppress(OSError):  # whoever waits for an answer then hears why there is none
            self._process.stdin.write(data)

    async def hear(self) -> dict[str, Any] | None:
        """Return the next line that the host says; None when none will come. Raises Refused with its own words."""
        while line := await self._process.stdout.readline():
            try:
                said: dict[str, Any] = json.loads(line)
            except ValueError:
                self.console += line.decode(errors="replace")
                continue
            if "fault" in said:
                raise Refused(said["fault"])
            self.met = int(said.get("met", self.met))
            return said
        return None

    async def _answer(self, wanted: str) -> dict[str, Any]:
        """Return the line that answers the last step. Raises Refused when the program ends without it."""
        while (said := await self.hear()) is not None:
            if wanted in said:
                return said
        with suppress(Exception):
            self.console += (await asyncio.wait_for(self._process.stderr.read(), 1.0)).decode(errors="replace")
        why = (self.console.strip().splitlines()[-1:] or ["it said nothing"])[0]
        with suppress(TimeoutError, AttributeError):  # processes of Ray are of our own Python, and have no status
            await asyncio.wait_for(self._process.wait_closed(), 1.0)
        if wanted == "soabi" and getattr(self._process, "exit_status", None):
            raise Unfit(f"{self.entry.python} ended there: {why}; Python {VERSION} is needed: {MEND}")
        raise Refused(f"{self.entry.python} ended there: {why}")

    async def end(self, how: str, within_s: float) -> None:
        """Have the agent end the node, and wait until it has; without an agent, end the program."""
        self.ending = True
        if self._process is None:
            if self.task is not None:
                self.task.cancel()
            return
        with suppress(OSError):
            if self._beating is not None:
                self.tell(end=how if self.node else "now")
            else:
                self._process.stdin.write_eof()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.gone.wait(), within_s)
