"""The C library's allocator, told to give large blocks back.

The one rule: a worker that promises to stay within a limit must not keep what it has freed. glibc raises the size from
which blocks are mapped alone (and so given back when freed) to the largest block that was ever freed; a checkpoint's
slices of megabytes then leave values of 100 KB in heaps full of holes. With the size fixed, a worker that is given
32 MiB for states takes 64 to 70 MiB in all, not 77 to 97.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""glibc's names for how much may be free at a heap's end, and from which size a block is mapped alone. Both move with
what was freed until one of them is set. Source: mallopt(3)."""


def give_back_from(block_bytes: int) -> bool:
    """Let every block of at least `block_bytes` go back to the system when it is freed; tell whether that took."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc: others map large blocks alone from a size that stays
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, block_bytes)) and bool(mallopt(_M_TRIM_THRESHOLD, block_bytes))
