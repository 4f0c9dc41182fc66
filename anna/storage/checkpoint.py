"""When to take a checkpoint, in which slices, and which part of the log may go when it is there.

The one rule: a blob of the log goes only when cells that hold its effect are durable. A checkpoint that begins
when the log has come to number n copies every cell once, at any time after that; since a state only grows, each
copy holds the effect of every blob to n. What a crash leaves is part of the copy and the whole log: joining
both gives the state. Source: decision 0010; fuzzy checkpoints, Gray & Reuter 1993, 11.3.

A key that the store forgot (its reset is older than the garbage collection horizon) must leave the old
checkpoint before the log that says so goes: `forget` it.

Nothing here knows what a cell is. A slice is gathered in steps, so that nobody waits for the whole of it; one slice is
under way at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from anna.config import CHECKPOINT_LOG_BYTES_MIN, CHECKPOINT_SLICE_BYTES, CHECKPOINT_STEP_KEYS

Cell = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Slice:
    """What one durable transaction stores: first the drops, then the cells."""

    cells: tuple[Cell, ...] = ()
    drops: tuple[bytes, ...] = ()


@dataclass(slots=True)
class Checkpoint:
    """The checkpoint of one seat: `due`, `begin`, then `take` and `stored` by turns until that gives a number."""

    log_bytes_min: int = CHECKPOINT_LOG_BYTES_MIN
    slice_bytes: int = CHECKPOINT_SLICE_BYTES
    step_keys: int = CHECKPOINT_STEP_KEYS
    rest: Iterator[Cell] | None = None
    up_to: int = 0
    forgotten: dict[bytes, None] = field(default_factory=dict)
    gathered: dict[bytes, bytes] = field(default_factory=dict)
    gathered_bytes: int = 0
    taken: Slice | None = None
    is_last: bool = False

    def due(self, log_bytes: int, state_bytes: int) -> bool:
        """Tell whether to begin: when reading the log takes longer than reading the state, and long enough."""
        return self.rest is None and log_bytes > max(self.log_bytes_min, state_bytes)

    def begin(self, number: int, cells: Iterator[Cell]) -> None:
        """Begin with all cells; the log's blobs up to `number` were joined into them already.

        `cells` may change while it is read, as long as each key that stays comes up.
        """
        assert self.rest is None, "one checkpoint at a time"
        self.rest, self.up_to = cells, number

    def forget(self, key: bytes) -> None:
        """Note that the store dropped `key` altogether. Kept until the next checkpoint has dropped it too."""
        self.forgotten[key] = None
        self.gathered.pop(key, None)

    @property
    def gathering(self) -> bool:
        """Whether `take` has more to gather before it gives a slice."""
        return self.rest is not None and self.taken is None

    def take(self) -> Slice | None:
        """Go one step on, and return the next slice to make durable when it is whole.

        None when it is not yet (`gathering`), when one is under way, and when nothing is due.
        """
        if self.rest is None or self.taken is not None:
            return None
        count = 0
        for key, cell in islice(self.rest, self.step_keys):
            count += 1
            self.gathered[key] = cell
            self.gathered_bytes += len(key) + len(cell)
            if self.gathered_bytes >= self.slice_bytes:
                break
        is_full = self.gathered_bytes >= self.slice_bytes
        if count == self.step_keys and not is_full:
            return None
        self.is_last = not is_full
        self.taken = Slice(tuple(self.gathered.items()), tuple(self.forgotten))
        self._begin_slice()
        self.forgotten = {}
        return self.taken

    def _begin_slice(self) -> None:
        self.gathered, self.gathered_bytes = {}, 0

    def stored(self) -> int | None:
        """Note that the slice is durable; return the number up to which the log may go, None before the end."""
        assert self.taken is not None, "no slice is under way"
        self.taken = None
        if not self.is_last:
            return None
        self.rest = None
        return self.up_to

    def failed(self) -> None:
        """Give up the checkpoint: a slice was not stored. The log stays as it is, and it is due again."""
        if self.taken is not None:
            self.forgotten = dict.fromkeys((*self.taken.drops, *self.forgotten))
        self.rest = self.taken = None
        self._begin_slice()
