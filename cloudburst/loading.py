"""The file of a user's program, imported as a module that executors can import as well.

The one rule: it is found under the name of its file, in the first directory of the module search path; so what it
defines is pickled by name, and executors are told where that is found.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from cloudburst.errors import RequestError


class NotThere(RequestError, LookupError):
    """There is no such file, or no such function in it."""


def load(path: Path) -> ModuleType:
    """Import a file; what stands under `if __name__ == "__main__":` does not run. Raises NotThere."""
    if not path.is_file():
        raise NotThere(f"there is no file {path}")
    if sys.path[0] != (place := str(path.parent.absolute())):
        sys.path.insert(0, place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise NotThere(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def function_of(module: ModuleType, name: str) -> Callable[..., Any]:
    """Return a function of a file that was loaded. Raises NotThere."""
    function = getattr(module, name, None)
    if not callable(function):
        raise NotThere(f"{Path(str(module.__file__)).name} has no function {name!r}")
    return function  # type: ignore[no-any-return]
