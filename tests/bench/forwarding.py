"""How fast a queue is worked off, ledger included, side by side with DCMTK's storescu: run it, and read the ratios.

The STORE stage sends what lies in its ledger and spool: windows are marked, outcomes committed, everything synced, as
in the program. storescu sends the same files from the same disk. Both in turns, so that whatever else the machine does
meets both; the ratio (storescu's time by ours: above 1 we are faster) is the median of the pairs. storescu's time
includes the start of its process, ours the first look into the ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "peers")]

from lane import Lane  # noqa: E402 - a script, run from anywhere
from pacs import NODELAY, Pacs, orthanc, read_meta, resized, storescp  # noqa: E402
from peer import program  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402

from gateway.ledger.ledger import connect  # noqa: E402

Study = list[tuple[Path, str, str]]

STUDY = b"1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"
"""Study Instance UID of the sample."""

NO_LOSS = 10_000


def resident(field: str) -> float:
    """Memory of this process in MB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{field}:")[1].split()[0]) / 1000


def make(folder: Path, count: int, size: int, studies: int = 1) -> list[Study]:
    """Write instances, each with a UID of its own, of one or several studies."""
    source = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    meta = read_meta(source)
    assert meta is not None
    assert STUDY in source
    content, uid = resized(source, size), meta.sop_instance.encode()
    made: list[Study] = [[] for _ in range(studies)]
    folder.mkdir()
    for number in range(count):
        study = STUDY[:-5] + f"{number % studies + 10_000:05}".encode()
        path = folder / f"{number}.dcm"
        path.write_bytes(content.replace(uid, uid[:-5] + f"{number + 10_000:05}".encode()).replace(STUDY, study))
        made[number % studies].append((path, study.decode(), f"{study.decode()}.1"))
    return made


def ours(pacs: Pacs, folder: Path, studies: list[Study]) -> float:
    """Let the lane work its queue off; return the seconds."""

    async def work_off() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            entity = {"title": pacs.title, "port": pacs.port, "timeout": "60s", "associations": len(studies)}
            lane = Lane(Path(name), {"pacs": entity})
            for number, study in enumerate(studies):
                lane.fill(f"in-{number}", study, ["pacs"])
            started = time.perf_counter()
            await lane.store.look("pacs")
            seconds = time.perf_counter() - started
            states = {(o, c) for number in range(len(studies)) for *_, o, c in lane.parts(f"in-{number}")}
            await lane.close()
            if states != {("delivered", None)}:
                sys.exit(f"not all of it was delivered: {states}")
            return seconds

    return asyncio.run(work_off())


def theirs(pacs: Pacs, studies: list[Study]) -> float:
    """Let storescu send the same files, one process for each study; return the seconds."""
    start = [program("storescu"), "-q", "-aec", pacs.title, "127.0.0.1", str(pacs.port)]
    started = time.perf_counter()
    running = [subprocess.Popen([*start, *(str(path) for path, *_ in study)], env=NODELAY) for study in studies]
    if any([one.wait() for one in running]):  # noqa: C419 - each of them has to be waited for
        sys.exit("storescu failed")
    return time.perf_counter() - started


@contextlib.contextmanager
def sink(folder: Path) -> Iterator[Pacs]:
    """Run a storescp that keeps nothing."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        kept = Path(name) / "in"
        kept.mkdir()
        with storescp(kept, "--ignore") as pacs:
            yield pacs


@contextlib.contextmanager
def archive(folder: Path) -> Iterator[Pacs]:
    """Run an Orthanc."""
    with tempfile.TemporaryDirectory(dir=folder) as name, orthanc(Path(name)) as pacs:
        yield pacs


Peer = Callable[[Path], contextlib.AbstractContextManager[Pacs]]
CASES: dict[str, tuple[Peer, int, int, int, int, float]] = {
    "300 x 0.5 MB to storescp, one association": (sink, 300, 525_000, 1, 5, 1.0),
    "1000 x 20 kB to storescp, one association": (sink, 1000, 20_000, 1, 5, 0.8),
    "2 x 150 x 20 kB to Orthanc, two associations": (archive, 300, 20_000, 2, 7, 0.95),
}
"""The peer, instances, their size, studies, pairs, and the bar."""


def main() -> int:
    """Run the cases; 1 when one of them missed its bar."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=0, help="instead of those of each case")
    arguments.add_argument("--no-loss", type=int, default=NO_LOSS, help="sends to lose no response of")
    options = arguments.parse_args()
    short = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = {title: make(folder / str(at), *case[1:4]) for at, (title, case) in enumerate(CASES.items())}
        connect(f"sqlite:///{folder / 'ledger.sqlite'}").dispose()  # as a gateway has that is idle
        idle = resident("VmRSS")
        for title, (peer, count, size, _, pairs, bar) in CASES.items():
            with peer(folder) as pacs:
                turns = [
                    (ours(pacs, folder, sets[title]), theirs(pacs, sets[title]))
                    for _ in range((options.pairs or pairs) + 1)
                ][1:]
            mine = statistics.median(own for own, _ in turns)
            ratio = statistics.median(other / own for own, other in turns)
            short += ratio < bar
            rates = f"{count * size / 1e6 / mine:.0f} MB/s, {count / mine:.0f} instances/s"
            print(f"{title}: {rates}, {ratio:.2f} of storescu (bar {bar})", flush=True)
        small = sets["1000 x 20 kB to storescp, one association"]
        with sink(folder) as pacs:
            for _ in range(options.no_loss // 1000):
                ours(pacs, folder, small)
        print(f"{options.no_loss} sends: no response lost")
        grown = resident("VmHWM") - idle
        short += grown > 24
        print(f"memory: {grown:.1f} MB over idle at most (bar 24)")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
