"""Questions that a person asks the ledger: what is in the queue, the story of one item, and the conservation proof.

All of it is read from the tables alone (R36), and comes as the JSON documents of the outer contract.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Select,
    Table,
    and_,
    case,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
    type_coerce,
)

from gateway.core.mailbox import REMEDY
from gateway.ledger import mailboxes, submissions
from gateway.ledger.notices import open_notices
from gateway.ledger.tables import (
    MAIL,
    Moment,
    collection,
    delivery,
    destination,
    event,
    finding,
    instance,
    is_mail,
    message,
    submission,
    ticket,
    total,
)
from gateway.ledger.verbs import UnknownItemError
from gateway.model import PROBLEMS, Outcome, Stage, utc

MOST_ITEMS = 10_000
"""Items in one list; a longer one says that it was cut."""

_DOUBTFUL = (delivery.c.sends_unknown > 0) & delivery.c.outcome.in_([Outcome.WAITING, Outcome.HELD])

_STAGE = case((message.c.kind == "report", literal(str(Stage.REPORT))), else_=message.c.stage)
"""The stage as people see it: mail that is a report waits for nothing in RECEIVE."""


def matching(
    *,
    outcome: str | None = None,
    stage: str | None = None,
    partner: str | None = None,
    direction: str | None = None,
    since: datetime | None = None,
) -> ColumnElement[bool]:
    """Make the condition for items that have all of these."""
    columns = ((message.c.outcome, outcome), (_STAGE, stage), (message.c.partner, partner))
    conditions = [
        column == value for column, value in (*columns, (message.c.direction, direction)) if value is not None
    ]
    if since is not None:
        conditions.append(message.c.received_at >= since)
    return and_(true(), *conditions)


def list_items(
    connection: Connection,
    now: datetime,
    *,
    outcome: str | None = None,
    stage: str | None = None,
    partner: str | None = None,
    most: int = MOST_ITEMS,
) -> dict[str, Any]:
    """List items, the newest first, with the notices that are open and the state of each destination and mailbox."""
    wanted = _items()
    for column, value in ((message.c.outcome, outcome), (_STAGE, stage), (message.c.partner, partner)):
        if value is not None:
            wanted = wanted.where(column == value)
    rows = connection.execute(wanted.order_by(message.c.received_at.desc(), message.c.id.desc()).limit(most + 1)).all()
    notices = [
        {"kind": one.kind, "about": one.about, "text": one.text, "do": one.hint, "since": utc(one.opened_at)}
        for one in open_notices(connection)
    ]
    return {
        "items": [_item(row, now) for row in rows[:most]],
        "cut": len(rows) > most,
        "notices": notices,
        "destinations": [_destination(row) for row in connection.execute(select(destination).order_by("name"))],
        "mailboxes": [_mailbox(one) for one in mailboxes.health(connection)],
    }


def _mailbox(one: mailboxes.Health) -> dict[str, Any]:
    return {
        "name": one.door,
        "state": one.state,
        "since": utc(one.since),
        "looked_at": utc(one.looked_at) if one.looked_at else None,
        "text": one.text,
        "do": REMEDY.get(one.state, ""),
    }


def list_page(
    connection: Connection,
    now: datetime,
    wanted: ColumnElement[bool],
    most: int,
    before: str | None = None,
) -> tuple[list[dict[str, Any]], bool]:
    """List a page of items, the newest first, and tell whether there are more. Counts only what the page shows.

    Args:
        connection: To read with.
        now: From which ages are counted.
        wanted: A condition on ``message``.
        most: Items on a page.
        before: The id of the last item of the page before; None for the first page.

    Raises:
        UnknownItemError: That last item is not kept any more.
    """
    if before is not None:
        since = connection.scalar(select(message.c.received_at).where(message.c.id == before))
        if since is None:
            raise UnknownItemError(f"there is no item {before}", hint="begin with the first page")
        wanted &= tuple_(message.c.received_at, message.c.id) < tuple_(literal(since, Moment), literal(before))
    order = (message.c.received_at.desc(), message.c.id.desc())
    keys = connection.scalars(select(message.c.id).where(wanted).order_by(*order).limit(most + 1)).all()
    rows = connection.execute(_items(keys[:most]).where(message.c.id.in_(keys[:most])).order_by(*order))
    return [_item(row, now) for row in rows], len(keys) > most


def _items(keys: Sequence[str] | None = None) -> Select[Any]:
    """Select items with the counts of their deliveries: all, or those of which alone they are then counted."""
    mine = delivery.c.message.in_(keys) if keys is not None else true()
    counts = (
        select(
            delivery.c.message,
            func.count(func.distinct(delivery.c.number)).label("instances"),
            func.sum(cast(delivery.c.outcome == Outcome.DELIVERED, Integer)).label("delivered"),
            func.max(delivery.c.sends).label("sends"),
            func.min(delivery.c.next_attempt).label("next_attempt"),
            func.sum(cast(_DOUBTFUL, Integer)).label("doubtful"),
        )
        .where(mine)
        .group_by(delivery.c.message)
        .subquery()
    )
    mine = ticket.c.key.in_([literal("receive:") + message.c.id, literal("compose:") + message.c.id])
    pending = select(func.min(ticket.c.due)).where(mine).scalar_subquery()
    return select(
        message,
        _STAGE.label("shown_stage"),
        counts.c.instances,
        counts.c.delivered,
        counts.c.sends,
        counts.c.next_attempt,
        counts.c.doubtful,
        pending.label("look_due"),
    ).outerjoin(counts, counts.c.message == message.c.id)


def _item(row: Any, now: datetime) -> dict[str, Any]:
    waiting = row.outcome == Outcome.WAITING
    due = (row.look_due if row.stage in {Stage.RECEIVE, Stage.COMPOSE} else row.next_attempt) if waiting else None
    return {
        "id": row.id,
        "direction": row.direction,
        "outcome": row.outcome,
        "stage": row.shown_stage,
        "partner": row.partner,
        "instances": row.instances or 0,
        "delivered": row.delivered or 0,
        "attempts": row.sends or 0,
        "next_attempt": utc(due) if due else None,
        "age_seconds": round(max((now - row.received_at).total_seconds(), 0), 3),
        "code": row.code,
        "message_id": row.message_id,
        "duplicate_of": None if row.kind == "partial" else row.duplicate_of,
        "part_of": row.duplicate_of if row.kind == "partial" else None,
        "doubtful": row.doubtful or 0,
        "urgent": bool(row.urgent),
        "size": row.size,
        "received": utc(row.received_at),
    }


def _destination(row: Any) -> dict[str, Any]:
    return {
        "name": row.name.removeprefix(MAIL),
        "paused": bool(row.paused),
        "down_since": utc(row.down_since) if row.down_since else None,
        "trouble": row.trouble,
        "answered": utc(row.answered_at) if row.answered_at else None,
        "next_probe": utc(row.breaker_until) if row.breaker_until else None,
    }


def original(connection: Connection, key: str) -> str:
    """Name the bytes of a mail as it came.

    Raises:
        UnknownItemError: There is no such item, or its bytes are gone.
    """
    row = connection.execute(select(message.c.blob, message.c.purged_at).where(message.c.id == key)).one_or_none()
    if row is None:
        raise UnknownItemError(f"there is no item {key}", hint="dicom-mail queue list")
    if row.blob is None or row.purged_at is not None:
        raise UnknownItemError(f"the mail of {key} is not kept any more")
    return str(row.blob)


def show_item(connection: Connection, key: str, now: datetime) -> dict[str, Any]:
    """Tell the whole story of one item.

    Raises:
        UnknownItemError: There is no such item.
    """
    row = connection.execute(_items([key]).where(message.c.id == key)).one_or_none()
    if row is None:
        raise UnknownItemError(f"there is no item {key}", hint="dicom-mail queue list")
    events = connection.execute(select(event.c.at, event.c.text).where(event.c.message == key).order_by(event.c.id))
    store = None
    if row.store_began_at and row.store_ended_at:
        store = (row.store_ended_at - row.store_began_at).total_seconds()
    return {
        **_item(row, now),
        "mails": _mails(connection, key),
        "door": row.door,
        "peer": row.peer,
        "routes": row.routes,
        "sha256": row.sha256,
        "kind": row.kind,
        "protection": row.protection,
        "purged": row.purged_at is not None,
        "events": [{"at": utc(at), "text": text} for at, text in events],
        "findings": _findings(connection, key),
        "instances_detail": _details(connection, key),
        "timing": {
            "receive_seconds": row.receive_seconds,
            "read_seconds": row.read_seconds,
            "store_seconds": store,
        },
    }


def _findings(connection: Connection, key: str) -> list[dict[str, Any]]:
    columns = (finding.c.code, finding.c.severity, finding.c.part.label("where"), finding.c.text)
    rows = connection.execute(select(*columns).where(finding.c.message == key).order_by(finding.c.id))
    return [dict(row) for row in rows.mappings()]


def _details(connection: Connection, key: str) -> list[dict[str, Any]]:
    rows = connection.execute(
        select(instance.c.sop_instance, instance.c.part, delivery)
        .join(delivery, and_(delivery.c.message == instance.c.message, delivery.c.number == instance.c.number))
        .where(instance.c.message == key)
        .order_by(instance.c.number, delivery.c.destination)
    )
    mails = submissions.mails_of(connection, key)
    return [
        {
            "sop_instance": row.sop_instance,
            "destination": row.destination.removeprefix(MAIL),
            "outcome": row.outcome,
            "sends": row.sends,
            "sends_unknown": row.sends_unknown,
            "status": None if row.status is None else f"0x{row.status:04X}",
            "mail": next(iter(mails.get(row.file_set, ())), None),
            "mails": mails.get(row.file_set, []),
            "code": row.code,
            "comment": row.comment,
            "next_attempt": utc(row.next_attempt) if row.next_attempt and row.outcome == Outcome.WAITING else None,
            "part": row.part,
            "sent_as": row.sent_syntax,
            "stored": utc(row.stored_at) if row.stored_at else None,
            "known": bool(row.known),
        }
        for row in rows
    ]


def _mails(connection: Connection, key: str) -> list[dict[str, Any]]:
    """The mails of a collection: which part of how many, how big, and what the relay said."""
    rows = connection.execute(select(submission).where(submission.c.message == key).order_by(submission.c.number))
    return [
        {
            "message_id": row.message_id,
            "part": row.part,
            "parts": row.parts,
            "size": row.size,
            "outcome": row.outcome,
            "code": row.code,
            "sends": row.sends,
            "sends_unknown": row.sends_unknown,
            "status": None if row.status is None else str(row.status),
            "comment": row.comment,
            "next_attempt": utc(row.next_attempt) if row.next_attempt and row.outcome == Outcome.WAITING else None,
        }
        for row in rows
    ]


def reconcile(connection: Connection, has_bytes: Callable[[str], bool]) -> dict[str, Any]:
    """Prove that everything taken in is accounted for (R34): in = delivered + waiting + refused + held + failed.

    What does not add up is counted as unaccounted: an outcome that does not follow from its parts, a row that waits
    for nothing, or bytes that are gone although somebody still needs them.

    Args:
        connection: Of one transaction, so that everything is seen at the same moment.
        has_bytes: Tells whether the spool holds a key.
    """
    astray = _astray(connection) | _without_bytes(connection, has_bytes)
    return {**_messages(connection, len(astray)), "instances": _instances(connection), "astray": sorted(astray)}


def _messages(connection: Connection, unaccounted: int) -> dict[str, Any]:
    counts = _counts(connection, "message", message)
    doubtful = connection.scalar(select(func.count(func.distinct(delivery.c.message))).where(_DOUBTFUL)) or 0
    return {**counts, "unaccounted": unaccounted, "doubtful": doubtful}


def _instances(connection: Connection) -> dict[str, Any]:
    counts = _counts(connection, "instance", delivery)
    doubtful = connection.scalar(select(func.count()).select_from(delivery).where(_DOUBTFUL)) or 0
    astray = or_((delivery.c.outcome == Outcome.WAITING) & delivery.c.next_attempt.is_(None), _unknown(delivery))
    unaccounted = connection.scalar(select(func.count()).select_from(delivery).where(astray)) or 0
    return {**counts, "unaccounted": unaccounted, "doubtful": doubtful}


def _counts(connection: Connection, unit: str, table: Table) -> dict[str, int]:
    """Count what came in, rows and purged ones, and by outcome; what has no outcome of ours came in all the same."""
    counts = dict.fromkeys(("in", *map(str, Outcome)), 0)
    purged = select(total.c.outcome, total.c.count).where(total.c.unit == unit)
    kept = select(table.c.outcome, func.count()).group_by(table.c.outcome)
    for outcome, count in (*connection.execute(purged), *connection.execute(kept)):
        counts["in"] += count
        if outcome in counts:
            counts[outcome] += count
    return counts


def _unknown(table: Table) -> ColumnElement[bool]:
    return table.c.outcome.not_in([str(outcome) for outcome in Outcome])


def _astray(connection: Connection) -> set[str]:
    """Find the items whose outcome does not follow from their parts, or that nobody will ever look at again."""

    def has(which: ColumnElement[bool]) -> ColumnElement[bool]:
        return exists().where(delivery.c.message == message.c.id, which)

    stored = message.c.stage.in_([Stage.STORE, Stage.SUBMIT]) & message.c.duplicate_of.is_(None)
    mail = exists().where(submission.c.message == message.c.id)
    open_mail = submission.c.outcome == Outcome.WAITING
    first = message.alias("first")
    worse = (
        stored & (message.c.outcome == fine) & has(delivery.c.outcome.in_(PROBLEMS[:at]))
        for at, fine in enumerate((*PROBLEMS, Outcome.DELIVERED))
    )
    wrong = or_(
        *worse,
        stored & ~has(delivery.c.outcome == message.c.outcome),
        has((delivery.c.outcome == Outcome.WAITING) & delivery.c.next_attempt.is_(None)),
        _unknown(message),
        mail.where(open_mail & submission.c.next_attempt.is_(None)),
        mail.where(_unknown(submission)),
        (message.c.outcome != Outcome.WAITING) & mail.where(open_mail),
        (message.c.stage == Stage.COMPOSE) & ~has(delivery.c.file_set.is_(None)),
        (message.c.stage == Stage.SUBMIT)
        & has((delivery.c.outcome == Outcome.WAITING) & delivery.c.file_set.is_(None)),
        exists().where(first.c.id == message.c.duplicate_of, first.c.outcome != message.c.outcome),
    )
    return set(connection.scalars(select(message.c.id).where(wrong)))


def _without_bytes(connection: Connection, has_bytes: Callable[[str], bool]) -> set[str]:
    needed = message.c.outcome.in_([Outcome.WAITING, Outcome.HELD, Outcome.FAILED]) & message.c.purged_at.is_(None)
    rows = connection.execute(select(message.c.id, message.c.blob, message.c.instances_blob).where(needed))
    astray = {key for key, *blobs in rows if not all(has_bytes(blob) for blob in blobs if blob)}
    for table in (instance, submission):
        undecided: ColumnElement[bool] = table.c.blob.is_not(None)
        if table is submission:
            undecided = submission.c.outcome.in_([Outcome.WAITING, Outcome.HELD, Outcome.FAILED])
        mine = select(message.c.id, table.c.blob).join(table, table.c.message == message.c.id)
        astray |= {key for key, blob in connection.execute(mine.where(needed, undecided)) if not has_bytes(blob)}
    return astray


def tickets_missing(connection: Connection) -> list[str]:
    """Name the tickets that rows want and nobody holds: what the reconciler puts."""
    reading = literal("receive:") + message.c.id
    unread = select(reading).where(
        message.c.outcome == Outcome.WAITING,
        message.c.stage == Stage.RECEIVE,
        message.c.duplicate_of.is_(None),
        ~exists().where(ticket.c.key == reading),
    )
    storing = literal("store:") + delivery.c.destination
    unsent = (
        select(storing)
        .where(delivery.c.outcome == Outcome.WAITING, ~exists().where(ticket.c.key == storing))
        .where(~is_mail(delivery.c.destination))
        .distinct()
    )
    composing = literal("compose:") + message.c.id
    uncomposed = select(composing).where(
        message.c.outcome == Outcome.WAITING,
        message.c.stage == Stage.COMPOSE,
        ~exists().where(ticket.c.key == composing),
    )
    unsubmitted = exists().where((submission.c.outcome == Outcome.WAITING) | submission.c.sending)
    lane = select(literal(submissions.LANE)).where(
        unsubmitted, ~exists().where(ticket.c.key == literal(submissions.LANE))
    )
    return [key for missing in (unread, unsent, uncomposed, lane) for key in connection.scalars(missing)]


@dataclass(frozen=True, slots=True)
class Census:
    """Counts for the metrics, by name.

    Attributes:
        messages: By outcome.
        instances: By destination and outcome.
        doubtful: Sends without a valid answer, by destination.
        oldest: Seconds that the oldest has waited, by destination.
        up: 1 for each destination that takes images, else 0.
        paused: 1 for each destination that a person paused, else 0.
        notices: Open ones, by kind.
        tickets: By stage.
        unconfirmed: Instances stored and not yet confirmed, by destination.
        answered: When each destination last answered, in seconds since the epoch; only those that ever did.
        relay: ``up`` and ``paused`` of the mail relay, as of a destination.
        stages: Items that wait, by stage.
        ages: Seconds that the oldest item has waited, by stage.
        sizes: Bytes of the items that wait, by stage.
    """

    messages: dict[str, float]
    instances: dict[tuple[str, ...], float]
    doubtful: dict[str, float]
    oldest: dict[str, float]
    up: dict[str, float]
    paused: dict[str, float]
    notices: dict[str, float]
    tickets: dict[str, float]
    unconfirmed: dict[str, float] = field(default_factory=dict)
    answered: dict[str, float] = field(default_factory=dict)
    relay: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    ages: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)


def census(connection: Connection, now: datetime, destinations: Collection[str]) -> Census:
    """Count everything that the metrics show."""
    zero: dict[str, float] = dict.fromkeys(destinations, 0.0)
    messages = {name: float(count) for name, count in _messages(connection, 0).items() if name in list(Outcome)}
    by_outcome = select(delivery.c.destination, delivery.c.outcome, func.count())
    instances = connection.execute(by_outcome.group_by(delivery.c.destination, delivery.c.outcome)).all()
    doubtful = select(delivery.c.destination, func.count()).where(_DOUBTFUL).group_by(delivery.c.destination)
    unproved = (delivery.c.outcome == Outcome.WAITING) & delivery.c.stored_at.is_not(None)
    unconfirmed = select(delivery.c.destination, func.count()).where(unproved).group_by(delivery.c.destination)
    waiting = (
        select(delivery.c.destination, func.min(message.c.received_at))
        .join(message, message.c.id == delivery.c.message)
        .where(delivery.c.outcome == Outcome.WAITING)
        .group_by(delivery.c.destination)
    )
    ages = {name: max((now - since).total_seconds(), 0.0) for name, since in connection.execute(waiting)}
    rows = connection.execute(select(destination).where(destination.c.name.in_(destinations))).all()
    stage = func.substr(ticket.c.key, 1, func.instr(ticket.c.key, ":") - 1)
    if connection.dialect.name == "postgresql":
        stage = func.split_part(ticket.c.key, ":", 1)
    kinds: dict[str, float] = {}
    for one in open_notices(connection):
        kinds[one.kind] = kinds.get(one.kind, 0.0) + 1
    return Census(
        messages,
        {(name, outcome): float(count) for name, outcome, count in instances},
        zero | {name: float(count) for name, count in connection.execute(doubtful)},
        zero | ages,
        dict.fromkeys(destinations, 1.0) | {row.name: float(row.breaker_until is None) for row in rows},
        zero | {row.name: float(row.paused) for row in rows},
        kinds,
        {name: float(count) for name, count in connection.execute(select(stage, func.count()).group_by(stage))},
        zero | {name: float(count) for name, count in connection.execute(unconfirmed)},
        {row.name: row.answered_at.timestamp() for row in rows if row.answered_at is not None},
        _relay(connection),
        *_of_stages(connection, now),
    )


def _relay(connection: Connection) -> dict[str, float]:
    how = submissions.condition(connection)
    return {"up": float(how.breaker_until is None), "paused": float(how.paused)}


def _of_stages(connection: Connection, now: datetime) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Count what waits in each stage, tell how long the oldest does, and how many bytes it is."""
    open_ones = (message.c.outcome == Outcome.WAITING) & message.c.duplicate_of.is_(None)
    columns = (func.count(), func.min(message.c.received_at), func.sum(message.c.size))
    rows = connection.execute(select(message.c.stage, *columns).where(open_ones).group_by(message.c.stage)).all()
    zero = dict.fromkeys((Stage.RECEIVE, Stage.STORE, Stage.COMPOSE, Stage.SUBMIT), 0.0)
    counts = {str(stage): value for stage, value in zero.items()}
    ages, sizes = counts.copy(), counts.copy()
    for stage, count, first, size in rows:
        counts[stage] = float(count)
        ages[stage] = max((now - first).total_seconds(), 0.0)
        sizes[stage] = float(size)
    return counts, ages, sizes


@dataclass(frozen=True, slots=True)
class Partners:
    """Counts of each partner's items, for the metrics. By partner and direction.

    Attributes:
        items: By outcome, too.
        last: When the last one came, in seconds since the epoch.
    """

    items: dict[tuple[str, ...], float] = field(default_factory=dict)
    last: dict[tuple[str, ...], float] = field(default_factory=dict)


def partners(connection: Connection) -> Partners:
    """Count the items of each partner. It looks at every item: not for every few seconds."""
    columns = (message.c.partner, message.c.direction, message.c.outcome)
    rows = connection.execute(
        select(*columns, func.count(), func.max(message.c.received_at))
        .where(message.c.partner.is_not(None))
        .group_by(*columns)
    )
    found = Partners()
    for partner, direction, outcome, count, last in rows:
        found.items[partner, direction, outcome] = float(count)
        before = found.last.get((partner, direction), 0.0)
        found.last[partner, direction] = max(before, last.timestamp())
    return found


@dataclass(frozen=True, slots=True)
class Delivered:
    """An item all of which was delivered.

    Attributes:
        direction: Which way.
        urgent: Its route says so.
        seconds: From the mail's last byte to the last answer of a PACS; from the last C-STORE of a collection to the
            last answer of the relay.
    """

    direction: str
    urgent: bool
    seconds: float


def delivered_after(connection: Connection, last: int) -> tuple[int, list[Delivered]]:
    """List what was delivered after an event, and name the last event there is now."""
    newest = connection.scalar(select(func.max(event.c.id))) or 0
    began = func.coalesce(collection.c.last_at, message.c.received_at)
    rows = connection.execute(
        select(message.c.direction, message.c.urgent, event.c.at, type_coerce(began, Moment))
        .join(message, message.c.id == event.c.message)
        .outerjoin(collection, collection.c.message == message.c.id)
        .where(event.c.id > last, event.c.id <= newest, event.c.kind == "now-delivered")
    )
    return newest, [
        Delivered(direction, bool(urgent), max((at - since).total_seconds(), 0.0))
        for direction, urgent, at, since in rows
    ]
