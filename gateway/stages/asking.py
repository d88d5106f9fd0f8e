"""Blocking network work of a lane: each piece in a thread of its own, given up at once when the gateway stops."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import structlog

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a destination takes nothing now.

    Attributes:
        text: In plain words.
        lasting: It will not pass by itself: a person is told at once.
    """

    text: str
    lasting: bool = False


class StoppingError(Exception):
    """The gateway stops; whoever was asked is not waited for."""


class Asking:
    """Questions to destinations that are under way."""

    def __init__(self) -> None:
        self.stopping = False
        self._asked: set[asyncio.Future[Any]] = set()

    def stop(self) -> None:
        """Wait for nobody who was only asked: nothing of ours is on that wire (R31)."""
        self.stopping = True
        for asked in self._asked:
            if not asked.done():
                asked.set_exception(StoppingError())

    async def ask(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that only asks a destination, until it answers or the gateway stops.

        Raises:
            StoppingError: The gateway stops.
            Exception: Whatever it raised.
        """
        asked = start(name, function, *args, **kwargs)
        self._asked.add(asked)
        try:
            return await asked
        finally:
            self._asked.discard(asked)

    async def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work of our own whose end nobody needs who stops; then it is given up.

        Raises:
            StoppingError: The gateway stops.
            Exception: Whatever it raised.
        """
        stopped: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.add(stopped)
        task = asyncio.create_task(work)
        try:
            either: set[asyncio.Future[Any]] = {task, stopped}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                stopped.result()
            return await task
        finally:
            self._asked.discard(stopped)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def start(name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Run something blocking in a thread of its own: a black hole uses up nobody else's, and delays no exit (R31)."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("T", result))

    def work() -> None:
        result, fault = None, None
        try:
            result = function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  it is raised where it is awaited
            fault = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, fault)

    # Python waits at its exit for the threads of an executor, for as long as a peer says nothing; not for these.
    threading.Thread(target=work, name=f"store-{name}", daemon=True).start()
    return done


def fault(error: Exception) -> Trouble:
    """Name a fault of our own that keeps a destination from being reached."""
    log.error("send_failed", exception=type(error).__name__)
    return Trouble(f"the gateway failed to reach it: {type(error).__name__}", lasting=True)
