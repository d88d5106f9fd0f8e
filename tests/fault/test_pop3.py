"""POP3 servers with moods: nothing is deleted that is not ours, and every trouble is a state (R1, R2, R3, R4)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from fragments import Gateway
from mailboxes import items, polling, text_mail, until
from rows import configuration
from scripted_pop3 import Mood, ScriptedPop3

from gateway.core import mailbox
from gateway.core.mailbox import State
from gateway.edges.pop3 import PopMailbox
from gateway.errors import MailboxError
from gateway.stages.poll import Poll, Rules
from tests.samples import data_set, dicom_file, mail, part

PRIVATE = text_mail(1, "grandma@home.example")
IMAGES = mail(part(dicom_file(data_set()))).replace(b"a@clinic.example", b"dicom@clinic-a.example")
LARGE = text_mail(1) + b"\r\n".join([b"x" * 76] * 20_000) + b"\r\n"


@pytest.fixture
async def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    """RECEIVE with the real reader; troubles are forgotten quickly."""
    monkeypatch.setattr(mailbox, "FIRST_WAIT", timedelta(milliseconds=20))
    made = Gateway(tmp_path, configuration(tmp_path))
    yield made
    made.close()


async def password() -> str:
    return "secret"


def box(server: ScriptedPop3, **changes: object) -> PopMailbox:
    values = {"host": "127.0.0.1", "port": server.port, "tls": "none", "user": "gw", **changes}
    return PopMailbox(SimpleNamespace(**values), password, 0.5)  # type: ignore[arg-type]


def poll(gateway: Gateway, server: ScriptedPop3, message: int = 1 << 30) -> Poll:
    rules = Rules("pop3.a", "pacs@gw.example", "leave", 0.1, message, 1 << 20, "the mailbox", "DicomMail-a")
    return Poll(rules, box(server), gateway.ledger, gateway.receive)


async def test_mail_without_dicom_stays_and_is_never_fetched_again(gateway: Gateway) -> None:
    """A private mail, and one of the partner: known by their UIDL, also to the next life; images are deleted."""
    mails = {"u1": PRIVATE, "u2": text_mail(2), "u3": IMAGES}
    async with ScriptedPop3(mails) as server:
        for _ in range(2):
            one = poll(gateway, server)
            async with polling(one):
                await until(lambda: sum(line.startswith("RETR") for line in server.commands) == 3)
                await until(lambda one=one: one.looked_at)  # type: ignore[misc]
                await until(lambda: spooled(gateway) == 3)
                await work_until(gateway, lambda: "u3" not in server.mails)
                seen = server.sessions
                await until(lambda seen=seen: server.sessions > seen + 2)  # type: ignore[misc]
        assert set(server.mails) == {"u1", "u2"}
        assert sum(line.startswith("RETR") for line in server.commands) == 3
        assert sum(line.startswith("DELE") for line in server.commands) == 1
    assert len(await items(gateway)) == 3


async def test_a_uidl_that_is_used_again_is_another_mail(gateway: Gateway) -> None:
    """Of the very same size: its content is looked at before anything is deleted (R2)."""
    one, other = (b"Message-ID: <%d@clinic-a.example>\r\n" % number + IMAGES for number in (1, 2))
    async with ScriptedPop3({"u1": one}) as server, polling(poll(gateway, server)):
        for each in (one, other):
            server.mails["u1"] = each
            known = len(await items(gateway))
            await until(lambda known=known: spooled(gateway) > known)  # type: ignore[misc]
            await work_until(gateway, lambda: not server.mails)
    assert len(await items(gateway)) == 2


async def work_until(gateway: Gateway, condition: Callable[[], object]) -> None:
    """Read what comes until something is so: a mail lies in the spool a moment before its row does."""
    async with asyncio.timeout(20):
        while not condition():
            await gateway.work()
            await asyncio.sleep(0.05)


def spooled(gateway: Gateway) -> int:
    return len(list(gateway.spool.root.rglob("*.eml")))


async def test_a_deletion_that_got_lost_is_done_again(gateway: Gateway) -> None:
    """The content tells that the mail is ours: one item (R2)."""
    async with ScriptedPop3({"u1": IMAGES}, Mood(forget=2)) as server:
        one = poll(gateway, server)
        async with polling(one):
            await until(lambda: spooled(gateway))
            await work_until(gateway, lambda: not server.mails)
        assert (one.counters.taken, one.counters.repeated) == (1, 2)
    assert len(await items(gateway)) == 1


async def test_a_cut_download_goes_on_where_it_was(gateway: Gateway) -> None:
    """The mail is whole, and one item, although POP3 begins again at its first byte."""
    async with ScriptedPop3({"u1": LARGE}, Mood(cut_after=[700_000, 900_000])) as server:
        one = poll(gateway, server)
        async with polling(one):
            await until(lambda: one.counters.taken)
        assert one.counters.resumed == 2
    [path] = gateway.spool.root.rglob("*.eml")
    assert path.read_bytes() == LARGE


async def test_a_mail_that_is_longer_than_the_limit_stays(gateway: Gateway) -> None:
    """Whatever LIST said of its size (R7)."""
    async with ScriptedPop3({"u1": LARGE}, Mood(says={"LIST": "+OK\r\n1 500\r\n."})) as server:
        one = poll(gateway, server, message=10_000)
        async with polling(one):
            await until(lambda: one.counters.too_big and one.state is State.OK)
        assert set(server.mails) == {"u1"}
    assert await items(gateway) == []


@pytest.mark.parametrize("said", ["MUTE", "DROP"])
async def test_polling_ends_at_once_when_it_is_told_to_though_the_server_answers_no_farewell(
    gateway: Gateway, said: str
) -> None:
    """What was to be deleted is deleted by the next life (R31)."""
    async with ScriptedPop3({"u1": IMAGES}, Mood(says={"QUIT": said})) as server:
        one = poll(gateway, server)
        one._mailbox.deadline = 60.0  # type: ignore[attr-defined]
        task = asyncio.create_task(one.run())
        await until(lambda: one.counters.taken)
        task.cancel()
        await asyncio.wait([task], timeout=8)
        assert task.cancelled()


async def test_a_mail_whose_header_is_too_long_is_fetched_once_and_told_once(gateway: Gateway) -> None:
    """It stays, as POP3 has nowhere else; other mails are taken meanwhile (R7)."""
    long = b"X-Filler: " + b"y" * (2 << 20) + b"\r\n" + text_mail(1)
    async with ScriptedPop3({"u1": long}) as server:
        one = poll(gateway, server)
        async with polling(one):
            await until(lambda: one.counters.too_big)
            server.mails["u2"] = IMAGES
            await until(lambda: one.counters.taken)
        assert "u1" in server.mails
        assert server.commands.count("RETR 1") == 1
    assert one.counters.too_big == 1


@pytest.mark.parametrize(
    ("mood", "state"),
    [
        (Mood(greeting="MUTE"), State.SILENT),
        (Mood(greeting="DROP"), State.UNREACHABLE),
        (Mood(greeting="-ERR busy"), State.UNREACHABLE),
        (Mood(says={"PASS": "-ERR no"}), State.LOGIN_REFUSED),
        (Mood(says={"PASS": "-ERR [IN-USE] locked"}), State.UNREACHABLE),
        (Mood(says={"PASS": "DROP"}), State.UNREACHABLE),
        (Mood(says={"LIST": "MUTE"}), State.SILENT),
        (Mood(says={"UIDL": "-ERR what"}), State.CONFUSED),
        (Mood(says={"UIDL": "+OK\r\nnonsense\r\n."}), State.CONFUSED),
        (Mood(says={"RETR": "MUTE"}), State.SILENT),
        (Mood(words=b"more\r\n"), State.CONFUSED),
        (Mood(says={"QUIT": "DROP"}), State.UNREACHABLE),
    ],
    ids=lambda one: "" if isinstance(one, Mood) else str(one),
)
async def test_every_trouble_is_a_state_and_deletes_nothing(gateway: Gateway, mood: Mood, state: State) -> None:
    """Never "no mail", and no wait without an end (R3, R4)."""
    async with ScriptedPop3({"u1": PRIVATE}, mood) as server:
        one = poll(gateway, server)
        async with polling(one):
            await until(lambda: one.state is state)
        assert not [line for line in server.commands if line.startswith("DELE")]


@pytest.mark.parametrize(
    ("says", "state"), [({"STLS": "-ERR no"}, State.CERTIFICATE), ({"STLS": "DROP"}, State.UNREACHABLE)]
)
async def test_tls_is_never_left_out(says: Mapping[str, str], state: State) -> None:
    """A server that offers none is shown no password."""
    async with ScriptedPop3({}, Mood(says=says)) as server:
        with pytest.raises(MailboxError) as refused:
            await box(server, tls="starttls").open()
        assert refused.value.state == state
        assert not [line for line in server.commands if "secret" in line]
    async with ScriptedPop3({}) as server:
        with pytest.raises(MailboxError) as clear:
            await box(server, tls="implicit").open()
        assert clear.value.state == State.CERTIFICATE
