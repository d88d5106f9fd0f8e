"""The running gateway under kill -9, at a mailbox of a real Dovecot: every mail exactly one item (R1, R2, R26)."""

from __future__ import annotations

import os
import random
import time

import pytest
from daemon import Daemon
from dovecot import USER, Dovecot
from mailboxes import text_mail
from peer import Start, wait_until

pytestmark = pytest.mark.peer

MAILS = int(os.environ.get("MAILBOX_MAILS", "120"))
KILLS = int(os.environ.get("MAILBOX_KILLS", "4"))


def test_every_mail_is_one_item_however_often_the_gateway_is_killed(start: Start) -> None:
    """Killed at random moments; then everything is moved, counted, and the proof holds."""
    dovecot = start(Dovecot())
    dovecot.make("Processed", "Failed")
    dovecot.append(*(text_mail(n, "dicom@clinic-a.test") for n in range(MAILS)))
    mailbox = (
        f'[imap.a]\nhost = "127.0.0.1"\nport = {dovecot.port}\ntls = "none"\nuser = "{USER}"\n'
        f'password_file = "{dovecot.password_file}"\naddress = "pacs@gateway.test"\nother = "move"\npoll = "1s"\n'
    )
    daemon = start(Daemon({"pacs": ("PACS", 1)}, mailbox))
    dice = random.Random(7)
    for _ in range(KILLS):
        time.sleep(dice.uniform(0.05, 0.6))
        daemon.kill()
        daemon.start()
    wait_until(lambda: len(dovecot.mails("Processed")) >= MAILS, "all mails were moved", 120)
    daemon.stop()
    assert daemon.say("reconcile").returncode == 0
    counts = daemon.ask("reconcile")
    assert (counts["in"], counts["unaccounted"]) == (MAILS, 0)
    assert sorted(dovecot.mails("Processed")) == sorted(text_mail(n, "dicom@clinic-a.test") for n in range(MAILS))
    assert dovecot.mails() == []
