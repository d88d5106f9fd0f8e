"""How fast the File-set Reader is, side by side with what people use, in one run on one machine.

    python tests/bench/reading.py [--quick]

It builds a message of 300 CT-like instances (216 MB) and reads it three ways, interleaved: the reader (hash, PS3.10
check and data set walk included, no fsync), ``ripmime``, and ``base64 -d`` of the same bodies. Only the ratios mean
something.
Bars: at least 3 times ripmime and 1.2 times base64; at most 24 MB over idle, whatever the size; time per MB the same
from 1 MB to 2 GB and from 1 part to 5000.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pybase64

sys.path.insert(0, str(Path(__file__).parents[2]))

from gateway.core.reader import Rules, read
from gateway.model import Span

LINE = 57
RULES = Rules(
    parts=6000, depth=8, header=1 << 20, instance=2 << 30, unpacked=8 << 30, ratio=200, bare_dicom=False, uuencode=False
)

RIPMIME, BASE64, OVER_IDLE, SPREAD = 3.0, 1.2, 24.0, 1.6
"""The bars: ratios to the two programs, MB over idle, and what counts as the same time per MB on a noisy machine."""

FEW = 5.0
"""Megabytes of a message that takes a few milliseconds."""

SERIES = {
    "size": [(1, 730_000), (1, 7_300_000), (1, 73_000_000), (1, 730_000_000), (1, 1_460_000_000)],
    "parts": [(1, 500_000), (10, 500_000), (100, 500_000), (1000, 500_000), (5000, 500_000)],
    "small_parts": [(10, 30_000), (100, 30_000), (1000, 30_000), (5000, 30_000)],
}
"""Pairs of part count and bytes of each: the message grows by its one part, or by their number."""


def element(group: int, number: int, vr: str, value: bytes) -> bytes:
    """Encode one element in Explicit VR Little Endian."""
    value += b"\0" * (len(value) % 2)
    head = group.to_bytes(2, "little") + number.to_bytes(2, "little") + vr.encode()
    if vr in ("OB", "OW", "SQ"):
        return head + b"\0\0" + len(value).to_bytes(4, "little") + value
    return head + len(value).to_bytes(2, "little") + value


def instance(number: int, size: int) -> bytes:
    """Make a CT-like file: some hundred elements, then pixel data of a size."""
    uid = b"1.2.826.0.1.3680043.10.1390.1.%d" % number
    meta = element(2, 1, "OB", b"\0\1") + element(2, 2, "UI", b"1.2.840.10008.5.1.4.1.1.2")
    meta += (
        element(2, 3, "UI", uid) + element(2, 0x10, "UI", b"1.2.840.10008.1.2.1") + element(2, 0x12, "UI", b"2.25.1")
    )
    data = element(8, 0x16, "UI", b"1.2.840.10008.5.1.4.1.1.2") + element(8, 0x18, "UI", uid)
    data += b"".join(element(9, 0x1000 + n, "LO", b"private %d" % n) for n in range(60))
    data += element(0x10, 0x20, "LO", b"BENCH") + b"".join(element(0x19, 0x1000 + n, "DS", b"1.5") for n in range(60))
    data += element(0x20, 0xD, "UI", b"1.2.826.0.1.3680043.10.1390.2")
    data += element(0x20, 0xE, "UI", b"1.2.826.0.1.3680043.10.1390.3")
    data += b"".join(element(0x28, n, "US", b"\0\2") for n in range(0x10, 0x50))
    noise = os.urandom(1 << 16)
    data += element(0x7FE0, 0x10, "OW", noise * (size >> 16) + noise[: size & 0xFFFF])
    return b"\0" * 128 + b"DICM" + element(2, 0, "UL", len(meta).to_bytes(4, "little")) + meta + data


def compose(folder: Path, parts: int, size: int) -> tuple[Path, Path]:
    """Write a message of so many instances, and beside it their bare base64 text."""
    message, body = folder / f"{parts}x{size}.eml", folder / f"{parts}x{size}.b64"
    with message.open("wb") as mail, body.open("wb") as text:
        mail.write(b"From: a@example\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=bench\r\n\r\n")
        whole = b""
        for number in range(parts):
            data = instance(number, size)
            mail.write(b"--bench\r\nContent-Type: application/dicom; id=IM%06d\r\n" % number)
            mail.write(b"Content-Transfer-Encoding: base64\r\n\r\n")
            for at in range(0, len(data), LINE << 14):
                lines = pybase64.encodebytes(data[at : at + (LINE << 14)]).replace(b"\n", b"\r\n")
                mail.write(lines)
            # One stream of base64 must not have padding inside: what is left over goes to the next.
            whole += data
            cut = len(whole) // LINE * LINE
            text.write(pybase64.encodebytes(whole[:cut]))
            whole = whole[cut:]
        text.write(pybase64.encodebytes(whole))
        mail.write(b"--bench--\r\n")
    return message, body


def reader(message: Path, parts: int) -> float:
    """Read a message and return the seconds it took."""
    with tempfile.NamedTemporaryFile("w+b", dir=message.parent) as out:
        begun = time.perf_counter()
        reading = read(Span(message, 0, message.stat().st_size), RULES, out)
        seconds = time.perf_counter() - begun
    assert len(reading.instances) == parts, reading.findings
    assert not reading.findings, reading.findings
    return seconds


def program(*command: str | Path, out: Path | None = None) -> float:
    """Run a program and return the seconds it took."""
    begun = time.perf_counter()
    if out is None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    else:
        with out.open("wb") as target:
            subprocess.run(command, check=True, stdout=target)
    return time.perf_counter() - begun


def ripmime(message: Path) -> float:
    """Unpack a message with ripmime."""
    target = message.parent / "ripped"
    target.mkdir()
    seconds = program("ripmime", "-i", message, "-d", target)
    shutil.rmtree(target)
    return seconds


def memory(message: Path, parts: int) -> float:
    """Return by how many MB a fresh process grows over idle while it reads."""
    code = f"import runpy; runpy.run_path({__file__!r})['grow']({str(message)!r}, {parts})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def grow(message: str, parts: int) -> None:
    """Print the growth of this process."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: a child inherits its parent's
    idle = peak_kilobytes()
    reader(Path(message), parts)
    sys.stdout.write(str((peak_kilobytes() - idle) * 1024 / 1e6))


def peak_kilobytes() -> int:
    """Return the most memory this process has had."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def compare(folder: Path, repeats: int) -> dict[str, float]:
    """Read the 216 MB message in three ways, in turn: the ratios are medians of those within one round."""
    message, body = compose(folder, 300, 524288)
    rounds = []
    for _ in range(repeats):
        seconds = reader(message, 300)
        rounds.append((seconds, ripmime(message), program("base64", "-d", body, out=folder / "decoded")))
    grown = memory(message, 300)
    for file in (message, body, folder / "decoded"):
        file.unlink()
    return {
        "reader_seconds": round(statistics.median(own for own, _, _ in rounds), 3),
        "times_ripmime": round(statistics.median(other / own for own, other, _ in rounds), 2),
        "times_base64": round(statistics.median(other / own for own, _, other in rounds), 2),
        "megabytes_over_idle": round(grown, 1),
    }


def scale(folder: Path, cases: Sequence[tuple[int, int]], repeats: int) -> list[dict[str, float]]:
    """Read messages of other sizes or part counts, in turn: the median seconds for 100 MB of each."""
    messages = []
    for number, (parts, size) in enumerate(cases):
        within = folder / f"case{number}"
        within.mkdir()
        message, body = compose(within, parts, size)
        body.unlink()
        messages.append(message)
    rounds = [
        [reader(message, parts) for message, (parts, _) in zip(messages, cases, strict=True)] for _ in range(repeats)
    ]
    rows = []
    for message, (parts, _), seconds in zip(messages, cases, zip(*rounds, strict=True), strict=True):
        megabytes = message.stat().st_size / 1e6
        row = {
            "parts": parts,
            "megabytes": round(megabytes, 1),
            "seconds_per_100_mb": round(statistics.median(seconds) / megabytes * 100, 3),
            "microseconds_per_part": round(statistics.median(seconds) / parts * 1e6),
            "megabytes_over_idle": round(memory(message, parts), 1),
        }
        rows.append(row)
        message.unlink()
    return rows


def spread(rows: Sequence[dict[str, float]]) -> float:
    """Return by how much the dearest megabyte of a series goes beyond the cheapest.

    Messages of a few megabytes are shown and left out here: the two milliseconds of opening a message, and of a first
    block that is decoded before anything can be hashed beside it, are most of what they take.
    """
    times = [row["seconds_per_100_mb"] for row in rows if row["megabytes"] > FEW]
    return round(max(times) / min(times), 2)


def main() -> int:
    """Print one JSON document; end with 1 when a bar is missed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="the comparison only")
    arguments.add_argument("--folder", default=None, help="where to write")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        compared = compare(Path(name), 7)
        result: dict[str, object] = {"compare": compared}
        grown = [compared["megabytes_over_idle"]]
        spreads = []
        for series, cases in {} if given.quick else SERIES.items():
            rows = scale(Path(name), cases, 3)
            shutil.rmtree(Path(name))
            Path(name).mkdir()
            grown += [row["megabytes_over_idle"] for row in rows]
            spreads.append(spread(rows))
            result[series] = {"rows": rows, "dearest_to_cheapest_megabyte": spreads[-1]}
    good = compared["times_ripmime"] >= RIPMIME and compared["times_base64"] >= BASE64
    good = good and max(grown) <= OVER_IDLE and max(spreads, default=1) <= SPREAD
    result["bars_met"] = good
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
