"""The whole way, with the installed program: mail in by SMTP, instances in real PACS, and what the operator is told."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import Daemon
from messages import compose
from orthanc import Orthanc
from peer import wait_until
from samples import REWRITTEN, Samples
from storescp import Storescp

pytestmark = pytest.mark.peer

PARTNERS = """
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

[[route]]
name = "to archive"
from = "clinic-a"
to = "archive@gateway.test"
store = ["archive"]

[[route]]
name = "to both"
from = "clinic-a"
to = "both@gateway.test"
store = ["pacs", "archive"]

[[route]]
name = "signed"
from = "clinic-b"
to = "signed@gateway.test"
store = ["pacs"]
"""

ITEM = {
    "id": str,
    "direction": str,
    "outcome": str,
    "stage": str,
    "partner": str | None,
    "instances": int,
    "delivered": int,
    "attempts": int,
    "next_attempt": str | None,
    "age_seconds": float | int,
    "code": str | None,
    "message_id": str | None,
}
DETAIL = {
    "sop_instance": str,
    "destination": str,
    "outcome": str,
    "sends": int,
    "sends_unknown": int,
    "status": str | None,
    "mail": str | None,
}
COUNTS = ("in", "delivered", "waiting", "refused", "held", "failed", "unaccounted", "doubtful")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@pytest.fixture(scope="module")
def archive() -> Iterator[Storescp]:
    """A second PACS."""
    with Storescp() as peer:
        yield peer


@pytest.fixture(scope="module")
def gateway(orthanc: Orthanc, archive: Storescp) -> Iterator[Daemon]:
    """One gateway in front of both; every test looks at its own mail."""
    destinations = {"pacs": (orthanc.title, orthanc.port), "archive": (archive.title, archive.port)}
    with Daemon(destinations, PARTNERS) as daemon:
        yield daemon


def demand(document: dict[str, object], contract: dict[str, type]) -> None:
    """Hold a document against the contract: every field there, of its type."""
    for name, kind in contract.items():
        assert isinstance(document[name], kind), f"{name}: {document[name]!r}"


def test_images_arrive_in_orthanc_with_identical_data_sets(gateway: Daemon, orthanc: Orthanc, samples: Samples) -> None:
    """R8, R12: what the sender attached is what the PACS has, byte for byte behind group 0002."""
    fresh = list(samples.many(10))
    key = gateway.mail(compose(one.file for one in fresh))
    item = gateway.await_item(key, "delivered")
    assert item["instances"] == item["delivered"] == 10
    for one in fresh:
        assert orthanc.data_set(one.sop_instance) == one.data_set


def test_two_routes_lead_to_two_destinations(gateway: Daemon, archive: Storescp, samples: Samples) -> None:
    """Each recipient address leads to its own PACS, and one route may name both."""
    mine, both = samples.fresh(), samples.fresh()
    first = gateway.mail(compose([mine.file]), to="archive@gateway.test")
    second = gateway.mail(compose([both.file]), to="both@gateway.test")
    gateway.await_items({first, second}, "delivered")
    assert archive.instances()[mine.sop_instance] == mine.data_set
    assert archive.instances()[both.sop_instance] == both.data_set
    assert {one["destination"] for one in gateway.item(first)["instances_detail"]} == {"archive"}
    details = gateway.item(second)["instances_detail"]
    assert {one["destination"] for one in details} == {"pacs", "archive"}
    assert all(one["outcome"] == "delivered" and one["status"] == "0x0000" for one in details)


def test_one_mail_to_two_addresses_reaches_both(gateway: Daemon, archive: Storescp, samples: Samples) -> None:
    """Two recipients of one mail are two routes: each PACS gets the instances once (SMTP-10)."""
    one = samples.fresh()
    key = gateway.mail(compose([one.file]), to=["pacs@gateway.test", "archive@gateway.test"])
    item = gateway.await_item(key, "delivered")
    assert item["instances"] == 1
    assert item["delivered"] == 2
    assert archive.instances()[one.sop_instance] == one.data_set


def test_what_orthanc_would_rewrite_reaches_storescp_as_it_was(
    gateway: Daemon, archive: Storescp, samples: Samples
) -> None:
    """R8 with compressed pixel data and sequences of undefined length: nothing is decoded on the way."""
    fresh = [samples.fresh(Path(name).name) for name in REWRITTEN]
    key = gateway.mail(compose(one.file for one in fresh), to="archive@gateway.test")
    gateway.await_item(key, "delivered")
    held = archive.instances()
    assert [held[one.sop_instance] for one in fresh] == [one.data_set for one in fresh]


def test_list_show_and_reconcile_keep_the_contract(gateway: Daemon, samples: Samples) -> None:
    """Every field that the outer contract names is there, of its type, and says what happened."""
    fresh = list(samples.many(3))
    message = compose((one.file for one in fresh), message_id="<contract@clinic-a.test>")
    key = gateway.mail(message)
    gateway.await_item(key, "delivered")

    items = gateway.ask("queue", "list")["items"]
    assert items[0]["id"] == key  # the newest first
    for each in items:
        demand(each, ITEM)
    listed = items[0]
    assert listed["direction"] == "in"
    assert listed["stage"] == "store"
    assert listed["partner"] == "clinic-a"
    assert (listed["instances"], listed["delivered"], listed["attempts"]) == (3, 3, 1)
    assert listed["next_attempt"] is None
    assert listed["code"] is None
    assert listed["message_id"] == "<contract@clinic-a.test>"

    shown = gateway.ask("queue", "show", key)
    demand(shown, ITEM)
    assert {name: shown[name] for name in ITEM if name != "age_seconds"} == {
        name: listed[name] for name in ITEM if name != "age_seconds"
    }
    assert shown["events"]
    for event in shown["events"]:
        assert MOMENT.fullmatch(event["at"])
        assert event["text"]
    assert [event["at"] for event in shown["events"]] == sorted(event["at"] for event in shown["events"])
    for detail in shown["instances_detail"]:
        demand(detail, DETAIL)
        assert (detail["sends"], detail["sends_unknown"], detail["status"]) == (1, 0, "0x0000")
    assert [one["sop_instance"] for one in shown["instances_detail"]] == [one.sop_instance for one in fresh]
    timing = shown["timing"]
    assert all(isinstance(timing[name], float) for name in ("receive_seconds", "read_seconds", "store_seconds"))

    said = gateway.say("reconcile", "--json")
    assert said.returncode == 0
    proof = gateway.proven()
    for unit in (proof, proof["instances"]):
        assert all(isinstance(unit[name], int) for name in COUNTS)


def test_lists_are_filtered_by_outcome_stage_and_partner(gateway: Daemon) -> None:
    """What is asked for comes, and nothing else."""
    key = gateway.mail(compose([], text="no image in here"))
    gateway.await_item(key, "held")
    held = gateway.ask("queue", "list", "--outcome", "held")["items"]
    assert key in {one["id"] for one in held}
    assert {one["outcome"] for one in held} == {"held"}
    for words, field, value in (
        (("--stage", "store"), "stage", "store"),
        (("--partner", "clinic-a"), "partner", "clinic-a"),
    ):
        found = gateway.ask("queue", "list", *words)["items"]
        assert found
        assert {one[field] for one in found} == {value}
    assert gateway.ask("queue", "list", "--partner", "nobody")["items"] == []


def test_an_unknown_id_is_an_error_of_the_work(gateway: Daemon) -> None:
    """Exit code 1 and one line, for questions and for changes."""
    for verb in ("show", "retry", "hold", "release", "drop"):
        said = gateway.say("queue", verb, "in-0000000000000000")
        assert said.returncode == 1
        assert said.stdout == ""
        assert said.stderr.count("\n") == 1
        assert "in-0000000000000000" in said.stderr


def test_a_repeated_mail_is_recognised_and_not_sent_again(gateway: Daemon, archive: Storescp, samples: Samples) -> None:
    """R11: same Message-ID and body: the sender did not see our 250. An item of its own, the outcome of the first."""
    one = samples.fresh()
    message = compose([one.file])
    first = gateway.mail(message, to="archive@gateway.test")
    gateway.await_item(first, "delivered")
    files = len(archive.files())
    again = gateway.mail(b"Received: from elsewhere\r\n" + message, to="archive@gateway.test")
    assert again != first
    item = gateway.await_item(again, "delivered")
    assert item["duplicate_of"] == first
    assert item["attempts"] == 0
    assert len(archive.files()) == files


def test_known_instances_in_a_new_mail_are_sent_again(gateway: Daemon, archive: Storescp, samples: Samples) -> None:
    """R11: somebody asked for them, so they go; nothing is skipped by guess."""
    one = samples.fresh()
    keys = []
    for text in ("once", "and once more"):
        keys.append(gateway.mail(compose([one.file], text=text), to="archive@gateway.test"))
        gateway.await_item(keys[-1], "delivered")
    item = gateway.item(keys[1])
    assert item["duplicate_of"] is None
    assert item["instances_detail"][0]["sends"] == 1
    received = [file for file in archive.files() if one.sop_instance.encode() in file]
    assert received


def test_the_same_uid_with_other_content_is_held_and_the_rest_goes_on(
    gateway: Daemon, orthanc: Orthanc, samples: Samples
) -> None:
    """R11, promise 5: which of the two is the right one, only a person can say."""
    one, good = samples.fresh("CT_small.dcm"), samples.fresh()
    gateway.await_item(gateway.mail(compose([one.file])), "delivered")
    forged = one.file[:-2] + bytes(byte ^ 1 for byte in one.file[-2:])
    key = gateway.mail(compose([forged, good.file]))
    item = gateway.await_item(key, "held")
    assert item["code"] == "reused-uid"
    by_uid = {each["sop_instance"]: each for each in item["instances_detail"]}
    assert by_uid[one.sop_instance]["outcome"] == "held"
    assert by_uid[one.sop_instance]["sends"] == 0
    assert by_uid[good.sop_instance]["outcome"] == "delivered"
    assert orthanc.data_set(one.sop_instance) == one.data_set
    assert ("held", key) in gateway.notices()


def test_an_unknown_sender_is_refused_at_the_end_of_the_data(gateway: Daemon, samples: Samples) -> None:
    """550 5.7.1 and nothing kept, whatever the envelope says; two From addresses are nobody."""
    before = gateway.view("reconcile")["in"]
    message = compose([samples.fresh().file], sender="who@elsewhere.test")
    code, text = gateway.submit(message, sender="dicom@clinic-a.test")
    assert (code, text[:5]) == (550, "5.7.1")
    two = compose([], sender="dicom@clinic-a.test, who@elsewhere.test")
    code, text = gateway.submit(two)
    assert (code, text[:5]) == (550, "5.7.1")
    assert gateway.view("reconcile")["in"] == before


def test_an_unknown_recipient_is_refused_at_once(gateway: Daemon) -> None:
    """550 5.1.1 to RCPT: the sender's server tells its user in seconds, and no image is sent in vain."""
    code, text = gateway.submit(compose([]), to="nobody@gateway.test")
    assert (code, text[:5]) == (550, "5.1.1")


def test_a_partner_without_a_route_to_an_address_is_refused(gateway: Daemon) -> None:
    """The address is ours, but not this partner's to use: 550 5.7.1 at the end of the data, never after a 250."""
    code, text = gateway.submit(compose([]), to="signed@gateway.test")
    assert (code, text[:5]) == (550, "5.7.1")


def test_mail_to_the_postmaster_is_taken_and_is_no_study(gateway: Daemon) -> None:
    """Anybody may write to the postmaster: taken, refused as not for the PACS, nobody is woken."""
    for number, to in enumerate(("it@gateway.test", "postmaster@gateway.test", "postmaster")):
        message = compose([], sender=f"Who <who{number}@elsewhere.test>")
        key = gateway.mail(message, sender="", to=to)
        item = gateway.await_item(key, "refused")
        assert item["code"] == "not-dicom"
        assert not any(about == key for _, about in gateway.notices())


def test_mail_that_must_be_signed_and_is_not_is_held(gateway: Daemon, orthanc: Orthanc, samples: Samples) -> None:
    """Never stored: the partner asked for protection, and it has none (docs: not-signed)."""
    one = samples.fresh()
    key = gateway.mail(compose([one.file], sender="dicom@clinic-b.test"), to="signed@gateway.test")
    item = gateway.await_item(key, "held")
    assert item["code"] == "not-signed"
    assert item["instances_detail"] == []
    assert ("held", key) in gateway.notices()
    assert one.sop_instance not in orthanc.instances()
    # A person's release does not replace a signature.
    assert gateway.say("queue", "release", key).returncode == 0
    assert gateway.await_item(key, "held")["code"] == "not-signed"


def test_a_partners_mail_without_images_needs_a_person(gateway: Daemon) -> None:
    """Somebody sent us something and meant images: held, with a notice; a person drops it."""
    key = gateway.mail(compose([b"not an image"], text="see attachment"))
    item = gateway.await_item(key, "held")
    assert item["code"] == "no-dicom"
    assert ("held", key) in gateway.notices()
    dropped = gateway.ask("queue", "drop", key, "--erase")
    assert (dropped["outcome"], dropped["code"], dropped["purged"]) == ("refused", "dropped", True)
    assert ("held", key) not in gateway.notices()
    gateway.proven()


def test_a_held_item_goes_on_when_it_is_released(gateway: Daemon, orthanc: Orthanc, samples: Samples) -> None:
    """pause, hold, release, resume: each does what it says, and names who did it."""
    assert gateway.ask("queue", "pause", "pacs")["paused"] is True
    one = samples.fresh()
    key = gateway.mail(compose([one.file]))
    wait_until(lambda: gateway.item(key)["instances"] == 1, "the mail is read")
    assert gateway.ask("queue", "hold", key)["outcome"] == "held"
    assert gateway.item(key)["code"] == "by-operator"
    assert gateway.ask("queue", "resume", "pacs")["paused"] is False
    assert gateway.item(key)["outcome"] == "held"
    assert gateway.say("queue", "release", key).returncode == 0
    gateway.await_item(key, "delivered")
    assert orthanc.data_set(one.sop_instance) == one.data_set
    person = pwd.getpwuid(os.getuid()).pw_name
    assert f"held (by {person})" in gateway.events(key)
    assert f"released (by {person})" in gateway.events(key)


def test_the_story_of_an_item_can_be_read(gateway: Daemon, samples: Samples) -> None:
    """R36: show tells in words what happened; list has a line for it; nothing is said on standard error."""
    key = gateway.mail(compose([samples.fresh().file]))
    gateway.await_item(key, "delivered")
    shown = gateway.say("queue", "show", key)
    assert shown.returncode == 0
    assert shown.stderr == ""
    for words in (key, "clinic-a", "delivered", "accepted", "peer 127.0.0.1", "0x0000", "store"):
        assert words in shown.stdout
    listed = gateway.say("queue", "list")
    assert listed.returncode == 0
    assert key in listed.stdout
