"""The File Meta Information of what came by C-STORE, written anew (PS3.10 7.1, P10-3, P10-6)."""

from __future__ import annotations

import struct
from typing import Final

from gateway import model

_PREAMBLE: Final = bytes(128) + b"DICM"
_SHORT: Final = struct.Struct("<HH2sH")
_LONG: Final = struct.Struct("<HH2sxxL")


def write(sop_class: str, sop_instance: str, transfer_syntax: str, source: str) -> bytes:
    """Write preamble, prefix and group 0002 of a file; the data set follows.

    Args:
        sop_class: Affected SOP Class UID of the command set.
        sop_instance: Affected SOP Instance UID of the command set.
        transfer_syntax: The one of the presentation context.
        source: AE title of the sender.
    """
    group = b"".join(
        (
            _LONG.pack(2, 0x0001, b"OB", 2) + b"\0\1",
            _uid(0x0002, sop_class),
            _uid(0x0003, sop_instance),
            _uid(0x0010, transfer_syntax),
            _uid(0x0012, model.IMPLEMENTATION_CLASS_UID),
            _text(0x0013, b"SH", model.IMPLEMENTATION_VERSION_NAME),
            _text(0x0016, b"AE", source),
        )
    )
    return _PREAMBLE + _SHORT.pack(2, 0, b"UL", 4) + struct.pack("<L", len(group)) + group


def _uid(element: int, value: str) -> bytes:
    return _element(element, b"UI", value.encode("ascii"), b"\0")


def _text(element: int, vr: bytes, value: str) -> bytes:
    return _element(element, vr, value.encode("ascii"), b" ")


def _element(element: int, vr: bytes, value: bytes, padding: bytes) -> bytes:
    value += padding * (len(value) % 2)
    return _SHORT.pack(2, element, vr, len(value)) + value
