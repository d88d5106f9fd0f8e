"""Whose certificate counts, and why another's does not: one code for each reason."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pki
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from pki import BOTH, DAY, NOW, SIGN, Holder

from gateway.core.cms import trust
from gateway.core.cms.failure import Failure, ProtectionError
from gateway.core.cms.trust import Overdue, Purpose, Standing, Trust

_HOST = x509.SubjectAlternativeName([x509.DNSName("anna.clinic.test")])


def anchors(
    *crls: x509.CertificateRevocationList, revocation: str = "soft", grace: timedelta = timedelta(days=7)
) -> Trust:
    """The hospital trusts the root."""
    return Trust((pki.root().certificate,), (), crls, revocation, grace)


def check(holder: Holder, asked: Trust | None = None, purpose: Purpose = "sign", *, pinned: bool = False) -> Standing:
    """Check a certificate that came with its issuer's."""
    bag = [pki.issuing().certificate]
    return trust.check(holder.certificate, bag, asked or anchors(), NOW, purpose, pinned=pinned)


def code(holder: Holder, asked: Trust | None = None, purpose: Purpose = "sign", *, pinned: bool = False) -> Failure:
    """The code with which it is refused."""
    with pytest.raises(ProtectionError) as caught:
        check(holder, asked, purpose, pinned=pinned)
    return caught.value.code


def fresh(*revoked: x509.Certificate) -> tuple[x509.CertificateRevocationList, ...]:
    """Current CRLs of both authorities."""
    return pki.revocations(pki.root()), pki.revocations(pki.issuing(), *revoked)


def test_a_good_certificate_has_a_path_from_the_anchor() -> None:
    """SMIME-19: root, issuing authority, person; and both CRLs say that nobody is revoked."""
    anna = pki.leaf()
    standing = check(anna, anchors(*fresh(), revocation="hard"))
    assert standing.path == (pki.root().certificate, pki.issuing().certificate, anna.certificate)
    assert standing.revocation == "good"


@pytest.mark.parametrize(
    ("wishes", "purpose", "expected"),
    [
        ({"until": NOW - DAY}, "sign", Failure.CERTIFICATE_EXPIRED),
        ({"since": NOW + DAY}, "sign", Failure.CERTIFICATE_NOT_YET_VALID),
        ({"purposes": (ExtendedKeyUsageOID.CLIENT_AUTH,)}, "sign", Failure.EXTENDED_KEY_USAGE),
        ({"usages": ("key_encipherment",)}, "sign", Failure.KEY_USAGE),
        ({"usages": SIGN}, "encrypt", Failure.KEY_USAGE),
        ({"usages": ("key_encipherment",), "kind": "P-256/leaf"}, "encrypt", Failure.KEY_USAGE),
        ({"kind": "rsa-1024/leaf"}, "sign", Failure.WEAK_KEY),
        ({"kind": "P-192/leaf"}, "encrypt", Failure.WEAK_KEY),
    ],
)
def test_each_fault_of_a_certificate_has_its_code(
    wishes: dict[str, object], purpose: Purpose, expected: Failure
) -> None:
    """SMIME-5, SMIME-21, SMIME-22: the reason is the one a person can act on, and pinning does not excuse it."""
    holder = pki.leaf(**wishes)
    assert code(holder, purpose=purpose) is expected
    assert code(holder, purpose=purpose, pinned=True) is expected


@pytest.mark.parametrize(
    ("wishes", "purpose"),
    [
        ({"usages": None}, "sign"),
        ({"usages": None, "purposes": None}, "encrypt"),
        ({"usages": ("content_commitment",)}, "sign"),
        ({"purposes": (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)}, "sign"),
        ({"usages": ("key_agreement",), "kind": "P-256/leaf"}, "encrypt"),
        ({"usages": BOTH, "kind": "P-384/leaf"}, "sign"),
    ],
)
def test_what_a_certificate_does_not_forbid_is_allowed(wishes: dict[str, object], purpose: Purpose) -> None:
    """SMIME-21: absent usages count as set; all certificates of some mail programs are like that."""
    assert check(pki.leaf(**wishes), purpose=purpose).revocation == "unknown"


def test_an_issuer_nobody_trusts_is_refused_unless_a_person_pinned_the_certificate() -> None:
    """SMIME-23: trust is the hospital's choice, never the message's."""
    rogue = pki.authority("Rogue")
    holder = pki.issue(pki.Wish(), rogue)
    bag = [rogue.certificate]
    with pytest.raises(ProtectionError) as caught:
        trust.check(holder.certificate, bag, anchors(), NOW, "sign")
    assert caught.value.code is Failure.UNTRUSTED_ISSUER
    standing = trust.check(holder.certificate, bag, anchors(), NOW, "sign", pinned=True)
    assert standing == Standing((holder.certificate,), "unchecked")
    assert code(pki.leaf(), Trust(())) is Failure.UNTRUSTED_ISSUER


def test_an_issuer_that_may_not_issue_is_refused() -> None:
    """RFC 5280 §4.2.1.9: a person's certificate is no authority."""
    anna = pki.leaf()
    holder = pki.issue(pki.Wish(name="Eve", address="anna@clinic.test"), anna)
    bag = [anna.certificate, pki.issuing().certificate]
    with pytest.raises(ProtectionError) as caught:
        trust.check(holder.certificate, bag, anchors(), NOW, "sign")
    assert caught.value.code is Failure.UNTRUSTED_ISSUER


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (NOW - 10 * DAY, NOW - DAY, Failure.CERTIFICATE_EXPIRED),
        (NOW + DAY, NOW + 10 * DAY, Failure.CERTIFICATE_NOT_YET_VALID),
    ],
)
def test_an_issuer_out_of_its_time_is_named_so(since: object, until: object, expected: Failure) -> None:
    """What has run out is the issuer's: the person's certificate is fine."""
    wish = pki.Wish("rsa-2048/Old", None, since, until, ("key_cert_sign",), None, ca=True, name="Old")  # type: ignore[arg-type]
    old = pki.issue(wish, pki.root())
    holder = pki.issue(pki.Wish(), old)
    with pytest.raises(ProtectionError) as caught:
        trust.check(holder.certificate, [old.certificate], anchors(), NOW, "sign")
    assert caught.value.code is expected


def test_an_issuer_for_other_purposes_is_refused() -> None:
    """An authority for web servers vouches for no mail."""
    usages = ("key_cert_sign", "crl_sign")
    purposes = (ExtendedKeyUsageOID.SERVER_AUTH,)
    wish = pki.Wish("rsa-2048/Web", None, NOW - DAY, NOW + DAY, usages, purposes, ca=True, name="Web")
    web = pki.issue(wish, pki.root())
    holder = pki.issue(pki.Wish(), web)
    with pytest.raises(ProtectionError) as caught:
        trust.check(holder.certificate, [web.certificate], anchors(), NOW, "sign")
    assert caught.value.code is Failure.EXTENDED_KEY_USAGE


def test_certificates_that_lead_nowhere_are_not_looked_at() -> None:
    """A bag full of strangers changes nothing and takes no time."""
    bag = [pki.authority(f"Stranger {number % 3}").certificate for number in range(60)]
    curve = bytes.fromhex("2a8648ce3d030107")
    bag.append(spoiled(pki.leaf(kind="P-256/leaf"), curve, curve[:-1] + b"\x7f").certificate)  # a key of no known kind
    anna = pki.leaf()
    standing = trust.check(anna.certificate, [*bag, pki.issuing().certificate], anchors(), NOW, "sign")
    assert len(standing.path) == 3


def test_certificates_of_one_name_that_all_issued_each_other_take_no_time() -> None:
    """Bounded: a mesh in which each could be the issuer of each would have more paths than can be tried."""
    bottom = pki.issue(replace(MESH, name="0"))
    others = [pki.issue(replace(MESH, name=str(number))) for number in range(1, 5)]
    members = [bottom, *others]
    bag = [
        pki.issue(replace(MESH, name=one.certificate.subject.rdns[0].rfc4514_string()[3:]), other).certificate
        for one in members
        for other in members
        for _ in range(2)
        if one is not other
    ]
    holder = pki.issue(pki.Wish(), bottom)
    chosen = trust._on_the_way(holder.certificate, bag)
    assert len(chosen) == trust.INTERMEDIATES
    assert len({(one.subject, one.issuer) for one in chosen}) == trust.INTERMEDIATES
    with pytest.raises(ProtectionError) as caught:
        trust.check(holder.certificate, bag, anchors(), NOW, "sign")
    assert caught.value.code is Failure.UNTRUSTED_ISSUER


MESH = pki.Wish("P-256/Mesh", None, usages=("key_cert_sign",), purposes=None, ca=True)


def spoiled(holder: Holder, old: bytes, new: bytes) -> Holder:
    """Replace object identifiers in a certificate."""
    der = holder.certificate.public_bytes(Encoding.DER)
    assert old in der
    return Holder(holder.key, x509.load_der_x509_certificate(der.replace(old, new)))


def test_a_certificate_with_an_extension_twice_is_malformed_and_for_nobody() -> None:
    """RFC 5280 §4.2: which of both would count?"""
    twice = spoiled(pki.leaf(), b"\x55\x1d\x11", b"\x55\x1d\x0e")
    assert code(twice) is Failure.MALFORMED
    assert code(twice, pinned=True) is Failure.MALFORMED
    assert trust.addresses(twice.certificate) == ()


@pytest.mark.parametrize("oid", ["2.5.29.32", "2.5.29.33", "2.5.29.36", "2.5.29.30"])
def test_an_issuer_with_an_extension_of_junk_is_malformed(oid: str) -> None:
    """Whatever the library makes of it: policies, mappings, constraints that are no DER."""
    junk = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), b"junk")
    wish = pki.Wish(
        "rsa-2048/Junk", None, usages=("key_cert_sign",), purposes=None, ca=True, name="Junk", extra={"junk": junk}
    )
    bad = pki.issue(wish, pki.root())
    holder = pki.issue(pki.Wish(), bad)
    with pytest.raises(ProtectionError) as caught:
        trust.check(holder.certificate, [bad.certificate], anchors(), NOW, "sign")
    assert caught.value.code is Failure.MALFORMED


def test_a_library_that_waits_for_something_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline means that nothing can be waited for: an update that fetches must show at once."""

    class Waiting:
        """Stands where the validator is, and would wait for a network."""

        def __init__(self, *_: object, **__: object) -> None:
            pass

        async def async_validate_path(self) -> None:
            """Wait."""
            await asyncio.sleep(0)

    monkeypatch.setattr(trust, "CertificateValidator", Waiting)
    with pytest.raises(RuntimeError, match="offline"):
        check(pki.leaf())


# Revocation


@pytest.mark.parametrize("revocation", ["soft", "hard"])
def test_a_revoked_certificate_is_refused_also_by_an_old_crl(revocation: str) -> None:
    """Revoked always blocks: nobody becomes good again because a list was not renewed."""
    anna = pki.leaf()
    old = pki.revocations(pki.issuing(), anna.certificate, since=NOW - 90 * DAY, until=NOW - 60 * DAY)
    assert code(anna, anchors(old, revocation=revocation)) is Failure.REVOKED
    assert code(anna, anchors(*fresh(anna.certificate), revocation=revocation), pinned=True) is Failure.REVOKED


def test_a_revoked_issuer_takes_its_people_with_it() -> None:
    """RFC 5280 §6.3: every certificate of the path but the anchor is looked up."""
    crl = pki.revocations(pki.root(), pki.issuing().certificate)
    assert code(pki.leaf(), anchors(crl, pki.revocations(pki.issuing()))) is Failure.REVOKED


def test_an_unknown_revocation_is_remarked_or_refused_as_the_policy_says() -> None:
    """The three policies of the configuration, without any CRL."""
    anna = pki.leaf()
    assert check(anna, anchors()).revocation == "unknown"
    assert code(anna, anchors(revocation="hard")) is Failure.REVOCATION_UNKNOWN
    assert check(anna, anchors(*fresh(anna.certificate), revocation="off")).revocation == "unchecked"


@pytest.mark.parametrize(("late", "expected"), [(6 * DAY, "good"), (8 * DAY, "unknown")])
def test_a_crl_counts_past_its_time_by_the_grace_alone(late: timedelta, expected: str) -> None:
    """``crl_grace``: a list that was renewed too late does not stop the mail at once."""
    window = {"since": NOW - 40 * DAY, "until": NOW - late}
    crls = pki.revocations(pki.root(), **window), pki.revocations(pki.issuing(), **window)  # type: ignore[arg-type]
    assert check(pki.leaf(), anchors(*crls)).revocation == expected


def _point(**limits: bool) -> x509.IssuingDistributionPoint:
    chosen = {
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
        **limits,
    }
    name = x509.UniformResourceIdentifier("http://crl.test/one.crl")
    return x509.IssuingDistributionPoint([name], None, only_some_reasons=None, **chosen)


@pytest.mark.parametrize(
    ("extension", "expected"),
    [
        (_point(), "good"),
        (_point(only_contains_user_certs=True), "good"),
        (_point(only_contains_ca_certs=True), "unknown"),
        (_point(only_contains_attribute_certs=True), "unknown"),
        (_point(indirect_crl=True), "unknown"),
        (x509.DeltaCRLIndicator(1), "unknown"),
    ],
)
def test_a_crl_that_is_not_about_the_certificate_tells_nothing(extension: x509.ExtensionType, expected: str) -> None:
    """RFC 5280 §5.2.5: partial, indirect and delta lists do not show that somebody is good."""
    crls = pki.revocations(pki.root()), pki.revocations(pki.issuing(), extension=extension)
    assert check(pki.leaf(), anchors(*crls)).revocation == expected


@pytest.mark.parametrize(
    ("wishes", "good"),
    [
        ({"address": "anna@clinic.test"}, True),
        ({"address": "anna@CLINIC.test", "old_address": "Anna@clinic.test"}, True),
        ({"address": "anna@ward.clinic.test"}, False),
        ({"address": "anna@ward.other.test"}, True),
        ({"address": "anna@other.test"}, False),
        ({"address": "carl@clinic.test"}, False),
        ({"address": "anna@clinic.test", "old_address": "ben@practice.test"}, False),
        ({"address": None, "old_address": "anna@clinic.test"}, True),
        ({"address": None, "old_address": "ben@practice.test"}, False),
        ({"address": None, "old_address": "ben@practice.test", "extra": {"names": _HOST}}, False),
        ({"address": None, "old_address": "anna@clinic.test", "extra": {"names": _HOST}}, True),
    ],
)
def test_an_authority_that_is_constrained_vouches_for_no_other_address_wherever_that_stands(
    wishes: dict[str, object], good: bool
) -> None:
    """RFC 5280 §4.2.1.10: neither in the subjectAltName nor in the subject beside it (SMIME-20)."""
    permitted = [x509.RFC822Name("clinic.test"), x509.RFC822Name(".other.test")]
    limits = x509.NameConstraints(permitted, [x509.RFC822Name("carl@clinic.test")])
    usages = ("key_cert_sign", "crl_sign")
    wish = pki.Wish("rsa-2048/ward", None, usages=usages, purposes=None, ca=True, name="Ward", extra={"limits": limits})
    ward = pki.issue(wish, pki.root())
    certificate = pki.issue(pki.Wish(**wishes), ward).certificate  # type: ignore[arg-type]
    refused = pytest.raises(ProtectionError, match=r"vouch|nobody who is trusted")
    with contextlib.nullcontext() if good else refused:
        trust.check(certificate, [ward.certificate], anchors(), NOW, "sign")


@pytest.mark.parametrize(
    ("url", "expected"), [("http://crl.test/one.crl", "good"), ("http://crl.test/two.crl", "unknown")]
)
def test_of_a_list_in_parts_only_the_part_that_the_certificate_names_shows_that_it_is_good(
    url: str, expected: str
) -> None:
    """RFC 5280 §6.3.3 (b)(2): an authority with many certificates spreads them over several lists."""
    named = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
    anna = pki.leaf(extra={"points": x509.CRLDistributionPoints([named])})
    crls = pki.revocations(pki.root()), pki.revocations(pki.issuing(), extension=_point())
    assert check(anna, anchors(*crls)).revocation == expected
    revoking = pki.revocations(pki.issuing(), anna.certificate, extension=_point())
    assert code(anna, anchors(pki.revocations(pki.root()), revoking)) is Failure.REVOKED


def test_a_list_that_is_limited_and_not_in_parts_tells_of_whoever_it_is_about() -> None:
    """It names no place of its own, so it is meant wherever the certificate says that lists are (RFC 5280 §5.2.5)."""
    named = x509.DistributionPoint([x509.UniformResourceIdentifier("http://crl.test/one.crl")], None, None, None)
    anna = pki.leaf(extra={"points": x509.CRLDistributionPoints([named])})
    people = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    crls = pki.revocations(pki.root()), pki.revocations(pki.issuing(), extension=people)
    assert check(anna, anchors(*crls)).revocation == "good"


def test_a_crl_that_its_issuer_did_not_sign_tells_nothing() -> None:
    """Who can send us files cannot revoke, nor clear, anybody's certificate."""
    anna = pki.leaf()
    forged = pki.revocations(pki.issuing(), anna.certificate, signer=pki.authority("Rogue"))
    assert check(anna, anchors(pki.revocations(pki.root()), forged)).revocation == "unknown"


def test_a_crl_that_cannot_be_read_tells_nothing() -> None:
    """A distribution point of junk might limit it in any way."""
    junk = x509.UnrecognizedExtension(ExtensionOID.ISSUING_DISTRIBUTION_POINT, b"junk")
    crls = pki.revocations(pki.root()), pki.revocations(pki.issuing(), extension=junk)
    assert check(pki.leaf(), anchors(*crls)).revocation == "unknown"


def test_an_authority_that_must_not_sign_crls_signs_none() -> None:
    """RFC 5280 §6.3.3 (f)."""
    wish = pki.Wish("rsa-2048/Mute", None, NOW - DAY, NOW + DAY, ("key_cert_sign",), None, ca=True, name="Mute")
    mute = pki.issue(wish, pki.root())
    holder = pki.issue(pki.Wish(), mute)
    crls = pki.revocations(pki.root()), pki.revocations(mute, holder.certificate)
    standing = trust.check(holder.certificate, [mute.certificate], anchors(*crls), NOW, "sign")
    assert standing.revocation == "unknown"


# Addresses


def test_addresses_are_read_from_their_two_places_and_compared_without_case() -> None:
    """SMIME-20: subjectAltName, and emailAddress in the name of old certificates."""
    anna = pki.leaf(address="Anna@Clinic.test", old_address="a.old@clinic.test")
    assert trust.addresses(anna.certificate) == ("Anna@Clinic.test", "a.old@clinic.test")
    assert trust.is_for(anna.certificate, "anna@CLINIC.test")
    assert not trust.is_for(anna.certificate, "eve@clinic.test")
    assert trust.addresses(pki.leaf(address=None).certificate) == ()


def test_the_newest_valid_certificate_is_found() -> None:
    """SMIME-24: at a roll-over the new one is used from its first day on."""
    old, new = pki.leaf(since=NOW - 20 * DAY), pki.leaf(since=NOW - DAY)
    future, past = pki.leaf(since=NOW + DAY), pki.leaf(until=NOW - DAY)
    certificates = [one.certificate for one in (past, old, new, future)]
    assert trust.newest(certificates, NOW) == new.certificate
    assert trust.newest([past.certificate], NOW) is None


# A certificate that has run out, and that a person lets count


def late(holder: Holder, until: timedelta = DAY) -> Trust:
    """The hospital trusts the root, and lets the key of this certificate count so much longer."""
    return replace(anchors(), overdue=(Overdue(trust.key_of(holder.certificate), NOW + until),))


@pytest.mark.parametrize("purpose", ["sign", "encrypt"])
def test_a_certificate_counts_after_its_end_for_as_long_as_a_person_lets_it(purpose: Purpose) -> None:
    """In both directions, and it is on record that it has run out."""
    past = pki.leaf(until=NOW - DAY)
    assert check(past, late(past), purpose).overdue
    assert check(past, late(past, timedelta(0)), purpose).overdue
    assert code(past, late(past, timedelta(seconds=-1)), purpose) is Failure.CERTIFICATE_EXPIRED
    assert not check(pki.leaf(), late(pki.leaf()), purpose).overdue


def test_only_the_same_key_is_let_count() -> None:
    """Whoever has another key certified for the same address is not meant."""
    past, other = pki.leaf(until=NOW - DAY), pki.leaf(until=NOW - DAY, kind="P-256/other")
    assert code(other, late(past)) is Failure.CERTIFICATE_EXPIRED


def test_nothing_else_is_forgiven() -> None:
    """Revoked, without a path, for another purpose: as ever."""
    past = pki.leaf(until=NOW - DAY)
    assert code(past, replace(late(past), crls=fresh(past.certificate))) is Failure.REVOKED
    assert code(past, replace(late(past), anchors=())) is Failure.UNTRUSTED_ISSUER
    stranger = pki.leaf(until=NOW - DAY, usages=("key_encipherment",))
    assert code(stranger, late(stranger)) is Failure.KEY_USAGE


def test_a_pinned_certificate_may_be_let_count_too() -> None:
    """It is its own anchor."""
    past = pki.issue(pki.Wish(until=NOW - DAY))
    assert check(past, late(past), pinned=True).path == (past.certificate,)


# Anchors that nobody can read


def unreadable(name: x509.Name) -> x509.Certificate:
    """An anchor of this name with an extension of junk: it can be loaded, and a path through it cannot be checked."""
    junk = x509.UnrecognizedExtension(ExtensionOID.NAME_CONSTRAINTS, b"\x30\x03\xa0\x01\xff")
    key = pki.key("P-256/junk")
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(junk, critical=True)
    )
    return builder.sign(key, hashes.SHA256())


def test_an_anchor_that_cannot_be_read_spoils_no_other() -> None:
    """Not even one that has the name of the good one."""
    root = pki.root().certificate
    for bad in (unreadable(root.subject), unreadable(x509.Name([]))):
        for both in ((bad, root), (root, bad)):
            assert check(pki.leaf(), replace(anchors(), anchors=both)).path[0] == root
    alone = replace(anchors(), anchors=(unreadable(root.subject),))
    assert code(pki.leaf(), alone) in (Failure.UNTRUSTED_ISSUER, Failure.MALFORMED)


def test_of_many_anchors_that_cannot_be_read_few_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that fails on all of them together is asked for each that could be meant, and for no other."""
    asked: list[int] = []

    def build(*arguments: Any) -> tuple[x509.Certificate, ...]:
        _, _, some, _ = arguments
        asked.append(len(some))
        if len(some) > 1:
            raise ProtectionError(Failure.MALFORMED, "")
        if some[0] == root:
            return (root,)
        raise ProtectionError(Failure.UNTRUSTED_ISSUER, "")

    root = pki.root().certificate
    monkeypatch.setattr(trust, "_build", build)
    strangers = [pki.authority(f"Stranger {number}", kind="P-256").certificate for number in range(3)]
    namesakes = [unreadable(root.subject)]
    assert check(pki.leaf(), replace(anchors(), anchors=(*strangers, *namesakes, root))).path == (root,)
    assert asked == [5, 1, 1]
    asked.clear()
    assert code(pki.leaf(), replace(anchors(), anchors=(*strangers, *namesakes))) is Failure.MALFORMED
    assert asked == [4, 1]
