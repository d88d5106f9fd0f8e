"""A protected message on its way out: signed, then encrypted, in one pass from file to file (RFC 8551 §3).

The entity is hashed once and signed; then header, entity and signature stream through encryption and base64 into the
message. Its size is known to the byte before anything is written.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from struct import Struct
from typing import BinaryIO, Final

import pybase64
from cryptography import x509

from gateway.core.cms import algorithms, signed
from gateway.core.cms.enveloped import Envelope
from gateway.core.cms.signed import Identity
from gateway.core.data import Block
from gateway.model import Span

LINE: Final = 57
"""Bytes that a line of base64 holds (RFC 2045 §6.8)."""

BLOCK: Final = LINE << 12
"""Bytes that are read, encrypted and encoded at once: whole lines."""

_LINES: Final = Struct("76s" * (BLOCK // LINE))
"""Cuts the text of a block into lines: three times as fast as a library's own line ends, exchanged for CRLF."""

SLACK: Final = 16
"""Bytes by which two signatures of one elliptic key may differ, base64 included."""


@dataclass(frozen=True, slots=True)
class Protection:
    """How a message to one partner is protected.

    Attributes:
        signer: Who signs; None for nobody.
        certificates: Whom it is encrypted for, ourselves included; empty for nobody.
        cbc: AES-256-CBC with RSA PKCS #1 v1.5 instead of AES-256-GCM with RSAES-OAEP, for old partners.
    """

    signer: Identity | None
    certificates: tuple[x509.Certificate, ...] = ()
    cbc: bool = False


def seal(header: bytes, entity: Span, protection: Protection, when: datetime, out: BinaryIO) -> int:
    """Write a protected message; return its size.

    Args:
        header: The message's own fields with CRLF, without Content-Type and without the empty line.
        entity: The MIME entity, its own fields included, with CRLF.
        protection: How.
        when: The signing time.
        out: Gets the message.

    Raises:
        ProtectionError: A certificate cannot be encrypted to.
        OSError: The entity cannot be read, or the disk does not take the message.
    """
    content: Sequence[bytes | Span] = (entity,)
    if protection.signer is not None:
        content = _signed(entity, protection.signer, when)
    start = out.tell()
    out.write(header)
    if protection.certificates:
        _encrypt(content, protection, out)
    else:
        out.writelines(_blocks(content))
    return out.tell() - start


def sealed_size(size: int, protection: Protection) -> int:
    """Bytes that an entity of this size has after protection: exact, or up to ``SLACK`` more than it will be."""
    if protection.signer is not None:
        size += _frame_size(protection.signer) + SLACK
    if protection.certificates:
        envelope = _envelope(size, protection)
        size = len(_ENCRYPTED[protection.cbc]) + _encoded(envelope.size)
    return size


# Signing

_BOUNDARY: Final = 32


def _signed(entity: Span, signer: Identity, when: datetime) -> tuple[bytes, Span, bytes]:
    """The parts of a multipart/signed (RFC 8551 §3.5.3): what is before the entity, it, and what is behind it."""
    digest = hashlib.sha256()
    for block in _blocks((entity,)):
        digest.update(block)
    signature = _signature(digest.digest(), signer, when)
    # The entity cannot hold what its own hash names.
    boundary = hashlib.sha256(digest.digest() + b"boundary").hexdigest()[:_BOUNDARY]
    prefix, suffix = _frame(signature, boundary)
    return prefix, entity, suffix


def _signature(digest: bytes, signer: Identity, when: datetime) -> bytes:
    return signed.write_detached(digest, signer, when, algorithms.SHA256)


@lru_cache(maxsize=4)
def _frame_size(signer: Identity) -> int:
    """Bytes around what somebody signs. Kept, since whoever plans mails asks for each instance, and signing is slow."""
    sample = _signature(bytes(32), signer, datetime.fromtimestamp(0).astimezone())
    return sum(map(len, _frame(sample, "0" * _BOUNDARY)))


def _frame(signature: bytes, boundary: str) -> tuple[bytes, bytes]:
    prefix = (
        'Content-Type: multipart/signed; protocol="application/pkcs7-signature";\r\n'
        f' micalg={algorithms.MICALG[algorithms.SHA256]}; boundary="{boundary}"\r\n\r\n--{boundary}\r\n'
    )
    head = (
        f'\r\n--{boundary}\r\nContent-Type: application/pkcs7-signature; name="smime.p7s"\r\n'
        "Content-Transfer-Encoding: base64\r\n"
        'Content-Disposition: attachment; filename="smime.p7s"\r\n\r\n'
    )
    return prefix.encode(), head.encode() + _lines(signature) + f"\r\n--{boundary}--\r\n".encode()


# Encrypting

_ENCRYPTED: Final = {
    cbc: (
        f'Content-Type: application/pkcs7-mime; smime-type={kind}; name="smime.p7m"\r\n'
        "Content-Transfer-Encoding: base64\r\n"
        'Content-Disposition: attachment; filename="smime.p7m"\r\n\r\n'
    ).encode()
    for cbc, kind in ((False, "authEnveloped-data"), (True, "enveloped-data"))
}


def _envelope(size: int, protection: Protection) -> Envelope:
    return Envelope(protection.certificates, size, cbc=protection.cbc, oaep=not protection.cbc)


def _encrypt(content: Sequence[bytes | Span], protection: Protection, out: BinaryIO) -> None:
    size = sum(part.size if isinstance(part, Span) else len(part) for part in content)
    envelope = _envelope(size, protection)
    out.write(_ENCRYPTED[protection.cbc])
    held = bytearray()
    for block in envelope.seal(_blocks(content)):
        held += block
        if len(held) >= BLOCK:
            with memoryview(held) as view:
                out.write(b"\r\n".join((*_LINES.unpack(pybase64.b64encode(view[:BLOCK])), b"")))
            del held[:BLOCK]
    out.write(_lines(held))


def _blocks(content: Iterable[bytes | Span]) -> Iterator[bytes]:
    for part in content:
        if isinstance(part, bytes):
            yield part
            continue
        with part.path.open("rb", buffering=0) as file:
            position = part.start
            while position < part.end:
                block = os.pread(file.fileno(), min(BLOCK, part.end - position), position)
                if not block:
                    raise OSError(None, "a file is shorter than it was", str(part.path))
                position += len(block)
                yield block


def _lines(block: Block) -> bytes:
    """Base64 in lines of 76 characters that end with CRLF."""
    return pybase64.encodebytes(block).replace(b"\n", b"\r\n")


def _encoded(size: int) -> int:
    """Bytes that so many bytes have as lines of base64."""
    return (size + 2) // 3 * 4 + 2 * -(-size // LINE)
