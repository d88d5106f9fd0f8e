"""Whatever goes into a file-set comes out of its messages, whatever the limits are, and no limit is passed."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core import dicomdir, letter, part10, partial, records
from gateway.core.creator import Capacity, fragments, plan, write_piece
from gateway.core.dataset import Stored
from gateway.core.directory import Entry, FileSet, Member, Tally, describe, encode, size_of
from gateway.core.letter import Letter
from gateway.core.reader import Rules, read
from gateway.model import Reading, Span
from tests.samples import (
    BIG_ENDIAN,
    CT,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    content,
    data_set,
    dicom_file,
    element,
    item,
    meta,
)

relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
RULES = Rules(parts=100, depth=8, header=1 << 16, instance=1 << 24, unpacked=1 << 24, ratio=2000)

letters = st.builds(
    Letter,
    sender=st.just("dicom@hospital.example"),
    recipients=st.lists(st.sampled_from(["a@x.example", "b@x.example"]), min_size=1, max_size=2).map(tuple),
    message_id=st.just("<4711@hospital.example>"),
    date=st.just(datetime(2026, 11, 23, tzinfo=UTC)),
    gateway=st.sampled_from(["", "Hospital", "Krankenhaus Süd"]),
    phone=st.sampled_from(["", "+49 1"]),
    text=st.text(st.characters(codec="utf-8"), max_size=200) | st.just(letter.TEXT),
    headers=st.dictionaries(
        st.sampled_from(["X-A", "X-B", "X-TELEMEDICINE-SETID"]), st.sampled_from(["1", "ü", "a b"]), max_size=3
    ),
    format=st.sampled_from(["mime", "zip"]),
    multipart=st.sampled_from(["mixed", "related"]),
)
objects = st.lists(
    st.tuples(
        st.integers(0, 3000),
        st.sampled_from(["P1", "P2", ""]),
        st.integers(1, 2),
        st.sampled_from([EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED]),
    ),
    min_size=1,
    max_size=8,
)


def entry(folder: Path, number: int, size: int, patient: str, series: int, syntax: str) -> Entry:
    """Write and describe an object."""
    encoding = EXPLICIT if syntax == DEFLATED else syntax
    study = f"1.3.{len(patient)}{patient[1:]}"
    uids = (f"1.2.{number + 1}", study, f"{study}.{series}")
    pixels = element(0x7FE00010, "OW", hashlib.shake_256(b"%d" % number).digest(size), encoding)
    head = meta(instance=uids[0], syntax=syntax)
    data = data_set(CT, *uids, patient, syntax=encoding, more=pixels)
    path = folder / f"object{number}"
    path.write_bytes(dicom_file(data, head, syntax=syntax))
    return describe(Member(CT, *uids, syntax, Span(path, 0, path.stat().st_size), 132 + len(head)))


def reading(folder: Path, message: Path) -> Reading:
    """Read a message as our own File-set Reader does."""
    with (folder / f"{message.name}.instances").open("w+b") as out:
        return read(Span(message, 0, message.stat().st_size), RULES, out)


@relaxed
@given(given_objects=objects, one=letters, limit=st.integers(2000, 20_000), parts=st.integers(1, 12))
def test_our_own_reader_takes_everything_back(
    given_objects: list[tuple[int, str, int, str]], one: Letter, limit: int, parts: int
) -> None:
    """R8, R22, FSC-6, FSC-8: byte for byte, each once, each DICOMDIR complete; sizes exact and within the limit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entries = [entry(folder, number, *given_object) for number, given_object in enumerate(given_objects)]
        made = plan(entries, one, Capacity(limit, parts))
        back: list[bytes] = []
        for number, file_set in enumerate((*made.file_sets, *made.oversized), 1):
            sent = replace(one, part=number, parts=made.count)
            path = folder / f"{number}.eml"
            with path.open("wb") as out:
                letter.write(file_set, sent, out)
            assert path.stat().st_size == letter.size_of(file_set, sent)
            assert (path.stat().st_size <= limit) or (file_set in made.oversized and len(file_set.entries) == 1)
            result = reading(folder, path)
            assert result.dicomdir is not None
            assert result.dicomdir.complete
            assert all(found.code in {"no-patient-id", "several-patients"} for found in result.findings), (
                result.findings
            )
            back += [content(instance.file) for instance in result.instances]
        assert sorted(back) == sorted(one.member.file.path.read_bytes() for one in entries)


@relaxed
@given(size=st.integers(0, 20_000), one=letters, limit=st.integers(2500, 12_000))
def test_pieces_join_to_the_message(size: int, one: Letter, limit: int) -> None:
    """PRT-2, PRT-3: whatever the letter says, and no piece is over the limit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "message"
        (file_set,) = plan([entry(folder, 1, size, "P1", 1, EXPLICIT)], one, Capacity(1 << 30, 9)).file_sets
        with path.open("wb") as out:
            letter.write(file_set, one, out)
        spans = []
        for number, piece in enumerate(fragments(Span(path, 0, path.stat().st_size), limit, "id@x"), 1):
            cut = folder / f"{number}"
            with cut.open("wb") as out:
                write_piece(piece, out)
            assert cut.stat().st_size == piece.size <= limit
            told = reading(folder, cut).partial
            assert told is not None
            assert (told.id, told.number) == ("id@x", number)
            spans.append(Span(cut, 0, piece.size))
        with (folder / "joined").open("w+b") as out:
            assert content(partial.join(spans, 1 << 16, out)) == path.read_bytes()


@relaxed
@given(
    cut=st.integers(0, 400),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    sop_class=st.sampled_from(sorted(records.TYPES)) | st.just("1.2.3"),
    syntax=st.sampled_from([EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED]),
)
def test_no_header_breaks_a_directory(cut: int, flips: list[tuple[int, int]], sop_class: str, syntax: str) -> None:
    """DIR-9, AMB-10: whatever an object says, its DICOMDIR parses and names it, and its size was known."""
    encoding = EXPLICIT if syntax == DEFLATED else syntax
    order = ">" if syntax == BIG_ENDIAN else "<"
    code = item(element(0x00080100, "SH", "1", encoding), order=order)
    more = b"".join(
        element(tag, "SQ", code, encoding) for tag in (0x00081115, 0x0040A043, 0x0040A073, 0x0040A730, 0x0072000C)
    )
    whole = bytearray(dicom_file(data_set(syntax=encoding, more=more), meta(syntax=syntax), syntax=syntax))
    start = 132 + len(meta(syntax=syntax))
    for place, value in flips:
        whole[start + place % (len(whole) - start)] = value
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "object"
        path.write_bytes(whole)
        span = Span(path, 0, max(len(whole) - cut, start))
        described = describe(Member(sop_class, "1.2.3.4", "1.2.3", "1.2.3.1", syntax, span, start))
        index = encode(FileSet((described,)), "2.25." + "1" * 39)
    tally = Tally()
    tally.add(described)
    assert size_of(tally) == len(index)
    source = Stored(lambda at, size: index[at : at + size], index, len(index))
    (reference,) = dicomdir.read(source, part10.read_meta(index).data_set, EXPLICIT)
    assert reference == dicomdir.Reference("IM000001", "1.2.3.4")
