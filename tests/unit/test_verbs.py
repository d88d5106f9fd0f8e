"""What a person may do to an item, and what not; on both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from rows import (
    NOW,
    alarms,
    arrival,
    instance,
    outcome,
    parts,
    queue,
    read,
    send,
    stories,
    wakes,
)
from sqlalchemy import Connection, select

from gateway.ledger import deliveries, messages, verbs
from gateway.ledger.tables import delivery, event, message, ticket
from gateway.ledger.verbs import UnknownItemError, WrongStateError
from gateway.model import Outcome

LATER = NOW + timedelta(hours=1)
HOUR = timedelta(hours=1)

Verb = Callable[[Connection, str], object]
VERBS: dict[str, Verb] = {
    "retry": lambda c, key: verbs.retry(c, key, LATER, "anna", force=False),
    "retry --force": lambda c, key: verbs.retry(c, key, LATER, "anna", force=True),
    "hold": lambda c, key: verbs.hold(c, key, LATER, "anna"),
    "release": lambda c, key: verbs.release(c, key, LATER, "anna"),
    "drop": lambda c, key: verbs.drop(c, key, LATER, "anna"),
    "resolve delivered": lambda c, key: verbs.resolve(c, key, "delivered", LATER, "anna"),
    "resolve resend": lambda c, key: verbs.resolve(c, key, "resend", LATER, "anna"),
    "resolve dropped": lambda c, key: verbs.resolve(c, key, "dropped", LATER, "anna"),
}

ALLOWED = {
    ("receive", "waiting"): {"retry": "waiting", "retry --force": "waiting", "hold": "held", "drop": "refused"},
    ("receive", "held"): {"retry --force": "waiting", "release": "waiting", "drop": "refused"},
    ("receive", "refused"): {"retry --force": "waiting"},
    ("store", "waiting"): {"retry": "waiting", "retry --force": "waiting", "hold": "held", "drop": "refused"},
    ("store", "held"): {"retry --force": "waiting", "release": "waiting", "drop": "refused"},
    ("store", "failed"): {"retry": "waiting", "retry --force": "waiting", "drop": "refused"},
    ("store", "delivered"): {"retry --force": "waiting"},
    ("store", "refused"): {},
    ("store", "doubtful"): {
        "retry": "waiting",
        "retry --force": "waiting",
        "hold": "held",
        "drop": "refused",
        "resolve delivered": "delivered",
        "resolve resend": "waiting",
        "resolve dropped": "refused",
    },
    ("store", "in-doubt"): {
        "retry --force": "waiting",
        "release": "waiting",
        "drop": "refused",
        "resolve delivered": "delivered",
        "resolve resend": "waiting",
        "resolve dropped": "refused",
    },
}
"""By stage and state of an item: the verbs that have a meaning, and the outcome that follows."""


def make(connection: Connection, stage: str, state: str) -> None:
    """Bring the item in-1, and in-2 which repeats it, into a state."""
    if stage == "receive":
        messages.accept(connection, [arrival("in-1", body="same")])
        if state == "held":
            messages.hold(connection, "in-1", "poison", "it crashed", NOW)
        if state == "refused":
            messages.decide(connection, "in-1", read(refused="not-dicom"), NOW)
    else:
        queue(connection, "in-1", body="same")
        doubt = {"code": "in-doubt", "status": None, "unknown": True, "wait": HOUR}
        changes = {"doubtful": {**doubt, "outcome": Outcome.WAITING}, "in-doubt": {**doubt, "outcome": Outcome.HELD}}
        if state != "waiting":
            send(
                connection,
                "pacs",
                **changes.get(state, {"outcome": Outcome(state) if state in list(Outcome) else None}),
            )
    messages.accept(connection, [arrival("in-2", body="same")])
    connection.execute(ticket.delete())


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("stage", "state"), ALLOWED)
def test_each_verb_does_what_its_name_says_or_is_refused(
    connection: Connection, stage: str, state: str, verb: str
) -> None:
    """The whole table: in every state each verb leads to its outcome, wakes who must act, and names who said so."""
    make(connection, stage, state)
    expected = ALLOWED[stage, state].get(verb)
    before = outcome(connection, "in-1"), stories(connection, "in-1")
    if expected is None:
        with pytest.raises(WrongStateError) as caught:
            VERBS[verb](connection, "in-1")
        assert caught.value.hint
        assert (outcome(connection, "in-1"), stories(connection, "in-1")) == before
        return
    VERBS[verb](connection, "in-1")
    assert outcome(connection, "in-1")[0] == outcome(connection, "in-2")[0] == expected
    assert "anna" in connection.scalars(select(event.c.who)).all()
    wanted = {"receive:in-1" if stage == "receive" else "store:pacs"} if expected == "waiting" else set()
    assert set(wakes(connection)) == wanted
    assert bool(alarms(connection)) == (expected == "held")
    if expected == "waiting" and stage == "store":
        assert deliveries.next_due(connection, "pacs") == LATER
        columns = (delivery.c.sends_unknown, delivery.c.failures, delivery.c.closed_at)
        assert connection.execute(select(*columns)).one() == (0, 0, None)


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_id_and_a_repetition_are_refused_by_every_verb(connection: Connection, verb: str) -> None:
    """A repetition has no state of its own: the answer names the first."""
    make(connection, "store", "waiting")
    with pytest.raises(UnknownItemError, match="no item in-9"):
        VERBS[verb](connection, "in-9")
    with pytest.raises(WrongStateError, match="repeats in-1"):
        VERBS[verb](connection, "in-2")


@pytest.mark.parametrize(
    ("stage", "state", "verb"),
    [
        ("receive", "refused", "retry --force"),
        ("receive", "held", "release"),
        ("store", "delivered", "retry --force"),
        ("store", "in-doubt", "release"),
        ("store", "in-doubt", "resolve resend"),
    ],
)
def test_nothing_is_tried_again_whose_bytes_are_gone(connection: Connection, stage: str, state: str, verb: str) -> None:
    """Nobody waits for what cannot come (R17): the answer says that the bytes were deleted."""
    make(connection, stage, state)
    connection.execute(message.update().values(purged_at=NOW))
    with pytest.raises(WrongStateError, match="bytes of in-1 were deleted"):
        VERBS[verb](connection, "in-1")
    assert wakes(connection) == {}


def test_a_drop_keeps_what_was_delivered_and_names_every_copy_of_the_bytes(connection: Connection) -> None:
    """Dropped is what is not delivered; the bytes to erase include those of the repetitions (R34)."""
    queue(connection, "in-1", instance(1), body="same", to=("pacs", "other"))
    send(connection, "other")
    messages.accept(connection, [arrival("in-2", body="same")])
    blobs = verbs.drop(connection, "in-1", NOW, "anna")
    assert sorted(one.key for one in blobs) == ["2026112312/in-1.dcm", "2026112312/in-1.eml", "2026112312/in-2.eml"]
    assert parts(connection, "in-1") == [(1, "pacs", "refused", "dropped"), (1, "other", "delivered", None)]
    verbs.erased(connection, "in-1", NOW, "anna")
    assert connection.scalars(select(message.c.purged_at)).all() == [NOW, NOW]


def test_what_is_on_the_wire_is_not_queued_twice(connection: Connection) -> None:
    """A retry while an instance is being sent waits for its answer."""
    queue(connection, "in-1", instance(1), instance(2))
    deliveries.mark(connection, deliveries.due(connection, "pacs", NOW, 1))
    verbs.retry(connection, "in-1", LATER, "anna", force=False)
    rows = connection.execute(select(delivery.c.sending, delivery.c.next_attempt).order_by(delivery.c.id)).all()
    assert [tuple(row) for row in rows] == [(True, NOW), (False, LATER)]


def test_a_retry_overrides_the_breaker(connection: Connection) -> None:
    """A person's word is tried at once, behind one probe."""
    queue(connection, "in-1")
    deliveries.trip(connection, deliveries.condition(connection, "pacs"), "silent", LATER + HOUR, NOW, urgent=False)
    verbs.retry(connection, "in-1", LATER, "anna", force=False)
    assert deliveries.condition(connection, "pacs").breaker_until == LATER
