"""What a process of user code is allowed: its own session, bounded resources, none of its ancestors' files or secrets.

The one rule: limits are set between fork and the first byte of user code, and the hard ones cannot be taken back.
Source: reliability C (fork bombs, file leaks, memory hogs) and D (secrets, sandbox level 2).
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from cloudburst import config

KEPT: Final = re.compile(
    r"(PATH|HOME|USER|LOGNAME|SHELL|TZ|TMPDIR|LANG|LANGUAGE|LC_\w+|PYTHON\w*|VIRTUAL_ENV|CONDA_PREFIX|LD_LIBRARY_PATH"
    r"|XDG_RUNTIME_DIR|ANNA_\w+|CLOUDBURST_\w+|\w+_NUM_THREADS|CUDA_VISIBLE_DEVICES|CUDA_HOME|SOURCE_DATE_EPOCH)"
)
"""The environment that user code inherits: what it takes to find programs, modules and one's language."""

SECRET: Final = re.compile(r"(?i)token|secret|passw|credential|cookie|session|private|(api|access|auth)_?key|_key$")
"""What looks like a secret is dropped whatever it is called besides."""

PR_SET_PDEATHSIG: Final = 1
PR_SET_NO_NEW_PRIVS: Final = 38


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of `environment` that user code may see."""
    return {
        name: value
        for name, value in environment.items()
        if KEPT.fullmatch(name) and not SECRET.search(name)
    }


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which forked it, ends; end now if it already has."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def close_all_but(kept: Iterable[int]) -> None:
    """Close every file descriptor except standard ones and `kept`."""
    start = 3
    for fd in sorted({fd for fd in kept if fd > 2}):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, max(start, _descriptors_max()))


def confine() -> None:
    """Put this process into a session of its own, under the limits of `config`.

    Memory is bounded by call (`memory_limit`), not here: RLIMIT_AS counts address space, and mapping a file or a
    device larger than the machine's memory is no fault.
    """
    os.setsid()
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_NOFILE, config.OPEN_FILES_MAX)
    _bound(resource.RLIMIT_NPROC, config.PROCESSES_MAX)
    _prefer_for_oom()


@contextmanager
def memory_limit(more_bytes: int) -> Iterator[None]:
    """Let this process map at most `more_bytes` more than it has now; beyond it, Python raises MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    limit = mapped + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def memory_kills() -> int:
    """Return how many processes the kernel has killed on this machine because memory ran out; 0 if it does not say."""
    try:
        with open("/proc/vmstat", "rb") as counts:
            return next((int(line.split()[1]) for line in counts if line.startswith(b"oom_kill ")), 0)
    except OSError:
        return 0


def _bound(kind: int, limit: int) -> None:
    hard = resource.getrlimit(kind)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, limit))


def _descriptors_max() -> int:
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 20)


def _prefer_for_oom() -> None:
    """Have the kernel choose this process before the store when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w") as adjust:
            adjust.write("500")
    except OSError:
        pass  # not everywhere may a process say so; the limits above still hold


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
