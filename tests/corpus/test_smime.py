"""Real protected mails: what each must come to."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pki import NOW

from gateway.core.cms import algorithms, opened, trust, verdict
from gateway.core.cms.enveloped import Key
from gateway.core.cms.failure import Failure, ProtectionError
from gateway.core.cms.trust import Trust
from gateway.core.cms.verdict import Expected
from gateway.core.header import fields, parse
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


BOUNCY = ROOT / "mail-smime/bc-java"
LEGACY = "SHA-1: nobody's signature counts by it any more (SMIME-5), whatever else is right or wrong"
VERDICTS: dict[str, tuple[Failure | None, str]] = {
    # Where the manifest says only "parse without error": it does, and this is what it then comes to, and why.
    "3nnn_smime.eml": (Failure.UNTRUSTED_ISSUER, "a public authority that this hospital did not choose"),
    "attachonly.eml": (None, "not protected at all: an attachment that is signed is no signed message"),
    "basicAS2.message": (None, "HTTP, not mail: its first line is no header, so there is no Content-Type"),
    "rawAS2.message": (None, "the same"),
    # "must not decrypt": the type is application/pkcs7-signature, a signature of nothing.
    "brokenEnv.message": (None, "a detached signature alone protects nothing"),
    "circular.eml": (Failure.WEAK_DIGEST, LEGACY),
    "embeddedmulti.message": (Failure.WEAK_DIGEST, LEGACY),
    "extra-nl.eml": (Failure.WEAK_DIGEST, LEGACY),
    "multi-alternative.eml": (Failure.WEAK_DIGEST, LEGACY),
    "qp-soft-break.eml": (Failure.WEAK_DIGEST, LEGACY),
    "quotable.message": (Failure.WEAK_DIGEST, LEGACY),
    # "signature verifies": test_a_salt_of_another_length_verifies shows that; its issuer is not beside it.
    "openssl-signed-sha256-non-default-salt-length.eml": (
        Failure.UNTRUSTED_ISSUER,
        "PSS is good, the issuer is absent",
    ),
    "outlook_2010_beta_sime_msg.eml": (Failure.UNSUPPORTED_ALGORITHM, "Triple-DES"),
    # openssl cms with the same key ends the same way for these three: the first and the last have another key's
    # content key (RFC 3218), the second opens.
    "test128.message": (Failure.DECRYPT_FAILED, "what comes out is not padded"),
    "test192.message": (Failure.CBC_WITHOUT_INNER_SIGNATURE, "it opens, and nobody vouches for it"),
    "test256.message": (Failure.DECRYPT_FAILED, "what comes out is not padded"),
    **{
        f"validator.{name}.eml": (Failure.WEAK_DIGEST, LEGACY)
        for name in (
            *("expired", "extKeyUsage", "keyUsage", "longValidity", "noEmail"),
            *("notYetValid", "revoked", "shortKey", "validMail"),
        )
    },
    "4.8.eml": (Failure.WEAK_DIGEST, "DSA with SHA-1 (RFC 4134)"),
    "4.9.eml": (Failure.WEAK_DIGEST, "DSA with SHA-1 (RFC 4134)"),
    "5.3.eml": (Failure.UNSUPPORTED_ALGORITHM, "Triple-DES (RFC 4134)"),
}
"""What each mail comes to, and why where the manifest is silent."""

GIBBERISH = {"test128.message", "test256.message"}
"""What is opened with a content key that is made up anew each time (RFC 3218): one time in 256 it looks padded."""


def held(name: str) -> x509.Certificate:
    """A certificate beside the mails."""
    return x509.load_pem_x509_certificate((BOUNCY / name).read_bytes())


def ours() -> list[Key]:
    """The keys that lie beside the mails."""
    pairs = (("key.pem", "cert.pem"), ("smimeTKkey.pem", "smimeTKcert.pem"))
    return [
        Key(load_pem_private_key((BOUNCY / secret).read_bytes(), None), held(certificate))  # type: ignore[arg-type]
        for secret, certificate in pairs
    ]


def anchors() -> tuple[x509.Certificate, ...]:
    """Those whom the mails' own tests trust."""
    return tuple(held(name) for name in ("certpath_root.crt", "validator.fakeRoot.crt", "validator.root.crt"))


def sent(path: Path) -> tuple[str, datetime]:
    """The address in From, and the time in Date: the clock a mail names; else that of the tests."""
    content = path.read_bytes()
    senders = parse(content).senders
    dates = [value for name, value in fields(content.partition(b"\r\n\r\n")[0]) if name == "date"]
    when = parsedate_to_datetime(dates[0]).astimezone(UTC) if dates else NOW
    return (senders[0] if len(senders) == 1 else ""), when


def test_every_protected_mail_has_a_verdict() -> None:
    """None is forgotten."""
    assert {path.name for path in MAILS} == set(VERDICTS)


@pytest.mark.filterwarnings("ignore:Parsed a serial number:DeprecationWarning")
@pytest.mark.parametrize("path", MAILS, ids=lambda path: path.name)
def test_every_protected_mail_ends_in_its_verdict(path: Path, tmp_path: Path) -> None:
    """With the keys, the anchors and the clock that come with it: the code, and never a good one by mistake."""
    expected, why = VERDICTS[path.name]
    sender, now = sent(path)
    span = Span(path, 0, path.stat().st_size)
    code: Failure | None
    try:
        found = opened.open_message(span, ours(), (), tmp_path, limit=1 << 22, now=now)
    except ProtectionError as error:
        code = error.code
        assert not list(tmp_path.iterdir())
    else:
        judged = verdict.judge(found, Expected(sender), Trust(anchors()), now)
        assert not judged.verified
        code = judged.code
    allowed = {expected, Failure.CBC_WITHOUT_INNER_SIGNATURE} if path.name in GIBBERISH else {expected}
    assert code in allowed, why


def signer(name: str, scratch: Path) -> x509.Certificate:
    """The certificate of a signed mail of the validator's cases."""
    path = BOUNCY / f"validator.{name}.eml"
    found = opened.open_message(Span(path, 0, path.stat().st_size), (), (), scratch, limit=1 << 22, now=NOW)
    [one] = found.layers[0].signatures
    assert one.certificate is not None
    return one.certificate


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("expired", Failure.CERTIFICATE_EXPIRED),
        ("notYetValid", Failure.CERTIFICATE_NOT_YET_VALID),
        ("extKeyUsage", Failure.EXTENDED_KEY_USAGE),
        ("keyUsage", Failure.KEY_USAGE),
        ("shortKey", Failure.WEAK_KEY),
        # A long validity is its authority's affair: there is no rule of S/MIME against it, and ours has none.
        ("longValidity", None),
        ("validMail", None),
        # Who it is for is not in it: test_a_certificate_without_an_address_is_for_nobody.
        ("noEmail", None),
    ],
)
def test_the_fault_that_a_certificate_was_made_for_is_found(
    name: str, expected: Failure | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validator's cases again, as they were meant in 2006, when 1024 bits were enough."""
    monkeypatch.setattr(algorithms, "RSA_LEAST", 1024)
    moment = datetime(2006, 9, 8, tzinfo=UTC)
    certificate = signer(name, tmp_path)
    if expected is None:
        trust.check_leaf(certificate, moment, "sign")
    else:
        with pytest.raises(ProtectionError) as caught:
            trust.check_leaf(certificate, moment, "sign")
        assert caught.value.code is expected


def test_a_certificate_without_an_address_is_for_nobody(tmp_path: Path) -> None:
    """SMIME-22: only a pin could make it count."""
    assert trust.addresses(signer("noEmail", tmp_path)) == ()
    assert not trust.is_for(signer("noEmail", tmp_path), "arminha@student.ethz.ch")
    assert trust.is_for(signer("validMail", tmp_path), "arminha@student.ethz.ch")


def test_a_salt_of_another_length_verifies(tmp_path: Path) -> None:
    """RSASSA-PSS by OpenSSL, whose salt is as long as it can be: the signature is good, only the issuer is missing."""
    path = BOUNCY / "openssl-signed-sha256-non-default-salt-length.eml"
    found = opened.open_message(Span(path, 0, path.stat().st_size), (), (), tmp_path, limit=1 << 22, now=NOW)
    [layer] = found.layers
    [signature] = layer.signatures
    assert signature.failure is None
    assert signature.certificate is not None
    judged = verdict.judge(found, Expected("test@example.com", signature.certificate), Trust(()), NOW)
    assert (judged.verified, judged.code) == (True, None)
