"""CRLs: where they come from, whether one may take the place of another, how fresh they are, when to ask again.

Nothing here asks anybody; see the edge of the same name. A responder (OCSP, RFC 6960) would be a second kind of
``Source``, from the certificate's authorityInfoAccess, and its answers would lie beside the CRLs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from gateway.core import header, retry
from gateway.core.cms import keyring, trust
from gateway.core.cms.trust import Trust
from gateway.errors import ConfigurationError

MOST_POINTS: Final = 4
"""Addresses of one certificate that are asked."""

LONGEST_URL: Final = 1000

SOONEST: Final = timedelta(minutes=10)
LATEST: Final = timedelta(hours=12)
"""Between two questions for a CRL that came: authorities renew long before the end, and a revocation must be seen."""

FIRST_WAIT: Final = timedelta(minutes=1)
LONGEST_WAIT: Final = timedelta(hours=2)
"""After a question that brought no CRL."""

NAME: Final = 60
"""Characters of an issuer's name that are shown."""


class Fault(StrEnum):
    """Why a CRL was not taken."""

    UNREACHABLE = "unreachable"
    TOO_SLOW = "too-slow"
    REFUSED = "refused"
    REDIRECTED = "redirected"
    TOO_LONG = "too-long"
    MALFORMED = "malformed"
    WRONG_ISSUER = "wrong-issuer"
    BAD_SIGNATURE = "bad-signature"
    PARTIAL = "partial"
    OLDER = "older"
    NO_ROOM = "no-room"


class State(StrEnum):
    """How fresh the best CRL of an issuer is."""

    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"
    MISSING = "missing"

    @property
    def counts(self) -> bool:
        """It tells that somebody is not revoked."""
        return self in (State.FRESH, State.STALE)


@dataclass(frozen=True, slots=True)
class Source:
    """Where the CRL of an issuer is to be had.

    Attributes:
        url: By HTTP or HTTPS; empty when its certificates name none.
        issuer: DER of its certificate: whoever asks can tell whether the answer is its own.
        is_ca: The CRL is about authorities.
    """

    url: str
    issuer: bytes
    is_ca: bool = False

    @property
    def name(self) -> str:
        """Names it among files."""
        return hashlib.sha256(b"%s %d %s" % (self.url.encode(), self.is_ca, self.issuer)).hexdigest()[:32]

    @property
    def host(self) -> str:
        """Who is asked; empty for nobody."""
        parts = _split(self.url)
        return (parts.hostname or "") if parts else ""

    def is_allowed(self, hosts: Iterable[str]) -> bool:
        """Whether its host is exactly one of these."""
        return is_allowed(self.url, hosts)


def is_allowed(url: str, hosts: Iterable[str]) -> bool:
    """Whether an address may be asked: plain HTTP or HTTPS, without a login, at exactly one of these hosts."""
    parts = _split(url)
    return parts is not None and (parts.hostname or "") in {one.casefold() for one in hosts}


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # read late, and fails only then
    except ValueError:
        return None
    good = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc and url.isascii()
    return parts if good and url.isprintable() and " " not in url else None


def sources(path: Sequence[x509.Certificate]) -> tuple[Source, ...]:
    """Where the CRLs about the certificates of a path are to be had; the anchor has none.

    Args:
        path: From the anchor to the certificate.
    """
    found: dict[Source, None] = {}
    for issuer, one in pairwise(path):
        der, is_ca = issuer.public_bytes(Encoding.DER), trust.is_authority(one)
        for url in points(one) or ("",):
            found[Source(url, der, is_ca)] = None
    return tuple(found)


def points(certificate: x509.Certificate) -> tuple[str, ...]:
    """The addresses of whole CRLs that a certificate names (RFC 5280 §4.2.1.13), those that we could ask."""
    try:
        value = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except (x509.ExtensionNotFound, ValueError, x509.DuplicateExtension):
        return ()
    whole = (one for one in value if not one.reasons and not one.crl_issuer)
    names = (name for one in whole for name in one.full_name or ())
    urls = (name.value for name in names if isinstance(name, x509.UniformResourceIdentifier))
    good = dict.fromkeys(url for url in urls if len(url) <= LONGEST_URL and _split(url))
    return tuple(good)[:MOST_POINTS]


# What came


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file that came is.

    Attributes:
        fault: Why it is not taken; None when it is a CRL of its issuer.
        last_update: When it was made.
        next_update: When there is a newer one; None when it does not say.
    """

    fault: Fault | None
    last_update: datetime | None = None
    next_update: datetime | None = None


def inspect(path: Path, source: Source, last_update: datetime | None, now: datetime) -> Inspection:
    """Look at a file that came from a source.

    Args:
        path: The file.
        source: Where it came from.
        last_update: When the CRL was made that we have: an older one would make somebody good again.
        now: The present.

    Raises:
        OSError: It cannot be read.
    """
    try:
        crl = keyring.revocations(path.read_bytes())
        fault = _fault(crl, source)
    except (ConfigurationError, ValueError, TypeError):
        return Inspection(Fault.MALFORMED)
    if fault is not None:
        return Inspection(fault)
    made = crl.last_update_utc
    if crl.next_update_utc is None or made > now + trust.AHEAD:
        return Inspection(Fault.MALFORMED)
    if last_update is not None and made < last_update:
        return Inspection(Fault.OLDER)
    return Inspection(None, made, crl.next_update_utc)


def _fault(crl: x509.CertificateRevocationList, source: Source) -> Fault | None:
    issuer = x509.load_der_x509_certificate(source.issuer)
    if crl.issuer != issuer.subject:
        return Fault.WRONG_ISSUER
    if not trust.is_from(crl, issuer):
        return Fault.BAD_SIGNATURE
    # A delta list, or one about others, in the place of the whole one would make somebody good again.
    return None if trust.covers(crl, is_ca=source.is_ca) else Fault.PARTIAL


# When to ask again


def after_success(found: Inspection, now: datetime, dice: float) -> timedelta:
    """How long a CRL is left alone: a quarter of its life, and its end is not waited for. ``dice`` lies in [0, 1)."""
    if found.last_update is None or found.next_update is None:
        return SOONEST
    left = found.next_update - now
    if left <= timedelta():
        return retry.spread(SOONEST, dice)  # its authority is late: the next one may come any minute
    quarter = (found.next_update - found.last_update) / 4
    return retry.spread(min(max(quarter, SOONEST), LATEST, max(left / 2, FIRST_WAIT)), dice)


def after_failure(failures: int, dice: float) -> timedelta:
    """How long a source is left alone after so many questions in a row that brought nothing."""
    return retry.spread(retry.grow(FIRST_WAIT, LONGEST_WAIT, failures), dice)


# How fresh they are


@dataclass(frozen=True, slots=True)
class Coverage:
    """What is known of the certificates of one issuer.

    Attributes:
        issuer: Its name, and the beginning of its fingerprint.
        fingerprint: SHA-256 of its certificate, in hexadecimal.
        state: How fresh its best CRL is; the worse one when authorities and people have different ones.
        until: The nextUpdate of that.
        sources: Where it is to be had.
    """

    issuer: str
    fingerprint: str
    state: State
    until: datetime | None
    sources: tuple[Source, ...]


_WORST: Final = (State.MISSING, State.EXPIRED, State.STALE, State.FRESH)


def coverage(some: Iterable[Source], known: Trust, now: datetime) -> tuple[Coverage, ...]:
    """Say for each issuer whether its CRLs tell anything now; nothing when nobody asks for them."""
    if known.revocation == "off":
        return ()
    groups: dict[bytes, list[Source]] = {}
    for one in dict.fromkeys(some):
        groups.setdefault(one.issuer, []).append(one)
    return tuple(_cover(der, tuple(found), known, now) for der, found in groups.items())


def _cover(der: bytes, found: tuple[Source, ...], known: Trust, now: datetime) -> Coverage:
    issuer = x509.load_der_x509_certificate(der)
    kinds = sorted({one.is_ca for one in found})
    state, until = min((_state(issuer, is_ca, known, now) for is_ca in kinds), key=lambda one: _WORST.index(one[0]))
    fingerprint = issuer.fingerprint(hashes.SHA256()).hex()
    return Coverage(f"{_name(issuer)} {fingerprint[:8]}", fingerprint, state, until, found)


def _state(issuer: x509.Certificate, is_ca: bool, known: Trust, now: datetime) -> tuple[State, datetime | None]:
    crls = [one for one in trust.of_issuer(issuer, known.crls, is_ca=is_ca) if one.last_update_utc <= now + trust.AHEAD]
    until = max((one.next_update_utc for one in crls if one.next_update_utc), default=None)
    if not crls:
        return State.MISSING, None
    if until is None or now > until + known.grace:
        return State.EXPIRED, until
    return (State.FRESH if now <= until else State.STALE), until


def _name(issuer: x509.Certificate) -> str:
    names = issuer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    text = str(names[-1].value) if names else issuer.subject.rfc4514_string()
    return header.printable(text)[:NAME]


def moment(text: object) -> datetime | None:
    """Read a time as it is written beside a CRL; None when it is none."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
