"""Whatever is queued, the plan carries all of it and nothing more."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gateway import model
from gateway.core import contexts

NOWHERE = model.Span(Path("nowhere"), 0, 0)
PAIRS = st.tuples(st.integers(0, 300), st.integers(0, 5))


@given(st.lists(PAIRS, max_size=400))
def test_every_instance_is_in_one_plan_that_has_its_context(pairs: list[tuple[int, int]]) -> None:
    """R19: none lost, none twice, none without a context, no context without an instance, order kept."""
    queued = [model.Queued(key, f"1.2.{c}", f"1.3.{key}", f"1.4.{s}", NOWHERE) for key, (c, s) in enumerate(pairs)]
    plans = contexts.plan(queued)
    assert sorted(each.key for plan in plans for each in plan.queued) == list(range(len(queued)))
    for plan in plans:
        assert 1 <= len(plan.contexts) <= contexts.MOST
        assert [context.id for context in plan.contexts] == list(range(1, 2 * len(plan.contexts), 2))
        assert {context.pair for context in plan.contexts} == {contexts.pair(each) for each in plan.queued}
        assert [each.key for each in plan.queued] == sorted(each.key for each in plan.queued)
    proposed = [context.pair for plan in plans for context in plan.contexts]
    assert len(proposed) == len(set(proposed))


@given(st.lists(PAIRS, min_size=1, max_size=50))
def test_the_head_of_the_queue_goes_first(pairs: list[tuple[int, int]]) -> None:
    """R19: splitting starves nobody."""
    queued = [model.Queued(key, f"1.2.{c}", f"1.3.{key}", f"1.4.{s}", NOWHERE) for key, (c, s) in enumerate(pairs)]
    assert contexts.plan(queued)[0].queued[0] == queued[0]
