"""How long the console's pages take with fifty thousand items in the ledger, and how many questions each asks.

Server time: from the request to the whole answer, in one process, without a network. A gateway's writer commits
beside it all the time, as under load; its slowest commit is printed with and without somebody at the console.

    python tests/bench/console.py [--items N] [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "peers")]

import httpx  # noqa: E402 - a script, run from anywhere
from around import Around, People  # noqa: E402
from prometheus_client import CollectorRegistry  # noqa: E402
from rows import CONFIGURATION, configuration  # noqa: E402
from sqlalchemy import Connection, Engine, event, insert  # noqa: E402

from gateway.core import pseudonym  # noqa: E402
from gateway.edges.console import Pages  # noqa: E402
from gateway.edges.console.app import application  # noqa: E402
from gateway.ledger import events, tables  # noqa: E402
from gateway.ledger.ledger import Ledger, connect, connect_reader  # noqa: E402

BAR_MILLISECONDS = 200.0
BAR_QUESTIONS = 20
INSTANCES = 10
NOW = datetime.now(UTC)
OUTCOMES = ["delivered"] * 90 + ["refused"] * 3 + ["held"] * 3 + ["failed"] + ["waiting"] * 3
PATIENTS = 5000


def fill(connection: Connection, count: int, key: bytes) -> None:
    """Two months of a hospital: items with instances, deliveries, events and pseudonyms."""
    dice = random.Random(4711)
    rows: dict[Any, list[dict[str, Any]]] = {
        one: [] for one in (tables.message, tables.instance, tables.delivery, tables.event, tables.pseudonym)
    }
    for number in range(count):
        outcome = dice.choice(OUTCOMES)
        came = NOW - timedelta(days=60) * (1 - (number + 1) / count)
        item = f"in-{number:012}"
        closed = came + timedelta(seconds=dice.expovariate(1 / 30)) if outcome != "waiting" else None
        rows[tables.message].append(_message(item, outcome, came, closed, dice))
        for one in range(INSTANCES):
            uid = f"2.25.{number}.{one}"
            rows[tables.instance].append(_instance(item, one, number, uid))
            rows[tables.delivery].append(_delivery(item, one, outcome, came, closed))
        for kind in ("accepted", "read", "sent", "sent", "closed"):
            text = f"{kind}: a sentence of the length that a sentence has"
            rows[tables.event].append(events.entry(came, kind, text, message=item))
        digest = pseudonym.of_patient(key, f"P{number % PATIENTS}")
        rows[tables.pseudonym].append({"message": item, "digest": digest})
        if number % 1000 == 999 or number == count - 1:
            for table, some in rows.items():
                connection.execute(insert(table), some)
                some.clear()


def _message(item: str, outcome: str, came: datetime, closed: datetime | None, dice: random.Random) -> dict[str, Any]:
    waits = outcome == "waiting"
    return {
        "id": item,
        "direction": "in",
        "stage": "store" if outcome != "waiting" or dice.random() < 0.9 else "receive",
        "outcome": outcome,
        "code": None if outcome in {"delivered", "waiting"} else "no-dicom",
        "door": "smtp",
        "peer": "192.0.2.1",
        "sender": "dicom@clinic-a.example",
        "recipients": ["pacs@gw.example"],
        "message_id": f"<{item}@clinic-a.example>",
        "from_address": "dicom@clinic-a.example",
        "partner": dice.choice(["clinic-a", "clinic-b"]),
        "routes": ["a"],
        "blob": f"x/{item}.eml",
        "size": 5_000_000,
        "sha256": f"{hash(item) & (1 << 64) - 1:064x}",
        "body_sha256": f"{hash(item) & (1 << 64) - 1:064x}",
        "kind": "dicom",
        "received_at": came,
        "closed_at": None if waits else closed,
    }


def _instance(item: str, number: int, study: int, uid: str) -> dict[str, Any]:
    return {
        "message": item,
        "number": number,
        "sop_class": "1.2.840.10008.5.1.4.1.1.2",
        "sop_instance": uid,
        "study": f"2.25.{study}",
        "series": f"2.25.{study}.0",
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "sha256": "0" * 64,
        "data_set_sha256": "0" * 64,
        "part": str(number),
        "start": 0,
        "data_set": 0,
        "size": 500_000,
    }


def _delivery(item: str, number: int, outcome: str, came: datetime, closed: datetime | None) -> dict[str, Any]:
    return {
        "message": item,
        "number": number,
        "destination": "pacs",
        "outcome": outcome,
        "sends": 1,
        "next_attempt": came if outcome == "waiting" else None,
        "closed_at": closed,
    }


@asynccontextmanager
async def console(reader: Engine, folder: Path, key: bytes) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """A console that somebody is logged in to, and the token of his forms."""
    around = Around(configuration(folder, CONFIGURATION), search_key=key)
    pages = Pages(around, reader, People())
    transport = httpx.ASGITransport(application(CollectorRegistry(), list, pages))
    async with httpx.AsyncClient(transport=transport, base_url="http://console.test", trust_env=False) as client:
        token = _token((await client.get("/login")).text)
        await client.post("/login", data={"user": "otto", "password": "right", "token": token})
        yield client, _token((await client.get("/find")).text)
    pages.close()


def _token(page: str) -> str:
    found = re.search(r'name="token" value="([^"]+)"', page)
    assert found is not None
    return found[1]


class Writer:
    """Commits small changes one after another, as a gateway does that takes mail in."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.seconds: list[float] = []

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            began = time.perf_counter()
            await self._ledger.write(lambda c: events.tell(c, datetime.now(UTC), "bench", "something happened"))
            self.seconds.append(time.perf_counter() - began)
            await asyncio.sleep(0.002)


async def measure(folder: Path, count: int, rounds: int) -> int:
    """Fill, ask, print; 1 when a bar was missed."""
    url, key = f"sqlite:///{folder / 'ledger.sqlite'}", b"k" * 32
    engine = connect(url)
    began = time.perf_counter()
    with engine.begin() as connection:
        fill(connection, count, key)
    print(f"{count} items, {count * INSTANCES} instances, filled in {time.perf_counter() - began:.0f} s")
    ledger, reader = Ledger(engine), connect_reader(url)
    asked = [0]
    event.listen(reader, "before_cursor_execute", lambda *_: asked.__setitem__(0, asked[0] + 1))
    writer = Writer(ledger)
    writing = asyncio.create_task(writer.run())
    await asyncio.sleep(3)
    alone, writer.seconds = sorted(writer.seconds), []
    missed = 0
    middle = f"in-{count // 2:012}"
    pages: dict[str, tuple[str, dict[str, str] | None]] = {
        "overview": ("/", None),
        "queue": ("/queue", None),
        "list": ("/items", None),
        "list, held": ("/items?outcome=held", None),
        "list, failed of a partner": ("/items?outcome=failed&partner=clinic-b", None),
        "list, waiting in store": ("/items?outcome=waiting&stage=store", None),
        "list, no such (7 d, out)": ("/items?direction=out&since=7d", None),
        "list, page in the middle": (f"/items?before={middle}", None),
        "story": (f"/items/{middle}", None),
        "find a Message-ID": ("/find", {"kind": "word", "text": f"<{middle}@clinic-a.example>"}),
        "find a SOP Instance UID": ("/find", {"kind": "word", "text": f"2.25.{count // 3}.4"}),
        "find a patient": ("/find", {"kind": "patient", "text": "P17"}),
        "find a partner": ("/find", {"kind": "sender", "text": "clinic-a"}),
        "find a partner, 2 h": ("/find", {"kind": "sender", "text": "clinic-a", "since": "2h"}),
    }
    async with console(reader, folder, key) as (client, token):
        for name, (path, form) in pages.items():
            taken = []
            for _ in range(rounds):
                asked[0], began = 0, time.perf_counter()
                answer = await (client.post(path, data={**form, "token": token}) if form else client.get(path))
                taken.append((time.perf_counter() - began) * 1000)
                assert answer.status_code == 200, (name, answer.status_code)
            bad = max(taken) > BAR_MILLISECONDS or asked[0] > BAR_QUESTIONS
            missed += bad
            times = f"first {taken[0]:6.1f}  median {statistics.median(taken):6.1f}  slowest {max(taken):6.1f} ms"
            print(f"{name:28} {times}  {asked[0]:3} questions{'  MISSED' if bad else ''}", flush=True)
    writing.cancel()
    beside = sorted(writer.seconds)
    for name, some in (("alone", alone), ("beside the console", beside)):
        half, most = (some[int(len(some) * share)] * 1000 for share in (0.5, 0.99))
        print(
            f"a commit {name:20} median {half:5.1f}  99 % {most:5.1f}  slowest {some[-1] * 1000:5.1f} ms  ({len(some)})"
        )
    print(f"bars: {BAR_MILLISECONDS:.0f} ms and {BAR_QUESTIONS} questions: {'missed' if missed else 'held'}")
    reader.dispose()
    ledger.close()
    return 1 if missed else 0


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-console-") as folder:
        return asyncio.run(measure(Path(folder), given.items, given.rounds))


if __name__ == "__main__":
    sys.exit(main())
