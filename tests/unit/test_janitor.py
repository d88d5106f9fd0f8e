"""Housekeeping: what goes, what never goes without a person, and a proof that adds up afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rows import NOW, alarms, arrival, instance, queue, read, send
from sqlalchemy import Connection, select, update

from gateway.ledger import inventory, janitor, messages, tickets, verbs
from gateway.ledger.janitor import Janitor
from gateway.ledger.ledger import Ledger, connect
from gateway.ledger.notices import open_notice
from gateway.ledger.spool import Spool
from gateway.ledger.tables import message, ticket
from gateway.model import Outcome

DAY = timedelta(days=1)


@pytest.fixture
async def keeper(tmp_path: Path) -> AsyncIterator[Janitor]:
    """A janitor with a ledger and a spool of its own."""
    ledger, spool = Ledger(connect(f"sqlite:///{tmp_path / 'ledger.sqlite'}")), Spool(tmp_path / "spool")
    yield Janitor(ledger, spool)
    ledger.close()
    spool.close()


def lay(keeper: Janitor, key: str, *, age: timedelta = DAY * 2) -> None:
    path = keeper.spool.path(key)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    moment = time.time() - age.total_seconds()
    os.utime(path, (moment, moment))


def everything(connection: Connection) -> None:
    """One item of each outcome, closed at NOW; in-2 repeats in-1."""
    queue(connection, "in-1", body="same")
    send(connection, "pacs")
    messages.accept(connection, [arrival("in-2", body="same")])
    messages.accept(connection, [arrival("in-3")])
    messages.decide(connection, "in-3", read(refused="not-dicom"), NOW)
    queue(connection, "in-4", instance(4))
    send(connection, "pacs", Outcome.FAILED, code="class-refused", status=0x0122)
    queue(connection, "in-5", instance(5, held="bad"))
    queue(connection, "in-6", instance(6))


def test_only_what_is_done_goes_bytes_first_and_rows_much_later(connection: Connection) -> None:
    """Delivered and refused go by retention; held, failed and waiting stay; counts move into the totals (R34)."""
    everything(connection)
    before = inventory.reconcile(connection, lambda _: True)
    assert janitor._purge_bytes(connection, NOW + DAY, NOW) == []
    blobs = janitor._purge_bytes(connection, NOW + DAY, NOW + DAY)
    names = ["in-1.dcm", "in-1.eml", "in-2.eml", "in-3.eml"]
    assert sorted(one.key for one in blobs) == [f"2026112312/{name}" for name in names]
    assert janitor._purge_bytes(connection, NOW + DAY, NOW + DAY) == []
    assert janitor._purge_rows(connection, NOW) == 0
    gone = [janitor._purge_rows(connection, NOW + DAY) for _ in range(3)]
    assert gone == [2, 1, 0]  # a first stays until its repetitions went
    assert connection.scalars(select(message.c.id).order_by(message.c.id)).all() == ["in-4", "in-5", "in-6"]
    assert inventory.reconcile(connection, lambda _: True) == before
    everything_again = inventory.census(connection, NOW, ["pacs"])
    assert everything_again.messages["delivered"] == 2
    queue(connection, "in-7", instance(7))
    send(connection, "pacs")
    janitor._purge_bytes(connection, NOW + DAY, NOW + DAY)
    assert janitor._purge_rows(connection, NOW + DAY) >= 1  # totals that are there already are added to
    assert inventory.reconcile(connection, lambda _: True)["unaccounted"] == 0


def test_a_mismatch_nobody_looked_at_is_closed_with_its_bytes(connection: Connection) -> None:
    """There is nothing left to look at."""
    everything(connection)
    open_notice(connection, NOW, "patient-mismatch-urgent", "in-1", "text", "hint")
    janitor._purge_bytes(connection, NOW + DAY, NOW + DAY)
    assert not {("patient-mismatch-urgent", "in-1")} & alarms(connection)


async def test_a_purge_deletes_files_in_steps_and_forgets_when_nobody_must_know(
    keeper: Janitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, nobody waits for housekeeping (one step per transaction)."""
    monkeypatch.setattr(janitor, "MOST_ROWS", 2)
    await keeper.ledger.write(everything)
    for number in range(1, 7):
        for suffix in ("eml", "dcm"):
            lay(keeper, f"2026112312/in-{number}.{suffix}")
    assert await keeper.purge(NOW + 8 * DAY, 7 * DAY, 30 * DAY) == 4
    left = sorted(path.name for path in keeper.spool.path("2026112312").iterdir())
    assert left == ["in-2.dcm", "in-3.dcm", *(f"in-{n}.{s}" for n in (4, 5, 6) for s in ("dcm", "eml"))]
    assert await keeper.ledger.read(lambda c: len(c.scalars(select(message.c.id)).all())) == 6
    assert await keeper.purge(NOW + 31 * DAY, 7 * DAY, 30 * DAY) == 0
    assert await keeper.ledger.read(lambda c: len(c.scalars(select(message.c.id)).all())) == 3


async def test_a_sweep_takes_only_old_bytes_that_no_row_speaks_of_twice(keeper: Janitor) -> None:
    """What lies there without a row today may be on its way; a clock that jumped makes all look old (R1, R29)."""
    await keeper.ledger.write(everything)
    for key in ("in-6.eml", "in-6.dcm", "in-1.eml", "orphan.eml"):
        lay(keeper, f"2026112312/{key}")
    lay(keeper, "2026112312/young.eml", age=timedelta(0))
    await keeper.ledger.write(lambda c: c.execute(update(message).where(message.c.id == "in-1").values(purged_at=NOW)))
    now = datetime.now(UTC)
    assert await keeper.sweep(now) == 0
    lay(keeper, "2026112312/newcomer.eml")
    assert await keeper.sweep(now) == 2
    left = sorted(path.name for path in keeper.spool.path("2026112312").iterdir())
    assert left == ["in-6.dcm", "in-6.eml", "newcomer.eml", "young.eml"]
    assert await keeper.sweep(now + 2 * DAY) == 1  # young looks old now, but for the first time


async def test_tickets_that_were_lost_are_put_again(keeper: Janitor) -> None:
    """Losing every ticket loses nothing, and nothing is put twice (R17)."""
    await keeper.ledger.write(everything)
    await keeper.ledger.write(lambda c: c.execute(ticket.delete()))
    assert await keeper.reissue(NOW) == 1
    assert await keeper.reissue(NOW) == 0
    assert await keeper.ledger.write(lambda c: tickets.claim(c, NOW, {"store": 9})) == ["store:pacs"]


async def test_the_nightly_proof_opens_and_closes_its_notice(keeper: Janitor) -> None:
    """Bytes that are missing are told of until they are back or a person dropped them (R34)."""
    await keeper.ledger.write(lambda c: queue(c, "in-1"))
    assert not await keeper.prove(NOW)
    assert await keeper.ledger.read(alarms) == {("unaccounted", "ledger")}
    lay(keeper, "2026112312/in-1.eml")
    lay(keeper, "2026112312/in-1.dcm")
    assert await keeper.prove(NOW)
    assert await keeper.ledger.read(alarms) == set()
    keeper.spool.remove("2026112312/in-1.eml")
    assert not await keeper.prove(NOW)
    await keeper.ledger.write(lambda c: verbs.drop(c, "in-1", NOW, "anna"))
    assert await keeper.prove(NOW)
