"""A seat's log: its bytes, its files that are used again, what it says of what it finds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from anna.errors import StorageFailed
from anna.storage.group import BLOCK_BYTES, blobs_in, group_bytes, groups_in, write_group
from anna.storage.log import Log

P1 = 0x9E3779B185EBCA87
SALT = b"0123456789abcdef"
BLOCK = 4096


@pytest.fixture
def log(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """A log whose segments have four blocks and more."""
    monkeypatch.setattr("anna.storage.log.LOG_SEGMENT_BYTES_MIN", 4 * BLOCK)
    monkeypatch.setattr("anna.storage.log.LOG_SEGMENT_BYTES_MAX", 8 * BLOCK)
    made = Log(scratch / "log")
    yield made
    made.close()


def write(log: Log, *blobs: bytes) -> None:
    log.write(log.last + 1, list(blobs))


def reopened(log: Log) -> Log:
    """Return the log as the next process finds it."""
    log.close()
    log.__init__(log.directory)  # type: ignore[misc]
    return log


def lengths(log: Log) -> list[int]:
    return [path.stat().st_size // BLOCK for path in sorted(log.directory.glob("segment-*"))]


def test_a_group_keeps_its_bytes(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b") as file:
        assert write_group(file.fileno(), BLOCK, SALT, 7, [b"seven", b""]) == BLOCK == group_bytes([b"seven", b""])
        assert write_group(file.fileno(), 2 * BLOCK, SALT, 9, []) == BLOCK
        content = file.read()
    numbers = ((2, 4), (7, 8), (13, 8), (5, 4), (0, 4))
    body = b"log1" + b"".join(number.to_bytes(size, "little") for number, size in numbers) + b"seven"
    seal = (xxhash.xxh64_intdigest(body) + xxhash.xxh64_intdigest(SALT) * P1) % (1 << 64)
    assert content[BLOCK : 2 * BLOCK] == (seal.to_bytes(8, "little") + body).ljust(BLOCK, b"\0")
    assert groups_in(content, SALT, 1) == [(BLOCK, BLOCK, 7, 2), (2 * BLOCK, BLOCK, 9, 0)]
    assert blobs_in(content, BLOCK) == [b"seven", b""]
    assert groups_in(content, SALT, 9) == [(2 * BLOCK, BLOCK, 9, 0)]
    assert groups_in(content, SALT[::-1], 1) == []
    assert BLOCK_BYTES == BLOCK


@given(blobs=st.lists(st.binary(max_size=3000), min_size=1, max_size=4), data=st.data())
def test_no_group_is_found_with_a_flipped_bit(blobs: list[bytes], data: st.DataObject) -> None:
    file = os.memfd_create("group")
    size = write_group(file, 0, SALT, 1, blobs, sync=False)
    content = bytearray(os.pread(file, size, 0))
    os.close(file)
    bit = data.draw(st.integers(0, 8 * (32 + 4 * len(blobs) + sum(map(len, blobs))) - 1))
    assert [found[2:] for found in groups_in(bytes(content), SALT, 0)] == [(1, len(blobs))]
    content[bit // 8] ^= 1 << bit % 8
    assert groups_in(bytes(content), SALT, 0) == []


def test_what_a_client_wrote_is_not_taken_for_a_group(log: Log) -> None:
    """A value can hold a group that was copied from another log, at a block of its own."""
    file = os.memfd_create("group")
    size = write_group(file, 0, SALT, 2, [b"forged"], sync=False)
    forged = os.pread(file, size, 0)
    os.close(file)
    blob = bytes(BLOCK - 36) + forged
    write(log, blob)
    with open(log.directory / "segment-1", "r+b") as segment:
        assert segment.read().find(forged) % BLOCK == 0
        segment.seek(40)
        segment.write(b"!")  # the group around it is torn
    log.is_marked = True
    log.last = 0
    found = reopened(log)
    assert (found.damage, list(found.blobs())) == ([], [])


def test_files_are_used_again_when_what_they_held_was_dropped(log: Log) -> None:
    for number in range(1, 101):
        write(log, b"%d" % number * 1000)
        if number % 5 == 0:
            log.drop(number - 2)
    assert sum(lengths(log)) <= 16
    assert [number for number, _ in log.blobs()] == [99, 100]
    assert dict(reopened(log).blobs()) == {99: b"99" * 1000, 100: b"100" * 1000}
    assert (log.first, log.last, log.size, log.damage) == (99, 100, 5000, [])


def test_the_first_files_are_small_and_a_great_blob_has_one_of_its_own(log: Log) -> None:
    for _ in range(12):
        write(log, b"x")
    write(log, b"y" * 20 * BLOCK)
    log.take_prepared()
    assert lengths(log) == [4, 4, 8, 21, 8]
    assert list(reopened(log).blobs())[-1] == (13, b"y" * 20 * BLOCK)


def test_the_next_file_is_made_before_this_one_is_full(log: Log) -> None:
    for _ in range(3):
        write(log, b"x")
    assert log.preparing is not None
    log.preparing.join()
    assert lengths(log) == [4, 4]
    assert lengths(reopened(log)) == [4]
    write(log, b"x")
    copy = shutil.copytree(log.directory, log.directory.with_name("copy"))
    found = Log(copy)
    assert (lengths(found), found.last) == ([4], 4)
    found.close()
    write(log, b"x")
    assert (lengths(log), log.last, log.damage) == ([4, 4], 5, [])


def test_files_beyond_what_is_kept_to_be_used_again_are_removed(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anna.storage.log.LOG_SPARE_BYTES_MAX", 4 * BLOCK)
    for _ in range(40):
        write(log, b"x" * 3000)
    log.drop(39)
    kept, current, made_ahead = 4, 8, 8
    assert sum(lengths(log)) <= kept + current + made_ahead
    assert list(reopened(log).blobs()) == [(40, b"x" * 3000)]


def test_a_file_that_was_made_and_never_noted_is_removed(log: Log) -> None:
    write(log, b"one")
    (log.directory / "segment-2").write_bytes(bytes(BLOCK))
    assert (lengths(reopened(log)), log.damage) == ([4], [])


def test_a_file_that_is_gone_is_damage_also_when_nothing_follows_it(log: Log) -> None:
    for _ in range(6):
        write(log, b"x")
    (log.directory / "segment-2").unlink()
    found = [str(damage) for damage in reopened(log).damage]
    assert found[0] == "log: segment 2 cannot be read: No such file or directory"
    assert [number for number, _ in log.blobs()] == [1, 2, 3, 4]


def test_a_mark_is_written_over_by_the_next_commit(log: Log) -> None:
    write(log, b"one")
    log.mark()
    write(log, b"two")
    content = (log.directory / "segment-1").read_bytes()
    assert groups_in(content, log.salt, 0) == [(0, BLOCK, 1, 1), (BLOCK, BLOCK, 2, 1)]


def test_a_file_that_cannot_be_written_ends_all_writing(log: Log) -> None:
    """P17."""
    write(log, b"one")
    os.close(log.file)
    log.file = os.open(log.directory / "segment-1", os.O_RDONLY)
    for _ in range(2):
        with pytest.raises(StorageFailed, match="Bad file descriptor; nothing is written here any more"):
            write(log, b"two")
    assert [blob for _, blob in log.blobs()] == [b"one"]
