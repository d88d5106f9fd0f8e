"""The few PDUs and command sets that are needed once an association stands (PS3.8 §9.3, PS3.7 §9.3, §10.3).

Pure: bytes in, bytes out. Nothing here decodes a data set, and nothing a peer can send makes it do more than raise
ProtocolError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

A_ASSOCIATE_RQ: Final = 0x01
A_ASSOCIATE_AC: Final = 0x02
A_ASSOCIATE_RJ: Final = 0x03
P_DATA_TF: Final = 0x04
A_RELEASE_RQ: Final = 0x05
A_RELEASE_RP: Final = 0x06
A_ABORT: Final = 0x07

C_STORE_RQ: Final = 0x0001
C_ECHO_RQ: Final = 0x0030
C_CANCEL_RQ: Final = 0x0FFF
C_STORE_RSP: Final = 0x8001
C_FIND_RSP: Final = 0x8020
C_ECHO_RSP: Final = 0x8030
N_EVENT_REPORT_RQ: Final = 0x0100
N_EVENT_REPORT_RSP: Final = 0x8100
N_ACTION_RSP: Final = 0x8130
"""Values of Command Field (0000,0100), PS3.7 Annex E."""

_VERIFICATION: Final = "1.2.840.10008.1.1"

LONGEST_PDU: Final = 1 << 20
"""Bytes behind the length of one PDU that are taken or sent at most: a bound, not a rule of the standard."""

LONGEST_COMMAND: Final = 1 << 16
"""Bytes of one command set that are accepted; real ones have some 150."""

LONGEST_DATA_SET: Final = 16 << 20
"""Bytes of one data set that is taken into memory: matches of a query and reports, never images."""

HEADER: Final = 12
"""Bytes before the first byte of a fragment: those of the P-DATA-TF PDU (6) and of the PDV item (4 + 2)."""

COMMAND: Final = 0x01
"""Message control header: the fragment is of a command set, not of a data set (PS3.8 Annex E.2)."""

LAST: Final = 0x02
"""Message control header: the fragment is the last of its kind."""

_TLS_ALERT: Final = 0x15
"""First byte of what a TLS server says to somebody who speaks in the clear (RFC 8446 §5.1)."""

_NO_DATA_SET: Final = 0x0101
_DATA_SET: Final = 0x0001
_MEDIUM: Final = 0x0000

_PDU: Final = struct.Struct(">BxI")
_PDV: Final = struct.Struct(">BxIIBB")
_ITEM: Final = struct.Struct(">IBB")
_ELEMENT: Final = struct.Struct("<HHI")
_US: Final = struct.Struct("<H")

RELEASE_REQUEST: Final = _PDU.pack(A_RELEASE_RQ, 4) + bytes(4)
RELEASE_RESPONSE: Final = _PDU.pack(A_RELEASE_RP, 4) + bytes(4)
ABORT: Final = _PDU.pack(A_ABORT, 4) + bytes(4)
"""Source 0: the service user. Its reason is not significant (PS3.8 §9.3.8)."""

NAMES: Final = {
    A_ASSOCIATE_RQ: "A-ASSOCIATE-RQ",
    A_ASSOCIATE_AC: "A-ASSOCIATE-AC",
    A_ASSOCIATE_RJ: "A-ASSOCIATE-RJ",
    P_DATA_TF: "P-DATA-TF",
    A_RELEASE_RQ: "A-RELEASE-RQ",
    A_RELEASE_RP: "A-RELEASE-RP",
    A_ABORT: "A-ABORT",
}

UNRECOGNISED: Final = "unrecognised PDU"
UNEXPECTED: Final = "unexpected PDU"
_REASONS: Final = {UNRECOGNISED: 1, UNEXPECTED: 2}
"""Reason of an A-ABORT of the provider, by what was wrong (PS3.8 Table 9-26); anything else was invalid: 6."""


class ProtocolError(Exception):
    """The peer sent what PS3.8 or PS3.7 does not allow here. The text names the fault and holds nothing it sent."""


class Pdu(NamedTuple):
    """One protocol data unit: its type, and what stands behind its length."""

    type: int
    body: bytes

    @property
    def name(self) -> str:
        """The standard's name; an A-ABORT of the provider is an A-P-ABORT (PS3.8 §7.4)."""
        if self.type == A_ABORT and self.body[2:3] == b"\x02":
            return "A-P-ABORT"
        return NAMES[self.type]


class Inbox:
    """Cuts a stream of bytes into PDUs, however it was split on the way."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, block: bytes) -> None:
        """Take in what came."""
        self._bytes += block

    @property
    def next_type(self) -> int | None:
        """The type of the PDU that comes next, whole or not; None when nothing is here."""
        return self._bytes[0] if self._bytes else None

    def take(self) -> Pdu | None:
        """Return the next whole PDU, or None when more bytes are needed.

        Raises:
            ProtocolError: It is no PDU at all, or longer than LONGEST_PDU.
        """
        if len(self._bytes) < _PDU.size:
            return None
        kind, length = _PDU.unpack_from(self._bytes)
        if kind == _TLS_ALERT:
            raise ProtocolError("a TLS alert: it wants TLS here")
        if kind not in NAMES:
            raise ProtocolError(UNRECOGNISED)
        if length > LONGEST_PDU:
            raise ProtocolError("PDU too long")
        end = _PDU.size + length
        if len(self._bytes) < end:
            return None
        body = bytes(self._bytes[_PDU.size : end])
        del self._bytes[:end]
        return Pdu(kind, body)


class Response(NamedTuple):
    """What counts in the command set of a response (PS3.7 §9.3.1.2).

    Attributes:
        field: Command Field (0000,0100).
        message: Message ID Being Responded To (0000,0120).
        status: Status (0000,0900).
        sop_instance: Affected SOP Instance UID (0000,1000), empty when it was left out.
    """

    field: int
    message: int
    status: int
    sop_instance: str


class Assembly:
    """Puts the fragments of one response together; a command set may be cut anywhere (PS3.8 Annex E)."""

    def __init__(self) -> None:
        self._command = bytearray()

    def add(self, pdu: Pdu) -> Response | None:
        """Take in a P-DATA-TF PDU; return the response once it is whole.

        Raises:
            ProtocolError: It is not the one command set that may come now.
        """
        whole = False
        for _, control, fragment in _fragments(pdu.body):
            if whole or not control & COMMAND:
                raise ProtocolError("unexpected data set")
            self._command += fragment
            if len(self._command) > LONGEST_COMMAND:
                raise ProtocolError("command set too long")
            whole = bool(control & LAST)
        return decode(bytes(self._command)) if whole else None


class Message(NamedTuple):
    """A whole DIMSE message whose data set is small enough for the memory.

    Attributes:
        context: The ID of the presentation context it came by.
        command: Its command set: values by element number, group 0000.
        data_set: Its data set as it came; empty when it has none.
    """

    context: int
    command: Mapping[int, bytes]
    data_set: bytes = b""

    def number(self, element: int) -> int:
        """Read an element of VR US.

        Raises:
            ProtocolError: It is missing or no number.
        """
        return _unsigned(self.command.get(element, b""))

    def text(self, element: int) -> str:
        """Read an element of VR UI; empty when it is missing.

        Raises:
            ProtocolError: It is no text.
        """
        try:
            return self.command.get(element, b"").decode("ascii").strip("\0 ")
        except UnicodeDecodeError:
            raise ProtocolError("invalid command set") from None

    @property
    def field(self) -> int:
        """Command Field (0000,0100)."""
        return self.number(0x0100)

    @property
    def status(self) -> int:
        """Status (0000,0900) of a response."""
        return self.number(0x0900)

    @property
    def answers(self) -> int:
        """Message ID Being Responded To (0000,0120) of a response."""
        return self.number(0x0120)


class Reassembly:
    """Puts the fragments of whole messages together, data sets included (PS3.8 Annex E).

    Args:
        longest: Bytes of one data set that are accepted.
    """

    def __init__(self, longest: int = LONGEST_DATA_SET) -> None:
        self._longest = longest
        self._parts = bytearray()
        self._begun: Message | None = None

    def add(self, pdu: Pdu) -> list[Message]:
        """Take in a P-DATA-TF PDU; return the messages that are whole now, in order.

        Raises:
            ProtocolError: A fragment came that may not come here, or a message that is too long.
        """
        whole = []
        for context, control, fragment in _fragments(pdu.body):
            if bool(control & COMMAND) is (self._begun is not None):
                raise ProtocolError("fragments out of order")
            if self._begun is not None and context != self._begun.context:
                raise ProtocolError("fragments of two contexts mixed")
            self._parts += fragment
            if len(self._parts) > (LONGEST_COMMAND if self._begun is None else self._longest):
                raise ProtocolError("message too long")
            if control & LAST and (message := self._end(context)):
                whole.append(message)
        return whole

    def _end(self, context: int) -> Message | None:
        """End a command set or a data set; return the message when that was its last part."""
        part = bytes(self._parts)
        self._parts.clear()
        if self._begun is not None:
            message = self._begun._replace(data_set=part)
            self._begun = None
            return message
        message = Message(context, MappingProxyType(dict(_elements(part))))
        if message.number(0x0800) == _NO_DATA_SET:
            return message
        self._begun = message
        return None


def _fragments(body: bytes) -> Iterator[tuple[int, int, bytes]]:
    place = 0
    while place < len(body):
        if len(body) - place < _ITEM.size:
            raise ProtocolError("invalid PDV")
        length, context, control = _ITEM.unpack_from(body, place)
        end = place + 4 + length
        if length < 2 or end > len(body):
            raise ProtocolError("invalid PDV")
        yield context, control, body[place + _ITEM.size : end]
        place = end


def decode(command: bytes) -> Response:
    """Read the command set of a response: Implicit VR Little Endian, group 0000 (PS3.7 §6.3.1).

    Raises:
        ProtocolError: It is not one, or lacks what a response must have.
    """
    elements = dict(_elements(command))
    try:
        return Response(
            _unsigned(elements[0x0100]),
            _unsigned(elements[0x0120]),
            _unsigned(elements[0x0900]),
            elements.get(0x1000, b"").decode("ascii").strip("\0 "),
        )
    except (KeyError, UnicodeDecodeError):
        raise ProtocolError("invalid command set") from None


def _elements(command: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(command):
        if len(command) - place < _ELEMENT.size:
            raise ProtocolError("invalid command set")
        group, element, length = _ELEMENT.unpack_from(command, place)
        start = place + _ELEMENT.size
        place = start + length
        if group or place > len(command):
            raise ProtocolError("invalid command set")
        yield element, command[start:place]


def _unsigned(value: bytes) -> int:
    if len(value) != _US.size:
        raise ProtocolError("invalid command set")
    number: int = _US.unpack(value)[0]
    return number


def store_request(message: int, sop_class: str, sop_instance: str) -> bytes:
    """Write the command set of a C-STORE-RQ (PS3.7 §9.3.1.1)."""
    return _command(
        _text(0x0002, sop_class),
        _number(0x0100, 0x0001),
        _number(0x0110, message),
        _number(0x0700, _MEDIUM),
        _number(0x0800, _DATA_SET),
        _text(0x1000, sop_instance),
    )


def echo_request(message: int) -> bytes:
    """Write the command set of a C-ECHO-RQ (PS3.7 §9.3.5.1)."""
    return _command(
        _text(0x0002, _VERIFICATION),
        _number(0x0100, 0x0030),
        _number(0x0110, message),
        _number(0x0800, _NO_DATA_SET),
    )


def find_request(message: int, sop_class: str) -> bytes:
    """Write the command set of a C-FIND-RQ; an identifier follows (PS3.7 §9.3.2.1)."""
    return _command(
        _text(0x0002, sop_class),
        _number(0x0100, 0x0020),
        _number(0x0110, message),
        _number(0x0700, _MEDIUM),
        _number(0x0800, _DATA_SET),
    )


def cancel_request(message: int) -> bytes:
    """Write the command set of a C-CANCEL-RQ for a C-FIND-RQ that is under way (PS3.7 §9.3.2.3)."""
    return _command(_number(0x0100, 0x0FFF), _number(0x0120, message), _number(0x0800, _NO_DATA_SET))


def action_request(message: int, sop_class: str, sop_instance: str, action: int) -> bytes:
    """Write the command set of an N-ACTION-RQ; action information follows (PS3.7 §10.3.4.1)."""
    return _command(
        _text(0x0003, sop_class),
        _number(0x0100, 0x0130),
        _number(0x0110, message),
        _number(0x0800, _DATA_SET),
        _text(0x1001, sop_instance),
        _number(0x1008, action),
    )


def event_response(request: Message, status: int) -> bytes:
    """Write the command set of an N-EVENT-REPORT-RSP without event reply (PS3.7 §10.3.1.2).

    Raises:
        ProtocolError: The request lacks what a response must repeat.
    """
    return _command(
        _text(0x0002, request.text(0x0002)),
        _number(0x0100, N_EVENT_REPORT_RSP),
        _number(0x0120, request.number(0x0110)),
        _number(0x0800, _NO_DATA_SET),
        _number(0x0900, status),
        _text(0x1000, request.text(0x1000)),
        _number(0x1002, request.number(0x1002)),
    )


def read_command(context: int, command: bytes) -> Message:
    """Read a whole command set.

    Raises:
        ProtocolError: It is none.
    """
    return Message(context, MappingProxyType(dict(_elements(command))))


def has_data_set(request: Message) -> bool:
    """Tell whether a data set follows a command set (PS3.7 Annex E.1).

    Raises:
        ProtocolError: It does not say.
    """
    return request.number(0x0800) != _NO_DATA_SET


def response(request: Message, status: int, comment: str = "") -> bytes:
    """Write the command set of a response without data set: to C-STORE, C-ECHO, and whatever is refused.

    Args:
        request: What is answered.
        status: Status (0000,0900).
        comment: Error Comment (0000,0902), in ASCII, cut to the 64 characters that it may have.

    Raises:
        ProtocolError: The request lacks what a response must repeat.
    """
    # The request's own bytes: a response repeats a UID, it does not judge it.
    uids = [request.command.get(element, b"") for element in (0x0002, 0x1000)]
    optional = [_raw(element, value) if value else b"" for element, value in zip((0x0002, 0x1000), uids, strict=True)]
    remark = comment[:64].encode("ascii")
    return _command(
        optional[0],
        _number(0x0100, request.field | 0x8000),
        _number(0x0120, request.number(0x0110)),
        _number(0x0800, _NO_DATA_SET),
        _number(0x0900, status),
        _raw(0x0902, remark + b" " * (len(remark) % 2)) if remark else b"",
        optional[1],
    )


def rejection(result: int, source: int, reason: int) -> bytes:
    """Write an A-ASSOCIATE-RJ (PS3.8 §9.3.4)."""
    return _PDU.pack(A_ASSOCIATE_RJ, 4) + bytes((0, result, source, reason))


def provider_abort(wrong: str) -> bytes:
    """Write the A-ABORT that answers a breach of the protocol, or, with an empty text, anything else (PS3.8 §9.3.8)."""
    return _PDU.pack(A_ABORT, 4) + bytes((0, 0, 2, _REASONS.get(wrong, 6) if wrong else 0))


def pack(context: int, fragment: int, command: bytes, data_set: bytes = b"") -> bytes:
    """Lay a whole small message out as P-DATA-TF PDUs, each with one fragment of at most ``fragment`` bytes."""
    pdus = bytearray()
    for kind, part in ((COMMAND, command), (0, data_set)):
        for start in range(0, len(part), fragment):
            piece = part[start : start + fragment]
            control = kind | (LAST if start + len(piece) == len(part) else 0)
            head = bytearray(HEADER)
            write_header(head, 0, context, len(piece), control)
            pdus += head + piece
    return bytes(pdus)


def _command(*elements: bytes) -> bytes:
    rest = b"".join(elements)
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<I", len(rest)) + rest


def _number(element: int, value: int) -> bytes:
    return _ELEMENT.pack(0, element, _US.size) + _US.pack(value)


def _text(element: int, value: str) -> bytes:
    padded = value.encode("ascii")
    padded += bytes(len(padded) % 2)  # a UID is padded with one NUL (PS3.5 §9.1)
    return _raw(element, padded)


def _raw(element: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0, element, len(value)) + value


def write_header(buffer: bytearray, place: int, context: int, size: int, control: int) -> int:
    """Write the header of a P-DATA-TF PDU with one fragment of ``size`` bytes; return the place behind it."""
    _PDV.pack_into(buffer, place, P_DATA_TF, size + 6, size + 2, context, control)
    return place + HEADER


def fragment_size(longest: int) -> int:
    """Bytes of a data set that one PDU may carry, for the peer's maximum length; 0 says that it has none.

    A fragment has an even number of bytes, all but the last (PS3.8 Annex E.1, PS3.5 §7.1.1).

    Raises:
        ProtocolError: Nothing fits.
    """
    limit = min(longest or LONGEST_PDU, LONGEST_PDU)
    size = (limit - 6) & ~1
    if size <= 0:
        raise ProtocolError("maximum length too small")
    return size
