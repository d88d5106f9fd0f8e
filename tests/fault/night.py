"""A night: thousands of messages wait for a PACS that is away for twelve hours, and then come out in order.

    make soak ARGS=night, or PYTHONPATH=.:tests/peers python tests/fault/night.py [--messages 5000] [--hours 12]

The lane is the program's, with its ledger and spool; the clock is shortened: what the lane says it wants to wait is
counted, and then it is due. Bars: CPU of 70 s per hour of the night, a probe bounded by the back-off, memory flat, and
afterwards everything delivered once, in the order in which it came (R15, R17). Ends with 1 when one is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lane import Lane
from pacs import read_meta
from peer import free_port
from pydicom.data import get_testdata_file
from scripted_scp import ScriptedScp
from soak import conclude
from sqlalchemy import update

from gateway import logs
from gateway.ledger.tables import destination

CPU_PER_HOUR = 70.0
GROWTH = 8.0
"""MB that the night may cost."""

PROBES_PER_HOUR = 120.0


def resident() -> float:
    """Memory of this process in MB."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text("ascii"))[0]) / 1000


def fill(lane: Lane, count: int) -> list[str]:
    """Queue messages with one instance each; return the instances in the order of their coming."""
    source = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    meta = read_meta(source)
    assert meta is not None
    uid = meta.sop_instance.encode()
    order = []
    for number in range(count):
        fresh = uid[:-5] + f"{number + 10_000:05}".encode()
        lane.fill(f"in-{number:05}", [(source.replace(uid, fresh), "1.2.3", "1.2.3.1")], ["pacs"])
        order.append(fresh.decode())
    return order


async def sleep_through(lane: Lane, hours: float) -> tuple[int, float]:
    """Let the hours of the night pass; return the probes, and the seconds of CPU they cost."""
    passed, probes, began = timedelta(), 0, time.process_time()
    while passed < timedelta(hours=hours):
        again = await lane.store.look("pacs")
        assert again is not None, "a lane with work always says when it wants to look again"
        wait = again - datetime.now(UTC)
        assert wait > timedelta(0), "it would spin"
        passed += wait
        probes += 1
        past = datetime.now(UTC) - timedelta(seconds=1)
        lane.sync(lambda c, past=past: c.execute(update(destination).values(breaker_until=past)))
    return probes, time.process_time() - began


async def night(count: int, hours: float) -> list[str]:
    """Play it; return what is amiss."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        lane = Lane(Path(folder) / "gw", {"pacs": {"title": "PACS", "port": free_port()}})
        order = fill(lane, count)
        await sleep_through(lane, 0.5)  # what is loaded and cached once does not grow with the night
        before = resident()
        probes, cpu = await sleep_through(lane, hours)
        grown = resident() - before
        print(
            f"{count} messages, {hours:g} h: {probes} probes, {cpu / hours:.2f} s CPU an hour, memory {grown:+.1f} MB"
        )
        wrong += ["too much CPU"] * (cpu / hours > CPU_PER_HOUR) + ["memory grows"] * (grown > GROWTH)
        wrong += ["too many probes"] * (probes / hours > PROBES_PER_HOUR)
        with ScriptedScp() as scp:
            entity = lane.configuration.ae["pacs"].model_copy(update={"port": scp.port})
            lane.store.reload(lane.configuration.model_copy(update={"ae": {"pacs": entity}}))
            began, looks = time.monotonic(), 0
            while lane.waiting and looks < 100:
                await lane.store.look("pacs")
                lane.make_due()
                looks += 1
            print(f"morning: {looks} looks, {count / (time.monotonic() - began):.0f} instances/s, {lane.waiting} wait")
            wrong += ["something still waits"] * bool(lane.waiting)
            came = [one.sop_instance for one in scp.seen]
            wrong += ["something came twice or never"] * (sorted(came) != sorted(order))
            wrong += ["not in the order in which it came"] * (came != order)
        await lane.close()
    return wrong


def main() -> int:
    """Run it and say what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--hours", type=float, default=12)
    options = parser.parse_args()
    logs.configure("error")
    wrong = asyncio.run(night(options.messages, options.hours))
    return conclude(wrong)


if __name__ == "__main__":
    sys.exit(main())
