"""The DICOMDIR read (PS3.3 Annex F): which files it says belong to the file-set, held against those that came.

It is input of a stranger: its File IDs are labels that are looked up among the parts, never paths (FSR-3, P10-10).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gateway.core import dataset
from gateway.core.dataset import Found, Source
from gateway.core.header import printable
from gateway.model import DirectoryCheck

_RECORD_TYPE: Final = 0x00041430
_FILE_ID: Final = 0x00041500
_SOP_INSTANCE: Final = 0x00041511
_WANTED: Final = frozenset((_RECORD_TYPE, _FILE_ID, _SOP_INSTANCE))

_ID_LIMIT: Final = 71
"""Characters of a File ID: eight components of eight, and what joins them (P10-10)."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A file that a DICOMDIR names.

    Attributes:
        file_id: Referenced File ID, its components joined with a slash.
        sop_instance: Referenced SOP Instance UID in File; empty when absent.
    """

    file_id: str
    sop_instance: str


def read(source: Source, start: int, transfer_syntax: str) -> tuple[Reference, ...]:
    """Read the files that a DICOMDIR names. Record offsets are not followed: they are often wrong (AMB-10).

    Raises:
        Problem: It does not parse.
    """
    walked = dataset.walk(source, start, transfer_syntax, _WANTED, nested=True)
    references: list[Reference] = []
    file_id = instance = ""
    for found in [*walked.found, Found(1, _RECORD_TYPE, b"")]:
        if found.depth != 1:
            continue
        text = printable(found.value.decode("latin-1").strip("\0 "))
        if found.tag == _FILE_ID:
            file_id = "/".join(component.strip() for component in text.split("\\"))
        elif found.tag == _SOP_INSTANCE:
            instance = text
        else:
            # A record begins with its type, before its keys.
            if file_id:
                references.append(Reference(file_id, instance))
            file_id = instance = ""
    return tuple(references)


def label(text: str) -> str:
    """Bring a File ID or a part's name to the form in which they are compared (AMB-5)."""
    components = text.replace("\\", "/").strip("/").upper().split("/")
    components[-1] = components[-1].partition(".")[0]
    return "/".join(components)


def check(references: Iterable[Reference], labels: Iterable[str], instances: Iterable[str]) -> DirectoryCheck:
    """Hold a directory against what came.

    A file came when its SOP Instance UID came, or when a part bears its File ID, or the last component of it as name
    (MIM-8).

    Args:
        references: What the directory names.
        labels: The parameters ``id`` and ``name`` and the file names of the parts.
        instances: SOP Instance UIDs that came.
    """
    came = {label(text) for text in labels}
    uids = set(instances)
    missing = [
        reference.file_id[:_ID_LIMIT]
        for reference in references
        if reference.sop_instance not in uids
        and label(reference.file_id) not in came
        and label(reference.file_id).rpartition("/")[2] not in came
    ]
    return DirectoryCheck(complete=not missing, missing=tuple(missing))
