"""What a route changes in a data set, and nothing else: Patient ID, Issuer of Patient ID, Accession Number.

A foreign clinic's numbers mean nothing here and may mean someone else. What was there before goes into Original
Attributes Sequence (0400,0561), with what is there already kept (PS3.3 C.12.1.1.9). The data set is never built anew:
a few ranges of its bytes are replaced, and all others stay as they came (R8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from struct import Struct
from typing import Final, NamedTuple

from gateway.core import dataset, patient
from gateway.core.dataset import Chart, Problem, Source

ACCESSION: Final = 0x00080050
ORIGINALS: Final = 0x04000561
_MODIFIED: Final = 0x04000550
_MOMENT: Final = 0x04000562
_SYSTEM: Final = 0x04000563
_SOURCE: Final = 0x04000564
_REASON: Final = 0x04000565
_SIGNED: Final = frozenset((0x4FFE0001, 0xFFFAFFFA))
"""MAC Parameters Sequence and Digital Signatures Sequence (PS3.3 C.12.1.1.3)."""

_GROUP_LENGTHS: Final = frozenset((0x00080000, 0x00100000, 0x04000000))
_TAGS: Final = _SIGNED | _GROUP_LENGTHS | {ACCESSION, patient.ID, patient.ISSUER, patient.CHARACTER_SET, ORIGINALS}

ROOM: Final = 4096
"""Bytes that a data set grows by at most."""

_SEQUENCES: Final = (b"SQ", b"UN", b"")
_ITEM_BEGINS: Final = b"\xfe\xff\x00\xe0"
_LONGEST: Final = 1024
"""Bytes of a value that can be kept on record. None of these may have more than 64 characters."""

_LO_LIMIT: Final = 64
"""Characters of a Long String (PS3.5 6.2)."""

_DELIMITER: Final = 8
"""Bytes of a Sequence Delimitation Item."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a route changes.

    Attributes:
        issuer: Written to Issuer of Patient ID; None: unchanged.
        prefix: Put before each Patient ID that is there; empty: unchanged.
        clear_accession: Accession Number is emptied.
    """

    issuer: str | None = None
    prefix: str = ""
    clear_accession: bool = False

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return bool(self.issuer or self.prefix or self.clear_accession)


@dataclass(frozen=True, slots=True)
class Coercion:
    """A rule, and what is put on record with what it changes.

    Attributes:
        rule: What is changed.
        moment: When, as Attribute Modification DateTime (0400,0562).
        system: Who did, as Modifying System (0400,0563). ASCII.
        source: Whom it came from, as Source of Previous Values (0400,0564). ASCII, may be empty.
    """

    rule: Rule
    moment: datetime
    system: str
    source: str = ""


class Edit(NamedTuple):
    """A range of bytes that is replaced; an empty one is where something is put in."""

    start: int
    end: int
    content: bytes

    @property
    def growth(self) -> int:
        """Bytes by which there are more."""
        return len(self.content) - (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a data set is changed.

    Attributes:
        rules: The keys of the route that change it: ``issuer``, ``patient_id``, ``accession``.
        edits: In rising order, none over another.
    """

    rules: tuple[str, ...]
    edits: tuple[Edit, ...]

    @property
    def growth(self) -> int:
        """Bytes that the data set grows by. Always some: what is taken away goes on record."""
        return sum(edit.growth for edit in self.edits)


class _Change(NamedTuple):
    key: str
    tag: int
    vr: bytes
    value: bytes


def plan(source: Source, start: int, transfer_syntax: str, coercion: Coercion) -> Plan | None:
    """Find what a rule changes in a data set; None when it changes nothing.

    Args:
        source: Where the data set lies. A deflated one is inflated by the caller.
        start: Offset of its first element.
        transfer_syntax: What its bytes are in.
        coercion: The rule, and what goes on record.

    Raises:
        Problem: It must not or cannot be changed: ``signed-instance``, ``invalid-patient-id``, ``not-coerced``,
            ``repeated-element``, and as in ``dataset.walk``.
    """
    chart = dataset.locate(source, start, transfer_syntax, _TAGS)
    changes = _changes(chart, coercion.rule)
    if not changes:
        return None
    if _SIGNED & chart.places.keys():
        raise Problem("signed-instance")
    form = Form(transfer_syntax)
    edits = [(change.tag, _replacement(chart, form, change)) for change in changes]
    item = _item(form if not _is_unknown(chart) else Form(dataset.IMPLICIT), coercion, _previous(chart, changes))
    edits += [(ORIGINALS, edit) for edit in _record(chart, form, item)]
    edits += [(tag, edit) for tag, edit in _group_lengths(chart, form, edits)]
    made = Plan(tuple(change.key for change in changes), tuple(sorted((edit for _, edit in edits), key=_place)))
    if made.growth > ROOM:
        raise Problem("not-coerced")
    return made


def _place(edit: Edit) -> tuple[int, int]:
    """Say where an edit belongs; of several that put something in at one place, the order stays."""
    return edit.start, edit.end


def spliced(source: Source, start: int, edits: Sequence[Edit], end: int | None = None) -> Iterator[bytes]:
    """Give the bytes from one offset to another, or to the end, with the edits in place."""
    for edit in edits:
        yield from _bytes(source, start, edit.start)
        yield edit.content
        start = edit.end
    yield from _bytes(source, start, end)


def _bytes(source: Source, start: int, end: int | None) -> Iterator[bytes]:
    while (end is None or start < end) and (piece := source.piece(start)):
        yield piece if end is None else piece[: end - start]
        start += len(piece)


# What changes


def _changes(chart: Chart, rule: Rule) -> list[_Change]:
    """Say which values a rule changes, in the order of their tags."""
    changes = []
    if rule.clear_accession and patient.strip(_value(chart, ACCESSION)):
        changes.append(_Change("accession", ACCESSION, b"SH", b""))
    # Without a Patient ID there is nothing to prefix: the prefix alone would be one ID for many people.
    if rule.prefix and (old := patient.strip(_value(chart, patient.ID))):
        new = rule.prefix.encode("ascii") + old
        character_set = patient.strip(_value(chart, patient.CHARACTER_SET))
        text = patient.decode(new, character_set) or new.decode("latin-1")
        if len(text) > _LO_LIMIT or "\\" in text:
            raise Problem("invalid-patient-id")
        changes.append(_Change("patient_id", patient.ID, b"LO", new))
    if rule.issuer and patient.strip(_value(chart, patient.ISSUER)) != (issuer := rule.issuer.encode("ascii")):
        changes.append(_Change("issuer", patient.ISSUER, b"LO", issuer))
    return changes


def _value(chart: Chart, tag: int) -> bytes:
    place = chart.places.get(tag)
    if place is None:
        return b""
    if place.value is None or len(place.value) > _LONGEST:
        raise Problem("not-coerced")
    return place.value


def _replacement(chart: Chart, form: Form, change: _Change) -> Edit:
    place = chart.places.get(change.tag)
    gap = chart.gaps[change.tag]
    start, end = (place.start, place.end) if place else (gap, gap)
    return Edit(start, end, form.element(change.tag, change.vr, change.value))


def _group_lengths(chart: Chart, form: Form, edits: list[tuple[int, Edit]]) -> Iterator[tuple[int, Edit]]:
    """Keep the retired group lengths true where there are any (PS3.5 7.2): they say where the next group begins."""
    for tag in _GROUP_LENGTHS & chart.places.keys():
        place = chart.places[tag]
        grown = sum(edit.growth for changed, edit in edits if changed >> 16 == tag >> 16)
        if grown and place.value is not None and len(place.value) == form.long.size:
            (length,) = form.long.unpack(place.value)
            yield tag, Edit(place.content, place.end, form.long.pack((length + grown) % (1 << 32)))


# What goes on record


def _previous(chart: Chart, changes: Sequence[_Change]) -> list[_Change]:
    """Say what was there before; what was not there is recorded as empty (PS3.3 C.12.1.1.9)."""
    changed = {change.tag: change for change in changes}
    if patient.ID in changed:
        # An ID means what its issuer makes of it, so that one is kept beside it, changed or not.
        changed.setdefault(patient.ISSUER, _Change("issuer", patient.ISSUER, b"LO", b""))
    return [changed[tag]._replace(value=_value(chart, tag)) for tag in sorted(changed)]


def _item(form: Form, coercion: Coercion, previous: Sequence[_Change]) -> bytes:
    """Encode the item that tells what was changed, when, by whom and why. Its character set is that of the data set."""
    kept = form.item(b"".join(form.element(one.tag, one.vr, one.value) for one in previous))
    moment = coercion.moment.astimezone(UTC).strftime("%Y%m%d%H%M%S.%f+0000")
    return form.item(
        form.element(_MODIFIED, b"SQ", kept)
        + form.element(_MOMENT, b"DT", moment.encode("ascii"))
        + form.element(_SYSTEM, b"LO", coercion.system.encode("ascii", "ignore")[:_LO_LIMIT])
        + form.element(_SOURCE, b"LO", coercion.source.encode("ascii", "ignore")[:_LO_LIMIT])
        + form.element(_REASON, b"CS", b"COERCE")
    )


def _is_unknown(chart: Chart) -> bool:
    """Tell whether the sequence came as UN: then Implicit VR Little Endian is inside (PS3.5 6.2.2)."""
    return ORIGINALS in chart.places and chart.places[ORIGINALS].vr == b"UN"


def _record(chart: Chart, form: Form, item: bytes) -> list[Edit]:
    """Append an item to Original Attributes Sequence, which is made where there is none."""
    place = chart.places.get(ORIGINALS)
    if place is None:
        gap = chart.gaps[ORIGINALS]
        return [Edit(gap, gap, form.element(ORIGINALS, b"SQ", item))]
    strange = place.value and not place.value.startswith(_ITEM_BEGINS)
    if strange or place.vr not in (_SEQUENCES if form.is_little else (b"SQ",)):
        raise Problem("not-coerced")
    if place.length == dataset.UNDEFINED:
        return [Edit(place.end - _DELIMITER, place.end - _DELIMITER, item)]
    length_at = place.content - form.long.size
    longer = form.long.pack(place.length + len(item))
    return [Edit(length_at, place.content, longer), Edit(place.end, place.end, item)]


class Form:
    """How elements are encoded in a transfer syntax (PS3.5 7.1).

    Args:
        transfer_syntax: Every one that is not named in ``dataset`` is Explicit VR Little Endian.
    """

    def __init__(self, transfer_syntax: str) -> None:
        order = ">" if transfer_syntax == dataset.BIG_ENDIAN else "<"
        self.explicit = transfer_syntax not in (dataset.IMPLICIT, dataset.GE_IMPLICIT)
        self.is_little = order == "<"
        self.long = Struct(order + "L")
        self._tag = Struct(order + "HH")
        self._short = Struct(order + "H")

    def element(self, tag: int, vr: bytes, value: bytes) -> bytes:
        """Encode an element, a text padded to even length."""
        value += b" " * (len(value) % 2)
        head = self._tag.pack(tag >> 16, tag & 0xFFFF)
        if not self.explicit:
            return head + self.long.pack(len(value)) + value
        if vr == b"SQ":
            return head + vr + b"\0\0" + self.long.pack(len(value)) + value
        return head + vr + self._short.pack(len(value)) + value

    def item(self, content: bytes) -> bytes:
        """Encode an item of defined length."""
        return self._tag.pack(0xFFFE, 0xE000) + self.long.pack(len(content)) + content
