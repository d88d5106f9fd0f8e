"""The partners' certificates: what they are worth, how a new one is taken in, and whether mail to them can be sealed.

A certificate comes from a file or from a signed mail, and counts only after a person approved it. What is imported lies
in the data folder, beside the configuration, whose own ``certificate`` wins; the running gateway uses it at once. Who
did it is on record.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection

from gateway import control, keys
from gateway.config import Configuration, Partner
from gateway.core import expiry, header, routing
from gateway.core.cms import candidate, keyring, sealed, trust
from gateway.core.cms.candidate import Candidate, fingerprint
from gateway.core.cms.enveloped import Key
from gateway.core.cms.failure import Failure, ProtectionError
from gateway.core.cms.opened import open_message
from gateway.core.cms.trust import Overdue
from gateway.core.expiry import Lasting
from gateway.core.unsealing import Keyring
from gateway.errors import ConfigurationError, GatewayError, UsageError
from gateway.ledger import notices
from gateway.ledger.events import tell
from gateway.ledger.ledger import Lock, connect
from gateway.model import Span
from gateway.stages.compose import NO_CERTIFICATE, NO_IDENTITY, UnprotectedError, protect

CHANGES: Final = frozenset({"partner-import", "partner-trust"})
"""The verbs that change something."""

LONGEST_TRUST: Final = timedelta(days=14)
"""How far ahead a certificate that has run out may be let count."""

LONGEST: Final = 1 << 20
"""Bytes of a file with certificates; a mail may be as long as any."""

LONGEST_CHAIN: Final = 48 << 10
"""Bytes of what is imported: a certificate and those of its issuers, as PEM."""

_ITEM: Final = re.compile(r"in-[\w-]+", re.ASCII)

Document = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------
# Looking


def listing(configuration: Configuration, now: datetime) -> Document:
    """All partners, with what their certificates are worth. Blocks."""
    found = keys.load(configuration)
    return {"partners": [_described(configuration, found, name, now) for name in configuration.partner]}


def description(configuration: Configuration, name: str, now: datetime) -> Document:
    """One partner and its certificate. Blocks.

    Raises:
        UsageError: There is no such partner.
    """
    _demand_partner(configuration, name)
    return _described(configuration, keys.load(configuration), name, now)


def _demand_partner(configuration: Configuration, name: str) -> Partner:
    if name not in configuration.partner:
        known = ", ".join(configuration.partner) or "none"
        raise UsageError(f"there is no partner {name}", hint=f"configured: {known}")
    return configuration.partner[name]


def _described(configuration: Configuration, found: keys.Keys, name: str, now: datetime) -> Document:
    partner, ring = configuration.partner[name], found.keyring
    certificate = ring.certificate(name, now)
    state, text, standing = _state(ring, name, partner, now)
    problems = [one.what for one in found.problems if one.key == f"partner.{name}.certificate"]
    if problems and certificate is None:
        state, text = "unusable", problems[0]
    path = partner.certificate or keys.imported(configuration, name)
    overdue = _overdue(ring, certificate)
    return {
        "name": name,
        "address": partner.address,
        "accept": partner.accept,
        "send": partner.send,
        "pin": partner.pin,
        "phone": partner.phone,
        "state": state,
        "text": text,
        "certificate": None if certificate is None else _shown(certificate, now),
        "file": str(path) if certificate is not None or problems else None,
        "source": ("configuration" if partner.certificate else "imported") if certificate is not None else None,
        "path": [one.subject.rfc4514_string() for one in standing.path] if standing else [],
        "revocation": standing.revocation if standing else None,
        "trusted_until": _rfc3339(overdue.until) if overdue is not None and now <= overdue.until else None,
    }


def _state(ring: Keyring, name: str, partner: Partner, now: datetime) -> tuple[str, str, trust.Standing | None]:
    """What the certificate of a partner is worth: ``good``, ``none`` or a code, and words."""
    certificate = ring.certificate(name, now)
    if certificate is None:
        return "none", "there is no certificate", None
    try:
        standing = _standing(certificate, ring.partners[name], ring.trust, now, pinned=partner.pin)
    except ProtectionError as error:
        return str(error.code), error.text, None
    if standing.overdue:
        return "overdue", "its certificate has run out, and is let count for now", standing
    return "good", f"valid until {certificate.not_valid_after_utc:%Y-%m-%d}", standing


def _standing(
    certificate: x509.Certificate, bag: Sequence[x509.Certificate], anchors: trust.Trust, now: datetime, *, pinned: bool
) -> trust.Standing:
    """Check a certificate for what it is made for: one that must not be encrypted to may serve to be signed with."""
    try:
        return trust.check(certificate, bag, anchors, now, "encrypt", pinned=pinned)
    except ProtectionError as error:
        if error.code is not Failure.KEY_USAGE:
            raise
    return trust.check(certificate, bag, anchors, now, "sign", pinned=pinned)


def _overdue(ring: Keyring, certificate: x509.Certificate | None) -> Overdue | None:
    if certificate is None:
        return None
    return next((one for one in ring.trust.overdue if one.key == trust.key_of(certificate)), None)


def _shown(certificate: x509.Certificate, now: datetime) -> Document:
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "fingerprint": fingerprint(certificate),
        "not_before": _rfc3339(certificate.not_valid_before_utc),
        "not_after": _rfc3339(certificate.not_valid_after_utc),
        "days": (certificate.not_valid_after_utc - now).days,
        "addresses": list(trust.addresses(certificate)),
        "key": candidate.key(certificate),
        "usages": candidate.usages(certificate),
    }


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# ---------------------------------------------------------------------------------------------------------------
# Trying


def trial(configuration: Configuration, name: str, now: datetime) -> Document:
    """Say what would happen to mail to a partner, by sealing a piece of text to it, and to mail from it. Blocks.

    Raises:
        UsageError: There is no such partner.
    """
    partner, ring = _demand_partner(configuration, name), keys.load(configuration).keyring
    shown = description(configuration, name, now)
    outward = {"used": configuration.relay is not None, **_outward(ring, name, partner, now)}
    inward = {"used": _may_come_in(configuration, name, partner), **_inward(ring, name, partner, now)}
    good = all(one["ok"] or not one["used"] for one in (outward, inward))
    return {"partner": name, "ok": good, "out": outward, "in": inward, "certificate": shown["certificate"]}


def _is_mailed_to(configuration: Configuration, name: str) -> bool:
    return any(name in route.mail for route in configuration.route)


def _may_come_in(configuration: Configuration, name: str, partner: Partner) -> bool:
    senders = [route.from_ or "*" for route in configuration.route if route.store]
    return any(one == name or routing.matches(one, partner.address) for one in senders)


def _outward(ring: Keyring, name: str, partner: Partner, now: datetime) -> Document:
    if partner.send == "plain":
        return {"ok": True, "code": None, "text": 'mail to it goes in the clear, as send = "plain" says'}
    if "*" in partner.address:
        return {"ok": False, "code": "no-address", "text": "its address is a pattern: nobody can be mailed at it"}
    try:
        seal_trial(ring, name, partner, now)
    except UnprotectedError as error:
        return {"ok": False, "code": error.code, "text": f"mail to it would be held: {error.text}"}
    how = "signed" if partner.send == "signed" else f"signed, and encrypted by AES-256-{partner.cipher.upper()}"
    return {"ok": True, "code": None, "text": f"mail to it would go {how}; a trial was sealed"}


def _inward(ring: Keyring, name: str, partner: Partner, now: datetime) -> Document:
    try:
        return {"ok": True, "code": None, "text": f"mail from it would be {_welcome(ring, name, partner, now)}"}
    except (UnprotectedError, ProtectionError) as error:
        return {"ok": False, "code": str(error.code), "text": f"mail from it would be held: {error.text}"}


def _welcome(ring: Keyring, name: str, partner: Partner, now: datetime) -> str:
    """How mail of a partner that is protected as it must be is taken.

    Raises:
        UnprotectedError: It is held all the same.
        ProtectionError: So it is when it is signed with the certificate that is known.
    """
    if partner.accept == "any":
        return 'taken as it comes, as accept = "any" says'
    if "encrypted" in partner.accept and keyring.reader(ring.identities, now) is None:
        raise UnprotectedError(NO_IDENTITY, "no certificate of ours can be encrypted to now")
    if "signed" not in partner.accept:
        return "opened and taken"
    certificate = ring.certificate(name, now)
    if certificate is None and partner.pin:
        raise UnprotectedError(NO_CERTIFICATE, "the certificate to pin is missing")
    if certificate is not None:
        try:
            trust.check(certificate, ring.partners[name], ring.trust, now, "sign", pinned=partner.pin)
        except ProtectionError as error:
            if partner.pin or error.code is not Failure.KEY_USAGE:
                raise
        else:
            return "taken when it is signed with the certificate that is known"
    if not ring.trust.anchors:
        raise ProtectionError(Failure.UNTRUSTED_ISSUER, "no authority is trusted: smime.trust is empty")
    return "taken when it is signed with a certificate of a trusted authority for its address"


_ENTITY: Final = b"Content-Type: text/plain\r\n\r\nA trial.\r\n"


def seal_trial(ring: Keyring, name: str, partner: Partner, now: datetime) -> None:
    """Seal a piece of text to a partner as its mails are, and open the copy that is for us. Blocks.

    Raises:
        UnprotectedError: Mail to it would be held; the code says why.
    """
    protection = protect(ring, name, partner, now)
    if protection is None:
        return
    try:
        with tempfile.TemporaryDirectory(prefix="dicom-mail-") as folder:
            entity, mail = Path(folder) / "entity", Path(folder) / "mail"
            entity.write_bytes(_ENTITY)
            with mail.open("wb") as out:
                size = sealed.seal(b"", Span(entity, 0, len(_ENTITY)), protection, now, out)
            ours = tuple(Key(one.key, one.certificate) for one in ring.identities)
            if len(protection.certificates) == 1:
                return  # no copy is for us, so nobody here can open it
            opened = open_message(Span(mail, 0, size), ours, (), Path(folder), limit=LONGEST, now=now)
            content = opened.content.path.read_bytes()[opened.content.start : opened.content.end]
    except ProtectionError as error:
        raise UnprotectedError(error.code, f"a trial for {name} could not be sealed: {error.text}") from None
    except OSError as error:
        raise UnprotectedError("no-room", f"a trial for {name} could not be written: {error.strerror}") from None
    if content != _ENTITY:
        raise UnprotectedError("decrypt-failed", f"a trial for {name} came out as something else")


# ---------------------------------------------------------------------------------------------------------------
# What the running gateway looks after

EXPIRES: Final = "certificate-expires"
UNUSABLE: Final = "certificate-unusable"
UNSEALABLE: Final = "partner-unsealable"

_ONLY_IF_MAILED: Final = frozenset({NO_IDENTITY, NO_CERTIFICATE, Failure.KEY_USAGE, Failure.EXTENDED_KEY_USAGE})
"""What is no fault of a partner that nothing is mailed to: its certificate is there to verify with."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of all certificates.

    Attributes:
        lasting: Those in use, with their ends.
        unusable: Files that cannot be used: text and hint by the key that names them.
        unsealable: Partners that nothing could be sealed to: text and hint; None when it was not tried.
    """

    lasting: tuple[Lasting, ...] = ()
    unusable: Mapping[str, tuple[str, str]] | None = None
    unsealable: Mapping[str, tuple[str, str]] | None = None


def survey(configuration: Configuration, found: keys.Keys, now: datetime, *, sealing: bool) -> Survey:
    """Look at all certificates; seal a trial to each partner where that is asked for. Blocks."""
    unusable: dict[str, tuple[str, str]] = {}
    for one in found.problems:
        before = unusable.get(one.key)
        text = f"{before[0]}; {one.what}" if before and len(before[0]) < 1000 else before[0] if before else one.what
        unusable[one.key] = (text, one.do)
    lasting = (*keys.lasting(configuration, found.keyring, now), *keys.doors(configuration))
    return Survey(lasting, unusable, _trials(configuration, found.keyring, now) if sealing else None)


def _trials(configuration: Configuration, ring: Keyring, now: datetime) -> dict[str, tuple[str, str]]:
    failed = {}
    for name, partner in configuration.partner.items():
        mailed = _is_mailed_to(configuration, name)
        if partner.send == "plain" or "*" in partner.address or not (mailed or ring.partners.get(name)):
            continue
        try:
            seal_trial(ring, name, partner, now)
        except UnprotectedError as error:
            if mailed or error.code not in _ONLY_IF_MAILED:
                text = f"nothing can be mailed to {name}: {error.text}"
                failed[f"partner.{name}"] = (text, f"dicom-mail partner test {name}")
    return failed


def note(connection: Connection, found: Survey, now: datetime) -> None:
    """Open and close the notices that follow from a survey."""
    warnings = expiry.due(found.lasting, notices.standing(connection, EXPIRES), now)
    notices.keep(connection, now, EXPIRES, {about: (one.text, one.do) for about, one in warnings.items()})
    if found.unusable is not None:
        notices.keep(connection, now, UNUSABLE, found.unusable)
    if found.unsealable is not None:
        notices.keep(connection, now, UNSEALABLE, found.unsealable)


# ---------------------------------------------------------------------------------------------------------------
# A new certificate


@dataclass(frozen=True, slots=True)
class Offer:
    """A certificate that a person is asked to approve.

    Attributes:
        document: What it is, to be shown.
        pem: It and its issuers' certificates.
    """

    document: Document
    pem: str

    def demand(self, expected: str | None) -> None:
        """Hold it to a fingerprint, however that is written.

        Raises:
            GatewayError: It has another one.
        """
        found = self.document["certificate"]["fingerprint"]
        if expected is not None and re.sub(r"[\s:.-]", "", expected).casefold() != found:
            text = f"its fingerprint is another one: {found}"
            raise GatewayError(text, hint="nothing was imported; ask the partner, by telephone, which one is right")


def offer(configuration: Configuration, name: str, source: str, now: datetime) -> Offer:
    """Take a partner's certificate from a file, or from a signed mail: a file too, or an item by its queue id. Blocks.

    Raises:
        UsageError: There is no such partner, or no such file.
        GatewayError: There is no certificate in it, or none that could serve; it says why.
    """
    partner = _demand_partner(configuration, name)
    path = _place(configuration, source)
    ring = keys.load(configuration).keyring
    found, signer = _read(configuration, ring, name, path, now)
    chosen = _choose(found, name, partner, ring, now)
    pem = _pem(chosen)
    old = ring.certificate(name, now)
    document = {
        "partner": name,
        "source": source,
        "certificate": _shown(chosen.certificate, now),
        "authorities": [one.subject.rfc4514_string() for one in chosen.authorities],
        "replaces": fingerprint(old) if old is not None else None,
        "notes": list(_notes(configuration, name, chosen, old, signer)),
    }
    return Offer(document, pem)


def _place(configuration: Configuration, source: str) -> Path:
    path = Path(source)
    if _ITEM.fullmatch(source) and not path.exists():
        return Path(control.call(configuration, "original", id=source)["path"])
    if not path.is_file():
        raise UsageError(f"there is no file {source}")
    return path


def _read(
    configuration: Configuration, ring: Keyring, name: str, path: Path, now: datetime
) -> tuple[Sequence[x509.Certificate], x509.Certificate | None]:
    """Read the certificates of a file, the likeliest first; and whose signature they came with."""
    try:
        with path.open("rb") as file:
            block = file.read(LONGEST + 1)
        if _is_mail(block):
            return _from_mail(configuration, ring, name, path, now)
    except OSError as error:
        raise GatewayError(f"{path} cannot be read: {error.strerror}") from None
    if len(block) > LONGEST:
        raise GatewayError(f"{path} is too long for a certificate, and no mail")
    try:
        return keyring.certificates(block), None
    except ConfigurationError:
        raise GatewayError(
            f"{path} holds no certificate that can be read", hint="PEM, DER, PKCS #7 or a signed mail is expected"
        ) from None


def _is_mail(block: bytes) -> bool:
    match = header.BLOCK.match(block)
    return match is not None and any(name == "from" for name, _ in header.fields(block[: match.end()]))


def _from_mail(
    configuration: Configuration, ring: Keyring, name: str, path: Path, now: datetime
) -> tuple[Sequence[x509.Certificate], x509.Certificate]:
    """Take what came with the innermost signature that holds. Whether its signer is trusted, a person decides."""
    ours = tuple(Key(one.key, one.certificate) for one in ring.identities)
    mail, limit = Span(path, 0, path.stat().st_size), configuration.limits.message
    try:
        with tempfile.TemporaryDirectory(prefix="dicom-mail-") as folder:
            opened = open_message(mail, ours, ring.partners.get(name, ()), Path(folder), limit=limit, now=now)
    except ProtectionError as error:
        raise GatewayError(f"the mail cannot be opened: {error.text}, code {error.code}") from None
    signatures = [(layer, one) for layer in opened.layers for one in layer.signatures]
    for layer, one in reversed(signatures):
        if one.failure is None and one.certificate is not None:
            return (one.certificate, *layer.certificates), one.certificate
    if not signatures:
        raise GatewayError("the mail is not signed", hint="ask the partner for a signed one")
    failure = signatures[-1][1].failure
    raise GatewayError(f"the signature of the mail does not hold: {failure}", hint="ask the partner for another one")


def _choose(found: Sequence[x509.Certificate], name: str, partner: Partner, ring: Keyring, now: datetime) -> Candidate:
    is_for: Callable[[str], bool] = lambda address: routing.matches(partner.address, address)  # noqa: E731  one place
    try:
        return candidate.choose(found, is_for, ring.trust, now, pinned=partner.pin)
    except ProtectionError as error:
        hint = "ask the partner for another one; if the address is right, change partner.NAME.address, or pin it"
        if error.code is not Failure.SENDER_ADDRESS_MISMATCH:
            hint = "ask the partner for another one"
        raise GatewayError(
            f"this cannot be the certificate of {name}: {error.text}, code {error.code}", hint=hint
        ) from None


def _pem(chosen: Candidate) -> str:
    block = b"".join(one.public_bytes(Encoding.PEM) for one in (chosen.certificate, *chosen.authorities))
    if len(block) > LONGEST_CHAIN:
        raise GatewayError("the certificate and those of its issuers are too long")
    return block.decode("ascii")


def _notes(
    configuration: Configuration,
    name: str,
    chosen: Candidate,
    old: x509.Certificate | None,
    signer: x509.Certificate | None,
) -> Sequence[str]:
    """What a person should know before approving."""
    found = []
    partner = configuration.partner[name]
    if signer is not None and signer != chosen.certificate:
        found.append("it came along with the mail, and is not the one that signed it")
    if chosen.doubt is not None:
        found.append(f"mail to {name} would be held: {chosen.doubt.text}; put its issuer into smime.trust, or set pin")
    if partner.pin and not any(routing.matches(partner.address, one) for one in trust.addresses(chosen.certificate)):
        found.append("it names another address; the partner is pinned, so that does not matter")
    if partner.certificate is not None:
        found.append(f"the configuration names {partner.certificate}, which is used instead")
    if old == chosen.certificate:
        found.append("it is the one that is in use already")
    return found


# ---------------------------------------------------------------------------------------------------------------
# Changes


@dataclass(frozen=True, slots=True)
class Change:
    """A change that was checked and is still to be made.

    Attributes:
        kind: Of its event.
        text: Of its event.
        path: The file that is written.
        content: What it holds then; None: it is removed.
        obsolete: A file that goes with it; None: none.
    """

    kind: str
    text: str
    path: Path
    content: bytes | None
    obsolete: Path | None = None

    def make(self, connection: Connection, who: str, now: datetime) -> None:
        """Write it down and do it.

        Raises:
            GatewayError: The file cannot be written; nothing was changed.
        """
        tell(connection, now, self.kind, self.text, who=who)
        try:
            if self.content is not None:
                _write(self.path, self.content)
            for gone in (self.path if self.content is None else None, self.obsolete):
                if gone is not None:
                    gone.unlink(missing_ok=True)
        except OSError as error:
            raise GatewayError(f"{self.path} cannot be written: {error.strerror}") from None


def _write(path: Path, content: bytes) -> None:
    """Put a file in the place of another, whole or not at all; it belongs to whom the data folder belongs."""
    folder = path.parent
    folder.mkdir(0o700, exist_ok=True)
    draft = folder / f".{path.name}.new"
    draft.unlink(missing_ok=True)
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "wb") as out:
        out.write(content)
        out.flush()
        if os.geteuid() == 0:
            owner = folder.parent.stat()
            os.fchown(file, owner.st_uid, owner.st_gid)
            os.chown(folder, owner.st_uid, owner.st_gid)
        os.fsync(file)
    draft.replace(path)
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(at)
    finally:
        os.close(at)


def prepare(configuration: Configuration, verb: str, arguments: Mapping[str, Any], now: datetime) -> Change:
    """Check a change and make it ready. Blocks.

    Raises:
        GatewayError: It cannot be made.
    """
    match verb, dict(arguments):
        case "partner-import", {"partner": str(name), "pem": str(pem), "source": str(source)}:
            return _import(configuration, name, pem, source, now)
        case "partner-trust", {"partner": str(name), "until": str(until)}:
            return _trust(configuration, name, datetime.fromisoformat(until), now)
        case "partner-trust", {"partner": str(name), "until": None}:
            _demand_partner(configuration, name)
            path = keys.trusted(configuration, name)
            return Change("partner-trusted", f"the certificate of {name} counts no longer than it is valid", path, None)
    raise UsageError(f"there is no verb {verb} with these arguments")


def _import(configuration: Configuration, name: str, pem: str, source: str, now: datetime) -> Change:
    partner = _demand_partner(configuration, name)
    ring = keys.load(configuration).keyring
    chosen = _choose(keyring.certificates(pem.encode("ascii", "replace")), name, partner, ring, now)
    one = chosen.certificate
    origin = source if _ITEM.fullmatch(source) else "a file"  # people name files after patients
    text = (
        f"the certificate of {name} was imported from {origin}: SHA-256 {fingerprint(one)}, "
        f"valid until {one.not_valid_after_utc:%Y-%m-%d}"
    )
    path = keys.imported(configuration, name)
    return Change("partner-imported", text, path, _pem(chosen).encode(), keys.trusted(configuration, name))


def _trust(configuration: Configuration, name: str, until: datetime, now: datetime) -> Change:
    partner = _demand_partner(configuration, name)
    ring = keys.load(configuration).keyring
    certificate = ring.certificate(name, now)
    if certificate is None:
        raise GatewayError(f"there is no certificate of {name}", hint=f"dicom-mail partner import {name} FILE")
    if not now < until <= now + LONGEST_TRUST:
        raise UsageError(f"expected a time within the next {LONGEST_TRUST.days} days")
    ended = certificate.not_valid_after_utc
    if until <= ended:
        raise GatewayError(f"the certificate of {name} is valid until {_rfc3339(ended)}: nothing has to be done")
    key = trust.key_of(certificate)
    anchors = replace(ring.trust, overdue=(Overdue(key, until),))
    try:
        _standing(certificate, ring.partners[name], anchors, now, pinned=partner.pin)
    except ProtectionError as error:
        raise GatewayError(f"the certificate of {name} cannot be let count: {error.text}, code {error.code}") from None
    text = (
        f"the certificate of {name}, valid until {_rfc3339(ended)}, is let count until {_rfc3339(until)}: "
        f"SHA-256 {fingerprint(certificate)}"
    )
    content = json.dumps({"key": key, "until": _rfc3339(until), "certificate": fingerprint(certificate)}) + "\n"
    return Change("partner-trusted", text, keys.trusted(configuration, name), content.encode())


def moment(text: str, now: datetime) -> datetime | None:
    """Read until when a certificate is let count: a time, or a day, which counts to its end; ``now`` for no longer.

    Raises:
        UsageError: It is neither.
    """
    if text == "now":
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("--until: expected a day or a time", hint=f"as {now + timedelta(days=2):%Y-%m-%d}") from None
    if len(text) <= len("2026-11-23"):
        found = datetime.combine(found.date(), time(23, 59, 59))
    return found.astimezone(UTC)


def call(configuration: Configuration, verb: str, **arguments: Any) -> Document:
    """Have a change made by the running gateway, or make it here when none runs; return the partner as it is then.

    Raises:
        GatewayError: It cannot be made.
    """
    answer = control.ask_daemon(configuration, verb, arguments)
    if answer is not None:
        return answer
    lock = Lock(configuration.gateway.data)
    try:
        now = datetime.now(UTC)
        change = prepare(configuration, verb, arguments, now)
        engine = connect(control.ledger_url(configuration))
        try:
            with engine.begin() as connection:
                change.make(connection, control.person(os.getuid()), now)
        finally:
            engine.dispose()
    finally:
        lock.release()
    return description(configuration, arguments["partner"], now)
