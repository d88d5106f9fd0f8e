"""Ordinary elements are gone over in runs; what a walk finds and refuses is the same as one by one."""

from __future__ import annotations

import dataclasses
import struct
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from gateway.core import dataset
from gateway.core.dataset import Problem, Stored, Walked

WANTED = frozenset({0x00080018, 0x00100020, 0x0020000D})
GROUPS = st.sampled_from([0x0008, 0x0009, 0x0010, 0x0019, 0x0020, 0x0028, 0x0108, 0x1000, 0x7FE1, 0xFFFC])
VRS = st.sampled_from(sorted(dataset._SHORT))
VALUES = st.binary(max_size=70)
MARKS = st.sampled_from([b"", b"\xfe\xff\x00\xe0\0\0\0\0", b"\x08\0\x18\0UI\x02\0ab", b"\xe0\x7f\x10\0OW\0\0\0\0\0\0"])


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


ELEMENTS = st.lists(
    st.builds(
        lambda group, number, vr, value, mark: element(group, number, vr, value + mark),
        GROUPS,
        st.sampled_from([0x0010, 0x0018, 0x0020, 0x000D]),
        VRS,
        VALUES,
        MARKS,
    ),
    max_size=40,
)
DELIMITED = b"\xff\xff\xff\xff"
SEQUENCE = b"%b".join(
    (
        b"\x40\0\x75\x02SQ\0\0" + DELIMITED + b"\xfe\xff\x00\xe0" + DELIMITED,
        b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0",
    )
)
BOUNDED = b"\x40\0\x75\x02SQ\0\0%b\xfe\xff\x00\xe0%b%b"


def walk(content: bytes, *, runs: bool) -> Walked | str:
    sight = dataset._look_for(WANTED)
    if not runs:
        sight = dataclasses.replace(sight, run=lambda *_: None)
    source = Stored(lambda at, size: content[at : at + size], content, len(content))
    with mock.patch.object(dataset, "_look_for", return_value=sight):
        try:
            return dataset.walk(source, 0, dataset.EXPLICIT, WANTED, nested=True)
        except Problem as problem:
            return problem.code


@given(ELEMENTS, ELEMENTS, ELEMENTS, st.integers(0, 4), st.integers(-3, 3))
def test_a_run_finds_what_single_steps_find(
    before: list[bytes], inside: list[bytes], behind: list[bytes], cut: int, wrong: int
) -> None:
    """Whole, cut off, and with an item whose length is wrong (R8)."""
    item = b"".join(inside)
    nested = struct.pack("<L", 8 + len(item)), struct.pack("<L", max(len(item) + wrong, 0)), item
    for sequence in (SEQUENCE % item, BOUNDED % nested, b""):
        content = b"".join((*before, sequence, *behind))
        content = content[: len(content) - cut]
        assert walk(content, runs=True) == walk(content, runs=False)
