"""The demonstrations in miniature, for programs that have machines already: what `python -m demos.NAME --on …` does.

All of a demonstration is as it is; only that machines are there is not waited for twice.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

from cloudburst.cluster import Cluster
from demos import where
from demos.retwis.__main__ import main


def retwis(cluster: Cluster, on: str, out: Path) -> Any:
    """Run the clone of Twitter on a cluster that `on` names; return the one row of its figures."""
    there = contextlib.nullcontext((cluster.client, cluster.entrance))
    words = ["--quick", "--json", "--texts", "sample", "--posts", "50", "--seconds", "0.3", "--out", str(out)]
    said = io.StringIO()
    with mock.patch.object(where, "opened", return_value=there), contextlib.redirect_stdout(said):
        code = main([*words, "--on", on, "--hosts", str(len(cluster.hosts))])
    assert code == 0
    [row] = json.loads(said.getvalue())["rows"]
    return row


def check(row: Any) -> None:
    """See that the functions were called from there, and have shown what was posted."""
    assert row["name"] == "ours-functions"
    [repeat] = row["repeats"]
    assert repeat["operations_per_second"] > 0
    assert {"timeline", "post"} <= repeat["milliseconds"].keys()
    assert repeat["counts"]["entries"] > 0
    assert repeat["counts"].get("blanks", 0) == 0
