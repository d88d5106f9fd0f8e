"""What is known at night finds the item, and every story comes from the tables alone (R36); on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from rows import NOW, arrival, instance, queue, send
from sqlalchemy import Connection

from gateway.core import pseudonym
from gateway.core.grouping import Rules
from gateway.core.pseudonym import Identity
from gateway.ledger import collections, deliveries, janitor, messages, notices, pseudonyms, searches, verbs
from gateway.ledger.collections import Arrival, Course
from gateway.ledger.searches import NothingFoundError, Wanted
from gateway.model import Outcome

HOUR = timedelta(hours=1)
KEY = b"k" * 32
RULES = Rules(timedelta(minutes=1), HOUR, 10**9)
COURSE = Course("out", (("clinic-b", "b@clinic-b.example"),), RULES, urgent=False, late=HOUR)


def found(connection: Connection, **wanted: Any) -> list[str]:
    return [one["id"] for one in searches.explain(connection, Wanted(**wanted), NOW + HOUR)["items"]]


def named(connection: Connection, key: str, patient: str, accession: str, **changes: Any) -> None:
    """A mail with one image of a patient."""
    words = pseudonym.of_instance(KEY, Identity(patient.encode(), accession.encode()))
    queue(connection, key, replace(instance(1, uid=f"1.2.9.{key[3:]}"), pseudonyms=words), **changes)


def test_an_item_is_found_by_whatever_is_known_of_it(connection: Connection) -> None:
    """Queue id, Message-ID with and without brackets, study, instance, patient, accession, partner, address (R36)."""
    named(connection, "in-1", "4711", "X1")
    named(connection, "in-2", "4712", "X2", at=NOW + timedelta(minutes=30))
    for word in ("in-1", "<in-1@clinic-a.example>", "in-1@clinic-a.example", "1.2.9.1", " in-1 "):
        assert found(connection, word=word) == ["in-1"], word
    assert found(connection, word="1.2.3") == ["in-2", "in-1"]
    patient, accession = pseudonym.of_patient(KEY, "4711"), pseudonym.of_accession(KEY, "x2")
    assert patient
    assert accession
    assert found(connection, digests=(patient,)) == ["in-1"]
    assert found(connection, digests=(accession,)) == ["in-2"]
    assert found(connection, sender="clinic-a") == ["in-2", "in-1"]
    assert found(connection, sender="Dicom@Clinic-A.example", since=NOW + timedelta(minutes=1)) == ["in-2"]


@pytest.mark.parametrize(
    "wanted",
    [Wanted("in-9"), Wanted("'; DROP TABLE message"), Wanted(digests=("0" * 32,)), Wanted(sender="x"), Wanted("4711")],
)
def test_what_nobody_knows_is_an_error_that_says_what_can_be_searched(connection: Connection, wanted: Wanted) -> None:
    """And does not repeat what was typed: it may be a patient's (R35)."""
    named(connection, "in-1", "4711", "X1")
    with pytest.raises(NothingFoundError) as caught:
        searches.explain(connection, wanted, NOW)
    assert str(caught.value).startswith("nothing is known of that (what can be searched: a Study or SOP Instance UID")
    assert caught.value.exit_code == 1


def test_a_story_tells_how_each_destination_stands(connection: Connection) -> None:
    """From rows alone: attempts, the answer in words, what comes next and what a person did."""
    queue(connection, "in-1", instance(1), instance(2), to=("pacs", "other"))
    send(connection, "pacs")
    send(connection, "other", Outcome.WAITING, code="out-of-resources", status=0xA700, failed=True, wait=HOUR)
    verbs.retry(connection, "in-1", NOW, "eve", force=False)
    deliveries.pause(connection, "other", True, NOW, "eve")
    document = searches.explain(connection, Wanted("in-1"), NOW)
    assert (document["found"], document["outcomes"], document["cut"]) == (1, {"waiting": 1}, False)
    [one] = document["items"]
    text = "\n".join(sentence["text"] for sentence in one["story"])
    assert "In it: 2 instances (CT Image Storage) of study 1.2.3." in text
    assert "pacs: of 2 instances 2 delivered" in text
    assert "other, 2 instances: the last answer was 0xA700, refused: out of resources" in text
    assert "To be tried again now (by eve)." in text
    assert one["next"]["text"].startswith("Nothing is sent to other")
    assert one["do"][0] == "dicom-mail queue resume other"


def test_of_many_items_the_newest_are_told(connection: Connection) -> None:
    """A study of three hundred mails has one line of counts, and not three hundred stories."""
    for number in range(searches.MOST_STORIES + 3):
        messages.accept(connection, [arrival(f"in-{number:02}", at=NOW + number * timedelta(seconds=1))])
    document = searches.explain(connection, Wanted(sender="clinic-a"), NOW + HOUR)
    assert (document["found"], document["cut"]) == (searches.MOST_STORIES + 3, True)
    assert [one["id"] for one in document["items"]] == [
        f"in-{number:02}" for number in range(searches.MOST_STORIES + 2, 2, -1)
    ]


def test_pseudonyms_go_with_their_item_and_follow_a_new_reading(connection: Connection) -> None:
    """What is read again is found by what it says now; what is purged leaves nothing behind."""
    named(connection, "in-1", "4711", "X1")
    assert len(pseudonyms.known(connection, "in-1")) == 2
    pseudonyms.note(connection, "in-1", ["a" * 32, "a" * 32])
    assert pseudonyms.known(connection, "in-1") == {"a" * 32}
    send(connection, "pacs")
    later = NOW + timedelta(days=40)
    janitor._purge_bytes(connection, later, later)
    assert janitor._purge_rows(connection, later) == 1
    assert pseudonyms.known(connection, "in-1") == set()


def test_events_are_listed_page_by_page_up_to_a_moment(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, one page is in memory; what comes meanwhile is the next list's (AUD-1, AUD-2)."""
    monkeypatch.setattr(searches, "PAGE", 2)
    first = searches.newest_event(connection)
    queue(connection, "in-1")
    send(connection, "pacs")
    deliveries.pause(connection, "pacs", True, NOW + HOUR, "eve")
    last = searches.newest_event(connection)
    notices.open_notice(connection, NOW, "late", "in-1", "late", "")
    rows, after = [], first
    while page := searches.events(connection, None, after, last):
        assert len(page) <= 2
        rows += page
        after = page[-1].id
    listed = list(searches.listed(rows))
    assert [(one["category"], one["kind"], one["id"]) for one in listed] == [
        ("import", "accepted", "in-1"),
        ("import", "read", "in-1"),
        ("transfer", "sent", "in-1"),
        ("item", "now-delivered", "in-1"),
        ("person", "destination-paused", None),
    ]
    assert listed[0] | {"partner": "clinic-a", "door": "smtp", "peer": "192.0.2.1", "direction": "in"} == listed[0]
    assert (listed[2]["destination"], listed[4]["who"]) == ("pacs", "eve")
    assert [one.kind for one in searches.events(connection, NOW + HOUR, first)] == ["destination-paused"]


def test_a_collection_is_found_by_all_its_instances(connection: Connection) -> None:
    """Over several bursts, and the same number is kept once."""

    def take(number: int, *words: str) -> None:
        one = replace(instance(number), pseudonyms=words)
        came = Arrival(one, f"h/{number}.dcm", COURSE, "storescp", "192.0.2.1", "CT1", "OUT", NOW)
        collections.accept(connection, [came])

    take(1, "a" * 32)
    take(2, "a" * 32)
    take(3, "a" * 32, "b" * 32)
    [key] = found(connection, sender="CT1")
    assert pseudonyms.known(connection, key) == {"a" * 32, "b" * 32}
    assert found(connection, digests=("b" * 32,)) == [key]
    [item] = searches.explain(connection, Wanted(key), NOW)["items"]
    assert item["next"]["text"].startswith("Its mails are written")
