"""Pseudonyms: the same number finds the same item however it is typed, and nothing tells the number (PRV-2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core import pseudonym
from gateway.core.pseudonym import Identity
from gateway.errors import GatewayError
from gateway.ledger import pseudonyms

KEY = b"k" * pseudonym.KEY_BYTES


@pytest.mark.parametrize("typed", ["ab-4711", " AB-4711 ", "AB-47 11", "\uff21\uff22-4711", "AB-4711\0"])
def test_a_number_is_found_however_it_is_typed(typed: str) -> None:
    """Case, spaces, padding and the form of letters make no other number."""
    assert pseudonym.of_patient(KEY, typed) == pseudonym.of_patient(KEY, "AB-4711")


@pytest.mark.parametrize("other", ["AB-4712", "AB4711", "0AB-4711"])
def test_what_is_another_number_has_another_pseudonym(other: str) -> None:
    """Signs and leading zeros belong to a number."""
    assert pseudonym.of_patient(KEY, other) != pseudonym.of_patient(KEY, "AB-4711")


def test_a_pseudonym_depends_on_key_and_kind_and_shows_neither() -> None:
    """Nobody finds a number by trying all of them without the key, nor an accession number as a patient."""
    found = pseudonym.of_patient(KEY, "4711")
    assert found is not None
    assert len(found) == pseudonym.DIGITS
    assert "4711" not in found
    assert found != pseudonym.of_patient(KEY[:-1] + b"x", "4711")
    assert found != pseudonym.of_accession(KEY, "4711")


@pytest.mark.parametrize("nothing", ["", "  ", "\0"])
def test_an_empty_number_finds_nothing(nothing: str) -> None:
    """All instances without one would be one patient's."""
    assert pseudonym.of_patient(KEY, nothing) is None
    assert pseudonym.of_instance(KEY, Identity(nothing.encode(), b""), "A-") == ()


def test_an_instance_is_found_by_what_the_sender_and_by_what_the_pacs_knows() -> None:
    """The prefix of a route makes a second number of the same patient."""
    found = pseudonym.of_instance(KEY, Identity(b"4711", b"X1"), "A-")
    assert set(found) == {
        pseudonym.of_patient(KEY, "4711"),
        pseudonym.of_patient(KEY, "A-4711"),
        pseudonym.of_accession(KEY, "X1"),
    }


def test_without_a_key_nothing_is_kept() -> None:
    """A dry run has none."""
    assert pseudonym.of_instance(b"", Identity(b"4711", b"X1")) == ()


def test_letters_are_read_in_their_character_set() -> None:
    """The same letters in two sets are the same number; what cannot be read is at least the same each time."""
    latin = Identity("Ä1".encode("latin-1"), b"", b"ISO_IR 100")
    utf8 = Identity("Ä1".encode(), b"", b"ISO_IR 192")
    unknown = Identity(b"\xc4\x31", b"", b"ISO_IR 999")
    assert pseudonym.of_instance(KEY, latin) == pseudonym.of_instance(KEY, utf8) == (pseudonym.of_patient(KEY, "ä1"),)
    assert pseudonym.of_instance(KEY, unknown) == pseudonym.of_instance(KEY, unknown) != ()


def test_a_key_is_made_once_and_is_nobody_elses_to_read(tmp_path: Path) -> None:
    """What was written with it is found after the next start (PRV-4)."""
    assert pseudonyms.read_key(tmp_path) is None
    (tmp_path / "search.new").write_bytes(b"half")  # of a start that was cut off
    key = pseudonyms.make_key(tmp_path)
    assert len(key) == pseudonym.KEY_BYTES
    assert pseudonyms.make_key(tmp_path) == pseudonyms.read_key(tmp_path) == key
    assert [(path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == [(pseudonyms.KEY, 0o600)]


def test_a_broken_key_is_never_replaced_in_silence(tmp_path: Path) -> None:
    """With another one nothing of the past would be found, and nobody would know why."""
    (tmp_path / pseudonyms.KEY).write_bytes(b"short")
    with pytest.raises(GatewayError, match="is no key: it has 5 bytes"):
        pseudonyms.make_key(tmp_path)
    (tmp_path / pseudonyms.KEY).unlink()
    (tmp_path / pseudonyms.KEY).mkdir()
    with pytest.raises(GatewayError, match="cannot be read: Is a directory"):
        pseudonyms.read_key(tmp_path)


def test_a_folder_that_takes_no_key_is_one_clear_line(tmp_path: Path) -> None:
    """The gateway does not run without one."""
    with pytest.raises(GatewayError, match="cannot be made: No such file or directory"):
        pseudonyms.make_key(tmp_path / "nowhere")
