"""How one finds out what is at an address before anything is begun: a node of the same kind, secret, or cluster.

Everything that can be wrong with an address or a secret is told apart here, within `introduction_s`, and the message
says the address. Source: DESIGN §5 (transports), §7.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from anna.errors import NotAdmitted
from anna.gate import WANTS_KEYS, wants_keys
from cloudburst import config, openings
from cloudburst.addresses import split_place
from cloudburst.control import CONTROL_SOCKET, Control, encrypt
from cloudburst.errors import EnvironmentMismatch, NodeLost, ProtocolError, RequestError, UnavailableError
from cloudburst.neighbours import NodeRecord
from cloudburst.secret import Secret
from cloudburst.version import PROTOCOL, RELEASE

if TYPE_CHECKING:
    from anna.keys import Keys

STORE_PAUSE_S: Final = (0.01, 0.1)
"""How long whoever joins waits until he asks again whether there is a store, at first and at most: each time costs both
sides a handshake, and a node of which several wait has just then much to do."""
GREETING: Final = b"\xff\0\0\0\0\0\0\0\1\x7f"
"""What ZeroMQ begins with, on either side."""


def control_endpoint(address: str) -> str:
    """Return where the node of an address is asked. Raises RequestError."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        return f"ipc://{Path(rest).absolute() / CONTROL_SOCKET}"
    host, _, port = rest.removeprefix("//").rpartition(":")
    if scheme == "tcp" and rest.startswith("//") and host and port.isdecimal() and 0 < int(port) < 1 << 16:
        return address
    raise RequestError(f"{address!r} is no address of a node: unix:DIRECTORY or tcp://HOST:PORT")


def node_at(address: str, secret: Secret | None, keys: Keys | None = None) -> NodeRecord:
    """Return the record of the node at an address, once it has a store; by TCP under TLS if there are `keys`.

    Raises NodeLost when none can be reached, RequestError when it does not take the secret or the keys,
    EnvironmentMismatch when it is of another version, ProtocolError when it is none, UnavailableError when it has no
    store in time.
    """
    endpoint = control_endpoint(address)
    if endpoint.startswith("tcp:") and keys is not None:
        return _once_it_has_a_store(address, lambda: _sealed_record(address, keys))
    if endpoint.startswith("tcp:"):
        _reach(address)
        _shake_hands(address, secret)
    control = Control(endpoint, random.SystemRandom().getrandbits(63) | 1, secret)
    try:
        return _once_it_has_a_store(address, lambda: _ask_record(control, address))
    finally:
        control.close()


def _once_it_has_a_store(address: str, ask: Callable[[], NodeRecord]) -> NodeRecord:
    end = time.monotonic() + config.START_TIMEOUT_S
    pause_s, most_s = STORE_PAUSE_S
    while True:
        record = ask()
        if record.store:
            return record
        if time.monotonic() > end:
            raise UnavailableError(f"the node at {address} has had no store for {config.START_TIMEOUT_S} s")
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, most_s)


def _connected(address: str) -> socket.socket:
    """Return a connection to the address, with a timeout. Raises NodeLost."""
    try:
        return socket.create_connection(split_place(address.removeprefix("tcp://")), config.INTRODUCTION_S)
    except OSError as fault:
        why = fault.strerror or str(fault) or type(fault).__name__
        raise NodeLost(f"no node can be reached at {address}: {why}; is it running?", definite=True) from None


def _reach(address: str) -> None:
    """Find out whether anybody listens there, and whether he speaks ZeroMQ. Raises NodeLost, RequestError."""
    with _connected(address) as stream:
        try:
            stream.sendall(GREETING)
            said = stream.recv(len(WANTS_KEYS))
        except OSError:
            return  # `_shake_hands` finds out more
    if said == WANTS_KEYS:
        raise RequestError(f"{wants_keys(address)}")


def _sealed_record(address: str, keys: Keys) -> NodeRecord:
    """Return the record that the relay at an address gives."""
    from anna.handshake import shake_hands
    from anna.sealing import READ_BYTES

    said = b""
    with _connected(address) as stream:
        try:
            seal = shake_hands(stream, keys, address)
            seal.write(openings.pack({"to": openings.RECORD}))
            stream.sendall(seal.take())
            while (split := openings.split(said, openings.ANSWER_BYTES_MAX)) is None:
                data = stream.recv(READ_BYTES)
                if not data:
                    raise NodeLost(f"the node at {address} closed the connection", definite=True)
                seal.feed(data)
                said += seal.read()
            record = openings.unpack_answer(split[0])
        except NotAdmitted as fault:
            raise RequestError(f"the node at {address} cannot be used with these keys: {fault}") from None
        except TimeoutError as fault:
            raise ProtocolError(f"what listens at {address} does not answer as a node does: {fault}") from None
        except ConnectionError as fault:
            why = "it was started without --keys, is something else, or has ended"
            raise RequestError(f"what listens at {address} does not speak TLS: {why} ({fault})") from None
        except OSError as fault:
            raise NodeLost(f"no node can be reached at {address}: {fault}", definite=True) from None
        except RequestError as fault:
            raise RequestError(f"the node at {address} says: {fault}") from None
    return _checked(NodeRecord.unpack(record), address)


def _shake_hands(address: str, secret: Secret | None) -> None:
    """Find out whether a node listens there that has the same secret."""
    import zmq
    from zmq.utils.monitor import recv_monitor_message

    context: zmq.Context[Any] = zmq.Context()
    greeter = context.socket(zmq.DEALER)
    try:
        encrypt(greeter, address, secret)
        monitor = greeter.get_monitor_socket(zmq.EVENT_ALL)
        greeter.connect(address)
        end = time.monotonic() + config.INTRODUCTION_S
        while monitor.poll(max(0, int((end - time.monotonic()) * 1000))):
            event = recv_monitor_message(monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return
            if event in (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_AUTH):
                raise RequestError(f"the node at {address} has another secret, or no secret; is the secret the same?")
            if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                raise ProtocolError(f"what listens at {address} is no node that others can join (--listen)")
        raise ProtocolError(f"what listens at {address} did not answer within {config.INTRODUCTION_S} s as a node does")
    finally:
        context.destroy(linger=0)


def _ask_record(control: Control, address: str) -> NodeRecord:
    try:
        record = NodeRecord.unpack(bytes(control.ask("record", {}, config.CONTROL_TIMEOUT_S)))
    except NodeLost as fault:
        raise NodeLost(f"no node can be joined at {address}: {fault}; is it running?") from fault
    except ProtocolError as fault:
        raise ProtocolError(f"what answers at {address} is no node of this kind: {fault}") from fault
    return _checked(record, address)


def _checked(record: NodeRecord, address: str) -> NodeRecord:
    """Return the record of a node that talks as this does. Raises EnvironmentMismatch."""
    if record.protocol != PROTOCOL:
        theirs = f"version {record.release}" if record.release else "an older version"
        raise EnvironmentMismatch(
            f"the node at {address} runs {theirs} of cloudburst (protocol {record.protocol}); this is {RELEASE}"
            f" (protocol {PROTOCOL}), and the two cannot talk"
        )
    return record
