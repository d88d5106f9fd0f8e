"""Mail data: their end, their dots, and their digest."""

from __future__ import annotations

import hashlib

import pytest

from gateway.core.data import END, Digester, MailData


@pytest.mark.parametrize(
    "fake", [b"\n.\n", b"\r\n.\n", b"\n.\r\n", b"\r.\r", b"\r.\r\n", b"\n.\r", b"\r\n.\r", b"\r\n.\0\r\n"]
)
def test_no_other_dot_ends_the_data(fake: bytes) -> None:
    """SMTP smuggling, R1: a bare CR or LF is no line end, so no second mail can hide in the first."""
    hidden = b"MAIL FROM:<forged@a.example>\r\n"
    content, rest = MailData().feed(b"one" + fake + hidden + b".\r\nQUIT\r\n")
    # Transparency alone takes away a dot, and only behind a whole line end.
    assert bytes(content) == b"one" + fake.replace(b"\r\n.", b"\r\n") + hidden
    assert rest == b"QUIT\r\n"


@pytest.mark.parametrize("cut", range(1, len(END)))
def test_an_end_cut_in_two_is_still_the_end(cut: int) -> None:
    """R1: the end is seen over the border of two blocks, and the line end before its dot belongs to the content."""
    data = MailData()
    first, none = data.feed(b"a" + END[:cut])
    assert (bytes(first), none) == (b"a", None)
    content, rest = data.feed(END[cut:] + b"RSET\r\n")
    assert (bytes(content), rest) == (b"\r\n", b"RSET\r\n")


def test_a_dot_alone_at_once_is_an_empty_content() -> None:
    """R1: data begin at a line start, so a first line with a dot alone ends them."""
    content, rest = MailData().feed(b".\r\n")
    assert (bytes(content), rest) == (b"", b"")


def test_the_dot_a_sender_put_before_a_line_is_taken_away() -> None:
    """RFC 5321 §4.5.2: the first dot of a line is not part of it, every other dot is."""
    content, rest = MailData().feed(b"..a\r\n...\r\nb.c\r\n.\r\n")
    assert (bytes(content), rest) == (b".a\r\n..\r\nb.c\r\n", b"")


def test_a_block_without_dots_is_given_on_at_once() -> None:
    """R1: nothing is held back that cannot be the beginning of the end."""
    data = MailData()
    assert bytes(data.feed(b"abc")[0]) == b"abc"
    assert data.feed(b"def") == (b"def", None)
    assert data.feed(b"") == (b"", None)


def test_a_digest_names_header_and_body() -> None:
    """R1: the ledger keeps the size and the hashes of the bytes that were spooled."""
    digester = Digester(100)
    digester.update(b"A: b\r\nC: d\r\n\r\nbo")
    digester.update(b"dy")
    digest = digester.digest()
    body = hashlib.sha256(b"body")
    assert digest.size == 18
    assert digest.header == b"A: b\r\nC: d\r\n"
    assert digest.body_sha256 == body.hexdigest()
    assert digest.sha256 == hashlib.sha256(b"A: b\r\nC: d\r\n\r\n" + body.digest()).hexdigest()


def test_a_mail_without_an_empty_line_is_all_header() -> None:
    """R1: such a mail has a digest too; its body has none."""
    digester = Digester(100)
    digester.update(b"A: b\r\n")
    digest = digester.digest()
    assert (digest.header, digest.body_sha256) == (b"A: b\r\n", "")
    assert digest.sha256 == hashlib.sha256(b"A: b\r\n").hexdigest()


def test_a_header_over_the_limit_is_told_and_not_kept_further() -> None:
    """R1: a mail without any empty line does not fill the memory."""
    digester = Digester(4)
    digester.update(b"A: b")
    assert not digester.header_too_long
    digester.update(b"c")
    assert digester.header_too_long
    digester.update(b"d" * 1000)
    assert digester.header_too_long
    assert digester.digest().header == b"A: bc"
    assert digester.digest().size == 1005


@pytest.mark.parametrize("cut", range(len(b"A: b\r\n\r\nbody")))
def test_a_header_of_just_the_limit_is_taken_wherever_it_is_cut(cut: int) -> None:
    """R1: the empty line behind the header does not count, even when only its CR has come yet."""
    content = b"A: b\r\n\r\nbody"
    digester = Digester(6)
    digester.update(content[:cut])
    digester.update(content[cut:])
    assert not digester.header_too_long
    assert digester.digest().header == b"A: b\r\n"
