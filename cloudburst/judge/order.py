"""What must come before what: sessions, what was told, and reads; and the shortest way along it.

The one rule: an edge is here only because a line says so. A read comes after the write that it read, a transaction
after the one before it in its session, and after those whose tokens it was told. Where these contradict each other (a
read from one's own future) the cycle is noted in `broken` and its edges of reading are left out, so that the rest can
still be judged.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from cloudburst.judge.facts import Facts
from cloudburst.judge.history import OK
from cloudburst.judge.past import Past, topological

CELLS_MAX = 64 * 1024 * 1024
"""Most entries of the clocks that are in memory at once, of 4 bytes, twice."""

SESSION, TOLD, READING, FORCED = "session", "told", "reading", "forced"

Edge = tuple[int, int, str]
"""Who comes before whom, and why."""


class Order:
    """The order that lines say, of all transactions; with `sessions` False only what was read, as papers count it."""

    def __init__(self, facts: Facts, sessions: bool = True) -> None:
        self.facts = facts
        self.sessions = sessions
        self.count = len(facts.transactions)
        self.broken: list[list[int]] = []
        self.left_out: set[tuple[int, int]] = set()
        self.tails, self.heads = self._edges()
        order = topological(self.count, self.tails, self.heads)
        if len(order) < self.count:
            self._break(set(range(self.count)) - set(order))
            self.tails, self.heads = self._edges()
            order = topological(self.count, self.tails, self.heads)
        self.order = order
        self.column, self.position = self._chains() if sessions else self._greedy()
        self.columns = max(self.column, default=-1) + 1
        self.width = max(1, min(self.columns, CELLS_MAX // max(self.count, 1)))
        self.past = Past(order, self.tails, self.heads, self.column, self.position)
        self.past.load(0, self.width)

    def predecessors(self, one: int) -> Iterator[Edge]:
        """Yield the edges to a transaction, that of its session first."""
        facts = self.facts
        if self.sessions:
            if facts.before[one] >= 0:
                yield facts.before[one], one, SESSION
            for teller in facts.told[one]:
                if (teller, one) not in self.left_out:
                    yield teller, one, TOLD
        for source in sorted(facts.sources(one)):
            if (source, one) not in self.left_out:
                yield source, one, READING

    def blocks(self) -> Iterator[Past]:
        """Yield the pasts with one block of chains after the other; there is one block unless there are very many
        chains."""
        for first in range(0, max(self.columns, 1), self.width):
            if first != self.past.first:
                self.past.load(first, min(self.width, self.columns - first))
            yield self.past

    def precedes(self, one: int, other: int) -> bool:
        """Return whether `one` is in the past of `other`. At once when its chain is loaded, by a search otherwise."""
        if self.column[one] < 0:
            return False  # nothing follows from it
        if self.past.holds(one):
            return self.past.precedes(one, other)
        return one != other and bool(self.path(one, other))

    def preceding(self, pairs: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return those pairs whose first is in the past of the second. One pass over the chains, however many pairs."""
        pairs = list(pairs)
        if not pairs:
            return set()
        return {(a, b) for past in self.blocks() for a, b in pairs if past.holds(a) and past.precedes(a, b)}

    def path(self, one: int, other: int) -> list[Edge]:
        """Return a way from `one` to `other` with as few edges between sessions as there can be; empty when there is
        none."""
        into: dict[int, Edge] = {}
        waiting: deque[Edge] = deque()
        here = other
        while here != one:
            for edge in self.predecessors(here):
                if edge[0] not in into:
                    if edge[2] == SESSION:
                        waiting.appendleft(edge)
                    else:
                        waiting.append(edge)
            while waiting and waiting[0][0] in into:
                waiting.popleft()
            if not waiting:
                return []
            edge = waiting.popleft()
            here = edge[0]
            into[here] = edge
        found = []
        while here != other:
            found.append(into[here])
            here = into[here][1]
        return found

    def _edges(self) -> tuple[array[int], array[int]]:
        tails, heads = array("i"), array("i")
        for one in range(self.count):
            for tail, head, _ in self.predecessors(one):
                tails.append(tail)
                heads.append(head)
        return tails, heads

    def _break(self, among: set[int]) -> None:
        after: dict[int, list[int]] = {one: [] for one in among}
        for one in among:
            for tail, _, _ in self.predecessors(one):
                if tail in among:
                    after[tail].append(one)
        for component in components(among, after.__getitem__):
            self.broken.append(component)
            inside = set(component)
            for one in component:
                for tail, head, why in self.predecessors(one):
                    if tail in inside and why != SESSION:
                        self.left_out.add((tail, head))

    def _chains(self) -> tuple[array[int], array[int]]:
        """Each session is a chain of what was ok; what has no known end and was seen is one by itself."""
        column, position = array("i"), array("i")
        chains: dict[object, int] = {}
        ends: list[int] = []
        for one in range(self.count):
            if not self.facts.counts[one]:
                column.append(-1)
                position.append(0)
                continue
            chain = chains.setdefault(self.facts.session(one) if self.facts.outcomes[one] == OK else one, len(ends))
            if chain == len(ends):
                ends.append(0)
            ends[chain] += 1
            column.append(chain)
            position.append(ends[chain])
        return column, position

    def _greedy(self) -> tuple[array[int], array[int]]:
        """Each writer goes on with the chain of somebody from whom it read, if that ends there."""
        column, position = array("i", [-1]) * self.count, array("i", [0]) * self.count
        ends: list[int] = []
        for one in self.order:
            if not self.facts.counts[one] or not self.facts.finals[one]:
                continue
            for tail, _, _ in self.predecessors(one):
                if column[tail] >= 0 and ends[column[tail]] == position[tail]:
                    column[one] = column[tail]
                    break
            else:
                column[one] = len(ends)
                ends.append(0)
            ends[column[one]] += 1
            position[one] = ends[column[one]]
        return column, position


def components(nodes: Iterable[int], after: Callable[[int], list[int]]) -> list[list[int]]:
    """Return the sets of more than one node that all reach each other, each sorted (Tarjan, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    held: set[int] = set()
    stack: list[int] = []
    found = []
    for root in nodes:
        if root in index:
            continue
        work = [(root, iter(after(root)))]
        index[root] = low[root] = len(index)
        stack.append(root)
        held.add(root)
        while work:
            here, rest = work[-1]
            for there in rest:
                if there not in index:
                    index[there] = low[there] = len(index)
                    stack.append(there)
                    held.add(there)
                    work.append((there, iter(after(there))))
                    break
                if there in held:
                    low[here] = min(low[here], index[there])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[here])
                if low[here] == index[here]:
                    component = [stack.pop()]
                    while component[-1] != here:
                        component.append(stack.pop())
                    held.difference_update(component)
                    if len(component) > 1:
                        found.append(sorted(component))
    return found


def cycle_through(start: int, inside: set[int], edges: Callable[[int], Iterator[Edge]]) -> list[Edge]:
    """Return a shortest cycle through `start` along edges into each node, within a set; it begins at `start`."""
    into: dict[int, Edge] = {}
    waiting = deque([start])
    while waiting:
        here = waiting.popleft()
        for edge in edges(here):
            tail = edge[0]
            if tail == start:
                found = [edge]
                while found[-1][1] != start:
                    found.append(into[found[-1][1]])
                return found
            if tail in inside and tail not in into:
                into[tail] = edge
                waiting.append(tail)
    return []
