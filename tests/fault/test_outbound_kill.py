"""kill -9 at every step from a C-STORE to the relay: what was acknowledged is in the mails (R20, R26)."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import hashlib
import io
import itertools
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from daemon import Daemon
from doom import doomed
from peer import Start, free_port, program, wait_until
from samples import Fresh, Samples
from scripted_relay import ScriptedRelay

pytestmark = pytest.mark.peer

CUSTODY = [
    *(("fsync", number) for number in (1, 2)),  # the folder that gets the segment, and its own
    *(("fdatasync", number) for number in (1, 2, 3, 4)),  # the image; commits: custody, the ticket, completion
    ("sendto", 3),  # in the dialog with the modality
]
WAY_OUT = [
    ("rename", 1),  # the mail gets its name
    *(("fsync", number) for number in (3, 4)),  # the mail, its folder
    *(("fdatasync", number) for number in (5, 6, 7, 8)),  # composed, marked, what the relay said
    *(("sendto", number) for number in (8, 10, 12)),  # in the dialog with the relay
]
SECTIONS = """
[storescp]
title = "GATEWAY"
listen = "127.0.0.1:{dicom}"

[relay]
host = "127.0.0.1"
port = {relay}
tls = "none"
sender = "dicom@gateway.test"

[partner.clinic-a]
address = "dicom@clinic-a.test"
send = "plain"

[[route]]
name = "out"
called = "OUT"
mail = ["clinic-a"]
quiet = "100ms"
"""


@contextlib.contextmanager
def relay() -> Iterator[ScriptedRelay]:
    """A relay that takes everything, on a loop and in a thread of its own."""
    scripted, ready, loop = ScriptedRelay(), threading.Event(), asyncio.new_event_loop()
    over: list[asyncio.Event] = []

    async def serve() -> None:
        over.append(asyncio.Event())
        async with scripted.serving():
            ready.set()
            await over[0].wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    assert ready.wait(10)
    yield scripted
    loop.call_soon_threadsafe(over[0].set)
    thread.join(10)
    loop.close()


def store(port: int, file: Path) -> bool:
    """Send one image as a modality does; tell whether it was acknowledged."""
    command = [program("storescu"), "-aet", "CT1", "-aec", "OUT", "-to", "5", "127.0.0.1", str(port), str(file)]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


def carried(content: bytes) -> list[bytes]:
    """The DICOM files of a mail, without its DICOMDIR."""
    message = email.message_from_bytes(content, policy=email.policy.default)
    parts = [one for one in message.walk() if one.get_content_type() == "application/dicom"]
    return [one.get_payload(decode=True) for one in parts if one.get_param("id") != "DICOMDIR"]  # type: ignore[misc]


def image(file: bytes) -> tuple[str, str]:
    """What an image is: its UID and its pixels. storescu writes the lengths of other elements anew."""
    opened = pydicom.dcmread(io.BytesIO(file))
    return opened.SOPInstanceUID, hashlib.sha256(opened.PixelData).hexdigest()


def test_a_kill_at_any_step_keeps_every_acknowledged_image(start: Start, samples: Samples, tmp_path: Path) -> None:
    """R20, R26: in the mails, with its bytes; a mail that comes twice is the same mail; and the proof holds."""
    port = free_port()
    with relay() as scripted:
        gateway = start(Daemon({}, SECTIONS.format(dicom=port, relay=scripted.port)))
        sent: list[Fresh] = []
        killed = []
        for number, (call, when) in enumerate(itertools.chain(CUSTODY, WAY_OUT)):
            one = samples.fresh("CT_small.dcm")
            sent.append(one)
            file = tmp_path / f"{number}.dcm"
            file.write_bytes(one.file)
            before = len(scripted.mails)
            with doomed(gateway, call, when):
                acknowledged = store(port, file)
                assert gateway.process is not None
                with contextlib.suppress(pytest.fail.Exception):
                    wait_until(lambda: gateway.ended() or len(scripted.mails) > before, "killed, or mailed", 3)  # noqa: B023
                with contextlib.suppress(subprocess.TimeoutExpired):
                    gateway.process.wait(0.5)
            if gateway.ended():
                gateway.wait()
                killed.append((call, when))
                gateway.proven()
                gateway.start()
            if not acknowledged:
                assert store(port, file)
        print("killed at", killed)
        assert {call for call, _ in killed} >= {"rename", "fsync", "fdatasync", "sendto"}

        def all_out() -> bool:
            waiting = gateway.view("list", outcome="waiting")["items"]
            for item in waiting:
                gateway.say("queue", "retry", item["id"])
            return not waiting

        wait_until(all_out, "everything is with the relay", 60)
        proof = gateway.proven()
        assert proof["delivered"] == proof["in"]
        found = {image(file) for content in scripted.mails for file in carried(content)}
        assert {image(one.file) for one in sent} <= found
        by_id: dict[str, set[bytes]] = {}
        for content in scripted.mails:
            by_id.setdefault(str(email.message_from_bytes(content)["Message-ID"]), set()).add(content)
        assert {len(contents) for contents in by_id.values()} == {1}
        assert len(scripted.mails) - len(by_id) <= len(killed)
