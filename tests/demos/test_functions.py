"""What the eight functions promise, called as users call them, on a real embedded cluster."""

from __future__ import annotations

from typing import Any

import pytest

from anna.lattices import Map, Max
from demos.retwis import functions, on_anna
from demos.retwis.workload import Operations


@pytest.fixture(params=["ours", "plain"])
def store(request: pytest.FixtureRequest) -> on_anna.AnnaStore:
    """The store once behind registered functions, and once asked by the same code in this process."""
    chosen: on_anna.AnnaStore = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def retwis(store: on_anna.AnnaStore) -> Operations:
    """The eight operations."""
    return store.operations()


def texts(timeline: list[dict[str, Any]]) -> list[str]:
    """Return what a timeline says, newest first."""
    return [entry["text"] for entry in timeline]


def test_a_post_reaches_its_author_and_followers_only(retwis: Operations, me: int) -> None:
    fan, stranger = me + 1, me + 2
    retwis["follow"](fan, me)
    retwis["post"](me, "hello")
    assert texts(retwis["timeline"](me)) == texts(retwis["timeline"](fan)) == ["hello"]
    assert retwis["timeline"](stranger) == []


def test_follow_unfollow_and_follow_again(retwis: Operations, me: int) -> None:
    fan = me + 1
    for number, (operation, expected) in enumerate(
        [("follow", 1), ("follow", 1), ("unfollow", 0), ("unfollow", 0), ("follow", 1)]
    ):
        retwis[operation](fan, me)
        retwis["post"](me, f"post {number}")
        retwis["sign_up"](me, "me")
        retwis["sign_up"](fan, "fan")
        assert retwis["profile"](me)["followers"] == retwis["profile"](fan)["following"] == expected
    assert texts(retwis["timeline"](fan)) == ["post 4", "post 1", "post 0"]


def test_concurrent_follows_are_one_and_both_ends_agree_in_any_order(store: on_anna.AnnaStore, me: int) -> None:
    retwis, fan = store.operations(), me + 1
    retwis["sign_up"](me, "me")
    retwis["sign_up"](fan, "fan")
    first = {f"following/{fan}": Map({me: Max(1)}), f"followers/{me}": Map({fan: Max(1)})}
    second = {f"following/{fan}": Map({me: Max(2)}), f"followers/{me}": Map({fan: Max(2)})}
    for writes in (second, first, first, second, first):
        store.client().mput(writes)
        assert retwis["profile"](me)["followers"] == retwis["profile"](fan)["following"] == 0
    retwis["follow"](fan, me)
    assert retwis["profile"](me)["followers"] == retwis["profile"](fan)["following"] == 1


def test_a_like_counts_once_for_each_person(retwis: Operations, me: int) -> None:
    post = retwis["post"](me, "like me")
    for person in (me, me + 1, me + 1, me + 2, me, me + 2):
        retwis["like"](person, post)
    assert [entry["likes"] for entry in retwis["timeline"](me)] == [3]


def test_a_timeline_is_a_page_of_the_newest_and_its_key_stays_bounded(
    store: on_anna.AnnaStore, retwis: Operations, me: int
) -> None:
    for number in range(functions.ENTRIES_KEPT + 5):
        retwis["post"](me, f"post {number}")
    newest = range(functions.ENTRIES_KEPT + 4, functions.ENTRIES_KEPT + 4 - functions.PAGE_ENTRIES, -1)
    assert texts(retwis["timeline"](me)) == [f"post {number}" for number in newest]
    kept = store.client().get(f"timeline/{me}")
    assert len(kept) == functions.ENTRIES_KEPT
    assert list(kept) == sorted(kept)


def test_a_reply_is_shown_with_the_post_that_it_answers(retwis: Operations, me: int) -> None:
    other, fan = me + 1, me + 2
    retwis["follow"](fan, other)
    question = retwis["post"](me, "who is there?")
    answer = retwis["reply"](other, question, "me")
    (entry,) = retwis["timeline"](fan)
    assert (entry["id"], entry["parent"], entry["author"], entry["text"]) == (answer, question, other, "me")
    assert (entry["reply_to"]["id"], entry["reply_to"]["text"]) == (question, "who is there?")
    assert entry["stamp"] > entry["reply_to"]["stamp"]


def test_a_reply_comes_after_its_parent_even_if_the_clock_is_behind(
    plain: on_anna.AnnaStore, me: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = plain.operations()["post"](me, "first")
    monkeypatch.setattr(functions, "now", lambda: 1)
    retwis = plain.operations()
    retwis["reply"](me, question, "second")
    assert texts(retwis["timeline"](me)) == ["second", "first"]


def test_a_reply_whose_parent_is_gone_is_shown_as_an_orphan(
    store: on_anna.AnnaStore, retwis: Operations, me: int
) -> None:
    question = retwis["post"](me, "soon gone")
    retwis["reply"](me, question, "still here")
    store.client().delete(f"post/{question}")
    reply, blank = retwis["timeline"](me)
    assert (reply["text"], reply["parent"], reply["reply_to"]) == ("still here", question, None)
    assert blank == {"id": question, "parent": "", "likes": 0, "reply_to": None}


def test_a_profile_tells_name_and_counts(retwis: Operations, me: int) -> None:
    retwis["sign_up"](me, "name")
    retwis["follow"](me, me + 1)
    retwis["follow"](me + 2, me)
    retwis["follow"](me + 3, me)
    retwis["post"](me, "one")
    profile = retwis["profile"](me)
    assert profile.pop("since") > 1_700_000_000_000_000
    assert profile == {"name": "name", "following": 1, "followers": 2, "posts": 1}
