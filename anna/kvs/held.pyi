from anna.kvs.answers import Connection
from anna.kvs.member import Member

class Held(Member):
    waiting: int
    def release_held(self) -> None: ...
    def take_released(self) -> list[tuple[Connection, bytes]]: ...
