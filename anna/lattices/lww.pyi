from typing import Any, Self

from anna.lattices.base import Lattice

class LWW(Lattice):
    stamp: int
    writer: int
    payload: bytes
    def __init__(self, value: Any = None, stamp: int = 0, writer: int = 0) -> None: ...
    @staticmethod
    def of(value: Any) -> LWW: ...
    def set(self, value: Any, stamp: int, writer: int) -> Self: ...
