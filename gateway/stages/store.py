"""STORE: one lane per destination, from the queue to the PACS, with one true outcome per instance.

A lane marks a window of instances as on the wire, sends it, and commits what became of it together with the mark of
the next (promise 2): whatever happens, at most one window is in doubt. Nothing counts as delivered without a received
success or a listed warning for that instance (R12). A destination that does not answer is left alone behind a breaker
and asked by one probe; the other lanes do not notice (R15).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, ParamSpec, Protocol, TypeVar, cast

import structlog
from sqlalchemy import Connection

from gateway.config import ApplicationEntity, Configuration
from gateway.core import contexts, retry, status
from gateway.core.status import Action
from gateway.errors import AssociationRejectedError, LedgerError, PeerUnreachableError
from gateway.ledger import deliveries
from gateway.ledger.deliveries import Condition, Settled, Work
from gateway.ledger.ledger import Ledger
from gateway.ledger.spool import Spool
from gateway.model import Outcome, Queued, Sent, Span

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)

WINDOW: Final = 16
"""Instances of one destination that may be on the wire when the power goes (engine: what bounds duplicates)."""

WINDOW_BYTES: Final = 8 << 20
"""Bytes after which a window is closed: about 100 ms on a fast network, so that a big study commits as it goes."""

BACKLOG: Final = 1000
"""Instances taken from the ledger at once."""

ALL_REFUSED: Final = 4
"""Instances in a window that all met the same temporary refusal: then it is the destination's trouble, not theirs."""

LONGEST_BREAK: Final = timedelta(minutes=5)
"""No breaker stays open that long: one that does was written by a clock that ran ahead (R29)."""

LEDGER_PAUSE: Final = 5.0
"""Seconds until an outcome is offered to the ledger again that did not take it."""

_ANSWERS: Final = frozenset({contexts.REFUSED, contexts.UNAVAILABLE})


class Association(Protocol):
    """One open association; blocking, so it is used in a thread."""

    @property
    def alive(self) -> bool:
        """Whether another window can be sent."""

    def send(self, window: Sequence[Queued], deadline: float) -> list[Sent]:
        """Send a window; one outcome for each instance that was put on the wire, in order."""

    def release(self) -> None:
        """End it in good order."""

    def abort(self) -> None:
        """Cut it; may be called while another thread sends."""


class StorageSCU(Protocol):
    """How a destination is reached."""

    def open(self, entity: ApplicationEntity, proposed: Sequence[contexts.Context]) -> Association:
        """Negotiate an association.

        Raises:
            AssociationRejectedError: It said no.
            PeerUnreachableError: It said nothing.
        """

    def echo(self, entity: ApplicationEntity) -> str:
        """Ask whether it is there; return what is wrong, empty when nothing is."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a destination takes nothing now.

    Attributes:
        text: In plain words.
        lasting: It will not pass by itself: a person is told at once.
    """

    text: str
    lasting: bool = False


@dataclass(slots=True)
class _Run:
    """What the associations of one run of a lane share."""

    name: str
    entity: ApplicationEntity
    condition: Condition
    work: deque[Work]
    trouble: Trouble | None = None
    drops: int = 0
    associations: set[Association] = field(default_factory=set)

    @property
    def window(self) -> int:
        return max(1, WINDOW // self.entity.associations)


class Store:
    """The stage: what the carrier calls for each destination.

    Args:
        configuration: In force now; replaced by ``reload``.
        ledger: The tables.
        spool: The bytes.
        scu: How destinations are reached.
        dice: Numbers in [0, 1); replaced in tests.
    """

    def __init__(
        self,
        configuration: Configuration,
        ledger: Ledger,
        spool: Spool,
        scu: StorageSCU,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.configuration = configuration
        self.ledger = ledger
        self.spool = spool
        self.not_before = datetime.fromtimestamp(0, UTC)
        """No send before this: after a crash, so that a crash loop does not use up tries (R27)."""
        self._scu = scu
        self._dice = dice
        self._asking: set[asyncio.Future[Any]] = set()
        self._open: set[Association] = set()
        self._stopping = False

    def reload(self, configuration: Configuration) -> None:
        """Use another configuration from the next look on."""
        self.configuration = configuration

    def stop(self) -> None:
        """Begin no new window, and wait for nobody who was only asked: nothing of ours is on that wire (R31)."""
        self._stopping = True
        for asked in self._asking:
            if not asked.done():
                asked.set_exception(_StoppingError())

    def abort(self) -> None:
        """Cut every association: what is on the wire becomes unknown."""
        for association in list(self._open):
            association.abort()

    def bounds(self, entity: ApplicationEntity, failures: int | None = None) -> retry.Bounds:
        """How patient we are with one destination."""
        return retry.Bounds(self.configuration.limits.give_up, entity.unknown_sends, failures)

    async def recover(self, name: str, entity: ApplicationEntity) -> None:
        """Count as unknown what is still marked as on the wire although no association of this lane is open."""
        now = datetime.now(UTC)
        bounds = self.bounds(entity)
        count = await self.ledger.write(
            lambda c: deliveries.recover(c, name, now, lambda facts: retry.after_silence(facts, bounds, self._dice()))
        )
        if count:
            log.warning("sends_in_doubt", destination=name, instances=count)

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
        return await self._work_off(entity, condition)

    def _orphan(self, connection: Connection, name: str, now: datetime) -> None:
        # Nobody may ask the destination any more, so what is in doubt there is a person's to decide, like the rest.
        deliveries.recover(connection, name, now, lambda _: retry.Next(Outcome.HELD, None))
        deliveries.orphan(connection, self.configuration.ae, now)

    async def _work_off(self, entity: ApplicationEntity, condition: Condition) -> datetime | None:
        name = condition.name
        work = await self._due(name)
        trouble = await self._probe(entity, condition, work)
        while work and trouble is None and self._may_send(condition):
            trouble = await self._send(_Run(name, entity, condition, deque(work)))
            condition = await self.ledger.read(lambda c: deliveries.condition(c, name))
            work = await self._due(name)
            trouble = trouble or await self._probe(entity, condition, work)
        if trouble is not None:
            return await self._trip(condition, trouble)
        again = await self.ledger.read(lambda c: deliveries.next_due(c, name))
        if again is None and condition.breaker_until is not None and self._may_send(condition):
            # Nothing waits for it any more that could show that it is back; the echo did, so its notice closes (R33).
            await self.ledger.write(lambda c: deliveries.mend(c, condition, datetime.now(UTC)))
        return again

    def _may_send(self, condition: Condition) -> bool:
        return not (condition.paused or self._stopping)

    async def _due(self, name: str) -> list[Work]:
        now = datetime.now(UTC)
        return await self.ledger.read(lambda c: deliveries.due(c, name, now, BACKLOG))

    async def _probe(self, entity: ApplicationEntity, condition: Condition, work: Sequence[Work]) -> Trouble | None:
        """Send a C-ECHO where no image may be the probe: behind a breaker, and before a send in doubt is repeated."""
        wanted = condition.breaker_until is not None or any(one.unknown for one in work)
        if not wanted or not self._may_send(condition):
            return None
        try:
            wrong = await self._ask(condition.name, self._scu.echo, entity)
        except _StoppingError:
            return None
        except Exception as error:  # noqa: BLE001  a fault of ours must not keep the lane from telling a person
            return _fault(error)
        return Trouble(wrong) if wrong else None

    async def _trip(self, condition: Condition, trouble: Trouble) -> datetime:
        now = datetime.now(UTC)
        until = now + retry.until_probe(condition.failures + 1, self._dice())
        change = deliveries.trip
        await self.ledger.write(lambda c: change(c, condition, trouble.text, until, now, urgent=trouble.lasting))
        log.warning("destination_down", destination=condition.name, seconds=round((until - now).total_seconds(), 1))
        return until

    async def _send(self, run: _Run) -> Trouble | None:
        """Send the backlog of a run over as many associations as it may have; return what stopped it."""
        queued = {one.id: one for one in run.work}
        for plan in contexts.plan([self._queued(one) for one in run.work]):
            part = _Run(run.name, run.entity, run.condition, deque(queued[one.key] for one in plan.queued))
            useful = min(run.entity.associations, -(-len(part.work) // part.window))
            async with asyncio.TaskGroup() as group:
                for _ in range(useful):
                    group.create_task(self._serve(part, plan.contexts))
            if part.trouble is not None or self._stopping:
                return part.trouble
            run.condition = part.condition
        return None

    async def _serve(self, run: _Run, proposed: Sequence[contexts.Context]) -> None:
        """Keep one association busy until the work is done; open another when it is dropped."""
        while run.work and run.trouble is None and not self._stopping:
            began = datetime.now(UTC)
            try:
                association = await self._ask(run.name, self._scu.open, run.entity, proposed)
            except _StoppingError:
                return
            except AssociationRejectedError as error:
                run.trouble = Trouble(error.text, lasting=error.permanent)
                return
            except PeerUnreachableError as error:
                run.trouble = Trouble(error.text)
                return
            except Exception as error:  # noqa: BLE001  whatever it is, the other associations must end in good order
                run.trouble = _fault(error)
                return
            self._open.add(association)
            try:
                await self._use(run, association, began)
            finally:
                self._open.discard(association)
                await asyncio.shield(_thread(run.name, association.release))

    async def _use(self, run: _Run, association: Association, began: datetime) -> None:
        first = self._take(run) if not self._stopping else []
        window = await self._record(lambda c: deliveries.mark(c, first))
        while window:
            sent = await self._transfer(run, association, [self._queued(one) for one in window])
            settled = self._judge(run, window, sent)
            unsent = window[len(sent) :]
            run.work.extendleft(reversed(unsent))
            self._note(run, settled, association)
            following = self._take(run) if association.alive and run.trouble is None and not self._stopping else []
            window = await self._settle(run, settled, unsent, following, began)

    async def _transfer(self, run: _Run, association: Association, queued: Sequence[Queued]) -> list[Sent]:
        timeout = run.entity.timeout.total_seconds()
        try:
            return await asyncio.shield(_thread(run.name, association.send, queued, timeout))
        except Exception as error:  # noqa: BLE001  whatever it is, nobody knows what the peer has: an outcome too
            association.abort()
            log.error("send_failed", destination=run.name, exception=type(error).__name__)  # noqa: TRY400
            return [Sent(one.key, None, comment=type(error).__name__) for one in queued]

    async def _settle(
        self, run: _Run, settled: list[Settled], unsent: list[Work], following: list[Work], began: datetime
    ) -> list[Work]:
        """Commit what became of a window together with the mark of the next; return what was marked of that."""
        now = datetime.now(UTC)
        # A refused context is an answer too: it is there, and what it said is on record.
        answered = any(one.status is not None or one.code in _ANSWERS for one in settled) and run.trouble is None

        def change(connection: Connection) -> list[Work]:
            deliveries.settle(connection, run.name, settled, unsent, began, now)
            if answered and run.condition.breaker_until is not None:
                deliveries.mend(connection, run.condition, now)
            return deliveries.mark(connection, following)

        # Whoever cancels us, what the peer said must get on record.
        marked = await asyncio.shield(self._record(change))
        if answered:
            run.condition = Condition(run.name)
        return marked

    async def _record(self, change: Callable[[Connection], T]) -> T:
        """Write down what the peer said. While the ledger does not take it, it is kept here and offered again."""
        while True:
            try:
                return await self.ledger.write(change)
            except LedgerError as error:
                log.error("outcome_not_recorded", exception=type(error).__name__)  # noqa: TRY400
                if self._stopping:
                    raise
                await asyncio.sleep(LEDGER_PAUSE)

    def _note(self, run: _Run, settled: Sequence[Settled], association: Association) -> None:
        """Learn about the destination from a window: dropped again and again, or refusing everything."""
        if any(one.status is not None for one in settled):
            run.drops = 0
        if not association.alive:
            run.drops += 1
            if run.drops > 1:
                run.trouble = run.trouble or Trouble("it drops its associations")
        if len(settled) >= ALL_REFUSED and all(one.failed and one.outcome is Outcome.WAITING for one in settled):
            run.trouble = run.trouble or Trouble(f"it refuses everything for now: {settled[-1].code}")

    def _take(self, run: _Run) -> list[Work]:
        window: list[Work] = []
        size = 0
        while run.work and len(window) < run.window and (not window or size < WINDOW_BYTES):
            window.append(run.work.popleft())
            size += window[-1].end - window[-1].start
        return window

    def _judge(self, run: _Run, window: Sequence[Work], sent: Sequence[Sent]) -> list[Settled]:
        settled = []
        for work, one in zip(window, sent, strict=False):
            verdict = status.judge(one)
            if verdict.action in {Action.DESTINATION, Action.STOP}:
                run.trouble = Trouble(f"it answered {verdict.meaning}", lasting=True)
            age = datetime.now(UTC) - work.received_at
            settled.append(judge(work, one, verdict, self.bounds(run.entity, verdict.tries), age, self._dice()))
        return settled

    def _queued(self, work: Work) -> Queued:
        span = Span(self.spool.path(work.blob), work.start, work.end)
        return Queued(work.id, work.sop_class, work.sop_instance, work.transfer_syntax, span)

    async def _ask(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that only asks a destination, until it answers or the gateway stops."""
        asked = _thread(name, function, *args, **kwargs)
        self._asking.add(asked)
        try:
            return await asked
        finally:
            self._asking.discard(asked)


class _StoppingError(Exception):
    """The gateway stops; whoever was asked is not waited for."""


def _thread(name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Run something blocking in a thread of its own: a black hole uses up nobody else's, and delays no exit (R31)."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("T", result))

    def work() -> None:
        result, fault = None, None
        try:
            result = function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  it is raised where it is awaited
            fault = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, fault)

    # Python waits at its exit for the threads of an executor, for as long as a peer says nothing; not for these.
    threading.Thread(target=work, name=f"store-{name}", daemon=True).start()
    return done


def _fault(error: Exception) -> Trouble:
    log.error("send_failed", exception=type(error).__name__)
    return Trouble(f"the gateway failed to reach it: {type(error).__name__}", lasting=True)


def judge(
    work: Work, sent: Sent, verdict: status.Verdict, bounds: retry.Bounds, age: timedelta, dice: float
) -> Settled:
    """Turn what a peer said about one instance into its outcome: a pure function of facts and dice."""
    definite = verdict.action is not Action.UNKNOWN
    outcome, wait, code = Outcome.WAITING, None, verdict.code
    failed = False
    match verdict.action:
        case Action.DELIVERED | Action.DUPLICATE:
            outcome = Outcome.DELIVERED
        case Action.INSTANCE | Action.CLASS:
            outcome, failed = Outcome.FAILED, True
        case Action.UNKNOWN:
            follows = retry.after_silence(retry.Facts(work.failures, work.unknown + 1, age), bounds, dice)
            outcome, wait = follows.outcome, follows.wait
        case _:
            failed = True
            follows = retry.after_failure(retry.Facts(work.failures + 1, work.unknown, age), bounds, dice)
            outcome, wait = follows.outcome, follows.wait
    return Settled(
        work,
        outcome,
        None if outcome is Outcome.DELIVERED and not verdict.warning and verdict.action is Action.DELIVERED else code,
        sent.status,
        sent.comment,
        wait,
        sent=sent.refused is None,
        unknown=not definite,
        failed=failed,
    )
