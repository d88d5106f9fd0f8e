"""The canary: a patient's data in everything that comes in, and then in nothing that goes out but the payload (R35)."""

from __future__ import annotations

import base64
import email
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from email.policy import SMTP
from pathlib import Path

import httpx
import pytest
from aiosmtpd.controller import Controller
from daemon import Daemon
from desk import OPERATOR, PASSWORD, Desk
from messages import compose
from peer import Start, free_port, wait_until
from pynetdicom import AE
from samples import Samples
from storescp import Storescp

pytestmark = pytest.mark.peer

PATIENT = {
    "PatientName": "Kanarienvogel^Tweety",
    "PatientID": "CANARYID4711",
    "PatientBirthDate": "19010203",
    "AccessionNumber": "CANARYACC0815",
    "StudyDescription": "CANARYSTUDYTEXT",
    "ReferringPhysicianName": "Canarydoctor^Hans",
    "InstitutionName": "CANARYCLINIC",
}
CANARIES = ("kanarienvogel", "tweety", "canaryid4711", "19010203", "canaryacc0815", "canarystudytext", "canarydoctor",
            "canaryclinic", "canarysubject", "canaryfile", "canarybody", "canaryhelo", "canarysender")  # fmt: skip


def tainted(samples: Samples, name: str = "CT_small.dcm") -> bytes:
    """A real file with the patient in it."""
    return samples.fresh(name, **PATIENT).file


def mail(*files: bytes, sender: str = '"Tweety Kanarienvogel CANARYSENDER" <dicom@clinic-a.test>') -> bytes:
    """A mail with the patient in its header, its text and its file names."""
    message = compose(files, sender=sender, subject="CANARYSUBJECT Kanarienvogel^Tweety *19010203", text="CANARYBODY")
    return message.replace(b"IM000001", b"CANARYFILE-Kanarienvogel")


@pytest.fixture
def command(tmp_path: Path) -> tuple[Path, Path]:
    """A pager that keeps what it is told, and where."""
    told = tmp_path / "told"
    program = tmp_path / "page"
    program.write_text(f"#!/bin/sh\ncat >> {told}\n", "utf-8")
    program.chmod(0o755)
    return program, told


class Letterbox:
    """A relay that takes every mail and keeps it."""

    def __init__(self) -> None:
        self.mails: list[bytes] = []

    async def handle_DATA(self, _server: object, _session: object, envelope: object) -> str:  # noqa: N802  aiosmtpd's name
        self.mails.append(envelope.content)  # type: ignore[attr-defined]
        return "250 OK"

    def letters(self) -> dict[str, str]:
        """All that is not payload: headers, names of parts, texts and reports."""
        found = {}
        for number, content in enumerate(self.mails):
            said = []
            for part in email.message_from_bytes(content, policy=SMTP).walk():
                said.append(str(part.items()))
                if part.get_content_type() != "application/dicom" and not part.is_multipart():
                    said.append(str(part.get_payload(decode=True)))
            found[f"mail {number}"] = "\n".join(said)
        return found

    def payload(self) -> bytes:
        """The DICOM parts of all mails."""
        parts = [part for content in self.mails for part in email.message_from_bytes(content, policy=SMTP).walk()]
        return b"".join(one.get_payload(decode=True) for one in parts if one.get_content_type() == "application/dicom")


@contextmanager
def open_letterbox(port: int) -> Iterator[Letterbox]:
    """A letterbox that listens."""
    box = Letterbox()
    controller = Controller(box, "127.0.0.1", port)
    controller.start()
    yield box
    controller.stop()


@pytest.fixture
def letterbox(start: Start) -> tuple[Letterbox, int]:
    """Where the gateway's own mails go, and its port."""
    port = free_port()
    return start(open_letterbox(port)), port


@pytest.fixture
def gateway(start: Start, command: tuple[Path, Path], letterbox: tuple[Letterbox, int]) -> Desk:
    """A gateway that says as much as it can, with a PACS, one that is away, and a way out."""
    pacs = start(Storescp())
    dicom = free_port()
    sections = f"""
[storescp]
title = "GATEWAY"
listen = "127.0.0.1:{dicom}"
[relay]
host = "127.0.0.1"
port = {letterbox[1]}
tls = "none"
sender = "dicom@gateway.test"
[partner.clinic-c]
address = "dicom@clinic-c.test"
send = "plain"
[[route]]
name = "out"
called = "OUT"
mail = ["clinic-c"]
quiet = "200ms"
[log]
level = "debug"
[notice]
command = "{command[0]}"
[partner.clinic-a]
address = "*@clinic-a.test"
accept = "any"
[partner.clinic-b]
address = "*@clinic-b.test"
accept = "signed"
[[route]]
name = "to pacs"
from = "clinic-a"
to = "pacs@gateway.test"
store = ["pacs"]
late = "1s"
[[route]]
name = "to nowhere"
from = "clinic-a"
to = "nowhere@gateway.test"
store = ["nowhere"]
late = "1s"
[[route]]
name = "signed"
from = "clinic-b"
store = ["pacs"]
"""
    desk = Desk({"pacs": (pacs.title, pacs.port), "nowhere": ("NOWHERE", free_port())}, sections)
    desk.dicom = dicom
    return start(desk)


def hand_in(gateway: Desk, file: bytes) -> None:
    """Send an image as a modality does, to be mailed."""
    path = gateway.folder / "modality.dcm"
    path.write_bytes(file)
    entity = AE("MODALITY")
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1")
    association = entity.associate("127.0.0.1", gateway.dicom, ae_title="OUT")
    assert association.send_c_store(path).Status == 0
    association.release()
    path.unlink()


def play(gateway: Desk, samples: Samples) -> None:
    """Everything that can happen to a mail, good and bad."""
    good = tainted(samples)
    hand_in(gateway, tainted(samples))
    first = mail(good)
    keys = [gateway.mail(first), gateway.mail(first)]
    gateway.await_items(keys, "delivered")
    gateway.mail(mail(tainted(samples)), to="nowhere@gateway.test")
    gateway.mail(mail(tainted(samples), sender="Tweety CANARYSENDER <dicom@clinic-b.test>"))
    broken = tainted(samples, "MR_small.dcm")
    for bad in (
        good[:-2] + b"\1\2",  # the same UID, other content
        broken[: len(broken) // 2],  # cut off
        broken.replace(b"CANARYID4711", b"CANARYID4711", 1)[:400] + b"\xff" * 300,  # damaged
        b"CANARYBODY no image",
    ):
        gateway.mail(mail(bad))
    gateway.mail(mail(tainted(samples)).replace(b"base64", b"CANARYBODY-encoding"))
    gateway.mail(mail(), to="it@gateway.test", sender="canarysender-kanarienvogel@elsewhere.test")
    stranger = mail(tainted(samples), sender="Tweety <canarysender@elsewhere.test>")
    assert gateway.submit(stranger)[0] == 550
    assert gateway.submit(mail(), to="tweety.kanarienvogel@gateway.test")[0] == 550
    gateway.mail(mail(), to="pacs@gateway.test")
    wait_until(lambda: all(one["stage"] != "receive" or one["outcome"] != "waiting" for one in listed(gateway)), "read")
    wait_until(lambda: any(kind == "late" for kind, _ in gateway.notices()), "something is late")


def listed(gateway: Daemon) -> list[dict[str, object]]:
    """Everything in the queue."""
    items: list[dict[str, object]] = gateway.view("list")["items"]
    return items


def outputs(gateway: Desk) -> dict[str, str]:
    """Everything that a person or a machine may see."""
    shown = {}
    for words in (["queue", "list"], ["queue", "list", "--json"], ["reconcile"], ["check"], ["check", "--json"]):
        said = gateway.say(*words)
        shown[" ".join(words)] = said.stdout + said.stderr
    stories = [["--patient", PATIENT["PatientID"]], ["--accession", PATIENT["AccessionNumber"]], ["--from", "clinic-a"]]
    for words in (*stories, ["Kanarienvogel^Tweety"], ["--patient", "Tweety"], ["--from", "CANARYSENDER"]):
        for form in ([], ["--json"]):
            said = gateway.say("explain", *words, *form)
            assert said.returncode == (0 if words in stories else 1)
            shown[f"explain {words[0]} {form} {len(shown)}"] = said.stdout + said.stderr
    for words in (["events"], ["events", "--json"], ["backup", str(gateway.folder / "backup")], ["backup", "/CANARY"]):
        said = gateway.say(*words)
        shown[" ".join(words[:1])] = said.stdout + said.stderr.replace("/CANARY", "")
    by_outcome = {str(item["outcome"]): str(item["id"]) for item in listed(gateway)}
    for item in listed(gateway):
        key = str(item["id"])
        shown[f"show {key}"] = gateway.say("queue", "show", key).stdout
        shown[f"show --json {key}"] = json.dumps(gateway.item(key))
    for verb, outcome in (("hold", "waiting"), ("release", "held"), ("retry", "delivered"), ("drop", "failed")):
        said = gateway.say("queue", verb, by_outcome.get(outcome, "in-0"), "--json")
        shown[f"{verb} {outcome}"] = said.stdout + said.stderr
    for path in ("/metrics", "/health/live", "/health/ready", "/CANARY"):
        shown[path] = gateway.get(path)[1]
    for words in (["partner", "list"], ["partner", "show", "clinic-a"], ["echo"], ["conformance"], ["user", "list"]):
        said = gateway.say(*words)
        shown[" ".join(words)] = said.stdout + said.stderr
    return shown | pages(gateway)


def pages(gateway: Desk) -> dict[str, str]:
    """Every page of the console, of every item too, and what a search for the patient answers."""
    shown = {}
    with httpx.Client(base_url=gateway.address, trust_env=False, follow_redirects=True) as client:

        def send(path: str, **fields: str) -> str:
            token = re.search(r'name="token" value="([^"]+)"', client.get(path).text)
            assert token is not None
            return client.post(path, data={"token": token[1], **fields}).text

        assert "Log out" in send("/login", user=OPERATOR, password=PASSWORD)
        send("/proof")
        names = ("/", "/queue", "/items", "/find", "/partners", "/configuration", "/proof", "/CANARY")
        for path in (*names, *(f"/items/{item['id']}" for item in listed(gateway))):
            page = client.get(path)
            assert page.status_code == (404 if path == "/CANARY" else 200)
            shown[f"page {path}"] = page.text
        for kind, text in (
            ("patient", PATIENT["PatientID"]),
            ("accession", PATIENT["AccessionNumber"]),
            ("word", "Tweety"),
        ):
            shown[f"find {kind}"] = found = send("/find", kind=kind, text=text)
            assert ("Nothing is known" in found) == (kind == "word")
    return shown


def test_no_patient_shows_anywhere_but_in_the_payload(
    gateway: Desk, samples: Samples, command: tuple[Path, Path], letterbox: tuple[Letterbox, int]
) -> None:
    """R35: logs, metrics, every verb, page, notice and mail, and all file names, name no patient; the spool must."""
    play(gateway, samples)
    subjects = ("held", "late", "DICOM")
    wait_until(lambda: all(word in str(letterbox[0].letters()) for word in subjects), "notices and images are mailed")
    seen = outputs(gateway) | letterbox[0].letters()
    wait_until(lambda: command[1].exists() and "late" in command[1].read_text("utf-8"), "a person was paged")
    seen["pages"] = command[1].read_text("utf-8")
    gateway.stop()
    seen["log"] = gateway.log()
    seen["file names"] = "\n".join(str(path.relative_to(gateway.folder)) for path in gateway.folder.rglob("*"))
    assert len(seen["log"].splitlines()) > 10
    found = {
        f"{canary} in {where}: {line[:300]}"
        for where, text in seen.items()
        for line in text.splitlines()
        for canary in CANARIES
        if canary in line.lower()
    }
    assert found == set()

    # The hunt can succeed: what came in lies in the spool, and nowhere beside it.
    holding = {
        str(path.relative_to(gateway.data).parts[0])
        for path in gateway.data.rglob("*")
        if path.is_file() and hides_a_canary(path)
    }
    assert "spool" in holding
    assert b"CANARYID4711" in letterbox[0].payload()


def hides_a_canary(path: Path) -> bool:
    """Whether the bytes of a file name the patient, plain or as base64."""
    content = path.read_bytes()
    return b"CANARYSUBJECT" in content or b"CANARYID4711" in content or base64.b64encode(b"CANARYID4711") in content


def test_the_ledger_keeps_no_patient(gateway: Desk, samples: Samples) -> None:
    """R35: subjects, display names and data elements are not in the tables either."""
    play(gateway, samples)
    gateway.stop()
    with sqlite3.connect(gateway.data / "ledger.sqlite") as ledger:
        # A File ID is the sender's name for a file (PS3.11 Annex G): kept with the instance, and shown by no verb.
        ledger.execute("UPDATE instance SET file_id = NULL")
        dump = "\n".join(ledger.iterdump()).lower()
    ledger.close()
    allowed = ("canarysender-kanarienvogel@elsewhere.test",)
    for address in allowed:
        dump = dump.replace(address, "")
    assert [canary for canary in CANARIES if canary in dump] == []
