"""Telling a person outside: each notice, once when it opens and once when it closes, by webhook and by command."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
import structlog
from pydantic import SecretStr

from gateway.ledger.notices import Notice
from gateway.model import utc

log = structlog.get_logger(__name__)

PATIENCE: Final = 20.0
"""Seconds that a webhook or a command may take."""


class Settings(Protocol):
    """The section [notice]."""

    @property
    def webhook(self) -> SecretStr | None:
        """Where notices are posted; None for nowhere. May hold a token: never shown."""

    @property
    def command(self) -> Path | None:
        """What gets each notice on standard input; None for nothing."""


class Pager:
    """Hands notices on.

    Args:
        settings: The section [notice]; None when notices are only shown.
        gateway: Our name, so that a page says whose it is.
    """

    def __init__(self, settings: Settings | None, gateway: str) -> None:
        self._settings = settings
        self._gateway = gateway

    async def page(self, notice: Notice) -> None:
        """Tell of a notice in the state it is in. A pager that fails is logged; the notice stays visible here."""
        if self._settings is None:
            return
        document = self.document(notice)
        if self._settings.webhook is not None:
            await self._post(self._settings.webhook.get_secret_value(), document)
        if self._settings.command is not None:
            await self._run(self._settings.command, document)

    def document(self, notice: Notice) -> dict[str, Any]:
        """Write a notice as JSON: what is the matter, since when, and what to do."""
        return {
            "gateway": self._gateway,
            "state": "open" if notice.closed_at is None else "closed",
            "kind": notice.kind,
            "about": notice.about,
            "text": notice.text,
            "do": notice.hint,
            "opened": utc(notice.opened_at),
            "closed": utc(notice.closed_at) if notice.closed_at else None,
        }

    async def _post(self, url: str, document: dict[str, Any]) -> None:
        try:
            async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
                answer = await client.post(url, json=document)
                answer.raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            log.warning("page_failed", door="webhook", exception=type(error).__name__)

    async def _run(self, command: Path, document: dict[str, Any]) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            log.warning("page_failed", door="command", exception=type(error).__name__)
            return
        try:
            async with asyncio.timeout(PATIENCE):
                await process.communicate(json.dumps(document).encode() + b"\n")
        except TimeoutError:
            log.warning("page_failed", door="command", exception="TimeoutError")
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            log.warning("page_failed", door="command", status=process.returncode)
