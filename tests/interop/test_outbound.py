"""From the modality to the partner's mailbox: real senders, the daemon, Postfix, Dovecot, and other people's tools.

Each sender has a partner, an address and a mailbox of its own. Beside the gateway a storescp that keeps every bit is
sent the same by the same program: that is what the mails are held against.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pydicom
import pytest
from daemon import Daemon
from inbox import Inbox
from orthanc import Orthanc
from pacs import NODELAY
from peer import absent, free_port, program, wait_until
from postfix import Postfix
from pydicom.fileset import FileSet
from pynetdicom import AE, _config
from samples import data_set, sop_instance
from storescp import Storescp

from gateway.core import dataset, part10
from tests.samples import content, corpus, reading

pytestmark = pytest.mark.peer

CORPUS = corpus()
FILES = CORPUS / "dicom" if CORPUS else Path(pydicom.__file__).parent / "data" / "test_files"

LIMIT = 6_000_000
"""What the relay announces: the bigger studies take several mails."""

SENDERS = ("dcmtk", "pynetdicom", "orthanc")

SECTIONS = """
[storescp]
title = "GATEWAY"
listen = "127.0.0.1:{dicom}"

[relay]
host = "127.0.0.1"
port = {relay}
tls = "none"
sender = "dicom@gateway.test"
"""

ROUTE = """
[partner.{name}]
address = "{name}@clinic.test"
send = "plain"

[[route]]
name = "out to {name}"
called = "{title}"
mail = ["{name}"]
quiet = "1s"
"""

PERL = """
use MIME::Parser;
my $parser = MIME::Parser->new;
$parser->output_dir($ARGV[1]);
my $entity = $parser->parse_open($ARGV[0]);
print $entity->mime_type, "\\n";
for my $part ($entity->parts) {
    next unless $part->mime_type eq "application/dicom";
    print $part->head->mime_attr("content-type.id"), "\\t", $part->bodyhandle->path, "\\n";
}
"""

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

OF_THE_OBJECT = ("Value invalid", "Illegal root for UID", "invalid data values")
"""What dciodvfy blames in values that the objects bring along."""


@dataclass(frozen=True)
class File:
    """A file of the corpus that a PACS may have."""

    path: Path
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    data_set: bytes


@dataclass(frozen=True)
class Mail:
    """A mail of a mailbox, and the folder its file-set was put in by Perl's MIME::Parser."""

    content: bytes
    folder: Path
    names: tuple[str, ...]


@dataclass
class Way:
    """What one sender sent, and what arrived.

    Attributes:
        acknowledged: SOP Instance UIDs that the gateway answered with success.
        sent: The data set of each instance as the sender wrote it on the wire; storescp does not take every kind.
        mails: What lies in its partner's mailbox.
    """

    acknowledged: set[str]
    sent: Mapping[str, bytes]
    mails: list[Mail]


def readable() -> Iterator[File]:
    """Every instance of the corpus once; a folder full of files, DICOMDIRs and broken ones not among them."""
    known: set[str] = set()
    for path in sorted(FILES.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        if not part10.is_marked(data):
            continue
        try:
            meta = part10.read_meta(data)
        except part10.Problem:
            continue
        source = dataset.Stored(lambda at, size, data=data: data[at : at + size], data, len(data))  # type: ignore[misc]
        one = part10.judge(meta, source, len(data), 1 << 30)
        wrong = one.held or one.is_directory or {"meta-instance", "sop-class-mismatch"} & set(one.codes)
        if wrong or one.sop_instance in known or not meta.transfer_syntax:
            continue
        known.add(one.sop_instance)
        yield File(path, one.sop_class, one.sop_instance, meta.transfer_syntax, data[meta.data_set :])


def groups(files: Sequence[File]) -> Iterator[list[File]]:
    """Files that need no more than 100 presentation contexts together."""
    some: list[File] = []
    for one in files:
        if len({(each.sop_class, each.transfer_syntax) for each in [*some, one]}) > 100:
            yield some
            some = []
        some.append(one)
    yield some


def send_by_pynetdicom(files: Sequence[File], title: str, port: int) -> set[str]:
    """Send the bytes of the files as they are; return what was answered with success."""
    taken = set()
    for some in groups(files):
        entity = AE("CT1")
        for kind, syntax in {(one.sop_class, one.transfer_syntax) for one in some}:
            entity.add_requested_context(kind, syntax)
        association = entity.associate("127.0.0.1", port, ae_title=title)
        assert association.is_established
        for one in some:
            if association.send_c_store(one.path).get("Status") == 0:
                taken.add(one.sop_instance)
        association.release()
    return taken


def send_by_storescu(files: Sequence[File], title: str, port: int) -> set[str]:
    """Let DCMTK propose each file's own syntax first; return what was answered with success."""
    taken = set()
    for syntax, option in OPTIONS.items():
        some = {str(one.path): one.sop_instance for one in files if one.transfer_syntax == syntax}
        options = ["-v", "-nh", "-R", option, "-aet", "CT1", "-aec", title, "127.0.0.1", str(port)]
        command = [program("storescu"), *options, *some]
        done = subprocess.run(command, env=NODELAY, capture_output=True, text=True, check=False, timeout=60)
        path = ""
        for line in (done.stdout + done.stderr).splitlines():
            if found := re.match("I: Sending file: (.*)", line):
                path = found[1]
            elif "Received Store Response (Success)" in line:
                taken.add(some[path])
    return taken


def send_by_orthanc(orthanc: Orthanc, name: str, title: str, port: int) -> set[str]:
    """Let Orthanc send everything it has; return what was answered with success."""
    modality = {"AET": title, "Host": "127.0.0.1", "Port": port}
    orthanc.rest.put(f"/modalities/{name}", json=modality).raise_for_status()
    taken = set()
    for uid, identifier in orthanc.instances().items():
        done = orthanc.rest.post(f"/modalities/{name}/store", json={"Resources": [identifier], "Synchronous": True})
        if done.is_success:
            taken.add(uid)
    return taken


def take_apart(content: bytes, folder: Path, script: Path) -> Mail:
    """Let Perl's MIME::Parser take a mail apart, and put its file-set into a folder under its File IDs."""
    for name in ("parts", "set"):
        (folder / name).mkdir(parents=True)
    message = folder / "message.eml"
    message.write_bytes(content)
    command = [program("perl"), script, message, folder / "parts"]
    kind, *rows = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert kind == "multipart/mixed"
    names = []
    for row in rows:
        name, path = row.split("\t")
        names.append(name)
        shutil.copyfile(path, folder / "set" / name)
    return Mail(content, folder / "set", tuple(names))


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Way]:
    """Everything sent by everyone, and mailed."""
    if subprocess.run([program("perl"), "-MMIME::Parser", "-e", "1"], check=False, capture_output=True).returncode:
        absent("MIME::Parser is not installed: tests/peers/install")
    files = list(readable())
    assert len(files) > 50
    dicom = free_port()
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
        inbox = stack.enter_context(Inbox("clinic.test", SENDERS))
        postfix = stack.enter_context(Postfix({}, message_size_limit=str(LIMIT), **inbox.postfix()))
        sections = SECTIONS.format(dicom=dicom, relay=postfix.port)
        sections += "".join(ROUTE.format(name=name, title=name.upper()) for name in SENDERS)
        gateway = stack.enter_context(Daemon({}, sections))
        orthanc = stack.enter_context(Orthanc())
        for one in files:
            orthanc.rest.post("/instances", content=one.path.read_bytes())
        send: Mapping[str, Callable[[str, int], set[str]]] = {
            "dcmtk": partial(send_by_storescu, files),
            "pynetdicom": partial(send_by_pynetdicom, files),
            "orthanc": partial(send_by_orthanc, orthanc, "gateway"),
        }
        taken = {name: send[name](name.upper(), dicom) for name in SENDERS}
        sent = {"pynetdicom": {one.sop_instance: one.data_set for one in files}}
        for name, again in (("dcmtk", send["dcmtk"]), ("orthanc", partial(send_by_orthanc, orthanc, "storescp"))):
            storescp = stack.enter_context(Storescp("-pm"))
            again(storescp.title, storescp.port)
            sent[name] = storescp.instances()
        wait_until(lambda: not gateway.view("list", outcome="waiting")["items"], "everything is submitted", 60)
        wait_until(lambda: not postfix.queue(), "everything is in a mailbox", 60)
        proof = gateway.proven()
        assert proof["in"] == proof["delivered"]
        script = tmp_path_factory.mktemp("perl") / "parts.pl"
        script.write_text(PERL)
        found = {}
        for name in SENDERS:
            folder = tmp_path_factory.mktemp(name)
            mails = [take_apart(one, folder / str(at), script) for at, one in enumerate(inbox.mails(name))]
            found[name] = Way(taken[name], sent[name], mails)
    return found


def carried(way: Way) -> dict[str, bytes]:
    """Every instance in the mails, by its UID; each in one mail only."""
    found = {}
    for mail in way.mails:
        for name in mail.names:
            if name != "DICOMDIR":
                file = (mail.folder / name).read_bytes()
                uid = sop_instance(file)
                assert uid not in found
                found[uid] = data_set(file)
    return found


@pytest.mark.parametrize("sender", SENDERS)
def test_what_was_acknowledged_is_in_the_mailbox_byte_for_byte(sender: str, ways: Mapping[str, Way]) -> None:
    """R8, R20: the data set as the sender wrote it on the wire, each instance once, and nothing else."""
    way = ways[sender]
    found = carried(way)
    assert found.keys() == way.acknowledged
    common = found.keys() & way.sent.keys()
    assert [uid for uid in common if found[uid] != way.sent[uid]] == []
    assert len(common) > 100
    if sender == "pynetdicom":
        assert found.keys() == way.sent.keys()  # every readable file, as it lies in the corpus


@pytest.mark.parametrize("sender", SENDERS)
def test_every_mail_is_a_file_set_by_the_standard(sender: str, ways: Mapping[str, Way]) -> None:
    """STD-GEN-MIME, FSC-5, MIM-5: one DICOMDIR, File IDs, files behind them; nothing of a patient in the header."""
    for mail in ways[sender].mails:
        assert mail.names.count("DICOMDIR") == 1
        header = mail.content.partition(b"\r\n\r\n")[0].decode("ascii")
        assert "Auto-Submitted: auto-generated" in header
        assert len(mail.content) <= LIMIT
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what real objects have for values
            listed = FileSet(mail.folder / "DICOMDIR")
            uids = {sop_instance((mail.folder / name).read_bytes()) for name in mail.names if name != "DICOMDIR"}
        listed._stage["t"].cleanup()
        assert {Path(one.path).name for one in listed} == set(mail.names) - {"DICOMDIR"}
        assert {one.SOPInstanceUID for one in listed} == uids
        for value in {str(getattr(one, name, "")) for one in listed for name in ("PatientName", "PatientID")}:
            assert len(value) < 8 or value not in header


@pytest.mark.parametrize("sender", SENDERS)
def test_munpack_takes_every_file_out(sender: str, ways: Mapping[str, Way], tmp_path: Path) -> None:
    """MIM-4, MIM-7: the same bytes as Perl's, by another program."""
    for number, mail in enumerate(ways[sender].mails):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [program("munpack"), "-q", "-f", "-t", "-C", folder, mail.folder.parent / "message.eml"]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "TMPDIR": str(tmp_path)})
        for name in mail.names:
            written = folder / (name if name == "DICOMDIR" else f"{name}.dcm")
            assert written.read_bytes() == (mail.folder / name).read_bytes()


@pytest.mark.parametrize("sender", SENDERS)
def test_dcmtk_and_dicom3tools_accept_every_directory(sender: str, ways: Mapping[str, Way]) -> None:
    """DIR-13: dcmdump reads it without a word, dciodvfy misses nothing, and dcmdump reads every file it names."""
    for mail in ways[sender].mails:
        index = mail.folder / "DICOMDIR"
        dumped = subprocess.run([program("dcmdump"), index], check=True, capture_output=True)
        assert not dumped.stderr
        done = subprocess.run([program("dciodvfy"), index], check=False, capture_output=True)
        lines = done.stderr.decode("latin-1").splitlines()
        assert "BasicDirectory" in lines
        errors = [line for line in lines if line.startswith("Error")]
        assert [line for line in errors if not any(kind in line for kind in OF_THE_OBJECT)] == []
        shown = dumped.stdout.decode("latin-1")
        assert set(re.findall(r"\(0004,1500\) CS \[(\w+)\]", shown)) == set(mail.names) - {"DICOMDIR"}


@pytest.mark.parametrize("sender", SENDERS)
def test_our_own_reader_takes_it_all_back(sender: str, ways: Mapping[str, Way], tmp_path: Path) -> None:
    """FSR-1: every instance, whole, and a DICOMDIR that misses none."""
    found = {}
    for mail in ways[sender].mails:
        result = reading(tmp_path, mail.content)
        assert len(result.instances) == len(mail.names) - 1
        assert result.dicomdir is not None
        assert result.dicomdir.complete
        found.update({one.sop_instance: content(one.file)[one.data_set :] for one in result.instances})
    assert found == carried(ways[sender])
