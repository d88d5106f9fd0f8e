"""The first hour, as its page tells it: the page's own commands, on an empty folder, with a real PACS and OpenSSL.

What a person changes in between, the test changes: addresses and ports that are free here, and the relay's authority.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import smtplib
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from email import message_from_bytes
from io import BytesIO
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from door import certificate
from messages import compose
from pacs import NODELAY
from partners import chain, encrypt, entity_of, mail, openssl, person, sign
from peer import Start, answers, free_port, program, wait_until
from pki import Holder, root
from pydicom import dcmread
from samples import Samples, data_set, sop_instance
from scripted_relay import ScriptedRelay
from storescp import Storescp

from gateway.core.cms.candidate import fingerprint

pytestmark = pytest.mark.peer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/first-hour.md").read_text(encoding="utf-8")
PARTNER = "dicom@clinic-a.example"


def command(verb: str) -> list[str]:
    """The page's own command for a verb, options and all."""
    text = PAGE.replace("\\\n", " ")
    found = [line for line in re.findall(r"^dicom-mail (.*)$", text, re.MULTILINE) if line.startswith(verb)]
    assert found, f"the page shows no dicom-mail {verb}"
    return shlex.split(max(found, key=len))


class Machine:
    """An empty machine with the program installed: a folder, and commands typed in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def type(self, words: list[str]) -> str:
        """Type a command that must go well; return what it says."""
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def serve(self, door: int) -> Iterator[None]:
        """Keep `dicom-mail run` running."""
        begun = [sys.executable, "-m", "gateway", *command("run")]
        with (
            (self.folder / "log").open("wb") as log,
            subprocess.Popen(
                begun, cwd=self.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log
            ) as process,
        ):
            try:
                wait_until(lambda: answers(door) or process.poll() is not None, "it serves")
                assert process.poll() is None, (self.folder / "log").read_text()
                yield
            finally:
                process.terminate()
                process.wait(30)


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    """A relay with STARTTLS that takes everything, on a loop of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate())
    greeting = "250-relay.test\r\n250-SIZE 40000000\r\n250-STARTTLS\r\n250 ENHANCEDSTATUSCODES"
    loop, made = asyncio.new_event_loop(), ScriptedRelay({"EHLO": greeting}, tls=context)
    ready, over = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with made.serving():
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(30)
    yield made
    loop.call_soon_threadsafe(over.set)
    thread.join(30)
    loop.close()


def test_a_study_goes_each_way_an_hour_after_the_page_was_opened(
    start: Start, relay: ScriptedRelay, samples: Samples, tmp_path: Path
) -> None:
    """Init, import, check, run, a study each way, the proof: nothing else than the page says."""
    machine, pacs, partner = Machine(tmp_path), start(Storescp()), person(PARTNER, "rsa-2048/partner")
    smtp, dicom = free_port(), free_port()
    assert machine.type(command("version")).startswith("dicom-mail ")

    words = [
        word.replace("127.0.0.1:11112:PACS", f"127.0.0.1:{pacs.port}:{pacs.title}").replace(":1025", f":{relay.port}")
        for word in command("init")
    ]
    said = machine.type(words)
    assert "dicom-mail check" in said
    path = tmp_path / "gateway.toml"
    text = path.read_text()
    for shipped, here in (
        ('"0.0.0.0:25"', f'"127.0.0.1:{smtp}"'),
        ('"0.0.0.0:11112"', f'"127.0.0.1:{dicom}"'),
        ('"127.0.0.1:8080"', f'"127.0.0.1:{free_port()}"'),
        ('tls = "starttls"', f'tls = "starttls"\nca = "{certificate()}"'),
        ('quiet = "60s"', 'quiet = "1s"'),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    path.write_text(text)

    (tmp_path / "clinic-a.pem").write_bytes(chain(partner))
    (tmp_path / "trust/authority.pem").write_bytes(root().certificate.public_bytes(Encoding.PEM))
    approved = ["--yes", "--fingerprint", fingerprint(partner.certificate)]
    machine.type([*command("partner import"), *approved])
    lines = machine.type(command("check")).splitlines()
    assert [line for line in lines if line.startswith(("problem", "no answer"))] == []

    own = x509.load_pem_x509_certificate((tmp_path / "gateway.pem").read_bytes())
    with machine.serve(smtp):
        incoming = samples.fresh("CT_small.dcm").file
        work = tmp_path / "work"
        work.mkdir()
        sealed = mail(encrypt(sign(entity_of(compose([incoming])), partner, work), own, work), sender=PARTNER)
        with smtplib.SMTP("127.0.0.1", smtp, timeout=30) as wire:
            wire.sendmail(PARTNER, ["pacs@gw.hospital.example"], sealed)
        wait_until(lambda: sop_instance(incoming) in pacs.instances(), "the partner's image is in the PACS")
        [stored] = [dcmread(BytesIO(file)) for file in pacs.files() if sop_instance(file) == sop_instance(incoming)]
        assert stored.PixelData == dcmread(BytesIO(incoming)).PixelData
        assert stored.IssuerOfPatientID == "CLINIC-A"

        outgoing = samples.fresh("CT_small.dcm").file
        (work / "image.dcm").write_bytes(outgoing)
        # storescu rewrites a little of what it sends: it shows the PACS the same.
        for title, port in (("OPINION", dicom), (pacs.title, pacs.port)):
            words = [program("storescu"), "-aec", title, "127.0.0.1", str(port), str(work / "image.dcm")]
            subprocess.run(words, env=NODELAY, check=True)
        wait_until(lambda: relay.mails, "the mail to the partner is at the relay")
        assert opened(relay.mails[0], partner, work) == pacs.instances()[sop_instance(outgoing)]
        wait_until(lambda: "waiting" not in machine.type(command("queue list")), "both are delivered")
        story = machine.type(command("queue list"))
        [first, *_] = re.findall(r"\b(?:in|out)-[\w-]+", story)
        assert first in machine.type([first if word == "ID" else word for word in command("queue show")])
    proof = machine.type(command("reconcile"))
    assert "unaccounted" in proof


def opened(message: bytes, partner: Holder, work: Path) -> bytes:
    """What the partner's OpenSSL makes of a mail: decrypted, verified, its one image's data set."""
    (work / "mail").write_bytes(message)
    public, secret = partner.write(work, "partner")
    openssl("cms", "-decrypt", "-in", work / "mail", "-recip", public, "-inkey", secret, "-out", work / "signed")
    openssl("cms", "-verify", "-noverify", "-in", work / "signed", "-out", work / "content")
    parts = message_from_bytes((work / "content").read_bytes()).walk()
    [image] = [part for part in parts if part.get_content_type() == "application/dicom" and "DICOMDIR" not in str(part)]
    content = image.get_payload(decode=True)
    assert isinstance(content, bytes)
    return data_set(content)
