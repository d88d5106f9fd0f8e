"""How each part of the gateway is: well, or what is wrong with it and since when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from gateway.core.mailbox import REMEDY, State
from gateway.edges.console.running import Running
from gateway.ledger.submissions import RELAY

EXPIRES_SOON: Final = timedelta(days=30)


class Colour(StrEnum):
    """What a light shows. On the page a word and a shape say the same."""

    WELL = "well"
    IDLE = "idle"
    LOOK = "look"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Light:
    """One part of the gateway.

    Attributes:
        name: As in the configuration.
        kind: What it is, for people.
        colour: How it is.
        text: The same in words.
        since: Since when it is so; None when nobody knows or it does not matter.
        do: What to do about it; empty when nothing.
        lane: The name by which it can be paused; empty when it cannot.
        paused: A person paused it.
    """

    name: str
    kind: str
    colour: Colour
    text: str
    since: datetime | None = None
    do: str = ""
    lane: str = ""
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """All lights, in groups."""

    doors: Sequence[Light]
    destinations: Sequence[Light]
    partners: Sequence[Light]
    house: Sequence[Light]

    def all(self) -> Iterator[Light]:
        """Every light."""
        for group in (self.doors, self.destinations, self.partners, self.house):
            yield from group


def panel(running: Running, rows: Mapping[str, Any], mailboxes: Mapping[str, Any], now: datetime) -> Panel:
    """Look at everything.

    Args:
        running: The gateway.
        rows: Of the ledger's destinations, by name.
        mailboxes: Of the ledger's mailboxes, by door.
        now: This moment.
    """
    configuration = running.configuration
    destinations = [_lane(name, "PACS", name, rows.get(name)) for name in configuration.ae]
    if configuration.relay is not None:
        destinations.append(_lane("relay", "mail relay", "relay", rows.get(RELAY)))
    return Panel(
        [*_doors(running.doors), *_mailboxes(configuration, mailboxes)],
        destinations,
        list(_partners(running, now)),
        list(_house(running, now)),
    )


def _doors(doors: Mapping[str, bool]) -> Iterator[Light]:
    kinds = {"smtp": "SMTP door", "storescp": "DICOM door"}
    for name, is_open in doors.items():
        colour, text = (Colour.WELL, "open") if is_open else (Colour.BAD, "shut")
        yield Light(name, kinds.get(name, "door"), colour, text)


def _mailboxes(configuration: Any, rows: Mapping[str, Any]) -> Iterator[Light]:
    for kind, some in (("imap", configuration.imap), ("pop3", configuration.pop3)):
        for name in some:
            door = f"{kind}.{name}"
            row = rows.get(door)
            if row is None:
                yield Light(door, "mailbox", Colour.IDLE, "not looked at yet")
            elif row.state == State.OK:
                yield Light(door, "mailbox", Colour.WELL, "looked at", row.looked_at)
            else:
                yield Light(door, "mailbox", Colour.BAD, row.text or row.state, row.since, REMEDY.get(row.state, ""))


def _lane(name: str, kind: str, lane: str, row: Any) -> Light:
    if row is None:
        return Light(name, kind, Colour.IDLE, "not used yet", lane=lane)
    if row.paused:
        return Light(name, kind, Colour.LOOK, "paused by a person", lane=lane, paused=True)
    if row.breaker_until is not None or row.down_since is not None or row.trouble:
        return Light(name, kind, Colour.BAD, row.trouble or "does not answer", row.down_since, lane=lane)
    if row.answered_at is None:
        return Light(name, kind, Colour.IDLE, "has not been asked yet", lane=lane)
    return Light(name, kind, Colour.WELL, "answered", row.answered_at, lane=lane)


def _partners(running: Running, now: datetime) -> Iterator[Light]:
    last = running.partners.last
    ends = running.certificates
    for name in running.configuration.partner:
        seen = max((last.get((name, way), 0.0) for way in ("in", "out")), default=0.0)
        since = datetime.fromtimestamp(seen, UTC) if seen else None
        text, colour = ("last exchange", Colour.WELL) if seen else ("nothing exchanged yet", Colour.IDLE)
        end = ends.get(f"partner.{name}")
        if end is not None and (left := _left(end, now)) is not None:
            colour, text, since = left[0], f"its certificate {left[1]}", datetime.fromtimestamp(end, UTC)
        yield Light(name, "partner", colour, text, since)


def _house(running: Running, now: datetime) -> Iterator[Light]:
    free, room = running.room
    if room:
        low = free < running.configuration.limits.free_space_floor(room)
        colour = Colour.BAD if low else Colour.WELL
        do = "free some space: below the limit nothing is taken in" if low else ""
        yield Light("disk", "data folder", colour, f"{100 * free // room} % free", do=do)
    for subject, end in running.certificates.items():
        if not subject.startswith("partner.") and (left := _left(end, now)) is not None:
            yield Light(subject, "certificate", left[0], left[1], datetime.fromtimestamp(end, UTC), "renew it")
    unaccounted, proved = running.proof
    if unaccounted is not None:
        well = unaccounted == 0
        text = "everything is accounted for" if well else f"{unaccounted} items are not accounted for"
        at = datetime.fromtimestamp(proved, UTC)
        yield Light("proof", "conservation", Colour.WELL if well else Colour.BAD, text, at)


def _left(end: float, now: datetime) -> tuple[Colour, str] | None:
    left = end - now.timestamp()
    if left <= 0:
        return Colour.BAD, "has run out"
    return (Colour.LOOK, "runs out soon") if left < EXPIRES_SOON.total_seconds() else None
