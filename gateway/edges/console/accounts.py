"""Who may do what, and how often somebody may try to be somebody."""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Iterable
from typing import Final

OPERATOR: Final = "operator"
"""May look at everything, and decide about items and destinations."""

VIEWER: Final = "viewer"
"""May look at everything."""

SPAN: Final = 300.0
"""Seconds over which failures are counted."""

FAILURES: Final = {"address": 10, "user": 20}
"""Failed logins in that time, after which nobody is let in from an address or by a name for a while."""

MOST: Final = 10_000
"""Addresses and names that are counted; the oldest are forgotten first."""


def role_of(word: str | None) -> str | None:
    """The role that a word of the users file means; None for somebody who may not log in."""
    if word is None:
        return None
    return OPERATOR if word == OPERATOR else VIEWER


class Turnstile:
    """Counts failed logins by address and by name, known or not: the answer tells nobody who is known."""

    def __init__(self) -> None:
        self._failures: dict[tuple[str, str], deque[float]] = {}

    def wait(self, address: str, user: str, now: float) -> float:
        """Count a try as failed until ``forgive`` says otherwise; return 0, or how many seconds it must wait.

        Tries that run at the same time are all counted, so that many at once are not more than many in a row.
        """
        keys = _keys(address, user)
        waits = [self._over(key, now) for key in keys]
        if any(waits):
            return max(waits)
        for key in keys:
            self._failures.setdefault(key, deque()).append(now)
        self._tidy()
        return 0.0

    def forgive(self, address: str, user: str) -> None:
        """Take back the last try: it was right."""
        for key in _keys(address, user):
            if failures := self._failures.get(key):
                failures.pop()

    def _over(self, key: tuple[str, str], now: float) -> float:
        failures = self._failures.get(key)
        if failures is None:
            return 0.0
        while failures and now - failures[0] > SPAN:
            failures.popleft()
        if not failures:
            del self._failures[key]
        return failures[0] + SPAN - now if len(failures) >= FAILURES[key[0]] else 0.0

    def _tidy(self) -> None:
        while len(self._failures) > MOST:
            del self._failures[next(iter(self._failures))]


def _keys(address: str, user: str) -> Iterable[tuple[str, str]]:
    return (("address", _network(address)), ("user", user[:255]))


def _network(address: str) -> str:
    """Whom an address stands for: a house has a whole /64 of IPv6."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else address
