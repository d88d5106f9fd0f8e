"""Delivery status notifications: what comes back for our mails, and what a partner is told."""

from __future__ import annotations

import email
import email.policy
from dataclasses import replace
from pathlib import Path

import pytest
from rows import NOW

from gateway.core import dsn
from gateway.core.dsn import Notification, Told
from gateway.model import Outcome, Span

REPORT = """\
From: MAILER-DAEMON@mx.example
To: dicom@gw.example
Subject: Undelivered
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: text/plain

Sorry.

--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example
Original-Envelope-Id: out-1.1

Final-Recipient: rfc822; a@x.example
Action: delivered
Status: 2.0.0

Final-Recipient: rfc822; b@x.example
Action: FAILED (mailbox gone)
Status: 5.1.1 (no such user)

--b
Content-Type: message/rfc822

From: dicom@gw.example
Message-ID:
 <1@gw.example>

body
--b--
"""


def spooled(folder: Path, text: str) -> Span:
    path = folder / "report.eml"
    path.write_bytes(text.replace("\n", "\r\n").encode())
    return Span(path, 0, path.stat().st_size)


def test_the_worst_word_of_a_report_counts(tmp_path: Path) -> None:
    """Envelope identifier, Message-ID, action and status are found where they stand (DSN-2)."""
    assert dsn.read(spooled(tmp_path, REPORT)) == Told("out-1.1", "<1@gw.example>", "failed", "5.1.1")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("Original-Envelope-Id: out-1.1\n", "", Told(None, "<1@gw.example>", "failed", "5.1.1")),
        ("Message-ID:\n <1@gw.example>", "X: y", Told("out-1.1", None, "failed", "5.1.1")),
        ("FAILED (mailbox gone)", "delayed", Told("out-1.1", "<1@gw.example>", "delayed", "5.1.1")),
        ("5.1.1 (no such user)", "unknown", Told("out-1.1", "<1@gw.example>", "failed", "")),
        ("message/delivery-status", "text/plain", None),
        ("Action: delivered\nStatus: 2.0.0\n\n", "", Told("out-1.1", "<1@gw.example>", "failed", "5.1.1")),
    ],
)
def test_a_report_that_strays_is_read_as_far_as_it_goes(tmp_path: Path, old: str, new: str, told: Told | None) -> None:
    """Whatever is missing is unknown, and no error."""
    assert old in REPORT
    assert dsn.read(spooled(tmp_path, REPORT.replace(old, new))) == told


def test_a_report_without_an_action_says_nothing(tmp_path: Path) -> None:
    """An action nobody knows is none."""
    text = REPORT.replace("Action: delivered", "Action: eaten").replace("Action: FAILED", "Reaction:")
    assert dsn.read(spooled(tmp_path, text)) is None


NOTIFICATION = Notification(
    "dicom@gw.example",
    "b@clinic.example",
    "pacs@gw.example",
    "<in-1.report@gw.example>",
    "<7@clinic.example>",
    NOW,
    "gw.example",
    Outcome.HELD,
    "reused-uid",
    3,
    2,
    "in-1",
)


@pytest.mark.parametrize(
    ("outcome", "action"), [(Outcome.HELD, ("delayed", "4.0.0")), (Outcome.FAILED, ("failed", "5.0.0"))]
)
@pytest.mark.parametrize("about", ["<7@clinic.example>", None])
def test_what_a_partner_is_told_is_a_report_that_we_can_read_ourselves(
    tmp_path: Path, outcome: Outcome, action: tuple[str, str], about: str | None
) -> None:
    """Neutral: counts and a code; held is no failure yet (DSN-4)."""
    path = tmp_path / "word.eml"
    path.write_bytes(dsn.write(replace(NOTIFICATION, outcome=outcome, about=about)))
    assert dsn.read(Span(path, 0, path.stat().st_size)) == Told(None, about, *action)
    message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    assert message.get_content_type() == "multipart/report"
    assert message["Auto-Submitted"] == "auto-replied"
    text = message.get_body(("plain",))
    assert text is not None
    assert "Code: reused-uid. Images: 3, forwarded: 2." in text.get_content()
    assert message.defects == []


def test_a_notice_is_marked_as_what_a_machine_wrote() -> None:
    """No automatic answer comes back to it (RFC 3834)."""
    content = dsn.write_notice("d@gw.example", "it@gw.example", "<n@gw.example>", NOW, "gw.example", "a\nb", "Text ü\n")
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert message["Auto-Submitted"] == "auto-generated"
    assert "\n" not in message["Subject"]
    assert message.get_content() == "Text ü\r\n"
    assert b"\r\r" not in content
