"""A full disk: the sender is told to come again, nothing is lost, and it goes on by itself (R5)."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from daemon import Daemon
from messages import compose
from peer import need_root, program, wait_until
from samples import Samples
from storescp import Storescp

pytestmark = [pytest.mark.peer, pytest.mark.root]

SIZE = 24 << 20


@pytest.fixture
def pacs() -> Iterator[Storescp]:
    """A PACS."""
    with Storescp() as peer:
        yield peer


@pytest.fixture
def gateway(pacs: Storescp) -> Iterator[Daemon]:
    """A gateway whose data folder is a small disk; 12 MB of it must stay free."""
    need_root("mount a small disk")
    made = Daemon({"pacs": (pacs.title, pacs.port)}, '[limits]\nfree_space = "12 MB"\n')
    made.data.mkdir(mode=0o700)
    options = f"size={SIZE},mode=700"
    subprocess.run([program("mount"), "-t", "tmpfs", "-o", options, "tmpfs", str(made.data)], check=True)
    try:
        with made:
            yield made
            made.stop()
            subprocess.run([program("umount"), str(made.data)], check=True)
    finally:
        subprocess.run([program("umount"), "-l", str(made.data)], check=False, stderr=subprocess.DEVNULL)


def test_a_full_disk_turns_mail_away_for_now_and_takes_it_when_there_is_room(
    gateway: Daemon, pacs: Storescp, samples: Samples
) -> None:
    """452 4.3.1 and nothing else; what is queued goes on; one notice opens and closes (R5)."""
    pacs.stop()
    before, after = samples.fresh("CT_small.dcm"), samples.fresh("CT_small.dcm")
    first = gateway.mail(compose([before.file]))
    ballast = gateway.data / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(gateway.data).free - 10_000_000))

    message = compose([after.file])
    code, text = gateway.submit(message)
    assert (code, text[:5]) == (452, "4.3.1")
    assert gateway.proven()["in"] == 1
    wait_until(lambda: ("disk-low", "spool") in gateway.notices(), "a person is told")
    pacs.start()
    gateway.say("queue", "retry", first)
    gateway.await_item(first, "delivered")

    ballast.unlink()
    key = gateway.mail(message)
    gateway.await_item(key, "delivered")
    wait_until(lambda: ("disk-low", "spool") not in gateway.notices(), "the notice is closed")
    assert gateway.item(key)["duplicate_of"] is None
    received = pacs.instances()
    assert all(received[one.sop_instance] == one.data_set for one in (before, after))
    assert gateway.proven()["delivered"] == 2


def test_a_disk_that_is_full_to_the_last_byte_loses_nothing(gateway: Daemon, pacs: Storescp, samples: Samples) -> None:
    """Somebody else fills it while mail is read and sent: what was acknowledged arrives, without a person (R5, R6)."""
    fresh = list(samples.many(6))
    pacs.stop()
    taken = {gateway.mail(compose([one.file])): one for one in fresh[:3]}
    ballast = gateway.data / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:  # to the last byte
            file.write(bytes(1 << 16))
    code, text = gateway.submit(compose([fresh[3].file]))
    assert code in {451, 452}, text
    pacs.start()
    ballast.unlink()
    taken |= {gateway.mail(compose([one.file])): one for one in fresh[3:]}
    for key in taken:
        if gateway.item(key)["instances"] == 0:  # what met the full disk is read again, in half a minute or at a word
            gateway.say("queue", "retry", key)
        wait_until(lambda key=key: gateway.item(key)["instances"] == 1, "it is read")
    gateway.say("queue", "retry", next(iter(taken)))
    gateway.await_items(taken, "delivered")
    received = pacs.instances()
    assert all(received[one.sop_instance] == one.data_set for one in fresh)
    assert gateway.proven()["failed"] == 0
