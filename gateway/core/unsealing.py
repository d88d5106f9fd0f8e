"""The reading of a message that may be protected: opened, judged and read in one go, inside a worker process.

The reader is given what was vouched for and nothing else of the mail. What does not have the protection that its
partner must use is not read at all, and what could not be opened has one outward appearance: its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.core import header, mime, reader
from gateway.core.cms import keyring
from gateway.core.cms.enveloped import Key
from gateway.core.cms.failure import Failure, ProtectionError
from gateway.core.cms.opened import ENVELOPES, SIGNATURES, open_message
from gateway.core.cms.signed import Identity
from gateway.core.cms.trust import Overdue, Trust
from gateway.core.cms.verdict import Accept, Expected, Verdict, judge, shortfall
from gateway.core.reader import Rules
from gateway.model import Reading, Span

UNREAD: Final = Reading("other")
"""The reading of what nobody may look into."""

_SECURED: Final = frozenset({*SIGNATURES, *ENVELOPES})
"""Types of the leaf parts that S/MIME puts into a message."""


@dataclass(frozen=True, slots=True)
class Store:
    """Our keys and whom we trust, as bytes: what fits through the pipe of a worker.

    Attributes:
        identities: PEM of each certificate of ours with its chain, and of its key.
        anchors: DER of the certificates of the folder ``trust``.
        intermediates: DER of further certificates that may lie on a path.
        crls: DER of every CRL at hand.
        revocation: ``soft``, ``hard`` or ``off``.
        grace: How long past its nextUpdate a CRL still counts.
        overdue: Keys whose certificates count although they have run out.
    """

    identities: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    anchors: tuple[bytes, ...] = field(default=(), repr=False)
    intermediates: tuple[bytes, ...] = field(default=(), repr=False)
    crls: tuple[bytes, ...] = field(default=(), repr=False)
    revocation: str = "soft"
    grace: timedelta = timedelta(days=7)
    overdue: tuple[Overdue, ...] = ()


@dataclass(frozen=True, slots=True)
class Keyring:
    """Everything that S/MIME needs, as it was read last.

    Attributes:
        store: For the workers.
        identities: Ours.
        trust: Whom the hospital trusts.
        partners: The certificates of each partner, by its name.
    """

    store: Store = field(default_factory=Store)
    identities: tuple[Identity, ...] = ()
    trust: Trust = field(default_factory=lambda: Trust(()))
    partners: Mapping[str, tuple[x509.Certificate, ...]] = field(default_factory=dict)

    def certificate(self, partner: str, now: datetime) -> x509.Certificate | None:
        """The certificate of a partner that counts now; None without any."""
        return keyring.partner(self.partners.get(partner, ()), now)


@dataclass(frozen=True, slots=True)
class Guard:
    """What one message is opened and judged with.

    Attributes:
        store: Our keys and whom we trust.
        accept: The protection it must have.
        sender: The address of its single From; empty when there is not exactly one.
        known: DER of the certificates of its partner.
        pinned: DER of the only certificate that may have signed; None for any that matches From, empty for none: the
            one to pin cannot be read.
        now: When it is judged.
        limit: Bytes that each layer may have.
        folder: Where layers are written. Whoever made it removes it, whatever happened.
    """

    store: Store
    accept: Accept
    sender: str
    known: tuple[bytes, ...]
    pinned: bytes | None
    now: datetime
    limit: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Unsealed:
    """What became of a message.

    Attributes:
        reading: Of what was vouched for; ``UNREAD`` when it is held for its protection.
        verdict: What its protection amounts to.
        held: Why nothing of it may go on; None when it may.
    """

    reading: Reading
    verdict: Verdict
    held: Failure | None = None


def is_protected(head: bytes) -> bool:
    """Whether the root of a message, by its header, is S/MIME (RFC 8551 §3)."""
    values: dict[str, str] = {}
    for name, value in header.fields(head):
        values.setdefault(name, value)
    kind, parameters = header.parameters(values.get("content-type", ""))
    if kind == "multipart/signed":
        return parameters.get("protocol", SIGNATURES[0]).lower() in SIGNATURES
    by_name = kind == "application/octet-stream" and parameters.get("name", "").lower().endswith(".p7m")
    return kind in ENVELOPES or by_name


def read_protected(message: Span, rules: Rules, guard: Guard, out: Path) -> Unsealed:
    """Open a message, judge its protection and, when that does, read what is inside.

    Args:
        message: Where it lies, header included.
        rules: Limits and permissions of the reader.
        guard: What it is opened and judged with.
        out: Gets the instances.

    Raises:
        OSError: It cannot be read, or the disk does not take what it holds.
    """
    keys, trust = _parsed(guard.store)
    known = tuple(x509.load_der_x509_certificate(one) for one in guard.known)
    pinned = x509.load_der_x509_certificate(guard.pinned) if guard.pinned else None
    try:
        opened = open_message(message, keys, known, guard.folder, limit=guard.limit, now=guard.now)
        verdict = judge(opened, Expected(guard.sender, pinned), trust, guard.now)
    except ProtectionError as error:
        return Unsealed(UNREAD, Verdict(code=error.code), error.code)
    if guard.pinned == b"" and verdict.verified:
        verdict = Verdict(verdict.encrypted, signed=True, code=Failure.UNTRUSTED_ISSUER)
    held = shortfall(verdict, guard.accept)
    if held is Failure.NOT_SIGNED and _holds_smime(message, rules):
        held = Failure.SIGNED_PART_NOT_ROOT
    if held is not None:
        return Unsealed(UNREAD, verdict, held)
    return Unsealed(reader.read_to(opened.content, rules, out), verdict)


@lru_cache(maxsize=2)
def _parsed(store: Store) -> tuple[tuple[Key, ...], Trust]:
    identities = [keyring.identity(*one) for one in store.identities]
    keys = tuple(Key(one.key, one.certificate) for one in identities)
    crls = tuple(x509.load_der_x509_crl(one) for one in store.crls)
    anchors, intermediates = (
        tuple(x509.load_der_x509_certificate(one) for one in some) for some in (store.anchors, store.intermediates)
    )
    return keys, Trust(anchors, intermediates, crls, store.revocation, store.grace, store.overdue)


def _holds_smime(message: Span, rules: Rules) -> bool:
    """Whether S/MIME lies somewhere below the root: somebody put something around it, as a relay's footer."""
    with message.path.open("rb", buffering=0) as file:
        start, end = message.start, message.end
        walk = mime.Walk(file.fileno(), start, end, parts=rules.parts, depth=rules.depth, header_limit=rules.header)
        return any(one.type in _SECURED for one in walk)


def document(verdict: Verdict) -> Mapping[str, Any]:
    """Write a verdict as the ledger keeps it and ``queue show`` shows it."""
    found = asdict(replace(verdict, gaps=()))
    del found["gaps"]
    return {**found, "code": None if verdict.code is None else str(verdict.code)}


def der(certificate: x509.Certificate) -> bytes:
    """A certificate as bytes."""
    return certificate.public_bytes(Encoding.DER)
