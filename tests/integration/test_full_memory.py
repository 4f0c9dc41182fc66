"""A served node whose memory is full says so, stays within it, and takes writes again when keys were deleted.

Source: reliability.md B, P24.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import anna
from tests.anna.local.processes import Family, children_of, serving
from tests.integration.test_disk_tier import MIB, anonymous_bytes

MEMORY_BYTES = 32 * MIB
OVERHEAD_BYTES = 32 * MIB
"""What a worker takes beside its keys and values: its code, what it answers, what the allocator has left over."""

RECOVERED_S = 3.0


def load(kvs: anna.Client, size: int) -> Iterator[str]:
    """Write values of `size` bytes, yielding the key of each, until one is refused."""
    for number in range(10 * MEMORY_BYTES // size):
        try:
            kvs.put(f"key:{number}", bytes(size))
        except anna.Overloaded:
            return
        yield f"key:{number}"
    raise AssertionError("ten times as much was taken as there is memory for")


@pytest.mark.parametrize("size", [1_000, 500_000])
def test_a_node_that_is_given_ten_times_its_memory_refuses_the_rest_and_is_not_exhausted(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANNA_DIR", str(tmp_path / "s"))  # not where another test's store may still run
    with serving("--workers", "1", "--memory", "32M") as (process, started):
        family = Family(process.pid)
        (worker,) = children_of(process.pid)
        with anna.connect(f"unix:{started['directory']}/w0.sock") as kvs:
            before = anonymous_bytes(worker)
            keys = list(load(kvs, size))
            assert MEMORY_BYTES // 2 < len(keys) * size < MEMORY_BYTES + size
            assert anonymous_bytes(worker) - before < MEMORY_BYTES + OVERHEAD_BYTES
            assert kvs.get(keys[-1]) == bytes(size)
            with pytest.raises(anna.Overloaded, match="may take") as refusal:
                kvs.put(keys[0], bytes(size))
            assert refusal.value.definite
            begun = time.monotonic()
            for key in keys[:10]:
                assert kvs.delete(key)
            kvs.put("again", b"v")
            assert time.monotonic() - begun < RECOVERED_S
        process.terminate()
        family.assert_ended()
