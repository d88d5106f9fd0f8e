"""What a peer is asked by an association of its own: is it there, what does it have, answer for, and take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from gateway.core import commitment, contexts, query
from gateway.edges.storescu.association import Association
from gateway.edges.storescu.wire import Peer
from gateway.errors import AssociationRejectedError, PeerUnreachableError


@dataclass(frozen=True, slots=True)
class EchoResult:
    """What a C-ECHO found. A good one proves neither storage permission nor syntax support (NET-20).

    Attributes:
        ok: The peer answered with success.
        seconds: From the first packet to the answer, or to the failure.
        reason: What was wrong, for a person; empty when nothing was.
        reachable: The peer spoke DICOM with us, whatever it said.
        certificate_ends: When the certificate that it showed expires; None without TLS.
    """

    ok: bool
    seconds: float
    reason: str = ""
    reachable: bool = True
    certificate_ends: datetime | None = None


def echo(peer: Peer) -> EchoResult:
    """Ask a peer whether it is there, by a C-ECHO (NET-20). Never raises."""
    started = time.monotonic()
    ends = None
    reachable = False
    try:
        association = Association.open(peer, contexts.number([contexts.VERIFICATION]))
        reachable, ends = True, association.certificate_ends
        reason = _verify(association, peer.timeout)
    except AssociationRejectedError as error:
        reachable, reason = True, str(error)
    except PeerUnreachableError as error:
        reason = str(error)
    return EchoResult(not reason, time.monotonic() - started, reason, reachable, ends)


def _verify(association: Association, deadline: float) -> str:
    """Do the C-ECHO and end the association; return what was wrong, else nothing."""
    if association.refused:
        association.release()
        return "it does not accept the Verification SOP class"
    try:
        status = association.echo(deadline)
    except PeerUnreachableError as error:
        return f"no answer to C-ECHO: {error}"
    association.release()
    return "" if status == 0 else f"C-ECHO was answered with status 0x{status:04X}"


def find(peer: Peer, wanted: Sequence[query.Wanted]) -> query.Findings:
    """Ask a peer which instances it has, by C-FIND at IMAGE level of the Study Root model.

    Raises:
        AssociationRejectedError: It said no.
        PeerUnreachableError: It said nothing.
    """
    association = Association.open(peer, contexts.number([query.CONTEXT]))
    try:
        if association.refused:
            unknown = dict.fromkeys((one.sop_instance for one in wanted), query.Presence.UNKNOWN)
            return query.Findings(unknown, "it does not accept Study Root C-FIND")
        return association.find(wanted, peer.timeout)
    finally:
        association.release()


def commit(
    peer: Peer,
    transaction: str,
    references: Sequence[commitment.Reference],
    *,
    wait: float = 0.0,
    record: Callable[[commitment.Report], object] | None = None,
) -> commitment.Answer:
    """Request storage commitment (SC-1), and take the report if it comes on the same association within ``wait``.

    Raises:
        AssociationRejectedError: It said no.
        PeerUnreachableError: It said nothing.
    """
    association = Association.open(peer, contexts.number([commitment.CONTEXT]))
    try:
        return association.commit(transaction, references, peer.timeout, wait, record)
    finally:
        association.release()


def refusals(peer: Peer, pairs: Sequence[contexts.Pair]) -> Mapping[contexts.Pair, str]:
    """Propose pairs and send nothing: return what the peer does not accept, each with its code (NET-5).

    Raises:
        AssociationRejectedError: It said no.
        PeerUnreachableError: It said nothing.
    """
    refused: dict[contexts.Pair, str] = {}
    for start in range(0, len(pairs), contexts.MOST):
        association = Association.open(peer, contexts.number(pairs[start : start + contexts.MOST]))
        refused |= association.refused
        association.release()
    return refused
