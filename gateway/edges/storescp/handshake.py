"""How an association is asked for and accepted, in the words of pynetdicom (PS3.8 §9.3.2, §9.3.3)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext, build_context

from gateway import model
from gateway.core import commitment, dimse, negotiation

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"


def read_request(pdu: dimse.Pdu) -> tuple[A_ASSOCIATE, list[negotiation.Proposal]]:
    """Read an A-ASSOCIATE-RQ (PS3.8 §9.3.2).

    Raises:
        ProtocolError: It cannot be read.
    """
    request = A_ASSOCIATE_RQ()
    try:
        request.decode(struct.pack(">BxI", pdu.type, len(pdu.body)) + pdu.body)
        primitive = request.to_primitive()
        roles = {
            str(item.sop_class_uid): (bool(item.scu_role), bool(item.scp_role))
            for item in primitive.user_information
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
        }
        return primitive, [
            negotiation.Proposal(
                context.context_id or 0,
                str(context.abstract_syntax),
                tuple(str(syntax) for syntax in context.transfer_syntax),
                *roles.get(str(context.abstract_syntax), (None, None)),
            )
            for context in primitive.presentation_context_definition_list
        ]
    except Exception:  # noqa: BLE001  what the library raises on bytes it does not like is documented nowhere
        raise dimse.ProtocolError("invalid A-ASSOCIATE-RQ") from None


def acceptance(
    request: A_ASSOCIATE,
    proposals: Sequence[negotiation.Proposal],
    decisions: Sequence[negotiation.Decision],
    max_pdu: int,
) -> bytes:
    """Write the A-ASSOCIATE-AC (PS3.8 §9.3.3)."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID(APPLICATION_CONTEXT)
    primitive.calling_ae_title = request.calling_ae_title
    primitive.called_ae_title = request.called_ae_title
    primitive.result = 0
    primitive.result_source = 1
    primitive.presentation_context_definition_results_list = [_result(each) for each in decisions]
    length = MaximumLengthNotification()
    length.maximum_length_received = max_pdu
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID(model.IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = model.IMPLEMENTATION_VERSION_NAME
    roles = {each.abstract_syntax: each for each in proposals if each.scu is not None}
    primitive.user_information = [length, implementation, version, *(_role(each) for each in roles.values())]
    answer = A_ASSOCIATE_AC()
    answer.from_primitive(primitive)
    encoded: bytes = answer.encode()
    return encoded


def _result(decision: negotiation.Decision) -> PresentationContext:
    context = build_context(decision.abstract_syntax, decision.transfer_syntax)
    context.context_id = decision.id
    context.result = decision.result
    return context


def _role(proposal: negotiation.Proposal) -> SCP_SCU_RoleSelectionNegotiation:
    """Agree to the role that makes sense: it reports as SCP, and stores and verifies as SCU (PS3.7 D.3.3.4)."""
    reports = proposal.abstract_syntax == commitment.SOP_CLASS
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid = UID(proposal.abstract_syntax)
    role.scu_role = not reports and bool(proposal.scu)
    role.scp_role = reports and bool(proposal.scp)
    return role


def title(title: str) -> str:
    """An AE title without its padding."""
    return title.strip(" \0")
