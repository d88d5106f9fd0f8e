"""Telling open pages that something changed: server-sent events, a number each, and never what it was.

A stream ends by itself after a while, as every connection of the door does, and the browser makes a new one. However
many pages are open, the ledger is asked once a second, and only while somebody looks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from gateway.errors import GatewayError

MOST: Final = 24
"""Streams at the same time; the other connections are for pages and probes."""

LIFETIME: Final = 25.0
"""Seconds of a stream: less than the door grants a connection."""

EVERY: Final = 1.0
"""Seconds between two looks at the ledger."""


class Live:
    """All streams.

    Args:
        newest: Asks for the number of the last thing that happened.
    """

    def __init__(self, newest: Callable[[], Awaitable[int]]) -> None:
        self.lifetime = LIFETIME
        self.every = EVERY
        self._newest = newest
        self._number = -1
        self._tick = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._beginning = asyncio.Lock()
        self._open = 0
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether there is room for no more streams."""
        return self._closed or self._open >= MOST

    async def stream(self, valid: Callable[[], bool]) -> AsyncIterator[str]:
        """Yield a line of the event stream whenever something changed.

        Args:
            valid: Whether he who listens is still logged in.
        """
        self._open += 1
        try:
            async with self._beginning:  # who comes while the first one asks shall not begin a second watch
                if self._watching is None:
                    self._number = await self._newest()
                    self._watching = asyncio.create_task(self._watch(), name="console-live")
            told, end = self._number, asyncio.get_running_loop().time() + self.lifetime
            yield f"retry: 1000\nid: {told}\nevent: hello\ndata: {told}\n\n"
            while not self._closed and asyncio.get_running_loop().time() < end:
                await self._tick.wait()
                if not valid():
                    yield "event: over\ndata: 0\n\n"
                    return
                if self._number != told:
                    told = self._number
                    yield f"id: {told}\nevent: change\ndata: {told}\n\n"
        finally:
            self._open -= 1
            if not self._open and self._watching is not None:
                self._watching.cancel()
                self._watching = None

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        self._wake()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.every)
            with contextlib.suppress(GatewayError, TimeoutError):  # busy, or too slow: it is asked again
                self._number = await self._newest()
            self._wake()

    def _wake(self) -> None:
        tick, self._tick = self._tick, asyncio.Event()
        tick.set()
