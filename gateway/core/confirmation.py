"""What follows from a proof of delivery, or from its absence: pure functions of facts.

A success status says that a PACS has taken an instance, not that it will be found there (R18). So where the
configuration asks for more, the instance waits until a C-FIND shows it, or a commitment report names it. What a PACS
said to have stored and does not have is sent again, a few times; then a person decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from gateway.core.query import Presence

FIRST_LOOK: Final = timedelta(seconds=5)
LONGEST_LOOK: Final = timedelta(minutes=10)
"""Between two questions for the same instance; a PACS may need minutes until it shows what it has."""

MOST_ABSENCES: Final = 3
"""Times that an instance may be said to be stored and be absent, until a person decides."""

NO_SUCH_INSTANCE: Final = 0x0112
LATER: Final = frozenset({0x0110, 0x0213, 0x0131})
"""Failure Reasons after which commitment is asked for again, with a UID of its own (SC-5)."""


class Step(StrEnum):
    """What to do with an instance that was stored and is to be proved.

    Attributes:
        DELIVERED: It is there.
        LOOK: Ask again later.
        SEND: It is not there: send it again.
        HOLD: A person decides.
    """

    DELIVERED = "delivered"
    LOOK = "look"
    SEND = "send"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Stored:
    """What is known of an instance that waits for its proof.

    Attributes:
        age: Since the success status.
        within: How long the proof may take.
        absences: How often it was found absent when the time was over.
    """

    age: timedelta
    within: timedelta
    absences: int

    @property
    def late(self) -> bool:
        """Whether the time for the proof is over."""
        return self.age >= self.within


def until_look(stored: Stored) -> timedelta:
    """How long until the next question: often at first, ever less often later, and once when the time is over."""
    wait = min(max(FIRST_LOOK, stored.age / 2), LONGEST_LOOK)
    return wait if stored.late else min(wait, stored.within - stored.age)


def after_find(stored: Stored, presence: Presence) -> Step:
    """Decide after a C-FIND: only an instance that the PACS showed is delivered."""
    if presence is Presence.PRESENT:
        return Step.DELIVERED
    if not stored.late:
        return Step.LOOK
    return _absent(stored) if presence is Presence.ABSENT else Step.HOLD


def after_report(stored: Stored, reason: int | None) -> Step:
    """Decide after a commitment report that names a Failure Reason for an instance; None: it does not name it."""
    if reason == NO_SUCH_INSTANCE:
        return _absent(stored)
    return Step.LOOK if reason is None or reason in LATER else Step.HOLD


def _absent(stored: Stored) -> Step:
    return Step.SEND if stored.absences + 1 < MOST_ABSENCES else Step.HOLD
