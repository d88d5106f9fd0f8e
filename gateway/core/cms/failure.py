"""Why a protected message is not believed: one code for each reason, documented in docs/errors.md."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NoReturn

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from gateway.errors import GatewayError

UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What a certificate or a CRL raises that nobody can read, some when it is loaded and some when it is looked into."""


class Failure(StrEnum):
    """What can be wrong with the protection of a message."""

    MALFORMED = "malformed"
    LIMIT_EXCEEDED = "limit-exceeded"
    UNSUPPORTED_ALGORITHM = "unsupported-algorithm"
    NOT_SIGNED = "not-signed"
    SIGNED_PART_NOT_ROOT = "signed-part-not-root"
    NO_SIGNER = "no-signer"
    SIGNER_CERTIFICATE_MISSING = "signer-certificate-missing"
    CONTENT_DIGEST_MISMATCH = "content-digest-mismatch"
    BAD_SIGNATURE = "bad-signature"
    SIGNED_ATTRIBUTES_INVALID = "signed-attributes-invalid"
    WEAK_DIGEST = "weak-digest"
    WEAK_KEY = "weak-key"
    UNTRUSTED_ISSUER = "untrusted-issuer"
    CERTIFICATE_EXPIRED = "certificate-expired"
    CERTIFICATE_NOT_YET_VALID = "certificate-not-yet-valid"
    EXTENDED_KEY_USAGE = "extended-key-usage"
    KEY_USAGE = "key-usage"
    REVOKED = "revoked"
    REVOCATION_UNKNOWN = "revocation-unknown"
    SENDER_ADDRESS_MISMATCH = "sender-address-mismatch"
    NOT_ENCRYPTED = "not-encrypted"
    NO_KEY_FOR_US = "no-key-for-us"
    DECRYPT_FAILED = "decrypt-failed"
    CBC_WITHOUT_INNER_SIGNATURE = "cbc-without-inner-signature"


class ProtectionError(GatewayError):
    """The protection of a message does not hold, or cannot be applied.

    Attributes:
        code: Why.
    """

    def __init__(self, code: Failure, text: str, *, hint: str = "") -> None:
        super().__init__(text, hint=hint)
        self.code = code


def malformed(text: str) -> NoReturn:
    """Raise ProtectionError: what came is no CMS."""
    raise ProtectionError(Failure.MALFORMED, text)


def exceeded(text: str) -> NoReturn:
    """Raise ProtectionError: what came is more than any honest sender sends."""
    raise ProtectionError(Failure.LIMIT_EXCEEDED, text)


def unsupported(text: str) -> NoReturn:
    """Raise ProtectionError: an algorithm that is not among ours."""
    raise ProtectionError(Failure.UNSUPPORTED_ALGORITHM, text)
