"""What a node says about itself when it is asked: its executors, its clients, its store, and its neighbours."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from cloudburst.page import IDLE, monotonic_us

if TYPE_CHECKING:
    from cloudburst.node import Node


def status_of(node: Node) -> dict[str, Any]:
    """Return it as plain data."""
    now_us = monotonic_us()
    executors = []
    for slot, ward in sorted(node.nursery.wards.items()):
        activity, waiting, high, low, started_us, deadline_us = node.page.activity(slot)
        function, done, total, begun, _ = node.page.describe(slot)
        row: dict[str, Any] = {
            "slot": slot, "pid": ward.pid, "incarnation": ward.incarnation, "calls": begun, "waiting": waiting,
            "state": ("idle", "running", "blocked")[activity], "leases": node.scheduler.leases_on(slot),
        }  # fmt: skip
        if activity != IDLE:
            row |= {
                "function": function, "invocation": f"{high:016x}{low:016x}", "progress": [done, total],
                "running_s": (now_us - started_us) / 1e6, "remaining_s": (deadline_us - now_us) / 1e6,
            }  # fmt: skip
        executors.append(row)
    return {
        "name": node.directory.path.name, "directory": str(node.directory.path), "pid": os.getpid(),
        "up_s": time.time() - node.started_at,
        "store": node.clerk.addresses, "cache": node.cache_address, "cache_pid": node.nursery.aides.cache.pid,
        "porter_pid": node.nursery.aides.porter.pid, "relay_pid": node.nursery.aides.relay.pid,
        "sandbox": node.sandbox_text,
        "executors": executors, "own": node.scheduler.own,
        "clients": [client.pid for client in node.scheduler.clients.values() if client.pid],
        "functions_version": node.page.functions_version, "node": node.name,
        "nodes": node.neighbourhood.describe(), "control": node.switchboard.endpoints,
        "refused_records": node.refused + node.clerk.refused,
        "guests": node.neighbourhood.guests(),
        "gateway": node.shape.join if node.shape.gateway else "",
    }  # fmt: skip
