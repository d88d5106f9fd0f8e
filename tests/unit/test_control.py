"""The operator's verbs: asked of the daemon by its socket, or done alone under the lock; who did it is on record."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import socket
import sqlite3
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rows import configuration, instance, queue
from sqlalchemy import select

from gateway import control
from gateway.config import Configuration
from gateway.control import ControlSocket, call
from gateway.errors import FolderInUseError, GatewayError, LedgerError, UsageError
from gateway.ledger.ledger import Ledger, Lock, connect
from gateway.ledger.spool import wipe
from gateway.ledger.tables import event, message

ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def loaded(tmp_path: Path) -> Configuration:
    """A gateway that ran once and has two items."""
    made = configuration(tmp_path)
    Lock(made.gateway.data).release()
    engine = connect(control.ledger_url(made))
    with engine.begin() as connection:
        queue(connection, "in-1")
        queue(connection, "in-2", instance(2))
    engine.dispose()
    for suffix in ("eml", "dcm"):
        path = control.spool_root(made) / f"2026112312/in-1.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return made


def who(loaded: Configuration) -> set[str]:
    engine = connect(control.ledger_url(loaded))
    with engine.connect() as connection:
        found = set(connection.scalars(select(event.c.who).where(event.c.who.is_not(None))))
    engine.dispose()
    return found


@contextlib.asynccontextmanager
async def daemon(loaded: Configuration) -> AsyncIterator[Path]:
    """What the service does with the socket, and nothing else."""
    lock = Lock(loaded.gateway.data)
    ledger = Ledger(connect(control.ledger_url(loaded)))

    async def perform(verb: str, arguments: Mapping[str, Any], person: str) -> dict[str, Any]:
        if verb == "break":
            raise RuntimeError("SECRET")
        for blob in await ledger.write(lambda c: control.change(c, verb, arguments, person)):
            wipe(control.spool_root(loaded), blob)
        return await ledger.read(lambda c: control.describe(c, arguments))

    path = loaded.gateway.data / "control.sock"
    path.touch()  # stale, of a former life
    door = ControlSocket(path, perform)
    await door.open()
    try:
        yield path
    finally:
        await door.close()
        await door.close()
        ledger.close()
        lock.release()


async def ask(loaded: Configuration, verb: str, **arguments: Any) -> dict[str, Any]:
    return await asyncio.to_thread(call, loaded, verb, **arguments)


VERBS: list[tuple[str, dict[str, Any], str]] = [
    ("retry", {"id": "in-1", "force": False}, "waiting"),
    ("hold", {"id": "in-1"}, "held"),
    ("release", {"id": "in-1"}, "waiting"),
    ("retry", {"id": "in-1"}, "waiting"),
    ("drop", {"id": "in-1"}, "refused"),
]


@pytest.mark.parametrize("with_daemon", [False, True], ids=["alone", "daemon"])
async def test_each_verb_answers_with_the_item_as_it_is_now(loaded: Configuration, with_daemon: bool) -> None:
    """The same by socket and alone, and the story names who did it."""
    async with contextlib.AsyncExitStack() as stack:
        if with_daemon:
            await stack.enter_async_context(daemon(loaded))
        for verb, arguments, expected in VERBS:
            assert (await ask(loaded, verb, **arguments))["outcome"] == expected
        paused = await ask(loaded, "pause", ae="pacs")
        assert paused == {"name": "pacs", "paused": True, "trouble": None}
        assert not (await ask(loaded, "resume", ae="pacs"))["paused"]
        with pytest.raises(GatewayError, match="nothing of in-2 is in doubt") as caught:
            await ask(loaded, "resolve", id="in-2", verdict="delivered")
        assert (caught.value.exit_code, bool(caught.value.hint)) == (1, True)
    assert who(loaded) == {ME}
    assert not (loaded.gateway.data / "control.sock").exists()


@pytest.mark.parametrize("with_daemon", [False, True], ids=["alone", "daemon"])
async def test_what_cannot_be_done_is_an_error_of_its_kind(loaded: Configuration, with_daemon: bool) -> None:
    """Unknown id: exit 1 and one line; unknown verb or verdict: exit 2, usage (contract)."""
    async with contextlib.AsyncExitStack() as stack:
        if with_daemon:
            await stack.enter_async_context(daemon(loaded))
        with pytest.raises(GatewayError, match="there is no item in-9") as caught:
            await ask(loaded, "hold", id="in-9")
        assert caught.value.exit_code == 1
        for verb, arguments in (("explode", {"id": "in-1"}), ("resolve", {"id": "in-1", "verdict": "perhaps"})):
            with pytest.raises(UsageError) as used:
                await ask(loaded, verb, **arguments)
            assert used.value.exit_code == 2
    if not with_daemon:
        with pytest.raises(GatewayError, match="no destination nowhere") as caught:
            await ask(loaded, "pause", ae="nowhere")
        assert caught.value.hint == "configured: pacs, other"


@pytest.mark.parametrize("with_daemon", [False, True], ids=["alone", "daemon"])
async def test_a_drop_wipes_the_bytes_only_when_told_to(loaded: Configuration, with_daemon: bool) -> None:
    """First they stay until retention; with --erase they are gone, and the item says so."""
    folder = control.spool_root(loaded) / "2026112312"
    async with contextlib.AsyncExitStack() as stack:
        if with_daemon:
            await stack.enter_async_context(daemon(loaded))
        await ask(loaded, "drop", id="in-2")
        assert len(list(folder.iterdir())) == 2
        shown = await ask(loaded, "drop", id="in-1", erase=True)
        assert (shown["outcome"], shown["purged"]) == ("refused", True)
        assert list(folder.iterdir()) == []


async def test_the_socket_is_for_its_owner_and_names_whoever_speaks(loaded: Configuration) -> None:
    """Mode 0600; the kernel says who it is, not the caller."""
    async with daemon(loaded) as path:
        assert path.stat().st_mode & 0o777 == 0o600
        await ask(loaded, "hold", id="in-1")
        with pytest.raises(FolderInUseError):
            Lock(loaded.gateway.data)
    assert who(loaded) == {ME}


async def test_nonsense_on_the_socket_ends_nothing_but_its_connection(
    loaded: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No verb, no JSON, a line without end, silence, a fault of ours: the daemon goes on, and shows no value."""
    monkeypatch.setattr(control, "PATIENCE", 0.2)
    async with daemon(loaded) as path:

        def say(line: bytes) -> bytes:
            with socket.socket(socket.AF_UNIX) as wire:
                wire.settimeout(5)
                wire.connect(str(path))
                with contextlib.suppress(OSError):
                    wire.sendall(line)
                    return wire.makefile("rb").read()
                return b""

        for line in (b"\n", b"[1]\n", b'{"verb": "hold"}\n', b'{"verb": "hold", "arguments": 5}\n'):
            answer = json.loads(await asyncio.to_thread(say, line))
            assert answer["exit"] in {1, 2}
        broken = json.loads(await asyncio.to_thread(say, b'{"verb": "break", "arguments": {}}\n'))
        assert broken == {"error": "the gateway failed: RuntimeError", "hint": "", "exit": 1}
        assert await asyncio.to_thread(say, b"x" * (control.LONGEST_LINE + 10)) == b""
        assert await asyncio.to_thread(say, b"no end") == b""
        monkeypatch.setattr(control, "PATIENCE", 30.0)
        assert (await ask(loaded, "hold", id="in-1"))["outcome"] == "held"


async def test_a_daemon_that_does_not_answer_is_said(loaded: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody does the work behind its back."""
    monkeypatch.setattr(control, "PATIENCE", 0.1)
    path = loaded.gateway.data / "control.sock"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        deaf.listen()
        with pytest.raises(GatewayError, match="no answer on its control socket"):
            await ask(loaded, "hold", id="in-1")
    with pytest.raises(GatewayError, match="cannot be used"):
        await ask(configuration(loaded.source.parent, TOO_LONG), "hold", id="in-1")


async def test_what_was_begun_is_ended_although_nobody_waits_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk hung while a drop was written: its bytes are wiped all the same, for the ledger says that they are."""
    monkeypatch.setattr(control, "PATIENCE", 0.1)
    go_on, wiped = asyncio.Event(), asyncio.Event()

    async def perform(_verb: str, _arguments: Mapping[str, Any], _person: str) -> dict[str, Any]:
        await go_on.wait()
        wiped.set()
        return {}

    door = ControlSocket(tmp_path / "control.sock", perform)
    await door.open()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
    writer.write(b'{"verb": "drop", "arguments": {}}\n')
    assert await reader.read() == b""
    go_on.set()
    async with asyncio.timeout(10):
        await wiped.wait()
    writer.close()
    await door.close()


TOO_LONG = f'[gateway]\nname = "gw.example"\npostmaster = "a@gw.example"\ndata = "{"d" * 120}"\n'


async def test_a_socket_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    """A folder that is too long for a socket, for one."""
    with pytest.raises(GatewayError, match=r"control socket .* cannot be made"):
        await ControlSocket(tmp_path / ("d" * 120), lambda *_: None).open()


def test_a_second_person_alone_is_refused_while_the_first_works(loaded: Configuration) -> None:
    """Without a daemon the lock decides (R30)."""
    lock = Lock(loaded.gateway.data)
    with pytest.raises(FolderInUseError):
        call(loaded, "hold", id="in-1")
    lock.release()
    assert call(loaded, "hold", id="in-1")["outcome"] == "held"


def test_a_process_whose_user_has_no_name_is_recorded_by_number(
    loaded: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container runs under any number."""

    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    call(loaded, "hold", id="in-1")
    assert who(loaded) == {f"uid {os.getuid()}"}


def test_a_disk_that_fails_alone_is_one_clear_line(loaded: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a traceback nor a lock that stays."""

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(control, "wipe", fail)
        with pytest.raises(LedgerError, match="it could not be done: OSError"):
            call(loaded, "drop", id="in-1", erase=True)
    assert call(loaded, "hold", id="in-2")["outcome"] == "held"


# Questions


def test_before_the_first_start_there_is_nothing_and_no_error(tmp_path: Path) -> None:
    """An empty list, a proof that holds, and no file made."""
    made = configuration(tmp_path)
    assert call(made, "list")["items"] == []
    proof = call(made, "reconcile")
    assert (proof["in"], proof["unaccounted"]) == (0, 0)
    with pytest.raises(GatewayError, match="no item in-1") as caught:
        call(made, "show", id="in-1")
    assert caught.value.exit_code == 1
    assert not made.gateway.data.exists()


async def test_questions_are_answered_beside_a_running_writer(loaded: Configuration) -> None:
    """No lock is needed to read, and none is taken."""
    async with daemon(loaded):
        assert [one["id"] for one in (await ask(loaded, "list"))["items"]] == ["in-2", "in-1"]
        assert (await ask(loaded, "list", outcome="held"))["items"] == []
        assert (await ask(loaded, "show", id="in-1"))["id"] == "in-1"
        proof = await ask(loaded, "reconcile")
        assert (proof["in"], proof["astray"]) == (2, ["in-2"])  # the bytes of in-2 never were


def test_the_proof_sees_one_moment_beside_a_writer(loaded: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed between two of its questions cannot make it fail (R34)."""
    real = control.inventory._astray

    def slowly(connection: Any) -> set[str]:
        found = real(connection)
        with contextlib.closing(sqlite3.connect(loaded.gateway.data / "ledger.sqlite")) as other:
            other.execute("UPDATE message SET outcome = 'delivered'")
            other.commit()
        return found

    monkeypatch.setattr(control.inventory, "_astray", slowly)
    assert call(loaded, "reconcile")["waiting"] == 2
    monkeypatch.undo()
    assert call(loaded, "reconcile")["waiting"] == 0


@pytest.mark.parametrize("damage", ["garbage", "no tables", "unreadable folder"])
def test_a_ledger_that_cannot_be_read_is_one_clear_line(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another release, of another owner, or damaged: never a traceback."""
    made = configuration(tmp_path)
    made.gateway.data.mkdir()
    path = made.gateway.data / "ledger.sqlite"
    path.write_bytes(b"" if damage == "no tables" else b"SECRET " * 1000)
    if damage == "unreadable folder":

        def forbidden(_: Path) -> bool:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "exists", forbidden)
    with pytest.raises(LedgerError, match="cannot be read") as caught:
        call(made, "list")
    assert "SECRET" not in str(caught.value)
    assert message.name == "message"
