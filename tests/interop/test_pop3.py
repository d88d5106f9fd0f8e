"""POP3 on a real Dovecot: the UIDL names a mail, and it is deleted only once it is ours (IMAP-13, R1)."""

from __future__ import annotations

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

from gateway.core.mailbox import State
from gateway.edges.pop3 import PopMailbox
from gateway.errors import MailboxError
from gateway.stages.poll import Poll, Rules

pytestmark = pytest.mark.peer


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """RECEIVE with the real reader."""
    made = Gateway(tmp_path, configuration(tmp_path))
    yield made
    made.close()


async def password() -> str:
    return PASSWORD


def box(dovecot: Dovecot, **changes: Any) -> PopMailbox:
    values = {"host": "127.0.0.1", "port": dovecot.pop3_port, "tls": "none", "user": USER, **changes}
    trusted = ssl.create_default_context(cafile=dovecot.ca)
    return PopMailbox(SimpleNamespace(**values), password, 5.0, trusted)  # type: ignore[arg-type]


def poll(gateway: Gateway, dovecot: Dovecot, other: str = "move", message: int = 1 << 30, **changes: Any) -> Poll:
    rules = Rules("pop3.a", "pacs@gw.example", other, 0.3, message, 1 << 20, "the mailbox", "DicomMail-a")
    return Poll(rules, box(dovecot, **changes), gateway.ledger, gateway.receive)


@pytest.mark.parametrize("tls", ["none", "starttls"])
async def test_mails_are_taken_and_then_deleted(gateway: Gateway, start: Start, tls: str) -> None:
    """Byte for byte, lines that begin with a dot and lines without end included."""
    dovecot = start(Dovecot())
    odd = text_mail(1) + b".dot\r\n..\r\n" + b"x" * 9000 + b"\r\n"
    dovecot.append(odd, text_mail(2))
    async with polling(poll(gateway, dovecot, tls=tls)):
        await until(lambda: dovecot.mails() == [])
        dovecot.append(text_mail(3))
        await until(lambda: dovecot.mails() == [])
    assert sorted(await items(gateway)) == [f"<{n}@clinic-a.example>" for n in (1, 2, 3)]
    assert odd in [path.read_bytes() for path in gateway.spool.root.rglob("*.eml")]


async def test_what_is_not_for_us_and_what_is_too_big_stay(gateway: Gateway, start: Start) -> None:
    """There is no folder to move it to, and nothing is ever deleted that is not ours."""
    dovecot = start(Dovecot())
    private, big = text_mail(1, "grandma@home.example"), text_mail(2) + b"x" * 9000
    dovecot.append(private, big)
    one = poll(gateway, dovecot, other="leave", message=5000)
    async with polling(one):
        await until(lambda: one.counters.taken == 1)
        await gateway.work()
        looked = one.looked_at
        await until(lambda: one.looked_at > looked)
    assert len(dovecot.mails()) == 2
    assert (one.counters.taken, one.counters.repeated, one.counters.too_big) == (1, 0, 1)


async def test_each_trouble_is_a_state_of_its_own(start: Start) -> None:
    """Nobody there, a login refused, a certificate that nobody knows (R3)."""
    dovecot = start(Dovecot())
    for changes, state in [({"port": free_port()}, State.UNREACHABLE), ({"user": "nobody"}, State.LOGIN_REFUSED)]:
        with pytest.raises(MailboxError) as trouble:
            await box(dovecot, **changes).open()
        assert trouble.value.state == state
    settings = SimpleNamespace(host="127.0.0.1", port=dovecot.pop3_port, tls="starttls", user=USER)
    with pytest.raises(MailboxError) as trouble:
        await PopMailbox(settings, password, 5.0).open()  # type: ignore[arg-type]
    assert trouble.value.state == State.CERTIFICATE
