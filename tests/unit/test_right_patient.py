"""The File-set Reader and the patient: who is compared, what is held, what is changed on the way (promise 5)."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
import pytest

from gateway.core import coercion
from gateway.core.coercion import Coercion, Rule
from gateway.model import Reading, Severity
from tests.samples import (
    BIG_ENDIAN,
    DEFLATED,
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

MOMENT = datetime(2026, 11, 23, 12, tzinfo=UTC)
ORDERS = Coercion(Rule("CLINIC-A", "A-", clear_accession=True), MOMENT, "gw.example", "clinic-a")
PIXELS = os.urandom(300_000)


def image(number: int = 1, *, syntax: str = EXPLICIT, study: str = "1.2.3", **values: str) -> bytes:
    """A file of a patient, in the order of its tags."""
    given = {"id": "P1", "name": "Doe^John", "born": "19700101"} | values
    names = ((0x00100010, "PN", "name"), (0x00100020, "LO", "id"), (0x00100021, "LO", "issuer"))
    uid = f"1.2.3.{number}"
    head = data_set(instance=uid, study=study, patient="", syntax=syntax)
    body = b"".join(element(tag, vr, given[key], syntax) for tag, vr, key in names if key in given)
    body += element(0x00100030, "DA", given["born"], syntax)
    at = head.index(element(0x0020000D, "UI", study, syntax) if study else element(0x0020000E, "UI", "1.2.3.1", syntax))
    data = head[:at] + body + head[at:] + element(0x7FE00010, "OW", PIXELS, syntax)
    return dicom_file(data, meta(instance=uid, syntax=syntax), syntax=syntax)


def read(folder: Path, *files: bytes, **rules: Any) -> Reading:
    return reading(folder, mail(*map(part, files)), **rules)


# The same patient


def test_a_mismatch_holds_all_of_that_id_and_nobody_else(tmp_path: Path) -> None:
    """AMB-25: nobody can say which of them is right; the others go on."""
    files = (image(1), image(2, name="Roe^Jane"), image(3, id="P2"), image(4))
    result = read(tmp_path, *files)
    assert [one.held for one in result.instances] == ["patient-mismatch", "patient-mismatch", None, "patient-mismatch"]
    assert [found.where for found in result.findings if found.code == "patient-mismatch"] == ["1", "2", "4"]
    assert "several-patients" in codes(result)


@pytest.mark.parametrize("rule", ["accept", "urgent"])
def test_a_mismatch_may_be_stored_with_a_warning(tmp_path: Path, rule: str) -> None:
    """By the route's word, or because nobody can wait."""
    result = read(tmp_path, image(1), image(2, born="19700102"), patient_mismatch=rule)
    assert [one.held for one in result.instances] == [None, None]
    told = [
        found for found in result.findings if found.code == f"patient-mismatch-{rule}".replace("accept", "accepted")
    ]
    assert [found.severity for found in told] == [Severity.WARNING] * 2


def test_several_patients_are_normal(tmp_path: Path) -> None:
    """A remark, and no more; one study of two IDs is worth a look."""
    result = read(tmp_path, image(1), image(2, id="P2", study="1.2.4", name="Roe^Jane"))
    assert codes(result) == ["several-patients"]
    result = read(tmp_path, image(1), image(2, id="P2", name="Roe^Jane"))
    assert codes(result) == ["several-patients", "study-of-several-patients"]
    assert result.findings[-1].where == "2"
    assert {one.held for one in result.instances} == {None}


def test_one_name_written_in_two_ways_is_no_finding(tmp_path: Path) -> None:
    """Case, carets, padding."""
    result = read(tmp_path, image(1), image(2, name="DOE^JOHN^^"))
    assert result.findings == ()


def test_a_name_nobody_can_read_is_said(tmp_path: Path) -> None:
    """No mismatch is made up."""
    result = read(tmp_path, image(1), image(2, name="Dö^John"))
    assert [(found.code, found.where) for found in result.findings] == [("unknown-characters", "2")]


def test_what_is_held_already_is_not_compared(tmp_path: Path) -> None:
    """It goes nowhere; nothing it says harms the others."""
    result = read(tmp_path, image(1), image(2, name="Roe^Jane", study=""))
    assert [one.held for one in result.instances] == [None, "no-study"]


def test_two_issuers_become_one_by_the_rule(tmp_path: Path) -> None:
    """What the PACS will see decides: one ID of one issuer."""
    files = (image(1, issuer="A"), image(2, issuer="B", name="Roe^Jane"))
    assert {one.held for one in read(tmp_path, *files).instances} == {None}
    assert {one.held for one in read(tmp_path, *files, coercion=ORDERS).instances} == {"patient-mismatch"}


# The rules


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED])
def test_the_rules_are_applied_and_the_hashes_are_of_what_came(tmp_path: Path, syntax: str) -> None:
    """R8, R11: the same instance is known by what came, whatever the route made of it."""
    files = [image(number, syntax=syntax) for number in (1, 2, 3)]
    result = read(tmp_path, *files, coercion=ORDERS)
    plain = read(tmp_path, *files)
    result = read(tmp_path, *files, coercion=ORDERS)
    assert codes(result) == ["patient-rewritten"]
    for one, other, file in zip(result.instances, plain.instances, files, strict=True):
        assert one.sha256 == hashlib.sha256(file).hexdigest()
        assert replace(one, file=other.file, changed=(), attached=None) == other
        assert (one.changed, one.size) == (("patient_id", "issuer"), len(file))
        found = pydicom.dcmread(io.BytesIO(content(one.file)))
        assert (found.PatientID, found.IssuerOfPatientID, found.PatientName) == ("A-P1", "CLINIC-A", "Doe^John")
        assert found.PixelData == PIXELS
        (record,) = found.OriginalAttributesSequence
        assert record.ModifiedAttributesSequence[0].PatientID == "P1"
        assert not record.ModifiedAttributesSequence[0].IssuerOfPatientID
        assert (record.ModifyingSystem, record.SourceOfPreviousValues) == ("gw.example", "clinic-a")
        assert record.AttributeModificationDateTime == "20261123120000.000000+0000"


def test_the_pixels_stay_where_they_are(tmp_path: Path) -> None:
    """Only the head of a file moves: the end of each lies where it was written."""
    result = read(tmp_path, image(1), image(2), coercion=ORDERS)
    file = len(image(1))
    assert [one.file.end for one in result.instances] == [
        coercion.ROOM + file,
        2 * (coercion.ROOM + file),
    ]


def test_what_cannot_be_changed_is_held_as_it_came(tmp_path: Path) -> None:
    """A person decides about a signature; the others go on."""
    signed = data_set(instance="1.2.3.9", more=element(0xFFFAFFFA, "SQ", b""))
    signed = dicom_file(signed, meta(instance="1.2.3.9"))
    result = read(tmp_path, signed, image(1), coercion=ORDERS)
    first, second = result.instances
    assert (first.held, first.changed, content(first.file)) == ("signed-instance", (), signed)
    assert (second.held, second.changed) == (None, ("patient_id", "issuer"))
    assert ("signed-instance", "1") in [(found.code, found.where) for found in result.findings]


def test_what_is_held_for_something_else_is_changed_all_the_same(tmp_path: Path) -> None:
    """A person may release it, and it is as foreign as the others."""
    result = read(tmp_path, image(1), image(1, name="Roe^Jane"), coercion=ORDERS)
    assert [(one.held, one.changed) for one in result.instances] == [
        (None, ("patient_id", "issuer")),
        ("reused-uid", ("patient_id", "issuer")),
    ]


def test_what_cannot_be_read_is_held_and_left_alone(tmp_path: Path) -> None:
    """Truncated: neither sent nor changed; one finding is enough."""
    result = read(tmp_path, image(1)[:-1000], coercion=ORDERS)
    (one,) = result.instances
    assert (one.held, one.changed, codes(result)) == ("truncated-data-set", (), ["truncated-data-set"])


def test_a_rule_that_changes_nothing_leaves_no_trace(tmp_path: Path) -> None:
    """No finding, no record, the same bytes."""
    orders = replace(ORDERS, rule=Rule(clear_accession=True))
    result = read(tmp_path, image(1), image(2, syntax=DEFLATED), coercion=orders)
    assert [content(one.file) for one in result.instances] == [image(1), image(2, syntax=DEFLATED)]
    assert result.findings == ()


def test_a_directory_is_no_instance_to_change(tmp_path: Path) -> None:
    """A DICOMDIR is checked and never sent."""
    result = read(tmp_path, dicomdir([("IMG/1", "1.2.3.1")]), image(1), coercion=ORDERS)
    assert len(result.instances) == 1
    assert result.dicomdir is not None


def test_a_bare_data_set_is_changed_too(tmp_path: Path) -> None:
    """AMB-2: the route that takes it changes it."""
    data = data_set(syntax=IMPLICIT)
    result = read(tmp_path, data, coercion=ORDERS, bare_dicom=True)
    (one,) = result.instances
    assert one.changed == ("patient_id", "issuer")
    assert element(0x00100020, "LO", "A-P1", IMPLICIT) in content(one.file)
    assert one.sha256 == hashlib.sha256(data).hexdigest()


def test_no_value_of_a_patient_gets_into_what_is_told(tmp_path: Path) -> None:
    """R35: neither in findings nor in instances."""
    canary = {"id": "CANARYID", "name": "CANARY^NAME", "issuer": "CANARYISSUER"}
    result = read(tmp_path, image(1, **canary), image(2, **canary | {"name": "OTHER^CANARY"}), coercion=ORDERS)
    assert "patient-mismatch" in codes(result)
    assert "CANARY" not in repr(result)
