"""TLS and passwords at the SMTP door, with the program's own users file and a certificate as a hospital makes one."""

from __future__ import annotations

import base64
import signal
import smtplib
import ssl
import subprocess
import sys
from collections.abc import Iterator

import pytest
from daemon import ROOT, Daemon
from messages import compose
from peer import free_port, program, wait_until
from samples import Samples
from storescp import Storescp
from swaks import swaks

pytestmark = pytest.mark.peer

PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="module")
def implicit() -> int:
    """The port for implicit TLS."""
    return free_port()


@pytest.fixture(scope="module")
def gateway(implicit: int) -> Iterator[Daemon]:
    """A gateway that speaks TLS, with a partner bound to a login and one bound to other machines than this."""
    with Storescp() as pacs:
        made = Daemon({"pacs": (pacs.title, pacs.port)})
        sections = f"""
[smtp]
listen = "127.0.0.1:{made.port}"
implicit_tls_listen = "127.0.0.1:{implicit}"
certificate = "tls.pem"
key_file = "tls.key"
users_file = "smtp-users"
[partner.clinic-a]
address = "*@clinic-a.test"
smtp_user = "clinic-a"
accept = "any"
[partner.clinic-b]
address = "*@clinic-b.test"
peers = ["192.0.2.0/24"]
accept = "any"
[[route]]
name = "in"
to = "pacs@gateway.test"
store = ["pacs"]
"""
        made.configure({"pacs": (pacs.title, pacs.port)}, sections)
        subject = ["-subj", "/CN=gateway.test", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        keys = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "tls.key"]
        subprocess.run(
            [program("openssl"), "req", "-x509", *keys, "-out", "tls.pem", "-days", "2", *subject],
            cwd=made.folder, check=True, capture_output=True,
        )  # fmt: skip
        (made.folder / "tls.key").chmod(0o600)
        (made.folder / "smtp-users").write_text("", "utf-8")
        add_user(made, "clinic-a", PASSWORD)
        with made:
            yield made


def add_user(gateway: Daemon, name: str, password: str) -> None:
    """Give somebody a password, as an administrator does."""
    command = [sys.executable, "-m", "gateway", "user", "add", name, "--config", str(gateway.config)]
    done = subprocess.run(command, input=f"{password}\n", text=True, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert password not in done.stdout + done.stderr + (gateway.folder / "smtp-users").read_text("utf-8")


@pytest.fixture
def tls(gateway: Daemon) -> ssl.SSLContext:
    """Trust in the gateway's own certificate, and in no other."""
    return ssl.create_default_context(cafile=str(gateway.folder / "tls.pem"))


def log_in(gateway: Daemon, tls: ssl.SSLContext, name: str, password: str) -> int:
    """Try once; return the reply code. smtplib's own login would try every mechanism with a wrong password."""
    credentials = base64.b64encode(f"\0{name}\0{password}".encode()).decode()
    with smtplib.SMTP("127.0.0.1", gateway.port, timeout=10) as wire:
        wire.starttls(context=tls)
        wire.ehlo("a.test")
        return wire.docmd("AUTH", f"PLAIN {credentials}")[0]


def test_a_partner_that_logs_in_over_starttls_may_send(gateway: Daemon, samples: Samples, tls: ssl.SSLContext) -> None:
    """The password of `user add` opens the door, and the partner is the one it is bound to."""
    key = gateway.mail(compose([samples.fresh().file]), tls=tls, login=("clinic-a", PASSWORD))
    assert gateway.await_item(key, "delivered")["partner"] == "clinic-a"


def test_a_partner_that_does_not_log_in_is_not_believed(gateway: Daemon, samples: Samples, tls: ssl.SSLContext) -> None:
    """A From address alone proves nothing: 550 5.7.1, with TLS or without; so for one bound to other machines."""
    message = compose([samples.fresh().file])
    assert gateway.submit(message, tls=tls)[1].startswith("5.7.1")
    assert gateway.submit(message)[1].startswith("5.7.1")
    other = compose([samples.fresh().file], sender="dicom@clinic-b.test")
    assert gateway.submit(other, tls=tls, login=("clinic-a", PASSWORD))[1].startswith("5.7.1")


def test_a_wrong_password_is_told_and_no_more(gateway: Daemon, tls: ssl.SSLContext) -> None:
    """535, whether the name exists or not, and neither shows in the log."""
    for name in ("clinic-a", "nobody-of-that-name"):
        assert log_in(gateway, tls, name, "wrong secret") == 535
    assert "wrong secret" not in gateway.log()
    assert "nobody-of-that-name" not in gateway.log()


def test_no_password_is_asked_for_in_clear(gateway: Daemon) -> None:
    """AUTH is not offered before TLS, and refused to who tries it all the same (RFC 4954, SMTP-9)."""
    with smtplib.SMTP("127.0.0.1", gateway.port, timeout=10) as wire:
        wire.ehlo("a.test")
        assert not wire.has_extn("auth")
        assert wire.has_extn("starttls")
        assert wire.docmd("AUTH", "PLAIN AGNsaW5pYy1hAHg=")[0] == 538


def test_implicit_tls_takes_mail_too(gateway: Daemon, implicit: int, samples: Samples, tls: ssl.SSLContext) -> None:
    """Port 465: TLS from the first byte."""
    with smtplib.SMTP_SSL("127.0.0.1", implicit, context=tls, timeout=30) as wire:
        wire.login("clinic-a", PASSWORD)
        assert wire.sendmail("dicom@clinic-a.test", ["pacs@gateway.test"], compose([samples.fresh().file])) == {}
    newest = gateway.view("list")["items"][0]["id"]
    assert gateway.await_item(newest, "delivered")["partner"] == "clinic-a"


@pytest.mark.parametrize("way", ["--tls", "--tls-on-connect"])
def test_swaks_logs_in(gateway: Daemon, implicit: int, samples: Samples, way: str) -> None:
    """Another client, by both ways of TLS."""
    port = gateway.port if way == "--tls" else implicit
    login = ("--auth", "PLAIN", "--auth-user", "clinic-a", "--auth-password", PASSWORD)
    sent = swaks(
        port, way, *login, "--from", "dicom@clinic-a.test", "--to", "pacs@gateway.test",
        message=compose([samples.fresh().file]),
    )  # fmt: skip
    assert sent.returncode == 0, sent.stdout


def test_a_new_user_may_log_in_after_a_reload(gateway: Daemon, tls: ssl.SSLContext, samples: Samples) -> None:
    """SIGHUP takes the users over, and a changed password replaces the old one."""
    add_user(gateway, "clinic-a", "another one")
    gateway.signal(signal.SIGHUP)
    wait_until(lambda: gateway.logged("reloaded"), "it is taken over")
    message = compose([samples.fresh().file])
    assert gateway.submit(message, tls=tls, login=("clinic-a", "another one"))[0] == 250
    assert log_in(gateway, tls, "clinic-a", PASSWORD) == 535
    add_user(gateway, "clinic-a", PASSWORD)
    gateway.signal(signal.SIGHUP)
    wait_until(lambda: len(gateway.logged("reloaded")) == 2, "and back")
