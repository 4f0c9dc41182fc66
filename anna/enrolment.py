"""Enrolment: a machine that has a token makes its own key pair, and gets a certificate for it, once; then it renews it.

The one rule: a private key is made where it is used and never travels, and a token is good for one certificate, of the
name and the right that it was made for, for ten minutes. A token says where to ask and which authority to believe (its
certificate's SHA-256), so the machine tells its secret to nobody else; whoever has the authority keeps only the hash of
that secret, in a file whose removal is the token's use. Who came so, and shows a certificate that is good still, gets
one for a new key pair without a token, of the same name, right and days: as long as there is a file of that certificate
beside the authority, so removing it ends that.

    both are under TLS 1.3               >  the authority's certificate
    secret or none, requests (PKCS #10)  <
                                         >  the files of keys, but the private one; or why not

Each is one line of JSON. Source: reliability D (join tokens); decision records 0041, 0049.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from anna.address import TcpAddress, parse_address
from anna.authority import DAYS, Issuer, check_name, identity_in, pem_of
from anna.errors import AnnaError, NotAdmitted, ProtocolError
from anna.gate import Right
from anna.keys import (
    AUTHORITIES,
    CERTIFICATE,
    CODE,
    PRIVATE,
    BadKeys,
    Keys,
    check_private,
    identity_of,
    keep,
    write_private,
)

TOKENS: Final = "tokens"
"""The directory, beside an authority, of the tokens that are not used yet."""

ENROLLED: Final = "enrolled"
"""The directory, beside an authority, of what came by tokens and may be renewed, by certificates' serial numbers; and
the file, in a directory of keys that came so, of where they are renewed."""

TOKEN_S: Final = 600.0
"""How long a token may be used."""

FORM: Final = "cbjoin1"
LINE_BYTES_MAX: Final = 64 * 1024
ANSWER_S: Final = 5.0
"""How long each side waits for the other."""
ASKING_MAX: Final = 64
"""Most machines that are answered at the same time; others wait to be accepted."""

log = logging.getLogger("anna.enrolment")


@dataclass(frozen=True, slots=True)
class Token:
    """What lets one machine in: where it asks, the SHA-256 of the authority's certificate, and a secret."""

    at: str
    authority: str
    secret: str

    @property
    def text(self) -> str:
        """The token as one word, to be written where only its reader can read."""
        data = json.dumps([self.at, self.authority, self.secret]).encode()
        return f"{FORM}.{base64.urlsafe_b64encode(data).decode()}"

    @classmethod
    def read(cls, text: str) -> Token:
        """Return the token that `text` is. Raises BadKeys."""
        form, _, data = text.strip().partition(".")
        try:
            at, authority, secret = json.loads(base64.urlsafe_b64decode(data))
            if form == FORM and isinstance(secret, str) and isinstance(parse_address(at), TcpAddress):
                return cls(at, authority, secret)
        except (ValueError, TypeError):
            pass
        raise BadKeys("this is no join token: `anna keys token` makes one")

    def __repr__(self) -> str:
        return f"<a token for {self.at}>"


def make(
    directory: Path, at: TcpAddress, name: str, right: Right, within_s: float = TOKEN_S, days: int = DAYS
) -> Token:
    """Return a new token of the authority in a directory, which `serve` takes at an address. Raises BadKeys."""
    issuer = Issuer.of(directory)
    check_name(name)
    token = Token(str(at), _digest(issuer.certificate), secrets.token_urlsafe(32))
    place = directory / TOKENS
    place.mkdir(mode=0o700, exist_ok=True)
    known = {"name": name, "right": right.name, "until": time.time() + within_s, "days": days}
    write_private(place / _mark(token.secret), json.dumps(known).encode())
    return token


class Enrolment:
    """Gives keys to machines that have a token of the authority in a directory, over connections to a socket."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._places = threading.BoundedSemaphore(ASKING_MAX)
        Issuer.of(directory)

    def serve(self, listener: socket.socket) -> None:
        """Answer whoever connects, each in a thread, until the socket is closed."""
        while True:
            self._places.acquire()
            try:
                connection, address = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection, address[0]), daemon=True).start()

    def _answer(self, connection: socket.socket, whence: str) -> None:
        try:
            connection.settimeout(ANSWER_S)
            with connection, self._context().wrap_socket(connection, server_side=True) as stream:
                issuer = Issuer.of(self._directory)
                _say(stream, {"authority": _text(issuer.certificate)})
                asked = _hear(stream)
                try:
                    files, name = self._give(issuer, asked, stream.getpeercert(binary_form=True))
                    _say(stream, {"files": files})
                    log.info("keys were given to %s at %s", name, whence)
                except AnnaError as refusal:
                    log.warning("not-admitted: a machine at %s: %s", whence, refusal)
                    _say(stream, {"refused": str(refusal)})
        except (OSError, AnnaError) as fault:
            log.warning("not-admitted: a machine at %s: %s", whence, fault)
        finally:
            self._places.release()

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._directory / CERTIFICATE, self._directory / PRIVATE)
        context.load_verify_locations(self._directory / AUTHORITIES)
        context.verify_mode = ssl.CERT_OPTIONAL  # who renews shows a certificate, who has a token has none yet
        return context

    def _give(self, issuer: Issuer, asked: dict[str, Any], shown: bytes | None) -> tuple[dict[str, str], str]:
        """Return the files of keys for what a machine asks, and its name. Raises NotAdmitted, ProtocolError."""
        try:
            requests = [_public_key(str(one)) for one in asked["requests"]]
            own, lesser = requests
            secret = str(asked.get("secret", ""))
        except (KeyError, TypeError, ValueError) as fault:
            raise ProtocolError(f"a request that is not understood: {fault}") from None
        known = self._use(secret) if secret else self._known(shown)
        name, right, lasts = known["name"], Right[known["right"]], timedelta(days=known["days"])
        files = issuer.certify(own, name, right, lasts)
        if right == Right.ADMIN:
            files |= {f"{CODE}/{file}": text for file, text in issuer.certify(lesser, name, Right.CODE, lasts).items()}
        self._remember(x509.load_pem_x509_certificate(files[CERTIFICATE].encode()), known)
        return files, name

    def _known(self, shown: bytes | None) -> dict[str, Any]:
        """Return what a certificate, which TLS has found to be good, may be renewed as. Raises NotAdmitted."""
        if not shown:
            raise NotAdmitted("neither a token nor a certificate is shown")
        serial = x509.load_der_x509_certificate(shown).serial_number
        try:
            known: dict[str, Any] = json.loads((self._directory / ENROLLED / f"{serial:x}").read_text())
        except (OSError, ValueError):
            told = "it came by no token, or is to be renewed no more"
            raise NotAdmitted(f"this certificate is not one that is renewed: {told}") from None
        return known

    def _remember(self, certificate: x509.Certificate, known: dict[str, Any]) -> None:
        """Keep that a certificate may be renewed until it ends, and forget those that have ended."""
        place = self._directory / ENROLLED
        place.mkdir(mode=0o700, exist_ok=True)
        now = time.time()
        for path in place.iterdir():
            with suppress(OSError, ValueError, KeyError):
                if json.loads(path.read_text())["until"] < now:
                    path.unlink()
        kept = {key: known[key] for key in ("name", "right", "days")}
        kept["until"] = certificate.not_valid_after_utc.timestamp()
        write_private(place / f"{certificate.serial_number:x}", json.dumps(kept).encode())

    def _use(self, secret: str) -> dict[str, Any]:
        """Return what a token is for, and have it be none any more. Raises NotAdmitted."""
        path = self._directory / TOKENS / _mark(secret)
        try:
            check_private(path, path.stat())
            known: dict[str, Any] = json.loads(path.read_text())
            path.unlink()  # of two that use it at once, one finds it gone
        except (FileNotFoundError, ValueError):
            raise NotAdmitted("this token is not known, or was used: a token is good for one machine, once") from None
        if time.time() > known["until"]:
            raise NotAdmitted("this token is too old: `anna keys token` makes another")
        return known


def join(token: Token, out: Path) -> str:
    """Make key pairs, and put them with what the authority certifies into `out`; return the holder's name.

    Raises what `obtain` raises.
    """
    files = obtain(token)
    keep(out, files)
    write_private(out / ENROLLED, json.dumps({"at": token.at}).encode())
    return identity_in(x509.load_pem_x509_certificate(files[CERTIFICATE].encode())).name


def obtain(token: Token) -> dict[str, str]:
    """Make key pairs, and return them with what the authority certifies, as files by name.

    Raises NotAdmitted when the token is refused, or who listens is not of its authority; OSError when nobody does.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is looked at below, before it is told
    with _asking(token.at, context) as stream:
        _check(token, stream.getpeercert(binary_form=True) or b"", _hear(stream))
        return _files(stream, token.at, {"secret": token.secret})


def renew(keys: Keys, at: str) -> dict[str, str]:
    """Return keys in the place of those that came by a token, while they are good; new key pairs are made.

    `at` is where their authority listens. Raises NotAdmitted when they are refused, or who listens is not of their
    cluster; OSError when nobody does.
    """
    with _asking(at, keys.client) as stream:  # who is of no authority that is believed is told nothing
        peer = identity_of(stream.getpeercert() or {})
        if peer is None or peer.cluster != keys.cluster or peer.right < Right.ADMIN:
            raise NotAdmitted(f"who listens at {at} is not of the authority of these keys: it was told nothing")
        _hear(stream)
        return _files(stream, at, {})


@contextmanager
def _asking(at: str, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """Give a stream to where an authority listens."""
    place = parse_address(at)
    assert isinstance(place, TcpAddress)
    with socket.create_connection((place.host, place.port), ANSWER_S) as connection:
        try:
            with context.wrap_socket(connection) as stream:
                yield stream
        except ssl.SSLCertVerificationError as error:
            raise NotAdmitted(f"who listens at {at} is not of the authority of these keys: {error}") from None
        except ssl.SSLError as error:
            raise NotAdmitted(f"{at} gives no keys: it does not take the ones shown ({error.reason})") from None


def _files(stream: ssl.SSLSocket, at: str, said: dict[str, Any]) -> dict[str, str]:
    """Make key pairs, and ask for certificates; return the files of keys."""
    pairs = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    _say(stream, {**said, "requests": [_request(one) for one in pairs]})
    answer = _hear(stream)
    if "refused" in answer:
        raise NotAdmitted(f"{at} gives no keys: {answer['refused']}")
    files = {str(name): str(text) for name, text in dict(answer["files"]).items()}
    files[PRIVATE] = pem_of(pairs[0]).decode()
    if f"{CODE}/{CERTIFICATE}" in files:
        files[f"{CODE}/{PRIVATE}"] = pem_of(pairs[1]).decode()
    return files


def _check(token: Token, shown: bytes, said: dict[str, Any]) -> None:
    """Raise NotAdmitted unless who shows a certificate has it from the authority that a token names."""
    try:
        authority = x509.load_pem_x509_certificate(str(said["authority"]).encode())
        leaf = x509.load_der_x509_certificate(shown)
        leaf.verify_directly_issued_by(authority)
        believed = _digest(authority) == token.authority and identity_in(leaf).right == Right.ADMIN
    except (KeyError, ValueError, TypeError, InvalidSignature):
        believed = False
    if not believed:
        raise NotAdmitted(f"who listens at {token.at} is not of the authority of this token: it was told nothing")


def _request(private: ec.EllipticCurvePrivateKey) -> str:
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(private, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def _public_key(text: str) -> ec.EllipticCurvePublicKey:
    """Return the key of a request that whoever holds its private half has signed. Raises ValueError."""
    request = x509.load_pem_x509_csr(text.encode())
    key = request.public_key()
    if request.is_signature_valid and isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1":
        return key
    raise ValueError("a request for a certificate is not signed with its own key, or that is not of P-256")


def _mark(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _digest(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def _text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _say(stream: socket.socket, said: dict[str, Any]) -> None:
    stream.sendall(json.dumps(said).encode() + b"\n")


def _hear(stream: socket.socket) -> dict[str, Any]:
    """Return the next line. Raises ProtocolError, OSError."""
    data = b""
    while not data.endswith(b"\n"):
        more = stream.recv(4096)
        data += more
        if not more or len(data) > LINE_BYTES_MAX:
            raise ProtocolError(f"the other side ended after {len(data)} bytes of its line")
    try:
        said = json.loads(data)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise ProtocolError("the other side said what is not understood")
    return said
