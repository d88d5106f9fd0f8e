"""Real files and real mails, those that stray included: what each must come to."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
import pytest

from gateway.config import Limits
from gateway.core.coercion import Coercion, Rule
from gateway.core.reader import read_to
from gateway.edges.worker import Workers
from gateway.model import Reading, Severity, Span
from gateway.stages import receive
from tests.samples import content, corpus, mail, part, reading

CORPUS = corpus()
pytestmark = pytest.mark.skipif(CORPUS is None, reason="the corpus of real files is not beside the project")
ROOT = CORPUS or Path()

HARMLESS = {
    *("meta-instance", "meta-incomplete", "meta-length", "no-patient-id", "zero-led-uid", "trailing-padding"),
    "preamble-in-use",
}

HELD_THOUGH_A_PACS_TOOK_IT = {
    "dicom/pydicom-data/bad_sequence.dcm": "invalid-uid",  # hashes in place of UIDs
    "dicom/pydicom/MR_truncated.dcm": "truncated-data-set",  # half an image is no image
    "dicom/pydicom/image_dfl.dcm": "odd-length",  # taken when the sender pads it, as PS3.5 A.5 asks
    "dicom/pydicom-data/JLSL_08_07_0_1F.dcm": "no-study",
    "dicom/pydicom-data/JLSL_16_15_1_1F.dcm": "no-study",
    "dicom/pydicom/JPEGLSNearLossless_08.dcm": "no-study",
    "dicom/pydicom/JPEGLSNearLossless_16.dcm": "no-study",
    "dicom/pydicom/SC_rgb_jls_lossy_line.dcm": "no-study",
    "dicom/pydicom/SC_rgb_jls_lossy_sample.dcm": "no-study",
}
"""P10-7 asks for more than the most patient of them."""


CHANGED = {0x00080050, 0x00100020, 0x00100021, 0x04000561, 0x00080000, 0x00100000, 0x04000000}
"""What a rule changes, and the group lengths that follow."""


def manifest() -> list[dict[str, str]]:
    """Return the rows of the manifest whose files are there."""
    if CORPUS is None:
        return []
    with (ROOT / "MANIFEST.tsv").open(encoding="utf-8", newline="") as rows:
        return [
            row
            for row in csv.DictReader(rows, delimiter="\t", quoting=csv.QUOTE_NONE)
            if (ROOT / row["path"]).is_file()
        ]


ROWS = manifest()
DICOM = [row for row in ROWS if row["path"].startswith("dicom/")]
COMPOSED = sorted(ROOT.glob("composed/*.eml")) if CORPUS else []
OPEN = [path for path in COMPOSED if not path.name.startswith("o7-")]


@pytest.mark.parametrize("path", OPEN, ids=lambda path: path.name)
def test_composed_mails_come_to_what_is_expected(path: Path, tmp_path: Path) -> None:
    """Every instance with its hashes; a DICOMDIR is never one of them."""
    result = reading(tmp_path, path.read_bytes())
    objects: list[dict[str, Any]] = json.loads(path.with_suffix("").with_suffix(".expect.json").read_text())["objects"]
    expected = {(one["sop_instance"], one["sha256_file"], one["sha256_dataset"]) for one in objects if one["store"]}
    found = {(one.sop_instance, one.sha256, one.data_set_sha256) for one in result.instances if not one.held}
    assert found == expected
    assert (result.dicomdir is not None) == any(one["is_dicomdir"] for one in objects)


@pytest.mark.parametrize("number", range(1, 6))
def test_fragments_of_a_real_sender_are_known(number: int, tmp_path: Path) -> None:
    """They came in another order."""
    message = (ROOT / f"composed/o5-mpack-partial/arrival{number}.eml").read_bytes()
    result = reading(tmp_path, message)
    assert result.kind == "partial"
    assert result.partial is not None
    assert 1 <= result.partial.number <= 5


@pytest.mark.parametrize("row", DICOM, ids=lambda row: row["path"])
def test_every_file_comes_out_or_a_finding_says_why_not(row: dict[str, str], tmp_path: Path) -> None:
    """R8: sha256 in is sha256 out. What a PACS took is not held, but for what P10-7 names."""
    data = (ROOT / row["path"]).read_bytes()
    result = reading(tmp_path, mail(part(data, "application/octet-stream")), instance=1 << 30)
    codes = {found.code for found in result.findings}
    if data[128:132] != b"DICM":
        assert not result.instances
    elif "DICOMDIR" in row["path"]:
        assert not result.instances
        assert result.dicomdir is not None or codes == {"directory-unreadable"}
    elif result.instances:
        (instance,) = result.instances
        assert instance.sha256 == hashlib.sha256(data).hexdigest()
        assert content(instance.file) == data
        assert instance.held is None or instance.held in codes
        if "0x0000" in (row["dcmtk_storescp_3.6.7(+xa)"], row["orthanc_1.10.1"]):
            assert instance.held == HELD_THOUGH_A_PACS_TOOK_IT.get(row["path"])
        if instance.held is None:
            assert codes <= HARMLESS
    else:
        assert [found for found in result.findings if found.severity is Severity.ERROR]


@pytest.mark.parametrize("row", DICOM, ids=lambda row: row["path"])
def test_values_are_those_that_pydicom_reads(row: dict[str, str], tmp_path: Path) -> None:
    """The oracle: class, instance, study, series and syntax of each file that is not held."""
    data = (ROOT / row["path"]).read_bytes()
    result = reading(tmp_path, part(data))
    taken = [instance for instance in result.instances if instance.held is None]
    if not taken:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    (instance,) = taken
    assert instance.sop_class == read.SOPClassUID
    assert instance.sop_instance == read.SOPInstanceUID
    assert instance.study == read.StudyInstanceUID
    assert instance.series == read.SeriesInstanceUID
    assert instance.transfer_syntax == read.file_meta.TransferSyntaxUID
    assert ("no-patient-id" in [found.code for found in result.findings]) == (not read.get("PatientID"))


def other_mails() -> list[Path]:
    """Return every file of the corpus that is, or could be taken for, a mail."""
    return [ROOT / row["path"] for row in ROWS if not row["path"].startswith(("dicom/", "composed/"))]


@pytest.mark.parametrize("folder", ["mail", "mail-dsn", "mail-smime", "mail-tnef"])
def test_no_other_mail_raises_or_takes_long(folder: str, tmp_path: Path) -> None:
    """R9: clients' habits, broken headers, bounces, sealed mail: none has DICOM inside, none looks like a study."""
    seen = 0
    for path in other_mails():
        if path.relative_to(ROOT).parts[0] == folder:
            begun = time.process_time()
            result = reading(tmp_path, path.read_bytes())
            assert time.process_time() - begun < 2, path
            assert result.instances == (), path
            seen += 1
    assert seen > 20


async def test_every_mail_is_read_by_a_worker_of_two_seconds_and_100_megabytes(tmp_path: Path) -> None:
    """R7, R9: the worker itself holds each to it; one that took more would end in a WorkerError."""
    rules = receive.rules(Limits())
    workers = Workers(1, memory=100 << 20, seconds=2)
    await workers.open()
    seen = 0
    try:
        for path in [*COMPOSED, *ROOT.glob("composed/*/*.eml"), *other_mails()]:
            message = Span(path, 0, path.stat().st_size)
            result = await workers.run(read_to, message, rules, tmp_path / "instances")
            assert isinstance(result, Reading), path
            seen += 1
    finally:
        await workers.close()
    assert seen > 700


def test_no_bounce_looks_like_a_study(tmp_path: Path) -> None:
    """AMB-37: reports and automatic replies of many systems."""
    bounces = [path for path in other_mails() if path.relative_to(ROOT).parts[0] == "mail-dsn"]
    kinds = [reading(tmp_path, path.read_bytes()).kind for path in bounces]
    assert "dicom" not in kinds
    assert kinds.count("report") >= 0.9 * len(kinds)


def test_returned_images_never_look_like_a_study(tmp_path: Path) -> None:
    """AMB-37: each real bounce with images in what it carries back."""
    image = (ROOT / "dicom/pydicom/CT_small.dcm").read_bytes()
    returned = b"Content-Type: message/rfc822\r\n\r\n" + mail(part(image))
    known = 0
    for path in other_mails():
        if path.relative_to(ROOT).parts[0] != "mail-dsn":
            continue
        head = path.read_bytes().replace(b"\r\n", b"\n").partition(b"\n\n")[0]
        fields = re.split(rb"\n(?![ \t])", head)
        kept = b"\n".join(field for field in fields if not re.match(rb"(?i)content-|mime-", field))
        kind = b"report" if b"multipart/report" in head.lower() else b"mixed"
        wrapped = (
            kept + b"\nContent-Type: multipart/" + kind + b"; boundary=outer\n\n--outer\n" + returned + b"\n--outer--\n"
        )
        result = reading(tmp_path, wrapped)
        assert (result.kind, bool(result.instances)) in (("report", False), ("dicom", True))
        known += result.kind == "report"
    assert known >= 125


def raw(read: pydicom.Dataset) -> dict[int, Any]:
    """Return what each element of a data set holds: its bytes where pydicom has not parsed them."""
    return {int(tag): read.get_item(tag).value for tag in read.keys()}  # noqa: SIM118  # iterating gives elements


@pytest.mark.parametrize("row", DICOM, ids=lambda row: row["path"])
def test_the_rules_of_a_route_change_nothing_else_in_a_real_file(row: dict[str, str], tmp_path: Path) -> None:
    """R8: pydicom reads the same elements, the original values are on record, dcmdump takes it."""
    data = (ROOT / row["path"]).read_bytes()
    plain = reading(tmp_path, mail(part(data)), instance=1 << 30)
    rules = Coercion(Rule("CLINIC-A", "A-", clear_accession=True), datetime(2026, 11, 23, tzinfo=UTC), "gw.example")
    result = reading(tmp_path, mail(part(data)), instance=1 << 30, coercion=rules)
    assert [one.part for one in result.instances] == [one.part for one in plain.instances]
    for one in result.instances:
        assert one.sha256 == hashlib.sha256(data).hexdigest()
        if not one.changed:
            assert one.held is not None
            assert content(one.file) == data
            continue
        assert one.held == plain.instances[0].held
        made = content(one.file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before, after = (pydicom.dcmread(io.BytesIO(file), force=True) for file in (data, made))
            old, new = raw(before), raw(after)
        assert {tag: old[tag] for tag in old.keys() - CHANGED} == {tag: new[tag] for tag in new.keys() - CHANGED}
        assert new[0x00100021].strip() == b"CLINIC-A"
        record = raw(after.OriginalAttributesSequence[-1].ModifiedAttributesSequence[0])
        assert {tag: record[tag] or b"" for tag in record} == {tag: old.get(tag) or b"" for tag in record}
        if "patient_id" in one.changed:
            assert new[0x00100020].strip() == b"A-" + old[0x00100020].strip()
        assert dumped(made, tmp_path) or not dumped(data, tmp_path)


def dumped(file: bytes, folder: Path) -> bool:
    """Tell whether dcmdump takes a file; where it is not installed, it takes all."""
    program = shutil.which("dcmdump")
    if program is None:
        return True
    path = folder / "file.dcm"
    path.write_bytes(file)
    return subprocess.run([program, "-q", path], check=False, stdout=subprocess.DEVNULL).returncode == 0
