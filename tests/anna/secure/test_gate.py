"""The gate: every operation needs a right, however its bytes come."""

from __future__ import annotations

import pytest

from anna import wire
from anna.gate import NEEDED, Gate, Right
from tests.anna import frames


def passed(right: Right, data: bytes, step: int = 1000) -> tuple[bytes, bytes]:
    """Return what passes of bytes that come `step` at a time, and the answers to what does not."""
    gate, through, answers = Gate(right, "alice"), b"", b""
    for place in range(0, len(data), step):
        some, refusals = gate.look(data[place : place + step])
        through += some
        answers += refusals
    return through, answers


@pytest.mark.parametrize("step", [1, 7, 24, 1000])
def test_what_is_allowed_passes_and_what_is_not_is_answered(step: int) -> None:
    good = frames.put(b"k", b"v" * 50) + frames.request(frames.GET, b"k")
    bad = frames.request(wire.REPLICATE, b"", b"x" * 30, id=9)
    through, answers = passed(Right.DATA, good + bad + good + bad, step)
    assert through == good + good
    first, second = frames.replies(answers)
    assert first == second
    assert (first.status, first.request) == (wire.NOT_ADMITTED, 9)
    assert first.payload == b"the keys of alice have the right data; a number of copies needs admin"


@pytest.mark.parametrize("operation", range(256))
def test_an_operation_that_is_not_known_to_be_harmless_needs_the_greatest_right(operation: int) -> None:
    frame = frames.request(operation, b"k")
    through, answers = passed(Right.CODE, frame)
    refused = bool(answers)
    assert through == (b"" if refused else frame)
    assert refused == (NEEDED.get(operation, Right.ADMIN) > Right.CODE)
    assert refused == (operation not in NEEDED or operation == wire.BACKUP)
    assert passed(Right.ADMIN, frame) == (frame, b"")


@pytest.mark.parametrize("operation", [frames.GET, frames.PUT, frames.MPUT, wire.COMMIT, frames.SCAN])
def test_the_reserved_keys_need_the_right_to_code(operation: int) -> None:
    """Functions are kept there: who could write them could run what he likes. D12: so were they, beside users' keys."""
    frame = frames.request(operation, b"\0fn", flags=wire.SYSTEM)
    assert passed(Right.DATA, frame)[0] == b""
    assert passed(Right.CODE, frame) == (frame, b"")
