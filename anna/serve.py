"""`anna serve`: a node in the foreground, under the same supervisor as the embedded cluster, that stays without users.

The one rule: it says what it listens on only when it does listen, and refuses addresses that other machines can reach
(`anna.listening`) unless it is told that this is wanted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Final

from anna.address import Address, parse_address
from anna.daemon import assemble, log_to_stderr
from anna.errors import UnavailableError
from anna.listening import check_local
from anna.messages import NODE_WORKERS_MAX, View
from anna.rundir import RunDirectory, default_directory
from anna.supervisor import Supervisor, name_process

LOCK_TIMEOUT_S: Final = 15.0


def serve(directory: str | None, workers: int | None, listen: list[str], insecure: bool, as_json: bool) -> int:
    """Run a node until SIGTERM, SIGINT or SIGHUP; return the exit code.

    Raises NotLocal, BadDirectory, CannotListen, UnavailableError (a cluster runs in the directory already), and
    ValueError for an address that is malformed.
    """
    begun = time.monotonic()
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    if count > NODE_WORKERS_MAX:
        raise ValueError(f"workers is {count:,}; node_workers_max is {NODE_WORKERS_MAX:,}")
    extra = [parse_address(text) for text in listen]
    for warning in check_local(extra, insecure):
        sys.stderr.write(f"anna serve: warning: {warning}\n")
    supervisor = _start(Path(directory).absolute() if directory else default_directory(), count, extra)
    _announce(supervisor, as_json, time.monotonic() - begun)
    supervisor.run()
    return 0


def _start(path: Path, workers: int, extra: list[Address]) -> Supervisor:
    """Start the workers under the directory's lock, which joiners wait for."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        directory = RunDirectory.make(path)
        try:
            directory.lock(deadline)
            if not directory.is_current():
                directory.close()
                continue
            running = directory.connect_lease(deadline)
            if running is not None:
                running[0].close()
                raise UnavailableError(f"a cluster runs in {path} already: stop it, or give another --dir")
            supervisor = _assemble_or_sweep(directory, workers, extra)
            name_process("anna-serve")
            log_to_stderr()
            supervisor.start()
            directory.unlock()
            return supervisor
        except BaseException:
            directory.close()
            raise


def _assemble_or_sweep(directory: RunDirectory, workers: int, extra: list[Address]) -> Supervisor:
    directory.sweep_sockets()
    try:
        return assemble(directory, workers, extra, linger_s=None)
    except BaseException:
        directory.sweep()
        raise


def _announce(supervisor: Supervisor, as_json: bool, seconds: float) -> None:
    view: View = supervisor.view
    path = str(supervisor.directory.path)
    if as_json:
        addresses = [list(worker.addresses) for worker in view.workers]
        print(json.dumps({"pid": os.getpid(), "directory": path, "workers": addresses}), flush=True)
        return
    count = len(view.workers)
    print(f"anna serves with {count} worker{'s' * (count != 1)} in {path}, ready in {seconds:.2f} s")
    for worker in view.workers:
        print(f"  worker {worker.seat}: {'  '.join(worker.addresses)}")
    if path == str(default_directory()):
        print("connect with anna.connect(); stop with Ctrl-C", flush=True)
    else:
        print(f"connect with anna.connect({view.workers[0].addresses[-1]!r}); stop with Ctrl-C", flush=True)
