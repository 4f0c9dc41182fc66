"""What of a shared object a process has a use for: the segments that the loader maps, and nothing behind them.

The one rule: what is mapped is kept byte for byte. Compilers put behind it what only debuggers and linkers read, and
distributions often leave it there: of the largest module that hosts run it is seven eighths. A file whose end is not
explained by its own tables has something appended to it that somebody may look for, and is left alone.
Source: the ELF specification (System V ABI, chapters 4 and 5); burst-systems §5.4.
"""

from __future__ import annotations

import struct
from typing import Final

MAGIC: Final = b"\x7fELF\x02\x01"
"""Of 64 bits, least significant byte first; others are rare, and left alone."""
HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
SEGMENT: Final = struct.Struct("<IIQQQQQQ")
SECTION: Final = struct.Struct("<IIQQQQIIQQ")
SHARED: Final = 3
"""The type of a shared object (ET_DYN)."""
WITHOUT_BYTES: Final = 8
"""The type of a section that has none in the file (SHT_NOBITS)."""


def loadable(data: bytes) -> bytes:
    """Return a shared object without what no loader reads; anything else as it is."""
    if not data.startswith(MAGIC) or len(data) < HEADER.size:
        return data
    about = list(HEADER.unpack_from(data))
    kind, segments_at, sections_at = about[1], about[5], about[6]
    segment_bytes, segments, section_bytes, sections = about[9:13]
    if kind != SHARED or (segment_bytes, section_bytes) != (SEGMENT.size, SECTION.size):
        return data
    try:
        mapped = _end_of_segments(data, segments_at, segments)
        if max(mapped, _end_of_sections(data, sections_at, sections)) != len(data):
            return data
    except struct.error:
        return data  # its tables are not where it says
    about[6], about[12], about[13] = 0, 0, 0  # there are no sections, which is allowed
    return HEADER.pack(*about) + data[HEADER.size : mapped]


def _end_of_segments(data: bytes, at: int, count: int) -> int:
    """Return where the last byte is behind that some segment needs, or the table of segments itself."""
    found = [SEGMENT.unpack_from(data, at + number * SEGMENT.size) for number in range(count)]
    ends: list[int] = [offset + size for _, _, offset, _, _, size, _, _ in found]
    return max(HEADER.size, at + count * SEGMENT.size, *ends)


def _end_of_sections(data: bytes, at: int, count: int) -> int:
    """Return the same of the sections and their table."""
    found = [SECTION.unpack_from(data, at + number * SECTION.size) for number in range(count)]
    ends: list[int] = [one[4] + one[5] for one in found if one[1] != WITHOUT_BYTES]
    return max(at + count * SECTION.size, *ends, 0)
