"""Tokens in place of passwords (RFC 6749): client credentials, or a refresh token, by oauthlib and httpx.

A provider may give a new refresh token with every access token and let the old one die. The new one is on disk before
the access token is used; the configured file is only where the first one comes from, and wins again when it changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
from oauthlib.oauth2 import BackendApplicationClient, OAuth2Error
from pydantic import SecretStr

from gateway.core.mailbox import State
from gateway.errors import MailboxError

MARGIN: Final = 120.0
"""Seconds before its end from which on a token is not used any more."""

LASTS: Final = 300.0
"""Seconds that a token is used for whose provider does not say."""

DEADLINE: Final = 30.0
"""Seconds for the whole request (R4)."""

LONGEST: Final = 1 << 16
"""Characters of an answer that are read."""

PASSING: Final = frozenset({"temporarily_unavailable", "server_error", "slow_down"})
"""Errors that pass by themselves."""


class Settings(Protocol):
    """A section [….oauth]."""

    @property
    def token_url(self) -> SecretStr:
        """The token endpoint."""

    @property
    def client_id(self) -> str:
        """As the provider gave it."""

    @property
    def client_secret_file(self) -> Path:
        """Holds the client secret."""

    @property
    def scope(self) -> str:
        """As the provider wants it."""

    @property
    def refresh_token_file(self) -> Path | None:
        """Holds the first refresh token; None: client credentials."""


class Tokens:
    """Access tokens of one account, each used until shortly before its end.

    Args:
        settings: The section [….oauth].
        store: Where the refresh token is kept that is valid now; its folder is made.
        deadline: Replaced in tests.
    """

    def __init__(self, settings: Settings, store: Path, deadline: float = DEADLINE) -> None:
        self._settings = settings
        self._store = store
        self._deadline = deadline
        self._token = ""
        self._until = 0.0
        self._lock = asyncio.Lock()

    async def get(self) -> str:
        """Give a token that is valid now.

        Raises:
            MailboxError: ``token-expired`` when the provider refuses, ``unreachable`` when it does not answer.
        """
        async with self._lock:
            if time.monotonic() >= self._until:
                await self._renew()
            return self._token

    def forget(self) -> None:
        """A server refused the token: the next one is a new one."""
        self._until = 0.0

    async def _renew(self) -> None:
        settings = self._settings
        try:
            secret = (await asyncio.to_thread(settings.client_secret_file.read_text, "utf-8")).strip()
            refresh = await asyncio.to_thread(self._refresh_token)
        except (OSError, ValueError) as error:
            raise MailboxError(
                f"a secret of OAuth cannot be read: {type(error).__name__}", State.TOKEN_EXPIRED
            ) from None
        try:
            async with asyncio.timeout(self._deadline):
                answer = await self._ask(secret, refresh)
        except OAuth2Error as error:
            state = State.UNREACHABLE if error.error in PASSING else State.TOKEN_EXPIRED
            raise MailboxError("the token endpoint refuses us", state) from None
        except (httpx.HTTPError, TimeoutError) as error:
            raise MailboxError(
                f"the token endpoint cannot be reached: {type(error).__name__}", State.UNREACHABLE
            ) from None
        except (ValueError, TypeError):
            raise MailboxError("the token endpoint gives no token", State.UNREACHABLE) from None
        await self._keep(answer, refresh)

    async def _ask(self, secret: str, refresh: str | None) -> dict[str, Any]:
        settings = self._settings
        words = BackendApplicationClient(settings.client_id)
        proof = {"client_secret": secret, "scope": settings.scope}
        if refresh is None:
            body = words.prepare_request_body(include_client_id=True, **proof)
        else:
            body = words.prepare_refresh_body(refresh_token=refresh, client_id=settings.client_id, **proof)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        async with httpx.AsyncClient(timeout=self._deadline) as client:
            response = await client.post(settings.token_url.get_secret_value(), content=body, headers=headers)
        if response.status_code >= 500 or response.status_code == 429:
            raise TimeoutError
        return dict(words.parse_request_body_response(response.text[:LONGEST]))

    async def _keep(self, answer: dict[str, Any], refresh: str | None) -> None:
        new = answer.get("refresh_token")
        if refresh is not None and isinstance(new, str) and new and new != refresh:
            try:
                await asyncio.to_thread(self._write, new)
            except OSError as error:
                raise MailboxError(
                    f"the new refresh token cannot be kept: {type(error).__name__}", State.NO_ROOM
                ) from None
        self._token = answer["access_token"]
        lasts = answer.get("expires_in")
        seconds = float(lasts) if isinstance(lasts, int | float | str) and str(lasts).isdigit() else LASTS
        self._until = time.monotonic() + max(seconds - MARGIN, seconds / 2)

    # The refresh token

    def _refresh_token(self) -> str | None:
        """The one that is valid now: the newest of ours, unless a person has put another first one there."""
        if self._settings.refresh_token_file is None:
            return None
        first = self._settings.refresh_token_file.read_text("utf-8").strip()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._store.read_text("utf-8"))
            if kept["first"] == _print_of(first):
                return str(kept["refresh_token"])
        return first

    def _write(self, token: str) -> None:
        assert self._settings.refresh_token_file is not None
        first = self._settings.refresh_token_file.read_text("utf-8").strip()
        self._store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._store.with_name(f"{self._store.name}.new")
        content = json.dumps({"first": _print_of(first), "refresh_token": token}).encode()
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.replace(self._store)
        folder = os.open(self._store.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _print_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
