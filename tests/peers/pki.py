"""A small public key infrastructure for mail, made anew for each run: no key lies in the project."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.now(UTC).replace(microsecond=0)
"""When messages arrive in the tests: the clock's time, for the peers sign by the clock."""

DAY = timedelta(days=1)
SIGN = ("digital_signature", "content_commitment")
BOTH = (*SIGN, "key_encipherment", "key_agreement")
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
_SERIALS = itertools.count(1000)


@functools.cache
def key(kind: str) -> Any:
    """A key; the same for the same kind, as ``rsa-2048/anna`` or ``P-256/anna``: making one takes time."""
    algorithm = kind.partition("/")[0]
    if algorithm.startswith("rsa-"):
        return rsa.generate_private_key(65537, int(algorithm[4:]))
    if algorithm == "X25519":
        return x25519.X25519PrivateKey.generate()
    if algorithm == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm == "Ed448":
        return ed448.Ed448PrivateKey.generate()
    curves = {"P-192": ec.SECP192R1(), "P-256": ec.SECP256R1(), "P-384": ec.SECP384R1()}
    return ec.generate_private_key(curves[algorithm])


@dataclass(frozen=True)
class Holder:
    """Somebody with a key and a certificate."""

    key: Any
    certificate: x509.Certificate

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write both as PEM for other programs."""
        certificate, secret = folder / f"{name}.pem", folder / f"{name}.key"
        certificate.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        secret.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        secret.chmod(0o600)
        return certificate, secret


@dataclass(frozen=True)
class Wish:
    """What a certificate shall say."""

    kind: str = "rsa-2048/leaf"
    address: str | None = "anna@clinic.test"
    since: datetime = NOW - 30 * DAY
    until: datetime = NOW + 300 * DAY
    usages: Sequence[str] | None = BOTH
    purposes: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.EMAIL_PROTECTION,)
    ca: bool = False
    name: str = "Anna"
    old_address: str | None = None
    extra: Mapping[str, x509.ExtensionType] = field(default_factory=dict)


def issue(wish: Wish, issuer: Holder | None = None) -> Holder:
    """Make a certificate; without an issuer it is self-signed."""
    secret = key(wish.kind)
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, wish.name)]
    if wish.old_address:
        attributes.append(x509.NameAttribute(NameOID.EMAIL_ADDRESS, wish.old_address))
    subject = x509.Name(attributes)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(secret.public_key())
        .serial_number(next(_SERIALS))
        .not_valid_before(wish.since)
        .not_valid_after(wish.until)
        .add_extension(x509.BasicConstraints(wish.ca, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(secret.public_key()), critical=False)
    )
    if wish.usages is not None:
        chosen = {name: name in wish.usages for name in _USAGES}
        builder = builder.add_extension(x509.KeyUsage(**chosen), critical=True)
    if wish.purposes is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(wish.purposes)), critical=False)
    if wish.address is not None:
        names = x509.SubjectAlternativeName([x509.RFC822Name(wish.address)])
        builder = builder.add_extension(names, critical=False)
    for extension in wish.extra.values():
        builder = builder.add_extension(extension, critical=True)
    signer = issuer.key if issuer else secret
    return Holder(secret, builder.sign(signer, hashes.SHA256()))


def authority(name: str, issuer: Holder | None = None, kind: str = "rsa-2048") -> Holder:
    """A certification authority."""
    usages = ("key_cert_sign", "crl_sign")
    wish = Wish(f"{kind}/{name}", None, NOW - 1000 * DAY, NOW + 1000 * DAY, usages, None, ca=True, name=name)
    return issue(wish, issuer)


@functools.cache
def root() -> Holder:
    """The anchor."""
    return authority("Root")


@functools.cache
def issuing() -> Holder:
    """The authority that issues to people."""
    return authority("Issuing", root())


def leaf(**wishes: object) -> Holder:
    """A person's certificate by the issuing authority."""
    return issue(Wish(**wishes), issuing())  # type: ignore[arg-type]


def revocations(
    issuer: Holder,
    *revoked: x509.Certificate,
    since: datetime = NOW - DAY,
    until: datetime = NOW + 7 * DAY,
    extension: x509.ExtensionType | None = None,
    signer: Holder | None = None,
) -> x509.CertificateRevocationList:
    """A CRL."""
    builder = x509.CertificateRevocationListBuilder(issuer.certificate.subject, since, until)
    for one in revoked:
        entry = x509.RevokedCertificateBuilder(one.serial_number, since).build()
        builder = builder.add_revoked_certificate(entry)
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign((signer or issuer).key, hashes.SHA256())


def unconstrained() -> Holder:
    """A self-signed certificate without any extension, as old machines make them."""
    secret = key("P-256/old machine")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Old machine")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(secret.public_key())
    builder = builder.serial_number(7).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    return Holder(secret, builder.sign(secret, hashes.SHA256()))
