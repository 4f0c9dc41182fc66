"""The demo's inputs: who follows whom, what they say, and the invented names under which we show them.

The graph is `data/follows.csv` (see `derive_graph.py`). Texts are the fetched tweets, or `data/posts.txt`
when those cannot be had. Nobody's real name is shown: a person's handle is made from their number alone, and
every @name inside a text becomes the handle that a hash of that name picks. Sources: `data/NOTICE`.
"""

from __future__ import annotations

import hashlib
import html
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demos import fetch

DATA = Path(__file__).with_name("data")
MENTION = re.compile(r"@\w+")

_FIRST, _LAST = (line.split() for line in (DATA / "handles.txt").read_text(encoding="ascii").splitlines())
_HANDLES = len(_FIRST) * len(_LAST)
_STRIDE = 389  # coprime to _HANDLES, so that neighbours in the graph get names that look unrelated


@dataclass(frozen=True, slots=True)
class Graph:
    """People are 0 … people - 1, the most followed first; a follow is (follower, followed)."""

    people: int
    follows: tuple[tuple[int, int], ...]

    def followers(self) -> list[list[int]]:
        """Return, for each person, who follows them, ascending."""
        return self._neighbours(1)

    def following(self) -> list[list[int]]:
        """Return, for each person, whom they follow, ascending."""
        return self._neighbours(0)

    def _neighbours(self, side: int) -> list[list[int]]:
        lists: list[list[int]] = [[] for _ in range(self.people)]
        for pair in self.follows:
            lists[pair[side]].append(pair[1 - side])
        return lists


@dataclass(frozen=True, slots=True)
class Texts:
    """What people say; `source` is one line for the output, `fallback` says why it is not the real tweets."""

    posts: tuple[str, ...]
    replies: tuple[str, ...]
    source: str
    fallback: str | None = None


def load_graph(path: Path = DATA / "follows.csv") -> Graph:
    """Read the graph that `derive_graph` wrote."""
    first, *lines = path.read_text(encoding="ascii").splitlines()
    pairs = (line.split(",") for line in lines)
    return Graph(int(first.split()[1]), tuple((int(follower), int(followed)) for follower, followed in pairs))


def load_texts(source: str = "auto", deadline_seconds: float = fetch.DEADLINE_SECONDS) -> Texts:
    """Return the tweets, fetching them first if need be, or our own sample.

    `source` is "auto" (the sample when the tweets cannot be had), "tweets" (raise `FetchError` then) or
    "sample".
    """
    reason = None
    if source != "sample":
        try:
            return _tweets(fetch.fetch("tweets", deadline_seconds))
        except fetch.FetchError as error:
            if source == "tweets":
                raise
            reason = str(error)
    lines = (DATA / "posts.txt").read_text(encoding="utf-8").splitlines()
    return _split(lines, f"{len(lines)} sample posts from the tree", reason)


def _tweets(path: Path) -> Texts:
    lines = [line.split("\t", 2)[2].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    dataset = fetch.DATASETS["tweets"]
    return _split(lines, f"{len(lines):,} tweets of {dataset.package} {dataset.version}")


def _split(lines: Sequence[str], source: str, fallback: str | None = None) -> Texts:
    texts = [html.unescape(html.unescape(line)) for line in lines]  # some were escaped twice
    replies = tuple(text for text in texts if text.startswith("@"))
    return Texts(tuple(text for text in texts if not text.startswith("@")), replies, source, fallback)


def handle(person: int) -> str:
    """Return the invented handle of a person: the same always, and another for each of the first 1,024."""
    index = (person * _STRIDE + 71) % _HANDLES
    suffix = "" if person < _HANDLES else str(person // _HANDLES)
    return f"{_FIRST[index // len(_LAST)]}{_LAST[index % len(_LAST)]}{suffix}"


def hashed_handle(name: str) -> str:
    """Return the handle that stands on screen for somebody's real @name."""
    return handle(int.from_bytes(hashlib.sha256(name.lower().encode()).digest()[:4], "big") % _HANDLES)


def hide_names(text: str, salt: str = "") -> str:
    """Return `text` with each @name replaced by a handle that a hash of it, of `salt` and of its place picks.

    The tweets come with most names already turned into "@anonymous"; salt and place make these different
    people.
    """
    place = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal place
        place += 1
        return "@" + hashed_handle(f"{match[0]} {salt} {place}")

    return MENTION.sub(replace, text)


def some_people(people: int, count: int, seed: int) -> list[int]:
    """Return `count` people to show: the most followed, then others drawn with `seed` from the upper half."""
    rest = random.Random(seed).sample(range(1, max(2, people // 2)), max(0, min(count - 1, people // 2 - 1)))
    return [0, *sorted(rest)]
