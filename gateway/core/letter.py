"""The message that carries a file-set: STD-GEN-MIME (PS3.11 G, PS3.12 K) or STD-GEN-ZIP-MAIL (PS3.11 L).

It has two halves, so that protection can be put between: the header, which travels in clear and holds no patient data,
and the MIME entity, which begins with its own Content-Type field. In the clear both simply follow each other. Everything
is written in one pass, the same bytes each time, and its size is known before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import BinaryIO, Final, Literal

from gateway.core.directory import FileSet

TEXT: Final = ""
"""The body when a partner has none of its own. A line whose placeholder has no value is left out."""

PLACEHOLDERS: Final = ("part", "parts", "files", "phone", "gateway")
"""What a template may name in braces, as ``{part}``. None of them is about a patient."""


@dataclass(frozen=True, slots=True)
class Letter:
    """All about a message except its files. Nothing in it may be about a patient (PRV-1).

    Attributes:
        sender: From, an addr-spec.
        recipients: To.
        message_id: With its angle brackets; fixed before the first try.
        date: With its time zone.
        gateway: Our name, for the text.
        phone: Whom the reader of the text may call; empty when unknown.
        loop_token: Ours (SMTP-17); empty for none.
        collection: The same opaque word in all messages of one collection; empty for none.
        part: Which message of the collection this is, from 1.
        parts: How many there are.
        subject: Neutral; ``(2/5)`` is added when there are several.
        text: Template of the body, see PLACEHOLDERS.
        headers: Further header fields.
        format: ``mime`` (STD-GEN-MIME) or ``zip`` (STD-GEN-ZIP-MAIL).
        multipart: ``mixed`` or ``related`` (MIM-1 to MIM-3).
    """

    sender: str
    recipients: tuple[str, ...]
    message_id: str
    date: datetime
    gateway: str = ""
    phone: str = ""
    loop_token: str = ""
    collection: str = ""
    part: int = 1
    parts: int = 1
    subject: str = "DICOM images"
    text: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict)
    format: Literal["mime", "zip"] = "mime"
    multipart: Literal["mixed", "related"] = "mixed"


def write(file_set: FileSet, letter: Letter, out: BinaryIO) -> None:
    """Write a whole message in the clear: the header, then the entity. Not synced, not closed.

    Raises:
        GatewayError: A file is not as long as its span any more, or a header value has a line end.
        OSError: A file cannot be read, or the disk does not take the message.
    """
    raise NotImplementedError


def write_header(letter: Letter, out: BinaryIO) -> None:
    """Write the fields outside of the entity, MIME-Version last. What follows is an entity with its Content-Type."""
    raise NotImplementedError


def write_entity(file_set: FileSet, letter: Letter, out: BinaryIO) -> None:
    """Write the MIME entity, from its Content-Type field on: what is signed and encrypted (canonical, 7bit, CRLF)."""
    raise NotImplementedError


def header_size(letter: Letter) -> int:
    """Return how many bytes ``write_header`` writes."""
    raise NotImplementedError


def entity_size(file_set: FileSet, letter: Letter) -> int:
    """Return how many bytes ``write_entity`` writes."""
    raise NotImplementedError


def size_of(file_set: FileSet, letter: Letter) -> int:
    """Return how many bytes ``write`` writes (R22)."""
    raise NotImplementedError


def file_set_uid(letter: Letter) -> str:
    """Return the File-set UID: made from the Message-ID, so that it is new for each message and the same in each try."""
    raise NotImplementedError
