"""Routing for any book and any mail: the first match for each recipient, and nobody believed who is not bound."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.routing import Book, Partner, Route, admits, decide, matches
from gateway.errors import RefusedError
from gateway.model import Envelope, Header

ADDRESSES = ["a@one.example", "b@one.example", "a@two.example", "own@gw.example", "postmaster"]
PATTERNS = ["*", "*@one.example", "a@*", "b@one.example", "A@TWO.example"]
NETS = [ip_network("192.0.2.0/24"), ip_network("198.51.100.0/24")]
PARTNERS = st.lists(
    st.builds(
        Partner,
        st.sampled_from(["p", "q"]),
        st.sampled_from(PATTERNS[1:]),
        st.just("any"),
        st.none() | st.sampled_from([(net,) for net in NETS]),
        st.none() | st.just("user"),
    ),
    max_size=3,
)
ROUTES = st.lists(
    st.builds(
        Route,
        st.sampled_from(["r1", "r2", "r3"]),
        st.none() | st.sampled_from(["p", "q", *PATTERNS]),
        st.none() | st.sampled_from(PATTERNS),
        st.none() | st.just("radiology"),
        st.sampled_from([("x",), ("y",), ("x", "y")]),
        st.booleans(),
        st.just(timedelta(minutes=1)),
    ),
    max_size=4,
)
BOOKS = st.builds(Book, PARTNERS.map(tuple), ROUTES.map(tuple), st.just(("own@gw.example",)))
ENVELOPES = st.builds(
    Envelope,
    st.sampled_from(["smtp", "imap.radiology"]),
    st.just(""),
    st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=3).map(tuple),
    st.sampled_from(["192.0.2.1", "198.51.100.1", "203.0.113.1", "nonsense"]),
    st.none() | st.just("user"),
)
HEADERS = st.builds(
    Header,
    st.lists(st.sampled_from(ADDRESSES), max_size=2).map(tuple),
    st.integers(0, 2),
    st.none(),
    st.integers(0, 102),
)


@given(BOOKS, ENVELOPES, HEADERS)
def test_every_route_taken_is_the_first_that_leads_there(book: Book, envelope: Envelope, header: Header) -> None:
    """Whatever is configured and sent: a decision or a 5xx, and never a route that one before it shadows."""
    try:
        found = decide(book, envelope, header, "gw.example")
    except RefusedError as refused:
        if refused.code not in {550, 554}:
            raise
        return
    assert header.received <= 100
    assert set(found.destinations) == {name for route in found.routes for name in route.store}
    assert len(found.routes) <= len(envelope.recipients)
    if found.partner is not None:
        assert found.sender is not None
        assert matches(found.partner.address, found.sender)
        assert found.partner.is_bound_to(envelope)
    for route in found.routes:
        assert route.mailbox is None or envelope.door == f"imap.{route.mailbox}"
        assert any(route.to is None or matches(route.to, one) for one in envelope.recipients)
        # Nobody without a partner entry gets in, except where the configuration names strangers.
        assert found.partner is not None or (route.sender is not None and ("@" in route.sender or route.sender == "*"))


@given(BOOKS, ENVELOPES, HEADERS)
def test_a_mail_to_two_takes_what_two_mails_would_take(book: Book, envelope: Envelope, header: Header) -> None:
    """Per recipient: the routes are those that each recipient alone would have taken, our own addresses apart."""

    def taken(*recipients: str) -> set[Route]:
        alone = Envelope(envelope.door, "", recipients, envelope.peer, envelope.user)
        try:
            return set(decide(book, alone, header, "gw.example").routes)
        except RefusedError:
            return set()

    assert taken(*envelope.recipients) == {route for one in envelope.recipients for route in taken(one)}


@given(BOOKS, ENVELOPES, HEADERS)
def test_what_smtp_decides_for_was_admitted(book: Book, envelope: Envelope, header: Header) -> None:
    """A recipient that RCPT refuses never gets a route at the end of DATA (SMTP-10)."""
    for recipient in envelope.recipients:
        if not admits(book, recipient):
            alone = Envelope("smtp", "", (recipient,), envelope.peer, envelope.user)
            try:
                assert decide(book, alone, header, "gw.example").routes == ()
            except RefusedError:
                continue
