"""A data set walked element by element to its end (PS3.5 7), without building anything from it.

The walk keeps its place on a list of its own, not on the call stack, skips values without reading them, and holds at
most one piece of the file. It tells whether the data set parses, and picks the few values the gateway acts on.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from struct import Struct
from typing import Final, Protocol

IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
GE_IMPLICIT: Final = "1.2.840.113619.5.2"

NESTING_LIMIT: Final = 64
"""Sequences inside each other. Structured reports of real systems stay below twenty."""

VALUE_LIMIT: Final = 16 << 10
"""Bytes of a value that is picked; a longer one is none of those the gateway acts on."""

FOUND_LIMIT: Final = 200_000
"""Values that are picked from one data set: a DICOMDIR of some fifty thousand files."""

PIECE: Final = 64 << 10
"""Bytes read at once behind a value that was skipped."""

ITEM: Final = 0xFFFEE000
"""The tag of an item (PS3.5 7.5)."""

_LAST: Final = 0xFFFFFFFF
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_PIXEL_DATA: Final = 0x7FE00010
UNDEFINED: Final = 0xFFFFFFFF
"""A length that a delimiter tells."""

_SHORT: Final = frozenset(
    (
        *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN"),
        *(b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
    )
)

_RUN_LIMIT: Final = 64
"""Bytes of a value that is gone over with its neighbours."""

_ITEM_BYTES: Final = b"\xfe\xff\x00\xe0"
_ENDLESS: Final = 1 << 62
_BEHIND_ALL: Final = 1 << 32
_EXPLICIT_HEAD: Final = Struct("<L2sH").unpack_from
_IMPLICIT_HEAD: Final = Struct("<LL").unpack_from

_SEQUENCE, _DATA_SET, _FRAGMENTS = range(3)


class Source(Protocol):
    """Bytes that can be asked for in rising order."""

    def piece(self, offset: int) -> bytes | None:
        """Return bytes from an offset on, ``PIECE`` of them unless the end is nearer; None for one behind the end."""


class Problem(Exception):  # noqa: N818  # not an error of the program: the code of a finding, on its way out of the walk
    """The data set cannot be used."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Stored:
    """A source in a file.

    Args:
        read: Returns up to a number of bytes from an offset of the file.
        first: The bytes that are at hand.
        end: Size of the file.
    """

    def __init__(self, read: Callable[[int, int], bytes], first: bytes, end: int) -> None:
        self._read = read
        self._first = first
        self._end = end

    def piece(self, offset: int) -> bytes | None:
        """Return bytes from an offset on."""
        if offset > self._end:
            return None
        if offset + PIECE <= len(self._first) or len(self._first) == self._end:
            return self._first[offset : offset + PIECE]
        return self._read(offset, min(PIECE, self._end - offset))


class Inflated:
    """A deflated data set (PS3.5 A.5), inflated as it is walked.

    Args:
        source: Where the deflated bytes lie.
        start: Offset of the first of them.
        limit: Most bytes it may inflate to. Beyond it: Problem.
    """

    def __init__(self, source: Source, start: int, limit: int) -> None:
        self._source = source
        self._next = start
        self._limit = limit
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._window = b""
        self._base = 0

    def piece(self, offset: int) -> bytes | None:
        """Return inflated bytes from an offset on."""
        if offset < self._base:
            raise Problem("damaged-data-set")  # what a wrong guess led over is not inflated again
        while offset + PIECE > self._base + len(self._window) and self._more(offset):
            pass
        if offset > self._base + len(self._window):
            return None
        return self._window[offset - self._base :]

    def _more(self, offset: int) -> bool:
        if self._inflate.eof:
            return False
        raw = self._inflate.unconsumed_tail
        if not raw:
            raw = self._source.piece(self._next) or b""
            self._next += len(raw)
        try:
            block = self._inflate.decompress(raw, PIECE)
        except zlib.error:
            raise Problem("damaged-data-set") from None
        drop = min(max(offset - self._base, 0), len(self._window))
        self._window = self._window[drop:] + block
        self._base += drop
        if self._base + len(self._window) > self._limit:
            raise Problem("unpacked-too-big")
        return bool(raw or block)


@dataclass(frozen=True, slots=True)
class Found:
    """A value that was picked.

    Attributes:
        depth: 0 for the data set itself, one more for each item it is in.
        tag: Group and element.
        value: Its bytes.
    """

    depth: int
    tag: int
    value: bytes


@dataclass(slots=True)
class _Level:
    kind: int
    end: int  # behind its last byte; -1 when a delimiter ends it
    limit: int  # what it lies in ends here at the latest
    explicit: bool
    guessed: bool = False


@dataclass(slots=True)
class Walked:
    """What a walk has seen.

    Attributes:
        found: The values asked for.
        padded: Zero bytes follow the data set.
        ends_with_pixels: Its last element is Pixel Data: nothing can be missing behind it.
    """

    found: list[Found] = field(default_factory=list)
    padded: bool = False
    ends_with_pixels: bool = False


def walk(
    source: Source,
    start: int,
    transfer_syntax: str,
    wanted: frozenset[int],
    *,
    nested: bool = False,
    deepest: int = NESTING_LIMIT,
    until: int = _LAST,
) -> Walked:
    """Walk a data set to its end, or as far as it is asked for.

    Args:
        source: Where it lies. A deflated one is inflated by the caller.
        start: Offset of its first element.
        transfer_syntax: What its bytes are in. Every syntax that is not named here is Explicit VR Little Endian.
        wanted: Tags whose values are picked.
        nested: Pick them in items, too. With ``ITEM`` among the wanted, each sequence and each of its items leaves a
            mark before what is in it: an empty value, for an item at the depth of its content.
        deepest: The depth beyond which nothing is picked.
        until: The walk may end before the first element of the data set itself that has a higher tag. It does so before
            one that is wanted, or is not an ordinary one.

    Raises:
        Problem: It does not parse: ``truncated-data-set``, ``damaged-data-set``, ``nested-too-deep``,
            ``wrong-transfer-syntax``.
    """
    return _Walk(source, start, transfer_syntax, wanted, deepest if nested else 0, until).run()


@dataclass(slots=True)
class Place:
    """Where an element of the data set itself lies.

    Attributes:
        start: Offset of its tag.
        content: Offset of its value.
        end: Offset behind it, its delimiter included.
        vr: Its VR; empty in Implicit VR.
        length: As its header says it.
        value: Its value; None when that is a sequence, or too long to be picked.
    """

    start: int
    content: int
    end: int
    vr: bytes
    length: int
    value: bytes | None = None


@dataclass(slots=True)
class Chart:
    """Where elements of a data set lie, and where those that are absent would.

    Attributes:
        places: By tag, each that is there.
        gaps: By tag, the offset of the first element behind it in the order of tags, or the end of the data set.
    """

    places: dict[int, Place] = field(default_factory=dict)
    gaps: dict[int, int] = field(default_factory=dict)


def locate(source: Source, start: int, transfer_syntax: str, tags: frozenset[int]) -> Chart:
    """Find where elements of a data set lie, those in items left aside. Else as ``walk``.

    Raises:
        Problem: As in ``walk``, and ``repeated-element`` when one of them is there twice.
    """
    return _Locate(source, start, transfer_syntax, tags).locate()


@dataclass(frozen=True, slots=True)
class _Sight:
    """What a walk looks for.

    Attributes:
        picks: Wanted tags, by the little endian number as which one is read.
        stops: Such numbers of all that needs a closer look.
        groups: The first bytes of their groups.
        run: Matches ordinary elements of all other groups, short ones, in Explicit VR Little Endian: most of a data
            set in one call, since a modality's vendor adds much for itself.
    """

    picks: dict[int, int]
    stops: frozenset[int]
    groups: frozenset[int]
    run: Callable[[bytes, int, int], re.Match[bytes] | None]


@lru_cache(maxsize=8)
def _look_for(wanted: frozenset[int]) -> _Sight:
    picks = {(tag & 0xFFFF) << 16 | tag >> 16: tag for tag in wanted}
    closer = ((tag & 0xFFFF) << 16 | tag >> 16 for tag in (ITEM, _ITEM_END, _SEQUENCE_END, _PIXEL_DATA, 0))
    stops = frozenset((*picks, *closer))
    groups = frozenset(number & 0xFF for number in stops)
    tag = b"[^%b].{3}" % b"".join(b"\\x%02x" % group for group in sorted(groups))
    values = b"|".join(b"\\x%02x\0.{%d}" % (length, length) for length in range(0, _RUN_LIMIT + 1, 2))
    run = b"(?:%b(?:%b)(?:%b))*+" % (tag, b"|".join(sorted(_SHORT)), values)
    return _Sight(picks, stops, groups, re.compile(run, re.DOTALL).match)


class _Walk:
    def __init__(
        self, source: Source, start: int, syntax: str, wanted: frozenset[int], deepest: int, until: int
    ) -> None:
        order = ">" if syntax == BIG_ENDIAN else "<"
        self._swapped = syntax == BIG_ENDIAN
        self._tag_vr = Struct(order + "HH2sH").unpack_from
        self._tag_length = Struct(order + "HHL").unpack_from
        self._length = Struct(order + "L").unpack_from
        self._source = source
        self._at = start
        self._wanted = wanted
        self._sight = _look_for(wanted)
        self._marks = ITEM in wanted
        self._deepest = deepest
        self._until = until
        explicit = syntax not in (IMPLICIT, GE_IMPLICIT)
        self._stack = [_Level(_DATA_SET, -1, _ENDLESS, explicit)]
        self._buffer = b""
        self._base = start
        self._walked = Walked()

    def run(self) -> Walked:
        while True:
            try:
                if self._step():
                    return self._walked
            except Problem as problem:
                if problem.code not in ("damaged-data-set", "truncated-data-set") or not self._is_no_sequence():
                    raise

    def _step(self) -> bool:
        """Go over some elements or one item; tell whether the data set has ended."""
        level = self._stack[-1]
        if self._at >= level.limit:
            if self._at > level.limit or level.end != level.limit:
                raise Problem("damaged-data-set")
            self._stack.pop()
        elif not self._need(8):
            if len(self._stack) > 1 or not self._is_padding():
                raise Problem("truncated-data-set")
            return True
        elif level.kind != _DATA_SET:
            self._item(level)
        else:
            if not self._swapped:
                self._hurry(level)
            if self._need(8) and self._at < level.limit:
                return self._element(level)
        return False

    def _hurry(self, level: _Level) -> None:
        """Go over ordinary elements: nearly all of them, thus as few steps as can be."""
        buffer, stops, groups, run = self._buffer, self._sight.stops, self._sight.groups, self._sight.run
        at_once = len(self._stack) // 2 <= self._deepest and self._until == _LAST
        at = self._at - self._base
        end = min(level.limit - self._base, len(buffer))
        try:
            if level.explicit:
                while at < end:
                    if buffer[at] not in groups and (ordinary := run(buffer, at, end)):
                        at = ordinary.end()
                        if at == end:
                            break
                    tag, vr, length = _EXPLICIT_HEAD(buffer, at)
                    if vr not in _SHORT:
                        break
                    if tag in stops and not (at_once and self._pick(tag, at + 8, length)):
                        break
                    at += 8 + length
            else:
                while at < end:
                    tag, length = _IMPLICIT_HEAD(buffer, at)
                    if length == UNDEFINED or buffer.startswith(_ITEM_BYTES, at + 8):
                        break
                    if tag in stops and not (at_once and self._pick(tag, at + 8, length)):
                        break
                    at += 8 + length
        except struct.error:
            pass  # an element that the buffer holds in part
        if self._at != self._base + at:
            self._at = self._base + at
            self._walked.ends_with_pixels = False

    def _pick(self, tag: int, at: int, length: int) -> bool:
        """Take a value that is wanted and wholly at hand; tell whether it was taken."""
        wanted = self._sight.picks.get(tag)
        if wanted is None or length > VALUE_LIMIT or at + length > len(self._buffer):
            return False
        self._found(wanted, self._buffer[at : at + length])
        return True

    def _found(self, tag: int, value: bytes) -> None:
        if len(self._walked.found) >= FOUND_LIMIT:
            raise Problem("damaged-data-set")
        self._walked.found.append(Found(len(self._stack) // 2, tag, value))

    def _need(self, size: int) -> bool:
        """See that so many bytes are at hand from the place on."""
        if self._at - self._base + size > len(self._buffer):
            buffer = self._source.piece(self._at)
            if buffer is None:
                raise Problem("truncated-data-set")
            self._buffer = buffer
            self._base = self._at
        return len(self._buffer) - (self._at - self._base) >= size

    def _is_padding(self) -> bool:
        """Tell whether nothing but zero bytes is left."""
        at = self._at
        while (rest := self._source.piece(at)) and not rest.strip(b"\0"):
            at += len(rest)
        self._walked.padded = at > self._at
        return not rest

    def _ends(self) -> bool:
        """End at group 0000, which is of commands (PS3.7 E.1): nothing may follow but zeros, each looked at once."""
        if not self._is_padding():
            raise Problem("damaged-data-set")
        return True

    def _is_no_sequence(self) -> bool:
        """Leave what was taken for a sequence and is none; tell whether there was such a thing."""
        for index, level in enumerate(self._stack):
            if level.guessed:
                self._at = level.end
                if self._at < self._base:
                    self._buffer, self._base = b"", self._at  # what was taken for items led beyond it
                del self._stack[index:]
                return True
        return False

    def _element(self, level: _Level) -> bool:
        group, element, vr, length = self._tag_vr(self._buffer, self._at - self._base)
        tag = group << 16 | element
        top = len(self._stack) == 1
        if group == 0xFFFE:
            if tag != _ITEM_END or level.end >= 0 or top:
                raise Problem("damaged-data-set")
            self._at += 8
            self._stack.pop()
            return False
        if top and (tag > self._until or tag == 0):
            return tag != 0 or self._ends()
        head = 8
        if not level.explicit:
            vr = b""
            (length,) = self._length(self._buffer, self._at - self._base + 4)
        elif vr not in _SHORT:
            if not (vr.isalpha() and vr.isupper()):
                first = top and not self._walked.found
                raise Problem("wrong-transfer-syntax" if first else "damaged-data-set")
            # PS3.5 6.2: a VR that is not known yet has the long form.
            if not self._need(12):
                raise Problem("truncated-data-set")
            (length,) = self._length(self._buffer, self._at - self._base + 8)
            head = 12
        self._at += head
        if top:
            self._walked.ends_with_pixels = tag == _PIXEL_DATA
        if length == UNDEFINED:
            self._enter(tag, vr, level)
        elif vr == b"SQ":
            self._mark(tag)
            self._push(_SEQUENCE, length, level)
        elif not vr and length >= 8 and self._is_item():
            # Implicit VR does not say what is a sequence: what begins with an item is taken for one.
            self._mark(tag)
            self._push(_SEQUENCE, length, level, guessed=True)
        else:
            self._value(tag, length)
        return False

    def _is_item(self) -> bool:
        return self._need(8) and self._buffer.startswith(_ITEM_BYTES, self._at - self._base)

    def _value(self, tag: int, length: int) -> None:
        depth = len(self._stack) // 2
        if tag in self._wanted and depth <= self._deepest and length <= VALUE_LIMIT:
            if not self._need(length):
                raise Problem("truncated-data-set")
            index = self._at - self._base
            self._found(tag, self._buffer[index : index + length])
        self._at += length

    def _mark(self, tag: int) -> None:
        """Note where a sequence or an item begins, for those who asked."""
        depth = len(self._stack) // 2
        if self._marks and depth <= self._deepest:
            self._found(tag, b"")

    def _enter(self, tag: int, vr: bytes, level: _Level) -> None:
        """Begin a value of undefined length."""
        self._mark(tag)
        if vr == b"UN":
            # PS3.5 6.2.2: what is inside is a sequence in Implicit VR Little Endian.
            self._push(_SEQUENCE, None, level, implicit=True)
        elif vr in (b"OB", b"OW") or (not vr and tag == _PIXEL_DATA):
            self._push(_FRAGMENTS, None, level)
        elif vr in (b"SQ", b""):
            self._push(_SEQUENCE, None, level)
        else:
            raise Problem("damaged-data-set")

    def _item(self, level: _Level) -> None:
        group, element, length = self._tag_length(self._buffer, self._at - self._base)
        tag = group << 16 | element
        self._at += 8
        if tag == ITEM and level.kind == _SEQUENCE:
            self._mark(tag)
            self._push(_DATA_SET, None if length == UNDEFINED else length, level)
        elif tag == ITEM and length != UNDEFINED:
            self._at += length
        elif tag == _SEQUENCE_END and level.end < 0:
            self._stack.pop()
        else:
            raise Problem("damaged-data-set")

    def _push(
        self, kind: int, length: int | None, outer: _Level, *, implicit: bool = False, guessed: bool = False
    ) -> None:
        if len(self._stack) > 2 * NESTING_LIMIT:
            raise Problem("nested-too-deep")
        end = -1 if length is None else self._at + length
        if end > outer.limit:
            raise Problem("damaged-data-set")
        limit = outer.limit if length is None else end
        self._stack.append(_Level(kind, end, limit, outer.explicit and not implicit, guessed))


class _Locate(_Walk):
    """Goes over the elements of the data set itself one by one, and notes where they begin and end."""

    def __init__(self, source: Source, start: int, syntax: str, tags: frozenset[int]) -> None:
        super().__init__(source, start, syntax, tags, 0, _LAST)
        self._chart = Chart()
        self._open: Place | None = None
        self._ahead = sorted(tags, reverse=True)

    def locate(self) -> Chart:
        self.run()
        self._pass(_BEHIND_ALL)
        for found in self._walked.found:
            self._chart.places[found.tag].value = found.value
        return self._chart

    def _hurry(self, level: _Level) -> None:
        if len(self._stack) > 1:
            super()._hurry(level)
            return
        self._end()
        # In groups before that of the next tag in order nothing can lie between two elements.
        group = self._ahead[-1] >> 16 if self._ahead else _BEHIND_ALL
        buffer, stops, explicit = self._buffer, self._sight.stops, level.explicit
        at = self._at - self._base
        try:
            while at < len(buffer):
                if explicit:
                    tag, vr, length = _EXPLICIT_HEAD(buffer, at)
                    if vr not in _SHORT:
                        break
                else:
                    tag, length = _IMPLICIT_HEAD(buffer, at)
                    if length == UNDEFINED or buffer.startswith(_ITEM_BYTES, at + 8):
                        break
                if tag & 0xFFFF >= group or tag in stops:
                    break
                at += 8 + length
        except struct.error:
            pass  # an element that the buffer holds in part
        self._at = self._base + at

    def _element(self, level: _Level) -> bool:
        start, top = self._at, len(self._stack) == 1
        if not top:
            return super()._element(level)
        group, element, vr, length = self._tag_vr(self._buffer, start - self._base)
        tag = group << 16 | element
        if tag:  # else it is padding, or no element
            self._pass(tag)
        head = 8
        if not level.explicit:
            vr = b""
            (length,) = self._length(self._buffer, start - self._base + 4)
        elif vr not in _SHORT and self._need(12):
            (length,) = self._length(self._buffer, start - self._base + 8)
            head = 12
        if tag in self._wanted:
            if tag in self._chart.places:
                raise Problem("repeated-element")
            self._open = self._chart.places[tag] = Place(start, start + head, start, vr, length)
        return super()._element(level)

    def _pass(self, tag: int) -> None:
        """Note that the element before ends here, and that elements before this one would lie here."""
        self._end()
        while self._ahead and self._ahead[-1] < tag:
            self._chart.gaps[self._ahead.pop()] = self._at

    def _end(self) -> None:
        if self._open is not None:
            self._open.end = self._at
            self._open = None
