"""The DICOMDIR as it is written: records, keys, offsets, supplied values, character sets (PS3.3 Annex F)."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID_dictionary

from gateway.core import directory, records
from gateway.core.directory import Entry, FileSet, Member, Tally, apart, describe, encode, file_id
from gateway.model import IMPLEMENTATION_CLASS_UID, Span
from tests.samples import (
    BIG_ENDIAN,
    CT,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    data_set,
    dicom_file,
    element,
    item,
    meta,
    sequence_end,
)

UID = "2.25.170141183460469231731687303715884105728"
STORAGE = "1.2.840.10008.5.1.4.1.1."
SR = STORAGE + "88.11"
SYNTAXES = (EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED)


def member(
    folder: Path,
    more: bytes = b"",
    *,
    sop_class: str = CT,
    instance: str = "1.2.3.4",
    study: str = "1.2.3",
    series: str = "1.2.3.1",
    patient: str = "P1",
    syntax: str = EXPLICIT,
) -> Member:
    """Write a small object and say what it is. ``more`` goes behind its UIDs."""
    encoding = EXPLICIT if syntax == DEFLATED else syntax
    data = data_set(sop_class, instance, study, series, patient, syntax=encoding, more=more)
    head = meta(sop_class, instance, syntax)
    content = b"xx" + dicom_file(data, head, syntax=syntax)
    path = folder / f"{instance}.{abs(hash((more, patient, study, series)))}"
    path.write_bytes(content + b"yy")
    return Member(sop_class, instance, study, series, syntax, Span(path, 2, len(content)), 132 + len(head))


def read(content: bytes) -> Dataset:
    """Read a DICOMDIR as pydicom does."""
    return pydicom.dcmread(io.BytesIO(content))


def listed(*entries: Entry) -> list[Dataset]:
    """Return the records of a directory in the order of the file."""
    return list(read(encode(FileSet(entries), UID)).DirectoryRecordSequence)


def types(*entries: Entry) -> list[str]:
    return [record.DirectoryRecordType for record in listed(*entries)]


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    """P10-3, P10-8, DIR-1, DIR-2: our own implementation, Explicit VR Little Endian, no File-set ID."""
    found = read(encode(FileSet((describe(member(tmp_path)),)), UID))
    assert found.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.1.3.10"
    assert found.file_meta.MediaStorageSOPInstanceUID == UID
    assert found.file_meta.TransferSyntaxUID == EXPLICIT
    assert found.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert found.preamble == bytes(128)
    assert found.FileSetID is None or found.FileSetID == ""
    assert found.FileSetConsistencyFlag == 0


def test_offsets_lead_through_the_tree(tmp_path: Path) -> None:
    """DIR-3, DIR-4, DIR-5: two patients, three studies, and every link lands on the record it means."""
    places = [("P1", "1.1", "1.1.1"), ("P2", "1.2", "1.2.1"), ("P1", "1.3", "1.3.1"), ("P1", "1.1", "1.1.1")]
    entries = [
        describe(member(tmp_path, patient=patient, study=study, series=series, instance=f"1.9.{number}"))
        for number, (patient, study, series) in enumerate(places)
    ]
    content = encode(FileSet(tuple(entries)), UID)
    found = read(content)
    at = {record.seq_item_tell: record for record in found.DirectoryRecordSequence}

    def below(offset: int) -> list[Dataset]:
        chain = []
        while offset:
            chain.append(at[offset])
            offset = chain[-1].OffsetOfTheNextDirectoryRecord
        return chain

    roots = below(found.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity)
    assert roots[-1].seq_item_tell == found.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity
    seen = {}
    for patient in roots:
        for study in below(patient.OffsetOfReferencedLowerLevelDirectoryEntity):
            for series in below(study.OffsetOfReferencedLowerLevelDirectoryEntity):
                for image in below(series.OffsetOfReferencedLowerLevelDirectoryEntity):
                    assert image.OffsetOfReferencedLowerLevelDirectoryEntity == 0
                    assert image.RecordInUseFlag == 0xFFFF
                    assert image.ReferencedSOPClassUIDInFile == CT
                    assert image.ReferencedTransferSyntaxUIDInFile == EXPLICIT
                    where = (patient.PatientID, study.StudyInstanceUID, series.SeriesInstanceUID)
                    seen[image.ReferencedFileID, image.ReferencedSOPInstanceUIDInFile] = where
    assert seen == {(file_id(n), f"1.9.{n}"): place for n, place in enumerate(places)}
    assert [record.PatientID for record in roots] == ["P1", "P2"]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_keys_are_copied_from_every_syntax(syntax: str, tmp_path: Path) -> None:
    """DIR-8, DIR-12: raw bytes, with the character set they are in; sequences with what belongs to a record."""
    encoding = EXPLICIT if syntax == DEFLATED else syntax
    order = ">" if syntax == BIG_ENDIAN else "<"

    def coded(meaning: str) -> bytes:
        values = ((0x00080100, "SH", "1"), (0x00080102, "SH", "99X"), (0x00080104, "LO", meaning))
        return item(b"".join(element(tag, vr, value, encoding) for tag, vr, value in values), order=order)

    def content(relationship: str, meaning: str) -> bytes:
        concept = element(0x0040A043, "SQ", coded(meaning), encoding)
        unknown = element(0x00090010, "LO", "X", encoding) + element(0x00091010, "SQ", item(order=order), encoding)
        return item(unknown + element(0x0040A010, "CS", relationship, encoding) + concept, defined=False, order=order)

    def tell(tag: int, vr: str, value: bytes) -> bytes:
        return element(tag, vr, value, encoding)

    more = b"".join(
        [
            tell(0x00080005, "CS", b"ISO_IR 100"),
            tell(0x00080020, "DA", b"20260102"),
            tell(0x00081030, "LO", "Schädel".encode("latin-1")),
            tell(0x00100010, "PN", "Müller^Jörg".encode("latin-1")),
            tell(0x00401101, "SQ", item(tell(0x00080050, "SH", b"ASTRAY"), order=order)),
            tell(0x0040A043, "SQ", coded("title")),
            tell(
                0x0040A073,
                "SQ",
                item(tell(0x0040A030, "DT", b"20260101"), order=order)
                + item(tell(0x0040A030, "DT", b"20260102"), order=order)
                + item(order=order),
            ),
            tell(0x0040A491, "CS", b"COMPLETE"),
            tell(0x0040A730, "SQ", content("CONTAINS", "body") + content("HAS CONCEPT MOD", "in German")),
            tell(0x7FE00010, "OW", b"\0\0"),
        ]
    )
    patient, study, series, document = listed(describe(member(tmp_path, more, sop_class=SR, syntax=syntax)))
    assert all(record.SpecificCharacterSet == "ISO_IR 100" for record in (patient, study, series, document))
    assert patient.PatientName == "Müller^Jörg"
    assert (study.StudyDescription, study.StudyDate) == ("Schädel", "20260102")
    assert study["AccessionNumber"].is_empty  # the one it has lies in a sequence
    assert series.SeriesInstanceUID == "1.2.3.1"
    assert document.DirectoryRecordType == "SR DOCUMENT"
    assert (document.CompletionFlag, document.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert document.VerificationDateTime == "20260102"
    assert [code.CodeMeaning for code in document.ConceptNameCodeSequence] == ["title"]
    (kept,) = document.ContentSequence
    assert kept.RelationshipType == "HAS CONCEPT MOD"
    assert kept.ConceptNameCodeSequence[0].CodeMeaning == "in German"


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG_ENDIAN])
def test_binary_keys_are_turned_to_little_endian(syntax: str, tmp_path: Path) -> None:
    """A directory is always Little Endian, whatever the object is."""
    number = struct.pack(">H" if syntax == BIG_ENDIAN else "<H", 300)
    more = element(0x00280010, "US", number, syntax) + element(0x00280011, "US", b"", syntax)
    record = listed(describe(member(tmp_path, more, sop_class=STORAGE + "4.2", syntax=syntax)))[-1]
    assert (record.DirectoryRecordType, record.Rows, record.Columns) == ("SPECTROSCOPY", 300, 1)


def test_type_1_keys_are_supplied_and_the_object_is_not_touched(tmp_path: Path) -> None:
    """DIR-9: in ASCII; a date of the series may stand in for that of the study."""
    one = member(tmp_path, element(0x00080021, "DA", "20250101") + element(0x00200013, "IS", " "), patient=" ")
    before = one.file.path.read_bytes()
    patient, study, series, image = listed(describe(one))
    assert one.file.path.read_bytes() == before
    assert patient.PatientID == "NOID0001"
    assert (study.StudyDate, study.StudyTime, study.StudyID) == ("20250101", "000000", "0")
    assert (series.Modality, series.SeriesNumber) == ("OT", 0)
    assert image.InstanceNumber == 0
    assert "SpecificCharacterSet" not in study


def test_a_supplied_patient_id_is_nobody_elses(tmp_path: Path) -> None:
    """FSC-7: without an ID, each study is a person of its own."""
    entries = [
        describe(member(tmp_path, patient=patient, study=study, series=study + ".1", instance=study + ".2"))
        for patient, study in (("NOID0001", "1.1"), ("", "1.2"), ("", "1.3"), ("", "1.2"))
    ]
    assert [record.PatientID for record in listed(*entries) if record.DirectoryRecordType == "PATIENT"] == [
        "NOID0001",
        "NOID0002",
        "NOID0003",
    ]


def test_a_document_without_title_or_code_is_given_one(tmp_path: Path) -> None:
    """DIR-9, DIR-10: an empty sequence is no value; empty content items are nobody's."""
    more = element(0x0040A043, "SQ", b"") + element(0x0040A730, "SQ", item())
    document = listed(describe(member(tmp_path, more, sop_class=SR)))[-1]
    assert document.ConceptNameCodeSequence[0].CodeMeaning == "Document Title"
    assert "ContentSequence" not in document


def test_an_unreadable_header_gives_a_record_all_the_same(tmp_path: Path) -> None:
    """No image is left out of a mail for the sake of its DICOMDIR."""
    whole = member(tmp_path)
    cut = Span(whole.file.path, 2, 2 + whole.data_set + 5)
    patient, study, _, image = listed(describe(replace(whole, file=cut)))
    assert patient.PatientID == "NOID0001"
    assert study.StudyInstanceUID == "1.2.3"
    assert image.ReferencedSOPInstanceUIDInFile == "1.2.3.4"


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        (element(0x00280010, "US", b"\1\0") + element(0x00280011, "US", b"\1\0"), "IMAGE"),
        (element(0x00280010, "US", b"\1\0"), "PRIVATE"),
        (b"", "PRIVATE"),
    ],
)
def test_a_class_nobody_knows_is_an_image_when_it_looks_like_one(more: bytes, kind: str, tmp_path: Path) -> None:
    """A receiver who imports by the directory must find the image; anything else gets a private record."""
    record = listed(describe(member(tmp_path, more, sop_class="1.3.12.2.1107.5.9.1")))[-1]
    assert record.DirectoryRecordType == kind
    assert ("PrivateRecordUID" in record) == (kind == "PRIVATE")


def test_objects_without_patient_stand_at_the_root(tmp_path: Path) -> None:
    """Table F.4-1: a hanging protocol is nobody's."""
    more = element(0x00720008, "LO", "MAKER") + element(0x0072000C, "SQ", item(element(0x00080060, "CS", "CT")))
    hanging = describe(member(tmp_path, more, sop_class="1.2.840.10008.5.1.4.38.1", instance="1.5"))
    image = describe(member(tmp_path))
    assert types(hanging, image) == ["HANGING PROTOCOL", "PATIENT", "STUDY", "SERIES", "IMAGE"]
    record = listed(hanging)[0]
    assert (record.HangingProtocolCreator, record.HangingProtocolDefinitionSequence[0].Modality) == ("MAKER", "CT")
    assert list(record.HangingProtocolUserIdentificationCodeSequence) == []
    implant = describe(member(tmp_path, sop_class="1.2.840.10008.5.1.4.44.1", instance="1.6"))
    assert len(listed(implant)[0].ProcedureTypeCodeSequence) == 1
    assert apart([hanging, image, implant]) == ((hanging, image, implant),)


def test_every_standard_storage_class_has_a_record_type() -> None:
    """DIR-6: none of those known to pydicom is left to guessing, and no retired type is written (DIR-7)."""
    storage = {
        uid
        for uid, (_, kind, _, _, keyword) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in keyword and STORAGE in uid
    }
    assert storage
    assert storage - records.TYPES.keys() == set()
    assert set(records.TYPES.values()) == set(records.LEAVES)
    retired = {"MRDR", "OVERLAY", "CURVE", "MODALITY LUT", "VOI LUT", "PRINT", "HL7 STRUC DOC"}
    assert not retired & set(records.LEAVES)


@pytest.mark.parametrize("sop_class", sorted(records.TYPES))
def test_every_class_gives_a_record_with_all_type_1_keys(sop_class: str, tmp_path: Path) -> None:
    """DIR-9, DIR-10: from an object that has nothing but its UIDs."""
    record = listed(describe(member(tmp_path, sop_class=sop_class)))[-1]
    kind = records.TYPES[sop_class]
    assert record.DirectoryRecordType == kind
    for key in records.LEAVES[kind]:
        assert (key.tag in record) == (key.type != "1C")
        if key.tag in record:
            assert key.type == "2" or not record[key.tag].is_empty
            assert key.vr.decode() == record[key.tag].VR
    tags = [element.tag for element in record]
    assert tags == sorted(tags)


def test_the_size_is_known_before(tmp_path: Path) -> None:
    """R22: counted entry by entry, supplied IDs and padding included."""
    entries = [
        describe(member(tmp_path, patient=patient, study=study, series=study + ".7", instance=f"1.7.{number}"))
        for number, (patient, study) in enumerate(
            [("ODD", "1.1"), ("", "1.2"), ("", "1.3"), ("ODD", "1.1"), ("", "1.2")]
        )
    ]
    tally = Tally()
    for count, entry in enumerate(entries, 1):
        tally.add(entry)
        assert (
            directory.size_of(tally)
            == directory.size_of(tally.copy())
            == len(encode(FileSet(tuple(entries[:count])), UID))
        )


def person(folder: Path, number: int, name: str = "", issuer: str = "", born: str = "", **uids: str) -> Entry:
    """Describe an object of a person with the Patient ID P1."""
    values = ((0x00100010, "PN", name), (0x00100021, "LO", issuer), (0x00100030, "DA", born))
    more = b"".join(element(tag, vr, value) for tag, vr, value in values if value)
    uids = {"study": f"1.{number}", "series": f"1.{number}.1", **uids}
    return describe(member(folder, more, instance=f"1.9.{number}", **uids))


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ({}, {}, True),
        ({"issuer": "A"}, {"issuer": "B"}, False),
        ({"issuer": "A"}, {"issuer": ""}, True),
        ({"born": "19700101"}, {"born": "19800101"}, False),
        ({"name": "DOE^JANE"}, {"name": "Doe^J."}, True),
        ({"name": "DOE^JANE"}, {"name": "ROE^RICHARD"}, False),
        ({"name": "DOE^JANE"}, {"name": ""}, True),
    ],
)
def test_two_people_with_one_patient_id_are_kept_apart(
    one: dict[str, str], other: dict[str, str], together: bool, tmp_path: Path
) -> None:
    """FSC-7: neither may stand under the other's name."""
    entries = person(tmp_path, 1, **one), person(tmp_path, 2, **other)
    assert apart(entries) == ((entries,) if together else ((entries[0],), (entries[1],)))


def test_what_a_nameless_object_leaves_open_is_settled_by_the_next(tmp_path: Path) -> None:
    """FSC-7: the person is known by all that was said, not by the first object alone."""
    entries = [person(tmp_path, 1), person(tmp_path, 2, born="19700101"), person(tmp_path, 3, born="19800101")]
    assert apart(entries) == (tuple(entries[:2]), (entries[2],))


def test_one_series_of_two_studies_and_one_instance_twice_are_kept_apart(tmp_path: Path) -> None:
    """DIR-11: a Series Instance UID occurs in one SERIES record only."""
    first = person(tmp_path, 1)
    series = person(tmp_path, 2, series="1.1.1")
    twice = person(tmp_path, 1)
    assert apart([first, series]) == ((first,), (series,))
    assert apart([first, twice, series]) == ((first,), (twice,), (series,))


def test_an_object_cut_behind_its_header_is_described(tmp_path: Path) -> None:
    """Only the header is read: pixel data that never ends is somebody else's finding."""
    for syntax in (EXPLICIT, IMPLICIT):
        more = element(0x00200013, "IS", "7", syntax) + element(0x7FE00010, "OW", b"", syntax, length=1 << 20)
        assert listed(describe(member(tmp_path, more, syntax=syntax)))[-1].InstanceNumber == 7


def test_a_sequence_of_undefined_length_is_copied(tmp_path: Path) -> None:
    """PS3.5 7.5: delimited by items of its own."""
    code = item(element(0x00080104, "LO", "title") + element(0x00081199, "SQ", item()), defined=False)
    sequence = element(0x0040A043, "SQ", code + sequence_end(), length=0xFFFFFFFF)
    document = listed(describe(member(tmp_path, sequence, sop_class=SR)))[-1]
    assert document.ConceptNameCodeSequence[0].CodeMeaning == "title"
    assert len(document.ConceptNameCodeSequence[0]) == 1


def test_file_ids_are_counters() -> None:
    """P10-10, P10-11, P10-13: eight characters of the set, no meaning, all the same length."""
    assert [file_id(index) for index in (0, 9, 2999)] == ["IM000001", "IM000010", "IM003000"]
