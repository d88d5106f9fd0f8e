"""RECEIVE: custody, each way a reading can end, and who is blamed when it fails."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from door import PATIENCE, peer_of
from rows import (
    CLINIC,
    CONFIGURATION,
    ENVELOPE,
    NOW,
    alarms,
    configuration,
    instance,
    outcome,
    parts,
    stories,
    wakes,
)
from sqlalchemy import Connection, func, select, update

from gateway.config import Limits
from gateway.core import routing
from gateway.core.coercion import Coercion, Rule
from gateway.core.reader import Rules, read_to
from gateway.core.routing import Decision
from gateway.edges import smtp
from gateway.edges.smtp import SmtpDoor
from gateway.errors import GatewayError, LedgerError, LowDiskError, RefusedError, WorkerError
from gateway.ledger import messages, verbs
from gateway.ledger.ledger import Ledger, connect
from gateway.ledger.spool import Spool
from gateway.ledger.tables import message
from gateway.model import Digest, Reading, Span
from gateway.stages import receive as receiving
from gateway.stages.receive import Receive, Verdict, book, judge, rules, without_repetitions
from tests.samples import data_set, dicom_file, mail, meta, part

FROM_A = b"From: dicom@clinic-a.example\r\nMessage-ID: <1@clinic-a.example>\r\n"
FROM_B = b"From: dicom@clinic-b.example\r\nMessage-ID: <1@clinic-b.example>\r\n"


class Reader:
    """Answers with what it is given, as data: a reading, or an error to raise."""

    def __init__(self) -> None:
        self.answer: Reading | Exception = Reading("dicom", (instance(1),))
        self.calls = 0
        self.meanwhile: Callable[[], object] = lambda: None

    async def __call__(self, message: Span, limits: Rules, out: Path) -> Reading:
        self.calls += 1
        assert message.path.stat().st_size == message.end
        assert limits.parts == 5000
        self.meanwhile()
        if isinstance(self.answer, Exception):
            raise self.answer
        out.write_bytes(b"d" * 1000)
        return self.answer


class Stage:
    """RECEIVE with a real ledger and a real spool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = Ledger(connect(f"sqlite:///{folder / 'ledger.sqlite'}"))
        self.spool = Spool(folder / "spool")
        self.reader = Reader()
        self.receive = Receive(configuration(folder), self.ledger, self.spool, self.reader)

    async def accept(self, head: bytes = FROM_A, to: str = "pacs@gw.example", body: str = "1") -> str:
        draft = self.receive.draft()
        draft.write(head + b"\r\nbody")
        digest = Digest(draft.size, "a" * 64, body * 64, head)
        return await self.receive.accept(replace(ENVELOPE, recipients=(to,)), draft, digest)

    async def state(self, key: str) -> tuple[str, str | None]:
        return await self.ledger.read(lambda c: outcome(c, key))

    def files(self) -> list[str]:
        return sorted(path.suffix for path in self.spool.root.rglob("*") if path.is_file())


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """The stage, closed in the end."""
    made = Stage(tmp_path)
    yield made
    made.ledger.close()
    made.spool.close()


# Custody


async def test_what_is_accepted_is_on_disk_and_in_the_ledger(stage: Stage) -> None:
    """Bytes, row, event and ticket are there before the id is returned (R1)."""
    key = await stage.accept()
    row = await stage.ledger.read(lambda c: messages.get(c, key))
    assert row is not None
    assert stage.spool.path(row.blob).read_bytes() == FROM_A + b"\r\nbody"
    assert await stage.state(key) == ("waiting", None)
    assert list(await stage.ledger.read(wakes)) == [f"receive:{key}"]
    assert stage.receive.admits("anybody@gw.example")


async def test_a_repeated_mail_is_accepted_and_not_read(stage: Stage) -> None:
    """The same Message-ID and body: its own id, the first one's outcome (R2, R11)."""
    first, second = await stage.accept(), await stage.accept()
    assert list(await stage.ledger.read(wakes)) == [f"receive:{first}"]
    await stage.receive.look(first)
    assert await stage.receive.look(second) is None
    assert stage.reader.calls == 1
    assert await stage.state(second) == await stage.state(first) == ("waiting", None)


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"From: stranger@else.example\r\n", 550),
        (FROM_A + b"X-DICOM-Mail-Loop: gw.example\r\n", 554),
        (b"", 550),
    ],
)
async def test_what_is_refused_leaves_nothing_behind(stage: Stage, head: bytes, code: int) -> None:
    """No bytes, no row, and a permanent reply only for a permanent fault (R6)."""
    with pytest.raises(RefusedError) as caught:
        await stage.accept(head)
    assert caught.value.code == code
    assert stage.files() == []
    assert await stage.ledger.read(lambda c: c.scalar(select(func.count()).select_from(message))) == 0


async def test_a_full_disk_is_said_before_and_after_the_bytes_came(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporary, and nothing is kept; the floor holds for the message and its instances (R5)."""
    stage.receive.demand_room(0)
    with pytest.raises(LowDiskError):
        stage.receive.demand_room(stage.spool.free() // 2 + 1)
    monkeypatch.setattr(stage.spool, "free", lambda: stage.receive.floor - 1)
    with pytest.raises(LowDiskError):
        await stage.accept()
    assert stage.files() == []


async def test_whatever_goes_wrong_before_the_commit_leaves_no_draft(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that cannot even be asked for its room is an error, and no leak (R5)."""

    def broken() -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(stage.spool, "free", broken)
    with pytest.raises(OSError, match="Input/output error"):
        await stage.accept()
    assert stage.files() == []


async def test_bytes_stay_when_nobody_knows_whether_the_row_was_kept(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that failed may yet be found after a crash: bytes without a row are swept, never the reverse (R1)."""

    async def fail(*_: object) -> None:
        raise LedgerError("the ledger did not take a change: OperationalError")

    monkeypatch.setattr(stage.ledger, "write_together", fail)
    with pytest.raises(LedgerError):
        await stage.accept()
    assert stage.files() == [".eml"]


async def test_bytes_stay_when_the_door_gives_up_waiting_for_the_row(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway stops while the ledger is slow: the row is committed all the same, and its mail can be read (R1)."""
    settings = SimpleNamespace(
        listen=("127.0.0.1", 0), implicit_tls_listen=None, require_tls=False, allow=None, connections=1
    )
    door = SmtpDoor(settings, hostname="gw.example", limits=smtp.Limits(1 << 20, 1 << 16), incoming=stage.receive)
    await door.open()
    slow, go, asked, write = threading.Event(), threading.Event(), asyncio.Event(), stage.ledger.write_together

    def ask(*arguments: Any) -> Awaitable[Any]:
        asked.set()
        return write(*arguments)

    def wait(_: Connection) -> None:
        slow.set()
        go.wait(PATIENCE)

    async with peer_of(door) as peer:
        writing = asyncio.create_task(stage.ledger.write(wait))
        await asyncio.to_thread(slow.wait, PATIENCE)
        monkeypatch.setattr(stage.ledger, "write_together", ask)
        sending = asyncio.create_task(peer.mail(FROM_A + b"\r\nbody\r\n", recipient="pacs@gw.example"))
        await asyncio.wait_for(asked.wait(), PATIENCE)
        await door.close(0.05)
        assert await sending == ""
    go.set()
    await writing
    await stage.ledger.write(lambda _: None)  # what was handed in before is committed
    [key] = await stage.ledger.read(lambda c: list(c.scalars(select(message.c.id))))
    assert await stage.receive.look(key) is None
    assert await stage.ledger.read(lambda c: parts(c, key)) == [(1, "pacs", "waiting", None)]


# Reading


async def test_instances_that_were_read_wait_for_their_lane(stage: Stage) -> None:
    """The instances lie in a file of their own, synced, and the lane has its ticket (R1, R17)."""
    key = await stage.accept()
    assert await stage.receive.look(key) is None
    assert await stage.ledger.read(lambda c: parts(c, key)) == [(1, "pacs", "waiting", None)]
    assert stage.files() == [".dcm", ".eml"]
    assert await stage.receive.look(key) is None  # a second look finds nothing to do
    assert stage.reader.calls == 1
    assert await stage.receive.look("in-unknown") is None


@pytest.mark.parametrize(
    ("reading", "to", "expected"),
    [
        (Reading("dicom"), "pacs@gw.example", ("held", "no-dicom")),
        (Reading("other"), "pacs@gw.example", ("held", "no-dicom")),
        (Reading("report"), "pacs@gw.example", ("refused", "not-dicom")),
        (Reading("partial"), "pacs@gw.example", ("held", "invalid-fragment")),
        (Reading("other"), "team@gw.example", ("refused", "not-dicom")),
        (Reading("dicom", (instance(1),)), "team@gw.example", ("held", "no-route")),
    ],
)
async def test_mail_without_images_for_the_pacs_has_its_outcome_and_code(
    stage: Stage, reading: Reading, to: str, expected: tuple[str, str]
) -> None:
    """Reports are refused, a partner's mail that holds no usable DICOM is held (promise 3); no bytes are left over."""
    stage.reader.answer = reading
    key = await stage.accept(to=to)
    assert await stage.receive.look(key) is None
    assert await stage.state(key) == expected
    assert stage.files() == [".eml"]
    assert await stage.ledger.read(alarms) == ({("held", key)} if expected[0] == "held" else set())


async def test_mail_that_must_be_protected_is_held_unread_also_after_a_release(stage: Stage) -> None:
    """Without its signature nothing of it is even read; a person does not replace one (R21)."""
    key = await stage.accept(FROM_B)
    for _ in range(2):
        await stage.receive.look(key)
        assert await stage.state(key) == ("held", "not-signed")
        assert await stage.ledger.read(alarms) == {("held", key)}
        await stage.ledger.write(lambda c: verbs.release(c, key, datetime.now(UTC), "anna"))
        assert await stage.state(key) == ("waiting", None)
    assert stage.reader.calls == 0


async def test_mail_that_no_route_takes_any_more_is_held(stage: Stage) -> None:
    """It was welcome when it came: a person decides (SIGHUP, promise 3)."""
    key = await stage.accept()
    text = CONFIGURATION.replace('from = "clinic-a"', 'from = "clinic-b"')
    stage.receive.reload(configuration(stage.folder, text))
    await stage.receive.look(key)
    assert await stage.state(key) == ("held", "no-route")


async def test_a_person_who_is_quicker_than_the_reader_wins(stage: Stage) -> None:
    """What was dropped while it was read stays dropped, and what was read goes (R34)."""
    key = await stage.accept()

    def drop() -> None:
        with stage.ledger.engine.begin() as connection:
            verbs.drop(connection, key, datetime.now(UTC), "anna")

    stage.reader.meanwhile = drop
    assert await stage.receive.look(key) is None
    assert await stage.state(key) == ("refused", "dropped")
    assert stage.files() == [".eml"]


# When reading fails


def error(number: int) -> OSError:
    return OSError(number, "")


@pytest.mark.parametrize(
    "fault",
    [
        WorkerError("the worker process died"),
        GatewayError("the function said so"),
        error(errno.ENOMEM),
        error(errno.ENOENT),
        TimeoutError(),
        ValueError("SECRET"),
    ],
    ids=["worker", "gateway", "memory", "not-found", "timeout", "unforeseen"],
)
async def test_what_fails_three_times_is_held_for_a_person(stage: Stage, fault: Exception) -> None:
    """Unknown errors are transient three times; then a person is told, and no value is shown (design 4)."""
    stage.reader.answer = fault
    key = await stage.accept()
    for _ in range(receiving.STRANGE - 1):
        again = await stage.receive.look(key)
        assert again is not None
        assert timedelta(0) < again - datetime.now(UTC) <= receiving.NEXT_TRY
        assert await stage.state(key) == ("waiting", None)
    assert await stage.receive.look(key) is None
    assert await stage.state(key) == ("held", "unreadable")
    assert await stage.ledger.read(alarms) == {("held", key)}
    assert stage.files() == [".eml"]
    told = await stage.ledger.read(lambda c: stories(c, key))
    assert told == ["accepted", "receive-failed", "receive-failed", "receive-failed", "held", "notice-opened"]


@pytest.mark.parametrize("number", sorted(receiving.OURS))
async def test_a_sick_disk_does_not_count_against_the_message(stage: Stage, number: int) -> None:
    """It is tried again until the disk is well, however long that takes (R5)."""
    stage.reader.answer = error(number)
    key = await stage.accept()
    for _ in range(receiving.STRANGE + 2):
        assert await stage.receive.look(key) is not None
    stage.reader.answer = Reading("dicom", (instance(1),))
    assert await stage.receive.look(key) is None
    assert await stage.ledger.read(lambda c: parts(c, key)) == [(1, "pacs", "waiting", None)]


async def test_bytes_that_are_gone_are_told_of_at_once(stage: Stage) -> None:
    """A row without its bytes is never silent (R1)."""
    key = await stage.accept()
    for path in stage.spool.root.rglob("*.eml"):
        path.unlink()
    assert await stage.receive.look(key) is None
    assert await stage.state(key) == ("held", "bytes-missing")


async def test_a_poisonous_message_is_not_opened_a_fourth_time(stage: Stage) -> None:
    """Three crashes with the same message hold it, so that it cannot stop the gateway for ever (design 4)."""
    key = await stage.accept()
    now = datetime.now(UTC)
    for _ in range(receiving.POISON):
        await stage.ledger.write(lambda c: messages.count_crashes(c, [key], now))
    assert await stage.receive.look(key) is None
    assert await stage.state(key) == ("held", "poison")
    assert stage.reader.calls == 0


async def test_text_in_a_mail_that_no_database_takes_is_no_poison(stage: Stage) -> None:
    """A file id that is no Unicode is written out, and the instance is stored (R9)."""
    stage.reader.answer = Reading("dicom", (replace(instance(1), file_id="IM\udcff\0"),))
    key = await stage.accept()
    assert await stage.receive.look(key) is None
    assert await stage.state(key) == ("waiting", None)


async def test_a_ledger_that_fails_is_tried_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error reaches the carrier, which looks again; what was read is read once more (R5)."""
    key = await stage.accept()

    def fail(_: Connection, *__: object) -> None:
        raise LedgerError("the ledger did not take a change: OperationalError")

    with monkeypatch.context() as patch:
        patch.setattr(messages, "decide", fail)
        patch.setattr(messages, "count_try", fail)
        with pytest.raises(LedgerError):
            await stage.receive.look(key)
    assert await stage.receive.look(key) is None
    assert await stage.ledger.read(lambda c: parts(c, key)) == [(1, "pacs", "waiting", None)]


# Pure


def test_an_instance_that_a_mail_holds_twice_is_stored_once() -> None:
    """Identical content is a repetition, the first one stays; other content is not (AMB-23)."""
    one, other = instance(1), replace(instance(1, content="other"), part="3")
    kept = without_repetitions(Reading("dicom", (one, replace(one, part="2"), other)))
    assert [found.part for found in kept.instances] == ["1", "3"]


@pytest.mark.parametrize("wrong_first", [True, False])
def test_a_copy_that_is_held_does_not_keep_back_one_that_is_right(tmp_path: Path, wrong_first: bool) -> None:
    """The same data set, once behind a wrong header: it is stored, and a person is told of the other (AMB-23)."""
    right, wrong = dicom_file(data_set()), dicom_file(data_set(), meta(sop_class="1.2.840.10008.5.1.4.1.1.4"))
    path = tmp_path / "mail.eml"
    path.write_bytes(mail(*map(part, [wrong, right] if wrong_first else [right, wrong])))
    reading = without_repetitions(read_to(Span(path, 0, path.stat().st_size), rules(Limits()), tmp_path / "out"))
    assert [one.held for one in reading.instances] == [None]
    assert judge(reading, Decision("x@else.example", None, book_routes())) == Verdict(problem="sop-class-mismatch")


def test_a_stranger_without_images_is_refused() -> None:
    """A route for strangers takes their images, and nothing else waits for a person."""
    stranger = Decision("x@else.example", None, book_routes())
    assert judge(Reading("dicom", (instance(1),)), stranger) == Verdict()
    assert judge(Reading("other"), stranger) == Verdict(refused="not-dicom")
    assert judge(Reading("dicom", (instance(1),)), Decision(None, None, ())) == Verdict(refused="not-dicom")


@pytest.mark.parametrize(
    ("attached", "verdict"),
    [(b"away", Verdict(refused="not-dicom")), (b"PK\3\4 broken off", Verdict(held="no-dicom"))],
)
def test_an_archive_that_cannot_be_opened_is_held_whatever_the_mail_looks_like(
    tmp_path: Path, attached: bytes, verdict: Verdict
) -> None:
    """A partner's machine sends from the null address: that guess must not cost what is in the archive (R9, AMB-37)."""
    path = tmp_path / "mail.eml"
    path.write_bytes(b"Return-Path: <>\r\n" + mail(part(attached, "application/octet-stream")))
    reading = read_to(Span(path, 0, path.stat().st_size), rules(Limits()), tmp_path / "out")
    partner = routing.Partner("clinic-a", "x@clinic.example")
    assert reading.kind == "report"
    assert judge(reading, Decision("x@clinic.example", partner, book_routes())) == verdict


def book_routes() -> tuple[receiving.routing.Route, ...]:
    return (receiving.routing.Route("r", "*", None, None, ("pacs",), False, timedelta(minutes=1)),)


def test_the_route_book_and_the_limits_are_those_of_the_configuration(tmp_path: Path) -> None:
    """Partners with their binding, inbound routes alone, and our own addresses, the relay's sender among them."""
    relay = '\n[relay]\nhost = "relay.example"\nsender = "dicom@gw.example"\n'
    loaded = configuration(tmp_path, CONFIGURATION + relay)
    made = book(loaded)
    assert [partner.name for partner in made.partners] == ["clinic-a", "clinic-b"]
    assert [(route.name, route.store) for route in made.routes] == [("a", ("pacs",)), ("b", ("pacs",))]
    assert made.own == ("team@gw.example", "postmaster@gw.example", "dicom@gw.example")
    assert rules(loaded.limits).depth == 8


async def test_the_row_decides_not_the_ticket(stage: Stage) -> None:
    """A ticket only says: look at this row (design 4)."""
    key = await stage.accept()
    await stage.ledger.write(lambda c: c.execute(update(message).values(outcome="held")))
    assert await stage.receive.look(key) is None
    assert stage.reader.calls == 0


# The right patient


def rule_route(name: str = "r", **changes: object) -> routing.Route:
    values = {"urgent": False, **changes}
    return routing.Route(name, "*", None, None, ("pacs",), late=timedelta(minutes=1), **values)  # type: ignore[arg-type]


def test_the_rules_of_a_route_reach_the_reader(tmp_path: Path) -> None:
    """Issuer, prefix, accession, and the two permissions; with our name, the partner's, and the time."""
    keys = 'issuer = "CLINIC-A"\npatient_id = "prefix:A-"\naccession = "clear"\nbare_dicom = true\nuuencode = true\n'
    text = CONFIGURATION.replace('name = "a"\n', f'name = "a"\npatient_mismatch = "accept"\n{keys}')
    loaded = configuration(tmp_path, text)
    made = book(loaded)
    decision = Decision("dicom@clinic-a.example", made.partners[0], made.routes[:1])
    found = rules(loaded.limits, decision, system="gw.example", moment=NOW)
    assert found.coercion == Coercion(Rule("CLINIC-A", "A-", clear_accession=True), NOW, "gw.example", "clinic-a")
    assert (found.bare_dicom, found.uuencode, found.patient_mismatch) == (True, True, "accept")
    stranger = rules(loaded.limits, Decision(None, None, made.routes[:1]), system="gw.example", moment=NOW)
    assert stranger.coercion is not None
    assert stranger.coercion.source == ""
    plain = rules(loaded.limits, Decision(None, made.partners[1], made.routes[1:]), system="gw.example", moment=NOW)
    assert (plain.coercion, plain.bare_dicom, plain.uuencode, plain.patient_mismatch) == (None, False, False, "hold")


def test_several_routes_permit_only_what_each_permits() -> None:
    """And what they would change differently is not changed at all: it is held."""
    free = rule_route("free", bare_dicom=True, uuencode=True, patient_mismatch="accept")
    strict = rule_route("strict", coerce=Rule("X"))

    def given(*routes: routing.Route) -> Rules:
        return rules(Limits(), Decision(None, None, routes), system="gw", moment=NOW)

    both = given(strict, free)
    assert (both.bare_dicom, both.uuencode, both.patient_mismatch, both.coercion) == (False, False, "hold", None)
    assert given(free).bare_dicom
    assert given().patient_mismatch == "hold"
    assert not given().bare_dicom
    assert given(rule_route(urgent=True)).patient_mismatch == "urgent"
    assert given(replace(free, urgent=True)).patient_mismatch == "accept"


def test_images_of_routes_that_contradict_each_other_need_a_person() -> None:
    """Other mail on these routes is what it is."""
    decision = Decision("a@b.example", CLINIC, (rule_route("a"), rule_route("b", coerce=Rule("X"))))
    assert judge(Reading("dicom", (instance(1),)), decision) == Verdict(held="rules-differ")
    assert judge(Reading("report"), decision) == Verdict(refused="not-dicom")


async def test_a_mail_whose_routes_differ_waits_for_a_person(tmp_path: Path) -> None:
    """Nothing of it goes on; once the routes agree, a release reads it again (R9)."""
    extra = '\n[[route]]\nname = "c"\nfrom = "clinic-a"\nto = "c@gw.example"\nstore = ["other"]\n'
    text = CONFIGURATION.replace('name = "a"\n', 'name = "a"\nto = "a@gw.example"\n') + extra
    made = Stage(tmp_path)
    made.receive.reload(configuration(tmp_path, text + 'issuer = "X"\n'))
    draft = made.receive.draft()
    draft.write(FROM_A + b"\r\nbody")
    digest = Digest(draft.size, "a" * 64, "1" * 64, FROM_A)
    envelope = replace(ENVELOPE, recipients=("a@gw.example", "c@gw.example"))
    key = await made.receive.accept(envelope, draft, digest)
    await made.receive.look(key)
    assert await made.state(key) == ("held", "rules-differ")
    assert await made.ledger.read(lambda c: parts(c, key)) == []
    assert made.files() == [".eml"]
    made.receive.reload(configuration(tmp_path, text))
    await made.ledger.write(lambda c: verbs.release(c, key, NOW, "ann"))
    await made.receive.look(key)
    assert [row[1:3] for row in await made.ledger.read(lambda c: parts(c, key))] == [
        ("pacs", "waiting"),
        ("other", "waiting"),
    ]
    made.ledger.close()
    made.spool.close()


# A partner that is bound to peers, and a mailbox


BOUND = CONFIGURATION.replace('accept = "any"', 'accept = "any"\npeers = ["192.0.2.0/24"]')
PROTECTED = b'Content-Type: application/pkcs7-mime; smime-type=enveloped-data; name="smime.p7m"\r\n'
FRAGMENT = b'Content-Type: message/partial; id="x"; number=1; total=2\r\n'


async def take_from_mailbox(stage: Stage, head: bytes) -> str:
    """Take a mail of clinic-a out of a mailbox and look at it; return its key."""
    draft = stage.receive.draft()
    draft.write(FROM_A + head + b"\r\nbody")
    digest = Digest(draft.size, "a" * 64, "b" * 64, FROM_A + head)
    envelope = replace(ENVELOPE, door="imap.a", sender="", user=None)  # the mail server lies in the partner's network
    key = await stage.receive.accept(envelope, draft, digest)
    await stage.receive.look(key)
    return key


@pytest.mark.parametrize(
    ("head", "reading", "state"),
    [
        (b"", Reading("dicom", (instance(1),)), ("held", "sender-unproven")),
        (b"", Reading("dicom", ()), ("held", "no-dicom")),
        (b"", Reading("partial", ()), ("held", "invalid-fragment")),
        (b"", Reading("other", ()), ("refused", "not-dicom")),
        (b"", Reading("report", ()), ("refused", "not-dicom")),
        (PROTECTED, ValueError(), ("held", "sender-unproven")),
        (FRAGMENT, ValueError(), ("held", "sender-unproven")),
    ],
)
async def test_what_a_mailbox_cannot_prove_is_held_and_told(
    stage: Stage, head: bytes, reading: Reading | Exception, state: tuple[str, str]
) -> None:
    """Images and what may hide some wait for a person; the partner's private mail stays where it was (R9)."""
    stage.receive.reload(configuration(stage.folder, BOUND))
    stage.reader.answer = reading
    key = await take_from_mailbox(stage, head)
    assert await stage.state(key) == state
    assert (("held", key) in await stage.ledger.read(alarms)) == (state[0] == "held")
    # Once its section asks for no peer, the checks are made again, and it takes its route.
    if state[1] == "sender-unproven" and not head:
        stage.receive.reload(configuration(stage.folder))
        await stage.ledger.write(lambda c: verbs.release(c, key, NOW, "root"))
        await stage.receive.look(key)
        assert await stage.state(key) == ("waiting", None)


UNROUTED = CONFIGURATION.replace('from = "clinic-a"', 'from = "clinic-b"')


@pytest.mark.parametrize(
    ("head", "reading", "state"),
    [
        (b"", Reading("dicom", (instance(1),)), ("held", "no-route")),
        (b"", Reading("dicom", ()), ("held", "no-dicom")),
        (b"", Reading("other", ()), ("refused", "not-dicom")),
        (b"", Reading("report", ()), ("refused", "not-dicom")),
        (PROTECTED, ValueError(), ("held", "no-route")),
        (FRAGMENT, ValueError(), ("held", "no-route")),
    ],
)
async def test_images_of_a_partner_that_no_route_takes_from_a_mailbox_are_held_and_told(
    stage: Stage, head: bytes, reading: Reading | Exception, state: tuple[str, str]
) -> None:
    """By SMTP the partner would be told 550; here nobody is told but by a notice (promise 3, R9)."""
    stage.receive.reload(configuration(stage.folder, UNROUTED))
    stage.reader.answer = reading
    key = await take_from_mailbox(stage, head)
    assert await stage.state(key) == state
    assert (("held", key) in await stage.ledger.read(alarms)) == (state[0] == "held")
    if state[1] == "no-route" and not head:  # once a route takes it, it goes there
        stage.receive.reload(configuration(stage.folder))
        await stage.ledger.write(lambda c: verbs.release(c, key, NOW, "root"))
        await stage.receive.look(key)
        assert await stage.state(key) == ("waiting", None)
