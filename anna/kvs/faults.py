"""Faults that tests plant, to see that they are caught.

The one rule: `PLANTED` is empty in every program; only tests put names in, and nothing on a hot path looks. A
name says which rule of the protocol is then broken:

`early-ack` a write is acknowledged before its copies are, `fire-and-forget` a link goes on without what was lost,
`tie-by-arrival` of two writes with one stamp the later to arrive wins, `repair-off` no digests are exchanged,
`tombstone-early` a delete is forgotten before every replica has it, `unsynced-log` a log batch counts as
durable before it is, `duplicate-applied` a write whose answer was lost is sent again (between workers a repeated
message does no harm: a join takes it once), `stale-owner` a worker answers for keys that are no longer its own,
`newest-at-epoch` a read at an epoch gives what is newest, `unstable-epoch` an epoch is read before all of it is here,
`any-view` an epoch is read that became stable on the other side of a partition, `prepared-ignored` an epoch is closed
that a prepared transaction may still be committed in, `own-proposal` each owner commits at the stamp that it proposed,
`refusals-forgotten` an owner prepares what it has said that it never would, `attempts-apart` an attempt at a
transaction is prepared beside another that is not decided, `part-for-whole` a side of a partition answers at epochs,
and takes transactions, whatever it lacks, `early-return` it does so while what the other side wrote is on its way,
`strange-places` an owner prepares beside one that it calls dead, `own-closing-marks` a worker marks what it has closed
itself, `above-mark` a cache reads beyond the mark, `forget-absent` a cache forgets that a key went.
Source: reference E (planted-fault gate).
"""

from __future__ import annotations

from typing import Final

PLANTED: Final[set[str]] = set()
"""The names of the faults that are on."""
