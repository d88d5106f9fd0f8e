"""Tickets of the embedded carrier: each says "look at this row", when it is due, and nothing else.

A key is ``<kind>:<row>``, as ``receive:in-…`` or ``store:pacs``. Whoever creates work puts a ticket in the same
transaction. Losing every ticket loses nothing: the reconciler puts one for each row that wants work and has none.

One process needs no leases: at the start everything marked running is ours from a former life.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Table, bindparam, case, delete, false, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from gateway.ledger.ledger import Ledger
from gateway.ledger.tables import ticket

log = structlog.get_logger(__name__)

SLOWEST_LOOK: Final = timedelta(seconds=30)
"""How long the carrier sleeps at most, so that a clock that jumped is noticed (R29)."""

AFTER_A_FAULT: Final = timedelta(seconds=20)
"""When a ticket is looked at again whose handler raised: its row says nothing of it, so this is not its back-off."""

MOST_AT_ONCE: Final = 64
"""Tickets claimed in one transaction."""

Handler = Callable[[str], Awaitable[datetime | None]]
"""Does what a row wants, and returns when to look at it again, or None."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How tickets of one kind are served: by what, and how many at a time."""

    handler: Handler
    at_once: int


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
    # A ticket that lies far ahead was written by a clock that was wrong; its row's own time decides anyway (R29).
    connection.execute(update(ticket).where(ticket.c.due > now + timedelta(days=1)).values(due=now))
    connection.info["ticket"] = True
    return running


def claim(connection: Connection, now: datetime, kind: str, most: int) -> list[str]:
    """Mark due tickets of a kind as running and return their keys, the longest due first."""
    due = (
        select(ticket.c.key)
        .where(~ticket.c.running, ticket.c.due <= now, ticket.c.key.startswith(kind + ":", autoescape=True))
        .order_by(ticket.c.due)
        .limit(most)
    )
    statement = update(ticket).where(ticket.c.key.in_(due)).values(running=True, again=None).returning(ticket.c.key)
    return list(connection.scalars(statement))


_AGAIN: Final = select(ticket.c.again).where(ticket.c.key == bindparam("mine"))
_END: Final = delete(ticket).where(ticket.c.key == bindparam("mine"))
_READY: Final = (
    update(ticket).where(ticket.c.key == bindparam("mine")).values(running=False, due=bindparam("next"), again=None)
)


def finish(connection: Connection, key: str, again: datetime | None) -> None:
    """End a look: the ticket goes, or is due again when the handler or somebody else wants it."""
    wanted = connection.scalar(_AGAIN, {"mine": key})
    moments = [moment for moment in (wanted, again) if moment is not None]
    if moments:
        connection.execute(_READY, {"mine": key, "next": min(moments)})
        connection.info["ticket"] = True
    else:
        connection.execute(_END, {"mine": key})


def next_due(connection: Connection, kinds: Iterable[str]) -> datetime | None:
    """When the next ticket of some kinds is due that nobody runs."""
    mine = or_(false(), *(ticket.c.key.startswith(kind + ":", autoescape=True) for kind in kinds))
    due: datetime | None = connection.scalar(select(func.min(ticket.c.due)).where(~ticket.c.running, mine))
    return due


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
                for kind in self.kinds:
                    await self._start(kind)
                await self._sleep()
        finally:
            tasks = [task for tasks in self._running.values() for task in tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start(self, kind: str) -> None:
        free = self.kinds[kind].at_once - len(self._running[kind])
        if free <= 0 or self._paused:
            return
        now = self.clock()
        for key in await self.ledger.write(lambda c: claim(c, now, kind, min(free, MOST_AT_ONCE))):
            task = asyncio.create_task(self._look(kind, key), name=key)
            self._running[kind].add(task)
            task.add_done_callback(self._running[kind].discard)

    async def _look(self, kind: str, key: str) -> None:
        try:
            again = await self.kinds[kind].handler(key.partition(":")[2])
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.error("handler_failed", stage=kind, exception=type(error).__name__, exc_info=error)  # noqa: TRY400
            again = self.clock() + AFTER_A_FAULT
        await self.ledger.write(lambda c: finish(c, key, again))
        self._awake.set()

    async def _sleep(self) -> None:
        # A kind that is full can start nothing before one of its handlers ends, and that wakes us.
        free = [kind for kind, served in self.kinds.items() if len(self._running[kind]) < served.at_once]
        due = None if self._paused else await self.ledger.read(lambda c: next_due(c, free))
        wait = SLOWEST_LOOK if due is None else min(SLOWEST_LOOK, due - self.clock())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._awake.wait(), max(wait.total_seconds(), 0.01))
