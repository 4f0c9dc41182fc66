"""`anna serve`: a node in the foreground, under the same supervisor as the embedded cluster, that stays without users.

The one rule: it says what it listens on only when it does listen, and refuses addresses that other machines can reach
(`anna.listening`) unless it has keys, or is told that this is wanted.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anna.address import Address, parse_address
from anna.config import MEMORY_BYTES_MIN, MEMORY_USUAL_PERCENT
from anna.daemon import assemble, log_to_stderr
from anna.errors import UnavailableError
from anna.keys import Keys, keys_from
from anna.kvs.clock import EPOCH_2020_S
from anna.listening import check_local
from anna.logs import speak_as
from anna.messages import NODE_WORKERS_MAX, NodeStatus, View
from anna.nodedata import open_data
from anna.plan import CLUSTER, LEAVE_S, NodePlan
from anna.rundir import RunDirectory, default_directory
from anna.supervisor import Supervisor, fresh_id, name_process

if TYPE_CHECKING:
    from anna.metrics import MetricsProcess

LOCK_TIMEOUT_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Options:
    """What `anna serve` is told. `join` names workers of a cluster, tried in turn; `data` a directory to log to.

    Keys and values take about `memory` (such as "512M") of memory at most. A node of the `tier` disk keeps values in
    `data`, and lets those leave that are not in use; one of the tier memory refuses what would be more.
    """

    directory: str | None = None
    workers: int | None = None
    listen: tuple[str, ...] = ()
    join: tuple[str, ...] = ()
    data: str | None = None
    tier: str = "memory"
    memory: str | None = None
    factor: int | None = None
    disk_factor: int | None = None
    cluster: str = CLUSTER
    insecure: bool = False
    keys: str | None = None
    as_json: bool = False
    metrics: str | None = None
    log_format: str = "text"


def serve(options: Options) -> int:
    """Run a node until SIGTERM, SIGINT or SIGHUP; return the exit code.

    Raises NotLocal, BadKeys, BadDirectory, CannotListen, DataMismatch, UnavailableError (a cluster runs in the
    directory already), and ValueError for an address that is malformed.
    """
    begun = time.monotonic()
    usual = len(os.sched_getaffinity(0))
    count = usual if options.workers is None else options.workers
    if count > NODE_WORKERS_MAX:
        raise ValueError(f"workers is {count:,}; node_workers_max is {NODE_WORKERS_MAX:,}")
    extra = [parse_address(text) for text in options.listen]
    keys = keys_from(options.keys)
    for warning in check_local(extra, options.insecure, keys is not None):
        sys.stderr.write(f"anna serve: warning: {warning}\n")
    plan, count = _plan(options, count, usual, keys)
    path = Path(options.directory).absolute() if options.directory else default_directory()
    with _metrics(options, keys) as metrics:
        supervisor = _start(path, count, extra, plan, metrics, options.log_format)
        _announce(supervisor, options.as_json, time.monotonic() - begun, metrics)
        supervisor.run()
    return 1 if supervisor.failed else 0


@contextmanager
def _metrics(options: Options, keys: Keys | None) -> Iterator[MetricsProcess | None]:
    """Give what will serve this node's metrics, if that is wanted: bound now, ended with the context."""
    if options.metrics is None:
        yield None
        return
    from anna.metrics import MetricsProcess

    with closing(MetricsProcess(options.metrics, options.insecure, keys)) as metrics:
        for warning in metrics.warnings:
            sys.stderr.write(f"anna serve: warning: {warning}\n")
        yield metrics


def _plan(options: Options, count: int, usual: int, keys: Keys | None) -> tuple[NodePlan, int]:
    """Return how the node takes part in a cluster, and of how many workers it is."""
    for address in options.join:
        parse_address(address)
    stamp = int((time.time() - EPOCH_2020_S) * 1e6) << 10
    plan = NodePlan(
        seeds=options.join,
        cluster=options.cluster,
        factor=options.factor,
        disk_factor=options.disk_factor,
        factor_stamp=stamp,
        leave_s=LEAVE_S,
        keys=None if keys is None else str(keys.directory),
    )
    memory_bytes = _memory_bytes(options)
    if options.data is None:
        _check_memory(memory_bytes, count)
        return replace(plan, memory_bytes=memory_bytes), count
    data = open_data(Path(options.data).absolute(), options.workers, usual, options.cluster, fresh_id())
    _check_memory(memory_bytes, data.workers)
    known = data.known()
    kept = replace(
        plan,
        node_id=data.node_id,
        generation=data.generation,
        data=str(data.path),
        tier=options.tier,
        memory_bytes=memory_bytes,
        leave_s=0.0,
        known=known,
        remember=data.remember,
        set_aside=data.set_aside,
        seeds=options.join or _addresses_of_others(known, data.node_id),
    )
    return kept, data.workers


def _memory_bytes(options: Options) -> int:
    """Return how much memory a node may take for its keys and values."""
    if options.tier == "disk" and options.data is None:
        raise ValueError("a node of the disk tier keeps its values in a directory: give --data, too")
    if options.memory is None:
        percent = MEMORY_USUAL_PERCENT[options.tier]
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * percent // 100
    return parse_bytes(options.memory)


def _check_memory(memory_bytes: int, workers: int) -> None:
    """Raise ValueError for less memory than so many workers can do with."""
    least = workers * MEMORY_BYTES_MIN
    if memory_bytes < least:
        need = f"{workers} worker{'s need' if workers != 1 else ' needs'} {least:,} bytes at least"
        raise ValueError(f"memory is {memory_bytes:,} bytes; {need}: give more, or fewer --workers")


def parse_bytes(text: str) -> int:
    """Return a number of bytes that was written as "1500000", "512M" or "2G" (powers of 1,024). Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,18})([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is no number of bytes, such as 512M or 2G")
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")


def _addresses_of_others(known: View | None, node_id: int) -> tuple[str, ...]:
    """Return where the other nodes were, as far as this one remembers."""
    nodes = () if known is None else known.nodes
    others = [node for node in nodes if node.node_id != node_id and node.status < NodeStatus.LEFT]
    return tuple(worker.addresses[-1] for node in others for worker in node.workers)


def _start(
    path: Path, workers: int, extra: list[Address], plan: NodePlan, metrics: MetricsProcess | None, log_format: str
) -> Supervisor:
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
            supervisor = _assemble_or_sweep(directory, workers, extra, plan)
            name_process("anna-serve")
            log_to_stderr(log_format)
            own = supervisor.view.node(supervisor.node_id)
            speak_as(own.node_id)
            if metrics is not None:
                supervisor.keep(metrics.start(own.node_id, [worker.addresses[0] for worker in own.workers]))
            supervisor.start()
            directory.unlock()
            return supervisor
        except BaseException:
            directory.close()
            raise


def _assemble_or_sweep(
    directory: RunDirectory, workers: int, extra: list[Address], plan: NodePlan
) -> Supervisor:
    directory.sweep_sockets()
    try:
        return assemble(directory, workers, extra, linger_s=None, plan=plan)
    except BaseException:
        directory.sweep()
        raise


def _announce(supervisor: Supervisor, as_json: bool, seconds: float, metrics: MetricsProcess | None) -> None:
    view: View = supervisor.view
    own = view.node(supervisor.node_id)
    path = str(supervisor.directory.path)
    if as_json:
        addresses = [list(worker.addresses) for worker in own.workers]
        told = {"pid": os.getpid(), "directory": path, "workers": addresses}
        print(json.dumps(told if metrics is None else {**told, "metrics": metrics.address}), flush=True)
        return
    count = len(own.workers)
    seeds = supervisor.plan.seeds
    does = f"joins the cluster of {' or '.join(seeds)}" if seeds else "serves"
    print(f"anna {does} with {count} worker{'s' * (count != 1)} in {path}, ready in {seconds:.2f} s")
    for worker in own.workers:
        print(f"  worker {worker.seat}: {'  '.join(worker.addresses)}")
    if metrics is not None:
        print(f"  metrics: http://{metrics.address}/metrics")
    if path == str(default_directory()):
        print("connect with anna.connect(); stop with Ctrl-C", flush=True)
    else:
        print(f"connect with anna.connect({own.workers[0].addresses[-1]!r}); stop with Ctrl-C", flush=True)
