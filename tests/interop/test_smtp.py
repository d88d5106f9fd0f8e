"""Mail from the clients of others: swaks, a relaying Postfix, smtp-source, openssl, and Python's own."""

from __future__ import annotations

import asyncio
import smtplib
import subprocess
from pathlib import Path

import pytest
from door import certificate, client_tls, open_door
from peer import Start, program, wait_until
from postfix import Postfix
from swaks import swaks

pytestmark = pytest.mark.peer

MESSAGE = (
    b"From: a@clinic.test\r\nTo: b@gw.test\r\nSubject: x\r\n\r\n.one dot\r\n..two dots\r\n.\tnot the end\r\nbye\r\n"
)


@pytest.mark.parametrize("way", [(), ("--pipeline",), ("--tls",), ("--tls", "--pipeline")], ids="-".join)
async def test_swaks_is_served(tmp_path: Path, way: tuple[str, ...]) -> None:
    """In clear, pipelined, after STARTTLS: the message arrives as it was."""
    async with open_door(tmp_path / "d") as (door, behind):
        port = door.addresses[0][1]
        options = ("--from", "a@clinic.test", "--to", "b@gw.test", *way)
        done = await asyncio.to_thread(swaks, port, *options, message=MESSAGE)
        assert done.returncode == 0, done.stdout
        # Swaks ends its data with an empty line more.
        assert behind.taken[0].content.rstrip() == MESSAGE.rstrip()


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("way", ["--tls", "--tls-on-connect"])
async def test_swaks_authenticates(tmp_path: Path, mechanism: str, way: str) -> None:
    """On both ports, with both mechanisms; a wrong password is refused."""
    async with open_door(tmp_path / "d", implicit_tls=True, require_tls=True, users={"gw": "secret"}) as (door, behind):
        port = door.addresses[way == "--tls-on-connect"][1]
        options = ("--from", "a@clinic.test", "--to", "b@gw.test", way, "--auth", mechanism, "--auth-user", "gw")
        done = await asyncio.to_thread(swaks, port, *options, "--auth-password", "secret")
        assert done.returncode == 0, done.stdout
        assert behind.taken[0].envelope.user == "gw"
        done = await asyncio.to_thread(swaks, port, *options, "--auth-password", "wrong")
        assert "535 5.7.8" in done.stdout
        assert len(behind.taken) == 1


async def test_postfix_relays_what_it_was_given(tmp_path: Path, start: Start) -> None:
    """The hospital's own server: bytes below its Received line are what was handed in, large and small."""
    large = MESSAGE + b"".join(b"%070d\r\n" % n for n in range(100_000))
    async with open_door(tmp_path / "d", message=1 << 30) as (door, behind):
        postfix = await asyncio.to_thread(
            start, Postfix({"gw.test": door.addresses[0][1]}, smtp_tls_security_level="may")
        )
        for message in (MESSAGE, large):
            await asyncio.to_thread(postfix.sendmail, "a@clinic.test", "b@gw.test", message.replace(b"\r\n", b"\n"))
        await asyncio.to_thread(wait_until, lambda: len(behind.taken) == 2, "both messages were relayed")
        got = sorted((taken.content for taken in behind.taken), key=len)
        assert [
            content.endswith(message[message.index(b"\r\n\r\n") :])
            for content, message in zip(got, (MESSAGE, large), strict=True)
        ] == [True, True]
        assert {taken.envelope.sender for taken in behind.taken} == {"a@clinic.test"}


async def test_postfix_keeps_and_repeats_what_was_a_temporary_no(tmp_path: Path, start: Start) -> None:
    """451 and 452 delay a message; they never bounce it (R5, R6)."""
    async with open_door(tmp_path / "d") as (door, behind):
        behind.error = OSError(5, "SECRET")
        postfix = await asyncio.to_thread(start, Postfix({"gw.test": door.addresses[0][1]}))
        await asyncio.to_thread(postfix.sendmail, "a@clinic.test", "b@gw.test", MESSAGE.replace(b"\r\n", b"\n"))
        await asyncio.to_thread(wait_until, lambda: "451 4.3.0" in postfix.maillog(), "the first try was put off")
        behind.error = None
        behind.room = 0
        await asyncio.to_thread(wait_until, lambda: "452 4.3.1" in postfix.maillog(), "so was the second")
        behind.room = 1 << 40
        await asyncio.to_thread(wait_until, lambda: bool(behind.taken), "the third was taken")
        assert "status=bounced" not in postfix.maillog()
        assert "SECRET" not in postfix.maillog()


@pytest.mark.parametrize("way", [(), ("-d",), ("-N",), ("-c",)], ids="".join)
async def test_smtp_source_is_served(tmp_path: Path, way: tuple[str, ...]) -> None:
    """Ten connections at once, one for each message and kept."""
    async with open_door(tmp_path / "d", commands=1000) as (door, behind):
        command = [program("smtp-source"), "-s", "10", "-m", "200", "-l", "20000", *way]
        command += ["-f", "a@clinic.test", "-t", "b@gw.test", f"127.0.0.1:{door.addresses[0][1]}"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert len(behind.taken) == 200


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
async def test_openssl_verifies_the_certificate_and_speaks_tls(tmp_path: Path, implicit: bool) -> None:
    """The newest protocol, and a certificate for the right name."""
    async with open_door(tmp_path / "d", implicit_tls=True) as (door, _):
        port = door.addresses[implicit][1]
        command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(certificate())]
        command += ["-verify_return_error", "-verify_hostname", "gw.example", "-crlf", "-ign_eof"]
        command += [] if implicit else ["-starttls", "smtp"]
        words = b"EHLO client.test\nQUIT\n"
        done = await asyncio.to_thread(subprocess.run, command, input=words, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert b"Verify return code: 0 (ok)" in done.stdout
        assert b"TLSv1.3" in done.stdout
        assert b"221 2.0.0" in done.stdout


async def test_pythons_client_is_served(tmp_path: Path) -> None:
    """Scripts in hospitals use it: STARTTLS, AUTH, eight bits, UTF-8, and a refusal it understands."""

    def converse(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.starttls(context=client_tls())
            client.login("gw", "secret")
            assert client.sendmail("a@clinic.test", "b@gw.test", MESSAGE) == {}
            assert (
                client.sendmail("ä@clinic.test", "b@gw.test", MESSAGE, mail_options=["SMTPUTF8", "BODY=8BITMIME"]) == {}
            )
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                client.sendmail("a@clinic.test", "x@gw.test", MESSAGE)
            assert client.verify("b@gw.test")[0] == 252

    async with open_door(tmp_path / "d", users={"gw": "secret"}) as (door, behind):
        behind.known = {"b@gw.test"}
        await asyncio.to_thread(converse, door.addresses[0][1])
        assert [taken.content for taken in behind.taken] == [MESSAGE, MESSAGE]
        assert [taken.envelope.user for taken in behind.taken] == ["gw", "gw"]
