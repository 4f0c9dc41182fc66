"""A slow link: a program that carries frames between a host's device and the switch's, each later by a fixed time.

The one rule: frames of one direction keep their order, and each waits exactly the link's delay, so that the time
between two hosts is the sum of their links' delays. This kernel has no netem; two tap devices and a queue do instead. A
link that holds `WAITING_FRAMES_MAX` frames drops more, as a real one would. Source: reliability.md 0 (tc netem: no).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

TUNSETIFF: Final = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
CLONE_NEWNET: Final = 0x40000000
FRAME_BYTES_MAX: Final = 2048
WAITING_FRAMES_MAX: Final = 20_000


@dataclass(slots=True)
class Direction:
    """Frames on their way from one tap to another."""

    source: int
    target: int
    delay_s: float
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self) -> None:
        """Read what has arrived and note when it is due."""
        due = time.monotonic() + self.delay_s
        try:
            while True:
                frame = os.read(self.source, FRAME_BYTES_MAX)
                if len(self.waiting) < WAITING_FRAMES_MAX:
                    self.waiting.append((due, frame))
        except BlockingIOError:
            pass

    def give(self) -> float | None:
        """Write what is due; return when the next frame will be."""
        while self.waiting and self.waiting[0][0] <= time.monotonic():
            try:
                os.write(self.target, self.waiting.popleft()[1])
            except OSError:  # the device is down, or its queue is full: the frame is lost
                pass
        return self.waiting[0][0] if self.waiting else None


def open_tap(namespace: str, name: str) -> int:
    """Make a tap device in a network namespace, which this process then is in; return its file. Raises OSError."""
    with open(f"/run/netns/{namespace}") as there:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(there.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


def carry(directions: list[Direction]) -> None:
    """Carry frames until the process is killed."""
    poll = select.poll()
    by_source = {direction.source: direction for direction in directions}
    for source in by_source:
        poll.register(source, select.POLLIN)
    due: float | None = None
    while True:
        for source, _ in poll.poll(None if due is None else max(0.0, due - time.monotonic()) * 1000):
            by_source[source].take()
        due = min((at for at in [direction.give() for direction in directions] if at is not None), default=None)


def main(switch: str, host: str, port: str, delay_s: str) -> None:
    """Make `port` in the switch's namespace and eth0 in the host's, say `ready`, and carry frames between them."""
    inner, outer = open_tap(host, "eth0"), open_tap(switch, port)
    print("ready", flush=True)
    carry([Direction(inner, outer, float(delay_s)), Direction(outer, inner, float(delay_s))])


if __name__ == "__main__":
    main(*sys.argv[1:])
