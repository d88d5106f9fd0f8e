"""Files that a person sends to a partner: handed to the running daemon, or taken in here when none runs.

Either way they go the way of what modalities send: custody, a collection for each study, mails, the relay.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from gateway import control
from gateway.config import Configuration
from gateway.errors import UsageError
from gateway.ledger import pseudonyms
from gateway.ledger.ledger import Ledger, Lock, connect
from gateway.ledger.spool import Spool
from gateway.stages.compose import Compose

AT_ONCE: Final = 10
"""Files in one question to the daemon, so that it answers in time."""


def send(configuration: Configuration, partner: str, sources: Sequence[Path]) -> dict[str, Any]:
    """Have files sent; return for each whether it was taken, and why not.

    Args:
        configuration: Names the data folder and the partners.
        partner: Whom they are for.
        sources: Files, and folders with everything below them.

    Raises:
        UsageError: A source or the partner does not exist.
        GatewayError: The gateway took nothing more: no room, or no answer.
    """
    if partner not in configuration.partner:
        known = ", ".join(configuration.partner) or "none"
        raise UsageError(f"there is no partner {partner}", hint=f"configured: {known}")
    paths = list(_files(sources))
    running, reasons = False, []
    for at in range(0, len(paths), AT_ONCE):
        some = [str(path) for path in paths[at : at + AT_ONCE]]
        answer = control.ask_daemon(configuration, "send", {"partner": partner, "files": some})
        if answer is None:
            reasons += asyncio.run(_take_alone(configuration, partner, paths[at:]))
            break
        running = True
        reasons += answer["reasons"]
    files = [
        {"file": str(path), "taken": reason is None, "reason": reason}
        for path, reason in zip(paths, reasons, strict=True)
    ]
    taken = sum(1 for reason in reasons if reason is None)
    return {"partner": partner, "taken": taken, "running": running, "files": files}


def _files(sources: Sequence[Path]) -> Iterator[Path]:
    for source in sources:
        if not source.exists():
            raise UsageError(f"there is no file or folder {source}")
        found = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
        yield from (path.resolve() for path in found)


async def _take_alone(configuration: Configuration, partner: str, paths: Sequence[Path]) -> list[str | None]:
    lock = Lock(configuration.gateway.data)
    try:
        ledger = Ledger(connect(control.ledger_url(configuration)))
        try:
            spool = Spool(control.spool_root(configuration))
            try:
                key = pseudonyms.make_key(configuration.gateway.data)
                compose = Compose(configuration, ledger, spool, search_key=key)
                return await compose.take_files(partner, paths, control.person(os.getuid()))
            finally:
                spool.close()
        finally:
            ledger.close()
    finally:
        lock.release()
