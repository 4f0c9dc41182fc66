"""Stages of real shell pipelines: what they pass on, how they find each other, and how they end together."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import cloudburst as cb
from cloudburst import config
from cloudburst.burst.tasks.pipes import announced, first_bytes, gone, pipe_of, reader_is_a_stage
from cloudburst.burst.tasks.tokens import MARK, Shared, Token, read, seal_of
from cloudburst.errors import RequestError
from tests.cloudburst.burst.tasks.mapped import environment, files, no_program_is_left, node_with, shell

THREE = (
    "$CB map -j 4 'tr a-z A-Z < {}' *.txt | $CB map -j 4 'sed s/LINE/Row/ {} > {out}' | $CB map -k 'echo {/}; cat {}'"
)


@pytest.fixture(scope="module")
def node(home: object) -> Iterator[cb.Client]:
    with node_with(2) as client:
        yield client


def rows(count: int) -> set[str]:
    return {f"Row {number}" for number in range(count)}


def test_three_stages_do_what_they_would_one_after_the_other(node: cb.Client, tmp_path: Path) -> None:
    names, before = files(tmp_path, 20), set(node.reserved().scan("\0cb/queue/"))
    done = shell(f"{THREE} > out", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = (tmp_path / "out").read_text().splitlines()
    assert dict(zip(lines[::2], lines[1::2])) == {name: f"Row {number}" for number, name in enumerate(names)}
    assert set(node.reserved().scan("\0cb/queue/")) <= before


def test_results_of_any_length_pass_whether_they_are_told_along_or_kept_in_the_store(
    node: cb.Client, tmp_path: Path
) -> None:
    sizes = [0, 1, *(config.QUEUE_INLINE_BYTES + by for by in (-1, 0, 1)), 300_000]
    before = set(node.reserved().scan("\0cb/queue/"))
    stages = "$CB map -k 'head -c {} /dev/zero' " + " ".join(map(str, sizes))
    done = shell(f"{stages} | $CB map 'cat {{}}' | $CB map 'wc -c < {{}}' > out", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(map(int, (tmp_path / "out").read_text().split())) == sizes
    assert set(node.reserved().scan("\0cb/queue/")) <= before


def test_what_goes_from_stage_to_stage_is_a_token_and_no_data(node: cb.Client, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a marked line\n")
    reads, writes = os.pipe()
    with subprocess.Popen(
        ["bash", "-c", "exec $CB map 'cat {}' in.txt"],
        cwd=tmp_path, env=environment(), stdout=writes, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as writer:  # fmt: skip
        os.close(writes)
        before = os.dup(0)
        os.dup2(reads, 0)  # its reader is this process, at its standard input, as a stage's would be
        try:
            with announced(0):
                line, plain = first_bytes(0)
        finally:
            os.dup2(before, 0)
            os.close(before)
            os.close(reads)
        assert writer.wait(30.0) == 0  # nobody takes its results: its reader has gone
    assert plain == b""
    assert line.startswith(MARK)
    assert b"marked" not in line
    assert read(line, time.time()).directory == node.status()["directory"]


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        ("$CB map -k 'cat {}' *.txt | grep 'line 1'", ["line 1"]),
        ("$CB map -k 'cat {}' *.txt | tee copy | $CB map -k 'echo \"<{}>\"' -", ["<line 0>", "<line 1>", "<line 2>"]),
        ("printf '%s\\n' *.txt | $CB map -k 'cat {}' -", ["line 0", "line 1", "line 2"]),
        ("$CB map -k 'cat {}' *.txt | cat | cat", ["line 0", "line 1", "line 2"]),
    ],
)
def test_at_the_ends_there_is_plain_text(node: cb.Client, tmp_path: Path, script: str, lines: list[str]) -> None:
    files(tmp_path, 3)
    done = shell(script, tmp_path)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert done.stdout.decode().splitlines() == lines


def test_head_ends_all_stages_and_leaves_nothing(node: cb.Client, tmp_path: Path) -> None:
    files(tmp_path, 30)
    script = "$CB map 'sleep 0.1; cat {}' *.txt | $CB map 'sleep 0.1; cat {}' | head -1; echo ${PIPESTATUS[@]}"
    done = shell(script, tmp_path)
    line, codes = done.stdout.decode().splitlines()
    assert line.startswith("line ")
    assert (codes, done.stderr) == ("0 0 0", b"")
    assert no_program_is_left()


@pytest.mark.parametrize("halt", ["now", "never"])
def test_a_middle_stage_that_fails_ends_all_with_its_code_and_says_why(
    node: cb.Client, tmp_path: Path, halt: str
) -> None:
    files(tmp_path, 12)
    middle = f"$CB map --halt {halt} 'grep -v \"line 7\" {{}}'"
    done = shell(f"$CB map 'cat {{}}' *.txt | {middle} | $CB map 'cat {{}}'; echo ${{PIPESTATUS[@]}}", tmp_path)
    *lines, codes = done.stdout.decode().splitlines()
    assert codes == "1 1 1"
    assert b"exit code 1" in done.stderr
    assert b"the stage before: " in done.stderr
    if halt == "never":
        assert set(lines) == {f"line {number}" for number in range(12) if number != 7}
    assert no_program_is_left()


def test_a_stage_that_is_killed_is_no_end_of_input(node: cb.Client, tmp_path: Path) -> None:
    files(tmp_path, 4)
    first = "bash -c 'echo $$ > pid; exec $CB map \"sleep 1000; cat {}\" *.txt'"
    script = f"{first} | $CB map 'cat {{}}'; echo ${{PIPESTATUS[@]}}"
    process = subprocess.Popen(
        ["bash", "-c", script], cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not any(row.get("function") == "cb-map" for row in node.status()["executors"]):
        os.sched_yield()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    out, said = process.communicate(timeout=60)
    assert out.decode().split() == ["137", "1"]
    assert b"the stage before has ended without a word" in said
    assert no_program_is_left()


def test_workers_that_are_killed_under_a_pipeline_change_nothing(node: cb.Client, tmp_path: Path) -> None:
    files(tmp_path, 30)
    slow = THREE.replace("'tr", "'sleep 0.1; tr").replace("'sed", "'sleep 0.1; sed")
    process = subprocess.Popen(
        ["bash", "-c", slow], cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    killed: set[int] = set()
    while len(killed) < 4 and process.poll() is None:
        pids = {row["pid"] for row in node.status()["executors"] if row.get("function") == "cb-map"} - killed
        for pid in sorted(pids)[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(killed) == 4
    assert sorted(out.decode().splitlines()[1::2]) == sorted(rows(30))


# -- tokens


def token(node: cb.Client) -> Token:
    return Token("\0cb/queue/some", "owner", node.status()["directory"], time.time() + 60)


def test_a_token_says_what_it_is_for_to_whoever_has_the_key(node: cb.Client) -> None:
    made = token(node)
    assert read(made.signed(seal_of(made.directory)), time.time()) == made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: line[:60] + bytes([line[60] ^ 1]) + line[61:], "signed with another key|no token"),
        (lambda line: line[:-9] + b"\n", "signed with another key"),
        (lambda line: line[:40], "no token"),
    ],
)
def test_a_token_that_was_changed_is_refused(node: cb.Client, change: object, said: str) -> None:
    made = token(node)
    with pytest.raises(RequestError, match=said):
        read(change(made.signed(seal_of(made.directory))), time.time())  # type: ignore[operator]


def test_a_token_of_another_key_one_that_has_expired_and_one_to_do_else_are_refused(node: cb.Client) -> None:
    made = token(node)
    seal = seal_of(made.directory)
    for line, now_s, said in (
        (made.signed(Shared(b"another" * 5)), time.time(), "another key"),
        (made.signed(seal), time.time() + 61, "expired"),
        (replace(made, right="write").signed(seal), time.time(), "'write'"),
    ):
        with pytest.raises(RequestError, match=said):
            read(line, now_s)


def test_a_stage_that_is_given_a_forged_token_says_so_and_does_nothing(node: cb.Client, tmp_path: Path) -> None:
    (tmp_path / "forged").write_bytes(token(node).signed(Shared(b"another" * 5)))
    done = shell("cat forged | $CB map 'touch ran; cat {}'", tmp_path)
    assert done.returncode == 2
    assert b"signed with another key" in done.stderr
    assert not (tmp_path / "ran").exists()


# -- finding each other


def test_a_pipe_whose_reader_is_another_program_or_gone_has_no_stage(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    with subprocess.Popen(["cat"], stdin=reads, stdout=subprocess.DEVNULL) as cat:
        os.close(reads)
        assert not reader_is_a_stage(writes)
        assert not gone(writes)
        cat.kill()
        cat.wait()
    assert gone(writes)
    assert not reader_is_a_stage(writes)
    os.close(writes)


def test_no_pipe_has_no_stage(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        assert pipe_of(file.fileno()) is None
        assert not reader_is_a_stage(file.fileno())


def test_what_is_read_says_itself_what_it_is() -> None:
    for given, found in (
        (MARK + b"abc.def\n", (MARK + b"abc.def\n", b"")),
        (b"plain\nlines\n", (b"", b"plain\nlines\n")),
        (b"", (b"", b"")),
    ):
        reads, writes = os.pipe()
        os.write(writes, given)
        os.close(writes)
        assert first_bytes(reads) == found
        os.close(reads)
