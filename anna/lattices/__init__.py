"""The lattices that keys can hold, by name and by wire number."""

from anna.lattices.base import Lattice
from anna.lattices.lww import LWW

REGISTRY: dict[int, type[Lattice]] = {LWW.NUMBER: LWW}

__all__ = ["LWW", "REGISTRY", "Lattice"]
