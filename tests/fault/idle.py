"""Days of IDLE at a real Dovecot, in shortened time: nothing may grow but the mail that came.

    make soak SOAK=idle, or PYTHONPATH=.:tests/peers python tests/fault/idle.py [--days 3]

A day has 1 440 looks, one a minute, each with an IDLE before it that ends by DONE; here a minute takes some
milliseconds. Now and then a mail comes, and now and then the server is gone for a moment. Bars: the same number of open
files, of tasks and of timers in the evening as in the morning, and at most 3 MB. Ends with 1 when one is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import re
import ssl
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from dovecot import PASSWORD, USER, Dovecot
from fragments import Gateway
from mailboxes import polling, text_mail, until
from rows import configuration
from soak import conclude

from gateway import logs
from gateway.edges.imap import Deadlines, ImapMailbox, Proof
from gateway.stages.poll import Poll, Rules

LOOKS = 1440
"""Of one day."""

GROWTH = 3.0
"""MB that the days may cost."""


class Weight(NamedTuple):
    """What the process holds."""

    files: int
    tasks: int
    timers: int
    megabytes: float


def weigh() -> Weight:
    """Weigh it, with what is only waiting to be collected taken away."""
    gc.collect()
    resident = int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text("ascii"))[0]) / 1000
    loop = asyncio.get_running_loop()
    timers = sum(not one.cancelled() for one in getattr(loop, "_scheduled"))  # noqa: B009 - no other way to count them
    return Weight(len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()), timers, resident)  # noqa: PTH208


class Looking(ImapMailbox):
    """Counts the looks of all its sessions."""

    looks = 0

    async def open(self):  # type: ignore[no-untyped-def]  # noqa: ANN201 - as the session's own
        """Log in, and watch the session."""
        session = await super().open()
        look = session.look

        async def counted():  # type: ignore[no-untyped-def]  # noqa: ANN202
            Looking.looks += 1
            return await look()

        session.look = counted
        return session


async def idle(days: float, dovecot: Dovecot, folder: Path) -> list[str]:
    """Let the days pass; return what is amiss."""

    async def proof() -> Proof:
        return Proof(PASSWORD)

    gateway = Gateway(folder, configuration(folder))
    settings = SimpleNamespace(
        host="127.0.0.1", port=dovecot.port, tls="none", user=USER, folder="INBOX", done="Processed", failed="Failed"
    )
    box = Looking(settings, proof, Deadlines(), ssl.create_default_context())
    rules = Rules("imap.a", "pacs@gw.example", "move", 0.003, 1 << 30, 1 << 20, "Failed", "DicomMail-aaaa")
    poll = Poll(rules, box, gateway.ledger, gateway.receive)
    Looking.looks, mails = 0, 0
    async with polling(poll):
        for mails in (1, 2):
            dovecot.append(text_mail(mails))
        await until(lambda: Looking.looks > LOOKS / 10 and poll.counters.taken == mails)
        morning, begun = weigh(), Looking.looks
        while Looking.looks - begun < days * LOOKS:
            mails += 1
            dovecot.append(text_mail(mails))
            here = Looking.looks
            await until(lambda here=here: Looking.looks > here + LOOKS / 8)  # type: ignore[misc]
        await until(lambda: poll.counters.taken == mails)
        evening = weigh()
    gateway.close()
    print(f"{days:g} days, {Looking.looks} looks, {mails} mails: {morning} -> {evening}")
    wrong = [f"more {name}" for name in ("files", "tasks", "timers") if getattr(evening, name) > getattr(morning, name)]
    return wrong + ["more memory"] * (evening.megabytes - morning.megabytes > GROWTH)


def main() -> int:
    """Run it and say what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=float, default=3)
    options = parser.parse_args()
    logs.configure("error")
    with Dovecot() as dovecot, tempfile.TemporaryDirectory() as folder:
        dovecot.make("Processed", "Failed")
        wrong = asyncio.run(idle(options.days, dovecot, Path(folder)))
    return conclude(wrong)


if __name__ == "__main__":
    sys.exit(main())
