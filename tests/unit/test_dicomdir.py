"""The DICOMDIR read and held against what came."""

from __future__ import annotations

import pytest

from gateway.core import dicomdir, part10
from gateway.core.dataset import Problem, Stored
from gateway.core.dicomdir import Reference, check
from tests.samples import data_set, dicom_file, element, item
from tests.samples import dicomdir as sample


def read(file: bytes) -> tuple[Reference, ...]:
    """Read a whole DICOMDIR."""
    meta = part10.read_meta(file)
    source = Stored(lambda offset, size: file[offset : offset + size], file, len(file))
    return dicomdir.read(source, meta.data_set, meta.transfer_syntax)


@pytest.mark.parametrize("defined", [True, False])
def test_references_are_read_from_the_records(defined: bool) -> None:
    """PATIENT records name no file."""
    file = sample([("IMG/IM1", "1.1"), ("IMG/IM2", "1.2")], defined=defined)
    assert read(file) == (Reference("IMG/IM1", "1.1"), Reference("IMG/IM2", "1.2"))


def test_references_inside_a_record_are_none() -> None:
    """An icon or a content sequence may repeat the tags."""
    inner = element(0x00081199, "SQ", item(element(0x00041500, "CS", "DEEP")))
    record = item(element(0x00041430, "CS", "IMAGE") + element(0x00041500, "CS", "TOP") + inner)
    assert read(dicom_file(element(0x00041220, "SQ", record))) == (Reference("TOP", ""),)


def test_a_directory_of_nothing_names_nothing() -> None:
    """dicom/pydicom/dicomdirtests/DICOMDIR-empty.dcm of the corpus."""
    assert read(dicom_file(data_set())) == ()


def test_a_damaged_directory_is_a_problem() -> None:
    """AMB-10: the caller goes by the parts."""
    with pytest.raises(Problem):
        read(sample([("IMG", "1.1")])[:-5])


@pytest.mark.parametrize(
    ("text", "label"),
    [("IMG\\im1.dcm", "IMG/IM1"), ("/a/b.c.d", "A/B"), ("x", "X"), ("", ""), ("../../etc/passwd", "../../ETC/PASSWD")],
)
def test_labels_are_compared_in_one_form(text: str, label: str) -> None:
    """AMB-5; never a path."""
    assert dicomdir.label(text) == label


@pytest.mark.parametrize(
    ("labels", "instances", "missing"),
    [
        (["IMG/IM1", "img\\im2.dcm"], [], ()),
        (["IM1.dcm", "im2"], [], ()),
        ([], ["1.1", "1.2"], ()),
        (["IM1"], ["1.9"], ("IMG/IM2",)),
        ([], [], ("IMG/IM1", "IMG/IM2")),
    ],
)
def test_a_file_came_by_its_name_or_its_instance(
    labels: list[str], instances: list[str], missing: tuple[str, ...]
) -> None:
    """MIM-8: id first, then name, and the SOP Instance UID says it surely."""
    result = check([Reference("IMG/IM1", "1.1"), Reference("IMG/IM2", "1.2")], labels, instances)
    assert (result.complete, result.missing) == (not missing, missing)


def test_long_file_ids_are_cut() -> None:
    """What a stranger writes there is not repeated at length."""
    result = check([Reference("A" * 10_000, "")], [], [""])
    assert result.complete
    result = check([Reference("A" * 10_000, "1")], [], [])
    assert len(result.missing[0]) == 71
