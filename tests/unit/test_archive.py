"""Archives: opened under limits, or refused with a reason. Each limit has its bomb."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import pytest

from gateway.core import archive
from gateway.core.archive import Budget, gunzip, unzip
from gateway.core.dataset import Problem
from gateway.model import OtherPart
from tests.samples import codes, content, data_set, dicom_file, dicomdir, mail, meta, part, reading

FILE = dicom_file()


def packed(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Make a ZIP."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return target.getvalue()


def zipped(data: bytes) -> bytes:
    """Wrap a ZIP in a mail."""
    return mail(part(data, "application/zip"))


def test_a_file_set_in_a_zip_is_read(tmp_path: Path) -> None:
    """ZIP-4: DICOMDIR, instances in folders, and what else is there."""
    members = {"DICOMDIR": dicomdir([("IMG/IM1", "")]), "IMG/IM1": FILE, "IMG/": b"", "README.TXT": b"hello"}
    result = reading(tmp_path, zipped(packed(members)))
    (instance,) = result.instances
    assert (result.kind, instance.part, instance.file_id) == ("dicom", "1!IMG/IM1", None)
    assert content(instance.file) == FILE
    assert result.dicomdir is not None
    assert result.dicomdir.complete
    assert result.other_parts == (OtherPart("1!README.TXT", "application/octet-stream", 5),)


def test_a_zip_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    """AMB-13: any name, any type; stored members, too; folders with backslashes."""
    data = packed({"a\\b.dcm": FILE}, zipfile.ZIP_STORED)
    result = reading(tmp_path, mail(part(data, "image/jpeg")))
    assert [instance.part for instance in result.instances] == ["1!a/b.dcm"]


def test_a_zip_without_dicom_is_one_part(tmp_path: Path) -> None:
    """Office documents are ZIPs."""
    data = packed({"word/document.xml": b"x", "b": b"y"})
    result = reading(tmp_path, zipped(data))
    assert (result.kind, result.findings) == ("other", ())
    assert result.other_parts == (OtherPart("1", "application/zip", len(data)),)
    empty = packed({})
    assert reading(tmp_path, zipped(empty)).other_parts == (OtherPart("1", "application/zip", len(empty)),)


def test_a_zip_in_a_zip_is_the_end(tmp_path: Path) -> None:
    """ZIP-8: one level."""
    once = packed({"in.zip": packed({"a": FILE})})
    assert reading(tmp_path, zipped(once)).instances[0].part == "1!in.zip!a"
    result = reading(tmp_path, zipped(packed({"out.zip": once})))
    assert (result.instances, codes(result)) == ((), ["nested-archive"])


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a\\..\\b", "n" * 256])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    """Names are no paths here; who writes such has something in mind."""
    result = reading(tmp_path, zipped(packed({"a": FILE, name: b"x"})))
    assert (result.instances, codes(result)) == ((), ["unsafe-name"])


def test_names_are_shown_as_text(tmp_path: Path) -> None:
    """No control character reaches a terminal or a database."""
    result = reading(tmp_path, zipped(packed({"a\x1b[2J\n": FILE})))
    assert result.instances[0].part == "1!a\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}"


def test_a_member_without_a_name_is_a_file_like_any(tmp_path: Path) -> None:
    """Found by fuzzing: zipfile itself fails on it."""
    named = packed({"x": FILE})
    start, end = named.index(b"PK\x01\x02"), named.rindex(b"PK\x05\x06")
    local = named[:26] + b"\0\0" + named[28:30] + named[31:start]
    entry = named[start : start + 28] + b"\0\0" + named[start + 30 : start + 46] + named[start + 47 : end]
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), len(local), 0)
    result = reading(tmp_path, zipped(local + entry + tail))
    assert [(instance.part, instance.held) for instance in result.instances] == [("1!", None)]


def test_members_that_share_their_bytes_are_bounded(tmp_path: Path) -> None:
    """A bomb without recursion: a thousand entries of the directory name one member; the budget is for all of them."""
    bomb = packed({"a": bytes(900_000)})
    end = bomb.rindex(b"PK\x05\x06")
    start = bomb.index(b"PK\x01\x02")
    entry = bomb[start:end]
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1000, 1000, len(entry) * 1000, start, 0)
    result = reading(tmp_path, zipped(bomb[:start] + entry * 1000 + tail), parts=2000, unpacked=2_000_000)
    assert result.instances == ()
    # Newer versions of zipfile see the overlap by themselves.
    assert set(codes(result)) in ({"unpacked-too-big"}, {"damaged-archive"}, {"unpacked-too-big", "damaged-archive"})


def test_a_locked_zip_is_held(tmp_path: Path) -> None:
    """AMB-13: there is no password to try."""
    data = bytearray(packed({"a": FILE}))
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.find(mark) + at] |= 1
    result = reading(tmp_path, zipped(bytes(data)))
    assert (result.instances, codes(result)) == ((), ["encrypted-archive"])
    assert result.other_parts == (OtherPart("1", "application/zip", len(data)),)


@pytest.mark.parametrize(
    "first", [b"Rar!\x1a\x07\x01\x00", b"7z\xbc\xaf\x27\x1c", b"BZh9", b"\xfd7zXZ\0", b"MSCF", bytes(0x8001) + b"CD001"]
)
def test_other_archives_are_named_and_not_opened(tmp_path: Path, first: bytes) -> None:
    """With a hint what to ask for."""
    result = reading(tmp_path, mail(part(first + bytes(99), "application/octet-stream"), part(FILE)))
    assert codes(result) == ["unsupported-archive"]
    assert len(result.instances) == 1


def test_a_member_that_inflates_too_far_is_stopped(tmp_path: Path) -> None:
    """The ratio of one member; the others go on."""
    data = packed({"bomb": bytes(30_000_000), "a": FILE})
    result = reading(tmp_path, zipped(data), unpacked=1 << 30)
    assert [(found.code, found.where) for found in result.findings] == [("unpacked-too-big", "1!bomb")]
    assert len(result.instances) == 1


def test_a_dicom_bomb_leaves_nothing_behind(tmp_path: Path) -> None:
    """Also when the bomb bears the mark."""
    bomb = dicom_file(data_set(more=bytes(30_000_000)), meta(instance="6.6"))
    result = reading(tmp_path, zipped(packed({"bomb": bomb, "a": FILE})), unpacked=1 << 30, instance=1 << 30)
    assert codes(result) == ["unpacked-too-big"]
    assert (tmp_path / "instances").read_bytes() == FILE


def test_all_archives_share_one_budget(tmp_path: Path) -> None:
    """Many small bombs are one big one."""
    data = packed({f"{n}": bytes(900_000) for n in range(10)})
    result = reading(tmp_path, mail(*[part(data, "application/zip")] * 5), unpacked=5_000_000)
    assert codes(result).count("unpacked-too-big") == 45


def test_members_are_counted_as_parts(tmp_path: Path) -> None:
    """A ZIP of a hundred thousand names."""
    data = packed({f"{n}": b"" for n in range(200)})
    assert codes(reading(tmp_path, zipped(data))) == ["too-many-members"]


def test_a_quine_ends(tmp_path: Path) -> None:
    """A ZIP whose members overlap: every entry names the same bytes."""
    data = bytearray(packed({"a": bytes(900_000), "b": b""}))
    entries = [at for at in range(len(data)) if data[at : at + 4] == b"PK\1\2"]
    data[entries[1] + 42 : entries[1] + 46] = struct.pack("<L", 0)
    assert codes(reading(tmp_path, zipped(bytes(data)))) in (["damaged-archive"], [])


@pytest.mark.parametrize(
    "damage", ["end", "directory", "header", "data", "crc", "method", "offset", "long", "disks", "cut"]
)
def test_a_damaged_zip_is_an_error_and_no_exception(tmp_path: Path, damage: str) -> None:
    """Zipfile raises ten kinds of errors; one code comes out."""
    data = bytearray(packed({"a": FILE, "b": b"x" * 5000}))
    directory, end = data.find(b"PK\1\2"), data.find(b"PK\5\6")
    if damage == "end":
        data[end] = 0
    elif damage == "directory":
        data[directory] = 0
    elif damage == "header":
        data[1] = data[200] = 0
    elif damage == "data":
        data[40:60] = b"\xff" * 20
    elif damage == "crc":
        data[directory + 16] ^= 1
    elif damage == "method":
        data[directory + 10] = 99
    elif damage == "offset":
        data[directory + 42 : directory + 46] = b"\xff\xff\xff\x7f"
    elif damage == "long":
        data[end + 12 : end + 16] = b"\xff" * 4
    elif damage == "disks":
        data[end:end] = b"PK\6\7" + struct.pack("<LQL", 0, 0, 2)  # ZIP64: it lies on two disks
    else:
        del data[end + 10 :]
    result = reading(tmp_path, zipped(bytes(data)))
    if damage == "header":
        return  # its first bytes do not show a ZIP any more
    assert "damaged-archive" in codes(result)
    assert result.instances == ()


def test_a_directory_too_big_for_memory_is_refused() -> None:
    """Zipfile would read it at once; ZIP64 can claim exabytes."""
    end = b"PK\5\6" + bytes(8) + struct.pack("<LLH", archive.DIRECTORY_LIMIT + 1, 0, 0)
    with pytest.raises(Problem, match="too-many-members"):
        list(unzip(io.BytesIO(end), Budget(1, 1), 9))


@pytest.mark.parametrize("short", [b"\xff" * 4, bytes(4)], ids=["in-zip64", "small"])
def test_a_long_directory_is_refused_whatever_the_short_record_says(
    monkeypatch: pytest.MonkeyPatch, short: bytes
) -> None:
    """Zipfile goes by the ZIP64 record wherever there is one, so we do: it must not read that much."""
    monkeypatch.setattr(zipfile, "ZipFile", None)
    record = b"PK\6\6" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 1, 1, archive.DIRECTORY_LIMIT + 1, 0)
    locator = b"PK\6\7" + struct.pack("<LQL", 0, 0, 1)
    end = b"PK\5\6" + bytes(8) + short + bytes(6)
    with pytest.raises(Problem, match="too-many-members"):
        list(unzip(io.BytesIO(record + locator + end), Budget(1, 1), 9))


def test_a_gzipped_file_is_read(tmp_path: Path) -> None:
    """AMB-14: in one piece or in several members."""
    for data in (gzip.compress(FILE), gzip.compress(FILE[:200]) + gzip.compress(FILE[200:])):
        result = reading(tmp_path, mail(part(data, "application/gzip")))
        assert content(result.instances[0].file) == FILE
        assert result.instances[0].part == "1!content"


@pytest.mark.parametrize("damage", [lambda d: d[:-5], lambda d: d[:50] + b"\xff" * 30 + d[80:], lambda d: d + b"junk"])
def test_a_damaged_gzip_is_an_error(tmp_path: Path, damage: object) -> None:
    """Cut, changed, or with something behind it."""
    assert callable(damage)
    result = reading(tmp_path, mail(part(damage(gzip.compress(FILE)), "application/gzip")))
    assert codes(result) == ["damaged-archive"]
    assert (tmp_path / "instances").read_bytes() == b""


def test_a_gzip_bomb_is_stopped(tmp_path: Path) -> None:
    """By its ratio, and by the budget."""
    bomb = mail(part(gzip.compress(bytes(30_000_000)), "application/gzip"))
    assert codes(reading(tmp_path, bomb, unpacked=1 << 30)) == ["unpacked-too-big"]
    assert codes(reading(tmp_path, bomb, ratio=5000, unpacked=3_000_000)) == ["unpacked-too-big"]
    assert codes(reading(tmp_path, bomb, ratio=5000, unpacked=1 << 30)) == []


def test_an_empty_gzip_unpacks_to_nothing() -> None:
    """A member without content."""
    assert list(gunzip([gzip.compress(b"")], Budget(9, 9))) == []
    with pytest.raises(Problem):
        list(gunzip([], Budget(9, 9)))
