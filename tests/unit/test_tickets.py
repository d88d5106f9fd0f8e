"""Tickets and their carrier: due order, no lost wake-up, restart, lanes of their own; their SQL on both databases."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rows import NOW, wakes
from sqlalchemy import Connection, select

from gateway.errors import LedgerError
from gateway.ledger import tickets
from gateway.ledger.ledger import Ledger, connect
from gateway.ledger.tables import ticket
from gateway.ledger.tickets import FARTHEST, Carrier, Kind

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)


def test_the_longest_due_is_claimed_first_and_once(connection: Connection) -> None:
    """Due time decides, the kind bounds, and what runs is not claimed again."""
    for number in (3, 1, 2):
        tickets.put(connection, f"a:{number}", NOW + number * SECOND)
    tickets.put(connection, "aa:9", NOW)
    assert tickets.claim(connection, NOW, {"a": 9}) == []
    assert tickets.claim(connection, NOW + 2 * SECOND, {"a": 1}) == ["a:1"]
    assert tickets.claim(connection, NOW + 9 * SECOND, {"a": 9}) == ["a:2", "a:3"]
    assert tickets.claim(connection, NOW + 9 * SECOND, {"a": 9}) == []
    assert tickets.next_due(connection, ["a"]) is None
    assert tickets.next_due(connection, ["a", "aa"]) == NOW
    assert tickets.next_due(connection, []) is None


def test_a_ticket_is_due_at_the_earliest_moment_anybody_wants(connection: Connection) -> None:
    """A later wish never postpones an earlier one."""
    for seconds in (5, 9, 3, 4):
        tickets.put(connection, "a:1", NOW + seconds * SECOND)
    assert wakes(connection) == {"a:1": NOW + 3 * SECOND}


@pytest.mark.parametrize(
    ("wishes", "again", "due"),
    [([], None, None), ([], 5, 5), ([3], None, 3), ([4, 2, 6], None, 2), ([7], 5, 5), ([3], 5, 3)],
)
def test_no_wake_up_is_lost_while_a_ticket_runs(
    connection: Connection, wishes: list[int], again: int | None, due: int | None
) -> None:
    """What is wanted while its handler runs is looked at once more after it ends (R17)."""
    tickets.put(connection, "a:1", NOW)
    tickets.claim(connection, NOW, {"a": 1})
    for seconds in wishes:
        tickets.put(connection, "a:1", NOW + seconds * SECOND)
    assert wakes(connection) == {}
    tickets.finish(connection, [("a:1", None if again is None else NOW + again * SECOND)])
    assert wakes(connection) == ({} if due is None else {"a:1": NOW + due * SECOND})
    assert connection.scalars(select(ticket.c.again)).all() in ([], [None])
    tickets.finish(connection, [("a:9", NOW)])  # a ticket that somebody deleted comes not back
    assert "a:9" not in wakes(connection)


def test_a_restart_makes_every_ticket_ready_and_names_those_that_ran(connection: Connection) -> None:
    """One process needs no leases: what runs at a start is ours from a former life (R26)."""
    tickets.put_all(connection, ["a:1", "a:2"], NOW)
    tickets.claim(connection, NOW, {"a": 1})
    tickets.put(connection, "a:3", NOW + 2 * DAY)
    (ran,) = tickets.restart(connection, NOW)
    assert ran in {"a:1", "a:2"}
    assert wakes(connection) == dict.fromkeys(["a:1", "a:2", "a:3"], NOW)


@pytest.mark.parametrize("jump", [DAY, -DAY, timedelta(hours=1), -timedelta(hours=1)])
def test_a_clock_that_jumps_neither_loses_nor_stalls_a_ticket(connection: Connection, jump: timedelta) -> None:
    """A ticket written before a jump is claimed within the longest back-off, mostly at once (R29)."""
    tickets.put(connection, "a:1", NOW + SECOND)
    far = -jump > FARTHEST
    assert tickets.pull_in(connection, NOW + jump) == far
    latest = NOW + jump + (timedelta(0) if far or jump > SECOND else FARTHEST)
    assert tickets.claim(connection, latest, {"a": 1}) == ["a:1"]
    assert tickets.pull_in(connection, NOW - DAY) == 0  # what runs is left alone


# The carrier

Look = Callable[[str], Awaitable[datetime | None]]


class Stand:
    """A carrier that runs for a test; its clock is ours."""

    def __init__(self, folder: Path, **handlers: tuple[Look, int]) -> None:
        self.now = NOW
        self.ledger = Ledger(connect(f"sqlite:///{folder / 'ledger.sqlite'}"))
        kinds = {kind: Kind(*handler) for kind, handler in handlers.items()}
        self.carrier = Carrier(self.ledger, kinds, lambda: self.now)

    async def put(self, *keys: str, due: datetime | None = None) -> None:
        await self.ledger.write(lambda c: tickets.put_all(c, keys, due or self.now))

    async def keys(self) -> list[tuple[str, bool]]:
        return await self.ledger.read(
            lambda c: [(row.key, row.running) for row in c.execute(select(ticket).order_by(ticket.c.key))]
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  it looks at what has no event
                await asyncio.sleep(0.005)

    async def settle(self) -> None:
        async with asyncio.timeout(10):
            while any(running for _, running in await self.keys()) or self.carrier.running:  # noqa: ASYNC110  as above
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(folder: Path, **handlers: tuple[Look, int]) -> AsyncIterator[Stand]:
    stand = Stand(folder, **handlers)
    task = asyncio.create_task(stand.carrier.run())
    try:
        yield stand
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        stand.ledger.close()


async def test_a_ticket_wakes_its_handler_at_once_and_goes_when_nothing_is_left(tmp_path: Path) -> None:
    """No polling delay: the commit that puts a ticket wakes the carrier."""
    seen: list[str] = []

    async def look(row: str) -> None:
        seen.append(row)

    async with running(tmp_path, a=(look, 1)) as stand:
        await stand.put("a:1", "a:with:colon")
        await stand.until(lambda: len(seen) == 2)
        await stand.settle()
        assert sorted(seen) == ["1", "with:colon"]
        assert await stand.keys() == []


async def test_a_look_is_repeated_when_the_row_says_so(tmp_path: Path) -> None:
    """What a handler returns is when it is called again; a clock that gets there wakes it."""
    moments: list[datetime] = []

    async def look(_: str) -> datetime | None:
        moments.append(stand.now)
        return stand.now + SECOND if len(moments) < 3 else None

    async with running(tmp_path, a=(look, 1)) as stand:
        await stand.put("a:1")
        for number in range(1, 4):
            await stand.until(lambda number=number: len(moments) == number)  # type: ignore[misc]
            await stand.settle()
            stand.now += SECOND
            stand.carrier._awake.set()
        assert moments == [NOW, NOW + SECOND, NOW + 2 * SECOND]
        assert await stand.keys() == []


async def test_a_look_is_never_put_off_further_than_a_clock_could_jump(tmp_path: Path) -> None:
    """A ticket too far ahead would be taken for one of a wrong clock, again and again (R29)."""
    calls: list[str] = []

    async def look(row: str) -> datetime:
        calls.append(row)
        return stand.now + timedelta(days=9)

    async with running(tmp_path, a=(look, 1)) as stand:
        await stand.put("a:1")
        await stand.until(lambda: calls == ["1"])
        await stand.settle()
        await asyncio.sleep(0.05)
        assert calls == ["1"]
        assert await stand.ledger.read(lambda c: c.scalar(select(ticket.c.due))) == NOW + tickets.LATEST


async def test_one_kind_never_starves_another(tmp_path: Path) -> None:
    """A kind whose handlers all hang leaves the others their turn, and gets no more than its own (R15)."""
    hang, seen = asyncio.Event(), []

    async def stuck(_: str) -> None:
        await hang.wait()

    async def look(row: str) -> None:
        seen.append(row)

    async with running(tmp_path, a=(stuck, 2), b=(look, 1)) as stand:
        await stand.put(*(f"a:{number}" for number in range(10)))
        await stand.until(lambda: stand.carrier.running == 2)
        await stand.put(*(f"b:{number}" for number in range(5)))
        await stand.until(lambda: len(seen) == 5)
        await stand.until(lambda: stand.carrier.running == 2)
        assert not await stand.carrier.idle(0.01)
        hang.set()
        await stand.settle()
        await stand.until(lambda: not stand.carrier.running)
        assert await stand.carrier.idle(1)


async def test_a_handler_that_raises_is_called_again_later(tmp_path: Path) -> None:
    """Its row says nothing of the fault, so the carrier spaces it; the other tickets go on (R17)."""
    calls: list[str] = []

    async def look(row: str) -> None:
        calls.append(row)
        if row == "bad" and calls.count("bad") == 1:
            raise ValueError("SECRET")

    async with running(tmp_path, a=(look, 1)) as stand:
        await stand.put("a:bad", "a:good")
        await stand.until(lambda: len(calls) == 2)
        await stand.settle()
        assert await stand.keys() == [("a:bad", False)]
        stand.now += tickets.AFTER_A_FAULT
        stand.carrier._awake.set()
        await stand.until(lambda: calls.count("bad") == 2)
        await stand.settle()
        assert await stand.keys() == []


async def test_a_pause_starts_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """At SIGTERM no handler is started any more, and every ticket stays (R31)."""
    calls: list[str] = []

    async def look(row: str) -> None:
        calls.append(row)

    async with running(tmp_path, a=(look, 1)) as stand:
        stand.carrier.pause()
        await stand.put("a:1")
        await asyncio.sleep(0.05)
        assert calls == []
        assert await stand.keys() == [("a:1", False)]
        assert await stand.carrier.idle(0)


async def test_a_handler_that_is_cut_off_keeps_its_ticket_for_the_next_life(tmp_path: Path) -> None:
    """A cancelled look is running in the tables until the next start makes it ready (R26)."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def look(_: str) -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async with running(tmp_path, a=(look, 1)) as stand:
        await stand.put("a:1")
        await started.wait()
    assert ended.is_set()
    engine = connect(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    with engine.begin() as connection:
        assert tickets.restart(connection, NOW) == ["a:1"]
    engine.dispose()


async def test_a_ledger_that_fails_for_a_while_parks_no_ticket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk while a look ends, or while the next is claimed: the carrier waits and goes on (R5, R17)."""
    monkeypatch.setattr(tickets, "LEDGER_PAUSE", 0.01)
    failing, failures, calls = False, 0, []

    async def look(row: str) -> None:
        nonlocal failing
        calls.append(row)
        failing = len(calls) == 1

    async with running(tmp_path, a=(look, 1)) as stand:
        write = stand.ledger.write_together

        async def fragile(change: Callable[..., object], item: object) -> object:
            nonlocal failures
            if failing:
                failures += 1
                raise LedgerError("the ledger did not take a change: OperationalError")
            return await write(change, item)  # type: ignore[arg-type]

        monkeypatch.setattr(stand.ledger, "write_together", fragile)
        await stand.put("a:1", "a:2")
        await stand.until(lambda: failures > 3)
        stand.carrier._awake.set()
        await stand.until(lambda: failures > 6)
        failing = False
        await stand.until(lambda: len(calls) == 2)
        await stand.settle()
        assert await stand.keys() == []


async def test_the_carrier_tells_the_time_in_utc(tmp_path: Path) -> None:
    """Without another clock it is the machine's."""
    ledger = Ledger(connect(f"sqlite:///{tmp_path / 'ledger.sqlite'}"))
    now = Carrier(ledger, {}).clock()
    assert now.tzinfo is UTC
    ledger.close()
