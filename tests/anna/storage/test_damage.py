"""Torn and flipped files: whatever they do to the disk, nothing wrong is given out and nothing is lost in silence.

Source: reliability P16 (torn at 200 offsets of the last two records; 200 bit flips; wrong 0, silently lost 0).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
from collections import Counter
from pathlib import Path

import pytest

from anna.storage.engine import Engine
from tests.anna.storage.seats import Cells, Logs, crashed, in_child, recovered, verdict

LOGS: Logs = {number: random.Random(number).randbytes(200 + 900 * number) for number in range(1, 21)}
CELLS: Cells = {b"key %05d" % (i * 7919 % 100_000): random.Random(i).randbytes(100) for i in range(1000)}
CELLS |= {b"long %d " % i + b"k" * 600: b"cell" for i in range(20)}
ENDS = {-signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT}
META_OFFSETS = range(16, 216)


def make(directory: Path) -> Engine:
    """Return an open engine that holds LOGS and CELLS, stored bit by bit."""
    engine = Engine(directory, 0)
    for number, blob in LOGS.items():
        engine.append(number, blob)
        engine.commit()
    ordered = list(CELLS.items())
    for start in range(0, len(ordered), 100):
        engine.put_cells(ordered[start : start + 100])
    return engine


FILES = {"log": "log/segment-1", "roots": "log/data.mdb", "cells": "cells/data.mdb"}


def stored(directory: Path, place: str) -> Path:
    return directory / "seat-0" / FILES[place]


def used(content: bytes | bytearray) -> int:
    """Return the length of a file without the room that was taken for later."""
    return len(content.rstrip(b"\0"))


def flipped(root: Path, seed: int) -> Path:
    """Return a copy of the data with one bit flipped, every fourth time in the first two pages."""
    rng = random.Random(seed)
    copy = crashed(root / "whole", root / f"copy-{seed}")
    file = stored(copy, rng.choice(list(FILES)))
    content = bytearray(file.read_bytes())
    at = rng.randrange(8192 if seed % 4 == 0 else used(content))
    content[at] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return copy


def report(first: str, *directories: str) -> None:
    """Print, as a line each, what became of the directories."""
    for directory in (first, *directories):
        print(directory, verdict(Path(directory), LOGS, CELLS), flush=True)


def reported(directories: list[Path]) -> Counter[str]:
    """Return what became of the directories, which are opened in child processes.

    One whose first start ends its process is started again, as a supervisor would: that one must say what is
    the matter, and must not end in the same way.
    """
    found: Counter[str] = Counter()
    started: set[Path] = set()
    while directories:
        code = "import sys; from tests.anna.storage.test_damage import report; report(*sys.argv[1:])"
        child = in_child(code, *directories)
        lines = child.stdout.splitlines()
        found.update(line.rsplit(" ", 1)[1] for line in lines)
        directories = directories[len(lines) :]
        if child.returncode == 0:
            assert directories == []
        else:
            assert child.returncode in ENDS, child.stderr
            assert directories[0] not in started, "it ended a second time"
            started.add(directories[0])
            found["ended once"] += 1
    return found


def test_no_flipped_bit_is_served_or_lost_in_silence(scratch: Path) -> None:
    make(scratch / "whole").close()
    found = reported([flipped(scratch, seed) for seed in range(200)])
    assert set(found) <= {"whole", "damaged", "ended once"}
    assert found["damaged"] > 50  # a bit in a page that nothing uses harms nothing
    assert found["ended once"] < 10, found


def test_a_flip_in_the_newest_root_does_not_bring_back_the_one_before(scratch: Path) -> None:
    """LMDB alone would open the older root: the last commit would be gone without a word."""
    make(scratch / "whole").close()
    found = Counter()
    for place in ("roots", "cells"):
        for byte in range(144, 152):  # the ids of the roots
            for page in (0, 1):
                for bit in (0, 1, 4, 7):
                    copy = crashed(scratch / "whole", scratch / "copy")
                    with open(stored(copy, place), "r+b") as file:
                        file.seek(page * 4096 + byte)
                        old = file.read(1)[0]
                        file.seek(page * 4096 + byte)
                        file.write(bytes([old ^ 1 << bit]))
                    found[verdict(copy, LOGS, CELLS)] += 1
                    shutil.rmtree(copy)
    assert set(found) == {"damaged"}


@pytest.mark.parametrize("steps", [1, 2])
def test_a_root_torn_at_any_byte_is_the_old_state_or_the_new_one(scratch: Path, steps: int) -> None:
    """A power cut tears the write of a root: the first bytes are new, the rest is as it was."""
    engine = make(scratch / "data")
    for number in range(steps - 1):
        engine.put_cells([(b"between", b"%d" % number)])
    old_cells = dict(engine.cells())
    before = crashed(scratch / "data", scratch / "before")
    engine.put_cells([(b"the last", b"cell")])
    new_cells = dict(engine.cells())
    after = crashed(scratch / "data", scratch / "after")
    engine.close()
    old, new = stored(before, "cells").read_bytes(), stored(after, "cells").read_bytes()
    root = next(page for page in (0, 4096) if old[page : page + 4096] != new[page : page + 4096])
    for offset in META_OFFSETS:
        torn = new[: root + offset] + old[root + offset : root + 4096] + new[root + 4096 :]
        stored(after, "cells").write_bytes(torn)
        logs, cells, damage = recovered(after)
        assert (damage, logs) == ([], LOGS)
        assert cells in (old_cells, new_cells)


@pytest.mark.parametrize("blobs", [(b"the last" * 1000,), (b"", b"some", b"x" * 5000)], ids=["one blob", "three blobs"])
def test_a_commit_torn_at_any_byte_is_the_old_state_or_the_new_one(scratch: Path, blobs: tuple[bytes, ...]) -> None:
    """A power cut tears the write of a group: any of its sectors may be new or as they were."""
    engine = make(scratch / "data")
    before = stored(crashed(scratch / "data", scratch / "before"), "log").read_bytes()
    for number, blob in enumerate(blobs, 21):
        engine.append(number, blob)
    engine.commit()
    after = crashed(scratch / "data", scratch / "after")
    engine.close()
    new = stored(after, "log").read_bytes()
    begin = next(at for at in range(len(new)) if before[at] != new[at]) // 4096 * 4096
    end = used(new)
    rng = random.Random(5)
    outcomes = set()
    for _ in range(100):
        at = rng.randrange(begin, end)
        torn = rng.choice([new[:at] + before[at:], before[:at] + new[at:]])
        stored(after, "log").write_bytes(torn)
        logs, cells, damage = recovered(after)
        assert (damage, cells) == ([], CELLS)
        assert logs in (LOGS, LOGS | dict(enumerate(blobs, 21)))
        outcomes.add(len(logs))
    assert outcomes >= {len(LOGS)}


def test_after_a_torn_commit_the_log_goes_on_at_its_place(scratch: Path) -> None:
    engine = make(scratch / "data")
    engine.append(21, b"torn" * 9000)
    engine.commit()
    copy = crashed(scratch / "data", scratch / "copy")
    engine.close()
    content = bytearray(stored(copy, "log").read_bytes())
    content[used(content) - 1] ^= 1
    stored(copy, "log").write_bytes(content)
    for life in range(2):
        engine = Engine(copy, 0)
        assert (engine.appended, engine.damage) == (20 + life, [])
        engine.append(21 + life, b"whole")
        engine.commit()
        engine.close()
    assert recovered(copy) == (LOGS | {21: b"whole", 22: b"whole"}, CELLS, [])


@pytest.mark.parametrize("known", ["a later commit", "a mark", "the end of the process"])
def test_what_was_durable_and_is_broken_is_not_taken_for_a_torn_end(scratch: Path, known: str) -> None:
    engine = make(scratch / "data")
    engine.append(21, b"the one that breaks")
    engine.commit()
    if known == "a later commit":
        engine.append(22, b"later")
        engine.commit()
    elif known == "a mark":
        engine.mark()
    else:
        engine.close()
    copy = crashed(scratch / "data", scratch / "copy")
    if known != "the end of the process":
        engine.close()
    content = bytearray(stored(copy, "log").read_bytes())
    content[content.find(b"the one that breaks")] ^= 1
    stored(copy, "log").write_bytes(content)
    logs, _, damage = recovered(copy)
    assert [str(found) for found in damage] == ["log 21: it is missing or not as it was written"]
    assert logs == LOGS | ({22: b"later"} if known == "a later commit" else {})


def test_a_file_that_was_cut_off_is_noticed(scratch: Path) -> None:
    make(scratch / "whole").close()
    copies = []
    for place in FILES:
        size = used(stored(scratch / "whole", place).read_bytes())
        for offset in random.Random(4).sample(range(size), 50):
            copies.append(crashed(scratch / "whole", scratch / f"copy-{place}-{offset}"))
            os.truncate(stored(copies[-1], place), offset)
    assert set(reported(copies)) <= {"whole", "damaged"}


def test_a_blob_that_is_missing_or_wrong_is_named_by_its_number(scratch: Path) -> None:
    make(scratch).close()
    content = bytearray(stored(scratch, "log").read_bytes())
    at = content.find(LOGS[7])
    content[at : at + len(LOGS[7])] = bytes(len(LOGS[7]))
    content[content.find(LOGS[9])] ^= 1
    stored(scratch, "log").write_bytes(content)
    engine = Engine(scratch, 0)
    assert [number for number, _ in engine.logs()] == [n for n in LOGS if n not in (7, 9)]
    damage = [(found.place, found.which, found.why) for found in engine.damage]
    assert damage == [("log", number, "it is missing or not as it was written") for number in (7, 9)]
    engine.close()


def test_a_cell_under_another_key_is_damage(scratch: Path) -> None:
    engine = make(scratch)
    first, second = list(CELLS)[:2]
    with engine.table.lmdb.begin(write=True) as transaction:
        transaction.put(first, bytes(transaction.get(second) or b""))
    with pytest.raises(Exception, match="is not as it was written"):
        engine.cell(first)
    assert first not in dict(engine.cells())
    assert {found.which for found in engine.damage} == {first}
    engine.close()


def test_a_start_that_a_damaged_length_ended_is_followed_by_one_that_says_so(scratch: Path) -> None:
    """The mapped file ends before the record does; a supervisor must not start such a seat for ever."""
    engine = make(scratch)
    engine.put_cells([(b"the long", b"x" * 8000)])
    engine.close()
    content = bytearray(stored(scratch, "cells").read_bytes())
    node = struct.pack("<HH", 1, 8) + b"the long"  # in pages of its own, 8 bytes of key
    at = content.find(node)
    while at >= 0:
        content[at - 1] |= 0x40  # the length, which is before, becomes 1 GiB longer
        at = content.find(node, at + 1)
    stored(scratch, "cells").write_bytes(content)
    assert reported([scratch]) == Counter({"ended once": 1, "damaged": 1})
    Engine.salvage(scratch, 0)
    engine = Engine(scratch, 0)
    assert (engine.refilling, engine.damage) == (True, [])
    engine.close()


def test_cells_that_a_page_hides_are_missed(scratch: Path) -> None:
    engine = make(scratch)
    engine.put_cells(list(CELLS.items()))
    engine.close()
    content = bytearray(stored(scratch, "cells").read_bytes())
    for page in range(8192, len(content), 4096):
        (flags, lower) = struct.unpack_from("<HH", content, page + 10)
        if flags == 2 and lower > 18:  # a leaf: the end of its table of nodes
            struct.pack_into("<H", content, page + 12, lower - 2)
    stored(scratch, "cells").write_bytes(content)
    engine = Engine(scratch, 0, ballast_bytes=4096)
    assert len(dict(engine.cells())) < len(CELLS)
    assert any("records of 1,021 are there" in found.why for found in engine.damage)
    engine.close()
