"""Polls mailboxes: RECEIVE's other door. Takes what lies there into custody, and only then files it (R1, IMAP-6).

One task for each mailbox, so that a dead one is nobody else's matter. What is known of a mailbox is a state with a
moment in the ledger, never "no mail" (R3). A mail is filed once its item shows whether it was for us: what is none of
ours is left or moved, as configured, never deleted and never answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import structlog

from gateway.core import mailbox
from gateway.core.data import Digester
from gateway.core.mailbox import Filing, Known, State, Waiting
from gateway.errors import GatewayError, LowDiskError, MailboxError, RefusedError
from gateway.ledger import mailboxes
from gateway.ledger.drafts import Draft
from gateway.ledger.ledger import Ledger
from gateway.ledger.mailboxes import Folder, Health, Taken
from gateway.model import Digest, Envelope

log = structlog.get_logger(__name__)

BATCH: Final = 50
"""Mails that are written down and filed together."""

TICK: Final = 0.5
"""Seconds between two looks at items whose outcome decides where their mail goes."""

TICKS: Final = 20
"""So many of them before the mailbox is waited for in earnest."""

REMEMBERED: Final = timedelta(days=30)
"""How long a mail is known that is no longer in the folder."""

TRIES: Final = 3
"""Downloads of one mail that break without a byte of progress, before the next mail has its turn."""


class Sink(Protocol):
    """Where a mail's bytes go, block by block, in a thread."""

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Take the next block."""


class Session(Protocol):
    """A mailbox that is logged in to. Everything raises MailboxError."""

    folder: Folder
    peer: str

    async def look(self) -> Sequence[Waiting]:
        """List what lies in the folder, flags included."""

    async def guard(self, keyword: str) -> str | None:
        """Where mails cannot be marked, leave a marker in the mailbox; return that of another gateway."""

    async def claim(self, uids: Sequence[str], keyword: str) -> str | None:
        """Mark mails as being taken by us; return an elder gateway's mark that is on one of them."""

    async def release(self, uids: Sequence[str], keyword: str) -> None:
        """Take our mark away."""

    async def fetch(self, uid: str, offset: int, sink: Sink, limit: int) -> bool:
        """Write a mail's bytes from an offset on to the sink; False when the mail is gone.

        Raises:
            MailboxError: It broke; what was written is good, and may be gone on from.
            RefusedError: It is larger than the limit, whatever the server said before.
        """

    async def file(self, uids: Sequence[str], filing: Filing) -> None:
        """Move mails to done or to failed. One that is gone is no error."""

    async def wait(self, seconds: float) -> None:
        """Return when something may have come, or after some time."""

    async def close(self) -> None:
        """Leave."""


class Mailbox(Protocol):
    """A mailbox that can be logged in to."""

    async def open(self) -> Session:
        """Log in and select the folder. Raises MailboxError."""


class Incoming(Protocol):
    """What is needed of RECEIVE: what the SMTP door needs of it."""

    def demand_room(self, size: int) -> None:
        """Raise LowDiskError when a message of this size has no room (R5)."""

    def draft(self) -> Draft:
        """Begin the file that a message is written to."""

    async def accept(self, envelope: Envelope, draft: Draft, digest: Digest) -> str:
        """Take custody: bytes synced, row committed. Owns the draft from here on."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How a mailbox is treated.

    Attributes:
        door: Its section, as ``imap.radiology``.
        address: What routes' ``to`` is matched with.
        other: ``leave`` or ``move`` for mail that is not for us; POP3 can only leave it.
        poll: Seconds between two looks, beside IDLE.
        message: Bytes of the largest mail that is taken.
        header: Bytes of its header.
        failed: The folder of what cannot be taken, as configured: for people.
        claim: The keyword by which this gateway is told from others.
    """

    door: str
    address: str
    other: str
    poll: float
    message: int
    header: int
    failed: str
    claim: str


class _Download:
    """A mail on its way into the spool. It outlives the session: a cut download goes on where it was (IMAP-4)."""

    def __init__(self, folder: Folder, mail: Waiting, draft: Draft, header: int) -> None:
        self.folder = folder
        self.mail = mail
        self.draft = draft
        self.digester = Digester(header)
        self.breaks = 0

    def write(self, block: bytes | bytearray | memoryview) -> None:
        self.draft.write(block)
        self.digester.update(block)

    def is_of(self, folder: Folder, mail: Waiting) -> bool:
        mine = (self.folder, self.mail.uid, self.mail.size, self.mail.stamp)
        return mine == (folder, mail.uid, mail.size, mail.stamp)


@dataclass(slots=True)
class Counters:
    """What one mailbox brought since the start, for the metrics.

    Attributes:
        taken: Mails that became items.
        repeated: Mails whose content was known under another UID.
        too_big: Mails that were not taken.
        bytes: Of the mails that were fetched.
        resumed: Downloads that went on where they were cut.
    """

    taken: int = 0
    repeated: int = 0
    too_big: int = 0
    bytes: int = 0
    resumed: int = 0


class Poll:
    """Polls one mailbox until it is cancelled.

    Args:
        rules: How it is treated.
        mailbox: The way to it.
        ledger: The tables.
        incoming: RECEIVE.
        before: How the mailbox was when the last life ended; None: nobody knows.
    """

    def __init__(
        self, rules: Rules, mailbox: Mailbox, ledger: Ledger, incoming: Incoming, before: Health | None = None
    ) -> None:
        self.rules = rules
        self.counters = Counters()
        self.state = before.state if before is not None else State.OK
        self.since = before.since.timestamp() if before is not None else time.time()
        self.looked_at = before.looked_at.timestamp() if before is not None and before.looked_at is not None else 0.0
        self._mailbox = mailbox
        self._ledger = ledger
        self._incoming = incoming
        self._failures = 0
        self._guarded = False
        self._stuck = False
        """The last look did not go through: that a folder can be listed does not make its mailbox well."""
        self._download: _Download | None = None
        self._broken: dict[str, int] = {}

    async def run(self) -> None:
        """Poll for ever; every trouble is a state, and is waited for with a growing pause."""
        try:
            while True:
                try:
                    await self._life()
                except GatewayError as error:
                    await self._trouble(_state(error), error.text)
                except OSError as error:  # the disk under the spool
                    await self._trouble(State.NO_ROOM, f"the spool takes nothing: {type(error).__name__}")
                except Exception as error:  # nobody foresaw it: it is a state too, and the other mailboxes go on
                    log.exception("mailbox-failed", door=self.rules.door)
                    await self._trouble(State.CONFUSED, f"polling failed: {type(error).__name__}")
                if self.state is State.SHARED:
                    # Every further look could take a mail that is the other one's. A person stops one of us.
                    await asyncio.get_running_loop().create_future()
                pause = mailbox.back_off(self._failures, random.random())  # noqa: S311  no secret: jitter
                await asyncio.sleep(pause.total_seconds())
        finally:
            self._drop_download()

    async def _life(self) -> None:
        """One session, from its login to its end."""
        session = await self._mailbox.open()
        try:
            number = await self._ledger.write(lambda c: mailboxes.number(c, session.folder))
            known = await self._ledger.read(lambda c: mailboxes.known(c, number))
            if not self._guarded:
                self._stop_if_shared(await session.guard(self.rules.claim))
                self._guarded = True
            while True:
                await self._look(session, number, known)
                await self._wait(session, number, known)
        finally:
            # Our own end must not hang on a peer's: the farewell has a deadline of its own, and whatever it raises
            # must not take the place of what ended this life, least of all of a cancellation.
            with contextlib.suppress(Exception):
                await session.close()

    async def _look(self, session: Session, number: int, known: dict[str, Known]) -> None:
        rules = self.rules
        found = await session.look()
        now = datetime.now(UTC)
        await self._ledger.write(lambda c: mailboxes.forget(c, number, {one.uid for one in found}, now - REMEMBERED))
        plan = mailbox.plan(found, known, rules.message, rules.claim)
        self._stop_if_shared(plan.foreign)
        if not self._stuck:
            await self._well()
        self._stuck = True
        # A mail whose download keeps breaking, or a folder that takes nothing, holds up no other mail.
        broken = sorted((one for one in plan.fetch if one.uid in self._broken), key=lambda one: self._broken[one.uid])
        await self._take(session, number, known, [one for one in plan.fetch if one.uid not in self._broken])
        await self._refuse_big(session, number, known, plan.too_big)
        if plan.again:
            await session.file([uid for uid in plan.again if known[uid].filing is Filing.FILED], Filing.FILED)
            await session.file([uid for uid in plan.again if known[uid].filing is Filing.FAILED], Filing.FAILED)
        await self._file(session, number, known)
        await self._take(session, number, known, broken)
        self._stuck = False
        if self.state is not State.OK:
            await self._well()

    def _stop_if_shared(self, other: str | None) -> None:
        if other is not None:
            raise MailboxError(f"it bears the mark {other} of another gateway", State.SHARED)

    async def _take(self, session: Session, number: int, known: dict[str, Known], fetch: Sequence[Waiting]) -> None:
        for at in range(0, len(fetch), BATCH):
            batch = fetch[at : at + BATCH]
            other = await session.claim([one.uid for one in batch], self.rules.claim)
            if other is not None:
                await session.release([one.uid for one in batch], self.rules.claim)
                self._stop_if_shared(other)
            taken: list[Taken] = []
            try:
                for one in batch:
                    mail = await self._take_one(session, number, known, one)
                    if mail is not None:
                        taken.append(mail)
            finally:
                # Also when the session broke: what is ours is written down, so that it is not fetched again.
                await self._record(number, known, taken)
            await self._file(session, number, known)

    async def _record(self, number: int, known: dict[str, Known], taken: Sequence[Taken]) -> None:
        now = datetime.now(UTC)
        if taken:
            await self._ledger.write(lambda c: mailboxes.record(c, number, taken, now))
        known.update({one.uid: Known(one.size, one.stamp, one.filing) for one in taken})

    async def _take_one(self, session: Session, number: int, known: dict[str, Known], mail: Waiting) -> Taken | None:
        """Fetch one mail and take custody of it; None when it is gone, or must wait."""
        self._incoming.demand_room(mail.size)
        download = self._begin(session.folder, mail)
        size = download.draft.size
        try:
            there = await session.fetch(mail.uid, size, download, self.rules.message)
        except MailboxError:
            # Without progress three times over, the next life begins with a clean sheet.
            download.breaks = 0 if download.draft.size > size else download.breaks + 1
            if not download.breaks:
                self._failures = 0  # what comes piece by piece is not waited for ever longer
            self._broken[mail.uid] = self._broken.get(mail.uid, 0) + 1
            if download.breaks >= TRIES:
                self._drop_download()
            raise
        except RefusedError:
            # Larger than the server said. The session is of no use any more; the next one moves the mail.
            self._drop_download()
            await self._fail(number, known, [mail])
            raise MailboxError("a mail was longer than the server said", State.CONFUSED) from None
        except BaseException:
            self._drop_download()
            raise
        if download.digester.header_too_long:
            await self._fail(number, known, [mail])
            await session.file([mail.uid], Filing.FAILED)
            there = False
        if not there:
            self._drop_download()
            return None
        self._broken.pop(mail.uid, None)
        self._failures = 0
        self._download = None
        digest = download.digester.digest()
        try:
            key = await self._ledger.read(lambda c: mailboxes.item_of(c, self.rules.door, number, digest.sha256))
        except BaseException:
            download.draft.discard()
            raise
        self.counters.bytes += digest.size
        if key is not None:
            download.draft.discard()
            self.counters.repeated += 1
            log.info("known-again", id=key, door=self.rules.door)
        else:
            envelope = Envelope(self.rules.door, "", (self.rules.address,), session.peer)
            key = await self._incoming.accept(envelope, download.draft, digest)
            self.counters.taken += 1
        return Taken(mail.uid, mail.size, mail.stamp, digest.sha256, key, Filing.TAKEN)

    def _begin(self, folder: Folder, mail: Waiting) -> _Download:
        if self._download is not None and self._download.is_of(folder, mail):
            self.counters.resumed += 1
            return self._download
        self._drop_download()
        self._download = _Download(folder, mail, self._incoming.draft(), self.rules.header)
        return self._download

    def _drop_download(self) -> None:
        if self._download is not None:
            self._download.draft.discard()
            self._download = None

    async def _refuse_big(
        self, session: Session, number: int, known: dict[str, Known], mails: Sequence[Waiting]
    ) -> None:
        """Move what is over the limit away without fetching it, and tell a person."""
        if not mails:
            return
        await session.file([one.uid for one in mails], Filing.FAILED)
        await self._fail(number, known, mails)

    async def _fail(self, number: int, known: dict[str, Known], mails: Sequence[Waiting]) -> None:
        self.counters.too_big += len(mails)
        now, rules = datetime.now(UTC), self.rules
        rows = [Taken(one.uid, one.size, one.stamp, "", None, Filing.FAILED) for one in mails]
        await self._ledger.write(lambda c: mailboxes.record(c, number, rows, now))
        # Where nothing can be moved they lie there still at the next look, and a person was told.
        known.update({one.uid: Known(one.size, one.stamp, Filing.FAILED) for one in mails})
        await self._ledger.write(
            lambda c: mailboxes.note_too_big(c, rules.door, rules.failed, len(mails), rules.message, now)
        )

    async def _file(self, session: Session, number: int, known: dict[str, Known]) -> int:
        """File what is ours and known by now; return how many mails are still waited for."""
        pending = await self._ledger.read(lambda c: mailboxes.unfiled(c, number))
        ready: dict[Filing, list[str]] = {Filing.FILED: [], Filing.LEFT: []}
        for one in pending:
            to = mailbox.filing(one.stage, one.outcome, one.code, fragment=one.fragment, other=self.rules.other)
            if to is not None:
                ready[to].append(one.uid)
        if ready[Filing.FILED]:
            await session.file(ready[Filing.FILED], Filing.FILED)
        if ready[Filing.LEFT]:
            await session.release(ready[Filing.LEFT], self.rules.claim)
        now = datetime.now(UTC)
        for filing, uids in ready.items():
            if uids:
                await self._ledger.write(lambda c, u=uids, f=filing: mailboxes.file(c, number, u, f, now))  # type: ignore[misc]
                for uid in uids:
                    if (before := known.get(uid)) is not None:
                        known[uid] = Known(before.size, before.stamp, filing)
        return len(pending) - sum(map(len, ready.values()))

    async def _wait(self, session: Session, number: int, known: dict[str, Known]) -> None:
        for _ in range(TICKS):
            if not await self._file(session, number, known):
                break
            await asyncio.sleep(TICK)
        await session.wait(self.rules.poll)

    # How it is

    async def _well(self) -> None:
        self._failures = 0
        await self._note(State.OK, "")

    async def _trouble(self, state: State, text: str) -> None:
        self._failures += 1
        log.warning("mailbox-trouble", door=self.rules.door, state=str(state), attempt=self._failures)
        try:
            await self._note(state, text)
        except GatewayError:
            log.error("look_failed", door=self.rules.door)  # noqa: TRY400

    async def _note(self, state: State, text: str) -> None:
        now = datetime.now(UTC)
        if (state is State.OK) != (self.state is State.OK):
            self.since = now.timestamp()
        self.state = state
        if state is State.OK:
            self.looked_at = now.timestamp()
        await self._ledger.write(lambda c: mailboxes.note(c, self.rules.door, state, text, now))


def _state(error: GatewayError) -> State:
    match error:
        case MailboxError():
            return State(error.state)
        case LowDiskError():
            return State.NO_ROOM
        case _:
            return State.CONFUSED
