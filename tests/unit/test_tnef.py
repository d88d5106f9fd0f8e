"""TNEF streams: what Outlook puts into winmail.dat, taken out under limits."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest

from gateway.core import tnef
from gateway.core.archive import TNEF_SIGNATURE, Budget
from gateway.core.dataset import Problem
from gateway.model import OtherPart
from tests.samples import codes, content, corpus, dicom_file, mail, part, reading

FILE = dicom_file()
RENDERING, TITLE, DATA, PROPERTIES = 0x00069002, 0x00018010, 0x0006800F, 0x00069005
MESSAGE_PROPERTIES, CODEPAGE = 0x00069003, 0x00069007
UNICODE, STRING8, BINARY, OBJECT = 0x1F, 0x1E, 0x0102, 0x0D


def attribute(name: int, data: bytes, level: int = 2) -> bytes:
    """Encode one attribute; the checksum is that of the specification."""
    return struct.pack("<BLL", level, name, len(data)) + data + struct.pack("<H", sum(data) & 0xFFFF)


def stream(*attributes: bytes) -> bytes:
    """Put a stream together."""
    return TNEF_SIGNATURE + b"\1\0" + b"".join(attributes)


def attachment(name: bytes, data: bytes) -> bytes:
    """Encode an attachment in the old way: title and data in attributes."""
    return attribute(RENDERING, bytes(14)) + attribute(TITLE, name + b"\0") + attribute(DATA, data)


def properties(*encoded: bytes) -> bytes:
    """Encode a list of MAPI properties."""
    return struct.pack("<L", len(encoded)) + b"".join(encoded)


def variable(kind: int, name: int, *values: bytes, named: bytes = b"") -> bytes:
    """Encode a property of a variable length."""
    data = b"".join(struct.pack("<L", len(value)) + value + bytes(-len(value) % 4) for value in values)
    return struct.pack("<HH", kind, name) + named + struct.pack("<L", len(values)) + data


def unpacked(data: bytes, most: int = 100) -> list[tuple[str, bytes]]:
    """Take everything out of a stream."""
    members = tnef.unpack(io.BytesIO(data), Budget(1 << 24, 200), most)
    return [(member.name, b"".join(member.blocks)) for member in members]


def problem(data: bytes, most: int = 100) -> str:
    """Return why a stream cannot be taken out to its end."""
    with pytest.raises(Problem) as raised:
        unpacked(data, most)
    return raised.value.code


def test_images_in_a_winmail_are_read(tmp_path: Path) -> None:
    """AMB-15: known by its first bytes, whatever its type."""
    data = stream(attachment(b"ct.dcm", FILE), attachment(b"note.txt", b"hello"))
    for kind in ("application/ms-tnef", "application/octet-stream"):
        result = reading(tmp_path, mail(part(data, kind)))
        (instance,) = result.instances
        assert (instance.part, instance.held) == ("1!ct.dcm", None)
        assert content(instance.file) == FILE
        assert result.other_parts == (OtherPart("1!note.txt", "application/octet-stream", 5),)
        assert result.findings == ()


def test_a_winmail_without_images_is_one_part(tmp_path: Path) -> None:
    """Most of them."""
    data = stream(attachment(b"note.txt", b"hello"))
    result = reading(tmp_path, mail(part(data, "application/ms-tnef")))
    assert (result.kind, result.other_parts) == ("other", (OtherPart("1", "application/ms-tnef", len(data)),))


def test_a_winmail_that_is_none_is_an_error(tmp_path: Path) -> None:
    """Images may have been in it."""
    assert codes(reading(tmp_path, mail(part(b"nothing", "application/ms-tnef")))) == ["damaged-archive"]


def test_mapi_properties_name_and_hold_files() -> None:
    """The long name goes before the title; content in a property, where no attribute has it."""
    whole = properties(
        struct.pack("<HHL", 3, 0x0E21, 1),
        struct.pack("<HHQ", 0x14, 0x0E22, 1),
        struct.pack("<HH", 0x48, 0x0E23) + bytes(16),
        variable(0x1003, 0x0E24)[:-4] + struct.pack("<LLL", 2, 7, 8),
        variable(UNICODE, 0x8001, "n".encode("utf-16-le"), named=bytes(16) + struct.pack("<LL", 0, 5)),
        variable(UNICODE, 0x8002, b"", named=bytes(16) + struct.pack("<LL", 1, 6) + b"a\0b\0\0\0\0\0"),
        variable(UNICODE, 0x3707, "C:\\Bilder\\Ärztin.dcm\0".encode("utf-16-le")),
        variable(BINARY, 0x3707, b"no name"),
        variable(BINARY, 0x3701, FILE),
    )
    data = stream(attribute(RENDERING, bytes(14)), attribute(TITLE, b"RZTIN~1.DCM\0"), attribute(PROPERTIES, whole))
    assert unpacked(data) == [("Ärztin.dcm", FILE)]


def test_content_in_an_attribute_goes_before_a_property() -> None:
    """Both may be there; a rendition of an object is in the property."""
    whole = attribute(PROPERTIES, properties(variable(BINARY, 0x3701, b"other")))
    assert unpacked(stream(attachment(b"a", FILE), whole)) == [("a", FILE)]


def test_a_forwarded_mail_is_a_stream_in_the_stream(tmp_path: Path) -> None:
    """An object begins with its kind; what it holds is read one archive deeper, and no further than that."""
    once = stream(attachment(b"ct.dcm", FILE))

    def forwarded(inner: bytes) -> bytes:
        held = properties(variable(OBJECT, 0x3701, bytes(16) + inner), variable(STRING8, 0x3001, b"Fwd"))
        return stream(attribute(RENDERING, bytes(14)), attribute(PROPERTIES, held))

    result = reading(tmp_path, mail(part(forwarded(once), "application/ms-tnef")))
    assert [instance.part for instance in result.instances] == ["1!Fwd!ct.dcm"]
    result = reading(tmp_path, mail(part(forwarded(forwarded(once)), "application/ms-tnef")))
    assert (result.instances, codes(result)) == ((), ["nested-archive"])


def test_bodies_are_files_behind_the_attachments() -> None:
    """They are listed, since links may be in them."""
    body = properties(variable(BINARY, 0x1013, b"<html>"), variable(BINARY, 0x1009, b""), variable(UNICODE, 0x37, b""))
    data = stream(attribute(MESSAGE_PROPERTIES, body, 1), attribute(0x00089006, bytes(4), 1), attachment(b"a", b"x"))
    assert unpacked(data) == [("a", b"x"), ("body.html", b"<html>")]


@pytest.mark.parametrize(
    ("page", "raw", "name"),
    [(1251, b"\xc4\xc8", "ДИ"), (99999, b"\xc4", "Ä"), (1252, b"../../etc/x", "x"), (1252, b"", "Untitled Attachment")],
)
def test_names_are_text_and_no_paths(page: int, raw: bytes, name: str) -> None:
    """The message says in which code page; an unknown one raises nothing."""
    data = stream(
        attribute(CODEPAGE, struct.pack("<LL", page, 0), 1), attribute(CODEPAGE, b"", 1), attachment(raw, b"x")
    )
    assert unpacked(data) == [(name, b"x")]


def test_what_belongs_to_no_attachment_is_one_of_its_own() -> None:
    """QUIRK of broken writers: the data without the attribute that begins an attachment."""
    assert unpacked(stream(attribute(DATA, b"x"), attribute(0x00069999, b"y"))) == [(tnef.UNTITLED, b"x")]


def test_a_cut_stream_gives_what_is_whole_and_an_error(tmp_path: Path) -> None:
    """R9: cut anywhere, it ends in files and a finding."""
    held = properties(variable(UNICODE, 0x3707, b"n\0"), struct.pack("<HHL", 3, 0x0E21, 1))
    data = stream(attachment(b"ct.dcm", FILE), attribute(PROPERTIES, held), attachment(b"b", b"bb"))
    assert not codes(reading(tmp_path, mail(part(data, "application/ms-tnef"))))
    for cut in range(4, len(data) - 2):
        result = reading(tmp_path, mail(part(data[:cut], "application/ms-tnef")))
        assert set(codes(result)) <= {"damaged-archive"}
    assert problem(data + bytes([9]) * 50) == "damaged-archive"
    result = reading(tmp_path, mail(part(data + bytes([9]) * 50, "application/ms-tnef")))
    assert ([one.part for one in result.instances], codes(result)) == (["1!n"], ["damaged-archive"])


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\1\0\0\0" + struct.pack("<HHL", 0x7777, 1, 1),
        b"\1\0\0\0",
        properties(variable(BINARY, 0x3701, b"x" * 8))[:-4],
        b"\1\0\0\0" + struct.pack("<HHLL", BINARY, 0x3701, 1, 0xFFFFFFFF),
    ],
)
def test_damaged_properties_are_an_error(damaged: bytes) -> None:
    """A type nobody knows, a list that ends too early, a length beyond the stream."""
    data = stream(attribute(RENDERING, bytes(14)), attribute(PROPERTIES, damaged))
    assert problem(data) == "damaged-archive"


def test_a_bomb_of_attachments_is_stopped() -> None:
    """Each one counts as a part."""
    assert problem(stream(attachment(b"a", b"x") * 11), most=10) == "too-many-members"


def test_a_bomb_of_properties_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of steps is bounded, whatever a count says: of attributes, of properties, of values."""
    monkeypatch.setattr(tnef, "STEPS", 1000)
    attributes = attribute(0x00069999, b"") * 1001
    values = struct.pack("<HHL", 0x1003, 1, 0xFFFFFFFF) + bytes(1 << 16)
    listed = struct.pack("<L", 0xFFFFFFFF) + struct.pack("<HHL", 3, 1, 0) * 2000
    for bomb in (attributes, attribute(PROPERTIES, properties(values)), attribute(PROPERTIES, listed)):
        assert problem(stream(bomb)) == "too-many-members"


def test_the_budget_of_all_archives_counts(tmp_path: Path) -> None:
    """ZIP-8."""
    data = stream(attachment(b"a", bytes(3000)), attachment(b"ct.dcm", FILE))
    result = reading(tmp_path, mail(part(data, "application/ms-tnef")), unpacked=2000)
    assert codes(result) == ["unpacked-too-big", "unpacked-too-big"]


@pytest.mark.skipif(corpus() is None, reason="the corpus of real files is not beside the project")
def test_every_real_stream_gives_what_its_list_says() -> None:
    """Of 15 streams of real programs, each file that another program finds."""
    root = corpus()
    assert root is not None
    seen = 0
    for path in sorted(root.glob("mail-tnef/*/*.tnef")):
        names: list[str] = []
        try:
            for member in tnef.unpack(io.BytesIO(path.read_bytes()), Budget(1 << 24, 200), 100):
                names.append(member.name)
                list(member.blocks)
        except Problem as damage:
            assert (path.stem, damage.code) == ("panic", "damaged-archive")  # noqa: PT017  17 KB of junk at its end
        expected = path.with_suffix(".list")
        for name in expected.read_text().splitlines() if expected.is_file() else ():
            if name:
                names.remove(name)
                seen += 1
    assert seen >= 25
