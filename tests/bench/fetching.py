"""How fast a mail comes out of an IMAP mailbox, side by side with a raw socket, in one run on one machine.

    python tests/bench/fetching.py [--megabytes 216] [--rounds 3] [--mails 1000]

One big mail in a Dovecot. Ours: log in, select, list, fetch, hash, sync, commit, in a process of its own, until the
mail is an item. Beside it, in turns: a blocking socket that logs in, selects, fetches, writes and syncs. Then many
small mails, for information. Only the ratios mean something.
Bars: at least 0.7 of the socket's rate; at most 40 MB over idle.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pybase64
from dovecot import PASSWORD, USER, Dovecot
from footprint import memory
from fragments import Gateway
from rows import configuration

from gateway.edges.imap import Deadlines, ImapMailbox, Proof
from gateway.stages.poll import Poll, Rules

RATE_BAR = 0.7
MEMORY_BAR = 40 << 20


def mail(number: int, size: int) -> bytes:
    """A mail of about so many bytes, in lines of base64."""
    head = f"From: dicom@clinic-a.example\r\nMessage-ID: <{number}@clinic-a.example>\r\n\r\n".encode()
    block = pybase64.encodebytes(os.urandom(57 << 10)).replace(b"\n", b"\r\n")
    return head + block * max(1, size // len(block))


def fill(dovecot: Dovecot, count: int, size: int) -> int:
    """Put mails where Dovecot keeps them; return the bytes of one."""
    new = dovecot.folder / "mail" / USER / "new"
    for number in range(count):
        content = mail(number, size)
        name = f"{int(time.time())}.{number}.bench"
        path = new.parent / "tmp" / name
        path.write_bytes(content)
        shutil.chown(path, "mail", "mail")
        path.rename(new / name)
    return len(content)


async def take(folder: Path, port: int, count: int) -> tuple[float, int]:
    """Be the gateway until so many mails are items; give the seconds and the bytes over idle."""
    gateway = Gateway(folder, configuration(folder))
    settings = SimpleNamespace(
        host="127.0.0.1", port=port, tls="none", user=USER, folder="INBOX", done="Processed", failed="Failed"
    )

    async def proof() -> Proof:
        return Proof(PASSWORD)

    box = ImapMailbox(settings, proof, Deadlines(), ssl.create_default_context())
    rules = Rules("imap.a", "pacs@gw.example", "leave", 60.0, 8 << 30, 1 << 20, "Failed", "DicomMail-bench")
    poll = Poll(rules, box, gateway.ledger, gateway.receive)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    idle = memory(os.getpid(), "VmHWM")
    begun = time.perf_counter()
    task = asyncio.create_task(poll.run())
    while poll.counters.taken < count:  # noqa: ASYNC110  a counter, which sets no event
        await asyncio.sleep(0.002)
    seconds = time.perf_counter() - begun
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    gateway.close()
    return seconds, memory(os.getpid(), "VmHWM") - idle


def ours(dovecot: Dovecot, count: int) -> tuple[float, int]:
    """Run that in a process of its own, on a mailbox in which nothing was taken yet."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--take", str(count), folder, str(dovecot.port)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1].split()
    refill(dovecot)
    return float(said[0]), int(said[1])


def refill(dovecot: Dovecot) -> None:
    """Put everything back that was moved, without our mark."""
    with dovecot.client() as client:
        for name in ("Processed", "INBOX"):
            _, [found] = client.select(name)
            if name == "Processed" and int(found or b"0"):
                client.copy("1:*", "INBOX")
                client.store("1:*", "+FLAGS", "\\Deleted")
                client.expunge()
            elif int(found or b"0"):
                client.store("1:*", "-FLAGS", "DicomMail-bench")


def raw(dovecot: Dovecot, out: Path) -> float:
    """Fetch the first mail with a blocking socket, write and sync it; give the seconds."""
    begun = time.perf_counter()
    with socket.create_connection(("127.0.0.1", dovecot.port)) as wire, out.open("wb", buffering=0) as file:
        reader = wire.makefile("rb", buffering=1 << 16)
        reader.readline()
        login = pybase64.b64encode(f"\0{USER}\0{PASSWORD}".encode())
        for tag, words in ((b"a", b"AUTHENTICATE PLAIN " + login), (b"b", b"SELECT INBOX")):
            wire.sendall(tag + b" " + words + b"\r\n")
            while not (line := reader.readline()).startswith(tag):
                assert line
            assert line.split()[1] == b"OK", line
        wire.sendall(b"c FETCH 1 (BODY.PEEK[])\r\n")
        left = int(re.search(rb"{(\d+)}", reader.readline())[1])  # type: ignore[index]
        while left:
            block = reader.read1(min(left, 1 << 18))
            left -= len(block)
            file.write(block)
        os.fsync(file.fileno())
    return time.perf_counter() - begun


def main() -> int:
    """Measure, print, and say with the exit code whether both bars were held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=216)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mails", type=int, default=1000)
    parser.add_argument("--take", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.take:
        count, folder, port = options.take
        print(*asyncio.run(take(Path(folder), int(port), int(count))))
        return 0
    with Dovecot() as dovecot, tempfile.TemporaryDirectory() as folder:
        dovecot.make("Processed", "Failed")
        size = fill(dovecot, 1, options.megabytes << 20)
        raw(dovecot, Path(folder) / "raw")  # Dovecot indexes what is new
        ratios, peaks = [], []
        for _ in range(options.rounds):
            theirs = raw(dovecot, Path(folder) / "raw")
            seconds, peak = ours(dovecot, 1)
            ratios.append(theirs / seconds)
            peaks.append(peak)
    ratio, peak = statistics.median(ratios), max(peaks)
    missed = ratio < RATE_BAR or peak > MEMORY_BAR
    print(f"{size >> 20} MB mail: {ratio:.2f} of a raw socket that syncs (at least {RATE_BAR}: {sorted(ratios)})")
    print(f"memory: {peak / (1 << 20):.1f} MB over idle (at most {MEMORY_BAR >> 20})")
    with Dovecot() as dovecot:
        dovecot.make("Processed", "Failed")
        fill(dovecot, options.mails, 30_000)
        seconds, peak = ours(dovecot, options.mails)
    print(f"{options.mails} mails of 77 kB: {options.mails / seconds:.0f}/s, {peak / (1 << 20):.1f} MB over idle")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
