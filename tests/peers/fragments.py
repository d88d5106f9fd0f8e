"""Messages cut into message/partial, and RECEIVE with the real reader, under a clock of its own."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rows import ENVELOPE, outcome
from sqlalchemy import select

from gateway import config
from gateway.core import header, reader
from gateway.ledger import inventory, tickets
from gateway.ledger.ledger import Ledger, connect
from gateway.ledger.spool import Spool
from gateway.ledger.tables import delivery, instance, message
from gateway.model import Digest, Envelope, Reading, Span
from gateway.stages.receive import Receive

_names = itertools.count(1)


def cut(
    whole: bytes,
    at: Sequence[int],
    *,
    name: str = "set@clinic-a.example",
    sender: str = "dicom@clinic-a.example",
    total: bool = True,
) -> list[bytes]:
    """Cut a message at lines, as RFC 2046 §5.2.2 asks.

    Args:
        whole: The message, lines ended by CRLF.
        at: Numbers of the lines that fragments after the first begin with.
        name: The parameter ``id``.
        sender: The From field of each.
        total: Whether each says how many there are; else only the last does.
    """
    lines = whole.splitlines(keepends=True)
    bounds = [0, *sorted({min(max(one, 1), len(lines) - 1) for one in at}), len(lines)]
    bodies = [b"".join(lines[start:end]) for start, end in itertools.pairwise(bounds)]
    made = []
    for number, body in enumerate(bodies, 1):
        count = f"; total={len(bodies)}" if total or number == len(bodies) else ""
        head = (
            f"From: {sender}\r\nTo: pacs@gw.example\r\nSubject: piece {number}\r\n"
            f"Message-ID: <{next(_names)}@clinic-a.example>\r\nMIME-Version: 1.0\r\n"
            f'Content-Type: message/partial; id="{name}"; number={number}{count}\r\n\r\n'
        )
        made.append(head.encode() + body)
    return made


class Gateway:
    """RECEIVE and what it needs; ``restart`` is a new life over the same data.

    Args:
        folder: Of its data.
        configuration: Partners, routes and limits.
        url: Of its ledger, else SQLite in the folder.
    """

    def __init__(self, folder: Path, configuration: config.Configuration, url: str | None = None) -> None:
        self.folder = folder
        self.configuration = configuration
        self.url = url or f"sqlite:///{folder / 'ledger.sqlite'}"
        self.now = datetime.now(UTC)
        self.readings = 0
        self._open()

    def _open(self) -> None:
        self.ledger = Ledger(connect(self.url))
        self.spool = Spool(self.folder / "spool")
        self.receive = Receive(self.configuration, self.ledger, self.spool, self.read, lambda: self.now)

    def close(self) -> None:
        """End this life in good order."""
        self.ledger.close()
        self.spool.close()

    async def restart(self) -> None:
        """Begin another life, with tickets that were running ready again."""
        self.close()
        self._open()
        await self.ledger.write(lambda c: tickets.restart(c, self.now))

    async def read(self, found: Span, rules: reader.Rules, out: Path) -> Reading:
        """Run the real reader."""
        self.readings += 1
        return await asyncio.to_thread(reader.read_to, found, rules, out)

    async def accept(self, mail: bytes, *, to: Sequence[str] = ("pacs@gw.example",), sender: str = "") -> str:
        """Take a mail in, as a door does."""
        draft = self.receive.draft()
        draft.write(mail)
        block = header.BLOCK.match(mail)
        assert block is not None
        body = hashlib.sha256(mail[block.end() + 2 :]).hexdigest()
        digest = Digest(len(mail), hashlib.sha256(mail).hexdigest(), body, block[0])
        envelope = Envelope("smtp", sender or ENVELOPE.sender, tuple(to), ENVELOPE.peer, ENVELOPE.user)
        return await self.receive.accept(envelope, draft, digest)

    async def work(self) -> None:
        """Look at everything that is due in RECEIVE, as the carrier does, until nothing is."""
        far = max(self.now, datetime.now(UTC)) + timedelta(seconds=1)  # what a door puts is due by the real clock
        while keys := await self.ledger.write(lambda c: tickets.claim(c, far, {"receive": 8})):
            looks = await asyncio.gather(*(self.receive.look(key.partition(":")[2]) for key in keys))
            for key, again in zip(keys, looks, strict=True):
                # What wants to look again is left for the next call; the carrier too puts it an hour ahead at most.
                later = again and min(max(again, far + timedelta(seconds=1)), far + timedelta(hours=1))
                await self.ledger.write_together(tickets.finish, (key, later))

    async def pass_hours(self, hours: int) -> None:
        """Let hours go by, with a look at everything in each."""
        for _ in range(hours):
            self.now += timedelta(hours=1)
            for key in await self.waiting():
                await self.receive.look(key)
            await self.work()

    async def waiting(self) -> list[str]:
        """Messages that wait in RECEIVE for a look."""
        mine = (message.c.outcome == "waiting") & (message.c.stage == "receive") & message.c.duplicate_of.is_(None)
        return await self.ledger.read(lambda c: list(c.scalars(select(message.c.id).where(mine))))

    async def state(self, key: str) -> tuple[str, str | None]:
        """Outcome and code of an item."""
        return await self.ledger.read(lambda c: outcome(c, key))

    async def story(self, key: str) -> str:
        """What happened to an item."""
        shown = await self.ledger.read(lambda c: inventory.show_item(c, key, self.now))
        return "\n".join(one["text"] for one in shown["events"])

    async def proven(self) -> dict[str, int]:
        """The conservation proof, which must hold (R34)."""
        proof = await self.ledger.read(lambda c: inventory.reconcile(c, self.spool.has))
        assert proof["unaccounted"] == 0, proof
        assert proof["instances"]["unaccounted"] == 0
        assert await self.ledger.read(inventory.tickets_missing) == []
        return proof

    async def files(self) -> list[tuple[str, bytes]]:
        """Every instance that is queued, once for each message and destination, with its bytes."""
        rows = await self.ledger.read(
            lambda c: c.execute(
                select(message.c.instances_blob, instance.c.start, instance.c.size, delivery.c.destination)
                .join(instance, instance.c.message == message.c.id)
                .join(delivery, (delivery.c.message == message.c.id) & (delivery.c.number == instance.c.number))
                .order_by(message.c.received_at, instance.c.number, delivery.c.id)
            ).all()
        )
        return [
            (row.destination, self.spool.path(row.instances_blob).read_bytes()[row.start : row.start + row.size])
            for row in rows
        ]

    def drafts(self) -> list[Path]:
        """Files that nobody finished."""
        return list(self.spool.drafts.iterdir())
