"""What a monitoring system sees: health, metrics as Prometheus reads them, one page when it opens, one when it ends."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon
from messages import compose
from peer import Start, free_port, wait_until
from prometheus_client.parser import text_string_to_metric_families
from samples import Samples
from scripted_scp import Answer, ScriptedScp
from storescp import Storescp

pytestmark = pytest.mark.peer


def metrics(gateway: Daemon) -> dict[tuple[str, frozenset[str]], float]:
    """Every sample, by name and label values, as Prometheus's own parser reads them."""
    status, text = gateway.get("/metrics")
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(gateway: Daemon, name: str, *labels: str) -> float | None:
    """One number; None when it is not there."""
    return metrics(gateway).get((f"dicom_mail_{name}", frozenset(labels)))


def test_metrics_count_what_happened(start: Start, samples: Samples) -> None:
    """Prometheus can read it, every name has our prefix, and the numbers are those of reconcile (R33)."""
    pacs = start(Storescp())
    gateway = start(Daemon({"pacs": (pacs.title, pacs.port), "down": ("DOWN", free_port())}))
    gateway.await_item(gateway.mail(compose(one.file for one in samples.many(3))), "delivered")
    gateway.mail(compose([samples.fresh().file]), to="down@gateway.test")
    gateway.submit(compose([]), to="nobody@gateway.test")
    wait_until(lambda: value(gateway, "items", "waiting") == 1, "the census is taken")
    assert value(gateway, "items", "delivered") == 1
    assert value(gateway, "instances", "pacs", "delivered") == 3
    assert value(gateway, "smtp_accepted_total") == 2
    assert value(gateway, "smtp_refusals_total", "5yz") == 1
    wait_until(lambda: value(gateway, "destination_up", "down") == 0, "the outage is seen")
    assert value(gateway, "destination_up", "pacs") == 1
    oldest = value(gateway, "oldest_waiting_seconds", "down")
    assert oldest is not None
    assert oldest > 0
    assert value(gateway, "oldest_waiting_seconds", "pacs") == 0
    assert value(gateway, "door_open", "smtp") == 1
    assert value(gateway, "log_values_withheld_total") == 0
    before = value(gateway, "heartbeat_seconds")
    wait_until(lambda: value(gateway, "heartbeat_seconds") != before, "the heart beats", 10)
    assert all(name.startswith("dicom_mail_") for name, _ in metrics(gateway))


def test_ready_says_no_while_it_stops_and_live_says_yes(start: Start, samples: Samples) -> None:
    """/health/ready is 503 from SIGTERM on, while what is on the wire may still finish; /health/live is not."""
    with ScriptedScp(Answer(act="silence")) as pacs:
        gateway = start(Daemon({"pacs": ("SILENT", pacs.port)}, '[limits]\nstop = "3s"\nfree_space = "50 MB"\n'))
        assert gateway.get("/health/ready")[0] == 200
        assert gateway.get("/health/live")[0] == 200
        gateway.mail(compose([samples.fresh().file]))
        wait_until(lambda: pacs.seen, "one image is on the wire")
        gateway.signal(signal.SIGTERM)
        wait_until(lambda: gateway.get("/health/ready") == (503, "shut: smtp\n"), "it is not ready", 3)
        assert gateway.get("/health/live")[0] == 200
        assert gateway.wait(10) == 0


class Pages:
    """A webhook on loopback that keeps what is posted."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        pages = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                pages.told.append(json.loads(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/page"
        self.thread = threading.Thread(target=self.server.serve_forever)


@pytest.fixture
def pages() -> Iterator[Pages]:
    """A running webhook."""
    made = Pages()
    made.thread.start()
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


def test_a_notice_is_one_page_when_it_opens_and_one_when_it_closes(start: Start, pages: Pages, tmp_path: Path) -> None:
    """R33: to the webhook and to the command alike, however often the gateway looks and the PACS says no."""
    told = tmp_path / "told"
    command = tmp_path / "page"
    command.write_text(f"#!/bin/sh\ncat >> {told}\n", "utf-8")
    command.chmod(0o755)
    pacs = start(Storescp("--refuse"))
    sections = f'[notice]\nwebhook = "{pages.url}"\ncommand = "{command}"\n'
    gateway = start(Daemon({"pacs": (pacs.title, pacs.port)}, sections))
    key = gateway.mail(compose([b"no image"]))
    gateway.await_item(key, "held")
    wait_until(lambda: pages.told, "the page that it opened")
    assert gateway.say("queue", "drop", key).returncode == 0
    wait_until(lambda: len(pages.told) == 2, "the page that it closed")
    wait_until(lambda: told.exists() and told.read_text("utf-8").count("\n") == 2, "the command had both")
    assert [one["state"] for one in pages.told] == ["open", "closed"]
    assert {(one["kind"], one["about"], one["gateway"]) for one in pages.told} == {("held", key, "gateway.test")}
    assert pages.told[0]["do"]
    assert pages.told[1]["closed"]
    assert [json.loads(line) for line in told.read_text("utf-8").splitlines()] == pages.told


def test_a_dead_webhook_delays_nothing(start: Start, samples: Samples) -> None:
    """Whom nobody can page is shown all the same, and mail goes on."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        pacs = start(Storescp())
        sections = f'[notice]\nwebhook = "http://127.0.0.1:{mute.getsockname()[1]}/"\n'
        gateway = start(Daemon({"pacs": (pacs.title, pacs.port)}, sections))
        held = gateway.mail(compose([b"no image"]))
        gateway.await_item(held, "held")
        wait_until(lambda: ("held", held) in gateway.notices(), "it is shown")
        gateway.await_item(gateway.mail(compose([samples.fresh().file])), "delivered", 5)
        gateway.signal(signal.SIGTERM)
        assert gateway.wait(10) == 0
