"""What a person sees of mailboxes: check says which folders are missing and makes them when told to (R3)."""

from __future__ import annotations

import pytest
from daemon import Daemon
from dovecot import USER, Dovecot
from peer import Start

pytestmark = pytest.mark.peer


def test_missing_folders_are_named_and_made_when_told_to(start: Start) -> None:
    """A problem with its remedy first; then they are there."""
    dovecot = start(Dovecot())
    mailbox = f'[imap.a]\nhost = "127.0.0.1"\nport = {dovecot.port}\ntls = "none"\nuser = "{USER}"\n'
    daemon = Daemon({}, f'{mailbox}password_file = "{dovecot.password_file}"\naddress = "pacs@gateway.test"\n')
    try:
        daemon.data.mkdir()
        before = {one["subject"]: one for one in daemon.ask("check")["checks"]}
        assert before["imap.a"]["mark"] == "ok"
        assert [before[f"imap.a.{key}"]["mark"] for key in ("folder", "done", "failed")] == ["ok", "problem", "problem"]
        assert "--make-folders" in before["imap.a.done"]["do"]
        made = {one["subject"]: one["mark"] for one in daemon.ask("check", "--make-folders")["checks"]}
        assert {made["imap.a.done"], made["imap.a.failed"]} == {"ok"}
        dovecot.stop()
        after = {one["subject"]: one["mark"] for one in daemon.ask("echo")["checks"]}
        assert after["imap.a"] == "no answer"
    finally:
        daemon.remove()
