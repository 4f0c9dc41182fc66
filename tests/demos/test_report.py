"""What a run writes: percentiles, the table's cells, the chart and the page, from numbers made by hand."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from demos.retwis import page, report
from demos.retwis.people import handle
from demos.retwis.workload import Measured, count_shown

PARENT = {
    "id": "p1",
    "author": 3,
    "text": "<script>alert(1)</script> & more http://x.example/y",
    "stamp": 1_000,
    "parent": "",
}
REPLY = {"id": "p2", "author": 4, "text": "@anonymous hello, shit", "stamp": 61_001_000, "parent": "p1"}


def measured(milliseconds: list[int], seconds: float = 2.0) -> Measured:
    """Return a turn with these timelines, half as many posts, and two orphans among five replies."""
    times = {
        "timeline": array("q", [m * 1_000_000 for m in milliseconds]),
        "post": array("q", [7_000_000] * (len(milliseconds) // 2)),
    }
    return Measured(seconds, times, Counter(replies=5, orphans=2))


def result_of(*turns: Measured) -> report.Result:
    """Return a result with one row of these turns."""
    row = report.Row("ours-functions", "our store, in functions", 123.4, [report.summarise(turn) for turn in turns])
    return report.Result(
        {"people": 905, "follows": 11_838, "texts": "a <few> texts"},
        {},
        {},
        [row],
        ["one note", "two & more"],
    )


def test_percentiles_are_nearest_ranks() -> None:
    found = report.percentiles(array("q", [m * 1_000_000 for m in range(200, 0, -1)]))
    assert found == {"p50": 100.0, "p90": 180.0, "p99": 198.0, "max": 200.0, "mean": 100.5, "count": 200}
    assert report.percentiles(array("q", [3_000_000]))["p99"] == 3.0


def test_a_row_shows_the_median_of_its_repeats_and_the_sum_of_its_orphans() -> None:
    row = result_of(measured([1, 1]), measured([9, 9]), measured([2, 2, 2, 2])).rows[0]
    assert report.cells(row) == ["2.000", "2.000", "7.000", "7.000", "2", "6", "123"]


def test_a_row_that_never_ran_shows_dashes() -> None:
    assert report.cells(report.Row("redis-bare", "Redis")) == ["–"] * 7


def test_result_json_keeps_every_repeat_and_the_medians(tmp_path: Path) -> None:
    result_of(measured([1, 3]), measured([5, 7])).write(tmp_path / "result.json")
    (row,) = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [repeat["milliseconds"]["timeline"]["p99"] for repeat in row["repeats"]] == [3.0, 7.0]
    assert row["median"]["milliseconds"]["timeline"]["p99"] == 5.0
    assert row["median"]["operations_per_second"] == 1.5


def test_clients_of_one_turn_are_added_up() -> None:
    together = Measured()
    together.add(measured([1, 2], seconds=1.0))
    together.add(measured([3, 4], seconds=2.0))
    assert list(together.times["timeline"]) == [1_000_000, 2_000_000, 3_000_000, 4_000_000]
    assert (together.seconds, together.counts["orphans"]) == (2.0, 4)


def test_an_orphan_is_a_reply_without_its_parent_and_nothing_else() -> None:
    counts: Counter[str] = Counter()
    blank: dict[str, Any] = {"id": "p3", "parent": "", "reply_to": None}
    count_shown([PARENT | {"reply_to": None}, REPLY | {"reply_to": PARENT}, REPLY | {"reply_to": None}, blank], counts)
    assert counts == {"entries": 4, "replies": 2, "orphans": 1, "blanks": 1}


def test_the_chart_is_a_small_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the chart needs matplotlib (the extra [plots])")
    assert report.chart(result_of(measured([1, 2, 3, 4])), tmp_path / "chart.png")
    data = (tmp_path / "chart.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 200_000


def shown_page(tmp_path: Path, *timeline: dict[str, Any]) -> str:
    """Return the page with one feed."""
    feed = page.Feed(0, {"following": 1, "followers": 2, "posts": 3_000}, timeline)
    page.write(tmp_path / "page.html", result_of(measured([1, 2])), [feed], None)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_page_escapes_hides_names_cuts_links_and_stars_rude_words(tmp_path: Path) -> None:
    shown = shown_page(tmp_path, REPLY | {"likes": 1_234, "reply_to": PARENT})
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more <i>#link</i>" in shown
    assert f"<i>@{handle(3)}</i> hello, ∗∗∗∗" in shown
    assert "a &lt;few&gt; texts" in shown
    assert "♥ 1,234" in shown
    assert "1 min" in shown
    assert "3,000 posts" in shown
    for absent in ("<script", "anonymous", "x.example", "http", 'class="orphan"'):
        assert absent not in shown


def test_the_page_is_red_where_a_parent_or_a_body_is_missing(tmp_path: Path) -> None:
    shown = shown_page(tmp_path, REPLY | {"likes": 0, "reply_to": None}, {"id": "p3", "parent": "", "reply_to": None})
    assert shown.count('class="orphan"') == 2
    assert "the post that this answers is not here yet" in shown
    assert '<td class="orphans">2</td>' in shown
