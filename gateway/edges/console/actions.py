"""What an operator may decide about an item or a destination, and the words in which he is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.model import Outcome


@dataclass(frozen=True, slots=True)
class Action:
    """A decision.

    Attributes:
        verb: As on the command line.
        label: On its button.
        question: What happens, and what to think of before.
        arguments: Of the verb, beside the item.
        grave: It takes something away.
        erasing: He who confirms may also have the bytes wiped.
    """

    verb: str
    label: str
    question: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    grave: bool = False
    erasing: bool = False


_RESOLVE: Final = "It was sent, and no valid answer came. Look in the archive first."

ITEM: Final[Mapping[str, Action]] = {
    "retry": Action("retry", "Try again now", "It is tried again at once, over back-off and downtime."),
    "again": Action(
        "retry", "Send again", "All of it is sent again, although it was delivered or refused.", {"force": True}
    ),
    "hold": Action("hold", "Hold", "It stops here until somebody releases it. What is on the wire now is not stopped."),
    "release": Action(
        "release",
        "Release",
        "It goes on. What held it is checked again: releasing does not replace a signature that is missing.",
    ),
    "drop": Action(
        "drop",
        "Drop",
        "What is not delivered of it is refused for good. Its sender must send it again if it is wanted.",
        grave=True,
        erasing=True,
    ),
    "delivered": Action("resolve", "It arrived", f"{_RESOLVE} It counts as delivered.", {"verdict": "delivered"}),
    "resend": Action("resolve", "Send it again", f"{_RESOLVE} It is sent again.", {"verdict": "resend"}),
    "dropped": Action(
        "resolve", "Give it up", f"{_RESOLVE} It is neither sent nor counted.", {"verdict": "dropped"}, grave=True
    ),
}
"""By the last part of its address."""

LANE: Final[Mapping[str, Action]] = {
    "pause": Action("pause", "Pause", "Nothing is sent there until somebody resumes it. What comes in waits."),
    "resume": Action("resume", "Resume", "What waits for it is sent at once."),
}

_BY_OUTCOME: Final[Mapping[str, tuple[str, ...]]] = {
    Outcome.WAITING: ("retry", "hold", "drop"),
    Outcome.HELD: ("release", "drop"),
    Outcome.FAILED: ("retry", "drop"),
    Outcome.DELIVERED: ("again",),
}


def for_item(item: Mapping[str, Any]) -> dict[str, Action]:
    """What has a meaning for an item now, by its name in the address."""
    if item["duplicate_of"] or item["part_of"]:
        return {}
    names = _BY_OUTCOME.get(item["outcome"], ())
    if item["purged"]:
        names = tuple(name for name in names if name == "drop")
    if item["doubtful"]:
        names = (*names, "delivered", "resend", "dropped")
    return {name: ITEM[name] for name in names}
