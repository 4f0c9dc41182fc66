from array import array

Numbers = array[int]

def topological(count: int, tails: Numbers, heads: Numbers) -> Numbers: ...

class Past:
    first: int
    width: int
    count: int
    def __init__(self, order: Numbers, tails: Numbers, heads: Numbers, column: Numbers, position: Numbers) -> None: ...
    def load(self, first: int, width: int) -> None: ...
    def holds(self, one: int) -> bool: ...
    def precedes(self, one: int, other: int) -> bool: ...
    def reaches(self, one: int, chain: int) -> int: ...
    def forced(
        self,
        reader: Numbers,
        key: Numbers,
        source: Numbers,
        key_groups: Numbers,
        group_chain: Numbers,
        group_start: Numbers,
        writer_position: Numbers,
        writer: Numbers,
    ) -> tuple[Numbers, Numbers, Numbers]: ...
