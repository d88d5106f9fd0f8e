"""The message that carries a file-set: STD-GEN-MIME (PS3.11 G, PS3.12 K) or STD-GEN-ZIP-MAIL (PS3.11 L).

It has two halves, so that protection can be put between: the header, which travels in clear and holds no patient data,
and the MIME entity, which begins with its own fields. In the clear both simply follow each other.
Everything is written in one pass, the same bytes each time, and its size is known before.
"""

from __future__ import annotations

import email.header
import email.utils
import hashlib
import os
import quopri
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from struct import Struct
from typing import BinaryIO, Final, Literal

import pybase64

from gateway.core import directory
from gateway.core.directory import UID_LENGTH, Entry, FileSet, Tally
from gateway.core.header import BLOCK as HEADER
from gateway.core.header import LOOP_FIELD, parameters
from gateway.core.header import fields as fields_of
from gateway.core.partial import is_inner
from gateway.errors import GatewayError
from gateway.model import Span

TEXT: Final = """\
This message carries medical images as DICOM files for an image archive.

It is message {part} of {parts} and can be imported by itself.
Number of DICOM files in it: {files}
More images of the same study may follow in further messages.

If images are missing or cannot be imported, please call {phone}.

Sent by {gateway}. Replies are not read.
"""
"""The body when a partner has none of its own. A line whose placeholder has no value is left out."""

PLACEHOLDERS: Final = ("part", "parts", "files", "phone", "gateway")
"""What a template may name in braces, as ``{part}``. None of them is about a patient."""

SET_FIELD: Final = "X-DICOM-Mail-Set"
"""Says which messages belong together, and which of them this is: ``word; part=2; parts=5``."""

HASH_FIELD: Final = "X-DICOM-Mail-SHA256"
"""In the head of a DICOM part: the hash of the file (R23). Under the protection of the entity."""

ZIP_PHRASE: Final = "DICOM-ZIP"
"""What the subject must contain (ZIP-4)."""

ZIP_NAME: Final = "DICOM.ZIP"

LINE: Final = 57
"""Bytes that a line of base64 holds (RFC 2045 §6.8)."""

CHUNK: Final = LINE << 9
"""Bytes that are encoded at once: whole lines, and few enough for all of it to stay near the processor."""

BLOCK: Final = CHUNK << 4
"""Bytes that are read at once."""

_LINES: Final = Struct("76s" * (CHUNK // LINE))
"""Cuts the text of a chunk into lines: three times as fast as a library's own line ends, exchanged for CRLF."""

_PLACEHOLDER: Final = re.compile("{(" + "|".join(PLACEHOLDERS) + ")}")
_NEEDS_ENCODING: Final = re.compile(r"[^\n\t -~]|^From |[ \t]$|^[^\n]{79}", re.MULTILINE)
_END: Final = "--\r\n"

_LOCAL: Final = Struct("<4s5H3L2H")
_CENTRAL: Final = Struct("<4s6H3L5H2L")
_ZIP_END: Final = Struct("<4s4H2LH")
_ZIP_DATE: Final = (0, 0x21)  # 1980-01-01: a file's own time says nothing here
_ZIP_LIMIT: Final = 0xFFFFFFFF
_ZIP_MEMBERS: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class Letter:
    """All about a message except its files. Nothing in it may be about a patient (PRV-1).

    Attributes:
        sender: From, an addr-spec.
        recipients: To.
        message_id: With its angle brackets; fixed before the first try.
        date: With its time zone.
        gateway: Our name, for the text.
        phone: Whom the reader of the text may call; empty when unknown.
        loop_token: Ours (SMTP-17); empty for none.
        collection: The same opaque word in all messages of one collection; empty for none.
        part: Which message of the collection this is, from 1.
        parts: How many there are.
        subject: Neutral; ``(2/5)`` is added when there are several.
        text: Template of the body, see PLACEHOLDERS.
        headers: Further header fields.
        format: ``mime`` (STD-GEN-MIME) or ``zip`` (STD-GEN-ZIP-MAIL).
        multipart: ``mixed`` or ``related`` (MIM-1 to MIM-3); a ZIP always goes as ``mixed``.
        protected: Whether the fields stand inside the entity too (RFC 9788): ``clear`` when that is signed, ``cipher``
            when it is encrypted as well.
    """

    sender: str
    recipients: tuple[str, ...]
    message_id: str
    date: datetime
    gateway: str = ""
    phone: str = ""
    loop_token: str = ""
    collection: str = ""
    part: int = 1
    parts: int = 1
    subject: str = "DICOM images"
    text: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict)
    format: Literal["mime", "zip"] = "mime"
    multipart: Literal["mixed", "related"] = "mixed"
    protected: Literal["", "clear", "cipher"] = ""


def write(file_set: FileSet, letter: Letter, out: BinaryIO) -> None:
    """Write a whole message in the clear: the header, then the entity. Not synced, not closed.

    Raises:
        GatewayError: A file is shorter than its span, a header value has a line end, or a ZIP would exceed its format.
        OSError: A file cannot be read, or the disk does not take the message.
    """
    write_header(letter, out)
    write_entity(file_set, letter, out)


def write_header(letter: Letter, out: BinaryIO) -> None:
    """Write the fields outside of the entity. What follows them is an entity, which has its Content-Type.

    Raises:
        GatewayError: A value has a line end.
    """
    out.write(_header(letter))


def write_entity(file_set: FileSet, letter: Letter, out: BinaryIO) -> None:
    """Write the MIME entity, its own fields included: what is signed and encrypted (7bit, CRLF; SMIME-10).

    Raises: as ``write``.
    """
    delimiter = _delimiter(letter)
    out.write(_opening(letter, len(file_set.entries)))
    index = directory.encode(file_set, file_set_uid(letter))
    encoder = _Base64(out)
    if letter.format == "zip":
        out.write((delimiter + "\r\n" + _zip_head()).encode())
        _write_zip(file_set, index, encoder)
    else:
        out.write((delimiter + "\r\n" + _directory_head(letter)).encode())
        encoder.write(index)
        for number, entry in enumerate(file_set.entries):
            encoder.finish()
            out.write((delimiter + "\r\n" + _head(directory.file_id(number), entry.member.sha256)).encode())
            _copy(entry.member.file, encoder)
    encoder.finish()
    out.write((delimiter + _END).encode())


def protection(head: bytes) -> Literal["plain", "signed", "signed+encrypted"]:
    """Tell from its beginning how a message of ours is protected, or the whole of which it is the first piece."""
    block = HEADER.match(head)[0]  # type: ignore[index]  # it matches the empty string at least
    kind = parameters(dict(fields_of(block)).get("content-type", ""))[0]
    if kind == "message/partial":
        return protection(head[len(block) :].lstrip(b"\r\n"))
    return _PROTECTIONS.get(kind, "plain")


_PROTECTIONS: Final[Mapping[str, Literal["signed", "signed+encrypted"]]] = {
    "multipart/signed": "signed",
    "application/pkcs7-mime": "signed+encrypted",
}


def header_size(letter: Letter) -> int:
    """Return how many bytes ``write_header`` writes."""
    return len(_header(letter))


def entity_size(file_set: FileSet, letter: Letter) -> int:
    """Return how many bytes ``write_entity`` writes, without reading a file."""
    measure = Measure(letter)
    for entry in file_set.entries:
        measure.add(entry)
    return measure.size


def size_of(file_set: FileSet, letter: Letter) -> int:
    """Return how many bytes ``write`` writes (R22)."""
    return header_size(letter) + entity_size(file_set, letter)


def file_set_uid(letter: Letter) -> str:
    """Return the File-set UID: made from the Message-ID, so it is new for each message and the same in each try.

    It is a UUID of version 8 (RFC 9562) with its first bit set, so that all have the same length (DIR-1).
    """
    number = int.from_bytes(hashlib.sha256(letter.message_id.encode()).digest()[:16])
    number = number & ~(0xF << 76 | 3 << 62) | 8 << 76 | 2 << 62 | 1 << 127
    uid = f"2.25.{number}"
    assert len(uid) == UID_LENGTH
    return uid


class Measure:
    """Counts the bytes of the entity of a file-set, one entry after another.

    Args:
        letter: The message it is about.
    """

    def __init__(self, letter: Letter) -> None:
        self.files = 0
        self._letter = letter
        self._tally = Tally()
        self._content = 0
        self._openings: dict[int, int] = {}
        self._delimiter = len(_delimiter(letter))
        self._frame = self._delimiter + len(_END)
        head = _zip_head() if letter.format == "zip" else _directory_head(letter)
        self._frame += self._delimiter + 2 + len(head)

    def add(self, entry: Entry) -> None:
        """Count one more entry."""
        name = directory.file_id(self.files)
        size = entry.member.file.size
        self.files += 1
        self._tally.add(entry)
        if self._letter.format == "zip":
            self._content += _zipped(name, size)
        else:
            self._content += self._delimiter + 2 + len(_head(name, entry.member.sha256)) + encoded(size)

    @property
    def size(self) -> int:
        """Bytes of the entity with all entries so far."""
        digits = len(str(self.files))
        if digits not in self._openings:
            self._openings[digits] = len(_opening(self._letter, self.files))
        index = directory.size_of(self._tally)
        if self._letter.format == "zip":
            body = encoded(_zipped("DICOMDIR", index) + self._content + _ZIP_END.size)
        else:
            body = encoded(index) + self._content
        return self._openings[digits] + self._frame + body

    def copy(self) -> Measure:
        """Return another one that has counted the same."""
        other = Measure.__new__(Measure)
        other.__dict__ = {**self.__dict__, "_tally": self._tally.copy()}
        return other


def encoded(size: int) -> int:
    """Return how many bytes base64 makes of so many, its line ends included (MIM-11)."""
    letters = -(-size // 3) * 4
    return letters + -(-letters // 76) * 2


# The header.


def _header(letter: Letter) -> bytes:
    """Encode the header. Fields that a fragment's own header keeps come first, so that joining gives the same bytes."""
    return b"".join(_fields(letter)) + b"MIME-Version: 1.0\r\n"


def _fields(letter: Letter) -> list[bytes]:
    """Encode all fields that say nothing of the entity's structure."""
    several = f" ({letter.part}/{letter.parts})" if letter.parts > 1 else ""
    subject = letter.subject
    if letter.format == "zip" and ZIP_PHRASE.lower() not in subject.lower():
        subject = f"{ZIP_PHRASE} {subject}"
    word = f"{letter.collection}; " if letter.collection else ""
    fields = [
        ("Date", email.utils.format_datetime(letter.date)),
        ("From", letter.sender),
        ("To", ", ".join(letter.recipients)),
        ("Auto-Submitted", "auto-generated"),
        *([(LOOP_FIELD, letter.loop_token)] if letter.loop_token else []),
        (SET_FIELD, f"{word}part={letter.part}; parts={letter.parts}"),
        *sorted(letter.headers.items(), key=lambda one: is_inner(one[0].lower())),
        ("Subject", subject + several),
        ("Message-ID", letter.message_id),
    ]
    return [_field(name, value) for name, value in fields]


def _inside(letter: Letter) -> bytes:
    """Encode the fields once more, for the inside of the protection (RFC 9788 §5.2): a relay can change them outside.

    Nothing is hidden, since nothing in them is about a patient; a reader of encrypted mail is told so field by field.
    """
    if not letter.protected:
        return b""
    fields = [one for one in _fields(letter) if not one.lower().startswith((b"content-", b"mime-version:"))]
    outer = [b"HP-Outer: " + one for one in fields] if letter.protected == "cipher" else []
    return b"".join((*fields, *outer))


def _field(name: str, value: str) -> bytes:
    if not value.isprintable():
        raise GatewayError(
            f"the header field {name} has a value that cannot be sent", hint="one line of text is expected"
        )
    if name in ("From", "To"):
        # Each address on its own line: a list of many stays within the length of a line.
        return f"{name}: {value}\r\n".replace(", ", ",\r\n ").encode()
    if not value.isascii():
        value = email.header.Header(value, "utf-8", header_name=name).encode(linesep="\r\n")
    return f"{name}: {value}\r\n".encode()


# The entity.


def _token(letter: Letter) -> str:
    return hashlib.sha256(b"boundary " + letter.message_id.encode()).hexdigest()[:32]


def _delimiter(letter: Letter) -> str:
    """Return what stands between parts. No line of base64 or quoted-printable can begin like it (RFC 2045 §6.7)."""
    return f"--=_{_token(letter)}"


def _opening(letter: Letter, files: int) -> bytes:
    """Encode the head of the entity and its text part."""
    kind = "mixed"
    if letter.multipart == "related" and letter.format == "mime":
        kind = f'related;\r\n type="application/dicom"; start="{_content_id(letter)}"'
    hp = f'; hp="{letter.protected}"' if letter.protected else ""
    head = f'Content-Type: multipart/{kind};\r\n boundary="{_delimiter(letter)[2:]}"{hp}\r\n\r\n'
    text = _rendered(letter, files)
    charset, encoding, content = "us-ascii", "7bit", text.encode()
    if _NEEDS_ENCODING.search(text):
        content = quopri.encodestring(content)
        content = re.sub(rb"^From ", b"=46rom ", content, flags=re.MULTILINE)
        charset, encoding = "utf-8", "quoted-printable"
    head += f"{_delimiter(letter)}\r\nContent-Type: text/plain; charset={charset}\r\n"
    head += f"Content-Transfer-Encoding: {encoding}\r\n\r\n"
    return _inside(letter) + head.encode() + content.replace(b"\n", b"\r\n")


def _rendered(letter: Letter, files: int) -> str:
    """Fill in the template; the last line ends, too."""
    values = {
        "part": str(letter.part),
        "parts": str(letter.parts),
        "files": str(files),
        "phone": letter.phone,
        "gateway": letter.gateway,
    }
    lines = letter.text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")
    kept = [line for line in lines if all(values[name] for name in _PLACEHOLDER.findall(line))]
    return "".join(_PLACEHOLDER.sub(lambda match: values[match[1]], line) + "\n" for line in kept)


def _content_id(letter: Letter) -> str:
    return f"<dicomdir.{letter.message_id[1:]}"


def _directory_head(letter: Letter) -> str:
    """Encode the head of the part that holds the DICOMDIR (MIM-9)."""
    related = f"Content-ID: {_content_id(letter)}\r\n" if letter.multipart == "related" else ""
    return related + _part_head('application/dicom; id="DICOMDIR"; name="DICOMDIR"', "DICOMDIR")


def _head(name: str, sha256: str) -> str:
    """Encode the head of a part that holds an instance (MIM-4, MIM-5, MIM-7)."""
    proof = f"{HASH_FIELD}: {sha256}\r\n" if sha256 else ""
    return proof + _part_head(f'application/dicom; id="{name}"; name="{name}.dcm"', f"{name}.dcm")


def _zip_head() -> str:
    """Encode the head of the part that holds the ZIP (ZIP-4)."""
    return _part_head(f'application/zip; id="{ZIP_NAME}"; name="{ZIP_NAME}"', ZIP_NAME)


def _part_head(kind: str, filename: str) -> str:
    disposition = f'Content-Disposition: attachment; filename="{filename}"\r\n'
    return f"Content-Type: {kind}\r\nContent-Transfer-Encoding: base64\r\n{disposition}\r\n"


class _Base64:
    """Encodes blocks cut anywhere as lines of 76 characters."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._rest = b""

    def write(self, block: bytes) -> None:
        """Encode a block, but for what does not fill a line yet."""
        if self._rest:
            block = self._rest + block
        whole = len(block) - len(block) % LINE
        self._lines(memoryview(block)[:whole])
        self._rest = block[whole:]

    def finish(self) -> None:
        """Encode what is left: the next block begins a new text."""
        self._lines(self._rest)
        self._rest = b""

    def _lines(self, block: bytes | memoryview) -> None:
        for at in range(0, len(block), CHUNK):
            chunk = block[at : at + CHUNK]
            if len(chunk) == CHUNK:
                text = b"\r\n".join((*_LINES.unpack(pybase64.b64encode(chunk)), b""))
            else:
                text = pybase64.encodebytes(chunk).replace(b"\n", b"\r\n")
            self._out.write(text)


def blocks(span: Span) -> Iterator[bytes]:
    """Read a range in blocks.

    Raises:
        GatewayError: It does not reach to its end any more.
    """
    with span.path.open("rb", buffering=0) as file:
        at = span.start
        while at < span.end:
            block = os.pread(file.fileno(), min(BLOCK, span.end - at), at)
            if not block:
                raise GatewayError("a file is shorter than it was", hint="the spool was changed")
            at += len(block)
            yield block


def _copy(span: Span, encoder: _Base64) -> None:
    for block in blocks(span):
        encoder.write(block)


# The ZIP: members stored as they are, so that its size is known before and nothing in it can be a bomb (ZIP-6, ZIP-8).


def _zipped(name: str, size: int) -> int:
    """Return how many bytes a member takes, its entry in the central directory included."""
    return _LOCAL.size + _CENTRAL.size + 2 * len(name) + size


def _write_zip(file_set: FileSet, index: bytes, encoder: _Base64) -> None:
    """Write DICOM.ZIP with the DICOMDIR at its root (ZIP-5)."""
    sizes = [len(index), *(entry.member.file.size for entry in file_set.entries)]
    total = sum(_zipped("DICOMDIR", size) for size in sizes) + _ZIP_END.size
    if total > _ZIP_LIMIT or len(sizes) >= _ZIP_MEMBERS:
        raise GatewayError("the file-set is too big for a ZIP", hint="lower max_message")
    central = [_member("DICOMDIR", zlib.crc32(index), len(index), 0, encoder)]
    encoder.write(index)
    at = _LOCAL.size + len("DICOMDIR") + len(index)
    for number, entry in enumerate(file_set.entries):
        span, name, crc = entry.member.file, directory.file_id(number), 0
        # The checksum comes before the content: many a reader of streams needs it there.
        for block in blocks(span):
            crc = zlib.crc32(block, crc)
        central.append(_member(name, crc, span.size, at, encoder))
        _copy(span, encoder)
        at += _LOCAL.size + len(name) + span.size
    entries = b"".join(central)
    encoder.write(entries + _ZIP_END.pack(b"PK\5\6", 0, 0, len(central), len(central), len(entries), at, 0))


def _member(name: str, crc: int, size: int, at: int, encoder: _Base64) -> bytes:
    """Write what comes before a member's content; return its entry in the central directory."""
    version, flags, method = 20, 0, 0
    sizes = (crc, size, size)
    local = _LOCAL.pack(b"PK\3\4", version, flags, method, *_ZIP_DATE, *sizes, len(name), 0)
    encoder.write(local + name.encode())
    central = _CENTRAL.pack(
        b"PK\1\2", version, version, flags, method, *_ZIP_DATE, *sizes, len(name), 0, 0, 0, 0, 0, at
    )
    return central + name.encode()
