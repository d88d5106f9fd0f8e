"""Who a message is from, and where its instances go: pure functions of a route book, an envelope and a header.

The partner of a message is found by its one From address; an envelope sender is only where a DSN would go. The first
route that matches wins, for each recipient by itself, so that a message to two addresses reaches what both name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from fnmatch import translate
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final, Literal

from gateway.core.coercion import Rule
from gateway.errors import RefusedError
from gateway.model import Envelope, Header

MOST_HOPS = 100
"""Received fields after which a message is taken to be looping (RFC 5321 §6.3, SMTP-17)."""


MAILBOXES: Final = ("imap.", "pop3.")
"""How the doors begin at which mail is fetched."""


@dataclass(frozen=True, slots=True)
class Partner:
    """Someone we exchange images with.

    Attributes:
        name: As the configuration names it.
        address: Its address, or a pattern with ``*``.
        accept: What protection its mail must carry: ``any``, ``signed``, ``encrypted`` or ``signed+encrypted``.
        peers: The networks whose SMTP peers may speak for it; None for any.
        user: The AUTH name that may speak for it; None for any.
        phone: Whom to call.
    """

    name: str
    address: str
    accept: str = "signed"
    peers: tuple[IPv4Network | IPv6Network, ...] | None = None
    user: str | None = None
    phone: str | None = None

    def is_bound_to(self, envelope: Envelope) -> bool:
        """Tell whether whoever handed the message over may speak for this partner.

        Whoever wrote to a mailbox is not known, and the peer there is our own mail server: it proves nothing.
        """
        if self.peers is None and self.user is None:
            return True
        if is_from_mailbox(envelope):
            return False
        if self.user is not None and envelope.user == self.user:
            return True
        return self.peers is not None and _lies_in(envelope.peer, self.peers)


@dataclass(frozen=True, slots=True)
class Route:
    """One inbound route.

    Attributes:
        name: As the configuration names it.
        sender: A partner's name, an address pattern, or ``*`` for strangers too; None for any partner.
        to: Pattern of the recipient; None for any.
        mailbox: The mailbox section it is limited to; None for any door.
        store: Names of the destinations.
        urgent: Goes first.
        late: After how long somebody is told that it is not delivered.
        patient_mismatch: ``hold`` or ``accept``: one Patient ID with two birth dates or names.
        coerce: What it changes in each data set.
        bare_dicom: It takes data sets without preamble and meta information.
        uuencode: It takes uuencoded files in text.
    """

    name: str
    sender: str | None
    to: str | None
    mailbox: str | None
    store: tuple[str, ...]
    urgent: bool
    late: timedelta
    patient_mismatch: Literal["hold", "accept"] = "hold"
    coerce: Rule = field(default_factory=Rule)
    bare_dicom: bool = False
    uuencode: bool = False


@dataclass(frozen=True, slots=True)
class Book:
    """All partners and inbound routes, and our own addresses at which reports arrive."""

    partners: tuple[Partner, ...]
    routes: tuple[Route, ...]
    own: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What shall become of a message.

    Attributes:
        sender: The one From address in lower case; None when there is not exactly one.
        partner: Whom it is from; None for a stranger.
        routes: The routes it takes, one at most for each recipient; none for a report.
        astray: How many recipients have no route for this sender, beside those that have.
        unproven: The partner whose From it bears, bound to SMTP peers or a user, which a mailbox cannot prove.
    """

    sender: str | None
    partner: Partner | None
    routes: tuple[Route, ...]
    astray: int = 0
    unproven: str | None = None

    @property
    def destinations(self) -> tuple[str, ...]:
        """Where its instances go, each once, in the order of the routes."""
        return tuple(dict.fromkeys(name for route in self.routes for name in route.store))

    @property
    def is_stray(self) -> bool:
        """Whether a partner's mail lies in a mailbox, where nobody can refuse it, and no route takes it from there."""
        return bool(self.astray) and not self.routes

    @property
    def urgent(self) -> bool:
        """Whether one of its routes is urgent."""
        return any(route.urgent for route in self.routes)

    @property
    def late(self) -> timedelta | None:
        """The shortest patience of its routes; None without a route."""
        return min((route.late for route in self.routes), default=None)

    @property
    def is_contradictory(self) -> bool:
        """Whether its routes would change its data sets in different ways: there is one of each for all of them."""
        return len({route.coerce for route in self.routes}) > 1


def matches(pattern: str, address: str) -> bool:
    """Match an address with a pattern in which ``*`` stands for anything; case never matters."""
    return _compiled(pattern.casefold()).match(address.casefold()) is not None


def is_from_mailbox(envelope: Envelope) -> bool:
    """Tell whether a message was fetched, so that nobody can be refused and nobody has shown who he is."""
    return envelope.door.startswith(MAILBOXES)


def admits(book: Book, recipient: str) -> bool:
    """Tell whether a recipient is ours: a route's that no mailbox is bound to, or one for reports (SMTP-10)."""
    return _is_own(book, recipient) or any(r.mailbox is None and _leads(r, recipient) for r in book.routes)


def decide(book: Book, envelope: Envelope, header: Header, gateway: str) -> Decision:
    """Find the partner and the routes of a message.

    Args:
        book: What is configured now.
        envelope: How it came.
        header: What its header says.
        gateway: Our own name, which a looping message bears.

    Raises:
        RefusedError: It loops, its sender is unknown, or whoever handed it over may not speak for that sender.
    """
    if header.received > MOST_HOPS or gateway in header.loop_tokens:
        raise RefusedError(554, "5.4.6", "this message is going in circles")
    sender = header.senders[0].casefold() if header.from_fields == 1 and len(header.senders) == 1 else None
    named = [partner for partner in book.partners if sender is not None and matches(partner.address, sender)]
    partner = next((partner for partner in named if partner.is_bound_to(envelope)), None)
    recipients = [recipient for recipient in envelope.recipients if not _is_own(book, recipient)]
    fetched = is_from_mailbox(envelope)
    if not (recipients or fetched):
        return Decision(sender, partner, ())
    if named and partner is None:
        if fetched:
            return Decision(sender, None, (), unproven=named[0].name)
        raise RefusedError(550, "5.7.1", "this peer may not send for that From address")
    # One account may be both: the mailbox that images come to, and where reports on our own mail come back.
    routes = [_first(book, envelope, sender, partner, one) for one in (recipients or envelope.recipients)]
    taken = tuple(dict.fromkeys(route for route in routes if route is not None))
    if not taken:
        if not recipients:
            return Decision(sender, partner, ())
        if fetched and partner is not None:
            return Decision(sender, partner, (), routes.count(None))
        raise RefusedError(550, "5.7.1", "no mail is taken from that From address here")
    return Decision(sender, partner, taken, routes.count(None))


def _first(book: Book, envelope: Envelope, sender: str | None, partner: Partner | None, to: str) -> Route | None:
    for route in book.routes:
        if not _leads(route, to):
            continue
        if route.mailbox is not None and envelope.door.partition(".")[2] != route.mailbox:
            continue
        if _takes(route, sender, partner):
            return route
    return None


def _takes(route: Route, sender: str | None, partner: Partner | None) -> bool:
    if route.sender == "*":
        return True
    if route.sender is None:
        return partner is not None
    if "@" in route.sender:
        return sender is not None and matches(route.sender, sender)
    return partner is not None and route.sender == partner.name


def _leads(route: Route, recipient: str) -> bool:
    return route.to is None or matches(route.to, recipient)


def _is_own(book: Book, recipient: str) -> bool:
    # RFC 5321 §4.5.1: postmaster alone, without a domain, is an address too.
    return recipient.casefold() == "postmaster" or any(matches(own, recipient) for own in book.own)


def _lies_in(peer: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    try:
        address = ip_address(peer)
    except ValueError:
        return False
    return any(address in network for network in networks)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    # Only * has a meaning: brackets and question marks are legal in addresses.
    return re.compile(translate(re.sub(r"([\[?])", r"[\1]", pattern)))
