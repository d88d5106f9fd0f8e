"""The plan of a collection and the pieces of a message, at the edges of their limits."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.core import creator, directory, letter, partial
from gateway.core.creator import Capacity, Piece, Plan, fragments, plan, write_piece
from gateway.core.directory import Entry, FileSet, Member, describe
from gateway.core.letter import Letter
from gateway.errors import GatewayError
from gateway.model import Span
from tests.samples import CT, EXPLICIT, content, data_set, dicom_file, element, meta

LETTER = Letter(
    sender="dicom@hospital.example",
    recipients=("images@clinic.example",),
    message_id="<4711@hospital.example>",
    date=datetime(2026, 11, 23, 12, 0, tzinfo=UTC),
    gateway="Hospital",
    phone="+49 1",
)


def entry(folder: Path, number: int, size: int = 100, *, series: int = 1, study: int = 1, patient: str = "P1") -> Entry:
    """Describe an object with so many bytes of pixel data."""
    uids = (f"1.2.{number:04}"[:8].replace(".0", ".1"), f"1.3.{study}", f"1.3.{study}.{series}")
    head = meta(instance=uids[0])
    pixels = element(0x7FE00010, "OW", bytes(size))
    whole = dicom_file(data_set(CT, uids[0], uids[1], uids[2], patient, more=pixels), head)
    path = folder / f"{number}"
    path.write_bytes(whole)
    return describe(Member(CT, *uids, EXPLICIT, Span(path, 0, len(whole)), 132 + len(head)))


def sizes(made: Plan, one: Letter = LETTER) -> list[int]:
    """Write all messages of a plan; return their sizes."""
    found = []
    for number, file_set in enumerate(made.file_sets, 1):
        out = io.BytesIO()
        letter.write(file_set, replace(one, part=number, parts=made.count), out)
        found.append(len(out.getvalue()))
    return found


def shape(made: Plan) -> list[list[str]]:
    """Tell which instances each message has."""
    return [[one.member.sop_instance for one in file_set.entries] for file_set in made.file_sets]


def roomy(parts: int = 200) -> Capacity:
    return Capacity(1 << 30, parts)


def test_what_fits_goes_as_one(tmp_path: Path) -> None:
    """Several patients, studies and series share one mail, each series together."""
    entries = [entry(tmp_path, n, series=n % 2, patient=f"P{n % 3}", study=n % 3) for n in range(12)]
    made = plan(entries, LETTER, roomy())
    assert made.count == len(made.file_sets) == 1
    assert set(made.file_sets[0].entries) == set(entries)
    places = [(one.person.id, one.member.series) for one in made.file_sets[0].entries]
    assert places == sorted(places, key=places.index)
    assert len({place for n, place in enumerate(places) if n == 0 or places[n - 1] != place}) == 6
    assert plan([], LETTER, roomy()) == Plan(())


@pytest.mark.parametrize("kind", ["mime", "zip"])
def test_one_byte_decides(kind: str, tmp_path: Path) -> None:
    """R22: a limit of just the size is kept, one byte less splits; no message is ever over it."""
    one = replace(LETTER, format=kind)
    entries = [entry(tmp_path, n, 1000 + n) for n in range(4)]
    whole = letter.size_of(FileSet(tuple(entries)), one)
    assert plan(entries, one, Capacity(whole, 200)).count == 1
    made = plan(entries, one, Capacity(whole - 1, 200))
    assert made.count == 2
    assert all(size < whole for size in sizes(made, one))
    # The first message of several is exactly as big as was planned for it, too.
    (first, _) = sizes(made, one)
    assert len(made.file_sets[0].entries) == 3
    assert len(plan(entries, one, Capacity(first, 200)).file_sets[0].entries) == 3
    assert len(plan(entries, one, Capacity(first - 1, 200)).file_sets[0].entries) == 2


def test_protection_is_counted(tmp_path: Path) -> None:
    """R22: the limit is held after sealing, by the header and what the entity became."""
    entries = [entry(tmp_path, n, 1000) for n in range(4)]
    files = FileSet(tuple(entries))
    limit = letter.header_size(LETTER) + 2 * letter.entity_size(files, LETTER) + 7
    assert plan(entries, LETTER, Capacity(limit, 200, lambda size: 2 * size + 7)).count == 1
    assert plan(entries, LETTER, Capacity(limit - 1, 200, lambda size: 2 * size + 7)).count == 2


def test_the_number_of_parts_is_kept(tmp_path: Path) -> None:
    """SMTP-15: the text and the DICOMDIR count; a ZIP is one part; one instance always goes."""
    entries = [entry(tmp_path, n) for n in range(7)]
    assert [len(one) for one in shape(plan(entries, LETTER, roomy(5)))] == [3, 3, 1]
    assert [len(one) for one in shape(plan(entries, LETTER, roomy(1)))] == [1] * 7
    assert plan(entries, replace(LETTER, format="zip"), roomy(2)).count == 1


def test_series_stay_together_as_long_as_they_can(tmp_path: Path) -> None:
    """A series goes whole into the next mail rather than in halves; only one too big for a mail is divided."""
    numbers = [(1, 1), (2, 2), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3), (8, 3), (9, 3), (10, 3), (11, 4)]
    entries = [entry(tmp_path, number, series=series) for number, series in numbers]
    made = plan(entries, LETTER, roomy(6))
    series = [[one.member.series[-1] for one in file_set.entries] for file_set in made.file_sets]
    assert series == [["1", "1"], ["2", "2", "2"], ["3"] * 4, ["3", "4"]]


def test_each_mail_has_a_directory_of_its_own(tmp_path: Path) -> None:
    """FSC-8: it names what is in its mail, and nothing else."""
    entries = [entry(tmp_path, n) for n in range(5)]
    made = plan(entries, LETTER, roomy(4))
    for file_set in made.file_sets:
        index = directory.encode(file_set, letter.file_set_uid(LETTER))
        for one in entries:
            assert (one.member.sop_instance.encode() in index) == (one in file_set.entries)


def test_an_instance_too_big_for_a_mail_is_told(tmp_path: Path) -> None:
    """R22: alone, and the others go around it."""
    entries = [entry(tmp_path, 1), entry(tmp_path, 2, 50_000), entry(tmp_path, 3)]
    made = plan(entries, LETTER, Capacity(20_000, 200))
    assert [one.entries for one in made.oversized] == [(entries[1],)]
    assert shape(made) == [[entries[0].member.sop_instance], [entries[2].member.sop_instance]]
    assert made.count == 3


def test_two_people_with_one_id_get_two_mails(tmp_path: Path) -> None:
    """FSC-7."""
    entries = [entry(tmp_path, 1), entry(tmp_path, 2, study=2), entry(tmp_path, 3)]
    other = replace(entries[1], person=replace(entries[1].person, birth_date=b"19800101"))
    mine = [replace(one, person=replace(one.person, birth_date=b"19700101")) for one in (entries[0], entries[2])]
    made = plan([mine[0], other, mine[1]], LETTER, roomy())
    assert [file_set.entries for file_set in made.file_sets] == [tuple(mine), (other,)]


def test_many_mails_have_room_for_their_numbers(tmp_path: Path) -> None:
    """R22: part 10 of 12 takes more room than part 1 of 9, and the plan knows."""
    entries = [entry(tmp_path, n, 400) for n in range(24)]
    pair = letter.size_of(FileSet(tuple(entries[:2])), replace(LETTER, part=99, parts=99))
    made = plan(entries, LETTER, Capacity(pair, 200))
    assert made.count == 12
    assert max(sizes(made)) == pair
    assert plan(entries, LETTER, Capacity(pair - 1, 200)).count == 24


# Fragments.


def message(folder: Path, body: int = 20_000, **changes: object) -> Span:
    """Write the message of one object."""
    path = folder / "message"
    with path.open("wb") as out:
        out.write(b"xx")
        letter.write(FileSet((entry(folder, 1, body),)), replace(LETTER, **changes), out)
        end = out.tell()
        out.write(b"yy")
    return Span(path, 2, end)


def written(folder: Path, pieces: Sequence[Piece]) -> list[Span]:
    spans = []
    for number, piece in enumerate(pieces):
        path = folder / f"piece{number}"
        with path.open("wb") as out:
            write_piece(piece, out)
        assert path.stat().st_size == piece.size
        spans.append(Span(path, 0, piece.size))
    return spans


def joined(folder: Path, pieces: Sequence[Piece]) -> bytes:
    with (folder / "joined").open("w+b") as out:
        return content(partial.join(written(folder, pieces), 1 << 20, out))


def test_pieces_join_to_the_same_bytes(tmp_path: Path) -> None:
    """PRT-1 to PRT-5: each within the limit, cut at line ends, with fields of its own."""
    headers = {"X-TELEMEDICINE-SETID": "7", "X-Other": "1", "Disposition-Notification-To": "dicom@hospital.example"}
    whole = message(tmp_path, headers=headers)
    pieces = fragments(whole, 4000, "x@hospital.example")
    assert len(pieces) > 5
    assert all(piece.size <= 4000 for piece in pieces)
    assert joined(tmp_path, pieces) == content(whole)
    for number, piece in enumerate(pieces, 1):
        assert f"Subject: DICOM images ({number}/{len(pieces)})\r\n".encode() in piece.header
        assert f"Message-ID: <{number}.{len(pieces)}.4711@hospital.example>\r\n".encode() in piece.header
        assert f"number={number}; total={len(pieces)}\r\n\r\n".encode() in piece.header
        assert b"From: dicom@hospital.example\r\n" in piece.header
        assert b"Auto-Submitted: auto-generated\r\n" in piece.header
        assert not {b"SETID", b"Disposition", b"multipart"} & set(piece.header.replace(b"-", b" ").split())
        assert content(piece.body).endswith(b"\r\n")


def test_a_piece_may_be_as_big_as_the_limit(tmp_path: Path) -> None:
    """R22: one byte less makes one piece more."""
    whole = message(tmp_path, 200)
    (single,) = fragments(whole, 100_000, "x")
    assert [single] == list(fragments(whole, single.size, "x"))
    assert len(fragments(whole, single.size - 1, "x")) == 2


def test_numbers_of_two_digits_have_their_room(tmp_path: Path) -> None:
    """PRT-1: number and total are known only when all is cut."""
    whole = message(tmp_path)
    for limit in range(2400, 3400, 13):
        pieces = fragments(whole, limit, "x")
        assert len(pieces) > 9
        assert max(piece.size for piece in pieces) <= limit


def test_a_limit_no_piece_can_keep_is_refused(tmp_path: Path) -> None:
    """The header must stay whole in the first piece, and a line in any."""
    whole = message(tmp_path)
    with pytest.raises(GatewayError, match="cut so small"):
        fragments(whole, 500, "x")
    path = tmp_path / "long"
    path.write_bytes(b"Subject: x\r\nMessage-ID: <1@x>\r\n\r\n" + b"a" * 5000)
    with pytest.raises(GatewayError, match="cut so small"):
        fragments(Span(path, 0, 5034), 1600, "x")


def test_the_capacity_of_clear_mail_is_its_own_size() -> None:
    """Nothing is added to what is not protected."""
    assert creator.Capacity(1, 1).sealed(17) == 17
