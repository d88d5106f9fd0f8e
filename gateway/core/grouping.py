"""When a collection is complete, and what may join it: pure functions of facts and a moment.

A collection is what comes of one study by one route for one partner (NET-10). It is complete after a silence, at an
age or at a size; what comes later begins the next generation, and a mail is never changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Rules:
    """How long a route collects.

    Attributes:
        quiet: The collection is complete after this silence; nothing: each instance goes by itself.
        max_age: It gets no older.
        max_size: It gets no bigger, in bytes, unless its only instance is.
    """

    quiet: timedelta
    max_age: timedelta
    max_size: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a collection.

    Attributes:
        opened_at: When its first instance came.
        last_at: When its last one came.
        size: Bytes of its files.
    """

    opened_at: datetime
    last_at: datetime
    size: int


def fits(facts: Facts, rules: Rules, size: int) -> bool:
    """Tell whether one more file of this size may join: else it begins the next generation."""
    return facts.size + size <= rules.max_size


def due(facts: Facts, rules: Rules, now: datetime) -> datetime:
    """Tell when a collection is complete if nothing more comes; not after ``now`` when it is complete.

    What was written by a clock that ran ahead is complete at once, and so waits for nothing (R29): late instances
    make a next generation, so that too early costs a mail more, and too late a patient's time.
    """
    if facts.size >= rules.max_size or facts.last_at > now or facts.opened_at > now:
        return now
    return min(facts.last_at + rules.quiet, facts.opened_at + rules.max_age)


def takes(called: str, calling: str, route_called: str | None, route_calling: str) -> bool:
    """Tell whether a route takes what one AE sends to another. Only ``*`` has a meaning in a pattern (NET-6)."""
    if called != route_called:
        return False
    pattern = ".*".join(re.escape(part) for part in route_calling.split("*"))
    return re.fullmatch(pattern, calling) is not None
