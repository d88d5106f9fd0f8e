"""One association: negotiated, used for one message after another, ended in good order or at once."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
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
from gateway.core import commitment, contexts, dimse, query, status
from gateway.edges.storescu.wire import CLOSED, TIMEOUT, DroppedError, Peer, Wire, connect, unreachable
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

QUERY_PATIENCE: Final = 5
"""Times the longest silence that one query may take, however steadily its matches drip."""

SPARE_MATCHES: Final = 1000
"""Matches of one query beyond those asked for that are read before it is cancelled."""

PENDING: Final = frozenset({0xFF00, 0xFF01})
"""Statuses of a C-FIND response that bears a match (PS3.4 Table C.4-1)."""

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
class _Answer:
    """An A-ASSOCIATE-AC: result and transfer syntax by context ID, and the longest PDU the peer takes."""

    results: Mapping[int, tuple[int, str]]
    longest: int


class Association:
    """One open association. Blocking; used by one thread at a time, except abort, which any thread may call.

    Attributes:
        refused: What the peer did not accept, by SOP class and transfer syntax, and the code for it (NET-5).
    """

    def __init__(self, wire: Wire, answer: _Answer, proposed: Sequence[contexts.Context]) -> None:
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
        wire = connect(peer)
        try:
            until = time.monotonic() + peer.timeout
            wire.write(request, until)
            return cls(wire, _answer(peer, wire.read(until)), proposed)
        except (DroppedError, dimse.ProtocolError) as error:
            wire.drop()
            # TLS 1.3 ends the handshake before the peer has looked at our certificate, and many only close then.
            doubt = ": does it take our certificate?" if peer.tls is not None and str(error) == CLOSED else ""
            raise unreachable(peer, f"gave no answer to the association request: {error}{doubt}") from None
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

    def accepted(self, sop_class: str) -> tuple[str, ...]:
        """The transfer syntaxes that the peer takes for a SOP class, of those proposed, in the order proposed."""
        return tuple(syntax for each, syntax in self._accepted if each == sop_class)

    @property
    def certificate_ends(self) -> datetime | None:
        """When the certificate that the peer showed expires; None without TLS."""
        return self._wire.certificate_ends

    def echo(self, deadline: float) -> int:
        """Send a C-ECHO; return its status.

        Raises:
            PeerUnreachableError: No valid response came; the association is dropped.
        """
        with self._asking(deadline):
            message = self._next_message()
            request = dimse.pack(self._accepted[contexts.VERIFICATION], self._fragment, dimse.echo_request(message))
            self._wire.write(request, time.monotonic() + deadline)
            return self._response(message, dimse.C_ECHO_RSP).status

    def find(self, wanted: Sequence[query.Wanted], deadline: float) -> query.Findings:
        """Ask which instances the peer has (PS3.4 C.4.1); needs ``query.CONTEXT`` among the accepted contexts.

        A peer may take a list of UIDs for one, or leave out what it has beyond some number. So an instance that is not
        among the matches of a list is asked for again alone, and only then called absent.

        Args:
            wanted: What is looked for.
            deadline: Seconds: the longest silence of the peer; one query may take ``QUERY_PATIENCE`` times that.

        Returns:
            One answer for each SOP Instance UID; ``unknown`` for those behind the end of the association.
        """
        presence = dict.fromkeys((one.sop_instance for one in wanted), query.Presence.UNKNOWN)
        try:
            with self._asking(deadline):
                refused = next(filter(None, (self._look(one, presence) for one in query.queries(wanted))), 0)
        except PeerUnreachableError as error:
            return query.Findings(presence, f"no answer to C-FIND: {error}")
        return query.Findings(presence, f"C-FIND was answered with status 0x{refused:04X}" if refused else "")

    def commit(
        self,
        transaction: str,
        references: Sequence[commitment.Reference],
        deadline: float,
        wait: float = 0.0,
        record: Callable[[commitment.Report], object] | None = None,
    ) -> commitment.Answer:
        """Request storage commitment (SC-1); needs ``commitment.CONTEXT`` among the accepted contexts.

        Args:
            transaction: A fresh Transaction UID.
            references: What the peer shall answer for.
            deadline: Seconds: the longest silence until the response.
            wait: Seconds to wait behind it for a report on this association; most peers open one of their own.
            record: Called with each report before it is answered, in this thread. When it raises, the peer is told
                that processing failed and may report again. None: a report is taken as returned.
        """
        answer = commitment.Answer(None, comment="closed")
        context = self._accepted.get(commitment.CONTEXT)
        if context is None:
            return commitment.Answer(None, refused=self.refused.get(commitment.CONTEXT, contexts.NOT_PROPOSED))
        try:
            with self._asking(deadline):
                message = self._next_message()
                request = dimse.action_request(
                    message, commitment.SOP_CLASS, commitment.SOP_INSTANCE, commitment.REQUEST
                )
                information = commitment.action_information(transaction, references)
                until = time.monotonic() + deadline + len(information) / SLOWEST
                self._wire.write(dimse.pack(context, self._fragment, request, information), until)
                answer = self._await_report(message, deadline, wait, record)
        except PeerUnreachableError as error:
            return replace(answer, comment=error.text)
        return answer

    def release(self) -> None:
        """Say goodbye in good order (PS3.8 §9.3.6) and close. Never fails, never waits long."""
        with self._busy:
            if self.alive:
                with contextlib.suppress(DroppedError, dimse.ProtocolError):
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

    @contextlib.contextmanager
    def _asking(self, deadline: float) -> Iterator[None]:
        """Have the association for one exchange; whatever breaks it off drops the association (R13)."""
        with self._busy:
            if not self.alive:
                raise PeerUnreachableError("closed")
            self._wire.patience = deadline
            try:
                yield
            except (DroppedError, dimse.ProtocolError) as error:
                self._wire.drop()
                raise PeerUnreachableError(str(error)) from None
            except BaseException:
                self._wire.drop()
                raise

    def _look(self, one: query.Query, presence: dict[str, query.Presence]) -> int:
        """Ask for instances of a series; return the status of a refusal, 0 when what was asked last was answered."""
        status, found = self._query(one)
        for instance in found & presence.keys():
            presence[instance] = query.Presence.PRESENT
        if len(one.sop_instances) > 1:
            alone = (one._replace(sop_instances=(each,)) for each in one.sop_instances if each not in found)
            return next(filter(None, (self._look(each, presence) for each in alone)), 0)
        if status == 0 and not found:
            presence[one.sop_instances[0]] = query.Presence.ABSENT
        return status

    def _query(self, one: query.Query) -> tuple[int, set[str]]:
        """Send one C-FIND; return its last status and the SOP Instance UIDs that matched."""
        message = self._next_message()
        context = self._accepted[query.CONTEXT]
        request = dimse.pack(
            context, self._fragment, dimse.find_request(message, query.SOP_CLASS), query.identifier(one)
        )
        end = time.monotonic() + QUERY_PATIENCE * self._wire.patience
        self._wire.write(request, end)
        messages = self._messages(end, self._wire.patience)
        found: set[str] = set()
        most = len(one.sop_instances) + SPARE_MATCHES
        for count, response in enumerate(messages):
            if response.field != dimse.C_FIND_RSP or response.answers != message:
                raise dimse.ProtocolError("response to another message")
            if response.status not in PENDING:
                return response.status, found
            if count == most:
                # It ignores the keys and lists everything: the rest of it is stopped, not waited for.
                cancel = dimse.pack(context, self._fragment, dimse.cancel_request(message))
                self._wire.write(cancel, time.monotonic() + self._wire.patience)
            elif count > 2 * most:
                raise dimse.ProtocolError("matches without end")
            found.add(query.sop_instance(response.data_set))
        raise AssertionError  # the messages end by an exception only

    def _messages(self, end: float, patience: float) -> Iterator[dimse.Message]:
        """Yield the messages that come until a moment, none later than ``patience`` seconds behind another."""
        reassembly = dimse.Reassembly()
        until = min(end, time.monotonic() + patience)
        while True:
            pdu = self._wire.read(until)
            if pdu.type != dimse.P_DATA_TF:
                self._ended(pdu)
            for message in reassembly.add(pdu):
                yield message
                until = min(end, time.monotonic() + patience)

    def _await_report(
        self, message: int, deadline: float, wait: float, record: Callable[[commitment.Report], object] | None
    ) -> commitment.Answer:
        """Read on until the N-ACTION is answered, and ``wait`` seconds more for a report; it may also come first."""
        answer = commitment.Answer(None)
        until = time.monotonic() + deadline
        messages = self._messages(until, deadline)
        while answer.status is None or not (answer.status or answer.reports):
            try:
                each = next(messages)
            except DroppedError as error:
                if answer.status is None:
                    raise
                if str(error) != TIMEOUT:
                    self._wire.drop()
                break
            if each.field == dimse.N_EVENT_REPORT_RQ:
                answer = replace(answer, reports=(*answer.reports, *self._take_report(each, record)))
            elif each.field == dimse.N_ACTION_RSP and each.answers == message and answer.status is None:
                answer = replace(answer, status=each.status)
                messages = self._messages(time.monotonic() + wait, wait)
            else:
                raise dimse.ProtocolError("response to another message")
        return answer

    def _take_report(
        self, request: dimse.Message, record: Callable[[commitment.Report], object] | None
    ) -> tuple[commitment.Report, ...]:
        taken: tuple[commitment.Report, ...] = ()
        status = commitment.UNSAID
        with contextlib.suppress(Exception):  # what cannot be read or recorded is answered as a failure
            report = commitment.read_report(request.number(0x1002), request.data_set)
            if record is not None:
                record(report)
            taken, status = (report,), 0
        response = dimse.pack(request.context, self._fragment, dimse.event_response(request, status))
        self._wire.write(response, time.monotonic() + self._wire.patience)
        return taken

    def _ready(self) -> bool:
        """Whether the next instance can be put on the wire; a peer that has ended the association is answered."""
        if not self.alive:
            return False
        try:
            if self._wire.spoken() is None:
                return True
            self._ended(self._wire.read(time.monotonic() + self._wire.patience))
        except (DroppedError, dimse.ProtocolError):
            self._wire.drop()
        return False

    def _ended(self, pdu: dimse.Pdu) -> None:
        """Answer a PDU that ends the association, and raise its name."""
        if pdu.type == dimse.A_RELEASE_RQ:
            self._wire.write(dimse.RELEASE_RESPONSE, time.monotonic() + RELEASE_PATIENCE)
            self._wire.close()
        elif pdu.type == dimse.A_ABORT:
            self._wire.close()  # an abort is not answered (PS3.8 §9.2.3, AA-3)
        raise DroppedError(pdu.name)

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
        except (DroppedError, dimse.ProtocolError) as error:
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
                raise DroppedError("the file became shorter")
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
        raise DroppedError(type(error).__name__) from None


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
