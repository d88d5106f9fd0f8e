"""Pages: each notice as JSON to webhook and command; a pager that fails ends nothing."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pydantic import SecretStr
from rows import NOW

from gateway.edges import page
from gateway.edges.page import Pager
from gateway.ledger.notices import Notice

NOTICE = Notice(1, "held", "in-1", "in-1 is held: no-dicom", "dicom-mail queue show in-1", NOW, None)


@dataclass
class Settings:
    """The section [notice]."""

    webhook: SecretStr | None = None
    command: Path | None = None


def script(folder: Path, text: str) -> Path:
    path = folder / "page"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


def test_a_page_says_what_is_the_matter_and_what_to_do() -> None:
    """Whose it is, since when, and whether it is over (R33)."""
    document = Pager(None, "gw.example").document(NOTICE)
    assert document == {
        "gateway": "gw.example",
        "state": "open",
        "kind": "held",
        "about": "in-1",
        "text": "in-1 is held: no-dicom",
        "do": "dicom-mail queue show in-1",
        "opened": "2026-11-23T12:00:00.000Z",
        "closed": None,
    }
    over = Pager(None, "gw.example").document(replace(NOTICE, closed_at=NOW))
    assert (over["state"], over["closed"]) == ("closed", "2026-11-23T12:00:00.000Z")


async def test_a_command_gets_the_notice_on_standard_input(tmp_path: Path) -> None:
    """One line of JSON; without settings nobody is told outside."""
    await Pager(None, "gw.example").page(NOTICE)
    command = script(tmp_path, f"cat > {tmp_path}/got")
    pager = Pager(Settings(command=command), "gw.example")
    await pager.page(NOTICE)
    assert json.loads((tmp_path / "got").read_bytes()) == pager.document(NOTICE)


@pytest.mark.parametrize(
    ("text", "said"), [("exit 3", "status=3"), ("sleep 30", "TimeoutError"), ("exec < /dev/null; exit 0", "")]
)
async def test_a_command_that_fails_or_hangs_is_logged_and_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    """The notice stays visible here; nobody waits for ever (R4)."""
    monkeypatch.setattr(page, "PATIENCE", 0.5 if text.startswith("sleep") else 20)
    async with asyncio.timeout(15):
        await Pager(Settings(command=script(tmp_path, text)), "gw.example").page(NOTICE)
    out = capsys.readouterr().out
    assert said in out
    assert ("page_failed" in out) == bool(said)


async def test_a_command_that_is_not_there_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its kind alone."""
    await Pager(Settings(command=tmp_path / "nowhere"), "gw.example").page(NOTICE)
    assert "FileNotFoundError" in capsys.readouterr().out


@pytest.mark.parametrize("status", [200, 500])
async def test_a_webhook_is_posted_to_and_its_address_never_shown(
    capsys: pytest.CaptureFixture[str], status: int
) -> None:
    """The address may hold a token; an answer that is no success is logged by its kind (R35)."""
    got: list[bytes] = []

    async def serve(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        head = await source.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        got.append(await source.readexactly(length))
        sink.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
        await sink.drain()
        sink.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pager = Pager(Settings(webhook=SecretStr(f"http://127.0.0.1:{port}/TOKEN")), "gw.example")
    await pager.page(NOTICE)
    server.close()
    assert json.loads(got[0]) == pager.document(NOTICE)
    out = capsys.readouterr().out
    assert ("HTTPStatusError" in out) == (status == 500)
    assert "TOKEN" not in out


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/TOKEN", "http://[::1/TOKEN", "nonsense"])
async def test_a_webhook_that_cannot_be_reached_is_logged(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is wrong with it, the gateway goes on."""
    await Pager(Settings(webhook=SecretStr(address)), "gw.example").page(NOTICE)
    out = capsys.readouterr().out
    assert "page_failed" in out
    assert "TOKEN" not in out
