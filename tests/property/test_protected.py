"""S/MIME that was damaged anywhere: the fuzzer's invariants, with a fixed seed."""

from __future__ import annotations

import random

import pytest

from tests import protected

ROUNDS = 2000
"""Damaged messages of each form: half a minute for all of them."""


def damage(content: bytes, dice: random.Random) -> bytes:
    """Flip, put in, take out or repeat a few bytes."""
    data = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        at = dice.randrange(len(data) + 1)
        length = dice.choice((1, 1, 2, 8, 200))
        match dice.randrange(5):
            case 0:
                data[at : at + 1] = bytes((dice.randrange(256),))
            case 1:
                data[at:at] = dice.randbytes(length)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case _:
                data[at:] = b""
    return bytes(data)


@pytest.mark.parametrize("form", sorted(protected.messages()))
def test_a_sound_message_is_believed_when_anna_signed_it(form: str) -> None:
    """What is damaged below is good before."""
    assert protected.open_message(protected.messages()[form]) is ("signed" in form)


@pytest.mark.parametrize("form", sorted(protected.messages()))
def test_a_message_that_is_damaged_anywhere_shows_nothing_that_nobody_signed(form: str) -> None:
    """It is opened and read as it was signed, or it has a code, and nothing of it is read."""
    dice = random.Random(f"message {form}")
    for _ in range(ROUNDS):
        protected.open_message(damage(protected.messages()[form], dice))


@pytest.mark.parametrize("form", sorted(protected.structures()))
def test_a_structure_that_is_damaged_anywhere_shows_nothing_that_nobody_signed(form: str) -> None:
    """Below the base64, where the lengths and the algorithms are."""
    dice = random.Random(f"structure {form}")
    for _ in range(ROUNDS):
        protected.open_structure(damage(protected.structures()[form], dice))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("paper", sorted(protected.papers()))
def test_a_certificate_or_crl_that_is_damaged_anywhere_is_an_error_in_words(paper: str) -> None:
    """Whatever lies in the folders: it is read, or it is said what is wrong."""
    dice = random.Random(f"paper {paper}")
    for _ in range(ROUNDS):
        protected.read_paper(damage(protected.papers()[paper], dice))
