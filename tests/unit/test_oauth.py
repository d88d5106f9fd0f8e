"""Tokens from a real token endpoint: used while they last, renewed in time, the refresh token never lost (IMAP-11)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from peer import free_port
from pydantic import SecretStr
from token_server import TokenServer

from gateway.core.mailbox import State
from gateway.edges.oauth import Tokens
from gateway.errors import MailboxError


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
    return Tokens(settings, folder / "tokens" / "imap.a", 2.0)  # type: ignore[arg-type]


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
    store = tmp_path / "tokens" / "imap.a"
    assert (store.stat().st_mode & 0o777, server.refresh in store.read_text()) == (0o600, True)
    assert await tokens(tmp_path, server, refresh="refresh-0").get() == "access-2"


async def test_another_first_refresh_token_wins(tmp_path: Path, server: TokenServer) -> None:
    """After a consent was given anew, a person puts the new one into the file."""
    await tokens(tmp_path, server, refresh="refresh-0").get()
    server.refresh = "fresh"
    assert await tokens(tmp_path, server, refresh="fresh").get() == "access-2"


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ((400, '{"error": "invalid_grant"}'), State.TOKEN_EXPIRED),
        ((400, '{"error": "temporarily_unavailable"}'), State.UNREACHABLE),
        ((503, "<html>"), State.UNREACHABLE),
        ((429, "{}"), State.UNREACHABLE),
    ],
)
async def test_a_provider_that_gives_no_token_is_a_state(
    tmp_path: Path, server: TokenServer, answer: tuple[int, str], state: State
) -> None:
    """What a person must mend is told from what passes (R3)."""
    server.answer = answer
    with pytest.raises(MailboxError) as refused:
        await tokens(tmp_path, server).get()
    assert refused.value.state == state
    assert "s&cret" not in str(refused.value)


async def test_nobody_at_the_endpoint_and_no_secret_are_states(tmp_path: Path, server: TokenServer) -> None:
    """Unreachable; and a file that is gone."""
    with pytest.raises(MailboxError) as away:
        await tokens(tmp_path, server, url=f"http://127.0.0.1:{free_port()}/").get()
    assert away.value.state == State.UNREACHABLE
    made = tokens(tmp_path, server)
    (tmp_path / "secret").unlink()
    with pytest.raises(MailboxError) as lost:
        await made.get()
    assert lost.value.state == State.TOKEN_EXPIRED
