"""What the console counts and lists, on both databases, against what the rows say."""

from __future__ import annotations

from datetime import timedelta

import pytest
from rows import NOW, arrival, instance, queue, read, send
from sqlalchemy import Connection, true, update

from gateway.ledger import events, inventory, messages, notices, overview
from gateway.ledger.tables import message
from gateway.ledger.verbs import UnknownItemError
from gateway.model import Direction, Outcome, Stage

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


def close(connection: Connection, key: str, after: timedelta) -> None:
    """Say when an item was delivered."""
    connection.execute(update(message).where(message.c.id == key).values(closed_at=NOW - HOUR + after))


def test_the_last_day_is_counted_by_the_hour_it_came(connection: Connection) -> None:
    """24 hours that end with this one; mails and collections apart; a delay counts in the hour of its mail."""
    for number, delay in enumerate((timedelta(seconds=5), MINUTE, 2 * MINUTE, 3 * HOUR)):
        queue(connection, f"in-{number}", instance(number), at=NOW - HOUR)
        send(connection, "pacs", now=NOW - HOUR)
        close(connection, f"in-{number}", delay)
    queue(connection, "in-now", instance(10), at=NOW + 59 * MINUTE)
    queue(connection, "in-old", instance(11), at=NOW - 24 * HOUR)
    queue(connection, "out-1", instance(12), at=NOW - 23 * HOUR)
    connection.execute(update(message).where(message.c.id == "out-1").values(direction=Direction.OUT))
    hours = overview.last_day(connection, NOW + 30 * MINUTE)
    assert len(hours) == 24
    assert hours[-1].began == NOW
    assert [(one.received, one.collected) for one in (hours[0], hours[-2], hours[-1])] == [(0, 1), (4, 0), (1, 0)]
    assert hours[-2].delays == (1, 1, 1, 0, 1)
    assert sum(one.received + one.collected for one in hours) == 6


def test_the_queue_is_shaped_by_age_and_place(connection: Connection) -> None:
    """Each undecided item once for each destination that it waits for, and what waits for a person apart."""
    queue(connection, "in-1", instance(1), to=("pacs", "other"), at=NOW - 30 * MINUTE)
    queue(connection, "in-2", instance(2), instance(3), at=NOW - timedelta(days=3))
    messages.accept(connection, [arrival("in-3", at=NOW)])
    messages.accept(connection, [arrival("in-4", at=NOW - HOUR)])
    messages.decide(connection, "in-4", read(held="no-dicom"), NOW)
    queue(connection, "in-5", instance(5), at=NOW)
    send(connection, "pacs")  # in-1, in-2 and in-5
    shape = overview.shape(connection, NOW)
    assert shape.lanes == {"other": [0, 0, 0, 1, 0, 0, 0, 0]}
    assert shape.stages == {Stage.RECEIVE: [1, 0, 0, 0, 0, 0, 0, 0]}
    assert shape.persons[Outcome.HELD] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert sum(shape.persons[Outcome.FAILED]) == 0
    assert overview.counts(connection) == {"delivered": 2, "waiting": 2, "refused": 0, "held": 1, "failed": 0}
    assert [one.id for one in overview.oldest(connection, 5)] == ["in-1", "in-3"]
    assert [one.id for one in overview.oldest(connection, 1)] == ["in-1"]


def test_pages_of_the_list_have_every_item_once(connection: Connection) -> None:
    """Newest first, also when several came at the same moment; a page says whether there are more."""
    for number in range(7):
        queue(connection, f"in-{number}", instance(number), at=NOW + (number // 3) * HOUR)
    seen: list[str] = []
    before = None
    for more in (True, True, False):
        items, said = inventory.list_page(connection, NOW, true(), 3, before)
        assert said is more
        seen += [one["id"] for one in items]
        before = seen[-1]
    assert seen == [f"in-{number}" for number in (6, 5, 4, 3, 2, 1, 0)]
    with pytest.raises(UnknownItemError):
        inventory.list_page(connection, NOW, true(), 3, "in-gone")


def test_items_match_all_that_is_asked(connection: Connection) -> None:
    """Outcome, stage, partner, way and time."""
    queue(connection, "in-1", instance(1), at=NOW - 3 * HOUR)
    queue(connection, "in-2", instance(2))
    send(connection, "pacs")
    messages.accept(connection, [arrival("in-3")])

    def found(**wanted: object) -> list[str]:
        condition = inventory.matching(**wanted)  # type: ignore[arg-type]
        return sorted(one["id"] for one in inventory.list_page(connection, NOW, condition, 9)[0])

    assert found() == ["in-1", "in-2", "in-3"]
    assert found(outcome="delivered", since=NOW - HOUR) == ["in-2"]
    assert found(stage="receive", partner="clinic-a", direction="in") == ["in-3"]
    assert found(direction="out") == []


def test_the_newest_notices_are_read_and_all_are_counted(connection: Connection) -> None:
    """A hundred alarms are one line that says so."""
    for number in range(4):
        notices.open_notice(connection, NOW, "held", f"in-{number}", "is held", "look")
    found, count = overview.notices(connection, 2)
    assert ([one.about for one in found], count) == (["in-3", "in-2"], 4)


def test_whatever_happens_changes_the_number_that_pages_watch(connection: Connection) -> None:
    """Each event is a new number."""
    before = overview.newest_change(connection)
    events.tell(connection, NOW, "seen", "somebody looked")
    assert overview.newest_change(connection) > before
