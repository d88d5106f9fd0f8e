"""A DICOMDIR written (PS3.3 Annex F, PS3.10 8): the files of one file-set, described by directory records.

The header of each instance is walked once, and only as far as its keys lie. What was found is kept as the bytes of its
records, some hundred for each instance; the directory is put together from them without building a data set.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from struct import Struct
from typing import Any, Final

from gateway.core import dataset, records
from gateway.core.dataset import Found, Inflated, Problem, Source, Stored
from gateway.core.records import Key
from gateway.model import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, MEDIA_STORAGE_DIRECTORY, Span

UID_LENGTH: Final = 44
"""Characters of every File-set UID: ``2.25.`` and 39 digits. Sizes are known before the UID is."""

_LEVELS: Final = ("PATIENT", "STUDY", "SERIES")
_PIXEL_DATA: Final = 0x7FE00010
_DEEPEST: Final = 2
"""A key's items, and the code sequences in them."""

_INFLATED: Final = 8 << 30
"""Bytes a deflated header may inflate to: what lies before it is walked in pieces, so that only time is spent."""

_SEQUENCES: Final = frozenset(
    {key.tag for keys in records.LEAVES.values() for key in keys if key.vr == b"SQ"}
    | {tag for tag, vr in records.NESTED.items() if vr == b"SQ"}
    | {records.VERIFYING_OBSERVERS}
)
_BINARY: Final = frozenset(key.tag for keys in records.LEAVES.values() for key in keys if key.vr in (b"US", b"UL"))
_LONG_VRS: Final = (b"OB", b"SQ", b"UC", b"UR", b"UT")
_SHORT_HEAD: Final = Struct("<HH2sH")
_LONG_HEAD: Final = Struct("<HH2s2xL")
_ITEM_HEAD: Final = Struct("<HHL")
_LONG: Final = Struct("<L")
_WORD: Final = re.compile(rb"[^\s^=,.*]{2,}")


@dataclass(frozen=True, slots=True)
class Member:
    """A DICOM file that shall become part of a file-set.

    Attributes:
        sop_class: SOP Class UID (0008,0016).
        sop_instance: SOP Instance UID (0008,0018).
        study: Study Instance UID (0020,000D).
        series: Series Instance UID (0020,000E).
        transfer_syntax: Transfer Syntax UID (0002,0010).
        file: Its bytes, preamble included.
        data_set: Offset of the data set behind group 0002, counted from ``file.start``.
        sha256: Of the file, in hexadecimal; said in the head of its part when it is given (R23).
    """

    sop_class: str
    sop_instance: str
    study: str
    series: str
    transfer_syntax: str
    file: Span
    data_set: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Person:
    """Who an instance says its patient is, as raw bytes without padding. Patient data: never logged."""

    id: bytes = field(repr=False)
    issuer: bytes = field(repr=False)
    birth_date: bytes = field(repr=False)
    name: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """A member and what its directory records will say. Holds patient data: never logged.

    Attributes:
        member: The file.
        person: Its patient.
        records: The encoded keys of its PATIENT, STUDY and SERIES records and of its own; the Patient ID is not among
            them when the object has none.
        type: Directory Record Type (0004,1430) of its own record.
    """

    member: Member
    person: Person = field(repr=False)
    records: tuple[bytes, bytes, bytes, bytes] = field(repr=False)
    type: str


@dataclass(frozen=True, slots=True)
class FileSet:
    """Instances that travel together, with one DICOMDIR (FS-4). Each has a File ID: a counter, no meaning (P10-13).

    Attributes:
        entries: In the order of their File IDs.
    """

    entries: tuple[Entry, ...]


def describe(member: Member) -> Entry:
    """Read from an instance what its directory records need. Blocking: it reads some 64 KB of the file.

    The object is not touched; type 1 keys that it lacks are supplied in ASCII (DIR-9). A header that cannot be walked
    gives records made of the member's own UIDs: no image is left out of a mail for the sake of its DICOMDIR.

    Raises:
        OSError: The file cannot be read.
    """
    kind = records.TYPES.get(member.sop_class)
    try:
        values = _read(member, _Wish.of(kind or records.IMAGE))
    except Problem:
        values = {}
    if kind is None:
        # A class nobody told us about: what has rows and columns is found by those who look for images.
        kind = records.IMAGE if values.keys() >= {records.ROWS, records.COLUMNS} else records.PRIVATE
    values[records.STUDY_UID] = member.study.encode("latin-1", "replace")
    values[records.SERIES_UID] = member.series.encode("latin-1", "replace")
    person = Person(
        *(_plain(values, tag) for tag in (records.PATIENT_ID, records.ISSUER, records.BIRTH_DATE, records.PATIENT_NAME))
    )
    if kind in records.ROOT_LEVEL:
        return Entry(member, person, (b"", b"", b"", _keys(records.LEAVES[kind], values)), kind)
    levels = (records.PATIENT, records.STUDY, records.SERIES, records.LEAVES[kind])
    patient, study, series, leaf = (_keys(level, values) for level in levels)
    return Entry(member, person, (patient, study, series, leaf), kind)


def file_id(index: int) -> str:
    """Return the File ID of the member at an index: one component of eight characters (P10-10, P10-11, P10-13)."""
    return f"IM{index + 1:06}"


def encode(file_set: FileSet, uid: str) -> bytes:
    """Encode the DICOMDIR of a file-set, as a whole file in Explicit VR Little Endian (FSC-5, FSC-6, DIR-1 to DIR-12).

    Args:
        file_set: Its members; what cannot share a directory has been kept ``apart``.
        uid: The File-set UID (DIR-1).
    """
    root = _Record(b"")
    ids = {entry.person.id for entry in file_set.entries}
    supplied = (name for number in itertools.count(1) if (name := b"NOID%04d" % number) not in ids)
    known: dict[tuple[object, ...], _Record] = {}
    for index, entry in enumerate(file_set.entries):
        parent = root
        for level, key in enumerate(path(entry)):
            if key not in known:
                keys = entry.records[level]
                if level == 0 and not entry.person.id:
                    keys += element(records.PATIENT_ID, b"LO", next(supplied))
                known[key] = parent.add(_record(_LEVELS[level], keys))
            parent = known[key]
        parent.add(_leaf(entry, file_id(index)))
    head = _meta(uid)
    first = len(head) + _BEFORE_RECORDS
    end = root.place(first)
    last = root.below[-1].at
    return b"".join((head, _data_set(first, last, end - first), *root.written()))


def size_of(tally: Tally) -> int:
    """Return how many bytes the DICOMDIR of the entries in a tally has."""
    return len(_meta("2." + "0" * (UID_LENGTH - 2))) + _BEFORE_RECORDS + tally.size


@dataclass(slots=True)
class Tally:
    """Counts the bytes of the records that entries need, one entry after another, without encoding them.

    Attributes:
        size: Bytes of all records so far.
    """

    size: int = 0
    _known: set[tuple[object, ...]] = field(default_factory=set)

    def add(self, entry: Entry) -> None:
        """Count one more entry."""
        for level, key in enumerate(path(entry)):
            if key not in self._known:
                self._known.add(key)
                supplied = 16 if level == 0 and not entry.person.id else 0  # an element of eight characters
                self.size += len(_record(_LEVELS[level], entry.records[level])) + supplied
        self.size += len(_leaf(entry, file_id(0)))

    def copy(self) -> Tally:
        """Return another one that has counted the same."""
        return Tally(self.size, self._known.copy())


def path(entry: Entry) -> tuple[tuple[object, ...], ...]:
    """Return what tells the PATIENT, STUDY and SERIES records of an entry from others; empty for the root level."""
    if entry.type in records.ROOT_LEVEL:
        return ()
    member = entry.member
    # Without a Patient ID, nothing but the study says that two objects are of one person.
    patient = (entry.person.id,) if entry.person.id else (b"", member.study)
    return patient, (*patient, member.study), (*patient, member.study, member.series)


def apart(entries: Iterable[Entry]) -> tuple[tuple[Entry, ...], ...]:
    """Keep apart what cannot share one DICOMDIR (FSC-7, DIR-11), in order. Usually everything can.

    Two people with one Patient ID, one study, series or instance of two patients: each goes to a file-set of its own.
    """
    shares: list[_Share] = []
    for entry in entries:
        if not any(share.take(entry) for share in shares):
            shares.append(_Share())
            shares[-1].take(entry)
    return tuple(tuple(share.entries) for share in shares)


class _Share:
    """Entries of one directory, and what in it there may be once only."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._owners: dict[tuple[str, str], tuple[object, ...]] = {}
        self._people: dict[tuple[object, ...], Person] = {}

    def take(self, entry: Entry) -> bool:
        """Take an entry, unless something in it already stands for something else."""
        member = entry.member
        claims: dict[tuple[str, str], tuple[object, ...]] = {("instance", member.sop_instance): (len(self.entries),)}
        person = None
        where = path(entry)
        if where:
            claims["study", member.study], claims["series", member.series] = where[0], where[1]
            known = self._people.get(where[0], entry.person)
            if not _is_same(known, entry.person):
                return False
            person = _complete(known, entry.person)
        if any(self._owners.get(name, owner) != owner for name, owner in claims.items()):
            return False
        self._owners |= claims
        if person:
            self._people[where[0]] = person
        self.entries.append(entry)
        return True


def _is_same(one: Person, other: Person) -> bool:
    """Tell whether two may be one person: nothing both say is different, and their names have a word in common."""
    pairs = ((one.issuer, other.issuer), (one.birth_date, other.birth_date))
    names = _WORD.findall(one.name.upper()), _WORD.findall(other.name.upper())
    return all(a == b for a, b in pairs if a and b) and (not all(names) or not set(names[0]).isdisjoint(names[1]))


def _complete(one: Person, other: Person) -> Person:
    return Person(one.id, one.issuer or other.issuer, one.birth_date or other.birth_date, one.name or other.name)


# What is read of an object.


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a walk for one type of record looks for."""

    wanted: frozenset[int]
    nested: bool
    until: int

    @staticmethod
    @cache
    def of(kind: str) -> _Wish:
        """Look for the keys of all levels, for what may stand in for them, and for what tells people apart."""
        keys = (*records.PATIENT, *records.STUDY, *records.SERIES, *records.LEAVES[kind])
        tags = {key.tag for key in keys}.union(*((*key.instead, key.inside or key.tag) for key in keys))
        tags |= {records.CHARACTER_SET, records.ISSUER, records.BIRTH_DATE}
        if kind == records.IMAGE:
            tags |= {records.ROWS, records.COLUMNS}
        until = max(tags)
        nested = any(key.vr == b"SQ" for key in keys)
        if nested:
            tags |= {*records.NESTED, dataset.ITEM}
        # Pixel Data is not read; wanted, it ends the walk.
        return _Wish(frozenset({*tags, _PIXEL_DATA}), nested, until)


Values = dict[int, Any]
"""Values by tag: bytes, and lists of the same for sequences."""


def _read(member: Member, wish: _Wish) -> Values:
    """Walk the header of an object and collect what was wished for."""
    with member.file.path.open("rb", buffering=0) as file:
        source: Source = Stored(
            lambda offset, size: os.pread(file.fileno(), size, member.file.start + offset), b"", member.file.size
        )
        start = member.data_set
        if member.transfer_syntax == dataset.DEFLATED:
            source, start = Inflated(source, start, _INFLATED), 0
        walked = dataset.walk(
            source,
            start,
            member.transfer_syntax,
            wish.wanted,
            nested=wish.nested,
            deepest=_DEEPEST,
            until=wish.until,
        )
    values, _ = _tree(walked.found, 0, 0)
    if member.transfer_syntax == dataset.BIG_ENDIAN:
        for tag in values.keys() & _BINARY:
            values[tag] = values[tag][::-1]
    return values


def _tree(found: Sequence[Found], at: int, depth: int) -> tuple[Values, int]:
    """Put what a walk found back in its items, from an index on to the end of one item; return where that is."""
    values: Values = {}
    while at < len(found) and found[at].depth >= depth:
        one = found[at]
        if one.depth == depth and one.tag == dataset.ITEM:
            break
        at += 1
        if one.depth > depth:
            continue  # in a sequence nobody asked for
        if one.tag not in _SEQUENCES:
            values.setdefault(one.tag, one.value)
            continue
        items: list[Values] = []
        while at < len(found) and (found[at].depth, found[at].tag) == (depth + 1, dataset.ITEM):
            item, at = _tree(found, at + 1, depth + 1)
            items.append(item)
        values.setdefault(one.tag, items)
    return values, at


def _plain(values: Values, tag: int) -> bytes:
    value: bytes = values.get(tag, b"")
    return value.strip(b" \0")


# What is written.


class _Record:
    """A directory record on its way into the file: its place, and those below it."""

    __slots__ = ("at", "below", "content", "next")

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.below: list[_Record] = []
        self.at = self.next = 0

    def add(self, content: bytes) -> _Record:
        """Add a record below this one."""
        self.below.append(_Record(content))
        return self.below[-1]

    def place(self, at: int) -> int:
        """Give everything below its place, from an offset on; return the offset behind."""
        for record, successor in itertools.zip_longest(self.below, self.below[1:]):
            record.at = at
            at = record.place(at + len(record.content))
            record.next = at if successor else 0
        return at

    def written(self) -> Iterator[bytes]:
        """Yield all records below, each with its offsets (DIR-3, DIR-4)."""
        for record in self.below:
            lower = record.below[0].at if record.below else 0
            yield _ITEM_HEAD.pack(0xFFFE, 0xE000, len(record.content) - 8)
            yield element(0x00041400, b"UL", _LONG.pack(record.next))
            yield _IN_USE
            yield element(0x00041420, b"UL", _LONG.pack(lower))
            yield record.content[_RECORD_HEAD:]
            yield from record.written()


def _record(kind: str, keys: bytes, reference: bytes = b"") -> bytes:
    """Encode a record with its item; its offsets come later."""
    return bytes(_RECORD_HEAD) + element(0x00041430, b"CS", kind.encode()) + reference + keys


def _leaf(entry: Entry, name: str) -> bytes:
    """Encode a record that references a file (DIR-5)."""
    member = entry.member
    reference = b""
    if entry.type == records.PRIVATE:
        reference = element(0x00041432, b"UI", records.PRIVATE_RECORD_UID.encode())
    reference += element(0x00041500, b"CS", name.encode())
    uids = (member.sop_class, member.sop_instance, member.transfer_syntax)
    reference += b"".join(
        element(0x00041510 + n, b"UI", uid.encode("latin-1", "replace")) for n, uid in enumerate(uids)
    )
    return _record(entry.type, entry.records[3], reference)


def _keys(keys: Iterable[Key], values: Values) -> bytes:
    """Encode the keys of a record in ascending order, with the character set their bytes are in (DIR-12)."""
    encoded = {key.tag: _key(key, values) for key in keys}
    if encoded and values.get(records.CHARACTER_SET):
        encoded[records.CHARACTER_SET] = element(records.CHARACTER_SET, b"CS", values[records.CHARACTER_SET])
    return b"".join(encoded[tag] for tag in sorted(encoded))


def _key(key: Key, values: Values) -> bytes:
    if key.vr == b"SQ":
        return _sequence(key, values.get(key.tag, []))
    if key.inside:
        values = {key.tag: max((_plain(item, key.tag) for item in values.get(key.inside, [])), default=b"")}
    for tag in (key.tag, *key.instead):
        value: bytes = values.get(tag, b"")
        if value and (key.tag in _BINARY or value.strip(b" \0")):
            return element(key.tag, key.vr, value)
    return b"" if key.type == "1C" else element(key.tag, key.vr, key.supplied)


def _sequence(key: Key, items: list[Values]) -> bytes:
    if key.tag == records.CONTENT_SEQUENCE:
        # Only what modifies the title belongs to a record (F.5.25, F.5.26).
        items = [item for item in items if _plain(item, records.RELATIONSHIP) == b"HAS CONCEPT MOD"]
    if not items and key.type == "1":
        items = [_TITLE if key.tag == records.CONCEPT_NAME else {}]
    if not items and key.type == "1C":
        return b""
    return element(key.tag, b"SQ", b"".join(map(_item, items)))


def _item(values: Values) -> bytes:
    content = b""
    for tag in sorted(values):
        value = values[tag]
        vr = records.NESTED.get(tag)
        if vr == b"SQ":
            content += element(tag, vr, b"".join(map(_item, value)))
        elif vr is not None:
            content += element(tag, vr, value)
    return _ITEM_HEAD.pack(0xFFFE, 0xE000, len(content)) + content


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """Encode an element in Explicit VR Little Endian, padded to an even length (PS3.5 7.1.2)."""
    if len(value) % 2:
        value += b"\0" if vr in (b"UI", b"OB") else b" "
    head = _SHORT_HEAD if vr not in _LONG_VRS else _LONG_HEAD
    return head.pack(tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def _meta(uid: str) -> bytes:
    """Encode preamble, prefix and group 0002 (P10-3)."""
    content = element(0x00020001, b"OB", b"\0\1")
    content += element(0x00020002, b"UI", MEDIA_STORAGE_DIRECTORY.encode())
    content += element(0x00020003, b"UI", uid.encode())
    content += element(0x00020010, b"UI", dataset.EXPLICIT.encode())
    content += element(0x00020012, b"UI", IMPLEMENTATION_CLASS_UID.encode())
    content += element(0x00020013, b"SH", IMPLEMENTATION_VERSION_NAME.encode())
    return bytes(128) + b"DICM" + element(0x00020000, b"UL", _LONG.pack(len(content))) + content


def _data_set(first: int, last: int, size: int) -> bytes:
    """Encode what comes before the records (PS3.3 Table F.3-2, F.3-3)."""
    return (
        element(0x00041130, b"CS", b"")
        + element(0x00041200, b"UL", _LONG.pack(first))
        + element(0x00041202, b"UL", _LONG.pack(last))
        + element(0x00041212, b"US", b"\0\0")
        + _LONG_HEAD.pack(0x0004, 0x1220, b"SQ", size)
    )


_BEFORE_RECORDS: Final = len(_data_set(0, 0, 0))
_IN_USE: Final = element(0x00041410, b"US", b"\xff\xff")
_RECORD_HEAD: Final = _ITEM_HEAD.size + 2 * len(element(0x00041400, b"UL", bytes(4))) + len(_IN_USE)
_TITLE: Final[Values] = {0x00080100: b"121144", 0x00080102: b"DCM", 0x00080104: b"Document Title"}
