"""Only a directory that this user alone can reach holds a cluster."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from anna import local
from anna.errors import UnavailableError
from anna.rundir import BadDirectory, RunDirectory, default_directory


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o707, 0o777])
def test_a_directory_that_others_can_reach_is_refused(place: Path, mode: int) -> None:
    place.chmod(mode)
    with pytest.raises(BadDirectory, match=f"has mode {mode:04o}, others could reach it; it must be 0700"):
        local.ensure(place)
    assert list(place.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(place: Path) -> None:
    os.chown(place, 65534, -1)
    with pytest.raises(BadDirectory, match="belongs to user 65534, this is user 0"):
        local.ensure(place)


def test_a_symbolic_link_is_not_followed(place: Path) -> None:
    (place / "real").mkdir(0o700)
    (place / "link").symlink_to("real")
    with pytest.raises(BadDirectory, match="is not a directory"):
        local.ensure(place / "link")


def test_a_file_is_not_a_directory(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(BadDirectory, match="is not a directory"):
        local.ensure(place / "file")


def test_a_missing_parent_is_named(place: Path) -> None:
    with pytest.raises(BadDirectory, match=r"cannot make the cluster's directory .*/no/c: No such file"):
        local.ensure(place / "no" / "c")


def test_a_path_too_long_for_sockets_is_refused_with_the_numbers(place: Path) -> None:
    path = place / ("x" * (97 - len(str(place)) - 1))
    assert len(str(path)) == 97
    with pytest.raises(BadDirectory, match="has a path of 97 bytes; directory_bytes_max is 96"):
        local.ensure(path)
    assert list(place.iterdir()) == []


def test_the_longest_path_works(place: Path) -> None:
    path = place / ("x" * (96 - len(str(place)) - 1))
    with local.ensure(path, workers=1, linger_s=0.0) as lease:
        assert len(str(lease.directory)) == 96


def test_made_directories_are_private_whatever_the_umask(place: Path) -> None:
    before = os.umask(0)
    try:
        RunDirectory.make(place / "c").close()
    finally:
        os.umask(before)
    assert (place / "c").stat().st_mode & 0o777 == 0o700


def test_the_lock_is_exclusive_and_given_up_in_time_or_not_at_all(place: Path) -> None:
    first, second = RunDirectory(place), RunDirectory(place)
    first.lock(time.monotonic())
    assert not second.try_lock()
    with pytest.raises(UnavailableError, match="another process has been starting or stopping"):
        second.lock(time.monotonic() + 0.01)
    first.close()
    assert second.try_lock()
    second.close()


def test_the_directory_is_chosen_by_anna_dir_then_the_runtime_directory_then_tmp(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANNA_DIR", str(place / "a"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    assert default_directory() == place / "a"
    monkeypatch.delenv("ANNA_DIR")
    assert default_directory() == place / "anna"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place / "missing"))
    assert default_directory() == Path(f"/tmp/anna-{os.getuid()}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc/1" if os.getuid() else "relative")
    assert default_directory() == Path(f"/tmp/anna-{os.getuid()}")
