from typing import Any, overload

from anna.lattices.base import Lattice

class Priority(Lattice):
    key: bytes
    payload: bytes
    @overload
    def __init__(self) -> None: ...
    @overload
    def __init__(self, priority: Any, value: Any, /) -> None: ...
    @property
    def priority(self) -> Any: ...
    def update(self, priority: Any, value: Any) -> Priority: ...
