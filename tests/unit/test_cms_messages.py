"""Whole protected messages: sealed here and opened here, and what an attacker makes of them."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pki
import pybase64
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding
from pki import DAY, NOW, Holder

from gateway.core.cms import algorithms, ber, opened, revocation, sealed, signed, verdict
from gateway.core.cms.enveloped import Key
from gateway.core.cms.failure import Failure, ProtectionError
from gateway.core.cms.opened import Opened
from gateway.core.cms.sealed import Protection
from gateway.core.cms.signed import Identity
from gateway.core.cms.trust import Trust
from gateway.core.cms.verdict import Accept, Expected, Verdict
from gateway.model import Span

HEADER = b"From: Anna <anna@clinic.test>\r\nSubject: x\r\nMIME-Version: 1.0\r\n"
ENTITY = (
    b"Content-Type: multipart/mixed; boundary=in\r\n\r\n--in\r\n\r\nhello\r\n--in\r\n"
    b"Content-Type: application/dicom\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b"QUJD" * 19 + b"\r\n--in--\r\n"
)
KINDS = ("rsa-2048", "P-256")


def span(path: Path, content: bytes) -> Span:
    """Put a content somewhere in a file."""
    path.write_bytes(b"..." + content + b"behind")
    return Span(path, 3, 3 + len(content))


def content(found: Span) -> bytes:
    """The bytes of a range."""
    return found.path.read_bytes()[found.start : found.end]


def identity(holder: Holder, *, pss: bool = False) -> Identity:
    """Somebody who signs, with the issuing authority's certificate."""
    return Identity(holder.key, holder.certificate, (pki.issuing().certificate,), pss)


def seal(folder: Path, protection: Protection, entity: bytes = ENTITY) -> bytes:
    """A sealed message."""
    out = io.BytesIO()
    size = sealed.seal(HEADER, span(folder / "entity", entity), protection, NOW, out)
    assert size == len(out.getvalue())
    return out.getvalue()


def unseal(
    folder: Path,
    message: bytes,
    *keys: Holder,
    known: Sequence[x509.Certificate] = (),
    limit: int = 1 << 22,
) -> Opened:
    """Open a message."""
    (folder / "layers").mkdir(exist_ok=True)
    ours = [Key(one.key, one.certificate) for one in keys]
    place = span(folder / "message", message)
    return opened.open_message(place, ours, known, folder / "layers", limit=limit, now=NOW)


def left(folder: Path) -> list[str]:
    """What lies in the folder of the layers."""
    return sorted(one.name for one in (folder / "layers").iterdir())


def refused(folder: Path, message: bytes, *keys: Holder, limit: int = 1 << 20) -> Failure:
    """The code with which a message is not opened; nothing of it may stay."""
    with pytest.raises(ProtectionError) as caught:
        unseal(folder, message, *keys, limit=limit)
    assert left(folder) == []
    return caught.value.code


ANCHORS = Trust((), revocation="soft")


def judge(found: Opened, sender: str = "anna@clinic.test", pinned: x509.Certificate | None = None) -> Verdict:
    """The verdict of a hospital that trusts the root."""
    return verdict.judge(found, Expected(sender, pinned), Trust((pki.root().certificate,)), NOW)


# There and back


@pytest.mark.parametrize("signer", KINDS)
@pytest.mark.parametrize("pss", [False, True])
def test_a_signed_message_shows_exactly_what_was_signed(tmp_path: Path, signer: str, pss: bool) -> None:
    """SMIME-9, SMIME-15: the range that is read further is the entity, byte for byte, and nothing else."""
    anna = pki.leaf(kind=f"{signer}/anna")
    found = unseal(tmp_path, seal(tmp_path, Protection(identity(anna, pss=pss))))
    assert content(found.content) == ENTITY
    assert [layer.kind for layer in found.layers] == ["signed"]
    (signature,) = found.layers[0].signatures
    assert signature.failure is None
    assert signature.certificate == anna.certificate
    assert signature.attributes.signing_time == NOW
    assert len(signature.attributes.capabilities) > 5
    assert judge(found) == Verdict(
        signed=True,
        verified=True,
        signer="anna@clinic.test",
        fingerprint=anna.certificate.fingerprint(pki.hashes.SHA256()).hex(),
        revocation="unknown",
        gaps=revocation.sources([pki.root().certificate, pki.issuing().certificate, anna.certificate]),
    )
    assert left(tmp_path) == []


def test_an_unknown_revocation_tells_which_crls_are_missing(tmp_path: Path) -> None:
    """Under ``soft`` and ``hard`` alike: they are fetched, and it is judged again."""
    anna = pki.leaf()
    found = unseal(tmp_path, seal(tmp_path, Protection(identity(anna))))
    path = [pki.root().certificate, pki.issuing().certificate, anna.certificate]
    known = Trust((pki.root().certificate,), revocation="hard")
    refused = verdict.judge(found, Expected("anna@clinic.test"), known, NOW)
    assert refused == Verdict(signed=True, code=Failure.REVOCATION_UNKNOWN, gaps=revocation.sources(path))


@pytest.mark.parametrize("recipient", KINDS)
@pytest.mark.parametrize("cbc", [False, True])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1 << 20])
def test_an_encrypted_message_opens_for_each_recipient(tmp_path: Path, recipient: str, cbc: bool, size: int) -> None:
    """SMIME-3, SMIME-4, SMIME-14: for the partner and for ourselves, whatever the length."""
    anna = pki.leaf(kind="P-256/anna")
    ours, partner = pki.leaf(name="Us"), pki.leaf(kind=f"{recipient}/partner", name="Partner")
    certificates = (ours.certificate, partner.certificate)
    entity = ENTITY + b"x" * size
    message = seal(tmp_path, Protection(identity(anna), certificates, cbc), entity)
    for one in (ours, partner):
        found = unseal(tmp_path, message, pki.leaf(kind="rsa-2048/other"), one)
        assert content(found.content) == entity
        assert [layer.kind for layer in found.layers] == ["encrypted", "signed"]
        assert found.layers[0].recipient == one.certificate
        assert found.layers[0].authenticated is not cbc
        assert judge(found).verified
        assert judge(found).encrypted
        assert left(tmp_path) == ["layer-0"]
        (tmp_path / "layers" / "layer-0").unlink()


@pytest.mark.parametrize("protection", ["signed", "encrypted", "both"])
@pytest.mark.parametrize("signer", KINDS)
@pytest.mark.parametrize("cbc", [False, True])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 56, 57, 58, 1000])
def test_the_size_is_known_before(tmp_path: Path, protection: str, signer: str, cbc: bool, size: int) -> None:
    """R22: exact, but for the few bytes by which signatures of one elliptic key differ."""
    who = identity(pki.leaf(kind=f"{signer}/anna")) if protection != "encrypted" else None
    certificates = (pki.leaf().certificate,) if protection != "signed" else ()
    wish = Protection(who, certificates, cbc)
    entity = ENTITY + b"x" * size
    over = sealed.sealed_size(len(entity), wish) + len(HEADER) - len(seal(tmp_path, wish, entity))
    assert 0 <= over <= 3 * sealed.SLACK
    if protection == "encrypted":
        assert over == 0


def test_lines_that_lost_their_carriage_returns_still_verify_and_it_is_said(tmp_path: Path) -> None:
    """A mail store that keeps bare LF: the signature counts over CRLF, as it was made."""
    message = seal(tmp_path, Protection(identity(pki.leaf()))).replace(b"\r\n", b"\n")
    found = unseal(tmp_path, message)
    assert found.layers[0].repaired
    assert judge(found).verified
    assert judge(found).repaired
    assert content(found.content) == ENTITY


def test_a_signer_whose_certificate_did_not_come_is_known_from_the_configuration(tmp_path: Path) -> None:
    """The partner's certificate is at hand: it need not travel with each mail."""
    anna = pki.leaf()
    message = seal(tmp_path, Protection(Identity(anna.key, anna.certificate)))
    bare = re.sub(rb"(?s)(name=\"smime.p7s\"\r\n.*?\r\n\r\n)(.*?)(\r\n--)", _without_certificates, message)
    assert judge(unseal(tmp_path, bare)).code is Failure.SIGNER_CERTIFICATE_MISSING
    found = unseal(tmp_path, bare, known=[anna.certificate])
    assert found.layers[0].signatures[0].failure is None
    assert judge(found, pinned=anna.certificate).verified


def _without_certificates(match: re.Match[bytes]) -> bytes:
    info = ber.parse(pybase64.b64decode(match[2]))
    signed = info.child(1).child(0)
    parts = [one.raw for one in signed.children() if one.tag != ber.context(0)]
    content = ber.element(ber.context(0), ber.sequence(*parts))
    return match[1] + pybase64.encodebytes(ber.sequence(info.child(0).raw, content)) + match[3].removeprefix(b"\r\n")


# What an attacker, or a careless relay, makes of a message


def change(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Replace what must be there once."""

    def apply(message: bytes) -> bytes:
        assert message.count(old) == 1
        return message.replace(old, new)

    return apply


def _boundary(message: bytes) -> bytes:
    found = re.search(rb'sha-256; boundary="([0-9a-f]+)"', message)
    assert found is not None
    return b"--" + found[1]


def third_part(message: bytes) -> bytes:
    """A mailing list adds its footer as a part."""
    boundary = _boundary(message)
    return message.replace(boundary + b"--", boundary + b"\r\n\r\nfooter\r\n" + boundary + b"--")


def first_part_wrapped(message: bytes) -> bytes:
    """An attacker puts the signed message beside a part of his own."""
    return (
        HEADER
        + b"Content-Type: multipart/mixed; boundary=evil\r\n\r\n--evil\r\nContent-Type: application/dicom\r\n\r\nDICM"
        + b"\r\n--evil\r\n"
        + message.removeprefix(HEADER)
        + b"\r\n--evil--\r\n"
    )


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (change(b"hello", b"hallo"), Failure.CONTENT_DIGEST_MISMATCH),
        (change(b"\r\nhello", b"\r\nhello "), Failure.CONTENT_DIGEST_MISMATCH),
        (change(b"QUJD" * 19, b"QUJD" * 18), Failure.CONTENT_DIGEST_MISMATCH),
    ],
)
def test_a_changed_content_is_seen(tmp_path: Path, spoil: Callable[[bytes], bytes], expected: Failure) -> None:
    """Integrity: one bit is enough, and the partner's policy does not matter."""
    found = unseal(tmp_path, spoil(seal(tmp_path, Protection(identity(pki.leaf())))))
    judged = judge(found)
    assert judged.code is expected
    assert not judged.verified
    assert verdict.shortfall(judged, "any") is expected


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (third_part, Failure.SIGNED_PART_NOT_ROOT),
        (lambda message: message.replace(_boundary(message) + b"--", b""), Failure.SIGNED_PART_NOT_ROOT),
        (change(b'boundary="', b'boundary="x'), Failure.SIGNED_PART_NOT_ROOT),
        (lambda message: re.sub(rb'boundary="\w+"', b"", message, count=1), Failure.MALFORMED),
        (change(b'Content-Type: application/pkcs7-signature; name="smime.p7s"', b"X: y"), Failure.MALFORMED),
        (change(b"\r\nMII", b"\r\nM!I"), Failure.MALFORMED),
        (change(b"\r\nMII", b"\r\nMIJ"), Failure.MALFORMED),
        (change(b"\r\nMII", b"\r\n"), Failure.MALFORMED),
    ],
)
def test_a_signed_message_out_of_shape_is_refused(
    tmp_path: Path, spoil: Callable[[bytes], bytes], expected: Failure
) -> None:
    """RFC 1847 §2.1: exactly two parts between exactly three delimiters, and a signature that can be read."""
    assert refused(tmp_path, spoil(seal(tmp_path, Protection(identity(pki.leaf()))))) is expected


def test_a_part_beside_the_signed_message_takes_the_protection_away(tmp_path: Path) -> None:
    """SMIME-29: only the root counts; whatever is around it, the message as a whole is not signed."""
    found = unseal(tmp_path, first_part_wrapped(seal(tmp_path, Protection(identity(pki.leaf())))))
    assert found.layers == ()
    assert verdict.shortfall(judge(found), "signed") is Failure.NOT_SIGNED


def test_a_signature_by_another_key_does_not_fit(tmp_path: Path) -> None:
    """Eve signs with her key and sends Anna's certificate."""
    anna = pki.leaf()
    forged = Identity(pki.key("rsa-2048/eve"), anna.certificate)
    judged = judge(unseal(tmp_path, seal(tmp_path, Protection(forged))))
    assert judged.code is Failure.BAD_SIGNATURE


@pytest.mark.parametrize("cbc", [False, True])
def test_a_message_for_others_is_not_ours_to_open(tmp_path: Path, cbc: bool) -> None:
    """The partner used another certificate: said by a code of its own, for it tells him what to do."""
    message = seal(tmp_path, Protection(None, (pki.leaf().certificate,), cbc))
    assert refused(tmp_path, message, pki.leaf(kind="rsa-2048/us")) is Failure.NO_KEY_FOR_US
    assert refused(tmp_path, message) is Failure.NO_KEY_FOR_US


@pytest.mark.parametrize("cbc", [False, True])
@pytest.mark.parametrize("where", ["key", "content", "tag"])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_wrong_with_an_encrypted_message_it_says_the_same(
    tmp_path: Path, cbc: bool, where: str, kind: str
) -> None:
    """SMIME-29: no oracle: a bad key, a bad padding and a bad tag look alike, and no plaintext stays."""
    us = pki.leaf(kind=f"{kind}/us")
    message = seal(tmp_path, Protection(None, (us.certificate,), cbc))
    head, _, body = message.partition(b"\r\n\r\n")
    der = bytearray(pybase64.b64decode(body))
    key = der.find(b"\x04\x28" if kind == "P-256" else b"\x04\x82\x01\x00")
    # CBC has no tag but a padding; the block before the last turns its length into more than a block, whatever it was.
    place, flipped = {"key": (key + 20, 1), "content": (-200, 1), "tag": (-17, 0x80) if cbc else (-1, 1)}[where]
    der[place] ^= flipped
    spoiled = head + b"\r\n\r\n" + pybase64.encodebytes(bytes(der))
    if cbc and where == "content":
        # Nothing in CBC shows it. What comes out counts for nothing without a signature inside.
        judged = judge(unseal(tmp_path, spoiled, us))
        assert judged.code is Failure.CBC_WITHOUT_INNER_SIGNATURE
        assert verdict.shortfall(judged, "any") is Failure.CBC_WITHOUT_INNER_SIGNATURE
    elif cbc and where == "key" and kind == "rsa-2048":
        # A random key: the padding shows it, but for one time in 256.
        codes = set()
        try:
            codes.add(judge(unseal(tmp_path, spoiled, us)).code)
        except ProtectionError as error:
            codes.add(error.code)
        assert codes <= {Failure.DECRYPT_FAILED, Failure.CBC_WITHOUT_INNER_SIGNATURE}
    else:
        assert refused(tmp_path, spoiled, us) is Failure.DECRYPT_FAILED


@pytest.mark.parametrize("size", range(0, 400, 40))
def test_an_encrypted_message_that_is_cut_leaves_nothing(tmp_path: Path, size: int) -> None:
    """Bounded and clean: a download that ended early is malformed, and no plaintext stays."""
    us = pki.leaf()
    message = seal(tmp_path, Protection(identity(pki.leaf()), (us.certificate,)))
    assert refused(tmp_path, message[: -4 * size - 4], us) is Failure.MALFORMED


def test_a_message_that_holds_more_than_it_may_is_refused(tmp_path: Path) -> None:
    """The limit of a message counts inside its protection too."""
    us = pki.leaf()
    message = seal(tmp_path, Protection(None, (us.certificate,)), ENTITY + b"x" * 5000)
    assert refused(tmp_path, message, us, limit=5000) is Failure.LIMIT_EXCEEDED


def test_protection_nested_too_deep_is_refused(tmp_path: Path) -> None:
    """Four layers are more than any honest sender uses."""
    us = pki.leaf()
    message = seal(tmp_path, Protection(None, (us.certificate,)))
    for _ in range(3):
        message = seal(tmp_path, Protection(None, (us.certificate,)), message.removeprefix(HEADER))
    assert len(unseal(tmp_path, message, us).layers) == opened.LAYERS
    (tmp_path / "layers" / "layer-3").unlink()
    message = seal(tmp_path, Protection(None, (us.certificate,)), message.removeprefix(HEADER))
    assert refused(tmp_path, message, us) is Failure.LIMIT_EXCEEDED


def test_a_type_that_a_relay_made_unknown_is_known_by_its_name(tmp_path: Path) -> None:
    """SMIME-8: application/octet-stream with the name smime.p7m."""
    us = pki.leaf()
    message = seal(tmp_path, Protection(None, (us.certificate,)))
    message = message.replace(b"application/pkcs7-mime", b"application/octet-stream")
    assert content(unseal(tmp_path, message, us).content) == ENTITY


@pytest.mark.parametrize(
    "message",
    [
        b"Subject: x\r\n\r\nhello",
        b"no header at all",
        b"",
        b'Content-Type: multipart/signed; protocol="application/pgp-signature"; boundary=x\r\n\r\n--x\r\n--x--\r\n',
    ],
)
def test_a_message_without_smime_is_left_as_it_is(tmp_path: Path, message: bytes) -> None:
    """What is not protected by S/MIME is read whole, and nothing is claimed of it."""
    found = unseal(tmp_path, message)
    assert found.layers == ()
    assert content(found.content) == message
    assert judge(found) == Verdict()


# The verdict


def test_a_signature_counts_only_for_the_address_it_is_for(tmp_path: Path) -> None:
    """SMIME-20: the one From, not a display name; two From fields leave no address to fit."""
    found = unseal(tmp_path, seal(tmp_path, Protection(identity(pki.leaf()))))
    assert judge(found, "ANNA@clinic.test").verified
    assert judge(found, "eve@clinic.test").code is Failure.SENDER_ADDRESS_MISMATCH
    assert judge(found, "").code is Failure.SENDER_ADDRESS_MISMATCH


def test_a_certificate_without_an_address_counts_only_when_it_is_pinned(tmp_path: Path) -> None:
    """The contract: a binding then comes from the configuration alone."""
    machine = pki.leaf(address=None)
    found = unseal(tmp_path, seal(tmp_path, Protection(identity(machine))))
    assert judge(found).code is Failure.SENDER_ADDRESS_MISMATCH
    judged = judge(found, pinned=machine.certificate)
    assert judged.verified
    assert judged.signer is None


def test_a_pinned_partner_may_not_sign_with_another_certificate(tmp_path: Path) -> None:
    """``pin``: only this certificate, however good another one is."""
    found = unseal(tmp_path, seal(tmp_path, Protection(identity(pki.leaf()))))
    assert judge(found, pinned=pki.leaf().certificate).code is Failure.UNTRUSTED_ISSUER


def test_a_signature_outside_of_cbc_does_not_make_it_trustworthy(tmp_path: Path) -> None:
    """EFAIL: the signature must be inside; GCM needs none to be whole."""
    us, anna = pki.leaf(), identity(pki.leaf())
    for cbc, code in ((True, Failure.CBC_WITHOUT_INNER_SIGNATURE), (False, None)):
        inner = seal(tmp_path, Protection(None, (us.certificate,), cbc)).removeprefix(HEADER)
        found = unseal(tmp_path, seal(tmp_path, Protection(anna), inner), us)
        assert [layer.kind for layer in found.layers] == ["signed", "encrypted"]
        assert judge(found).code is code
        (tmp_path / "layers" / "layer-1").unlink()


def test_a_signature_from_the_future_does_not_count(tmp_path: Path) -> None:
    """A signing time more than a day ahead of ours; an hour is a clock that is wrong."""
    out = io.BytesIO()
    place = span(tmp_path / "entity", ENTITY)
    for ahead, code in ((timedelta(hours=1), None), (2 * DAY, Failure.SIGNED_ATTRIBUTES_INVALID)):
        out = io.BytesIO()
        sealed.seal(HEADER, place, Protection(identity(pki.leaf())), NOW + ahead, out)
        assert judge(unseal(tmp_path, out.getvalue())).code is code


@pytest.mark.parametrize(
    ("judged", "accept", "expected"),
    [
        (Verdict(), "any", None),
        (Verdict(), "signed", Failure.NOT_SIGNED),
        (Verdict(), "encrypted", Failure.NOT_ENCRYPTED),
        (Verdict(), "signed+encrypted", Failure.NOT_SIGNED),
        (Verdict(signed=True, verified=True), "signed", None),
        (Verdict(signed=True, verified=True), "signed+encrypted", Failure.NOT_ENCRYPTED),
        (Verdict(encrypted=True, signed=True, verified=True), "signed+encrypted", None),
        (Verdict(encrypted=True), "encrypted", None),
        (Verdict(encrypted=True), "signed+encrypted", Failure.NOT_SIGNED),
        (Verdict(signed=True, code=Failure.UNTRUSTED_ISSUER), "any", None),
        (Verdict(signed=True, code=Failure.UNTRUSTED_ISSUER), "encrypted", Failure.NOT_ENCRYPTED),
        (Verdict(signed=True, code=Failure.UNTRUSTED_ISSUER), "signed", Failure.UNTRUSTED_ISSUER),
        (Verdict(signed=True, code=Failure.REVOKED), "any", Failure.REVOKED),
        (Verdict(signed=True, code=Failure.BAD_SIGNATURE), "any", Failure.BAD_SIGNATURE),
    ],
)
def test_what_a_partner_must_send_is_demanded(judged: Verdict, accept: Accept, expected: Failure | None) -> None:
    """The table of the contract: never stored when what is asked for is missing or bad."""
    assert verdict.shortfall(judged, accept) is expected


def test_nobody_to_encrypt_for_is_an_error(tmp_path: Path) -> None:
    """R21: an empty list of recipients never means clear text by accident; a weak key is refused."""
    weak = pki.leaf(kind="rsa-1024/weak")
    with pytest.raises(ProtectionError) as caught:
        seal(tmp_path, Protection(None, (weak.certificate,)))
    assert caught.value.code is Failure.WEAK_KEY


@pytest.mark.parametrize(
    ("inner", "code"),
    [(b"Anna <ANNA@clinic.test>", None), (b"eve@clinic.test", Failure.SENDER_ADDRESS_MISMATCH)],
)
@pytest.mark.parametrize("form", [b'text/plain; hp="cipher"\r\nHP-Outer: Subject: [...]', b"message/rfc822"])
def test_fields_inside_the_protection_are_read_and_must_name_the_sender(
    tmp_path: Path, inner: bytes, code: Failure | None, form: bytes
) -> None:
    """SMIME-26, SMIME-27."""
    field = b"From: " + inner + b"\r\nSubject: secret\r\n"
    head = b"Content-Type: " + form + b"\r\n"
    entity = head + b"\r\n" + field + b"\r\nhi" if form == b"message/rfc822" else field + head + b"\r\nhi"
    found = unseal(tmp_path, seal(tmp_path, Protection(identity(pki.leaf())), entity))
    assert found.protected == (("from", inner.decode()), ("subject", "secret"))
    assert judge(found).code is code


def test_lines_that_are_almost_delimiters_cost_no_time(tmp_path: Path) -> None:
    """Bounded time: a boundary of one letter, and a content made of it."""
    head = b'Content-Type: multipart/signed; boundary="b"\r\n\r\n'
    assert refused(tmp_path, head + b"--bx\r\n" * 20_000) is Failure.LIMIT_EXCEEDED


def test_a_content_in_pieces_of_nothing_is_refused() -> None:
    """Bounded time: a million empty octet strings."""
    raw = b"\x24\x80" + b"\x04\0" * 200_000 + b"\0\0"
    with pytest.raises(ProtectionError) as caught:
        list(ber.Reader(io.BytesIO(raw).read).octets())
    assert caught.value.code is Failure.LIMIT_EXCEEDED


# Opaque, compressed, and other transfer encodings


def quoted(info: bytes) -> bytes:
    """Quoted-printable of what is no text: every byte by its number."""
    return b"=\r\n".join(b"".join(b"=%02X" % one for one in info[at : at + 24]) for at in range(0, len(info), 24))


def opaque(info: bytes, encoding: str = "base64") -> bytes:
    """A message that is one ContentInfo."""
    body = {
        "base64": pybase64.encodebytes,
        "quoted-printable": quoted,
        "binary": bytes,
    }[encoding](info)
    head = b"Content-Type: application/pkcs7-mime; name=smime.p7m\r\nContent-Transfer-Encoding: "
    return HEADER + head + encoding.encode() + b"\r\n\r\n" + body


def opaque_signed(*signers: bytes, inside: bytes | None = ENTITY, kind: str = algorithms.DATA) -> bytes:
    """A SignedData with its content inside."""
    content = b"" if inside is None else ber.element(ber.context(0), ber.octet_string(inside))
    return signed.content_info(
        algorithms.SIGNED_DATA,
        ber.sequence(
            ber.number(1),
            ber.set_of(algorithms.write(algorithms.SHA256)),
            ber.sequence(ber.identifier(kind), content),
            ber.element(
                ber.context(0),
                *(
                    one.certificate.public_bytes(Encoding.DER)
                    for one in (pki.leaf(kind="rsa-2048/anna"), pki.issuing())
                ),
            ),
            ber.set_of(*signers),
        ),
    )


def bare_signer(content: bytes = ENTITY) -> bytes:
    """A SignerInfo without attributes."""
    anna = pki.leaf(kind="rsa-2048/anna")
    return ber.sequence(
        ber.number(1),
        ber.element(ber.context(0, constructed=False), signed.key_identifier(anna.certificate)),
        algorithms.write(algorithms.SHA256),
        algorithms.write(algorithms.RSA, ber.element(ber.NULL)),
        ber.octet_string(anna.key.sign(content, padding.PKCS1v15(), pki.hashes.SHA256())),
    )


def test_a_renewed_certificate_of_the_same_key_counts_beside_its_predecessor(tmp_path: Path) -> None:
    """The signer is named by the key: the partner's certificate at hand has run out, the new one came with the mail."""
    message = opaque(opaque_signed(bare_signer()))
    old = pki.leaf(kind="rsa-2048/anna", since=pki.NOW - 400 * pki.DAY, until=pki.NOW - pki.DAY).certificate
    assert judge(unseal(tmp_path, message)).verified
    assert judge(unseal(tmp_path, message, known=[old])).verified
    # Whoever pinned the old one is not helped by it.
    assert judge(unseal(tmp_path, message, known=[old]), pinned=old).code is Failure.CERTIFICATE_EXPIRED


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "binary"])
def test_an_opaque_signature_opens_in_every_transfer_encoding(tmp_path: Path, encoding: str) -> None:
    """SMIME-8: what was signed lies inside, and is read from there."""
    found = unseal(tmp_path, opaque(opaque_signed(bare_signer()), encoding))
    assert content(found.content) == ENTITY
    assert judge(found).verified


def compressed_data(text: bytes = ENTITY, kind: str = algorithms.DATA) -> bytes:
    """A CompressedData."""
    inner = ber.element(ber.context(0), ber.octet_string(zlib.compress(text)))
    parts = ber.number(0), algorithms.write(algorithms.ZLIB), ber.sequence(ber.identifier(kind), inner)
    return signed.content_info(algorithms.COMPRESSED_DATA, ber.sequence(*parts))


def test_a_compressed_message_opens_and_proves_nothing(tmp_path: Path) -> None:
    """RFC 3274: a layer like the others, without any protection."""
    found = unseal(tmp_path, opaque(compressed_data()))
    assert [layer.kind for layer in found.layers] == ["compressed"]
    assert content(found.content) == ENTITY
    assert judge(found) == Verdict()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (opaque(opaque_signed(bare_signer(), inside=None)), Failure.NOT_SIGNED),
        (opaque(opaque_signed()), Failure.NO_SIGNER),
        (opaque(opaque_signed(bare_signer(), kind=algorithms.SIGNED_DATA)), Failure.UNSUPPORTED_ALGORITHM),
        (opaque(compressed_data(kind=algorithms.SIGNED_DATA)), Failure.UNSUPPORTED_ALGORITHM),
        (opaque(signed.content_info("1.2.3", ber.sequence())), Failure.UNSUPPORTED_ALGORITHM),
        (opaque(bytes(5 << 20), "quoted-printable"), Failure.UNSUPPORTED_ALGORITHM),
        (b"X: y\r\n" * 20_000, Failure.LIMIT_EXCEEDED),
    ],
    ids=["detached", "unsigned", "of cms", "compressed cms", "unknown", "long text", "long header"],
)
def test_an_opaque_message_out_of_shape_has_its_code(tmp_path: Path, message: bytes, expected: Failure) -> None:
    """Whatever else somebody puts in its place."""
    assert refused(tmp_path, message) is expected


def clear(p7s: bytes) -> bytes:
    """A multipart/signed with a signature of one's own."""
    head = b'Content-Type: multipart/signed; protocol="application/pkcs7-signature"; boundary=b\r\n\r\n--b\r\n'
    second = b"\r\n--b\r\nContent-Type: application/pkcs7-signature\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    return head + ENTITY + second + pybase64.encodebytes(p7s) + b"\r\n--b--\r\n"


@pytest.mark.parametrize(
    ("p7s", "expected"),
    [
        (compressed_data(), Failure.MALFORMED),
        (opaque_signed(bare_signer()), Failure.MALFORMED),
        (opaque_signed(bare_signer(), inside=b""), Failure.MALFORMED),
        (bytes(7 << 20), Failure.LIMIT_EXCEEDED),
    ],
    ids=["compressed", "with a content", "with an empty content", "too long"],
)
def test_a_detached_signature_is_only_that(tmp_path: Path, p7s: bytes, expected: Failure) -> None:
    """An attacker's content beside what is shown must not count."""
    assert refused(tmp_path, clear(p7s)) is expected
    assert judge(unseal(tmp_path, clear(opaque_signed(bare_signer(), inside=None)))).verified


@pytest.mark.parametrize("at", [0, 100_000, 400_001])
def test_base64_with_one_line_out_of_step_opens_all_the_same(tmp_path: Path, at: int) -> None:
    """A relay that broke one line anew: read the slow way, to the same bytes."""
    entity = ENTITY + bytes(range(256)) * 3000
    head, _, body = opaque(opaque_signed(bare_signer(entity), inside=entity)).partition(b"\r\n\r\n")
    body = body.replace(b"\n", b"\r\n")
    found = unseal(tmp_path, head + b"\r\n\r\n" + body[:at] + b" \r\n" + body[at:])
    assert content(found.content) == entity


def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    """Nothing is sealed that was not there."""
    place = span(tmp_path / "entity", ENTITY)
    longer = Span(place.path, place.start, place.end + 100)
    with pytest.raises(OSError, match="shorter"):
        sealed.seal(HEADER, longer, Protection(None, (pki.leaf().certificate,)), NOW, io.BytesIO())
