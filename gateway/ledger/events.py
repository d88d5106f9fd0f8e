"""The append-only story: what a person reads at 3 am. Written in the transaction of the fact it tells of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert

from gateway.ledger.tables import event

_APPEND = insert(event)


def entry(
    at: datetime,
    kind: str,
    text: str,
    *,
    message: str | None = None,
    destination: str | None = None,
    who: str | None = None,
) -> dict[str, Any]:
    """Make one event, for ``append``. Arguments as for ``tell``."""
    return {"at": at, "kind": kind, "text": text, "message": message, "destination": destination, "who": who}


def append(connection: Connection, entries: Sequence[dict[str, Any]]) -> None:
    """Append several events."""
    connection.execute(_APPEND, entries)


def tell(
    connection: Connection,
    at: datetime,
    kind: str,
    text: str,
    *,
    message: str | None = None,
    destination: str | None = None,
    who: str | None = None,
) -> None:
    """Append one event.

    Args:
        connection: The transaction that changes the fact.
        at: When it happened.
        kind: One word for machines, as ``accepted`` or ``window-sent``.
        text: One sentence for people, without patient data.
        message: The item it is about.
        destination: The destination it is about.
        who: The person or peer that caused it, when it was not the gateway.
    """
    append(connection, [entry(at, kind, text, message=message, destination=destination, who=who)])
