"""What is told about a function when it is registered: its name, how it is called, and where its imports are.

Read from the object in the program that registers it; nothing here asks the node. Source: DESIGN §6.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloudburst.errors import RequestError
from cloudburst.graph import ANY_NUMBER, Arity
from cloudburst.records import FunctionRecord


def name_of(function: Callable[..., Any]) -> str:
    """Return the name under which a function is registered when none is given. Raises RequestError."""
    name = getattr(function, "__name__", "")
    if not name or name == "<lambda>":
        raise RequestError(f"{function!r} has no name of its own: register it with name=")
    return name


def arity_of(record: FunctionRecord, name: str) -> Arity | None:
    """Return how many arguments the function, or the class's method, takes that `name` means; None for not known."""
    found = record.arities.get("" if record.name == name else name.rpartition(".")[2])
    return None if found is None else Arity(*found)


def arities_of(function: Callable[..., Any]) -> dict[str, tuple[int, int]]:
    """Return (least, most) positional arguments of a function under "", of a class's methods by name."""
    if not inspect.isclass(function):
        found = _positional(function, 0)
        return {} if found is None else {"": found}
    arities = {}
    for name, member in inspect.getmembers(function, callable):
        bound = not isinstance(inspect.getattr_static(function, name), (staticmethod, classmethod))
        found = _positional(member, int(bound)) if name[:1] != "_" or name == "__call__" else None
        if found is not None:
            arities["" if name == "__call__" else name] = found
    return arities


def coroutines_of(function: Callable[..., Any]) -> list[str]:
    """Return "" if a function is a coroutine function; of a class, the methods that are, `__call__` as ""."""
    if not inspect.isclass(function):
        called = function if inspect.isroutine(function) or isinstance(function, functools.partial) else None
        return [""] if inspect.iscoroutinefunction(called or getattr(function, "__call__", None)) else []  # noqa: B004
    found = (name for name, one in inspect.getmembers(function, inspect.iscoroutinefunction))
    return ["" if name == "__call__" else name for name in found if name[:1] != "_" or name == "__call__"]


def _positional(function: Callable[..., Any], own: int) -> tuple[int, int] | None:
    """Return (least, most) positional arguments beside the first `own`; None when nobody knows."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[own:]
    except (TypeError, ValueError):
        return None
    plain = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    least = sum(one.default is one.empty for one in plain)
    endless = any(one.kind == one.VAR_POSITIONAL for one in parameters)
    return least, ANY_NUMBER if endless else len(plain)


def signature_of(function: Callable[..., Any]) -> str:
    """Return how a function is called, as text; "" when nobody knows."""
    for eval_str in (True, False):
        try:
            return str(inspect.signature(function, eval_str=eval_str))
        except (TypeError, ValueError, NameError):
            continue
    return ""


def import_paths() -> list[str]:
    """Return this program's module search path, absolute: what the function imports must be found by executors too."""
    paths = [str(Path(path or os.curdir).absolute()) for path in sys.path]
    return [path for path in dict.fromkeys(paths) if os.path.isdir(path)]
