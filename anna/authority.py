"""A cluster's authority: what makes keys for hosts and users, and another authority after itself.

The one rule: the authority's private key stays in its own directory; what is issued holds a key pair of its own and
the certificates of the authorities that are believed. After `rotate` two are believed at once, and the new one is
vouched for by the old one, so hosts may get their new keys in any order; `retire` ends that.

An `Issuer` is the authority as a value, which a run of machines has in memory alone.

Needs the package `cryptography`; using keys (`anna.keys`) does not. Source: decision records 0037, 0041.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from anna.gate import Right
from anna.keys import AUTHORITIES, CERTIFICATE, CODE, PRIVATE, BadKeys, Identity, check_private, keep, write_private

AUTHORITY: Final = "authority.pem"
AUTHORITY_PRIVATE: Final = "authority-key.pem"
VOUCHED: Final = "authority-vouched.pem"
"""The authority's certificate as the one before it signed it, while both are believed."""

DAYS: Final = 365
"""How long keys last unless they are issued for another time."""

AUTHORITY_DAYS: Final = 3650
SKEW: Final = timedelta(minutes=5)
"""How far behind the clock of a host may be that is shown a new certificate."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a directory of keys holds: whose, until when, and how many authorities it believes."""

    identity: Identity
    until: datetime
    authorities: int
    makes_keys: bool


@dataclass(frozen=True, slots=True)
class Issuer:
    """An authority that makes keys: its certificate and private key, and the authorities to be believed, as PEM.

    `vouched` is its certificate as the authority before it has signed it, "" when that is not believed any more.
    """

    certificate: x509.Certificate
    signer: ec.EllipticCurvePrivateKey = field(repr=False)
    believed: str
    vouched: str = ""

    @classmethod
    def fresh(cls) -> Issuer:
        """Return the authority of a new cluster, which is in no file."""
        private = ec.generate_private_key(ec.SECP256R1())
        subject = _authority_name(secrets.token_hex(8), 1)
        certificate = _certified(subject, private, subject, private)
        return cls(certificate, private, _text_of(certificate).decode())

    @classmethod
    def of(cls, directory: Path) -> Issuer:
        """Return the authority in a directory. Raises BadKeys when there is none."""
        certificate, signer = _authority_in(directory)
        vouched = directory / VOUCHED
        believed = (directory / AUTHORITIES).read_text()
        return cls(certificate, signer, believed, vouched.read_text() if vouched.exists() else "")

    @property
    def cluster(self) -> str:
        """The name of the cluster."""
        return _one(self.certificate.subject, NameOID.ORGANIZATION_NAME)

    def issue(self, name: str, right: Right, lasts: timedelta) -> dict[str, str]:
        """Return the files of new keys, by name; with those of right `admin` come those for users' functions there.

        Raises BadKeys.
        """
        files = self._pair(name, right, lasts)
        if right == Right.ADMIN:
            lesser = self._pair(name, Right.CODE, lasts)
            files |= {f"{CODE}/{file}": text for file, text in lesser.items()}
        return files

    def _pair(self, name: str, right: Right, lasts: timedelta) -> dict[str, str]:
        private = ec.generate_private_key(ec.SECP256R1())
        return self.certify(private.public_key(), name, right, lasts) | {PRIVATE: pem_of(private).decode()}

    def certify(self, public: ec.EllipticCurvePublicKey, name: str, right: Right, lasts: timedelta) -> dict[str, str]:
        """Return the files of keys without the private one, which whoever holds it keeps to himself.

        Raises BadKeys for a name that is not one (1 to 64 letters, digits, `.`, `_`, `-`).
        """
        check_name(name)
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH] + [ExtendedKeyUsageOID.SERVER_AUTH] * (right == Right.ADMIN)
        now = datetime.now(UTC)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(_name(self.cluster, right.name.lower(), name))
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(min(now + lasts, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.signer.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self.signer, hashes.SHA256())
        )
        return {CERTIFICATE: _text_of(leaf).decode() + self.vouched, AUTHORITIES: self.believed}


def check_name(name: str) -> None:
    """Raise BadKeys for a text that names no holder of keys."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise BadKeys(f"{name!r} names nobody: 1 to 64 letters, digits, '.', '_' or '-'")


def found(directory: Path, name: str = "admin", days: int = DAYS) -> Shown:
    """Make an authority of a new cluster in `directory`, and its first keys beside it, of right `admin`.

    Raises BadKeys when there are keys already.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (directory / AUTHORITY).exists() or (directory / CERTIFICATE).exists():
        raise BadKeys(f"{directory} holds keys already: give another directory, or `anna keys issue`, `rotate`")
    issuer = Issuer.fresh()
    write_private(directory / AUTHORITY_PRIVATE, pem_of(issuer.signer))
    write_private(directory / AUTHORITY, issuer.believed.encode())
    write_private(directory / AUTHORITIES, issuer.believed.encode())
    return issue(directory, directory, name, Right.ADMIN, days)


def issue(authority: Path, out: Path, name: str, right: Right, days: int = DAYS) -> Shown:
    """Make a key pair and its certificate in `out`, with the authorities to be believed. What was there is replaced.

    Raises BadKeys when there is no authority in `authority`, and for a name that is not one (1 to 64 letters, digits,
    `.`, `_`, `-`).
    """
    files = Issuer.of(authority).issue(name, right, timedelta(days=days))
    if out == authority:
        del files[AUTHORITIES]
    keep(out, files)
    return show(out)


def rotate(directory: Path, days: int = DAYS) -> Shown:
    """Make a new authority, which the old one vouches for; both are believed. Raises BadKeys while two are already."""
    before, signer = _authority_in(directory)
    if (directory / VOUCHED).exists():
        raise BadKeys(f"{directory} believes two authorities already: `anna keys retire {directory}` ends that")
    private = ec.generate_private_key(ec.SECP256R1())
    number = int(_one(before.subject, NameOID.COMMON_NAME).rpartition(" ")[2]) + 1
    subject = _authority_name(_one(before.subject, NameOID.ORGANIZATION_NAME), number)
    own = _text_of(_certified(subject, private, subject, private))
    write_private(directory / AUTHORITIES, own + _text_of(before))
    write_private(directory / VOUCHED, _text_of(_certified(subject, private, before.subject, signer)))
    write_private(directory / AUTHORITY, own)
    write_private(directory / AUTHORITY_PRIVATE, pem_of(private))
    own_name = show(directory).identity
    return issue(directory, directory, own_name.name, own_name.right, days)


def retire(directory: Path, days: int = DAYS) -> Shown:
    """Believe the new authority alone, once every host has keys of it. Raises BadKeys when it is alone already."""
    _authority_in(directory)
    if not (directory / VOUCHED).exists():
        raise BadKeys(f"{directory} believes one authority: there is none to retire")
    write_private(directory / AUTHORITIES, (directory / AUTHORITY).read_bytes())
    (directory / VOUCHED).unlink()
    own = show(directory).identity
    return issue(directory, directory, own.name, own.right, days)


def show(directory: Path) -> Shown:
    """Return what the keys in a directory are. Raises BadKeys."""
    try:
        leaf = x509.load_pem_x509_certificate((directory / CERTIFICATE).read_bytes())
        authorities = x509.load_pem_x509_certificates((directory / AUTHORITIES).read_bytes())
    except (OSError, ValueError) as error:
        raise BadKeys(f"{directory} holds no keys: {error} (`anna keys new DIR` makes keys)") from None
    makes_keys = (directory / AUTHORITY_PRIVATE).exists()
    return Shown(identity_in(leaf), leaf.not_valid_after_utc, len(authorities), makes_keys)


def identity_in(certificate: x509.Certificate) -> Identity:
    """Return who a certificate says its holder is. Raises BadKeys when it does not say."""
    names = certificate.subject
    try:
        right = Right[_one(names, NameOID.ORGANIZATIONAL_UNIT_NAME).upper()]
        return Identity(_one(names, NameOID.ORGANIZATION_NAME), _one(names, NameOID.COMMON_NAME), right)
    except (IndexError, KeyError):
        raise BadKeys("a certificate names no cluster, holder and right") from None


def _authority_in(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    path = directory / AUTHORITY_PRIVATE
    try:
        check_private(path, path.stat())
        private = serialization.load_pem_private_key(path.read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((directory / AUTHORITY).read_bytes())
    except (OSError, ValueError) as error:
        raise BadKeys(f"there is no authority in {directory}: {error} (`anna keys new DIR` makes one)") from None
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return certificate, private


def _certified(
    subject: x509.Name, private: ec.EllipticCurvePrivateKey, issuer: x509.Name, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """Return the certificate of an authority, signed by itself or by the one before it."""
    now = datetime.now(UTC)
    may = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(may, critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _authority_name(cluster: str, number: int) -> x509.Name:
    return _name(cluster, "authority", f"authority {number}")


def _name(cluster: str, unit: str, name: str) -> x509.Name:
    parts = {
        NameOID.ORGANIZATION_NAME: cluster,
        NameOID.ORGANIZATIONAL_UNIT_NAME: unit,
        NameOID.COMMON_NAME: name,
    }
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts.items()])


def _one(names: x509.Name, kind: x509.ObjectIdentifier) -> str:
    return str(names.get_attributes_for_oid(kind)[0].value)


def _text_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def pem_of(private: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as it is in a file."""
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return private.private_bytes(encoding, form, serialization.NoEncryption())
