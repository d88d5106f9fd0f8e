"""What the console shows at a glance: how much is where, how old it is, and how the last day went.

Each question is one statement that an index answers, or counts only what is undecided: it is asked beside the running
gateway, again and again, with fifty thousand items in the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Float, case, cast, extract, func, select

from gateway.ledger.submissions import RELAY
from gateway.ledger.tables import MAIL, delivery, destination, event, mailbox, message, notice
from gateway.model import Direction, Outcome, Stage

AGES: Final = (60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600)
"""Upper bounds in seconds of the ages in a queue; what is older has a column of its own."""

DELAYS: Final = (10, 60, 300, 3600)
"""Upper bounds in seconds of the classes of mail-to-PACS delay; what took longer is a class of its own."""

HOURS: Final = 24


@dataclass(frozen=True, slots=True)
class Hour:
    """What one hour brought.

    Attributes:
        began: Its first moment, in UTC.
        received: Mails that came in it, reports and repetitions included.
        collected: Collections that began in it.
        delays: Of the mails of that hour that were delivered since: how many took how long, a number for each class.
    """

    began: datetime
    received: int
    collected: int
    delays: tuple[int, ...]


def last_day(connection: Connection, now: datetime) -> list[Hour]:
    """Count the items of each of the last 24 hours, this one included, the oldest first."""
    this_hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    first = this_hour - timedelta(hours=HOURS - 1)
    hour, delay = _hour(connection), _class_of_delay(connection)
    rows = connection.execute(
        select(hour, message.c.direction, delay, func.count())
        .where(message.c.received_at >= first)
        .group_by(hour, message.c.direction, delay)
    ).all()
    ways: dict[tuple[str, str], int] = {}
    delays: dict[tuple[str, int], int] = {}
    for began, direction, slow, count in rows:
        ways[began, direction] = ways.get((began, direction), 0) + count
        if direction == Direction.IN and slow is not None:
            delays[began, slow] = delays.get((began, slow), 0) + count
    hours = []
    for at in range(HOURS):
        moment = first + timedelta(hours=at)
        name = f"{moment:%Y-%m-%d %H}"
        counted = tuple(delays.get((name, one), 0) for one in range(len(DELAYS) + 1))
        hours.append(Hour(moment, ways.get((name, Direction.IN), 0), ways.get((name, Direction.OUT), 0), counted))
    return hours


def _hour(connection: Connection) -> ColumnElement[str]:
    if connection.dialect.name == "postgresql":
        return func.to_char(func.timezone("UTC", message.c.received_at), "YYYY-MM-DD HH24")
    return func.substr(message.c.received_at, 1, 13)


def _class_of_delay(connection: Connection) -> ColumnElement[int]:
    if connection.dialect.name == "postgresql":
        seconds: ColumnElement[Any] = cast(extract("epoch", message.c.closed_at - message.c.received_at), Float)
    else:
        seconds = (func.julianday(message.c.closed_at) - func.julianday(message.c.received_at)) * 86400
    delivered = (message.c.outcome == Outcome.DELIVERED) & (message.c.stage == Stage.STORE)
    classes = [(delivered & (seconds <= bound), at) for at, bound in enumerate(DELAYS)]
    return case(*classes, (delivered, len(DELAYS)), else_=None)


def counts(connection: Connection) -> dict[str, int]:
    """Count the items that are kept, by outcome."""
    found = connection.execute(select(message.c.outcome, func.count()).group_by(message.c.outcome))
    return dict.fromkeys(map(str, Outcome), 0) | {str(outcome): count for outcome, count in found}


def oldest(connection: Connection, most: int) -> list[Any]:
    """Name the items that have waited longest."""
    open_ones = (message.c.outcome == Outcome.WAITING) & message.c.duplicate_of.is_(None)
    columns = (message.c.id, message.c.direction, message.c.stage, message.c.partner, message.c.received_at)
    return list(connection.execute(select(*columns).where(open_ones).order_by(message.c.received_at).limit(most)))


@dataclass(frozen=True, slots=True)
class Shape:
    """The queue by age and place.

    Attributes:
        lanes: Items that wait, by destination; a number for each of the ages. The relay is ``relay``.
        stages: Items that are being read or collected, and so have no destination yet, by stage.
        persons: Items that wait for a person, by outcome.
    """

    lanes: Mapping[str, Sequence[int]]
    stages: Mapping[str, Sequence[int]]
    persons: Mapping[str, Sequence[int]]


def shape(connection: Connection, now: datetime) -> Shape:
    """Count what is undecided by age and place."""
    age = _class_of_age(now)
    undecided = message.c.outcome.in_([Outcome.WAITING, Outcome.HELD, Outcome.FAILED])
    items = connection.execute(
        select(message.c.outcome, message.c.stage, age, func.count())
        .where(undecided, message.c.duplicate_of.is_(None))
        .group_by(message.c.outcome, message.c.stage, age)
    ).all()
    stages: dict[str, list[int]] = {}
    persons = {str(Outcome.HELD): _ages(), str(Outcome.FAILED): _ages()}
    for outcome, stage, old, count in items:
        if outcome != Outcome.WAITING:
            persons[outcome][old] += count
        elif stage in {Stage.RECEIVE, Stage.COMPOSE}:
            stages.setdefault(stage, _ages())[old] += count
    return Shape(_lanes(connection, age), stages, persons)


def _lanes(connection: Connection, age: ColumnElement[int]) -> dict[str, list[int]]:
    pairs = (
        select(delivery.c.destination, delivery.c.message).where(delivery.c.outcome == Outcome.WAITING).distinct()
    ).subquery()
    rows = connection.execute(
        select(pairs.c.destination, age, func.count())
        .join(message, message.c.id == pairs.c.message)
        .where(message.c.stage != Stage.COMPOSE)
        .group_by(pairs.c.destination, age)
    )
    lanes: dict[str, list[int]] = {}
    for place, old, count in rows:
        # All mail leaves by the relay, whoever it is for.
        name = RELAY.removeprefix(MAIL) if place.startswith(MAIL) else place
        lanes.setdefault(name, _ages())[old] += count
    return lanes


def _ages() -> list[int]:
    return [0] * (len(AGES) + 1)


def _class_of_age(now: datetime) -> ColumnElement[int]:
    bounds = [(message.c.received_at > now - timedelta(seconds=bound), at) for at, bound in enumerate(AGES)]
    return case(*bounds, else_=len(AGES))


def destinations(connection: Connection) -> dict[str, Any]:
    """Read how each destination is, by the name of its row."""
    return {row.name: row for row in connection.execute(select(destination))}


def mailboxes(connection: Connection) -> dict[str, Any]:
    """Read how each mailbox is, by its door."""
    return {row.door: row for row in connection.execute(select(mailbox))}


def notices(connection: Connection, most: int) -> tuple[list[Any], int]:
    """Read the newest open notices, and count all of them."""
    is_open = notice.c.closed_at.is_(None)
    count = connection.scalar(select(func.count()).select_from(notice).where(is_open)) or 0
    return list(connection.execute(select(notice).where(is_open).order_by(notice.c.id.desc()).limit(most))), count


def newest_change(connection: Connection) -> int:
    """The number of the last thing that happened: when it grows, a page is out of date."""
    return connection.scalar(select(func.max(event.c.id))) or 0
