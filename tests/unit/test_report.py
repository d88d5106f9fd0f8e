"""REPORT: the postmaster's mail, the word to a partner, and the bounce that turns a mail of ours failed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from outbound import Outbound
from rows import ENVELOPE, NOW, arrival, instance, read, settled
from sqlalchemy import Connection

from gateway.core import reader
from gateway.core.dsn import Told
from gateway.errors import RelayError
from gateway.ledger import deliveries, messages, notices, submissions
from gateway.model import Digest, Outcome, Reading, Reply, Span
from gateway.stages.receive import Receive
from gateway.stages.report import Report


@pytest.fixture
async def out(tmp_path: Path) -> AsyncIterator[Outbound]:
    """The way out."""
    made = Outbound(tmp_path)
    yield made
    made.close()


def report(out: Outbound, *, relay: bool = True) -> Report:
    return Report(out.configuration, out.ledger, out.spool, out.postman if relay else None)


async def test_a_notice_is_mailed_once_when_it_opens_and_once_when_it_closes(out: Outbound) -> None:
    """To the postmaster, with the null sender: nothing can come back (R33)."""
    stage = report(out)
    await out.ledger.write(lambda c: notices.open_notice(c, NOW, "disk-low", "spool", "nearly full", "free space"))
    for _ in range(3):
        await stage.mail_notices()
    await out.ledger.write(lambda c: notices.close_notice(c, NOW, "disk-low", "spool"))
    for _ in range(3):
        await stage.mail_notices()
    (first, opened), (second, closed) = out.postman.mails
    assert {first.sender, second.sender} == {""}
    assert first.recipients == second.recipients == ("team@gw.example",)
    assert b"OPEN    nearly full" in opened
    assert b"gw.example: disk-low opened" in opened
    assert b"CLOSED  nearly full" in closed


async def test_several_notices_are_one_mail(out: Outbound) -> None:
    """Never a flood (R33)."""
    for number in range(9):
        about = f"in-{number}"
        await out.ledger.write(lambda c, about=about: notices.open_notice(c, NOW, "held", about, about, ""))
    await report(out).mail_notices()
    [(_, content)] = out.postman.mails
    assert b"9 notices" in content


async def test_a_relay_that_is_down_is_told_of_later_and_not_at_once(out: Outbound) -> None:
    """The notice that the relay is down cannot go through it; it goes when it is back."""
    stage = report(out)
    out.postman.down = RelayError("down")
    await out.ledger.write(lambda c: notices.open_notice(c, NOW, "relay-down", "relay", "down", ""))
    await stage.mail_notices()
    out.postman.down = None
    await stage.mail_notices()
    assert out.postman.mails == []  # not before a minute is over
    await report(out).mail_notices()
    assert len(out.postman.mails) == 1


@pytest.mark.parametrize(("answer", "again"), [(Reply(550), False), (Reply(451), True), (None, True)])
async def test_a_notice_that_is_refused_makes_no_notice(out: Outbound, answer: Reply | None, again: bool) -> None:
    """No loop; what is deferred, or in doubt, comes again as the same mail."""
    out.postman.answers = (answer,)
    await out.ledger.write(lambda c: notices.open_notice(c, NOW, "disk-low", "spool", "nearly full", ""))
    await report(out).mail_notices()
    await report(out).mail_notices()
    assert len(out.postman.mails) == (2 if again else 1)
    ids = {line for _, content in out.postman.mails for line in content.split(b"\r\n") if b"Message-ID" in line}
    assert len(ids) == 1


async def test_without_a_relay_nothing_piles_up(out: Outbound) -> None:
    """A relay that is added later does not begin with years of notices."""
    await out.ledger.write(lambda c: notices.open_notice(c, NOW, "disk-low", "spool", "nearly full", ""))
    await report(out, relay=False).mail_notices()
    await report(out).mail_notices()
    assert out.postman.mails == []


def fail(connection: Connection, key: str, **envelope: object) -> None:
    """A partner's mail whose only image the PACS refused."""
    made = arrival(key, envelope=replace(ENVELOPE, **envelope))  # type: ignore[arg-type]
    messages.accept(connection, [made])
    assert messages.decide(connection, key, read(instance(1)), NOW)
    work = deliveries.mark(connection, deliveries.due(connection, "pacs", NOW, 9))
    done = [settled(one, Outcome.FAILED, code="unrecognised") for one in work]
    deliveries.settle(connection, "pacs", done, [], NOW, NOW)


async def test_a_partner_is_told_once_that_its_mail_failed(out: Outbound) -> None:
    """Counts and a code, where its mail came from, with the null sender (DSN-4)."""
    await out.ledger.write(lambda c: fail(c, "in-1"))
    assert "report:in-1" in await out.tickets()
    stage = report(out)
    assert await stage.look("in-1") is None
    assert await stage.look("in-1") is None
    [(mail, content)] = out.postman.mails
    assert (mail.sender, mail.recipients) == ("", ("dicom@clinic-a.example",))
    assert b"Code: unrecognised. Images: 1, forwarded: 0." in content
    assert b"Final-Recipient: rfc822; pacs@gateway.example" in content


@pytest.mark.parametrize("sender", ["", "who@elsewhere.example", "dïcom@clinic-a.example"])
async def test_nobody_else_is_told(out: Outbound, sender: str) -> None:
    """Not the null sender, no stranger who named a partner in From (DSN-4)."""
    await out.ledger.write(lambda c: fail(c, "in-1", sender=sender))
    assert await report(out).look("in-1") is None
    assert out.postman.mails == []


async def test_a_word_waits_for_the_relay(out: Outbound) -> None:
    """And one in doubt is not repeated."""
    await out.ledger.write(lambda c: fail(c, "in-1"))
    out.postman.down = RelayError("down")
    assert await report(out).look("in-1") is not None
    out.postman.down = None
    out.postman.answers = (None,)
    assert await report(out).look("in-1") is None
    assert await report(out).look("in-1") is None
    assert len(out.postman.mails) == 1


# Bounces


async def test_a_bounce_turns_the_mail_failed_with_a_notice(out: Outbound) -> None:
    """Matched by its envelope identifier or its Message-ID (R25); tried again it is the same mail."""
    await out.send(1, 2)
    await out.work()
    [item] = await out.items()
    told = Told(None, item["message_id"], "failed", "5.1.1")
    assert await out.ledger.write(lambda c: submissions.report(c, told, "in-9", NOW)) == item["id"]
    [item] = await out.items()
    assert (item["outcome"], item["code"], item["delivered"]) == ("failed", "bounced", 0)
    assert any("notice" in one["text"] for one in item["events"])
    assert (await out.proof())["unaccounted"] == 0


@pytest.mark.parametrize("action", ["delayed", "delivered", "relayed"])
async def test_other_reports_are_only_told_of(out: Outbound, action: str) -> None:
    """Delivered to a mailbox is not yet in a PACS (DSN-3); delayed is no failure."""
    await out.send(1)
    await out.work()
    [item] = await out.items()
    told = Told(f"{item['id']}.1", None, action, "")
    assert await out.ledger.write(lambda c: submissions.report(c, told, "in-9", NOW)) == item["id"]
    [item] = await out.items()
    assert item["outcome"] == "delivered"
    assert item["events"][-1]["text"] == f"mail 1 of 1: {action}, says in-9"


@pytest.mark.parametrize("told", [Told("out-x.1", "<x@x>", "failed", ""), Told(None, None, "failed", "")])
async def test_a_report_about_nothing_of_ours_changes_nothing(out: Outbound, told: Told) -> None:
    """Anybody may write one."""
    await out.send(1)
    await out.work()
    assert await out.ledger.write(lambda c: submissions.report(c, told, "in-9", NOW)) is None
    assert [one["outcome"] for one in await out.items()] == ["delivered"]


async def test_a_bounce_at_our_door_is_matched_and_is_no_study(out: Outbound) -> None:
    """RECEIVE reads it, and believes it: delivered, code report; one about nothing of ours is refused (R25)."""

    async def read_here(message: Span, rules: reader.Rules, path: Path) -> Reading:
        return reader.read_to(message, rules, path)

    await out.send(1)
    await out.work()
    [item] = await out.items()
    receive = Receive(out.configuration, out.ledger, out.spool, read_here)
    envelope = replace(ENVELOPE, sender="", recipients=("dicom@gw.example",), user=None)
    ids = []
    for about in (item["message_id"], "<another@gw.example>"):
        head = f"From: MAILER-DAEMON@mx.example\r\nMessage-ID: <b{len(ids)}@mx.example>\r\nMIME-Version: 1.0\r\n"
        head += 'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n'
        body = "--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example\r\n\r\n"
        body += "Final-Recipient: rfc822; a@x.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n"
        body += f"--b\r\nContent-Type: text/rfc822-headers\r\n\r\nMessage-ID: {about}\r\n\r\n--b--\r\n"
        draft = receive.draft()
        draft.write((head + "\r\n" + body).encode())
        digest = Digest(draft.size, "0" * 64, f"{len(ids):064}", head.encode())
        ids.append(await receive.accept(envelope, draft, digest))
        await receive.look(ids[-1])
    found = {one["id"]: (one["outcome"], one["code"]) for one in await out.items()}
    assert found[ids[0]] == ("delivered", "report")
    assert found[ids[1]] == ("refused", "not-dicom")
    assert found[item["id"]] == ("failed", "bounced")
    assert (await out.proof())["unaccounted"] == 0
