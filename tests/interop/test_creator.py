"""Our messages taken apart by other people's programs: munpack, Perl's MIME::Parser, DCMTK, dicom3tools, pydicom."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest
from peer import absent, program
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet as PydicomFileSet

from gateway.core import directory, letter, part10
from gateway.core.creator import Capacity, fragments, plan, write_piece
from gateway.core.dataset import Stored
from gateway.core.directory import FileSet, Member, describe, file_id
from gateway.core.letter import Letter
from gateway.model import Span
from tests.samples import corpus

pytestmark = pytest.mark.peer

CORPUS = corpus()
FILES = CORPUS / "dicom" if CORPUS else Path(pydicom.__file__).parent / "data" / "test_files"

LETTER = Letter(
    sender="dicom@hospital.example",
    recipients=("images@clinic.example",),
    message_id="<4711@hospital.example>",
    date=datetime(2026, 11, 23, tzinfo=UTC),
    gateway="Hospital",
    phone="+49 1",
)

BULK_ANNOTATIONS = "1.2.840.10008.5.1.4.1.1.91.1"

PERL = """
use MIME::Parser;
my $parser = MIME::Parser->new;
$parser->output_dir($ARGV[1]);
my $entity = $parser->parse_open($ARGV[0]);
for my $part ($entity->parts) {
    next unless $part->mime_type eq "application/dicom";
    print $part->head->mime_attr("content-type.id"), "\\t", $part->head->mime_attr("content-type.name"), "\\t",
        $part->bodyhandle->path, "\\n";
}
"""


PIECE = """
my $parser = MIME::Parser->new;
$parser->output_dir($ARGV[1]);
$parser->extract_nested_messages(0);
my $entity = $parser->parse_open($ARGV[0]);
print join("\\t", $entity->mime_type, (map { $entity->head->mime_attr("content-type.$_") } qw(id number total)),
    $entity->bodyhandle->path);
"""


@dataclass(frozen=True)
class Mail:
    """A message of the corpus, and a folder in which its file-set lies as files."""

    file_set: FileSet
    letter: Letter
    message: Path
    folder: Path


def members() -> Iterator[Member]:
    """Every file that a PACS may have; each SOP Instance once."""
    known: set[str] = set()
    for path in sorted(FILES.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        if not part10.is_marked(data):
            continue
        try:
            meta = part10.read_meta(data)
        except part10.Problem:
            continue
        source = Stored(lambda at, size, data=data: data[at : at + size], data, len(data))  # type: ignore[misc]
        judged = part10.judge(meta, source, len(data), 1 << 30)
        if judged.held or judged.is_directory or judged.sop_instance in known:
            continue
        known.add(judged.sop_instance)
        uids = (judged.sop_class, judged.sop_instance, judged.study, judged.series, meta.transfer_syntax)
        yield Member(*uids, Span(path, 0, len(data)), meta.data_set)


@pytest.fixture(scope="module")
def mails(tmp_path_factory: pytest.TempPathFactory) -> list[Mail]:
    """The whole corpus, in as many messages as it takes."""
    entries = [describe(member) for member in members()]
    assert len(entries) > 50
    made = plan(entries, LETTER, Capacity(20_000_000, 100))
    assert not made.oversized
    found = []
    for number, file_set in enumerate(made.file_sets, 1):
        sent = replace(LETTER, part=number, parts=made.count, message_id=f"<{number}@hospital.example>")
        folder = tmp_path_factory.mktemp("set")
        message = folder.parent / f"{folder.name}.eml"
        with message.open("wb") as out:
            letter.write(file_set, sent, out)
        (folder / "DICOMDIR").write_bytes(directory.encode(file_set, letter.file_set_uid(sent)))
        for index, entry in enumerate(file_set.entries):
            shutil.copyfile(entry.member.file.path, folder / file_id(index))
        found.append(Mail(file_set, sent, message, folder))
    assert sum(len(mail.file_set.entries) for mail in found) == len(entries)
    return found


def read(path: Path) -> Dataset:
    """Read a DICOMDIR with pydicom, which warns of what real objects have for values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path)


def need_mime_parser() -> None:
    """End a test that needs Perl's MIME::Parser where it is missing."""
    if subprocess.run([program("perl"), "-MMIME::Parser", "-e", "1"], check=False, capture_output=True).returncode:
        absent("MIME::Parser is not installed: tests/peers/install")


def munpack(folder: Path, *messages: Path) -> dict[str, bytes]:
    """Let munpack take messages apart; return what it wrote."""
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder.parent)}
    subprocess.run(
        [program("munpack"), "-q", "-f", "-t", "-C", folder, *messages],
        check=True,
        capture_output=True,
        env=environment,
    )
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_munpack_takes_every_file_out_unchanged(mails: list[Mail], tmp_path: Path) -> None:
    """R8, MIM-4, MIM-7: under its name, byte for byte, the DICOMDIR among them."""
    for number, mail in enumerate(mails):
        found = munpack(tmp_path / str(number), mail.message)
        assert found.pop("DICOMDIR") == (mail.folder / "DICOMDIR").read_bytes()
        for index in range(len(mail.file_set.entries)):
            assert found.pop(f"{file_id(index)}.dcm") == (mail.folder / file_id(index)).read_bytes()
        assert not [name for name in found if name.endswith(".dcm")]


def test_perl_reads_the_pieces_of_a_message(mails: list[Mail], tmp_path: Path) -> None:
    """PRT-1, PRT-2: numbered message/partial whose bodies, put together, are the message."""
    need_mime_parser()
    mail = max(mails, key=lambda one: len(one.file_set.entries))
    size = mail.message.stat().st_size
    joined = b""
    pieces = fragments(Span(mail.message, 0, size), size // 5, "set1@hospital.example")
    for number, piece in enumerate(pieces, 1):
        path = tmp_path / f"piece{number}"
        with path.open("wb") as out:
            write_piece(piece, out)
        done = subprocess.run(
            [program("perl"), "-MMIME::Parser", "-e", PIECE, path, tmp_path], check=True, capture_output=True, text=True
        )
        kind, identifier, told, total, body = done.stdout.split("\t")
        assert (kind, identifier) == ("message/partial", "set1@hospital.example")
        assert (int(told), int(total)) == (number, len(pieces))
        joined += Path(body).read_bytes()
    # It writes text with line ends of its own.
    assert joined.replace(b"\r\n", b"\n") == mail.message.read_bytes().replace(b"\r\n", b"\n")


def test_perl_finds_every_part_with_its_file_id(mails: list[Mail], tmp_path: Path) -> None:
    """MIM-5, MIM-7, MIM-9: the parameters id and name, and the bytes."""
    need_mime_parser()
    script = tmp_path / "parts.pl"
    script.write_text(PERL)
    for number, mail in enumerate(mails):
        target = tmp_path / str(number)
        target.mkdir()
        done = subprocess.run(
            [program("perl"), script, mail.message, target], check=True, capture_output=True, text=True
        )
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        names = [file_id(index) for index in range(len(mail.file_set.entries))]
        assert [row[:2] for row in rows] == [["DICOMDIR", "DICOMDIR"], *([name, f"{name}.dcm"] for name in names)]
        for name, _, path in rows:
            assert Path(path).read_bytes() == (mail.folder / name).read_bytes()


def test_dcmtk_accepts_every_directory(mails: list[Mail], tmp_path: Path) -> None:
    """DIR-13: dcmdump parses it without a word; dcmmkdir opens it, follows its offsets and adds a file to it."""
    for number, mail in enumerate(mails):
        index = mail.folder / "DICOMDIR"
        dumped = subprocess.run([program("dcmdump"), index], check=True, capture_output=True)
        assert not dumped.stderr
        copy = tmp_path / f"DIR{number}"
        copy.write_bytes(index.read_bytes())
        more = tmp_path / "MORE"
        more.write_bytes(Path(pydicom.__file__).parent.joinpath("data/test_files/CT_small.dcm").read_bytes())
        command = ("dcmmkdir", "--append", "--general-mime", "--invent", "--no-backup", "+D", copy.name, "MORE")
        added = subprocess.run([program(command[0]), *command[1:]], cwd=tmp_path, check=False, capture_output=True)
        assert added.returncode == 0, added.stderr
        kept = {record.get("ReferencedFileID") for record in read(copy).DirectoryRecordSequence}
        assert {file_id(one) for one in range(len(mail.file_set.entries))} <= kept


def test_dciodvfy_finds_nothing_missing_in_any_directory(mails: list[Mail]) -> None:
    """DIR-8, DIR-10, DIR-13: every record has what its module asks for; only values that objects have are blamed."""
    of_the_object = ("Value invalid", "Illegal root for UID", "invalid data values")
    for mail in mails:
        done = subprocess.run([program("dciodvfy"), mail.folder / "DICOMDIR"], check=False, capture_output=True)
        lines = done.stderr.decode("latin-1").splitlines()
        assert "BasicDirectory" in lines
        errors = [line for line in lines if line.startswith("Error")]
        assert [line for line in errors if not any(kind in line for kind in of_the_object)] == []


def test_pydicom_finds_every_file(mails: list[Mail]) -> None:
    """FSC-5, FSC-6: its FileSet loads the directory and finds each file under its UIDs."""
    for mail in mails:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = PydicomFileSet(mail.folder / "DICOMDIR")
        found._stage["t"].cleanup()
        assert letter.file_set_uid(mail.letter) == found.UID
        listed = {(Path(one.path).name, one.SOPInstanceUID, one.StudyInstanceUID) for one in found}
        assert listed == {
            (file_id(index), entry.member.sop_instance, entry.member.study)
            for index, entry in enumerate(mail.file_set.entries)
        }


def lineages(index: Dataset) -> dict[str, list[Dataset]]:
    """Return the PATIENT, STUDY, SERIES record and its own for each SOP Instance, by their offsets."""
    at = {record.seq_item_tell: record for record in index.DirectoryRecordSequence}
    found: dict[str, list[Dataset]] = {}

    def follow(offset: int, above: list[Dataset]) -> None:
        while offset:
            record = at[offset]
            line = [*above, record]
            if "ReferencedSOPInstanceUIDInFile" in record:
                found[record.ReferencedSOPInstanceUIDInFile] = line
            follow(record.OffsetOfReferencedLowerLevelDirectoryEntity, line)
            offset = record.OffsetOfTheNextDirectoryRecord

    follow(index.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity, [])
    return found


def test_records_say_what_those_of_dcmmkdir_say(mails: list[Mail], tmp_path: Path) -> None:
    """DIR-8, DIR-10, DIR-12: type, keys and raw values, for every object that dcmmkdir takes without inventing."""
    compared = 0
    for number, mail in enumerate(mails):
        target = tmp_path / str(number)
        names = sorted(path.name for path in mail.folder.iterdir() if path.name != "DICOMDIR")
        # Each object by itself: what dcmmkdir says of a patient or a study, it says of the first one it sees.
        command = [program("dcmmkdir"), "--general-mime", "--no-backup", "+D", target]
        for name in names:
            target.unlink(missing_ok=True)
            subprocess.run([*command, name], cwd=mail.folder, check=False, capture_output=True)
            if not target.exists():
                continue
            (theirs,) = lineages(read(target)).items()
            alone = FileSet((mail.file_set.entries[int(name[2:]) - 1],))
            target.write_bytes(directory.encode(alone, letter.file_set_uid(mail.letter)))
            (ours,) = lineages(read(target)).items()
            assert ours[0] == theirs[0]
            compared += 1
            for mine, other in zip(ours[1], theirs[1], strict=True):
                if other.get("ReferencedSOPClassUIDInFile") == BULK_ANNOTATIONS:
                    continue  # a type of record that pydicom refuses
                assert mine.DirectoryRecordType == other.DirectoryRecordType
                for key in other:
                    if key.tag.group != 4 and key.value not in (None, "", []):
                        assert mine.get(key.tag) == key, (name, key.tag)
    assert compared > 50
