"""Asking a PACS what it has: C-FIND at IMAGE level of the Study Root model (PS3.4 Annex C).

"Absent" makes an instance be sent again, so it is said only of one that was asked for alone and not found.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Final, NamedTuple

from gateway.core import dataset
from gateway.core.contexts import Pair
from gateway.core.dimse import ProtocolError

SOP_CLASS: Final = "1.2.840.10008.5.1.4.1.2.2.1"
"""Study Root Query/Retrieve Information Model - FIND."""

CONTEXT: Final[Pair] = (SOP_CLASS, dataset.IMPLICIT)
"""What is proposed: every peer must support the default transfer syntax (PS3.5 10.1)."""

BATCH: Final = 50
"""UIDs in one query: a list of some 3 kB, which every peer takes that takes lists at all (PS3.4 C.2.2.2.2)."""

_LEVEL: Final = 0x00080052
_INSTANCE: Final = 0x00080018
_STUDY: Final = 0x0020000D
_SERIES: Final = 0x0020000E
_ELEMENT: Final = struct.Struct("<HHL")


class Presence(StrEnum):
    """Whether a PACS has an instance.

    Attributes:
        PRESENT: It showed it.
        ABSENT: Asked for this one alone, it said that there is none.
        UNKNOWN: It was not asked, or gave no answer that can be trusted.
    """

    PRESENT = "present"
    ABSENT = "absent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Findings:
    """What a peer said that it has.

    Attributes:
        presence: One answer for each SOP Instance UID that was asked for.
        reason: Why some are unknown, for a person; empty when every query was answered.
    """

    presence: Mapping[str, Presence]
    reason: str = ""


class Wanted(NamedTuple):
    """An instance that is looked for, by the unique keys of each level (PS3.4 C.6.2.1)."""

    study: str
    series: str
    sop_instance: str


class Query(NamedTuple):
    """One query: instances of one series."""

    study: str
    series: str
    sop_instances: tuple[str, ...]


def queries(wanted: Sequence[Wanted], most: int = BATCH) -> Iterator[Query]:
    """Put instances of one series together; those whose study or series cannot be named are left out."""
    known = sorted({one for one in wanted if all(uid and uid.isascii() for uid in one)})
    for (study, series), group in groupby(known, lambda one: (one.study, one.series)):
        instances = [one.sop_instance for one in group]
        for start in range(0, len(instances), most):
            yield Query(study, series, tuple(instances[start : start + most]))


def identifier(query: Query) -> bytes:
    """Write the identifier of a C-FIND-RQ, in Implicit VR Little Endian."""
    return b"".join(
        _element(tag, value)
        for tag, value in (
            (_INSTANCE, "\\".join(query.sop_instances)),
            (_LEVEL, "IMAGE "),
            (_STUDY, query.study),
            (_SERIES, query.series),
        )
    )


def _element(tag: int, value: str) -> bytes:
    padded = value.encode("ascii")
    padded += bytes(len(padded) % 2)
    return _ELEMENT.pack(tag >> 16, tag & 0xFFFF, len(padded)) + padded


def sop_instance(match: bytes) -> str:
    """Read the SOP Instance UID of a match; empty when it has none.

    Raises:
        ProtocolError: The match is no data set.
    """
    whole = dataset.Stored(lambda offset, size: match[offset : offset + size], match, len(match))
    try:
        walked = dataset.walk(whole, 0, dataset.IMPLICIT, frozenset({_INSTANCE}))
    except dataset.Problem:
        raise ProtocolError("invalid match") from None
    return next((found.value.decode("latin-1").strip("\0 ") for found in walked.found), "")
