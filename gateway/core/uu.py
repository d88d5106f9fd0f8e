"""Files that old programs put into text as uuencode (AMB-16), found line by line."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator
from typing import Final

from gateway.core.dataset import Problem

BLOCK: Final = 256 << 10
"""Bytes that are decoded at once."""

_BEGIN: Final = re.compile(rb"begin [0-7]{3,4} ([^\r\n]{1,255})\r?\n?\Z")
_LINE_LIMIT: Final = 998


def lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines with their ends. A line that is too long for a mail comes in pieces."""
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).splitlines(keepends=True) or [b""]
        yield from whole
        if rest.endswith(b"\n") or len(rest) > _LINE_LIMIT:
            yield rest
            rest = b""
    if rest:
        yield rest


def files(text: Iterator[bytes]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield name and content of each file in the lines of a text. Take the content of each before the next."""
    for line in text:
        if match := _BEGIN.match(line):
            yield match[1].decode("latin-1"), _content(text)


def _content(text: Iterator[bytes]) -> Iterator[bytes]:
    """Decode up to the line ``end``. Raises Problem ``damaged-uuencode`` when a line is none, or the end is missing."""
    decoded = bytearray()
    for line in text:
        bare = line.rstrip(b"\r\n")
        if bare == b"end":
            yield bytes(decoded)
            return
        try:
            decoded += binascii.a2b_uu(bare or b" ")
        except binascii.Error:
            raise Problem("damaged-uuencode") from None
        if len(decoded) > BLOCK:
            yield bytes(decoded)
            decoded.clear()
    raise Problem("damaged-uuencode")
