"""Faults that tests plant, to see that they are caught.

The one rule: `PLANTED` is empty in every program; only tests put names in, and nothing on a hot path looks. A
name says which rule of the protocol is then broken:

`early-ack` a write is acknowledged before its copies are, `fire-and-forget` a lost delta is not sent again,
`tie-by-arrival` of two writes with one stamp the later to arrive wins, `repair-off` no digests are exchanged,
`tombstone-early` a delete is forgotten before every replica has it, `unsynced-log` a log batch counts as
durable before it is, `duplicate-applied` a repeated message is taken twice, `stale-owner` a worker answers for
keys that are no longer its own. Source: reference E (planted-fault gate).
"""

from __future__ import annotations

from typing import Final

PLANTED: Final[set[str]] = set()
"""The names of the faults that are on."""

IN_THE_CORE: Final = frozenset({"early-ack", "repair-off", "tombstone-early", "unsynced-log", "stale-owner"})
"""Those that the compiled core looks for; the others are planted in the tests' own model alone."""
