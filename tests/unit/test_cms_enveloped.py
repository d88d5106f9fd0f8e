"""AuthEnvelopedData with attributes that are authenticated too."""

from __future__ import annotations

import io

import pki
import pytest
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

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
