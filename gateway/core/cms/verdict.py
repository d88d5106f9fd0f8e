"""What the protection of a message amounts to, and whether it is what its partner must send.

``verified`` is said only when signature, chain, key usage, dates, revocation policy and the binding to From all hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from gateway.core import header
from gateway.core.cms import revocation, trust
from gateway.core.cms.failure import Failure, ProtectionError
from gateway.core.cms.opened import Layer, Opened, Signature
from gateway.core.cms.revocation import Source
from gateway.core.cms.trust import RevocationUnknownError, Standing, Trust

Accept = Literal["any", "signed", "encrypted", "signed+encrypted"]

TAMPERED: Final = frozenset(
    {
        Failure.MALFORMED,
        Failure.LIMIT_EXCEEDED,
        Failure.SIGNED_PART_NOT_ROOT,
        Failure.CONTENT_DIGEST_MISMATCH,
        Failure.BAD_SIGNATURE,
        Failure.SIGNED_ATTRIBUTES_INVALID,
        Failure.NO_KEY_FOR_US,
        Failure.DECRYPT_FAILED,
        Failure.CBC_WITHOUT_INNER_SIGNATURE,
        Failure.REVOKED,
    }
)
"""What holds a message whatever its partner must send: it cannot be read, or somebody changed it on the way."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the protection of one message. Holds an address: never logged.

    Attributes:
        encrypted: It was encrypted, and we could open it.
        signed: It was signed.
        verified: The signature counts.
        signer: The address of the certificate that counts, else None.
        fingerprint: SHA-256 of that certificate, in hexadecimal; else None.
        revocation: What is known of that: ``good``, ``unknown`` or ``unchecked``; else None.
        code: Why it does not count; None when nothing is wrong.
        repaired: The signature fits with the line ends that a relay took away.
        others: Why further signatures do not count, beside the one that does; or those inside of CBC, when none does.
        overdue: The certificate has run out, and a person lets it count.
        gaps: The CRLs that would tell what is unknown.
    """

    encrypted: bool = False
    signed: bool = False
    verified: bool = False
    signer: str | None = None
    fingerprint: str | None = None
    revocation: str | None = None
    code: Failure | None = None
    repaired: bool = False
    others: tuple[Failure, ...] = ()
    overdue: bool = False
    gaps: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Expected:
    """Who may have signed.

    Attributes:
        sender: The address of the single From; empty when there is not exactly one.
        pinned: The only certificate that counts; its address need not match. None: any that matches From.
    """

    sender: str
    pinned: x509.Certificate | None = None


def judge(opened: Opened, expected: Expected, anchors: Trust, now: datetime) -> Verdict:
    """Judge the layers of a message that was opened.

    Args:
        opened: The message.
        expected: Who may have signed.
        anchors: Whom the hospital trusts.
        now: When it arrived.
    """
    good: list[tuple[int, Signature, Standing]] = []
    gaps: list[Source] = []
    failures: list[Failure] = []
    broken: Failure | None = None  # a layer that somebody changed spoils the whole, whoever signed around it
    for depth, layer in enumerate(opened.layers):
        if layer.kind != "signed":
            continue
        bad: list[Failure] = []
        found = list(_good(layer, expected, anchors, now, bad, gaps))
        good += [(depth, *one) for one in found]
        failures += bad
        if not found and broken is None:
            broken = next((one for one in bad if one in TAMPERED), None)
    code = _unauthenticated(opened.layers, [depth for depth, *_ in good])
    code = code or broken
    if code is None and not good and opened.signed:
        code = failures[0]
    if code is None and good and not _names(opened.protected, expected.sender):
        code = Failure.SENDER_ADDRESS_MISMATCH
    if code is not None or not good:
        # What is wrong with the signature inside is why CBC is not believed: a person can mend that.
        others = tuple(failures) if code is Failure.CBC_WITHOUT_INNER_SIGNATURE else ()
        return Verdict(opened.encrypted, opened.signed, code=code, others=others, gaps=tuple(gaps))
    _, signature, standing = good[-1]
    assert signature.certificate is not None
    named = trust.addresses(signature.certificate)
    return Verdict(
        opened.encrypted,
        signed=True,
        verified=True,
        signer=next((one for one in named if one.casefold() == expected.sender.casefold()), (*named, None)[0]),
        fingerprint=signature.certificate.fingerprint(hashes.SHA256()).hex(),
        revocation=standing.revocation,
        repaired=any(layer.repaired for layer in opened.layers),
        others=tuple(failures),
        overdue=standing.overdue,
        gaps=tuple(gaps),
    )


def _names(protected: Sequence[tuple[str, str]], sender: str) -> bool:
    """Whether a From inside the protection, where there is one, names the same sender as the one outside."""
    named = [address for name, value in protected if name == "from" for address in header.addresses(value)]
    return not named or [one.casefold() for one in named] == [sender.casefold()]


def _good(
    layer: Layer, expected: Expected, anchors: Trust, now: datetime, failures: list[Failure], gaps: list[Source]
) -> Iterator[tuple[Signature, Standing]]:
    """The signatures of a layer that count; why others do not goes into ``failures``, CRLs that miss into ``gaps``."""
    for signature in layer.signatures:
        if signature.failure is not None:
            failures.append(signature.failure.code)
            continue
        assert signature.certificate is not None
        errors: list[ProtectionError] = []
        for certificate in (signature.certificate, *signature.alike):
            try:
                standing = _demand(certificate, layer.certificates, expected, anchors, now)
            except ProtectionError as error:
                errors.append(error)
                continue
            if standing.revocation == "unknown":
                gaps += revocation.sources(standing.path)
            yield replace(signature, certificate=certificate), standing
            break
        else:
            # Of several certificates of one key, the one of which only the CRL is missing may count yet.
            reason = next((one for one in errors if isinstance(one, RevocationUnknownError)), errors[0])
            failures.append(reason.code)
            if isinstance(reason, RevocationUnknownError):
                gaps += revocation.sources(reason.path)


def _demand(
    certificate: x509.Certificate,
    bag: Sequence[x509.Certificate],
    expected: Expected,
    anchors: Trust,
    now: datetime,
) -> Standing:
    is_pinned = certificate == expected.pinned
    if expected.pinned is not None and not is_pinned:
        raise ProtectionError(Failure.UNTRUSTED_ISSUER, "it is signed with another certificate than the pinned one")
    standing = trust.check(certificate, bag, anchors, now, "sign", pinned=is_pinned)
    if not is_pinned and not trust.is_for(certificate, expected.sender):
        raise ProtectionError(Failure.SENDER_ADDRESS_MISMATCH, "its certificate is for another address than From")
    return standing


def _unauthenticated(layers: Sequence[Layer], good: Sequence[int]) -> Failure | None:
    """CBC alone proves nothing: somebody may have changed it on the way (EFAIL, SMIME-29)."""
    for depth, layer in enumerate(layers):
        if layer.kind == "encrypted" and not layer.authenticated and not any(one > depth for one in good):
            return Failure.CBC_WITHOUT_INNER_SIGNATURE
    return None


def shortfall(verdict: Verdict, accept: Accept) -> Failure | None:
    """Say why a message of a partner who must send ``accept`` is held; None when it may go on."""
    if verdict.code in TAMPERED:
        return verdict.code
    if "signed" in accept and not verdict.verified:
        return verdict.code or Failure.NOT_SIGNED
    if "encrypted" in accept and not verdict.encrypted:
        return Failure.NOT_ENCRYPTED
    return None
