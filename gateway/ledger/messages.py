"""Messages in the ledger: taken in, read, decided, closed. Each function is one change inside a transaction."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, overload

from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select, update

from gateway.core.routing import Decision
from gateway.ledger import pseudonyms, tickets
from gateway.ledger.events import append, entry, tell
from gateway.ledger.notices import close_notice, open_notice
from gateway.ledger.tables import delivery, event, finding, instance, is_mail, message
from gateway.model import Direction, Envelope, Header, Instance, Outcome, Reading, Stage, first_problem

DROPPED: Final = "dropped"
"""The code of what a person refused."""

MISMATCH: Final = "patient-mismatch-urgent"
"""A finding, and the notice about it: a person looks at what was stored, and releases it to say so."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: nothing that is misread on the telephone


def new_id(direction: Direction, now: datetime) -> str:
    """Make an id that sorts by time and is short enough to be read out: ``in-`` or ``out-`` and sixteen characters."""
    number = int(now.timestamp() * 1000) << 32 | secrets.randbits(32)
    return f"{direction}-" + "".join(_ALPHABET[number >> shift & 31] for shift in range(75, -1, -5))


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that lies in the spool and waits for its row.

    Attributes:
        id: Ours.
        blob: Its key in the spool.
        size: Bytes.
        sha256: Of all of it.
        body_sha256: Of what follows the header: with the Message-ID it tells a repeated mail.
        envelope: How it came.
        header: What its header says.
        decision: What shall become of it.
        at: When its last byte came.
        seconds: From its first byte to its last.
        known_since: A mail that came before this is not known again.
    """

    id: str
    blob: str
    size: int
    sha256: str
    body_sha256: str
    envelope: Envelope
    header: Header
    decision: Decision
    at: datetime
    seconds: float
    known_since: datetime


def accept(connection: Connection, arrivals: Sequence[Arrival]) -> list[str | None]:
    """Take custody of messages: their rows, their events, their tickets.

    Only the same mail (equal Message-ID and body) is a repetition; it has the outcome of the first and is not read.
    An MTA may hand one mail over once for each recipient: what takes another route than the first is no repetition.

    Returns:
        For each the id of the first when it is a repetition, else None.
    """
    firsts: list[str | None] = []
    rows: list[dict[str, Any]] = []
    story: list[dict[str, Any]] = []
    for arrival in arrivals:
        row = _row(arrival)
        first = _first_of(connection, row, arrival.known_since) or _first_among(rows, row)
        if first is not None:
            row |= {"duplicate_of": first["duplicate_of"] or first["id"], "late_at": None}
            row |= {name: first[name] for name in ("outcome", "code", "stage", "closed_at")}
        rows.append(row)
        firsts.append(row["duplicate_of"])
        story += _arrival_story(arrival, row["duplicate_of"])
    connection.execute(_INSERT, rows)
    append(connection, story)
    now = max(arrival.at for arrival in arrivals)
    tickets.put_all(connection, [f"receive:{row['id']}" for row in rows if row["duplicate_of"] is None], now)
    return firsts


def _first_among(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any] | None:
    """Find the first of a repetition among those that are taken in with it."""
    same = ("message_id", "body_sha256")
    for first in rows:
        fresh = first["duplicate_of"] is None and first["message_id"] is not None
        if fresh and all(first[name] == row[name] for name in same) and _repeats(row, first):
            return first
    return None


def _row(arrival: Arrival) -> dict[str, Any]:
    decision = arrival.decision
    return {
        "id": arrival.id,
        "direction": Direction.IN,
        "stage": Stage.RECEIVE,
        "outcome": Outcome.WAITING,
        "code": None,
        "closed_at": None,
        "duplicate_of": None,
        "door": arrival.envelope.door,
        "peer": arrival.envelope.peer,
        "account": arrival.envelope.user,
        "sender": _plain(arrival.envelope.sender),
        "recipients": [_plain(recipient) for recipient in arrival.envelope.recipients],
        "message_id": _plain(arrival.header.message_id),
        "from_address": _plain(decision.sender),
        "partner": decision.partner.name if decision.partner else None,
        "routes": [route.name for route in decision.routes],
        "urgent": decision.urgent,
        "late_at": arrival.at + decision.late if decision.late else None,
        "blob": arrival.blob,
        "size": arrival.size,
        "sha256": arrival.sha256,
        "body_sha256": arrival.body_sha256,
        "received_at": arrival.at,
        "receive_seconds": arrival.seconds,
    }


def _arrival_story(arrival: Arrival, first: str | None) -> list[dict[str, Any]]:
    partner = arrival.decision.partner
    whom = partner.name if partner else "a sender without a partner entry"
    text = f"accepted {arrival.size} bytes from {whom} by {arrival.envelope.door}, peer {arrival.envelope.peer}"
    story = [entry(arrival.at, "accepted", text, message=arrival.id)]
    if astray := arrival.decision.astray:
        text = f"{astray} of its {len(arrival.envelope.recipients)} recipients have no route for this sender"
        story.append(entry(arrival.at, "no-route", text, message=arrival.id))
    if first is not None:
        text = f"the same mail as {first}: it has the outcome of that one"
        story.append(entry(arrival.at, "repeated", text, message=arrival.id))
    return story


@overload
def _plain(text: str) -> str: ...
@overload
def _plain(text: str | None) -> str | None: ...
def _plain(text: str | None) -> str | None:
    """Make text from outside fit for every database: what is no Unicode, and NUL, are written out."""
    if text is None:
        return None
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")


_INSERT: Final = insert(message)
_FIRST: Final = (
    select(
        message.c.id,
        message.c.outcome,
        message.c.code,
        message.c.stage,
        message.c.closed_at,
        message.c.partner,
        message.c.routes,
        message.c.duplicate_of,
    )
    .where(
        message.c.message_id == bindparam("same_id"),
        message.c.body_sha256 == bindparam("same_body"),
        # A fragment may have the outcome of another one and is the first of its repetitions all the same.
        or_(message.c.duplicate_of.is_(None), message.c.kind == "partial"),
        message.c.received_at > bindparam("since"),
        message.c.direction == Direction.IN,
    )
    .order_by(message.c.received_at)
)
"""Built once, as everything that runs for each message: building a statement costs more than running it."""


def _first_of(connection: Connection, row: Mapping[str, Any], since: datetime) -> Mapping[str, Any] | None:
    if row["message_id"] is None:
        return None
    wanted = {"same_id": row["message_id"], "same_body": row["body_sha256"], "since": since}
    firsts = map(dict, connection.execute(_FIRST, wanted).mappings())
    return next((first for first in firsts if _repeats(row, first)), None)


def _repeats(row: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    return bool(row["partner"] == first["partner"] and set(row["routes"]) <= set(first["routes"]))


@dataclass(frozen=True, slots=True)
class Row:
    """What RECEIVE needs to know of a message."""

    id: str
    blob: str
    size: int
    sha256: str
    envelope: Envelope
    message_id: str | None
    received_at: datetime
    crashes: int
    tries: int
    stage: Stage
    outcome: Outcome
    body_sha256: str
    duplicate_of: str | None


def get(connection: Connection, key: str) -> Row | None:
    """Read one message; None when there is no such row."""
    row = connection.execute(select(message).where(message.c.id == key)).one_or_none()
    if row is None:
        return None
    envelope = Envelope(row.door, row.sender, tuple(row.recipients), row.peer, row.account)
    return Row(
        row.id,
        row.blob,
        row.size,
        row.sha256,
        envelope,
        row.message_id,
        row.received_at,
        row.crashes,
        row.tries,
        Stage(row.stage),
        Outcome(row.outcome),
        row.body_sha256,
        row.duplicate_of,
    )


@dataclass(frozen=True, slots=True)
class Read:
    """What RECEIVE made of a message, ready to be written down.

    Attributes:
        reading: From the File-set Reader.
        blob: The spool key of its instances; None without any.
        destinations: Where each instance goes.
        refused: Code for a message that nobody waits for (``not-dicom``), else None.
        held: Code for a message that needs a person (``no-dicom``), else None.
        problem: Code for a part that could not be read although instances go on, else None.
        seconds: How long the reading took.
        matched: The item of ours that it reports about; None for none. Then nothing else is made of it.
    """

    reading: Reading
    blob: str | None
    destinations: tuple[str, ...]
    refused: str | None
    held: str | None
    problem: str | None
    seconds: float
    matched: str | None = None


def decide(connection: Connection, key: str, read: Read, now: datetime) -> bool:
    """Write down what was read, and a delivery for each instance and destination; tell whether the row was still open.

    Raises nothing of its own: an instance whose UID is known with other content is held, the others go on (R11).
    """
    values = {
        "kind": read.reading.kind,
        "instances_blob": read.blob,
        "read_seconds": read.seconds,
        "stage": Stage.STORE,
        "problem": read.problem,
    }
    mine = (message.c.id == key) & (message.c.outcome == Outcome.WAITING) & (message.c.stage == Stage.RECEIVE)
    if connection.execute(update(message).where(mine).values(values)).rowcount == 0:
        return False
    connection.execute(update(message).where(message.c.duplicate_of == key).values(stage=Stage.STORE))
    _note_findings(connection, key, read.reading)
    pseudonyms.note(connection, key, (word for one in read.reading.instances for word in one.pseudonyms))
    instances, again = () if read.matched else read.reading.instances, 0
    if instances and read.destinations:
        known = _known(connection, instances)
        again = sum(1 for one in instances if _content(one) in known.get(one.sop_instance, ()))
        connection.execute(insert(instance), [_instance_values(key, n, one) for n, one in enumerate(instances, 1)])
        connection.execute(insert(delivery), list(_delivery_values(key, instances, read.destinations, known, now)))
        for name in read.destinations:
            tickets.put(connection, f"store:{name}", now)
    tell(connection, now, "read", _summary(read), message=key)
    _tell_of_patients(connection, key, read, now)
    if again:
        text = f"{again} of these came before; they are sent again, except where the destination shows that it has them"
        tell(connection, now, "known", text, message=key)
    if read.matched:
        _close_whole(connection, key, Outcome.DELIVERED, "report", now)
    elif read.held or read.refused:
        outcome, code = Outcome.HELD if read.held else Outcome.REFUSED, read.held or read.refused
        tell(connection, now, f"now-{outcome}", f"{outcome}: {code}", message=key)
        _close_whole(connection, key, outcome, code, now)
    fold(connection, [key], now)
    return True


def _tell_of_patients(connection: Connection, key: str, read: Read, now: datetime) -> None:
    """Tell what the rules of the route changed, and at once of an urgent mail in which one ID may be two people."""
    if text := _changes(read.reading.instances):
        tell(connection, now, "rewritten", text, message=key)
    # Of a mail that is held as a whole nothing was stored: that is told of, and it is read again.
    if read.destinations and any(one.code == MISMATCH for one in read.reading.findings):
        text = f"{key} was stored as it is urgent, but one Patient ID in it has two birth dates or names"
        hint = f"dicom-mail queue show {key}; then queue release {key}"
        open_notice(connection, now, MISMATCH, key, text, hint)


def _close_whole(connection: Connection, key: str, outcome: Outcome, code: str | None, now: datetime) -> None:
    values = {"outcome": outcome, "code": code, "closed_at": now, "stage": Stage.RECEIVE}
    connection.execute(update(message).where(or_(message.c.id == key, message.c.duplicate_of == key)).values(values))
    announce(connection, key, outcome, code, now)


def hold(connection: Connection, key: str, code: str, text: str, now: datetime, *, who: str | None = None) -> bool:
    """Hold a message that is open in RECEIVE, with the reason; tell whether it was."""
    mine = (message.c.id == key) & (message.c.outcome == Outcome.WAITING) & (message.c.stage == Stage.RECEIVE)
    if connection.execute(select(message.c.id).where(mine)).one_or_none() is None:
        return False
    tell(connection, now, "held", text, message=key, who=who)
    _close_whole(connection, key, Outcome.HELD, code, now)
    return True


def note_protection(connection: Connection, key: str, protection: Mapping[str, Any]) -> None:
    """Write down what the protection of a message amounts to."""
    connection.execute(update(message).where(message.c.id == key).values(protection=dict(protection)))


def refuse_stranger(connection: Connection, key: str, code: str, text: str, now: datetime) -> bool:
    """Refuse a message that had neither partner nor route when it came; tell whether it was one, and open."""
    mine = (message.c.id == key) & (message.c.outcome == Outcome.WAITING) & (message.c.stage == Stage.RECEIVE)
    row = connection.execute(select(message.c.partner, message.c.routes).where(mine)).one_or_none()
    if row is None or row.partner is not None or row.routes:
        return False
    tell(connection, now, "refused", text, message=key)
    _close_whole(connection, key, Outcome.REFUSED, code, now)
    return True


def count_try(connection: Connection, key: str, text: str, now: datetime) -> int:
    """Count a RECEIVE that failed for a reason of ours, and return how many there were."""
    connection.execute(update(message).where(message.c.id == key).values(tries=message.c.tries + 1))
    tell(connection, now, "receive-failed", text, message=key)
    return connection.scalar(select(message.c.tries).where(message.c.id == key)) or 0


def count_crashes(connection: Connection, keys: Iterable[str], now: datetime) -> None:
    """Count, after an unclean stop, the items that were being read or composed when it happened."""
    for key in keys:
        connection.execute(update(message).where(message.c.id == key).values(crashes=message.c.crashes + 1))
        tell(connection, now, "crashed", "the gateway stopped while it was working on this", message=key)


def fold(connection: Connection, keys: Sequence[str], now: datetime) -> None:
    """Give each message the outcome that follows from its deliveries: the first problem, waiting while any is open."""
    counts: dict[str, dict[Outcome, int]] = {key: {} for key in keys}
    rows = connection.execute(
        select(delivery.c.message, delivery.c.outcome, func.count(), func.min(delivery.c.id))
        .where(delivery.c.message.in_(keys))
        .group_by(delivery.c.message, delivery.c.outcome)
    ).all()
    first: dict[tuple[str, Outcome], int] = {}
    for key, outcome, count, lowest in rows:
        counts[key][Outcome(outcome)] = count
        first[key, Outcome(outcome)] = lowest
    problems = dict(connection.execute(select(message.c.id, message.c.problem).where(message.c.id.in_(keys))).all())
    for key, outcomes in counts.items():
        if outcomes:
            unread = _outcome_of(problems.get(key))
            worst = first_problem([*outcomes, unread])
            code = _code_of(connection, first[key, worst]) if (key, worst) in first else problems[key]
            _set_outcome(connection, key, worst, None if worst is Outcome.DELIVERED else code, outcomes, now)


def _outcome_of(problem: str | None) -> Outcome:
    """What a part that could not be read makes of its message: held until a person drops it or lets it be."""
    if problem is None:
        return Outcome.DELIVERED
    return Outcome.REFUSED if problem == DROPPED else Outcome.HELD


def _code_of(connection: Connection, lowest: int) -> str | None:
    return connection.scalar(select(delivery.c.code).where(delivery.c.id == lowest))


def _set_outcome(
    connection: Connection, key: str, outcome: Outcome, code: str | None, counts: Mapping[Outcome, int], now: datetime
) -> None:
    before = connection.execute(select(message.c.outcome, message.c.code).where(message.c.id == key)).one()
    if (before.outcome, before.code) == (outcome, code):
        return
    both = or_(message.c.id == key, message.c.duplicate_of == key)
    closed_at = None if outcome is Outcome.WAITING else now
    values: dict[str, Any] = {"outcome": outcome, "code": code, "closed_at": closed_at}
    if key.startswith(Direction.IN):  # a collection is where COMPOSE and SUBMIT have put it
        values["stage"] = Stage.STORE
    connection.execute(update(message).where(both).values(values))
    if before.outcome == outcome:
        return
    total = sum(counts.values())
    parts = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    text = f"all {total} delivered" if outcome is Outcome.DELIVERED else f"of {total}: {parts}"
    tell(connection, now, f"now-{outcome}", text, message=key)
    announce(connection, key, outcome, code, now)


def announce(connection: Connection, key: str, outcome: Outcome, code: str | None, now: datetime) -> None:
    """Open a notice for an item that needs a person, and close those that no longer hold."""
    for kind in (Outcome.HELD, Outcome.FAILED):
        if outcome is not kind:
            close_notice(connection, now, kind, key)
    if outcome is not Outcome.WAITING:
        close_notice(connection, now, "late", key)
    if outcome in {Outcome.HELD, Outcome.FAILED}:
        hint = f"dicom-mail queue show {key}"
        open_notice(connection, now, outcome, key, f"{key} is {outcome}: {code}", hint)
        if key.startswith(Direction.IN) and code != "by-operator":
            tickets.put(connection, f"report:{key}", now)


SENDER_TOLD: Final = "sender-told"
"""The event after which the sender of a mail is told no more."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What a partner may be told about a mail of its own that was not forwarded.

    Attributes:
        sender: The envelope sender.
        recipients: Whom it was for.
        partner: Whom it is from.
        message_id: Its Message-ID; None when it has none.
        outcome: ``held`` or ``failed``.
        code: Why.
        counts: How many instances it has, and how many of them were delivered everywhere.
    """

    sender: str
    recipients: tuple[str, ...]
    partner: str
    message_id: str | None
    outcome: Outcome
    code: str | None
    counts: tuple[int, int]


def trouble(connection: Connection, key: str) -> Trouble | None:
    """Read a partner's mail that is held or failed; None when there is nothing to tell, or its sender was told."""
    row = connection.execute(
        select(message).where(
            message.c.id == key,
            message.c.direction == Direction.IN,
            message.c.outcome.in_([Outcome.HELD, Outcome.FAILED]),
            message.c.partner.is_not(None),
            message.c.sender != "",
            message.c.duplicate_of.is_(None),
        )
    ).one_or_none()
    told = (event.c.message == key) & (event.c.kind == SENDER_TOLD)
    if row is None or connection.scalar(select(event.c.id).where(told).limit(1)) is not None:
        return None
    count = connection.scalar(select(func.count()).select_from(instance).where(instance.c.message == key)) or 0
    open_ones = (delivery.c.message == key) & (delivery.c.outcome != Outcome.DELIVERED)
    missing = connection.scalar(select(func.count(func.distinct(delivery.c.number))).where(open_ones)) or 0
    who = (row.sender, tuple(row.recipients), row.partner, row.message_id)
    return Trouble(*who, Outcome(row.outcome), row.code, (count, count - missing))


def told_sender(connection: Connection, key: str, now: datetime) -> None:
    """Remember that the sender of a mail was told what became of it."""
    tell(connection, now, SENDER_TOLD, "its sender was told so, once", message=key)


def _note_findings(connection: Connection, key: str, reading: Reading) -> None:
    connection.execute(delete(finding).where(finding.c.message == key))  # of an earlier reading
    rows = [
        {"message": key, "code": one.code, "severity": one.severity, "part": _plain(one.where), "text": one.text}
        for one in reading.findings
    ]
    if rows:
        connection.execute(insert(finding), rows)


def _summary(read: Read) -> str:
    count = len(read.reading.instances)
    if read.matched:
        return f"read as a report about {read.matched}"
    if not count:
        return f"read as {read.reading.kind}: no instance to store"
    where = ", ".join(read.destinations) or "no destination"
    held = sum(1 for one in read.reading.instances if one.held)
    tail = f"; {held} of {count} held" if held else ""
    return f"read {count} instance{'s' if count > 1 else ''} for {where}{tail}"


def _changes(instances: Sequence[Instance]) -> str | None:
    """Say which rules changed how many instances, and none of the values."""
    changed = [one for one in instances if one.changed]
    if not changed:
        return None
    rules = ", ".join(dict.fromkeys(rule for one in changed for rule in one.changed))
    return f"{len(changed)} of {len(instances)} instances were changed by the route's rules: {rules}"


def _instance_values(key: str, number: int, one: Instance) -> dict[str, Any]:
    return {
        "message": key,
        "number": number,
        "sop_class": one.sop_class,
        "sop_instance": one.sop_instance,
        "study": one.study,
        "series": one.series,
        "transfer_syntax": one.transfer_syntax,
        "sha256": one.sha256,
        "data_set_sha256": one.data_set_sha256,
        "part": _plain(one.part),
        "file_id": _plain(one.file_id),
        "start": one.file.start,
        "data_set": one.data_set,
        "size": one.file.size,  # as it lies in the blob and goes to the PACS
    }


def _delivery_values(
    key: str,
    instances: Sequence[Instance],
    destinations: Sequence[str],
    known: Mapping[str, set[tuple[str, str]]],
    now: datetime,
) -> Iterable[dict[str, Any]]:
    for number, one in enumerate(instances, 1):
        # The reader has held what one mail brings with two contents; here it is about what came before (R11).
        code = one.held or ("reused-uid" if known.get(one.sop_instance, set()) - {_content(one)} else None)
        state: dict[str, Any] = {"outcome": Outcome.HELD, "code": code, "next_attempt": None, "closed_at": now}
        if code is None:
            state = {"outcome": Outcome.WAITING, "code": None, "next_attempt": now, "closed_at": None}
        state["known"] = one.sop_instance in known
        for name in destinations:
            yield {"message": key, "number": number, "destination": name, **state}


def _content(one: Instance) -> tuple[str, str]:
    return one.transfer_syntax, one.data_set_sha256


def _known(connection: Connection, instances: Sequence[Instance]) -> dict[str, set[tuple[str, str]]]:
    """Find what is stored or queued under each SOP Instance UID: transfer syntaxes and data sets."""
    queued = delivery.c.outcome.in_([Outcome.DELIVERED, Outcome.WAITING])
    known: dict[str, set[tuple[str, str]]] = {}
    uids = list({one.sop_instance for one in instances})
    for at in range(0, len(uids), 500):
        rows = connection.execute(
            select(instance.c.sop_instance, instance.c.transfer_syntax, instance.c.data_set_sha256)
            .join(delivery, (delivery.c.message == instance.c.message) & (delivery.c.number == instance.c.number))
            .where(instance.c.sop_instance.in_(uids[at : at + 500]), queued)
            .where(~is_mail(delivery.c.destination))  # what we mailed says nothing of what a PACS has
            .distinct()
        )
        for uid, syntax, data_set in rows:
            known.setdefault(uid, set()).add((syntax, data_set))
    return known
