"""The pages: each asks the ledger a few bounded questions and writes what it heard.

Questions and templates run on threads of the console's own, so that a page holds up neither the event loop nor the
threads on which the gateway itself reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import resources
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway import __version__
from gateway.core import pseudonym
from gateway.edges.console import actions, charts, forms, lights, settings, words
from gateway.edges.console.accounts import OPERATOR, VIEWER, Turnstile, role_of
from gateway.edges.console.headers import PAGE
from gateway.edges.console.live import Live
from gateway.edges.console.running import Accounts, Running
from gateway.edges.console.sessions import LONGEST, Session, Sessions
from gateway.errors import GatewayError, LedgerError
from gateway.ledger import inventory, overview, searches
from gateway.ledger.tables import message
from gateway.ledger.verbs import UnknownItemError
from gateway.model import Direction, Outcome, Stage

log = structlog.get_logger(__name__)

PATIENCE: Final = 15.0
"""Seconds that a page may take."""

ITEMS: Final = 50
"""Items on a page of the list."""

DETAILS: Final = 200
"""Instances and events of one item that are shown."""

NOTICES: Final = 20

DAY_KEPT: Final = 15.0
"""Seconds for which the counts of the last day are good enough."""

PROOF_EVERY: Final = 30.0
"""Seconds between two proofs that people ask for: each looks at everything."""

SINCE: Final = {"2h": timedelta(hours=2), "24h": timedelta(days=1), "7d": timedelta(days=7)}
"""How far back a list may be asked to go, by its word in the address."""

_ID: Final = re.compile(r"(?:in|out)-[A-Za-z0-9-]{1,40}", re.ASCII)

_STATIC: Final = {"console.css": "text/css", "console.js": "text/javascript", "icon.svg": "image/svg+xml"}

Handler = Callable[[Request, Session], Awaitable[Response]]
Question = Callable[[Connection], Mapping[str, Any]]


class Pages:
    """The web console.

    Args:
        running: The gateway around it.
        engine: The ledger's.
        accounts: Who may log in.
        secure: Browsers reach it by TLS: the cookie is for TLS alone.
        proxied: Somebody in front of it says whom a request is from.
    """

    def __init__(
        self, running: Running, engine: Engine, accounts: Accounts, *, secure: bool = False, proxied: bool = False
    ) -> None:
        self.sessions = Sessions()
        self.live = Live(self._newest)
        self.clock: Callable[[], float] = time.monotonic
        self._running = running
        self._engine = engine
        self._accounts = accounts
        self._secure = secure
        self._proxied = proxied
        self._cookie = "__Host-session" if secure else "session"
        self._turnstile = Turnstile()
        self._seal = forms.Seal()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="console")
        self._day: tuple[float, list[overview.Hour]] = (-DAY_KEPT, [])
        self._proving = asyncio.Lock()
        self._proof: tuple[float, datetime, dict[str, Any]] | None = None
        self._files = {name: resources.files(__package__).joinpath("static", name).read_bytes() for name in _STATIC}
        self._edition = hashlib.sha256(b"".join(self._files.values())).hexdigest()[:12]
        self._templates = _environment()

    def routes(self) -> list[Route]:
        """Every address of the console."""
        return [
            Route("/static/{name}", self._static),
            Route("/login", self._login_page),
            Route("/login", self._login, methods=["POST"]),
            Route("/logout", self._for(self._logout), methods=["POST"]),
            Route("/", self._for(self._overview)),
            Route("/live", self._for(self._stream, used=False)),
            Route("/queue", self._for(self._queue)),
            Route("/items", self._for(self._items)),
            Route("/find", self._for(self._find_page)),
            Route("/find", self._for(self._find), methods=["POST"]),
            Route("/items/{key}", self._for(self._item)),
            Route("/items/{key}/{name}", self._for(self._ask_about_item, role=OPERATOR)),
            Route("/items/{key}/{name}", self._for(self._act_on_item, role=OPERATOR), methods=["POST"]),
            Route("/lanes/{key}/{name}", self._for(self._ask_about_lane, role=OPERATOR)),
            Route("/lanes/{key}/{name}", self._for(self._act_on_lane, role=OPERATOR), methods=["POST"]),
            Route("/partners", self._for(self._partners)),
            Route("/configuration", self._for(self._configuration)),
            Route("/proof", self._for(self._proof_page)),
            Route("/proof", self._for(self._prove), methods=["POST"]),
        ]

    def complaints(self) -> Mapping[Any, Any]:
        """What answers an error, by the error."""
        return {HTTPException: self._complain, GatewayError: self._complain, TimeoutError: self._complain}

    def close(self) -> None:
        """End the streams; what is being asked ends by itself."""
        self.live.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # Who asks

    def _for(self, handler: Handler, *, role: str = VIEWER, used: bool = True) -> Callable[[Request], Awaitable[Response]]:
        """Let only people of a role to a page; who is not logged in is asked to."""

        async def guarded(request: Request) -> Response:
            session = self._session(request, used=used and "x-live" not in request.headers)
            if session is None:
                if request.method != "GET" or not used or "x-live" in request.headers:
                    raise HTTPException(401, "Your session is over. Log in again.")
                return RedirectResponse(f"/login?{urlencode({'next': request.url.path})}", 303)
            if role == OPERATOR and session.role != OPERATOR:
                raise HTTPException(403, "You may look, and not decide. Ask an operator.")
            return await handler(request, session)

        return guarded

    def _session(self, request: Request, *, used: bool) -> Session | None:
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

    # Login

    async def _login_page(self, request: Request) -> Response:
        return await self._login_form(request)

    async def _login_form(self, request: Request, text: str = "", status: int = 200, goal: str = "") -> Response:
        cookie = self._seal.cookie()
        goal = _goal(goal or request.query_params.get("next", "/"))
        facts = {"text": text, "goal": goal, "token": self._seal.token(cookie)}
        page = await self._write("login.html", None, facts, status=status)
        self._set_cookie(page, f"{self._cookie}-login", cookie, 3600)
        return page

    async def _login(self, request: Request) -> Response:
        form = await forms.read(request)
        forms.demand(form, self._seal.token(request.cookies.get(f"{self._cookie}-login", "")))
        user, address, goal = form.get("user", ""), self._address(request), form.get("goal", "/")
        if wait := self._turnstile.wait(address, user, self.clock()):
            log.warning("console_login_refused", reason="too-many", peer=address)
            text = f"Too many tries. Wait {words.span(wait)}."
            page = await self._login_form(request, text, 429, goal)
            page.headers["Retry-After"] = str(int(wait) + 1)
            return page
        role = role_of(await self._aside(partial(self._accounts.verify, user, form.get("password", ""))))
        mark = self._accounts.mark(user)
        if role is None or mark is None:
            log.warning("console_login_refused", reason="wrong-password", peer=address)
            return await self._login_form(request, "This name and this password do not belong together.", 401, goal)
        self._turnstile.forgive(address, user)
        if old := request.cookies.get(self._cookie):
            self.sessions.end(old)
        name = self.sessions.begin(user, role, mark, self.clock())
        await self._running.record("console-login", f"logged in at the console as {role}", _who(user))
        page = RedirectResponse(_goal(goal), 303)
        self._set_cookie(page, self._cookie, name, int(LONGEST))
        page.delete_cookie(f"{self._cookie}-login", secure=self._secure, httponly=True, samesite="strict")
        return page

    async def _logout(self, request: Request, session: Session) -> Response:
        await self._form(request, session)
        self.sessions.end(request.cookies[self._cookie])
        page = RedirectResponse("/login", 303)
        page.delete_cookie(self._cookie, secure=self._secure, httponly=True, samesite="strict")
        page.headers["Clear-Site-Data"] = '"cache", "storage"'
        return page

    def _set_cookie(self, page: Response, name: str, value: str, seconds: int) -> None:
        page.set_cookie(name, value, max_age=seconds, secure=self._secure, httponly=True, samesite="strict")

    async def _form(self, request: Request, session: Session) -> Mapping[str, str]:
        form = await forms.read(request)
        forms.demand(form, session.token)
        return form

    # Pages to look at

    async def _overview(self, request: Request, session: Session) -> Response:
        return await self._ask("overview.html", session, self._look_over)

    def _look_over(self, connection: Connection) -> Mapping[str, Any]:
        now = datetime.now(UTC)
        panel = lights.panel(
            self._running, overview.destinations(connection), overview.mailboxes(connection), now
        )
        opened, count = overview.notices(connection, NOTICES)
        counts = overview.counts(connection)
        persons = counts[Outcome.HELD] + counts[Outcome.FAILED]
        told = {one.about for one in opened}
        lit = [one for one in panel.all() if one.colour in {lights.Colour.BAD, lights.Colour.LOOK}]
        untold = [one for one in lit if one.name not in told]
        bad = bool(count or persons or any(one.colour is lights.Colour.BAD for one in lit))
        day = self._last_day(connection, now)
        return {
            "panel": panel,
            "counts": counts,
            "notices": opened,
            "notice_count": count,
            "untold": untold,
            "colour": "bad" if bad else "look" if lit else "well",
            "things": count + len(untold),
            "persons": persons,
            "oldest": overview.oldest(connection, 5),
            "traffic": charts.traffic(day),
            "delays": charts.delays(day),
            "delay_summary": charts.summary(day),
            "delay_classes": charts.CLASSES,
            "received": sum(one.received for one in day),
            "collected": sum(one.collected for one in day),
            "now": now,
        }

    def _last_day(self, connection: Connection, now: datetime) -> list[overview.Hour]:
        made, day = self._day
        if self.clock() - made >= DAY_KEPT:
            day = overview.last_day(connection, now)
            self._day = (self.clock(), day)
        return day

    async def _queue(self, request: Request, session: Session) -> Response:
        def question(connection: Connection) -> Mapping[str, Any]:
            return {"shape": overview.shape(connection, datetime.now(UTC)), "ages": overview.AGES}

        return await self._ask("queue.html", session, question)

    async def _items(self, request: Request, session: Session) -> Response:
        asked = request.query_params
        chosen = {
            "outcome": _one_of(asked.get("outcome"), Outcome),
            "stage": _one_of(asked.get("stage"), Stage),
            "direction": _one_of(asked.get("direction"), Direction),
            "partner": _one_of(asked.get("partner"), self._running.configuration.partner),
        }
        since = _one_of(asked.get("since"), SINCE)
        before = asked.get("before")
        if before is not None and not _ID.fullmatch(before):
            raise HTTPException(404, "There is no such page.")

        def question(connection: Connection) -> Mapping[str, Any]:
            now = datetime.now(UTC)
            wanted = inventory.matching(**chosen, since=now - SINCE[since] if since else None)
            items, more = inventory.list_page(connection, now, wanted, ITEMS, before)
            kept = {name: value for name, value in {**chosen, "since": since}.items() if value}
            older = urlencode({**kept, "before": items[-1]["id"]}) if more else ""
            return {"items": items, "older": older, "first": before is None, "newest": urlencode(kept), "chosen": kept}

        partners = list(self._running.configuration.partner)
        fixed = {"outcomes": list(Outcome), "stages": list(Stage), "partners": partners, "sinces": list(SINCE)}
        return await self._ask("items.html", session, question, fixed)

    async def _item(self, request: Request, session: Session) -> Response:
        return await self._ask("item.html", session, partial(_story, _id(request)))

    async def _partners(self, request: Request, session: Session) -> Response:
        partners = await self._aside(self._running.partner_list)
        ends = sorted(self._running.certificates.items(), key=lambda one: one[1])
        facts = {"partners": partners, "ends": ends, "counts": self._running.partners, "now": time.time()}
        return await self._write("partners.html", session, facts)

    async def _configuration(self, request: Request, session: Session) -> Response:
        configuration = self._running.configuration
        facts = {"tables": list(settings.tables(configuration)), "source": configuration.source}
        return await self._write("configuration.html", session, facts)

    async def _proof_page(self, request: Request, session: Session) -> Response:
        unaccounted, proved = self._running.proof
        made = self._proof
        facts = {"unaccounted": unaccounted, "proved": proved, "at": made and made[1], "proof": made and made[2]}
        return await self._write("proof.html", session, facts)

    async def _prove(self, request: Request, session: Session) -> Response:
        await self._form(request, session)
        async with self._proving:
            if self._proof is None or self.clock() - self._proof[0] >= PROOF_EVERY:
                found = await asyncio.to_thread(self._running.prove)
                self._proof = (self.clock(), datetime.now(UTC), found)
        return RedirectResponse("/proof", 303)

    # Search: by POST, so that no patient's number comes into an address, a history or the log of a proxy

    async def _find_page(self, request: Request, session: Session) -> Response:
        return await self._write("find.html", session, {"items": None, "kind": "word", "since": ""})

    async def _find(self, request: Request, session: Session) -> Response:
        form = await self._form(request, session)
        kind, since = form.get("kind", "word"), _one_of(form.get("since"), SINCE) or ""
        wanted = self._wanted(kind, form.get("text", "").strip()[:500], since)

        def question(connection: Connection) -> Mapping[str, Any]:
            now = datetime.now(UTC)
            if wanted is None:
                return {"items": [], "count": 0}
            found = searches.matching(wanted)
            count = connection.scalar(select(func.count()).select_from(found.subquery())) or 0
            return {"items": inventory.list_page(connection, now, message.c.id.in_(found), ITEMS)[0], "count": count}

        return await self._ask("find.html", session, question, {"kind": kind, "since": since})

    def _wanted(self, kind: str, text: str, since: str) -> searches.Wanted | None:
        start = datetime.now(UTC) - SINCE[since] if since else None
        if not text:
            return None
        if kind in {"patient", "accession"}:
            hash_of = pseudonym.of_patient if kind == "patient" else pseudonym.of_accession
            digest = hash_of(self._running.search_key, text)
            return searches.Wanted(digests=(digest,), since=start) if digest else None
        return searches.Wanted(**{"sender" if kind == "sender" else "word": text}, since=start)

    # Decisions

    async def _ask_about_item(self, request: Request, session: Session) -> Response:
        key, action = _id(request), _action(request, actions.ITEM)

        def question(connection: Connection) -> Mapping[str, Any]:
            return {"item": inventory.show_item(connection, key, datetime.now(UTC))}

        facts = {"action": action, "back": f"/items/{key}", "lane": None, "text": ""}
        return await self._ask("confirm.html", session, question, facts)

    async def _act_on_item(self, request: Request, session: Session) -> Response:
        key, action = _id(request), _action(request, actions.ITEM)
        form = await self._form(request, session)
        arguments = {"id": key, **action.arguments}
        if action.erasing and form.get("erase") == "yes":
            arguments["erase"] = True
        await self._running.perform(action.verb, arguments, _who(session.user))
        return RedirectResponse(f"/items/{key}", 303)

    async def _ask_about_lane(self, request: Request, session: Session) -> Response:
        lane, action = self._lane(request), _action(request, actions.LANE)
        facts = {"action": action, "back": "/", "item": None, "lane": lane, "text": ""}
        return await self._write("confirm.html", session, facts)

    async def _act_on_lane(self, request: Request, session: Session) -> Response:
        lane, action = self._lane(request), _action(request, actions.LANE)
        await self._form(request, session)
        await self._running.perform(action.verb, {"ae": lane}, _who(session.user))
        return RedirectResponse("/", 303)

    def _lane(self, request: Request) -> str:
        name, configuration = str(request.path_params["key"]), self._running.configuration
        if name not in configuration.ae and not (name == "relay" and configuration.relay is not None):
            raise HTTPException(404, "There is no such destination.")
        return name

    # Live

    async def _stream(self, request: Request, session: Session) -> Response:
        if self.live.full:
            raise HTTPException(503, "Too many pages are open.")
        valid = lambda: self._session(request, used=False) is session  # noqa: E731
        headers = {"X-Accel-Buffering": "no"}  # a proxy must not keep it back
        return StreamingResponse(self.live.stream(valid), media_type="text/event-stream", headers=headers)

    async def _newest(self) -> int:
        return await self._aside(partial(self._read, overview.newest_change))

    # How a page is made

    async def _ask(
        self, template: str, session: Session, question: Question, more: Mapping[str, Any] | None = None
    ) -> Response:
        def work() -> str:
            return self._render(template, session, {**(more or {}), **self._read(question)})

        return _page(await self._aside(work))

    async def _write(
        self, template: str, session: Session | None, facts: Mapping[str, Any], status: int = 200
    ) -> Response:
        return _page(await self._aside(partial(self._render, template, session, facts)), status)

    def _read(self, question: Callable[[Connection], Any]) -> Any:
        try:
            with self._engine.connect() as connection:
                return question(connection)
        except SQLAlchemyError as error:
            raise LedgerError(f"the ledger did not answer: {type(error).__name__}") from error

    async def _aside(self, work: Callable[[], Any]) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _render(self, template: str, session: Session | None, facts: Mapping[str, Any]) -> str:
        fixed = {
            "session": session,
            "operator": session is not None and session.role == OPERATOR,
            "gateway": self._running.configuration.gateway.name,
            "edition": self._edition,
            "version": __version__,
            "page": template.removesuffix(".html"),
        }
        return self._templates.get_template(template).render(**fixed, **facts)

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._files:
            raise HTTPException(404, "There is no such file.")
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(self._files[name], media_type=_STATIC[name], headers=headers)

    async def _complain(self, request: Request, error: Exception) -> Response:
        """Answer an error as a page; what is not ours to tell is not told."""
        do, status = "", 500
        match error:
            case HTTPException():
                text, status = _SAID.get(error.status_code, error.detail), error.status_code
                text = error.detail if error.detail not in _PHRASES else text
            case UnknownItemError():
                text, status = "There is no such item. It may have been deleted after its time.", 404
            case LedgerError() | TimeoutError():
                text, status = "The ledger is busy. Try again in a moment.", 503
            case GatewayError():
                text, do, status = error.text, error.hint, 409
            case _:
                text = "This did not work."
        session = None
        with contextlib.suppress(HTTPException):
            session = self._session(request, used=False)
        facts = {"text": text, "do": do, "status": status}
        page = await self._write("complaint.html", session, facts, status)
        if isinstance(error, HTTPException) and error.headers:
            page.headers.update(error.headers)
        return page


_PHRASES: Final = frozenset({"Not Found", "Method Not Allowed"})
_SAID: Final = {404: "There is no such page.", 405: "This address does not take that."}


def _story(key: str, connection: Connection) -> Mapping[str, Any]:
    now = datetime.now(UTC)
    item = inventory.show_item(connection, key, now)
    return {
        "item": item,
        "told": searches.tell_of(connection, key, now),
        "instances": item["instances_detail"][:DETAILS],
        "events": item["events"][-DETAILS:],
        "actions": actions.for_item(item),
    }


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
    templates.filters |= {name: getattr(words, name) for name in ("plain", "span", "moment", "day", "size")}
    return templates


def _id(request: Request) -> str:
    key = str(request.path_params["key"])
    if not _ID.fullmatch(key):
        raise HTTPException(404, "There is no such item.")
    return key


def _action(request: Request, known: Mapping[str, actions.Action]) -> actions.Action:
    action = known.get(str(request.path_params["name"]))
    if action is None:
        raise HTTPException(404, "There is no such decision.")
    return action


def _one_of(word: str | None, known: Any) -> str | None:
    """A word of the address if it is one of those that have a meaning, else none."""
    return word if word and word in list(known) else None


def _goal(path: str) -> str:
    """Where to go after the login: a page of ours and nowhere else."""
    parts = urlsplit(path)
    ours = path.startswith("/") and not path.startswith(("//", "/\\")) and not parts.netloc and path.isprintable()
    return path if ours else "/"


def _who(user: str) -> str:
    """How events name somebody at the console."""
    return f"{words.plain(user)[:60]} at the console"
