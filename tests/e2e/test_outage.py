"""A PACS that is away, refuses, or breaks off: nothing is called delivered, and all of it arrives once it is well."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from daemon import Daemon
from messages import compose
from orthanc import Orthanc
from peer import Start, answers, wait_until
from samples import Samples
from scripted_scp import ScriptedScp
from storescp import Storescp

pytestmark = pytest.mark.peer


@pytest.fixture
def mute() -> Iterator[socket.socket]:
    """Something that accepts connections and says nothing: the kernel does so for whoever only listens."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener


def hurry(gateway: Daemon, key: str) -> None:
    """Give an operator's word; the gateway may have been quicker by itself."""
    said = gateway.say("queue", "retry", key)
    assert said.returncode == 0 or "is delivered" in said.stderr


def test_a_pacs_that_is_down_gets_everything_by_itself_when_it_is_back(
    start: Start, orthanc: Orthanc, samples: Samples
) -> None:
    """R15, R17: down for the whole intake. Nobody does anything. The other destination never waits."""
    pacs = start(Storescp())
    pacs.stop()
    gateway = start(Daemon({"pacs": (pacs.title, pacs.port), "other": (orthanc.title, orthanc.port)}))
    waiting = [samples.fresh() for _ in range(12)]
    there = [samples.fresh() for _ in range(4)]
    keys = {gateway.mail(compose(one.file for one in waiting[at : at + 3])) for at in range(0, 12, 3)}
    others = {gateway.mail(compose([one.file]), to="other@gateway.test") for one in there}

    gateway.await_items(others, "delivered", 10)
    for one in there:
        assert orthanc.data_set(one.sop_instance) == one.data_set
    wait_until(lambda: gateway.logged("destination_down"), "the breaker opens")
    for key in keys:
        item = gateway.item(key)
        assert item["outcome"] == "waiting"
        assert item["delivered"] == item["attempts"] == 0
        assert all(each["next_attempt"] for each in item["instances_detail"])  # R17
    [destination] = [one for one in gateway.view("list")["destinations"] if one["name"] == "pacs"]
    assert "Connection refused" in destination["trouble"]
    assert destination["next_probe"]

    pacs.start()
    gateway.await_items(keys, "delivered", 30)
    received = pacs.instances()
    for one in waiting:
        assert received[one.sop_instance] == one.data_set
    assert len(pacs.files()) == len(waiting)  # nothing came twice
    proof = gateway.proven()
    assert proof["doubtful"] == 0


FAULTS = {
    # DCMTK's own words, what is then told of the item, and whether a send is in doubt
    "--refuse": ("rejected the association", False),
    "--abort-after": ("unknown (A-ABORT)", True),
    "--abort-during": ("unknown (A-ABORT)", True),
}


@pytest.mark.parametrize("flag", FAULTS)
def test_a_pacs_that_misbehaves_has_nothing_until_it_is_repaired(flag: str, start: Start, samples: Samples) -> None:
    """R12, R14: never delivered without an answer, and explained; once repaired, an operator's word sends it."""
    words, doubtful = FAULTS[flag]
    pacs = start(Storescp(flag))
    gateway = start(Daemon({"pacs": (pacs.title, pacs.port)}))
    fresh = list(samples.many(2))
    key = gateway.mail(compose(one.file for one in fresh))
    if doubtful:
        # It answers an echo, so it is not down: it may be about these images alone, and each is tried by itself.
        wait_until(lambda: gateway.view("reconcile")["instances"]["doubtful"] == len(fresh), "both are in doubt")
    else:
        wait_until(lambda: gateway.logged("destination_down"), "the breaker opens")

    item = gateway.item(key)
    assert (item["outcome"], item["delivered"]) == ("waiting", 0)
    assert all(one["outcome"] == "waiting" and one["next_attempt"] for one in item["instances_detail"])
    assert all(one["status"] is None for one in item["instances_detail"])
    assert all(bool(one["sends_unknown"]) is doubtful for one in item["instances_detail"])
    story = gateway.events(key) + str(gateway.view("list")["destinations"])
    assert words in story
    if doubtful:
        assert all(one["code"] == "in-doubt" for one in item["instances_detail"])
    gateway.proven()

    pacs.stop()
    pacs.flags = ()
    pacs.start()
    hurry(gateway, key)
    gateway.await_item(key, "delivered")
    received = pacs.instances()
    for one in fresh:
        assert received[one.sop_instance] == one.data_set
    assert gateway.proven()["doubtful"] == 0
    assert gateway.view("list")["destinations"][0]["trouble"] is None


def test_a_pacs_that_says_nothing_is_given_up_after_its_deadline(
    start: Start, orthanc: Orthanc, samples: Samples, mute: socket.socket
) -> None:
    """R4, R13, R15: connected, and then silence. No send is in doubt, for none was made; the other route is quick."""
    port = mute.getsockname()[1]
    sections = f"""
[ae.pacs]
title = "MUTE"
host = "127.0.0.1"
port = {port}
timeout = "2s"

[ae.other]
title = "{orthanc.title}"
host = "127.0.0.1"
port = {orthanc.port}
"""
    gateway = start(Daemon({"pacs": ("MUTE", port), "other": (orthanc.title, orthanc.port)}, sections))
    fresh, there = samples.fresh(), samples.fresh()
    key = gateway.mail(compose([fresh.file]))
    gateway.await_item(gateway.mail(compose([there.file]), to="other@gateway.test"), "delivered", 10)
    wait_until(lambda: gateway.logged("destination_down"), "the breaker opens")
    item = gateway.item(key)
    assert item["outcome"] == "waiting"
    assert item["instances_detail"][0]["sends_unknown"] == 0
    [destination] = [one for one in gateway.view("list")["destinations"] if one["name"] == "pacs"]
    assert destination["trouble"]

    mute.close()
    wait_until(lambda: not answers(port), "the mute one is gone")
    pacs = Storescp()
    pacs.port, pacs.title = port, "MUTE"
    start(pacs)
    hurry(gateway, key)
    gateway.await_item(key, "delivered")
    assert pacs.instances()[fresh.sop_instance] == fresh.data_set


def test_one_refused_image_of_many_costs_one_image(start: Start, samples: Samples) -> None:
    """R14: the PACS does not know one SOP class of a mail: the others are delivered, that one is explained."""
    pacs = start(Storescp())
    gateway = start(Daemon({"pacs": (pacs.title, pacs.port)}))
    good = list(samples.many(4))
    strange = samples.fresh("CT_small.dcm", SOPClassUID="1.2.826.0.1.3680043.8.498.1")
    key = gateway.mail(compose(one.file for one in (*good[:2], strange, *good[2:])))
    wait_until(lambda: gateway.item(key)["delivered"] == 4, "the good ones are there")
    wait_until(lambda: gateway.item(key)["outcome"] != "waiting", "the strange one is decided")
    by_uid = {one["sop_instance"]: one for one in gateway.item(key)["instances_detail"]}
    odd = by_uid.pop(strange.sop_instance)
    assert (odd["outcome"], odd["code"], odd["sends"], odd["status"]) == ("failed", "context-refused", 0, None)
    received = pacs.instances()
    assert {one.sop_instance: one.data_set for one in good} == received
    assert {(one["outcome"], one["sends"]) for one in by_uid.values()} == {("delivered", 1)}
    assert ("failed", key) in gateway.notices()
    gateway.proven()


def test_one_image_that_a_pacs_cannot_take_now_is_the_only_one_tried_again(start: Start, samples: Samples) -> None:
    """R14: out of resources for the third of five; an operator's word sends that one, and no other."""
    with ScriptedScp(0, 0, 0xA700, 0, 0, 0) as pacs:
        gateway = start(Daemon({"pacs": ("SCRIPTED", pacs.port)}))
        fresh = list(samples.many(5))
        key = gateway.mail(compose(one.file for one in fresh))
        wait_until(lambda: gateway.item(key)["delivered"] == 4, "the good ones are there")
        [late] = [one for one in gateway.item(key)["instances_detail"] if one["outcome"] != "delivered"]
        assert (late["outcome"], late["code"], late["status"]) == ("waiting", "out-of-resources", "0xA700")
        assert late["next_attempt"]
        hurry(gateway, key)
        gateway.await_item(key, "delivered")
        assert [one.sop_instance for one in pacs.seen].count(late["sop_instance"]) == 2
        assert len(pacs.seen) == 6
        assert pacs.faults == []
