from anna.kvs.answers import Answers, Connection
from anna.kvs.store import Store

class Frames(Answers):
    store: Store
    frames: int
    refused: int
    def receive(self, connection: Connection, data: bytes, monotonic_ns: int) -> bytes | list[bytes]: ...
