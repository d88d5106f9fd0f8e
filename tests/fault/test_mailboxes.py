"""IMAP servers with moods: whatever they do, every mail becomes exactly one item (R1, R2, R3, R4)."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from fragments import Gateway
from mailboxes import items, polling, text_mail, until
from pydantic import SecretStr
from rows import alarms, configuration
from scripted_imap import Mood, ScriptedImap
from token_server import TokenServer

from gateway.core import mailbox, sasl
from gateway.core.mailbox import State
from gateway.edges.imap import Deadlines, ImapMailbox, Proof
from gateway.edges.oauth import Tokens
from gateway.errors import MailboxError
from gateway.ledger.drafts import Draft
from gateway.stages.poll import Poll, Rules

LARGE = text_mail(1) + b"\r\n".join([b"x" * 76] * 20_000) + b"\r\n"


@pytest.fixture
async def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    """RECEIVE with the real reader; troubles are forgotten quickly."""
    monkeypatch.setattr(mailbox, "FIRST_WAIT", timedelta(milliseconds=20))
    made = Gateway(tmp_path, configuration(tmp_path))
    yield made
    made.close()


def box(server: ScriptedImap, *, token: str = "") -> ImapMailbox:
    async def proof() -> Proof:
        return Proof(token or "secret", bearer=bool(token))

    values = {"host": "127.0.0.1", "port": server.port, "tls": "none", "user": "gw"}
    settings = SimpleNamespace(**values, folder="INBOX", done="Done", failed="Failed")
    return ImapMailbox(settings, proof, Deadlines(1, 1, 1, 0.2))  # type: ignore[arg-type]


def poll(gateway: Gateway, server: ScriptedImap, message: int = 1 << 30) -> Poll:
    rules = Rules("imap.a", "pacs@gw.example", "move", 0.2, message, 1 << 20, "Failed", "DicomMail-a")
    return Poll(rules, box(server), gateway.ledger, gateway.receive)


def spooled(gateway: Gateway) -> list[bytes]:
    return sorted(path.read_bytes() for path in gateway.spool.root.rglob("*.eml"))


async def test_a_cut_download_goes_on_where_it_was(gateway: Gateway) -> None:
    """Cut twice in the middle: every byte crosses once, and the mail is whole (IMAP-4)."""
    async with ScriptedImap({5: LARGE}, Mood(cut_after=[700_000, 500_000])) as server:
        one = poll(gateway, server)
        async with polling(one):
            await until(lambda: server.moved)
        assert one.counters.resumed == 2
        assert server.sent == len(LARGE)
    assert spooled(gateway) == [LARGE]
    assert len(await items(gateway)) == 1


async def test_a_whole_mail_in_answer_to_the_question_for_its_rest_is_not_put_behind_its_beginning(
    gateway: Gateway,
) -> None:
    """The download begins anew, and the mail is as it was sent (R8, IMAP-4)."""
    mood = Mood(cut_after=[700_000], whole=True)
    async with ScriptedImap({5: LARGE}, mood) as server, polling(poll(gateway, server)):
        await until(lambda: server.moved)
    assert spooled(gateway) == [LARGE]


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the disk takes nothing of what is beyond the first bytes of a mail."""
    left = [0]
    append = Draft._append

    def refuse(self: Draft, block: bytes) -> None:
        if left[0] and self.size > 600_000:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "no room")
        append(self, block)

    monkeypatch.setattr(Draft, "_append", refuse)
    return left


async def test_a_disk_that_refuses_a_mail_midway_is_noticed_and_the_mail_taken_when_it_does_not(
    gateway: Gateway, refusals: list[int]
) -> None:
    """So much of the mail is left that reading pauses: the download ends at once, and not after hours (R4, R5)."""
    refusals[0] = 2
    mail = LARGE * 8
    async with ScriptedImap({5: mail}) as server:
        async with polling(poll(gateway, server)):
            await until(lambda: server.moved)
        assert server.connections == 3
    assert spooled(gateway) == [mail]


async def test_polling_ends_when_it_is_told_to_while_the_disk_refuses_a_mail(
    gateway: Gateway, refusals: list[int]
) -> None:
    """The disk's trouble does not take the place of the end (R31)."""
    refusals[0] = 1_000_000
    async with ScriptedImap({5: LARGE * 8}) as server:
        task = asyncio.create_task(poll(gateway, server).run())
        refused = refusals[0]
        await until(lambda: refusals[0] < refused)
        task.cancel()
        await asyncio.wait([task], timeout=10)
        assert task.cancelled()


@pytest.mark.parametrize(
    "mood",
    [
        Mood(noise=3000),
        Mood(late_uid=True),
        Mood(size_lie=-50),
        Mood(size_lie=100_000),
        Mood(bye=9),
        Mood(capability="IMAP4rev1 MOVE"),
        Mood(cut_at=["CAPABILITY", "SELECT", "UID SEARCH", "UID FETCH", "UID MOVE", "IDLE", "AUTHENTICATE", "LIST"]),
        Mood(cut_after=[0, 1, 10, 80]),
    ],
    ids=["noise", "late uid", "too small", "too big", "bye", "little", "cut at each command", "cut in mails"],
)
async def test_every_mail_becomes_one_item_whatever_the_server_does(gateway: Gateway, mood: Mood) -> None:
    """Whole, once, and moved only then."""
    mails = {n * 3: text_mail(n) for n in range(1, 6)}
    async with ScriptedImap(mails, mood) as server:
        async with polling(poll(gateway, server)):
            await until(lambda: len(server.moved) == 5)
        assert set(server.moved.values()) == {"Done"}
    assert sorted(await items(gateway)) == [f"<{n}@clinic-a.example>" for n in range(1, 6)]
    assert spooled(gateway) == sorted(mails.values())


async def test_another_mail_than_was_asked_for_is_not_taken(gateway: Gateway) -> None:
    """The wrong UID is a state, not an item (R3)."""
    async with ScriptedImap({5: text_mail(1)}, Mood(uid_lie=1)) as server:
        one = poll(gateway, server)
        async with polling(one):
            await until(lambda: one.state is State.CONFUSED)
        assert server.moved == {}
    assert await items(gateway) == []


@pytest.mark.parametrize("answer", ["NO it cannot be converted", "BAD command error", "OK nothing"])
async def test_a_mail_that_the_server_does_not_give_out_is_a_state_and_holds_up_no_other(
    gateway: Gateway, answer: str
) -> None:
    """It lies there and is never taken for gone (R3); once the server gives it out it is taken."""
    mood = Mood(refuse={"UID FETCH 5 (UID BODY": answer})
    async with ScriptedImap({5: text_mail(1), 6: text_mail(2)}, mood) as server:
        one = poll(gateway, server)
        async with polling(one):
            await until(lambda: one.state is State.CONFUSED and one.counters.taken)
            mood.refuse.clear()
            await until(lambda: len(server.moved) == 2)
    assert sorted(await items(gateway)) == ["<1@clinic-a.example>", "<2@clinic-a.example>"]


def told(gateway: Gateway) -> set[tuple[str, str]]:
    with gateway.ledger.engine.connect() as connection:
        return alarms(connection)


@pytest.mark.parametrize(
    "mood",
    [
        Mood(cut_after=[0] * 100_000),
        Mood(refuse={"UID FETCH 5 (UID BODY": "NO it cannot be converted"}),
        Mood(refuse={"UID MOVE": "NO [OVERQUOTA] full"}),
        Mood(refuse={"UID MOVE": "NO no right"}, capability="IMAP4rev1 MOVE AUTH=PLAIN"),
    ],
    ids=["cut", "not given out", "full", "no idle"],
)
async def test_a_mailbox_from_which_nothing_can_be_taken_is_told_though_its_folder_can_be_listed(
    gateway: Gateway, mood: Mood, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one trouble that lasts until a look goes through, not one at each look (R3, R33)."""
    monkeypatch.setattr(mailbox, "PATIENCE", timedelta(seconds=1))
    async with ScriptedImap({5: text_mail(1)}, mood) as server:
        one = poll(gateway, server)
        async with polling(one):
            await until(lambda: told(gateway))
            mood.cut_after.clear()
            mood.refuse.clear()
            await until(lambda: server.moved and not told(gateway))
    assert await items(gateway) == ["<1@clinic-a.example>"]


async def test_a_mail_whose_download_keeps_breaking_holds_up_neither_others_nor_their_filing(gateway: Gateway) -> None:
    """They are taken first, and moved (R15)."""
    mood = Mood(refuse={"UID FETCH 5 (UID BODY": "NO it cannot be converted"})
    async with ScriptedImap({5: text_mail(1)}, mood) as server:
        one = poll(gateway, server)
        async with polling(one):
            await until(lambda: one.state is State.CONFUSED)
            server.mails |= {uid: text_mail(uid) for uid in range(6, 9)}
            await until(lambda: len(server.moved) == 3)
            assert list(server.mails) == [5]


async def test_a_mail_that_is_longer_than_was_said_is_moved_to_failed(gateway: Gateway) -> None:
    """The limit holds for what comes, not for what was announced (R7)."""
    async with ScriptedImap({5: LARGE, 6: text_mail(2)}, Mood(size_lie=-len(LARGE) + 500)) as server:
        one = poll(gateway, server, message=10_000)
        async with polling(one):
            await until(lambda: len(server.moved) == 2)
        assert server.moved == {5: "Failed", 6: "Done"}
    assert await items(gateway) == ["<2@clinic-a.example>"]


@pytest.mark.parametrize("command", ["CAPABILITY", "AUTHENTICATE", "SELECT", "UID SEARCH", "UID FETCH", "IDLE"])
async def test_a_mute_server_is_noticed(gateway: Gateway, command: str) -> None:
    """No command waits longer than its deadline, IDLE included (R3, R4)."""
    async with ScriptedImap({5: text_mail(1)}, Mood(mute=command)) as server:
        one = poll(gateway, server)
        async with polling(one):
            await until(lambda: one.state is State.SILENT)


async def test_a_uid_that_is_used_again_is_another_mail(gateway: Gateway) -> None:
    """Another size under a known UID: taken, not taken for processed (R2)."""
    async with ScriptedImap({5: text_mail(1)}) as server, polling(poll(gateway, server)):
        await until(lambda: server.moved)
        server.mails[5] = text_mail(10)
        await until(lambda: not server.mails)
    assert sorted(await items(gateway)) == ["<10@clinic-a.example>", "<1@clinic-a.example>"]


async def test_a_mail_moved_back_by_its_server_is_moved_again_without_a_download(gateway: Gateway) -> None:
    """A filing that got lost is done again (IMAP-6)."""
    async with ScriptedImap({5: text_mail(1)}) as server:
        async with polling(poll(gateway, server)):
            await until(lambda: server.moved)
            server.mails[5] = text_mail(1)
            await until(lambda: not server.mails)
        assert server.sent == len(text_mail(1))
    assert len(await items(gateway)) == 1


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
@pytest.mark.parametrize("more", ["", " SASL-IR"])
async def test_a_token_that_is_refused_is_a_state(mechanism: str, more: str) -> None:
    """The JSON challenge is answered, so that the refusal comes (RFC 7628 §3.2.3, IMAP-11)."""
    mood = Mood(capability=f"IMAP4rev1 AUTH={mechanism}{more}", refuse_bearer="no such words")
    async with ScriptedImap({}, mood) as server:
        with pytest.raises(MailboxError) as refused:
            await box(server, token="old").open()
        assert refused.value.state == State.TOKEN_EXPIRED


async def test_a_token_that_is_refused_is_got_anew_once(tmp_path: Path) -> None:
    """The provider took it back before its time: a new one, and the mailbox is well (IMAP-11)."""
    (tmp_path / "secret").write_text("s&cret")
    with TokenServer() as provider:
        oauth = {"token_url": SecretStr(provider.url), "client_id": "client", "scope": "mail"}
        files = {"client_secret_file": tmp_path / "secret", "refresh_token_file": None}
        tokens = Tokens(SimpleNamespace(**oauth, **files), tmp_path / "tokens", 2.0)  # type: ignore[arg-type]
        mood = Mood(capability="IMAP4rev1 SASL-IR AUTH=XOAUTH2", refuse_bearer=sasl.xoauth2("gw", "access-2"))

        async def proof() -> Proof:
            return Proof(await tokens.get(), bearer=True, forget=tokens.forget)

        async with ScriptedImap({}, mood) as server:
            session = await ImapMailbox(box(server).settings, proof, Deadlines(1, 1, 1, 0.2)).open()
            await session.close()
        assert len(provider.asked) == 2
        async with ScriptedImap({}, replace(mood, refuse_bearer="none is good")) as server:
            with pytest.raises(MailboxError) as refused:
                await ImapMailbox(box(server).settings, proof, Deadlines(1, 1, 1, 0.2)).open()
        assert (refused.value.state, len(provider.asked)) == (State.TOKEN_EXPIRED, 3)
