"""Fragments of a message joined again (RFC 2046 §5.2.2.1, as amended by RFC 8098 §2.4).

A pure function of the pieces: who belongs to whom, and whether all came, is decided by those who keep them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from gateway.core import header
from gateway.errors import GatewayError
from gateway.model import Span

BLOCK: Final = 1 << 20
"""Bytes copied at once."""

_FROM_INNER: Final = ("subject", "message-id", "encrypted", "mime-version")
_RECEIPT: Final = ("disposition-notification-to", "disposition-notification-options", "original-recipient")
_SET: Final = "x-telemedicine-"


def join(fragments: Sequence[Span], header_limit: int, out: BinaryIO) -> Span:
    """Write the message that was cut into fragments.

    The result may be a fragment itself, of a bigger message (PRT-6).

    Args:
        fragments: Whole messages of type message/partial, in the order of their numbers, all of them.
        header_limit: Most bytes in one header.
        out: Where the message is appended. Not synced, not closed.

    Raises:
        GatewayError: A header is longer than the limit.
        OSError: A fragment cannot be read, or the disk does not take the message.
    """
    start = out.seek(0, os.SEEK_END)
    outer, inner, merged = b"", b"", False
    for number, fragment in enumerate(fragments, 1):
        last = number == len(fragments)
        with fragment.path.open("rb", buffering=0) as file:
            block, body = _header(file, fragment.start, fragment.end, header_limit)
            outer = outer or block
            if not merged:
                begun = body
                more, body = _header(file, begun, fragment.end, header_limit - len(inner))
                inner += more
                if body == begun + len(more) == fragment.end and not last:
                    continue  # cut inside the header: it goes on in the next one
                out.write(merge(outer, inner))
                merged = True
            _copy(file, body, fragment.end, out, seam=not last)
    out.flush()
    return Span(Path(out.name), start, out.tell())


def merge(outer: bytes, inner: bytes) -> bytes:
    """Merge the header of the first fragment and that of the message in it, with the empty line (PRT-3 to PRT-5)."""
    kept = [raw for name, raw in _fields(outer) if not is_inner(name) or name.startswith(_SET)]
    # Fields of a @GIT set are kept though RFC 2046 drops them: the one known sender writes them only there (PRT-5).
    kept += [raw for name, raw in _fields(inner) if is_inner(name)]
    return b"".join(kept) + b"\r\n"


def is_inner(name: str) -> bool:
    """Tell whether a field, named in lower case, is taken from the message that was cut, not from its first piece."""
    return name.startswith(("content-", _SET)) or name in _FROM_INNER or name in _RECEIPT


def _fields(block: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield name and raw lines of each field."""
    for match in header.FIELD.finditer(block):
        yield match[1].decode("ascii").lower(), match[0].rstrip(b"\r\n") + b"\r\n"


def _header(file: BinaryIO, start: int, end: int, limit: int) -> tuple[bytes, int]:
    """Read a header; return it and where its body begins."""
    chunk = os.pread(file.fileno(), min(limit + 2, end - start), start)
    size = header.BLOCK.match(chunk).end()  # type: ignore[union-attr]  # it matches the empty string at least
    if size > limit or (size < len(chunk) == limit + 2 and b"\n" not in chunk[size:]):
        raise GatewayError("the header of a message/partial is too long", hint="raise limits.header")
    body = size
    if chunk.startswith(b"\r\n", size):
        body += 2
    elif chunk.startswith(b"\n", size):
        body += 1
    return chunk[:size], start + body


def _copy(file: BinaryIO, start: int, end: int, out: BinaryIO, *, seam: bool) -> None:
    """Copy a body; before a seam see that it ends with one line end.

    QUIRK: a known sender cuts at LF and drops the LF itself, so that a fragment ends in a bare CR, to which relays add
    a line end of their own (PRT-9).
    """
    tail = os.pread(file.fileno(), min(3, end - start), max(end - 3, start))
    stop = end
    if seam:
        if tail.endswith(b"\r\r\n"):
            stop -= 3
        elif tail.endswith(b"\r"):
            stop -= 1
        elif tail.endswith(b"\n") or not tail:
            seam = False
    while start < stop and (block := os.pread(file.fileno(), min(BLOCK, stop - start), start)):
        start += len(block)
        out.write(block)
    if seam:
        out.write(b"\r\n")
