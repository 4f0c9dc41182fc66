"""Wheels of what an application depends on: of this library, and of what is installed beside it.

The one rule: what is resolved is resolved once. What this environment has installed goes in as it is here, where it was
tried, and nobody is asked; only when something is missing does pip resolve everything, once, from where it is
configured to look. The same files give the same wheel to the byte: sorted, without times.
"""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import importlib.metadata as metadata
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cloudburst
from cloudburst import config
from cloudburst.errors import EnvironmentMismatch
from cloudburst.version import RELEASE

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OURS: Final = "cloudburst"
PACKAGES: Final = ("anna", "cloudburst")
ALONG: Final = ("ssh",)
"""Extras that go along where they are installed: who has the file can install nothing beside it."""
DATA: Final = (".json", ".csv", ".txt", ".html", ".typed")
LATEST: Final = (1980, 1, 1, 0, 0, 0)
"""The time that every file in a wheel has, because none of its own may tell."""
NOT_COPIED: Final = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json")


Notice = Callable[[str], None]
"""Is told what is done now."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that was made or fetched, and which modules it brings."""

    name: str
    version: str
    path: Path
    sha256: str
    modules: frozenset[str]


def collect(requires: Iterable[str], directory: Path, notice: Notice = lambda _: None) -> list[Wheel]:
    """Write the wheels of this library, of `requires` and of all that they need into a directory; return them by name.

    What takes long is told to `notice`. Raises EnvironmentMismatch, which names what cannot be had, and how it can.
    """
    wanted = _parse(requires)
    ours = our_requirements(_our_extras(wanted))
    wanted += _parse(ours)
    found, missing = _closure(wanted)
    if missing:
        notice(f"pip resolves {len(wanted)} requirements: {', '.join(missing)} not installed here")
        _resolve(wanted, found, missing, directory)
    else:
        for one in found.values():
            _of_installed(one, directory)
    _ours(directory, ours)
    return sorted((_look(path) for path in directory.glob("*.whl")), key=lambda wheel: wheel.name)


def our_requirements(extras: Iterable[str] = ()) -> list[str]:
    """Return what this library needs at run time, and for some of its extras, as requirements without conditions."""
    try:
        said = metadata.requires(OURS) or ()
    except metadata.PackageNotFoundError:
        raise EnvironmentMismatch("this library is not installed here: pip install . in its repository") from None
    chosen = {"", *extras}
    parts = [one.partition(";") for one in said]
    return [need.strip() for need, _, when in parts if "".join(re.findall(r"extra == ['\"](.+?)['\"]", when)) in chosen]


def _our_extras(wanted: Iterable[Requirement]) -> list[str]:
    """Return the extras of this library that go in: those that are asked for, and those of `ALONG` that are here."""
    asked = {extra for one in wanted if canonical(one.name) == OURS for extra in one.extras}
    plain = set(our_requirements())
    for extra in ALONG:
        if not _closure(_parse(one for one in our_requirements([extra]) if one not in plain))[1]:
            asked.add(extra)
    return sorted(asked)


def _parse(requires: Iterable[str]) -> list[Requirement]:
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ModuleNotFoundError:
        raise EnvironmentMismatch("cb build needs `packaging`: pip install pex packaging") from None
    try:
        return [Requirement(one) for one in requires]
    except InvalidRequirement as fault:
        raise EnvironmentMismatch(f"what the application requires is written wrongly: {fault}") from None


def _closure(wanted: Iterable[Requirement]) -> tuple[dict[str, metadata.Distribution], list[str]]:
    """Return what is installed of all that is needed, by its name, and the requirements that nothing here meets."""
    found: dict[str, metadata.Distribution] = {}
    missing: dict[str, None] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(one, frozenset({""})) for one in wanted]
    while waiting:
        requirement, extras = waiting.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = canonical(requirement.name)
        if name == OURS:
            continue
        installed = _installed(name)
        if installed is None or requirement.url or not requirement.specifier.contains(installed.version, True):
            missing[str(requirement)] = None
            continue
        found[name] = installed
        asked = frozenset({"", *requirement.extras})
        if (name, asked) not in seen:
            seen.add((name, asked))
            waiting += [(one, asked) for one in _parse(installed.requires or ())]
    return dict(sorted(found.items())), sorted(missing)


def _installed(name: str) -> metadata.Distribution | None:
    """Return what is installed by that name; None when nothing is, or only in place, where its files are not listed."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    return None if origin.get("dir_info", {}).get("editable") or found.files is None else found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _resolve(
    wanted: Iterable[Requirement], found: Mapping[str, metadata.Distribution], missing: list[str], directory: Path
) -> None:
    """Have pip fetch or build all wheels, at the versions that are installed here where there are some."""
    pins = directory / "constraints.txt"
    pins.write_text("".join(f"{name}=={one.version}\n" for name, one in found.items()))
    asked = [str(one) for one in wanted if canonical(one.name) != OURS]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check",
               "--constraint", str(pins), "--wheel-dir", str(directory), *asked]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=config.BUILD_TIMEOUT_S, check=False)
    pins.unlink()
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise EnvironmentMismatch(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed here, and pip cannot get"
            f" {'it' if len(missing) == 1 else 'them'}: {'; '.join(said[-2:]) or 'it does not say why'}. Install"
            f" {'it' if len(missing) == 1 else 'them'} into this environment first ({sys.prefix})"
        )


def _of_installed(found: metadata.Distribution, directory: Path) -> None:
    """Write the wheel of something that is installed."""
    contents = {}
    for file in found.files or ():
        inside = file.as_posix()
        if ".." in file.parts or "__pycache__" in file.parts or file.is_absolute():
            continue  # a program in the environment's bin, or what was compiled here
        if file.parent.name.endswith(".dist-info") and file.name in NOT_COPIED:
            continue
        contents[inside] = Path(str(found.locate_file(file))).read_bytes()
    tags = re.findall(r"(?m)^Tag: (\S+)-(\S+)-(\S+)\s*$", found.read_text("WHEEL") or "")
    tag = "-".join(".".join(dict.fromkeys(one[part] for one in tags)) for part in range(3))
    info = next((one.split("/")[0] for one in contents if one.split("/")[0].endswith(".dist-info")), "")
    write(directory / f"{info.removesuffix('.dist-info')}-{tag}.whl", contents, info)


def _ours(directory: Path, requirements: Iterable[str]) -> None:
    """Write the wheel of this library, its compiled modules as they are."""
    root = Path(cloudburst.__file__).parent.parent
    info = f"{OURS}-{RELEASE}.dist-info"
    native = EXTENSION_SUFFIXES[0]
    contents = {
        path.relative_to(root).as_posix(): _neutral(path.read_bytes()) if path.suffix == ".so" else path.read_bytes()
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.is_file() and (path.suffix in (".py", *DATA) or path.name.endswith(native))
    }
    tag = our_tag()
    needs = "".join(f"Requires-Dist: {one}\n" for one in requirements)
    about = f"Metadata-Version: 2.1\nName: {OURS}\nVersion: {RELEASE}\nRequires-Python: ~={tag_version()}.0\n{needs}"
    contents[f"{info}/METADATA"] = about.encode()
    contents[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: cb\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    contents[f"{info}/entry_points.txt"] = b"[console_scripts]\nanna = anna.cli:main\ncb = cloudburst.cli:main\n"
    write(directory / f"{OURS}-{RELEASE}-{tag}.whl", contents, info)


def _neutral(compiled: bytes) -> bytes:
    """Return a compiled module without the directory of this Python, which compilers and linkers write into it.

    It is where libraries are looked for, and what failed assertions name; something as long as it takes its place.
    """
    place = os.fsencode(sys.base_prefix)
    return compiled if place in (b"/usr", b"/usr/local") else compiled.replace(place, b"/".ljust(len(place), b"_"))


@functools.cache
def our_tag() -> str:
    """Return the tag of what is compiled here: this Python's minor version, and this kind of machine."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return f"{python}-{python}-linux_{os.uname().machine}"


def tag_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def write(path: Path, contents: Mapping[str, bytes], info: str) -> None:
    """Write a wheel with these files and its record, the same bytes for the same files."""
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for inside in sorted(contents):
        digest = base64.urlsafe_b64encode(hashlib.sha256(contents[inside]).digest()).rstrip(b"=").decode()
        rows.writerow((inside, f"sha256={digest}", len(contents[inside])))
    rows.writerow((f"{info}/RECORD", "", ""))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:  # compressed once, in the file that they go into
        for inside, data in (*sorted(contents.items()), (f"{info}/RECORD", record.getvalue().encode())):
            entry = zipfile.ZipInfo(inside, LATEST)
            entry.external_attr = (0o755 if inside.endswith(".so") else 0o644) << 16
            file.writestr(entry, data)


def _look(path: Path) -> Wheel:
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
    name, version, *_ = path.name.split("-")
    tops = {one.split("/")[0] for one in names if one.endswith((".py", ".so"))}
    modules = frozenset(one.partition(".")[0] for one in tops if not one.endswith((".dist-info", ".data")))
    return Wheel(canonical(name), version, path, hashlib.sha256(path.read_bytes()).hexdigest(), modules)
