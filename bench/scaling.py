"""What a second worker adds: with keys spread evenly, and with a few hot keys that both workers hold copies of.

The one rule: where generator and servers share the processors, a rate says little, so what is compared is the processor
time of a write: the *capacity* of n workers is n × writes per second of their processor time, what they would do with a
processor each. The rates stand beside it. When the load has ended, the hot keys' copies must be equal.
"""

from __future__ import annotations

import os
import shutil
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from statistics import median
from typing import Final

from anna.routing.placement import Placement
from bench import loadgen
from bench.harness import Sample, Settings, interleave
from bench.nodes import Line, Node, load_key, put_request, wait_settled
from bench.peers import Request, ServerProcess, connect
from bench.peers.ours import Ours
from bench.peers.redis_server import Redis, RedisServer
from bench.processes import POLL_S, cpu_s
from bench.report import OURS, Bar, Report, Row
from bench.subjects import available

KEYS: Final = 100_000
VALUE_BYTES: Final = 256
CONNECTIONS: Final = 50
DEPTH: Final = 16
ONE_WORKER: Final = "one worker"
SCALING_BAR: Final = Bar(ONE_WORKER, 1.7)

HOT_VALUE_BYTES: Final = 1024
HOT_CONNECTIONS: Final = 16
ZIPF: Final = 4.0
DRAWS: Final = 1 << 16
HOT_KEYS_MAX: Final = 1000
HOT_BAR: Final = Bar("redis", 1.5)
EQUAL_TIMEOUT_S: Final = 10.0


def zipf_pool(exponent: float, keys: int, draws: int) -> bytes:
    """Return `draws` numbers below `keys` in which number k stands as often as Zipf's law with `exponent` says."""
    weights = [rank**-exponent for rank in range(1, keys + 1)]
    total = sum(weights)
    pool = array("I")
    wanted = 0.0
    for number, weight in enumerate(weights):
        wanted += weight / total * draws
        pool.extend([number] * (round(wanted) - len(pool)))
    return pool.tobytes()


def owned_pools(node: Node) -> list[bytes]:
    """Return the numbers of the keys that each worker of `node` owns, in the order of its paths."""
    with Line(node.paths[0]) as line:
        view = line.view()
    placement = Placement(view)
    pools = [array("I") for _ in view.workers]
    for number in range(KEYS):
        pools[placement.index_of(load_key(number))].append(number)
    paths = [worker.addresses[0].removeprefix("unix:") for worker in view.workers]
    return [pools[paths.index(path)].tobytes() for path in node.paths]


def flights(
    paths: Sequence[str], pools: Sequence[bytes] | None, request: Request, connections: int, seconds: float
) -> loadgen.Outcome:
    """Keep `connections × DEPTH` writes under way, the connections by turns to `paths`; raise when one was refused."""
    with ExitStack() as stack:
        places = [number % len(paths) for number in range(connections)]
        links = [stack.enter_context(closing(connect(paths[place]))) for place in places]
        outcome = loadgen.run(
            [link.fileno() for link in links],
            request.template,
            request.digits_at,
            request.protocol,
            DEPTH,
            KEYS,
            seconds,
            stamp_at=request.stamp_at,
            seed=time.monotonic_ns(),
            pools=None if pools is None else [pools[place] for place in places],
        )
    if outcome.errors:
        raise RuntimeError(f"of {outcome.ops:,} writes {outcome.errors:,} were refused")
    return outcome


def turn(
    server: ServerProcess,
    paths: Sequence[str],
    pools: Sequence[bytes] | None,
    request: Request,
    connections: int,
    seconds: float,
) -> tuple[Sample, Sample]:
    """Return the rate of one run, and the capacity of the servers as it shows in their processor time."""
    flights(paths, pools, request, connections, seconds / 10)
    pids = server.pids
    used = cpu_s(pids)
    outcome = flights(paths, pools, request, connections, seconds)
    used = cpu_s(pids) - used
    rate = Sample(outcome.rate, outcome.p50_us, outcome.p99_us, f"{used / outcome.seconds:.2f}")
    return rate, Sample(len(paths) * outcome.ops / used)


def two_rows(name: str, taken: dict[str, tuple[tuple[Sample, Sample], ...]], bar: Bar) -> Iterator[Row]:
    """Give the rates and the capacities of one comparison; the bar is on the capacities."""
    rates = {subject: tuple(rate for rate, _ in turns) for subject, turns in taken.items()}
    busy = ", ".join(
        f"{subject} {median(float(sample.note) for sample in samples):.0%}" for subject, samples in rates.items()
    )
    note = f"servers busy: {busy}; the generator has the rest of {len(os.sched_getaffinity(0))} processors"
    yield Row("scaling", f"{name}: rate", "ops/s", rates, note=note)
    capacities = {subject: tuple(capacity for _, capacity in turns) for subject, turns in taken.items()}
    yield Row("scaling", f"{name}: capacity", "ops/s", capacities, (bar,))


def uniform_rows(settings: Settings) -> Iterator[Row]:
    """Compare a node of two workers with one of one worker, each key with its only owner."""
    cpus = os.sched_getaffinity(0)
    request = put_request(VALUE_BYTES)
    with ExitStack() as stack:
        turns: dict[str, Callable[[], tuple[Sample, Sample]]] = {}
        for name, workers in ((OURS, 2), (ONE_WORKER, 1)):
            directory = settings.directory / f"scaling-{workers}"
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            node = Node(directory, cpus, workers=workers)
            stack.callback(node.stop)
            pools = owned_pools(node)
            flights(node.paths, pools, request, CONNECTIONS, settings.seconds)
            turns[name] = partial(turn, node, node.paths, pools, request, CONNECTIONS, settings.seconds)
        yield from two_rows("put, uniform keys", interleave(settings.rounds, turns), SCALING_BAR)


def hot_rows(settings: Settings, with_redis: bool) -> Iterator[Row]:
    """Compare two workers that both hold every key with Redis, under a load that is nearly all on a few keys."""
    cpus = os.sched_getaffinity(0)
    pool = zipf_pool(ZIPF, KEYS, DRAWS)
    with ExitStack() as stack:
        directory = settings.directory / "scaling-hot"
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        node = Node(directory / "ours", cpus, workers=2, factor=2)
        stack.callback(node.stop)
        wait_settled(node.paths, 1)
        request = put_request(HOT_VALUE_BYTES)
        seconds = settings.seconds
        turns: dict[str, Callable[[], tuple[Sample, Sample]]] = {
            OURS: partial(turn, node, node.paths, [pool, pool], request, HOT_CONNECTIONS, seconds)
        }
        if with_redis:
            redis = RedisServer(directory / "redis", cpus)
            stack.callback(redis.stop)
            asked = redis.request("put", HOT_VALUE_BYTES)
            turns["redis"] = partial(turn, redis, [redis.path], [pool], asked, HOT_CONNECTIONS, seconds)
        taken = interleave(settings.rounds, turns)
        yield from two_rows("put 1 KiB, zipf 4, both workers hold all", taken, HOT_BAR)
        differing = wait_equal(node, sorted(set(array("I", pool)))[:HOT_KEYS_MAX])
        equal = {OURS: (Sample(differing),)}
        yield Row("scaling", "keys whose copies differ afterwards", "keys", equal, limit=1)


def wait_equal(node: Node, numbers: Sequence[int]) -> int:
    """Return how many keys still have different states on the workers of `node`, after time enough."""
    deadline = time.monotonic() + EQUAL_TIMEOUT_S
    with ExitStack() as stack:
        lines = [stack.enter_context(Line(path)) for path in node.paths]
        while True:
            found = [[line.get(load_key(number)) for number in numbers] for line in lines]
            differing = sum(len(set(states)) > 1 for states in zip(*found))
            if not differing or time.monotonic() > deadline:
                return differing
            time.sleep(POLL_S)


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure both."""
    report.heading(f"Scaling: two workers, {len(os.sched_getaffinity(0))} processors for them and the generator")
    names = {peer.name for peer in available((Ours(), Redis()), settings, report)}
    if OURS in names:
        yield from uniform_rows(settings)
        yield from hot_rows(settings, "redis-py" in names)
