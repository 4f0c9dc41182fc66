"""The whole demo, in miniature; and the same script of operations on our store and on Redis."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from demos.retwis import on_anna, on_redis, workload
from demos.retwis.people import load_graph, load_texts
from demos.retwis.workload import Operations


def comparable(timeline: list[dict[str, Any]], names: dict[str, int], base: int) -> list[tuple[Any, ...]]:
    """Return a timeline without what is drawn at random or read from a clock: ids become their order."""
    answered = [(entry["reply_to"] or {"id": "", "text": None}) for entry in timeline]
    return [
        (
            *(names[entry["id"]], entry["author"] - base, entry["text"], entry["likes"]),
            *(names.get(entry["parent"]), names.get(parent["id"]), parent["text"]),
        )
        for entry, parent in zip(timeline, answered, strict=True)
    ]


def play(retwis: Operations, base: int, seed: int, steps: int = 400) -> list[object]:
    """Do a fixed script of operations among twelve people; return everything that was shown meanwhile."""
    draw, posts, names, seen = random.Random(seed), [], {}, []
    people = [base + number for number in range(12)]
    for person in people:
        retwis["sign_up"](person, f"person {person - base}")
    for step in range(steps):
        user, other = draw.sample(people, 2)
        operation = draw.choice(("follow", "follow", "unfollow", "post", "reply", "like", "timeline", "profile"))
        if operation in ("follow", "unfollow"):
            retwis[operation](user, other)
        elif operation == "timeline":
            seen.append(comparable(retwis["timeline"](user), names, base))
        elif operation == "profile":
            seen.append({name: value for name, value in retwis["profile"](user).items() if name != "since"})
        elif operation == "like" and posts:
            retwis["like"](user, draw.choice(posts))
        elif operation == "reply" and posts:
            posts.append(retwis["reply"](user, draw.choice(posts), f"reply {step}"))
        else:
            posts.append(retwis["post"](user, f"post {step}"))
        names |= {post: number for number, post in enumerate(posts) if post not in names}
    return seen


def test_redis_and_our_functions_show_the_same(
    ours: on_anna.NodeStore, plain: on_anna.AnnaStore, redis: on_redis.RedisStore, me: int
) -> None:
    backends = ours.backends() | plain.backends() | redis.backends()
    shown = [play(opened(), me + 100 * place, seed=7) for place, opened in enumerate(backends.values())]
    assert len(shown) == 4
    assert len(shown[0]) > 50
    assert all(other == shown[0] for other in shown[1:])


def test_a_whole_quick_run_writes_its_three_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="r-"))  # short, because sockets are made in it
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(scratch)}
    command = [sys.executable, "-m", "demos.retwis", "--quick", "--texts", "sample", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    scratch.rmdir()  # nothing is left behind
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"result.json", "retwis.png", "retwis.html"}
    assert all(name in done.stdout for name in files)
    assert "196 sample posts from the tree" in done.stdout
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in result["rows"]}
    wanted = {"ours-functions", "ours-bare"} | (set() if on_redis.missing() else {"redis-functions", "redis-bare"})
    assert set(rows) == wanted
    for row in rows.values():
        (repeat,) = row["repeats"]
        assert repeat["milliseconds"]["timeline"]["count"] > 0
        assert repeat["milliseconds"]["post"]["count"] > 0
        assert repeat["counts"]["entries"] > 0
        assert repeat["counts"].get("blanks", 0) == 0
        assert row["bytes_per_key"] > 0
    page = (tmp_path / "out" / "retwis.html").read_text(encoding="utf-8")
    assert page.count('class="feed"') == 3
    assert page.count('class="thread') > 10
    assert all(row["title"] in page for row in rows.values())
    assert result["parameters"]["follows"] == 11_838


def test_the_same_seed_gives_every_backend_the_same_posts() -> None:
    graph, texts = load_graph(), load_texts("sample")
    done: list[list[tuple[object, ...]]] = []
    for _ in range(2):
        calls: list[tuple[object, ...]] = []

        def note(name: str, calls: list[tuple[object, ...]] = calls) -> Any:
            return lambda *arguments: (calls.append((name, *arguments)), f"{len(calls)}")[1]

        operations = {name: note(name) for name in workload.OPERATIONS}
        assert sum(workload.seed_posts(operations, graph.people, texts, 100, seed=3)) == 100
        done.append(calls)
    assert done[0] == done[1]
    assert {call[0] for call in done[0]} == {"post", "reply", "like"}
