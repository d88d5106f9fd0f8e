"""Transfer encodings undone, as they should be written and as they are."""

from __future__ import annotations

import base64
import os
import random
from pathlib import Path

import pytest

from gateway.core import transfer

DATA = random.Random(1).randbytes(5000)  # a fixed sample


def decode(folder: Path, body: bytes, encoding: str = "base64") -> tuple[bytes, set[str]]:
    """Decode a body; return the content and what was noted."""
    path = folder / "body"
    path.write_bytes(b"head" + body + b"tail")
    file = os.open(path, os.O_RDONLY)
    noted: set[str] = set()
    try:
        return b"".join(transfer.decode(file, 4, 4 + len(body), encoding, noted)), noted
    finally:
        os.close(file)


def lines(data: bytes, width: int = 76, eol: bytes = b"\r\n") -> bytes:
    """Encode base64 in lines of a width."""
    text = base64.b64encode(data)
    return b"".join(text[at : at + width] + eol for at in range(0, len(text), width))


@pytest.fixture(params=[1 << 20, 1000, 100, 80])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Decode in blocks of several sizes: nothing may depend on where they end."""
    monkeypatch.setattr(transfer, "BLOCK", request.param)
    return int(request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("width", [76, 75, 64, 4, 1, 20_000])
@pytest.mark.parametrize("eol", [b"\r\n", b"\n"])
@pytest.mark.parametrize("size", [5000, 4999, 4998])
def test_base64_of_any_line_length_is_exact(tmp_path: Path, width: int, eol: bytes, size: int) -> None:
    """Also with lines that no quantum fits, or with a single one."""
    assert decode(tmp_path, lines(DATA[:size], width, eol)) == (DATA[:size], set())


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("end", [b"", b"\r\n", b"\r\n\r\n\r\n", b"  \t\r\n", b"\n\n"])
def test_what_is_behind_the_last_line_does_not_count(tmp_path: Path, end: bytes) -> None:
    """Empty lines, blanks, or no line end at all."""
    for size in (3000, 3001, 3002):
        assert decode(tmp_path, lines(DATA[:size]).rstrip() + end) == (DATA[:size], set())


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("strange", [b"*", b"\xa0", b"!\r\n", b"-"])
def test_strange_characters_are_dropped_with_a_note(tmp_path: Path, strange: bytes) -> None:
    """AMB-21: tolerant second."""
    body = lines(DATA)
    assert decode(tmp_path, body[:200] + strange + body[200:]) == (DATA, {"damaged-base64"})


@pytest.mark.usefixtures("block")
def test_padding_inside_ends_one_piece_and_begins_the_next(tmp_path: Path) -> None:
    """Programs that encode in pieces write this."""
    body = lines(DATA[:1000]) + lines(DATA[1000:1001]) + lines(DATA[1001:])
    assert decode(tmp_path, body) == (DATA, {"damaged-base64"})


@pytest.mark.usefixtures("block")
def test_missing_padding_is_noted(tmp_path: Path) -> None:
    """The content is whole all the same."""
    assert decode(tmp_path, lines(DATA[:4999]).rstrip(b"=\r\n")) == (DATA[:4999], {"damaged-base64"})


def test_a_cut_quantum_loses_its_last_character(tmp_path: Path) -> None:
    """One character is no byte."""
    assert decode(tmp_path, b"QUJDR") == (b"ABC", {"damaged-base64"})
    assert decode(tmp_path, b"QUJDR=QUJD") == (b"ABCABC", {"damaged-base64"})


def test_nothing_is_nothing(tmp_path: Path) -> None:
    """An empty body in each encoding."""
    for encoding in ("base64", "quoted-printable", "binary"):
        assert decode(tmp_path, b"", encoding) == (b"", set())


@pytest.mark.usefixtures("block")
def test_quoted_printable_is_exact(tmp_path: Path) -> None:
    """Soft line breaks, escapes, and line ends of the content itself."""
    assert decode(tmp_path, b"a=3Db=\r\n=0D=0A =20\r\n", "quoted-printable") == (b"a=b\r\n  \r\n", set())


@pytest.mark.usefixtures("block")
def test_damaged_quoted_printable_is_noted(tmp_path: Path) -> None:
    """An escape of nothing stays as it is written."""
    assert decode(tmp_path, b"a=ZZb\n", "quoted-printable") == (b"a=ZZb\n", {"damaged-quoted-printable"})


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("encoding", ["", "7bit", "8bit", "binary", "x-unknown"])
def test_every_other_encoding_is_the_bytes_themselves(tmp_path: Path, encoding: str) -> None:
    """RFC 2045 §6.4: an unknown one is octets."""
    assert decode(tmp_path, DATA, encoding) == (DATA, set())


def test_a_file_that_shrinks_ends_the_content(tmp_path: Path) -> None:
    """A range behind the end of a file gives what there is."""
    path = tmp_path / "short"
    path.write_bytes(b"QUJD")
    with path.open("rb") as file:
        for encoding in ("base64", "binary", "quoted-printable"):
            assert b"".join(transfer.decode(file.fileno(), 0, 100, encoding, set()))
