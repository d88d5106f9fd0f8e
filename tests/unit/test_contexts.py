"""Presentation contexts are planned from what is queued, and from nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import model
from gateway.core import contexts

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
NOWHERE = model.Span(Path("nowhere"), 0, 0)


def queued(key: int, sop_class: str = CT, syntax: str = EXPLICIT) -> model.Queued:
    return model.Queued(key, sop_class, f"1.2.3.{key}", syntax, NOWHERE)


def test_an_empty_queue_needs_no_association() -> None:
    """R19: no contexts, no association."""
    assert contexts.plan([]) == ()


def test_each_pair_has_a_context_of_its_own() -> None:
    """NET-4: the acceptor has no choice to make within a context; IDs are odd."""
    waiting = [queued(1), queued(2, syntax=IMPLICIT), queued(3), queued(4, sop_class="1.2.276.0.99")]
    (plan,) = contexts.plan(waiting)
    assert plan.contexts == (
        contexts.Context(1, CT, EXPLICIT),
        contexts.Context(3, CT, IMPLICIT),
        contexts.Context(5, "1.2.276.0.99", EXPLICIT),
    )
    assert plan.queued == tuple(waiting)


@pytest.mark.parametrize(("classes", "sizes"), [(127, [127]), (128, [128]), (129, [128, 1]), (257, [128, 128, 1])])
def test_more_than_128_go_over_further_associations(classes: int, sizes: list[int]) -> None:
    """R19: the boundary, and each instance goes where its context is."""
    waiting = [queued(key, f"1.2.{key % classes}") for key in range(2 * classes)]
    plans = contexts.plan(waiting)
    assert [len(plan.contexts) for plan in plans] == sizes
    assert [len(plan.queued) for plan in plans] == [2 * size for size in sizes]
    assert all(plan.contexts[-1].id == 2 * len(plan.contexts) - 1 for plan in plans)


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (1, "context-unavailable"),
        (2, "context-unavailable"),
        (3, "context-refused"),
        (4, "context-refused"),
        (200, "context-unavailable"),
    ],
)
def test_a_refusal_is_for_good_or_for_now(result: int, code: str) -> None:
    """NET-5: 3 and 4 are the peer's configuration, anything else may pass."""
    assert contexts.refusal(result) == code


def test_verification_is_a_context_like_any_other() -> None:
    """NET-20: C-ECHO needs one."""
    assert contexts.number([contexts.VERIFICATION]) == (contexts.Context(1, "1.2.840.10008.1.1", IMPLICIT),)


def test_what_can_be_decoded_has_its_fall_backs_on_the_same_association() -> None:
    """NET-2, NET-12: Explicit and Implicit VR Little Endian beside the syntax; video has none."""
    j2k, video = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.102"
    span = model.Span(Path("x"), 0, 1)
    queued = [model.Queued(key, "1.2", "1.2.3", syntax, span) for key, syntax in enumerate((j2k, video))]
    (plan,) = contexts.plan(queued, contexts.DECODABLE)
    assert [each.transfer_syntax for each in plan.contexts] == [j2k, contexts.EXPLICIT, contexts.IMPLICIT, video]
    (without,) = contexts.plan(queued)
    assert [each.transfer_syntax for each in without.contexts] == [j2k, video]


def test_fall_backs_never_stand_on_another_association_than_what_they_are_for() -> None:
    """R19: a hundred classes need three contexts each; no association has more than 128."""
    span = model.Span(Path("x"), 0, 1)
    queued = [model.Queued(key, f"1.2.{key}", "1.2.3", "1.2.840.10008.1.2.5", span) for key in range(100)]
    plans = contexts.plan(queued, contexts.DECODABLE)
    assert [len(plan.contexts) for plan in plans] == [126, 126, 48]
    assert [one.key for plan in plans for one in plan.queued] == list(range(100))
    for plan in plans:
        pairs = {each.pair for each in plan.contexts}
        wanted = {(one.sop_class, each) for one in plan.queued for each in (one.transfer_syntax, *contexts.FALL_BACKS)}
        assert pairs == wanted
