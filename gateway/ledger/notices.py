"""Notices: what a person must know. One when it opens, one when it closes, never a flood (R33).

A notice is a row. What is open is shown by ``check``, ``queue list`` and /metrics; each opening and closing is also
handed once to the webhook and the command, at least once after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, or_, select, update

from gateway.ledger.events import tell
from gateway.ledger.tables import notice


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing a person must know.

    Attributes:
        id: Of its row.
        kind: ``held``, ``failed``, ``late``, ``destination-down``, ``disk-low`` and so on.
        about: The item, destination or folder.
        text: What is the matter, without patient data.
        hint: What to do.
        opened_at: Since when.
        closed_at: Until when; None while it lasts.
    """

    id: int
    kind: str
    about: str
    text: str
    hint: str
    opened_at: datetime
    closed_at: datetime | None


def open_notice(connection: Connection, at: datetime, kind: str, about: str, text: str, hint: str) -> bool:
    """Open a notice unless it is open already; tell whether it is new."""
    exists = select(notice.c.id).where(notice.c.kind == kind, notice.c.about == about, notice.c.closed_at.is_(None))
    if connection.scalar(exists) is not None:
        return False
    values = {"kind": kind, "about": about, "text": text, "hint": hint, "opened_at": at}
    connection.execute(insert(notice).values(values))
    tell(connection, at, "notice-opened", f"notice: {text}", message=_item(about))
    return True


def reword_notice(connection: Connection, kind: str, about: str, text: str, hint: str) -> None:
    """Say anew what is the matter, where the same notice stays open; nobody is told again."""
    mine = (notice.c.kind == kind) & (notice.c.about == about) & notice.c.closed_at.is_(None)
    connection.execute(update(notice).where(mine).values(text=text, hint=hint))


def close_notice(connection: Connection, at: datetime, kind: str, about: str) -> bool:
    """Close a notice if it is open; tell whether it was."""
    mine = (notice.c.kind == kind) & (notice.c.about == about) & notice.c.closed_at.is_(None)
    closed = connection.execute(update(notice).where(mine).values(closed_at=at)).rowcount > 0
    if closed:
        tell(connection, at, "notice-closed", f"notice closed: {kind} {about}", message=_item(about))
    return closed


def standing(connection: Connection, kind: str) -> dict[str, str]:
    """The texts of the open notices of one kind, by what they are about."""
    return {one.about: one.text for one in open_notices(connection) if one.kind == kind}


def keep(connection: Connection, at: datetime, kind: str, wanted: Mapping[str, tuple[str, str]]) -> None:
    """Have exactly these notices of a kind open: what is new opens, what changed its text opens anew, the rest closes.

    Args:
        connection: The transaction.
        at: The time.
        kind: Their kind.
        wanted: Text and hint of each, by what it is about.
    """
    for about, text in standing(connection, kind).items():
        if about not in wanted or wanted[about][0] != text:
            close_notice(connection, at, kind, about)
    for about, (text, hint) in wanted.items():
        open_notice(connection, at, kind, about, text, hint)


def _item(about: str) -> str | None:
    return about if about.startswith(("in-", "out-")) else None


def open_notices(connection: Connection) -> list[Notice]:
    """Everything that is the matter now, the oldest first."""
    return _read(connection, notice.c.closed_at.is_(None))


def untold(connection: Connection) -> list[Notice]:
    """Openings and closings that nobody outside was told yet."""
    closing = notice.c.closed_at.is_not(None) & ~notice.c.closing_told
    return _read(connection, or_(~notice.c.opening_told, closing))


def told(connection: Connection, one: Notice) -> None:
    """Remember that a notice was handed on in the state it had."""
    values = {"opening_told": True} if one.closed_at is None else {"opening_told": True, "closing_told": True}
    connection.execute(update(notice).where(notice.c.id == one.id).values(values))


def unmailed(connection: Connection, most: int) -> list[Notice]:
    """Openings and closings that the postmaster was not mailed yet. What closed before it was mailed is one of them."""
    closing = notice.c.closed_at.is_not(None) & ~notice.c.closing_mailed
    return _read(connection, or_(~notice.c.opening_mailed, closing))[:most]


def mailed(connection: Connection, some: Sequence[Notice]) -> None:
    """Remember that notices were mailed in the state they had."""
    for one in some:
        values = {"opening_mailed": True} if one.closed_at is None else {"opening_mailed": True, "closing_mailed": True}
        connection.execute(update(notice).where(notice.c.id == one.id).values(values))


def _read(connection: Connection, condition: object) -> list[Notice]:
    columns = (notice.c.id, notice.c.kind, notice.c.about, notice.c.text, notice.c.hint)
    rows = connection.execute(
        select(*columns, notice.c.opened_at, notice.c.closed_at).where(condition).order_by(notice.c.id)  # type: ignore[arg-type]
    )
    return [Notice(*row) for row in rows]
