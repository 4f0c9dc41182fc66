"""SSH hosts made of network namespaces: each with a daemon, keys, a home directory and a `/tmp` of its own.

The one rule: what a host has is gone with it: its `/tmp` is in a mount namespace of its own. The Python there is the
one under this environment, so nothing of ours is installed on any host.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.anna.local.processes import eventually
from tests.lab import hosts
from tests.lab.hosts import Host, Lab, run

ROOT: Final = Path(__file__).parents[3]
PYTHON: Final = str(getattr(sys, "_base_executable", sys.executable))
DAEMON: Final = "/usr/sbin/sshd"

SETTINGS: Final = """
Port 22
HostKey {at}/host
AuthorizedKeysFile {place}/user.pub
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
UsePAM no
ClientAliveInterval 1
ClientAliveCountMax 2
PidFile none
SetEnv HOME={at}/home
"""

OWN_FILES: Final = 'mkdir -p /run/sshd && mount -t tmpfs own /tmp && exec "$@"'


def why_not() -> str | None:
    """Return why no such hosts can be made here, or None."""
    if not os.path.exists(DAEMON):
        return f"{DAEMON} is not installed (apt install openssh-server)"
    return hosts.why_not()


class SshLab:
    """Hosts h1… with daemons, and one for the client; `file` is the hosts.toml of all of them."""

    def __init__(self, lab: Lab, place: Path) -> None:
        self.lab = lab
        self.place = place
        self.client = lab["client"]
        self.hosts = [host for host in lab.hosts.values() if host is not self.client]
        self.file = place / "hosts.toml"
        self.runtime = place / "r"

    def start_daemons(self) -> None:
        """Make the keys and start the daemons; return when all listen."""
        self.runtime.mkdir(mode=0o700)
        _make_key(self.place / "user")
        for host in self.hosts:
            at = self.place / host.name
            (at / "home").mkdir(parents=True)
            _make_key(at / "host")
            (at / "settings").write_text(SETTINGS.format(at=at, place=self.place))
            words = [DAEMON, "-D", "-e", "-f", str(at / "settings")]
            with open(at / "log", "wb") as log:
                host.start("sh", "-c", OWN_FILES, "sh", *words, stderr=log)
        self.write_file()
        for host in self.hosts:
            eventually(lambda host=host: self._listens(host), f"the daemon of {host.name} listens")

    def _listens(self, host: Host) -> bool:
        return "Server listening on 0.0.0.0 port 22" in (self.place / host.name / "log").read_text()

    def write_file(self, **changed: str) -> None:
        """Write hosts.toml; `changed` are other host keys, by the name of the host."""
        lines = ["[defaults]", 'user = "root"', f'key = "{self.place}/user"', f'python = "{PYTHON}"']
        for host in self.hosts:
            key = changed.get(host.name, (self.place / host.name / "host.pub").read_text().strip())
            lines += ["[[host]]", f'host = "{host.address}"'] + ([f'host_key = "{key}"'] if key else [])
        self.file.write_text("\n".join(lines))

    def cb(self, *words: str) -> subprocess.Popen[str]:
        """Start a command on the client's host."""
        pipe: Any = subprocess.PIPE
        return self.client.start(
            sys.executable, "-m", "cloudburst", *words, stdout=pipe, stderr=pipe, cwd=ROOT, env=self.environment()
        )

    def program(self, code: str) -> subprocess.Popen[str]:
        """Start a Python program on the client's host."""
        pipe: Any = subprocess.PIPE
        return self.client.start(sys.executable, "-c", code, stdout=pipe, stderr=pipe, env=self.environment())

    def environment(self) -> dict[str, str]:
        """What commands on the client's host are given: nobody else's runs are seen there."""
        return {
            **os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(self.runtime),
            "CLOUDBURST_DIR": str(self.runtime / "node"), "ANNA_DIR": str(self.runtime / "store"),
            "XDG_CACHE_HOME": str(self.place / "cache"),
        }  # fmt: skip

    def up(self, *words: str) -> subprocess.Popen[str]:
        """Start `cb up` on all hosts, without waiting for it."""
        count = str(len(self.hosts))
        on = f"ssh:{self.file}"
        return self.cb("up", "--hosts", count, "--executors", "1", "--on", on, *words)

    def left(self) -> dict[str, list[str]]:
        """Return what runs on each host beside the daemon that listens, and what is in its /tmp: by name."""
        found = {}
        for host in self.hosts:
            running = [_words(pid) for pid in host.pids()]
            found[host.name] = [words for words in running if DAEMON not in words] + self.files(host)
        return {name: words for name, words in found.items() if words}

    def files(self, host: Host) -> list[str]:
        """Return what is in the /tmp of a host."""
        return os.listdir(self.root(host) / "tmp")

    def root(self, host: Host) -> Path:
        """Return where the files of a host are."""
        daemon = next(pid for pid in host.pids() if DAEMON in _words(pid))
        return Path(f"/proc/{daemon}/root")


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _make_key(path: Path) -> None:
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))


@contextlib.contextmanager
def ssh_lab(count: int) -> Iterator[SshLab]:
    """Make so many hosts and a client, and unmake them in the end."""
    place = Path(tempfile.mkdtemp(prefix="cb-", dir="/var/tmp"))
    try:
        with hosts.lab(*(f"h{number}" for number in range(1, count + 1)), "client") as lab:
            made = SshLab(lab, place)
            made.start_daemons()
            yield made
    finally:
        shutil.rmtree(place, ignore_errors=True)
