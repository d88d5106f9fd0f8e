"""The DICOM door: takes images from the network into the spool, and says 0x0000 only when custody is taken (R20).

pynetdicom encodes and decodes the negotiation, and nothing more, for the reasons that the Storage SCU gives: its own
association polls, copies every instance into memory, and can be held up for ever in the middle of a PDU. Here each
association is one thread that owns its socket. What arrives of a data set goes to the disk at once; a deadline stands
behind every wait; memory is flat whatever a peer sends.

What is written is the data set as it came, behind a File Meta Information of our own (P10-3, P10-6). Before the
answer it is walked to its end: what cannot be parsed, has no study, or is not what the command set says is refused,
and the sender keeps it and knows (NET-18). No failure of ours is ever answered as a success.

=========  ==================================================================================================
Status     When (PS3.4 B.2.3, PS3.7 Annex C)
=========  ==================================================================================================
0x0000     The bytes are synced, and the row is committed
0xA700     There is no room, or the disk or the ledger did not take it: send it again later
0xA900     The data set is of another SOP Class, or another instance, than the command set says
0xC000     The data set cannot be parsed to its end
0xC001     It is bigger than ``limits.instance``
0xC002     It lacks a Study or Series Instance UID, or has a UID that is none
0x0110     Something went wrong here that nobody foresaw
0x0117     Affected SOP Instance UID is no UID
0x0122     Affected SOP Class UID is not the one of the presentation context
0x0211     The operation is none of those we do
=========  ==================================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import ipaddress
import logging
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Protocol, Self, TypeVar

import structlog
from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext, build_context

from gateway import model
from gateway.config import StorageSCP
from gateway.core import commitment, dataset, dimse, filemeta, negotiation, part10, pdata
from gateway.core.contexts import VERIFICATION
from gateway.errors import GatewayError, LedgerError, LowDiskError
from gateway.ledger.custody import Caller, Received
from gateway.ledger.spool import Draft

for _name in ("pydicom", "pynetdicom"):  # they log UIDs, titles and whole PDUs at will
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

_log = structlog.get_logger(__name__)

T = TypeVar("T")

SUCCESS: Final = 0x0000
OUT_OF_RESOURCES: Final = 0xA700
MISMATCH: Final = 0xA900
NOT_UNDERSTOOD: Final = 0xC000
TOO_BIG: Final = 0xC001
UNIDENTIFIED: Final = 0xC002
PROCESSING_FAILURE: Final = 0x0110
INVALID_ARGUMENT: Final = 0x0115
INVALID_INSTANCE: Final = 0x0117
NO_SUCH_CLASS: Final = 0x0122
UNRECOGNISED_OPERATION: Final = 0x0211

_STATUSES: Final = {
    **dict.fromkeys(("sop-class-mismatch", "meta-instance", "no-sop-class", "no-sop-instance"), MISMATCH),
    **dict.fromkeys(("no-study", "no-series", "invalid-uid"), UNIDENTIFIED),
}
"""By the code of what is wrong with a data set; what is not named here cannot be understood."""

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"

PERMANENT: Final = 1
TRANSIENT: Final = 2
NO_SUCH_CONTEXT_NAME: Final = (PERMANENT, 1, 2)
NO_SUCH_CALLING: Final = (PERMANENT, 1, 3)
NO_SUCH_CALLED: Final = (PERMANENT, 1, 7)
NO_SUCH_VERSION: Final = (PERMANENT, 2, 2)
LOCAL_LIMIT: Final = (TRANSIENT, 3, 2)
"""Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 Table 9-21)."""

BLOCK: Final = 256 << 10
"""Bytes taken from a connection at once, and, with the head, all of an instance that is in memory."""

HEAD: Final = 2 * dataset.PIECE
"""Bytes of a file that are kept to be judged: most data sets but for their pixels."""

ROOM_EVERY: Final = 64 << 20
"""Bytes of an instance after which the free space is looked at again: nobody declares its size."""

PATIENCE: Final = 2
"""How many times the limit of an instance is read of one that is refused."""

SLOWEST: Final = 16 << 10
"""Bytes per second below which a transfer counts as stalled, however steadily it drips (R4)."""

STRANGERS: Final = 32
"""Connections beside the associations that may wait for their request to be read. The oldest makes way."""

RELEASED: Final = "released"
"""How an association ends in good order."""

BREATH: Final = 0.5
"""Seconds without accepting after the system had no descriptor or thread for us."""


class Incoming(Protocol):
    """What the door needs of the gateway behind it. The threads of associations call it."""

    def titles(self) -> Collection[str]:
        """AE titles that images may be sent to, beside the door's own."""

    def welcomes(self, caller: Caller) -> bool:
        """Whether images of this caller have somewhere to go."""

    def demand_room(self, size: int) -> None:
        """Raise LowDiskError when an instance of this size (0: unknown) has no room (R5)."""

    def draft(self) -> Draft:
        """Begin the file that an instance is written to."""

    def accept(self, received: Received, patience: float) -> int:
        """Take custody: bytes synced, row committed. Owns the draft from here on, whatever comes of it.

        Returns:
            The DIMSE status of the answer; 0 only when custody is taken.

        Raises:
            TimeoutError: It took longer than that many seconds; custody may be taken yet, or not.
            LowDiskError: There is no room now.
            OSError: The disk did not take it.
            LedgerError: The ledger did not take it.
        """


OnReport = Callable[[commitment.Report], Awaitable[bool]]
"""Takes note of a storage commitment report; tells whether its transaction is one of ours."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long the door waits for its peer, in seconds (R4).

    Attributes:
        handshake: For a TLS handshake.
        request: For the association request (ARTIM, PS3.8 §9.1.5).
        idle: For the next message of an open association.
        silence: For the next bytes of a message that has begun.
        reply: Until the peer has taken our answer.
        custody: For the disk and the ledger; then the association is aborted, and the sender does not know.
        farewell: For the peer to close what is over.
    """

    handshake: float = 30.0
    request: float = 30.0
    idle: float = 600.0
    silence: float = 60.0
    reply: float = 60.0
    custody: float = 120.0
    farewell: float = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one instance may be.

    Attributes:
        instance: Bytes of its file.
        unpacked: Bytes that a deflated data set may inflate to.
    """

    instance: int = 2 << 30
    unpacked: int = 8 << 30


@dataclass(slots=True)
class Counters:
    """What happened at the door since it was made, for the metrics.

    Attributes:
        associations: Associations that were accepted.
        rejected: Associations that were not.
        turned_away: Connections that were closed before a word was said.
        aborted: Associations that did not end with a release.
        stored: Instances that were answered with success.
        bytes: Of those instances' files.
        failures: Instances that were answered with a failure.
        reports: Storage commitment reports that were taken note of.
    """

    associations: int = 0
    rejected: int = 0
    turned_away: int = 0
    aborted: int = 0
    stored: int = 0
    bytes: int = 0
    failures: int = 0
    reports: int = 0


class StorageScpDoor:
    """Listens, and holds the associations.

    Args:
        settings: The section [storescp].
        incoming: The gateway behind the door; None: images are refused, echo and commitment reports are served.
        on_report: Takes note of storage commitment reports; None: their contexts are refused.
        archives: AE titles of our own destinations: they may bring reports, whatever ``callers`` says.
        tls: For every connection; None for plain ones.
        limits: What one instance may be.
        deadlines: How long peers are waited for.
    """

    def __init__(
        self,
        settings: StorageSCP,
        incoming: Incoming | None,
        on_report: OnReport | None = None,
        *,
        archives: Collection[str] = (),
        tls: ssl.SSLContext | None = None,
        limits: Limits = Limits(),
        deadlines: Deadlines = Deadlines(),
    ) -> None:
        self.incoming = incoming
        self.on_report = on_report
        self.deadlines = deadlines
        self.counters = Counters()
        self.reload(settings, archives=archives, tls=tls, limits=limits)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: list[socket.socket] = []
        self.counting = threading.Lock()
        self._lock = threading.Lock()
        self._connections: dict[_Association, bool] = {}  # whether it is an association yet, the oldest first
        self._closing = False
        self._empty = asyncio.Event()

    def reload(
        self,
        settings: StorageSCP,
        *,
        archives: Collection[str] = (),
        tls: ssl.SSLContext | None = None,
        limits: Limits = Limits(),
    ) -> None:
        """Use other settings for associations that begin from now on. Where it listens does not change."""
        self.settings = settings
        self.archives = frozenset(archives)
        self.tls = tls
        self.limits = limits

    async def open(self) -> None:
        """Begin to listen.

        Raises:
            GatewayError: The address cannot be used; nothing is open then.
        """
        self._loop = asyncio.get_running_loop()
        host, port = self.settings.listen
        try:
            for family, _, _, _, address in await self._loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                self._listen(family, address)
        except OSError as error:
            await self.close(0)
            raise GatewayError(f"DICOM cannot listen on {self.settings.listen}: {_why(error)}") from error

    async def close(self, patience: float) -> None:
        """Stop listening, let every association finish the instance it is receiving, and abort it then.

        Args:
            patience: Seconds they may take; what is not finished then is cut off.
        """
        self._closing = True
        self._tell_empty()
        for listener in self._listeners:
            assert self._loop is not None
            if listener.fileno() >= 0:
                self._loop.remove_reader(listener)
                listener.close()
        for each in list(self._connections):
            each.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._empty.wait()
        for each in list(self._connections):
            each.interrupt()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where the door listens."""
        return [listener.getsockname()[:2] for listener in self._listeners if listener.fileno() >= 0]

    @property
    def associations(self) -> int:
        """How many are open now."""
        return sum(list(self._connections.values()))

    # What associations ask, each from its thread

    def admit(self, association: _Association) -> bool:
        """Count a connection as an association, unless there are too many."""
        with self._lock:
            if sum(self._connections.values()) >= self.settings.associations or self._closing:
                return False
            self._connections[association] = True
            self.counters.associations += 1
            return True

    def forget(self, association: _Association) -> None:
        """A connection is gone."""
        with self._lock:
            self._connections.pop(association, None)
        if self._closing and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits
                self._loop.call_soon_threadsafe(self._tell_empty)

    def wait_for(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """Let the loop do something, and wait for it. It is not cancelled when it takes too long.

        Raises:
            TimeoutError: It took too long.
        """
        assert self._loop is not None
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(seconds)

    # Connections

    def _tell_empty(self) -> None:
        if not self._connections:
            self._empty.set()

    def _listen(self, family: int, address: Any) -> None:
        listener = socket.socket(family, socket.SOCK_STREAM)
        self._listeners.append(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(128)
        listener.setblocking(False)
        self._resume(listener)

    def _resume(self, listener: socket.socket) -> None:
        if not self._closing:
            assert self._loop is not None
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, address = listener.accept()
            self._begin(connection, _plain(address[0]))
        except (BlockingIOError, ConnectionError):
            pass  # it went away again
        except (OSError, RuntimeError) as error:
            assert self._loop is not None
            _log.error("storescp-accept-failed", error=type(error).__name__)
            self._loop.remove_reader(listener)
            self._loop.call_later(BREATH, self._resume, listener)

    def _begin(self, connection: socket.socket, peer: str) -> None:
        allowed = self.settings.addresses
        if allowed is not None and not any(ipaddress.ip_address(peer) in network for network in allowed):
            self.counters.turned_away += 1
            connection.close()
            return
        association = _Association(self, connection, peer)
        with self._lock:
            strangers = [each for each, accepted in self._connections.items() if not accepted]
            self._connections[association] = False
        if len(strangers) >= STRANGERS:
            self.counters.turned_away += 1
            strangers[0].interrupt()
        try:
            association.start()
        except RuntimeError:
            self.forget(association)
            connection.close()
            raise


class _OverError(Exception):
    """The association is over.

    Attributes:
        why: By what, in a word.
        abort: The peer is told.
    """

    def __init__(self, why: str, *, abort: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.abort = abort


@dataclass(slots=True)
class _Intake:
    """The data set that is coming now, behind a command set that announced it.

    Attributes:
        request: The command set.
        refused: Why the data set is not wanted: its status and a comment. It is thrown away as it comes.
        draft: Where an instance is written; None for anything else.
        content: What is kept in memory: the head of an instance, or all of a report.
        size: Bytes so far, of the file or of the data set.
        data_set: Offset of the data set in the file.
        hashed: Of the data set.
    """

    request: dimse.Message
    refused: tuple[int, str] | None = None
    draft: Draft | None = None
    content: bytearray = field(default_factory=bytearray)
    size: int = 0
    unchecked: int = 0
    data_set: int = 0
    hashed: hashlib._Hash = field(default_factory=hashlib.sha256)

    def refuse(self, status: int, comment: str) -> None:
        """Take no more of it; the first reason counts."""
        if self.refused is None:
            self.refused = (status, comment)
        self.discard()

    def discard(self) -> None:
        """Give back the room it took."""
        if self.draft is not None:
            self.draft.discard()
            self.draft = None


class _Association:
    """One connection, and the thread that serves it."""

    def __init__(self, door: StorageScpDoor, connection: socket.socket, peer: str) -> None:
        self._door = door
        self._socket = connection
        self._peer = peer
        self._thread = threading.Thread(target=self._live, name="storescp", daemon=True)
        self._state = threading.Lock()
        self._busy = False
        self._leaving = False
        self._caller = Caller("", "", peer)
        self._associated = False
        self._contexts: dict[int, negotiation.Decision] = {}
        self._fragment = dimse.fragment_size(0)
        self._stream = pdata.Stream(max(door.settings.max_pdu, dimse.LONGEST_PDU))
        self._buffer = memoryview(bytearray(BLOCK))
        self._patience = 0.0
        self._until = 0.0
        self._command = bytearray()
        self._command_context = 0
        self._intake: _Intake | None = None
        self._began: float | None = None
        self._got = 0

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def leave(self) -> None:
        """Go, because the gateway stops: at once, or after the instance that is coming. For another thread."""
        with self._state:
            self._leaving = True
            if not self._busy:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RD)

    def interrupt(self) -> None:
        """End every wait of its thread, from another thread; the descriptor stays that thread's."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # below TLS, whose own shutdown is not for threads

    # Its life

    def _live(self) -> None:
        try:
            self._serve()
        except _OverError as over:
            self._end(over.why, "" if over.abort else None)
        except dimse.ProtocolError as error:
            self._end("protocol-error", str(error))
        except Exception as error:  # noqa: BLE001  whatever it is, the peer is told, and nothing is left behind
            _log.error("storescp-failed", exception=type(error).__name__)
            self._end("failure", "")
        finally:
            if self._intake is not None:
                self._intake.discard()
            self._socket.close()
            self._door.forget(self)

    def _serve(self) -> None:
        self._secure()
        self._expect(self._door.deadlines.request)
        events = self._events()
        if self._negotiate(next(events)):
            self._expect(self._door.deadlines.idle)
            for event in events:
                self._take(event)

    def _end(self, why: str, abort: str | None) -> None:
        """Note the end, and tell the peer where it has to be told: what was wrong, or nothing."""
        if self._associated and why != RELEASED:
            with self._door.counting:
                self._door.counters.aborted += 1
            _log.warning("association-ended", peer=self._peer, reason=why)
        if abort is not None:
            with contextlib.suppress(_OverError):
                self._say(dimse.provider_abort(abort))
                self._farewell()

    def _secure(self) -> None:
        # Each answer is one small message; Nagle's algorithm would hold every one back for some 40 ms.
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._door.tls is not None:
                self._socket.settimeout(self._door.deadlines.handshake)
                self._socket = self._door.tls.wrap_socket(self._socket, server_side=True)
        except OSError as error:
            _log.warning("tls-failed", peer=self._peer, exception=type(error).__name__)
            raise _OverError("no-tls") from None

    # The wire

    def _expect(self, seconds: float) -> None:
        """Allow so many seconds for what comes next."""
        self._until = time.monotonic() + seconds
        if seconds != self._patience:
            self._patience = seconds
            self._socket.settimeout(seconds)

    def _events(self) -> Iterator[dimse.Pdu | pdata.Piece]:
        while True:
            try:
                size = self._socket.recv_into(self._buffer)
            except TimeoutError:
                self._timed_out()
            except OSError:
                raise _OverError("closed") from None
            if not size:
                self._closed()
            self._watch(size)
            yield from self._stream.feed(self._buffer[:size])
            self._rest()

    def _watch(self, size: int) -> None:
        """See that what is coming keeps coming, and fast enough."""
        with self._state:
            self._busy = True
        self._got += size
        if time.monotonic() > self._until + self._got / SLOWEST:
            self._timed_out()

    def _rest(self) -> None:
        """Between two messages the gateway may stop, and the peer may be silent for longer."""
        if self._intake is not None or self._command:
            if self._began is None:
                self._began = time.monotonic()
                self._expect(self._door.deadlines.silence)
            return
        if self._associated:
            self._got = 0
            self._began = None
            self._expect(self._door.deadlines.idle)
        with self._state:
            self._busy = False
            leaving = self._leaving
        if leaving:
            self._closed()

    def _timed_out(self) -> NoReturn:
        raise _OverError("timeout", abort=self._associated)

    def _closed(self) -> NoReturn:
        raise _OverError("stopping" if self._leaving else "closed", abort=self._leaving and self._associated)

    def _say(self, block: bytes) -> None:
        """Send an answer."""
        try:
            self._expect(self._door.deadlines.reply)
            self._socket.sendall(block)
        except OSError:
            raise _OverError("closed") from None

    def _farewell(self) -> None:
        """Let the peer read our last word: closing on bytes that nobody read would take it back (PS3.8 §9.2, Sta13)."""
        until = time.monotonic() + self._door.deadlines.farewell
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
            while (left := until - time.monotonic()) > 0:
                self._socket.settimeout(left)
                if not self._socket.recv_into(self._buffer):
                    return

    # Negotiation

    def _negotiate(self, pdu: dimse.Pdu | pdata.Piece) -> bool:
        """Answer the association request; tell whether it was accepted."""
        if not isinstance(pdu, dimse.Pdu) or pdu.type != dimse.A_ASSOCIATE_RQ:
            raise dimse.ProtocolError(dimse.UNEXPECTED)
        request, proposals = _read_request(pdu)
        self._caller = Caller(_title(request.calling_ae_title), _title(request.called_ae_title), self._peer)
        self._fragment = dimse.fragment_size(request.maximum_length_received or 0)
        rejection = self._rejection(pdu, request, proposals)
        if rejection is not None:
            return self._reject(rejection)
        decisions = negotiation.decide(proposals, self._policy())
        if not self._door.admit(self):
            return self._reject(LOCAL_LIMIT)
        self._associated = True
        self._contexts = {each.id: each for each in decisions if each.result == negotiation.ACCEPTED}
        self._say(_accept(request, proposals, decisions, self._door.settings.max_pdu))
        return True

    def _policy(self) -> negotiation.Policy:
        return negotiation.Policy(
            storage=self._door.incoming is not None,
            unknown_classes=self._door.settings.unknown_classes == "accept",
            reports=self._door.on_report is not None,
            archive=self._caller.calling in self._door.archives,
        )

    def _rejection(
        self, pdu: dimse.Pdu, request: A_ASSOCIATE, proposals: Sequence[negotiation.Proposal]
    ) -> tuple[int, int, int] | None:
        """Say why a request is rejected as a whole, if it is (NET-7)."""
        incoming, settings = self._door.incoming, self._door.settings
        stores = incoming is not None and negotiation.wants_storage(proposals)
        if not pdu.body[1] & 1:
            return NO_SUCH_VERSION
        if request.application_context_name != APPLICATION_CONTEXT:
            return NO_SUCH_CONTEXT_NAME
        if self._caller.called not in {settings.title, *(incoming.titles() if incoming else ())}:
            return NO_SUCH_CALLED
        known = settings.callers is None or self._caller.calling in settings.callers
        if not known and (stores or self._caller.calling not in self._door.archives):
            return NO_SUCH_CALLING
        return self._no_place(incoming) if incoming is not None and stores else None

    def _no_place(self, incoming: Incoming) -> tuple[int, int, int] | None:
        """Say why there is no place for images of this caller, if there is none."""
        if not incoming.welcomes(self._caller):
            return NO_SUCH_CALLING
        try:
            incoming.demand_room(0)
        except LowDiskError:
            return LOCAL_LIMIT
        return None

    def _reject(self, rejection: tuple[int, int, int]) -> bool:
        self._door.counters.rejected += 1
        _log.warning("association-rejected", peer=self._peer, reason=_REASONS[rejection])
        with contextlib.suppress(_OverError):
            self._say(dimse.rejection(*rejection))
            self._farewell()
        return False

    # Messages

    def _take(self, event: dimse.Pdu | pdata.Piece) -> None:
        if isinstance(event, dimse.Pdu):
            self._take_pdu(event)
            return
        if event.context not in self._contexts:
            raise dimse.ProtocolError("no such presentation context")
        if event.command:
            self._take_command(event)
        elif self._intake is None or event.context != self._intake.request.context:
            raise dimse.ProtocolError("unexpected data set")
        else:
            self._take_data(self._intake, event.block)
            if event.last:
                self._finish(self._intake)

    def _take_pdu(self, pdu: dimse.Pdu) -> None:
        if pdu.type == dimse.A_RELEASE_RQ and self._intake is None and not self._command:
            self._say(dimse.RELEASE_RESPONSE)
            self._farewell()
            raise _OverError(RELEASED)
        if pdu.type == dimse.A_ABORT:
            raise _OverError("aborted")
        raise dimse.ProtocolError(dimse.UNEXPECTED)

    def _take_command(self, piece: pdata.Piece) -> None:
        if self._intake is not None or (self._command and piece.context != self._command_context):
            raise dimse.ProtocolError("unexpected command set")
        self._command += piece.block
        self._command_context = piece.context
        if len(self._command) > dimse.LONGEST_COMMAND:
            raise dimse.ProtocolError("command set too long")
        if piece.last:
            request = dimse.read_command(piece.context, bytes(self._command))
            self._command.clear()
            self._begin(request)

    def _begin(self, request: dimse.Message) -> None:
        """Answer a command set, or get ready for its data set."""
        if request.field & 0x8000:
            raise dimse.ProtocolError("a response that nobody waits for")
        if request.field == dimse.C_CANCEL_RQ:
            return  # of something that has been answered already
        context = self._contexts[request.context]
        intake = _Intake(request)
        operation = (context.abstract_syntax, request.field)
        if operation == (VERIFICATION[0], dimse.C_ECHO_RQ):
            intake.refused = (SUCCESS, "")
        elif operation == (commitment.SOP_CLASS, dimse.N_EVENT_REPORT_RQ):
            pass
        elif request.field == dimse.C_STORE_RQ and context.abstract_syntax not in _NO_STORAGE:
            self._begin_instance(intake, context)
        else:
            intake.refused = (UNRECOGNISED_OPERATION, "")
        if dimse.has_data_set(request):
            self._intake = intake
        else:
            self._respond(request, *(intake.refused or (NOT_UNDERSTOOD, "no data set")))
            intake.discard()

    def _begin_instance(self, intake: _Intake, context: negotiation.Decision) -> None:
        incoming = self._door.incoming
        assert incoming is not None
        sop_class, sop_instance = intake.request.text(0x0002), intake.request.text(0x1000)
        if sop_class != context.abstract_syntax:
            intake.refuse(NO_SUCH_CLASS, "not the SOP class of the presentation context")
        elif not part10.is_uid(sop_instance):
            intake.refuse(INVALID_INSTANCE, "Affected SOP Instance UID is no UID")
        elif self._has_room(intake):
            intake.draft = incoming.draft()
            head = filemeta.write(sop_class, sop_instance, context.transfer_syntax, self._caller.calling)
            intake.data_set = len(head)
            self._keep(intake, memoryview(head))

    def _take_data(self, intake: _Intake, block: memoryview) -> None:
        if intake.refused is not None:
            # Read to its end, because only then the peer listens; but not for ever.
            intake.size += len(block)
            if intake.size > PATIENCE * self._door.limits.instance:
                raise dimse.ProtocolError("data set too long")
        elif intake.draft is not None:
            intake.hashed.update(block)
            self._keep(intake, block)
        else:
            intake.content += block
            if len(intake.content) > dimse.LONGEST_DATA_SET:
                raise dimse.ProtocolError("data set too long")

    def _keep(self, intake: _Intake, block: memoryview) -> None:
        """Write a block of an instance down."""
        assert intake.draft is not None
        intake.size += len(block)
        intake.unchecked += len(block)
        if intake.size > self._door.limits.instance:
            intake.refuse(TOO_BIG, "bigger than what is taken here")
            return
        if intake.unchecked > ROOM_EVERY:
            intake.unchecked = 0
            if not self._has_room(intake):
                return
        if len(intake.content) < HEAD:
            intake.content += block
        try:
            intake.draft.write(block)
        except OSError as error:
            _log.error("storescp-write-failed", exception=type(error).__name__)
            intake.refuse(OUT_OF_RESOURCES, "the disk did not take it")

    def _has_room(self, intake: _Intake) -> bool:
        assert self._door.incoming is not None
        try:
            self._door.incoming.demand_room(0)
        except LowDiskError:
            intake.refuse(OUT_OF_RESOURCES, "not enough room, try again later")
        return intake.refused is None

    def _finish(self, intake: _Intake) -> None:
        """Answer a message whose data set is complete."""
        if intake.refused is not None:
            status, comment = intake.refused
        elif intake.draft is None:
            self._report(intake)
            self._intake = None
            return
        else:
            status, comment = self._store(intake, intake.draft)
        if intake.request.field == dimse.C_STORE_RQ:
            self._count(status, intake.size)
        self._respond(intake.request, status, comment)
        self._intake = None

    def _count(self, status: int, size: int) -> None:
        counters = self._door.counters
        with self._door.counting:
            if status == SUCCESS:
                counters.stored += 1
                counters.bytes += size
            else:
                counters.failures += 1
        if status != SUCCESS:
            _log.warning("storescp-refused", peer=self._peer, status=f"0x{status:04X}")

    def _respond(self, request: dimse.Message, status: int, comment: str = "") -> None:
        self._say(dimse.pack(request.context, self._fragment, dimse.response(request, status, comment)))

    # Instances and reports

    def _store(self, intake: _Intake, draft: Draft) -> tuple[int, str]:
        """Judge an instance, and hand it over; return status and comment."""
        try:
            if not draft.is_large:
                draft.begin_sync()  # the disk writes while it is judged
            judged = self._judge(intake, draft)
        except OSError as error:
            _log.error("storescp-write-failed", exception=type(error).__name__)
            intake.discard()
            return OUT_OF_RESOURCES, "the disk did not take it"
        wrong = judged.held or next((code for code in judged.codes if code in _STATUSES), None)
        if wrong is not None:
            intake.discard()
            return _STATUSES.get(wrong, NOT_UNDERSTOOD), wrong
        digest = intake.hashed
        whole = hashlib.sha256(intake.content[: intake.data_set] + digest.digest())
        received = Received(
            caller=self._caller,
            sop_class=judged.sop_class,
            sop_instance=judged.sop_instance,
            study=judged.study,
            series=judged.series,
            transfer_syntax=judged.meta.transfer_syntax,
            size=intake.size,
            sha256=whole.hexdigest(),
            data_set_sha256=digest.hexdigest(),
            data_set=intake.data_set,
            draft=draft,
        )
        intake.draft = None  # it is not ours any more
        return self._hand_over(received)

    def _judge(self, intake: _Intake, draft: Draft) -> part10.Judged:
        context = self._contexts[intake.request.context]
        request = intake.request
        meta = part10.Meta(
            request.text(0x0002), request.text(0x1000), context.transfer_syntax, intake.data_set, codes=()
        )
        with _Reader(draft) as reader:
            source = dataset.Stored(reader.read, bytes(intake.content), intake.size)
            return part10.judge(meta, source, intake.size, self._door.limits.unpacked)

    def _hand_over(self, received: Received) -> tuple[int, str]:
        assert self._door.incoming is not None
        try:
            return self._door.incoming.accept(received, self._door.deadlines.custody), ""
        except TimeoutError:
            # It may be ours yet, or not: neither yes nor no would be true.
            raise dimse.ProtocolError("no custody in time") from None
        except (OSError, LowDiskError, LedgerError) as error:
            _log.error("storescp-accept-failed", exception=type(error).__name__)
            return OUT_OF_RESOURCES, "not taken, try again later"
        except Exception as error:  # noqa: BLE001  unknown is temporary (R6), and its text stays here
            _log.error("storescp-accept-failed", exception=type(error).__name__)
            return PROCESSING_FAILURE, ""

    def _report(self, intake: _Intake) -> None:
        """Take note of a storage commitment report (SC-2, SC-3)."""
        request = intake.request
        context = self._contexts[request.context]
        event = request.number(0x1002)
        status = SUCCESS
        try:
            report = commitment.read_report(event, bytes(intake.content), context.transfer_syntax)
        except dimse.ProtocolError:
            status = PROCESSING_FAILURE
        else:
            status = self._note(report)
        self._say(dimse.pack(request.context, self._fragment, dimse.event_response(request, status)))

    def _note(self, report: commitment.Report) -> int:
        assert self._door.on_report is not None
        try:
            known = self._door.wait_for(_noted(self._door.on_report, report), self._door.deadlines.custody)
        except Exception as error:  # noqa: BLE001  it was not noted, so the archive must say it again
            _log.error("storescp-report-failed", exception=type(error).__name__)
            return PROCESSING_FAILURE
        if not known:
            return INVALID_ARGUMENT
        with self._door.counting:
            self._door.counters.reports += 1
        return SUCCESS


_NO_STORAGE: Final = frozenset({VERIFICATION[0], commitment.SOP_CLASS})

_REASONS: Final = {
    NO_SUCH_CONTEXT_NAME: "application-context",
    NO_SUCH_CALLING: "calling-title",
    NO_SUCH_CALLED: "called-title",
    NO_SUCH_VERSION: "protocol-version",
    LOCAL_LIMIT: "local-limit",
}


class _Reader:
    """Reads what a draft has put on disk; the file is opened when it is needed."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)

    def read(self, offset: int, size: int) -> bytes:
        """Read some bytes."""
        if not size:
            return b""
        if self._file < 0:
            self._file = os.open(self._draft.path, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._file, size, offset)


async def _noted(on_report: OnReport, report: commitment.Report) -> bool:
    return await on_report(report)


def _read_request(pdu: dimse.Pdu) -> tuple[A_ASSOCIATE, list[negotiation.Proposal]]:
    """Read an A-ASSOCIATE-RQ (PS3.8 §9.3.2).

    Raises:
        ProtocolError: It cannot be read.
    """
    request = A_ASSOCIATE_RQ()
    try:
        request.decode(struct.pack(">BxI", pdu.type, len(pdu.body)) + pdu.body)
        primitive = request.to_primitive()
        roles = {
            str(item.sop_class_uid): (bool(item.scu_role), bool(item.scp_role))
            for item in primitive.user_information
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
        }
        return primitive, [
            negotiation.Proposal(
                context.context_id or 0,
                str(context.abstract_syntax),
                tuple(str(syntax) for syntax in context.transfer_syntax),
                *roles.get(str(context.abstract_syntax), (None, None)),
            )
            for context in primitive.presentation_context_definition_list
        ]
    except Exception:  # noqa: BLE001  what the library raises on bytes it does not like is documented nowhere
        raise dimse.ProtocolError("invalid A-ASSOCIATE-RQ") from None


def _accept(
    request: A_ASSOCIATE,
    proposals: Sequence[negotiation.Proposal],
    decisions: Sequence[negotiation.Decision],
    max_pdu: int,
) -> bytes:
    """Write the A-ASSOCIATE-AC (PS3.8 §9.3.3)."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID(APPLICATION_CONTEXT)
    primitive.calling_ae_title = request.calling_ae_title
    primitive.called_ae_title = request.called_ae_title
    primitive.result = 0
    primitive.result_source = 1
    primitive.presentation_context_definition_results_list = [_result(each) for each in decisions]
    length = MaximumLengthNotification()
    length.maximum_length_received = max_pdu
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID(model.IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = model.IMPLEMENTATION_VERSION_NAME
    roles = {each.abstract_syntax: each for each in proposals if each.scu is not None}
    primitive.user_information = [length, implementation, version, *(_role(each) for each in roles.values())]
    answer = A_ASSOCIATE_AC()
    answer.from_primitive(primitive)
    encoded: bytes = answer.encode()
    return encoded


def _result(decision: negotiation.Decision) -> PresentationContext:
    context = build_context(decision.abstract_syntax, decision.transfer_syntax)
    context.context_id = decision.id
    context.result = decision.result
    return context


def _role(proposal: negotiation.Proposal) -> SCP_SCU_RoleSelectionNegotiation:
    """Agree to the role that makes sense: it reports as SCP, and stores and verifies as SCU (PS3.7 D.3.3.4)."""
    reports = proposal.abstract_syntax == commitment.SOP_CLASS
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid = UID(proposal.abstract_syntax)
    role.scu_role = not reports and bool(proposal.scu)
    role.scp_role = reports and bool(proposal.scp)
    return role


def _title(title: str) -> str:
    return title.strip(" \0")


def _plain(address: str) -> str:
    """The address of a peer; IPv4 as such, also when it came in through an IPv6 socket."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program uses this port"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return "not permitted"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have this address"
    return type(error).__name__
