"""What a user says about an application: in `pyproject.toml`, in `requirements.txt`, or in the file itself (PEP 723).

The one rule: nothing of the user's is run or imported to learn it. What stands under `[tool.cloudburst]` is the same in
both places: `main` (a file), `name`, `version`, `secrets` (names of environment variables), `set` (values of
parameters), `stage` (the function for a pipeline's inputs) and `test-data` (a directory).
"""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cloudburst.errors import RequestError

INLINE: Final = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
"""The metadata block of PEP 723."""
TABLE: Final = ("main", "name", "version", "secrets", "set", "stage", "test-data")
STAGE: Final = "stage"
"""The function that is called for each input of a pipeline, when no other is named."""
NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a function: their names, and whether it takes any others by name."""

    names: tuple[str, ...]
    any_name: bool


@dataclass(frozen=True, slots=True)
class Application:
    """What is to be packed: the directory, its file that is run (a path in it), and what the user says of them."""

    root: Path
    main: str
    alone: bool
    """Whether the user named a file, of which only what it imports goes with it, and no directory."""
    name: str
    version: str
    requires: tuple[str, ...]
    python: str
    """Which versions it says that it runs on, "" for any."""
    secrets: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    test_data: Path | None
    stage: str = ""
    functions: tuple[str, ...] = ()


def read(source: Path, settings: Iterable[str] = (), test_data: Path | None = None) -> Application:
    """Return what there is to know of a file or a directory; `settings` are `NAME=VALUE`. Raises RequestError."""
    if source.is_file():
        said = _inline(source)
        found = _of(source.parent, source.name, True, said.get("tool", {}).get("cloudburst", {}), said)
    elif source.is_dir():
        found = _of_directory(source)
    else:
        raise RequestError(f"there is no file or directory {source}")
    given = dict(found.settings) | dict(_setting(one) for one in settings)
    found = replace(found, settings=tuple(sorted(given.items())), test_data=test_data or found.test_data)
    if found.test_data is not None and not found.test_data.is_dir():
        raise RequestError(f"the test data is to be in {found.test_data}, which is no directory")
    return _checked(found)


def _of_directory(source: Path) -> Application:
    said: dict[str, Any] = {}
    project = source / "pyproject.toml"
    if project.is_file():
        said = _toml(project.read_text(), project)
    table = said.get("tool", {}).get("cloudburst", {})
    about = said.get("project")
    main = table.get("main") or _main_of(source)
    if not (source / main).is_file():
        raise RequestError(f"main in {project} is {main!r}; there is no such file")
    if about is None and (source / "requirements.txt").is_file():
        about = {"dependencies": _requirements(source / "requirements.txt")}
    if about is None:
        inline = _inline(source / main)
        about, table = inline, table | inline.get("tool", {}).get("cloudburst", {})
    return _of(source, main, False, table, about)


def _of(root: Path, main: str, alone: bool, table: Mapping[str, Any], about: Mapping[str, Any]) -> Application:
    if unknown := sorted(set(table) - set(TABLE)):
        raise RequestError(f"[tool.cloudburst] has {', '.join(unknown)}; what can stand there is {', '.join(TABLE)}")
    root = root.absolute()
    secrets, settings = table.get("secrets", []), table.get("set", {})
    if not isinstance(secrets, list) or not isinstance(settings, dict):
        raise RequestError('[tool.cloudburst] has secrets = ["NAME", …] and set = {name = "value", …}')
    name = table.get("name") or about.get("name") or (Path(main).stem if alone else root.name)
    if NAME.fullmatch(str(name)) is None:
        raise RequestError(f"{name!r} is no name for an application: letters, digits, and . _ - between them")
    return Application(
        root, main, alone, str(name), str(table.get("version") or about.get("version") or "0"),
        tuple(map(str, about.get("dependencies", ()))), str(about.get("requires-python", "")),
        tuple(map(str, secrets)), tuple((str(key), _text(value)) for key, value in settings.items()),
        root / table["test-data"] if "test-data" in table else None, str(table.get("stage", "")),
    )  # fmt: skip


def _main_of(source: Path) -> str:
    for name in ("main.py", "app.py", f"{source.absolute().name}.py"):
        if (source / name).is_file():
            return name
    found = sorted(path.name for path in source.glob("*.py"))
    if len(found) == 1:
        return found[0]
    raise RequestError(
        f"which file of {source} is run? There is no main.py or app.py; say it in pyproject.toml:"
        ' [tool.cloudburst] main = "FILE"'
    )


def _inline(path: Path) -> dict[str, Any]:
    """Return what a file says of itself in comments (PEP 723)."""
    blocks = list(INLINE.finditer(path.read_text()))
    if len(blocks) > 1:
        raise RequestError(f"{path} has {len(blocks)} blocks `# /// script`; one is allowed")
    if not blocks:
        return {}
    lines = blocks[0]["content"].splitlines()
    return _toml("\n".join(line[2:] if line.startswith("# ") else line[1:] for line in lines), path)


def _toml(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise RequestError(f"{path}: {fault}") from None


def _requirements(path: Path) -> list[str]:
    lines = [line.split(" #")[0].strip() for line in path.read_text().splitlines()]
    for number, line in enumerate(lines, 1):
        if line.startswith("-"):
            raise RequestError(f"{path}:{number}: {line!r} is an option; only requirements can be packed")
    return [line for line in lines if line and not line.startswith("#")]


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise RequestError(f"{text!r} is no setting: NAME=VALUE, with the name of a parameter")
    return name, value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _checked(found: Application) -> Application:
    """Return it with the functions of its file, if what is set are parameters of theirs."""
    functions = functions_of(found.root / found.main)
    for name, _ in found.settings:
        if not any(name in one.names or one.any_name for one in functions.values()):
            known = sorted({name for one in functions.values() for name in one.names})
            raise RequestError(
                f"no function of {found.main} has a parameter {name!r}; there are {', '.join(known) or 'none'}"
            )
    if found.stage and found.stage not in functions:
        raise RequestError(f"stage is to be {found.stage!r}; {found.main} has {', '.join(functions) or 'no functions'}")
    stage = found.stage or (STAGE if STAGE in functions else "")
    return replace(found, functions=tuple(functions), stage=stage)


def functions_of(path: Path) -> dict[str, Parameters]:
    """Return the functions at the top of a file, but for those whose names begin with an underscore."""
    functions = {}
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            named = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            functions[node.name] = Parameters(tuple(one.arg for one in named), node.args.kwarg is not None)
    return functions


def parsed(path: Path) -> ast.Module:
    """Return a file's syntax tree. Raises RequestError."""
    try:
        return ast.parse(path.read_bytes(), os.fspath(path))
    except (SyntaxError, ValueError) as fault:
        raise RequestError(f"{path} is no Python of this version: {fault}") from None
