"""Content-Transfer-Encoding undone (RFC 2045 §6): a byte range in, decoded blocks out.

Base64 is decoded by the fastest decoder there is, which drops what is not in its alphabet; a count shows whether it
dropped more than line ends, and only then the part is decoded the slow, tolerant way (AMB-21).
"""

from __future__ import annotations

import binascii
import os
import re
from collections.abc import Iterator
from typing import Final

import pybase64

BLOCK: Final = 1 << 20
"""Bytes of encoded text that are decoded at once."""

_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_JUNK: Final = bytes(set(range(256)) - set(_ALPHABET))
_STRANGE: Final = bytes(set(_JUNK) - set(b"\r\n\t "))
_PADDED: Final = re.compile(rb"=+")
_ESCAPE: Final = re.compile(rb"=(?![0-9A-Fa-f]{2}|[ \t]*\r?\n|[ \t]*\Z)")


def decode(file: int, start: int, end: int, encoding: str, noted: set[str]) -> Iterator[bytes]:
    """Yield the decoded content of a body in blocks of at most about one megabyte.

    Args:
        file: Descriptor of the file.
        start: Offset of the body.
        end: Offset behind the body.
        encoding: Content-Transfer-Encoding in lower case. An unknown one is taken as binary (RFC 2045 §6.4).
        noted: Gets the code of a finding when the content is damaged.
    """
    if encoding == "base64":
        return _base64(file, start, end, noted)
    if encoding == "quoted-printable":
        return _quoted_printable(file, start, end, noted)
    return _blocks(file, start, end)


def _blocks(file: int, start: int, end: int) -> Iterator[bytes]:
    while start < end and (block := os.pread(file, min(BLOCK, end - start), start)):
        start += len(block)
        yield block


def _lines(file: int, start: int, end: int) -> Iterator[bytes]:
    """Yield blocks that end with a line end where they can."""
    while start < end and (block := os.pread(file, min(BLOCK, end - start), start)):
        if start + len(block) < end and (cut := block.rfind(b"\n") + 1):
            block = block[:cut]
        start += len(block)
        yield block


def _base64(file: int, start: int, end: int, noted: set[str]) -> Iterator[bytes]:
    place = start
    for block in _lines(file, start, end):
        decoded = _strict(block, last=place + len(block) >= end)
        if decoded is None:
            yield from _tolerant(file, place, end, noted)
            return
        place += len(block)
        yield decoded


def _strict(block: bytes, *, last: bool) -> bytes | None:
    """Decode whole lines, or say that they are not regular base64."""
    try:
        decoded = pybase64.b64decode(block)
    except (binascii.Error, ValueError):
        return None
    padding = 0
    if last:
        tail = block[-8:].rstrip()
        padding = len(tail) - len(tail.rstrip(b"="))
    letters = -(-len(decoded) * 4 // 3) + padding
    if letters + _line_ends(block) != len(block) and letters + block.count(b"\n") + block.count(b"\r") != len(block):
        return None
    return decoded


def _line_ends(block: bytes) -> int:
    """Bytes that line ends take when all lines are as long as the first: cheaper than counting them."""
    first = block.find(b"\n")
    if first < 0:
        return 0
    width = 2 if block[first - 1 : first] == b"\r" else 1
    lines = len(block) // (first + 1) + (1 if len(block) % (first + 1) and block.endswith(b"\n") else 0)
    return lines * width


def _tolerant(file: int, start: int, end: int, noted: set[str]) -> Iterator[bytes]:
    """Decode what can be decoded. Padding inside ends one piece and begins the next, as programs that join files do."""
    rest = b""
    for block in _blocks(file, start, end):
        if len(block) != len(block.translate(None, _STRANGE)):
            noted.add("damaged-base64")
        *pieces, rest = _PADDED.split(rest + block.translate(None, _JUNK))
        if len(pieces) > 1 or (pieces and rest):
            noted.add("damaged-base64")
        whole = len(rest) // 4 * 4
        yield b"".join([*(_piece(piece, noted) for piece in pieces), pybase64.b64decode(rest[:whole])])
        rest = rest[whole:]
    if rest:
        noted.add("damaged-base64")
        yield _piece(rest, noted)


def _piece(piece: bytes, noted: set[str]) -> bytes:
    if len(piece) % 4 == 1:
        noted.add("damaged-base64")
        piece = piece[:-1]
    return pybase64.b64decode(piece + b"=" * (-len(piece) % 4))


def _quoted_printable(file: int, start: int, end: int, noted: set[str]) -> Iterator[bytes]:
    for block in _lines(file, start, end):
        if _ESCAPE.search(block):
            noted.add("damaged-quoted-printable")
        yield binascii.a2b_qp(block)
