"""STORE: one lane per destination, from the queue to the PACS, with one true outcome per instance.

A lane marks a window of instances as on the wire, sends it, and commits what became of it together with the mark of
the next (promise 2): whatever happens, at most one window is in doubt. Nothing counts as delivered without a received
success or a listed warning for that instance (R12), nor, where the configuration asks for it, without a proof (R18).
A destination that does not answer is left alone behind a breaker and asked by one probe; the other lanes do not notice
(R15). An instance that makes the peer cut the association is tried once more alone, after all others, and then fails.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import structlog
from sqlalchemy import Connection

from gateway.config import ApplicationEntity, Configuration
from gateway.core import confirmation, contexts, downtime, retry, status
from gateway.core.fairness import Place, Turns
from gateway.core.status import Action
from gateway.errors import (
    AssociationRejectedError,
    GatewayError,
    LedgerError,
    PeerUnreachableError,
    WorkerError,
)
from gateway.ledger import confirmations, deliveries, tickets
from gateway.ledger.deliveries import Condition, Settled, Work
from gateway.ledger.ledger import Ledger
from gateway.ledger.spool import Spool
from gateway.model import Outcome, Queued, Sent, Span
from gateway.stages.asking import Asking, StoppingError, Trouble, fault, start
from gateway.stages.proof import Enquiry, Prover
from gateway.stages.throughput import Throughput

T = TypeVar("T")

log = structlog.get_logger(__name__)

WINDOW: Final = 16
"""Instances of one destination that may be on the wire when the power goes (engine: what bounds duplicates)."""

WINDOW_BYTES: Final = 8 << 20
"""Bytes after which a window is closed: about 100 ms on a fast network, so that a big study commits as it goes."""

BACKLOG: Final = 1000
"""Instances taken from the ledger at once."""

REFILL: Final = 1.0
"""Seconds between two looks for what came meanwhile: so long urgent mail waits at most for its turn."""

LONGEST_RUN: Final = 60.0
"""Seconds until what a run leaves aside has its turn: doubts, proofs, and contexts that were not proposed."""

ALL_REFUSED: Final = 4
"""Instances in a row, by whole windows, that all met a temporary refusal: then it is the destination's trouble."""

MOST_DROPS: Final = 5
"""Associations cut in a row without an answer to any instance, although the peer answers an echo in between."""

ABORTS: Final = frozenset({"A-ABORT", "A-RELEASE-RQ", "closed"})
"""How a peer ends an association while an instance is on the wire; silence is none of them."""

LONGEST_BREAK: Final = timedelta(minutes=5)
"""No breaker stays open that long: one that does was written by a clock that ran ahead (R29)."""

IDLE: Final = timedelta(minutes=5)
"""A destination that answered nothing for so long is asked by a C-ECHO (NET-20)."""

_ANSWERS: Final = frozenset({contexts.REFUSED, contexts.UNAVAILABLE})


class Association(Protocol):
    """One open association; blocking, so it is used in a thread."""

    @property
    def refused(self) -> Mapping[contexts.Pair, str]:
        """What the peer did not accept, and the code for it."""

    @property
    def alive(self) -> bool:
        """Whether another window can be sent."""

    def accepted(self, sop_class: str) -> Collection[str]:
        """Tell which transfer syntaxes the peer takes for a SOP class, of those proposed."""

    def send(self, window: Sequence[Queued], deadline: float) -> list[Sent]:
        """Send a window; one outcome for each instance that was put on the wire, in order."""

    def release(self) -> None:
        """End it in good order."""

    def abort(self) -> None:
        """Cut it; may be called while another thread sends."""


class StorageSCU(Enquiry, Protocol):
    """How a destination is reached."""

    def open(self, entity: ApplicationEntity, proposed: Sequence[contexts.Context]) -> Association:
        """Negotiate an association.

        Raises:
            AssociationRejectedError: It said no.
            PeerUnreachableError: It said nothing.
        """

    def echo(self, entity: ApplicationEntity) -> str:
        """Ask whether it is there; return what is wrong, empty when nothing is."""


class Transcoded(Protocol):
    """A new file with an instance in another transfer syntax."""

    @property
    def transfer_syntax(self) -> str:
        """What its data set is in."""

    @property
    def data_set(self) -> int:
        """Offset of the data set in the file."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    @property
    def changed(self) -> str:
        """What was changed, for the record."""


Transcode = Callable[[Span, str, Sequence[str], Path], Coroutine[Any, Any, Transcoded]]
"""Writes a data set, which is in a transfer syntax, to a file in the first of some others, without loss.

Raises GatewayError when that cannot be done, OSError when a file cannot be read or written.
"""


@dataclass(slots=True)
class _Pulse:
    """What a destination does again and again, over the runs of one look.

    Attributes:
        drops: Associations cut in a row without an answer.
        refused: Instances in a row that all met a temporary refusal.
    """

    drops: int = 0
    refused: int = 0


@dataclass(slots=True, eq=False)
class _Run:
    """What the associations of one run of a lane share."""

    name: str
    entity: ApplicationEntity
    condition: Condition
    turns: Turns[Work]
    pairs: frozenset[contexts.Pair]
    pulse: _Pulse
    alone: bool = False
    trouble: Trouble | None = None
    over: bool = False
    hand: set[int] = field(default_factory=set)
    decoded: dict[int, _Fitted] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    filled: float = field(default_factory=time.monotonic)

    @property
    def window(self) -> int:
        return max(1, WINDOW // self.entity.associations)


@dataclass(frozen=True, slots=True)
class _Fitted:
    """An instance as it goes out.

    Attributes:
        queued: What is sent.
        change: What transcoding changed; None when nothing was transcoded.
        refusal: Why it could not be transcoded; empty when it could, or need not.
        passing: It was trouble of ours, as a full disk or a decoder that died: the next try may do.
    """

    queued: Queued
    change: str | None = None
    refusal: str = ""
    passing: bool = False


class Store:
    """The stage: what the carrier calls for each destination.

    Args:
        configuration: In force now; replaced by ``reload``.
        ledger: The tables.
        spool: The bytes.
        scu: How destinations are reached.
        dice: Numbers in [0, 1); replaced in tests.
        transcode: How an instance is decoded that a destination does not take as it is; None: not at all.
    """

    def __init__(
        self,
        configuration: Configuration,
        ledger: Ledger,
        spool: Spool,
        scu: StorageSCU,
        dice: Callable[[], float] = random.random,
        transcode: Transcode | None = None,
    ) -> None:
        self.configuration = configuration
        self.ledger = ledger
        self.spool = spool
        self.not_before = datetime.fromtimestamp(0, UTC)
        """No send before this: after a crash, so that a crash loop does not use up tries (R27)."""
        self.throughput = Throughput()
        self._scu = scu
        self._dice = dice
        self._transcode = transcode
        self._asking = Asking()
        self._prover = Prover(ledger, scu, self._asking)
        self._open: set[Association] = set()
        self._looking: set[str] = set()

    def reload(self, configuration: Configuration) -> None:
        """Use another configuration from the next look on; what a lane is at ends with what is on the wire."""
        self.configuration = configuration

    def stop(self) -> None:
        """Begin no new window, and wait for nobody who was only asked: nothing of ours is on that wire (R31)."""
        self._asking.stop()

    @property
    def _stopping(self) -> bool:
        return self._asking.stopping

    def abort(self) -> None:
        """Cut every association: what is on the wire becomes unknown."""
        for association in list(self._open):
            association.abort()

    def bounds(self, entity: ApplicationEntity, alike: int | None = None) -> retry.Bounds:
        """How patient we are with one destination."""
        return retry.Bounds(self.configuration.limits.give_up, entity.unknown_sends, alike)

    async def recover(self, name: str, entity: ApplicationEntity) -> None:
        """Count as unknown what is still marked as on the wire although no association of this lane is open."""
        now = datetime.now(UTC)
        bounds = self.bounds(entity)
        count = await self.ledger.write(
            lambda c: deliveries.recover(c, name, now, lambda facts: retry.after_silence(facts, bounds, self._dice()))
        )
        if count:
            log.warning("sends_in_doubt", destination=name, instances=count)

    async def report(self, transaction: str, committed: Collection[str], failed: Mapping[str, int]) -> bool:
        """Take in a report of storage commitment, on whatever association it came (SC-2, SC-3).

        Args:
            transaction: Transaction UID (0008,1195).
            committed: SOP Instance UIDs that the PACS answers for.
            failed: Failure Reason (0008,1197) by SOP Instance UID.

        Returns:
            Whether we asked under this UID and had no report yet; only then something was written down, and is on disk.
        """
        return await self._prover.report(transaction, committed, failed, self.configuration.ae.get)

    async def look(self, name: str) -> datetime | None:
        """Send what is due at a destination; return when to look again."""
        now = datetime.now(UTC)
        entity = self.configuration.ae.get(name)
        if entity is None:
            await self.ledger.write(lambda c: self._orphan(c, name, now))
            return None
        await self.recover(name, entity)
        condition = await self.ledger.read(lambda c: deliveries.condition(c, name))
        if not self._may_send(condition):
            return None
        not_before = max(self.not_before, condition.breaker_until or self.not_before)
        if now < not_before < now + LONGEST_BREAK:
            return not_before
        self._looking.add(name)
        try:
            return await self._work_off(entity, condition)
        finally:
            self._looking.discard(name)

    def _orphan(self, connection: Connection, name: str, now: datetime) -> None:
        # Nobody may ask the destination any more, so what is in doubt there is a person's to decide, like the rest.
        deliveries.recover(connection, name, now, lambda _: retry.Next(Outcome.HELD, None))
        self.part_with_removed(connection, now)

    def part_with_removed(self, connection: Connection, now: datetime) -> None:
        """Hold what waits for destinations that are no longer configured, and end what was the matter with them."""
        deliveries.orphan(connection, self.configuration.ae, now)
        deliveries.retire(connection, {key: each.confirm for key, each in self.configuration.ae.items()}, now)

    async def ask_idle(self) -> None:
        """Ask every destination that has been idle for a while whether it is there (NET-20)."""
        now = datetime.now(UTC)
        async with asyncio.TaskGroup() as group:
            for name, entity in self.configuration.ae.items():
                condition = await self.ledger.read(lambda c, name=name: deliveries.condition(c, name))  # type: ignore[misc]
                answered = condition.answered_at
                quiet = answered is None or not now - IDLE < answered <= now
                well = condition.breaker_until is None and self._may_send(condition)
                if quiet and well and name not in self._looking and downtime.until(entity.downtime, now) is None:
                    group.create_task(self._ask_idle(entity, condition))

    async def _ask_idle(self, entity: ApplicationEntity, condition: Condition) -> None:
        try:
            trouble = await self._echo(entity, condition.name)
        except StoppingError:
            return
        now = datetime.now(UTC)
        if trouble is None:
            await self.ledger.write(lambda c: deliveries.answer(c, condition.name, now))
        elif condition.name not in self._looking:
            until = await self._trip(condition, trouble)
            await self.ledger.write(lambda c: tickets.put(c, f"store:{condition.name}", until))

    async def _work_off(self, entity: ApplicationEntity, condition: Condition) -> datetime | None:
        """Send and prove what is due, run after run; in a downtime only what a person forces."""
        name, pulse = condition.name, _Pulse()
        away = downtime.until(entity.downtime, datetime.now(UTC))
        trouble: Trouble | None = None
        while trouble is None and self._may_send(condition) and self._stands(name, entity):
            away = downtime.until(entity.downtime, datetime.now(UTC))
            work = await self._due(name, forced=away is not None)
            if away is not None and not work:
                return away
            trouble = await self._probe(entity, condition, work)
            if trouble is None and self._may_send(condition):
                work, trouble = await self._clear(entity, name, work)
            if trouble is None and away is None and self._may_send(condition):
                trouble = await self._prover.look(name, entity)
            if not work or trouble is not None or not self._may_send(condition):
                break
            trouble = await self._send(entity, condition, work, pulse)
            condition = await self.ledger.read(lambda c: deliveries.condition(c, name))
        if trouble is not None and away is None:
            return await self._trip(condition, trouble)
        if trouble is not None:
            return away
        again = await self.ledger.read(lambda c: deliveries.next_due(c, name))
        if again is None and condition.breaker_until is not None and self._may_send(condition):
            # Nothing waits for it any more that could show that it is back; the echo did, so its notice closes (R33).
            await self.ledger.write(lambda c: deliveries.mend(c, condition, datetime.now(UTC)))
        return again

    def _may_send(self, condition: Condition) -> bool:
        return not (condition.paused or self._stopping)

    def _stands(self, name: str, entity: ApplicationEntity) -> bool:
        """Whether the configuration still says this of a destination: a busy lane ends its look only with its work."""
        return self.configuration.ae.get(name) == entity

    async def _due(self, name: str, hand: Collection[int] = (), *, forced: bool = False) -> list[Work]:
        now = datetime.now(UTC)
        return await self.ledger.read(lambda c: deliveries.due(c, name, now, BACKLOG, hand, forced=forced))

    async def _probe(self, entity: ApplicationEntity, condition: Condition, work: Sequence[Work]) -> Trouble | None:
        """Send a C-ECHO where no image may be the probe: behind a breaker, and before a send in doubt is repeated."""
        wanted = condition.breaker_until is not None or any(one.unknown for one in work)
        if not wanted or not self._may_send(condition):
            return None
        try:
            return await self._echo(entity, condition.name)
        except StoppingError:
            return None

    async def _echo(self, entity: ApplicationEntity, name: str) -> Trouble | None:
        try:
            wrong = await self._asking.ask(name, self._scu.echo, entity)
        except StoppingError:
            raise
        except Exception as error:  # noqa: BLE001  a fault of ours must not keep the lane from telling a person
            return fault(error)
        return Trouble(wrong) if wrong else None

    async def _clear(self, entity: ApplicationEntity, name: str, work: list[Work]) -> tuple[list[Work], Trouble | None]:
        """Ask by C-FIND for what may be there already: sends in doubt, and what came before; the rest is to be sent."""
        doubtful = [one for one in work if one.unknown or one.known] if entity.confirm != "store" else []
        if doubtful:
            # A UID says nothing of its content: where another went under it, being shown proves nothing (R11, R12).
            rivals = await self.ledger.read(lambda c: deliveries.rivals(c, name, doubtful))
            doubtful = [one for one in doubtful if one.id not in rivals]
        if not doubtful:
            return work, None
        try:
            present = await self._prover.present(entity, name, doubtful)
        except StoppingError:
            return [], None
        except AssociationRejectedError as error:
            return [], Trouble(error.text, lasting=error.permanent)
        except PeerUnreachableError as error:
            return [], Trouble(error.text)
        except Exception as error:  # noqa: BLE001  whatever it is, the lane tells a person
            return [], fault(error)
        found = [one for one in doubtful if one.sop_instance in present]
        await self._settle_unsent(name, [_found(one, entity) for one in found])
        there = {one.id for one in found}
        return [one for one in work if one.id not in there], None

    async def _settle_unsent(self, name: str, settled: Sequence[Settled]) -> None:
        """Write down what is known of instances without a send; what a person stopped meanwhile stays as it is."""
        if not settled:
            return
        now = datetime.now(UTC)

        def change(connection: Connection) -> None:
            marked = {one.id for one in deliveries.mark(connection, [one.work for one in settled])}
            deliveries.settle(connection, name, [one for one in settled if one.work.id in marked], [], now, now)

        await self.ledger.write(change)

    async def _refuse_unnamed(self, entity: ApplicationEntity, name: str, work: Sequence[Work]) -> list[Work]:
        """End what no request can name, and return the rest: proposed with others it would keep them all from going."""
        bad = [one for one in work if not contexts.can_be_named(one.sop_class, one.transfer_syntax, one.sop_instance)]
        if bad:
            sent = Sent(0, None, refused=contexts.UNNAMED)
            verdict, bounds = status.judge(sent), self.bounds(entity)
            settled = [judge(one, sent, verdict, bounds, timedelta(), self._dice()) for one in bad]
            await self._settle_unsent(name, settled)
        unnamed = {one.id for one in bad}
        return [one for one in work if one.id not in unnamed]

    async def _trip(self, condition: Condition, trouble: Trouble) -> datetime:
        now = datetime.now(UTC)
        until = now + retry.until_probe(condition.failures + 1, self._dice())
        change = deliveries.trip
        await self.ledger.write(lambda c: change(c, condition, trouble.text, until, now, urgent=trouble.lasting))
        log.warning("destination_down", destination=condition.name, seconds=round((until - now).total_seconds(), 1))
        return until

    async def _send(
        self, entity: ApplicationEntity, condition: Condition, work: Sequence[Work], pulse: _Pulse
    ) -> Trouble | None:
        """Send a backlog over as many associations as there may be; return what stopped it.

        What made the peer cut an association goes last and alone, so that it takes nothing along.
        """
        work = await self._refuse_unnamed(entity, condition.name, work)
        suspects = [one for one in work if one.aborted_at is not None]
        clean = [one for one in work if one.aborted_at is None]
        fall_back = frozenset[str]()
        if self._transcode is not None and entity.transcode == "lossless":
            fall_back = contexts.DECODABLE
        for plan in contexts.plan([self._queued(one) for one in clean], fall_back):
            keys = {one.key for one in plan.queued}
            part = [one for one in clean if one.id in keys]
            run = self._run(entity, condition, plan, part, pulse)
            # Fall-back contexts could carry what has its turn in another run.
            run.hand.update(one.id for one in clean)
            try:
                await self._serve_all(run, plan.contexts)
            finally:
                await self._remove_decoded(run.decoded.values())
            if run.trouble is not None or not await self._goes_on(run):
                return run.trouble
            condition = run.condition
        for one in suspects:
            (plan,) = contexts.plan([self._queued(one)], fall_back)
            run = self._run(entity, condition, plan, [one], pulse, alone=True)
            try:
                await self._serve(run, plan.contexts)
            finally:
                await self._remove_decoded(run.decoded.values())
            if run.trouble is not None or not await self._goes_on(run):
                return run.trouble
            condition = run.condition
        return None

    async def _goes_on(self, run: _Run) -> bool:
        """Whether there may be another association: neither a person nor the clock has stopped it meanwhile."""
        condition = await self.ledger.read(lambda c: deliveries.condition(c, run.name))
        away = downtime.until(run.entity.downtime, datetime.now(UTC)) is not None
        return self._may_send(condition) and not away and self._stands(run.name, run.entity)

    def _run(
        self,
        entity: ApplicationEntity,
        condition: Condition,
        plan: contexts.Plan,
        work: Sequence[Work],
        pulse: _Pulse,
        *,
        alone: bool = False,
    ) -> _Run:
        pairs = frozenset(one.pair for one in plan.contexts)
        run = _Run(condition.name, entity, condition, Turns(_place), pairs, pulse, alone)
        run.turns.add(work)
        run.hand.update(one.id for one in work)
        return run

    async def _serve_all(self, run: _Run, proposed: Sequence[contexts.Context]) -> None:
        studies = {(one.partner, one.study) for one in run.turns}
        useful = min(run.entity.associations, len(studies), -(-len(run.turns) // run.window))
        async with asyncio.TaskGroup() as group:
            for _ in range(useful):
                group.create_task(self._serve(run, proposed))

    async def _serve(self, run: _Run, proposed: Sequence[contexts.Context]) -> None:
        """Keep one association busy until nothing is left for it; open another when it is dropped."""
        used = True
        while used and len(run.turns) and not self._ended(run):
            began = datetime.now(UTC)
            try:
                association = await self._asking.ask(run.name, self._scu.open, run.entity, proposed)
            except StoppingError:
                return
            except AssociationRejectedError as error:
                run.trouble = Trouble(error.text, lasting=error.permanent)
                return
            except PeerUnreachableError as error:
                run.trouble = Trouble(error.text)
                return
            except Exception as error:  # noqa: BLE001  whatever it is, the other associations must end in good order
                run.trouble = fault(error)
                return
            self._open.add(association)
            try:
                used = await self._use(run, association, began)
            finally:
                self._open.discard(association)
                await asyncio.shield(start(run.name, association.release))
            await self._mind_drops(run)

    def _ended(self, run: _Run) -> bool:
        return run.trouble is not None or run.over or self._stopping or not self._stands(run.name, run.entity)

    async def _mind_drops(self, run: _Run) -> None:
        """Tell a peer that is in trouble from one that only does not like an instance: the latter answers an echo."""
        if run.pulse.drops < 2 or self._ended(run):
            return
        try:
            wrong = await self._echo(run.entity, run.name)
        except StoppingError:
            return
        if wrong is not None or run.pulse.drops >= MOST_DROPS:
            run.trouble = run.trouble or Trouble("it drops its associations")

    async def _use(self, run: _Run, association: Association, began: datetime) -> bool:
        """Send window after window; tell whether there was any."""
        first = self._take(run, association) if not self._ended(run) else []
        window = await self._record(lambda c: deliveries.mark(c, first))
        self._let_go(run, first, window)
        while window:
            fitted = await self._fit_all(run, association, window)
            sent = await self._transfer(run, association, fitted) if fitted else []
            settled = self._judge(run, window, fitted, sent)
            unsent = window[len(sent) :]
            run.turns.add(unsent)
            self._note(run, settled, association)
            following = self._take(run, association) if association.alive and not self._ended(run) else []
            marked = await self._settle(run, settled, unsent, following, began)
            run.turns.give_back(window)
            run.hand.difference_update(one.work.id for one in settled)
            self._let_go(run, following, marked)
            window = marked
            await self._refill(run)
        return bool(first)

    def _let_go(self, run: _Run, taken: Sequence[Work], marked: Sequence[Work]) -> None:
        """Forget what a person stopped before it was marked."""
        if len(marked) < len(taken):
            stays = {one.id for one in marked}
            gone = [one for one in taken if one.id not in stays]
            run.turns.give_back(gone)
            run.hand.difference_update(one.id for one in gone)

    async def _refill(self, run: _Run) -> None:
        """Look what came meanwhile, so that what is urgent or small waits for no backlog to be worked off."""
        clock = time.monotonic()
        if run.alone or self._ended(run) or clock < run.filled + REFILL:
            return
        run.filled = clock
        if clock > run.began + LONGEST_RUN:
            run.over = True
            return
        away = downtime.until(run.entity.downtime, datetime.now(UTC)) is not None
        try:
            condition = await self.ledger.read(lambda c: deliveries.condition(c, run.name))
            # As it is now: what is settled while the question is under way was read before, and is no news.
            work = await self._due(run.name, frozenset(run.hand), forced=away)
        except LedgerError as error:
            # A window is marked already, others are on the wire: what became of them is worth more than what is new.
            log.error("ledger_failed", exception=type(error).__name__)  # noqa: TRY400
            return
        run.condition = condition
        fit = [one for one in work if (one.sop_class, one.transfer_syntax) in run.pairs]
        # What must be asked for first waits for the next run, and that comes at once for what is urgent.
        fresh = [one for one in fit if not (one.unknown or one.aborted_at or one.known)]
        run.over = run.condition.paused or away or any(one.urgent and one not in fit for one in work)
        new = [one for one in fresh if one.id not in run.hand]
        run.turns.add(new)
        run.hand.update(one.id for one in new)

    async def _fit_all(self, run: _Run, association: Association, window: Sequence[Work]) -> list[_Fitted]:
        """Make a window fit to be sent; none of it when the gateway stops meanwhile, for decoding may take minutes."""
        fitted: list[_Fitted] = []
        try:
            for one in window:
                fitted.append(await self._fit(run, association, one))  # noqa: PERF401  what is there at a stop goes
        except StoppingError:
            await self._remove_decoded(fitted)
            return []
        return fitted

    async def _fit(self, run: _Run, association: Association, work: Work) -> _Fitted:
        """Transcode an instance that the peer does not take as it is, when it takes it in a plain syntax (NET-12)."""
        queued = self._queued(work)
        if association.refused.get(contexts.pair(queued)) != contexts.REFUSED or self._transcode is None:
            return _Fitted(queued)
        taken = association.accepted(queued.sop_class)
        targets = [syntax for syntax in contexts.FALL_BACKS if syntax in taken]
        if not targets or run.entity.transcode == "never":
            return _Fitted(queued)
        before = run.decoded.pop(work.id, None)
        if before is not None and before.queued.transfer_syntax in targets:
            return before
        path = self.configuration.gateway.data / "scratch" / "store" / f"{work.id}.dcm"
        try:
            await asyncio.to_thread(partial(path.parent.mkdir, mode=0o700, parents=True, exist_ok=True))
            if self._stopping:
                raise StoppingError
            made = await self._asking.wait(self._transcode(queued.data_set, queued.transfer_syntax, targets, path))
        except (GatewayError, OSError) as error:
            await asyncio.to_thread(_remove, [path])  # a decoder that was killed leaves what it had
            passing = isinstance(error, WorkerError | OSError)
            text = error.text if isinstance(error, GatewayError) else type(error).__name__
            return _Fitted(queued, refusal=text, passing=passing)
        span = Span(path, made.data_set, made.size)
        return _Fitted(Queued(work.id, work.sop_class, work.sop_instance, made.transfer_syntax, span), made.changed)

    async def _transfer(self, run: _Run, association: Association, fitted: Sequence[_Fitted]) -> list[Sent]:
        timeout = run.entity.timeout.total_seconds()
        queued = [one.queued for one in fitted]
        sent: list[Sent] = []
        try:
            sent = await asyncio.shield(start(run.name, association.send, queued, timeout))
        except Exception as error:  # noqa: BLE001  whatever it is, nobody knows what the peer has: an outcome too
            association.abort()
            log.error("send_failed", destination=run.name, exception=type(error).__name__)  # noqa: TRY400
            sent = [Sent(one.key, None, comment=type(error).__name__) for one in queued]
        finally:
            # A peer may have ended the association while we decoded: what was not sent is kept for the next one, or
            # what takes longer than the peer waits would never go.
            run.decoded.update({one.queued.key: one for one in fitted[len(sent) :] if one.change is not None})
            await self._remove_decoded(fitted[: len(sent)])
        return sent

    async def _remove_decoded(self, fitted: Iterable[_Fitted]) -> None:
        # What was decoded is made anew when it is needed in another run: nothing in scratch has to last.
        if scratch := [one.queued.data_set.path for one in fitted if one.change is not None]:
            await asyncio.to_thread(_remove, scratch)

    async def _settle(
        self, run: _Run, settled: list[Settled], unsent: list[Work], following: list[Work], began: datetime
    ) -> list[Work]:
        """Commit what became of a window together with the mark of the next; return what was marked of that."""
        now = datetime.now(UTC)
        # A refused context is an answer too: it is there, and what it said is on record.
        answered = any(one.status is not None or one.code in _ANSWERS for one in settled) and run.trouble is None

        def change(connection: Connection) -> list[Work]:
            settled[:] = _agreed(connection, run, settled)
            deliveries.settle(connection, run.name, settled, unsent, began, now)
            if answered and run.condition.breaker_until is not None:
                deliveries.mend(connection, run.condition, now)
            return deliveries.mark(connection, following)

        # Whoever cancels us, what the peer said must get on record.
        marked = await asyncio.shield(self._record(change))
        for one in settled:
            if one.sent:
                what = "unknown" if one.unknown else str(one.outcome)
                self.throughput.add(run.name, what, one.work.end - one.work.start)
        if answered:
            run.condition = Condition(run.name, answered_at=now)
        return marked

    async def _record(self, change: Callable[[Connection], T]) -> T:
        return await self.ledger.insist(change, lambda: self._stopping)

    def _note(self, run: _Run, settled: Sequence[Settled], association: Association) -> None:
        """Learn about the destination from a window: dropped again and again, or refusing everything."""
        if any(one.status is not None for one in settled):
            run.pulse.drops = 0
        if not association.alive:
            run.pulse.drops += 1
        # What we failed to decode says nothing of the destination.
        refused = all(
            one.failed and one.outcome is Outcome.WAITING and one.code != contexts.UNDECODED for one in settled
        )
        run.pulse.refused = run.pulse.refused + len(settled) if refused else 0
        if settled and run.pulse.refused >= ALL_REFUSED:
            run.trouble = run.trouble or Trouble(f"it refuses everything for now: {settled[-1].code}")

    def _take(self, run: _Run, association: Association) -> list[Work]:
        def goes(window: list[Work], _: Work) -> bool:
            return sum(one.end - one.start for one in window) < WINDOW_BYTES

        return run.turns.take(association, run.window, goes)

    def _judge(
        self, run: _Run, window: Sequence[Work], fitted: Sequence[_Fitted], sent: Sequence[Sent]
    ) -> list[Settled]:
        settled = []
        for work, fit, one in zip(window, fitted, sent, strict=False):
            if fit.passing and one.refused == contexts.REFUSED:
                one = replace(one, refused=contexts.UNDECODED)  # noqa: PLW2901  what the peer said is not the whole reason
            verdict = status.judge(one)
            if verdict.action in {Action.DESTINATION, Action.STOP}:
                run.trouble = Trouble(f"it answered {verdict.meaning}", lasting=True)
            age = datetime.now(UTC) - work.received_at
            what = judge(work, one, verdict, self.bounds(run.entity, verdict.tries), age, self._dice())
            if what.aborted and _proven(run, work):
                what = replace(what, outcome=Outcome.FAILED, code="peer-aborts", wait=None, failed=True)
            if what.outcome is Outcome.DELIVERED and run.entity.confirm != "store":
                what = _unproved(what, run.entity)
            if fit.change is not None:
                what = replace(what, syntax=fit.queued.transfer_syntax, change=fit.change)
            settled.append(replace(what, comment=fit.refusal) if fit.refusal else what)
        return settled

    def _queued(self, work: Work) -> Queued:
        span = Span(self.spool.path(work.blob), work.start, work.end)
        return Queued(work.id, work.sop_class, work.sop_instance, work.transfer_syntax, span)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _place(work: Work) -> Place:
    return Place(work.urgent, work.partner, work.study, work.series, (work.received_at, work.id))


def _proven(run: _Run, work: Work) -> bool:
    """Whether it is the instance that the peer cannot bear: cut twice, the second time alone, and others are taken."""
    answered = run.condition.answered_at
    return run.alone and work.aborted_at is not None and answered is not None and answered > work.aborted_at


def _found(work: Work, entity: ApplicationEntity) -> Settled:
    code = "found" if work.unknown else "already-there"
    told = {"status": None, "comment": "C-FIND", "wait": None, "sent": False, "unknown": False, "failed": False}
    settled = Settled(work, Outcome.DELIVERED, code, **told)  # type: ignore[arg-type]
    return settled if entity.confirm == "find" else _unproved(settled, entity)


def _agreed(connection: Connection, run: _Run, settled: Sequence[Settled]) -> list[Settled]:
    """Let those count as stored which the destination says to have already, where it has them by our own record too."""
    twice = [one.work for one in settled if one.outcome is Outcome.HELD and one.status == status.DUPLICATE_INSTANCE]
    if not twice:
        return list(settled)
    there = deliveries.stored_before(connection, run.name, twice, status.STORED)
    agreed = [replace(one, outcome=Outcome.DELIVERED) if one.work.id in there else one for one in settled]
    if run.entity.confirm == "store":
        return agreed
    return [_unproved(one, run.entity) if one.work.id in there else one for one in agreed]


def _unproved(settled: Settled, entity: ApplicationEntity) -> Settled:
    """Keep what a success status came for waiting for its proof."""
    return replace(
        settled,
        outcome=Outcome.WAITING,
        code=confirmations.AWAITING,
        stored=True,
        remark=settled.code,
        wait=confirmation.FIRST_LOOK if entity.confirm == "find" else timedelta(),
    )


def judge(
    work: Work, sent: Sent, verdict: status.Verdict, bounds: retry.Bounds, age: timedelta, dice: float
) -> Settled:
    """Turn what a peer said about one instance into its outcome: a pure function of facts and dice."""
    definite = verdict.action is not Action.UNKNOWN
    outcome, wait, code = Outcome.WAITING, None, verdict.code
    failed = False
    match verdict.action:
        case Action.DELIVERED:
            outcome = Outcome.DELIVERED
        case Action.DUPLICATE:
            # The UID is there; whether it is this instance is for the ledger to say, or for a person.
            outcome = Outcome.HELD
        case Action.INSTANCE | Action.CLASS:
            outcome, failed = Outcome.FAILED, True
        case Action.UNKNOWN:
            follows = retry.after_silence(retry.Facts(work.failures, work.unknown + 1, age), bounds, dice)
            outcome, wait = follows.outcome, follows.wait
        case _:
            failed = True
            alike = (work.answers or {}).get(verdict.code, 0) + 1
            follows = retry.after_failure(retry.Facts(work.failures + 1, work.unknown, age, alike), bounds, dice)
            outcome, wait = follows.outcome, follows.wait
    return Settled(
        work,
        outcome,
        None if outcome is Outcome.DELIVERED and not verdict.warning else code,
        sent.status,
        sent.comment,
        wait,
        sent=sent.refused is None,
        unknown=not definite,
        failed=failed,
        aborted=not definite and sent.comment in ABORTS,
    )
