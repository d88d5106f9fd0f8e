"""Tokens from a real token endpoint: used while they last, renewed in time, the refresh token never lost (IMAP-11)."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from peer import free_port
from pydantic import SecretStr
from token_server import TokenServer

from gateway.edges import oauth
from gateway.edges.oauth import Tokens
from gateway.errors import TokenError


@pytest.fixture
def server() -> Iterator[TokenServer]:
    """A provider."""
    with TokenServer() as made:
        yield made


def tokens(folder: Path, server: TokenServer, *, refresh: str | None = None, url: str = "") -> Tokens:
    (folder / "secret").write_text("s&cret\n")
    first = None
    if refresh is not None:
        first = folder / "refresh"
        first.write_text(f"{refresh}\n")
    settings = SimpleNamespace(
        token_url=SecretStr(url or server.url),
        client_id="client",
        client_secret_file=folder / "secret",
        scope="https://mail.example/.default",
        refresh_token_file=first,
    )
    return Tokens(settings, folder / "tokens", 2.0)  # type: ignore[arg-type]


def store(folder: Path) -> Path:
    """The file of the refresh token that is valid now."""
    [found] = [path for path in (folder / "tokens").iterdir() if not path.suffix]
    return found


async def test_client_credentials_give_a_token_that_is_used_while_it_lasts(tmp_path: Path, server: TokenServer) -> None:
    """One request for many logins; a new one when a server refused the token."""
    made = tokens(tmp_path, server)
    assert [await made.get(), await made.get()] == ["access-1", "access-1"]
    made.forget()
    assert await made.get() == "access-2"
    assert server.asked[0]["grant_type"] == "client_credentials"
    assert server.asked[0]["scope"] == "https://mail.example/.default"


async def test_a_refresh_token_that_is_used_up_is_on_disk_before_the_access_token_is_used(
    tmp_path: Path, server: TokenServer
) -> None:
    """The next life of the gateway uses the newest one; nobody else may read it."""
    assert await tokens(tmp_path, server, refresh="refresh-0").get() == "access-1"
    kept = store(tmp_path)
    assert (kept.stat().st_mode & 0o777, server.refresh in kept.read_text()) == (0o600, True)
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    assert await tokens(tmp_path, server, refresh="refresh-0").get() == "access-2"


async def test_another_first_refresh_token_wins(tmp_path: Path, server: TokenServer) -> None:
    """After a consent was given anew, a person puts the new one into the file."""
    await tokens(tmp_path, server, refresh="refresh-0").get()
    server.refresh = "fresh"
    assert await tokens(tmp_path, server, refresh="fresh").get() == "access-2"


async def test_a_refresh_token_that_finds_no_room_is_used_and_written_later(
    tmp_path: Path, server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider gives it once: a full disk withholds the access token, and loses nothing (R5)."""
    made = tokens(tmp_path, server, refresh="refresh-0")
    with monkeypatch.context() as full:
        full.setattr(oauth._Store, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        for _ in range(2):
            with pytest.raises(TokenError, match="cannot be kept"):
                await made.get()
        made.forget()
        with pytest.raises(TokenError, match="cannot be kept"):
            await made.get()
    assert len(server.asked) == 2
    assert await made.get() == "access-2"
    assert server.refresh in store(tmp_path).read_text()


async def test_users_of_one_refresh_token_take_turns(tmp_path: Path, server: TokenServer) -> None:
    """A mailbox, the relay and ``check`` in another process: each finds the newest, and none burns another's."""
    every = [tokens(tmp_path, server, refresh="refresh-0") for _ in range(5)]
    got = await asyncio.gather(*(one.get() for one in every))
    assert sorted(got) == [f"access-{number}" for number in range(1, 6)]
    [lock] = (tmp_path / "tokens").glob("*.lock")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TokenError, match="somebody else") as busy:
            await tokens(tmp_path, server, refresh="refresh-0").get()
    assert not busy.value.lasting


async def test_whoever_gives_up_waiting_does_not_lose_the_refresh_token(tmp_path: Path, server: TokenServer) -> None:
    """A deadline above us ends the wait and not the renewal."""
    made = tokens(tmp_path, server, refresh="refresh-0")
    waiting = asyncio.create_task(made.get())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await made.get() in {"access-1", "access-2"}
    assert server.refresh in store(tmp_path).read_text()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"first": 1}', "nonsense"])
async def test_a_damaged_store_is_as_none(tmp_path: Path, server: TokenServer, content: str) -> None:
    """The configured token is tried then."""
    await tokens(tmp_path, server, refresh="refresh-0").get()
    store(tmp_path).write_text(content)
    server.refresh = "refresh-0"
    assert await tokens(tmp_path, server, refresh="refresh-0").get() == "access-2"


@pytest.mark.parametrize(
    ("answer", "lasting"),
    [
        ((400, '{"error": "invalid_grant"}'), True),
        ((400, '{"error": "temporarily_unavailable"}'), False),
        ((503, "<html>"), False),
        ((429, "{}"), False),
        ((200, "<html>"), False),
        ((200, '{"access_token": "x", "token_type": "Bearer", "expires_in": "soon"}'), False),
    ],
)
async def test_a_provider_that_gives_no_token_is_told_by_its_kind(
    tmp_path: Path, server: TokenServer, answer: tuple[int, str], lasting: bool
) -> None:
    """What a person must mend is told from what passes (R3)."""
    server.answer = answer
    with pytest.raises(TokenError) as refused:
        await tokens(tmp_path, server).get()
    assert refused.value.lasting == lasting
    assert "s&cret" not in str(refused.value)


async def test_nobody_at_the_endpoint_and_no_secret_are_told(tmp_path: Path, server: TokenServer) -> None:
    """One passes; a file that is gone does not, nor does a folder that cannot be made."""
    with pytest.raises(TokenError) as away:
        await tokens(tmp_path, server, url=f"http://127.0.0.1:{free_port()}/").get()
    assert not away.value.lasting
    for name, refresh in (("secret", None), ("refresh", "refresh-0")):
        made = tokens(tmp_path, server, refresh=refresh)
        (tmp_path / name).unlink()
        with pytest.raises(TokenError) as lost:
            await made.get()
        assert lost.value.lasting
    (tmp_path / "tokens" / "x").parent.rename(tmp_path / "elsewhere")
    (tmp_path / "tokens").write_text("")
    with pytest.raises(TokenError, match="folder of tokens"):
        await tokens(tmp_path, server, refresh="refresh-0").get()
