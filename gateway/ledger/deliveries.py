"""Deliveries in the ledger: one row per instance and destination, and the state of each destination.

STORE marks a window as ``sending``, sends it, and commits its outcomes together with the mark of the next window.
After a crash the marked rows are exactly the doubtful ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, bindparam, exists, func, insert, or_, select, update

from gateway.core.retry import Facts, Next
from gateway.ledger import tickets
from gateway.ledger.events import tell
from gateway.ledger.messages import fold
from gateway.ledger.notices import close_notice, open_notice, standing
from gateway.ledger.tables import delivery, destination, instance, is_mail, message
from gateway.model import Outcome, Stage

DOWN_BEFORE_NOTICE = timedelta(minutes=2)
"""How long a destination may be silent before a person is told: a PACS that restarts is no incident."""

ITEMS: Final = 256
"""Messages of which something is taken from the ledger at once: those whose turn comes first."""

FEWEST: Final = 32
"""Instances of each of them that are taken at least."""

FARTHEST = timedelta(hours=2)
"""No back-off is that long: a next attempt later than that was written by a clock that ran ahead, and is due (R29)."""


@dataclass(frozen=True, slots=True)
class Work:
    """One delivery that is due.

    Attributes:
        id: Of the delivery.
        message: The item it belongs to.
        sop_class: SOP Class UID.
        sop_instance: SOP Instance UID.
        transfer_syntax: Transfer Syntax UID.
        blob: Spool key of the file that holds its data set.
        start: Offset of the data set in that file.
        end: Offset behind it.
        received_at: When its message came.
        failures: Definite failures so far.
        unknown: Sends without a valid answer so far.
        number: Its place in its message.
        study: Study Instance UID.
        series: Series Instance UID.
        partner: Who sent it; empty when nobody's name is known.
        urgent: It goes before what is not.
        answers: Definite failures so far by code; None: none.
        aborted_at: When the peer first cut an association while it was on the wire; None: never.
        known: The same was stored or queued before.
        absences: How often it was said to be stored and was not.
    """

    id: int
    message: str
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    blob: str
    start: int
    end: int
    received_at: datetime
    failures: int
    unknown: int
    number: int = 0
    study: str = ""
    series: str = ""
    partner: str = ""
    urgent: bool = False
    answers: Mapping[str, int] | None = field(default=None, hash=False)
    aborted_at: datetime | None = None
    known: bool = False
    absences: int = 0


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of one delivery.

    Attributes:
        work: Which one.
        outcome: ``delivered``, ``waiting``, ``failed`` or ``held``.
        code: Why, when it is not delivered without remark.
        status: The DIMSE status, when a valid one came.
        comment: What else is known: a PDU or an exception by name.
        wait: Until the next attempt.
        sent: Whether it was on the wire at all.
        unknown: Whether it is one more send without a valid answer.
        failed: Whether it is one more definite failure.
        aborted: Whether the peer cut the association while it was on the wire.
        stored: Whether a success status came that is still to be proved.
        remark: What that status remarked.
        syntax: The transfer syntax it was transcoded to; None when it went as it came.
        change: What transcoding changed, in plain words.
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
    aborted: bool = False
    stored: bool = False
    remark: str | None = None
    syntax: str | None = None
    change: str = ""


def _ready(name: str, now: datetime, *, forced: bool = False) -> ColumnElement[bool]:
    """What may be sent to a destination now, or after a person's word alone."""
    ready = (
        (delivery.c.destination == name)
        & (delivery.c.outcome == Outcome.WAITING)
        & delivery.c.stored_at.is_(None)
        & ~delivery.c.sending
        & or_(delivery.c.next_attempt <= now, delivery.c.next_attempt > now + FARTHEST)
    )
    return ready & delivery.c.forced if forced else ready


_WORK: Final = (
    delivery.c.id,
    delivery.c.message,
    instance.c.sop_class,
    instance.c.sop_instance,
    instance.c.transfer_syntax,
    message.c.instances_blob,
    instance.c.start + instance.c.data_set,
    instance.c.start + instance.c.size,
    message.c.received_at,
    delivery.c.failures,
    delivery.c.sends_unknown,
    delivery.c.number,
    instance.c.study,
    instance.c.series,
    func.coalesce(message.c.partner, ""),
    message.c.urgent,
    delivery.c.answers,
    delivery.c.aborted_at,
    delivery.c.known,
    delivery.c.absences,
)
_SOURCES: Final = delivery.join(
    instance, (instance.c.message == delivery.c.message) & (instance.c.number == delivery.c.number)
).join(message, message.c.id == delivery.c.message)


def due(
    connection: Connection,
    name: str,
    now: datetime,
    most: int,
    besides: Collection[int] = (),
    *,
    forced: bool = False,
) -> list[Work]:
    """List what is due at a destination: urgent routes first, then partners and their messages in turn.

    However much waits, this looks at the messages that wait and at a few instances of the first of them.

    Args:
        connection: Of one transaction.
        name: The destination.
        now: The moment.
        most: How many at most.
        besides: Deliveries that are left out: they are in hand.
        forced: Only what a person wants to be sent now.
    """
    keys = _turns(connection, name, now, forced=forced)
    if not keys:
        return []
    share = max(FEWEST, -(-most // len(keys))) + len(besides)
    place = func.row_number().over(partition_by=delivery.c.message, order_by=delivery.c.id).label("place")
    mine = delivery.c.message.in_(keys) & _ready(name, now, forced=forced)
    some = select(delivery.c.id, place).where(mine).subquery()
    first = select(some.c.id).where(some.c.place <= share)
    rows = connection.execute(select(*_WORK).select_from(_SOURCES).where(delivery.c.id.in_(first)))
    turn = {key: at for at, key in enumerate(keys)}
    work = [Work(*row) for row in rows]
    work.sort(key=lambda one: (turn[one.message], one.id))
    return [one for one in work if one.id not in besides][:most]


def _turns(connection: Connection, name: str, now: datetime, *, forced: bool) -> list[str]:
    """Name the messages whose turn it is: the urgent ones, then one of each partner after the other."""
    ready = exists().where(delivery.c.message == message.c.id, _ready(name, now, forced=forced))
    turn = func.row_number().over(
        partition_by=(message.c.urgent, message.c.partner), order_by=(message.c.received_at, message.c.id)
    )
    return list(
        connection.scalars(
            select(message.c.id)
            .where(message.c.outcome == Outcome.WAITING, message.c.stage == Stage.STORE, ready)
            .order_by(message.c.urgent.desc(), turn, message.c.received_at, message.c.id)
            .limit(ITEMS)
        )
    )


def rivals(connection: Connection, name: str, work: Sequence[Work]) -> set[int]:
    """Name those whose SOP Instance UID went to the destination with other content: what it shows may be the other."""
    return {row.id for row in _namesakes(connection, name, work) if not row.alike and row.went}


def stored_before(connection: Connection, name: str, work: Sequence[Work], good: Collection[int]) -> set[int]:
    """Name those that the destination has by our own record: stored there before, or sent in doubt, and nothing else.

    Args:
        connection: Of one transaction.
        name: The destination.
        work: What it was asked to take.
        good: Statuses by which something is stored.
    """
    others = _namesakes(connection, name, work)
    last = (delivery.c.id.in_([one.id for one in work])) & delivery.c.status.in_(good)
    there = {row.id for row in others if row.alike and row.there}
    there.update(connection.scalars(select(delivery.c.id).where(last)))  # a person wanted it to be sent once more
    there.update(one.id for one in work if one.unknown or one.absences)
    return there - {row.id for row in others if not row.alike and row.went}


def _namesakes(connection: Connection, name: str, work: Sequence[Work]) -> Sequence[Row[Any]]:
    """List what else a destination got, or is to get, under the SOP Instance UIDs of some deliveries."""
    its, other = instance.alias("its"), delivery.alias("other")
    alike = (its.c.transfer_syntax == instance.c.transfer_syntax) & (
        its.c.data_set_sha256 == instance.c.data_set_sha256
    )
    there = or_(other.c.outcome == Outcome.DELIVERED, other.c.stored_at.is_not(None))
    went = there | (other.c.sends > 0)
    return connection.execute(
        select(delivery.c.id, alike.label("alike"), went.label("went"), there.label("there"))
        .join(instance, (instance.c.message == delivery.c.message) & (instance.c.number == delivery.c.number))
        .join(its, its.c.sop_instance == instance.c.sop_instance)
        .join(other, (other.c.message == its.c.message) & (other.c.number == its.c.number))
        .where(delivery.c.id.in_([one.id for one in work]), other.c.id != delivery.c.id, other.c.destination == name)
    ).all()


def next_due(connection: Connection, name: str) -> datetime | None:
    """When the next delivery of a destination is due; None when nothing waits for it."""
    waiting = (delivery.c.destination == name) & (delivery.c.outcome == Outcome.WAITING)
    first: datetime | None = connection.scalar(select(func.min(delivery.c.next_attempt)).where(waiting))
    return first


_UNMARK = update(delivery).where(delivery.c.id == bindparam("key")).values(sending=False, sends=delivery.c.sends - 1)
_SETTLE = (
    update(delivery)
    .where(delivery.c.id == bindparam("key"), delivery.c.outcome == Outcome.WAITING)
    .values(
        sending=False,
        outcome=bindparam("new_outcome"),
        code=bindparam("new_code"),
        status=bindparam("new_status"),
        comment=bindparam("new_comment"),
        next_attempt=bindparam("next"),
        closed_at=bindparam("closed"),
        sends=delivery.c.sends - bindparam("not_sent"),
        sends_unknown=delivery.c.sends_unknown + bindparam("unknown"),
        failures=delivery.c.failures + bindparam("failed"),
        answers=bindparam("new_answers"),
        aborted_at=func.coalesce(delivery.c.aborted_at, bindparam("aborted")),
        stored_at=bindparam("stored"),
        remark=bindparam("new_remark"),
        sent_syntax=bindparam("syntax"),
        forced=False,
    )
)
# A person may have held or dropped it while it was on the wire: what the peer said is then kept as a fact, no more.
_REMARK = (
    update(delivery)
    .where(delivery.c.id == bindparam("key"), delivery.c.outcome != Outcome.WAITING)
    .values(
        sending=False,
        status=bindparam("new_status"),
        comment=bindparam("new_comment"),
        sends=delivery.c.sends - bindparam("not_sent"),
        sends_unknown=delivery.c.sends_unknown + bindparam("unknown"),
    )
)


def mark(connection: Connection, window: Sequence[Work]) -> list[Work]:
    """Say which instances are about to be on the wire, and return them: a person may have held some meanwhile.

    What is on the wire already, or was stored and waits for its proof, goes no second time, however old the window is.

    Committed before the first byte of them leaves.
    """
    if not window:
        return []
    waiting = delivery.c.id.in_([one.id for one in window]) & (delivery.c.outcome == Outcome.WAITING)
    waiting &= delivery.c.stored_at.is_(None) & ~delivery.c.sending
    values = {"sending": True, "sends": delivery.c.sends + 1}
    marked = set(connection.scalars(update(delivery).where(waiting).values(values).returning(delivery.c.id)))
    return [one for one in window if one.id in marked]


def settle(
    connection: Connection,
    name: str,
    settled: Sequence[Settled],
    unsent: Sequence[Work],
    began: datetime,
    now: datetime,
) -> None:
    """Write down what became of a window: one outcome per instance; what never was on the wire is as before."""
    if unsent:
        connection.execute(_UNMARK, [{"key": one.id} for one in unsent])
    if not settled:
        return
    rows = [_settlement(one, now) for one in settled]
    connection.execute(_REMARK, [{k: v for k, v in row.items() if k in _REMARK_KEYS} for row in rows])
    connection.execute(_SETTLE, rows)
    if any(one.status is not None for one in settled):
        _change(connection, name, {"answered_at": now})
    keys = list(dict.fromkeys(one.work.message for one in settled))
    first = message.c.id.in_(keys) & message.c.store_began_at.is_(None)
    connection.execute(update(message).where(first).values(store_began_at=began))
    connection.execute(update(message).where(message.c.id.in_(keys)).values(store_ended_at=now))
    for key in keys:
        _tell_window(connection, name, key, [one for one in settled if one.work.message == key], now)
    fold(connection, keys, now)


_REMARK_KEYS = {"key", "new_status", "new_comment", "not_sent", "unknown"}


def _settlement(one: Settled, now: datetime) -> dict[str, Any]:
    return {
        "key": one.work.id,
        "new_outcome": one.outcome,
        "new_code": one.code,
        "new_status": one.status,
        "new_comment": one.comment or None,
        "next": now + one.wait if one.wait is not None else None,
        "closed": None if one.outcome is Outcome.WAITING else now,
        "not_sent": 0 if one.sent else 1,
        "unknown": int(one.unknown),
        "failed": int(one.failed),
        "new_answers": _count(one) or None,
        "aborted": now if one.aborted else None,
        "stored": now if one.stored else None,
        "new_remark": one.remark,
        "syntax": one.syntax,
    }


def _count(one: Settled) -> dict[str, int]:
    """Count a transient failure with those of its kind."""
    answers = dict(one.work.answers or {})
    if one.failed and one.code is not None:
        answers[one.code] = answers.get(one.code, 0) + 1
    return answers


def _tell_window(connection: Connection, name: str, key: str, settled: Sequence[Settled], now: datetime) -> None:
    groups: dict[tuple[str, str], int] = {}
    for one in settled:
        answer = f"0x{one.status:04X}" if one.status is not None else (one.comment or one.code or "no answer")
        what = "stored, to be confirmed" if one.stored else str(one.outcome)
        if one.unknown:
            ended = one.outcome is not Outcome.WAITING
            what = f"{one.outcome} as {one.code}, the last send unknown" if ended else "unknown"
        if one.syntax is not None:
            answer = f"{answer}, transcoded to {one.syntax}: {one.change}"
        groups[what, answer] = groups.get((what, answer), 0) + 1
    text = "; ".join(f"{count} {what} ({answer})" for (what, answer), count in groups.items())
    tell(connection, now, "sent", f"to {name}: {text}", message=key, destination=name)


def recover(connection: Connection, name: str, now: datetime, decide: Callable[[Facts], Next]) -> int:
    """Count as unknown, and space, what is marked as on the wire at a destination to which nobody is sending.

    After an unclean stop, or a lane that was cut off, it may have arrived or not. Returns how many there were.
    """
    statement = (
        select(delivery.c.id, delivery.c.message, delivery.c.destination, delivery.c.failures, delivery.c.sends_unknown)
        .add_columns(delivery.c.outcome, message.c.received_at)
        .join(message, message.c.id == delivery.c.message)
        .where(delivery.c.sending, delivery.c.destination == name)
    )
    rows = connection.execute(statement).all()
    for row in rows:
        follows = decide(Facts(row.failures, row.sends_unknown + 1, now - row.received_at))
        values: dict[str, Any] = {
            "sending": False,
            "sends_unknown": row.sends_unknown + 1,
            "comment": "gateway stopped",
        }
        if row.outcome == Outcome.WAITING:
            # What was being sent again for want of a proof is a send like any other: it may be there or not.
            held = follows.outcome is Outcome.HELD
            values |= {"outcome": follows.outcome, "code": "in-doubt"}
            values |= {"next_attempt": now + follows.wait if follows.wait else None, "closed_at": now if held else None}
        connection.execute(update(delivery).where(delivery.c.id == row.id).values(values))
    _tell_recovery(connection, rows, now)
    if rows:
        fold(connection, list(dict.fromkeys(row.message for row in rows)), now)
    return len(rows)


def _tell_recovery(connection: Connection, rows: Iterable[Row[Any]], now: datetime) -> None:
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        counts[row.message, row.destination] = counts.get((row.message, row.destination), 0) + 1
    for (key, name), count in counts.items():
        text = f"the gateway stopped while {count} of these were on the way to {name}: they may have arrived or not"
        tell(connection, now, "in-doubt", text, message=key, destination=name)


def orphan(connection: Connection, configured: Collection[str], now: datetime) -> int:
    """Hold what waits for a destination that the configuration no longer names; return how many.

    What is on the wire is left to its lane, which writes down what became of it and looks once more.
    """
    waiting = (delivery.c.outcome == Outcome.WAITING) & delivery.c.destination.not_in(list(configured))
    waiting &= ~delivery.c.sending & ~is_mail(delivery.c.destination)
    keys = list(connection.scalars(select(delivery.c.message).where(waiting).distinct()))
    if not keys:
        return 0
    values = {"outcome": Outcome.HELD, "code": "destination-removed", "closed_at": now, "next_attempt": None}
    count = connection.execute(update(delivery).where(waiting).values(values)).rowcount
    for key in keys:
        tell(connection, now, "held", "its destination is no longer configured", message=key)
    fold(connection, keys, now)
    return count


def retire(connection: Connection, configured: Mapping[str, str], now: datetime) -> None:
    """End the notices about destinations that nobody can mend any more: the configuration no longer means them.

    Args:
        connection: The transaction.
        configured: What each destination that there is must ``confirm``.
        now: When.
    """
    for name in standing(connection, "destination-down").keys() - configured.keys():
        well = {"failures": 0, "breaker_until": None, "down_since": None, "trouble": None}
        _change(connection, name, well)
        close_notice(connection, now, "destination-down", name)
    for name in standing(connection, "commitment-refused"):
        if configured.get(name) != "commitment":
            close_notice(connection, now, "commitment-refused", name)


@dataclass(frozen=True, slots=True)
class Condition:
    """How a destination is.

    Attributes:
        name: As the configuration names it.
        paused: A person stopped it.
        failures: Attempts in a row that did not reach it.
        breaker_until: No attempt before this; None when it is well.
        down_since: When it was last reached before it failed; None when it is well.
        trouble: What it said last; None when it is well.
        answered_at: When it last answered about an instance or an echo; None: never.
    """

    name: str
    paused: bool = False
    failures: int = 0
    breaker_until: datetime | None = None
    down_since: datetime | None = None
    trouble: str | None = None
    answered_at: datetime | None = field(default=None, compare=False)


def condition(connection: Connection, name: str) -> Condition:
    """Read how a destination is; one that was never used is well."""
    row = connection.execute(select(destination).where(destination.c.name == name)).one_or_none()
    if row is None:
        return Condition(name)
    return Condition(name, row.paused, row.failures, row.breaker_until, row.down_since, row.trouble, row.answered_at)


def _change(connection: Connection, name: str, values: dict[str, Any]) -> None:
    if connection.execute(update(destination).where(destination.c.name == name).values(values)).rowcount == 0:
        connection.execute(insert(destination).values({"name": name, **values}))


def trip(
    connection: Connection, before: Condition, trouble: str, until: datetime, now: datetime, *, urgent: bool
) -> None:
    """Open the breaker of a destination: nothing is sent until then, and then a probe goes first.

    Args:
        connection: The transaction.
        before: How it was.
        trouble: What happened, in plain words.
        until: No attempt before this.
        now: When.
        urgent: A person must know at once, because it will not pass by itself.
    """
    name, since = before.name, min(before.down_since or now, now)
    values = {"failures": before.failures + 1, "breaker_until": until, "down_since": since, "trouble": trouble}
    _change(connection, name, values)
    if before.trouble != trouble:
        tell(connection, now, "destination-down", f"{name}: {trouble}", destination=name)
    if urgent or now - since >= DOWN_BEFORE_NOTICE:
        hint = f"dicom-mail echo {name}; what is queued for it waits and is sent by itself"
        open_notice(
            connection, now, "destination-down", name, f"destination {name} does not take images: {trouble}", hint
        )


def mend(connection: Connection, before: Condition, now: datetime) -> None:
    """Close the breaker: the destination answered."""
    values = {"failures": 0, "breaker_until": None, "down_since": None, "trouble": None, "answered_at": now}
    _change(connection, before.name, values)
    if before.trouble is not None:
        tell(connection, now, "destination-up", f"{before.name} answers again", destination=before.name)
    close_notice(connection, now, "destination-down", before.name)


def answer(connection: Connection, name: str, now: datetime) -> None:
    """Note that a destination answered."""
    _change(connection, name, {"answered_at": now})


def pause(connection: Connection, name: str, paused: bool, now: datetime, who: str) -> None:
    """Stop or resume a destination by a person's word."""
    _change(connection, name, {"paused": paused})
    verb = "paused" if paused else "resumed"
    tell(connection, now, f"destination-{verb}", f"{name} was {verb}", destination=name, who=who)
    tickets.put(connection, f"store:{name}", now)
