"""`python -m demos.aggregation`, `cb demo aggregation`: both ways to a mean, how long they take, how far off."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

from rich.console import Console
from rich.table import Table

import cloudburst as cb
from demos.aggregation.functions import ALL

EXAMPLES = """examples:
  python -m demos.aggregation                     10 actors, 20 means each way
  python -m demos.aggregation --actors 30 --tolerance 1e-4
  python -m demos.aggregation --quick --json
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="cb demo aggregation",
        description="A mean by gossip between running functions, and by gathering through the store.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--actors", type=int, default=10, help="how many measurements (default 10)")
    add("--times", type=int, default=20, help="how many means each way (default 20)")
    add("--tolerance", type=float, default=1e-3, help="relative change that counts as none (default 1e-3)")
    add("--seed", type=int, default=1, help="of everything that is drawn (default 1)")
    add("--quick", action="store_true", help="6 actors, 3 means each way")
    add("--json", action="store_true", help="the figures as JSON")
    chosen = parser.parse_args(argv)
    if chosen.quick:
        chosen.actors, chosen.times = min(chosen.actors, 6), min(chosen.times, 3)
    if chosen.actors < 2 or chosen.times < 1:
        parser.error("it takes at least 2 actors, once")
    return chosen


def run(client: cb.Client, actors: int, times: int, tolerance: float, seed: int) -> dict[str, dict[str, float]]:
    """Return, for each way, the median and greatest time of a mean in ms, and the greatest relative error."""
    for function in ALL:
        client.register(function)
    chance = random.Random(seed)
    took: dict[str, list[float]] = {"gossip": [], "gather": []}
    off = dict.fromkeys(took, 0.0)
    for turn in range(times + 1):
        values = [chance.uniform(50.0, 150.0) for _ in range(actors)]
        mean = sum(values) / actors
        for way in took:
            begun = time.perf_counter()
            if way == "gossip":
                found = client.call("gossip", values, tolerance, chance.getrandbits(32))
            else:
                found = [client.call("gather", values, f"aggregation/{turn}")]
            if turn:  # the first turn has functions loaded and executors forked
                took[way].append((time.perf_counter() - begun) * 1e3)
                off[way] = max(off[way], *(abs(one - mean) / mean for one in found))
    return {
        way: {"p50_ms": statistics.median(found_ms), "max_ms": max(found_ms), "error": off[way]}
        for way, found_ms in took.items()
    }


def main(argv: list[str] | None = None) -> int:
    """Run both ways and print the table."""
    chosen = parse(argv)
    with cb.connect() as client:
        figures = run(client, chosen.actors, chosen.times, chosen.tolerance, chosen.seed)
    if chosen.json:
        print(json.dumps({"actors": chosen.actors, "times": chosen.times, "ways": figures}))
        return 0
    table = Table(title=f"The mean of {chosen.actors} actors, {chosen.times} times each way")
    for heading in ("", "p50", "max", "greatest error"):
        table.add_column(heading, justify="left" if not heading else "right")
    for way, row in figures.items():
        table.add_row(way, f"{row['p50_ms']:.1f} ms", f"{row['max_ms']:.1f} ms", f"{row['error']:.2%}")
    Console().print(table)
    Console().print("gossip: actors only talk to each other; gather: one function reads what all have written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
