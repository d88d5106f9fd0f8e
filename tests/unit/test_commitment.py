"""What a storage commitment asks for, and how reports are read, those that lie or are broken among them."""

from __future__ import annotations

from io import BytesIO

import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from gateway.core import commitment, contexts
from gateway.core.commitment import Reference
from gateway.core.dimse import ProtocolError

CT = "1.2.840.10008.5.1.4.1.1.2"


def written(*, transaction: str = "1.2.9", explicit: bool = False, **lists: list[tuple[str, int | None]]) -> bytes:
    """Write event information; each instance with its failure reason, if any."""
    information = Dataset()
    if transaction:
        information.TransactionUID = transaction
    for keyword, references in lists.items():
        items = []
        for instance, reason in references:
            item = Dataset()
            item.ReferencedSOPClassUID = CT
            item.ReferencedSOPInstanceUID = instance
            if reason is not None:
                item.FailureReason = reason
            items.append(item)
        setattr(information, keyword, items)
    sink = DicomBytesIO()
    sink.is_implicit_VR, sink.is_little_endian = not explicit, True
    write_dataset(sink, information)
    return sink.getvalue()


def test_a_request_names_the_transaction_and_each_instance() -> None:
    """SC-1: in the syntax that is proposed."""
    references = [Reference(CT, "1.2.3"), Reference(CT, "1.2.34")]
    information = read_dataset(
        BytesIO(commitment.action_information("1.2.9", references)), is_implicit_VR=True, is_little_endian=True
    )
    assert information.TransactionUID == "1.2.9"
    assert [item.ReferencedSOPInstanceUID for item in information.ReferencedSOPSequence] == ["1.2.3", "1.2.34"]
    assert [item.ReferencedSOPClassUID for item in information.ReferencedSOPSequence] == [CT, CT]


@pytest.mark.parametrize("explicit", [False, True])
def test_a_report_tells_what_is_committed_from_what_failed(*, explicit: bool) -> None:
    """SC-2: an instance that is in both lists failed; one without a reason failed, too."""
    content = written(
        explicit=explicit,
        ReferencedSOPSequence=[("1.2.3", None), ("1.2.4", None)],
        FailedSOPSequence=[("1.2.4", 0x0112), ("1.2.5", None)],
    )
    syntax = contexts.EXPLICIT if explicit else contexts.IMPLICIT
    report = commitment.read_report(commitment.SOME_FAILED, content, syntax)
    assert report.transaction == "1.2.9"
    assert report.committed == {"1.2.3"}
    assert report.failed == {"1.2.4": 0x0112, "1.2.5": commitment.UNSAID}


def test_the_lists_decide_and_not_the_event_type() -> None:
    """SC-4: success with a list of failures is no success for those."""
    content = written(FailedSOPSequence=[("1.2.4", 0x0213)])
    assert commitment.read_report(commitment.ALL_COMMITTED, content).failed == {"1.2.4": 0x0213}


BROKEN = {
    "event type": (3, written(ReferencedSOPSequence=[("1.2.3", None)])),
    "no transaction": (1, written(transaction="", ReferencedSOPSequence=[("1.2.3", None)])),
    "long transaction": (1, written(ReferencedSOPSequence=[("1.2.3", None)]).replace(b"1.2.9\0", b"1.2.9\xff")),
    "no failures": (2, written(ReferencedSOPSequence=[("1.2.3", None)])),
    "no instance": (1, written(ReferencedSOPSequence=[("", None)])),
    "no data set": (1, b"\x08\0\x99\x11\xff\xff\xff\xff\xfe\xff\0\xe0"),
    "no sequence": (1, written() + b"\x08\0\x99\x11\x06\0\0\0abcdef"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_report_commits_nothing(case: str) -> None:
    """R12: it is answered as a failure, and never taken for good news."""
    event, content = BROKEN[case]
    with pytest.raises(ProtocolError):
        commitment.read_report(event, content)


def test_a_report_has_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many references, or a syntax nobody proposed."""
    content = written(ReferencedSOPSequence=[("1.2.3", None), ("1.2.4", None)])
    with pytest.raises(ProtocolError, match="syntax"):
        commitment.read_report(1, content, "1.2.840.10008.1.2.1.99")
    monkeypatch.setattr(commitment, "MOST", 1)
    with pytest.raises(ProtocolError, match="too many"):
        commitment.read_report(1, content)


def test_an_answer_says_whether_a_report_will_come() -> None:
    """SC-1: status 0 says only that."""
    assert commitment.Answer(0).requested
    assert not commitment.Answer(0x0110).requested
    assert not commitment.Answer(None).requested
