"""A protected message on its way to the reader: only what was vouched for is read."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pki
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from pki import NOW

from gateway.core import letter, unsealing
from gateway.core.cms import sealed
from gateway.core.cms.failure import Failure
from gateway.core.cms.sealed import Protection
from gateway.core.cms.signed import Identity
from gateway.core.directory import FileSet, Member, describe
from gateway.core.letter import Letter
from gateway.core.reader import Rules
from gateway.core.unsealing import UNREAD, Guard, Store, Unsealed
from gateway.model import Span
from tests.samples import CT, EXPLICIT, dicom_file, meta

RULES = Rules(parts=100, depth=8, header=1 << 16, instance=1 << 20, unpacked=1 << 20, ratio=100)
HEADER = b"From: anna@clinic.test\r\nMIME-Version: 1.0\r\n"
ENTITY = b"Content-Type: text/plain\r\n\r\nhello\r\n"


def signed(folder: Path) -> bytes:
    """A message that Anna signed."""
    anna = pki.leaf()
    entity = folder / "entity"
    entity.write_bytes(ENTITY)
    out = io.BytesIO()
    signer = Identity(anna.key, anna.certificate, (pki.issuing().certificate,))
    sealed.seal(HEADER, Span(entity, 0, len(ENTITY)), Protection(signer), NOW, out)
    return out.getvalue()


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    """A hospital that trusts the root and asks for a signature."""
    (tmp_path / "layers").mkdir()
    store = Store(anchors=(pki.root().certificate.public_bytes(Encoding.DER),))
    return Guard(store, "signed", "anna@clinic.test", (), None, NOW, 1 << 20, tmp_path / "layers")


def unseal(folder: Path, message: bytes, guard: Guard) -> Unsealed:
    """Read a message."""
    path = folder / "message"
    path.write_bytes(message)
    return unsealing.read_protected(Span(path, 0, len(message)), RULES, guard, folder / "out")


def test_what_was_signed_is_read(tmp_path: Path, guard: Guard) -> None:
    """R21's other side: the verdict goes with it, for the item's story."""
    found = unseal(tmp_path, signed(tmp_path), guard)
    assert found.held is None
    assert found.verdict.verified
    assert found.reading.kind == "other"
    assert [one.type for one in found.reading.other_parts] == ["text/plain"]
    assert unsealing.document(found.verdict)["code"] is None


def test_a_pin_that_cannot_be_read_trusts_nobody(tmp_path: Path, guard: Guard) -> None:
    """Never the weaker rule because a file is broken: the good signature of another certificate does not count."""
    found = unseal(tmp_path, signed(tmp_path), replace(guard, pinned=b""))
    assert found.reading == UNREAD
    assert found.held is Failure.UNTRUSTED_ISSUER
    assert unsealing.document(found.verdict)["code"] == "untrusted-issuer"


def test_a_footer_around_a_signed_message_is_named(tmp_path: Path, guard: Guard) -> None:
    """A relay or a list that wraps what was signed: the reason tells what to look for, and nothing is read."""
    inner = signed(tmp_path).removeprefix(HEADER)
    wrapped = HEADER + b"Content-Type: multipart/mixed; boundary=w\r\n\r\n--w\r\n" + inner + b"\r\n--w--\r\n"
    found = unseal(tmp_path, wrapped, guard)
    assert (found.reading, found.held) == (UNREAD, Failure.SIGNED_PART_NOT_ROOT)
    bare = unseal(tmp_path, HEADER + ENTITY, guard)
    assert (bare.reading, bare.held) == (UNREAD, Failure.NOT_SIGNED)
    assert unseal(tmp_path, HEADER + ENTITY, replace(guard, accept="any")).held is None


@pytest.mark.parametrize(("outside", "held"), [("anna", None), ("eve", Failure.SENDER_ADDRESS_MISMATCH)])
def test_a_sender_that_was_changed_on_the_way_is_seen_also_when_the_certificate_is_pinned(
    tmp_path: Path, guard: Guard, outside: str, held: Failure | None
) -> None:
    """RFC 9788: what our own letters say of their sender is signed with them; a pin alone binds no address."""
    anna, name = pki.leaf(), f"{outside}@clinic.test"
    one = Letter("anna@clinic.test", ("pacs@gw.test",), "<1@clinic.test>", NOW, protected="clear")
    image, entity, head, out = tmp_path / "image", tmp_path / "entity", io.BytesIO(), io.BytesIO()
    image.write_bytes(dicom_file())
    member = Member(CT, "1.2.3.4", "1.2.3", "1.2.3.1", EXPLICIT, Span(image, 0, len(dicom_file())), 132 + len(meta()))
    files = FileSet((describe(member),))
    with entity.open("wb") as file:
        letter.write_entity(files, one, file)
    letter.write_header(one, head)
    header = head.getvalue().replace(b"From: anna@", f"From: {outside}@".encode())
    protection = Protection(Identity(anna.key, anna.certificate, (pki.issuing().certificate,)))
    sealed.seal(header, Span(entity, 0, entity.stat().st_size), protection, NOW, out)
    der = anna.certificate.public_bytes(Encoding.DER)
    assert unseal(tmp_path, out.getvalue(), replace(guard, sender=name, pinned=der)).held is held
