"""A power cut at any moment, on a disk that may fail: bytes without a row may be, a row without bytes never (R1).

What would survive is written down as it becomes durable: the bytes of a file when it is synced, its name when its
folder is, a folder when the root is. After each step every committed row must find its bytes among what survives.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import ENVELOPE, configuration
from sqlalchemy import create_engine, select

from gateway.errors import LedgerError
from gateway.ledger import spool as spools
from gateway.ledger.drafts import Draft
from gateway.ledger.ledger import Ledger, connect
from gateway.ledger.spool import Spool
from gateway.ledger.tables import message
from gateway.model import Digest
from gateway.stages.receive import Receive

STEPS = ["sync", "rename", "folder"]


class Disk:
    """What is on the disk for good, and the steps that fail."""

    def __init__(self, folder: Path, failing: set[tuple[str, int]]) -> None:
        self.root = folder / "spool"
        self.rows = create_engine(f"sqlite:///{folder / 'ledger.sqlite'}")
        self.failing = failing
        self.calls = dict.fromkeys(STEPS, 0)
        self.synced: dict[int, bytes] = {}
        self.names: dict[str, dict[str, int]] = {}
        self.hours: set[str] = set()
        self.turn = threading.Lock()
        self.astray: list[str] = []

    def step(self, name: str) -> None:
        with self.turn:
            self.check()
            self.calls[name] += 1
            if (name, self.calls[name]) in self.failing:
                raise OSError(5, "Input/output error")

    def check(self) -> None:
        with self.rows.connect() as connection:
            keys = connection.execute(select(message.c.blob, message.c.size)).all()
        for key, size in keys:
            hour, _, name = key.partition("/")
            inode = self.names.get(hour, {}).get(name) if hour in self.hours else None
            if inode is None or len(self.synced.get(inode, b"")) != size:
                self.astray.append(key)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        real_sync, real_rename, real_folder = Draft.sync, os.rename, spools._sync_folder

        def sync(draft: Draft) -> None:
            self.step("sync")
            real_sync(draft)
            self.synced[draft.path.stat().st_ino] = draft.path.read_bytes()

        def rename(source: Path, target: str) -> None:
            self.step("rename")
            real_rename(source, target)

        def folder(path: Path | str) -> None:
            self.step("folder")
            real_folder(path)
            entries = {entry.name: entry.inode() for entry in os.scandir(path)}
            if Path(path) == self.root:
                self.hours |= set(entries)
            else:
                self.names[Path(path).name] = entries

        patch.setattr(Draft, "sync", sync)
        patch.setattr(spools.os, "rename", rename)
        patch.setattr(spools, "_sync_folder", folder)


async def burst(folder: Path, sizes: list[int], disk: Disk, patch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Hand in messages at once; return how many were acknowledged, and how many rows there are."""
    ledger = Ledger(connect(f"sqlite:///{folder / 'ledger.sqlite'}"))
    spool = Spool(disk.root)
    receive = Receive(configuration(folder), ledger, spool, None)  # type: ignore[arg-type]
    disk.install(patch)

    async def accept(number: int, size: int) -> None:
        head = b"From: dicom@clinic-a.example\r\nMessage-ID: <%d@x>\r\n" % number
        draft = receive.draft()
        draft.write(head + b"\r\n" + b"x" * size)
        await receive.accept(ENVELOPE, draft, Digest(draft.size, "0" * 64, f"{number:064}", head))

    calls = [accept(number, size) for number, size in enumerate(sizes)]
    async with asyncio.timeout(20):
        results = await asyncio.gather(*calls, return_exceptions=True)
    disk.check()
    rows = await ledger.read(lambda c: len(c.scalars(select(message.c.id)).all()))
    ledger.close()
    spool.close()
    disk.rows.dispose()
    assert all(result is None or isinstance(result, OSError | LedgerError) for result in results)
    return results.count(None), rows


@given(
    st.lists(st.sampled_from([0, 10, 100_000]), min_size=1, max_size=6),
    st.sets(st.tuples(st.sampled_from(STEPS), st.integers(1, 6)), max_size=4),
)
@settings(max_examples=25, deadline=None)
def test_a_row_never_outlives_its_bytes(sizes: list[int], failing: set[tuple[str, int]]) -> None:
    """At every step of any burst, and whatever fails in it; what was acknowledged has its row (R1)."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        disk = Disk(Path(name), failing)
        acknowledged, rows = asyncio.run(burst(Path(name), sizes, disk, patch))
        assert disk.astray == []
        assert acknowledged == rows
        assert acknowledged == len(sizes) or failing


def test_the_simulation_would_notice_a_row_that_is_too_early() -> None:
    """A ledger that is written before the folder was synced is found out (the test can fail)."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        disk = Disk(Path(name), set())
        commit = Spool.commit

        async def hasty(spool: Spool, draft: Draft, suffix: str) -> str:
            patch.setattr(spools, "_sync_folder", lambda _: None)
            return await commit(spool, draft, suffix)

        patch.setattr(Spool, "commit", hasty)
        asyncio.run(burst(Path(name), [10], disk, patch))
        assert disk.astray
