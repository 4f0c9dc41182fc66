"""One client, one get or put at a time: how long a single operation takes.

Client and server share one core, so that the figure is the work of both and not the luck of two cores'
wake-ups. The keys are 1,000 different ones in a shuffled order (8 for values of 1 MiB), the same for every
subject.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from typing import Final

from bench.harness import Sample, Settings, interleave, latencies_us, one_core, percentile, placed, rate
from bench.peers import OPERATIONS, TRANSPORTS, Operation, StoreClient, Transport
from bench.report import OURS, Bar, Report, Row
from bench.subjects import started

Get = Callable[[str], object]
Put = Callable[[str, bytes], object]

SUBJECTS: Final = (OURS, "redis-py", "pylibmc", "bare socket")
SMALL: Final = {8: "8 B", 256: "256 B", 4096: "4 KiB"}
LARGE: Final = {1 << 20: "1 MiB"}
SMALL_BARS: Final = (Bar("redis-py", 3.0), Bar("pylibmc", 0.9))
LARGE_BARS: Final = (Bar("redis-py", 1.5),)
MANY_KEYS: Final = 1000
FEW_KEYS: Final = 8
PASS_KEYS: Final = 100
SEED: Final = 2


def keys_of(count: int, prefix: str) -> list[str]:
    """Return `count` keys of 16 characters in an order that does not change."""
    keys = [f"{prefix}{number:0{16 - len(prefix)}d}" for number in range(count)]
    random.Random(SEED).shuffle(keys)
    return keys


def fill(client: StoreClient, keys: list[str], value: bytes) -> None:
    """Write `value` to all `keys` and read one back: a subject that stores nothing must not win."""
    for key in keys:
        client.put(key, value)
    found = client.get(keys[0])
    if found != value:
        raise RuntimeError(f"{len(value):,} bytes were written to {keys[0]!r}, but get gave {found!r:.60}")


def passes(get: Get, put: Put, operation: Operation, keys: list[str], value: bytes) -> Callable[[], int]:
    """Return a function that does `operation` on the next 100 keys and says how many that were."""
    parts = cycle([keys[at : at + PASS_KEYS] for at in range(0, len(keys), PASS_KEYS)])

    def get_pass() -> int:
        chosen = next(parts)
        for key in chosen:
            get(key)
        return len(chosen)

    def put_pass() -> int:
        chosen = next(parts)
        for key in chosen:
            put(key, value)
        return len(chosen)

    return get_pass if operation == "get" else put_pass


def turn(client: StoreClient, operation: Operation, keys: list[str], value: bytes, settings: Settings) -> Sample:
    """Measure the rate of `operation`, then the latencies of single ones."""
    get, put = client.get, client.put
    figure = rate(passes(get, put, operation, keys, value), settings.seconds)
    order = cycle(keys)

    def single() -> object:
        return get(next(order)) if operation == "get" else put(next(order), value)

    count = settings.latencies if len(keys) > FEW_KEYS else max(10, settings.latencies // 20)
    taken = latencies_us(single, count)
    return Sample(figure, percentile(taken, 0.50), percentile(taken, 0.99))


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure get and put of every size on both transports."""
    place = one_core()
    report.heading(f"Store: one client, one operation at a time, {place.name}")
    with started(SUBJECTS, settings, report, place.server) as servers, placed(place.client):
        for transport in TRANSPORTS:
            with ExitStack() as stack:
                clients = {name: server.client(transport) for name, server in servers.items()}
                for client in clients.values():
                    stack.callback(client.close)
                for size, label in (SMALL | LARGE).items():
                    yield from rows_of_size(clients, size, label, transport, settings)


def rows_of_size(
    clients: dict[str, StoreClient], size: int, label: str, transport: Transport, settings: Settings
) -> Iterator[Row]:
    """Measure get and put of values of `size` bytes."""
    value = random.Random(SEED).randbytes(size)
    keys = keys_of(FEW_KEYS if size in LARGE else MANY_KEYS, f"{size}:")
    for client in clients.values():
        fill(client, keys, value)
    for operation in OPERATIONS:
        turns = {name: partial(turn, client, operation, keys, value, settings) for name, client in clients.items()}
        yield Row(
            area="store",
            name=f"{operation} {label} {transport}",
            unit="ops/s",
            samples=interleave(settings.rounds, turns),
            bars=LARGE_BARS if size in LARGE else SMALL_BARS,
        )
