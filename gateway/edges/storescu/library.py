"""The fall-back: messages encoded and decoded by pynetdicom, on a socket that stays ours.

For the day on which a peer disagrees with our own encoding, ``ae.NAME.sender = "library"`` changes to this. It is not
pynetdicom's whole association: that one hangs for good on a peer that stops within a PDU, and its two threads race for
the response, so that an image that was stored looks lost. Here no thread but the caller's reads or writes, and
deadlines and ``abort`` hold as they do for our own. The price: each instance is in memory whole, and it is slow.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from io import BytesIO

from pydicom.uid import UID
from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import P_DATA_TF

from gateway import model
from gateway.core import dimse, status
from gateway.edges.storescu.association import SLOWEST, Association


class LibraryAssociation(Association):
    """An association whose C-STORE messages pynetdicom writes and reads."""

    def _exchange(self, queued: model.Queued, context: int, file: int) -> int:
        message = self._next_message()
        until = time.monotonic() + self._wire.patience + queued.data_set.size / SLOWEST
        early = False
        for pdu in self._pdus(queued, context, message, file):
            early = self._interrupted()
            self._wire.write(pdu, until)
        answer = self._answer()
        if answer.MessageIDBeingRespondedTo != message:
            raise dimse.ProtocolError("response with another message id")
        if answer.AffectedSOPInstanceUID not in {None, "", queued.sop_instance}:
            raise dimse.ProtocolError("response about another instance")
        if answer.Status is None:
            raise dimse.ProtocolError("invalid command set")
        if early and status.classify(answer.Status).delivered:
            raise dimse.ProtocolError("success before the data set was sent")
        return int(answer.Status)

    def _pdus(self, queued: model.Queued, context: int, message: int, file: int) -> Iterator[bytes]:
        request = C_STORE()
        request.MessageID = message
        request.AffectedSOPClassUID = UID(queued.sop_class)
        request.AffectedSOPInstanceUID = UID(queued.sop_instance)
        request.Priority = 0
        request.DataSet = BytesIO(os.pread(file, queued.data_set.size, queued.data_set.start))
        whole = C_STORE_RQ()
        whole.primitive_to_message(request)
        for primitive in whole.encode_msg(context, self._fragment + 6):
            pdu = P_DATA_TF()
            pdu.from_primitive(primitive)
            yield pdu.encode()

    def _answer(self) -> C_STORE:
        until = time.monotonic() + self._wire.patience
        message = DIMSEMessage()
        size = 0
        while True:
            received = self._wire.read(until)
            if received.type != dimse.P_DATA_TF:
                self._ended(received)
            size += len(received.body)
            if size > dimse.LONGEST_COMMAND:
                raise dimse.ProtocolError("command set too long")
            try:
                pdu = P_DATA_TF()
                pdu.decode(struct.pack(">BxI", received.type, len(received.body)) + received.body)
                if message.decode_msg(pdu.to_primitive()):
                    break
            except Exception:  # noqa: BLE001  what the library raises on bytes it does not like is documented nowhere
                raise dimse.ProtocolError("invalid command set") from None
        primitive = message.message_to_primitive()
        if not isinstance(message, C_STORE_RSP) or not isinstance(primitive, C_STORE):
            raise dimse.ProtocolError("response to another command")
        return primitive
