"""Bytes of a peer are cut and read the same way however they come, and never do more than raise ProtocolError."""

from __future__ import annotations

import contextlib
import struct

from hypothesis import given
from hypothesis import strategies as st

from gateway.core import dimse

PDUS = st.lists(st.tuples(st.sampled_from(sorted(dimse.NAMES)), st.binary(max_size=60)), max_size=6)


def encode(pdus: list[tuple[int, bytes]]) -> bytes:
    return b"".join(struct.pack(">BxI", kind, len(body)) + body for kind, body in pdus)


@given(PDUS, st.lists(st.integers(1, 40), min_size=1))
def test_the_stream_may_be_split_anywhere(pdus: list[tuple[int, bytes]], steps: list[int]) -> None:
    """R12: TCP keeps no boundaries."""
    stream = encode(pdus)
    inbox = dimse.Inbox()
    taken: list[tuple[int, bytes]] = []
    place = turn = 0
    while place < len(stream):
        step = steps[turn % len(steps)]
        inbox.add(stream[place : place + step])
        place, turn = place + step, turn + 1
        while pdu := inbox.take():
            taken.append(tuple(pdu))
    assert taken == pdus
    assert inbox.next_type is None


@given(st.binary(max_size=300))
def test_any_body_is_a_response_or_a_protocol_error(body: bytes) -> None:
    """R12: no other exception, whatever comes."""
    with contextlib.suppress(dimse.ProtocolError):
        dimse.Assembly().add(dimse.Pdu(dimse.P_DATA_TF, body))


@given(
    st.lists(
        st.tuples(st.sampled_from([0x0000, 0x0002, 0x0100, 0x0120, 0x0900, 0x1000]), st.binary(max_size=4)), max_size=8
    )
)
def test_any_command_set_is_a_response_or_a_protocol_error(elements: list[tuple[int, bytes]]) -> None:
    """R12: and a response always has all that counts."""
    command = b"".join(struct.pack("<HHI", 0, number, len(value)) + value for number, value in elements)
    with contextlib.suppress(dimse.ProtocolError):
        response = dimse.decode(command)
        assert {0x0100, 0x0120, 0x0900} <= {number for number, _ in elements}
        assert dict(elements)[0x0900] == struct.pack("<H", response.status)


@given(st.integers(0, 2**32 - 1))
def test_every_maximum_length_is_kept(longest: int) -> None:
    """PS3.8 Annex D.1: also the odd and the huge ones."""
    try:
        size = dimse.fragment_size(longest)
    except dimse.ProtocolError:
        assert 0 < longest < 8
    else:
        assert size % 2 == 0
        assert 0 < size + 6 <= min(longest or dimse.LONGEST_PDU, dimse.LONGEST_PDU)
