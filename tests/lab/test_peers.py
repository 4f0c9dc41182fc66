"""The streams between workers, when the network between their hosts takes what they send and delivers nothing."""

from __future__ import annotations

import asyncio
import socket
import time

from anna.peers import DIAL_TIMEOUT_S, REDIAL_PAUSE_S_MAX, UNCONFIRMED_MS, Outbound
from tests.lab.hosts import Lab
from tests.lab.nodes import PORT

LATE_S = 1.0
"""By how much the kernel and a busy machine may be late."""

PAUSE_S = 0.02

PATIENCE_S = 30.0


class Listener(asyncio.Protocol):
    """The other end: says when something has arrived."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.transports: list[asyncio.BaseTransport] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transports.append(transport)

    def data_received(self, data: bytes) -> None:
        self.arrived.set()


async def send_all_the_time(stream: Outbound) -> None:
    while True:
        stream.send(b"frame")
        await asyncio.sleep(PAUSE_S)


async def through_a_cut(lab: Lab, stream: Outbound, listener: Listener) -> tuple[float, float]:
    """Return how long after a cut the stream ended, and how long after the heal frames arrived."""
    await listener.arrived.wait()
    lab.cut(lab["h1"], lab["h2"])
    cut = time.monotonic()
    while stream.is_open:
        await asyncio.sleep(PAUSE_S)
    ended = time.monotonic()
    await asyncio.sleep(DIAL_TIMEOUT_S)
    listener.arrived.clear()
    lab.heal()
    healed = time.monotonic()
    await listener.arrived.wait()
    return ended - cut, time.monotonic() - healed


def test_a_stream_that_a_cut_swallows_is_ended_and_dialled_again_after_the_heal(three_hosts: Lab) -> None:
    """P4, D13: without an end of its own, the kernel would try such a stream ever more seldom."""
    h1, h2 = three_hosts["h1"], three_hosts["h2"]

    async def story() -> tuple[float, float]:
        listener = Listener()
        server = await asyncio.get_running_loop().create_server(lambda: listener, sock=bound)
        stream = Outbound((f"tcp://{h2.address}:{PORT}",))
        sending = asyncio.ensure_future(send_all_the_time(stream))
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await through_a_cut(three_hosts, stream, listener)
        finally:
            sending.cancel()
            stream.close()
            server.close()
            for transport in listener.transports:
                transport.close()

    with h2.entered():
        bound = socket.create_server((h2.address, PORT))
    with h1.entered():
        until_ended_s, until_back_s = asyncio.run(story())
    assert UNCONFIRMED_MS / 1000 - LATE_S < until_ended_s < UNCONFIRMED_MS / 1000 + LATE_S
    assert until_back_s < REDIAL_PAUSE_S_MAX + DIAL_TIMEOUT_S + LATE_S
