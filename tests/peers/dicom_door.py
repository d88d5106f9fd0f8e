"""The DICOM door on a loop of its own, in a thread, so that tests can be plain clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from gateway.config import Listen, StorageSCP
from gateway.core import commitment
from gateway.edges.storescp import Deadlines, StorageScpDoor
from gateway.errors import LowDiskError
from gateway.ledger.custody import Caller, Received
from gateway.ledger.drafts import Segment
from gateway.ledger.spool import Spool


class Taker:
    """Takes instances into a spool, and does what a test wants instead."""

    def __init__(self, folder: Path) -> None:
        self.spool = Spool(folder)
        self.called: set[str] = {"OPINION"}
        self.unwelcome: set[str] = set()
        self.low = False
        self.received: list[tuple[Received, Path]] = []
        self.reports: list[commitment.Report] = []
        self.known = True
        self.before: Callable[[Received], int | None] = lambda _: None
        self.slow = threading.Event()
        self.segments: list[Segment] = []

    def titles(self) -> Collection[str]:
        """AE titles beside the door's own."""
        return self.called

    def welcomes(self, caller: Caller) -> bool:
        """All but those who are not."""
        return caller.calling not in self.unwelcome

    def demand_room(self, size: int) -> None:
        """As the test says."""
        del size
        if self.low:
            raise LowDiskError("low")

    def segment(self) -> Segment:
        """Begin a file, and remember it."""
        self.segments.append(self.spool.segment())
        return self.segments[-1]

    def accept(self, received: Received, patience: float) -> int:
        """Keep it, unless the test says otherwise."""
        if self.slow.is_set():
            time.sleep(patience)
            raise TimeoutError
        status = self.before(received)
        if status is not None:
            received.draft.discard()
            return status
        file = self.spool.prepare(received.draft, ".dcm")
        self.spool.settle(file)
        apart = self.spool.root / f"instance-{len(self.received)}.dcm"
        apart.write_bytes(received.draft.read(0, received.size))
        self.received.append((received, apart))
        return 0

    async def report(self, report: commitment.Report) -> bool:
        """Note a report."""
        self.reports.append(report)
        return self.known

    @property
    def left(self) -> list[Path]:
        """Segments that hold, or have hidden behind their end, what nobody accepted."""
        kept: dict[Path, int] = {}
        for received, _ in self.received:
            kept[received.draft.path] = max(kept.get(received.draft.path, 0), received.draft.start + received.size)
        return [path for path in self.spool.root.rglob("*.seg") if path.stat().st_size != kept.get(path, 0)]


class Running:
    """A door that is open."""

    def __init__(self, door: StorageScpDoor, taker: Taker, loop: asyncio.AbstractEventLoop) -> None:
        self.door = door
        self.taker = taker
        self.loop = loop
        self.port = door.addresses[0][1]

    def close(self, patience: float = 5) -> None:
        """Close it."""
        asyncio.run_coroutine_threadsafe(self.door.close(patience), self.loop).result(60)


@contextlib.contextmanager
def dicom_door(
    folder: Path,
    settings: dict[str, Any] | None = None,
    *,
    deadlines: Deadlines | None = None,
    incoming: bool = True,
    reports: bool = True,
    **options: Any,
) -> Iterator[Running]:
    """Open a door until the block ends."""
    taker = Taker(folder / "spool")
    section = StorageSCP(**{"title": "DOOR", "listen": Listen("127.0.0.1", 0), **(settings or {})})
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        door = StorageScpDoor(
            section,
            taker if incoming else None,
            taker.report if reports else None,
            deadlines=deadlines or Deadlines(),
            **options,
        )
        asyncio.run_coroutine_threadsafe(door.open(), loop).result()
        running = Running(door, taker, loop)
        yield running
        running.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        taker.spool.close()
