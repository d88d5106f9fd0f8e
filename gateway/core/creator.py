"""The File-set Creator (PS3.11 G.2.1.1): instances go in, a plan of messages that fit their limits comes out.

    entries = [directory.describe(member) for member in members]
    plan = creator.plan(entries, letter, capacity)
    for number, file_set in enumerate(plan.file_sets, 1):
        letter.write(file_set, replace(template, part=number, parts=…, message_id=…), out)

Every message is a file-set of its own with its own DICOMDIR (FSC-8). What the plan says fits, fits: sizes are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from gateway.core.directory import Entry, FileSet
from gateway.core.letter import Letter
from gateway.model import Span


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


def plan(entries: Sequence[Entry], letter: Letter, capacity: Capacity) -> Plan:
    """Divide a collection into file-sets that fit: whole series first, then instances in order (R22, FSC-7, FSC-8).

    Args:
        entries: In the order in which they shall travel.
        letter: What all messages have in common; ``part`` and ``parts`` in it do not matter. Its Message-ID must be as
            long as those of the messages will be.
        capacity: The limits.
    """
    raise NotImplementedError


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

    Args:
        message: As ``letter.write`` wrote it, or sealed. With lines of at most 998 characters, 7bit.
        limit: Most bytes of one piece, its header included.
        identifier: The parameter ``id``, the same in all; nobody else's.

    Raises:
        GatewayError: The limit is too small for a header and a line.
        OSError: The message cannot be read.
    """
    raise NotImplementedError


def write_piece(piece: Piece, out: BinaryIO) -> None:
    """Write one fragment. Not synced, not closed."""
    raise NotImplementedError
