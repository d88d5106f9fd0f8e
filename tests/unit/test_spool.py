"""The spool: bytes by key, durable before anybody says so, and nothing left of what was not."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import LowDiskError
from gateway.ledger import spool as spools
from gateway.ledger.drafts import Draft
from gateway.ledger.spool import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """A spool that is closed in the end."""
    made = Spool(tmp_path / "spool")
    yield made
    made.close()


def draft(spool: Spool, content: bytes) -> Draft:
    made = spool.draft()
    made.write(content)
    return made


async def test_bytes_come_back_by_their_key(spool: Spool) -> None:
    """What was committed lies under its key, for its owner alone; its draft is gone."""
    key = await spool.commit(draft(spool, b"whole"), ".eml")
    assert spool.path(key).read_bytes() == b"whole"
    assert spool.has(key)
    assert spool.path(key).stat().st_mode & 0o777 == 0o600
    assert spool.path(key).parent.stat().st_mode & 0o777 == 0o700
    assert list(spool.drafts.iterdir()) == []
    assert [found for found, _ in spool.keys(time.time() + 60)] == [key]
    spool.remove(key)
    spool.remove(key)
    assert not spool.has(key)


async def test_a_burst_shares_the_sync_of_its_folder(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many files that are ready at once cost one sync of their folder, and each its own."""
    await spool.commit(draft(spool, b"x"), ".eml")
    folders: list[Path] = []
    monkeypatch.setattr(spools, "_sync_folder", folders.append)
    asyncio.get_running_loop().call_soon(time.sleep, 0.0)
    keys = await asyncio.gather(*(spool.commit(draft(spool, b"%d" % n), ".eml") for n in range(20)))
    assert [spool.path(key).read_bytes() for key in keys] == [b"%d" % n for n in range(20)]
    assert 1 <= len(folders) < 20


async def test_names_say_nothing_and_never_repeat(spool: Spool) -> None:
    """A key is an hour and dice (PRV-1)."""
    keys = [await spool.commit(draft(spool, b"same"), ".eml") for _ in range(5)]
    assert len(set(keys)) == 5
    assert all(len(key) == len("2026112312/") + 24 + 4 for key in keys)


async def test_what_is_committed_cannot_be_discarded(spool: Spool) -> None:
    """Whoever wrote it may be told of a failure after which a row speaks of it all the same (R1)."""
    one = draft(spool, b"x")
    key = await spool.commit(one, ".eml")
    one.discard()
    assert spool.path(key).read_bytes() == b"x"


def test_a_discarded_draft_leaves_nothing(spool: Spool) -> None:
    """Discarding is safe at any time, twice, and after the file was closed."""
    one = draft(spool, b"x" * (9 << 20))
    assert one.size == 9 << 20
    one.sync()
    one.discard()
    one.discard()
    assert list(spool.drafts.iterdir()) == []


async def test_drafts_of_a_former_life_are_wiped(tmp_path: Path) -> None:
    """They were never acknowledged; what was committed stays (R1)."""
    first = Spool(tmp_path / "spool")
    key = await first.commit(draft(first, b"kept"), ".eml")
    draft(first, b"lost").sync()
    first.close()
    second = Spool(tmp_path / "spool")
    assert list(second.drafts.iterdir()) == []
    assert second.has(key)
    second.close()


async def test_only_old_bytes_are_named_and_empty_hours_go(spool: Spool) -> None:
    """A sweep sees what has lain there for long, and an hour that is empty is removed."""
    key = await spool.commit(draft(spool, b"young"), ".eml")
    old = spool.root / "2020010100"
    old.mkdir()
    (old / "file.eml").write_bytes(b"old")
    (old / "folder").mkdir()
    (spool.root / "stray").write_bytes(b"")
    os.utime(old / "file.eml", (0, 0))
    assert list(spool.keys(time.time() - 3600)) == [("2020010100/file.eml", 3)]
    assert spool.has(key)
    (old / "folder").rmdir()
    spool.remove_all(["2020010100/file.eml"])
    os.utime(old, (0, 0))
    assert list(spool.keys(time.time() - 3600)) == []
    assert not old.exists()


async def test_an_hour_that_was_swept_is_made_again(spool: Spool) -> None:
    """A clock that goes back finds its folder gone, and makes it anew (R29)."""
    key = await spool.commit(draft(spool, b"x"), ".eml")
    spool.remove(key)
    spool.path(key).parent.rmdir()
    assert spool.has(await spool.commit(draft(spool, b"y"), ".eml"))


def test_a_disk_that_is_nearly_full_is_a_temporary_no(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """New work is refused below the floor and taken again above it (R5)."""
    assert 0 < spool.free() <= spool.capacity
    monkeypatch.setattr(spool, "free", lambda: 1000)
    spool.demand(1000)
    with pytest.raises(LowDiskError, match="nearly full"):
        spool.demand(1001)


async def test_closing_finishes_what_was_handed_in(tmp_path: Path) -> None:
    """A commit that was asked for is answered."""
    spool = Spool(tmp_path / "spool")
    tasks = [asyncio.create_task(spool.commit(draft(spool, b"x"), ".eml")) for _ in range(5)]
    await asyncio.sleep(0)
    spool.close()
    assert all(spool.has(key) for key in await asyncio.gather(*tasks))


async def test_a_caller_that_went_away_is_no_trouble(spool: Spool) -> None:
    """Its bytes belong to nobody and are swept; the others are served."""
    task = asyncio.create_task(spool.commit(draft(spool, b"x"), ".eml"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert spool.has(await spool.commit(draft(spool, b"y"), ".eml"))


async def test_a_loop_that_is_gone_takes_the_spool_not_along(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next caller is served although the one before can no longer be told."""
    begun, go = threading.Event(), threading.Event()
    sync = Draft.sync

    def slow(one: Draft) -> None:
        begun.set()
        go.wait(10)
        sync(one)

    monkeypatch.setattr(Draft, "sync", slow)

    def another_life() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(spool.commit(draft(spool, b"x"), ".eml"))
        loop.run_until_complete(asyncio.sleep(0))
        begun.wait(10)
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()

    await asyncio.to_thread(another_life)
    go.set()
    for _ in range(2 * spools.SYNCERS):  # each of the threads is alive
        assert spool.has(await spool.commit(draft(spool, b"y"), ".eml"))
