"""Fragments joined again: headers merged, seams mended, no byte of the content lost."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from gateway.core.partial import join, merge
from gateway.errors import GatewayError
from gateway.model import Span
from tests.samples import content, corpus, data_set, dicom_file, element, mail, part, reading

FILE = dicom_file(data_set(more=element(0x7FE00010, "OW", bytes(range(256)) * 20)))
OUTER = (
    "Received: from x\r\nFrom: a@clinic.example\r\nTo: b@example\r\nSubject: part {n}\r\nMessage-ID: <{n}@x>\r\n"
    "MIME-Version: 1.0\r\nDisposition-Notification-To: outer@example\r\n"
    "Content-Type: message/partial; id=x; number={n}; total={total}\r\n\r\n"
)
INNER = (
    "Message-ID: <inner@x>\r\nDate: dropped\r\nSubject: whole\r\n folded\r\n"
    "Disposition-Notification-To: inner@example\r\nX-TELEMEDICINE-SETID: 7\r\n"
)


def joined(folder: Path, *messages: bytes, limit: int = 10_000) -> bytes:
    """Join messages given as bytes."""
    spans = []
    for number, message in enumerate(messages):
        path = folder / f"fragment{number}"
        path.write_bytes(b"xx" + message + b"yy")
        spans.append(Span(path, 2, 2 + len(message)))
    with (folder / "joined").open("w+b") as out:
        span = join(spans, limit, out)
    return content(span)


def cut(message: bytes, pieces: int) -> list[bytes]:
    """Cut a message at line ends."""
    lines = message.splitlines(keepends=True)
    size = -(-len(lines) // pieces)
    bodies = [b"".join(lines[at : at + size]) for at in range(0, len(lines), size)]
    return [OUTER.format(n=n, total=len(bodies)).encode() + body for n, body in enumerate(bodies, 1)]


WHOLE = INNER.encode() + mail(part(FILE), part(FILE)).partition(b"\r\n")[2]


@pytest.mark.parametrize("pieces", [1, 2, 3, 5])
def test_a_message_that_was_cut_is_whole_again(tmp_path: Path, pieces: int) -> None:
    """Its instances come out byte for byte."""
    message = joined(tmp_path, *cut(WHOLE, pieces))
    assert message.endswith(WHOLE.partition(b"\r\n\r\n")[2])
    result = reading(tmp_path, message)
    assert [content(instance.file) for instance in result.instances] == [FILE, FILE]


def test_headers_are_merged_by_the_rule() -> None:
    """RFC 2046 §5.2.2.1 (2) to (4), RFC 8098 §2.4, and @GIT fields (PRT-3 to PRT-5)."""
    outer = OUTER.format(n=1, total=2).encode()
    assert merge(outer, INNER.encode() + b"Content-Type: text/plain\r\n").decode() == (
        "Received: from x\r\nFrom: a@clinic.example\r\nTo: b@example\r\n"
        "Message-ID: <inner@x>\r\nSubject: whole\r\n folded\r\nDisposition-Notification-To: inner@example\r\n"
        "X-TELEMEDICINE-SETID: 7\r\nContent-Type: text/plain\r\n\r\n"
    )


@pytest.mark.parametrize("end", [b"\r", b"\r\r\n", b"\r\n", b""])
def test_one_line_end_lies_at_each_seam(tmp_path: Path, end: bytes) -> None:
    """PRT-9: a sender that cuts at LF and drops it, and relays that mend it in their way."""
    first, second = (OUTER.format(n=n, total=2).encode() for n in (1, 2))
    message = joined(tmp_path, first + b"\r\nline one" + end, second + b"line two\r")
    assert message.endswith(b"\r\n\r\nline one\r\nline two\r")


def test_line_feeds_stay_line_feeds(tmp_path: Path) -> None:
    """A seam that has its line end is left alone; an empty fragment adds none."""
    message = joined(tmp_path, b"From: a\n\nSubject: x\n\none\n", b"From: a\n\n", b"From: a\n\ntwo\n")
    assert message == b"From: a\r\nSubject: x\r\n\r\none\ntwo\n"


def test_a_cut_inside_the_header_of_the_whole_is_mended(tmp_path: Path) -> None:
    """At any of its lines, also the empty one, and in more than one place (PRT-2)."""
    head, _, body = WHOLE.partition(b"\r\n\r\n")
    lines = [*(head + b"\r\n").splitlines(keepends=True), b"\r\n", body]
    for bounds in ([1], [len(lines) - 2], [len(lines) - 1], [1, 2, 4]):
        starts = [0, *bounds, len(lines)]
        pieces = [b"".join(lines[a:b]) for a, b in pairwise(starts)]
        outers = (OUTER.format(n=n, total=len(pieces)).encode() for n in range(1, len(pieces) + 1))
        message = joined(tmp_path, *(outer + piece for outer, piece in zip(outers, pieces, strict=True)))
        assert message == merge(OUTER.format(n=1, total=len(pieces)).encode(), head + b"\r\n") + body


def test_a_header_in_many_fragments_has_the_same_limit(tmp_path: Path) -> None:
    """It cannot grow by being cut."""
    outer = b"From: a\r\n\r\n"
    with pytest.raises(GatewayError, match="too long"):
        joined(tmp_path, *[outer + b"A: b\r\n" * 20] * 3, outer + b"\r\nbody", limit=300)
    assert joined(tmp_path, outer + b"A: b\r\n" * 20, outer + b"\r\n" + b"x" * 900, limit=121).endswith(b"x" * 900)


def test_a_fragment_may_be_nothing_but_a_header(tmp_path: Path) -> None:
    """A cut one is joined as far as it goes."""
    assert joined(tmp_path, b"From: a\n", b"From: a\n\ntwo") == b"From: a\r\n\r\ntwo"


def test_a_header_over_the_limit_is_an_error(tmp_path: Path) -> None:
    """Outside or inside."""
    for message in (b"X: " + b"a" * 500 + b"\r\n\r\nx", b"X: y\r\n\r\n" + b"A: b\r\n" * 100 + b"\r\n"):
        with pytest.raises(GatewayError, match="too long"):
            joined(tmp_path, message, limit=200)


def test_a_nested_fragment_comes_out_as_one(tmp_path: Path) -> None:
    """PRT-6: joined once, it is a fragment again."""
    inner = b"Content-Type: message/partial; id=deep; number=1; total=2\r\n\r\n" + WHOLE
    result = reading(tmp_path, joined(tmp_path, *cut(inner, 2)))
    assert result.partial is not None
    assert result.partial.id == "deep"


def test_what_a_real_program_cut_is_whole_again(tmp_path: Path) -> None:
    """mpack, through Postfix, in any order of arrival."""
    root = corpus()
    if root is None:
        pytest.skip("the corpus of real files is not beside the project")
    messages = {}
    for path in (root / "composed/o5-mpack-partial").glob("*.eml"):
        found = reading(tmp_path, path.read_bytes()).partial
        assert found is not None
        messages[found.number] = path.read_bytes()
    result = reading(tmp_path, joined(tmp_path, *(messages[number] for number in sorted(messages))))
    assert [instance.held for instance in result.instances] == [None]
    assert result.instances[0].sha256 == "1d22b5d7bc796dedc78624f724121afd7773f709209ee16a72d5896afc21d475"
    assert [found.code for found in result.findings] == ["no-patient-id"]
