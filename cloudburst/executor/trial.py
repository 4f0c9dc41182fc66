"""Loads a function's body before it is registered, where it will run, to say then what it would lack.

Source: reliability C (a module that is missing on the executor is said at registration, with the host and what it has).
"""

from __future__ import annotations

import difflib
import pickle
import platform
import socket
import sys
from importlib import metadata
from typing import Any

from cloudburst import context
from cloudburst.errors import MissingDependency
from cloudburst.executor.modules import BUNDLED
from cloudburst.pickling import code_tag
from cloudburst.records import body_hash

CLOSE_MAX = 5


def load(name: str, body: bytes | memoryview, extras: dict[str, Any]) -> None:
    """Load a body and drop it. Raises MissingDependency for a module that cannot be found here.

    `extras` has the `tag` of the code, its import `paths` and the local `modules`. What was made for another Python is
    not touched; anything else that goes wrong is left to the first call.
    """
    if extras.get("tag") != code_tag():
        return
    for path in extras.get("paths", ()):
        if path not in sys.path:
            sys.path.append(path)
    try:
        if extras.get("modules"):
            BUNDLED.take(body_hash(extras["modules"]), extras["modules"])
        with context.loading():
            pickle.loads(body)
    except ModuleNotFoundError as fault:
        where, has = f"{socket.gethostname()} (Python {platform.python_version()})", _close(fault.name or "")
        raise MissingDependency(
            f"function {name!r} needs the module {fault.name!r}, which {where} does not have; {has}"
        ) from None
    except Exception:  # a user's code may raise anything while it is loaded, and its first call says what
        return


def _close(module: str) -> str:
    """Return what is installed that looks like the module, for a message; how much there is when nothing does."""
    installed = {found.name: found.version for found in metadata.distributions() if found.name}
    close = difflib.get_close_matches(module.partition(".")[0], installed, CLOSE_MAX, 0.5)
    if not close:
        return f"none of the {len(installed)} packages installed there looks like it"
    return f"installed there are {', '.join(f'{name} {installed[name]}' for name in close)}"
