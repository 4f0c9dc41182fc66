"""`python -m tests.sim`: many seeds, on several processes; what fails is minimised and kept.

The one rule: the exit code is 0 only when every seed passed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from tests.sim.minimise import keep, minimise
from tests.sim.run import Outcome, simulate
from tests.sim.seeds import Choice, Tally, tallies
from tests.sim.swarm import KINDS

SHOWN_FAILURES_MAX = 5


def show(outcome: Outcome, events: bool = True) -> None:
    """Print what is wrong with a run, its options, and its last events."""
    plan = outcome.plan
    if events:
        print("\n".join(outcome.recent))
    options = {name: value for name, value in plan.items() if name not in ("operations", "faults")}
    print(f"seed {plan['seed']}: {options}")
    print("\n".join(f"  fault {fault}" for fault in plan["faults"]))
    print(
        f"{len(plan['operations'])} operations, {len(outcome.violations)} violations by {', '.join(outcome.checkers)}"
    )
    print("\n".join(f"  {checker}: {message}" for checker, message in outcome.violations[:10]))


def explain(seed: int, choice: Choice) -> None:
    """Run a failed seed again, print it, minimise it, and keep what is left."""
    outcome = simulate(choice.plan(seed))
    show(outcome)
    if not outcome.violations:
        print(f"seed {seed} passed when it ran again: the run is not deterministic")
        return
    least = minimise(outcome)
    print("minimised:")
    show(least, events=False)
    print("\n".join(f"  {operation}" for operation in least.plan["operations"]))
    print(f"kept in {keep(least, 'found by a seed')}")


def main() -> int:
    """Run as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Simulate clusters from seeds.")
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=2, help="how many processes run them")
    parser.add_argument("--verbose", type=int, metavar="SEED", help="run one seed and print all about it")
    parser.add_argument("--plant", action="append", default=[], metavar="FAULT", help="plant a fault in the protocol")
    parser.add_argument("--faults", metavar="KIND,…", help=f"the kinds to choose from, of {', '.join(KINDS)}")
    parser.add_argument("--no-deletes", action="store_true", help="let no client delete a key")
    parser.add_argument("--short", action="store_true", help="let nobody be away for so long as to be called dead")
    parser.add_argument("--keep-nothing", action="store_true", help="only tell which seeds failed")
    options = parser.parse_args()
    kinds = tuple(options.faults.split(",")) if options.faults else None
    choice = Choice(tuple(options.plant), kinds, not options.no_deletes, not options.short)
    if options.verbose is not None:
        show(simulate(choice.plan(options.verbose)))
        return 0
    return report(
        tallies(options.first, options.seeds, options.workers, choice), options.seeds, choice, options.keep_nothing
    )


def report(found: Iterator[Tally], seeds: int, choice: Choice, keep_nothing: bool) -> int:
    """Print the progress and the summary of a run, and explain the first failures."""
    begin = time.monotonic()
    failed: list[Tally] = []
    done = entries = succeeded = events = 0
    for tally in found:
        done += 1
        entries += tally.entries
        succeeded += tally.succeeded
        events += tally.events
        if tally.checkers:
            failed.append(tally)
        if done % 100 == 0 and sys.stdout.isatty():
            print(f"\r{done} of {seeds} seeds, {len(failed)} failed", end="", flush=True)
    elapsed = time.monotonic() - begin
    print(
        f"\n{done:,} seeds in {elapsed:.1f} s ({done / elapsed:.1f}/s): {entries:,} operations, "
        f"{100 * succeeded / max(entries, 1):.1f} % succeeded, {events:,} events, {len(failed)} failed"
    )
    for tally in failed:
        print(f"  seed {tally.seed}: {', '.join(tally.checkers)}")
    for tally in [] if keep_nothing else failed[:SHOWN_FAILURES_MAX]:
        explain(tally.seed, choice)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
