"""SIGHUP: what changed in the configuration is taken over while mail keeps coming; a bad file changes nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from daemon import Daemon
from messages import compose
from peer import Start, free_port, wait_until
from samples import Samples
from storescp import Storescp

pytestmark = pytest.mark.peer


@pytest.fixture
def pacs() -> Iterator[Storescp]:
    """A PACS."""
    with Storescp() as peer:
        yield peer


def reload(gateway: Daemon, event: str = "reloaded") -> None:
    """Send SIGHUP and wait until the log says what came of it."""
    before = len(gateway.logged(event))
    gateway.signal(signal.SIGHUP)
    wait_until(lambda: len(gateway.logged(event)) > before, event)


def test_a_new_destination_route_and_partner_are_taken_over(start: Start, pacs: Storescp, samples: Samples) -> None:
    """Nobody restarts a gateway for a new clinic."""
    gateway = start(Daemon({"pacs": (pacs.title, pacs.port)}))
    message = compose([samples.fresh().file], sender="images@clinic-b.test")
    assert gateway.submit(message, to="new@gateway.test")[1].startswith("5.1.1")
    more = f"""
[partner.clinic-a]
address = "*@clinic-a.test"
accept = "any"
[partner.clinic-b]
address = "*@clinic-b.test"
accept = "any"
[[route]]
name = "new"
from = "clinic-b"
to = "new@gateway.test"
store = ["new"]
[ae.new]
title = "{pacs.title}"
host = "127.0.0.1"
port = {pacs.port}
"""
    gateway.configure({}, more)
    reload(gateway)
    gateway.await_item(gateway.mail(message, to="new@gateway.test"), "delivered")


def test_a_bad_file_keeps_the_old_configuration_and_says_why(start: Start, pacs: Storescp, samples: Samples) -> None:
    """R32: the intake of a running service never stops for a typing error; the log names the key."""
    gateway = start(Daemon({"pacs": (pacs.title, pacs.port)}))
    good = gateway.config.read_text("utf-8")
    for bad, word in (
        (good.replace("postmaster", "postmistress"), "postmistress"),
        (good + "[", "gateway.toml"),
        (good.replace('store = ["pacs"]', 'store = ["nowhere"]'), "nowhere"),
    ):
        gateway.config.write_text(bad, "utf-8")
        before = len(gateway.logged("reload_refused"))
        reload(gateway, "reload_refused")
        assert word in str(gateway.logged("reload_refused")[before:])
    gateway.config.write_text(good, "utf-8")
    gateway.await_item(gateway.mail(compose([samples.fresh().file])), "delivered")
    assert gateway.logged("reloaded") == []


def test_work_for_a_removed_destination_is_held_until_it_is_back(
    start: Start, pacs: Storescp, samples: Samples
) -> None:
    """Nothing is dropped and nothing waits for ever: a person decides, and a notice says so."""
    down = free_port()
    both = {"pacs": (pacs.title, pacs.port), "down": ("DOWN", down)}
    gateway = start(Daemon(both))
    fresh = samples.fresh()
    key = gateway.mail(compose([fresh.file]), to="down@gateway.test")
    wait_until(lambda: gateway.item(key)["instances"] == 1, "it is read")
    gateway.configure({"pacs": (pacs.title, pacs.port)})
    reload(gateway)
    item = gateway.await_item(key, "held")
    assert item["code"] == "destination-removed"
    assert ("held", key) in gateway.notices()
    gateway.proven()
    gateway.configure({"pacs": (pacs.title, pacs.port), "down": (pacs.title, pacs.port)})
    reload(gateway)
    assert gateway.say("queue", "release", key).returncode == 0
    gateway.await_item(key, "delivered")
    assert pacs.instances()[fresh.sop_instance] == fresh.data_set


def test_what_needs_a_restart_is_named(start: Start, pacs: Storescp, samples: Samples) -> None:
    """And stays as it was until then: mail goes on into the old data folder. The rest is taken over all the same."""
    gateway = start(Daemon({"pacs": (pacs.title, pacs.port)}))
    text = gateway.config.read_text("utf-8").replace("50 MB", "60 MB").replace('data = "data"', 'data = "elsewhere"')
    gateway.config.write_text(text.replace("pacs@gateway.test", "images@gateway.test"), "utf-8")
    reload(gateway)
    assert [line["key"] for line in gateway.logged("needs_restart")] == ["gateway.data", "limits.free_space"]
    key = gateway.mail(compose([samples.fresh().file]), to="images@gateway.test")
    gateway.configure({"pacs": (pacs.title, pacs.port)})  # the command line looks where the file says
    gateway.await_item(key, "delivered")
    assert not (gateway.folder / "elsewhere").exists()
