"""One Patient ID, one person: which names are one, which are two, and what cannot be told."""

from __future__ import annotations

import pytest

from gateway.core.patient import Patient, are_different, compare, decode, fold, of

ADA = Patient(b"1", b"", b"Lovelace^Ada", b"18151210")


def differ(one: str, other: str) -> bool:
    return are_different(fold(one), fold(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Doe^John", "DOE^JOHN"),
        ("Doe^John", "doe^john^^^"),
        ("Doe^John", " Doe ^ John "),
        ("Doe^John^^Dr", "Doe^John^^^Jr"),
        ("Van der Berg^Jan", "VANDERBERG^JAN"),
        ("O'Brien^Ann-Marie", "OBrien^Ann Marie"),
        ("Doe, John", "Doe^John"),
        ("Müller^Jürgen", "Muller^Jurgen"),
        ("Müller^Jürgen", "Mueller^Juergen"),
        ("MÜLLER^JÜRGEN", "mu\u0308ller^ju\u0308rgen"),
        ("Strauß^Jörg", "STRAUSS^JOERG"),
        ("Sørensen^Åse", "Sorensen^Aase"),
        ("Łukasz^Đorđe", "Lukasz^Dorde"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "YAMADA^TAROU"),
        ("Yamada^Tarou=山田^太郎", "=山田^太郎"),
        ("Yamada^Tarou", "山田^太郎"),
        ("Иванов^Иван", "Ivanov^Ivan"),
        ("ﾔﾏﾀﾞ^ﾀﾛｳ", "ヤマダ^タロウ"),
        ("Hong^Gildong=洪^吉洞=홍^길동", "=洪^吉洞"),
        ("", "Doe^John"),
        ("^^", "Doe^John"),
    ],
)
def test_one_name_is_written_in_many_ways(one: str, other: str) -> None:
    """Case, padding, diacritics, spaces, titles, character groups; two scripts cannot be compared (AMB-25)."""
    assert not differ(one, other)
    assert not differ(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Doe^John", "Doe^Jane"),
        ("Doe^John", "John^Doe"),
        ("Doe^John", "Doe^John^Maria"),
        ("Yamada^Tarou=山田^太郎", "Suzuki^Hanako=鈴木^花子"),
        ("山田^太郎", "鈴木^花子"),
        ("Иванов^Иван", "Петров^Пётр"),
        ("かとう^あい", "がとう^あい"),
        ("홍^길동", "김^희중"),
    ],
)
def test_two_people_have_two_names(one: str, other: str) -> None:
    """In one script, and not the same."""
    assert differ(one, other)


@pytest.mark.parametrize(
    ("codec", "term", "text"),
    [
        ("latin-1", b"ISO_IR 100", "Buc^Jérôme"),
        ("latin-1", b"ISO-IR 100", "Buc^Jérôme"),
        ("latin-1", b"IR 100", "Buc^Jérôme"),
        ("latin-1", b"ISO 2022 IR 100", "Buc^Jérôme"),
        ("iso8859-2", b"ISO_IR 101", "Wałęsa"),
        ("iso8859-5", b"ISO_IR 144", "Петров"),
        ("iso8859-7", b"ISO_IR 126", "Διονυσιος"),
        ("iso8859-15", b"ISO_IR 203", "Œuvre"),
        ("utf-8", b"ISO_IR 192", "Wang^XiaoDong=王^小東"),
        ("gb18030", b"GB18030 ", "Wang^XiaoDong=王^小东"),
        ("gbk", b"GBK", "Wang^XiaoDong=王^小东"),
        ("shift_jis", b"ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    ],
)
def test_text_is_read_in_its_character_set(codec: str, term: bytes, text: str) -> None:
    """PS3.3 C.12.1.1.2; some write the terms in their own way."""
    assert decode(text.encode(codec), term) == text


@pytest.mark.parametrize(
    ("value", "term", "text"),
    [
        (
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            rb"\ISO 2022 IR 87",
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ),
        (
            b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
            rb"ISO 2022 IR 13\ISO 2022 IR 87",
            "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎",
        ),
        (
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
            rb"\ISO 2022 IR 149",
            "Hong^Gildong=洪^吉洞=홍^길동",
        ),
        (b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=", rb"\ISO 2022 IR 58", "Zhang^XiaoDong=张^小东="),
        (b"\x1b-FD\xd3", rb"\ISO 2022 IR 126", "DΣ"),
        (b"\x1b$(D\x30\x21\x1b(B", rb"\ISO 2022 IR 159", "丂"),
    ],
)
def test_text_that_changes_its_set_is_read(value: bytes, term: bytes, text: str) -> None:
    """ISO 2022, with the examples of PS3.5 Annex H to K; a delimiter leads back to the first set."""
    assert decode(value, term) == text


@pytest.mark.parametrize(
    ("value", "term"),
    [
        (b"M\xfcller", b""),
        (b"M\xfcller", b"ISO_IR 192"),
        (b"M\xfcller", b"ISO_IR 999"),
        (b"M\xfcller", b"KLINGON"),
        (b"M\x1b%Gx", b"ISO 2022 IR 100"),
        (b"M\x1b$Ax", b"ISO 2022 IR 100"),
        (b"M\x1b", b"ISO 2022 IR 100"),
        (b"M\x1b$)C\xff", b"ISO 2022 IR 149"),
    ],
)
def test_what_cannot_be_read_is_not_guessed(value: bytes, term: bytes) -> None:
    """No set, another set, an unknown set, an escape sequence that nobody knows."""
    assert decode(value, term) is None


def test_a_patient_is_what_its_values_say_without_padding() -> None:
    """Blanks and zero bytes mean nothing."""
    values = {0x00100020: b" 1 ", 0x00100010: b"Doe^John ", 0x00100030: b"\0", 0x00080005: b"ISO_IR 100 "}
    assert of(values) == Patient(b"1", b"", b"Doe^John", b"", b"ISO_IR 100")


@pytest.mark.parametrize(
    "other",
    [
        Patient(b"1", b"", b"Lovelace^Ada", b"18151211"),
        Patient(b"1", b"", b"Byron^George", b"18151210"),
        Patient(b"1", b"", b"Byron^George"),
    ],
)
def test_two_people_under_one_id_are_found(other: Patient) -> None:
    """A birth date or a name is enough, and all who bear the ID are concerned (AMB-25)."""
    found = compare([(ADA, "1.1"), (Patient(b"2"), "1.2"), (other, "1.3"), (ADA, "1.1")])
    assert found.mismatched == {0, 2, 3}
    assert (found.unread, found.count, found.shared_study) == (frozenset(), 2, None)


@pytest.mark.parametrize(
    "other",
    [
        Patient(b"1", b"", b"LOVELACE^ADA^^", b"1815.12.10"),
        Patient(b"1"),
        Patient(b"2", b"", b"Byron^George", b"17880122"),
        Patient(b"", b"", b"Byron^George", b"17880122"),
        Patient(b"1", b"", b"Lovelace^Ada", b"unknown"),
    ],
)
def test_one_person_or_two_ids_are_no_mismatch(other: Patient) -> None:
    """What is not said differs from nothing; who has no ID is nobody's other."""
    assert compare([(ADA, "1.1"), (other, "1.2")]).mismatched == frozenset()


def test_one_id_of_two_issuers_is_two_people_unless_a_rule_makes_them_one() -> None:
    """Whoever names no issuer may be anybody; a rule that writes the issuer leaves only the ID."""
    here = Patient(b"1", b"A", b"Lovelace^Ada")
    there = Patient(b"1", b"B", b"Byron^George")
    found = compare([(here, "1"), (there, "2")])
    assert (found.mismatched, found.count) == (frozenset(), 2)
    found = compare([(here, "1"), (there, "2")], one_issuer=True)
    assert (found.mismatched, found.count) == ({0, 1}, 1)
    assert compare([(here, "1"), (there, "2"), (ADA, "3")]).mismatched == {1, 2}


def test_a_name_that_cannot_be_read_is_said_and_not_compared() -> None:
    """No mismatch is made up; the same bytes are the same name whatever they mean."""
    strange = Patient(b"1", b"", b"M\xfcller^J\xfcrgen", b"", b"ISO_IR 192")
    found = compare([(strange, "1"), (strange, "1")])
    assert (found.mismatched, found.unread) == (frozenset(), frozenset())
    found = compare([(strange, "1"), (ADA, "1")])
    assert (found.mismatched, found.unread) == (frozenset(), {0})
    found = compare([(strange, "1"), (ADA, "1"), (Patient(b"1", b"", b"Byron^George"), "1")])
    assert (found.mismatched, found.unread) == ({0, 1, 2}, {0})


def test_one_study_of_two_ids_is_told() -> None:
    """The first that does not belong to the others."""
    patients = [(Patient(number), study) for number, study in ((b"1", "1"), (b"2", "2"), (b"3", "1"), (b"4", "1"))]
    assert compare(patients).shared_study == 2
