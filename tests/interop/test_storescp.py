"""The DICOM door with real senders: DCMTK, pynetdicom, Orthanc, and our own Storage SCU with the whole corpus."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dicom_door import Running, dicom_door
from orthanc import Orthanc
from pacs import NODELAY
from peer import program
from pynetdicom import AE, _config
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from samples import FOLDER, Samples, data_set
from scripted_scu import Context, Scu, data, pdv, store

from gateway import model
from gateway.core import contexts, dataset, part10
from gateway.edges.storescu import Association, Peer
from gateway.ledger.janitor import Janitor
from gateway.ledger.ledger import Ledger, connect
from gateway.ledger.spool import Spool

pytestmark = pytest.mark.peer

CORPUS = Path(__file__).parents[2].parent / "shared" / "corpus" / "dicom"

OPTIONS = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.5": "-xr",
}
"""What storescu must be told to propose a transfer syntax first."""


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Running]:
    """A door that takes everything."""
    with dicom_door(tmp_path) as running:
        yield running


def files() -> list[Path]:
    """Every file that pydicom ships and the corpus holds."""
    folders = [FOLDER, *([CORPUS] if CORPUS.is_dir() else [])]
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def judged(path: Path) -> part10.Judged | None:
    """What the reader says of a file; None without a usable header."""
    content = path.read_bytes()
    if not part10.is_marked(content):
        return None
    try:
        meta = part10.read_meta(content)
    except dataset.Problem:
        return None
    source = dataset.Stored(lambda at, n: content[at : at + n], content, len(content))
    return part10.judge(meta, source, len(content), 1 << 30)


def sendable() -> list[tuple[Path, part10.Judged]]:
    """Files that bear a class, an instance and a syntax, and are no DICOMDIR."""
    found = [(path, judged(path)) for path in files()]
    return [
        (path, one)
        for path, one in found
        if one is not None and one.meta.sop_class and one.meta.sop_instance and not one.is_directory
        if one.meta.transfer_syntax
    ]


def storescu(door: Running, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run DCMTK's storescu; what begins with a dash is an option, the rest are files."""
    options = [one for one in arguments if one.startswith("-")]
    command = [program("storescu"), "-v", "-aet", "CT1", "-aec", "DOOR", *options, "127.0.0.1", str(door.port)]
    command += [one for one in arguments if not one.startswith("-")]
    return subprocess.run(command, env=NODELAY, capture_output=True, text=True, check=False, timeout=60)


def test_every_file_arrives_bit_for_bit_or_is_refused_for_a_reason(door: Running) -> None:
    """R8, P10-7: our own SCU sends the bytes as they are; success for what the reader does not hold."""
    chosen = sendable()
    assert len(chosen) > 100
    queued = [
        model.Queued(
            number,
            one.meta.sop_class,
            one.meta.sop_instance,
            one.meta.transfer_syntax,
            model.Span(path, one.meta.data_set, path.stat().st_size),
        )
        for number, (path, one) in enumerate(chosen)
    ]
    outcomes: dict[int, model.Sent] = {}
    for plan in contexts.plan(queued):
        association = Association.open(Peer("DOOR", "127.0.0.1", door.port, "CT1", 30), plan.contexts)
        outcomes.update({sent.key: sent for sent in association.send(plan.queued, 30)})
        association.release()
    assert len(outcomes) == len(queued)
    stored = 0
    for number, (path, one) in enumerate(chosen):
        sent = outcomes[number]
        good = one.held is None and "meta-instance" not in one.codes
        if sent.refused is not None:
            # a class or a syntax that nobody should send here
            assert sent.refused == "context-refused", path
            continue
        assert (sent.status == 0) is good, (path, sent, one.codes)
        stored += sent.status == 0
    contents = {path.read_bytes()[received.data_set :] for received, path in door.taker.received}
    assert contents == {
        path.read_bytes()[one.meta.data_set :]
        for number, (path, one) in enumerate(chosen)
        if outcomes[number].status == 0
    }
    assert stored == len(door.taker.received)
    assert len({(one.sop_instance, path.read_bytes()) for one, path in door.taker.received}) > 100


def test_storescu_sends_compressed_images_as_they_are(door: Running) -> None:
    """R8: DCMTK chooses what we choose; nobody is made to convert."""
    chosen: dict[str, tuple[Path, part10.Judged]] = {}
    for path, one in sendable():
        if one.held is None and one.meta.transfer_syntax in OPTIONS and "meta-instance" not in one.codes:
            chosen.setdefault(one.meta.transfer_syntax, (path, one))
    assert len(chosen) >= 8
    for syntax, (path, _) in chosen.items():
        done = storescu(door, "-R", OPTIONS[syntax], str(path))
        assert done.returncode == 0, (syntax, done.stderr)
        received, _ = door.taker.received[-1]
        assert received.transfer_syntax == syntax


def test_what_is_written_is_clean_for_others(door: Running, samples: Samples) -> None:
    """P10-3: dcmftest and dcmdump find nothing to say."""
    done = storescu(door, *(str(samples.path(name)) for name in ("CT_small.dcm", "MR_small.dcm", "rtplan.dcm")))
    assert done.returncode == 0, done.stderr
    for _, path in door.taker.received:
        tested = subprocess.run([program("dcmftest"), str(path)], capture_output=True, text=True, check=False)
        assert tested.stdout.startswith("yes:"), tested.stdout
        dumped = subprocess.run([program("dcmdump"), str(path)], capture_output=True, text=True, check=False)
        assert dumped.returncode == 0
        assert dumped.stderr == ""


def test_storescu_without_preference_is_not_made_to_send_implicit(door: Running, samples: Samples) -> None:
    """Explicit VR keeps the VR of private elements."""
    assert storescu(door, str(samples.path("CT_small.dcm"))).returncode == 0
    assert door.taker.received[0][0].transfer_syntax == "1.2.840.10008.1.2.1"


def test_echoscu_is_answered(door: Running) -> None:
    """NET-1: and told why when it means somebody else."""
    echo, where = [program("echoscu"), "-v", "-aec"], ["127.0.0.1", str(door.port)]
    assert subprocess.run([*echo, "DOOR", *where], capture_output=True, check=False).returncode == 0
    done = subprocess.run([*echo, "NOBODY", *where], capture_output=True, text=True, check=False)
    assert "Called AE Title Not Recognized" in done.stderr


def test_several_storescu_at_once(door: Running, samples: Samples, tmp_path: Path) -> None:
    """Every one gets its own answers."""
    paths = []
    for number in range(40):
        paths.append(tmp_path / f"{number}.dcm")
        paths[-1].write_bytes(samples.fresh("CT_small.dcm").file)
    command = [program("storescu"), "-aec", "DOOR", "127.0.0.1", str(door.port)]
    running = [subprocess.Popen([*command, *map(str, paths[at::4])], env=NODELAY) for at in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    assert len(door.taker.received) == 40


def test_pynetdicom_sends(door: Running, samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    """R8: its contexts, its PDUs, its files in chunks."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
    images = [samples.fresh() for _ in range(5)]
    entity = AE("CT1")
    entity.add_requested_context(Verification)
    for image in images:
        entity.add_requested_context(image.sop_class, image.transfer_syntax)
    association = entity.associate("127.0.0.1", door.port, ae_title="DOOR")
    assert association.is_established
    try:
        assert association.send_c_echo().Status == 0
        for number, image in enumerate(images):
            path = door.taker.spool.root.parent / f"{number}.dcm"
            path.write_bytes(image.file)
            assert association.send_c_store(path).Status == 0
    finally:
        association.release()
    kept = [path.read_bytes()[received.data_set :] for received, path in door.taker.received]
    assert kept == [image.data_set for image in images]


def test_orthanc_sends(door: Running, orthanc: Orthanc, samples: Samples) -> None:
    """Orthanc's own store SCU: as a PACS sends a second opinion out."""
    images = [samples.fresh("CT_small.dcm") for _ in range(3)]
    for image in images:
        orthanc.rest.post("/instances", content=image.file).raise_for_status()
    identifiers = [orthanc.instances()[image.sop_instance] for image in images]
    modality = {"AET": "DOOR", "Host": "127.0.0.1", "Port": door.port}
    orthanc.rest.put("/modalities/door", json=modality).raise_for_status()
    assert orthanc.rest.post("/modalities/door/echo", json={}).is_success
    answer = orthanc.rest.post("/modalities/door/store", json={"Resources": identifiers, "Synchronous": True})
    assert answer.json()["FailedInstancesCount"] == 0
    kept = {received.sop_instance: path for received, path in door.taker.received}
    for image in images:
        sent, ours = orthanc.data_set(image.sop_instance), data_set(kept[image.sop_instance].read_bytes())
        assert sent.startswith(ours)
        # QUIRK: its DCMTK leaves out Data Set Trailing Padding (FFFC,FFFC), which this image ends with.
        assert sent[len(ours) :][:4] in {b"", b"\xfc\xff\xfc\xff"}


def authority(folder: Path) -> None:
    """A CA, a certificate for the door and one for a modality, all by openssl."""
    openssl = program("openssl")
    new = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]

    def make(name: str, *more: str) -> None:
        command = [*new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", *more]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    make("ca")
    for name in ("door", "ct1"):
        make(name, "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
    make("stranger")


def test_tls_with_mutual_certificates(tmp_path: Path, samples: Samples) -> None:
    """TLS-1, TLS-4: who has no certificate of the anchor says nothing; BCP 195 by DCMTK's own profile."""
    authority(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.load_cert_chain(tmp_path / "door.pem", tmp_path / "door.key")
    tls.load_verify_locations(tmp_path / "ca.pem")
    tls.verify_mode = ssl.CERT_REQUIRED
    image = str(samples.path("CT_small.dcm"))
    with dicom_door(tmp_path, tls=tls) as door:
        command = [program("storescu"), "-aec", "DOOR", "+cf", str(tmp_path / "ca.pem")]
        where = ["127.0.0.1", str(door.port), image]
        for name, good in (("ct1", True), ("stranger", False)):
            secured = ["+tls", str(tmp_path / f"{name}.key"), str(tmp_path / f"{name}.pem")]
            done = subprocess.run(
                [*command, *secured, *where], env=NODELAY, capture_output=True, check=False, timeout=60
            )
            assert (done.returncode == 0) is good, done.stderr
        done = subprocess.run([*command[:3], *where], env=NODELAY, capture_output=True, check=False, timeout=90)
        assert done.returncode != 0
        assert len(door.taker.received) == 1


KILLED = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {peers!r}]
from dicom_door import Taker
from gateway.config import Listen, StorageSCP
from gateway.edges.storescp import StorageScpDoor
async def serve():
    door = StorageScpDoor(StorageSCP(title="DOOR", listen=Listen("127.0.0.1", 0)), Taker(Path({folder!r})))
    await door.open()
    print(door.addresses[0][1], flush=True)
    await asyncio.sleep(60)
asyncio.run(serve())
"""


def test_a_kill_in_the_middle_leaves_only_what_the_sweep_takes(tmp_path: Path, samples: Samples) -> None:
    """R20: what was not acknowledged is not kept."""
    root = Path(__file__).parents[2]
    folder = tmp_path / "spool"
    code = KILLED.format(root=str(root), peers=str(root / "tests" / "peers"), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        image = samples.fresh("CT_small.dcm")
        with Scu(port) as scu:
            scu.associate(Context(3, image.sop_class))
            scu.say(data(pdv(3, 3, store(image.sop_instance))))
            scu.say(*(data(pdv(3, 0, bytes(16_000))) for _ in range(10)))
            until = time.monotonic() + 10
            while not any(path.stat().st_size for path in folder.rglob("*.seg")) and time.monotonic() < until:
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert [path.suffix for path in folder.rglob("*") if path.is_file()] == [".seg"]
    ledger, spool = Ledger(connect(f"sqlite:///{tmp_path / 'ledger.sqlite'}")), Spool(folder)
    keeper, later = Janitor(ledger, spool), datetime.now(UTC) + timedelta(days=2)
    assert [asyncio.run(keeper.sweep(later)) for _ in range(2)] == [0, 1]
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    ledger.close()
    spool.close()
