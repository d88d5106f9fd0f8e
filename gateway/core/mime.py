"""The MIME structure of a message in a file: a stream of leaf parts as byte ranges.

One pass finds the delimiter lines with ``bytes.find`` in large blocks; nothing but header blocks is ever held. Any
multipart is walked as ``multipart/mixed`` (AMB-18), and message/rfc822 is entered (AMB-17). Damage is tolerated
and noted: a missing closing boundary, text where a header should be, a multipart without boundary.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from gateway.core import header
from gateway.core.findings import finding
from gateway.model import Finding

BLOCK: Final = 256 << 10
"""Bytes read at once while looking for delimiters."""

BOUNDARY_LIMIT: Final = 998
"""Bytes of a boundary. RFC 2046 §5.1.1 allows 70; a longer one must still fit a line (RFC 5322 §2.1.1)."""

_MARGIN: Final = 2048
"""Bytes that surely hold a delimiter line with blanks behind it."""

_HEADER_GUESS: Final = 4096
MESSAGES: Final = ("message/rfc822", "message/global")
"""Types whose body is a message (RFC 2046 §5.2.1, RFC 6532 §3.7)."""

_UNFINISHED: Final = re.compile(rb"(?:(?:[!-9;-~]++[ \t]*+:|[ \t]|From )[^\n]*+|[!-9;-~]{1,998}+[ \t]*+|\r?)\Z")
"""Matches where a header line may go on behind the bytes that were read."""

_DELIMITER: Final = re.compile(rb"\s*+--([^\r\n]{1,70}?)[ \t]*+\r?\n(?=content-)", re.IGNORECASE)
"""Matches a body that begins with a delimiter and the header of a part."""

_IDENTITY: Final = frozenset({"", "7bit", "8bit", "binary"})


@dataclass(frozen=True, slots=True)
class Part:
    """A leaf part: what its header says and where its body lies.

    Attributes:
        section: Its IMAP section number (RFC 9051 §6.4.5.1).
        type: Media type in lower case; ``text/plain`` when none is declared.
        encoding: Content-Transfer-Encoding in lower case; empty when none is declared.
        parameters: Of the Content-Type, names in lower case.
        filename: Of the Content-Disposition; a label, never a path (AMB-6).
        start: Offset of the body.
        end: Offset behind the body, without the line end that belongs to the delimiter.
        depth: How deep it is nested.
    """

    section: str
    type: str
    encoding: str
    parameters: dict[str, str]
    filename: str | None
    start: int
    end: int
    depth: int


@dataclass(frozen=True, slots=True)
class Head:
    """What the header of one entity says about its content, and about who wrote it.

    Attributes:
        type: Media type in lower case.
        boundary: Of a multipart; empty when it has none.
        parameters: Of the Content-Type, names in lower case.
        encoding: Content-Transfer-Encoding in lower case.
        filename: Of the Content-Disposition.
        auto_submitted: In lower case (RFC 3834 §5).
        subject: As it is written.
        sender: The From field as it is written.
        return_path: As the last system wrote it; empty when there is none.
        precedence: In lower case.
        failed: It names recipients that were not reached.
    """

    type: str = "text/plain"
    boundary: bytes = b""
    parameters: dict[str, str] = field(default_factory=dict)
    encoding: str = ""
    filename: str | None = None
    auto_submitted: str = ""
    subject: str = ""
    sender: str = ""
    return_path: str = ""
    precedence: str = ""
    failed: bool = False


@dataclass(slots=True)
class _Multipart:
    """A multipart whose closing delimiter has not come."""

    prefix: str
    needle: bytes
    line: re.Pattern[bytes]
    depth: int
    section: str
    children: int = 0


class Walk:
    """Walks one message. Iterate over it once to get its leaf parts; then read what was noticed.

    Attributes:
        head: The header of the message itself, known from the start.
        findings: What was noticed; complete when the iteration has ended.
        cut: A limit on the whole message was hit, and the rest of it was not looked at.
        unfinished: Section of the leaf part that the message ends in without any delimiter behind it.

    Args:
        file: Descriptor of the file the message lies in.
        start: Offset of its first byte.
        end: Offset behind its last byte.
        parts: Most leaf parts.
        depth: Deepest nesting.
        header_limit: Most bytes in one header.
        prefix: Section of the message/rfc822 part this message came in, with a dot; empty for the outermost.
        level: How deep this message lies already.
    """

    def __init__(
        self,
        file: int,
        start: int,
        end: int,
        *,
        parts: int,
        depth: int,
        header_limit: int,
        prefix: str = "",
        level: int = 0,
    ) -> None:
        self.findings: list[Finding] = []
        self.cut = False
        self.unfinished: str | None = None
        self._file = file
        self._end = end
        self._parts = parts
        self._depth = depth
        self._header_limit = header_limit
        self._stack: list[_Multipart] = []
        self._block = b""
        self._base = -1
        self._hits: dict[bytes, int] = {}
        self._prefix = prefix
        self._level = level
        self._body = start
        self.head, _ = self._read_head(start, prefix.removesuffix("."))

    def __iter__(self) -> Iterator[Part]:
        leaf = self._open(self.head, self._body, self._prefix, self._level)
        at = max(self._body - 1, 0)
        count = 0
        while not self.cut and (hit := self._next(at)) is not None:
            place, at, multipart, closes = hit
            if leaf is not None:
                yield self._close(leaf, place)
            del self._stack[self._stack.index(multipart) + 1 :]
            leaf = None
            if closes:
                self._stack.pop()
            else:
                count += 1
                if count > self._parts:
                    self.findings.append(finding("too-many-parts"))
                    self.cut = True
                    return
                multipart.children += 1
                section = f"{multipart.prefix}{multipart.children}"
                head, body = self._read_head(at, section)
                leaf = self._open(head, body, section, multipart.depth)
            # The header was searched when it was read; the line end before the body may begin the next delimiter.
            at = max(at, self._body) - 1
        if self._stack and not self.cut:
            self.findings.append(finding("missing-boundary", self._stack[-1].section))
            self.unfinished = leaf.section if leaf else None
        if leaf is not None:
            yield leaf

    def _open(self, head: Head, body: int, section: str, depth: int) -> Part | None:
        """Begin an entity: a multipart goes on the stack, a message is entered, anything else is an open leaf."""
        # The body of a message has no number of its own: its section is empty or ends in a dot.
        inner = bool(section) and not section.endswith(".")
        while True:
            kind = head.type.partition("/")[0]
            nests = head.encoding in _IDENTITY and (kind == "multipart" or head.type in MESSAGES)
            if nests and depth >= self._depth:
                self.findings.append(finding("too-deep", section.removesuffix(".")))
                nests = False
            if not nests:
                break
            depth += 1
            if kind == "multipart":
                if self._push(head, section, depth, inner=inner):
                    return None
                break
            # A message inside a message: its parts are numbered below it.
            section = section if inner else section + "1"
            head, body = self._read_head(body, section)
            section += "."
            inner = False
        if not inner:
            section += "1"
        return Part(section, head.type, head.encoding, head.parameters, head.filename, body, self._end, depth)

    def _push(self, head: Head, section: str, depth: int, *, inner: bool) -> bool:
        boundary = head.boundary
        number = section.removesuffix(".")
        if not 0 < len(boundary) <= BOUNDARY_LIMIT:
            self.findings.append(finding("no-boundary", number))
            # QUIRK: a gateway that rewrote the header lost the parameter (mail/cpython/msg_25.txt of the corpus).
            guess = _DELIMITER.match(os.pread(self._file, min(_MARGIN, self._end - self._body), self._body))
            if not guess:
                return False
            boundary = guess[1]
        # An exact line is asked for: a boundary may be the beginning of another one.
        line = re.compile(rb"\n--" + re.escape(boundary) + rb"(--)?[ \t]*+(?:\r?\n|\r?\Z)")
        prefix = f"{section}." if inner else section
        self._stack.append(_Multipart(prefix, b"\n--" + boundary, line, depth, number))
        return True

    def _close(self, leaf: Part, place: int) -> Part:
        end = max(place, leaf.start)
        if end > leaf.start and self._block[end - 1 - self._base : end - self._base] == b"\r":
            end -= 1
        return Part(
            leaf.section,
            leaf.type,
            leaf.encoding,
            leaf.parameters,
            leaf.filename,
            leaf.start,
            end,
            leaf.depth,
        )

    def _next(self, at: int) -> tuple[int, int, _Multipart, bool] | None:
        """Find the next delimiter line: where it begins and ends, whose it is, and whether it closes."""
        while (place := self._find(at)) is not None:
            ends = self._base + len(self._block) == self._end
            for multipart in reversed(self._stack):
                match = multipart.line.match(self._block, place - self._base)
                # At the end of a block, blanks without end are no delimiter line; at the end of the message they are.
                if match and (ends or match.end() < len(self._block)):
                    return self._base + match.start(), self._base + match.end(), multipart, bool(match[1])
            at = place + 1
        return None

    def _find(self, at: int) -> int | None:
        """Find the next place where any delimiter begins. Each block is searched once for each of them."""
        if not self._stack:
            return None
        while at < self._end:
            if not self._base <= at < self._base + BLOCK or self._base < 0:
                # One byte in front shows the CR of a line end, and a margin behind the whole of a delimiter line.
                self._base = max(at - 1, 0)
                self._block = os.pread(self._file, min(BLOCK + _MARGIN, self._end - self._base), self._base)
                self._hits.clear()
            # A hyphen is found far quicker than a word, and base64 has none: most blocks are done here.
            relative = self._block.find(b"-", at - self._base + 1) - 1
            if relative < 0:
                at = self._base + BLOCK
                continue
            best = BLOCK
            for multipart in self._stack:
                hit = self._hits.get(multipart.needle, -1)
                if hit < relative:
                    hit = self._block.find(multipart.needle, relative)
                    hit = self._hits[multipart.needle] = BLOCK if hit < 0 else hit
                best = min(best, hit)
            if best < BLOCK:
                return self._base + best
            at = self._base + BLOCK
        return None

    def _read_head(self, start: int, section: str) -> tuple[Head, int]:
        """Read the header that begins at a place, and tell where the body begins."""
        size = _HEADER_GUESS
        while True:
            # One byte more in front: the delimiter that ends a part without body may follow at once.
            before = 1 if start else 0
            chunk = self._bytes(start - before, min(size, self._end - start) + before)
            limit = min((p for m in self._stack if (p := chunk.find(m.needle)) >= 0), default=len(chunk))
            last = limit < len(chunk) or start - before + len(chunk) >= self._end
            block = chunk[before : max(limit + 1, before)] if limit < len(chunk) else chunk[before:]
            end = header.BLOCK.match(block).end()  # type: ignore[union-attr]  # it matches the empty string at least
            if last or size > self._header_limit or not _UNFINISHED.match(block, end):
                break
            size *= 4
        if end > self._header_limit or (not last and _UNFINISHED.match(block, end)):
            self.findings.append(finding("header-too-long", section))
            self.cut = True
            self._body = start
            return Head("application/octet-stream"), start
        body = end
        if block.startswith(b"\r\n", end):
            body += 2
        elif block.startswith(b"\n", end):
            body += 1
        self._body = start + body
        return _head(block[:end]), self._body

    def _bytes(self, start: int, size: int) -> bytes:
        """Read from the block at hand where it can be."""
        at = start - self._base
        if at >= 0 and at + size <= len(self._block):
            return self._block[at : at + size]
        return os.pread(self._file, size, start)


def _head(block: bytes) -> Head:
    values: dict[str, str] = {}
    for name, value in header.fields(block):
        values.setdefault(name, value)
    kind, parameters = header.parameters(values.get("content-type", ""))
    if kind.count("/") != 1:
        kind = "text/plain"
    boundary = parameters.pop("boundary", "")  # bytes that are no text may be in it
    _, disposition = header.parameters(values.get("content-disposition", ""))
    filename = disposition.get("filename")
    encoding = values.get("content-transfer-encoding", "").partition(";")[0].strip().lower()
    return Head(
        type=header.printable(kind),
        boundary=boundary.rstrip().encode("utf-8", "surrogateescape"),
        parameters={name: header.printable(text) for name, text in parameters.items()},
        encoding=encoding,
        filename=filename and header.printable(filename),
        auto_submitted=values.get("auto-submitted", "").lower(),
        subject=values.get("subject", ""),
        sender=values.get("from", ""),
        return_path=values.get("return-path", ""),
        precedence=values.get("precedence", "").lower(),
        failed="x-failed-recipients" in values,
    )
