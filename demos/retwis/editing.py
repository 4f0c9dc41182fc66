"""The clone where posts are edited: a reply answers one edition of a post, and should not be shown above an older one.

    edits/<id>           OrderedSet     (edition, text) of the newest edition

Why this: the greatest edition wins however many joins it sees, so nobody who has seen an edition can be shown, by
anything but an older read, a lesser one. Source: the rest is `functions`.
"""

from __future__ import annotations

from typing import Any

import cloudburst as cb
from anna.lattices import OrderedSet
from demos.retwis import functions


def edit(post: str, text: str) -> int:
    """Replace the text of a post; return which edition of it that is, from 1."""
    edition = edition_of(post) + 1
    cb.put(f"edits/{post}", OrderedSet([(edition, text)], limit=1))
    return edition


def edition_of(post: str) -> int:
    """Return the newest edition of a post, 0 when it was never edited."""
    newest = cb.get(f"edits/{post}", [])
    return int(newest[-1][0]) if newest else 0


def reply(user: int, parent: str, text: str) -> str:
    """Publish `text` as a reply to the newest edition of `parent`; return its id."""
    answered = cb.get(f"post/{parent}")
    stamp = max(functions.now(), answered["stamp"] + 1)
    return functions.publish(user, text, stamp, parent, edition_of(parent))


def timeline(user: int) -> list[dict[str, Any]]:
    """Return what `functions.timeline` does, each post and each post that is answered in its newest edition."""
    entries = functions.timeline(user)
    posts = list(dict.fromkeys(post for entry in entries for post in (entry["id"], entry["parent"]) if post))
    edits = {post: newest[-1] for post, newest in zip(posts, cb.mget([f"edits/{post}" for post in posts])) if newest}
    for entry in entries:
        for shown in (entry, entry["reply_to"]):
            if shown and shown["id"] in edits:
                shown["edition"], shown["text"] = edits[shown["id"]]
    return entries
