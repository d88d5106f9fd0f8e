"""A certificate that somebody offers for a partner: which of several is meant, and whether it can serve at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gateway.core.cms import trust
from gateway.core.cms.failure import Failure, ProtectionError
from gateway.core.cms.trust import Trust

MOST_AUTHORITIES: Final = 8
"""Certificates of issuers that are kept with a partner's: no honest path is longer."""

_USAGES: Final = (
    ("digital_signature", "digitalSignature"),
    ("content_commitment", "nonRepudiation"),
    ("key_encipherment", "keyEncipherment"),
    ("key_agreement", "keyAgreement"),
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A certificate that can serve.

    Attributes:
        certificate: The partner's.
        authorities: Certificates of issuers that came with it; they help to find a path and are trusted for nothing.
        doubt: Why mail to it would be held all the same: nobody who is trusted issued it, or whether it is revoked is
            not known.
    """

    certificate: x509.Certificate
    authorities: tuple[x509.Certificate, ...] = ()
    doubt: ProtectionError | None = None


def choose(
    offered: Sequence[x509.Certificate],
    is_for: Callable[[str], bool],
    anchors: Trust,
    now: datetime,
    *,
    pinned: bool = False,
) -> Candidate:
    """Choose the partner's certificate among those that are offered.

    Args:
        offered: The likeliest first: the signer's own, or in the order of their file.
        is_for: Tells whether an address is the partner's.
        anchors: Whom the hospital trusts.
        now: The time.
        pinned: The partner's certificate is pinned: its address need not be the partner's.

    Raises:
        ProtectionError: None of them can be encrypted to, or is the partner's; the reason is that of the likeliest.
    """
    leaves = [one for one in offered if not trust.is_authority(one)]
    if not leaves:
        raise ProtectionError(Failure.KEY_USAGE, "it holds only certificates of authorities, none of a person")
    reasons: list[ProtectionError] = []
    for one in leaves:
        try:
            _demand(one, is_for, now, pinned=pinned)
        except ProtectionError as error:
            reasons.append(error)
            continue
        authorities = tuple(dict.fromkeys(other for other in offered if trust.is_authority(other)))
        doubt = _doubt(one, authorities, anchors, now, pinned=pinned)
        return Candidate(one, authorities[:MOST_AUTHORITIES], doubt)
    raise reasons[0]


def _demand(certificate: x509.Certificate, is_for: Callable[[str], bool], now: datetime, *, pinned: bool) -> None:
    """Check dates, key and purposes, and whose it is."""
    trust.check_leaf(certificate, now, "encrypt")
    named = trust.addresses(certificate)
    if not pinned and not any(map(is_for, named)):
        others = f"for {', '.join(named)}" if named else "for no address at all"
        raise ProtectionError(Failure.SENDER_ADDRESS_MISMATCH, f"its certificate is {others}, not for this partner")


def _doubt(
    certificate: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    anchors: Trust,
    now: datetime,
    *,
    pinned: bool,
) -> ProtectionError | None:
    try:
        trust.check(certificate, authorities, anchors, now, "encrypt", pinned=pinned)
    except ProtectionError as error:
        if error.code not in (Failure.UNTRUSTED_ISSUER, Failure.REVOCATION_UNKNOWN):
            raise
        return error
    return None


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate in hexadecimal: what people compare by another way than mail."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def key(certificate: x509.Certificate) -> str:
    """Name kind and strength of the key of a certificate, as people say it."""
    try:
        found = certificate.public_key()
    except Exception:  # noqa: BLE001  a kind that the library does not know raises many things
        return "unknown"
    if isinstance(found, rsa.RSAPublicKey):
        return f"RSA {found.key_size}"
    if isinstance(found, ec.EllipticCurvePublicKey):
        return found.curve.name
    return type(found).__name__.removesuffix("PublicKey").strip("_")


def usages(certificate: x509.Certificate) -> tuple[str, ...] | None:
    """What a certificate may be used for, in the standard's words; None when it does not say (RFC 5280 §4.2.1.3)."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None
    return tuple(word for attribute, word in _USAGES if getattr(found, attribute))
