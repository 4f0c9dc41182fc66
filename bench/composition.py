"""square(increment(x)): two functions, the second on what the first has returned. Source: Cloudburst, figure 5.

Ours is a graph that is registered once; a pool's caller waits for the first result and sends it on; Ray's and Dask's
second task is given the first one's reference, so their caller waits once, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.harness import Settings
from bench.peers import lithops_local, process_pool, ray_cluster
from bench.report import Bar, Report, Row
from bench.turns import RUNTIMES, Question, p50_row, processor_row, subject, take_turns

TITLE: Final = "square(increment(x))"
BARS: Final = (Bar(process_pool.NAME, 1 / 0.75), Bar(ray_cluster.NAME, 10.0))


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure one composition after the other."""
    report.heading("Composition: square(increment(x)), warm, two cores for each runtime")
    questions = (Question(TITLE, "composition", (), settings.latencies, 2 * settings.seconds),)
    subjects = (*RUNTIMES, subject(lithops_local))
    taken = take_turns("composition", subjects, questions, settings, report)
    yield p50_row("composition", taken, TITLE, BARS)
    yield processor_row("composition", taken, TITLE)
