"""What a node with data keeps of itself between its starts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from anna.messages import NodeInfo, View, WorkerInfo
from anna.nodedata import DataMismatch, open_data
from tests.anna.local.processes import PATIENCE_S, python

FORGOTTEN = """
import logging, sys
from pathlib import Path
from anna.listening import bind_seats
from anna.nodedata import open_data
from anna.plan import NodePlan
from anna.rundir import RunDirectory
from anna.supervisor import EXIT_SUPERSEDED, Supervisor

logging.basicConfig(stream=sys.stderr, format="%(message)s")
directory = RunDirectory(Path(sys.argv[1]))
data = open_data(Path(sys.argv[2]), None, 1, "anna", 7)
plan = NodePlan(node_id=data.node_id, generation=data.generation, set_aside=data.set_aside)
seats = bind_seats([directory.file("w0.sock")], [])
supervisor = Supervisor(directory, seats, lambda *_: EXIT_SUPERSEDED, linger_s=None, plan=plan)
supervisor.start()
supervisor.run()
sys.exit(supervisor.failed)
"""


def test_a_node_keeps_its_id_and_counts_its_starts(tmp_path: Path) -> None:
    starts = [open_data(tmp_path, None, 2, "anna", fresh_id) for fresh_id in (7, 8)]
    assert [(data.node_id, data.generation, data.workers) for data in starts] == [(7, 1, 2), (7, 2, 2)]
    with pytest.raises(DataMismatch, match="holds the keys of 2 workers, --workers says 3"):
        open_data(tmp_path, 3, 2, "anna", 9)
    with pytest.raises(DataMismatch, match="belongs to the cluster 'anna', --cluster says 'other'"):
        open_data(tmp_path, None, 2, "other", 9)


def test_what_was_set_aside_is_started_from_by_nobody(tmp_path: Path) -> None:
    """P23: a node that its cluster has forgotten comes back as another one, with nothing, and finds the others."""
    data = open_data(tmp_path, None, 1, "anna", 7)
    view = View(3, (NodeInfo(9, (WorkerInfo(5, ("unix:/other",)),)),))
    data.remember(view)
    (tmp_path / "seat-0").mkdir()
    (tmp_path / "seat-0" / "data.mdb").write_bytes(b"keys")
    place = data.set_aside()
    assert (place / "seat-0" / "data.mdb").read_bytes() == b"keys"
    again = open_data(tmp_path, None, 1, "anna", 8)
    assert (again.node_id, again.generation, again.known()) == (8, 1, view)
    assert not (tmp_path / "seat-0").exists()


def test_a_node_that_is_forgotten_stops_and_says_where_its_keys_are(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "seat-0").mkdir(parents=True)
    with python(FORGOTTEN, str(place), str(data), stderr=subprocess.STDOUT) as supervisor:
        said = supervisor.communicate(timeout=PATIENCE_S)[0]
    assert supervisor.returncode == 1
    assert "worker 0: the cluster has forgotten this node; the node stops" in said
    assert f"its keys are set aside in {data}/set-aside-7; start it again, and it joins without them" in said
    assert [path.name for path in data.iterdir()] == ["set-aside-7"]
