"""Where CRLs come from, which of them is taken, how fresh they are, and when they are asked for again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pki
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pki import DAY, NOW, Holder

from gateway.core.cms import revocation, trust
from gateway.core.cms.revocation import Fault, Inspection, Source, State
from gateway.core.cms.trust import Trust

URL = "http://crl.test/one.crl"


def point(*urls: str, **more: object) -> x509.DistributionPoint:
    """A distribution point."""
    names = [x509.UniformResourceIdentifier(url) for url in urls] or None
    values = {"relative_name": None, "reasons": None, "crl_issuer": None, **more}
    return x509.DistributionPoint(names, **values)  # type: ignore[arg-type]


def named(*some: x509.DistributionPoint) -> Holder:
    """Somebody whose certificate names distribution points."""
    return pki.leaf(extra={"points": x509.CRLDistributionPoints(list(some))})


def of(issuer: Holder, url: str = URL, *, is_ca: bool = False) -> Source:
    """A source of an issuer."""
    return Source(url, issuer.certificate.public_bytes(Encoding.DER), is_ca)


# Sources


def test_each_certificate_of_a_path_but_the_anchor_has_its_sources() -> None:
    """RFC 5280 §4.2.1.13: the address stands in what was issued, the key that signs in its issuer."""
    anna = named(point(URL), point("https://other.test/two.crl"))
    path = [pki.root().certificate, pki.issuing().certificate, anna.certificate]
    assert revocation.sources(path) == (
        of(pki.root(), "", is_ca=True),
        of(pki.issuing()),
        of(pki.issuing(), "https://other.test/two.crl"),
    )
    assert revocation.sources(path[:1]) == ()


@pytest.mark.parametrize(
    "given",
    [
        point("ldap://crl.test/cn=ca"),
        point("file:///etc/passwd"),
        point("http://user@crl.test/"),
        point("http://crl.test:junk/"),
        point("http://crl.test:99999/"),
        point("http:///nobody"),
        point("http://[::1/"),
        point("http://crl.test/" + "x" * 1000),
        point("http://crl.test/a b"),
        point(URL, reasons=frozenset({x509.ReasonFlags.key_compromise})),
        point(URL, crl_issuer=[x509.DirectoryName(pki.root().certificate.subject)]),
        x509.DistributionPoint(None, pki.root().certificate.subject.rdns[0], None, None),
        x509.DistributionPoint([x509.DirectoryName(pki.root().certificate.subject)], None, None, None),
    ],
)
def test_an_address_that_cannot_be_asked_is_none(given: x509.DistributionPoint) -> None:
    """Only whole CRLs, only HTTP, no login: everything else a certificate may say is passed over."""
    assert revocation.points(named(given).certificate) == ()


def test_no_more_than_a_few_addresses_of_a_certificate_are_looked_at() -> None:
    """A certificate with thousands of them makes nobody ask thousands of times."""
    some = [point(f"http://crl.test/{number}") for number in range(50)]
    assert len(revocation.points(named(*some).certificate)) == revocation.MOST_POINTS


def test_a_certificate_whose_points_are_junk_has_none() -> None:
    """Nothing a certificate holds may raise."""
    junk = x509.UnrecognizedExtension(ExtensionOID.CRL_DISTRIBUTION_POINTS, b"junk")
    assert revocation.points(pki.leaf(extra={"junk": junk}).certificate) == ()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (URL, True),
        ("https://CRL.test:8443/x", True),
        ("http://crl.test.evil.test/", False),
        ("http://evil.test/?crl.test", False),
        ("http://crl.test@evil.test/", False),
        ("http://sub.crl.test/", False),
        ("http://crl.test./", False),
        ("ftp://crl.test/", False),
        ("http://crl.t\N{LATIN SMALL LETTER E WITH ACUTE}st/", False),
        ("", False),
    ],
)
def test_only_exactly_the_named_hosts_are_asked(url: str, expected: bool) -> None:
    """``crl_hosts``: no pattern, no suffix, no tricks with logins."""
    assert revocation.is_allowed(url, ["Crl.test"]) is expected
    assert Source(url, b"").is_allowed(["crl.test"]) is expected


def test_a_source_names_its_host_and_its_file() -> None:
    """The name of the file says nothing, and differs for each source."""
    one = of(pki.issuing())
    names = {one.name, replace(one, is_ca=True).name, of(pki.root()).name, replace(one, url="").name}
    assert len(names) == 4
    assert all(len(name) == 32 and name.isalnum() for name in names)
    assert (one.host, replace(one, url="").host) == ("crl.test", "")


# What came


def inspect(folder: Path, content: bytes, last_update: datetime | None = None) -> Inspection:
    """Look at something that came from the issuing authority."""
    path = folder / "part"
    path.write_bytes(content)
    return revocation.inspect(path, of(pki.issuing()), last_update, NOW)


def test_a_crl_of_its_issuer_is_taken(tmp_path: Path) -> None:
    """PEM or DER, and the same one again."""
    crl = pki.revocations(pki.issuing())
    for form in (Encoding.DER, Encoding.PEM):
        for last in (None, NOW - DAY, NOW - 2 * DAY):
            assert inspect(tmp_path, crl.public_bytes(form), last) == Inspection(None, NOW - DAY, NOW + 7 * DAY)


def _with_strange_algorithm() -> bytes:
    der = pki.revocations(pki.issuing()).public_bytes(Encoding.DER)
    sha256_with_rsa = bytes.fromhex("2a864886f70d01010b")
    return der.replace(sha256_with_rsa, sha256_with_rsa[:-1] + b"\x7e")


def _only_authorities() -> x509.IssuingDistributionPoint:
    return x509.IssuingDistributionPoint(None, None, False, True, None, False, False)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", Fault.MALFORMED),
        (b"<html>not found</html>", Fault.MALFORMED),
        (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", Fault.MALFORMED),
        (pki.revocations(pki.issuing()).public_bytes(Encoding.DER)[:-9], Fault.MALFORMED),
        (pki.revocations(pki.root()).public_bytes(Encoding.DER), Fault.WRONG_ISSUER),
        (pki.revocations(pki.issuing(), signer=pki.root()).public_bytes(Encoding.DER), Fault.BAD_SIGNATURE),
        (_with_strange_algorithm(), Fault.BAD_SIGNATURE),
        (
            pki.revocations(pki.issuing(), since=NOW + 2 * DAY, until=NOW + 9 * DAY).public_bytes(Encoding.DER),
            Fault.MALFORMED,
        ),
        (
            pki.revocations(pki.issuing(), since=NOW - 9 * DAY, until=NOW + DAY).public_bytes(Encoding.DER),
            Fault.OLDER,
        ),
        (
            pki.revocations(pki.issuing(), extension=x509.DeltaCRLIndicator(1)).public_bytes(Encoding.DER),
            Fault.PARTIAL,
        ),
        (pki.revocations(pki.issuing(), extension=_only_authorities()).public_bytes(Encoding.DER), Fault.PARTIAL),
    ],
)
def test_what_is_no_newer_crl_of_its_issuer_is_not_taken(tmp_path: Path, content: bytes, fault: Fault) -> None:
    """Who answers for the server cannot make anybody good or revoked, and not bring back an old list."""
    assert inspect(tmp_path, content, NOW - 2 * DAY) == Inspection(fault)


# When to ask again


@given(
    life=st.integers(1, 400 * 24 * 60).map(lambda minutes: timedelta(minutes=minutes)),
    gone=st.floats(0, 2),
    dice=st.floats(0, 1, exclude_max=True),
)
def test_a_crl_is_asked_for_again_before_it_ends(life: timedelta, gone: float, dice: float) -> None:
    """Soon enough to see a revocation, never at once, and before nextUpdate as long as that is ahead."""
    made = NOW - life * gone
    wait = revocation.after_success(Inspection(None, made, made + life), NOW, dice)
    assert timedelta(seconds=48) <= wait <= 1.2 * revocation.LATEST
    left = made + life - NOW
    if left > 2 * revocation.FIRST_WAIT:
        assert wait < left


def test_a_crl_without_dates_is_asked_for_soon() -> None:
    """A record that a person spoiled."""
    assert revocation.after_success(Inspection(None), NOW, 0.5) == revocation.SOONEST


@given(failures=st.integers(1, 10_000), dice=st.floats(0, 1, exclude_max=True))
def test_a_source_that_fails_is_asked_less_and_less(failures: int, dice: float) -> None:
    """R16: growing, capped, with jitter."""
    wait = revocation.after_failure(failures, dice)
    assert 0.8 * revocation.FIRST_WAIT <= wait <= 1.2 * revocation.LONGEST_WAIT
    assert revocation.after_failure(failures + 2, dice) >= wait


# How fresh they are


def coverage(*crls: x509.CertificateRevocationList, mode: str = "soft") -> list[tuple[State, datetime | None]]:
    """What is known of the issuing authority."""
    known = Trust((), (), crls, mode)
    return [(one.state, one.until) for one in revocation.coverage([of(pki.issuing()), of(pki.issuing())], known, NOW)]


@pytest.mark.parametrize(
    ("late", "state"), [(-DAY, State.FRESH), (DAY, State.STALE), (7 * DAY, State.STALE), (8 * DAY, State.EXPIRED)]
)
def test_the_state_of_a_crl_follows_its_next_update_and_the_grace(late: timedelta, state: State) -> None:
    """The best one counts, and the grace is a week here."""
    old = pki.revocations(pki.issuing(), since=NOW - 90 * DAY, until=NOW - 60 * DAY)
    one = pki.revocations(pki.issuing(), since=NOW - 30 * DAY, until=NOW - late)
    assert coverage(old, one) == [(state, NOW - late)]
    assert state.counts is (state in {State.FRESH, State.STALE})


def test_a_crl_is_missing_when_none_is_by_its_issuer_and_for_now() -> None:
    """Somebody else's, a forged one and one from the future tell nothing; with ``off`` nobody asks."""
    future = pki.revocations(pki.issuing(), since=NOW + 2 * DAY, until=NOW + 9 * DAY)
    forged = pki.revocations(pki.issuing(), signer=pki.root())
    assert coverage(pki.revocations(pki.root()), forged, future) == [(State.MISSING, None)]
    assert coverage(mode="off") == []


def test_the_worse_state_counts_when_authorities_and_people_have_lists_of_their_own() -> None:
    """A list of authorities alone says nothing of people."""
    limits = {
        "only_contains_user_certs": False,
        "only_contains_ca_certs": True,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    only = x509.IssuingDistributionPoint(None, None, only_some_reasons=None, **limits)
    crl = pki.revocations(pki.issuing(), extension=only)
    both = [of(pki.issuing()), of(pki.issuing(), is_ca=True)]
    known = Trust((), (), (crl,))
    assert [one.state for one in revocation.coverage(both[1:], known, NOW)] == [State.FRESH]
    (found,) = revocation.coverage(both, known, NOW)
    assert found.state is State.MISSING
    assert found.sources == tuple(both)


def test_an_issuer_is_named_by_its_name_and_its_fingerprint() -> None:
    """Two of the same name are told apart, and no name breaks a line."""
    (found,) = revocation.coverage([of(pki.authority("A\nlong " + "x" * 50))], Trust(()), NOW)
    assert found.issuer.startswith("A\N{REPLACEMENT CHARACTER}long xxx")
    assert found.issuer.endswith(" " + found.fingerprint[:8])
    nameless = pki.key("rsa-2048/nameless")
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Clinic")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.not_valid_before(NOW - DAY).not_valid_after(NOW + DAY).public_key(nameless.public_key())
    other = Holder(nameless, builder.sign(nameless, pki.hashes.SHA256()))
    assert revocation.coverage([of(other)], Trust(()), NOW)[0].issuer.startswith("O=Clinic ")


def test_times_are_read_as_they_were_written() -> None:
    """Whatever a person made of the file beside a CRL."""
    assert revocation.moment(NOW.isoformat()) == NOW
    assert revocation.moment("2026-11-23T12:00:00") == datetime(2026, 11, 23, 12, tzinfo=UTC)
    assert revocation.moment(None) is None


# What the trust in a certificate says of them


def test_an_unknown_revocation_under_hard_tells_which_path_it_is_about() -> None:
    """So that its CRLs can be fetched before anything is decided."""
    anna = pki.leaf()
    known = Trust((pki.root().certificate,), (), (), "hard")
    with pytest.raises(trust.RevocationUnknownError) as caught:
        trust.check(anna.certificate, [pki.issuing().certificate], known, NOW, "sign")
    assert caught.value.path[-1] == anna.certificate


_GOOD = pki.revocations(pki.issuing(), pki.leaf().certificate).public_bytes(Encoding.DER)


@given(
    at=st.integers(0, len(_GOOD) - 1), byte=st.binary(min_size=1, max_size=3), cut=st.integers(0, 2), more=st.binary()
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_crl_is_a_fault_and_nothing_else(tmp_path: Path, at: int, byte: bytes, cut: int, more: bytes) -> None:
    """Whatever bytes come: no other error, and nothing that its issuer did not sign."""
    content = _GOOD[:at] + byte + _GOOD[at + cut :] + more
    found = inspect(tmp_path, content)
    assert (found.fault is None) == (content == _GOOD)
