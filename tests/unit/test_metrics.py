"""What /metrics says."""

from __future__ import annotations

from prometheus_client import generate_latest

from gateway import metrics
from gateway.edges.smtp import Counters
from gateway.ledger.inventory import Census

CENSUS = Census(
    messages={"delivered": 3.0, "held": 1.0},
    instances={("pacs", "waiting"): 5.0},
    doubtful={"pacs": 2.0},
    oldest={"pacs": 60.0},
    up={"pacs": 0.0},
    paused={"pacs": 1.0},
    notices={"held": 1.0},
    tickets={"store": 1.0},
)


def lines(readings: metrics.Readings, counters: Counters | None = None) -> set[str]:
    text = generate_latest(metrics.registry(readings, lambda: counters)).decode()
    return {line for line in text.splitlines() if not line.startswith("#")}


def test_before_the_first_look_there_is_what_is_known_anyway() -> None:
    """A scrape never fails and never waits for the ledger."""
    found = lines(metrics.Readings())
    assert "dicom_mail_heartbeat_seconds 0.0" in found
    assert any(line.startswith("dicom_mail_build_info{version=") for line in found)
    assert all(line.startswith(metrics.PREFIX) for line in found)


def test_everything_that_is_counted_is_shown_with_its_labels() -> None:
    """Outcomes, destinations, doubts, ages, notices and the door (R33)."""
    readings = metrics.Readings(CENSUS, 1000, 12.5, {"smtp": True, "imap": False})
    counters = Counters()
    counters.accepted, counters.temporary = 7, 2
    assert {
        'dicom_mail_items{outcome="delivered"} 3.0',
        'dicom_mail_instances{destination="pacs",outcome="waiting"} 5.0',
        'dicom_mail_instances_in_doubt{destination="pacs"} 2.0',
        'dicom_mail_oldest_waiting_seconds{destination="pacs"} 60.0',
        'dicom_mail_destination_up{destination="pacs"} 0.0',
        'dicom_mail_destination_paused{destination="pacs"} 1.0',
        'dicom_mail_notices_open{kind="held"} 1.0',
        'dicom_mail_tickets{stage="store"} 1.0',
        'dicom_mail_door_open{door="smtp"} 1.0',
        'dicom_mail_door_open{door="imap"} 0.0',
        "dicom_mail_disk_free_bytes 1000.0",
        "dicom_mail_heartbeat_seconds 12.5",
        "dicom_mail_smtp_accepted_total 7.0",
        'dicom_mail_smtp_refusals_total{class="4yz"} 2.0',
    } <= lines(readings, counters)


def test_two_gateways_in_one_process_do_not_mix() -> None:
    """Each has a registry of its own."""
    assert lines(metrics.Readings(heartbeat=1.0)) != lines(metrics.Readings(heartbeat=2.0))
