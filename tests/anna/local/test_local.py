"""The embedded cluster starts once, serves, and leaves nothing behind, however its processes end."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

import anna
from anna import local
from anna.errors import UnavailableError
from anna.messages import View
from tests.anna.local.processes import PATIENCE_S, Family, Watched, children_of, eventually, line_of, python

HOLDER = """
import sys
from anna import local
lease = local.ensure(workers=2)
print(lease.supervisor_pid, lease.started, flush=True)
sys.stdin.read()
"""


def answers(address: str) -> bool:
    """Whether somebody accepts connections at a worker's Unix address."""
    with socket.socket(socket.AF_UNIX) as peer:
        return peer.connect_ex(address.removeprefix("unix:")) == 0


def test_a_first_lease_starts_the_cluster_and_the_last_one_ends_it(directory: Path) -> None:
    first = local.ensure(workers=2)
    family = Family(first.supervisor_pid)
    assert (first.started, len(family.workers), len(first.addresses)) == (True, 2, 2)
    assert sorted(p.name for p in directory.iterdir()) == ["lease.sock", "log", "w0.sock", "w1.sock"]
    second = local.ensure()
    assert (second.started, second.supervisor_pid, second.view) == (False, first.supervisor_pid, first.view)
    first.close()
    first.close()
    with anna.connect() as kvs:
        kvs.put("k", "v")
        second.close()
        assert kvs.get("k") == "v"
    family.assert_ended()
    assert not directory.exists()


def test_a_directory_of_the_users_own_is_left_empty(place: Path) -> None:
    lease = local.ensure(place, workers=1, linger_s=0.0)
    family = Family(lease.supervisor_pid)
    lease.close()
    family.assert_ended()
    assert list(place.iterdir()) == []


def test_files_of_the_users_own_are_not_touched(place: Path) -> None:
    (place / "notes.sock").write_text("not a socket")
    lease = local.ensure(place, workers=1, linger_s=0.0)
    family = Family(lease.supervisor_pid)
    lease.close()
    family.assert_ended()
    assert [p.name for p in place.iterdir()] == ["notes.sock"]


def test_the_next_user_within_the_linger_finds_the_same_cluster_and_its_data(directory: Path) -> None:
    local.ensure(workers=1, linger_s=PATIENCE_S).close()
    with anna.connect() as kvs:
        kvs.put("k", 1)
    lease = local.ensure()
    assert lease.started is False
    with anna.connect() as kvs:
        assert kvs.get("k") == 1
    family = Family(lease.supervisor_pid)
    os.kill(lease.supervisor_pid, signal.SIGTERM)
    family.assert_ended()


def test_processes_that_race_to_start_get_one_cluster(directory: Path) -> None:
    with python(HOLDER) as a, python(HOLDER) as b, python(HOLDER) as c, python(HOLDER) as d:
        said = [line_of(process) for process in (a, b, c, d)]
        assert len({pid for pid, _ in said}) == 1
        assert sorted(started for _, started in said) == ["False", "False", "False", "True"]
        family = Family(int(said[0][0]))
        for process in (a, b, c, d):
            process.communicate()
    family.assert_ended()
    assert not directory.exists()


def test_threads_that_race_to_start_get_one_cluster(directory: Path) -> None:
    leases: list[local.Lease] = []
    threads = [threading.Thread(target=lambda: leases.append(local.ensure(workers=1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lease.started for lease in leases) == [False] * 7 + [True]
    family = Family(leases[0].supervisor_pid)
    for lease in leases:
        lease.close()
    family.assert_ended()


def test_the_cluster_outlives_its_starter_while_another_holds_a_lease(directory: Path) -> None:
    with python(HOLDER) as starter:
        pid, started = line_of(starter)
        lease = local.ensure()
        assert (str(lease.supervisor_pid), started) == (pid, "True")
        starter.communicate()
    with anna.connect() as kvs:
        kvs.put("k", 1)
        assert kvs.get("k") == 1
    family = Family(lease.supervisor_pid)
    lease.close()
    family.assert_ended()


def test_a_killed_user_gives_its_lease_back(directory: Path) -> None:
    with python(HOLDER) as user:
        family = Family(int(line_of(user)[0]))
        user.kill()
        family.assert_ended()
    assert not directory.exists()


def test_sigterm_stops_the_cluster_under_its_users(directory: Path) -> None:
    lease = local.ensure(workers=2)
    family = Family(lease.supervisor_pid)
    os.kill(lease.supervisor_pid, signal.SIGTERM)
    family.assert_ended()
    assert not directory.exists()
    assert local.join() is None


def test_a_killed_worker_is_replaced_on_its_seat(directory: Path) -> None:
    lease = local.ensure(workers=2)
    before = Family(lease.supervisor_pid)
    with anna.connect() as kvs:
        kvs.put("k", 1)
        dead = kvs.where("k")["place"]
        pids = {w.seat: pid for w, pid in zip(lease.view.workers, children_of(lease.supervisor_pid))}
        os.kill(pids[dead], signal.SIGKILL)
        eventually(lambda: local_view().version == 2, "the supervisor has the next view")
    after = local_view()
    old, new = lease.view.workers, after.workers
    assert [w.seat for w in new] == [w.seat for w in old]
    assert [w.addresses for w in new] == [w.addresses for w in old]
    assert [a.worker_id == b.worker_id for a, b in zip(old, new)] == [w.seat != dead for w in old]
    with anna.connect() as kvs:
        assert kvs.get("k", None) is None
        kvs.put("k", 2)
        assert kvs.get("k") == 2
        eventually(lambda: {w["view"] for w in kvs.status()} == {2}, "both workers have the next view")
    family = Family(lease.supervisor_pid)
    lease.close()
    family.assert_ended()
    before.assert_ended()
    assert not directory.exists()


def local_view() -> View:
    """The view as the supervisor has it now."""
    with local.ensure() as lease:
        return lease.view


def test_a_killed_supervisor_takes_its_workers_and_files_with_it(directory: Path) -> None:
    lease = local.ensure(workers=2)
    family = Family(lease.supervisor_pid)
    os.kill(lease.supervisor_pid, signal.SIGKILL)
    family.assert_ended()
    assert not directory.exists()
    lease.close()
    with anna.connect() as kvs:
        kvs.put("k", 1)
        assert kvs.get("k") == 1


def test_what_a_cluster_killed_as_a_whole_left_behind_is_swept_by_the_next(directory: Path) -> None:
    lease = local.ensure(workers=2)
    family = Family(lease.supervisor_pid)
    os.kill(lease.supervisor_pid, signal.SIGSTOP)
    for process in (*family.workers, family.supervisor):
        os.kill(process.pid, signal.SIGKILL)
    family.assert_ended()
    assert (directory / "w1.sock").exists()
    (directory / "w7.sock").symlink_to("lease.sock")
    successor = local.ensure(workers=1)
    assert successor.started
    assert sorted(p.name for p in directory.iterdir()) == ["lease.sock", "log", "w0.sock", "w7.sock"]
    (directory / "w7.sock").unlink()
    family = Family(successor.supervisor_pid)
    successor.close()
    family.assert_ended()
    assert not directory.exists()


def test_a_supervisor_that_does_not_answer_is_reported_and_not_replaced(directory: Path) -> None:
    lease = local.ensure(workers=1)
    family = Family(lease.supervisor_pid)
    os.kill(lease.supervisor_pid, signal.SIGSTOP)
    try:
        with pytest.raises(UnavailableError, match="runs but does not answer"):
            local.ensure(timeout=0.05)
    finally:
        os.kill(lease.supervisor_pid, signal.SIGCONT)
    lease.close()
    family.assert_ended()


def test_a_worker_that_does_not_stop_is_killed(directory: Path) -> None:
    lease = local.ensure(workers=2, linger_s=0.0)
    family = Family(lease.supervisor_pid)
    os.kill(family.workers[0].pid, signal.SIGSTOP)
    lease.close()
    family.assert_ended()
    assert not directory.exists()


def test_a_removed_directory_is_made_anew_and_the_old_cluster_spares_it(directory: Path) -> None:
    old = local.ensure(workers=1, linger_s=0.0)
    family = Family(old.supervisor_pid)
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    new = local.ensure(workers=1)
    assert new.supervisor_pid != old.supervisor_pid
    old.close()
    family.assert_ended()
    assert answers(new.address)
    assert sorted(p.name for p in directory.iterdir()) == ["lease.sock", "log", "w0.sock"]
    new.close()


def test_a_forked_child_neither_keeps_nor_ends_its_parents_lease(directory: Path) -> None:
    lease = local.ensure(workers=1, linger_s=0.0)
    family = Family(lease.supervisor_pid)
    release, wait = os.pipe()
    tell, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(wait)
        lease.close()
        os.write(told, b"held" if lease.held else b"free")
        os.read(release, 1)
        os._exit(0)
    try:
        assert os.read(tell, 4) == b"free"
        assert lease.held
        assert answers(lease.address)
        assert local.join() is not None
        lease.close()
        family.assert_ended()
        assert not Watched(child).has_ended()
    finally:
        for fd in (release, wait, tell, told):
            os.close(fd)
        os.waitpid(child, 0)


def test_an_executed_program_does_not_inherit_the_lease(directory: Path) -> None:
    lease = local.ensure(workers=1, linger_s=0.0)
    family = Family(lease.supervisor_pid)
    pid = os.posix_spawn("/bin/cat", ["cat", "/dev/tty", "-"], {}, file_actions=[(os.POSIX_SPAWN_CLOSE, 1)])
    try:
        lease.close()
        family.assert_ended()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_forgotten_lease_is_given_back(directory: Path) -> None:
    lease = local.ensure(workers=1, linger_s=0.0)
    family = Family(lease.supervisor_pid)
    del lease
    gc.collect()
    family.assert_ended()


def test_the_cluster_keeps_nothing_of_its_starter(directory: Path) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    os.set_inheritable(read, True)
    with local.ensure(workers=2) as lease:
        family = Family(lease.supervisor_pid)
        os.close(write)
        assert os.read(read, 1) == b"", "some process of the cluster holds the starter's pipe"
        for process in (family.supervisor, *family.workers):
            assert os.getsid(process.pid) != os.getsid(0)
            assert os.readlink(f"/proc/{process.pid}/cwd") == "/"
            assert os.readlink(f"/proc/{process.pid}/fd/0") == "/dev/null"
            assert os.readlink(f"/proc/{process.pid}/fd/1") == str(directory / "log")
        assert lease.supervisor_pid not in children_of(os.getpid())
    os.close(read)
    family.assert_ended()


def test_a_failed_start_tells_why_and_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "banana")
    with pytest.raises(UnavailableError, match=r"(?s)did not start.*PYTHONHASHSEED must be"):
        local.ensure()
    assert not directory.exists()


def test_an_address_in_use_is_told_by_the_failed_start(place: Path) -> None:
    (place / "w0.sock").write_text("in the way")
    with pytest.raises(UnavailableError, match=r"did not start: CannotListen: cannot listen on unix:.*/w0\.sock"):
        local.ensure(place, workers=1)
    assert [p.name for p in place.iterdir()] == ["w0.sock"]


@pytest.mark.parametrize("workers", [0, -1, 1025])
def test_a_senseless_number_of_workers_is_refused(directory: Path, workers: int) -> None:
    with pytest.raises(ValueError, match=f"workers is {workers}; it must be 1 to 1,024"):
        local.ensure(workers=workers)
    assert not directory.exists()


def test_nothing_is_joined_where_nothing_runs(directory: Path) -> None:
    assert local.join() is None
    assert not directory.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_gets_neither_a_lease_nor_a_worker(place: Path, directory: Path) -> None:
    with local.ensure(workers=1, linger_s=0.0) as lease:
        for path, mode in ((place, 0o755), (directory, 0o755), *((p, 0o666) for p in directory.glob("*.sock"))):
            path.chmod(mode)  # what a careless user might do; the directory's mode is the first fence
        for name, kind in (("lease.sock", socket.SOCK_SEQPACKET), ("w0.sock", socket.SOCK_STREAM)):
            child = os.fork()
            if child == 0:
                os.setuid(65534)
                with socket.socket(socket.AF_UNIX, kind) as peer:
                    peer.connect(str(directory / name))
                    os._exit(0 if peer.recv(1) == b"" else 1)
            assert os.waitpid(child, 0)[1] == 0, f"{name} did not hang up on another user"
        with anna.Client([lease.address]) as kvs:
            kvs.put("k", 1)
        family = Family(lease.supervisor_pid)
    family.assert_ended()
