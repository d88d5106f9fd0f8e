"""Whose certificate counts: validity, purpose, path and revocation (RFC 5280, RFC 8550).

The path is built and checked by pyhanko-certvalidator, offline, from the anchors that the hospital chose. What gives a
reason its name (dates, purposes, keys) is checked here before, and revocation is looked up here behind it, in CRLs
that cryptography reads: a large CRL takes milliseconds, and a pool of hostile ones cannot make it recurse.
"""

from __future__ import annotations

import hashlib
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final, Literal, TypeVar

import asn1crypto.x509
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from pyhanko_certvalidator import CertificateValidator, ValidationContext
from pyhanko_certvalidator.errors import (
    ExpiredError,
    NotYetValidError,
    PathBuildingError,
    PathError,
    PathValidationError,
    ValidationError,
)

from gateway.core.cms import algorithms
from gateway.core.cms.failure import UNREADABLE, Failure, ProtectionError

T = TypeVar("T")

Purpose = Literal["sign", "encrypt"]
Revocation = Literal["good", "unknown", "unchecked"]

INTERMEDIATES: Final = 8
"""Certificates that are looked at for a path: certvalidator tries every way through them, and with 32 that issued each
other it does not come to an end."""

AHEAD: Final = timedelta(days=1)
"""By which the clock of an authority may be ahead of ours."""

_PURPOSES: Final = frozenset({ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE})
_KNOWN_CRL_EXTENSIONS: Final = frozenset(
    {ExtensionOID.ISSUING_DISTRIBUTION_POINT, ExtensionOID.AUTHORITY_KEY_IDENTIFIER, ExtensionOID.CRL_NUMBER}
)


@dataclass(frozen=True, slots=True)
class Overdue:
    """A key whose certificate a person lets count for some days after it has run out.

    Attributes:
        key: As ``key_of`` names it: another key is not meant, whoever has it certified.
        until: When that ends.
    """

    key: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom the hospital trusts.

    Attributes:
        anchors: The folder ``trust``.
        intermediates: Further certificates that may lie on a path.
        crls: Every CRL at hand.
        revocation: ``soft``, ``hard`` or ``off``.
        grace: How long past its nextUpdate a CRL still counts.
        overdue: Keys whose certificates count although they have run out.
    """

    anchors: tuple[x509.Certificate, ...]
    intermediates: tuple[x509.Certificate, ...] = ()
    crls: tuple[x509.CertificateRevocationList, ...] = ()
    revocation: str = "soft"
    grace: timedelta = timedelta(days=7)
    overdue: tuple[Overdue, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """What was found out about a certificate that is good.

    Attributes:
        path: From the anchor to it.
        revocation: ``unknown`` where no CRL tells; ``unchecked`` where nobody asked, or it is its own anchor.
        overdue: It has run out, and a person lets it count.
    """

    path: tuple[x509.Certificate, ...]
    revocation: Revocation
    overdue: bool = False


class RevocationUnknownError(ProtectionError):
    """Under ``hard``: no CRL tells whether a certificate is revoked.

    Attributes:
        path: From the anchor to it; all else about it is good.
    """

    def __init__(self, path: tuple[x509.Certificate, ...]) -> None:
        super().__init__(Failure.REVOCATION_UNKNOWN, "whether its certificate is revoked is not known")
        self.path = path


def check(
    certificate: x509.Certificate,
    bag: Iterable[x509.Certificate],
    trust: Trust,
    now: datetime,
    purpose: Purpose,
    *,
    pinned: bool = False,
) -> Standing:
    """Check a certificate.

    Args:
        certificate: Of a signer, or of somebody to encrypt to.
        bag: Certificates that came with the message; they only help to find a path.
        trust: Whom the hospital trusts.
        now: The moment of judgement: the message's arrival, never its signing time.
        purpose: What it is used for.
        pinned: A person chose this very certificate: it is its own anchor where no other path is found.

    Raises:
        ProtectionError: It does not count, or whether it is revoked is unknown under ``hard``.
    """
    moment = _moment(certificate, trust, now)
    overdue = moment != now
    check_leaf(certificate, moment, purpose)
    try:
        path = find_path(certificate, bag, trust, moment)
    except ProtectionError as error:
        if not pinned or error.code is not Failure.UNTRUSTED_ISSUER:
            raise
        path = (certificate,)
    if trust.revocation == "off" or len(path) == 1:
        return Standing(path, "unchecked", overdue)
    states = [_revocation(one, issuer, trust, now) for issuer, one in pairwise(path)]
    if "unknown" not in states:
        return Standing(path, "good", overdue)
    if trust.revocation == "hard":
        raise RevocationUnknownError(path)
    return Standing(path, "unknown", overdue)


def key_of(certificate: x509.Certificate) -> str:
    """Name the key of a certificate: SHA-256 of its SubjectPublicKeyInfo, in hexadecimal."""
    return hashlib.sha256(_key(certificate)).hexdigest()


def _moment(certificate: x509.Certificate, trust: Trust, now: datetime) -> datetime:
    """The moment at which dates are looked at: the last good one of a certificate that a person lets count."""
    ended = certificate.not_valid_after_utc
    if now > ended and any(now <= one.until and one.key == key_of(certificate) for one in trust.overdue):
        return ended
    return now


# The certificate itself


def check_leaf(certificate: x509.Certificate, now: datetime, purpose: Purpose) -> None:
    """Check dates, key and purposes of a certificate (SMIME-21, SMIME-22).

    Raises:
        ProtectionError: One of them does not do.
    """
    if now > certificate.not_valid_after_utc:
        raise ProtectionError(Failure.CERTIFICATE_EXPIRED, "its certificate has run out")
    if now < certificate.not_valid_before_utc:
        raise ProtectionError(Failure.CERTIFICATE_NOT_YET_VALID, "its certificate is not yet valid")
    try:
        key = algorithms.demand_strength(certificate.public_key())
        usages = _extension(certificate, x509.ExtendedKeyUsage)
        usage = _extension(certificate, x509.KeyUsage)
    except UNREADABLE:
        raise ProtectionError(Failure.MALFORMED, "its certificate cannot be read") from None
    if usages is not None and _PURPOSES.isdisjoint(usages):
        raise ProtectionError(Failure.EXTENDED_KEY_USAGE, "its certificate is not for mail")
    if usage is not None and not _may(usage, key, purpose):
        raise ProtectionError(Failure.KEY_USAGE, f"its certificate must not be used to {purpose}")


def _may(usage: x509.KeyUsage, key: algorithms.PublicKey, purpose: Purpose) -> bool:
    if purpose == "sign":
        return usage.digital_signature or usage.content_commitment
    return usage.key_encipherment if isinstance(key, rsa.RSAPublicKey) else usage.key_agreement


E = TypeVar("E", bound=x509.ExtensionType)


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def addresses(certificate: x509.Certificate) -> tuple[str, ...]:
    """Every mail address that a certificate is for: rfc822Name, and emailAddress of old ones (SMIME-20)."""
    try:
        names = _extension(certificate, x509.SubjectAlternativeName)
        old = certificate.subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS)
    except UNREADABLE:
        return ()
    found = [] if names is None else names.get_values_for_type(x509.RFC822Name)
    return tuple(dict.fromkeys((*found, *(str(one.value) for one in old))))


def is_for(certificate: x509.Certificate, sender: str) -> bool:
    """Whether a certificate has this address; case does not matter (RFC 8550 §3)."""
    return sender.casefold() in (one.casefold() for one in addresses(certificate))


# The path


def find_path(
    certificate: x509.Certificate, bag: Iterable[x509.Certificate], trust: Trust, now: datetime
) -> tuple[x509.Certificate, ...]:
    """Find the way from an anchor to a certificate; both ends are in it.

    Raises:
        ProtectionError: There is none.
    """
    if not trust.anchors:
        raise ProtectionError(Failure.UNTRUSTED_ISSUER, "no anchor is configured")
    others = _on_the_way(certificate, (*trust.intermediates, *bag))
    try:
        path = _build(certificate, others, trust.anchors, now)
    except ProtectionError as error:
        if error.code is not Failure.MALFORMED:
            raise
        path = _build_apart(certificate, others, trust.anchors, now, error)
    for issuer in path[:-1]:  # every certificate that comes this far could be read
        usages = _extension(issuer, x509.ExtendedKeyUsage)
        if usages is not None and _PURPOSES.isdisjoint(usages):
            raise ProtectionError(Failure.EXTENDED_KEY_USAGE, "one of its issuers is not for mail")
        # certvalidator does not look at an emailAddress that stands beside a subjectAltName, and it counts here.
        constraints = _extension(issuer, x509.NameConstraints)
        if constraints is not None and not all(_may_name(constraints, one) for one in addresses(certificate)):
            raise ProtectionError(Failure.UNTRUSTED_ISSUER, "one of its issuers may not vouch for its address")
    return path


def _may_name(constraints: x509.NameConstraints, address: str) -> bool:
    """Whether an authority that is constrained may issue to an address (RFC 5280 §4.2.1.10)."""

    def holds(names: Iterable[x509.GeneralName]) -> list[bool]:
        return [_lies_in(address.casefold(), one.value.casefold()) for one in names if isinstance(one, x509.RFC822Name)]

    permitted, excluded = holds(constraints.permitted_subtrees or ()), holds(constraints.excluded_subtrees or ())
    return (any(permitted) or not permitted) and not any(excluded)


def _lies_in(address: str, constraint: str) -> bool:
    """Whether an address is the mailbox, on the host, or below the domain that a constraint names."""
    host = address.rpartition("@")[2]
    if "@" in constraint:
        return address == constraint
    return host.endswith(constraint) if constraint.startswith(".") else host == constraint


def _build_apart(
    certificate: x509.Certificate,
    others: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    now: datetime,
    error: ProtectionError,
) -> tuple[x509.Certificate, ...]:
    """Try the anchors that a path could begin at one by one: a hostile one must not spoil the others."""
    names = {one.issuer for one in (certificate, *others)}
    for anchor in [one for one in anchors if one.subject in names][:INTERMEDIATES]:
        try:
            return _build(certificate, others, (anchor,), now)
        except ProtectionError:
            continue
    raise error


_WHATEVER: Final = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NameError, NotImplementedError),
    *(RecursionError, TypeError, ValueError, UnsupportedAlgorithm),
)
"""Hostile certificates make the library under certvalidator raise all of these."""


def _build(
    certificate: x509.Certificate,
    others: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    now: datetime,
) -> tuple[x509.Certificate, ...]:
    try:
        context = ValidationContext(
            trust_roots=[_load(one) for one in anchors],
            other_certs=[_load(one) for one in others],
            moment=now,
            allow_fetching=False,
            revocation_mode="soft-fail",  # no CRL is handed in: revocation is looked up below
            weak_hash_algos={"md2", "md5", "sha1"},
        )
        found = _finish(CertificateValidator(_load(certificate), validation_context=context).async_validate_path())
        return tuple(x509.load_der_x509_certificate(one.dump()) for one in found.iter_certs(include_root=True))
    except ExpiredError:
        raise ProtectionError(Failure.CERTIFICATE_EXPIRED, "a certificate of its issuers has run out") from None
    except NotYetValidError:
        raise ProtectionError(Failure.CERTIFICATE_NOT_YET_VALID, "one of its issuers is not yet valid") from None
    except (PathBuildingError, PathValidationError, PathError, ValidationError):
        raise ProtectionError(Failure.UNTRUSTED_ISSUER, "its certificate leads to nobody who is trusted") from None
    except _WHATEVER:
        raise ProtectionError(Failure.MALFORMED, "its certificate cannot be read") from None


def _on_the_way(certificate: x509.Certificate, pool: Iterable[x509.Certificate]) -> list[x509.Certificate]:
    """Only certificates by whose names a path could lead: what else comes in a message is not looked at."""
    chosen: list[x509.Certificate] = []
    # Of a key that one issuer certified several times, the certificate that lasts longest.
    ways = {(one.subject, one.issuer, _key(one)): one for one in sorted(pool, key=lambda one: one.not_valid_after_utc)}
    waiting = [one for one in ways.values() if one.subject != one.issuer]
    below = [certificate]
    while below and len(chosen) < INTERMEDIATES:
        more = [one for one in waiting if any(_issued(one, lower) for lower in below)]
        chosen += more[: INTERMEDIATES - len(chosen)]
        waiting = [one for one in waiting if one not in more]
        below = more
    return chosen


def _key(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return b""  # it issued nothing that we could check


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether one signed the other: names alone could be made to fit in more ways than can be tried."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _load(certificate: x509.Certificate) -> asn1crypto.x509.Certificate:
    return asn1crypto.x509.Certificate.load(certificate.public_bytes(Encoding.DER))


def _finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that has nothing to wait for, since nothing is fetched."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    coroutine.close()
    raise RuntimeError("certvalidator waits for something offline")


# Revocation


def _revocation(
    certificate: x509.Certificate, issuer: x509.Certificate, trust: Trust, now: datetime
) -> Literal["good", "unknown"]:
    """Look a certificate up in the CRLs of its issuer.

    Raises:
        ProtectionError: It is revoked; also when the CRL that says so is old.
    """
    state: Literal["good", "unknown"] = "unknown"
    for crl in of_issuer(issuer, trust.crls, is_ca=is_authority(certificate)):
        entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if entry is not None:
            raise ProtectionError(Failure.REVOKED, "its certificate is revoked")
        if _is_current(crl, now, trust.grace) and _is_meant(crl, certificate):
            state = "good"
    return state


def _is_meant(crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> bool:
    """Whether a certificate names this CRL: of a list in parts the others do not tell of it (RFC 5280 §6.3.3 (b)(2)).

    For a certificate that names none, whoever put the CRL there knows which it is.
    """
    try:
        point = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint).value
        named = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except x509.ExtensionNotFound:
        return True
    if point.full_name is None and point.relative_name is None:
        return True
    names = [name for one in named for name in one.full_name or ()]
    return any(name in names for name in point.full_name or ())


def of_issuer(
    issuer: x509.Certificate, crls: Iterable[x509.CertificateRevocationList], *, is_ca: bool
) -> Iterator[x509.CertificateRevocationList]:
    """Yield the CRLs that an issuer signed and that are about authorities, or about people."""
    for crl in crls:
        if crl.issuer == issuer.subject and is_from(crl, issuer) and covers(crl, is_ca=is_ca):
            yield crl


def is_from(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """Whether an issuer may sign CRLs and signed this one (RFC 5280 §6.3.3)."""
    usage = _extension(issuer, x509.KeyUsage)
    if usage is not None and not usage.crl_sign:
        return False
    key = issuer.public_key()
    return isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) and crl.is_signature_valid(key)


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether a certificate may issue others (RFC 5280 §4.2.1.9)."""
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def covers(crl: x509.CertificateRevocationList, *, is_ca: bool) -> bool:
    """Whether it is a whole CRL about such certificates; of what it limits we know no more."""
    try:
        for extension in crl.extensions:
            if extension.oid not in _KNOWN_CRL_EXTENSIONS and extension.critical:
                return False
            point = extension.value
            if isinstance(point, x509.IssuingDistributionPoint) and (
                point.indirect_crl
                or point.only_some_reasons
                or point.only_contains_attribute_certs
                or (point.only_contains_ca_certs and not is_ca)
                or (point.only_contains_user_certs and is_ca)
            ):
                return False
    except UNREADABLE:
        return False
    return True


def _is_current(crl: x509.CertificateRevocationList, now: datetime, grace: timedelta) -> bool:
    until = crl.next_update_utc
    return crl.last_update_utc <= now + AHEAD and until is not None and now <= until + grace


def newest(certificates: Sequence[x509.Certificate], now: datetime) -> x509.Certificate | None:
    """The certificate among these that is valid and was issued last (SMIME-24); None when none is valid."""
    valid = [one for one in certificates if one.not_valid_before_utc <= now <= one.not_valid_after_utc]
    return max(valid, key=lambda one: one.not_valid_before_utc, default=None)
