"""Local modules that came with functions: imported from their sources, before anything on this host's path.

The newest that came is the one that an import finds. When a module comes with another text than it was imported from,
it and all that came with it are forgotten, to be imported anew; functions that were loaded before keep what they have.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

from cloudburst.locality import Source, unpack_bundle


class Bundled(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads the modules that have come."""

    def __init__(self) -> None:
        self._sources: dict[str, Source] = {}
        self._lock = threading.Lock()

    def take(self, data: bytes) -> None:
        """Let the modules of a bundle be imported from now on."""
        coming = unpack_bundle(data)
        with self._lock:
            changed = any(self._sources.get(name) != source for name, source in coming.items())
            self._sources.update(coming)
            if changed:
                for name in coming:
                    sys.modules.pop(name, None)
            if self not in sys.meta_path:
                sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how a module is imported, None when it has not come."""
        source = self._sources.get(fullname)
        if source is None:
            return None
        package, origin, _ = source
        spec = importlib.util.spec_from_loader(fullname, self, origin=origin, is_package=package)
        assert spec is not None
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [str(Path(origin).parent)]  # what has not come may be there
        return spec

    def is_package(self, fullname: str) -> bool:
        """Return whether a module is a package. Raises ImportError."""
        return self._source(fullname)[0]

    def get_source(self, fullname: str) -> str:
        """Return a module's text, which tracebacks show. Raises ImportError."""
        return self._source(fullname)[2]

    def get_code(self, fullname: str) -> CodeType:
        """Return a module's code. Raises ImportError, SyntaxError."""
        _, path, text = self._source(fullname)
        return self.source_to_code(text, path)

    def _source(self, fullname: str) -> Source:
        source = self._sources.get(fullname)
        if source is None:
            raise ImportError(f"module {fullname!r} has not come with any function", name=fullname)
        return source


BUNDLED = Bundled()
"""The one of this process."""
