"""What /metrics says."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import generate_latest

from gateway import metrics
from gateway.edges.smtp import Counters
from gateway.ledger.inventory import Census, Delivered, Partners

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


def test_a_proof_that_was_never_made_is_as_old_as_can_be() -> None:
    """An alarm compares its age: what is absent has none, and nobody would miss the proof."""
    found = lines(metrics.Readings())
    assert "dicom_mail_proved_seconds 0.0" in found
    assert not any(line.startswith("dicom_mail_unaccounted") for line in found)


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


def test_what_was_delivered_is_counted_by_how_long_it_took() -> None:
    """A histogram for each way, urgent or not."""
    readings = metrics.Readings()
    readings.latencies.add(
        [Delivered("in", False, 1.5), Delivered("in", False, 90_000.0), Delivered("out", True, 60.0)]
    )
    assert {
        'dicom_mail_mail_to_pacs_seconds_bucket{le="1.0",urgent="no"} 0.0',
        'dicom_mail_mail_to_pacs_seconds_bucket{le="2.0",urgent="no"} 1.0',
        'dicom_mail_mail_to_pacs_seconds_count{urgent="no"} 2.0',
        'dicom_mail_cstore_to_mail_seconds_bucket{le="60.0",urgent="yes"} 1.0',
    } <= lines(readings)


def test_what_went_out_is_counted_by_what_became_of_it() -> None:
    """Sends in doubt too; bytes are those that were delivered."""
    readings = metrics.Readings()
    for outcome in ("delivered", "delivered", "unknown"):
        readings.stores.add("pacs", outcome, 100)
    readings.submissions.add("clinic-a", "delivered", 7)
    assert {
        'dicom_mail_sends_total{destination="pacs",outcome="delivered"} 2.0',
        'dicom_mail_sends_total{destination="pacs",outcome="unknown"} 1.0',
        'dicom_mail_sent_bytes_total{destination="pacs"} 200.0',
        'dicom_mail_submissions_total{outcome="delivered",partner="clinic-a"} 1.0',
        'dicom_mail_submitted_bytes_total{partner="clinic-a"} 7.0',
    } <= lines(readings)


def test_partners_stages_and_the_proof_are_shown() -> None:
    """Before the first proof nobody claims that it holds."""
    readings = metrics.Readings(replace(CENSUS, stages={"store": 2.0}, ages={"store": 9.0}, relay={"up": 0.0}))
    readings.partners = Partners({("clinic-a", "in", "held"): 3.0}, {("clinic-a", "in"): 12.0})
    assert not any("unaccounted" in line for line in lines(readings))
    readings.unaccounted, readings.proved = 0, 5.0
    assert {
        'dicom_mail_partner_items{direction="in",outcome="held",partner="clinic-a"} 3.0',
        'dicom_mail_partner_last_seconds{direction="in",partner="clinic-a"} 12.0',
        'dicom_mail_stage_items{stage="store"} 2.0',
        'dicom_mail_stage_oldest_seconds{stage="store"} 9.0',
        "dicom_mail_relay_up 0.0",
        "dicom_mail_unaccounted 0.0",
        "dicom_mail_proved_seconds 5.0",
    } <= lines(readings)


def test_two_gateways_in_one_process_do_not_mix() -> None:
    """Each has a registry of its own."""
    assert lines(metrics.Readings(heartbeat=1.0)) != lines(metrics.Readings(heartbeat=2.0))
