"""A node's segments by themselves: made within bounds, spilled, mapped, removed, and given back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudburst.burst import reaping
from cloudburst.errors import NoRoom, ProtocolError
from cloudburst.segments import shelf as shelves
from cloudburst.segments.descriptors import (
    FETCHED,
    SegmentGone,
    SegmentUnseen,
    address_of,
    pack_descriptor,
    result_name,
)
from cloudburst.segments.held import Held, open_segment
from cloudburst.segments.layout import Parts
from cloudburst.segments.shelf import HOST, Shelf, home_of

CLIENT = 0xABC
SIZE = 100_000


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """A shelf for ten segments of SIZE, with one client."""
    monkeypatch.setenv("CLOUDBURST_SEGMENT_BYTES", str(10 * SIZE))
    monkeypatch.setenv("CLOUDBURST_SPILL", str(tmp_path / "disk"))
    made = Shelf.make(tmp_path, 77)
    made.admit(CLIENT)
    yield made
    made.remove_all()


def put(shelf: Shelf, number: int = 1, size: int = SIZE, client: int = CLIENT) -> bytes:
    """Make a segment of about `size` bytes."""
    return shelf.put(result_name(client, number, 9), Parts(bytes([number]) * (size - 24), []))


def test_segment_is_mapped_read_only_and_counted_until_it_is_removed(shelf: Shelf) -> None:
    descriptor = put(shelf)
    assert shelf.bytes == SIZE
    data = open_segment(descriptor)
    assert data.readonly
    assert bytes(data[24:]) == b"\1" * (SIZE - 24)
    held = Held(descriptor)
    del held
    assert (shelf.bytes, shelf.names()) == (0, [])
    assert bytes(data[-3:]) == b"\1\1\1"
    with pytest.raises(SegmentGone):
        open_segment(descriptor)


def test_mapping_keeps_no_descriptor_open(shelf: Shelf) -> None:
    descriptor = put(shelf)
    before = len(os.listdir("/proc/self/fd"))
    kept = [open_segment(descriptor) for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len({bytes(one[-1:]) for one in kept}) == 1


def test_mapped_segment_is_unlinked_at_once_and_stays_readable(shelf: Shelf) -> None:
    held = Held(put(shelf))
    data = held.view()
    assert shelf.names() == []
    assert held.view() is data
    del held
    assert bytes(data[-1:]) == b"\1"


def test_what_is_over_the_bound_waits_on_disk_and_is_mapped_from_there(shelf: Shelf, tmp_path: Path) -> None:
    descriptors = [put(shelf, number) for number in range(1, 13)]
    assert shelf.bytes == 10 * SIZE
    on_disk = list((tmp_path / "disk").rglob("r*"))
    assert [path.stat().st_size for path in on_disk] == [SIZE, SIZE]
    assert [open_segment(one)[-1] for one in descriptors] == list(range(1, 13))
    for descriptor in descriptors:
        Held(descriptor).drop()
    assert (shelf.bytes, shelf.names()) == (0, [])


def test_full_memory_and_disk_is_an_error_with_the_numbers(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves.config, "DISK_LEFT_SHARE", 1.0)
    kept = put(shelf, 1, 9 * SIZE)
    with pytest.raises(NoRoom, match=r"200,000 bytes: this node's segments have 900,000 of 1,000,000 bytes") as caught:
        put(shelf, 2, 2 * SIZE)
    assert caught.value.definite
    assert shelf.bytes == 9 * SIZE
    assert len(shelf.names()) == 1
    Held(kept).drop()
    put(shelf, 2, 2 * SIZE)


def test_little_free_memory_on_the_machine_sends_segments_to_disk(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shelves.config, "MEMORY_LEFT_SHARE", 1.0)
    data = open_segment(put(shelf))
    assert shelf.bytes == 0
    assert len(list((tmp_path / "disk").rglob("r*"))) == 1
    assert len(data) == SIZE


def test_client_that_is_dismissed_leaves_nothing_and_gets_nothing_more(shelf: Shelf, tmp_path: Path) -> None:
    shelf.admit(1)
    theirs = put(shelf, 1, client=1)
    mapped = [open_segment(put(shelf, number)) for number in range(1, 12)]
    assert len(list((tmp_path / "disk").rglob("r*"))) == 2
    shelf.dismiss(CLIENT)
    assert shelf.names() == ["1/r1.9"]
    assert shelf.bytes == SIZE
    assert [one[-1] for one in mapped] == list(range(1, 12))
    with pytest.raises(SegmentGone):
        put(shelf, 12)
    with pytest.raises(SegmentGone):  # on disk, too
        put(shelf, 12, 11 * SIZE)
    assert shelf.names() == ["1/r1.9"]
    Held(theirs).drop()


def test_count_that_a_killed_process_left_wrong_is_mended(shelf: Shelf) -> None:
    put(shelf)
    assert shelf._ledger.take(3 * SIZE, 10 * SIZE)  # what it was about to write
    shelf.admit(2)
    shelf.dismiss(2)
    assert shelf.bytes == SIZE


def test_same_name_again_replaces_the_segment_of_an_answer_that_was_lost(shelf: Shelf) -> None:
    first = open_segment(put(shelf, 1))
    second = open_segment(shelf.put(result_name(CLIENT, 1, 9), Parts(b"z" * (SIZE - 24), [])))
    assert (first[-1], second[-1]) == (1, ord("z"))
    assert shelf.bytes == SIZE


def test_forked_child_removes_nothing_of_its_parents(shelf: Shelf) -> None:
    held = Held(put(shelf))
    child = os.fork()
    if child == 0:
        held.__del__()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert shelf.names() == [held.name]


def test_name_that_leads_elsewhere_is_refused(shelf: Shelf) -> None:
    for name in ("../ledger", "abc/../../x", "ledger", "abc/r1/..", "abc/r1.2/3", "/etc/passwd", "abc/r1.9\n"):
        with pytest.raises(ProtocolError, match="describes no segment"):
            open_segment(pack_descriptor(77, name, 1, shelf.path))


def test_size_that_is_not_the_files_is_refused(shelf: Shelf) -> None:
    put(shelf)
    for size in (1, SIZE - 1, SIZE + 1):
        with pytest.raises(ProtocolError, match="has not the"):
            open_segment(pack_descriptor(77, result_name(CLIENT, 1, 9), size, shelf.path))


def test_next_life_of_the_node_finds_its_place_empty_and_the_last_one_removes_nothing_of_it(tmp_path: Path) -> None:
    last = Shelf.make(tmp_path, 1)
    last.admit(CLIENT)
    descriptor = put(last)
    new = Shelf.make(tmp_path, 2)
    assert new.names() == []
    with pytest.raises(SegmentGone):
        open_segment(descriptor)
    last.remove_all()
    assert new.path.exists()
    new.remove_all()
    assert not home_of(tmp_path).exists()


def test_without_shared_memory_the_nodes_own_directory_is_used(tmp_path: Path) -> None:
    made = Shelf.make(tmp_path, 5, base=tmp_path / "missing")
    assert made.path == tmp_path / "segments"
    made.admit(CLIENT)
    assert len(open_segment(put(made))) == SIZE
    made.remove_all()
    assert not made.path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="modes of files are Linux's here")
def test_segments_are_their_users_alone(shelf: Shelf) -> None:
    put(shelf)
    assert shelf.path.stat().st_mode & 0o077 == 0
    assert (shelf.path / shelf.names()[0]).stat().st_mode & 0o777 == 0o600


def fill(shelf: Shelf, name: str, size: int) -> bytes:
    """Receive a segment in three pieces."""
    incoming = shelf.receive(name, size)
    value = memoryview(bytes(number % 251 for number in range(size)))
    for at in range(0, size, size // 3 + 1):
        incoming.write(value[at : at + size // 3 + 1], at)
    return incoming.finish()


def test_segment_that_is_received_piece_by_piece_counts_from_the_first(shelf: Shelf) -> None:
    shelf.admit(FETCHED)
    incoming = shelf.receive("2/f1", SIZE)
    assert shelf.bytes == SIZE
    incoming.abandon()
    assert (shelf.bytes, shelf.names()) == (0, [])
    data = open_segment(fill(shelf, "2/f2", SIZE))
    assert bytes(data) == bytes(number % 251 for number in range(SIZE))
    shelf.dismiss(FETCHED)
    assert (shelf.bytes, shelf.names()) == (0, [])


def test_what_is_received_and_finds_no_room_in_memory_lies_on_disk(shelf: Shelf, tmp_path: Path) -> None:
    shelf.admit(FETCHED)
    descriptor = fill(shelf, "2/f1", 11 * SIZE)
    assert shelf.bytes == 0
    assert [path.name for path in (tmp_path / "disk").rglob("f1")] == ["f1"]
    assert len(open_segment(descriptor)) == 11 * SIZE
    shelf.remove("2/f1")
    assert shelf.names() == []


def test_segments_of_another_host_are_out_of_sight_and_say_where_they_can_be_fetched(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.setenv(HOST, "elsewhere")
    other = Shelf.make(tmp_path / "other", 78)
    other.show_porter("/run/porter.sock", "tcp:10.0.0.6:7000")
    other.admit(CLIENT)
    descriptor, token, path = put(other), other.token, str(other.path)
    other.remove_all()
    other = Shelf.make(tmp_path / "other", 78)
    del other
    assert address_of(descriptor) == "tcp:10.0.0.6:7000"
    assert address_of(put(shelf)) == ""
    assert Shelf.at(token, path) is not None
    shelves._visited.clear()
    monkeypatch.setenv(HOST, "here")
    assert Shelf.at(token, path) is None
    with pytest.raises(SegmentUnseen):
        open_segment(descriptor)
    shelves._remove(Path(path))


def test_shelf_that_was_opened_before_there_was_a_porter_knows_it_when_it_is_found_again(
    shelf: Shelf, tmp_path: Path
) -> None:
    with open(shelf.path / "ledger", "rb+") as file:
        file.seek(shelves.ABOUT_AT)
        file.write(shelves._pack_about("", "/run/porter.sock", "tcp:10.0.0.6:7000"))
    assert shelf.address == ""
    assert Shelf.find(tmp_path, 77).address == "tcp:10.0.0.6:7000"
    assert shelf.porter == "/run/porter.sock"


def test_shelf_of_a_release_that_knew_no_porters_can_be_opened(shelf: Shelf) -> None:
    with open(shelf.path / "ledger", "rb+") as file:
        file.seek(shelves.ABOUT_AT)
        file.write(bytes(shelves.LEDGER_BYTES - shelves.ABOUT_AT))
    opened = Shelf(shelf.path, shelf.token)
    assert (opened.host, opened.porter, opened.address) == ("", "", "")


KILLED = """
import os, signal, sys
from pathlib import Path
from cloudburst.segments.layout import Parts
from cloudburst.segments.descriptors import result_name
from cloudburst.segments.shelf import Shelf
made = Shelf.make(Path(sys.argv[1]), 5)
made.admit(1)
for number in range(2):
    made.put(result_name(1, number, 9), Parts(bytes(SIZE - 24), []))
assert made.bytes == SIZE
print(made.path, *made.places[1:], flush=True)
signal.pause()
""".replace("SIZE", str(SIZE))


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[subprocess.Popen[str], Path, Path]]:
    """A process that has a value in memory and one on disk, and where; killed at the end."""
    monkeypatch.setenv("CLOUDBURST_SEGMENT_BYTES", str(SIZE))
    monkeypatch.setenv("CLOUDBURST_SPILL", str(tmp_path / "disk"))
    words = [sys.executable, "-c", KILLED, str(tmp_path / "of-the-killed")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        memory, disk = map(Path, process.stdout.readline().split())
        assert len(list(disk.rglob("r*"))) == 1
        yield process, memory, disk
        process.kill()


def test_what_a_node_has_left_that_was_killed_is_removed_when_another_starts(
    killed: tuple[subprocess.Popen[str], Path, Path], tmp_path: Path
) -> None:
    process, memory, disk = killed
    for lives in (True, False):
        Shelf.make(tmp_path / "another", 6).remove_all()
        assert (memory.exists(), disk.exists()) == (lives, lives)
        process.kill()
        process.wait()


def test_reaping_removes_it_without_this_library_and_looking_does_not(
    killed: tuple[subprocess.Popen[str], Path, Path],
) -> None:
    process, memory, disk = killed
    places = []
    for dry in (False, True, False):  # once while it lives
        asked = json.dumps({"older_s": None, "dry": dry, "run": "of-nobody"})
        subprocess.run([sys.executable, "-I", reaping.__file__, "reap", asked], check=True, stdout=subprocess.DEVNULL)
        places.append((memory.exists(), disk.exists()))
        process.kill()
        process.wait()
    assert places == [(True, True), (True, True), (False, False)]


def test_next_life_of_a_killed_node_takes_its_place_which_nobody_sweeps_then(
    killed: tuple[subprocess.Popen[str], Path, Path], tmp_path: Path
) -> None:
    process, memory, disk = killed
    process.kill()
    process.wait()
    made = Shelf.make(tmp_path / "of-the-killed", 8)
    assert (made.path, made.places[1], made.names()) == (memory, str(disk), [])
    reaping.sweep(disk.parent)
    assert disk.is_dir()
    made.remove_all()
    assert (memory.exists(), disk.exists()) == (False, False)
