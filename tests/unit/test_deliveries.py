"""Deliveries in the ledger: windows, outcomes, doubt, destinations; on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from rows import NOW, alarms, decision, instance, outcome, parts, queue, send, settled, stories, wakes
from sqlalchemy import Connection, select

from gateway.core.retry import Facts, Next
from gateway.ledger import deliveries, inventory, verbs
from gateway.ledger.deliveries import Condition
from gateway.ledger.notices import open_notice
from gateway.ledger.tables import delivery, destination, event, message
from gateway.model import Outcome

MINUTE = timedelta(minutes=1)


def facts(connection: Connection) -> Iterator[tuple[bool, int, int, int]]:
    columns = (delivery.c.sending, delivery.c.sends, delivery.c.sends_unknown, delivery.c.failures)
    return (tuple(row) for row in connection.execute(select(*columns).order_by(delivery.c.id)))


def test_urgent_mail_goes_first_then_as_it_came_and_in_its_own_order(connection: Connection) -> None:
    """A big old study never delays what is urgent."""
    queue(connection, "in-1", instance(1), instance(2))
    queue(connection, "in-2", instance(3), at=NOW - MINUTE)
    connection.execute(message.update().where(message.c.id == "in-1").values(urgent=True))
    assert [one.sop_instance for one in deliveries.due(connection, "pacs", NOW, 9)] == ["1.2.3.1", "1.2.3.2", "1.2.3.3"]
    first = deliveries.due(connection, "pacs", NOW, 1)
    assert [one.sop_instance for one in first] == ["1.2.3.1"]
    assert [one.sop_instance for one in deliveries.due(connection, "pacs", NOW, 1, {first[0].id})] == ["1.2.3.2"]
    assert (first[0].start, first[0].end) == (140, 200)  # the data set alone, behind group 0002 (P10-6)
    assert deliveries.due(connection, "other", NOW, 9) == []


def test_what_is_not_due_yet_waits_unless_the_clock_was_wrong(connection: Connection) -> None:
    """A next attempt a day ahead was written by a clock that jumped; it must not stall the delivery (R29)."""
    queue(connection, "in-1")
    send(connection, "pacs", Outcome.WAITING, status=0xA700, wait=MINUTE, failed=True)
    assert deliveries.due(connection, "pacs", NOW, 9) == []
    assert deliveries.next_due(connection, "pacs") == NOW + MINUTE
    assert len(deliveries.due(connection, "pacs", NOW + MINUTE, 9)) == 1
    assert len(deliveries.due(connection, "pacs", NOW - timedelta(days=1), 9)) == 1


def test_a_mark_takes_only_what_still_waits(connection: Connection) -> None:
    """What a person held meanwhile is not sent."""
    queue(connection, "in-1")
    queue(connection, "in-2", instance(2))
    work = deliveries.due(connection, "pacs", NOW, 9)
    verbs.hold(connection, "in-1", NOW, "anna")
    assert [one.message for one in deliveries.mark(connection, work)] == ["in-2"]
    assert list(facts(connection)) == [(False, 0, 0, 0), (True, 1, 0, 0)]
    assert deliveries.mark(connection, []) == []
    assert deliveries.due(connection, "pacs", NOW, 9) == []  # on the wire already


def test_a_mark_takes_nothing_that_is_on_the_wire_or_stored(connection: Connection) -> None:
    """A window that was put together before is no reason to send it twice (promise 2)."""
    queue(connection, "in-1", instance(1), instance(2))
    window = deliveries.due(connection, "pacs", NOW, 10)
    assert deliveries.mark(connection, window[:1]) == window[:1]
    assert deliveries.mark(connection, window) == window[1:]
    stored = [settled(one, Outcome.WAITING, stored=True, wait=timedelta()) for one in window]
    deliveries.settle(connection, "pacs", stored, [], NOW, NOW)
    assert deliveries.mark(connection, window) == []


def test_each_instance_of_a_window_gets_its_own_outcome(connection: Connection) -> None:
    """One answer settles one instance; what never left is as before (R12, R14)."""
    queue(connection, "in-1", *(instance(number) for number in range(1, 6)))
    work = deliveries.mark(connection, deliveries.due(connection, "pacs", NOW, 9))
    outcomes = [
        settled(work[0]),
        settled(work[1], Outcome.WAITING, code="out-of-resources", status=0xA700, wait=MINUTE, failed=True),
        settled(work[2], Outcome.WAITING, code="in-doubt", status=None, comment="A-ABORT", wait=MINUTE, unknown=True),
        settled(work[3], Outcome.FAILED, code="context-refused", status=None, sent=False, failed=True),
    ]
    deliveries.settle(connection, "pacs", outcomes, work[4:], NOW - MINUTE, NOW)
    assert list(facts(connection)) == [
        (False, 1, 0, 0),
        (False, 1, 0, 1),
        (False, 1, 1, 0),
        (False, 0, 0, 1),
        (False, 0, 0, 0),
    ]
    assert [state for _, _, state, _ in parts(connection, "in-1")] == [
        "delivered",
        "waiting",
        "waiting",
        "failed",
        "waiting",
    ]
    assert outcome(connection, "in-1") == ("waiting", "out-of-resources")
    story = connection.scalar(select(event.c.text).where(event.c.kind == "sent"))
    assert story == (
        "to pacs: 1 delivered (0x0000); 1 waiting (0xA700); 1 unknown (A-ABORT); 1 failed (context-refused)"
    )
    shown = inventory.show_item(connection, "in-1", NOW)
    assert shown["timing"]["store_seconds"] == 60
    deliveries.settle(connection, "pacs", [], [], NOW, NOW)  # nothing at all is fine too


@pytest.mark.parametrize("verb", [verbs.hold, verbs.drop])
def test_what_a_person_stopped_on_the_wire_stays_stopped_with_the_answer_on_record(
    connection: Connection, verb: object
) -> None:
    """The peer's answer is kept as a fact; the person's word stands (R34)."""
    queue(connection, "in-1")
    work = deliveries.mark(connection, deliveries.due(connection, "pacs", NOW, 9))
    verb(connection, "in-1", NOW, "anna")  # type: ignore[operator]
    before = outcome(connection, "in-1")
    deliveries.settle(connection, "pacs", [settled(work[0])], [], NOW, NOW)
    assert outcome(connection, "in-1") == before
    assert before[0] in {"held", "refused"}
    assert connection.execute(select(delivery.c.status, delivery.c.sending)).one() == (0, False)


def test_what_was_on_the_wire_at_a_crash_is_in_doubt_and_spaced(connection: Connection) -> None:
    """A kill -9 makes one window unknown; it is counted, spaced and told (promise 2, R26)."""
    queue(connection, "in-1", instance(1), instance(2), to=("pacs", "other"))
    deliveries.mark(connection, deliveries.due(connection, "pacs", NOW, 1))
    seen: list[Facts] = []

    def decide(what: Facts) -> Next:
        seen.append(what)
        return Next(Outcome.WAITING, MINUTE)

    assert deliveries.recover(connection, "other", NOW, decide) == 0
    assert deliveries.recover(connection, "pacs", NOW + MINUTE, decide) == 1
    assert deliveries.recover(connection, "pacs", NOW + MINUTE, decide) == 0
    assert seen == [Facts(0, 1, MINUTE)]
    assert next(facts(connection)) == (False, 1, 1, 0)
    assert stories(connection, "in-1")[-1] == "in-doubt"
    assert deliveries.next_due(connection, "pacs") == NOW
    assert inventory.reconcile(connection, lambda _: True)["doubtful"] == 1


def test_doubt_that_is_used_up_is_held_for_a_person(connection: Connection) -> None:
    """After the last unknown send the machine repeats nothing (promise 2)."""
    queue(connection, "in-1")
    deliveries.mark(connection, deliveries.due(connection, "pacs", NOW, 1))
    deliveries.recover(connection, "pacs", NOW, lambda _: Next(Outcome.HELD, None))
    assert outcome(connection, "in-1") == ("held", "in-doubt")
    assert alarms(connection) == {("held", "in-1")}


def test_doubt_about_what_a_person_dropped_is_counted_and_changes_nothing(connection: Connection) -> None:
    """Dropped stays dropped, and the ledger says that it may have arrived."""
    queue(connection, "in-1")
    deliveries.mark(connection, deliveries.due(connection, "pacs", NOW, 1))
    verbs.drop(connection, "in-1", NOW, "anna")
    assert deliveries.recover(connection, "pacs", NOW, lambda _: Next(Outcome.WAITING, MINUTE)) == 1
    assert outcome(connection, "in-1") == ("refused", "dropped")
    assert list(facts(connection)) == [(False, 1, 1, 0)]


def test_what_waits_for_a_destination_that_was_removed_is_held(connection: Connection) -> None:
    """Queued work for a removed destination needs a person; other lanes are left alone (SIGHUP)."""
    queue(connection, "in-1", to=("pacs", "gone"))
    assert deliveries.orphan(connection, ["pacs", "gone"], NOW) == 0
    assert deliveries.orphan(connection, ["pacs"], NOW) == 1
    assert parts(connection, "in-1") == [(1, "pacs", "waiting", None), (1, "gone", "held", "destination-removed")]
    assert deliveries.orphan(connection, [], NOW) == 1
    assert outcome(connection, "in-1") == ("held", "destination-removed")


def test_what_was_the_matter_with_a_destination_ends_with_it(connection: Connection) -> None:
    """Nobody can mend what is configured no more: its notices close, and should it come back it begins anew (R33)."""
    for name in ("pacs", "gone"):
        deliveries.trip(connection, Condition(name), "silent", NOW, NOW, urgent=True)
        open_notice(connection, NOW, "commitment-refused", name, "no", "")
    deliveries.retire(connection, {"pacs": "commitment"}, NOW)
    assert alarms(connection) == {("destination-down", "pacs"), ("commitment-refused", "pacs")}
    assert deliveries.condition(connection, "gone") == Condition("gone")
    deliveries.retire(connection, {"pacs": "find"}, NOW)
    assert alarms(connection) == {("destination-down", "pacs")}
    assert deliveries.condition(connection, "pacs").trouble == "silent"


def test_what_is_on_the_wire_to_a_removed_destination_is_settled_by_its_lane(connection: Connection) -> None:
    """A reload takes no answer away from an instance that is being sent (promise 2)."""
    queue(connection, "in-1", to=("gone",))
    work = deliveries.mark(connection, deliveries.due(connection, "gone", NOW, 9))
    assert deliveries.orphan(connection, ["pacs"], NOW) == 0
    deliveries.settle(connection, "gone", [settled(work[0])], [], NOW, NOW)
    assert outcome(connection, "in-1") == ("delivered", None)


def test_a_silent_destination_is_told_of_after_two_minutes_once(connection: Connection) -> None:
    """One notice when it opens, one when it closes; a short restart makes none (R33)."""
    assert deliveries.condition(connection, "pacs") == Condition("pacs")
    for minute in range(4):
        now = NOW + minute * MINUTE
        deliveries.trip(
            connection, deliveries.condition(connection, "pacs"), "no answer", now + MINUTE, now, urgent=False
        )
        assert bool(alarms(connection)) == (minute >= 2)
    found = deliveries.condition(connection, "pacs")
    assert found == Condition("pacs", False, 4, NOW + 4 * MINUTE, NOW, "no answer")
    deliveries.mend(connection, found, NOW + 5 * MINUTE)
    assert deliveries.condition(connection, "pacs") == Condition("pacs")
    assert alarms(connection) == set()
    kinds = connection.scalars(select(event.c.kind).order_by(event.c.id)).all()
    assert kinds == ["destination-down", "notice-opened", "destination-up", "notice-closed"]
    deliveries.mend(connection, Condition("pacs"), NOW)  # a destination that was well is not told of
    assert len(connection.scalars(select(event.c.id)).all()) == 4


def test_a_lasting_trouble_is_told_of_at_once(connection: Connection) -> None:
    """What will not pass by itself waits for nobody's patience (NET-5)."""
    deliveries.trip(connection, Condition("pacs"), "title not recognised", NOW + MINUTE, NOW, urgent=True)
    assert alarms(connection) == {("destination-down", "pacs")}


def test_a_clock_that_went_back_never_makes_an_outage_begin_in_the_future(connection: Connection) -> None:
    """The two minutes are counted from now at the latest (R29)."""
    ahead = Condition("pacs", down_since=NOW + timedelta(days=1), trouble="no answer")
    deliveries.trip(connection, ahead, "no answer", NOW + MINUTE, NOW, urgent=False)
    assert connection.scalar(select(destination.c.down_since)) == NOW


def test_a_paused_destination_is_on_record_with_who_did_it(connection: Connection) -> None:
    """Pause and resume wake the lane, which looks at its row."""
    deliveries.pause(connection, "pacs", True, NOW, "anna")
    assert deliveries.condition(connection, "pacs").paused
    deliveries.pause(connection, "pacs", False, NOW, "anna")
    assert not deliveries.condition(connection, "pacs").paused
    assert connection.scalars(select(event.c.who)).all() == ["anna", "anna"]
    assert set(wakes(connection)) == {"store:pacs"}
    assert decision("pacs").destinations == ("pacs",)
