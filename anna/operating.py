"""What the commands for whoever runs a store do: `anna backup`, `anna restore` and `anna status`.

The one rule: a result is data, and how it is shown comes last, so that `--json` and the tables say the same. A
progress bar is on standard error, and only at a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from anna.asking import figures_of
from anna.backup import ClusterSource, Summary, backup, restore
from anna.backupfile import BackupReader
from anna.client import Client
from anna.config import EPOCH_US
from anna.errors import AnnaError
from anna.messages import TIERS, NodeInfo, NodeStatus, View

Told = Callable[[int, int], None]


def write_backup(client: Client, path: Path) -> dict[str, Any]:
    """Write a backup of the cluster to `path`; return {file, epoch, time, keys, bytes}."""
    with closing(ClusterSource(client)) as source, progress(None, "backup") as told:
        return _summary(path, backup(source, path, told))


def read_backup(client: Client, path: Path, ack: str | int | None) -> dict[str, Any]:
    """Join a backup into the cluster; return {file, epoch, time, keys, bytes, late, cluster}."""
    reader = BackupReader(path)
    with progress(reader.size, "restore") as told:
        summary = restore(client, reader, ack, told)
    return {**_summary(path, summary), "late": summary.late, "cluster": reader.head.cluster}


def _summary(path: Path, summary: Summary) -> dict[str, Any]:
    return {
        "file": str(path),
        "epoch": summary.epoch,
        "time": summary.unix_s,
        "keys": summary.keys,
        "bytes": summary.size,
    }


@contextmanager
def progress(total: int | None, what: str) -> Iterator[Told]:
    """Give what is told (keys so far, further bytes) of a work of `total` bytes, which is shown at a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    keys = TextColumn("{task.fields[keys]:,} keys")
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), keys)
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total, keys=0)
        yield lambda keys, size: bar.update(task, advance=size, keys=keys)


# -- status


def status_of(client: Client, timeout: float) -> dict[str, Any]:
    """Return what is known of the cluster: {view, factor, whole, nodes, workers}.

    Each worker has its figures or an error. `whole`: every worker answered and has all keys that it should have, and
    there are as many nodes of each tier as there should be copies by default: nothing lacks one, as far as nodes were
    ever there for it.
    """
    try:
        client.refresh(_deadline(timeout))
    except AnnaError:
        pass  # what it knew when it connected is newer than nothing
    view = client.view
    figures = figures_of([worker.addresses for worker in view.workers], timeout, client.keys)
    workers = [
        {**found, "place": place, "node_id": f"{view.node_of(worker.worker_id).node_id:016x}", "seat": worker.seat}
        for place, (worker, found) in enumerate(zip(view.workers, figures))
    ]
    nodes = [_node(view, node, workers) for node in view.nodes]
    settled = all(node["complete"] for node in nodes if node["status"] in ("joining", "alive", "leaving"))
    whole = settled and _has_nodes(view)
    copies = {"factor": view.factor, "disk_factor": view.default.disk, "own_vectors": len(view.vectors.target)}
    return {"view": view.version, **copies, "whole": whole, "nodes": nodes, "workers": workers}


def _has_nodes(view: View) -> bool:
    """Whether as many nodes of each tier serve as a key has copies on it, or all that there ever were."""
    serving, known = (
        [sum(node.tier == tier for node in nodes) for tier in TIERS] for nodes in (view.serving, view.nodes)
    )
    wanted = view.default.clamped(*known)
    return serving[0] >= wanted.memory and serving[1] >= wanted.disk


def _deadline(timeout: float) -> int:
    from time import monotonic_ns

    return monotonic_ns() + int(timeout * 1e9)


def _node(view: View, node: NodeInfo, workers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one node's state: the sums over its workers, as far as they answer."""
    node_id = f"{node.node_id:016x}"
    own = [worker for worker in workers if worker["node_id"] == node_id]
    answered = [worker for worker in own if "error" not in worker]
    lags = [(w["epoch"] - w["stable"]) * EPOCH_US / 1e6 for w in answered if w["stable"]]
    reachable = node.status in (NodeStatus.JOINING, NodeStatus.ALIVE, NodeStatus.LEAVING)
    return {
        "node_id": node_id,
        "status": node.status.name.lower(),
        "tier": node.tier,
        "generation": node.generation,
        "workers": len(node.workers),
        "answered": len(answered),
        "keys": sum(worker["keys"] for worker in answered),
        "bytes": sum(worker["bytes"] for worker in answered),
        "complete": reachable and len(answered) == len(own) and all(worker["complete"] for worker in answered),
        "stable_lag_s": max(lags, default=None),
        "views_behind": max((view.version - worker["view"] for worker in answered), default=0),
    }


def print_status(status: dict[str, Any], show_table: Callable[[tuple[str, ...], list[tuple[str, ...]]], None]) -> None:
    """Print the nodes, then the workers, as tables for people."""
    nodes, workers = status["nodes"], status["workers"]
    copies = "" if status["factor"] == 1 else f", {status['factor']} copies of each key"
    copies += f", {status['disk_factor']} on disk" if status["disk_factor"] else ""
    own = status["own_vectors"]
    copies += f", {own:,} key{'s' * (own != 1)} with other numbers" if own else ""
    count = f"{len(workers)} worker{'s' * (len(workers) != 1)} on {len(nodes)} node{'s' * (len(nodes) != 1)}"
    print(f"{count}, view {status['view']}{copies}")
    if len(nodes) > 1:
        header = ("node", "status", "tier", "workers", "keys", "bytes", "complete", "stable lag")
        show_table(header, [_node_row(node) for node in nodes])
        print()
    header = ("worker", "keys", "bytes", "gets", "puts", "deletes", "refused", "uptime")
    show_table(header, [_worker_row(worker) for worker in workers])
    ages = [(worker["stable_age_p50"], worker["stable_age_p99"]) for worker in workers if "error" not in worker]
    if any(p99 for _, p99 in ages):
        p50, p99 = (max(some) for some in zip(*ages))
        print(f"stable epoch, while clients wrote: {p50} epochs old (p50), {p99} (p99)")
    if status["factor"] + status["disk_factor"] > 1 and not status["whole"]:
        print("under-replicated: some keys may have fewer copies than they should")


def _node_row(node: dict[str, Any]) -> tuple[str, ...]:
    lag = "-" if node["stable_lag_s"] is None else f"{node['stable_lag_s']:.2f} s"
    silent = node["answered"] < node["workers"]
    answered = f"{node['answered']} of {node['workers']}" if silent else str(node["workers"])
    complete = "yes" if node["complete"] else "no"
    counts = f"{node['keys']:,}", f"{node['bytes']:,}"
    return (node["node_id"], node["status"], node["tier"], answered, *counts, complete, lag)


def _worker_row(worker: dict[str, Any]) -> tuple[str, ...]:
    if "error" in worker:
        return (str(worker["place"]), worker["error"])
    counts = (f"{worker[name]:,}" for name in ("keys", "bytes", "gets", "puts", "deletes", "refused"))
    return (str(worker["place"]), *counts, _duration(worker["uptime_us"] / 1e6))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
