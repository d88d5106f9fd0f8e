"""kill -9, at every step that makes custody true and at random: what was acknowledged is never lost (R1, R26, R27)."""

from __future__ import annotations

import contextlib
import smtplib
import subprocess
import sys

import pytest
from daemon import ROOT, Daemon
from doom import doomed
from messages import compose
from peer import Start, wait_until
from samples import Fresh, Samples
from storescp import Storescp

pytestmark = pytest.mark.peer

STEPS = [
    ("mkdir", 1),  # the folder of the hour, when it is new
    ("rename", 1),  # the message gets its name
    ("rename", 2),  # its instances get theirs
    *(("fsync", number) for number in (1, 2, 3)),  # the message, its folder, its instances
    *(("fdatasync", number) for number in (1, 2, 3, 4)),  # commits: custody, decision, marks, outcomes
    ("sendto", 4),  # somewhere in the dialog
    ("sendto", 9),
]
"""System calls at whose n-th time in one thread, counted from an idle gateway on, the power goes."""


def hand_over(gateway: Daemon, message: bytes) -> bool:
    """Try once, as a sender does; tell whether it was acknowledged."""
    with contextlib.suppress(OSError, smtplib.SMTPException):
        return gateway.submit(message)[0] == 250
    return False


def test_a_kill_at_any_step_loses_nothing_that_was_acknowledged(start: Start, samples: Samples) -> None:
    """R1, R26: at each step the mail is acknowledged and there, or not acknowledged, and the sender comes again."""
    pacs = start(Storescp())
    gateway = start(Daemon({"pacs": (pacs.title, pacs.port)}))
    mailed: list[Fresh] = []
    killed = []
    for call, number in STEPS:
        one = samples.fresh("CT_small.dcm")
        mailed.append(one)
        message = compose([one.file])
        with doomed(gateway, call, number):
            acknowledged = hand_over(gateway, message)
            assert gateway.process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                gateway.process.wait(2)
        if gateway.ended():
            gateway.wait()
            killed.append((call, number))
            gateway.proven()
            if acknowledged:
                assert gateway.view("reconcile")["in"] >= len(mailed)
            gateway.start()
        if not acknowledged:
            assert hand_over(gateway, message)
        wait_until(lambda: gateway.view("reconcile")["instances"]["in"] == len(mailed), "it is read, once", 20)
    print("killed at", killed)
    # Some steps are not reached by every mail; the ones that make custody true are.
    for needed in (("rename", 1), ("fsync", 1), ("fdatasync", 1), ("fdatasync", 2)):
        assert needed in killed

    doubts = gateway.view("reconcile")["instances"]["doubtful"]
    assert doubts <= len(killed)
    for item in gateway.view("list", outcome="waiting")["items"]:
        gateway.say("queue", "retry", item["id"])
    wait_until(lambda: gateway.view("reconcile")["waiting"] == 0, "everything is delivered")
    received = pacs.instances()
    assert received == {one.sop_instance: one.data_set for one in mailed}
    proof = gateway.proven()
    assert proof["delivered"] == proof["in"]
    assert len(pacs.files()) <= len(mailed) + doubts


def test_a_crash_loop_uses_up_no_tries(start: Start, samples: Samples) -> None:
    """R27: killed again and again right after its start, it sends nothing in doubt, and in the end all of it."""
    pacs = start(Storescp())
    pacs.stop()
    gateway = start(Daemon({"pacs": (pacs.title, pacs.port)}))
    fresh = list(samples.many(3))
    key = gateway.mail(compose(one.file for one in fresh))
    wait_until(lambda: gateway.item(key)["instances"] == 3, "it is read")
    gateway.kill()
    pacs.start()
    for _ in range(6):
        gateway.start()
        gateway.kill()
    item = gateway.item(key)
    assert item["outcome"] == "waiting"
    assert {(one["sends"], one["sends_unknown"]) for one in item["instances_detail"]} == {(0, 0)}
    gateway.start()
    gateway.await_item(key, "delivered")
    assert len(pacs.files()) == 3


def test_random_kills_under_load_lose_nothing() -> None:
    """R26, R34: the soak in small: ten senders, a real PACS, and the power goes three times."""
    soak = [sys.executable, str(ROOT / "tests" / "fault" / "kill.py")]
    sizes = ["--mails", "20", "--instances", "60", "--kills", "3", "--pause", "0.5", "--hurry"]
    path = f"{ROOT}:{ROOT / 'tests' / 'peers'}"
    done = subprocess.run(
        [*soak, *sizes], env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=120,
        check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
