"""People at the console: a real browser, a real gateway, a real archive."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from axe_playwright_python.sync_playwright import Axe
from desk import OPERATOR, PASSWORD, VIEWER, Desk, chromium, log_in
from messages import compose
from peer import Start, free_port, wait_until
from playwright.sync_api import Browser, Page, Route, expect
from samples import Samples
from storescp import Storescp

pytestmark = pytest.mark.peer

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>{{7*7}}"

PAGES = ("/", "/queue", "/items", "/find", "/partners", "/configuration", "/proof")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests; each has a context of its own, so cookies of its own."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which no script of a stranger runs and nothing of ours fails."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, timezone_id="UTC")
    page = context.new_page()
    wrong: list[str] = []
    page.on("dialog", lambda one: (wrong.append(one.message), one.dismiss()))
    page.on("pageerror", lambda one: wrong.append(str(one)))
    page.on("console", lambda one: wrong.append(one.text) if "Content Security Policy" in one.text else None)
    yield page
    context.close()
    assert wrong == []


def test_an_operator_retries_a_held_item_and_sees_it_delivered(start: Start, samples: Samples, page: Page) -> None:
    """Log in, find, open the story, release, and watch: the page follows by itself, and the event names the person."""
    pacs = Storescp()
    desk = start(Desk({"pacs": (pacs.title, pacs.port)}))
    message_id = "<held-1@clinic-a.test>"
    key = desk.mail(compose([samples.fresh().file for _ in range(3)], message_id=message_id))
    wait_until(lambda: desk.item(key)["instances"] == 3, "it is read")
    desk.say("queue", "hold", key)
    start(pacs)

    log_in(page, desk)
    expect(page.get_by_role("heading", level=1)).to_contain_text("needs a person")
    page.get_by_role("link", name="Find").click()
    page.get_by_label("that is").fill(message_id)
    page.get_by_role("button", name="Find").click()
    page.get_by_role("link", name=key).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("held")
    expect(page.locator("#live")).to_have_text("Live.")
    page.get_by_role("link", name="Release").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"Release: {key}")
    assert pacs.instances() == {}  # the question is not the answer
    page.get_by_role("button", name="Release").click()

    # Nobody touches the page from here on.
    expect(page.get_by_role("heading", level=1)).to_contain_text("delivered", timeout=30_000)
    expect(page.locator(".headline")).to_contain_text("3 of 3 instances delivered")
    assert len(pacs.instances()) == 3
    assert desk.proven()["delivered"] == 1
    who = [one["who"] for one in desk.ask("events", "--since", "1h")["events"] if one["id"] == key and one["who"]]
    assert who[-1] == f"{OPERATOR} at the console"


def test_what_happens_between_a_page_and_its_stream_is_not_missed(start: Start, samples: Samples, page: Page) -> None:
    """The page was made, then the item was held, then the stream of changes began: the page shows it nevertheless."""
    desk = start(Desk({"pacs": ("PACS", free_port())}))
    key = desk.mail(compose([samples.fresh().file]))
    wait_until(lambda: desk.item(key)["instances"] == 1, "it is read")
    log_in(page, desk)

    def hold_first(route: Route) -> None:
        if desk.item(key)["outcome"] == "waiting":
            desk.say("queue", "hold", key)
        route.continue_()

    page.route("**/live", hold_first)
    page.goto(f"{desk.address}/items/{key}")
    expect(page.get_by_role("heading", level=1)).to_contain_text("held")


def test_a_page_says_when_its_gateway_is_away(start: Start, page: Page) -> None:
    """It shows what was; who reads "Live" below "All is well" would believe it for as long as the gateway is down."""
    desk = start(Desk({"pacs": ("PACS", free_port())}))
    log_in(page, desk)
    expect(page.locator("#live")).to_have_text("Live.")
    desk.kill()
    expect(page.locator("#live")).to_contain_text("Not live", timeout=30_000)


def test_a_viewer_looks_and_does_not_decide(start: Start, samples: Samples, page: Page) -> None:
    """No button is shown to him, and what the button does is refused when he asks for it himself."""
    desk = start(Desk({"pacs": ("PACS", free_port())}))
    key = desk.mail(compose([samples.fresh().file]))
    log_in(page, desk, VIEWER, path=f"/items/{key}")
    expect(page.get_by_role("heading", level=1)).to_contain_text(key)
    assert page.get_by_role("link", name="Drop").count() == 0
    token = page.locator("input[name=token]").first.get_attribute("value")
    for path in (f"/items/{key}/drop", "/lanes/pacs/pause"):
        asked = page.request.post(desk.address + path, form={"token": token or "", "erase": "yes"})
        assert (asked.status, page.request.get(desk.address + path).status) == (403, 403)
    assert desk.item(key)["outcome"] == "waiting"


def test_what_strangers_write_is_text(start: Start, samples: Samples, page: Page) -> None:
    """Headers, file names and DICOM strings that are HTML, script or template are shown as they are, or not at all."""
    pacs = start(Storescp())
    desk = start(Desk({"pacs": (pacs.title, pacs.port)}))
    image = samples.fresh("CT_small.dcm", PatientName=HOSTILE[:60], StudyDescription=HOSTILE[:60])
    mail = compose([image.file, b"no DICOM"], subject="S", message_id="<ID@clinic-a.test>", text=HOSTILE)
    for plain, hostile in (
        (b"From: dicom@clinic-a.test", f'From: "{HOSTILE}" <dicom@clinic-a.test>'),
        (b"Subject: S", f"Subject: {HOSTILE}"),
        (b"<ID@", f"<{HOSTILE.replace(' ', '/')}@"),
        (b"IM000002.dcm", HOSTILE),
    ):
        assert plain in mail
        mail = mail.replace(plain, hostile.encode())
    key = desk.mail(mail)
    desk.await_item(key, "delivered")
    log_in(page, desk, path=f"/items/{key}")
    expect(page.locator("body")).to_contain_text("{{7*7}}@clinic-a.test")
    assert page.locator("img, script:not([src^='/static/'])").count() == 0
    for path in (*PAGES, f"/items/{key}/again", f"/items/{HOSTILE}", f"/login?next={HOSTILE}"):
        page.goto(desk.address + path)
        assert page.locator("img, script:not([src^='/static/'])").count() == 0, path
        assert "CompressedSamples" not in page.content(), path


def test_the_page_cannot_be_framed_and_its_forms_cannot_be_forged(start: Start, page: Page) -> None:
    """Clickjacking and CSRF, tried from a page of somebody else in the browser of an operator who is logged in."""
    desk = start(Desk({"pacs": ("PACS", free_port())}))
    log_in(page, desk)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    target = f"{desk.address}/lanes/pacs/pause"
    forged = [page.request.post(target, form=form) for form in ({}, {"token": "x"})]
    assert [one.status for one in forged] == [403, 403]

    evil = page.context.new_page()
    with somebody_else(TRAP.format(desk.address)) as trap:
        evil.goto(trap)
        for _ in range(100):  # the page may be there before its frame has given up
            if evil.frames[1].url:
                break
            evil.wait_for_timeout(50)
        assert evil.frames[1].url.startswith("chrome-error:")
        with evil.expect_response(target) as answer:
            evil.get_by_role("button").click()
    assert answer.value.status in {401, 403}
    assert [one["paused"] for one in desk.ask("queue", "list")["destinations"]] in ([], [False])


TRAP = """<iframe src="{0}/"></iframe>
<form method=post action="{0}/lanes/pacs/pause"><input name=token value=x><button>You have won</button></form>"""


@contextmanager
def somebody_else(content: str) -> Iterator[str]:
    """A site with one page."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_session_that_was_known_before_the_login_is_none(start: Start, browser: Browser) -> None:
    """Session fixation: the id is made at the login, another one at each, and ends with the logout."""
    desk = start(Desk({"pacs": ("PACS", free_port())}))
    context = browser.new_context()
    context.add_cookies([{"name": "session", "value": "known-to-the-thief", "url": desk.address}])
    page = context.new_page()
    log_in(page, desk)
    expect(page.get_by_role("button", name="Log out")).to_be_visible()
    [cookie] = [one for one in context.cookies() if one["name"] == "session"]
    assert cookie["value"] != "known-to-the-thief"
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    context.add_cookies([{"name": "session", "value": cookie["value"], "url": desk.address}])
    page.goto(desk.address + "/items")
    expect(page).to_have_url(re.compile(r"/login\?next=%2Fitems$"))
    context.close()


def test_a_password_is_not_guessed(start: Start, page: Page) -> None:
    """Ten tries from an address, and even the right one waits; who is known nobody can tell."""
    desk = start(Desk({"pacs": ("PACS", free_port())}))
    said = set()
    for number in range(10):
        log_in(page, desk, (OPERATOR, "nobody")[number % 2], "wrong")
        said.add(page.get_by_role("alert").inner_text())
    assert said == {"This name and this password do not belong together."}
    log_in(page, desk)
    expect(page.get_by_role("alert")).to_contain_text("Too many tries")
    assert PASSWORD not in desk.log()
    assert len(desk.logged("console_login_refused")) == 11


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_every_page_is_accessible_and_fits(
    start: Start, samples: Samples, browser: Browser, width: int, scheme: str
) -> None:
    """Nothing that axe calls serious, at a desk and on a phone, light and dark; no page is wider than the screen."""
    pacs = start(Storescp())
    desk = start(Desk({"pacs": (pacs.title, pacs.port), "archive": ("ARCHIVE", free_port())}))
    keys = [desk.mail(compose([samples.fresh().file]), to=f"{to}@gateway.test") for to in ("pacs", "archive")]
    desk.await_item(keys[0], "delivered")
    nothing = desk.mail(compose([]))
    desk.await_item(nothing, "held")
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(desk.address + "/login")
    examine(page, "/login")
    log_in(page, desk)
    stories = [f"/items/{key}" for key in (*keys, nothing)]
    for path in (*PAGES, *stories, f"/items/{nothing}/drop", "/lanes/pacs/pause", "/items/in-0"):
        page.goto(desk.address + path)
        examine(page, path)
    context.close()


def examine(page: Page, path: str) -> None:
    """Demand that a page has no serious fault and fits."""
    found = [one for one in Axe().run(page).response["violations"] if one["impact"] in {"serious", "critical"}]
    said = [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in found]
    assert said == [], path
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path


def test_the_pictures_in_the_documents_are_made(start: Start, samples: Samples, page: Page) -> None:
    """What the README and the manual show is what the console shows; `make pictures` puts them where they lie."""
    pacs = start(Storescp())
    desk = start(Desk({"pacs": (pacs.title, pacs.port), "archive": ("ARCHIVE", free_port())}))
    study = [samples.fresh("CT_small.dcm").file for _ in range(4)]
    delivered = [desk.mail(compose(study[:count])) for count in (4, 1, 2)]
    waiting = desk.mail(compose([samples.fresh("CT_small.dcm").file]), to="archive@gateway.test")
    desk.mail(compose([]))
    desk.await_items(delivered, "delivered")
    wait_until(lambda: desk.item(waiting)["instances"], "it is read")
    log_in(page, desk)
    folder = Path(os.environ.get("PICTURES", desk.folder))
    for name, path in (("overview", "/"), ("story", f"/items/{waiting}"), ("queue", "/queue")):
        page.goto(desk.address + path)
        expect(page.locator("#live")).to_have_text("Live.")
        picture = page.screenshot(path=folder / f"{name}.png")
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 10_000
