"""A study that comes in pieces, over the wire and with the power going off between them, is whole in the PACS (R10)."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon
from fragments import cut
from messages import compose
from orthanc import Orthanc
from peer import Start, program, wait_until
from samples import Samples, data_set
from storescp import Storescp

pytestmark = pytest.mark.peer

SENDER = "dicom@clinic-a.test"
BOTH = """
[[route]]
name = "to both"
from = "clinic-a"
store = ["pacs", "archive"]
"""


def _has_its_place(item: dict[str, Any]) -> bool:
    return bool(item["kind"] or item["duplicate_of"])


def _done(gateway: Daemon, keys: list[str]) -> bool:
    return all(one["outcome"] == "delivered" or one["code"] == "poison" for one in map(gateway.item, keys))


def pieces(whole: bytes, count: int, name: str) -> list[bytes]:
    """Cut a message into pieces of about the same size."""
    lines = whole.count(b"\n")
    return cut(whole, range(lines // count, lines, lines // count), name=name, sender=SENDER)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_study_in_shuffled_fragments_survives_a_kill_after_each(
    start: Start, samples: Samples, orthanc: Orthanc, seed: int
) -> None:
    """Each piece in another life of the gateway; two studies at once; identical bytes, each sent once (R8, R26).

    What three kills interrupt while it is read is held as poison. On a slow machine these do: a person lets it go on.
    """
    dice = random.Random(seed)
    studies = [list(samples.many(4)) for _ in range(2)]
    fragments = [
        one
        for n, study in enumerate(studies)
        for one in pieces(compose([one.file for one in study], sender=SENDER), 4, f"study{n}@clinic-a.test")
    ]
    fragments += dice.sample(fragments, 2)  # an MTA that never saw our answer
    dice.shuffle(fragments)
    archive = start(Storescp())
    gateway = start(
        Daemon({"pacs": (orthanc.title, orthanc.port), "archive": (archive.title, archive.port)}, sections=BOTH)
    )
    keys: list[str] = []
    for fragment in fragments:
        wait_until(lambda: all(_has_its_place(gateway.item(key)) for key in keys), "what came before has its place")
        keys.append(gateway.mail(fragment))
        time.sleep(dice.uniform(0, 0.15))
        gateway.kill()  # at whatever it was doing
        gateway.start()
    wait_until(lambda: _done(gateway, keys), "all are delivered or held as poison", 60)
    for key in keys:
        if gateway.item(key)["code"] == "poison" and not gateway.item(key)["duplicate_of"]:
            assert gateway.say("queue", "release", key).returncode == 0
    gateway.await_items(keys, "delivered", 60)
    sent = {one.sop_instance: one for study in studies for one in study}
    stored = archive.instances()
    assert {uid: one.data_set for uid, one in sent.items()} == {uid: stored[uid] for uid in sent}
    assert all(orthanc.data_set(uid) == one.data_set for uid, one in sent.items())
    proof = gateway.proven()
    assert (proof["in"], proof["delivered"]) == (len(fragments), len(fragments))
    assert proof["instances"]["in"] == 2 * len(sent)
    assert gateway.notices() == set()
    assert list((gateway.data / "spool/drafts").iterdir()) == []


def test_what_mpack_cuts_is_joined(start: Start, samples: Samples, tmp_path: Path) -> None:
    """Debian's program, whose ids are a clock's, sent backwards."""
    image = samples.fresh("CT_small.dcm")
    (tmp_path / "image.dcm").write_bytes(image.file)
    command = [program("mpack"), "-s", "CT", "-c", "application/dicom", "-m", "12000", "-o", "out", "image.dcm"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    mails = [path.read_bytes() for path in sorted(tmp_path.glob("out*"))]
    assert len(mails) >= 4
    archive = start(Storescp())
    gateway = start(Daemon({"pacs": (archive.title, archive.port)}))
    head = f"From: {SENDER}\r\nTo: pacs@gateway.test\r\n".encode()
    keys = [gateway.mail(head + mail.replace(b"\n", b"\r\n")) for mail in reversed(mails)]
    gateway.await_items(keys, "delivered")
    [file] = archive.files()
    assert data_set(file) == image.data_set


def test_a_set_that_stays_incomplete_is_told_of_and_joined_when_the_rest_comes(start: Start, samples: Samples) -> None:
    """One notice that opens and closes; what is missing is in plain words (PRT-8)."""
    limits = '[limits]\nfree_space = "50 MB"\nfragment_age = "1s"\n'
    image = samples.fresh("MR_small.dcm")
    first, second, third = pieces(compose([image.file], sender=SENDER), 2, "late@clinic-a.test")
    archive = start(Storescp())
    gateway = start(Daemon({"pacs": (archive.title, archive.port)}, sections=limits))
    keys = [gateway.mail(third), gateway.mail(first)]
    gateway.await_items(keys, "held")
    assert len(gateway.notices()) == 1
    [(kind, lead)] = gateway.notices()
    assert kind == "held"
    assert gateway.item(lead)["code"] == "fragment-incomplete"
    assert "2 of 3 are here, missing 2" in gateway.say("queue", "show", lead).stdout
    [other] = set(keys) - {lead}
    assert gateway.item(other)["part_of"] == lead
    assert f"is a fragment: {lead} stands for the whole" in gateway.say("queue", "drop", other).stderr
    keys.append(gateway.mail(second))
    gateway.await_items(keys, "delivered")
    assert gateway.notices() == set()
    assert archive.instances() == {image.sop_instance: image.data_set}
    assert gateway.proven()["delivered"] == 3
