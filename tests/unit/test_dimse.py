"""PDUs and command sets, held against pynetdicom's reading of the same bytes."""

from __future__ import annotations

import struct
from io import BytesIO

import pytest
from pynetdicom.dsutils import decode
from pynetdicom.pdu import A_ABORT_RQ, A_RELEASE_RP, A_RELEASE_RQ, P_DATA_TF

from gateway.core import dimse

CT = "1.2.840.10008.5.1.4.1.1.2"


def element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


RESPONSE = (
    element(0x0002, CT.encode() + b"\0")
    + element(0x0100, b"\x01\x80")
    + element(0x0120, b"\x07\0")
    + element(0x0800, b"\x01\x01")
    + element(0x0900, b"\0\xb0")
    + element(0x1000, b"1.2.3\0")
)


def pdata(*fragments: tuple[int, bytes]) -> dimse.Pdu:
    body = b"".join(struct.pack(">IBB", len(part) + 2, 1, control) + part for control, part in fragments)
    return dimse.Pdu(dimse.P_DATA_TF, body)


@pytest.mark.parametrize("instance", ["1.2.3", "1.2.34"])
def test_a_store_request_is_the_command_set_of_the_standard(instance: str) -> None:
    """PS3.7 Table 9.3-1: every element, in order, each of even length."""
    command = dimse.store_request(513, CT, instance)
    data_set = decode(BytesIO(command), is_implicit_vr=True, is_little_endian=True)
    assert [(each.tag.element, each.value) for each in data_set] == [
        (0x0000, len(command) - 12),
        (0x0002, CT),
        (0x0100, 0x0001),
        (0x0110, 513),
        (0x0700, 0x0000),
        (0x0800, 0x0001),
        (0x1000, instance),
    ]
    assert len(command) % 2 == 0


def test_an_echo_request_is_the_command_set_of_the_standard() -> None:
    """PS3.7 Table 9.3-12: without a data set."""
    command = dimse.echo_request(7)
    data_set = decode(BytesIO(command), is_implicit_vr=True, is_little_endian=True)
    assert [(each.tag.element, each.value) for each in data_set] == [
        (0x0000, len(command) - 12),
        (0x0002, "1.2.840.10008.1.1"),
        (0x0100, 0x0030),
        (0x0110, 7),
        (0x0800, 0x0101),
    ]


def test_the_short_pdus_are_those_of_the_library() -> None:
    """PS3.8 §9.3.6 to §9.3.8: release and abort."""
    abort = A_ABORT_RQ()
    abort.source, abort.reason_diagnostic = 0, 0
    assert abort.encode() == dimse.ABORT
    assert A_RELEASE_RQ().encode() == dimse.RELEASE_REQUEST
    assert A_RELEASE_RP().encode() == dimse.RELEASE_RESPONSE


def test_a_fragment_header_is_read_by_the_library() -> None:
    """PS3.8 §9.3.5: lengths of the PDU and of the PDV item, context, control."""
    buffer = bytearray(30)
    place = dimse.write_header(buffer, 5, 3, 10, dimse.COMMAND | dimse.LAST)
    pdu = P_DATA_TF()
    pdu.decode(bytes(buffer[5 : place + 10]))
    (item,) = pdu.presentation_data_value_items
    assert (place, item.presentation_context_id, item.message_control_header_byte) == (17, 3, "00000011")
    assert item.presentation_data_value[1:] == bytes(10)


@pytest.mark.parametrize(
    ("longest", "size"), [(0, 1048570), (4 << 20, 1048570), (16384, 16378), (16383, 16376), (9, 2), (8, 2)]
)
def test_fragments_fit_and_are_even(longest: int, size: int) -> None:
    """PS3.8 Annex D.1, E.1: as long as the peer takes, never longer than our own bound."""
    assert dimse.fragment_size(longest) == size


@pytest.mark.parametrize("longest", range(1, 8))
def test_a_length_in_which_nothing_fits_is_refused(longest: int) -> None:
    """PS3.8 Annex D.1: a PDV item needs six bytes beside its two."""
    with pytest.raises(dimse.ProtocolError, match="maximum length too small"):
        dimse.fragment_size(longest)


def test_a_response_is_read() -> None:
    """PS3.7 Table 9.3-2: what counts of it."""
    assert dimse.Assembly().add(pdata((3, RESPONSE))) == dimse.Response(0x8001, 7, 0xB000, "1.2.3")


def test_a_response_may_come_in_several_pdus_and_fragments() -> None:
    """PS3.8 Annex E: cut anywhere."""
    assembly = dimse.Assembly()
    assert assembly.add(pdata((1, RESPONSE[:9]), (1, RESPONSE[9:11]))) is None
    assert assembly.add(pdata()) is None
    assert assembly.add(pdata((3, RESPONSE[11:]))) == dimse.Response(0x8001, 7, 0xB000, "1.2.3")


BAD_PDATA = {
    "data set instead": ([(2, b"")], "unexpected data set"),
    "data set behind": ([(3, RESPONSE), (2, b"")], "unexpected data set"),
    "command behind": ([(3, RESPONSE), (3, RESPONSE)], "unexpected data set"),
    "endless": ([(1, bytes(70000))], "command set too long"),
    "empty": ([(3, b"")], "invalid command set"),
    "no status": ([(3, element(0x0100, b"\x01\x80") + element(0x0120, b"\x07\0"))], "invalid command set"),
    "not ASCII": ([(3, RESPONSE + element(0x1000, b"\xff\xfe"))], "invalid command set"),
    "long status": ([(3, RESPONSE + element(0x0900, bytes(4)))], "invalid command set"),
    "cut": ([(3, RESPONSE[:-1])], "invalid command set"),
    "cut tag": ([(3, RESPONSE + b"\0\0")], "invalid command set"),
    "other group": ([(3, RESPONSE + struct.pack("<HHI", 8, 0, 0))], "invalid command set"),
}


@pytest.mark.parametrize(("fragments", "fault"), BAD_PDATA.values(), ids=BAD_PDATA)
def test_what_is_no_response_is_named(fragments: list[tuple[int, bytes]], fault: str) -> None:
    """R12: nothing but the one command set that may come."""
    with pytest.raises(dimse.ProtocolError, match=fault):
        dimse.Assembly().add(pdata(*fragments))


@pytest.mark.parametrize("body", [b"\0", b"\0\0\0\2\1", b"\0\0\0\1\1\3", b"\0\0\0\xff\1\3abc"])
def test_fragments_with_wrong_lengths_are_named(body: bytes) -> None:
    """PS3.8 §9.3.5.1: a PDV item lies within its PDU."""
    with pytest.raises(dimse.ProtocolError, match="invalid PDV"):
        dimse.Assembly().add(dimse.Pdu(dimse.P_DATA_TF, body))


def test_pdus_are_cut_out_of_the_stream() -> None:
    """PS3.8 §9.3.1: type and length."""
    inbox = dimse.Inbox()
    assert inbox.next_type is None
    inbox.add(dimse.RELEASE_REQUEST[:3])
    assert (inbox.next_type, inbox.take()) == (dimse.A_RELEASE_RQ, None)
    inbox.add(dimse.RELEASE_REQUEST[3:] + dimse.ABORT)
    assert inbox.take() == dimse.Pdu(dimse.A_RELEASE_RQ, bytes(4))
    assert inbox.take() == dimse.Pdu(dimse.A_ABORT, bytes(4))
    assert (inbox.next_type, inbox.take()) == (None, None)


@pytest.mark.parametrize(
    ("block", "fault"),
    [(b"HTTP/1.1", "unrecognised PDU"), (b"\0" * 6, "unrecognised PDU"), (b"\4\0\0\x10\0\1", "PDU too long")],
)
def test_what_is_no_pdu_is_named(block: bytes, fault: str) -> None:
    """R4: before anything is kept of it."""
    inbox = dimse.Inbox()
    inbox.add(block)
    with pytest.raises(dimse.ProtocolError, match=fault):
        inbox.take()


def test_the_longest_pdu_is_taken() -> None:
    """The boundary of the bound."""
    inbox = dimse.Inbox()
    inbox.add(struct.pack(">BxI", 4, dimse.LONGEST_PDU) + bytes(dimse.LONGEST_PDU))
    assert len(inbox.take().body) == dimse.LONGEST_PDU  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "name"), [(b"\0\0\0\0", "A-ABORT"), (b"\0\0\2\0", "A-P-ABORT"), (b"", "A-ABORT"), (b"\0\0\1\0", "A-ABORT")]
)
def test_an_abort_of_the_provider_has_its_own_name(body: bytes, name: str) -> None:
    """PS3.8 §7.4."""
    assert dimse.Pdu(dimse.A_ABORT, body).name == name


def test_a_response_repeats_the_request_and_says_why() -> None:
    """PS3.7 §9.3.1.2: field, message, UIDs as they came, status, and a comment of at most 64 characters."""
    request = dimse.read_command(3, dimse.store_request(5, "1.2", "1.2.3"))
    assert dimse.has_data_set(request)
    answer = dimse.read_command(3, dimse.response(request, 0xC000, "x" * 70))
    assert not dimse.has_data_set(answer)
    assert (answer.field, answer.answers, answer.status) == (0x8001, 5, 0xC000)
    assert (answer.text(0x0002), answer.text(0x1000)) == ("1.2", "1.2.3")
    assert answer.command[0x0902] == b"x" * 64
    bare = dimse.read_command(1, dimse.response(dimse.read_command(1, dimse.echo_request(1)), 0, "abc"))
    assert 0x1000 not in bare.command
    assert bare.command[0x0902] == b"abc "
    assert 0x0902 not in dimse.read_command(1, dimse.response(request, 0)).command


def test_a_rejection_and_an_abort_say_who_and_why() -> None:
    """PS3.8 §9.3.4, §9.3.8."""
    assert dimse.rejection(1, 1, 7) == bytes.fromhex("0300 00000004 00 01 01 07")
    assert dimse.provider_abort("") == bytes.fromhex("0700 00000004 0000 02 00")
    reasons = [dimse.provider_abort(wrong)[-1] for wrong in (dimse.UNRECOGNISED, dimse.UNEXPECTED, "anything else")]
    assert reasons == [1, 2, 6]


# Whole messages


EVENT = dimse.Message(
    1,
    {0x0002: b"1.2.840.10008.1.20.1", 0x0100: b"\0\1", 0x0110: b"\7\0", 0x1000: b"1.2\0", 0x1002: b"\2\0"},
)


def test_requests_are_the_command_sets_of_the_standard() -> None:
    """PS3.7 §9.3.2, §10.3.1, §10.3.4: as pynetdicom reads them."""
    find = decode(BytesIO(dimse.find_request(7, CT)), is_implicit_vr=True, is_little_endian=True)
    assert (find.CommandField, find.MessageID, find.AffectedSOPClassUID, find.CommandDataSetType) == (0x20, 7, CT, 1)
    cancel = decode(BytesIO(dimse.cancel_request(7)), is_implicit_vr=True, is_little_endian=True)
    assert (cancel.CommandField, cancel.MessageIDBeingRespondedTo) == (0x0FFF, 7)
    action = decode(BytesIO(dimse.action_request(8, CT, "1.2.3", 1)), is_implicit_vr=True, is_little_endian=True)
    assert (action.CommandField, action.MessageID, action.RequestedSOPClassUID) == (0x130, 8, CT)
    assert (action.RequestedSOPInstanceUID, action.ActionTypeID, action.CommandDataSetType) == ("1.2.3", 1, 1)
    event = decode(BytesIO(dimse.event_response(EVENT, 0x0110)), is_implicit_vr=True, is_little_endian=True)
    assert (event.CommandField, event.MessageIDBeingRespondedTo, event.Status) == (0x8100, 7, 0x0110)
    assert (event.AffectedSOPInstanceUID, event.EventTypeID, event.CommandDataSetType) == ("1.2", 2, 0x0101)


@pytest.mark.parametrize("fragment", [2, 10, 16, 1 << 16])
def test_a_message_is_cut_and_put_together_again(fragment: int) -> None:
    """PS3.8 Annex E: whatever the fragments, one message comes out."""
    content = bytes(range(200))
    inbox, reassembly = dimse.Inbox(), dimse.Reassembly()
    inbox.add(dimse.pack(5, fragment, dimse.find_request(9, CT), content))
    found = []
    while (pdu := inbox.take()) is not None:
        assert len(pdu.body) <= fragment + 6
        found += reassembly.add(pdu)
    (message,) = found
    assert (message.context, message.data_set, message.text(0x0002)) == (5, content, CT)
    assert (message.field, message.number(0x0110)) == (0x20, 9)


def test_two_messages_in_one_pdu_are_two() -> None:
    """Each fragment says where its message ends."""
    found = dimse.Reassembly().add(pdata((3, dimse.echo_request(1)), (3, RESPONSE)))
    assert [message.field for message in found] == [0x30, 0x8001]
    assert (found[1].answers, found[1].status) == (7, 0xB000)


STRAY = {
    "data set first": [(2, b"ab")],
    "command within data": [(3, dimse.find_request(1, CT)), (3, RESPONSE)],
    "no data set type": [(3, element(0x0100, b"\x01\x80"))],
    "command too long": [(1, bytes(dimse.LONGEST_COMMAND + 1))],
    "data set too long": [(3, dimse.find_request(1, CT)), (0, bytes(21))],
}


@pytest.mark.parametrize("case", STRAY)
def test_fragments_that_may_not_come_are_an_error(case: str) -> None:
    """R13: the association ends there."""
    with pytest.raises(dimse.ProtocolError):
        dimse.Reassembly(20).add(pdata(*STRAY[case]))


def test_a_data_set_comes_by_the_context_of_its_command() -> None:
    """PS3.8 Annex E.1: all fragments of a message have one context."""
    reassembly = dimse.Reassembly()
    assert reassembly.add(pdata((3, dimse.find_request(1, CT)))) == []
    with pytest.raises(dimse.ProtocolError, match="contexts"):
        reassembly.add(dimse.Pdu(dimse.P_DATA_TF, struct.pack(">IBB", 4, 3, 2) + b"ab"))


def test_an_element_that_is_no_text_or_no_number_is_an_error() -> None:
    """Nothing a peer sends raises anything else."""
    message = dimse.Message(1, {0x0002: b"\xff\xff", 0x0100: b"\0"})
    assert message.text(0x1000) == ""
    for read in (lambda: message.text(0x0002), lambda: message.field, lambda: message.status):
        with pytest.raises(dimse.ProtocolError):
            read()


def test_a_tls_alert_is_known_for_what_it_is() -> None:
    """TLS-3: a peer that wants TLS says so to somebody who speaks in the clear."""
    inbox = dimse.Inbox()
    inbox.add(bytes.fromhex("15030300020246"))
    with pytest.raises(dimse.ProtocolError, match="wants TLS"):
        inbox.take()
