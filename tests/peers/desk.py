"""A gateway with a web console, and Debian's Chromium to use it with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from daemon import Daemon
from peer import answers, free_port, program
from playwright.sync_api import Browser, Page, sync_playwright

from gateway.users import Users

OPERATOR, VIEWER = "otto", "vera"
PASSWORD = "correct horse battery"


class Desk(Daemon):
    """`dicom-mail run` with a console, an operator and a viewer.

    Args:
        destinations: As of a Daemon.
        sections: As of a Daemon.
    """

    def __init__(self, destinations: Mapping[str, tuple[str, int]], sections: str = "") -> None:
        self.web, self.dicom = free_port(), 0
        console = f'[console]\nlisten = "127.0.0.1:{self.web}"\nusers_file = "console-users"\n'
        super().__init__(destinations, console + sections)
        users = Users(self.folder / "console-users")
        users.add(OPERATOR, PASSWORD, "operator")
        users.add(VIEWER, PASSWORD, "viewer")

    @property
    def address(self) -> str:
        """Of the overview, without the slash at its end."""
        return f"http://127.0.0.1:{self.web}"

    def ready(self) -> bool:
        """Its doors are open."""
        return answers(self.web) and super().ready()


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        # Root, as which CI runs, has no sandbox in Chromium; it sees loopback alone.
        browser = playwright.chromium.launch(executable_path=program("chromium"), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def log_in(page: Page, desk: Desk, name: str = OPERATOR, password: str = PASSWORD, path: str = "/") -> None:
    """Open a page, and log in on the way."""
    page.goto(desk.address + path)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
