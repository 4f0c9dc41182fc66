"""The lattice types, one file each, and the registry that maps their wire numbers to them.

Read `base` first, then `lww` (the shortest complete type), `set`, and `orset` (the longest). Shared bodies:
`records` (tables of counts), `elements` and `place` (what sets and orders hold), `dots` (sets of events),
`ordering` (values as bytes in order). `laws` checks a type of your own.
"""

from anna.lattices.base import REGISTRY, Lattice, register
from anna.lattices.bool import Bool
from anna.lattices.causal import Causal
from anna.lattices.counter import Counter
from anna.lattices.dots import Dots
from anna.lattices.lww import LWW
from anna.lattices.map import Map
from anna.lattices.max import Max
from anna.lattices.min import Min
from anna.lattices.ordered_set import OrderedSet
from anna.lattices.orset import ORSet
from anna.lattices.priority import Priority
from anna.lattices.set import Set
from anna.lattices.vector_clock import VectorClock

_BUILT_IN: tuple[type[Lattice], ...] = (
    LWW,
    Max,
    Min,
    Bool,
    Counter,
    Set,
    ORSet,
    OrderedSet,
    Map,
    Priority,
    VectorClock,
    Causal,
)
REGISTRY.update({kind.NUMBER: kind for kind in _BUILT_IN})

__all__ = [
    "LWW",
    "REGISTRY",
    "Bool",
    "Causal",
    "Counter",
    "Dots",
    "Lattice",
    "Map",
    "Max",
    "Min",
    "ORSet",
    "OrderedSet",
    "Priority",
    "Set",
    "VectorClock",
    "register",
]
