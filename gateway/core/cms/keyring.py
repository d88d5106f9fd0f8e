"""Certificates and keys as they lie in files, and which of them is used for what (RFC 8550 §4)."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gateway.core.cms import algorithms, ber, signed, trust
from gateway.core.cms.algorithms import SigningKey
from gateway.core.cms.ber import Reader
from gateway.core.cms.failure import ProtectionError, malformed
from gateway.core.cms.signed import Identity
from gateway.errors import ConfigurationError

MOST: Final = 1000
"""Certificates that one file may hold."""

_PEM: Final = b"-----BEGIN "
_PKCS7: Final = re.compile(rb"-----BEGIN (?:PKCS7|CMS)-----([^-]+)-----END")


def certificates(block: bytes) -> tuple[x509.Certificate, ...]:
    """Read the certificates of a file: PEM, DER, or PKCS #7 in one of them.

    Raises:
        ConfigurationError: It holds none, or one that cannot be read.
    """
    try:
        found = tuple(_certificates(block))
        for one in found:
            _ = one.extensions, one.subject, one.issuer  # read late, and hostile ones fail only then
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion, ProtectionError):
        raise ConfigurationError("holds no certificate that can be read") from None
    if not found or len(found) > MOST:
        raise ConfigurationError("holds no certificate that can be read")
    return found


def _certificates(block: bytes) -> Sequence[x509.Certificate]:
    match = _PKCS7.search(block)
    if match is not None:
        return _bag(base64.b64decode(match[1]))
    if _PEM in block:
        return x509.load_pem_x509_certificates(block)
    try:
        return [x509.load_der_x509_certificate(block)]
    except ValueError:
        return _bag(block)


def _bag(block: bytes) -> Sequence[x509.Certificate]:
    """Read the certificates of a SignedData without a signature (RFC 5652 §5.1, RFC 8551 §3.8)."""
    blocks = iter((block,))
    reader = Reader(lambda _: next(blocks, b""))
    reader.enter(ber.SEQUENCE)
    if ber.oid(reader.node(ber.OBJECT_IDENTIFIER)) != algorithms.SIGNED_DATA:
        malformed("it holds something else")
    reader.enter(ber.context(0))
    return signed.read(reader, (), lambda _: None).certificates


def revocations(block: bytes) -> x509.CertificateRevocationList:
    """Read a CRL, PEM or DER.

    Raises:
        ConfigurationError: It cannot be read.
    """
    try:
        crl = x509.load_pem_x509_crl(block) if _PEM in block else x509.load_der_x509_crl(block)
        _ = crl.extensions, crl.issuer, crl.next_update_utc
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise ConfigurationError("holds no CRL that can be read") from None
    return crl


def identity(chain: bytes, secret: bytes) -> Identity:
    """Read a certificate of ours, with what leads to its anchor, and its key.

    Raises:
        ConfigurationError: One of them cannot be read, or they do not belong together. Never quotes a key.
    """
    own, *others = certificates(chain)
    key = _key(secret)
    if own.public_key() != key.public_key():
        raise ConfigurationError(
            "its key belongs to another certificate", hint="the certificate comes first in its file"
        )
    return Identity(key, own, tuple(others))


def _key(secret: bytes) -> SigningKey:
    try:
        key = serialization.load_pem_private_key(secret, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigurationError("its key cannot be read", hint="PEM without a password is expected") from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise ConfigurationError("its key is of a kind that mail programs cannot use", hint="RSA or P-256 is expected")
    return key


def signer(identities: tuple[Identity, ...], now: datetime) -> Identity | None:
    """Choose who signs: of the certificates that may, the one issued last; None without any (SMIME-24)."""
    return _newest(identities, now, "sign")


def reader(identities: tuple[Identity, ...], now: datetime) -> Identity | None:
    """Choose to whom of us a copy is encrypted; None when nobody can be encrypted to."""
    return _newest(identities, now, "encrypt")


def _newest(identities: tuple[Identity, ...], now: datetime, purpose: trust.Purpose) -> Identity | None:
    fit = [one for one in identities if _serves(one.certificate, now, purpose)]
    return max(fit, key=lambda one: one.certificate.not_valid_before_utc, default=None)


def _serves(certificate: x509.Certificate, now: datetime, purpose: trust.Purpose) -> bool:
    try:
        trust.check_leaf(certificate, now, purpose)
    except ProtectionError:
        return False
    return True


def partner(found: tuple[x509.Certificate, ...], now: datetime) -> x509.Certificate | None:
    """Choose the certificate of a partner: the newest valid one that is no authority's; else the first of them."""
    leaves = [one for one in found if not is_authority(one)]
    return trust.newest(leaves, now) or next(iter(leaves), None)


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether a certificate is an authority's (RFC 5280 §4.2.1.9)."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
