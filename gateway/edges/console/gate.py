"""The way in: login and logout, and who is let to which page."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import urlencode, urlsplit

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gateway.core import wording
from gateway.edges.console import forms
from gateway.edges.console.accounts import OPERATOR, VIEWER, Turnstile, role_of
from gateway.edges.console.press import Press
from gateway.edges.console.running import Accounts, Running
from gateway.edges.console.sessions import LONGEST, Session, Sessions

log = structlog.get_logger(__name__)

LIVE: Final = "x-live"
"""A page that refreshes itself says so in this header: nobody did anything."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A request of somebody who is logged in."""

    request: Request
    session: Session

    @property
    def who(self) -> str:
        """How events name him."""
        return _who(self.session.user)

    async def form(self) -> Mapping[str, str]:
        """Read the form that was sent. Raises HTTPException when no page of this session made it."""
        form = await forms.read(self.request)
        forms.demand(form, self.session.token)
        return form


Handler = Callable[[Visit], Awaitable[Response]]


class Gate:
    """Lets people in.

    Args:
        running: The gateway around it.
        accounts: Who may log in.
        press: Makes the login page.
        secure: Browsers reach it by TLS: the cookie is for TLS alone.
        proxied: Somebody in front of it says whom a request is from.
    """

    def __init__(
        self, running: Running, accounts: Accounts, press: Press, *, secure: bool = False, proxied: bool = False
    ) -> None:
        self.sessions = Sessions()
        self.clock: Callable[[], float] = time.monotonic
        self._running = running
        self._accounts = accounts
        self._press = press
        self._secure = secure
        self._proxied = proxied
        self._cookie = "__Host-session" if secure else "session"
        self._turnstile = Turnstile()
        self._seal = forms.Seal()

    def routes(self) -> list[Route]:
        """The addresses of login and logout."""
        return [
            Route("/login", self._ask),
            Route("/login", self._log_in, methods=["POST"]),
            Route("/logout", self.admit(self._log_out), methods=["POST"]),
        ]

    def admit(
        self, handler: Handler, *, role: str = VIEWER, used: bool = True
    ) -> Callable[[Request], Awaitable[Response]]:
        """Let only people of a role to a page; who is not logged in is asked to.

        Args:
            handler: Makes the page.
            role: Who may see it.
            used: Whether it is a page for people, who by opening it show that they are still there.
        """

        async def guarded(request: Request) -> Response:
            by_itself = not used or LIVE in request.headers
            session = self.session(request, used=not by_itself)
            if session is None:
                if request.method != "GET" or by_itself:
                    raise HTTPException(401, "Your session is over. Log in again.")
                return RedirectResponse(f"/login?{urlencode({'next': request.url.path})}", 303)
            if role == OPERATOR and session.role != OPERATOR:
                raise HTTPException(403, "You may look, and not decide. Ask an operator.")
            return await handler(Visit(request, session))

        return guarded

    def session(self, request: Request, *, used: bool) -> Session | None:
        """Find the session that a request belongs to; None when there is none, or it is over."""
        name = request.cookies.get(self._cookie)
        session = self.sessions.find(name, self.clock(), used=used) if name else None
        if session is not None and name and self._accounts.mark(session.user) != session.mark:
            self.sessions.end(name)  # taken out of the file, or with another password or role
            return None
        return session

    def _address(self, request: Request) -> str:
        if self._proxied and (said := request.headers.get("x-forwarded-for")):
            return said.rpartition(",")[2].strip()  # what stands before it, anybody may have written
        return request.client.host if request.client else ""

    async def _ask(self, request: Request) -> Response:
        return await self._form(_goal(request.query_params.get("next", "/")))

    async def _form(self, goal: str, text: str = "", status: int = 200) -> Response:
        cookie = self._seal.cookie()
        facts = {"text": text, "goal": goal, "token": self._seal.token(cookie)}
        page = await self._press.write("login.html", None, facts, status)
        self._set_cookie(page, f"{self._cookie}-login", cookie, 3600)
        return page

    async def _log_in(self, request: Request) -> Response:
        form = await forms.read(request)
        forms.demand(form, self._seal.token(request.cookies.get(f"{self._cookie}-login", "")))
        user, address, goal = form.get("user", ""), self._address(request), _goal(form.get("goal", "/"))
        if wait := self._turnstile.wait(address, user, self.clock()):
            log.warning("console_login_refused", reason="too-many", peer=address)
            page = await self._form(goal, f"Too many tries. Wait {wording.span(wait)}.", 429)
            page.headers["Retry-After"] = str(int(wait) + 1)
            return page
        role = role_of(await self._press.aside(partial(self._accounts.verify, user, form.get("password", ""))))
        mark = self._accounts.mark(user)
        if role is None or mark is None:
            log.warning("console_login_refused", reason="wrong-password", peer=address)
            return await self._form(goal, "This name and this password do not belong together.", 401)
        self._turnstile.forgive(address, user)
        if old := request.cookies.get(self._cookie):
            self.sessions.end(old)
        name = self.sessions.begin(user, role, mark, self.clock())
        await self._running.record("console-login", f"logged in at the console as {role}", _who(user))
        page = RedirectResponse(goal, 303)
        self._set_cookie(page, self._cookie, name, int(LONGEST))
        self._delete_cookie(page, f"{self._cookie}-login")
        return page

    async def _log_out(self, visit: Visit) -> Response:
        await visit.form()
        self.sessions.end(visit.request.cookies[self._cookie])
        page = RedirectResponse("/login", 303)
        self._delete_cookie(page, self._cookie)
        page.headers["Clear-Site-Data"] = '"cache", "storage"'
        return page

    def _set_cookie(self, page: Response, name: str, value: str, seconds: int) -> None:
        # Lax: a link in a notice leads who is logged in to its page, and no other site can send a form with it.
        page.set_cookie(name, value, max_age=seconds, secure=self._secure, httponly=True, samesite="lax")

    def _delete_cookie(self, page: Response, name: str) -> None:
        page.delete_cookie(name, secure=self._secure, httponly=True, samesite="lax")


def _goal(path: str) -> str:
    """Where to go after the login: a page of ours and nowhere else."""
    parts = urlsplit(path)
    ours = path.startswith("/") and not path.startswith(("//", "/\\")) and not parts.netloc and path.isprintable()
    return path if ours else "/"


def _who(user: str) -> str:
    return f"{wording.plain(user)[:60]} at the console"
