"""One association: a thread that owns its socket, and the instances that come over it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

import structlog
from pynetdicom.pdu_primitives import A_ASSOCIATE

from gateway.core import commitment, dataset, dimse, filemeta, negotiation, part10, pdata
from gateway.core.contexts import VERIFICATION
from gateway.edges.storescp import answers, handshake
from gateway.errors import LedgerError, LowDiskError
from gateway.ledger.custody import Caller, Received
from gateway.ledger.drafts import Segment, Slice

if TYPE_CHECKING:
    from gateway.edges.storescp.door import Incoming, OnReport, StorageScpDoor

_log = structlog.get_logger(__name__)

BLOCK: Final = 256 << 10
"""Bytes taken from a connection at once, and, with the head, all of an instance that is in memory."""

HEAD: Final = dataset.PIECE + (4 << 10)
"""Bytes of a file that are kept to be judged: group 0002 and a piece, most data sets but for their pixels."""

ROOM_EVERY: Final = 64 << 20
"""Bytes of an instance after which the free space is looked at again: nobody declares its size."""

PATIENCE: Final = 2
"""How many times the limit of an instance is read of one that is refused."""

SLOWEST: Final = 16 << 10
"""Bytes per second below which a transfer counts as stalled, however steadily it drips (R4)."""

RELEASED: Final = "released"
"""How an association ends in good order."""

_NO_STORAGE: Final = frozenset({VERIFICATION[0], commitment.SOP_CLASS})


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
    """

    request: dimse.Message
    refused: tuple[int, str] | None = None
    draft: Slice | None = None
    content: bytearray = field(default_factory=bytearray)
    size: int = 0
    unchecked: int = 0
    data_set: int = 0

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


class Association:
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
        self._segment: Segment | None = None
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
            if self._segment is not None:
                self._segment.close()
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
        request, proposals = handshake.read_request(pdu)
        self._caller = Caller(
            handshake.title(request.calling_ae_title), handshake.title(request.called_ae_title), self._peer
        )
        self._fragment = dimse.fragment_size(request.maximum_length_received or 0)
        rejection = self._rejection(pdu, request, proposals)
        if rejection is not None:
            return self._reject(rejection)
        decisions = negotiation.decide(proposals, self._policy())
        if not self._door.admit(self):
            return self._reject(answers.LOCAL_LIMIT)
        self._associated = True
        self._contexts = {each.id: each for each in decisions if each.result == negotiation.ACCEPTED}
        self._say(handshake.acceptance(request, proposals, decisions, self._door.settings.max_pdu))
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
            return answers.NO_SUCH_VERSION
        if request.application_context_name != handshake.APPLICATION_CONTEXT:
            return answers.NO_SUCH_CONTEXT_NAME
        if self._caller.called not in {settings.title, *(incoming.titles() if incoming else ())}:
            return answers.NO_SUCH_CALLED
        known = settings.callers is None or self._caller.calling in settings.callers
        if not known and (stores or self._caller.calling not in self._door.archives):
            return answers.NO_SUCH_CALLING
        return self._no_place(incoming) if incoming is not None and stores else None

    def _no_place(self, incoming: Incoming) -> tuple[int, int, int] | None:
        """Say why there is no place for images of this caller, if there is none."""
        if not incoming.welcomes(self._caller):
            return answers.NO_SUCH_CALLING
        try:
            incoming.demand_room(0)
        except LowDiskError:
            return answers.LOCAL_LIMIT
        return None

    def _reject(self, rejection: tuple[int, int, int]) -> bool:
        self._door.counters.rejected += 1
        _log.warning("association-rejected", peer=self._peer, reason=answers.REJECTIONS[rejection].reason)
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
            intake.refused = (answers.SUCCESS, "")
        elif operation == (commitment.SOP_CLASS, dimse.N_EVENT_REPORT_RQ):
            pass
        elif request.field == dimse.C_STORE_RQ and context.abstract_syntax not in _NO_STORAGE:
            self._begin_instance(intake, context)
        else:
            intake.refused = (answers.UNRECOGNISED_OPERATION, "")
        if dimse.has_data_set(request):
            self._intake = intake
        else:
            self._respond(request, *(intake.refused or (answers.NOT_UNDERSTOOD, "no data set")))
            intake.discard()

    def _begin_instance(self, intake: _Intake, context: negotiation.Decision) -> None:
        incoming = self._door.incoming
        assert incoming is not None
        sop_class, sop_instance = intake.request.text(0x0002), intake.request.text(0x1000)
        if sop_class != context.abstract_syntax:
            intake.refuse(answers.NO_SUCH_CLASS, "not the SOP class of the presentation context")
        elif not part10.is_uid(sop_instance):
            intake.refuse(answers.INVALID_INSTANCE, "Affected SOP Instance UID is no UID")
        elif self._has_room(intake) and self._open_draft(intake, incoming):
            head = filemeta.write(sop_class, sop_instance, context.transfer_syntax, self._caller.calling)
            intake.data_set = len(head)
            self._keep(intake, memoryview(head))

    def _open_draft(self, intake: _Intake, incoming: Incoming) -> bool:
        """Begin an instance behind the last one of this association."""
        try:
            if self._segment is not None and self._segment.is_full:
                self._segment.close()
                self._segment = None
            if self._segment is None:
                self._segment = incoming.segment()
            intake.draft = self._segment.draft()
        except OSError as error:
            self._not_written(intake, error)
        return intake.refused is None

    def _not_written(self, intake: _Intake, error: OSError) -> None:
        _log.error("storescp-write-failed", exception=type(error).__name__)
        intake.refuse(answers.OUT_OF_RESOURCES, "the disk did not take it")

    def _take_data(self, intake: _Intake, block: memoryview) -> None:
        if intake.refused is not None:
            # Read to its end, because only then the peer listens; but not for ever.
            intake.size += len(block)
            if intake.size > PATIENCE * self._door.limits.instance:
                raise dimse.ProtocolError("data set too long")
        elif intake.draft is not None:
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
            intake.refuse(answers.TOO_BIG, "bigger than what is taken here")
            return
        if intake.unchecked > ROOM_EVERY:
            intake.unchecked = 0
            if not self._has_room(intake):
                return
        if len(intake.content) < HEAD:
            intake.content += block[: HEAD - len(intake.content)]
        try:
            intake.draft.write(block)
        except OSError as error:
            self._not_written(intake, error)

    def _has_room(self, intake: _Intake) -> bool:
        assert self._door.incoming is not None
        try:
            self._door.incoming.demand_room(0)
        except LowDiskError:
            intake.refuse(answers.OUT_OF_RESOURCES, "not enough room, try again later")
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
            if status == answers.SUCCESS:
                counters.stored += 1
                counters.bytes += size
            else:
                counters.failures += 1
        if status != answers.SUCCESS:
            _log.warning("storescp-refused", peer=self._peer, status=f"0x{status:04X}")

    def _respond(self, request: dimse.Message, status: int, comment: str = "") -> None:
        self._say(dimse.pack(request.context, self._fragment, dimse.response(request, status, comment)))

    # Instances and reports

    def _store(self, intake: _Intake, draft: Slice) -> tuple[int, str]:
        """Judge an instance, and hand it over; return status and comment."""
        try:
            if not draft.is_large:
                draft.begin_sync()  # the disk writes while it is judged
            judged = self._judge(intake, draft)
        except OSError as error:
            _log.error("storescp-write-failed", exception=type(error).__name__)
            intake.discard()
            return answers.OUT_OF_RESOURCES, "the disk did not take it"
        wrong = judged.held or next((code for code in judged.codes if code in answers.BY_CODE), None)
        if wrong is not None:
            intake.discard()
            return answers.BY_CODE.get(wrong, answers.NOT_UNDERSTOOD), wrong
        received = Received(
            caller=self._caller,
            sop_class=judged.sop_class,
            sop_instance=judged.sop_instance,
            study=judged.study,
            series=judged.series,
            transfer_syntax=judged.meta.transfer_syntax,
            size=intake.size,
            sha256="",
            data_set_sha256="",
            data_set=intake.data_set,
            identity=judged.identity,
            draft=draft,
        )
        intake.draft = None  # it is not ours any more
        return self._hand_over(received)

    def _judge(self, intake: _Intake, draft: Slice) -> part10.Judged:
        context = self._contexts[intake.request.context]
        request = intake.request
        meta = part10.Meta(
            request.text(0x0002), request.text(0x1000), context.transfer_syntax, intake.data_set, codes=()
        )
        source = dataset.Stored(draft.read, bytes(intake.content), intake.size)
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
            return answers.OUT_OF_RESOURCES, "not taken, try again later"
        except Exception as error:  # noqa: BLE001  unknown is temporary (R6), and its text stays here
            _log.error("storescp-accept-failed", exception=type(error).__name__)
            return answers.PROCESSING_FAILURE, ""

    def _report(self, intake: _Intake) -> None:
        """Take note of a storage commitment report (SC-2, SC-3)."""
        request = intake.request
        context = self._contexts[request.context]
        event = request.number(0x1002)
        status = answers.SUCCESS
        try:
            report = commitment.read_report(event, bytes(intake.content), context.transfer_syntax)
        except dimse.ProtocolError:
            status = answers.PROCESSING_FAILURE
        else:
            status = self._note(report)
        self._say(dimse.pack(request.context, self._fragment, dimse.event_response(request, status)))

    def _note(self, report: commitment.Report) -> int:
        assert self._door.on_report is not None
        try:
            known = self._door.wait_for(_noted(self._door.on_report, report), self._door.deadlines.custody)
        except Exception as error:  # noqa: BLE001  it was not noted, so the archive must say it again
            _log.error("storescp-report-failed", exception=type(error).__name__)
            return answers.PROCESSING_FAILURE
        if not known:
            return answers.INVALID_ARGUMENT
        with self._door.counting:
            self._door.counters.reports += 1
        return answers.SUCCESS


async def _noted(on_report: OnReport, report: commitment.Report) -> bool:
    return await on_report(report)
