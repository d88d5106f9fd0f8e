"""The way out in one process: images are handed in, a relay that answers as it is told takes the mails."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from rows import configuration
from sqlalchemy import select

from gateway import config
from gateway.core import part10
from gateway.core.pseudonym import Identity
from gateway.errors import RelayError
from gateway.ledger import inventory, tickets
from gateway.ledger.custody import Caller, Received
from gateway.ledger.drafts import Segment
from gateway.ledger.ledger import Ledger, connect
from gateway.ledger.spool import Spool
from gateway.ledger.tables import ticket
from gateway.model import Mail, Reply, Submission
from gateway.stages.compose import Compose
from gateway.stages.submit import Submit

CONFIGURATION = """
[gateway]
name = "gw.example"
postmaster = "team@gw.example"
data = "data"

[limits]
free_space = "1 MB"

[storescp]
title = "GATEWAY"
listen = "127.0.0.1:0"

[relay]
host = "127.0.0.1"
tls = "none"
sender = "dicom@gw.example"
max_message = "MAX"

[partner.clinic-a]
address = "dicom@clinic-a.example"
send = "plain"

[partner.clinic-b]
address = "dicom@clinic-b.example"
send = "plain"

[partner.sealed]
address = "dicom@sealed.example"

[partner.small]
address = "dicom@small.example"
send = "plain"
max_message = "20 KB"
partial = true

[[route]]
name = "one"
called = "ONE"
mail = ["clinic-a"]
quiet = "0s"

[[route]]
name = "two"
called = "TWO"
calling = "CT*"
mail = ["clinic-a", "clinic-b"]
quiet = "0s"

[[route]]
name = "sealed"
called = "SEALED"
mail = ["sealed"]
quiet = "0s"

[[route]]
name = "small"
called = "SMALL"
mail = ["small"]
quiet = "0s"

[[route]]
name = "slow"
called = "SLOW"
mail = ["clinic-a"]
quiet = "60s"
"""


def _files() -> ModuleType:
    # The maker of small DICOM files bears the name of the peers' samples.
    path = Path(__file__).parents[1] / "samples.py"
    spec = importlib.util.spec_from_file_location("small_samples", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


files = _files()


CALLER = Caller("CT1", "ONE", "192.0.2.7")
"""Who sends."""


@dataclass
class Postman:
    """A relay that answers mail by mail: a reply, a doubt (None), or an error; the last answer stays.

    Attributes:
        answers: What it says.
        announced: Bytes of the longest mail it takes.
        mails: What it was given, with its content.
        greetings: How often it was greeted.
        down: It cannot be reached.
    """

    answers: Sequence[Reply | Exception | None] = (Reply(250, "2.0.0"),)
    announced: int | None = None
    mails: list[tuple[Mail, bytes]] = field(default_factory=list)
    greetings: int = 0
    down: RelayError | None = None

    async def greet(self) -> None:
        self.greetings += 1
        if self.down is not None:
            raise self.down

    def has_begun(self, mail: Mail) -> bool:
        return mail in {taken for taken, _ in self.mails}

    async def submit(self, mail: Mail) -> Submission:
        if self.down is not None:
            raise self.down
        answer = self.answers[min(len(self.mails), len(self.answers) - 1)]
        self.mails.append((mail, mail.content.path.read_bytes()))
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            return Submission((), doubtful=True)
        return Submission(tuple((one, answer) for one in mail.recipients))


class Outbound:
    """The stages of the way out."""

    def __init__(self, folder: Path, url: str = "", postman: Postman | None = None, most: str = "35 MB") -> None:
        self.configuration = configuration(folder, CONFIGURATION.replace("MAX", most))
        self.postman = postman or Postman()
        self.url = url or f"sqlite:///{folder / 'ledger.sqlite'}"
        self.folder = folder
        self.open()

    def open(self) -> None:
        """Begin a life, on whatever the last one left."""
        self.ledger = Ledger(connect(self.url))
        self.spool = Spool(self.folder / "spool")
        self.use(self.configuration)

    def use(self, new: config.Configuration) -> None:
        """Run with another configuration."""
        self.configuration = new
        self.compose = Compose(new, self.ledger, self.spool, self.postman)
        self.submit = Submit(new, self.ledger, self.spool, self.postman, dice=lambda: 0.5)

    def close(self) -> None:
        """End a life."""
        self.ledger.close()
        self.spool.close()

    def image(
        self,
        number: int,
        *,
        study: str = "1.2.9",
        size: int = 100,
        content: str = "",
        caller: Caller | None = None,
        segment: Segment | None = None,
    ) -> Received:
        """An instance in a draft, or as the door does it: in a segment, not hashed yet.

        Its pixels follow from its number unless told.
        """
        uid = f"1.2.3.{number}"
        pixels = (content or uid).encode().ljust(size, b".")
        data = b"".join(
            [
                files.element(0x00080016, "UI", files.CT),
                files.element(0x00080018, "UI", uid),
                files.element(0x00080060, "CS", "CT"),
                files.element(0x00100020, "LO", "P1"),
                files.element(0x0020000D, "UI", study),
                files.element(0x0020000E, "UI", f"{study}.1"),
                files.element(0x00200013, "IS", str(number)),
                files.element(0x7FE00010, "OB", pixels),
            ]
        )
        head = bytes(128) + b"DICM" + files.meta(instance=uid)
        draft = self.spool.draft() if segment is None else segment.draft()
        draft.write(head + data)
        digest, file = (hashlib.sha256(one).hexdigest() if segment is None else "" for one in (data, head + data))
        assert part10.read_meta(head + data).data_set == len(head)
        uids = (files.CT, uid, study, f"{study}.1", files.EXPLICIT)
        return Received(caller or CALLER, *uids, len(head + data), file, digest, len(head), Identity(), draft)

    async def accept(self, one: Received) -> int:
        """Hand one in, as the thread of an association does; return what it is answered."""
        return await asyncio.to_thread(self.compose.accept, one, 60.0)

    async def send(self, *numbers: int, called: str = "ONE", **changes: Any) -> None:
        """Hand images in, and see them acknowledged."""
        for number in numbers:
            one = self.image(number, caller=replace(CALLER, called=called), **changes)
            assert await self.accept(one) == 0

    async def work(self, rounds: int = 5) -> None:
        """Serve every ticket that is due, as the carrier would."""
        for _ in range(rounds):
            now = datetime.now(UTC)
            free = {"compose": 99, "submit": 1}
            for key in await self.ledger.write(lambda c, now=now, free=free: tickets.claim(c, now, free)):
                kind, _, rest = key.partition(":")
                again = await {"compose": self.compose.look, "submit": self.submit.look}[kind](rest)
                await self.ledger.write(lambda c, key=key, again=again: tickets.finish(c, [(key, again)]))

    async def items(self) -> list[dict[str, Any]]:
        """Every item with its details, the oldest first."""
        now = datetime.now(UTC)
        document = await self.ledger.read(lambda c: inventory.list_items(c, now))
        keys = [one["id"] for one in reversed(document["items"])]
        return [await self.ledger.read(lambda c, key=key: inventory.show_item(c, key, now)) for key in keys]

    async def proof(self) -> dict[str, Any]:
        """The conservation proof."""
        return await self.ledger.read(lambda c: inventory.reconcile(c, self.spool.has))

    async def tickets(self) -> list[str]:
        """What is to be looked at."""
        return await self.ledger.read(lambda c: sorted(c.scalars(select(ticket.c.key))))
