"""`python -m tests.sim.sessions`: many seeds of sessions; what is wrong in one is printed with it.

The one rule: the exit code is 0 only when no session saw what its level forbids, every one ended, and sessions without
a level saw something.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.sim.sessions.chunks import run_seeds
from tests.sim.sessions.run import Outcome, Tally, simulate
from tests.sim.sessions.swarm import plan_of

CHUNK_SEEDS = 20
SHOWN_FAILURES_MAX = 5
CONTROL_SEEDS_MIN = 100
"""In fewer seeds it may be that no session without a level sees anything."""


def tallies(first: int, count: int, workers: int, planted: tuple[str, ...]) -> Iterator[Tally]:
    """Yield the tally of each seed, in order."""
    chunks = [(at, min(CHUNK_SEEDS, first + count - at)) for at in range(first, first + count, CHUNK_SEEDS)]
    if workers == 1:
        for at, size in chunks:
            yield from run_seeds(at, size, planted)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(run_seeds, at, size, planted) for at, size in chunks]:
            yield from future.result()


def show(outcome: Outcome) -> None:
    """Print a run: its options and faults, its history, and what is wrong with it."""
    plan = outcome.plan
    print(f"seed {plan['seed']}: { {name: value for name, value in plan.items() if name not in ('actors', 'faults')} }")
    print("\n".join(f"  fault {fault}" for fault in plan["faults"]))
    for number, line in enumerate(outcome.lines, 1):
        where = f"{line['session']} {line['invocation']}/{line['function']} {line['outcome']} {line.get('note', '')}"
        print(f"{number:4} {where} commit {line.get('commit')} told {line.get('told')} {line['operations']}")
    for checker, message in outcome.violations:
        print(f"{checker}: {message}")


def report(found: Iterator[Tally], seeds: int, planted: tuple[str, ...]) -> int:
    """Print the progress and the summary of a run, and explain the first failures."""
    begin = time.monotonic()
    failed: list[Tally] = []
    anomalies: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for done, tally in enumerate(found, 1):
        anomalies.update(tally.anomalies)
        sums.update(tally.counts)
        if tally.checkers:
            failed.append(tally)
            print(f"\rseed {tally.seed}: {', '.join(tally.checkers)}", flush=True)
        if done % 100 == 0 and sys.stdout.isatty():
            print(f"\r{done:,} of {seeds:,} seeds, {len(failed)} failed", end="", flush=True)
    print(
        f"{seeds:,} seeds in {time.monotonic() - begin:.1f} s: {sums['transactions']:,} transactions, "
        f"{sums['ok']:,} ok, {sums['again']:,} begun again, {sums['hits']:,} reads at epochs in caches, "
        f"{sums['misses']:,} at owners, {len(failed)} failed"
    )
    print("transactions that saw what their level forbids (eventual: what causal does):")
    print("\n".join(f"  {level:12} {count:,}" for level, count in sorted(anomalies.items())))
    for tally in failed[:SHOWN_FAILURES_MAX]:
        show(simulate(plan_of(tally.seed, planted)))
    blind = seeds >= CONTROL_SEEDS_MIN and not anomalies["eventual"]
    if blind:
        print("no session without a level saw anything: these seeds show nothing")
    return 1 if failed or blind else 0


def main() -> int:
    """Run as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.sessions", description="Simulate sessions from seeds.")
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=2, help="how many processes run them")
    parser.add_argument("--verbose", type=int, metavar="SEED", help="run one seed and print all about it")
    parser.add_argument("--plant", action="append", default=[], metavar="FAULT", help="plant a fault")
    options = parser.parse_args()
    planted = tuple(options.plant)
    if options.verbose is not None:
        show(simulate(plan_of(options.verbose, planted)))
        return 0
    return report(tallies(options.first, options.seeds, options.workers, planted), options.seeds, planted)


if __name__ == "__main__":
    sys.exit(main())
