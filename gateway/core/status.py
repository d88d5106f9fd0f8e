"""What a C-STORE response means and what follows from it: the status table, as data (PS3.4 B.2.3, PS3.7 Annex C).

NET-16: success is told from failure by this table alone, unknown codes included. Nothing that is not listed here as
success or warning ever counts as delivered (R12).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from gateway import model


class Action(StrEnum):
    """What follows from an answer.

    Attributes:
        DELIVERED: It is in the PACS; a warning is on record where there was one.
        DUPLICATE: The PACS says that it has it already: delivered where our own ledger agrees, else a person decides.
        RETRY: Send it again after the back-off.
        INSTANCE: This instance will never be taken: hold it, tell a person, go on with the others.
        CLASS: Nothing of its kind is taken by this destination as it is configured.
        DESTINATION: The destination refuses us, not the instance: open the breaker, alarm, keep the queue.
        STOP: A fault of our own: stop sending, alarm, keep the data.
        UNKNOWN: No valid answer came: it may be there or not. Counted and spaced, never a success.
    """

    DELIVERED = "delivered"
    DUPLICATE = "duplicate"
    RETRY = "retry"
    INSTANCE = "instance"
    CLASS = "class"
    DESTINATION = "destination"
    STOP = "stop"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the table.

    Attributes:
        action: What follows.
        code: One word of the documented set, as ``out-of-resources``.
        meaning: The standard's words, for people.
        clause: Where the standard says so.
        tries: After how many answers of this kind a retry makes no sense any more; None when only the time to give
            up ends it.
    """

    action: Action
    code: str
    meaning: str
    clause: str
    tries: int | None = None

    @property
    def delivered(self) -> bool:
        """Whether the instance is in the PACS, with a warning or without."""
        return self.action is Action.DELIVERED

    @property
    def warning(self) -> bool:
        """Whether it was delivered, but with a remark that a person may want to see."""
        return self.delivered and self.code != "stored"

    @property
    def bounded(self) -> bool:
        """Whether repeating it ends before the time to give up."""
        return self.tries is not None


@dataclass(frozen=True, slots=True)
class Row:
    """A range of status codes, both ends included, and its verdict."""

    first: int
    last: int
    verdict: Verdict


OUT_OF_RESOURCES_TRIES: Final = 40
"""A700 is a full disk, which somebody clears, or (Orthanc) a missing Patient ID, which nobody does."""

DATABASE_TROUBLE_TRIES: Final = 5
"""Cxxx should mean "cannot understand" and be final, but vendors answer it when their database is down."""

PROCESSING_TRIES: Final = 10
UNLISTED_TRIES: Final = 5

TABLE: Final = (
    Row(0x0000, 0x0000, Verdict(Action.DELIVERED, "stored", "success", "PS3.4 B.2.3")),
    Row(0xB000, 0xB000, Verdict(Action.DELIVERED, "coerced", "coercion of data elements", "PS3.4 B.2.3")),
    Row(0xB006, 0xB006, Verdict(Action.DELIVERED, "elements-discarded", "elements discarded", "PS3.4 B.2.3")),
    Row(
        0xB007,
        0xB007,
        Verdict(Action.DELIVERED, "class-mismatch", "data set does not match SOP class", "PS3.4 B.2.3"),
    ),
    Row(
        0xA700,
        0xA7FF,
        Verdict(Action.RETRY, "out-of-resources", "refused: out of resources", "PS3.4 B.2.3", OUT_OF_RESOURCES_TRIES),
    ),
    Row(
        0xA900,
        0xA9FF,
        Verdict(Action.INSTANCE, "class-mismatch", "error: data set does not match SOP class", "PS3.4 B.2.3"),
    ),
    Row(
        0xC000,
        0xCFFF,
        Verdict(Action.RETRY, "not-understood", "error: cannot understand", "PS3.4 B.2.3", DATABASE_TROUBLE_TRIES),
    ),
    Row(
        0x0110,
        0x0110,
        Verdict(Action.RETRY, "processing-failure", "processing failure", "PS3.7 Annex C", PROCESSING_TRIES),
    ),
    Row(
        0x0213,
        0x0213,
        Verdict(Action.RETRY, "resource-limitation", "resource limitation", "PS3.7 Annex C", PROCESSING_TRIES),
    ),
    Row(0x0111, 0x0111, Verdict(Action.DUPLICATE, "duplicate", "duplicate SOP instance", "PS3.7 Annex C")),
    Row(0x0117, 0x0117, Verdict(Action.INSTANCE, "instance-invalid", "invalid object instance", "PS3.7 Annex C")),
    Row(0x0119, 0x0119, Verdict(Action.INSTANCE, "class-mismatch", "class-instance conflict", "PS3.7 Annex C")),
    Row(0x0122, 0x0122, Verdict(Action.CLASS, "class-refused", "refused: SOP class not supported", "PS3.7 Annex C")),
    # NET-17: the template of the conformance statement prints 0112 and 0214 where PS3.7 has 0122 and 0124; some
    # products follow the one, some the other. 0118 (no such SOP class) is what a third kind answers.
    Row(0x0112, 0x0112, Verdict(Action.CLASS, "class-refused", "SOP class not supported", "PS3.2 Table N.7-42")),
    Row(0x0118, 0x0118, Verdict(Action.CLASS, "class-refused", "no such SOP class", "PS3.7 Annex C")),
    Row(0x0124, 0x0124, Verdict(Action.DESTINATION, "not-authorised", "refused: not authorised", "PS3.7 Annex C")),
    Row(0x0214, 0x0214, Verdict(Action.DESTINATION, "not-authorised", "not authorised", "PS3.2 Table N.7-42")),
    Row(0x0210, 0x0210, Verdict(Action.STOP, "protocol-misuse", "duplicate invocation", "PS3.7 Annex C")),
    Row(0x0211, 0x0211, Verdict(Action.STOP, "protocol-misuse", "unrecognised operation", "PS3.7 Annex C")),
    Row(0x0212, 0x0212, Verdict(Action.STOP, "protocol-misuse", "mistyped argument", "PS3.7 Annex C")),
)
"""Ranges do not overlap. Listed in the order of a conformance statement."""

DUPLICATE_INSTANCE: Final = 0x0111

STORED: Final = (0x0000, 0xB000, 0xB006, 0xB007)
"""Statuses by which an instance is in the PACS."""

UNLISTED: Final = Verdict(
    Action.RETRY, "status-unknown", "a status the standard does not list", "PS3.4 B.2.1", UNLISTED_TRIES
)
"""Codes nobody listed are taken for temporary and bounded, warnings nobody listed among them (NET-16)."""

NO_ANSWER: Final = Verdict(Action.UNKNOWN, "in-doubt", "no valid response", "PS3.4 B.2.1")

REFUSALS: Final[Mapping[str, Verdict]] = MappingProxyType(
    {
        "context-refused": Verdict(
            Action.CLASS, "context-refused", "the peer takes neither this class nor this syntax", "PS3.8 9.3.3.2"
        ),
        "context-unavailable": Verdict(
            Action.RETRY, "context-unavailable", "the peer rejected the presentation context", "PS3.8 9.3.3.2"
        ),
        "context-not-proposed": Verdict(
            Action.RETRY, "context-not-proposed", "the association was opened for other instances", "PS3.8 9.3.2.2"
        ),
        "not-decoded": Verdict(
            Action.RETRY,
            "not-decoded",
            "the peer refuses its syntax and decoding it failed",
            "PS3.5 10.1",
            PROCESSING_TRIES,
        ),
        "content-missing": Verdict(
            Action.INSTANCE, "content-missing", "its bytes cannot be read from the spool", "PS3.4 B.2.2"
        ),
        "invalid-uid": Verdict(
            Action.INSTANCE, "invalid-uid", "a UID of it, or its transfer syntax, cannot be named", "PS3.5 9.1"
        ),
    }
)
"""What follows when an instance was never put on the wire, by the code of :attr:`gateway.model.Sent.refused`."""


def classify(status: int) -> Verdict:
    """Look a DIMSE status up. Never fails: a code nobody lists is temporary and bounded."""
    for row in TABLE:
        if row.first <= status <= row.last:
            return row.verdict
    return UNLISTED


def judge(sent: model.Sent) -> Verdict:
    """Tell what follows from one outcome of a send window: by status, by refusal, or in doubt."""
    if sent.refused is not None:
        return REFUSALS[sent.refused]
    return NO_ANSWER if sent.status is None else classify(sent.status)
