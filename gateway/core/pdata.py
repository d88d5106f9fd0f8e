"""What a peer sends, cut into fragments and PDUs as the bytes come (PS3.8 §9.3.1, §9.3.5, Annex E).

A fragment of a data set is passed on in the pieces in which it arrives: no PDU is ever held in memory for it, however
long the peer makes it. All other PDUs are short, and are given out whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from gateway.core import dimse

LONGEST_REQUEST: Final = 256 << 10
"""Bytes of an association request. 128 contexts with every transfer syntax there is need less."""

_LONGEST_OTHER: Final = 1 << 10
"""Bytes of any other PDU; the standard's have four."""

_PDU: Final = struct.Struct(">BxI")
_ITEM: Final = struct.Struct(">IBB")
_EMPTY: Final = memoryview(b"")


class Piece(NamedTuple):
    """Some bytes of a fragment, in the order they came.

    Attributes:
        context: ID of its presentation context.
        command: It belongs to a command set, not to a data set.
        last: With it the last fragment ends: the command set or data set is complete.
        block: The bytes; valid until the next block is fed.
    """

    context: int
    command: bool
    last: bool
    block: memoryview


class Stream:
    """Takes what comes over a connection in blocks cut anywhere.

    Args:
        longest: Bytes of a P-DATA-TF PDU that are taken.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._kind = 0
        self._head = bytearray()  # of a header, or of a PDU that is given out whole, as far as it came
        self._left = 0  # bytes of the PDU that are still to come
        self._fragment = 0  # bytes of the fragment that are still to come
        self._context = 0
        self._control = 0

    def feed(self, block: memoryview) -> Iterator[Piece | dimse.Pdu]:
        """Give out what a block completes or continues.

        Raises:
            ProtocolError: It is no PDU, a PDU that is too long, or one whose items do not add up.
        """
        place = 0
        while place < len(block):
            if self._fragment:
                size = min(self._fragment, len(block) - place)
                yield self._piece(block[place : place + size])
                place += size
            elif self._kind == dimse.P_DATA_TF:
                place += self._gather(block, place, _ITEM.size)
                if len(self._head) == _ITEM.size:
                    self._begin_item()
                    if not self._fragment:
                        yield self._piece(_EMPTY)
            elif self._kind:
                place += self._gather(block, place, self._left)
                if len(self._head) == self._left:
                    yield self._whole()
            else:
                place += self._gather(block, place, _PDU.size)
                if len(self._head) == _PDU.size:
                    self._begin_pdu()
                    if not self._left:
                        yield self._whole()

    def _gather(self, block: memoryview, place: int, wanted: int) -> int:
        missing = block[place : place + wanted - len(self._head)]
        self._head += missing
        return len(missing)

    def _begin_pdu(self) -> None:
        kind, length = _PDU.unpack(self._head)
        self._head.clear()
        if kind not in dimse.NAMES:
            raise dimse.ProtocolError(dimse.UNRECOGNISED)
        limits = {dimse.P_DATA_TF: self._longest, dimse.A_ASSOCIATE_RQ: LONGEST_REQUEST}
        if length > limits.get(kind, _LONGEST_OTHER):
            raise dimse.ProtocolError("PDU too long")
        if kind == dimse.P_DATA_TF and length < _ITEM.size:
            raise dimse.ProtocolError("PDU without an item")
        self._kind, self._left = kind, length

    def _begin_item(self) -> None:
        length, self._context, self._control = _ITEM.unpack(self._head)
        self._head.clear()
        self._left -= 4 + length
        if length < 2 or self._left < 0 or 0 < self._left < _ITEM.size:
            raise dimse.ProtocolError("invalid PDV")
        self._fragment = length - 2

    def _piece(self, block: memoryview) -> Piece:
        self._fragment -= len(block)
        last = not self._fragment and bool(self._control & dimse.LAST)
        if not self._fragment and not self._left:
            self._kind = 0
        return Piece(self._context, bool(self._control & dimse.COMMAND), last, block)

    def _whole(self) -> dimse.Pdu:
        pdu = dimse.Pdu(self._kind, bytes(self._head))
        self._head.clear()
        self._kind = self._left = 0
        return pdu
