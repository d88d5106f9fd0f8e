"""The Storage SCU against real peers: DCMTK's storescp with each of its faults, and Orthanc."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pacs import Pacs, held_by_orthanc, orthanc, read_meta, resized, storescp
from peer import program
from pydicom.data import get_testdata_file

from gateway import model
from gateway.core import contexts, status
from gateway.edges.storescu import Association, Peer, echo
from gateway.errors import AssociationRejectedError

pytestmark = pytest.mark.peer

CORPUS = Path(__file__).parents[2].parent / "shared" / "corpus" / "dicom"
DIRECTORY = model.MEDIA_STORAGE_DIRECTORY
CT_SMALL = Path(str(get_testdata_file("CT_small.dcm")))
CUT = {"MR_truncated.dcm", "SC_rgb_jpeg.dcm", "emri_small_jpeg_2k_lossless_too_short.dcm"}
"""Data sets that end too early: Orthanc says nothing to them for 30 seconds, and then aborts."""

DEADLINE = 60.0


def queue(paths: list[Path]) -> list[model.Queued]:
    """Queue what has a usable group 0002 and is no DICOMDIR."""
    queued = []
    for key, path in enumerate(paths):
        content = path.read_bytes()
        meta = read_meta(content)
        if meta is not None and meta.sop_class != DIRECTORY:
            span = model.Span(path, meta.data_set, len(content))
            queued.append(model.Queued(key, meta.sop_class, meta.sop_instance, meta.transfer_syntax, span))
    return queued


@pytest.fixture(scope="module")
def corpus() -> list[model.Queued]:
    """Every file of the corpus that can be sent as it is."""
    if not CORPUS.is_dir():
        pytest.skip(f"no corpus at {CORPUS}")
    return queue(sorted(path for path in CORPUS.rglob("*") if path.is_file()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where storescp puts what it takes."""
    folder = tmp_path / "taken"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    """One Orthanc for all."""
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


def peer(pacs: Pacs, timeout: float = DEADLINE, title: str | None = None) -> Peer:
    return Peer(title or pacs.title, "127.0.0.1", pacs.port, "GATEWAY", timeout)


def copies(count: int, path: Path = CT_SMALL) -> list[model.Queued]:
    """Queue one file many times."""
    (one,) = queue([path])
    return [replace(one, key=key) for key in range(count)]


def send_all(pacs: Pacs, queued: list[model.Queued], deadline: float = DEADLINE) -> dict[int, model.Sent]:
    """Send a queue as a lane does: on a new association after each that ended, and never an instance twice."""
    outcomes: dict[int, model.Sent] = {}
    for plan in contexts.plan(queued):
        waiting = list(plan.queued)
        while waiting:
            association = Association.open(peer(pacs), plan.contexts)
            sent = association.send(waiting, deadline)
            association.release()
            assert sent, "an association that sends nothing would be opened for ever"
            assert [each.key for each in sent] == [each.key for each in waiting[: len(sent)]]
            outcomes |= {each.key: each for each in sent}
            waiting = waiting[len(sent) :]
    return outcomes


def data_set(queued: model.Queued) -> bytes:
    return queued.data_set.path.read_bytes()[queued.data_set.start :]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def taken(folder: Path) -> Counter[str]:
    """Hash the data set of every file that storescp wrote."""
    hashes: Counter[str] = Counter()
    for path in folder.iterdir():
        content = path.read_bytes()
        meta = read_meta(content)
        assert meta is not None
        hashes[sha256(content[meta.data_set :])] += 1
    return hashes


def test_storescp_gets_every_byte_of_the_corpus(corpus: list[model.Queued], folder: Path) -> None:
    """R8, R12: what was answered with success is on its disk, byte for byte; nothing else is."""
    with storescp(folder, "+xa", "+B") as pacs:
        outcomes = send_all(pacs, corpus)
    delivered = Counter(sha256(data_set(each)) for each in corpus if status.judge(outcomes[each.key]).delivered)
    assert set(outcomes) == {each.key for each in corpus}
    assert taken(folder) == delivered
    assert delivered.total() >= 0.95 * len(corpus)
    unanswered = [sent for sent in outcomes.values() if sent.status is None]
    assert all(sent.refused == "context-refused" or sent.comment == "A-ABORT" for sent in unanswered)


def test_orthanc_holds_what_it_said_it_holds(corpus: list[model.Queued], archive: Pacs, tmp_path: Path) -> None:
    """R8, R12: the same bytes, but for the lengths that Orthanc itself writes anew."""
    waiting = [each for each in corpus if each.data_set.size % 2 == 0 and each.data_set.path.name not in CUT]
    delivered = identical = 0
    seen: set[str] = set()
    for each in waiting:
        if each.sop_instance in seen:  # some instances are in the corpus in several syntaxes
            continue
        (sent,) = send_all(archive, [each]).values()
        assert sent.comment == ""
        if not status.judge(sent).delivered:
            continue
        seen.add(each.sop_instance)
        held = held_by_orthanc(archive, each.sop_instance)
        assert held is not None, each.data_set.path
        meta = read_meta(held)
        assert meta is not None
        assert meta.transfer_syntax == each.transfer_syntax
        delivered += 1
        if held[meta.data_set :] == data_set(each):
            identical += 1
        else:
            assert rewritten(tmp_path, held) == rewritten(tmp_path, each.data_set.path.read_bytes()), each.data_set.path
    assert delivered >= 0.8 * len({each.sop_instance for each in waiting})
    assert identical >= 0.7 * delivered


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


def test_an_odd_length_is_sent_as_it_is_and_never_called_delivered(folder: Path, archive: Pacs, tmp_path: Path) -> None:
    """R8, R13: DCMTK aborts at an odd fragment and Orthanc falls silent; the next one goes on a new association."""
    odd = tmp_path / "odd.dcm"
    odd.write_bytes(CT_SMALL.read_bytes() + b"\0")
    queued = [*copies(1), *copies(2, odd)[1:], *copies(3)[2:]]
    with storescp(folder) as pacs:
        by_storescp = send_all(pacs, queued)
    assert [sent.status for sent in by_storescp.values()] == [0, None, 0]
    association = Association.open(peer(archive), contexts.plan(queued)[0].contexts)
    assert association.send(queued[1:2], 1.0) == [model.Sent(1, None, comment="timeout")]
    assert not association.alive


FAULTS = [
    ("--abort-after", ["A-ABORT"]),
    ("--abort-during", ["A-ABORT", "closed"]),
    ("--ignore", [""]),
]


@pytest.mark.parametrize(("flag", "comments"), FAULTS)
def test_the_faults_of_storescp(folder: Path, flag: str, comments: list[str]) -> None:
    """R12: an abort is never a success; --ignore, which keeps nothing, shows that success is the word of the peer."""
    with storescp(folder, flag) as pacs:
        association = Association.open(peer(pacs), contexts.plan(copies(1))[0].contexts)
        (first, *_) = association.send(copies(2), DEADLINE)
        association.release()
    assert first.comment in comments
    assert first.status == (0 if flag == "--ignore" else None)


def test_storescp_that_refuses_associations(folder: Path) -> None:
    """NET-5: DCMTK's --refuse is a rejection for good."""
    with storescp(folder, "--refuse") as pacs, pytest.raises(AssociationRejectedError) as caught:
        Association.open(peer(pacs), contexts.plan(copies(1))[0].contexts)
    assert caught.value.permanent


@pytest.mark.parametrize("flag", ["--sleep-after", "--sleep-during"])
def test_a_slow_storescp_is_waited_for_within_the_deadline(folder: Path, flag: str) -> None:
    """R13: slow is not dead, and a deadline that passes is not success."""
    with storescp(folder, flag, "1") as pacs:
        patient = Association.open(peer(pacs), contexts.plan(copies(1))[0].contexts)
        assert [sent.status for sent in patient.send(copies(1), DEADLINE)] == [0]
        patient.abort()
    with storescp(folder, flag, "3") as pacs:
        hasty = Association.open(peer(pacs), contexts.plan(copies(1))[0].contexts)
        assert hasty.send(copies(3), 0.5)[-1].comment == "timeout"
        assert not hasty.alive


def test_a_peer_that_is_stopped_is_given_up(folder: Path) -> None:
    """R4, R13: SIGSTOP is how a PACS hangs."""
    with storescp(folder) as pacs:
        association = Association.open(peer(pacs), contexts.plan(copies(1))[0].contexts)
        os.kill(pacs.pid, signal.SIGSTOP)
        try:
            outcomes = association.send(copies(2), 0.5)
            found = echo(peer(pacs, 0.5))
        finally:
            os.kill(pacs.pid, signal.SIGCONT)
    assert outcomes == [model.Sent(0, None, comment="timeout")]
    assert (found.ok, found.reachable) == (False, False)


def test_no_response_is_lost_in_five_hundred_sends(folder: Path, tmp_path: Path) -> None:
    """R12: many small instances, as fast as the peer answers, with Nagle's algorithm off at both ends."""
    small = tmp_path / "small.dcm"
    small.write_bytes(resized(CT_SMALL.read_bytes(), 20_000))
    queued = copies(500, small)
    with storescp(folder, "--ignore") as pacs:
        outcomes = send_all(pacs, queued)
    assert Counter(sent.status for sent in outcomes.values()) == {0: 500}


def test_echo_of_real_peers(folder: Path, archive: Pacs) -> None:
    """NET-20: both answer, and Orthanc knows when it is called by another's name."""
    with storescp(folder) as pacs:
        assert echo(peer(pacs)).ok
    assert echo(peer(archive)).ok
    wrong = echo(peer(archive, title="SOMEBODY"))
    assert (wrong.ok, wrong.reachable) == (False, True)
    assert "called AE title not recognised" in wrong.reason
