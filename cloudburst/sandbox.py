"""Where user code sees little of its machine: bubblewrap around the process that executors are forked from.

The one rule: a node with a sandbox runs no user code outside of it; where it cannot be had, nothing starts, and what to
do is said. Inside, the system is read-only; `/tmp`, `/run`, `/dev/shm` and the home directory are empty but for what
Python and this node need; processes are the sandbox's own; there is no network unless it was asked for, and there are
no capabilities.
One sandbox holds all executors of a node, so a fork is as quick as without; limits are those of `executor.limits`.
The node, its cache and the store stay outside. Source: reliability D (sandbox level 3).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudburst import config
from cloudburst.errors import EnvironmentMismatch, RequestError

VARIABLE: Final = "CLOUDBURST_SANDBOX"
"""Names the sandbox of every node that is started: what `sandbox=` says where nothing is said."""
CHECK_S: Final = 10.0
PRIVATE: Final = ("/tmp", "/var/tmp", "/run", "/dev/shm")
LINK_FD, PAGE_FD = 3, 4
"""Where the process inside finds its socket to the node, and the page."""

# As the embedded node is started (`cloudburst.local`): without the working directory on the path.
_PROGRAM: Final = """
import sys
sys.path.insert(0, sys.argv[1])
from cloudburst.executor import zygote
sys.path.append(sys.path.pop(0))
zygote.serve_inside(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
"""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What user code may have besides what it must: the network, and directories, to read or to write."""

    network: bool = False
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


def parse(text: str | None) -> Sandbox | None:
    """Return the sandbox that `text` describes, None for "none": `bwrap`, `bwrap,net`, `bwrap,read=/data,write=/out`.

    Raises RequestError.
    """
    kind, *options = (text or "none").split(",")
    if kind == "none" and not options:
        return None
    network = False
    read: list[str] = []
    write: list[str] = []
    for option in options:
        name, _, path = option.partition("=")
        if option == "net":
            network = True
        elif name in ("read", "write") and os.path.isabs(path):
            (read if name == "read" else write).append(path)
        else:
            raise RequestError(f"{option!r} is no option of a sandbox: net, read=/DIRECTORY, write=/DIRECTORY")
    if kind != "bwrap":
        raise RequestError(f"{kind!r} is no sandbox: none, or bwrap")
    return Sandbox(network, tuple(read), tuple(write))


def require(sandbox: Sandbox) -> None:
    """Raise EnvironmentMismatch, which says what to do, unless this process can start such a sandbox."""
    for path in (*sandbox.read, *sandbox.write):
        if not os.path.isdir(path):
            raise EnvironmentMismatch(f"the sandbox is to have {path}, which is no directory here")
    try:
        command = [*_walls(_program(), sandbox), "true"]
        tried = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise EnvironmentMismatch(f"bubblewrap cannot be started: {fault}") from None
    if tried.returncode != 0:
        raise EnvironmentMismatch(
            f"bubblewrap may not make a sandbox here: {tried.stderr.strip()}; run as root, or allow user namespaces"
            " (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), or do"
            " without: sandbox='none'"
        )


def command(
    sandbox: Sandbox, directory: str, needed: Iterable[str], shared: Iterable[str], hidden: Iterable[str] = (),
    masked: Iterable[str] = (),
) -> list[str]:  # fmt: skip
    """Return the command that starts the zygote of the node in `directory` inside the sandbox.

    `needed` are directories in which user code finds sockets of the store, `shared` those of large values. Of these,
    `hidden` files are empty inside. `masked` directories are, but for what is needed in them.
    """
    root = str(Path(__file__).resolve().parent.parent)
    python = [sys.executable, "-P", "-c", _PROGRAM, root, directory, str(LINK_FD), str(PAGE_FD)]
    shown = [option for path in masked for option in ("--size", str(config.SANDBOX_BYTES_MAX), "--tmpfs", path)]
    shown += [option for path in dict.fromkeys((directory, *needed)) for option in ("--ro-bind", path, path)]
    shown += [option for path in shared for option in ("--bind", path, path)]
    shown += [option for path in hidden if os.path.exists(path) for option in ("--ro-bind", "/dev/null", path)]
    return [*_walls(_program(), sandbox), *shown, *python]


def _walls(program: str, sandbox: Sandbox) -> list[str]:
    home = os.path.realpath(Path.home())
    hidden = [path for path in (*PRIVATE, home) if path != "/" and os.path.isdir(path)]
    walls = [program, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    for path in hidden:
        walls += ["--size", str(config.SANDBOX_BYTES_MAX), "--tmpfs", path]
    for path in _wanted_by_python():
        if any(path.startswith(f"{place}/") for place in hidden):
            walls += ["--ro-bind", path, path]
    walls += [option for path in sandbox.read for option in ("--ro-bind", path, path)]
    walls += [option for path in sandbox.write for option in ("--bind", path, path)]
    walls += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--cap-drop", "ALL"]
    walls += [] if sandbox.network else ["--unshare-net"]
    return [*walls, "--die-with-parent", "--new-session", "--chdir", "/"]


def _wanted_by_python() -> list[str]:
    """Return the directories without which this interpreter and this library do not start."""
    root = str(Path(__file__).resolve().parent.parent)
    places = [sys.prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable)), root, *sys.path]
    return [path for path in dict.fromkeys(map(os.path.abspath, filter(None, places))) if os.path.isdir(path)]


def _program() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise EnvironmentMismatch(
            "there is no bubblewrap here: install it (Debian, Ubuntu: apt install bubblewrap; Fedora: dnf install"
            " bubblewrap), or do without: sandbox='none'"
        )
    return found
