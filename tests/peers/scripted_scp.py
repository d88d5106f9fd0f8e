"""A Storage SCP that answers as it is told: its moods are data (PS3.8, PS3.7), its faults those of real peers.

It is written with struct alone and shares no code with the gateway, so that the two cannot be wrong together. It notes
what it received, how every association ended, and every rule of the standard that its peer broke.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn, Self

RELEASE_RQ = bytes.fromhex("05000000000400000000")
RELEASE_RP = bytes.fromhex("06000000000400000000")
A_ABORT = bytes.fromhex("07000000000400000000")
A_P_ABORT = bytes.fromhex("07000000000400000202")


@dataclass(frozen=True)
class Greeting:
    """How an association request is answered.

    Attributes:
        act: ``accept``, ``reject``, or a fault of FAULTS or GREETING_FAULTS.
        results: The result of each context, by its place in the request; those behind are accepted. None: left out.
        syntax: Answer this transfer syntax instead of the one offered.
        reject: Result, source and reason of an A-ASSOCIATE-RJ.
        max_pdu: The longest PDU that is taken; 0: no limit.
    """

    act: str = "accept"
    results: Sequence[int | None] = ()
    syntax: str | None = None
    reject: tuple[int, int, int] = (1, 1, 1)
    max_pdu: int = 16384


@dataclass(frozen=True)
class Answer:
    """How one C-STORE-RQ is answered.

    Attributes:
        status: The status of the response.
        act: ``respond``, ``split`` and ``drip`` (a few bytes at a time, the latter slowly), a variation of RESPONSES,
            or a fault of FAULTS.
        after: None: when the message is there. Else it acts once so many bytes of the data set have come, and reads on
            if the act leaves the association open.
    """

    status: int = 0x0000
    act: str = "respond"
    after: int | None = None


@dataclass
class Seen:
    """One C-STORE-RQ as it came: the fields of its command set, and of its data set size and hash."""

    message: int
    sop_class: str
    sop_instance: str
    context: int
    size: int = 0
    sha256: str = ""
    fragments: list[int] = field(default_factory=list)


class _EndedError(Exception):
    """The association is over, as the text says."""


class ScriptedScp:
    """Listens on loopback while it is entered as a context. The last answer is used for all that follow.

    Attributes:
        seen: Every C-STORE-RQ whose data set came whole.
        given: What was answered about each instance, in order.
        ends: How each association ended: ``release``, ``abort``, ``closed``, ``reset``, or by the act of the script.
        faults: Rules of the standard that the peer broke.
        requests: The proposed contexts of each association: (id, SOP class, transfer syntaxes).
    """

    def __init__(
        self,
        *answers: Answer | int,
        greetings: Sequence[Greeting] = (Greeting(),),
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        self._answers = [Answer(each) if isinstance(each, int) else each for each in answers or (Answer(),)]
        self._greetings = list(greetings)
        self._tls = tls
        self._listener = socket.socket()
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self.stop = threading.Event()
        self.seen: list[Seen] = []
        self.ends: list[str] = []
        self.given: list[tuple[str, Answer]] = []
        self.faults: list[str] = []
        self.requests: list[list[tuple[int, str, tuple[str, ...]]]] = []

    def __enter__(self) -> Self:
        self._start(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.settle()

    def settle(self) -> None:
        """Wait until every connection so far has ended, so that ``ends`` is complete."""
        for thread in self._threads[1:]:
            thread.join(10)

    def answer(self) -> Answer:
        """Take the next answer; the last one stays."""
        with self._lock:
            return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def greeting(self) -> Greeting:
        """Take the next greeting; the last one stays."""
        with self._lock:
            return self._greetings.pop(0) if len(self._greetings) > 1 else self._greetings[0]

    def fault(self, text: str) -> None:
        """Note a rule that the peer broke."""
        self.faults.append(text)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, name="scripted-scp", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        while not self.stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(connection)
            self._start(self._serve, connection)

    def _serve(self, plain: socket.socket) -> None:
        connection = plain
        end = "closed"
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(plain.dup(), server_side=True)
            _Conversation(self, connection).run()
        except _EndedError as error:
            end = str(error)
        except ConnectionResetError:
            end = "reset"
        except OSError:
            end = "closed"
        finally:
            with self._lock:
                self._open.discard(plain)
            self.ends.append(end)
            connection.close()
            plain.close()


class _Conversation:
    """One association, seen from the acceptor."""

    def __init__(self, scp: ScriptedScp, connection: socket.socket) -> None:
        self.scp = scp
        self.connection = connection
        self.greeting = scp.greeting()
        self.contexts: set[int] = set()
        self.command = bytearray()
        self.seen: Seen | None = None
        self.answer: Answer | None = None
        self.digest = hashlib.sha256()

    def run(self) -> None:
        self.greet()
        while True:
            kind, body = self.pdu()
            if kind == 0x05:
                self.connection.sendall(RELEASE_RP)
                raise _EndedError("release")
            if kind == 0x07:
                raise _EndedError("abort")
            if kind != 0x04:
                self.broken(f"PDU 0x{kind:02X} out of place")
            if self.greeting.max_pdu and len(body) > self.greeting.max_pdu:
                self.scp.fault("PDU longer than agreed")
            for context, control, fragment in self.fragments(body):
                if control & 1:
                    self.take_command(context, fragment, last=bool(control & 2))
                else:
                    self.take_data(fragment, last=bool(control & 2))

    def greet(self) -> None:
        kind, body = self.pdu()
        if kind != 0x01:
            self.broken("association request expected")
        proposed = _proposed(body)
        self.scp.requests.append(proposed)
        results = [*self.greeting.results, *(0 for _ in proposed)][: len(proposed)]
        accept = _accept(body, proposed, results, self.greeting)
        if self.greeting.act == "accept":
            self.connection.sendall(accept)
        elif self.greeting.act == "reject":
            self.connection.sendall(struct.pack(">BxIxBBB", 3, 4, *self.greeting.reject))
            self.silence()
        elif self.greeting.act == "half":
            self.connection.sendall(accept[: len(accept) // 2])
            self.silence()
        elif self.greeting.act in GREETING_FAULTS:
            self.connection.sendall(GREETING_FAULTS[self.greeting.act])
            self.silence()
        else:
            self.end(self.greeting.act)
        self.contexts = {context for (context, *_), result in zip(proposed, results, strict=True) if result == 0}

    def take_command(self, context: int, fragment: bytes, *, last: bool) -> None:
        self.command += fragment
        if not last:
            return
        if context not in self.contexts:
            self.scp.fault("context that was not accepted")
        elements = _elements(bytes(self.command))
        self.command.clear()
        message = _number(elements[0x0110])
        if _number(elements[0x0100]) == 0x0030:
            self.act(self.scp.answer(), Seen(message, "", "", context), field_=0x8030)
            return
        if set(elements) != {0x0000, 0x0002, 0x0100, 0x0110, 0x0700, 0x0800, 0x1000}:
            self.broken("elements of C-STORE-RQ")
        if _number(elements[0x0100]) != 0x0001 or _number(elements[0x0800]) == 0x0101:
            self.broken("values of C-STORE-RQ")
        self.seen = Seen(message, _uid(elements[0x0002]), _uid(elements[0x1000]), context)
        self.answer = self.scp.answer()
        self.digest = hashlib.sha256()

    def take_data(self, fragment: bytes, *, last: bool) -> None:
        if self.seen is None:
            self.broken("data set without a command")
        seen = self.seen
        seen.fragments.append(len(fragment))
        seen.size += len(fragment)
        self.digest.update(fragment)
        if not last and len(fragment) % 2:
            self.scp.fault("odd fragment")
        if last:
            seen.sha256 = self.digest.hexdigest()
            self.scp.seen.append(seen)
            self.seen = None
        answer = self.answer
        if answer is not None and (last or (answer.after is not None and seen.size >= answer.after)):
            self.answer = None
            self.act(answer, seen)

    def act(self, answer: Answer, seen: Seen, field_: int = 0x8001) -> None:
        if seen.sop_instance:
            self.scp.given.append((seen.sop_instance, answer))
        good = Reply(seen.context, field_, seen.message, answer.status, seen.sop_class, seen.sop_instance)
        if answer.act in {"respond", "split", "drip"}:
            pause = 0.1 if answer.act == "drip" else 0.0
            step = 1 << 20 if answer.act == "respond" else 5
            self.drip(good.bytes(piece=7 if answer.act == "split" else 1 << 20), step, pause)
        elif answer.act in RESPONSES:
            self.connection.sendall(RESPONSES[answer.act](good))
        elif answer.act.startswith("response-"):
            self.connection.sendall(good.bytes())
            self.end(answer.act.removeprefix("response-"))
        else:
            self.end(answer.act)

    def drip(self, block: bytes, step: int, pause: float) -> None:
        for start in range(0, len(block), step):
            self.connection.sendall(block[start : start + step])
            if pause and self.scp.stop.wait(pause):
                return

    def end(self, fault: str) -> NoReturn:
        """Do what ends the association."""
        if fault == "collide":  # asks for release when the peer does so too
            self.connection.sendall(RELEASE_RQ)
            if _exactly(self.connection, 20) == RELEASE_RQ + RELEASE_RP:
                self.connection.sendall(RELEASE_RP)
                raise _EndedError("collided")
        elif fault == "deaf":  # reads nothing any more
            self.scp.stop.wait(30)
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif fault == "abort-close":  # without reading what is on the way: a reset follows
            self.connection.sendall(A_ABORT)
        elif fault != "close":
            self.connection.sendall(FAULTS[fault])
            self.silence()
        raise _EndedError(fault)

    def silence(self) -> NoReturn:
        """Say no more, and read until the peer has gone; only a request to release is still answered."""
        last = b""
        with contextlib.suppress(OSError):
            while block := self.connection.recv(1 << 16):
                last = (last + block)[-10:]
        ends = {A_ABORT: "abort", RELEASE_RQ: "release", RELEASE_RP: "released"}
        raise _EndedError(ends.get(last, "closed"))

    def broken(self, text: str) -> NoReturn:
        self.scp.fault(text)
        raise _EndedError("fault")

    def pdu(self) -> tuple[int, bytes]:
        kind, length = struct.unpack(">BxI", _exactly(self.connection, 6))
        return kind, _exactly(self.connection, length)

    def fragments(self, body: bytes) -> list[tuple[int, int, bytes]]:
        fragments, place = [], 0
        while place < len(body):
            length, context, control = struct.unpack_from(">IBB", body, place)
            fragments.append((context, control, body[place + 6 : place + 4 + length]))
            place += 4 + length
        if place != len(body):
            self.scp.fault("PDV lengths")
        return fragments


@dataclass(frozen=True)
class Reply:
    """A response, before it is bytes."""

    context: int
    field: int
    message: int
    status: int | None
    sop_class: str | None
    sop_instance: str | None

    def bytes(self, piece: int = 1 << 20) -> bytes:
        """Write it as PDUs with at most ``piece`` bytes of the command set in each."""
        rest = (
            _uid_element(0x0002, self.sop_class)
            + _element(0x0100, struct.pack("<H", self.field))
            + _element(0x0120, struct.pack("<H", self.message))
            + _element(0x0800, struct.pack("<H", 0x0101))
            + (b"" if self.status is None else _element(0x0900, struct.pack("<H", self.status)))
            + _uid_element(0x1000, self.sop_instance)
        )
        command = _element(0x0000, struct.pack("<I", len(rest))) + rest
        block = b""
        for start in range(0, len(command), piece):
            part = command[start : start + piece]
            last = 2 if start + piece >= len(command) else 0
            block += _fragment(self.context, 1 | last, part)
        return block


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def _uid_element(number: int, value: str | None) -> bytes:
    return b"" if value is None else _element(number, value.encode() + b"\0" * (len(value) % 2))


def _fragment(context: int, control: int, part: bytes) -> bytes:
    return struct.pack(">BxIIBB", 4, len(part) + 6, len(part) + 2, context, control) + part


FAULTS = {
    "silence": b"",
    "abort": A_ABORT,
    "p-abort": A_P_ABORT,
    "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "release": RELEASE_RQ,
    "long-pdu": struct.pack(">BxI", 4, 1 << 30),
    "half-pdu": struct.pack(">BxI", 4, 100) + bytes(50),
    "bad-pdv": struct.pack(">BxIIBB", 4, 6, 600, 1, 3),
    "tiny-pdv": struct.pack(">BxIIB", 4, 5, 1, 1),
    "short-pdv": struct.pack(">BxIH", 4, 2, 0),
    "endless-command": _fragment(1, 1, bytes(4096)) * 20,
}
"""What is said instead of an answer; then only silence, until the peer goes. Beside these: ``deaf`` (reads no more),
``collide`` (a release that meets the peer's own), ``abort-close``, ``close`` and ``reset``."""

GREETING_FAULTS = {
    "short-reject": struct.pack(">BxIBB", 3, 2, 0, 1),
    "nonsense": struct.pack(">BxI", 2, 100) + b"\x21\x00\xff\x01" * 25,
    "long-pdu": struct.pack(">BxI", 2, 1 << 30),
}
"""What else is said instead of an A-ASSOCIATE-AC."""

RESPONSES: dict[str, Callable[[Reply], bytes]] = {
    "wrong-id": lambda good: replace(good, message=good.message % 0xFFFF + 1).bytes(),
    "wrong-command": lambda good: replace(good, field=0x8020).bytes(),
    "wrong-instance": lambda good: replace(good, sop_instance=f"{good.sop_instance}.9").bytes(),
    "no-instance": lambda good: replace(good, sop_class=None, sop_instance=None).bytes(),
    "empty-instance": lambda good: replace(good, sop_instance="").bytes(),
    "no-status": lambda good: replace(good, status=None).bytes(),
    "half-command": lambda good: good.bytes(piece=50)[:62],
    "cut-element": lambda good: _fragment(good.context, 3, struct.pack("<HHI", 0, 0x0100, 2)),
    "cut-tag": lambda good: _fragment(good.context, 3, b"\0\0\0"),
    "other-group": lambda good: _fragment(good.context, 3, struct.pack("<HHIH", 8, 0x0100, 2, 0)),
    "long-status": lambda good: _fragment(good.context, 3, _element(0x0900, bytes(4)) + _element(0x0100, bytes(4))),
    "data-set": lambda good: good.bytes() + _fragment(good.context, 2, bytes(4)),
    "only-data-set": lambda good: _fragment(good.context, 2, bytes(4)),
    "behind-command": lambda good: struct.pack(">BxIIBBIBB", 4, 12, 2, good.context, 3, 2, good.context, 3),
    "twice": lambda good: good.bytes() * 2,
    "empty-pdu": lambda good: struct.pack(">BxI", 4, 0) + good.bytes(),
}
"""Responses that are not quite right, some of them harmless, with the association left open."""


def _exactly(connection: socket.socket, size: int) -> bytes:
    block = bytearray()
    while len(block) < size:
        piece = connection.recv(min(size - len(block), 1 << 20))
        if not piece:
            raise _EndedError("closed")
        block += piece
    return bytes(block)


def _items(body: bytes) -> list[tuple[int, bytes]]:
    items, place = [], 0
    while place < len(body):
        kind, length = struct.unpack_from(">BxH", body, place)
        items.append((kind, body[place + 4 : place + 4 + length]))
        place += 4 + length
    return items


def _proposed(body: bytes) -> list[tuple[int, str, tuple[str, ...]]]:
    proposed = []
    for kind, item in _items(body[68:]):
        if kind == 0x20:
            parts = _items(item[4:])
            abstract = next(text.decode() for part, text in parts if part == 0x30)
            proposed.append((item[0], abstract, tuple(text.decode() for part, text in parts if part == 0x40)))
    return proposed


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(body)) + body


def _accept(
    request: bytes,
    proposed: list[tuple[int, str, tuple[str, ...]]],
    results: Sequence[int | None],
    greeting: Greeting,
) -> bytes:
    body = request[:68] + _item(0x10, b"1.2.840.10008.3.1.1.1")
    for (context, _, syntaxes), result in zip(proposed, results, strict=True):
        if result is not None:
            syntax = _item(0x40, (greeting.syntax or syntaxes[0]).encode())
            body += _item(0x21, bytes((context, 0, result, 0)) + syntax)
    body += _item(0x50, _item(0x51, struct.pack(">I", greeting.max_pdu)) + _item(0x52, b"2.25.1"))
    return struct.pack(">BxI", 2, len(body)) + body


def _elements(command: bytes) -> dict[int, bytes]:
    elements, place = {}, 0
    while place < len(command):
        _, element, length = struct.unpack_from("<HHI", command, place)
        elements[element] = command[place + 8 : place + 8 + length]
        place += 8 + length
    return elements


def _number(value: bytes) -> int:
    number: int = struct.unpack("<H", value)[0]
    return number


def _uid(value: bytes) -> str:
    return value.decode("ascii").rstrip("\0")
