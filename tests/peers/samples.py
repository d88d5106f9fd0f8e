"""Real DICOM files, the ones pydicom ships, as they are or with fresh UIDs."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import generate_uid

FOLDER = Path(pydicom.__file__).parent / "data"
"""Never asked through pydicom.data: that would download what is not there."""

FILES = (
    "test_files/CT_small.dcm",
    "test_files/MR_small.dcm",
    "test_files/MR_small_implicit.dcm",
    "test_files/MR_small_RLE.dcm",
    "test_files/SC_rgb_jpeg_gdcm.dcm",
    "test_files/SC_rgb_small_odd_jpeg.dcm",
    "test_files/rtplan.dcm",
    "test_files/rtdose.dcm",
    "test_files/dicomdirtests/77654033/CR1/6154",
    "charset_files/chrH31.dcm",
)
"""CT, MR, CR, secondary capture and radiotherapy; native, RLE and JPEG: what Orthanc keeps bit for bit."""

REWRITTEN = (
    "test_files/MR_small_jp2klossless.dcm",
    "test_files/MR_small_jpeg_ls_lossless.dcm",
    "test_files/JPEG2000.dcm",
    "test_files/liver_1frame.dcm",
)
"""JPEG 2000, JPEG-LS, sequences of undefined length: Orthanc writes these anew; storescp keeps them as they came."""


def data_set(file: bytes) -> bytes:
    """The bytes behind group 0002 of a Part 10 file (PS3.10 7.1), found by its group length."""
    assert file[128:138] == b"DICM\x02\x00\x00\x00UL"
    return file[144 + int.from_bytes(file[140:144], "little") :]


def sop_instance(file: bytes) -> str:
    """The Media Storage SOP Instance UID of a Part 10 file (0002,0003)."""
    header = pydicom.dcmread(io.BytesIO(file), specific_tags=[], stop_before_pixels=True).file_meta
    return str(header.MediaStorageSOPInstanceUID)


@dataclass(frozen=True, slots=True)
class Fresh:
    """A real instance under a new name.

    Attributes:
        file: The whole Part 10 file.
        sop_class: SOP Class UID.
        sop_instance: SOP Instance UID.
        study: Study Instance UID.
        series: Series Instance UID.
        transfer_syntax: Transfer Syntax UID.
    """

    file: bytes
    sop_class: str
    sop_instance: str
    study: str
    series: str
    transfer_syntax: str

    @property
    def data_set(self) -> bytes:
        """The bytes behind group 0002."""
        return data_set(self.file)


class Samples:
    """Gives out real files and fresh instances made of them."""

    def __init__(self) -> None:
        self._turn = itertools.cycle(FILES)

    def path(self, name: str) -> Path:
        """A file as pydicom ships it, by a part of its name."""
        return next(path for path in sorted(FOLDER.rglob("*")) if path.is_file() and path.match(f"{name}*"))

    def paths(self) -> list[Path]:
        """The files that fresh instances are made of."""
        return [FOLDER / name for name in FILES]

    def fresh(self, name: str | None = None, *, study: str | None = None, **elements: Any) -> Fresh:
        """A real file with new Study, Series and SOP Instance UIDs.

        Args:
            name: Which file, as ``CT_small.dcm``; absent, each of FILES in turn.
            study: Study Instance UID of a study that it shall belong to.
            elements: More elements to set, by keyword.
        """
        path = FOLDER / next(self._turn) if name is None else self.path(name)
        found = pydicom.dcmread(path)
        found.StudyInstanceUID = study or generate_uid(prefix=None)
        found.SeriesInstanceUID = generate_uid(prefix=None)
        found.SOPInstanceUID = generate_uid(prefix=None)
        found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
        for keyword, value in elements.items():
            setattr(found, keyword, value)
        buffer = io.BytesIO()
        found.save_as(buffer, enforce_file_format=True)
        return Fresh(
            buffer.getvalue(),
            str(found.SOPClassUID),
            str(found.SOPInstanceUID),
            str(found.StudyInstanceUID),
            str(found.SeriesInstanceUID),
            str(found.file_meta.TransferSyntaxUID),
        )

    def many(self, count: int) -> Iterator[Fresh]:
        """Distinct instances of all kinds."""
        return (self.fresh() for _ in range(count))
