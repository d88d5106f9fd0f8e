"""A gateway with S/MIME and one partner, who speaks by `openssl cms`; its files, and what the partner mails."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pki import BOTH, Holder, issuing, leaf, root

DAY = timedelta(days=1)
OURS, THEIRS = "dicom@gateway.test", "dicom@clinic-a.test"


def person(address: str, kind: str, days: float = 300, since: int = 30, **more: object) -> Holder:
    """A certificate for an address, by the issuing authority, that runs out in so many days from now."""
    now = datetime.now(UTC)
    wishes = {"usages": BOTH, "name": address, **more}
    return leaf(kind=kind, address=address, since=now - since * DAY, until=now + days * DAY, **wishes)


def chain(holder: Holder, *more: Holder) -> bytes:
    """A certificate and its issuers' as PEM."""
    return b"".join(one.certificate.public_bytes(Encoding.PEM) for one in (holder, issuing(), *more))


class Files:
    """The S/MIME files of a gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("trust", "crls"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "trust" / "root.pem").write_bytes(root().certificate.public_bytes(Encoding.PEM))

    def write(self, name: str, block: bytes) -> Path:
        """Write a file."""
        path = self.folder / name
        path.write_bytes(block)
        return path

    def certificate(self, holder: Holder, name: str) -> Path:
        """Write a certificate with its issuer's."""
        return self.write(name, chain(holder))

    def identity(self, holder: Holder, name: str) -> str:
        """Write a certificate of the gateway and its key; return the TOML."""
        certificate, secret = holder.write(self.folder, name)
        certificate.write_bytes(chain(holder))
        return f'{{ certificate = "{certificate}", key_file = "{secret}" }}'

    def smime(self, *identities: str, more: str = "") -> str:
        """The TOML of the section."""
        folders = f'trust = "{self.folder / "trust"}"\ncrls = "{self.folder / "crls"}"'
        return f"[smime]\nidentities = [{', '.join(identities)}]\n{folders}\n{more}\n"


def openssl(*words: str | Path) -> bytes:
    """Run OpenSSL."""
    return subprocess.run(["openssl", *map(str, words)], capture_output=True, check=True, timeout=60).stdout


def sign(entity: bytes, signer: Holder, folder: Path) -> bytes:
    """Sign an entity as OpenSSL does: multipart/signed, with the issuer's certificate in it."""
    certificate, secret = signer.write(folder, "signer")
    (folder / "issuer.pem").write_bytes(issuing().certificate.public_bytes(Encoding.PEM))
    (folder / "entity").write_bytes(entity)
    words = ("-in", folder / "entity", "-signer", certificate, "-inkey", secret, "-certfile", folder / "issuer.pem")
    return openssl("cms", "-sign", "-md", "sha256", "-binary", *words).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def encrypt(entity: bytes, recipient: x509.Certificate, folder: Path, cipher: str = "-aes-256-gcm") -> bytes:
    """Encrypt an entity as OpenSSL does."""
    (folder / "entity").write_bytes(entity)
    (folder / "recipient.pem").write_bytes(recipient.public_bytes(Encoding.PEM))
    words = (cipher, "-binary", "-in", folder / "entity", folder / "recipient.pem")
    return openssl("cms", "-encrypt", *words).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def mail(entity: bytes, number: int = 1, sender: str = THEIRS) -> bytes:
    """Put the header of a mail before a protected entity."""
    fields = f"From: {sender}\r\nTo: {OURS}\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\n"
    return fields.encode() + f"Message-ID: <{number}@clinic-a.test>\r\nSubject: images\r\n".encode() + entity


def entity_of(message: bytes) -> bytes:
    """The fields about the content, and the content, of a message: what is protected of it."""
    head, _, body = message.partition(b"\r\n\r\n")
    kept, keep = [], False
    for line in head.split(b"\r\n"):
        if not line.startswith((b" ", b"\t")):
            keep = line.lower().startswith(b"content-")
        if keep:
            kept.append(line)
    return b"\r\n".join(kept) + b"\r\n\r\n" + body
