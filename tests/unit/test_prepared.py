"""Statements that are put together once: they do what the same statements do that are not."""

from __future__ import annotations

import pytest
from rows import NOW, queue
from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from gateway.ledger.prepared import Prepared
from gateway.ledger.tables import delivery, fact, message

READ = Prepared(select(message.c.id, message.c.received_at, message.c.urgent).where(message.c.id == bindparam("mine")))
ADD = Prepared(insert(fact), ["name", "value"])


def test_values_come_back_as_the_tables_mean_them(connection: Connection) -> None:
    """Moments with their zone, truth as truth."""
    queue(connection, "in-1")
    statement = select(message.c.id, message.c.received_at, message.c.urgent)
    assert [tuple(row) for row in READ.ask(connection, {"mine": "in-1"})] == [
        tuple(row) for row in connection.execute(statement)
    ]
    assert READ.ask(connection, {"mine": "none"}) == []


def test_values_go_as_the_tables_mean_them(connection: Connection) -> None:
    """A moment that is changed is the moment that is read."""
    queue(connection, "in-1")
    change = Prepared(update(message).where(message.c.id == bindparam("mine")), ["received_at", "urgent"])
    change.run(connection, {"mine": "in-1", "received_at": NOW, "urgent": True})
    ((_, at, urgent),) = READ.ask(connection, {"mine": "in-1"})
    assert (at, bool(urgent)) == (NOW, True)


def test_what_a_row_does_not_say_is_as_the_tables_have_it(connection: Connection) -> None:
    """An insert takes their defaults."""
    queue(connection, "in-1")
    add = Prepared(insert(delivery), ["message", "number", "destination", "outcome"])
    add.run(connection, {"message": "in-1", "number": 1, "destination": "another", "outcome": "waiting"})
    row = connection.execute(select(delivery).where(delivery.c.destination == "another")).one()
    assert (row.sending, row.sends, row.forced, row.absences, row.code) == (False, 0, False, 0, None)


def test_a_refusal_is_that_of_the_library_and_shows_no_values(connection: Connection) -> None:
    """Whoever waits for an error of the database gets it, and no log gets what it was about (R35)."""
    ADD.run(connection, {"name": "a", "value": "x"})
    with pytest.raises(IntegrityError) as raised:
        ADD.run(connection, {"name": "a", "value": "SECRET"})
    assert "SECRET" not in str(raised.value.statement) + str(raised.value.params)
