"""The File-set Reader (PS3.11 G.2.1.2): a message in a file goes in, DICOM files and findings come out.

The message is walked once. What looks like DICOM is decoded into one file, block by block, one instance behind the
other; it is hashed on a second thread, since hashing leaves the interpreter free, and judged as PS3.10 asks. Memory
does not grow with the message.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import pybase64

from gateway.core import dicomdir, mime, part10, report, transfer
from gateway.core.dataset import Problem, Stored
from gateway.core.findings import finding
from gateway.core.mime import Part
from gateway.model import DirectoryCheck, Finding, Fragment, Instance, OtherPart, Reading, Severity, Span

DICOM: Final = "application/dicom"

_THREAD_PAYS: Final = 128 << 10
"""Bytes from which on handing a block to the hashing thread costs less than hashing it here."""

_IN_FLIGHT: Final = 4
"""Blocks that may wait for it."""

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
    """

    parts: int
    depth: int
    header: int
    instance: int
    unpacked: int
    ratio: int
    bare_dicom: bool = False
    uuencode: bool = False


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
        reader = _Reader(file.fileno(), rules, out, thread)
        walk = mime.Walk(
            file.fileno(),
            message.start,
            message.end,
            parts=rules.parts,
            depth=rules.depth,
            header_limit=rules.header,
        )
        if report.is_fragment(walk.head):
            return _fragment(walk.head)
        is_report = report.is_report(walk.head)
        for part in walk:
            reader.take(part, count_only=is_report)
        return reader.result(walk, is_report=is_report)


def read_to(message: Span, rules: Rules, out: Path) -> Reading:
    """Read one message, with the instances written to a file that exists already. Else as ``read``."""
    with out.open("r+b") as file:
        return read(message, rules, file)


def _fragment(head: mime.Head) -> Reading:
    """Tell which piece this is (PRT-1)."""
    number, total = (_number(head.parameters.get(name, "")) for name in ("number", "total"))
    name = head.parameters.get("id", "")
    if not name or not number or (total is not None and number > total):
        return Reading("partial", findings=(finding("invalid-fragment"),))
    return Reading("partial", partial=Fragment(name, number, total))


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else None


@dataclass(slots=True)
class _Taken:
    """A DICOM file that lies in the output, and the digests that are on their way."""

    part: Part
    judged: part10.Judged
    span: Span
    digests: _Digests


class _Digests:
    """The sha256 of a file, and of its data set: what "the same instance" means."""

    def __init__(self, data_set: int) -> None:
        self._file = hashlib.sha256()
        self._data = hashlib.sha256()
        self._skip = data_set
        self.threaded = False

    def update(self, block: bytes) -> None:
        self._file.update(block)
        self._data.update(memoryview(block)[self._skip :])
        self._skip = 0

    def result(self) -> tuple[str, str]:
        return self._file.hexdigest(), self._data.hexdigest()


class _Hashing:
    """Hashes big blocks on a second thread. Small ones are done at once: handing them over would cost more."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._pending: deque[Future[None]] = deque()

    def add(self, digests: _Digests, block: bytes) -> None:
        """Let a block be hashed, in the order of the calls."""
        if len(block) < _THREAD_PAYS and not digests.threaded:
            digests.update(block)
            return
        # What follows a block on the thread must follow it there.
        digests.threaded = True
        while len(self._pending) >= _IN_FLIGHT:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(digests.update, block))

    def finish(self) -> None:
        """Wait until everything is hashed."""
        while self._pending:
            self._pending.popleft().result()


class _Output:
    """The file that decoded instances are appended to, written and read by offset."""

    def __init__(self, out: BinaryIO) -> None:
        self.path = Path(out.name)
        self.at = out.seek(0, os.SEEK_END)
        self._out = out
        self._file = out.fileno()

    def write(self, block: bytes) -> None:
        """Append a block."""
        view = memoryview(block)
        while view:
            written = os.pwrite(self._file, view, self.at)
            self.at += written
            view = view[written:]

    def reader(self, start: int) -> Callable[[int, int], bytes]:
        """Return what reads bytes, counted from a place."""
        return lambda offset, size: os.pread(self._file, size, start + offset)

    def drop(self, start: int) -> None:
        """Take back what was written from a place on."""
        os.ftruncate(self._file, start)
        self.at = start

    def close(self) -> None:
        """Leave the file as if it had been written through its own methods."""
        self._out.seek(self.at)


class _Reader:
    def __init__(self, file: int, rules: Rules, out: BinaryIO, thread: ThreadPoolExecutor) -> None:
        self._file = file
        self._rules = rules
        self._out = _Output(out)
        self._hashing = _Hashing(thread)
        self._taken: list[_Taken] = []
        self._others: list[OtherPart] = []
        self._findings: list[Finding] = []
        self._labels: list[str] = []
        self._directories: list[tuple[str, tuple[dicomdir.Reference, ...]]] = []
        self._dicom_seen = False

    def take(self, part: Part, *, count_only: bool) -> None:
        """Read one leaf part."""
        noted: set[str] = set()
        blocks = transfer.decode(self._file, part.start, part.end, part.encoding, noted)
        first = _begin(blocks)
        # Quoted-printable leaves many a binary file as it is, but not all of it.
        doubtful = not part10.is_marked(first) or part.encoding == "quoted-printable"
        if doubtful and (encoding := self._actual_encoding(part)):
            noted.clear()
            noted.add("wrong-encoding")
            blocks = transfer.decode(self._file, part.start, part.end, encoding, noted)
            first = _begin(blocks)
        if count_only or not part10.is_marked(first):
            size = len(first) + sum(len(block) for block in blocks)
            self._others.append(OtherPart(part.section, part.type, size))
            if part.type == DICOM and not count_only:
                self._dicom_seen = True
                noted.add("not-dicom")
        else:
            self._dicom_seen = True
            self._dicom(part, first, blocks)
        if noted and not part.type.startswith("text/"):
            self._findings += [finding(code, part.section) for code in sorted(noted)]

    def _actual_encoding(self, part: Part) -> str | None:
        """Find the transfer encoding of a file that is labelled with another one (AMB-21)."""
        head = os.pread(self._file, min(_SNIFF, part.end - part.start), part.start)
        if part10.is_marked(head):
            return "binary"
        letters = head.translate(None, b"\r\n")
        try:
            decoded = pybase64.b64decode(letters[: len(letters) // 4 * 4], validate=True)
        except ValueError:
            return None
        return "base64" if part10.is_marked(decoded) else None

    def _dicom(self, part: Part, first: bytes, blocks: Iterator[bytes]) -> None:
        start = self._out.at
        try:
            meta = part10.read_meta(first)
        except Problem as problem:
            self._reject(part, problem.code, first, blocks)
            return
        digests = _Digests(meta.data_set)
        for block in _chain(first, blocks):
            if self._out.at - start + len(block) > self._rules.instance:
                self._out.drop(start)
                self._reject(part, "instance-too-big", first, blocks)
                return
            self._hashing.add(digests, block)
            self._out.write(block)
        span = Span(self._out.path, start, self._out.at)
        source = Stored(self._out.reader(start), first, span.size)
        judged = part10.judge(meta, source, self._unpacked(span.size))
        if judged.is_directory or part.parameters.get("id", "").upper() == "DICOMDIR":
            self._directory(part, judged, source)
            self._out.drop(start)
            return
        self._findings += [finding(code, part.section) for code in judged.codes]
        self._labels += _labels(part)
        if judged.is_identified:
            self._taken.append(_Taken(part, judged, span, digests))
        else:
            self._others.append(OtherPart(part.section, part.type, span.size))
            self._out.drop(start)

    def _reject(self, part: Part, code: str, first: bytes, blocks: Iterable[bytes]) -> None:
        """Note a file of which nothing can be used."""
        self._findings.append(finding(code, part.section))
        size = len(first) + sum(len(block) for block in blocks)
        self._others.append(OtherPart(part.section, part.type, size))

    def _unpacked(self, size: int) -> int:
        return min(self._rules.unpacked, size * self._rules.ratio)

    def _directory(self, part: Part, judged: part10.Judged, source: Stored) -> None:
        """Keep what a DICOMDIR names until all parts are known: it may come anywhere (FSC-9)."""
        try:
            references = dicomdir.read(source, judged.meta.data_set, judged.meta.transfer_syntax)
        except Problem:
            self._findings.append(finding("directory-unreadable", part.section))
        else:
            self._directories.append((part.section, references))

    def result(self, walk: mime.Walk, *, is_report: bool) -> Reading:
        """Finish: wait for the digests, check the directory, tell what the message is."""
        self._hashing.finish()
        self._out.close()
        findings = [*walk.findings, *self._findings]
        held = next((f.code for f in findings if not f.where and f.severity is Severity.ERROR), None)
        instances = tuple(_instance(taken, held) for taken in self._taken)
        directory, noted = self._check(instances)
        kind = "other"
        if is_report or (report.is_reply(walk.head) and not self._dicom_seen):
            kind = "report"
        elif self._dicom_seen:
            kind = "dicom"
        return Reading(kind, instances, (*findings, *noted), tuple(self._others), directory)

    def _check(self, instances: tuple[Instance, ...]) -> tuple[DirectoryCheck | None, list[Finding]]:
        if not self._directories:
            return None, []
        if len(self._directories) > 1:
            # AMB-11: nobody can say which part belongs to which.
            return None, [finding("directory-repeated")]
        where, references = self._directories[0]
        uids = [instance.sop_instance for instance in instances]
        check = dicomdir.check(references, self._labels, uids)
        noted = [] if check.complete else [finding("directory-missing", where)]
        if not {r.sop_instance for r in references} >= set(uids):
            noted.append(finding("directory-extra", where))
        return check, noted


def _instance(taken: _Taken, held: str | None) -> Instance:
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
        part=taken.part.section,
        file_id=taken.part.parameters.get("id"),
        file=taken.span,
        data_set=judged.meta.data_set,
        held=judged.held or held,
    )


def _labels(part: Part) -> list[str]:
    names = (part.parameters.get("id"), part.parameters.get("name"), part.filename)
    return [name for name in names if name]


def _begin(blocks: Iterator[bytes]) -> bytes:
    """Take from decoded blocks what shows whether it is a DICOM file."""
    first = b""
    while len(first) < part10.DATA_AT and (more := next(blocks, b"")):
        first += more
    return first


def _chain(first: bytes, blocks: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from blocks
