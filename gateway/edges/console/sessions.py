"""Who is logged in: sessions in memory, so that a restart ends them all.

The browser holds a random id, and we hold its hash: who could read our memory could not use what he read. An id is made
at the login and never before it, so nobody can know one that somebody else will have (session fixation).
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

IDLE: Final = 30 * 60.0
"""Seconds after which a session ends that nobody used."""

LONGEST: Final = 12 * 3600.0
"""Seconds after which it ends in any case: a shift."""

MOST: Final = 200
"""Sessions at the same time; the one that was unused longest gives way."""


@dataclass(slots=True)
class Session:
    """Somebody who is logged in.

    Attributes:
        user: His name.
        role: ``viewer`` or ``operator``.
        mark: Of his line in the users file when he logged in.
        token: That each form of his bears, and no other site knows.
        began: When, in seconds of a steady clock.
        used: When he last did something himself.
    """

    user: str
    role: str
    mark: str
    token: str
    began: float
    used: float


class Sessions:
    """All sessions. For one event loop."""

    def __init__(self) -> None:
        self._known: dict[bytes, Session] = {}

    def __len__(self) -> int:
        return len(self._known)

    def begin(self, user: str, role: str, mark: str, now: float) -> str:
        """Begin a session; return its id, for the browser alone."""
        self._tidy(now)
        name = secrets.token_urlsafe(32)
        self._known[_hash(name)] = Session(user, role, mark, secrets.token_urlsafe(32), now, now)
        return name

    def find(self, name: str, now: float, *, used: bool = True) -> Session | None:
        """Find the session of an id; None when there is none or its time is over.

        Args:
            name: What the browser sent.
            now: In seconds of the clock that ``begin`` was told.
            used: Whether a person did something; a page that refreshes itself is none.
        """
        key = _hash(name)
        session = self._known.get(key)
        if session is None:
            return None
        if now - session.used > IDLE or now - session.began > LONGEST:
            del self._known[key]
            return None
        if used:
            session.used = now
        return session

    def end(self, name: str) -> None:
        """End a session. One that is not there is over already."""
        self._known.pop(_hash(name), None)

    def _tidy(self, now: float) -> None:
        self._known = {
            key: one for key, one in self._known.items() if now - one.used <= IDLE and now - one.began <= LONGEST
        }
        while len(self._known) >= MOST:
            del self._known[min(self._known, key=lambda key: self._known[key].used)]


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
