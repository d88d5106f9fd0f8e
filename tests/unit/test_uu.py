"""Files in text, where a route allows them (AMB-16)."""

from __future__ import annotations

import binascii
from pathlib import Path

import pytest

from gateway.core import transfer, uu
from gateway.model import OtherPart
from tests.samples import codes, content, dicom_file, mail, part, reading

FILE = dicom_file()


def encoded(data: bytes, name: str = "a.dcm") -> bytes:
    """Uuencode as old programs do."""
    lines = b"".join(binascii.b2a_uu(data[at : at + 45]) for at in range(0, len(data), 45))
    return f"begin 644 {name}\n".encode() + lines + b"`\nend\n"


def test_files_in_text_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them, between other lines, and more than is decoded at once."""
    monkeypatch.setattr(uu, "BLOCK", 100)
    text = b"Hello\n" + encoded(FILE) + b"and\n" + encoded(FILE) + b"bye\n"
    result = reading(tmp_path, mail(part(text, "text/plain", "8bit")), uuencode=True)
    assert [instance.part for instance in result.instances] == ["1!1", "1!2"]
    assert [content(instance.file) for instance in result.instances] == [FILE, FILE]
    assert result.other_parts == (OtherPart("1", "text/plain", len(text)),)


def test_nothing_is_taken_unless_allowed(tmp_path: Path) -> None:
    """Off by default, and only in text/plain."""
    message = mail(part(encoded(FILE), "text/plain", "8bit"))
    assert reading(tmp_path, message).instances == ()
    message = mail(part(encoded(FILE), "text/html", "8bit"))
    assert reading(tmp_path, message, uuencode=True).instances == ()


@pytest.mark.parametrize("damage", [lambda t: t[:-4], lambda t: t[:200] + b"\x7f\x7f\n" + t[200:]])
def test_damage_is_an_error(tmp_path: Path, damage: object) -> None:
    """A missing end, a line that is none: with the file cut, or not begun."""
    assert callable(damage)
    result = reading(tmp_path, mail(part(damage(encoded(FILE)), "text/plain", "8bit")), uuencode=True)
    assert (result.instances, codes(result)) == ((), ["damaged-uuencode"])
    result = reading(tmp_path, mail(part(b"begin 644 x\n\x7f\x7f\n", "text/plain", "8bit")), uuencode=True)
    assert codes(result) == ["damaged-uuencode"]


def test_lines_are_lines_wherever_blocks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a line without end is not collected without end."""
    monkeypatch.setattr(transfer, "BLOCK", 10)
    text = b"Hello\r\n" + encoded(FILE).replace(b"\n", b"\r\n")
    assert len(reading(tmp_path, mail(part(text, "text/plain", "8bit")), uuencode=True).instances) == 1
    assert list(uu.lines([b"a\nb", b"c\n", b"", b"d"])) == [b"a\n", b"bc\n", b"d"]
    assert max(map(len, uu.lines([b"x" * 600] * 9))) == 1200


def test_files_are_counted_as_parts(tmp_path: Path) -> None:
    """A text of nothing but beginnings."""
    result = reading(tmp_path, mail(part(b"begin 644 x\n\nend\n" * 500, "text/plain", "8bit")), uuencode=True)
    assert codes(result) == ["too-many-members"]
    assert len(result.other_parts) == 100
