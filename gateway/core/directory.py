"""A DICOMDIR written (PS3.3 Annex F, PS3.10 8): the files of one file-set, described by directory records.

The header of each instance is walked once, and only as far as its keys lie. What was found is kept as the bytes of its
records, some hundred for each instance; the directory is put together from them without building a data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.model import Span


@dataclass(frozen=True, slots=True)
class Member:
    """A DICOM file that shall become part of a file-set.

    Attributes:
        sop_class: SOP Class UID (0008,0016).
        sop_instance: SOP Instance UID (0008,0018).
        study: Study Instance UID (0020,000D).
        series: Series Instance UID (0020,000E).
        transfer_syntax: Transfer Syntax UID (0002,0010).
        file: Its bytes, preamble included.
        data_set: Offset of the data set behind group 0002, counted from ``file.start``.
        sha256: Of the file, in hexadecimal; said in the head of its part when it is given (R23).
    """

    sop_class: str
    sop_instance: str
    study: str
    series: str
    transfer_syntax: str
    file: Span
    data_set: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Person:
    """Who an instance says its patient is, as raw bytes without padding. Patient data: never logged."""

    id: bytes = field(repr=False)
    issuer: bytes = field(repr=False)
    birth_date: bytes = field(repr=False)
    name: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """A member and what its directory records will say. Holds patient data: never logged.

    Attributes:
        member: The file.
        person: Its patient.
        records: The encoded keys of its PATIENT, STUDY and SERIES records and of its own; the Patient ID is not among
            them when the object has none.
        type: Directory Record Type (0004,1430) of its own record.
    """

    member: Member
    person: Person = field(repr=False)
    records: tuple[bytes, bytes, bytes, bytes] = field(repr=False)
    type: str


@dataclass(frozen=True, slots=True)
class FileSet:
    """Instances that travel together, with one DICOMDIR (FS-4). Each has a File ID: a counter, no meaning (P10-13).

    Attributes:
        entries: In the order of their File IDs.
    """

    entries: tuple[Entry, ...]


def describe(member: Member) -> Entry:
    """Read from an instance what its directory records need. Blocking: it reads some 64 KB of the file.

    The object is not touched; type 1 keys that it lacks are supplied in ASCII (DIR-9). A header that cannot be walked
    gives a record made of the member's own UIDs: nothing is left out of a mail for its DICOMDIR's sake.

    Raises:
        OSError: The file cannot be read.
    """
    raise NotImplementedError


def file_id(index: int) -> str:
    """Name the File ID of the member at an index: one component of eight characters (P10-10, P10-11, P10-13)."""
    raise NotImplementedError


def encode(file_set: FileSet, uid: str) -> bytes:
    """Encode the DICOMDIR of a file-set, as a whole file in Explicit VR Little Endian (FSC-5, FSC-6, DIR-1 to DIR-12).

    Args:
        file_set: Its members; none of its PATIENT records may share a Patient ID (see ``apart``).
        uid: The File-set UID (DIR-1).
    """
    raise NotImplementedError


def apart(entries: Sequence[Entry]) -> tuple[tuple[Entry, ...], ...]:
    """Keep apart what cannot share one DICOMDIR (FSC-7, DIR-11), in order. Usually everything can.

    Two people with one Patient ID, one study, series or instance of two patients: each goes to a file-set of its own.
    """
    raise NotImplementedError
