"""Mail data, cut anywhere, against a reference that reads lines as RFC 5321 describes them."""

from __future__ import annotations

import hashlib
import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.data import Digester, MailData
from gateway.model import Digest

# Little but what matters, so that every ending and every near miss comes up.
WIRE = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"\r\n.", b"\r\n.\r\n", b"x", b"\0", b"\xff"])).map(
    b"".join
)
CUTS = st.lists(st.integers(0, 60), max_size=20)


def reference(wire: bytes) -> tuple[bytes, bytes | None]:
    """Content and what follows the end, line by line; None when the end did not come."""
    content = b""
    while (end := wire.find(b"\r\n")) >= 0:
        line, wire = wire[: end + 2], wire[end + 2 :]
        if line == b".\r\n":
            return content, wire
        content += line[1:] if line.startswith(b".") else line
    return content, None


def blocks(wire: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    return [wire[a:b] for a, b in itertools.pairwise(at)]


def read(parts: list[bytes]) -> tuple[bytes, bytes | None]:
    """What MailData makes of the blocks; blocks behind the end are handed back with the rest."""
    data = MailData()
    content = b""
    for number, part in enumerate(parts):
        more, rest = data.feed(part)
        content += more
        if rest is not None:
            return content, rest + b"".join(parts[number + 1 :])
    return content, None


@given(WIRE, CUTS)
def test_the_end_is_where_the_reference_finds_it(wire: bytes, cuts: list[int]) -> None:
    """The same content and the same rest, wherever the blocks are cut (RFC 5321 §4.1.1.4, §4.5.2)."""
    content, rest = reference(wire)
    got, got_rest = read(blocks(wire, cuts))
    assert got_rest == rest
    if rest is not None:
        assert got == content


@given(WIRE, CUTS)
def test_content_without_an_end_is_held_back_by_four_bytes_at_most(wire: bytes, cuts: list[int]) -> None:
    """What is certain is given at once: memory does not depend on what the peer sends (R7)."""
    ended = wire + b"\r\n.\r\n"
    content, rest = reference(ended)
    if rest != b"":
        return
    got, none = read(blocks(wire, cuts))
    assert none is None
    assert content.startswith(got)
    assert len(got) >= len(content) - 4 - 2  # the line end that was added here


def test_every_short_wire_is_read_as_the_reference_reads_it() -> None:
    """All wires of up to seven bytes over CR, LF, dot and a letter, whole and byte by byte."""
    for length in range(8):
        for letters in itertools.product((b"\r", b"\n", b".", b"x"), repeat=length):
            wire = b"".join(letters) + b"\r\n.\r\nQUIT"
            expected = reference(wire)
            assert read([wire]) == expected, wire
            assert read([wire[n : n + 1] for n in range(len(wire))]) == expected, wire


@given(WIRE)
def test_transparency_is_undone(content: bytes) -> None:
    """Content that is stuffed and ended as a client does it comes back as it was (RFC 5321 §4.5.2)."""
    whole = content if content.endswith(b"\r\n") or not content else content + b"\r\n"
    stuffed = re.sub(rb"(\A|(?<=\r\n))\.", b"..", whole)
    assert read([stuffed + b".\r\n"]) == (whole, b"")


def digest(parts: list[bytes], limit: int = 1 << 20) -> Digest:
    digester = Digester(limit)
    for part in parts:
        digester.update(part)
    return digester.digest()


@given(WIRE, CUTS)
def test_header_and_body_are_told_apart_wherever_the_blocks_are_cut(content: bytes, cuts: list[int]) -> None:
    """The body is what follows the first empty line, and its hash does not depend on the cuts."""
    found = re.search(rb"(\A|\n)\r?\n", content)
    header, body = (content[: found.end(1)], content[found.end() :]) if found else (content, None)
    got = digest(blocks(content, cuts))
    assert got.size == len(content)
    assert got.header == header
    assert got.body_sha256 == ("" if body is None else hashlib.sha256(body).hexdigest())
    assert got == digest([content])


@given(WIRE, WIRE)
def test_the_hash_of_the_whole_names_it(one: bytes, other: bytes) -> None:
    """Two messages have the same hash when they are the same."""
    assert (digest([one]).sha256 == digest([other]).sha256) == (one == other)


@given(WIRE, CUTS, st.integers(0, 20))
def test_a_header_over_its_limit_is_noticed_and_no_other(content: bytes, cuts: list[int], limit: int) -> None:
    """Whether a header is too long does not depend on the cuts; one that has no end may be two bytes longer."""
    found = re.search(rb"(\A|\n)\r?\n", content)
    length = found.end(1) if found else len(content) - 2
    digester = Digester(limit)
    for part in blocks(content, cuts):
        digester.update(part)
    assert digester.header_too_long == (length > limit)


def test_what_follows_a_header_that_is_too_long_is_not_kept() -> None:
    """Memory is bounded by the limit and one block (R7)."""
    digester = Digester(10)
    for _ in range(100):
        digester.update(b"x" * 100)
    assert digester.header_too_long
    assert len(digester.digest().header) == 100
    assert digester.digest().size == 10_000
