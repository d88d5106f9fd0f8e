"""What a big study costs in memory on its way out: received, mailed in one message of nearly 3 GB, submitted.

    python tests/bench/outgoing.py [--size 2000] [--instances 200]

Prints the peak resident memory of the gateway and its workers over what they had when idle; the bar is 40 MB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from daemon import Daemon
from footprint import memory
from pacs import NODELAY
from peer import Peer, free_port, program
from receiving import make

BAR = 40 << 20

SECTIONS = """
[storescp]
title = "GATEWAY"
listen = "127.0.0.1:{dicom}"

[relay]
host = "127.0.0.1"
port = {relay}
tls = "none"
sender = "dicom@gateway.test"
max_message = "8 GB"

[partner.clinic]
address = "dicom@clinic.test"
send = "plain"
max_parts = 5000

[[route]]
name = "out"
called = "OUT"
mail = ["clinic"]
quiet = "5s"
max_size = "8 GB"
"""


class Sink(Peer):
    """Postfix's smtp-sink: takes every mail and throws it away."""

    def command(self) -> Sequence[str]:
        """As its manual says."""
        return [program("smtp-sink"), "-u", "postfix", f"127.0.0.1:{self.port}", "50"]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2000, help="MB of the study")
    parser.add_argument("--instances", type=int, default=200)
    options = parser.parse_args()
    dicom = free_port()
    with tempfile.TemporaryDirectory() as folder, Sink() as sink:
        paths = make(Path(folder), options.instances, options.size * 1_000_000 // options.instances)
        with Daemon({}, SECTIONS.format(dicom=dicom, relay=sink.port)) as gateway:
            time.sleep(3)
            idle = memory(gateway.pid(), "VmRSS")
            began = time.monotonic()
            command = [program("storescu"), "-q", "-aec", "OUT", "127.0.0.1", str(dicom), *map(str, paths)]
            subprocess.run(command, env=NODELAY, check=True)
            received = time.monotonic() - began
            while gateway.view("reconcile")["delivered"] != 1 and time.monotonic() - began < 300:
                time.sleep(1)
            peak = memory(gateway.pid(), "VmHWM")
            [item] = gateway.items()
            mails = [one["size"] for one in gateway.item(item["id"])["mails"]]
    print(
        f"study of {item['size'] / 2**20:.0f} MiB in {item['instances']} instances: {item['outcome']}, received in "
        f"{received:.1f} s, {len(mails)} mail of {sum(mails) / 2**20:.0f} MiB; idle {idle / 2**20:.1f} MiB, "
        f"peak {peak / 2**20:.1f} MiB, growth {(peak - idle) / 2**20:.1f} MiB (bar {BAR >> 20})"
    )
    return 0 if item["outcome"] == "delivered" and peak - idle <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
