from anna.kvs.answers import Connection
from anna.kvs.held import Held

class Pushes(Held):
    def take_pushes(self) -> list[tuple[Connection, bytes | list[bytes]]]: ...
