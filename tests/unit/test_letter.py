"""The message that carries a file-set: its fields, parts, ZIP and text, and nothing about a patient outside of them."""

from __future__ import annotations

import email
import email.message
import hashlib
import io
import re
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from gateway.core import directory, letter
from gateway.core.directory import FileSet, Member, describe
from gateway.core.letter import Letter
from gateway.errors import GatewayError
from gateway.model import Span
from tests.samples import CT, EXPLICIT, data_set, dicom_file, element, meta

LETTER = Letter(
    sender="dicom@hospital.example",
    recipients=("images@clinic.example",),
    message_id="<4711@hospital.example>",
    date=datetime(2026, 11, 23, 12, 0, tzinfo=UTC),
    gateway="Hospital",
    phone="+49 1",
)


def file_set(folder: Path, *sizes: int) -> FileSet:
    """Make a file-set of objects with so many bytes of pixel data."""
    entries = []
    for number, size in enumerate(sizes):
        name = element(0x00100010, "PN", "SECRET^NAME") + element(0x00080050, "SH", "ACC4711")
        pixels = element(0x7FE00010, "OW", hashlib.shake_256(b"%d" % number).digest(size))
        head = meta(instance=f"1.2.{number}")
        content = dicom_file(data_set(instance=f"1.2.{number}", patient="SECRETID", more=name + pixels), head)
        path = folder / f"object{number}"
        path.write_bytes(content)
        uids = (CT, f"1.2.{number}", "1.2.3", "1.2.3.1", EXPLICIT)
        entries.append(describe(Member(*uids, Span(path, 0, len(content)), 132 + len(head))))
    return FileSet(tuple(entries))


def written(files: FileSet, one: Letter = LETTER) -> bytes:
    """Write a letter, and see that its size was known."""
    out = io.BytesIO()
    letter.write(files, one, out)
    assert letter.size_of(files, one) == len(out.getvalue())
    return out.getvalue()


def parsed(files: FileSet, one: Letter = LETTER) -> email.message.Message:
    return email.message_from_bytes(written(files, one))


def content(part: email.message.Message) -> bytes:
    decoded = part.get_payload(decode=True)
    assert isinstance(decoded, bytes)
    return decoded


def leaves(message: email.message.Message) -> list[email.message.Message]:
    return [part for part in message.walk() if not part.is_multipart()]


def test_the_header_is_neutral_and_complete(tmp_path: Path) -> None:
    """R23, DSN-5: who, to whom, which of how many; sent by a program."""
    one = replace(LETTER, part=2, parts=5, collection="w0rd", loop_token="ours", headers={"X-Partner": "yes"})
    message = parsed(file_set(tmp_path, 10), one)
    assert message.items()[:-1] == [
        ("Date", "Mon, 23 Nov 2026 12:00:00 +0000"),
        ("From", "dicom@hospital.example"),
        ("To", "images@clinic.example"),
        ("Auto-Submitted", "auto-generated"),
        ("X-DICOM-Mail-Loop", "ours"),
        ("X-DICOM-Mail-Set", "w0rd; part=2; parts=5"),
        ("X-Partner", "yes"),
        ("Subject", "DICOM images (2/5)"),
        ("Message-ID", "<4711@hospital.example>"),
        ("MIME-Version", "1.0"),
    ]
    plain = parsed(file_set(tmp_path, 10))
    assert plain["Subject"] == "DICOM images"
    assert plain["X-DICOM-Mail-Set"] == "part=1; parts=1"
    assert "X-DICOM-Mail-Loop" not in plain


def test_each_file_is_a_part_with_its_file_id(tmp_path: Path) -> None:
    """MIM-1, MIM-4, MIM-5, MIM-7, MIM-9, MIM-10, MIM-13: the bytes come out, the DICOMDIR among them."""
    files = file_set(tmp_path, 0, 1, 5000)
    message = parsed(files)
    text, index, *objects = leaves(message)
    assert message.get_content_type() == "multipart/mixed"
    assert text.get_content_type() == "text/plain"
    assert index["Content-Type"] == 'application/dicom; id="DICOMDIR"; name="DICOMDIR"'
    assert index.get_filename() == "DICOMDIR"
    assert content(index) == directory.encode(files, letter.file_set_uid(LETTER))
    for number, (part, entry) in enumerate(zip(objects, files.entries, strict=True), 1):
        assert part["Content-Type"] == f'application/dicom; id="IM{number:06}"; name="IM{number:06}.dcm"'
        assert part["Content-Transfer-Encoding"] == "base64"
        assert part.get_filename() == f"IM{number:06}.dcm"
        assert content(part) == entry.member.file.path.read_bytes()


def test_nothing_is_said_about_the_patient_outside_of_the_objects(tmp_path: Path) -> None:
    """PRV-1, P10-13: no name, no ID, no UID, no file name of ours, in any field or text."""
    for one in (LETTER, replace(LETTER, multipart="related"), replace(LETTER, format="zip")):
        message = written(file_set(tmp_path, 10, 20), one)
        outside = re.sub(rb"\r\n\r\n(?:[A-Za-z0-9+/=]+\r\n)+", b"", message)
        assert len(outside) < 2500
        for secret in (b"SECRET", b"ACC4711", b"1.2.", b"object", str(tmp_path).encode()):
            assert secret not in outside


def test_a_related_entity_has_the_directory_for_root(tmp_path: Path) -> None:
    """MIM-3: type and start name it."""
    message = parsed(file_set(tmp_path, 10), replace(LETTER, multipart="related"))
    assert message.get_content_type() == "multipart/related"
    assert message.get_param("type") == "application/dicom"
    roots = [part for part in leaves(message) if part["Content-ID"] == message.get_param("start")]
    assert [part.get_param("id") for part in roots] == ["DICOMDIR"]


def test_a_zip_holds_the_file_set(tmp_path: Path) -> None:
    """ZIP-4, ZIP-5, ZIP-6: one part, the DICOMDIR at its root, File IDs for names, checked by its sums."""
    files = file_set(tmp_path, 0, 7, 50_001, 3)
    message = parsed(files, replace(LETTER, format="zip", multipart="related"))
    assert message["Subject"] == "DICOM-ZIP DICOM images"
    assert message.get_content_type() == "multipart/mixed"
    _, part = leaves(message)
    assert part["Content-Type"] == 'application/zip; id="DICOM.ZIP"; name="DICOM.ZIP"'
    assert part["Content-Disposition"] == 'attachment; filename="DICOM.ZIP"'
    with zipfile.ZipFile(io.BytesIO(content(part))) as archive:
        assert archive.testzip() is None
        assert {(info.flag_bits, info.compress_type) for info in archive.infolist()} == {(0, zipfile.ZIP_STORED)}
        assert archive.namelist() == ["DICOMDIR", "IM000001", "IM000002", "IM000003", "IM000004"]
        assert archive.read("IM000003") == files.entries[2].member.file.path.read_bytes()
        assert archive.read("DICOMDIR") == directory.encode(files, letter.file_set_uid(LETTER))
    assert parsed(files, replace(LETTER, format="zip", subject="x dicom-zip"))["Subject"] == "x dicom-zip"


@pytest.mark.parametrize(("name", "limit"), [("_ZIP_LIMIT", 100), ("_ZIP_MEMBERS", 2)])
def test_a_zip_beyond_its_format_is_refused(
    name: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes of 32 bits, 65 534 members: more would be read as less."""
    monkeypatch.setattr(letter, name, limit)
    with pytest.raises(GatewayError, match="too big for a ZIP"):
        written(file_set(tmp_path, 10), replace(LETTER, format="zip"))


def test_the_hash_of_an_object_is_said_in_its_part(tmp_path: Path) -> None:
    """R23: inside the entity, so under its protection."""
    files = file_set(tmp_path, 10)
    (entry,) = files.entries
    digest = hashlib.sha256(entry.member.file.path.read_bytes()).hexdigest()
    known = FileSet((replace(entry, member=replace(entry.member, sha256=digest)),))
    message = parsed(known)
    assert message["X-DICOM-Mail-SHA256"] is None
    assert leaves(message)[-1]["X-DICOM-Mail-SHA256"] == digest


def text_of(files: FileSet, one: Letter) -> str:
    part = leaves(parsed(files, one))[0]
    return content(part).decode(part.get_content_charset() or "")


def test_our_own_text_says_what_a_reader_needs(tmp_path: Path) -> None:
    """Which of how many, that more may follow, whom to call; a line without its value is left out."""
    files = file_set(tmp_path, 1, 2)
    text = text_of(files, replace(LETTER, part=2, parts=3))
    assert "message 2 of 3" in text
    assert "DICOM files in it: 2" in text
    assert "may follow" in text
    assert "call +49 1" in text
    assert "call" not in text_of(files, replace(LETTER, phone=""))


@pytest.mark.parametrize(
    ("template", "expected", "encoding"),
    [
        ("plain {part}", "plain 1\r\n", "7bit"),
        ("a\r\nb\rc\n\n", "a\r\nb\r\nc\r\n", "7bit"),
        ("{unknown} {phone}", "{unknown} +49 1\r\n", "7bit"),
        ("Grüße {gateway}", "Grüße Hospital\r\n", "quoted-printable"),
        ("x" * 79, "x" * 79 + "\r\n", "quoted-printable"),
        ("x" * 78, "x" * 78 + "\r\n", "7bit"),
        ("From here", "From here\r\n", "quoted-printable"),
        ("blank ", "blank \r\n", "quoted-printable"),
        ("a=b\x01", "a=b\x01\r\n", "quoted-printable"),
        ("", "\r\n", "7bit"),
    ],
)
def test_any_text_arrives_as_it_was_written(template: str, expected: str, encoding: str, tmp_path: Path) -> None:
    """SMIME-10: short lines, no blanks at their ends, nothing that looks like a mailbox's separator."""
    one = replace(LETTER, text=template)
    part = leaves(parsed(file_set(tmp_path, 1), one))[0]
    assert part["Content-Transfer-Encoding"] == encoding
    body = part.get_payload()
    assert isinstance(body, str)
    assert not re.search(r"^From |[ \t]$|^.{79}", body.replace("\r\n", "\n"), re.MULTILINE)
    assert content(part).decode().replace("\r\n", "\n") + "\n" * (
        not content(part).endswith(b"\n")
    ) == expected.replace("\r\n", "\n")


def test_every_line_of_a_letter_is_short_and_seven_bit(tmp_path: Path) -> None:
    """RFC 5322 §2.1.1, SMIME-10, PRT-1: for a relay without 8BITMIME, a signature and a fragment."""
    many = tuple(f"somebody-with-a-long-name-{number}@clinic.example" for number in range(60))
    one = replace(LETTER, recipients=many, headers={"X-Kind": "Bildübertragung " * 20}, subject="Übersicht")
    message = written(file_set(tmp_path, 3000), one)
    assert message.isascii()
    assert all(len(line) <= 98 and line.endswith(b"\r") for line in message.split(b"\n")[:-1])
    assert email.message_from_bytes(message)["To"].replace("\r\n", "") == ", ".join(many)


@pytest.mark.parametrize("field", ["subject", "sender", "message_id", "collection", "loop_token"])
def test_no_value_can_bring_a_field_of_its_own(field: str, tmp_path: Path) -> None:
    """A line end in a value would be a header of somebody else's."""
    one = replace(LETTER, **{field: "x\r\nBcc: evil@example"})
    with pytest.raises(GatewayError, match="cannot be sent"):
        written(file_set(tmp_path, 1), one)


def test_a_file_that_became_shorter_is_noticed(tmp_path: Path) -> None:
    """A mail with half an image must never leave."""
    files = file_set(tmp_path, 3000)
    path = files.entries[0].member.file.path
    path.write_bytes(path.read_bytes()[:-1])
    for kind in ("mime", "zip"):
        with pytest.raises(GatewayError, match="shorter"):
            letter.write(files, replace(LETTER, format=kind), io.BytesIO())


def test_all_tries_give_the_same_bytes_and_all_messages_another_uid(tmp_path: Path) -> None:
    """DIR-1: new for each message, the same in each try of it."""
    files = file_set(tmp_path, 10)
    assert written(files) == written(files)
    uids = {letter.file_set_uid(replace(LETTER, message_id=f"<{number}@x>")) for number in range(200)}
    assert len(uids) == 200
    assert all(re.fullmatch(r"2\.25\.[1-9][0-9]{38}", uid) and int(uid[5:]) < 1 << 128 for uid in uids)


def test_the_halves_make_the_whole(tmp_path: Path) -> None:
    """What lies between is where protection goes."""
    files, header, entity = file_set(tmp_path, 10), io.BytesIO(), io.BytesIO()
    letter.write_header(LETTER, header)
    letter.write_entity(files, LETTER, entity)
    assert header.getvalue() + entity.getvalue() == written(files)
    assert entity.getvalue().startswith(b"Content-Type: multipart/mixed")
    assert (letter.header_size(LETTER), letter.entity_size(files, LETTER)) == (
        len(header.getvalue()),
        len(entity.getvalue()),
    )


@pytest.mark.parametrize("kind", ["clear", "cipher"])
@pytest.mark.parametrize("form", ["mime", "zip"])
def test_the_fields_stand_inside_the_protection_too(
    tmp_path: Path, kind: Literal["clear", "cipher"], form: Literal["mime", "zip"]
) -> None:
    """RFC 9788 §2, §5.2: who, to whom and when cannot be changed on the way; MIME's own fields stay its own."""
    headers = {"X-Partner": "yes", "Content-Language": "en"}
    one = replace(LETTER, protected=kind, format=form, headers=headers, recipients=("a@x.example", "b@x.example"))
    files, head, body = file_set(tmp_path, 10, 100), io.BytesIO(), io.BytesIO()
    letter.write_header(one, head)
    letter.write_entity(files, one, body)
    assert letter.entity_size(files, one) == len(body.getvalue())
    outer = email.message_from_bytes(head.getvalue()).items()
    inner = email.message_from_bytes(body.getvalue())
    assert inner.get_param("hp") == kind
    fields = [(name, value) for name, value in outer if name not in {"MIME-Version", "Content-Language"}]
    said = [("HP-Outer", f"{name}: {value}") for name, value in fields] if kind == "cipher" else []
    assert inner.items() == [*fields, *said, ("Content-Type", inner["Content-Type"])]
    assert {"From", "To", "Date", "Subject", "Message-ID"} <= set(inner.keys())
    assert len(leaves(inner)) == len(leaves(parsed(files, replace(one, protected=""))))
