"""How fast instances come in, side by side with DCMTK's storescp, Orthanc and the disk: run it, and read the ratios.

DCMTK's storescu sends the same files to each in turns, so that whatever else the machine does meets all; before each
turn all that the one before left in memory is put on disk. Ours syncs the bytes and commits a row before each answer;
`storescp +B` syncs nothing, and `storescp --ignore` keeps nothing: what it takes is the sender's own time. The disk's
own limit is measured in the same round: the same files written, synced, renamed and a row committed, one after another.
`custody alone` is our door when all it does with an instance is to sync it and to commit one row: no program in its
place that answers after both can be much faster, so its ratio to the disk's limit is what can be reached on a machine.
Seconds of one run mean nothing; the ratios are those of the medians of the rounds: above 1 we are faster.

    python tests/bench/receiving.py [--rounds N] [--small] [--no-orthanc]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "peers")]

from orthanc import Orthanc  # noqa: E402 - a script, run from anywhere
from pacs import NODELAY, read_meta, resized, storescp  # noqa: E402
from peer import program  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402

from gateway import config  # noqa: E402
from gateway.config import Listen, StorageSCP  # noqa: E402
from gateway.edges.storescp import StorageScpDoor  # noqa: E402
from gateway.ledger.collections import Course  # noqa: E402
from gateway.ledger.custody import Received  # noqa: E402
from gateway.ledger.ledger import Ledger, connect  # noqa: E402
from gateway.ledger.spool import Spool  # noqa: E402
from gateway.stages.compose import Compose  # noqa: E402

CASES = {"300 x 0.5 MB": (300, 525_000), "1000 x 20 kB": (1000, 20_000)}
DISK = "the disk's limit"
BAR_DISK = 0.6
BAR_ORTHANC = 2.0


CONFIGURATION = """
[gateway]
name = "gw.test"
postmaster = "it@gw.test"
data = "data"

[limits]
free_space = "50 MB"

[storescp]
title = "BENCH"
listen = "127.0.0.1:0"

[relay]
host = "127.0.0.1"
tls = "none"
sender = "dicom@gw.test"

[partner.clinic]
address = "dicom@clinic.test"
send = "plain"

[[route]]
name = "out"
called = "BENCH"
mail = ["clinic"]
max_size = "1 TB"
"""


class Custody(Compose):
    """The stage itself; each round is for a partner of its own, so that the same files are new to it."""

    def __init__(self, folder: Path) -> None:
        path = folder / "gateway.toml"
        path.write_text(CONFIGURATION, encoding="utf-8")
        ledger = Ledger(connect(f"sqlite:///{folder / 'ledger.sqlite'}"))
        self.turn = 0
        super().__init__(config.load(path), ledger, Spool(folder / "spool"), search_key=os.urandom(32))

    def _choose(self, called: str, calling: str) -> Course | None:
        found = super()._choose(called, calling)
        return None if found is None else replace(found, partners=((f"clinic {self.turn}", "dicom@clinic.test"),))

    def begin_round(self) -> None:
        """Mail to another partner."""
        self.turn += 1
        self.reload(self.configuration)

    def close(self) -> None:
        """End its threads."""
        self.spool.close()
        self.ledger.close()


class CustodyAlone(Custody):
    """What nobody can leave out: the bytes are synced, a row is committed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._rows = rows(folder)

    def accept(self, received: Received, patience: float) -> int:
        """Sync it, and commit that it is there; for one association."""
        del patience
        received.draft.begin_sync()
        received.draft.sync()
        self._rows.execute("INSERT INTO fact VALUES (?)", (f"{self.turn} {received.sop_instance}",))
        return 0


def rows(folder: Path) -> sqlite3.Connection:
    """A table that commits each row by itself, durably."""
    made = sqlite3.connect(folder / "rows.sqlite", isolation_level=None, check_same_thread=False)
    made.execute("PRAGMA journal_mode=WAL")
    made.execute("PRAGMA synchronous=FULL")
    made.execute("CREATE TABLE fact (name TEXT PRIMARY KEY)")
    return made


@contextlib.contextmanager
def ours(folder: Path, behind: type[Custody] = Custody) -> Iterator[tuple[int, Custody]]:
    """The door, in a thread with a loop of its own; gives its port, and the stage behind it."""
    custody = behind(folder)
    door = StorageScpDoor(StorageSCP(title="BENCH", listen=Listen("127.0.0.1", 0)), custody)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(door.open(), loop).result()
    try:
        yield door.addresses[0][1], custody
    finally:
        asyncio.run_coroutine_threadsafe(door.close(5), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        custody.close()


def make(folder: Path, count: int, size: int) -> list[Path]:
    """Write instances of one series, each with a UID of its own, as a study on disk is."""
    source = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    meta = read_meta(source)
    assert meta is not None
    content = resized(source, size)
    paths = []
    for key in range(count):
        uid = meta.sop_instance[:-5] + f"{key + 10_000:05}"
        paths.append(folder / f"{size}-{key}.dcm")
        paths[-1].write_bytes(content.replace(meta.sop_instance.encode(), uid.encode()))
    return paths


class FailedError(Exception):
    """storescu could not send all to a peer."""


def send(paths: list[Path], title: str, port: int, associations: int) -> float:
    """Let storescu send them over some associations at once; return the seconds."""
    command = [program("storescu"), "-q", "-aec", title, "127.0.0.1", str(port)]
    started = time.perf_counter()
    running = [
        subprocess.Popen([*command, *map(str, paths[start::associations])], env=NODELAY)
        for start in range(associations)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise FailedError(title)
    return time.perf_counter() - started


def send_anew(custody: Custody, paths: list[Path], port: int, associations: int) -> float:
    """Send them to us in a round of their own; return the seconds."""
    custody.begin_round()
    return send(paths, "BENCH", port, associations)


def limit(paths: list[Path], folder: Path) -> float:
    """Write, sync, rename and commit the same files, one after another; return the seconds."""
    target = Path(tempfile.mkdtemp(dir=folder))
    facts = rows(target)
    seconds = 0.0
    for number, path in enumerate(paths):
        content = path.read_bytes()
        began = time.perf_counter()
        draft = target / f"draft-{number}"
        with draft.open("wb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
        draft.rename(target / f"{number}.dcm")
        descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)
        facts.execute("INSERT INTO fact VALUES (?)", (str(number),))
        seconds += time.perf_counter() - began
    facts.close()
    return seconds


def say(line: str) -> None:
    """Write a line at once, also into a pipe."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def resident() -> float:
    """The most memory this process ever had, in MB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split("VmHWM:")[1].split()[0]) / 1000


def measure(title: str, paths: list[Path], runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Run them all in turns; return and print our time by theirs, as ratios of speed."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            os.sync()  # what the one before left unwritten is not to be paid by the next
            try:
                seconds = run()
            except FailedError as error:
                if name == "ours":
                    raise
                say(f"  {name}: storescu could not send all to {error}")
                continue
            if turn:
                times[name].append(seconds)
    mine = statistics.median(times["ours"])
    say(f"{title}: {len(paths) / mine:.0f} instances/s, {sum(p.stat().st_size for p in paths) / mine / 1e6:.0f} MB/s")
    ratios = {}
    for name in runs.keys() - {"ours"}:
        if times[name]:
            ratios[name] = statistics.median(times[name]) / mine
    for name, ratio in sorted(ratios.items()):
        say(f"  {ratio:.2f} of {name}")
    if "custody alone" in ratios:
        say(f"  (custody alone: {ratios[DISK] / ratios['custody alone']:.2f} of {DISK})")
    return ratios


def main() -> int:
    """Run the cases; end with 1 when a bar is missed."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--small", action="store_true", help="1000 small instances, too")
    arguments.add_argument("--no-orthanc", action="store_true")
    options = arguments.parse_args()
    missed = False
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("in", "files", "ours", "alone"):
            (folder / name).mkdir()
        port, custody = stack.enter_context(ours(folder / "ours"))
        bare, alone = stack.enter_context(ours(folder / "alone", CustodyAlone))
        peer = stack.enter_context(storescp(folder / "in", "+B", "--fork", "-pdu", "131072"))
        sink = stack.enter_context(storescp(folder / "in", "--ignore", "--fork", "-pdu", "131072"))
        archive = None if options.no_orthanc else stack.enter_context(Orthanc(OverwriteInstances=True))
        idle = resident()
        for title, case in CASES.items():
            if case[1] < 100_000 and not options.small:
                continue
            paths = make(folder / "files", *case)
            for associations in (1, 4):
                runs: dict[str, Callable[[], float]] = {
                    "ours": partial(send_anew, custody, paths, port, associations),
                    "storescp +B": partial(send, paths, peer.title, peer.port, associations),
                    "storescp --ignore": partial(send, paths, sink.title, sink.port, associations),
                    DISK: partial(limit, paths, folder),
                }
                if associations == 1:
                    runs["custody alone"] = partial(send_anew, alone, paths, bare, associations)
                if archive is not None:
                    runs["Orthanc"] = partial(send, paths, archive.title, archive.port, associations)
                ratios = measure(f"{title}, {associations} at once", paths, runs, options.rounds)
                if associations == 1 and case[1] > 100_000:
                    missed = ratios[DISK] < BAR_DISK or ratios.get("Orthanc", 9) < BAR_ORTHANC
        say(f"memory: {resident() - idle:.1f} MB over idle at most")
    say(f"bars: {BAR_DISK} of the disk's limit, {BAR_ORTHANC} of Orthanc: {'missed' if missed else 'met'}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
