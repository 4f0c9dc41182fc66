"""The sum of ten arrays that are somewhere else: how near a runtime brings data to its functions.

"Hot" is a sum of arrays that have been summed before; "cold" of arrays that were written for this one call, so their
keys (or references) have never been read on that node. Every byte is read in both. Beside the runtimes stand the
least that can be had: the sum in one process, and a pool whose workers map shared memory that was made for them.
Source: Cloudburst, figure 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.harness import Settings
from bench.peers import dask_cluster, our_runtime, process_pool, ray_cluster, redis_pool
from bench.report import Bar, Report, Row
from bench.turns import Question, p50_row, subject, take_turns

SINGLE: Final = "one process"
MAPPED: Final = "mapped by hand"
SUBJECTS: Final = (
    subject(our_runtime),
    subject(process_pool, SINGLE, hot="single", cold="none"),
    subject(process_pool, MAPPED, hot="mapped", cold="mapped_anew"),
    subject(process_pool, cold="none"),
    subject(redis_pool, cold="hot"),
    subject(ray_cluster),
    subject(dask_cluster),
)
SIZES: Final = {80_000: "80 KB", 8_000_000: "8 MB", 80_000_000: "80 MB"}
COUNTS: Final = {80_000: 1_000, 8_000_000: 300, 80_000_000: 100}
COLD_COUNT: Final = 20
HOT_BARS: Final = {
    80_000: (Bar(MAPPED, 1 / 1.2),),
    8_000_000: (Bar(MAPPED, 1 / 1.2),),
    80_000_000: (Bar(SINGLE, 1 / 1.1),),
}
COLD_BARS: Final = {80_000: (Bar(ray_cluster.NAME, 2.0),), 8_000_000: (Bar(ray_cluster.NAME, 2.0),), 80_000_000: ()}


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure hot sums, then cold ones."""
    report.heading("Locality: the sum of ten arrays, two cores for each runtime")
    questions = []
    for size, shown in SIZES.items():
        count = min(settings.latencies, COUNTS[size])
        questions.append(Question(f"{shown} in all, hot", "hot", (size,), count, settings.seconds))
        questions.append(Question(f"{shown} in all, cold", "cold", (size,), COLD_COUNT, settings.seconds, warm=False))
    taken = take_turns("locality", SUBJECTS, questions, settings, report)
    for one in sorted(questions, key=lambda one: one.what, reverse=True):
        size = int(str(one.arguments[0]))
        bars = (HOT_BARS if one.what == "hot" else COLD_BARS)[size]
        yield p50_row("locality", taken, one.title, bars, point=(one.what, float(size)))
