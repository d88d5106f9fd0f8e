"""EnvelopedData (RFC 5652 §6) and AuthEnvelopedData (RFC 5083): what only its recipients can read.

Whatever goes wrong while a message is opened has one code and one text: who sends broken messages to learn from our
answers must learn nothing (SMIME-29). The plaintext of GCM counts only when its tag was checked; until then whoever
takes it must not look at it.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, x25519
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, GCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF

from gateway.core.cms import algorithms, ber
from gateway.core.cms.algorithms import Algorithm, PrivateKey
from gateway.core.cms.ber import BLOCK, Node, Reader
from gateway.core.cms.failure import Failure, ProtectionError, exceeded, malformed, unsupported
from gateway.core.cms.signed import Name, issuer_and_serial
from gateway.core.data import Block as Buffer

RECIPIENTS: Final = 500
"""Recipients that one message may have."""

TAG: Final = 16
"""Bytes of the GCM tags that we write."""

TAG_LEAST: Final = 12
"""Bytes of the shortest GCM tag that we take (CVE-2026-34182: shorter ones can be guessed)."""

_AES_BLOCK: Final = 16
_UNWRAPPED: Final = ber.context(0, constructed=False)


@dataclass(frozen=True, slots=True)
class Key:
    """A key of ours that opens messages.

    Attributes:
        key: The private key.
        certificate: Its certificate.
    """

    key: PrivateKey
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class Enveloped:
    """What was learned of a message that was opened.

    Attributes:
        authenticated: By GCM; the content of CBC is worth nothing without a good signature inside.
        certificate: Ours, whose key opened it.
    """

    authenticated: bool
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class _Head:
    """What was read of a message in front of its content."""

    recipients: tuple[Node, ...]
    algorithm: Algorithm
    length: int


# Opening


def read(
    rewind: Callable[[], Reader], keys: Sequence[Key], sink: Callable[[Buffer], object], *, authenticated: bool
) -> Enveloped:
    """Open an EnvelopedData or AuthEnvelopedData, from its SEQUENCE on.

    Args:
        rewind: Gives a reader that stands before it; called twice when attributes behind the content are authenticated.
        keys: Ours.
        sink: Gets the plaintext. It counts only when this function returns.
        authenticated: It is an AuthEnvelopedData.

    Raises:
        ProtectionError: ``no-key-for-us``, ``decrypt-failed``, or it cannot be read.
    """
    reader = rewind()
    head = _open(reader)
    key, certificate = _content_key(head.recipients, keys, head.length)
    if not authenticated:
        _read_cbc(reader, head.algorithm, key, sink)
    elif extra := _read_gcm(reader, head.algorithm, key, b"", sink):
        # They come behind the content and count before it: only the tag is made anew, the plaintext stays the same.
        reader = rewind()
        _open(reader)
        _read_gcm(reader, head.algorithm, key, extra, lambda _: None)
    return Enveloped(authenticated, certificate)


def _open(reader: Reader) -> _Head:
    """Read up to the content."""
    reader.enter(ber.SEQUENCE)
    reader.node(ber.INTEGER)
    if reader.peek() == ber.context(0):
        reader.node()  # the originator's certificates help nobody here
    recipients = reader.node(ber.SET).children()
    if len(recipients) > RECIPIENTS:
        exceeded("it has too many recipients")
    reader.enter(ber.SEQUENCE)
    if ber.oid(reader.node(ber.OBJECT_IDENTIFIER)) != algorithms.DATA:
        unsupported("it holds something else than an entity")
    algorithm = Algorithm.read(reader.node(ber.SEQUENCE))
    length = algorithms.CBC.get(algorithm.oid) or algorithms.GCM.get(algorithm.oid)
    if length is None:
        unsupported(f"the content encryption algorithm {algorithm.oid} is not supported")
    return _Head(recipients, algorithm, length)


def _read_gcm(
    reader: Reader, algorithm: Algorithm, key: bytes, extra: bytes, sink: Callable[[Buffer], object]
) -> bytes:
    """Decrypt; return the attributes that are authenticated too, of which the tag was not checked yet.

    Args:
        reader: Stands before the content.
        algorithm: Of the content.
        key: Its key.
        extra: What is authenticated beside the content, as a former pass found it.
        sink: Gets the plaintext.
    """
    if algorithm.oid not in algorithms.GCM or algorithm.parameters is None:
        unsupported("its content encryption does not authenticate")
    parameters = algorithm.parameters.children()
    nonce = ber.octets(parameters[0]) if parameters else b""
    length = ber.integer(parameters[1]) if len(parameters) > 1 else TAG_LEAST
    if not TAG_LEAST <= length <= TAG or not 8 <= len(nonce) <= 64:
        raise _failed()
    decryptor = Cipher(AES(key), GCM(nonce, min_tag_length=TAG_LEAST)).decryptor()
    if extra:
        decryptor.authenticate_additional_data(extra)
    plain = memoryview(bytearray(BLOCK + _AES_BLOCK))
    for block in reader.octets(_UNWRAPPED):
        sink(plain[: decryptor.update_into(block, plain)])
    reader.leave()
    # With the tag of the SET that they are, in the order of DER (RFC 5083 §2.2).
    found = ber.set_of(*(one.raw for one in reader.node().children())) if reader.peek() == ber.context(1) else b""
    tag = ber.octets(reader.node())
    if reader.peek() == ber.context(2):
        reader.node()
    reader.leave()
    if len(tag) != length:
        raise _failed()
    if found != extra:
        return found
    try:
        decryptor.finalize_with_tag(tag)
    except (InvalidTag, ValueError):
        raise _failed() from None
    return b""


def _read_cbc(reader: Reader, algorithm: Algorithm, key: bytes, sink: Callable[[Buffer], object]) -> None:
    if algorithm.oid not in algorithms.CBC or algorithm.parameters is None:
        unsupported("its content encryption needs AuthEnvelopedData")
    vector = ber.octets(algorithm.parameters)
    if len(vector) != _AES_BLOCK:
        raise _failed()
    decryptor = Cipher(AES(key), CBC(vector)).decryptor()
    plain = memoryview(bytearray(BLOCK + 2 * _AES_BLOCK))
    held = 0  # bytes at its beginning: the last block, which may be padding
    for block in reader.octets(_UNWRAPPED):
        size = held + decryptor.update_into(block, plain[held:])
        if size > held:
            sink(plain[: size - _AES_BLOCK])
            plain[:_AES_BLOCK] = plain[size - _AES_BLOCK : size]
            held = _AES_BLOCK
    reader.leave()
    if reader.peek() == ber.context(1):
        reader.node()
    reader.leave()
    try:
        decryptor.finalize()
    except ValueError:
        raise _failed() from None
    sink(_without_padding(bytes(plain[:held])))


def _without_padding(last: bytes) -> bytes:
    """Take the padding off the last block (RFC 5652 §6.3)."""
    size = last[-1] if last else 0
    if not 1 <= size <= len(last) <= _AES_BLOCK or not hmac.compare_digest(last[-size:], bytes([size]) * size):
        raise _failed()
    return last[:-size]


def _failed() -> ProtectionError:
    return ProtectionError(Failure.DECRYPT_FAILED, "it cannot be decrypted")


# The content-encryption key


def _content_key(recipients: Sequence[Node], keys: Sequence[Key], length: int) -> tuple[bytes, x509.Certificate]:
    """Get the key out of the first RecipientInfo that names a certificate of ours (RFC 5652 §6.2)."""
    failed = False
    for info in recipients:
        for name, unlock in _recipients(info):
            for ours in keys:
                if not name.matches(ours.certificate):
                    continue
                try:
                    key = unlock(ours.key, length)
                except (ValueError, keywrap.InvalidUnwrap, UnsupportedAlgorithm, TypeError):
                    failed = True
                    continue
                if len(key) == length:
                    return key, ours.certificate
                failed = True
    if failed:
        raise _failed()
    raise ProtectionError(Failure.NO_KEY_FOR_US, "it is encrypted for others, not for a certificate of ours")


_Unlock = Callable[[PrivateKey, int], bytes]


def _recipients(info: Node) -> Iterator[tuple[Name, _Unlock]]:
    if info.tag == ber.SEQUENCE:
        yield _transport(info)
    elif info.tag == ber.context(1):
        yield from _agreements(info)
    # Passwords and keys that were agreed on elsewhere are not ours.


def _transport(info: Node) -> tuple[Name, _Unlock]:
    """KeyTransRecipientInfo (RFC 5652 §6.2.1)."""
    name, algorithm = Name.read(info.child(1)), Algorithm.read(info.child(2))
    encrypted = ber.octets(info.child(3))

    def unlock(key: PrivateKey, length: int) -> bytes:
        if not isinstance(key, rsa.RSAPrivateKey):
            raise TypeError
        if algorithm.oid == algorithms.RSA_OAEP:
            return key.decrypt(encrypted, algorithms.oaep(algorithm))
        if algorithm.oid != algorithms.RSA:
            unsupported("its key encryption algorithm is not supported")
        # A wrong padding gives a random key (implicit rejection), and that must look the same (Bleichenbacher).
        found = key.decrypt(encrypted, padding.PKCS1v15())
        return found if len(found) == length else os.urandom(length)

    return name, unlock


def _agreements(info: Node) -> Iterator[tuple[Name, _Unlock]]:
    """KeyAgreeRecipientInfo with an ephemeral key (RFC 5652 §6.2.2, RFC 5753 §3.1)."""
    parts = list(info.children()[1:])
    if len(parts) < 3 or parts[0].tag != ber.context(0):
        malformed("a recipient cannot be read")
    originator = parts.pop(0).child(0)
    material = ber.octets(parts.pop(0).child(0)) if parts[0].tag == ber.context(1) else None
    if len(parts) < 2:
        malformed("a recipient cannot be read")
    algorithm = Algorithm.read(parts[0])
    for one in parts[1].children():
        name, wrapped = _agreed_name(one.child(0)), ber.octets(one.child(1))

        def unlock(key: PrivateKey, _: int, wrapped: bytes = wrapped) -> bytes:
            return _unwrap(key, originator, material, algorithm, wrapped)

        yield name, unlock


def _agreed_name(node: Node) -> Name:
    if node.tag == ber.context(0):
        return Name(b"", 0, ber.octets(node.child(0)))  # RecipientKeyIdentifier
    return Name.read(node)


def _unwrap(key: PrivateKey, originator: Node, material: bytes | None, algorithm: Algorithm, wrapped: bytes) -> bytes:
    digest = algorithms.ECDH.get(algorithm.oid) or algorithms.ECDH_HKDF.get(algorithm.oid)
    if digest is None or algorithm.parameters is None:
        unsupported("its key agreement algorithm is not supported")
    if originator.tag != ber.context(1):
        unsupported("its key agreement is not ephemeral")
    wrap = Algorithm.read(algorithm.parameters)
    if wrap.oid not in algorithms.KEY_WRAPS:
        unsupported("its key wrap algorithm is not supported")
    shared = _agree(key, originator.child(1, ber.BIT_STRING).body[1:])
    chosen = hashes.SHA1() if digest not in algorithms.DIGESTS else algorithms.DIGESTS[digest]()  # noqa: S303  a KDF
    length = algorithms.KEY_WRAPS[wrap.oid]
    information = _shared_information(algorithm.parameters.raw, material, length)
    if algorithm.oid in algorithms.ECDH_HKDF:
        return keywrap.aes_key_unwrap(HKDF(chosen, length, None, information).derive(shared), wrapped)
    return keywrap.aes_key_unwrap(X963KDF(chosen, length, information).derive(shared), wrapped)


def _agree(key: PrivateKey, point: bytes) -> bytes:
    if isinstance(key, x25519.X25519PrivateKey):
        return key.exchange(x25519.X25519PublicKey.from_public_bytes(point))
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(key.curve, point))
    return unsupported("its recipient has a key that does not agree")


def _shared_information(wrap: bytes, material: bytes | None, length: int) -> bytes:
    """ECC-CMS-SharedInfo (RFC 5753 §7.2)."""
    entity = b"" if material is None else ber.element(ber.context(0), ber.octet_string(material))
    bits = ber.element(ber.context(2), ber.octet_string((8 * length).to_bytes(4, "big")))
    return ber.sequence(wrap, entity, bits)


# Sealing


class Envelope:
    """A message about to be encrypted: its size is known before its content is touched (R22).

    Args:
        certificates: Of everybody who shall open it, ourselves included (SMIME-14).
        size: Bytes of the content.
        cbc: EnvelopedData with AES-256-CBC instead of AuthEnvelopedData with AES-256-GCM.
        oaep: Encrypt the key for RSA certificates by RSAES-OAEP; else by PKCS #1 v1.5.

    Raises:
        ProtectionError: A certificate cannot be encrypted to.
    """

    def __init__(
        self, certificates: Sequence[x509.Certificate], size: int, *, cbc: bool = False, oaep: bool = True
    ) -> None:
        self._key = os.urandom(32)
        self._cbc = cbc
        self._content = size
        infos = [_recipient_info(one, self._key, oaep=oaep) for one in certificates]
        if not infos:
            raise ProtectionError(Failure.NO_KEY_FOR_US, "nobody to encrypt for")
        agreed = any(info[0] == ber.context(1) for info in infos)
        encrypted = size // _AES_BLOCK * _AES_BLOCK + _AES_BLOCK if cbc else size
        self._nonce = os.urandom(_AES_BLOCK if cbc else 12)
        parameters = ber.octet_string(self._nonce)
        if not cbc:
            parameters = ber.sequence(parameters, ber.number(TAG))
        algorithm = algorithms.write(algorithms.AES256_CBC if cbc else algorithms.AES256_GCM, parameters)
        inner = ber.identifier(algorithms.DATA) + algorithm + ber.header(_UNWRAPPED, encrypted)
        version = ber.number(2 if agreed else 0) if cbc else ber.number(0)
        head = version + ber.set_of(*infos) + ber.header(ber.SEQUENCE, len(inner) + encrypted) + inner
        behind = 0 if cbc else len(ber.octet_string(bytes(TAG)))
        oid = ber.identifier(algorithms.ENVELOPED_DATA if cbc else algorithms.AUTH_ENVELOPED_DATA)
        for tag in (ber.SEQUENCE, ber.context(0)):
            head = ber.header(tag, len(head) + encrypted + behind) + head
        head = oid + head
        self._head = ber.header(ber.SEQUENCE, len(head) + encrypted + behind) + head
        self.size = len(self._head) + encrypted + behind
        """Bytes of the whole ContentInfo."""

    def seal(self, content: Iterable[bytes]) -> Iterator[Buffer]:
        """Encrypt the content; each block that comes out is gone when the next one is asked for.

        Raises:
            ValueError: The content has another size than was said.
        """
        yield self._head
        mode = CBC(self._nonce) if self._cbc else GCM(self._nonce)
        encryptor = Cipher(AES(self._key), mode).encryptor()
        left = self._content
        room = memoryview(bytearray())
        for block in content:
            left -= len(block)
            if len(room) < len(block) + _AES_BLOCK:
                room = memoryview(bytearray(len(block) + _AES_BLOCK))
            yield room[: encryptor.update_into(block, room)]
        if left:
            raise ValueError("the content has another size than was said")
        if self._cbc:
            fill = _AES_BLOCK - self._content % _AES_BLOCK
            yield encryptor.update(bytes([fill]) * fill) + encryptor.finalize()
        else:
            yield encryptor.finalize() + ber.octet_string(_tag(encryptor))


def _tag(encryptor: object) -> bytes:
    tag = getattr(encryptor, "tag")  # noqa: B009  the type of an encryptor does not tell its mode
    assert isinstance(tag, bytes)
    return tag


def _recipient_info(certificate: x509.Certificate, key: bytes, *, oaep: bool) -> bytes:
    public = algorithms.demand_strength(certificate.public_key())
    if isinstance(public, rsa.RSAPublicKey):
        scheme = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
        algorithm = algorithms.write_oaep() if oaep else algorithms.write(algorithms.RSA, ber.element(ber.NULL))
        encrypted = public.encrypt(key, scheme if oaep else padding.PKCS1v15())
        return ber.sequence(ber.number(0), issuer_and_serial(certificate), algorithm, ber.octet_string(encrypted))
    wrap = algorithms.write(algorithms.AES256_WRAP)
    information = _shared_information(wrap, None, 32)
    if isinstance(public, x25519.X25519PublicKey):
        mine = x25519.X25519PrivateKey.generate()
        secret = HKDF(hashes.SHA256(), 32, None, information).derive(mine.exchange(public))
        point = mine.public_key().public_bytes_raw()
        kind, agreement = algorithms.X25519, algorithms.ECDH_HKDF_SHA256
    elif isinstance(public, ec.EllipticCurvePublicKey):
        ephemeral = ec.generate_private_key(public.curve)
        secret = X963KDF(hashes.SHA256(), 32, information).derive(ephemeral.exchange(ec.ECDH(), public))
        encoding, form = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        point = ephemeral.public_key().public_bytes(encoding, form)
        kind, agreement = algorithms.EC, algorithms.ECDH_SHA256
    else:
        unsupported("a key that only signs cannot be encrypted to")
    return _agreed_info(certificate, kind, point, algorithms.write(agreement, wrap), keywrap.aes_key_wrap(secret, key))


def _agreed_info(certificate: x509.Certificate, kind: str, point: bytes, agreement: bytes, wrapped: bytes) -> bytes:
    """A KeyAgreeRecipientInfo with an ephemeral key for one recipient (RFC 5753 §3.1.1)."""
    originator = ber.element(ber.context(1), algorithms.write(kind), ber.element(ber.BIT_STRING, b"\0" + point))
    return ber.element(
        ber.context(1),
        ber.number(3),
        ber.element(ber.context(0), originator),
        agreement,
        ber.sequence(ber.sequence(issuer_and_serial(certificate), ber.octet_string(wrapped))),
    )
