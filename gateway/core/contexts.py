"""Presentation contexts: planned from what is queued, and what the peer's answer makes of them (PS3.8 §7.1.1.13).

Each context offers one SOP class with one transfer syntax: an acceptor returns only one syntax per context, so a
bundle would leave the choice to it (NET-4). Whether a SOP class is known here decides nothing; the peer is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gateway import model

MOST: Final = 128
"""Contexts one association can carry: their IDs are the odd numbers of one byte (PS3.8 §9.3.2.2)."""

REFUSED: Final = "context-refused"
"""The peer is configured not to take it: trying again changes nothing until somebody changes the peer (NET-5)."""

UNAVAILABLE: Final = "context-unavailable"
"""The peer rejected it without such a reason: worth another try (NET-5)."""

NOT_PROPOSED: Final = "context-not-proposed"
"""The association was not opened for this instance."""

UNDECODED: Final = "not-decoded"
"""The peer refuses it as it is, and we failed to decode it for a reason of ours: worth another try."""

UNNAMED: Final = "invalid-uid"
"""No request can name it: a UID of it is missing, too long or no ASCII. Where it is proposed, nothing is negotiated."""

Pair = tuple[str, str]
"""SOP Class UID and Transfer Syntax UID: what a context stands for."""


IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = "1.2.840.10008.1.2.1"

FALL_BACKS: Final = (EXPLICIT, IMPLICIT)
"""What is proposed beside the syntax an instance is in, for the case that this is refused (NET-2, NET-12)."""

DECODABLE: Final = frozenset(
    {
        *(IMPLICIT, EXPLICIT),
        "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
        "1.2.840.10008.1.2.2",  # Explicit VR Big Endian
        "1.2.840.10008.1.2.5",  # RLE Lossless
        *("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"),  # JPEG Lossless, Process 14 and its selection value 1
        "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
        "1.2.840.10008.1.2.4.90",  # JPEG 2000 Lossless Only
        *("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202"),  # High-Throughput JPEG 2000 Lossless Only
    }
)
"""Transfer syntaxes that can be decoded without any loss (NET-12, NET-13)."""

LOSSY: Final = frozenset(
    {
        *("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"),  # JPEG Baseline and Extended
        "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-lossless
        "1.2.840.10008.1.2.4.91",  # JPEG 2000
        "1.2.840.10008.1.2.4.203",  # High-Throughput JPEG 2000
    }
)
"""Transfer syntaxes that may have lost something, and are decoded only where that is allowed (NET-12)."""

VERIFICATION: Final[Pair] = ("1.2.840.10008.1.1", "1.2.840.10008.1.2")
"""What a C-ECHO needs: the Verification SOP class, in the default transfer syntax (PS3.4 Annex A)."""


@dataclass(frozen=True, slots=True)
class Context:
    """One presentation context to propose.

    Attributes:
        id: Odd, 1 to 255.
        sop_class: The abstract syntax.
        transfer_syntax: The one syntax offered for it.
    """

    id: int
    sop_class: str
    transfer_syntax: str

    @property
    def pair(self) -> Pair:
        """What it stands for."""
        return self.sop_class, self.transfer_syntax


@dataclass(frozen=True, slots=True)
class Plan:
    """One association to open, and what goes over it.

    Attributes:
        contexts: At most 128: those its instances need, and their fall-backs.
        queued: The instances, in the order they were queued.
    """

    contexts: tuple[Context, ...]
    queued: tuple[model.Queued, ...]


def pair(queued: model.Queued) -> Pair:
    """Name the context an instance needs."""
    return queued.sop_class, queued.transfer_syntax


def can_be_named(*uids: str) -> bool:
    """Whether requests can name an instance by its UIDs. The reader holds it if not; a person may let it go on."""
    return all(uid.isascii() and 0 < len(uid) <= 64 for uid in uids)


def number(pairs: Iterable[Pair]) -> tuple[Context, ...]:
    """Give each pair its context ID, in order."""
    return tuple(Context(2 * index + 1, *each) for index, each in enumerate(pairs))


def plan(queued: Sequence[model.Queued], fall_back: frozenset[str] = frozenset()) -> tuple[Plan, ...]:
    """Plan the associations that a queue needs: one context per pair, at most 128 in each (NET-4, R19).

    Pairs are taken in the order in which they first appear, so the head of the queue goes over the first
    association. An empty queue needs none.

    Args:
        queued: What waits.
        fall_back: Transfer syntaxes that can be decoded (``DECODABLE``, ``LOSSY``): what is in one of them gets
            contexts for its class with FALL_BACKS, too. They share an association with the pair they stand in for.
    """
    order = list(dict.fromkeys(pair(each) for each in queued))
    plans = []
    while order:
        part: dict[Pair, None] = {}
        chosen = set()
        while order and len(wider := part | dict.fromkeys(_group(order[0], fall_back))) <= MOST:
            part = wider
            chosen.add(order.pop(0))
        plans.append(Plan(number(part), tuple(each for each in queued if pair(each) in chosen)))
    return tuple(plans)


def _group(wanted: Pair, fall_back: frozenset[str]) -> tuple[Pair, ...]:
    sop_class, transfer_syntax = wanted
    if transfer_syntax not in fall_back:
        return (wanted,)
    return (wanted, *((sop_class, each) for each in FALL_BACKS))


def refusal(result: int) -> str:
    """Turn the result of a context that was not accepted into a code: 3 and 4 are final, 1 and 2 are not (NET-5)."""
    return REFUSED if result in {3, 4} else UNAVAILABLE
