"""Other Pythons of this machine: real interpreters, of another minor version than the one that runs the tests.

Looked for by their names in PATH, and where pyenv keeps them. Tests that need one skip loudly where there is none.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MINORS = range(6, 20)
ASK = """
import sys, sysconfig
said = sys.version_info[:2] + (sys.version.split()[0], sysconfig.get_config_var("SOABI"))
print("%d.%d %s %s" % said)
"""


@dataclass(frozen=True)
class Python:
    """An interpreter: `path`, its minor version, such as 3.12, its whole one, and what its modules end with."""

    path: str
    minor: str
    version: str
    soabi: str


@functools.cache
def others() -> tuple[Python, ...]:
    """Return one interpreter for each other minor version, the newest last."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    named = [shutil.which(f"python3.{minor}") for minor in MINORS]
    named += [str(path) for path in sorted(pyenv.glob("*/bin/python"))]
    found = {one.minor: one for path in named if path is not None and (one := look(path)) is not None}
    found.pop(f"{sys.version_info[0]}.{sys.version_info[1]}", None)
    return tuple(sorted(found.values(), key=lambda one: [int(part) for part in one.minor.split(".")]))


def look(path: str) -> Python | None:
    """Return what an interpreter says of itself; None when it does not run."""
    try:
        said = subprocess.run([path, "-c", ASK], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return Python(path, *said.split())
