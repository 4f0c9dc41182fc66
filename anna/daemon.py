"""The program behind the embedded cluster: `anna.local` starts it, and it runs as long as it has users.

The one rule: it keeps nothing of the process that started it: not its session, terminal, working directory,
signal mask nor open files. What it says once it is ready, or why it is not, goes to its standard output,
which is a pipe to the starter; everything later goes to the log.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

from anna.address import Address, parse_address
from anna.keymemory import take_inherited
from anna.kvs.clock import EPOCH_2020_S
from anna.listening import bind_seats
from anna.logs import configure
from anna.plan import NodePlan, Wanted
from anna.rundir import RunDirectory, worker_socket
from anna.supervisor import Supervisor, name_process

READY: Final = b"ready"
"""What the program says on its standard output when the workers run; anything else is the reason why not."""

OPEN_FILES_WANTED: Final = 65536


def assemble(
    directory: RunDirectory, workers: int, extra: list[Address], linger_s: float | None, plan: NodePlan | None = None
) -> Supervisor:
    """Return a supervisor of `workers` workers in `directory`, sockets bound and code loaded, not started.

    The directory's lock must be held, by whomever. Raises CannotListen.
    """
    from anna.server import serve_worker, wall_offset_us  # what the workers run is loaded once, before they are forked

    _allow_many_connections()
    paths = [directory.file(worker_socket(seat)) for seat in range(workers)]
    plan = plan or NodePlan()
    serve = partial(
        serve_worker,
        seeds=plan.seeds,
        cluster=plan.cluster,
        data=plan.data,
        memory_bytes=None if plan.memory_bytes is None else plan.memory_bytes // workers,
        offset_us=wall_offset_us(),
        keys=plan.keys,
    )
    return Supervisor(directory, bind_seats(paths, extra), serve, linger_s, plan)


def log_to_stderr(format: str = "text") -> None:
    """Write log lines, as text or JSON, and the tracebacks of crashes in C to standard error."""
    configure(format)
    faulthandler.enable()


def main(directory: str, wanted: str) -> None:
    """Detach, run the cluster of a directory whose lock the starter holds, and exit when it has stopped.

    `wanted` is a packed `Wanted`.
    """
    if os.fork() != 0:
        os._exit(0)  # the starter reaps this process at once; the daemon is nobody's child
    _part_from_starter()
    log_to_stderr()
    try:
        asked = Wanted.unpack(wanted)
        extra = [parse_address(one) for one in asked.listen]
        plan = asked.plan(int((time.time() - EPOCH_2020_S) * 1e6) << 10)
        supervisor = assemble(RunDirectory(Path(directory)), asked.workers, extra, asked.linger_s, plan)
        supervisor.start()
    except BaseException as error:  # whatever it was, the starter waits to be told
        logging.exception("the cluster did not start")
        _tell_starter(f"{type(error).__name__}: {error}".encode())
        raise SystemExit(1) from None
    _tell_starter(READY)
    supervisor.run()


def _part_from_starter() -> None:
    os.chdir("/")
    os.umask(0o077)
    kept = take_inherited()
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= kept:
            with contextlib.suppress(OSError):  # the one that lists the directory is closed already
                os.close(int(name))
    name_process("anna-supervisor")


def _tell_starter(message: bytes) -> None:
    with contextlib.suppress(OSError):  # the starter is gone; the cluster ends by itself when nobody comes
        os.write(sys.stdout.fileno(), message)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def _allow_many_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
