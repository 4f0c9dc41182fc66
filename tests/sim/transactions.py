"""Transactions in the simulator: what coordinators do, where they stop, and what must be true. No protocol code judges.

The one rule: who reads at an epoch finds all of a transaction's writes or none, at whatever message its coordinator
stopped, and whoever else went on with it. What was acknowledged is as safe as any write (`tests.sim.checkers` sees to
that, for the writes are entries of the history as others are); what nobody knows the outcome of has happened to all of
its keys or to none; all that shows of one transaction has one stamp; and where it shows, what it deletes is gone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING, Any

from anna.aio import AsyncClient
from anna.commits import EXPIRES, Commit, Message, Write, write_of
from anna.errors import AnnaError
from tests.sim.checkers import KeyHistory, Violation, outlived
from tests.sim.epochs import AGAIN, AHEAD, AT
from tests.sim.history import DELETE, FAIL, FINAL, OK, REGISTER, UNKNOWN, Entry, History, Together
from tests.sim.schedule import MS, SECOND

if TYPE_CHECKING:
    from tests.sim.client import Call, Client
    from tests.sim.swarm import Operations

COMMIT = "commit"
"""The kind of an operation that writes keys together."""

STOPS = 0.4
"""How many coordinators stop at a message: that one and those after it are never sent."""

RETRIED = 0.3
"""How many transactions another client tries, too, under the same id."""

GONE = 0.4
"""How many of its keys that may be deleted, or live for a while, a transaction deletes, or lets live for a while."""

LIVES_NS = (20 * MS, 100 * MS, SECOND)

SHOWN_AFTER_NS = 5 * SECOND
"""By when an owner has found out what the broken connection of its coordinator did not bring, or is called dead."""

AT_ONCE = 0.5
"""How many of them it tries while the first client does."""


def with_transactions(draw: Random, plan: dict[str, Any], operations: Operations) -> list[dict[str, Any]]:
    """Return a plan's operations, with transactions, and with reads of their keys at epochs."""
    keys = list(operations.keys)
    found = list(plan["operations"])
    for number in range(draw.randint(20, 80)):
        keys = [key for key in keys if operations.has_room(key)]
        some = sorted(draw.sample(keys, min(len(keys), draw.randint(2, 4))))
        at, client = draw.randrange(plan["safety"]), draw.randrange(plan["clients"])
        one: dict[str, Any] = {"kind": COMMIT, "transaction": number, "deadline": 1_000_000_000, "keys": some}
        one |= {"values": [operations.slot(key) for key in some], "ack": draw.choice(operations.acks)}
        deletes = operations.weights["delete"] > 0
        one |= {"gone": [key for key in some if key[1] == "d" and deletes and draw.random() < GONE]}
        one |= {"lives": {key: draw.choice(LIVES_NS) for key in some if key[1] == "t" and draw.random() < GONE}}
        stops = draw.randrange(2 * len(some)) if draw.random() < STOPS else None
        found.append({**one, "id": 20_000 + number, "at": at, "client": client, "stops": stops})
        if draw.random() < RETRIED:
            after = draw.randrange(5 * MS if draw.random() < AT_ONCE else 300 * MS)
            later = {"at": at + after, "client": draw.randrange(plan["clients"]), "stops": None}
            found.append({**one, "id": 30_000 + number, **later})
        for again in range(2):
            read: dict[str, Any] = {"kind": AT, "keys": some, "values": [], "ack": 0, "deadline": 1_000_000_000}
            read |= {"again": draw.random() < AGAIN / 2, "ahead": draw.random() < AHEAD}
            later = {"at": at + draw.randrange(100 * MS), "client": draw.randrange(plan["clients"])}
            found.append({**read, "id": 40_000 + 2 * number + again, **later})
    return sorted(found, key=lambda operation: (operation["at"], operation["id"]))


class Stopped(Exception):
    """A coordinator is no more."""


class Coordinator(AsyncClient):
    """The asyncio client, which stops before it has sent all messages of a transaction if the operation says so."""

    def call(self) -> Call:
        from tests.sim.client import CALL

        return CALL.get()

    async def _tell_each(self, commit: Commit, messages: list[Message], ack: str | int | None, limit: int) -> None:
        call = self.call()
        some = messages if call.steps is None else messages[: call.steps]
        await super()._tell_each(commit, some, ack, limit)
        call.step(len(messages))

    async def _announce(self, message: Message, deadline: int) -> None:
        self.call().step(1)
        await super()._announce(message, deadline)


async def write_together(client: Client, operation: dict[str, Any]) -> None:
    """Commit a transaction, or try what another client has begun, and write down what came of it."""
    from tests.sim.client import CALL, Call

    history, now = client.cluster.history, client.schedule.now
    call = Call(client, operation)
    together = history.transactions.get(operation["transaction"])
    if together is None:
        together = history.transactions[operation["transaction"]] = Together(call.entries)
        for key, entry in call.entries.items():
            entry.shown_after = SHOWN_AFTER_NS
            entry.kind = DELETE if key in operation["gone"] else entry.kind
            entry.ttl = operation["lives"].get(key, 0)
        history.entries.extend(call.entries.values())
    together.tries += 1
    for entry in together.entries.values():
        entry.again = together.tries > 1
    call.entries = together.entries
    CALL.set(call)
    writes = [planned(client, entry) for entry in call.entries.values()]
    outcome, why, stamp = OK, "", 0
    try:
        id = b"%16d" % operation["transaction"]
        stamp = await client.store.commit(writes, id=id, ack=call.ack, timeout=call.timeout)
        together.stamps.append(stamp)
    except Stopped:
        outcome, why = UNKNOWN, "its coordinator stopped"
    except AnnaError as error:
        outcome, why = FAIL if error.definite else UNKNOWN, f"{type(error).__name__}: {error}"
    together.ended(outcome, why, stamp, client.schedule.now)
    client.schedule.note(f"commit {operation['id']} {outcome} {stamp} {why} {now} {list(call.entries)}")


def planned(client: Client, entry: Entry) -> Write:
    """Return a write of a transaction as it is sent."""
    from tests.sim.client import written

    if entry.kind == DELETE:
        return write_of(entry.key.encode(), None, deletes=True)
    key, number, payload = client.store._requester.write_of(entry.key, written(entry))
    if not entry.ttl:
        return Write(key, number, payload)
    return Write(key, number, struct.pack("<Q", entry.ttl // 1000) + payload, EXPIRES)


def judge_transactions(history: History) -> list[Violation]:
    """Return all that is wrong with what was written together."""
    if history.forgot_time or not history.transactions:
        return []
    keys = {key: KeyHistory(history, entries) for key, entries in history.by_key().items()}
    found = list(_at_one_stamp(history, keys))
    found += _split_at_epochs(history, keys)
    found += _half_committed(history, keys)
    return found


def _at_one_stamp(history: History, keys: dict[str, KeyHistory]) -> Iterator[Violation]:
    """Whatever shows a transaction's registers shows them at one stamp, and its callers were told the same.

    Of several tries that is so as long as whoever decides between them has his memory, and nobody takes him for dead.
    """
    sure = not history.losses.fallen and not history.losses.away
    reads: dict[tuple[str, int], list[Entry]] = {}
    for read in [*(read for key in keys.values() for read in key.reads), *history.read_at]:
        for value in read.seen or () if read.type == REGISTER and read.stamp else ():
            reads.setdefault((read.key, value), []).append(read)
    for number, together in history.transactions.items():
        if together.tries > 1 and not sure:
            continue
        seen = {read.stamp: read for e in together.entries.values() for read in reads.get((e.key, e.value), ())}
        if len({*together.stamps, *seen}) > 1:
            shown = "; ".join(str(read) for read in seen.values())
            yield Violation("not-at-one-stamp", f"transaction {number} was told {together.stamps}: {shown}")


def _split_at_epochs(history: History, keys: dict[str, KeyHistory]) -> Iterator[Violation]:
    """Who has read several keys of a transaction at one epoch has found it in all of them, or in none."""
    at: dict[tuple[int, int | None], dict[str, Entry]] = {}
    for read in history.read_at:
        at.setdefault((read.value, read.compared), {})[read.key] = read
    for (epoch, _), reads in at.items():
        for number, together in history.transactions.items():
            some = [(reads[key], entry) for key, entry in together.entries.items() if key in reads]
            yield from _split("epoch-splits", f"transaction {number} at {epoch}", some, keys)


def _half_committed(history: History, keys: dict[str, KeyHistory]) -> Iterator[Violation]:
    """What nobody knows the outcome of has happened to all keys or to none, when all is healed."""
    final: dict[str, Entry] = {}
    for key in keys.values():
        final.update({read.key: read for read in key.reads if read.operation == FINAL})
    for number, together in history.transactions.items():
        some = [(final[key], entry) for key, entry in together.entries.items() if key in final]
        yield from _split("half-committed", f"transaction {number}", some, keys)


def _split(
    checker: str, what: str, some: list[tuple[Entry, Entry]], keys: dict[str, KeyHistory]
) -> Iterator[Violation]:
    """Compare what was read of a transaction's keys at one moment."""
    shown = [read for read, write in some if write.kind != DELETE and write.value in (read.seen or ())]
    if not shown:
        return
    stamp = next((read.stamp for read in shown if read.type == REGISTER and read.stamp), 0)
    for _, write in some:
        if stamp and not write.exact and not write.again:
            write.high, write.exact = stamp, True
    for read, write in some:
        if write.kind == DELETE:
            yield from outlived(keys[write.key], read, write) if write.exact and not write.again else ()
        elif keys[write.key].missing(read, write):
            yield Violation(checker, f"{what}: {shown[0]}; {read}; {write}")
