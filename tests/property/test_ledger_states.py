"""The ledger under everything that may happen, in any order: after each step the proof holds (R34)."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rows import NOW, REMEMBER, alarms, arrival, decision, instance, read
from sqlalchemy import create_engine, delete, func, select

from gateway.core import retry, status
from gateway.core.retry import Bounds
from gateway.errors import GatewayError
from gateway.ledger import deliveries, inventory, janitor, messages, tickets, verbs
from gateway.ledger.deliveries import Work
from gateway.ledger.tables import delivery, message, metadata, ticket
from gateway.model import Instance, Outcome, Sent, Stage
from gateway.stages import store

PLACES = ["pacs", "other"]
PLACE = st.sampled_from(PLACES)
BOUNDS = Bounds(timedelta(days=5), 2)
DELIVERED = {0x0000, 0xB000, 0xB006, 0xB007}
STATUSES = st.sampled_from([0, 0, 0, 0xB000, 0x0111, 0xA700, 0xA900, 0xC000, 0x0122, 0x0124, 0x1234])
INSTANCES = st.builds(
    lambda number, content, held: instance(number, content=content, held=held),
    st.integers(1, 4),
    st.sampled_from(["", "", "", "forged"]),
    st.sampled_from([None, None, None, "truncated-data-set"]),
)


class Gateway(RuleBasedStateMachine):
    """Accepts, reads, sends, crashes, is operated and purged; knows only what it handed in."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = create_engine("sqlite://")
        metadata.create_all(self.engine)
        self.connection = self.engine.connect()
        self.now = NOW
        self.accepted = 0
        self.queued = 0
        self.bytes: set[str] = set()
        self.windows: dict[str, list[Work]] = {}

    def teardown(self) -> None:
        self.connection.close()
        self.engine.dispose()

    def ids(self) -> list[str]:
        return list(self.connection.scalars(select(message.c.id).order_by(message.c.id)))

    @rule(body=st.sampled_from(["x", "y", "z"]), places=st.sampled_from([("pacs",), ("other",), ("pacs", "other")]))
    def accept(self, body: str, places: tuple[str, ...]) -> None:
        self.accepted += 1
        route = decision(*places, name="+".join(places))
        made = arrival(
            f"in-{self.accepted:03}", body=body, at=self.now, known_since=self.now - REMEMBER, decision=route
        )
        self.bytes.add(made.blob)
        messages.accept(self.connection, [made])

    def _unread(self) -> list[str]:
        open_ = (message.c.stage == Stage.RECEIVE) & (message.c.outcome == Outcome.WAITING)
        return list(self.connection.scalars(select(message.c.id).where(open_, message.c.duplicate_of.is_(None))))

    @precondition(lambda self: self._unread())
    @rule(data=st.data(), instances=st.lists(INSTANCES, min_size=1, max_size=3), places=st.sets(PLACE, min_size=1))
    def decide(self, data: st.DataObject, instances: list[Instance], places: set[str]) -> None:
        key = data.draw(st.sampled_from(self._unread()))
        distinct = {(one.sop_instance, one.data_set_sha256): one for one in instances}  # as RECEIVE leaves them
        made = [replace(one, part=str(number)) for number, one in enumerate(distinct.values())]
        blob = f"2026112312/{key}.dcm"
        self.bytes.add(blob)
        self.queued += len(made) * len(places)
        assert messages.decide(self.connection, key, read(*made, to=sorted(places), blob=blob), self.now)

    @precondition(lambda self: self._unread())
    @rule(data=st.data(), what=st.sampled_from(["refused", "held", "hold", "crash"]))
    def read_without_images(self, data: st.DataObject, what: str) -> None:
        key = data.draw(st.sampled_from(self._unread()))
        if what == "crash":
            messages.count_crashes(self.connection, [key], self.now)
        elif what == "hold":
            assert messages.hold(self.connection, key, "poison", "it crashed", self.now)
        else:
            assert messages.decide(self.connection, key, read(**{what: "why"}), self.now)

    @rule(place=PLACE, most=st.integers(1, 3))
    def mark(self, place: str, most: int) -> None:
        if place not in self.windows:
            work = deliveries.mark(self.connection, deliveries.due(self.connection, place, self.now, most))
            # At most so many unknown sends without a person (promise 2).
            assert all(one.unknown < BOUNDS.unknown_sends for one in work)
            self.windows[place] = work

    @precondition(lambda self: self.windows)
    @rule(data=st.data(), dice=st.floats(0, 0.99))
    def settle(self, data: st.DataObject, dice: float) -> None:
        place = data.draw(st.sampled_from(sorted(self.windows)))
        window = self.windows.pop(place)
        answered = data.draw(st.integers(0, len(window)))
        outcomes = []
        for work in window[:answered]:
            refused = data.draw(st.sampled_from([None, None, None, *status.REFUSALS]))
            sent = Sent(work.id, None if refused else data.draw(st.none() | STATUSES), refused)
            verdict = status.judge(sent)
            bounds = replace(BOUNDS, alike=verdict.tries)
            outcomes.append(store.judge(work, sent, verdict, bounds, self.now - work.received_at, dice))
        deliveries.settle(self.connection, place, outcomes, window[answered:], self.now, self.now)

    @rule(dice=st.floats(0, 0.99))
    def crash(self, dice: float) -> None:
        self.windows.clear()
        tickets.restart(self.connection, self.now)
        for place in PLACES:
            deliveries.recover(self.connection, place, self.now, lambda facts: retry.after_silence(facts, BOUNDS, dice))

    @precondition(lambda self: self.accepted)
    @rule(
        data=st.data(),
        verb=st.sampled_from(["retry", "force", "hold", "release", "drop", "erase", "delivered", "resend", "dropped"]),
    )
    def operate(self, data: st.DataObject, verb: str) -> None:
        keys = self.ids()
        key = data.draw(st.sampled_from([*keys, "in-999"]))
        try:
            match verb:
                case "retry" | "force":
                    verbs.retry(self.connection, key, self.now, "anna", force=verb == "force")
                case "hold":
                    verbs.hold(self.connection, key, self.now, "anna")
                case "release":
                    verbs.release(self.connection, key, self.now, "anna")
                case "drop" | "erase":
                    blobs = verbs.drop(self.connection, key, self.now, "anna")
                    if verb == "erase":
                        verbs.erased(self.connection, key, self.now, "anna")
                        self.bytes -= set(blobs)
                case _:
                    verbs.resolve(self.connection, key, verb, self.now, "anna")
        except GatewayError:
            return

    @rule(place=PLACE)
    def remove_destination(self, place: str) -> None:
        deliveries.orphan(self.connection, [one for one in PLACES if one != place], self.now)

    @rule(hours=st.sampled_from([0.01, 1, 24, 24 * 8, -24]))
    def wait(self, hours: float) -> None:
        self.now += timedelta(hours=hours)

    @rule()
    def purge(self) -> None:
        gone = janitor._purge_bytes(self.connection, self.now, self.now - timedelta(days=7))
        self.bytes -= {scrap.key for scrap in gone}
        while janitor._purge_rows(self.connection, self.now - REMEMBER):
            pass

    @rule()
    def lose_every_ticket(self) -> None:
        self.connection.execute(delete(ticket))
        tickets.put_all(self.connection, inventory.tickets_missing(self.connection), self.now)

    @invariant()
    def everything_is_accounted_for(self) -> None:
        proof = inventory.reconcile(self.connection, self.bytes.__contains__)
        for unit, count in ((proof, self.accepted), (proof["instances"], self.queued)):
            assert unit["in"] == count == sum(unit[str(one)] for one in Outcome)
            assert unit["unaccounted"] == 0, proof["astray"]

    @invariant()
    def everything_open_has_a_ticket(self) -> None:
        assert inventory.tickets_missing(self.connection) == []

    @invariant()
    def a_repetition_has_the_outcome_of_the_first(self) -> None:
        rows = {row.id: row for row in self.connection.execute(select(message))}
        for row in rows.values():
            if row.duplicate_of:
                first = rows[row.duplicate_of]
                assert (row.outcome, row.code, row.stage) == (first.outcome, first.code, first.stage)

    @invariant()
    def a_person_is_told_of_exactly_what_needs_one(self) -> None:
        needs = message.c.outcome.in_(["held", "failed"]) & message.c.duplicate_of.is_(None)
        rows = self.connection.execute(select(message.c.outcome, message.c.id).where(needs))
        assert alarms(self.connection) == {(row.outcome, row.id) for row in rows}

    @invariant()
    def nothing_is_delivered_without_a_good_answer_or_a_person(self) -> None:
        rows = self.connection.execute(
            select(delivery.c.status, delivery.c.code).where(delivery.c.outcome == Outcome.DELIVERED)
        )
        assert all(row.status in DELIVERED or row.code == "by-operator" for row in rows)

    @invariant()
    def doubt_is_bounded(self) -> None:
        most = self.connection.scalar(select(func.max(delivery.c.sends_unknown))) or 0
        assert most <= BOUNDS.unknown_sends


TestGateway = Gateway.TestCase
TestGateway.settings = settings(
    max_examples=300 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 30, stateful_step_count=30, deadline=None
)
