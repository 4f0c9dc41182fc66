"""Reads at epochs in the simulator: what clients do, and what must be true of it. No protocol code judges here.

The one rule: what a key held at the end of an epoch is one thing, whoever is asked for it, and when. It has all that
was acknowledged up to then, with the excuses that any read has, and nothing of what was written later.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING, Any

from anna import LWW, wire
from anna.errors import AnnaError
from tests.sim.checkers import KeyHistory, Violation
from tests.sim.history import FAIL, GET, OK, REGISTER, Entry, History

if TYPE_CHECKING:
    from tests.sim.client import Client

AT = "at"
"""The kind of an operation that reads keys at one epoch."""

AGAIN = 0.6
"""How many of these read at an epoch at which somebody has read before."""

AHEAD = 0.3
"""How many of the others read at the epoch that runs, and wait until that is stable."""

LEASE_US = 30_000_000


def with_epochs(draw: Random, operations: list[dict[str, Any]], keys: list[str], plan: dict[str, Any]) -> list[Any]:
    """Return a plan's operations, with some that read at epochs."""
    found = list(operations)
    for number in range(draw.randint(20, 80)):
        place = {"at": draw.randrange(plan["safety"]), "client": draw.randrange(plan["clients"])}
        some = sorted(draw.sample(keys, min(3, len(keys))))
        common = {"id": 10_000 + number, "ack": 0, "deadline": 1_000_000_000, "again": draw.random() < AGAIN}
        common["ahead"] = draw.random() < AHEAD
        found.append({**common, **place, "kind": AT, "keys": some, "values": []})
    return sorted(found, key=lambda operation: (operation["at"], operation["id"]))


async def read_at_epoch(client: Client, operation: dict[str, Any]) -> None:
    """Read keys at one epoch, the newest that their first owner knows to be stable, or one that was read before."""
    history, epoch, view = client.cluster.history, 0, 0
    if operation["again"] and history.read_at:
        epoch, view = history.read_at[-1].value, history.read_at[-1].compared or 0
    for key in operation["keys"]:
        now = client.schedule.now
        entry = Entry(operation["id"], client.number, GET, key, client.type_of(key), epoch, operation["deadline"], now)
        try:
            if not epoch:
                epoch, view = await _newest(client, key, operation)
            entry.value, entry.compared = epoch, view
            await _read(client, entry)
            entry.outcome = OK
        except AnnaError as error:
            entry.outcome, entry.why = FAIL, f"{type(error).__name__}: {error}"
        entry.ended = client.schedule.now
        if entry.outcome == OK:
            history.read_at.append(entry)
        client.schedule.note(f"at {epoch} {entry}")
        if not epoch:
            return


async def _newest(client: Client, key: str, operation: dict[str, Any]) -> tuple[int, int]:
    """Return the newest epoch that can be read, or will be, and the view under which it is stable."""
    requester = client.store._requester
    payload = struct.pack("<QQ", 0, LEASE_US)
    timeout = operation["deadline"] / 1e9
    answer = await client.store._ask(key, timeout, True, lambda _: requester.request(wire.PIN, b"", payload))
    if answer.status != wire.OK:
        raise requester.failure(answer.status, answer.payload)
    stable, view, _, runs = struct.unpack("<QQQQ", answer.payload)
    return (runs if operation["ahead"] else stable), view


async def _read(client: Client, entry: Entry) -> None:
    requester, epoch = client.store._requester, struct.pack("<QQ", entry.value, entry.compared)
    answer = await client.store._ask(
        entry.key, entry.deadline / 1e9, True, lambda _: requester.request(wire.GET_AT, entry.key, epoch)
    )
    if answer.status not in (wire.OK, wire.MISSING):
        raise requester.failure(answer.status, answer.payload)
    if answer.status == wire.OK:
        client.note(entry, requester.decode(answer.type, answer.payload))
        entry.stamp = LWW.decode(answer.payload).stamp if entry.type == REGISTER else 0


def judge_epochs(history: History) -> list[Violation]:
    """Return all that is wrong with what was read at epochs."""
    if history.forgot_time:
        return []  # an epoch may come twice then
    keys = {key: KeyHistory(history, entries) for key, entries in history.by_key().items()}
    first: dict[tuple[str, int, int | None], Entry] = {}
    found = []
    for read in history.read_at:
        before = first.setdefault((read.key, read.value, read.compared), read)
        if (before.seen, before.stamp) != (read.seen, read.stamp):
            found.append(Violation("epoch-differs", f"at {read.value}: {before}; {read}"))
        if read.key in keys:
            found += _compared(keys[read.key], read, history.epoch_stamps)
    return found


def _compared(key: KeyHistory, read: Entry, epoch_stamps: int) -> Iterator[Violation]:
    """Compare what was read with what was written up to then."""
    for write in key.writes.values():
        if write.value in (read.seen or ()) and key.at_least(write) // epoch_stamps > read.value:
            yield Violation("epoch-has-later", f"at {read.value}: {write}; {read}")
        most = key.at_most(write)
        if write.outcome == OK and most is not None and most // epoch_stamps <= read.value and key.missing(read, write):
            yield Violation("epoch-lacks", f"at {read.value}: {write}; {read}")
