"""Submissions in the ledger: the mails of a collection, each with one outcome, and the state of the relay.

SUBMIT marks a mail as ``sending``, submits it, and commits what the relay said. After a crash the marked rows are
exactly the doubtful ones. The deliveries of a file-set follow the mails that carry it, and the item follows those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, func, insert, or_, select, update

from gateway.core.dsn import Told
from gateway.core.retry import Facts, Next
from gateway.ledger import deliveries, tickets
from gateway.ledger.deliveries import Condition
from gateway.ledger.events import tell
from gateway.ledger.messages import DROPPED, fold
from gateway.ledger.notices import close_notice, open_notice
from gateway.ledger.spool import SEGMENT_SUFFIX, Scrap
from gateway.ledger.tables import MAIL, collection, delivery, destination, instance, message, submission
from gateway.model import Outcome, Stage, first_problem

RELAY: Final = f"{MAIL}relay"
"""The relay among the destinations: no AE may be named so."""

LANE: Final = "submit:relay"
"""The ticket of the one lane there is."""

TOO_BIG: Final = "mail-too-big"
"""The code of a mail that the relay does not take for its size: tried again, it is composed anew, smaller."""


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail that lies in the spool, ready to be submitted.

    Attributes:
        file_set: Which file-set of this composition it carries, or a piece of; counted from 1.
        part: Which mail of this composition it is, counted from 1.
        parts: How many there are.
        message_id: Fixed before the first try, with angle brackets.
        blob: Its key in the spool.
        size: Bytes.
    """

    file_set: int
    part: int
    parts: int
    message_id: str
    blob: str
    size: int


def add(
    connection: Connection,
    key: str,
    mails: Sequence[Mail],
    numbers: Sequence[Sequence[int]],
    recipient: str,
    now: datetime,
) -> bool:
    """Write down the mails of a collection, and which carries what; tell whether it was still as it was composed.

    Args:
        connection: The transaction.
        key: The item.
        mails: What was composed.
        numbers: The instances of each file-set.
        recipient: Address of the partner.
        now: When.
    """
    fresh = (delivery.c.message == key) & (delivery.c.outcome == Outcome.WAITING) & delivery.c.file_set.is_(None)
    waiting = set(connection.scalars(select(delivery.c.number).where(fresh)))
    if waiting != {number for some in numbers for number in some} or not mails:
        return False
    highest = select(func.max(submission.c.number), func.max(submission.c.file_set)).where(submission.c.message == key)
    last, sets = (found or 0 for found in connection.execute(highest).one())
    rows = [_row(key, last + at, sets, mail, recipient, now) for at, mail in enumerate(mails, 1)]
    connection.execute(insert(submission), rows)
    for at, some in enumerate(numbers, sets + 1):
        for begin in range(0, len(some), 500):
            mine = fresh & delivery.c.number.in_(some[begin : begin + 500])
            connection.execute(update(delivery).where(mine).values(file_set=at))
    _hand_over(connection, key, mails[0].message_id)
    count, size = len(mails), sum(mail.size for mail in mails)
    text = f"composed {count} mail{'' if count == 1 else 's'}, {size} bytes"
    tell(connection, now, "composed", text, message=key)
    tickets.put(connection, LANE, now)
    fold(connection, [key], now)
    return True


def _row(key: str, number: int, sets: int, mail: Mail, recipient: str, now: datetime) -> dict[str, Any]:
    return {
        "message": key,
        "number": number,
        "file_set": sets + mail.file_set,
        "part": mail.part,
        "parts": mail.parts,
        "message_id": mail.message_id,
        "envid": f"{key}.{number}",
        "recipient": recipient,
        "blob": mail.blob,
        "size": mail.size,
        "composed_at": now,
        "outcome": Outcome.WAITING,
        "next_attempt": now,
    }


def _hand_over(connection: Connection, key: str, message_id: str | None = None) -> None:
    values = {"stage": Stage.SUBMIT, "message_id": func.coalesce(message.c.message_id, message_id)}
    connection.execute(update(message).where(message.c.id == key).values(values))


def conclude(connection: Connection, key: str, now: datetime) -> None:
    """Let an item of which nothing is left to compose have the outcome of its parts."""
    _hand_over(connection, key)
    fold(connection, [key], now)


@dataclass(frozen=True, slots=True)
class Work:
    """A mail that is due.

    Attributes:
        message: The item it belongs to.
        number: Within the item.
        file_set: What it carries.
        part: Which mail of its composition it is.
        parts: How many those are.
        partner: Whom it is for.
        recipient: The address.
        message_id: Its Message-ID.
        envid: Its envelope identifier (RFC 3461 §4.4).
        blob: Its key in the spool.
        size: Bytes.
        received_at: When its collection was opened.
        failures: Definite failures so far.
        unknown: Submissions without a reply so far.
        first: Key in the spool of the first mail that carries the same file-set: itself, unless it is a later piece.
    """

    message: str
    number: int
    file_set: int
    part: int
    parts: int
    partner: str
    recipient: str
    message_id: str
    envid: str
    blob: str
    size: int
    received_at: datetime
    failures: int
    unknown: int
    first: str


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of one mail.

    Attributes:
        work: Which one.
        outcome: ``delivered``, ``waiting``, ``failed`` or ``held``.
        code: Why, when the relay did not take it.
        status: The relay's reply code, when one came.
        comment: Its enhanced status code, or what happened instead. Never its words: they hold addresses.
        wait: Until the next attempt.
        sent: Whether it was on the wire at all.
        unknown: Whether it is one more submission without a reply.
        failed: Whether it is one more definite failure.
    """

    work: Work
    outcome: Outcome
    code: str | None
    status: int | None
    comment: str
    wait: timedelta | None
    sent: bool
    unknown: bool
    failed: bool


_WAITING: Final = submission.c.outcome == Outcome.WAITING


def due(connection: Connection, now: datetime, most: int) -> list[Work]:
    """List the mails that are due: urgent routes first, then as their collections were opened."""
    own = ("message", "number", "file_set", "part", "parts")
    rest = ("recipient", "message_id", "envid", "blob", "size")
    pieces = submission.alias("pieces")
    same = (pieces.c.message == submission.c.message) & (pieces.c.file_set == submission.c.file_set)
    first = select(pieces.c.blob).where(same).order_by(pieces.c.number).limit(1).scalar_subquery()
    rows = connection.execute(
        select(*(submission.c[name] for name in own), collection.c.partner)
        .add_columns(*(submission.c[name] for name in rest), message.c.received_at)
        .add_columns(submission.c.failures, submission.c.sends_unknown, first)
        .join(message, message.c.id == submission.c.message)
        .join(collection, collection.c.message == submission.c.message)
        .where(_WAITING, ~submission.c.sending)
        .where(or_(submission.c.next_attempt <= now, submission.c.next_attempt > now + deliveries.FARTHEST))
        .order_by(message.c.urgent.desc(), message.c.received_at, submission.c.message, submission.c.number)
        .limit(most)
    )
    return [Work(*row) for row in rows]


def next_due(connection: Connection) -> datetime | None:
    """When the next mail is due; None when none waits."""
    first: datetime | None = connection.scalar(select(func.min(submission.c.next_attempt)).where(_WAITING))
    return first


def _mine(work: Work) -> ColumnElement[bool]:
    return (submission.c.message == work.message) & (submission.c.number == work.number)


def mark(connection: Connection, work: Work) -> bool:
    """Say that a mail is about to be on the wire; tell whether it still waits. Committed before its first byte."""
    values = {"sending": True, "sends": submission.c.sends + 1}
    marked = update(submission).where(_mine(work), _WAITING, ~submission.c.sending).values(values)
    return connection.execute(marked).rowcount > 0


def settle(connection: Connection, one: Settled, now: datetime) -> None:
    """Write down what became of a mail, for its instances and its item too."""
    work = one.work
    values: dict[str, Any] = {
        "sending": False,
        "sends": submission.c.sends - (0 if one.sent else 1),
        "sends_unknown": submission.c.sends_unknown + int(one.unknown),
        "failures": submission.c.failures + int(one.failed),
        "status": one.status,
        "comment": one.comment or None,
    }
    # A person may have held or dropped it while it was on the wire: what the relay said is then kept as a fact.
    connection.execute(update(submission).where(_mine(work), ~_WAITING).values(values))
    closed = None if one.outcome is Outcome.WAITING else now
    state = {"outcome": one.outcome, "code": one.code, "closed_at": closed}
    state["next_attempt"] = now + one.wait if one.wait is not None else None
    connection.execute(update(submission).where(_mine(work), _WAITING).values(values | state))
    if one.sent:
        # For an item on its way out this is the time at the relay.
        first = (message.c.id == work.message) & message.c.store_began_at.is_(None)
        connection.execute(update(message).where(first).values(store_began_at=now))
        connection.execute(update(message).where(message.c.id == work.message).values(store_ended_at=now))
        answer = " ".join(filter(None, [str(one.status or ""), one.comment])) or "no reply"
        what = "unknown" if one.unknown else str(one.outcome)
        text = f"mail {work.part} of {work.parts} to the relay: {what} ({answer})"
        tell(connection, now, "submitted", text, message=work.message)
    follow(connection, work.message, now)


def follow(connection: Connection, key: str, now: datetime) -> None:
    """Give the deliveries of an item the state of the mails that carry them, and the item theirs."""
    rows = connection.execute(select(submission).where(submission.c.message == key).order_by(submission.c.number)).all()
    for file_set in dict.fromkeys(row.file_set for row in rows):
        mails = [row for row in rows if row.file_set == file_set]
        worst = first_problem([Outcome(row.outcome) for row in mails])
        first = next(row for row in mails if row.outcome == worst)
        values = {
            "outcome": worst,
            "code": first.code,
            "comment": first.comment,
            "sends": max(row.sends for row in mails),
            "sends_unknown": max(row.sends_unknown for row in mails),
            "failures": max(row.failures for row in mails),
            "next_attempt": min((row.next_attempt for row in mails if row.next_attempt is not None), default=None),
            "closed_at": first.closed_at,
        }
        mine = (delivery.c.message == key) & (delivery.c.file_set == file_set)
        connection.execute(update(delivery).where(mine).values(values))
    fold(connection, [key], now)


def recover(connection: Connection, now: datetime, decide: Callable[[Facts], Next]) -> int:
    """Count as unknown, and space, what is marked as on the wire although nobody submits it; return how many.

    After an unclean stop the relay may have it or not: it is repeated with its Message-ID, so that it can be known.
    """
    lost = connection.execute(
        select(submission, message.c.received_at)
        .join(message, message.c.id == submission.c.message)
        .where(submission.c.sending)
    ).all()
    for row in lost:
        values: dict[str, Any] = {"sending": False, "sends_unknown": row.sends_unknown + 1}
        values["comment"] = "gateway stopped"
        if row.outcome == Outcome.WAITING:
            follows = decide(Facts(row.failures, row.sends_unknown + 1, now - row.received_at))
            values |= {"outcome": follows.outcome, "code": "in-doubt"}
            values |= {"next_attempt": now + follows.wait if follows.wait else None}
            values |= {"closed_at": now if follows.outcome is Outcome.HELD else None}
        mine = (submission.c.message == row.message) & (submission.c.number == row.number)
        connection.execute(update(submission).where(mine).values(values))
        text = f"the gateway stopped while mail {row.part} of {row.parts} was on the way: it may be there or not"
        tell(connection, now, "in-doubt", text, message=row.message)
    for key in dict.fromkeys(row.message for row in lost):
        follow(connection, key, now)
    return len(lost)


# What a person, or a report, makes of it


def requeue(connection: Connection, key: str, outcomes: Sequence[Outcome], now: datetime, *, doubtful: bool) -> int:
    """Want the parts of an item once more that have these outcomes; return how many there are.

    What the relay found too big is composed anew. Mails of which nothing is known are repeated as they are.
    """
    wanted = submission.c.outcome.in_(outcomes) & ~submission.c.sending & (submission.c.message == key)
    if doubtful:
        wanted &= submission.c.sends_unknown > 0
    count = 0
    again = {"outcome": Outcome.WAITING, "code": None, "closed_at": None, "failures": 0}
    if not doubtful:
        if {Outcome.FAILED} & set(outcomes):
            _compose_anew(connection, key, now)
        loose = (delivery.c.message == key) & delivery.c.file_set.is_(None) & delivery.c.outcome.in_(outcomes)
        count = connection.execute(update(delivery).where(loose).values(next_attempt=now, **again)).rowcount
    mails = update(submission).where(wanted).values(next_attempt=now, sends_unknown=0, **again)
    count += connection.execute(mails).rowcount
    follow(connection, key, now)
    # A person's word overrides the breaker: the next look submits at once, behind one probe.
    connection.execute(update(destination).where(destination.c.name == RELAY).values(breaker_until=now))
    tickets.put(connection, LANE, now)
    _want_composing(connection, key, now)
    return count


def _want_composing(connection: Connection, key: str, now: datetime) -> None:
    """Hand an item back to COMPOSE when something of it waits to be composed."""
    uncomposed = (delivery.c.message == key) & delivery.c.file_set.is_(None) & (delivery.c.outcome == Outcome.WAITING)
    if connection.scalar(select(func.count()).select_from(delivery).where(uncomposed)):
        anew = {"stage": Stage.COMPOSE, "tries": 0, "crashes": 0}
        connection.execute(update(message).where(message.c.id == key).values(anew))
        done = (collection.c.message == key) & collection.c.completed_at.is_(None)
        connection.execute(update(collection).where(done).values(completed_at=now))
        tickets.put(connection, f"compose:{key}", now)


def compose_anew(connection: Connection, work: Work, why: str, now: datetime) -> None:
    """Have a file-set composed anew whose mails must not leave as they are; nothing happens to one that does not wait.

    Args:
        connection: The transaction.
        work: One of its mails, which is not on the wire.
        why: In words for a person.
        now: When.
    """
    if connection.scalar(select(submission.c.outcome).where(_mine(work), ~submission.c.sending)) != Outcome.WAITING:
        return
    text = f"mail {work.part} of {work.parts} is composed anew: {why}"
    tell(connection, now, "composed-anew", text, message=work.message)
    again = {"outcome": Outcome.WAITING, "code": None, "closed_at": None, "next_attempt": now}
    _take_apart(connection, work.message, [work.file_set], again, now)
    _want_composing(connection, work.message, now)
    fold(connection, [work.message], now)


def _compose_anew(connection: Connection, key: str, now: datetime) -> None:
    """Take apart the file-sets of which no mail was ever taken because of its size."""
    failed = (submission.c.message == key) & (submission.c.code == TOO_BIG)
    taken = select(submission.c.file_set).where(submission.c.message == key, submission.c.outcome == Outcome.DELIVERED)
    sets = list(connection.scalars(select(submission.c.file_set).where(failed, submission.c.file_set.not_in(taken))))
    if sets:
        _take_apart(connection, key, sets, {"outcome": Outcome.FAILED}, now)


def _take_apart(connection: Connection, key: str, sets: Sequence[int], state: dict[str, Any], now: datetime) -> None:
    """Let the instances of file-sets lie in no mail any more, with a state of theirs; the mails stay on record."""
    mine = (submission.c.message == key) & submission.c.file_set.in_(sets)
    replaced = {"outcome": Outcome.REFUSED, "code": "composed-anew", "closed_at": now, "next_attempt": None}
    connection.execute(update(submission).where(mine, submission.c.outcome != Outcome.DELIVERED).values(replaced))
    parts = (delivery.c.message == key) & delivery.c.file_set.in_(sets)
    connection.execute(update(delivery).where(parts).values(file_set=None, **state))


def close(
    connection: Connection,
    key: str,
    old: Sequence[Outcome],
    new: Outcome,
    code: str,
    now: datetime,
    *,
    doubtful: bool = False,
) -> int:
    """Give the undecided parts of an item the outcome that a person chose; return how many instances that is."""
    values = {"outcome": new, "code": code, "closed_at": now, "next_attempt": None}
    mails = (submission.c.message == key) & submission.c.outcome.in_(old)
    parts = (delivery.c.message == key) & delivery.c.outcome.in_(old)
    if doubtful:
        mails &= submission.c.sends_unknown > 0
        parts &= delivery.c.sends_unknown > 0
    count = connection.scalar(select(func.count()).select_from(delivery).where(parts)) or 0
    connection.execute(update(submission).where(mails).values(values))
    if not doubtful:
        connection.execute(update(delivery).where(parts, delivery.c.file_set.is_(None)).values(values))
        ended = (collection.c.message == key) & collection.c.completed_at.is_(None)
        connection.execute(update(collection).where(ended).values(completed_at=now))
        _hand_over(connection, key)  # but what a doubt leaves to be composed waits for COMPOSE alone
    follow(connection, key, now)
    return count


def report(connection: Connection, told: Told, source: str, now: datetime) -> str | None:
    """Match a report with the mail it is about, and believe it; return the item, None when it is about none of ours.

    A mail that could not be delivered turns failed, with a notice (R25).
    """
    which = [submission.c.envid == told.envelope_id] if told.envelope_id else []
    which += [submission.c.message_id == told.message_id] if told.message_id else []
    rows = (
        connection.execute(select(submission).where(or_(*which)).order_by(submission.c.number)).all() if which else []
    )
    if not rows:
        return None
    row = next((one for one in rows if one.envid == told.envelope_id), rows[0])
    what = f"{told.action} {told.status}".strip()
    tell(connection, now, "report", f"mail {row.part} of {row.parts}: {what}, says {source}", message=row.message)
    if told.action == "failed" and row.code != DROPPED:
        mine = (submission.c.message == row.message) & (submission.c.number == row.number)
        values = {"outcome": Outcome.FAILED, "code": "bounced", "comment": told.status or None}
        connection.execute(update(submission).where(mine).values(closed_at=now, next_attempt=None, **values))
        follow(connection, row.message, now)
    key: str = row.message
    return key


def mails_of(connection: Connection, key: str) -> dict[int, list[str]]:
    """Message-IDs of the mails that carry each file-set of an item, in order."""
    found: dict[int, list[str]] = {}
    columns = (submission.c.file_set, submission.c.message_id)
    rows = connection.execute(select(*columns).where(submission.c.message == key).order_by(submission.c.number))
    for file_set, message_id in rows:
        found.setdefault(file_set, []).append(message_id)
    return found


# The relay


def condition(connection: Connection) -> Condition:
    """Read how the relay is."""
    return deliveries.condition(connection, RELAY)


def trip(
    connection: Connection, before: Condition, trouble: str, until: datetime, now: datetime, *, urgent: bool
) -> None:
    """Leave the relay alone until then; a person is told once, after a while or at once."""
    since = min(before.down_since or now, now)
    values = {"failures": before.failures + 1, "breaker_until": until, "down_since": since, "trouble": trouble}
    _change(connection, values)
    if before.trouble != trouble:
        tell(connection, now, "relay-down", f"relay: {trouble}", destination=RELAY)
    if urgent or now - since >= deliveries.DOWN_BEFORE_NOTICE:
        hint = "dicom-mail check; what is queued for it waits and is submitted by itself"
        open_notice(connection, now, "relay-down", "relay", f"the mail relay takes nothing: {trouble}", hint)


def mend(connection: Connection, before: Condition, now: datetime) -> None:
    """Close the breaker: the relay answered."""
    _change(connection, {"failures": 0, "breaker_until": None, "down_since": None, "trouble": None, "answered_at": now})
    if before.trouble is not None:
        tell(connection, now, "relay-up", "the relay answers again", destination=RELAY)
    close_notice(connection, now, "relay-down", "relay")


def pause(connection: Connection, paused: bool, now: datetime, who: str) -> None:
    """Stop or resume the relay by a person's word."""
    _change(connection, {"paused": paused})
    verb = "paused" if paused else "resumed"
    tell(connection, now, f"destination-{verb}", f"the relay was {verb}", destination=RELAY, who=who)
    tickets.put(connection, LANE, now)


def _change(connection: Connection, values: dict[str, Any]) -> None:
    if connection.execute(update(destination).where(destination.c.name == RELAY).values(values)).rowcount == 0:
        connection.execute(insert(destination).values({"name": RELAY, **values}))


def scraps(connection: Connection, keys: Sequence[str]) -> list[Scrap]:
    """Name the bytes of items on their way out that no other item needs."""
    mine = instance.c.message.in_(keys) & instance.c.blob.is_not(None)
    others = instance.alias("others")
    needed = (
        select(others.c.blob)
        .join(message, message.c.id == others.c.message)
        .where(others.c.blob == instance.c.blob, others.c.start == instance.c.start)
        .where(others.c.message.not_in(keys), message.c.purged_at.is_(None))
        .exists()
    )
    found = [
        # A segment may still grow, and other rows may speak of it: the sweep takes it when nothing needs it.
        Scrap(blob, start, size) if blob.endswith(SEGMENT_SUFFIX) else Scrap(blob)
        for blob, start, size in connection.execute(
            select(instance.c.blob, instance.c.start, instance.c.size).where(mine, ~needed).distinct()
        )
    ]
    mails = connection.scalars(select(submission.c.blob).where(submission.c.message.in_(keys)))
    return [*found, *map(Scrap, mails)]
