"""Whether the instances of one message that bear one Patient ID show one person (AMB-25).

A Patient ID with two birth dates or two really different names may be two people under one number. Names are written in
many ways: what differs only in case, padding, diacritics, spaces, titles or character group is one name. What cannot be
decoded or compared is never taken for a difference: nobody guesses about identity.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

CHARACTER_SET: Final = 0x00080005
NAME: Final = 0x00100010
ID: Final = 0x00100020
ISSUER: Final = 0x00100021
BIRTH_DATE: Final = 0x00100030
TAGS: Final = frozenset((CHARACTER_SET, NAME, ID, ISSUER, BIRTH_DATE))
"""What is asked of a data set to know whose it is."""


@dataclass(frozen=True, slots=True)
class Patient:
    """Who a data set says it is of. Holds patient data: it stays in the process that reads.

    Attributes:
        id: Patient ID (0010,0020), its padding taken off, as the bytes it came in; so is the rest.
        issuer: Issuer of Patient ID (0010,0021).
        name: Patient's Name (0010,0010).
        birth_date: Patient's Birth Date (0010,0030).
        character_set: Specific Character Set (0008,0005).
    """

    id: bytes = b""
    issuer: bytes = b""
    name: bytes = b""
    birth_date: bytes = b""
    character_set: bytes = b""


def of(values: dict[int, bytes]) -> Patient:
    """Make a patient of the values of a data set."""
    tags = (ID, ISSUER, NAME, BIRTH_DATE, CHARACTER_SET)
    return Patient(*(strip(values.get(tag, b"")) for tag in tags))


def strip(value: bytes) -> bytes:
    """Take the padding off a value (PS3.5 6.2: no meaning before or behind it)."""
    return value.strip(b" \0")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the patients of one message are to each other, each by its place in the order they were given.

    Attributes:
        mismatched: Those whose Patient ID stands for several people.
        unread: Those whose name could not be decoded and would have had to be compared.
        count: How many patients there are, by ID and issuer.
        shared_study: One of those in a study of several Patient IDs; None when there is no such study.
    """

    mismatched: frozenset[int]
    unread: frozenset[int]
    count: int
    shared_study: int | None


def compare(patients: Sequence[tuple[Patient, str]], *, one_issuer: bool = False) -> Comparison:
    """Compare the patients of a message.

    Args:
        patients: Each with the Study Instance UID of its instance. One without Patient ID is nobody's other.
        one_issuer: A rule will write one issuer into all of them, so what theirs say makes no difference.
    """
    people: dict[bytes, dict[bytes, list[int]]] = {}
    studies: dict[str, bytes] = {}
    shared: int | None = None
    for index, (patient, study) in enumerate(patients):
        if not patient.id:
            continue
        people.setdefault(patient.id, {}).setdefault(b"" if one_issuer else patient.issuer, []).append(index)
        if studies.setdefault(study, patient.id) != patient.id and shared is None:
            shared = index
    mismatched: set[int] = set()
    unread: set[int] = set()
    for by_issuer in people.values():
        for group in _groups(by_issuer):
            different, unknown = _judge([patients[index][0] for index in group])
            mismatched |= set(group) if different else set()
            unread |= {group[place] for place in unknown}
    count = sum(len(_groups(by_issuer)) for by_issuer in people.values())
    return Comparison(frozenset(mismatched), frozenset(unread), count, shared)


def _groups(by_issuer: dict[bytes, list[int]]) -> list[list[int]]:
    """Part the bearers of one Patient ID by issuer; one that names none may be anybody's."""
    anybody = by_issuer.get(b"", [])
    return [anybody + bearers for issuer, bearers in by_issuer.items() if issuer] or [anybody]


def _judge(patients: Sequence[Patient]) -> tuple[bool, list[int]]:
    """Tell whether these are several people, and whose names could not be decoded."""
    dates = {date for patient in patients if (date := re.sub(rb"\D", b"", patient.birth_date))}
    spellings = dict.fromkeys((patient.name, patient.character_set) for patient in patients if patient.name)
    if len({name for name, _ in spellings}) < 2:
        return len(dates) > 1, []
    read = {spelling: _decode(*spelling) for spelling in spellings}
    names = list(dict.fromkeys(fold(text) for text in read.values() if text is not None))
    unknown = [i for i, one in enumerate(patients) if read.get((one.name, one.character_set), "") is None]
    differ = any(are_different(one, other) for at, one in enumerate(names) for other in names[:at])
    return len(dates) > 1 or differ, unknown


# Names


def are_different(one: frozenset[tuple[str, str]], other: frozenset[tuple[str, str]]) -> bool:
    """Tell whether two folded names are really different: no group in common, and one script in which both are written.

    A name in Latin letters and one in ideographs may well be one person's; nobody can tell.
    """
    return not one & other and bool({script for script, _ in one} & {script for script, _ in other})


def fold(name: str) -> frozenset[tuple[str, str]]:
    """Reduce a name (PN) to what makes it this name: for each character group its script and its letters.

    Family, given and middle name count; titles do not (PS3.5 6.2.1).
    """
    groups = ("".join(map(_letters, group.split("^")[:3])) for group in name.split("="))
    return frozenset((_script(letters), letters) for letters in groups if letters)


_MARKS: Final = 200
"""Canonical combining class from which on a mark is a diacritic; below are voicing marks, which make other letters."""

_SPELLINGS: Final = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "\u0131": "i", "æ": "a", "œ": "o"}
)
_UMLAUTS: Final = re.compile(r"(?<=[aou])e|(?<=a)a")


def _letters(component: str) -> str:
    """Reduce a component to its letters and digits, without case and diacritics.

    ``ä`` and ``ae``, ``å`` and ``aa`` are one: they are written so where there is no such letter.
    """
    plain = unicodedata.normalize("NFKD", component.casefold())
    plain = "".join(one for one in plain if unicodedata.combining(one) < _MARKS)
    plain = unicodedata.normalize("NFKC", plain).casefold().translate(_SPELLINGS)
    return _UMLAUTS.sub("", "".join(one for one in plain if one.isalnum()))


def _script(letters: str) -> str:
    return unicodedata.name(letters[0], "UNKNOWN").split()[0]


# Characters (PS3.3 C.12.1.1.2, PS3.5 6.1)

CHARACTER_SETS: Final = {
    "": "ascii",
    "ISO_IR 6": "ascii",
    "ISO_IR 13": "shift_jis",
    "ISO_IR 100": "latin-1",
    "ISO_IR 101": "iso8859-2",
    "ISO_IR 109": "iso8859-3",
    "ISO_IR 110": "iso8859-4",
    "ISO_IR 126": "iso8859-7",
    "ISO_IR 127": "iso8859-6",
    "ISO_IR 138": "iso8859-8",
    "ISO_IR 144": "iso8859-5",
    "ISO_IR 148": "iso8859-9",
    "ISO_IR 166": "tis-620",
    "ISO_IR 192": "utf-8",
    "ISO_IR 203": "iso8859-15",
    "GB18030": "gb18030",
    "GBK": "gbk",
}
_DEFINED_TERM: Final = re.compile(r"(?:ISO[ _-]?)?(?:2022[ _-]?)?IR[ _-]?([0-9]+)")

_ESCAPES: Final = {
    b"(B": "ascii",
    b"(J": "shift_jis",
    b")I": "shift_jis",
    b"-A": "latin-1",
    b"-B": "iso8859-2",
    b"-C": "iso8859-3",
    b"-D": "iso8859-4",
    b"-F": "iso8859-7",
    b"-G": "iso8859-6",
    b"-H": "iso8859-8",
    b"-L": "iso8859-5",
    b"-M": "iso8859-9",
    b"-T": "tis-620",
    b"-b": "iso8859-15",
    b"$)A": "gb2312",
    b"$)C": "euc_kr",
    b"$B": "iso2022_jp",
    b"$(D": "iso2022_jp_2",
}
_ESCAPE: Final = re.compile(rb"\x1b(\$[()]?.|[-()].)", re.DOTALL)
_DELIMITER: Final = re.compile(rb"[\^=\\\r\n\f\t]")


@lru_cache(maxsize=256)
def _decode(value: bytes, character_set: bytes) -> str | None:
    return decode(value, character_set)


def decode(value: bytes, character_set: bytes) -> str | None:
    """Read text in a Specific Character Set; None when it is none, or in a set nobody knows.

    Args:
        value: Its bytes.
        character_set: The value of (0008,0005), one or several.
    """
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")  # so in every set there is
    default = _codec(character_set.decode("latin-1").split("\\")[0])
    if default is None:
        return None
    try:
        first, *pieces = _ESCAPE.split(value)
        text = first.decode(default)
        for escape, piece in zip(pieces[::2], pieces[1::2], strict=True):
            text += _piece(escape, piece, default)
    except UnicodeDecodeError:
        return None
    return text if "\x1b" not in text else None


def _codec(term: str) -> str | None:
    term = term.strip(" \0").upper()
    number = _DEFINED_TERM.fullmatch(term)
    # QUIRK: consoles that write ISO-IR 100 or IR 100 for ISO_IR 100; only the number tells.
    return CHARACTER_SETS.get(f"ISO_IR {number[1]}" if number else term)


def _piece(escape: bytes, piece: bytes, default: str) -> str:
    """Read what follows an escape sequence: in its set up to a delimiter, then in the first set (PS3.5 6.1.2.5.3)."""
    codec = _ESCAPES.get(escape)
    if codec is None:
        raise UnicodeDecodeError("iso2022", piece, 0, 0, "unknown escape sequence")
    if codec.startswith("iso2022"):
        # Here bytes are halves of characters, that of a circumflex too: they end with the next escape sequence.
        return (b"\x1b" + escape + piece).decode(codec)
    end = _DELIMITER.search(piece)
    at = end.start() if end else len(piece)
    return piece[:at].decode(codec) + piece[at:].decode(default)
