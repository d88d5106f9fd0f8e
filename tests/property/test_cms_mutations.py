"""Sealed messages as an attacker changes them: refused, or exactly what was signed."""

from __future__ import annotations

import io
import random
import tempfile
from pathlib import Path

import pki
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pki import NOW

from gateway.core.cms import opened, sealed, verdict
from gateway.core.cms.enveloped import Key
from gateway.core.cms.failure import ProtectionError
from gateway.core.cms.sealed import Protection
from gateway.core.cms.signed import Identity
from gateway.core.cms.trust import Trust
from gateway.core.cms.verdict import Expected
from gateway.model import Span

HEADER = b"From: anna@clinic.test\r\nSubject: x\r\n"
ENTITY = (
    b"Content-Type: application/dicom\r\nContent-Transfer-Encoding: binary\r\n\r\n" + bytes(range(256)) * 3 + b"\r\n\n"
)
MUTATIONS = 1500


def _seal(folder: Path, entity: bytes, protection: Protection) -> bytes:
    path, out = folder / "entity", io.BytesIO()
    path.write_bytes(entity)
    sealed.seal(HEADER, Span(path, 0, len(entity)), protection, NOW, out)
    return out.getvalue()


def _open(folder: Path, message: bytes, key: Key) -> tuple[bytes, verdict.Verdict]:
    path = folder / "message"
    path.write_bytes(message)
    layers = folder / "layers"
    layers.mkdir(exist_ok=True)
    try:
        found = opened.open_message(Span(path, 0, len(message)), [key], (), layers, limit=1 << 20, now=NOW)
    except ProtectionError:
        assert not list(layers.iterdir())  # nothing of the plaintext stays
        raise
    span = found.content
    content = span.path.read_bytes()[span.start : span.end]
    judged = verdict.judge(found, Expected("anna@clinic.test"), Trust((pki.root().certificate,)), NOW)
    for one in layers.iterdir():
        one.unlink()
    return content, judged


def _identity() -> Identity:
    anna = pki.leaf(kind="P-256/anna")
    return Identity(anna.key, anna.certificate, (pki.issuing().certificate,))


@settings(max_examples=60, deadline=None)
@given(
    body=st.binary(max_size=3000),
    kinds=st.lists(st.sampled_from(["rsa-2048/a", "P-256/b", "P-384/c", "X25519/d"]), min_size=1, max_size=4),
    cbc=st.booleans(),
)
def test_any_entity_for_any_mix_of_recipients_comes_back(body: bytes, kinds: list[str], cbc: bool) -> None:
    """R21, R22: byte for byte, for each of them."""
    holders = [pki.leaf(kind=kind) for kind in kinds]
    protection = Protection(_identity(), tuple(one.certificate for one in holders), cbc)
    entity = b"Content-Type: application/dicom\r\n\r\n" + body
    with tempfile.TemporaryDirectory() as name:
        message = _seal(Path(name), entity, protection)
        for one in holders:
            content, judged = _open(Path(name), message, Key(one.key, one.certificate))
            assert content == entity
            assert judged.verified


@pytest.mark.parametrize("form", ["signed", "cbc", "gcm"])
def test_no_mutation_is_verified_with_other_bytes(tmp_path: Path, form: str) -> None:
    """Integrity: ProtectionError, not verified, or the very bytes that were signed. The seed is fixed."""
    us = pki.leaf(kind="P-256/us")
    to = () if form == "signed" else (us.certificate,)
    message = _seal(tmp_path, ENTITY, Protection(_identity(), to, form == "cbc"))
    dice = random.Random(form)
    verified = refused = 0
    for _ in range(MUTATIONS // 3):
        content, judged = b"", verdict.Verdict()
        try:
            content, judged = _open(tmp_path, _mutated(message, dice), Key(us.key, us.certificate))
        except ProtectionError:
            refused += 1
        if judged.verified:
            assert content == ENTITY
            verified += 1
    assert refused + verified > 0
    assert verified < MUTATIONS // 3


def _mutated(message: bytes, dice: random.Random) -> bytes:
    changed = bytearray(message)
    for _ in range(dice.randint(1, 3)):
        at, size = dice.randrange(len(changed)), dice.randint(1, 40)
        kind = dice.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del changed[at : at + size]
        elif kind == 2:
            changed[at:at] = changed[at : at + size]
        elif kind == 3:
            changed[at : at + size] = dice.randbytes(size)
        else:
            changed = changed.replace(b"\r\n", b"\n", dice.randint(1, 20))
    return bytes(changed)
