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
