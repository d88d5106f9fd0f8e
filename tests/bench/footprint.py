"""What a message of 1 GiB costs in memory: one part of 700 MB, accepted, read and forwarded to a PACS.

    python tests/bench/footprint.py [--size 700]

Prints the peak resident memory of the gateway and its worker over what they had when idle.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import socket
import sys
import tempfile
import time
from pathlib import Path

from daemon import Daemon
from samples import FOLDER
from storescp import Storescp

LINES = 57 * 4096
"""Bytes encoded at once: whole lines of 76 characters."""


def family(pid: int) -> list[int]:
    """A process and its children."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def memory(pid: int, field: str) -> int:
    """Bytes of resident memory of a process and its children, now (VmRSS) or at most so far (VmHWM)."""
    total = 0
    for one in family(pid):
        match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{one}/status").read_text())
        total += int(match[1]) * 1024 if match else 0
    return total


def write_message(path: Path, size: int) -> None:
    """Write a mail with one secondary capture of so many bytes, in bounded memory."""
    import pydicom
    from pydicom.uid import generate_uid

    found = pydicom.dcmread(FOLDER / "test_files/CT_small.dcm")
    found.SOPInstanceUID = generate_uid(prefix=None)
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
    found.PixelData = b""
    del found.DataSetTrailingPadding
    head = io.BytesIO()
    found.save_as(head, enforce_file_format=True)
    body = head.getvalue()[:-12] + b"\xe0\x7f\x10\x00OW\0\0" + size.to_bytes(4, "little")
    with path.open("wb") as file:
        file.write(
            b"From: dicom@clinic-a.test\r\nTo: pacs@gateway.test\r\nMessage-ID: <large@clinic-a.test>\r\n"
            b"MIME-Version: 1.0\r\n"
            b'Content-Type: multipart/mixed; boundary="edge"\r\n\r\n--edge\r\nContent-Type: application/dicom\r\n'
            b"Content-Transfer-Encoding: base64\r\n\r\n"
        )
        block = bytearray(body)
        left = size
        while block:
            wanted = min(LINES - len(block), left) if left else 0
            block += os.urandom(wanted) if wanted > 0 else b""
            left -= max(wanted, 0)
            take, block = bytes(block[:LINES]), block[LINES:]
            text = base64.b64encode(take)
            file.write(b"".join(text[at : at + 76] + b"\r\n" for at in range(0, len(text), 76)))
            if left and not block:
                block = bytearray(os.urandom(min(LINES, left)))
                left -= len(block)
        file.write(b"--edge--\r\n")


def submit(port: int, path: Path) -> None:
    """Hand the message over as fast as the door takes it; nothing in it begins with a dot."""
    with socket.create_connection(("127.0.0.1", port), timeout=300) as wire, wire.makefile("rb") as answers:

        def say(line: bytes, expected: bytes) -> None:
            if line:
                wire.sendall(line + b"\r\n")
            while (answer := answers.readline())[3:4] == b"-":
                pass
            assert answer.startswith(expected), answer

        say(b"", b"220")
        say(b"EHLO client.test", b"250")
        say(b"MAIL FROM:<dicom@clinic-a.test>", b"250")
        say(b"RCPT TO:<pacs@gateway.test>", b"250")
        say(b"DATA", b"354")
        with path.open("rb") as file:
            wire.sendfile(file)
        say(b".", b"250")
        say(b"QUIT", b"221")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=700, help="MB of pixel data")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Storescp("--ignore") as pacs:
        message = Path(folder) / "large.eml"
        write_message(message, options.size * 1_000_000)
        with Daemon({"pacs": (pacs.title, pacs.port)}) as daemon:
            assert daemon.process is not None
            pid = daemon.process.pid
            time.sleep(3)
            idle = memory(pid, "VmRSS")
            began = time.monotonic()
            submit(daemon.port, message)
            accepted = time.monotonic() - began
            while daemon.ask("reconcile")["delivered"] != 1 and time.monotonic() - began < 300:
                time.sleep(1)
            peak = memory(pid, "VmHWM")
            item = daemon.items()[0]
        size = message.stat().st_size
    print(
        f"message {size / 2**20:.0f} MiB: {item['outcome']}, accepted in {accepted:.2f} s; "
        f"idle {idle / 2**20:.1f} MiB, peak {peak / 2**20:.1f} MiB, growth {(peak - idle) / 2**20:.1f} MiB (bar 30)"
    )
    return 0 if item["outcome"] == "delivered" and peak - idle <= 30 << 20 else 1


if __name__ == "__main__":
    sys.exit(main())
