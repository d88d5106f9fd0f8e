"""Messages made to stall whoever reads them. Work is counted in calls and in bytes read, never in seconds."""

from __future__ import annotations

import base64
import gzip
import io
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.model import Reading
from tests.samples import (
    IMPLICIT,
    codes,
    data_set,
    dicom_file,
    dicomdir,
    element,
    item,
    mail,
    meta,
    part,
    reading,
)

LIMITS = {"parts": 5000, "header": 1 << 20, "unpacked": 1 << 26, "uuencode": True}


def work(folder: Path, message: bytes, monkeypatch: pytest.MonkeyPatch, **limits: int) -> tuple[Reading, int, int]:
    """Read a message; count calls of functions, Python's and C's, and bytes read."""
    calls = size = 0
    pread = os.pread

    def counted(*arguments: int) -> bytes:
        nonlocal size
        block = pread(*arguments)
        size += len(block)
        return block

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", counted)
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            result = reading(folder, message, **{**LIMITS, **limits})
        finally:
            sys.setprofile(before)
    return result, calls, size


def nested(count: int) -> bytes:
    """Nest multiparts, each boundary the beginning of the next one, around lines that begin like all of them."""
    content = b"\r\n".join([b"--" + b"b" * 6 + b"x"] * count)
    for depth in range(6, 0, -1):
        content = mail(content, boundary="b" * depth)
    return content


def directories(count: int) -> bytes:
    """Zip folders, each with a DICOMDIR and an image."""
    box = io.BytesIO()
    with zipfile.ZipFile(box, "w") as made:
        for number in range(count):
            uid = f"1.2.3.{number}"
            made.writestr(f"{number}/DICOMDIR", dicomdir([("A", uid)]))
            made.writestr(f"{number}/A", dicom_file(data_set(instance=uid), meta(instance=uid)))
    return mail(part(box.getvalue(), "application/zip"))


def implicit(more: bytes) -> bytes:
    """Attach an image whose data set goes on with something."""
    return mail(part(dicom_file(data_set(syntax=IMPLICIT, more=more), meta(syntax=IMPLICIT))))


def parameters(count: int) -> bytes:
    """Give a part plain parameters, and one that is continued."""
    names = "".join(f";a{number}=b" for number in range(count))
    return mail(f"Content-Type: text/plain{names};x*0*=u''%41;x*1=b\r\n\r\nx".encode())


def continued(count: int) -> bytes:
    """Give a part a name in many pieces."""
    names = "".join(f";x*{number}=b" for number in range(count))
    return mail(f"Content-Type: text/plain{names}\r\n\r\nx".encode())


BOMBS: dict[str, Callable[[int], bytes]] = {
    "parts": lambda n: mail(*[b"\r\nx"] * n),
    "boundaries": lambda n: mail(b"\r\n" + b"--limit x\r\n--limi\r\n" * n),
    "blank boundaries": lambda n: mail(b"\r\n" + (b"--limit" + b" " * 3000 + b"x\r\n") * n),
    "hyphens": lambda n: mail(b"\r\n" + b"-\n-" * n * 100),
    "nesting": nested,
    "folding": lambda n: b"Subject: a\r\n" + b" b\r\n" * n * 20 + mail(part(dicom_file())),
    "fields": lambda n: b"A: a\r\n" * n * 20 + mail(part(dicom_file())),
    "encoded words": lambda n: b'Content-Type: a/b; name="' + b"=?utf-8?q?a?= " * n + b'"\r\n\r\nx',
    "parameters": parameters,
    "continuations": continued,
    "padding": lambda n: mail(b"Content-Transfer-Encoding: base64\r\n\r\n" + b"QQ==" * n * 20),
    "escapes": lambda n: mail(b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"=   x=" * n * 20),
    "uuencode": lambda n: mail(b"Content-Type: text/plain\r\n\r\n" + b"begin 644 a\r\n#86)C\r\n`\r\nend\r\n" * n),
    "lines": lambda n: mail(b"Content-Type: text/plain\r\n\r\n" + b"x" * n * 5000),
    "zeros": lambda n: implicit(bytes(n * 800) + b"\1\1"),
    "values": lambda n: implicit(element(0x00080018, "UI", "", IMPLICIT) * n * 20),
    "items": lambda n: implicit(element(0x00081140, "SQ", item() * n * 20, IMPLICIT)),
    "no items": lambda n: implicit(element(0x00091001, "UN", item()[:8] + b"\1" * 20, IMPLICIT) * n * 20),
    "directories": directories,
    "archives": lambda n: mail(*[part(gzip.compress(b"x")[:-3], "application/gzip")] * n),
    "empty archives": lambda n: mail(*[part(gzip.compress(b"x"), "application/gzip")] * n),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_twice_as_much_takes_no_more_than_twice_the_work(
    bomb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7, R9: whatever it is that grows, nothing is looked at again for each of its kind."""
    make = BOMBS[bomb]
    work(tmp_path, make(3), monkeypatch)  # what is done once: imports, compiled expressions
    _, calls, size = work(tmp_path, make(150), monkeypatch)
    _, more_calls, more_size = work(tmp_path, make(300), monkeypatch)
    assert more_calls <= 2.3 * calls + 500
    assert more_size <= 2.3 * size + (1 << 20)
    assert more_size <= 20 * len(make(300)) + (1 << 22)


def test_a_million_boundaries_end_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is behind the limit is not looked at."""
    result, calls, size = work(tmp_path, mail(b"\r\n" + b"\r\n--limit" * 1_000_000), monkeypatch, parts=100)
    assert codes(result) == ["too-many-parts"]
    assert calls < 50_000
    assert size < 2 << 20


def test_messages_wrapped_in_base64_end_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level is unpacked to a file: the depth bounds how often."""
    message = mail(part(dicom_file()))
    for _ in range(20):
        message = b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(
            message
        )
    result, _, size = work(tmp_path, message, monkeypatch)
    assert codes(result) == ["too-deep"]
    assert size < 20 * len(message)


def test_a_header_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a header only as far as its limit; what remains is counted once, as the body it may be."""
    message = b"Subject: " + b"a" * (32 << 20)
    result, _, size = work(tmp_path, message, monkeypatch, header=1 << 16)
    assert codes(result) == ["header-too-long"]
    assert size < len(message) + (4 << 20)


def test_a_central_directory_of_empty_names_is_counted(tmp_path: Path) -> None:
    """ZIP-8: a directory that lists more members than there may be parts."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(entry) * 6000, 4, 0)
    result = reading(tmp_path, mail(part(b"PK\3\4" + entry * 6000 + tail, "application/zip")), **LIMITS)
    assert codes(result) == ["too-many-members"]
