"""After a restore, or with a clock that went back, the ledger does not know what was sent: every lane starts paused.

A backup carries a mark. A gateway that starts on a ledger with that mark, or on one that has seen a later time than the
clock shows, pauses all its lanes and tells a person: what was sent between the backup and the accident would go out a
second time. Mail is taken in and read meanwhile. A person resumes the lanes; where only the clock was wrong, they go on
by themselves once it is right again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, delete, insert, select, update

from gateway.ledger import deliveries, submissions
from gateway.ledger.notices import close_notice, open_notice
from gateway.ledger.tables import fact

TOLERANCE: Final = timedelta(minutes=10)
"""A clock that is put back by less than this sends nothing old again."""

_BACKUP: Final = "backup made at"
_SEEN: Final = "last seen at"
_STOPPED: Final = "lanes stopped"

_ABOUT: Final = "lanes"
_HINT: Final = "look what the PACS and the partners have, then dicom-mail queue resume NAME, or queue resume --all"


def mark(connection: Connection, now: datetime) -> None:
    """Mark a ledger as a backup: whoever starts on it shall know."""
    _remember(connection, _BACKUP, now.isoformat())


def is_marked(connection: Connection) -> bool:
    """Whether a ledger is a backup on which no gateway was started yet."""
    return _recall(connection, _BACKUP) is not None


def see(connection: Connection, now: datetime) -> None:
    """Write down what time it is; and when only the clock was wrong and is right again, let the lanes go on."""
    _remember(connection, _SEEN, now.isoformat())
    stopped = _recall(connection, _STOPPED)
    if stopped is not None:
        until = json.loads(stopped)["until"]
        if until is not None and datetime.fromisoformat(until) <= now:
            for name in json.loads(stopped)["lanes"]:
                pause(connection, name, False, now, "the gateway")
            _end(connection, now)


def begin(connection: Connection, lanes: Iterable[str], now: datetime) -> str | None:
    """Pause every lane when it is not known what was sent; return the kind of notice that says so, else None.

    Args:
        connection: The first transaction of a life.
        lanes: Destinations, and ``submissions.RELAY``.
        now: When it is.
    """
    backup, seen = _recall(connection, _BACKUP), _recall(connection, _SEEN)
    if backup is not None:
        kind = "restored"
        text = f"the ledger is a backup of {_minute(backup)}: all lanes are paused, so that nothing is sent again"
        _stop(connection, lanes, None, now)
        open_notice(connection, now, "restored", _ABOUT, text, _HINT)
        connection.execute(delete(fact).where(fact.c.name == _BACKUP))
    elif seen is not None and datetime.fromisoformat(seen) > now + TOLERANCE:
        kind = "clock-back"
        text = f"the clock went back from {_minute(seen)}: all lanes are paused, so that nothing is sent again"
        _stop(connection, lanes, seen, now)
        hint = f"set the clock right, and they go on by themselves; or {_HINT}"
        open_notice(connection, now, "clock-back", _ABOUT, text, hint)
    else:
        return None
    _remember(connection, _SEEN, now.isoformat())
    return kind


def pause(connection: Connection, name: str, paused: bool, now: datetime, who: str) -> None:
    """Stop or resume a lane; with the last one that the machine had stopped, the notice about them closes."""
    if name == submissions.RELAY:
        submissions.pause(connection, paused, now, who)
    else:
        deliveries.pause(connection, name, paused, now, who)
    stopped = _recall(connection, _STOPPED)
    if paused or stopped is None:
        return
    document = json.loads(stopped)
    document["lanes"] = [lane for lane in document["lanes"] if lane != name]
    if document["lanes"]:
        _remember(connection, _STOPPED, json.dumps(document))
    else:
        _end(connection, now)


def _end(connection: Connection, now: datetime) -> None:
    connection.execute(delete(fact).where(fact.c.name == _STOPPED))
    for kind in ("restored", "clock-back"):
        close_notice(connection, now, kind, _ABOUT)


def _stop(connection: Connection, lanes: Iterable[str], until: str | None, now: datetime) -> None:
    """Pause what runs; remember which lanes wait for the notice to end, and until when at most.

    Args:
        connection: The transaction.
        lanes: All of them.
        until: From when on they go on by themselves, where what a person had paused stays paused; None: never.
        now: When it is.
    """
    before = json.loads(_recall(connection, _STOPPED) or '{"lanes": [], "until": ""}')
    mine = list(before["lanes"])
    for name in lanes:
        running = not deliveries.condition(connection, name).paused
        if running:
            pause(connection, name, True, now, "the gateway")
        if name not in mine and (running or until is None):
            mine.append(name)
    # Who waits for a person's word does not go on by itself because of a second accident.
    _remember(
        connection, _STOPPED, json.dumps({"lanes": mine, "until": until if before["until"] is not None else None})
    )


def _recall(connection: Connection, name: str) -> str | None:
    found: str | None = connection.scalar(select(fact.c.value).where(fact.c.name == name))
    return found


def _remember(connection: Connection, name: str, value: str) -> None:
    if connection.execute(update(fact).where(fact.c.name == name).values(value=value)).rowcount == 0:
        connection.execute(insert(fact).values(name=name, value=value))


def _minute(moment: str) -> str:
    return f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M} UTC"
