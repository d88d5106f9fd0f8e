"""Certificates and keys in files: read, or refused in words; and chosen by date and purpose."""

from __future__ import annotations

from collections.abc import Callable

import pki
import pytest
from cryptography.hazmat.primitives.asymmetric import ed448
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs7,
)
from pki import DAY, NOW, Holder

from gateway.core.cms import keyring
from gateway.core.cms.signed import Identity
from gateway.errors import ConfigurationError


def pem(holder: Holder) -> bytes:
    """A certificate as PEM."""
    return holder.certificate.public_bytes(Encoding.PEM)


def secret(holder: Holder) -> bytes:
    """A key as PEM."""
    return holder.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_certificates_are_read_as_pem_and_as_der() -> None:
    """A file with a chain, and a single one as authorities hand it out."""
    anna, issuing = pki.leaf(), pki.issuing()
    assert keyring.certificates(pem(anna) + pem(issuing)) == (anna.certificate, issuing.certificate)
    assert keyring.certificates(anna.certificate.public_bytes(Encoding.DER)) == (anna.certificate,)


def test_crls_are_read_as_pem_and_as_der() -> None:
    """Both forms lie in the wild under the same name."""
    crl = pki.revocations(pki.root())
    for form in (Encoding.PEM, Encoding.DER):
        assert keyring.revocations(crl.public_bytes(form)) == crl


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (lambda: keyring.certificates(b"junk"), "no certificate"),
        (lambda: keyring.certificates(b"-----BEGIN CERTIFICATE-----\njunk\n-----END CERTIFICATE-----\n"), "no cert"),
        (lambda: keyring.certificates(pem(pki.leaf()) * (keyring.MOST + 1)), "no certificate"),
        (lambda: keyring.revocations(b"junk"), "no CRL"),
        (lambda: keyring.revocations(b"-----BEGIN X509 CRL-----\njunk\n-----END X509 CRL-----\n"), "no CRL"),
        (lambda: keyring.identity(pem(pki.leaf()), b"junk"), "key cannot be read"),
        (lambda: keyring.identity(pem(pki.leaf()), _locked(pki.leaf())), "key cannot be read"),
        (lambda: keyring.identity(pem(pki.leaf()), _strange()), "kind that mail programs cannot use"),
        (lambda: keyring.identity(pem(pki.leaf()), secret(pki.leaf(kind="P-256/other"))), "another certificate"),
    ],
)
def test_what_cannot_be_used_is_said_in_words(read: Callable[[], object], says: str) -> None:
    """A person can act on it, and no key is quoted."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        read()
    assert "BEGIN" not in str(caught.value)


def _locked(holder: Holder) -> bytes:
    return holder.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))


def _strange() -> bytes:
    key = ed448.Ed448PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_an_identity_keeps_its_chain() -> None:
    """SMIME-16: what leads to the anchor goes out with each signature."""
    anna, issuing = pki.leaf(), pki.issuing()
    found = keyring.identity(pem(anna) + pem(issuing), secret(anna))
    assert found == Identity(found.key, anna.certificate, (issuing.certificate,))


def test_the_newest_identity_that_may_signs_and_reads() -> None:
    """SMIME-24: at a roll-over the new one is used from its first day; one for signing alone reads nothing."""
    old, new = pki.leaf(since=NOW - 20 * DAY), pki.leaf(since=NOW - DAY, usages=pki.SIGN)
    past, future = pki.leaf(until=NOW - DAY), pki.leaf(since=NOW + DAY)
    ours = tuple(Identity(one.key, one.certificate) for one in (past, old, new, future))
    signer, reader = keyring.signer(ours, NOW), keyring.reader(ours, NOW)
    assert signer is not None
    assert signer.certificate == new.certificate
    assert reader is not None
    assert reader.certificate == old.certificate
    assert keyring.signer(ours[:1], NOW) is None


def test_the_certificate_of_a_partner_is_no_authoritys() -> None:
    """A file with a chain in any order; without a valid one the first is kept, and refused when it is used."""
    anna, past, plain = pki.leaf(), pki.leaf(until=NOW - DAY), pki.unconstrained()
    found = (pki.issuing().certificate, past.certificate, anna.certificate)
    assert keyring.partner(found, NOW) == anna.certificate
    assert keyring.partner(found[:2], NOW) == past.certificate
    assert keyring.partner(found[:1], NOW) is None
    assert keyring.partner((plain.certificate,), NOW) == plain.certificate


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_certificates_in_pkcs7_are_read_too(encoding: Encoding) -> None:
    """What Windows and many authorities export (.p7b)."""
    both = [pki.leaf().certificate, pki.issuing().certificate]
    found = keyring.certificates(pkcs7.serialize_certificates(both, encoding))
    assert set(found) == set(both)


def test_other_cms_is_no_file_of_certificates() -> None:
    """Encrypted, or cut off."""
    other = pkcs7.serialize_certificates([pki.leaf().certificate], Encoding.DER).replace(b"\x07\x02", b"\x07\x03", 1)
    for block in (other, other[:-20]):
        with pytest.raises(ConfigurationError, match="no certificate"):
            keyring.certificates(block)


def test_a_certificate_of_a_version_that_does_not_exist_is_refused_in_words() -> None:
    """The library has an error of its own for it."""
    block = (
        pki.leaf().certificate.public_bytes(Encoding.DER).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09", 1)
    )
    with pytest.raises(ConfigurationError, match="no certificate"):
        keyring.certificates(block)
