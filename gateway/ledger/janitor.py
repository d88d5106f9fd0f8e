"""Housekeeping of ledger and spool: what is late, what is too old, what belongs to nobody.

What is held or failed is never purged without a person; what was delivered or refused goes by retention, first its
bytes, much later its row. A purge of rows moves their counts into the totals, so that the proof still adds up.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from sqlalchemy import Connection, delete, func, insert, or_, select, update

from gateway.ledger import fragments, inventory, submissions, tickets
from gateway.ledger.events import tell
from gateway.ledger.ledger import Ledger
from gateway.ledger.messages import MISMATCH
from gateway.ledger.notices import close_notice, open_notice
from gateway.ledger.spool import SEGMENT_SUFFIX, Scrap, Spool
from gateway.ledger.tables import collection, delivery, event, finding, instance, message, pseudonym, submission, total
from gateway.model import Direction, Outcome

ORPHAN_AGE: Final = timedelta(hours=24)
"""Bytes without a row may be on their way to one; after a day they are not."""

MOST_ROWS: Final = 500
"""Rows purged in one transaction, so that nobody waits for housekeeping."""

_DONE: Final = (Outcome.DELIVERED, Outcome.REFUSED)


class Janitor:
    """Does the chores of one data folder.

    Args:
        ledger: The tables.
        spool: The bytes.
    """

    def __init__(self, ledger: Ledger, spool: Spool) -> None:
        self.ledger = ledger
        self.spool = spool
        self._suspects: set[tuple[str, int]] = set()
        self._erased: set[Scrap] = set()
        self.unaccounted: int | None = None
        """What the last proof could not account for; None before the first."""
        self.proved_at: datetime | None = None

    async def reissue(self, now: datetime) -> int:
        """Put a ticket for each row that wants work and has none, and pull in those far ahead; return how many."""
        await self.ledger.write(lambda c: tickets.pull_in(c, now))
        missing = await self.ledger.read(inventory.tickets_missing)
        if missing:
            await self.ledger.write(lambda c: tickets.put_all(c, missing, now))
        return len(missing)

    async def purge(self, now: datetime, retention: timedelta, remember: timedelta) -> int:
        """Delete the bytes of what was done long ago, then rows nobody must know again.

        Returns:
            How many files went, or instances in segments.
        """
        count = 0
        while scraps := await self.ledger.write(lambda c: _purge_bytes(c, now, now - retention)):
            # The rows say so already: a crash here leaves bytes without a need, which the sweep takes.
            await asyncio.to_thread(self.spool.erase, scraps)
            count += len(scraps)
        while await self.ledger.write(lambda c: _purge_rows(c, now - max(remember, retention))):
            pass
        return count

    async def sweep(self, now: datetime) -> int:
        """Delete bytes that no row speaks of: never acknowledged, or purged; return of how many files.

        Of a segment that is needed only what lies behind its last instance with a row: it was on its way in when the
        gateway died; and between its instances those that were purged, once in a life: the last one may have ended
        before their bytes were erased. Files and ends go only when the last sweep found them without a row too: a clock
        that jumps ahead makes young bytes look old (R29), and who puts an older ledger beside this spool has a day to
        see what is missing.
        """
        old = await asyncio.to_thread(lambda: list(self.spool.keys((now - ORPHAN_AGE).timestamp())))
        orphans: set[tuple[str, int]] = set()
        for at in range(0, len(old), MOST_ROWS):
            some = dict(old[at : at + MOST_ROWS])
            needed, ends, purged = await self.ledger.read(partial(_spoken_of, keys=list(some)))
            purged -= self._erased
            await asyncio.to_thread(self.spool.erase, purged)
            self._erased |= purged
            orphans |= {(key, 0) for key in some.keys() - needed}
            orphans |= {(key, end) for key, end in ends.items() if end < some[key]}
        found, self._suspects = orphans & self._suspects, orphans
        self._erased = {scrap for scrap in self._erased if self.spool.has(scrap.key)}
        for key, end in found:
            await asyncio.to_thread(self.spool.cut, key, end)
        return len(found)

    async def prove(self, now: datetime) -> bool:
        """Make the conservation proof, and open a notice when it does not hold (R34)."""
        document = await self.ledger.read(lambda c: inventory.reconcile(c, self.spool.has))
        self.unaccounted = document["unaccounted"] + document["instances"]["unaccounted"]
        self.proved_at = now
        good: bool = document["unaccounted"] == 0 and document["instances"]["unaccounted"] == 0

        def note(connection: Connection) -> None:
            if good:
                close_notice(connection, now, "unaccounted", "ledger")
            else:
                text = f"{document['unaccounted']} items are not accounted for"
                open_notice(connection, now, "unaccounted", "ledger", text, "dicom-mail reconcile")

        await self.ledger.write(note)
        return good


def note_late(connection: Connection, now: datetime) -> int:
    """Open a notice for each item that should have been delivered by now (R33); return how many there are."""
    late = (message.c.outcome == Outcome.WAITING) & (message.c.late_at <= now) & message.c.duplicate_of.is_(None)
    rows = connection.execute(select(message.c.id, message.c.partner).where(late)).all()
    for row in rows:
        way = "from" if row.id.startswith(Direction.IN) else "for"
        text = f"{row.id} {way} {row.partner or 'a sender without a partner entry'} is late"
        open_notice(connection, now, "late", row.id, text, f"dicom-mail queue show {row.id}")
    return len(rows)


def note_room(connection: Connection, now: datetime, *, low: bool) -> None:
    """Open or close the notice that the disk is nearly full (R5)."""
    if low:
        text = "the disk is nearly full: no new mail is taken in, what is queued goes on"
        open_notice(connection, now, "disk-low", "spool", text, "free space under gateway.data")
    else:
        close_notice(connection, now, "disk-low", "spool")


def _purge_bytes(connection: Connection, now: datetime, before: datetime) -> list[Scrap]:
    done = message.c.outcome.in_(_DONE) & (message.c.closed_at < before) & message.c.purged_at.is_(None)
    rows = connection.execute(
        select(message.c.id, message.c.blob, message.c.instances_blob).where(done).limit(MOST_ROWS)
    )
    found = rows.all()
    scraps = submissions.scraps(connection, [row.id for row in found]) if found else []
    for key, *mine in found:
        connection.execute(update(message).where(message.c.id == key).values(purged_at=now))
        close_notice(connection, now, MISMATCH, key)
        tell(connection, now, "purged", "its bytes were deleted: the time to keep them is over", message=key)
        scraps += [Scrap(blob) for blob in mine if blob]
    return scraps


def _purge_rows(connection: Connection, before: datetime) -> int:
    repeats = message.alias("repeats")
    free = message.c.id.not_in(select(repeats.c.duplicate_of).where(repeats.c.duplicate_of.is_not(None)))
    old = message.c.purged_at.is_not(None) & (message.c.closed_at < before) & free
    keys = list(connection.scalars(select(message.c.id).where(old).limit(MOST_ROWS)))
    if not keys:
        return 0
    for unit, table, column in (("message", message, message.c.id), ("instance", delivery, delivery.c.message)):
        counts = select(table.c.outcome, func.count()).where(column.in_(keys)).group_by(table.c.outcome)
        for outcome, count in connection.execute(counts).all():
            _add_total(connection, unit, outcome, count)
    for table in (delivery, instance, submission, collection, finding, pseudonym, event):
        connection.execute(delete(table).where(table.c.message.in_(keys)))
    fragments.forget(connection, keys)
    connection.execute(delete(message).where(message.c.id.in_(keys)))
    return len(keys)


def _add_total(connection: Connection, unit: str, outcome: str, count: int) -> None:
    mine = (total.c.unit == unit) & (total.c.outcome == outcome)
    if connection.execute(update(total).where(mine).values(count=total.c.count + count)).rowcount == 0:
        connection.execute(insert(total).values(unit=unit, outcome=outcome, count=count))


def _spoken_of(connection: Connection, keys: list[str]) -> tuple[set[str], dict[str, int], set[Scrap]]:
    """Name the files that are needed, and of those that are segments their ends and what was purged within, at once."""
    needed = _needed(connection, keys)
    segments = [key for key in needed if key.endswith(SEGMENT_SUFFIX)]
    return needed, _ends(connection, segments), _purged(connection, segments)


def _ends(connection: Connection, keys: list[str]) -> dict[str, int]:
    end = func.max(instance.c.start + instance.c.size).label("end")
    mine = select(instance.c.blob, end).where(instance.c.blob.in_(keys)).group_by(instance.c.blob)
    return {row.blob: row.end for row in connection.execute(mine)}


def _purged(connection: Connection, keys: list[str]) -> set[Scrap]:
    """Name the ranges of segments that rows speak of and no row needs."""
    place = (instance.c.blob, instance.c.start, instance.c.size)
    needs = func.count().filter(message.c.purged_at.is_(None))
    mine = select(*place).join(message, message.c.id == instance.c.message).where(instance.c.blob.in_(keys))
    return {Scrap(*row) for row in connection.execute(mine.group_by(*place).having(needs == 0))}


def _needed(connection: Connection, keys: list[str]) -> set[str]:
    mine = or_(message.c.blob.in_(keys), message.c.instances_blob.in_(keys)) & message.c.purged_at.is_(None)
    rows = connection.execute(select(message.c.blob, message.c.instances_blob).where(mine))
    found = {blob for row in rows for blob in row if blob}
    for table in (instance, submission):
        item = (message.c.id == table.c.message) & message.c.purged_at.is_(None)
        found.update(connection.scalars(select(table.c.blob).join(message, item).where(table.c.blob.in_(keys))))
    return found
