"""The File-set Creator (PS3.11 G.2.1.1): instances go in, a plan of messages that fit their limits comes out.

    entries = [directory.describe(member) for member in members]
    plan = creator.plan(entries, letter, capacity)
    for number, file_set in enumerate(plan.file_sets, 1):
        letter.write(file_set, replace(template, part=number, parts=…, message_id=…), out)

Every message is a file-set of its own with its own DICOMDIR (FSC-8). What the plan says fits, fits: sizes are exact.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, Final

from gateway.core import directory
from gateway.core.directory import Entry, FileSet
from gateway.core.header import BLOCK, FIELD
from gateway.core.letter import Letter, Measure, blocks, header_size
from gateway.core.partial import is_inner
from gateway.errors import GatewayError
from gateway.model import Span

_HEADER: Final = 1 << 20
"""Bytes in which the header of a message ends that we wrote ourselves."""

_RAISE: Final = "raise the partner's max_message"

_LONGEST_LINE: Final = 1000
"""Bytes of a line with its end (RFC 5322 §2.1.1)."""


def unsealed(size: int) -> int:
    """Return the size of an entity that goes in the clear: its own."""
    return size


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one message to a partner may have.

    Attributes:
        max_message: Bytes of the whole message, protection and transfer encoding included.
        max_parts: Leaf parts: the text, the DICOMDIR and the instances. At least one instance is put into each.
        sealed: Bytes that a MIME entity of a size has after protection. Must rise with it.
    """

    max_message: int
    max_parts: int
    sealed: Callable[[int], int] = unsealed


@dataclass(frozen=True, slots=True)
class Plan:
    """How a collection goes into messages.

    Attributes:
        file_sets: Each fits one message.
        oversized: File-sets of one instance that is too big for a message alone: to be cut, or held.
    """

    file_sets: tuple[FileSet, ...]
    oversized: tuple[FileSet, ...] = ()

    @property
    def count(self) -> int:
        """How many messages it makes, those to be cut included: the n in "part k of n"."""
        return len(self.file_sets) + len(self.oversized)


def plan(entries: Iterable[Entry], letter: Letter, capacity: Capacity) -> Plan:
    """Divide a collection into file-sets that fit: whole series first, then instances in order (R22, FSC-7, FSC-8).

    Args:
        entries: In the order in which they shall travel.
        letter: What all messages have in common; ``part`` and ``parts`` in it do not matter. Its Message-ID must be as
            long as those of the messages will be.
        capacity: The limits.
    """
    shares = directory.apart(entries)
    # How many there will be is not known yet, and how long their numbers are counts: one, up to 9, up to 99 and so on.
    most = 1
    while (made := _fill(shares, replace(letter, part=most, parts=most), capacity)).count > most:
        most = most * 10 + 9 if most > 1 else 9
    return made


def _fill(shares: Iterable[Sequence[Entry]], letter: Letter, capacity: Capacity) -> Plan:
    """Divide a collection into messages none of which is bigger than one with these numbers."""
    filler = _Filler(letter, capacity)
    for share in shares:
        filler.fill(share)
    return filler.plan


class _Filler:
    """Fills one file-set after another."""

    def __init__(self, letter: Letter, capacity: Capacity) -> None:
        self._capacity = capacity
        self._header = header_size(letter)
        self._empty = Measure(letter)
        # A ZIP is one part, whatever it holds.
        self._most = max(capacity.max_parts - 2, 1) if letter.format == "mime" else sys.maxsize
        self._measure = self._empty.copy()
        self._open: list[Entry] = []
        self._full: list[FileSet] = []
        self._oversized: list[FileSet] = []

    @property
    def plan(self) -> Plan:
        return Plan(tuple(self._full), tuple(self._oversized))

    def fill(self, entries: Sequence[Entry]) -> None:
        """Put entries that may share a directory into file-sets."""
        for series in _by_series(entries):
            if not self._take(series):
                self._close()
                if not self._take(series):
                    self._divide(series)
        self._close()

    def _divide(self, series: Sequence[Entry]) -> None:
        """Put a series that is too big for one message into several."""
        for entry in series:
            if self._take([entry]):
                continue
            self._close()
            if not self._take([entry]):
                self._oversized.append(FileSet((entry,)))

    def _take(self, entries: Sequence[Entry]) -> bool:
        """Put entries into the open file-set, all or none; tell whether they fit."""
        if len(self._open) + len(entries) > self._most:
            return False
        measure = self._measure.copy()
        for entry in entries:
            measure.add(entry)
            if self._header + self._capacity.sealed(measure.size) > self._capacity.max_message:
                return False
        self._measure = measure
        self._open += entries
        return True

    def _close(self) -> None:
        if self._open:
            self._full.append(FileSet(tuple(self._open)))
        self._open = []
        self._measure = self._empty.copy()


def _by_series(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Gather what belongs to one patient, to one study of him, to one series of it; each in order of appearance."""
    tree: dict[tuple[object, ...], dict[tuple[object, ...], dict[tuple[object, ...], list[Entry]]]] = {}
    for entry in entries:
        patient, study, series = directory.path(entry) or ((), (), ())
        tree.setdefault(patient, {}).setdefault(study, {}).setdefault(series, []).append(entry)
    return [series for patient in tree.values() for study in patient.values() for series in study.values()]


@dataclass(frozen=True, slots=True)
class Piece:
    """One message/partial (RFC 2046 §5.2.2), not written yet.

    Attributes:
        header: Its own header with the empty line.
        body: The bytes of the message that it carries.
    """

    header: bytes
    body: Span

    @property
    def size(self) -> int:
        """Bytes of the whole piece."""
        return len(self.header) + self.body.size


def fragments(message: Span, limit: int, identifier: str) -> tuple[Piece, ...]:
    """Cut a finished message into pieces of at most ``limit`` bytes, at line ends (PRT-1, PRT-2, PRT-11).

    Each piece bears the fields that belong to the whole (who, to whom, when, the trace of loops), and a subject and a
    Message-ID of its own, made from those of the message. Joined again, they give the same bytes.

    Args:
        message: As ``letter.write`` wrote it, or sealed: 7bit.
        limit: Most bytes of one piece, its header included.
        identifier: The parameter ``id``, the same in all; nobody else's.

    Raises:
        GatewayError: The limit is too small for a header and a line.
        OSError: The message cannot be read.
    """
    with message.path.open("rb", buffering=0) as file:
        block = os.pread(file.fileno(), min(_HEADER, message.size), message.start)
        header = BLOCK.match(block)[0]  # type: ignore[index]  # it matches the empty string at least
        digits = 1
        while True:
            widest = 10**digits - 1
            room = limit - len(_piece_header(header, identifier, widest, widest))
            if room <= len(header) + 2:
                # Whoever joins the pieces looks for the whole header in the first one.
                raise GatewayError("a message cannot be cut so small", hint=_RAISE)
            bodies = list(_cut(file.fileno(), message, room))
            if len(bodies) <= widest:
                break
            digits += 1
    total = len(bodies)
    return tuple(Piece(_piece_header(header, identifier, number, total), body) for number, body in enumerate(bodies, 1))


def write_piece(piece: Piece, out: BinaryIO) -> None:
    """Write one fragment. Not synced, not closed.

    Raises:
        GatewayError: The message is shorter than it was.
        OSError: It cannot be read, or the disk does not take the piece.
    """
    out.write(piece.header)
    out.writelines(blocks(piece.body))


def _cut(file: int, message: Span, room: int) -> Iterator[Span]:
    """Yield ranges of at most ``room`` bytes, each up to a line end."""
    at = message.start
    while at < message.end:
        end = min(at + room, message.end)
        if end < message.end:
            look = max(end - _LONGEST_LINE, at)
            end = look + os.pread(file, end - look, look).rfind(b"\n") + 1
            if end <= at or end == look:
                raise GatewayError("a message cannot be cut so small", hint=_RAISE)
        yield Span(message.path, at, end)
        at = end


def _piece_header(header: bytes, identifier: str, number: int, total: int) -> bytes:
    """Encode the header of a fragment (PRT-1, PRT-3)."""
    shared, own = b"", {"subject": "", "message-id": ""}
    for match in FIELD.finditer(header):
        name = match[1].decode("ascii").lower()
        if not is_inner(name):
            shared += match[0].rstrip(b"\r\n") + b"\r\n"
        elif name in own:
            own[name] = match[2].decode("latin-1").strip()
    lines = (
        f"Subject: {own['subject']} ({number}/{total})",
        f"Message-ID: <{number}.{total}.{own['message-id'].lstrip('<')}",
        "MIME-Version: 1.0",
        f'Content-Type: message/partial; id="{identifier}";\r\n number={number}; total={total}',
        "\r\n",
    )
    return shared + "\r\n".join(lines).encode("latin-1")
