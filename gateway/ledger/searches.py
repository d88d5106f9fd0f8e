"""What a person who asks at night knows, turned into items: a UID, a mail, a patient, a sender, a time (R36).

Everything is read from the tables alone, and comes as the facts that ``core.explanation`` makes words of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from pydicom.uid import UID
from sqlalchemy import ColumnElement, Connection, Select, func, or_, select, union

from gateway.core import explanation
from gateway.errors import GatewayError
from gateway.ledger import inventory
from gateway.ledger.submissions import RELAY
from gateway.ledger.tables import MAIL, destination, event, instance, message, pseudonym, submission
from gateway.model import Direction, utc

MOST_STORIES: Final = 20
"""Items whose story is told at once; of more there are only the counts."""

PAGE: Final = 1000
"""Events read in one transaction."""

SEARCHABLE: Final = (
    "what can be searched: a Study or SOP Instance UID, a Message-ID, a queue id; --patient ID, --accession N, "
    "--from PARTNER; each with --since 2h"
)

_REMARKED: Final = (
    "no-route",
    "rewritten",
    "known",
    "receive-failed",
    "compose-failed",
    "crashed",
    "in-doubt",
    "held",
    "retried",
    "released",
    "dropped",
    "erased",
    "resolved",
    "by-operator",
    "complete",
    "report",
    "sender-told",
)
"""Kinds of events that a story tells in their own words; what the others say follows from the facts."""


class NothingFoundError(GatewayError):
    """Nothing in the ledger answers to what was asked."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is known of the items that are looked for; all of it holds for each.

    Attributes:
        word: A UID, a Message-ID or a queue id.
        digests: Pseudonyms of a patient or an accession number, one of which it must have.
        sender: A partner, its address, or the AE title of a modality.
        since: They came at this time or later.
    """

    word: str | None = None
    digests: tuple[str, ...] = ()
    sender: str | None = None
    since: datetime | None = None


def explain(connection: Connection, wanted: Wanted, now: datetime) -> dict[str, Any]:
    """Tell the stories of the newest items that answer to what is wanted.

    Raises:
        NothingFoundError: None does.
    """
    found = matching(wanted)
    count = connection.scalar(select(func.count()).select_from(found.subquery())) or 0
    if not count:
        raise NothingFoundError("nothing is known of that", hint=SEARCHABLE)
    outcomes = select(message.c.outcome, func.count()).where(message.c.id.in_(found)).group_by(message.c.outcome)
    newest = (
        select(message.c.id)
        .where(message.c.id.in_(found))
        .order_by(message.c.received_at.desc(), message.c.id.desc())
        .limit(MOST_STORIES)
    )
    lanes = _lanes(connection)
    return {
        "found": count,
        "outcomes": dict(connection.execute(outcomes).all()),
        "cut": count > MOST_STORIES,
        "items": [_story(connection, key, lanes, now) for key in connection.scalars(newest).all()],
    }


def tell_of(connection: Connection, key: str, now: datetime) -> dict[str, Any]:
    """Tell the story of one item.

    Raises:
        UnknownItemError: There is no such item.
    """
    return _story(connection, key, _lanes(connection), now)


def matching(wanted: Wanted) -> Select[Any]:
    """Select the ids of the items that answer to what is wanted."""
    conditions: list[ColumnElement[bool]] = []
    if wanted.word is not None:
        conditions.append(message.c.id.in_(_named(wanted.word)))
    if wanted.digests:
        mine = select(pseudonym.c.message).where(pseudonym.c.digest.in_(wanted.digests))
        conditions.append(message.c.id.in_(mine))
    if wanted.sender is not None:
        modality = (message.c.direction == Direction.OUT) & (message.c.account == wanted.sender)
        mail = or_(message.c.partner == wanted.sender, func.lower(message.c.from_address) == wanted.sender.lower())
        conditions.append(modality | ((message.c.direction == Direction.IN) & mail))
    if wanted.since is not None:
        conditions.append(message.c.received_at >= wanted.since)
    return select(message.c.id).where(*conditions)


def _named(word: str) -> Any:
    bare = word.strip().removeprefix("<").removesuffix(">")
    ids = [bare, f"<{bare}>"]
    return union(
        select(message.c.id).where(message.c.id == bare),
        select(message.c.id).where(message.c.message_id.in_(ids)),
        select(submission.c.message).where(submission.c.message_id.in_(ids)),
        select(instance.c.message).where(instance.c.study == bare),
        select(instance.c.message).where(instance.c.sop_instance == bare),
    )


def _lanes(connection: Connection) -> Mapping[str, dict[str, Any]]:
    found = {}
    for row in connection.execute(select(destination)):
        name = explanation.RELAY if row.name == RELAY else row.name.removeprefix(MAIL)
        found[name] = {
            "paused": bool(row.paused),
            "down_since": utc(row.down_since) if row.down_since else None,
            "trouble": row.trouble,
            "next_probe": utc(row.breaker_until) if row.breaker_until else None,
        }
    return found


def _story(connection: Connection, key: str, lanes: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    item = inventory.show_item(connection, key, now) | _more(connection, key)
    told = explanation.explain(item, lanes)
    brief = (
        "id",
        "direction",
        "outcome",
        "stage",
        "partner",
        "instances",
        "delivered",
        "code",
        "received",
        "message_id",
    )
    return {
        **{name: item[name] for name in brief},
        "headline": told.headline,
        "story": [asdict(sentence) for sentence in told.past],
        "next": asdict(told.next),
        "do": list(told.do),
    }


def _more(connection: Connection, key: str) -> dict[str, Any]:
    """What a story tells beyond what ``queue show`` does."""
    counts = (
        select(instance.c.study, instance.c.sop_class, func.count())
        .where(instance.c.message == key)
        .group_by(instance.c.study, instance.c.sop_class)
        .order_by(func.min(instance.c.number))
    )
    studies: dict[str, dict[str, int]] = {}
    for study, sop_class, count in connection.execute(counts):
        classes = studies.setdefault(study, {})
        classes[_class_name(sop_class)] = classes.get(_class_name(sop_class), 0) + count
    said = select(event.c.at, event.c.text).where(event.c.message == key, event.c.kind.in_(_REMARKED))
    return {
        "account": connection.scalar(select(message.c.account).where(message.c.id == key)),
        "content": [
            {"study": study, "instances": sum(classes.values()), "classes": list(classes)}
            for study, classes in studies.items()
        ],
        "remarks": [{"at": utc(at), "text": text} for at, text in connection.execute(said.order_by(event.c.id))],
    }


@lru_cache(maxsize=256)
def _class_name(uid: str) -> str:
    return UID(uid).name


# Events


CATEGORIES: Final = {
    "accepted": "import",
    "read": "import",
    "collecting": "collect",
    "complete": "collect",
    "composed": "export",
    "submitted": "export",
    "report": "export",
    "sent": "transfer",
    "asked": "transfer",
    "confirmed": "transfer",
    "in-doubt": "transfer",
    "destination-down": "destination",
    "destination-up": "destination",
    "relay-down": "destination",
    "relay-up": "destination",
    "notice-opened": "notice",
    "notice-closed": "notice",
}
"""What kind of line an event is, for who filters; with a person's name it is ``person``, and anything else ``item``."""


def events(connection: Connection, since: datetime | None, after: int = 0, last: int | None = None) -> list[Any]:
    """Read the next events, the oldest first; an empty list at the end. One page, so that nobody's memory is filled.

    Args:
        connection: Of a short transaction: a reader that is slow must not keep the ledger from tidying up.
        since: Those at this time or later.
        after: The id of the last event that was read.
        last: The id of the last event that is wanted.
    """
    columns = (event, message.c.direction, message.c.partner, message.c.door, message.c.peer)
    found = select(*columns).outerjoin(message, message.c.id == event.c.message).where(event.c.id > after)
    if since is not None:
        found = found.where(event.c.at >= since)
    if last is not None:
        found = found.where(event.c.id <= last)
    return list(connection.execute(found.order_by(event.c.id).limit(PAGE)))


def newest_event(connection: Connection) -> int:
    """The id of the last event there is, 0 when there is none."""
    return connection.scalar(select(func.max(event.c.id))) or 0


def listed(rows: list[Any]) -> Iterator[dict[str, Any]]:
    """Write events as the lines of the export and import list (AUD-1, AUD-2)."""
    for row in rows:
        yield {
            "at": utc(row.at),
            "category": "person" if row.who else CATEGORIES.get(row.kind, "item"),
            "kind": row.kind,
            "id": row.message,
            "direction": row.direction,
            "partner": row.partner,
            "door": row.door,
            "peer": row.peer,
            "destination": row.destination.removeprefix(MAIL) if row.destination else None,
            "who": row.who,
            "text": row.text,
        }
