"""The canary: a patient's data in everything that comes in, and then in nothing that goes out but the payload (R35)."""

from __future__ import annotations

import base64
import json
import sqlite3
from pathlib import Path

import pytest
from daemon import Daemon
from messages import compose
from peer import Start, free_port, wait_until
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


@pytest.fixture
def gateway(start: Start, command: tuple[Path, Path]) -> Daemon:
    """A gateway that says as much as it can, with a PACS, and one that is away."""
    pacs = start(Storescp())
    sections = f"""
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
    return start(Daemon({"pacs": (pacs.title, pacs.port), "nowhere": ("NOWHERE", free_port())}, sections))


def play(gateway: Daemon, samples: Samples) -> None:
    """Everything that can happen to a mail, good and bad."""
    good = tainted(samples)
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


def outputs(gateway: Daemon) -> dict[str, str]:
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
    return shown


def test_no_patient_shows_anywhere_but_in_the_payload(
    gateway: Daemon, samples: Samples, command: tuple[Path, Path]
) -> None:
    """R35: logs, metrics, every verb, control answers, pages and file names name no patient; the spool must."""
    play(gateway, samples)
    seen = outputs(gateway)
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


def hides_a_canary(path: Path) -> bool:
    """Whether the bytes of a file name the patient, plain or as base64."""
    content = path.read_bytes()
    return b"CANARYSUBJECT" in content or b"CANARYID4711" in content or base64.b64encode(b"CANARYID4711") in content


def test_the_ledger_keeps_no_patient(gateway: Daemon, samples: Samples) -> None:
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
