"""Partners' certificates as an operator meets them: the program itself, and OpenSSL as the partner."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from daemon import ROOT, Daemon
from messages import compose
from partners import DAY, OURS, THEIRS, Files, chain, encrypt, entity_of, mail, openssl, person, sign
from peer import Start, wait_until
from pki import Holder, issuing, revocations
from samples import Samples, data_set, sop_instance
from scripted_relay import ScriptedRelay
from storescp import Storescp

from gateway.core.cms.candidate import fingerprint

pytestmark = pytest.mark.peer

SECTIONS = """
[ae.pacs]
title = "{title}"
host = "127.0.0.1"
port = {pacs}

[relay]
host = "127.0.0.1"
port = {relay}
tls = "none"
sender = "{ours}"

[partner.clinic-a]
address = "{theirs}"
accept = "signed+encrypted"
cipher = "cbc"

[partner.clinic-b]
address = "dicom@clinic-b.test"
accept = "any"
send = "plain"

[[route]]
name = "in"
from = "clinic-a"
store = ["pacs"]

[[route]]
name = "plain in"
from = "clinic-b"
store = ["pacs"]
"""


@pytest.fixture(scope="module")
def relay() -> Iterator[ScriptedRelay]:
    """A relay that takes everything, on a loop of its own."""
    loop, made = asyncio.new_event_loop(), ScriptedRelay()
    ready, over = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with made.serving():
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(30)
    yield made
    loop.call_soon_threadsafe(over.set)
    thread.join(30)
    loop.close()


class World:
    """A gateway, its PACS, its relay, and its files."""

    def __init__(self, folder: Path, start: Start, relay: ScriptedRelay) -> None:
        self.start, self.relay, self.folder = start, relay, folder
        self.pacs = start(Storescp())
        self.files = Files(folder / "files")
        self.gateway = Daemon({})
        self.own = person(OURS, "rsa-2048/own", since=60)
        self.sections = SECTIONS.format(
            title=self.pacs.title, pacs=self.pacs.port, relay=relay.port, ours=OURS, theirs=THEIRS
        )
        self.configure(self.own)

    def configure(self, *owns: Holder, more: str = "") -> None:
        """Write the configuration with these identities."""
        identities = [self.files.identity(one, f"own-{number}") for number, one in enumerate(owns)]
        self.gateway.configure({}, self.sections + more + self.files.smime(*identities))

    def begin(self) -> None:
        """Start the gateway; the test ends it."""
        self.start(self.gateway)

    def image(
        self, samples: Samples, signer: Holder, to: Holder, number: int = 1, cipher: str = "-aes-256-gcm"
    ) -> tuple[str, bytes]:
        """Have the partner mail an image, signed and encrypted; return its id and its file."""
        file = samples.fresh("CT_small.dcm").file
        work = self.folder / "partner"
        work.mkdir(exist_ok=True)
        signed = sign(entity_of(compose([file])), signer, work)
        sealed = mail(encrypt(signed, to.certificate, work, cipher), number)
        return self.gateway.mail(sealed, sender=THEIRS, to="pacs@gateway.test"), file

    def adopt(self, holder: Holder, source: str | Path) -> subprocess.CompletedProcess[str]:
        """Import a certificate whose fingerprint is known."""
        words = ("--yes", "--fingerprint", fingerprint(holder.certificate))
        return self.gateway.say("partner", "import", "clinic-a", str(source), *words)

    def send(self, samples: Samples) -> tuple[str, bytes]:
        """Mail an image to the partner; return the id and the file."""
        file = samples.fresh("CT_small.dcm").file
        path = self.folder / "image.dcm"
        path.write_bytes(file)
        known = {one["id"] for one in self.gateway.items()}
        assert self.gateway.say("send", "--to", "clinic-a", str(path)).returncode == 0
        [new] = {one["id"] for one in self.gateway.items()} - known
        return new, file

    def opened(self, holder: Holder) -> list[bytes]:
        """The data sets in the last mail to the partner: decrypted, and its signature checked, by OpenSSL."""
        certificate, secret = holder.write(self.folder, "reader")
        (self.folder / "mail").write_bytes(self.relay.mails[-1])
        (self.folder / "signed").write_bytes(
            openssl("cms", "-decrypt", "-in", self.folder / "mail", "-recip", certificate, "-inkey", secret)
        )
        root = self.files.folder / "trust" / "root.pem"
        words = ("-in", self.folder / "signed", "-CAfile", root, "-purpose", "any")
        content = message_from_bytes(openssl("cms", "-verify", *words))
        parts = [one for one in content.walk() if one.get_content_type() == "application/dicom"]
        return [data_set(bytes(one.get_payload(decode=True))) for one in parts]


@pytest.fixture
def world(tmp_path: Path, start: Start, relay: ScriptedRelay) -> Iterator[World]:
    """Not started yet."""
    relay.mails.clear()
    made = World(tmp_path, start, relay)
    yield made
    made.gateway.remove()


def test_a_certificate_is_taken_from_a_signed_mail_and_used_at_once(world: World, samples: Samples) -> None:
    """No restart, the operator approves, it is on record who did; and the partner can read what is mailed to it."""
    clinic = person(THEIRS, "rsa-2048/clinic")
    world.begin()
    key, _ = world.image(samples, clinic, world.own)
    world.gateway.await_item(key, "delivered")
    out, file = world.send(samples)
    assert world.gateway.await_item(out, "held")["code"] == "no-certificate"
    assert world.gateway.say("partner", "test", "clinic-a").returncode == 1
    wrong = world.gateway.say("partner", "import", "clinic-a", key, "--yes", "--fingerprint", "00" * 32)
    assert (wrong.returncode, "another one" in wrong.stderr) == (1, True)
    assert world.gateway.ask("partner", "show", "clinic-a")["certificate"] is None
    done = world.adopt(clinic, key)
    assert done.returncode == 0, done.stderr
    lying = world.gateway.data / "partners" / "clinic-a.pem"
    assert (lying.stat().st_mode & 0o777, lying.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    tried = world.gateway.say("partner", "test", "clinic-a", "--json")
    document = json.loads(tried.stdout)
    assert (tried.returncode, document["out"]["ok"], document["in"]["ok"]) == (0, True, True)
    assert world.gateway.say("queue", "release", out).returncode == 0
    world.gateway.await_item(out, "delivered")
    assert data_set(file) in world.opened(clinic)
    [imported] = happened(world.gateway, "partner-imported")
    assert fingerprint(clinic.certificate) in imported["text"]
    assert imported["who"]


def happened(gateway: Daemon, kind: str) -> list[dict[str, str]]:
    """The events of a kind in the ledger."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(gateway.data / "ledger.sqlite")) as connection:
        rows = connection.execute("select text, who from event where kind = ? order by id", (kind,))
        return [{"text": text, "who": who} for text, who in rows]


def test_keys_are_rolled_over_on_both_sides_without_loss(world: World, samples: Samples) -> None:
    """What was sealed for our old certificate opens after it was replaced; what waits goes to the partner's new one."""
    old, new = person(THEIRS, "rsa-2048/clinic", since=20), person(THEIRS, "rsa-2048/clinic-new", since=1)
    assert world.adopt(old, world.files.certificate(old, "old.pem")).returncode == 0  # while no gateway runs
    world.begin()
    key, file = world.image(samples, old, world.own, 1)
    world.gateway.await_item(key, "delivered")
    work = world.folder / "partner"
    second = samples.fresh("CT_small.dcm").file
    on_its_way = mail(encrypt(sign(entity_of(compose([second])), old, work), world.own.certificate, work), 2)
    waiting, _ = world.send(samples)
    newer = person(OURS, "rsa-2048/own-new", since=1)
    world.configure(world.own, newer)
    world.gateway.stop()
    world.begin()
    done = world.adopt(new, world.files.certificate(new, "new.pem"))
    assert done.returncode == 0, done.stderr
    late = world.gateway.mail(on_its_way, sender=THEIRS, to="pacs@gateway.test")
    world.gateway.await_item(late, "delivered")
    third, last = world.image(samples, new, newer, 3)
    world.gateway.await_item(third, "delivered")
    assert set(world.pacs.instances()) == {sop_instance(one) for one in (file, second, last)}
    world.gateway.await_item(waiting, "delivered")
    out, sent = world.send(samples)
    world.gateway.await_item(out, "delivered")
    assert data_set(sent) in world.opened(new)
    world.gateway.proven()


def test_in_the_night_in_which_a_certificate_runs_out_a_person_lets_it_count(world: World, samples: Samples) -> None:
    """The same key, for some days, in both directions, with a finding; and it ends when the person says so."""
    past = person(THEIRS, "rsa-2048/clinic", days=-0.5)
    world.sections = world.sections.replace('cipher = "cbc"', f'certificate = "{chain_file(world, past)}"')
    world.configure(world.own)
    world.begin()
    key, file = world.image(samples, past, world.own)
    assert world.gateway.await_item(key, "held")["code"] == "certificate-expired"
    out, _ = world.send(samples)
    assert world.gateway.await_item(out, "held")["code"] == "certificate-expired"
    wait_until(lambda: ("certificate-expires", "partner.clinic-a") in world.gateway.notices(), "a person is told")
    for wrong in ("2020-01-01", "2099-01-01", "soon"):
        assert world.gateway.say("partner", "trust", "clinic-a", "--until", wrong).returncode == 2
    until = (past.certificate.not_valid_after_utc + 3 * DAY).date().isoformat()
    done = world.gateway.say("partner", "trust", "clinic-a", "--until", until)
    assert done.returncode == 0, done.stderr
    assert world.gateway.ask("partner", "show", "clinic-a")["state"] == "overdue"
    assert world.gateway.say("partner", "test", "clinic-a").returncode == 0
    for one in (key, out):
        assert world.gateway.say("queue", "release", one).returncode == 0
        world.gateway.await_item(one, "delivered")
    assert world.pacs.instances() == {sop_instance(file): data_set(file)}
    item = world.gateway.item(key)
    assert "signer-certificate-overdue" in {one["code"] for one in item["findings"]}
    assert item["protection"]["overdue"] is True
    by_cbc, _ = world.image(samples, past, world.own, 4, "-aes-256-cbc")
    world.gateway.await_item(by_cbc, "delivered")
    other = person(THEIRS, "rsa-2048/thief", days=-0.5)
    stolen, _ = world.image(samples, other, world.own, 2)
    assert world.gateway.await_item(stolen, "held")["code"] == "certificate-expired"
    assert world.gateway.say("partner", "trust", "clinic-a", "--until", "now").returncode == 0
    again, _ = world.image(samples, past, world.own, 3)
    assert world.gateway.await_item(again, "held")["code"] == "certificate-expired"
    by_cbc, _ = world.image(samples, past, world.own, 5, "-aes-256-cbc")
    assert world.gateway.await_item(by_cbc, "held")["code"] == "cbc-without-inner-signature"
    assert "certificate-expired" in world.gateway.events(by_cbc)
    assert len(happened(world.gateway, "partner-trusted")) == 2


def chain_file(world: World, holder: Holder) -> Path:
    """A partner's certificate that the configuration names."""
    return world.files.certificate(holder, "clinic-a.pem")


def test_a_revoked_certificate_cannot_be_let_count(world: World) -> None:
    """Only its end is forgiven."""
    past = person(THEIRS, "rsa-2048/clinic", days=-0.5)
    world.sections = world.sections.replace('cipher = "cbc"', f'certificate = "{chain_file(world, past)}"')
    world.configure(world.own)
    now = past.certificate.not_valid_after_utc
    crl = revocations(issuing(), past.certificate, since=now - DAY, until=now + 7 * DAY)
    (world.files.folder / "crls" / "issuing.crl").write_bytes(crl.public_bytes(Encoding.DER))
    done = world.gateway.say("partner", "trust", "clinic-a", "--until", (now + 3 * DAY).date().isoformat())
    assert (done.returncode, "revoked" in done.stderr) == (1, True)
    assert not (world.gateway.data / "partners").exists()


def test_garbage_in_the_folders_holds_one_partner_and_stops_nobody(world: World, samples: Samples) -> None:
    """The gateway starts, others' mail is delivered, a person is told; a good file puts it right without a restart."""
    clinic = person(THEIRS, "rsa-2048/clinic")
    folder = world.gateway.data / "partners"
    folder.mkdir(parents=True, mode=0o700)
    world.gateway.data.chmod(0o700)
    (folder / "clinic-a.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (folder / "clinic-a.trust").write_text("[1")
    good = (world.files.folder / "trust" / "root.pem").read_bytes()
    for name in ("trust", "crls"):
        (world.files.folder / name / "junk.pem").write_bytes(os.urandom(3000))
        (world.files.folder / name / "half.der").write_bytes(good[: len(good) // 2])
        (world.files.folder / name / "folder.pem").mkdir()
        os.mkfifo(world.files.folder / name / "pipe.crt")
    world.begin()
    images = samples.fresh("CT_small.dcm")
    other = world.gateway.mail(compose([images.file], sender="dicom@clinic-b.test"), sender="dicom@clinic-b.test")
    world.gateway.await_item(other, "delivered")
    key, _ = world.image(samples, clinic, world.own)  # trusted by its authority all the same
    world.gateway.await_item(key, "delivered")
    out, _ = world.send(samples)
    assert world.gateway.await_item(out, "held")["code"] == "no-certificate"
    expected = {("certificate-unusable", f"{one}") for one in ("partner.clinic-a.certificate", "smime.trust")}
    wait_until(lambda: expected <= world.gateway.notices(), "a person is told")
    lines = {(one["mark"], one["subject"]) for one in world.gateway.ask("check", "--offline")["checks"]}
    assert {("problem", "partner.clinic-a.certificate"), ("problem", "smime.trust"), ("problem", "smime.crls")} <= lines
    assert world.gateway.ask("partner", "list")["partners"][0]["state"] == "unusable"
    assert world.adopt(clinic, world.files.certificate(clinic, "good.pem")).returncode == 0
    closed = ("certificate-unusable", "partner.clinic-a.certificate")
    wait_until(lambda: closed not in world.gateway.notices(), "the notice is closed")
    assert world.gateway.say("queue", "release", out).returncode == 0
    world.gateway.await_item(out, "delivered")


def test_a_partner_that_nothing_could_be_sealed_to_is_found_before_the_next_image(world: World) -> None:
    """A trial to each partner of a mail route; the notice closes when there is a certificate."""
    clinic = person(THEIRS, "rsa-2048/clinic")
    door = '[storescp]\ntitle = "GW"\nlisten = "127.0.0.1:0"\n'
    route = '[[route]]\nname = "out"\ncalled = "OUT"\nmail = ["clinic-a"]\n'
    world.configure(world.own, more=door + route)
    world.begin()
    notice = ("partner-unsealable", "partner.clinic-a")
    wait_until(lambda: notice in world.gateway.notices(), "a person is told")
    assert world.adopt(clinic, world.files.certificate(clinic, "clinic.pem")).returncode == 0
    wait_until(lambda: notice not in world.gateway.notices(), "the notice is closed")
    wait_until(lambda: 'certificate="partner.clinic-a"' in world.gateway.get("/metrics")[1], "its end is a metric")
    assert 'certificate="smime.identities"' in world.gateway.get("/metrics")[1]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_private_key_that_others_may_read_is_not_used(world: World, mode: int) -> None:
    """`check` says so and `run` does not start; no key is in any word; credentials of systemd are exempt."""
    secret = world.files.folder / "own-0.key"
    secret.chmod(mode)
    checked = world.gateway.say("check", "--offline")
    refused = world.gateway.say("run")
    for done, code in ((checked, 1), (refused, 2)):
        assert done.returncode == code
        assert "others may read the private key" in done.stdout + done.stderr
        for line in secret.read_text().splitlines():
            assert line not in done.stdout + done.stderr
    environment = {**os.environ, "CREDENTIALS_DIRECTORY": str(secret.parent)}
    command = [sys.executable, "-m", "gateway", "check", "--offline", "--config", str(world.gateway.config)]
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "private key" not in again.stdout
    assert again.returncode == 0, again.stdout


def test_no_private_key_gets_into_ledger_or_log(world: World, samples: Samples) -> None:
    """Not a line of it, after all that is done with it."""
    clinic = person(THEIRS, "rsa-2048/clinic")
    world.begin()
    key, _ = world.image(samples, clinic, world.own)
    world.gateway.await_item(key, "delivered")
    assert world.adopt(clinic, key).returncode == 0
    der = world.own.key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    prime = world.own.key.private_numbers().p.to_bytes(128)
    assert prime in der
    lines = (world.files.folder / "own-0.key").read_bytes().splitlines()[1:-1]
    for path in (*world.gateway.data.glob("ledger.sqlite*"), *(world.gateway.data / "partners").iterdir()):
        content = path.read_bytes()
        assert prime not in content
        assert not [line for line in lines if line in content]
    assert not [line for line in lines if line.decode() in world.gateway.log()]


def test_what_cannot_be_imported_is_refused_in_plain_words(world: World) -> None:
    """Each with exit code 1, and nothing is written; without an approval neither."""
    bad = {
        "run out": person(THEIRS, "rsa-2048/clinic", days=-1),
        "1024 bits": person(THEIRS, "rsa-1024/clinic"),
        "must not be used to encrypt": person(THEIRS, "rsa-2048/clinic", usages=("digital_signature",)),
        "for thief@clinic-a.test": person("thief@clinic-a.test", "rsa-2048/clinic"),
    }
    for words, holder in bad.items():
        done = world.adopt(holder, world.files.certificate(holder, "bad.pem"))
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    junk = world.files.write("junk.pem", b"nothing")
    assert world.gateway.say("partner", "import", "clinic-a", str(junk)).returncode == 1
    good = world.files.certificate(person(THEIRS, "rsa-2048/clinic"), "good.pem")
    command = [sys.executable, "-m", "gateway", "partner", "import", "clinic-a", str(good)]
    command += ["--config", str(world.gateway.config)]
    for answer, code in (("n\n", 1), ("", 130), ("y\n", 0)):
        done = subprocess.run(command, cwd=ROOT, input=answer, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        assert (world.gateway.data / "partners" / "clinic-a.pem").exists() == (code == 0)
    assert world.gateway.say("partner", "import", "nobody", str(good)).returncode == 2
    assert world.gateway.say("partner", "import", "clinic-a", "in-nothing", "--yes").returncode == 2
    assert tomllib.loads(world.gateway.config.read_text())["partner"]["clinic-a"]["address"] == THEIRS
    assert chain(person(THEIRS, "rsa-2048/clinic"))
