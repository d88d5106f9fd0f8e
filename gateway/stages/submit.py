"""SUBMIT: the lane to the mail relay, with one true outcome per mail.

A mail is marked before its first byte leaves, and what became of it is committed before the next one of its place
begins. A reply decides; when the reply to the final dot is lost, nobody knows (RFC 1047), and the mail is repeated
with its Message-ID, counted and spaced, until a person must look. A relay that cannot be reached is left alone behind
a breaker, and a person is told once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, TypeVar

import structlog
from sqlalchemy import Connection

from gateway.config import Configuration
from gateway.core import letter, retry
from gateway.errors import RelayError
from gateway.ledger import submissions
from gateway.ledger.deliveries import Condition
from gateway.ledger.ledger import Ledger
from gateway.ledger.spool import Spool
from gateway.ledger.submissions import Settled, Work
from gateway.model import Mail, Outcome, Reply, Span, Submission
from gateway.stages.throughput import Throughput

T = TypeVar("T")

log = structlog.get_logger(__name__)

AT_ONCE: Final = 2
"""Mails on the wire at the same time: all of them may be in doubt when the power goes."""

UNKNOWN_SENDS: Final = 4
"""Submissions of one mail without a reply after which a person decides."""

LONGEST_BREAK: Final = timedelta(minutes=5)
"""No breaker stays open that long: one that does was written by a clock that ran ahead (R29)."""

NO_RELAY: Final = "no relay is configured"

HEAD: Final = 1 << 20
"""Bytes of a mail in which its header ends, and that of the whole in a first piece."""

_PROTECTIONS: Final = ("plain", "signed", "signed+encrypted")
"""What a partner's ``send`` may ask for, from less to more."""

_TOO_BIG: Final = frozenset({"5.3.4", "5.2.3"})
"""Enhanced status codes that say so (RFC 3463); beside them the reply code 552 (RFC 1870 §6)."""


class Relay(Protocol):
    """Where mail is submitted."""

    @property
    def announced(self) -> int | None:
        """Bytes of the longest mail it takes, as it last said."""

    async def greet(self) -> None:
        """Open a session as far as mail could begin, and leave.

        Raises:
            RelayError: Mail cannot be submitted now.
        """

    async def submit(self, mail: Mail) -> Submission:
        """Submit one mail.

        Raises:
            RelayError: The relay cannot be used now; it was given nothing.
            OSError: The mail's file cannot be read; the relay was given nothing whole.
        """

    def has_begun(self, mail: Mail) -> bool:
        """Whether the relay may have something of a mail that is being submitted."""


class Submit:
    """The stage: what the carrier calls for the relay.

    Args:
        configuration: In force now; replaced by ``reload``.
        ledger: The tables.
        spool: The bytes.
        relay: How the relay is reached; None without one.
        dice: Numbers in [0, 1); replaced in tests.
    """

    def __init__(
        self,
        configuration: Configuration,
        ledger: Ledger,
        spool: Spool,
        relay: Relay | None,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.configuration = configuration
        self.ledger = ledger
        self.spool = spool
        self.not_before = datetime.fromtimestamp(0, UTC)
        """No submission before this: after a crash, so that a crash loop does not use up tries (R27)."""
        self.throughput = Throughput()
        self._relay = relay
        self._dice = dice
        self._stopping = False
        self._asking: asyncio.Task[None] | None = None
        self._submitting: dict[asyncio.Task[Submission], Mail] = {}
        self._cut: set[asyncio.Task[Submission]] = set()

    def reload(self, configuration: Configuration) -> None:
        """Use another configuration from the next look on."""
        self.configuration = configuration

    def stop(self) -> None:
        """Begin no new mail, and wait for no relay that has nothing of one yet (R31)."""
        self._stopping = True
        if self._asking is not None:
            self._asking.cancel()
        for task, mail in self._submitting.items():
            if self._relay is not None and not self._relay.has_begun(mail):
                self._cut.add(task)
                task.cancel()

    def abort(self) -> None:
        """Cut every connection: what is on the wire becomes unknown."""
        for task in self._submitting:
            task.cancel()

    @property
    def bounds(self) -> retry.Bounds:
        """How patient we are with the relay."""
        return retry.Bounds(self.configuration.limits.give_up, UNKNOWN_SENDS)

    async def look(self, _name: str) -> datetime | None:
        """Submit what is due; return when to look again."""
        now = datetime.now(UTC)
        decide = lambda facts: retry.after_silence(facts, self.bounds, self._dice())  # noqa: E731
        # There is one lane, and it runs no twice: what is marked now is of a former life, or of a lane that was cut.
        if count := await self.ledger.write(lambda c: submissions.recover(c, now, decide)):
            log.warning("submissions_in_doubt", count=count)
        condition = await self.ledger.read(submissions.condition)
        if not self._may_submit(condition):
            return None
        not_before = max(self.not_before, condition.breaker_until or self.not_before)
        if now < not_before < now + LONGEST_BREAK:
            return not_before
        return await self._work_off(condition)

    def _may_submit(self, condition: Condition) -> bool:
        return not (condition.paused or self._stopping)

    async def _work_off(self, condition: Condition) -> datetime | None:
        work = await self._due()
        trouble = await self._probe(condition, work)
        while work and trouble is None and self._may_submit(condition):
            trouble = await self._submit(work, condition)
            condition = await self.ledger.read(submissions.condition)
            work = await self._due()
            trouble = trouble or await self._probe(condition, work)
        if trouble is not None and not self._stopping:
            return await self._trip(condition, trouble)
        again = await self.ledger.read(submissions.next_due)
        if again is None and condition.breaker_until is not None and self._may_submit(condition):
            await self.ledger.write(lambda c: submissions.mend(c, condition, datetime.now(UTC)))
        return again

    async def _due(self) -> list[Work]:
        now = datetime.now(UTC)
        return await self.ledger.read(lambda c: submissions.due(c, now, AT_ONCE))

    async def _probe(self, condition: Condition, work: list[Work]) -> RelayError | None:
        """Greet the relay where no mail may be the probe: behind a breaker, and before one in doubt is repeated."""
        wanted = condition.breaker_until is not None or any(one.unknown for one in work)
        if not wanted or not self._may_submit(condition):
            return None
        if self._relay is None:
            return RelayError(NO_RELAY, lasting=True)
        self._asking = asyncio.create_task(self._relay.greet())
        try:
            await self._asking
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        except RelayError as error:
            return error
        except Exception as error:  # noqa: BLE001  a fault of ours must not keep the lane from telling a person
            return _fault(error)
        finally:
            self._asking = None
        return None

    async def _trip(self, condition: Condition, trouble: RelayError) -> datetime:
        now = datetime.now(UTC)
        until = now + retry.until_probe(condition.failures + 1, self._dice())
        trip, urgent = submissions.trip, trouble.lasting
        await self.ledger.write(lambda c: trip(c, condition, trouble.text, until, now, urgent=urgent))
        log.warning("relay_down", seconds=round((until - now).total_seconds(), 1))
        return until

    async def _submit(self, work: list[Work], condition: Condition) -> RelayError | None:
        """Submit several mails at once; return what is wrong with the relay, if anything is."""
        troubles = await asyncio.gather(*(self._one(one, condition) for one in work))
        return next((trouble for trouble in troubles if trouble is not None), None)

    async def _one(self, work: Work, condition: Condition) -> RelayError | None:
        if why := await asyncio.to_thread(self._outdated, work):
            await self._record(lambda c: submissions.compose_anew(c, work, why, datetime.now(UTC)))
            return None
        if not await self._record(lambda c: submissions.mark(c, work)):
            return None  # a person has held it meanwhile
        trouble: RelayError | None = None
        answer: Submission | None = None
        try:
            answer = await self._transfer(work)
        except RelayError as error:
            trouble = error
        except OSError as error:
            if not self.spool.has(work.blob):
                text = "its bytes are gone from the spool"
                one = Settled(work, Outcome.HELD, "bytes-missing", None, text, None, False, False, False)
                await self._settle(one, None)
                return None
            trouble = _fault(error, within=True)
        if answer is None:
            if trouble is not None and trouble.within:
                one = cut_short(work, self.bounds, datetime.now(UTC) - work.received_at, self._dice())
            else:
                wait, code = timedelta(), "in-doubt" if work.unknown else None
                one = Settled(work, Outcome.WAITING, code, None, "", wait, sent=False, unknown=False, failed=False)
            await self._settle(one, None)
            return trouble
        one = judge(work, answer, self.bounds, datetime.now(UTC) - work.received_at, self._dice())
        await self._settle(one, condition)
        return None

    def _outdated(self, work: Work) -> str:
        """Say why a mail must not leave as it was written: its partner was changed since. Blocks to read its head."""
        partner = self.configuration.partner.get(work.partner)
        if partner is None:
            return f"there is no partner {work.partner} any more"
        if partner.address != work.recipient:
            return f"{work.partner} has another address now"
        # R21: what is asked for now counts, not what was when it was written.
        if partner.send != "plain" and _PROTECTIONS.index(self._protection(work)) < _PROTECTIONS.index(partner.send):
            return f"{work.partner} is to be sent {partner.send} mail now"
        return ""

    def _protection(self, work: Work) -> str:
        try:
            with self.spool.path(work.first).open("rb") as file:
                return letter.protection(file.read(HEAD))
        except OSError:  # nothing leaves of what cannot be read: its submission tells
            return _PROTECTIONS[-1]

    async def _transfer(self, work: Work) -> Submission:
        if self._relay is None:
            raise RelayError(NO_RELAY, lasting=True)
        assert self.configuration.relay is not None
        content = Span(self.spool.path(work.blob), 0, work.size)
        mail = Mail(content, self.configuration.relay.sender, (work.recipient,), work.envid)
        task = asyncio.create_task(self._relay.submit(mail))
        self._submitting[task] = mail
        try:
            return await task
        except asyncio.CancelledError:
            if not self._stopping:
                task.cancel()
                raise
            if task in self._cut:
                raise RelayError("the gateway stops") from None  # it was given nothing
            return Submission((), doubtful=True)  # cut off at the end of our patience: the relay may have it
        except (RelayError, OSError):
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, nobody knows what the relay has: an outcome too
            log.error("submission_failed", exception=type(error).__name__)  # noqa: TRY400
            return Submission((), doubtful=True)
        finally:
            self._submitting.pop(task, None)
            self._cut.discard(task)

    async def _settle(self, one: Settled, condition: Condition | None) -> None:
        now = datetime.now(UTC)
        answered = condition is not None and not one.unknown and condition.breaker_until is not None

        def change(connection: Connection) -> None:
            submissions.settle(connection, one, now)
            if answered:
                assert condition is not None
                submissions.mend(connection, condition, now)

        # Whoever cancels us, what the relay said must get on record.
        await asyncio.shield(self._record(change))
        if one.sent:
            work = one.work
            self.throughput.add(work.partner, "unknown" if one.unknown else str(one.outcome), work.size)
            log.info("submitted", id=work.message, partner=work.partner, outcome=one.outcome, status=one.status)

    async def _record(self, change: Callable[[Connection], T]) -> T:
        return await self.ledger.insist(change, lambda: self._stopping)


def _fault(error: Exception, *, within: bool = False) -> RelayError:
    log.error("submission_failed", exception=type(error).__name__)
    return RelayError(f"the gateway failed to reach it: {type(error).__name__}", lasting=True, within=within)


def cut_short(work: Work, bounds: retry.Bounds, age: timedelta, dice: float) -> Settled:
    """Space a mail whose submission broke off before its end: the relay has nothing of it, and the others go first.

    It may be the mail that the relay, something before it, or our disk cannot bear: tried first each time, it would
    keep all others for ever behind the breaker.
    """
    follows = retry.after_failure(retry.Facts(work.failures + 1, work.unknown, age), bounds, dice)
    flags = {"sent": True, "unknown": False, "failed": True}
    return Settled(work, follows.outcome, "relay-deferred", None, "cut off before its end", follows.wait, **flags)


def judge(work: Work, answer: Submission, bounds: retry.Bounds, age: timedelta, dice: float) -> Settled:
    """Turn what the relay said about a mail into its outcome: a pure function of facts and dice."""
    if answer.doubtful:
        follows = retry.after_silence(retry.Facts(work.failures, work.unknown + 1, age), bounds, dice)
        flags = {"sent": True, "unknown": True, "failed": False}
        return Settled(work, follows.outcome, "in-doubt", None, "no reply", follows.wait, **flags)
    reply = answer.replies[0][1]
    flags = {"sent": True, "unknown": False, "failed": not reply.good}
    if reply.good:
        return Settled(work, Outcome.DELIVERED, None, reply.code, reply.status, None, **flags)
    if reply.permanent:
        code = submissions.TOO_BIG if _is_too_big(reply) else "relay-refused"
        return Settled(work, Outcome.FAILED, code, reply.code, reply.status, None, **flags)
    follows = retry.after_failure(retry.Facts(work.failures + 1, work.unknown, age), bounds, dice)
    return Settled(work, follows.outcome, "relay-deferred", reply.code, reply.status, follows.wait, **flags)


def _is_too_big(reply: Reply) -> bool:
    return reply.status in _TOO_BIG or (reply.code == 552 and not reply.status)
