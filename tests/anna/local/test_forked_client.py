"""A forked child that goes on with its parent's client keeps the embedded cluster for itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PARENT_LEAVES_FIRST = """
import os, select, sys
import anna, anna.local

kvs = anna.connect()
kvs.put("k", "kept")
lease = anna.local.ensure()
supervisor = os.pidfd_open(lease.supervisor_pid)
lease.close()
reading, writing = os.pipe()
if os.fork():
    os.read(reading, 1)      # The child has made its first call.
    kvs.close()
    os._exit(0)
kvs.get("k")
os.write(writing, b".")
ended = select.select([supervisor], [], [], 1.0)[0]
print("ended" if ended else kvs.get("k"), flush=True)
kvs.close()
"""


def test_the_child_keeps_the_cluster_when_its_parent_leaves(tmp_path: Path) -> None:
    script = tmp_path / "story.py"
    script.write_text(PARENT_LEAVES_FIRST)
    run = subprocess.run(
        [sys.executable, str(script)],
        env={"ANNA_DIR": str(tmp_path / "a"), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.stdout, run.returncode) == ("kept\n", 0), run.stderr
