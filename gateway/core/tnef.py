"""The files in a TNEF stream (MS-OXTNEF), the ``winmail.dat`` of Outlook and Exchange (AMB-15).

The stream is a list of attributes; an attachment is a run of them, with its content either in one of its own or in
a MAPI property. Both are walked by offset and nothing but names and places is kept: the parsers there are hold every
attachment in memory, and none has been kept up for years. Checksums are not compared, since not all writers care;
DICOM is judged by its own rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import IO, Final

from gateway.core.archive import BLOCK, NAME_LIMIT, Budget, Member
from gateway.core.dataset import Problem
from gateway.core.header import printable

TYPES: Final = frozenset({"application/ms-tnef", "application/vnd.ms-tnef"})

STEPS: Final = 100_000
"""Attributes and properties in one stream: thousands for each attachment would be no mail."""

UNTITLED: Final = "Untitled Attachment"
"""What Outlook calls a file without a name."""

_HEAD: Final = 6  # signature and key
_ATTRIBUTE: Final = Struct("<BLL")
_CHECKSUM: Final = 2
_MESSAGE, _ATTACHMENT = 1, 2
_LEVELS: Final = (_MESSAGE, _ATTACHMENT)

_CODEPAGE: Final = 0x00069007
_RENDERING: Final = 0x00069002
_TITLE: Final = 0x00018010
_DATA: Final = 0x0006800F
_ATTACHMENT_PROPERTIES: Final = 0x00069005
_MESSAGE_PROPERTIES: Final = 0x00069003

_TAG: Final = Struct("<HH")
_NUMBER: Final = Struct("<L")
_STRING8, _UNICODE, _BINARY, _OBJECT = 0x1E, 0x1F, 0x0102, 0x0D
_VARIABLE: Final = (_STRING8, _UNICODE, _BINARY, _OBJECT)
_FIXED: Final = {
    **dict.fromkeys((0x00, 0x01, 0x02, 0x03, 0x04, 0x0A, 0x0B), 4),
    **dict.fromkeys((0x05, 0x06, 0x07, 0x14, 0x40), 8),
    0x48: 16,
}
"""Bytes of a value by its type, padding included."""

_MULTIPLE: Final = 0x1000
_NAMED: Final = 0x8000
_GUID: Final = 16

_DISPLAY_NAME: Final = 0x3001
_CONTENT: Final = 0x3701
_SHORT_NAME: Final = 0x3704
_LONG_NAME: Final = 0x3707
_BODIES: Final = {0x1009: "body.rtf", 0x1013: "body.html"}
"""PidTagRtfCompressed, as it is, and PidTagBodyHtml: text of the mail, which may hold a link."""

_PRECEDENCE: Final = (_LONG_NAME, _TITLE, _DISPLAY_NAME, _SHORT_NAME)


@dataclass(slots=True)
class _File:
    names: dict[int, str] = field(default_factory=dict)
    start: int = 0
    end: int = 0


def unpack(file: IO[bytes], budget: Budget, most: int) -> Iterator[Member]:
    """Yield the attachments of a stream, and behind them the bodies of its message.

    Args:
        file: The stream; that it begins with the signature is why it is here.
        budget: What may be unpacked; it shrinks as content is taken.
        most: Most attachments.

    Raises:
        Problem: ``too-many-members``; ``damaged-archive``: it does not go on to its end as it should, so there may have
            been more than was yielded.
    """
    walk = _Walk(file, most)
    try:
        walk.stream()
        damaged = False
    except _EndError:
        damaged = True
    for one in (*walk.attachments, *walk.bodies):
        if one.start:
            name = next((one.names[key] for key in _PRECEDENCE if one.names.get(key)), UNTITLED)
            yield Member(name, _content(file, one, budget))
    if damaged:
        raise Problem("damaged-archive")


def _content(file: IO[bytes], one: _File, budget: Budget) -> Iterator[bytes]:
    at = one.start
    while at < one.end:
        file.seek(at)
        block = file.read(min(BLOCK, one.end - at))
        at += len(block)
        budget.left -= len(block)
        if budget.left < 0:
            raise Problem("unpacked-too-big")
        yield block


class _EndError(Exception):
    """The bytes are not what should be there."""


class _Walk:
    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        self._most = most
        self._steps = 0
        self._codepage = "latin-1"
        self.attachments: list[_File] = []
        self.bodies: list[_File] = []

    def stream(self) -> None:
        """Go over all attributes."""
        at = _HEAD
        # QUIRK: a line end behind the last attribute (mail-tnef/MimeKit/garbage-at-end.tnef of the corpus).
        while at + _ATTRIBUTE.size <= self._size:
            self._step()
            level, attribute, length = _ATTRIBUTE.unpack(self._read(at, _ATTRIBUTE.size))
            at += _ATTRIBUTE.size
            if level not in _LEVELS:
                raise _EndError
            self._demand(at, length)
            self._attribute(level, attribute, at, length)
            at += length + _CHECKSUM

    def _attribute(self, level: int, attribute: int, at: int, length: int) -> None:
        if level == _MESSAGE:
            if attribute == _CODEPAGE and length >= _NUMBER.size:
                self._codepage = f"cp{self._number(at)}"
            elif attribute == _MESSAGE_PROPERTIES:
                self._properties(at, at + length, None)
            return
        if attribute == _RENDERING or not self.attachments:
            if len(self.attachments) >= self._most:
                raise Problem("too-many-members")
            self.attachments.append(_File())
        attachment = self.attachments[-1]
        if attribute == _DATA:
            attachment.start, attachment.end = at, at + length
        elif attribute == _TITLE:
            attachment.names[_TITLE] = self._text(at, length, _STRING8)
        elif attribute == _ATTACHMENT_PROPERTIES:
            self._properties(at, at + length, attachment)

    def _properties(self, at: int, end: int, attachment: _File | None) -> None:
        """Go over the MAPI properties of an attachment, or of the message."""
        count = self._number(at)
        at += _NUMBER.size
        for _ in range(count):
            if at + _TAG.size > end:
                raise _EndError
            self._step()
            kind, name = _TAG.unpack(self._read(at, _TAG.size))
            at += _TAG.size
            if name >= _NAMED:
                at = self._skip_name(at)
            values = 1
            if kind & _MULTIPLE or kind in _VARIABLE:
                values = self._number(at)
                at += _NUMBER.size
            for _ in range(values):
                self._step()
                at, start, length = self._value(at, kind & ~_MULTIPLE)
                if at > end:
                    raise _EndError
                self._property(name, kind, start, length, attachment)

    def _skip_name(self, at: int) -> int:
        """Go over the name of a property that is called by one."""
        at += _GUID
        kind, length = self._number(at), self._number(at + _NUMBER.size)
        at += 2 * _NUMBER.size
        return at + _padded(length) if kind else at

    def _value(self, at: int, kind: int) -> tuple[int, int, int]:
        """Return where the next value begins, where this one does, and its length."""
        if kind in _VARIABLE:
            length = self._number(at)
            at += _NUMBER.size
            return at + _padded(length), at, length
        if kind not in _FIXED:
            raise _EndError
        return at + _FIXED[kind], at, _FIXED[kind]

    def _property(self, name: int, kind: int, at: int, length: int, attachment: _File | None) -> None:
        if attachment is None:
            if name in _BODIES and length:
                self.bodies.append(_File({_TITLE: _BODIES[name]}, at, at + length))
        elif name == _CONTENT and attachment.end == attachment.start:
            # An object begins with the identifier of its kind; a message inside is a stream of its own.
            skip = _GUID if kind == _OBJECT and length > _GUID else 0
            attachment.start, attachment.end = at + skip, at + length
        elif name in _PRECEDENCE and kind in (_STRING8, _UNICODE):
            attachment.names.setdefault(name, self._text(at, length, kind))

    def _text(self, at: int, length: int, kind: int) -> str:
        """Read a name: the last component of what may have been a path."""
        raw = self._read(at, min(length, 2 * NAME_LIMIT))
        try:
            text = raw.decode("utf-16-le" if kind == _UNICODE else self._codepage, "replace")
        except LookupError:
            text = raw.decode("latin-1")
        text = text.partition("\0")[0].replace("\\", "/").rpartition("/")[2].strip()
        return printable(text)[:NAME_LIMIT]

    def _number(self, at: int) -> int:
        (number,) = _NUMBER.unpack(self._read(at, _NUMBER.size))
        return int(number)

    def _read(self, at: int, size: int) -> bytes:
        self._demand(at, size)
        self._file.seek(at)
        return self._file.read(size)

    def _demand(self, at: int, size: int) -> None:
        if at + size > self._size:
            raise _EndError

    def _step(self) -> None:
        self._steps += 1
        if self._steps > STEPS:
            raise Problem("too-many-members")


def _padded(length: int) -> int:
    return length + -length % 4
