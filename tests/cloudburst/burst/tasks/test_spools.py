"""Files that programs write into are used again, but never while anybody else has them open."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path

import pytest

from cloudburst.burst.tasks.items import Item
from cloudburst.burst.tasks.programs import Orders, Programs
from cloudburst.burst.tasks.spools import SPOOL_BYTES_KEPT, Spools, opened, write_anew


def test_a_file_that_nobody_has_open_is_used_again_and_is_empty(tmp_path: Path) -> None:
    spools = Spools(tmp_path)
    file = spools.take()
    with opened(file) as (fd,):
        os.write(fd, b"of the first task")
    spools.give_back(file)
    again = spools.take()
    assert again is file
    assert os.fstat(again.fileno()).st_size == 0
    other = spools.take()
    assert other is not again
    for one in (again, other):
        one.close()
    spools.close()


def test_a_file_that_a_process_still_has_open_is_not_used_again(tmp_path: Path) -> None:
    spools = Spools(tmp_path)
    file = spools.take()
    with opened(file) as (fd,):
        left = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=fd)
    spools.give_back(file)
    assert file.closed
    left.communicate(b"late")
    spools.close()


def test_a_file_with_much_in_it_is_not_used_again(tmp_path: Path) -> None:
    spools = Spools(tmp_path)
    file = spools.take()
    file.truncate(SPOOL_BYTES_KEPT + 1)
    spools.give_back(file)
    assert file.closed
    spools.close()


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_an_input_is_written_anew_where_the_one_before_was(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_anew(str(first), b"long content", None)
    kept = inode(first)
    write_anew(str(second), b"short", str(first))
    assert (second.read_bytes(), inode(second)) == (b"short", kept)
    write_anew(str(second), b"the same name", str(second))
    assert (second.read_bytes(), inode(second)) == (b"the same name", kept)
    assert os.listdir(tmp_path) == ["second"]


@pytest.mark.parametrize("change", ["open", "link", "gone", "directory", "symlink"])
def test_an_input_that_is_not_as_it_was_left_is_not_written_anew(tmp_path: Path, change: str) -> None:
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    write_anew(str(first), b"of the first", None)
    with open(first, "rb") as left:
        if change != "open":
            left.close()
        if change == "link":
            os.link(first, other)
        elif change != "open":
            first.rename(other)
        if change == "directory":
            first.mkdir()
        elif change == "symlink":
            first.symlink_to(other)
        write_anew(str(second), b"of the second", str(first))
        assert second.read_bytes() == b"of the second"
        assert not os.path.lexists(first)
        assert (left.read() if change == "open" else other.read_bytes()) == b"of the first"


def result_of(programs: Programs, text: str) -> bytes:
    program = programs.begin(Item(text.encode(), text, text, 0), None)
    select.select([program.pidfd], [], [])
    data = program.end(False)[1]
    programs.free(program)
    return data


def test_what_a_program_has_left_running_writes_into_no_other_result(tmp_path: Path) -> None:
    for name in ("ready", "late", "written"):
        os.mkfifo(tmp_path / name)
    command = """
        case {} in
        first) setsid sh -c 'echo > ready; read x < late; echo late; echo > written' & read x < ready; echo one ;;
        second) echo > late; read x < written; echo two ;;
        esac"""
    programs = Programs("a worker", Orders(command, str(tmp_path), os.environ["PATH"], {}, None))
    try:
        assert result_of(programs, "first") == b"one\n"
        assert result_of(programs, "second") == b"two\n"
    finally:
        programs.close(True)
