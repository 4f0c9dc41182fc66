"""The command line of `cb map`, as a script of the shell that no input can change.

The one rule: what an input holds never becomes part of the script. Each placeholder becomes a reference to one of the
shell's own parameters, quoted as its place in the script demands, and the values are passed beside the script. So a
file may have any name: with blanks, quotes, newlines, `$(…)`. Source: decision record 0038.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from cloudburst.errors import RequestError

PLACES: Final = {"{}": 1, "{/}": 2, "{.}": 3, "{out}": 4}
"""Placeholders, and the numbers of the shell's parameters that stand for them."""
NAME_BYTES_MAX: Final = 120


@dataclass(frozen=True, slots=True)
class Template:
    """A command with placeholders.

    `script` is for `sh -c`; `writes` says whether it names a file for its output, `parts` whether it names parts of its
    input (which are made for each task, else).
    """

    script: str
    writes: bool
    parts: bool

    @classmethod
    def of(cls, command: str) -> Template:
        """Read a command; one that says nowhere where its input goes has it at its end. Raises RequestError."""
        if not command.strip() or "\0" in command:
            raise RequestError("the command is empty, or holds a zero byte: cb map 'gzip -c {} > {out}' FILES")
        if not any(place in command for place in ("{}", "{/}", "{.}")):
            command += " {}"
        return cls(_script(command), "{out}" in command, "{/}" in command or "{.}" in command)

    def arguments(self, text: str, out: str) -> list[str]:
        """Return the program to run for an input, whose output goes to the file `out`."""
        parts = (PurePath(text).name or text, stem(text)) if self.parts else ("", "")
        return ["/bin/sh", "-c", self.script, "cb-map", text, *parts, out]


def stem(text: str) -> str:
    """Return a path without its last extension."""
    path = PurePath(text)
    return str(path.with_suffix("")) if path.suffix else text


def name_of(text: str) -> str:
    """Return the name of the file that an input's output is written to: its own last part, made fit where it is not."""
    name = PurePath(text).name
    fits = 0 < len(name.encode(errors="surrogateescape")) <= NAME_BYTES_MAX and name not in (".", "..")
    if fits:
        return name
    import hashlib

    if name in (".", ".."):
        name = ""
    digest = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    kept = name.encode(errors="surrogateescape")[: NAME_BYTES_MAX - 20].decode(errors="ignore")
    return f"{kept or 'item'}-{digest}"


def _script(command: str) -> str:
    """Put a reference to a parameter in the place of each placeholder, by the kind of quotes that it stands in."""
    script: list[str] = []
    quote, at = "", 0
    while at < len(command):
        place = next((place for place in PLACES if command.startswith(place, at)), "")
        letter = command[at]
        if place:
            script.append(_reference(PLACES[place], quote))
            at += len(place)
            continue
        if letter == "\\" and quote != "'":
            script.append(command[at : at + 2])
            at += 2
            continue
        if letter in "'\"":
            if not quote:
                quote = letter
            elif quote == letter:
                quote = ""
        script.append(letter)
        at += 1
    return "".join(script)


def _reference(number: int, quote: str) -> str:
    if quote == '"':
        return f"${{{number}}}"
    if quote == "'":
        return f"'\"${{{number}}}\"'"
    return f'"${{{number}}}"'
