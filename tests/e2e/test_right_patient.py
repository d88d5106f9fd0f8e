"""The right patient, the whole way: what a PACS holds after a route's rules, and what is held back (promise 5)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pydicom
import pytest
from daemon import Daemon
from messages import compose
from orthanc import Orthanc
from samples import FILES, Samples
from storescp import Storescp

pytestmark = pytest.mark.peer

ROUTES = """
[partner.clinic-a]
address = "*@clinic-a.test"
accept = "any"

[[route]]
name = "rules"
from = "clinic-a"
to = "pacs@gateway.test"
store = ["pacs"]
issuer = "CLINIC-A"
patient_id = "prefix:A-"
accession = "clear"

[[route]]
name = "archive"
from = "clinic-a"
to = "archive@gateway.test"
store = ["archive"]
issuer = "CLINIC-A"
patient_id = "prefix:A-"
accession = "clear"

[[route]]
name = "urgent"
from = "clinic-a"
to = "urgent@gateway.test"
store = ["pacs"]
urgent = true
issuer = "CLINIC-A"

[[route]]
name = "plain"
from = "clinic-a"
to = "plain@gateway.test"
store = ["pacs"]
"""

CHANGED = {0x00080050, 0x00100020, 0x00100021, 0x04000561, 0x00080000, 0x00100000}


@pytest.fixture(scope="module")
def archive() -> Iterator[Storescp]:
    """A PACS that keeps every byte."""
    with Storescp() as peer:
        yield peer


@pytest.fixture(scope="module")
def gateway(orthanc: Orthanc, archive: Storescp) -> Iterator[Daemon]:
    """One gateway whose routes have rules."""
    destinations = {"pacs": (orthanc.title, orthanc.port), "archive": (archive.title, archive.port)}
    with Daemon(destinations, ROUTES) as daemon:
        yield daemon


def raw(read: pydicom.Dataset) -> dict[int, Any]:
    """What each element holds, as bytes where pydicom has not parsed them."""
    return {int(tag): read.get_item(tag).value for tag in read.keys() - CHANGED}


def test_orthanc_has_the_new_number_and_the_old_one_on_record(
    gateway: Daemon, orthanc: Orthanc, samples: Samples
) -> None:
    """Every kind of file: the rules are applied, all other elements are those of the sender."""
    fresh = [samples.fresh(name, AccessionNumber="ACC4711", PatientID="4711") for name in FILES]
    for one in fresh:  # one mail each: these are files of many patients, under one number now
        key = gateway.mail(compose([one.file]))
        gateway.await_item(key, "delivered")
        before = pydicom.dcmread(io.BytesIO(one.file))
        after = pydicom.dcmread(io.BytesIO(orthanc.file(one.sop_instance)))
        assert raw(after) == raw(before)  # first of all: looking at values parses them
        assert (after.PatientID, after.IssuerOfPatientID, after.AccessionNumber) == ("A-4711", "CLINIC-A", "")
        record = after.OriginalAttributesSequence[-1]
        (kept,) = record.ModifiedAttributesSequence
        assert (kept.PatientID, kept.AccessionNumber, kept.IssuerOfPatientID) == ("4711", "ACC4711", "")
        assert record.ReasonForTheAttributeModification == "COERCE"
        assert record.SourceOfPreviousValues == "clinic-a"
        assert "1 of 1 instances were changed by the route's rules: accession, patient_id, issuer" in gateway.events(
            key
        )
        assert "4711" not in gateway.events(key)


def test_dcmtk_takes_what_was_changed(gateway: Daemon, archive: Storescp, samples: Samples) -> None:
    """Another PACS, many instances on one association; the pixels are the sender's."""
    fresh = [samples.fresh(PatientID=str(number)) for number in range(20)]
    key = gateway.mail(compose([one.file for one in fresh]), to="archive@gateway.test")
    gateway.await_item(key, "delivered")
    stored = archive.instances()
    for number, one in enumerate(fresh):
        assert f"A-{number}".encode() in stored[one.sop_instance]
        assert stored[one.sop_instance].endswith(one.data_set[-200:])


def test_the_same_mail_content_is_the_same_instance_whatever_a_rule_made_of_it(
    gateway: Daemon, samples: Samples
) -> None:
    """R11: known by what came, so it is sent again and not held as another's."""
    one = samples.fresh()
    for _ in range(2):
        gateway.await_item(gateway.mail(compose([one.file]), to="archive@gateway.test"), "delivered")


def test_two_people_under_one_number_are_held(gateway: Daemon, orthanc: Orthanc, samples: Samples) -> None:
    """AMB-25: the others go on; a person decides."""
    one = samples.fresh("CT_small.dcm", PatientID="1", PatientName="Doe^John", PatientBirthDate="19700101")
    two = samples.fresh("CT_small.dcm", PatientID="1", PatientName="Roe^Jane", PatientBirthDate="19800101")
    good = samples.fresh("CT_small.dcm", PatientID="2", PatientName="Roe^Jane")
    key = gateway.mail(compose([one.file, two.file, good.file]))
    item = gateway.await_item(key, "held")
    assert item["code"] == "patient-mismatch"
    gateway.await_item(key, "held")
    assert {one.sop_instance, two.sop_instance} & orthanc.instances().keys() == set()
    assert gateway.say("queue", "release", key).returncode == 0
    gateway.await_item(key, "delivered")
    assert {one.sop_instance, two.sop_instance, good.sop_instance} <= orthanc.instances().keys()


def test_nobody_waits_for_an_urgent_study(gateway: Daemon, orthanc: Orthanc, samples: Samples) -> None:
    """Stored, and a notice at once, which is open until somebody says that they have seen it."""
    one = samples.fresh("CT_small.dcm", PatientID="1", PatientBirthDate="19700101")
    two = samples.fresh("CT_small.dcm", PatientID="1", PatientBirthDate="19800101")
    key = gateway.mail(compose([one.file, two.file]), to="urgent@gateway.test")
    gateway.await_item(key, "delivered")
    assert {one.sop_instance, two.sop_instance} <= orthanc.instances().keys()
    assert ("patient-mismatch-urgent", key) in gateway.notices()
    assert gateway.say("queue", "release", key).returncode == 0
    assert ("patient-mismatch-urgent", key) not in gateway.notices()


def test_routes_that_differ_hold_the_mail(gateway: Daemon, samples: Samples) -> None:
    """One data set cannot have two numbers; `check` said so."""
    key = gateway.mail(compose([samples.fresh().file]), to=["pacs@gateway.test", "plain@gateway.test"])
    assert gateway.await_item(key, "held")["code"] == "rules-differ"
    assert "their rules for patients differ" in gateway.say("check", "--offline").stdout
    both = samples.fresh()
    key = gateway.mail(compose([both.file]), to=["pacs@gateway.test", "archive@gateway.test"])
    assert gateway.await_item(key, "delivered")["delivered"] == 2
    gateway.proven()
