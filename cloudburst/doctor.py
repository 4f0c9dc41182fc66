"""`cb doctor`: what this machine lacks for nodes, functions, bursts and builds, and the command that mends each.

The one rule: it only looks. Nothing is changed, and nothing started but programs that answer, and a sandbox that runs
`true`; of credentials it says whether there are any, and under which name, never what they hold.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudburst import config
from cloudburst.build import manifest

LOOK_S: Final = 10.0
"""How long a program that is asked may take."""
PYTHON_LEAST: Final = (3, 11)
MIB: Final = 1024 * 1024
UNSYNCHRONIZED: Final = 5
"""What adjtimex(2) returns (TIME_ERROR) when nobody keeps the clock right."""

CLOUDS: Final = (
    ("AWS", ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"), (".aws/credentials", ".aws/config")),
    ("Google Cloud", ("GOOGLE_APPLICATION_CREDENTIALS",), (".config/gcloud/application_default_credentials.json",)),
    ("Azure", ("AZURE_CLIENT_ID",), (".azure/azureProfile.json",)),
)
"""Where each cloud's own programs look: variables, and files in the home directory."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what there is of it, what it is for, and the command that gets it."""

    name: str
    ok: bool
    found: str
    why: str
    mend: str
    needed: bool = False
    """Whether nodes do not work without it."""


def examine(hosts: list[str]) -> Iterator[Finding]:
    """Yield what there is to say, one thing after the other."""
    for check in CHECKS:
        yield check()
    for host in hosts:
        yield clock_of(host)


# -- what nodes need


def python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    kind = f"{sys.implementation.name} {version}"
    wanted = ".".join(map(str, PYTHON_LEAST))
    return Finding(
        "python", sys.implementation.name == "cpython" and sys.version_info >= PYTHON_LEAST, kind,
        f"everything: CPython {wanted} or later", f"apt install python{wanted} (or pyenv install {wanted})", True,
    )  # fmt: skip


def modules() -> Finding:
    missing = [name for name in ("anna.client", "cloudburst.page", "zmq", "uvloop", "msgpack") if not _there(name)]
    return Finding(
        "modules", not missing, f"{', '.join(missing)} missing" if missing else "compiled, and all that they need",
        "everything: the compiled modules of this library, and its dependencies", "pip install . (or make build)", True,
    )  # fmt: skip


def _there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def runtime_directory() -> Finding:
    from cloudburst.running import runtime_directory

    place = runtime_directory()
    fits = os.access(place, os.W_OK | os.X_OK)
    return Finding(
        "run directory", fits, f"{place}{'' if fits else ' cannot be written'}", "sockets of nodes",
        "export XDG_RUNTIME_DIR=$(mktemp -d)", True,
    )  # fmt: skip


def file_limit() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= config.OPEN_FILES_MAX
    return Finding(
        "open files", enough, "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard:,}",
        f"a node's connections and values: {config.OPEN_FILES_MAX:,} files",
        f"ulimit -Hn {config.OPEN_FILES_MAX} (to keep it: a line `* hard nofile 65536` in /etc/security/limits.conf)",
        True,
    )  # fmt: skip


def memory() -> Finding:
    with open("/proc/meminfo") as file:
        said = dict(line.split(":", 1) for line in file)
    available = int(said["MemAvailable"].split()[0]) * 1024
    return Finding(
        "memory", available >= config.MEMORY_WANTED_BYTES, f"{available // MIB:,} MiB available",
        f"a node with its executors: {config.MEMORY_WANTED_BYTES // MIB:,} MiB",
        "end other programs: ps aux --sort -rss", True,
    )  # fmt: skip


# -- what only some need


def shared_memory() -> Finding:
    from cloudburst.segments.shelf import MEMORY

    wanted = config.SHARED_MEMORY_WANTED_BYTES
    try:
        space = os.statvfs(MEMORY)
        free, known = space.f_bavail * space.f_frsize, f"{space.f_bavail * space.f_frsize // MIB:,} MiB free"
    except OSError:
        free, known = 0, "none"
    return Finding(
        "shared memory", free >= wanted, f"{known} in {MEMORY}",
        f"large values without copies, {wanted // MIB:,} MiB; what has no room there goes to disk",
        f"mount -o remount,size=2G {MEMORY} (in a container: docker run --shm-size=2g)",
    )  # fmt: skip


def sandbox() -> Finding:
    from cloudburst.errors import EnvironmentMismatch
    from cloudburst.sandbox import Sandbox, require

    why = "user code that sees little of its machine (sandbox='bwrap')"
    try:
        require(Sandbox())
    except EnvironmentMismatch as fault:
        absent = shutil.which("bwrap") is None
        found = "no bubblewrap" if absent else f"bubblewrap may not: {' '.join(str(fault).split())}"
        mend = "apt install bubblewrap" if absent else "sysctl kernel.unprivileged_userns_clone=1"
        return Finding("sandbox", False, found, why, mend)
    return Finding("sandbox", True, "bubblewrap, and it may make namespaces", why, "")


def compiler() -> Finding:
    name = (os.environ.get("CC") or "cc").split()[0]
    return _program(name, "compiler", "building this library from its sources", "apt install build-essential")


def redis() -> Finding:
    return _program("redis-server", "redis", "cb demo retwis beside its peer", "apt install redis-server")


def ssh() -> Finding:
    return _program("ssh", "ssh", "cb ssh, cb doctor --host", "apt install openssh-client")


def _program(program: str, name: str, why: str, mend: str) -> Finding:
    place = shutil.which(program)
    return Finding(name, place is not None, place or f"no {program} in PATH", why, mend)


def ssh_agent() -> Finding:
    why = "hosts that are reached without typing a passphrase for each"
    start = 'eval "$(ssh-agent)" && ssh-add'
    if not os.environ.get("SSH_AUTH_SOCK"):
        return Finding("ssh agent", False, "none runs (SSH_AUTH_SOCK is not set)", why, start)
    code, out, _ = _ask("ssh-add", "-l")
    if code == 0:
        return Finding("ssh agent", True, f"{len(out.splitlines())} keys", why, "")
    return Finding("ssh agent", False, "it has no keys" if code == 1 else "it does not answer", why,
                   "ssh-add" if code == 1 else start)  # fmt: skip


def packer() -> Finding:
    return _packages("pex", ("pex", "packaging"), "cb build", "pip install pex packaging")


def ssh_hosts() -> Finding:
    return _packages("asyncssh", ("asyncssh",), "nodes on SSH hosts (cb up --on ssh:FILE)", "pip install asyncssh")


def ec2() -> Finding:
    return _packages("boto3", ("boto3",), "machines of EC2 (cb up --on ec2)", "pip install boto3")


def ray() -> Finding:
    return _packages("ray", ("ray",), "places in a Ray cluster (cb up --on ray)", "pip install 'ray[client]'")


def _packages(name: str, needs: tuple[str, ...], why: str, mend: str) -> Finding:
    missing = [one for one in needs if not _there(one)]
    if manifest.directory() is not None:
        mend = f"build this file where that is installed ({mend})"
    return Finding(name, not missing, f"{' and '.join(missing)} not installed" if missing else "installed", why, mend)


def credentials() -> Finding:
    home = Path.home()
    found = [
        f"{cloud} ({place})"
        for cloud, variables, files in CLOUDS
        for place in (*(f"${one}" for one in variables if os.environ.get(one)),
                      *(f"~/{one}" for one in files if (home / one).is_file()))
    ]  # fmt: skip
    return Finding(
        "credentials", bool(found), ", ".join(found) or "of no cloud", "machines of a cloud (cb up --on ec2)",
        "aws configure",
    )  # fmt: skip


def disk() -> Finding:
    place = Path.cwd()
    cache = Path(os.environ.get("PEX_ROOT") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    while not cache.exists():
        cache = cache.parent
    free = {str(one): shutil.disk_usage(one).free for one in dict.fromkeys((place, cache, Path("/tmp")))}
    least = min(free, key=lambda one: free[one])
    return Finding(
        "disk", free[least] >= config.DISK_WANTED_BYTES, f"{free[least] // MIB:,} MiB free in {least}",
        f"logs, values that memory has no room for, unpacked files: {config.DISK_WANTED_BYTES // MIB:,} MiB",
        f"du -xh {least} | sort -h | tail",
    )  # fmt: skip


# -- clocks


def clock() -> Finding:
    why = "which of two writes to a register is the later; one that is a minute ahead is refused"
    mend = "timedatectl set-ntp true (or apt install chrony)"
    state = _clock_state()
    if state < 0:
        return Finding("clock", True, "the system does not say whether it is kept right", why, mend)
    right = state != UNSYNCHRONIZED
    return Finding("clock", right, "kept right" if right else "nobody keeps it right", why, mend)


def _clock_state() -> int:
    """Return what adjtimex(2) says without a change to anything; -1 where it may not be asked."""
    try:
        return int(ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512)))
    except (OSError, AttributeError):
        return -1


def clock_of(host: str) -> Finding:
    """Compare the clock of a host with this one's: it is asked by ssh, and may be as far off as half of that took."""
    name = f"clock of {host}"
    why = f"which of two writes is the later: within {config.CLOCKS_APART_MAX_S:g} s; a minute ahead is refused"
    before = time.time()
    begun = time.monotonic()
    options = ("-o", "BatchMode=yes", "-o", f"ConnectTimeout={int(LOOK_S)}")
    code, out, fault = _ask("ssh", *options, "--", host, "date +%s.%N")
    took = time.monotonic() - begun
    try:
        apart = float(out) - (before + took / 2)
    except ValueError:
        said = (fault or out).strip().splitlines() or [f"ssh ended with {code}"]
        return Finding(name, False, f"not known: {said[-1]}", why, f"ssh {host} date")
    shown = f"{abs(apart):.1f} s {'ahead' if apart > 0 else 'behind'}, ± {took / 2:.1f} s"
    near = abs(apart) <= config.CLOCKS_APART_MAX_S + took / 2
    return Finding(name, near, shown, why, f"ssh {host} sudo timedatectl set-ntp true")


def _ask(*words: str) -> tuple[int, str, str]:
    """Return the exit code, output and errors of a program; 127 when it cannot be started."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=2 * LOOK_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        return 127, "", str(fault)
    return done.returncode, done.stdout, done.stderr


CHECKS: Final[tuple[Callable[[], Finding], ...]] = (
    python, modules, runtime_directory, file_limit, memory, shared_memory, disk, clock, sandbox, compiler, packer,
    ssh_hosts, ssh, ssh_agent, ec2, credentials, ray, redis,
)  # fmt: skip
