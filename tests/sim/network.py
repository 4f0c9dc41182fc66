"""The network between hosts: datagrams for workers among themselves, ordered streams for clients.

The one rule: a link is a pair (from, to), and each direction fails alone. Datagrams are lost, repeated, delayed and
overtake each other, which is harsher than the connections that the real driver keeps. A stream keeps its order; over
a cut it stalls, as TCP does, and goes on after the heal unless it was broken meanwhile. What was on its way when a
link was cut is cut too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from zlib import crc32

from tests.sim.schedule import US, Schedule

Hear = Callable[[bytes | None], None]
Accept = Callable[["Stream"], Hear | None]


@dataclass(slots=True)
class Quality:
    """How bad the network is: probabilities per datagram, and one-way delays in ns."""

    loss: float = 0.0
    repeat: float = 0.0
    delay: int = 100 * US
    jitter: int = 100 * US
    straggler: float = 0.0
    straggler_delay: int = 0


class Network:
    """All links. Hosts are small integers."""

    def __init__(self, schedule: Schedule, quality: Quality) -> None:
        self.schedule = schedule
        self.quality = quality
        self.dropped = 0
        self.delivered = 0
        self._draw: Random = schedule.stream("network")
        self._cuts: dict[tuple[int, int], int] = {}
        self._stalled: dict[Stream, None] = {}
        self._dark: dict[int, None] = {}

    def cut(self, links: Iterable[tuple[int, int]]) -> None:
        """Cut each (from, to); cuts add up, so that two faults may overlap."""
        for link in links:
            self._cuts[link] = self._cuts.get(link, 0) + 1

    def heal(self, links: Iterable[tuple[int, int]]) -> None:
        """Take one cut back from each (from, to); streams that stalled go on."""
        for link in links:
            self._cuts[link] -= 1
        for stream in list(self._stalled):
            stream.resume()

    def passes(self, source: int, target: int) -> bool:
        """Whether the link is whole now."""
        return not self._cuts.get((source, target))

    def delay(self) -> int:
        """Draw one one-way delay."""
        quality = self.quality
        drawn = quality.delay + int(self._draw.random() * quality.jitter)
        if quality.straggler and self._draw.random() < quality.straggler:
            drawn += int(self._draw.random() * quality.straggler_delay)
        return drawn

    def send(self, source: int, target: int, data: bytes, deliver: Callable[[bytes], None]) -> None:
        """Send a datagram: `deliver(data)` is called never, once or more often."""
        quality = self.quality
        if not self.passes(source, target) or (quality.loss and self._draw.random() < quality.loss):
            self.dropped += 1
            self.schedule.note(f"drop {source}>{target} {crc32(data):x}")
            return
        self.schedule.after(self.delay(), self._arrive, source, target, data, deliver)
        if quality.repeat and self._draw.random() < quality.repeat:
            self.schedule.after(self.delay() + self.delay(), self._arrive, source, target, data, deliver)

    def _arrive(self, source: int, target: int, data: bytes, deliver: Callable[[bytes], None]) -> None:
        if not self.passes(source, target):
            self.dropped += 1
            self.schedule.note(f"drop {source}>{target} {crc32(data):x}")
            return
        self.delivered += 1
        self.schedule.note(f"peer {source}>{target} {len(data)} {crc32(data):x}")
        deliver(data)

    def switch(self, host: int, on: bool) -> None:
        """Give power to a host, or take it: what comes to one without is lost."""
        if on:
            self._dark.pop(host, None)
        else:
            self._dark[host] = None

    def connect(self, near: int, far: int, accept: Accept, on_near: Callable[[bytes | None], None]) -> Stream:
        """Return a stream from host `near` to host `far`.

        `on_near` gets what comes back, and None when the stream has ended. `accept` is asked for the far end when the
        first bytes arrive there; with None the stream is refused.
        """
        return Stream(self, near, far, accept, on_near)


class Stream:
    """One connection of a client. `taken` tells whether the far end has ever had any of its bytes."""

    def __init__(
        self, network: Network, near: int, far: int, accept: Accept, on_near: Callable[[bytes | None], None]
    ) -> None:
        self.network = network
        self.near = near
        self.far = far
        self.accept = accept
        self.on_near = on_near
        self.on_far: Callable[[bytes | None], None] | None = None
        self.far_id = 0
        """Who has accepted it: the incarnation, which an address does not tell."""
        self.open = True
        self.hung_up = False
        self._last = {True: 0, False: 0}
        self._waiting: dict[bool, list[bytes | None]] = {True: [], False: []}

    @property
    def taken(self) -> bool:
        """Whether the far end has accepted the stream."""
        return self.on_far is not None

    def dial(self) -> None:
        """Ask the far end to accept; the answer is no bytes, or the end of the stream."""
        self._send(True, b"")

    def to_far(self, data: bytes) -> None:
        """Send bytes from the client's end."""
        self._send(True, data)

    def to_near(self, data: bytes) -> None:
        """Send bytes from the server's end."""
        self._send(False, data)

    def reset(self) -> None:
        """End both directions; what is on its way is lost, and each end hears of it when the link lets it."""
        if self.open:
            self.open = False
            for outward in (True, False):
                self._waiting[outward].clear()
                self._send(outward, None)

    def abandon(self) -> None:
        """End the far end without a word; the near end hears of it when it sends to the host after that is back."""
        self.on_far = lambda data: self.reset()

    def hang_up(self) -> None:
        """End the stream at the client's end, which wants to hear nothing more; what it has sent is delivered still."""
        self.on_near = _deaf
        if self.open and not self.hung_up:
            self._send(True, None)
            self.hung_up = True

    def resume(self) -> None:
        """Send on what waited for a cut to heal: what is on its way already stays behind it."""
        self.network._stalled.pop(self, None)
        for outward in (True, False):
            if self._waiting[outward]:
                self.network.schedule.after(self.network.delay(), self._release, outward)

    def _release(self, outward: bool) -> None:
        """Deliver what waited, unless the link was cut again meanwhile."""
        if not self.network.passes(*self._ends(outward)):
            self.network._stalled[self] = None
            return
        waiting, self._waiting[outward] = self._waiting[outward], []
        for data in waiting:
            self._arrive(outward, data)

    def _ends(self, outward: bool) -> tuple[int, int]:
        return (self.near, self.far) if outward else (self.far, self.near)

    def _send(self, outward: bool, data: bytes | None) -> None:
        if (data is None or self.open) and not (outward and self.hung_up):
            self._plan(outward, data)

    def _plan(self, outward: bool, data: bytes | None) -> None:
        schedule = self.network.schedule
        when = max(schedule.now + self.network.delay(), self._last[outward])
        self._last[outward] = when
        schedule.at(when, self._arrive, outward, data)

    def _arrive(self, outward: bool, data: bytes | None) -> None:
        source, target = self._ends(outward)
        if (data is not None and not self.open) or (outward and self.far in self.network._dark):
            return
        if self._waiting[outward] or not self.network.passes(source, target):
            self._waiting[outward].append(data)
            self.network._stalled[self] = None
            return
        self.network.schedule.note(f"{'ask' if outward else 'answer'} {source}>{target} {crc32(data or b''):x}")
        if not outward:
            self.on_near(data)
        elif (self.taken or self._accepted(data)) and data != b"" and self.on_far is not None:
            self.on_far(data)

    def _accepted(self, data: bytes | None) -> bool:
        """Ask for the far end; refuse the stream when there is nobody."""
        if data is not None:
            self.on_far = self.accept(self)
            if self.on_far is None:
                self.reset()
            else:
                self._send(False, b"")
        return self.taken


def _deaf(_: bytes | None) -> None:
    """What a client that has hung up hears with."""
