"""The command `cb`: results on standard output, faults on standard error, and exit codes that say what happened."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import cloudburst as cb
from cloudburst.cli import Usage, bind, main

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def keep_the_default_client(node: cb.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands connect as programs do; the tests' own client stays the default one."""
    from cloudburst import entry

    monkeypatch.setattr(entry, "_default", None)


def test_call_prints_the_result(capsys: Output) -> None:
    assert main(["call", "square", "12"]) == 0
    assert capsys.readouterr() == ("144\n", "")
    assert main(["call", "echo", "text", '"quoted"', "[1, 2]", "key=null", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [["text", "quoted", [1, 2]], {"key": None}]


def test_users_exception_is_shown_with_its_traceback_and_fails(capsys: Output) -> None:
    assert main(["call", "fail", "ValueError"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "in fail" in err
    assert err.endswith("cb call: ('bad', 7) (ValueError)\n")
    assert main(["call", "fail", "ValueError", "--json"]) == 1
    fault = json.loads(capsys.readouterr().out)["error"]
    assert fault == {"type": "ValueError", "message": "('bad', 7)", "definite": False}


def test_exit_code_tells_a_missed_deadline(capsys: Output) -> None:
    assert main(["call", "snooze", "30", "--timeout", "0.1"]) == 5
    assert "was still running at its deadline" in capsys.readouterr().err


def test_unknown_function_fails_with_one_line(capsys: Output) -> None:
    assert main(["call", "sqare", "1"]) == 1
    assert capsys.readouterr().err == (
        "cb call: no function is registered as 'sqare'; did you mean 'square'? (FunctionNotFound)\n"
    )


def test_commands_that_only_look_start_no_node(directory: Path, capsys: Output) -> None:
    assert main(["status", "--dir", str(directory / "none")]) == 1
    assert f"no node runs in {directory}/none (NodeLost)" in capsys.readouterr().err
    assert not (directory / "none").exists()


def test_where_no_node_runs_it_is_said_how_to_begin(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setenv("CLOUDBURST_DIR", str(directory / "none"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))  # where no `cb up` of others is seen
    assert main(["status"]) == 1
    said = capsys.readouterr().err
    where = f"{directory}/none, and no `cb up`: begin with cb up --hosts 3, or cb node"
    assert said.endswith(f"no node runs in {where} (NodeLost)\n")


@pytest.mark.parametrize("words", [["up"], ["up", "--plan"], ["reap"]], ids=" ".join)
@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("nowhere", "nodes cannot be started on 'nowhere'; there are ec2, local, ray, ssh\n"),
        ("ssh:/no/h.toml", "the file of hosts '/no/h.toml' cannot be read: No such file or directory; --on ssh:"),
    ],
)
def test_a_place_that_there_is_not_is_a_mistake_on_the_command_line(
    words: list[str], where: str, says: str, capsys: Output
) -> None:
    assert main([*words, "--on", where]) == 2
    assert f"cb {words[0]}: {says}" in capsys.readouterr().err


def test_status_functions_and_logs_show_what_is(node: cb.Client, capsys: Output) -> None:
    node.call("say", "hello from a test")
    assert main(["status"]) == 0
    status = capsys.readouterr().out
    assert f"node {node.status()['pid']} in " in status
    assert "executor 0" in status
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["executors"][0]["slot"] == 0
    assert main(["functions"]) == 0
    assert "square(x: int) -> int  version 1  Return x squared.\n" in capsys.readouterr().out
    assert main(["logs"]) == 0
    assert "| hello from a test\n" in capsys.readouterr().out


def test_status_says_how_fresh_what_is_read_is(node: cb.Client, capsys: Output) -> None:
    node.put("k", 0)
    node.get("k")
    for number in range(30):
        with node.session("repeatable") as session:
            session.put("k", number)
            session.get("k")
    assert main(["status"]) == 0
    status = capsys.readouterr().out
    assert re.search(r"cache \d keys, \d+ bytes, has answered \d+% of \d+ reads", status), status
    assert re.search(r"sessions 3\d, (read \d epochs behind \(p50\), \d+ \(p99\)|have read while)", status), status
    reads = node.status()["reads"]
    assert reads["sessions"] >= 30
    assert reads["session_age_p50"] <= reads["session_age_p99"]


SCRIPT = """
    import cloudburst as cb

    @cb.function
    def count(text: str) -> int:
        return len(text.split())

    def main(text: str, n: int = 2, loud: bool = False):
        total = sum(cb.map("count", [text] * n))
        return f"{total}!" if loud else total

    def both(first, *rest, flag=None):
        return [first, rest, flag]
"""


def test_run_calls_main_of_a_file_with_its_parameters_as_options(directory: Path, capsys: Output) -> None:
    (directory / "counting.py").write_text(textwrap.dedent(SCRIPT))
    file = str(directory / "counting.py")
    assert main(["run", file, "a b c"]) == 0
    assert main(["run", file, "a b c", "--n", "5", "--loud"]) == 0
    assert main(["run", f"{file}:both", "1", "x", "2.5", "--flag={}"]) == 0
    assert capsys.readouterr().out == "6\n15!\n[1, ('x', 2.5), {}]\n"
    cb.default().close()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "/nowhere.py"], "there is no file /nowhere.py"),
        (["demo", "nonsense"], "there is no demonstration 'nonsense'"),
    ],
)
def test_what_is_not_there_is_a_usage_error(words: list[str], says: str, capsys: Output) -> None:
    assert main(words) == 2
    assert says in capsys.readouterr().err


def test_options_that_do_not_fit_are_a_usage_error(directory: Path, capsys: Output) -> None:
    (directory / "fitting.py").write_text("def main(n: int): return n\n")
    file = str(directory / "fitting.py")
    for words in (["x"], ["--n"], [], ["1", "2"], ["--m", "1"]):
        assert main(["run", file, *words]) == 2
        assert capsys.readouterr().err.startswith("cb run: ")
    assert main(["run", f"{file}:absent"]) == 2
    assert "has no function 'absent'" in capsys.readouterr().err


def test_bind_converts_by_annotation() -> None:
    def function(text: str, number: float, anything: object, *, flag: bool = False) -> None: ...

    assert bind(function, ["7", "7", "[7]", "--flag"]) == (["7", 7.0, [7]], {"flag": True})
    assert bind(function, ["--number=1", "--text", "--", "--anything", "x"]) == (
        [], {"number": 1.0, "text": "--", "anything": "x"},
    )  # fmt: skip
    with pytest.raises(Usage, match="'x' is no float"):
        bind(function, ["t", "x", "y"])


def test_help_has_examples(capsys: Output) -> None:
    for words in (["--help"], ["call", "--help"], ["status", "--help"], ["demo", "--help"], ["node", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        assert "example" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["frobnicate"])
    assert ended.value.code == 2


EAGER = """
    import cloudburst as cb

    def twice(x):
        return 2 * x

    cb.register(twice)
    print(cb.call("twice", 4))

    def main():
        return cb.call("twice", 5)
"""


def test_a_file_that_calls_functions_as_it_is_imported_is_told_so_and_not_by_all_executors(
    directory: Path, capsys: Output
) -> None:
    """Each executor that imported it for its function called that, and so had another one import it, 128 times."""
    (directory / "eager.py").write_text(textwrap.dedent(EAGER))
    try:
        assert main(["run", str(directory / "eager.py")]) == 1
        said = capsys.readouterr().err
        assert '`if __name__ == "__main__":`' in said
        assert said.count("cannot be loaded here") <= 2
    finally:
        cb.default().close()
        sys.modules.pop("eager", None)


def test_a_file_that_is_a_script_runs_as_one(directory: Path) -> None:
    script = directory / "eager.py"
    script.write_text(textwrap.dedent(EAGER))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("8\n", 0), done.stderr
