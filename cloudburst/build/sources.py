"""Which of the user's files are packed, and which are left out.

The one rule: what looks like a secret never goes in. A file whose name says so is left out, and that is said; one
whose contents say so is refused when it is code, because the application would be without it.
Of a directory all goes that is not hidden, made by tools, or the built file; of a single file, what it imports.
"""

from __future__ import annotations

import ast
import fnmatch
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloudburst import config
from cloudburst.build.application import Application, parsed
from cloudburst.errors import RequestError

MADE_BY_TOOLS: Final = ("__pycache__", "node_modules", "*.egg-info", "*.pyc", "*.pyo", "*.swp", "*~")
SECRET_NAMES: Final = (
    ".env", ".env.*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "id_rsa*",
    "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", ".pgpass", ".npmrc", ".pypirc", ".htpasswd", ".aws", ".ssh",
    ".gnupg", "credentials", "credentials.*", "secrets", "secrets.*", "secret", "service-account*.json",
    "client_secret*.json",
)  # fmt: skip
SECRET_CONTENTS: Final = re.compile(
    rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{16}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    rb"|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bxox[abprs]-[A-Za-z0-9-]{20,}"
)
"""Private keys, access keys of AWS, and tokens of GitHub and Slack."""
LIKE_A_SECRET: Final = "looks like a secret"


@dataclass(slots=True)
class Gathered:
    """What goes in, by its path in the file, and what does not, with the reason."""

    files: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def gather(application: Application, out: Path | None = None) -> Gathered:
    """Return the application's files, without `out`, which is being built. Raises RequestError."""
    gathered = Gathered()
    tests = application.test_data
    if application.alone:
        found = _imported(application.root, application.root / application.main, gathered)
    else:
        found = _walk(application.root, application.root, gathered, tests)
    inside = {path.relative_to(application.root).as_posix(): path for path in found}
    if out is not None and out.absolute().is_relative_to(application.root):
        inside.pop(out.absolute().relative_to(application.root).as_posix(), None)
    _add(gathered, inside, application.root)
    if application.main not in gathered.files:
        why = gathered.left_out.get(application.main, "its name says that it is none to be packed")
        raise RequestError(f"{application.main}, which is to be run, is left out: {why}")
    return gathered


def gather_tests(application: Application) -> Gathered:
    """Return the files of the test data, by their paths there. Raises RequestError."""
    gathered = Gathered()
    root = application.test_data
    if root is not None:
        found = _walk(root, root, gathered, None)
        _add(gathered, {path.relative_to(root).as_posix(): path for path in found}, root)
    return gathered


def looks_like_a_secret(path: Path) -> bool:
    """Whether the name of a file or directory says that it is a secret."""
    matching = (pattern for pattern in SECRET_NAMES if fnmatch.fnmatchcase(path.name.lower(), pattern))
    return path.suffix != ".py" and any(matching)


def _walk(top: Path, root: Path, gathered: Gathered, without: Path | None) -> Iterator[Path]:
    """Yield the files under a directory of `root`, in the order of their names."""
    for place, directories, files in os.walk(top):
        here = Path(place)
        for name in sorted((*directories, *files)):
            path = here / name
            inside = path.relative_to(root).as_posix()
            why = _why_not(path, root)
            if why:
                gathered.left_out[inside] = why
            elif name in files and (without is None or path != without):
                yield path
        directories[:] = sorted(
            name for name in directories
            if (here / name).relative_to(root).as_posix() not in gathered.left_out and here / name != without
        )  # fmt: skip


def _why_not(path: Path, root: Path) -> str:
    """Return why a file or directory is left out, by its name and kind; "" when it is not."""
    name = path.name
    if looks_like_a_secret(path):
        return LIKE_A_SECRET
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in MADE_BY_TOOLS) or (path / "pyvenv.cfg").is_file():
        return "made by tools"
    if name.startswith("."):
        return "hidden"
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        return "a link to what is outside"
    if path.is_symlink() and path.is_dir():
        return "a link to a directory"
    return "" if path.is_dir() or path.is_file() else "no regular file"


def _add(gathered: Gathered, found: Mapping[str, Path], root: Path) -> None:
    """Take in files of `root`, by their paths there, but for those with secrets in them."""
    _check_size(found, root)
    for inside, path in found.items():
        if "\n" in inside or inside.encode(errors="replace").decode() != inside:
            raise RequestError(f"{inside!r} is no name of a file that every system can have: rename it")
        data = path.read_bytes()
        secret = SECRET_CONTENTS.search(data)
        if secret is None:
            gathered.files[inside] = path
            continue
        line = data.count(b"\n", 0, secret.start()) + 1
        if path.suffix == ".py":
            raise RequestError(
                f"{path}:{line} holds what looks like a secret: read it from the environment instead, and name it in"
                ' [tool.cloudburst] secrets = ["NAME"]'
            )
        gathered.left_out[inside] = f"{LIKE_A_SECRET} (line {line})"


def _check_size(found: Mapping[str, Path], root: Path) -> None:
    sizes = {inside: path.stat().st_size for inside, path in found.items()}
    if sum(sizes.values()) > config.BUILD_BYTES_MAX:
        largest = sorted(sizes, key=lambda inside: -sizes[inside])[:3]
        shown = ", ".join(f"{inside} ({sizes[inside]:,})" for inside in largest)
        raise RequestError(
            f"the files of {root} have {sum(sizes.values()):,} bytes; BUILD_BYTES_MAX is {config.BUILD_BYTES_MAX:,}."
            f" The largest: {shown}; keep data elsewhere, or put it into the store"
        )


def _imported(root: Path, main: Path, gathered: Gathered) -> Iterator[Path]:
    """Yield a file and, of the directory that it is in, the modules and packages that it imports, and so on."""
    seen: set[Path] = set()
    waiting = [main]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        yield path
        for name in sorted(imports_of(path)):
            module, package = root / f"{name}.py", root / name
            if (package / "__init__.py").is_file():
                waiting += _walk(package, root, gathered, None)
            elif module.is_file():
                waiting.append(module)


def imports_of(path: Path) -> set[str]:
    """Return the first parts of the names that a Python file imports, inside functions too."""
    if path.suffix != ".py":
        return set()
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names
