"""S/MIME there and back with OpenSSL: byte for byte."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pki
import pytest
from pki import NOW, Holder

from gateway.core.cms import opened, sealed, verdict
from gateway.core.cms.enveloped import Key
from gateway.core.cms.sealed import Protection
from gateway.core.cms.signed import Identity
from gateway.core.cms.trust import Trust
from gateway.core.cms.verdict import Expected, Verdict
from gateway.model import Span

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(
        shutil.which("openssl") is None and os.environ.get("CI") != "true", reason="openssl is not installed"
    ),
]

ENTITY = b"Content-Type: application/dicom\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b"QUJD" * 19 + b"\r\n"
HEADER = b"From: anna@clinic.test\r\n"
KINDS = ("rsa-2048", "P-256")
OAEP = ("-keyopt", "rsa_padding_mode:oaep")
SHA256_OAEP = (*OAEP, "-keyopt", "rsa_oaep_md:sha256")
PSS = ("-keyopt", "rsa_padding_mode:pss")


def openssl(folder: Path, *arguments: str) -> bytes:
    """What ``openssl cms`` writes."""
    done = subprocess.run(["openssl", "cms", *arguments], cwd=folder, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def lay_out(folder: Path, kind: str) -> tuple[Holder, Holder]:
    """Anna, who signs, us, and the authorities, as files."""
    anna, us = pki.leaf(kind=f"{kind}/anna"), pki.leaf(kind=f"{kind}/us")
    for name, one in (("anna", anna), ("us", us), ("root", pki.root()), ("issuing", pki.issuing())):
        one.write(folder, name)
    (folder / "entity").write_bytes(ENTITY)
    return anna, us


def unseal(folder: Path, message: bytes, us: Holder) -> tuple[bytes, Verdict]:
    """Open with ours."""
    path = folder / "message"
    path.write_bytes(HEADER + message)
    layers = folder / "layers"
    layers.mkdir()
    key = Key(us.key, us.certificate)
    span = Span(path, 0, path.stat().st_size)
    found = opened.open_message(span, [key], (), layers, limit=1 << 20, now=NOW)
    content = found.content.path.read_bytes()[found.content.start : found.content.end]
    return content, verdict.judge(found, Expected("anna@clinic.test"), Trust((pki.root().certificate,)), NOW)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [(), PSS, ("-keyid",), ("-noattr",), ("-md", "sha512"), ("-nodetach",)])
@pytest.mark.parametrize("stream", [(), ("-stream",)])
def test_what_openssl_signs_is_verified(
    tmp_path: Path, kind: str, options: Sequence[str], stream: Sequence[str]
) -> None:
    """Detached and opaque, DER and BER."""
    if options == PSS and kind != "rsa-2048":
        pytest.skip("PSS is for RSA keys")
    _, us = lay_out(tmp_path, kind)
    signer = ("-signer", "anna.pem", "-inkey", "anna.key", "-certfile", "issuing.pem")
    message = openssl(tmp_path, "-sign", "-binary", "-crlfeol", "-in", "entity", *signer, *options, *stream)
    content, judged = unseal(tmp_path, message, us)
    assert content == ENTITY
    assert judged.verified


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("rsa-2048", ()),
        ("rsa-2048", OAEP),
        ("rsa-2048", SHA256_OAEP),
        ("rsa-2048", ("-keyid",)),
        ("P-256", ()),
        ("P-256", ("-keyopt", "ecdh_kdf_md:sha256")),
        ("P-256", ("-keyopt", "ecdh_cofactor_mode:1")),
    ],
)
@pytest.mark.parametrize("cipher", ["-aes-128-cbc", "-aes-256-cbc", "-aes-128-gcm", "-aes-256-gcm"])
@pytest.mark.parametrize("stream", [(), ("-stream",)])
def test_what_openssl_encrypts_is_opened(
    tmp_path: Path, kind: str, options: Sequence[str], cipher: str, stream: Sequence[str]
) -> None:
    """Every cipher by every way to its key."""
    _, us = lay_out(tmp_path, kind)
    to = ("-recip", "us.pem", *options)
    message = openssl(tmp_path, "-encrypt", "-binary", cipher, "-in", "entity", *stream, *to)
    content, judged = unseal(tmp_path, message, us)
    assert content == ENTITY
    assert judged.encrypted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["signed", "pss", "cbc", "gcm"])
def test_openssl_reads_what_is_sealed(tmp_path: Path, kind: str, form: str) -> None:
    """Every form that is sent, with OpenSSL's own checks of path and purpose."""
    anna, us = lay_out(tmp_path, kind)
    out = io.BytesIO()
    signer = Identity(anna.key, anna.certificate, (pki.issuing().certificate,), form == "pss")
    protection = Protection(signer) if form in {"signed", "pss"} else Protection(None, (us.certificate,), form == "cbc")
    sealed.seal(HEADER, Span(tmp_path / "entity", 0, len(ENTITY)), protection, NOW, out)
    (tmp_path / "sealed").write_bytes(out.getvalue())
    if form in {"signed", "pss"}:
        clock = ("-attime", str(int(NOW.timestamp())), "-purpose", "smimesign")
        found = openssl(tmp_path, "-verify", "-in", "sealed", "-CAfile", "root.pem", *clock)
    else:
        found = openssl(tmp_path, "-decrypt", "-binary", "-in", "sealed", "-recip", "us.pem", "-inkey", "us.key")
    assert found == ENTITY
