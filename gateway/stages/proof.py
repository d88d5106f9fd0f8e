"""Proof of delivery: what a destination said to have stored is asked for, until it shows it or answers for it (R18).

Two ways, as the configuration says for each destination: C-FIND, or storage commitment (PS3.4 Annex J). A report of
commitment may come hours later, on an association that the PACS opens, to a gateway that was started anew meanwhile:
the transaction lies in the ledger. What is not proved in time is looked for by C-FIND once more, then sent again or
held; nothing is taken for delivered because time has passed.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final, Protocol

import structlog
from sqlalchemy import Connection

from gateway.config import ApplicationEntity
from gateway.core import confirmation
from gateway.core.commitment import REASONS, Answer, Reference, Report
from gateway.core.confirmation import Step, Stored
from gateway.core.query import Presence, Wanted
from gateway.errors import AssociationRejectedError, PeerUnreachableError
from gateway.ledger import confirmations
from gateway.ledger.confirmations import Proof, Unproved
from gateway.ledger.ledger import Ledger
from gateway.ledger.notices import close_notice, open_notice
from gateway.stages.asking import Asking, StoppingError, Trouble, fault

log = structlog.get_logger(__name__)

RECORDED_WITHIN: Final = 20.0
"""Seconds that a PACS waits for our answer to its report while the ledger takes it in."""

_SAID: Final = {
    Presence.PRESENT: "shown by C-FIND",
    Presence.ABSENT: "not shown by C-FIND",
    Presence.UNKNOWN: "no answer to C-FIND",
}


class Findings(Protocol):
    """What a destination said that it has."""

    @property
    def presence(self) -> Mapping[str, Presence]:
        """By SOP Instance UID."""


class Enquiry(Protocol):
    """How a destination is asked what it has, and to answer for it; blocking, so it is used in a thread."""

    def find(self, entity: ApplicationEntity, wanted: Sequence[Wanted]) -> Findings:
        """Ask which instances it has.

        Raises:
            AssociationRejectedError: It said no.
            PeerUnreachableError: It said nothing.
        """

    def commit(
        self,
        entity: ApplicationEntity,
        transaction: str,
        references: Sequence[Reference],
        record: Callable[[Report], object] | None = None,
    ) -> Answer:
        """Request storage commitment; a report that comes at once is recorded before it is answered.

        Raises:
            AssociationRejectedError: It said no.
            PeerUnreachableError: It said nothing.
        """


class Instance(Protocol):
    """What identifies an instance at each level."""

    @property
    def study(self) -> str: ...  # noqa: D102  the standard's nouns
    @property
    def series(self) -> str: ...  # noqa: D102
    @property
    def sop_instance(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Prover:
    """Looks for proofs.

    Attributes:
        ledger: The tables.
        scu: How destinations are asked.
        asking: What is under way.
    """

    ledger: Ledger
    scu: Enquiry
    asking: Asking

    async def look(self, name: str, entity: ApplicationEntity) -> Trouble | None:
        """Look for the proofs that are due at a destination; return what stopped it."""
        while not self.asking.stopping:
            now = datetime.now(UTC)
            due = await self.ledger.read(lambda c, now=now: confirmations.due(c, name, now))  # type: ignore[misc]
            if not due:
                return None
            try:
                await self._prove(name, entity, due, now)
            except StoppingError:
                return None
            except AssociationRejectedError as error:
                return Trouble(error.text, lasting=error.permanent)
            except PeerUnreachableError as error:
                return Trouble(error.text)
            except Exception as error:  # noqa: BLE001  a fault of ours must not keep the lane from telling a person
                return fault(error)
        return None

    async def _prove(self, name: str, entity: ApplicationEntity, due: Sequence[Unproved], now: datetime) -> None:
        if entity.confirm == "store":
            proofs = [Proof(one, Step.DELIVERED, None, "no proof is asked for any more") for one in due]
            await self.ledger.write(lambda c: confirmations.settle(c, proofs, now))
            return
        late = [one for one in due if entity.confirm == "find" or self._stored(one, entity, now).late]
        if late:
            await self._find(entity, late, now)
        rest = [one for one in due if one not in late]
        asked = {one.id: now + confirmation.LONGEST_LOOK for one in rest if one.transaction_uid is not None}
        if asked:
            await self.ledger.write(lambda c: confirmations.wait(c, asked))
        if unasked := [one for one in rest if one.transaction_uid is None]:
            await self._commit(name, entity, unasked, now)

    def _stored(self, one: Unproved, entity: ApplicationEntity, now: datetime) -> Stored:
        return Stored(max(now - one.stored_at, now - now), entity.confirm_within, one.absences)

    async def present(self, entity: ApplicationEntity, name: str, instances: Iterable[Instance]) -> Collection[str]:
        """Ask which of some instances a destination shows; none where it gives no answer.

        Raises:
            StoppingError: The gateway stops.
            AssociationRejectedError: It said no.
            PeerUnreachableError: It said nothing.
        """
        wanted = [Wanted(one.study, one.series, one.sop_instance) for one in instances]
        findings = await self.asking.ask(name, self.scu.find, entity, wanted)
        return {uid for uid, presence in findings.presence.items() if presence is Presence.PRESENT}

    async def _find(self, entity: ApplicationEntity, due: Sequence[Unproved], now: datetime) -> None:
        wanted = [Wanted(one.study, one.series, one.sop_instance) for one in due]
        findings = await self.asking.ask(due[0].destination, self.scu.find, entity, wanted)
        proofs = []
        for one in due:
            presence = findings.presence.get(one.sop_instance, Presence.UNKNOWN)
            stored = self._stored(one, entity, now)
            step = confirmation.after_find(stored, presence)
            proofs.append(Proof(one, step, confirmation.until_look(stored), _SAID[presence]))
        await self.ledger.write(lambda c: confirmations.settle(c, proofs, now))

    async def _commit(self, name: str, entity: ApplicationEntity, unasked: Sequence[Unproved], now: datetime) -> None:
        uid = f"2.25.{uuid.uuid4().int}"
        again = now + confirmation.LONGEST_LOOK
        await self.ledger.write(lambda c: confirmations.ask(c, name, uid, unasked, again, now))
        loop = asyncio.get_running_loop()
        references = [Reference(one.sop_class, one.sop_instance) for one in unasked]
        try:
            answer = await self.asking.ask(
                name, self.scu.commit, entity, uid, references, record=partial(self._record, loop)
            )
        except (AssociationRejectedError, PeerUnreachableError):
            # It was never asked: the UID is dead, and the next look asks with another (SC-6).
            await self.ledger.write(lambda c: self._end(c, uid, entity, unasked, "not asked"))
            raise
        if answer.status is not None and not answer.requested:
            comment = f"N-ACTION was answered with status 0x{answer.status:04X}"
        elif answer.refused is not None:
            comment = f"commitment is not taken: {answer.refused}"
        else:
            comment = ""  # asked, or nobody knows: a report may come all the same
        await self.ledger.write(lambda c: self._note(c, name, comment))
        if comment:
            await self.ledger.write(lambda c: self._end(c, uid, entity, unasked, comment))

    def _end(
        self, connection: Connection, uid: str, entity: ApplicationEntity, asked: Sequence[Unproved], comment: str
    ) -> None:
        now = datetime.now(UTC)
        if confirmations.end(connection, uid, now):
            waits = [confirmation.until_look(self._stored(one, entity, now)) for one in asked]
            proofs = [Proof(one, Step.LOOK, wait, comment) for one, wait in zip(asked, waits, strict=True)]
            confirmations.settle(connection, proofs, now)

    def _note(self, connection: Connection, name: str, comment: str) -> None:
        now = datetime.now(UTC)
        if comment:
            text = f"destination {name} does not answer for what it stored: {comment}"
            hint = f'set up storage commitment there, or set ae.{name}.confirm = "find" or "store"'
            open_notice(connection, now, "commitment-refused", name, text, hint)
        else:
            close_notice(connection, now, "commitment-refused", name)

    def _record(self, loop: asyncio.AbstractEventLoop, report: Report) -> None:
        """Take a report in from the thread that received it, before it is answered."""
        taken = self.report(report.transaction, report.committed, report.failed)
        asyncio.run_coroutine_threadsafe(taken, loop).result(RECORDED_WITHIN)

    async def report(
        self,
        transaction: str,
        committed: Collection[str],
        failed: Mapping[str, int],
        within: Callable[[str], ApplicationEntity | None] = lambda _: None,
    ) -> bool:
        """Write down what a commitment report says; tell whether the transaction was alive."""
        now = datetime.now(UTC)

        def decide(one: Unproved) -> Proof:
            if one.sop_instance in committed and one.sop_instance not in failed:
                return Proof(one, Step.DELIVERED, None, "committed")
            reason = failed.get(one.sop_instance)
            entity = within(one.destination)
            age = now - one.stored_at
            stored = Stored(age, entity.confirm_within if entity else max(age, age * 2), one.absences)
            return Proof(one, confirmation.after_report(stored, reason), confirmation.until_look(stored), _said(reason))

        asked = await self.ledger.write(lambda c: confirmations.report(c, transaction, decide, now))
        log.info("commitment_reported", instances=len(asked or ()))
        return asked is not None


def _said(reason: int | None) -> str:
    if reason is None:
        return "the report does not name it"
    return f"not committed: {REASONS.get(reason, 'another reason')}, 0x{reason:04X}"
