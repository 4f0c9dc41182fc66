from anna.kvs.answers import Connection
from anna.kvs.member import Member

class Held(Member):
    waiting: int
    def take_released(self) -> list[tuple[Connection, bytes]]: ...
