"""SUBMIT: what becomes of a mail when the relay, the disk, a person or a stop comes between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiosmtplib import SMTP
from outbound import Outbound, Postman
from scripted_relay import ScriptedRelay
from sqlalchemy import Connection, update

from gateway.edges.submission import Deadlines, Relay
from gateway.errors import RelayError
from gateway.ledger import verbs
from gateway.ledger.notices import open_notices
from gateway.ledger.tables import destination, submission
from gateway.model import Mail, Submission
from gateway.stages import submit
from gateway.stages.submit import NO_RELAY, Submit


@pytest.fixture
async def out(tmp_path: Path) -> AsyncIterator[Outbound]:
    """The way out, with one mail written and not submitted."""
    made = Outbound(tmp_path)
    await made.send(1)
    submit, made.submit = made.submit, Idle()
    await made.work()
    made.submit = submit
    yield made
    made.close()


class Idle(Submit):
    """Leaves what is to be submitted for another."""

    def __init__(self) -> None:
        """Nothing."""

    async def look(self, _name: str) -> datetime | None:
        """Look again at once."""
        return datetime.now(UTC)


class Slow(Postman):
    """A relay that is in the middle of a mail, or of its greeting, until it is cut."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__()
        self.begun = begun
        self.busy = asyncio.Event()

    def has_begun(self, mail: Mail) -> bool:
        """As the test says."""
        del mail
        return self.begun

    async def greet(self) -> None:
        """Never end."""
        self.busy.set()
        await asyncio.Event().wait()

    async def submit(self, mail: Mail) -> Submission:
        """Never end."""
        del mail
        self.busy.set()
        await asyncio.Event().wait()
        raise AssertionError


class Parting(Relay):
    """Our side of a real session, which tells when it says goodbye."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.parting = asyncio.Event()

    async def _leave(self, client: SMTP) -> None:
        self.parting.set()
        await super()._leave(client)


def served_by(out: Outbound, relay: submit.Relay | None) -> Submit:
    """The stage with another relay."""
    out.submit = Submit(out.configuration, out.ledger, out.spool, relay, dice=lambda: 0.5)
    return out.submit


def told(connection: Connection) -> list[str]:
    """The text of every open notice."""
    return [one.text for one in open_notices(connection)]


def later(out: Outbound) -> None:
    """Let every pause be over."""
    with out.ledger.engine.begin() as connection:
        connection.execute(update(submission).values(next_attempt=datetime.now(UTC)))
        connection.execute(update(destination).values(breaker_until=datetime.now(UTC)))


def rest(out: Outbound) -> None:
    """Let the breaker have been open long enough, and no more."""
    with out.ledger.engine.begin() as connection:
        connection.execute(update(destination).values(breaker_until=datetime.now(UTC)))


async def mailed(out: Outbound) -> dict[str, Any]:
    """The only item."""
    [item] = await out.items()
    return item


async def test_without_a_relay_the_mail_waits_and_a_person_is_told(out: Outbound) -> None:
    """It cannot pass by itself, and nothing is lost (R6)."""
    again = await served_by(out, None).look("relay")
    assert again is not None
    condition = await mailed(out)
    assert (condition["outcome"], condition["instances_detail"][0]["sends_unknown"]) == ("waiting", 0)
    assert NO_RELAY in str(await out.ledger.read(told))


async def test_a_fault_of_ours_before_the_mail_is_temporary(out: Outbound, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown error never fails a mail: it waits, the breaker opens, and a person is told (R6)."""
    relay = Postman()
    stage = served_by(out, relay)

    async def fail() -> None:
        raise RuntimeError

    relay.down = RelayError("away")
    until = await stage.look("relay")
    assert until is not None
    relay.down = None
    monkeypatch.setattr(relay, "greet", fail)
    later(out)
    assert await stage.look("relay") is not None
    assert "RuntimeError" in str(await out.ledger.read(told))
    assert relay.mails == []
    assert (await mailed(out))["outcome"] == "waiting"


async def test_a_fault_of_ours_within_the_mail_is_in_doubt(out: Outbound) -> None:
    """Nobody knows what the relay has (R12)."""
    out.postman.answers = (RuntimeError(),)
    await out.submit.look("relay")
    item = await mailed(out)
    assert (item["outcome"], item["code"], item["instances_detail"][0]["sends_unknown"]) == ("waiting", "in-doubt", 1)


async def test_a_mail_whose_bytes_are_gone_is_held(out: Outbound) -> None:
    """A person must know; the relay was given nothing (R17)."""
    [file] = (out.folder / "spool").glob("*/*.eml")
    file.unlink()
    out.postman.answers = (FileNotFoundError(2, "gone"),)
    await out.submit.look("relay")
    item = await mailed(out)
    assert (item["outcome"], item["code"]) == ("held", "bytes-missing")


async def test_a_file_that_cannot_be_read_now_waits(out: Outbound) -> None:
    """A trouble of this machine: the lane rests, and the mail is as it was (R6)."""
    out.postman.answers = (OSError(5, "Input/output error"),)
    until = await out.submit.look("relay")
    assert until is not None
    assert (await mailed(out))["outcome"] == "waiting"


async def test_nothing_is_submitted_before_its_time(out: Outbound) -> None:
    """After a crash the lane rests first, so that a crash loop does not use up tries (R27)."""
    out.submit.not_before = datetime.now(UTC) + timedelta(minutes=1)
    assert await out.submit.look("relay") == out.submit.not_before
    out.submit.not_before = datetime.now(UTC) + timedelta(days=400)  # a clock that ran ahead (R29)
    await out.submit.look("relay")
    assert (await mailed(out))["outcome"] == "delivered"


async def test_a_stopping_lane_begins_no_mail(out: Outbound) -> None:
    """It waits for the next life (R31)."""
    out.submit.stop()
    assert await out.submit.look("relay") is None
    assert out.postman.mails == []


async def test_a_stop_cuts_what_the_relay_has_nothing_of(out: Outbound) -> None:
    """No try is counted, and it is not in doubt (R31)."""
    relay = Slow(begun=False)
    stage = served_by(out, relay)
    looking = asyncio.create_task(stage.look("relay"))
    await relay.busy.wait()
    stage.stop()
    await looking
    item = await mailed(out)
    assert (item["outcome"], item["code"], item["instances_detail"][0]["sends_unknown"]) == ("waiting", None, 0)


async def test_what_is_cut_on_the_wire_is_in_doubt(out: Outbound) -> None:
    """The relay may have it; it is repeated under the same Message-ID (R26, R31)."""
    relay = Slow(begun=True)
    stage = served_by(out, relay)
    looking = asyncio.create_task(stage.look("relay"))
    await relay.busy.wait()
    stage.stop()
    assert not looking.done()
    stage.abort()
    await looking
    item = await mailed(out)
    assert (item["code"], item["instances_detail"][0]["sends_unknown"]) == ("in-doubt", 1)
    first = item["mails"][0]["message_id"]
    served_by(out, relay := Postman())
    later(out)
    await out.submit.look("relay")
    assert relay.greetings == 1  # the probe before a mail in doubt
    item = await mailed(out)
    assert (item["outcome"], item["mails"][0]["message_id"]) == ("delivered", first)


async def test_a_stop_during_the_farewell_takes_nothing_back(out: Outbound) -> None:
    """What the relay has taken is delivered, however long it takes to say goodbye: else it came twice (R12, R26)."""
    async with ScriptedRelay({"QUIT": "MUTE"}).serving() as peer:
        assert out.configuration.relay is not None
        section = out.configuration.relay.model_copy(update={"port": peer.port})
        relay = Parting(section, "gw.example", Deadlines(leave=0.5))
        stage = served_by(out, relay)
        looking = asyncio.create_task(stage.look("relay"))
        await relay.parting.wait()
        stage.stop()
        await looking
        assert len(peer.mails) == 1
    assert (await mailed(out))["outcome"] == "delivered"


async def test_a_stop_waits_for_no_greeting(out: Outbound) -> None:
    """The probe behind a breaker is cut (R31)."""
    out.postman.answers = (None,)
    await out.submit.look("relay")  # in doubt: the next begins with a probe
    relay = Slow(begun=False)
    stage = served_by(out, relay)
    later(out)
    looking = asyncio.create_task(stage.look("relay"))
    await relay.busy.wait()
    stage.stop()
    await looking
    assert relay.mails == []


async def test_what_a_person_has_held_meanwhile_is_not_submitted(
    out: Outbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the question what is due and the mark that it is on the wire (R17)."""
    due = out.submit._due
    key = (await mailed(out))["id"]

    async def slow() -> Any:
        work = await due()
        if work:
            await out.ledger.write(lambda c: verbs.hold(c, key, datetime.now(UTC), "anna"))
        return work

    monkeypatch.setattr(out.submit, "_due", slow)
    await out.submit.look("relay")
    assert out.postman.mails == []
    assert (await mailed(out))["outcome"] == "held"


class Picky(Postman):
    """A relay that cuts the connection in the middle of some mails."""

    def __init__(self) -> None:
        super().__init__()
        self.cuts: set[str] = set()

    async def submit(self, mail: Mail) -> Submission:
        """Take it, unless it is one of those."""
        if mail.envelope_id in self.cuts:
            raise RelayError("the relay cannot be reached: ConnectionResetError", within=True)
        return await super().submit(mail)


async def test_mails_that_the_relay_cuts_short_hold_up_no_others(tmp_path: Path) -> None:
    """It takes the others, and those that it never takes have an end (R15, R17)."""
    made = Outbound(tmp_path)
    for number in (1, 2, 3):
        await made.send(number, study=f"1.2.9.{number}")
    relay = Picky()
    stage = served_by(made, relay)
    for item in await made.items():
        await made.compose.look(item["id"])
    first, second, third = await made.items()
    relay.cuts = {f"{one['id']}.1" for one in (first, second)}
    for _ in range(2):
        await stage.look("relay")
        rest(made)
    outcomes = [(one["outcome"], one["code"]) for one in await made.items()]
    assert outcomes == [("waiting", "relay-deferred"), ("waiting", "relay-deferred"), ("delivered", None)]
    assert third["id"] in relay.mails[0][0].envelope_id
    made.close()
