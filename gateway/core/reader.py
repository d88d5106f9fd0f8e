"""The File-set Reader (PS3.11 G.2.1.2): a message in a file goes in, DICOM files and findings come out.

The message is walked once, and into what it carries: messages, archives, files in text. What looks like DICOM goes
block by block into one output file, one instance behind the other, and is judged as PS3.10 asks. Memory does not grow
with the message.
"""

from __future__ import annotations

import os
import re
import tempfile
import zlib
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, BinaryIO, Final, Literal

import pybase64

from gateway.core import (
    archive,
    coercion,
    dataset,
    dicomdir,
    mime,
    part10,
    patient,
    pseudonym,
    report,
    tnef,
    transfer,
    uu,
)
from gateway.core.coercion import Coercion
from gateway.core.dataset import Problem, Stored
from gateway.core.findings import finding
from gateway.core.mime import Part
from gateway.core.output import Digests, Output
from gateway.model import DirectoryCheck, Finding, Fragment, Instance, OtherPart, Reading, Span

DICOM: Final = "application/dicom"

_ARCHIVE_DEPTH: Final = 2
"""Archives that may lie in each other: one in one (ZIP-8)."""

_LOGO: Final = 20_000
"""Bytes up to which a picture is taken for a logo or a signature (AMB-20)."""

_HEAD: Final = 64 << 10
"""Bytes in which the File Meta Information of a file must end."""

_MISMATCH: Final = {
    "hold": "patient-mismatch",
    "urgent": "patient-mismatch-urgent",
    "accept": "patient-mismatch-accepted",
}
"""The finding about one Patient ID with two people, by what the route says."""

_LINK: Final = re.compile(rb"https?://")

_SNIFF: Final = 512
"""Bytes of a body that show its true transfer encoding."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a reader may do, from the [limits] and the route.

    Attributes:
        parts: Most leaf parts.
        depth: Deepest nesting.
        header: Most bytes in one header.
        instance: Most bytes in one DICOM file.
        unpacked: Most bytes that all of a message may inflate to.
        ratio: Most times its size that one compressed member may inflate to.
        bare_dicom: Take data sets without preamble and meta information (AMB-2).
        uuencode: Take uuencoded files in text (AMB-16).
        patient_mismatch: One Patient ID with two birth dates or names is held, stored with an alarm, or accepted.
        coercion: What is changed in each data set; None: nothing.
        search_key: What pseudonyms are made with; empty: none are made.
    """

    parts: int
    depth: int
    header: int
    instance: int
    unpacked: int
    ratio: int
    bare_dicom: bool = False
    uuencode: bool = False
    patient_mismatch: Literal["hold", "urgent", "accept"] = "hold"
    coercion: Coercion | None = None
    search_key: bytes = field(default=b"", repr=False)


def read(message: Span, rules: Rules, out: BinaryIO) -> Reading:
    """Read one message.

    Args:
        message: Where it lies.
        rules: Limits and permissions.
        out: A file opened ``w+b``; every DICOM file of the message is appended to it. Not synced, not closed.

    Raises:
        OSError: The message cannot be read, or the disk does not take what it holds.
    """
    with message.path.open("rb", buffering=0) as file, ThreadPoolExecutor(1, "hash") as thread:
        reader = _Reader(rules, Output(out, thread))
        walk = reader.walk(file.fileno(), message.start, message.end)
        if report.is_fragment(walk.head):
            return _fragment(walk.head)
        if report.is_report(walk.head):
            reader.count(walk, file.fileno())
        else:
            reader.take_all(walk, file.fileno())
        return reader.result(walk.head)


def read_to(message: Span, rules: Rules, out: Path) -> Reading:
    """Read one message, with the instances written to a file that is made when it is not there. Else as ``read``."""
    out.touch(0o600)
    with out.open("r+b") as file:
        return read(message, rules, file)


def fragment(message: Span, header_limit: int) -> Fragment | None:
    """Tell which piece of a bigger message a message is; None when it is none, or does not say.

    Raises:
        OSError: The message cannot be read.
    """
    with message.path.open("rb", buffering=0) as file:
        walk = mime.Walk(file.fileno(), message.start, message.end, parts=0, depth=0, header_limit=header_limit)
    return _fragment(walk.head).partial if report.is_fragment(walk.head) else None


def _fragment(head: mime.Head) -> Reading:
    """Tell which piece this is (PRT-1)."""
    number, total = (_number(head.parameters.get(name, "")) for name in ("number", "total"))
    name = head.parameters.get("id", "")
    encoded = head.encoding in ("base64", "quoted-printable")
    if not name or not number or encoded or (total is not None and number > total):
        return Reading("partial", findings=(finding("invalid-fragment"),))
    return Reading("partial", partial=Fragment(name, number, total))


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else None


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A file in the message: a leaf part, or a member of an archive.

    Attributes:
        section: Where it is, with ``!member`` inside an archive.
        type: Media type in lower case.
        file_id: The parameter ``id``.
        labels: What it is called, as File ID or as name.
        unpacked: How many archives it lies in.
        depth: How deep it is nested in the message.
    """

    section: str
    type: str
    file_id: str | None
    labels: tuple[str, ...]
    unpacked: int
    depth: int


@dataclass(slots=True)
class _Taken:
    """A DICOM file that lies in the output, and the digests that are on their way."""

    leaf: _Leaf
    judged: part10.Judged
    span: Span
    digests: Digests
    held: str | None
    changed: tuple[str, ...] = ()
    attached: int | None = None


class _Reader:
    """Reads one message: collects what was found until all of it is known."""

    def __init__(self, rules: Rules, out: Output) -> None:
        self._rules = rules
        self._out = out
        self._budget = archive.Budget(rules.unpacked, rules.ratio)
        self._leaves = 0
        self._cut: str | None = None
        self._taken: list[_Taken] = []
        self._others: list[OtherPart] = []
        self._findings: list[Finding] = []
        self._labels: list[tuple[str, str]] = []
        self._directories: list[tuple[str, tuple[dicomdir.Reference, ...]]] = []
        self._dicom_seen = False
        self._links_seen = False

    def walk(self, file: int, start: int, end: int, prefix: str = "", level: int = 0) -> mime.Walk:
        """Begin to walk a message."""
        return mime.Walk(
            file,
            start,
            end,
            parts=max(self._rules.parts - self._leaves, 0),
            depth=self._rules.depth,
            header_limit=self._rules.header,
            prefix=prefix,
            level=level,
        )

    def count(self, walk: mime.Walk, file: int) -> None:
        """List the parts of a report, and nothing else: what it carries back is no study."""
        for part in walk:
            blocks = transfer.decode(file, part.start, part.end, part.encoding, set())
            self._others.append(OtherPart(part.section, part.type, _size(blocks)))
        self._note(walk)

    def take_all(self, walk: mime.Walk, file: int) -> None:
        """Read all leaf parts of a message."""
        for part in walk:
            self._take(part, file)
        self._note(walk)

    def _note(self, walk: mime.Walk) -> None:
        self._findings += walk.findings
        if walk.cut:
            # What was not looked at might change what was.
            self._cut = walk.findings[-1].code
        last = self._taken[-1] if self._taken else None
        if last and last.leaf.section == walk.unfinished and not last.judged.ends_with_pixels:
            # AMB-22: cut between two elements, a data set looks whole.
            last.held = last.held or "cut-message"
            self._findings.append(finding("cut-message", last.leaf.section))

    def _take(self, part: Part, file: int) -> None:
        noted: set[str] = set()
        blocks = transfer.decode(file, part.start, part.end, part.encoding, noted)
        first = _begin(blocks)
        # Quoted-printable leaves many a binary file as it is, but not all of it.
        doubtful = not part10.is_marked(first) or part.encoding == "quoted-printable"
        if doubtful and (encoding := _actual_encoding(part, file)):
            noted.clear()
            noted.add("wrong-encoding")
            blocks = transfer.decode(file, part.start, part.end, encoding, noted)
            first = _begin(blocks)
        names = (part.parameters.get("id"), part.parameters.get("name"), part.filename)
        labels = tuple(name for name in names if name)
        leaf = _Leaf(part.section, part.type, names[0], labels, 0, part.depth)
        self._leaves += 1
        self._content(leaf, first, blocks)
        if part10.is_marked(first) or not part.type.startswith("text/"):
            self._findings += [finding(code, part.section) for code in sorted(noted)]

    def _content(self, leaf: _Leaf, first: bytes, blocks: Iterator[bytes]) -> None:
        """Read one file, whatever it is."""
        try:
            if part10.is_marked(first):
                self._dicom(leaf, first, blocks)
            elif kind := archive.kind(first):
                self._archive(kind, leaf, first, blocks)
            elif leaf.type in tnef.TYPES:
                raise Problem("damaged-archive")  # noqa: TRY301  one place for all that cannot be used
            elif leaf.type in mime.MESSAGES:
                self._message(leaf, first, blocks)
            elif self._rules.uuencode and leaf.type == "text/plain":
                self._text(leaf, first, blocks)
            elif part10.is_bare(first):
                self._bare(leaf, first, blocks)
            else:
                self._other(leaf, first, blocks)
        except Problem as problem:
            self._fail(leaf, problem.code, first, blocks)

    def _fail(self, leaf: _Leaf, code: str, first: bytes, blocks: Iterator[bytes]) -> None:
        """Note a file of which nothing more can be used."""
        self._findings.append(finding(code, leaf.section))
        try:
            size = len(first) + _size(blocks)
        except Problem:
            size = len(first)
        self._others.append(OtherPart(leaf.section, leaf.type, size))

    def _other(self, leaf: _Leaf, first: bytes, blocks: Iterator[bytes]) -> None:
        if leaf.type == DICOM:
            self._dicom_seen = True
            self._findings.append(finding("not-dicom", leaf.section))
        self._links_seen = self._links_seen or (leaf.type.startswith("text/") and bool(_LINK.search(first)))
        self._others.append(OtherPart(leaf.section, leaf.type, len(first) + _size(blocks)))

    def _dicom(self, leaf: _Leaf, first: bytes, blocks: Iterator[bytes]) -> None:
        self._dicom_seen = True
        self._make_room()
        start = self._out.at
        meta = part10.read_meta(first)
        span, digests = self._write(meta.data_set, first, blocks)
        source = Stored(self._out.reader(start), first, span.size)
        judged = part10.judge(meta, source, span.size, self._budget.limit(span.size))
        if judged.is_directory:
            self._directory(leaf, judged, source)
            self._out.drop(start)
        else:
            self._keep(leaf, judged, span, digests, source)

    def _write(self, data_set: int, first: bytes, blocks: Iterable[bytes]) -> tuple[Span, Digests]:
        """Append a file to the output; when it cannot be taken as a whole, it leaves nothing there."""
        start = self._out.at
        digests = Digests(data_set)
        try:
            for block in _chain(first, blocks):
                self._demand(self._out.at - start + len(block))
                self._out.write(block, digests)
        except Problem:
            self._out.drop(start)
            raise
        return Span(self._out.path, start, self._out.at), digests

    def _demand(self, size: int) -> None:
        if size > self._rules.instance:
            raise Problem("instance-too-big")

    def _keep(self, leaf: _Leaf, judged: part10.Judged, span: Span, digests: Digests, source: Stored) -> None:
        self._findings += [finding(code, leaf.section) for code in judged.codes]
        if (leaf.file_id or "").upper() == "DICOMDIR":
            self._findings.append(finding("directory-id", leaf.section))
        self._labels += [(leaf.section, label) for label in leaf.labels]
        if judged.is_identified:
            self._taken.append(_Taken(leaf, judged, span, digests, judged.held))
            if self._rules.coercion:
                self._coerce(self._taken[-1], source, self._rules.coercion)
        else:
            self._others.append(OtherPart(leaf.section, leaf.type, span.size))
            self._out.drop(span.start)

    def _make_room(self) -> None:
        """Leave room before a file whose head may grow: so its pixels stay where they are."""
        if self._rules.coercion:
            self._out.reserve(coercion.ROOM)

    def _coerce(self, taken: _Taken, source: Stored, rule: Coercion) -> None:
        """Apply the rules of the route. What they cannot change is held: with them it was to be another patient's."""
        meta, size = taken.judged.meta, taken.span.size
        if taken.judged.is_unreadable:
            return
        try:
            if meta.transfer_syntax == dataset.DEFLATED:
                limit = self._budget.limit(size)
                made = coercion.plan(dataset.Inflated(source, meta.data_set, limit), 0, meta.transfer_syntax, rule)
                if made:
                    inflated = dataset.Inflated(source, meta.data_set, limit)
                    taken.span = self._deflate(taken.span, meta.data_set, coercion.spliced(inflated, 0, made.edits))
            else:
                made = coercion.plan(source, meta.data_set, meta.transfer_syntax, rule)
                if made:
                    start, edits = taken.span.start - made.growth, made.edits
                    self._out.put(start, coercion.spliced(source, 0, edits, edits[-1].end))
                    taken.span = replace(taken.span, start=start)
        except Problem as problem:
            taken.held = taken.held or problem.code
            self._findings.append(finding(problem.code, taken.leaf.section))
        else:
            if made:
                taken.changed, taken.attached = made.rules, size

    def _deflate(self, span: Span, data_set: int, blocks: Iterator[bytes]) -> Span:
        """Deflate a data set anew (PS3.5 A.5), and put it where it was."""
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        with tempfile.TemporaryFile(dir=self._out.folder) as scratch:
            for block in blocks:
                scratch.write(packer.compress(block))
            scratch.write(packer.flush())
            scratch.write(b"\0" * (scratch.tell() % 2))
            self._out.drop(span.start + data_set)
            return replace(span, end=self._out.put(self._out.at, _reread(scratch)))

    def _directory(self, leaf: _Leaf, judged: part10.Judged, source: Stored) -> None:
        """Keep what a DICOMDIR names until all parts are known: it may come anywhere (FSC-9)."""
        try:
            references = dicomdir.read(source, judged.meta.data_set, judged.meta.transfer_syntax)
        except Problem:
            self._findings.append(finding("directory-unreadable", leaf.section))
        else:
            self._directories.append((leaf.section, references))

    def _bare(self, leaf: _Leaf, first: bytes, blocks: Iterator[bytes]) -> None:
        """Take a data set that has neither preamble nor meta information, where the route allows it (AMB-2)."""
        self._dicom_seen = True
        if not self._rules.bare_dicom:
            raise Problem("bare-data-set")
        self._make_room()
        start = self._out.at
        span, digests = self._write(0, first, blocks)
        source = Stored(self._out.reader(start), first, span.size)
        meta = part10.bare_meta(first, source)
        if meta is None:
            self._out.drop(start)
            raise Problem("bare-data-set")
        if meta.data_set:
            digests = self._hash_again(meta.data_set, source, span.size)
        self._findings.append(finding("bare-data-set-taken", leaf.section))
        judged = part10.judge(meta, source, span.size, self._budget.limit(span.size))
        self._keep(leaf, judged, span, digests, source)

    def _hash_again(self, data_set: int, source: Stored, size: int) -> Digests:
        """Hash a file whose data set was not known to begin where it does."""
        digests = Digests(data_set)
        at = 0
        while at < size:
            piece = source.piece(at) or b""
            digests.update(piece)
            at += len(piece)
        return digests

    def _archive(self, kind: str, leaf: _Leaf, first: bytes, blocks: Iterator[bytes]) -> None:
        """Open an archive; one that holds no DICOM is listed as the one file it is."""
        if kind == archive.OTHER:
            raise Problem("unsupported-archive")
        if leaf.unpacked >= _ARCHIVE_DEPTH:
            raise Problem("nested-archive")
        listed, noted = len(self._others), len(self._findings)
        seen, self._dicom_seen = self._dicom_seen, False
        try:
            with tempfile.TemporaryFile(dir=self._out.folder) as scratch:
                size = _spool(scratch, first, blocks)
                for member in self._members(kind, scratch):
                    self._member(leaf, member)
            if not self._dicom_seen and len(self._findings) == noted:
                self._others[listed:] = [OtherPart(leaf.section, leaf.type, size)]
        finally:
            self._dicom_seen = self._dicom_seen or seen

    def _members(self, kind: str, scratch: IO[bytes]) -> Iterator[archive.Member]:
        most = self._rules.parts - self._leaves
        if kind == archive.ZIP:
            return archive.unzip(scratch, self._budget, most)
        if kind == archive.TNEF:
            return tnef.unpack(scratch, self._budget, most)
        return iter((archive.Member("content", archive.gunzip(_reread(scratch), self._budget)),))

    def _member(self, outer: _Leaf, member: archive.Member, label: str | None = None) -> None:
        if self._leaves >= self._rules.parts:
            raise Problem("too-many-members")
        self._leaves += 1
        section = f"{outer.section}!{member.name}"
        leaf = _Leaf(
            section, "application/octet-stream", None, (label or member.name,), outer.unpacked + 1, outer.depth
        )
        try:
            first = _begin(member.blocks)
        except Problem as problem:
            self._fail(leaf, problem.code, b"", iter(()))
        else:
            self._content(leaf, first, member.blocks)

    def _message(self, leaf: _Leaf, first: bytes, blocks: Iterator[bytes]) -> None:
        """Walk a message that came in a transfer encoding, though RFC 2046 §5.2.1 forbids it."""
        if leaf.depth >= self._rules.depth:
            raise Problem("too-deep")
        with tempfile.TemporaryFile(dir=self._out.folder) as scratch:
            size = _spool(scratch, first, blocks)
            self.take_all(self.walk(scratch.fileno(), 0, size, leaf.section + ".", leaf.depth + 1), scratch.fileno())

    def _text(self, leaf: _Leaf, first: bytes, blocks: Iterator[bytes]) -> None:
        """Take files out of a text (AMB-16)."""
        size = 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for block in _chain(first, blocks):
                size += len(block)
                yield block

        for number, (name, content) in enumerate(uu.files(uu.lines(counted())), 1):
            self._member(leaf, archive.Member(f"{number}", content), name)
        self._others.append(OtherPart(leaf.section, leaf.type, size))

    def result(self, head: mime.Head) -> Reading:
        """Finish: wait for the digests, check the directory, tell what the message is."""
        self._out.finish()
        instances, repeated = _tell_apart([_instance(taken, self._cut, self._names(taken)) for taken in self._taken])
        directory, noted = self._check(instances)
        instances, whose = self._compare(instances)
        noted += [*repeated, *whose]
        if any(one.changed for one in instances):
            noted.append(finding("patient-rewritten"))
        if report.is_report(head) or (report.is_reply(head) and not self._dicom_seen):
            kind = "report"
        elif self._dicom_seen:
            kind = "dicom"
        else:
            kind = "other"
            noted += self._instead()
        return Reading(kind, instances, (*self._findings, *noted), tuple(self._others), directory)

    def _names(self, taken: _Taken) -> tuple[str, ...]:
        rule = self._rules.coercion
        prefix = rule.rule.prefix if rule else ""
        return pseudonym.of_instance(self._rules.search_key, taken.judged.identity, prefix)

    def _compare(self, instances: tuple[Instance, ...]) -> tuple[tuple[Instance, ...], list[Finding]]:
        """Hold the instances of a Patient ID that stands for two people, as the route says (AMB-25)."""
        good = [number for number, one in enumerate(instances) if one.held is None]
        rule = self._rules.coercion
        found = patient.compare(
            [(self._taken[number].judged.patient, instances[number].study) for number in good],
            one_issuer=bool(rule and rule.rule.issuer),
        )
        parts = [instances[number].part for number in good]
        code = _MISMATCH[self._rules.patient_mismatch]
        noted = [finding(code, parts[place]) for place in sorted(found.mismatched)]
        noted += [finding("unknown-characters", parts[place]) for place in sorted(found.unread)]
        noted += [finding("several-patients")] if found.count > 1 else []
        noted += [] if found.shared_study is None else [finding("study-of-several-patients", parts[found.shared_study])]
        if self._rules.patient_mismatch == "hold":
            told = list(instances)
            for place in found.mismatched:
                told[good[place]] = replace(instances[good[place]], held=code)
            instances = tuple(told)
        return instances, noted

    def _instead(self) -> list[Finding]:
        """Tell what a mail without DICOM has in its place (AMB-19, AMB-36)."""
        if any(other.type.startswith("image/") and other.size > _LOGO for other in self._others):
            return [finding("only-images")]
        return [finding("only-links")] if self._links_seen else []

    def _check(self, instances: tuple[Instance, ...]) -> tuple[DirectoryCheck | None, list[Finding]]:
        """Hold each DICOMDIR against what came with it."""
        scopes = [_scope(section) for section, _ in self._directories]
        if len(scopes) == 1:
            scopes = [""]
        # Every file is put to its scope once: thousands of directories must not be asked about thousands of files.
        uids: dict[str, list[str]] = {scope: [] for scope in scopes}
        labels: dict[str, list[str]] = {scope: [] for scope in scopes}
        if len(uids) < len(scopes):
            # AMB-11: nobody can say which file belongs to which.
            return None, [finding("directory-repeated")]
        for one in instances if scopes else ():
            uids.setdefault(_belongs(one.part, labels), []).append(one.sop_instance)
        for where, label in self._labels if scopes else ():
            labels.setdefault(_belongs(where, uids), []).append(label)
        noted: list[Finding] = []
        missing: list[str] = []
        for scope, (section, references) in zip(scopes, self._directories, strict=True):
            check = dicomdir.check(references, labels[scope], uids[scope])
            missing += check.missing
            noted += [] if check.complete else [finding("directory-missing", section)]
            if not {reference.sop_instance for reference in references} >= set(uids[scope]):
                noted.append(finding("directory-extra", section))
        return (DirectoryCheck(not missing, tuple(missing)) if scopes else None), noted


def _scope(section: str) -> str:
    """Return how the sections begin of all that lies in the same multipart, or in the same folder of an archive."""
    at = section.rfind("/", section.rfind("!") + 1) if "!" in section else section.rfind(".")
    return section[: max(at, section.rfind("!")) + 1]


def _belongs(section: str, scopes: Container[str]) -> str:
    """Return the narrowest scope that a file lies in."""
    return next((section[:at] for at in range(len(section), 0, -1) if section[:at] in scopes), "")


def _instance(taken: _Taken, held: str | None, pseudonyms: tuple[str, ...]) -> Instance:
    judged = taken.judged
    whole, data_set = taken.digests.result()
    return Instance(
        sop_class=judged.sop_class,
        sop_instance=judged.sop_instance,
        study=judged.study,
        series=judged.series,
        transfer_syntax=judged.meta.transfer_syntax,
        sha256=whole,
        data_set_sha256=data_set,
        part=taken.leaf.section,
        file_id=taken.leaf.file_id,
        file=taken.span,
        data_set=judged.meta.data_set,
        held=taken.held or held,
        changed=taken.changed,
        attached=taken.attached,
        pseudonyms=pseudonyms,
    )


def _tell_apart(instances: list[Instance]) -> tuple[tuple[Instance, ...], list[Finding]]:
    """Note what came twice, and hold what bears the UID of another one (AMB-23). What is held counts for nobody."""
    known: dict[str, tuple[str, str]] = {}
    told: list[Instance] = []
    noted: list[Finding] = []
    for instance in instances:
        identity = (instance.transfer_syntax, instance.data_set_sha256)
        if instance.held is not None or known.setdefault(instance.sop_instance, identity) is identity:
            told.append(instance)
        elif known[instance.sop_instance] == identity:
            noted.append(finding("repeated-instance", instance.part))
            told.append(instance)
        else:
            noted.append(finding("reused-uid", instance.part))
            told.append(replace(instance, held="reused-uid"))
    return tuple(told), noted


def _actual_encoding(part: Part, file: int) -> str | None:
    """Find the transfer encoding of a file that is labelled with another one (AMB-21)."""
    head = os.pread(file, min(_SNIFF, part.end - part.start), part.start)
    if part10.is_marked(head):
        return "binary"
    letters = head.translate(None, b"\r\n")
    try:
        decoded = pybase64.b64decode(letters[: len(letters) // 4 * 4], validate=True)
    except ValueError:
        return None
    return "base64" if part10.is_marked(decoded) else None


def _begin(blocks: Iterator[bytes]) -> bytes:
    """Take from decoded blocks what shows which kind of file it is, meta information included."""
    taken: list[bytes] = []
    size = 0
    while size < _HEAD and (more := next(blocks, b"")):
        taken.append(more)
        size += len(more)
    return taken[0] if len(taken) == 1 else b"".join(taken)


def _chain(first: bytes, blocks: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from blocks


def _size(blocks: Iterable[bytes]) -> int:
    return sum(len(block) for block in blocks)


def _spool(scratch: IO[bytes], first: bytes, blocks: Iterable[bytes]) -> int:
    """Write content to a scratch file, and return its size."""
    for block in _chain(first, blocks):
        scratch.write(block)
    scratch.flush()
    return scratch.tell()


def _reread(scratch: IO[bytes]) -> Iterator[bytes]:
    scratch.seek(0)
    while block := scratch.read(archive.PACKED):
        yield block
