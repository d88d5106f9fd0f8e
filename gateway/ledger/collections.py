"""Collections in the ledger: what came of one study by one route for one partner, until it is composed into mails.

A collection is an item like a mail: a row in ``message`` with its instances and deliveries. The files lie in the spool
by themselves or one behind another, and the collections of several partners share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, insert, literal_column, select, update

from gateway.core import grouping
from gateway.core.grouping import Facts, Rules
from gateway.ledger import pseudonyms, tickets
from gateway.ledger.events import append, entry, tell
from gateway.ledger.messages import new_id
from gateway.ledger.prepared import Prepared
from gateway.ledger.tables import MAIL, collection, delivery, instance, is_mail, message
from gateway.model import Direction, Instance, Outcome, Stage

MOST_AT_ONCE: Final = 500
"""Values in one question to the database."""


@dataclass(frozen=True, slots=True)
class Course:
    """Where an instance goes: what its route says, as far as the ledger must know.

    Attributes:
        route: Its name.
        partners: Name and address of each partner that gets it.
        rules: When the collection is complete.
        urgent: It goes first.
        late: After how long somebody is told that it is not with the relay.
    """

    route: str
    partners: tuple[tuple[str, str], ...]
    rules: Rules
    urgent: bool
    late: timedelta


@dataclass(frozen=True, slots=True)
class Learned:
    """What was found out about the bytes of an instance.

    Attributes:
        blob: The key in the spool.
        start: Where in it the file begins.
        sha256: Of the file, in hexadecimal; empty: not found out.
        data_set_sha256: Of the data set, likewise.
    """

    blob: str
    start: int
    sha256: str = ""
    data_set_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An instance whose file lies in the spool and waits for its rows.

    Attributes:
        instance: What it is; its file is a range of the blob.
        blob: The key in the spool.
        course: Where it goes.
        door: The section that took it: ``storescp``, or ``send``.
        peer: Address of the peer, without port.
        calling: Who sent it, as an AE title.
        called: Whom it called.
        at: When its last byte came.
        learned: What was found out about others of its UID, so that it can be compared with them.
    """

    instance: Instance
    blob: str
    course: Course
    door: str
    peer: str
    calling: str
    called: str
    at: datetime
    learned: tuple[Learned, ...] = ()


# Written out, as in is_mail: SQLite plans a statement anew for each value that one of its plans could depend on.
_OPEN: Final = (message.c.outcome == literal_column(f"'{Outcome.WAITING}'")) & (
    message.c.stage == literal_column(f"'{Stage.COMPOSE}'")
)

# What runs with every instance.
_SEEN: Final = Prepared(
    select(instance.c.sop_instance, delivery.c.destination, instance.c.message)
    .add_columns(instance.c.transfer_syntax, instance.c.data_set_sha256, delivery.c.outcome)
    .join(delivery, (delivery.c.message == instance.c.message) & (delivery.c.number == instance.c.number))
    .where(instance.c.sop_instance == bindparam("uid"), is_mail(delivery.c.destination))
)
_FIND: Final = Prepared(
    select(collection.c.message, collection.c.opened_at, collection.c.last_at, collection.c.size)
    .add_columns(collection.c.instances)
    .join(message, message.c.id == collection.c.message)
    .where(collection.c.study == bindparam("study"), collection.c.route == bindparam("route"))
    .where(collection.c.partner == bindparam("partner"), collection.c.completed_at.is_(None), _OPEN)
)
_ADD: Final = Prepared(insert(instance), instance.c.keys())
_ADD_DELIVERY: Final = Prepared(
    insert(delivery), ["message", "number", "destination", "outcome", "code", "next_attempt", "closed_at"]
)
_GROW: Final = Prepared(
    update(collection).where(collection.c.message == bindparam("mine")), ["instances", "size", "last_at"]
)
_LEARN: Final = {
    name: Prepared(
        update(instance).where(instance.c.blob == bindparam("mine"), instance.c.start == bindparam("at")), [name]
    )
    for name in ("sha256", "data_set_sha256")
}
_UNKNOWN: Final = (
    select(instance.c.blob, instance.c.start, instance.c.data_set, instance.c.size)
    .where(instance.c.sop_instance == bindparam("uid"), instance.c.blob.is_not(None))
    .where(instance.c.data_set_sha256 == "")
    .distinct()
)
_GROW_ITEM: Final = Prepared(update(message).where(message.c.id == bindparam("mine")), ["size"])


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance lies.

    Attributes:
        blob: The key in the spool.
        start: Where in it the file begins.
        data_set: Offset of the data set in the file.
        size: Bytes of the file.
    """

    blob: str
    start: int
    data_set: int
    size: int


def learn(connection: Connection, some: Sequence[Learned]) -> list[None]:
    """Write down what was found out about instances, for every partner who gets them."""
    for one in some:
        for name, value in (("sha256", one.sha256), ("data_set_sha256", one.data_set_sha256)):
            if value:
                _LEARN[name].run(connection, {"mine": one.blob, "at": one.start, name: value})
    return [None] * len(some)


def unknown(connection: Connection, uids: Sequence[str]) -> list[list[Place]]:
    """Name, for each SOP Instance UID, the instances whose content nobody has looked at yet."""
    return [[Place(*row) for row in connection.execute(_UNKNOWN, {"uid": uid})] for uid in uids]


def accept(connection: Connection, arrivals: Sequence[Arrival]) -> list[bool | None]:
    """Take custody of instances: each joins the open collection of its study, one for each partner (R20).

    The same instance in the same collection is one. What is known under its UID with other content is kept, and held:
    that loses nothing, and tells a person (R11).

    Returns:
        For each whether a row needs its file; a repeated one may go. None: its UID is known, and its content or that of
        the one before is not; nothing was kept.
    """
    learn(connection, [one for arrival in arrivals for one in arrival.learned])
    burst = _Burst(connection, arrivals)
    needed = [burst.take(arrival) for arrival in arrivals]
    burst.write()
    return needed


@dataclass(slots=True)
class _Collection:
    """An open collection while a burst is written down.

    Attributes:
        id: Of the item.
        facts: When it came, and how big it is.
        count: Instances in it.
        names: Pseudonyms it is found under; None until somebody has to know.
        changed: Instances have joined that its row does not tell of yet.
        renamed: So have pseudonyms.
        full: Nothing more fits.
    """

    id: str
    facts: Facts
    count: int
    names: set[str] | None = None
    changed: bool = False
    renamed: bool = False
    full: bool = False


Content = tuple[str, str]
"""What makes two instances of one UID the same: transfer syntax and digest of the data set."""


class _Burst:
    """Instances that are taken in together, and the rows they make."""

    def __init__(self, connection: Connection, arrivals: Sequence[Arrival]) -> None:
        self._connection = connection
        self._open: dict[tuple[str, str, str], _Collection | None] = {}
        self._seen = _seen(connection, {arrival.instance.sop_instance for arrival in arrivals})
        self._instances: list[dict[str, Any]] = []
        self._deliveries: list[dict[str, Any]] = []
        self._story: list[dict[str, Any]] = []

    def take(self, arrival: Arrival) -> bool | None:
        """Join an instance to the collection of each partner; tell whether any of them needs its file."""
        one = arrival.instance
        before = [self._seen.get((one.sop_instance, MAIL + partner), ()) for partner, _ in arrival.course.partners]
        contents = [content for seen in before for _, content, _ in seen]
        if contents and not all(digest for _, digest in (*contents, (one.transfer_syntax, one.data_set_sha256))):
            return None
        joined = [self._join(arrival, partner, address) for partner, address in arrival.course.partners]
        return any(joined)

    def write(self) -> None:
        """Write down what was joined since the last time."""
        for statement, rows in ((_ADD, self._instances), (_ADD_DELIVERY, self._deliveries)):
            for row in rows:
                statement.run(self._connection, row)
        if self._story:
            append(self._connection, self._story)
        self._instances, self._deliveries, self._story = [], [], []
        for one in self._open.values():
            if one is not None and one.changed:
                facts = {"instances": one.count, "size": one.facts.size, "last_at": one.facts.last_at}
                _GROW.run(self._connection, {"mine": one.id, **facts})
                _GROW_ITEM.run(self._connection, {"mine": one.id, "size": one.facts.size})
                if one.full:  # its ticket is for the silence, which it need not wait for
                    tickets.put(self._connection, f"compose:{one.id}", one.facts.last_at)
                one.changed = False
            if one is not None and one.renamed:
                pseudonyms.note(self._connection, one.id, one.names or ())
                one.renamed = False

    def _join(self, arrival: Arrival, partner: str, address: str) -> bool:
        place = (arrival.instance.study, arrival.course.route, partner)
        if place not in self._open:
            self._open[place] = _find(self._connection, place)
        mine = self._open[place]
        seen = self._seen.setdefault((arrival.instance.sop_instance, MAIL + partner), [])
        content = (arrival.instance.transfer_syntax, arrival.instance.data_set_sha256)
        if mine is not None and any((key, known) == (mine.id, content) for key, known, _ in seen):
            return False
        if mine is not None and not grouping.fits(mine.facts, arrival.course.rules, arrival.instance.size):
            self.write()
            complete(self._connection, mine.id, "nothing more fits", arrival.at)
            mine = None
        if mine is None:
            mine = self._open[place] = _begin(self._connection, arrival, partner, address)
        reused = any(counts and known != content for _, known, counts in seen)
        seen.append((mine.id, content, not reused))
        self._add(mine, arrival, partner, reused=reused)
        return True

    def _add(self, mine: _Collection, arrival: Arrival, partner: str, *, reused: bool) -> None:
        one, at = arrival.instance, arrival.at
        mine.count += 1
        mine.facts = Facts(mine.facts.opened_at, max(mine.facts.last_at, at), mine.facts.size + one.size)
        mine.changed = True
        mine.full = mine.facts.size >= arrival.course.rules.max_size
        if one.pseudonyms:
            if mine.names is None:
                mine.names = pseudonyms.known(self._connection, mine.id)
            mine.renamed |= not mine.names.issuperset(one.pseudonyms)
            mine.names.update(one.pseudonyms)
        state: dict[str, Any] = {"outcome": Outcome.WAITING.value, "code": None, "next_attempt": at, "closed_at": None}
        if reused:
            state = {"outcome": Outcome.HELD.value, "code": "reused-uid", "next_attempt": None, "closed_at": at}
            text = f"instance {mine.count} is held: its SOP Instance UID is known with other content"
            self._story.append(entry(at, "held", text, message=mine.id))
        self._instances.append(_values(mine.id, mine.count, one, arrival.blob))
        self._deliveries.append({"message": mine.id, "number": mine.count, "destination": MAIL + partner, **state})


def _seen(connection: Connection, uids: set[str]) -> dict[tuple[str, str], list[tuple[str, Content, bool]]]:
    """Find what was taken in under these UIDs for each partner: where, its content, and whether it counts as known."""
    found: dict[tuple[str, str], list[tuple[str, Content, bool]]] = {}
    for mine in uids:  # one by one: for a lone instance, the usual case, a list would cost more than the question
        for uid, name, key, syntax, digest, outcome in _SEEN.ask(connection, {"uid": mine}):
            counts = outcome in {Outcome.DELIVERED, Outcome.WAITING}
            found.setdefault((uid, name), []).append((key, (syntax, digest), counts))
    return found


def _find(connection: Connection, place: tuple[str, str, str]) -> _Collection | None:
    study, route, partner = place
    rows = _FIND.ask(connection, {"study": study, "route": route, "partner": partner})
    if not rows:
        return None
    ((key, opened_at, last_at, size, instances),) = rows
    return _Collection(key, Facts(opened_at, last_at, size), instances)


def _begin(connection: Connection, arrival: Arrival, partner: str, address: str) -> _Collection:
    """Open a collection: the first instance of a study, or of what came of it after it was complete."""
    key, at, course = new_id(Direction.OUT, arrival.at), arrival.at, arrival.course
    place = {"route": course.route, "partner": partner, "study": arrival.instance.study}
    mine = [collection.c[name] == value for name, value in place.items()]
    generation = (connection.scalar(select(func.max(collection.c.generation)).where(*mine)) or 0) + 1
    connection.execute(insert(message).values(_message(key, arrival, partner, address)))
    facts = {"opened_at": at, "last_at": at, "instances": 0, "size": 0, "calling": arrival.calling}
    row = {"message": key, "generation": generation, "called": arrival.called, **place, **facts}
    connection.execute(insert(collection).values(row))
    late = "" if generation == 1 else f"; it is generation {generation} of this study"
    text = f"first instance from {arrival.calling} by {arrival.door}, route {course.route}, for {partner}{late}"
    tell(connection, at, "collecting", text, message=key)
    tickets.put(connection, f"compose:{key}", grouping.due(Facts(at, at, 0), course.rules, at))
    return _Collection(key, Facts(at, at, 0), 0)


def _message(key: str, arrival: Arrival, partner: str, address: str) -> dict[str, Any]:
    course = arrival.course
    return {
        "id": key,
        "direction": Direction.OUT,
        "stage": Stage.COMPOSE,
        "outcome": Outcome.WAITING,
        "door": arrival.door,
        "peer": arrival.peer,
        "account": arrival.calling,
        "sender": "",
        "recipients": [address],
        "partner": partner,
        "routes": [course.route],
        "urgent": course.urgent,
        "late_at": arrival.at + course.late,
        "blob": "",
        "size": 0,
        "sha256": "",
        "body_sha256": "",
        "kind": "dicom",
        "received_at": arrival.at,
    }


def _values(key: str, number: int, one: Instance, blob: str) -> dict[str, Any]:
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
        "part": one.part,
        "file_id": None,
        "start": one.file.start,
        "data_set": one.data_set,
        "size": one.size,
        "blob": blob,
    }


@dataclass(frozen=True, slots=True)
class Row:
    """What COMPOSE needs to know of a collection.

    Attributes:
        id: Of the item.
        route: The route it came by.
        partner: Whom it is for.
        study: Study Instance UID.
        facts: When it came, and how big it is.
        completed: Nothing joins it any more.
        crashes: How often the gateway stopped while composing it.
        tries: How often composing failed.
    """

    id: str
    route: str
    partner: str
    study: str
    facts: Facts
    completed: bool
    crashes: int
    tries: int


def get(connection: Connection, key: str) -> Row | None:
    """Read a collection that is in COMPOSE and waits; None when there is none."""
    row = connection.execute(
        select(collection, message.c.crashes, message.c.tries)
        .join(message, message.c.id == collection.c.message)
        .where(collection.c.message == key, _OPEN)
    ).one_or_none()
    if row is None:
        return None
    facts = Facts(row.opened_at, row.last_at, row.size)
    done = row.completed_at is not None
    return Row(row.message, row.route, row.partner, row.study, facts, done, row.crashes, row.tries)


def complete(connection: Connection, key: str, why: str, now: datetime, who: str | None = None) -> bool:
    """Let nothing join a collection any more, and have it composed; tell whether it was open."""
    mine = (collection.c.message == key) & collection.c.completed_at.is_(None)
    if connection.execute(update(collection).where(mine).values(completed_at=now)).rowcount == 0:
        return False
    row = connection.execute(select(collection).where(collection.c.message == key)).one()
    text = f"complete, {why}: {row.instances} instance{'' if row.instances == 1 else 's'}, {row.size} bytes"
    tell(connection, now, "complete", text, message=key, who=who)
    tickets.put(connection, f"compose:{key}", now)
    return True


def complete_when_due(connection: Connection, key: str, rules: Rules, now: datetime) -> datetime | None:
    """Complete a collection if it is due; else return when it will be. In the transaction that decides it."""
    row = get(connection, key)
    if row is None or row.completed:
        return None
    due = grouping.due(row.facts, rules, now)
    if due > now:
        return due
    why = "nothing came any more"
    if row.facts.size >= rules.max_size:
        why = "it is big enough"
    elif row.facts.last_at + rules.quiet > now:
        why = "it is old enough"
    complete(connection, key, why, now)
    return None


@dataclass(frozen=True, slots=True)
class Kept:
    """An instance of a collection that waits to be composed.

    Attributes:
        number: Within the collection.
        blob: The key in the spool.
        start: Where in it the file begins.
        sop_class: SOP Class UID.
        sop_instance: SOP Instance UID.
        study: Study Instance UID.
        series: Series Instance UID.
        transfer_syntax: Transfer Syntax UID.
        sha256: Of the file.
        data_set_sha256: Of the data set.
        data_set: Offset of the data set in the file.
        size: Bytes of the file.
    """

    number: int
    blob: str
    start: int
    sop_class: str
    sop_instance: str
    study: str
    series: str
    transfer_syntax: str
    sha256: str
    data_set_sha256: str
    data_set: int
    size: int


def uncomposed(connection: Connection, key: str) -> list[Kept]:
    """List the instances of a collection that wait and lie in no mail yet, as they came."""
    columns = [instance.c[name] for name in Kept.__dataclass_fields__]
    rows = connection.execute(
        select(*columns)
        .join(delivery, (delivery.c.message == instance.c.message) & (delivery.c.number == instance.c.number))
        .where(instance.c.message == key, delivery.c.outcome == Outcome.WAITING, delivery.c.file_set.is_(None))
        .order_by(instance.c.number)
    )
    return [Kept(*row) for row in rows]


def hold(connection: Connection, key: str, numbers: Sequence[int], code: str, text: str, now: datetime) -> None:
    """Hold instances that cannot be composed, with the reason; the others go on."""
    values = {"outcome": Outcome.HELD, "code": code, "closed_at": now, "next_attempt": None}
    for at in range(0, len(numbers), MOST_AT_ONCE):
        mine = (delivery.c.message == key) & delivery.c.number.in_(numbers[at : at + MOST_AT_ONCE])
        waiting = mine & (delivery.c.outcome == Outcome.WAITING) & delivery.c.file_set.is_(None)
        connection.execute(update(delivery).where(waiting).values(values))
    tell(connection, now, "held", text, message=key)


def count_try(connection: Connection, key: str, text: str, now: datetime) -> int:
    """Count a COMPOSE that failed for a reason of ours, and return how many there were."""
    connection.execute(update(message).where(message.c.id == key).values(tries=message.c.tries + 1))
    tell(connection, now, "compose-failed", text, message=key)
    return connection.scalar(select(message.c.tries).where(message.c.id == key)) or 0
