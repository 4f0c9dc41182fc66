"""The YAML that MoveIt's files are written in: maps and lists by indentation, or in braces and brackets.

Rule: `parse` reads what yaml-cpp emits for planning scenes and requests, and raises `ValueError` for whatever
else (anchors, tags, block scalars, quotes with escapes). It saves the demo a dependency for one file format.
"""

from __future__ import annotations

import re
from typing import Any

TOKEN = re.compile(r'\s*(?:([\[\]{},:])|"([^"\\]*)"|([^\[\]{},:"\s][^\[\]{},:"]*))')
# A mark, or what stood in quotes, or a plain word.
Token = tuple[str | None, str | None, str | None]
KEY = re.compile(r"([A-Za-z_]\w*):(?:\s+(.*))?$")


def parse(text: str) -> Any:
    """Return the maps, lists, numbers, truth values and strings of a document."""
    lines = [(len(line) - len(line.lstrip()), line.strip()) for line in text.splitlines() if line.strip()]
    # A dash opens a list item whose content stands on its own, two columns further in.
    parts: list[tuple[int, str]] = []
    for indent, line in lines:
        while line.startswith("- ") or line == "-":
            parts.append((indent, "-"))
            inner = line[1:].lstrip()
            indent, line = indent + len(line) - len(inner), inner
        if line:
            parts.append((indent, line))
    value, end = block(parts, 0)
    if end != len(parts):
        raise ValueError(f"not understood from here: {parts[end][1][:60]!r}")
    return value


def block(parts: list[tuple[int, str]], at: int) -> tuple[Any, int]:
    """Return the value that begins at part `at`, and the part after it."""
    indent, line = parts[at]
    if line == "-":
        items = []
        while at < len(parts) and parts[at] == (indent, "-"):
            item, at = block(parts, at + 1)
            items.append(item)
        return items, at
    if not KEY.match(line):
        return flow(line), at + 1
    found: dict[str, Any] = {}
    while at < len(parts) and parts[at][0] == indent and (match := KEY.match(parts[at][1])):
        key, rest = match.groups()
        at += 1
        if rest:
            found[key] = flow(rest)
        elif at < len(parts) and (parts[at][0] > indent or parts[at] == (indent, "-")):
            found[key], at = block(parts, at)
        else:
            found[key] = None
    return found, at


def flow(text: str) -> Any:
    """Return a scalar, or a list or map in brackets or braces."""
    tokens: list[Token] = [(match[1], match[2], match[3]) for match in TOKEN.finditer(text)]
    value, end = item(tokens, 0)
    if end != len(tokens):
        raise ValueError(f"not understood: {text[:60]!r}")
    return value


def item(tokens: list[Token], at: int) -> tuple[Any, int]:
    """Return the value that begins at token `at`, and the token after it."""
    mark, quoted, plain = tokens[at]
    at += 1
    if quoted is not None:
        return quoted, at
    if plain is not None:
        return scalar(plain.strip()), at
    if mark == "[":
        items = []
        while tokens[at][0] != "]":
            value, at = item(tokens, at)
            items.append(value)
            at += tokens[at][0] == ","
        return items, at + 1
    if mark == "{":
        found = {}
        while tokens[at][0] != "}":
            key, at = item(tokens, at)
            if tokens[at][0] != ":":
                raise ValueError(f"no colon after {key!r}")
            found[key], at = item(tokens, at + 1)
            at += tokens[at][0] == ","
        return found, at + 1
    raise ValueError(f"{mark!r} begins no value")


def scalar(text: str) -> float | bool | str:
    """Return what a word means; every number is a float."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text
