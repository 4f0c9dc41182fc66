"""The making of the one file, by PEX: a program for `sh` and a zip file behind it, which is unpacked once.

The one rule: the same input gives the same bytes. No time, order of a directory, path or name of this machine goes in,
and PEX sees none of its own variables. When the file is first run it becomes a virtual environment in the user's cache,
by its digest; after that a start is one `exec`. All modules are copied into that, because where links lead to does not
exist inside a sandbox. Source: decision record 0039.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from cloudburst import config
from cloudburst.build import wheels
from cloudburst.build.application import Application
from cloudburst.build.manifest import MANIFEST, PACKED, SOURCES, TESTS, Manifest, here
from cloudburst.build.sources import Gathered, gather, gather_tests, imports_of
from cloudburst.errors import CloudburstError, EnvironmentMismatch
from cloudburst.version import RELEASE

EPOCH_S: Final = 315532800
"""1980-01-01, the earliest time that a zip file can name."""

# Runs before anything else of the file, under whatever Python was found or chosen: also one that cannot run the rest.
CHECK: Final = """
def _check():
    import os, sys
    kind = getattr(sys, "implementation", None)
    found = ("%s %s" % (getattr(kind, "cache_tag", "python-2"), getattr(kind, "_multiarch", ""))).strip()
    if found != {needs!r}:
        sys.stderr.write({message!r} % (found, os.uname()[4]))
        sys.exit(3)
_check()
del _check
"""
MESSAGE: Final = (
    "{name}: this file needs Python {python} on {machine}, and was started with %s on %s. Install it (Debian: apt"
    " install python{python}) or name it: PEX_PYTHON=/path/to/python{python}; for other machines, build there\n"
)


ABSENT: Final = (
    "{name}: there is no Python here, and this file needs Python {python} on {machine}. Install it (Debian: apt install"
    " python{python}) or name it: PEX_PYTHON=/path/to/python{python}"
)
NO_PYTHON: Final = b'echo >&2 "Failed to find any of these python binaries on the PATH:"'
"""From here on the shell's part of a file says, in 40 lines, that no Python was found, and ends with 1."""


class BuildFailed(CloudburstError):
    """The file could not be made."""


@dataclass(frozen=True, slots=True)
class Built:
    """A file that was built."""

    path: Path
    bytes: int
    sha256: str
    manifest: Manifest
    left_out: Mapping[str, str]
    unmet: tuple[str, ...]
    """Modules that the application imports and nothing in the file brings."""


def build(application: Application, out: Path, notice: wheels.Notice = lambda _: None) -> Built:
    """Make the file; it replaces `out` when it is whole. Raises RequestError, EnvironmentMismatch, BuildFailed.

    What takes seconds is told to `notice` when it begins.
    """
    _check_python(application)
    sources, tests = gather(application, out), gather_tests(application)
    with tempfile.TemporaryDirectory(prefix="cb-build-") as made:
        place = Path(made)
        (place / "wheels").mkdir()
        brought = wheels.collect(application.requires, place / "wheels", notice)
        manifest = _stage(application, sources, tests, brought, place / "staged")
        packed = place / "packed"
        notice(f"PEX packs {len(sources.files)} files and {len(brought)} packages")
        _pack(manifest, place, packed)
        _replace(packed, out)
    data = out.read_bytes()
    left_out = sources.left_out | {f"{TESTS}/{name}": why for name, why in tests.left_out.items()}
    return Built(
        out, len(data), hashlib.sha256(data).hexdigest(), manifest,
        {name: why for name, why in left_out.items() if why not in ("hidden", "made by tools")},
        _unmet(sources, brought, application),
    )  # fmt: skip


def difference(one: Path, other: Path) -> str:
    """Return what differs between two built files, in words; "" when they are the same to the byte."""
    if one.read_bytes() == other.read_bytes():
        return ""
    with zipfile.ZipFile(one) as ours, zipfile.ZipFile(other) as theirs:
        contents = [{one.filename: (one.CRC, one.date_time) for one in file.infolist()} for file in (ours, theirs)]
    differing = sorted(name for name in {*contents[0], *contents[1]} if contents[0].get(name) != contents[1].get(name))
    return ", ".join(differing[:5]) or "the order of what is in them, or what is before it"


def _check_python(application: Application) -> None:
    if application.python:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        version = ".".join(map(str, sys.version_info[:3]))
        try:
            fits = SpecifierSet(application.python).contains(version, prereleases=True)
        except InvalidSpecifier as fault:
            raise EnvironmentMismatch(f"requires-python of {application.name}: {fault}") from None
        if not fits:
            raise EnvironmentMismatch(f"{application.name} requires Python {application.python}; this is {version}")


def _stage(
    application: Application, sources: Gathered, tests: Gathered, brought: Iterable[wheels.Wheel], staged: Path
) -> Manifest:
    """Write the application's files and the manifest as they will be in the file."""
    files = {f"{SOURCES}/{inside}": path for inside, path in sources.files.items()}
    files |= {f"{TESTS}/{inside}": path for inside, path in tests.files.items()}
    digests = {}
    for inside, path in files.items():
        target = staged / PACKED / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        target.write_bytes(data)
        target.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        digests[inside] = hashlib.sha256(data).hexdigest()
    manifest = Manifest(
        name=application.name, version=application.version, main=application.main, functions=application.functions,
        settings=dict(application.settings), secrets=application.secrets, git=_git(application),
        python=wheels.tag_version(), platform=here(), requires=application.requires,
        distributions=tuple({"name": one.name, "version": one.version, "sha256": one.sha256} for one in brought),
        files=dict(sorted(digests.items())), runtime=RELEASE, stage=application.stage,
    )  # fmt: skip
    manifest = replace(manifest, digest=digest_of(manifest))
    (staged / PACKED / MANIFEST).write_text(manifest.as_json())
    return manifest


def digest_of(manifest: Manifest) -> str:
    """Return the digest of all that a manifest says but its digest."""
    said = asdict(replace(manifest, digest=""))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _git(application: Application) -> dict[str, Any] | None:
    """Return which commit the sources are of, and whether they have changed since."""
    what = application.main if application.alone else "."
    commit = _ask_git(application.root, "log", "-1", "--format=%H", "--", what)
    if not commit:
        return None
    changed = _ask_git(application.root, "status", "--porcelain", "--", what)
    return {"commit": commit.strip(), "changed": bool(changed)}


def _ask_git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=config.GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _pack(manifest: Manifest, place: Path, out: Path) -> None:
    check = place / "check.py"
    machine = manifest.platform.partition(" ")[2]
    message = MESSAGE.format(name=manifest.name, python=manifest.python, machine=machine)
    check.write_text(CHECK.format(needs=manifest.platform, message=message))
    needs = [f"{one['name']}=={one['version']}" for one in manifest.distributions]
    command = [
        sys.executable, "-m", "pex", *needs, "--pre-resolved-dists", str(place / "wheels"), "--intransitive",
        "-D", str(place / "staged"), "-e", "cloudburst.build.entry:main", "--preamble-file", str(check),
        "--interpreter-constraint", f"CPython=={manifest.python}.*", "--venv", "prepend", "--venv-site-packages-copies",
        "--sh-boot", "--compress", "--no-compile", "--no-emit-warnings", "--no-rc", "-o", str(out),
    ]  # fmt: skip
    kept = {name for name in os.environ if name == "PEX_ROOT" or not name.startswith(("PEX", "_PEX"))}
    environment = {name: os.environ[name] for name in kept - {"PYTHONPATH"}}
    environment |= {"SOURCE_DATE_EPOCH": str(EPOCH_S), "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=config.BUILD_TIMEOUT_S, check=False
    )
    if "No module named pex" in done.stderr:
        raise EnvironmentMismatch("cb build needs PEX, which is not installed here: pip install pex packaging")
    if done.returncode != 0:
        raise BuildFailed(f"PEX could not make the file: {done.stderr.strip()[-2000:] or 'it does not say why'}")
    whole = out.read_bytes()
    head, found, rest = whole.partition(b"PK\x03\x04")
    absent = ABSENT.format(name=manifest.name, python=manifest.python, machine=machine)
    out.write_bytes(without_python(head, absent.encode()) + found + rest)


def without_python(head: bytes, message: bytes) -> bytes:
    """Return the shell's part of a file so that it says our message where there is no Python at all, and ends with 3.

    As long as before, because the rest of the file has its distances from the beginning.
    """
    before, begins, after = head.partition(NO_PYTHON)
    said = b"echo >&2 '" + message + b"'\nexit 3\n#"
    room = len(begins) + len(after)
    if not begins or len(said) > room - 1:
        raise BuildFailed("this version of PEX begins its files in a way that is not known here")
    return before + said + b" " * (room - 1 - len(said)) + b"\n"


def _replace(packed: Path, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", delete=False) as beside:
            beside.write(packed.read_bytes())
        os.chmod(beside.name, 0o755)
        os.replace(beside.name, out)
    except OSError as fault:
        raise BuildFailed(f"{out} cannot be written: {fault.strerror}") from None


def _unmet(sources: Gathered, brought: Iterable[wheels.Wheel], application: Application) -> tuple[str, ...]:
    """Return what the application imports that is neither its own, nor in the file, nor part of Python."""
    local = Path(application.main).parent
    own = {Path(inside).relative_to(local).parts[0].removesuffix(".py") for inside in sources.files
           if Path(inside).is_relative_to(local)}  # fmt: skip
    there = own | set(sys.stdlib_module_names) | {name for one in brought for name in one.modules}
    imported = {name for path in sources.files.values() for name in imports_of(path)}
    return tuple(sorted(imported - there))
