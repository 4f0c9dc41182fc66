"""Bars, ratios and lines: what decides whether a bar was met."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from bench.harness import Sample, Spread
from bench.report import Bar, Report, Row, row_text


def samples(*figures: float) -> tuple[Sample, ...]:
    return tuple(Sample(figure) for figure in figures)


def row(unit: str, ours: tuple[Sample, ...], peer: tuple[Sample, ...], factor: float) -> Row:
    return Row("store", "get 8 B unix", unit, {"ours": ours, "peer": peer}, (Bar("peer", factor),))


def test_ratio_is_the_median_of_the_rounds_and_not_of_the_figures() -> None:
    found = row("ops/s", samples(100, 400, 900), samples(10, 100, 450), 4.0)
    assert found.ratio("peer") == Spread(4.0, 2.0, 10.0)
    assert [verdict.met for verdict in found.verdicts()] == [True]


def test_ratio_of_durations_is_times_faster() -> None:
    found = row("µs", samples(50, 50), samples(100, 400), 5.1)
    assert found.ratio("peer") == Spread(5.0, 2.0, 8.0)
    assert [verdict.met for verdict in found.verdicts()] == [False]


def test_bar_of_a_skipped_peer_is_neither_met_nor_missed() -> None:
    found = Row("store", "get", "ops/s", {"ours": samples(10)}, (Bar("peer", 1.0),))
    assert [verdict.met for verdict in found.verdicts()] == [None]
    assert "peer skipped" in row_text(found).plain


def test_limit_is_a_bar_on_our_own_figure() -> None:
    good = Row("idle", "memory", "MiB", {"ours": samples(119.9)}, limit=120.0)
    bad = Row("idle", "memory", "MiB", {"ours": samples(120.0)}, limit=120.0)
    assert [verdict.met for verdict in good.verdicts() + bad.verdicts()] == [True, False]


def test_line_shows_ours_peer_ratio_and_bar() -> None:
    found = row("ops/s", samples(310_000), samples(72_000), 3.0)
    assert " ".join(row_text(found).plain.split()) == (
        "get 8 B unix ours 310 k/s [310–310] | peer 72 k/s [72–72] 4.31× [4.31–4.31] (bar 3) ok"
    )


def test_summary_names_each_missed_bar_and_json_has_every_sample(tmp_path: Path) -> None:
    screen = io.StringIO()
    report = Report(Console(file=screen, width=200))
    report.add([row("ops/s", samples(10, 10), samples(10, 20), 3.0)])
    report.summary()
    report.write_json(tmp_path / "deep" / "bench.json")
    assert "0 of 1 bars met, 1 missed, 0 not measured" in screen.getvalue()
    assert "MISSED  store: get 8 B unix: 0.75, the bar is 3 × peer" in screen.getvalue()
    written = json.loads((tmp_path / "deep" / "bench.json").read_text())["rows"][0]
    assert [sample["figure"] for sample in written["subjects"]["peer"]] == [10, 20]
    assert written["bars"] == [{"bar": "3 × peer", "reached": 0.75, "met": False}]
