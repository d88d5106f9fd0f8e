"""Notices: one when it opens, one when it closes, never a flood (R33); on both databases."""

from __future__ import annotations

from datetime import timedelta

from rows import NOW, arrival, stories
from sqlalchemy import Connection, select

from gateway.ledger import janitor, messages, notices
from gateway.ledger.tables import event


def test_a_notice_opens_once_and_closes_once(connection: Connection) -> None:
    """Opening it again while it lasts, or closing what is closed, is nothing new (R33)."""
    messages.accept(connection, [arrival("in-1")])
    assert notices.open_notice(connection, NOW, "late", "in-1", "in-1 is late", "show it")
    assert not notices.open_notice(connection, NOW, "late", "in-1", "in-1 is later", "show it")
    assert notices.open_notice(connection, NOW, "held", "in-1", "in-1 is held", "show it")
    assert notices.close_notice(connection, NOW, "late", "in-1")
    assert not notices.close_notice(connection, NOW, "late", "in-1")
    assert [(one.kind, one.closed_at) for one in notices.open_notices(connection)] == [("held", None)]
    assert notices.open_notice(connection, NOW, "late", "in-1", "in-1 is late", "show it")
    assert stories(connection, "in-1") == [
        "accepted",
        "notice-opened",
        "notice-opened",
        "notice-closed",
        "notice-opened",
    ]


def test_each_opening_and_each_closing_is_handed_on_once(connection: Connection) -> None:
    """What was told is not told again; a notice that closed while it was told is told of once more (R33)."""
    notices.open_notice(connection, NOW, "disk-low", "spool", "nearly full", "free space")
    (opening,) = notices.untold(connection)
    notices.close_notice(connection, NOW, "disk-low", "spool")
    notices.told(connection, opening)
    (closing,) = notices.untold(connection)
    assert (opening.closed_at, closing.closed_at) == (None, NOW)
    notices.told(connection, closing)
    assert notices.untold(connection) == []


def test_an_item_is_late_once_and_no_more_when_it_is_done(connection: Connection) -> None:
    """The notice comes after the patience of its route, and goes with the outcome (R33)."""
    messages.accept(connection, [arrival("in-1")])
    late = NOW + timedelta(minutes=15)
    assert janitor.note_late(connection, late - timedelta(seconds=1)) == 0
    assert janitor.note_late(connection, late) == 1
    janitor.note_late(connection, late)
    assert [(one.kind, one.about) for one in notices.open_notices(connection)] == [("late", "in-1")]
    messages.hold(connection, "in-1", "poison", "it crashed", late)
    assert [(one.kind, one.about) for one in notices.open_notices(connection)] == [("held", "in-1")]


def test_a_full_disk_is_told_of_until_there_is_room(connection: Connection) -> None:
    """One open, one close, however often it is looked at (R5, R33)."""
    for low in (False, True, True, False, False):
        janitor.note_room(connection, NOW, low=low)
        assert [one.kind for one in notices.open_notices(connection)] == ["disk-low"] * low
    assert len(notices.untold(connection)) == 1


def test_exactly_the_wanted_notices_of_a_kind_are_open(connection: Connection) -> None:
    """What is new opens, what changed is told anew, what is over closes; other kinds stay as they are (R33)."""
    notices.open_notice(connection, NOW, "late", "ledger", "late", "look")
    notices.keep(connection, NOW, "kind", {"a": ("one", "do"), "b": ("two", "do")})
    assert notices.standing(connection, "kind") == {"a": "one", "b": "two"}
    notices.keep(connection, NOW, "kind", {"a": ("one", "do"), "b": ("worse", "do now"), "c": ("new", "do")})
    assert notices.standing(connection, "kind") == {"a": "one", "b": "worse", "c": "new"}
    notices.keep(connection, NOW, "kind", {})
    assert notices.standing(connection, "kind") == {}
    assert notices.standing(connection, "late") == {"ledger": "late"}
    told = list(connection.scalars(select(event.c.kind)))
    assert (told.count("notice-opened"), told.count("notice-closed")) == (5, 4)
