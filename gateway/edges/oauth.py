"""Tokens in place of passwords (RFC 6749): client credentials, or a refresh token, by oauthlib and httpx.

A provider may give a new refresh token with every access token and let the old one die. The new one is on disk before
the access token is used; the configured file is only where the first one comes from, and wins again when it changes.
Whoever uses the same file, in this process or in another one, finds the newest: one at a time asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
from oauthlib.oauth2 import BackendApplicationClient, OAuth2Error
from pydantic import SecretStr

from gateway.errors import TokenError

MARGIN: Final = 120.0
"""Seconds before its end from which on a token is not used any more."""

LASTS: Final = 300.0
"""Seconds that a token is used for whose provider does not say."""

DEADLINE: Final = 30.0
"""Seconds for the whole request (R4), and for the turn of whoever else uses the same refresh token."""

LONGEST: Final = 1 << 16
"""Characters of an answer that are read."""

TURN: Final = 0.05
"""Seconds between two looks whether it is our turn."""

PASSING: Final = frozenset({"temporarily_unavailable", "server_error", "slow_down", "missing_token"})
"""Errors that pass by themselves; the last one is the library's word for a page of somebody between us."""


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
        folder: Where the refresh token is kept that is valid now; it is made.
        deadline: Replaced in tests.
    """

    def __init__(self, settings: Settings, folder: Path, deadline: float = DEADLINE) -> None:
        self._settings = settings
        self._store = _Store(settings.refresh_token_file, folder) if settings.refresh_token_file is not None else None
        self._deadline = deadline
        self._token = ""
        self._until = 0.0
        self._lock = asyncio.Lock()

    async def get(self) -> str:
        """Give a token that is valid now.

        Raises:
            TokenError: The provider refuses, or does not answer, or the new refresh token cannot be kept.
        """
        async with self._lock:
            if time.monotonic() >= self._until:
                # What is asked for is also kept, whoever gives up waiting: a provider gives a refresh token once.
                await asyncio.shield(asyncio.ensure_future(self._renew()))
            elif self._store is not None:
                await self._store.keep()
            return self._token

    def forget(self) -> None:
        """A server refused the token: the next one is a new one."""
        self._until = 0.0

    async def _renew(self) -> None:
        try:
            secret = (await asyncio.to_thread(self._settings.client_secret_file.read_text, "utf-8")).strip()
        except (OSError, ValueError) as error:
            raise TokenError(f"client_secret_file cannot be read: {type(error).__name__}", lasting=True) from None
        if self._store is None:
            self._use(await self._answer(secret, None))
            return
        async with self._store.turn(self._deadline):
            before = await self._store.read()
            answer = await self._answer(secret, before.refresh_token)
            self._use(answer)
            new = answer.get("refresh_token")
            if isinstance(new, str) and new:
                await self._store.keep(replace(before, refresh_token=new) if new != before.refresh_token else None)

    def _use(self, answer: dict[str, Any]) -> None:
        self._token = answer["access_token"]
        lasts = answer.get("expires_in")
        seconds = float(lasts) if isinstance(lasts, int | float | str) and str(lasts).isdigit() else LASTS
        self._until = time.monotonic() + max(seconds - MARGIN, seconds / 2)

    async def _answer(self, secret: str, refresh: str | None) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._deadline):
                return await self._ask(secret, refresh)
        except OAuth2Error as error:
            raise TokenError("the token endpoint refuses us", lasting=error.error not in PASSING) from None
        except (httpx.HTTPError, TimeoutError) as error:
            raise TokenError(f"the token endpoint cannot be reached: {type(error).__name__}") from None
        except (ValueError, TypeError):
            raise TokenError("the token endpoint gives no token") from None

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


@dataclass(frozen=True, slots=True)
class _Kept:
    """A refresh token.

    Attributes:
        first: Which one of a person's it comes from: its fingerprint.
        refresh_token: Itself.
    """

    first: str
    refresh_token: str


class _Store:
    """The refresh token that is valid now, in a file of our own beside the configured one.

    Args:
        first: Where a person puts the first one.
        folder: Where ours is kept.
    """

    def __init__(self, first: Path, folder: Path) -> None:
        self._first = first
        self._path = folder / hashlib.sha256(str(first).encode()).hexdigest()[:16]
        self._unkept: _Kept | None = None
        """A new one that is not on disk yet: the disk was full."""

    @contextlib.asynccontextmanager
    async def turn(self, seconds: float) -> AsyncIterator[None]:
        """Be the only one who uses the refresh token, in this process and in others, as ``check`` beside the daemon."""
        try:
            descriptor = await asyncio.to_thread(self._open, self._path.with_suffix(".lock"))
        except OSError as error:
            raise TokenError(f"the folder of tokens cannot be used: {type(error).__name__}") from None
        try:
            deadline = time.monotonic() + seconds
            while not _lock(descriptor):
                if time.monotonic() > deadline:
                    raise TokenError("somebody else is using the refresh token")
                await asyncio.sleep(TURN)
            yield
        finally:
            os.close(descriptor)

    async def read(self) -> _Kept:
        """Give the newest of ours, unless a person has put another first one there."""
        try:
            return await asyncio.to_thread(self._read)
        except (OSError, ValueError) as error:
            raise TokenError(f"refresh_token_file cannot be read: {type(error).__name__}", lasting=True) from None

    def _read(self) -> _Kept:
        first = self._first.read_text("utf-8").strip()
        mine = _print_of(first)
        if self._unkept is not None and self._unkept.first == mine:
            return self._unkept
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            kept = _Kept(**json.loads(self._path.read_text("utf-8")))
            if kept.first == mine:
                return kept
        return _Kept(mine, first)

    async def keep(self, new: _Kept | None = None) -> None:
        """Bring a new one to the disk, or one that could not be brought there before.

        Raises:
            TokenError: It cannot be written; it is tried again at the next call.
        """
        self._unkept = new or self._unkept
        if self._unkept is None:
            return
        try:
            await asyncio.to_thread(self._write, self._unkept)
        except OSError as error:
            raise TokenError(f"the new refresh token cannot be kept: {type(error).__name__}") from None
        self._unkept = None

    def _write(self, kept: _Kept) -> None:
        content = json.dumps(asdict(kept)).encode()
        draft = self._path.with_suffix(".new")
        descriptor = self._open(draft)
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _open(self, path: Path) -> int:
        """Open a file that is ours alone; root, who may call ``check``, leaves it to the daemon's user."""
        owner = path.parent.parent.stat()
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if os.geteuid() == 0:
            os.chown(path.parent, owner.st_uid, owner.st_gid)
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        return descriptor


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _print_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
