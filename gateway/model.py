"""The words of the gateway: values that cross from one part to another.

Types are the standard's nouns. Everything here is frozen, holds no patient data unless its docstring says so, and
knows nothing of files, sockets or databases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

IMPLEMENTATION_CLASS_UID = "2.25.122522165273703419633413079402016686128"
"""Identifies this implementation in group 0002 and in associations (PS3.7 D.3.3.2, P10-8)."""

IMPLEMENTATION_VERSION_NAME = "DICOM-MAIL 0.1"
"""At most 16 characters (PS3.7 D.3.3.2)."""

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP Class of a DICOMDIR (PS3.10 8.6). Media only: never sent by C-STORE (AMB-12)."""


class Direction(StrEnum):
    """Which way an item goes: a mail towards the PACS, or images towards a mailbox."""

    IN = "in"
    OUT = "out"


class Stage(StrEnum):
    """The stage that has an item now."""

    RECEIVE = "receive"
    STORE = "store"
    COMPOSE = "compose"
    SUBMIT = "submit"
    REPORT = "report"


class Outcome(StrEnum):
    """Every byte taken in ends in exactly one of these (R34)."""

    DELIVERED = "delivered"
    WAITING = "waiting"
    REFUSED = "refused"
    HELD = "held"
    FAILED = "failed"


class Severity(StrEnum):
    """How much a finding matters: a remark, something a person should know, or the reason why a thing is held."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes in a file: the only form in which content travels through the gateway.

    Attributes:
        path: The file.
        start: Offset of the first byte.
        end: Offset behind the last byte.
    """

    path: Path
    start: int
    end: int

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Finding:
    """Something the reader noticed. Codes are documented in docs/errors.md.

    Attributes:
        code: One word of the documented set, as ``truncated-data-set``.
        severity: How much it matters.
        where: The part it is about, as an IMAP section (``2``, ``1.3``, ``2!IMG/0001``); empty for the whole message.
        text: One sentence without any value of a patient.
    """

    code: str
    severity: Severity
    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Instance:
    """One composite SOP Instance, as it was found in a part of a message.

    Attributes:
        sop_class: SOP Class UID (0008,0016).
        sop_instance: SOP Instance UID (0008,0018).
        study: Study Instance UID (0020,000D).
        series: Series Instance UID (0020,000E).
        transfer_syntax: Transfer Syntax UID (0002,0010).
        sha256: Of the file exactly as attached, in hexadecimal.
        data_set_sha256: Of the data set after group 0002 as attached (what "the same instance" means), in hexadecimal.
        part: IMAP section of the part it came in, with ``!member`` inside an archive.
        file_id: The parameter ``id`` of its part, else None (MIM-5). A label, never a path.
        file: Its bytes, preamble included: as attached, but for what a rule of the route changed.
        data_set: Offset of the data set behind group 0002, counted from ``file.start``.
        held: The code of the finding for which it must not reach a PACS, else None.
        changed: The keys of the route whose rules changed its data set on the way in, as ``patient_id``.
        attached: Bytes of the file as attached; None where those are the bytes of ``file``.
        pseudonyms: Keyed hashes of its Patient ID and accession number, by which its item is found.
    """

    sop_class: str
    sop_instance: str
    study: str
    series: str
    transfer_syntax: str
    sha256: str
    data_set_sha256: str
    part: str
    file_id: str | None
    file: Span
    data_set: int
    held: str | None = None
    changed: tuple[str, ...] = ()
    attached: int | None = None
    pseudonyms: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the file as attached."""
        return self.file.size if self.attached is None else self.attached


@dataclass(frozen=True, slots=True)
class Envelope:
    """How a message came to us (RFC 5321 §2.3.1), beside its content.

    Attributes:
        door: The section that took it: ``smtp``, or ``imap.NAME`` and ``pop3.NAME``.
        sender: MAIL FROM, empty for the null sender. Where a DSN would go; never who the partner is.
        recipients: RCPT TO as given; for a mailbox its one address.
        peer: Address of the peer, without port.
        user: The name that AUTH proved, else None.
    """

    door: str
    sender: str
    recipients: tuple[str, ...]
    peer: str
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one instance in one send window.

    Attributes:
        key: The delivery it is about, as handed in.
        status: The DIMSE status that a valid response carried (PS3.7 Annex C); None when there was none.
        refused: Why no send was tried, as a code (``context-refused``); None when it was.
        comment: What went wrong when there is no status, as an exception's type or a PDU's name. Never content.
    """

    key: int
    status: int | None
    refused: str | None = None
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Queued:
    """One instance that waits to be sent to one destination.

    Attributes:
        key: Identifies the delivery in the ledger.
        sop_class: SOP Class UID.
        sop_instance: SOP Instance UID.
        transfer_syntax: Transfer Syntax UID its bytes are in.
        data_set: The data set after group 0002, exactly as it came (P10-6).
    """

    key: int
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    data_set: Span


@dataclass(frozen=True, slots=True)
class Reading:
    """What the File-set Reader made of one message (PS3.11 G.2.1.2).

    Attributes:
        kind: ``dicom``, ``partial``, ``report`` or ``other``.
        instances: What could be stored, held ones included; a DICOMDIR is not among them.
        findings: What was noticed on the way.
        other_parts: Leaf parts that are not DICOM.
        dicomdir: None without a DICOMDIR.
        partial: None unless it is a fragment (RFC 2046 §5.2.2).
    """

    kind: str
    instances: tuple[Instance, ...] = ()
    findings: tuple[Finding, ...] = ()
    other_parts: tuple[OtherPart, ...] = ()
    dicomdir: DirectoryCheck | None = None
    partial: Fragment | None = None


@dataclass(frozen=True, slots=True)
class OtherPart:
    """A leaf part that is not DICOM: listed, and kept with the original.

    Attributes:
        part: Its IMAP section.
        type: Its media type in lower case, as declared.
        size: Bytes after decoding.
    """

    part: str
    type: str
    size: int


@dataclass(frozen=True, slots=True)
class DirectoryCheck:
    """A DICOMDIR held against the parts that came (AMB-8, AMB-9).

    Attributes:
        complete: Every file it names is in the message.
        missing: File IDs it names that did not come.
    """

    complete: bool
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fragment:
    """Which piece of a message/partial set this is (RFC 2046 §5.2.2.2).

    Attributes:
        id: The parameter ``id``; never trusted alone (PRT-7).
        number: Counted from 1.
        total: How many there are; None when this fragment does not say.
    """

    id: str
    number: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a message header that the gateway acts on. Holds addresses: never logged.

    Attributes:
        senders: Every address in every From field (RFC 5322 §3.6.2); a proper message has one field with one address.
        from_fields: How many From fields there are.
        message_id: The first Message-ID with its angle brackets, else None.
        received: How many Received fields there are (SMTP-17).
        loop_tokens: The values of our own loop header.
    """

    senders: tuple[str, ...]
    from_fields: int
    message_id: str | None
    received: int
    loop_tokens: tuple[str, ...] = field(default=())


def utc(moment: datetime) -> str:
    """Write a moment as RFC 3339 in UTC, to the millisecond: the form of every time in JSON."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


PROBLEMS = (Outcome.WAITING, Outcome.HELD, Outcome.FAILED, Outcome.REFUSED)
"""In the order in which they decide about a whole."""


def first_problem(outcomes: Sequence[Outcome]) -> Outcome:
    """Fold the outcomes of an item's parts into its own: waiting while anything is open, then held > failed > refused.

    An item without parts has nothing open and nothing wrong; its caller decides what it is.
    """
    for worst in PROBLEMS:
        if worst in outcomes:
            return worst
    return Outcome.DELIVERED


@dataclass(frozen=True, slots=True)
class Digest:
    """What was learned of a message while it was written down. Its header holds addresses: never logged.

    Attributes:
        size: Bytes of the whole message, as spooled.
        sha256: Names the whole message, in hexadecimal: SHA-256 of everything before the body, followed by the SHA-256
            of the body. So a large message is hashed once, not twice.
        body_sha256: Of what follows the first empty line, in hexadecimal; empty when there is no such line.
        header: The header, without the empty line that ends it.
    """

    size: int
    sha256: str
    body_sha256: str
    header: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Mail:
    """A message as it is handed to a relay (RFC 5321 §2.3.1). Holds addresses: never logged.

    Attributes:
        content: Header and body with CRLF line ends, exactly as they go on the wire before transparency.
        sender: MAIL FROM; empty for the null sender.
        recipients: RCPT TO.
        envelope_id: ENVID, by which a report finds its way back; None when no report is wanted (RFC 3461 §4.4).
    """

    content: Span
    sender: str
    recipients: tuple[str, ...]
    envelope_id: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a mail server answered (RFC 5321 §4.2).

    Attributes:
        code: Its three digits.
        status: Its enhanced status code, as ``5.1.1`` (RFC 3463); empty when it gave none.
        text: Its words, one printable line. May quote an address: shown to a person, never logged.
    """

    code: int
    status: str = ""
    text: str = ""

    @property
    def good(self) -> bool:
        """It took what was asked."""
        return 200 <= self.code < 300

    @property
    def permanent(self) -> bool:
        """Asking again brings the same answer (R6)."""
        return self.code >= 500


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of one attempt to submit a mail.

    Attributes:
        replies: The last word about each recipient, in their order.
        doubtful: Everything was sent, and no reply came: the relay may have it or not. ``replies`` is empty then.
    """

    replies: tuple[tuple[str, Reply], ...]
    doubtful: bool = False
