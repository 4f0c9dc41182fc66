"""The examples of docs/functions.md and docs/sessions.md run, each page at one go, and print what the page says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest

import cloudburst as cb

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = DOCS / "functions.md"


@pytest.mark.parametrize(("guide", "least"), [(GUIDE, 12), (DOCS / "sessions.md", 1)], ids=lambda one: str(one)[-20:])
def test_every_example_prints_what_the_guide_says(client: cb.Client, guide: Path, least: int) -> None:
    blocks = re.findall(r"^```pycon\n(.*?)^```", guide.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= least
    names: dict[str, Any] = {"__name__": "__main__"}
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert cb.default() is client
    for n, block in enumerate(blocks):
        test = doctest.DocTestParser().get_doctest(block, names, f"block {n}", str(guide), 0)
        runner.run(test, clear_globs=False)
        names = test.globs
    assert runner.failures == 0


def test_the_guide_names_every_option() -> None:
    from cloudburst.calloptions import CallOptions

    text = GUIDE.read_text()
    assert all(f"`{option}=" in text for option in CallOptions.__dataclass_fields__)


def test_no_module_hides_what_the_package_offers() -> None:
    """Importing a submodule sets its name on the package: `cb.dag` was a module as soon as one had been used."""
    import importlib
    import pkgutil

    modules = {found.name for found in pkgutil.iter_modules(cb.__path__)}
    for name in modules - {"__main__"}:
        importlib.import_module(f"cloudburst.{name}")
    assert modules & set(cb.__all__) == {"aio"}
