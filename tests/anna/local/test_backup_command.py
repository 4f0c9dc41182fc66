"""`anna backup` and `anna restore` on real nodes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import anna
from anna import local
from anna.backupfile import FORMAT, BackupReader, BackupWriter, Head
from anna.cli import main
from anna.errors import Damaged, NotSupported
from anna.lattices import Counter, Set
from tests.anna.local.processes import PATIENCE_S, eventually, serving

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; return (code, output, errors)."""

    def command(*words: str) -> tuple[int, str, str]:
        code = main(words)
        return (code, *capfd.readouterr())

    return command


def fill(kvs: anna.Client) -> None:
    for number in range(300):
        kvs.put(f"k{number}", number)
    kvs.put("set", Set([1, 2]))
    kvs.put("counter", Counter(5))
    kvs.put("bytes", b"\x00\xff" * 50_000)
    kvs.put("for-a-while", "x", ttl=1000)


def test_a_backup_is_restored_into_a_new_cluster(place: Path, run: Run) -> None:
    file = str(place / "b")
    with serving("--dir", f"{place}/one", "--workers", "2") as (process, started):
        at = started["workers"][0][0]
        with anna.connect(at) as kvs:
            fill(kvs)
        code, out, errors = run("backup", file, "--json", "--at", at)
        done = json.loads(out)
        assert (code, errors, done["keys"], done["file"]) == (0, "", 304, file)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    with serving("--dir", f"{place}/two", "--workers", "3", "--data", f"{place}/data") as (process, started):
        at = started["workers"][0][0]
        code, out, errors = run("restore", file, "--at", at, "--ack", "disk")
        assert (code, out, errors) == (0, f"304 keys of epoch {done['epoch']} were joined in\n", "")
        with anna.connect(at) as kvs:
            assert kvs.mget([f"k{number}" for number in range(300)]) == list(range(300))
            assert (kvs.get("set"), kvs.get("counter"), len(kvs.get("bytes"))) == ({1, 2}, 5, 100_000)
            assert kvs.get("for-a-while") == "x"
            assert sum(worker["expiring"] for worker in kvs.status()) == 1
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_a_restore_joins_so_what_was_written_since_stays_and_what_was_deleted_is_there_again(
    place: Path, directory: Path, run: Run
) -> None:
    with local.ensure(), anna.connect() as kvs:
        kvs.put("kept", "old")
        kvs.put("changed", "old")
        kvs.put("set", Set([1]))
        kvs.put("counter", Counter(1))
        kvs.put("deleted", "old")
        assert run("backup", str(place / "b"))[0] == 0
        kvs.put("changed", "new")
        kvs.put("set", Set([2]))
        kvs.put("counter", Counter(1))
        kvs.delete("deleted")
        kvs.put("later", "new")
        # A delete that is still remembered holds against a backup, too: for the first second of a cluster.
        eventually(lambda: not any(worker["tombstones"] for worker in kvs.status()), "deletes are forgotten")
        assert run("restore", str(place / "b"))[0] == 0
        assert kvs.mget(["kept", "changed", "deleted", "later"]) == ["old", "new", "old", "new"]
        assert (kvs.get("set"), kvs.get("counter")) == ({1, 2}, 2)


def test_a_backup_while_a_client_writes_has_no_write_without_the_one_before_it(
    place: Path, directory: Path, run: Run
) -> None:
    stop = threading.Event()
    with local.ensure():

        def write() -> None:
            with anna.connect() as kvs:
                number = 0
                while not stop.is_set():
                    number += 1
                    for name in range(8):
                        kvs.put(f"k{name}", number)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(5):
                code, _, errors = run("backup", str(place / f"b{number}"))
                assert (code, errors) == (0, "")
        finally:
            stop.set()
            writer.join()
        for number in range(5):
            assert run("restore", str(place / f"b{number}"), "--json")[0] == 0
    with serving("--dir", f"{place}/two", "--workers", "2") as (_, started):
        at = started["workers"][0][0]
        before = 0
        for number in range(5):
            assert run("restore", str(place / f"b{number}"), "--at", at)[0] == 0
            with anna.connect(at) as kvs:
                values = kvs.mget([f"k{name}" for name in range(8)], 0)
            assert values == sorted(values, reverse=True)
            assert values[0] - values[-1] <= 1
            assert values[0] >= before
            before = values[0]
        assert before > 0


@pytest.fixture
def backup_file(tmp_path: Path) -> Path:
    path = tmp_path / "b"
    with BackupWriter(path, Head("anna", 7, 1, 0.0)) as file:
        file.write(b"one")
        file.write(b"two")
        file.finish(2)
    return path


def test_a_file_that_was_written_is_read_back(backup_file: Path) -> None:
    reader = BackupReader(backup_file)
    end = reader.check()
    assert (end.keys, end.size, end.blocks, reader.head.epoch) == (2, 6, 2, 7)
    assert list(reader.blocks()) == [b"one", b"two"]


def test_any_damaged_byte_and_any_cut_is_refused(backup_file: Path) -> None:
    whole = backup_file.read_bytes()
    for place in range(len(whole)):
        backup_file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(Damaged):
            BackupReader(backup_file).check()
        backup_file.write_bytes(whole[:place])
        with pytest.raises(Damaged):
            BackupReader(backup_file).check()
    backup_file.write_bytes(whole + b"x")
    with pytest.raises(Damaged, match="goes on after its end"):
        BackupReader(backup_file).check()


def test_a_newer_format_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with BackupWriter(tmp_path / "b", Head("anna", 7, 1, 0.0, FORMAT + 1)) as file:
        file.finish(0)
    with pytest.raises(NotSupported, match=f"has format {FORMAT + 1}; this version reads up to {FORMAT}"):
        BackupReader(tmp_path / "b")


def test_a_backup_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> None:
        with BackupWriter(tmp_path / "b", Head("anna", 7, 1, 0.0)) as file:
            file.write(b"one")
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_changes_nothing(place: Path, directory: Path, run: Run) -> None:
    with local.ensure(), anna.connect() as kvs:
        for number in range(50):
            kvs.put(f"k{number}", number)
        assert run("backup", str(place / "b"))[0] == 0
        whole = (place / "b").read_bytes()
        (place / "b").write_bytes(whole[:-1])
        for number in range(50):
            kvs.delete(f"k{number}")
        code, out, errors = run("restore", str(place / "b"))
        assert (code, out) == (1, "")
        assert errors.endswith("bytes are missing (Damaged)\n")
        assert sum(worker["keys"] for worker in kvs.status()) == 0
