"""What is counted: files that every Python has, or the user's own.

`library` is the source of Python's standard library as it lies on the disk, `reference` the text of its language
reference (what `help("for")` shows). Both are of the Python that runs the program, wherever the machines are, so equal
commands count equal words.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

PIECES: Final = 16
"""Into about so many pieces are all files put together and cut; a count is one entry for each piece in the store."""
PIECE_CHARACTERS_MIN: Final = 32 * 1024
OTHERS: Final = frozenset(("site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"))
"""Directories there that are not part of the library, or that not every Python has."""


def library() -> list[str]:
    """Return the text of each source file of the standard library, by their names."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(root.rglob("*.py")) if not OTHERS & set(path.relative_to(root).parts)]
    return own(paths)


def reference() -> list[str]:
    """Return the topics of the language reference, by their names."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def own(paths: Iterable[Path]) -> list[str]:
    """Return the text of files; what is no UTF-8 in them counts as no letter. Raises OSError."""
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


def pieces(texts: Sequence[str], count: int = PIECES) -> Iterator[str]:
    """Yield the texts as about so many pieces of equal length, or fewer; they begin and end where lines do."""
    size = max(PIECE_CHARACTERS_MIN, sum(map(len, texts)) // count)
    held: list[str] = []
    length = 0
    for text in texts:
        for line in text.splitlines(keepends=True):
            held.append(line)
            length += len(line)
            if length >= size:
                yield "".join(held)
                held, length = [], 0
        held.append("\n")  # the last line of a file is not the beginning of the next
    if length:
        yield "".join(held)
