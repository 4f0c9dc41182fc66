"""The inputs of the Twitter clone: what the committed graph is, and that nobody's name gets onto a screen."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from demos.retwis import derive_graph, people

GRAPH = people.load_graph()


def test_the_graph_is_the_whole_web_of_trust() -> None:
    assert (GRAPH.people, len(GRAPH.follows), len(set(GRAPH.follows))) == (905, 11_838, 11_838)
    assert all(0 <= person < 905 for pair in GRAPH.follows for person in pair)
    assert all(follower != followed for follower, followed in GRAPH.follows)


@pytest.mark.parametrize(("side", "quantiles", "greatest"), [(0, (1, 5, 36, 87), 175), (1, (2, 6, 37, 82), 168)])
def test_the_graph_has_a_heavy_tail_on_both_sides(side: int, quantiles: tuple[int, ...], greatest: int) -> None:
    degree = Counter(pair[side] for pair in GRAPH.follows)
    ordered = sorted(degree[person] for person in range(GRAPH.people))
    assert tuple(ordered[int(len(ordered) * q)] for q in (0.1, 0.5, 0.9, 0.99)) == quantiles
    assert ordered[-1] == greatest


def test_three_quarters_of_the_follows_are_mutual_and_the_most_followed_come_first() -> None:
    pairs = set(GRAPH.follows)
    assert sum((followed, follower) in pairs for follower, followed in pairs) == 8_838
    followers = [len(who) for who in GRAPH.followers()]
    assert followers == sorted(followers, reverse=True)


def test_both_sides_of_the_graph_tell_the_same_follows() -> None:
    following = {(person, other) for person, others in enumerate(GRAPH.following()) for other in others}
    followers = {(other, person) for person, others in enumerate(GRAPH.followers()) for other in others}
    assert following == followers == set(GRAPH.follows)


def test_the_committed_data_holds_nothing_but_numbers() -> None:
    lines = (people.DATA / "follows.csv").read_text(encoding="ascii").splitlines()
    assert lines[0] == "# 905 people; each line: follower,followed"
    assert all(re.fullmatch(r"\d{1,3},\d{1,3}", line) for line in lines[1:])


def test_derivation_counts_each_signature_once_and_only_among_the_people() -> None:
    pairs = [
        ("A", "A"),
        ("B", "B"),
        ("C", "C"),
        ("A", "B"),
        ("A", "B"),
        ("C", "B"),
        ("stranger", "B"),
        ("B", "A"),
    ]
    assert derive_graph.follows(pairs) == (3, [(0, 1), (1, 0), (2, 0)])


def test_derivation_does_not_depend_on_the_order_of_the_listing() -> None:
    pairs = [(f"key{i}", f"key{(i * i + 3 * i) % 40}") for i in range(40)] + [(f"key{i}",) * 2 for i in range(40)]
    assert derive_graph.follows(pairs) == derive_graph.follows(reversed(pairs))


def test_derivation_refuses_another_keyring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keyring = tmp_path / "other.gpg"
    keyring.write_bytes(b"not the keyring")
    assert derive_graph.main(["--keyring", str(keyring), "--out", str(tmp_path / "follows.csv")]) == 1
    assert "has SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "follows.csv").exists()


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_arguments: object, **_options: object) -> None:
        raise FileNotFoundError("gpg")

    monkeypatch.setattr(subprocess, "run", absent)
    with pytest.raises(derive_graph.DeriveError, match="gpg is not installed"):
        list(derive_graph.signatures(Path("keyring.gpg")))


def test_handles_are_distinct_and_stay_what_they_are() -> None:
    handles = [people.handle(person) for person in range(5_000)]
    assert len(set(handles)) == len(handles)
    assert handles[:3] == ["briskgannet", "jollykestrel", "sandynewt"]


def test_names_in_texts_become_handles_of_nobody_in_particular() -> None:
    shown = people.hide_names("@RealName thanks! cc @RealName @other", salt="post 7")
    mentions = people.MENTION.findall(shown)
    assert "RealName" not in shown
    assert "other" not in shown
    assert len(set(mentions)) == 3
    assert shown == people.hide_names("@RealName thanks! cc @RealName @other", salt="post 7")
    assert people.hide_names("no names, an a@b.example") != "no names, an a@b.example"


def test_the_sample_is_used_without_network_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    texts = people.load_texts(deadline_seconds=30)
    assert texts.fallback is not None
    assert "vaderSentiment 3.3.2" in texts.fallback
    assert texts.source == "196 sample posts from the tree"
    assert (len(texts.posts), len(texts.replies)) == (116, 80)
    with pytest.raises(people.fetch.FetchError):
        people.load_texts("tweets", deadline_seconds=30)
