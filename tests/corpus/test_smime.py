"""Real protected mails: what each must come to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pki import NOW

from gateway.core.cms import opened, verdict
from gateway.core.cms.enveloped import Key
from gateway.core.cms.failure import ProtectionError
from gateway.core.cms.trust import Trust
from gateway.core.cms.verdict import Expected
from gateway.model import Span
from tests.samples import corpus, reading

CORPUS = corpus()
pytestmark = pytest.mark.skipif(CORPUS is None, reason="the corpus of real files is not beside the project")
ROOT = CORPUS or Path()
COMPOSED = sorted(ROOT.glob("composed/o7*.eml")) if CORPUS else []
MAILS = sorted([*ROOT.glob("mail-smime/*/*.eml"), *ROOT.glob("mail-smime/*/*.message")]) if CORPUS else []


@pytest.mark.parametrize("path", COMPOSED, ids=lambda path: path.name)
def test_sealed_mails_open_to_what_is_expected(path: Path, tmp_path: Path) -> None:
    """Through Postfix and with OpenSSL's keys: verified, and every instance with its hash."""
    folder = path.parent / "o7-keys"
    certificates = {
        name: x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
        for name in ("ca", "sender", "doctor")
    }
    secret = load_pem_private_key((folder / "doctor.key").read_bytes(), None)
    key = Key(secret, certificates["doctor"])  # type: ignore[arg-type]
    layers = tmp_path / "layers"
    layers.mkdir()
    span = Span(path, 0, path.stat().st_size)
    now = max(NOW, certificates["sender"].not_valid_before_utc)
    found = opened.open_message(span, [key], (), layers, limit=1 << 22, now=now)
    judged = verdict.judge(found, Expected("", certificates["sender"]), Trust((certificates["ca"],)), now)
    assert judged.code is None
    assert judged.verified
    with found.content.path.open("rb") as file:
        file.seek(found.content.start)
        result = reading(tmp_path, file.read(found.content.size))
    expected = json.loads(path.with_suffix(".expect.json").read_text())["objects"]
    assert [one.sha256 for one in result.instances] == [one["sha256_file"] for one in expected]


@pytest.mark.parametrize("path", MAILS, ids=lambda path: path.name)
def test_any_protected_mail_comes_to_an_end(path: Path, tmp_path: Path) -> None:
    """Strangers' mails, some of them broken by intention: never verified without an anchor, and nothing but a code."""
    try:
        found = opened.open_message(Span(path, 0, path.stat().st_size), (), (), tmp_path, limit=1 << 22, now=NOW)
    except ProtectionError:
        assert not list(tmp_path.iterdir())
        return
    assert not verdict.judge(found, Expected(""), Trust(()), NOW).verified
