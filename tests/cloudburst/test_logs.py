"""What functions print, seen from outside: with the call that printed it, and live, line by line."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import cloudburst as cb
from cloudburst.cluster import Cluster
from cloudburst.logbook import LogLine
from tests.cloudburst.conftest import WAIT_S, Post, release


def speak(word: str, own: str, address: str) -> None:
    """Print, in all the ways there are, then wait to be told, and print again."""
    print(word, "printed")
    cb.ctx().log(word, "logged", n=1)
    print(word, "to stderr", file=sys.stderr)
    subprocess.run(["sh", "-c", f"echo {word} from a subprocess; echo {word} from its stderr >&2"], check=True)
    from tests.cloudburst import samples

    samples.hold_until_told(address, own)
    print(word, "without an end", end="")


WAYS = ["printed", "logged n=1", "to stderr", "from a subprocess", "from its stderr", "without an end"]


def test_lines_carry_who_printed_them_and_come_while_it_runs(client: cb.Client, post: Post, directory: Path) -> None:
    client.register(speak)
    own = str(directory / "own")
    future = client.spawn("speak", "hello", own, post.address)
    lines = client.logs(follow=True, invocation=future.id)
    first = list(itertools.islice(lines, 5))
    assert not future.done()
    pid = int(post.wait()[1])
    release(own, "go on")
    assert future.result(timeout=WAIT_S) is None
    found = [*first, next(lines)]
    assert [line.text for line in found] == [f"hello {way}" for way in WAYS]
    slot = next(row["slot"] for row in client.status()["executors"] if row["pid"] == pid)
    assert {(line.invocation, line.function, line.executor) for line in found} == {(future.id, "speak", slot)}
    assert sorted(found, key=lambda line: line.number) == found
    assert [line.time for line in found] == sorted(line.time for line in found)


def test_lines_of_one_function_are_chosen(client: cb.Client) -> None:
    client.register(lambda text: print(text), name="one of two")
    client.register(lambda text: print(text), name="two of two")
    for n in range(3):
        client.call("one of two", f"one {n}")
        client.call("two of two", f"two {n}")
    assert [line.text for line in client.logs(function="two of two")] == ["two 0", "two 1", "two 2"]


def test_what_a_thread_prints_after_the_reply_is_nobodys_and_never_anothers(client: cb.Client, post: Post) -> None:
    """It had been given to the next call in that executor."""

    def leave_a_thread(address: str, own: str) -> None:
        def later() -> None:
            from tests.cloudburst import samples

            samples.hold_until_told(address, own)
            print("said by a thread that was left behind")
            samples.tell(address, "said")

        threading.Thread(target=later).start()

    client.register(leave_a_thread)
    client.call("leave_a_thread", post.address, own := post.address + "-own")
    post.wait()
    release(own, "say it")
    assert post.wait() == ["said"]
    futures = [client.spawn("square", n) for n in range(20)]
    assert [future.result(timeout=WAIT_S) for future in futures] == [n * n for n in range(20)]
    assert {future.logs() for future in futures} == {""}
    [line] = [line for line in client.logs() if line.text == "said by a thread that was left behind"]
    assert (line.invocation, line.function) == ("", "")


@pytest.mark.parametrize("ending", ["an exception", "its deadline", "os._exit", "a result that cannot be sent"])
def test_logs_are_there_after_every_kind_of_failure(client: cb.Client, ending: str) -> None:
    def fail_loudly(how: str) -> object:
        print("this is why")
        if how == "an exception":
            raise ValueError
        if how == "os._exit":
            os._exit(1)
        while how == "its deadline":
            pass
        return (n for n in ())

    client.register(fail_loudly)
    future = client.options(timeout=0.5, retries=0).spawn("fail_loudly", ending)
    assert future.exception(timeout=WAIT_S) is not None
    assert future.logs() == "this is why\n"


def test_logs_of_a_dag_are_those_of_its_steps_also_when_it_fails(client: cb.Client) -> None:
    client.register(lambda n: print("first says", n) or n, name="first of dag")
    client.register(lambda n: print("second says", n) or 1 / n, name="second of dag")
    client.dag("loud", {"first of dag": [], "second of dag": ["first of dag"]})
    for n in (1, 0):
        future = client.spawn("loud", {"first of dag": (n,)})
        failed = isinstance(future.exception(timeout=WAIT_S), ZeroDivisionError)
        assert failed == (n == 0)
        assert future.logs() == f"first says {n}\nsecond says {n}\n"


def test_a_flood_is_followed_within_bounds_and_what_was_missed_is_counted(client: cb.Client) -> None:
    def flood(lines: int) -> None:
        text = "x" * 90
        for n in range(lines):
            print(f"{n} {text}")

    client.register(flood)
    future = client.spawn("flood", 150_000)
    seen: list[LogLine] = []
    for line in client.logs(follow=True, invocation=future.id):
        seen.append(line)
        if line.text.startswith("149999 "):
            break
    assert future.result(timeout=WAIT_S) is None
    numbers = [int(line.text.split()[0]) for line in seen]
    assert numbers == sorted(set(numbers))
    assert len(seen) + sum(line.dropped for line in seen) >= 150_000


def test_following_from_the_command_line_ends_with_the_node(home: Path, node: cb.Client, directory: Path) -> None:
    """Lines of JSON as they come; when the node is gone, an error in seconds, not silence."""
    environment = {**os.environ, "CLOUDBURST_DIR": str(directory / "node"), "ANNA_DIR": str(directory / "store")}
    program = (
        "import sys, cloudburst as cb; client = cb.connect(); client.register(print, name='say'); print(flush=True)\n"
        "for line in sys.stdin: client.call('say', line.strip())"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdin is not None
    started.stdout.readline()
    follower = subprocess.Popen(
        [sys.executable, "-m", "cloudburst", "logs", "-f", "--json", "--function", "say"], env=environment,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert follower.stdout is not None
    for word in ("one", "two"):
        started.stdin.write(word + "\n")
        started.stdin.flush()
        line = json.loads(follower.stdout.readline())
        assert (line["text"], line["function"]) == (word, "say")
    pid = json.loads(
        subprocess.run(
            [sys.executable, "-m", "cloudburst", "status", "--json"], env=environment, capture_output=True, check=True
        ).stdout
    )["pid"]
    os.kill(pid, 9)
    out, _ = follower.communicate(timeout=WAIT_S)
    assert follower.returncode == 1
    assert json.loads(out.splitlines()[-1])["error"]["type"] == "NodeLost"
    started.stdin.close()
    started.wait()
    started.stdout.close()


def say_where(word: str, seconds: float) -> str:
    import os
    import time

    place = os.environ["CLOUDBURST_DIR"].rpartition("/")[2]
    print(word, "at", place)
    time.sleep(seconds)
    return place


def test_lines_of_every_node_are_there_and_followed(directory: Path) -> None:
    """Only those of the client's own node had been."""
    cluster = Cluster(2, 1, 1)
    try:
        cluster.client.register(say_where)
        cluster.client.register(lambda: print("something else"), name="other")
        cluster.client.call("other")
        first = [cluster.client.spawn("say_where", "kept", 0.2) for _ in range(4)]
        assert {future.result(timeout=WAIT_S) for future in first} == {"host-0", "host-1"}
        kept = list(cluster.client.logs(function="say_where"))
        assert [line.text for line in kept] == [f"kept at {line.node}" for line in kept]
        assert {line.node for line in kept} == {"host-0", "host-1"}
        assert [line.time for line in kept] == sorted(line.time for line in kept)
        assert [line.text for line in cluster.client.logs(invocation=first[0].id)] == [f"kept at {first[0].result()}"]

        lines = cluster.client.logs(follow=True, function="say_where")
        assert [next(lines) for _ in kept] == kept
        cluster.scale(3)
        later = [cluster.client.spawn("say_where", "followed", 0.2) for _ in range(9)]
        found = [next(lines) for _ in later]
        assert {line.node for line in found} == {"host-0", "host-1", "host-2"}
        assert sorted(line.text for line in found) == sorted(f"followed at {future.result()}" for future in later)
        lines.close()
    finally:
        cluster.down()


def test_command_puts_the_node_in_front_when_there_are_several(directory: Path) -> None:
    cluster = Cluster(2, 1, 1)
    try:
        cluster.client.register(say_where)
        for future in [cluster.client.spawn("say_where", "hello", 0.2) for _ in range(2)]:
            future.result(timeout=WAIT_S)
        command = [sys.executable, "-m", "cloudburst", "logs", "--dir", cluster.hosts[0].address.removeprefix("unix:")]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert sorted(line.split()[1] for line in shown) == ["host-0", "host-1"]
        plain = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout.splitlines()
        assert sorted(json.loads(line)["node"] for line in plain) == ["host-0", "host-1"]
    finally:
        cluster.down()
