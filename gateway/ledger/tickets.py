"""Tickets of the embedded carrier: each says "look at this row", when it is due, and nothing else.

A key is ``<kind>:<row>``, as ``receive:in-…`` or ``store:pacs``. Whoever creates work puts a ticket in the same
transaction. Losing every ticket loses nothing: the reconciler puts one for each row that wants work and has none.

One process needs no leases: at the start everything marked running is ours from a former life.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy import ColumnElement, Connection, Table, bindparam, case, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from gateway.errors import LedgerError
from gateway.ledger.ledger import Ledger
from gateway.ledger.tables import ticket

log = structlog.get_logger(__name__)

SLOWEST_LOOK: Final = timedelta(seconds=30)
"""How long the carrier sleeps at most, so that a clock that jumped is noticed (R29)."""

FARTHEST: Final = timedelta(hours=2)
"""A ticket due later than that was written by a clock that ran ahead: it is served now, and its row decides (R29)."""

LATEST: Final = timedelta(hours=1)
"""How far ahead the carrier puts a ticket at most: looking once too often costs nothing."""

LEDGER_PAUSE: Final = 5.0
"""Seconds until the carrier asks a ledger again that failed: a full disk passes, and the carrier goes on (R5)."""

AFTER_A_FAULT: Final = timedelta(seconds=20)
"""When a ticket is looked at again whose handler raised: its row says nothing of it, so this is not its back-off."""

MOST_AT_ONCE: Final = 64
"""Tickets claimed in one transaction."""

GATHER: Final = 0.02
"""Seconds between two claims at least: mail that streams in is not held up by as many claims as messages."""

Handler = Callable[[str], Awaitable[datetime | None]]
"""Does what a row wants, and returns when to look at it again, or None."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How tickets of one kind are served: by what, and how many at a time."""

    handler: Handler
    at_once: int


def _of_kind() -> ColumnElement[bool]:
    return (ticket.c.key >= bindparam("low")) & (ticket.c.key < bindparam("high"))


def _bounds(kind: str) -> dict[str, str]:
    """The keys of a kind begin with its name and a colon; the semicolon is the character after that."""
    return {"low": f"{kind}:", "high": f"{kind};"}


def _upsert(insert: Callable[[Table], Any]) -> Any:
    new = insert(ticket).values(key=bindparam("key"), due=bindparam("due"), running=False)
    wanted = new.excluded.due
    return new.on_conflict_do_update(
        index_elements=[ticket.c.key],
        set_={
            "due": case((ticket.c.running, ticket.c.due), (ticket.c.due < wanted, ticket.c.due), else_=wanted),
            "again": case(
                (~ticket.c.running, None),
                (or_(ticket.c.again.is_(None), ticket.c.again > wanted), wanted),
                else_=ticket.c.again,
            ),
        },
    )


_PUT: Final = {"sqlite": _upsert(sqlite.insert), "postgresql": _upsert(postgresql.insert)}
"""Built once: the door puts a ticket for every message, and building a statement costs more than running it."""


def put(connection: Connection, key: str, due: datetime) -> None:
    """Want a look at a row, no later than ``due``; a ticket that runs now is looked at once more after it ends."""
    put_all(connection, [key], due)


def put_all(connection: Connection, keys: Iterable[str], due: datetime) -> None:
    """Want a look at each of several rows."""
    if values := [{"key": key, "due": due} for key in keys]:
        connection.execute(_PUT[connection.dialect.name], values)
        connection.info["ticket"] = True


def restart(connection: Connection, now: datetime) -> list[str]:
    """Make every ticket of a former life ready again, and name those that were running when it ended."""
    running = list(
        connection.scalars(update(ticket).where(ticket.c.running).values(running=False).returning(ticket.c.key))
    )
    pull_in(connection, now)
    connection.info["ticket"] = True
    return running


def pull_in(connection: Connection, now: datetime) -> int:
    """Make tickets due that lie further ahead than any may: the clock that wrote them has gone back since (R29)."""
    far = update(ticket).where(~ticket.c.running, ticket.c.due > now + FARTHEST).values(due=now)
    return connection.execute(far).rowcount


_DUE: Final = (
    select(ticket.c.key)
    .where(~ticket.c.running, or_(ticket.c.due <= bindparam("now"), ticket.c.due > bindparam("far")), _of_kind())
    .order_by(ticket.c.due)
    .limit(bindparam("most"))
)
_CLAIM: Final = update(ticket).where(ticket.c.key == bindparam("mine")).values(running=True, again=None)


def claim(connection: Connection, now: datetime, free: Mapping[str, int]) -> list[str]:
    """Mark due tickets as running and return their keys: of each kind the longest due, at most as many as are free.

    What is due absurdly far ahead was written by a clock that was wrong: it is looked at now (R29).
    """
    keys: list[str] = []
    for kind, most in free.items():
        keys += connection.scalars(_DUE, {"now": now, "far": now + FARTHEST, "most": most, **_bounds(kind)})
    if keys:
        connection.execute(_CLAIM, [{"mine": key} for key in keys])
    return keys


_AGAIN: Final = select(ticket.c.again).where(ticket.c.key == bindparam("mine"))
_END: Final = delete(ticket).where(ticket.c.key == bindparam("mine"))
_READY: Final = (
    update(ticket).where(ticket.c.key == bindparam("mine")).values(running=False, due=bindparam("next"), again=None)
)


def finish(connection: Connection, looks: Sequence[tuple[str, datetime | None]]) -> list[None]:
    """End looks: each ticket goes, or is due again when its handler or somebody else wants it.

    Args:
        connection: The transaction.
        looks: The key of each, and when its handler wants to look again.
    """
    for key, again in looks:
        wanted = connection.scalar(_AGAIN, {"mine": key})
        moments = [moment for moment in (wanted, again) if moment is not None]
        if moments:
            connection.execute(_READY, {"mine": key, "next": min(moments)})
            connection.info["ticket"] = True
        else:
            connection.execute(_END, {"mine": key})
    return [None] * len(looks)


_NEXT: Final = select(func.min(ticket.c.due)).where(~ticket.c.running, _of_kind())


def next_due(connection: Connection, kinds: Iterable[str]) -> datetime | None:
    """When the next ticket of some kinds is due that nobody runs."""
    moments = (connection.scalar(_NEXT, _bounds(kind)) for kind in kinds)
    return min((moment for moment in moments if moment is not None), default=None)


class Carrier:
    """The embedded dispatcher: claims what is due and runs its handler, each kind within its own bounds.

    Args:
        ledger: Where the tickets lie.
        kinds: The handler of each kind.
        clock: Tells the time; replaced in tests.
    """

    def __init__(self, ledger: Ledger, kinds: Mapping[str, Kind], clock: Callable[[], datetime] | None = None) -> None:
        self.ledger = ledger
        self.kinds = dict(kinds)
        self.clock = clock or (lambda: datetime.now(UTC))
        self._awake = asyncio.Event()
        self._paused = False
        self._running: dict[str, set[asyncio.Task[None]]] = {kind: set() for kind in kinds}
        ledger.on_commit = self._awake.set

    def pause(self) -> None:
        """Start no further handler."""
        self._paused = True

    async def idle(self, seconds: float) -> bool:
        """Wait until no handler runs, but not longer than that; tell whether none does."""
        tasks = [task for tasks in self._running.values() for task in tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        return not self.running

    @property
    def running(self) -> int:
        """How many handlers run now."""
        return sum(map(len, self._running.values()))

    async def run(self) -> None:
        """Serve until cancelled; then running handlers are cancelled too and their tickets stay for the next life."""
        try:
            while True:
                self._awake.clear()
                try:
                    await self._round()
                except LedgerError as error:
                    log.error("ledger_failed", exception=type(error).__name__)  # noqa: TRY400
                    await asyncio.sleep(LEDGER_PAUSE)
        finally:
            tasks = [task for tasks in self._running.values() for task in tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _free(self) -> dict[str, int]:
        room = {kind: served.at_once - len(self._running[kind]) for kind, served in self.kinds.items()}
        return {kind: min(count, MOST_AT_ONCE) for kind, count in room.items() if count > 0 and not self._paused}

    async def _round(self) -> None:
        now, free = self.clock(), self._free
        for key in await self.ledger.write(lambda c: claim(c, now, free)) if free else ():
            kind = key.partition(":")[0]
            task = asyncio.create_task(self._look(kind, key), name=key)
            self._running[kind].add(task)
            task.add_done_callback(self._running[kind].discard)
        await self._sleep()

    async def _look(self, kind: str, key: str) -> None:
        try:
            again = await self.kinds[kind].handler(key.partition(":")[2])
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.error("handler_failed", stage=kind, exception=type(error).__name__, exc_info=error)  # noqa: TRY400
            again = self.clock() + AFTER_A_FAULT
        await self._finish(key, again and min(again, self.clock() + LATEST))
        self._awake.set()

    async def _finish(self, key: str, again: datetime | None) -> None:
        # A ticket that stayed marked as running would not be looked at before the next start (R17).
        while True:
            try:
                return await self.ledger.write_together(finish, (key, again))
            except LedgerError as error:
                log.error("ledger_failed", exception=type(error).__name__)  # noqa: TRY400
                await asyncio.sleep(LEDGER_PAUSE)

    async def _sleep(self) -> None:
        # A kind that is full can start nothing before one of its handlers ends, and that wakes us.
        free = list(self._free)
        due = await self.ledger.read(lambda c: next_due(c, free)) if free else None
        wait = SLOWEST_LOOK if due is None else min(SLOWEST_LOOK, due - self.clock())
        # Not wait_for: before Python 3.12 it can swallow the cancellation that ends us.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(wait.total_seconds(), 0.01)):
                await self._awake.wait()
        # Under a burst every commit wakes us: what comes within this time is claimed together.
        await asyncio.sleep(GATHER)
