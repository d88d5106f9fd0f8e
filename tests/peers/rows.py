"""Values as the stages hand them to the ledger, and small configurations: what tests of the ledger are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from gateway import config
from gateway.core.routing import Decision, Partner, Route
from gateway.ledger import deliveries, messages
from gateway.ledger.deliveries import Settled, Work
from gateway.ledger.messages import Arrival, Read
from gateway.ledger.tables import delivery, event, message, notice, ticket
from gateway.model import Envelope, Header, Instance, Outcome, Reading, Span

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
REMEMBER = timedelta(days=30)
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

CLINIC = Partner("clinic-a", "dicom@clinic-a.example", "any")
STRANGER = Decision("who@elsewhere.example", None, ())
HEADER = Header(("dicom@clinic-a.example",), 1, "<1@clinic-a.example>", 1)
ENVELOPE = Envelope("smtp", "dicom@clinic-a.example", ("pacs@gateway.example",), "192.0.2.1", "clinic")

CONFIGURATION = """
[gateway]
name = "gw.example"
postmaster = "team@gw.example"
data = "data"

[limits]
free_space = "1 MB"

[smtp]
listen = "127.0.0.1:0"

[ae.pacs]
title = "PACS"
host = "127.0.0.1"
port = 11112
timeout = "5s"

[ae.other]
title = "OTHER"
host = "127.0.0.1"
port = 11113

[partner.clinic-a]
address = "dicom@clinic-a.example"
accept = "any"

[partner.clinic-b]
address = "dicom@clinic-b.example"
accept = "signed"

[[route]]
name = "a"
from = "clinic-a"
store = ["pacs"]

[[route]]
name = "b"
from = "clinic-b"
store = ["pacs"]
"""


def configuration(folder: Path, text: str = CONFIGURATION) -> config.Configuration:
    """A gateway whose data lie below a folder."""
    path = folder / "gateway.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path)


def decision(*stores: str, name: str = "in", partner: Partner | None = CLINIC, urgent: bool = False) -> Decision:
    """A route of a partner to some destinations."""
    route = Route(name, "clinic-a", None, None, stores or ("pacs",), urgent, timedelta(minutes=15))
    return Decision("dicom@clinic-a.example", partner, (route,))


def arrival(key: str, *, body: str = "", header: Header | None = None, **changes: Any) -> Arrival:
    """A message that lies in the spool; each key is another mail unless told."""
    digest = hashlib.sha256((body or key).encode()).hexdigest()
    values: dict[str, Any] = {
        "blob": f"2026112312/{key}.eml",
        "size": 1000,
        "sha256": digest,
        "body_sha256": digest,
        "envelope": ENVELOPE,
        "header": header or replace(HEADER, message_id=f"<{body or key}@clinic-a.example>"),
        "decision": decision(),
        "at": NOW,
        "seconds": 0.1,
        "known_since": NOW - REMEMBER,
    }
    return Arrival(key, **{**values, **changes})


def instance(number: int, *, uid: str | None = None, content: str = "", held: str | None = None) -> Instance:
    """An instance of a hundred bytes; its content follows from its UID unless told."""
    uid = uid or f"1.2.3.{number}"
    digest = hashlib.sha256((content or uid).encode()).hexdigest()
    span = Span(Path("out"), 100 * number, 100 * number + 100)
    return Instance(CT, uid, "1.2.3", "1.2.3.4", EXPLICIT, digest, digest, str(number), None, span, 40, held)


def read(
    *instances: Instance, to: Sequence[str] = ("pacs",), blob: str = "2026112312/read.dcm", **changes: Any
) -> Read:
    """What RECEIVE made of a message with these instances."""
    values: dict[str, Any] = {"refused": None, "held": None, "problem": None, "seconds": 0.2}
    reading = Reading("dicom" if instances else "other", instances)
    return Read(reading, blob if instances else None, tuple(to), **{**values, **changes})


def queue(
    connection: Connection,
    key: str,
    *instances: Instance,
    to: Sequence[str] = ("pacs",),
    at: datetime = NOW,
    **changes: Any,
) -> None:
    """Accept a message and write down what was read in it."""
    arrived = arrival(key, at=at, decision=decision(*to), **changes)
    assert messages.accept(connection, [arrived]) == [None]
    assert messages.decide(
        connection, key, read(*(instances or (instance(1),)), to=to, blob=f"2026112312/{key}.dcm"), at
    )


def settled(work: Work, outcome: Outcome = Outcome.DELIVERED, **changes: Any) -> Settled:
    """What became of one delivery: stored, unless told."""
    values: dict[str, Any] = {"code": None, "status": 0, "comment": "", "wait": None}
    flags = {"sent": True, "unknown": False, "failed": False}
    return Settled(work, outcome, **{**values, **flags, **changes})


def send(connection: Connection, name: str, outcome: Outcome = Outcome.DELIVERED, **changes: Any) -> list[Work]:
    """Send everything due at a destination, with one outcome for all."""
    now = changes.pop("now", NOW)
    work = deliveries.mark(connection, deliveries.due(connection, name, now, 1000))
    deliveries.settle(connection, name, [settled(one, outcome, **changes) for one in work], [], now, now)
    return work


def outcome(connection: Connection, key: str) -> tuple[str, str | None]:
    """Outcome and code of an item."""
    row = connection.execute(select(message.c.outcome, message.c.code).where(message.c.id == key)).one()
    return row.outcome, row.code


def parts(connection: Connection, key: str) -> list[tuple[int, str, str, str | None]]:
    """Number, destination, outcome and code of each delivery of an item."""
    columns = (delivery.c.number, delivery.c.destination, delivery.c.outcome, delivery.c.code)
    rows = connection.execute(select(*columns).where(delivery.c.message == key).order_by(delivery.c.id))
    return [(row.number, row.destination, row.outcome, row.code) for row in rows]


def stories(connection: Connection, key: str) -> list[str]:
    """The events of an item, by kind."""
    return list(connection.scalars(select(event.c.kind).where(event.c.message == key).order_by(event.c.id)))


def wakes(connection: Connection) -> dict[str, datetime]:
    """Every ticket that nobody runs, and when it is due."""
    rows = connection.execute(select(ticket.c.key, ticket.c.due).where(~ticket.c.running))
    return {row.key: row.due for row in rows}


def alarms(connection: Connection) -> set[tuple[str, str]]:
    """Kind and subject of every open notice."""
    rows = connection.execute(select(notice.c.kind, notice.c.about).where(notice.c.closed_at.is_(None)))
    return {(row.kind, row.about) for row in rows}
