"""Fragments in the ledger (RFC 2046 §5.2.2): which belong together, what is missing, and how long it was waited for.

The fragment that comes first leads its set: its row stands for the whole message, waits in RECEIVE until all came, and
owns the instances that are read. Each other row has its outcome, as a repeated mail has that of the first, so that one
release, one drop and one notice are about the whole. Every fragment is put into its set in the transaction that wakes
the lead: a crash at any moment leaves it in the set or still to be looked at, never in between (R10, R26).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Row, case, delete, func, insert, or_, select, update

from gateway.ledger import messages, tickets
from gateway.ledger.events import tell
from gateway.ledger.notices import close_notice
from gateway.ledger.tables import fragment, fragment_set, message
from gateway.model import Fragment, Outcome, Stage

WAITING: Final = "fragment-waiting"
"""The code of a set whose other fragments have not come."""

INCOMPLETE: Final = "fragment-incomplete"
"""The code of a set that was waited for in vain."""

CONFLICT: Final = "fragment-conflict"
"""The code of two contents for one place: nobody but a person can say which belongs there."""

LIMIT: Final = "fragment-limit"
"""The code of a fragment that would need more than its sender may."""

MOST_SETS: Final = 100
"""Sets of one sender that wait at the same time."""

MOST_WHOLES: Final = 4
"""How many messages of the biggest size the waiting fragments of one sender may fill."""

LONGEST_LOOK: Final = timedelta(hours=2)
"""What one look adds to the time waited at most: neither a jump of the clock nor a stop expires a set (R29)."""

_MOST_NAMED: Final = 20
"""Missing fragments that are named one by one."""

_OPEN: Final = (message.c.outcome == Outcome.WAITING) & (message.c.stage == Stage.RECEIVE)


@dataclass(frozen=True, slots=True)
class Caps:
    """What the fragments of one sender may need (PRT-8).

    Attributes:
        fragments: Of one set.
        size: Bytes of one whole message.
    """

    fragments: int
    size: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A fragment on its way to its set.

    Attributes:
        message: The row it came as, or that leads the set whose whole it is.
        fragment: What its header says.
        sender: Whom it is from; an id alone is not trusted (PRT-7).
        recipients: To whom.
        body_sha256: What tells it from another one with the same number.
        size: Bytes of its body.
        joined: The set whose whole it is (PRT-6); None for a mail as it came.
    """

    message: str
    fragment: Fragment
    sender: str
    recipients: tuple[str, ...]
    body_sha256: str
    size: int
    joined: int | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a set is.

    Attributes:
        id: Of the set.
        total: How many belong to it; None while no fragment said so.
        numbers: Which are here, in order.
        recipients: To whom they were sent, all together.
    """

    id: int
    total: int | None
    numbers: tuple[int, ...]
    recipients: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether all are here."""
        return len(self.numbers) == self.total

    @property
    def missing(self) -> list[int]:
        """Which are not here, as far as is known."""
        here = set(self.numbers)
        return [number for number in range(1, (self.total or self.numbers[-1]) + 1) if number not in here]

    def __str__(self) -> str:
        """Say for people what is here and what is not."""
        count, absent = len(self.numbers), self.missing
        text = f"{count}{f' of {self.total}' if self.total else ''} {'is' if count == 1 else 'are'} here"
        if absent:
            more = f" and {len(absent) - _MOST_NAMED} more" if len(absent) > _MOST_NAMED else ""
            text += f", missing {', '.join(map(str, absent[:_MOST_NAMED]))}{more}"
        return text if self.total else f"{text}; how many there are is not known yet"


@dataclass(frozen=True, slots=True)
class Source:
    """Where one fragment comes from: bytes in the spool, or fragments that are to be joined first (PRT-6)."""

    blob: str
    size: int
    fragments: tuple[Source, ...] = ()

    @property
    def blobs(self) -> Iterator[str]:
        """Everything in the spool that is needed for it."""
        if not self.fragments:
            yield self.blob
        for one in self.fragments:
            yield from one.blobs


def standing(connection: Connection, lead: str) -> Standing | None:
    """How far the set is that a message leads; None when it leads none."""
    newest = select(func.max(fragment_set.c.id)).where(fragment_set.c.lead == lead)
    key = connection.scalar(newest)
    return None if key is None else _standing(connection, key)


def _standing(connection: Connection, key: int) -> Standing:
    columns = (fragment_set.c.total, fragment_set.c.recipients)
    row = connection.execute(select(*columns).where(fragment_set.c.id == key)).one()
    numbers = select(fragment.c.number).where(fragment.c.fragment_set == key).order_by(fragment.c.number)
    return Standing(key, row.total, tuple(connection.scalars(numbers)), tuple(row.recipients))


def sources(connection: Connection, key: int) -> tuple[Source, ...]:
    """Where the fragments of a set lie, in the order of their numbers."""
    rows = connection.execute(
        select(message.c.blob, message.c.size, fragment.c.joined)
        .join(message, message.c.id == fragment.c.message)
        .where(fragment.c.fragment_set == key)
        .order_by(fragment.c.number)
    ).all()
    return tuple(Source(row.blob, row.size, sources(connection, row.joined) if row.joined else ()) for row in rows)


def digest(connection: Connection, key: int) -> str:
    """What tells the whole of a set from another one, without reading it: the bodies it is made of."""
    bodies = select(fragment.c.body_sha256).where(fragment.c.fragment_set == key).order_by(fragment.c.number)
    return _sha256(" ".join(connection.scalars(bodies)))


def take(connection: Connection, piece: Piece, caps: Caps, now: datetime) -> Standing | None:
    """Put a fragment into its set, or begin one; return how far the set is, or None when another message leads it.

    A fragment that is there already is a repetition. One that contradicts what is there is held and so is the set,
    since nobody can tell which of the two is foreign; one for which its sender has no room is held alone.
    """
    mine = (message.c.id == piece.message) & message.c.duplicate_of.is_(None) & _OPEN
    if connection.execute(update(message).where(mine).values(kind="partial")).rowcount == 0:
        return None  # a person was quicker
    number = piece.fragment.number
    found = _find(connection, piece)
    if len(found) > 1:
        _hold(connection, piece, CONFLICT, f"fragment {number} belongs to one of {len(found)} sets", now)
        return None
    place = found[0] if found else None
    if place is not None and place.there not in {None, piece.body_sha256}:
        text = f"there are two fragments {number} with different content"
        _suspect(connection, place, f"{text}: {piece.message} has the other one", now)
        _hold(connection, piece, CONFLICT, f"{text}: the other one belongs to {place.top}", now)
        return None
    if place is not None and place.there is not None:
        _repeat(connection, piece, place, now)
        return None
    if wrong := _excess(connection, piece, place, caps):
        _hold(connection, piece, LIMIT, f"fragment {number}: {wrong}", now)
        return None
    return _put(connection, piece, place, now)


def _find(connection: Connection, piece: Piece) -> list[Row[Any]]:
    """Find where a fragment belongs: where it is already, else where it is missing, else what it contradicts."""
    rows = [row for row in _sets(connection, piece) if _may_belong(row, piece)]
    repeated = [row for row in rows if row.there == piece.body_sha256]
    missing = [row for row in rows if row.there is None]
    return repeated[:1] or missing or rows[:1]


def _sets(connection: Connection, piece: Piece) -> Sequence[Row[Any]]:
    """Every set of the same sender and id, with what it has in the place of this fragment."""
    there = case((fragment.c.number == piece.fragment.number, fragment.c.body_sha256))
    return connection.execute(
        select(
            fragment_set.c.id,
            fragment_set.c.total,
            fragment_set.c.recipients,
            func.coalesce(message.c.duplicate_of, message.c.id).label("top"),
            message.c.outcome,
            message.c.stage,
            message.c.code,
            func.count().label("count"),
            func.max(fragment.c.number).label("highest"),
            func.sum(fragment.c.size).label("size"),
            func.max(there).label("there"),
        )
        .join(message, message.c.id == fragment_set.c.lead)
        .join(fragment, fragment.c.fragment_set == fragment_set.c.id)
        .where(
            fragment_set.c.sender == _sha256(piece.sender),
            fragment_set.c.identity == _sha256(piece.fragment.id),
            fragment_set.c.id != (piece.joined or 0),
            message.c.outcome != Outcome.REFUSED,
        )
        .group_by(fragment_set.c.id, message.c.id)
        .order_by(fragment_set.c.id)
    ).all()


def _may_belong(row: Row[Any], piece: Piece) -> bool:
    """Tell whether a set is the one a fragment means: an id may be used again (AMB-34)."""
    total = row.total or piece.fragment.total
    if piece.fragment.total not in {None, total} or (total and max(row.highest, piece.fragment.number) > total):
        return False
    if _is_open(row):
        return True
    # What was read is not read again: only a repetition that asks for nothing new belongs to it.
    return bool(row.there == piece.body_sha256 and set(piece.recipients) <= set(row.recipients))


def _is_open(row: Row[Any]) -> bool:
    unread = row.outcome == Outcome.WAITING and row.stage == Stage.RECEIVE
    return bool(unread or row.count != row.total or row.code == CONFLICT)


def _excess(connection: Connection, piece: Piece, place: Row[Any] | None, caps: Caps) -> str | None:
    """Say what of a fragment is more than its sender may have (PRT-8)."""
    if max(piece.fragment.number, piece.fragment.total or 0) > caps.fragments:
        return f"it is one of more than {caps.fragments}"
    if (place.size if place else 0) + piece.size > caps.size:
        return f"the whole is bigger than {caps.size} bytes"
    sets, size = connection.execute(
        select(func.count(fragment_set.c.id.distinct()), func.coalesce(func.sum(fragment.c.size), 0))
        .select_from(fragment_set)
        .join(message, message.c.id == fragment_set.c.lead)
        .join(fragment, fragment.c.fragment_set == fragment_set.c.id)
        .where(fragment_set.c.sender == _sha256(piece.sender), _OPEN)
    ).one()
    if place is None and sets >= MOST_SETS:
        return f"its sender has {sets} messages of which fragments are missing"
    if size + piece.size > MOST_WHOLES * caps.size:
        return f"its sender has {size} bytes of fragments that wait for others"
    return None


def _hold(connection: Connection, piece: Piece, code: str, text: str, now: datetime) -> None:
    messages.hold(connection, piece.message, code, text, now)


def _suspect(connection: Connection, place: Row[Any], text: str, now: datetime) -> None:
    """Hold a set that may hold something foreign.

    One that is held for what is missing is held for this from now on: what is missing must not make it go on.
    """
    if place.outcome != Outcome.HELD or place.code != INCOMPLETE:
        messages.hold(connection, place.top, CONFLICT, text, now)
        return
    whole = or_(message.c.id == place.top, message.c.duplicate_of == place.top)
    connection.execute(update(message).where(whole).values(code=CONFLICT))
    tell(connection, now, "held", text, message=place.top)
    close_notice(connection, now, Outcome.HELD, place.top)  # it is about something else now, and told anew
    messages.announce(connection, place.top, Outcome.HELD, CONFLICT, now)


def _repeat(connection: Connection, piece: Piece, place: Row[Any], now: datetime) -> None:
    if _is_open(place):
        _widen(connection, place, piece)
    text = f"fragment {piece.fragment.number} came again: it has the outcome of {place.top}"
    tell(connection, now, "repeated", text, message=piece.message)
    _follow(connection, piece.message, place.top, now)


def _put(connection: Connection, piece: Piece, place: Row[Any] | None, now: datetime) -> Standing | None:
    key = _begin(connection, piece, now) if place is None else place.id
    connection.execute(
        insert(fragment).values(
            fragment_set=key,
            number=piece.fragment.number,
            message=piece.message,
            joined=piece.joined,
            body_sha256=piece.body_sha256,
            size=piece.size,
        )
    )
    if place is not None:
        _widen(connection, place, piece)
    how = _standing(connection, key)
    top = piece.message if place is None else place.top
    tell(connection, now, "fragment", f"fragment {piece.fragment.number} came: {how}", message=top)
    if place is None:
        return how
    text = f"it is fragment {piece.fragment.number} of the message that {top} stands for, and has its outcome"
    tell(connection, now, "fragment", text, message=piece.message)
    _follow(connection, piece.message, top, now)
    _wake(connection, place, now)
    return None


def _begin(connection: Connection, piece: Piece, now: datetime) -> int:
    made = (
        insert(fragment_set)
        .values(
            lead=piece.message,
            sender=_sha256(piece.sender),
            identity=_sha256(piece.fragment.id),
            total=piece.fragment.total,
            recipients=sorted(set(piece.recipients)),
            waited=0.0,
            looked_at=now,
        )
        .returning(fragment_set.c.id)
    )
    return int(connection.execute(made).scalar_one())


def _widen(connection: Connection, place: Row[Any], piece: Piece) -> None:
    """Note what a fragment says of the whole: how many there are, and to whom it goes."""
    recipients = sorted({*place.recipients, *piece.recipients})
    values = {"total": place.total or piece.fragment.total, "recipients": recipients}
    connection.execute(update(fragment_set).where(fragment_set.c.id == place.id).values(values))


def _follow(connection: Connection, key: str, top: str, now: datetime) -> None:
    """Give a message, and what has its outcome, the outcome of another one."""
    columns = (message.c.outcome, message.c.code, message.c.stage, message.c.closed_at)
    values = connection.execute(select(*columns).where(message.c.id == top)).mappings().one()
    mine = or_(message.c.id == key, message.c.duplicate_of == key)
    connection.execute(update(message).where(mine).values(duplicate_of=top, late_at=None, **values))
    close_notice(connection, now, "late", key)


def _wake(connection: Connection, place: Row[Any], now: datetime) -> None:
    """Have the lead looked at; a set that was waited for in vain is waited for again.

    Stops of the gateway in the days of waiting say nothing of what is read when all came, so they do not count.
    """
    connection.execute(update(message).where(message.c.id == place.top).values(crashes=0, tries=0))
    if place.outcome == Outcome.HELD and place.code == INCOMPLETE:
        whole = or_(message.c.id == place.top, message.c.duplicate_of == place.top)
        connection.execute(update(message).where(whole).values(outcome=Outcome.WAITING, code=None, closed_at=None))
        messages.announce(connection, place.top, Outcome.WAITING, None, now)
    tickets.put(connection, f"receive:{place.top}", now)


def wait(connection: Connection, lead: str, patience: timedelta, now: datetime) -> datetime | None:
    """Wait for the rest of a set; return when to look again, or hold it when it was waited for long enough.

    Only time in which somebody looked counts: while the gateway stood still nothing could have come. Whoever lets a
    held set go on begins the wait anew.
    """
    columns = (fragment_set.c.id, fragment_set.c.waited, fragment_set.c.looked_at, message.c.code)
    led = select(*columns).join(message, message.c.id == fragment_set.c.lead).where(fragment_set.c.lead == lead, _OPEN)
    row = connection.execute(led.order_by(fragment_set.c.id.desc()).limit(1)).one_or_none()
    if row is None:
        return None  # a person was quicker
    waited = 0.0
    if row.code == WAITING:
        waited = row.waited + min(max(now - row.looked_at, timedelta(0)), LONGEST_LOOK).total_seconds()
    else:
        whole = or_(message.c.id == lead, message.c.duplicate_of == lead)
        connection.execute(update(message).where(whole).values(code=WAITING))
    mine = fragment_set.c.id == row.id
    connection.execute(update(fragment_set).where(mine).values(waited=waited, looked_at=now))
    left = patience - timedelta(seconds=waited)
    if left > timedelta(0):
        return now + left
    messages.hold(
        connection, lead, INCOMPLETE, f"waited long enough for fragments: {_standing(connection, row.id)}", now
    )
    return None


def forget(connection: Connection, keys: Sequence[str]) -> None:
    """Delete what is known of fragments and sets of messages that are deleted."""
    sets = select(fragment_set.c.id).where(fragment_set.c.lead.in_(keys))
    gone = or_(fragment.c.message.in_(keys), fragment.c.fragment_set.in_(sets), fragment.c.joined.in_(sets))
    connection.execute(delete(fragment).where(gone))
    connection.execute(delete(fragment_set).where(fragment_set.c.lead.in_(keys)))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
