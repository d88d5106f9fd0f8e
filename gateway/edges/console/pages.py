"""The pages: each asks the ledger a few bounded questions and writes what it heard; and the decisions of operators."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

from sqlalchemy import Connection, Engine, func, select
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway.core import pseudonym
from gateway.edges.console import actions, charts, lights, settings
from gateway.edges.console.accounts import OPERATOR
from gateway.edges.console.gate import Gate, Visit
from gateway.edges.console.live import Live
from gateway.edges.console.press import Press
from gateway.edges.console.running import Accounts, Running
from gateway.errors import GatewayError, LedgerError
from gateway.ledger import inventory, overview, searches
from gateway.ledger.tables import message
from gateway.ledger.verbs import UnknownItemError
from gateway.model import Direction, Outcome, Stage

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
        self.live = Live(self._newest)
        self._running = running
        self._press = Press(running, engine)
        self.gate = Gate(running, accounts, self._press, secure=secure, proxied=proxied)
        self._day: tuple[float, list[overview.Hour]] | None = None
        self._proving = asyncio.Lock()
        self._proof: tuple[float, datetime, dict[str, Any]] | None = None

    def routes(self) -> list[Route]:
        """Every address of the console."""
        admit = self.gate.admit
        decide = partial(admit, role=OPERATOR)
        return [
            *self.gate.routes(),
            Route("/static/{name}", self._press.static),
            Route("/", admit(self._overview)),
            Route("/live", admit(self._stream, used=False)),
            Route("/queue", admit(self._queue)),
            Route("/items", admit(self._items)),
            Route("/find", admit(self._find_page)),
            Route("/find", admit(self._find), methods=["POST"]),
            Route("/items/{key}", admit(self._item)),
            Route("/items/{key}/{name}", decide(self._ask_about_item)),
            Route("/items/{key}/{name}", decide(self._act_on_item), methods=["POST"]),
            Route("/lanes/{key}/{name}", decide(self._ask_about_lane)),
            Route("/lanes/{key}/{name}", decide(self._act_on_lane), methods=["POST"]),
            Route("/partners", admit(self._partners)),
            Route("/configuration", admit(self._configuration)),
            Route("/proof", admit(self._proof_page)),
            Route("/proof", admit(self._prove), methods=["POST"]),
        ]

    def complaints(self) -> Mapping[Any, Any]:
        """What answers an error, by the error."""
        return {HTTPException: self._complain, GatewayError: self._complain, TimeoutError: self._complain}

    def close(self) -> None:
        """End the streams; what is being asked ends by itself."""
        self.live.close()
        self._press.close()

    # Pages to look at

    async def _overview(self, visit: Visit) -> Response:
        return await self._press.ask("overview.html", visit.session, self._look_over)

    def _look_over(self, connection: Connection) -> Mapping[str, Any]:
        now = datetime.now(UTC)
        panel = lights.panel(self._running, overview.destinations(connection), overview.mailboxes(connection), now)
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
        if self._day is None or time.monotonic() - self._day[0] >= DAY_KEPT:
            self._day = (time.monotonic(), overview.last_day(connection, now))
        return self._day[1]

    async def _queue(self, visit: Visit) -> Response:
        def question(connection: Connection) -> Mapping[str, Any]:
            return {"shape": overview.shape(connection, datetime.now(UTC)), "ages": overview.AGES}

        return await self._press.ask("queue.html", visit.session, question)

    async def _items(self, visit: Visit) -> Response:
        asked = visit.request.query_params
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
        return await self._press.ask("items.html", visit.session, question, fixed)

    async def _item(self, visit: Visit) -> Response:
        return await self._press.ask("item.html", visit.session, partial(_story, _id(visit.request)))

    async def _partners(self, visit: Visit) -> Response:
        partners = await self._press.aside(self._running.partner_list)
        ends = sorted(self._running.certificates.items(), key=lambda one: one[1])
        facts = {"partners": partners, "ends": ends, "counts": self._running.partners, "now": time.time()}
        return await self._press.write("partners.html", visit.session, facts)

    async def _configuration(self, visit: Visit) -> Response:
        configuration = self._running.configuration
        facts = {"tables": list(settings.tables(configuration)), "source": configuration.source}
        return await self._press.write("configuration.html", visit.session, facts)

    async def _proof_page(self, visit: Visit) -> Response:
        unaccounted, proved = self._running.proof
        made = self._proof
        facts = {"unaccounted": unaccounted, "proved": proved, "at": made and made[1], "proof": made and made[2]}
        return await self._press.write("proof.html", visit.session, facts)

    async def _prove(self, visit: Visit) -> Response:
        await visit.form()
        async with self._proving:
            if self._proof is None or time.monotonic() - self._proof[0] >= PROOF_EVERY:
                found = await asyncio.to_thread(self._running.prove)
                self._proof = (time.monotonic(), datetime.now(UTC), found)
        return RedirectResponse("/proof", 303)

    # Search: by POST, so that no patient's number comes into an address, a history or the log of a proxy

    async def _find_page(self, visit: Visit) -> Response:
        return await self._press.write("find.html", visit.session, {"items": None, "kind": "word", "since": ""})

    async def _find(self, visit: Visit) -> Response:
        form = await visit.form()
        kind, since = form.get("kind", "word"), _one_of(form.get("since"), SINCE) or ""
        wanted = self._wanted(kind, form.get("text", "").strip()[:500], since)

        def question(connection: Connection) -> Mapping[str, Any]:
            now = datetime.now(UTC)
            if wanted is None:
                return {"items": [], "count": 0}
            found = searches.matching(wanted)
            count = connection.scalar(select(func.count()).select_from(found.subquery())) or 0
            return {"items": inventory.list_page(connection, now, message.c.id.in_(found), ITEMS)[0], "count": count}

        return await self._press.ask("find.html", visit.session, question, {"kind": kind, "since": since})

    def _wanted(self, kind: str, text: str, since: str) -> searches.Wanted | None:
        start = datetime.now(UTC) - SINCE[since] if since else None
        if not text:
            return None
        if kind in {"patient", "accession"}:
            hash_of = pseudonym.of_patient if kind == "patient" else pseudonym.of_accession
            digest = hash_of(self._running.search_key, text)
            return searches.Wanted(digests=(digest,), since=start) if digest else None
        if kind == "sender":
            return searches.Wanted(sender=text, since=start)
        return searches.Wanted(word=text, since=start)

    # Decisions

    async def _ask_about_item(self, visit: Visit) -> Response:
        key, action = _id(visit.request), _action(visit.request, actions.ITEM)

        def question(connection: Connection) -> Mapping[str, Any]:
            return {"item": inventory.show_item(connection, key, datetime.now(UTC))}

        facts = {"action": action, "back": f"/items/{key}", "lane": None, "text": ""}
        return await self._press.ask("confirm.html", visit.session, question, facts)

    async def _act_on_item(self, visit: Visit) -> Response:
        key, action = _id(visit.request), _action(visit.request, actions.ITEM)
        form = await visit.form()
        arguments = {"id": key, **action.arguments}
        if action.erasing and form.get("erase") == "yes":
            arguments["erase"] = True
        await self._running.perform(action.verb, arguments, visit.who)
        return RedirectResponse(f"/items/{key}", 303)

    async def _ask_about_lane(self, visit: Visit) -> Response:
        lane, action = self._lane(visit.request), _action(visit.request, actions.LANE)
        facts = {"action": action, "back": "/", "item": None, "lane": lane, "text": ""}
        return await self._press.write("confirm.html", visit.session, facts)

    async def _act_on_lane(self, visit: Visit) -> Response:
        lane, action = self._lane(visit.request), _action(visit.request, actions.LANE)
        await visit.form()
        await self._running.perform(action.verb, {"ae": lane}, visit.who)
        return RedirectResponse("/", 303)

    def _lane(self, request: Request) -> str:
        name, configuration = str(request.path_params["key"]), self._running.configuration
        if name not in configuration.ae and not (name == "relay" and configuration.relay is not None):
            raise HTTPException(404, "There is no such destination.")
        return name

    # Live

    async def _stream(self, visit: Visit) -> Response:
        if self.live.full:
            raise HTTPException(503, "Too many pages are open.")

        def valid() -> bool:
            return self.gate.session(visit.request, used=False) is visit.session

        headers = {"X-Accel-Buffering": "no"}  # a proxy must not keep it back
        return StreamingResponse(self.live.stream(valid), media_type="text/event-stream", headers=headers)

    async def _newest(self) -> int:
        return await self._press.read(overview.newest_change)

    # What went wrong

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
        session = self.gate.session(request, used=False)
        facts = {"text": text, "do": do, "status": status}
        page = await self._press.write("complaint.html", session, facts, status)
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
