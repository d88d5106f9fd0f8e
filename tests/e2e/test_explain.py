"""Somebody calls: a patient, an accession number or a modality is enough, in both directions, without a log (R36)."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemon import Daemon
from peer import Start, free_port, wait_until
from pynetdicom import AE
from samples import Samples
from storescp import Storescp

pytestmark = pytest.mark.peer

SENDER = """
[gateway]
name = "gw.hospital.test"
postmaster = "it@hospital.test"
data = "data"

[storescp]
title = "GATEWAY"
listen = "127.0.0.1:{dicom}"

[relay]
host = "127.0.0.1"
port = {relay}
tls = "none"
sender = "dicom@hospital.test"

[partner.clinic-b]
address = "pacs@gateway.test"
send = "plain"

[[route]]
name = "out"
called = "OUT"
mail = ["clinic-b"]
quiet = "200ms"
"""

RECEIVER = """
[partner.hospital]
address = "dicom@hospital.test"
accept = "any"

[[route]]
name = "in"
from = "hospital"
to = "pacs@gateway.test"
store = ["pacs"]
patient_id = "prefix:H-"
"""


def test_images_are_found_by_their_patient_at_both_ends(start: Start, samples: Samples, tmp_path: Path) -> None:
    """By C-STORE out and by mail in; by the sender's number and by the one that the route made of it."""
    pacs = start(Storescp())
    receiver = start(Daemon({"pacs": (pacs.title, pacs.port)}, RECEIVER))
    dicom = free_port()
    sender = start(Daemon({}, SENDER.format(dicom=dicom, relay=receiver.port)))
    image = samples.fresh("CT_small.dcm", PatientID="Pat 4711", AccessionNumber="ACC-1")
    (tmp_path / "image.dcm").write_bytes(image.file)
    entity = AE("CT1")
    entity.add_requested_context(image.sop_class, image.transfer_syntax)
    association = entity.associate("127.0.0.1", dicom, ae_title="OUT")
    assert association.send_c_store(tmp_path / "image.dcm").Status == 0
    association.release()
    wait_until(lambda: image.sop_instance in pacs.instances(), "it is in the other PACS")
    [item] = sender.view("list")["items"]
    sender.await_item(item["id"], "delivered")
    wait_until(lambda: receiver.view("list")["items"][0]["outcome"] == "delivered", "it is delivered")

    message_id = sender.item(item["id"])["mails"][0]["message_id"]
    for words in (["--patient", "PAT4711"], ["--accession", "acc-1"], ["--from", "CT1"], [message_id]):
        [found] = sender.ask("explain", *words)["items"]
        assert found["id"] == item["id"], words
    for words in (["--patient", "pat 4711"], ["--patient", "H-PAT4711"], ["--from", "hospital"], [message_id]):
        [found] = receiver.ask("explain", *words, "--since", "1h")["items"]
        assert found["direction"] == "in", words
    out = sender.say("explain", "--patient", "PAT4711").stdout
    assert "Images of one study came by C-STORE from CT1" in out
    assert "the relay answered 250" in out
    assert "CT Image Storage" in out
    came = receiver.say("explain", "--patient", "H-PAT4711").stdout
    assert "the last answer was 0x0000, success" in came
    assert "were changed by the route's rules: patient_id" in came
    exported = sender.ask("events")["events"]
    assert {"collect", "export"} <= {one["category"] for one in exported}
    assert {one["partner"] for one in exported if one["id"]} == {"clinic-b"}

    text = sender.get("/metrics")[1]
    wait_until(lambda: 'cstore_to_mail_seconds_count{urgent="no"} 1.0' in sender.get("/metrics")[1], "it is measured")
    wait_until(lambda: 'mail_to_pacs_seconds_count{urgent="no"} 1.0' in receiver.get("/metrics")[1], "it is measured")
    assert 'dicom_mail_submissions_total{outcome="delivered",partner="clinic-b"} 1.0' in text
    assert 'dicom_mail_sends_total{destination="pacs",outcome="delivered"} 1.0' in receiver.get("/metrics")[1]
