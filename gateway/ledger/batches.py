"""Work for one thread, taken in batches: what is ready at the same moment shares one sync, one commit, one wake-up."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

LINGER: Final = 0.001
"""Seconds that a batch waits at most for as many as came last time. In a burst they are on their way, and a fuller
batch saves more than the wait costs; somebody who comes alone waits for nobody."""

_LOOK: Final = LINGER / 4


class Batches(Generic[Item]):
    """A queue from many callers to one thread. Iterating takes what is there, until it is closed.

    Args:
        most: Items of one batch: enough to share a sync, few enough that nobody waits long.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()

    def put(self, item: Item) -> None:
        """Hand in an item."""
        self._items.put(item)

    def close(self) -> None:
        """End the iteration, after what was handed in before."""
        self._items.put(None)

    def __iter__(self) -> Iterator[list[Item]]:
        usual = 1
        while (first := self._items.get()) is not None:
            patience = LINGER
            while patience > 0 and self._items.qsize() + 1 < usual:
                time.sleep(_LOOK)
                patience -= _LOOK
            batch = [first]
            last = False
            while not last and len(batch) < self._most and not self._items.empty():
                follower = self._items.get()
                if follower is None:
                    last = True
                else:
                    batch.append(follower)
            usual = max(len(batch), usual - 1)
            yield batch
            if last:
                return
