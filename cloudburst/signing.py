"""Records of functions are signed by who registers them, and believed by nobody else's word, where there are keys.

The one rule: what a record names is not fetched, let alone unpickled, before its signature is found to be of somebody
whom the cluster's authority has given the right `code`. Signed is the record, which has the name, the version, and the
hash of the body that will run. A signature does not end with the keys that made it, since functions outlive those; it
ends with the authority, when that is retired. Without keys nothing is signed, and what is signed is read.

A signed record is msgpack `[1, record, signature, certificates]`: ECDSA with SHA-256 over `_USE` and the record; PEM of
the signer and of the authorities that vouch for him. A record itself is a map: a byte tells the two apart.
Source: reliability D (function records, ancestor defect 12); docs/decisions/0041.
"""

from __future__ import annotations

import math
import os
import threading
import time
from typing import Any, Final, NamedTuple

import msgpack
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from anna.authority import identity_in
from anna.gate import Right
from anna.keys import AUTHORITIES, CERTIFICATE, PRIVATE, REPLACED_S, BadKeys, place_of
from cloudburst.errors import NotSigned
from cloudburst.newest import Newest, Order
from cloudburst.records import SIGNED

FORM: Final = 1
_USE: Final = b"cloudburst function record\0"
CERTIFICATES_MAX: Final = 4
SIGNERS_MAX: Final = 64
"""So many signers are known again without looking at their certificates."""


def unwrap(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the record, the signature and the signer's certificates in what the store holds; b"" for what it lacks.

    Raises NotSigned for something that is neither.
    """
    if data[:1] != SIGNED:
        return data, b"", b""
    try:
        form, record, signature, certificates = msgpack.unpackb(data)
        if form == FORM:
            return bytes(record), bytes(signature), bytes(certificates)
    except (ValueError, TypeError, msgpack.UnpackException):
        pass
    raise NotSigned("it is in no form that this version knows")


class Signer(NamedTuple):
    """Somebody who may sign: his public key, and until when it is his."""

    key: ec.EllipticCurvePublicKey
    until_s: float


class Signatures:
    """Those that count with the keys in one directory, which may be replaced meanwhile."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._place = place_of(directory)
        self._seen: tuple[Any, ...] = ()
        self._authorities: list[x509.Certificate] = []
        self._signers: dict[bytes, Signer] = {}
        self._newest = Newest()
        self._lock = threading.Lock()

    def sign(self, record: bytes) -> bytes:
        """Return a record with the signature of these keys. Raises BadKeys."""
        return bytes(msgpack.packb([FORM, record, *self.proof(record)]))

    def proof(self, data: bytes, use: bytes = _USE) -> tuple[bytes, bytes]:
        """Return the signature of something, for one use of it, and the signer's certificates. Raises BadKeys."""
        end = time.monotonic() + REPLACED_S
        while True:
            private, certificates = self._pair()
            signature = private.sign(use + data, ec.ECDSA(hashes.SHA256()))
            if x509.load_pem_x509_certificate(certificates).public_key() == private.public_key():
                return signature, certificates
            if time.monotonic() > end:  # nobody is just replacing them, one after the other
                raise BadKeys(f"the keys in {self._place} cannot sign: the certificate is that of others")
            time.sleep(REPLACED_S / 50)

    def _pair(self) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        try:
            private: Any = serialization.load_pem_private_key(self._place.read(PRIVATE), None)
            return private, self._place.read(CERTIFICATE)
        except ValueError as fault:  # BadKeys is one
            raise BadKeys(f"the keys in {self._place} cannot sign: {fault}") from None

    def check(
        self, data: bytes, signature: bytes, certificates: bytes, use: bytes = _USE, now_s: float = -math.inf
    ) -> None:
        """Raise NotSigned unless a holder of the right `code` in this cluster has signed something for a use.

        With `now_s`, his keys must not have ended then, either.
        """
        if not signature:
            raise NotSigned("it is not signed")
        try:
            signer = self._signer(certificates)
            signer.key.verify(signature, use + data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise NotSigned("it is not what was signed") from None
        if signer.until_s < now_s:
            raise NotSigned(f"its signer's keys have ended {now_s - signer.until_s:,.0f} s ago")

    def see(self, key: str, order: Order) -> None:
        """Take in which record of a name was believed. Raises NotSigned when a later one has been."""
        with self._lock:
            self._newest.see(key, order)

    def seen(self, key: str) -> Order:
        """Return which was the latest."""
        return self._newest.of(key)

    def _signer(self, certificates: bytes) -> Signer:
        """Return a signer who may sign. Raises NotSigned."""
        self._look()
        known = self._signers.get(certificates)
        if known is None:
            if len(self._signers) >= SIGNERS_MAX:
                self._signers.clear()
            known = self._signers[certificates] = self._believed(certificates)
        return known

    def _believed(self, certificates: bytes) -> Signer:
        try:
            leaf, *between = x509.load_pem_x509_certificates(certificates)[:CERTIFICATES_MAX]
            who = identity_in(leaf)
            key = leaf.public_key()
        except (BadKeys, ValueError) as fault:
            raise NotSigned(f"its signer shows no certificate: {fault}") from None
        vouched = [one for one in between if _is_authority(one) and self._issued(one)]
        if not self._issued(leaf) and not any(_has_issued(one, leaf) for one in vouched):
            raise NotSigned(f"it is signed by {who.name}, whose keys are not of an authority that is believed here")
        if who.right < Right.CODE:
            raise NotSigned(f"it is signed by {who.name}, whose right is {who.right.name.lower()} and not code")
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise NotSigned(f"it is signed by {who.name} with a kind of key that this version does not know")
        return Signer(key, leaf.not_valid_after_utc.timestamp())

    def _issued(self, certificate: x509.Certificate) -> bool:
        return any(_has_issued(authority, certificate) for authority in self._authorities)

    def _look(self) -> None:
        """Take in the authorities, when they are others. Raises BadKeys."""
        try:
            state = self._place.state(AUTHORITIES)
            if state == self._seen:
                return
            self._authorities = x509.load_pem_x509_certificates(self._place.read(AUTHORITIES))
        except ValueError as fault:  # BadKeys is one
            raise BadKeys(f"{AUTHORITIES} in {self._place} says nothing of who is believed: {fault}") from None
        self._signers.clear()
        self._seen = state


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _has_issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
