"""The examples of docs/lattices.md run, as one session, and print what the page says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

from anna.lattices import REGISTRY

GUIDE = Path(__file__).parents[2] / "docs" / "lattices.md"


def test_every_example_prints_what_the_guide_says() -> None:
    blocks = re.findall(r"^```pycon\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 12
    names: dict[str, Any] = {"__name__": "guide"}
    runner = doctest.DocTestRunner(verbose=False)
    registered = dict(REGISTRY)
    try:
        for n, block in enumerate(blocks):
            test = doctest.DocTestParser().get_doctest(block, names, f"block {n}", str(GUIDE), 0)
            runner.run(test, clear_globs=False)
            names = test.globs
    finally:
        REGISTRY.clear()
        REGISTRY.update(registered)
    assert runner.failures == 0


def test_the_guide_names_every_type() -> None:
    text = GUIDE.read_text()
    assert all(f"`{kind.__name__}`" in text for kind in REGISTRY.values())
