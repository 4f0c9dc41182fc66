import asyncio
import socket

from anna.kvs.worker import Connection
from anna.server import WorkerServer

class Protocol(asyncio.Protocol):
    connection: Connection
    transport: asyncio.Transport
    def __init__(self, server: WorkerServer) -> None: ...
    def send(self, data: bytes | list[bytes]) -> None: ...
    def sweep(self) -> bool: ...

def same_user(peer: socket.socket) -> bool: ...
