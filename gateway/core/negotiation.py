"""What an acceptor makes of the presentation contexts it is offered (PS3.8 §7.1.1.13, PS3.7 D.3.3.4).

Images are taken in the transfer syntax the requestor names first: it knows what it has, and whoever is answered
something else starts to convert. Implicit VR Little Endian is the last resort: it loses the VR of private elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydicom.uid import UID
from pynetdicom.presentation import AllStoragePresentationContexts

from gateway.core import commitment, dataset
from gateway.core.contexts import VERIFICATION
from gateway.core.dimse import ProtocolError

MOST: Final = 128
"""Contexts of one association: their IDs are the odd numbers of one byte (PS3.8 §9.3.2.2)."""

ACCEPTED: Final = 0
NO_SUCH_CLASS: Final = 3
NO_SUCH_SYNTAX: Final = 4
"""Result/Reason of a presentation context (PS3.8 Table 9-18)."""

STORAGE: Final = frozenset(str(context.abstract_syntax) for context in AllStoragePresentationContexts)
"""The SOP classes of storage that have a name here; those of the next edition of the standard are taken as well."""

_STORAGE_ROOT: Final = "1.2.840.10008.5.1.4.1.1."
_STANDARD_ROOT: Final = "1.2.840.10008."

_SYNTAXES: Final = frozenset(
    {
        *(dataset.IMPLICIT, dataset.EXPLICIT, dataset.DEFLATED, dataset.BIG_ENDIAN),
        "1.2.840.10008.1.2.1.98",  # Encapsulated Uncompressed
        "1.2.840.10008.1.2.5",  # RLE Lossless
        "1.2.840.10008.1.2.8.1",  # Deflated Image Frame Compression
    }
)
_PIXEL_SYNTAXES: Final = "1.2.840.10008.1.2.4."
"""JPEG, JPEG-LS, JPEG 2000, MPEG, HEVC, JPEG XL and what comes next: all Explicit VR Little Endian (PS3.5 A.4)."""

_REFERENCES: Final = frozenset(_PIXEL_SYNTAXES + number for number in ("94", "95", "204", "205"))
"""JPIP: the pixels are somewhere else, and a file that is mailed would hold a link that nobody can follow."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One context as it was proposed.

    Attributes:
        id: Its ID.
        abstract_syntax: What for.
        transfer_syntaxes: In the requestor's order.
        scu: Whether the requestor wants to be SCU; None without role selection, which means yes.
        scp: Whether it wants to be SCP; None without role selection, which means no.
    """

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]
    scu: bool | None = None
    scp: bool | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of it.

    Attributes:
        id: The ID of the proposal.
        abstract_syntax: What for.
        result: ACCEPTED, NO_SUCH_CLASS or NO_SUCH_SYNTAX.
        transfer_syntax: The one chosen; the first proposed, which has no meaning, in a refusal.
    """

    id: int
    abstract_syntax: str
    result: int
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What is taken on one association.

    Attributes:
        storage: Images are taken at all.
        unknown_classes: Private SOP classes and those nobody knew yet, too.
        reports: Storage commitment reports are taken.
        archive: The requestor is one of our own destinations.
    """

    storage: bool
    unknown_classes: bool = True
    reports: bool = False
    archive: bool = False


def is_storage(sop_class: str, *, unknown: bool) -> bool:
    """Tell whether a SOP class is one of storage; what is not known is as ``unknown`` says."""
    if sop_class in STORAGE:
        return True
    if sop_class.startswith(_STORAGE_ROOT):
        # Retired ones have a name, others may come with the next edition of the standard.
        return unknown or UID(sop_class).name != sop_class
    return unknown and not sop_class.startswith(_STANDARD_ROOT)


def wants_storage(proposals: Sequence[Proposal]) -> bool:
    """Tell whether a requestor wants to store images."""
    return any(is_storage(each.abstract_syntax, unknown=True) for each in proposals)


def choose(transfer_syntaxes: Sequence[str]) -> str | None:
    """Choose the first transfer syntax that is known; Implicit VR Little Endian only when there is no other."""
    known = [syntax for syntax in transfer_syntaxes if _is_known(syntax)]
    explicit = [syntax for syntax in known if syntax != dataset.IMPLICIT]
    return next(iter([*explicit, *known]), None)


def decide(proposals: Sequence[Proposal], policy: Policy) -> tuple[Decision, ...]:
    """Decide about every context.

    Raises:
        ProtocolError: There is none, or their IDs cannot be told apart.
    """
    ids = {each.id for each in proposals}
    if not proposals or len(ids) != len(proposals) or any(not 0 < one < 256 or one % 2 == 0 for one in ids):
        raise ProtocolError("invalid presentation contexts")
    return tuple(_decide(each, policy) for each in proposals)


def _decide(proposal: Proposal, policy: Policy) -> Decision:
    first = proposal.transfer_syntaxes[0] if proposal.transfer_syntaxes else dataset.IMPLICIT
    if not _is_taken(proposal, policy):
        return Decision(proposal.id, proposal.abstract_syntax, NO_SUCH_CLASS, first)
    offered = proposal.transfer_syntaxes
    if proposal.abstract_syntax == commitment.SOP_CLASS:
        offered = tuple(syntax for syntax in offered if syntax in {dataset.IMPLICIT, dataset.EXPLICIT})
    chosen = choose(offered)
    if chosen is None:
        return Decision(proposal.id, proposal.abstract_syntax, NO_SUCH_SYNTAX, first)
    return Decision(proposal.id, proposal.abstract_syntax, ACCEPTED, chosen)


def _is_taken(proposal: Proposal, policy: Policy) -> bool:
    if proposal.abstract_syntax == VERIFICATION[0]:
        return proposal.scu is not False  # NET-1
    if proposal.abstract_syntax == commitment.SOP_CLASS:
        # A modality that asked us for commitment would delete its images: only reports are taken, from an SCP (NET-9).
        # QUIRK: some archives open the association for their report without role selection.
        return policy.reports and (proposal.scp is True or (proposal.scp is None and policy.archive))
    if proposal.scu is False:
        return False
    return policy.storage and is_storage(proposal.abstract_syntax, unknown=policy.unknown_classes)


def _is_known(syntax: str) -> bool:
    """Tell whether data sets in a transfer syntax can be read to their end, and hold what they show."""
    # By their root: pydicom does not name every current one.
    return syntax in _SYNTAXES or (syntax.startswith(_PIXEL_SYNTAXES) and syntax not in _REFERENCES)
