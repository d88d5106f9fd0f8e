"""How fast mail is accepted, side by side with Postfix in one run, and what a large message costs.

Run as a script, as root, with Postfix installed (nothing of the system's own Postfix is touched):

    make bench ARGS=acceptance                                    # the ratios: large messages, small messages
    PYTHONPATH=.:tests/peers python tests/bench/acceptance.py --cost   # memory and loop stall during a 1 GiB message

The ratios are taken of the program as it is shipped: spool synced and row committed before 250. Postfix has its queue
file synced before 250 and throws the mail away afterwards. Each waits until its own queue is worked off. For --cost
the door runs alone, with the real spool and a row in SQLite. Only ratios mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import queue
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from daemon import Daemon

from gateway import model
from gateway.edges.smtp import Limits, SmtpDoor
from gateway.ledger.drafts import Draft
from gateway.ledger.spool import Spool

CLINIC = """
[ae.pacs]
title = "NOBODY"
host = "127.0.0.1"
port = 9
[partner.clinic]
address = "*@clinic.test"
accept = "any"
[[route]]
name = "in"
from = "clinic"
store = ["pacs"]
"""
"""A partner whose mail is taken; nothing of it is DICOM, so nothing is sent."""

LARGE = 100_000_000
SMALL = 20_000
SMALL_COUNT = 2000
SESSIONS = 10
POSTFIX = Path("/usr/lib/postfix/sbin")


class Custody:
    """The shortest gateway that keeps its word: the spool, and one row, committed in groups by one writer."""

    def __init__(self, folder: Path) -> None:
        self.spool = Spool(folder / "spool")
        self._path = folder / "ledger.sqlite"
        self._rows: queue.SimpleQueue[tuple[tuple[object, ...], asyncio.Future[None], asyncio.AbstractEventLoop]]
        self._rows = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()

    def admits(self, _: str) -> bool:
        return True

    def demand_room(self, _: int) -> None:
        self.spool.demand(1 << 30)

    def draft(self) -> Draft:
        return self.spool.draft()

    async def accept(self, envelope: model.Envelope, draft: Draft, digest: model.Digest) -> str:
        key = await self.spool.commit(draft, ".eml")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        row = (key, envelope.sender, " ".join(envelope.recipients), digest.size, digest.sha256, digest.body_sha256)
        self._rows.put((row, done, loop))
        await done
        return f"in-{key[11:19]}"

    def _write(self) -> None:
        ledger = sqlite3.connect(self._path, isolation_level=None)
        ledger.execute("PRAGMA journal_mode=WAL")
        ledger.execute("PRAGMA synchronous=FULL")
        ledger.execute("CREATE TABLE message (key PRIMARY KEY, sender, recipients, size, sha256, body)")
        while True:
            batch = [self._rows.get()]
            while not self._rows.empty():
                batch.append(self._rows.get())
            ledger.execute("BEGIN IMMEDIATE")
            ledger.executemany("INSERT INTO message VALUES (?, ?, ?, ?, ?, ?)", [row for row, _, _ in batch])
            ledger.execute("COMMIT")
            for loop in {loop for _, _, loop in batch}:
                loop.call_soon_threadsafe(_settle, [done for _, done, _ in batch])


def _settle(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.cancelled():
            future.set_result(None)


async def serve(folder: Path, *, ticker: bool) -> None:
    """Be the door until standard input closes; then say the longest stall of the loop, in seconds."""
    settings = SimpleNamespace(
        listen=("127.0.0.1", 0), implicit_tls_listen=None, require_tls=False, allow=None, connections=200
    )
    limits = Limits(message=2 << 30, header=1 << 20, commands=1_000_000)
    door = SmtpDoor(settings, hostname="gw.example", limits=limits, incoming=Custody(folder))
    await door.open()
    print(json.dumps({"port": door.addresses[0][1]}), flush=True)
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    worst = 0.0
    while ticker and not ended.done():
        before = time.perf_counter()
        await asyncio.sleep(0.01)
        worst = max(worst, time.perf_counter() - before - 0.01)
    await ended
    print(json.dumps({"stall": worst}), flush=True)
    await door.close(1)


@contextmanager
def our_door(folder: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    command = [sys.executable, __file__, "--serve", str(folder), *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["port"], process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def postfix(folder: Path) -> Iterator[int]:
    """A Postfix of our own on loopback that queues, and then discards."""
    port = free_port()
    for name in ("etc", "queue", "data"):
        (folder / name).mkdir(parents=True)
    shutil.chown(folder / "data", "postfix")
    (folder / "etc/main.cf").write_text(f"""compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
command_directory = /usr/sbin
daemon_directory = {POSTFIX}
mail_owner = postfix
setgid_group = postdrop
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mail.hospital.test
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
local_recipient_maps =
default_transport = discard:
local_transport = discard:
relay_transport = discard:
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_peername_lookup = no
disable_dns_lookups = yes
message_size_limit = 0
mailbox_size_limit = 0
smtpd_error_sleep_time = 0
smtpd_client_connection_count_limit = 0
maillog_file = {folder}/maillog
maillog_file_prefixes = {folder}
""")
    (folder / "etc/master.cf").write_text(f"""127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
""")
    control = ["postfix", "-c", str(folder / "etc")]
    subprocess.run([*control, "start"], check=True, capture_output=True)
    try:
        wait_for(port)
        yield port
    finally:
        subprocess.run([*control, "stop"], check=False, capture_output=True)


def settle(postfix_queue: Path) -> None:
    """Wait until the last run's work is done and on disk, so that nobody pays for the other."""
    deadline = time.monotonic() + 30
    while any(any((postfix_queue / name).iterdir()) for name in ("incoming", "active")):
        if time.monotonic() > deadline:
            raise SystemExit("Postfix does not empty its queue")
        time.sleep(0.05)
    os.sync()
    time.sleep(0.2)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_for(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("Postfix does not listen")


def write_message(path: Path, size: int) -> None:
    """One message with one base64 body, ended and stuffed as on the wire."""
    lines = base64.encodebytes(os.urandom(57 * 10_000)).replace(b"\n", b"\r\n")
    with path.open("wb") as file:
        file.write(b"From: a@clinic.test\r\nTo: b@gw.test\r\nSubject: x\r\nMessage-ID: <1@clinic.test>\r\n\r\n")
        while file.tell() < size:
            file.write(lines[: 78 * (max(1, (size - file.tell()) // 78))])
        file.write(b".\r\n")


def send(port: int, message: Path) -> float:
    """One transaction, the data by sendfile; returns the seconds from connect to the 250 of the data."""
    begin = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as peer, message.open("rb") as file:
        replies = peer.makefile("rb")
        expect(replies, b"220")
        for command, code in ((b"EHLO x", b"250"), (b"MAIL FROM:<a@clinic.test>", b"250")):
            peer.sendall(command + b"\r\n")
            expect(replies, code)
        for command, code in ((b"RCPT TO:<b@gw.test>", b"250"), (b"DATA", b"354")):
            peer.sendall(command + b"\r\n")
            expect(replies, code)
        peer.sendfile(file)
        expect(replies, b"250")
        seconds = time.perf_counter() - begin
        peer.sendall(b"QUIT\r\n")
        expect(replies, b"221")
    return seconds


def expect(replies: object, code: bytes) -> None:
    while (line := replies.readline())[3:4] == b"-":  # type: ignore[attr-defined]
        pass
    if not line.startswith(code):
        raise SystemExit(f"expected {code!r}, got {line!r}")


def send_many(port: int, *options: str) -> float:
    begin = time.perf_counter()
    command = ["smtp-source", "-s", str(SESSIONS), "-m", str(SMALL_COUNT), "-l", str(SMALL), *options]
    command += ["-f", "a@clinic.test", "-t", "b@gw.test", f"127.0.0.1:{port}"]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


def compare(name: str, bar: float, ours: list[float], theirs: list[float], unit: float, word: str) -> bool:
    """Print the medians and the ratio; the ratio is the median of the pairs' ratios."""
    pairs = sorted(their / our for our, their in zip(ours, theirs, strict=True))
    ratio = statistics.median(pairs)
    print(
        f"{name}: ours {unit / statistics.median(ours):.0f} {word}, "
        f"Postfix {unit / statistics.median(theirs):.0f} {word}, "
        f"ratio {ratio:.2f} (pairs {pairs[0]:.2f}..{pairs[-1]:.2f}, bar {bar})"
    )
    return ratio >= bar


def ratios(pairs: int) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        message = folder / "message"
        write_message(message, LARGE)
        good = True
        with postfix(folder / "postfix") as theirs, Daemon({}, CLINIC) as daemon:
            ours = daemon.port

            def measured(port: int, how: Callable[..., float], *what: object) -> float:
                settle(folder / "postfix/queue")
                while daemon.ask("reconcile")["waiting"]:
                    time.sleep(0.5)
                return how(port, *what)

            runs = [(measured(ours, send, message), measured(theirs, send, message)) for _ in range(pairs + 1)][1:]
            good &= compare("100 MB", 2.5, *map(list, zip(*runs, strict=True)), LARGE / 1e6, "MB/s")
            for options in ((), ("-d",)):
                runs = [
                    (measured(ours, send_many, *options), measured(theirs, send_many, *options)) for _ in range(pairs)
                ]
                kept = "one connection each" if not options else "kept connections"
                good &= compare(f"20 kB, {kept}", 1.0, *map(list, zip(*runs, strict=True)), SMALL_COUNT, "msg/s")
        return good


def cost(size: int) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        message = folder / "message"
        write_message(message, size)
        with our_door(folder / "door", "--ticker") as (port, process):
            small = folder / "small"
            write_message(small, SMALL)
            send(port, small)
            before = memory(process.pid)
            seconds = send(port, message)
            after = memory(process.pid)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            stall = json.loads(process.stdout.readline())["stall"]
    print(
        f"{size >> 20} MiB: {size / 1e6 / seconds:.0f} MB/s, peak memory +{(after - before) / 1e6:.1f} MB, "
        f"longest stall {stall * 1e3:.1f} ms"
    )
    return after - before < 10e6


def memory(pid: int) -> int:
    """Peak resident memory of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--size", type=int, default=1 << 30)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ticker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if arguments.serve:
        asyncio.run(serve(arguments.serve, ticker=arguments.ticker))
        return 0
    return 0 if (cost(arguments.size) if arguments.cost else ratios(arguments.pairs)) else 1


if __name__ == "__main__":
    sys.exit(main())
