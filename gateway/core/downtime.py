"""Planned downtimes: whether a destination is known to be away, and until when, over changes of the clock."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, tzinfo
from typing import Final, Protocol

LONGEST: Final = 32
"""Windows in a row that are followed: more of them than a week has make a destination that is always away."""


class Weekly(Protocol):
    """A time of the week."""

    def until(self, moment: datetime) -> datetime | None:
        """When the window that holds a local time ends, in local time; None outside of it."""


def until(windows: Iterable[Weekly], now: datetime, zone: tzinfo | None = None) -> datetime | None:
    """Tell when the downtime that holds now ends; None outside of any.

    Windows that touch or overlap are one downtime. An hour that a change of the clock repeats belongs to the window
    both times; one that it leaves out is no time at all.

    Args:
        windows: When the destination is away.
        now: With a zone.
        zone: Whose clock the windows mean; None: the machine's.
    """
    windows = tuple(windows)
    end: datetime | None = None
    moment = now
    for _ in range(LONGEST):
        local = moment.astimezone(zone).replace(tzinfo=None)
        ends = [found for window in windows if (found := window.until(local)) is not None]
        if not ends:
            break
        end = moment = min(_after(one, moment, zone) for one in ends)
    return end


def _after(local: datetime, moment: datetime, zone: tzinfo | None) -> datetime:
    """Turn a local time into the first moment after another that it names; it may name two, or none."""
    named = sorted(local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return next((one for one in named if one > moment), named[-1])
