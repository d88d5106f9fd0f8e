"""Directory records as data: which record type describes a SOP class, and which keys each type has (PS3.3 F.4, F.5).

Retired types (MRDR, OVERLAY, CURVE, MODALITY LUT, VOI LUT, PRINT, HL7 STRUC DOC) are never written (DIR-7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Key:
    """An element of a directory record.

    Attributes:
        tag: Group and element.
        vr: How it is encoded in Explicit VR.
        type: ``1`` always with a value, ``1C`` when the object has one, ``2`` empty when the object has none.
        supplied: For type 1, the value of an object that has none (DIR-9). ASCII.
        instead: Tags whose value may stand in before that.
        inside: A sequence whose items hold it; the greatest value is taken.
    """

    tag: int
    vr: bytes
    type: str = "2"
    supplied: bytes = b""
    instead: tuple[int, ...] = ()
    inside: int = 0


CHARACTER_SET: Final = 0x00080005
PATIENT_NAME: Final = 0x00100010
PATIENT_ID: Final = 0x00100020
ISSUER: Final = 0x00100021
BIRTH_DATE: Final = 0x00100030
STUDY_UID: Final = 0x0020000D
SERIES_UID: Final = 0x0020000E
ROWS: Final = 0x00280010
COLUMNS: Final = 0x00280011
CONTENT_SEQUENCE: Final = 0x0040A730
CONCEPT_NAME: Final = 0x0040A043
RELATIONSHIP: Final = 0x0040A010

VERIFYING_OBSERVERS: Final = 0x0040A073

_NO_DATE: Final = b"19000101"
_NO_TIME: Final = b"000000"

_NUMBER: Final = Key(0x00200013, b"IS", "1", b"0")  # Instance Number
_CONTENT_DATE: Final = Key(0x00080023, b"DA", "1", _NO_DATE, (0x0008002A, 0x00080012, 0x00080021, 0x00080020))
_CONTENT_TIME: Final = Key(0x00080033, b"TM", "1", _NO_TIME, (0x00080013, 0x00080031, 0x00080030))
_CONCEPT: Final = Key(CONCEPT_NAME, b"SQ", "1")  # Concept Name Code Sequence
_CONTENT: Final = (
    # Content Identification Macro (PS3.3 10.9).
    _NUMBER,
    Key(0x00700080, b"CS", "1", b"UNNAMED"),
    Key(0x00700081, b"LO"),
    Key(0x00700084, b"PN"),
)
_DATED: Final = (_NUMBER, _CONTENT_DATE, _CONTENT_TIME)
_DATED_CONTENT: Final = (*_CONTENT, _CONTENT_DATE, _CONTENT_TIME)

PATIENT: Final = (Key(PATIENT_NAME, b"PN"), Key(PATIENT_ID, b"LO", "1C"))  # F.5.1; an ID is supplied for each person
STUDY: Final = (
    # F.5.2
    Key(0x00080020, b"DA", "1", _NO_DATE, (0x00080021, 0x00080022, 0x00080023)),
    Key(0x00080030, b"TM", "1", _NO_TIME, (0x00080031, 0x00080032, 0x00080033)),
    Key(0x00080050, b"SH"),
    Key(0x00081030, b"LO"),
    Key(STUDY_UID, b"UI", "1"),
    Key(0x00200010, b"SH", "1", b"0"),
)
SERIES: Final = (
    # F.5.3
    Key(0x00080060, b"CS", "1", b"OT"),
    Key(SERIES_UID, b"UI", "1"),
    Key(0x00200011, b"IS", "1", b"0"),
)

IMAGE: Final = "IMAGE"
PRIVATE: Final = "PRIVATE"
PRIVATE_RECORD_UID: Final = "2.25.122522165273703419633413079402016686129"
"""(0004,1432): says that such a record only references a file of a SOP class that is not known here (F.5.15)."""

LEAVES: Final[dict[str, tuple[Key, ...]]] = {
    IMAGE: (_NUMBER,),  # F.5.4
    "RT DOSE": (_NUMBER, Key(0x3004000A, b"CS", "1", b"PLAN")),  # F.5.19
    "RT STRUCTURE SET": (  # F.5.20
        _NUMBER,
        Key(0x30060002, b"SH", "1", b"UNNAMED"),
        Key(0x30060008, b"DA"),
        Key(0x30060009, b"TM"),
    ),
    "RT PLAN": (
        _NUMBER,
        Key(0x300A0002, b"SH", "1", b"UNNAMED"),
        Key(0x300A0006, b"DA"),
        Key(0x300A0007, b"TM"),
    ),  # F.5.21
    "RT TREAT RECORD": (_NUMBER, Key(0x30080250, b"DA"), Key(0x30080251, b"TM")),  # F.5.22
    "PRESENTATION": (  # F.5.23
        *_CONTENT,
        Key(0x00700082, b"DA", "1", _NO_DATE, (0x00080023, 0x00080020)),
        Key(0x00700083, b"TM", "1", _NO_TIME, (0x00080033, 0x00080030)),
        Key(0x00081115, b"SQ", "1C"),
        Key(0x00700402, b"SQ", "1C"),
    ),
    "WAVEFORM": _DATED,  # F.5.24
    "SR DOCUMENT": (  # F.5.25
        *_DATED,
        Key(0x0040A491, b"CS", "1", b"PARTIAL"),
        Key(0x0040A493, b"CS", "1", b"UNVERIFIED"),
        Key(0x0040A030, b"DT", "1C", inside=VERIFYING_OBSERVERS),  # the most recent verification
        _CONCEPT,
        Key(CONTENT_SEQUENCE, b"SQ", "1C"),
    ),
    "KEY OBJECT DOC": (*_DATED, _CONCEPT, Key(CONTENT_SEQUENCE, b"SQ", "1C")),  # F.5.26
    "SPECTROSCOPY": (  # F.5.27
        *_DATED,
        Key(0x00080008, b"CS", "1", b"ORIGINAL\\PRIMARY"),
        Key(0x00089092, b"SQ", "1C"),
        Key(0x00280008, b"IS", "1", b"1"),
        Key(ROWS, b"US", "1", b"\1\0"),
        Key(COLUMNS, b"US", "1", b"\1\0"),
        Key(0x00289001, b"UL", "1", b"\1\0\0\0"),
        Key(0x00289002, b"UL", "1", b"\1\0\0\0"),
    ),
    "RAW DATA": _DATED,  # F.5.28
    "REGISTRATION": _DATED_CONTENT,  # F.5.29
    "FIDUCIAL": _DATED_CONTENT,  # F.5.30
    "HANGING PROTOCOL": (  # F.5.31
        Key(0x00720008, b"LO", "1", b"UNKNOWN"),
        Key(0x0072000A, b"DT", "1", _NO_DATE + _NO_TIME),
        Key(0x0072000C, b"SQ", "1"),
        Key(0x00720014, b"US", "1", b"\0\0"),
        Key(0x0072000E, b"SQ"),
    ),
    "ENCAP DOC": (  # F.5.32
        _NUMBER,
        Key(0x00080023, b"DA"),
        Key(0x00080033, b"TM"),
        Key(0x00420010, b"ST"),
        Key(0x0040E001, b"ST", "1C"),
        Key(CONCEPT_NAME, b"SQ"),
        Key(0x00420012, b"LO", "1", b"application/octet-stream"),
    ),
    "VALUE MAP": _DATED_CONTENT,  # F.5.34
    "STEREOMETRIC": (),  # F.5.35
    "PALETTE": _CONTENT[1:3],  # F.5.36
    "IMPLANT": (  # F.5.37
        Key(0x00080070, b"LO", "1", b"UNKNOWN"),
        Key(0x00221095, b"LO", "1", b"UNKNOWN"),
        Key(0x00686210, b"LO", "1C"),
        Key(0x00221097, b"LO", "1", b"UNKNOWN"),
    ),
    "IMPLANT GROUP": (Key(0x00786000, b"LO", "1", b"UNKNOWN"), Key(0x00786020, b"LO", "1", b"UNKNOWN")),  # F.5.38
    "IMPLANT ASSY": (  # F.5.39
        Key(0x00760001, b"LO", "1", b"UNKNOWN"),
        Key(0x00080070, b"LO", "1", b"UNKNOWN"),
        Key(0x00760020, b"SQ", "1"),
    ),
    "PLAN": (),  # F.5.40
    "MEASUREMENT": _DATED_CONTENT,  # F.5.41
    "SURFACE": _DATED_CONTENT,  # F.5.42
    "SURFACE SCAN": (_CONTENT_DATE, _CONTENT_TIME),  # F.5.43
    "TRACT": _DATED_CONTENT,  # F.5.44
    "ASSESSMENT": (  # F.5.45
        _NUMBER,
        Key(0x00080012, b"DA", "1", _NO_DATE, (0x00080023, 0x00080020)),
        Key(0x00080013, b"TM"),
    ),
    "RADIOTHERAPY": (  # F.5.46
        _NUMBER,
        Key(0x30100033, b"SH", "1C"),
        Key(0x30100034, b"LO", "1C"),
        Key(0x00700081, b"LO"),
        Key(0x00700084, b"PN"),
    ),
    PRIVATE: (),  # F.5.15
}
"""The keys of each type of record that references a file, beside those all of them have (DIR-5)."""

ROOT_LEVEL: Final = frozenset(("HANGING PROTOCOL", "PALETTE", "IMPLANT", "IMPLANT ASSY", "IMPLANT GROUP"))
"""Types that stand beside PATIENT: their objects have no patient (Table F.4-1)."""

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
_BY_TYPE: Final = {
    "RT DOSE": "481.2",
    "RT STRUCTURE SET": "481.3",
    "RT PLAN": "481.5 481.8",
    "RT TREAT RECORD": "481.4 481.6 481.7 481.9",
    "PRESENTATION": "11.1 11.2 11.3 11.4 11.5 11.6 11.7 11.8 11.9 11.10 11.11 11.12 131",
    "WAVEFORM": "9.1 9.1.1 9.1.2 9.1.3 9.1.4 9.2.1 9.3.1 9.4.1 9.4.2 9.5.1 9.6.1 9.6.2 9.7.1 9.7.2 9.7.3 9.7.4 9.8.1",
    "SR DOCUMENT": "88.1 88.2 88.3 88.4 88.11 88.22 88.33 88.34 88.35 88.40 88.50 88.65 88.67 88.68 88.69 88.70 88.71"
    " 88.72 88.73 88.74 88.75 88.76 88.77 78.6 79.1",
    "KEY OBJECT DOC": "88.59",
    "SPECTROSCOPY": "4.2",
    "RAW DATA": "66",
    "REGISTRATION": "66.1 66.3",
    "FIDUCIAL": "66.2",
    "ENCAP DOC": "104.1 104.2 104.3 104.4 104.5",
    "VALUE MAP": "67",
    "STEREOMETRIC": "77.1.5.3",
    "MEASUREMENT": "78.1 78.2 78.3 78.4 78.5 78.7 78.8 80.1",
    "SURFACE": "66.5",
    "SURFACE SCAN": "68.1 68.2",
    "TRACT": "66.6",
    "ASSESSMENT": "90.1",
    "RADIOTHERAPY": "481.10 481.11 481.12 481.13 481.14 481.15 481.16 481.17 481.18 481.19 481.20 481.21 481.22 481.25",
    "PLAN": "200.1 200.2 200.3 200.7 200.8",
    # Standalone overlays, curves and tables had records of their own, all retired (DIR-7).
    # QUIRK: bulk annotations and inventories are younger than most readers of directories: pydicom 3.0 refuses the
    # whole directory for one record of type ANNOTATION. A private record only says where the file is.
    PRIVATE: "8 9 10 11 129 91.1 201.1 501.3",
    # CR, DX, MG, IO, CT, US, MR, NM, SC, XA, RF, X-ray 3D, OCT, SEG, VL, PET, RT Image and their like.
    IMAGE: "1 1.1 1.1.1 1.2 1.2.1 1.3 1.3.1 2 2.1 2.2 3 3.1 4 4.1 4.3 4.4 5 6 6.1 6.2 6.3 7 7.1 7.2 7.3 7.4 12.1 12.1.1"
    " 12.2 12.2.1 12.3 13.1.1 13.1.2 13.1.3 13.1.4 13.1.5 14.1 14.2 20 30 66.4 66.7 77.1 77.2 77.1.1 77.1.1.1 77.1.2"
    " 77.1.2.1 77.1.3 77.1.4 77.1.4.1 77.1.5.1 77.1.5.2 77.1.5.4 77.1.5.5 77.1.5.6 77.1.5.7 77.1.5.8 77.1.6 77.1.7"
    " 77.1.8 77.1.9 81.1 82.1 128 128.1 130 481.1 481.23 481.24 501.1 501.2.1 501.2.2 501.4 501.5 501.6 601.1 601.2",
}

TYPES: Final[dict[str, str]] = {
    **{_STORAGE + suffix: kind for kind, suffixes in _BY_TYPE.items() for suffix in suffixes.split()},
    "1.2.840.10008.5.1.4.34.1": "PLAN",
    "1.2.840.10008.5.1.4.34.7": "PLAN",
    "1.2.840.10008.5.1.4.34.10": "PLAN",
    "1.2.840.10008.5.1.4.38.1": "HANGING PROTOCOL",
    "1.2.840.10008.5.1.4.39.1": "PALETTE",
    "1.2.840.10008.5.1.4.43.1": "IMPLANT",
    "1.2.840.10008.5.1.4.44.1": "IMPLANT ASSY",
    "1.2.840.10008.5.1.4.45.1": "IMPLANT GROUP",
}
"""The record type of each storage SOP class (PS3.4 B.5, PS3.3 F.4)."""

NESTED: Final[dict[int, bytes]] = {
    # Code Sequence Macro (PS3.3 8.8)
    0x00080100: b"SH",
    0x00080102: b"SH",
    0x00080103: b"SH",
    0x00080104: b"LO",
    0x00080105: b"CS",
    0x00080106: b"DT",
    0x00080107: b"DT",
    0x0008010B: b"CS",
    0x0008010D: b"UI",
    0x0008010F: b"CS",
    0x00080117: b"UI",
    0x00080119: b"UC",
    0x00080120: b"UR",
    # references to series and images
    SERIES_UID: b"UI",
    STUDY_UID: b"UI",
    0x00081140: b"SQ",
    0x00081150: b"UI",
    0x00081155: b"UI",
    0x00081160: b"IS",
    0x00081115: b"SQ",
    # content items that modify the document's title
    RELATIONSHIP: b"CS",
    0x0040A040: b"CS",
    CONCEPT_NAME: b"SQ",
    0x0040A168: b"SQ",
    0x0040A160: b"UT",
    # what a hanging protocol is for
    0x00080060: b"CS",
    0x00200060: b"CS",
    0x00082218: b"SQ",
    0x00081032: b"SQ",
    0x0040100A: b"SQ",
}
"""What items of a key that is a sequence are copied with."""
