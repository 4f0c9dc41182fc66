"""The modules of a program's own: which they are, and their sources, to go with the functions that need them.

A module is local when it is a Python file that no distribution has installed: one beside the script, a package under
development. A function of such a module is pickled as a name in it, so the module's source goes along, and with it
every local module that it imports, wherever in its code. Executors then have what the program had when it registered,
on whichever host they are, and a changed module is a new version. Source: burst-systems (shipping of local imports).
"""

from __future__ import annotations

import ast
import importlib.util
import site
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import msgpack

from cloudburst.build.manifest import PACKED

OURS = frozenset(("anna", "cloudburst", "__main__"))
Source = tuple[bool, str, str]
"""(whether it is a package, path of the file, text)"""

_parsing = threading.Lock()
"""CPython 3.11 counts the depth of a syntax tree for all threads together: of two that parse one gets SystemError."""


def bundle_of(function: Callable[..., Any], body: bytes) -> bytes:
    """Return the local modules that a pickled function needs, as `unpack_bundle` takes them; b"" when there are none.

    Those whose names are in the pickle, those that the function imports while it runs, and what they import in turn.
    """
    found: dict[str, Source] = {}
    named = (name for name in list(sys.modules) if name.partition(".")[0] not in OURS and name.encode() in body)
    waiting = [*named, *_imported_by_code(function)]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        source = _source(name)
        if source is None:
            continue
        found[name] = source
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        waiting += _imported_by_source(name, source)
    if not found:
        return b""
    return bytes(msgpack.packb([[name, *found[name]] for name in sorted(found)]))


def unpack_bundle(data: bytes) -> dict[str, Source]:
    """Return {module: source}."""
    return {name: (bool(package), path, text) for name, package, path, text in msgpack.unpackb(data)}


def _imported_by_code(function: Callable[..., Any]) -> Iterator[str]:
    """Yield the names in a function's code, or in that of a class's methods, that it could import."""
    members = vars(function).values() if isinstance(function, type) else (function,)
    waiting: list[CodeType] = [one.__code__ for one in members if isinstance(getattr(one, "__code__", None), CodeType)]
    while waiting:
        code = waiting.pop()
        waiting += (one for one in code.co_consts if isinstance(one, CodeType))
        yield from code.co_names


def _imported_by_source(name: str, source: Source) -> Iterator[str]:
    """Yield the modules that a module's source imports, anywhere in it, and those that it may mean by a name."""
    package, _, text = source
    here = name if package else name.rpartition(".")[0]
    try:
        with _parsing:
            tree = ast.parse(text)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = here.split(".")[: len(here.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield base
            yield from (f"{base}.{one.name}" for one in node.names)


def _source(name: str) -> Source | None:
    """Return the source of a local module, None when the name is of none."""
    top = name.partition(".")[0]
    if top in OURS or top in sys.stdlib_module_names:
        return None
    module = sys.modules.get(name)
    if module is not None:
        return _source_of(module)
    if "." not in name:
        return _source_at(_origin(name))
    above = _source(name.rpartition(".")[0])
    if above is None or not above[0]:
        return None
    place, last = Path(above[1]).parent, name.rpartition(".")[2]
    return _source_at(str(place / f"{last}.py")) or _source_at(str(place / last / "__init__.py"))


def _origin(name: str) -> str:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return ""
    return spec.origin or "" if spec is not None else ""


def _source_at(path: str) -> Source | None:
    if not path.endswith(".py") or _is_installed(path):
        return None
    try:
        return path.endswith("__init__.py"), path, Path(path).read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _source_of(module: ModuleType) -> Source | None:
    """Return the source of a module that is loaded, from its loader: its file may be on another host."""
    path, spec = getattr(module, "__file__", None), getattr(module, "__spec__", None)
    if not isinstance(path, str) or not path.endswith(".py") or _is_installed(path) or spec is None:
        return None
    try:
        text = spec.loader.get_source(spec.name)
    except (AttributeError, ImportError, OSError):
        return None
    return None if text is None else (path.endswith("__init__.py"), path, text)


@cache
def _installed_places() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    places = [paths[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    places += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(f"{Path(place).absolute()}/" for place in places)


def _is_installed(path: str) -> bool:
    if f"/{PACKED}/" in path:
        return False  # the application of a built file, which is unpacked among what is installed
    return path.startswith(_installed_places()) or "/site-packages/" in path or "/dist-packages/" in path
