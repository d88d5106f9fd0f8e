"""Proof of delivery in the ledger: instances with a success status that wait for more, and commitment transactions.

A transaction is written down before the PACS hears of it, so that its report finds it whenever it comes, whoever
opens the association for it, and however often the gateway was started meanwhile (SC-3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, insert, or_, select, update

from gateway.core.confirmation import Step
from gateway.ledger import tickets
from gateway.ledger.deliveries import FARTHEST
from gateway.ledger.events import tell
from gateway.ledger.messages import fold
from gateway.ledger.tables import commitment, delivery, instance
from gateway.model import Outcome

MOST: Final = 500
"""Instances that one question is about."""

AWAITING: Final = "awaiting-confirmation"
NOT_CONFIRMED: Final = "not-confirmed"


@dataclass(frozen=True, slots=True)
class Unproved:
    """An instance with a success status whose proof is waited for.

    Attributes:
        id: Of the delivery.
        message: The item it belongs to.
        destination: Where it is said to be.
        sop_class: SOP Class UID.
        sop_instance: SOP Instance UID.
        study: Study Instance UID.
        series: Series Instance UID.
        stored_at: When the success status came.
        remark: What that status remarked.
        absences: How often it was found absent when the time was over.
        transaction_uid: Under which commitment was asked for; None: under none that is alive.
    """

    id: int
    message: str
    destination: str
    sop_class: str
    sop_instance: str
    study: str
    series: str
    stored_at: datetime
    remark: str | None
    absences: int
    transaction_uid: str | None


@dataclass(frozen=True, slots=True)
class Proof:
    """What was learned of one instance.

    Attributes:
        about: Which one.
        step: What follows.
        wait: Until it is looked at again; for ``look`` alone.
        comment: What the PACS said, in plain words.
    """

    about: Unproved
    step: Step
    wait: timedelta | None
    comment: str


_COLUMNS: Final = (
    delivery.c.id,
    delivery.c.message,
    delivery.c.destination,
    instance.c.sop_class,
    instance.c.sop_instance,
    instance.c.study,
    instance.c.series,
    delivery.c.stored_at,
    delivery.c.remark,
    delivery.c.absences,
    delivery.c.transaction_uid,
)
_SOURCES: Final = delivery.join(
    instance, (instance.c.message == delivery.c.message) & (instance.c.number == delivery.c.number)
)
_WAITS: Final = (delivery.c.outcome == Outcome.WAITING) & delivery.c.stored_at.is_not(None)
_HELD: Final = (
    (delivery.c.outcome == Outcome.HELD) & (delivery.c.code == NOT_CONFIRMED) & delivery.c.stored_at.is_not(None)
)
"""Held for want of a proof, which may still come: a report has no time by which it must."""


def due(connection: Connection, name: str, now: datetime, most: int = MOST) -> list[Unproved]:
    """List the instances of a destination whose proof is to be looked for now, the longest waiting first."""
    when = or_(delivery.c.next_attempt <= now, delivery.c.next_attempt > now + FARTHEST)
    mine = (delivery.c.destination == name) & _WAITS & when
    return _list(connection, mine, most)


def _list(connection: Connection, which: ColumnElement[bool], most: int | None = None) -> list[Unproved]:
    rows = connection.execute(
        select(*_COLUMNS)
        .select_from(_SOURCES)
        .where(which)
        .order_by(delivery.c.next_attempt, delivery.c.id)
        .limit(most)
    )
    return [Unproved(*row) for row in rows]


def ask(connection: Connection, name: str, uid: str, asked: Sequence[Unproved], again: datetime, now: datetime) -> None:
    """Write down that commitment is asked for, before it is.

    Args:
        connection: The transaction.
        name: The destination.
        uid: The Transaction UID, never used before (SC-1).
        asked: What for.
        again: When to look whether a report came.
        now: When.
    """
    connection.execute(insert(commitment).values(transaction_uid=uid, destination=name, requested_at=now))
    mine = delivery.c.id.in_([one.id for one in asked]) & _WAITS
    connection.execute(update(delivery).where(mine).values(transaction_uid=uid, next_attempt=again))
    for key, count in _counts(asked).items():
        tell(connection, now, "asked", f"{name} was asked to answer for {count}", message=key, destination=name)


def end(connection: Connection, uid: str, now: datetime) -> bool:
    """End a transaction: its UID is dead (SC-6). Tells whether it was alive."""
    alive = (commitment.c.transaction_uid == uid) & commitment.c.closed_at.is_(None)
    return connection.execute(update(commitment).where(alive).values(closed_at=now)).rowcount > 0


def report(
    connection: Connection, uid: str, decide: Callable[[Unproved], Proof], now: datetime
) -> list[Unproved] | None:
    """Write down what a report says; return what it was about, None when no transaction of this UID is alive."""
    if not end(connection, uid, now):
        return None
    asked = _list(connection, (delivery.c.transaction_uid == uid) & _WAITS)
    late = [decide(one) for one in _list(connection, (delivery.c.transaction_uid == uid) & _HELD)]
    settle(connection, [*map(decide, asked), *(one for one in late if one.step is Step.DELIVERED)], now)
    return [*asked, *(one.about for one in late)]


def settle(connection: Connection, proofs: Sequence[Proof], now: datetime) -> None:
    """Write down what was learned, one step for each instance."""
    for proof in proofs:
        mine = (delivery.c.id == proof.about.id) & (or_(_WAITS, _HELD) if proof.step is Step.DELIVERED else _WAITS)
        connection.execute(update(delivery).where(mine).values(_values(proof, now)))
    told = [one for one in proofs if one.step is not Step.LOOK]
    keys = list(dict.fromkeys(one.about.message for one in told))
    for key in keys:
        _tell(connection, key, [one for one in told if one.about.message == key], now)
    if keys:
        fold(connection, keys, now)
    for name in dict.fromkeys(one.about.destination for one in proofs):
        tickets.put(connection, f"store:{name}", now)


def _values(proof: Proof, now: datetime) -> dict[str, Any]:
    values: dict[str, Any] = {"transaction_uid": None, "comment": proof.comment or None}
    again = {"stored_at": None, "remark": None, "absences": proof.about.absences + 1, "code": NOT_CONFIRMED}
    match proof.step:
        case Step.DELIVERED:
            closed = {"outcome": Outcome.DELIVERED, "code": proof.about.remark}
            return values | closed | {"closed_at": now, "next_attempt": None}
        case Step.SEND:
            return values | again | {"next_attempt": now}
        case Step.HOLD:
            held = {"outcome": Outcome.HELD, "code": NOT_CONFIRMED, "closed_at": now, "next_attempt": None}
            held |= {"absences": proof.about.absences + 1, "transaction_uid": proof.about.transaction_uid}
            return values | held
        case Step.LOOK:
            return values | {"next_attempt": now + (proof.wait or timedelta())}


def wait(connection: Connection, waiting: Mapping[int, datetime]) -> None:
    """Look again later for what is under way; nothing else changes."""
    for key, moment in waiting.items():
        connection.execute(update(delivery).where((delivery.c.id == key) & _WAITS).values(next_attempt=moment))


_WORDS: Final = {
    Step.DELIVERED: "confirmed",
    Step.SEND: "not there although a success status came, to be sent again",
    Step.HOLD: "held: a success status came, but no proof",
}


def _tell(connection: Connection, key: str, proofs: Sequence[Proof], now: datetime) -> None:
    groups: dict[tuple[Step, str], int] = {}
    for one in proofs:
        groups[one.step, one.comment] = groups.get((one.step, one.comment), 0) + 1
    text = "; ".join(f"{count} {_WORDS[step]} ({comment})" for (step, comment), count in groups.items())
    name = proofs[0].about.destination
    tell(connection, now, "confirmed", f"at {name}: {text}", message=key, destination=name)


def _counts(asked: Sequence[Unproved]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in asked:
        counts[one.message] = counts.get(one.message, 0) + 1
    return counts
