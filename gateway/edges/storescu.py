"""The Storage SCU: an association to a PACS, and file bytes over it, exactly as they lie in the spool.

pynetdicom encodes and decodes the negotiation, and nothing more. Its own association runs two threads that poll the
socket every millisecond, and the two can race for it: under load one takes the response the other waits for, and an
image that was stored looks lost. Its data path copies every instance into memory, and it never turns off Nagle's
algorithm, which stalls each C-STORE by some 40 ms. A peer that stops in the middle of a PDU blocks its thread for
ever. So the socket is ours from the first byte: no thread but the caller's, a deadline on every wait, memory flat.

What is sent is the data set without group 0002 (P10-6), undecoded and unaltered (R8). What comes back counts only if
it is the response to this message about this instance (R12). Anything else drops the association (R13).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext, build_context

from gateway import model
from gateway.core import contexts, dimse, status
from gateway.errors import AssociationRejectedError, PeerUnreachableError

for _name in ("pydicom", "pynetdicom"):  # they log UIDs, titles and whole PDUs at will
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"

BATCH: Final = dimse.LONGEST_PDU + dimse.HEADER
"""Bytes handed to the kernel at once, and all of an instance that is ever in memory."""

SLOTS: Final = 1000
"""Fragments per batch: preadv takes at most IOV_MAX (1024) of them."""

SLOWEST: Final = 16 << 10
"""Bytes per second below which a transfer counts as stalled, however steadily it drips (R4)."""

RELEASE_PATIENCE: Final = 5.0
"""Seconds to wait for A-RELEASE-RP at most: everything has been answered by then, nothing hangs on it."""

_REASONS: Final = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognised",
    (1, 7): "called AE title not recognised",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}
"""A-ASSOCIATE-RJ by source and reason (PS3.8 Table 9-21)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An application entity that we call.

    Attributes:
        title: Its AE title.
        host: Address, or a name, which is resolved within the system's own time-outs.
        port: TCP port.
        calling: Our own AE title.
        timeout: Seconds for each step: connecting (to each address of the host), TLS, the answer to a request.
        max_pdu: The longest PDU we want to receive (PS3.8 Annex D.1), in bytes.
        tls: How to secure the connection; None for a plain one.
    """

    title: str
    host: str
    port: int
    calling: str
    timeout: float
    max_pdu: int = 131072
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class EchoResult:
    """What a C-ECHO found. A good one proves neither storage permission nor syntax support (NET-20).

    Attributes:
        ok: The peer answered with success.
        seconds: From the first packet to the answer, or to the failure.
        reason: What was wrong, for a person; empty when nothing was.
        reachable: The peer spoke DICOM with us, whatever it said.
    """

    ok: bool
    seconds: float
    reason: str = ""
    reachable: bool = True


@dataclass(frozen=True, slots=True)
class _Answer:
    """An A-ASSOCIATE-AC: result and transfer syntax by context ID, and the longest PDU the peer takes."""

    results: Mapping[int, tuple[int, str]]
    longest: int


class Association:
    """One open association. Blocking; used by one thread at a time, except abort, which any thread may call.

    Attributes:
        refused: What the peer did not accept, by SOP class and transfer syntax, and the code for it (NET-5).
    """

    def __init__(self, wire: _Wire, answer: _Answer, proposed: Sequence[contexts.Context]) -> None:
        self._wire = wire
        self._fragment = dimse.fragment_size(answer.longest)
        self._buffer = bytearray()
        self._message = 0
        self._busy = threading.Lock()
        self._accepted: dict[contexts.Pair, int] = {}
        refused: dict[contexts.Pair, str] = {}
        for context in proposed:
            # QUIRK: a context may be left out of the answer (as a rejection without a reason), or be accepted with a
            # syntax that was not offered (as no acceptance: nothing we have can be sent in it).
            result, syntax = answer.results.get(context.id, (2, ""))
            if result == 0 and syntax == context.transfer_syntax:
                self._accepted[context.pair] = context.id
            else:
                refused[context.pair] = contexts.refusal(result or 4)
        self.refused: Mapping[contexts.Pair, str] = MappingProxyType(refused)

    @classmethod
    def open(cls, peer: Peer, proposed: Sequence[contexts.Context]) -> Self:
        """Connect and negotiate.

        An association on which the peer accepted nothing is open all the same: sending tells what was refused.

        Raises:
            AssociationRejectedError: The peer answered A-ASSOCIATE-RJ.
            PeerUnreachableError: There was no such answer: refused, silent, TLS trouble, aborted, not DICOM.
            ValueError: There is nothing to propose, or a title or UID is none; the reader lets no such instance pass.
        """
        request = _request(peer, proposed)
        wire = _connect(peer)
        try:
            until = time.monotonic() + peer.timeout
            wire.write(request, until)
            return cls(wire, _answer(peer, wire.read(until)), proposed)
        except (_DroppedError, dimse.ProtocolError) as error:
            wire.drop()
            raise _unreachable(peer, f"gave no answer to the association request: {error}") from None
        except BaseException:
            wire.drop()
            raise

    @property
    def alive(self) -> bool:
        """Whether another window can be sent."""
        return self._wire.open

    def send(self, window: Sequence[model.Queued], deadline: float) -> list[model.Sent]:
        """Send a window of instances, one after another, and tell what became of each.

        Args:
            window: What to send.
            deadline: Seconds: the longest silence while an instance goes out, and the longest wait for its response.

        Returns:
            One outcome for each instance, in order. When the association ends on the way, those behind were never put
            on the wire and are not in the list; the list may be empty.
        """
        outcomes: list[model.Sent] = []
        with self._busy:
            self._wire.patience = deadline
            for queued in window:
                if not self._ready():
                    break
                outcomes.append(self._store(queued))
        return outcomes

    def release(self) -> None:
        """Say goodbye in good order (PS3.8 §9.3.6) and close. Never fails, never waits long."""
        with self._busy:
            if self.alive:
                with contextlib.suppress(_DroppedError, dimse.ProtocolError):
                    self._release(time.monotonic() + min(self._wire.patience, RELEASE_PATIENCE))
                self._wire.close()

    def abort(self) -> None:
        """Cut it off at once. A thread that is sending returns with an unknown outcome and closes the socket."""
        if self._busy.acquire(blocking=False):
            try:
                self._wire.drop()
            finally:
                self._busy.release()
        else:
            self._wire.interrupt()

    def _release(self, until: float) -> None:
        self._wire.write(dimse.RELEASE_REQUEST, until)
        while (answer := self._wire.read(until)).type in {dimse.A_RELEASE_RQ, dimse.P_DATA_TF}:
            if answer.type == dimse.A_RELEASE_RQ:  # both at once: the requestor answers first (PS3.8 §7.2.2.7)
                self._wire.write(dimse.RELEASE_RESPONSE, until)

    def _ready(self) -> bool:
        """Whether the next instance can be put on the wire; a peer that has ended the association is answered."""
        if not self.alive:
            return False
        try:
            if self._wire.spoken() is None:
                return True
            self._ended(self._wire.read(time.monotonic() + self._wire.patience))
        except (_DroppedError, dimse.ProtocolError):
            self._wire.drop()
        return False

    def _ended(self, pdu: dimse.Pdu) -> None:
        """Answer a PDU that ends the association, and raise its name."""
        if pdu.type == dimse.A_RELEASE_RQ:
            self._wire.write(dimse.RELEASE_RESPONSE, time.monotonic() + RELEASE_PATIENCE)
            self._wire.close()
        elif pdu.type == dimse.A_ABORT:
            self._wire.close()  # an abort is not answered (PS3.8 §9.2.3, AA-3)
        raise _DroppedError(pdu.name)

    def _store(self, queued: model.Queued) -> model.Sent:
        pair = contexts.pair(queued)
        context = self._accepted.get(pair)
        if context is None:
            return model.Sent(queued.key, None, refused=self.refused.get(pair, contexts.NOT_PROPOSED))
        try:
            file = _open(queued.data_set)
        except OSError as error:
            return model.Sent(queued.key, None, refused="content-missing", comment=type(error).__name__)
        try:
            status = self._exchange(queued, context, file)
        except (_DroppedError, dimse.ProtocolError) as error:
            self._wire.drop()  # R13
            return model.Sent(queued.key, None, comment=str(error))
        finally:
            os.close(file)
        return model.Sent(queued.key, status)

    def _exchange(self, queued: model.Queued, context: int, file: int) -> int:
        message = self._next_message()
        until = time.monotonic() + self._wire.patience + queued.data_set.size / SLOWEST
        command = dimse.store_request(message, queued.sop_class, queued.sop_instance)
        early = False
        for batch in self._batches(context, command, file, queued.data_set):
            early = self._interrupted()
            self._wire.write(batch, until)
        response = self._response(message, dimse.C_STORE_RSP)
        if response.sop_instance not in {"", queued.sop_instance}:
            raise dimse.ProtocolError("response about another instance")
        if early and status.classify(response.status).delivered:
            raise dimse.ProtocolError("success before the data set was sent")
        return response.status

    def _echo(self) -> int:
        message = self._next_message()
        context = self._accepted[contexts.VERIFICATION]
        request = bytearray(BATCH)
        end = self._lay_command(request, context, dimse.echo_request(message))
        self._wire.write(request[:end], time.monotonic() + self._wire.patience)
        return self._response(message, dimse.C_ECHO_RSP).status

    def _next_message(self) -> int:
        self._message = self._message % 0xFFFF + 1
        return self._message

    def _interrupted(self) -> bool:
        """Whether a response came before its time; anything else that comes now ends the association."""
        kind = self._wire.spoken()
        if kind not in {None, dimse.P_DATA_TF}:
            self._ended(self._wire.read(time.monotonic() + self._wire.patience))
        return kind is not None

    def _response(self, message: int, field: int) -> dimse.Response:
        until = time.monotonic() + self._wire.patience
        assembly = dimse.Assembly()
        response = None
        while response is None:
            pdu = self._wire.read(until)
            if pdu.type != dimse.P_DATA_TF:
                self._ended(pdu)
            response = assembly.add(pdu)
        if response.field != field:
            raise dimse.ProtocolError("response to another command")
        if response.message != message:
            raise dimse.ProtocolError("response with another message id")
        return response

    def _batches(self, context: int, command: bytes, file: int, span: model.Span) -> Iterator[memoryview]:
        """Lay a C-STORE-RQ out as PDUs, up to a batch at a time; the bytes are read straight into their places."""
        buffer = self._buffer = self._buffer or bytearray(BATCH)
        view = memoryview(buffer)
        place = self._lay_command(buffer, context, command)
        offset = span.start
        last = False
        while not last:
            slots: list[memoryview] = []
            start = offset
            while not last and len(slots) < SLOTS:
                size = min(self._fragment, span.end - offset)
                if place + dimse.HEADER + size > BATCH:
                    break
                offset += size
                last = offset == span.end
                place = dimse.write_header(buffer, place, context, size, dimse.LAST if last else 0)
                slots.append(view[place : place + size])
                place += size
            if _read_into(slots, file, start) != offset - start:
                raise _DroppedError("the file became shorter")
            yield view[:place]
            place = 0

    def _lay_command(self, buffer: bytearray, context: int, command: bytes) -> int:
        place = 0
        for start in range(0, len(command), self._fragment):
            piece = command[start : start + self._fragment]
            last = start + len(piece) == len(command)
            control = dimse.COMMAND | (dimse.LAST if last else 0)
            place = dimse.write_header(buffer, place, context, len(piece), control)
            buffer[place : place + len(piece)] = piece
            place += len(piece)
        return place


def echo(peer: Peer) -> EchoResult:
    """Ask a peer whether it is there, by a C-ECHO on an association of its own (NET-20). Never raises."""
    started = time.monotonic()
    reachable = False
    try:
        association = Association.open(peer, contexts.number([contexts.VERIFICATION]))
        reachable = True
        reason = _verify(association)
    except AssociationRejectedError as error:
        reachable, reason = True, str(error)
    except PeerUnreachableError as error:
        reason = str(error)
    return EchoResult(not reason, time.monotonic() - started, reason, reachable)


def _verify(association: Association) -> str:
    """Do the C-ECHO and end the association; return what was wrong, else nothing."""
    if association.refused:
        association.release()
        return "it does not accept the Verification SOP class"
    try:
        status = association._echo()  # noqa: SLF001 - C-ECHO has no place among what lanes may do with an association
    except (_DroppedError, dimse.ProtocolError) as error:
        association.abort()
        return f"no answer to C-ECHO: {error}"
    association.release()
    return "" if status == 0 else f"C-ECHO was answered with status 0x{status:04X}"


class _DroppedError(Exception):
    """The association is over; the text says by what, as a PDU's name or a few words."""


class _Wire:
    """A connected socket, its deadlines, and the PDUs that come out of it.

    Attributes:
        patience: Seconds of silence that are borne while something is sent.
        open: Whether it may still be used.
    """

    def __init__(self, connection: socket.socket, patience: float) -> None:
        self.patience = patience
        self.open = True
        self._socket = connection
        self._inbox = dimse.Inbox()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._midway = False

    def write(self, block: bytes | bytearray | memoryview, until: float) -> None:
        """Send all of a block before a moment of the monotonic clock, some of it in every ``patience`` seconds."""
        view = memoryview(block)
        self._midway = True
        try:
            while view:
                self._wait(until)
                view = view[self._socket.send(view) :]
        except OSError as error:
            raise _DroppedError(self._farewell() or _cause(error)) from None
        self._midway = False

    def read(self, until: float) -> dimse.Pdu:
        """Wait for the next PDU until a moment of the monotonic clock."""
        while (pdu := self._inbox.take()) is None:
            try:
                self._wait(until)
                self._receive()
            except OSError as error:
                raise _DroppedError(_cause(error)) from None
        return pdu

    def spoken(self) -> int | None:
        """Tell the type of the PDU that the peer sent when it was not its turn; None without one. Does not wait."""
        if self._inbox.next_type is None and self._poll.poll(0):
            try:
                self._socket.settimeout(0)
                self._receive()
            except (BlockingIOError, ssl.SSLWantReadError):
                pass  # TLS traffic of its own, as session tickets
            except OSError as error:
                raise _DroppedError(_cause(error)) from None
        return self._inbox.next_type

    def close(self) -> None:
        """Close in good order."""
        self.open = False
        self._socket.close()

    def drop(self) -> None:
        """Close at once, with an A-ABORT where the peer can tell it from data."""
        if not self.open:
            return
        with contextlib.suppress(OSError):
            if self._midway:
                # What the kernel still holds is thrown away with a reset: a dead peer shall not keep memory for long.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                self._socket.settimeout(0)
                self._socket.send(dimse.ABORT)
        self.close()

    def interrupt(self) -> None:
        """End every wait of the thread that uses it, from another thread; the descriptor stays that thread's."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # below TLS, whose own shutdown is not for threads

    def _wait(self, until: float) -> None:
        remaining = until - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._socket.settimeout(min(remaining, self.patience))

    def _receive(self) -> None:
        block = self._socket.recv(1 << 16)
        if not block:
            raise ConnectionError
        self._inbox.add(block)

    def _farewell(self) -> str:
        """Name the A-ABORT that a peer sent before it closed, when writing failed; empty without one."""
        with contextlib.suppress(_DroppedError, dimse.ProtocolError):
            if self.spoken() == dimse.A_ABORT:
                return self.read(time.monotonic()).name
        return ""


def _cause(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionError):
        return "closed"
    return type(error).__name__


def _open(span: model.Span) -> int:
    """Open the file of a span; raise OSError unless all of the span is there."""
    file = os.open(span.path, os.O_RDONLY | os.O_CLOEXEC)
    if os.fstat(file).st_size >= span.end:
        return file
    os.close(file)
    raise FileNotFoundError  # as good as gone


def _read_into(slots: list[memoryview], file: int, offset: int) -> int:
    try:
        return os.preadv(file, slots, offset)
    except OSError as error:
        raise _DroppedError(type(error).__name__) from None


def _connect(peer: Peer) -> _Wire:
    try:
        connection = socket.create_connection((peer.host, peer.port), peer.timeout)
    except OSError as error:
        raise _unreachable(peer, f"cannot be reached: {_reason(error)}") from None
    try:
        # Each C-STORE is one small message each way; Nagle's algorithm would hold every one back for some 40 ms.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if peer.tls is not None:
            connection = peer.tls.wrap_socket(connection, server_hostname=peer.host)
    except OSError as error:
        connection.close()
        raise _unreachable(peer, f"cannot be reached by TLS: {_reason(error)}") from None
    return _Wire(connection, peer.timeout)


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return str(error.reason)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or type(error).__name__


def _unreachable(peer: Peer, text: str) -> PeerUnreachableError:
    return PeerUnreachableError(f"{peer.title} at {peer.host}:{peer.port} {text}")


def _rejection(peer: Peer, body: bytes) -> AssociationRejectedError:
    if len(body) != 4:
        raise dimse.ProtocolError("invalid A-ASSOCIATE-RJ")
    _, result, source, diagnostic = body
    reason = _REASONS.get((source, diagnostic), f"source {source}, reason {diagnostic}")
    return AssociationRejectedError(
        f"{peer.title} rejected the association: {reason}", permanent=result == 1, reason=reason
    )


def _request(peer: Peer, proposed: Sequence[contexts.Context]) -> bytes:
    """Write the A-ASSOCIATE-RQ (PS3.8 §9.3.2)."""
    if not proposed:
        raise ValueError("nothing to propose")
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID(APPLICATION_CONTEXT)
    primitive.calling_ae_title = peer.calling
    primitive.called_ae_title = peer.title
    primitive.presentation_context_definition_list = [_proposal(each) for each in proposed]
    length = MaximumLengthNotification()
    length.maximum_length_received = peer.max_pdu
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID(model.IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = model.IMPLEMENTATION_VERSION_NAME
    primitive.user_information = [length, implementation, version]
    request = A_ASSOCIATE_RQ()
    request.from_primitive(primitive)
    return request.encode()


def _proposal(context: contexts.Context) -> PresentationContext:
    proposal = build_context(context.sop_class, context.transfer_syntax)
    proposal.context_id = context.id
    return proposal


def _answer(peer: Peer, pdu: dimse.Pdu) -> _Answer:
    """Read the answer to an association request (PS3.8 §9.3.3, §9.3.4).

    Raises:
        AssociationRejectedError: It is an A-ASSOCIATE-RJ.
        ProtocolError: It is neither that nor an A-ASSOCIATE-AC that can be read.
    """
    if pdu.type == dimse.A_ASSOCIATE_RJ:
        raise _rejection(peer, pdu.body)
    if pdu.type != dimse.A_ASSOCIATE_AC:
        raise dimse.ProtocolError(pdu.name)
    accept = A_ASSOCIATE_AC()
    try:
        accept.decode(struct.pack(">BxI", pdu.type, len(pdu.body)) + pdu.body)
        primitive = accept.to_primitive()
        return _Answer(
            {
                each.context_id or 0: (2 if each.result is None else each.result, "".join(each.transfer_syntax[:1]))
                for each in primitive.presentation_context_definition_results_list
            },
            primitive.maximum_length_received or 0,
        )
    except Exception:  # noqa: BLE001 - what the library raises on bytes it does not like is documented nowhere
        raise dimse.ProtocolError("invalid A-ASSOCIATE-AC") from None
