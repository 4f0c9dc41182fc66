"""What this side has of the bridge to a Ray cluster: a process for each, whose places look like connections.

The one rule: it is started for one provider and ends with this process, however that ends: its input is a pipe from
here. What a place gives, `create_process` and three streams, is what `Remote` uses of an SSH connection.
Source: docs/decisions/0043.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cloudburst import config
from cloudburst.burst import raybridge
from cloudburst.burst.connecting import Refused
from cloudburst.errors import EnvironmentMismatch

END_S: Final = 10.0
LINE_BYTES_MAX: Final = 1 << 24


def require() -> None:
    """Raise EnvironmentMismatch when Ray is not installed here."""
    if importlib.util.find_spec("ray") is None:
        raise EnvironmentMismatch("places in a Ray cluster need ray: pip install 'ray[client]'")


class Bridge:
    """A running bridge, for one loop."""

    def __init__(self, process: asyncio.subprocess.Process, log: Any) -> None:
        self._process = process
        self._log = log
        self._places: dict[str, RayPlace] = {}
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def opened(cls, address: str) -> Bridge:
        """Connect to a Ray cluster. Raises Refused when it cannot be reached, or is of another kind.

        Tries again when Ray has let it in, and then failed by itself.
        """
        for tries in itertools.count(1):
            made = await cls._started(address)
            said = await made._first_word()
            if "ready" in said:
                made._reading = asyncio.ensure_future(made._read())
                return made
            why = said.get("fault") or made.complaint()
            await made.close()
            if not said.get("again") or tries == config.RAY_TRIES_MAX:
                break
        raise Refused(f"Ray at {address} cannot be used: {why}")

    @classmethod
    async def _started(cls, address: str) -> Bridge:
        log = tempfile.TemporaryFile()  # noqa: SIM115  (it has no name, and ends with the bridge)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", raybridge.__file__, address, stdin=pipe, stdout=pipe, stderr=log,
            limit=LINE_BYTES_MAX, start_new_session=True,
        )  # fmt: skip
        return cls(process, log)

    async def _first_word(self) -> dict[str, Any]:
        """Return whether it is connected, or why not."""
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), config.RAY_CONNECT_S)
        except TimeoutError:
            return {"fault": f"it does not answer within {config.RAY_CONNECT_S:g} s"}
        except BaseException:
            await self.close()
            raise
        found: dict[str, Any] = json.loads(line or "{}")
        return found

    def complaint(self) -> str:
        """Return the end of what Ray has complained about."""
        self._log.seek(max(0, self._log.seek(0, 2) - config.CONSOLE_BYTES))
        said: bytes = self._log.read()
        return said.decode(errors="replace")

    async def close(self) -> None:
        """End it, and with it all places."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), END_S)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._log.close()

    def tell(self, **order: Any) -> None:
        """Tell the bridge one thing."""
        assert self._process.stdin is not None
        with suppress(ConnectionError, RuntimeError):  # it has ended, which its places are told
            self._process.stdin.write(json.dumps(order).encode() + b"\n")

    async def ask(self, **order: Any) -> Any:
        """Return what the bridge answers. Raises Refused."""
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        self.tell(ask=number, **order)
        said = await self._asked[number]
        if "fault" in said:
            raise Refused(said["fault"])
        return said["found"]

    def place(self, name: str) -> RayPlace:
        """Return one that is still to be had."""
        self._places[name] = RayPlace(self, name)
        return self._places[name]

    def forget(self, name: str) -> None:
        """Give a place back."""
        self._places.pop(name, None)
        self.tell(to=name, drop=True)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                said = json.loads(line)
                if "answer" in said:
                    self._asked.pop(said["answer"]).set_result(said)
                elif said["from"] in self._places:
                    self._places[said["from"]].take(said)
        finally:
            for place in self._places.values():
                place.take({"ended": "the bridge to Ray has ended"})
            for asked in self._asked.values():
                asked.set_result({"fault": f"the bridge to Ray has ended: {self.complaint()}"})


class RayPlace:
    """One actor of a Ray cluster, and the program that it runs."""

    def __init__(self, bridge: Bridge, name: str) -> None:
        self._bridge = bridge
        self._name = name
        self._placed: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        self.stdin = self
        self.stdout = asyncio.StreamReader(limit=LINE_BYTES_MAX)
        self.stderr = asyncio.StreamReader(limit=LINE_BYTES_MAX)

    def take(self, said: dict[str, Any]) -> None:
        """Take in what the bridge has said of it."""
        if "placed" in said and not self._placed.done():
            self._placed.set_result(said["placed"])
        elif "said" in said:
            self.stdout.feed_data(said["said"].encode())
        elif "ended" in said:
            if not self._placed.done():
                self._placed.set_exception(Refused(said["ended"]))
            self.stderr.feed_data(said["ended"].encode())
            self.stderr.feed_eof()
            self.stdout.feed_eof()

    async def had(self, cpus: int, name: str) -> dict[str, str]:
        """Ask Ray for it, and return its address and its Python once it is there. Raises Refused."""
        self._bridge.tell(to=self._name, make={"cpus": cpus, "name": name})
        return await self._placed

    async def create_process(self, command: str, **_: Any) -> RayPlace:
        """Start its program; what that says is bytes."""
        self._bridge.tell(to=self._name, run=command)
        return self

    def write(self, data: bytes) -> None:
        """Hand the program some lines."""
        self._bridge.tell(to=self._name, write=data.decode())

    def ship(self, path: Path) -> None:
        """Hand it the bytes of a file, by Ray's own store."""
        self._bridge.tell(to=self._name, ship=str(path))

    def write_eof(self) -> None:
        """Tell it that nothing more will come."""
        self._bridge.tell(to=self._name, close=True)
