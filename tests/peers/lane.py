"""The STORE stage with a real ledger, a real spool and the real Storage SCU, fed with DICOM files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pacs import read_meta
from rows import instance, parts, queue
from sqlalchemy import Connection, select, update

from gateway import config
from gateway.core import transcode
from gateway.edges.worker import Workers
from gateway.ledger.ledger import Ledger, connect
from gateway.ledger.spool import Spool
from gateway.ledger.tables import delivery, destination
from gateway.model import Instance, Span
from gateway.service import Scu
from gateway.stages.store import Store

HEAD = """
[gateway]
name = "gw.example"
postmaster = "team@gw.example"
data = "data"

[limits]
free_space = "1 MB"

[smtp]
listen = "127.0.0.1:0"

[partner.clinic-a]
address = "dicom@clinic-a.example"
accept = "any"
"""


class Lane:
    """One gateway's STORE, with destinations by name: title and port, and whatever else is configured for them."""

    def __init__(self, folder: Path, entities: Mapping[str, Mapping[str, Any]]) -> None:
        text = HEAD
        for name, entity in entities.items():
            settings = {"host": "127.0.0.1", "timeout": "10s", **entity}
            text += f"\n[ae.{name}]\n" + "".join(f"{key} = {value!r}\n" for key, value in settings.items())
        folder.mkdir(exist_ok=True)
        (folder / "gateway.toml").write_text(text, encoding="utf-8")
        self.configuration = config.load(folder / "gateway.toml")
        self.ledger = Ledger(connect(f"sqlite:///{folder / 'ledger.sqlite'}"))
        self.spool = Spool(folder / "spool")
        self.decoders = Workers(1, memory=2 << 30, seconds=120)
        self.store = Store(
            self.configuration, self.ledger, self.spool, Scu(self.configuration), transcode=self._transcode
        )
        self._ready = False

    async def _transcode(self, *what: Any) -> transcode.Transcoded:
        if not self._ready:
            self._ready = True
            await self.decoders.open(at_once=False)
        return await self.decoders.run(transcode.transcode, *what)

    async def close(self) -> None:
        """End its threads and processes."""
        await self.decoders.close()
        self.ledger.close()
        self.spool.close()

    def fill(
        self,
        key: str,
        files: Iterable[tuple[Path | bytes, str, str]],
        to: Iterable[str],
        content: str = "",
        **changes: Any,
    ) -> None:
        """Queue one message with DICOM files: path or content, study and series of each."""
        blob = self.spool.path(f"2026112312/{key}.dcm")
        blob.parent.mkdir(parents=True, exist_ok=True)
        found: list[Instance] = []
        with blob.open("wb") as out:
            for number, (source, study, series) in enumerate(files, 1):
                file = source if isinstance(source, bytes) else source.read_bytes()
                meta = read_meta(file)
                assert meta is not None
                start = out.tell()
                out.write(file)
                whole = Span(blob, start, out.tell())
                found.append(
                    replace(
                        instance(number, uid=meta.sop_instance, content=content or f"{key}.{number}"),
                        sop_class=meta.sop_class,
                        transfer_syntax=meta.transfer_syntax,
                        study=study,
                        series=series,
                        file=whole,
                        data_set=meta.data_set,
                    )
                )
        self.sync(lambda c: queue(c, key, *found, to=tuple(to), at=datetime.now(UTC), **changes))

    def sync(self, change: Any) -> Any:
        """Change or read the ledger from outside."""
        with self.ledger.engine.begin() as connection:
            return change(connection)

    def parts(self, key: str) -> list[tuple[int, str, str, str | None]]:
        """Number, destination, outcome and code of each delivery of an item."""
        return self.sync(lambda c: parts(c, key))  # type: ignore[no-any-return]

    def make_due(self) -> None:
        """Let the time pass until everything is due."""
        past = datetime.now(UTC) - timedelta(seconds=1)

        def change(connection: Connection) -> None:
            connection.execute(update(delivery).where(delivery.c.outcome == "waiting").values(next_attempt=past))
            behind = destination.c.breaker_until.is_not(None)
            connection.execute(update(destination).where(behind).values(breaker_until=past))

        self.sync(change)

    @property
    def waiting(self) -> int:
        """How many deliveries are open."""
        open_ = select(delivery.c.id).where(delivery.c.outcome == "waiting")
        return len(self.sync(lambda c: c.scalars(open_).all()))

    async def drain(self, looks: int) -> int:
        """Look at every destination until nothing waits, as often as said at most; return how many looks it took."""
        for look in range(looks):
            if not self.waiting:
                return look
            await asyncio.gather(*(self.store.look(name) for name in self.configuration.ae))
            self.make_due()
        return looks

    @staticmethod
    def now() -> datetime:
        """This moment."""
        return datetime.now(UTC)
