"""The MIME structure: which parts, numbered how, and where their bytes lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gateway.core import mime

PLAIN = "Content-Type: text/plain\n\n"


def walk(folder: Path, text: str | bytes, **limits: Any) -> tuple[list[tuple[str, str, bytes]], mime.Walk]:
    """Walk a message; return section, type and body of each leaf, and the walk."""
    message = text.encode() if isinstance(text, str) else text
    path = folder / "message"
    path.write_bytes(message)
    file = os.open(path, os.O_RDONLY)
    try:
        given = {"parts": 100, "depth": 8, "header_limit": 1 << 16, **limits}
        walked = mime.Walk(file, 0, len(message), **given)
        parts = [(part.section, part.type, message[part.start : part.end]) for part in walked]
    finally:
        os.close(file)
    return parts, walked


def codes(walked: mime.Walk) -> list[tuple[str, str]]:
    """Return code and place of what was noticed."""
    return [(found.code, found.where) for found in walked.findings]


def multipart(boundary: str, *parts: str, kind: str = "mixed") -> str:
    """Wrap parts."""
    body = "".join(f"\n--{boundary}\n{part}" for part in parts)
    return f'Content-Type: multipart/{kind}; boundary="{boundary}"\n\npreamble{body}\n--{boundary}--\nepilogue\n'


def test_a_message_without_parts_is_part_one(tmp_path: Path) -> None:
    """RFC 9051 §6.4.5.1: its body is section 1."""
    parts, walked = walk(tmp_path, "Subject: x\r\n\r\nbody\r\n")
    assert parts == [("1", "text/plain", b"body\r\n")]
    assert not walked.findings


@pytest.mark.parametrize("message", ["", "\n", "no header at all\n", "x", "\r\n\r\n"])
def test_any_text_is_a_message(tmp_path: Path, message: str) -> None:
    """What has no header is all body."""
    parts, _ = walk(tmp_path, message)
    assert [section for section, _, _ in parts] == ["1"]
    assert parts[0][2] == message.encode().removeprefix(b"\r\n" if message.startswith("\r") else b"\n")


@pytest.mark.parametrize("eol", ["\n", "\r\n"])
def test_nested_multiparts_are_numbered_as_imap_does(tmp_path: Path, eol: str) -> None:
    """Preamble and epilogue are no parts; the line end before a delimiter is not part of the body."""
    inner = multipart("in", PLAIN + "a\n", PLAIN + "", kind="alternative")
    message = multipart("out", PLAIN + "first", inner, "\nlast\n")
    parts, walked = walk(tmp_path, message.replace("\n", eol))
    end = eol.encode()
    assert parts == [
        ("1", "text/plain", b"first"),
        ("2.1", "text/plain", b"a" + end),
        ("2.2", "text/plain", b""),
        ("3", "text/plain", b"last" + end),
    ]
    assert not walked.findings


def test_a_message_in_a_message_is_numbered_below_its_part(tmp_path: Path) -> None:
    """RFC 9051: a multipart in message/rfc822 part 2 has parts 2.1, 2.2; a plain one has part 2.1."""
    rfc822 = "Content-Type: message/rfc822\n\n"
    plain = rfc822 + "Subject: x\n\ninner"
    nested = rfc822 + multipart("in", PLAIN + "a", rfc822 + rfc822 + "\ndeep")
    parts, _ = walk(tmp_path, multipart("out", plain, nested))
    assert [(section, body) for section, _, body in parts] == [("1.1", b"inner"), ("2.1", b"a"), ("2.2.1.1", b"deep")]


def test_a_message_that_is_a_message(tmp_path: Path) -> None:
    """A forwarded mail without any multipart around it."""
    parts, _ = walk(tmp_path, "Content-Type: message/rfc822\n\n" + multipart("b", PLAIN + "a"))
    assert [section for section, _, _ in parts] == ["1.1"]


def test_a_boundary_may_begin_another_one(tmp_path: Path) -> None:
    """Delimiter lines are compared as a whole (mail/enmime/parts/similar-boundary.raw of the corpus)."""
    inner = multipart("bound-inner", PLAIN + "--bound\n --bound-", kind="alternative")
    parts, _ = walk(tmp_path, multipart("bound-", inner, PLAIN + "z"))
    assert [(section, body) for section, _, body in parts] == [("1.1", b"--bound\n --bound-"), ("2", b"z")]


def test_blanks_behind_a_delimiter_do_not_count(tmp_path: Path) -> None:
    """Some relays append them; other text makes it no delimiter."""
    text = "Content-Type: multipart/mixed; boundary=b\n\n--b \t\n\none\n--bc\n--b-\n--b-- x\n--b--  "
    parts, walked = walk(tmp_path, text)
    assert parts == [("1", "text/plain", b"one\n--bc\n--b-\n--b-- x")]
    assert not walked.findings


def test_a_missing_closing_boundary_is_noted(tmp_path: Path) -> None:
    """AMB-22: the last part reaches to the end."""
    parts, walked = walk(tmp_path, "Content-Type: multipart/mixed; boundary=b\n\n--b\n\none")
    assert parts == [("1", "text/plain", b"one")]
    assert codes(walked) == [("missing-boundary", "")]


def test_an_outer_delimiter_ends_inner_multiparts(tmp_path: Path) -> None:
    """The inner one never closes, and the outer goes on."""
    inner = "Content-Type: multipart/mixed; boundary=in\n\n--in\n\na"
    parts, _ = walk(tmp_path, multipart("out", inner, "\nb"))
    assert [(section, body) for section, _, body in parts] == [("1.1", b"a"), ("2", b"b")]


def test_a_multipart_without_parts_or_end(tmp_path: Path) -> None:
    """Only its header came."""
    parts, walked = walk(tmp_path, "Content-Type: multipart/mixed; boundary=b\n\npreamble")
    assert parts == []
    assert codes(walked) == [("missing-boundary", "")]


@pytest.mark.parametrize("given", ["", "; boundary=", f"; boundary={'x' * 999}"])
def test_a_boundary_that_cannot_be_used_is_guessed(tmp_path: Path, given: str) -> None:
    """From the first line, when the header of a part follows it."""
    text = f"Content-Type: multipart/mixed{given}\n\n--real\nContent-Type: a/b\n\nx\n--real--\n"
    parts, walked = walk(tmp_path, text)
    assert parts == [("1", "a/b", b"x")]
    assert codes(walked) == [("no-boundary", "")]


def test_a_multipart_without_any_boundary_is_one_part(tmp_path: Path) -> None:
    """mail/enmime/mail/multipart-wo-boundary.raw of the corpus."""
    parts, walked = walk(tmp_path, "Content-Type: multipart/mixed\n\n--dashes\nbut no header\n")
    assert parts == [("1", "multipart/mixed", b"--dashes\nbut no header\n")]
    assert codes(walked) == [("no-boundary", "")]


def test_a_delimiter_may_follow_a_delimiter_at_once(tmp_path: Path) -> None:
    """Parts without header and body, and a header that the delimiter cuts."""
    text = "Content-Type: multipart/mixed; boundary=a:b\n\n--a:b\n--a:b\nContent-Type: x/y\n--a:b\n\n--a:b--\n"
    parts, _ = walk(tmp_path, text)
    assert parts == [("1", "text/plain", b""), ("2", "x/y", b""), ("3", "text/plain", b"")]


def test_a_header_without_an_empty_line_ends_at_the_first_other_line(tmp_path: Path) -> None:
    """What is no field begins the body."""
    parts, _ = walk(tmp_path, "Content-Type : a/b\n folded\nQUJD\nmore: text\n")
    assert parts == [("1", "a/b folded", b"QUJD\nmore: text\n")]


def test_long_headers_are_read_up_to_their_limit(tmp_path: Path) -> None:
    """A header longer than one read is whole; one over the limit stops the walk."""
    long = "X-Long: " + "a" * 50_000 + "\n"
    parts, walked = walk(tmp_path, long + "Content-Type: a/b\n\nx")
    assert parts == [("1", "a/b", b"x")]
    parts, walked = walk(tmp_path, long * 3 + "Content-Type: a/b\n\nx")
    assert codes(walked) == [("header-too-long", "")]
    assert walked.cut
    parts, walked = walk(tmp_path, "X: " + "a" * 500_000, header_limit=1000)
    assert codes(walked) == [("header-too-long", "")]


def test_a_long_header_of_a_part_stops_the_walk(tmp_path: Path) -> None:
    """Limits are for every header."""
    parts, walked = walk(tmp_path, multipart("b", "X: " + "a" * 200_000, "\nsecond"))
    assert codes(walked) == [("header-too-long", "1")]
    assert [section for section, _, _ in parts] == ["1"]


def test_nesting_ends_at_its_limit(tmp_path: Path) -> None:
    """A nesting bomb: what lies deeper is not looked into."""
    message = PLAIN
    for level in range(12):
        message = multipart(f"b{level}", message)
    parts, walked = walk(tmp_path, message, depth=3)
    assert [(section, kind) for section, kind, _ in parts] == [("1.1.1", "multipart/mixed")]
    assert codes(walked) == [("too-deep", "1.1.1")]
    parts, walked = walk(tmp_path, "Content-Type: message/rfc822\n\n" * 50, depth=8)
    assert codes(walked) == [("too-deep", "1.1.1.1.1.1.1.1")]


def test_parts_end_at_their_limit(tmp_path: Path) -> None:
    """A part bomb: the rest is not looked at."""
    parts, walked = walk(tmp_path, multipart("b", *["\nx"] * 50), parts=20)
    assert len(parts) == 20
    assert codes(walked) == [("too-many-parts", "")]
    assert walked.cut


def test_delimiters_are_found_wherever_blocks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size of a block gives the same parts."""
    inner = multipart("in", PLAIN + "--a\r\n\r", PLAIN + "- -" * 9)
    message = multipart("out", PLAIN + "first\r\n", inner, "\nlast").replace("\n", "\r\n")
    expected, _ = walk(tmp_path, message)
    for size in range(2, 80):
        monkeypatch.setattr(mime, "BLOCK", size)
        assert walk(tmp_path, message)[0] == expected


def test_encoded_messages_are_leaves(tmp_path: Path) -> None:
    """RFC 2046 §5.2.1 forbids base64 there; whoever writes it, the structure cannot be read through it."""
    parts, _ = walk(tmp_path, "Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\nAAAA")
    assert parts == [("1", "message/rfc822", b"AAAA")]


def test_a_head_tells_what_classification_needs(tmp_path: Path) -> None:
    """The first of repeated fields holds."""
    _, walked = walk(
        tmp_path, "Auto-Submitted: Auto-Replied; x\nSubject: s\nSubject: t\nContent-Disposition: a; filename=f\n\n"
    )
    assert walked.head.auto_submitted == "auto-replied; x"
    assert walked.head.subject == "s"
    assert walked.head.filename == "f"


def test_a_boundary_may_be_no_text(tmp_path: Path) -> None:
    """Its bytes count; whatever else is shown must be text."""
    text = (
        b'Content-Type: multipart/mixed; boundary="\xff\xfe"\n\n--\xff\xfe\nContent-Type: a/\xff\n\nx\n--\xff\xfe--\n'
    )
    parts, walked = walk(tmp_path, text)
    assert parts == [("1", "a/?", b"x")]
    assert not walked.findings
