"""Lanes to real PACS: every file of the corpus to each of them, in one run; proof by C-FIND."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pydicom
import pytest
from dcmqrscp import Dcmqrscp
from lane import Lane
from pacs import Meta, Pacs, held_by_orthanc, orthanc, read_meta, storescp
from peer import program
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pynetdicom import AE, StoragePresentationContexts, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)
from rows import alarms
from samples import FOLDER
from sqlalchemy import select

from gateway.core import commitment, dataset, part10
from gateway.core.confirmation import MOST_ABSENCES
from gateway.ledger.tables import delivery, instance
from tests.samples import corpus

pytestmark = pytest.mark.peer

CORPUS = corpus()


@pytest.fixture
async def lanes() -> AsyncIterator[list[Lane]]:
    """Lanes that are closed in the end."""
    made: list[Lane] = []
    yield made
    for one in made:
        await one.close()


def judged(content: bytes) -> part10.Judged | None:
    """What the reader says of a file; None when it is no DICOM file."""
    if not part10.is_marked(content):
        return None
    try:
        meta = part10.read_meta(content)
    except dataset.Problem:
        return None
    source = dataset.Stored(lambda at, n: content[at : at + n], content, len(content))
    return part10.judge(meta, source, len(content), 1 << 30)


def identity(content: bytes) -> Meta | None:
    """What an instance is queued as: as its data set says, where its header says something else."""
    one = judged(content)
    return one and Meta(one.sop_class, one.sop_instance, one.meta.transfer_syntax, one.meta.data_set)


def sendable() -> list[list[tuple[Path, str, str]]]:
    """What the reader lets through, with study and series, in rounds: in each of them every UID is there once."""
    rounds: list[dict[str, tuple[Path, str, str]]] = []
    contents: set[str] = set()
    folders = [FOLDER, *([CORPUS / "dicom"] if CORPUS is not None else [])]
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        one, digest = judged(content), hashlib.sha256(content).hexdigest()
        if one is None or one.held is not None or one.is_directory or digest in contents:
            continue
        contents.add(digest)
        uid = one.sop_instance
        free = next((each for each in rounds if uid not in each), None)
        if free is None:
            free = {}
            rounds.append(free)
        free[uid] = (path, one.study, one.series)
    return [list(one.values()) for one in rounds]


def rows(lane: Lane, key: str) -> list[Any]:
    """What became of each instance of a message."""
    columns = (instance.c.sop_instance, instance.c.transfer_syntax, instance.c.start, instance.c.data_set)
    columns += (instance.c.size, delivery.c.outcome, delivery.c.code, delivery.c.status, delivery.c.comment)
    columns += (delivery.c.sent_syntax, delivery.c.sends_unknown, delivery.c.destination)
    query = (
        select(*columns)
        .join(delivery, (delivery.c.message == instance.c.message) & (delivery.c.number == instance.c.number))
        .where(delivery.c.message == key)
    )
    return list(lane.sync(lambda c: c.execute(query).all()))


def pixels(content: bytes) -> Any:
    """The decoded pixels."""
    return pydicom.dcmread(io.BytesIO(content), force=True).pixel_array


REASONS = {
    "dcmtk": {("context-refused", None)},
    "orthanc": {("context-refused", None), ("not-understood", 0xC000)},
    "dcmqrscp": {("context-refused", None)},
}
"""Why each of them does not take what it does not take: code and status."""


@pytest.mark.filterwarnings("ignore")
async def test_every_file_of_the_corpus_arrives_or_is_refused_with_its_reason(
    tmp_path: Path, lanes: list[Lane]
) -> None:
    """One run to three PACS: identical data sets or identical pixels, and nothing waits for ever (R8, R14, NET-12)."""
    (tmp_path / "in").mkdir()
    (tmp_path / "orthanc").mkdir()
    rounds = sendable()
    assert sum(map(len, rounds)) > (200 if CORPUS is not None else 100)
    with (
        storescp(tmp_path / "in", "+B", "+xa") as dcmtk,
        orthanc(tmp_path / "orthanc") as other,
        Dcmqrscp("+B") as archive,
    ):
        entities = {
            "dcmtk": {"title": dcmtk.title, "port": dcmtk.port},
            "orthanc": {"title": other.title, "port": other.port},
            "dcmqrscp": {"title": archive.title, "port": archive.port},
        }
        counts: Counter[tuple[str, str, str | None]] = Counter()
        reasons: dict[str, set[tuple[str, int | None]]] = {name: set() for name in entities}
        for number, files in enumerate(rounds):
            # A ledger of its own: it would hold what comes again under a known UID with other content.
            lane = Lane(tmp_path / f"gw-{number}", entities)
            lanes.append(lane)
            key = f"in-{number}"
            lane.fill(key, files, entities, identify=identity)
            looks = await lane.drain(12)
            assert lane.waiting == 0, looks
            blob = lane.spool.path(f"2026112312/{key}.dcm").read_bytes()
            arrived = {"dcmtk": stored((tmp_path / "in").iterdir()), "dcmqrscp": stored(archive.files())}
            for row in rows(lane, key):
                original = blob[row.start : row.start + row.size]
                counts[row.destination, row.outcome, row.code] += 1
                assert row.sends_unknown == 0, row
                if row.outcome != "delivered":
                    reasons[row.destination].add((row.code, row.status))
                    continue
                content = (
                    held_by_orthanc(other, row.sop_instance)
                    if row.destination == "orthanc"
                    else arrived[row.destination][row.sop_instance]
                )
                assert content is not None
                check(tmp_path, row, original, content)
            for path in (tmp_path / "in").iterdir():
                path.unlink()
        print(dict(counts))
        assert all(reasons[name] <= REASONS[name] for name in entities), reasons
        assert all(counts[name, "delivered", None] > 100 for name in entities)
        assert counts["dcmqrscp", "failed", "context-refused"] > 0


def stored(paths: Iterable[Path]) -> dict[str, bytes]:
    """What a PACS wrote, by SOP Instance UID; the last of each."""
    contents = (path.read_bytes() for path in paths)
    return {meta.sop_instance: content for content in contents if (meta := read_meta(content))}


def rewritten(folder: Path, content: bytes) -> bytes:
    """Write a file as DCMTK does, which Orthanc is built on: without group lengths, all sequences of known length."""
    source, target = folder / "source.dcm", folder / "target.dcm"
    source.write_bytes(content)
    flags = ["--group-length-remove", "--length-explicit", "--padding-off"]
    subprocess.run([program("dcmconv"), "-q", *flags, str(source), str(target)], check=True)
    written = target.read_bytes()
    meta = read_meta(written)
    assert meta is not None
    return written[meta.data_set :]


def check(folder: Path, row: Any, original: bytes, arrived: bytes) -> None:
    """The same data set, or the same pixels in the syntax that is on record."""
    meta = read_meta(arrived)
    assert meta is not None
    if row.sent_syntax is None:
        same = arrived[meta.data_set :] == original[row.data_set :]
        # Orthanc itself writes lengths anew.
        assert same or (row.destination == "orthanc" and rewritten(folder, arrived) == rewritten(folder, original)), row
    else:
        assert meta.transfer_syntax == row.sent_syntax, row
        assert (pixels(original) == pixels(arrived)).all(), row


def a_study(count: int) -> list[tuple[bytes, str, str]]:
    """Copies of one image under UIDs of their own."""
    source = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    meta = read_meta(source)
    assert meta is not None
    head = pydicom.dcmread(io.BytesIO(source), stop_before_pixels=True)
    uid = meta.sop_instance.encode()
    return [
        (source.replace(uid, uid[:-5] + f"{n + 10_000:05}".encode()), head.StudyInstanceUID, head.SeriesInstanceUID)
        for n in range(count)
    ]


def erase(pacs: Pacs, sop_instance: str) -> None:
    """Make the PACS a liar: it said 0000 and has it no more."""
    base = f"http://127.0.0.1:{pacs.http}"
    with urlopen(f"{base}/tools/lookup", data=sop_instance.encode(), timeout=30) as answer:
        (found,) = (each for each in json.load(answer) if each["Type"] == "Instance")
    with urlopen(Request(f"{base}/instances/{found['ID']}", method="DELETE"), timeout=30) as answer:
        answer.read()


async def test_orthanc_shows_what_it_has_and_a_loss_is_sent_again(tmp_path: Path, lanes: list[Lane]) -> None:
    """With confirm = "find", 0000 and then absent is found out and mended (R18)."""
    (tmp_path / "orthanc").mkdir()
    with orthanc(tmp_path / "orthanc") as pacs:
        entity = {"title": pacs.title, "port": pacs.port, "confirm": "find", "confirm_within": "1s"}
        lane = Lane(tmp_path / "gw", {"orthanc": entity})
        lanes.append(lane)
        lane.fill("in-1", a_study(20), ["orthanc"])
        await lane.store.look("orthanc")
        assert {code for *_, code in lane.parts("in-1")} == {"awaiting-confirmation"}
        lost = rows(lane, "in-1")[7].sop_instance
        erase(pacs, lost)
        await asyncio.sleep(1.1)
        lane.make_due()
        await lane.store.look("orthanc")
        assert Counter(outcome for _, _, outcome, _ in lane.parts("in-1")) == {"delivered": 19, "waiting": 1}
        await lane.drain(10)
        assert {(outcome, code) for _, _, outcome, code in lane.parts("in-1")} == {("delivered", None)}
        assert held_by_orthanc(pacs, lost) is not None


async def test_orthanc_is_not_sent_what_it_has_already(tmp_path: Path, lanes: list[Lane]) -> None:
    """A known instance in a new mail is skipped where C-FIND shows it, and the item says so (R11)."""
    (tmp_path / "orthanc").mkdir()
    with orthanc(tmp_path / "orthanc") as pacs:
        lane = Lane(tmp_path / "gw", {"orthanc": {"title": pacs.title, "port": pacs.port, "confirm": "find"}})
        lanes.append(lane)
        files = a_study(3)
        lane.fill("in-1", files, ["orthanc"], content="same")
        await lane.drain(5)
        lane.fill("in-2", files, ["orthanc"], content="same")
        await lane.drain(5)
        assert {(outcome, code) for _, _, outcome, code in lane.parts("in-1")} == {("delivered", None)}
        assert {(outcome, code) for _, _, outcome, code in lane.parts("in-2")} == {("delivered", "already-there")}


@contextlib.contextmanager
def liar() -> Iterator[tuple[int, list[str]]]:
    """Run an archive that answers 0000 to every C-STORE and keeps nothing: its port, and what it was sent."""
    taken: list[str] = []
    threads: list[threading.Thread] = []

    def store(event: Any) -> int:
        taken.append(event.request.AffectedSOPInstanceUID)
        return 0

    def find(_: Any) -> Iterator[tuple[int, None]]:
        yield 0, None

    def act(event: Any) -> tuple[int, None]:
        report = Dataset()
        report.TransactionUID = event.action_information.TransactionUID
        report.FailedSOPSequence = event.action_information.ReferencedSOPSequence
        for one in report.FailedSOPSequence:
            one.FailureReason = 0x0112
        tell = (report, 2, StorageCommitmentPushModel, commitment.SOP_INSTANCE)
        threads.append(threading.Timer(0.1, event.assoc.send_n_event_report, tell))
        threads[-1].start()
        return 0, None

    archive = AE("LIAR")
    archive.supported_contexts = StoragePresentationContexts
    for one in (Verification, StorageCommitmentPushModel, StudyRootQueryRetrieveInformationModelFind):
        archive.add_supported_context(one)
    handlers = [(evt.EVT_C_STORE, store), (evt.EVT_C_FIND, find), (evt.EVT_N_ACTION, act)]
    server = archive.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield server.socket.getsockname()[1], taken
    finally:
        for thread in threads:
            thread.join(10)
        server.shutdown()


@pytest.mark.parametrize("confirm", ["find", "commitment"])
async def test_a_lying_pacs_is_found_out(confirm: str, tmp_path: Path, lanes: list[Lane]) -> None:
    """0000 and then absent: sent again a bounded number of times, held in the end, never delivered (R18, SC-5)."""
    with liar() as (port, taken):
        entity = {"title": "LIAR", "port": port, "confirm": confirm, "confirm_within": "1s"}
        lane = Lane(tmp_path / "gw", {"liar": entity})
        lanes.append(lane)
        lane.fill("in-1", a_study(4), ["liar"])
        for _ in range(30):
            if not lane.waiting:
                break
            await lane.store.look("liar")
            assert not any(outcome == "delivered" for _, _, outcome, _ in lane.parts("in-1"))
            lane.make_due()
            await asyncio.sleep(0.2)
        assert {(outcome, code) for _, _, outcome, code in lane.parts("in-1")} == {("held", "not-confirmed")}
        assert set(Counter(taken).values()) == {MOST_ABSENCES}
        assert lane.sync(alarms) == {("held", "in-1")}
