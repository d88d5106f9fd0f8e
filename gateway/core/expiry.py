"""The calendar of certificates: who is told when, before one runs out and after it has.

A warning is given at each of a few days before the end, then at the end. Each replaces the one before it, and the last
goes when the certificate is replaced (R33). A clock that is set back a little does not repeat what was said (R29).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

WARNINGS: Final = (60, 30, 14, 3)
"""Days before the end of a certificate at which people are told."""

BACK: Final = timedelta(days=2)
"""How far a clock may be set back before a warning is taken back that was given already."""

_OVER: Final = 0
_DO: Final[Mapping[int, str]] = {
    60: "have it renewed",
    30: "renew it this month",
    14: "renew it now",
    3: "renew it today",
    _OVER: "renew it at once",
}


@dataclass(frozen=True, slots=True)
class Lasting:
    """A certificate that is in use.

    Attributes:
        subject: What it is for, by a name of the configuration, as ``partner.clinic-a``.
        ends: Its notAfter.
    """

    subject: str
    ends: datetime


@dataclass(frozen=True, slots=True)
class Advance:
    """What people are told of one certificate.

    Attributes:
        text: What is the case.
        do: What to do about it.
        over: It has run out.
    """

    text: str
    do: str
    over: bool = False


def stage(ends: datetime, now: datetime, standing: int | None = None) -> int | None:
    """Name the warning that is due by its days: 0 for the end itself, None before the first.

    Args:
        ends: When the certificate runs out.
        now: The time.
        standing: The warning that was given of this very certificate.
    """
    left = ends - now
    found = next((days for days in sorted((*WARNINGS, _OVER)) if left <= timedelta(days=days)), None)
    if standing is not None and left <= timedelta(days=standing) + BACK:
        return standing if found is None else min(found, standing)
    return found


def warning(one: Lasting, days: int) -> Advance:
    """Put the warning of a stage into words; the same words for the same certificate, for as long as it lasts."""
    date = f"{one.ends:%Y-%m-%d}"
    if days == _OVER:
        return Advance(f"the certificate of {one.subject} ran out on {date}", _DO[days], over=True)
    text = f"the certificate of {one.subject} runs out on {date}, in {days} days or less"
    return Advance(text, _DO[days])


def due(certificates: Iterable[Lasting], said: Mapping[str, str], now: datetime) -> dict[str, Advance]:
    """Say which warnings stand now, by their subjects.

    Args:
        certificates: Those in use; of several for one subject the one that ends first counts.
        said: The texts of the warnings that stand, by their subjects.
        now: The time.
    """
    first: dict[str, Lasting] = {}
    for one in certificates:
        if one.subject not in first or one.ends < first[one.subject].ends:
            first[one.subject] = one
    found = {}
    for one in first.values():
        text = said.get(one.subject)
        standing = next((days for days in _DO if warning(one, days).text == text), None)
        days = stage(one.ends, now, standing)
        if days is not None:
            found[one.subject] = warning(one, days)
    return found
