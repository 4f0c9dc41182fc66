"""A page with a few timelines and the table, in one file that opens without a server or a network.

Every text is escaped, every @name is replaced by an invented handle, links are cut, and words that nobody
wants on a screen in front of others are starred: the tweets are what people wrote. A reply stands under the
post that it answers; where that post is missing, the place is red.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demos.retwis.people import handle, hide_names
from demos.retwis.report import HEADINGS, Result, cells
from demos.retwis.workload import is_orphan

ADDRESS = re.compile(r"(?:https?://|www\.)\S+|\b(?:bit|ow|is|j|t)\.(?:ly|gd|mp|co)/\S+", re.IGNORECASE)
RUDE = re.compile(
    r"\b(?:\w*(?:fuck|shit|bitch|nigg|whore|slut|asshole|bastard|retard)\w*|(?:cunt|fag|faggot|dick|cock|pussy|rape)(?:s|d|head)?)\b",
    re.IGNORECASE,
)
MARKED = re.compile(r"(@\w+|#\w+)")


@dataclass(frozen=True, slots=True)
class Feed:
    """One person's profile and timeline, as the functions answered; `title` says when or how, if that matters."""

    person: int
    profile: Mapping[str, Any]
    timeline: Sequence[Mapping[str, Any]]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Front:
    """What stands above the timelines, and whether these are `pairs`, one beside the other."""

    subtitle: str = "on lattices"
    lead: str = ""
    pairs: bool = False


def write(path: Path, result: Result, feeds: Sequence[Feed], chart: Path | None, front: Front = Front()) -> None:
    """Write the page; `chart` is a PNG to carry inside, if there is one."""
    picture = ""
    if chart is not None:
        data = base64.b64encode(chart.read_bytes()).decode("ascii")
        picture = f'<img class="chart" alt="latency and rate of each row" src="data:image/png;base64,{data}">'
    parts = {
        "subtitle": html.escape(front.subtitle),
        "lead": html.escape(front.lead),
        "layout": "pairs" if front.pairs else "",
        "people": f"{result.parameters['people']:,}",
        "follows": f"{result.parameters['follows']:,}",
        "texts": html.escape(str(result.parameters["texts"])),
        "feeds": "\n".join(column(feed) for feed in feeds),
        "numbers": numbers(result),
        "picture": picture,
    }
    template = string.Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    path.write_text(template.substitute(parts), encoding="utf-8")


def column(feed: Feed) -> str:
    """One person's timeline."""
    counts = " · ".join(f"{feed.profile[name]:,} {name}" for name in ("following", "followers", "posts"))
    newest = max((entry.get("stamp", 0) for entry in feed.timeline), default=0)
    posts = "\n".join(thread(entry, newest) for entry in feed.timeline) or '<p class="none">Nothing yet.</p>'
    if feed.title:
        counts = html.escape(feed.title)
    head = f"{avatar(feed.person, 40)}<b>@{html.escape(handle(feed.person))}</b><small>{counts}</small>"
    return f'<article class="feed"><h2>{head}</h2>{posts}</article>'


def thread(entry: Mapping[str, Any], newest: int) -> str:
    """One entry of a timeline; a reply stands under the post that it answers, or under a red place for it."""
    if not entry["parent"]:
        return f'<div class="thread">{post(entry, newest)}</div>'
    parent = entry["reply_to"]
    above = post(parent, newest, "parent") if parent else missing("the post that this answers is not here yet")
    if parent and is_orphan(entry):
        above += missing("what this answers is a newer text of that post, which is not here yet")
    return f'<div class="thread reply">{above}{post(entry, newest, answers=parent)}</div>'


def missing(what: str) -> str:
    """The red place of a post that should be there."""
    return f'<div class="orphan">{what}</div>'


def post(entry: Mapping[str, Any], newest: int, kind: str = "", answers: Mapping[str, Any] | None = None) -> str:
    """One post: who, how long before the newest of the timeline, what, and how many like it."""
    if "text" not in entry:
        return missing("this post is not here yet")
    likes = f'<span class="likes">♥ {entry["likes"]:,}</span>' if entry.get("likes") else ""
    name = html.escape(handle(entry["author"]))
    who = f"<b>@{name}</b> <time>· {age(newest - entry['stamp'])}</time>{likes}"
    text = f'<div><p class="who">{who}</p><p>{shown(entry, answers)}</p></div>'
    return f'<div class="post {kind}">{avatar(entry["author"], 32)}{text}</div>'


def shown(entry: Mapping[str, Any], answers: Mapping[str, Any] | None) -> str:
    """Return the text as HTML: names hidden, links cut, rude words starred, everything escaped.

    The first name of a reply becomes the handle of the person who is answered.
    """
    text = ADDRESS.sub("#link", str(entry["text"]))
    if answers is not None:
        text = re.sub(r"^@\w+", "", text).strip()
        text = f"@{handle(answers['author'])} {hide_names(text, entry['id'])}"
    else:
        text = hide_names(text, entry["id"])
    text = RUDE.sub(lambda match: "∗" * len(match[0]), text)
    return MARKED.sub(r"<i>\1</i>", html.escape(text, quote=False))


def age(microseconds: int) -> str:
    """Return a short span of time."""
    seconds = microseconds / 1e6
    if seconds < 0.001:
        return "now"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


def avatar(person: int, size: int) -> str:
    """Return a small symmetric picture that belongs to the person, as SVG."""
    digest = hashlib.sha256(f"avatar {person}".encode()).digest()
    hue, bits = digest[0] * 360 // 256, int.from_bytes(digest[1:4], "big")
    squares = []
    for place in range(15):
        if bits >> place & 1:
            x, y = place % 3, place // 3
            squares += [f"M{column},{y}h1v1h-1z" for column in {x, 4 - x}]
    colour = f"hsl({hue} 50% 45%)"
    ground = f'<rect x="-1.2" y="-1.2" width="7.4" height="7.4" fill="hsl({hue} 55% 90%)"/>'
    picture = f'{ground}<path d="{"".join(sorted(squares))}" fill="{colour}"/>'
    box = f'width="{size}" height="{size}" viewBox="-1.2 -1.2 7.4 7.4"'
    return f'<svg class="avatar" {box} aria-hidden="true">{picture}</svg>'


def numbers(result: Result) -> str:
    """The table of the run."""
    head = "".join(f"<th>{heading.replace(' /', '/')}</th>" for heading in HEADINGS)
    lines = []
    for row in result.rows:
        values = cells(row)
        marks = ["orphans" if place == 5 and row.count("orphans") else "" for place in range(len(values))]
        line = "".join(f'<td class="{mark}">{html.escape(value)}</td>' for mark, value in zip(marks, values))
        lines.append(f'<tr class="{row.name.partition("-")[0]}"><th>{html.escape(row.title)}</th>{line}</tr>')
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in result.notes)
    body = f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<table>{body}</table><div class="notes">{notes}</div>'
