"""Small DICOM files and mails, made byte by byte: what the standards say, and how far from it real ones stray."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gateway.core.reader import Rules, read
from gateway.model import Reading, Span

CT = "1.2.840.10008.5.1.4.1.1.2"
DIRECTORY = "1.2.840.10008.1.3.10"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG = "1.2.840.10008.1.2.4.50"

LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")


def element(tag: int, vr: str, value: bytes | str, syntax: str = EXPLICIT, length: int | None = None) -> bytes:
    """Encode one element; ``length`` overrides what its value says (PS3.5 7.1)."""
    data = value.encode() if isinstance(value, str) else value
    data += (b"\0" if vr in ("UI", "OB", "UN") else b" ") * (len(data) % 2)
    size = len(data) if length is None else length
    order = ">" if syntax == BIG_ENDIAN else "<"
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT:
        return head + struct.pack("<L", size) + data
    if vr in LONG:
        return head + vr.encode() + b"\0\0" + struct.pack(order + "L", size) + data
    return head + vr.encode() + struct.pack(order + "H", size) + data


def item(content: bytes = b"", *, defined: bool = True, order: str = "<") -> bytes:
    """Encode one item of a sequence, or one fragment."""
    head = struct.pack(order + "HH", 0xFFFE, 0xE000)
    if defined:
        return head + struct.pack(order + "L", len(content)) + content
    return head + b"\xff" * 4 + content + struct.pack(order + "HHL", 0xFFFE, 0xE00D, 0)


def sequence_end(order: str = "<") -> bytes:
    """Encode a Sequence Delimitation Item."""
    return struct.pack(order + "HHL", 0xFFFE, 0xE0DD, 0)


def meta(sop_class: str = CT, instance: str = "1.2.3.4", syntax: str = EXPLICIT, length: int | None = None) -> bytes:
    """Encode group 0002; ``length`` overrides its group length."""
    content = element(0x00020001, "OB", b"\0\1")
    content += element(0x00020002, "UI", sop_class) if sop_class else b""
    content += element(0x00020003, "UI", instance) if instance else b""
    content += element(0x00020010, "UI", syntax) if syntax else b""
    content += element(0x00020012, "UI", "2.25.1")
    return element(0x00020000, "UL", struct.pack("<L", len(content) if length is None else length)) + content


def data_set(
    sop_class: str = CT,
    instance: str = "1.2.3.4",
    study: str = "1.2.3",
    series: str = "1.2.3.1",
    patient: str = "P1",
    *,
    syntax: str = EXPLICIT,
    more: bytes = b"",
) -> bytes:
    """Encode a small data set; a UID that is empty is left out. ``more`` goes behind, in ascending order or not."""
    values = (
        (0x00080016, "UI", sop_class),
        (0x00080018, "UI", instance),
        (0x00100020, "LO", patient),
        (0x0020000D, "UI", study),
        (0x0020000E, "UI", series),
    )
    return b"".join(element(tag, vr, value, syntax) for tag, vr, value in values if value) + more


def dicom_file(data: bytes | None = None, header: bytes | None = None, *, syntax: str = EXPLICIT) -> bytes:
    """Put a file together: preamble, prefix, group 0002, data set."""
    header = meta(syntax=syntax) if header is None else header
    data = data_set(syntax=syntax) if data is None else data
    if syntax == DEFLATED:
        packer = zlib.compressobj(wbits=-15)
        data = packer.compress(data) + packer.flush()
        data += b"\0" * (len(data + header) % 2)  # PS3.5 A.5
    return b"\0" * 128 + b"DICM" + header + data


def dicomdir(names: Iterable[tuple[str, str]], *, defined: bool = True) -> bytes:
    """Encode a DICOMDIR whose IMAGE records name pairs of File ID and SOP Instance UID."""
    records = item(element(0x00041430, "CS", "PATIENT") + element(0x00100020, "LO", "P1"), defined=defined)
    for file_id, instance in names:
        record = element(0x00041430, "CS", "IMAGE") + element(0x00041500, "CS", file_id.replace("/", "\\"))
        records += item(record + element(0x00041511, "UI", instance), defined=defined)
    data = element(0x00041130, "CS", "SET") + element(0x00041220, "SQ", records)
    return dicom_file(data, meta(DIRECTORY, "1.2.9"))


def part(content: bytes, kind: str = "application/dicom", encoding: str = "base64", more: str = "") -> bytes:
    """Wrap content as a MIME entity, without a delimiter."""
    head = f"Content-Type: {kind}\r\nContent-Transfer-Encoding: {encoding}\r\n{more}\r\n".encode()
    if encoding == "base64":
        content = base64.encodebytes(content).replace(b"\n", b"\r\n")
    return head + content


def mail(*parts: bytes, kind: str = "multipart/mixed", fields: str = "", boundary: str = "limit") -> bytes:
    """Put a message of several parts together."""
    head = f'From: a@clinic.example\r\n{fields}MIME-Version: 1.0\r\nContent-Type: {kind}; boundary="{boundary}"\r\n\r\n'
    line = f"\r\n--{boundary}".encode()
    return head.encode() + b"".join(line + b"\r\n" + one for one in parts) + line + b"--\r\n"


def reading(folder: Path, message: bytes, **limits: Any) -> Reading:
    """Read a message that is given as bytes; limits may be given by name. The instances lie in ``folder/instances``."""
    given = {"parts": 100, "depth": 8, "header": 1 << 16, "instance": 1 << 24, "unpacked": 1 << 24, "ratio": 200}
    path = folder / "message.eml"
    path.write_bytes(message)
    with (folder / "instances").open("w+b") as out:
        return read(Span(path, 0, len(message)), Rules(**{**given, **limits}), out)


def content(span: Span) -> bytes:
    """Return the bytes of a range."""
    with span.path.open("rb") as file:
        file.seek(span.start)
        return file.read(span.size)


def codes(result: Reading) -> list[str]:
    """Return the codes of what was noticed."""
    return [found.code for found in result.findings]


def corpus() -> Path | None:
    """Find the corpus of real files and mails beside the project, or where DICOM_MAIL_CORPUS says."""
    folder = Path(os.environ.get("DICOM_MAIL_CORPUS") or Path(__file__).parents[2] / "shared" / "corpus")
    return folder if (folder / "MANIFEST.tsv").is_file() else None
