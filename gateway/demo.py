"""The demo: the real program on loopback, real images by mail, and the story of what became of them.

It starts ``python -m gateway run`` as anybody would, beside a small PACS of its own, mails what pydicom ships, and
plays what happens in a hospital: images labelled badly, one cut off on its way, a stranger, a mail that comes twice, a
PACS that is away for a while, a modality that sends a study to another clinic. In the end it holds what the PACS and
the clinic got against what was sent, byte for byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import shutil
import signal
import smtplib
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

import pydicom
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, evt
from pynetdicom.transport import ThreadedAssociationServer
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gateway import control
from gateway.config import ApplicationEntity, Configuration, load
from gateway.core import contexts
from gateway.errors import GatewayError
from gateway.model import Outcome

SAMPLES: Final = Path(pydicom.__file__).parent / "data" / "test_files"
"""Real images that lie in the package. Never asked for by pydicom's own functions: those download what is missing."""

TITLE: Final = "PACS"
"""AE title of the PACS we bring along."""

UID_VERIFICATION: Final = contexts.VERIFICATION[0]

SENDER: Final = "dicom@clinic-a.example"
STRANGER: Final = "somebody@elsewhere.example"
RECIPIENT: Final = "pacs@gw.demo.example"
CLINIC: Final = "dicom@clinic-b.example"

CALLED: Final = "OPINION"
"""AE title that a modality sends to when the images are for the other clinic."""

STUDY: Final = "dicomdirtests/77654033/CT2"
"""What it sends: a few images of one study, below the folder of samples."""

START_PATIENCE: Final = 30.0
STORY_PATIENCE: Final = 40.0
"""Seconds until what should have happened counts as not happened."""

STOP_PATIENCE: Final = 15.0
"""Seconds that the gateway may take to end."""

LOOK_EVERY: Final = 0.15
WIDTH: Final = 80

CONFIGURATION: Final = """\
# Written by `dicom-mail demo`. A real one: dicom-mail --config FILE check

[gateway]
name = "gw.demo.example"
postmaster = "it@demo.example"
data = "data"

[limits]
free_space = "100 MB"               # a demo may run on a full disk; in earnest leave this out

[smtp]
listen = "127.0.0.1:{smtp}"

[console]
listen = "127.0.0.1:{http}"

[ae.pacs]
title = "{entity.title}"
host = "{entity.host}"
port = {entity.port}
timeout = "10s"

[partner.clinic-a]
address = "{sender}"
accept = "any"                      # unsigned mail: for a demo, not for a hospital
peers = ["127.0.0.1"]

[storescp]
title = "GATEWAY"
listen = "127.0.0.1:{dicom}"

[relay]
host = "127.0.0.1"
port = {relay}
tls = "none"
sender = "dicom@demo.example"

[partner.clinic-b]
address = "{clinic}"
send = "plain"                      # in the clear: for a demo, not for a hospital

[[route]]
name = "teleradiology in"
from = "clinic-a"
store = ["pacs"]

[[route]]
name = "second opinion out"
called = "{called}"
mail = ["clinic-b"]
quiet = "1s"
"""


def run(serve: bool, pacs: ApplicationEntity | None = None) -> int:
    """Play the demo.

    Args:
        serve: Keep everything running afterwards, until Ctrl-C.
        pacs: Store into this PACS and not into one of our own.

    Returns:
        0 when every image arrived as it was mailed and the proof holds, else 1.

    Raises:
        GatewayError: The gateway does not start or does not answer.
    """
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    with _ended_by_signals(), contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dicom-mail-demo-")))
        own = None
        if pacs is None:
            own = stack.enter_context(Pacs())
            pacs = ApplicationEntity(title=TITLE, host="127.0.0.1", port=own.port)
        relay = stack.enter_context(Relay())
        gateway = stack.enter_context(Gateway(folder, pacs, relay.port))
        demo = Demo(console, gateway, own, relay)
        good = demo.play()
        if serve:
            demo.serve()
    return 0 if good else 1


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the demo as Ctrl-C does: with everything taken down."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = [(number, signal.signal(number, end)) for number in (signal.SIGTERM, signal.SIGHUP)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------------------------
# Images and mails


@dataclass(frozen=True, slots=True)
class Image:
    """A real DICOM file, and what tells that it arrived as it was.

    Attributes:
        path: Where pydicom keeps it.
        usable: It is whole; what is not must never reach a PACS.
        kind: The name of its SOP Class.
        syntax: The name of its transfer syntax.
        sop_instance: SOP Instance UID.
        sha256: Of its data set.
    """

    path: Path
    usable: bool
    kind: str
    syntax: str
    sop_instance: str
    sha256: str

    @classmethod
    def of(cls, path: Path, *, usable: bool = True) -> Self:
        """Look into a file."""
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
        return cls(
            path,
            usable,
            header.SOPClassUID.name.removesuffix(" Storage"),
            header.file_meta.TransferSyntaxUID.name.partition(",")[0],
            str(header.SOPInstanceUID),
            hashlib.sha256(data_set(path.read_bytes())).hexdigest(),
        )


def data_set(file: bytes) -> bytes:
    """The bytes behind group 0002 (PS3.10 §7.1), found by its group length and without the gateway's own reader."""
    if file[128:138] != b"DICM\x02\x00\x00\x00UL":
        raise ValueError("no group length")
    return file[144 + int.from_bytes(file[140:144], "little") :]


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail of the story.

    Attributes:
        title: What is special about it.
        images: What is in it.
        content: As it goes over the wire.
        message_id: By which its row is found.
        expected: How it must end.
    """

    title: str
    images: tuple[Image, ...]
    content: bytes
    message_id: str
    expected: Outcome = Outcome.DELIVERED


def compose(
    title: str,
    names: Sequence[str],
    *,
    sender: str = SENDER,
    subtype: str = "dicom",
    labels: Sequence[str] = (),
    extra: Sequence[str] = (),
    damaged: Sequence[str] = (),
) -> Mail:
    """Write a mail as a STD-GEN-MIME sender does (PS3.11 Annex G), or less well.

    Args:
        title: What is special about it.
        names: Its images, below the folder of samples.
        sender: Its From address.
        subtype: Of the media type application/…
        labels: File names; absent, File IDs.
        extra: Files that are no images, as a DICOMDIR.
        damaged: Images that are cut off.
    """
    images = [Image.of(SAMPLES / name) for name in names]
    images += [Image.of(SAMPLES / name, usable=False) for name in damaged]
    message = EmailMessage(policy=SMTP)
    message["From"] = sender
    message["To"] = RECIPIENT
    message["Date"] = formatdate()
    message["Subject"] = "DICOM images"
    message["Message-ID"] = message_id = make_msgid(domain="clinic-a.example")
    message.set_content("Images are attached.")
    for name in extra:
        path = SAMPLES / name
        message.add_attachment(path.read_bytes(), "application", subtype, params={"id": path.name})
    for number, image in enumerate(images):
        label = labels[number] if labels else f"{image.path.name}"
        parameters = {} if labels else {"id": _file_id(image.path)}
        content = image.path.read_bytes()
        message.add_attachment(content, "application", subtype, params=parameters, filename=label)
    expected = Outcome.HELD if damaged else Outcome.DELIVERED
    return Mail(title, tuple(images), message.as_bytes(), message_id, expected)


def _file_id(path: Path) -> str:
    """The File ID of an image on a medium: its path below the DICOMDIR, in PS3.10's own spelling."""
    if "TINY_ALPHA" in path.parts:
        return "/".join(path.parts[path.parts.index("TINY_ALPHA") + 1 :])
    return path.stem.upper().replace("_", "")[:8]


def mails() -> list[Mail]:
    """What the clinic sends while all is well."""
    medium = "dicomdirtests/TINY_ALPHA"
    series = sorted(str(path.relative_to(SAMPLES)) for path in (SAMPLES / medium).rglob("IM*"))
    return [
        compose("two images, by the standard", ["CT_small.dcm", "MR_small.dcm"]),
        compose(
            "by a common mail program",
            ["SC_rgb_jpeg_gdcm.dcm", "rtplan.dcm"],
            subtype="octet-stream",
            labels=["Prüfbild (1) .dat", "plan"],
        ),
        compose(f"a CD: {len(series)} images, DICOMDIR", series, extra=[f"{medium}/DICOMDIR"]),
        compose("one good, one cut off", ["rtdose.dcm"], damaged=["MR_truncated.dcm"]),
    ]


# ---------------------------------------------------------------------------------------------------------------
# Who takes part


class Pacs:
    """A small PACS: takes every image, and keeps of each what tells whether it is the one that was sent.

    Attributes:
        port: Where it listens, also after an outage.
        received: sha256 of the data set of every C-STORE, by SOP Instance UID.
    """

    def __init__(self) -> None:
        self.received: dict[str, list[str]] = {}
        self._entity = AE(TITLE)
        self._entity.add_supported_context(UID_VERIFICATION)
        for context in AllStoragePresentationContexts:
            self._entity.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
        self._server: ThreadedAssociationServer | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Begin to listen."""
        address = ("127.0.0.1", self.port)
        server = self._entity.start_server(address, block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        assert server is not None  # it is only when it blocks
        self._server = server
        self.port = server.server_address[1]

    def close(self) -> None:
        """Stop; nothing happens when it is stopped already."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def keep(self, sop_instance: str, received: bytes) -> None:
        """Remember an image."""
        self.received.setdefault(sop_instance, []).append(hashlib.sha256(received).hexdigest())

    def _store(self, event: evt.Event) -> int:
        request: Any = event.request
        self.keep(str(request.AffectedSOPInstanceUID), event.encoded_dataset(include_meta=False))
        return 0x0000


class Relay(socketserver.ThreadingTCPServer):
    """A small mail server: takes every mail, and keeps it.

    Attributes:
        mails: Content of each mail, by recipient.
        port: Where it listens.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.mails: dict[str, list[bytes]] = {}
        self.port = self.socket.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=[LOOK_EVERY], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Session(socketserver.StreamRequestHandler):
    """What a mail server says (RFC 5321), as far as the gateway must hear it."""

    server: Relay

    def handle(self) -> None:
        recipient = ""
        self._say("220 relay.demo.example")
        for line in self.rfile:
            match line[:4].upper():
                case b"RCPT":
                    recipient = line.decode("ascii").partition("<")[2].partition(">")[0]
                    self._say("250 ok")
                case b"DATA":
                    self._say("354 go on")
                    self.server.mails.setdefault(recipient, []).append(self._content())
                    self._say("250 taken")
                case b"QUIT":
                    self._say("221 bye")
                    return
                case _:
                    self._say("250 ok")

    def _content(self) -> bytes:
        lines = []
        while (line := self.rfile.readline()) not in {b".\r\n", b""}:
            lines.append(line.removeprefix(b"."))
        return b"".join(lines)

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


def store(images: Sequence[Image], port: int) -> list[int]:
    """Send images as a modality does, the bytes as they are; return the status of each answer."""
    entity = AE("CT1")
    for image in images:
        header = pydicom.dcmread(image.path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
        entity.add_requested_context(header.SOPClassUID, header.file_meta.TransferSyntaxUID)
    before, _config.STORE_SEND_CHUNKED_DATASET = _config.STORE_SEND_CHUNKED_DATASET, True
    association = entity.associate("127.0.0.1", port, ae_title=CALLED)
    try:
        return [association.send_c_store(image.path).get("Status", -1) for image in images]
    except RuntimeError as error:
        raise GatewayError("the gateway accepts no association") from error
    finally:
        association.release()
        _config.STORE_SEND_CHUNKED_DATASET = before


def file_set(content: bytes) -> dict[str, bytes]:
    """The DICOM parts of a mail, by File ID."""
    parts = message_from_bytes(content).walk()
    files = [part for part in parts if part.get_content_type() == "application/dicom"]
    found = {}
    for part in files:
        payload = part.get_payload(decode=True)
        found[str(part.get_param("id"))] = payload if isinstance(payload, bytes) else b""
    return found


def named(directory: bytes) -> set[str]:
    """The File IDs that a DICOMDIR names."""
    records = pydicom.dcmread(io.BytesIO(directory)).DirectoryRecordSequence
    return {str(record.ReferencedFileID) for record in records if "ReferencedFileID" in record}


class Gateway:
    """The real program in a process of its own, with a configuration in a folder of its own."""

    def __init__(self, folder: Path, entity: ApplicationEntity, relay: int) -> None:
        self.folder = folder
        self.path = folder / "gateway.toml"
        self.smtp, self.http, self.dicom = _free_ports(3)
        ports = {"smtp": self.smtp, "http": self.http, "dicom": self.dicom, "relay": relay}
        text = CONFIGURATION.format(entity=entity, sender=SENDER, clinic=CLINIC, called=CALLED, **ports)
        self.path.write_text(text)
        self.configuration: Configuration = load(self.path)

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "gateway", "--config", str(self.path), "run"]
        with (self.folder / "log").open("wb") as log:
            # A session of its own: Ctrl-C ends the demo, and the demo ends the gateway.
            self.process = subprocess.Popen(  # noqa: S603 - our own program
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_PATIENCE
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise GatewayError(f"the gateway did not start: {self.last_words()}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        return False

    def last_words(self) -> str:
        """The last line of its log."""
        lines = (self.folder / "log").read_text("utf-8", "replace").splitlines()
        return lines[-1] if lines else "it said nothing"

    def mail(self, content: bytes, sender: str = SENDER) -> str:
        """Hand a mail in by SMTP and return the reply at its end, or the one that ended it."""
        # Not as a context: its end says QUIT even in the middle of a mail, and a Ctrl-C there became another error.
        client = smtplib.SMTP("127.0.0.1", self.smtp, "clinic-a.example", timeout=20)
        try:
            client.ehlo()
            for code, text in (client.mail(sender), client.rcpt(RECIPIENT), client.data(content)):
                reply = f"{code} {text.decode('utf-8', 'replace')}"
            client.quit()
        finally:
            client.close()
        return reply

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Do a verb as the command line does it."""
        return control.call(self.configuration, verb, **arguments)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


# ---------------------------------------------------------------------------------------------------------------
# The story

_STYLES: Final = {
    Outcome.DELIVERED: "green",
    Outcome.WAITING: "yellow",
    Outcome.REFUSED: "dim",
    Outcome.HELD: "magenta",
    Outcome.FAILED: "red",
}


class Demo:
    """The acts of the story, one after another.

    Args:
        console: Where it is told.
        gateway: Running.
        pacs: Ours; None when the images go to somebody else's.
        relay: Where it hands mails over.
    """

    def __init__(self, console: Console, gateway: Gateway, pacs: Pacs | None, relay: Relay) -> None:
        self._console = console
        self._gateway = gateway
        self._pacs = pacs
        self._relay = relay
        self._mails: list[Mail] = []
        self._troubles: list[str] = []
        self._told: dict[str, str] = {}

    def play(self) -> bool:
        """Tell the whole story; return whether everything came out as it must."""
        began = time.monotonic()
        self._introduce()
        acts = (self._clinic_sends, self._stranger_comes, self._outage, self._person_decides, self._modality_sends)
        for act in acts:
            if not self._troubles:
                act()
        self._arrivals()
        self._proof()
        self._close(time.monotonic() - began)
        return not self._troubles

    # The acts

    def _introduce(self) -> None:
        gateway, entity = self._gateway, self._gateway.configuration.ae["pacs"]
        lines = Table.grid(padding=(0, 2))
        lines.add_row("gateway", f"process {gateway.process.pid}, takes mail on 127.0.0.1:{gateway.smtp}")
        whose = "a small one of our own" if self._pacs else "as you named it"
        lines.add_row("PACS", f"AE {entity.title} on {entity.host}:{entity.port}, {whose}")
        lines.add_row("modality", f"CT1, sends to AE {CALLED} on 127.0.0.1:{gateway.dicom}")
        lines.add_row("folder", f"{gateway.folder}, gone when this ends")
        self._console.print(Panel(lines, title="DICOM mail gateway", title_align="left", border_style="cyan"))

    def _clinic_sends(self) -> None:
        self._act("A clinic mails images")
        sent = mails()
        for mail in sent:
            self._send(mail)
        self._watch(self._settled, "every mail is settled")
        self._demand_outcomes()
        self._say("The cut image waits for a person, its neighbour did not.")
        self._again(sent[0])

    def _stranger_comes(self) -> None:
        mail = compose("from a stranger", ["CT_small.dcm"], sender=STRANGER)
        reply = self._gateway.mail(mail.content, STRANGER)
        self._say("A stranger mails too, and is refused before anything is kept:", reply)
        self._demand(reply.startswith("550"), "a stranger's mail was not refused")

    def _again(self, mail: Mail) -> None:
        reply = self._gateway.mail(mail.content)
        item = self._gateway.ask("show", id=reply.split()[-1])
        self._say("The first mail comes once more, is known, and has the outcome of the first:", reply)
        self._demand(item["duplicate_of"] is not None, "a repeated mail was not recognised")

    def _outage(self) -> None:
        self._act("The PACS is away" if self._pacs else "The PACS is paused (dicom-mail queue pause pacs)")
        if self._pacs:
            self._pacs.close()
        else:
            self._gateway.ask("pause", ae="pacs")
        self._send(compose("while the PACS is away", ["dicomdirtests/77654033/CR1/6154", "examples_jpeg2k.dcm"]))
        self._watch(lambda: bool(self._trouble()), "the gateway knows that the PACS is away")
        self._say("The mail is taken in all the same, and waits. What queue list says of the PACS:", self._trouble())
        since = time.monotonic()
        if self._pacs:
            self._pacs.open()
        else:
            self._gateway.ask("resume", ae="pacs")
        self._watch(self._settled, "what waited is delivered")
        self._demand_outcomes()
        self._say(f"The PACS is back, and {time.monotonic() - since:.1f} s later what waited is there, by itself.")

    def _person_decides(self) -> None:
        held = [item for item in self._items() if item["outcome"] == Outcome.HELD]
        if not held:
            return
        self._act("A person looks at what is held")
        key = held[0]["id"]
        self._say("Every mail has its story; this is the end of the held one's:", f"dicom-mail queue show {key}")
        story = self._gateway.ask("show", id=key)
        for event in story["events"][-4:]:
            at = datetime.fromisoformat(event["at"]).astimezone()
            self._console.print(Text(f"    {at:%H:%M:%S}  {event['text']}", style="dim"))
        self._say("Nobody can mend it, so a person drops it. That is on record too:", f"dicom-mail queue drop {key}")
        dropped = self._gateway.ask("drop", id=key)
        self._demand(dropped["outcome"] == Outcome.REFUSED, "a person's drop had no effect")

    def _modality_sends(self) -> None:
        self._act("The other way: a modality sends, a clinic gets a mail")
        images = [Image.of(path) for path in sorted((SAMPLES / STUDY).iterdir())]
        statuses = store(images, self._gateway.dicom)
        self._say(f"CT1 stores {len(images)} images to {CALLED}. Each answer, once the image is on disk:", "0x0000")
        self._demand(statuses == [0] * len(images), "an image was refused")
        self._watch(lambda: CLINIC in self._relay.mails and self._submitted(), "the clinic has its mail")
        if self._troubles:
            return
        content = self._relay.mails[CLINIC][0]
        files = file_set(content)
        directory = files.pop("DICOMDIR", b"")
        header = message_from_bytes(content)
        told = f"Subject: {header['Subject']}, {len(content)} bytes, {len(files)} files and a DICOMDIR"
        self._say(f"Nothing more came for a second, so {CLINIC} gets one mail:", told)
        self._demand(bool(directory) and named(directory) == files.keys(), "the DICOMDIR does not name every file")
        got = sorted(hashlib.sha256(data_set(file)).hexdigest() for file in files.values())
        self._demand(got == sorted(image.sha256 for image in images), "the clinic got something else than was sent")
        self._say(f"All {len(files)} data sets in it have the sha256 of what the modality sent.")

    def _submitted(self) -> bool:
        items = self._gateway.ask("list")["items"]
        return all(item["outcome"] != Outcome.WAITING for item in items if item["direction"] == "out")

    # What it comes to

    def _arrivals(self) -> None:
        self._act("What arrived")
        images = {image.sop_instance: image for mail in self._mails for image in mail.images if image.usable}
        seen = {key: self._arrived(image) for key, image in images.items()}
        groups: dict[tuple[str, str, str], int] = Counter(
            (one.kind, one.syntax, seen[key]) for key, one in images.items()
        )
        table = _table("images", "what", "transfer syntax", "arrived")
        for (kind, syntax, arrived), count in groups.items():
            table.add_row(str(count), kind, syntax, Text(arrived, style="green" if arrived in _GOOD else "bold red"))
            self._demand(arrived in _GOOD, f"{count} of {kind}: {arrived}")
        self._console.print(table)
        if self._pacs:
            strange = self._pacs.received.keys() - images.keys()
            self._demand(not strange, f"the PACS got {len(strange)} that nobody mailed")
            self._say("Identical: in the PACS, the sha256 of the data set is that of what was mailed.")
        else:
            self._say("Acknowledged: the PACS answered with success for that very image. Look there for it.")

    def _arrived(self, image: Image) -> str:
        if self._pacs is None:
            return self._acknowledged(image)
        received = self._pacs.received.get(image.sop_instance, [])
        if not received:
            return "MISSING"
        return "identical" if set(received) == {image.sha256} else "DIFFERENT"

    def _acknowledged(self, image: Image) -> str:
        for item in self._items():
            details = self._gateway.ask("show", id=item["id"])["instances_detail"]
            for one in details:
                if one["sop_instance"] == image.sop_instance and one["outcome"] == Outcome.DELIVERED:
                    return "acknowledged"
        return "MISSING"

    def _proof(self) -> None:
        proof = self._gateway.ask("reconcile")
        table = _table("dicom-mail reconcile", "in", *Outcome, "unaccounted")
        for name, counts in (("mails", proof), ("instances", proof["instances"])):
            table.add_row(
                name, str(counts["in"]), *(str(counts[one]) for one in Outcome), str(counts.get("unaccounted", ""))
            )
        self._console.print()
        self._console.print(table)
        self._demand(proof["unaccounted"] == 0, "the proof does not hold")
        self._demand(proof["waiting"] == 0, "something waits still")

    def _close(self, seconds: float) -> None:
        self._console.print()
        if self._troubles:
            for trouble in self._troubles:
                self._console.print(Text(f"This is not as it must be: {trouble}", style="bold red"))
            return
        points = (
            "a mail was acknowledged only when its bytes and its row were on disk",
            "images were found by what they are, however they were labelled",
            "delivered means: the PACS answered with success for that very image",
            "what cannot be trusted waited for a person and held up nothing else",
            "a PACS that was away got everything as soon as it was back",
            "a modality's images went out as one mail, with a DICOMDIR of their own",
            "all that came in is accounted for, by the ledger alone",
        )
        told = Text("\n").join(Text(f"\N{CHECK MARK} {point}") for point in points)
        self._console.print(Panel(told, title=f"Seen in {seconds:.0f} s", title_align="left", border_style="green"))
        self._console.print(
            "Next: copy config/gateway.min.toml, name your PACS and one partner in it, then\n"
            f"  {_program()} --config FILE check\n  {_program()} --config FILE run\n"
            "README.md and docs/overview.md tell the rest."
        )

    def serve(self) -> None:
        """Keep everything running until Ctrl-C."""
        gateway = self._gateway
        sample = gateway.folder / "mail.eml"
        sample.write_bytes(compose("sample", ["CT_small.dcm", "MR_small.dcm"]).content)
        self._act("It keeps running, until Ctrl-C")
        commands = (
            f"curl smtp://127.0.0.1:{gateway.smtp} --mail-from {SENDER} --mail-rcpt {RECIPIENT} --upload-file {sample}",
            f"{_program()} --config {gateway.path} queue list",
            f"curl http://127.0.0.1:{gateway.http}/metrics",
        )
        for command in commands:
            self._console.print(Text(f"  {command}", style="cyan"), soft_wrap=True)
        with contextlib.suppress(KeyboardInterrupt):
            gateway.process.wait()

    # How it is told

    def _act(self, title: str) -> None:
        self._console.print()
        self._console.rule(Text(title, style="bold"), align="left", style="cyan")

    def _say(self, text: str, quoted: str = "") -> None:
        self._console.print(Text(text))
        if quoted:
            self._quote(quoted)

    def _quote(self, text: str) -> None:
        self._console.print(Text(f"    {text}", style="cyan"))

    def _demand(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self._troubles.append(otherwise)

    def _send(self, mail: Mail) -> None:
        self._mails.append(mail)
        reply = self._gateway.mail(mail.content)
        number = len(self._mails)
        self._console.print(Text.assemble((f"mail {number}  ", "bold"), f"{mail.title:<30} ", (reply, "dim")))
        self._demand(reply.startswith("250"), f"mail {number} was not taken: {reply}")

    def _items(self) -> list[dict[str, Any]]:
        """The rows of our mails, in the order they were sent; repetitions are not among them."""
        items = self._gateway.ask("list")["items"]
        rows = {item["message_id"]: item for item in items if item["duplicate_of"] is None}
        return [rows[mail.message_id] for mail in self._mails if mail.message_id in rows]

    def _settled(self) -> bool:
        return all(item["outcome"] != Outcome.WAITING for item in self._items())

    def _demand_outcomes(self) -> None:
        for number, (mail, item) in enumerate(zip(self._mails, self._items(), strict=False), 1):
            self._demand(item["outcome"] == mail.expected, f"mail {number} is {_condition(item)}")

    def _trouble(self) -> str:
        """What the gateway knows to be wrong with the PACS; empty when nothing is."""
        for pacs in self._gateway.ask("list")["destinations"]:
            return "paused by a person" if pacs["paused"] else str(pacs["trouble"] or "")
        return ""

    def _watch(self, done: Callable[[], bool], what: str) -> None:
        """Show the rows as they change until something is so."""
        deadline = time.monotonic() + STORY_PATIENCE
        with self._window() as show:
            while not done():
                show(self._items())
                if self._gateway.process.poll() is not None:
                    raise GatewayError(f"the gateway ended: {self._gateway.last_words()}")
                if time.monotonic() > deadline:
                    why = f" ({trouble})" if (trouble := self._trouble()) else ""
                    self._troubles.append(f"not within {STORY_PATIENCE:.0f} s: {what}{why}")
                    break
                time.sleep(LOOK_EVERY)
            show(self._items())

    @contextlib.contextmanager
    def _window(self) -> Iterator[Callable[[Iterable[dict[str, Any]]], None]]:
        """Yield what shows rows: a table that changes on a terminal, a line for each change elsewhere."""
        if not self._console.is_terminal:
            yield self._tell_changes
            return
        with Live(console=self._console, refresh_per_second=10) as live:
            yield lambda items: live.update(self._rows(items))

    def _tell_changes(self, items: Iterable[dict[str, Any]]) -> None:
        for mail, item in zip(self._mails, items, strict=False):
            line = _condition(item)
            if self._told.get(mail.message_id) != line:
                self._told[mail.message_id] = line
                self._console.print(f"  mail {self._mails.index(mail) + 1}: {line}")

    def _rows(self, items: Iterable[dict[str, Any]]) -> Table:
        table = _table("", "mail", "outcome", "stored", "why")
        for number, (mail, item) in enumerate(zip(self._mails, items, strict=False), 1):
            outcome = Text(item["outcome"], style=_STYLES[Outcome(item["outcome"])])
            stored = f"{item['delivered']} of {item['instances']}" if item["instances"] else ""
            table.add_row(str(number), mail.title, outcome, stored, item["code"] or "")
        return table


_GOOD: Final = frozenset({"identical", "acknowledged"})


def _condition(item: dict[str, Any]) -> str:
    code = f" ({item['code']})" if item["code"] else ""
    return f"{item['outcome']}, {item['delivered']} of {item['instances']} stored{code}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=column != "transfer syntax")
    return table


def _program() -> str:
    """How this program is called here."""
    return "dicom-mail" if shutil.which("dicom-mail") else f"{sys.executable} -m gateway"
