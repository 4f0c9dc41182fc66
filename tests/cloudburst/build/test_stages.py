"""Built files as stages of a shell's pipeline: what they pass on, what they print, and what killed workers change."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloudburst as cb
from cloudburst import local
from cloudburst.burst.tasks.hand import pieces_of, takes
from cloudburst.burst.tasks.tokens import MARK, read
from cloudburst.client import Client
from cloudburst.membership import Membership
from tests.cloudburst.build.conftest import RUN_S, environment
from tests.cloudburst.burst.tasks.mapped import no_program_is_left

MARKS = {"a": "550d7456", "b": "a20cadbf"}


@pytest.fixture(scope="module")
def node(place: Path, wc: Path, greeter: Path) -> Iterator[cb.Client]:
    """A node that stays while pipelines come and go, and books to put through them."""
    for number in range(8):
        (place / f"b{number}.txt").write_text("a " * (number + 1) + "b\n")
    with Client(lambda: Membership(local.ensure(place / "piped", 2))) as client:
        yield client


def shell(script: str, place: Path, greeter: Path) -> subprocess.Popen[str]:
    """Run a pipeline, in which `$WC` and `$GREETER` are built files, without a terminal."""
    words = {"WC": str(place / "wc"), "GREETER": str(greeter), "GREETER_KEY": "k"}
    node = {"CLOUDBURST_DIR": str(place / "piped"), "ANNA_DIR": str(place / "piped-store")}
    return subprocess.Popen(
        ["bash", "-c", script], cwd=place, env=environment(place) | node | words, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def said(script: str, place: Path, greeter: Path) -> tuple[list[str], str]:
    """Return the lines that a pipeline prints, and what it says of itself."""
    out, err = shell(script, place, greeter).communicate(timeout=RUN_S)
    return out.splitlines(), err


def greetings(books: int) -> list[str]:
    return sorted(
        line for number in range(books) for line in (f"Hello a {number + 1} {MARKS['a']}", f"Hello b 1 {MARKS['b']}")
    )


def test_stages_of_different_files_pass_results_on(node: cb.Client, place: Path, greeter: Path) -> None:
    lines, err = said('$WC up b?.txt | $GREETER up | cat; echo "${PIPESTATUS[@]}"', place, greeter)
    assert (sorted(lines[:-1]), lines[-1], err) == (greetings(8), "0 0 0", "")


def test_three_stages_into_a_file_and_one_of_them_is_any_program(node: cb.Client, place: Path, greeter: Path) -> None:
    script = "$WC up -k b[0-3].txt | $WC map 'cat {}' | $GREETER up > out; echo ${PIPESTATUS[@]}"
    assert said(script, place, greeter) == (["0 0 0"], "")
    assert sorted((place / "out").read_text().splitlines()) == greetings(4)


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        ("$WC up -k b[01].txt", ['{"a": 1, "b": 1}', '{"a": 2, "b": 1}']),
        ("printf 'b0.txt\\nb1.txt\\n' | $WC up -k", ['{"a": 1, "b": 1}', '{"a": 2, "b": 1}']),
        ("$WC up b?.txt | grep '\"a\": 3'", ['{"a": 3, "b": 1}']),
    ],
)
def test_at_the_ends_there_is_text(
    node: cb.Client, place: Path, greeter: Path, script: str, lines: list[str]
) -> None:
    assert said(script, place, greeter) == (lines, "")


def test_what_is_passed_on_can_be_chosen(
    node: cb.Client, place: Path, greeter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token can go through a file; results can go to a stage, whose inputs they then are, line by line."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))  # this user's key is there
    first = shell("exec $WC up --emit token b0.txt b1.txt > token", place, greeter)
    while not (place / "token").exists() or not (place / "token").read_bytes().endswith(b"\n"):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    line = (place / "token").read_bytes()
    assert line.startswith(MARK)
    assert read(line, time.time()).until_s > time.time()
    assert sorted(said("$GREETER up < token", place, greeter)[0]) == greetings(2)
    assert first.communicate(timeout=RUN_S) == ("", "")
    (place / "names").write_text("b0.txt\nb1.txt\n")
    lines, _ = said("$WC map --emit data 'cat {}' names | $WC up -k", place, greeter)
    assert lines == ['{"a": 1, "b": 1}', '{"a": 2, "b": 1}']


def test_what_a_function_raises_fails_its_task_and_is_told(node: cb.Client, place: Path, greeter: Path) -> None:
    (place / "bad.txt").write_text("poison\n")
    lines, err = said('$WC up b0.txt bad.txt | $GREETER up; echo "${PIPESTATUS[@]}"', place, greeter)
    assert (sorted(lines[:-1]), lines[-1]) == (greetings(1), "1 1")
    assert "greeter up: 1 of 2 tasks have failed" in err
    assert "ValueError: poison in {}" in err


def test_workers_that_are_killed_change_nothing(node: cb.Client, place: Path, greeter: Path) -> None:
    """Executors in turn, and once what forks on one: each task has one result, and nothing of any is left."""
    script = '$WC up b?.txt | $GREETER up --env PAUSE=0.3; echo "${PIPESTATUS[@]}"'
    process = shell(script, place, greeter)
    killed: set[int] = set()
    forks = 0
    while len(killed) < 3 and process.poll() is None:
        rows = {row["pid"] for row in node.status()["executors"] if row.get("function") == "cb-map"} - killed
        for pid in sorted(rows)[:1]:
            if not forks and (hand := hand_of(pid)):
                os.kill(hand, signal.SIGKILL)
                forks += 1
            elif forks:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        time.sleep(0.02)
    out, err = process.communicate(timeout=RUN_S)
    *lines, codes = out.splitlines()
    assert (sorted(lines), codes, err) == (greetings(8), "0 0", "")
    assert (len(killed) > 0, forks) == (True, 1)
    assert no_program_is_left()


def hand_of(executor: int) -> int:
    """Return the process that forks for an executor's tasks, 0 when there is none."""
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and b"cloudburst.burst.tasks.hand" in Path("/proc", name, "cmdline").read_bytes():
                parent = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
                if parent == executor:
                    return int(name)
        except OSError:
            pass
    return 0


def test_a_later_stage_runs_where_the_first_one_says(node: cb.Client, place: Path, greeter: Path) -> None:
    lines, err = said("$WC up --emit token b0.txt | $GREETER up --hosts 2 -; echo ${PIPESTATUS[@]}", place, greeter)
    assert lines == ["0 2"]
    assert "--hosts is for the first stage: this one runs where its input is" in err


# -- what a function takes and gives


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, b""), ("text", b"text\n"), ("lines\n", b"lines\n"), (b"\x00", b"\x00"), ({"a": 1}, b'{"a": 1}\n'),
        ([1, 2], b"[1, 2]\n"), ("ä", "ä\n".encode()), ((one for one in ("a", {"b": 1}, None)), b'a\n{"b": 1}\n'),
        ("\udcff", b"\xff\n"), (0, b"0\n"),
    ],
)  # fmt: skip
def test_what_is_returned_is_text_bytes_or_lines_of_json(value: object, written: bytes) -> None:
    assert b"".join(pieces_of(value)) == written


async def later() -> str:
    return "later"


async def several() -> object:
    yield 1
    yield "two"


def test_coroutines_are_waited_for() -> None:
    assert b"".join(pieces_of(later())) == b"later\n"
    assert b"".join(pieces_of(several())) == b"1\ntwo\n"


def test_what_is_neither_text_nor_json_is_refused() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        list(pieces_of(object()))


def test_an_input_is_what_the_function_says_that_it_takes(tmp_path: Path) -> None:
    def path(one: Path, n: int = 1) -> None: ...
    def content(one: bytes) -> None: ...
    def text(one): ...  # type: ignore[no-untyped-def]
    def number(one: int) -> None: ...
    def nothing() -> None: ...

    (tmp_path / "file").write_bytes(b"\xff")
    name = str(tmp_path / "file")
    assert (takes(path)(name), takes(content)(name), takes(text)(name)) == (tmp_path / "file", b"\xff", name)
    assert (takes(number)("12"), takes(content)("no file")) == (12, b"no file")
    with pytest.raises(TypeError, match=r"nothing\(\) takes no input: def nothing\(path\): …"):
        takes(nothing)
