"""The encoding under CMS: what real senders write is read, and nothing else."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from gateway.core.cms import algorithms, ber, compressed
from gateway.core.cms.ber import Node, Reader
from gateway.core.cms.failure import Failure, ProtectionError


def reader(content: bytes, at_once: int = 1 << 20) -> Reader:
    """A reader whose source gives so many bytes at once."""
    file = io.BytesIO(content)
    return Reader(lambda size: file.read(min(size, at_once)))


def code(action: Callable[[], object]) -> Failure:
    """The code with which something is refused."""
    with pytest.raises(ProtectionError) as caught:
        action()
    return caught.value.code


def indefinite(tag: int, *parts: bytes) -> bytes:
    """An element without a length."""
    return bytes((tag, 0x80)) + b"".join(parts) + b"\0\0"


PIECES = (
    ber.octet_string(b"hello"),
    indefinite(0x24, ber.octet_string(b"he"), ber.octet_string(b"llo")),
    ber.element(0x24, ber.octet_string(b"hel"), ber.octet_string(b""), ber.octet_string(b"lo")),
    indefinite(0x24, indefinite(0x24, ber.octet_string(b"hel")), ber.element(0x24, ber.octet_string(b"lo"))),
)


@pytest.mark.parametrize("content", PIECES)
@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_a_content_is_the_same_whole_and_in_pieces(content: bytes, at_once: int) -> None:
    """X.690 8.7: definite, indefinite, nested: the octets are what counts."""
    stream = reader(ber.sequence(content, ber.number(7)), at_once)
    stream.enter(ber.SEQUENCE)
    assert b"".join(stream.octets()) == b"hello"
    assert ber.integer(stream.node(ber.INTEGER)) == 7
    stream.leave()
    stream.end()


@pytest.mark.parametrize("content", PIECES)
def test_a_small_octet_string_is_the_same_whole_and_in_pieces(content: bytes) -> None:
    """What is read whole is put together too."""
    node = reader(content).node()
    assert node.raw == content
    assert ber.octets(node) == b"hello"


def test_an_element_is_kept_as_it_came() -> None:
    """Signed attributes are hashed as they came, whatever their form."""
    raw = indefinite(ber.SEQUENCE, ber.number(1), indefinite(ber.SET, ber.octet_string(b"x" * 300)))
    node = reader(raw + b"\r\n\0").node(ber.SEQUENCE)
    assert node.raw == raw
    assert [one.tag for one in node.children()] == [ber.INTEGER, ber.SET]
    assert node.child(1, ber.SET).child(0).body == b"x" * 300


def test_large_contents_come_in_blocks() -> None:
    """Nothing larger than a block is held."""
    content = bytes(range(256)) * 10_000
    stream = reader(ber.octet_string(content), 70_000)
    blocks = list(stream.octets())
    assert b"".join(blocks) == content
    assert max(map(len, blocks)) <= ber.BLOCK


@pytest.mark.parametrize("trailer", [b"", b"\r\n", b"\0\0\0", b"\n\0"])
def test_line_ends_and_zeros_may_follow(trailer: bytes) -> None:
    """Several programs leave them behind the last element."""
    stream = reader(ber.number(1) + trailer)
    stream.node()
    stream.end()


@pytest.mark.parametrize(
    "action",
    [
        lambda: reader(ber.number(1) + b"x").end(),
        lambda: reader(b"").node(),
        lambda: reader(b"\x02").node(),
        lambda: reader(b"\x02\x05\1").node(),
        lambda: reader(b"\x1f\x81\x01\0").node(),
        lambda: reader(b"\x04\x80\0\0").node(),
        lambda: reader(b"\x04\x89" + b"\1" * 9).node(),
        lambda: reader(b"\x30\xff").node(),
        lambda: reader(ber.number(1)).node(ber.SEQUENCE),
        lambda: reader(ber.number(1)).enter(ber.SEQUENCE),
        lambda: _leave(ber.sequence(ber.number(1))),
        lambda: list(reader(ber.number(1)).octets()),
        lambda: list(reader(b"\x24\x80" + ber.number(1) + b"\0\0").octets()),
        lambda: list(reader(b"\x04\x05abc").octets()),
        lambda: list(reader(b"\x04\x80abc").octets()),
        lambda: _enter_and_read(b"\x30\x03\x02\x05\1\1\1\1\1"),
        lambda: _swallow(b"\x30\x04\x24\x80\x04\x00\0\0"),
        lambda: ber.parse(ber.number(1) + ber.number(2)),
        lambda: ber.parse(b""),
        lambda: ber.parse(b"\x02"),
        lambda: ber.parse(b"\x02\x02\1"),
        lambda: ber.parse(b"\x1f\0"),
        lambda: ber.parse(b"\x02\x80\0\0"),
        lambda: ber.parse(b"\x02\x89" + b"\0" * 9),
        lambda: ber.parse(b"\x30\x80\x02\x01"),
        lambda: ber.parse(ber.sequence()).child(0),
        lambda: ber.parse(ber.sequence(ber.number(1))).child(0, ber.SET),
        lambda: ber.oid(ber.parse(ber.number(1))),
        lambda: ber.oid(Node(6, b"", b"")),
        lambda: ber.oid(Node(6, b"", b"\x2a\x86")),
        lambda: ber.integer(ber.parse(ber.octet_string(b"1"))),
        lambda: ber.integer(Node(2, b"", b"")),
        lambda: ber.octets(ber.parse(ber.number(1))),
        lambda: ber.moment(ber.parse(ber.number(1))),
        lambda: ber.moment(Node(ber.UTC_TIME, b"", b"2611231200Z0")),
        lambda: ber.moment(Node(ber.GENERALIZED_TIME, b"", b"\xff")),
        lambda: algorithms.Algorithm.read(ber.parse(ber.number(1))),
        lambda: algorithms.Algorithm.read(ber.parse(ber.sequence())),
    ],
)
def test_what_is_no_ber_is_malformed(action: Callable[[], object]) -> None:
    """Hostile bytes end in one code, never in an exception of another kind."""
    assert code(action) is Failure.MALFORMED


def _leave(content: bytes) -> None:
    stream = reader(content)
    stream.enter(ber.SEQUENCE)
    stream.leave()


def _enter_and_read(content: bytes) -> None:
    stream = reader(content)
    stream.enter(ber.SEQUENCE)
    stream.node()


def _swallow(content: bytes) -> None:
    stream = reader(content)
    stream.enter(ber.SEQUENCE)
    list(stream.octets())
    stream.leave()


@pytest.mark.parametrize(
    "action",
    [
        lambda: _dive(b"\x30\x80" * 30),
        lambda: reader(b"\x30\x80" * 30).node(),
        lambda: ber.parse(b"\x30\x80" * 30 + b"\0\0" * 30),
        lambda: list(reader(b"\x24\x80" * 30).octets()),
        lambda: reader(ber.header(4, ber.METADATA + 1) + bytes(ber.METADATA + 1)).node(),
        lambda: reader(indefinite(0x30, b"\5\0" * (ber.NODES + 1))).node(),
        lambda: ber.parse_all(b"\5\0" * (ber.NODES + 1)),
    ],
)
def test_bombs_end_at_their_limit(action: Callable[[], object]) -> None:
    """Depth, size and number of what is read whole are bounded."""
    assert code(action) is Failure.LIMIT_EXCEEDED


def _dive(content: bytes) -> None:
    stream = reader(content)
    while True:
        stream.enter(ber.SEQUENCE)


@pytest.mark.parametrize("dotted", ["1.2.840.113549.1.7.2", "2.16.840.1.101.3.4.2.1", "0.9.2342", "2.999.3", "1.39"])
def test_object_identifiers_are_read_as_they_were_written(dotted: str) -> None:
    """X.690 8.19."""
    assert ber.oid(ber.parse(ber.identifier(dotted))) == dotted


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255, 256, 1 << 160, -1, -128, -129])
def test_numbers_are_read_as_they_were_written(value: int) -> None:
    """X.690 8.3, the sign included."""
    assert ber.integer(ber.parse(ber.number(value))) == value


@pytest.mark.parametrize(("year", "tag"), [(1950, ber.UTC_TIME), (2049, ber.UTC_TIME), (2050, ber.GENERALIZED_TIME)])
def test_times_change_their_form_with_the_year(year: int, tag: int) -> None:
    """SMIME-15: UTCTime through 2049."""
    when = datetime(year, 2, 3, 4, 5, 6, tzinfo=UTC)
    node = ber.parse(ber.time(when))
    assert node.tag == tag
    assert ber.moment(node) == when


def test_a_set_is_written_in_the_order_of_der() -> None:
    """X.690 11.6: or nobody else can verify the attributes."""
    assert ber.set_of(b"\4\1b", b"\4\1a") == b"\x31\x06\4\1a\4\1b"


# Compressed data


def squeezed(content: bytes, oid: str = algorithms.ZLIB) -> bytes:
    """A CompressedData."""
    inner = ber.element(ber.context(0), ber.octet_string(content))
    return ber.sequence(ber.number(0), algorithms.write(oid), ber.sequence(ber.identifier(algorithms.DATA), inner))


def inflate(content: bytes, limit: int = 1 << 23) -> bytes:
    """Inflate a CompressedData."""
    out = io.BytesIO()
    assert compressed.read(reader(content, 10_000), out.write, limit) == algorithms.DATA
    return out.getvalue()


def test_compressed_data_are_inflated() -> None:
    """RFC 3274, in blocks."""
    content = b"x" * 5_000_000
    assert inflate(squeezed(zlib.compress(content))) == content
    assert inflate(squeezed(zlib.compress(b""))) == b""


def test_compressed_data_that_grow_too_far_are_refused() -> None:
    """SMIME-18: a bomb ends at the limit."""
    bomb = squeezed(zlib.compress(b"x" * 5_000_000))
    assert code(lambda: inflate(bomb, 4_999_999)) is Failure.LIMIT_EXCEEDED
    assert len(inflate(bomb, 5_000_000)) == 5_000_000


def test_compressed_data_that_cannot_be_read_are_refused() -> None:
    """Damage, an early end and an unknown algorithm."""
    packed = zlib.compress(b"x" * 5000)
    assert code(lambda: inflate(squeezed(b"nonsense"))) is Failure.MALFORMED
    assert code(lambda: inflate(squeezed(packed[:-5]))) is Failure.MALFORMED
    assert code(lambda: inflate(squeezed(packed, "1.2.3"))) is Failure.UNSUPPORTED_ALGORITHM
