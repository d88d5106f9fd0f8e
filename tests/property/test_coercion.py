"""Data sets of every kind in every syntax: a rule changes what it names, records what was there, and nothing else.

The oracle encodes what must come out with an encoder of its own, byte for byte; pydicom reads it.
"""

from __future__ import annotations

import io
import struct
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pydicom
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import coercion, dataset
from gateway.core.coercion import Coercion, Rule
from gateway.core.dataset import Inflated, Stored
from gateway.model import Instance
from tests.samples import (
    BIG_ENDIAN,
    CT,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    content,
    dicom_file,
    element,
    item,
    mail,
    part,
    reading,
    sequence_end,
)

MOMENT = datetime(2026, 11, 23, 12, 30, 15, 42, tzinfo=UTC)
ORIGINALS = 0x04000561
ACCESSION, ID, ISSUER = 0x00080050, 0x00100020, 0x00100021
SYNTAXES = (EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED)


@dataclass(frozen=True)
class DataSet:
    """Elements by tag, encoded; and the values of those that a rule may change."""

    syntax: str
    elements: dict[int, bytes]
    values: dict[int, bytes]
    originals: bytes  # the items of (0400,0561)
    undefined: bool  # that sequence is of undefined length
    tail: bytes

    @property
    def order(self) -> str:
        return ">" if self.syntax == BIG_ENDIAN else "<"

    def encode(self) -> bytes:
        return b"".join(self.elements[tag] for tag in sorted(self.elements)) + self.tail

    def one(self, tag: int, vr: str, value: bytes | str) -> bytes:
        return element(tag, vr, value, self.syntax)

    def sequence(self, items: bytes) -> bytes:
        if not self.undefined:
            return self.one(ORIGINALS, "SQ", items)
        head = element(ORIGINALS, "SQ", b"", self.syntax, length=0xFFFFFFFF)
        return head + items + sequence_end(self.order)


VALUES = st.binary(max_size=40).map(lambda value: value.replace(b"\\", b"/").replace(b"\x1b", b"_"))
NUMBERS = st.text("0123456789 AZ-", max_size=30).map(lambda text: text.encode())


@st.composite
def data_sets(draw: st.DrawFn) -> DataSet:
    """Draw a data set with any of the elements a rule is about, among others of every form."""
    syntax = draw(st.sampled_from(SYNTAXES))
    made = DataSet(syntax, {}, {}, b"", draw(st.booleans()), draw(st.sampled_from((b"", b"\0" * 6, b"\0" * 20))))
    put = made.elements
    for tag, vr, value in ((0x00080016, "UI", CT), (0x00080018, "UI", "1.2.3.4"), (0x0020000D, "UI", "1.2.3")):
        put[tag] = made.one(tag, vr, value)
    put[0x0020000E] = made.one(0x0020000E, "UI", "1.2.3.1")
    if draw(st.booleans()):
        put[0x00080005] = made.one(0x00080005, "CS", "ISO_IR 100")
    for tag, vr in ((ACCESSION, "SH"), (ID, "LO"), (ISSUER, "LO")):
        if draw(st.booleans()):
            value = draw(NUMBERS)
            put[tag] = made.one(tag, vr, value)
            made.values[tag] = value + b" " * (len(value) % 2)
    inner = item(made.one(ID, "LO", "INNER") + made.one(ISSUER, "LO", "INNER"), order=made.order)
    others = (
        (0x00080060, made.one(0x00080060, "CS", "CT")),
        (0x00081111, made.one(0x00081111, "SQ", inner)),
        (0x00100010, made.one(0x00100010, "PN", draw(VALUES))),
        (0x00101002, element(0x00101002, "SQ", b"", syntax, length=0xFFFFFFFF) + inner + sequence_end(made.order)),
        (0x00101010, made.one(0x00101010, "AS", "030Y")),
        (0x00290010, made.one(0x00290010, "LO", "PRIVATE")),
        (0x00291001, made.one(0x00291001, "UN", draw(VALUES))),
        (0x04000500, made.one(0x04000500, "SQ", b"")),
        (0x40080040, made.one(0x40080040, "SH", "x")),
        (0x7FE00010, made.one(0x7FE00010, "OW", draw(st.binary(min_size=8, max_size=200).filter(_even)))),
        (0xFFFCFFFC, made.one(0xFFFCFFFC, "OB", bytes(8))),
    )
    for tag, encoded in others:
        if draw(st.booleans()):
            put[tag] = encoded
    if draw(st.booleans()):
        before = made.one(0x04000563, "LO", "BEFORE") + made.one(0x04000564, "LO", "")
        made = replace(made, originals=draw(st.sampled_from((b"", item(before, order=made.order)))))
        put[ORIGINALS] = made.sequence(made.originals)
    if draw(st.booleans()):
        for group in (0x0008, 0x0010, 0x0400):
            lengths = [len(encoded) for tag, encoded in put.items() if tag >> 16 == group]
            if lengths:
                put[group << 16] = made.one(group << 16, "UL", struct.pack(made.order + "L", sum(lengths)))
    return made


def _even(value: bytes) -> bool:
    return len(value) % 2 == 0


RULES = st.builds(
    Rule,
    issuer=st.sampled_from((None, "CLINIC-A", "X")),
    prefix=st.sampled_from(("", "A-", "ABC")),
    clear_accession=st.booleans(),
)


def expected(given: DataSet, rule: Rule) -> tuple[DataSet, tuple[str, ...]]:
    """Say what must come out, and by which keys."""
    new: dict[int, bytes] = {}
    old = {tag: given.values.get(tag, b"").strip() for tag in (ACCESSION, ID, ISSUER)}
    if rule.clear_accession and old[ACCESSION]:
        new[ACCESSION] = b""
    if rule.prefix and old[ID]:
        new[ID] = rule.prefix.encode() + old[ID]
    if rule.issuer and old[ISSUER] != rule.issuer.encode():
        new[ISSUER] = rule.issuer.encode()
    if not new:
        return given, ()
    one, vrs = given.one, {ACCESSION: "SH", ID: "LO", ISSUER: "LO"}
    kept = sorted(new.keys() | ({ISSUER} if ID in new else set()))
    record = item(b"".join(one(tag, vrs[tag], given.values.get(tag, b"")) for tag in kept), order=given.order)
    record = item(
        one(0x04000550, "SQ", record)
        + one(0x04000562, "DT", "20261123123015.000042+0000")
        + one(0x04000563, "LO", "gw.example")
        + one(0x04000564, "LO", "clinic-a")
        + one(0x04000565, "CS", "COERCE"),
        order=given.order,
    )
    made = replace(given, elements=dict(given.elements), values={**given.values, **new})
    if ORIGINALS not in given.elements:
        made = replace(made, undefined=False)
    made = replace(made, originals=given.originals + record)
    made.elements.update({tag: one(tag, vrs[tag], value) for tag, value in new.items()})
    made.elements[ORIGINALS] = made.sequence(made.originals)
    for group in (0x0008, 0x0010, 0x0400):
        if group << 16 in made.elements:
            size = sum(len(encoded) for tag, encoded in made.elements.items() if 0 < tag - (group << 16) < 0x10000)
            made.elements[group << 16] = one(group << 16, "UL", struct.pack(given.order + "L", size))
    keys = {ACCESSION: "accession", ID: "patient_id", ISSUER: "issuer"}
    return made, tuple(keys[tag] for tag in sorted(new))


def rewritten(given: bytes, syntax: str, rule: Rule) -> tuple[bytes, tuple[str, ...]]:
    """Change an encoded data set as the reader does."""
    source = Stored(lambda at, size: given[at : at + size], given[:100], len(given))
    plan = coercion.plan(source, 0, syntax, Coercion(rule, MOMENT, "gw.example", "clinic-a"))
    if plan is None:
        return given, ()
    made = b"".join(coercion.spliced(source, 0, plan.edits))
    assert len(made) == len(given) + plan.growth
    assert 0 < plan.growth <= coercion.ROOM
    return made, plan.rules


@given(data_sets(), RULES)
def test_nothing_but_what_the_rule_names_is_changed(given: DataSet, rule: Rule) -> None:
    """R8: byte for byte, in every syntax; the originals are on record behind those that are."""
    want, keys = expected(given, rule)
    assert rewritten(given.encode(), given.syntax, rule) == (want.encode(), keys)


@given(data_sets(), RULES)
def test_changed_twice_there_are_two_records(given: DataSet, rule: Rule) -> None:
    """PS3.3 C.12.1.1.9: what is in the sequence already is kept."""
    once, _ = expected(given, rule)
    twice, keys = expected(once, rule)
    assert rewritten(once.encode(), given.syntax, rule) == (twice.encode(), keys)
    assert twice.originals.startswith(once.originals)


@given(data_sets(), RULES)
def test_pydicom_reads_what_comes_out_of_a_mail(given: DataSet, rule: Rule) -> None:
    """The oracle: all other elements are equal, the old value is in (0400,0561); hashes are of what came."""
    data = given.encode()
    file = dicom_file(data, syntax=given.syntax)
    with tempfile.TemporaryDirectory() as folder:
        orders = Coercion(rule, MOMENT, "gw.example", "clinic-a") if rule else None
        plain = reading(Path(folder), mail(part(file)))
        result = reading(Path(folder), mail(part(file)), coercion=orders)
        (one,) = result.instances
        made = content(one.file)
    want, keys = expected(given, rule)
    assert (one.changed, one.held) == (keys, None)
    assert (one.sha256, one.data_set_sha256, one.size) == _identity(plain.instances[0])
    assert [found.code for found in result.findings].count("patient-rewritten") == bool(keys)
    if given.syntax == DEFLATED:
        assert len(made) % 2 == 0 or not keys
        limit = 1 << 20
        source = Inflated(Stored(lambda at, size: made[at : at + size], b"", len(made)), one.data_set, limit)
        assert b"".join(coercion.spliced(source, 0, ())) == want.encode()
    else:
        assert made[one.data_set :] == want.encode()
    if given.tail:
        return  # pydicom does not know about padding
    before, after = pydicom.dcmread(io.BytesIO(file)), pydicom.dcmread(io.BytesIO(made))
    touched = {ACCESSION, ID, ISSUER, ORIGINALS, 0x00080000, 0x00100000, 0x04000000}
    assert before.keys() - touched == after.keys() - touched
    for tag in before.keys() - touched:
        assert before.get_item(tag).value == after.get_item(tag).value
    if "patient_id" in keys:
        assert after.PatientID == rule.prefix + before.PatientID.strip()
        record = after.OriginalAttributesSequence[-1]
        assert record.ModifiedAttributesSequence[0].PatientID == before.PatientID
        assert record.ReasonForTheAttributeModification == "COERCE"


def _identity(one: Instance) -> tuple[str, str, int]:
    return one.sha256, one.data_set_sha256, one.size


@given(data_sets(), st.data())
def test_a_data_set_that_is_cut_is_never_changed(given: DataSet, data: st.DataObject) -> None:
    """R9: a plan, or a problem with a code, and nothing else."""
    encoded = given.encode()
    cut = encoded[: data.draw(st.integers(0, len(encoded)))]
    source = Stored(lambda at, size: cut[at : at + size], cut, len(cut))
    orders = Coercion(Rule("CLINIC-A", "A-", clear_accession=True), MOMENT, "gw.example")
    try:
        dataset.walk(source, 0, given.syntax, frozenset())
    except dataset.Problem:
        try:
            coercion.plan(source, 0, given.syntax, orders)
        except dataset.Problem:
            return
        raise AssertionError("changed what cannot be walked") from None
    coercion.plan(source, 0, given.syntax, orders)
