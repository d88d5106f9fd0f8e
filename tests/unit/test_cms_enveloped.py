"""AuthEnvelopedData with attributes that are authenticated too."""

from __future__ import annotations

import io

import pki
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, keywrap
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.core.cms import algorithms, ber, enveloped, signed
from gateway.core.cms.ber import Reader
from gateway.core.cms.enveloped import Key
from gateway.core.cms.failure import Failure, ProtectionError

US = pki.leaf(kind="rsa-2048/us")


def message(attributes: list[bytes], sent: list[bytes], tag: int = 16) -> bytes:
    """Encrypt ``hello`` for us; what is authenticated beside it and what is sent may differ."""
    secret, nonce = bytes(32), bytes(12)
    both = AESGCM(secret).encrypt(nonce, b"hello", ber.set_of(*attributes))
    info = ber.sequence(
        ber.number(0),
        signed.issuer_and_serial(US.certificate),
        algorithms.write(algorithms.RSA, ber.element(ber.NULL)),
        ber.octet_string(US.key.public_key().encrypt(secret, padding.PKCS1v15())),
    )
    parameters = ber.sequence(ber.octet_string(nonce), ber.number(tag))
    return ber.sequence(
        ber.number(0),
        ber.set_of(info),
        ber.sequence(
            ber.identifier(algorithms.DATA),
            algorithms.write(algorithms.AES256_GCM, parameters),
            ber.element(ber.context(0, constructed=False), both[:-16]),
        ),
        ber.element(ber.context(1), *sent),
        ber.octet_string(both[-16:][:tag]),
    )


def read(attributes: list[bytes], sent: list[bytes], tag: int = 16) -> bytes:
    """Open it."""
    out, made = io.BytesIO(), message(attributes, sent, tag)
    key = Key(US.key, US.certificate)
    enveloped.read(lambda: Reader(io.BytesIO(made).read), [key], out.write, authenticated=True)
    return out.getvalue()


ONE = ber.sequence(ber.identifier("1.2.3"), ber.set_of(ber.number(1)))
TWO = ber.sequence(ber.identifier("1.2.3"), ber.set_of(ber.number(2)))


@pytest.mark.parametrize("sent", [[ONE, TWO], [TWO, ONE]])
def test_attributes_behind_the_content_are_authenticated(sent: list[bytes]) -> None:
    """RFC 5083 §2.2: in the order of DER, and the plaintext is handed out once."""
    assert read([ONE, TWO], sent) == b"hello"


@pytest.mark.parametrize("tag", [0, 4, 11, 12])
def test_a_tag_that_is_short_or_wrong_is_refused(tag: int) -> None:
    """CVE-2026-34182; and attributes that were changed on the way."""
    with pytest.raises(ProtectionError) as caught:
        read([ONE], [TWO], tag)
    assert caught.value.code is Failure.DECRYPT_FAILED


# What a message may be made of

SECRET = bytes(range(32))
EC_US = pki.leaf(kind="P-256/us")


def transport(
    algorithm: bytes | None = None, encrypted: bytes | None = None, certificate: x509.Certificate = US.certificate
) -> bytes:
    """A KeyTransRecipientInfo; what is not said is as it should be."""
    if encrypted is None:
        encrypted = US.key.public_key().encrypt(SECRET, padding.PKCS1v15())
    return ber.sequence(
        ber.number(0),
        signed.issuer_and_serial(certificate),
        algorithm or algorithms.write(algorithms.RSA, ber.element(ber.NULL)),
        ber.octet_string(encrypted),
    )


def agreement(
    oid: str = algorithms.ECDH_SHA256,
    wrap: str = algorithms.AES256_WRAP,
    name: bytes | None = None,
    originator: int = ber.context(1),
) -> bytes:
    """A KeyAgreeRecipientInfo for our elliptic key."""
    mine = ec.generate_private_key(ec.SECP256R1())
    point = mine.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    wrapping = algorithms.write(wrap)
    information = ber.sequence(wrapping, ber.element(ber.context(2), ber.octet_string((256).to_bytes(4, "big"))))
    shared = mine.exchange(ec.ECDH(), EC_US.key.public_key())
    derive = HKDF(hashes.SHA256(), 32, None, information) if oid in algorithms.ECDH_HKDF else None
    derived = (derive or X963KDF(hashes.SHA256(), 32, information)).derive(shared)
    return ber.element(
        ber.context(1),
        ber.number(3),
        ber.element(
            ber.context(0),
            ber.element(originator, algorithms.write(algorithms.EC), ber.element(ber.BIT_STRING, b"\0" + point)),
        ),
        algorithms.write(oid, wrapping),
        ber.sequence(
            ber.sequence(
                name or signed.issuer_and_serial(EC_US.certificate),
                ber.octet_string(keywrap.aes_key_wrap(derived, SECRET)),
            )
        ),
    )


def encrypted_by_cbc(text: bytes = b"hello") -> bytes:
    """AES-256-CBC with the padding of CMS."""
    fill = 16 - len(text) % 16
    encryptor = Cipher(AES(SECRET), CBC(bytes(16))).encryptor()
    return encryptor.update(text + bytes([fill]) * fill)


def envelope(
    *infos: bytes,
    algorithm: bytes | None = None,
    content: bytes | None = None,
    kind: str = algorithms.DATA,
    front: bytes = b"",
    behind: bytes = b"",
) -> bytes:
    """An EnvelopedData with CBC."""
    if content is None:
        content = ber.element(ber.context(0, constructed=False), encrypted_by_cbc())
    return ber.sequence(
        ber.number(2),
        front,
        ber.element(ber.SET, *(infos or (transport(),))),
        ber.sequence(
            ber.identifier(kind),
            algorithm or algorithms.write(algorithms.AES256_CBC, ber.octet_string(bytes(16))),
            content,
        ),
        behind,
    )


def unlock(made: bytes, *, authenticated: bool = False) -> bytes:
    """Open one with a key of ours."""
    out = io.BytesIO()
    ours = [Key(US.key, US.certificate), Key(EC_US.key, EC_US.certificate)]
    enveloped.read(lambda: Reader(io.BytesIO(made).read), ours, out.write, authenticated=authenticated)
    return out.getvalue()


def refusal(made: bytes, *, authenticated: bool = False) -> Failure:
    """The code with which it is not opened."""
    with pytest.raises(ProtectionError) as caught:
        unlock(made, authenticated=authenticated)
    return caught.value.code


def oaep(public: rsa.RSAPublicKey, chosen: hashes.HashAlgorithm) -> bytes:
    """Encrypt by RSAES-OAEP with one digest throughout."""
    return public.encrypt(SECRET, padding.OAEP(padding.MGF1(chosen), chosen, None))


def oaep_algorithm(mask: str = algorithms.MGF1, source: bytes | None = None) -> bytes:
    """RSAES-OAEP with parameters of one's own."""
    hashed = algorithms.write(algorithms.SHA256)
    parts = [ber.element(ber.context(0), hashed), ber.element(ber.context(1), algorithms.write(mask, hashed))]
    if source is not None:
        parts.append(ber.element(ber.context(2), source))
    return algorithms.write(algorithms.RSA_OAEP, ber.sequence(*parts))


PIECES = ber.element(
    ber.context(0),
    *(ber.octet_string(encrypted_by_cbc(b"hello" * 9)[at : at + 5]) for at in range(0, 48, 5)),
)
BY_OAEP = oaep(US.key.public_key(), hashes.SHA256())
EMPTY_LABEL = algorithms.write(algorithms.P_SPECIFIED, ber.octet_string(b""))
ABSENT_LABEL = algorithms.write(algorithms.P_SPECIFIED)
OTHERWISE = ber.element(ber.context(3), ber.number(0))

GOOD = {
    "plain": envelope(),
    "originator": envelope(front=ber.element(ber.context(0))),
    "attributes that nothing protects": envelope(behind=ber.element(ber.context(1), ONE)),
    "a password beside": envelope(OTHERWISE, transport()),
    "oaep by default": envelope(
        transport(algorithms.write(algorithms.RSA_OAEP), oaep(US.key.public_key(), hashes.SHA1()))
    ),
    "oaep": envelope(transport(algorithms.write_oaep(), BY_OAEP)),
    "oaep with sha-1 by name": envelope(
        transport(algorithms.write_oaep("1.3.14.3.2.26"), oaep(US.key.public_key(), hashes.SHA1()))
    ),
    "oaep with an empty label": envelope(transport(oaep_algorithm(source=EMPTY_LABEL), BY_OAEP)),
    "oaep with an absent label": envelope(transport(oaep_algorithm(source=ABSENT_LABEL), BY_OAEP)),
    "elliptic": envelope(agreement()),
    "elliptic with hkdf": envelope(agreement(algorithms.ECDH_HKDF_SHA256)),
    "elliptic by key identifier": envelope(
        agreement(
            name=ber.element(ber.context(0), ber.octet_string(signed.key_identifier(EC_US.certificate))),
        )
    ),
}


@pytest.mark.parametrize("made", GOOD.values(), ids=GOOD.keys())
def test_every_honest_form_of_an_envelope_opens(made: bytes) -> None:
    """SMIME-3, SMIME-4: what OpenSSL, Bouncy Castle and Outlook write."""
    assert unlock(made) == b"hello"


def test_a_content_in_pieces_smaller_than_a_block_opens() -> None:
    """BER: a sender may cut anywhere."""
    assert unlock(envelope(content=PIECES)) == b"hello" * 9


GCM_WITHOUT = algorithms.write(algorithms.AES256_GCM)
SHORT = encrypted_by_cbc()[:-1]

BAD = {
    "too many recipients": (envelope(*[OTHERWISE] * 501), Failure.LIMIT_EXCEEDED),
    "another content type": (envelope(kind=algorithms.SIGNED_DATA), Failure.UNSUPPORTED_ALGORITHM),
    "another cipher": (envelope(algorithm=algorithms.write("1.2.3")), Failure.UNSUPPORTED_ALGORITHM),
    "gcm without authentication": (envelope(algorithm=GCM_WITHOUT), Failure.UNSUPPORTED_ALGORITHM),
    "cbc without a vector": (
        envelope(algorithm=algorithms.write(algorithms.AES256_CBC)),
        Failure.UNSUPPORTED_ALGORITHM,
    ),
    "a short vector": (
        envelope(algorithm=algorithms.write(algorithms.AES256_CBC, ber.octet_string(bytes(8)))),
        Failure.DECRYPT_FAILED,
    ),
    "not whole blocks": (
        envelope(content=ber.element(ber.context(0, constructed=False), SHORT)),
        Failure.DECRYPT_FAILED,
    ),
    "no content": (envelope(content=ber.element(ber.context(0, constructed=False))), Failure.DECRYPT_FAILED),
    "only a password": (envelope(OTHERWISE), Failure.NO_KEY_FOR_US),
    "unknown transport": (envelope(transport(algorithms.write("1.2.3"))), Failure.UNSUPPORTED_ALGORITHM),
    "a key of another length": (
        envelope(
            transport(
                algorithms.write_oaep(),
                US.key.public_key().encrypt(
                    bytes(16), padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
                ),
            )
        ),
        Failure.DECRYPT_FAILED,
    ),
    "transport to an elliptic key": (envelope(transport(certificate=EC_US.certificate)), Failure.DECRYPT_FAILED),
    "oaep with another mask": (envelope(transport(oaep_algorithm("1.2.3"), BY_OAEP)), Failure.UNSUPPORTED_ALGORITHM),
    "oaep with a label": (
        envelope(
            transport(oaep_algorithm(source=algorithms.write(algorithms.P_SPECIFIED, ber.octet_string(b"x"))), BY_OAEP)
        ),
        Failure.UNSUPPORTED_ALGORITHM,
    ),
    "unknown agreement": (envelope(agreement("1.2.3")), Failure.UNSUPPORTED_ALGORITHM),
    "unknown wrap": (envelope(agreement(wrap="1.2.3")), Failure.UNSUPPORTED_ALGORITHM),
    "agreement that is not ephemeral": (envelope(agreement(originator=ber.context(0))), Failure.UNSUPPORTED_ALGORITHM),
    "agreement to an rsa key": (
        envelope(agreement(name=signed.issuer_and_serial(US.certificate))),
        Failure.UNSUPPORTED_ALGORITHM,
    ),
    "agreement without an originator": (envelope(ber.element(ber.context(1), ber.number(3))), Failure.MALFORMED),
    "agreement cut short": (
        envelope(
            ber.element(
                ber.context(1),
                ber.number(3),
                ber.element(ber.context(0), ber.sequence()),
                ber.element(ber.context(1), ber.octet_string(b"")),
                algorithms.write(algorithms.ECDH_SHA256),
            )
        ),
        Failure.MALFORMED,
    ),
}


@pytest.mark.parametrize(("made", "expected"), BAD.values(), ids=BAD.keys())
def test_every_dishonest_form_of_an_envelope_has_its_code(made: bytes, expected: Failure) -> None:
    """The negative list: refused, and never with a plaintext that counts."""
    assert refusal(made) is expected


def test_an_authenticated_envelope_needs_gcm() -> None:
    """RFC 5084: CBC in its place would authenticate nothing."""
    assert refusal(envelope(), authenticated=True) is Failure.UNSUPPORTED_ALGORITHM
    assert refusal(envelope(algorithm=GCM_WITHOUT), authenticated=True) is Failure.UNSUPPORTED_ALGORITHM


def authenticated_envelope(tag: int = 16, behind: bytes = b"") -> bytes:
    """An AuthEnvelopedData whose tag may be cut."""
    both = AESGCM(SECRET).encrypt(bytes(12), b"hello", None)
    parameters = ber.sequence(ber.octet_string(bytes(12)), ber.number(16))
    content = ber.element(ber.context(0, constructed=False), both[:-16])
    algorithm = algorithms.write(algorithms.AES256_GCM, parameters)
    return envelope(algorithm=algorithm, content=content, behind=ber.octet_string(both[-16:][:tag]) + behind)


def test_attributes_that_nothing_authenticates_change_nothing() -> None:
    """RFC 5083 §2.1: unauthAttrs are read over; a tag shorter than announced is refused."""
    assert unlock(authenticated_envelope(behind=ber.element(ber.context(2), ONE)), authenticated=True) == b"hello"
    assert refusal(authenticated_envelope(12), authenticated=True) is Failure.DECRYPT_FAILED


# Sealing


def test_an_envelope_is_for_somebody_who_can_open_it() -> None:
    """R21: nobody, and a key that only signs, are errors before anything is written."""
    with pytest.raises(ProtectionError) as caught:
        enveloped.Envelope([], 5)
    assert caught.value.code is Failure.NO_KEY_FOR_US
    with pytest.raises(ProtectionError) as caught:
        enveloped.Envelope([pki.leaf(kind="Ed25519/us").certificate], 5)
    assert caught.value.code is Failure.UNSUPPORTED_ALGORITHM


def test_a_content_of_another_size_than_was_said_is_an_error() -> None:
    """R22: the size stands in front of the content."""
    with pytest.raises(ValueError, match="another size"):
        list(enveloped.Envelope([US.certificate], 5).seal([b"four"]))


def test_what_is_sealed_for_x25519_opens() -> None:
    """RFC 8418: with HKDF."""
    us = pki.leaf(kind="X25519/us")
    made = b"".join(bytes(one) for one in enveloped.Envelope([us.certificate], 5).seal([b"hello"]))
    inner, out = ber.parse(made).child(1).child(0).raw, io.BytesIO()
    key = Key(us.key, us.certificate)
    enveloped.read(lambda: Reader(io.BytesIO(inner).read), [key], out.write, authenticated=True)
    assert out.getvalue() == b"hello"
