"""Faults that tests plant, to see that the judge notices them.

The one rule: `PLANTED` is empty in every program; only tests put names in. A name says which rule of sessions is then
broken: `own-epoch` each function reads at an epoch of its own, `forget-epoch` a client forgets between sessions where
it has read, `forget-own` it forgets what it has committed, `no-dependencies` a commit does not say what it comes after,
`forget-absent` what was not there at the epoch is read as it is now.
"""

from __future__ import annotations

from typing import Final

PLANTED: Final[set[str]] = set()
"""The names of the faults that are on."""
