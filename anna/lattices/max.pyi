from typing import Any

from anna.lattices.base import Lattice

class Max(Lattice):
    key: bytes
    def __init__(self, value: Any = None) -> None: ...
    def update(self, value: Any) -> Max: ...
