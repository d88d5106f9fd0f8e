"""The console's pages, asked without a browser: who is let in, what is shown, what is limited, what is hidden."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from around import Around, People
from prometheus_client import CollectorRegistry
from rows import CONFIGURATION, arrival, configuration, instance, queue, read
from sqlalchemy import Connection, Engine, select
from sqlalchemy.event import listen

from gateway.core.mailbox import State
from gateway.core.wording import plain, span
from gateway.edges.console import Pages, charts, lights
from gateway.edges.console import settings as shown
from gateway.edges.console.accounts import FAILURES, Turnstile
from gateway.edges.console.app import application
from gateway.edges.console.live import MOST as MOST_STREAMS
from gateway.edges.console.live import Live
from gateway.edges.console.sessions import IDLE, LONGEST, MOST, Sessions
from gateway.edges.console.words import moment, size
from gateway.errors import GatewayError, LedgerError
from gateway.insight import Insight
from gateway.ledger import mailboxes, messages, notices
from gateway.ledger.ledger import Ledger, connect, connect_reader
from gateway.ledger.overview import Hour
from gateway.ledger.tables import event
from gateway.metrics import Readings

NOW = datetime.now(UTC)
BASE = "http://console.test"


@dataclass
class Console:
    """A console with a clock that the test holds."""

    around: Around
    people: People
    pages: Pages
    engine: Engine
    client: httpx.AsyncClient
    clock: list[float]

    async def form(self, path: str, **fields: str) -> httpx.Response:
        """Open a page and send its first form."""
        page = await self.client.get(path)
        found = re.search(r'name="token" value="([^"]+)"', page.text)
        return await self.client.post(path, data={"token": found[1] if found else "", **fields})

    async def log_in(self, name: str = "otto", password: str = "right", goal: str = "/") -> httpx.Response:
        """Log in."""
        return await self.form("/login", user=name, password=password, goal=goal)

    def change(self, change: Any) -> None:
        """Change the ledger."""
        with self.engine.begin() as connection:
            change(connection)


@pytest.fixture
async def console(tmp_path: Path) -> AsyncIterator[Console]:
    """A console with an empty ledger."""
    engine = connect(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    reader = connect_reader(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    around, people, clock = Around(configuration(tmp_path)), People(), [1000.0]
    pages = Pages(around, reader, people)
    pages.gate.clock = lambda: clock[0]
    app = application(CollectorRegistry(), list, pages)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=BASE, trust_env=False) as client:
        yield Console(around, people, pages, engine, client, clock)
    pages.close()
    reader.dispose()
    engine.dispose()


# Who is let in

GUARDED = ("/", "/queue", "/items", "/items/in-1", "/find", "/partners", "/configuration", "/proof")
CHANGING = ("/logout", "/find", "/proof", "/items/in-1/drop", "/lanes/pacs/pause")


async def test_nobody_sees_or_does_anything_without_a_session(console: Console) -> None:
    """Every page leads to the login; what changes something, follows live or streams says 401."""
    for path in GUARDED:
        answer = await console.client.get(path)
        assert (answer.status_code, answer.headers["location"][:12]) == (303, "/login?next="), path
        assert (await console.client.get(path, headers={"X-Live": "1"})).status_code == 401
    for path in CHANGING:
        assert (await console.client.post(path, data={})).status_code == 401, path
    assert (await console.client.get("/live")).status_code == 401
    assert console.around.done == []


@pytest.mark.parametrize("goal", ["//evil.test/", "https://evil.test/", "/\\evil.test", "/\tx", "javascript:alert(1)"])
async def test_the_login_leads_nowhere_else(console: Console, goal: str) -> None:
    """No open redirect; and the login is written down with the name."""
    answer = await console.log_in(goal=goal)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert console.around.recorded == [("console-login", "otto at the console")]


async def test_a_login_form_of_another_site_is_refused(console: Console) -> None:
    """Login CSRF: without the cookie that goes with the token, or from elsewhere, nobody is logged in."""
    fields = {"user": "otto", "password": "right", "token": "x"}
    assert (await console.client.post("/login", data=fields)).status_code == 403
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert (await console.client.post("/login", data=fields, headers=elsewhere)).status_code == 403
    assert len(console.pages.gate.sessions) == 0


async def test_a_session_ends_unused_and_after_a_shift(console: Console) -> None:
    """A page that refreshes itself keeps none alive; who works is logged out after twelve hours all the same."""
    await console.log_in()
    console.clock[0] += IDLE - 1
    assert (await console.client.get("/", headers={"X-Live": "1"})).status_code == 200
    console.clock[0] += 2
    assert (await console.client.get("/")).status_code == 303
    await console.log_in()
    began = console.clock[0]
    while console.clock[0] - began <= LONGEST:
        assert (await console.client.get("/")).status_code == 200
        console.clock[0] += IDLE - 1
    assert (await console.client.get("/")).status_code == 303


async def test_a_changed_password_or_role_ends_what_was_begun(console: Console) -> None:
    """So does being taken out of the file."""
    for change in (("other", "operator"), ("right", "user"), None):
        console.people.known["otto"] = ("right", "operator")
        await console.log_in()
        assert (await console.client.get("/")).status_code == 200
        if change is None:
            del console.people.known["otto"]
        else:
            console.people.known["otto"] = change
        assert (await console.client.get("/")).status_code == 303


async def test_the_cookie_is_for_tls_alone_where_there_is_tls(console: Console) -> None:
    """The prefix __Host- lets no neighbour set it."""
    pages = Pages(console.around, console.engine, console.people, secure=True, proxied=True)
    transport = httpx.ASGITransport(application(CollectorRegistry(), list, pages))
    async with httpx.AsyncClient(transport=transport, base_url="https://console.test", trust_env=False) as client:
        page = await client.get("/login")
        token = re.search(r'name="token" value="([^"]+)"', page.text)
        assert token is not None
        fields = {"user": "vera", "password": "right", "token": token[1]}
        answer = await client.post("/login", data=fields, headers={"X-Forwarded-For": "10.0.0.1, 192.0.2.7"})
        [cookie] = [one for one in answer.headers.get_list("set-cookie") if "session=" in one]
        assert cookie.startswith("__Host-session=")
        for word in ("HttpOnly", "Secure", "SameSite=lax", "Path=/"):
            assert word in cookie
        assert (await client.get("/")).status_code == 200
    pages.close()


async def test_failures_make_wait_by_address_and_by_name(console: Console) -> None:
    """And the right password ends neither; after five minutes it counts again."""
    for _ in range(FAILURES["address"]):
        assert (await console.log_in(password="wrong")).status_code == 401
    answer = await console.log_in()
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 200
    console.clock[0] += 301
    assert (await console.log_in()).status_code == 303


def test_a_network_of_ipv6_is_one_address_and_names_count_apart() -> None:
    """A house has a whole /64; what is right is forgiven; the oldest are forgotten first."""
    turnstile = Turnstile()
    for number in range(FAILURES["address"]):
        assert turnstile.wait(f"2001:db8::{number:x}", f"user-{number}", 0.0) == 0
    assert turnstile.wait("2001:db8::ffff", "new", 1.0) > 0
    assert turnstile.wait("2001:db8:0:1::1", "new", 1.0) == 0
    turnstile.forgive("2001:db8:0:1::1", "new")
    for number in range(FAILURES["user"]):
        assert turnstile.wait(f"192.0.2.{number}", "otto", 2.0) == 0
    assert turnstile.wait("unknown", "otto", 3.0) > 0
    assert turnstile.wait("unknown", "otto", 400.0) == 0
    for number in range(10_001):
        turnstile.wait(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", f"n{number}", 500.0)
    assert len(turnstile._failures) <= 10_000


def test_the_session_unused_longest_gives_way() -> None:
    """There are never more than a limit."""
    sessions = Sessions()
    first = sessions.begin("a", "viewer", "m", 0.0)
    second = sessions.begin("b", "viewer", "m", 1.0)
    assert sessions.find(first, 2.0)
    for number in range(MOST - 1):
        sessions.begin(str(number), "viewer", "m", 3.0)
    assert len(sessions) == MOST
    assert sessions.find(second, 4.0) is None
    sessions.end("nobody's")


# What is shown


async def test_every_page_of_an_empty_gateway_and_of_a_full_one(console: Console) -> None:
    """Each is there, for a viewer too, with the headers that keep it from being kept, framed or given a script."""
    await console.log_in("vera")
    for full in (False, True):
        if full:
            console.change(fill)
            console.around.doors["smtp"] = False
            console.around.room = (1, 100)
            console.around.proof = (2, NOW.timestamp())
            console.around.certificates = {"smime.cert": NOW.timestamp() - 5, "partner.clinic-a": NOW.timestamp() + 99}
            await console.form("/proof")
        stories = ("/items/in-1", "/items/in-2") if full else ()
        for path in (*GUARDED[:3], *GUARDED[4:], *stories):
            page = await console.client.get(path)
            assert page.status_code == 200, (path, page.text)
            assert page.headers["cache-control"] == "no-store"
            assert "script-src 'self'" in page.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
            assert page.headers["x-frame-options"] == "DENY"
            assert 'href="/lanes/' not in page.text
    overview = (await console.client.get("/")).text
    assert "need a person" in overview
    for told in ("shut", "free some space", "has run out", "2 items are not accounted for"):
        assert told in overview, told
    page = await console.client.get("/static/console.css")
    assert "immutable" in page.headers["cache-control"]
    await console.log_in("otto")
    assert "/items/in-2/release" in (await console.client.get("/items/in-2")).text


def fill(connection: Connection) -> None:
    """An item that waits, one that is held, and a notice."""
    queue(connection, "in-1", instance(1), instance(2), to=("pacs", "other"), at=NOW)
    messages.accept(connection, [arrival("in-2", at=NOW)])
    messages.decide(connection, "in-2", read(held="no-dicom"), NOW)
    notices.open_notice(connection, NOW, "held", "in-2", "in-2 is held", "look")


async def test_what_does_not_exist_is_404_and_says_nothing(console: Console) -> None:
    """Paths that climb, ids that are none, unknown decisions and lanes."""
    await console.log_in()
    for path in (
        "/nothing", "/items/in-unknown", "/items/%2e%2e%2fetc%2fpasswd", "/items/in-1/explode", "/lanes/nowhere/pause",
        "/static/../pages.py", "/static/%2e%2e%2fpages.py", "/items?before=in-'--", "/items?before=in-gone",
    ):  # fmt: skip
        answer = await console.client.get(path)
        assert answer.status_code == 404, path
        assert "<h1>There is no such" in answer.text or path.startswith("/static/.."), path


async def test_a_list_takes_only_words_that_have_a_meaning(console: Console) -> None:
    """Any other is as none; the address of the next page keeps what was asked."""
    console.change(lambda c: [queue(c, f"in-{number:03}", instance(number), at=NOW) for number in range(60)])
    await console.log_in()
    page = await console.client.get("/items?outcome=waiting&partner=nobody&since=2h&stage=%27%3B--")
    assert "in-059" in page.text
    found = re.search(r'href="/items\?([^"]+)" rel="next"', page.text)
    assert found is not None
    assert found[1].replace("&amp;", "&") == "outcome=waiting&since=2h&before=in-010"
    older = await console.client.get(f"/items?{found[1].replace('&amp;', '&')}")
    assert "in-009" in older.text
    assert "in-010" not in older.text


async def test_a_page_asks_the_same_few_questions_however_much_there_is(console: Console) -> None:
    """No question for each item: what is quick with ten is quick with fifty thousand."""
    await console.log_in()
    asked: list[str] = []
    listen(console.pages._press._engine, "before_cursor_execute", lambda _c, _k, statement, *_: asked.append(statement))
    counts: list[dict[str, int]] = []
    for number in (2, 60):
        console.change(
            lambda c, number=number: [queue(c, f"in-{number}-{one}", instance(one)) for one in range(number)]
        )
        counts.append({})
        for path in ("/", "/queue", "/items", "/items?outcome=waiting", f"/items/in-{number}-1"):
            console.pages._day = None
            asked.clear()
            assert (await console.client.get(path)).status_code == 200
            counts[-1][re.sub(r"\d", "", path)] = len(asked)
    assert counts[0] == counts[1]
    assert max(counts[0].values()) <= 20


async def test_searching_finds_and_never_repeats_what_was_typed(console: Console) -> None:
    """A patient's number comes back on no page; it goes by POST, so into no history either (R35)."""
    console.change(fill)
    await console.log_in()
    found = await console.form("/find", kind="word", text="<in-1@clinic-a.example>", since="24h")
    assert "/items/in-1" in found.text
    assert "1 found" in found.text
    for kind in ("patient", "accession", "sender", "word", "unheard-of"):
        nothing = await console.form("/find", kind=kind, text="Kanarienvogel^Zyx", since="")
        assert "Nothing is known" in nothing.text
        assert "Kanarienvogel" not in nothing.text
    assert "Nothing is known" in (await console.form("/find", kind="word", text=" ")).text
    assert "2 found" in (await console.form("/find", kind="sender", text="clinic-a")).text


async def test_a_decision_is_asked_for_first_and_bears_a_name(console: Console) -> None:
    """GET asks and changes nothing; POST with the page's token acts, and the answer leads back."""
    console.change(fill)
    await console.log_in()
    page = await console.client.get("/items/in-2/drop")
    assert "Wipe its bytes" in page.text
    assert console.around.done == []
    answer = await console.form("/items/in-2/drop", erase="yes")
    assert (answer.status_code, answer.headers["location"]) == (303, "/items/in-2")
    await console.form("/items/in-1/again")
    await console.form("/lanes/pacs/pause")
    assert console.around.done == [
        ("drop", {"id": "in-2", "erase": True}, "otto at the console"),
        ("retry", {"id": "in-1", "force": True}, "otto at the console"),
        ("pause", {"ae": "pacs"}, "otto at the console"),
    ]
    console.around.no = GatewayError("in-2 is delivered", hint="queue show in-2")
    refused = await console.form("/items/in-2/release")
    assert refused.status_code == 409
    assert "in-2 is delivered" in refused.text
    assert "queue show in-2" in refused.text


async def test_forms_have_limits(console: Console) -> None:
    """A body that is none, is too long, or has too many fields is refused before it is looked at."""
    await console.log_in()
    post = console.client.post
    assert (await post("/find", content=b"{}", headers={"Content-Type": "application/json"})).status_code == 415
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await post("/find", content=b"a=" + b"x" * 9000, headers=form)).status_code == 413
    assert (await post("/find", content=b"&".join(b"a=1" for _ in range(20)), headers=form)).status_code == 400
    assert (await post("/find", content=b"a=%ff", headers=form)).status_code == 400
    assert (await post("/find", data={"token": "wrong"})).status_code == 403


async def test_a_proof_is_not_made_again_at_once(console: Console) -> None:
    """Each looks at everything: two clicks are one proof. What is astray is linked."""
    await console.log_in()
    for _ in range(2):
        assert (await console.form("/proof")).status_code == 303
    assert console.around.proofs == 1
    assert "/items/in-lost" in (await console.client.get("/proof")).text


async def test_a_ledger_that_does_not_answer_is_503_in_words(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the error itself is not told."""
    await console.log_in()

    async def busy(*_: object) -> None:
        raise LedgerError("the ledger did not answer: OperationalError")

    monkeypatch.setattr(console.pages._press, "ask", busy)
    answer = await console.client.get("/queue")
    assert answer.status_code == 503
    assert "Try again in a moment" in answer.text
    assert "OperationalError" not in answer.text


def test_the_configuration_is_shown_without_secrets(tmp_path: Path) -> None:
    """Every key of every section; what a URL with a token is, is hidden."""
    extra = '\n[notice]\nwebhook = "https://alarm.example/hook?token=Kanarienvogel"\n'
    tables = {one.name: one for one in shown.tables(configuration(tmp_path, CONFIGURATION + extra))}
    written = {f"{name}.{key}": (value, is_set) for name, one in tables.items() for key, value, is_set in one.rows}
    assert written["notice.webhook"] == ("hidden", True)
    assert "Kanarienvogel" not in str(tables)
    assert written["ae.pacs.title"] == ("PACS", True)
    assert written["gateway.name"] == ("gw.example", True)
    assert 'route "a"' in tables
    assert any(not is_set for _, is_set in written.values())


# Small things


def test_lights_name_what_is_wrong(tmp_path: Path) -> None:
    """A mailbox in trouble with what to do; a lane that is paused, down, unused, well."""
    text = CONFIGURATION + (
        '\n[imap.a]\nhost = "imap.test"\nuser = "u"\npassword_file = "gateway.toml"\naddress = "x@gw.example"\n'
        '[relay]\nhost = "relay.test"\nsender = "x@gw.example"\n'
    )
    around = Around(configuration(tmp_path, text))

    def look(rows: Mapping[str, Any], boxes: Mapping[str, Any]) -> dict[str, lights.Light]:
        return {one.name: one for one in lights.panel(around, rows, boxes, NOW).all()}

    fresh = look({}, {})
    assert fresh["pacs"].colour is fresh["relay"].colour is fresh["imap.a"].colour is lights.Colour.IDLE
    row = lane()
    seen = look(
        {"pacs": row, "other": lane(paused=True)},
        {"imap.a": mailboxes.Health("imap.a", State.LOGIN_REFUSED, NOW, "says no", None)},
    )
    assert seen["pacs"].colour is lights.Colour.WELL
    assert (seen["other"].colour, seen["other"].paused) == (lights.Colour.LOOK, True)
    assert seen["imap.a"].colour is lights.Colour.BAD
    assert seen["imap.a"].do
    assert look({"pacs": lane(trouble="no route to host")}, {})["pacs"].text == "no route to host"
    assert look({"pacs": lane(answered_at=None)}, {})["pacs"].colour is lights.Colour.IDLE
    well = mailboxes.Health("imap.a", State.OK, NOW, "", NOW)
    assert look({}, {"imap.a": well})["imap.a"].colour is lights.Colour.WELL


def test_the_light_of_the_disk_goes_by_the_limit_that_is_in_force(tmp_path: Path) -> None:
    """Where the file names none it is a tenth of the disk or 5 GiB: below it mail is refused, and that is not well."""
    around = Around(configuration(tmp_path, CONFIGURATION.replace('free_space = "1 MB"', "")))
    assert around.configuration.limits.free_space is None
    for free, colour in ((5 << 30, lights.Colour.WELL), ((5 << 30) - 1, lights.Colour.BAD)):
        around.room = (free, 100 << 30)
        assert {one.name: one.colour for one in lights.panel(around, {}, {}, NOW).house}["disk"] is colour


def test_the_light_of_a_partner_is_about_its_own_certificate(tmp_path: Path) -> None:
    """Not about that of another one whose name begins alike."""
    text = CONFIGURATION + '\n[partner.clinic]\naddress = "x@other.example"\n'
    around = Around(configuration(tmp_path, text), certificates={"partner.clinic-a": NOW.timestamp() - 1})
    seen = {one.name: one for one in lights.panel(around, {}, {}, NOW).partners}
    assert seen["clinic-a"].colour is lights.Colour.BAD
    assert (seen["clinic"].colour, seen["clinic"].text) == (lights.Colour.IDLE, "nothing exchanged yet")


def lane(**changes: Any) -> Any:
    """A row of the table of destinations."""
    values = {"paused": False, "breaker_until": None, "down_since": None, "trouble": "", "answered_at": NOW}
    return type("Row", (), {**values, **changes})


def test_charts_say_their_numbers() -> None:
    """Each bar has a title, the whole an accessible name; nothing is divided by nothing."""
    empty = [Hour(NOW, 0, 0, (0, 0, 0, 0, 0))]
    assert "nothing was delivered" in charts.summary(empty)
    assert "nothing delivered" in charts.delays(empty)
    busy = [Hour(NOW, 9, 3, (8, 0, 0, 0, 1)), *empty]
    assert charts.summary(busy) == "88 % of 9 within a minute; 1 took longer than an hour"
    assert "9 in, 3 out" in charts.traffic(busy)
    assert "9 mails in, 3 collections out; at most 9 in an hour" in charts.traffic(busy)
    assert "8 within 10 s, 1 longer" in charts.delays(busy)


def test_words_are_short_and_hide_nothing() -> None:
    """Marks that turn the direction of writing show as what they are: foreign."""
    assert plain("a\u202egpj.exe\x00") == "a\ufffdgpj.exe\ufffd"
    assert plain(None) == ""
    assert [span(value) for value in (-1, 90, 150, 7199, 7200, 200_000)] == [
        "0 s",
        "90 s",
        "2 min",
        "119 min",
        "2 h",
        "2 d",
    ]
    assert [size(value) for value in (999, 1500, 2_500_000, 3e12)] == ["999 B", "2 kB", "2.5 MB", "3.0 TB"]
    assert moment(None) == ""
    assert "2026-01-02" in moment("2026-01-02T12:00:00Z")
    assert re.search(r">\d\d:\d\d:\d\d<", moment(datetime.now(UTC).timestamp()))


# Live


async def test_a_page_is_told_when_something_happened() -> None:
    """A number each time, and the end of the session; however many look, one asks."""
    number, asked = 1, 0

    async def newest() -> int:
        nonlocal asked
        asked += 1
        return number

    live = Live(newest)
    live.every = 0.01
    valid = [True]
    streams = [live.stream(lambda: valid[0]) for _ in range(3)]
    for stream in streams:
        assert "data: 1" in await anext(stream)
    number = 2
    for stream in streams:
        assert "event: change\ndata: 2" in await anext(stream)
    valid[0] = False
    for stream in streams:
        assert "event: over" in await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert live._watching is None
    assert asked < 60


async def test_streams_end_with_the_door_and_are_not_too_many() -> None:
    """They also end by themselves, before the door ends their connection; a ledger that is busy ends none."""
    calls = 0

    async def newest() -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise LedgerError("busy")
        return 1

    live = Live(newest)
    live.every, live.lifetime = 0.01, 0.05
    brief = live.stream(lambda: True)
    assert [piece async for piece in brief] == ["retry: 1000\nid: 1\nevent: hello\ndata: 1\n\n"]
    calls, live.lifetime = 0, 60
    streams = [live.stream(lambda: True) for _ in range(MOST_STREAMS)]
    for stream in streams:
        calls = 0
        await anext(stream)
    assert live.full
    live.close()
    for stream in streams:
        assert [piece async for piece in stream] == []


async def test_pages_that_open_at_once_have_one_who_asks() -> None:
    """A browser that comes back opens all its tabs: while the first question is out, nobody begins a second watch."""
    answer = asyncio.Event()

    async def newest() -> int:
        await answer.wait()
        return 1

    live = Live(newest)
    live.every = 0.01
    streams = [live.stream(lambda: True) for _ in range(3)]
    waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await asyncio.sleep(0)
    answer.set()
    await asyncio.gather(*waiting)
    for stream in streams:
        await stream.aclose()
    await asyncio.sleep(0)
    assert [task for task in asyncio.all_tasks() if task.get_name() == "console-live"] == []


async def test_a_ledger_that_needs_too_long_once_ends_no_watch() -> None:
    """The disk hung for a while: then pages are told again what happens, and are not left with an old number."""
    number, late = 1, 0

    async def newest() -> int:
        nonlocal late
        if late:
            late -= 1
            raise TimeoutError
        return number

    live = Live(newest)
    live.every = 0.01
    stream = live.stream(lambda: True)
    assert "data: 1" in await anext(stream)
    late, number = 1, 2
    async with asyncio.timeout(10):
        assert "event: change\ndata: 2" in await anext(stream)
    await stream.aclose()


async def test_too_many_open_pages_are_told_so(console: Console) -> None:
    """The other connections are for pages and probes."""
    await console.log_in()
    console.pages.live.close()
    assert (await console.client.get("/live")).status_code == 503


# The gateway around


async def test_what_a_person_did_is_written_down(tmp_path: Path) -> None:
    """With his name; the numbers are those of the metrics."""
    ledger = Ledger(connect(f"sqlite:///{tmp_path / 'ledger.sqlite'}"))
    readings = Readings(doors={"smtp": True}, free_bytes=5, capacity=10, unaccounted=0, proved=3.0)

    async def perform(verb: str, arguments: Mapping[str, Any], who: str) -> dict[str, Any]:
        return {"did": (verb, dict(arguments), who)}

    settings = configuration(tmp_path)
    around = Insight(lambda: settings, readings, ledger, b"key", perform)
    assert (around.configuration, around.doors, around.room, around.proof) == (
        settings,
        {"smtp": True},
        (5, 10),
        (0, 3.0),
    )
    assert around.partners.items == {}
    assert around.certificates == {}
    assert [one["name"] for one in await asyncio.to_thread(around.partner_list)] == ["clinic-a", "clinic-b"]
    assert (await around.perform("hold", {"id": "in-1"}, "otto"))["did"] == ("hold", {"id": "in-1"}, "otto")
    await around.record("console-login", "logged in", "otto at the console")
    rows = await ledger.read(lambda c: c.execute(select(event.c.kind, event.c.who)).all())
    assert [tuple(row) for row in rows] == [("console-login", "otto at the console")]
    ledger.close()
