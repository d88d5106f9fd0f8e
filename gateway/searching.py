"""Looking for what is known of a study, a patient, a mail or a sender, and the list of what went in and out.

Both read the ledger beside a running gateway. What is typed never comes back: it may be a patient's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from gateway import control
from gateway.config import Configuration
from gateway.config.values import Duration
from gateway.core import pseudonym
from gateway.errors import GatewayError, UsageError
from gateway.ledger import pseudonyms, searches
from gateway.ledger.searches import Wanted

_SPAN: Final = TypeAdapter(Duration)


def explain(
    configuration: Configuration,
    *,
    word: str | None = None,
    patient: str | None = None,
    accession: str | None = None,
    sender: str | None = None,
    since: str | None = None,
) -> dict[str, Any]:
    """Tell the stories of what is looked for.

    Args:
        configuration: Names the data folder.
        word: A UID, a Message-ID or a queue id.
        patient: A Patient ID.
        accession: An accession number.
        sender: A partner, its address, or the AE title of a modality.
        since: A time span back from now, or a time.

    Raises:
        UsageError: Nothing was asked, or the time is none.
        GatewayError: Nothing is known of it, or the ledger cannot be read.
    """
    asked = [one for one in (word, patient, accession, sender) if one is not None]
    if len(asked) != 1:
        raise UsageError("expected one thing to look for", hint=searches.SEARCHABLE)
    now = datetime.now(UTC)
    wanted = Wanted(word, _digests(configuration, patient, accession), sender, moment(since, now) if since else None)
    with control.reading(configuration) as connection:
        return searches.explain(connection, wanted, now)


def _digests(configuration: Configuration, patient: str | None, accession: str | None) -> tuple[str, ...]:
    if patient is None and accession is None:
        return ()
    folder = configuration.gateway.data
    key = pseudonyms.read_key(folder)
    if key is None:
        raise GatewayError(
            f"there is no key {folder / pseudonyms.KEY}, so no patient can be searched for",
            hint="the gateway makes it at its first start; a backup has it when it was made --with-keys",
        )
    found = pseudonym.of_patient(key, patient) if patient is not None else pseudonym.of_accession(key, accession or "")
    if found is None:
        raise UsageError("the number is empty")
    return (found,)


def moment(text: str, now: datetime) -> datetime:
    """Read a time: a span back from now as ``2h``, or a date or time, local unless it names its zone.

    Raises:
        UsageError: It is none.
    """
    try:
        back: timedelta = _SPAN.validate_python(text)
        return now - back
    except (ValidationError, OverflowError):
        pass
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError("--since: expected a time", hint='as "2h", "7d", "2026-11-23" or "2026-11-23T18:00"') from None


def events(configuration: Configuration, since: str | None) -> Iterator[dict[str, Any]]:
    """Yield what went in and out and who did what, the oldest first, up to this moment. A page at a time is in memory.

    Raises:
        UsageError: The time is none.
        GatewayError: The ledger cannot be read.
    """
    start = moment(since, datetime.now(UTC)) if since else None
    with control.reading(configuration) as connection:
        last = searches.newest_event(connection)
    after = 0
    while True:
        with control.reading(configuration) as connection:
            rows = searches.events(connection, start, after, last)
        if not rows:
            return
        yield from searches.listed(rows)
        after = rows[-1].id


def as_json(some: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Write events as one JSON document, piece by piece."""
    yield '{"events": ['
    between = "\n"
    for one in some:
        yield f"{between}{json.dumps(one)}"
        between = ",\n"
    yield "\n]}\n"
