"""What a rule must not or cannot change, and the forms in which real data sets come."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.core import coercion, dataset
from gateway.core.coercion import Coercion, Plan, Rule
from gateway.core.dataset import Problem, Stored
from tests.samples import BIG_ENDIAN, EXPLICIT, IMPLICIT, data_set, element, item, sequence_end

MOMENT = datetime(2026, 11, 23, 12, 30, 15, tzinfo=UTC)
ALL = Rule("CLINIC-A", "A-", clear_accession=True)


def source(data: bytes) -> Stored:
    return Stored(lambda at, size: data[at : at + size], data, len(data))


def plan(data: bytes, rule: Rule = ALL, syntax: str = EXPLICIT) -> Plan | None:
    return coercion.plan(source(data), 0, syntax, Coercion(rule, MOMENT, "gw.example", "clinic-a"))


def changed(data: bytes, rule: Rule = ALL, syntax: str = EXPLICIT) -> bytes:
    made = plan(data, rule, syntax)
    assert made is not None
    return b"".join(coercion.spliced(source(data), 0, made.edits))


def refusal(data: bytes, rule: Rule = ALL, syntax: str = EXPLICIT) -> str:
    with pytest.raises(Problem) as caught:
        plan(data, rule, syntax)
    return caught.value.code


@pytest.mark.parametrize("tag", [0x4FFE0001, 0xFFFAFFFA])
def test_a_signed_instance_is_not_changed(tag: int) -> None:
    """Its signature would be broken; a person decides. One that needs no change is no matter."""
    signed = data_set(more=element(tag, "SQ", item(element(0x04000005, "US", b"\1\0"))))
    assert refusal(signed) == "signed-instance"
    assert plan(signed, Rule(clear_accession=True)) is None


def test_a_signature_in_an_item_is_about_the_item() -> None:
    """What is signed there is not what is changed."""
    signed = element(0xFFFAFFFA, "SQ", item(element(0x04000005, "US", b"\1\0")))
    assert signed in changed(data_set(more=element(0x00400275, "SQ", item(signed))))


@pytest.mark.parametrize("number", ["1" * 63, r"1\2", "1" * 1100])
def test_an_id_that_would_be_none_is_not_written(number: str) -> None:
    """More than 64 characters, or two values (PS3.5 6.2): another system would cut it, and take it for another's."""
    wanted = "not-coerced" if len(number) > 1024 else "invalid-patient-id"
    assert refusal(data_set(patient=number), Rule(prefix="A-")) == wanted


def test_an_id_has_characters_and_not_bytes() -> None:
    """64 of them in UTF-8; a backslash that is half of one is none."""
    head = element(0x00080005, "CS", "ISO_IR 192")
    number = "ü" * 62
    assert ("A-" + number).encode() in changed(head + data_set(patient=number), Rule(prefix="A-"))
    head = element(0x00080005, "CS", "GB18030")
    assert b"A-\x81\x5c" in changed(head + element(0x00100020, "LO", b"\x81\x5c"), Rule(prefix="A-"))
    head = element(0x00080005, "CS", "KLINGON")
    assert refusal(head + element(0x00100020, "LO", b"\xfc" * 63), Rule(prefix="A-")) == "invalid-patient-id"


@pytest.mark.parametrize("number", [b"", b"  ", b"\0\0"])
def test_without_an_id_there_is_no_prefix(number: bytes) -> None:
    """The prefix alone would be one ID for many people."""
    assert plan(element(0x00100020, "LO", number), Rule(prefix="A-")) is None


def test_the_issuer_that_is_there_already_is_no_change() -> None:
    """So nothing is recorded either."""
    assert plan(element(0x00100021, "LO", "CLINIC-A"), Rule(issuer="CLINIC-A")) is None


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("tag", [0x00100020, 0x00080050, 0x04000561, 0xFFFAFFFA])
def test_an_element_that_is_there_twice_is_not_changed(tag: int, syntax: str) -> None:
    """Readers differ in which they take: one of them would still be the foreign one."""
    vr = "LO" if tag < 0x04000000 else "SQ"
    one = element(tag, vr, "12" if vr == "LO" else "", syntax)
    assert refusal(one + one, syntax=syntax) == "repeated-element"


def test_new_elements_at_one_place_are_in_the_order_of_their_tags() -> None:
    """Issuer and record, where nothing lies between or behind."""
    made = changed(element(0x00100020, "LO", "1"), Rule(issuer="X"))
    assert made.startswith(element(0x00100020, "LO", "1") + element(0x00100021, "LO", "X") + b"\0\4\x61\5SQ")


def test_a_record_that_came_as_unknown_is_continued_in_implicit_vr() -> None:
    """PS3.5 6.2.2: what is inside UN is Implicit VR Little Endian."""
    old = item(element(0x04000563, "LO", "BEFORE", IMPLICIT))
    rule = Rule(prefix="A-")
    for known in (
        element(0x04000561, "UN", old),
        element(0x04000561, "UN", b""),
        element(0x04000561, "UN", b"", length=0xFFFFFFFF) + old + sequence_end(),
    ):
        made = changed(data_set(more=known), rule)
        assert element(0x04000565, "CS", "COERCE", IMPLICIT) in made
        assert dataset.walk(source(made), 0, EXPLICIT, frozenset()).padded is False
        assert made.count(old) == known.count(old)


@pytest.mark.parametrize(
    ("record", "syntax"),
    [
        (element(0x04000561, "LO", "x"), EXPLICIT),
        (element(0x04000561, "UN", b"no items here"), EXPLICIT),
        (element(0x04000561, "UN", b"no items here", IMPLICIT), IMPLICIT),
        (element(0x04000561, "UN", b"", BIG_ENDIAN), BIG_ENDIAN),
    ],
)
def test_a_record_that_is_no_sequence_is_not_continued(record: bytes, syntax: str) -> None:
    """Nothing is lost, and nothing is made of it."""
    assert refusal(data_set(syntax=syntax, more=record), syntax=syntax) == "not-coerced"


def test_a_value_that_is_a_sequence_is_not_changed() -> None:
    """In Implicit VR nothing says what an element is."""
    items = item(element(0x00080060, "CS", "CT", IMPLICIT))
    assert refusal(element(0x00100020, "LO", items, IMPLICIT), syntax=IMPLICIT) == "not-coerced"


def test_it_grows_by_no_more_than_the_room_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three values as long as can be kept still have room; a limit is a limit."""
    number = data_set(patient="1" * 20)
    long = element(0x00080050, "SH", "1" * 1024) + number + element(0x00100021, "LO", "2" * 1024)
    made = plan(long, ALL)
    assert made is not None
    assert made.growth < coercion.ROOM
    monkeypatch.setattr(coercion, "ROOM", made.growth - 1)
    assert refusal(long) == "not-coerced"


def test_a_group_length_that_is_none_is_left_alone() -> None:
    """It has four bytes, or it is not one."""
    odd = element(0x00080000, "UL", b"\1\0")
    assert changed(odd + data_set(), Rule(issuer="X")).startswith(odd)


def test_a_rule_is_true_when_it_changes_anything() -> None:
    """The empty rule costs nothing."""
    assert not Rule()
    assert all((Rule("X"), Rule(prefix="A"), Rule(clear_accession=True)))


def test_names_that_are_not_ascii_do_not_get_into_the_record() -> None:
    """They might not be in the character set of the data set."""
    made = coercion.plan(source(data_set()), 0, EXPLICIT, Coercion(ALL, MOMENT, "gw.ex\u00e4mple", "Größe"))
    assert made is not None
    assert any(b"gw.exmple" in edit.content and b"Gre" in edit.content for edit in made.edits)
