"""A built file is one program: it runs, tests itself and says what it is, and the same input gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest

from cloudburst import sandbox
from cloudburst.build.manifest import Manifest, here, parse
from cloudburst.build.packing import difference, digest_of
from cloudburst.errors import EnvironmentMismatch
from cloudburst.sandbox import Sandbox
from tests.cloudburst.build.conftest import ROOT, environment, run
from tests.pythons import Python, others


def cb(home: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return run(home, sys.executable, "-m", "cloudburst", *words)


def test_the_pages_program_runs_as_it_is_there(place: Path) -> None:
    done = run(place, sys.executable, "wordcount.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["144", "       3 a", "       3 b", "       1 c", "       1 d"]


def test_a_built_file_runs_with_what_was_set_and_what_is_given(wc: Path, place: Path) -> None:
    assert run(place, wc, "run").stdout == "       3 a\n       3 b\n       1 c\n"
    assert run(place, wc, "run", "--n", "1").stdout == "       3 a\n"
    assert run(place, wc, "run", "books/b*", "4").stdout == "       1 b\n       1 d\n"
    assert run(place, wc, "run", "count", "books/bd.txt").stdout == "Counter({'b': 1, 'd': 1})\n"


def test_it_needs_nothing_of_where_it_was_built(wc: Path, tmp_path: Path) -> None:
    """Neither the sources, nor this library, nor modules of the user's."""
    moved = tmp_path / "moved"
    shutil.copy(wc, moved)
    (tmp_path / "msgpack.py").write_text("raise RuntimeError\n")
    (tmp_path / "books").mkdir()
    (tmp_path / "books/x.txt").write_text("x y x")
    home = wc.parent
    done = run(home, moved, "run", "--n=1", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.stdout, done.stderr) == ("       2 x\n", "")


def test_it_tests_itself(wc: Path, place: Path) -> None:
    done = run(place, wc, "test", "--json")
    assert done.returncode == 0, done.stdout
    assert [(one["name"], one["ok"]) for one in json.loads(done.stdout)] == [("small", True)]
    assert run(place, wc, "test", "large").stderr == "wordcount test: no case large; there are small\n"


def test_info_says_what_it_was_made_of(wc: Path, place: Path) -> None:
    said = run(place, wc, "info", "--json").stdout
    manifest = parse(said)
    assert set(json.loads(said)) == {one.name for one in fields(Manifest)}
    assert manifest.digest == digest_of(manifest)
    assert (manifest.name, manifest.main, manifest.stage) == ("wordcount", "wordcount.py", "stage")
    assert manifest.functions == ["count", "stage", "main"]
    assert manifest.settings == {"n": "3"}
    assert manifest.files["app/wordcount.py"] == hashlib.sha256((place / "wordcount.py").read_bytes()).hexdigest()
    assert {"cloudburst", "msgpack", "uvloop"} <= {one["name"] for one in manifest.distributions}
    assert (manifest.python, manifest.platform) == (f"{sys.version_info[0]}.{sys.version_info[1]}", here())
    assert "set        n=3\n" in run(place, wc, "info").stdout


def test_up_brings_its_functions_and_calls_find_them(wc: Path, place: Path) -> None:
    up = subprocess.Popen([wc, "up", "--hosts", "1", "--json"], env=environment(place), stdout=subprocess.PIPE)
    try:
        assert up.stdout is not None
        address = _address(json.loads(up.stdout.readline()))
        book = place / "books/ab.txt"
        for command in ([sys.executable, "-m", "cloudburst"], [wc]):  # without a word of where it is
            done = run(place, *command, "call", "count", book, CLOUDBURST_DIR="")
            assert (done.stdout, done.stderr) == ("Counter({'a': 3, 'b': 2, 'c': 1})\n", "")
        refused = run(place, wc, "call", "main", CLOUDBURST_DIR="")
        assert refused.returncode == 2
        assert "main is in wordcount.py, and not declared: write @cb.function above it" in refused.stderr
        done = run(place, wc, "call", "--dir", address, "count", book)
        assert (done.stdout, done.stderr) == ("Counter({'a': 3, 'b': 2, 'c': 1})\n", "")
        assert run(place, wc, "run", "--dir", address, "--n", "1").stdout == "       3 a\n"
        assert "count(path)" in cb(place, "functions", "--dir", address).stdout
    finally:
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=30)


def _address(shown: object) -> str:
    """Return the directory of the first host that `up --json` shows."""
    hosts = shown["hosts"] if isinstance(shown, dict) else shown
    return str(hosts[0]["address"]).removeprefix("unix:")


def test_its_functions_run_in_a_sandbox_that_hides_where_it_was_unpacked(wc: Path, place: Path) -> None:
    """The modules were links to a directory that is not there in a sandbox, and no executor started."""
    try:
        sandbox.require(Sandbox())
    except EnvironmentMismatch as fault:
        pytest.skip(f"LOUD: no sandbox can be had here: {fault}")
    (place / "confined").mkdir()
    node = {"CLOUDBURST_DIR": str(place / "confined/node"), "ANNA_DIR": str(place / "confined/store")}
    done = run(place, wc, "run", "--n", "1", CLOUDBURST_SANDBOX=f"bwrap,read={place}/books", **node)
    assert (done.stdout, done.stderr) == ("       3 a\n", "")


def test_two_builds_are_the_same_to_the_byte(wc: Path, place: Path, tmp_path: Path) -> None:
    """The second elsewhere, from a copy that is older, with another cache, hash seed and time zone."""
    for name in ("wordcount.py", "tests"):
        copy = shutil.copy if (place / name).is_file() else shutil.copytree
        copy(place / name, tmp_path / name)
    os.utime(tmp_path / "wordcount.py", (1e9, 1e9))
    (tmp_path / "tests/small").chmod(0o700)
    built = run(
        tmp_path, sys.executable, "-m", "cloudburst", "build", tmp_path / "wordcount.py", "-o", "other",
        "--test-data", tmp_path / "tests", "--set", "n=3", PYTHONHASHSEED="7", TZ="Asia/Tokyo",
        PEX_ROOT=str(tmp_path / "another"),
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert difference(wc, tmp_path / "other") == ""


def test_what_differs_between_two_builds_is_named(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "2")):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr(zipfile.ZipInfo("same", (1980, 1, 1, 0, 0, 0)), "same")
            file.writestr(zipfile.ZipInfo("app/main.py", (1980, 1, 1, 0, 0, 0)), text)
    assert difference(tmp_path / "a", tmp_path / "b") == "app/main.py"


def test_nothing_of_this_machine_is_inside(wc: Path, place: Path) -> None:
    places = [str(place), str(ROOT), sys.prefix, sys.base_prefix, str(Path.home()), platform.node()]
    marks = [one.encode() for one in places if len(one) > 5 and one not in ("/usr/local", "localhost")]
    assert marks
    with zipfile.ZipFile(wc) as file:
        ours = [one for one in file.namelist() if not one.startswith(".deps/") or "/cloudburst-" in one]
        assert any(name.endswith(".so") for name in ours)
        found = {(name, mark) for name in ours for mark in marks if mark in file.read(name)}
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    head = wc.read_bytes().partition(b"PK\x03\x04")[0]
    assert found == set()
    assert [mark for mark in marks if mark in head] == []


PRETEND = """
import runpy, sys
sys.implementation.cache_tag = "cpython-399"
sys.argv = [{file!r}, "info"]
runpy.run_path({file!r}, run_name="__main__")
"""


def test_another_python_is_told_what_is_needed_before_anything_starts(wc: Path, place: Path) -> None:
    done = run(place, sys.executable, "-c", PRETEND.format(file=str(wc)))
    assert (done.returncode, done.stdout) == (3, "")
    needed = f"needs Python {sys.version_info[0]}.{sys.version_info[1]} on "
    assert needed in done.stderr
    assert "was started with cpython-399" in done.stderr
    assert "PEX_PYTHON=" in done.stderr


def test_where_there_is_no_python_at_all_it_ends_with_3(wc: Path, place: Path) -> None:
    done = run(place, "/bin/sh", wc, "info", PATH="/nowhere", PEX_ROOT=str(place / "empty"))
    needed = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"wordcount: there is no Python here, and this file needs Python {needed} on {os.uname().machine}-linux-gnu."
        f" Install it (Debian: apt install python{needed}) or name it: PEX_PYTHON=/path/to/python{needed}\n"
    )


OTHER = """#!/bin/sh
exec {python} -c 'import runpy, sys
sys.implementation.cache_tag, sys.version_info = "cpython-312", (3, 12, 4, "final", 0)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")' "$@"
"""


def test_where_there_is_only_another_minor_version_it_ends_with_3(wc: Path, place: Path, tmp_path: Path) -> None:
    """It is found by its name, as the file's first lines look for one, and is told before it can fail."""
    (tmp_path / "python3.12").write_text(OTHER.format(python=sys.executable))
    (tmp_path / "python3.12").chmod(0o755)
    for variables in ({"PATH": str(tmp_path)}, {"PEX_PYTHON": str(tmp_path / "python3.12")}):
        done = run(place, "/bin/sh", wc, "up", "books/x.txt", PEX_ROOT=str(place / "empty"), **variables)
        assert (done.returncode, done.stdout) == (3, "")
        needed = f"{sys.version_info[0]}.{sys.version_info[1]}"
        assert done.stderr.startswith(f"wordcount: this file needs Python {needed} on ")
        assert "was started with cpython-312" in done.stderr


def test_every_other_python_of_this_machine_is_told_what_is_needed(wc: Path, place: Path, tmp_path: Path) -> None:
    """Real ones, from 2.7 on: by their names in PATH, named by a variable, and started with the file."""
    if not others():
        pytest.skip("NO OTHER PYTHON IS HERE: none in PATH, none of pyenv's")
    for one in others():
        alone = tmp_path / one.minor
        alone.mkdir()
        (alone / f"python{one.minor}").symlink_to(one.path)
        starts: tuple[tuple[list[str], dict[str, str]], ...] = (
            (["/bin/sh"], {"PATH": str(alone)}), (["/bin/sh"], {"PEX_PYTHON": one.path}), ([one.path], {}),
        )  # fmt: skip
        for words, variables in starts:
            done = run(place, *words, wc, "up", "books/x.txt", PEX_ROOT=str(place / "empty"), **variables)
            assert (done.returncode, done.stdout) == (3, ""), (one, done.stderr)
            [line] = done.stderr.splitlines()
            needed = f"{sys.version_info[0]}.{sys.version_info[1]}"
            assert line.startswith(f"wordcount: this file needs Python {needed} on "), one
            assert f"was started with {named(one)} on " in line
    assert not (place / "empty").exists()


def named(python: Python) -> str:
    """Return what an interpreter calls itself and its machine."""
    if python.minor.startswith("2."):
        return "python-2"
    ask = "import sys; print(sys.implementation.cache_tag, sys.implementation._multiarch)"
    return subprocess.run([python.path, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("words", "says"),
    [([], "usage:"), (["build"], "not in a built file"), (["info", "--wide"], "there is --json")],
)
def test_what_it_cannot_do_is_a_usage_error(wc: Path, place: Path, words: list[str], says: str) -> None:
    done = run(place, wc, *words)
    assert done.returncode == 2
    assert says in done.stdout + done.stderr
