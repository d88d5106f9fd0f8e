"""S/MIME between two gateways, through Postfix: what was sealed here lies in the PACS there, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from crl_server import CrlServer, Page
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from daemon import Daemon
from peer import wait_until
from pki import BOTH, Holder, issuing, leaf, revocations, root
from postfix import Postfix
from samples import Samples, data_set, sop_instance
from storescp import Storescp

from gateway.core.cms.opened import ENVELOPES

pytestmark = pytest.mark.peer

DAY = timedelta(days=1)
OURS, THEIRS = "dicom@here.test", "pacs@there.test"


def person(address: str, kind: str, days: int = 300, since: int = 30, crl: str = "") -> Holder:
    """A certificate for an address that runs out in so many days, and may name where its CRL is to be had."""
    now, extra = datetime.now(UTC), {}
    if crl:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl)], None, None, None)
        extra["points"] = x509.CRLDistributionPoints([point])
    until = now + days * DAY
    return leaf(
        kind=kind, address=address, since=now - since * DAY, until=until, usages=BOTH, name=address, extra=extra
    )


def revoking(*certificates: x509.Certificate) -> bytes:
    """The current CRL of the authority."""
    now = datetime.now(UTC)
    return revocations(issuing(), *certificates, since=now - DAY, until=now + 7 * DAY).public_bytes(Encoding.PEM)


@dataclass
class Side:
    """The files of one gateway."""

    folder: Path

    def identity(self, holder: Holder, name: str = "own") -> str:
        """Write a certificate of its own with its key; return the TOML."""
        certificate, secret = holder.write(self.folder, name)
        with certificate.open("ab") as file:
            file.write(issuing().certificate.public_bytes(Encoding.PEM))
        return f'{{ certificate = "{certificate}", key_file = "{secret}" }}'

    def smime(self, *identities: str, crl: bytes | None = None) -> str:
        """Write anchors and CRLs; return the TOML of the section."""
        for name in ("trust", "crls"):
            (self.folder / name).mkdir(exist_ok=True)
        (self.folder / "trust" / "root.pem").write_bytes(root().certificate.public_bytes(Encoding.PEM))
        if crl is not None:
            (self.folder / "crls" / "issuing.crl").write_bytes(crl)
        folders = f'trust = "{self.folder / "trust"}"\ncrls = "{self.folder / "crls"}"'
        hosts = 'crl_hosts = ["127.0.0.1"]'
        return f"[smime]\nidentities = [{', '.join(identities)}]\n{folders}\n{hosts}\n"


class World:
    """A gateway that sends, Postfix, a gateway that receives, and its PACS."""

    def __init__(self, folder: Path, pacs: Storescp) -> None:
        self.here, self.there = Side(folder / "here"), Side(folder / "there")
        for side in (self.here, self.there):
            side.folder.mkdir()
        self.pacs = pacs
        self.receiver = Daemon({"pacs": (pacs.title, pacs.port)})
        self.postfix = Postfix({"there.test": self.receiver.port})
        self.sender = Daemon({})

    def configure(
        self, us: list[Holder], them: list[Holder], *, crl: bytes | None = None, here: bytes | None = None
    ) -> None:
        """Write both configurations, with the CRL of each side. The last certificate of theirs is the one we have."""
        own = [self.here.identity(one, f"own-{number}") for number, one in enumerate(us)]
        known, _ = them[-1].write(self.here.folder, "partner")
        relay = f'[relay]\nhost = "127.0.0.1"\nport = {self.postfix.port}\ntls = "none"\nsender = "{OURS}"\n'
        partner = f'[partner.there]\naddress = "{THEIRS}"\ncertificate = "{known}"\n'
        # A name of its own: a gateway refuses what bears its own name as mail that goes in circles.
        name = '[gateway]\nname = "here.test"\npostmaster = "it@here.test"\ndata = "data"\n'
        self.sender.configure({}, name + relay + partner + self.here.smime(*own, crl=here))
        keys = [self.there.identity(one, f"own-{number}") for number, one in enumerate(them)]
        partner = f'[partner.here]\naddress = "{OURS}"\naccept = "signed+encrypted"\n'
        route = f'[[route]]\nname = "in"\nfrom = "here"\nto = "{THEIRS}"\nstore = ["pacs"]\n'
        pacs = f'[ae.pacs]\ntitle = "{self.pacs.title}"\nhost = "127.0.0.1"\nport = {self.pacs.port}\n'
        self.receiver.configure({}, partner + route + pacs + self.there.smime(*keys, crl=crl))

    def mail(self, samples: Samples, folder: Path) -> bytes:
        """Mail one image; return its file."""
        file = samples.fresh().file
        path = folder / "image.dcm"
        path.write_bytes(file)
        done = self.sender.say("send", "--to", "there", str(path))
        assert done.returncode == 0, done.stderr
        return file

    def arrived(self) -> str:
        """Wait for the next mail at the receiver; return its id."""
        wait_until(self.receiver.items, "a mail came")
        return str(self.receiver.items()[0]["id"])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Not started yet; ended in the end."""
    with Storescp() as pacs:
        made = World(tmp_path, pacs)
        try:
            yield made
        finally:
            for one in (made.sender, made.postfix, made.receiver):
                one.stop()
                one.remove()


def start(world: World) -> None:
    """Start all three."""
    for one in (world.receiver, world.postfix, world.sender):
        one.start()


def test_a_study_crosses_sealed_and_arrives_with_identical_bytes(
    world: World, samples: Samples, tmp_path: Path
) -> None:
    """Signed, encrypted, verified; on the way nothing of it can be read (R21)."""
    us, them = person(OURS, "rsa-2048/here"), person(THEIRS, "rsa-2048/there")
    crl = revocations(issuing(), since=datetime.now(UTC) - DAY, until=datetime.now(UTC) + 7 * DAY)
    world.configure([us], [them], crl=crl.public_bytes(Encoding.DER))
    start(world)
    file = world.mail(samples, tmp_path)
    item = world.receiver.await_item(world.arrived(), "delivered")
    assert world.pacs.instances() == {sop_instance(file): data_set(file)}
    found = item["protection"]
    assert (found["encrypted"], found["signed"], found["verified"], found["signer"]) == (True, True, True, OURS)
    assert found["code"] is None
    [mail] = (world.receiver.data / "spool").rglob("*.eml")
    content = mail.read_bytes()
    assert ENVELOPES[0].encode() in content
    assert b"application/dicom" not in content
    assert b"multipart/" not in content
    assert not list((world.receiver.data / "scratch").rglob("layer-*"))
    shown = world.receiver.ask("read", str(mail))
    assert shown["protection"]["verified"] is True
    assert len(shown["instances"]) == 1


@pytest.mark.parametrize("fetched", [False, True])
def test_mail_of_a_revoked_certificate_is_held_and_nothing_is_stored(
    world: World, samples: Samples, tmp_path: Path, *, fetched: bool
) -> None:
    """The CRL lies at the receiver, or is fetched by it: the code says why, and a person is told."""
    with CrlServer() as server:
        us = person(OURS, "rsa-2048/here", crl=server.url("/people.crl") if fetched else "")
        crl = revoking(us.certificate)
        server.pages["/people.crl"] = Page(crl)
        world.configure([us], [person(THEIRS, "rsa-2048/there")], crl=None if fetched else crl, here=revoking())
        if fetched:
            world.sender.config.write_text(world.sender.config.read_text("utf-8").replace('127.0.0.1"]', 'x.test"]'))
        start(world)
        world.mail(samples, tmp_path)
        item = world.receiver.await_item(world.arrived(), "held")
    assert item["code"] == "revoked"
    assert ("held", item["id"]) in world.receiver.notices()
    assert world.pacs.instances() == {}
    assert not list((world.receiver.data / "spool").rglob("*.dcm"))


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_nothing_is_mailed_with_or_to_a_certificate_that_is_known_to_be_revoked(
    world: World, samples: Samples, tmp_path: Path, whose: str
) -> None:
    """Held at the sender, and a person is told: not signed with it, not encrypted to it, not in clear (R21)."""
    us, them = person(OURS, "rsa-2048/here"), person(THEIRS, "rsa-2048/there")
    world.configure([us], [them], here=revoking((us if whose == "ours" else them).certificate))
    start(world)
    world.mail(samples, tmp_path)
    [item] = world.sender.items()
    assert world.sender.await_item(item["id"], "held")["code"] == "revoked"
    assert ("held", item["id"]) in world.sender.notices()
    assert world.receiver.items() == []
    found = [one for one in world.sender.ask("check")["checks"] if "revoked" in one["text"]]
    assert {one["mark"] for one in found if one["subject"] == "smime.identities"} == (
        {"problem"} if whose == "ours" else set()
    )


def test_nothing_is_mailed_with_a_certificate_that_has_run_out(world: World, samples: Samples, tmp_path: Path) -> None:
    """Ours cannot sign: held, and never in the clear instead (R21)."""
    us, them = person(OURS, "rsa-2048/here", days=-1), person(THEIRS, "rsa-2048/there")
    world.configure([us], [them])
    start(world)
    world.mail(samples, tmp_path)
    [item] = world.sender.items()
    assert world.sender.await_item(item["id"], "held")["code"] == "no-identity"
    assert ("held", item["id"]) in world.sender.notices()
    assert world.receiver.items() == []


def test_nothing_is_mailed_to_a_certificate_that_has_run_out(world: World, samples: Samples, tmp_path: Path) -> None:
    """The partner's: held with its reason, not sent signed alone (R21)."""
    us, them = person(OURS, "rsa-2048/here"), person(THEIRS, "rsa-2048/there", days=-1)
    world.configure([us], [them])
    start(world)
    world.mail(samples, tmp_path)
    [item] = world.sender.items()
    assert world.sender.await_item(item["id"], "held")["code"] == "certificate-expired"
    assert ("held", item["id"]) in world.sender.notices()
    assert world.receiver.items() == []


def test_certificates_of_both_sides_are_replaced_without_loss(world: World, samples: Samples, tmp_path: Path) -> None:
    """The sender signs with its newest; mail to the old certificate of the receiver is opened all the same."""
    old, new = person(OURS, "rsa-2048/here"), person(OURS, "rsa-2048/here-new", since=1)
    before, after = person(THEIRS, "rsa-2048/there"), person(THEIRS, "P-256/there-new", since=1)
    world.configure([old, new], [after, before])  # the sender still has the receiver's old one
    start(world)
    file = world.mail(samples, tmp_path)
    item = world.receiver.await_item(world.arrived(), "delivered")
    assert item["protection"]["fingerprint"] == new.certificate.fingerprint(hashes.SHA256()).hex()
    assert world.pacs.instances() == {sop_instance(file): data_set(file)}
