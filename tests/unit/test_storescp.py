"""The DICOM door, word by word, against a client that does right and wrong as it is told."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from dicom_door import Running, dicom_door
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from samples import Fresh, Samples
from scripted_scu import (
    A_ABORT,
    CLOSED,
    COMMITMENT,
    CT,
    EXPLICIT,
    IMPLICIT,
    RELEASE_RP,
    RELEASE_RQ,
    VERIFICATION,
    Context,
    Scu,
    command,
    data,
    echo,
    pdu,
    pdv,
    request,
    roles,
    store,
)

from gateway import model
from gateway.config import Listen, StorageSCP
from gateway.edges.storescp import Deadlines, Limits, StorageScpDoor
from gateway.errors import GatewayError, LedgerError
from gateway.ledger.custody import Received

CONTEXTS = (Context(1, VERIFICATION, (IMPLICIT,)), Context(3, CT), Context(5, COMMITMENT, (IMPLICIT,)))
ABORTED = 7


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Running]:
    """A door that takes everything."""
    with dicom_door(tmp_path) as running:
        yield running


@pytest.fixture
def image(samples: Samples) -> Fresh:
    """A CT image in Explicit VR Little Endian."""
    return samples.fresh("CT_small.dcm")


def fragments(content: bytes, size: int, context: int = 3) -> list[bytes]:
    """A data set in PDUs of one fragment each."""
    starts = range(0, len(content), size)
    return [data(pdv(context, 2 if at + size >= len(content) else 0, content[at : at + size])) for at in starts]


def message(image: Fresh, size: int = 16000, **more: bytes | int) -> bytes:
    """A whole C-STORE of an image."""
    whole = [data(pdv(3, 3, store(image.sop_instance, **more))), *fragments(image.data_set, size)]
    return b"".join(whole)


def gone(door: Running) -> None:
    """Wait until no association is left."""
    until = time.monotonic() + 10
    while door.door._connections:
        assert time.monotonic() < until
        time.sleep(0.01)


# What is taken


def test_an_image_is_answered_with_success_after_it_is_kept(door: Running, image: Fresh) -> None:
    """R20, R8: the data set's bytes, behind a header of our own, before the 0x0000."""
    with Scu(door.port) as scu:
        assert scu.associate(*CONTEXTS)[3] == (0, EXPLICIT)
        scu.say(message(image))
        assert scu.answer() == (0x8001, 1, 0, "")
        [(received, path)] = door.taker.received
        scu.say(RELEASE_RQ)
        assert pdu(*scu.hear()) == RELEASE_RP
        assert scu.hear() == CLOSED
    content = path.read_bytes()
    assert content[received.data_set :] == image.data_set
    assert received.size == len(content)
    assert (received.study, received.series) == (image.study, image.series)
    assert (received.caller.calling, received.caller.called, received.caller.peer) == ("CT1", "DOOR", "127.0.0.1")
    assert door.door.counters.stored == 1
    assert door.door.counters.bytes == len(content)
    gone(door)
    assert door.door.counters.aborted == 0
    assert (received.sha256, received.data_set_sha256) == ("", "")  # nobody waits for that: COMPOSE hashes it


def test_the_header_is_our_own(door: Running, image: Fresh) -> None:
    """P10-2, P10-3, P10-6, P10-8: zero preamble, UIDs of the command, syntax of the context, our implementation."""
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(message(image))
        scu.answer()
    content = door.taker.received[0][1].read_bytes()
    assert content[:132] == bytes(128) + b"DICM"
    meta = pydicom.dcmread(io.BytesIO(content)).file_meta
    assert meta.FileMetaInformationVersion == b"\0\1"
    assert meta.MediaStorageSOPClassUID == CT
    assert meta.MediaStorageSOPInstanceUID == image.sop_instance
    assert meta.TransferSyntaxUID == EXPLICIT
    assert meta.ImplementationClassUID == model.IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == model.IMPLEMENTATION_VERSION_NAME
    assert meta.SourceApplicationEntityTitle == "CT1"
    assert len(meta) == 8


@pytest.mark.parametrize("size", [1, 7, 1000, 16000])
def test_a_data_set_may_come_in_fragments_of_any_size(door: Running, samples: Samples, size: int) -> None:
    """PS3.8 Annex E: odd ones, and those of one byte."""
    image = samples.fresh("MR_small_RLE.dcm")
    with Scu(door.port) as scu:
        scu.associate(Context(3, image.sop_class, (image.transfer_syntax,)))
        scu.say(data(pdv(3, 3, store(image.sop_instance, image.sop_class))), *fragments(image.data_set, size))
        assert scu.answer().status == 0
    assert door.taker.received[0][1].read_bytes().endswith(image.data_set)


def test_one_pdu_may_carry_several_items_and_empty_ones(door: Running, image: Fresh) -> None:
    """PS3.8 Annex E: command set and data set in one PDU, cut where one likes; an empty last fragment ends it."""
    whole = store(image.sop_instance)
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(
            data(
                *(pdv(3, 1, whole[:5]), pdv(3, 1, b""), pdv(3, 3, whole[5:])),
                *(pdv(3, 0, image.data_set), pdv(3, 2, b"")),
            )
        )
        assert scu.answer().status == 0


def test_images_follow_each_other(door: Running, samples: Samples) -> None:
    """NET-8: one after another, each with its own answer, also when the peer does not wait for it."""
    images = [samples.fresh("CT_small.dcm") for _ in range(5)]
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(*(message(one, x0110=number) for number, one in enumerate(images, 1)))
        assert [scu.answer()[1:3] for _ in images] == [(number, 0) for number in range(1, 6)]
    assert [one.sop_instance for one, _ in door.taker.received] == [one.sop_instance for one in images]


def test_an_echo_is_answered(door: Running) -> None:
    """NET-1: and a title of a route answers as the door's own does."""
    for title in ("DOOR", "OPINION"):
        with Scu(door.port) as scu:
            scu.associate(CONTEXTS[0], called=title)
            scu.say(data(pdv(1, 3, echo(7))))
            assert scu.answer() == (0x8030, 7, 0, "")


def test_a_small_maximum_length_is_kept(door: Running) -> None:
    """PS3.8 Annex D.1: our answer is cut to what the peer takes."""
    with Scu(door.port) as scu:
        scu.associate(CONTEXTS[0], max_pdu=32)
        scu.say(data(pdv(1, 3, echo())))
        bodies = [scu.hear()[1]]
        while not bodies[-1][5] & 2:
            bodies.append(scu.hear()[1])
    assert max(map(len, bodies)) <= 32
    assert len(bodies) > 1


# What is not taken


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"called": "NOBODY"}, (1, 1, 7)),
        ({"calling": "STRANGER"}, (1, 1, 3)),
        ({"calling": "UNROUTED"}, (1, 1, 3)),
        ({"application": "1.2.3"}, (1, 1, 2)),
        ({"version": 2}, (1, 2, 2)),
    ],
)
def test_a_rejection_has_the_right_reason(tmp_path: Path, options: dict[str, str], reason: tuple[int, ...]) -> None:
    """NET-7: PS3.8 Table 9-21."""
    with dicom_door(tmp_path, {"callers": ("CT1", "UNROUTED")}) as door, Scu(door.port) as scu:
        door.taker.unwelcome = {"UNROUTED"}
        scu.say(request(CONTEXTS, **options))  # type: ignore[arg-type]
        assert scu.hear() == (3, bytes((0, *reason)))
        assert scu.hear() == CLOSED
        assert door.door.counters.rejected == 1


def test_one_association_too_many_is_rejected_for_now(tmp_path: Path) -> None:
    """Transient, local limit exceeded; and there is room again when one has gone."""
    with dicom_door(tmp_path, {"associations": 2}) as door:
        with Scu(door.port) as first, Scu(door.port) as second, Scu(door.port) as third:
            first.associate(*CONTEXTS)
            second.associate(*CONTEXTS)
            third.say(request(CONTEXTS))
            assert third.hear() == (3, bytes((0, 2, 3, 2)))
            assert door.door.associations == 2
        gone(door)
        with Scu(door.port) as again:
            again.associate(*CONTEXTS)


def test_an_address_that_may_not_is_turned_away(tmp_path: Path) -> None:
    """NET-7: before a word is said."""
    with dicom_door(tmp_path, {"addresses": ("10.0.0.0/8",)}) as door, Scu(door.port) as scu:
        assert scu.hear() == CLOSED
        assert door.door.counters.turned_away == 1


def test_an_archive_may_report_but_not_store(tmp_path: Path) -> None:
    """SC-3: a PACS is no modality: callers does not name it."""
    with dicom_door(tmp_path, {"callers": ("CT1",)}, archives=("PACS",)) as door:
        with Scu(door.port) as scu:
            scu.say(request(CONTEXTS, calling="PACS"))
            assert scu.hear() == (3, bytes((0, 1, 1, 3)))
        with Scu(door.port) as scu:
            assert scu.associate(CONTEXTS[2], calling="PACS", roles={COMMITMENT: (0, 1)})[5] == (0, IMPLICIT)


def test_without_anybody_behind_it_the_door_takes_no_images(tmp_path: Path) -> None:
    """The contexts are refused; an echo works."""
    with dicom_door(tmp_path, incoming=False) as door, Scu(door.port) as scu:
        answered = scu.associate(*CONTEXTS)
        assert (answered[1][0], answered[3][0]) == (0, 3)


def test_low_disk_is_said_at_once(door: Running, image: Fresh) -> None:
    """R5: the association when it is low already, else 0xA700, and it resumes by itself."""
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        door.taker.low = True
        scu.say(message(image))
        assert scu.answer().status == 0xA700
        with Scu(door.port) as late:
            late.say(request(CONTEXTS))
            assert late.hear() == (3, bytes((0, 2, 3, 2)))
        with Scu(door.port) as asking:
            asking.associate(CONTEXTS[0])
        door.taker.low = False
        scu.say(message(image))
        assert scu.answer().status == 0
    assert door.taker.left == []


@pytest.mark.parametrize(
    ("error", "status"), [(OSError(28, "full"), 0xA700), (LedgerError("no"), 0xA700), (ValueError("odd"), 0x0110)]
)
def test_what_goes_wrong_behind_the_door_is_no_success(
    door: Running, image: Fresh, error: Exception, status: int
) -> None:
    """R6, R20: trouble of ours is temporary, and the association lives."""

    def fail(received: Received) -> int | None:
        received.draft.discard()
        raise error

    door.taker.before = fail
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(message(image))
        assert scu.answer().status == status
        door.taker.before = lambda _: 0xA700
        scu.say(message(image))
        assert scu.answer().status == 0xA700
    assert door.taker.received == []
    assert door.door.counters.failures == 2


def test_a_disk_that_takes_nothing_is_answered_with_a700(
    door: Running, image: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R5: also in the middle of a data set, which is read to its end."""

    def full(*_: object) -> int:
        raise OSError(28, "full")

    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        monkeypatch.setattr("gateway.ledger.drafts.Slice.write", full)
        scu.say(message(image))
        assert scu.answer().status == 0xA700
        monkeypatch.undo()
        scu.say(message(image))
        assert scu.answer().status == 0


def changed(image: Fresh, keyword: str, value: str | None) -> bytes:
    """The data set of an image with another value, or without it."""
    found = pydicom.dcmread(io.BytesIO(image.file))
    if value is None:
        delattr(found, keyword)
    else:
        setattr(found, keyword, value)
    sink = DicomBytesIO()
    sink.is_implicit_VR, sink.is_little_endian = False, True
    write_dataset(sink, Dataset(found))
    content: bytes = sink.getvalue()
    return content


@pytest.mark.parametrize(
    ("keyword", "value", "status", "comment"),
    [
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.4", 0xA900, "sop-class-mismatch"),
        ("SOPInstanceUID", "1.2.3.4", 0xA900, "meta-instance"),
        ("SOPInstanceUID", None, 0xA900, "no-sop-instance"),
        ("StudyInstanceUID", None, 0xC002, "no-study"),
        ("SeriesInstanceUID", "", 0xC002, "no-series"),
    ],
)
def test_a_data_set_that_is_not_what_was_said_is_refused(
    door: Running, image: Fresh, keyword: str, value: str | None, status: int, comment: str
) -> None:
    """P10-7, NET-18: the sender keeps it, and knows why."""
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(data(pdv(3, 3, store(image.sop_instance))), *fragments(changed(image, keyword, value), 16000))
        assert scu.answer() == (0x8001, 1, status, comment)
        scu.say(message(image))
        assert scu.answer().status == 0
    assert door.taker.left == []


def test_a_data_set_that_cannot_be_parsed_is_refused(door: Running, image: Fresh) -> None:
    """NET-18: cut short, it cannot be understood; nothing is kept."""
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(data(pdv(3, 3, store(image.sop_instance))), *fragments(image.data_set[:-100], 16000))
        assert scu.answer() == (0x8001, 1, 0xC000, "truncated-data-set")
    assert door.taker.received == []
    assert door.taker.left == []


def test_an_instance_beyond_the_limit_is_refused_at_the_byte(tmp_path: Path, image: Fresh) -> None:
    """limits.instance counts the file."""
    with dicom_door(tmp_path) as door, Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(message(image))
        assert scu.answer().status == 0
        size = door.taker.received[0][0].size
        for limit, status in ((size, 0), (size - 1, 0xC001)):
            door.door.limits = Limits(instance=limit)
            scu.say(message(image))
            assert scu.answer().status == status
        assert door.taker.left == []


def test_an_instance_without_end_is_cut(tmp_path: Path, image: Fresh) -> None:
    """A refused data set is read on, but not for ever."""
    with dicom_door(tmp_path, limits=Limits(instance=100_000)) as door, Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(data(pdv(3, 3, store(image.sop_instance))))
        for _ in range(19):
            scu.say(data(pdv(3, 0, bytes(10_000))))
        with contextlib.suppress(OSError):  # the abort comes while it is still sending
            for _ in range(5):
                scu.say(data(pdv(3, 0, bytes(10_000))))
        assert scu.hear() == (ABORTED, bytes((0, 0, 2, 6)))
        gone(door)
        assert door.taker.left == []
        assert door.door.counters.aborted == 1


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"x0002": b"1.2.840.10008.5.1.4.1.1.4"}, 0x0122),
        ({"x1000": b"not a uid"}, 0x0117),
        ({"x1000": b""}, 0x0117),
        ({"x1000": b"1." * 40 + b"1"}, 0x0117),
        ({"x0100": 0x0020}, 0x0211),
    ],
)
def test_a_command_that_makes_no_sense_is_answered(
    door: Running, image: Fresh, change: dict[str, bytes | int], status: int
) -> None:
    """PS3.7 Annex C: its data set is read and thrown away."""
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(message(image, **change))
        assert scu.answer().status == status
        scu.say(message(image))
        assert scu.answer().status == 0


def test_a_store_without_data_set_is_no_success(door: Running) -> None:
    """PS3.7 §9.3.1.1: it must have one."""
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(data(pdv(3, 3, store("1.2.3", x0800=0x0101))))
        assert scu.answer().status == 0xC000
    gone(door)
    assert door.taker.left == []


def test_a_cancel_is_not_answered(door: Running) -> None:
    """PS3.7 §9.3.2.3: it has no response."""
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(data(pdv(3, 3, command({0x0100: 0x0FFF, 0x0120: 1, 0x0800: 0x0101}))), data(pdv(1, 3, echo(2))))
        assert scu.answer()[:2] == (0x8030, 2)


# Storage commitment


def report(transaction: str, committed: list[str], failed: list[str]) -> bytes:
    """Event information in Implicit VR Little Endian."""

    def items(uids: list[str], **more: int) -> list[Dataset]:
        made = []
        for uid in uids:
            one = Dataset()
            one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = CT, uid
            for keyword, value in more.items():
                setattr(one, keyword, value)
            made.append(one)
        return made

    information = Dataset()
    information.TransactionUID = transaction
    information.ReferencedSOPSequence = items(committed)
    if failed:
        information.FailedSOPSequence = items(failed, FailureReason=0x0112)
    sink = DicomBytesIO()
    sink.is_implicit_VR, sink.is_little_endian = True, True
    write_dataset(sink, information)
    content: bytes = sink.getvalue()
    return content


def event(kind: int = 2) -> bytes:
    """The command set of an N-EVENT-REPORT-RQ."""
    return command(
        {
            0x0002: COMMITMENT.encode(),
            0x0100: 0x0100,
            0x0110: 9,
            0x0800: 1,
            0x1000: b"1.2.840.10008.1.20.1.1",
            0x1002: kind,
        }
    )


def test_a_commitment_report_is_taken_from_an_scp(door: Running) -> None:
    """NET-9, SC-2, SC-3: the roles are turned round, and what is reported is handed on."""
    with Scu(door.port) as scu:
        scu.say(request([CONTEXTS[2]], calling="PACS", roles={COMMITMENT: (0, 1)}))
        kind, body = scu.hear()
        assert kind == 2
        assert roles(body) == {COMMITMENT: (0, 1)}
        scu.say(data(pdv(5, 3, event())), data(pdv(5, 2, report("1.2.3", ["1.4", "1.5"], ["1.6"]))))
        assert scu.answer()[:3] == (0x8100, 9, 0)
        door.taker.known = False
        scu.say(data(pdv(5, 3, event()), pdv(5, 2, report("1.2.9", ["1.4"], ["1.6"]))))
        assert scu.answer().status == 0x0115
        scu.say(data(pdv(5, 3, event()), pdv(5, 2, b"rubbish")))
        assert scu.answer().status == 0x0110
    [first, _] = door.taker.reports
    assert (first.transaction, first.committed, dict(first.failed)) == ("1.2.3", {"1.4", "1.5"}, {"1.6": 0x0112})
    assert door.door.counters.reports == 1


def test_a_report_that_could_not_be_noted_is_no_success(door: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """SC-3: the archive must say it again."""

    async def fail(_: object) -> bool:
        raise LedgerError("no")

    monkeypatch.setattr(door.door, "on_report", fail)
    with Scu(door.port) as scu:
        scu.associate(CONTEXTS[2], roles={COMMITMENT: (1, 1)})
        scu.say(data(pdv(5, 3, event(1)), pdv(5, 2, report("1.2.3", ["1.4"], []))))
        assert scu.answer().status == 0x0110


def test_a_modality_is_not_promised_anything(door: Running) -> None:
    """It would delete its images: the context is refused, and so is an N-ACTION where the context stands."""
    action = command(
        {
            0x0003: COMMITMENT.encode(),
            0x0100: 0x0130,
            0x0110: 4,
            0x0800: 1,
            0x1001: b"1.2.840.10008.1.20.1.1",
            0x1008: 1,
        }
    )
    with Scu(door.port) as scu:
        assert scu.associate(*CONTEXTS)[5][0] == 3
    with Scu(door.port) as scu:
        assert scu.associate(*CONTEXTS, roles={COMMITMENT: (1, 1)})[5][0] == 0
        scu.say(data(pdv(5, 3, action), pdv(5, 2, report("1.2.3", ["1.4"], []))))
        assert scu.answer()[:3] == (0x8130, 4, 0x0211)
    assert door.taker.reports == []


# Abuse


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        pytest.param(pdu(9, b"1234"), 1, id="no PDU"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 1, id="a browser"),
        pytest.param(request(CONTEXTS), 2, id="a second request"),
        pytest.param(RELEASE_RP, 2, id="a release that was not asked for"),
        pytest.param(pdu(4, b"", 0xFFFFFFFF), 6, id="a giant PDU"),
        pytest.param(pdu(1, b"", 0x7FFFFFFF), 6, id="a giant request"),
        pytest.param(pdu(4, b""), 6, id="no item"),
        pytest.param(data(pdv(3, 3, b"", 1)), 6, id="an item shorter than its header"),
        pytest.param(data(pdv(3, 3, b"1234", 2000)), 6, id="an item longer than its PDU"),
        pytest.param(data(pdv(3, 3, echo()), b"\0\0"), 6, id="bytes behind the last item"),
        pytest.param(data(pdv(99, 3, echo())), 6, id="a context that was never proposed"),
        pytest.param(data(pdv(3, 0, b"1234")), 6, id="a data set without a command"),
        pytest.param(data(pdv(3, 3, b"\x08\0\x05\0\xff\xff\xff\xff")), 6, id="no command set"),
        pytest.param(data(pdv(3, 3, command({0x0100: 1}))), 6, id="half a command set"),
        pytest.param(data(pdv(3, 3, command({0x0100: 0x8001, 0x0120: 1, 0x0800: 0x0101}))), 6, id="a response"),
        pytest.param(data(pdv(3, 1, b"12")) + data(pdv(1, 1, b"34")), 6, id="two command sets at once"),
        pytest.param(data(pdv(3, 3, store("1.2"))) + data(pdv(3, 3, echo())), 6, id="a command inside a data set"),
        pytest.param(data(pdv(3, 3, store("1.2"))) + data(pdv(1, 0, b"12")), 6, id="data of another context"),
        pytest.param(data(pdv(3, 3, store("1.2"))) + RELEASE_RQ, 2, id="a release inside a data set"),
        pytest.param(b"".join(data(pdv(3, 1, bytes(16000))) for _ in range(5)), 6, id="a command set without end"),
    ],
)
def test_a_breach_of_the_protocol_is_aborted(door: Running, words: bytes, reason: int) -> None:
    """PS3.8 Table 9-26, R4: with the right reason, at once, and the next one is served."""
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(words)
        assert scu.hear() == (ABORTED, bytes((0, 0, 2, reason)))
        assert scu.hear() == CLOSED
    gone(door)
    assert door.taker.left == []
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(pdu(1, b"short"), id="a short request"),
        pytest.param(request([Context(2, CT)]), id="an even context ID"),
        pytest.param(request([Context(1, CT), Context(1, VERIFICATION)]), id="a context ID twice"),
        pytest.param(request([]), id="no context"),
        pytest.param(data(pdv(1, 3, echo())), id="data before the request"),
        pytest.param(RELEASE_RQ, id="release before the request"),
        pytest.param(request(CONTEXTS, max_pdu=7), id="a maximum length that fits nothing"),
    ],
)
def test_a_request_that_cannot_be_read_is_aborted(door: Running, words: bytes) -> None:
    """PS3.8 §9.3.8."""
    with Scu(door.port) as scu:
        scu.say(words)
        kind, body = scu.hear()
        assert (kind, body[:3]) == (ABORTED, b"\0\0\2")
    gone(door)


@pytest.mark.parametrize("cut", [3, 20, 300, 20_000])
def test_a_peer_that_goes_away_leaves_nothing(door: Running, image: Fresh, cut: int) -> None:
    """R20: neither a file nor an acknowledgement, wherever it stops."""
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(message(image)[:cut])
    gone(door)
    assert door.taker.received == []
    assert door.taker.left == []
    assert door.door.counters.aborted == 1


def test_an_abort_inside_a_data_set_leaves_nothing(door: Running, image: Fresh) -> None:
    """R20: and it is not answered (PS3.8 §9.2.3, AA-3)."""
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(message(image)[: len(store(image.sop_instance)) + 12 + 16012], A_ABORT)
        assert scu.hear() == CLOSED
    gone(door)
    assert door.taker.left == []


QUICK = Deadlines(handshake=0.3, request=0.3, idle=0.3, silence=0.3, reply=0.3, custody=0.3, farewell=0.1)


@pytest.mark.parametrize("half", [b"", request(CONTEXTS)[:50]])
def test_who_says_nothing_is_cut_off(tmp_path: Path, half: bytes) -> None:
    """R4: ARTIM; half a request is nothing."""
    with dicom_door(tmp_path, deadlines=QUICK) as door, Scu(door.port) as scu:
        scu.say(half)
        assert scu.hear() == CLOSED


@pytest.mark.parametrize("size", [0, 3, 400])
def test_who_stops_in_between_is_aborted(tmp_path: Path, image: Fresh, size: int) -> None:
    """R4: between two messages, in a header, in a data set."""
    with dicom_door(tmp_path, deadlines=QUICK) as door, Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(message(image)[:size])
        assert scu.hear() == (ABORTED, bytes((0, 0, 2, 0)))
        gone(door)
        assert door.taker.left == []


def test_who_drips_is_aborted(tmp_path: Path, image: Fresh) -> None:
    """R4: a byte now and then is no transfer."""
    with dicom_door(tmp_path, deadlines=QUICK) as door, Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        whole = message(image)
        stopped = threading.Event()

        def drip() -> None:
            for at in range(1000):
                if stopped.wait(0.05):
                    return
                try:
                    scu.say(whole[at : at + 1])
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert scu.hear()[0] in {ABORTED, 0}
        finally:
            stopped.set()
            thread.join()
        gone(door)


def test_custody_that_takes_too_long_is_neither_yes_nor_no(tmp_path: Path, image: Fresh) -> None:
    """R20: an abort, for nothing else would be true."""
    with dicom_door(tmp_path, deadlines=QUICK) as door:
        door.taker.slow.set()
        with Scu(door.port) as scu:
            scu.associate(*CONTEXTS)
            scu.say(message(image))
            assert scu.hear()[0] == ABORTED


def test_silent_strangers_make_way(door: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """R4: who holds connections without asking for anything keeps nobody out."""
    monkeypatch.setattr("gateway.edges.storescp.door.STRANGERS", 3)
    strangers = [Scu(door.port) for _ in range(6)]
    try:
        with Scu(door.port) as scu:
            scu.associate(*CONTEXTS)
        assert strangers[0].hear() == CLOSED
        assert door.door.counters.turned_away >= 3
    finally:
        for one in strangers:
            one.socket.close()


# The end


def test_stopping_lets_the_running_instance_finish(door: Running, image: Fresh) -> None:
    """R31: it is received, answered, and then the association is aborted; idle ones at once, new ones never."""
    whole = message(image)
    with Scu(door.port) as idle, Scu(door.port) as scu:
        idle.associate(*CONTEXTS)
        scu.associate(*CONTEXTS)
        scu.say(whole[:20_000])
        time.sleep(0.1)
        closing = threading.Thread(target=door.close, args=(10,))
        closing.start()
        assert idle.hear()[0] == ABORTED
        idle.socket.close()
        with pytest.raises(ConnectionRefusedError):
            Scu(door.port)
        scu.say(whole[20_000:])
        assert scu.answer().status == 0
        assert scu.hear()[0] == ABORTED
        closing.join()


def test_stopping_does_not_wait_for_ever(door: Running, image: Fresh) -> None:
    """R31: who does not go on is cut off."""
    with Scu(door.port) as scu:
        scu.associate(*CONTEXTS)
        scu.say(message(image)[:20_000])
        time.sleep(0.1)
        door.close(0.2)
        gone(door)
    assert door.taker.left == []


async def test_a_port_in_use_is_named(door: Running) -> None:
    """The reason, and nothing open."""
    other = StorageScpDoor(StorageSCP(title="DOOR", listen=Listen("127.0.0.1", door.port)), None)
    with pytest.raises(GatewayError, match="another program uses this port"):
        await other.open()
    assert other.addresses == []


def test_a_reload_is_for_new_associations(door: Running, image: Fresh) -> None:
    """SIGHUP: titles and callers; who is here stays."""
    with Scu(door.port) as old:
        old.associate(*CONTEXTS)
        door.door.reload(StorageSCP(title="NEW", listen=Listen("127.0.0.1", 0), callers=("MR1",)))
        old.say(message(image))
        assert old.answer().status == 0
        with Scu(door.port) as scu:
            scu.say(request(CONTEXTS))
            assert scu.hear()[0] == 3
        with Scu(door.port) as scu:
            scu.associate(*CONTEXTS, called="NEW", calling="MR1")


def test_bytes_of_any_kind_are_survived(door: Running) -> None:
    """R9: sixty fragments of noise, with valid lengths."""
    for seed in range(60):
        noise = hashlib.sha256(bytes([seed])).digest()
        with Scu(door.port) as scu:
            scu.associate(*CONTEXTS)
            scu.say(data(pdv(3, noise[0] & 3, noise)), struct.pack(">B", noise[1]))
            scu.socket.shutdown(1)
            while scu.hear() != CLOSED:
                pass
    gone(door)
    assert door.taker.left == []
