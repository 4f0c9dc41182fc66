"""How a graph's time grows: chains of 1 to 15 steps, and 1 to 9 steps beside each other between two others.

Every step is a call of a function that does next to nothing. A chain is increment after increment; a fan is an
increment, so many squares of it, and their sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.harness import Settings
from bench.report import Report, Row
from bench.turns import RUNTIMES, Question, p50_row, take_turns

LENGTHS: Final = tuple(range(1, 16))
LENGTHS_QUICK: Final = (1, 5, 15)
WIDTHS: Final = tuple(range(1, 10))
WIDTHS_QUICK: Final = (1, 9)
CALLS: Final = 200


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure each shape."""
    report.heading("Shapes of graphs: chains and fans of no-ops, warm, two cores for each runtime")
    sizes = {
        "chain": LENGTHS_QUICK if settings.quick else LENGTHS,
        "fan": WIDTHS_QUICK if settings.quick else WIDTHS,
    }
    count = min(CALLS, settings.latencies)
    questions = [
        Question(f"{shape} of {size}", shape, (size,), count, settings.seconds)
        for shape, found in sizes.items()
        for size in found
    ]
    taken = take_turns("shapes", RUNTIMES, questions, settings, report)
    for one in questions:
        yield p50_row("shapes", taken, one.title, point=(one.what, float(str(one.arguments[0]))))
