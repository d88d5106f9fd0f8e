"""Who is who, and what goes where: the table of design, row by row."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network

import pytest

from gateway.core.coercion import Rule
from gateway.core.routing import MOST_HOPS, Book, Decision, Partner, Route, admits, decide, matches
from gateway.errors import RefusedError
from gateway.model import Envelope, Header

GATEWAY = "gw.example"
MINUTE = timedelta(minutes=1)
A = Partner("clinic-a", "dicom@clinic-a.example", "any")
B = Partner("clinic-b", "*@clinic-b.example", "any")
BOUND = Partner("bound", "dicom@bound.example", "any", (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")), "bob")


def route(name: str, **changes: object) -> Route:
    values: dict[str, object] = {"sender": None, "to": None, "mailbox": None, "store": ("pacs",), "urgent": False}
    return Route(name, **{**values, "late": 15 * MINUTE, **changes})  # type: ignore[arg-type]


def book(*routes: Route) -> Book:
    return Book((A, B, BOUND), routes, ("team@gw.example", "dicom@gw.example"))


def envelope(*recipients: str, **changes: object) -> Envelope:
    made = Envelope("smtp", "bounce@elsewhere.example", recipients or ("pacs@gw.example",), "198.51.100.7")
    return replace(made, **changes)  # type: ignore[arg-type]


def header(*senders: str, fields: int = 1, **changes: object) -> Header:
    return replace(Header(senders, fields, "<1@x>", 1), **changes)  # type: ignore[arg-type]


def names(decision: Decision) -> list[str]:
    return [one.name for one in decision.routes]


FROM_A, FROM_B, FROM_X = header("DICOM@Clinic-A.example"), header("ct@clinic-b.example"), header("x@else.example")


@pytest.mark.parametrize(
    ("routes", "head", "taken"),
    [
        ([route("1")], FROM_A, ["1"]),
        ([route("1", sender="clinic-a"), route("2")], FROM_A, ["1"]),
        ([route("1", sender="clinic-b"), route("2")], FROM_A, ["2"]),
        ([route("1", sender="*@clinic-a.example")], FROM_A, ["1"]),
        ([route("1", sender="*@else.example")], FROM_X, ["1"]),
        ([route("1", sender="*"), route("2", sender="clinic-a")], FROM_A, ["1"]),
        ([route("1", sender="clinic-a"), route("2", sender="*")], FROM_X, ["2"]),
        ([route("1", to="other@gw.example"), route("2", to="PACS@*")], FROM_A, ["2"]),
        ([route("1", mailbox="radiology"), route("2")], FROM_B, ["2"]),
        ([route("1", sender="*")], header("a@x.example", "b@x.example"), ["1"]),
        ([route("1", sender="*")], header(), ["1"]),
    ],
)
def test_the_first_route_that_matches_wins(routes: list[Route], head: Header, taken: list[str]) -> None:
    """By sender, recipient and door, in the order of the file; case never matters (who is who)."""
    assert names(decide(book(*routes), envelope(), head, GATEWAY)) == taken


@pytest.mark.parametrize(
    ("routes", "head"),
    [
        ([], FROM_A),
        ([route("1", sender="clinic-b")], FROM_A),
        ([route("1")], FROM_X),
        ([route("1", sender="*@clinic-a.example")], header("dicom@clinic-a.example", "x@else.example")),
        ([route("1")], header("dicom@clinic-a.example", "dicom@clinic-a.example")),
        ([route("1")], header("dicom@clinic-a.example", fields=2)),
        ([route("1")], header("")),
        ([route("1", mailbox="radiology")], FROM_A),
    ],
)
def test_who_is_not_known_is_refused(routes: list[Route], head: Header) -> None:
    """One From field with one address names the partner; without partner and open route: 550 5.7.1 (R6)."""
    with pytest.raises(RefusedError) as caught:
        decide(book(*routes), envelope(), head, GATEWAY)
    assert caught.value.reply.startswith("550 5.7.1 ")


def test_each_recipient_takes_its_own_route() -> None:
    """A mail to two addresses reaches what both name, each destination once; the envelope sender decides nothing."""
    routes = [
        route("1", to="ct@*", store=("pacs", "ai"), urgent=True),
        route("2", to="mr@*", store=("ai", "mr"), late=MINUTE),
    ]
    found = decide(book(*routes), envelope("ct@gw.example", "mr@gw.example", "ct@gw.example"), FROM_A, GATEWAY)
    assert names(found) == ["1", "2"]
    assert found.destinations == ("pacs", "ai", "mr")
    assert (found.urgent, found.late, found.partner, found.sender) == (True, MINUTE, A, "dicom@clinic-a.example")


def test_a_recipient_that_no_route_of_this_sender_takes_is_left_out() -> None:
    """The others are served."""
    routes = [route("1", to="ct@*"), route("2", to="mr@*", sender="clinic-b")]
    assert names(decide(book(*routes), envelope("ct@gw.example", "mr@gw.example"), FROM_A, GATEWAY)) == ["1"]


@pytest.mark.parametrize("own", ["team@gw.example", "DICOM@gw.example", "postmaster", "Postmaster"])
@pytest.mark.parametrize("head", [FROM_A, FROM_X, header(), header("dicom@bound.example")])
def test_mail_to_our_own_addresses_is_always_taken_and_has_no_route(own: str, head: Header) -> None:
    """Reports come from anywhere, with any From (always accepted and classified)."""
    found = decide(book(), envelope(own), head, GATEWAY)
    assert (found.routes, found.destinations, found.urgent, found.late) == ((), (), False, None)
    assert admits(book(), own)


def test_our_own_address_beside_a_routed_one_adds_nothing() -> None:
    """The routed recipient alone decides."""
    assert names(decide(book(route("1")), envelope("team@gw.example", "pacs@gw.example"), FROM_A, GATEWAY)) == ["1"]


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({"peer": "192.0.2.9"}, True),
        ({"peer": "2001:db8::1"}, True),
        ({"user": "bob"}, True),
        ({"peer": "192.0.2.9", "user": "eve"}, True),
        ({}, False),
        ({"user": "eve"}, False),
        ({"peer": "unix"}, False),
    ],
)
def test_a_bound_partner_is_believed_only_from_its_peers_or_its_user(changes: dict[str, str], may: bool) -> None:
    """One of them suffices; anybody else who writes its From is refused, also where strangers are welcome."""
    routes = book(route("1", sender="*"))
    head = header("dicom@bound.example")
    if may:
        assert decide(routes, envelope(**changes), head, GATEWAY).partner == BOUND
        return
    with pytest.raises(RefusedError, match="may not send for that From address") as caught:
        decide(routes, envelope(**changes), head, GATEWAY)
    assert (caught.value.code, caught.value.status) == (550, "5.7.1")


def test_one_address_may_belong_to_two_partners_with_other_bindings() -> None:
    """The first whose binding holds is the partner."""
    inner = replace(BOUND, name="inner", user="carol", peers=None)
    both = Book((BOUND, inner), (route("1"),), ())
    found = decide(both, envelope(user="carol"), header("dicom@bound.example"), GATEWAY)
    assert found.partner == inner
    assert not inner.is_bound_to(envelope())


@pytest.mark.parametrize(
    ("changes", "loops"),
    [
        ({"received": MOST_HOPS}, False),
        ({"received": MOST_HOPS + 1}, True),
        ({"loop_tokens": ("other.example",)}, False),
        ({"loop_tokens": ("other.example", GATEWAY)}, True),
    ],
)
def test_a_mail_that_goes_in_circles_is_refused(changes: dict[str, object], loops: bool) -> None:
    """By hops or by our own token: 554 5.4.6 (SMTP-17, R25)."""
    head = replace(FROM_A, **changes)  # type: ignore[arg-type]
    if not loops:
        assert decide(book(route("1")), envelope(), head, GATEWAY).routes
        return
    with pytest.raises(RefusedError) as caught:
        decide(book(route("1")), envelope(), head, GATEWAY)
    assert caught.value.reply.startswith("554 5.4.6 ")


@pytest.mark.parametrize(
    ("routes", "recipient", "taken"),
    [
        ([], "pacs@gw.example", False),
        ([route("1")], "any@thing.example", True),
        ([route("1", to="*@gw.example")], "PACS@GW.example", True),
        ([route("1", to="*@gw.example")], "pacs@other.example", False),
        ([route("1", mailbox="radiology")], "pacs@gw.example", False),
    ],
)
def test_a_recipient_is_admitted_when_a_route_of_this_door_leads_there(
    routes: list[Route], recipient: str, taken: bool
) -> None:
    """What no route matches is refused at RCPT; a route of a mailbox opens no SMTP door (SMTP-10)."""
    assert admits(book(*routes), recipient) is taken


def test_mail_of_a_mailbox_takes_the_routes_of_that_mailbox() -> None:
    """The door is named by its section."""
    routes = book(route("1", mailbox="radiology"), route("2", mailbox="cardiology"))
    assert names(decide(routes, envelope(door="imap.cardiology"), FROM_A, GATEWAY)) == ["2"]


@pytest.mark.parametrize(
    ("pattern", "address", "expected"),
    [
        ("*", "a@b", True),
        ("*@b", "A@B", True),
        ("a@b", "a@b.c", False),
        ("a*@b", "a+1@b", True),
        ("a?@b", "a1@b", False),
        ("a?@b", "a?@b", True),
        ("[ab]@c", "a@c", False),
        ("[ab]@c", "[AB]@c", True),
        ("a.b@c", "axb@c", False),
        ("*@b", "x@b\n", False),
    ],
)
def test_only_the_star_has_a_meaning(pattern: str, address: str, expected: bool) -> None:
    """Brackets and question marks are legal in addresses."""
    assert matches(pattern, address) is expected


def test_a_recipient_without_a_route_beside_one_with_is_counted() -> None:
    """Its mail goes where it may, and the story says that one recipient gets nothing (SMTP-16)."""
    route = Route("in", "clinic-a", "pacs@gw.example", None, ("pacs",), urgent=False, late=timedelta(minutes=15))
    routes = (route, replace(route, sender="x", to="b@gw.example"))
    book = Book((Partner("clinic-a", "dicom@clinic-a.example"),), routes, ())
    envelope = Envelope("smtp", "", ("pacs@gw.example", "b@gw.example"), "192.0.2.1")
    found = decide(book, envelope, Header(("dicom@clinic-a.example",), 1, None, 0), "gw.example")
    assert (found.astray, found.destinations) == (1, ("pacs",))


def test_routes_that_change_data_sets_differently_contradict_each_other() -> None:
    """There is one data set of each instance, whoever gets it."""
    one, other = route("a"), route("b", coerce=Rule(prefix="B-"))
    assert not Decision(None, None, ()).is_contradictory
    assert not Decision(None, None, (one, route("c"))).is_contradictory
    assert Decision(None, None, (one, other)).is_contradictory


@pytest.mark.parametrize("peer", ["192.0.2.9", "198.51.100.7"])
def test_a_mailbox_proves_no_peer(peer: str) -> None:
    """The peer there is our own mail server, even where it lies in the partner's network; by SMTP it is refused."""
    head, routes = header("dicom@bound.example"), book(route("1"), route("2", sender="*"))
    decision = decide(routes, envelope(door="imap.a", peer=peer), head, GATEWAY)
    assert (decision.partner, decision.routes, decision.unproven) == (None, (), "bound")
    assert decide(routes, envelope(door="imap.a"), FROM_A, GATEWAY).unproven is None


def test_one_account_may_take_images_and_reports() -> None:
    """A mailbox with the relay's sender as its address: images take their route, a bounce is for ourselves."""
    routes = book(route("1"))
    ours = envelope("dicom@gw.example", door="imap.a")
    assert names(decide(routes, ours, FROM_A, GATEWAY)) == ["1"]
    assert decide(routes, ours, FROM_X, GATEWAY) == Decision("x@else.example", None, ())
    assert names(decide(routes, replace(ours, door="smtp"), FROM_A, GATEWAY)) == []
