"""SIGHUP and SIGTERM at the DICOM door, with DCMTK's storescu as the sender: nothing that was acknowledged is lost."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from daemon import Daemon
from pacs import NODELAY, resized
from peer import Start, free_port, program, wait_until
from pki import Holder, Wish, authority, issue
from samples import Fresh, Samples

pytestmark = pytest.mark.peer

SECTIONS = """
[gateway]
name = "gw.hospital.test"
postmaster = "it@hospital.test"
data = "data"

[storescp]
title = "GATEWAY"
listen = "127.0.0.1:{dicom}"
{door}

[relay]
host = "127.0.0.1"
port = 9
tls = "none"
sender = "dicom@hospital.test"

[partner.clinic-b]
address = "pacs@clinic-b.test"
send = "plain"

[[route]]
name = "out"
called = "{called}"
mail = ["clinic-b"]
quiet = "1h"
"""


class Sender:
    """storescu, and the images it sends."""

    def __init__(self, folder: Path, images: Sequence[Fresh], port: int) -> None:
        self.port = port
        self.paths = []
        for image in images:
            self.paths.append(str(folder / image.sop_instance))
            Path(self.paths[-1]).write_bytes(resized(image.file, 400_000))

    def command(self, called: str, *options: str) -> list[str]:
        """Send all in one association."""
        return [program("storescu"), "-v", *options, "-aec", called, "127.0.0.1", str(self.port), *self.paths]

    def send(self, called: str, *options: str) -> tuple[int, str]:
        """Return the exit code, and what it said."""
        command = self.command(called, *options)
        done = subprocess.run(command, env=NODELAY, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout + done.stderr


def sections(dicom: int, called: str = "OUT", door: str = "") -> str:
    """The configuration; the relay is away, and its mails wait."""
    return SECTIONS.format(dicom=dicom, called=called, door=door)


def reload(gateway: Daemon, text: str) -> None:
    """Write another configuration, send SIGHUP, and wait until it is taken over."""
    gateway.configure({}, text)
    before = len(gateway.logged("reloaded"))
    gateway.signal(signal.SIGHUP)
    wait_until(lambda: len(gateway.logged("reloaded")) > before, "reloaded")


def taken(gateway: Daemon) -> int:
    """Instances in the collections of the queue."""
    return sum(item["instances"] for item in gateway.view("list")["items"])


def test_titles_and_callers_and_addresses_are_taken_over(start: Start, samples: Samples, tmp_path: Path) -> None:
    """For associations that begin from then on; nobody restarts a gateway for a new modality."""
    dicom = free_port()
    gateway = start(Daemon({}, sections(dicom)))
    sender = Sender(tmp_path, [samples.fresh("CT_small.dcm")], dicom)
    assert sender.send("OUT")[0] == 0
    assert "Called AE Title Not Recognized" in sender.send("NEW")[1]
    reload(gateway, sections(dicom, called="NEW"))
    assert sender.send("NEW")[0] == 0
    assert "Called AE Title Not Recognized" in sender.send("OUT")[1]
    reload(gateway, sections(dicom, door='callers = ["CT7"]\nassociations = 2\nmax_pdu = 16384'))
    assert "Calling AE Title Not Recognized" in sender.send("OUT")[1]
    assert sender.send("OUT", "-aet", "CT7")[0] == 0
    reload(gateway, sections(dicom, door='addresses = ["192.0.2.0/24"]'))
    assert sender.send("OUT", "-aet", "CT7")[0] != 0
    assert gateway.logged("needs_restart") == []
    reload(gateway, sections(dicom))
    assert sender.send("OUT")[0] == 0
    gateway.proven()


def test_a_new_certificate_is_shown_from_then_on(start: Start, samples: Samples, tmp_path: Path) -> None:
    """Under the same name, as a certificate is renewed."""
    dicom, old, new = free_port(), authority("Old CA"), authority("New CA")
    trust = {"old": old.write(tmp_path, "old")[0], "new": new.write(tmp_path, "new")[0]}

    def show(issuer: Holder) -> tuple[Path, Path]:
        return issue(Wish(address=None, purposes=None, name="127.0.0.1"), issuer).write(tmp_path, "shown")

    certificate, key = show(old)
    text = sections(dicom, door=f'tls = {{ certificate = "{certificate}", key_file = "{key}" }}')
    gateway = start(Daemon({}, text))
    sender = Sender(tmp_path, [samples.fresh("CT_small.dcm")], dicom)

    def sent(trusted: str) -> bool:
        return sender.send("OUT", "+tla", "+cf", str(trust[trusted]))[0] == 0

    assert (sent("old"), sent("new")) == (True, False)
    show(new)
    reload(gateway, text)
    assert (sent("old"), sent("new")) == (False, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_what_was_acknowledged_is_there_after_a_stop(
    start: Start, samples: Samples, tmp_path: Path, number: signal.Signals
) -> None:
    """R20: in the middle of an association; the instance that is coming may be finished, and then counts."""
    dicom = free_port()
    gateway = start(Daemon({}, sections(dicom)))
    sender = Sender(tmp_path, [samples.fresh("CT_small.dcm") for _ in range(60)], dicom)
    log = tmp_path / "storescu.log"
    with log.open("wb") as out:
        running = subprocess.Popen(sender.command("OUT"), env=NODELAY, stdout=out, stderr=subprocess.STDOUT)

        def acknowledged() -> int:
            return log.read_text("utf-8", "replace").count("Received Store Response (Success)")

        wait_until(lambda: acknowledged() >= 5, "some are acknowledged")
        gateway.signal(number)
        code = gateway.wait()
        assert running.wait(60) != 0
    assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    told = acknowledged()
    assert 5 <= told < 60
    start(gateway)
    # One more may be ours than the sender was told of: its answer was on the way.
    assert taken(gateway) - told in {0, 1}
    gateway.proven()
    assert sender.send("OUT")[0] == 0
    assert taken(gateway) == 60
