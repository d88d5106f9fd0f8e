"""Archives opened in bounded time and memory (ZIP-8, AMB-13, AMB-14): ZIP and gzip, member by member.

Names of members are labels, never paths. What an archive does to its reader is noted as a Problem: a bomb, a password,
damage. Other kinds of archives are known by their first bytes, to say which they are, and not opened.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Final

from gateway.core.dataset import Problem
from gateway.core.header import printable

ZIP: Final = "zip"
GZIP: Final = "gzip"
TNEF: Final = "tnef"
OTHER: Final = "other"

BLOCK: Final = 1 << 20
"""Bytes of a member that are unpacked at once."""

PACKED: Final = 32 << 10
"""Bytes of a gzip file that should be handed in at once."""

FLOOR: Final = 1 << 20
"""Bytes that any member may have whatever its ratio: a black image packs a thousandfold."""

DIRECTORY_LIMIT: Final = 16 << 20
"""Bytes of a ZIP's central directory: some hundred thousand members."""

NAME_LIMIT: Final = 255
"""Characters of a member's name with its folders."""

TNEF_SIGNATURE: Final = b"\x78\x9f\x3e\x22"
"""MS-OXTNEF 2.1.3.1; what follows it is opened by ``tnef``."""

_ISO_AT: Final = 0x8001
_OTHERS: Final = (b"Rar!\x1a\x07", b"7z\xbc\xaf\x27\x1c", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"MSCF")
_END: Final = b"PK\x05\x06"
_DIRECTORY_SIZE: Final = 5
"""Where zipfile puts the size of the central directory in what it makes of the end of a ZIP."""

_IN_ZIP64: Final = 0xFFFFFFFF
"""A size that only ZIP64 tells."""

_DAMAGE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)
"""What zipfile and zlib raise on archives that are not what they say."""


@dataclass(slots=True)
class Budget:
    """What all archives of one message may still unpack to.

    Attributes:
        left: Bytes.
        ratio: Most times its packed size that one member may unpack to.
    """

    left: int
    ratio: int

    def limit(self, packed: int) -> int:
        """Most bytes that a member of a packed size may have."""
        return min(self.left, max(FLOOR, packed * self.ratio))


@dataclass(frozen=True, slots=True)
class Member:
    """One file in an archive.

    Attributes:
        name: As the archive spells it, with slashes.
        blocks: Its content. Raises Problem when it cannot be unpacked: ``damaged-archive``, ``unpacked-too-big``.
    """

    name: str
    blocks: Iterator[bytes]


def kind(first: bytes) -> str | None:
    """Tell from its first bytes whether a file is an archive, and whether it can be opened."""
    if first.startswith((b"PK\x03\x04", _END)):
        return ZIP
    if first.startswith(b"\x1f\x8b\x08"):
        return GZIP
    if first.startswith(TNEF_SIGNATURE):
        return TNEF
    if first.startswith(_OTHERS) or first[_ISO_AT : _ISO_AT + 5] == b"CD001":
        return OTHER
    return None


def unzip(file: IO[bytes], budget: Budget, most: int) -> Iterator[Member]:
    """Yield the files in a ZIP, in its own order. Take the content of each before the next.

    Args:
        file: The archive.
        budget: What may be unpacked; it shrinks as content is taken.
        most: Most members.

    Raises:
        Problem: ``damaged-archive``, ``too-many-members``, ``encrypted-archive``, ``unsafe-name``.
    """
    size = file.seek(0, 2)
    _check_directory(file)
    try:
        archive = zipfile.ZipFile(file)
    except _DAMAGE:
        raise Problem("damaged-archive") from None
    # QUIRK: ZipInfo.is_dir fails on a member without a name up to Python 3.11.
    infos = [info for info in archive.infolist() if not info.filename.endswith("/")]
    if len(infos) > most:
        raise Problem("too-many-members")
    # Judged as a whole before anything is taken: a set with locked members is not a set.
    if any(info.flag_bits & 0x1 for info in infos):
        raise Problem("encrypted-archive")
    names = [printable(info.filename.replace("\\", "/")) for info in infos]
    if any(len(name) > NAME_LIMIT or name.startswith("/") or ".." in name.split("/") for name in names):
        raise Problem("unsafe-name")
    for name, info in zip(names, infos, strict=True):
        yield Member(name, _unpack(archive, info, budget, size))


def _check_directory(file: IO[bytes]) -> None:
    """Refuse a central directory that would not fit into memory: zipfile reads it at once.

    Its own eyes look for it, since it goes by what ZIP64 says whatever the short record says.
    """
    try:
        record = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # noqa: SLF001
    except (*_DAMAGE, OSError):
        raise Problem("damaged-archive") from None
    if record is None or record[_DIRECTORY_SIZE] == _IN_ZIP64:
        raise Problem("damaged-archive")
    if record[_DIRECTORY_SIZE] > DIRECTORY_LIMIT:
        raise Problem("too-many-members")


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: Budget, size: int) -> Iterator[bytes]:
    # ISO 21320-1: stored and deflated members only; other ways to pack have bombs of their own.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or not 0 <= info.header_offset < size:
        raise Problem("damaged-archive")
    limit = budget.limit(info.compress_size)
    try:
        with archive.open(info) as member:
            while block := member.read(BLOCK):
                limit -= len(block)
                budget.left -= len(block)
                if limit < 0:
                    raise Problem("unpacked-too-big")
                yield block
    except _DAMAGE:
        raise Problem("damaged-archive") from None


def gunzip(blocks: Iterable[bytes], budget: Budget) -> Iterator[bytes]:
    """Unpack a gzip file, all its members in one.

    Raises:
        Problem: ``damaged-archive``, ``unpacked-too-big``.
    """
    packed = unpacked = 0
    gzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
    for raw in blocks:
        packed += len(raw)
        rest = raw  # small, since what is behind each of thousands of members is copied
        while rest:
            if gzip.eof:
                gzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                block = gzip.decompress(rest, BLOCK)
            except zlib.error:
                raise Problem("damaged-archive") from None
            rest = gzip.unused_data if gzip.eof else gzip.unconsumed_tail
            unpacked += len(block)
            budget.left -= len(block)
            if budget.left < 0 or unpacked > max(FLOOR, packed * budget.ratio):
                raise Problem("unpacked-too-big")
            if block:
                yield block
    if not gzip.eof:
        raise Problem("damaged-archive")
