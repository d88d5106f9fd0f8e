"""Lanes to destinations with moods: ten thousand instances, each fault at each point, and a dead one among five."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from lane import Lane
from scripted_scp import Answer, ScriptedScp
from sqlalchemy import select

from gateway.ledger import inventory
from gateway.ledger.tables import delivery, instance

GOOD = {0x0000, 0xB000, 0xB006, 0xB007}
TELLS_SUCCESS = {"respond", "split", "no-instance", "empty-instance"}
MOODS = (
    *(Answer(status) for status in (0xB000, 0xA700, 0xA900, 0xC001, 0x0110, 0x0111, 0x0117, 0x0122, 0x0213, 0x1234)),
    *(Answer(act=act) for act in ("abort", "p-abort", "close", "reset", "abort-close", "garbage", "silence")),
    *(Answer(act=act) for act in ("wrong-id", "wrong-command", "wrong-instance", "no-status", "half-pdu", "split")),
    *(Answer(act=act, after=100) for act in ("abort", "close", "reset", "respond")),
    *(Answer(status, after=100) for status in (0xA700, 0xC001)),
)
"""Each with the whole message, some of them in its middle."""

CT = "1.2.840.10008.5.1.4.1.1.2"
MANY = 10_000


class Moody(ScriptedScp):
    """Nineteen good answers, then one of any mood."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = random.Random(20261123)

    def answer(self) -> Answer:
        """Throw the dice."""
        with self._lock:
            return self.dice.choice(MOODS) if self.dice.random() < 0.05 else Answer()


@pytest.fixture
async def lanes() -> AsyncIterator[list[Lane]]:
    """Lanes that are closed in the end."""
    made: list[Lane] = []
    yield made
    for one in made:
        await one.close()


def file(uid: str, size: int = 300) -> bytes:
    """A DICOM file, as far as a sender looks."""

    def element(number: int, value: str) -> bytes:
        padded = value.encode() + b"\0" * (len(value) % 2)
        return b"\2\0" + number.to_bytes(2, "little") + b"UI" + len(padded).to_bytes(2, "little") + padded

    meta = element(2, CT) + element(3, uid) + element(0x10, "1.2.840.10008.1.2.1")
    return bytes(128) + b"DICM" + meta + bytes(size)


def study(key: str, count: int) -> list[tuple[bytes, str, str]]:
    """Instances of one study."""
    return [(file(f"1.2.{key}.{n}"), f"1.2.{key}", f"1.2.{key}.0") for n in range(count)]


async def test_no_mood_of_a_peer_makes_a_delivery_that_was_none(tmp_path: Path, lanes: list[Lane]) -> None:
    """Ten thousand instances: none falsely delivered, none repeated after success, doubt bounded (R12, R14)."""
    with Moody() as scp:
        entity = {"title": "MOODY", "port": scp.port, "timeout": "1500ms", "associations": 4}
        lane = Lane(tmp_path / "gw", {"pacs": entity})
        lanes.append(lane)
        for number in range(20):
            lane.fill(f"in-{number}", study(str(number), MANY // 20), ["pacs"])
        looks = await lane.drain(400)
        assert lane.waiting == 0
    whole = {seen.sop_instance for seen in scp.seen}
    successes: set[str] = set()
    for uid, answer in scp.given:
        assert uid not in successes, "sent again after a definite success"
        if answer.act in TELLS_SUCCESS and answer.status in GOOD:  # so small that it is always whole
            successes.add(uid)
    columns = (instance.c.sop_instance, delivery.c.outcome, delivery.c.code, delivery.c.sends_unknown)
    joined = (delivery.c.message == instance.c.message) & (delivery.c.number == instance.c.number)
    rows = lane.sync(lambda c: c.execute(select(*columns).join(instance, joined)).all())
    outcomes = Counter((row.outcome, row.code) for row in rows)
    delivered = {row.sop_instance: row for row in rows if row.outcome == "delivered"}
    duplicates = {uid for uid, row in delivered.items() if row.code == "duplicate"}
    assert delivered.keys() - duplicates == successes <= whole
    assert all(delivered[uid].sends_unknown for uid in duplicates), "it may have been there before"
    assert max(row.sends_unknown for row in rows) <= 4
    assert {outcome for outcome, _ in outcomes} <= {"delivered", "failed", "held"}
    assert all(code is not None for outcome, code in outcomes if outcome != "delivered")
    assert scp.faults == []
    for number in range(20):
        shown = lane.sync(lambda c, key=f"in-{number}": inventory.show_item(c, key, lane.now()))
        details = shown["instances_detail"]
        assert all(one["status"] or one["comment"] or one["code"] for one in details)
        told: Counter[str] = Counter()
        for event in (one for one in shown["events"] if one["text"].startswith("to pacs: ")):
            for count, outcome in re.findall(r"(\d+) (failed|held)\b", event["text"]):
                told[outcome] += int(count)
        # Each that is not delivered ended with a sentence that says so, and why.
        assert told == Counter(one["outcome"] for one in details if one["outcome"] != "delivered")
    document = lane.sync(lambda c: inventory.reconcile(c, lambda _: True))
    assert document["instances"]["unaccounted"] == document["unaccounted"] == 0
    print(looks, "looks,", len(scp.given), "sends:", dict(outcomes))


async def test_one_black_hole_among_five_is_not_noticed_by_the_others(tmp_path: Path, lanes: list[Lane]) -> None:
    """It takes connections and says nothing; the others are done while it still hangs (R15)."""
    with contextlib.ExitStack() as stack:
        hole = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        peers = {f"pacs{n}": stack.enter_context(ScriptedScp()).port for n in range(4)}
        entities = {name: {"title": "PACS", "port": port} for name, port in peers.items()}
        entities["hole"] = {"title": "HOLE", "port": hole.getsockname()[1]}
        lane = Lane(tmp_path / "gw", entities)
        lanes.append(lane)
        lane.fill("in-1", study("1", 200), entities)
        stuck = asyncio.create_task(lane.store.look("hole"))
        started = time.monotonic()
        async with asyncio.timeout(60):
            await asyncio.gather(*(lane.store.look(name) for name in peers))
        assert not stuck.done()
        assert time.monotonic() - started < lane.configuration.ae["hole"].timeout.total_seconds()
        states = Counter((name, outcome) for _, name, outcome, _ in lane.parts("in-1"))
        assert states == {**{(name, "delivered"): 200 for name in peers}, ("hole", "waiting"): 200}
        lane.store.stop()
        await stuck
