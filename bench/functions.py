"""Function calls: one warm no-op at a time, a method of a class with state, and what it takes to begin.

The processor time of a call is of all processes of the runtime, and so does not change with what others do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.harness import Settings
from bench.peers import process_pool, ray_cluster
from bench.report import Bar, Report, Row
from bench.turns import RUNTIMES, Question, p50_row, processor_row, tail, take_turns

CALL: Final = "call, one at a time"
METHOD: Final = "method of a stateful class"
CALL_BARS: Final = (Bar(process_pool.NAME, 1.25), Bar(ray_cluster.NAME, 10.0))
METHOD_BARS: Final = (Bar(ray_cluster.NAME, 6.0),)
TAIL_LIMIT: Final = 2.0


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure warm calls, and what it takes to get to the first result."""
    report.heading("Functions: no-ops, warm, two cores for each runtime")
    questions = (
        Question(CALL, "nothing", (), settings.latencies, 2 * settings.seconds),
        Question(METHOD, "method", (), settings.latencies, 2 * settings.seconds),
    )
    taken = take_turns("functions", RUNTIMES, questions, settings, report)
    yield p50_row("functions", taken, CALL, CALL_BARS)
    yield processor_row("functions", taken, CALL)
    yield Row("functions", f"{CALL}, p99 over p50", "×", taken.samples(CALL, tail), limit=TAIL_LIMIT)
    yield p50_row("functions", taken, METHOD, METHOD_BARS)
    yield Row("functions", "import, start, first result", "s", taken.starts())
