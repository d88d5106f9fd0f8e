"""The first hour: what `dicom-mail init` writes can be used, and it never changes what is there."""

from __future__ import annotations

import io
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest
from cryptography import x509

from gateway import cli, config
from gateway.errors import ConfigurationError, GatewayError, UsageError
from gateway.installation import QUESTIONS, identity, install, parse

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOTHING = dict.fromkeys((question.name for question in QUESTIONS), "")
BOTH = NOTHING | {
    "name": "gw.hospital.example",
    "postmaster": "it@hospital.example",
    "data": "data",
    "partner": "clinic-a",
    "address": "dicom@clinic-a.example",
    "pacs": "10.0.0.5:11112:PACS",
    "door": "smtp",
    "peers": "203.0.113.0/24",
    "relay": "relay.hospital.example",
    "sender": "dicom@hospital.example",
    "relay-user": "gw",
    "title": "OPINION",
    "modalities": "10.1.0.0/16",
    "identity": "self-signed",
}


def complete(path: Path) -> config.Configuration:
    """Write the passwords that a person would, and load."""
    for name in ("imap-password", "relay-password"):
        (path.parent / name).touch(0o600)
    return config.load(path)


def test_both_directions_make_a_configuration_that_loads(tmp_path: Path) -> None:
    """What was answered stands there, and protection is the default."""
    path = tmp_path / "etc/gateway.toml"
    made = install(path, parse(BOTH), NOW)
    assert [one.name for one in made.written] == ["gateway.key", "gateway.pem", "gateway.toml"]
    found = complete(path)
    assert found.relay is not None
    assert found.storescp is not None
    assert (found.relay.host, found.relay.port, found.relay.tls) == ("relay.hospital.example", 587, "starttls")
    assert (found.ae["pacs"].title, found.ae["pacs"].port) == ("PACS", 11112)
    partner = found.partner["clinic-a"]
    assert (partner.accept, partner.send) == ("signed", "signed+encrypted")
    assert [(route.from_, route.store, route.called, route.mail) for route in found.route] == [
        ("clinic-a", ("pacs",), None, ()),
        (None, (), "OPINION", ("clinic-a",)),
    ]
    assert found.smime is not None
    assert found.smime.trust.is_dir()


@pytest.mark.parametrize(
    ("pacs", "door", "relay", "title", "proof"),
    list(product(("", "10.0.0.5:104:PACS"), ("smtp", "imap"), ("", "relay.example:465"), ("", "OUT"), ("csr", "none"))),
)
def test_whatever_is_answered_either_loads_or_is_refused(
    pacs: str, door: str, relay: str, title: str, proof: str, tmp_path: Path
) -> None:
    """No combination makes a file that cannot be used."""
    title = title if relay else ""
    given = BOTH | {
        "pacs": pacs,
        "door": door if pacs else "",
        "mailbox": "dicom-in@mail.example" if pacs and door == "imap" else "",
        "peers": "",
        "relay": relay,
        "sender": "dicom@hospital.example" if relay else "",
        "relay-user": "",
        "title": title,
        "modalities": "10.1.0.0/16" if title else "",
        "identity": proof if relay else "",
    }
    path = tmp_path / "gateway.toml"
    if not pacs and not title:
        with pytest.raises(UsageError, match="nothing would come in"):
            parse(given)
        return
    install(path, parse(given), NOW)
    found = complete(path)
    assert bool(found.ae) == bool(pacs)
    assert bool(found.imap) == bool(pacs and door == "imap")
    assert (found.storescp is not None) == bool(title)
    assert (found.smime is not None) == bool(relay and proof != "none")
    assert (tmp_path / "gateway.csr").exists() == bool(relay and proof == "csr")


def test_nothing_that_is_there_is_changed(tmp_path: Path) -> None:
    """Not the configuration, and not a key: mail is encrypted to it."""
    key = tmp_path / "gateway.key"
    key.write_text("mine")
    with pytest.raises(GatewayError, match=r"gateway\.key: there already; nothing was changed"):
        install(tmp_path / "gateway.toml", parse(BOTH), NOW)
    assert [one.name for one in tmp_path.iterdir()] == ["gateway.key"]
    assert key.read_text() == "mine"


def test_an_answer_that_is_not_possible_writes_nothing(tmp_path: Path) -> None:
    """Every wrong one is named, in the configuration's own words."""
    path = tmp_path / "gateway.toml"
    with pytest.raises(ConfigurationError) as caught:
        install(path, parse(BOTH | {"postmaster": "nobody", "peers": "everywhere"}), NOW)
    said = str(caught.value).splitlines()
    assert ["the answers: " in line for line in said] == [True, True]
    assert "gateway.postmaster" in said[0]
    assert "peers" in said[1]
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """In one line."""
    (tmp_path / "file").touch()
    with pytest.raises(GatewayError, match="cannot be written"):
        install(tmp_path / "file/gateway.toml", parse(BOTH), NOW)


@pytest.mark.parametrize(
    ("name", "value"), [("pacs", "10.0.0.5"), ("pacs", "10.0.0.5:104"), ("relay", "a:b:c:d"), ("relay", "h:25:AET")]
)
def test_an_address_that_cannot_be_read_says_what_is_expected(name: str, value: str) -> None:
    """With the option's name."""
    with pytest.raises(UsageError, match=f"--{name}: expected "):
        parse(BOTH | {name: value})


def test_a_mailbox_without_a_host_is_refused() -> None:
    """USER@HOST."""
    with pytest.raises(UsageError, match="--mailbox: expected USER@HOST"):
        parse(BOTH | {"door": "imap", "mailbox": "dicom-in"})


def test_the_identity_is_for_mail_and_for_nothing_else(tmp_path: Path) -> None:
    """RFC 8550: the address in the alternative name, e-mail protection, sign and encipher; OpenSSL agrees."""
    made = identity.make("dicom@hospital.example", "gw.hospital.example", NOW)
    certificate = x509.load_pem_x509_certificate(made.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.RFC822Name) == ["dicom@hospital.example"]
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert usage.value.key_encipherment
    assert certificate.not_valid_after_utc - NOW == timedelta(days=730)
    path = tmp_path / "own.pem"
    path.write_bytes(made.certificate)
    shown = subprocess.run(
        ["openssl", "x509", "-in", path, "-noout", "-purpose"], check=True, capture_output=True, text=True
    ).stdout
    assert "S/MIME signing : Yes" in shown
    assert "S/MIME encryption : Yes" in shown
    assert "S/MIME signing CA : No" in shown
    request = tmp_path / "own.csr"
    request.write_bytes(made.request)
    subprocess.run(["openssl", "req", "-in", request, "-verify", "-noout"], check=True, capture_output=True)


def test_the_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    """From its first byte on."""
    install(tmp_path / "gateway.toml", parse(BOTH), NOW)
    assert stat.S_IMODE((tmp_path / "gateway.key").stat().st_mode) == 0o600


OPTIONS = [f"--{name}={value}" for name, value in BOTH.items() if value]


def test_the_verb_needs_no_terminal_when_options_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It tells what it wrote, and then what to do, in the order to do it."""
    path = tmp_path / "gateway.toml"
    assert cli.perform(["init", "--config", str(path), *OPTIONS]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[2] == f"wrote {path}"
    assert said[3].startswith("1. Write the password")
    assert said[-2].endswith(f"dicom-mail check --config {path}")
    assert cli.perform(["init", "--config", str(path), *OPTIONS]) == 1


def test_what_no_option_answers_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what has a meaning after the answers before: without a relay nobody is asked for a sender."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    typed = ["", "it@hospital.example", str(tmp_path / "data"), "clinic-a", "dicom@clinic-a.example"]
    typed += ["10.0.0.5:11112:PACS", "imap", "dicom-in@mail.example", ""]
    monkeypatch.setattr("sys.stdin", Terminal("\n".join(typed) + "\n"))
    assert cli.perform(["init", "--config", str(tmp_path / "gateway.toml")]) == 0
    said = capsys.readouterr().out
    assert "Our mail address" not in said
    assert complete(tmp_path / "gateway.toml").imap["mailbox"].host == "mail.example"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([one for one in OPTIONS if "postmaster" not in one], "--postmaster is missing"),
        ([*OPTIONS, "--door=pigeon"], "--door: expected smtp or imap"),
        ([*OPTIONS, "--mailbox=a@b"], "--mailbox has no meaning with the other answers"),
    ],
)
def test_a_missing_or_foreign_answer_is_named(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line."""
    assert cli.perform(["init", "--config", str(tmp_path / "gateway.toml"), *options]) == 2
    assert said in capsys.readouterr().err
