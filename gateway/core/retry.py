"""When to try again, and when to stop: pure functions of facts and a throw of the dice.

The rules (R16, R17): back-off grows to a cap, with jitter, so that what failed together does not come back together.
Nothing waits without a next attempt. A definite answer is retried by back-off alone; a send without a valid answer is
spaced wider, counted, and after a bound a person decides, because a duplicate in a PACS harms less than an image
withheld, but neither may be silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from gateway.model import Outcome

FIRST_WAIT: Final = timedelta(seconds=30)
LONGEST_WAIT: Final = timedelta(hours=1)
"""Of one instance that a destination answered with a transient status."""

FIRST_PROBE: Final = timedelta(seconds=2)
LONGEST_PROBE: Final = timedelta(seconds=60)
"""Of the one probe that asks a silent destination whether it is back: a minute at most, so that it is soon in use."""

FIRST_DOUBT: Final = timedelta(seconds=20)
LONGEST_DOUBT: Final = timedelta(minutes=10)
"""Of one instance whose send had no valid answer."""

FEWEST_TRIES: Final = 8
"""Nothing is given up for its age alone: a clock that jumps days ahead must not end what was hardly tried (R29)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one instance at one destination, this send included.

    Attributes:
        failures: Definite failures so far.
        unknown: Sends without a valid answer so far.
        age: Since the message was taken in.
        alike: Definite failures of the last one's kind so far.
    """

    failures: int
    unknown: int
    age: timedelta
    alike: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How patient we are.

    Attributes:
        give_up: Age after which a transient failure is final.
        unknown_sends: Sends without a valid answer after which a person decides.
        alike: Definite failures of one kind after which it is final whatever the age; None for no such bound.
    """

    give_up: timedelta
    unknown_sends: int
    alike: int | None = None


@dataclass(frozen=True, slots=True)
class Next:
    """What follows.

    Attributes:
        outcome: ``waiting``, ``failed`` or ``held``.
        wait: Until the next attempt; None when there is none.
    """

    outcome: Outcome
    wait: timedelta | None


def spread(wait: timedelta, dice: float) -> timedelta:
    """Move a wait by at most a fifth either way; ``dice`` lies in [0, 1)."""
    return wait * (0.8 + 0.4 * dice)


def grow(first: timedelta, longest: timedelta, times: int) -> timedelta:
    """Double a wait for each time after the first, up to a cap."""
    # The exponent is bounded before the power: a count of thousands must not overflow.
    doublings: int = min(max(times - 1, 0), 24)
    return min(longest, first * (1 << doublings))


def after_failure(facts: Facts, bounds: Bounds, dice: float) -> Next:
    """Decide after a definite, transient answer."""
    worn_out = bounds.alike is not None and facts.alike >= bounds.alike
    too_old = facts.age >= bounds.give_up and facts.failures >= FEWEST_TRIES
    if worn_out or too_old:
        return Next(Outcome.FAILED, None)
    return Next(Outcome.WAITING, spread(grow(FIRST_WAIT, LONGEST_WAIT, facts.failures), dice))


def after_silence(facts: Facts, bounds: Bounds, dice: float) -> Next:
    """Decide after a send that had no valid answer: it may have arrived or not."""
    if facts.unknown >= bounds.unknown_sends:
        return Next(Outcome.HELD, None)
    return Next(Outcome.WAITING, spread(grow(FIRST_DOUBT, LONGEST_DOUBT, facts.unknown), dice))


def until_probe(failures: int, dice: float) -> timedelta:
    """How long a destination is left alone after so many failures in a row to reach it."""
    return spread(grow(FIRST_PROBE, LONGEST_PROBE, failures), dice)
