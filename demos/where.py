"""Where a demonstration runs: on this user's local cluster, or on the machines of a provider, as `cb up` gets them.

The one rule: nothing else of a demonstration knows. Its functions and its driver are the same on every provider.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cloudburst as cb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--on`, `--hosts` and what goes with them."""
    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--on", metavar="WHERE", help="on machines of its own: local, ssh:hosts.toml, … (docs/deploy.md)"
    )
    group.add_argument(
        "--hosts", default="2", metavar="N", help="how many machines, with --on: 3, or 2..10 (default 2)"
    )
    group.add_argument("--executors", type=int, metavar="N", help="of each machine, with --on")
    group.add_argument("--insecure", action="store_true", help="hand keys over by what is not encrypted (ray)")


@contextmanager
def opened(chosen: argparse.Namespace) -> Iterator[tuple[cb.Client, Path | None]]:
    """Give a client of where it runs, and the directory by which other processes of this user find that.

    Without `--on` that is the local cluster, which all find, and None. Machines end with the block.
    """
    if chosen.on is None:
        with cb.connect() as client:
            yield client, None
        return
    with cb.up(chosen.hosts, chosen.on, executors=chosen.executors, insecure=chosen.insecure) as cluster:
        yield cluster.client, cluster.entrance


def exit_code(fault: Exception) -> int:
    """Return what a demonstration exits with after a fault: 4 when machines were not obtained, else 1."""
    return 4 if isinstance(fault, cb.MachinesNotObtained) else 1
