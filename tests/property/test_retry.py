"""When to try again: grows to a cap with jitter, never parks anything, ends at last (R16, R17)."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from gateway.core import retry
from gateway.core.retry import Bounds, Facts, after_failure, after_silence, grow, spread, until_probe
from gateway.model import Outcome

DICE = st.floats(0, 1, exclude_max=True)
COUNT = st.integers(0, 100_000)
AGE = st.timedeltas(timedelta(days=-400), timedelta(days=400))
FACTS = st.builds(Facts, COUNT, COUNT, AGE, COUNT)
BOUNDS = st.builds(
    Bounds, st.timedeltas(timedelta(0), timedelta(days=30)), st.integers(1, 50), st.none() | st.integers(1, 60)
)
WAITS = [
    (retry.FIRST_WAIT, retry.LONGEST_WAIT),
    (retry.FIRST_PROBE, retry.LONGEST_PROBE),
    (retry.FIRST_DOUBT, retry.LONGEST_DOUBT),
]


@given(st.sampled_from(WAITS), COUNT)
def test_a_wait_grows_to_its_cap_and_stays_there(wait: tuple[timedelta, timedelta], times: int) -> None:
    """Never less than the first, never more than the longest, never less than the one before (R16)."""
    first, longest = wait
    assert first <= grow(first, longest, times) <= grow(first, longest, times + 1) <= longest
    assert grow(first, longest, 1) == first
    assert grow(first, longest, 60) == longest


@given(st.timedeltas(timedelta(seconds=1), timedelta(hours=2)), DICE)
def test_the_jitter_moves_a_wait_by_a_fifth_at_most(wait: timedelta, dice: float) -> None:
    """What failed together does not come back together (R16)."""
    grain = timedelta(microseconds=1)
    assert wait * 0.8 - grain <= spread(wait, dice) <= wait * 1.2 + grain
    assert spread(wait, 0) < spread(wait, 0.5) < spread(wait, 0.999)


@given(FACTS, BOUNDS, DICE)
def test_whatever_waits_has_a_next_attempt_and_whatever_ended_has_none(
    facts: Facts, bounds: Bounds, dice: float
) -> None:
    """Nothing is parked (R17), and no wait is zero: no destination is hammered (R16)."""
    for rule in (after_failure, after_silence):
        follows = rule(facts, bounds, dice)
        assert (follows.outcome is Outcome.WAITING) == (follows.wait is not None)
        assert follows.wait is None or timedelta(seconds=15) < follows.wait < timedelta(minutes=73)


@given(FACTS, BOUNDS, DICE)
def test_a_failure_ends_by_its_bound_or_by_age_after_enough_tries(facts: Facts, bounds: Bounds, dice: float) -> None:
    """Age alone ends nothing: a clock that jumps ahead finds an item hardly tried (R29)."""
    too_many = bounds.alike is not None and facts.alike >= bounds.alike
    too_old = facts.age >= bounds.give_up and facts.failures >= retry.FEWEST_TRIES
    expected = Outcome.FAILED if too_many or too_old else Outcome.WAITING
    assert after_failure(facts, bounds, dice).outcome is expected


@given(FACTS, BOUNDS, DICE)
def test_doubt_ends_with_a_person_and_never_by_age(facts: Facts, bounds: Bounds, dice: float) -> None:
    """After unknown_sends sends without a valid answer a person decides, not before and no later (promise 2)."""
    expected = Outcome.HELD if facts.unknown >= bounds.unknown_sends else Outcome.WAITING
    assert after_silence(facts, bounds, dice).outcome is expected


@given(BOUNDS, DICE)
def test_everything_ends_at_last(bounds: Bounds, dice: float) -> None:
    """Repeated for ever, both rules come to an end (R16)."""
    age, failures = timedelta(0), 0
    while (follows := after_failure(Facts(failures, 0, age), bounds, dice)).wait is not None:
        age, failures = age + follows.wait, failures + 1
        assert failures < 2000
    unknown = 1
    while after_silence(Facts(0, unknown, age), bounds, dice).wait is not None:
        unknown += 1
    assert unknown == max(bounds.unknown_sends, 1)


@given(COUNT, DICE)
def test_a_silent_destination_is_asked_every_minute_or_so(failures: int, dice: float) -> None:
    """One probe, never more often than every second or two, never later than a minute and a bit (R16)."""
    assert timedelta(seconds=1.5) < until_probe(failures, dice) < timedelta(seconds=73)
