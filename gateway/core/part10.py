"""One DICOM file held against PS3.10: its File Meta Information, its data set, and whether both agree (P10-7).

Files are judged, never repaired. Where real files stray harmlessly, the image goes on with a finding: group 0002 never
crosses DIMSE, so the data set holds. What could make two readers see different images is held.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

from gateway.core import dataset, patient
from gateway.core.dataset import Problem, Source
from gateway.core.findings import CODES
from gateway.core.header import printable
from gateway.core.patient import Patient
from gateway.core.pseudonym import Identity
from gateway.model import MEDIA_STORAGE_DIRECTORY, Severity

HASHED: Final = 64 << 10
"""Bytes that are hashed at once."""

PREFIX_AT: Final = 128
DATA_AT: Final = 132
"""Offset of group 0002 behind preamble and prefix (PS3.10 7.1)."""

_SOP_CLASS: Final = 0x00080016
_SOP_INSTANCE: Final = 0x00080018
_STUDY: Final = 0x0020000D
_SERIES: Final = 0x0020000E
_ACCESSION: Final = 0x00080050
_WANTED: Final = frozenset((_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES, _ACCESSION)) | patient.TAGS

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
_BARE_HEAD: Final = 4096
_TEXT_LIMIT: Final = 80  # a UID has 64 characters; more shows that one has more

_PROGRAMS: Final = (b"MZ", b"\x7fELF", b"#!", b"\xca\xfe\xba\xbe", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe", b"<")
"""What programs and pages begin with: PE, ELF, scripts, Mach-O, HTML (CVE-2019-11687)."""

_UID: Final = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*\Z")
_LOOSE_UID: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*\Z")

_ELEMENT: Final = Struct("<HH2sH").unpack_from
_LONG: Final = Struct("<L").unpack_from
_LONG_FORM: Final = (b"OB", b"OW", b"UN", b"SQ", b"UT", b"OF", b"OD", b"OL", b"OV", b"UC", b"UR", b"SV", b"UV")


@dataclass(frozen=True, slots=True)
class Meta:
    """The File Meta Information (PS3.10 Table 7.1-1).

    Attributes:
        sop_class: Media Storage SOP Class UID, empty when absent.
        sop_instance: Media Storage SOP Instance UID, empty when absent.
        transfer_syntax: Transfer Syntax UID, empty when absent.
        data_set: Offset of the data set, counted from the preamble.
        codes: What was noticed.
    """

    sop_class: str
    sop_instance: str
    transfer_syntax: str
    data_set: int
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """A file held against PS3.10 and P10-7.

    Attributes:
        meta: Its File Meta Information.
        sop_class: SOP Class UID of the data set; of the meta information when it has none.
        sop_instance: SOP Instance UID, likewise.
        study: Study Instance UID, empty when absent.
        series: Series Instance UID, empty when absent.
        codes: What was noticed, the meta information's codes included.
        held: The first code that is an error.
        ends_with_pixels: Its last element is Pixel Data: nothing can be missing behind it.
        patient: Whose it says it is.
        is_unreadable: It cannot be walked to its end.
        accession: Accession Number (0008,0050), as the bytes it came in.
    """

    meta: Meta
    sop_class: str
    sop_instance: str
    study: str
    series: str
    codes: tuple[str, ...]
    held: str | None
    ends_with_pixels: bool
    patient: Patient
    is_unreadable: bool
    accession: bytes = b""

    @property
    def identity(self) -> Identity:
        """What people search it by."""
        return Identity(self.patient.id, self.accession, self.patient.character_set)

    @property
    def is_directory(self) -> bool:
        """It is a DICOMDIR: an index of files, never an instance to store (AMB-12).

        The data set decides, which has no SOP Class UID in a DICOMDIR: an image behind the header of one is an image.
        """
        return self.sop_class == MEDIA_STORAGE_DIRECTORY

    @property
    def is_identified(self) -> bool:
        """It names the instance it is, so that it can be held as one."""
        return bool(self.sop_class and self.sop_instance)


def is_marked(block: bytes) -> bool:
    """Tell whether a file bears the DICM prefix. Nothing else makes a file DICOM (P10-2, AMB-1)."""
    return block[PREFIX_AT:DATA_AT] == b"DICM"


def read_meta(block: bytes, at: int = DATA_AT) -> Meta:
    """Read group 0002 from the first bytes of a file, where ``at`` says it begins.

    Its end is found by its tags, since the group length of real files is not to be trusted (AMB-3).

    Raises:
        Problem: ``damaged-meta``: it cannot be parsed, or does not end within these bytes.
    """
    values: dict[int, bytes] = {}
    codes = _preamble_codes(block) if at == DATA_AT else []
    declared = None
    while at + 8 <= len(block):
        group, element, vr, length = _ELEMENT(block, at)
        if group != 0x0002:
            break
        at += 8
        if vr in _LONG_FORM:
            if at + 4 > len(block):
                raise Problem("damaged-meta")
            (length,) = _LONG(block, at)
            at += 4
        elif not (vr.isalpha() and vr.isupper()):
            raise Problem("damaged-meta")
        if at + length > len(block):
            raise Problem("damaged-meta")
        values.setdefault(element, block[at : at + length])
        at += length
        if element == 0 and length == 4:
            declared = at + _LONG(block, at - 4)[0]
    if not values:
        raise Problem("damaged-meta")
    if declared != at:
        codes.append("meta-length")
    sop_class, sop_instance, syntax = (_text(values.get(element, b"")) for element in (0x0002, 0x0003, 0x0010))
    if not syntax:
        codes.append("no-transfer-syntax")
    if not (sop_class and sop_instance):
        codes.append("meta-incomplete")
    return Meta(sop_class, sop_instance, syntax, at, tuple(codes))


def _preamble_codes(block: bytes) -> list[str]:
    """Tell what the preamble holds (P10-9). It never crosses DIMSE, so it keeps no image from going on.

    A TIFF header is what PS3.10 7.1 has the preamble for; a program's header makes one file an image and malware.
    """
    if block.startswith(_PROGRAMS):
        return ["executable-preamble"]
    return ["preamble-in-use"] if block[:PREFIX_AT].strip(b"\0") else []


def is_bare(block: bytes) -> bool:
    """Tell whether a file looks like a data set without preamble (AMB-2): group 0002 or 0008, and a DICOM UID."""
    group, element, vr, length = _ELEMENT(block) if len(block) >= 8 else (0, 0, b"", 0)
    plausible = (vr.isalpha() and vr.isupper()) or length == 0
    return group in (0x0002, 0x0008) and element <= 0x0018 and plausible and b"1.2.840.10008." in block[:_BARE_HEAD]


def bare_meta(block: bytes, source: Source) -> Meta | None:
    """Find out what a bare data set is; None when it is none. Strictly: it must parse to its end as what it is."""
    if block.startswith(b"\2\0"):
        try:
            return read_meta(block, 0)
        except Problem:
            return None
    for syntax in (dataset.IMPLICIT, dataset.EXPLICIT):
        meta = Meta("", "", syntax, 0, ())
        judged = judge(meta, source, 0, 0)
        if judged.held is None and judged.sop_class.startswith(_STORAGE):
            return meta
    return None


def judge(meta: Meta, source: Source, size: int, unpacked: int) -> Judged:
    """Hold a whole file against PS3.10. Never raises because of its content.

    Args:
        meta: Its File Meta Information.
        source: Its bytes, from the preamble on.
        size: How many they are.
        unpacked: Most bytes a deflated data set may inflate to.
    """
    codes = list(meta.codes)
    raw: dict[int, bytes] = {}
    values: dict[int, str] = {}
    walked = dataset.Walked()
    try:
        walked = _walk(meta, source, unpacked)
    except Problem as problem:
        codes.append(problem.code)
        unreadable = True
    else:
        unreadable = False
        for found in walked.found:
            raw.setdefault(found.tag, found.value)
        values = {tag: _text(value) for tag, value in raw.items()}
        codes += ["trailing-padding"] if walked.padded else []
        codes += _disagreements(meta, values)
        if (size - meta.data_set) % 2 and (values.get(_SOP_CLASS) or meta.sop_class) != MEDIA_STORAGE_DIRECTORY:
            # PS3.5 7.1.1 and A.5. An odd element alone goes through; DCMTK and Orthanc abort when the whole is odd.
            codes.append("odd-length")
    return Judged(
        meta=meta,
        sop_class=values.get(_SOP_CLASS) or meta.sop_class,
        sop_instance=values.get(_SOP_INSTANCE) or meta.sop_instance,
        study=values.get(_STUDY, ""),
        series=values.get(_SERIES, ""),
        codes=tuple(dict.fromkeys(codes)),
        held=next((code for code in codes if CODES[code].severity is Severity.ERROR), None),
        ends_with_pixels=walked.ends_with_pixels,
        patient=patient.of(raw),
        is_unreadable=unreadable,
        accession=patient.strip(raw.get(_ACCESSION, b"")),
    )


def _walk(meta: Meta, source: Source, unpacked: int) -> dataset.Walked:
    if not meta.transfer_syntax:
        raise Problem("no-transfer-syntax")
    if meta.transfer_syntax == dataset.DEFLATED:
        inflated = dataset.Inflated(source, meta.data_set, unpacked)
        return dataset.walk(inflated, 0, meta.transfer_syntax, _WANTED)
    return dataset.walk(source, meta.data_set, meta.transfer_syntax, _WANTED)


def _disagreements(meta: Meta, values: dict[int, str]) -> list[str]:
    """Apply P10-7 with the exceptions that real files need."""
    codes: list[str] = []
    if (values.get(_SOP_CLASS) or meta.sop_class) == MEDIA_STORAGE_DIRECTORY:
        return codes
    for tag, code in (
        (_SOP_CLASS, "no-sop-class"),
        (_SOP_INSTANCE, "no-sop-instance"),
        (_STUDY, "no-study"),
        (_SERIES, "no-series"),
    ):
        uid = values.get(tag, "")
        if not uid:
            codes.append(code)
        elif len(uid) > 64 or not _LOOSE_UID.match(uid):
            codes.append("invalid-uid")
        elif not _UID.match(uid):
            # QUIRK: pydicom's rtplan.dcm and many planning systems write dates into UIDs, with leading zeros.
            codes.append("zero-led-uid")
    if not _LOOSE_UID.match(meta.transfer_syntax):
        codes.append("invalid-uid")
    if meta.sop_class and meta.sop_class != values.get(_SOP_CLASS, meta.sop_class):
        codes.append("sop-class-mismatch")
    if meta.sop_instance and meta.sop_instance != values.get(_SOP_INSTANCE, meta.sop_instance):
        codes.append("meta-instance")
    if not values.get(patient.ID):
        codes.append("no-patient-id")
    return list(dict.fromkeys(codes))


def hashed(read: Callable[[int, int], bytes | memoryview], start: int, end: int) -> hashlib._Hash:
    """Take the SHA-256 of a range of a file.

    Args:
        read: Gives so many bytes from an offset.
        start: Offset of the first byte: of the data set, for what "the same instance" means, or 0 for the file.
        end: Offset behind the last one.

    Raises:
        EOFError: It is shorter than that.
    """
    digest = hashlib.sha256()
    for block in _blocks(read, start, end):
        digest.update(block)
    return digest


def hashed_twice(read: Callable[[int, int], bytes | memoryview], data_set: int, end: int) -> tuple[str, str]:
    """Take the SHA-256 of a file and that of its data set, reading it once.

    Args:
        read: Gives so many bytes from an offset of the file.
        data_set: Offset of the data set.
        end: Bytes of the file.

    Returns:
        Both, in hexadecimal.

    Raises:
        EOFError: It is shorter than that.
    """
    whole, inner = hashed(read, 0, data_set), hashlib.sha256()
    for block in _blocks(read, data_set, end):
        whole.update(block)
        inner.update(block)
    return whole.hexdigest(), inner.hexdigest()


def _blocks(read: Callable[[int, int], bytes | memoryview], start: int, end: int) -> Iterator[bytes | memoryview]:
    for at in range(start, end, HASHED):
        size = min(HASHED, end - at)
        block = read(at, size)
        if len(block) < size:
            raise EOFError
        yield block


def is_uid(text: str) -> bool:
    """Tell whether a text can be a UID, leading zeros of components let pass (QUIRK: zero-led-uid)."""
    return len(text) <= 64 and _LOOSE_UID.match(text) is not None


def _text(value: bytes) -> str:
    """Read a UID: padded with a zero byte (PS3.5 9.1), by some programs with a blank."""
    return printable(value.decode("latin-1").strip("\0 "))[:_TEXT_LIMIT]
