"""The log's thread: groups, order, bounds, full disks, failures, a clean end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from anna.errors import DiskFull, Overloaded, StorageFailed
from anna.storage.committer import Committer
from anna.storage.engine import Engine
from anna.storage.group import groups_in

WAIT_S = 30


class Disk(Engine):
    """An engine whose commits wait for leave and fail as told, for real and before they begin."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 0, ballast_bytes=4096)
        self.leave = threading.Semaphore(1_000_000)
        self.begun = threading.Event()
        self.errors: list[Exception] = []
        self.groups: list[int] = []
        self.marked = threading.Event()
        self.has_room = True

    def commit(self) -> int:
        self.groups.append(len(self.pending))
        self.begun.set()
        assert self.leave.acquire(timeout=WAIT_S)
        if self.errors:
            raise self.errors.pop(0)
        return super().commit()

    def mark(self) -> None:
        super().mark()
        self.marked.set()

    def regain(self) -> bool:
        self.full = not getattr(self, "has_room", True)
        return not self.full


class Heard:
    """What the listener was told, in order."""

    def __init__(self) -> None:
        self.said: list[tuple[str, object]] = []
        self.changed = asyncio.Event()

    def note(self, what: str, argument: object) -> None:
        self.said.append((what, argument))
        self.changed.set()

    def logged(self, number: int) -> None:
        self.note("logged", number)

    def full(self, is_full: bool) -> None:
        self.note("full", is_full)

    def failed(self, error: Exception) -> None:
        self.note("failed", type(error))

    async def until(self, *said: object) -> None:
        async with asyncio.timeout(WAIT_S):
            while said not in self.said:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.close()


Scene = Callable[[Committer, Heard], Awaitable[None]]


def play(disk: Disk, scene: Scene) -> Heard:
    """Run a scene with a committer in a loop, end it cleanly, and return what was heard."""

    async def run() -> Heard:
        heard = Heard()
        committer = Committer(disk, asyncio.get_running_loop(), heard)
        try:
            await scene(committer, heard)
        finally:
            disk.leave.release(1000)
            await committer.close()
        await asyncio.sleep(0)
        assert not committer.thread.is_alive()
        return heard

    return asyncio.run(run())


def test_what_is_submitted_is_logged_and_there_after_a_restart(disk: Disk) -> None:
    async def scene(committer: Committer, heard: Heard) -> None:
        for number in range(1, 51):
            committer.submit(number, b"%d" % number)
        await heard.until("logged", 50)

    numbers = [number for _, number in play(disk, scene).said]
    assert numbers == sorted(numbers, key=int)  # type: ignore[call-overload]
    assert dict(disk.logs()) == {number: b"%d" % number for number in range(1, 51)}


def test_what_comes_while_a_commit_runs_is_the_next_group(disk: Disk) -> None:
    disk.leave = threading.Semaphore(0)

    async def scene(committer: Committer, heard: Heard) -> None:
        committer.submit(1, b"")
        await asyncio.to_thread(disk.begun.wait, WAIT_S)
        for number in range(2, 9):
            committer.submit(number, b"")
        disk.leave.release(2)
        await heard.until("logged", 8)

    assert play(disk, scene).said == [("logged", 1), ("logged", 8)]
    assert disk.groups == [1, 7]


def test_no_wake_up_is_lost(disk: Disk) -> None:
    async def scene(committer: Committer, heard: Heard) -> None:
        for number in range(1, 300):
            committer.submit(number, b"")
            await heard.until("logged", number)

    play(disk, scene)


def test_closing_commits_what_was_submitted(disk: Disk) -> None:
    async def scene(committer: Committer, heard: Heard) -> None:
        for number in range(1, 20):
            committer.submit(number, b"")

    assert play(disk, scene).said[-1] == ("logged", 19)


def test_an_idle_log_marks_its_end(disk: Disk, tmp_path: Path) -> None:
    """P16: of a group that is marked, damage is told from a torn write, also after a crash."""

    async def scene(committer: Committer, heard: Heard) -> None:
        committer.submit(1, b"the only one")
        await heard.until("logged", 1)
        assert await asyncio.to_thread(disk.marked.wait, WAIT_S)

    play(disk, scene)
    assert disk.is_marked
    segment = (tmp_path / "seat-0" / "log" / "segment-1").read_bytes()
    assert [group[2:] for group in groups_in(segment, disk.log.salt, 1)] == [(1, 1), (2, 0)]


def test_more_than_may_wait_is_refused_definitely(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anna.storage.committer.LOG_PENDING_BYTES_MAX", 100)
    disk.leave = threading.Semaphore(0)

    async def scene(committer: Committer, heard: Heard) -> None:
        committer.submit(1, b"x" * 60)
        await asyncio.to_thread(disk.begun.wait, WAIT_S)
        committer.submit(2, b"x" * 60)
        with pytest.raises(Overloaded, match="120 bytes wait for the disk; log_pending_bytes_max is 100"):
            committer.submit(3, b"x")
        disk.leave.release(2)
        await heard.until("logged", 2)
        committer.submit(3, b"x")

    assert play(disk, scene).said[-1] == ("logged", 3)


def test_a_full_disk_is_told_and_service_resumes_by_itself(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """P15: what was accepted is logged when there is room again, within LOG_RETRY_S."""
    monkeypatch.setattr("anna.storage.committer.LOG_RETRY_S", 0.001)
    disk.errors = [DiskFull("planted")] * 3
    disk.has_room = False

    async def scene(committer: Committer, heard: Heard) -> None:
        committer.submit(1, b"")
        await heard.until("full", True)
        committer.submit(2, b"")
        await heard.until("logged", 2)
        disk.has_room = True
        await heard.until("full", False)
        committer.submit(3, b"")

    said = play(disk, scene).said
    assert [entry for entry in said if entry[0] == "full"] == [("full", True), ("full", False)]
    assert (said[0], said[-1]) == (("full", True), ("logged", 3))


def test_after_a_failed_disk_nothing_is_logged_or_accepted(disk: Disk) -> None:
    """P17."""
    disk.errors = [StorageFailed("planted")]

    async def scene(committer: Committer, heard: Heard) -> None:
        committer.submit(1, b"")
        await heard.until("failed", StorageFailed)
        with pytest.raises(StorageFailed, match="planted"):
            committer.submit(2, b"")

    assert play(disk, scene).said == [("failed", StorageFailed)]


def test_the_log_is_truncated_after_what_was_submitted_before(disk: Disk) -> None:
    async def scene(committer: Committer, heard: Heard) -> None:
        for number in range(1, 11):
            committer.submit(number, b"")
        committer.truncate(4)

    play(disk, scene)
    assert sorted(dict(disk.logs())) == list(range(5, 11))
