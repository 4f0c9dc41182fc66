"""The process of a node that holds its keys: every stream to another host goes through it, and is under TLS outside.

Where there are keys, nothing of a node but this listens by TCP, and nothing but this dials (its store does both for
itself). Its own processes ask over a Unix socket, with an opening, and then say what they would have said to the other
side; who comes from another host shows his certificate, says where to, and is led to a Unix socket of this node. So
executors, whose code is the users', hold no keys, and what goes on inside a host is as it is without. ZeroMQ, which
cannot say an opening, finds a socket that leads to one place.

The one rule: before a byte is passed on, both sides have shown keys of one cluster, and the right that it takes. Where
one end of a stream is closed, so is the other; who does not read is not written to. Source: decision record 0040.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from abc import ABC, abstractmethod
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

from anna.address import TcpAddress
from anna.errors import NotAdmitted
from anna.keys import Keys
from anna.sealed import Door, Sealed, dial_sealed
from cloudburst import config, openings
from cloudburst.addresses import notice_absence, split_place
from cloudburst.control import CONTROL_SOCKET, Control
from cloudburst.errors import CloudburstError, ProtocolError, RequestError
from cloudburst.openings import Opening

log = logging.getLogger("cloudburst.relay")

REFUSED_S: Final = 0.2
"""How long who is refused may take to hang up himself, so that he has read why."""


class End(asyncio.Protocol):
    """One end of a stream that is passed on: what arrives here goes out at the other."""

    def __init__(self, other: End | None = None) -> None:
        self.transport: Any = None
        self.other: End | None = other
        self._early: list[bytes] = []
        self._full = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early.append(data)
            self.read_on(False)
        else:
            self.other.transport.write(data)

    def read_on(self, on: bool) -> None:
        """Take what arrives, or leave it in the kernel."""
        if self.transport.is_closing():
            return
        if on:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def join(self, other: End) -> None:
        """Pass on to `other` from now on, and the other way."""
        self.other, other.other = other, self
        for one, there in ((self, other), (other, self)):
            early, one._early = one._early, []
            for data in early:
                there.transport.write(data)
            one.read_on(not there._full)

    def pause_writing(self) -> None:
        self._full = True
        if self.other is not None:
            self.other.read_on(False)

    def resume_writing(self) -> None:
        self._full = False
        if self.other is not None:
            self.other.read_on(True)

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()


class Opened(End, ABC):
    """The end of who begins: he says an opening first, which `_lead` obeys."""

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self.relay = relay
        self._said = b""
        self._begun = False
        self._waiting: asyncio.Handle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        wait = asyncio.get_running_loop().call_later
        self._waiting = wait(config.INTRODUCTION_S, transport.close)

    def data_received(self, data: bytes) -> None:
        if self._begun:
            super().data_received(data)
            return
        self._said += data
        try:
            split = openings.split(self._said)
            if split is None:
                return
            self._begun = True
            self._stop_waiting()
            opening = Opening.unpack(split[0])
        except ProtocolError as fault:
            log.warning("closing a stream: %s", fault)
            self.transport.close()
            return
        if split[1]:
            super().data_received(split[1])
        else:
            self.read_on(False)
        self.relay.do(self._lead(opening))

    @abstractmethod
    async def _lead(self, opening: Opening) -> None:
        """Lead the stream to where its opening says, or close it."""

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(error)


class Comer(Opened):
    """Somebody from another host, whose certificate is believed."""

    async def _lead(self, opening: Opening) -> None:
        who = self.transport.get_extra_info("identity")
        why = openings.refusal(opening.to, who.name, who.right)
        if why:
            self.relay.door.tell(self.transport.get_extra_info("peername"), NotAdmitted(why))
            self._refuse(why)
        elif opening.to == openings.RECORD:
            await self._tell_record()
        else:
            await self._lead_to(opening.to)

    async def _tell_record(self) -> None:
        try:
            record = await asyncio.to_thread(self.relay.record)
        except CloudburstError as fault:
            self._refuse(str(fault))
            return
        self.transport.write(openings.pack([True, record]))
        self.read_on(True)  # so that his end is seen

    async def _lead_to(self, name: str) -> None:
        try:
            _, inner = await self.relay.loop.create_unix_connection(End, str(self.relay.directory / name))
        except OSError as fault:
            self._refuse(f"{name} is not there: {fault.strerror or fault}")
            return
        if self.transport.is_closing():
            inner.transport.close()
            return
        self.transport.write(openings.pack([True, b""]))
        self.join(inner)

    def _refuse(self, why: str) -> None:
        self.transport.write(openings.pack([False, why]))
        self.relay.loop.call_later(REFUSED_S, self.transport.close)


class Asker(Opened):
    """A process of this node that wants a stream to another host, or a socket that leads there."""

    def __init__(self, relay: Relay) -> None:
        super().__init__(relay)
        self.ended: asyncio.Future[None] = relay.loop.create_future()

    async def _lead(self, opening: Opening) -> None:
        if opening.listen:
            await self.relay.listen(self, opening)
        else:
            await self.relay.reach(self, opening)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        super().connection_lost(error)


class Answered(End):
    """The far end of a stream that this relay has dialled: the other relay's answer comes first."""

    def __init__(self) -> None:
        super().__init__()
        self._said = b""
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        if self.answer.done():
            super().data_received(data)
            return
        self._said += data
        try:
            split = openings.split(self._said, openings.ANSWER_BYTES_MAX)
            if split is None:
                return
            self.answer.set_result(openings.unpack_answer(split[0]))
        except (ProtocolError, RequestError) as fault:
            self.answer.set_exception(fault)
            return
        if split[1]:
            super().data_received(split[1])
        else:
            self.read_on(False)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(error or ConnectionResetError("it closed the connection"))
        if not self.answer.cancelled():
            self.answer.exception()
        super().connection_lost(error)


class Relay:
    """Serves the processes of the node in `directory` at `near`, and other hosts, if they may come, at `far`."""

    def __init__(self, directory: Path, keys: Keys, near: socket.socket, far: socket.socket | None) -> None:
        self.directory = directory
        self.keys = keys
        self._near, self._far = near, far
        self.door = Door(keys, gated=False)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: set[str] = set()
        self.loop = asyncio.get_running_loop()

    async def serve(self) -> None:
        """Work until this process ends."""
        near = await self.loop.create_unix_server(partial(Asker, self), sock=self._near)
        servers = [near.serve_forever()]
        if self._far is not None:
            far = await self.loop.create_server(self._come, sock=self._far)
            servers.append(far.serve_forever())
        await asyncio.gather(*servers)

    def _come(self) -> Sealed:
        return _Noticing(self.keys, Comer(self), door=self.door)

    def do(self, work: Any) -> None:
        """Do something beside the rest."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("a stream could not be passed on", exc_info=fault)

    def record(self) -> bytes:
        """Return the record of this node; may wait. Raises CloudburstError."""
        control = Control(f"ipc://{self.directory / CONTROL_SOCKET}", random.SystemRandom().getrandbits(63) | 1)
        try:
            return bytes(control.ask("record", {}, config.INTRODUCTION_S))
        finally:
            control.close()

    async def reach(self, asker: End, opening: Opening) -> None:
        """Pass `asker` on to where his opening says; close him when that cannot be."""
        try:
            async with asyncio.timeout(config.INTRODUCTION_S):
                far = await self._dial(opening.to, opening.at)
        except (OSError, CloudburstError, ValueError) as fault:  # TimeoutError and NotAdmitted are OSError
            self._tell(opening.at, fault)
            asker.transport.close()
            return
        self._failed.discard(opening.at)
        if opening.tell:
            asker.transport.write(openings.THERE)
        if asker.transport.is_closing():
            far.transport.close()
        else:
            asker.join(far)

    async def _dial(self, to: str, at: str) -> Answered:
        host, port = split_place(at)
        transport, far = await dial_sealed(Answered, TcpAddress(host, port), self.keys)
        try:
            notice_absence(transport.get_extra_info("socket"))
            transport.write(openings.pack({"to": to}))
            await far.answer
        except BaseException:
            transport.close()
            raise
        return far

    def _tell(self, at: str, fault: Exception) -> None:
        """Say once what is wrong with a place, until it can be reached again."""
        if at not in self._failed:
            self._failed.add(at)
            log.warning("no stream to %s: %s", at, fault or type(fault).__name__)

    async def listen(self, asker: Asker, opening: Opening) -> None:
        """Have a socket in the node's directory lead to one place, for as long as `asker` stays."""
        path = self.directory / opening.listen
        with suppress(FileNotFoundError):
            os.unlink(path)  # of a relay that was killed
        server = await self.loop.create_unix_server(partial(_Led, self, Opening(opening.to, opening.at)), str(path))
        asker.read_on(True)
        try:
            await asker.ended
        finally:
            server.close()
            with suppress(FileNotFoundError):
                os.unlink(path)


class _Led(End):
    """Somebody at a socket that leads to one place."""

    def __init__(self, relay: Relay, opening: Opening) -> None:
        super().__init__()
        self._relay, self._opening = relay, opening

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.pause_reading()
        self._relay.do(self._relay.reach(self, self._opening))


class _Noticing(Sealed):
    """A connection from another host, whose absence the kernel is to notice."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        with suppress(OSError):
            notice_absence(transport.get_extra_info("socket"))
        super().connection_made(transport)


def serve_relay(directory: str, keys: str, near: socket.socket, far: socket.socket | None) -> None:
    """Be a node's relay, and never return."""

    async def serve() -> None:
        await Relay(Path(directory), Keys(keys), near, far).serve()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
