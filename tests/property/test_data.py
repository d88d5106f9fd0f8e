"""However the network cuts the data of a mail: it ends at the same byte, and the same bytes are kept and hashed."""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise, product

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.data import END, Digester, MailData, Transparency

PIECES = [
    b"\r",
    b"\n",
    b".",
    b"..",
    b"\r\n",
    END,
    b"\n.\n",
    b"\r\n.\n",
    b"\n.\r\n",
    b"\r.\r",
    b"\r.\r\n",
    b"a",
    b"A: b",
]
STREAMS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=24).map(b"".join)
CUTS = st.lists(st.integers(0, 80), max_size=12)
EVERYWHERE = list(range(80))


def blocks(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Cut the stream; the same place twice makes an empty block."""
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(places)]


def receive(pieces: list[bytes]) -> tuple[bytes, bytes | None]:
    """Feed the blocks as a connection does: what is behind the end goes back in front of what was not read yet."""
    data = MailData()
    content = b""
    for number, piece in enumerate(pieces, 1):
        certain, rest = data.feed(piece)
        content += certain
        if rest is not None:
            return content, rest + b"".join(pieces[number:])
    return content, None


def read_lines(stream: bytes) -> tuple[bytes, bytes | None]:
    """Read line by line, as the standard tells it (RFC 5321 §4.5.2)."""
    lines = stream.split(b"\r\n")
    content = b""
    # What is behind the last CRLF is no line yet.
    for number, line in enumerate(lines[:-1], 1):
        if line == b".":
            return content, b"\r\n".join(lines[number:])
        content += line.removeprefix(b".") + b"\r\n"
    return content + lines[-1].removeprefix(b"."), None


def split_header(content: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Header, the empty line, and body (None without an empty line), line by line; a bare LF is a line end too."""
    header = b""
    for line in re.findall(rb"[^\n]*\n|[^\n]+\Z", content):
        if line in {b"\n", b"\r\n"}:
            return header, line, content[len(header) + len(line) :]
        header += line
    return header, b"", None


@given(STREAMS, CUTS)
@example(b"a\n.\nb\r\n.\nc\n.\r\nd\r.\re\r.\r\n" + END + b"QUIT\r\n", EVERYWHERE)
@example(b".\r\nMAIL FROM:<>\r\n", EVERYWHERE)
@example(b"..\r\n...\r\n.a\r\n.\ra\r\n.\r\n.\r\n", EVERYWHERE)
def test_data_end_at_the_first_dot_alone_on_its_line_wherever_they_are_cut(stream: bytes, cuts: list[int]) -> None:
    """R1, SMTP smuggling: only CRLF.CRLF ends data; the content and all that is behind the end are as they came."""
    expected, behind = read_lines(stream)
    content, rest = receive(blocks(stream, cuts))
    assert rest == behind
    if behind is None:
        # The last bytes may be the beginning of an end and wait for the next block.
        assert expected.startswith(content)
        assert len(expected) - len(content) < len(END)
    else:
        assert content == expected


@given(STREAMS, CUTS, STREAMS)
def test_content_survives_the_way_a_sender_puts_it_on_the_wire(content: bytes, cuts: list[int], behind: bytes) -> None:
    """R1: what a sender stuffed with dots is stored byte for byte, and commands sent behind it are not eaten."""
    content = content and content.removesuffix(b"\r\n") + b"\r\n"
    lines = content.split(b"\r\n")
    wire = b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines) + b".\r\n" + behind
    assert receive(blocks(wire, cuts)) == (content, behind)


@given(STREAMS, CUTS, CUTS)
@example(b".\r\n..\r\n.", EVERYWHERE, [])
def test_what_we_put_on_the_wire_is_received_as_it_was(content: bytes, cuts: list[int], others: list[int]) -> None:
    """R22: dots at line starts are doubled wherever the blocks are cut; only a missing last line end is added."""
    transparency = Transparency()
    wire = b"".join(transparency.feed(block) for block in blocks(content, cuts)) + transparency.end()
    complete = content if not content or content.endswith(b"\r\n") else content + b"\r\n"
    assert receive(blocks(wire + b"QUIT\r\n", others)) == (complete, b"QUIT\r\n")


@given(STREAMS, CUTS, st.integers(1, 40))
@example(b"A: b\r\n\r\nbody", EVERYWHERE, 6)
@example(b"A: b\r\n\r\nbody", EVERYWHERE, 5)
@example(b"\r\nbody", EVERYWHERE, 1)
@example(b"\n\nbody", EVERYWHERE, 1)
def test_a_content_has_one_digest_however_it_is_cut(content: bytes, cuts: list[int], limit: int) -> None:
    """R1: size, header and hashes are those of the bytes as they came, and the limit counts the header alone."""
    header, blank, body = split_header(content)
    digester = Digester(limit)
    for block in blocks(content, cuts):
        digester.update(memoryview(block))
    # A CR at the start of the last line may be half of the empty line: it counts when more is known.
    assert digester.header_too_long == (len(header) - header.endswith(b"\n\r") > limit)
    digest = digester.digest()
    assert digest.size == len(content)
    if not digester.header_too_long:
        inner = b"" if body is None else hashlib.sha256(body).digest()
        assert digest.header == header
        assert digest.sha256 == hashlib.sha256(header + blank + inner).hexdigest()
        assert digest.body_sha256 == ("" if body is None else hashlib.sha256(body).hexdigest())


def test_every_short_stream_is_received_as_the_reference_receives_it() -> None:
    """All streams of up to seven bytes over CR, LF, dot and a letter, whole and byte by byte."""
    for length in range(8):
        for letters in product((b"\r", b"\n", b".", b"x"), repeat=length):
            stream = b"".join(letters) + END + b"QUIT"
            expected = read_lines(stream)
            assert receive([stream]) == expected, stream
            assert receive([stream[at : at + 1] for at in range(len(stream))]) == expected, stream
