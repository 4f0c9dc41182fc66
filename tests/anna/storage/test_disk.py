"""Disks that are full, that fail, that lie, and whose power is cut.

Parts need root (tmpfs of a size, ext4 in a file) or a C compiler, and say so when they are skipped.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anna.errors import DiskFull
from anna.storage.engine import Engine
from tests.anna.storage.seats import ROOT, contents, recovered

MIB = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED FOR LACK OF ROOT: mounts a file system")
needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="SKIPPED FOR LACK OF cc: builds a preloaded library")


@contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[Path]:
    """Mount a file system on `place`; skip the test where the machine does not let us."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"SKIPPED, mount said: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def commit_until_full(engine: Engine, first: int, blob: bytes) -> int:
    """Commit blobs until the disk has no room; return the last that was durable. The engine reports `full`."""
    for number in range(first, first + 100_000):
        engine.append(number, blob)
        assert engine.commit() == number
        if engine.full:
            return number
    raise AssertionError("the disk does not get full")


@needs_root
def test_what_was_accepted_commits_on_a_full_disk_and_service_resumes_by_itself(tmp_path: Path) -> None:
    """P15, D27: a definite error before any acknowledgement, nothing lost, service again when there is room."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=32m", "tmpfs") as disk:
        engine = Engine(disk, 0, ballast_bytes=8 * MIB)
        filler = disk / "filler"
        last = 0
        for _ in range(3):
            filler.write_bytes(bytes(int(os.statvfs(disk).f_bavail * 4096) - MIB))
            last = commit_until_full(engine, last + 1, b"b" * 100_000)
            assert not engine.regain()
            filler.unlink()
            assert engine.regain()
            assert (engine.full, (disk / "seat-0" / "ballast").stat().st_size) == (False, 8 * MIB)
        logs, _ = contents(engine)
        assert sorted(logs) == list(range(1, last + 1))
        engine.close()
        assert recovered(disk) == (logs, {}, [])


@needs_root
def test_a_commit_that_has_no_room_at_all_has_no_effect_and_can_be_tried_again(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=16m", "tmpfs") as disk:
        engine = Engine(disk, 0, ballast_bytes=4 * MIB)
        engine.append(1, b"first")
        engine.commit()
        filler = disk / "filler"
        filler.write_bytes(bytes(4 * MIB))
        engine.append(2, b"b" * 12 * MIB)
        for _ in range(2):
            with pytest.raises(DiskFull, match="No space left on device") as raised:
                engine.commit()
            assert raised.value.definite
        with pytest.raises(DiskFull):
            engine.put_cells([(b"k", b"c" * 12 * MIB)])
        assert (dict(engine.logs()), list(engine.cells()), engine.full) == ({1: b"first"}, [], True)
        filler.unlink()
        (disk / "seat-0" / "cells").stat()
        assert engine.commit() == 2 or engine.full
        assert sorted(dict(engine.logs())) == [1, 2]
        assert engine.check() == []
        engine.close()


FAIL = """
import os, sys, pathlib
from anna.errors import StorageFailed
from anna.storage.engine import Engine
engine = Engine(pathlib.Path(sys.argv[1]), 0)
engine.append(1, b"before")
engine.commit()
switch = pathlib.Path(os.environ["FAULT_FAIL"])
switch.touch()
engine.append(2, b"during")
for healed in (False, True):
    if healed:
        switch.unlink()
    for what in (engine.commit, lambda: engine.truncate_logs(1)):
        try:
            what()
        except StorageFailed as error:
            print(healed, error.definite, error)
        else:
            print("it went on")
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library that makes fsync fail or lie."""
    library = tmp_path_factory.mktemp("shim") / "faultdisk.so"
    source = Path(__file__).parent / "faultdisk.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def faulty(shim: Path, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a process on a disk that can fail and lie."""
    return {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "FAULT_FAIL": str(tmp_path / "fail"),
        "FAULT_LIE": str(tmp_path / "lie"),
        "PYTHONPATH": str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", ""),
    }


@needs_compiler
def test_after_a_failed_fsync_nothing_commits_ever_again(shim: Path, tmp_path: Path) -> None:
    """P17: the next fsync may succeed without the data; believing it loses acknowledged writes."""
    done = subprocess.run(
        [sys.executable, "-c", FAIL, str(tmp_path / "data")],
        env=faulty(shim, tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert [line.split()[:2] for line in lines] == [["False", "False"]] * 2 + [["True", "False"]] * 2
    assert all("Input/output error; nothing is written here any more" in line for line in lines)
    logs, _, damage = recovered(tmp_path / "data")
    assert (logs.pop(1), set(logs) <= {2}, damage) == (b"before", True, [])


WRITE = """
import itertools, os, sys, pathlib
from anna.storage.engine import Engine
engine = Engine(pathlib.Path(sys.argv[1]), 0, ballast_bytes=4096)
for number in itertools.count(1):
    engine.append(number, (b"%09d" % number) * (1 + number * 37 % 3000))
    engine.commit()
    engine.put_cells([(b"key %d" % (number * 7 % 50 + i), b"%d" % number) for i in range(5)])
    if number % 20 == 0:
        engine.truncate_logs(number - 10)
    print(number, flush=True)
"""


def cut_power(shim: Path, tmp_path: Path, lie: bool, commits: int) -> tuple[int, Path]:
    """Write to an ext4 in a file until `commits` are durable, cut its power; return the last one and the image."""
    image, copy = tmp_path / "image", tmp_path / "copy"
    with open(image, "wb") as file:
        file.truncate(96 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with mounted(tmp_path / "disk", "-o", "loop,commit=300", str(image)) as disk:
        env = faulty(shim, tmp_path)
        if lie:
            (tmp_path / "lie").touch()
        code = [sys.executable, "-c", WRITE, str(disk / "data")]
        with subprocess.Popen(code, stdout=subprocess.PIPE, text=True, env=env) as writer:
            assert writer.stdout is not None
            said = 0
            while said < commits:
                said = int(writer.stdout.readline())
            writer.send_signal(signal.SIGSTOP)
            shutil.copyfile(image, copy)
            writer.kill()
    return said, copy


@needs_root
@needs_compiler
@pytest.mark.parametrize("commits", [1, 3, 57])
def test_a_power_cut_loses_nothing_that_was_durable(shim: Path, tmp_path: Path, commits: int) -> None:
    """P2, P16: what was reported is there, what was under way is there or not, nothing is torn."""
    said, image = cut_power(shim, tmp_path, False, commits)
    with mounted(tmp_path / "after", "-o", "loop", str(image)) as disk:
        logs, cells, damage = recovered(disk / "data")
    assert damage == []
    assert said <= max(logs)
    assert all(blob == (b"%09d" % number) * (1 + number * 37 % 3000) for number, blob in logs.items())
    assert sorted(logs) == list(range(min(logs), max(logs) + 1))
    # The writer was stopped some commits after the one it was last heard to say, perhaps after a later truncation.
    truncated_at = min(logs) + 9
    assert min(logs) == 1 or (truncated_at % 20 == 0 and truncated_at <= max(logs))
    assert truncated_at >= said // 20 * 20 - 20
    newest = max(map(int, cells.values()))
    assert newest >= said


@needs_root
@needs_compiler
def test_a_power_cut_on_a_disk_that_lies_is_seen_to_lose(shim: Path, tmp_path: Path) -> None:
    """The control: were nothing lost here, the test above could not fail."""
    said, image = cut_power(shim, tmp_path, True, 57)
    with mounted(tmp_path / "after", "-o", "loop", str(image)) as disk:
        code = "import sys, pathlib; from tests.anna.storage.seats import recovered as r; "
        code += "logs, _, damage = r(pathlib.Path(sys.argv[1])); print(max(logs, default=0), len(damage))"
        done = subprocess.run(
            [sys.executable, "-c", code, str(disk / "data")], capture_output=True, text=True, cwd=ROOT, timeout=60
        )
    last, damage = map(int, done.stdout.split()) if done.returncode == 0 else (0, 1)
    assert last < said or damage
