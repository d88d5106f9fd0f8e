"""Our SMTP door with a stand-in gateway behind it, and a peer that speaks to it line by line."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from peer import program

from gateway.edges.smtp import Deadlines, Limits, SmtpDoor
from gateway.errors import LowDiskError
from gateway.ledger.drafts import Draft
from gateway.model import Digest, Envelope

PATIENCE = 20
"""Seconds after which a test gives up on an answer. Nothing should ever take that long."""


@functools.cache
def server_tls() -> ssl.SSLContext:
    """The door's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate())
    return context


@cache
def certificate() -> Path:
    """A key and a certificate for the door in one file, made anew for each run: no key lies in the project."""
    folder = Path(tempfile.mkdtemp(prefix="door-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = [program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", "key.pem", "-out", "certificate.pem", "-days", "2", "-subj", "/CN=gw.example"]
    command += ["-addext", "subjectAltName=DNS:gw.example,IP:127.0.0.1"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    both = folder / "door.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "certificate.pem").read_bytes())
    return both


def client_tls() -> ssl.SSLContext:
    """A peer that trusts the door's certificate."""
    return ssl.create_default_context(cafile=str(certificate()))


@dataclass
class Taken:
    """A message of which the gateway took custody."""

    envelope: Envelope
    content: bytes
    digest: Digest


@dataclass
class Behind:
    """A gateway that answers as data tells it.

    Attributes:
        folder: Where drafts lie.
        known: Recipients that are admitted; None for all.
        room: Bytes that have room.
        error: Raised by accept, when set.
        trouble: Raised by admits, demand_room and draft, by name.
        gate: accept waits for it.
    """

    folder: Path
    known: set[str] | None = None
    room: int = 1 << 40
    error: BaseException | None = None
    trouble: dict[str, Exception] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    taken: list[Taken] = field(default_factory=list)
    begun: int = 0

    def admits(self, recipient: str) -> bool:
        self._fail("admits")
        return self.known is None or recipient in self.known

    def demand_room(self, size: int) -> None:
        self._fail("demand_room")
        if size >= self.room:
            raise LowDiskError("the disk is nearly full")

    def draft(self) -> Draft:
        self._fail("draft")
        self.begun += 1
        return Draft(self.folder / f"draft-{self.begun}")

    async def accept(self, envelope: Envelope, draft: Draft, digest: Digest) -> str:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        draft.sync()
        self.taken.append(Taken(envelope, draft.path.read_bytes(), digest))
        draft.path.unlink()
        return f"in-{len(self.taken)}"

    def left(self) -> list[str]:
        """Files that nobody took away."""
        return sorted(path.name for path in self.folder.iterdir())

    def _fail(self, where: str) -> None:
        if where in self.trouble:
            raise self.trouble[where]


class SmtpPeer:
    """A client that says what it is told, and nothing else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, content: bytes) -> None:
        """Send bytes, exactly."""
        self.writer.write(content)
        await asyncio.wait_for(self.writer.drain(), PATIENCE)

    async def line(self) -> bytes:
        """One line without its end; b"" when the connection is closed."""
        try:
            line = await asyncio.wait_for(self.reader.readline(), PATIENCE)
        except ConnectionError:
            return b""
        return line.removesuffix(b"\r\n")

    async def reply(self) -> str:
        """A whole reply, its lines joined by LF."""
        lines = [await self.line()]
        while lines[-1][3:4] == b"-":
            lines.append(await self.line())
        return b"\n".join(lines).decode()

    async def say(self, command: str) -> str:
        """Send a command and return its reply."""
        await self.send(command.encode() + b"\r\n")
        return await self.reply()

    async def mail(self, content: bytes, sender: str = "a@clinic.example", recipient: str = "b@gw.example") -> str:
        """Send a message that is stuffed already, and return the last reply."""
        for command in (f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>", "DATA"):
            reply = await self.say(command)
            if reply[0] not in "23":
                return reply
        await self.send(content + b".\r\n")
        return await self.reply()

    async def start_tls(self) -> None:
        """Turn to TLS."""
        await asyncio.wait_for(self.writer.start_tls(client_tls(), server_hostname="gw.example"), PATIENCE)

    async def close(self) -> None:
        """Leave."""
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            await asyncio.wait_for(self.writer.wait_closed(), PATIENCE)


@contextlib.asynccontextmanager
async def open_door(
    folder: Path,
    *,
    require_tls: bool = False,
    implicit_tls: bool = False,
    tls: bool = True,
    allow: list[str] | None = None,
    connections: int = 100,
    users: dict[str, str] | None = None,
    deadlines: Deadlines | None = None,
    **limits: Any,
) -> AsyncIterator[tuple[SmtpDoor, Behind]]:
    """A door that is open, and the gateway behind it."""
    folder.mkdir(exist_ok=True)
    behind = Behind(folder)
    networks = None if allow is None else [ip_network(network) for network in allow]
    settings = SimpleNamespace(
        listen=("127.0.0.1", 0),
        implicit_tls_listen=("127.0.0.1", 0) if implicit_tls else None,
        require_tls=require_tls,
        allow=networks,
        connections=connections,
    )

    async def authenticate(name: str, password: str) -> bool:
        await asyncio.sleep(0)
        assert users is not None
        return users.get(name) == password

    door = SmtpDoor(
        settings,
        hostname="gw.example",
        limits=Limits(**{"message": 1 << 20, "header": 1 << 16, **limits}),
        incoming=behind,
        tls=server_tls() if tls else None,
        authenticate=None if users is None else authenticate,
        deadlines=deadlines or Deadlines(password=0.0),
    )
    await door.open()
    try:
        yield door, behind
    finally:
        await door.close(1)


@contextlib.asynccontextmanager
async def peer_of(door: SmtpDoor, *, implicit_tls: bool = False, greet: bool = True) -> AsyncIterator[SmtpPeer]:
    """A peer that is connected, and greeted unless told otherwise."""
    host, port = door.addresses[-1 if implicit_tls else 0]
    tls = {"ssl": client_tls(), "server_hostname": "gw.example"} if implicit_tls else {}
    reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port, limit=1 << 20, **tls), PATIENCE)
    peer = SmtpPeer(reader, writer)
    try:
        if greet:
            assert (await peer.reply()).startswith("220 ")
            assert (await peer.say("EHLO client.example")).startswith("250")
        yield peer
    finally:
        await peer.close()
