"""Protected messages to damage: a sound one of each form, and what must hold whatever becomes of them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import tempfile
import warnings
from pathlib import Path

import pki
import pybase64
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.utils import CryptographyDeprecationWarning
from pki import NOW

from gateway.core import unsealing
from gateway.core.cms import keyring, sealed, trust
from gateway.core.cms.failure import ProtectionError
from gateway.core.cms.sealed import Protection
from gateway.core.cms.signed import Identity
from gateway.core.cms.trust import Trust
from gateway.core.reader import Rules
from gateway.core.unsealing import Guard, Store
from gateway.errors import GatewayError
from gateway.model import Span
from tests import samples

HEADER = b"From: anna@clinic.test\r\nMIME-Version: 1.0\r\n"
ENVELOPED = b"Content-Type: application/pkcs7-mime; name=smime.p7m\r\nContent-Transfer-Encoding: base64\r\n\r\n"
RULES = Rules(parts=20, depth=4, header=4096, instance=1 << 20, unpacked=1 << 20, ratio=50)
LIMIT = 1 << 20
FILE = samples.dicom_file()
ENTITY = b"Content-Type: application/dicom\r\nContent-Transfer-Encoding: base64\r\n\r\n" + pybase64.encodebytes(
    FILE
).replace(b"\n", b"\r\n")


@functools.cache
def store() -> Store:
    """Our keys, the root, and a CRL that revokes nobody."""
    identities = tuple(
        (
            one.certificate.public_bytes(Encoding.PEM),
            one.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )
        for one in (pki.leaf(kind="P-256/us"), pki.leaf(kind="rsa-2048/us"))
    )
    crls = tuple(pki.revocations(one).public_bytes(Encoding.DER) for one in (pki.root(), pki.issuing()))
    return Store(identities, (pki.root().certificate.public_bytes(Encoding.DER),), (), crls)


@functools.cache
def messages() -> dict[str, bytes]:
    """A sound message of each form."""
    anna = pki.leaf(kind="P-256/anna")
    signer = Identity(anna.key, anna.certificate, (pki.issuing().certificate,))
    new, old = (keyring.identity(*pair).certificate for pair in store().identities)
    forms = {
        "signed": Protection(signer),
        "gcm": Protection(None, (new,)),
        "cbc": Protection(None, (old,), cbc=True),
        "signed and gcm": Protection(signer, (new, old)),
        "signed and cbc": Protection(signer, (old,), cbc=True),
    }
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        entity = Path(folder) / "entity"
        entity.write_bytes(ENTITY)
        for name, protection in forms.items():
            out = io.BytesIO()
            sealed.seal(HEADER, Span(entity, 0, len(ENTITY)), protection, NOW, out)
            made[name] = out.getvalue()
    return made


@functools.cache
def structures() -> dict[str, bytes]:
    """The CMS structures of those messages that are one, in DER."""
    return {
        name: pybase64.b64decode(message.partition(b"\r\n\r\n")[2])
        for name, message in messages().items()
        if name != "signed"
    }


@functools.cache
def papers() -> dict[str, bytes]:
    """Certificates and CRLs."""
    anna = pki.leaf(kind="P-256/anna").certificate
    return {
        "certificate": anna.public_bytes(Encoding.DER),
        "pem": anna.public_bytes(Encoding.PEM) + pki.issuing().certificate.public_bytes(Encoding.PEM),
        "crl": pki.revocations(pki.issuing(), anna).public_bytes(Encoding.DER),
    }


def open_message(message: bytes) -> bool:
    """Open and read a message, whatever it is; tell whether it was verified.

    Raises:
        AssertionError: It counts as signed and shows something that Anna did not sign, or was read without counting.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "layers").mkdir()
        path = folder / "message"
        path.write_bytes(message)
        guard = Guard(store(), "signed", "anna@clinic.test", (), None, NOW, LIMIT, folder / "layers")
        try:
            found = unsealing.read_protected(Span(path, 0, len(message)), RULES, guard, folder / "out")
        except GatewayError:
            return False
        if found.held is not None:
            assert found.reading == unsealing.UNREAD
            assert not found.verdict.verified
            return False
        assert found.verdict.verified
        assert {one.sha256 for one in found.reading.instances} <= {hashlib.sha256(FILE).hexdigest()}
        return True


def open_structure(der: bytes) -> bool:
    """The same for a CMS structure, in a message of its own."""
    return open_message(HEADER + ENVELOPED + pybase64.encodebytes(der))


def read_paper(block: bytes) -> None:
    """Read something that may be certificates or a CRL, and judge by it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        with contextlib.suppress(GatewayError):
            for one in keyring.certificates(block):
                trust.addresses(one)
                anchors = Trust((pki.root().certificate,), (pki.issuing().certificate,))
                with contextlib.suppress(ProtectionError):
                    trust.check(one, [one], anchors, NOW, "sign")
        with contextlib.suppress(GatewayError):
            crl = keyring.revocations(block)
            anna = pki.leaf(kind="P-256/anna").certificate
            with contextlib.suppress(ProtectionError):
                anchors = Trust((pki.root().certificate,), (pki.issuing().certificate,), (crl,))
                trust.check(anna, [], anchors, NOW, "sign")
