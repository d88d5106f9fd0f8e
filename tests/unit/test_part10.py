"""DICOM files held against PS3.10 and P10-7."""

from __future__ import annotations

import struct

import pytest

from gateway.core import part10
from gateway.core.dataset import Problem, Stored
from tests.samples import CT, DEFLATED, DIRECTORY, IMPLICIT, data_set, dicom_file, element, meta


def judged(file: bytes) -> part10.Judged:
    """Judge a whole file."""
    source = Stored(lambda offset, size: file[offset : offset + size], file, len(file))
    return part10.judge(part10.read_meta(file), source, len(file), 1 << 24)


def test_a_proper_file_has_nothing_to_remark() -> None:
    """Its facts are those of its data set."""
    result = judged(dicom_file())
    assert result.codes == ()
    assert result.held is None
    assert result.is_identified
    assert not result.is_directory
    assert (result.sop_class, result.sop_instance, result.study, result.series) == (CT, "1.2.3.4", "1.2.3", "1.2.3.1")


def test_only_the_prefix_makes_a_file_dicom() -> None:
    """P10-2: whatever the preamble holds."""
    assert part10.is_marked(b"MZ" * 64 + b"DICM")
    assert not part10.is_marked(b"DICM" + bytes(128))
    assert not part10.is_marked(b"")


@pytest.mark.parametrize(
    ("preamble", "codes"),
    [
        (b"MZ\x90", ("executable-preamble",)),
        (b"\x7fELF", ("executable-preamble",)),
        (b"II*\0", ("preamble-in-use",)),
        (b"", ()),
    ],
)
def test_what_is_in_the_preamble_is_noted(preamble: bytes, codes: tuple[str, ...]) -> None:
    """P10-9: a program in front of an image. The image goes on, since no preamble crosses DIMSE."""
    result = judged(preamble.ljust(128, b"\0") + dicom_file()[128:])
    assert (result.codes, result.held) == (codes, None)


def test_a_data_set_of_odd_length_is_held() -> None:
    """PS3.5 7.1.1: DCMTK aborts at it and Orthanc says nothing more; an odd element alone goes through."""
    odd = element(0x00104000, "LT", "")[:-2] + b"\3\0abc"
    result = judged(dicom_file(data_set(more=odd)))
    assert (result.codes, result.held) == (("odd-length",), "odd-length")
    assert judged(dicom_file(data_set(more=odd + odd))).codes == ()
    deflated = dicom_file(syntax=DEFLATED)
    assert [judged(deflated + bytes(more)).held for more in range(3)] == [None, "odd-length", None]
    directory = part10.judge(part10.Meta(DIRECTORY, "1.2", IMPLICIT, 0, ()), Stored(lambda _a, _b: b"", b"", 0), 1, 0)
    assert directory.held is None


@pytest.mark.parametrize("length", [0, 10, 999_999])
def test_a_wrong_group_length_is_told_by_tags(length: int) -> None:
    """AMB-3: the data set begins where group 0002 ends."""
    result = judged(dicom_file(header=meta(length=length)))
    assert result.codes == ("meta-length",)
    assert result.held is None


def test_a_missing_group_length_is_told_by_tags() -> None:
    """dicom/pydicom/no_meta_group_length.dcm of the corpus."""
    assert judged(dicom_file(header=meta()[12:])).codes == ("meta-length",)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        meta()[:-30],
        meta()[:20],
        b"\2\0\2\0\x1a\0\0\0" + b"1" * 26,
        meta() + b"\2\0\1\1OB\0\0",
        meta() + b"\2\0\1\1SH\xff\xff",
    ],
)
def test_a_meta_information_that_cannot_be_parsed_is_damaged(header: bytes) -> None:
    """Cut, in Implicit VR, or not there at all."""
    with pytest.raises(Problem, match="damaged-meta"):
        part10.read_meta(bytes(128) + b"DICM" + header)


@pytest.mark.parametrize(
    ("file", "codes", "held"),
    [
        (dicom_file(header=meta(syntax="")), ("no-transfer-syntax",), "no-transfer-syntax"),
        (dicom_file(header=meta(sop_class="")), ("meta-incomplete",), None),
        (dicom_file(header=meta(instance="")), ("meta-incomplete",), None),
        (dicom_file(header=meta(instance="9.9")), ("meta-instance",), None),
        (dicom_file(header=meta(sop_class="9.9")), ("sop-class-mismatch",), "sop-class-mismatch"),
        (dicom_file(data_set(sop_class="")), ("no-sop-class",), "no-sop-class"),
        (dicom_file(data_set(instance="")), ("no-sop-instance",), "no-sop-instance"),
        (dicom_file(data_set(study="")), ("no-study",), "no-study"),
        (dicom_file(data_set(series="")), ("no-series",), "no-series"),
        (dicom_file(data_set(patient="")), ("no-patient-id",), None),
        (dicom_file(data_set(patient="  ")), ("no-patient-id",), None),
        (dicom_file(data_set(study="1.2.a")), ("invalid-uid",), "invalid-uid"),
        (dicom_file(header=meta(syntax="explicit")), ("invalid-uid",), "invalid-uid"),
        (dicom_file(data_set(study="1.2\0.3")), ("invalid-uid",), "invalid-uid"),
        (dicom_file(data_set(study="1..2")), ("invalid-uid",), "invalid-uid"),
        (dicom_file(data_set(study="1." + "2" * 63)), ("invalid-uid",), "invalid-uid"),
        (dicom_file(data_set(study="1.2.03")), ("zero-led-uid",), None),
        (dicom_file(data_set(study="1.2.0 ")), (), None),
        (dicom_file(data_set() + bytes(4)), ("trailing-padding",), None),
        (dicom_file(data_set()[:-1]), ("truncated-data-set",), "truncated-data-set"),
        (dicom_file(data_set(syntax=IMPLICIT)), ("wrong-transfer-syntax",), "wrong-transfer-syntax"),
        (dicom_file(header=meta(syntax=IMPLICIT)), ("truncated-data-set",), "truncated-data-set"),
        (dicom_file(syntax=DEFLATED), (), None),
        (dicom_file(header=meta(syntax=DEFLATED)), ("damaged-data-set",), "damaged-data-set"),
    ],
)
def test_each_way_to_stray_has_its_code(file: bytes, codes: tuple[str, ...], held: str | None) -> None:
    """P10-7: what harms is held, what does not goes on with a finding."""
    result = judged(file)
    assert (result.codes, result.held) == (codes, held)


def test_a_file_without_any_name_is_not_identified() -> None:
    """Nothing could be held under its name."""
    result = judged(dicom_file(data_set(sop_class="", instance=""), meta(sop_class="", instance="")))
    assert not result.is_identified


def test_a_damaged_file_is_held_under_the_name_its_meta_information_gives() -> None:
    """The data set may say more, but nobody can vouch for it."""
    result = judged(dicom_file(data_set()[:-1], meta(instance="5.5")))
    assert (result.sop_instance, result.study) == ("5.5", "")


def test_a_directory_is_known_by_its_class() -> None:
    """PS3.10 8.6; it has no study and needs none."""
    result = judged(dicom_file(element(0x00041130, "CS", "SET"), meta(DIRECTORY)))
    assert result.is_directory
    assert result.codes == ()


def test_the_first_of_repeated_elements_holds() -> None:
    """In group 0002 as in the data set."""
    twice = data_set(more=element(0x00080018, "UI", "6.6"))
    header = meta() + element(0x00020010, "UI", IMPLICIT)
    result = judged(dicom_file(twice, header))
    assert (result.sop_instance, result.codes) == ("1.2.3.4", ("meta-length",))


def test_a_group_length_of_another_size_is_none() -> None:
    """Two bytes are no UL."""
    header = element(0x00020000, "US", struct.pack("<H", 9)) + meta()[12:]
    assert judged(dicom_file(header=header)).codes == ("meta-length",)
