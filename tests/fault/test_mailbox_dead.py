"""Two mailboxes, one of them dead in each way a server can be: the other does not notice (R24)."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest
from daemon import Daemon
from dovecot import USER, Dovecot
from mailboxes import text_mail
from peer import Start, free_port, wait_until

pytestmark = pytest.mark.peer

MAILS = 20


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def section(name: str, port: int, dovecot: Dovecot, user: str = USER) -> str:
    """An [imap] section; mail without DICOM is moved, so that it is seen what was taken."""
    return (
        f'[imap.{name}]\nhost = "127.0.0.1"\nport = {port}\ntls = "none"\nuser = "{user}"\n'
        f'password_file = "{dovecot.password_file}"\naddress = "pacs@gateway.test"\nother = "move"\npoll = "1s"\n'
    )


@pytest.mark.parametrize("trouble", ["mute", "shut", "refusing"])
def test_a_dead_mailbox_does_not_hold_up_the_other(start: Start, mute: int, trouble: str) -> None:
    """Every mail of the one that lives is taken at once; the other has its own state in `echo` and in the metrics."""
    dovecot = start(Dovecot())
    dovecot.make("Processed", "Failed")
    port = {"mute": mute, "shut": free_port(), "refusing": dovecot.port}[trouble]
    dead = section("dead", port, dovecot, user="nobody" if trouble == "refusing" else USER)
    daemon = start(Daemon({"pacs": ("PACS", 1)}, section("alive", dovecot.port, dovecot) + dead))
    for number in range(MAILS):
        dovecot.append(text_mail(number, "dicom@clinic-a.test"))
    wait_until(lambda: len(dovecot.mails("Processed")) == MAILS, "every mail of the living one was taken", 20)
    _, metrics = daemon.get("/metrics")
    up = dict(re.findall(r'^dicom_mail_mailbox_up\{.*mailbox="(?:imap\.)?(\w+)".*\} ([\d.]+)$', metrics, re.MULTILINE))
    assert (up["alive"], up["dead"]) == ("1.0", "0.0")
    assert daemon.ask("reconcile")["in"] == MAILS
