"""STORE: a lane against a destination that answers as data: one outcome per instance, doubt bounded, nobody delayed."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from rows import alarms, configuration, instance, outcome, parts, queue, stories
from sqlalchemy import Connection, select, update

from gateway.config import ApplicationEntity, Downtime
from gateway.core import contexts, dimse
from gateway.core.commitment import Answer as Commitment
from gateway.core.commitment import Reference, Report
from gateway.core.query import Presence, Wanted
from gateway.core.transcode import Transcoded
from gateway.edges.storescu import Peer
from gateway.edges.storescu.association import _request
from gateway.errors import AssociationRejectedError, GatewayError, LedgerError, PeerUnreachableError
from gateway.ledger import deliveries, inventory, verbs
from gateway.ledger.ledger import Ledger, connect
from gateway.ledger.spool import Spool
from gateway.ledger.tables import delivery, destination, message
from gateway.model import Queued, Sent, Span
from gateway.stages import store as storing
from gateway.stages.store import Store

Answer = int | str | None
"""A status; a code for what was never sent; None for silence, which ends the association; "drop" ends it unsent."""


class Found(NamedTuple):
    """What a C-FIND found."""

    presence: Mapping[str, Presence]


class Line:
    """One association: answers as its script says, then with success."""

    def __init__(self, scu: Scripted, proposed: Sequence[contexts.Context]) -> None:
        self.scu = scu
        self.alive = True
        self.refused = {one.pair: contexts.REFUSED for one in proposed if one.transfer_syntax in scu.refuses}
        self.proposed = proposed
        self.released = self.aborted = False

    def accepted(self, sop_class: str) -> list[str]:
        pairs = [one.pair for one in self.proposed if one.pair not in self.refused]
        return [*(syntax for each, syntax in pairs if each == sop_class), *self.scu.takes]

    def send(self, window: Sequence[Queued], deadline: float) -> list[Sent]:
        assert deadline == 5
        self.scu.on_send(window)
        sent = []
        for queued in window:
            answer = self.scu.answer(queued)
            if answer == "drop":
                self.alive = False
                break
            if isinstance(answer, str):
                sent.append(Sent(queued.key, None, refused=answer))
                continue
            self.scu.wire.append(queued.sop_instance)
            sent.append(Sent(queued.key, answer, comment="" if answer is not None else "A-ABORT"))
            if answer is None:
                self.alive = False
                break
        return sent

    def release(self) -> None:
        self.released = True

    def abort(self) -> None:
        self.aborted, self.alive = True, False


class Scripted:
    """How destinations are reached in these tests."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.opening: list[Exception | None] = []
        self.echoes: list[str | Exception] = []
        self.always: Answer = 0
        self.lines: list[Line] = []
        self.wire: list[str] = []
        self.asked = 0
        self.proposed: list[Sequence[contexts.Context]] = []
        self.windows: list[int] = []
        self.refuses: set[str] = set()
        self.takes: list[str] = []
        self.has: dict[str, Presence] = {}
        self.finding: list[Exception] = []
        self.looked: list[list[str]] = []
        self.commitments: list[Commitment | Exception] = []
        self.asked_for: list[tuple[str, list[str]]] = []
        self.meanwhile: Callable[[Sequence[Queued]], None] = lambda _: None
        self._turn = threading.Lock()

    def on_send(self, window: Sequence[Queued]) -> None:
        self.windows.append(len(window))
        self.meanwhile(window)

    def answer(self, _: Queued) -> Answer:
        with self._turn:
            return self.answers.pop(0) if self.answers else self.always

    def open(self, entity: ApplicationEntity, proposed: Sequence[contexts.Context]) -> Line:
        assert entity.title in {"PACS", "OTHER"}
        self.proposed.append(proposed)
        error = self.opening.pop(0) if self.opening else None
        if error is not None:
            raise error
        self.lines.append(Line(self, proposed))
        return self.lines[-1]

    def find(self, _: ApplicationEntity, wanted: Sequence[Wanted]) -> Found:
        if self.finding:
            raise self.finding.pop(0)
        self.looked.append([one.sop_instance for one in wanted])
        return Found({one.sop_instance: self.has.get(one.sop_instance, Presence.UNKNOWN) for one in wanted})

    def commit(
        self,
        _: ApplicationEntity,
        transaction: str,
        references: Sequence[Reference],
        record: Callable[[Report], object] | None = None,
    ) -> Commitment:
        self.asked_for.append((transaction, [one.sop_instance for one in references]))
        answer = self.commitments.pop(0) if self.commitments else Commitment(0)
        if isinstance(answer, Exception):
            raise answer
        for each in answer.reports:
            assert record is not None
            record(replace(each, transaction=transaction))
        return answer

    def echo(self, _: ApplicationEntity) -> str:
        self.asked += 1
        answer = self.echoes.pop(0) if self.echoes else ""
        if isinstance(answer, Exception):
            raise answer
        return answer


class Lane:
    """The stage with a real ledger; one association unless told."""

    def __init__(self, folder: Path, associations: int = 1) -> None:
        self.ledger = Ledger(connect(f"sqlite:///{folder / 'ledger.sqlite'}"))
        self.spool = Spool(folder / "spool")
        self.scu = Scripted()
        loaded = configuration(folder)
        entities = {name: one.model_copy(update={"associations": associations}) for name, one in loaded.ae.items()}
        self.configuration = loaded.model_copy(update={"ae": entities})
        self.store = Store(self.configuration, self.ledger, self.spool, self.scu, lambda: 0.5)

    def sync(self, change: Callable[[Connection], object]) -> None:
        with self.ledger.engine.begin() as connection:
            change(connection)

    def fill(self, count: int, key: str = "in-1", to: Sequence[str] = ("pacs",)) -> None:
        numbers = range(1, count + 1)
        self.sync(lambda c: queue(c, key, *(instance(n, uid=f"{key}.{n}") for n in numbers), to=to, at=now()))

    def read(self, question: Callable[[Connection], object]) -> object:
        with self.ledger.engine.connect() as connection:
            return question(connection)

    def parts(self, key: str = "in-1") -> list[tuple[str, str | None]]:
        with self.ledger.engine.connect() as connection:
            return [(state, code) for _, _, state, code in parts(connection, key)]

    def condition(self, name: str = "pacs") -> deliveries.Condition:
        with self.ledger.engine.connect() as connection:
            return deliveries.condition(connection, name)

    def make_due(self, *, breaker: bool = True) -> None:
        """Let the time pass until everything is due."""
        past = now() - timedelta(seconds=1)
        waits = delivery.c.outcome == "waiting"
        self.sync(lambda c: c.execute(update(delivery).where(waits).values(next_attempt=past)))
        if breaker:
            closed = destination.c.breaker_until.is_not(None)
            self.sync(lambda c: c.execute(update(destination).where(closed).values(breaker_until=past)))


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
async def lane(tmp_path: Path) -> AsyncIterator[Lane]:
    """A lane that is closed in the end."""
    made = Lane(tmp_path)
    yield made
    made.ledger.close()
    made.spool.close()


# One outcome per instance


async def test_windows_are_marked_before_they_are_sent_and_bounded(lane: Lane) -> None:
    """At most sixteen are on the wire, and the ledger knew it before the first byte left (promise 2, R26)."""
    lane.fill(40)

    def check(window: Sequence[Queued]) -> None:
        marked = lane.read(lambda c: set(c.scalars(select(delivery.c.id).where(delivery.c.sending))))
        assert marked == {one.key for one in window}
        assert all(one.data_set.start % 100 == 40 for one in window)

    lane.scu.meanwhile = check
    assert await lane.store.look("pacs") is None
    assert lane.scu.windows == [16, 16, 8]
    assert set(lane.parts()) == {("delivered", None)}
    assert len(lane.scu.lines) == 1
    assert lane.scu.lines[0].released
    assert lane.scu.asked == 0  # a destination that is well is not asked first


async def test_several_associations_share_the_window(tmp_path: Path) -> None:
    """What may be in doubt after a kill stays one window, however many associations there are (promise 2)."""
    lane = Lane(tmp_path, associations=4)
    lane.fill(64)
    sending: list[int] = []
    lane.scu.meanwhile = lambda _: sending.append(
        len(lane.read(lambda c: c.scalars(select(delivery.c.id).where(delivery.c.sending)).all()))  # type: ignore[arg-type]
    )
    await lane.store.look("pacs")
    assert set(lane.parts()) == {("delivered", None)}
    assert max(sending) <= storing.WINDOW
    assert sum(lane.scu.windows) == 64
    lane.ledger.close()
    lane.spool.close()


async def test_big_instances_close_a_window_early(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window is some hundred milliseconds of network, so a big study commits as it goes."""
    monkeypatch.setattr(storing, "WINDOW_BYTES", 100)
    lane.fill(5)  # sixty bytes each
    await lane.store.look("pacs")
    assert lane.scu.windows == [2, 2, 1]


TABLE: list[tuple[Answer, tuple[str, str | None]]] = [
    (0x0000, ("delivered", None)),
    (0xB000, ("delivered", "coerced")),
    (0x0111, ("held", "duplicate")),
    (0xA700, ("waiting", "out-of-resources")),
    (0xA900, ("failed", "class-mismatch")),
    (0xC001, ("waiting", "not-understood")),
    (0x0122, ("failed", "class-refused")),
    (0x1234, ("waiting", "status-unknown")),
    (0xFF00, ("waiting", "status-unknown")),
    ("context-refused", ("failed", "context-refused")),
    ("context-unavailable", ("waiting", "context-unavailable")),
    ("content-missing", ("failed", "content-missing")),
    (None, ("waiting", "in-doubt")),
]


@pytest.mark.parametrize(("answer", "expected"), TABLE)
async def test_each_answer_has_its_outcome_and_only_good_ones_deliver(
    lane: Lane, answer: Answer, expected: tuple[str, str | None]
) -> None:
    """The k-th instance gets what was said of it, the others theirs (R12, R14)."""
    lane.fill(3)
    lane.scu.answers = [0, answer, 0]
    again = await lane.store.look("pacs")
    assert lane.parts() == [("delivered", None), expected, ("delivered", None)]
    assert (again is not None) == (expected[0] == "waiting")
    assert again is None or timedelta(seconds=15) < again - now() < timedelta(seconds=37)
    assert lane.read(inventory.tickets_missing) == []


async def test_what_the_pacs_says_to_have_already_is_delivered_where_our_record_agrees(lane: Lane) -> None:
    """The same content was stored there, or a send was in doubt; another content under its UID is a person's (R12)."""
    lane.sync(lambda c: queue(c, "in-1", instance(1, uid="same", content="one"), at=now()))
    await lane.store.look("pacs")
    lane.scu.always = 0x0111
    lane.sync(lambda c: queue(c, "in-2", instance(1, uid="same", content="one"), at=now()))
    await lane.store.look("pacs")
    lane.sync(lambda c: verbs.retry(c, "in-1", now(), "anna", force=True))
    await lane.store.look("pacs")
    assert lane.parts("in-1") == lane.parts("in-2") == [("delivered", "duplicate")]
    lane.sync(lambda c: queue(c, "in-3", instance(1, uid="same", content="other"), at=now()))
    lane.sync(lambda c: verbs.retry(c, "in-3", now(), "anna", force=True))
    lane.fill(2, "in-4")
    lane.scu.answers = [0x0111, 0x0111, None]
    await lane.store.look("pacs")
    lane.make_due()
    await lane.store.look("pacs")
    assert lane.parts("in-3") == [("held", "duplicate")]
    assert lane.parts("in-4") == [("held", "duplicate"), ("delivered", "duplicate")]
    assert lane.read(alarms) == {("held", "in-3"), ("held", "in-4")}


async def test_a_refused_association_before_success_never_delivers(lane: Lane) -> None:
    """Whatever is not an answer about the instance is none (R12)."""
    lane.fill(1)
    lane.scu.answers = ["context-not-proposed"]
    await lane.store.look("pacs")
    assert lane.parts() == [("waiting", "context-not-proposed")]


async def test_more_classes_than_one_association_carries_are_split(lane: Lane) -> None:
    """Two hundred presentation contexts go over two associations, at most 128 in each (R19)."""
    many = [replace(instance(n), sop_class=f"1.2.840.{n}") for n in range(200)]
    lane.sync(lambda c: queue(c, "in-1", *many))
    await lane.store.look("pacs")
    assert [len(one) for one in lane.scu.proposed] == [128, 72]
    assert set(lane.parts()) == {("delivered", None)}


async def test_a_fault_of_ours_while_sending_is_a_doubt_and_ends_the_association(lane: Lane) -> None:
    """Nobody knows what the peer has: counted as unknown, never as delivered (R12, R13)."""
    lane.fill(2)

    def fail(_: Sequence[Queued]) -> None:
        raise RuntimeError("bug")

    lane.scu.meanwhile = fail
    await lane.store.look("pacs")
    assert lane.parts() == [("waiting", "in-doubt")] * 2
    assert lane.scu.lines[0].aborted


@pytest.mark.parametrize(
    "wrong",
    [{"transfer_syntax": ""}, {"sop_class": "1.2.ü"}, {"sop_class": "1" * 65}, {"sop_instance": "1.2.ü"}],
    ids=["no-syntax", "class", "long", "instance"],
)
async def test_an_instance_that_no_request_can_name_fails_alone(lane: Lane, wrong: dict[str, str]) -> None:
    """The reader held it and a person released it: it must not keep all others of its destination back (R14)."""
    open_ = lane.scu.open

    def negotiate(entity: ApplicationEntity, proposed: Sequence[contexts.Context]) -> Line:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _request(Peer("PACS", "127.0.0.1", 11112, "GW", 5), proposed)
        return open_(entity, proposed)

    def encode(window: Sequence[Queued]) -> None:
        for one in window:
            dimse.store_request(1, one.sop_class, one.sop_instance)

    lane.scu.open, lane.scu.meanwhile = negotiate, encode  # type: ignore[method-assign]
    bad = replace(instance(2, uid="in-1.2", held="invalid-uid"), **wrong)
    lane.sync(lambda c: queue(c, "in-1", instance(1, uid="in-1.1"), bad, instance(3, uid="in-1.3"), at=now()))
    lane.sync(lambda c: verbs.release(c, "in-1", now(), "anna"))
    assert await lane.store.look("pacs") is None
    assert lane.parts() == [("delivered", None), ("failed", "invalid-uid"), ("delivered", None)]
    assert lane.condition().trouble is None
    assert lane.read(alarms) == {("failed", "in-1")}


# Dropped associations, breaker, probe


async def test_what_was_not_sent_when_an_association_dropped_goes_on(lane: Lane) -> None:
    """Only the one on the wire is in doubt; those behind it are sent at once on a new association (R14)."""
    lane.fill(5)
    lane.scu.answers = [0, None]
    await lane.store.look("pacs")
    assert lane.parts() == [("delivered", None), ("waiting", "in-doubt"), *[("delivered", None)] * 3]
    assert len(lane.scu.lines) == 2
    rows = lane.read(lambda c: [tuple(r) for r in c.execute(select(delivery.c.sends, delivery.c.sends_unknown))])
    assert rows == [(1, 0), (1, 1), (1, 0), (1, 0), (1, 0)]


async def test_a_destination_that_drops_twice_without_an_answer_is_left_alone(lane: Lane) -> None:
    """Two drops open the breaker: what was not sent is as before and waits behind it (R16)."""
    lane.fill(5)
    lane.scu.answers = ["drop", None]
    lane.scu.echoes = ["no answer to C-ECHO"]
    again = await lane.store.look("pacs")
    assert again == lane.condition().breaker_until
    assert lane.condition().trouble == "it drops its associations"
    assert lane.parts() == [("waiting", "in-doubt"), *[("waiting", None)] * 4]
    assert await lane.store.look("pacs") == again  # nothing before that
    assert len(lane.scu.lines) == 2


async def test_a_rejection_for_good_is_told_at_once_and_a_passing_one_later(lane: Lane) -> None:
    """A person hears at once of what will not pass by itself (NET-5, R33)."""
    lane.fill(1)
    lane.scu.opening = [AssociationRejectedError("busy", permanent=False, reason="congestion")]
    await lane.store.look("pacs")
    assert lane.read(alarms) == set()
    lane.make_due()
    lane.scu.opening = [AssociationRejectedError("not recognised", permanent=True, reason="called AE title")]
    await lane.store.look("pacs")
    assert lane.read(alarms) == {("destination-down", "pacs")}
    assert lane.parts() == [("waiting", None)]
    assert lane.condition().failures == 2


async def test_behind_a_breaker_a_c_echo_goes_first_and_images_are_never_the_probe(lane: Lane) -> None:
    """While the probe fails nothing is sent; when it answers all is, and the notice closes (R15, R16, R33)."""
    lane.fill(3)
    lane.scu.opening = [PeerUnreachableError("no answer")]
    await lane.store.look("pacs")
    since = now() - timedelta(minutes=3)
    lane.sync(lambda c: c.execute(update(destination).values(down_since=since)))
    lane.scu.echoes = ["still no answer"]
    lane.make_due()
    assert await lane.store.look("pacs") == lane.condition().breaker_until
    assert (lane.scu.asked, lane.scu.wire) == (1, [])
    assert lane.read(alarms) == {("destination-down", "pacs")}
    lane.make_due()
    assert await lane.store.look("pacs") is None
    assert lane.scu.asked == 2
    assert set(lane.parts()) == {("delivered", None)}
    assert lane.condition() == deliveries.Condition("pacs")
    assert lane.read(alarms) == set()


async def test_a_send_in_doubt_is_repeated_only_after_an_echo_and_held_in_the_end(lane: Lane) -> None:
    """Unknown sends are counted, each repetition is asked for first, the last one is a person's (promise 2)."""
    lane.fill(1)
    lane.scu.always = None
    for sends in range(1, 5):
        await lane.store.look("pacs")
        assert len(lane.scu.wire) == sends
        assert lane.scu.asked == sends - 1
        lane.make_due()
    assert lane.parts() == [("held", "in-doubt")]
    assert lane.read(alarms) == {("held", "in-1")}
    await lane.store.look("pacs")
    assert len(lane.scu.wire) == 4


async def test_a_doubt_that_comes_due_during_a_long_run_is_asked_for_too(lane: Lane) -> None:
    """Not only the start of a run asks: images are never the probe (promise 2)."""
    lane.fill(1)
    lane.fill(1, "in-2")
    lane.scu.answers = [None]

    def later(_: Sequence[Queued]) -> None:
        if lane.scu.wire:
            lane.make_due()  # while the second is sent, the first comes due
            lane.scu.meanwhile = lambda _: None

    lane.scu.meanwhile = later
    await lane.store.look("pacs")
    assert lane.scu.wire == ["in-1.1", "in-2.1", "in-1.1"]
    assert lane.scu.asked == 1
    assert lane.parts() == [("delivered", None)]


@pytest.mark.parametrize("fault", [ValueError("SECRET"), RuntimeError("can't start new thread")])
async def test_a_fault_of_ours_before_sending_is_told_and_never_spins(lane: Lane, fault: Exception) -> None:
    """An association that cannot be asked for, or an echo that fails in our own code: breaker and notice (R17)."""
    lane.fill(1)
    lane.scu.opening = [fault]
    assert await lane.store.look("pacs") is not None
    assert lane.read(alarms) == {("destination-down", "pacs")}
    assert lane.condition().trouble == f"the gateway failed to reach it: {type(fault).__name__}"
    lane.make_due()
    lane.scu.echoes = [fault]
    assert await lane.store.look("pacs") is not None
    assert lane.condition().failures == 2


async def test_a_destination_that_refuses_everything_is_left_alone(lane: Lane) -> None:
    """Four of four refused for now: its trouble, not theirs (R16)."""
    lane.fill(20)
    lane.scu.always = 0xA700
    await lane.store.look("pacs")
    assert lane.condition().trouble == "it refuses everything for now: out-of-resources"
    assert len(lane.scu.wire) == 16  # one window, no more
    assert lane.parts()[16:] == [("waiting", None)] * 4


async def test_small_windows_do_not_hide_that_a_destination_refuses_everything(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Big instances, or many associations, make windows of fewer than four: they count together (R16)."""
    monkeypatch.setattr(storing, "WINDOW_BYTES", 1)
    lane.fill(20)
    lane.scu.answers = [0xA700] * 3 + [0] + [0xA700] * 16
    await lane.store.look("pacs")
    assert lane.condition().trouble == "it refuses everything for now: out-of-resources"
    assert len(lane.scu.wire) == 8


async def test_a_destination_that_does_not_know_us_keeps_the_queue_and_a_person_is_told(lane: Lane) -> None:
    """Not authorised: the destination refuses us, not the instance (PS3.7 Annex C)."""
    lane.fill(2)
    lane.scu.always = 0x0124
    await lane.store.look("pacs")
    assert lane.parts() == [("waiting", "not-authorised")] * 2
    assert lane.read(alarms) == {("destination-down", "pacs")}


async def test_a_refused_context_shows_that_the_destination_is_back(lane: Lane) -> None:
    """It answered, so its notice does not stay open for ever (R33)."""
    lane.fill(1)
    lane.scu.opening = [AssociationRejectedError("no", permanent=True, reason="x")]
    await lane.store.look("pacs")
    lane.make_due()
    lane.scu.always = "context-refused"
    await lane.store.look("pacs")
    assert lane.parts() == [("failed", "context-refused")]
    assert lane.read(alarms) == {("failed", "in-1")}


async def test_an_outage_ends_also_when_nothing_waits_any_more(lane: Lane) -> None:
    """What waited was dropped by a person; the probe closes the notice when the destination is back (R33)."""
    lane.fill(1)
    lane.scu.opening = [AssociationRejectedError("no", permanent=True, reason="x")]
    await lane.store.look("pacs")
    lane.sync(lambda c: verbs.drop(c, "in-1", now(), "anna"))
    lane.scu.echoes = ["not yet"]
    lane.make_due()
    assert await lane.store.look("pacs") is not None
    assert lane.read(alarms) == {("destination-down", "pacs")}
    lane.make_due()
    assert await lane.store.look("pacs") is None
    assert lane.read(alarms) == set()


async def test_an_echo_alone_closes_no_notice_while_something_waits(lane: Lane) -> None:
    """A destination that answers an echo and refuses images would open and close it for ever (R33)."""
    lane.fill(1)
    lane.scu.always = 0x0124
    await lane.store.look("pacs")
    lane.sync(lambda c: c.execute(update(destination).values(breaker_until=now() - timedelta(seconds=1))))
    await lane.store.look("pacs")
    assert lane.scu.asked == 1
    assert lane.read(alarms) == {("destination-down", "pacs")}


async def test_a_breaker_of_a_clock_that_ran_ahead_is_not_waited_for(lane: Lane) -> None:
    """A day in the future is no back-off (R29)."""
    lane.fill(1)
    tomorrow = now() + timedelta(days=1)
    lane.sync(lambda c: deliveries.trip(c, deliveries.Condition("pacs"), "x", tomorrow, now(), urgent=False))
    lane.sync(lambda c: c.execute(update(delivery).values(next_attempt=tomorrow)))
    assert await lane.store.look("pacs") is None
    assert lane.parts() == [("delivered", None)]


# People, stops and restarts


async def test_what_a_person_held_or_dropped_meanwhile_is_not_sent(lane: Lane) -> None:
    """Each window is marked anew: a word that comes before its mark counts (R34)."""
    for number in range(1, 4):
        lane.fill(16, f"in-{number}")

    def stop(_: Sequence[Queued]) -> None:
        lane.scu.meanwhile = lambda _: None
        lane.sync(lambda c: verbs.hold(c, "in-2", now(), "anna"))
        lane.sync(lambda c: verbs.drop(c, "in-3", now(), "anna"))

    lane.scu.meanwhile = stop
    await lane.store.look("pacs")
    assert lane.scu.wire == [f"in-1.{n}" for n in range(1, 17)]
    assert set(lane.parts("in-2")) == {("held", "by-operator")}
    assert set(lane.parts("in-3")) == {("refused", "dropped")}


async def test_what_a_person_held_and_released_on_the_wire_has_the_answer_it_got(lane: Lane) -> None:
    """A release lets go on all that is held: what is stored meanwhile neither stays held nor goes a second time."""
    lane.fill(20)

    def reconsider(_: Sequence[Queued]) -> None:
        lane.scu.meanwhile = lambda _: None
        lane.sync(lambda c: verbs.hold(c, "in-1", now(), "anna"))
        lane.sync(lambda c: verbs.release(c, "in-1", now(), "anna"))

    lane.scu.meanwhile = reconsider
    await lane.store.look("pacs")
    assert set(lane.parts()) == {("delivered", None)}
    assert len(lane.scu.wire) == len(set(lane.scu.wire)) == 20
    assert lane.read(alarms) == set()


async def test_a_paused_destination_gets_nothing_until_it_is_resumed(lane: Lane) -> None:
    """Neither at the start of a run nor in its middle."""
    lane.fill(1)
    lane.sync(lambda c: deliveries.pause(c, "pacs", True, now(), "anna"))
    assert await lane.store.look("pacs") is None
    assert lane.scu.lines == []
    lane.sync(lambda c: deliveries.pause(c, "pacs", False, now(), "anna"))
    await lane.store.look("pacs")
    assert lane.parts() == [("delivered", None)]


@pytest.mark.parametrize("what", ["pause", "downtime"])
async def test_a_word_to_stop_ends_a_run_before_its_next_association(
    lane: Lane, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also between instances that go alone, and kinds that go over associations of their own."""
    monkeypatch.setattr(storing, "MOST_DROPS", 100)
    many = [replace(instance(n, uid=f"in-2.{n}"), sop_class=f"1.2.840.{n}") for n in range(130)]
    lane.fill(6)
    lane.sync(lambda c: c.execute(update(delivery).values(aborted_at=now())))
    lane.sync(lambda c: queue(c, "in-2", *many, at=now() - timedelta(hours=1)))

    def stop(_: Sequence[Queued]) -> None:
        if len(lane.scu.lines) in {1, 3}:
            if what == "pause":
                lane.sync(lambda c: deliveries.pause(c, "pacs", True, now(), "anna"))
            else:
                away.append(now() + timedelta(hours=1))

    away: list[datetime] = []
    monkeypatch.setattr(storing.downtime, "until", lambda *_: away[-1] if away else None)
    lane.scu.meanwhile = stop
    for lines in (1, 3):
        await lane.store.look("pacs")
        assert len(lane.scu.lines) == lines
        away.clear()
        lane.sync(lambda c: deliveries.pause(c, "pacs", False, now(), "anna"))
    await lane.store.look("pacs")
    assert len(lane.scu.lines) == 2 + 6
    assert set(lane.parts()) | set(lane.parts("in-2")) == {("delivered", None)}


async def test_what_was_on_the_wire_in_a_former_life_is_in_doubt(lane: Lane) -> None:
    """One window, counted as unknown before anything else is done (R26)."""
    lane.fill(20)
    lane.sync(lambda c: deliveries.mark(c, deliveries.due(c, "pacs", now(), 16)))
    await lane.store.look("pacs")
    assert lane.parts().count(("waiting", "in-doubt")) == 16
    assert lane.parts().count(("delivered", None)) == 4
    lane.make_due()
    await lane.store.look("pacs")
    assert lane.scu.asked == 1
    assert set(lane.parts()) == {("delivered", None)}


async def test_after_a_crash_nothing_is_sent_at_once(lane: Lane) -> None:
    """A crash loop does not use up tries (R27)."""
    lane.fill(1)
    lane.store.not_before = now() + timedelta(seconds=3)
    assert await lane.store.look("pacs") == lane.store.not_before
    assert lane.scu.lines == []


async def test_a_destination_that_was_removed_leaves_its_queue_to_a_person(lane: Lane) -> None:
    """What waits is held, and what was on the wire is held as in doubt (SIGHUP, promise 2)."""
    lane.fill(3)
    lane.sync(lambda c: deliveries.mark(c, deliveries.due(c, "pacs", now(), 1)))
    lane.store.reload(lane.configuration.model_copy(update={"ae": {}}))
    assert await lane.store.look("pacs") is None
    assert lane.parts() == [("held", "in-doubt"), *[("held", "destination-removed")] * 2]
    assert lane.scu.lines == []


async def test_a_reload_reaches_a_lane_that_is_busy(lane: Lane) -> None:
    """A wrong address gets no more than what is on the wire, however much waits for it (SIGHUP)."""
    lane.fill(64)
    hosts: list[str] = []
    open_ = lane.scu.open

    def note(entity: ApplicationEntity, proposed: Sequence[contexts.Context]) -> Line:
        hosts.append(entity.host)
        return open_(entity, proposed)

    def correct(_: Sequence[Queued]) -> None:
        lane.scu.meanwhile = lambda _: None
        change_entity(lane, host="192.0.2.9")

    lane.scu.open, lane.scu.meanwhile = note, correct  # type: ignore[method-assign]
    again = await lane.store.look("pacs")
    assert again is not None
    assert again <= now()
    assert hosts == ["127.0.0.1"]
    assert len(lane.scu.wire) == storing.WINDOW
    await lane.store.look("pacs")
    assert hosts == ["127.0.0.1", "192.0.2.9"]
    assert set(lane.parts()) == {("delivered", None)}


async def test_a_stop_finishes_the_window_and_begins_no_other(lane: Lane) -> None:
    """What is on the wire gets its outcome; the rest waits for the next life (R31)."""
    lane.fill(40)
    lane.scu.meanwhile = lambda _: lane.store.stop()
    await lane.store.look("pacs")
    assert lane.scu.windows == [16]
    assert lane.parts().count(("delivered", None)) == 16
    assert lane.scu.lines[0].released
    assert await lane.store.look("pacs") is None


async def test_an_abort_cuts_what_is_on_the_wire(lane: Lane) -> None:
    """When the time to stop is over: the association ends, and its window is in doubt (R31)."""
    lane.fill(1)
    started, cut = threading.Event(), threading.Event()

    def hang(_: Sequence[Queued]) -> None:
        started.set()
        cut.wait(10)
        raise ConnectionAbortedError

    lane.scu.meanwhile = hang
    look = asyncio.create_task(lane.store.look("pacs"))
    await asyncio.to_thread(started.wait, 10)
    lane.store.stop()
    lane.store.abort()
    assert lane.scu.lines[0].aborted
    cut.set()
    await look
    assert lane.parts() == [("waiting", "in-doubt")]


async def test_a_stop_waits_for_nobody_who_was_only_asked(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that never answers our request keeps nobody, and nothing is in doubt: nothing was sent (R31)."""
    hole, asked = threading.Event(), threading.Semaphore(0)

    def hang(*_: object) -> None:
        asked.release()
        hole.wait(10)

    monkeypatch.setattr(lane.scu, "open", hang)
    monkeypatch.setattr(lane.scu, "echo", hang)
    lane.fill(1)
    for unknown in (False, True):
        lane.sync(lambda c, unknown=unknown: c.execute(update(delivery).values(sends_unknown=int(unknown))))
        lane.store._asking.stopping = False
        look = asyncio.create_task(lane.store.look("pacs"))
        await asyncio.to_thread(asked.acquire, timeout=10)
        lane.store.stop()
        lane.store.stop()
        await asyncio.wait_for(look, 5)
        assert lane.parts() == [("waiting", None)]
        assert lane.read(lambda c: c.scalars(select(delivery.c.sends)).all()) == [0]
    hole.set()


async def test_an_association_that_opens_into_a_stop_sends_nothing(lane: Lane) -> None:
    """No new work at once: what waits keeps waiting, and the peer is released in good order (R31)."""
    lane.fill(1)
    opened = lane.scu.open
    loop = asyncio.get_running_loop()

    def open_(entity: ApplicationEntity, proposed: Sequence[contexts.Context]) -> Line:
        line = opened(entity, proposed)
        loop.call_soon_threadsafe(setattr, lane.store._asking, "stopping", True)
        return line

    lane.scu.open = open_  # type: ignore[method-assign]
    await lane.store.look("pacs")
    assert lane.scu.windows == []
    assert lane.scu.lines[0].released
    assert lane.parts() == [("waiting", None)]


async def test_an_outcome_the_ledger_does_not_take_is_offered_until_it_does(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the peer said is not lost to a full disk, and no image is sent twice for it (R5, R12)."""
    monkeypatch.setattr("gateway.ledger.ledger.LEDGER_PAUSE", 0.01)
    lane.fill(2)
    fragile(monkeypatch, ["mark", "settle"], times=3)
    await lane.store.look("pacs")
    assert lane.parts() == [("delivered", None)] * 2
    assert len(lane.scu.wire) == 2


async def test_a_question_the_ledger_does_not_answer_makes_no_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came meanwhile is looked for later: each answer gets on record, and nothing unsent is marked (promise 2)."""
    lane = Lane(tmp_path, associations=2)
    monkeypatch.setattr(storing, "REFILL", 0)
    for number in range(4):
        many = [replace(instance(n, uid=f"{number}.{n}"), study=f"1.2.{number}") for n in range(16)]
        lane.sync(lambda c, k=f"in-{number}", m=many: queue(c, k, *m, at=now()))  # type: ignore[misc]
    read, windows = lane.ledger.read, iter(range(3))

    async def fail(question: Callable[[Connection], object]) -> object:
        if lane.scu.wire and next(windows, None) is not None:
            raise LedgerError("it hangs")
        return await read(question)

    monkeypatch.setattr(lane.ledger, "read", fail)
    await lane.store.look("pacs")
    rows = lane.read(lambda c: [tuple(r) for r in c.execute(select(delivery.c.sends, delivery.c.sends_unknown))])
    assert rows == [(1, 0)] * 64
    assert {part for number in range(4) for part in lane.parts(f"in-{number}")} == {("delivered", None)}
    lane.ledger.close()
    lane.spool.close()


async def test_a_ledger_that_stays_away_does_not_keep_the_gateway_from_stopping(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the window is in doubt, which the marks on disk say (R31, promise 2)."""
    monkeypatch.setattr("gateway.ledger.ledger.LEDGER_PAUSE", 0.01)
    lane.fill(2)
    fragile(monkeypatch, ["settle"], times=1000)
    lane.scu.meanwhile = lambda _: lane.store.stop()
    with pytest.raises(ExceptionGroup):
        await asyncio.wait_for(lane.store.look("pacs"), 10)
    assert lane.read(lambda c: c.scalars(select(delivery.c.sending)).all()) == [True, True]


def fragile(monkeypatch: pytest.MonkeyPatch, names: Iterable[str], times: int) -> None:
    """Let some changes fail so many times."""
    for name in names:
        real, left = getattr(deliveries, name), [times]

        def change(*arguments: object, real: Callable[..., object] = real, left: list[int] = left) -> object:
            if left[0]:
                left[0] -= 1
                raise LedgerError("the ledger did not take a change: OperationalError")
            return real(*arguments)

        monkeypatch.setattr(deliveries, name, change)


async def test_a_black_hole_delays_no_other_lane(lane: Lane) -> None:
    """Every association has a thread of its own: while one hangs, another delivers (R15)."""
    lane.fill(1, "in-1", to=("other",))
    lane.fill(30, "in-2", to=("pacs",))
    hole, inside, opened = threading.Event(), threading.Event(), lane.scu.open

    def open_(entity: ApplicationEntity, proposed: Sequence[contexts.Context]) -> Line:
        if entity.title == "OTHER":
            inside.set()
            hole.wait(10)
            raise PeerUnreachableError("no answer")
        return opened(entity, proposed)

    lane.scu.open = open_  # type: ignore[method-assign]
    stuck = asyncio.create_task(lane.store.look("other"))
    await asyncio.to_thread(inside.wait, 10)
    await asyncio.wait_for(lane.store.look("pacs"), 10)
    assert set(lane.parts("in-2")) == {("delivered", None)}
    assert not stuck.done()
    hole.set()
    assert await stuck is not None
    assert lane.condition("other").trouble == "no answer"


async def test_the_ticket_comes_back_when_the_next_is_due(lane: Lane) -> None:
    """The lane says when to look again, and never forgets what waits (R17)."""
    assert await lane.store.look("pacs") is None
    lane.fill(1)
    lane.sync(lambda c: c.execute(update(delivery).values(next_attempt=now() + timedelta(minutes=5))))
    again = await lane.store.look("pacs")
    assert again is not None
    assert timedelta(minutes=4) < again - now() <= timedelta(minutes=5)
    assert lane.scu.lines == []
    assert lane.read(lambda c: outcome(c, "in-1")) == ("waiting", None)


# Lanes: fairness, refills, downtime, idle destinations


async def test_a_study_is_kept_in_order_however_many_associations_there_are(tmp_path: Path) -> None:
    """One association at a time has a study, series by series and in the order in which it came."""
    lane = Lane(tmp_path, associations=3)
    for study in ("a", "b", "c"):
        several = [
            replace(instance(n, uid=f"{study}.{n}"), study=study, series=f"{study}.{n % 2}") for n in range(1, 31)
        ]
        lane.sync(lambda c, study=study, several=several: queue(c, f"in-{study}", *several, at=now()))  # type: ignore[misc]
    await lane.store.look("pacs")
    for study in ("a", "b", "c"):
        mine = [int(uid.split(".")[1]) for uid in lane.scu.wire if uid.startswith(study)]
        assert mine == [*range(1, 31, 2), *range(2, 31, 2)]
    lane.ledger.close()
    lane.spool.close()


async def test_a_small_mail_does_not_wait_for_a_big_study_before_it(lane: Lane) -> None:
    """Studies go by turns: two thousand images hold up a single one by a few (fairness)."""
    lane.fill(2000, "in-1")
    small = replace(instance(1, uid="small"), study="9.9")
    lane.sync(lambda c: queue(c, "in-2", small, at=now()))
    await lane.store.look("pacs")
    assert lane.scu.wire.index("small") <= 16
    assert len(lane.scu.wire) == 2001


async def test_urgent_mail_that_comes_during_a_run_goes_next(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog that is being sent is refilled: nobody urgent waits for its end."""
    monkeypatch.setattr(storing, "REFILL", 0.0)
    lane.fill(500, "in-1")

    def arrive(_: Sequence[Queued]) -> None:
        lane.scu.meanwhile = lambda _: None
        urgent = replace(instance(1, uid="urgent"), study="9.9")
        lane.sync(lambda c: queue(c, "in-2", urgent, at=now()))
        lane.sync(lambda c: c.execute(update(message).where(message.c.id == "in-2").values(urgent=True)))

    lane.scu.meanwhile = arrive
    await lane.store.look("pacs")
    assert lane.scu.wire.index("urgent") <= 48
    assert len(lane.scu.lines) == 1


async def test_urgent_mail_of_another_kind_ends_the_run_for_a_new_association(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its presentation context was not proposed: it is not made to wait for that."""
    monkeypatch.setattr(storing, "REFILL", 0.0)
    lane.fill(500, "in-1")

    def arrive(_: Sequence[Queued]) -> None:
        lane.scu.meanwhile = lambda _: None
        urgent = replace(instance(1, uid="urgent"), study="9.9", sop_class="1.2.840.9")
        lane.sync(lambda c: queue(c, "in-2", urgent, at=now()))
        lane.sync(lambda c: c.execute(update(message).where(message.c.id == "in-2").values(urgent=True)))

    lane.scu.meanwhile = arrive
    await lane.store.look("pacs")
    assert lane.scu.wire.index("urgent") <= 48
    assert len(lane.scu.lines) >= 2
    assert len(lane.scu.wire) == 501


def change_entity(lane: Lane, **changes: object) -> None:
    """Configure the destinations otherwise."""
    entities = {name: one.model_copy(update=changes) for name, one in lane.configuration.ae.items()}
    lane.configuration = lane.configuration.model_copy(update={"ae": entities})
    lane.store.reload(lane.configuration)


ALWAYS = (Downtime(frozenset(range(7)), time(0), time(0)),)


async def test_in_a_downtime_nothing_is_tried_and_a_person_may_force_it(lane: Lane) -> None:
    """Neither image nor echo nor notice; `retry --force` goes over it."""
    lane.fill(1, "in-1")
    lane.fill(1, "in-2")
    change_entity(lane, downtime=ALWAYS)
    again = await lane.store.look("pacs")
    assert again is not None
    assert again > now()
    await lane.store.ask_idle()
    assert (lane.scu.lines, lane.scu.asked) == ([], 0)
    lane.sync(lambda c: verbs.retry(c, "in-2", now(), "anna", force=True))
    lane.scu.opening = [PeerUnreachableError("no answer")]
    await lane.store.look("pacs")
    assert lane.condition().trouble is None
    await lane.store.look("pacs")
    assert lane.scu.wire == ["in-2.1"]
    change_entity(lane, downtime=())
    await lane.store.look("pacs")
    assert lane.scu.wire == ["in-2.1", "in-1.1"]


async def test_a_destination_that_is_idle_is_asked_now_and_then(lane: Lane) -> None:
    """Trouble is known before the first image comes, and passes without one (NET-20, R33)."""
    await lane.store.ask_idle()
    assert lane.scu.asked == 2
    await lane.store.ask_idle()
    assert lane.scu.asked == 2  # they answered a moment ago
    lane.sync(lambda c: c.execute(update(destination).values(answered_at=now() - timedelta(minutes=6))))
    lane.sync(lambda c: deliveries.pause(c, "other", True, now(), "anna"))
    lane.scu.echoes = ["no answer"]
    await lane.store.ask_idle()
    assert lane.scu.asked == 3
    assert lane.condition().trouble == "no answer"
    lane.make_due()
    assert await lane.store.look("pacs") is None
    assert lane.condition().trouble is None


# Instances that a peer cannot bear


async def test_an_instance_that_makes_the_peer_abort_is_tried_once_alone_and_then_fails(lane: Lane) -> None:
    """The others go on at once; it goes last, alone, after an echo; a person is told (R14)."""
    lane.fill(20)
    bad = {"in-1.3", "in-1.4"}
    lane.scu.answer = lambda queued: None if queued.sop_instance in bad else 0  # type: ignore[method-assign,assignment]
    await lane.store.look("pacs")
    assert lane.parts()[2:4] == [("waiting", "in-doubt")] * 2
    assert lane.parts().count(("delivered", None)) == 18
    lane.sync(lambda c: queue(c, "in-2", replace(instance(1, uid="other"), study="9.9"), at=now()))
    lane.make_due()
    lane.scu.wire.clear()
    await lane.store.look("pacs")
    assert lane.scu.wire == ["other", "in-1.3", "in-1.4"]
    assert lane.scu.windows[-2:] == [1, 1]
    assert lane.parts()[2:4] == [("failed", "peer-aborts")] * 2
    rows = lane.read(lambda c: [tuple(r) for r in c.execute(select(delivery.c.sends, delivery.c.sends_unknown))])
    assert rows[2] == (2, 2)  # type: ignore[index]


async def test_a_peer_that_aborts_everything_fails_nothing(lane: Lane) -> None:
    """Without any answer in between nobody knows whose fault it is: doubt, counted and held (promise 2)."""
    lane.fill(3)
    lane.scu.always = None
    for _ in range(6):
        await lane.store.look("pacs")
        lane.make_due()
    assert lane.parts() == [("held", "in-doubt")] * 3
    assert len(lane.scu.wire) == 12


async def test_a_peer_that_keeps_aborting_is_left_alone(lane: Lane) -> None:
    """It answers every echo, and takes no image: five associations, then the breaker (R16)."""
    for number in range(10):
        lane.fill(1, f"in-{number}")
    lane.scu.always = None
    await lane.store.look("pacs")
    assert len(lane.scu.wire) == storing.MOST_DROPS
    assert lane.condition().trouble == "it drops its associations"


async def test_each_kind_of_answer_has_its_own_bound(lane: Lane) -> None:
    """Four times a full disk use up none of the five tries of "cannot understand"."""
    lane.fill(1)
    lane.scu.answers = [*[0xA700] * 4, *[0xC000] * 4, 0]
    for _ in range(8):
        await lane.store.look("pacs")
        lane.make_due()
    assert lane.parts() == [("waiting", "not-understood")]
    await lane.store.look("pacs")
    assert lane.parts() == [("delivered", None)]


# Proof of delivery


async def test_what_c_find_shows_is_delivered_and_nothing_before(lane: Lane) -> None:
    """A success status alone is no proof here (R18)."""
    change_entity(lane, confirm="find")
    lane.fill(2)
    lane.scu.always = 0xB000
    again = await lane.store.look("pacs")
    assert lane.parts() == [("waiting", "awaiting-confirmation")] * 2
    assert again is not None
    assert again - now() < timedelta(seconds=6)
    lane.scu.has = {"in-1.1": Presence.PRESENT, "in-1.2": Presence.ABSENT}
    lane.make_due()
    await lane.store.look("pacs")
    assert lane.parts() == [("delivered", "coerced"), ("waiting", "awaiting-confirmation")]
    assert len(lane.scu.wire) == 2
    assert lane.read(inventory.tickets_missing) == []


async def test_a_lying_pacs_gets_it_again_and_then_a_person_is_told(lane: Lane) -> None:
    """Success, and then absent: sent again when the time for the proof is over, bounded, never delivered (R18)."""
    change_entity(lane, confirm="find", confirm_within=timedelta(seconds=0))
    lane.fill(1)
    lane.scu.has = {"in-1.1": Presence.ABSENT}
    for _ in range(8):
        await lane.store.look("pacs")
        lane.make_due()
    assert len(lane.scu.wire) == 3
    assert lane.parts() == [("held", "not-confirmed")]
    assert lane.read(alarms) == {("held", "in-1")}
    lane.scu.has = {"in-1.1": Presence.PRESENT}
    lane.sync(lambda c: verbs.release(c, "in-1", now(), "anna"))
    await lane.store.look("pacs")
    lane.make_due()
    await lane.store.look("pacs")
    assert lane.parts() == [("delivered", None)]


async def test_a_pacs_that_cannot_be_asked_delivers_nothing(lane: Lane) -> None:
    """No answer to C-FIND in the whole time: held, because nobody knows (R12)."""
    change_entity(lane, confirm="find", confirm_within=timedelta(seconds=0))
    lane.fill(1)
    await lane.store.look("pacs")
    lane.make_due()
    lane.scu.finding = [PeerUnreachableError("no answer")]
    assert await lane.store.look("pacs") == lane.condition().breaker_until
    lane.make_due()
    await lane.store.look("pacs")
    assert lane.parts() == [("held", "not-confirmed")]
    assert len(lane.scu.wire) == 1


async def test_a_send_in_doubt_is_looked_for_before_it_is_repeated(lane: Lane) -> None:
    """What C-FIND shows is not sent again; what it does not show is (promise 2)."""
    change_entity(lane, confirm="find")
    lane.fill(2)
    lane.scu.answers = [None, None]
    await lane.store.look("pacs")
    lane.make_due()
    lane.scu.has = {"in-1.1": Presence.PRESENT, "in-1.2": Presence.ABSENT}
    await lane.store.look("pacs")
    assert lane.parts() == [("delivered", "found"), ("waiting", "awaiting-confirmation")]
    assert lane.scu.wire == ["in-1.1", "in-1.2", "in-1.2"]


async def test_what_bears_the_uid_of_another_content_is_not_taken_for_found(lane: Lane) -> None:
    """C-FIND shows the one that was stored before: the one that a person let go instead is sent again (R11, R12)."""
    lane.sync(lambda c: queue(c, "in-1", instance(1, uid="same", content="first"), at=now()))
    await lane.store.look("pacs")
    lane.sync(lambda c: queue(c, "in-2", instance(1, uid="same", content="second"), at=now()))
    assert lane.parts("in-2") == [("held", "reused-uid")]
    lane.sync(lambda c: verbs.retry(c, "in-2", now(), "anna", force=True))
    change_entity(lane, confirm="find")
    lane.scu.has = {"same": Presence.PRESENT}
    lane.scu.answers = [None]
    await lane.store.look("pacs")
    assert lane.parts("in-2") == [("waiting", "in-doubt")]
    lane.make_due()
    await lane.store.look("pacs")
    assert lane.scu.wire == ["same"] * 3
    assert lane.parts("in-2") == [("waiting", "awaiting-confirmation")]


async def test_what_was_stored_by_one_association_is_not_sent_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run takes up what its fall-back contexts can carry; what waits for its proof since then goes no second time."""
    lane = Lane(tmp_path)
    monkeypatch.setattr(storing, "REFILL", 0)

    async def transcode(*_: object) -> Transcoded:
        raise AssertionError

    lane.store = Store(lane.configuration, lane.ledger, lane.spool, lane.scu, lambda: 0.5, transcode)
    change_entity(lane, confirm="find")
    jpeg = "1.2.840.10008.1.2.4.70"
    many = [replace(instance(n, uid=f"in-1.{n}"), sop_class=f"1.2.{n}", transfer_syntax=jpeg) for n in range(43)]
    plain = replace(many[0], sop_instance="in-1.plain", transfer_syntax="1.2.840.10008.1.2.1", data_set_sha256="x")
    lane.sync(lambda c: queue(c, "in-1", *many, plain, at=now()))
    await lane.store.look("pacs")
    assert lane.scu.wire.count("in-1.plain") == 1
    assert len(lane.scu.wire) == 44
    lane.ledger.close()
    lane.spool.close()


async def test_a_known_instance_is_sent_again_or_skipped_where_it_is_shown_to_be(lane: Lane) -> None:
    """Somebody asked for it; the item says what was done (R11)."""
    same = instance(1, uid="same")
    lane.sync(lambda c: queue(c, "in-1", same, at=now()))
    await lane.store.look("pacs")
    lane.sync(lambda c: queue(c, "in-2", same, at=now()))
    await lane.store.look("pacs")
    assert lane.scu.wire == ["same", "same"]
    change_entity(lane, confirm="find")
    lane.scu.has = {"same": Presence.PRESENT}
    lane.sync(lambda c: queue(c, "in-3", same, at=now()))
    await lane.store.look("pacs")
    assert lane.parts("in-3") == [("delivered", "already-there")]
    assert lane.scu.wire == ["same", "same"]
    assert "known" in lane.read(lambda c: stories(c, "in-3"))  # type: ignore[operator]


async def test_commitment_is_asked_for_and_its_report_delivers(lane: Lane) -> None:
    """Also when the gateway was started anew in between: the transaction lies in the ledger (SC-1, SC-3)."""
    change_entity(lane, confirm="commitment")
    lane.fill(3)
    again = await lane.store.look("pacs")
    assert again is not None
    assert lane.parts() == [("waiting", "awaiting-confirmation")] * 3
    ((uid, asked),) = lane.scu.asked_for
    assert asked == ["in-1.1", "in-1.2", "in-1.3"]
    anew = Store(lane.configuration, lane.ledger, lane.spool, lane.scu)
    assert not await anew.report("1.2.3", ["in-1.1"], {})
    assert lane.parts() == [("waiting", "awaiting-confirmation")] * 3
    assert await anew.report(uid, ["in-1.1"], {"in-1.2": 0x0112, "in-1.3": 0x0119})
    assert lane.parts() == [("delivered", None), ("waiting", "not-confirmed"), ("held", "not-confirmed")]
    assert not await anew.report(uid, ["in-1.2", "in-1.3"], {})  # the UID is dead (SC-6)
    await anew.look("pacs")
    assert lane.scu.wire == ["in-1.1", "in-1.2", "in-1.3", "in-1.2"]
    assert len({transaction for transaction, _ in lane.scu.asked_for}) == 2


async def test_a_report_on_the_same_association_is_recorded_at_once(lane: Lane) -> None:
    """It is on disk before the peer is answered (SC-2)."""
    change_entity(lane, confirm="commitment")
    lane.fill(1)
    lane.scu.commitments = [Commitment(0, (Report("", frozenset({"in-1.1"}), {}),))]
    assert await lane.store.look("pacs") is None
    assert lane.parts() == [("delivered", None)]


async def test_a_report_that_forgets_or_postpones_an_instance_is_asked_for_again(lane: Lane) -> None:
    """Neither committed nor failed: another transaction with another UID (SC-5, SC-6)."""
    change_entity(lane, confirm="commitment")
    lane.fill(2)
    await lane.store.look("pacs")
    await lane.store.report(lane.scu.asked_for[0][0], [], {"in-1.2": 0x0213})
    assert lane.parts() == [("waiting", "awaiting-confirmation")] * 2
    lane.make_due()
    await lane.store.look("pacs")
    assert lane.scu.asked_for[1][1] == ["in-1.1", "in-1.2"]
    assert lane.scu.asked_for[1][0] != lane.scu.asked_for[0][0]
    assert len(lane.scu.wire) == 2


async def test_a_refused_commitment_is_told_and_c_find_decides_in_the_end(lane: Lane) -> None:
    """The fall-back when the time is over; a notice meanwhile, which closes with the next good request (SC-7)."""
    change_entity(lane, confirm="commitment")
    lane.fill(1)
    lane.scu.commitments = [Commitment(None, refused="context-refused"), Commitment(0x0211)]
    await lane.store.look("pacs")
    assert lane.read(alarms) == {("commitment-refused", "pacs")}
    lane.make_due()
    await lane.store.look("pacs")
    lane.make_due()
    await lane.store.look("pacs")
    assert lane.read(alarms) == set()
    assert len(lane.scu.asked_for) == 3
    lane.make_due()
    await lane.store.look("pacs")  # asked, not late: looked at again later
    assert len(lane.scu.asked_for) == 3
    change_entity(lane, confirm="commitment", confirm_within=timedelta(seconds=0))
    lane.scu.has = {"in-1.1": Presence.PRESENT}
    lane.make_due()
    assert await lane.store.look("pacs") is None
    assert lane.parts() == [("delivered", None)]


@pytest.mark.parametrize(
    "error", [PeerUnreachableError("no"), AssociationRejectedError("no", permanent=True, reason="x"), ValueError()]
)
async def test_a_commitment_that_could_not_be_asked_for_opens_the_breaker(lane: Lane, error: Exception) -> None:
    """The destination is away: its instances keep waiting for their proof."""
    change_entity(lane, confirm="commitment")
    lane.fill(1)
    lane.scu.commitments = [error]
    assert await lane.store.look("pacs") == lane.condition().breaker_until
    assert lane.parts() == [("waiting", "awaiting-confirmation")]
    lane.make_due()
    await lane.store.look("pacs")
    assert len(lane.scu.wire) == 1


async def test_a_report_that_comes_too_late_ends_what_was_held_for_want_of_it(lane: Lane) -> None:
    """A PACS may answer for it in the night: then nobody has to look, and only a good report says so (SC-3, SC-4)."""
    change_entity(lane, confirm="commitment", confirm_within=timedelta(hours=6))
    lane.fill(3)
    lane.scu.always = 0xB000
    await lane.store.look("pacs")
    ((uid, _),) = lane.scu.asked_for
    lane.sync(lambda c: c.execute(update(delivery).values(stored_at=now() - timedelta(hours=7))))
    lane.make_due()
    await lane.store.look("pacs")
    assert lane.parts() == [("held", "not-confirmed")] * 3
    lane.sync(lambda c: c.execute(update(delivery).where(delivery.c.number == 3).values(code="by-operator")))
    assert await lane.store.report(uid, ["in-1.1", "in-1.3"], {"in-1.2": 0x0110})
    assert lane.parts() == [("delivered", "coerced"), ("held", "not-confirmed"), ("held", "by-operator")]
    assert len(lane.scu.wire) == 3


async def test_when_no_proof_is_asked_for_any_more_what_waits_for_one_is_delivered(lane: Lane) -> None:
    """A person changed the configuration: the success status counts again."""
    change_entity(lane, confirm="find")
    lane.fill(1)
    await lane.store.look("pacs")
    change_entity(lane, confirm="store")
    lane.make_due()
    assert await lane.store.look("pacs") is None
    assert lane.parts() == [("delivered", None)]


# Transcoding


async def test_what_a_peer_refuses_as_it_is_goes_transcoded_and_that_is_on_record(tmp_path: Path) -> None:
    """Explicit before implicit; the original stays what it is; nothing is left in scratch (NET-12, R8)."""
    lane = Lane(tmp_path)
    seen: list[tuple[str, ...]] = []

    async def transcode(source: Span, syntax: str, targets: Sequence[str], out: Path) -> Transcoded:
        seen.append((syntax, *targets))
        number = source.start // 100
        if number == 2:
            raise GatewayError("signed")
        if number == 3:
            raise OSError
        out.write_bytes(b"header" + b"decoded")
        return Transcoded(targets[0], 6, 13, "pixel data decoded")

    lane.store = Store(lane.configuration, lane.ledger, lane.spool, lane.scu, lambda: 0.5, transcode)
    jpeg = "1.2.840.10008.1.2.4.70"
    several = [replace(instance(n, uid=f"in-1.{n}"), transfer_syntax=jpeg) for n in (1, 2, 3)]
    lane.sync(lambda c: queue(c, "in-1", *several, at=now()))
    lane.scu.refuses, lane.scu.takes = {jpeg}, ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"]
    lane.scu.answer = lambda queued: 0 if queued.transfer_syntax != jpeg else "context-refused"  # type: ignore[method-assign]
    await lane.store.look("pacs")
    assert seen == [(jpeg, "1.2.840.10008.1.2.1", "1.2.840.10008.1.2")] * 3
    assert lane.parts() == [("delivered", None), ("failed", "context-refused"), ("waiting", "not-decoded")]
    shown = lane.read(lambda c: inventory.show_item(c, "in-1", now()))
    assert [one["sent_as"] for one in shown["instances_detail"]] == ["1.2.840.10008.1.2.1", None, None]  # type: ignore[index]
    assert [one["comment"] for one in shown["instances_detail"]] == [None, "signed", "OSError"]  # type: ignore[index]
    assert any("pixel data decoded" in one["text"] for one in shown["events"])  # type: ignore[index]
    assert list((tmp_path / "data" / "scratch" / "store").iterdir()) == []
    number_of_tries = 1
    while lane.parts()[2] == ("waiting", "not-decoded"):  # trouble of ours passes, or is bounded
        number_of_tries += 1
        lane.make_due()
        await lane.store.look("pacs")
    assert number_of_tries == 10
    del seen[3:]
    change_entity(lane, transcode="never")
    lane.sync(lambda c: verbs.retry(c, "in-1", now(), "anna", force=True))
    await lane.store.look("pacs")
    assert set(lane.parts()) == {("failed", "context-refused")}
    assert len(seen) == 3
    lane.ledger.close()
    lane.spool.close()


async def test_what_takes_longer_to_decode_than_the_peer_waits_goes_over_the_next_association(tmp_path: Path) -> None:
    """A peer ends an association that is idle: what was decoded meanwhile is kept for another, once (NET-12)."""
    lane = Lane(tmp_path)
    made: list[int] = []

    async def transcode(source: Span, _: str, targets: Sequence[str], out: Path) -> Transcoded:
        made.append(source.start)
        lane.scu.lines[-1].alive = False
        out.write_bytes(b"headerdecoded")
        return Transcoded(targets[0], 6, 13, "pixel data decoded")

    lane.store = Store(lane.configuration, lane.ledger, lane.spool, lane.scu, lambda: 0.5, transcode)
    jpeg, send = "1.2.840.10008.1.2.4.70", Line.send

    def idle(line: Line, window: Sequence[Queued], deadline: float) -> list[Sent]:
        assert all(one.data_set.path.exists() for one in window)
        return send(line, window, deadline) if line.alive else []

    several = [replace(instance(n, uid=f"in-1.{n}"), transfer_syntax=jpeg) for n in range(3)]
    lane.sync(lambda c: queue(c, "in-1", *several, at=now()))
    lane.scu.refuses = {jpeg}
    lane.scu.answer = lambda queued: 0 if queued.transfer_syntax != jpeg else "context-refused"  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Line, "send", idle)
        patch.setattr(lane.spool, "path", lambda _: tmp_path)
        await lane.store.look("pacs")
    assert lane.parts() == [("delivered", None)] * 3
    assert len(made) == 3
    assert len(lane.scu.lines) == 2
    assert list((tmp_path / "data" / "scratch" / "store").iterdir()) == []
    lane.ledger.close()
    lane.spool.close()


async def test_a_stop_waits_for_no_decoder_and_doubts_nothing_that_was_not_sent(tmp_path: Path) -> None:
    """The window is as it was before its mark: nothing of it was on the wire (promise 2, R31)."""
    lane = Lane(tmp_path)
    begun, given_up = asyncio.Event(), asyncio.Event()

    async def transcode(*_: object) -> Transcoded:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        raise AssertionError

    lane.store = Store(lane.configuration, lane.ledger, lane.spool, lane.scu, lambda: 0.5, transcode)
    jpeg = "1.2.840.10008.1.2.4.70"
    several = [replace(instance(n, uid=f"in-1.{n}"), transfer_syntax=jpeg) for n in range(3)]
    lane.sync(lambda c: queue(c, "in-1", *several, at=now()))
    lane.scu.refuses = {jpeg}
    looking = asyncio.create_task(lane.store.look("pacs"))
    await begun.wait()
    lane.store.stop()
    async with asyncio.timeout(20):
        await looking
    assert given_up.is_set()
    rows = lane.read(lambda c: [tuple(r) for r in c.execute(select(delivery.c.sending, delivery.c.sends))])
    assert rows == [(False, 0)] * 3
    assert lane.scu.wire == []
    assert lane.scu.lines[0].released
    lane.ledger.close()
    lane.spool.close()
