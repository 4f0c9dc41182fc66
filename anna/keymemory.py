"""Keys that are in no file: in memory that processes hand to each other, and that no other of their user can look into.

The one rule: who has such keys has closed itself first (`close_to_others`), so that the kernel refuses its descriptors
and its memory to whoever else is the same user, without CAP_SYS_PTRACE. A node's functions run as that user, and would
read any file of his. The keys are one descriptor, which children inherit, or get over a socket, and which a directory's
place has the spelling `memory:FD` for; who holds them replaces them under all that have it, as files are replaced.

What is there: SHA-256 of the rest, which is a JSON map of files by name. Source: docs/decisions/0049.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from time import monotonic, sleep
from typing import Final

from anna.keyplaces import INHERITED, MEMORY
from anna.keys import CODE, ENVIRONMENT, FILES, REPLACED_S, BadKeys, check_names

DIGEST_BYTES: Final = 32
BYTES_MAX: Final = 1 << 20
PR_SET_DUMPABLE: Final = 4


def close_to_others() -> None:
    """Have the kernel refuse this process's memory and descriptors to others, those of its own user too; for good.

    A forked child is closed, too; a program that is started from here is not.
    """
    _prctl_dumpable(0)


def open_to_others() -> None:
    """Take that back, in a forked child that holds nothing of the sort."""
    _prctl_dumpable(1)


def _prctl_dumpable(value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_DUMPABLE): {os.strerror(number)}")


def take_inherited() -> int:
    """Close this process, if it was started with such keys, and return from where on descriptors are not wanted."""
    if os.environ.get(ENVIRONMENT) != f"{MEMORY}{INHERITED}":
        return INHERITED
    close_to_others()
    os.set_inheritable(INHERITED, False)
    return INHERITED + 1


class Held:
    """Keys in the memory of this process, which is closed to others from now on, and of those that it gives them to.

    Without `files` there are none yet.
    """

    def __init__(self, files: Mapping[str, str] | None = None) -> None:
        close_to_others()
        self.fd = os.memfd_create("keys")
        self.lesser: dict[str, str] = {}
        """Those for users' functions, which are to be in a directory."""
        if files is not None:
            self.renew(files)

    def renew(self, files: Mapping[str, str]) -> None:
        """Put newer keys in their place: all that have the descriptor take them up within a second. Raises BadKeys."""
        check_names(files)
        said = json.dumps(dict(files)).encode()
        data = hashlib.sha256(said).digest() + said
        os.pwrite(self.fd, data, 0)
        os.ftruncate(self.fd, len(data))
        self.lesser = {name: text for name, text in files.items() if name.startswith(f"{CODE}/")}

    @property
    def place(self) -> str:
        """What says where they are, in this process."""
        return f"{MEMORY}{self.fd}"

    def close(self) -> None:
        """Have them no more. Closing twice is harmless."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __repr__(self) -> str:
        return "<keys in memory>"


class InMemory:
    """The place of keys that this process holds, or has been given, at a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        close_to_others()

    def __str__(self) -> str:
        return "the memory of this node"

    def state(self, *names: str) -> tuple[tuple[int, int], ...]:
        """Return what tells one state of the keys from another. Raises BadKeys."""
        try:
            found = os.fstat(self._fd)
        except OSError as error:
            raise BadKeys(f"this process was not given the keys at descriptor {self._fd}: {error.strerror}") from None
        return ((found.st_mtime_ns, found.st_size),)

    def read(self, name: str) -> bytes:
        """Return one of the files. Raises BadKeys."""
        return self._files()[name]

    def _files(self) -> dict[str, bytes]:
        end = monotonic() + REPLACED_S
        while True:
            try:
                data = os.pread(self._fd, BYTES_MAX, 0)
            except OSError as error:
                told = f"descriptor {self._fd}: {error.strerror}"
                raise BadKeys(f"this process was not given the keys at {told}") from None
            if hashlib.sha256(data[DIGEST_BYTES:]).digest() == data[:DIGEST_BYTES]:
                return {name: text.encode() for name, text in json.loads(data[DIGEST_BYTES:]).items()}
            if monotonic() > end:  # nobody is just replacing them
                raise BadKeys(f"{self} holds no keys")
            sleep(REPLACED_S / 500)

    @contextmanager
    def paths(self) -> Iterator[list[str]]:
        """Give what OpenSSL can open the three files at, in the order of FILES. Raises BadKeys."""
        files = self._files()
        with ExitStack() as stack:
            found = []
            for name in FILES:
                fd = os.memfd_create("keys")
                stack.callback(os.close, fd)
                os.write(fd, files[name])
                found.append(f"/proc/self/fd/{fd}")
            yield found
