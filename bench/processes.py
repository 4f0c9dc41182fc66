"""Processes as Linux's /proc shows them: who belongs to a server, where it may run, what it uses.

The one rule: what a benchmark started, it can name and end by pid. The benchmark makes itself the "subreaper"
of its descendants, so a daemon that detached from its parent is still found among `descendants(os.getpid())`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
STOP_TIMEOUT_S = 10.0
POLL_S = 0.005


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def threads(pid: int) -> list[int]:
    """Return the thread ids of `pid`, none when it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(entry) for entry in os.listdir(f"/proc/{pid}/task")]
    return []


def descendants(pid: int) -> list[int]:
    """Return every living process below `pid`, parents before their children, zombies left out."""
    found: list[int] = []
    for thread in threads(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split()):
                if is_alive(child):
                    found += [child, *descendants(child)]
    return found


def is_alive(pid: int) -> bool:
    """Tell whether `pid` runs; a zombie does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def command_line(pid: int) -> str:
    """Return the command line of `pid`, for messages."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def family(pids: Iterable[int]) -> list[int]:
    """Return `pids` and everything below them."""
    return [member for pid in pids for member in (pid, *descendants(pid))]


def pin(pids: Iterable[int], cpus: Iterable[int]) -> None:
    """Let every thread of `pids` and of their descendants run on `cpus` only."""
    where = set(cpus)
    for pid in family(pids):
        for thread in threads(pid):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, where)


def cpu_s(pids: Iterable[int]) -> float:
    """Return the seconds of processor time that all threads of `pids` have used, to the nanosecond."""
    total = 0
    for pid in pids:
        for thread in threads(pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    return total / 1e9


def machine_busy_s() -> float:
    """Return the seconds that all processors together have spent on anything but waiting, since the boot."""
    user, nice, system, _idle, _wait, interrupts, soft, steal = map(
        int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    return (user + nice + system + interrupts + soft + steal) / os.sysconf("SC_CLK_TCK")


def own_busy_s() -> float:
    """Return the processor seconds of this process, of its ended children, and of all that lives below it."""
    return sum(os.times()[:4]) + cpu_s(descendants(os.getpid()))


def memory_bytes(pids: Iterable[int], kind: str = "Pss") -> int:
    """Return the sum over `pids` of `kind`: "Pss" splits a shared page among its users, "Rss" does not."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(f"{kind}:"):
                    total += int(line.split()[1]) * 1024
    return total


def wait_gone(pids: Iterable[int], timeout_s: float = STOP_TIMEOUT_S) -> list[int]:
    """Wait until `pids` have ended, reaping the adopted ones; return those that still run at the deadline."""
    left = list(pids)
    deadline = time.monotonic() + timeout_s
    while left and time.monotonic() < deadline:
        reap(left)
        left = [pid for pid in left if is_alive(pid)]
        if left:
            time.sleep(POLL_S)
    return left


def reap(pids: Iterable[int]) -> None:
    """Collect the exit status of those of `pids` that are our ended children."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.waitpid(pid, os.WNOHANG)


def end(pids: Iterable[int]) -> list[int]:
    """Ask `pids` to end, then kill them; return those that had to be killed."""
    asked = list(pids)
    for pid in asked:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    stubborn = wait_gone(asked)
    for pid in stubborn:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_gone(stubborn)
    return stubborn
