"""Live checks: each finds what it is for, says what to do, and changes nothing."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from peer import free_port, program
from scripted_scp import Greeting, ScriptedScp
from sqlalchemy import text
from storescp import Storescp

from gateway import backup, checks
from gateway.checks import Check, Mark
from gateway.config import Configuration, load
from gateway.errors import ConfigurationError, GatewayError
from gateway.ledger import ledger
from gateway.users import Users

LEAST = """
[gateway]
name = "gateway.test"
postmaster = "it@hospital.test"
data = "data"

[limits]
free_space = "1 MB"
"""

Load = Callable[..., Configuration]


@pytest.fixture
def configure(tmp_path: Path) -> Load:
    """Writes a configuration with more than the least, and loads it."""

    def configure(*more: str) -> Configuration:
        path = tmp_path / "gateway.toml"
        path.write_text("\n".join([LEAST, *more]), "utf-8")
        return load(path)

    return configure


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data folder, as the gateway makes it."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return folder


def about(found: Iterator[Check], subject: str) -> list[Check]:
    """Those of one subject."""
    return [one for one in found if one.subject == subject]


def one(found: Iterator[Check], subject: str) -> Check:
    """The only one of a subject."""
    (single,) = about(found, subject)
    return single


def test_the_gravest_mark_decides_the_exit_code() -> None:
    """A problem is 1, silence alone is 3, a warning is good enough."""
    assert checks.exit_code([]) == 0
    assert checks.exit_code([Mark.OK, Mark.WARNING]) == 0
    assert checks.exit_code([Mark.OK, Mark.NO_ANSWER]) == 3
    assert checks.exit_code([Mark.NO_ANSWER, Mark.PROBLEM]) == 1


# The folder


def test_nothing_is_made_by_looking(configure: Load, tmp_path: Path) -> None:
    """Before the first start there is no folder, no ledger, and there is none after a check."""
    found = list(checks.check(configure('[smtp]\nlisten = "127.0.0.1:0"')))
    assert {mark for mark, *_ in found} <= {Mark.OK, Mark.WARNING}
    assert one(iter(found), "ledger").text == "is made at the first start"
    assert one(iter(found), "gateway").text == "does not run now"
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.toml"]


def test_a_disk_with_too_little_room_is_a_problem(configure: Load, data: Path) -> None:
    """It says what that means for mail."""
    assert one(checks.live(configure()), "gateway.data").mark is Mark.OK
    configuration = configure().model_copy(
        update={"limits": configure().limits.model_copy(update={"free_space": 1 << 60})}
    )
    found = one(checks.live(configuration), "limits.free_space")
    assert found.mark is Mark.PROBLEM
    assert "452" in found.text
    assert data.exists()


def test_a_folder_that_cannot_be_written_is_a_problem(configure: Load) -> None:
    """/proc takes no files, whoever asks."""
    configuration = configure()
    gateway = configuration.gateway.model_copy(update={"data": Path("/proc/sys")})
    found = one(checks.live(configuration.model_copy(update={"gateway": gateway})), "gateway.data")
    assert found.mark is Mark.PROBLEM
    assert "cannot be written" in found.text


@pytest.mark.parametrize(("kind", "mark"), [("nfs4", Mark.PROBLEM), ("tmpfs", Mark.WARNING), ("ext4", Mark.OK)])
def test_the_kind_of_file_system_is_judged(
    configure: Load, data: Path, kind: str, mark: Mark, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite cannot keep its promises on a network disk, and tmpfs forgets."""
    monkeypatch.setattr(ledger, "file_system", lambda _folder: kind)
    assert mark in {found.mark for found in about(checks.live(configure()), "gateway.data")}
    assert data.exists()


@pytest.mark.root
def test_a_folder_of_somebody_else_is_told(configure: Load, data: Path) -> None:
    """What root may do says nothing about the service's user."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(data, 12345, -1)
    assert "uid 12345" in about(checks.live(configure()), "gateway.data")[0].text
    os.chown(data, 1, -1)
    assert "daemon" in about(checks.live(configure()), "gateway.data")[0].text


# The ledger


def test_the_schema_is_compared_and_not_touched(configure: Load, data: Path) -> None:
    """Current, to be migrated, of a newer release, no ledger at all."""
    engine = ledger.connect(f"sqlite:///{data / 'ledger.sqlite'}")
    with engine.connect() as connection:
        newest = ledger.schema(connection)[1]
    assert one(checks.live(configure()), "ledger").text == f"schema {newest}"
    assert one(checks.live(configure()), "queue") == Check(Mark.OK, "queue", "0 waiting, 0 held, 0 failed")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM alembic_version"))
    assert one(checks.live(configure()), "ledger").text == f"schema none, brought to {newest} at the next start"
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO alembic_version VALUES ('9999')"))
    found = one(checks.live(configure()), "ledger")
    assert (found.mark, "9999" in found.text) == (Mark.PROBLEM, True)
    engine.dispose()
    (data / "ledger.sqlite").write_bytes(b"no database at all" * 100)
    found = one(checks.live(configure()), "ledger")
    assert (found.mark, "cannot be read" in found.text) == (Mark.PROBLEM, True)
    assert not about(checks.live(configure()), "queue")


def test_what_needs_a_person_is_shown(configure: Load, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open notices, paused destinations, held items; what is unaccounted for is a problem."""
    (data / "ledger.sqlite").touch()
    proof = {"waiting": 1, "held": 2, "failed": 0, "unaccounted": 0}
    state = {
        "notices": [{"text": "in-1 is held: no-dicom", "do": "dicom-mail queue show in-1"}],
        "destinations": [{"name": "pacs", "paused": True}, {"name": "archive", "paused": False}],
    }
    answers = {"reconcile": proof, "list": state}
    monkeypatch.setattr("gateway.control.call", lambda _configuration, verb, **_: answers[verb])
    found = list(checks._queue(configure()))
    assert [(check.mark, check.subject) for check in found] == [
        (Mark.WARNING, "notice"),
        (Mark.WARNING, "ae.pacs"),
        (Mark.WARNING, "queue"),
    ]
    assert found[2].text == "1 waiting, 2 held, 0 failed"
    proof["unaccounted"] = 1
    assert list(checks._queue(configure()))[-1].mark is Mark.PROBLEM


# Doors


def test_a_port_of_another_program_is_a_problem(configure: Load, data: Path) -> None:
    """And how to see whose it is. A free one is good."""
    port = free_port()
    configuration = configure(f'[smtp]\nlisten = "127.0.0.1:{port}"', '[metrics]\nlisten = "127.0.0.1:0"')
    assert one(checks.live(configuration), "smtp.listen").mark is Mark.OK
    with socket.create_server(("127.0.0.1", port)):
        found = one(checks.live(configuration), "smtp.listen")
    assert (found.mark, found.do) == (Mark.PROBLEM, f"see who has it: ss -ltnp sport = :{port}")
    assert data.exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_port_of_the_running_gateway_is_good(configure: Load, data: Path, host: str) -> None:
    """The process that holds the lock listens there itself."""
    port = free_port()
    configuration = configure(f'[console]\nlisten = "{host}:{port}"')
    lock = (data / "lock").open("w")
    lock.write(str(os.getpid()))
    lock.flush()
    fcntl.flock(lock, fcntl.LOCK_EX)
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    with lock, socket.create_server((host.strip("[]"), port), family=family):
        found = list(checks.live(configuration))
        assert one(iter(found), "gateway").text == f"runs as process {os.getpid()}"
        assert one(iter(found), "console.listen").text.endswith("is open: the gateway listens there")
    with socket.create_server((host.strip("[]"), port), family=family):  # the lock is free again
        assert one(checks.live(configuration), "console.listen").mark is Mark.PROBLEM


def test_a_lock_of_a_former_life_means_nothing(configure: Load, data: Path) -> None:
    """The file stays, the lock does not."""
    (data / "lock").write_text("1")
    assert one(checks.live(configure()), "gateway").text == "does not run now"


def test_an_address_that_is_not_ours_is_a_problem(configure: Load) -> None:
    """192.0.2.1 is nobody's (RFC 5737)."""
    certificate = '[smtp]\nlisten = "192.0.2.1:2525"'
    found = one(checks.live(configure(certificate)), "smtp.listen")
    assert (found.mark, found.do) == (Mark.PROBLEM, "name an address of this machine")


def test_a_port_below_1024_may_need_a_right(configure: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint names it."""

    def refuse(_listen: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checks, "_bind", refuse)
    found = one(checks.live(configure('[smtp]\nlisten = "127.0.0.1:25"')), "smtp.listen")
    assert "CAP_NET_BIND_SERVICE" in found.do


# Certificates and users


def certify(folder: Path, name: str, days: int = 365) -> None:
    """Make a certificate that ends in so many days, and its key, with OpenSSL."""
    subject = ["-subj", "/CN=gateway.test", "-days", str(days)]
    files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
    command = [program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run([*command, *subject, *files], check=True, capture_output=True)


SMTP_TLS = '[smtp]\nlisten = "127.0.0.1:0"\ncertificate = "tls.pem"\nkey_file = "tls.key"'


@pytest.mark.peer
@pytest.mark.parametrize(
    ("days", "mark", "do"),
    [
        (365, Mark.OK, ""),
        (59, Mark.WARNING, "have it renewed"),
        (29, Mark.WARNING, "renew it this month"),
        (13, Mark.WARNING, "renew it now"),
    ],
)
def test_a_certificate_is_spoken_of_before_it_ends(
    configure: Load, tmp_path: Path, days: int, mark: Mark, do: str
) -> None:
    """Sixty days ahead, and more urgently later; its last day is named."""
    certify(tmp_path, "tls", days)
    found = one(checks.live(configure(SMTP_TLS)), "smtp.certificate")
    assert (found.mark, found.do) == (mark, do)
    assert f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d}" in found.text


@pytest.mark.peer
def test_an_expired_certificate_is_a_problem(configure: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The earliest end in a chain counts."""
    certify(tmp_path, "tls")
    certify(tmp_path, "root", 36500)  # ends behind 2049: a GeneralizedTime
    with (tmp_path / "tls.pem").open("a") as chain:
        chain.write((tmp_path / "root.pem").read_text())
    ends = [checks.expiry(der) for der in checks._pem(tmp_path / "tls.pem")]
    assert ends[0] < datetime.now(UTC) + timedelta(days=366)
    assert ends[1] > datetime(2100, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(checks, "expiry", lambda _der: datetime(2026, 1, 1, tzinfo=UTC))
    found = one(checks.live(configure(SMTP_TLS)), "smtp.certificate")
    assert (found.mark, found.text.endswith("expired on 2026-01-01")) == (Mark.PROBLEM, True)


@pytest.mark.peer
def test_a_certificate_without_its_key_is_a_problem(configure: Load, tmp_path: Path) -> None:
    """So is a file that is no certificate, wherever it is named."""
    certify(tmp_path, "tls")
    certify(tmp_path, "other")
    shutil.copy(tmp_path / "other.key", tmp_path / "tls.key")
    (tmp_path / "clinic.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (tmp_path / "empty.pem").touch()
    partner = '[partner.clinic]\naddress = "a@b.test"\ncertificate = "clinic.pem"'
    smime = '[smime]\nidentities = [{ certificate = "empty.pem", key_file = "tls.key" }]'
    found = list(checks.live(configure(SMTP_TLS, partner, smime)))
    for subject in ("smtp.certificate", "partner.clinic.certificate", "smime.identities[1].certificate"):
        assert one(iter(found), subject).mark is Mark.PROBLEM, subject


@pytest.mark.peer
def test_users_are_counted_and_their_file_is_read(configure: Load, tmp_path: Path) -> None:
    """Nobody is a warning, a line that is no user is a problem."""
    certify(tmp_path, "tls")
    path = tmp_path / "smtp-users"
    path.touch(0o600)
    configuration = configure(SMTP_TLS + '\nusers_file = "smtp-users"')
    assert one(checks.live(configuration), "smtp.users_file").mark is Mark.WARNING
    Users(path).add("clinic", "secret")
    assert one(checks.live(configuration), "smtp.users_file").text == "1 may log in"
    path.write_text("nonsense\n")
    assert one(checks.live(configuration), "smtp.users_file").mark is Mark.PROBLEM


# Peers


def pacs(port: int, name: str = "pacs", title: str = "PACS") -> str:
    """The section of a destination."""
    return f'[ae.{name}]\ntitle = "{title}"\nhost = "127.0.0.1"\nport = {port}\ntimeout = "5s"'


def test_a_destination_that_is_not_there_gives_no_answer(configure: Load) -> None:
    """Which alone ends with exit code 3."""
    found = list(checks.echo(configure(pacs(free_port()))))
    assert checks.exit_code(check.mark for check in found) == 3
    assert "Connection refused" in found[0].text


@pytest.mark.parametrize(
    ("reject", "do"),
    [
        ((1, 1, 7), "its title is not PACS: ask the PACS team"),
        ((1, 1, 3), "have the PACS team admit DICOMMAIL"),
        ((1, 1, 1), "ask the PACS team"),
    ],
)
def test_a_rejection_is_a_problem_with_its_remedy(configure: Load, reject: tuple[int, int, int], do: str) -> None:
    """Somebody has to change a title, here or there (PS3.8 Table 9-21)."""
    with ScriptedScp(greetings=[Greeting(act="reject", reject=reject)]) as scp:
        found = list(checks.echo(configure(pacs(scp.port))))
    assert [(check.mark, check.do) for check in found] == [(Mark.PROBLEM, do)]


def test_all_are_asked_at_once_and_answer_in_order(configure: Load) -> None:
    """Or one by its name; the relay with all, which is away."""
    relay = f'[relay]\nhost = "127.0.0.1"\nport = {free_port()}\nsender = "a@b.test"'
    configuration = configure(pacs(free_port(), "b"), pacs(free_port(), "a"), relay)
    assert [check.subject for check in checks.echo(configuration)] == ["ae.b", "ae.a", "relay"]
    assert [check.mark for check in checks.echo(configuration)] == [Mark.NO_ANSWER] * 3
    assert checks.exit_code(check.mark for check in checks.echo(configuration)) == 3
    assert [check.subject for check in checks.echo(configuration, "a")] == ["ae.a"]
    document = checks.document(checks.echo(configuration, "a"))
    assert document["checks"][0].keys() == {"mark", "subject", "text", "do"}


def mutual(folder: Path) -> str:
    """Certificates of an authority, of a PACS and of ourselves, and the section that names them."""
    certify(folder, "ca")
    certify(folder, "gateway")
    return '\n[ae.pacs.tls]\nca = "ca.pem"\ncertificate = "gateway.pem"\nkey_file = "gateway.key"'


@pytest.mark.peer
def test_the_certificate_of_a_destination_is_spoken_of_before_it_ends(configure: Load, tmp_path: Path) -> None:
    """TLS-4: theirs as well as ours; whose it is, and whom to tell."""
    files = ["-keyout", str(tmp_path / "pacs.key"), "-out", str(tmp_path / "pacs.pem")]
    names = ["-subj", "/CN=pacs", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "20"]
    command = [program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    tls = mutual(tmp_path).replace("ca.pem", "pacs.pem")
    options = ["+tls", str(tmp_path / "pacs.key"), str(tmp_path / "pacs.pem"), "+cf", str(tmp_path / "gateway.pem")]
    with Storescp(*options) as scp:
        configuration = configure(pacs(scp.port, title=scp.title) + tls)
        found = list(checks.echo(configuration))
        storage = one(checks.accepted(configuration), "ae.pacs storage")
    assert "by TLS" in one(iter(found), "ae.pacs").text
    theirs = one(iter(found), "ae.pacs.tls")
    assert (theirs.mark, theirs.do) == (Mark.WARNING, "renew it this month: tell the PACS team")
    assert storage.mark is Mark.OK


@pytest.mark.peer
def test_certificates_of_ours_that_cannot_be_used_are_a_problem(configure: Load, tmp_path: Path) -> None:
    """A key of somebody else, before anybody is called."""
    tls = mutual(tmp_path)
    shutil.copy(tmp_path / "ca.key", tmp_path / "gateway.key")
    found = list(checks.echo(configure(pacs(free_port()) + tls)))
    assert [(check.mark, check.subject) for check in found] == [(Mark.PROBLEM, "ae.pacs.tls")]
    assert list(checks.accepted(configure(pacs(free_port()) + tls))) == []


@pytest.mark.peer
def test_what_a_destination_accepts_is_said_in_plain_words(configure: Load) -> None:
    """NET-20: classes by number and name, compressions by name."""
    with Storescp() as scp:
        found = one(checks.accepted(configure(pacs(scp.port, title=scp.title))), "ae.pacs storage")
    assert found.mark is Mark.OK
    assert re.fullmatch(
        r"accepts \d+ of \d+ storage classes; refuses: .* and \d+ more; takes compressed: .*", found.text
    )
    assert "JPEG 2000 Lossless" in found.text


def test_a_destination_that_takes_nothing_is_a_problem() -> None:
    """It answers C-ECHO all the same."""
    assert checks._acceptance("ae.pacs storage", 2, ["CT", "MR"], []) == Check(
        Mark.PROBLEM,
        "ae.pacs storage",
        "accepts 0 of 2 storage classes; refuses: CT, MR; takes compressed: nothing",
        "have the PACS team allow storage to this title, and from ours",
    )
    found = checks._acceptance("ae.pacs storage", 2, [], ["RLE"])
    assert found.text == "accepts 2 of 2 storage classes; takes compressed: RLE"


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that everybody may look into; those of pytest are their owner's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "gateway.toml").write_text(LEAST, "utf-8")
        yield Path(name)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_another_user_is_told_that_he_may_not_look(outside: Path) -> None:
    """Who checks without sudo gets lines and no defect, and is not told that the gateway does not run."""
    (outside / "data").mkdir(mode=0o700)
    with (outside / "gateway.toml").open("a", encoding="utf-8") as file:
        file.write('[partner.clinic-a]\naddress = "a@clinic-a.test"\n')
    ledger.connect(f"sqlite:///{outside / 'data' / 'ledger.sqlite'}").dispose()
    configuration = load(outside / "gateway.toml")
    with nobody():
        found = list(checks.check(configuration))
        with pytest.raises(GatewayError, match="Permission denied"):
            backup.make(configuration, outside / "backup")
    (running,) = [one for one in found if one.subject == "gateway" and "runs" in one.text]
    assert running.mark is Mark.WARNING
    assert about(iter(found), "gateway.data")[-1].do == "run this as the gateway's user"
    assert about(iter(found), "ledger") == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_a_secret_in_a_closed_folder_is_named(outside: Path) -> None:
    """That another user may not see it is no defect."""
    load(outside / "gateway.toml")  # what Python needs for it may be root's alone
    (outside / "secrets").mkdir(mode=0o700)
    with (outside / "gateway.toml").open("a", encoding="utf-8") as file:
        file.write('[imap.a]\nhost = "imap.test"\nuser = "a@b.test"\npassword_file = "secrets/password"\n')
    with nobody(), pytest.raises(ConfigurationError, match=r"this user may not read .*secrets/password"):
        load(outside / "gateway.toml")


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user who may do nothing, as far as the disk is concerned."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
