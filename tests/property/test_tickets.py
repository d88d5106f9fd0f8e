"""Whatever is put, claimed, finished or cut off, in any order: nothing open is ever without a ticket (R17)."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from rows import NOW
from sqlalchemy import create_engine, select

from gateway.ledger import tickets
from gateway.ledger.tables import metadata, ticket

ROWS = st.sampled_from(["a:1", "a:2", "b:1"])
SECONDS = st.integers(0, 100)


class Tickets(RuleBasedStateMachine):
    """Rows that want a look, and the tickets that must not forget them."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = create_engine("sqlite://")
        metadata.create_all(self.engine)
        self.connection = self.engine.connect()
        self.now = NOW
        self.wanted: dict[str, int] = {}  # how often each row was wanted and not yet looked at
        self.running: dict[str, int] = {}

    def teardown(self) -> None:
        self.connection.close()
        self.engine.dispose()

    @rule(key=ROWS, seconds=SECONDS)
    def put(self, key: str, seconds: int) -> None:
        tickets.put(self.connection, key, self.now + timedelta(seconds=seconds))
        self.wanted[key] = self.wanted.get(key, 0) + 1

    @rule(kind=st.sampled_from(["a", "b"]), most=st.integers(1, 2))
    def claim(self, kind: str, most: int) -> None:
        for key in tickets.claim(self.connection, self.now, {kind: most}):
            assert key not in self.running, "one look at a time"
            self.running[key] = self.wanted.pop(key, 0)

    @rule(key=ROWS, again=st.none() | SECONDS)
    def finish(self, key: str, again: int | None) -> None:
        if key in self.running:
            due = None if again is None else self.now + timedelta(seconds=again)
            tickets.finish(self.connection, [(key, due)])
            del self.running[key]
            if again is not None:
                self.wanted[key] = self.wanted.get(key, 0) + 1

    @rule(seconds=SECONDS)
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(hours=st.sampled_from([-24, 24, -1, 1]))
    def jump(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    @rule()
    def crash(self) -> None:
        assert set(tickets.restart(self.connection, self.now)) == set(self.running)
        for key in self.running:
            self.wanted[key] = self.wanted.get(key, 0) + 1
        self.running.clear()

    @invariant()
    def nothing_wanted_is_forgotten(self) -> None:
        rows = {row.key: row for row in self.connection.execute(select(ticket))}
        assert set(rows) == set(self.wanted) | set(self.running)
        for key, row in rows.items():
            assert row.running == (key in self.running)
            assert not row.running or (row.again is not None) == (key in self.wanted)

    @invariant()
    def whatever_is_wanted_is_claimed_in_time(self) -> None:
        free = set(self.wanted) - set(self.running)
        with self.connection.begin_nested() as trial:
            moments = (self.now, self.now + tickets.FARTHEST)  # a clock that ran ahead is seen at once, the rest later
            claimed = {key for now in moments for key in tickets.claim(self.connection, now, {"a": 9, "b": 9})}
            trial.rollback()
        assert claimed == free


TestTickets = Tickets.TestCase
TestTickets.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
