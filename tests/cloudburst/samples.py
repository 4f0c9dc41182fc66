"""Functions for the tests to register. This module imports next to nothing, because executors import it by its path."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from typing import Any

import cloudburst as cb


def tell(address: str, *words: object) -> None:
    """Report an event to a test's Post."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(" ".join(map(str, words)).encode(), address)


def nothing() -> None:
    """Do nothing."""


def echo(*args: Any, **kwargs: Any) -> Any:
    """Return what came."""
    return args, kwargs


def square(x: int) -> int:
    """Return x squared."""
    return x * x


def pid() -> int:
    return os.getpid()


def fail(kind: str) -> None:
    if kind == "ValueError":
        raise ValueError("bad", 7)
    raise SystemExit(3) if kind == "SystemExit" else KeyboardInterrupt()


class TwoArguments(Exception):
    """Does not survive a pickle round trip, as many do not."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def fail_untransportably() -> None:
    raise TwoArguments(1, 2)


def fail_from_cause() -> None:
    try:
        int("x")
    except ValueError as cause:
        raise RuntimeError("outer") from cause


def end(address: str, how: str) -> None:
    """Report, then end the process in one of several ways."""
    tell(address, "begun", os.getpid())
    print(f"about to end by {how}")
    if how == "exit":
        os._exit(7)
    if how == "segfault":
        import ctypes

        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)


def hold(address: str) -> None:
    """Report, and then wait until somebody kills this process, or stops this call."""
    try:
        tell(address, "begun", os.getpid())
        while True:
            # Not signal.pause: a signal that comes just before the system call would be seen only after the next one.
            select.select([], [], [], 0.02)
    except BaseException as error:
        tell(address, "stopped", type(error).__name__)
        raise


def hold_until_told(address: str, own: str) -> str:
    """Report, and then return what is sent to the socket `own`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        if os.path.exists(own):
            os.unlink(own)
        receiver.bind(own)
        tell(address, "begun", os.getpid())
        return receiver.recv(100).decode()


def spin(address: str) -> None:
    tell(address, "begun", os.getpid())
    while True:
        pass


def spin_in_c(address: str) -> None:
    """Hold the GIL for longer than anybody waits, also when a signal comes while it reports that."""
    told = False
    while True:
        try:
            if not told:
                told = True
                tell(address, "begun", os.getpid())
            sum(range(10**15))
        except BaseException:
            continue


def catch_everything(address: str) -> None:
    """Spin on, whatever is raised in here."""
    tell(address, "begun", os.getpid())
    while True:
        try:
            while True:
                pass
        except BaseException:
            continue


def snooze(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def say(text: str) -> str:
    print(text)
    print("to stderr", file=sys.stderr)
    return cb.ctx().id


def about_me() -> tuple[str, str, int, float]:
    me = cb.ctx()
    me.log("looking", at=1)
    me.progress(1, 2)
    return me.id, me.function, me.version, me.remaining


def descend(depth: int) -> int:
    return 0 if depth == 0 else 1 + int(cb.call("descend", depth - 1))


def fan_out(count: int) -> int:
    return sum(future.result() for future in [cb.spawn("square", n) for n in range(count)])


def nested_failure() -> None:
    cb.call("fail", "ValueError")


def increment_key(key: str) -> int:
    cb.put(key, cb.get(key) + 1)
    return int(cb.get(key))


def allocate(size: int) -> int:
    return len(bytearray(size))


def generate() -> Any:
    return (n for n in range(3))


async def later(x: int) -> int:
    return x + 1


def print_much(lines: int) -> None:
    for n in range(lines):
        print(f"line {n} " + "x" * 90)


def append_to(path: str, line: str) -> int:
    """Append a line to a file; return how many it has then."""
    with open(path, "a+") as file:
        file.write(line + "\n")
        file.flush()
        file.seek(0)
        return len(file.readlines())


def environment() -> dict[str, str]:
    return dict(os.environ)


def limits() -> dict[str, Any]:
    import resource

    return {
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "session": os.getsid(0) == os.getpid(),
        "open": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
    }


class Tally:
    """Counts, in the executor that it lives in."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, n: int) -> tuple[int, int]:
        self.count += n
        return os.getpid(), self.count

    def __call__(self) -> int:
        return self.count


ALL = [
    nothing, echo, square, pid, fail, fail_untransportably, fail_from_cause, end, hold, hold_until_told, spin,
    spin_in_c, catch_everything, snooze, say, about_me, descend, fan_out, nested_failure, increment_key, allocate,
    generate, later, print_much, append_to, environment, limits, Tally,
]  # fmt: skip
