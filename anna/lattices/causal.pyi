from collections.abc import Mapping
from typing import Any

from anna.lattices.base import Lattice
from anna.lattices.dots import Dots

class Version:
    clock: Dots
    @property
    def value(self) -> Any: ...
    @property
    def dependencies(self) -> dict[bytes, Dots]: ...

class Causal(Lattice):
    def __init__(
        self,
        value: Any = ...,
        after: Causal | Dots | None = None,
        dependencies: Mapping[str | bytes, Causal | Dots] | None = None,
    ) -> None: ...
    @property
    def siblings(self) -> tuple[Version, ...]: ...
    @property
    def clock(self) -> Dots: ...
    def set(self, value: Any, dependencies: Mapping[str | bytes, Causal | Dots] | None = None) -> Causal: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
