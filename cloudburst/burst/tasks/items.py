"""An item of `cb map`: what one task gets, wherever it is run, and how its key is made.

The one rule: a task's key says all that its result depends on: the command, the item's text and content, and how many
equal ones came before it. So the same work is the same task, in this run or in the one that resumes it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import Final

import msgpack

from cloudburst.burst.tasks.templates import name_of

CONTENT_BYTES_MAX: Final = 64 * 1024 * 1024
"""A file that is longer counts as the same when its size and time of change are."""

Identity = tuple[str, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Item:
    """One input.

    `text` is what stands for it in the command; `name` what its output is called. If it is a file, `identity` says
    which (the machine's boot, device, inode, size, time of change), for workers that see it. For those that do not,
    `content` is where the store has its `size` bytes, "" when it has not; `data` is them, when they are few. `number`
    counts from 0.
    """

    key: bytes
    text: str
    name: str
    number: int
    identity: Identity | None = None
    content: str = ""
    size: int = 0
    data: bytes = b""

    def pack(self) -> bytes:
        """Return it as bytes, without its key."""
        text = self.text.encode(errors="surrogateescape")
        name = self.name.encode(errors="surrogateescape")
        return bytes(msgpack.packb([text, name, self.number, self.identity, self.content, self.size, self.data]))

    @classmethod
    def unpack(cls, key: bytes, data: bytes) -> Item:
        """Return what `pack` wrote."""
        text, name, number, identity, content, size, given = msgpack.unpackb(data)
        text, name = (part.decode(errors="surrogateescape") for part in (text, name))
        return cls(key, text, name, number, None if identity is None else tuple(identity), content, size, given)


class Keys:
    """Makes the keys of the items of one command."""

    def __init__(self, command: str) -> None:
        self._command = hashlib.blake2b(command.encode(errors="surrogateescape"), digest_size=16).digest()
        self._seen: dict[bytes, int] = {}

    def key(self, text: str, content: bytes) -> bytes:
        """Return the key of the next item with this text and content."""
        digest = hashlib.blake2b(self._command, digest_size=16)
        for part in (text.encode(errors="surrogateescape"), content):
            digest.update(len(part).to_bytes(8, "big") + part)
        plain = digest.digest()
        before = self._seen.get(plain, 0)
        self._seen[plain] = before + 1
        return plain if not before else digest_of(plain + before.to_bytes(8, "big"))


def item_of(text: str, number: int, keys: Keys, send: Callable[[bytes, bytes], str] | None) -> Item:
    """Return the item for a word of the command line or a line of its input: a file, if there is one of that name.

    `send` keeps a file's content under its digest, for workers that do not see the file, and says where; None when all
    see it. Raises OSError.
    """
    identity = identity_of(text)
    item = Item(b"", text, name_of(text), number, identity)
    if identity is None:
        return replace(item, key=keys.key(text, b""))
    size = identity[3]
    if size > CONTENT_BYTES_MAX and send is None:
        return replace(item, key=keys.key(text, repr(identity[3:]).encode()), size=size)
    data = Path(text).read_bytes()
    digest = digest_of(data)
    content = "" if send is None else send(digest, data)
    return replace(item, key=keys.key(text, digest), content=content, size=len(data))


def identity_of(path: str) -> Identity | None:
    """Return which file a path leads to here; None when it is no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if not S_ISREG(found.st_mode):
        return None
    return _boot(), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def digest_of(data: bytes) -> bytes:
    """Return the digest that content is known by."""
    return hashlib.blake2b(data, digest_size=16).digest()
