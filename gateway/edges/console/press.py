"""How a page is made: its questions and its template, on threads of the console's own.

So a page holds up neither the event loop nor the threads on which the gateway itself reads.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from typing import Any, Final, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from gateway import __version__
from gateway.core import wording
from gateway.edges.console import words
from gateway.edges.console.accounts import OPERATOR
from gateway.edges.console.headers import PAGE
from gateway.edges.console.running import Running
from gateway.edges.console.sessions import Session
from gateway.errors import LedgerError
from gateway.ledger import overview

T = TypeVar("T")

Question = Callable[[Connection], Mapping[str, Any]]
"""Asks the ledger for what a template shows."""

PATIENCE: Final = 15.0
"""Seconds that a page may take."""

THREADS: Final = 2

_STATIC: Final = {"console.css": "text/css", "console.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Press:
    """Makes pages.

    Args:
        running: The gateway around it.
        engine: The ledger's, for reading.
    """

    def __init__(self, running: Running, engine: Engine) -> None:
        self._running = running
        self._engine = engine
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="console")
        self._files = {name: resources.files(__package__).joinpath("static", name).read_bytes() for name in _STATIC}
        self._edition = hashlib.sha256(b"".join(self._files.values())).hexdigest()[:12]
        self._templates = _environment()

    def close(self) -> None:
        """Begin nothing more; what is being asked ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def ask(
        self, template: str, session: Session, question: Question, more: Mapping[str, Any] | None = None
    ) -> Response:
        """Ask the ledger, and write a page of what it says.

        Args:
            template: Name of the page.
            session: Of who looks.
            question: What the ledger is asked.
            more: What the page shows beside.

        Raises:
            LedgerError: The ledger does not answer.
            TimeoutError: It took too long.
        """

        def read(connection: Connection) -> Mapping[str, Any]:
            # The number first: a page may be newer than it says, never older.
            return {"number": overview.newest_change(connection), **question(connection)}

        def work() -> str:
            return self._render(template, session, {**(more or {}), **self._read(read)})

        return _page(await self.aside(work))

    async def write(
        self, template: str, session: Session | None, facts: Mapping[str, Any], status: int = 200
    ) -> Response:
        """Write a page of what is known already."""
        return _page(await self.aside(partial(self._render, template, session, facts)), status)

    async def read(self, question: Callable[[Connection], T]) -> T:
        """Ask the ledger. Raises LedgerError and TimeoutError."""
        return await self.aside(partial(self._read, question))

    async def aside(self, work: Callable[[], T]) -> T:
        """Do on a thread what blocks. Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE):
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def static(self, request: Request) -> Response:
        """Answer with a file; its address changes with its content."""
        name = request.path_params["name"]
        if name not in self._files:
            raise HTTPException(404, "There is no such file.")
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(self._files[name], media_type=_STATIC[name], headers=headers)

    def _read(self, question: Callable[[Connection], T]) -> T:
        try:
            with self._engine.connect() as connection:
                return question(connection)
        except SQLAlchemyError as error:
            raise LedgerError(f"the ledger did not answer: {type(error).__name__}") from error

    def _render(self, template: str, session: Session | None, facts: Mapping[str, Any]) -> str:
        fixed = {
            "session": session,
            "operator": session is not None and session.role == OPERATOR,
            "gateway": self._running.configuration.gateway.name,
            "edition": self._edition,
            "version": __version__,
            "page": template.removesuffix(".html"),
            "number": None,
        }
        return self._templates.get_template(template).render({**fixed, **facts})


def _page(text: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(text, status, {"Content-Security-Policy": PAGE})


def _environment() -> Environment:
    templates = Environment(
        loader=PackageLoader("gateway.edges.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    templates.filters |= {name: getattr(wording, name) for name in ("plain", "span")}
    templates.filters |= {name: getattr(words, name) for name in ("moment", "day", "size")}
    return templates
