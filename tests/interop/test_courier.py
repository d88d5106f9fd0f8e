"""Mailboxes on Courier, unlike Dovecot wherever a client may be careless (IMAP-6, IMAP-8)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from courier import PASSWORD, USER, Courier
from fragments import Gateway
from mailboxes import items, polling, text_mail, until
from peer import Start
from rows import configuration
from sqlalchemy import select

from gateway.core.mailbox import State
from gateway.edges.imap import Deadlines, ImapMailbox, Proof
from gateway.errors import MailboxError
from gateway.ledger.tables import message
from gateway.stages.poll import Poll, Rules

pytestmark = pytest.mark.peer


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """RECEIVE and its ledger."""
    made = Gateway(tmp_path, configuration(tmp_path))
    yield made
    made.close()


@pytest.fixture
def courier(start: Start) -> Courier:
    """With both folders, where Courier wants them."""
    made = start(Courier())
    made.make("INBOX.Processed", "INBOX.Failed")
    return made


def mailbox(courier: Courier, password: str = PASSWORD, **changes: Any) -> ImapMailbox:
    """The way to it; its folders are named as on any other server."""

    async def proof() -> Proof:
        return Proof(password)

    values = {"host": "127.0.0.1", "port": courier.port, "tls": "none", "user": USER, "folder": "INBOX"}
    settings = SimpleNamespace(**{**values, "done": "Processed", "failed": "Failed", **changes})
    # Courier lets a wrong password wait for its answer.
    return ImapMailbox(settings, proof, Deadlines(5, 15, 5, 1), ssl.create_default_context())


def poll(gateway: Gateway, courier: Courier, *, limit: int = 1 << 30) -> Poll:
    """A poll of it, each minute beside IDLE."""
    rules = Rules("imap.a", "pacs@gw.example", "move", 60.0, limit, 1 << 20, "Failed", "DicomMail-aaaa")
    return Poll(rules, mailbox(courier), gateway.ledger, gateway.receive)


async def test_mails_are_taken_and_filed_below_inbox(gateway: Gateway, courier: Courier) -> None:
    """Folders by NAMESPACE; without MOVE by COPY and UID EXPUNGE; what comes later is told by IDLE (R1, R2)."""
    courier.append(text_mail(1), text_mail(2))
    one = poll(gateway, courier)
    async with polling(one):
        await until(lambda: len(courier.mails("INBOX.Processed")) == 2)
        courier.append(text_mail(3))
        await until(lambda: len(courier.mails("INBOX.Processed")) == 3)
    assert one.state is State.OK
    assert courier.mails() == []
    assert sorted(await items(gateway)) == [f"<{number}@clinic-a.example>" for number in (1, 2, 3)]
    rows = await gateway.ledger.read(lambda c: list(c.execute(select(message.c.blob, message.c.message_id))))
    for blob, name in rows:
        assert gateway.spool.path(blob).read_bytes() == text_mail(int(name[1]))


async def test_a_new_life_of_the_uids_brings_nothing_twice(gateway: Gateway, courier: Courier) -> None:
    """Its index was lost: the same mails under other UIDs are known by their content."""
    courier.append(text_mail(1, "private@home.example"))
    rules = Rules("imap.a", "pacs@gw.example", "leave", 60.0, 1 << 30, 1 << 20, "Failed", "DicomMail-aaaa")
    first = Poll(rules, mailbox(courier), gateway.ledger, gateway.receive)
    async with polling(first):
        await until(lambda: first.counters.taken == 1)
    await asyncio.sleep(1.1)  # UIDVALIDITY is the time in seconds
    courier.forget_uids()
    second = Poll(rules, mailbox(courier), gateway.ledger, gateway.receive)
    async with polling(second):
        await until(lambda: second.counters.repeated == 1)
    assert second.counters.taken == 0
    assert await items(gateway) == ["<1@clinic-a.example>"]


async def test_what_is_over_the_limit_is_moved_without_being_fetched(gateway: Gateway, courier: Courier) -> None:
    """To the failed folder; the others go on (R7)."""
    courier.append(text_mail(1) + b"x" * 70_000 + b"\r\n", text_mail(2))
    one = poll(gateway, courier, limit=50_000)
    async with polling(one):
        await until(lambda: len(courier.mails("INBOX.Failed")) == 1 and len(courier.mails("INBOX.Processed")) == 1)
    assert one.counters.too_big == 1
    assert await items(gateway) == ["<2@clinic-a.example>"]


@pytest.mark.parametrize(
    ("changes", "state"),
    [({"password": "wrong"}, State.LOGIN_REFUSED), ({"done": "Nowhere"}, State.FOLDER_MISSING)],
)
async def test_each_trouble_is_a_state_of_its_own(courier: Courier, changes: dict[str, str], state: State) -> None:
    """In Courier's words, too."""
    with pytest.raises(MailboxError) as caught:
        await mailbox(courier, **changes).open()
    assert caught.value.state is state
