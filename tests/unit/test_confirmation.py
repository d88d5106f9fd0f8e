"""What follows from a proof of delivery, or from none."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gateway.core import confirmation
from gateway.core.confirmation import Step, Stored
from gateway.core.query import Presence

HOUR = timedelta(hours=1)
EARLY, LATE, LAST = Stored(HOUR, 6 * HOUR, 0), Stored(6 * HOUR, 6 * HOUR, 1), Stored(7 * HOUR, 6 * HOUR, 2)


@pytest.mark.parametrize(
    ("stored", "presence", "step"),
    [
        (EARLY, Presence.PRESENT, Step.DELIVERED),
        (LAST, Presence.PRESENT, Step.DELIVERED),
        (EARLY, Presence.ABSENT, Step.LOOK),
        (EARLY, Presence.UNKNOWN, Step.LOOK),
        (LATE, Presence.ABSENT, Step.SEND),
        (LAST, Presence.ABSENT, Step.HOLD),
        (LATE, Presence.UNKNOWN, Step.HOLD),
    ],
)
def test_only_what_is_shown_is_delivered(stored: Stored, presence: Presence, step: Step) -> None:
    """Absent at first is patience, absent in the end is a resend, bounded (R18)."""
    assert confirmation.after_find(stored, presence) is step


@pytest.mark.parametrize(
    ("stored", "reason", "step"),
    [
        (EARLY, 0x0112, Step.SEND),
        (LAST, 0x0112, Step.HOLD),
        (EARLY, None, Step.LOOK),
        (EARLY, 0x0110, Step.LOOK),
        (EARLY, 0x0213, Step.LOOK),
        (EARLY, 0x0131, Step.LOOK),
        (EARLY, 0x0119, Step.HOLD),
        (EARLY, 0x0122, Step.HOLD),
        (EARLY, 0x9999, Step.HOLD),
    ],
)
def test_each_failure_reason_has_its_step(stored: Stored, reason: int | None, step: Step) -> None:
    """SC-5: not found is sent again, trouble is asked again, the rest is a person's."""
    assert confirmation.after_report(stored, reason) is step


@pytest.mark.parametrize(
    ("age", "wait"),
    [(0, 5), (60, 30), (3600, 600), (6 * 3600 - 7, 7), (6 * 3600, 600)],
)
def test_questions_become_rarer_and_one_is_at_the_end(age: int, wait: int) -> None:
    """A PACS is asked often at first, never less than every ten minutes (R17)."""
    stored = Stored(timedelta(seconds=age), 6 * HOUR, 0)
    assert confirmation.until_look(stored) == timedelta(seconds=wait)
