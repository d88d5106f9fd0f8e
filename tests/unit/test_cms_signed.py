"""SignedData of every form that senders write, and of the forms that only attackers write."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import pki
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from pki import NOW, Holder

from gateway.core.cms import algorithms, ber, signed
from gateway.core.cms.ber import Reader
from gateway.core.cms.failure import Failure, ProtectionError
from gateway.core.cms.signed import Attributes, Signed

CONTENT = b"Content-Type: text/plain\r\n\r\nhello"
HASHES: Mapping[str, type[hashes.HashAlgorithm]] = {**algorithms.DIGESTS, "1.3.14.3.2.26": hashes.SHA1}
SHA1 = "1.3.14.3.2.26"


def attribute(oid: str, *values: bytes) -> bytes:
    """An Attribute."""
    return ber.sequence(ber.identifier(oid), ber.set_of(*values))


def content_type(oid: str = algorithms.DATA) -> bytes:
    """The attribute content-type."""
    return attribute(algorithms.CONTENT_TYPE, ber.identifier(oid))


def message_digest(content: bytes = CONTENT, oid: str = algorithms.SHA256) -> bytes:
    """The attribute message-digest."""
    return attribute(algorithms.MESSAGE_DIGEST, ber.octet_string(_hash(oid, content)))


def _hash(oid: str, content: bytes) -> bytes:
    running = hashes.Hash(HASHES[oid]())
    running.update(content)
    return running.finalize()


@dataclass(frozen=True)
class Craft:
    """A SignedData as somebody might write it; what is not said is as it should be."""

    holder: Holder = field(default_factory=lambda: pki.leaf(kind="rsa-2048/anna"))
    digest: str = algorithms.SHA256
    announced: tuple[str, ...] | None = None
    algorithm: bytes | None = None
    attributes: tuple[bytes, ...] | None = None
    bare: bool = False
    in_order: bool = False
    name: bytes | None = None
    inside: bytes | None = None
    kind: str = algorithms.DATA
    certificates: tuple[bytes, ...] | None = None
    crls: tuple[bytes, ...] = ()
    signers: int = 1
    sign_sorted: bool = False
    pss: padding.PSS | None = None

    def __bytes__(self) -> bytes:
        certificates = self.certificates
        if certificates is None:
            certificates = (self.holder.certificate.public_bytes(Encoding.DER),)
        inner = ber.identifier(self.kind)
        if self.inside is not None:
            inner += ber.element(ber.context(0), ber.octet_string(self.inside))
        announced = (self.digest,) if self.announced is None else self.announced
        return ber.sequence(
            ber.number(1),
            ber.set_of(*map(algorithms.write, announced)),
            ber.sequence(inner),
            ber.element(ber.context(0), *certificates) if certificates else b"",
            ber.element(ber.context(1), *self.crls) if self.crls else b"",
            ber.element(ber.SET, *[self.signer()] * self.signers),
        )

    def signer(self) -> bytes:
        """The SignerInfo."""
        attributes = self.attributes or (content_type(), message_digest(oid=self.digest))
        sent = b"".join(attributes) if self.in_order else b"".join(sorted(attributes))
        made = ber.set_of(*attributes) if self.sign_sorted else ber.element(ber.SET, sent)
        signature = self.sign(CONTENT if self.bare else made)
        return ber.sequence(
            ber.number(1),
            self.name or signed.issuer_and_serial(self.holder.certificate),
            algorithms.write(self.digest),
            b"" if self.bare else ber.element(ber.context(0), sent),
            self.algorithm or self._algorithm(),
            ber.octet_string(signature),
        )

    def _algorithm(self) -> bytes:
        if isinstance(self.holder.key, rsa.RSAPrivateKey):
            return algorithms.write(algorithms.RSA, ber.element(ber.NULL))
        if isinstance(self.holder.key, ed25519.Ed25519PrivateKey):
            return algorithms.write(algorithms.ED25519)
        return algorithms.write(next(name for name, one in algorithms.ECDSA_SHA.items() if one == self.digest))

    def sign(self, content: bytes) -> bytes:
        """Sign."""
        chosen = HASHES[self.digest]()
        if isinstance(self.holder.key, ec.EllipticCurvePrivateKey):
            return self.holder.key.sign(content, ec.ECDSA(chosen))
        if isinstance(self.holder.key, ed25519.Ed25519PrivateKey):
            return self.holder.key.sign(content)
        return self.holder.key.sign(content, self.pss or padding.PKCS1v15(), chosen)


def read(content: bytes, detached: bytes = CONTENT) -> tuple[Signed, bytes]:
    """Read a SignedData; also give what was inside."""
    out = io.BytesIO()
    return signed.read(Reader(io.BytesIO(content).read), (detached,), out.write), out.getvalue()


def verify(craft: Craft, detached: bytes = CONTENT, certificate: x509.Certificate | None = None) -> Attributes:
    """Verify its first signature."""
    found, _ = read(bytes(craft), detached)
    return signed.verify(found, found.signers[0], certificate or craft.holder.certificate, NOW)


def code(craft: Craft, detached: bytes = CONTENT) -> Failure:
    """The code with which its first signature is refused."""
    with pytest.raises(ProtectionError) as caught:
        verify(craft, detached)
    return caught.value.code


GOOD: Mapping[str, Craft] = {
    "plain": Craft(),
    "by key identifier": Craft(
        name=ber.element(
            ber.context(0, constructed=False),
            signed.key_identifier(pki.leaf(kind="rsa-2048/anna").certificate),
        )
    ),
    "without attributes": Craft(bare=True),
    "sha-384": Craft(digest=algorithms.SHA384),
    "sha-512 by name": Craft(
        digest=algorithms.SHA512, algorithm=algorithms.write("1.2.840.113549.1.1.13", ber.element(ber.NULL))
    ),
    "elliptic": Craft(pki.leaf(kind="P-256/anna")),
    "elliptic sha-512": Craft(pki.leaf(kind="P-384/anna"), algorithms.SHA512),
    "not in the order of der": Craft(attributes=(message_digest(), content_type()), in_order=True),
    "signed in another order than sent": Craft(
        attributes=(message_digest(), content_type()), in_order=True, sign_sorted=True
    ),
    "several digests announced": Craft(announced=(SHA1, algorithms.SHA256, algorithms.SHA512)),
    "pss": Craft(
        pss=padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32),
        algorithm=algorithms.write_pss(algorithms.SHA256),
    ),
    "inside": Craft(inside=CONTENT),
    "crls beside": Craft(crls=(pki.revocations(pki.root()).public_bytes(Encoding.DER), ber.element(ber.context(1)))),
}


@pytest.mark.parametrize("craft", GOOD.values(), ids=GOOD.keys())
def test_every_honest_form_of_a_signature_is_good(craft: Craft) -> None:
    """SMIME-2: what OpenSSL, Bouncy Castle, Outlook and smart cards write."""
    assert verify(craft) == Attributes()
    found, inside = read(bytes(craft))
    assert found.embedded == (craft.inside is not None)
    assert inside == (craft.inside or b"")
    assert found.signers[0].name.matches(craft.holder.certificate)
    assert not found.signers[0].name.matches(pki.leaf(kind="rsa-2048/other").certificate)


def test_certificates_and_crls_come_with_it() -> None:
    """SMIME-16: what cannot be read among them is left out."""
    crl = pki.revocations(pki.root()).public_bytes(Encoding.DER)
    issuing = pki.issuing().certificate
    junk = (ber.sequence(ber.number(1)), ber.element(ber.context(1), b""), issuing.public_bytes(Encoding.DER))
    found, _ = read(bytes(Craft(certificates=junk, crls=(crl, ber.element(ber.context(1))))))
    assert found.certificates == (issuing,)
    assert found.crls == (crl,)
    assert read(bytes(Craft(certificates=())))[0].certificates == ()


def mask(inner: str, salt: int | None = 32, mgf: str = algorithms.MGF1) -> bytes:
    """RSASSA-PSS with parameters of one's own."""
    parts = [
        ber.element(ber.context(0), algorithms.write(algorithms.SHA256)),
        ber.element(ber.context(1), algorithms.write(mgf, algorithms.write(inner))),
    ]
    if salt is not None:
        parts.append(ber.element(ber.context(2), ber.number(salt)))
    return algorithms.write(algorithms.RSA_PSS, ber.sequence(*parts))


_ESS = algorithms.SIGNING_CERTIFICATE_V2
_PROTECTION = algorithms.ALGORITHM_PROTECTION


def with_attribute(*extra: bytes) -> tuple[bytes, ...]:
    """The two attributes that must be there, and others."""
    return (content_type(), message_digest(), *extra)


def ess(fingerprint: bytes, oid: str | None = None) -> bytes:
    """A signingCertificateV2."""
    algorithm = algorithms.write(oid) if oid else b""
    return attribute(_ESS, ber.sequence(ber.sequence(ber.sequence(algorithm, ber.octet_string(fingerprint)))))


def protection(digest: str, signature: str, tag: int = ber.context(1)) -> bytes:
    """A CMSAlgorithmProtection."""
    return attribute(_PROTECTION, ber.sequence(algorithms.write(digest), ber.element(tag, ber.identifier(signature))))


BAD: Mapping[str, tuple[Craft, Failure]] = {
    "sha-1": (Craft(digest=SHA1), Failure.WEAK_DIGEST),
    "unknown digest": (Craft(digest=algorithms.SHA256, announced=("1.2.3",)), Failure.SIGNED_ATTRIBUTES_INVALID),
    "rsa with sha-1 by name": (Craft(algorithm=algorithms.write("1.2.840.113549.1.1.5")), Failure.WEAK_DIGEST),
    "rsa with another digest by name": (
        Craft(algorithm=algorithms.write("1.2.840.113549.1.1.13")),
        Failure.SIGNED_ATTRIBUTES_INVALID,
    ),
    "unknown signature": (Craft(algorithm=algorithms.write("1.2.3")), Failure.UNSUPPORTED_ALGORITHM),
    "ecdsa with another digest": (
        Craft(pki.leaf(kind="P-256/anna"), algorithm=algorithms.write("1.2.840.10045.4.3.4")),
        Failure.SIGNED_ATTRIBUTES_INVALID,
    ),
    "rsa algorithm with an elliptic key": (
        Craft(pki.leaf(kind="P-256/anna"), algorithm=algorithms.write(algorithms.RSA)),
        Failure.UNSUPPORTED_ALGORITHM,
    ),
    "weak key": (Craft(pki.leaf(kind="rsa-1024/weak")), Failure.WEAK_KEY),
    "pss without parameters": (Craft(algorithm=algorithms.write(algorithms.RSA_PSS)), Failure.WEAK_DIGEST),
    "pss with sha-1 mask": (Craft(algorithm=mask(SHA1)), Failure.WEAK_DIGEST),
    "pss with another mask": (
        Craft(algorithm=mask(algorithms.SHA256, mgf="1.2.3")),
        Failure.UNSUPPORTED_ALGORITHM,
    ),
    "pss with an impossible salt": (Craft(algorithm=mask(algorithms.SHA256, 1000)), Failure.MALFORMED),
    "pss with the default salt": (Craft(algorithm=mask(algorithms.SHA256, None)), Failure.BAD_SIGNATURE),
    "bare content of another type": (
        Craft(bare=True, kind=algorithms.SIGNED_DATA),
        Failure.SIGNED_ATTRIBUTES_INVALID,
    ),
    "no content type": (Craft(attributes=(message_digest(),)), Failure.SIGNED_ATTRIBUTES_INVALID),
    "no digest": (Craft(attributes=(content_type(),)), Failure.SIGNED_ATTRIBUTES_INVALID),
    "another content type": (
        Craft(attributes=(content_type(algorithms.SIGNED_DATA), message_digest())),
        Failure.SIGNED_ATTRIBUTES_INVALID,
    ),
    "an attribute twice": (
        Craft(attributes=(content_type(), message_digest(), message_digest(b"other"))),
        Failure.SIGNED_ATTRIBUTES_INVALID,
    ),
    "two values": (
        Craft(attributes=(content_type(), attribute(algorithms.MESSAGE_DIGEST, b"\4\0", b"\4\1a"))),
        Failure.SIGNED_ATTRIBUTES_INVALID,
    ),
    "another digest": (
        Craft(attributes=(content_type(), message_digest(b"other"))),
        Failure.CONTENT_DIGEST_MISMATCH,
    ),
    "another signing certificate": (
        Craft(attributes=with_attribute(ess(bytes(32)))),
        Failure.SIGNED_ATTRIBUTES_INVALID,
    ),
    "an empty signing certificate": (
        Craft(attributes=with_attribute(attribute(_ESS, ber.sequence(ber.sequence(ber.sequence()))))),
        Failure.MALFORMED,
    ),
    "other protected algorithms": (
        Craft(attributes=with_attribute(protection(algorithms.SHA512, algorithms.RSA))),
        Failure.SIGNED_ATTRIBUTES_INVALID,
    ),
    "protected algorithms of a mac": (
        Craft(attributes=with_attribute(protection(algorithms.SHA256, algorithms.RSA, ber.context(2)))),
        Failure.SIGNED_ATTRIBUTES_INVALID,
    ),
    "signed in the future": (
        Craft(attributes=with_attribute(attribute(algorithms.SIGNING_TIME, ber.time(NOW + timedelta(days=2))))),
        Failure.SIGNED_ATTRIBUTES_INVALID,
    ),
}


@pytest.mark.parametrize(("craft", "expected"), BAD.values(), ids=BAD.keys())
def test_every_dishonest_form_has_its_code(craft: Craft, expected: Failure) -> None:
    """SMIME-5 and the negative list: refused, and by the reason that it is."""
    assert code(craft) is expected


def test_another_content_is_seen_with_and_without_attributes() -> None:
    """Integrity."""
    assert code(Craft(), b"other") is Failure.CONTENT_DIGEST_MISMATCH
    assert code(Craft(bare=True), b"other") is Failure.BAD_SIGNATURE


def test_attributes_changed_after_signing_do_not_fit() -> None:
    """The signature covers the attributes, in whatever order they come."""
    honest = bytes(Craft(attributes=with_attribute(attribute(algorithms.SIGNING_TIME, ber.time(NOW)))))
    forged = honest.replace(ber.time(NOW), ber.time(NOW - timedelta(days=1)))
    found, _ = read(forged)
    with pytest.raises(ProtectionError) as caught:
        signed.verify(found, found.signers[0], pki.leaf(kind="rsa-2048/anna").certificate, NOW)
    assert caught.value.code is Failure.BAD_SIGNATURE


def test_what_the_signer_says_beside_the_content_is_read() -> None:
    """SMIME-15: time, capabilities, certificate by any digest, algorithms."""
    craft = Craft(pki.leaf(kind="P-256/anna"))
    fingerprint = hashlib.sha512(craft.holder.certificate.public_bytes(Encoding.DER)).digest()
    said = Craft(
        craft.holder,
        attributes=with_attribute(
            attribute(algorithms.SIGNING_TIME, ber.time(NOW)),
            attribute(algorithms.SMIME_CAPABILITIES, ber.sequence(algorithms.write(algorithms.AES256_GCM))),
            ess(fingerprint, algorithms.SHA512),
            protection(algorithms.SHA256, "1.2.840.10045.4.3.2"),
            attribute("1.2.3.4", ber.number(1)),
        ),
    )
    assert verify(said) == Attributes(NOW, (algorithms.AES256_GCM,))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda one: one.replace(ber.number(1), ber.octet_string(b"\1"), 1),
        lambda _: bytes(Craft(name=ber.number(1))),
        lambda _: bytes(Craft(kind="1.2.3")).replace(ber.identifier("1.2.3"), ber.number(2)),
        lambda one: ber.sequence(*[part.raw for part in ber.parse(one).children()][:-1], ber.set_of(ber.sequence())),
        lambda one: ber.sequence(*[part.raw for part in ber.parse(one).children()], ber.number(1)),
        lambda one: _without_signature(one),  # noqa: PLW0108  it is defined below
    ],
)
def test_what_is_no_signed_data_is_malformed(spoil: Callable[[bytes], bytes]) -> None:
    """Bytes that only look like it."""
    with pytest.raises(ProtectionError) as caught:
        read(spoil(bytes(Craft())))
    assert caught.value.code is Failure.MALFORMED


def _without_signature(one: bytes) -> bytes:
    *parts, signers = ber.parse(one).children()
    fields = [part.raw for part in signers.child(0).children()][:-1]
    return ber.sequence(*(part.raw for part in parts), ber.set_of(ber.sequence(*fields)))


@pytest.mark.parametrize(
    "craft",
    [
        Craft(announced=tuple(f"1.2.3.{number}" for number in range(200))),
        Craft(signers=100),
        Craft(certificates=(ber.sequence(),) * 100),
    ],
)
def test_more_than_anybody_sends_is_refused(craft: Craft) -> None:
    """200 000 digest algorithms must cost nothing."""
    with pytest.raises(ProtectionError) as caught:
        read(bytes(craft))
    assert caught.value.code is Failure.LIMIT_EXCEEDED


EDWARD = pki.leaf(kind="Ed25519/anna")


@pytest.mark.parametrize("in_order", [False, True])
def test_a_signature_by_ed25519_is_good(in_order: bool) -> None:
    """RFC 8419 §3.1: over the signed attributes whole, which hold the content's SHA-512."""
    attributes = (message_digest(oid=algorithms.SHA512), content_type())
    craft = Craft(EDWARD, algorithms.SHA512, attributes=attributes, in_order=in_order, sign_sorted=True)
    assert verify(craft) == Attributes()


@pytest.mark.parametrize(
    ("craft", "expected"),
    [
        (Craft(EDWARD, algorithms.SHA512, bare=True), Failure.UNSUPPORTED_ALGORITHM),
        (Craft(EDWARD), Failure.SIGNED_ATTRIBUTES_INVALID),
        (Craft(EDWARD, algorithms.SHA512, algorithm=algorithms.write(algorithms.RSA)), Failure.UNSUPPORTED_ALGORITHM),
    ],
    ids=["without attributes", "sha-256", "rsa by name"],
)
def test_a_signature_by_ed25519_out_of_its_form_is_refused(craft: Craft, expected: Failure) -> None:
    """RFC 8419 §3.1: with SHA-512 alone; and never over a content that would have to be held whole."""
    assert code(craft) is expected


def test_a_signature_by_another_ed25519_key_does_not_fit() -> None:
    """Eve signs with her key and names Anna's certificate."""
    name = signed.issuer_and_serial(EDWARD.certificate)
    craft = Craft(pki.leaf(kind="Ed25519/eve"), algorithms.SHA512, name=name)
    found, _ = read(bytes(craft))
    with pytest.raises(ProtectionError) as caught:
        signed.verify(found, found.signers[0], EDWARD.certificate, NOW)
    assert caught.value.code is Failure.BAD_SIGNATURE
    assert code(Craft(EDWARD, algorithms.SHA512), b"other") is Failure.CONTENT_DIGEST_MISMATCH


@pytest.mark.parametrize("kind", ["X25519", "Ed448"])
def test_a_key_that_does_not_sign_is_unsupported(kind: str) -> None:
    """A code that says it is the algorithm, not the signature."""
    certificate = pki.leaf(kind=f"{kind}/anna").certificate
    found, _ = read(bytes(Craft()))
    with pytest.raises(ProtectionError) as caught:
        signed.verify(found, found.signers[0], certificate, NOW)
    assert caught.value.code is Failure.UNSUPPORTED_ALGORITHM


def test_an_unknown_digest_is_unsupported() -> None:
    """Neither weak nor ours."""
    with pytest.raises(ProtectionError) as caught:
        algorithms.digest("1.2.3")
    assert caught.value.code is Failure.UNSUPPORTED_ALGORITHM


def test_a_certificate_that_says_its_key_identifier_twice_has_none() -> None:
    """A name fits nobody whose certificate cannot be read."""
    good = pki.leaf(kind="rsa-2048/anna").certificate
    der = good.public_bytes(Encoding.DER).replace(SUBJECT_ALTERNATIVE_NAME, SUBJECT_KEY_IDENTIFIER)
    name = signed.Name(b"", 0, signed.key_identifier(good))
    assert name.matches(good)
    assert not name.matches(x509.load_der_x509_certificate(der))
    assert signed.load(der) is None


SUBJECT_ALTERNATIVE_NAME = b"\x55\x1d\x11"
SUBJECT_KEY_IDENTIFIER = b"\x55\x1d\x0e"


def test_an_elliptic_key_does_not_verify_what_an_rsa_key_signed() -> None:
    """The algorithm must be one for the key."""
    certificate = pki.leaf(kind="P-256/anna").certificate
    with pytest.raises(ProtectionError) as caught:
        verify(Craft(), certificate=certificate)
    assert caught.value.code is Failure.UNSUPPORTED_ALGORITHM


def test_a_certificate_without_a_key_identifier_has_an_empty_one() -> None:
    """Old certificates have none."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Ed")])
    secret = ed25519.Ed25519PrivateKey.generate()
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(secret.public_key())
    builder = builder.serial_number(5).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    assert signed.key_identifier(builder.sign(secret, None)) == b""


def test_a_certificate_whose_key_cannot_be_read_verifies_nothing() -> None:
    """A curve that nobody knows."""
    curve = bytes.fromhex("2a8648ce3d030107")
    der = pki.leaf(kind="P-256/anna").certificate.public_bytes(Encoding.DER)
    with pytest.raises(ProtectionError) as caught:
        verify(Craft(), certificate=x509.load_der_x509_certificate(der.replace(curve, curve[:-1] + b"\x7f")))
    assert caught.value.code is Failure.UNSUPPORTED_ALGORITHM
