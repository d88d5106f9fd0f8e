"""What a person asks the ledger, and the conservation proof, which must notice what is wrong; on both databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from rows import NOW, arrival, instance, queue, read, send
from sqlalchemy import Connection, insert

from gateway.ledger import deliveries, inventory, messages, notices, tickets, verbs
from gateway.ledger.deliveries import Condition
from gateway.ledger.tables import delivery, message, ticket, total
from gateway.model import Finding, Outcome, Reading, Severity

HOUR = timedelta(hours=1)


def full(connection: Connection) -> None:
    """One item of each kind."""
    queue(connection, "in-1", instance(1), instance(2), body="same")
    send(connection, "pacs")
    messages.accept(connection, [arrival("in-2", body="same", at=NOW + HOUR)])
    queue(connection, "in-3", instance(3), to=("pacs", "other"), at=NOW + HOUR)
    send(connection, "pacs", Outcome.WAITING, code="in-doubt", status=None, unknown=True, wait=HOUR, now=NOW + HOUR)
    messages.accept(connection, [arrival("in-4")])
    report = replace(read(refused="not-dicom"), reading=Reading("report"))
    messages.decide(connection, "in-4", report, NOW)
    messages.accept(connection, [arrival("in-5")])
    what = Finding("not-dicom", Severity.WARNING, "1", "labelled as DICOM, and is none")
    messages.decide(connection, "in-5", replace(read(held="no-dicom"), reading=Reading("dicom", (), (what,))), NOW)
    messages.accept(connection, [arrival("in-6", at=NOW - HOUR)])


def ids(connection: Connection, **wanted: Any) -> list[str]:
    return [one["id"] for one in inventory.list_items(connection, NOW, **wanted)["items"]]


def test_the_queue_is_listed_newest_first_and_by_what_is_asked(connection: Connection) -> None:
    """Duplicates and reports are items too; a report's stage is report, also when it is asked for (contract)."""
    full(connection)
    assert ids(connection) == ["in-3", "in-2", "in-5", "in-4", "in-1", "in-6"]
    assert ids(connection, outcome="delivered") == ["in-2", "in-1"]
    assert ids(connection, stage="report") == ["in-4"]
    assert ids(connection, stage="receive") == ["in-5", "in-6"]
    assert ids(connection, partner="clinic-b") == []
    assert ids(connection, partner="clinic-a", outcome="waiting", stage="store") == ["in-3"]
    assert inventory.list_items(connection, NOW, most=2)["cut"]
    assert not inventory.list_items(connection, NOW, most=6)["cut"]


def test_an_item_is_listed_with_the_keys_of_the_contract(connection: Connection) -> None:
    """Counts, the next attempt and the age follow from the rows."""
    full(connection)
    three = inventory.list_items(connection, NOW + 2 * HOUR, outcome="waiting", stage="store")["items"][0]
    expected = {"id": "in-3", "direction": "in", "outcome": "waiting", "stage": "store", "partner": "clinic-a"}
    expected |= {"instances": 1, "delivered": 0, "attempts": 1, "age_seconds": 3600.0, "code": "in-doubt"}
    expected |= {"next_attempt": "2026-11-23T13:00:00.000Z", "message_id": "<in-3@clinic-a.example>"}
    assert {key: three[key] for key in expected} == expected
    six = inventory.show_item(connection, "in-6", NOW)
    assert (six["stage"], six["next_attempt"], six["age_seconds"]) == ("receive", "2026-11-23T11:00:00.000Z", 3600.0)
    assert inventory.show_item(connection, "in-1", NOW)["next_attempt"] is None


def test_an_item_is_shown_as_a_story(connection: Connection) -> None:
    """Events, findings, every instance at every destination, and the timing: from the tables alone (R36)."""
    full(connection)
    shown = inventory.show_item(connection, "in-3", NOW)
    assert [one["text"].split()[0] for one in shown["events"]] == ["accepted", "read", "to"]
    assert [
        (one["destination"], one["outcome"], one["sends_unknown"], one["status"]) for one in shown["instances_detail"]
    ] == [
        ("other", "waiting", 0, None),
        ("pacs", "waiting", 1, None),
    ]
    one = inventory.show_item(connection, "in-1", NOW)
    assert [detail["status"] for detail in one["instances_detail"]] == ["0x0000", "0x0000"]
    assert one["timing"] == {"receive_seconds": 0.1, "read_seconds": 0.2, "store_seconds": 0.0}
    (found,) = inventory.show_item(connection, "in-5", NOW)["findings"]
    assert (found["code"], found["severity"], found["where"]) == ("not-dicom", "warning", "1")
    with pytest.raises(verbs.UnknownItemError):
        inventory.show_item(connection, "in-9", NOW)


def test_the_list_tells_what_is_the_matter_with_destinations_and_what_to_do(connection: Connection) -> None:
    """Open notices and the state of each destination come with the queue (R33)."""
    deliveries.trip(connection, Condition("pacs"), "no answer", NOW + HOUR, NOW, urgent=True)
    document = inventory.list_items(connection, NOW)
    assert [(one["kind"], one["about"]) for one in document["notices"]] == [("destination-down", "pacs")]
    assert document["destinations"] == [
        {
            "name": "pacs",
            "paused": False,
            "down_since": "2026-11-23T12:00:00.000Z",
            "trouble": "no answer",
            "answered": None,
            "next_probe": "2026-11-23T13:00:00.000Z",
        }
    ]


def test_the_proof_adds_up_in_both_units(connection: Connection) -> None:
    """In = delivered + waiting + refused + held + failed, totals of purged rows included (R34)."""
    full(connection)
    connection.execute(insert(total).values(unit="message", outcome="delivered", count=10))
    connection.execute(insert(total).values(unit="instance", outcome="delivered", count=100))
    proof = inventory.reconcile(connection, lambda _: True)
    expected = {"in": 16, "delivered": 12, "waiting": 2, "refused": 1, "held": 1, "failed": 0}
    assert proof == {
        **expected,
        "unaccounted": 0,
        "doubtful": 1,
        "astray": [],
        "instances": {
            "in": 104,
            "delivered": 102,
            "waiting": 2,
            "refused": 0,
            "held": 0,
            "failed": 0,
            "unaccounted": 0,
            "doubtful": 1,
        },
    }


BREAKS: dict[str, Callable[[Connection], object]] = {
    "waits for nothing": lambda c: c.execute(delivery.update().values(outcome="delivered")),
    "delivered, but not all": lambda c: c.execute(delivery.update().values(outcome="failed")),
    "done, but something waits": lambda c: c.execute(message.update().values(outcome="held")),
    "held for no reason": lambda c: c.execute(message.update().where(message.c.id == "in-1").values(outcome="held")),
    "no next attempt": lambda c: c.execute(delivery.update().values(next_attempt=None)),
    "no such outcome": lambda c: c.execute(message.update().values(outcome="lost")),
    "a repetition astray": lambda c: c.execute(message.update().where(message.c.id == "in-2").values(outcome="failed")),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_the_proof_fails_when_something_is_wrong(connection: Connection, broken: str) -> None:
    """A proof that cannot fail proves nothing (R34)."""
    full(connection)
    BREAKS[broken](connection)
    proof = inventory.reconcile(connection, lambda _: True)
    assert proof["unaccounted"] == len(proof["astray"]) > 0


def test_bytes_that_are_gone_are_missed_only_where_somebody_needs_them(connection: Connection) -> None:
    """What waits or is held must have its bytes; what was erased by a person's word need not (R1, R34)."""
    full(connection)
    proof = inventory.reconcile(connection, lambda key: not key.endswith(".dcm"))
    assert proof["astray"] == ["in-3"]
    proof = inventory.reconcile(connection, lambda _: False)
    assert proof["astray"] == ["in-3", "in-5", "in-6"]
    connection.execute(message.update().values(purged_at=NOW))
    assert inventory.reconcile(connection, lambda _: False)["unaccounted"] == 0


def test_every_row_that_wants_work_gets_its_ticket_back(connection: Connection) -> None:
    """Losing every ticket loses nothing; a ticket that is there is not put again (R17)."""
    full(connection)
    assert inventory.tickets_missing(connection) == []
    connection.execute(ticket.delete())
    missing = inventory.tickets_missing(connection)
    assert sorted(missing) == ["receive:in-6", "store:other", "store:pacs"]
    tickets.put_all(connection, missing, NOW)
    assert inventory.tickets_missing(connection) == []


def test_the_census_counts_what_the_metrics_show(connection: Connection) -> None:
    """Configured destinations are always there, removed ones only while something is queued for them (R33)."""
    full(connection)
    deliveries.pause(connection, "other", True, NOW, "anna")
    deliveries.trip(connection, Condition("pacs"), "no answer", NOW + HOUR, NOW, urgent=False)
    deliveries.trip(connection, Condition("removed"), "no answer", NOW + HOUR, NOW, urgent=False)
    notices.open_notice(connection, NOW, "late", "in-3", "in-3 is late", "show it")
    census = inventory.census(connection, NOW + 2 * HOUR, ["pacs", "other", "idle"])
    assert census.messages == {"delivered": 2, "waiting": 2, "refused": 1, "held": 1, "failed": 0}
    assert census.instances == {("pacs", "delivered"): 2, ("pacs", "waiting"): 1, ("other", "waiting"): 1}
    assert census.doubtful == {"pacs": 1, "other": 0, "idle": 0}
    assert census.oldest == {"pacs": 3600, "other": 3600, "idle": 0}
    assert census.up == {"pacs": 0, "other": 1, "idle": 1}
    assert census.paused == {"pacs": 0, "other": 1, "idle": 0}
    assert census.notices == {"held": 1, "late": 1}
    assert census.tickets["store"] == 2


def test_stages_and_partners_are_counted(connection: Connection) -> None:
    """What waits where, since when and how big; duplicates wait for nothing of their own (R33)."""
    full(connection)
    found = inventory.census(connection, NOW + 2 * HOUR, ("pacs", "other"))
    assert found.stages == {"receive": 1.0, "store": 1.0, "compose": 0.0, "submit": 0.0}
    assert found.ages == {"receive": 10_800.0, "store": 3600.0, "compose": 0.0, "submit": 0.0}
    assert found.sizes == {"receive": 1000.0, "store": 1000.0, "compose": 0.0, "submit": 0.0}
    assert found.relay == {"up": 1.0, "paused": 0.0}
    of = inventory.partners(connection)
    assert of.items[("clinic-a", "in", "delivered")] == 2.0
    assert of.last[("clinic-a", "in")] == (NOW + HOUR).timestamp()


def test_what_was_delivered_is_listed_once_with_how_long_it_took(connection: Connection) -> None:
    """For the histograms: each item when all of it is there, and never again."""
    last, _ = inventory.delivered_after(connection, 0)
    queue(connection, "in-1", instance(1))
    queue(connection, "in-2", instance(2))
    send(connection, "pacs", now=NOW + HOUR)
    last, found = inventory.delivered_after(connection, last)
    assert [(one.direction, one.urgent, one.seconds) for one in found] == [("in", False, 3600.0)] * 2
    assert inventory.delivered_after(connection, last) == (last, [])
