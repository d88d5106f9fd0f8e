"""SignedData (RFC 5652 §5): what a sender vouches for.

Writing makes the detached form alone, which multipart/signed carries. Reading takes every form. Nothing here decides
whether a signer is trusted; it only proves which certificate's key made a signature over which bytes.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.core.cms import algorithms, ber
from gateway.core.cms.algorithms import Algorithm, SigningKey
from gateway.core.cms.ber import Node, Reader
from gateway.core.cms.failure import Failure, ProtectionError, exceeded, malformed, unsupported

SIGNERS: Final = 16
"""Signatures that one message may carry."""

CERTIFICATES: Final = 64
"""Certificates that one message may carry."""

AHEAD: Final = timedelta(days=1)
"""How far a sender's clock may run ahead of ours."""

_SKI: Final = ber.context(0, constructed=False)


@dataclass(frozen=True, slots=True)
class Name:
    """How CMS names a certificate: by issuer and serial number, or by its subject key identifier (RFC 5652 §5.3).

    Attributes:
        issuer: The issuer's Name as DER; empty when it is the identifier.
        serial: The serial number.
        key_identifier: The subject key identifier; empty when it is issuer and serial number.
    """

    issuer: bytes
    serial: int
    key_identifier: bytes

    @classmethod
    def read(cls, node: Node) -> Name:
        """Read a SignerIdentifier or RecipientIdentifier."""
        if node.tag in (_SKI, ber.context(0)):
            return cls(b"", 0, ber.octets(node, _SKI))
        if node.tag != ber.SEQUENCE:
            malformed("a certificate is named in an unknown way")
        return cls(node.child(0, ber.SEQUENCE).raw, ber.integer(node.child(1)), b"")

    def matches(self, certificate: x509.Certificate) -> bool:
        """Whether it names this certificate."""
        try:
            if self.key_identifier:
                return hmac.compare_digest(self.key_identifier, key_identifier(certificate))
            return certificate.serial_number == self.serial and certificate.issuer.public_bytes() == self.issuer
        except (ValueError, TypeError, x509.DuplicateExtension):
            return False


@dataclass(frozen=True, slots=True)
class Signer:
    """A SignerInfo (RFC 5652 §5.3).

    Attributes:
        name: Which certificate.
        digest: Digest algorithm.
        algorithm: Signature algorithm.
        signature: The signature.
        attributes: The signed attributes as they came; None without.
    """

    name: Name
    digest: Algorithm
    algorithm: Algorithm
    signature: bytes
    attributes: Node | None


@dataclass(frozen=True, slots=True)
class Signed:
    """A SignedData without its content.

    Attributes:
        content_type: What was signed.
        embedded: The content was inside.
        digests: Of the content, by the object identifier of each announced algorithm that is ours.
        announced: Every announced digest algorithm.
        certificates: That came with it and can be read.
        crls: That came with it, as DER.
        signers: One for each signature.
    """

    content_type: str
    embedded: bool
    digests: Mapping[str, bytes]
    announced: frozenset[str]
    certificates: tuple[x509.Certificate, ...]
    crls: tuple[bytes, ...]
    signers: tuple[Signer, ...]


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a good signature says beside the content.

    Attributes:
        signing_time: When, by the signer's clock; None when it does not say.
        capabilities: Object identifiers of what the signer can open (RFC 8551 §2.5.2).
    """

    signing_time: datetime | None = None
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Identity:
    """Who signs.

    Attributes:
        key: The private key.
        certificate: Its certificate.
        chain: The certificates between it and an anchor.
        pss: Sign with RSASSA-PSS rather than PKCS #1 v1.5.
    """

    key: SigningKey
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...] = ()
    pss: bool = False


# Reading


def read(reader: Reader, content: Iterable[bytes], sink: Callable[[bytes], object]) -> Signed:
    """Read a SignedData, from its SEQUENCE on.

    Args:
        reader: Stands before it.
        content: The detached content; not touched when the content is inside.
        sink: Gets the content that is inside.

    Raises:
        ProtectionError: It cannot be read.
    """
    reader.enter(ber.SEQUENCE)
    reader.node(ber.INTEGER)
    announced = [Algorithm.read(one).oid for one in reader.node(ber.SET).children()]
    if len(announced) > SIGNERS:
        exceeded("it announces too many digest algorithms")
    running = {oid: hashes.Hash(algorithms.DIGESTS[oid]()) for oid in announced if oid in algorithms.DIGESTS}
    content_type, embedded = _content(reader, content, sink, tuple(running.values()))
    certificates = _certificates(reader)
    crls = reader.node().children() if reader.peek() == ber.context(1) else ()
    signers = reader.node(ber.SET).children()
    reader.leave()
    if len(signers) > SIGNERS:
        exceeded("it has too many signatures")
    return Signed(
        content_type,
        embedded,
        {oid: one.finalize() for oid, one in running.items()},
        frozenset(announced),
        certificates,
        tuple(one.raw for one in crls if one.tag == ber.SEQUENCE),
        tuple(_signer(one) for one in signers),
    )


def _content(
    reader: Reader, content: Iterable[bytes], sink: Callable[[bytes], object], running: Sequence[hashes.Hash]
) -> tuple[str, bool]:
    reader.enter(ber.SEQUENCE)
    content_type = ber.oid(reader.node(ber.OBJECT_IDENTIFIER))
    embedded = reader.peek() == ber.context(0)
    if embedded:
        reader.enter(ber.context(0))
        for block in reader.octets():
            sink(block)
            for one in running:
                one.update(block)
        reader.leave()
    else:
        for block in content:
            for one in running:
                one.update(block)
    reader.leave()
    return content_type, embedded


def _certificates(reader: Reader) -> tuple[x509.Certificate, ...]:
    if reader.peek() != ber.context(0):
        return ()
    nodes = reader.node().children()
    if len(nodes) > CERTIFICATES:
        exceeded("it carries too many certificates")
    loaded = (load(node.raw) for node in nodes if node.tag == ber.SEQUENCE)
    return tuple(one for one in loaded if one is not None)


def load(der: bytes) -> x509.Certificate | None:
    """Read a certificate; None when it cannot be read, which matters only if it is the one that is needed."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.issuer, certificate.subject, certificate.extensions  # noqa: B018  they are read late, and raise
    except (ValueError, TypeError, UnsupportedAlgorithm, Warning, x509.DuplicateExtension, x509.InvalidVersion):
        return None
    return certificate


def _signer(node: Node) -> Signer:
    parts = list(node.children())
    if node.tag != ber.SEQUENCE or len(parts) < 5:
        malformed("a signature cannot be read")
    name, digest = Name.read(parts[1]), Algorithm.read(parts[2])
    attributes = None
    if parts[3].tag == ber.context(0):
        attributes = parts.pop(3)
    if len(parts) < 5:
        malformed("a signature cannot be read")
    return Signer(name, digest, Algorithm.read(parts[3]), ber.octets(parts[4]), attributes)


def verify(signed: Signed, signer: Signer, certificate: x509.Certificate, now: datetime) -> Attributes:
    """Prove that the key of a certificate made a signature over the content.

    Args:
        signed: What was read.
        signer: The signature.
        certificate: The signer's.
        now: The moment of judgement.

    Raises:
        ProtectionError: It did not, or by means that are too weak.
    """
    oid = signer.digest.oid
    algorithms.digest(oid)
    if oid not in signed.announced:
        raise ProtectionError(Failure.SIGNED_ATTRIBUTES_INVALID, "its digest algorithm was not announced")
    try:
        key = algorithms.demand_strength(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        unsupported("its key cannot be read")
    attributes = Attributes()
    if signer.attributes is None:
        if signed.content_type != algorithms.DATA:
            raise ProtectionError(Failure.SIGNED_ATTRIBUTES_INVALID, "its signed attributes are missing")
        if isinstance(key, ed25519.Ed25519PublicKey):
            unsupported("Ed25519 without signed attributes signs a content that is not held")
        _prove(key, signer, signed.digests[oid])
        return attributes
    attributes = _read_attributes(signed, signer, certificate, now)
    body = signer.attributes.body
    # As they came first; DER wants them sorted, and some senders sign what they did not send (RFC 5652 §5.4).
    forms = dict.fromkeys((ber.element(ber.SET, body), ber.set_of(*(one.raw for one in signer.attributes.children()))))
    for form in forms:
        try:
            _prove(key, signer, form if isinstance(key, ed25519.Ed25519PublicKey) else _digest(oid, form))
        except ProtectionError as error:
            if error.code is not Failure.BAD_SIGNATURE:
                raise
        else:
            return attributes
    raise ProtectionError(Failure.BAD_SIGNATURE, "its signature does not fit")


def _digest(oid: str, content: bytes) -> bytes:
    running = hashes.Hash(algorithms.DIGESTS[oid]())
    running.update(content)
    return running.finalize()


def _prove(key: algorithms.PublicKey, signer: Signer, digest: bytes) -> None:
    """Verify over a digest; Ed25519 makes its own, and gets the signed attributes whole (RFC 8419 §3.1)."""
    oid, chosen = signer.digest.oid, signer.algorithm
    if chosen.oid in algorithms.WEAK_SIGNATURES:
        raise ProtectionError(Failure.WEAK_DIGEST, "its signature algorithm is too weak")
    hashed = Prehashed(algorithms.digest(oid))
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            _demand(algorithms.ECDSA_SHA.get(chosen.oid), oid)
            key.verify(signer.signature, digest, ec.ECDSA(hashed))
        elif isinstance(key, ed25519.Ed25519PublicKey):
            _demand(algorithms.SHA512 if chosen.oid == algorithms.ED25519 else None, oid)
            key.verify(signer.signature, digest)
        elif not isinstance(key, rsa.RSAPublicKey):
            unsupported("its kind of key does not sign")
        elif chosen.oid == algorithms.RSA_PSS:
            scheme, inner = algorithms.pss(chosen)
            _demand(inner, oid)
            key.verify(signer.signature, digest, scheme, hashed)
        else:
            _demand(oid if chosen.oid == algorithms.RSA else algorithms.RSA_SHA.get(chosen.oid), oid)
            key.verify(signer.signature, digest, padding.PKCS1v15(), hashed)
    except (InvalidSignature, ValueError):
        raise ProtectionError(Failure.BAD_SIGNATURE, "its signature does not fit") from None


def _demand(found: str | None, expected: str) -> None:
    if found is None:
        unsupported("its signature algorithm is not supported, or not for this key")
    if found != expected:
        raise ProtectionError(Failure.SIGNED_ATTRIBUTES_INVALID, "its signature uses another digest than it says")


def _read_attributes(signed: Signed, signer: Signer, certificate: x509.Certificate, now: datetime) -> Attributes:
    assert signer.attributes is not None
    values: dict[str, Node] = {}
    for attribute in signer.attributes.children():
        oid, held = ber.oid(attribute.child(0)), attribute.child(1, ber.SET).children()
        if oid in values or len(held) != 1:
            _invalid("a signed attribute is there more than once")
        values[oid] = held[0]
    if algorithms.CONTENT_TYPE not in values or algorithms.MESSAGE_DIGEST not in values:
        _invalid("a signed attribute is missing")
    if ber.oid(values[algorithms.CONTENT_TYPE]) != signed.content_type:
        _invalid("its signed content type is another")
    if not hmac.compare_digest(ber.octets(values[algorithms.MESSAGE_DIGEST]), signed.digests[signer.digest.oid]):
        raise ProtectionError(Failure.CONTENT_DIGEST_MISMATCH, "the content is not what was signed")
    if algorithms.SIGNING_CERTIFICATE_V2 in values:
        _check_certificate(values[algorithms.SIGNING_CERTIFICATE_V2], certificate)
    if algorithms.ALGORITHM_PROTECTION in values:
        _check_algorithms(values[algorithms.ALGORITHM_PROTECTION], signer)
    when = None
    if algorithms.SIGNING_TIME in values:
        when = ber.moment(values[algorithms.SIGNING_TIME])
        if when > now + AHEAD:
            _invalid("it was signed in the future")
    capabilities: tuple[str, ...] = ()
    if algorithms.SMIME_CAPABILITIES in values:
        capabilities = tuple(ber.oid(one.child(0)) for one in values[algorithms.SMIME_CAPABILITIES].children())
    return Attributes(when, capabilities)


def _check_certificate(value: Node, certificate: x509.Certificate) -> None:
    """The first ESSCertIDv2 names the signer's certificate (RFC 5035 §3, SMIME-15)."""
    parts = value.child(0, ber.SEQUENCE).child(0, ber.SEQUENCE).children()
    oid = algorithms.SHA256
    if parts and parts[0].tag == ber.SEQUENCE:
        oid, parts = Algorithm.read(parts[0]).oid, parts[1:]
    if not parts:
        malformed("an attribute is empty")
    if not hmac.compare_digest(ber.octets(parts[0]), certificate.fingerprint(algorithms.digest(oid))):
        _invalid("its signed certificate is another")


def _check_algorithms(value: Node, signer: Signer) -> None:
    """CMSAlgorithmProtection names the algorithms that are used (RFC 6211)."""
    parts = value.children()
    if len(parts) < 2 or parts[1].tag != ber.context(1):
        _invalid("its signed algorithms are not those of a signature")
    found = Algorithm.read(parts[0]).oid, Algorithm.read(parts[1], ber.context(1)).oid
    if found != (signer.digest.oid, signer.algorithm.oid):
        _invalid("its signed algorithms are others")


def _invalid(text: str) -> NoReturn:
    raise ProtectionError(Failure.SIGNED_ATTRIBUTES_INVALID, text)


def key_identifier(certificate: x509.Certificate) -> bytes:
    """The subject key identifier of a certificate; empty when it has none."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except (x509.ExtensionNotFound, ValueError):
        return b""


# Writing


def write_detached(digest: bytes, identity: Identity, when: datetime, oid: str = algorithms.SHA256) -> bytes:
    """Sign a content of which only the digest is at hand, and write the whole ContentInfo (RFC 5652 §3).

    Args:
        digest: Of the content, by the algorithm ``oid``.
        identity: Who signs.
        when: The signing time.
        oid: The digest algorithm.
    """
    signer = _write_signer(digest, identity, when, oid)
    certificates = dict.fromkeys(one.public_bytes(Encoding.DER) for one in (identity.certificate, *identity.chain))
    signed = ber.sequence(
        ber.number(1),
        ber.set_of(algorithms.write(oid)),
        ber.sequence(ber.identifier(algorithms.DATA)),
        ber.set_of(*certificates, tag=ber.context(0)),
        ber.set_of(signer),
    )
    return content_info(algorithms.SIGNED_DATA, signed)


def content_info(oid: str, content: bytes) -> bytes:
    """A ContentInfo (RFC 5652 §3)."""
    return ber.sequence(ber.identifier(oid), ber.element(ber.context(0), content))


def _write_signer(digest: bytes, identity: Identity, when: datetime, oid: str) -> bytes:
    algorithm = _signature_algorithm(identity, oid)
    attributes = [
        _attribute(algorithms.CONTENT_TYPE, ber.identifier(algorithms.DATA)),
        _attribute(algorithms.SIGNING_TIME, ber.time(when)),
        _attribute(algorithms.MESSAGE_DIGEST, ber.octet_string(digest)),
        _attribute(algorithms.SMIME_CAPABILITIES, _capabilities()),
        _attribute(algorithms.SIGNING_CERTIFICATE_V2, _own_certificate(identity.certificate)),
        _attribute(
            algorithms.ALGORITHM_PROTECTION,
            # IMPLICIT [1]: the tag takes the place of the SEQUENCE's.
            ber.sequence(algorithms.write(oid), bytes((ber.context(1),)) + algorithm[1:]),
        ),
    ]
    signature = _sign(identity, ber.set_of(*attributes), oid)
    return ber.sequence(
        ber.number(1),
        issuer_and_serial(identity.certificate),
        algorithms.write(oid),
        ber.set_of(*attributes, tag=ber.context(0)),
        algorithm,
        ber.octet_string(signature),
    )


def issuer_and_serial(certificate: x509.Certificate) -> bytes:
    """An IssuerAndSerialNumber (RFC 5652 §10.2.4)."""
    return ber.sequence(certificate.issuer.public_bytes(), ber.number(certificate.serial_number))


def _attribute(oid: str, value: bytes) -> bytes:
    return ber.sequence(ber.identifier(oid), ber.set_of(value))


def _capabilities() -> bytes:
    """What we can open, the best first (RFC 8551 §2.5.2)."""
    ciphers = (
        algorithms.AES256_GCM,
        *reversed(tuple(algorithms.GCM)),
        algorithms.AES256_CBC,
        *reversed(tuple(algorithms.CBC)),
    )
    return ber.sequence(*(algorithms.write(oid) for oid in dict.fromkeys(ciphers)), algorithms.write_oaep())


def _own_certificate(certificate: x509.Certificate) -> bytes:
    """A SigningCertificateV2 with SHA-256, which is its default (RFC 5035 §3)."""
    return ber.sequence(ber.sequence(ber.sequence(ber.octet_string(certificate.fingerprint(hashes.SHA256())))))


def _signature_algorithm(identity: Identity, oid: str) -> bytes:
    if isinstance(identity.key, rsa.RSAPrivateKey):
        null = ber.element(ber.NULL)
        return algorithms.write_pss(oid) if identity.pss else algorithms.write(algorithms.RSA, null)
    return algorithms.write(next(name for name, one in algorithms.ECDSA_SHA.items() if one == oid))


def _sign(identity: Identity, content: bytes, oid: str) -> bytes:
    chosen = algorithms.DIGESTS[oid]()
    if isinstance(identity.key, ec.EllipticCurvePrivateKey):
        return identity.key.sign(content, ec.ECDSA(chosen))
    if identity.pss:
        scheme = padding.PSS(mgf=padding.MGF1(chosen), salt_length=chosen.digest_size)
        return identity.key.sign(content, scheme, chosen)
    return identity.key.sign(content, padding.PKCS1v15(), chosen)
