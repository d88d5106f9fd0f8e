"""S/MIME there and back with Bouncy Castle: byte for byte, in every form that both have."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pki
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from peer import absent, program
from pki import NOW, Holder

from gateway.core.cms import algorithms, ber, enveloped, opened, signed
from gateway.core.cms.ber import Reader
from gateway.core.cms.enveloped import Envelope, Key
from gateway.core.cms.failure import ProtectionError
from gateway.core.cms.signed import Identity
from gateway.model import Span

pytestmark = pytest.mark.peer

SOURCE = Path(__file__).parents[1] / "peers" / "BouncyCastle.java"
JARS = tuple(Path("/usr/share/java") / f"{name}.jar" for name in ("bcprov", "bcutil", "bcpkix"))
CONTENT = b"Content-Type: text/plain\r\n\r\nhello\r\n" + bytes(range(256)) * 400
RSA, EC = "rsa-2048/us", "P-256/us"

Run = Callable[..., bytes]


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The class path of the program, compiled once."""
    javac = program("javac")
    if not all(jar.exists() for jar in JARS):
        absent("Bouncy Castle is not installed: tests/peers/install")
    folder = tmp_path_factory.mktemp("classes")
    path = os.pathsep.join(map(str, (folder, *JARS)))
    subprocess.run([javac, "-d", str(folder), "-cp", path, str(SOURCE)], check=True, timeout=120)
    return path


@pytest.fixture
def castle(classes: str, tmp_path: Path) -> Run:
    """A run of the program for a holder of a key; a refusal of Java is an error of ours."""

    def run(verb: Sequence[str], holder: Holder, content: bytes, beside: bytes = b"") -> bytes:
        secret = holder.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        certificate = holder.certificate.public_bytes(Encoding.DER)
        files = {"content": content, "beside": beside, "key": secret, "certificate": certificate}
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        (tmp_path / "result").unlink(missing_ok=True)
        command = [program("java"), "-XX:TieredStopAtLevel=1", "-cp", classes, "BouncyCastle", *verb]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return (tmp_path / "result").read_bytes()

    return run


def enter(info: bytes, kind: str) -> Reader:
    """A reader that stands in the content of a ContentInfo."""
    reader = Reader(io.BytesIO(info).read)
    reader.enter(ber.SEQUENCE)
    assert ber.oid(reader.node(ber.OBJECT_IDENTIFIER)) == kind
    reader.enter(ber.context(0))
    return reader


@pytest.mark.parametrize("opaque", ["detached", "opaque"])
@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        (RSA, "SHA256withRSA"),
        (RSA, "SHA384withRSA"),
        (RSA, "SHA512withRSA"),
        (RSA, "SHA256withRSAandMGF1"),
        (EC, "SHA256withECDSA"),
        (EC, "SHA384withECDSA"),
    ],
)
def test_what_bouncy_castle_signs_is_verified(castle: Run, kind: str, algorithm: str, opaque: str) -> None:
    """And one byte more is seen."""
    holder = pki.leaf(kind=kind)
    made = castle(["sign", algorithm, opaque], holder, CONTENT)
    out = io.BytesIO()
    covered = () if opaque == "opaque" else (CONTENT,)
    found = signed.read(enter(made, algorithms.SIGNED_DATA), covered, out.write)
    [signer] = found.signers
    signed.verify(found, signer, holder.certificate, NOW)
    assert out.getvalue() == (CONTENT if opaque == "opaque" else b"")
    if covered:
        changed = signed.read(enter(made, algorithms.SIGNED_DATA), (CONTENT + b"!",), out.write)
        with pytest.raises(ProtectionError):
            signed.verify(changed, changed.signers[0], holder.certificate, NOW)


@pytest.mark.parametrize(("kind", "pss"), [(RSA, False), (RSA, True), (EC, False)])
def test_bouncy_castle_verifies_what_is_signed(castle: Run, kind: str, pss: bool) -> None:
    """RSA PKCS #1 v1.5, RSASSA-PSS and ECDSA; it says no to another content."""
    holder = pki.leaf(kind=kind)
    identity = Identity(holder.key, holder.certificate, (), pss)
    made = signed.write_detached(hashlib.sha256(CONTENT).digest(), identity, NOW)
    assert castle(["verify", "detached"], holder, made, CONTENT) == CONTENT
    with pytest.raises(AssertionError, match="message-digest attribute value does not match"):
        castle(["verify", "detached"], holder, made, CONTENT + b"!")


@pytest.mark.parametrize("cipher", ["aes-128-cbc", "aes-256-cbc", "aes-128-gcm", "aes-256-gcm"])
@pytest.mark.parametrize(
    ("kind", "way"),
    [(RSA, "rsa"), (RSA, "oaep-sha1"), (RSA, "oaep-sha256"), (EC, "ecdh-sha256"), (EC, "ecdh-sha384")],
)
def test_what_bouncy_castle_encrypts_is_opened(castle: Run, kind: str, way: str, cipher: str) -> None:
    """Every cipher by every way to its key."""
    holder = pki.leaf(kind=kind)
    made = castle(["encrypt", cipher, way], holder, CONTENT)
    authenticated = cipher.endswith("gcm")
    form = algorithms.AUTH_ENVELOPED_DATA if authenticated else algorithms.ENVELOPED_DATA
    out = io.BytesIO()
    keys = [Key(holder.key, holder.certificate)]
    found = enveloped.read(lambda: enter(made, form), keys, out.write, authenticated=authenticated)
    assert out.getvalue() == CONTENT
    assert found.authenticated is authenticated


@pytest.mark.parametrize(
    ("kind", "cbc", "oaep"),
    [
        (RSA, True, True),
        (RSA, True, False),
        (RSA, False, True),
        (RSA, False, False),
        (EC, True, True),
        (EC, False, True),
    ],
)
def test_bouncy_castle_opens_what_is_sealed(castle: Run, kind: str, cbc: bool, oaep: bool) -> None:
    """With its own parts put together where its release has no reader: GCM for the key of a curve."""
    holder = pki.leaf(kind=kind)
    envelope = Envelope([holder.certificate], len(CONTENT), cbc=cbc, oaep=oaep)
    made = b"".join(bytes(block) for block in envelope.seal([CONTENT]))
    assert castle(["decrypt" if cbc else "decrypt-authenticated"], holder, made) == CONTENT
    with pytest.raises(AssertionError):
        castle(["decrypt" if cbc else "decrypt-authenticated"], pki.leaf(kind=kind.replace("us", "anna")), made)


def test_what_bouncy_castle_compresses_is_read(castle: Run, tmp_path: Path) -> None:
    """RFC 3274, as a mail brings it."""
    made = castle(["compress"], pki.leaf(kind=RSA), CONTENT)
    mail = tmp_path / "mail"
    head = b"From: anna@clinic.test\r\nContent-Type: application/pkcs7-mime; smime-type=compressed-data\r\n"
    mail.write_bytes(head + b"Content-Transfer-Encoding: binary\r\n\r\n" + made)
    layers = tmp_path / "layers"
    layers.mkdir()
    found = opened.open_message(Span(mail, 0, mail.stat().st_size), [], (), layers, limit=1 << 20, now=NOW)
    assert found.content.path.read_bytes()[found.content.start : found.content.end] == CONTENT
