"""What a peer sends is put together the same way however it was cut, and never does more than raise ProtocolError."""

from __future__ import annotations

import contextlib
import struct

from hypothesis import given
from hypothesis import strategies as st

from gateway.core import dimse, pdata

ITEMS = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 3), st.binary(max_size=50)), min_size=1, max_size=4)
PDUS = st.lists(
    st.one_of(
        ITEMS, st.tuples(st.sampled_from([kind for kind in sorted(dimse.NAMES) if kind != 4]), st.binary(max_size=30))
    ),
    max_size=5,
)
STEPS = st.lists(st.integers(1, 40), min_size=1)


def encode(pdus: list[object]) -> bytes:
    """Write the PDUs: a tuple is one, a list is a P-DATA-TF of items."""
    written = b""
    for one in pdus:
        if isinstance(one, tuple):
            kind, body = one
        else:
            assert isinstance(one, list)
            kind = 4
            body = b"".join(struct.pack(">IBB", len(c) + 2, context, control) + c for context, control, c in one)
        written += struct.pack(">BxI", kind, len(body)) + body
    return written


def feed(content: bytes, steps: list[int]) -> list[object]:
    """Read it in blocks; join the pieces of each fragment by what follows them."""
    stream = pdata.Stream(1 << 20)
    found: list[object] = []
    place = turn = 0
    while place < len(content):
        step = steps[turn % len(steps)]
        for event in stream.feed(memoryview(content)[place : place + step]):
            if isinstance(event, dimse.Pdu):
                found.append(tuple(event))
            else:
                found.append([event.context, event.command, event.last, bytes(event.block)])
        place, turn = place + step, turn + 1
    return found


def joined(events: list[object]) -> list[object]:
    """Content by kind until its last fragment: all that counts for who reads messages."""
    found: list[object] = []
    run: list[object] | None = None
    for event in events:
        if isinstance(event, tuple):
            found.append(event)
            run = None
            continue
        assert isinstance(event, list)
        context, command, last, content = event
        if run is None or run[:2] != [context, command]:
            run = [context, command, False, b""]
            found.append(run)
        assert isinstance(run[3], bytes)
        run[3] += content
        if last:
            run[2] = True
            run = None
    return found


@given(PDUS, STEPS)
def test_the_stream_may_be_cut_anywhere(pdus: list[object], steps: list[int]) -> None:
    """R8: every byte of every fragment, in order, and its end where it is."""
    expected: list[object] = []
    for one in pdus:
        if isinstance(one, tuple):
            expected.append(one)
        else:
            assert isinstance(one, list)
            expected += [[context, bool(control & 1), bool(control & 2), content] for context, control, content in one]
    assert joined(feed(encode(pdus), steps)) == joined(expected)


@given(st.binary(max_size=200), STEPS)
def test_any_bytes_are_events_or_a_protocol_error(content: bytes, steps: list[int]) -> None:
    """R9: no other exception, whatever comes."""
    with contextlib.suppress(dimse.ProtocolError):
        feed(content, steps)


@given(st.integers(0, 300), STEPS)
def test_what_is_too_long_is_said_before_it_comes(length: int, steps: list[int]) -> None:
    """NET-11: a PDU longer than its limit is refused by its header alone."""
    stream = pdata.Stream(100)
    head = struct.pack(">BxI", 4, length)
    try:
        for at in range(0, 6, steps[0]):
            assert list(stream.feed(memoryview(head)[at : at + steps[0]])) == []
    except dimse.ProtocolError:
        assert length > 100 or length < 6
    else:
        assert 6 <= length <= 100
