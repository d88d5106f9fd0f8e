"""Mailboxes in the ledger: how each is, and which of its mails were taken (IMAP-1, R2, R3).

A row says that a mail's bytes are ours, or that it is none of ours; it is written after the item was committed and
before the mail is flagged, moved or deleted. Should the row be lost in a crash between the two, the content hash of the
item says the same when the mail is fetched once more.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, delete, exists, func, insert, select, update

from gateway.core.mailbox import AWAY, REMEDY, Filing, Known, State, is_alarming, name_in, new_claim
from gateway.ledger.events import tell
from gateway.ledger.notices import close_notice, open_notice, reword_notice
from gateway.ledger.tables import fact, fragment, mailbox, mailbox_folder, mailbox_mail, message
from gateway.model import Outcome, Stage

DOWN: Final = "mailbox-down"
"""The notice about a mailbox that cannot be used."""

_CLAIM: Final = "mailbox claim"

TOO_BIG: Final = "mail-too-big"
"""The notice about mails that were moved to failed."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder in one life of its UIDs.

    Attributes:
        server: Host and port.
        account: Who logs in.
        name: As the server writes it; empty by POP3.
        validity: UIDVALIDITY; 0 by POP3.
    """

    server: str
    account: str
    name: str
    validity: int


def claim(connection: Connection, now: datetime) -> str:
    """The keyword by which this gateway marks the mails it takes: the same as long as it looks, whatever restarts.

    It tells since when: a gateway that comes back after it was replaced is the younger one, and stops.
    """
    found = connection.scalar(select(fact.c.value).where(fact.c.name == _CLAIM))
    looked_at = connection.scalar(select(func.max(mailbox.c.looked_at)))
    if found is not None and looked_at is not None and looked_at > now - AWAY:
        return str(found)
    made = new_claim(now, secrets.token_hex(4) if found is None else name_in(found))
    connection.execute(delete(fact).where(fact.c.name == _CLAIM))
    connection.execute(insert(fact).values(name=_CLAIM, value=made))
    return made


def number(connection: Connection, folder: Folder) -> int:
    """Find the number of a folder, or give it one."""
    columns = mailbox_folder.c
    same = (columns.server == folder.server) & (columns.account == folder.account)
    same &= (columns.folder == folder.name) & (columns.validity == folder.validity)
    found = connection.scalar(select(columns.id).where(same))
    if found is None:
        values = {
            "server": folder.server,
            "account": folder.account,
            "folder": folder.name,
            "validity": folder.validity,
        }
        made = connection.execute(insert(mailbox_folder).values(values)).inserted_primary_key
        assert made is not None
        found = made[0]
    return int(found)


def known(connection: Connection, folder: int) -> dict[str, Known]:
    """What was seen in a folder before, by UID."""
    columns = mailbox_mail.c
    rows = connection.execute(
        select(columns.uid, columns.size, columns.stamp, columns.filing).where(columns.folder == folder)
    )
    return {uid: Known(size, stamp, Filing(filing)) for uid, size, stamp, filing in rows}


def item_of(connection: Connection, door: str, folder: int, sha256: str) -> str | None:
    """Find the item that holds this very content from this very mailbox, whatever UID it had; None: it is new (R2)."""
    found: str | None = connection.scalar(
        select(message.c.id).where(message.c.sha256 == sha256, message.c.door == door).limit(1)
    )
    if found is not None:
        return found
    # Its item was purged long ago, and the mail lies there still, under a new UID.
    mine = mailbox_folder.alias("mine")
    same = (mailbox_folder.c.server == mine.c.server) & (mailbox_folder.c.account == mine.c.account)
    return connection.scalar(
        select(mailbox_mail.c.message)
        .join(mailbox_folder, mailbox_folder.c.id == mailbox_mail.c.folder)
        .join(mine, same & (mine.c.id == folder))
        .where(mailbox_mail.c.sha256 == sha256, mailbox_mail.c.message.is_not(None))
        .limit(1)
    )


@dataclass(frozen=True, slots=True)
class Taken:
    """A mail that was looked at.

    Attributes:
        uid: Its UID or UIDL.
        size: As the server said.
        stamp: Its INTERNALDATE.
        sha256: Of its content; empty when it was not fetched.
        message: The item; None when it was not taken.
        filing: What became of it.
    """

    uid: str
    size: int
    stamp: str
    sha256: str
    message: str | None
    filing: Filing


def record(connection: Connection, folder: int, mails: Sequence[Taken], now: datetime) -> None:
    """Write down mails that were taken. A UID that was used again is another mail: the later one counts."""
    if not mails:
        return
    uids = [one.uid for one in mails]
    connection.execute(delete(mailbox_mail).where(mailbox_mail.c.folder == folder, mailbox_mail.c.uid.in_(uids)))
    rows = [
        {
            "folder": folder,
            "uid": one.uid,
            "size": one.size,
            "stamp": one.stamp,
            "sha256": one.sha256,
            "message": one.message,
            "filing": one.filing,
            "at": now,
        }
        for one in mails
    ]
    connection.execute(insert(mailbox_mail), rows)


def file(connection: Connection, folder: int, uids: Collection[str], filing: Filing, now: datetime) -> None:
    """Write down where mails are now."""
    mine = (mailbox_mail.c.folder == folder) & mailbox_mail.c.uid.in_(uids)
    connection.execute(update(mailbox_mail).where(mine).values(filing=filing, at=now))


@dataclass(frozen=True, slots=True)
class Unfiled:
    """A mail that is ours and still lies where it came; with what its item has come to, None when it was purged."""

    uid: str
    stage: Stage
    outcome: Outcome | None
    code: str | None
    fragment: bool


def unfiled(connection: Connection, folder: int) -> list[Unfiled]:
    """The mails of a folder that are ours and not filed yet."""
    is_fragment = exists(select(fragment.c.message).where(fragment.c.message == message.c.id))
    rows = connection.execute(
        select(
            mailbox_mail.c.uid,
            func.coalesce(message.c.stage, Stage.STORE),
            message.c.outcome,
            message.c.code,
            is_fragment,
        )
        .outerjoin(message, message.c.id == mailbox_mail.c.message)
        .where(mailbox_mail.c.folder == folder, mailbox_mail.c.filing == Filing.TAKEN)
        .order_by(mailbox_mail.c.at)
    )
    return [
        Unfiled(uid, Stage(stage), Outcome(outcome) if outcome else None, code, bool(piece))
        for uid, stage, outcome, code, piece in rows
    ]


def forget(connection: Connection, folder: int, present: Collection[str], before: datetime) -> int:
    """Forget mails that are no longer in the folder, some time after they were filed; return how many."""
    columns = mailbox_mail.c
    old = (columns.folder == folder) & (columns.at < before) & (columns.filing != Filing.TAKEN)
    gone = [uid for uid in connection.scalars(select(columns.uid).where(old)) if uid not in present]
    for at in range(0, len(gone), 500):
        connection.execute(delete(mailbox_mail).where(columns.folder == folder, columns.uid.in_(gone[at : at + 500])))
    return len(gone)


@dataclass(frozen=True, slots=True)
class Health:
    """How a mailbox is.

    Attributes:
        door: Its section, as ``imap.radiology``.
        state: What is the matter.
        since: Since when it is well, or is not, whatever the matter was meanwhile.
        looked_at: When it was last seen to be well; None: never.
        text: One line about it.
    """

    door: str
    state: State
    since: datetime
    looked_at: datetime | None
    text: str


def note(connection: Connection, door: str, state: State, text: str, now: datetime) -> bool:
    """Write down how a mailbox is, tell a person when it is time, and say whether the state is a new one (R3).

    A mailbox that is now unreachable and now silent has one trouble, which began with the first.
    """
    before = connection.execute(
        select(mailbox.c.state, mailbox.c.since, mailbox.c.text).where(mailbox.c.door == door)
    ).one_or_none()
    changed = before is None or before.state != state
    same = before is not None and (before.state == State.OK) == (state is State.OK)
    since = before.since if before is not None and same else now
    values = {"state": state, "since": since, "text": text}
    if state is State.OK:
        values["looked_at"] = now
    if before is None:
        connection.execute(insert(mailbox).values(door=door, **values))
    else:
        connection.execute(update(mailbox).where(mailbox.c.door == door).values(values))
    if changed and not (before is None and state is State.OK):
        tell(connection, now, f"mailbox-{state}", f"{door}: {text or state}")
    if state is State.OK:
        close_notice(connection, now, DOWN, door)
    elif is_alarming(state, now - since):
        words = f"mailbox {door} cannot be used ({state}): {text}", REMEDY[state]
        if not open_notice(connection, now, DOWN, door, *words) and changed:
            reword_notice(connection, DOWN, door, *words)
    return changed


def note_too_big(connection: Connection, door: str, folder: str, count: int, limit: int, now: datetime) -> None:
    """Tell of mails that were not taken because of their size. It stays open until the next."""
    text = f"{door}: {count} mail{'' if count == 1 else 's'} of more than {limit} bytes moved to {folder}, not taken"
    tell(connection, now, TOO_BIG, text)
    close_notice(connection, now, TOO_BIG, door)
    open_notice(connection, now, TOO_BIG, door, text, f"look into {folder}; limits.message bounds what is taken")


def health(connection: Connection) -> list[Health]:
    """How every mailbox is, by its section's name."""
    columns = (mailbox.c.door, mailbox.c.state, mailbox.c.since, mailbox.c.looked_at, mailbox.c.text)
    rows = connection.execute(select(*columns).order_by(mailbox.c.door))
    return [Health(door, State(state), since, looked_at, text) for door, state, since, looked_at, text in rows]


def retire(connection: Connection, doors: Collection[str], now: datetime) -> None:
    """Forget the state of mailboxes that are no longer configured, their notices included."""
    for door in connection.scalars(select(mailbox.c.door)).all():
        if door not in doors:
            connection.execute(delete(mailbox).where(mailbox.c.door == door))
            close_notice(connection, now, DOWN, door)
