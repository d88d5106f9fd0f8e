"""Mail data on the wire (RFC 5321 §4.5.2): where it ends, which dots are not part of it, and what its bytes hash to."""

from __future__ import annotations

import hashlib
import re
from typing import Final, TypeAlias

from gateway.model import Digest

Block: TypeAlias = bytes | bytearray | memoryview

END: Final = b"\r\n.\r\n"
"""Ends the data. Nothing else does: neither a bare CR nor a bare LF is a line end (RFC 5321 §2.3.8)."""

_STUFFED: Final = END[:3]
_HELD: Final = (END[:4], END[:3], END[:2], END[:1])
_BLANK_LINE: Final = re.compile(rb"(\A|\n)\r?\n")


class MailData:
    """Takes the data of one DATA command in blocks cut anywhere, and gives the content back without transparency.

    The line end before the final dot belongs to the content (RFC 5321 §4.1.1.4). Bare CR and LF stay as they came.
    """

    def __init__(self) -> None:
        # The data begins at a line start, so a virtual line end is put before it and taken away again below.
        self._held = END[:2]
        self._virtual = 2

    def feed(self, block: bytes) -> tuple[bytes | memoryview, bytes | None]:
        """Take the next block.

        Returns:
            The content that is certain by now; and None, or what followed the end of the data. Nothing may be fed
            after that.
        """
        block = self._held + block
        end = -1
        # One memchr decides for blocks without any dot, which is most of a base64 body.
        if b"." in block:
            end = block.find(END)
            if end >= 0:
                return self._content(block[: end + 2]), block[end + len(END) :]
        self._held = next((tail for tail in _HELD if block.endswith(tail)), b"")
        return self._content(block[: -len(self._held)] if self._held else block), None

    def _content(self, block: bytes) -> bytes | memoryview:
        content = block.replace(_STUFFED, END[:2]) if b"." in block else block
        if self._virtual:
            skip = min(self._virtual, len(content))
            self._virtual -= skip
            return memoryview(content)[skip:]
        return content


class Transparency:
    """Doubles the dots at line starts of a content that is sent in blocks cut anywhere; ``MailData`` undoes it.

    Only CRLF is a line end, here as there.
    """

    def __init__(self) -> None:
        self._last = END[:2]  # the data begins at a line start

    def feed(self, block: bytes) -> bytes:
        """The next block as it goes on the wire."""
        if not block:
            return block
        last, self._last = self._last, (self._last + block[-2:])[-2:]
        return (last + block).replace(_STUFFED, _STUFFED + b".")[len(last) :]

    def end(self) -> bytes:
        """What ends the data: the missing line end, if any, and the final dot."""
        return END[2:] if self._last == END[:2] else END


class Digester:
    """Hashes the content of one message while it is written down, and keeps its header.

    The header ends at the first empty line; here a bare LF counts as a line end, as it does for every reader of stored
    messages. The body is hashed once; the hash of the whole is made of the header and the hash of the body, because a
    second pass over a large message would cost more than everything else that is done with it at the door.

    Args:
        header_limit: Bytes that a header may have.
    """

    def __init__(self, header_limit: int) -> None:
        self._limit = header_limit
        self._size = 0
        self._header = bytearray()
        self._whole = hashlib.sha256()
        self._body: hashlib._Hash | None = None

    @property
    def header_too_long(self) -> bool:
        """The header is over the limit; what comes behind it does not matter any more."""
        # A CR at a line start may be the empty line cut in two, which is no part of the header.
        return len(self._header) - self._header.endswith(b"\n\r") > self._limit

    def update(self, block: Block) -> None:
        """Take the next block of the content."""
        self._size += len(block)
        if self._body is not None:
            self._body.update(block)
        elif not self.header_too_long:
            self._look_for_body(block)

    def _look_for_body(self, block: Block) -> None:
        known = len(self._header)
        self._header += block
        blank = _BLANK_LINE.search(self._header, max(0, known - 2))
        if blank is not None:
            with memoryview(self._header) as content:
                self._whole.update(content[: blank.end()])
                self._body = hashlib.sha256(content[blank.end() :])
            del self._header[blank.end(1) :]

    def digest(self) -> Digest:
        """What was learned of the whole."""
        whole = self._whole.copy()
        whole.update(self._header if self._body is None else self._body.digest())
        return Digest(
            size=self._size,
            sha256=whole.hexdigest(),
            body_sha256="" if self._body is None else self._body.hexdigest(),
            header=bytes(self._header),
        )
