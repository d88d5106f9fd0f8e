"""Which of the certificates that are offered for a partner is taken, and why none of them is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pki
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from pki import DAY, NOW, SIGN, Holder

from gateway.core.cms import candidate
from gateway.core.cms.candidate import MOST_AUTHORITIES, Candidate
from gateway.core.cms.failure import Failure, ProtectionError
from gateway.core.cms.trust import Trust

ANCHORS = Trust((pki.root().certificate,))


def choose(*offered: Holder, anchors: Trust = ANCHORS, pinned: bool = False) -> Candidate:
    """Choose for anna@clinic.test."""
    some = [one.certificate for one in offered]
    return candidate.choose(some, lambda address: address == "anna@clinic.test", anchors, NOW, pinned=pinned)


def refused(*offered: Holder, **how: Any) -> ProtectionError:
    """Why nothing was chosen."""
    with pytest.raises(ProtectionError) as caught:
        choose(*offered, **how)
    return caught.value


def test_the_persons_certificate_is_taken_with_its_authorities() -> None:
    """Wherever it lies in the file; no authority twice, and not without bound."""
    anna, issuing = pki.leaf(), pki.issuing()
    assert choose(issuing, anna, issuing) == Candidate(anna.certificate, (issuing.certificate,))
    many = [pki.authority(f"Other {number}", kind="P-256") for number in range(MOST_AUTHORITIES + 2)]
    assert len(choose(anna, issuing, *many).authorities) == MOST_AUTHORITIES


def test_the_first_that_can_serve_is_taken() -> None:
    """A signer with two certificates: one to sign with, one to be encrypted to."""
    signs, reads = pki.leaf(usages=SIGN), pki.leaf(usages=("key_encipherment",), kind="rsa-2048/reads")
    assert choose(signs, reads, pki.issuing()).certificate == reads.certificate


@pytest.mark.parametrize(
    ("wishes", "expected", "says"),
    [
        ({"until": NOW - DAY}, Failure.CERTIFICATE_EXPIRED, "run out"),
        ({"since": NOW + DAY}, Failure.CERTIFICATE_NOT_YET_VALID, "not yet valid"),
        ({"kind": "rsa-1024/anna"}, Failure.WEAK_KEY, "1024 bits"),
        ({"usages": SIGN}, Failure.KEY_USAGE, "must not be used to encrypt"),
        ({"purposes": (ExtendedKeyUsageOID.SERVER_AUTH,)}, Failure.EXTENDED_KEY_USAGE, "not for mail"),
        ({"address": "bert@clinic.test"}, Failure.SENDER_ADDRESS_MISMATCH, "for bert@clinic.test"),
        ({"address": None}, Failure.SENDER_ADDRESS_MISMATCH, "for no address at all"),
    ],
)
def test_a_bad_certificate_is_refused_in_plain_words(wishes: dict[str, Any], expected: Failure, says: str) -> None:
    """Each with its code."""
    error = refused(pki.leaf(**wishes), pki.issuing())
    assert error.code is expected
    assert says in error.text


def test_the_reason_is_that_of_the_likeliest() -> None:
    """The signer's own comes first."""
    assert refused(pki.leaf(until=NOW - DAY), pki.leaf(usages=SIGN)).code is Failure.CERTIFICATE_EXPIRED


def test_a_file_of_authorities_is_no_partners() -> None:
    """Nobody mails to an authority."""
    assert "only certificates of authorities" in refused(pki.issuing(), pki.root()).text
    assert "only certificates of authorities" in refused().text


def test_a_revoked_certificate_is_refused_also_without_other_faults() -> None:
    """No person can approve it."""
    anna = pki.leaf()
    crls = (pki.revocations(pki.root()), pki.revocations(pki.issuing(), anna.certificate))
    assert refused(anna, pki.issuing(), anchors=Trust(ANCHORS.anchors, crls=crls)).code is Failure.REVOKED


def test_an_issuer_nobody_trusts_is_a_doubt_that_a_person_may_have() -> None:
    """The authority may be put into the folder later, or the certificate pinned."""
    found = choose(pki.leaf(), anchors=Trust(()))
    assert found.doubt is not None
    assert found.doubt.code is Failure.UNTRUSTED_ISSUER
    assert choose(pki.leaf(), anchors=Trust(()), pinned=True).doubt is None
    hard = Trust(ANCHORS.anchors, revocation="hard")
    doubt = choose(pki.leaf(), pki.issuing(), anchors=hard).doubt
    assert doubt is not None
    assert doubt.code is Failure.REVOCATION_UNKNOWN


def test_the_address_of_a_pinned_certificate_does_not_matter() -> None:
    """As for its signatures."""
    bert = pki.leaf(address="bert@clinic.test")
    assert choose(bert, pki.issuing(), pinned=True).certificate == bert.certificate


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("rsa-2048/anna", "RSA 2048"),
        ("P-256/anna", "secp256r1"),
        ("Ed25519/anna", "Ed25519"),
        ("X25519/anna", "X25519"),
    ],
)
def test_keys_are_named_as_people_do(kind: str, expected: str) -> None:
    """Kind and strength."""
    assert candidate.key(pki.leaf(kind=kind).certificate) == expected


def test_a_key_that_the_library_does_not_know_is_named_so() -> None:
    """It is shown to a person, so it must not fail."""

    class Strange:
        def public_key(self) -> None:
            raise ValueError

    assert candidate.key(Strange()) == "unknown"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("usages", "expected"),
    [(SIGN, ("digitalSignature", "nonRepudiation")), (("key_agreement",), ("keyAgreement",)), (None, None)],
)
def test_usages_are_named_in_the_standards_words(usages: Sequence[str] | None, expected: tuple[str, ...]) -> None:
    """And none is not all."""
    assert candidate.usages(pki.leaf(usages=usages).certificate) == expected


def test_a_fingerprint_is_what_other_programs_show() -> None:
    """SHA-256 of the whole certificate."""
    anna = pki.leaf(until=NOW + timedelta(days=5))
    assert len(candidate.fingerprint(anna.certificate)) == 64
