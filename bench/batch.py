"""Batches of 100 keys of 256 B: pipelined single operations, and multi-get and multi-put.

The server has one core, the client another: a batch is long enough for both to work at once. Figures are
keys/s.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final

from bench.harness import Sample, Settings, interleave, latencies_us, percentile, placed, rate, two_cores
from bench.peers import TRANSPORTS, StoreClient, Transport
from bench.report import OURS, Bar, Report, Row
from bench.store import SEED, keys_of
from bench.subjects import started

SUBJECTS: Final = (OURS, "redis-py", "pylibmc")
BATCH_KEYS: Final = 100
BATCHES: Final = 10
VALUE_BYTES: Final = 256
BARS: Final = {"pipelined get": 8.0, "pipelined put": 8.0, "mget": 1.3, "mput": 1.5}

Batch = tuple[list[str], dict[str, bytes]]


def batches() -> list[Batch]:
    """Return ten batches of different keys, each as keys and as items, ready made for every subject."""
    value = random.Random(SEED).randbytes(VALUE_BYTES)
    keys = keys_of(BATCH_KEYS * BATCHES, "batch:")
    parts = [keys[at : at + BATCH_KEYS] for at in range(0, len(keys), BATCH_KEYS)]
    return [(part, dict.fromkeys(part, value)) for part in parts]


def values_of(found: object) -> list[object]:
    """Return the values of a multi-get's or a pipeline's answer, whether mapping or sequence."""
    if isinstance(found, Mapping):
        return list(found.values())
    assert isinstance(found, Sequence), type(found)
    return list(found)


def check(client: StoreClient, batch: Batch) -> None:
    """Write one batch in every way and read it back in every way."""
    keys, items = batch
    expected = list(items.values())
    for write in (client.mput, client.pipelined_put):
        if write is not None:
            write(items)
    for read in (client.mget, client.pipelined_get):
        if read is not None and values_of(read(keys)) != expected:
            raise RuntimeError(f"{len(keys)} keys were written, but reading them back gave something else")


def turn(run: Callable[[Batch], object], work: list[Batch], settings: Settings) -> Sample:
    """Measure keys/s over all batches, then the latency of whole batches."""

    def one_pass() -> int:
        for batch in work:
            run(batch)
        return len(work) * BATCH_KEYS

    figure = rate(one_pass, settings.seconds)
    taken = latencies_us(lambda: run(work[0]), max(10, settings.latencies // BATCH_KEYS))
    return Sample(figure, percentile(taken, 0.50), percentile(taken, 0.99))


def runner(client: StoreClient, operation: str) -> Callable[[Batch], object] | None:
    """Return what runs `operation` on a batch, None when the client has no such thing."""
    reader = {"pipelined get": client.pipelined_get, "mget": client.mget}.get(operation)
    if reader is not None:
        return lambda batch: reader(batch[0])
    writer = {"pipelined put": client.pipelined_put, "mput": client.mput}.get(operation)
    if writer is not None:
        return lambda batch: writer(batch[1])
    return None


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure the four ways to move a batch, on both transports."""
    place = two_cores()
    report.heading(f"Batches of {BATCH_KEYS} keys, {VALUE_BYTES} B, {place.name}")
    with started(SUBJECTS, settings, report, place.server) as servers, placed(place.client):
        for transport in TRANSPORTS:
            with ExitStack() as stack:
                clients = {name: server.client(transport) for name, server in servers.items()}
                for client in clients.values():
                    stack.callback(client.close)
                yield from rows_of_transport(clients, transport, settings)


def rows_of_transport(clients: dict[str, StoreClient], transport: Transport, settings: Settings) -> Iterator[Row]:
    """Measure the four ways on one transport."""
    work = batches()
    for client in clients.values():
        for batch in work:
            check(client, batch)
    for operation, factor in BARS.items():
        runs = {name: runner(client, operation) for name, client in clients.items()}
        turns = {name: partial(turn, run, work, settings) for name, run in runs.items() if run is not None}
        yield Row(
            area="batch",
            name=f"{operation} {transport}",
            unit="keys/s",
            samples=interleave(settings.rounds, turns),
            bars=(Bar("redis-py", factor),),
        )
