"""A TCP stream under TLS for asyncio: a protocol to the socket's transport, and a transport to the protocol inside.

The one rule: the protocol inside learns of a connection when both sides have shown their certificates, and not before.
A handshake that is not over after HANDSHAKE_S ends its connection, as does who is not believed, and the log says so.
Source: decision record 0037.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Final, Protocol, TypeVar

from anna.address import TcpAddress
from anna.errors import AnnaError, NotAdmitted
from anna.gate import WANTS_KEYS, Gate, Right
from anna.keys import Keys
from anna.logs import Event
from anna.sealing import Seal

log = logging.getLogger("anna.sealed")

HANDSHAKE_S: Final = 5.0
"""How long who connects may take to show who he is."""

LOG_INTERVAL_S: Final = 1.0
"""Least time between two log lines about who was not admitted."""


class Inside(Protocol):
    """What is asked of the protocol inside."""

    def connection_made(self, transport: Any) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def connection_lost(self, error: Exception | None) -> None: ...


AnyInside = TypeVar("AnyInside", bound=Inside)


class Sealed(asyncio.Protocol):
    """One connection: dialled to `address`, or accepted. `ready` ends with the handshake, or why there was none."""

    def __init__(self, keys: Keys, inside: Inside, address: str | None = None, door: Door | None = None) -> None:
        self._seal = Seal(keys, address)
        self._inside = inside
        self._door = door
        self._gate: Gate | None = None
        self._transport: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._shaken = False
        self._failure: Exception | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- to the transport of the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_S, self._give_up)
        if self._door is not None:
            self._door.shaking.add(self)
        else:
            self._go_on()

    def data_received(self, data: bytes) -> None:
        self._seal.feed(data)
        if not self._shaken:
            self._go_on()
        if self._shaken:
            self._pass_on()

    def _go_on(self) -> None:
        """Go on with the handshake; once it is over, the protocol inside has a connection."""
        try:
            over = self._seal.shake()
        except AnnaError as error:
            told = self._seal.take()
            self._transport.write(told if told or self._door is None else WANTS_KEYS)
            self._fail(error)
            return
        self._flush()
        if not over:
            return
        self._end_handshake()
        self._shaken = True
        peer = self._seal.peer
        if self._door is not None and self._door.gated and peer is not None and peer.right < Right.ADMIN:
            self._gate = Gate(peer.right, peer.name)
        self._inside.connection_made(self)
        if not self.ready.done():
            self.ready.set_result(None)

    def _pass_on(self) -> None:
        try:
            data = self._seal.read()
        except AnnaError as error:
            self._fail(error)
            return
        if not data:
            return
        if self._gate is not None:
            data, refusals = self._gate.look(data)
            if refusals:
                self.write(refusals)
        if data:
            self._inside.data_received(data)

    def _give_up(self) -> None:
        self._fail(NotAdmitted(f"the handshake was not over after {HANDSHAKE_S:.0f} s"))

    def _fail(self, error: Exception) -> None:
        """End the connection because of who is at its other end, or what he says."""
        if self._failure is None:
            self._failure = error
            if self._door is not None:
                self._door.tell(self.get_extra_info("peername"), error)
        self._end_handshake()
        self._transport.close()

    def _end_handshake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._door is not None:
            self._door.shaking.discard(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._end_handshake()
        why = self._failure or error
        if not self.ready.done():
            self.ready.set_exception(why or ConnectionResetError("it closed the connection during the handshake"))
            self.ready.exception()  # it is told; nobody need look
        if self._shaken:
            self._inside.connection_lost(why)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self._shaken:
            getattr(self._inside, "pause_writing", int)()

    def resume_writing(self) -> None:
        if self._shaken:
            getattr(self._inside, "resume_writing", int)()

    # -- to the protocol inside

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if self._transport.is_closing() or not data:
            return
        try:
            self._seal.write(data)
        except AnnaError as error:
            self._fail(error)
            return
        self._flush()

    def writelines(self, chunks: Iterable[bytes]) -> None:
        """Send bytes one after the other."""
        self.write(b"".join(chunks))

    def _flush(self) -> None:
        data = self._seal.take()
        if data:
            self._transport.write(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the socket's transport knows, and `identity`: who the peer is."""
        return self._seal.peer if name == "identity" else self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait for the peer."""
        return int(self._transport.get_write_buffer_size())

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Say from how many bytes on the protocol inside is to pause."""
        self._transport.set_write_buffer_limits(high, low)

    def is_reading(self) -> bool:
        """Whether what arrives is taken."""
        return bool(self._transport.is_reading())

    def is_closing(self) -> bool:
        """Whether the connection ends."""
        return bool(self._transport.is_closing())

    def pause_reading(self) -> None:
        """Leave what arrives in the kernel."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take what arrives."""
        self._transport.resume_reading()

    def close(self) -> None:
        """End the connection when all has been sent."""
        self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        self._transport.abort()


class Door:
    """Makes the sealed connections of one listening process, and tells the log who was not let in.

    `gated`: what comes are requests to a worker, of which a gate lets those pass that a certificate allows.
    """

    def __init__(self, keys: Keys, gated: bool = True) -> None:
        self.keys = keys
        self.gated = gated
        self.shaking: set[Sealed] = set()
        self._logged_at = 0.0
        self._untold = 0

    def accepting(self, make: Callable[[], Inside]) -> Callable[[], Sealed]:
        """Return what makes a sealed connection around each protocol that `make` makes."""
        return lambda: Sealed(self.keys, make(), door=self)

    def tell(self, peer: object, error: Exception) -> None:
        """Write at most one line a second about who was not admitted."""
        now = monotonic()
        self._untold += 1
        if now - self._logged_at >= LOG_INTERVAL_S:
            count, self._untold, self._logged_at = self._untold, 0, now
            where = ":".join(map(str, peer[:2])) if isinstance(peer, tuple) else str(peer)
            told = Event.of("not-admitted", connections=count, peer=where, why=str(error))
            log.warning("did not admit %d connection(s); the last, from %s: %s", count, where, error, extra=told)

    def close(self) -> None:
        """End the handshakes that are under way."""
        for sealed in list(self.shaking):
            sealed.abort()


async def dial_sealed(
    make: Callable[[], AnyInside], place: TcpAddress, keys: Keys | None
) -> tuple[Any, AnyInside]:
    """Connect a protocol to a TCP address, under TLS if there are keys; return its transport and it.

    Raises OSError, of which NotAdmitted is one.
    """
    loop = asyncio.get_running_loop()
    if keys is None:
        return await loop.create_connection(make, place.host, place.port)  # type: ignore[type-var]
    inside = make()
    transport, sealed = await loop.create_connection(lambda: Sealed(keys, inside, str(place)), place.host, place.port)
    try:
        await sealed.ready
    except BaseException:
        transport.abort()
        raise
    return sealed, inside
