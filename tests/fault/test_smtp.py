"""The SMTP door when peers are slow, gone or hostile, when the disk is full, and when the gateway stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from door import PATIENCE, Behind, SmtpPeer, open_door, peer_of
from structlog.testing import capture_logs

from gateway.edges import smtp
from gateway.edges.smtp import Deadlines
from gateway.errors import LedgerError, LowDiskError, RefusedError, WorkerError
from gateway.ledger.drafts import Draft

SHORT = 0.05


async def begin_data(peer: SmtpPeer) -> None:
    """Go as far as the data."""
    for command in ("MAIL FROM:<a@clinic.example>", "RCPT TO:<b@gw.example>"):
        assert (await peer.say(command)).startswith("250")
    assert (await peer.say("DATA")).startswith("354")


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so; the test's own time-out ends it when it never is."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  nobody there would tell us
            await asyncio.sleep(0.005)


# --- deadlines (R4) ---


@pytest.mark.parametrize("said", [b"", b"NOO", b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nNO"])
async def test_a_peer_that_says_no_more_is_shown_out(tmp_path: Path, said: bytes) -> None:
    """Between commands and in the middle of one (SMTP-11)."""
    async with open_door(tmp_path / "d", deadlines=Deadlines(command=SHORT)) as (door, _), peer_of(door) as peer:
        await peer.send(said)
        lines = [await peer.line() for _ in range(1 + said.count(b"\n"))]
        assert lines[-1] == b"421 4.4.2 you took too long"
        assert await peer.line() == b""


async def test_a_dribble_does_not_keep_a_command_open(tmp_path: Path) -> None:
    """The deadline is for the whole command, not for each byte."""
    async with open_door(tmp_path / "d", deadlines=Deadlines(command=0.2)) as (door, _), peer_of(door) as peer:

        async def dribble() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await peer.send(b"N")
                    await asyncio.sleep(0.01)

        dribbling = asyncio.create_task(dribble())
        assert (await peer.line()).startswith(b"421 4.4.2")
        dribbling.cancel()
        await asyncio.gather(dribbling, return_exceptions=True)


async def test_data_that_stops_is_given_up(tmp_path: Path) -> None:
    """No byte within the deadline: no message, and its draft is gone."""
    async with open_door(tmp_path / "d", deadlines=Deadlines(block=SHORT)) as (door, behind), peer_of(door) as peer:
        await begin_data(peer)
        await peer.send(b"Subject: x\r\n")
        assert (await peer.line()).startswith(b"421 4.4.2")
        await until(lambda: not door.connections)
        assert behind.taken == []
        assert behind.left() == []


async def test_data_that_never_ends_is_given_up(tmp_path: Path) -> None:
    """A byte now and then does not hold a place for ever."""
    deadlines = Deadlines(block=10, transaction=0.2)
    async with open_door(tmp_path / "d", deadlines=deadlines) as (door, behind), peer_of(door) as peer:
        await begin_data(peer)

        async def dribble() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await peer.send(b"x")
                    await asyncio.sleep(0.01)

        dribbling = asyncio.create_task(dribble())
        assert (await peer.line()).startswith(b"421 4.4.2")
        dribbling.cancel()
        await asyncio.gather(dribbling, return_exceptions=True)
        assert behind.taken == []


async def test_a_peer_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    """Replies that nobody takes hold neither a place nor memory."""
    deadlines = Deadlines(reply=SHORT, farewell=SHORT)
    async with open_door(tmp_path / "d", deadlines=deadlines, commands=10**9) as (door, _):
        with socket.socket() as mute:
            mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            mute.setblocking(False)
            await asyncio.get_running_loop().sock_connect(mute, door.addresses[0])
            await until(lambda: door.connections)
            words = b"HELP\r\n" * 1000
            while door.connections:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    mute.send(words)
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
async def test_a_handshake_that_does_not_come_is_given_up(tmp_path: Path, implicit: bool) -> None:
    """Neither a mute peer nor one that speaks something else holds a place."""
    deadlines = Deadlines(handshake=SHORT, farewell=SHORT)
    async with open_door(tmp_path / "d", implicit_tls=True, deadlines=deadlines) as (door, _):
        reader, writer = await asyncio.open_connection(*door.addresses[implicit])
        if not implicit:
            await reader.readline()
            writer.write(b"STARTTLS\r\n")
            assert (await reader.readline()).startswith(b"220")
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        await until(lambda: not door.connections)
        writer.close()


@pytest.mark.parametrize(
    "words", [b"MAIL FROM:<evil@clinic.example>\r\n" * 20, b"\x16\x03\x01\xff\xff" + b"\0" * 70_000]
)
async def test_what_is_no_handshake_ends_the_session(tmp_path: Path, words: bytes) -> None:
    """Clear text and nonsense after STARTTLS are no commands."""
    async with open_door(tmp_path / "d") as (door, behind), peer_of(door) as peer:
        assert (await peer.say("STARTTLS")).startswith("220")
        with contextlib.suppress(ConnectionError):
            await peer.send(words)
            rest = await asyncio.wait_for(peer.reader.read(), PATIENCE)
            assert b"250" not in rest
        await until(lambda: not door.connections)
        assert behind.taken == []


async def test_a_peer_that_goes_away_in_the_handshake_is_forgotten(tmp_path: Path) -> None:
    """Its place is free at once."""
    async with open_door(tmp_path / "d", implicit_tls=True) as (door, _):
        _, writer = await asyncio.open_connection(*door.addresses[1])
        await until(lambda: door.connections)
        writer.close()
        await until(lambda: not door.connections)


async def test_the_gateway_stops_during_a_handshake(tmp_path: Path) -> None:
    """Then there is nothing to say."""
    async with open_door(tmp_path / "d", implicit_tls=True) as (door, _):
        reader, writer = await asyncio.open_connection(*door.addresses[1])
        await until(lambda: door.connections)
        await door.close(1)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        assert not door.connections
        writer.close()


# --- peers that go away ---


@pytest.mark.parametrize("size", [1000, 3_000_000])
@pytest.mark.parametrize("way", ["close", "reset"])
async def test_a_message_that_breaks_off_is_none(tmp_path: Path, size: int, way: str) -> None:
    """Nothing is accepted and no draft is left (SMTP-3)."""
    async with open_door(tmp_path / "d", message=1 << 30) as (door, behind), peer_of(door) as peer:
        await begin_data(peer)
        await peer.send(b"Subject: x\r\n\r\n" + b"x" * size)
        if way == "reset":
            raw = peer.writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.writer.transport.abort()
        await until(lambda: not door.connections)
        assert behind.taken == []
        assert behind.left() == []


async def test_custody_is_taken_although_the_peer_has_left(tmp_path: Path) -> None:
    """Once accept has begun it ends; the peer will send again, and the ledger knows the message (R1)."""
    async with open_door(tmp_path / "d") as (door, behind):
        behind.gate = asyncio.Event()
        async with peer_of(door) as peer:
            await begin_data(peer)
            await peer.send(b"x\r\n.\r\n")
            await until(lambda: behind.begun)
            peer.writer.transport.abort()
            await asyncio.sleep(0.02)
        assert door.connections == 1
        behind.gate.set()
        await until(lambda: behind.taken)
        await until(lambda: not door.connections)


async def test_acceptance_has_all_the_time_it_needs(tmp_path: Path) -> None:
    """No deadline for the peer runs while it waits for us: a 4yz then would be a lie (SMTP-3)."""
    deadlines = Deadlines(command=SHORT, block=SHORT, reply=SHORT)
    async with open_door(tmp_path / "d", deadlines=deadlines) as (door, behind), peer_of(door) as peer:
        behind.gate = asyncio.Event()
        await begin_data(peer)
        await peer.send(b"x\r\n.\r\n")
        await asyncio.sleep(4 * SHORT)
        behind.gate.set()
        assert await peer.reply() == "250 2.0.0 queued as in-1"


# --- many peers at once ---


async def test_one_hundred_dribbling_peers_do_not_disturb_the_next(tmp_path: Path) -> None:
    """Each sends a byte at a time; another one's message goes through meanwhile, and theirs too in the end."""
    async with open_door(tmp_path / "d", connections=101) as (door, behind), contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(peer_of(door)) for _ in range(100)]
        for peer in peers:
            await begin_data(peer)
        message = b"Subject: x\r\n\r\n..\r\n.\r\n"
        for at in range(len(message) - 1):
            for peer in peers:
                peer.writer.write(message[at : at + 1])
            await asyncio.sleep(0)
        async with peer_of(door) as other:
            assert (await other.mail(b"x\r\n")).startswith("250")
        for peer in peers:
            await peer.send(message[-1:])
        assert all([(await peer.reply()).startswith("250") for peer in peers])
        assert {taken.content for taken in behind.taken[1:]} == {b"Subject: x\r\n\r\n.\r\n"}
        assert len(behind.taken) == 101


async def test_a_disk_that_stalls_stops_the_peer_and_not_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading pauses while the thread that writes is behind: memory is bounded, and others are served (R7)."""
    go = threading.Event()
    write = Draft.write
    feed = smtp._Intake.feed
    fed = [0]

    def slow(draft: Draft, block: bytes) -> None:
        assert go.wait(PATIENCE)
        write(draft, block)

    def count(intake: smtp._Intake, block: bytes) -> bytes | None:
        fed[0] += len(block)
        return feed(intake, block)

    monkeypatch.setattr(smtp._Intake, "feed", count)
    content = b"Subject: x\r\n\r\n" + (b"x" * 78 + b"\r\n") * 400_000
    async with open_door(tmp_path / "d", message=1 << 30, commands=10**9) as (door, behind), peer_of(door) as peer:
        monkeypatch.setattr(Draft, "write", slow)
        await begin_data(peer)
        sending = asyncio.create_task(peer.send(content + b".\r\n"))
        async with peer_of(door) as other:
            before = -1
            while before != fed[0]:
                before = fed[0]
                for _ in range(50):  # the other peer is served all the while
                    assert (await other.say("NOOP")).startswith("250")
        assert fed[0] <= smtp.GATHER + smtp.BEHIND + 3 * (256 << 10)
        go.set()
        await sending
        assert (await peer.reply()).startswith("250")
        assert behind.taken[0].content == content


# --- troubles inside ---

TROUBLES = [
    (OSError(5, "SECRET"), "451 4.3.0"),
    (OSError(28, "SECRET"), "45"),  # 452 when the mail was there already, else 451
    (LedgerError("SECRET"), "451 4.3.0"),
    (WorkerError("SECRET"), "451 4.3.0"),
    (LowDiskError("SECRET"), "452 4.3.1"),
    (RuntimeError("SECRET"), "451 4.3.0"),
    (KeyError("SECRET"), "451 4.3.0"),
    (MemoryError("SECRET"), "451 4.3.0"),
    (RecursionError("SECRET"), "451 4.3.0"),
    (TimeoutError("SECRET"), "451 4.3.0"),
    (ConnectionResetError("SECRET"), "451 4.3.0"),
    (UnicodeDecodeError("utf-8", b"SECRET", 0, 1, "SECRET"), "451 4.3.0"),
    (asyncio.IncompleteReadError(b"SECRET", 1), "451 4.3.0"),
]


@pytest.mark.parametrize("where", ["accept", "draft", "demand_room", "admits"])
@pytest.mark.parametrize(("error", "reply"), TROUBLES, ids=[type(error).__name__ for error, _ in TROUBLES])
async def test_trouble_inside_is_always_temporary_and_its_text_stays_inside(
    tmp_path: Path, error: Exception, reply: str, where: str
) -> None:
    """No internal error becomes a 5yz, none shows its text to peer or log, and the session goes on (R6, R35)."""
    with capture_logs() as logged:
        async with open_door(tmp_path / "d") as (door, behind), peer_of(door) as peer:
            if where == "accept":
                behind.error = error
            else:
                behind.trouble[where] = error
            got = await peer.mail(b"x\r\n")
            assert got.startswith(reply)
            assert "SECRET" not in got
            behind.error = None
            behind.trouble.clear()
            await peer.say("RSET")
            assert (await peer.mail(b"x\r\n")).startswith("250")
            assert behind.left() == []
    assert "SECRET" not in str(logged)


@pytest.mark.parametrize(
    "refusal",
    [
        RefusedError(550, "5.7.1", "no partner"),
        RefusedError(451, "4.7.1", "not now"),
        RefusedError(554, "5.4.6", "loop"),
    ],
)
async def test_a_refusal_is_given_as_it_is(tmp_path: Path, refusal: RefusedError) -> None:
    """Only what the gateway calls permanent is permanent (R6)."""
    async with open_door(tmp_path / "d") as (door, behind), peer_of(door) as peer:
        behind.error = refusal
        assert await peer.mail(b"x\r\n") == refusal.reply
        assert behind.left() == []


@pytest.mark.parametrize("size", [100, 3_000_000])
@pytest.mark.parametrize(("number", "reply"), [(28, "452 4.3.1"), (122, "452 4.3.1"), (5, "451 4.3.0")])
async def test_a_disk_that_refuses_a_block_is_a_temporary_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reply: str, size: int
) -> None:
    """The data is read to its end, its draft goes at once, and the next message is taken (R5)."""

    def full(*_: object) -> None:
        raise OSError(number, "SECRET")

    async with open_door(tmp_path / "d", message=1 << 30) as (door, behind), peer_of(door) as peer:
        with monkeypatch.context() as patch:
            patch.setattr(Draft, "write", full)
            assert (await peer.mail(b"Subject: x\r\n\r\n" + b"x" * size + b"\r\n")).startswith(reply)
        assert behind.left() == []
        assert (await peer.mail(b"x\r\n")).startswith("250")


@pytest.mark.parametrize(
    ("trouble", "reply"), [(LowDiskError("full"), "452 4.3.1"), (OSError(5, "SECRET"), "451 4.3.0")]
)
async def test_the_free_space_is_watched_while_a_message_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception, reply: str
) -> None:
    """A size that was never declared does not fill the disk; the room is given back before the data has ended (R5)."""
    monkeypatch.setattr(smtp, "ROOM_EVERY", 1 << 20)
    async with open_door(tmp_path / "d", message=1 << 30) as (door, behind), peer_of(door) as peer:
        await begin_data(peer)
        behind.trouble["demand_room"] = trouble
        await peer.send(b"Subject: x\r\n\r\n" + b"x" * 6_000_000)
        await until(lambda: behind.left() == [])
        await peer.send(b"\r\n.\r\n")
        assert (await peer.reply()).startswith(reply)


async def test_a_message_that_is_too_big_gives_its_room_back_at_once(tmp_path: Path) -> None:
    """Not only when its last byte has come: that may be long after."""
    async with open_door(tmp_path / "d", message=2_000_000) as (door, behind), peer_of(door) as peer:
        await begin_data(peer)
        await peer.send(b"Subject: x\r\n\r\n" + b"x" * 3_000_000)
        await until(lambda: behind.begun and behind.left() == [])
        await peer.send(b"\r\n.\r\n")
        assert (await peer.reply()).startswith("552 5.3.4")


async def test_a_session_that_fails_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of ours ends one session with a temporary no."""
    async with open_door(tmp_path / "d") as (door, _), peer_of(door) as peer:

        async def broken(*_: object) -> None:
            raise RuntimeError("SECRET")

        with monkeypatch.context() as patch:
            patch.setattr(smtp._Session, "_obey", broken)
            assert (await peer.say("NOOP")).startswith("250")  # it was waited for before
            assert await peer.say("NOOP") == "421 4.3.0 internal trouble, try again later"
        async with peer_of(door) as other:
            assert (await other.mail(b"x\r\n")).startswith("250")


# --- passwords ---


async def test_passwords_are_tried_two_at_a_time(tmp_path: Path) -> None:
    """Each costs memory on purpose: a hundred peers must not spend all of it."""
    running = [0, 0]
    gate = asyncio.Event()

    async def authenticate(_: str, __: str) -> bool:
        running[0] += 1
        running[1] = max(running)
        await gate.wait()
        running[0] -= 1
        return True

    async with (
        open_door(tmp_path / "d", implicit_tls=True, users={}) as (door, _),
        contextlib.AsyncExitStack() as stack,
    ):
        door.authenticate = authenticate
        peers = [await stack.enter_async_context(peer_of(door, implicit_tls=True)) for _ in range(5)]
        for peer in peers:
            await peer.send(b"AUTH PLAIN AGd3AHNlY3JldA==\r\n")
        await until(lambda: running[0] == 2)
        gate.set()
        assert [(await peer.reply())[:3] for peer in peers] == ["235"] * 5
    assert running[1] == 2


async def test_trouble_with_passwords_is_temporary(tmp_path: Path) -> None:
    """A users file that cannot be read is no wrong password (R6)."""

    async def authenticate(_: str, __: str) -> bool:
        raise OSError("SECRET")

    async with open_door(tmp_path / "d", implicit_tls=True, users={}) as (door, _):
        door.authenticate = authenticate
        async with peer_of(door, implicit_tls=True) as peer:
            assert await peer.say("AUTH PLAIN AGd3AHNlY3JldA==") == "451 4.3.0 internal trouble, try again later"


# --- stopping ---


async def test_idle_peers_are_sent_home(tmp_path: Path) -> None:
    """With a temporary no, in every state between commands."""
    async with open_door(tmp_path / "d") as (door, _), peer_of(door) as idle, peer_of(door) as busy:
        await busy.say("MAIL FROM:<a@b>")
        await door.close(1)
        for peer in (idle, busy):
            assert (await peer.line()).startswith(b"421 4.3.2")
            assert await peer.line() == b""
        assert door.connections == 0


async def test_a_message_under_way_is_given_up(tmp_path: Path) -> None:
    """It was not accepted, so the peer sends it again; its draft is gone."""
    async with open_door(tmp_path / "d", message=1 << 30) as (door, behind), peer_of(door) as peer:
        await begin_data(peer)
        await peer.send(b"Subject: x\r\n\r\n" + b"x" * 3_000_000)
        await until(behind.left)
        await door.close(1)
        # What it had sent and we had not read may cost it our last words.
        assert await peer.line() in {smtp.STOPPING.encode(), b""}
        assert behind.taken == []
        assert behind.left() == []


async def test_a_running_acceptance_is_finished_and_answered(tmp_path: Path) -> None:
    """250, and then 421 (R1, SMTP-1)."""
    async with open_door(tmp_path / "d") as (door, behind), peer_of(door) as peer:
        behind.gate = asyncio.Event()
        await begin_data(peer)
        await peer.send(b"x\r\n.\r\n")
        await until(lambda: any(session._accepting for session in door._sessions))
        closing = asyncio.create_task(door.close(PATIENCE))
        await asyncio.sleep(0.02)
        behind.gate.set()
        assert (await peer.line()).startswith(b"250 2.0.0 queued as in-1")
        assert (await peer.line()).startswith(b"421 4.3.2")
        await closing
        assert door.connections == 0


@pytest.mark.parametrize("gone", [False, True], ids=["", "peer-gone"])
async def test_an_acceptance_that_hangs_does_not_hold_up_the_end(tmp_path: Path, gone: bool) -> None:
    """After the grace it is left alone; the ledger has it or has it not, and nobody said 250 (R31)."""
    async with open_door(tmp_path / "d") as (door, behind), peer_of(door) as peer:
        behind.gate = asyncio.Event()
        await begin_data(peer)
        await peer.send(b"x\r\n.\r\n")
        await until(lambda: any(session._accepting for session in door._sessions))
        if gone:
            peer.writer.transport.abort()
            await asyncio.sleep(0.02)
        await asyncio.wait_for(door.close(SHORT), PATIENCE)
        if not gone:
            assert await peer.line() == b""
        assert behind.taken == []
        assert behind.left() == []
        assert door.connections == 0


async def test_a_write_that_hangs_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not answer any more cannot be waited for (R31)."""
    go = threading.Event()

    def hang(*_: object) -> None:
        go.wait(PATIENCE)
        raise OSError(5, "SECRET")

    async with open_door(tmp_path / "d", message=1 << 30) as (door, behind), peer_of(door) as peer:
        await begin_data(peer)
        monkeypatch.setattr(Draft, "write", hang)
        await peer.send(b"x" * 1_000_000)
        await until(lambda: any(session._intake and session._intake._jobs for session in door._sessions))
        await asyncio.wait_for(door.close(SHORT), PATIENCE)
        go.set()
        await asyncio.sleep(0.05)
        assert behind.taken == []


# --- silence (R35) ---

CANARY = "DOE^JANE"


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Everything that any logger says, at every level."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("mail.log").setLevel(logging.CRITICAL + 1)
    lines: list[str] = []
    structlog.configure(processors=[lambda _, __, event: lines.append(str(event)) or "x"])  # type: ignore[list-item,func-returns-value]
    yield lines
    lines += [str(record.__dict__) for record in caplog.records]
    structlog.reset_defaults()
    assert not [line for line in lines if CANARY in line]


async def test_nothing_that_a_peer_says_reaches_a_log(tmp_path: Path, heard: list[str]) -> None:
    """Neither a command nor an address nor a line of a message, whatever becomes of them."""
    async with open_door(tmp_path / "d", users={}) as (door, behind), peer_of(door) as peer:
        await peer.say(f"EHLO {CANARY}")
        await peer.say(f"{CANARY}")
        await peer.say(f"VRFY {CANARY}")
        await peer.say(f"AUTH PLAIN {CANARY}")
        await peer.say(f"MAIL FROM:<{CANARY}>")
        await peer.say("RSET")
        await peer.mail(f"Subject: {CANARY}\r\n\r\n{CANARY}\r\n".encode(), sender=f"{CANARY}@clinic.example")
        behind.error = ValueError(CANARY)
        await peer.mail(f"Subject: {CANARY}\r\n".encode(), recipient=f"{CANARY}@gw.example")
        behind.error = None
        await begin_data(peer)
        await peer.send(f"{CANARY}\r\n".encode())
    assert any("smtp-refused" in line for line in heard)


async def test_no_reply_repeats_what_a_peer_said(tmp_path: Path) -> None:
    """An echo is how words get into the logs of others."""
    async with open_door(tmp_path / "d", users={}) as (door, _), peer_of(door) as peer:
        for command in (
            "EHLO {}",
            "{}",
            "VRFY {}",
            "EXPN {}",
            "HELP {}",
            "MAIL FROM:<{}",
            "MAIL FROM:<a@b> {}=1",
            "NOOP {}",
        ):
            assert CANARY not in await peer.say(command.format(CANARY))


async def test_the_greeting_names_no_software(tmp_path: Path) -> None:
    """Nor does any other reply."""
    async with open_door(tmp_path / "d") as (door, _), peer_of(door, greet=False) as peer:
        words = [await peer.reply(), await peer.say("EHLO x"), await peer.say("HELP"), await peer.say("QUIT")]
        assert not [word for word in words if "ython" in word or "smtpd" in word or "1." in word.replace("2.1.", "")]


def test_the_stand_in_is_what_the_door_asks_for() -> None:
    """A stand-in that drifts from the contract shows nothing."""
    wanted = {name for name in vars(smtp.Incoming) if not name.startswith("_")}
    assert wanted == {"admits", "demand_room", "draft", "accept"}
    assert wanted <= set(vars(Behind))
