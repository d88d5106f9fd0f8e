"""A backup under load, restored elsewhere: nothing is missing, and nothing goes out again until a person says so."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from daemon import Daemon
from messages import compose
from peer import Start, wait_until
from samples import Samples
from storescp import Storescp

pytestmark = pytest.mark.peer


def test_a_backup_under_load_is_restored_elsewhere_and_sends_nothing_again_until_it_may(
    start: Start, samples: Samples, tmp_path: Path
) -> None:
    """R34: while mail comes in, is read, sent and purged. What was sent after it goes out once a person resumes."""
    pacs = start(Storescp())
    limits = '[limits]\nfree_space = "50 MB"\nretention = "1s"\nremember = "1s"\n'
    gateway = start(Daemon({"pacs": (pacs.title, pacs.port)}, limits))
    before = [gateway.mail(compose([samples.fresh().file])) for _ in range(5)]
    gateway.await_items(before, "delivered")
    gateway.say("queue", "pause", "pacs")
    waiting = [gateway.mail(compose([samples.fresh().file])) for _ in range(3)]
    wait_until(lambda: all(gateway.item(key)["instances"] == 1 for key in waiting), "they are read")

    stop = threading.Event()
    during: list[str] = []

    def load() -> None:
        while not stop.is_set():
            during.append(gateway.mail(compose([samples.fresh().file])))

    thread = threading.Thread(target=load)
    thread.start()
    try:
        wait_until(lambda: len(during) > 3, "mail comes in")
        made = gateway.say("backup", str(tmp_path / "backup"), "--json")
    finally:
        stop.set()
        thread.join()
    assert made.returncode == 0, made.stderr
    gateway.say("queue", "resume", "--all")
    gateway.await_items(set(waiting) | set(during), "delivered")
    sent = len(pacs.instances())
    gateway.proven()
    gateway.stop()

    other = Daemon({"pacs": (pacs.title, pacs.port)}, limits)
    shutil.copytree(tmp_path / "backup", other.data)
    (other.data / "gateway.toml").unlink()
    # A backup knows of no person's pause: here it carries one, and resuming ends it all the same.
    start(other)
    wait_until(lambda: ("restored", "lanes") in other.notices(), "a person is told")
    restored = {one["id"]: one["outcome"] for one in other.view("list")["items"]}
    assert {restored[key] for key in waiting} == {"waiting"}
    assert [one["paused"] for one in other.view("list")["destinations"]] == [True]
    assert other.proven()["unaccounted"] == 0
    story = other.say("explain", waiting[0])
    assert "Nothing is sent to pacs: a person paused it, or the gateway did at its start." in story.stdout
    fresh = other.mail(compose([samples.fresh().file]))  # intake goes on
    other.kill()
    other.start()  # a second start lets nothing go either
    wait_until(lambda: other.item(fresh)["stage"] == "store", "it was read")
    assert len(pacs.instances()) == sent

    assert other.say("queue", "resume", "pacs").returncode == 0
    other.await_items([fresh, *waiting], "delivered")
    assert other.notices() == set()
    assert other.proven()["unaccounted"] == 0
    assert len(pacs.instances()) == sent + 1  # what came again is the same instance
