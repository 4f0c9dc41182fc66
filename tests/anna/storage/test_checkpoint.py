"""The checkpoint's logic against a log and cells that are plain Python: whenever it stops, nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from anna.storage.checkpoint import Checkpoint, Slice


def test_it_is_due_when_the_log_is_longer_than_the_state_and_long_enough() -> None:
    checkpoint = Checkpoint(log_bytes_min=100)
    assert [checkpoint.due(log, state) for log, state in ((100, 0), (101, 0), (101, 101), (102, 101))] == [
        False,
        True,
        False,
        True,
    ]
    checkpoint.begin(1, iter(()))
    assert not checkpoint.due(1000, 0)


def test_slices_are_bounded_and_the_log_goes_after_the_last_one() -> None:
    checkpoint = Checkpoint(slice_bytes=10)
    cells = [(b"key%d" % i, b"cell") for i in range(4)]
    checkpoint.begin(7, iter(cells))
    assert (checkpoint.take(), checkpoint.take()) == (Slice(tuple(cells[:2])), None)
    assert checkpoint.stored() is None
    assert checkpoint.take() == Slice(tuple(cells[2:]))
    assert checkpoint.stored() is None
    assert checkpoint.take() == Slice()
    assert checkpoint.stored() == 7
    assert checkpoint.take() is None


def test_a_slice_is_gathered_in_steps_without_what_is_forgotten_meanwhile() -> None:
    checkpoint = Checkpoint(step_keys=2)
    checkpoint.begin(7, iter([(b"key%d" % i, b"cell") for i in range(5)]))
    assert (checkpoint.take(), checkpoint.gathering) == (None, True)
    checkpoint.forget(b"key1")
    assert (checkpoint.take(), checkpoint.gathering) == (None, True)
    kept = tuple((b"key%d" % i, b"cell") for i in (0, 2, 3, 4))
    assert (checkpoint.take(), checkpoint.gathering) == (Slice(kept, (b"key1",)), False)
    assert checkpoint.stored() == 7


def test_one_that_failed_frees_no_log_and_forgets_no_drop() -> None:
    checkpoint = Checkpoint()
    checkpoint.forget(b"gone")
    checkpoint.begin(7, iter([(b"a", b"1")]))
    assert checkpoint.take() == Slice(((b"a", b"1"),), (b"gone",))
    checkpoint.forget(b"later")
    checkpoint.failed()
    checkpoint.begin(9, iter(()))
    assert checkpoint.take() == Slice((), (b"gone", b"later"))
    assert checkpoint.stored() == 9


KEYS = st.integers(0, 3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), KEYS),
        st.tuples(st.just("forget"), KEYS),
        st.just(("advance", 0)),
        st.just(("advance", 0)),
        st.just(("failed", 0)),
    ),
    min_size=10,
    max_size=60,
)


@given(steps=STEPS, slice_bytes=st.integers(1, 8), step_keys=st.integers(1, 5))
@settings(max_examples=600)
def test_whenever_it_stops_cells_and_log_give_the_state(
    steps: list[tuple[str, int]], slice_bytes: int, step_keys: int
) -> None:
    """The state is a counter for each key that only grows; forgetting is logged and starts it anew, higher."""
    checkpoint = Checkpoint(slice_bytes=slice_bytes, step_keys=step_keys)
    state: dict[int, int] = {}
    log: dict[int, tuple[int, int | None]] = {}
    cells: dict[bytes, bytes] = {}
    number = 0

    def reading() -> Iterator[tuple[bytes, bytes]]:
        for key in range(4):
            if key in state:
                yield b"%d" % key, b"%d" % state[key]

    for step, key in steps:
        if step == "write":
            number += 1
            state[key] = number
            log[number] = (key, number)
        elif step == "forget" and key in state:
            number += 1
            del state[key]
            log[number] = (key, None)
            checkpoint.forget(b"%d" % key)
        elif step == "advance" and checkpoint.due(1 << 40, 0):
            checkpoint.begin(number, reading())
        elif step == "advance" and checkpoint.taken is not None:
            if (up_to := checkpoint.stored()) is not None:
                log = {number: entry for number, entry in log.items() if number > up_to}
        elif step == "advance" and (piece := checkpoint.take()):
            cells = {key: cell for key, cell in cells.items() if key not in piece.drops} | dict(piece.cells)
        elif step == "failed":
            checkpoint.failed()
        found = {int(key): int(cell) for key, cell in cells.items()}
        for _, (written, value) in sorted(log.items()):
            if value is None:
                found.pop(written, None)
            else:
                found[written] = max(value, found.get(written, 0))
        assert found == state
