"""What a person may do to an item: retry, hold, release, drop, resolve. Each is an event that names who did it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, or_, select, update

from gateway.errors import GatewayError
from gateway.ledger import submissions, tickets
from gateway.ledger.events import tell
from gateway.ledger.messages import DROPPED, MISMATCH, announce, fold
from gateway.ledger.notices import close_notice
from gateway.ledger.spool import Scrap
from gateway.ledger.tables import delivery, destination, message
from gateway.model import Direction, Outcome, Stage

UNDECIDED = (Outcome.WAITING, Outcome.HELD, Outcome.FAILED)
"""What a person may still decide about."""


class UnknownItemError(GatewayError):
    """No item has this id."""


class WrongStateError(GatewayError):
    """The item is not in a state in which the verb has a meaning."""


def retry(connection: Connection, key: str, now: datetime, who: str, *, force: bool) -> None:
    """Try an item again now: what waits, what failed, and with ``force`` also what is held or delivered.

    Raises:
        UnknownItemError: There is no such item.
        WrongStateError: Nothing of it can be tried.
    """
    row = _item(connection, key)
    if row.stage == Stage.RECEIVE:
        allowed = {Outcome.WAITING, Outcome.FAILED} | ({Outcome.HELD, Outcome.REFUSED} if force else set())
        if row.outcome not in allowed:
            raise WrongStateError(f"{key} is {row.outcome}", hint=_hint(row.outcome))
        _read_again(connection, row, now, who, "retried")
        return
    _demand_bytes(row)
    outcomes = [Outcome.WAITING, Outcome.FAILED]
    if force:
        outcomes += [Outcome.HELD, Outcome.DELIVERED]
    if row.direction == Direction.OUT:
        # An open collection that a person wants tried waits for nothing any more.
        count = submissions.requeue(connection, key, outcomes, now, doubtful=False)
    else:
        count = _requeue(connection, key, delivery.c.outcome.in_(outcomes), now, forced=force)
    if not count:
        raise WrongStateError(f"{key} is {row.outcome}", hint=_hint(row.outcome))
    _tell(connection, key, now, who, "retried", "to be tried again now")


def hold(connection: Connection, key: str, now: datetime, who: str) -> None:
    """Stop an item until a person releases it.

    Raises:
        UnknownItemError: There is no such item.
        WrongStateError: Nothing of it waits.
    """
    row = _item(connection, key)
    if row.outcome != Outcome.WAITING:
        raise WrongStateError(f"{key} is {row.outcome}", hint="only what waits can be held")
    _tell(connection, key, now, who, "held", "held")
    _close(connection, key, row.stage, [Outcome.WAITING], Outcome.HELD, "by-operator", now)


def release(connection: Connection, key: str, now: datetime, who: str) -> None:
    """Let a held item go on. The checks that held a message are made again: a person does not replace a signature.

    Raises:
        UnknownItemError: There is no such item.
        WrongStateError: Nothing of it is held.
    """
    row = _item(connection, key)
    if row.stage == Stage.RECEIVE:
        if row.outcome != Outcome.HELD:
            raise WrongStateError(f"{key} is {row.outcome}", hint=_hint(row.outcome))
        _read_again(connection, row, now, who, "released")
        return
    _demand_bytes(row)
    if row.direction == Direction.OUT:
        count = submissions.requeue(connection, key, [Outcome.HELD], now, doubtful=False)
    else:
        count = int(close_notice(connection, now, MISMATCH, key)) + _accept_problem(connection, key)
        count += _requeue(connection, key, delivery.c.outcome == Outcome.HELD, now)
    if not count:
        raise WrongStateError(f"nothing of {key} is held", hint=_hint(row.outcome))
    _tell(connection, key, now, who, "released", "released")


def drop(connection: Connection, key: str, now: datetime, who: str) -> list[Scrap]:
    """Refuse what is not delivered of an item; return where its bytes lie, for the caller who erases them.

    Raises:
        UnknownItemError: There is no such item.
        WrongStateError: Nothing of it is undecided.
    """
    row = _item(connection, key)
    if row.outcome not in UNDECIDED:
        raise WrongStateError(f"{key} is {row.outcome}", hint="only what waits, is held or failed can be dropped")
    _tell(connection, key, now, who, "dropped", "dropped")
    _close(connection, key, row.stage, UNDECIDED, Outcome.REFUSED, DROPPED, now)
    rows = connection.execute(select(message.c.blob, message.c.instances_blob).where(_with_repetitions(key)))
    return [*(Scrap(blob) for row in rows for blob in row if blob), *submissions.scraps(connection, [key])]


def erased(connection: Connection, key: str, now: datetime, who: str) -> None:
    """Remember that the bytes of an item were wiped by a person's word."""
    connection.execute(update(message).where(_with_repetitions(key)).values(purged_at=now))
    _tell(connection, key, now, who, "erased", "its bytes were wiped")


def resolve(connection: Connection, key: str, verdict: str, now: datetime, who: str) -> int:
    """Decide about the instances in doubt of an item: ``delivered``, ``resend`` or ``dropped``; return how many.

    Raises:
        UnknownItemError: There is no such item.
        WrongStateError: Nothing of it is in doubt.
    """
    row = _item(connection, key)
    doubtful = (delivery.c.sends_unknown > 0) & delivery.c.outcome.in_([Outcome.WAITING, Outcome.HELD])
    mine = (delivery.c.message == key) & doubtful
    if verdict == "resend":
        _demand_bytes(row)
        if row.direction == Direction.OUT:
            count = submissions.requeue(connection, key, UNDECIDED, now, doubtful=True)
        else:
            count = _requeue(connection, key, doubtful, now)
    else:
        outcome, code = (Outcome.DELIVERED, "by-operator") if verdict == "delivered" else (Outcome.REFUSED, DROPPED)
        if row.direction == Direction.OUT:
            count = submissions.close(connection, key, UNDECIDED, outcome, code, now, doubtful=True)
            return _resolved(connection, key, verdict, count, now, who)
        values = {"outcome": outcome, "code": code, "closed_at": now, "next_attempt": None}
        count = connection.execute(update(delivery).where(mine).values(values)).rowcount
    _resolved(connection, key, verdict, count, now, who)
    fold(connection, [key], now)
    return count


def _resolved(connection: Connection, key: str, verdict: str, count: int, now: datetime, who: str) -> int:
    if not count:
        raise WrongStateError(f"nothing of {key} is in doubt", hint=f"dicom-mail queue show {key}")
    _tell(connection, key, now, who, "resolved", f"{count} in doubt were resolved as {verdict}")
    return count


def _item(connection: Connection, key: str) -> Any:
    columns = (message.c.id, message.c.direction, message.c.outcome, message.c.stage, message.c.duplicate_of)
    row = connection.execute(
        select(*columns, message.c.purged_at, message.c.kind).where(message.c.id == key)
    ).one_or_none()
    if row is None:
        raise UnknownItemError(f"there is no item {key}", hint="dicom-mail queue list")
    if row.duplicate_of and row.kind == "partial":
        raise WrongStateError(
            f"{key} is a fragment: {row.duplicate_of} stands for the whole", hint=f"name {row.duplicate_of}"
        )
    if row.duplicate_of:
        raise WrongStateError(f"{key} repeats {row.duplicate_of} and has its outcome", hint=f"name {row.duplicate_of}")
    return row


def _with_repetitions(key: str) -> ColumnElement[bool]:
    return or_(message.c.id == key, message.c.duplicate_of == key)


def _demand_bytes(row: Any) -> None:
    if row.purged_at is not None:
        raise WrongStateError(f"the bytes of {row.id} were deleted", hint="ask the sender to send it again")


def _read_again(connection: Connection, row: Any, now: datetime, who: str, verb: str) -> None:
    _demand_bytes(row)
    key = row.id
    values = {"outcome": Outcome.WAITING, "code": None, "closed_at": None, "tries": 0, "crashes": 0}
    connection.execute(update(message).where(_with_repetitions(key)).values(values))
    _tell(connection, key, now, who, verb, f"{verb}: it will be read again")
    announce(connection, key, Outcome.WAITING, None, now)
    tickets.put(connection, f"receive:{key}", now)


def _requeue(
    connection: Connection, key: str, which: ColumnElement[bool], now: datetime, *, forced: bool = False
) -> int:
    mine = (delivery.c.message == key) & which
    names = list(connection.scalars(select(delivery.c.destination).where(mine).distinct()))
    values: dict[str, Any] = {"outcome": Outcome.WAITING, "code": None, "closed_at": None, "next_attempt": now}
    # What was stopped while it is on the wire waits for the answer that it gets there, and goes no second time.
    under_way = mine & delivery.c.sending & (delivery.c.outcome != Outcome.WAITING)
    count = connection.execute(update(delivery).where(under_way).values(values)).rowcount
    # It begins anew, proof of delivery included; whoever wants it sent does not ask whether it is there.
    values |= {"failures": 0, "answers": None, "aborted_at": None, "known": False, "forced": forced}
    values |= {"stored_at": None, "remark": None, "absences": 0, "transaction_uid": None}
    count += connection.execute(
        update(delivery).where(mine, ~delivery.c.sending).values(sends_unknown=0, **values)
    ).rowcount
    for name in names:
        # A person's word overrides the breaker: the next look sends at once, behind one probe.
        connection.execute(update(destination).where(destination.c.name == name).values(breaker_until=now))
        tickets.put(connection, f"store:{name}", now)
    fold(connection, [key], now)
    return count


def _close(
    connection: Connection, key: str, stage: str, old: Iterable[Outcome], new: Outcome, code: str, now: datetime
) -> None:
    values = {"outcome": new, "code": code, "closed_at": now}
    if stage == Stage.RECEIVE:
        connection.execute(update(message).where(_with_repetitions(key)).values(values))
        announce(connection, key, new, code, now)
        return
    if key.startswith(Direction.OUT):
        submissions.close(connection, key, list(old), new, code, now)
        return
    mine = (delivery.c.message == key) & delivery.c.outcome.in_(list(old))
    connection.execute(update(delivery).where(mine).values(next_attempt=None, **values))
    if code == DROPPED:
        unread = (message.c.id == key) & message.c.problem.is_not(None)
        connection.execute(update(message).where(unread).values(problem=DROPPED))
    fold(connection, [key], now)


def _accept_problem(connection: Connection, key: str) -> int:
    """Let it be that a part of a message could not be read: its good instances are what there is of it."""
    unread = (message.c.id == key) & message.c.problem.is_not(None) & (message.c.problem != DROPPED)
    return connection.execute(update(message).where(unread).values(problem=None)).rowcount


def _tell(connection: Connection, key: str, now: datetime, who: str, verb: str, text: str) -> None:
    tell(connection, now, verb, f"{text} (by {who})", message=key, who=who)


def _hint(outcome: str) -> str:
    return {
        Outcome.HELD: "release lets it go on; drop refuses it",
        Outcome.DELIVERED: "--force sends it again",
        Outcome.REFUSED: "it was refused for good; ask the sender to send it again",
    }.get(Outcome(outcome), "dicom-mail queue show tells its story")
