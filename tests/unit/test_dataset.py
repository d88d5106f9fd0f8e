"""Data sets walked to their end, whatever they hold."""

from __future__ import annotations

import struct
import zlib

import pytest

from gateway.core import dataset
from gateway.core.dataset import Found, Inflated, Problem, Stored, walk
from tests.samples import BIG_ENDIAN, EXPLICIT, IMPLICIT, JPEG, data_set, element, item, sequence_end

UNDEFINED = 0xFFFFFFFF
WANTED = frozenset((0x00080018, 0x00100020, 0x0020000E))
PIXELS = 0x7FE00010


def source(data: bytes, first: int | None = None) -> Stored:
    """Serve bytes, of which the first ones are at hand."""
    return Stored(lambda offset, size: data[offset : offset + size], data[:first], len(data))


def walked(data: bytes, syntax: str = EXPLICIT, *, nested: bool = False) -> dataset.Walked:
    """Walk a data set."""
    return walk(source(data), 0, syntax, WANTED, nested=nested)


def problem(data: bytes, syntax: str = EXPLICIT) -> str:
    """Walk a data set that has one."""
    with pytest.raises(Problem) as caught:
        walked(data, syntax)
    return caught.value.code


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, JPEG])
def test_values_are_picked_in_every_syntax(syntax: str) -> None:
    """Compressed syntaxes are Explicit VR Little Endian outside of their pixel data (PS3.5 A.4)."""
    found = walked(data_set(syntax=syntax, more=element(PIXELS, "OW", b"\1" * 10, syntax)), syntax).found
    assert found == [
        Found(0, 0x00080018, b"1.2.3.4\0"),
        Found(0, 0x00100020, b"P1"),
        Found(0, 0x0020000E, b"1.2.3.1\0"),
    ]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_marks_tell_which_item_a_value_lies_in(syntax: str) -> None:
    """Each sequence and each item leaves one before what is in it, no deeper than it was asked for."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    uid = element(0x00080018, "UI", "9.9", syntax)
    inner = element(0x00081140, "SQ", item(uid, order=order) + item(uid, order=order), syntax)
    data = element(0x00081115, "SQ", item(uid + inner, order=order) + item(inner, order=order), syntax)
    wanted = WANTED | {dataset.ITEM}
    found = walk(source(data), 0, syntax, wanted, nested=True, deepest=1).found
    assert [(one.depth, one.tag) for one in found] == [
        (0, 0x00081115),
        (1, dataset.ITEM),
        (1, 0x00080018),
        (1, 0x00081140),
        (1, dataset.ITEM),
        (1, 0x00081140),
    ]
    deeper = walk(source(data), 0, syntax, wanted, nested=True).found
    assert [one.depth for one in deeper if one.tag == dataset.ITEM] == [1, 2, 2, 1, 2, 2]
    assert walk(source(data), 0, syntax, wanted).found == [Found(0, 0x00081115, b"")]


def test_a_walk_ends_where_nobody_asks_for_more() -> None:
    """What lies behind is not looked at: it may be cut, or no data set."""
    data = data_set() + element(PIXELS, "OW", b"", length=1 << 20)
    found = walk(source(data), 0, EXPLICIT, WANTED | {PIXELS}, until=0x0020000E).found
    assert [one.tag for one in found] == [0x00080018, 0x00100020, 0x0020000E]
    assert problem(data) == "truncated-data-set"


def test_an_empty_data_set_ends_at_once() -> None:
    """Nothing is wrong with it as such."""
    assert walked(b"") == dataset.Walked()


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("defined", [True, False])
def test_sequences_of_both_lengths_are_entered(syntax: str, defined: bool) -> None:
    """Items of defined and undefined length, empty ones, and sequences in sequences."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    inner = element(0x00080018, "UI", "9.9", syntax)
    items = item(inner, defined=defined, order=order) + item(defined=defined, order=order)
    for _ in range(3):
        length = None if defined else UNDEFINED
        end = b"" if defined else sequence_end(order)
        items = item(element(0x00081115, "SQ", items + end, syntax, length) + inner, defined=defined, order=order)
    sequence = element(0x00081115, "SQ", items + (b"" if defined else end), syntax, None if defined else UNDEFINED)
    data = sequence + element(0x00100020, "LO", "P1", syntax)
    assert walked(data, syntax).found == [Found(0, 0x00100020, b"P1")]
    depths = [found.depth for found in walked(data, syntax, nested=True).found if found.tag == 0x00080018]
    assert depths == [4, 3, 2, 1]
    if not defined:
        assert problem(data[:-12], syntax) == "truncated-data-set"


def test_encapsulated_pixel_data_is_walked_by_fragments() -> None:
    """Offset table, fragments, delimiter (PS3.5 A.4)."""
    pixels = element(PIXELS, "OB", item() + item(b"\xff\xd8" * 50) + sequence_end(), JPEG, UNDEFINED)
    assert len(walked(data_set(syntax=JPEG, more=pixels), JPEG).found) == 3
    assert problem(data_set(syntax=JPEG, more=pixels[:-8]), JPEG) == "truncated-data-set"
    assert problem(data_set(syntax=JPEG, more=pixels[:-60]), JPEG) == "truncated-data-set"
    wrong = element(PIXELS, "OB", item() + element(0x00100010, "PN", "x") + sequence_end(), JPEG, UNDEFINED)
    assert problem(data_set(syntax=JPEG, more=wrong), JPEG) == "damaged-data-set"
    implicit = element(PIXELS, "OB", item(b"ab") + sequence_end(), IMPLICIT, UNDEFINED)
    assert len(walked(data_set(syntax=IMPLICIT, more=implicit), IMPLICIT).found) == 3
    endless = element(PIXELS, "OB", item(b"ab", defined=False) + sequence_end(), JPEG, UNDEFINED)
    assert problem(endless, JPEG) == "damaged-data-set"


def test_unknown_vr_of_undefined_length_is_an_implicit_sequence() -> None:
    """PS3.5 6.2.2 note 2; dicom/pydicom/UN_sequence.dcm of the corpus."""
    inside = item(element(0x00080018, "UI", "9", IMPLICIT), defined=False) + sequence_end()
    data = element(0x00091010, "UN", inside, EXPLICIT, UNDEFINED) + data_set()
    assert len(walked(data).found) == 3


def test_a_vr_of_the_future_has_the_long_form() -> None:
    """PS3.5 6.2: what is not known yet."""
    data = b"\x09\0\x10\x10ZZ\0\0" + struct.pack("<L", 6) + b"abcdef"
    assert len(walked(data + data_set()).found) == 3
    assert problem(data[:10]) == "truncated-data-set"
    assert problem(data[:8] + b"\xff" * 4) == "damaged-data-set"


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_cut_data_set_is_truncated(cut: int) -> None:
    """Wherever the end is missing."""
    assert problem(data_set()[:-cut]) == "truncated-data-set"
    assert problem(data_set(syntax=IMPLICIT)[:-cut], IMPLICIT) == "truncated-data-set"
    assert problem(data_set(more=element(PIXELS, "OW", b"\1" * 9000))[: -cut * 900]) == "truncated-data-set"


def test_the_wrong_syntax_is_told_from_damage() -> None:
    """AMB-3: no VR where the first ones should be."""
    assert problem(data_set(syntax=IMPLICIT)) == "wrong-transfer-syntax"
    assert problem(data_set(more=data_set(syntax=IMPLICIT))) == "damaged-data-set"
    assert problem(data_set(), IMPLICIT) == "truncated-data-set"


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_zero_bytes_behind_the_end_are_padding(syntax: str) -> None:
    """Of any length; anything else is no data set."""
    for size in (1, 7, 8, 9, 200_000):
        assert walked(data_set(syntax=syntax) + b"\0" * size, syntax).padded
    assert problem(data_set(syntax=syntax) + b"\0" * 20 + b"\1", syntax) == "damaged-data-set"
    assert problem(data_set(syntax=syntax) + b"\0\0\1", syntax) == "truncated-data-set"


@pytest.mark.parametrize("tag", [0xFFFEE00D, 0xFFFEE0DD, 0xFFFEE000])
def test_a_stray_delimiter_is_damage(tag: int) -> None:
    """Outside of any sequence."""
    data = data_set() + struct.pack("<HHL", tag >> 16, tag & 0xFFFF, 0)
    assert problem(data) == "damaged-data-set"
    assert problem(data_set(syntax=IMPLICIT) + data[-8:], IMPLICIT) == "damaged-data-set"


def test_lengths_that_overrun_what_they_lie_in_are_damage() -> None:
    """An item longer than its sequence, an element longer than its item."""
    deep = element(0x00081115, "SQ", item(b"")[:4] + struct.pack("<L", 50)) + data_set()
    assert problem(deep) == "damaged-data-set"
    element_too_long = element(0x00081115, "SQ", item(element(0x00080018, "UI", "9", EXPLICIT, 60))) + data_set()
    assert problem(element_too_long) == "damaged-data-set"
    private = element(0x00081115, "SQ", item(element(0x00090018, "UI", "9", EXPLICIT, 60))) + data_set()
    assert problem(private) == "damaged-data-set"
    no_item = element(0x00081115, "SQ", element(0x00080018, "UI", "9")) + data_set()
    assert problem(no_item) == "damaged-data-set"
    endless = element(0x00080018, "UI", "9", EXPLICIT)[:4] + b"SQ\0\0" + b"\xff" * 4 + data_set()
    assert problem(endless) == "damaged-data-set"
    open_item = element(0x00081115, "SQ", item(b"", defined=False)[:8])
    assert problem(open_item + data_set()) == "damaged-data-set"
    unending = element(0x00081115, "SQ", item(element(0x00080018, "UI", "9"))) + sequence_end()
    assert problem(unending) == "damaged-data-set"
    assert problem(element(0x00090010, "UT", b"x", EXPLICIT, UNDEFINED)) == "damaged-data-set"


def test_what_only_looks_like_a_sequence_is_a_value() -> None:
    """Implicit VR: private bytes that begin like an item, but do not go on so."""
    looks = element(0x00091010, "OB", item(b"no elements here")[:8] + b"\x99" * 40, IMPLICIT)
    assert len(walked(looks + data_set(syntax=IMPLICIT), IMPLICIT).found) == 3
    cut = element(0x00091010, "OB", b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + b"\0" * 6, IMPLICIT)
    assert len(walked(cut + data_set(syntax=IMPLICIT), IMPLICIT).found) == 3
    assert problem((cut + data_set(syntax=IMPLICIT))[:-3], IMPLICIT) == "truncated-data-set"


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("defined", [True, False])
def test_a_nesting_bomb_is_refused_without_recursion(syntax: str, defined: bool) -> None:
    """Ten thousand sequences in each other, as pydicom cannot read them."""
    if defined:
        data = b""
        for _ in range(2000):
            data = element(0x00081115, "SQ", item(data), syntax)
    else:
        data = (element(0x00081115, "SQ", b"", syntax, UNDEFINED) + item(b"", defined=False)[:8]) * 10_000
    assert problem(data, syntax) == "nested-too-deep"


def test_values_without_end_are_not_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory bomb: eight bytes of the file would become two hundred of ours."""
    monkeypatch.setattr(dataset, "FOUND_LIMIT", 50)
    assert problem(data_set() * 60) == "damaged-data-set"
    assert problem(data_set(syntax=IMPLICIT) * 60, IMPLICIT) == "damaged-data-set"


def test_long_values_are_not_picked() -> None:
    """What has more than any UID may have is passed over."""
    data = data_set(instance="", more=element(0x00080018, "UT", b"1" * 20_000))
    assert [found.tag for found in walked(data).found] == [0x00100020, 0x0020000E]


def test_values_behind_what_is_at_hand_are_read_from_the_file() -> None:
    """A big value is skipped, not read; what is behind it is asked for piece by piece."""
    data = (
        data_set(instance="", more=element(PIXELS, "OW", b"\1" * 300_000)) + element(0x7FE10010, "LO", "x" * 60) * 5000
    )
    data += element(0x00080018, "UI", "1.2")
    asked: list[int] = []

    def read(offset: int, size: int) -> bytes:
        asked.append(size)
        return data[offset : offset + size]

    for first in (0, 200, 70_000, 250_000, len(data)):
        result = walk(Stored(read, data[:first], len(data)), 0, EXPLICIT, WANTED)
        assert result.found[-1] == Found(0, 0x00080018, b"1.2\0")
    assert max(asked) <= dataset.PIECE
    assert sum(asked) < 5 * 500_000


def deflate(data: bytes) -> bytes:
    """Deflate as PS3.5 A.5 asks."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def inflated(packed: bytes, limit: int = 1 << 30) -> dataset.Walked:
    """Walk a deflated data set."""
    return walk(Inflated(source(b"head" + packed, 10), 4, limit), 0, EXPLICIT, WANTED)


def test_a_deflated_data_set_is_inflated_as_it_is_walked() -> None:
    """Also where a value is much longer than a piece."""
    more = element(PIXELS, "OW", b"\1\2\3\4" * 500_000) + element(0x00080018, "UI", "1.2")
    assert len(inflated(deflate(data_set(more=more))).found) == 4
    assert len(inflated(deflate(data_set()) + b"\0").found) == 3


def test_a_deflated_data_set_that_is_cut_or_damaged() -> None:
    """Neither is an exception of zlib."""
    packed = deflate(data_set(more=element(PIXELS, "OW", bytes(range(256)) * 4000)))
    for damaged in (packed[: len(packed) // 2], packed[:20] + b"\xff\xff\xff" + packed[23:], b"", b"\xff" * 50):
        if damaged:
            with pytest.raises(Problem):
                inflated(damaged)
    assert inflated(b"").found == []


def test_a_deflate_bomb_is_stopped_at_its_limit() -> None:
    """A megabyte that inflates to a gigabyte."""
    with pytest.raises(Problem, match="unpacked-too-big"):
        inflated(deflate(data_set(more=element(PIXELS, "OW", bytes(50_000_000)))), 1_000_000)


def test_a_wrong_guess_that_led_far_ahead_is_left_where_it_began() -> None:
    """Its bytes are asked for again: what lay behind them was at hand by then."""
    astray = item(element(0x00080060, "CS", b"", IMPLICIT, length=100_000), defined=True)
    pixels = element(PIXELS, "OW", b"\1" * 200_000, IMPLICIT)
    data = element(0x00091001, "UN", astray, IMPLICIT) + data_set(syntax=IMPLICIT, more=pixels)
    for first in (0, None):
        found = walk(source(data, first), 0, IMPLICIT, WANTED)
        assert [one.tag for one in found.found] == [0x00080018, 0x00100020, 0x0020000E]


def test_what_was_inflated_and_left_behind_is_not_inflated_again() -> None:
    """A deflated data set is read in one direction; one that needs two is held."""
    packer = zlib.compressobj(wbits=-15)
    inflated = Inflated(source(packer.compress(bytes(500_000)) + packer.flush()), 0, 1 << 20)
    assert inflated.piece(300_000)
    with pytest.raises(Problem, match="damaged-data-set"):
        inflated.piece(0)
