"""A word count in two functions and no shuffle: counts of all pieces are joined where they are kept.

    wordcount/<job>/<bucket>   Map of Counter   word -> its count, with one entry for each piece of text

A piece is counted under its own number. So a piece that is counted twice, because its executor died or was slow,
changes nothing: the join of equal entries is the same entry. Nobody sends counts to a reducer and nobody waits for the
last one; the store's owners join what arrives, in any order. What a bucket holds is read in a causal session, which
sees all that the client's earlier calls have committed, whichever node and copy it reads from.
"""

from __future__ import annotations

import collections
import hashlib
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import cloudburst as cb
from anna.lattices import Counter, Map

WORD: Final = re.compile(r"[a-z]+(?:'[a-z]+)?")
KEPT_S: Final = 3600
"""How long the counts stay in a store that outlives the program."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Words that were counted, how many different ones, the most frequent, and a checksum of all counts.

    The checksum is the sum of the SHA-256 of every "word count" modulo 2**256: no order, and no division into buckets,
    changes it, so tallies of disjoint words can be added.
    """

    words: int = 0
    different: int = 0
    top: tuple[tuple[str, int], ...] = ()
    checksum: int = 0

    def plus(self, other: Tally, top: int) -> Tally:
        """Return the tally of both, which have no word in common."""
        best = tuple(sorted(self.top + other.top, key=by_count)[:top])
        checksum = (self.checksum + other.checksum) % (1 << 256)
        return Tally(self.words + other.words, self.different + other.different, best, checksum)


def by_count(entry: tuple[str, int]) -> tuple[int, str]:
    """Order the most frequent first, and equally frequent ones by the alphabet."""
    return -entry[1], entry[0]


def tally_of(counts: Iterable[tuple[str, int]], top: int) -> Tally:
    """Return the tally of some words."""
    entries = sorted(counts, key=by_count)
    checksum = sum(int.from_bytes(hashlib.sha256(f"{word} {count}".encode()).digest()) for word, count in entries)
    words = sum(count for _, count in entries)
    return Tally(words, len(entries), tuple(entries[:top]), checksum % (1 << 256))


def words_of(text: str) -> collections.Counter[str]:
    """Return how often each word occurs in a text: ASCII letters, with an apostrophe inside, whatever their case."""
    return collections.Counter(WORD.findall(text.lower()))


def key_of(job: str, bucket: int) -> str:
    """Return where the counts of one bucket are."""
    return f"wordcount/{job}/{bucket}"


def count(job: str, buckets: int, piece: int, text: str) -> int:
    """Join the counts of one piece of text into the store; return how many words it has."""
    found = words_of(text)
    maps: dict[str, dict[str, Counter]] = collections.defaultdict(dict)
    for word, times in found.items():
        key = key_of(job, zlib.crc32(word.encode()) % buckets)
        maps[key][word] = Counter(times, writer=piece + 1)
    cb.mput({key: Map(counters) for key, counters in maps.items()}, ttl=KEPT_S)
    return found.total()


def tally(job: str, bucket: int, top: int) -> Tally:
    """Return the tally of one bucket."""
    counts: dict[str, int] = cb.get(key_of(job, bucket), {})
    return tally_of(counts.items(), top)


ALL: Final = (count, tally)
