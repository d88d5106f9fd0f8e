"""Every set of contexts gets one answer each, and no answer that was not offered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import negotiation
from gateway.core.dimse import ProtocolError
from gateway.core.negotiation import Decision, Policy, Proposal

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
JPEG, JPEG_XL, JPIP, PRIVATE = f"{IMPLICIT}.4.70", f"{IMPLICIT}.4.110", f"{IMPLICIT}.4.94", "1.2.3.4"
CT, NEW = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.9999"
VERIFICATION, COMMITMENT, FIND = "1.2.840.10008.1.1", "1.2.840.10008.1.20.1", "1.2.840.10008.5.1.4.1.2.2.1"
DIRECTORY, HANGING = "1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.38.1"
RETIRED = "1.2.840.10008.5.1.4.1.1.6"

CLASSES = st.sampled_from([CT, NEW, VERIFICATION, COMMITMENT, FIND, DIRECTORY, HANGING, RETIRED, PRIVATE])
SYNTAXES = st.lists(st.sampled_from([IMPLICIT, EXPLICIT, BIG, JPEG, JPEG_XL, JPIP, PRIVATE]), unique=True)
ROLE = st.sampled_from([None, True, False])
PROPOSALS = st.builds(Proposal, st.just(1), CLASSES, SYNTAXES.map(tuple), ROLE, ROLE)
POLICIES = st.builds(Policy, st.booleans(), st.booleans(), st.booleans(), st.booleans())


@given(st.lists(PROPOSALS, min_size=1, max_size=128), POLICIES)
def test_every_context_has_one_answer(proposals: list[Proposal], policy: Policy) -> None:
    """PS3.8 §9.3.3.2: accepted only with a syntax that was offered, Implicit only without another one."""
    numbered = [
        Proposal(2 * n + 1, p.abstract_syntax, p.transfer_syntaxes, p.scu, p.scp) for n, p in enumerate(proposals)
    ]
    decisions = negotiation.decide(numbered, policy)
    assert [one.id for one in decisions] == [one.id for one in numbered]
    for proposal, decision in zip(numbered, decisions, strict=True):
        if decision.result == negotiation.ACCEPTED:
            offered = proposal.transfer_syntaxes
            assert decision.transfer_syntax in offered
            assert decision.transfer_syntax not in {JPIP, PRIVATE}
            if decision.transfer_syntax == IMPLICIT and proposal.abstract_syntax != COMMITMENT:
                assert set(offered) <= {IMPLICIT, JPIP, PRIVATE}
        if decision.result == negotiation.ACCEPTED and proposal.abstract_syntax == COMMITMENT:
            assert policy.reports
            assert proposal.scp or (proposal.scp is None and policy.archive)
        if proposal.abstract_syntax in {FIND, DIRECTORY, HANGING}:
            assert decision.result == negotiation.NO_SUCH_CLASS


@given(SYNTAXES)
def test_the_requestors_order_is_honoured(syntaxes: list[str]) -> None:
    """The first that is known is chosen: nobody is made to convert."""
    known = [one for one in syntaxes if one in {EXPLICIT, BIG, JPEG, JPEG_XL}]
    last = IMPLICIT if IMPLICIT in syntaxes else None
    assert negotiation.choose(syntaxes) == (known[0] if known else last)


@pytest.mark.parametrize(
    ("sop_class", "unknown", "stored"),
    [
        *((CT, False, True), (CT, True, True), (RETIRED, False, True)),
        *((NEW, True, True), (NEW, False, False), (PRIVATE, True, True), (PRIVATE, False, False)),
        *((FIND, True, False), (DIRECTORY, True, False), (HANGING, True, False), (VERIFICATION, True, False)),
    ],
)
def test_what_is_stored_is_a_matter_of_policy(sop_class: str, unknown: bool, stored: bool) -> None:
    """unknown_classes: private ones and those of a later edition; a known service is never storage."""
    assert negotiation.is_storage(sop_class, unknown=unknown) is stored
    assert negotiation.wants_storage([Proposal(1, sop_class, ())]) is negotiation.is_storage(sop_class, unknown=True)


def test_the_reasons_of_a_refusal_are_told_apart() -> None:
    """NET-5: 3 for the class, 4 for the syntax; without any syntax a syntax is named all the same."""
    proposals = [Proposal(1, FIND, (EXPLICIT,)), Proposal(3, CT, (PRIVATE, JPIP)), Proposal(5, CT, ())]
    assert negotiation.decide(proposals, Policy(storage=True)) == (
        Decision(1, FIND, 3, EXPLICIT),
        Decision(3, CT, 4, PRIVATE),
        Decision(5, CT, 4, IMPLICIT),
    )


@pytest.mark.parametrize("ids", [(), (0,), (2,), (257,), (1, 1)])
def test_contexts_that_cannot_be_told_apart_are_a_breach(ids: tuple[int, ...]) -> None:
    """PS3.8 §9.3.2.2: odd numbers of one byte, each once."""
    with pytest.raises(ProtocolError):
        negotiation.decide([Proposal(one, CT, (EXPLICIT,)) for one in ids], Policy(storage=True))


def test_roles_decide_who_may_do_what() -> None:
    """PS3.7 D.3.3.4: who does not want to be SCU sends no images; only an SCP reports."""
    policy = Policy(storage=True, reports=True)
    results = [
        negotiation.decide([Proposal(1, sop_class, (IMPLICIT,), scu, scp)], policy)[0].result
        for sop_class, scu, scp in (
            *((CT, True, True), (CT, False, True), (VERIFICATION, False, True)),
            *((COMMITMENT, False, True), (COMMITMENT, True, False), (COMMITMENT, None, None)),
        )
    ]
    assert results == [0, 3, 3, 0, 3, 3]
