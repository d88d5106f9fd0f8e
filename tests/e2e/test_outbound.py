"""From a modality of one hospital to the PACS of another: two gateways, and what only both together can show."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path

import pytest
from daemon import Daemon
from pacs import resized
from peer import Start, free_port, wait_until
from pynetdicom import AE, _config
from samples import Fresh, Samples, data_set
from storescp import Storescp

pytestmark = pytest.mark.peer

SECTIONS = """
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
max_message = "100 KB"
partial = true

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
"""


def store(port: int, image: Fresh, file: bytes, folder: Path) -> int:
    """Send the bytes of an image as they are; return the status."""
    path = folder / image.sop_instance
    path.write_bytes(file)
    entity = AE("CT1")
    entity.add_requested_context(image.sop_class, image.transfer_syntax)
    association = entity.associate("127.0.0.1", port, ae_title="OUT")
    assert association.is_established
    try:
        status: int = association.send_c_store(path).Status
        return status
    finally:
        association.release()


def test_an_image_too_big_for_a_mail_is_whole_again_at_the_partner(
    start: Start, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R8, R10, R22, PRT-1: cut by one gateway, joined by another, the same bytes; no mail is over the limit."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
    pacs = start(Storescp())
    receiver = start(Daemon({"pacs": (pacs.title, pacs.port)}, RECEIVER))
    dicom = free_port()
    sender = start(Daemon({}, SECTIONS.format(dicom=dicom, relay=receiver.port)))
    image = samples.fresh("CT_small.dcm")
    file = resized(image.file, 400_000)
    assert store(dicom, image, file, tmp_path) == 0
    [item] = sender.view("list")["items"]
    item = sender.await_item(item["id"], "delivered")
    assert len(item["mails"]) > 5
    assert all(one["size"] <= 100_000 for one in item["mails"])
    wait_until(lambda: image.sop_instance in pacs.instances(), "it is in the other PACS")
    assert pacs.instances()[image.sop_instance] == data_set(file)
    received = receiver.view("list")["items"]
    receiver.await_items([one["id"] for one in received], "delivered")
    assert len(received) == len(item["mails"])
    assert sender.proven()["delivered"] == 1
    receiver.proven()


def test_files_are_sent_through_the_running_gateway(start: Start, samples: Samples, tmp_path: Path) -> None:
    """`send`: taken by the daemon, mailed at once, in the PACS of the partner; `queue show` names the mail."""
    pacs = start(Storescp())
    receiver = start(Daemon({"pacs": (pacs.title, pacs.port)}, RECEIVER))
    sender = start(Daemon({}, SECTIONS.format(dicom=free_port(), relay=receiver.port)))
    images = [samples.fresh("CT_small.dcm", study="1.2.3.4.5") for _ in range(3)]
    for image in images:
        (tmp_path / image.sop_instance).write_bytes(image.file)
    (tmp_path / "letter.txt").write_text("Dear colleague")
    done = sender.say("send", "--to", "clinic-b", str(tmp_path), "--json")
    assert done.returncode in {0, 1}, done.stderr
    document = json.loads(done.stdout)
    assert (document["running"], document["taken"]) == (True, 3)
    assert [one["reason"] for one in document["files"] if not one["taken"]] == ["no DICOM file"]
    [item] = sender.view("list")["items"]
    item = sender.await_item(item["id"], "delivered")
    assert {one["mail"] for one in item["instances_detail"]} == {one["message_id"] for one in item["mails"]}
    wait_until(lambda: len(pacs.instances()) == 3, "all are in the other PACS")
    assert pacs.instances() == {one.sop_instance: one.data_set for one in images}


def test_a_relay_that_says_nothing_delays_neither_the_stop_nor_the_next_collection(
    start: Start, samples: Samples, tmp_path: Path
) -> None:
    """R31: it takes connections and is silent. Collections are composed all the same, and a stop is quick."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as mute:
        dicom = free_port()
        gateway = start(Daemon({}, SECTIONS.format(dicom=dicom, relay=mute.getsockname()[1])))
        for _ in range(6):
            image = samples.fresh("CT_small.dcm")
            assert store(dicom, image, image.file, tmp_path) == 0

        def composed() -> bool:
            return {one["stage"] for one in gateway.view("list")["items"]} == {"submit"}

        wait_until(composed, "all six are composed", 25)
        began = time.monotonic()
        gateway.signal(signal.SIGTERM)
        assert gateway.wait(10) == 0
        print(f"stopped in {time.monotonic() - began:.1f} s")
    proof = gateway.proven()
    assert (proof["waiting"], proof["doubtful"]) == (6, 0)
