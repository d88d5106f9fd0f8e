"""Mailboxes on a real Dovecot: taken, then filed, exactly once (R1, R2, R3, IMAP-1 to IMAP-9)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dovecot import PASSWORD, USER, Dovecot
from fragments import Gateway
from mailboxes import items, polling, text_mail, until
from peer import Start, free_port
from rows import configuration
from sqlalchemy import select

from gateway.core.mailbox import State
from gateway.edges.imap import Deadlines, ImapMailbox, Proof
from gateway.errors import MailboxError
from gateway.ledger import mailboxes
from gateway.ledger.tables import message
from gateway.stages.poll import Poll, Rules
from tests.samples import data_set, dicom_file, mail, part

pytestmark = pytest.mark.peer

CLAIM = "DicomMail-aaaa"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    made = Gateway(tmp_path, configuration(tmp_path))
    yield made
    made.close()


async def proof() -> Proof:
    return Proof(PASSWORD)


def settings(dovecot: Dovecot, **changes: Any) -> Any:
    values = {"host": "127.0.0.1", "port": dovecot.port, "tls": "none", "user": USER}
    return SimpleNamespace(**{**values, "folder": "INBOX", "done": "Processed", "failed": "Failed", **changes})


def poll(gateway: Gateway, dovecot: Dovecot, *, other: str = "move", message: int = 1 << 30, **changes: Any) -> Poll:
    trusted = ssl.create_default_context(cafile=dovecot.ca)
    rules = Rules("imap.a", "pacs@gw.example", other, 1.0, message, 1 << 20, "Failed", changes.pop("claim", CLAIM))
    box = ImapMailbox(settings(dovecot, **changes), proof, Deadlines(5, 5, 5, 1), trusted)
    return Poll(rules, box, gateway.ledger, gateway.receive)


@pytest.fixture
def dovecot(start: Start) -> Dovecot:
    made = start(Dovecot())
    made.make("Processed", "Failed")
    return made


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
async def test_mails_are_taken_and_then_moved(gateway: Gateway, dovecot: Dovecot, tls: str) -> None:
    """What lies there and what comes later, by each kind of TLS, under a password of strange characters (IMAP-6)."""
    dovecot.append(text_mail(1), text_mail(2))
    one = poll(gateway, dovecot, tls=tls, port=dovecot.tls_port if tls == "implicit" else dovecot.port)
    async with polling(one):
        await until(lambda: len(dovecot.mails("Processed")) == 2)
        dovecot.append(text_mail(3))
        await until(lambda: len(dovecot.mails("Processed")) == 3)
    assert one.state is State.OK
    assert dovecot.mails() == []
    assert sorted(await items(gateway)) == [f"<{n}@clinic-a.example>" for n in (1, 2, 3)]
    rows = await gateway.ledger.read(lambda c: list(c.execute(select(message.c.blob, message.c.message_id))))
    for blob, name in rows:
        assert gateway.spool.path(blob).read_bytes() == text_mail(int(name[1]))


@pytest.mark.parametrize(
    "capability",
    ["IMAP4rev1 SASL-IR LITERAL+", "IMAP4rev1 UIDPLUS IDLE", "IMAP4rev1 MOVE NAMESPACE", "IMAP4rev1"],
)
async def test_a_server_that_can_little_serves_too(gateway: Gateway, start: Start, capability: str) -> None:
    """Without IDLE, MOVE or UIDPLUS; another client's deleted mail is never removed (IMAP-6, IMAP-8)."""
    dovecot = start(Dovecot(separator=".", prefix="INBOX.", capability=capability))
    dovecot.make("INBOX.Processed", "INBOX.Failed")
    dovecot.append(text_mail(8, "private@home.example"))
    with dovecot.client() as client:
        client.select()
        client.store("1", "+FLAGS", "\\Deleted")
    dovecot.append(text_mail(1))
    # With a prefix the names are found by NAMESPACE, else as they are written.
    names = {} if "NAMESPACE" in capability else {"done": "INBOX/Processed", "failed": "INBOX/Failed"}
    async with polling(poll(gateway, dovecot, **names)):
        await until(lambda: text_mail(1) in dovecot.mails("INBOX.Processed"))
        await asyncio.sleep(1.5)
    moves = "MOVE" in capability
    assert len(dovecot.mails("INBOX.Processed")) == 2
    assert (dovecot.mails() == []) == (moves or "UIDPLUS" in capability)


async def test_what_is_over_the_limit_is_moved_without_being_fetched(gateway: Gateway, dovecot: Dovecot) -> None:
    """It goes to the failed folder, and a person is told; the others go on (R7)."""
    big = text_mail(1) + b"x" * 70000 + b"\r\n"
    dovecot.append(big, text_mail(2))
    one = poll(gateway, dovecot, message=50000)
    async with polling(one):
        await until(lambda: dovecot.mails("Processed") == [text_mail(2)])
        await until(lambda: dovecot.mails("Failed") == [big])
    assert (one.counters.too_big, one.counters.taken) == (1, 1)
    assert one.counters.bytes < len(big)


async def test_mail_that_is_not_for_us_stays(gateway: Gateway, dovecot: Dovecot) -> None:
    """A private mail is left as it was: not moved, not flagged, not fetched again; the partner's is moved (IMAP-3)."""
    private = text_mail(1, "grandma@home.example")
    dovecot.append(private, mail(part(dicom_file(data_set()))).replace(b"a@clinic.example", b"dicom@clinic-a.example"))
    one = poll(gateway, dovecot, other="leave")
    async with polling(one):
        await until(lambda: one.counters.taken == 2)
        await gateway.work()
        await until(lambda: len(dovecot.mails("Processed")) == 1)
        await until(lambda: "DicomMail" not in dovecot.flags())
        await asyncio.sleep(1.5)
        assert one.counters.taken + one.counters.repeated == 2
    assert dovecot.mails() == [private]
    assert "Seen" not in dovecot.flags()


async def test_a_new_life_of_the_uids_brings_nothing_twice(gateway: Gateway, dovecot: Dovecot) -> None:
    """After UIDVALIDITY changed, the content tells what is known (R2, IMAP-1)."""
    private = text_mail(1, "grandma@home.example")
    dovecot.append(private)
    one = poll(gateway, dovecot, other="leave")
    async with polling(one):
        await until(lambda: one.counters.taken == 1)
        await gateway.work()
    [path] = dovecot.folder.glob("mail/gw/dovecot-uidlist")
    dovecot.stop()
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join([lines[0].replace("V", "V1", 1), *lines[1:]]), "utf-8")
    for cache in dovecot.folder.glob("mail/gw/dovecot.index*"):
        cache.unlink()
    dovecot.start()
    again = poll(gateway, dovecot, other="leave")
    async with polling(again):
        dovecot.append(text_mail(2))
        await until(lambda: again.counters.taken + again.counters.repeated == 2)
    assert again.counters.repeated == 1
    assert len(await items(gateway)) == 2


async def test_a_second_gateway_on_the_same_mailbox_stops(gateway: Gateway, dovecot: Dovecot) -> None:
    """The keyword of the first one tells; the second takes nothing and says so."""
    dovecot.append(text_mail(1))
    with dovecot.client() as client:
        client.select()
        client.store("1", "+FLAGS", CLAIM)
    one = poll(gateway, dovecot, claim="DicomMail-bbbb")
    async with polling(one):
        await until(lambda: one.state is State.SHARED)
        with dovecot.client() as client:
            client.select()
            client.store("1", "-FLAGS", CLAIM)
        await asyncio.sleep(1.5)
    assert one.state is State.SHARED  # it does not begin again by itself
    assert await items(gateway) == []
    assert len(dovecot.mails()) == 1
    [health] = await gateway.ledger.read(mailboxes.health)
    assert (health.door, health.state) == ("imap.a", State.SHARED)


@pytest.mark.parametrize("rights", ["", "lrstiekxa"], ids=["keywords", "no keywords"])
async def test_of_two_gateways_the_elder_one_goes_on(tmp_path: Path, start: Start, rights: str) -> None:
    """By a keyword on the mail, or by a marker message where a server keeps no keywords (as Exchange)."""
    dovecot = start(Dovecot(rights=rights))
    dovecot.make("Processed", "Failed")
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(Gateway(tmp_path / name, configuration(tmp_path / name)))
    elder, younger = (poll(each, dovecot, claim=f"DicomMail-{n}") for n, each in enumerate(made))
    async with polling(elder):
        await until(lambda: elder.looked_at)
        async with polling(younger):
            if not rights:
                await until(lambda: younger.looked_at)
            # It is seen by a mail that both have in hand: mails come for as long as it takes.
            for number in range(2000):
                await asyncio.to_thread(dovecot.append, text_mail(number))
                if younger.state is State.SHARED and number > 5:
                    break
            assert younger.state is State.SHARED
            await until(lambda: dovecot.mails() == [])
    assert elder.state is State.OK
    markers = [each for each in dovecot.mails("Failed") if b"Subject: DicomMail-0 takes mail" in each]
    assert (len(dovecot.mails("Failed")), len(markers)) == ((1, 1) if rights else (0, 0))
    if rights:
        assert younger.counters.taken == 0
    both = sorted({*await items(made[0]), *await items(made[1])})
    assert len(both) == len(dovecot.mails("Processed"))
    for each in made:
        each.close()


async def test_each_trouble_is_a_state_of_its_own(dovecot: Dovecot) -> None:
    """Unreachable, refusing, without folder, with a foreign certificate: never "no mail" (R3)."""

    async def wrong() -> Proof:
        return Proof("wrong")

    box = ImapMailbox(settings(dovecot), wrong, Deadlines(5, 5, 5, 1))
    with pytest.raises(MailboxError) as refused:
        await box.open()
    assert refused.value.state == State.LOGIN_REFUSED
    for changes, state in [
        ({"port": free_port()}, State.UNREACHABLE),
        ({"done": "Nowhere"}, State.FOLDER_MISSING),
        ({"port": dovecot.tls_port, "tls": "implicit"}, State.CERTIFICATE),
        ({"tls": "starttls"}, State.CERTIFICATE),
    ]:
        with pytest.raises(MailboxError) as trouble:
            await ImapMailbox(settings(dovecot, **changes), proof, Deadlines(5, 5, 5, 1)).open()
        assert trouble.value.state == state


async def test_a_large_mail_comes_whole(gateway: Gateway, dovecot: Dovecot) -> None:
    """Many blocks, written by a thread while the socket is read (R7, R8)."""
    body = os.urandom(3 << 20).hex().encode()
    large = text_mail(1) + b"\r\n".join(body[at : at + 76] for at in range(0, len(body), 76)) + b"\r\n"
    dovecot.append(large)
    async with polling(poll(gateway, dovecot)):
        await until(lambda: dovecot.mails("Processed"))
    [blob] = await gateway.ledger.read(lambda c: list(c.scalars(select(message.c.blob))))
    assert hashlib.sha256(gateway.spool.path(blob).read_bytes()).digest() == hashlib.sha256(large).digest()
