"""What is restored, or runs with a clock that went back, sends nothing until a person says so; on both databases."""

from __future__ import annotations

from datetime import timedelta

import pytest
from rows import NOW, alarms, wakes
from sqlalchemy import Connection

from gateway.ledger import deliveries, restoration, submissions

LANES = ("pacs", "other", submissions.RELAY)
HOUR = timedelta(hours=1)


def paused(connection: Connection) -> set[str]:
    return {name for name in LANES if deliveries.condition(connection, name).paused}


def test_a_ledger_that_was_not_restored_starts_as_it_was(connection: Connection) -> None:
    """Also with a clock that a time server put back a little (R29)."""
    assert restoration.begin(connection, LANES, NOW) is None
    restoration.see(connection, NOW)
    assert restoration.begin(connection, LANES, NOW + HOUR) is None
    assert restoration.begin(connection, LANES, NOW - restoration.TOLERANCE) is None
    assert paused(connection) == set()
    assert alarms(connection) == set()


def test_a_restored_ledger_starts_with_all_lanes_paused(connection: Connection) -> None:
    """Once, with a notice; it closes with the last lane, and until then the next start changes nothing."""
    restoration.mark(connection, NOW)
    assert restoration.is_marked(connection)
    assert restoration.begin(connection, LANES, NOW + HOUR) == "restored"
    assert not restoration.is_marked(connection)
    assert paused(connection) == set(LANES)
    assert alarms(connection) == {("restored", "lanes")}
    assert restoration.begin(connection, LANES, NOW + 2 * HOUR) is None
    for at, name in enumerate(LANES, 1):
        assert alarms(connection) == {("restored", "lanes")}
        restoration.pause(connection, name, False, NOW + 3 * HOUR, "eve")
        assert len(paused(connection)) == len(LANES) - at
    assert alarms(connection) == set()
    assert {"store:pacs", "store:other", submissions.LANE} <= set(wakes(connection))


def test_what_a_person_had_paused_is_no_business_of_the_machine(connection: Connection) -> None:
    """It does not go on by itself when the clock is right again."""
    restoration.pause(connection, "other", True, NOW, "eve")
    restoration.see(connection, NOW + 24 * HOUR)
    assert restoration.begin(connection, LANES, NOW) == "clock-back"
    assert paused(connection) == set(LANES)
    restoration.see(connection, NOW + 23 * HOUR)
    assert paused(connection) == set(LANES)
    restoration.see(connection, NOW + 24 * HOUR)
    assert paused(connection) == {"other"}
    assert alarms(connection) == set()


def test_a_person_may_resume_before_the_clock_is_right(connection: Connection) -> None:
    """From then on the time that is seen is the one that is shown: the next start is not surprised (R29)."""
    restoration.see(connection, NOW + 24 * HOUR)
    assert restoration.begin(connection, ("pacs",), NOW) == "clock-back"
    restoration.pause(connection, "pacs", False, NOW, "eve")
    assert restoration.begin(connection, ("pacs",), NOW + HOUR) is None
    assert paused(connection) == set()


def test_a_second_accident_adds_to_the_first(connection: Connection) -> None:
    """A restored ledger on a machine whose clock then goes back: the person's word is still waited for."""
    restoration.mark(connection, NOW)
    restoration.begin(connection, ("pacs",), NOW)
    restoration.see(connection, NOW + 2 * HOUR)
    assert restoration.begin(connection, LANES, NOW) == "clock-back"
    restoration.see(connection, NOW + 3 * HOUR)
    assert "pacs" in paused(connection)
    assert ("restored", "lanes") in alarms(connection)


@pytest.mark.parametrize("name", LANES)
def test_a_lane_is_paused_and_resumed_by_name(connection: Connection, name: str) -> None:
    """The relay is a lane as any other."""
    restoration.pause(connection, name, True, NOW, "eve")
    assert paused(connection) == {name}
    restoration.pause(connection, name, False, NOW, "eve")
    assert paused(connection) == set()


def test_where_everything_was_paused_the_notice_ends_too(connection: Connection) -> None:
    """After a restore with the last lane that a person resumes; with a wrong clock when it is right again."""
    restoration.pause(connection, "pacs", True, NOW, "eve")
    restoration.mark(connection, NOW)
    restoration.begin(connection, ("pacs",), NOW)
    assert alarms(connection) == {("restored", "lanes")}
    restoration.pause(connection, "pacs", False, NOW, "eve")
    assert alarms(connection) == set()
    restoration.pause(connection, "pacs", True, NOW, "eve")
    restoration.see(connection, NOW + 2 * HOUR)
    restoration.begin(connection, ("pacs",), NOW)
    assert alarms(connection) == {("clock-back", "lanes")}
    restoration.see(connection, NOW + 2 * HOUR)
    assert (alarms(connection), paused(connection)) == (set(), {"pacs"})
