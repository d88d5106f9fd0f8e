"""Thousands of mails wait in a mailbox after an outage: each is taken once, with stops in between.

    make soak SOAK=backlog, or PYTHONPATH=.:tests/peers python tests/fault/backlog.py [--mails 18000] [--stops 5]

A real Dovecot; the poll is cancelled at random moments and begins anew on the same ledger. Bars: every mail is one item
and lies in the folder of what was taken, none was fetched again after it was recorded, and memory grows by 40 MB at
most (R1, R2, R26). Prints the rate. Ends with 1 when one is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import shutil
import ssl
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from dovecot import PASSWORD, USER, Dovecot
from fragments import Gateway
from mailboxes import items, polling, text_mail
from rows import configuration
from soak import conclude

from gateway import logs
from gateway.edges.imap import Deadlines, ImapMailbox, Proof
from gateway.stages.poll import BATCH, Poll, Rules

GROWTH = 40.0
"""MB."""


def fill(dovecot: Dovecot, count: int) -> None:
    """Put mails where Dovecot keeps them, as an hour of deliveries does."""
    new = dovecot.folder / "mail" / USER / "new"
    for number in range(count):
        path = new / f"1700000000.{number}.backlog"
        path.write_bytes(text_mail(number))
        shutil.chown(path, "mail", "mail")


def resident() -> float:
    """Memory of this process in MB."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text("ascii"))[0]) / 1000


async def backlog(count: int, stops: int, dovecot: Dovecot, folder: Path) -> list[str]:
    """Take them all; return what is amiss."""

    async def proof() -> Proof:
        return Proof(PASSWORD)

    gateway = Gateway(folder, configuration(folder))
    settings = SimpleNamespace(
        host="127.0.0.1", port=dovecot.port, tls="none", user=USER, folder="INBOX", done="Processed", failed="Failed"
    )
    rules = Rules("imap.a", "pacs@gw.example", "move", 60.0, 1 << 30, 1 << 20, "Failed", "DicomMail-aaaa")
    before, begun, taken, repeated, dice = resident(), time.monotonic(), 0, 0, random.Random(18)
    borders = sorted(dice.randrange(count) for _ in range(stops))
    for border in [*borders, count]:
        box = ImapMailbox(settings, proof, Deadlines(), ssl.create_default_context())
        poll = Poll(rules, box, gateway.ledger, gateway.receive)
        async with polling(poll):
            # What was taken in the moment of a stop is counted by nobody: the end is an empty mailbox, not a number.
            while border < count and taken + poll.counters.taken < border:  # noqa: ASYNC110  a counter sets no event
                await asyncio.sleep(0.01)
            while border == count and dovecot.count("INBOX"):  # noqa: ASYNC110  a peer's state
                await asyncio.sleep(0.2)
        taken += poll.counters.taken
        repeated += poll.counters.repeated
    rate, grown = count / (time.monotonic() - begun), resident() - before
    found = await items(gateway)
    gateway.close()
    print(f"{count} mails, {stops} stops: {rate:.0f}/s, {repeated} fetched twice, memory {grown:+.1f} MB")
    wrong = ["a mail is missing or twice"] * (sorted(found) != sorted(f"<{n}@clinic-a.example>" for n in range(count)))
    wrong += ["not all lie in the folder of what was taken"] * (dovecot.count("Processed") != count)
    # What was on its way when it was stopped was not recorded yet: at most one batch each time.
    wrong += ["mails were fetched again"] * (repeated > stops * BATCH)
    return wrong + ["memory grows"] * (grown > GROWTH)


def main() -> int:
    """Run it and say what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mails", type=int, default=18_000)
    parser.add_argument("--stops", type=int, default=5)
    options = parser.parse_args()
    logs.configure("error")
    with Dovecot() as dovecot, tempfile.TemporaryDirectory() as folder:
        dovecot.make("Processed", "Failed")
        fill(dovecot, options.mails)
        wrong = asyncio.run(backlog(options.mails, options.stops, dovecot, Path(folder)))
    return conclude(wrong)


if __name__ == "__main__":
    sys.exit(main())
