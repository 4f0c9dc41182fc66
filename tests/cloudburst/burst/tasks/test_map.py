"""`cb map`: any program over many inputs, while workers die and users change their minds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import cloudburst as cb
from cloudburst.burst.tasks.items import Item, Keys
from cloudburst.burst.tasks.mapping import Mapping, shares_of
from cloudburst.burst.tasks.outputs import JOURNAL
from cloudburst.burst.tasks.programs import Orders
from cloudburst.burst.tasks.sources import Lines, Words
from cloudburst.burst.tasks.templates import Template, name_of
from cloudburst.cluster import Cluster
from tests.cloudburst.burst.tasks.mapped import begin, cb_map, files, interrupted, marked, no_program_is_left, node_with

HOSTILE = (
    "plain.txt", "with blanks .txt", "it's.txt", 'say "hi".txt', "$(touch pwned).txt", "`touch pwned`.txt",
    "; touch pwned #.txt", "a\nnewline.txt", "*.txt", "back\\slash.txt", "-n.txt", "{}.txt", "{out}", "ünïcödé.txt",
    "$HOME ${1}.txt", "'\"'.txt",
)  # fmt: skip


@pytest.fixture(scope="module")
def node(home: object) -> Iterator[cb.Client]:
    with node_with(2) as client:
        yield client


def orders(command: str, cwd: Path, timeout_s: float | None = None) -> Orders:
    return Orders(command, str(cwd), os.environ["PATH"], {}, timeout_s)


def words(command: str, *inputs: str) -> Words:
    return Words(inputs, Keys(command))


# -- the command line


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["{}", '"{}"', "'{}'", "x{}x", '"x{}"x'])
def test_what_an_input_holds_is_never_part_of_the_script(tmp_path: Path, place: str, name: str) -> None:
    script = Template.of(f"printf %s {place}")
    said = subprocess.run(script.arguments(name, "out"), cwd=tmp_path, capture_output=True, check=True)
    assert said.stdout.decode() == place.replace('"', "").replace("'", "").replace("{}", name)
    assert os.listdir(tmp_path) == []


def test_placeholders_are_the_input_its_last_part_and_it_without_extension() -> None:
    script = Template.of("echo {} {/} {.} {out}")
    said = subprocess.run(script.arguments("a/b.tar.gz", "to/c"), capture_output=True, check=True)
    assert (said.stdout, script.writes) == (b"a/b.tar.gz b.tar.gz a/b.tar to/c\n", True)


def test_other_braces_are_left_alone_and_a_command_without_a_place_has_its_input_at_the_end() -> None:
    said = subprocess.run(Template.of("echo '{print $0}' {x}").arguments("in", ""), capture_output=True, check=True)
    assert said.stdout == b"{print $0} {x} in\n"


def test_equal_items_are_tasks_of_their_own_and_the_same_ones_in_the_next_run() -> None:
    first, second = ([item.key for item in words("echo", "a", "a", "b").take(9, None)] for _ in range(2))
    assert first == second
    assert len(set(first)) == 3
    assert [item.key for item in words("other", "a", "a", "b").take(9, None)] != first


def test_outputs_are_named_as_inputs_are_as_far_as_a_file_can_be() -> None:
    assert name_of("a/b.txt") == "b.txt"
    assert name_of("..").startswith("item-")
    assert len(name_of("é" * 300).encode()) <= 120


def test_lines_are_read_only_as_far_as_there_is_room() -> None:
    reads, writes = os.pipe()
    os.write(writes, b"a\nb\n\nc")
    lines = Lines(reads, Keys("x"))
    assert [item.text for item in lines.take(1, None)] == ["a"]
    os.close(writes)
    while not lines.ended:
        last = lines.take(5, None)
    assert [item.text for item in last] in (["b", "c"], ["c"])
    os.close(reads)


def test_jobs_are_shared_out_over_executors() -> None:
    assert shares_of(16, 2) == [8, 8]
    assert (shares_of(5, 2), shares_of(1, 4), shares_of(8, 8)) == ([3, 2], [1], [1] * 8)


# -- results


def test_files_of_any_name_are_mapped_and_none_is_run(node: cb.Client, tmp_path: Path) -> None:
    for number, name in enumerate(HOSTILE):
        (tmp_path / name).write_text(f"content {number}")
    given = b"\0".join(os.fsencode(f"./{name}") for name in HOSTILE)
    done = cb_map("-0", "-k", "-j", "4", "cat -- {}; echo", cwd=tmp_path, given=given)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().splitlines() == [f"content {number}" for number in range(len(HOSTILE))]
    assert not (tmp_path / "pwned").exists()


def test_results_are_whole_files_in_a_directory_named_as_the_inputs(node: cb.Client, tmp_path: Path) -> None:
    names = files(tmp_path, 6)
    done = cb_map("tr a-z A-Z < {} > {out}", *names, "--out", "out", "-k", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().splitlines() == [f"out/{name}" for name in names]
    assert [(tmp_path / "out" / name).read_text() for name in names] == [f"LINE {number}\n" for number in range(6)]
    assert sorted(os.listdir(tmp_path / "out")) == sorted([JOURNAL, *names])


def test_failures_are_a_table_of_the_distinct_ones_and_the_rest_is_done(node: cb.Client, tmp_path: Path) -> None:
    script = 'case {} in *3) echo "no luck with {}" >&2; exit 7;; 5) kill -9 $$;; esac; echo {}'
    done = cb_map("-k", script, *map(str, range(14)), cwd=tmp_path)
    said = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert done.stdout.split() == [str(number).encode() for number in range(14) if number not in (3, 5, 13)]
    assert said[0] == "cb map: 3 of 14 tasks have failed"
    assert said[2].split()[:4] == ["2", "exit", "code", "7"]
    assert "no luck with {}" in said[2]
    assert "signal 9" in said[3]


def test_json_has_a_line_for_each_task_with_how_it_ended(node: cb.Client, tmp_path: Path) -> None:
    done = cb_map("--json", "-k", "test {} = good && echo fine", "good", "bad", cwd=tmp_path)
    good, bad = map(json.loads, done.stdout.splitlines())
    assert (good["item"], good["ok"], good["output"], good["attempts"]) == ("good", True, "fine\n", 1)
    assert (bad["item"], bad["ok"], bad["code"], bad["why"]) == ("bad", False, 1, "exit code 1")


def test_a_failure_is_repeated_as_often_as_was_asked_for(node: cb.Client, tmp_path: Path) -> None:
    script = "echo tried >> {}; test $(wc -l < {}) -ge 3"
    assert cb_map("-j", "1", "--retries", "1", script, "a", cwd=tmp_path).returncode == 1
    assert (tmp_path / "a").read_text() == 2 * "tried\n"
    assert cb_map("-j", "1", "--retries", "2", script, "b", cwd=tmp_path).returncode == 0
    assert (tmp_path / "b").read_text() == 3 * "tried\n"


def test_a_task_that_takes_too_long_is_stopped_with_all_its_children(node: cb.Client, tmp_path: Path) -> None:
    done = cb_map("--timeout", "0.2", ": {}; sleep 1000 & sleep 1000", "x", cwd=tmp_path)
    assert done.returncode == 1
    assert b"it has run for 0.2 s, which is its --timeout" in done.stderr
    assert no_program_is_left()


@pytest.mark.parametrize(("halt", "goes_on"), [("never", True), ("soon", False), ("now", False), ("10%", False)])
def test_halt_says_what_a_failure_means_for_the_others(
    node: cb.Client, tmp_path: Path, halt: str, goes_on: bool
) -> None:
    count = 60 if goes_on else 900
    done = cb_map("--halt", halt, "-j", "1", "echo {} >> ran; exit 4", *map(str, range(count)), cwd=tmp_path)
    assert done.returncode == 1
    ran = len((tmp_path / "ran").read_text().split())
    assert ran == count if goes_on else ran < 2 * count // 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--resume", "cat {}", "x"], "--resume needs --out DIR"),
        (["", "x"], "the command is empty"),
        (["--out", "out", "cat {}", "a/same", "b/same"], "would both be out/same"),
        (["--halt", "often", "cat {}", "x"], "'often' is none of never, soon, now"),
        (["--env", "NOT_THERE", "cat {}", "x"], "--env NOT_THERE=VALUE gives it one"),
    ],
)
def test_what_cannot_be_meant_is_said_with_what_to_do(
    node: cb.Client, tmp_path: Path, given: list[str], said: str
) -> None:
    done = cb_map(*given, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr.decode()


def test_programs_have_the_path_and_what_env_names_and_no_more_of_the_environment(
    node: cb.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SHOWN", "HIDDEN"):
        monkeypatch.setenv(name, "value")
    done = cb_map("--env", "SHOWN", "--env", "OTHER=1", "echo $SHOWN-$HIDDEN-$OTHER {}", "x", cwd=tmp_path)
    assert done.stdout == b"value--1 x\n"


def test_what_reads_one_line_ends_the_command(node: cb.Client, tmp_path: Path) -> None:
    process = begin("-j", "2", "echo {}; sleep 0.05", *map(str, range(2_000)), cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(20.0) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert no_program_is_left()


# -- what ends under it


def test_ctrl_c_stops_everything_and_resume_does_the_rest_and_only_that(node: cb.Client, tmp_path: Path) -> None:
    names = files(tmp_path, 24)
    words = ("-j", "4", "echo {} >> ran; sleep 0.1; sleep 0.1; cat {} > {out}", *names, "--out", "out")
    process = begin(*words, cwd=tmp_path)
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline()
    _, said = interrupted(process)
    assert process.returncode == 130
    assert b"with --resume goes on from here" in said
    assert no_program_is_left()
    before = {json.loads(line)["name"] for line in (tmp_path / "out" / JOURNAL).read_text().splitlines()}
    assert 5 <= len(before) < 24
    (tmp_path / "ran").unlink()
    done = cb_map(*words, "--resume", "-k", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == [f"out/{name}" for name in names]
    assert set((tmp_path / "ran").read_text().splitlines()) == set(names) - before
    assert [(tmp_path / "out" / name).read_text() for name in names] == [f"line {n}\n" for n in range(24)]


def thaw(pids: set[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_workers_that_are_killed_one_after_the_other_or_freeze_change_nothing(
    node: cb.Client, tmp_path: Path, number: signal.Signals
) -> None:
    names = files(tmp_path, 60)
    command = "sleep 0.05; cat {}"
    source = words(command, *(str(tmp_path / name) for name in names))
    mapping = Mapping(node, orders(command, tmp_path), source, jobs=6)
    found: dict[str, bytes] = {}
    hit: set[int] = set()
    try:
        with closing(mapping.run()) as results:  # type: ignore[type-var]
            for finished in results:
                assert finished.ok, finished
                assert finished.item.text not in found
                found[finished.item.text] = finished.data
                if len(found) % 12 == 6 and (number == signal.SIGKILL or not hit):
                    pids = {row["pid"] for row in node.status()["executors"] if row.get("function") == "cb-map"} - hit
                    for pid in sorted(pids)[:1]:
                        os.kill(pid, number)
                        hit.add(pid)
                if len(found) == len(names) and number == signal.SIGSTOP:
                    thaw(hit)  # others have done what it had begun
    finally:
        if number == signal.SIGSTOP:
            thaw(hit)
    mapping.forget()
    assert found == {str(tmp_path / name): f"line {at}\n".encode() for at, name in enumerate(names)}
    assert len(hit) >= (2 if number == signal.SIGKILL else 1)
    assert no_program_is_left()


def test_a_worker_that_is_killed_takes_its_programs_along_wherever_they_have_got_to(
    node: cb.Client, tmp_path: Path
) -> None:
    command = ": {}; setsid sleep 1000 & sleep 1000"
    mapping = Mapping(node, orders(command, tmp_path), words(command, "x"), jobs=1)
    results = mapping.run()
    runner = threading.Thread(target=lambda: [None for _ in results])
    runner.start()
    while len(marked()) < 3:
        os.sched_yield()
    first = set(marked())
    (pid,) = {row["pid"] for row in node.status()["executors"] if row.get("function") == "cb-map"}
    os.kill(pid, signal.SIGKILL)
    while first & set(marked()):
        os.sched_yield()
    mapping.stop(1, "enough")
    runner.join()
    mapping.forget()
    assert no_program_is_left()


def test_a_command_that_is_killed_leaves_no_program(node: cb.Client, tmp_path: Path) -> None:
    process = begin("-j", "2", "echo {}; sleep 1000", "a", "b", cwd=tmp_path)
    while len(marked()) < 4:
        os.sched_yield()
    process.kill()
    process.communicate()
    assert no_program_is_left()


def test_other_calls_are_answered_while_a_map_keeps_all_executors(node: cb.Client, tmp_path: Path) -> None:
    node.register(len, name="length")
    process = begin("-j", "2", ": {}; sleep 1000", "a", "b", cwd=tmp_path)
    while len(marked()) < 2:
        os.sched_yield()
    assert node.options(timeout=20).call("length", "four") == 4
    interrupted(process)
    assert no_program_is_left()


# -- on several hosts


def test_content_goes_along_to_hosts_that_may_not_have_the_file(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in files(tmp_path, 4)]
    command = f"cat {{}}; rm -f {tmp_path}/*.txt"
    with Cluster(2, 1, 1) as started:
        mapping = Mapping(started.client, orders(command, tmp_path), words(command, *names), jobs=1)
        with closing(mapping.run()) as results:  # type: ignore[type-var]
            found = {finished.item.text: finished.data for finished in results}
        mapping.forget()
    assert found == {name: f"line {number}\n".encode() for number, name in enumerate(names)}


def test_a_file_that_has_changed_since_it_was_read_is_said_to_have(node: cb.Client, tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in files(tmp_path, 2)]
    command = f"cat {{}}; rm -f {tmp_path}/*.txt"
    mapping = Mapping(node, orders(command, tmp_path), words(command, *names), jobs=1)
    with closing(mapping.run()) as results:  # type: ignore[type-var]
        ended = {finished.item.text: finished for finished in results}
    mapping.forget()
    (failed,) = [finished for finished in ended.values() if not finished.ok]
    assert failed.outcome.result is not None
    assert "is not here as it was when it was read" in failed.outcome.result.why


def test_nothing_is_left_in_the_store(node: cb.Client, tmp_path: Path) -> None:
    before = list(node.reserved().scan("\0cb/queue/"))
    assert cb_map("echo {} > {out}", "a", "b", cwd=tmp_path).returncode == 0
    assert list(node.reserved().scan("\0cb/queue/")) == before


def test_items_travel_as_bytes() -> None:
    item = Item(b"key", "a\udcff", "a\udcff", 3, ("boot", 1, 2, 3, 4), "place", 5)
    assert Item.unpack(b"key", item.pack()) == item
