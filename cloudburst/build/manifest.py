"""What a built file says of itself, in a file of its own inside it.

The one rule: the manifest says everything that the file was made of and nothing of the machine or time of the build, so
that the same input gives the same manifest. `digest` is over all the rest and the bytes of every file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

FORMAT: Final = 1
PACKED: Final = "cloudburst_packed"
"""The directory that the application has to itself, beside the modules of what it depends on."""
MANIFEST: Final = "manifest.json"
SOURCES: Final = "app"
TESTS: Final = "test-data"


@dataclass(frozen=True, slots=True)
class Manifest:
    """`main` is the file that is run, a path in the application; `functions` are those at its top."""

    name: str
    version: str
    main: str
    functions: tuple[str, ...]
    settings: Mapping[str, str]
    secrets: tuple[str, ...]
    git: Mapping[str, Any] | None
    """`commit`, and whether files have `changed` since; None when the sources are in no repository."""
    python: str
    """Minor version that the file runs on, which it was built for."""
    platform: str
    """`implementation-version` and the kind of machine, as `here` says them."""
    requires: tuple[str, ...]
    distributions: tuple[Mapping[str, str], ...]
    """`name`, `version`, `sha256` of each wheel inside."""
    files: Mapping[str, str]
    """SHA-256 of each file of the application and of its test data, by its path."""
    runtime: str
    stage: str = ""
    """The function that is called for each input of a pipeline; "" for none."""
    digest: str = ""
    format: int = FORMAT

    def as_json(self) -> str:
        """Return the manifest as JSON, the same text for the same manifest."""
        return json.dumps(asdict(self), sort_keys=True, indent=1) + "\n"


def parse(text: str) -> Manifest:
    """Return the manifest that JSON describes."""
    said = json.loads(text)
    known = {one.name for one in fields(Manifest)}
    return Manifest(**{name: value for name, value in said.items() if name in known})


def here() -> str:
    """Return the kind of Python and machine that this is, such as `cpython-311 x86_64-linux-gnu`."""
    kind = sys.implementation
    return f"{kind.cache_tag} {getattr(kind, '_multiarch', '')}"


def directory() -> Path | None:
    """Return where what this process was started from is unpacked; None when it is no built file."""
    import importlib.util

    found = importlib.util.find_spec(PACKED)
    places = list(found.submodule_search_locations or ()) if found is not None else []
    return Path(places[0]) if places else None


def file() -> Path | None:
    """Return the built file that this process was started from; None when it is none."""
    named = os.environ.get("PEX", "")
    return Path(named).absolute() if named and directory() is not None else None
