"""A Ray cluster of one node on a host of its own, and another host from which it is used by `ray://`.

Hosts are network namespaces; what Ray writes is below one directory, which ends with it, its token for clients too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from cloudburst.burst.reaping import PREFIX
from tests.cloudburst.burst.sshd import ROOT
from tests.lab import hosts
from tests.lab.hosts import Host, Lab

CPUS: Final = 2
WAIT_S: Final = 100.0
START_S: Final = 45.0
STARTS_MAX: Final = 2
OWN_FILES: Final = (
    'kept=$1 aside=$2; shift 2; mkdir -p "$aside" && mount --bind "$kept" "$aside" && mount -t tmpfs own /tmp'
    ' && mkdir -p "$kept" && mount --bind "$aside" "$kept" && exec "$@"'
)
"""A /tmp of its own, in which only Ray's own installation is what it was, if it lies there."""


def why_not() -> str | None:
    """Return why there can be no Ray cluster here, or None."""
    missing = [name for name in ("ray", "grpc") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)} (pip install 'ray[client]')" if missing else hosts.why_not()


class NoRay(Exception):
    """Ray itself does not come up, on a machine that has it; nothing of ours has run yet."""


class RayLab:
    """Ray on host `ray`, and a client's host; `on` is what the cluster is called there, `inside` on Ray's host."""

    def __init__(self, lab: Lab, place: Path) -> None:
        self.place = place
        self.host = lab["ray"]
        self.client = lab["client"]
        self.runtime = place / "r"
        self.on = ""

    def start(self) -> None:
        """Start Ray; return when clients are let in. It is begun anew when it does not come up. Raises NoRay."""
        self.runtime.mkdir(mode=0o700)
        with self.host.entered():
            port, agent = _free_port(), _free_port()
        words = [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port=0", f"--num-cpus={CPUS}",
            f"--node-ip-address={self.host.address}", f"--ray-client-server-port={port}",
            f"--runtime-env-agent-port={agent}",  # else what serves clients may wait for ever
            "--include-dashboard=false", "--include-log-monitor=false", "--disable-usage-stats",
            f"--object-store-memory={160 << 20}", f"--temp-dir={self.place}/t",
        ]  # fmt: skip
        told = self.place / "t" / "ray_current_cluster"
        for _ in range(STARTS_MAX):
            with open(self.place / "log", "wb") as log:
                self.daemon = self.host.start(
                    "sh", "-c", OWN_FILES, "sh", sys.prefix, f"{self.place}/kept", *words, stdout=log, stderr=log,
                    env=self.environment() | {"RAY_prestart_worker_first_driver": "0"},
                )  # fmt: skip
            if within(START_S, lambda: self.daemon.poll() is not None or (told.exists() and self._listens(port))):
                break
            self.host.crash()
            told.unlink(missing_ok=True)
        else:
            raise NoRay(f"ray start let no client in within {START_S:.0f} s, {STARTS_MAX} times")
        assert self.daemon.poll() is None, (self.place / "log").read_text()
        self.on = f"ray://{self.host.address}:{port}"
        self.inside = f"ray:{told.read_text().strip()}"

    def _listens(self, port: int) -> bool:
        with self.client.entered(), socket.socket() as trying:
            return trying.connect_ex((self.host.address, port)) == 0

    def environment(self) -> dict[str, str]:
        """What programs on both hosts are given: Ray's token of this cluster, and nobody else's runs."""
        return {
            **os.environ, "HOME": str(self.place), "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(self.runtime),
            "CLOUDBURST_DIR": str(self.runtime / "node"), "ANNA_DIR": str(self.runtime / "store"),
            "XDG_CACHE_HOME": str(self.place / "cache"),
        }  # fmt: skip

    def python(self, *words: str, host: Host | None = None) -> subprocess.Popen[str]:
        """Start a Python on a host, which is the client's unless one is given."""
        pipe: Any = subprocess.PIPE
        return (host or self.client).start(
            sys.executable, *words, stdout=pipe, stderr=pipe, cwd=ROOT, env=self.environment()
        )

    def cb(self, *words: str, host: Host | None = None) -> subprocess.Popen[str]:
        """Start a command there."""
        return self.python("-m", "cloudburst", *words, host=host)

    def left(self) -> list[str]:
        """Return what there is of any run: processes on both hosts, and directories on Ray's."""
        running = [_words(pid) for host in (self.host, self.client) for pid in host.pids()]
        return [words for words in running if PREFIX in words or "raybridge" in words] + self.files(self.host)

    def files(self, host: Host) -> list[str]:
        """Return the directories of runs in a host's /tmp."""
        return [name for name in os.listdir(f"/proc/{self.daemon.pid}/root/tmp") if name.startswith(PREFIX)]


def until(condition: Callable[[], object], what: str) -> None:
    """Poll until a condition holds; Ray takes its time where cores are shared."""
    assert within(WAIT_S, condition), f"never came true: {what}"


def within(limit_s: float, condition: Callable[[], object]) -> bool:
    """Poll until a condition holds; return whether it did in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _free_port() -> int:
    with socket.socket() as trying:
        trying.bind(("", 0))
        return int(trying.getsockname()[1])


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@contextlib.contextmanager
def ray_lab() -> Iterator[RayLab]:
    """Start Ray on a host; it ends with that, as by a power cut: its own end takes seconds."""
    place = Path(tempfile.mkdtemp(prefix="cb-", dir="/var/tmp"))
    try:
        with hosts.lab("ray", "client") as lab:
            made = RayLab(lab, place)
            made.start()
            yield made
    finally:
        shutil.rmtree(place, ignore_errors=True)
