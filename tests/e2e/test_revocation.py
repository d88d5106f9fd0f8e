"""Revocation at work: CRLs from a folder and from a server, certificates that run out, and what people are told."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from crl_server import CrlServer, Page
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from daemon import Daemon
from peer import wait_until
from pki import BOTH, Holder, Wish, issue, issuing, leaf, revocations, root
from samples import Samples, data_set, sop_instance
from storescp import Storescp

pytestmark = pytest.mark.peer

DAY = timedelta(days=1)
THEM, US = "dicom@clinic.test", "pacs@gateway.test"


def crl(*revoked: x509.Certificate, issuer: Holder | None = None, days: float = 7) -> bytes:
    """A list that ends in so many days."""
    now = datetime.now(UTC)
    made = revocations(issuer or issuing(), *revoked, since=now - 9 * DAY, until=now + days * DAY)
    return made.public_bytes(Encoding.DER)


def person(*points: str, since: float = 30, until: float = 300) -> Holder:
    """A sender whose certificate names where its CRL is to be had."""
    names = [x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None) for url in points]
    now = datetime.now(UTC)
    return leaf(
        kind="rsa-2048/them",
        address=THEM,
        since=now - since * DAY,
        until=now + until * DAY,
        usages=BOTH,
        extra={"points": x509.CRLDistributionPoints(names)} if names else {},
    )


@dataclass
class World:
    """A gateway that asks for signatures, its PACS, and the distribution point of the authority."""

    folder: Path
    pacs: Storescp
    server: CrlServer
    gateway: Daemon = field(init=False)

    def __post_init__(self) -> None:
        self.gateway = Daemon({"pacs": (self.pacs.title, self.pacs.port)})
        for name, one in (("trust", root()), ("trust", issuing())):
            (self.folder / name).mkdir(exist_ok=True)
            if one is root():
                (self.folder / name / "root.pem").write_bytes(one.certificate.public_bytes(Encoding.PEM))
        (self.folder / "crls").mkdir()
        self.put("root.crl", crl(issuer=root()))

    def put(self, name: str, content: bytes) -> None:
        """Put a CRL into the folder, as an administrator does."""
        (self.folder / "crls" / name).write_bytes(content)

    def start(self, settings: str = 'crl_hosts = ["127.0.0.1"]') -> None:
        """Start the gateway with more lines in [smime]."""
        partner = f'[partner.clinic]\naddress = "{THEM}"\naccept = "signed"\n'
        route = f'[[route]]\nname = "in"\nfrom = "clinic"\nto = "{US}"\nstore = ["pacs"]\n'
        pacs = f'[ae.pacs]\ntitle = "{self.pacs.title}"\nhost = "127.0.0.1"\nport = {self.pacs.port}\n'
        folders = f'trust = "{self.folder / "trust"}"\ncrls = "{self.folder / "crls"}"\n'
        self.gateway.configure({}, f"{partner}{route}{pacs}[smime]\n{folders}{settings}\n")
        self.gateway.start()

    def send(self, signer: Holder, samples: Samples) -> tuple[str, bytes]:
        """Mail an image signed by OpenSSL; return the queue id, and the file."""
        file = samples.fresh().file
        return self.gateway.mail(openssl_signed(self.folder, signer, file), sender=THEM, to=US), file


def openssl_signed(folder: Path, signer: Holder, file: bytes) -> bytes:
    """A mail with one image, signed by ``openssl cms`` with whatever certificate."""
    lines = base64.encodebytes(file).replace(b"\n", b"\r\n")
    head = b"Content-Type: application/dicom\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    (folder / "entity").write_bytes(head + lines)
    certificate, secret = signer.write(folder, "signer")
    (folder / "chain.pem").write_bytes(issuing().certificate.public_bytes(Encoding.PEM))
    command = ["openssl", "cms", "-sign", "-binary", "-md", "sha256", "-in", str(folder / "entity")]
    command += ["-signer", str(certificate), "-inkey", str(secret), "-certfile", str(folder / "chain.pem")]
    done = subprocess.run([*command, "-crlfeol"], capture_output=True, check=True, timeout=30)
    fields = f"From: {THEM}\r\nTo: {US}\r\nSubject: images\r\nMessage-ID: <{id(file)}@clinic.test>\r\n"
    return fields.encode() + done.stdout


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Not started yet; ended in the end."""
    with Storescp() as pacs, CrlServer() as server:
        made = World(tmp_path, pacs, server)
        try:
            yield made
        finally:
            made.gateway.stop()
            made.gateway.remove()


def test_the_crl_of_an_unknown_signer_is_fetched_before_its_mail_is_judged(world: World, samples: Samples) -> None:
    """The address stands in the certificate that came: good and known to be so at its very first mail."""
    world.server.pages["/people.crl"] = Page(crl())
    world.start()
    key, file = world.send(person(world.server.url("/people.crl")), samples)
    item = world.gateway.await_item(key, "delivered")
    assert item["protection"]["revocation"] == "good"
    assert "signer-may-be-revoked" not in {one["code"] for one in item["findings"]}
    assert world.pacs.instances() == {sop_instance(file): data_set(file)}
    _, text = world.gateway.get("/metrics")
    assert 'dicom_mail_crl_fetched{crl="' in text
    assert 'state="ok"} 1.0' in text


def test_mail_of_a_signer_whom_the_fetched_crl_revokes_is_held(world: World, samples: Samples) -> None:
    """Also its first one: nothing comes to the PACS, and a person is told."""
    them = person(world.server.url("/people.crl"))
    world.server.pages["/people.crl"] = Page(crl(them.certificate))
    world.start()
    key, _ = world.send(them, samples)
    assert world.gateway.await_item(key, "held")["code"] == "revoked"
    assert ("held", key) in world.gateway.notices()
    assert world.pacs.instances() == {}


@pytest.mark.parametrize("page", [Page(b"<html>", status=503), Page(crl(issuer=root()))])
def test_a_crl_that_cannot_be_had_is_a_finding_under_soft(world: World, samples: Samples, page: Page) -> None:
    """The mail goes on; the item, ``check`` and the metrics say that nobody knows."""
    world.server.pages["/people.crl"] = page
    world.start()
    key, _ = world.send(person(world.server.url("/people.crl")), samples)
    item = world.gateway.await_item(key, "delivered")
    assert item["protection"]["revocation"] == "unknown"
    assert "signer-may-be-revoked" in {one["code"] for one in item["findings"]}
    checks = world.gateway.ask("check")["checks"]
    (found,) = [one for one in checks if one["subject"] == "smime.crls"]
    assert found["mark"] == "warning"
    assert "no CRL of Issuing" in found["text"]
    assert "see that 127.0.0.1 can be reached" in found["do"]


def test_a_crl_that_cannot_be_had_makes_mail_wait_under_hard_until_it_lies_in_the_folder(
    world: World, samples: Samples
) -> None:
    """Deferred, not held; the folder is read again when it changes, and a person may say that it is time."""
    world.start('crl_hosts = ["127.0.0.1"]\nrevocation = "hard"')
    key, file = world.send(person(world.server.url("/people.crl")), samples)
    wait_until(lambda: world.server.asked, "its CRL was asked for")
    wait_until(lambda: (world.gateway.item(key)["next_attempt"] or "") > soon(), "it is looked at again later")
    assert world.gateway.item(key)["outcome"] == "waiting"
    assert world.pacs.instances() == {}
    assert any(one["mark"] == "problem" and "no CRL" in one["text"] for one in world.gateway.ask("check")["checks"])
    world.put("people.crl", crl())
    wait_until(lambda: 'state="fresh"} 1.0' in world.gateway.get("/metrics")[1], "the folder was read")
    world.gateway.say("queue", "retry", key)
    assert world.gateway.await_item(key, "delivered")["protection"]["revocation"] == "good"
    assert world.pacs.instances() == {sop_instance(file): data_set(file)}


def soon() -> str:
    """In five minutes."""
    return (datetime.now(UTC) + timedelta(minutes=5)).isoformat()


@pytest.mark.parametrize(("days", "revocation"), [(-1, "good"), (-8, "unknown")])
def test_a_crl_past_its_end_counts_for_its_grace(world: World, samples: Samples, days: int, revocation: str) -> None:
    """``crl_grace``: a week, and then nobody knows; ``check`` says which list it is."""
    world.put("people.crl", crl(days=days))
    world.start("crl_hosts = []")
    key, _ = world.send(person("http://crl.clinic.test/people.crl"), samples)
    assert world.gateway.await_item(key, "delivered")["protection"]["revocation"] == revocation


@pytest.mark.parametrize(
    ("since", "until", "code"), [(30, -1, "certificate-expired"), (-1, 30, "certificate-not-yet-valid")]
)
def test_mail_of_a_signer_out_of_its_time_is_held(
    world: World, samples: Samples, since: int, until: int, code: str
) -> None:
    """Signed by OpenSSL all the same: the moment of judgement is its arrival."""
    world.put("people.crl", crl())
    world.start()
    key, _ = world.send(person(since=since, until=until), samples)
    assert world.gateway.await_item(key, "held")["code"] == code
    assert ("held", key) in world.gateway.notices()
    assert world.pacs.instances() == {}


def test_mail_of_an_authority_that_nobody_trusts_is_held_and_asks_nobody(world: World, samples: Samples) -> None:
    """Who mails us does not choose whom we ask: the path comes first."""
    points = x509.CRLDistributionPoints(
        [x509.DistributionPoint([x509.UniformResourceIdentifier(world.server.url("/x"))], None, None, None)]
    )
    now = datetime.now(UTC)
    wish = Wish("rsa-2048/rogue", THEM, now - DAY, now + DAY, BOTH, extra={"points": points})
    world.start()
    key, _ = world.send(issue(wish), samples)
    assert world.gateway.await_item(key, "held")["code"] == "untrusted-issuer"
    assert world.server.asked == []
    assert world.pacs.instances() == {}


def test_a_revoked_signer_is_replaced_by_a_new_certificate(world: World, samples: Samples) -> None:
    """Roll-over after a loss: the old one is refused, the new one of the same address is taken at once."""
    old, new = person(), person(since=1)
    world.put("people.crl", crl(old.certificate))
    world.start()
    first, _ = world.send(old, samples)
    second, file = world.send(new, samples)
    assert world.gateway.await_item(first, "held")["code"] == "revoked"
    world.gateway.await_item(second, "delivered")
    assert world.pacs.instances() == {sop_instance(file): data_set(file)}
