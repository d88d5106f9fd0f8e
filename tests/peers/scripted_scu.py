"""A Storage SCU that does what it is told, right or wrong: bytes as data (PS3.8 §9.3, PS3.7 §9.3).

It is written with struct alone and shares no code with the gateway, so that the two cannot be wrong together.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

VERIFICATION = "1.2.840.10008.1.1"
COMMITMENT = "1.2.840.10008.1.20.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

RELEASE_RQ = bytes.fromhex("05000000000400000000")
RELEASE_RP = bytes.fromhex("06000000000400000000")
A_ABORT = bytes.fromhex("07000000000400000000")
CLOSED = (0, b"")


class Answer(NamedTuple):
    """What came back in a command set: status by number, comment as text."""

    field: int
    message: int
    status: int
    comment: str


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """One PDU, its length as it is or as one likes."""
    return struct.pack(">BxI", kind, len(body) if length is None else length) + body


def pdv(context: int, control: int, content: bytes, length: int | None = None) -> bytes:
    """One item of a P-DATA-TF; control: 1 command, 2 last."""
    return struct.pack(">IBB", len(content) + 2 if length is None else length, context, control) + content


def data(*items: bytes) -> bytes:
    """A P-DATA-TF of items."""
    return pdu(4, b"".join(items))


def element(number: int, value: bytes) -> bytes:
    """One element of a command set."""
    value += bytes(len(value) % 2)
    return struct.pack("<HHI", 0, number, len(value)) + value


def command(elements: dict[int, bytes | int]) -> bytes:
    """A command set: numbers are US, bytes are what they are."""
    body = b"".join(
        element(number, struct.pack("<H", value) if isinstance(value, int) else value)
        for number, value in sorted(elements.items())
    )
    return element(0, struct.pack("<I", len(body))) + body


def store(instance: str, sop_class: str = CT, message: int = 1, **more: bytes | int) -> bytes:
    """The command set of a C-STORE-RQ."""
    extra = {int(key[1:], 16): value for key, value in more.items()}
    base: dict[int, bytes | int] = {
        0x0002: sop_class.encode(),
        0x0100: 1,
        0x0110: message,
        0x0700: 0,
        0x0800: 1,
        0x1000: instance.encode(),
    }
    return command({**base, **extra})


def echo(message: int = 1) -> bytes:
    """The command set of a C-ECHO-RQ."""
    return command({0x0002: VERIFICATION.encode(), 0x0100: 0x30, 0x0110: message, 0x0800: 0x0101})


def item(kind: int, body: bytes) -> bytes:
    """An item of an association request."""
    return struct.pack(">BxH", kind, len(body)) + body


@dataclass(frozen=True)
class Context:
    """One proposed presentation context."""

    id: int
    abstract: str
    syntaxes: Sequence[str] = (EXPLICIT,)


def request(
    contexts: Sequence[Context],
    called: str = "DOOR",
    calling: str = "CT1",
    *,
    roles: dict[str, tuple[int, int]] | None = None,
    version: int = 1,
    application: str = "1.2.840.10008.3.1.1.1",
    max_pdu: int = 16384,
) -> bytes:
    """An A-ASSOCIATE-RQ."""
    body = struct.pack(">HH", version, 0) + called.ljust(16).encode() + calling.ljust(16).encode() + bytes(32)
    body += item(0x10, application.encode())
    for one in contexts:
        inner = item(0x30, one.abstract.encode()) + b"".join(item(0x40, each.encode()) for each in one.syntaxes)
        body += item(0x20, bytes((one.id, 0, 0, 0)) + inner)
    user = item(0x51, struct.pack(">I", max_pdu)) + item(0x52, b"1.2.3.4")
    for sop_class, (scu, scp) in (roles or {}).items():
        user += item(0x54, struct.pack(">H", len(sop_class)) + sop_class.encode() + bytes((scu, scp)))
    return pdu(1, body + item(0x50, user))


class Scu:
    """A connection to a Storage SCP."""

    def __init__(self, port: int, *, timeout: float = 10) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def say(self, *blocks: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(b"".join(blocks))

    def _exactly(self, size: int) -> bytes:
        content = b""
        while len(content) < size and (block := self.socket.recv(size - len(content))):
            content += block
        return content

    def hear(self) -> tuple[int, bytes]:
        """The next PDU: its type and body; CLOSED at the end."""
        try:
            head = self._exactly(6)
            if len(head) < 6:
                return CLOSED
            kind, length = struct.unpack(">BxI", head)
            return kind, self._exactly(length)
        except ConnectionError:
            return CLOSED

    def answer(self) -> Answer:
        """The next response, which must fit into one PDU."""
        kind, body = self.hear()
        assert kind == 4, (kind, body)
        assert body[5] == 3
        place, found = 6, {}
        while place < len(body):
            number, length = struct.unpack_from("<2xHI", body, place)
            found[number] = body[place + 8 : place + 8 + length]
            place += 8 + length
        numbers = [int.from_bytes(found[number], "little") for number in (0x0100, 0x0120, 0x0900)]
        return Answer(*numbers, found.get(0x0902, b"").decode().strip())

    def associate(self, *contexts: Context, **options: object) -> dict[int, tuple[int, str]]:
        """Open an association; return result and transfer syntax by context ID."""
        self.say(request(contexts, **options))  # type: ignore[arg-type]
        kind, body = self.hear()
        assert kind == 2, (kind, body)
        return results(body)


def results(body: bytes) -> dict[int, tuple[int, str]]:
    """The presentation contexts of an A-ASSOCIATE-AC."""
    found = {}
    place = 68
    while place < len(body):
        kind, length = struct.unpack_from(">BxH", body, place)
        inner = body[place + 4 : place + 4 + length]
        if kind == 0x21:
            found[inner[0]] = (inner[2], inner[8:].decode().strip("\0"))
        place += 4 + length
    return found


def roles(body: bytes) -> dict[str, tuple[int, int]]:
    """The roles of an A-ASSOCIATE-AC."""
    place = 68
    while place < len(body):
        kind, length = struct.unpack_from(">BxH", body, place)
        inner = body[place + 4 : place + 4 + length]
        place += 4 + length
        if kind == 0x50:
            found, at = {}, 0
            while at < len(inner):
                sub, size = struct.unpack_from(">BxH", inner, at)
                content = inner[at + 4 : at + 4 + size]
                at += 4 + size
                if sub == 0x54:
                    found[content[2:-2].decode()] = (content[-2], content[-1])
            return found
    return {}
