"""What a user says of an application is understood, or refused with what to do, before anything is made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cloudburst import config
from cloudburst.build import wheels
from cloudburst.build.application import Application, read
from cloudburst.build.sources import gather
from cloudburst.cli import main
from cloudburst.errors import EnvironmentMismatch, RequestError

Output = pytest.CaptureFixture[str]

INLINE = """
# /// script
# requires-python = ">=3.11"
# dependencies = ["regex>2", "msgpack"]
# [tool.cloudburst]
# name = "counting"
# secrets = ["A_KEY"]
# set = { n = 5, loud = true }
# ///
import beside, package.inside, os

def main(n: int, loud: bool = False): ...
def _hidden(): ...
"""


def written(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        path = directory / name.replace("__", "/").replace("_py", ".py").replace("_toml", ".toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def test_a_file_says_of_itself_what_it_needs(tmp_path: Path) -> None:
    written(tmp_path, app_py=INLINE)
    found = read(tmp_path / "app.py", ["n=7"])
    assert found == Application(
        root=tmp_path, main="app.py", alone=True, name="counting", version="0", requires=("regex>2", "msgpack"),
        python=">=3.11", secrets=("A_KEY",), settings=(("loud", "true"), ("n", "7")), test_data=None,
        functions=("main",),
    )  # fmt: skip


def test_a_file_goes_with_the_modules_beside_it_that_it_imports_and_they_import(tmp_path: Path) -> None:
    written(
        tmp_path, app_py=INLINE, beside_py="import further", further_py="", other_py="", package____init___py="",
    )  # fmt: skip
    (tmp_path / "package").mkdir(exist_ok=True)
    for name in ("__init__.py", "inside.py", "data.txt"):
        (tmp_path / "package" / name).write_text("")
    gathered = gather(read(tmp_path / "app.py"))
    assert sorted(gathered.files) == [
        "app.py", "beside.py", "further.py", "package/__init__.py", "package/data.txt", "package/inside.py",
    ]  # fmt: skip


def test_requirements_of_a_directory_are_its_file_of_requirements(tmp_path: Path) -> None:
    written(tmp_path, app_py="")
    (tmp_path / "requirements.txt").write_text("# what it needs\nmsgpack >= 1 # to pack\n\nnumpy\n")
    assert read(tmp_path).requires == ("msgpack >= 1", "numpy")
    (tmp_path / "requirements.txt").write_text("numpy\n-r other.txt\n")
    with pytest.raises(RequestError, match=r"requirements.txt:2: '-r other.txt' is an option"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("files", "settings", "says"),
    [
        ({"a_py": "", "b_py": ""}, [], r"There is no main.py or app.py; say it in pyproject.toml"),
        ({"main_py": "def main(n, m): ..."}, ["k=1"], "no function of main.py has a parameter 'k'; there are m, n"),
        ({"main_py": ""}, ["k"], "'k' is no setting: NAME=VALUE"),
        ({"main_py": "def main(:"}, [], "main.py is no Python of this version"),
        ({"main_py": "", "pyproject_toml": "[tool.cloudburst]\nsecret = 1"}, [], "has secret; what can stand there"),
        ({"main_py": "", "pyproject_toml": "[tool.cloudburst]\nmain = 'x.py'"}, [], "there is no such file"),
        ({"main_py": "", "pyproject_toml": "[project\n"}, [], "pyproject.toml: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, files: dict[str, str], settings: list[str], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        read(written(tmp_path, **files), settings)


def test_code_that_holds_a_key_is_refused_with_its_line(tmp_path: Path) -> None:
    key = "AKIA" + "A" * 16
    written(tmp_path, main_py=f"\nKEY = '{key}'\n")
    with pytest.raises(RequestError, match=r"main.py:2 holds what looks like a secret: read it from the environment"):
        gather(read(tmp_path))


def test_links_to_what_is_outside_are_left_out(tmp_path: Path) -> None:
    written(tmp_path, app__main_py="", outside_py="")
    (tmp_path / "app/link.py").symlink_to(tmp_path / "outside.py")
    gathered = gather(read(tmp_path / "app"))
    assert (list(gathered.files), gathered.left_out) == (["main.py"], {"link.py": "a link to what is outside"})


def test_more_than_can_be_packed_is_refused_with_the_largest(tmp_path: Path) -> None:
    written(tmp_path, main_py="")
    with open(tmp_path / "video.bin", "wb") as file:
        file.truncate(config.BUILD_BYTES_MAX + 1)
    with pytest.raises(RequestError, match=r"BUILD_BYTES_MAX is 268,435,456. The largest: video.bin \(268,435,457\)"):
        gather(read(tmp_path))


def test_what_is_not_installed_and_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip looks nowhere here, as without a network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    told: list[str] = []
    with pytest.raises(EnvironmentMismatch, match=r"no-such-thing>=7 is not installed here, and pip cannot get it"):
        wheels.collect(["no-such-thing>=7"], tmp_path, told.append)
    [said] = told  # before pip looks for it, which may take long
    assert said.endswith(" requirements: no-such-thing>=7 not installed here")


def test_what_pip_has_to_fetch_goes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package from a directory, which is where pip is told to look, beside all others as they are installed here."""
    (tmp_path / "shelf").mkdir()
    installed = wheels.collect([], tmp_path / "shelf")
    info = "tiny_thing-1.0.dist-info"
    contents = {
        "tiny_thing.py": b"", f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }  # fmt: skip
    wheels.write(tmp_path / "shelf/tiny_thing-1.0-py3-none-any.whl", contents, info)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    (tmp_path / "fetched").mkdir()
    fetched = wheels.collect(["tiny-thing"], tmp_path / "fetched")
    there = {one.name: one.version for one in installed}
    assert {one.name: one.version for one in fetched} == there | {"tiny-thing": "1.0"}


def test_a_python_that_the_application_refuses_is_an_environment_mismatch(tmp_path: Path, capsys: Output) -> None:
    written(tmp_path, main_py="", pyproject_toml="[project]\nname = 'x'\nrequires-python = '<3'\n")
    assert main(["build", str(tmp_path), "-o", str(tmp_path / "out")]) == 3
    assert "x requires Python <3; this is 3." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_build_never_replaces_the_program(tmp_path: Path, capsys: Output) -> None:
    written(tmp_path, main_py="")
    for out in (tmp_path, tmp_path / "main.py"):
        assert main(["build", str(tmp_path), "-o", str(out)]) == 2
        assert "say another with -o" in capsys.readouterr().err


def test_the_commit_of_the_sources_is_known_and_whether_they_have_changed(tmp_path: Path) -> None:
    from cloudburst.build.packing import _git

    written(tmp_path, main_py="")
    assert _git(read(tmp_path)) is None
    about = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "main.py"], [*about, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    found = _git(read(tmp_path))
    assert found is not None
    assert (len(found["commit"]), found["changed"]) == (40, False)
    (tmp_path / "main.py").write_text("x = 1\n")
    changed = _git(read(tmp_path))
    assert changed == {"commit": found["commit"], "changed": True}
