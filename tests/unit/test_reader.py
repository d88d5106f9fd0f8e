"""The File-set Reader: a message in, instances and findings out."""

from __future__ import annotations

import base64
import hashlib
import io
import quopri
import zipfile
from pathlib import Path

import pytest

from gateway.core import output, reader, transfer
from gateway.core.findings import CODES, finding
from gateway.core.reader import Rules, read_to
from gateway.model import DirectoryCheck, Fragment, OtherPart, Severity, Span
from tests.samples import (
    CT,
    DEFLATED,
    DIRECTORY,
    EXPLICIT,
    IMPLICIT,
    codes,
    content,
    data_set,
    dicom_file,
    dicomdir,
    element,
    mail,
    meta,
    part,
    reading,
)

FILE = dicom_file()
OTHER = dicom_file(
    data_set(instance="1.2.3.5", more=element(0x7FE00010, "OW", b"\7" * 3_000_000)), meta(instance="1.2.3.5")
)


def test_instances_lie_behind_one_another_in_one_file(tmp_path: Path) -> None:
    """R8: each is byte for byte what was attached, small or in several blocks."""
    result = reading(tmp_path, mail(part(FILE), part(b"hello", "text/plain"), part(OTHER)))
    first, second = result.instances
    assert result.kind == "dicom"
    assert result.findings == ()
    assert result.other_parts == (OtherPart("2", "text/plain", 5),)
    assert (first.part, second.part) == ("1", "3")
    assert (first.file.start, second.file.start) == (0, len(FILE))
    for instance, file in ((first, FILE), (second, OTHER)):
        assert content(instance.file) == file
        assert instance.size == len(file)
        assert instance.sha256 == hashlib.sha256(file).hexdigest()
        assert instance.data_set_sha256 == hashlib.sha256(file[instance.data_set :]).hexdigest()
        assert instance.held is None
    assert (first.sop_class, first.transfer_syntax) == (CT, EXPLICIT)
    assert second.sop_instance == "1.2.3.5"


def test_hashing_waits_for_nobody_and_nobody_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks of many files, all on the second thread, in the right order."""
    monkeypatch.setattr(output, "THREAD_PAYS", 1)
    monkeypatch.setattr(transfer, "BLOCK", 50_000)
    result = reading(tmp_path, mail(*[part(OTHER), part(FILE)] * 3))
    assert [instance.sha256 for instance in result.instances] == [
        hashlib.sha256(file).hexdigest() for file in (OTHER, FILE) * 3
    ]


def test_the_output_is_made_when_it_is_not_there(tmp_path: Path) -> None:
    """What a worker is asked for."""
    path = tmp_path / "message"
    path.write_bytes(mail(part(FILE)))
    rules = Rules(parts=9, depth=9, header=1 << 16, instance=1 << 20, unpacked=1 << 20, ratio=200)
    (instance,) = read_to(Span(path, 0, path.stat().st_size), rules, tmp_path / "out").instances
    assert content(instance.file) == FILE
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


def test_a_message_may_lie_anywhere_in_a_file(tmp_path: Path) -> None:
    """Ranges in, ranges out; the output may hold something already."""
    message = mail(part(FILE))
    (tmp_path / "two").write_bytes(b"x" * 100 + message + b"--limit--")
    rules = reader.Rules(parts=9, depth=9, header=9999, instance=9999, unpacked=9999, ratio=9)
    with (tmp_path / "out").open("w+b") as out:
        out.write(b"before")
        result = reader.read(Span(tmp_path / "two", 100, 100 + len(message)), rules, out)
        out.write(b"behind")
    assert content(result.instances[0].file) == FILE
    assert (tmp_path / "out").read_bytes() == b"before" + FILE + b"behind"


@pytest.mark.parametrize("kind", ["application/octet-stream", "image/dicom", "application/x-dicom", "text/plain", "x"])
def test_the_mark_makes_it_dicom_whatever_its_label(tmp_path: Path, kind: str) -> None:
    """AMB-1."""
    assert len(reading(tmp_path, mail(part(FILE, kind))).instances) == 1


@pytest.mark.parametrize("kind", ["related", "alternative", "x-unknown", "signed"])
def test_any_multipart_is_walked_as_mixed(tmp_path: Path, kind: str) -> None:
    """MIM-1, AMB-18."""
    assert len(reading(tmp_path, mail(part(FILE), kind=f"multipart/{kind}")).instances) == 1


def test_a_message_may_be_nothing_but_a_file(tmp_path: Path) -> None:
    """Without any multipart."""
    assert reading(tmp_path, part(FILE)).instances[0].part == "1"


def test_other_encodings_than_base64(tmp_path: Path) -> None:
    """Quoted-printable and binary keep every byte."""
    printable = quopri.encodestring(FILE, quotetabs=True).replace(b"\n", b"\r\n")
    result = reading(tmp_path, mail(part(printable, encoding="quoted-printable"), part(FILE, encoding="binary")))
    assert [content(instance.file) for instance in result.instances] == [FILE, FILE]


@pytest.mark.parametrize(
    ("body", "label"),
    [(FILE, "base64-"), (FILE, "quoted-printable"), (base64.encodebytes(FILE), "7bit"), (base64.encodebytes(FILE), "")],
)
def test_a_wrong_transfer_encoding_is_found_out(tmp_path: Path, body: bytes, label: str) -> None:
    """AMB-21: binary that calls itself base64, base64 that calls itself 7bit."""
    head = f"Content-Type: application/dicom\r\nContent-Transfer-Encoding: {label.rstrip('-')}\r\n\r\n".encode()
    result = reading(tmp_path, mail(head + body))
    assert codes(result) == ["wrong-encoding"]
    assert content(result.instances[0].file) == FILE


def test_damaged_base64_goes_on_when_the_file_is_whole(tmp_path: Path) -> None:
    """AMB-21: with a finding at its part."""
    result = reading(tmp_path, mail(part(FILE).replace(b"AAAA\r\n", b"A*AAA\r\n", 1)))
    assert [(found.code, found.where) for found in result.findings] == [("damaged-base64", "1")]
    assert content(result.instances[0].file) == FILE


def test_damaged_text_is_nobodys_business(tmp_path: Path) -> None:
    """Findings are about what might be an image."""
    assert codes(reading(tmp_path, part(b"a=ZZ", "text/plain", "quoted-printable"))) == []
    assert codes(reading(tmp_path, part(b"a=ZZ", "image/jpeg", "quoted-printable"))) == ["damaged-quoted-printable"]
    image = part(FILE, "text/plain").replace(b"AAAA\r\n", b"A*AAA\r\n", 1)
    assert codes(reading(tmp_path, image)) == ["damaged-base64"]


def test_a_damaged_file_is_held_and_the_others_go_on(tmp_path: Path) -> None:
    """AMB-22, AMB-40: held is per instance."""
    cut = dicom_file(data_set()[:-3], meta(instance="7.7"))
    result = reading(tmp_path, mail(part(cut), part(FILE)))
    assert [instance.held for instance in result.instances] == ["truncated-data-set", None]
    assert content(result.instances[0].file) == cut
    assert [(found.code, found.where) for found in result.findings] == [("truncated-data-set", "1")]


@pytest.mark.parametrize(
    ("file", "held"),
    [
        (FILE, "cut-message"),
        (OTHER, None),
        (dicom_file(data_set(more=element(0x7FE00010, "OW", b"12") + element(0xFFFA1000, "LO", "x"))), "cut-message"),
        (dicom_file(data_set()[:-1]), "truncated-data-set"),
    ],
)
def test_the_last_file_of_a_cut_mail_must_show_that_it_is_whole(tmp_path: Path, file: bytes, held: str | None) -> None:
    """AMB-22: cut between two elements it parses; only Pixel Data at the end shows that nothing is missing."""
    whole = mail(part(FILE), part(file))
    result = reading(tmp_path, whole[: whole.rindex(b"\r\n--limit--")])
    assert [instance.held for instance in result.instances] == [None, held]
    assert ("cut-message" in codes(result)) == (held is not None)
    assert "missing-boundary" in codes(result)


@pytest.mark.parametrize(
    ("file", "code"),
    [
        (bytes(128) + b"DICM", "damaged-meta"),
        (dicom_file(data_set(sop_class="", instance=""), meta(sop_class="", instance="")), "meta-incomplete"),
    ],
)
def test_a_file_without_a_name_is_no_instance(tmp_path: Path, file: bytes, code: str) -> None:
    """It is counted, and takes no room in the output."""
    result = reading(tmp_path, mail(part(file), part(FILE)))
    assert result.kind == "dicom"
    assert code in codes(result)
    assert len(result.instances) == 1
    assert result.instances[0].file.start == 0
    assert result.other_parts == (OtherPart("1", "application/dicom", len(file)),)
    assert (tmp_path / "instances").read_bytes() == FILE


def test_a_label_without_the_mark_is_noted(tmp_path: Path) -> None:
    """It may have been meant as DICOM; short parts and empty ones are no trouble."""
    result = reading(tmp_path, mail(part(b"x" * 400), part(b""), part(b"ab", "application/octet-stream")))
    assert (result.kind, result.instances) == ("dicom", ())
    assert [(found.code, found.where) for found in result.findings] == [("not-dicom", "1"), ("not-dicom", "2")]


def test_mail_without_dicom_is_other(tmp_path: Path) -> None:
    """AMB-19."""
    result = reading(tmp_path, mail(part(b"jpeg" * 99, "image/jpeg")))
    assert (result.kind, result.findings) == ("other", ())


def test_a_file_over_the_limit_is_not_written(tmp_path: Path) -> None:
    """AMB-39: its size is told, its bytes are dropped as they come."""
    result = reading(tmp_path, mail(part(OTHER), part(FILE)), instance=2_000_000)
    assert codes(result) == ["instance-too-big"]
    assert (tmp_path / "instances").read_bytes() == FILE
    assert result.other_parts[0].part == "1"


def test_a_big_file_that_is_damaged_as_well_is_counted_as_far_as_it_goes(tmp_path: Path) -> None:
    """Two reasons at once: the first one is told."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a", dicom_file(data_set(more=bytes(9_000_000))))
    result = reading(tmp_path, mail(part(target.getvalue(), "application/zip")), instance=100_000)
    assert codes(result) == ["instance-too-big"]
    assert result.other_parts[0].part == "1!a"


def test_a_deflate_bomb_is_held(tmp_path: Path) -> None:
    """Ratio counts for a deflated data set."""
    data = data_set(more=element(0x7FE00010, "OW", bytes(3_000_000)))
    bomb = dicom_file(data, meta(syntax=DEFLATED), syntax=DEFLATED)
    assert reading(tmp_path, mail(part(bomb)), ratio=5000).instances[0].held is None
    assert reading(tmp_path, mail(part(bomb)), ratio=20).instances[0].held == "unpacked-too-big"


def test_a_limit_of_the_message_holds_all_of_it(tmp_path: Path) -> None:
    """What was not looked at might change what was."""
    result = reading(tmp_path, mail(*[part(FILE)] * 5), parts=3)
    assert [instance.held for instance in result.instances] == ["too-many-parts"] * 3


def test_the_same_instance_twice_is_noted(tmp_path: Path) -> None:
    """AMB-23; another preamble or meta information makes no other instance."""
    again = b"x" * 128 + FILE[128:]
    result = reading(tmp_path, mail(part(FILE), part(again)))
    assert [instance.held for instance in result.instances] == [None, None]
    noted = [(found.code, found.where) for found in result.findings]
    assert noted == [("preamble-in-use", "2"), ("repeated-instance", "2")]


def test_another_instance_of_the_same_uid_is_held(tmp_path: Path) -> None:
    """AMB-23: the second one; but what is held for damage makes no good one wait."""
    other = dicom_file(data_set(patient="P2"))
    result = reading(tmp_path, mail(part(FILE), part(other)))
    assert [instance.held for instance in result.instances] == [None, "reused-uid"]
    assert [(found.code, found.where) for found in result.findings] == [("reused-uid", "2")]
    result = reading(tmp_path, mail(part(FILE[:-3]), part(FILE)))
    assert [instance.held for instance in result.instances] == ["truncated-data-set", None]


class TestDirectory:
    """AMB-7 to AMB-12."""

    def test_a_complete_one_is_checked_and_never_an_instance(self, tmp_path: Path) -> None:
        """It may come last (FSC-9)."""
        result = reading(tmp_path, mail(part(FILE), part(dicomdir([("IMG/IM1", "1.2.3.4")]))))
        assert result.dicomdir == DirectoryCheck(complete=True)
        assert len(result.instances) == 1
        assert result.findings == ()
        assert (tmp_path / "instances").read_bytes() == FILE

    def test_missing_and_extra_files_are_noted(self, tmp_path: Path) -> None:
        """AMB-8, AMB-9: what came goes on."""
        result = reading(tmp_path, mail(part(dicomdir([("IMG/IM9", "9.9")])), part(FILE)))
        assert result.dicomdir == DirectoryCheck(complete=False, missing=("IMG/IM9",))
        assert codes(result) == ["directory-missing", "directory-extra"]
        assert result.instances[0].held is None

    def test_a_part_is_known_by_its_label(self, tmp_path: Path) -> None:
        """By id, name or filename, when the directory names no instance."""
        more = 'Content-Disposition: attachment; filename="im2.dcm"\r\n'
        result = reading(
            tmp_path,
            mail(
                part(FILE, "application/dicom; id=IMG/IM1"),
                part(OTHER, more=more),
                part(dicomdir([("IMG/IM1", ""), ("IMG/IM2", "")])),
            ),
        )
        assert result.dicomdir == DirectoryCheck(complete=True)
        assert result.instances[0].file_id == "IMG/IM1"

    def test_an_unreadable_one_is_ignored(self, tmp_path: Path) -> None:
        """AMB-10."""
        result = reading(tmp_path, mail(part(dicomdir([("A", "1.2.3.4")])[:-3]), part(FILE)))
        assert (result.dicomdir, codes(result)) == (None, ["directory-unreadable"])

    def test_several_are_ignored(self, tmp_path: Path) -> None:
        """AMB-11: side by side, nobody can say what belongs to which."""
        result = reading(tmp_path, mail(part(dicomdir([("A", "9")])), part(dicomdir([])), part(FILE)))
        assert (result.dicomdir, codes(result)) == (None, ["directory-repeated"])

    def test_each_set_is_held_against_its_own(self, tmp_path: Path) -> None:
        """AMB-11: two multiparts, two folders in one archive."""
        one = mail(part(dicomdir([("A", "1.2.3.4")])), part(FILE), boundary="one")
        two = mail(part(dicomdir([("B", "1.2.3.5"), ("C", "9.9")])), part(OTHER), boundary="two")
        third = dicom_file(data_set(instance="1.2.3.6"), meta(instance="1.2.3.6"))
        result = reading(tmp_path, mail(one, two, part(third)))
        assert result.dicomdir == DirectoryCheck(complete=False, missing=("C",))
        assert [(found.code, found.where) for found in result.findings] == [("directory-missing", "2.1")]
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as made:
            for folder, uid, file in (("CD1", "1.2.3.4", FILE), ("CD2.x", "1.2.3.5", OTHER)):
                made.writestr(f"{folder}/DICOMDIR", dicomdir([("A", uid)]))
                made.writestr(f"{folder}/A", file)
        result = reading(tmp_path, mail(part(target.getvalue(), "application/zip")))
        assert (result.dicomdir, result.findings) == (DirectoryCheck(complete=True), ())

    def test_its_reserved_id_alone_makes_none(self, tmp_path: Path) -> None:
        """P10-12; but an image under that label is an image: nothing is dropped for a name."""
        result = reading(tmp_path, mail(part(FILE, "application/dicom; id=DICOMDIR")))
        assert content(result.instances[0].file) == FILE
        assert codes(result) == ["directory-id"]


def test_an_image_behind_the_header_of_a_directory_is_held_as_the_image_it_is(tmp_path: Path) -> None:
    """A program that writes one File Meta Information for all it exports must not cost images (P10-7, promise 3)."""
    result = reading(tmp_path, mail(part(FILE), part(dicom_file(data_set(instance="1.2.9"), meta(DIRECTORY)))))
    assert [(one.part, one.held) for one in result.instances] == [("1", None), ("2", "sop-class-mismatch")]
    assert result.dicomdir is None


class TestClassification:
    """AMB-37: what is a report, and what only bears its marks."""

    def test_a_report_is_a_report_whatever_it_carries_back(self, tmp_path: Path) -> None:
        """A bounce with the whole study in it is no study."""
        result = reading(tmp_path, mail(part(b"sorry", "text/plain"), part(FILE), kind="multipart/report"))
        assert (result.kind, result.instances, result.findings) == ("report", (), ())
        assert [other.part for other in result.other_parts] == ["1", "2"]

    @pytest.mark.parametrize(
        "field",
        [
            "From: Mail Delivery Subsystem <MAILER-DAEMON@mx.example>",
            "Return-Path: <MAILER-DAEMON>",
            "X-Failed-Recipients: a@b.example",
        ],
    )
    def test_a_bounce_of_an_old_system_is_a_report(self, tmp_path: Path, field: str) -> None:
        """AMB-37: it carries the images of a study back, and is none."""
        returned = b"Content-Type: message/rfc822\r\n\r\n" + mail(part(FILE), boundary="inner")
        message = field.encode() + b"\r\n" + mail(part(b"sorry", "text/plain"), returned)
        result = reading(tmp_path, message)
        assert (result.kind, result.instances, len(result.other_parts)) == ("report", (), 2)

    @pytest.mark.parametrize(
        "field", ["Return-Path: <>", "Precedence: Auto_Reply", "From: postmaster@a.example", "From: x <PostMaster@b.c>"]
    )
    def test_what_looks_like_an_answer_of_a_machine_is_one_without_dicom(self, tmp_path: Path, field: str) -> None:
        """An image goes on whoever sent it: such a guess must not cost one."""
        head = field.encode() + b"\r\n"
        assert reading(tmp_path, head + mail(part(b"away", "text/plain"))).kind == "report"
        assert reading(tmp_path, head + mail(part(FILE))).kind == "dicom"

    def test_a_daemon_in_a_name_is_none(self, tmp_path: Path) -> None:
        """Only the address counts."""
        message = b"From: no-mailer-daemon-here@a.example\r\n" + mail(part(FILE))
        assert reading(tmp_path, message).kind == "dicom"

    def test_an_auto_reply_without_dicom_is_a_report(self, tmp_path: Path) -> None:
        """RFC 3834."""
        message = mail(part(b"away", "text/plain"), fields="Auto-Submitted: auto-replied; x=y\r\n")
        assert reading(tmp_path, message).kind == "report"

    @pytest.mark.parametrize("value", ["auto-replied", "auto-generated", "no"])
    def test_a_study_is_a_study_whoever_sent_it(self, tmp_path: Path, value: str) -> None:
        """Gateways are machines, too."""
        assert reading(tmp_path, mail(part(FILE), fields=f"Auto-Submitted: {value}\r\n")).kind == "dicom"

    def test_generated_mail_is_no_reply(self, tmp_path: Path) -> None:
        """Our own mails bear that."""
        message = mail(part(b"x", "text/plain"), fields="Auto-Submitted: auto-generated\r\n")
        assert reading(tmp_path, message).kind == "other"


class TestFragment:
    """PRT-1, AMB-34."""

    def test_a_fragment_says_which_it_is(self, tmp_path: Path) -> None:
        """With and without total; what it carries is not looked at."""
        head = "From: a@b\r\nContent-Type: message/partial; id=x@y; number=2"
        result = reading(tmp_path, f"{head}; total=3\r\n\r\n".encode() + mail(part(FILE)))
        assert (result.kind, result.partial, result.instances) == ("partial", Fragment("x@y", 2, 3), ())
        assert reading(tmp_path, f"{head}\r\n\r\n".encode()).partial == Fragment("x@y", 2, None)

    def test_an_encoded_fragment_is_an_error(self, tmp_path: Path) -> None:
        """PRT-1: nobody says what such a seam is."""
        message = b"Content-Type: message/partial; id=x; number=1\r\nContent-Transfer-Encoding: base64\r\n\r\nQUJD"
        assert codes(reading(tmp_path, message)) == ["invalid-fragment"]

    @pytest.mark.parametrize(
        "parameters", ["", "; id=x", "; number=1", "; id=x; number=0", "; id=x; number=-1", "; id=x; number=3; total=2"]
    )
    def test_a_fragment_that_does_not_is_an_error(self, tmp_path: Path, parameters: str) -> None:
        """Order is never guessed."""
        result = reading(tmp_path, f"Content-Type: message/partial{parameters}\r\n\r\nx".encode())
        assert (result.kind, result.partial, codes(result)) == ("partial", None, ["invalid-fragment"])


class TestBare:
    """AMB-2: data sets without preamble."""

    @pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
    def test_one_is_taken_where_the_route_allows_it(self, tmp_path: Path, syntax: str) -> None:
        """Its syntax is found out; its file is its data set."""
        data = data_set(syntax=syntax)
        result = reading(tmp_path, mail(part(data)), bare_dicom=True)
        (instance,) = result.instances
        assert codes(result) == ["bare-data-set-taken"]
        assert (instance.transfer_syntax, instance.data_set) == (syntax, 0)
        assert instance.sha256 == instance.data_set_sha256 == hashlib.sha256(data).hexdigest()
        assert instance.held is None

    def test_meta_information_without_preamble_is_read(self, tmp_path: Path) -> None:
        """Some programs drop the first 132 bytes."""
        data = FILE[132:]
        result = reading(tmp_path, mail(part(data)), bare_dicom=True)
        (instance,) = result.instances
        assert data[instance.data_set :] == data_set()
        assert instance.data_set_sha256 == hashlib.sha256(data_set()).hexdigest()

    @pytest.mark.parametrize("allowed", [True, False])
    @pytest.mark.parametrize(
        "data",
        [
            data_set()[:-1],
            data_set(sop_class="1.2.840.10008.9", study=""),
            data_set(sop_class="1.2.840.10008.1.1"),
            FILE[132:200],
        ],
    )
    def test_one_that_cannot_be_vouched_for_is_refused(self, tmp_path: Path, data: bytes, allowed: bool) -> None:
        """It must be a storage object that parses to its end."""
        result = reading(tmp_path, mail(part(data)), bare_dicom=allowed)
        assert (result.kind, result.instances, codes(result)) == ("dicom", (), ["bare-data-set"])
        assert (tmp_path / "instances").read_bytes() == b""

    def test_none_is_taken_unless_allowed(self, tmp_path: Path) -> None:
        """The finding says how to allow it."""
        assert codes(reading(tmp_path, mail(part(data_set())))) == ["bare-data-set"]


class TestEncodedMessage:
    """RFC 2046 §5.2.1 forbids what some gateways do."""

    def test_a_message_in_base64_is_walked(self, tmp_path: Path) -> None:
        """With the numbers it would have had."""
        inner = mail(part(FILE), mail(part(OTHER), boundary="in"), boundary="deep")
        result = reading(tmp_path, mail(part(b"x", "text/plain"), part(inner, "message/rfc822")))
        assert [instance.part for instance in result.instances] == ["2.1", "2.2.1"]

    def test_limits_hold_through_it(self, tmp_path: Path) -> None:
        """Parts are counted on, and depth too."""
        inner = mail(*[part(FILE)] * 9)
        result = reading(tmp_path, mail(part(b"x", "text/plain"), part(inner, "message/rfc822")), parts=5)
        assert "too-many-parts" in codes(result)
        assert all(instance.held == "too-many-parts" for instance in result.instances)
        for _ in range(9):
            inner = part(inner, "message/rfc822")
        result = reading(tmp_path, inner, depth=5)
        assert (result.instances, result.other_parts[0].part) == ((), "1.1.1.1.1.1")
        assert codes(result) == ["too-deep"]


@pytest.mark.parametrize(
    ("leaf", "code"),
    [
        (part(b"j" * 50_000, "image/jpeg"), ["only-images"]),
        (part(b"j" * 500, "image/png"), []),
        (part(b'<a href="https://cloud.example/x">', "text/html"), ["only-links"]),
        (part(b"hello", "text/plain"), []),
    ],
)
def test_a_mail_without_dicom_says_what_it_has_instead(tmp_path: Path, leaf: bytes, code: list[str]) -> None:
    """AMB-19, AMB-20, AMB-36: pictures that are no logos, links that are not followed."""
    result = reading(tmp_path, mail(leaf))
    assert (result.kind, codes(result)) == ("other", code)


def test_the_only_error_is_that_of_the_disk(tmp_path: Path) -> None:
    """What cannot be read or written is an OSError, and nothing else ever comes out."""
    rules = reader.Rules(parts=9, depth=9, header=9999, instance=1 << 30, unpacked=9999, ratio=9)
    with (tmp_path / "out").open("w+b") as out, pytest.raises(FileNotFoundError):
        reader.read(Span(tmp_path / "nothing", 0, 1), rules, out)


def test_every_finding_is_explained() -> None:
    """Each code tells what it means and what to do; an error says why something is held."""
    for code, entry in CODES.items():
        assert finding(code, "1").text == entry.meaning
        assert entry.meaning.endswith(".")
        assert entry.action.endswith(".")
        assert entry.severity in Severity
