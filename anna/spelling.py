"""How values and lattices are spelled on a command line, and printed.

The one rule: a word that is JSON means what JSON says, any other word is text; what is printed reads back the same.
So `3` is a number, `[1, 2]` a list, `hello` and `007` are text, and `"3"` (with its quotes) is the text 3.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from anna.errors import RequestError
from anna.lattices import (
    LWW,
    Bool,
    Causal,
    Counter,
    Lattice,
    Map,
    Max,
    Min,
    OrderedSet,
    ORSet,
    Priority,
    Set,
    VectorClock,
)


class BadSpelling(RequestError, ValueError):
    """The words do not spell a lattice of the type."""


def value_of(word: str) -> Any:
    """Return the value that a word means."""
    try:
        return json.loads(word, parse_constant=_refuse)
    except ValueError:
        return word


def lattice_of(kind: str, words: Sequence[str], remove: Sequence[str] = (), limit: int | None = None) -> Lattice:
    """Return the lattice of a type (a key of `TYPES`) that the words spell. Raises BadSpelling."""
    spell = TYPES[kind]
    if remove and kind != "orset":
        raise BadSpelling(f"only an orset can have elements removed, not a {kind}")
    if limit is not None and kind != "orderedset":
        raise BadSpelling(f"only an orderedset has a limit, not a {kind}")
    try:
        if kind == "orset":
            return ORSet(add=_values(words), remove=_values(remove))
        if kind == "orderedset":
            return OrderedSet(_values(words), limit=limit)
        return spell(words)
    except BadSpelling:
        raise
    except (TypeError, ValueError) as error:
        raise BadSpelling(f"cannot make a {kind} of {' '.join(words)!r}: {error}") from None


def text_of(value: Any) -> str | bytes:
    """Return what is printed for a value: text and bytes as they are, anything else as JSON."""
    return value if isinstance(value, str | bytes) else json.dumps(plain(value), ensure_ascii=False)


def plain(value: Any) -> Any:
    """Return a value with JSON's types alone: sets become sorted lists, bytes text or `{"base64": …}`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return _plain_bytes(bytes(value))
    if isinstance(value, Mapping):
        return {k if isinstance(k, str) else json.dumps(plain(k)): plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(element) for element in value), key=lambda element: json.dumps(element, sort_keys=True))
    if isinstance(value, list | tuple):
        return [plain(element) for element in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return repr(value)


def _plain_bytes(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _values(words: Sequence[str]) -> list[Any]:
    return [value_of(word) for word in words]


def _only(words: Sequence[str]) -> Any:
    if len(words) != 1:
        raise BadSpelling(f"give one value, not {len(words)}")
    return value_of(words[0])


def _counter(words: Sequence[str]) -> Counter:
    if len(words) != 1:
        raise BadSpelling(f"give one amount, such as +3 or -1, not {len(words)}")
    return Counter(int(words[0]))


def _bool(words: Sequence[str]) -> Bool:
    value = _only(words) if words else True
    if not isinstance(value, bool):
        raise BadSpelling(f"a bool is true or false, not {words[0]!r}")
    return Bool(value)


def _priority(words: Sequence[str]) -> Priority:
    if len(words) != 2:
        raise BadSpelling(f"a priority is spelled PRIORITY VALUE, got {len(words)} words")
    return Priority(value_of(words[0]), value_of(words[1]))


def _map(words: Sequence[str]) -> Map:
    return Map({name: LWW.of(value_of(word)) for name, word in map(_pair, words)})


def _vector_clock(words: Sequence[str]) -> VectorClock:
    return VectorClock({int(writer, 0): int(count) for writer, count in map(_pair, words)})


def _pair(word: str) -> tuple[str, str]:
    name, equals, rest = word.partition("=")
    if not equals:
        raise BadSpelling(f"spell it NAME=VALUE, not {word!r}")
    return name, rest


TYPES: Final[dict[str, Callable[[Sequence[str]], Lattice]]] = {
    "lww": lambda words: LWW.of(_only(words)),
    "max": lambda words: Max(_only(words)),
    "min": lambda words: Min(_only(words)),
    "bool": _bool,
    "counter": _counter,
    "set": lambda words: Set(_values(words)),
    "orset": lambda words: ORSet(_values(words)),
    "orderedset": lambda words: OrderedSet(_values(words)),
    "map": _map,
    "priority": _priority,
    "vectorclock": _vector_clock,
    "causal": lambda words: Causal(_only(words)),
}
