"""An identity for S/MIME: a key, its certificate, and a request for a better one (RFC 8550, RFC 2986)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BITS: Final = 3072
"""Of the RSA key: every S/MIME program of a partner knows RSA, and this lasts beyond 2030 (BSI TR-02102-1)."""

VALID: Final = timedelta(days=730)
"""How long a certificate of our own making holds."""


class Identity(NamedTuple):
    """What is written to files, each in PEM."""

    key: bytes
    certificate: bytes
    request: bytes


def make(address: str, organisation: str, now: datetime) -> Identity:
    """Make a key, its certificate and a request for a better one.

    Args:
        address: The mail address that signs (RFC 8550 §3).
        organisation: What people see as its name.
        now: When; the certificate holds from an hour before, for peers whose clock is late.
    """
    key = rsa.generate_private_key(65537, BITS)
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, organisation), x509.NameAttribute(NameOID.EMAIL_ADDRESS, address)]
    )
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (
        (x509.SubjectAlternativeName([x509.RFC822Name(address)]), False),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False),
        (_USAGE, True),
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + VALID)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension, critical in extensions:
        certificate = certificate.add_extension(extension, critical)
        request = request.add_extension(extension, critical)
    pem = serialization.Encoding.PEM
    return Identity(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        certificate.sign(key, hashes.SHA256()).public_bytes(pem),
        request.sign(key, hashes.SHA256()).public_bytes(pem),
    )


_USAGE: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=True,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
