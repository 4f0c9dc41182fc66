"""How old the stable epoch is, as one worker saw it lately: what a session that begins here can know at best.

The one rule: an age is counted once an epoch, when it is greatest (the next epoch has begun, and nothing of it was
heard yet), and only while there is work. A cluster in which nobody writes closes many epochs at once; its stable epoch
is old then, and lacks nothing. So the first epochs after a rest are not counted. Two windows follow each other, so that
what was is forgotten.
"""

from __future__ import annotations

from typing import Final

from anna.config import AGE_EPOCHS_MAX, AGE_WINDOW_EPOCHS

REST_EPOCHS: Final = 3
"""How many epochs of work have to pass before the stable epoch can follow."""


class Ages:
    """Counts of ages, in epochs, those of AGE_EPOCHS_MAX and more together."""

    def __init__(self) -> None:
        self._now = [0] * (AGE_EPOCHS_MAX + 1)
        self._before = list(self._now)
        self._worked = 0

    def note(self, age: int, busy: bool) -> None:
        """An epoch has begun in which the stable one is `age` epochs old; is there work?"""
        self._worked = self._worked + 1 if busy else 0
        if self._worked <= REST_EPOCHS:
            return
        self._now[min(age, AGE_EPOCHS_MAX)] += 1
        if self._worked % AGE_WINDOW_EPOCHS == 0:
            self._before, self._now = self._now, [0] * (AGE_EPOCHS_MAX + 1)

    def percentile(self, percent: int) -> int:
        """Return the least age that so many percent of the last ages do not exceed; 0 when none was counted."""
        counts = [now + before for now, before in zip(self._now, self._before)]
        wanted, seen = -(-sum(counts) * percent // 100), 0
        for age, count in enumerate(counts):
            seen += count
            if seen >= wanted:
                return age
        raise AssertionError("more than all were wanted")
