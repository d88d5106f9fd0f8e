"""What tests of mailboxes share: small mails, a poll that runs for a while, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from fragments import Gateway
from sqlalchemy import select

from gateway.ledger.tables import message
from gateway.stages.poll import Poll


def text_mail(number: int, sender: str = "dicom@clinic-a.example") -> bytes:
    """A mail without DICOM."""
    fields = f"From: {sender}\r\nMessage-ID: <{number}@clinic-a.example>\r\n"
    return (fields + f"Subject: x\r\n\r\nmail {number}\r\n").encode()


@contextlib.asynccontextmanager
async def polling(one: Poll) -> AsyncIterator[None]:
    """Poll meanwhile."""
    task = asyncio.create_task(one.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object]) -> None:
    """Look again and again until something is so."""
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110  a peer's state, which sets no event
            await asyncio.sleep(0.05)


async def items(gateway: Gateway) -> list[str]:
    """The Message-IDs of all items."""
    return await gateway.ledger.read(lambda c: list(c.scalars(select(message.c.message_id))))
