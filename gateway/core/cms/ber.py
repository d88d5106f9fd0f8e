"""BER and DER (X.690), as much as CMS needs: a reader that never holds content, and a writer of DER.

Other people's messages come with definite and indefinite lengths, and with content cut into OCTET STRINGs within
OCTET STRINGs. What is small (algorithms, certificates, attributes) is read whole, within limits; what is content is
handed out in blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from gateway.core.cms.failure import exceeded, malformed

DEPTH: Final = 24
"""Deepest nesting of elements."""

METADATA: Final = 4 << 20
"""Bytes of a message that are not content: certificates, CRLs, recipients, attributes."""

NODES: Final = 60_000
"""Elements of a message that are not content."""

PIECE: Final = 100
"""Bytes of the shortest pieces, on average, that a long content may come in; OpenSSL and Java make 1000."""

BLOCK: Final = 1 << 18
"""Bytes handed out at once: what stays in the cache of a processor."""

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
NULL: Final = 0x05
OBJECT_IDENTIFIER: Final = 0x06
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
SET: Final = 0x31
CONSTRUCTED: Final = 0x20

_LAST_UTC_YEAR: Final = 2049


def context(number: int, *, constructed: bool = True) -> int:
    """The identifier octet of a context-specific tag."""
    return 0x80 | (CONSTRUCTED if constructed else 0) | number


@dataclass(frozen=True, slots=True)
class Node:
    """A small element, whole in memory.

    Attributes:
        tag: Its identifier octet.
        raw: All of it, as it came.
        body: What is behind its length.
    """

    tag: int
    raw: bytes
    body: bytes

    def children(self) -> tuple[Node, ...]:
        """The elements in it.

        Raises:
            ProtectionError: It is no row of elements.
        """
        return parse_all(self.body)

    def child(self, index: int, tag: int | None = None) -> Node:
        """One element in it, which must be there and have this tag."""
        nodes = self.children()
        if index >= len(nodes) or (tag is not None and nodes[index].tag != tag):
            malformed("an element is missing")
        return nodes[index]


class Reader:
    """Reads one BER stream from its beginning to its end.

    Args:
        read: Gives up to so many bytes; nothing at the end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._buffer = b""
        self._position = 0  # of the next byte in the buffer
        self._offset = 0  # of the next byte in the stream
        self._ends: list[int | None] = []
        self._metadata = 0
        self._nodes = 0

    # Bytes

    def _fill(self, size: int) -> bool:
        missing = size - (len(self._buffer) - self._position)
        if missing <= 0:
            return True
        pieces = [self._buffer[self._position :]]
        while missing > 0:
            piece = self._read(max(missing, 4096))
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        self._buffer, self._position = b"".join(pieces), 0
        return missing <= 0

    def _take(self, size: int) -> bytes:
        if not self._fill(size):
            malformed("it ends too early")
        piece = self._buffer[self._position : self._position + size]
        self._position += size
        self._offset += size
        return piece

    def _peek(self, size: int) -> bytes:
        self._fill(size)
        return self._buffer[self._position : self._position + size]

    # Elements

    def peek(self) -> int | None:
        """The identifier octet of the next element; None where the one that was entered ends."""
        if self._ends:
            end = self._ends[-1]
            if end is None:
                if self._peek(2) == b"\0\0":
                    return None
            elif self._offset >= end:
                return None
        head = self._peek(1)
        return head[0] if head else None

    def enter(self, tag: int) -> None:
        """Go into a constructed element, which must be the next."""
        found, length = self._header()
        if found != tag:
            malformed("an element is not where it should be")
        if len(self._ends) >= DEPTH:
            exceeded("elements are nested too deep")
        self._ends.append(None if length is None else self._offset + length)

    def leave(self) -> None:
        """Go out of the element that was entered last; nothing of it may be left."""
        if self.peek() is not None:
            malformed("an element holds more than it should")
        end = self._ends.pop()
        if end is None:
            self._take(2)
        elif self._offset != end:
            malformed("an element is longer than the one around it")

    def node(self, tag: int | None = None) -> Node:
        """Read the next element whole."""
        if tag is not None and self.peek() != tag:
            malformed("an element is not where it should be")
        raw = self._raw(0)
        return parse(raw)

    def end(self) -> None:
        """Make sure that nothing comes any more; zeros and line ends of a careless sender excepted."""
        # QUIRK: OpenSSL -stream and several gateways leave line ends behind the last element.
        while block := self._take(len(self._peek(BLOCK))):
            if block.strip(b"\r\n\0"):
                malformed("something follows the last element")

    def octets(self, tag: int = OCTET_STRING) -> Iterator[bytes]:
        """Hand out the content of an octet string in blocks, whether it is whole or in pieces.

        Args:
            tag: Its tag when it is in one piece; in several pieces it has the constructed bit.
        """
        found = self.peek()
        if found == tag:
            yield from self._primitive(tag)
        elif found == tag | CONSTRUCTED:
            self.enter(found)
            yield from self._pieces()
            self.leave()
        else:
            malformed("the content is not where it should be")

    def _pieces(self) -> Iterator[bytes]:
        depth = pieces = 0
        start = self._offset
        while True:
            pieces += 1
            if pieces > NODES + (self._offset - start) // PIECE:
                exceeded("its content is cut into too many pieces")
            tag = self.peek()
            if tag is None:
                if depth == 0:
                    return
                self.leave()
                depth -= 1
            elif tag == OCTET_STRING:
                yield from self._primitive(OCTET_STRING)
            elif tag == OCTET_STRING | CONSTRUCTED:
                self.enter(tag)
                depth += 1
            else:
                malformed("the content is not made of octet strings")

    def _primitive(self, tag: int) -> Iterator[bytes]:
        found, left = self._header()
        assert found == tag
        assert left is not None  # a primitive element has one
        while left:
            size = min(left, BLOCK)
            yield self._take(size)
            left -= size

    def _header(self) -> tuple[int, int | None]:
        tag = self._take(1)[0]
        if tag & 0x1F == 0x1F:
            malformed("an element has a tag that CMS does not know")
        length = self._length(self._take(1)[0])
        if length is None and not tag & CONSTRUCTED:
            malformed("a primitive element has no length")
        if length is not None and any(end is not None and self._offset + length > end for end in self._ends):
            malformed("an element is longer than the one around it")
        return tag, length

    def _length(self, first: int) -> int | None:
        if first < 0x80:
            return first
        if first == 0x80:
            return None
        if first > 0x88:
            malformed("an element has an impossible length")
        return int.from_bytes(self._take(first & 0x7F), "big")

    def _raw(self, depth: int) -> bytes:
        """Read an element whole, as it came."""
        self._nodes += 1
        if self._nodes > NODES or depth > DEPTH:
            exceeded("it has too many elements")
        start = self._peek(10)
        before = self._offset
        _, length = self._header()
        head = start[: self._offset - before]
        if length is not None:
            self._count(length)
            return head + self._take(length)
        self._ends.append(None)
        pieces = [head]
        while self.peek() is not None:
            pieces.append(self._raw(depth + 1))
        self._ends.pop()
        pieces.append(self._take(2))
        return b"".join(pieces)

    def _count(self, size: int) -> None:
        self._metadata += size
        if self._metadata > METADATA:
            exceeded("what is not content is too long")


def parse(raw: bytes) -> Node:
    """Read bytes that are one element, and nothing else.

    Raises:
        ProtectionError: They are not.
    """
    nodes = parse_all(raw)
    if len(nodes) != 1:
        malformed("more than one element where one should be")
    return nodes[0]


def parse_all(raw: bytes) -> tuple[Node, ...]:
    """Read bytes that are a row of elements."""
    nodes: list[Node] = []
    position = 0
    while position < len(raw):
        node, position = _node(raw, position, 0)
        nodes.append(node)
        if len(nodes) > NODES:
            exceeded("it has too many elements")
    return tuple(nodes)


def _node(raw: bytes, start: int, depth: int) -> tuple[Node, int]:
    if depth > DEPTH:
        exceeded("elements are nested too deep")
    if len(raw) < start + 2:
        malformed("it ends too early")
    tag, first = raw[start], raw[start + 1]
    if tag & 0x1F == 0x1F:
        malformed("an element has a tag that CMS does not know")
    position = start + 2
    if first == 0x80:
        if not tag & CONSTRUCTED:
            malformed("a primitive element has no length")
        return _indefinite(raw, start, position, depth)
    length = first
    if first > 0x80:
        if first > 0x88:
            malformed("an element has an impossible length")
        behind = position + (first & 0x7F)
        length = int.from_bytes(raw[position:behind], "big")
        position = behind
    if position + length > len(raw):
        malformed("it ends too early")
    return Node(tag, raw[start : position + length], raw[position : position + length]), position + length


def _indefinite(raw: bytes, start: int, position: int, depth: int) -> tuple[Node, int]:
    begin = position
    while raw[position : position + 2] != b"\0\0":
        _, position = _node(raw, position, depth + 1)
    return Node(raw[start], raw[start : position + 2], raw[begin:position]), position + 2


# What elements mean


def oid(node: Node) -> str:
    """The value of an OBJECT IDENTIFIER."""
    if node.tag != OBJECT_IDENTIFIER or not node.body or node.body[-1] & 0x80 or len(node.body) > 64:
        malformed("an object identifier cannot be read")
    arcs: list[int] = []
    value = 0
    for octet in node.body:
        value = value << 7 | octet & 0x7F
        if not octet & 0x80:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))


def integer(node: Node) -> int:
    """The value of an INTEGER."""
    if node.tag != INTEGER or not 0 < len(node.body) <= 1024:
        malformed("a number cannot be read")
    return int.from_bytes(node.body, "big", signed=True)


def octets(node: Node, tag: int = OCTET_STRING) -> bytes:
    """The value of a small OCTET STRING, in one piece or several."""
    if node.tag == tag:
        return node.body
    if node.tag == tag | CONSTRUCTED:
        return b"".join(octets(piece) for piece in node.children())
    return malformed("an octet string cannot be read")


def moment(node: Node) -> datetime:
    """The value of a Time: UTCTime or GeneralizedTime, in UTC (RFC 5652 §11.3)."""
    try:
        text = node.body.decode("ascii")
        if node.tag == UTC_TIME:
            year = 1900 if int(text[:2]) >= 50 else 2000
            return datetime.strptime(f"{year + int(text[:2])}{text[2:]}", "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
        if node.tag == GENERALIZED_TIME:
            return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        pass
    return malformed("a time cannot be read")


# Writing DER


def header(tag: int, length: int) -> bytes:
    """The identifier and length octets of an element."""
    if length < 0x80:
        return bytes((tag, length))
    size = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + length.to_bytes(size, "big")


def element(tag: int, *parts: bytes) -> bytes:
    """An element of these parts."""
    body = b"".join(parts)
    return header(tag, len(body)) + body


def sequence(*parts: bytes) -> bytes:
    """A SEQUENCE."""
    return element(SEQUENCE, *parts)


def set_of(*parts: bytes, tag: int = SET) -> bytes:
    """A SET OF, in the order that DER asks for (X.690 11.6)."""
    return element(tag, *sorted(parts))


def identifier(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split("."))
    return element(OBJECT_IDENTIFIER, *(_arc(arc) for arc in (40 * first + second, *rest)))


def _arc(value: int) -> bytes:
    octet = [value & 0x7F]
    while value := value >> 7:
        octet.append(value & 0x7F | 0x80)
    return bytes(reversed(octet))


def number(value: int) -> bytes:
    """An INTEGER."""
    return element(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def octet_string(value: bytes) -> bytes:
    """An OCTET STRING in one piece."""
    return element(OCTET_STRING, value)


def time(when: datetime) -> bytes:
    """A Time: UTCTime through 2049, GeneralizedTime behind it (RFC 5652 §11.3)."""
    when = when.astimezone(UTC)
    if when.year <= _LAST_UTC_YEAR:
        return element(UTC_TIME, when.strftime("%y%m%d%H%M%SZ").encode())
    return element(GENERALIZED_TIME, when.strftime("%Y%m%d%H%M%SZ").encode())
