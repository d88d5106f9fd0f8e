"""How fast the File-set Creator is, side by side with DCMTK and coreutils, in one run on one machine.

    python tests/bench/creating.py [--quick] [--folder FOLDER]

A study of 300 CT-like instances of 0.5 MB becomes a message with a DICOMDIR: the files and their data sets are hashed,
the headers are read, the plan is made, the message is written. Beside it, interleaved: ``dcmmkdir`` over the same
files, followed by ``base64 -w76`` of them all. Neither syncs. Only the ratios mean something.
Bars: at least as fast as both together; time per instance for 3 000 small ones at most 1.5 times that for 300; at most
40 MB over idle for 2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from reading import element, peak_kilobytes
from reading import instance as nameless

from gateway.core import creator, directory, letter, part10
from gateway.core.directory import Member
from gateway.core.letter import Letter
from gateway.core.part10 import read_meta
from gateway.model import Span
from gateway.stages.compose import HASHERS

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
ROOT = "1.2.826.0.1.3680043.10.1390"
LETTER = Letter("a@a.example", ("b@b.example",), "<bench@a.example>", datetime(2026, 1, 1, tzinfo=UTC), phone="+49 1")
ROOMY = creator.Capacity(max_message=8 << 30, max_parts=10_000)


def instance(number: int, size: int) -> bytes:
    """Make a CT-like file that has what dcmmkdir asks for."""
    data = nameless(number, size)
    first, patient = element(9, 0x1000, "LO", b"private 0"), element(0x10, 0x20, "LO", b"BENCH")
    data = data.replace(first, element(8, 0x60, "CS", b"CT") + first, 1)
    return data.replace(patient, element(0x10, 0x10, "PN", b"BENCH^MARK") + patient, 1)


def study(folder: Path, count: int, size: int) -> list[Member]:
    """Write so many files of a size and tell what they are."""
    folder.mkdir()
    members = []
    for number in range(1, count + 1):
        path = folder / f"I{number:07}"
        data = instance(number, size)
        path.write_bytes(data)
        uids = (f"{ROOT}.1.{number}", f"{ROOT}.2", f"{ROOT}.3")
        members.append(Member(CT, *uids, EXPLICIT, Span(path, 0, len(data)), read_meta(data).data_set))
    return members


def hashed(member: Member) -> Member:
    """Know the hash of a file, which its part says, and that of its data set, which the ledger keeps."""
    with member.file.path.open("rb", buffering=0) as file:
        read = lambda at, size: os.pread(file.fileno(), size, at)  # noqa: E731
        whole, _ = part10.hashed_twice(read, member.data_set, member.file.size)
    return replace(member, sha256=whole)


def create(members: list[Member], out: Path) -> float:
    """Write the message of a study; return the seconds it took."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(HASHERS) as pool:
        members = list(pool.map(hashed, members))
    plan = creator.plan([directory.describe(member) for member in members], LETTER, ROOMY)
    with out.open("wb") as file:
        for file_set in plan.file_sets:
            letter.write(file_set, LETTER, file)
    seconds = time.perf_counter() - begun
    assert plan.count == 1
    assert out.stat().st_size == letter.size_of(plan.file_sets[0], LETTER)
    return seconds


def directory_only(members: list[Member]) -> float:
    """Make the DICOMDIR of a study and nothing else; return the seconds it took."""
    begun = time.perf_counter()
    file_set = directory.FileSet(tuple(directory.describe(member) for member in members))
    directory.encode(file_set, letter.file_set_uid(LETTER))
    return time.perf_counter() - begun


def dcmmkdir(folder: Path) -> float:
    """Let DCMTK make the DICOMDIR of a folder; return the seconds it took."""
    target = folder.parent / "DICOMDIR"
    target.unlink(missing_ok=True)
    begun = time.perf_counter()
    command = ("dcmmkdir", "--general-mime", "--invent", "--no-consistency-check", "--no-backup", "+D", target)
    subprocess.run(
        [*command, *sorted(path.name for path in folder.iterdir())], cwd=folder, check=True, capture_output=True
    )
    return time.perf_counter() - begun


def base64(members: list[Member], out: Path) -> float:
    """Let coreutils encode all files, one after another; return the seconds it took."""
    begun = time.perf_counter()
    with out.open("wb") as target:
        cat = subprocess.Popen(["cat", *(member.file.path for member in members)], stdout=subprocess.PIPE)
        subprocess.run(["base64", "-w76"], stdin=cat.stdout, stdout=target, check=True)
        cat.wait()
    return time.perf_counter() - begun


def memory(count: int, size: int, folder: Path) -> float:
    """Return by how many MB a fresh process grows over idle while it writes a message."""
    code = f"import runpy; runpy.run_path({__file__!r})['grow']({count}, {size}, {str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def grow(count: int, size: int, folder: str) -> None:
    """Print the growth of this process. All instances are the same file: only what is written counts."""
    path = Path(folder) / "one"
    data = instance(1, size)
    path.write_bytes(data)
    at, end = read_meta(data).data_set, len(data)
    del data
    members = [
        Member(CT, f"{ROOT}.1.{n}", f"{ROOT}.2", f"{ROOT}.3", EXPLICIT, Span(path, 0, end), at) for n in range(count)
    ]
    Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/statm").read_text().split()
    idle = int(status[1]) * os.sysconf("SC_PAGE_SIZE")
    write_away(members)
    sys.stdout.write(str((peak_kilobytes() * 1024 - idle) / 1e6))


def write_away(members: list[Member]) -> None:
    """Write a message to where it takes no room."""
    plan = creator.plan([directory.describe(member) for member in members], LETTER, ROOMY)
    with Path("/dev/null").open("wb") as file:
        for file_set in plan.file_sets:
            letter.write(file_set, LETTER, file)


def compare(folder: Path, count: int, size: int, repeats: int) -> dict[str, float]:
    """Do the same work in both ways."""
    members = study(folder / f"{count}x{size}", count, size)
    out = folder / "out"
    ways = {
        "creator": lambda: create(members, out),
        "directory": lambda: directory_only(members),
        "dcmmkdir": lambda: dcmmkdir(members[0].file.path.parent),
        "base64": lambda: base64(members, out),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            out.unlink(missing_ok=True)
            times[name].append(way())
    for member in members:
        member.file.path.unlink()
    out.unlink(missing_ok=True)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "instances": count,
        "bytes": size,
        **{f"{name}_ms_per_instance": round(seconds / count * 1000, 3) for name, seconds in median.items()},
        "times_dcmmkdir_and_base64": round((median["dcmmkdir"] + median["base64"]) / median["creator"], 2),
        "times_dcmmkdir": round(median["dcmmkdir"] / median["directory"], 2),
    }


def main() -> int:
    """Run all, print one JSON document, and end with 1 when a bar was missed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="the comparison only")
    arguments.add_argument("--folder", default=None, help="where to write")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        rows = [compare(folder, 300, 512 << 10, 3)]
        missed = [] if rows[0]["times_dcmmkdir_and_base64"] >= 1 else ["speed"]
        result: dict[str, object] = {"compare": rows}
        if not given.quick:
            rows += [compare(folder, 300, 20_000, 3), compare(folder, 3000, 20_000, 3)]
            few, many = (row["creator_ms_per_instance"] for row in rows[1:])
            missed += [] if many <= 1.5 * few else ["linear"]
            grown = memory(400, 5 << 20, folder)
            result["megabytes_over_idle_for_2_gb"] = round(grown, 1)
            result["megabytes_over_idle_for_3000_instances"] = round(memory(3000, 20_000, folder), 1)
            missed += [] if grown <= 40 else ["memory"]
        result["missed"] = missed
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
