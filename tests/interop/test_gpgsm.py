"""S/MIME there and back with GnuPG's gpgsm: byte for byte, in the forms that it has (RSA signatures, RSA and CBC)."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pki
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, pkcs12
from pki import NOW, Holder

from gateway.core.cms import algorithms, ber, enveloped, signed
from gateway.core.cms.ber import Reader
from gateway.core.cms.enveloped import Envelope, Key
from gateway.core.cms.failure import Failure, ProtectionError
from gateway.core.cms.signed import Identity

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(
        shutil.which("gpgsm") is None and os.environ.get("CI") != "true", reason="gpgsm is not installed"
    ),
]

CONTENT = b"Content-Type: text/plain\r\n\r\nhello\r\n" + bytes(range(256)) * 40
ANNA = "anna@clinic.test"
US = "us@hospital.test"


class Gpgsm:
    """GnuPG with a home of its own, in which Anna has her key, the root is trusted and we are known."""

    def __init__(self, home: Path, anna: Holder, us: Holder) -> None:
        self.home = home
        root = pki.root().certificate.fingerprint(hashes.SHA1()).hex().upper()
        (home / "trustlist.txt").write_text(f"{root} S relax\n")
        (home / "gpgsm.conf").write_text("disable-crl-checks\n")
        (home / "gpg-agent.conf").write_text("allow-loopback-pinentry\n")
        for one in (pki.root(), pki.issuing(), us):
            self.run("--import", content=one.certificate.public_bytes(Encoding.DER))
        # The only form of PKCS #12 that Debian's release imports.
        form = PrivateFormat.PKCS12.encryption_builder().hmac_hash(hashes.SHA1())
        sealing = form.key_cert_algorithm(pkcs12.PBES.PBESv1SHA1And3KeyTripleDESCBC).build(b"secret")
        self.run(
            "--import",
            content=pkcs12.serialize_key_and_certificates(b"anna", anna.key, anna.certificate, None, sealing),
        )

    def run(self, *arguments: str, content: bytes, beside: bytes | None = None) -> bytes:
        """What gpgsm writes when it reads a file, and a second one where the first is a signature of it."""
        files = [self.home / "content", self.home / "beside"][: 1 + (beside is not None)]
        for file, data in zip(files, (content, beside or b""), strict=False):
            file.write_bytes(data)
        now = str(int(NOW.timestamp()))
        done = subprocess.run(
            [
                *("gpgsm", "--homedir", str(self.home), "--batch", "--no-tty", "--pinentry-mode", "loopback"),
                *(
                    "--passphrase-fd",
                    "0",
                    "--faked-system-time",
                    now,
                    *arguments,
                    *map(str, files),
                ),
            ],
            input=b"secret\n",
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout


@pytest.fixture(scope="module")
def anna() -> Holder:
    """Who has gpgsm."""
    return pki.leaf(kind="rsa-2048/anna")


@pytest.fixture(scope="module")
def us() -> Holder:
    """Who has the gateway."""
    return pki.leaf(kind="rsa-2048/us", name="Us", address=US)


@pytest.fixture(scope="module")
def gpgsm(anna: Holder, us: Holder) -> Iterator[Gpgsm]:
    """Her GnuPG; its agent ends with it."""
    # The socket of the agent lies in the home: its path must be short.
    home = Path(tempfile.mkdtemp(prefix="gpgsm-"))
    try:
        yield Gpgsm(home, anna, us)
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


def enter(info: bytes, kind: str) -> Reader:
    """A reader that stands in the content of a ContentInfo."""
    reader = Reader(io.BytesIO(info).read)
    reader.enter(ber.SEQUENCE)
    assert ber.oid(reader.node(ber.OBJECT_IDENTIFIER)) == kind
    reader.enter(ber.context(0))
    return reader


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("digest", ["SHA256", "SHA512"])
def test_what_gpgsm_signs_is_verified(gpgsm: Gpgsm, anna: Holder, opaque: bool, digest: str) -> None:
    """Detached and opaque; it writes BER."""
    how = "--sign" if opaque else "--detach-sign"
    made = gpgsm.run("--digest-algo", digest, "--local-user", ANNA, how, content=CONTENT)
    out = io.BytesIO()
    found = signed.read(enter(made, algorithms.SIGNED_DATA), () if opaque else (CONTENT,), out.write)
    [signer] = found.signers
    signed.verify(found, signer, anna.certificate, NOW)
    assert out.getvalue() == (CONTENT if opaque else b"")


def test_a_content_that_gpgsm_did_not_sign_is_seen(gpgsm: Gpgsm, anna: Holder) -> None:
    """The other side of it."""
    made = gpgsm.run("--local-user", ANNA, "--detach-sign", content=CONTENT)
    found = signed.read(enter(made, algorithms.SIGNED_DATA), (CONTENT + b"!",), lambda _: None)
    with pytest.raises(ProtectionError) as caught:
        signed.verify(found, found.signers[0], anna.certificate, NOW)
    assert caught.value.code is Failure.CONTENT_DIGEST_MISMATCH


@pytest.mark.parametrize("pss", [False, True])
def test_gpgsm_verifies_what_is_signed(gpgsm: Gpgsm, us: Holder, pss: bool) -> None:
    """RSA PKCS #1 v1.5 and RSASSA-PSS, with gpgsm's own check of the path."""
    identity = Identity(us.key, us.certificate, (pki.issuing().certificate,), pss)
    made = signed.write_detached(hashlib.sha256(CONTENT).digest(), identity, NOW)
    gpgsm.run("--verify", content=made, beside=CONTENT)
    with pytest.raises(AssertionError):
        gpgsm.run("--verify", content=made, beside=CONTENT + b"!")


@pytest.mark.parametrize("cipher", ["AES128", "AES192", "AES256"])
def test_what_gpgsm_encrypts_is_opened(gpgsm: Gpgsm, us: Holder, cipher: str) -> None:
    """CBC with RSA PKCS #1 v1.5: all it has. Without a signature inside nobody believes it."""
    made = gpgsm.run("--cipher-algo", cipher, "--recipient", US, "--encrypt", content=CONTENT)
    out = io.BytesIO()
    keys = [Key(us.key, us.certificate)]
    found = enveloped.read(lambda: enter(made, algorithms.ENVELOPED_DATA), keys, out.write, authenticated=False)
    assert out.getvalue() == CONTENT
    assert not found.authenticated


def test_gpgsm_opens_what_is_sealed_for_old_partners(gpgsm: Gpgsm, anna: Holder) -> None:
    """`cipher = "cbc"`."""
    envelope = Envelope([anna.certificate], len(CONTENT), cbc=True, oaep=False)
    made = b"".join(bytes(block) for block in envelope.seal([CONTENT]))
    assert gpgsm.run("--decrypt", content=made) == CONTENT
