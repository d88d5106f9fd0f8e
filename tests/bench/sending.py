"""How fast instances go out, side by side with DCMTK's storescu: run it, and read the ratios.

Both send the same files to the same `storescp --ignore`, in turns, so that whatever else the machine does meets both.
Seconds of one run mean nothing; the ratio (storescu's time by ours: above 1 we are faster) is the median of the pairs.
storescu's time includes the start of its process, ours an association that is opened and released.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "peers")]

from pacs import NODELAY, Pacs, read_meta, resized, storescp  # noqa: E402 - a script, run from anywhere
from peer import program  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402

from gateway import model  # noqa: E402
from gateway.core import contexts  # noqa: E402
from gateway.edges.storescu import Association, Peer  # noqa: E402

CASES = {"300 x 0.5 MB": (300, 525_000), "1000 x 20 kB": (1000, 20_000)}
NO_LOSS = 10_000


def resident(field: str = "VmRSS") -> float:
    """Memory of this process in MB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{field}:")[1].split()[0]) / 1000


def make(folder: Path, count: int, size: int) -> list[model.Queued]:
    """Write instances of one series, each with a UID of its own, as a study on disk is."""
    source = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    meta = read_meta(source)
    assert meta is not None
    content = resized(source, size)
    queued = []
    for key in range(count):
        uid = meta.sop_instance[:-5] + f"{key + 10_000:05}"
        path = folder / f"{size}-{key}.dcm"
        path.write_bytes(content.replace(meta.sop_instance.encode(), uid.encode()))
        span = model.Span(path, meta.data_set, len(content))
        queued.append(model.Queued(key, meta.sop_class, uid, meta.transfer_syntax, span))
    return queued


def ours(pacs: Pacs, queued: list[model.Queued]) -> float:
    """Send them over one association; return the seconds."""
    started = time.perf_counter()
    association = Association.open(
        Peer(pacs.title, "127.0.0.1", pacs.port, "GATEWAY", 60), contexts.plan(queued)[0].contexts
    )
    outcomes = association.send(queued, 60)
    association.release()
    seconds = time.perf_counter() - started
    good = sum(sent.status == 0 for sent in outcomes)
    if good != len(queued):
        sys.exit(f"{len(queued) - good} of {len(queued)} had no success")
    return seconds


def theirs(pacs: Pacs, queued: list[model.Queued]) -> float:
    """Let storescu send the same files; return the seconds."""
    files = [str(each.data_set.path) for each in queued]
    command = [program("storescu"), "-q", "-aec", pacs.title, "127.0.0.1", str(pacs.port), *files]
    started = time.perf_counter()
    subprocess.run(command, check=True, env=NODELAY)
    return time.perf_counter() - started


def say(line: str) -> None:
    """Write a line at once, also into a pipe."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Run the cases, and at the end many small instances to see that no response is lost."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--pdu", type=int, default=0, help="storescp's maximum PDU length; its default without")
    options = arguments.parse_args()
    flags = ["--max-pdu", str(options.pdu)] if options.pdu else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        sets = {title: make(folder, *case) for title, case in CASES.items()}
        idle = resident()
        for title, queued in sets.items():
            with storescp(folder / "in", "--ignore", *flags) as pacs:
                pairs = [(ours(pacs, queued), theirs(pacs, queued)) for _ in range(options.pairs + 1)][1:]
            mine = statistics.median(own for own, _ in pairs)
            ratio = statistics.median(other / own for own, other in pairs)
            size = sum(each.data_set.size for each in queued) / 1e6
            say(f"{title}: {size / mine:.0f} MB/s, {len(queued) / mine:.0f} instances/s, {ratio:.2f} of storescu")
        small = sets["1000 x 20 kB"]
        with storescp(folder / "in", "--ignore", *flags) as pacs:
            for _ in range(NO_LOSS // len(small)):
                ours(pacs, small)
        say(f"{NO_LOSS} sends: no response lost")
        say(f"memory: {resident('VmHWM') - idle:.1f} MB over idle at most")


if __name__ == "__main__":
    main()
