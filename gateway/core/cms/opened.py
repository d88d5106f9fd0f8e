"""A protected message on its way in: taken apart layer by layer, until what was vouched for lies open (SMIME-29).

Whoever reads further gets one byte range: exactly the bytes that were signed or decrypted, never the rest of the mail.
So a part that somebody put beside the signed one is not even seen. Which signer is to be trusted is decided elsewhere.
"""

from __future__ import annotations

import binascii
import os
import quopri
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from struct import Struct
from typing import BinaryIO, Final

import pybase64
from cryptography import x509

from gateway.core import header
from gateway.core.cms import algorithms, ber, compressed, enveloped, signed
from gateway.core.cms.ber import BLOCK, METADATA, Reader
from gateway.core.cms.enveloped import Key
from gateway.core.cms.failure import Failure, ProtectionError, exceeded, malformed, unsupported
from gateway.core.cms.signed import Attributes, Signed, Signer
from gateway.core.data import Block
from gateway.model import Span

LAYERS: Final = 4
"""Layers of protection that one message may have."""

SIGNATURES: Final = ("application/pkcs7-signature", "application/x-pkcs7-signature")
ENVELOPES: Final = ("application/pkcs7-mime", "application/x-pkcs7-mime")

_SPACE: Final = b" \t\r\n"
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_REST: Final = re.compile(rb"(--)?[ \t]*+(?:\r?\n|\Z)")
_LINE: Final = 2048
"""Bytes that surely hold a delimiter line with blanks behind it."""

_ALMOST: Final = 10_000
"""Lines that begin like a delimiter and are none, before a message is taken for an attack."""

_SCAN: Final = 1 << 20
_LINES: Final = Struct("76s2x" * ((1 << 18) // 78))
"""Takes the line ends out of base64 in lines of 76 characters, as almost everybody writes it."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature and what became of it.

    Attributes:
        certificate: The signer's; None when it did not come and is not known.
        attributes: What the signature says beside the content.
        failure: Why it does not count; None when the key of the certificate made it over these bytes.
        alike: Further certificates that the signer's name fits, of the same key: a renewed one beside its predecessor.
    """

    certificate: x509.Certificate | None
    attributes: Attributes = field(default_factory=Attributes)
    failure: ProtectionError | None = None
    alike: tuple[x509.Certificate, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of protection, from the outside in.

    Attributes:
        kind: ``signed``, ``encrypted`` or ``compressed``.
        signatures: Of a signed layer.
        certificates: That came with a signed layer; they prove nothing by themselves.
        crls: That came with it.
        authenticated: Of an encrypted layer: by GCM.
        recipient: Of an encrypted layer: the certificate of ours that opened it.
        repaired: The signature fits only when bare LF count as the CRLF that a relay took away.
    """

    kind: str
    signatures: tuple[Signature, ...] = ()
    certificates: tuple[x509.Certificate, ...] = ()
    crls: tuple[bytes, ...] = ()
    authenticated: bool = False
    recipient: x509.Certificate | None = None
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """A message without its protection.

    Attributes:
        content: The innermost entity: the only bytes that may be read further.
        layers: What was taken off, from the outside in.
        protected: The fields of the mail that lie inside the protection (RFC 9788, and RFC 8551 §3.1 before it), names
            in lower case; they count for as much as the content. Empty when the sender protects none.
    """

    content: Span
    layers: tuple[Layer, ...]
    protected: tuple[tuple[str, str], ...] = ()

    @property
    def encrypted(self) -> bool:
        """It was encrypted somewhere."""
        return any(layer.kind == "encrypted" for layer in self.layers)

    @property
    def signed(self) -> bool:
        """It was signed somewhere."""
        return any(layer.kind == "signed" for layer in self.layers)


def open_message(
    message: Span,
    keys: Sequence[Key],
    known: Sequence[x509.Certificate],
    folder: Path,
    *,
    limit: int,
    now: datetime,
) -> Opened:
    """Take the protection off a message.

    Args:
        message: Where it lies, header included.
        keys: Ours, that open it.
        known: Certificates of the partner, for signatures that come without theirs.
        folder: Where the layers are written, mode 0600. On an error nothing of them stays.
        limit: Bytes that each layer may have.
        now: The moment of judgement.

    Raises:
        ProtectionError: It cannot be opened, or what carries its signature is malformed. A signature that does not
            fit is no error here but in its layer.
    """
    layers: list[Layer] = []
    written: list[Path] = []
    try:
        entity = message
        while (found := _peel(entity, keys, known, folder / f"layer-{len(layers)}", limit, now, written)) is not None:
            layer, entity = found
            layers.append(layer)
            if len(layers) > LAYERS:
                exceeded("it is protected too many times over")
            for path in written:
                if path != entity.path:
                    path.unlink(missing_ok=True)  # nobody needs it any more, and a layer is as big as a message
        fields = _protected(entity) if layers else ()
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return Opened(entity, tuple(layers), fields)


def _protected(entity: Span) -> tuple[tuple[str, str], ...]:
    head = _read_head(entity)
    if head.type == "message/rfc822":
        head = _read_head(Span(entity.path, head.body, entity.end))
    elif head.parameters.get("hp", "").lower() not in ("clear", "cipher"):
        return ()
    # HP-Outer says what stands outside, and that can be seen there.
    return tuple(one for one in head.fields if not one[0].startswith("content-") and one[0] != "hp-outer")


def _peel(
    entity: Span,
    keys: Sequence[Key],
    known: Sequence[x509.Certificate],
    path: Path,
    limit: int,
    now: datetime,
    written: list[Path],
) -> tuple[Layer, Span] | None:
    head = _read_head(entity)
    if head.type == "multipart/signed" and head.parameters.get("protocol", SIGNATURES[0]).lower() in SIGNATURES:
        return _clear_signed(entity, head, known, now, path, written)
    if not (head.type in ENVELOPES or _is_envelope_by_name(head)):
        return None
    with _create(path, written) as out:
        layer = _unwrap(Span(entity.path, head.body, entity.end), head, keys, known, out, limit, now)
        out.flush()
        size = out.tell()
    return layer, Span(path, 0, size)


def _create(path: Path, written: list[Path]) -> BinaryIO:
    path.unlink(missing_ok=True)  # of a process that was killed
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    written.append(path)
    return os.fdopen(file, "w+b", buffering=BLOCK)


def _is_envelope_by_name(head: _Head) -> bool:
    # QUIRK: several relays turn the type into application/octet-stream and leave the name (SMIME-8).
    return head.type == "application/octet-stream" and head.parameters.get("name", "").lower().endswith(".p7m")


@dataclass(frozen=True, slots=True)
class _Head:
    """What the header of an entity says, and where its body begins."""

    type: str
    parameters: dict[str, str]
    encoding: str
    body: int
    fields: tuple[tuple[str, str], ...]


def _read_head(entity: Span) -> _Head:
    """Read the header of an entity.

    Raises:
        ProtectionError: It is too long.
    """
    size = 64 << 10
    with entity.path.open("rb", buffering=0) as file:
        block = os.pread(file.fileno(), min(entity.size, size), entity.start)
    match = header.BLOCK.match(block)
    end = match.end() if match else 0
    if end and entity.size > size and b"\n" not in block[end:]:  # the last line of the block is cut
        exceeded("its header is too long")
    fields = tuple(header.fields(block[:end]))
    values = dict(reversed(fields))  # the first of several counts
    kind, parameters = header.parameters(values.get("content-type", "text/plain"))
    encoding = values.get("content-transfer-encoding", "").strip().lower()
    body = end + (2 if block.startswith(b"\r\n", end) else 1 if block.startswith(b"\n", end) else 0)
    return _Head(kind, parameters, encoding, entity.start + body, fields)


# What is inside an application/pkcs7-mime


class _Sink:
    """Writes a layer, up to its limit."""

    def __init__(self, out: BinaryIO, limit: int) -> None:
        self._out = out
        self._left = limit

    def __call__(self, block: Block) -> None:
        self._left -= len(block)
        if self._left < 0:
            exceeded("it holds more than a message may")
        self._out.write(block)


def _unwrap(
    body: Span,
    head: _Head,
    keys: Sequence[Key],
    known: Sequence[x509.Certificate],
    out: BinaryIO,
    limit: int,
    now: datetime,
) -> Layer:
    with body.path.open("rb", buffering=0) as file:

        def rewind() -> Reader:
            return Reader(_decoded(file.fileno(), body, head.encoding))

        reader = rewind()
        kind = _enter(reader)
        sink = _Sink(out, limit)
        if kind == algorithms.SIGNED_DATA:
            found = signed.read(reader, (), sink)
            _leave(reader)
            if found.signers and not found.embedded:
                raise ProtectionError(Failure.NOT_SIGNED, "its signature covers nothing")
            return _signed_layer(found, known, now)
        if kind == algorithms.COMPRESSED_DATA:
            if compressed.read(reader, sink, limit) != algorithms.DATA:
                unsupported("it holds something else than an entity")
            _leave(reader)
            return Layer("compressed")
        if kind not in (algorithms.ENVELOPED_DATA, algorithms.AUTH_ENVELOPED_DATA):
            unsupported("its content type is not supported")
        authenticated = kind == algorithms.AUTH_ENVELOPED_DATA

        def again() -> Reader:
            reader = rewind()
            _enter(reader)
            return reader

        enclosed = enveloped.read(again, keys, sink, authenticated=authenticated)
        return Layer("encrypted", authenticated=authenticated, recipient=enclosed.certificate)


def _enter(reader: Reader) -> str:
    """Go into a ContentInfo (RFC 5652 §3)."""
    reader.enter(ber.SEQUENCE)
    kind = ber.oid(reader.node(ber.OBJECT_IDENTIFIER))
    reader.enter(ber.context(0))
    return kind


def _leave(reader: Reader) -> None:
    reader.leave()
    reader.leave()
    reader.end()


def _decoded(file: int, body: Span, encoding: str) -> Callable[[int], bytes]:
    """Give the bytes of a body without its transfer encoding, piece by piece."""
    blocks = _blocks(file, body)
    if encoding == "base64":
        blocks = _without_base64(blocks)
    elif encoding == "quoted-printable":
        if body.size > METADATA:
            unsupported("quoted-printable is for text")
        blocks = iter((quopri.decodestring(b"".join(blocks)),))

    def read(_: int) -> bytes:
        return next((block for block in blocks if block), b"")

    return read


def _blocks(file: int, body: Span) -> Iterator[bytes]:
    position = body.start
    while block := os.pread(file, min(BLOCK, body.end - position), position):
        position += len(block)
        yield block


def _without_base64(blocks: Iterable[bytes]) -> Iterator[bytes]:
    held = b""
    for block in blocks:
        text = held + _without_line_ends(block)
        whole = len(text) // 4 * 4
        held = text[whole:]
        try:
            yield pybase64.b64decode(text[:whole], validate=True)
        except binascii.Error:
            malformed("its base64 is damaged")
    if held:
        malformed("its base64 ends too early")


def _without_line_ends(block: bytes) -> bytes:
    at = block.find(b"\n") + 1
    rest = at + _LINES.size
    if len(block) >= rest and block[at + 76 : at + 78] == b"\r\n":
        # Whatever stands where line ends should be is looked at once more, all at once.
        ends = set(block[at + 76 : rest : 78]) | {*block[at + 77 : rest : 78]}
        if ends == {10, 13} and block.find(b" ", at, rest) < 0 and block.count(b"\n", at, rest) == _LINES.size // 78:
            head, tail = block[:at].translate(None, _SPACE), block[rest:].translate(None, _SPACE)
            return b"".join((head, *_LINES.unpack_from(block, at), tail))
    return block.translate(None, _SPACE)


def _signed_layer(found: Signed, known: Sequence[x509.Certificate], now: datetime) -> Layer:
    if not found.signers:
        raise ProtectionError(Failure.NO_SIGNER, "nobody signed it")
    if found.content_type != algorithms.DATA:
        unsupported("it holds something else than an entity")
    candidates = tuple(dict.fromkeys((*known, *found.certificates)))
    signatures = tuple(_judge(found, signer, candidates, now) for signer in found.signers)
    return Layer("signed", signatures, found.certificates, found.crls)


def _judge(found: Signed, signer: Signer, candidates: Sequence[x509.Certificate], now: datetime) -> Signature:
    """Try the certificates that the signer's name fits; those whose key made the signature are the signer's."""
    verdict = Signature(
        None, failure=ProtectionError(Failure.SIGNER_CERTIFICATE_MISSING, "the signer's certificate did not come")
    )
    proven: list[Signature] = []
    for certificate in candidates:
        if not signer.name.matches(certificate):
            continue
        try:
            proven.append(Signature(certificate, signed.verify(found, signer, certificate, now)))
        except ProtectionError as error:
            verdict = Signature(certificate, failure=error)
    if not proven:
        return verdict
    alike = tuple(one.certificate for one in proven[1:] if one.certificate is not None)
    return replace(proven[0], alike=alike)


# multipart/signed


def _clear_signed(
    entity: Span, head: _Head, known: Sequence[x509.Certificate], now: datetime, path: Path, written: list[Path]
) -> tuple[Layer, Span]:
    boundary = head.parameters.get("boundary", "").rstrip().encode("utf-8", "surrogateescape")
    first, second = _two_parts(Span(entity.path, head.body, entity.end), boundary)
    p7s = _small(second)
    with first.path.open("rb", buffering=0) as file:
        layer = _signed_layer(_read_detached(p7s, _blocks(file.fileno(), first)), known, now)
        if all(_is_about_content(one) for one in layer.signatures):
            # QUIRK: a mail server that stores bare LF hands out what was signed with CRLF (RFC 8551 §3.1.1).
            with _create(path, written) as out:
                repaired = _copied(_with_crlf(_blocks(file.fileno(), first)), out)
                other = _signed_layer(_read_detached(p7s, repaired), known, now)
                size = out.tell()
            if any(one.failure is None for one in other.signatures):
                # Whoever reads further gets the bytes that were signed, not those that came.
                return replace(other, repaired=True), Span(path, 0, size)
            path.unlink()
    return layer, first


def _copied(blocks: Iterable[bytes], out: BinaryIO) -> Iterator[bytes]:
    for block in blocks:
        out.write(block)
        yield block


def _is_about_content(signature: Signature) -> bool:
    # Without signed attributes another content shows as a signature that does not fit.
    return signature.failure is not None and signature.failure.code in (
        Failure.CONTENT_DIGEST_MISMATCH,
        Failure.BAD_SIGNATURE,
    )


def _read_detached(p7s: bytes, content: Iterable[bytes]) -> Signed:
    blocks = iter((p7s,))
    reader = Reader(lambda _: next(blocks, b""))
    if _enter(reader) != algorithms.SIGNED_DATA:
        malformed("its signature is something else")
    found = signed.read(reader, content, lambda _: malformed("its signature carries a content of its own"))
    _leave(reader)
    if found.embedded:
        malformed("its signature carries a content of its own")
    return found


def _small(part: Span) -> bytes:
    """Read the part with the signature."""
    head = _read_head(part)
    if head.type not in (*SIGNATURES, "application/octet-stream"):
        malformed("the second part of a signed message is no signature")
    body = Span(part.path, head.body, part.end)
    if body.size > 2 * METADATA:
        exceeded("its signature is too long")
    with part.path.open("rb", buffering=0) as file:
        read = _decoded(file.fileno(), body, head.encoding)
        return b"".join(iter(lambda: read(0), b""))


def _with_crlf(blocks: Iterable[bytes]) -> Iterator[bytes]:
    last = b""
    for block in blocks:
        joined = last + block
        yield _BARE_LF.sub(b"\r\n", joined)[len(last) :]
        last = b"\r" if block.endswith(b"\r") else b""


def _two_parts(body: Span, boundary: bytes) -> tuple[Span, Span]:
    """Find the two parts of a multipart/signed: exactly two, between exactly three delimiters (RFC 1847 §2.1).

    Raises:
        ProtectionError: It has more or fewer; somebody put something beside what was signed.
    """
    if not boundary:
        malformed("a signed message without a boundary")
    with body.path.open("rb", buffering=0) as file:
        found = list(islice(_delimiters(file.fileno(), body, b"--" + boundary), 4))
    if [closing for *_, closing in found] != [False, False, True]:
        raise ProtectionError(Failure.SIGNED_PART_NOT_ROOT, "a signed message must have exactly two parts")
    (_, first, _), (behind_first, second, _), (behind_second, _, _) = found
    return Span(body.path, first, max(first, behind_first)), Span(body.path, second, max(second, behind_second))


def _delimiters(file: int, body: Span, needle: bytes) -> Iterator[tuple[int, int, bool]]:
    """Find the lines that are delimiters: where the part before ends, where the next begins, whether it closes."""
    base, block, at, almost = body.start, b"", 0, 0
    needle = b"\n" + needle
    position = body.start - 1  # of the line end before a delimiter; there is always one, that of the header
    while position < body.end:
        base = max(position - 1, 0)
        block = os.pread(file, min(_SCAN + _LINE, body.end - base), base)
        at = position - base
        last = base + len(block) >= body.end
        while (at := block.find(needle, at)) >= 0 and (last or at < _SCAN):
            match = _REST.match(block, at + len(needle))
            if match is not None and (last or match.end() < len(block)):
                returned = base + at > body.start and block[at - 1 : at] == b"\r"
                yield max(base + at - returned, body.start), base + match.end(), match[1] is not None
            else:
                almost += 1
                if almost > _ALMOST:
                    exceeded("too many of its lines are almost delimiters")
            at += 1
        position = body.end if last else base + _SCAN
