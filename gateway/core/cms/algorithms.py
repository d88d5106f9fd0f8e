"""The algorithms of S/MIME that we allow, by their object identifiers (RFC 8551 §2, RFC 5754, RFC 5084, RFC 8418)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519

from gateway.core.cms import ber
from gateway.core.cms.ber import Node
from gateway.core.cms.failure import Failure, ProtectionError, malformed, unsupported

SigningKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
"""What we sign with: every peer verifies it."""
PrivateKey: TypeAlias = SigningKey | x25519.X25519PrivateKey
"""What opens messages."""
PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | x25519.X25519PublicKey

RSA_LEAST: Final = 2048
RSA_MOST: Final = 8192
"""Bits of an RSA key (SMIME-5); longer ones only cost time."""

EC_LEAST: Final = 256

# Content types (RFC 5652, RFC 5083, RFC 3274)
DATA: Final = "1.2.840.113549.1.7.1"
SIGNED_DATA: Final = "1.2.840.113549.1.7.2"
ENVELOPED_DATA: Final = "1.2.840.113549.1.7.3"
AUTH_ENVELOPED_DATA: Final = "1.2.840.113549.1.9.16.1.23"
COMPRESSED_DATA: Final = "1.2.840.113549.1.9.16.1.9"

# Attributes (RFC 5652 §11, RFC 8551 §2.5, RFC 5035, RFC 6211)
CONTENT_TYPE: Final = "1.2.840.113549.1.9.3"
MESSAGE_DIGEST: Final = "1.2.840.113549.1.9.4"
SIGNING_TIME: Final = "1.2.840.113549.1.9.5"
SMIME_CAPABILITIES: Final = "1.2.840.113549.1.9.15"
SIGNING_CERTIFICATE_V2: Final = "1.2.840.113549.1.9.16.2.47"
ALGORITHM_PROTECTION: Final = "1.2.840.113549.1.9.52"

# Digests (RFC 5754 §2)
SHA256: Final = "2.16.840.1.101.3.4.2.1"
SHA384: Final = "2.16.840.1.101.3.4.2.2"
SHA512: Final = "2.16.840.1.101.3.4.2.3"

DIGESTS: Final[Mapping[str, type[hashes.HashAlgorithm]]] = {
    SHA256: hashes.SHA256,
    SHA384: hashes.SHA384,
    SHA512: hashes.SHA512,
}
WEAK_DIGESTS: Final = frozenset({"1.3.14.3.2.26", "1.2.840.113549.2.5", "1.2.840.113549.2.2", "2.16.840.1.101.3.4.2.4"})
"""SHA-1, MD5, MD2 and SHA-224: known, and not enough."""

MICALG: Final[Mapping[str, str]] = {SHA256: "sha-256", SHA384: "sha-384", SHA512: "sha-512"}

# Signatures (RFC 5754 §3, RFC 4056)
RSA: Final = "1.2.840.113549.1.1.1"
RSA_PSS: Final = "1.2.840.113549.1.1.10"
RSA_SHA: Final[Mapping[str, str]] = {
    "1.2.840.113549.1.1.11": SHA256,
    "1.2.840.113549.1.1.12": SHA384,
    "1.2.840.113549.1.1.13": SHA512,
}
EC: Final = "1.2.840.10045.2.1"
ECDSA_SHA: Final[Mapping[str, str]] = {
    "1.2.840.10045.4.3.2": SHA256,
    "1.2.840.10045.4.3.3": SHA384,
    "1.2.840.10045.4.3.4": SHA512,
}
WEAK_SIGNATURES: Final = frozenset({"1.2.840.113549.1.1.5", "1.2.840.113549.1.1.4", "1.2.840.10045.4.1"})
"""RSA with SHA-1 or MD5, ECDSA with SHA-1."""

ED25519: Final = "1.3.101.112"  # RFC 8419

MGF1: Final = "1.2.840.113549.1.1.8"

# Key management (RFC 3560, RFC 5753)
RSA_OAEP: Final = "1.2.840.113549.1.1.7"
P_SPECIFIED: Final = "1.2.840.113549.1.1.9"
ECDH: Final[Mapping[str, str]] = {
    "1.3.133.16.840.63.0.2": "1.3.14.3.2.26",  # dhSinglePass-stdDH-sha1kdf: only to open
    "1.3.132.1.11.1": SHA256,
    "1.3.132.1.11.2": SHA384,
    "1.3.132.1.11.3": SHA512,
    "1.3.133.16.840.63.0.3": "1.3.14.3.2.26",  # the same with cofactor, which is 1 on our curves
    "1.3.132.1.14.1": SHA256,
    "1.3.132.1.14.2": SHA384,
    "1.3.132.1.14.3": SHA512,
}
ECDH_SHA256: Final = "1.3.132.1.11.1"
ECDH_HKDF: Final[Mapping[str, str]] = {
    "1.2.840.113549.1.9.16.3.19": SHA256,
    "1.2.840.113549.1.9.16.3.20": SHA384,
    "1.2.840.113549.1.9.16.3.21": SHA512,
}
"""dhSinglePass-stdDH-hkdf (RFC 8418 §2.2)."""
ECDH_HKDF_SHA256: Final = "1.2.840.113549.1.9.16.3.19"
X25519: Final = "1.3.101.110"

KEY_WRAPS: Final[Mapping[str, int]] = {
    "2.16.840.1.101.3.4.1.5": 16,
    "2.16.840.1.101.3.4.1.25": 24,
    "2.16.840.1.101.3.4.1.45": 32,
}
"""AES key wrap by its key's bytes (RFC 3565 §2.3.2)."""
AES256_WRAP: Final = "2.16.840.1.101.3.4.1.45"

# Content encryption (RFC 3565, RFC 5084)
CBC: Final[Mapping[str, int]] = {
    "2.16.840.1.101.3.4.1.2": 16,
    "2.16.840.1.101.3.4.1.22": 24,
    "2.16.840.1.101.3.4.1.42": 32,
}
GCM: Final[Mapping[str, int]] = {
    "2.16.840.1.101.3.4.1.6": 16,
    "2.16.840.1.101.3.4.1.26": 24,
    "2.16.840.1.101.3.4.1.46": 32,
}
AES256_CBC: Final = "2.16.840.1.101.3.4.1.42"
AES256_GCM: Final = "2.16.840.1.101.3.4.1.46"

ZLIB: Final = "1.2.840.113549.1.9.16.3.8"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """An AlgorithmIdentifier (RFC 5280 §4.1.1.2).

    Attributes:
        oid: Which.
        parameters: Its parameters; None when absent.
    """

    oid: str
    parameters: Node | None

    @classmethod
    def read(cls, node: Node, tag: int = ber.SEQUENCE) -> Algorithm:
        """Read one.

        Raises:
            ProtectionError: It is none.
        """
        if node.tag != tag:
            malformed("an algorithm identifier cannot be read")
        parts = node.children()
        if not 1 <= len(parts) <= 2:
            malformed("an algorithm identifier cannot be read")
        return cls(ber.oid(parts[0]), parts[1] if len(parts) == 2 else None)


def write(oid: str, *parameters: bytes) -> bytes:
    """Write an AlgorithmIdentifier."""
    return ber.sequence(ber.identifier(oid), *parameters)


def digest(oid: str) -> hashes.HashAlgorithm:
    """The digest algorithm of an object identifier.

    Raises:
        ProtectionError: ``weak-digest``, or ``unsupported-algorithm``.
    """
    if oid in WEAK_DIGESTS:
        raise ProtectionError(Failure.WEAK_DIGEST, "its digest algorithm is too weak")
    if oid not in DIGESTS:
        unsupported(f"the digest algorithm {oid} is not supported")
    return DIGESTS[oid]()


def demand_strength(key: object) -> PublicKey:
    """Give back a public key that is of a kind and a length we use (SMIME-5).

    Raises:
        ProtectionError: ``weak-key``, or ``unsupported-algorithm``.
    """
    if isinstance(key, rsa.RSAPublicKey):
        if not RSA_LEAST <= key.key_size <= RSA_MOST:
            raise ProtectionError(Failure.WEAK_KEY, f"an RSA key of {key.key_size} bits is not accepted")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.key_size < EC_LEAST:
            raise ProtectionError(Failure.WEAK_KEY, f"an elliptic curve of {key.key_size} bits is not accepted")
        return key
    if isinstance(key, ed25519.Ed25519PublicKey | x25519.X25519PublicKey):
        return key
    return unsupported("its kind of key is not supported")


def pss(algorithm: Algorithm) -> tuple[padding.PSS, str]:
    """Padding and digest of RSASSA-PSS-params (RFC 4055 §3.1).

    Raises:
        ProtectionError: What they say is weak or not supported.
    """
    fields = {} if algorithm.parameters is None else {one.tag: one for one in algorithm.parameters.children()}
    if ber.context(0) not in fields or ber.context(1) not in fields:
        raise ProtectionError(Failure.WEAK_DIGEST, "its signature uses SHA-1")  # that is the default
    chosen = Algorithm.read(fields[ber.context(0)].child(0)).oid
    mask = Algorithm.read(fields[ber.context(1)].child(0))
    if mask.oid != MGF1 or mask.parameters is None:
        unsupported("its mask generation function is not supported")
    inner = digest(Algorithm.read(mask.parameters).oid)
    digest(chosen)  # it must be among ours
    salt = ber.integer(fields[ber.context(2)].child(0)) if ber.context(2) in fields else 20
    if not 0 <= salt <= 512:
        malformed("its salt has an impossible length")
    return padding.PSS(mgf=padding.MGF1(inner), salt_length=salt), chosen


def write_pss(oid: str) -> bytes:
    """RSASSA-PSS as an AlgorithmIdentifier, with one digest throughout and a salt of its length."""
    hashed = write(oid)
    return write(
        RSA_PSS,
        ber.sequence(
            ber.element(ber.context(0), hashed),
            ber.element(ber.context(1), write(MGF1, hashed)),
            ber.element(ber.context(2), ber.number(DIGESTS[oid]().digest_size)),
        ),
    )


def oaep(algorithm: Algorithm) -> padding.OAEP:
    """The padding of RSAES-OAEP-params (RFC 4055 §4.1); SHA-1 is allowed here, where it is no signature.

    Raises:
        ProtectionError: What they say is not supported.
    """
    fields = {} if algorithm.parameters is None else {one.tag: one for one in algorithm.parameters.children()}
    outer: hashes.HashAlgorithm = hashes.SHA1()  # noqa: S303  the default of the standard, and no signature
    inner: hashes.HashAlgorithm = hashes.SHA1()  # noqa: S303
    if ber.context(0) in fields:
        outer = _hash(Algorithm.read(fields[ber.context(0)].child(0)).oid)
    if ber.context(1) in fields:
        mask = Algorithm.read(fields[ber.context(1)].child(0))
        if mask.oid != MGF1 or mask.parameters is None:
            unsupported("its mask generation function is not supported")
        inner = _hash(Algorithm.read(mask.parameters).oid)
    label = b""
    if ber.context(2) in fields:
        source = Algorithm.read(fields[ber.context(2)].child(0))
        label = b"" if source.parameters is None else ber.octets(source.parameters)
        if source.oid != P_SPECIFIED or label:
            unsupported("RSAES-OAEP with a label is not supported")
    return padding.OAEP(mgf=padding.MGF1(inner), algorithm=outer, label=None)


def write_oaep(oid: str = SHA256) -> bytes:
    """RSAES-OAEP as an AlgorithmIdentifier, with one digest throughout."""
    hashed = write(oid)
    return write(
        RSA_OAEP,
        ber.sequence(ber.element(ber.context(0), hashed), ber.element(ber.context(1), write(MGF1, hashed))),
    )


def _hash(oid: str) -> hashes.HashAlgorithm:
    return hashes.SHA1() if oid == "1.3.14.3.2.26" else digest(oid)  # noqa: S303  see ``oaep``
