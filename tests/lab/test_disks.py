"""The lab's disks lose what was not synced and nothing else, and the shim's faults are what programs see."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.disks import Disk, Shim, cut_power, disk
from tests.lab.hosts import Host, Lab

MakeDisk = Callable[[str, int], Disk]

LOGGER = """
import os, sys
log = os.open(sys.argv[1] + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
folder = os.open(sys.argv[1], os.O_RDONLY)
for record in range(10):
    os.write(log, b"%07d\\n" % record)
    if record == 3:
        os.fsync(log)
        os.fsync(folder)
with open(sys.argv[1] + "/renamed.new", "w") as file:
    file.write("never synced")
os.rename(sys.argv[1] + "/renamed.new", sys.argv[1] + "/renamed")
print("written", flush=True)
sys.stdin.read()
"""


def log_records(host: Host, on: Disk, **environment: str) -> None:
    """Run the program that syncs after the fourth of its ten records, until it has written all of them."""
    process = host.start(
        sys.executable,
        "-c",
        LOGGER,
        str(on.path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"


@pytest.fixture
def shim(shim_library: Path, place: Path) -> Iterator[Shim]:
    """Faults of what is below `place`/data."""
    (place / "data").mkdir()
    with contextlib.closing(Shim(shim_library, place / "control", place / "data")) as made:
        yield made


def attempt(shim: Shim, program: str, below: Path) -> tuple[int, str]:
    """Run a program that has `os`, a file `log` and a socket `peer`; return its exit code and what it printed."""
    preamble = "import os, socket, mmap, sys; peer, other = socket.socketpair()\n"
    opening = f"log = os.open({str(below / 'log')!r}, os.O_RDWR | os.O_CREAT)\n"
    done = subprocess.run(
        [sys.executable, "-c", preamble + opening + program],
        env=os.environ | shim.environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr[-300:]


def test_a_power_cut_keeps_what_was_synced_and_nothing_after_it(three_hosts: Lab, new_disk: MakeDisk) -> None:
    machines = [(three_hosts[name], new_disk(name, 16)) for name in ("h1", "h2")]
    for host, on in machines:
        log_records(host, on)
        assert len((on.path / "log").read_text().splitlines()) == 10
    cut_power(*machines)
    for host, on in machines:
        assert host.pids() == []
        assert (on.path / "log").read_text().split() == ["0000000", "0000001", "0000002", "0000003"]
        renamed = on.path / "renamed"
        assert not renamed.exists() or renamed.read_text() == ""


def test_a_sync_that_lies_keeps_nothing(three_hosts: Lab, new_disk: MakeDisk, place: Path, shim_library: Path) -> None:
    host, on = three_hosts["h1"], new_disk("h1", 16)
    with contextlib.closing(Shim(shim_library, place / "control", on.path)) as shim:
        shim.lie_about_syncs()
        log_records(host, on, **shim.environment)
        assert (shim.count("syncs"), shim.count("lied"), shim.count("writes")) == (2, 2, 11)
    cut_power((host, on))
    log = on.path / "log"
    assert not log.exists() or log.read_text() == ""


def test_a_disk_that_is_written_to_after_its_power_cut_goes_on(three_hosts: Lab, new_disk: MakeDisk) -> None:
    host, on = three_hosts["h1"], new_disk("h1", 16)
    for runs in (1, 2, 3):
        log_records(host, on)
        cut_power((host, on))
        assert len((on.path / "log").read_text().split()) == 4 * runs


def test_a_full_disk_refuses_and_a_drained_one_takes_again(new_disk: MakeDisk) -> None:
    on = new_disk("small", 16)
    on.fill(leave_bytes=65536)
    assert on.free_bytes() <= 65536
    with pytest.raises(OSError, match="No space left"):
        (on.path / "file").write_bytes(bytes(200_000))
    on.drain()
    (on.path / "file").write_bytes(bytes(200_000))


def test_a_disk_is_unmounted_and_detached_however_its_block_ends(new_disk: MakeDisk, place: Path) -> None:
    (place / "ends").mkdir()
    with pytest.raises(KeyboardInterrupt), disk(place / "ends", 16) as made:  # noqa: PT012 (the disk is what must end)
        assert os.path.ismount(made.path)
        raise KeyboardInterrupt
    assert not os.path.ismount(made.path)
    loops = subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True, timeout=20).stdout
    assert str(place) not in loops


@pytest.mark.parametrize(
    "call",
    [
        "os.fsync(log)",
        "os.fdatasync(log)",
        "os.fsync(os.open(os.path.dirname(os.readlink(f'/proc/self/fd/{log}')), os.O_RDONLY))",
        "os.ftruncate(log, 4096); m = mmap.mmap(log, 4096); m[0] = 1; m.flush()",
    ],
)
def test_a_refused_sync_is_the_programs_error(shim: Shim, place: Path, call: str) -> None:
    shim.refuse_syncs(errno.EIO)
    code, said = attempt(shim, call, place / "data")
    assert (code, "Input/output error" in said) == (1, True)
    shim.behave()
    assert attempt(shim, call, place / "data") == (0, "")
    assert (shim.count("syncs"), shim.count("lied")) == (2, 0)


@pytest.mark.parametrize(
    "call",
    [
        "os.write(log, DATA)",
        "os.pwrite(log, DATA, 0)",
        "os.writev(log, [DATA[:3], DATA[3:9], DATA[9:]])",
        "os.pwritev(log, [DATA[:3], DATA[3:9], DATA[9:]], 0)",
    ],
)
def test_a_refused_write_is_short_first_and_an_error_then(shim: Shim, place: Path, call: str) -> None:
    shim.refuse_writes(errno.ENOSPC, after_bytes=100)
    program = f"DATA = bytes(range(1, 251))\nprint({call}, flush=True)\n{call}"
    code, said = attempt(shim, program, place / "data")
    assert (code, said[:4], "No space left on device" in said) == (1, "100\n", True)
    assert (place / "data" / "log").read_bytes() == bytes(range(1, 101))
    assert (shim.count("writes"), shim.count("bytes")) == (2, 100)


@pytest.mark.parametrize("call", ["os.write(log, DATA)", "os.pwritev(log, [DATA[:3], DATA[3:]], 0)"])
def test_a_torn_write_ends_the_program_in_its_middle(shim: Shim, place: Path, call: str) -> None:
    shim.tear_write(after_bytes=5)
    assert attempt(shim, f"DATA = b'x' * 8\n{call}\nprint('unreachable')", place / "data") == (137, "")
    assert (place / "data" / "log").read_bytes() == b"xxxxx"


@pytest.mark.parametrize("call", ["os.posix_fallocate(log, 0, 4096)", "os.write(log, b'x')"])
def test_a_disk_that_the_shim_fills_refuses_at_once(shim: Shim, place: Path, call: str) -> None:
    shim.refuse_writes(errno.ENOSPC)
    code, said = attempt(shim, call, place / "data")
    assert (code, "No space left on device" in said) == (1, True)


def test_a_file_that_is_synced_at_each_write_has_its_syncs_refused_too(shim: Shim, place: Path) -> None:
    """LMDB writes its newest root so."""
    opening = "f = os.open(os.readlink(f'/proc/self/fd/{log}'), os.O_WRONLY | os.O_DSYNC | os.O_CREAT)\n"
    assert attempt(shim, f"{opening}os.write(f, b'x')", place / "data") == (0, "")
    assert (shim.count("writes"), shim.count("syncs"), shim.count("lied")) == (1, 1, 0)
    shim.lie_about_syncs()
    assert attempt(shim, f"{opening}os.write(f, b'x')", place / "data") == (0, "")
    assert (shim.count("writes"), shim.count("syncs"), shim.count("lied")) == (2, 2, 1)
    shim.refuse_syncs(errno.EIO)
    code, said = attempt(shim, f"{opening}os.write(f, b'x')", place / "data")
    assert (code, "Input/output error" in said) == (1, True)


def test_other_files_and_sockets_are_as_ever(shim: Shim, place: Path) -> None:
    shim.refuse_writes(errno.EIO)
    shim.refuse_syncs(errno.EIO)
    (place / "data-2").mkdir()
    program = "os.write(log, b'x'); os.fsync(log); os.write(peer.fileno(), b'x'); os.writev(1, [b'out']);"
    assert attempt(shim, program, place / "data-2") == (0, "out")
    assert (shim.count("writes"), shim.count("syncs")) == (0, 0)
