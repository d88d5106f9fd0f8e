"""What a large message costs in memory: nothing that grows with it (R7)."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemon import Daemon
from messages import compose
from peer import Start
from samples import Samples
from storescp import Storescp

from tests.bench.footprint import memory, submit, write_message

MEGABYTE = 1_000_000


@pytest.mark.peer
def test_a_large_message_costs_no_more_memory_than_a_small_one(start: Start, samples: Samples, tmp_path: Path) -> None:
    """200 MB in one part, accepted, read and forwarded: gateway and worker together grow by less than 30 MB."""
    pacs = start(Storescp("--ignore"))
    gateway = start(Daemon({"pacs": (pacs.title, pacs.port)}))
    gateway.await_item(gateway.mail(compose([samples.fresh().file])), "delivered")
    idle = memory(gateway.pid(), "VmRSS")
    message = tmp_path / "large.eml"
    write_message(message, 150 * MEGABYTE)
    assert message.stat().st_size > 200 * MEGABYTE
    submit(gateway.port, message)
    [large, _] = gateway.view("list")["items"]
    gateway.await_item(large["id"], "delivered", 60)
    assert memory(gateway.pid(), "VmHWM") - idle < 30 * MEGABYTE
