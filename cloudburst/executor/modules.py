"""Local modules that came with functions: imported from their sources, before anything on this host's path.

Each function comes with a bundle, and while it runs, an import and an unpickled name find the modules of that bundle,
also when another program has modules of the same names. Modules whose texts are equal in two bundles are one, unless
something else in the bundle differs, which they might have imported.
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
        self.active = ""
        """The hash of the bundle whose modules are found."""
        self._sources: dict[str, Source] = {}
        self._bundles: dict[str, dict[str, Source]] = {}
        self._set_aside: dict[str, dict[str, ModuleType]] = {}
        self._lock = threading.Lock()

    def take(self, address: str, data: bytes) -> None:
        """Let the modules of a bundle, whose hash is `address`, be found."""
        if address not in self._bundles:
            self._bundles[address] = unpack_bundle(data)
        self.activate(address)

    def activate(self, address: str) -> None:
        """Let the modules of a bundle that was taken before be found again, as they were then."""
        if address == self.active:
            return
        with self._lock:
            coming, before = self._bundles[address], self._bundles.get(self.active, {})
            if any(self._sources.get(name) != source for name, source in coming.items()):
                loaded = {name: sys.modules[name] for name in before if name in sys.modules}
                self._set_aside[self.active] = loaded
                for name in coming:
                    sys.modules.pop(name, None)
                sys.modules.update(self._set_aside.pop(address, {}))
            self._sources.update(coming)
            self.active = address
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
