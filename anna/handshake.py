"""The handshake of a blocking client: over its own socket, until its socket's timeout.

The one rule: a handshake that fails says why in terms of clusters: who was expected, and who is there. To learn the
latter of somebody who is not believed, he is asked once more, on a connection that carries nothing else.
Source: decision record 0037.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

from anna.address import TcpAddress, parse_address
from anna.errors import NotAdmitted
from anna.keys import Keys
from anna.sealing import READ_BYTES, NotBelieved, Seal

ASK_S: Final = 1.0
"""How long who is not believed may take to show whose he is."""


def shake_hands(stream: socket.socket, keys: Keys, address: str) -> Seal:
    """Return the seal of a connection to `address` on which nothing has been said yet.

    Every wait takes as long as the socket's timeout at most. Raises OSError, of which NotAdmitted is one.
    """
    seal = Seal(keys, address)
    try:
        while not seal.shake():
            stream.sendall(seal.take())
            data = stream.recv(READ_BYTES)
            if not data:
                why = "it was started without --keys, or is something else"
                raise NotAdmitted(f"who listens at {address} closed the connection during the handshake: {why}")
            seal.feed(data)
    except TimeoutError:
        why = "it was started without --keys, or is something else"
        raise TimeoutError(f"who listens at {address} did not answer the handshake: {why}") from None
    except NotAdmitted as error:
        told = seal.take()
        if told:
            stream.sendall(told)
        raise explained(error, address) from None
    stream.sendall(seal.take())
    return seal


def explained(error: NotAdmitted, address: str) -> NotAdmitted:
    """Return the error with the cluster of who listens there, if it is one of his not being believed."""
    place = parse_address(address)
    if not isinstance(error, NotBelieved) or not isinstance(place, TcpAddress):
        return error
    cluster = cluster_at(place)
    return error if cluster is None else NotBelieved(f"{error}; he is of cluster {cluster}")


def cluster_at(place: TcpAddress) -> str | None:
    """Return of which cluster who listens there says he is, which nothing proves; None when that is not to be had."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((place.host, place.port), ASK_S) as stream,
            context.wrap_socket(stream) as shown,
        ):
            return _cluster_in(shown.getpeercert(binary_form=True) or b"")
    except OSError:
        return None


def _cluster_in(certificate: bytes) -> str | None:
    try:
        from cryptography import x509

        from anna.authority import identity_in

        return identity_in(x509.load_der_x509_certificate(certificate)).cluster
    except (ImportError, ValueError):  # BadKeys is a ValueError
        return None
