"""A Twitter clone in eight functions and no coordination: every value is a lattice, every write is a join.

    user/<person>        Map of LWW     name, since
    following/<person>   Map of Max     other person -> how often follow and unfollow took turns; odd: follows
    followers/<person>   Map of Max     the same numbers, seen from the other end
    post/<id>            LWW            id, author, text, stamp, parent: written once, so it never conflicts
    wall/<person>        OrderedSet     the 200 newest of one's own posts
    timeline/<person>    OrderedSet     the 200 newest of everybody whom one follows, and one's own
    likes/<id>           Counter        one for each person who likes the post

Why these: the two ends of a follow are written from one reading and only grow, so they agree in whatever
order they arrive; a plain set could never unfollow, and two removable sets could settle differently. A post
is written before its id goes to the timelines (fan-out on write), and a bounded ordered set keeps its
greatest entries however many joins it sees, so the busiest keys stay small. Ids need no common counter: they
are random. A like is counted under its person's number, so that a second one, or a retry of the first,
changes nothing. A reply's stamp exceeds its parent's, whatever the clocks say.

Inside a function `cb.get` and `cb.put` are the node's cache, outside they are a client: these run in both
places.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

import cloudburst as cb
from anna.lattices import LWW, Counter, Map, Max, OrderedSet

ENTRIES_KEPT = 200
PAGE_ENTRIES = 10


def sign_up(user: int, name: str) -> None:
    """Write the user's record."""
    cb.put(f"user/{user}", Map({"name": LWW(name), "since": LWW(now())}))


def follow(user: int, other: int) -> None:
    """Make `user` follow `other`."""
    set_follow(user, other, True)


def unfollow(user: int, other: int) -> None:
    """Make `user` no longer follow `other`."""
    set_follow(user, other, False)


def set_follow(user: int, other: int, wanted: bool) -> None:
    """Count one turn further, on both ends, if that changes anything."""
    turns = cb.get(f"following/{user}", {}).get(other, 0)
    if turns % 2 != wanted:
        turn = Max(turns + 1)
        cb.mput({f"following/{user}": Map({other: turn}), f"followers/{other}": Map({user: turn})})


def post(user: int, text: str) -> str:
    """Publish `text`; return the post's id."""
    return publish(user, text, now(), "")


def reply(user: int, parent: str, text: str) -> str:
    """Publish `text` as a reply to the post `parent`; return its id."""
    answered = cb.get(f"post/{parent}")
    return publish(user, text, max(now(), answered["stamp"] + 1), parent)


def publish(user: int, text: str, stamp: int, parent: str, answers: int = 0) -> str:
    """Write the post, then tell the author and all followers of it.

    `answers` is which edition of the parent it answers, where posts are edited (`editing`).
    """
    post = secrets.token_hex(8)
    record = {"id": post, "author": user, "text": text, "stamp": stamp, "parent": parent}
    cb.put(f"post/{post}", record | ({"answers": answers} if answers else {}))
    news = OrderedSet([(stamp, post, parent)], limit=ENTRIES_KEPT)
    readers = {user, *people(cb.get(f"followers/{user}", {}))}
    cb.mput({f"wall/{user}": news} | {f"timeline/{reader}": news for reader in readers})
    return post


def like(user: int, post: str) -> None:
    """Count the user's like, once."""
    cb.put(f"likes/{post}", Counter(+1, writer=user + 1))


def timeline(user: int) -> list[dict[str, Any]]:
    """Return the newest posts of those whom `user` follows, newest first, replies with the post they answer.

    Two flights: the ids, and then the posts, their parents and their likes together. A post is
    {id, author, text, stamp, parent, likes, reply_to}; what could not be found is absent, or None.
    """
    entries = cb.get(f"timeline/{user}", [])[: -PAGE_ENTRIES - 1 : -1]
    keys = [key for _, post, parent in entries for key in (f"post/{post}", f"likes/{post}", f"post/{parent}")]
    found = dict(zip(keys, cb.mget(keys)))
    return [
        (found[f"post/{post}"] or {"id": post, "parent": parent})
        | {"likes": found[f"likes/{post}"] or 0, "reply_to": found[f"post/{parent}"]}
        for _, post, parent in entries
    ]


def profile(user: int) -> dict[str, Any]:
    """Return the user's record, how many they follow, how many follow them, and how many posts their wall
    has.
    """
    keys = (f"user/{user}", f"following/{user}", f"followers/{user}", f"wall/{user}")
    record, following, followers, wall = cb.mget(keys)
    ends = {"following": len(people(following)), "followers": len(people(followers))}
    return {**record, **ends, "posts": len(wall or ())}


def people(turns: dict[int, int] | None) -> list[int]:
    """Return those with an odd number of turns."""
    return [person for person, count in (turns or {}).items() if count % 2]


def now() -> int:
    """Return this machine's time in microseconds."""
    return time.time_ns() // 1000
