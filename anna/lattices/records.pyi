"""The body of Counter and VectorClock; nothing here is for use from Python."""

from anna.lattices.base import Lattice

class Records(Lattice): ...
