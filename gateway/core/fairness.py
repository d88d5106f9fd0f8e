"""Whose turn it is on the way to a destination: urgent first, then partners and their studies in turn.

A study goes out in its own order, series by series, and over one association at a time. A study of thousands of images
holds up nobody: each turn is a few instances long, then another partner's, or another study of the same partner, has
its turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

TURN: Final = 8
"""Instances of one study that are taken before others have their turn."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands.

    Attributes:
        urgent: It goes before everything that is not.
        partner: Who sent it.
        study: What must stay in order.
        series: Which part of the study: parts go one after another, in the order in which they first came.
        arrival: Its order within the series; comparable with the others'.
    """

    urgent: bool
    partner: str
    study: str
    series: str
    arrival: Any


@dataclass(slots=True)
class _Study(Generic[T]):
    waiting: deque[tuple[Any, T]] = field(default_factory=deque)
    series: dict[str, int] = field(default_factory=dict)
    holder: object = None
    out: int = 0


@dataclass(slots=True)
class _Class(Generic[T]):
    """What is equally urgent: studies by partner; both in the order of their turns."""

    partners: dict[str, dict[str, _Study[T]]] = field(default_factory=dict)


class Turns(Generic[T]):
    """What waits for one destination, and the order in which it goes.

    Args:
        place: Tells where something stands.
    """

    def __init__(self, place: Callable[[T], Place]) -> None:
        self._place = place
        self._classes: dict[bool, _Class[T]] = {True: _Class(), False: _Class()}
        self._size = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._size

    def __iter__(self) -> Iterator[T]:
        """Everything that waits, in no order that means anything."""
        for one in self._classes.values():
            for studies in one.partners.values():
                for study in studies.values():
                    yield from (item for _, item in study.waiting)

    def add(self, items: Iterable[T]) -> None:
        """Let things wait; what was there before keeps its turn."""
        touched: dict[int, _Study[T]] = {}
        for item in items:
            place = self._place(item)
            study = self._study(place)
            rank = study.series.setdefault(place.series, len(study.series))
            study.waiting.append(((rank, place.arrival), item))
            touched[id(study)] = study
            self._size += 1
        for study in touched.values():
            study.waiting = deque(sorted(study.waiting, key=lambda one: one[0]))

    def take(self, holder: object, most: int, goes: Callable[[list[T], T], bool] = lambda _, __: True) -> list[T]:
        """Take what goes next, by turns; a study that another holder has out is left alone.

        Args:
            holder: Who takes it; it has a study until it gives back all that it took of it.
            most: How many at most.
            goes: Whether another one may be added to those taken so far; the first that may not ends the taking.
        """
        taken: list[T] = []
        for urgent in (True, False):
            while len(taken) < most and (study := self._next(self._classes[urgent], holder)) is not None:
                for _ in range(min(TURN, most - len(taken), len(study.waiting))):
                    if not goes(taken, study.waiting[0][1]):
                        return taken
                    taken.append(study.waiting.popleft()[1])
                    self._size -= 1
                    study.holder, study.out = holder, study.out + 1
        return taken

    def give_back(self, items: Iterable[T]) -> None:
        """Say that things which were taken are done with."""
        for item in items:
            study = self._study(self._place(item))
            study.out -= 1
            if study.out == 0:
                study.holder = None
                self._forget(self._place(item), study)

    def _forget(self, place: Place, study: _Study[T]) -> None:
        """Keep nothing of a study of which nothing waits."""
        if not study.waiting:
            partners = self._classes[place.urgent].partners
            del partners[place.partner][place.study]
            if not partners[place.partner]:
                del partners[place.partner]

    def _study(self, place: Place) -> _Study[T]:
        studies = self._classes[place.urgent].partners.setdefault(place.partner, {})
        return studies.setdefault(place.study, _Study())

    def _next(self, one: _Class[T], holder: object) -> _Study[T] | None:
        """Find whose turn it is, and let it stand last."""
        for partner, studies in one.partners.items():
            for name, study in studies.items():
                if study.waiting and (study.holder is None or study.holder is holder):
                    studies[name] = studies.pop(name)
                    one.partners[partner] = one.partners.pop(partner)
                    return study
        return None
