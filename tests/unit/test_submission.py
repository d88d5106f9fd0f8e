"""Submitting mail to a relay that follows a script: every answer ends in the one true outcome."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from door import certificate, server_tls
from pydantic import SecretStr
from scripted_relay import GOOD, ScriptedRelay
from token_server import TokenServer

from gateway.edges.oauth import Tokens
from gateway.edges.submission import Deadlines, Relay, reply, xtext
from gateway.errors import RelayError
from gateway.model import Mail, Reply, Span

PATIENT = Deadlines(10, 10, 10, 10, 10, 10, 10)
HASTY = Deadlines(0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2)
"""For a peer that says nothing: whichever deadline ends it, the outcome is the same."""


@dataclass(frozen=True)
class Settings:
    """A section [relay]."""

    port: int
    host: str = "127.0.0.1"
    tls: str = "none"
    ca: Path | None = None
    user: str | None = None
    password_file: Path | None = None


def relay(peer: ScriptedRelay, **settings: object) -> Relay:
    """Our side, towards a scripted relay."""
    deadlines = HASTY if "MUTE" in peer.script.values() else PATIENT
    return Relay(replace(Settings(peer.port), **settings), "gw.hospital.test", deadlines)


@pytest.fixture
def mail(tmp_path: Path) -> Mail:
    """A mail with dots at line starts, somewhere in a file."""
    content = b"Subject: x\r\n\r\n.\r\n..two\r\nbody\r\n" + b"A" * 76 * 1000 + b"\r\n.end\r\n"
    path = tmp_path / "mail.eml"
    path.write_bytes(b"before" + content + b"behind")
    span = Span(path, 6, 6 + len(content))
    return Mail(span, "gw@hospital.test", ("a@clinic.test", "b@clinic.test"), "out-1")


def content(mail: Mail) -> bytes:
    """The bytes that a mail must arrive as."""
    return mail.content.path.read_bytes()[mail.content.start : mail.content.end]


async def test_a_mail_arrives_byte_for_byte_and_asks_for_reports(mail: Mail) -> None:
    """DSN-1, SMTP-14: dots are doubled and undone, the size is declared, headers only come back."""
    async with ScriptedRelay().serving() as peer:
        us = relay(peer)
        result = await us.submit(mail)
    assert peer.mails == [content(mail)]
    assert not result.doubtful
    assert result.replies == tuple((one, Reply(250, "2.0.0", "2.0.0 queued")) for one in mail.recipients)
    assert us.announced == 1_000_000
    assert peer.commands == [
        "EHLO gw.hospital.test",
        f"MAIL FROM:<gw@hospital.test> SIZE={mail.content.size} RET=HDRS ENVID=out-1",
        "RCPT TO:<a@clinic.test> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;a@clinic.test",
        "RCPT TO:<b@clinic.test> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;b@clinic.test",
        "DATA",
        "QUIT",
    ]


async def test_the_null_sender_and_a_relay_without_extensions_get_the_plain_commands(mail: Mail) -> None:
    """A notice goes out with the null sender; what was not offered is not used."""
    async with ScriptedRelay({"EHLO": "250 relay.test"}).serving() as peer:
        us = relay(peer)
        await us.submit(replace(mail, sender="", recipients=("it@hospital.test",)))
    assert us.announced is None
    assert peer.commands[1:3] == ["MAIL FROM:<>", "RCPT TO:<it@hospital.test>"]


async def test_a_recipient_that_is_refused_keeps_its_own_reply(mail: Mail) -> None:
    """SMTP-16: one address is refused, the mail goes to the other."""
    async with ScriptedRelay({"RCPT": ["550 5.1.1 unknown", "250 2.1.5 ok"]}).serving() as peer:
        result = await relay(peer).submit(mail)
    assert [answer.code for _, answer in result.replies] == [550, 250]
    assert result.replies[0][1].permanent
    assert result.replies[1][1].good
    assert len(peer.mails) == 1


async def test_without_a_recipient_no_data_are_sent(mail: Mail) -> None:
    """SMTP-16: when everybody is refused, for now or for good, the content stays here."""
    async with ScriptedRelay({"RCPT": ["450 4.2.1 later", "550 5.1.1 unknown"]}).serving() as peer:
        result = await relay(peer).submit(mail)
    assert [(one.code, one.permanent) for _, one in result.replies] == [(450, False), (550, True)]
    assert "DATA" not in peer.commands


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ({"MAIL": "552 5.3.4 too big"}, 552),
        ({"MAIL": "451 4.3.0 later"}, 451),
        ({"DATA": "554 5.5.1 no valid recipients"}, 554),
        ({"dot": "554 5.7.1 not wanted"}, 554),
        ({"dot": "452 4.3.1 full"}, 452),
        ({"dot": "421 4.3.2 closing"}, 421),
    ],
)
async def test_a_refusal_of_the_mail_is_the_reply_for_every_recipient(
    mail: Mail, script: Mapping[str, str], code: int
) -> None:
    """R13: a definite answer is never in doubt."""
    async with ScriptedRelay(script).serving() as peer:
        result = await relay(peer).submit(mail)
    assert [answer.code for _, answer in result.replies] == [code, code]
    assert not result.doubtful


@pytest.mark.parametrize("answer", ["DROP", "MUTE", "nonsense", "354 what"])
async def test_a_lost_reply_to_the_final_dot_is_in_doubt(mail: Mail, answer: str) -> None:
    """RFC 1047: everything was sent, and nobody knows whether the relay has it."""
    async with ScriptedRelay({"dot": answer}).serving() as peer:
        result = await relay(peer).submit(mail)
    assert result.doubtful
    assert result.replies == ()
    assert len(peer.mails) == 1


@pytest.mark.parametrize("step", ["greeting", "EHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("answer", ["DROP", "MUTE", "421 4.3.2 closing", "nonsense"])
async def test_a_relay_that_fails_before_the_end_was_given_nothing(mail: Mail, step: str, answer: str) -> None:
    """R4, R13: a cut, silence or 421 before the final dot is the relay's trouble, and the mail can be sent again."""
    async with ScriptedRelay({step: answer}).serving() as peer:
        with pytest.raises(RelayError) as caught:
            await relay(peer).submit(mail)
    assert not caught.value.lasting
    assert caught.value.within == (step == "DATA")
    assert not peer.mails


async def test_a_cut_in_the_middle_of_the_content_is_no_doubt(tmp_path: Path, mail: Mail) -> None:
    """What the relay has not got whole it cannot have taken."""
    path = tmp_path / "big.eml"
    path.write_bytes(b"x" * 20_000_000)
    big = replace(mail, content=Span(path, 0, 20_000_000))
    async with ScriptedRelay({"EHLO": "250 relay.test"}, early=(100_000, "")).serving() as peer:
        with pytest.raises(RelayError) as caught:
            await relay(peer).submit(big)
    assert caught.value.within


async def test_a_refusal_in_the_middle_of_the_content_is_heard(tmp_path: Path, mail: Mail) -> None:
    """A relay that says 552 and hangs up has answered."""
    path = tmp_path / "big.eml"
    path.write_bytes(b"x" * 20_000_000)
    big = replace(mail, content=Span(path, 0, 20_000_000))
    async with ScriptedRelay({"EHLO": "250 relay.test"}, early=(100_000, "552 5.3.4 too big")).serving() as peer:
        result = await relay(peer).submit(big)
    assert {answer.code for _, answer in result.replies} == {552}


@pytest.mark.parametrize(("over", "sent"), [(0, True), (1, False)])
async def test_a_mail_one_byte_over_the_announced_size_is_not_sent(mail: Mail, over: int, sent: bool) -> None:
    """R22, SMTP-14: the boundary, to the byte."""
    offer = f"250-relay.test\r\n250 SIZE {mail.content.size - over}"
    async with ScriptedRelay({"EHLO": offer}).serving() as peer:
        result = await relay(peer).submit(mail)
    assert bool(peer.mails) is sent
    assert {answer.code for _, answer in result.replies} == {250 if sent else 552}


async def test_a_mail_that_lost_bytes_is_our_trouble_and_is_never_ended(mail: Mail) -> None:
    """R22: never truncated: the final dot is not sent."""
    short = replace(mail, content=Span(mail.content.path, 0, mail.content.size + 1000))
    async with ScriptedRelay().serving() as peer:
        with pytest.raises(OSError, match="shorter"):
            await relay(peer).submit(short)
    assert not peer.mails


# TLS and AUTH


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A password file."""
    path = tmp_path / "password"
    path.write_text("pass wörd\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("implicit", [False, True])
async def test_password_and_mail_go_over_tls_alone(mail: Mail, secret: Path, implicit: bool) -> None:
    """SMTP-9: implicit or by STARTTLS, the certificate checked; AUTH only behind it."""
    offers = [GOOD["EHLO"].replace("SIZE 1000000", "STARTTLS"), GOOD["EHLO"]]
    script = {} if implicit else {"EHLO": offers}
    async with ScriptedRelay(script, tls=server_tls(), implicit=implicit).serving() as peer:
        tls = "implicit" if implicit else "starttls"
        us = relay(peer, tls=tls, ca=certificate(), user="gw", password_file=secret)
        result = await us.submit(mail)
    assert all(answer.good for _, answer in result.replies)
    assert peer.commands.index("STARTTLS") == 1 if not implicit else "STARTTLS" not in peer.commands
    assert "AUTH PLAIN AGd3AHBhc3Mgd8O2cmQ=" in peer.commands


async def test_login_is_used_where_plain_is_not_offered(mail: Mail, secret: Path) -> None:
    """Old Exchange relays know LOGIN alone."""
    script: dict[str, str | Sequence[str]] = {
        "EHLO": "250-relay.test\r\n250 AUTH LOGIN",
        "AUTH": ["334 UGFzc3dvcmQ6", "235 2.7.0 welcome"],
    }
    async with ScriptedRelay(script, tls=server_tls(), implicit=True).serving() as peer:
        us = relay(peer, tls="implicit", ca=certificate(), user="gw", password_file=secret)
        await us.submit(mail)
    assert peer.commands[1:3] == ["AUTH LOGIN Z3c=", "cGFzcyB3w7ZyZA=="]


@pytest.mark.parametrize(
    ("script", "settings", "says"),
    [
        ({}, {"tls": "starttls"}, "offers no STARTTLS"),
        ({"EHLO": "250-relay.test\r\n250 STARTTLS"}, {"tls": "starttls"}, "certificate"),
        ({"AUTH": "535 5.7.8 wrong"}, {"user": "gw"}, "refuses the login"),
        ({"EHLO": "250-relay.test\r\n250 AUTH GSSAPI"}, {"user": "gw"}, "neither AUTH PLAIN nor LOGIN"),
        ({"MAIL": "530 5.7.0 authenticate first"}, {}, "530"),
        ({"DATA": "530 5.7.0 authenticate first"}, {}, "530"),
    ],
)
async def test_what_will_not_pass_by_itself_is_said_to_be_lasting(
    mail: Mail, secret: Path, script: Mapping[str, str], settings: Mapping[str, object], says: str
) -> None:
    """Never downgraded by itself; a person is told at once what is wrong."""
    if "user" in settings:
        settings = {**settings, "password_file": secret}
    async with ScriptedRelay(script, tls=server_tls()).serving() as peer:
        with pytest.raises(RelayError, match=says) as caught:
            await relay(peer, **settings).submit(mail)
    assert caught.value.lasting
    assert not caught.value.within
    assert not peer.mails


async def test_a_certificate_for_another_name_is_refused(mail: Mail) -> None:
    """BCP 195: the name that is checked is the one in the configuration."""
    async with ScriptedRelay(tls=server_tls(), implicit=True).serving() as peer:
        with pytest.raises(RelayError, match="not good") as caught:
            await relay(peer, host="localhost", tls="implicit", ca=certificate()).submit(mail)
    assert caught.value.lasting


async def test_no_password_is_sent_in_the_clear_beyond_this_machine(
    secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SMTP-9: also where somebody configured tls = none."""
    monkeypatch.setattr("gateway.edges.submission.is_loopback", lambda _: False)
    async with ScriptedRelay().serving() as peer:
        with pytest.raises(RelayError, match="in the clear"):
            await relay(peer, user="gw", password_file=secret).greet()
    assert not any(line.startswith("AUTH") for line in peer.commands)


async def test_files_that_cannot_be_used_are_named(mail: Mail, tmp_path: Path) -> None:
    """A lost password file or anchor is no outage of the relay: a person must act."""
    async with ScriptedRelay().serving() as peer:
        with pytest.raises(RelayError, match=r"relay\.password_file") as caught:
            await relay(peer, user="gw", password_file=tmp_path / "none").submit(mail)
        assert caught.value.lasting
        with pytest.raises(RelayError, match=r"relay\.ca"):
            await relay(peer, tls="implicit", ca=tmp_path / "none").submit(mail)


async def test_a_relay_that_is_not_there_is_unreachable(mail: Mail) -> None:
    """Exit code 3, and words with the address of the configuration."""
    async with ScriptedRelay().serving() as peer:
        pass
    with pytest.raises(RelayError, match=f"127.0.0.1:{peer.port} cannot be reached: ConnectionRefusedError"):
        await relay(peer).submit(mail)


async def test_greeting_a_relay_opens_a_session_and_leaves() -> None:
    """What echo and check ask."""
    async with ScriptedRelay({"QUIT": "DROP"}).serving() as peer:
        await relay(peer).greet()
    assert peer.commands == ["EHLO gw.hospital.test", "QUIT"]


async def test_a_cancelled_submission_ends_at_once(mail: Mail) -> None:
    """R31: a stop does not wait for a relay that thinks."""
    async with ScriptedRelay({"dot": "MUTE"}).serving() as peer:
        us = Relay(Settings(peer.port), "gw.hospital.test")
        task = asyncio.create_task(us.submit(mail))
        async with asyncio.timeout(10):
            await peer.taken.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_an_address_beyond_ascii_is_refused_here(mail: Mail) -> None:
    """SMTPUTF8 is not spoken: a definite answer, never a crash."""
    async with ScriptedRelay().serving() as peer:
        result = await relay(peer).submit(replace(mail, recipients=("ä@clinic.test",)))
        assert result.replies[0][1].status == "5.6.7"
        result = await relay(peer).submit(replace(mail, sender="ä@clinic.test"))
        assert result.replies[0][1].status == "5.6.7"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5.1.1 <x@y>: unknown", Reply(550, "5.1.1", "5.1.1 <x@y>: unknown")),
        ("no status\r\nbut lines\x00\x7f", Reply(550, "", "no status but lines")),
        ("5.1.1", Reply(550, "5.1.1", "5.1.1")),
        ("5.1.12345 odd", Reply(550, "", "5.1.12345 odd")),
        ("x" * 500, Reply(550, "", "x" * 200)),
    ],
)
def test_a_reply_is_kept_as_one_short_line(text: str, expected: Reply) -> None:
    """RFC 3463, R35: what a server says is shown, but never more than a line."""
    assert reply(550, text) == expected


def test_values_of_dsn_parameters_are_written_as_xtext() -> None:
    """RFC 3461 §4."""
    assert xtext("out-1+a=b ü") == "out-1+2Ba+3Db+20+C3+BC"


def test_deadlines_are_at_least_those_of_the_standard() -> None:
    """SMTP-12: RFC 5321 §4.5.3.2."""
    ours = Deadlines()
    assert (ours.greeting, ours.command, ours.data, ours.block, ours.final) >= (300, 300, 120, 180, 600)


# Tokens in place of a password


XOAUTH2 = GOOD["EHLO"].replace("AUTH PLAIN LOGIN", "AUTH LOGIN XOAUTH2")
OAUTHBEARER = GOOD["EHLO"].replace("AUTH PLAIN LOGIN", "AUTH XOAUTH2 OAUTHBEARER")
CHALLENGE = "334 eyJzdGF0dXMiOiI0MDEifQ=="


def by_token(peer: ScriptedRelay, server: TokenServer, folder: Path) -> Relay:
    """Our side, with tokens of a real endpoint."""
    (folder / "secret").write_text(server.secret)
    section = SimpleNamespace(
        token_url=SecretStr(server.url),
        client_id="client",
        client_secret_file=folder / "secret",
        scope="https://mail.example/.default",
        refresh_token_file=None,
    )
    tokens = Tokens(section, folder / "tokens", 2.0)  # type: ignore[arg-type]
    return Relay(Settings(peer.port, user="gw@hospital.test"), "gw.hospital.test", PATIENT, tokens)


def logins(peer: ScriptedRelay) -> list[str]:
    """The tokens that were shown, decoded."""
    shown = [line.split(" ")[2] for line in peer.commands if line.startswith("AUTH ")]
    return [b64decode(one).decode() for one in shown]


@pytest.fixture
def server() -> Iterator[TokenServer]:
    """A provider of tokens."""
    with TokenServer() as made:
        yield made


@pytest.mark.parametrize("ehlo", [XOAUTH2, OAUTHBEARER])
async def test_a_relay_is_logged_in_to_by_token(mail: Mail, tmp_path: Path, server: TokenServer, ehlo: str) -> None:
    """IMAP-11: by either mechanism, with one token for many mails."""
    async with ScriptedRelay({"EHLO": ehlo}).serving() as peer:
        us = by_token(peer, server, tmp_path)
        for _ in range(2):
            assert all(answer.good for _, answer in (await us.submit(mail)).replies)
    first = "n,a=gw@hospital.test,\1" if ehlo == OAUTHBEARER else "user=gw@hospital.test\1"
    assert len(server.asked) == 1
    assert [one.startswith(first) and "auth=Bearer access-1\1\1" in one for one in logins(peer)] == [True, True]


@pytest.mark.parametrize(("ehlo", "answer"), [(XOAUTH2, ""), (OAUTHBEARER, "AQ==")])
async def test_a_token_that_the_relay_refuses_is_got_anew_once(
    mail: Mail, tmp_path: Path, server: TokenServer, ehlo: str, answer: str
) -> None:
    """RFC 7628 §3.2.3: the challenge is answered, a new token is shown, and the mail goes."""
    script = {"EHLO": ehlo, "AUTH": [CHALLENGE, "535 5.7.8 expired", "235 2.7.0 welcome"]}
    async with ScriptedRelay(script).serving() as peer:
        result = await by_token(peer, server, tmp_path).submit(mail)
    assert [one.split("Bearer ")[1] for one in logins(peer)] == ["access-1\1\1", "access-2\1\1"]
    assert peer.commands[2] == answer
    assert len(result.replies) == 2


@pytest.mark.parametrize(
    ("script", "lasting"),
    [
        ({"AUTH": "535 5.7.3 no"}, True),
        ({"AUTH": "454 4.7.0 later"}, False),
        ({"AUTH": ["535 5.7.3 no", "DROP"]}, False),
        ({"EHLO": GOOD["EHLO"]}, True),
    ],
)
async def test_a_login_by_token_that_fails_is_told_by_its_kind(
    mail: Mail, tmp_path: Path, server: TokenServer, script: Mapping[str, str | Sequence[str]], lasting: bool
) -> None:
    """R13: the relay was given nothing; a person is told at once of what does not pass."""
    async with ScriptedRelay({"EHLO": XOAUTH2, **script}).serving() as peer:
        with pytest.raises(RelayError) as caught:
            await by_token(peer, server, tmp_path).submit(mail)
    assert caught.value.lasting == lasting
    assert "access" not in str(caught.value)
    assert len(server.asked) <= 2


async def test_without_a_token_nobody_is_logged_in(mail: Mail, tmp_path: Path, server: TokenServer) -> None:
    """The provider refuses: its kind is kept, and the relay is shown nothing."""
    server.answer = (400, '{"error": "invalid_client"}')
    async with ScriptedRelay({"EHLO": XOAUTH2}).serving() as peer:
        with pytest.raises(RelayError, match="no token for the relay") as caught:
            await by_token(peer, server, tmp_path).submit(mail)
    assert caught.value.lasting
    assert logins(peer) == []
