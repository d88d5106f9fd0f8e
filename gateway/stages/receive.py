"""RECEIVE: takes custody of a message, reads it, and decides where its instances go.

Custody is taken here: the bytes are synced and the row is committed before anybody says yes (R1, SMTP-1). Reading is
later work, in a process of its own; the original is kept untouched, so that everything can be read again (R9).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, cast

import structlog
from sqlalchemy import Connection

from gateway.config import Configuration, Limits
from gateway.core import dsn, header, partial, reader, routing, unsealing
from gateway.core.cms.failure import Failure
from gateway.core.cms.revocation import Source as CrlSource
from gateway.core.cms.verdict import Accept
from gateway.core.cms.verdict import Verdict as Protection
from gateway.core.coercion import Coercion, Rule
from gateway.core.findings import finding
from gateway.core.reader import Rules
from gateway.core.unsealing import Guard, Keyring, Unsealed, der
from gateway.errors import GatewayError, RefusedError, WorkerError
from gateway.ledger import fragments, messages, submissions
from gateway.ledger.drafts import Draft
from gateway.ledger.fragments import Caps, Piece, Source, Standing
from gateway.ledger.ledger import Ledger
from gateway.ledger.spool import Spool
from gateway.model import (
    Digest,
    Direction,
    Envelope,
    Finding,
    Fragment,
    Header,
    Instance,
    Outcome,
    Reading,
    Severity,
    Span,
    Stage,
)

log = structlog.get_logger(__name__)

POISON: Final = 3
"""Crashes with the same message after which it is held: a poisonous mail must not stop the gateway for ever."""

STRANGE: Final = 3
"""Failures nobody foresaw after which a message is held; before that they are taken for temporary."""

ASK_AGAIN: Final = timedelta(minutes=15)
"""Until the next look at a message whose signer may be revoked, under ``revocation = "hard"``."""

PATIENCE: Final = timedelta(hours=24)
"""How long such a message waits for a CRL before it is held."""

UNPROVEN: Final = "sender-unproven"
"""The code of a message from a mailbox that bears a partner's From, and nothing that its partner is bound to."""

RULES_DIFFER: Final = "rules-differ"
"""The code of a message whose routes would change its data sets in different ways."""

POLITE: Final = 1.0
"""Seconds that reading steps back at most while messages are being taken in: their senders wait for an answer."""

CALM: Final = 0.05
"""Seconds without a message being taken in after which the burst is over."""

MOST_JOINS: Final = 3
"""How often what was joined may be a fragment itself (PRT-6)."""

NEXT_TRY: Final = timedelta(seconds=30)

OURS: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ESTALE}
)
"""What the operating system says when this machine has a trouble that a message cannot bring about."""

RunWorker = Callable[[Span, Rules, Path], Awaitable[Reading]]
"""Runs the File-set Reader somewhere it can do no harm."""

RunUnsealing = Callable[[Span, Rules, Guard, Path], Awaitable[Unsealed]]
"""Opens, judges and reads a message, likewise."""


FetchCrls = Callable[[Sequence[CrlSource]], Awaitable[None]]
"""Asks for the CRLs that would tell what is unknown of a signer."""


async def fetch_none(_: Sequence[CrlSource]) -> None:
    """Ask nobody."""


async def unseal_here(message: Span, rules: Rules, guard: Guard, out: Path) -> Unsealed:
    """Open, judge and read a message in a thread of this process."""
    return await asyncio.to_thread(unsealing.read_protected, message, rules, guard, out)


def book(configuration: Configuration) -> routing.Book:
    """Write the route book of a configuration: its partners, its inbound routes, our own addresses."""
    partners = tuple(
        routing.Partner(name, one.address, one.accept, one.peers, one.smtp_user, one.phone)
        for name, one in configuration.partner.items()
    )
    routes = tuple(
        routing.Route(
            one.name,
            one.from_,
            one.to,
            one.mailbox,
            one.store,
            one.urgent,
            one.late,
            one.patient_mismatch,
            Rule(one.issuer, one.prefix, one.accession == "clear"),
            one.bare_dicom,
            one.uuencode,
        )
        for one in configuration.route
        if one.store
    )
    own = [configuration.gateway.postmaster, f"postmaster@{configuration.gateway.name}"]
    if configuration.relay is not None:
        own.append(configuration.relay.sender)
    return routing.Book(partners, routes, tuple(own))


def rules(
    limits: Limits, decision: routing.Decision | None = None, *, system: str = "", moment: datetime | None = None
) -> Rules:
    """What the reader may do and must change, from the limits and the routes that a message takes.

    Routes that differ in a permission give it only together: what one of them would not take is held.

    Args:
        limits: Of the configuration.
        decision: Which routes; None: none.
        system: Our name, which goes on record with what is changed.
        moment: When, likewise. Without it nothing is changed.
    """
    routes = decision.routes if decision else ()
    coercion = None
    if decision and moment and routes and routes[0].coerce and not decision.is_contradictory:
        coercion = Coercion(routes[0].coerce, moment, system, decision.partner.name if decision.partner else "")
    mismatch: Literal["hold", "urgent", "accept"] = "accept"
    if not routes or any(route.patient_mismatch == "hold" for route in routes):
        mismatch = "urgent" if decision and decision.urgent else "hold"
    return Rules(
        parts=limits.parts,
        depth=limits.depth,
        header=limits.header,
        instance=limits.instance,
        unpacked=limits.unpacked,
        ratio=limits.ratio,
        bare_dicom=bool(routes) and all(route.bare_dicom for route in routes),
        uuencode=bool(routes) and all(route.uuencode for route in routes),
        patient_mismatch=mismatch,
        coercion=coercion,
    )


def demanded(decision: routing.Decision) -> Accept:
    """Name the protection that a message must have: its partner's, where a route takes it."""
    return cast("Accept", decision.partner.accept) if decision.routes and decision.partner is not None else "any"


def guard(keyring: Keyring, settings: Configuration, decision: routing.Decision, now: datetime, folder: Path) -> Guard:
    """Say what a message is opened and judged with: its partner's certificates, and the address of its From."""
    name = decision.partner.name if decision.partner else ""
    pinned = None
    if name in settings.partner and settings.partner[name].pin:
        found = keyring.certificate(name, now)
        # A certificate that cannot be read must not undo the pin: then nobody's counts.
        pinned = der(found) if found is not None else b""
    return Guard(
        keyring.store,
        demanded(decision),
        decision.sender or "",
        tuple(map(der, keyring.partners.get(name, ()))),
        pinned,
        now,
        settings.limits.message,
        folder,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from a reading: the code for which the whole message, or what is left of it, needs a person.

    Attributes:
        refused: Nobody waits for it.
        held: Nothing of it goes on.
        problem: Its instances go on, but a part of it could not be read.
    """

    refused: str | None = None
    held: str | None = None
    problem: str | None = None


def judge(reading: Reading, decision: routing.Decision) -> Verdict:
    """Decide about a message that was read: a report is no study; a partner's mail without DICOM needs a person.

    A mail is taken for the answer of a machine by a guess, which must not cost the images that could not be read in it.

    What the reader could not read, and no instance stands for, keeps the message held beside its good instances: they
    go on, and nothing is dropped (AMB-40).
    """
    if reading.instances and decision.routes:
        return Verdict(held=RULES_DIFFER) if decision.is_contradictory else Verdict(problem=problem(reading))
    named = decision.partner is not None or decision.unproven is not None
    if reading.instances and named:
        # From who cannot show that it is he, or sent to an address of ours for reports: a person decides.
        return Verdict(held=UNPROVEN if decision.unproven is not None else "no-route")
    if reading.kind == "partial" and (decision.routes or named):
        return Verdict(held="invalid-fragment")
    if reading.kind == "dicom" and (decision.routes or decision.unproven is not None or decision.is_stray):
        return Verdict(held=problem(reading) or "no-dicom")
    # Of what looks like an answer of a machine too nobody knows what is in an archive that cannot be opened.
    is_report = reading.kind == "report" and problem(reading) is None
    if is_report or not decision.routes or decision.partner is None:
        return Verdict(refused="not-dicom")
    return Verdict(held="no-dicom")


def problem(reading: Reading) -> str | None:
    """Name the first error about something that is no instance: a part that nobody can read."""
    parts = {one.part for one in reading.instances}
    errors = (one for one in reading.findings if one.severity is Severity.ERROR)
    return next((one.code for one in errors if one.where not in parts), None)


def without_repetitions(reading: Reading) -> Reading:
    """Leave out an instance that the same message holds twice, as the reader remarked: it is stored once (AMB-23).

    What is held counts for nobody: a copy whose File Meta Information is wrong must not keep back one that is right.
    """
    distinct: dict[tuple[str, str, str], Instance] = {}
    for one in reading.instances:
        identity = (one.sop_instance, one.transfer_syntax, one.data_set_sha256)
        if distinct.setdefault(identity, one).held is not None and one.held is None:
            distinct[identity] = one
    return replace(reading, instances=tuple(distinct.values()))


@dataclass(frozen=True, slots=True)
class _Head:
    """What the header of a message says: for whom it is, its size, and which fragment it is."""

    fields: Header
    size: int
    fragment: Fragment | None
    is_protected: bool


def _head(message: Span, limit: int) -> _Head:
    with message.path.open("rb") as file:
        file.seek(message.start)
        block = file.read(min(limit, message.size))
    size = header.BLOCK.match(block).end()  # type: ignore[union-attr]  # it matches the empty string at least
    protected = unsealing.is_protected(block[:size])
    return _Head(header.parse(block), size, reader.fragment(message, limit), protected)


def _unwelcome(decision: routing.Decision) -> tuple[str, str] | None:
    """Say the code and the reason why nothing of a partner's mail in a mailbox goes on; None when it may."""
    if decision.unproven is not None:
        return (
            UNPROVEN,
            f"its From is of {decision.unproven}, who is bound to peers or a user: a mailbox proves neither",
        )
    if decision.is_stray:
        return "no-route", "no route takes mail of this partner from this mailbox"
    return None


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a life that was cut off
    folder.mkdir(0o700, parents=True)


def _remark(reading: Reading, protection: Protection) -> Reading:
    """Say what a person or the policy lets pass: a certificate that has run out, or may be revoked."""
    remarks: tuple[Finding, ...] = ()
    if protection.revocation == "unknown":
        remarks += (finding("signer-may-be-revoked"),)
    if protection.overdue:
        remarks += (finding("signer-certificate-overdue"),)
    return replace(reading, findings=(*remarks, *reading.findings)) if remarks else reading


class Receive:
    """The stage, behind every door.

    Args:
        configuration: In force now; replaced by ``reload``.
        ledger: The tables.
        spool: The bytes.
        read: Runs the File-set Reader.
        unseal: Opens, judges and reads what may be protected.
        keyring: Our keys and whom we trust; replaced when they change.
        fetch: Asks for CRLs, bounded in time; when one comes, the keyring is replaced.
        clock: Tells the time that fragments are waited for; replaced in tests.
        search_key: What pseudonyms are made with; empty: none are made.
    """

    def __init__(
        self,
        configuration: Configuration,
        ledger: Ledger,
        spool: Spool,
        read: RunWorker,
        clock: Callable[[], datetime] | None = None,
        *,
        unseal: RunUnsealing = unseal_here,
        keyring: Keyring | None = None,
        fetch: FetchCrls | None = None,
        search_key: bytes = b"",
    ) -> None:
        self.ledger = ledger
        self._search_key = search_key
        self.spool = spool
        self.keyring = keyring or Keyring()
        self._read = read
        self._unseal = unseal
        self._fetch = fetch or fetch_none
        self._clock = clock or (lambda: datetime.now(UTC))
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._calm: asyncio.TimerHandle | None = None
        self.reload(configuration)

    def reload(self, configuration: Configuration) -> None:
        """Use another configuration for what comes from now on."""
        self.configuration = configuration
        self.book = book(configuration)

    # What a door needs

    def admits(self, recipient: str) -> bool:
        """Whether mail for this address is taken (SMTP-10)."""
        return routing.admits(self.book, recipient)

    def demand_room(self, size: int) -> None:
        """Raise LowDiskError when a message of this size has no room (R5). Its instances need room too."""
        self.spool.demand(self.floor + 2 * size)

    @property
    def floor(self) -> int:
        """Free bytes below which nothing new is taken in."""
        return self.configuration.limits.free_space_floor(self.spool.capacity)

    def draft(self) -> Draft:
        """Begin the file that a message is written to."""
        return self.spool.draft()

    async def accept(self, envelope: Envelope, draft: Draft, digest: Digest) -> str:
        """Take custody of a message and return its queue id.

        Raises:
            RefusedError: Its sender is unknown, or it loops; nothing was kept.
            LowDiskError: There is no room; nothing was kept.
            OSError: The disk did not take it; nothing was kept.
            LedgerError: The ledger did not take it; the peer must try again.
        """
        self._bustle()
        try:
            return await self._accept(envelope, draft, digest)
        finally:
            self._bustle()

    async def _accept(self, envelope: Envelope, draft: Draft, digest: Digest) -> str:
        now = datetime.now(UTC)
        try:
            fields = header.parse(digest.header)
            decision = self._welcome(envelope, fields)
            self.demand_room(0)
        except BaseException:
            draft.discard()
            raise
        key = messages.new_id(Direction.IN, now)
        blob = await self.spool.commit(draft, ".eml")
        arrival = messages.Arrival(
            key,
            blob,
            digest.size,
            digest.sha256,
            digest.body_sha256,
            envelope,
            fields,
            decision,
            now,
            time.monotonic() - draft.began,
            now - self.configuration.limits.remember,
        )
        first = await self.ledger.write_together(messages.accept, arrival)
        log.info("accepted", id=key, size=digest.size, door=envelope.door, duplicate_of=first)
        return key

    def _welcome(self, envelope: Envelope, fields: Header) -> routing.Decision:
        """Decide what comes of a message. Only a peer can be refused: what lies in a mailbox ends as an item."""
        try:
            return routing.decide(self.book, envelope, fields, self.configuration.gateway.name)
        except RefusedError:
            if not routing.is_from_mailbox(envelope):
                raise
            return routing.Decision(None, None, ())

    # What the carrier calls

    async def look(self, key: str) -> datetime | None:
        """Do what a message in RECEIVE wants; return when to look again.

        Whatever goes wrong for an unknown reason is tried again, three times, and then held for a person.
        """
        row = await self.ledger.read(lambda c: messages.get(c, key))
        if row is None or row.outcome is not Outcome.WAITING or row.stage is not Stage.RECEIVE or row.duplicate_of:
            return None
        if row.crashes >= POISON and not await self._waits_for_others(key):
            await self._hold(key, "poison", f"the gateway stopped {row.crashes} times while reading it")
            return None
        await self._step_back()
        try:
            return await self._receive(row)
        except Exception as error:  # noqa: BLE001  nobody foresaw it: it counts, and the third time a person is told
            return await self._failed(row, error)

    async def _waits_for_others(self, key: str) -> bool:
        """Whether a message is a fragment whose set is not complete: nothing of it is opened, so it is no poison."""
        how = await self.ledger.read(lambda c: fragments.standing(c, key))
        return how is not None and not how.complete

    def _bustle(self) -> None:
        self._quiet.clear()
        if self._calm is not None:
            self._calm.cancel()
        self._calm = asyncio.get_running_loop().call_later(CALM, self._quiet.set)

    async def _step_back(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLITE):
                await self._quiet.wait()

    async def _receive(self, row: messages.Row) -> datetime | None:
        message = Span(self.spool.path(row.blob), 0, row.size)
        return await self._open(row, message, row.envelope, 0)

    async def _open(self, row: messages.Row, message: Span, envelope: Envelope, joins: int) -> datetime | None:
        """Take a message for what it is: a fragment, which may make another one whole, or what is read.

        Args:
            row: The item it belongs to.
            message: Where it lies.
            envelope: How it came, and to whom.
            joins: How often fragments were joined to get it.
        """
        head = await asyncio.to_thread(_head, message, self.configuration.limits.header)
        try:
            decision = routing.decide(self.book, envelope, head.fields, self.configuration.gateway.name)
        except RefusedError:
            if routing.is_from_mailbox(envelope) and await self._refuse(row.id):
                return None
            # It was welcome when it came; the configuration has changed since.
            await self._hold(row.id, "no-route", "no route takes it any more")
            return None
        if (head.is_protected or head.fragment is not None) and (why := _unwelcome(decision)) is not None:
            await self._hold(row.id, *why)
            return None
        # What is sealed is so as a whole: nobody can ask its fragments for protection (PRT-11).
        if head.fragment is not None and (decision.routes or decision.partner is not None):
            sender = decision.sender or envelope.sender
            size = message.size - head.size
            piece = Piece(row.id, head.fragment, sender, envelope.recipients, row.body_sha256, size)
            return await self._gather(row, piece, joins)
        # Without a route it is mail for ourselves, a report at best: nothing of it goes anywhere.
        if decision.routes and (head.is_protected or demanded(decision) != "any"):
            return await self._unseal_whole(row, message, decision)
        await self._read_whole(row, message, decision)
        return None

    async def _read_whole(self, row: messages.Row, message: Span, decision: routing.Decision) -> None:
        began = time.monotonic()
        draft = self.spool.draft()
        try:
            reading = without_repetitions(await self._read(message, self._rules(decision), draft.path))
        except BaseException:
            draft.discard()
            raise
        await self._decide(row, decision, reading, draft, began)

    # Protection

    async def _unseal_whole(self, row: messages.Row, message: Span, decision: routing.Decision) -> datetime | None:
        """Open, judge and read a message; hold it when it has not the protection it must have.

        Its layers lie in clear in a folder of their own, which goes with this call, whatever happens to the worker.
        """
        began, now, keyring = time.monotonic(), self._clock(), self.keyring
        found, draft = await self._open_sealed(row, message, decision, now)
        if found.verdict.gaps:
            try:
                await self._fetch(found.verdict.gaps)
            except BaseException:
                draft.discard()
                raise
            if self.keyring is not keyring:  # a CRL came: it may tell what was unknown a moment ago
                draft.discard()
                found, draft = await self._open_sealed(row, message, decision, now)
        if found.held is None:
            reading = _remark(without_repetitions(found.reading), found.verdict)
            await self._decide(row, decision, reading, draft, began, found.verdict)
            return None
        draft.discard()
        if found.held is Failure.REVOCATION_UNKNOWN and now < row.received_at + PATIENCE:
            return now + ASK_AGAIN
        why = ", ".join(dict.fromkeys((found.held, *found.verdict.others)))
        await self._hold(row.id, found.held, f"its protection does not hold: {why}", found.verdict)
        return None

    async def _open_sealed(
        self, row: messages.Row, message: Span, decision: routing.Decision, now: datetime
    ) -> tuple[Unsealed, Draft]:
        folder = self.configuration.gateway.data / "scratch" / "receive" / row.id
        draft = self.spool.draft()
        try:
            await asyncio.to_thread(_make_anew, folder)
            wanted = guard(self.keyring, self.configuration, decision, now, folder)
            return await self._unseal(message, self._rules(decision), wanted, draft.path), draft
        except BaseException:
            draft.discard()
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # Fragments

    async def _gather(self, row: messages.Row, piece: Piece, joins: int) -> datetime | None:
        """Put a fragment into its set; when that is complete, open the message it makes, else wait for the rest."""
        limits, now = self.configuration.limits, self._clock()
        caps = Caps(limits.parts, limits.message)

        def change(connection: Connection) -> Standing | None:
            known = fragments.standing(connection, row.id)
            if known is None:
                return fragments.take(connection, piece, caps, now)
            if joins == 0:
                return known
            body = fragments.digest(connection, known.id)
            return fragments.take(connection, replace(piece, body_sha256=body, joined=known.id), caps, now)

        if joins > MOST_JOINS:
            await self._hold(row.id, "too-deep", "fragments lie in fragments deeper than is allowed")
            return None
        how = await self.ledger.write(change)
        if how is None:
            return None  # another message stands for the whole, or a person must look
        if how.complete:
            return await self._join(row, how, joins)
        patience = limits.fragment_age
        return await self.ledger.write(lambda c: fragments.wait(c, row.id, patience, now))

    async def _join(self, row: messages.Row, how: Standing, joins: int) -> datetime | None:
        """Join a set that is complete, and open the whole.

        The whole is a draft: it can be made again from its fragments, which are the originals, and is not kept. It is
        read exactly once all the same, since the outcome is written by compare-and-set (R26).
        """
        sources = await self.ledger.read(lambda c: fragments.sources(c, how.id))
        if not all(self.spool.has(blob) for one in sources for blob in one.blobs):
            await self._hold(row.id, "bytes-missing", "the bytes of a fragment are gone from the spool")
            return None
        drafts: list[Draft] = []
        try:
            try:
                whole = await asyncio.to_thread(self._assemble, sources, drafts)
            except GatewayError as error:
                await self._hold(row.id, "header-too-long", error.text)
                return None
            log.info("joined", id=row.id, count=len(sources), size=whole.size)
            return await self._open(row, whole, replace(row.envelope, recipients=how.recipients), joins + 1)
        finally:
            for draft in drafts:
                draft.discard()

    def _assemble(self, sources: Sequence[Source], drafts: list[Draft]) -> Span:
        """Join fragments file to file, and before them those that are joined themselves. Blocks."""
        spans = [
            self._assemble(one.fragments, drafts) if one.fragments else Span(self.spool.path(one.blob), 0, one.size)
            for one in sources
        ]
        draft = self.spool.draft()
        drafts.append(draft)
        draft.path.touch(0o600)
        with draft.path.open("r+b") as out:
            return partial.join(spans, self.configuration.limits.header, out)

    # What follows from a reading

    def _rules(self, decision: routing.Decision) -> Rules:
        limits, name = self.configuration.limits, self.configuration.gateway.name
        made = rules(limits, decision, system=name, moment=self._clock())
        return replace(made, search_key=self._search_key)

    async def _decide(
        self,
        row: messages.Row,
        decision: routing.Decision,
        reading: Reading,
        draft: Draft,
        began: float,
        protection: Protection | None = None,
    ) -> None:
        verdict = judge(reading, decision)
        blob, destinations = None, decision.destinations
        told = await self._told(row) if reading.kind == "report" else None
        if reading.instances and destinations and not verdict.held:
            blob = await self.spool.commit(draft, ".dcm")
        else:
            draft.discard()
            destinations = ()
        seconds = time.monotonic() - began
        read = messages.Read(reading, blob, destinations, verdict.refused, verdict.held, verdict.problem, seconds)
        now = datetime.now(UTC)

        def change(connection: Connection) -> bool:
            if protection is not None:
                messages.note_protection(connection, row.id, unsealing.document(protection))
            about = submissions.report(connection, told, row.id, now) if told else None
            return messages.decide(connection, row.id, replace(read, matched=about) if about else read, now)

        taken = await self.ledger.write(change)
        if not taken and blob is not None:
            self.spool.remove(blob)  # a person was quicker
        log.info("read", id=row.id, kind=reading.kind, instances=len(reading.instances), seconds=round(seconds, 3))

    async def _told(self, row: messages.Row) -> dsn.Told | None:
        """What a report says of a mail; what comes back with it is ours, and nothing new (R25)."""
        return await asyncio.to_thread(dsn.read, Span(self.spool.path(row.blob), 0, row.size))

    async def _failed(self, row: messages.Row, error: Exception) -> datetime | None:
        now = datetime.now(UTC)
        name = type(error).__name__
        text = error.text if isinstance(error, WorkerError) else f"reading failed: {name}"
        log.warning("receive_failed", id=row.id, exception=name)
        if isinstance(error, FileNotFoundError) and not self.spool.has(row.blob):
            await self._hold(row.id, "bytes-missing", "its bytes are gone from the spool")
            return None
        if isinstance(error, OSError) and error.errno in OURS:
            # The disk is full or ill: that is no fault of the message, so it does not count against it (R5).
            return now + NEXT_TRY
        if await self.ledger.write(lambda c: messages.count_try(c, row.id, text, now)) >= STRANGE:
            await self._hold(row.id, "unreadable", f"{text}, {STRANGE} times")
            return None
        return now + NEXT_TRY

    async def _refuse(self, key: str) -> bool:
        """Refuse a mail from a mailbox that nobody waits for and never did; tell whether it was one."""
        now = datetime.now(UTC)
        text = "no partner and no route for its sender"
        return await self.ledger.write(lambda c: messages.refuse_stranger(c, key, "not-dicom", text, now))

    async def _hold(self, key: str, code: str, text: str, protection: Protection | None = None) -> None:
        now = datetime.now(UTC)

        def change(connection: Connection) -> None:
            if protection is not None:
                messages.note_protection(connection, key, unsealing.document(protection))
            messages.hold(connection, key, code, text, now)

        await self.ledger.write(change)
        log.warning("held", id=key, code=code)
