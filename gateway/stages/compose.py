"""COMPOSE: takes custody of what modalities send, collects it by study, and writes the mails that carry it.

Custody is taken here: 0x0000 is said only after the file is synced and its rows are committed (R20). A collection that
is complete becomes file-sets that fit their partner's mail; what comes later begins the next generation, and no mail
is ever changed. Composing may be repeated at any moment: nothing counts before the rows of its mails are committed,
and the Message-IDs are in them (R26).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import io
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, Final, Literal, Protocol

import structlog
from sqlalchemy import Connection

from gateway.config import Configuration, Partner, Route
from gateway.core import creator, directory, grouping, header, part10, pseudonym
from gateway.core import letter as letters
from gateway.core.cms import keyring as keyrings
from gateway.core.cms import sealed, trust
from gateway.core.cms.failure import Failure, ProtectionError
from gateway.core.cms.sealed import Protection
from gateway.core.creator import Capacity, Piece, Plan
from gateway.core.dataset import Stored
from gateway.core.directory import FileSet, Member
from gateway.core.grouping import Rules
from gateway.core.letter import Letter
from gateway.core.unsealing import Keyring
from gateway.errors import GatewayError, LedgerError, RelayError, UsageError
from gateway.ledger import collections, submissions
from gateway.ledger.collections import Arrival, Course, Kept, Learned, Place, Row
from gateway.ledger.custody import Caller, Received
from gateway.ledger.drafts import Draft, Segment
from gateway.ledger.ledger import Ledger
from gateway.ledger.spool import Spool
from gateway.ledger.submissions import Mail
from gateway.model import Instance, Span

log = structlog.get_logger(__name__)

SUCCESS: Final = 0x0000
NOT_AUTHORIZED: Final = 0x0124
"""What a modality is told (PS3.7 Annex C)."""

BY_HAND: Final = "(by hand)"
"""Stands for the route of what a person sends."""

HAND: Final = timedelta(seconds=5)
"""How long a collection of files waits for the next one."""

BLOCK: Final = 1 << 20
"""Bytes of a file that are copied at once."""

HASHERS: Final = 2
"""Files of a collection that are hashed at the same time."""

MOST_COURSES: Final = 1000
"""Pairs of AE titles whose course is remembered."""

LAST_NAMES: Final = 8
"""Patients whose pseudonyms are at hand: of the studies that are coming now, and of no others."""

COMPARISONS: Final = 5
"""Times that an instance is held against those of its UID before it while new ones of them come."""

GONE: Final = "gone"
"""Stands for the digest of a data set whose bytes nobody has any more."""

TITLE: Final = 16
"""Characters that the ledger keeps of who sent, as of an AE title."""

LATE: Final = timedelta(minutes=30)

PATIENCE: Final = 120.0
"""Seconds that the disk and the ledger have to take a file that a person sends."""

POISON: Final = 3
"""Crashes with the same collection after which it is held."""

STRANGE: Final = 3
"""Failures nobody foresaw after which a collection is held; before that they are taken for temporary."""

NEXT_TRY: Final = timedelta(seconds=30)

GREETING: Final = 10.0
"""Seconds that COMPOSE waits for the relay to say how big a mail may be."""

LOOK_AGAIN: Final = timedelta(minutes=1)
"""Until the next look at a collection whose partner's certificate may be revoked, under ``revocation = "hard"``."""

LONGEST_UNKNOWN: Final = timedelta(hours=24)
"""How long such a collection waits for a CRL before it is held."""

ASK_AGAIN: Final = 300.0
"""Seconds in which a relay that did not say so is not asked again: no collection waits for one that is away."""

OURS: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ESTALE}
)
"""What the operating system says when this machine has a trouble that no image can bring about."""


class Announcing(Protocol):
    """A relay that says how big a mail may be."""

    @property
    def announced(self) -> int | None:
        """Bytes of the longest mail it takes, as it last said."""

    async def greet(self) -> None:
        """Ask it.

        Raises:
            RelayError: It cannot be asked now.
        """


@dataclass(frozen=True, slots=True)
class Order:
    """What one composition is made of, for a thread.

    Attributes:
        kept: The instances.
        root: The folder of the spool.
        letter: What all its mails have in common.
        capacity: What one mail may have.
        protection: How each is protected; None: in clear.
    """

    kept: tuple[Kept, ...]
    root: Path
    letter: Letter
    capacity: Capacity
    protection: Protection | None = None


class Compose:
    """The stage, behind the DICOM door and the command line.

    Args:
        configuration: In force now; replaced by ``reload``.
        ledger: The tables.
        spool: The bytes.
        relay: Says how big a mail may be; None without a relay.
        keyring: Our keys and the certificates of partners; replaced when they change.
        search_key: What pseudonyms are made with; empty: none are made.
    """

    def __init__(
        self,
        configuration: Configuration,
        ledger: Ledger,
        spool: Spool,
        relay: Announcing | None = None,
        *,
        keyring: Keyring | None = None,
        search_key: bytes = b"",
    ) -> None:
        self.ledger = ledger
        self.spool = spool
        self.keyring = keyring or Keyring()
        self._relay = relay
        self._names = lru_cache(LAST_NAMES)(partial(pseudonym.of_instance, search_key))
        self._asking = asyncio.Lock()
        self._ask_after = 0.0
        self.reload(configuration)

    def reload(self, configuration: Configuration) -> None:
        """Use another configuration for what comes from now on."""
        self.configuration = configuration
        self.routes = tuple(route for route in configuration.route if route.mail)
        self._courses = lru_cache(MOST_COURSES)(self._choose)  # callers may call themselves what they like

    # What a door needs

    def titles(self) -> frozenset[str]:
        """The AE titles that routes name, beside the door's own."""
        return frozenset(route.called for route in self.routes if route.called)

    def welcomes(self, caller: Caller) -> bool:
        """Whether images of this caller have somewhere to go."""
        return self.course(caller.called, caller.calling) is not None

    def course(self, called: str, calling: str) -> Course | None:
        """Where instances go that one AE sends to another: the first route that matches; None for nowhere."""
        return self._courses(called, calling)

    def _choose(self, called: str, calling: str) -> Course | None:
        for route in self.routes:
            if grouping.takes(called, calling, route.called, route.calling):
                return self._course(route, route.mail)
        return None

    def course_to(self, partner: str) -> Course:
        """Where instances go that a person sends to one partner: by no route, and waiting for nothing more.

        Raises:
            UsageError: There is no such partner.
        """
        if partner not in self.configuration.partner:
            known = ", ".join(self.configuration.partner) or "none"
            raise UsageError(f"there is no partner {partner}", hint=f"configured: {known}")
        address = self.configuration.partner[partner].address
        return Course(BY_HAND, ((partner, address),), self._rules_of(BY_HAND), urgent=True, late=LATE)

    def demand_room(self, size: int) -> None:
        """Raise LowDiskError when an instance of this size has no room (R5). The mail that carries it needs more."""
        self.spool.demand(self.floor + 3 * size)

    @property
    def floor(self) -> int:
        """Free bytes below which nothing new is taken in."""
        return self.configuration.limits.free_space_floor(self.spool.capacity)

    def segment(self) -> Segment:
        """Begin a file that the instances of an association are appended to."""
        return self.spool.segment()

    def accept(self, received: Received, patience: float) -> int:
        """Take custody of an instance, and return the status that its sender is told. The draft is ours now.

        For a thread, as all that waits for a disk.

        Args:
            received: The instance.
            patience: Seconds that the ledger may take.

        Raises:
            TimeoutError: It took longer; it may be ours yet, or not.
            LowDiskError: There is no room; nothing was kept.
            OSError: The disk did not take it; nothing was kept.
            LedgerError: The ledger did not take it; what is on the disk without a row was never ours.
        """
        course = self.course(received.caller.called, received.caller.calling)
        if course is None:  # its route went while the association was open
            received.draft.discard()
            return NOT_AUTHORIZED
        self.take(received, course, "storescp", patience)
        return SUCCESS

    def take(self, received: Received, course: Course, door: str, patience: float) -> None:
        """Make an instance durable and join it to its collections. The rows are made while the disk works.

        Raises: as ``accept``.
        """
        try:
            self.demand_room(0)
        except BaseException:
            received.draft.discard()
            raise
        file = self.spool.prepare(received.draft, ".dcm")
        caller, now = received.caller, datetime.now(UTC)
        peers = (caller.peer, caller.calling, caller.called)
        arrival = Arrival(self._instance(received), file.key, course, door, *peers, now)
        ready = partial(self.spool.settle, file)
        if received.draft.is_large:
            ready()  # first: all who write to the ledger would wait for it
        needed = self.ledger.commit(collections.accept, arrival, ready, patience)
        if needed is None:
            needed = self._compare(received, arrival, ready, patience)
        if not needed:
            received.draft.discard()  # the same instance once more: one is enough

    def _compare(self, received: Received, arrival: Arrival, ready: Callable[[], None], patience: float) -> bool:
        """Take in an instance whose UID is known: find out what it and those before it hold (R11)."""
        if not received.data_set_sha256:
            digest = part10.hashed(received.draft.read, received.data_set, received.size)
            arrival = replace(arrival, instance=replace(arrival.instance, data_set_sha256=digest.hexdigest()))
        for _ in range(COMPARISONS):
            places = self.ledger.commit(collections.unknown, arrival.instance.sop_instance, ready, patience)
            # Not left to the next transaction: what composing has found out of thousands may stand before it.
            arrival = replace(arrival, learned=tuple(map(self._look_at, places)))
            needed = self.ledger.commit(collections.accept, arrival, ready, patience)
            if needed is not None:
                return needed
        raise LedgerError("the same instance comes again and again")

    def _look_at(self, place: Place) -> Learned:
        try:
            with self.spool.path(place.blob).open("rb", buffering=0) as file:
                digest = part10.hashed(_reading(file, place.start), place.data_set, place.size).hexdigest()
                return Learned(place.blob, place.start, data_set_sha256=digest)
        except (FileNotFoundError, EOFError):  # its bytes are gone: nobody can say that it was the same
            return Learned(place.blob, place.start, data_set_sha256=GONE)

    async def take_files(self, partner: str, paths: Sequence[Path], who: str) -> list[str | None]:
        """Take custody of files that a person sends to a partner; say for each why it was not taken, None when it was.

        Raises:
            UsageError: There is no such partner.
            LowDiskError: There is no room.
            LedgerError: The ledger did not take one.
        """
        course = self.course_to(partner)
        limits = self.configuration.limits
        reasons: list[str | None] = []
        for path in paths:
            draft = self.spool.draft()
            try:
                received = await asyncio.to_thread(_open, path, draft, limits.instance, limits.unpacked, who)
            except (OSError, GatewayError) as error:
                draft.discard()
                reasons.append(error.text if isinstance(error, GatewayError) else f"{error.strerror}")
                continue
            await asyncio.to_thread(self.take, received, course, "send", PATIENCE)
            reasons.append(None)
        return reasons

    def _instance(self, one: Received) -> Instance:
        file = Span(one.draft.path, one.draft.start, one.draft.start + one.size)
        uids = (one.sop_class, one.sop_instance, one.study, one.series, one.transfer_syntax)
        names = self._names(one.identity)
        return Instance(*uids, one.sha256, one.data_set_sha256, "", None, file, one.data_set, pseudonyms=names)

    def _course(self, route: Route, partners: Sequence[str]) -> Course:
        addresses = tuple((name, self.configuration.partner[name].address) for name in partners)
        return Course(route.name, addresses, _rules(route), route.urgent, route.late)

    # What the carrier calls

    async def look(self, key: str) -> datetime | None:
        """Do what a collection wants; return when to look again.

        Whatever goes wrong for an unknown reason is tried again, three times, and then held for a person.
        """
        row = await self.ledger.read(lambda c: collections.get(c, key))
        if row is None:
            return None
        try:
            return await self._look(row)
        except Exception as error:  # noqa: BLE001  nobody foresaw it: it counts, and the third time a person is told
            return await self._failed(row, error)

    async def _look(self, row: Row) -> datetime | None:
        if not row.completed:
            now = datetime.now(UTC)
            rules = self._rules_of(row.route)
            due = await self.ledger.write(lambda c: collections.complete_when_due(c, row.id, rules, now))
            if due is not None:
                return due
        if row.crashes >= POISON:
            await self._hold(row.id, "poison", f"the gateway stopped {row.crashes} times while composing it")
        elif (obstacle := self._obstacle(row.partner)) is not None:
            await self._hold(row.id, *obstacle)
        else:
            partner = self.configuration.partner[row.partner]
            try:
                protection = await asyncio.to_thread(protect, self.keyring, row.partner, partner, datetime.now(UTC))
            except UnprotectedError as error:  # R21: never in clear, and never with less than was asked for
                now = datetime.now(UTC)
                if error.code == Failure.REVOCATION_UNKNOWN and now < row.facts.last_at + LONGEST_UNKNOWN:
                    return now + LOOK_AGAIN
                await self._hold(row.id, error.code, error.text)
                return None
            await self._compose(row, partner, protection)
        return None

    def _rules_of(self, name: str) -> Rules:
        """The rules of a route; without the route there is nothing to wait for."""
        if name == BY_HAND:
            return Rules(HAND, LATE, 1 << 62)
        found = (_rules(route) for route in self.routes if route.name == name)
        return next(found, Rules(timedelta(), timedelta(), 0))

    def _obstacle(self, name: str) -> tuple[str, str] | None:
        """Say why nothing may be mailed to a partner: a code, and words for a person."""
        partner = self.configuration.partner.get(name)
        if partner is None:
            return PARTNER_REMOVED, f"there is no partner {name} any more"
        if self.configuration.relay is None:
            return NO_RELAY, "there is no relay to submit it to"
        if "*" in partner.address:
            return NO_ADDRESS, f"the address of {name} is a pattern: nobody can be mailed at it"
        return None

    async def _compose(self, row: Row, partner: Partner, protection: Protection | None) -> None:
        kept = await self.ledger.read(lambda c: collections.uncomposed(c, row.id))
        kept = await asyncio.to_thread(self._know_all, kept)
        capacity = await self._capacity(partner)
        if protection is not None:
            capacity = replace(capacity, sealed=partial(sealed.sealed_size, protection=protection))
        order = Order(tuple(kept), self.spool.root, await self._letter(row, partner), capacity, protection)
        plan = await asyncio.to_thread(_plan, order)
        writer = _Writer(self.spool, order, row.id, self.configuration.gateway.name, cut=partner.partial)
        try:
            await writer.write(plan)
        except BaseException:
            await asyncio.to_thread(self.spool.remove_all, writer.blobs)
            raise
        now = datetime.now(UTC)
        text = f"too big for one mail of {order.capacity.max_message} bytes"

        def change(connection: Connection) -> bool:
            if writer.too_big:
                collections.hold(connection, row.id, writer.too_big, "too-big", text, now)
            if not writer.mails:
                submissions.conclude(connection, row.id, now)
                return True
            return submissions.add(connection, row.id, writer.mails, writer.numbers, partner.address, now)

        if not await self.ledger.write(change):
            await asyncio.to_thread(self.spool.remove_all, writer.blobs)  # a person was quicker
            return
        log.info("composed", id=row.id, partner=row.partner, instances=len(kept), parts=len(writer.mails))

    def _know_all(self, kept: Sequence[Kept]) -> list[Kept]:
        with ThreadPoolExecutor(HASHERS, thread_name_prefix="hash") as pool:
            return list(pool.map(self._know, kept))

    def _know(self, one: Kept) -> Kept:
        """See to it that the hash of a file is known, which its mail says (R23), and that of its data set. Blocks.

        An instance is not hashed while its sender waits: nobody asks before, unless its UID comes again.

        Raises:
            OSError: It cannot be read.
            EOFError: It is shorter than it was.
        """
        if one.sha256:
            return one
        with self.spool.path(one.blob).open("rb", buffering=0) as file:
            read = _reading(file, one.start)
            whole, data_set = part10.hashed_twice(read, one.data_set, one.size)
        self.ledger.add(collections.learn, Learned(one.blob, one.start, whole, data_set))
        return replace(one, sha256=whole, data_set_sha256=data_set)

    async def _letter(self, row: Row, partner: Partner) -> Letter:
        configuration = self.configuration
        assert configuration.relay is not None
        letter = Letter(
            configuration.relay.sender,
            (partner.address,),
            message_id(row.id, configuration.gateway.name),
            datetime.now(UTC),
            gateway=configuration.gateway.name,
            phone=partner.phone or "",
            loop_token=configuration.gateway.name,
            collection=row.id,
            headers=partner.headers,
            format=partner.format,
            multipart=partner.multipart,
            protected=_HEADER_PROTECTION[partner.send],
        )
        if partner.text is None:
            return letter
        return replace(letter, text=await asyncio.to_thread(partner.text.read_text, "utf-8"))

    async def _capacity(self, partner: Partner) -> Capacity:
        """What one mail may have: the least of what partner and relay take, after everything (R22)."""
        relay = self.configuration.relay
        assert relay is not None
        limits = [limit for limit in (partner.max_message, relay.max_message, await self._announced()) if limit]
        return Capacity(min(limits), partner.max_parts)

    async def _announced(self) -> int | None:
        if self._relay is None:
            return None
        async with self._asking:
            if self._relay.announced is None and time.monotonic() >= self._ask_after:
                with contextlib.suppress(RelayError, TimeoutError):  # what it will not take is composed anew
                    async with asyncio.timeout(GREETING):
                        await self._relay.greet()
                self._ask_after = time.monotonic() + ASK_AGAIN
        return self._relay.announced

    async def _failed(self, row: Row, error: Exception) -> datetime | None:
        now = datetime.now(UTC)
        name = type(error).__name__
        log.warning("compose_failed", id=row.id, exception=name)
        if isinstance(error, FileNotFoundError):
            kept = await self.ledger.read(lambda c: collections.uncomposed(c, row.id))
            gone = [one.number for one in kept if not self.spool.has(one.blob)]
            if gone:
                change = collections.hold
                text = f"the bytes of {len(gone)} instances are gone from the spool"
                await self.ledger.write(lambda c: change(c, row.id, gone, "bytes-missing", text, now))
                return now
        if isinstance(error, OSError) and error.errno in OURS:
            return now + NEXT_TRY  # the disk is full or ill: that does not count against the images (R5)
        text = error.text if isinstance(error, GatewayError) else f"composing failed: {name}"
        if await self.ledger.write(lambda c: collections.count_try(c, row.id, text, now)) >= STRANGE:
            await self._hold(row.id, "not-composed", f"{text}, {STRANGE} times")
            return None
        return now + NEXT_TRY

    async def _hold(self, key: str, code: str, text: str) -> None:
        """Hold everything of a collection that lies in no mail yet."""
        now = datetime.now(UTC)

        def change(connection: Connection) -> None:
            numbers = [one.number for one in collections.uncomposed(connection, key)]
            collections.hold(connection, key, numbers, code, text, now)
            submissions.conclude(connection, key, now)

        await self.ledger.write(change)
        log.warning("held", id=key, code=code)


PARTNER_REMOVED: Final = "partner-removed"
NO_RELAY: Final = "no-relay"
NO_ADDRESS: Final = "no-address"
NO_IDENTITY: Final = "no-identity"
NO_CERTIFICATE: Final = "no-certificate"


_HEADER_PROTECTION: Final[Mapping[str, Literal["", "clear", "cipher"]]] = {
    "plain": "",
    "signed": "clear",
    "signed+encrypted": "cipher",
}


class UnprotectedError(GatewayError):
    """A mail cannot have the protection that its partner's ``send`` asks for.

    Attributes:
        code: Why.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def protect(keyring: Keyring, name: str, partner: Partner, now: datetime) -> Protection | None:
    """Say how mail to a partner is protected; None for one that gets it in clear.

    Raises:
        UnprotectedError: We cannot sign, or the partner's certificate is missing or may not be used now (R21).
    """
    if partner.send == "plain":
        return None
    signer = keyrings.signer(keyring.identities, now)
    if signer is None:
        raise UnprotectedError(NO_IDENTITY, "no certificate of ours can sign now")
    if keyrings.is_revoked(signer, keyring.trust, now):
        raise UnprotectedError(Failure.REVOKED, "our own certificate is revoked")
    if partner.send == "signed":
        return Protection(signer)
    certificate = keyring.certificate(name, now)
    if certificate is None:
        raise UnprotectedError(NO_CERTIFICATE, f"there is no certificate of {name} to encrypt to")
    try:
        trust.check(certificate, keyring.partners[name], keyring.trust, now, "encrypt", pinned=partner.pin)
    except ProtectionError as error:
        raise UnprotectedError(error.code, f"the certificate of {name} may not be used: {error.text}") from None
    own = keyrings.reader(keyring.identities, now)
    return Protection(signer, (certificate, *([own.certificate] if own else [])), partner.cipher == "cbc")


def message_id(key: str, host: str) -> str:
    """Make a Message-ID that is ours, nobody can guess, and is as long as any other of the same item."""
    return f"<{key}.{secrets.token_hex(8)}@{host}>"


def _rules(route: Route) -> Rules:
    return Rules(route.quiet, route.max_age, route.max_size)


def _reading(file: BinaryIO, start: int) -> Callable[[int, int], bytes]:
    """Read an instance that begins at an offset of a file."""
    return lambda at, size: os.pread(file.fileno(), size, start + at)


def _open(path: Path, draft: Draft, most: int, unpacked: int, who: str) -> Received:
    """Copy a file into a draft and find out what it is. Blocking.

    Raises:
        OSError: It cannot be read or written.
        GatewayError: It is nothing that could be mailed.
    """
    with path.open("rb") as file:
        first = file.read(BLOCK)
        if not part10.is_marked(first):
            raise GatewayError("no DICOM file")
        meta = part10.read_meta(first)
        whole, content = hashlib.sha256(first), hashlib.sha256(first[meta.data_set :])
        draft.write(first)
        while block := file.read(BLOCK):
            draft.write(block)
            whole.update(block)
            content.update(block)
            if draft.size > most:
                raise GatewayError("it is bigger than limits.instance")
        size = draft.size
        source = Stored(lambda at, n: os.pread(file.fileno(), n, at), first, size)
        judged = part10.judge(meta, source, size, unpacked)
    if judged.is_directory:
        raise GatewayError("a DICOMDIR: it is written anew for each mail")
    if judged.held:
        raise GatewayError(judged.held)
    uids = (judged.sop_class, judged.sop_instance, judged.study, judged.series, meta.transfer_syntax)
    person = Caller(who[:TITLE], BY_HAND, "")
    return Received(person, *uids, size, whole.hexdigest(), content.hexdigest(), meta.data_set, judged.identity, draft)


class _Writer:
    """Writes the mails of one composition, one after another, each durable before the next begins.

    Attributes:
        mails: What was written.
        numbers: The instances of each file-set.
        too_big: Instances that fit no mail alone.
        blobs: The files, to be removed when they turn out not to be wanted.
    """

    def __init__(self, spool: Spool, order: Order, key: str, host: str, *, cut: bool) -> None:
        self.mails: list[Mail] = []
        self.numbers: list[list[int]] = []
        self.too_big: list[int] = []
        self.blobs: list[str] = []
        self._spool = spool
        self._order = order
        self._key = key
        self._host = host
        self._cut = cut
        self._number = {(spool.path(one.blob), one.start): one.number for one in order.kept}

    async def write(self, plan: Plan) -> None:
        """Write the mails of a plan.

        Raises:
            OSError: A file cannot be read, or the disk does not take a mail.
            GatewayError: A mail cannot be written.
        """
        oversized = plan.oversized if self._cut else ()
        self.too_big = [number for one in plan.oversized for number in self._numbers(one)] if not self._cut else []
        total = len(plan.file_sets) + len(oversized)
        for part, file_set in enumerate((*plan.file_sets, *oversized), 1):
            letter = replace(self._order.letter, part=part, parts=total, message_id=message_id(self._key, self._host))
            self.numbers.append(self._numbers(file_set))
            if part <= len(plan.file_sets):
                await self._whole(file_set, letter)
            else:
                await self._pieces(file_set, letter)

    def _numbers(self, file_set: FileSet) -> list[int]:
        files = (entry.member.file for entry in file_set.entries)
        return [self._number[file.path, file.start] for file in files]

    async def _whole(self, file_set: FileSet, letter: Letter) -> None:
        draft = self._spool.draft()
        try:
            size = await asyncio.to_thread(self._write, file_set, letter, draft)
        except BaseException:
            draft.discard()
            raise
        await self._keep(draft, letter, letter.message_id, size)

    def _write(self, file_set: FileSet, letter: Letter, draft: Draft) -> int:
        """Write a message, protected where it must be; return its size. Blocks."""
        protection = self._order.protection
        if protection is None:
            return _write(draft.path, lambda out: letters.write(file_set, letter, out))
        entity, head = self._spool.draft(), io.BytesIO()
        try:
            size = _write(entity.path, lambda out: letters.write_entity(file_set, letter, out))
            letters.write_header(letter, head)
            span = Span(entity.path, 0, size)
            return _write(draft.path, lambda out: sealed.seal(head.getvalue(), span, protection, letter.date, out))
        finally:
            entity.discard()

    async def _pieces(self, file_set: FileSet, letter: Letter) -> None:
        """Write one instance that is too big for a mail as several message/partial: sealed first, then cut (PRT-11)."""
        whole = self._spool.draft()
        try:
            size = await asyncio.to_thread(self._write, file_set, letter, whole)
            limit, word = self._order.capacity.max_message, letter.message_id.strip("<>")
            span = Span(whole.path, 0, size)
            for piece in await asyncio.to_thread(creator.fragments, span, limit, word):
                await self._piece(piece, letter)
        finally:
            whole.discard()

    async def _piece(self, piece: Piece, letter: Letter) -> None:
        draft = self._spool.draft()
        try:
            size = await asyncio.to_thread(_write, draft.path, lambda out: creator.write_piece(piece, out))
        except BaseException:
            draft.discard()
            raise
        await self._keep(draft, letter, header.parse(piece.header).message_id or letter.message_id, size)

    async def _keep(self, draft: Draft, letter: Letter, own: str, size: int) -> None:
        blob = await self._spool.commit(draft, ".eml")
        self.blobs.append(blob)
        self.mails.append(Mail(len(self.numbers), letter.part, letter.parts, own, blob, size))


def _write(path: Path, write: Callable[[BinaryIO], object]) -> int:
    with path.open("xb") as out:
        write(out)
        return out.tell()


def _plan(order: Order) -> Plan:
    members = (_member(one, order.root) for one in order.kept)
    return creator.plan([directory.describe(one) for one in members], order.letter, order.capacity)


def _member(one: Kept, root: Path) -> Member:
    span = Span(root / one.blob, one.start, one.start + one.size)
    uids = (one.sop_class, one.sop_instance, one.study, one.series, one.transfer_syntax)
    return Member(*uids, span, one.data_set, one.sha256)
