"""Any interleaving of arrivals, silence, crashes and composing: every instance in exactly one generation (R10, R20)."""

from __future__ import annotations

import hashlib
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import CT, EXPLICIT, NOW
from sqlalchemy import Connection, Engine, create_engine, select
from sqlalchemy.pool import StaticPool

from gateway.core import grouping
from gateway.core.grouping import Facts, Rules
from gateway.ledger import collections, inventory, submissions
from gateway.ledger.collections import Arrival, Course
from gateway.ledger.submissions import Mail
from gateway.ledger.tables import collection, delivery, instance, message, metadata, submission
from gateway.model import Instance, Outcome, Span

RULES = Rules(timedelta(seconds=60), timedelta(minutes=5), 500)
COURSE = Course("out", (("a", "a@x.example"), ("b", "b@x.example")), RULES, urgent=False, late=timedelta(minutes=30))

# An instance of one of two studies, with one of two contents; or silence; or a look, which may end in a crash.
STEP = st.one_of(
    st.tuples(st.just("image"), st.integers(1, 4), st.integers(1, 2), st.booleans()),
    st.tuples(st.just("silence"), st.sampled_from([1, 59, 61, 400]), st.just(0), st.booleans()),
    st.tuples(st.just("look"), st.just(0), st.just(0), st.booleans()),
)


def arrival(number: int, content: int, at: datetime, serial: int) -> Arrival:
    digest = hashlib.sha256(f"{number} {content}".encode()).hexdigest()
    study = f"1.2.{number % 2}"
    span = Span(Path("x"), 0, 100)
    one = Instance(CT, f"1.2.3.{number}", study, f"{study}.1", EXPLICIT, digest, digest, "", None, span, 40)
    return Arrival(one, f"h/{serial}.dcm", COURSE, "storescp", "192.0.2.1", "CT1", "OUT", at)


def look(connection: Connection, key: str, now: datetime, *, crash: bool) -> None:
    """Serve a collection as COMPOSE does: complete it when it is due, then write its mails, unless it crashes."""
    row = collections.get(connection, key)
    assert row is not None
    if not row.completed and collections.complete_when_due(connection, key, RULES, now) is not None:
        return
    kept = [one.number for one in collections.uncomposed(connection, key)]
    if crash:
        return
    if not kept:
        submissions.conclude(connection, key, now)
        return
    half = [some for some in (kept[::2], kept[1::2]) if some]
    mails = [Mail(n, n, len(half), f"<{key}.{n}@x>", f"h/{key}.{n}.eml", 9) for n in range(1, len(half) + 1)]
    assert submissions.add(connection, key, mails, half, "a@x.example", now)


def engine() -> Engine:
    made = create_engine("sqlite://", poolclass=StaticPool)
    metadata.create_all(made)
    return made


def look_at_all(connection: Connection, now: datetime, *, crash: bool) -> None:
    for key in connection.scalars(select(collection.c.message)).all():
        if collections.get(connection, key) is not None:
            look(connection, key, now, crash=crash)


@given(st.lists(STEP, max_size=30))
@settings(max_examples=150, deadline=None)
def test_every_acknowledged_instance_is_in_exactly_one_generation_for_each_partner(
    steps: list[tuple[str, int, int, bool]],
) -> None:
    """And in exactly one mail of it, or held for a person; nothing is composed twice, whatever crashes."""
    base, now, acknowledged = engine(), NOW, Counter[tuple[str, int]]()
    with base.connect() as connection, connection.begin():
        for serial, (what, number, content, flag) in enumerate(steps):
            if what == "image":
                if collections.accept(connection, [arrival(number, content, now, serial)]) == [True]:
                    acknowledged[f"1.2.3.{number}", content] += 1
                else:
                    assert acknowledged[f"1.2.3.{number}", content]  # one is there already
            elif what == "silence":
                now += timedelta(seconds=number)
            else:
                look_at_all(connection, now, crash=flag)
        now += timedelta(minutes=10)
        look_at_all(connection, now, crash=False)
        look_at_all(connection, now, crash=False)
        for partner in ("a", "b"):
            mine = delivery.c.destination == f"mail:{partner}"
            joined = (delivery.c.message == instance.c.message) & (delivery.c.number == instance.c.number)
            known = (instance.c.blob, instance.c.sop_instance, instance.c.data_set_sha256)
            rows = connection.execute(select(*known, delivery).join(delivery, joined).where(mine)).all()
            once = Counter((row.message, row.sop_instance, row.data_set_sha256) for row in rows)
            assert max(once.values(), default=1) == 1
            assert max(Counter(row.blob for row in rows).values(), default=1) == 1
            assert len(rows) == sum(acknowledged.values())
            assert all((row.file_set is None) == (row.outcome == Outcome.HELD) for row in rows)
        carried = {(one.message, one.file_set) for one in connection.execute(select(submission))}
        wanted = select(delivery.c.message, delivery.c.file_set).where(delivery.c.file_set.is_not(None)).distinct()
        assert carried == {tuple(row) for row in connection.execute(wanted)}
        assert not connection.scalars(select(collection.c.message).where(collection.c.completed_at.is_(None))).all()
        sizes = connection.execute(select(collection.c.size, collection.c.instances)).all()
        assert all(size <= RULES.max_size for size, _ in sizes)
        proof = inventory.reconcile(connection, lambda _: True)
        assert (proof["unaccounted"], proof["instances"]["unaccounted"]) == (0, 0)
        assert set(connection.scalars(select(message.c.stage))) <= {"submit"}
    base.dispose()


def test_the_simulation_would_notice_an_instance_that_is_composed_twice() -> None:
    """Mails are written down only for what is still as it was composed (the test can fail)."""
    base = engine()
    with base.connect() as connection, connection.begin():
        collections.accept(connection, [arrival(1, 1, NOW, 1)])
        [first, _] = connection.scalars(select(collection.c.message)).all()
        look(connection, first, NOW + timedelta(minutes=9), crash=False)
        assert not submissions.add(connection, first, [Mail(1, 1, 1, "<x@x>", "h/x", 9)], [[1]], "a@x.example", NOW)
    base.dispose()


MOMENTS = st.datetimes(min_value=datetime(2026, 1, 1), max_value=datetime(2026, 12, 31))  # noqa: DTZ001  only compared


@given(MOMENTS, st.timedeltas(timedelta(), timedelta(hours=2)), st.integers(0, 1000), MOMENTS)
def test_a_collection_is_never_due_later_than_silence_and_age_say(
    opened: datetime, lasted: timedelta, size: int, now: datetime
) -> None:
    """Whatever the clock does (R29)."""
    facts = Facts(opened, opened + lasted, size)
    due = grouping.due(facts, RULES, now)
    assert due <= now + RULES.quiet
    assert due == now or due <= opened + RULES.max_age
    assert grouping.fits(facts, RULES, 0) == (size <= RULES.max_size)
    if size >= RULES.max_size or facts.last_at > now:
        assert due == now


@pytest.mark.parametrize(
    ("called", "calling", "route", "pattern", "taken"),
    [
        ("OUT", "CT1", "OUT", "*", True),
        ("OUT", "CT1", "out", "*", False),
        ("OUT", "CT1", None, "*", False),
        ("OUT", "CT1", "OUT", "CT1", True),
        ("OUT", "CT12", "OUT", "CT1", False),
        ("OUT", "CT12", "OUT", "CT*", True),
        ("OUT", "A.B", "OUT", "A?B", False),
        ("OUT", "MR CT 1", "OUT", "*CT*", True),
    ],
)
def test_a_route_takes_what_its_titles_say(
    called: str, calling: str, route: str | None, pattern: str, taken: bool
) -> None:
    """Only the star has a meaning (NET-6)."""
    assert grouping.takes(called, calling, route, pattern) is taken
