"""TLS, C-FIND and storage commitment against real peers: DCMTK's storescp and dcmqrscp, Orthanc, pynetdicom."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from orthanc import Orthanc
from peer import Peer as Program
from peer import program
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel
from storescp import Storescp

from gateway.config import ClientTls
from gateway.core import commitment, contexts, dimse, query
from gateway.core.query import Presence, Wanted
from gateway.edges.storescu import Association, Peer, commit, echo, find, refusals
from gateway.errors import PeerUnreachableError
from gateway.model import Queued, Span
from gateway.service import client_tls

pytestmark = pytest.mark.peer

SOURCE = Path(str(get_testdata_file("CT_small.dcm")))
TIMEOUT = 10.0


class Dcmqrscp(Program):
    """DCMTK's archive."""

    title = "DCMQRSCP"

    def command(self) -> list[str]:
        store = self.folder / "store"
        store.mkdir(exist_ok=True)
        path = self.folder / "dcmqrscp.cfg"
        path.write_text(
            f"NetworkTCPPort = {self.port}\nMaxPDUSize = 16384\nMaxAssociations = 16\nHostTable BEGIN\nHostTable END\n"
            "VendorTable BEGIN\nVendorTable END\nAETable BEGIN\n"
            f"{self.title} {store} RW (200, 1024mb) ANY\nAETable END\n"
        )
        return [program("dcmqrscp"), "-c", str(path)]


def study(folder: Path, count: int) -> tuple[list[Queued], list[Wanted]]:
    """Write one series."""
    original = dcmread(SOURCE)
    queued, wanted = [], []
    for key in range(count):
        original.SOPInstanceUID = original.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.7.{key}"
        path = folder / f"{key}.dcm"
        original.save_as(path)
        content = path.read_bytes()
        start = content.index(b"\x08\x00\x05\x00CS")
        span = Span(path, start, len(content))
        syntax = str(original.file_meta.TransferSyntaxUID)
        queued.append(Queued(key, str(original.SOPClassUID), str(original.SOPInstanceUID), syntax, span))
        wanted.append(Wanted(str(original.StudyInstanceUID), str(original.SeriesInstanceUID), queued[-1].sop_instance))
    return queued, wanted


def to(running: Program, **changes: Any) -> Peer:
    return replace(Peer(running.title, "127.0.0.1", running.port, "GATEWAY", TIMEOUT), **changes)


def store(peer: Peer, queued: list[Queued]) -> None:
    association = Association.open(peer, contexts.plan(queued)[0].contexts)
    assert [sent.status for sent in association.send(queued, TIMEOUT)] == [0] * len(queued)
    association.release()


@pytest.fixture(params=["orthanc", "dcmqrscp"])
def archive(request: pytest.FixtureRequest) -> Iterator[Program]:
    """Each archive in turn."""
    with Orthanc(DicomAlwaysAllowFind=True) if request.param == "orthanc" else Dcmqrscp() as running:
        yield running


def test_what_an_archive_has_is_told_from_what_it_has_not(archive: Program, tmp_path: Path) -> None:
    """R18: 120 instances, some of them never sent, in batches; nothing is absent that is there."""
    queued, wanted = study(tmp_path, 120)
    kept = [one for key, one in enumerate(queued) if key % 40]
    store(to(archive), kept)
    other = Wanted(generate_uid(), generate_uid(), generate_uid())
    nameless = Wanted("", "", "1.2.3.4")
    findings = find(to(archive), [*wanted, other, nameless])
    expected = {one.sop_instance: Presence.PRESENT for one in kept}
    expected |= {queued[key].sop_instance: Presence.ABSENT for key in (0, 40, 80)}
    expected |= {other.sop_instance: Presence.ABSENT, nameless.sop_instance: Presence.UNKNOWN}
    assert dict(findings.presence) == expected
    assert findings.reason == ""


def test_a_peer_that_cannot_be_asked_leaves_all_unknown(tmp_path: Path) -> None:
    """A Storage SCP is no Query SCP; storescp refuses the context, and commitment with it."""
    _, wanted = study(tmp_path, 2)
    with Storescp() as running:
        findings = find(to(running), wanted)
        answer = commit(to(running), generate_uid(), [])
    assert set(findings.presence.values()) == {Presence.UNKNOWN}
    assert findings.reason
    assert (answer.requested, answer.refused) == (False, "context-refused")


def test_an_archive_accepts_what_it_says(archive: Program) -> None:
    """NET-20: a probe association tells what would be refused, without sending."""
    ct = "1.2.840.10008.5.1.4.1.1.2"
    pairs = [(ct, each) for each in contexts.FALL_BACKS] + [("1.2.3.4.5", contexts.IMPLICIT)] * 1
    refused = refusals(to(archive), pairs)
    assert all((ct, each) not in refused for each in contexts.FALL_BACKS)
    assert (refused.keys() == {("1.2.3.4.5", contexts.IMPLICIT)}) is isinstance(archive, Dcmqrscp)


def test_an_archive_that_lets_nobody_ask_says_nothing_is_absent(tmp_path: Path) -> None:
    """R18: Orthanc refuses queries of callers it does not know by an abort; that is no answer."""
    _, wanted = study(tmp_path, 60)
    with Orthanc() as running:
        findings = find(to(running), wanted)
    assert set(findings.presence.values()) == {Presence.UNKNOWN}
    assert findings.reason == "no answer to C-FIND: A-ABORT"


# Storage commitment


def test_orthanc_takes_a_request_and_reports_on_an_association_of_its_own(tmp_path: Path) -> None:
    """SC-1 to SC-3: the report names what it has as committed, and what it never got as failed."""
    queued, _ = study(tmp_path, 3)
    reports: list[commitment.Report] = []
    came = threading.Event()

    def take(event: Any) -> tuple[int, None]:
        information = event.request.EventInformation.getvalue()
        syntax = str(event.context.transfer_syntax)
        reports.append(commitment.read_report(event.request.EventTypeID, information, syntax))
        came.set()
        return 0, None

    listener = AE("GATEWAY")
    listener.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    server = listener.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, take)])
    assert server is not None
    try:
        port = server.socket.getsockname()[1]
        with Orthanc(DicomModalities={"gateway": ["GATEWAY", "127.0.0.1", port]}) as running:
            store(to(running), queued[:2])
            transaction = generate_uid()
            references = [commitment.Reference(one.sop_class, one.sop_instance) for one in queued]
            answer = commit(to(running), transaction, references)
            assert came.wait(20)
    finally:
        server.shutdown()
    assert answer == commitment.Answer(0)
    (report,) = reports
    assert report.transaction == transaction
    assert report.committed == {one.sop_instance for one in queued[:2]}
    assert report.failed == {queued[2].sop_instance: 0x0112}


@pytest.mark.parametrize("recorded", [True, False])
def test_a_report_on_the_same_association_is_recorded_and_answered(recorded: bool) -> None:
    """SC-2: a report that could not be recorded is answered with a failure, and not returned."""
    reference = commitment.Reference("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4")
    statuses: list[int] = []
    threads: list[threading.Thread] = []

    def act(event: Any) -> tuple[int, None]:
        report = Dataset()
        report.TransactionUID = event.action_information.TransactionUID
        report.ReferencedSOPSequence = event.action_information.ReferencedSOPSequence

        def tell() -> None:
            class_uid, instance = StorageCommitmentPushModel, commitment.SOP_INSTANCE
            status, _ = event.assoc.send_n_event_report(report, 1, class_uid, instance)
            statuses.append(status.Status)

        threads.append(threading.Timer(0.2, tell))
        threads[-1].start()
        return 0, None

    archive = AE("ARCHIVE")
    archive.add_supported_context(StorageCommitmentPushModel)
    server = archive.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_ACTION, act)])
    assert server is not None
    seen: list[commitment.Report] = []

    def record(report: commitment.Report) -> None:
        seen.append(report)
        if not recorded:
            raise OSError

    try:
        peer = Peer("ARCHIVE", "127.0.0.1", server.socket.getsockname()[1], "GATEWAY", TIMEOUT)
        answer = commit(peer, "1.2.3.9", [reference], wait=TIMEOUT if recorded else 2.0, record=record)
        threads[0].join(5)
    finally:
        server.shutdown()
    assert seen[0] == commitment.Report("1.2.3.9", frozenset({"1.2.3.4"}), {})
    assert answer.requested
    assert answer.reports == (tuple(seen) if recorded else ())
    assert statuses == [0 if recorded else 0x0110]


# TLS


def certify(folder: Path, name: str, subject: str, alternative: str, *more: str) -> None:
    """Make a certificate by the authority in the folder, or the authority itself."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(folder / f"{name}.key")]
    signer = [] if name == "ca" else ["-CA", str(folder / "ca.pem"), "-CAkey", str(folder / "ca.key")]
    names = ["-addext", f"subjectAltName={alternative}"] if alternative else []
    command = [program("openssl"), "req", "-x509", *key, *signer, "-subj", f"/CN={subject}", *names]
    subprocess.run(
        [*command, "-out", str(folder / f"{name}.pem"), *(more or ("-days", "90"))], check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a PACS, ourselves, and a PACS with another name."""
    folder = tmp_path_factory.mktemp("keys")
    certify(folder, "ca", "Hospital CA", "")
    certify(folder, "pacs", "pacs", "IP:127.0.0.1,DNS:localhost")
    certify(folder, "gateway", "gateway", "")
    certify(folder, "elsewhere", "elsewhere", "DNS:elsewhere.test")
    (folder / "other").mkdir()
    certify(folder / "other", "ca", "Other CA", "")
    return folder


def settings(keys: Path, *, ours: bool = True, ca: str = "ca.pem") -> ssl.SSLContext:
    shown = {"certificate": keys / "gateway.pem", "key_file": keys / "gateway.key"} if ours else {}
    return client_tls(ClientTls(ca=keys / ca, **shown))


def secured_storescp(keys: Path, name: str = "pacs") -> Storescp:
    return Storescp(*("+tls", str(keys / f"{name}.key"), str(keys / f"{name}.pem"), "+cf", str(keys / "ca.pem"), "-rc"))


def secured_orthanc(keys: Path, name: str = "pacs") -> Orthanc:
    return Orthanc(
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(keys / f"{name}.pem"),
        DicomTlsPrivateKey=str(keys / f"{name}.key"),
        DicomTlsTrustedCertificates=str(keys / "ca.pem"),
        DicomTlsRemoteCertificateRequired=True,
    )


@pytest.fixture(params=["storescp", "orthanc"])
def secured(request: pytest.FixtureRequest, keys: Path) -> Iterator[Program]:
    """Each in turn, with mutual certificates."""
    with secured_storescp(keys) if request.param == "storescp" else secured_orthanc(keys) as running:
        yield running


def test_images_go_by_mutual_tls(secured: Program, keys: Path, tmp_path: Path) -> None:
    """TLS-1, TLS-4: the whole way of an image, and how long the certificate of the peer lasts."""
    queued, _ = study(tmp_path, 20)
    peer = to(secured, tls=settings(keys))
    store(peer, queued)
    found = echo(peer)
    assert found.ok
    assert found.certificate_ends is not None


FAILURES = {
    "no certificate": ({"ours": False}, "certificate"),
    "unknown authority": ({"ca": "other/ca.pem"}, "of an authority we do not trust"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_why_tls_failed_is_said_in_words(secured: Program, keys: Path, case: str) -> None:
    """TLS-4: neither side takes a stranger, and a person can see which side it was."""
    how, words = FAILURES[case]
    found = echo(to(secured, tls=settings(keys, **how)))  # type: ignore[arg-type]
    assert not found.ok
    assert words in found.reason


def test_a_peer_of_another_name_is_not_sent_to(keys: Path) -> None:
    """TLS-4: the authority is right, the name is not."""
    with secured_storescp(keys, "elsewhere") as running, pytest.raises(PeerUnreachableError, match="for another"):
        Association.open(to(running, tls=settings(keys)), contexts.number([contexts.VERIFICATION]))


def test_one_speaks_tls_and_the_other_does_not(keys: Path) -> None:
    """TLS-3: there is no way back to clear text, and the words say where to look."""
    with Storescp() as plain:
        assert "TLS" in echo(to(plain, tls=settings(keys))).reason
    with secured_storescp(keys) as running:
        found = echo(to(running))
    assert not found.ok


def test_the_fall_back_for_a_refused_syntax_is_there(tmp_path: Path) -> None:
    """NET-12: an archive that takes no JPEG 2000 takes the class in Explicit VR Little Endian instead."""
    queued, _ = study(tmp_path, 1)
    packed = replace(queued[0], transfer_syntax="1.2.840.10008.1.2.4.90")
    (plan,) = contexts.plan([packed], contexts.DECODABLE)
    folder = tmp_path / "plain"
    folder.mkdir()
    with Storescp("+x=") as running:  # the last option for syntaxes counts: uncompressed only
        association = Association.open(to(running), plan.contexts)
        assert association.send([packed], TIMEOUT)[0].refused == "context-refused"
        assert association.accepted(packed.sop_class) == contexts.FALL_BACKS
        assert association.send(queued, TIMEOUT)[0].status == 0
        association.release()
    shutil.rmtree(folder)


def test_nothing_that_is_no_query_is_asked() -> None:
    """A query names the study and the series, each in its element, in order (PS3.4 C.6.2.1)."""
    one = query.Query("1.2", "1.2.3", ("1.2.3.4", "1.2.3.5"))
    assert query.sop_instance(query.identifier(one)) == "1.2.3.4\\1.2.3.5"
    with pytest.raises(dimse.ProtocolError):
        query.sop_instance(b"\x08\0\x18\0\xff\xff\0\0")
