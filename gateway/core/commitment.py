"""Storage commitment: what is asked, and what a report says (PS3.4 Annex J).

Only a report of success obliges a PACS to keep an instance; a C-STORE status does not (SC-4). Reports come from
outside, by whatever association: reading one raises ProtocolError and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from gateway.core import dataset
from gateway.core.contexts import Pair
from gateway.core.dimse import ProtocolError

SOP_CLASS: Final = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model."""

SOP_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
"""Its one, well-known instance."""

CONTEXT: Final[Pair] = (SOP_CLASS, dataset.IMPLICIT)
"""What a requestor proposes: every peer must support the default transfer syntax (PS3.5 10.1)."""

REQUEST: Final = 1
"""Action Type ID: Request Storage Commitment (PS3.4 Table J.3-1)."""

ALL_COMMITTED: Final = 1
SOME_FAILED: Final = 2
"""Event Type IDs (PS3.4 Table J.3-2)."""

UNSAID: Final = 0x0110
"""Processing failure: taken for a Failure Reason that is missing or unreadable."""

REASONS: Final[Mapping[int, str]] = MappingProxyType(
    {
        0x0110: "processing failure",
        0x0112: "no such object instance",
        0x0119: "class-instance conflict",
        0x0122: "referenced SOP class not supported",
        0x0131: "duplicate transaction UID",
        0x0213: "resource limitation",
    }
)
"""Failure Reason (0008,1197), PS3.3 C.14.1.1. SC-5: 0112 means send it again, 0213 ask later, 0131 a new UID."""

MOST: Final = 100_000
"""References in one report at most."""

_CLASS: Final = 0x00081150
_INSTANCE: Final = 0x00081155
_TRANSACTION: Final = 0x00081195
_REASON: Final = 0x00081197
_FAILED: Final = 0x00081198
_REFERENCED: Final = 0x00081199


class Reference(NamedTuple):
    """An instance that commitment is asked for: its SOP Class UID and its SOP Instance UID."""

    sop_class: str
    sop_instance: str


@dataclass(frozen=True, slots=True)
class Report:
    """What an N-EVENT-REPORT says about one transaction (SC-2).

    Attributes:
        transaction: Transaction UID; dead from now on (SC-6).
        committed: SOP Instance UIDs that the PACS answers for.
        failed: Failure Reason by SOP Instance UID. One that is in both lists counts as failed.
    """

    transaction: str
    committed: frozenset[str]
    failed: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request for commitment.

    Attributes:
        status: The status of the N-ACTION; None when no valid response came: a report may come all the same.
        reports: What was reported on the same association, which may be about earlier transactions, too.
        refused: Why nothing was asked, as a code (``context-refused``); None when it was.
        comment: What went wrong when there is no status, as a PDU's name or a few words.
    """

    status: int | None
    reports: tuple[Report, ...] = ()
    refused: str | None = None
    comment: str = ""

    @property
    def requested(self) -> bool:
        """Whether the PACS said that it will report (SC-1: no more than that)."""
        return self.status == 0


def action_information(transaction: str, references: Sequence[Reference]) -> bytes:
    """Write the data set of a request, in Implicit VR Little Endian (PS3.4 Table J.3-1)."""
    items = []
    for reference in references:
        item = Dataset()
        item.ReferencedSOPClassUID = reference.sop_class
        item.ReferencedSOPInstanceUID = reference.sop_instance
        items.append(item)
    information = Dataset()
    information.TransactionUID = transaction
    information.ReferencedSOPSequence = items
    sink = DicomBytesIO()
    sink.is_implicit_VR, sink.is_little_endian = True, True
    write_dataset(sink, information)
    written: bytes = sink.getvalue()
    return written


def read_report(event: int, data_set: bytes, transfer_syntax: str = CONTEXT[1]) -> Report:
    """Read the event information of an N-EVENT-REPORT (PS3.4 Table J.3-2).

    The lists decide, not the event type: nothing that is in the list of failures is committed.

    Args:
        event: Event Type ID (0000,1002).
        data_set: As it came.
        transfer_syntax: What it is in.

    Raises:
        ProtocolError: It is no such report.
    """
    if event not in {ALL_COMMITTED, SOME_FAILED}:
        raise ProtocolError("unknown event type")
    try:
        information = _read(data_set, transfer_syntax)
        transaction = _uid(information, _TRANSACTION)
        failed = {_uid(item, _INSTANCE): _reason(item) for item in _items(information, _FAILED)}
        committed = frozenset(_uid(item, _INSTANCE) for item in _items(information, _REFERENCED))
    except ProtocolError:
        raise
    except Exception:  # noqa: BLE001  what the library raises on bytes it does not like is documented nowhere
        raise ProtocolError("invalid event information") from None
    if event == SOME_FAILED and not failed:
        raise ProtocolError("a failure without a list of failures")
    return Report(transaction, committed - failed.keys(), MappingProxyType(failed))


def _read(data_set: bytes, transfer_syntax: str) -> Dataset:
    if transfer_syntax not in {dataset.IMPLICIT, dataset.EXPLICIT}:
        raise ProtocolError("event information in another transfer syntax")
    return read_dataset(BytesIO(data_set), transfer_syntax == dataset.IMPLICIT, is_little_endian=True)


def _items(data_set: Dataset, tag: int) -> Sequence[Dataset]:
    if tag not in data_set:
        return ()
    items: Sequence[Dataset] = data_set[tag].value
    if len(items) > MOST:
        raise ProtocolError("too many references")
    return items


def _raw(data_set: Dataset, tag: int) -> bytes:
    # Unconverted: a library that judges values says so in warnings, which nobody reads.
    element: Any = data_set.get_item(tag) if tag in data_set else None
    return element.value if isinstance(element, RawDataElement) and isinstance(element.value, bytes) else b""


def _uid(data_set: Dataset, tag: int) -> str:
    value = _raw(data_set, tag).decode("ascii").strip("\0 ")
    if not 0 < len(value) <= 64:
        raise ProtocolError("event information without a UID")
    return value


def _reason(item: Dataset) -> int:
    value = _raw(item, _REASON)
    return int.from_bytes(value, "little") if len(value) == 2 else UNSAID
